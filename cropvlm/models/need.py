"""Whether a crop is needed, decided at the first token that the cropper writes: a box's or that of `Not needed.`

The difference of their log-probabilities is the `need` of a row, in nats; at least 0 where the cropper itself would
write a box. A threshold on it selects the rows that get a crop, so one cropper covers every operating point.
"""

from typing import Any

from torch import Tensor
from transformers import LogitsProcessor

from cropvlm.boxes import NOT_NEEDED, format_bbox
from cropvlm.errors import UserError


class BoxText(str):
    """A generated box with its `need`."""

    need: float

    def __new__(cls, text: str, need: float):
        made = super().__new__(cls, text)
        made.need = need
        return made


class NeedRecorder(LogitsProcessor):
    """Records the need of each prompt of a batch, `needs` (B,), and lets the model write a box in any case."""

    def __init__(self, tokenizer: Any):
        """Raises `UserError` for a tokenizer in which both texts begin with the same token."""
        # As SFT teaches them, after a space.
        texts = [f" {format_bbox((0, 0, 100, 100))}", f" {NOT_NEEDED}"]
        self.box, self.not_needed = (ids[0] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])
        if self.box == self.not_needed:
            raise UserError(f"--need: the tokenizer begins a box and {NOT_NEEDED!r} with one token, so it cannot tell")
        self.needs: list[float] | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores: logits of the next token, (B, V)."""
        if self.needs is None:  # the first token: a difference of logits is that of their log-probabilities
            self.needs = (scores[:, self.box].float() - scores[:, self.not_needed].float()).tolist()
            scores = scores.clone()
            scores[:, self.not_needed] = -float("inf")
        return scores
