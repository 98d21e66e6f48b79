"""The plugin for lmms-eval, in its own environment: the miniature as a task scores as the scripts and the proxy do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lmms_world import INSTALL, PYTHON, ROOT, has_plugin, write_task
from servers import serving

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not has_plugin(), reason=INSTALL)]

EVALUATE = """
import json, sys
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager

manager = TaskManager(include_path=sys.argv[1], include_defaults=False)
for model_args in sys.argv[2:]:
    result = simple_evaluate("cropvlm", model_args, tasks=["miniature_world"], task_manager=manager, batch_size=5)
    answers = [sample["filtered_resps"][0] for sample in result["samples"]["miniature_world"]]
    print(json.dumps([result["results"]["miniature_world"]["exact_match,none"], answers]))
"""
# What the cropper is asked and the answerer is shown, and what is logged or raised, for each case: arguments of the
# plugin and names of documents.
ASK = """
import contextlib, io, json, logging, sys
from types import SimpleNamespace as Some
from unittest.mock import patch
from PIL import Image
import lmms_eval.models
from cropvlm_serving import lmms

class Cropper:
    def __init__(self, *args):
        print("cropper", *args[:3])

    def texts(self, images, questions):
        print("asked", *questions, sep="|")
        return [question if question == "Not needed." else "[0, 0, 50, 100]." for question in questions]

def generate_texts(model, processor, messages, images, max_new_tokens):
    for (message,), shown in zip(messages, images):
        parts = [part.get("text") or part["type"] for part in message["content"]]
        print(*parts, *(image.size for image in shown), max_new_tokens)
    return ["An answer. Stop. More." for _ in messages]

image = {"type": "image", "url": Image.new("RGB", (40, 20))}
text = {"type": "text", "text": "First line?\\nSecond."}
docs = {
    "question": [{"question": "The document's?"}, [image, text]],
    "other": [{"text": "No question."}, [image, text]],
    "several": [{"question": "Which?"}, [image, image | {"url": Image.new("RGB", (8, 8))}, text]],
    "none": [{"question": "Not needed."}, [image, text]],
    "no image": [{"question": "The document's?"}, [text]],
    "video": [{"question": "Which?"}, [{"type": "video", "url": "a.mp4"}, text]],
}

def ask(options, names):
    plugin = lmms.CropVLM(answerer="a", **options)
    plugin.task_dict = {"task": {"test": [docs[name][0] | {"parts": docs[name][1]} for name in names]}}
    chat = lambda doc: [{"role": "user", "content": doc["parts"]}]
    settings = {"max_new_tokens": 7, "until": [" Stop"]}
    requests = [Some(args=("", chat, settings, i, "task", "test")) for i in range(len(names))]
    print(*plugin.generate_until(requests))

replaced = {name: lambda *args, **options: None for name in ("load_model", "answerer_processor")}
logging.basicConfig(stream=(log := io.StringIO()))
with patch.multiple(lmms, Cropper=Cropper, generate_texts=generate_texts, **replaced):
    for case in json.loads(sys.argv[1]):
        log.truncate(0)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            try:
                ask(*case)
            except ValueError as error:
                print(error)
        print(json.dumps([printed.getvalue(), log.getvalue()]))
