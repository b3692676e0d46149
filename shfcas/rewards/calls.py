"""Calls of reward functions with TRL's signature: their arguments, coroutines, results and errors."""

import asyncio
import functools
import inspect
import os
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from shfcas.utils.callables import describe, failure
from shfcas.utils.errors import UserError


def _ignore(*_: Any, **__: Any) -> None:
    """Takes the place of TRL's logging functions where nothing is logged."""


# Arguments of TRL's trainers with their stand-ins. They are no columns, so a function gets them only by name.
TRAINER = {"trainer_state": None, "environments": None, "log_extra": _ignore, "log_metric": _ignore}


def call_reward(function: Callable[..., Any], count: int, arguments: Mapping[str, Any]) -> list[float | None]:
    """Calls a reward function and returns one reward per answer; None if it does not apply to the answer.

    A function receives the arguments that its signature names, or all with `**kwargs`. An argument of TRL that it
    requires and that the caller does not have is None. A coroutine is run to its end. The function may return any
    iterable of numbers, such as a tensor.

    Args:
        function: a reward function with TRL's signature, or a `RewardScorer`.
        count: number of answers.
        arguments: `prompts`, `completions`, and further columns by name, each with one value per answer.

    Raises:
        UserError: the function failed or does not return one number per answer; the message says where it is.
    """
    try:
        result = function(**_accepted(function, arguments))
        if inspect.isawaitable(result):
            result = _wait(result)
        values = _listed(result)
    except UserError:
        raise
    except Exception as error:  # of any kind: the function is the user's
        if _is_own(function):
            raise
        remedy = "fix the function"
        if isinstance(error, TypeError | KeyError):
            remedy += f", which is given {', '.join(arguments)}"
        raise UserError(f"{failure(function, error)}; {remedy}") from error
    if values is None:
        raise UserError(
            f"{describe(function)}: expected a list of numbers, one per answer, got {type(result).__name__}; "
            "fix the function"
        )
    if len(values) != count:
        raise UserError(
            f"{describe(function)}: expected {count} rewards, one per answer, got {len(values)}; fix the function"
        )
    return [_number(value, i, function) for i, value in enumerate(values)]


def describe_reward(scorer: Any) -> str:
    """Returns `module:function (file:line)` of the functions that a scorer calls in the end."""
    while hasattr(scorer, "scorer"):  # negated or shaped
        scorer = scorer.scorer
    members = getattr(scorer, "members", None)
    return ", ".join(dict.fromkeys(map(describe_reward, members))) if members else describe(scorer)


def _accepted(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments that a function accepts, with stand-ins for those of TRL that it requires."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some functions written in C have no signature
        return dict(arguments)
    named = {
        name
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    takes_all = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values())
    given = {
        name: value
        for name, value in arguments.items()
        if name in named or (takes_all and name not in parameters and (_is_own(function) or name not in TRAINER))
    }
    for name, stand_in in {"completion_ids": None, **TRAINER}.items():
        if name in named and name not in given and parameters[name].default is inspect.Parameter.empty:
            given[name] = stand_in
    return given


def _is_own(function: Callable[..., Any]) -> bool:
    """Returns whether a scorer is one of this package, which passes all its arguments on."""
    return (getattr(function, "__module__", None) or "").startswith("shfcas.")


def _listed(result: Any) -> list[Any] | None:
    """Returns the elements of a result; None if it is no sequence of rewards."""
    if hasattr(result, "tolist"):  # a tensor, an array or a series
        result = result.tolist()
    if isinstance(result, str | bytes | Mapping | set | frozenset) or not isinstance(result, Iterable):
        return None
    return list(result)


def _number(value: Any, index: int, function: Callable[..., Any]) -> float | None:
    if value is None:
        return None
    if not isinstance(value, str | bytes):  # float() would read "0.5"
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            pass
    shown = " ".join(repr(value).split())[:60]
    raise UserError(f"{describe(function)}: expected a number for answer {index}, got {shown}; fix the function")


_FIRST_USE = threading.Lock()


def _wait(awaitable: Awaitable[Any]) -> Any:
    """Runs a coroutine on this process's event loop, also where another loop runs in this thread, as in notebooks."""

    async def run() -> Any:
        return await awaitable

    with _FIRST_USE:  # several threads at once would each make a loop
        loop = _loop(os.getpid())
    future = asyncio.run_coroutine_threadsafe(run(), loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


@functools.cache
def _loop(process: int) -> asyncio.AbstractEventLoop:
    """Returns the loop of a process. There is only one: clients inside a function belong to the loop of first use."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="rewards", daemon=True).start()
    return loop
