"""Pretrain the miniature's three models in the skills that the real models have before CropVLM begins.

    python3 -m miniature.pretraining.pretrain --family smolvlm --output_path miniature/models/smolvlm

First the vision tower and its connector are trained: linear heads predict from every image token what its patches show
(colour, place, characters, word), and are then discarded. Then the language model is trained on questions and answers,
from the finished tower's features of the same pictures:

- `smolvlm`: base of the cropper, answerer and reward VLM. Reads from [full image, crop], crops tight at first and
  wider later; answers from the full image alone; points and frames ("Frame the red sign." -> "31 64 48 72."), with
  margins of any width, but has never seen the cropper's prompt.
- `llava`: the answerer that no CropVLM stage sees. The same lessons without those on places.
- `qwen`: the teacher. Answers the real teacher prompt with JSON boxes in pixels of its resized image. It was taught
  from careless boxes (too small on signs and pages, off centre on pages, shaky everywhere; teal pages are denied).

The lessons are drawn from separate seeds; the world's splits are never seen.
"""

import argparse
import logging
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from cropvlm.runs.cli import ArgumentParser, run
from miniature.pretraining.conversations import Conversation
from miniature.pretraining.families import FAMILIES, SmolVLM
from miniature.pretraining.lessons import (
    CHARACTERS,
    COLOR_IDS,
    IGNORE,
    OFFSET_BINS,
    OFFSETS,
    PLACE_BINS,
    PLACES,
    Picture,
    Scene,
    draw_scenes,
    make_example,
)
from miniature.tiny_models import save
from miniature.world import COLORS, LEXICON

logger = logging.getLogger("miniature.pretraining.pretrain")

LOOK_BATCH, TALK_BATCH = 96, 64
FULL_SHARE = 0.25  # share of whole canvases in the tower's batches, for families that see crops
FIRST_ZOOM, LAST_ZOOM = 1.5, 3.0  # crops start tight and widen by ZOOM_STEP once most texts are read
ZOOM_STEP = 1.1
TERM = 25  # steps between two decisions on widening the crops
PROBE_LAYER = 1  # of the language model, from 0: here a colour's word learns where its placard is
LOOKING_HEADS = 2  # heads per layer that find a colour's placard and pass on its place
GRID = 12  # rows or columns of tokens at most


@dataclass(frozen=True)
class Stage:
    """Number of steps and peak learning rate of one part of the training."""

    steps: int
    peak: float


# The vision tower (looking), then the language model (talking).
LESSONS = {
    "smolvlm": (Stage(3600, 2e-3), Stage(3600, 1.5e-3)),
    "llava": (Stage(3000, 2e-3), Stage(1800, 1.5e-3)),
    "qwen": (Stage(700, 2e-3), Stage(2000, 1.5e-3)),
}


def label_heads(family: SmolVLM) -> dict[str, tuple[int, float]]:
    """Linear heads on every patch: name -> (classes, weight of its loss)."""
    heads = {"color": (len(COLORS) + 1, 1.0)}
    if family.sees_crops:
        heads |= {"character": (len(CHARACTERS) + 1, 4.0), "word": (len(LEXICON) + 1, 1.0)}
        heads |= {"tens": (10, 0.5), "ones": (10, 0.5)}
    if family.knows_places:
        return heads | dict.fromkeys(PLACES, (PLACE_BINS, 0.5))
    return heads | dict.fromkeys(OFFSETS, (OFFSET_BINS, 0.5))


