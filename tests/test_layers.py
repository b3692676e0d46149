"""Rooms import downwards only, and what is heavy is loaded late. Imports are read from the source, not from memory."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import shfcas

ROOT = Path(shfcas.__file__).parent
LAYERS = [  # the lowest first; a room imports rooms of its own layer and of lower ones
    {"_library"},
    {"_arguments", "_autograd", "_fake_kernels", "_pvalues"},
    {"ops", "reference"},
    {"config", "endpoints", "files", "errors", "processes", "progress", "seeded_choice", "seeds", "quantiles"},
    {
        "candidates",
        "preferences",
        "models",
        "model_files",
        "score_models",
        "chat",
        "callables",
        "shards",
        "conflict_summary",
    },
    {"pairs", "engines"},
    {
        "best_of_n",
        "bootstrap",
        "sampling",
        "generators",
        "scoring",
        "score_answers",
        "score_tables",
        "select_tables",
        "preflight",
        "conflicts",
        "selection",
        "feedback",
        "training",
        "evaluation",
        "exports",
        "diagnose",
    },
    {"rounds", "run_config", "demo", "report", "stages", "compare"},
    {"cli"},
]
LAYER = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
HEAVY = {"transformers", "trl", "peft", "datasets"}
FILES = sorted(ROOT.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, at_import_time: bool = False) -> Iterator[str]:
    """Full names of imported modules; `at_import_time` leaves out what stands inside functions."""
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


def room_of(name: str) -> str | None:
    """The room that an imported name of this package lies in; None for the functional API and for other packages."""
    package, _, rest = name.partition(".")
    room = rest.partition(".")[0]
    return room if package == "shfcas" and ((ROOT / room).is_dir() or (ROOT / f"{room}.py").exists()) and room else None


def test_every_room_has_a_layer() -> None:
    rooms = {room_of(module_name(path)) for path in FILES} - {None}
    assert rooms == LAYER.keys()


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_downwards(path: Path) -> None:
    room = room_of(module_name(path))
    if room is None:  # the functional API
        assert {room_of(name) for name in imports(path)} - {None} <= LAYERS[0] | LAYERS[1] | LAYERS[2]
        return
    upwards = [n for n in imports(path) if room_of(n) and LAYER[room_of(n)] > LAYER[room]]
    assert not upwards


@pytest.mark.parametrize(("one", "other"), [("sampling", "training"), ("training", "sampling")])
def test_sampling_and_training_do_not_know_each_other(one: str, other: str) -> None:
    files = [path for path in FILES if room_of(module_name(path)) == one]
    assert files
    assert not [(path.name, n) for path in files for n in imports(path) if room_of(n) == other]


@pytest.mark.parametrize("room", ["ops", "reference", "selection"])
def test_pure_rooms_know_nothing_of_files_models_or_the_web(room: str) -> None:
    forbidden = {"files", "models", "candidates", "preferences", "feedback", "stages", "report", "cli"}
    outside = HEAVY | {"pyarrow", "pathlib", "os", "io", "http", "urllib", "socket"}
    files = [path for path in FILES if room_of(module_name(path)) == room]
    assert files
    names = [name for path in files for name in imports(path)]
    assert not [n for n in names if room_of(n) in forbidden or n.partition(".")[0] in outside]


def may_load_models_at_import(path: Path) -> bool:
    """Trainers subclass those of transformers and TRL; their modules are imported inside functions only."""
    names = ("rollouts.py", "value.py", "reward_trainer.py", "online_trainer.py")
    return path.parent.name == "training" and (path.name.startswith("ppo") or path.name in names)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_model_libraries_are_imported_inside_functions(path: Path) -> None:
    early = [n for n in imports(path, at_import_time=True) if n.partition(".")[0] in HEAVY]
    assert not early or may_load_models_at_import(path)


def test_only_the_trainer_itself_imports_the_modules_that_load_models_early() -> None:
    trainer = [path for path in FILES if may_load_models_at_import(path)]
    heavy = {module_name(p) for p in trainer if any(n.partition(".")[0] in HEAVY for n in imports(p, True))}
    assert heavy
    for path in FILES:
        if not may_load_models_at_import(path):
            early = {n for n in imports(path, at_import_time=True) if n in heavy or n.rpartition(".")[0] in heavy}
            assert not early, module_name(path)


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `code`."""
    script = f"import json, sys\n{code}\nprint('\\n' + json.dumps(sorted(m.partition('.')[0] for m in sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import shfcas",
        "from shfcas.cli import main; assert main(['--help']) == 0",
    ],
    ids=["import", "help"],
)
def test_a_fresh_start_is_light(code: str) -> None:
    loaded = loaded_by(code)
    assert "shfcas" in loaded
    assert not loaded & (HEAVY | {"pyarrow", "yaml", "matplotlib"})


def test_the_help_of_a_command_does_not_load_models() -> None:
    assert not loaded_by("from shfcas.cli import main; assert main(['run', '--help']) == 0") & HEAVY
