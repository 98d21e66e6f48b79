"""The stages that produce a claims file's settings: data, training, boxes, answers; done ones are left out."""

import contextlib
import fnmatch
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cropvlm.errors import UserError
from cropvlm.runs.predictions import read_boxes, read_meta
from cropvlm.runs.provenance import RECORD, model_checksum, rows_changed
from reporting.claims import Answerer, Claims, Cropper, Data, Setting
from reporting.rates import ANSWERS, BOXES, GRPO, SFT, TEACHER, Rate, Work, rate_of, side
from reporting.results import changed_model

ROOT = Path(__file__).resolve().parents[1]
PREDICTIONS = Path("predictions/paper")


@dataclass(frozen=True)
class Stage:
    """A command for Python. outputs: files and folders that it leaves. needs: names of stages that come before.

    boxes, base, data: what the outputs are made from: a box file, or the model that training starts from and its rows.
    """

    name: str
    command: tuple[str, ...]
    outputs: tuple[Path, ...]
    needs: tuple[str, ...] = ()
    work: Work | None = None  # what its speed depends on
    rows: int | None = None  # that it goes through, where the claims file knows
    key: bool = False  # needs $OPENAI_API_KEY
    boxes: Path | None = None
    base: str | None = None
    data: str | None = None

    @property
    def done(self) -> bool:
        return all(path.exists() for path in self.outputs) and self.changed is None

    @property
    def changed(self) -> str | None:
        """Which input is no longer what the outputs were made from; None also where they do not say."""
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
                if self.boxes and shown and shown != read_boxes(self.boxes).key(rows):
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


def _data_stage(claims: Claims, name: str) -> Stage:
    data = claims.data[name]
    folders = (Path(f"{data.output}_sft"), Path(f"{data.output}_grpo"))
    command = [here("create_dataset.py"), "--dataset_path", *data.sources, "--output_path", data.output]
    work = Work(TEACHER, "the teacher")
    return Stage(f"data/{name}", (*command, *shlex.split(data.flags)), folders, work=work, rows=data.rows)


def _training_stage(cropper: Cropper, claims: Claims) -> Stage:
    data, base = claims.data[cropper.trained_on], claims.croppers.get(cropper.base)
    rows_at = training_rows(cropper, data)
    script, start = ("train_grpo.py", ["--base_model", base.model]) if base else ("train_sft.py", [])
    command = [here(script), *map(here, shlex.split(cropper.training)), *start]
    command += ["--dataset_path", rows_at, "--output_dir", cropper.model]
    command += ["--resume_from_checkpoint", "True"]
    needs = (f"data/{cropper.trained_on}", *([f"train/{base.name}"] if base else []))
    done = (Path(cropper.model) / "adapter_model.safetensors", Path(cropper.model) / RECORD)
    work, rows = Work(GRPO if base else SFT, cropper.model, cropper.longest_edge), base and data.grpo_rows or data.rows
    made_from = {"base": base and base.model, "data": rows_at}
    return Stage(f"train/{cropper.name}", tuple(command), done, needs, work, rows, **made_from)


def _box_file(setting: Setting, folder: Path) -> Path:
    return folder / "boxes" / setting.cropper.name / f"{setting.benchmark.name}_bbox.json"


def _box_stages(setting: Setting, folder: Path) -> list[Stage]:
    """Return the stages that make a setting's box file: of a teacher, its training boxes for the test rows first."""
    cropper, benchmark, output = setting.cropper, setting.benchmark, _box_file(setting, folder)
    name, split = f"boxes/{cropper.name}/{benchmark.name}", ["--split", benchmark.split] if benchmark.split else []
    if cropper.teacher is not None:
        path = benchmark.path or benchmark.name
        data = cropper.model_on(benchmark.name).rpartition(" of ")[2].removesuffix("_sft")
        flags = ["--dataset_path", path, *split, "--sft_share", "1.0", "--output_path", data]
        command = [here("create_dataset.py"), *flags, *shlex.split(cropper.teacher)]
        work = Work(TEACHER, "the teacher")
        made = Stage(
            f"data/{cropper.name}/{benchmark.name}", tuple(command), (Path(f"{data}_sft"),), (), work, benchmark.rows
        )
        command = ["-m", "miniature.known_boxes", "--dataset_path", f"{data}_sft", "--column", "bbox", "--of", path]
        return [made, Stage(name, (*command, *split, "--output", str(output)), (output,), (made.name,))]
    flags = ["--longest_edge", str(cropper.longest_edge)] if cropper.longest_edge else []
    flags += ["--need"] if cropper.need else []
    command = [here("generate_bbox.py"), "--model_path", cropper.model, *flags, *_source(setting)]
    needs = (f"train/{cropper.name}",) if cropper.training else ()
    work = Work(BOXES, cropper.model, cropper.longest_edge)
    return [Stage(name, (*command, "--output", str(output)), (output,), needs, work, benchmark.rows)]