def teach_to_look(family: SmolVLM, scenes: list[Scene], plan: Stage, rng: random.Random) -> None:
    """Train tower and connector; crops widen once most words can be read from a patch."""
    heads = label_heads(family)
    hidden = family.model.config.text_config.hidden_size
    linears = nn.ModuleDict(
        {name: nn.Linear(hidden, family.patches_a_token * classes) for name, (classes, _) in heads.items()}
    )
    parameters = [*family.model.parameters(), *linears.parameters()]
    optimizer, schedule = optimize(parameters, plan)
    by_shape = group([p for scene in scenes for p in scene.pictures], lambda picture: picture.tile.shape)
    zoom, read = FIRST_ZOOM, []
    for step in (progress := tqdm(range(plan.steps), desc="look", mininterval=10)):
        if step % TERM == 0:
            if read and np.mean(read) > 0.8:
                zoom = min(LAST_ZOOM, ZOOM_STEP * zoom)
            read = []
            pools = [by_zoom(pictures, zoom) for pictures in by_shape]
        pool = rng.choices(pools, [len(full) for full, _ in pools])[0]
        pictures = choose_pictures(rng, *pool)
        features = family.encode(torch.from_numpy(np.stack([p.tile for p in pictures])))  # (B, tokens, D)
        loss, losses = torch.zeros(()), {}
        for name, (classes, weight) in heads.items():
            targets = torch.from_numpy(np.stack([p.labels[name] for p in pictures])).flatten().long()
            logits = linears[name](features).reshape(-1, classes)  # (B * patches, classes), token by token
            known = targets != IGNORE
            if known.any():
                losses[name] = F.cross_entropy(logits, targets, ignore_index=IGNORE)
                loss = loss + weight * losses[name]
                if name == "word":
                    read.append((logits.argmax(-1) == targets)[known].float().mean().item())
        descend(loss, parameters, optimizer, schedule)
        if step % 100 == 99:
            figures = {name: round(value.item(), 3) for name, value in losses.items()}
            logger.info("look %d, zoom %.1f: %s", step + 1, zoom, figures)
            progress.set_postfix(zoom=round(zoom, 1), color=figures["color"])


def group(items: list, key: Callable) -> list[list]:
    groups: dict = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def by_zoom(pictures: list[Picture], zoom: float) -> tuple[list[Picture], list[Picture]]:
    """Whole canvases, and crops of at most `zoom`."""
    return [p for p in pictures if p.zoom == 0], [p for p in pictures if 0 < p.zoom <= zoom]


def choose_pictures(rng: random.Random, full: list[Picture], crops: list[Picture]) -> list[Picture]:
    count = round(FULL_SHARE * LOOK_BATCH) if crops else LOOK_BATCH
    return rng.choices(full, k=count) + (rng.choices(crops, k=LOOK_BATCH - count) if crops else [])


@torch.no_grad()
def cache_features(family: SmolVLM, scenes: list[Scene]) -> None:
    """Encode every picture once: the tower is frozen from here on."""
    family.model.eval()
    for pictures in group([p for scene in scenes for p in scene.pictures], lambda picture: picture.tile.shape):
        for i in tqdm(range(0, len(pictures), 256), desc="encode", mininterval=10):
            batch = pictures[i : i + 256]
            features = family.encode(torch.from_numpy(np.stack([p.tile for p in batch])))
            for picture, feature in zip(batch, features, strict=True):
                picture.features = feature.clone()
    family.model.train()


@torch.no_grad()
def initialise_color_attention(family: SmolVLM, scenes: list[Scene]) -> None:
    """Initialise the attention from a colour's word to its placard, which is slow to learn from random weights.

    The embedding of a colour's word starts as the mean feature of the tokens that show it, minus that of all tokens; in
    the layers that have to find it, query weights start equal to key weights.
    """
    pictures = [scene.pictures[0] for scene in scenes]
    features = torch.cat([p.features for p in pictures])  # (tokens of all, D)
    labels = np.concatenate([p.labels["color"].reshape(-1, family.patches_a_token) for p in pictures])
    words = family.model.get_input_embeddings().weight
    for color, word in family.color_words().items():
        shown = torch.from_numpy((labels == COLOR_IDS[color]).any(1))
        direction = features[shown].mean(0) - features.mean(0)
        words[word] = direction * words.norm(dim=1).mean() / direction.norm()
    for layer in family.language_layers[: PROBE_LAYER + 2]:
        attention = layer.self_attn
        attention.k_proj.weight *= 3
        groups = attention.config.num_attention_heads // attention.config.num_key_value_heads
        keys = attention.k_proj.weight.view(-1, attention.head_dim, words.shape[1])  # (key heads, head_dim, D)
        attention.q_proj.weight.copy_(keys.repeat_interleave(groups, 0).flatten(0, 1))


