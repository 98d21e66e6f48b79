"""The plugin for lmms-eval, in its own environment: the miniature as a task scores as the scripts do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Where scripts/lmms_eval.sh installs it.
PYTHON = Path(os.environ.get("CROPVLM_EVAL_PYTHON", ROOT / ".venv/eval/bin/python3"))
TASK = """
task: miniature_world
dataset_path: {data}
dataset_kwargs:
  load_from_disk: true
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 8
process_results: !function utils.score
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
score_key: exact_match
"""
UTILS = """
from lmms_eval.tasks.textvqa.utils import textvqa_process_results

def visual(doc):
    return [doc["image"]]

def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"].capitalize() + "\\nGive a very brief answer."

def score(doc, results):
    return {"exact_match": textvqa_process_results(doc, results)["exact_match"]}
"""
RUN = """
import json, sys
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager

folder, scores = sys.argv[1], {}
for model_args in sys.argv[2:]:
    manager = TaskManager(include_path=folder, include_defaults=False)
    result = simple_evaluate("cropvlm", model_args, tasks=["miniature_world"], task_manager=manager, batch_size=5)
    scores[model_args] = {
        "score": result["results"]["miniature_world"]["exact_match,none"],
        "answers": [sample["filtered_resps"][0] for sample in result["samples"]["miniature_world"]],
    }
json.dump(scores, open(folder + "/scores.json", "w"))
"""


@pytest.fixture(scope="module")
def has_plugin() -> None:
    code = "from lmms_eval.models import get_model; get_model('cropvlm')"
    if not PYTHON.exists() or subprocess.run([PYTHON, "-c", code], capture_output=True, check=False).returncode:
        pytest.skip("lmms-eval is not installed (bash scripts/lmms_eval.sh --help installs it)")


def evaluate(folder: Path, data: Path, *model_args: str) -> list[dict]:
    (folder / "miniature_world.yaml").write_text(TASK.format(data=data))
    (folder / "utils.py").write_text(UTILS)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    call = [PYTHON, "-c", RUN, folder, *model_args]
    done = subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return list(json.loads((folder / "scores.json").read_text()).values())


def script(folder: Path, name: str, *flags) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / f"{name}.py", *flags]
    return subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, check=True)


@pytest.mark.slow
def test_the_miniature_scores_as_the_scripts_do(has_plugin, tiny_smolvlm, tiny_world, tmp_path):
    """With random models, or with those that CROPVLM_EVAL_WORLD holds as scripts/miniature.sh leaves them."""
    world = Path(os.environ.get("CROPVLM_EVAL_WORLD", tmp_path / "none"))
    trained = world.is_dir()
    data = world / "datasets/miniature" if trained else tiny_world
    cropper = world / "models/miniature_grpo" if trained else tiny_smolvlm
    answerer = ROOT / "miniature/models/smolvlm"
    boxes = ["--model_path", cropper, "--base_model_path", answerer, "--output", tmp_path / "boxes.json"]
    source = ["--dataset_path", data, "--split", "test", "--longest_edge", "64", "--gpu", "-1"]
    script(tmp_path, "generate_bbox", *source, *boxes)
    answers = ["--bbox", tmp_path / "boxes.json", "--vqa_model_path", answerer, "--max_new_tokens", "8"]
    script(tmp_path, "generate_final_answers", *source, *answers, "--output_path", tmp_path, "--name", "x")
    shared = f"answerer={answerer},longest_edge=64,device=cpu"
    for mode, plugin in zip(
        ("base", "cropvlm"),
        evaluate(tmp_path, data, f"{shared},cropper=None", f"{shared},cropper={cropper},base_model_path={answerer}"),
        strict=True,
    ):
        file = tmp_path / f"x_{mode}_answers.json"
        assert plugin["answers"] == [record["answer"] for record in json.loads(file.read_text())]
        done = script(tmp_path, "vqa_accuracy", "--predictions_file", file, "--metric", "vqa_official")
        assert round(100 * plugin["score"], 4) == float(done.stdout.splitlines()[-1])
        print(mode, plugin["score"], done.stdout.splitlines()[-1])
