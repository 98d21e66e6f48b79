"""The stages that produce a claims file's settings: data, training, boxes, answers; done ones are left out."""

import contextlib
import fnmatch
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cropvlm.errors import UserError
from cropvlm.runs.predictions import read_file, read_meta
from cropvlm.runs.provenance import RECORD, model_checksum, rows_changed
from reporting.claims import Benchmark, Claims, Cropper, Data, Setting
from reporting.rates import ANSWERS, BOXES, GRPO, SFT, TEACHER, Work, rate_of, side
from reporting.results import changed_model

ROOT = Path(__file__).resolve().parents[1]
PREDICTIONS = Path("predictions/paper")
TEACHING = Work(TEACHER, "the teacher")


@dataclass(frozen=True)
class Stage:
    """A command for Python."""

    name: str
    command: tuple[str, ...]
    outputs: tuple[Path, ...]  # files and folders that it leaves
    needs: tuple[str, ...] = ()  # names of stages that come before
    work: Work | None = None  # what its speed depends on
    rows: int | None = None  # that it goes through, where the claims file knows
    key: bool = False  # needs $OPENAI_API_KEY
    boxes: Path | None = None  # that its answers are made with
    base: str | None = None  # the model that its training starts from
    data: str | None = None  # the rows of its training

    @property
    def done(self) -> bool:
        return all(path.exists() for path in self.outputs) and self.changed is None

    @property
    def changed(self) -> str | None:
        """The input that has changed since the outputs were made; None also where they do not record it."""
        with contextlib.suppress(UserError, OSError, ValueError, KeyError, TypeError):  # no file, or of another form
            if self.outputs[-1].name == RECORD:
                record = json.loads(self.outputs[-1].read_text())
                if rows_changed(record.get("training", {}), self.data):
                    return self.data
                here = self.base and Path(self.base).is_dir()
                same = record["contents"]["base_model"] in (None, here and model_checksum(self.base))
                return self.base if here and not same else None
            for path in (path for path in self.outputs if path.suffix == ".json"):
                meta = read_meta(path)
                if model := changed_model(meta, "cropper") or changed_model(meta, "answerer"):
                    return model
                shown, rows = meta["settings"].get("boxes"), meta["counts"]["rows"] + len(meta.get("left_out") or [])
                if self.boxes and shown and shown != read_file(self.boxes, "cropper").key(rows):
                    return str(self.boxes)
        return None


def stages(runs: Sequence[Claims], folder: Path = PREDICTIONS) -> dict[str, Stage]:
    """Return all stages of a claims file (for each of several trainings) by name, in an order in which they can run."""
    made: list[Stage] = []
    for claims in runs:
        croppers = [setting.cropper for setting in claims.settings if setting.cropper]
        wanted = dict.fromkeys(c for cropper in croppers for c in (*claims.bases(cropper), cropper))
        made += [_data_stage(claims, name) for name in dict.fromkeys(c.trained_on for c in wanted if c.training)]
        made += [_training_stage(cropper, claims) for cropper in wanted if cropper.training]
        together: dict[Setting, list[str]] = {}  # the crop -> the controls that are answered in the same run
        for setting in claims.settings:
            crop = replace(setting, control=None)
            together.setdefault(crop, []).extend([setting.control] if setting.control else [])
        for setting, controls in together.items():
            if setting.cropper:
                made += _box_stages(setting, folder)
            made.append(_answer_stage(setting, controls, folder))
    return {stage.name: stage for stage in made}


def training_rows(cropper: Cropper, data: Data) -> str:
    """Return the folder of the rows that a cropper is trained on: the first half for SFT, the second for GRPO."""
    return f"{data.output}_{'grpo' if cropper.base else 'sft'}"


def here(name: str) -> str:
    """Return a file's name as it is where the current folder has it, else in the project; any other word unchanged."""
    return str(ROOT / name) if not Path(name).exists() and (ROOT / name).is_file() else name


def flags(**values: Any) -> list[str]:
    """Return `--name value` for each value that is not empty; of several values all, and for True the name alone."""
    words: list[str] = []
    for name, value in values.items():
        several = value if isinstance(value, list | tuple) else [] if value is True else [value]
        words += [f"--{name}", *map(str, several)] if value else []
    return words


def _source(benchmark: Benchmark) -> dict[str, str | None]:
    name = None if benchmark.path else benchmark.name
    return {"dataset_path": benchmark.path, "dataset": name, "split": benchmark.split}


def _data_stage(claims: Claims, name: str) -> Stage:
    data = claims.data[name]
    command = [here("create_dataset.py"), *flags(dataset_path=data.sources, output_path=data.output)]
    folders = (Path(f"{data.output}_sft"), Path(f"{data.output}_grpo"))
    return Stage(f"data/{name}", (*command, *shlex.split(data.flags)), folders, work=TEACHING, rows=data.rows)


def _training_stage(cropper: Cropper, claims: Claims) -> Stage:
    data, base = claims.data[cropper.trained_on], claims.croppers.get(cropper.base)
    rows_at, base_model, folder = training_rows(cropper, data), base and base.model, Path(cropper.model)
    command = [here("train_grpo.py" if base else "train_sft.py"), *map(here, shlex.split(cropper.training))]
    command += flags(base_model=base_model, dataset_path=rows_at, output_dir=folder, resume_from_checkpoint="True")
    outputs = (folder / "adapter_model.safetensors", folder / RECORD)
    needs = (f"data/{cropper.trained_on}", *([f"train/{base.name}"] if base else []))
    work = Work(GRPO if base else SFT, cropper.model, cropper.longest_edge)
    rows, made_from = base and data.grpo_rows or data.rows, {"base": base_model, "data": rows_at}
    return Stage(f"train/{cropper.name}", tuple(command), outputs, needs, work, rows, **made_from)


