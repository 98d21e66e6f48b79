"""`pip install .`: what the wheel holds, and the cropper used from another folder."""

import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
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
def environment(tmp_path_factory) -> Path:
    """A new environment with the project, installed from a copy that has outputs in `datasets` and `models`.

    Its dependencies are the packages of this environment.
    """
    source, new = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("environment")
    for name in ("cropvlm", "serving"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("datasets", "models"):
        (source / name).mkdir()
        (source / name / "output.py").touch()
    venv.create(new, symlinks=True)
    (site,) = new.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", new / "bin/python3", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--no-index", source], check=True, capture_output=True)
    return new


def test_only_the_packages_are_installed(environment):
    (site,) = environment.glob("lib/python*/site-packages")
    added = {path.name for path in site.iterdir() if "dist-info" not in path.name}
    assert added == {"cropvlm", "cropvlm_serving", "dependencies.pth"}
    for name, folder in (("cropvlm", "cropvlm"), ("serving", "cropvlm_serving")):
        modules = {path.relative_to(ROOT / name) for path in (ROOT / name).rglob("*.py")}
        assert {path.relative_to(site / folder) for path in (site / folder).rglob("*.py")} == modules


def test_the_cropper_is_used_from_another_folder(environment, tiny_smolvlm, tmp_path):
    command = [environment / "bin/python3", "-c", USE, str(tiny_smolvlm)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    file, *printed = done.stdout.split(maxsplit=1)
    assert Path(file).is_relative_to(environment)
    assert printed == ["(80, 60) cropvlm_serving.lmms:manifests\n"]


def test_the_tested_versions_lie_in_the_ranges():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if "==" in line)
    extras = PROJECT["project"]["optional-dependencies"].values()
    for requirement in map(Requirement, [*PROJECT["project"]["dependencies"], *sum(extras, [])]):
        assert tested[requirement.name] in requirement.specifier
