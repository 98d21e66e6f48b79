"""Copy a tiny model, with embeddings by which the letters of `Not needed.` can be told apart.

    python3 -m miniature.letters --model_path miniature/models/smolvlm --output_path models/miniature_need_base

Pretraining never shows these tokens: it moves their embeddings all into one direction, away from what is written, to
cosines above 0.99. An adapter leaves embeddings as they are. It learns when to write the words, but no spelling.
"""

import argparse

import torch
from torch.nn.functional import normalize

from cropvlm.boxes import NOT_NEEDED
from cropvlm.modeling import load_full_model, load_processor
from cropvlm.runs.cli import ArgumentParser, nonempty, run
from miniature.tiny_models import save


def tell_apart(embeddings: torch.Tensor, tokens: list[int]) -> None:
    """Move the embeddings (V, D) of the `tokens` that have a twin by random vectors as long as those without one."""
    directions = normalize(embeddings)
    has_twin = ((directions @ directions.T) > 0.99).sum(1) > 1  # itself is one
    alike = [token for token in dict.fromkeys(tokens) if has_twin[token]]
    moves = normalize(torch.randn(len(alike), embeddings.shape[1], generator=torch.Generator().manual_seed(0)))
    embeddings[alike] += embeddings[~has_twin].norm(dim=1).median() * moves


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--model_path", type=nonempty, required=True)
    parser.add_argument("--output_path", type=nonempty, required=True)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    model, processor = load_full_model(args.model_path, torch.float32), load_processor(args.model_path)
    tell_apart(model.get_input_embeddings().weight.data, processor.tokenizer(f" {NOT_NEEDED}")["input_ids"])
    save(args.output_path, model, processor)


if __name__ == "__main__":
    run(main)