def answers_name(setting: Setting) -> str:
    """Return the name of the stage that answers a setting's questions."""
    cropper = setting.cropper.name if setting.cropper else "none"
    cropper += "" if setting.need_threshold is None else f"_at_{setting.need_threshold:g}"
    return f"answers/{setting.answerer.name}/{cropper}/{setting.benchmark.name}"


def _answer_stage(setting: Setting, controls: Sequence[str], folder: Path) -> Stage:
    answerer, benchmark, name = setting.answerer, setting.benchmark, answers_name(setting)
    output, boxes = folder / Path(name).parent, None
    if setting.cropper:
        boxes = _box_file(setting, folder)
        mode, source, needs = "cropvlm", ["--bbox", str(boxes)], (f"boxes/{setting.cropper.name}/{benchmark.name}",)
        source += [] if setting.need_threshold is None else ["--need_threshold", f"{setting.need_threshold:g}"]
    else:
        mode, source, needs = "base", [*_source(setting), "--name", benchmark.name], ()
    command = [here("generate_final_answers.py"), "--modes", mode, *source, *_answerer_flags(answerer)]
    command += ["--output_path", str(output), *(["--controls", *controls] if controls else [])]
    paths = tuple(output / f"{benchmark.name}_{shown}_answers.json" for shown in (mode, *controls))
    work = Work(ANSWERS, answerer.model, answerer.longest_edge or side(answerer.max_pixels), server=answerer.api)
    return Stage(name, tuple(command), paths, needs, work, benchmark.rows, key=answerer.api, boxes=boxes)


def here(name: str) -> str:
    """Return a file's name as it is where the current folder has it, else in the project; any other word unchanged."""
    return str(ROOT / name) if not Path(name).exists() and (ROOT / name).is_file() else name


def _source(setting: Setting) -> list[str]:
    benchmark = setting.benchmark
    source = ["--dataset_path", benchmark.path] if benchmark.path else ["--dataset", benchmark.name]
    return source + (["--split", benchmark.split] if benchmark.split else [])


def _answerer_flags(answerer: Answerer) -> list[str]:
    names = ("longest_edge", "min_pixels", "max_pixels", "max_new_tokens")
    given = {name: getattr(answerer, name) for name in names} | (
        {} if answerer.image_fit == "pad" else {"image_fit": "crop"}
    )
    flags = [part for name, value in given.items() if value for part in (f"--{name}", str(value))]
    return ["--api_model" if answerer.api else "--vqa_model_path", answerer.model, *flags, *shlex.split(answerer.flags)]


def chosen(all_stages: dict[str, Stage], patterns: Sequence[str]) -> dict[str, Stage]:
    """Return the stages that fit one of the patterns (all without one), and what they need that is not done."""
    names = [name for name in all_stages if not patterns or any(fnmatch.fnmatchcase(name, p) for p in patterns)]
    needed = set()

    def add(name: str) -> None:
        needed.add(name)
        for before in all_stages[name].needs:
            if not all_stages[before].done:
                add(before)

    for name in names:
        add(name)
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


def hours(stage: Stage, measured: dict[Work, Rate]) -> tuple[float | None, str]:
    """Return the hours that a stage takes and where the estimate is from; (None, "") where nothing is known."""
    if not stage.work or not stage.rows:
        return None, ""
    rate = rate_of(stage.work, measured)
    return stage.rows * len(stage.outputs if stage.boxes else [0]) / rate.rows_per_second / 3600, rate.source
