"""The miniature as a task of lmms-eval, and the environment in which scripts/lmms_eval.sh installs it."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = Path(os.environ.get("CROPVLM_EVAL_PYTHON", ROOT / ".venv/eval/bin/python3"))
INSTALL = "the plugin of this clone is not installed: bash scripts/lmms_eval.sh --help"
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


def has_plugin() -> bool:
    """Whether lmms-eval is installed and finds the plugin of this clone."""
    code = "from importlib.util import find_spec; print(*find_spec('cropvlm_serving').submodule_search_locations)"
    if not PYTHON.exists():
        return False
    found = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=False)
    return found.stdout.strip() == str(ROOT / "serving")


def write_task(folder: Path, data: Path) -> None:
    """Write the task `miniature_world` over the rows in `data` into a folder for `--include_path`."""
    (folder / "miniature_world.yaml").write_text(TASK.format(data=data))
    (folder / "utils.py").write_text(UTILS)