"""
CROPPED = "image image First line?\nSecond. (40, 20) (20, 20) 7\n"
WHOLE = "image First line?\nSecond. (40, 20) 7\n"
SEVERAL = "image image image First line?\nSecond. (40, 20) (20, 20) (8, 8) 7\n"
SAID = "An answer."
# Arguments, documents, what is printed, what is logged once
CASES = {
    "the document's question, else the first line": (
        {"cropper": "c", "batch_size": 2},
        ["question", "other", "none"],
        f"cropper c None 512\nasked|The document's?|First line?\n{CROPPED * 2}asked|Not needed.\n{WHOLE}{SAID}",
        "the cropper's question: first_line",
    ),
    "the whole text": (
        {"cropper": "c", "question_from": "whole", "longest_edge": 64, "base_model_path": "b"},
        ["question"],
        f"cropper c b 64\nasked|First line?\nSecond.\n{CROPPED}{SAID}",
        "the cropper's question: whole",
    ),
    "several images": (
        {"cropper": "c"},
        ["several", "several", "no image"],
        f"cropper c None 512\nasked|Which?|Which?\n{SEVERAL * 2}First line?\nSecond. 7\n{SAID} {SAID} {SAID}",
        "the first is cropped",
    ),
    "no cropper": ({"cropper": "None"}, ["question"], f"{WHOLE}{SAID}", ""),
    "a video": ({"cropper": "c"}, ["video"], "cropper c None 512\nvideos and audio cannot be cropped; choose", ""),
    "a misspelt argument": ({"croper": "c"}, [], "unknown model_args: croper", ""),
}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, tuple[str, str]]:
    cases = json.dumps([case[:2] for case in CASES.values()])
    done = subprocess.run([PYTHON, "-c", ASK, cases], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(zip(CASES, map(json.loads, done.stdout.splitlines()[-len(CASES) :]), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_what_the_models_are_asked(case, outcomes):
    (printed, logged), (*_, expected, once) = outcomes[case], CASES[case]
    assert printed.startswith(expected)
    assert logged.count(once) == 1 or not once


def script(folder: Path, name: str, *flags) -> str:
    """The last line that a script prints."""
    command = [sys.executable, ROOT / f"{name}.py", *flags]
    done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return (done.stdout.splitlines() or [""])[-1]


def test_the_miniature_scores_alike_through_all_doors(tiny_smolvlm, tiny_world, tmp_path):
    """With random models, or with those that CROPVLM_EVAL_WORLD holds as scripts/miniature.sh leaves them."""
    world = os.environ.get("CROPVLM_EVAL_WORLD")
    data = Path(world, "datasets/miniature") if world else tiny_world
    cropper = Path(world, "models/miniature_grpo") if world else tiny_smolvlm
    answerer = ROOT / "miniature/models/smolvlm"
    write_task(tmp_path, data)
    boxes = ["--model_path", cropper, "--base_model_path", answerer, "--longest_edge", 64]
    asked = ["--dataset_path", data, "--split", "test", "--max_new_tokens", 8, "--output_path", tmp_path]
    script(tmp_path, "generate_bbox", *boxes, *asked[:4], "--output", tmp_path / "boxes.json")
    local = ["--vqa_model_path", answerer, "--longest_edge", 64]
    script(tmp_path, "generate_final_answers", *asked, *local, "--bbox", tmp_path / "boxes.json", "--name", "scripts")

    served = [*boxes, "--vqa_model_path", answerer, "--vqa_longest_edge", 64]
    with serving(tmp_path, "serving.proxy", *served, ready="v1/models") as url:
        server = ["--api_base", url, "--api_model", "any", "--api_concurrency", 32, "--modes", "base"]
        script(tmp_path, "generate_final_answers", *asked, *server, "--name", "proxy")

    shared = f"answerer={answerer},longest_edge=64,device=cpu,cropper="
    call = [PYTHON, "-c", EVALUATE, tmp_path, f"{shared}None", f"{shared}{cropper},base_model_path={answerer}"]
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    plugin = dict(zip(("base", "cropvlm"), map(json.loads, done.stdout.splitlines()[-2:]), strict=True))

    files = {name: tmp_path / f"{name}_answers.json" for name in ("scripts_base", "scripts_cropvlm", "proxy_base")}
    answers = {name: [record["answer"] for record in json.loads(file.read_text())] for name, file in files.items()}
    assert answers["proxy_base"] == answers["scripts_cropvlm"]
    for mode, (score, given) in plugin.items():
        assert given == answers[f"scripts_{mode}"]
        printed = script(
            tmp_path, "vqa_accuracy", "--predictions_file", files[f"scripts_{mode}"], "--metric", "vqa_official"
        )
        assert round(100 * score, 4) == float(printed)
        print(mode, len(given), "rows:", score, printed)
