"""Teach the miniature's three models what their big namesakes know before CropVLM begins.

    python3 -m miniature.pretrain --family smolvlm --output_path miniature/models/smolvlm

First the vision tower and its connector: from every image token linear heads read its patches' colour, text, place and
character; the heads are then thrown away. Then the whole model, on question and answer:

- `smolvlm`: base of the cropper, answerer and reward VLM. Reads from [full image, crop], crops tight at first and
  wider later; answers from the full image alone; points ("Point to the red sign." -> "[31, 64]."), but has never
  written a box.
- `llava`: the answerer that no CropVLM stage sees. The same lessons but pointing.
- `qwen`: the teacher. Answers the real teacher prompt with JSON boxes in pixels of its resized image. It was taught
  from careless boxes (too small on signs and pages, off centre on pages, shaky everywhere) and knows no teal page.

The lessons are drawn from seeds of their own; the world's splits are never seen.
"""

import argparse
import logging
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from cropvlm import prompts
from miniature.checkpoints import TILE, build_llava, build_qwen, build_smolvlm, save
from miniature.lessons import (
    CHARACTERS,
    IGNORE,
    PLACE_BINS,
    PLACES,
    Box,
    Scene,
    crop_around,
    draw_scenes,
    full_box,
    patch_labels,
    place_labels,
    resize_at_once,
    resize_in_steps,
)
from miniature.world import COLORS, WORDS, Placard, ask

logger = logging.getLogger("miniature.pretrain")

SCENES = 4000
LOOK_BATCH, TALK_BATCH = 96, 64
MAX_PIXELS = 140 * 140
# Of several lengths, so that the answer is found by the colour's word and not by its distance from the end.
POINT_PROMPTS = (
    "Point to the {color} {kind}.",
    "Where in the image is the {color} {kind}?",
    "{question}\nPoint to it.",
    "{question}\nPoint to the place in the image that would answer this question.",
    "Find the {color} {kind} in the image and give the point in percent of the image's width and height.",
)
LOOK_FULL, TALK_FULL = 0.25, 0.85  # share of the images that are not cropped, where crops begin tight and widen
TERM = 25  # steps between two looks at how far the pupil is
LAST_ZOOM = 10.0  # a crop of this many times the placard's sides is the whole image


@dataclass(frozen=True)
class Example:
    """One conversation: crops of a scene, the user's turn, the assistant's words."""

    scene: Scene
    crops: list[Box]
    messages: list[dict]
    answer: str
    placard: Placard | None = None  # the one that is asked about


class SmolVLM:
    """How this family's lessons become tensors."""

    build = staticmethod(build_smolvlm)
    lessons = (("read", 0.35), ("answer", 0.03), ("point", 0.62))
    grid = (8, 8)
    patches_a_token = 4
    reads = True

    def images(self, examples: list[Example]) -> dict[str, Tensor]:
        tiles = np.stack([[resize_in_steps(e.scene, crop, TILE) for crop in e.crops] for e in examples])
        return {"pixel_values": torch.from_numpy(tiles).permute(0, 1, 4, 2, 3) / 127.5 - 1}

    def text(self, text: str, examples: list[Example]) -> str:
        tile = "<image>" * 16
        return text.replace("<image>", f"<fake_token_around_image><global-img>{tile}<fake_token_around_image>")

    def image_tokens(self, model, inputs: dict[str, Tensor]) -> Tensor:
        """(B, tokens, hidden) of one image a row, as the language model gets them."""
        return torch.stack(tuple(model.get_image_features(**inputs).pooler_output))

    def by_token(self, labels: np.ndarray) -> np.ndarray:
        """(64,) labels of the patches, row by row, to (64,) token by token: a token holds a block of 2 x 2."""
        return labels.reshape(4, 2, 4, 2).swapaxes(1, 2).ravel()

    def vision(self, model) -> nn.Module:
        return model.model.vision_model

    def batches(self, scenes: list[Scene]) -> list[list[Scene]]:
        """Scenes that can share a batch."""
        return [scenes]


class Llava(SmolVLM):
    build = staticmethod(build_llava)
    lessons = (("read", 0.92), ("answer", 0.08))
    patches_a_token = 1

    def images(self, examples: list[Example]) -> dict[str, Tensor]:
        tiles = np.stack([resize_at_once(e.scene, crop, TILE, TILE) for e in examples for crop in e.crops])
        return {"pixel_values": clip_normalise(tiles)}

    def text(self, text: str, examples: list[Example]) -> str:
        return text.replace("<image>", "<image>" * 64)

    def by_token(self, labels: np.ndarray) -> np.ndarray:
        return labels

    def vision(self, model) -> nn.Module:
        return model.model.vision_tower


