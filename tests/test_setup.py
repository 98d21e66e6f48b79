"""scripts/setup.sh, which the other scripts source: it makes .venv once, says so, and survives what goes wrong."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ensurepip = pytest.importorskip("ensurepip", reason="the tests make environments: install python3-venv")
PIP_WHEELS = sysconfig.get_config_var("WHEEL_PKG_DIR") or Path(ensurepip.__file__).parent / "_bundled"
# A python3 of Debian without python3-venv: its venv module can make no pip.
WITHOUT_ENSUREPIP = f"""#!/usr/bin/env bash
if [[ "$*" == "-m venv .venv" ]]; then exit 1; fi
exec {sys.executable} "$@"
"""

pytestmark = pytest.mark.slow


def wheel(folder: Path, version: int) -> None:
    """A distribution of one module, tiny, that knows its version."""
    info = f"tiny-{version}.dist-info"
    files = {
        "tiny.py": f"VERSION = {version}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in files)
    with zipfile.ZipFile(folder / f"tiny-{version}-py3-none-any.whl", "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A repository of setup.sh and one requirement, a wheel that lies beside it."""
    folder = tmp_path / "checkout"
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/setup.sh", folder / "scripts")
    wheel(folder, 1)
    (folder / "requirements.txt").write_text("# one\ntiny\n")
    (folder / "requirements.lock").write_text("tiny==1\n")
    return folder


def set_up(checkout: Path, python: str = sys.executable, **variables: str) -> subprocess.CompletedProcess:
    """Source it and name the environment that is then used and the version of the requirement."""
    use = "python3 -c 'import sys, tiny; print(sys.prefix, tiny.VERSION)'"
    environment = {"CROPVLM_PYTHON": python, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}
    environment |= {"PIP_FIND_LINKS": f"{checkout} {PIP_WHEELS}", **variables}
    command = ["bash", "-c", f"set -euo pipefail; source scripts/setup.sh; {use}"]
    return subprocess.run(command, cwd=checkout, env={**os.environ, **environment}, capture_output=True, text=True)


def is_ready(checkout: Path, result: subprocess.CompletedProcess, version: int = 1) -> bool:
    return (result.returncode, result.stdout) == (0, f"{checkout}/.venv {version}\n")


