"""The two trainers: TRL's own, and every place where they are changed.

Private methods of TRL are overridden here and nowhere else. Each override says what it relies on, as read in TRL 1.16.0
and transformers 5.23.0; tests/training/test_trl_overrides.py fails where that changes.
"""

from pathlib import Path
from statistics import fmean
from typing import Any

from accelerate.utils import gather_object
from torch import Tensor
from trl import GRPOTrainer, SFTTrainer

from cropvlm.rewards import completion_text
from cropvlm.training.arguments import PolicyArguments
from cropvlm.training.box_logging import box_figures, draw_groups, log_picture
from cropvlm.training.evaluation import CropAccuracy
from cropvlm.training.memory import MicroStepTooLarge, RolloutTooLarge, memory_errors
from cropvlm.training.saving import save_card
from cropvlm.training.shared_images import SharedImages, open_images


class CropperTrainer:
    """Changes to TRL that both trainers share; a mixin that comes before TRL's trainer among a class's bases.

    The model card is this project's. Where TRL would compute a loss on held-out rows, the accuracy with the current
    crops is measured. A run resumed after its last step takes no further one.
    """

    policy_arguments: PolicyArguments  # listed by the model card
    crop_accuracy: CropAccuracy  # set where there are rows to measure on
    crop_processor: Any  # the policy's own, which takes images

    # Relies on: TRL calling it with every checkpoint and with nothing else that the card would need.
    def create_model_card(self, model_name: str | None = None, dataset_name: Any = None, tags: Any = None) -> None:
        """Write `README.md` into the output folder: origin, figures, settings, versions."""
        if self.is_world_process_zero():
            save_card(self, model_name or Path(self.args.output_dir).name)

    # Relies on: `Trainer._inner_training_loop` calling it once an epoch, with the state of the checkpoint restored, and
    # looking at `should_training_stop` after it. Transformers itself looks for the end only after a step.
    def _run_epoch(self, **options: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**options)

    # Relies on: `Trainer.evaluate` being what `_maybe_log_save_evaluate` calls and takes the metrics from.
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


class BoxSFTTrainer(CropperTrainer, SFTTrainer):
    """TRL's `SFTTrainer` with this project's model card and measure.

    Args:
        policy: the arguments that the model card lists.
    """

    def __init__(self, policy: PolicyArguments, processing_class: Any, **kwargs: Any):
        self.policy_arguments, self.crop_processor = policy, processing_class
        super().__init__(processing_class=processing_class, **kwargs)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        with memory_errors(MicroStepTooLarge, f"in a micro-step of {len(inputs['input_ids'])} rows"):
            return super().training_step(model, inputs, num_items_in_batch)


class BoxGRPOTrainer(CropperTrainer, GRPOTrainer):
    """TRL's `GRPOTrainer` whose groups share their image, whose micro-batches hold whole groups, with boxes logged.

    TRL shuffles the completions of a step before it splits them into micro-batches; here it shuffles groups. The sum
    over the step is the same. Where a micro-batch cannot hold whole groups, TRL's order stays.

    Args:
        policy: the arguments that the model card lists; `log_crops_every` counts the steps between two pictures of
            boxes in `{output_dir}/crops` and in TensorBoard, 0 draws none.
    """

    # Relies on: images reaching the model only through `processing_class` and the model's `get_image_features`.
    def __init__(self, policy: PolicyArguments, model: Any, processing_class: Any, **kwargs: Any):
        self.policy_arguments, self.crop_processor = policy, processing_class
        self.shared_images = SharedImages(model, processing_class)
        super().__init__(model=model, processing_class=self.shared_images.processor, **kwargs)
        if self.ref_model is not None:  # a whole model's; an adapter's reference is a second adapter of the same model
            self.shared_images.bind(self.accelerator.unwrap_model(self.ref_model))

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        with memory_errors(
            MicroStepTooLarge, f"in a micro-step of {self.args.per_device_train_batch_size} completions"
        ):
            return super().training_step(model, inputs, num_items_in_batch)

    # Relies on: being called once for all completions of a rollout, before anything else of a step.
    def _generate_single_turn(self, prompt_ids: list, *args: Any, **kwargs: Any) -> tuple:
        with memory_errors(RolloutTooLarge, f"while {len(prompt_ids)} completions were written"):
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)

    # Relies on: its result being shuffled and split along dimension 0 of every tensor that has one
    # (`shuffle_sequence_dict`, `split_tensor_dict`), and on a prompt's completions standing in a row in it.
    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        inputs = open_images(inputs)
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        self.shared_images.forget()
        batch = super()._generate_and_score_completions(inputs)
        if self.args.per_device_train_batch_size % self.num_generations != 0:
            return batch
        # One row per group (prompts, G, ...), for TRL to shuffle and split. Every prompt has one image.
        del batch["num_images"]
        return {
            key: value.unflatten(0, (-1, self.num_generations)) if value.ndim else value for key, value in batch.items()
        }

    # Relies on: its inputs being what `_generate_and_score_completions` returned, shuffled and split.
    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if inputs["prompt_ids"].ndim == 3:
            inputs = {key: value.flatten(0, 1) if value.ndim else value for key, value in inputs.items()}
            inputs["num_images"] = [1] * len(inputs["prompt_ids"])
        return super()._compute_loss(model, inputs)

    # Relies on: its result being the rewards of all processes' completions, in their order, by reward function.
    def _calculate_rewards(self, inputs: list[dict], prompts: list, completions: list, *args: Any) -> Tensor:
        by_function = super()._calculate_rewards(inputs, prompts, completions, *args)  # (N of all processes, functions)
        if self.model.training:
            rewards = (by_function * self.reward_weights.to(by_function.device)).nansum(1)
            self._log_boxes(inputs, [completion_text(completion) for completion in completions], rewards)
        return by_function

    # Relies on: `_log_metric` averaging what it is given over the steps between two logs.
    def _log_boxes(self, inputs: list[dict], texts: list[str], rewards: Tensor) -> None:
        # A group may be spread over processes: every process computes the figures of all.
        for name, values in box_figures(gather_object(texts), rewards, self.num_generations).items():
            for value in values:
                self._log_metric(name, value)
        step, every = self.state.global_step, self.policy_arguments.log_crops_every
        whole_group = len(inputs) >= self.num_generations  # else this process holds a part of one group alone
        if every and step % every == 0 and whole_group and self.is_world_process_zero():
            picture = draw_groups(inputs, texts, rewards.tolist(), self.num_generations)
            log_picture(picture, self.args.output_dir, step, self.callback_handler.callbacks)
