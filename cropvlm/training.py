"""Shared by both stages: rows as prompt and completion, the adapter, the schedule.

SFT teaches the completion ` [x1, y1, x2, y2].<end_of_utterance>`, the teacher's box in percent; GRPO starts from the
prompt alone. Values marked "release" are those of the released experiment.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from transformers.hf_argparser import HfArg

from cropvlm.boxes import NOT_NEEDED, format_bbox, parse_bbox
from cropvlm.encoding import chat_text
from cropvlm.errors import UserError
from cropvlm.models.tokens import END_OF_UTTERANCE
from cropvlm.prompts import Messages, cropper_messages, without_placeholders

LORA_R, LORA_ALPHA, LORA_DROPOUT = 128, 256, 0.05  # release
# Every linear of language model, vision encoder and connector but SigLIP's `out_proj` (release).
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "fc1", "fc2", "proj"]
WARMUP = 0.03  # share of all steps (release)

# Truncation to whole percents leaves a few boxes without area. Pixels, fractions or x, y, width, height make far more.
MOST_INVALID = 0.1
PERCENT = "expected [x1, y1, x2, y2] in percent of width and height: 0 <= x1 < x2 <= 100 and 0 <= y1 < y2 <= 100"


@dataclass
class Schedule:
    """Settings of TRL's configurations that are the same in both stages (release)."""

    lr_scheduler_type: str = "cosine"
    warmup_steps: float = HfArg(default=WARMUP, help="steps, or below 1 the share of all steps")
    num_train_epochs: float = 1.0
    seed: int = 42


def lora_config(r: int = LORA_R, alpha: int = LORA_ALPHA, dropout: float = LORA_DROPOUT) -> Any:
    """The fresh adapter to train, a `peft.LoraConfig`."""
    from peft import LoraConfig  # takes seconds

    return LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=LORA_TARGETS, task_type="CAUSAL_LM")


def prompt_and_completion(processor: Any, question: str, bbox_pct: list[float], needed: bool = True) -> dict[str, str]:
    """Texts of an SFT row, whose completion is `Not needed.` without need; the loss is on the completion alone.

    >>> prompt_and_completion(processor, "what is it?", [1, 2, 30, 40])["completion"]
    ' [1, 2, 30, 40].<end_of_utterance>'
    """
    prompt = chat_text(processor, cropper_messages(question))
    # The template would add a line break after the end of the turn, which inference never reaches.
    text = format_bbox(bbox_pct) if needed else NOT_NEEDED
    return {"prompt": prompt, "completion": f" {text}{END_OF_UTTERANCE}"}


def grpo_prompt(question: str, image_token: str) -> Messages:
    """Messages of a GRPO row. TRL takes them to its template as they are: the question may hold no `image_token`."""
    return without_placeholders(cropper_messages(question), image_token)


def valid_rows(bboxes: list[Any]) -> tuple[list[int], str]:
    """Indices of the rows with a valid box in percent, and the others counted by problem, in words.

    Raises `UserError` for boxes in another unit or order, of which some would pass as percent: fractions of 1, or more
    than `MOST_INVALID` of them invalid.
    """
    boxes = [bbox for bbox in bboxes if _is_four_numbers(bbox)]
    fractions = [bbox for bbox in boxes if max(bbox) <= 1 and any(value % 1 for value in bbox)]
    if fractions or (boxes and all(max(bbox) <= 1 for bbox in boxes)):
        raise UserError(f"the column bbox holds fractions of 1, such as {(fractions or boxes)[0]}; {PERCENT}")
    problems = list(map(bbox_problem, bboxes))
    counts = Counter(filter(None, problems))
    found = ", ".join(f"{count} {problem}" for problem, count in counts.items())
    if counts.total() > max(1, MOST_INVALID * len(bboxes)) or counts.total() == len(bboxes):
        example = next(bbox for bbox, problem in zip(bboxes, problems, strict=True) if problem)
        raise UserError(
            f"{counts.total()} of {len(bboxes)} rows have an invalid bbox ({found}), such as {example}; {PERCENT}"
        )
    return [i for i, problem in enumerate(problems) if problem is None], found


def bbox_problem(bbox: Any) -> str | None:
    """Why `bbox` is not a box in percent, in words to count by; None if it is one."""
    if not _is_four_numbers(bbox):
        return "not four numbers"
    if not all(0 <= value <= 100 for value in bbox):
        return "outside of 0..100"
    return None if parse_bbox(format_bbox(bbox)) else "without area"


def _is_four_numbers(bbox: Any) -> bool:
    return isinstance(bbox, list) and len(bbox) == 4 and all(isinstance(value, int | float) for value in bbox)
