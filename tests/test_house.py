"""The rules of the house: imports point down, the method needs no torch where it says so, no flag below the scripts."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "cropvlm"
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}
# The method is what lies at the top of the package; each floor may import itself and those below it.
BELOW = {
    "models": set(),
    "method": {"models"},
    "data": {"method", "models"},
    "runs": {"data", "method", "models"},
    "trainers": {"runs", "data", "method", "models"},
    "sets": {"runs", "data", "method", "models"},
}
GEOMETRY = {"cropvlm.errors", "cropvlm.boxes", "cropvlm.crops"}  # what the tools of one family or machine may know
WITHOUT_TORCH = ("boxes", "crops", "prompts", "metrics", "teacher")
WITHOUT_TORCH += ("runs.scoring", "data.catalog", "data.rows", "runs.cli")
# What the scripts import before they read their flags, and what takes seconds to load.
BEFORE_FLAGS = ("data.rows", "runs.predictions", "runs.text_models")
HEAVY = {"torch", "transformers", "datasets", "openai", "httpx2"}
ROOM_LINES = 1500  # with docstrings
ROOM = [module for module in MODULES if module.count(".") == 1 and module not in ("cropvlm.cropper",)]


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
    """The folder of a module, `method` at the top of the package."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 else "method"


@pytest.mark.parametrize("module", [module for module in MODULES if module != "cropvlm"])
def test_imports_point_down(module):
    allowed = BELOW[floor(module)] | {floor(module)}
    above = {name for name in imports(MODULES[module]) if floor(name) not in allowed}
    assert above - (GEOMETRY if floor(module) == "models" else set()) == set()


def test_there_is_no_circle():
    graph = {module: imports(path) for module, path in MODULES.items()}
    while leaves := {module for module, targets in graph.items() if not targets & graph.keys()}:
        graph = {module: targets for module, targets in graph.items() if module not in leaves}
    assert graph == {}


def test_the_method_is_read_in_one_sitting():
    assert sum(MODULES[module].read_text(encoding="utf-8").count("\n") for module in ROOM) <= ROOM_LINES


@pytest.mark.parametrize("module", [module for module in ROOM if module != "cropvlm.errors"])
def test_the_method_is_nothing_else(module):
    """No care for odd input, no thread, no estimate of memory, no file written: that is for the floors around it."""
    tree = list(ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))))
    assert not [node.lineno for node in tree if isinstance(node, ast.Try)]
    names = {node.id for node in tree if isinstance(node, ast.Name)}
    names |= {node.attr for node in tree if isinstance(node, ast.Attribute)}
    avoided = {"open", "write_text", "write_bytes", "suppress", "ThreadPoolExecutor", "Thread", "mem_get_info"}
    assert not names & avoided


@pytest.mark.parametrize(("modules", "heavy"), [(WITHOUT_TORCH, {"torch"}), (BEFORE_FLAGS, HEAVY)])
def test_the_modules_that_load_nothing_heavy(modules, heavy):
    code = f"import sys, {', '.join(f'cropvlm.{name}' for name in modules)}; print(sys.modules.keys() & {heavy})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("path", [*PACKAGE.rglob("*.py"), *ROOT.glob("*.py"), *ROOT.glob("tests/**/*.py")], ids=str)
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert text.count("\n") <= 400
    assert [node.name for node in functions if node.end_lineno - node.lineno >= 70] == []


def test_the_scripts_read_as_the_method():
    scripts = sorted(ROOT.glob("*.py"))
    assert len(scripts) == 6
    assert sum(path.read_text(encoding="utf-8").count("\n") for path in scripts) <= 800