def _box_file(setting: Setting, folder: Path) -> Path:
    return folder / "boxes" / setting.cropper.name / f"{setting.benchmark.name}_bbox.json"


def _box_stages(setting: Setting, folder: Path) -> list[Stage]:
    """Return the stages that make a setting's box file: of a teacher, its training boxes for the test rows first."""
    cropper, benchmark, output = setting.cropper, setting.benchmark, _box_file(setting, folder)
    at, source = f"{cropper.name}/{benchmark.name}", _source(benchmark)
    if cropper.teacher is not None:
        path, split = benchmark.path or benchmark.name, benchmark.split
        data = cropper.model_on(benchmark).rpartition(" of ")[2].removesuffix("_sft")
        asked = flags(dataset_path=path, split=split, sft_share="1.0", output_path=data)
        command = (here("create_dataset.py"), *asked, *shlex.split(cropper.teacher))
        made = Stage(f"data/{at}", command, (Path(f"{data}_sft"),), work=TEACHING, rows=benchmark.rows)
        known = flags(dataset_path=made.outputs[0], column="bbox", of=path, split=split, output=output)
        return [made, Stage(f"boxes/{at}", ("-m", "miniature.known_boxes", *known), (output,), (made.name,))]
    asked = flags(
        model_path=cropper.model, longest_edge=cropper.longest_edge, need=cropper.need, **source, output=output
    )
    needs = (f"train/{cropper.name}",) if cropper.training else ()
    work = Work(BOXES, cropper.model, cropper.longest_edge)
    return [Stage(f"boxes/{at}", (here("generate_bbox.py"), *asked), (output,), needs, work, benchmark.rows)]


def answers_name(setting: Setting) -> str:
    """Return the name of the stage that answers a setting's questions."""
    cropper = setting.cropper.name if setting.cropper else "none"
    return f"answers/{setting.answerer.name}/{cropper}/{setting.benchmark.name}"


def _answer_stage(setting: Setting, controls: Sequence[str], folder: Path) -> Stage:
    answerer, benchmark, name = setting.answerer, setting.benchmark, answers_name(setting)
    mode, needs, boxes, asked = "base", (), None, {**_source(benchmark), "name": benchmark.name}
    if setting.cropper:
        mode, needs = "cropvlm", (f"boxes/{setting.cropper.name}/{benchmark.name}",)
        asked = {"bbox": (boxes := _box_file(setting, folder))}
    asked["api_model" if answerer.api else "vqa_model_path"] = answerer.model
    asked |= {size: getattr(answerer, size) for size in ("longest_edge", "min_pixels", "max_pixels", "max_new_tokens")}
    asked["image_fit"] = None if answerer.image_fit == "pad" else answerer.image_fit
    output = folder / Path(name).parent
    command = [here("generate_final_answers.py"), *flags(modes=mode, **asked), *shlex.split(answerer.flags)]
    command += flags(output_path=output, controls=controls)
    paths = tuple(output / f"{benchmark.name}_{shown}_answers.json" for shown in (mode, *controls))
    work = Work(ANSWERS, answerer.model, answerer.longest_edge or side(answerer.max_pixels))
    return Stage(name, tuple(command), paths, needs, work, benchmark.rows, key=answerer.api, boxes=boxes)


def chosen(all_stages: dict[str, Stage], patterns: Sequence[str]) -> dict[str, Stage]:
    """Return the stages that fit one of the patterns (all without one), and what they need that is not done."""
    needed = {name for name in all_stages if not patterns or any(fnmatch.fnmatchcase(name, p) for p in patterns)}
    for name, stage in reversed(all_stages.items()):  # what a stage needs comes before it
        if name in needed:
            needed |= {before for before in stage.needs if not all_stages[before].done}
    return {name: stage for name, stage in all_stages.items() if name in needed}


def unfinished(picked: dict[str, Stage]) -> dict[str, Stage]:
    """Return the stages that are to be run: those that are not done, and those that need one of these."""
    left: dict[str, Stage] = {}
    for name, stage in picked.items():  # in an order in which they can run
        if not stage.done or left.keys() & set(stage.needs):
            left[name] = stage
    return left


def only_command(settings: Sequence[Setting]) -> str:
    """Return the command of `scripts/reproduce.py` that runs settings, all benchmarks of a pair by one pattern."""
    pairs = {answers_name(setting).rpartition("/")[0] for setting in settings}
    one = {setting.benchmark.name for setting in settings}
    last = one.pop() if len(one) == 1 else "*"
    return shlex.join(["python3", "scripts/reproduce.py", "0", "--only", *sorted(f"{pair}/{last}" for pair in pairs)])


def hours(stage: Stage, measured: dict[Work, float]) -> tuple[float | None, str]:
    """Return the hours that a stage takes and where the estimate is from; (None, "") where nothing is known."""
    if not stage.work or not stage.rows:
        return None, ""
    rate, source = rate_of(stage.work, measured)
    return stage.rows * len(stage.outputs if stage.boxes else [0]) / rate / 3600, source
