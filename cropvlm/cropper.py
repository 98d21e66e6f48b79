"""A trained cropper as one object: images and questions in, boxes and crops out.

from cropvlm import Cropper

cropper = Cropper("models/grpo_512")
images = cropper.views(image, "What is written on the sign?")  # [full, crop]
"""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from cropvlm.boxes import parse_bbox
from cropvlm.crops import crop_or_full_image, full_and_crop
from cropvlm.generation import generate_texts
from cropvlm.modeling import load_model, load_processor
from cropvlm.prompts import MAX_BOX_TOKENS, cropper_messages

Box = tuple[float, float, float, float]  # (x1, y1, x2, y2) in percent of width and height


class Cropper:
    """A model that writes the box that helps another model to answer.

    Images are RGB, as `cropvlm.data.images.open_image` makes them from any file. Decoding is greedy, in batches that
    fit into memory.
    """

    def __init__(
        self, path: str, base: str | None = None, longest_edge: int | None = 512, device: Any = None, dtype: Any = None
    ):
        """Load the cropper.

        path: Hub id, or folder of a model, an adapter or one of its checkpoints. base: the adapter's base, if it has
        moved. longest_edge: pixels of the longer side at which images are seen. device, dtype: by default the first GPU
        with bfloat16, else the CPU with float32.
        """
        self.processor = load_processor(path, longest_edge)
        self.model = load_model(path, base, device, dtype)

    def texts(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        """The text that the cropper writes for each image and its question, usually a box."""
        prompts = [cropper_messages(question) for question in questions]
        shown = [[image] for image in images]
        return generate_texts(self.model, self.processor, prompts, shown, max_new_tokens=MAX_BOX_TOKENS)

    def boxes(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[Box | None]:
        """The box for each image and its question; None for an invalid one."""
        return [parse_bbox(text) for text in self.texts(images, questions)]

    def crops(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[Image.Image]:
        """The crop of each image at full resolution; the image itself for an invalid box."""
        texts = self.texts(images, questions)
        return [crop_or_full_image(image, text)[0] for image, text in zip(images, texts, strict=True)]

    def views(self, image: Image.Image, question: str) -> list[Image.Image]:
        """`[full image, crop]`, as the answerer gets them; the full image alone where no crop is needed."""
        return full_and_crop(image, self.texts([image], [question])[0])
