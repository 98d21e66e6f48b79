"""The rules of the house: imports point down, the method needs no torch where it says so, no flag below the scripts."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "cropvlm"
WINGS = ("teacher", "training", "inference")
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}
# Where flags are known: nowhere else in the package.
KNOW_FLAGS = re.compile(r"cropvlm\.cli|.*arguments")
WITHOUT_TORCH = ("boxes", "crops", "prompts", "metrics", "letters", "scoring", "benchmarks", "data", "cli")


def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports, also within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "cropvlm":
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "cropvlm"}
    return found & MODULES.keys()


def floor(module: str) -> str:
    """The wing of a module, `runtime`, or `method` for the modules at the top of the package and their `models/`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 and parts[1] != "models" else "method"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    below = {"method": {"method"}, "runtime": {"method", "runtime"}}
    allowed = below.get(floor(module), {"method", "runtime", floor(module)})
    assert {name for name in imports(MODULES[module]) if floor(name) not in allowed} == set()


def test_there_is_no_circle():
    graph = {module: imports(path) for module, path in MODULES.items()}
    while leaves := {module for module, targets in graph.items() if not targets & graph.keys()}:
        graph = {module: targets for module, targets in graph.items() if module not in leaves}
    assert graph == {}


@pytest.mark.parametrize("module", [module for module in MODULES if not KNOW_FLAGS.fullmatch(module)])
def test_the_library_knows_no_command_line(module):
    """Neither a flag's name in a string nor an argparse namespace; strings are messages and docstrings alike."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    # A model card shows a command to copy, and vLLM has flags of its own.
    prose = [text for text in strings if "python3 " not in text and "vLLM" not in text]
    assert [match for text in prose for match in re.findall(r"(?<![\w-])--[a-z][a-z_]+", text)] == []
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert "argparse" not in names


def test_the_modules_without_torch():
    code = f"import {', '.join(f'cropvlm.{name}' for name in WITHOUT_TORCH)}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("path", [*MODULES.values(), *sorted(ROOT.glob("*.py"))], ids=lambda path: path.name)
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert text.count("\n") <= 400
    assert [node.name for node in functions if node.end_lineno - node.lineno >= 70] == []


def test_the_scripts_read_as_the_method():
    scripts = sorted(ROOT.glob("*.py"))
    assert len(scripts) == 6
    assert sum(path.read_text(encoding="utf-8").count("\n") for path in scripts) <= 800


def test_the_files_of_the_tests_are_short():
    paths = sorted((ROOT / "tests").rglob("*.py"))
    assert [path.name for path in paths if path.read_text(encoding="utf-8").count("\n") > 400] == []