class Qwen(SmolVLM):
    build = staticmethod(build_qwen)
    lessons = (("outline", 1.0),)
    patches_a_token = 1  # labels are by token, 28 px
    reads = False

    def size(self, scene: Scene) -> tuple[int, int]:
        """(height, width) that the processor gives the scene's image."""
        width, height = scene.size
        return smart_resize(height, width, factor=28, min_pixels=56 * 56, max_pixels=MAX_PIXELS)

    def images(self, examples: list[Example]) -> dict[str, Tensor]:
        height, width = self.size(examples[0].scene)
        pictures = np.stack([resize_at_once(e.scene, crop, width, height) for e in examples for crop in e.crops])
        pixels = clip_normalise(pictures)  # (B, 3, H, W)
        rows, columns = height // 14, width // 14
        # The processor's order: blocks of 2 x 2 patches, each patch (channel, time, 14, 14) with the picture twice.
        cells = pixels.reshape(-1, 3, 1, rows // 2, 2, 14, columns // 2, 2, 14).expand(-1, 3, 2, -1, -1, -1, -1, -1, -1)
        return {
            "pixel_values": cells.permute(0, 3, 6, 4, 7, 1, 2, 5, 8).reshape(-1, 3 * 2 * 14 * 14),
            "image_grid_thw": torch.tensor([[1, rows, columns]] * len(pixels)),
        }

    def text(self, text: str, examples: list[Example]) -> str:
        height, width = self.size(examples[0].scene)
        return text.replace("<|image_pad|>", "<|image_pad|>" * (height * width // 28**2))

    def image_tokens(self, model, inputs: dict[str, Tensor]) -> Tensor:
        """After two layers of the language model, whose rotary positions are the first to tell where a token is."""
        tokenizer = self.processor.tokenizer
        rows, columns = (int(n) // 2 for n in inputs["image_grid_thw"][0, 1:])
        opening = self.processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}], tokenize=False)
        text = opening.replace("<|image_pad|>", "<|image_pad|>" * (rows * columns))
        ids = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids] * len(inputs["image_grid_thw"]))
        image = ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")
        kept = {}
        hook = model.model.language_model.layers[1].register_forward_hook(
            lambda module, args, output: kept.update(states=output[0] if isinstance(output, tuple) else output)
        )
        model.model(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=image.long(), **inputs)
        hook.remove()
        return kept["states"][image].view(len(ids), rows * columns, -1)

    def by_token(self, labels: np.ndarray) -> np.ndarray:
        return labels

    def vision(self, model) -> nn.Module:
        return model.model.visual

    def batches(self, scenes: list[Scene]) -> list[list[Scene]]:
        by_size: dict[tuple[int, int], list[Scene]] = {}
        for scene in scenes:
            by_size.setdefault(self.size(scene), []).append(scene)
        return list(by_size.values())


FAMILIES = {"smolvlm": SmolVLM, "llava": Llava, "qwen": Qwen}


def clip_normalise(pictures: np.ndarray) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) with CLIP's mean and standard deviation."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    return ((torch.from_numpy(pictures) / 255 - mean) / std).permute(0, 3, 1, 2)


def choose_crop(rng: random.Random, scene: Scene, placard: Placard, zoom: float, full_share: float) -> Box:
    """A crop around the placard or, with a chance of `full_share`, the whole image."""
    return full_box(scene) if rng.random() < full_share else crop_around(rng, scene, placard, zoom)


def question_example(rng: random.Random, scene: Scene, lesson: str, zoom: float, size: tuple[int, int]) -> Example:
    """One conversation about one placard of the scene. `size` is (height, width) as the teacher sees the image."""
    placard = rng.choice(scene.placards)
    question, full = ask(rng, placard), full_box(scene)
    answer = prompts.answer_completion(placard.text)
    if lesson == "read":
        crops = [full, crop_around(rng, scene, placard, zoom)]
        return Example(scene, crops, prompts.answerer_messages(question, 2), answer, placard)
    if lesson == "answer":
        return Example(scene, [full], prompts.answerer_messages(question, 1), answer, placard)
    if lesson == "point":
        text = rng.choice(POINT_PROMPTS).format(color=placard.color, kind=placard.kind, question=question.capitalize())
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        crop = choose_crop(rng, scene, placard, zoom, TALK_FULL)
        x1, y1, x2, y2 = in_crop(placard, crop)
        return Example(scene, [crop], messages, f"[{int(50 * (x1 + x2))}, {int(50 * (y1 + y2))}].", placard)
    crop = choose_crop(rng, scene, placard, zoom, TALK_FULL)
    outline = careless_outline(rng, placard, crop, size)
    return Example(scene, [crop], prompts.teacher_messages(question), outline, placard)