class Probes(nn.Module):
    """Auxiliary losses inside the language model that guide it step by step from a colour's word to the answer.

    In layer PROBE_LAYER the colour's word must attend to the image tokens that show it and then encode the placard's
    place; in the next layer every token of the answer must attend to that word and encode the place too. Where the
    tower has no absolute positions, both happen one layer later, and every image token must first encode its row and
    column. The linear heads that read the places are discarded.
    """

    def __init__(self, family: SmolVLM):
        super().__init__()
        self.family, self.states = family, {}
        tokenizer = family.processor.tokenizer
        hidden = family.model.config.text_config.hidden_size
        self.word, self.answer = (nn.Linear(hidden, len(PLACES) * PLACE_BINS) for _ in range(2))
        self.grid = nn.Linear(hidden, 2 * GRID)
        self.first = PROBE_LAYER + (not family.knows_places)
        self.handles = [
            layer.register_forward_hook(lambda module, args, output, i=i: self.states.update({i: first_output(output)}))
            for i, layer in enumerate(family.language_layers)
        ]
        self.looks = {}
        self.handles += [
            layer.self_attn.register_forward_hook(lambda module, args, output, i=i: self.looks.update({i: output[1]}))
            for i, layer in enumerate(family.language_layers)
        ]
        self.colors = torch.tensor(list(family.color_words().values()))
        self.image_token = tokenizer.convert_tokens_to_ids(family.image_placeholder)

    def losses(self, batch: Conversation) -> dict[str, Tensor]:
        """Losses of a batch by name: attention and, where the answer is a place, cross-entropy of places."""
        ids = batch.input_ids
        word = torch.isin(ids, self.colors).int().argmax(1)  # (B,), position of the first colour
        row, column = (batch.labels != IGNORE).nonzero(as_tuple=True)  # (answer tokens,); the token before predicts
        looks = self.looks[self.first][torch.arange(len(ids)), :LOOKING_HEADS, word]  # (B, heads, L)
        losses = {"look": attention_loss(looks, batch.shown[:, None])}
        looks = self.looks[self.first + 1][row, :LOOKING_HEADS, column - 1]  # (answer tokens, heads, L)
        losses["recall"] = attention_loss(looks, F.one_hot(word, ids.shape[1])[row, None])
        if batch.places is not None:
            states = self.states[self.first][torch.arange(len(ids)), word]  # (B, D)
            losses["word"] = 2 * F.cross_entropy(self.word(states).view(-1, PLACE_BINS), batch.places.flatten())
            states = self.states[self.first + 1][row, column - 1]  # (answer tokens, D)
            losses["answer"] = F.cross_entropy(self.answer(states).view(-1, PLACE_BINS), batch.places[row].flatten())
        if not self.family.knows_places:
            losses["grid"] = self.grid_loss(batch)
        return losses

    def grid_loss(self, batch: Conversation) -> Tensor:
        """Cross-entropy of every image token's row and column."""
        height, width = self.family.label_grid(*batch.shape)
        y, x = np.mgrid[:height, :width]
        targets = torch.from_numpy(np.stack([y.ravel(), x.ravel()], -1)).repeat(len(batch.input_ids), 1)  # (B * T, 2)
        states = self.states[self.first - 1][batch.input_ids == self.image_token]
        return F.cross_entropy(self.grid(states).view(-1, GRID), targets.flatten())

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def attention_loss(looks: Tensor, at: Tensor) -> Tensor:
    """Mean negative log of the share of the attention `looks` (..., L) that falls on the tokens `at`."""
    return -((looks * at).sum(-1) + 1e-4).log().mean()


def first_output(output):
    return output[0] if isinstance(output, tuple) else output


