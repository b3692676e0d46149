"""Every configuration class: each field has a help text, and no value outside its bounds or choices passes."""

import dataclasses
import importlib
import math
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shfcas.cli import main
from shfcas.utils.config import Options, build
from shfcas.utils.errors import UsageError

ROOT = Path(__file__).parents[2]
STEPS = {"ge": -1, "gt": 0, "le": 1, "lt": 0}  # from a bound to a value that it refuses


def classes() -> list[type]:
    """The configuration classes of all commands and of all modules that make options."""
    modules = set()
    for path in sorted((ROOT / "shfcas").rglob("*.py")):
        if path.parent.name == "cli" or re.search(r"\boption\(", path.read_text(encoding="utf-8")):
            modules.add(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    for module in modules:
        importlib.import_module(module)
    found, waiting = [], [Options]
    while waiting:
        below = waiting.pop().__subclasses__()
        waiting += below
        found += [cls for cls in below if cls.__module__ in modules]
    return sorted(set(found), key=lambda cls: (cls.__module__, cls.__name__))


CLASSES = classes()
EVERY_CLASS = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: f"{cls.__module__}.{cls.__name__}")


def fields(cls: type, where: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """All fields of a class and of the sections in it, by their dotted names."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        yield f"{where}{field.name}", field
        for section in (hints[field.name], *typing.get_args(hints[field.name])):
            if dataclasses.is_dataclass(section):
                yield from fields(section, f"{where}{field.name}.")


def refused(field: dataclasses.Field) -> list[Any]:
    """Values next to the bounds of a field, on their wrong side, or none of its choices."""
    values = [field.metadata[key] + step for key, step in STEPS.items() if key in field.metadata]
    return (
        values + [math.inf] * bool({"le", "lt"} & field.metadata.keys()) + ["neither"] * ("choices" in field.metadata)
    )


def test_there_are_classes_of_every_package() -> None:
    packages = {cls.__module__.split(".")[1] for cls in CLASSES}
    assert packages >= {"sampling", "selection", "feedback", "training", "evaluation", "pipeline", "compare", "cli"}
    assert sum(bool(STEPS.keys() & field.metadata.keys()) for cls in CLASSES for field in dataclasses.fields(cls)) > 100


@EVERY_CLASS
def test_every_field_has_a_help_text(cls: type) -> None:
    for field in dataclasses.fields(cls):
        text = field.metadata.get("help", "")
        assert text == text.strip() and len(text) > 3 and not text.endswith(".") and "\n" not in text, field.name


@EVERY_CLASS
def test_a_value_outside_its_bounds_is_one_line_with_its_dotted_name(cls: type) -> None:
    for name, field in fields(cls):
        for value in refused(field):
            items = [value] if "list" in str(field.type) else value
            *sections, key = name.split(".")
            values: dict[str, Any] = {key: items}
            for section in reversed(sections):
                values = {section: values}
            with pytest.raises(UsageError) as caught:
                build(cls, values)
            assert re.match(rf"{re.escape(name)}: expected .*\bgot ", str(caught.value)), name
            assert "\n" not in str(caught.value)
            if not sections:
                with pytest.raises(UsageError, match=rf"^{re.escape(name)}: expected "):
                    cls(**values)


@EVERY_CLASS
def test_a_list_of_choices_names_each_of_them(cls: type) -> None:
    for name, field in fields(cls):
        assert all(isinstance(choice, str) for choice in field.metadata.get("choices", ())), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "--sampling.temperature", "-1"], "sampling.temperature: expected above 0, got -1.0; for greedy"),
        (["ppo", "--mini_batch_size", "5"], "rollout_batch_size: expected a multiple of mini_batch_size (5), got 64"),
        (["select", "--strategy", "kendal"], "did you mean kendall?"),
        (["annotate", "run", "--port", "65536"], "port: expected at least 0 and at most 65535, got 65536"),
    ],
)
def test_the_command_line_says_so_with_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
