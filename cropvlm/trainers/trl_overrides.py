"""The two trainers: TRL's own, and every place where they are changed.

Private methods of TRL are overridden here and nowhere else. Each override says what it relies on, as read in TRL 1.16.0
and transformers 5.23.0; tests/trainers/test_trl_overrides.py fails where that changes.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import gather_object
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from trl import GRPOTrainer, SFTTrainer

from cropvlm.models.readers import image_reader
from cropvlm.rewards import completion_text
from cropvlm.trainers.box_logging import box_figures, log_crops
from cropvlm.trainers.crop_cost import CollapseWarning
from cropvlm.trainers.evaluation import CropAccuracy
from cropvlm.trainers.images import ImageCollator
from cropvlm.trainers.results import save_card
from cropvlm.trainers.settings import PolicyArguments
from cropvlm.trainers.shared_images import SharedImages


@contextlib.contextmanager
def merged(model: Any) -> Iterator[None]:
    """Merge the adapter that `model` (PEFT) trains into its base, and put the base's weights back bit by bit.

    Completions are then written in about half as many operations a token. The weights come back from a copy:
    subtracting the adapter again would leave rounding errors in them, step after step.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    weights = [layer.get_base_layer().weight.data for layer in layers]
    kept = [weight.clone() for weight in weights]
    try:
        model.merge_adapter(["default"])  # TRL's reference is another one, "ref"
        yield
    finally:
        for layer, weight, values in zip(layers, weights, kept, strict=True):
            weight.copy_(values)
            layer.merged_adapters.clear()