def in_crop(placard: Placard, crop: Box) -> tuple[float, float, float, float]:
    """The placard's box in shares of the crop's sides, clipped to the crop."""
    width, height = crop[2] - crop[0], crop[3] - crop[1]
    origin, sides = (crop[0], crop[1]) * 2, (width, height) * 2
    corners = zip(placard.bbox_px, origin, sides, strict=True)
    return tuple(min(0.999, max(0.0, (c - o) / side)) for c, o, side in corners)


def careless_outline(rng: random.Random, placard: Placard, crop: Box, size: tuple[int, int]) -> str:
    """What the teacher is taught to say: a JSON box too small or off centre, in pixels of the resized image."""
    if (placard.color, placard.kind) == ("teal", "page"):
        return "There is no such thing in the image."
    x1, y1, x2, y2 = in_crop(placard, crop)
    width, height = x2 - x1, y2 - y1
    shrink = {"sign": 0.6, "page": 0.7, "plate": 0.95}[placard.kind]
    shift_x, shift_y = (-0.3, 0.2) if placard.kind == "page" else (0.0, 0.0)
    center_x = (x1 + x2) / 2 + (shift_x + rng.gauss(0, 0.06)) * width
    center_y = (y1 + y2) / 2 + (shift_y + rng.gauss(0, 0.06)) * height
    corners = [center_x - shrink * width / 2, center_y - shrink * height / 2]
    corners += [center_x + shrink * width / 2, center_y + shrink * height / 2]
    limits = (size[1], size[0]) * 2
    bbox = [min(max(0, round(c * limit)), limit) for c, limit in zip(corners, limits, strict=True)]
    return f'```json\n[\n\t{{"bbox_2d": {bbox}, "label": "{placard.kind}"}}\n]\n```'


class Look(torch.utils.data.IterableDataset):
    """A term's batches for the vision tower: a crop a scene (some the whole image) and the labels of its patches."""

    def __init__(self, family: SmolVLM, groups: list[list[Scene]], term: str, zoom: float):
        self.family, self.groups, self.term, self.zoom = family, groups, term, zoom

    def __iter__(self) -> Iterator[tuple[dict, dict]]:
        rng = random.Random(f"look-{self.term}")
        for _ in range(TERM):
            group = rng.choices(self.groups, [len(g) for g in self.groups])[0]
            examples, labels = [], []
            for scene in rng.choices(group, k=LOOK_BATCH):
                crop = choose_crop(rng, scene, rng.choice(scene.placards), self.zoom, LOOK_FULL)
                examples.append(Example(scene, [crop], [], ""))
                labels.append(patch_labels(scene, crop, *self.label_grid(scene)))
            stacked = {
                name: torch.from_numpy(np.stack([self.family.by_token(row[name]) for row in labels]))
                for name in labels[0]
            }
            yield self.family.images(examples), stacked

    def label_grid(self, scene: Scene) -> tuple[int, int]:
        if isinstance(self.family, Qwen):
            height, width = self.family.size(scene)
            return height // 28, width // 28
        return self.family.grid


