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
DISTRIBUTION = {
    "tiny.py": "",
    "tiny-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1\n",
    "tiny-1.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "tiny-1.dist-info/RECORD": "tiny.py,,\ntiny-1.dist-info/METADATA,,\ntiny-1.dist-info/WHEEL,,\n",
}
ensurepip = pytest.importorskip("ensurepip", reason="the tests make environments: install python3-venv")
PIP_WHEELS = sysconfig.get_config_var("WHEEL_PKG_DIR") or Path(ensurepip.__file__).parent / "_bundled"
# A python3 of Debian without python3-venv: its venv module can make no pip. Of an old one the version is noticed.
WITHOUT_ENSUREPIP = f"""#!/usr/bin/env bash
if [[ "$*" == "-m venv .venv" ]]; then exit 1; fi
exec {sys.executable} "$@"
"""
OLD = "#!/usr/bin/env bash\nexit 1\n"

pytestmark = pytest.mark.slow


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A repository of setup.sh and one requirement, a wheel that lies beside it."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/setup.sh", tmp_path / "scripts")
    with zipfile.ZipFile(tmp_path / "tiny-1-py3-none-any.whl", "w") as wheel:
        for name, text in DISTRIBUTION.items():
            wheel.writestr(name, text)
    (tmp_path / "requirements.txt").write_text("tiny==1\n")
    return tmp_path


def set_up(checkout: Path, python: str = sys.executable) -> subprocess.CompletedProcess:
    """Source it and name the python that is then used and whether it has the requirement."""
    script = "set -euo pipefail; source scripts/setup.sh; command -v python3; python3 -c 'import tiny'"
    environment = {"CROPVLM_PYTHON": python, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}
    environment |= {"PIP_FIND_LINKS": f"{checkout} {PIP_WHEELS}"}
    command = ["bash", "-c", script]
    return subprocess.run(command, cwd=checkout, env={**os.environ, **environment}, capture_output=True, text=True)


def is_ready(checkout: Path, result: subprocess.CompletedProcess) -> bool:
    return (result.returncode, result.stdout) == (0, f"{checkout}/.venv/bin/python3\n")


def executable(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def test_it_says_what_it_does_goes_on_after_a_failure_and_is_silent_when_done(checkout):
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


def test_an_environment_without_pip_is_completed(checkout):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", checkout / ".venv"], check=True)
    (checkout / ".venv/bin/activate").unlink()  # as where the first run was stopped before the end
    result = set_up(checkout)
    assert is_ready(checkout, result), result.stderr


def test_a_python_whose_venv_makes_no_pip(checkout):
    result = set_up(checkout, executable(checkout / "python", WITHOUT_ENSUREPIP))
    assert is_ready(checkout, result), result.stderr


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
    executable(checkout / "old", OLD)
    result = set_up(checkout, str(checkout / python))
    assert result.returncode == 2
    assert "error: Python 3.11 or newer is required" in result.stderr.splitlines()[-1]
    assert not (checkout / ".venv").exists()
