"""The two trainers: TRL's own, and every place where they are changed.

Private methods of TRL are overridden here and nowhere else. Each override says what it relies on, as read in TRL 1.16.0
and transformers 5.23.0; tests/training/test_trl_overrides.py fails where that changes.
"""

import contextlib
import functools
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from trl import GRPOTrainer, SFTTrainer

from cropvlm.models.readers import image_reader
from cropvlm.rewards import completion_text
from cropvlm.trainers.box_logging import box_figures, draw_groups, log_picture
from cropvlm.trainers.evaluation import CropAccuracy
from cropvlm.trainers.images import ImageCollator
from cropvlm.trainers.memory import MicroBatches, RolloutTooLarge, activation_bytes, generation_bytes, parts_of
from cropvlm.trainers.pace import Pace
from cropvlm.trainers.results import save_card
from cropvlm.trainers.settings import PolicyArguments
from cropvlm.trainers.shared_images import SharedImages


class CropperTrainer:
    """Changes to TRL that both trainers share; a mixin that comes before TRL's trainer among a class's bases.

    The model card is this project's. Where TRL would compute a loss on held-out rows, the accuracy with the current
    crops is measured. A run resumed after its last step takes no further one. A micro-step's rows go through the model
    in parts that memory holds, and how fast that goes is logged.

    Args:
        policy: the arguments that the model card lists.
    """

    crop_accuracy: CropAccuracy  # set where there are rows to measure on
    group = 1  # rows that share an image and go through the model together

    def __init__(self, policy: PolicyArguments, processing_class: Any, crop_processor: Any, **kwargs: Any):
        self.policy_arguments, self.pace = policy, Pace()
        self.crop_processor = crop_processor  # the policy's own, which takes images
        super().__init__(processing_class=processing_class, **kwargs)
        self.config = self.model.config  # read here: finding it in a wrapped model takes a walk over all its modules
        self.micro_batches = MicroBatches(self.args.micro_batch_size, self.group, self.accelerator.num_processes)

    # Relies on: `Trainer.training_step` calling it once, with rows along dimension 0 of every tensor but scalars, and
    # going backward from its result; on `current_gradient_accumulation_steps` and the scalar `num_items_in_batch` being
    # what TRL's GRPO losses are divided by, and SFT's by the argument of that name alone.
    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Return the loss of all rows, whose gradient is there already: part after part has been forward and back."""
        if self.is_deepspeed_enabled:  # counts the calls of backward
            return super().compute_loss(model, self._part_inputs(dict(inputs)), return_outputs, num_items_in_batch)
        units = len(next(iter(inputs.values())))
        kept = [None if weight.grad is None else weight.grad.clone() for weight in self._trained_weights]

        def take(size: int) -> Tensor:
            # Undo what an attempt that ran out of memory has added.
            for weight, grad in zip(self._trained_weights, kept, strict=True):
                weight.grad = None if grad is None else weight.grad.copy_(grad)
            *parts, last = parts_of(units, size)
            losses = [self._part_loss(model, inputs, part, units, num_items_in_batch) for part in parts]
            return sum(losses) + self._part_loss(model, inputs, last, units, num_items_in_batch, synchronize=True)

        tokens = [inputs[name] for name in ("input_ids", "prompt_ids", "completion_ids") if name in inputs]  # (..., L)
        unit_bytes = self._unit_bytes(tokens[0], sum(each.shape[-1] for each in tokens))
        loss = self.micro_batches.run(take, units, unit_bytes, self.accelerator.device)
        return loss.requires_grad_()  # for one more backward, which ends here

    @functools.cached_property
    def _trained_weights(self) -> list[Tensor]:
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    def _part_loss(
        self, model: Any, inputs: Any, part: slice, units: int, num_items_in_batch: Any, synchronize: bool = False
    ) -> Tensor:
        """Return what the rows of one part add to the loss, after going back from it."""
        steps, state = self.current_gradient_accumulation_steps, self.accelerator.gradient_state
        share, synchronizes = len(range(units)[part]) / units, state.sync_gradients
        chosen = self._part_inputs({name: _part(value, part, share) for name, value in inputs.items()})
        self.current_gradient_accumulation_steps = steps / share  # as if every part were as large
        state._set_sync_gradients(synchronizes and synchronize)
        try:
            with contextlib.nullcontext() if synchronize else self.accelerator.no_sync(model):
                loss = super().compute_loss(model, chosen, num_items_in_batch=num_items_in_batch)
                self.accelerator.backward(loss)
        finally:
            self.current_gradient_accumulation_steps = steps
            state._set_sync_gradients(synchronizes)
        return loss.detach()

    def _unit_bytes(self, prompt_ids: Tensor, length: int) -> int:
        """About how much memory training takes for a row, or all of a prompt's. length: of a row's tokens, padded."""
        processor = self.crop_processor
        image_tokens = (prompt_ids == processor.image_token_id).sum(-1).max().item()
        return activation_bytes(
            self.config, self.group * length, image_tokens / processor.image_seq_len, self._itemsize
        )

    @property
    def _itemsize(self) -> int:
        return 2 if self.args.bf16 or self.args.fp16 else 4  # bytes of what the model computes

    # Relies on: `Trainer._run_epoch` calling it for the batches of each step, and the next method after the step, to
    # log, evaluate and save.
    def get_batch_samples(self, *args: Any) -> tuple:
        self.pace.run(self._tokens_seen())
        with self.pace.waiting():
            batches, num_items_in_batch = super().get_batch_samples(*args)
        rows = self.args.per_device_train_batch_size / getattr(self, "num_generations", 1)
        self.pace.rows += len(batches) * rows * self.accelerator.num_processes
        return batches, num_items_in_batch

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self.pace.stop()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    # Relies on: a training step's log alone having a `loss`.
    def log(self, logs: dict[str, float], *args: Any) -> None:
        """Log rows of the data set and tokens a second, and the share of the time spent waiting for images."""
        if "loss" in logs:
            logs |= self.pace.figures(self._tokens_seen())
        super().log(logs, *args)

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

    def _part_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The tiles of all images in a row, (tiles, 1, 3, T, T): the model needs no padding between rows."""
        tiles = self.reader.tiles(inputs.pop("images"), self.accelerator.device)
        return {**inputs, "pixel_values": tiles["pixel_values"]}

    def _tokens_seen(self) -> int:
        return self._total_train_tokens