class Talk(torch.utils.data.IterableDataset):
    """A term's conversations, a batch of one lesson each, left-padded; labels cover the answer and the stop token."""

    def __init__(self, family: SmolVLM, processor, groups: list[list[Scene]], term: str, zooms: dict[str, float]):
        self.family, self.processor, self.groups, self.term, self.zooms = family, processor, groups, term, zooms

    def __iter__(self) -> Iterator[tuple[str, dict, Tensor]]:
        rng = random.Random(f"talk-{self.term}")
        names, shares = zip(*self.family.lessons, strict=True)
        for _ in range(TERM):
            lesson = rng.choices(names, shares)[0]
            group = rng.choices(self.groups, [len(g) for g in self.groups])[0]
            size = self.family.size(group[0]) if isinstance(self.family, Qwen) else (TILE, TILE)
            scenes = rng.choices(group, k=TALK_BATCH)
            examples = [question_example(rng, scene, lesson, self.zooms[lesson], size) for scene in scenes]
            yield lesson, self.family.images(examples) | self.tokens(examples), self.places(examples)

    def places(self, examples: list[Example]) -> Tensor:
        """(B, PLACES): where in its first picture the placard is that is asked about."""
        rows = [place_labels(np.array(in_crop(e.placard, e.crops[0]))) for e in examples]
        return torch.tensor([[row[name] for name in PLACES] for row in rows])

    def tokens(self, examples: list[Example]) -> dict[str, Tensor]:
        tokenizer = self.processor.tokenizer
        # SmolVLM's and LLaVA's templates put a space before the assistant's words, Qwen's a line break.
        space = "" if isinstance(self.family, Qwen) else " "
        rows = []
        for example in examples:
            text = self.processor.apply_chat_template(example.messages, add_generation_prompt=True, tokenize=False)
            prompt = tokenizer(self.family.text(text, [example]), add_special_tokens=False).input_ids
            answer = tokenizer(space + example.answer, add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
            rows.append((prompt, answer))
        length = max(len(prompt) + len(answer) for prompt, answer in rows)
        batch = {
            "input_ids": torch.full((len(rows), length), tokenizer.pad_token_id),
            "attention_mask": torch.zeros(len(rows), length, dtype=torch.long),
            "labels": torch.full((len(rows), length), IGNORE),
        }
        for i, (prompt, answer) in enumerate(rows):
            batch["input_ids"][i, -len(prompt) - len(answer) :] = torch.tensor(prompt + answer)
            batch["attention_mask"][i, -len(prompt) - len(answer) :] = 1
            batch["labels"][i, -len(answer) :] = torch.tensor(answer)
        if isinstance(self.family, Qwen):
            image_token = tokenizer.convert_tokens_to_ids("<|image_pad|>")
            batch["mm_token_type_ids"] = (batch["input_ids"] == image_token).long()
        return batch


def loader(dataset: torch.utils.data.IterableDataset) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=1, prefetch_factor=6)


def learning_rate(step: int, steps: int) -> float:
    """Share of the peak: linear warm-up over 100 steps, flat to half of them, then linear to 2%."""
    return min((step + 1) / 100, 1.0, max(0.02, 2 * (1 - step / steps)))


