"""The result for a setting, by the content that was recorded of it, and in what the nearest one differs."""

import contextlib
import functools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cropvlm.data.catalog import BENCHMARKS, dataset_name
from cropvlm.data.rows import benchmark_for
from cropvlm.errors import UserError, failure
from cropvlm.prompts import BRIEF_ANSWER, answerer_messages, cropper_messages
from cropvlm.runs.predictions import KINDS, PredictionFile
from cropvlm.runs.provenance import rows_changed
from reporting.claims import Answerer, Claims, Cropper, Setting
from reporting.gains import comparison_key
from reporting.plan import here, training_rows
from reporting.results import Result, at_threshold, changed_model


@dataclass(frozen=True)
class Match:
    """The result that comes nearest to a setting, and in what it differs."""

    result: Result
    differences: tuple[str, ...]


def match(setting: Setting, results: Sequence[Result], claims: Claims) -> Match | None:
    """Return the result for a setting, else the nearest that differs in settings, data or training alone.

    Raises `UserError` where two files with different answers fit.
    """

    def rank(item: Match) -> tuple[int, bool]:
        """Return the number of differences; of equal ones, the one by the setting's own model comes first."""
        names = {file.cropper for file in item.result.box_files}
        own = setting.cropper is None or setting.cropper.model_on(setting.benchmark) in names
        return len(item.differences), not own

    found = [Match(r, d) for r in results if (d := differences(setting, r, claims)) is not None]
    best, *others = sorted(found, key=rank) or [None]
    for other in others:
        if rank(best) == rank(other) and not best.differences and best.result.records != other.result.records:
            first, second = best.result.path, other.result.path
            raise UserError(f"two files for one setting ({setting.title}): {first} and {second}; move one away")
    return best


def matches(claims: Claims, results: Sequence[Result]) -> dict[Setting, Match | None]:
    """Return the match of every setting of a claims file."""
    found = {setting: match(setting, results, claims) for setting in claims.settings}
    compared = {setting for item in claims.items for column in item.columns for setting in column}
    return found | {s: decided(s, *map(found.get, s.answered)) for s in compared if s not in found}


def decided(setting: Setting, crop: Match | None, full: Match | None) -> Match | None:
    """Return the answers at a threshold of the need: of `crop` where a box's need reaches it, of `full` elsewhere.

    They are those of generate_final_answers.py --need_threshold, which asks no other prompts.
    """
    if crop is None or full is None:
        return None
    after, before = crop.result, full.result
    found = [*crop.differences, *full.differences, *filter(None, [before.failures])]
    try:
        if comparison_key(after) != comparison_key(before) or after.asked != before.asked:
            raise UserError(f"{after.path} and {before.path} are not of the same questions and settings")
        made = at_threshold(after, before, setting.need_threshold)
    except UserError as error:
        return Match(after, (*found, str(error)))
    return Match(made, tuple(found))


def differences(setting: Setting, result: Result, claims: Claims) -> tuple[str, ...] | None:
    """Return in what a result differs from a setting; None if the result is for another setting."""
    benchmark, answerer, used, meta = setting.benchmark, setting.answerer, result.settings, result.meta
    shown = (result.benchmark, result.answerer, used["mode"] != "base", result.control, used.get("need_threshold"))
    wanted = (benchmark.name, answerer.model, setting.cropper is not None, setting.control, setting.need_threshold)
    if shown != wanted:
        return None
    own = benchmark_for(*(meta.get(key) for key in ("dataset_path", "dataset", "split"))).instruction
    prompts = [answerer_messages("{question}", n, BRIEF_ANSWER if own is None else own) for n in (1, 2)]
    dtype = (used.get("dtype") or answerer.dtype or "").removeprefix("torch.")
    found = differing(
        ("split", meta.get("split"), benchmark.split),
        ("rows", meta["counts"]["rows"] + len(meta.get("left_out") or []), benchmark.rows),
        ("metric", benchmark.metric and result.scored.metric, benchmark.metric),
        ("answerer's min pixels", used.get("min_pixels"), answerer.min_pixels),
        ("answerer's max pixels", used.get("max_pixels"), answerer.max_pixels),
        ("answerer's dtype", dtype, answerer.dtype),
        ("answerer's image fit", used.get("image_fit") or answerer.image_fit, answerer.image_fit),
    )
    found += model_differs("answerer", meta, answerer, answerer.max_new_tokens, prompts)
    if setting.cropper:
        of_boxes = [d for f in known_boxes(result) if (d := boxes_differ(setting, result, f, claims)) is not None]
        if not of_boxes:
            return None
        found += min(of_boxes, key=len)
    return tuple(found)


def differing(*compared: tuple[str, Any, Any]) -> list[str]:
    """Return in words what is not as wanted, where something is: (name, ours, theirs)."""
    return [f"{name} {ours} instead of {theirs}" for name, ours, theirs in compared if theirs not in (None, ours)]


def model_differs(
    role: str, meta: dict[str, Any], wanted: Answerer | Cropper, max_new_tokens: int | None, prompts: list
) -> list[str]:
    """Return in what the model that wrote a file, `answerer` or `cropper`, differs from the one wanted.

    Older meta files do not say all of it.
    """
    used, name = meta["settings"], Path(wanted.model).name
    found = differing(
        (f"{role}'s longest edge", used.get("longest_edge"), wanted.longest_edge),
        (f"{role}'s max_new_tokens", used.get("max_new_tokens") or max_new_tokens, max_new_tokens),
    )
    if used.get("prompt") not in (None, *prompts):
        found.append(f"another prompt of the {role}")
    if changed := changed_model(meta, role):
        found.append(f"{changed} has changed since it wrote the {KINDS[role]}")
    if others := [reply for reply in meta["models"].get("replied") or [] if name not in reply]:  # a dated name has it
        found.append(f"the server replied as {', '.join(others)}")
    return found