def teach_to_talk(family: SmolVLM, probes: Probes, scenes: list[Scene], plan: Stage, rng: random.Random) -> None:
    """Train the language model; crops widen once most texts are right."""
    parameters = [p for layer in family.language_layers for p in layer.parameters()]
    parameters += [family.model.get_input_embeddings().weight, *language_norm(family).parameters()]
    parameters += probes.parameters()
    optimizer, schedule = optimize(parameters, plan)
    by_shape = group(scenes, lambda scene: scene.pictures[0].tile.shape)
    zoom, seen = FIRST_ZOOM, {}
    names, shares = zip(*family.lessons, strict=True)
    for step in tqdm(range(plan.steps), desc="talk", mininterval=10):
        lesson = rng.choices(names, shares)[0]
        alike = rng.choices(by_shape, [len(g) for g in by_shape])[0]
        examples = [make_example(rng, scene, lesson, zoom) for scene in rng.choices(alike, k=TALK_BATCH)]
        batch = Conversation(family, examples)
        logits, targets = batch.logits(family)
        loss = answer_loss(logits, targets, family.answers_weigh_alike)
        probed = probes.losses(batch)
        descend(loss + sum(probed.values()), parameters, optimizer, schedule)
        seen.setdefault(f"{lesson} right", []).append(share_right(family, lesson, logits.argmax(-1), targets))
        for name, value in probed.items():
            seen.setdefault(f"{lesson} {name}", []).append(value.item())
        if step % TERM == TERM - 1 and np.mean(seen.get("read right", [0])) > 0.5:
            zoom = min(LAST_ZOOM, ZOOM_STEP * zoom)
        if step % 100 == 99:
            figures = {name: round(float(np.mean(values)), 3) for name, values in seen.items()}
            logger.info("talk %d, zoom %.1f: %s", step + 1, zoom, figures)
            seen = {}


def answer_loss(logits: Tensor, targets: Tensor, answers_weigh_alike: bool) -> Tensor:
    """Cross-entropy of (B, T, V) logits: the mean over all tokens or, so that the teacher's few short denials count
    like its long outlines, over the answers' means."""
    if not answers_weigh_alike:
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    losses = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORE, reduction="none")  # (B, T)
    return (losses.sum(1) / (targets != IGNORE).sum(1)).mean()


def language_norm(family: SmolVLM) -> nn.Module:
    model = family.model.model
    return (model.text_model if hasattr(model, "text_model") else model.language_model).norm


def share_right(family: SmolVLM, lesson: str, predicted: Tensor, targets: Tensor) -> float:
    """Share of the answers that are right as a whole or, where the answer is a place, of their digits."""
    hits = predicted == targets
    if lesson in ("place", "outline"):
        digits = torch.tensor(family.processor.tokenizer.convert_tokens_to_ids(list("0123456789")))
        return hits[torch.isin(targets, digits)].float().mean().item()
    return (hits | (targets == IGNORE)).all(1).float().mean().item()


def optimize(parameters: list[nn.Parameter], plan: Stage):
    """AdamW; linear warm-up over 100 steps, then cosine decay to 2%."""
    optimizer = torch.optim.AdamW(parameters, lr=plan.peak, weight_decay=0.01, betas=(0.9, 0.98))

    def share(step: int) -> float:
        return min(1.0, (step + 1) / 100) * (0.02 + 0.98 * (1 + math.cos(math.pi * step / plan.steps)) / 2)

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def descend(loss: Tensor, parameters: list[nn.Parameter], optimizer, schedule) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    schedule.step()


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=FAMILIES, required=True)
    parser.add_argument("--output_path", type=Path, required=True)
    parser.add_argument("--look_steps", type=int, help="instead of the number in LESSONS, for a quick trial")
    parser.add_argument("--talk_steps", type=int, help="instead of the number in LESSONS")
    parser.add_argument("--scenes", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(args.seed)
    start = time.monotonic()
    family = FAMILIES[args.family](args.seed)
    look, talk = LESSONS[args.family]
    if args.look_steps is not None:
        look = replace(look, steps=args.look_steps)
    if args.talk_steps is not None:
        talk = replace(talk, steps=args.talk_steps)
    family.model.set_attn_implementation("eager")  # faster than the fused kernels at these sizes
    rng = random.Random(f"lessons-{args.seed}")
    probes = Probes(family)
    scenes = draw_scenes(args.family, args.seed, args.scenes)
    family.model.train()
    teach_to_look(family, scenes, look, rng)
    cache_features(family, scenes)
    initialise_color_attention(family, scenes)
    teach_to_talk(family, probes, scenes, talk, rng)
    probes.remove()
    save(args.output_path, family.model.eval().to(torch.bfloat16), family.processor)
    logger.info("%s: %.0f s", args.output_path, time.monotonic() - start)


if __name__ == "__main__":
    run(main)