def executable(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def test_it_says_what_it_does_continues_after_a_failure_and_is_silent_when_done(checkout):
    (checkout / "requirements.txt").write_text("tiny==2\n")
    failed = set_up(checkout)
    assert failed.returncode == 2
    first, second, *_, last = failed.stderr.splitlines()
    assert first == f"setup: making .venv with Python {'.'.join(map(str, sys.version_info[:3]))}"
    assert second.startswith("setup: installing requirements.txt into .venv")
    assert last.startswith("error: pip could not install requirements.txt")
    (checkout / "requirements.txt").write_text("tiny==1\n")
    repaired = set_up(checkout)
    assert is_ready(checkout, repaired), repaired.stderr
    assert repaired.stderr.startswith("setup: installing")
    done = set_up(checkout)
    assert is_ready(checkout, done)
    assert done.stderr == ""
    # The lock file decides the version, and its change installs anew.
    wheel(checkout, 2)
    (checkout / "requirements.txt").write_text("tiny\n")
    assert is_ready(checkout, set_up(checkout), 1)
    (checkout / "requirements.lock").write_text("tiny==2\n")
    assert is_ready(checkout, set_up(checkout), 2)


def test_an_environment_without_pip_is_completed(checkout):
    """Also by a Python whose venv makes none."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", checkout / ".venv"], check=True)
    (checkout / ".venv/bin/activate").unlink()  # as where the first run was stopped before the end
    result = set_up(checkout)
    assert is_ready(checkout, result), result.stderr
    shutil.rmtree(checkout / ".venv")
    result = set_up(checkout, executable(checkout / "python", WITHOUT_ENSUREPIP))
    assert is_ready(checkout, result), result.stderr


def test_a_moved_clone_works_and_a_copied_one_uses_its_own_packages(checkout, tmp_path):
    assert is_ready(checkout, set_up(checkout))
    moved = checkout.rename(tmp_path / "moved")
    again = set_up(moved)
    assert is_ready(moved, again)
    assert again.stderr == ""
    activated = "source .venv/bin/activate; command -v python3; pip --version"
    used = subprocess.run(["bash", "-c", activated], cwd=moved, capture_output=True, text=True)
    assert used.stdout.startswith(f"{moved}/.venv/bin/python3\npip ")
    for program in moved.glob(".venv/bin/pip*"):
        program.unlink()  # without any program of its own
    copied = shutil.copytree(moved, tmp_path / "copied", symlinks=True)
    (module,) = copied.glob(".venv/lib/python*/site-packages/tiny.py")
    module.write_text("VERSION = 3  # of another size, since its bytecode is known by size and second\n")
    assert is_ready(copied, set_up(copied), 3)
    assert is_ready(moved, set_up(moved), 1)


def test_a_clusters_settings_decide_nothing(checkout, tmp_path):
    """What pip put elsewhere is not recorded as installed; other packages and pip's other targets are not used."""
    (tmp_path / "pip.conf").write_text(f"[install]\ntarget = {tmp_path / 'elsewhere'}\n")
    result = set_up(checkout, PIP_CONFIG_FILE=str(tmp_path / "pip.conf"))
    assert result.returncode == 2
    assert "cannot be imported from .venv" in result.stderr.splitlines()[-1]
    (tmp_path / "tiny.py").write_text("VERSION = 4\n")
    variables = {"PYTHONPATH": str(tmp_path), "PYTHONHOME": "/usr", "PIP_USER": "1", "VIRTUAL_ENV": "/other"}
    variables |= {name: str(tmp_path / "another") for name in ("PIP_TARGET", "PIP_PREFIX", "CONDA_PREFIX")}
    result = set_up(checkout, **variables)
    assert is_ready(checkout, result), result.stderr
    assert not (tmp_path / "another").exists()


def test_a_missing_c_compiler_is_told_where_a_gpu_is_and_a_module_in_place_of_a_library(checkout, tmp_path):
    assert is_ready(checkout, set_up(checkout))
    (tmp_path / "bin").mkdir()
    for name in ("bash", "dirname", "basename", "readlink", "cmp", "grep"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    for gpu in (False, True):
        if gpu:
            executable(tmp_path / "bin/nvidia-smi", "#!/usr/bin/env bash\n")
        result = set_up(checkout, PATH=str(tmp_path / "bin"))
        assert is_ready(checkout, result)
        assert ("needs a C compiler and Python.h" in result.stderr) == gpu
        assert result.stderr.count("\n") == gpu
    (checkout / "datasets").mkdir()
    for name in ("datasets.py", "datasets/__init__.py"):
        (checkout / name).touch()
        result = set_up(checkout)
        assert (result.returncode, result.stderr.partition(" the ")[0]) == (2, f"error: {name} hides")
        (checkout / name).unlink()


@pytest.mark.parametrize("gone", ["interpreter", "folder of its packages"])
def test_an_environment_whose_interpreter_was_upgraded_is_made_anew(gone, checkout):
    """Else the scripts would continue with whatever python3 is on the path, or without the packages."""
    assert is_ready(checkout, set_up(checkout))
    if gone == "interpreter":
        for link in (checkout / ".venv/bin").glob("python*"):
            link.unlink()
            link.symlink_to("/gone/python3")
    else:
        next((checkout / ".venv/lib").glob("python*")).rename(checkout / ".venv/lib/python3.1")
    result = set_up(checkout)
    assert is_ready(checkout, result), result.stderr
    assert result.stderr.startswith("setup: making .venv with Python")


@pytest.mark.parametrize("python", ["old", "no/such/python3"])
def test_no_fitting_python(checkout, python):
    executable(checkout / "old", "#!/usr/bin/env bash\nexit 1\n")
    result = set_up(checkout, str(checkout / python))
    assert result.returncode == 2
    assert "error: Python 3.11 or newer is required" in result.stderr.splitlines()[-1]
    assert not (checkout / ".venv").exists()


def test_the_lock_file_agrees_with_the_requirements():
    versions, locked = (
        dict(line.split("==") for line in (ROOT / name).read_text().splitlines() if "==" in line)
        for name in ("requirements.txt", "requirements.lock")
    )
    normal = {name.lower().replace("_", "-"): version for name, version in locked.items()}
    assert {name: normal.get(name.lower().replace("_", "-")) for name in versions} == versions