class BoxGRPOTrainer(CropperTrainer, GRPOTrainer):
    """TRL's `GRPOTrainer` whose groups share their image, whose micro-batches hold whole groups, with boxes logged.

    TRL shuffles the completions of a step before it splits them into micro-batches; here it shuffles groups. The sum
    over the step is the same. Where a micro-batch cannot hold whole groups, TRL's order stays.

    Args:
        policy: the arguments that the model card lists; `log_crops_every` counts the steps between two pictures of
            boxes in `{output_dir}/crops` and in TensorBoard, 0 draws none.
    """

    # Relies on: images reaching the model only through `processing_class` and the model's `get_image_features`.
    def __init__(self, policy: PolicyArguments, model: Any, processing_class: Any, args: Any, **kwargs: Any):
        self.shared_images = SharedImages(model, processing_class)
        if args.per_device_train_batch_size % args.num_generations == 0:
            self.group = args.num_generations
        numbered = self.shared_images.processor
        super().__init__(policy, numbered, processing_class, model=model, args=args, **kwargs)
        self.data_collator = self.shared_images.read_ahead
        processes = self.accelerator.num_processes
        self.rollouts = MicroBatches(args.rollout_batch_size, 1, processes, RolloutTooLarge)
        if self.ref_model is not None:  # a whole model's; an adapter's reference is a second adapter of the same model
            self.shared_images.bind(self.accelerator.unwrap_model(self.ref_model))

    def _tokens_seen(self) -> int:
        return self.state.num_input_tokens_seen

    # Relies on: being called once for all completions of a rollout, with lists and tensors of a row each, before
    # anything else of a step, and returning (token ids, None).
    def _generate_single_turn(self, prompt_ids: list, images: list, fields: dict, *args: Any) -> tuple:
        write = super()._generate_single_turn
        if self.use_vllm:
            return write(prompt_ids, images, fields, *args)

        def write_all(size: int) -> list:
            chosen = [
                (prompt_ids[part], images[part], {name: value[part] for name, value in fields.items()})
                for part in parts_of(len(prompt_ids), size)
            ]
            return [ids for part in chosen for ids in write(*part, *args)[0]]

        tokens = max(map(len, prompt_ids)) + self.max_completion_length
        row_bytes = generation_bytes(self.config, tokens, self._itemsize)
        return self.rollouts.run(write_all, len(prompt_ids), row_bytes, self.accelerator.device), None

    # Relies on: reference and old policy being asked without gradients for all completions, `batch_size` in a forward
    # pass; the policy itself with those of a part.
    def _get_per_token_logps_and_entropies(
        self, model: Any, ids: Tensor, mask: Tensor, logits_to_keep: int, batch_size: int | None = None, **fields: Any
    ) -> tuple:
        compute = super()._get_per_token_logps_and_entropies
        if batch_size is None:
            return compute(model, ids, mask, logits_to_keep, **fields)
        return self.micro_batches.run(
            lambda size: compute(model, ids, mask, logits_to_keep, batch_size=size * self.group, **fields),
            batch_size // self.group,
            self._unit_bytes(ids, ids.shape[1]),
            ids.device,
        )

    # Relies on: its result being shuffled and split along dimension 0 of every tensor that has one
    # (`shuffle_sequence_dict`, `split_tensor_dict`), and on a prompt's completions standing in a row in it.
    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        with self.pace.waiting():
            inputs = self.shared_images.open(inputs)
        batch = super()._generate_and_score_completions(inputs)
        if self.group == 1:
            return batch
        # One row per group (prompts, G, ...), for TRL to shuffle and split. Every prompt has one image.
        del batch["num_images"]
        return {key: value.unflatten(0, (-1, self.group)) if value.ndim else value for key, value in batch.items()}

    def _part_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if self.group == 1:
            return inputs
        inputs = {key: value.flatten(0, 1) if value.ndim else value for key, value in inputs.items()}
        return {**inputs, "num_images": [1] * len(inputs["prompt_ids"])}

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


def _part(value: Any, part: slice, share: float) -> Any:
    """These rows of a list or tensor; of a total over all rows their share."""
    return value * share if isinstance(value, Tensor) and value.ndim == 0 else value[part]