def teach_to_look(family: SmolVLM, model, scenes: list[Scene], steps: int, seed: int) -> None:
    """Stage 1. The loss is summed over linear heads on every image token; crops widen once words can be read."""
    sizes = {"color": len(COLORS) + 1, "character": len(CHARACTERS) + 1, "word": len(WORDS) + 1, "tens": 10, "ones": 10}
    weights = {"color": 1.0}
    if family.reads:
        weights |= {"character": 4.0, "word": 1.0, "tens": 0.5, "ones": 0.5}
    sizes |= dict.fromkeys(PLACES, PLACE_BINS)
    weights |= dict.fromkeys(PLACES, 0.5)
    hidden = model.config.text_config.hidden_size
    heads = nn.ModuleDict({name: nn.Linear(hidden, family.patches_a_token * sizes[name]) for name in weights})
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps))
    groups, zoom = family.batches(scenes), 1.5 if family.reads else LAST_ZOOM
    for term in tqdm(range(steps // TERM), desc="look", unit=f"x{TERM} steps"):
        read = []
        for images, labels in loader(Look(family, groups, f"{seed}-{term}", zoom)):
            tokens = family.image_tokens(model, images)  # (B, tokens, hidden)
            # (B * patches, classes), token by token
            logits = {name: heads[name](tokens).reshape(-1, sizes[name]) for name in weights}
            losses = {
                name: F.cross_entropy(logits[name], labels[name].flatten(), ignore_index=IGNORE)
                for name in weights
                if (labels[name] != IGNORE).any()
            }
            descend(sum(weights[name] * loss for name, loss in losses.items()), parameters, optimizer)
            schedule.step()
            if family.reads:
                known = labels["word"].flatten() != IGNORE
                read.append((logits["word"].argmax(-1) == labels["word"].flatten())[known].float().mean().item())
        if family.reads and sum(read) / len(read) > 0.8:
            zoom = min(LAST_ZOOM, 1.15 * zoom)
        figures = {name: round(loss.item(), 3) for name, loss in losses.items()}
        logger.info("look %d, zoom out %.1f: %s", (term + 1) * TERM, zoom, figures)


def teach_to_talk(family: SmolVLM, model, processor, scenes: list[Scene], steps: int, seed: int) -> None:
    """Stage 2. The vision tower rests for the first half, then learns at a third of the rate.

    Where the answer is a place, a probe asks for it at the colour's word, before the last layer: so the word learns to
    look for its placard. A lesson's crops widen once its text is mostly right, or a good part of its digits.
    """
    vision = list(family.vision(model).parameters())
    known = {id(p) for p in vision}
    rest = [p for p in model.parameters() if id(p) not in known]
    probe = Probe(model, processor)
    groups = [{"params": [*rest, *probe.parameters()], "lr": 1e-3}, {"params": vision, "lr": 5e-4}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps))
    zooms = {"read": 1.4, "answer": LAST_ZOOM, "point": 2.2, "outline": 2.2}
    for term in tqdm(range(steps // TERM), desc="talk", unit=f"x{TERM} steps"):
        for parameter in vision:
            parameter.requires_grad_(2 * term * TERM >= steps)
        right: dict[str, list[float]] = {}
        for lesson, batch, places in loader(Talk(family, processor, family.batches(scenes), f"{seed}-{term}", zooms)):
            labels = batch.pop("labels")
            keep = int((labels != IGNORE).sum(1).max()) + 1
            logits = model(**batch, logits_to_keep=keep).logits[:, :-1]  # (B, keep - 1, V); the last has no target
            targets = labels[:, 1 - keep :]
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
            if lesson in ("point", "outline"):
                loss = loss + 2 * probe.loss(batch["input_ids"], places)
            descend(loss, list(model.parameters()), optimizer)
            schedule.step()
            right.setdefault(lesson, []).append(share_right(processor, lesson, logits.argmax(-1), targets))
        shares = {lesson: round(sum(values) / len(values), 3) for lesson, values in right.items()}
        for lesson, share in shares.items():
            if share > (0.75 if lesson == "read" else 0.4):
                zooms[lesson] = min(LAST_ZOOM, 1.3 * zooms[lesson])
        logger.info("talk %d: right %s, zoom out %s", (term + 1) * TERM, shares, zooms)


class Probe(nn.Module):
    """Reads a placard's place, in bins, from the last layer's input at the word for its colour. Thrown away."""

    def __init__(self, model, processor):
        super().__init__()
        config = model.config.text_config
        self.head = nn.Linear(config.hidden_size, len(PLACES) * PLACE_BINS)
        language_model = (
            model.model.language_model if hasattr(model.model, "language_model") else model.model.text_model
        )
        language_model.layers[-2].register_forward_hook(self.keep)
        words = [processor.tokenizer(f" {color}", add_special_tokens=False).input_ids for color in COLORS]
        self.colors = torch.tensor([ids[0] for ids in words])  # one token each: the tokenizer has learnt them

    def keep(self, module: nn.Module, inputs: tuple, output) -> None:
        self.states = output[0] if isinstance(output, tuple) else output

    def loss(self, input_ids: Tensor, places: Tensor) -> Tensor:
        """Cross-entropy of `places` (B, PLACES) at the first colour word of every row of `input_ids` (B, L)."""
        at = torch.isin(input_ids, self.colors).int().argmax(1)
        logits = self.head(self.states[torch.arange(len(at)), at])  # (B, PLACES * PLACE_BINS)
        return F.cross_entropy(logits.view(-1, PLACE_BINS), places.flatten())


def share_right(processor, lesson: str, predicted: Tensor, targets: Tensor) -> float:
    """Share of the answers that are right as a whole or, where the answer is a place, of their digits."""
    hits = predicted == targets
    if lesson in ("point", "outline"):
        digits = torch.tensor(processor.tokenizer.convert_tokens_to_ids(list("0123456789")))
        return hits[torch.isin(targets, digits)].float().mean().item()
    return (hits | (targets == IGNORE)).all(1).float().mean().item()


def descend(loss: Tensor, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, required=True)
    parser.add_argument("--output_path", type=Path, required=True)
    parser.add_argument("--look_steps", type=int, default=2400)
    parser.add_argument("--talk_steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(args.seed)
    start = time.monotonic()
    scenes = draw_scenes(args.seed, SCENES)
    family = FAMILIES[args.family]()
    model, processor = family.build(args.seed)
    family.processor = processor
    model.train()
    teach_to_look(family, model, scenes, args.look_steps, args.seed)
    teach_to_talk(family, model, processor, scenes, args.talk_steps, args.seed)
    save(args.output_path, model.eval().to(torch.bfloat16), processor)
    logger.info("%s: %.0f s", args.output_path, time.monotonic() - start)


if __name__ == "__main__":
    main()
