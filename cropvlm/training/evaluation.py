"""The accuracy that an answerer reaches with the cropper's current boxes, for use while the cropper is trained."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from accelerate.utils import gather_object
from datasets import Dataset

from cropvlm.cli import remedy
from cropvlm.crops import crop_or_full_image
from cropvlm.data import benchmark_for
from cropvlm.generation import generate_texts
from cropvlm.metrics import letter_accuracy
from cropvlm.modeling import ImageSizeError, load_full_model, load_processor
from cropvlm.prompts import BRIEF_ANSWER, MAX_BOX_TOKENS, answerer_messages, clean_answer, cropper_messages
from cropvlm.rewards import MAX_ANSWER_TOKENS, answer_accuracy
from cropvlm.training.arguments import HeldOutArguments, PolicyArguments, frozen_dtype
from cropvlm.training.rows import load_training_rows, open_training_image

BATCH_SIZE = 32
HELD_OUT_SPLIT = "validation"  # where the data set has it


class CropAccuracy:
    """Boxes, crops and answers of held-out rows, all greedy, as the generating scripts make them.

    Args:
        rows: in the row schema, images encoded, every row with references.
        answerer, answerer_processor: the frozen model that answers from `[full image, crop]`.
        instruction: what follows the question.
        score: (prediction, references) -> 0..1.
    """

    def __init__(
        self,
        rows: Dataset,
        answerer: Any,
        answerer_processor: Any,
        instruction: str = BRIEF_ANSWER,
        score: Callable[[str, Sequence[str]], float] = answer_accuracy,
    ):
        self.rows, self.answerer, self.answerer_processor = rows, answerer, answerer_processor
        self.instruction, self.score = instruction, score

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
        questions = [cropper_messages(row["question"]) for row in rows]
        full = [[image] for image in images]
        boxes = generate_texts(policy, processor, questions, full, max_new_tokens=MAX_BOX_TOKENS)
        crops = [crop_or_full_image(image, box) for image, box in zip(images, boxes, strict=True)]
        questions = [answerer_messages(row["question"], 2, self.instruction) for row in rows]
        pairs = [[image, crop] for image, (crop, _) in zip(images, crops, strict=True)]
        model = (self.answerer, self.answerer_processor)
        answers = generate_texts(*model, questions, pairs, max_new_tokens=MAX_ANSWER_TOKENS)
        scores = [self.score(clean_answer(answer), row["answers"]) for answer, row in zip(answers, rows, strict=True)]
        return [(score, valid) for score, (_, valid) in zip(scores, crops, strict=True)]


class CropAccuracyMixin:
    """A trainer that measures the accuracy with its current crops wherever TRL would work out a loss."""

    crop_accuracy: CropAccuracy  # these two are set by `measure_on`
    crop_processor: Any

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict:
        """Return and log accuracy (0 to 100) and share of valid boxes on the held-out rows, boxes greedy."""
        self.model.eval()
        process = (self.accelerator.process_index, self.accelerator.num_processes)
        with self.accelerator.autocast():
            results = gather_object(self.crop_accuracy(self.model, self.crop_processor, *process))
        scores, valid = zip(*results, strict=True)
        metrics = {
            f"{metric_key_prefix}_accuracy": 100 * fmean(scores),
            f"{metric_key_prefix}_boxes/valid": fmean(valid),
        }
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def load_held_out_rows(args: HeldOutArguments) -> Dataset | None:
    """The rows of `--eval_dataset_path`, if it is given."""
    if args.eval_dataset_path is None:
        return None
    return load_training_rows(
        args.eval_dataset_path, args.eval_split, args.eval_max_samples, "answers", default_split=HELD_OUT_SPLIT
    )


def load_answerer(policy: PolicyArguments, args: Any) -> tuple[Any, Any]:
    """`--vqa_model`, frozen, and its processor."""
    with remedy("say --vqa_longest_edge None", ImageSizeError):
        processor = load_processor(policy.vqa_model, policy.vqa_longest_edge)
    model = load_full_model(policy.vqa_model, frozen_dtype(args)).to(args.device).eval().requires_grad_(False)
    return model, processor


def measure_on(trainer: Any, rows: Dataset, processor: Any, answerer: Any, answerer_processor: Any) -> None:
    """Let `trainer` measure on `rows`, with the instruction and score of their data set.

    processor: the policy's own, which takes images.
    """
    benchmark = benchmark_for(
        trainer.args.eval_dataset_path, split=trainer.args.eval_split, default_split=HELD_OUT_SPLIT
    )
    score = letter_accuracy if benchmark.metric == "letter" else answer_accuracy
    instruction = benchmark.instruction or BRIEF_ANSWER
    trainer.crop_accuracy = CropAccuracy(rows, answerer, answerer_processor, instruction, score)
    trainer.crop_processor = processor
