"""The package graph: imports go downwards, nothing is circular, heavy libraries are loaded late.

Imports are read from the source, those inside functions included.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import shfcas
from shfcas.cli import COMMANDS

ROOT = Path(shfcas.__file__).parent
LAYERS = [  # lowest first; a package imports packages of its own layer and of lower ones, without a cycle
    {"ops"},
    {"utils"},
    {"engines", "models", "data"},
    {"sampling", "rewards", "conflicts", "selection", "feedback", "training", "evaluation", "report", "hub", "monitor"},
    {"pipeline", "compare", "demo", "serve"},
    {"cli"},
]
LAYER = {package: level for level, packages in enumerate(LAYERS) for package in packages}
HEAVY = {"transformers", "trl", "peft", "datasets"}
FILES = sorted(ROOT.rglob("*.py"))
GENERATED = {"_C", "_build_info"}  # written by the build


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imports(path: Path, at_import_time: bool = False) -> Iterator[str]:
    """Full names of imported modules; `at_import_time` leaves out imports inside functions."""
    stack: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while stack:
        node = stack.pop()
        if at_import_time and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        stack.extend(ast.iter_child_nodes(node))


def target(name: str) -> str | None:
    """The module of this package that an imported name belongs to; None for other packages."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


def package_of(name: str) -> str | None:
    """The top-level package that a name belongs to; None for the functional API and for other libraries."""
    parts = name.split(".")
    return parts[1] if parts[0] == "shfcas" and len(parts) > 1 and parts[1] in LAYER else None


def module_graph() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        graph[module] = {found for name in imports(path) if (found := target(name)) and found != module}
    return graph


def folder_graph(depth: int) -> dict[str, set[str]]:
    """The module graph with modules joined by the first `depth` parts of their names."""
    graph: dict[str, set[str]] = {}
    for module, others in module_graph().items():
        node = ".".join(module.split(".")[:depth])
        graph.setdefault(node, set()).update(".".join(other.split(".")[:depth]) for other in others)
    return {node: others - {node} for node, others in graph.items()}


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one node (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            component = []
            while not component or component[-1] != node:
                component.append(stack.pop())
            if len(component) > 1:
                found.append(sorted(component))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_cycles_are_found() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_every_package_has_a_layer_and_the_root_has_no_other_modules() -> None:
    packages = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert packages == LAYER.keys()
    assert {path.stem for path in ROOT.glob("*.py")} - GENERATED == {"__init__", "__main__"}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downwards(module: str) -> None:
    package = package_of(module)
    above = [n for n in imports(MODULES[module]) if package and LAYER.get(package_of(n) or "", 0) > LAYER[package]]
    assert not above


def test_no_module_imports_itself_through_others() -> None:
    assert not cycles(module_graph())


@pytest.mark.parametrize("depth", [2, 3], ids=["packages", "subpackages"])
def test_no_package_imports_itself_through_others(depth: int) -> None:
    graph = folder_graph(depth)
    if depth == 3:  # a package's own __init__ is its face, not a part of it
        graph = {node: {o for o in others if not node.startswith(f"{o}.")} for node, others in graph.items()}
    assert not cycles(graph)


def test_no_file_repeats_the_name_of_its_package() -> None:
    repeated = [m for m in MODULES if len(parts := m.split(".")) > 2 and parts[-1] in parts[1:-1]]
    assert not repeated


@pytest.mark.parametrize(("one", "other"), [("sampling", "training"), ("training", "sampling")])
def test_sampling_and_training_do_not_import_each_other(one: str, other: str) -> None:
    modules = [module for module in MODULES if package_of(module) == one]
    assert modules
    assert not [(module, n) for module in modules for n in imports(MODULES[module]) if package_of(n) == other]


PURE = [
    path
    for module, path in MODULES.items()
    if package_of(module) == "ops" or (package_of(module) == "selection" and path.stem != "sharded")
]


@pytest.mark.parametrize("path", PURE, ids=module_name)
def test_ops_and_strategies_know_nothing_of_files_models_or_the_web(path: Path) -> None:
    forbidden = {"models", "feedback", "pipeline", "report", "cli"}
    readers = {f"shfcas.{name}" for name in ("utils.files", "data.candidates", "data.preferences", "data.shards")}
    outside = HEAVY | {"pyarrow", "pathlib", "os", "io", "http", "urllib", "socket"}
    names = list(imports(path))
    assert not [n for n in names if package_of(n) in forbidden or target(n) in readers]
    assert not [n for n in names if n.partition(".")[0] in outside]


def loads_models_at_import(path: Path) -> bool:
    """Trainers subclass those of transformers and TRL, so their modules are imported inside functions only."""
    folder, name = path.parent.relative_to(ROOT).as_posix(), path.stem
    return (folder == "training/ppo" and name not in ("__init__", "options", "train")) or (folder, name) in (
        ("training/reward", "pair_trainer"),
        ("training/online", "trainer"),
    )


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_model_libraries_are_imported_inside_functions(path: Path) -> None:
    early = [n for n in imports(path, at_import_time=True) if n.partition(".")[0] in HEAVY]
    assert not early or loads_models_at_import(path)


def test_only_trainers_import_the_modules_that_load_models_early() -> None:
    trainers = [path for path in FILES if loads_models_at_import(path)]
    heavy = {module_name(p) for p in trainers if any(n.partition(".")[0] in HEAVY for n in imports(p, True))}
    assert heavy
    for path in FILES:
        if not loads_models_at_import(path) and path.parent.name != "ppo":
            early = {found for name in imports(path, at_import_time=True) if (found := target(name)) in heavy}
            assert not early, module_name(path)


def loaded_by(steps: dict[str, str]) -> dict[str, set[str]]:
    """Top-level modules that a fresh interpreter has loaded after each step, by the step's name."""
    show = "print('\\n' + json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    script = "\n".join(["import json, sys", *(f"{code}\n{show}" for code in steps.values())])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith('["')]
    return {step: set(json.loads(line)) for step, line in zip(steps, lines, strict=True)}


def test_imports_and_helps_are_light() -> None:
    """By what is loaded, not by the time it takes: each step comes on top of the ones before."""
    start = {
        "import shfcas": "import shfcas",
        "import shfcas.cli": "from shfcas.cli import main",
        "shfcas --help": "assert main(['--help']) == 0",
    }
    helps = {f"shfcas {command} --help": f"assert main([{command!r}, '--help']) == 0" for command in COMMANDS}
    loaded = loaded_by(start | helps)
    late = HEAVY | {"matplotlib", "yaml", "scipy", "sklearn", "ray", "openai", "fastapi", "vllm"}
    for step, modules in loaded.items():
        assert "shfcas" in modules
        assert not modules & (late | {"pyarrow"} if step in start else late), step


TESTS = Path(__file__).parents[1]


def test_no_test_imports_from_another() -> None:
    """What tests share is in tests/support, in fixtures, or in a module beside them that holds no tests."""
    modules = {path.stem for path in TESTS.rglob("test_*.py")}
    imported = {path: [n for n in imports(path) if modules & set(n.split("."))] for path in TESTS.rglob("*.py")}
    assert not {path: names for path, names in imported.items() if names}
