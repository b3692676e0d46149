"""Notebooks run without Jupyter: their code cells in order, in one namespace, with await at the top level of a cell."""

import ast
import asyncio
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Names = dict[str, Any]


def read(path: Path) -> list[dict[str, Any]]:
    """The cells of a notebook."""
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def run(path: Path, parameters: Names, after: dict[str, Callable[[Names], None]] | None = None) -> Names:
    """Runs a notebook and returns its names.

    `parameters` replace those of the cell with the tag parameters. `after` has functions to call after the cell with
    a tag, such as people who answer.
    """
    names: Names = {"__name__": "__main__"}
    hooks = after or {}
    loop = asyncio.new_event_loop()
    try:
        for number, cell in enumerate(cell for cell in read(path) if cell["cell_type"] == "code"):
            tags = cell["metadata"].get("tags", [])
            code = compile("".join(cell["source"]), f"{path.name}[{number}]", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            waits = bool(code.co_flags & inspect.CO_COROUTINE)
            result = eval(code, names)
            if waits:
                loop.run_until_complete(result)
            if "parameters" in tags:
                unknown = parameters.keys() - names.keys()
                assert not unknown, f"{path.name} has no parameters {unknown}"
                names |= parameters
            for tag in tags:
                hooks.get(tag, lambda _: None)(names)
    finally:
        loop.close()
    return names
