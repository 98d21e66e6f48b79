"""The accuracy that an answerer reaches with the cropper's current boxes, for use while the cropper is trained."""

from typing import Any

from datasets import Dataset

from cropvlm.boxes import is_not_needed, parse_bbox
from cropvlm.crops import full_and_crop
from cropvlm.data.rows import benchmark_for
from cropvlm.generation import generate_texts
from cropvlm.metrics import letter_accuracy
from cropvlm.prompts import BRIEF_ANSWER, MAX_BOX_TOKENS, answerer_prompt, clean_answer, cropper_messages
from cropvlm.rewards import MAX_ANSWER_TOKENS, answer_accuracy
from cropvlm.trainers.settings import TrainerArguments
from cropvlm.trainers.training_data import load_training_rows, open_training_image

BATCH_SIZE = 32
HELD_OUT_SPLIT = "validation"  # where the data set has it


class CropAccuracy:
    """Boxes, crops and answers of held-out rows, all greedy, as the generating scripts make them.

    args: name their data set, whose instruction and score are used.
    rows: in the row schema, images encoded, every row with references.
    answerer, processor: the frozen model that answers from `[full image, crop]`.
    """

    def __init__(self, args: TrainerArguments, rows: Dataset, answerer: Any, processor: Any):
        benchmark = benchmark_for(args.eval_dataset_path, split=args.eval_split, default_split=HELD_OUT_SPLIT)
        self.rows, self.answerer = rows, (answerer, processor)
        self.instruction = BRIEF_ANSWER if benchmark.instruction is None else benchmark.instruction
        self.score = letter_accuracy if benchmark.metric == "letter" else answer_accuracy

    def __call__(self, policy: Any, processor: Any, rank: int = 0, num_processes: int = 1) -> list[tuple[float, bool]]:
        """Return (score, whether its box was valid) of each row of process number `rank`'s share."""
        share = range(rank, len(self.rows), num_processes)
        results = []
        for start in range(0, len(share), BATCH_SIZE):
            rows = [self.rows[i] for i in share[start : start + BATCH_SIZE]]
            results += self._score_batch(policy, processor, rows)
        return results

    def _score_batch(self, policy: Any, processor: Any, rows: list[dict]) -> list[tuple[float, bool]]:
        images = [open_training_image(row["image"], row["question_id"]) for row in rows]
        messages = [cropper_messages(row["question"]) for row in rows]
        full = [[image] for image in images]
        boxes = generate_texts(policy, processor, messages, full, max_new_tokens=MAX_BOX_TOKENS)
        prompts = [
            answerer_prompt(row["question"], full_and_crop(image, box), self.instruction)
            for row, image, box in zip(rows, images, boxes, strict=True)
        ]
        answers = generate_texts(*self.answerer, *zip(*prompts, strict=True), max_new_tokens=MAX_ANSWER_TOKENS)
        scores = [self.score(clean_answer(answer), row["answers"]) for answer, row in zip(answers, rows, strict=True)]
        valid = [parse_bbox(box) is not None or is_not_needed(box) for box in boxes]
        return list(zip(scores, valid, strict=True))


def load_held_out_rows(args: TrainerArguments) -> Dataset | None:
    """The rows to measure the accuracy on, if a data set is given."""
    if args.eval_dataset_path is None:
        return None
    chosen = (args.eval_dataset_path, args.eval_split, args.eval_max_samples)
    return load_training_rows(*chosen, "answers", default_split=HELD_OUT_SPLIT)
