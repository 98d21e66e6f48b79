"""`pip install .`: what the wheel holds, and the cropper used from another folder."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
USE = """
import sys
from importlib.metadata import entry_points
from PIL import Image
from cropvlm import Cropper, cropper
full, crop = Cropper(sys.argv[1], longest_edge=64).views(Image.new("RGB", (80, 60)), "What?")
(plugin,) = entry_points(group="lmms_eval.models")
print(cropper.__file__, full.size, plugin.value)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder into which the project was installed, from a copy that has outputs in `datasets` and `models`."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    for name in ("cropvlm", "serving"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("datasets", "models"):
        (source / name).mkdir()
        (source / name / "output.py").touch()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", target, source], check=True, capture_output=True)
    return target


def test_only_the_packages_are_installed(installed):
    assert sorted(path.name for path in installed.iterdir() if "dist-info" not in path.name) == [
        "cropvlm",
        "cropvlm_serving",
    ]
    for name, folder in (("cropvlm", "cropvlm"), ("serving", "cropvlm_serving")):
        modules = {path.relative_to(ROOT / name) for path in (ROOT / name).rglob("*.py")}
        assert {path.relative_to(installed / folder) for path in (installed / folder).rglob("*.py")} == modules


def test_the_cropper_is_used_from_another_folder(installed, tiny_smolvlm, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", USE, str(tiny_smolvlm)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    expected = f"{installed}/cropvlm/cropper.py (80, 60) cropvlm_serving.lmms:manifests"
    assert done.stdout.strip() == expected


def test_the_tested_versions_lie_in_the_ranges():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if "==" in line)
    extras = PROJECT["project"]["optional-dependencies"].values()
    for requirement in map(Requirement, [*PROJECT["project"]["dependencies"], *sum(extras, [])]):
        assert tested[requirement.name] in requirement.specifier
