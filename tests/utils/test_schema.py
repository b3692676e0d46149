"""JSON Schemas from dataclasses: types, choices, bounds, sections."""

import dataclasses

import jsonschema
import pytest

from shfcas.utils.config import option
from shfcas.utils.schema import json_schema


def bounded(default: object, **bounds: float) -> object:
    return dataclasses.field(default=default, metadata={"help": "bounded", **bounds})


@dataclasses.dataclass
class Inner:
    rate: float = option(0.1, "step size")
    limit: float | None = option(None, "limit", volatile=True)


@dataclasses.dataclass
class Outer:
    name: str = option("a", "a name")
    mode: str = option("fast", "how", choices=("fast", "careful"))
    maybe: str | None = option(None, "how, or not at all", choices=("fast", "careful"))
    flag: bool = option(False, "on or off")
    top: int | float = option(1, "a share or a number")
    share: float = bounded(0.5, gt=0, le=1)
    count: int | None = bounded(None, ge=1, lt=10)
    targets: list[str] | str = option("all", "names, or all")
    sizes: list[int] = dataclasses.field(default_factory=lambda: [1], metadata={"help": "sizes", "ge": 1})
    inner: Inner = option(lambda: Inner(rate=0.5), "a section")
    spare: Inner | None = option(None, "a section that is off")


SCHEMA = json_schema(Outer(), "test")
PROPERTIES = SCHEMA["properties"]


def test_types_choices_and_bounds() -> None:
    assert PROPERTIES["name"] == {"description": "a name", "type": "string", "default": "a"}
    assert PROPERTIES["mode"]["enum"] == ["fast", "careful"]
    assert PROPERTIES["maybe"]["enum"] == ["fast", "careful", None]
    assert PROPERTIES["flag"]["type"] == "boolean"
    assert PROPERTIES["top"]["type"] == "number"
    assert PROPERTIES["share"] == {
        "description": "bounded", "type": "number", "exclusiveMinimum": 0, "maximum": 1, "default": 0.5
    }  # fmt: skip
    assert PROPERTIES["count"]["type"] == ["integer", "null"]
    assert (PROPERTIES["count"]["minimum"], PROPERTIES["count"]["exclusiveMaximum"]) == (1, 10)
    assert PROPERTIES["targets"]["type"] == ["array", "string"]
    assert PROPERTIES["sizes"]["items"] == {"type": "integer", "minimum": 1}


def test_a_section_has_the_defaults_of_its_owner() -> None:
    inner, spare = PROPERTIES["inner"], PROPERTIES["spare"]
    assert inner["type"] == ["object", "null"] and inner["additionalProperties"] is False
    assert inner["properties"]["rate"]["default"] == 0.5 and "default" not in inner
    assert spare["properties"]["rate"]["default"] == 0.1 and spare["default"] is None


def test_what_may_change_when_a_run_is_resumed_says_so() -> None:
    assert PROPERTIES["inner"]["properties"]["limit"]["description"] == "limit (may change when a run is resumed)"


@pytest.mark.parametrize(
    ("values", "valid"),
    [
        ({}, True),
        ({"count": None, "maybe": None, "inner": None}, True),
        ({"count": 9, "share": 1, "sizes": [], "targets": ["q"]}, True),
        ({"count": 10}, False),
        ({"share": 0}, False),
        ({"sizes": [0]}, False),
        ({"spare": {"rat": 1}}, False),
        ({"mode": None}, False),
    ],
)
def test_values(values: dict, valid: bool) -> None:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    validator.check_schema(SCHEMA)
    assert validator.is_valid(values) == valid