def known_boxes(result: Result) -> list[PredictionFile]:
    """Return the box files of a result; without them, what its own meta file says of the cropper."""
    recorded = (result.meta.get("boxes") or {}).get("cropper")
    kept = {"models": {"cropper": None}, "settings": {}, "cropper": recorded}
    return result.box_files or ([PredictionFile(Path(), kept, [])] if recorded else [])


def boxes_differ(setting: Setting, result: Result, boxes: PredictionFile, claims: Claims) -> list[str] | None:
    """Return how boxes differ from those of a setting's cropper; None if another cropper wrote them.

    What the training recorded decides, and only without a record the name of the model.
    """
    wanted, record, on = setting.cropper, boxes.meta.get("cropper") or {}, setting.benchmark.name
    by_name = boxes.cropper == wanted.model_on(setting.benchmark)
    if "stage" in record:
        cost = (record.get("need") or {}).get("crop_cost")
        same = (record["stage"], record.get("reward"), cost) == (wanted.stage, wanted.reward, wanted.crop_cost)
        if not by_name and not (same and wanted.seed in (None, record.get("seed"))):
            return None
        training = training_differs(wanted, record, claims)
    else:
        known = {cropper.model_on(setting.benchmark): cropper for cropper in claims.croppers.values()}
        named = known.get(boxes.cropper)
        if named is None or (named.stage, named.reward) != (wanted.stage, wanted.reward):
            return None
        training = differing(("cropper trained on", named.trained_on, wanted.trained_on))
        if record and wanted.training is not None:
            training.append("nothing is recorded of the cropper's training")
    found = model_differs("cropper", boxes.meta, wanted, 32, [cropper_messages("{question}")]) + training
    if failed := boxes.meta.get("failed"):
        found.append(f"{len(failed)} boxes failed")
    split = result.meta.get("split") or (BENCHMARKS[on].split if on in BENCHMARKS else None)
    data = [claims.data.get(cropper.trained_on) for cropper in (*claims.bases(wanted), wanted)]
    sources = [(name, "train") for part in data if part for name in part.names]
    sources += [(s["name"], s.get("split")) for part in lineage(record) for s in part.get("sources", [])]
    if holds(sources, on, split):
        found.append("the cropper was trained on it")
    elif seen := record.get("seen_rows"):
        found.append(f"the cropper was trained on {seen} of its rows")
    if holds([(c["name"], c.get("split")) for part in lineage(record) if (c := part.get("chosen_on"))], on, split):
        found.append("the cropper's best checkpoint was chosen on it")
    return found


def lineage(record: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return what is recorded of a training and of those that it started from."""
    return [record, *lineage(record.get("base_training"))] if record else []


def training_differs(wanted: Cropper, record: dict[str, Any], claims: Claims) -> list[str]:
    """Return how a recorded training, or one that it started from, differs from that of a cropper in the file."""
    data, base = claims.data.get(wanted.trained_on), claims.croppers.get(wanted.base)
    sources = ", ".join(sorted({source["name"] for source in record.get("sources", [])}))
    found = differing(
        ("cropper's stage", record.get("stage"), wanted.stage),
        ("cropper's reward", record.get("reward"), wanted.reward),
        ("cropper trained at", record.get("longest_edge"), wanted.longest_edge),
        ("cropper trained on", sources, data and ", ".join(sorted({*data.names}))),
        ("rows of its training", record.get("rows"), data and ((base and data.grpo_rows) or data.rows)),
        ("seed", record.get("seed"), wanted.seed),
        ("steps of its training", record.get("steps"), record.get("planned_steps")),
        ("base", record.get("base"), base.model if base and base.training is not None else None),
    )
    if (cost := (record.get("need") or {}).get("crop_cost")) != wanted.crop_cost:
        found.append(f"cropper's crop_cost {cost} instead of {wanted.crop_cost}")
    recorded, given = record.get("settings") or {}, training_settings(wanted)
    found += differing(*((f"its training's {name}", recorded[name], given.get(name)) for name in recorded))
    if data and rows_changed(record, rows := training_rows(wanted, data)):
        found.append(f"{rows} has changed since the cropper was trained on it")
    if base and (before := record.get("base_training")):
        found += [f"in its base: {difference}" for difference in training_differs(base, before, claims)]
    return found


@functools.cache
def training_settings(cropper: Cropper) -> dict[str, float]:
    """Return the numbers that a cropper's flags set in its training; -1 step, as many as there are, without one."""
    if cropper.training is None:
        return {}
    words = shlex.split(cropper.training)
    flags = {word[2:]: value for word, value in zip(words, words[1:], strict=False) if word.startswith("--")}
    if "config" in flags:
        with failure(f"cannot read {flags['config']}, of the training of {cropper.title}"):
            flags = yaml.safe_load(Path(here(flags["config"])).read_text()) | flags
    given = {"max_steps": -1.0}
    for name, value in flags.items():
        with contextlib.suppress(TypeError, ValueError):  # a name
            given[name] = float(value)
    return given


def holds(sources: Sequence[tuple[str, str | None]], name: str, split: str | None) -> bool:
    """Whether the rows of a benchmark are among sources. Rows without splits, of either, are all there is."""
    return any(dataset_name(source) == name and (None in (split, of) or split == of) for source, of in sources)
