"""Whether each row needs its crop, by what the reward VLM loses without it.

The gap of a row is log p(answer | full image, teacher's crop) - log p(answer | full image), in nats: the reward of GRPO
with the crop and without. SFT teaches `Not needed.` where it is below a threshold. Only the first process of a launch
computes gaps.
"""

import argparse
import json
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
from datasets import Dataset
from tqdm import tqdm

from cropvlm.crops import crop_bbox
from cropvlm.data.images import open_image
from cropvlm.errors import UserError
from cropvlm.modeling import load_model, load_processor
from cropvlm.prompts import answerer_messages
from cropvlm.rewards import AnswerLikelihoodReward
from cropvlm.runs.journal import Journal
from cropvlm.runs.provenance import hash_of, model_checksum, row_keys
from cropvlm.runs.text_models import device_of
from cropvlm.sets.rows import with_columns

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 16  # kept in the journal together
EDGES = (-8, -4, -2, -1, -0.5, 0, 0.5, 1, 2, 4, 8)  # nats, of the report's histogram


def label_need(rows: Dataset, args: argparse.Namespace) -> tuple[Dataset, dict]:
    """Return the rows with `loss_gap` and `needed`, and what the report says of them.

    A row without references has no gap and counts as needed. Gaps are kept in `{output_path}_need.journal.jsonl`, by
    row and box, so that the same command continues; another threshold asks for none again.
    """
    ids, answers = list(rows["question_id"]), list(rows["answers"])
    keys = [hash_of(json.dumps(row)) for row in zip(ids, row_keys(rows), answers, rows["bbox"], strict=True)]
    with Journal(f"{args.output_path}_need", gap_settings(args)) as journal:
        known = {(i, record["key"]) for i, record in journal.rows.items()}
        missing = [k for k, row in enumerate(zip(ids, keys, strict=True)) if answers[k] and row not in known]
        if missing:
            device, dtype = device_of(args)
            processor = load_processor(args.reward_model, args.reward_longest_edge)
            reward = AnswerLikelihoodReward(load_model(args.reward_model, device=device, dtype=dtype), processor)
            for k, gap in tqdm(loss_gaps(reward, rows, missing), total=len(missing), unit="row", desc="need"):
                journal.append([{"question_id": ids[k], "key": keys[k], "loss_gap": gap}])
        gaps = [journal.rows[i]["loss_gap"] if some else None for i, some in zip(ids, answers, strict=True)]
    needed = [gap is None or gap >= args.need_threshold for gap in gaps]
    known_gaps = [gap for gap in gaps if gap is not None]
    counts, _ = np.histogram(np.clip(known_gaps, EDGES[0], EDGES[-1]), EDGES)
    report = {"threshold": args.need_threshold, "reward_model": args.reward_model}
    report |= {"longest_edge": args.reward_longest_edge, "needed": sum(needed), "not_needed": needed.count(False)}
    report |= {"without_references": gaps.count(None), "gap_edges": list(EDGES), "rows_by_gap": counts.tolist()}
    logger.info("a crop is needed by %d of %d rows", sum(needed), len(needed))
    return with_columns(rows, {"loss_gap": gaps, "needed": needed}), report


def gap_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that determine the gap of a row."""
    dtype, path = str(device_of(args)[1]), args.reward_model
    settings = {"reward_model": path, "model_files": model_checksum(path), "dtype": dtype}
    return settings | {"longest_edge": args.reward_longest_edge, "prompt": answerer_messages("{question}", 2)}


def loss_gaps(reward: AnswerLikelihoodReward, rows: Dataset, indices: list[int]) -> Iterator[tuple[int, float]]:
    """Yield the index and the gap of each of the rows, which have references and a box."""
    for start in range(0, len(indices), ROWS_AT_ONCE):
        part = indices[start : start + ROWS_AT_ONCE]
        asked = []
        for row in map(rows.__getitem__, part):
            full = open_image(row["image"])
            crop = crop_bbox(full, row["bbox"])
            asked += [([full, crop], row["question"], row["answers"]), ([full], row["question"], row["answers"])]
        scores = list(reward.batches.run(lambda some: reward.score(*zip(*some, strict=True)), asked))
        for i, with_crop, without in zip(part, scores[::2], scores[1::2], strict=True):
            if isinstance(with_crop, ValueError) or isinstance(without, ValueError):
                raise UserError(f"--reward_model: out of memory with row {i} alone; lower --reward_longest_edge")
            yield i, round(with_crop - without, 6)
