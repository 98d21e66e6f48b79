"""The commands that run a setting of the paper: boxes, then answers."""

import shlex
from pathlib import Path

from reporting.claims import Setting


def command_for(setting: Setting, folder: Path) -> str:
    """Return the commands that write a setting's answer file, boxes first, below a folder of predictions."""
    return " && ".join(shlex.join(command) for command in commands_for(setting, folder).values())


def commands_for(setting: Setting, folder: Path) -> dict[Path, list[str]]:
    """Return the file that each command writes, and the command, in order."""
    benchmark, answerer, cropper = setting.benchmark, setting.answerer, setting.cropper
    made = {}
    source = ["--dataset", benchmark.name] + (["--split", benchmark.split] if benchmark.split else [])
    boxes = []
    if cropper:
        bbox = folder / cropper.name / f"{benchmark.name}_bbox.json"
        size = ["--longest_edge", str(cropper.longest_edge)] if cropper.longest_edge else []
        call = ["python3", "generate_bbox.py", "--model_path", cropper.model, *size, *source]
        made[bbox] = [*call, "--output", str(bbox)]
        boxes = ["--bbox", str(bbox)]
    mode = "cropvlm" if cropper else "base"
    output = folder / answerer.name / (cropper.name if cropper else "no_crop")
    model = ["--api_model" if answerer.api else "--vqa_model_path", answerer.model]
    sizes = {"--longest_edge": answerer.longest_edge, "--max_pixels": answerer.max_pixels}
    flags = [part for name, value in sizes.items() if value for part in (name, str(value))]
    call = ["python3", "generate_final_answers.py", "--modes", mode, *(boxes or source), *model, *flags]
    made[output / f"{benchmark.name}_{mode}_answers.json"] = [*call, "--output_path", str(output)]
    return made
