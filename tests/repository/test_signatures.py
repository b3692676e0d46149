"""Public functions take few positional arguments: a call says which of its arguments is which."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import shfcas

ROOT = Path(shfcas.__file__).parent
LIMIT = 5
EXCEPTIONS = {
    "ops/_pvalues.py: kendall_test": "an op's implementation: the dispatcher passes arguments in the schema's order",
}


def public_functions(source: str) -> Iterator[tuple[str, int]]:
    """Names of public functions, methods and constructors, with their number of positional parameters."""

    def visit(body: list[ast.stmt], owner: str) -> Iterator[tuple[str, int]]:
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from visit(node.body, f"{node.name}.")
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if not node.name.startswith("_") or node.name in ("__init__", "__call__"):
                names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
                bound = owner and names[:1] in (["self"], ["cls"])
                yield f"{owner}{node.name}", len(names) - bool(bound)

    return visit(ast.parse(source).body, "")


def test_parameters_are_counted() -> None:
    source = """
def f(a, b, /, c, *, d): ...
def _g(a, b): ...
class C:
    def __init__(self, a): ...
    def method(self, a, b=1, *rest): ...
    @staticmethod
    def plain(a): ...
class _D:
    def method(self, a): ...
"""
    assert dict(public_functions(source)) == {"f": 3, "C.__init__": 1, "C.method": 2, "C.plain": 1}


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_public_function_takes_more_than_five_positional_arguments(path: Path) -> None:
    where = path.relative_to(ROOT).as_posix()
    found = [
        f"{where}: {name} has {count} positional parameters, at most {LIMIT}: make the others keyword-only"
        for name, count in public_functions(path.read_text(encoding="utf-8"))
        if count > LIMIT and f"{where}: {name}" not in EXCEPTIONS
    ]
    assert not found
