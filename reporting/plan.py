"""The stages that produce a claims file's settings: data, training, boxes, answers; done ones are left out."""

import fnmatch
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reporting.claims import Answerer, Claims, Cropper, Setting
from reporting.rates import ANSWERS, BOXES, GRPO, SFT, TEACHER, Rate, Work, rate_of, side

ROOT = Path(__file__).resolve().parents[1]
PREDICTIONS = Path("predictions/paper")


@dataclass(frozen=True)
class Stage:
    """A command for Python. outputs: files and folders that it leaves. needs: names of stages that come before."""

    name: str
    command: tuple[str, ...]
    outputs: tuple[Path, ...]
    needs: tuple[str, ...] = ()
    work: Work | None = None  # what its speed depends on
    rows: int | None = None  # that it goes through, where the claims file knows
    key: bool = False  # needs $OPENAI_API_KEY

    @property
    def done(self) -> bool:
        return all(path.exists() for path in self.outputs)


def stages(claims: Claims, folder: Path = PREDICTIONS) -> dict[str, Stage]:
    """Return all stages of a claims file by name, in an order in which they can run."""
    croppers = [setting.cropper for setting in claims.settings if setting.cropper]
    wanted = dict.fromkeys(c for cropper in croppers for c in (*_bases(cropper, claims), cropper))
    made = [_data_stage(claims, name) for name in dict.fromkeys(c.trained_on for c in wanted if c.training)]
    made += [_training_stage(cropper, claims) for cropper in wanted if cropper.training]
    for setting in claims.settings:
        if setting.cropper:
            made.append(_box_stage(setting, folder))
        made.append(_answer_stage(setting, folder))
    return {stage.name: stage for stage in made}


def _bases(cropper: Cropper, claims: Claims) -> list[Cropper]:
    """Return the croppers that training starts from, the first one first."""
    if cropper.base is None:
        return []
    base = claims.croppers[cropper.base]
    return [*_bases(base, claims), base]


def _data_stage(claims: Claims, name: str) -> Stage:
    data = claims.data[name]
    folders = (Path(f"{data.output}_sft"), Path(f"{data.output}_grpo"))
    command = [here("create_dataset.py"), "--dataset_path", *data.sources, "--output_path", data.output]
    work = Work(TEACHER, "the teacher")
    return Stage(f"data/{name}", (*command, *shlex.split(data.flags)), folders, work=work, rows=data.rows)


def _training_stage(cropper: Cropper, claims: Claims) -> Stage:
    data = claims.data[cropper.trained_on]
    script, part = ("train_sft.py", "sft") if cropper.base is None else ("train_grpo.py", "grpo")
    base = ["--base_model", claims.croppers[cropper.base].model] if cropper.base else []
    command = [
        here(script),
        *map(here, shlex.split(cropper.training)),
        *base,
        "--dataset_path",
        f"{data.output}_{part}",
    ]
    command += ["--output_dir", cropper.model, "--resume_from_checkpoint", "True"]
    needs = (f"data/{cropper.trained_on}", *([f"train/{cropper.base}"] if cropper.base else []))
    done = (Path(cropper.model) / "adapter_model.safetensors", Path(cropper.model) / "run.json")
    work = Work(GRPO if cropper.base else SFT, cropper.model, cropper.longest_edge, cropper.reward)
    return Stage(f"train/{cropper.name}", tuple(command), done, needs, work, data.rows)


def _box_stage(setting: Setting, folder: Path) -> Stage:
    cropper, benchmark = setting.cropper, setting.benchmark
    output = folder / "boxes" / cropper.name / f"{benchmark.name}_bbox.json"
    size = ["--longest_edge", str(cropper.longest_edge)] if cropper.longest_edge else []
    command = [here("generate_bbox.py"), "--model_path", cropper.model, *size, *_source(setting)]
    needs = (f"train/{cropper.name}",) if cropper.training else ()
    name = f"boxes/{cropper.name}/{benchmark.name}"
    work = Work(BOXES, cropper.model, cropper.longest_edge)
    return Stage(name, (*command, "--output", str(output)), (output,), needs, work, benchmark.rows)


def answers_name(setting: Setting) -> str:
    """Return the name of the stage that answers a setting's questions."""
    cropper = setting.cropper.name if setting.cropper else "none"
    return f"answers/{setting.answerer.name}/{cropper}/{setting.benchmark.name}"


def _answer_stage(setting: Setting, folder: Path) -> Stage:
    answerer, benchmark, name = setting.answerer, setting.benchmark, answers_name(setting)
    output = folder / Path(name).parent
    if setting.cropper:
        box_stage = _box_stage(setting, folder)
        mode, source, needs = "cropvlm", ["--bbox", str(box_stage.outputs[0])], (box_stage.name,)
    else:
        mode, source, needs = "base", [*_source(setting), "--name", benchmark.name], ()
    command = [here("generate_final_answers.py"), "--modes", mode, *source, *_answerer_flags(answerer)]
    path = output / f"{benchmark.name}_{mode}_answers.json"
    command += ["--output_path", str(output)]
    size = answerer.longest_edge or side(answerer.max_pixels)
    work = Work(ANSWERS, answerer.model, size, server=answerer.api)
    return Stage(name, tuple(command), (path,), needs, work, benchmark.rows, key=answerer.api)


def here(name: str) -> str:
    """Return a file's name as it is where the current folder has it, else in the project; any other word unchanged."""
    return str(ROOT / name) if not Path(name).exists() and (ROOT / name).is_file() else name


def _source(setting: Setting) -> list[str]:
    benchmark = setting.benchmark
    source = ["--dataset_path", benchmark.path] if benchmark.path else ["--dataset", benchmark.name]
    return source + (["--split", benchmark.split] if benchmark.split else [])


def _answerer_flags(answerer: Answerer) -> list[str]:
    sizes = {name: getattr(answerer, name) for name in ("longest_edge", "min_pixels", "max_pixels")}
    flags = [part for name, value in sizes.items() if value for part in (f"--{name}", str(value))]
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


def only_command(settings: Sequence[Setting]) -> str:
    """Return the command of `scripts/reproduce.py` that runs settings, all benchmarks of a pair by one pattern."""
    pairs = {answers_name(setting).rpartition("/")[0] for setting in settings}
    one = {setting.benchmark.name for setting in settings}
    last = one.pop() if len(one) == 1 else "*"
    return shlex.join(["python3", "scripts/reproduce.py", "0", "--only", *sorted(f"{pair}/{last}" for pair in pairs)])


def hours_left(
    stage: Stage, measured: dict[Work, Rate], published: dict[tuple[str, int | None], float]
) -> tuple[float | None, str]:
    """Return the hours that a stage takes and where the estimate is from; (None, "") where nothing is known."""
    if stage.done:
        return 0.0, "done"
    rate = rate_of(stage.work, measured, published) if stage.work and stage.rows else None
    return (stage.rows / rate.rows_per_second / 3600, rate.source) if rate else (None, "")


def has_key() -> bool:
    """Return whether the key of a server is in the environment."""
    return bool(os.environ.get("OPENAI_API_KEY"))