class CropperTrainer:
    """Changes to TRL that both trainers share; a mixin that comes before TRL's trainer among a class's bases.

    The model card is this project's. Where TRL would compute a loss on held-out rows, the accuracy with the current
    crops is measured. A run resumed after its last step takes no further one.

    Args:
        policy: the arguments that the model card lists.
    """

    crop_accuracy: CropAccuracy  # set where there are rows to measure on

    def __init__(self, policy: PolicyArguments, processing_class: Any, crop_processor: Any, **kwargs: Any):
        self.policy_arguments = policy
        self.crop_processor = crop_processor  # the policy's own, which takes images
        super().__init__(processing_class=processing_class, **kwargs)

    # Relies on: `Trainer.training_step` calling it once for a micro-step.
    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return TRL's loss of a micro-step, its images in the form that the model takes."""
        return super().compute_loss(model, self._micro_step(dict(inputs)), *args, **kwargs)

    # Relies on: TRL calling it with every checkpoint and with nothing else that the card would need.
    def create_model_card(self, model_name: str | None = None, dataset_name: Any = None, tags: Any = None) -> None:
        """Write `README.md` into the output folder: origin, figures, settings, versions."""
        if self.is_world_process_zero():
            save_card(self, self.args.output_dir, model_name or Path(self.args.output_dir).name)

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
        # Training goes on with the random numbers it would have had: loading images in between draws some.
        with torch.random.fork_rng(devices=[]), self.accelerator.autocast():
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
    """TRL's `SFTTrainer` with this project's model card and measure, whose workers hand over unpadded images."""

    def __init__(self, policy: PolicyArguments, processing_class: Any, **kwargs: Any):
        super().__init__(policy, processing_class, processing_class, **kwargs)
        self.reader = image_reader(processing_class, self.accelerator.device)
        self.data_collator = ImageCollator(self.data_collator, processing_class, self.reader.read)

    def _micro_step(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The tiles of all images in a row, (tiles, 1, 3, T, T): the model needs no padding between rows."""
        tiles = self.reader.tiles(inputs.pop("images"), self.accelerator.device)
        return {**inputs, "pixel_values": tiles["pixel_values"]}


class BoxGRPOTrainer(CropperTrainer, GRPOTrainer):
    """TRL's `GRPOTrainer` whose groups share their image, whose micro-batches hold whole groups, with boxes logged.

    TRL shuffles the completions of a step before it splits them into micro-batches; here it shuffles groups. The sum
    over the step is the same. Where a micro-batch cannot hold whole groups, TRL's order stays. The reference has no
    dropout, even if the policy has.
    """

    group = 1  # completions that share an image and go through the model together

    # Relies on: images reaching the model only through `processing_class` and the model's `get_image_features`.
    def __init__(self, policy: PolicyArguments, model: Any, processing_class: Any, args: Any, **kwargs: Any):
        self.shared_images = SharedImages(model, processing_class)
        self.collapse_warning = CollapseWarning()
        if args.per_device_train_batch_size % args.num_generations == 0:
            self.group = args.num_generations
        numbered = self.shared_images.processor
        super().__init__(policy, numbered, processing_class, model=model, args=args, **kwargs)
        self.data_collator = self.shared_images.read_ahead
        for module in self.model.modules():  # the reference adapter is in training mode, as the policy's beside it
            if "ref" in getattr(module, "lora_dropout", {}):
                module.lora_dropout["ref"] = torch.nn.Identity()
        if self.ref_model is not None:  # a whole model's; an adapter's reference is a second adapter of the same model
            self.shared_images.bind(self.accelerator.unwrap_model(self.ref_model))

    # Relies on: TRL's sampler drawing each epoch's order from a generator of its own, which no checkpoint restores.
    def _get_train_sampler(self, dataset: Any = None) -> Any:
        self.sampler = super()._get_train_sampler(dataset)
        return self.sampler

    # Relies on: `epoch` being among the options, and the loader asking the sampler once within this method.
    def _run_epoch(self, **options: Any) -> None:
        """Run an epoch in the order that a run never stopped would have."""
        if self.sampler.shuffle:
            self.sampler.generator.manual_seed(self.sampler.seed)
            for _ in range(options["epoch"]):
                torch.randperm(self.sampler.num_samples, generator=self.sampler.generator)
        super()._run_epoch(**options)

    # Relies on: every rollout going through it.
    def _generate_single_turn(self, *args: Any) -> tuple:
        """Write completions under the autocast that their log-probabilities are computed under."""
        adapter = merged(self.model) if self.policy_arguments.merged_rollouts else contextlib.nullcontext()
        with self.accelerator.autocast(), adapter:
            return super()._generate_single_turn(*args)

    # Relies on: its result being shuffled and split along dimension 0 of every tensor that has one
    # (`shuffle_sequence_dict`, `split_tensor_dict`), and on a prompt's completions standing in a row in it.
    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(self.shared_images.open(inputs))
        # One row per group (prompts, G, ...), for TRL to shuffle and split. Every prompt has one image.
        del batch["num_images"]
        return {key: value.unflatten(0, (-1, self.group)) if value.ndim else value for key, value in batch.items()}

    def _micro_step(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = {key: value.flatten(0, 1) if value.ndim else value for key, value in inputs.items()}
        return {**inputs, "num_images": [1] * len(inputs["prompt_ids"])}

    # Relies on: its result being the rewards of all processes' completions, in their order, by reward function.
    def _calculate_rewards(self, inputs: list[dict], prompts: list, completions: list, *args: Any) -> Tensor:
        by_function = super()._calculate_rewards(inputs, prompts, completions, *args)  # (N of all processes, functions)
        if self.model.training:
            rewards = (by_function.cpu() * self.reward_weights).nansum(1)
            self._log_boxes(inputs, [completion_text(completion) for completion in completions], rewards)
        return by_function

    # Relies on: `_log_metric` averaging what it is given over the steps between two logs.
    def _log_boxes(self, inputs: list[dict], texts: list[str], rewards: Tensor) -> None:
        # A group may be spread over processes: every process computes the figures of all.
        figures = box_figures(gather_object(texts), rewards, self.num_generations)
        if self.policy_arguments.crop_cost is not None:
            self.collapse_warning(figures["boxes/not_needed"])
        elif not any(figures.get("boxes/not_needed", [])):
            figures.pop("boxes/not_needed", None)
        for name, values in figures.items():
            for value in values:
                self._log_metric(name, value)
        step, every = self.state.global_step, self.policy_arguments.log_crops_every
        whole_group = len(inputs) >= self.num_generations  # else this process holds a part of one group alone
        if every and step % every == 0 and whole_group and self.is_world_process_zero():
            callbacks = self.callback_handler.callbacks
            log_crops(inputs, texts, rewards.tolist(), self.num_generations, self.args.output_dir, step, callbacks)
