"""Configuration: dataclasses whose fields carry help texts and bounds, filled from YAML and from flags.

Every package keeps its own configuration classes beside the code that they configure. They derive from `Options`, and
their fields are made by `option`. Nested classes become dotted flags such as `--rl.ppo.learning_rate`. An error is one
line, `field: expected X, got Y; do Z`.
"""

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import json
import numbers
import operator
import types
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from shfcas.utils.errors import UsageError
from shfcas.utils.files import read_text

Config = TypeVar("Config")
type_hints: Callable[[Any], dict[str, Any]] = functools.cache(typing.get_type_hints)


_BOUNDS = {
    "ge": ("at least", operator.ge),
    "gt": ("above", operator.gt),
    "le": ("at most", operator.le),
    "lt": ("below", operator.lt),
}


def option(
    default: Any,
    help: str,
    choices: Collection[str] = (),
    volatile: bool = False,
    common: bool = False,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    remedy: str = "",
) -> Any:
    """Makes a field of an `Options` class.

    Args:
        default: the default; a callable is called for each new instance. An empty text means that a value is required.
        help: what the value is, with its unit and what none means.
        choices: the values that are allowed; for a list, those of its items.
        volatile: the field does not change a run's results, so it may differ when the run is resumed.
        common: most people set the field: `--help` and `shfcas init` show it first.
        ge: the least value; for a list, of its items. None passes where the field's type allows it, NaN never.
        gt: a bound that the value lies above.
        le: the greatest value.
        lt: a bound that the value lies below.
        remedy: what to do about a value outside the bounds.
    """
    metadata: dict[str, Any] = {"help": help}
    more = {"choices": choices, "volatile": volatile, "common": common, "remedy": remedy}
    metadata |= {key: value for key, value in more.items() if value}
    bounds = {"ge": ge, "gt": gt, "le": le, "lt": lt}
    metadata |= {key: limit for key, limit in bounds.items() if limit is not None}
    return _field(default, metadata)


def with_default(cls: type, name: str, default: Any) -> Any:
    """Makes the field `name` of another configuration class again, with another default."""
    return _field(default, cls.__dataclass_fields__[name].metadata)  # type: ignore[attr-defined]


def _field(default: Any, metadata: Mapping[str, Any]) -> Any:
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class Options:
    """A configuration class: values are checked when an instance is made.

    Raises:
        UsageError: a value lies outside its field's bounds or choices, or breaks a rule of `check`.
    """

    def __post_init__(self) -> None:
        check_fields(self)
        self.check()

    def check(self) -> None:
        """Checks rules that concern several fields, or more than a bound can say.

        Raises:
            UsageError: a rule is broken; the message starts with the name of a field.
        """


def unexpected(name: str, expected: str, got: object, remedy: str = "") -> UsageError:
    """The error about a field's value, in the form that all of them have."""
    return UsageError(f"{name}: expected {expected}, got {got!r}{f'; {remedy}' if remedy else ''}")


def check_fields(config: Any, where: str = "") -> None:
    """Checks the bounds and choices of all fields, also of nested configurations.

    Raises:
        UsageError: a value is not allowed; the message names the field with `where` before it.
    """
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{where}{field.name}"
        if dataclasses.is_dataclass(value):
            check_fields(value, f"{name}.")
        elif field.metadata.keys() & {"choices", *_BOUNDS}:
            if value is None and type(None) in _types(type_hints(type(config))[field.name]):
                continue
            for item in value if isinstance(value, list) else [value]:
                _check_value(item, field.metadata, name)


def _check_value(value: Any, metadata: Mapping[str, Any], name: str) -> None:
    choices, bounds = metadata.get("choices"), {key: metadata[key] for key in _BOUNDS if key in metadata}
    if choices and value not in tuple(choices):
        near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.4)
        raise unexpected(name, f"one of {', '.join(choices)}", value, f"did you mean {near[0]}?" if near else "")
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if bounds and not (number and all(_BOUNDS[key][1](value, limit) for key, limit in bounds.items())):
        expected = " and ".join(f"{_BOUNDS[key][0]} {limit}" for key, limit in bounds.items())
        raise unexpected(name, expected, value, metadata.get("remedy", ""))


def check_multiple(config: Any, whole: str, part: str) -> None:
    """Checks that the field `whole` is a multiple of the field `part`.

    Raises:
        UsageError: it is not.
    """
    size = getattr(config, part)
    if getattr(config, whole) % size:
        raise unexpected(whole, f"a multiple of {part} ({size})", getattr(config, whole), "change one of them")


def require(config: Any, where: str = "") -> None:
    """Checks that every required field, one whose default is an empty text, has a value.

    Raises:
        UsageError: values are missing; the message names all of them, with `where` before each.
    """
    missing = [f.name for f in dataclasses.fields(config) if f.default == "" and not getattr(config, f.name)]
    if missing:
        raise UsageError(f"missing: {', '.join(where + name for name in missing)}")


def _types(annotation: Any) -> tuple[Any, ...]:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return typing.get_args(annotation)
    return (annotation,)


def section_class(annotation: Any) -> Any:
    """The dataclass that a field holds, also when the field is optional; otherwise None."""
    return next((t for t in _types(annotation) if dataclasses.is_dataclass(t)), None)


def _convert(value: Any, annotation: Any, where: str) -> Any:
    """Checks a value against a field's type; text from a flag or from YAML becomes the number it spells."""
    allowed = _types(annotation)
    if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
        if type(None) in allowed:
            return None
    elif isinstance(value, bool) or (isinstance(value, str) and value.lower() in ("true", "false")):
        if bool in allowed:
            return value if isinstance(value, bool) else value.lower() == "true"
    else:
        for kind in (int, float):
            if kind in allowed and isinstance(value, int | float | str):
                try:
                    number = kind(value)
                except (ValueError, OverflowError):
                    continue
                if number == float(value):
                    return number
        if str in allowed and isinstance(value, str):
            return value
        origin = next((a for a in allowed if typing.get_origin(a) is list), None)
        if origin is not None:
            item = typing.get_args(origin)[0]
            if dataclasses.is_dataclass(item):
                return _sections(value, item, where)
            items = value.split(",") if isinstance(value, str) else value
            if isinstance(items, list):
                return [_convert(v, item, where) for v in items]
    names = " or ".join("none" if t is type(None) else getattr(t, "__name__", str(t)) for t in allowed)
    raise unexpected(where, names, value)


def _sections(value: Any, cls: Any, where: str) -> list[Any]:
    """Makes a list of sections; a flag spells it as YAML."""
    if isinstance(value, str):
        import yaml

        with contextlib.suppress(yaml.YAMLError):
            value = yaml.safe_load(value)
    keys = [field.name for field in dataclasses.fields(cls)]
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        remedy = f"write [{{{keys[0]}: ...}}]"
        raise unexpected(where, f"a list of sections with the keys {', '.join(keys)}", value, remedy)
    sections = [build(cls, item, f"{where}[{place}].") for place, item in enumerate(value)]
    for place, section in enumerate(sections):
        require(section, f"{where}[{place}].")
    return sections


def default_of(field: Any) -> Any:
    """The default of a field, or MISSING."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _over(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Merges nested values over nested base values."""
    merged = dict(base)
    for key, value in values.items():
        section = merged.get(key)
        merged[key] = _over(section, value) if isinstance(section, dict) and isinstance(value, dict) else value
    return merged


def build(cls: type[Config], values: dict[str, Any], where: str = "") -> Config:
    """Makes a configuration from nested dictionaries.

    Args:
        cls: the configuration class.
        values: values by key; text becomes the number that it spells.
        where: what errors put before the names of fields, such as `sampling.`.

    Raises:
        UsageError: a key is unknown (the message has the nearest known one), or a value is missing or not allowed.
    """
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    hints = type_hints(cls)
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{where}{key}"
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.5)
            hint = f"; did you mean {where}{near[0]}?" if near else f"; known keys: {', '.join(fields)}"
            raise UsageError(f"unknown key {name}{hint}")
        nested, choices = section_class(hints[key]), fields[key].metadata.get("choices", ())
        if nested is not None and value is None and type(None) not in _types(hints[key]):
            value = {}  # a section whose keys are all commented out
        if nested is not None and isinstance(value, dict):
            default = default_of(fields[key])  # a section keeps its owner's defaults for what it leaves out
            base = to_dict(default) if dataclasses.is_dataclass(default) else {}
            arguments[key] = build(nested, _over(base, value), f"{name}.")
        elif nested is not None and value is not None:
            raise unexpected(name, "a section with keys of its own", value)
        elif isinstance(value, str) and (value in choices or value == fields[key].default):
            arguments[key] = value  # unconverted: a choice, or a default, may be called none
        else:
            arguments[key] = _convert(value, hints[key], name) if nested is None else None
    missing = [
        f"{where}{name}"
        for name, f in fields.items()
        if name not in arguments and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UsageError(f"missing: {', '.join(missing)}")
    try:
        return cls(**arguments)
    except UsageError as error:
        raise UsageError(f"{where}{error}") from error


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads a YAML mapping (safe loader); an empty file is an empty one.

    Raises:
        UsageError: the file is not valid YAML, or no mapping.
    """
    import yaml

    try:
        values = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise unexpected(str(path), "a mapping of configuration keys", type(values).__name__)
    return values


def to_dict(config: Any) -> dict[str, Any]:
    """Returns the nested dictionary of a configuration, as YAML and JSON write it."""
    return dataclasses.asdict(config)


def shared(config: Any, cls: type) -> dict[str, Any]:
    """Returns the values of the fields that a configuration has in common with another class."""
    names = {field.name for field in dataclasses.fields(cls) if field.init}
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name in names}


def lasting(config: Any) -> dict[str, Any]:
    """Returns the same without volatile fields: what results depend on."""
    values = to_dict(config)
    for name in volatile_names(type(config)):
        *sections, key = name.split(".")
        section: Any = values
        for part in sections:
            section = (section or {}).get(part)
        if section:
            del section[key]
    return values


def fingerprint(value: Any) -> str:
    """Returns a short stable hash of a configuration, or of anything that JSON can write."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(
    old: dict[str, Any], new: dict[str, Any], where: str = "", skip: Collection[str] = frozenset()
) -> list[str]:
    """Lists the fields in which two configurations differ, as `key: old -> new`, without the dotted names in `skip`."""
    found = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{where}{key}.", skip)
        elif a != b and f"{where}{key}" not in skip:
            found.append(f"{where}{key}: {a!r} -> {b!r}")
    return found


def volatile_names(cls: type) -> set[str]:
    """Returns the dotted names of the fields that may differ when a run is resumed."""
    return {name for name, field in dotted_fields(cls).items() if field.metadata.get("volatile")}


def dotted_fields(cls: type, prefix: str = "") -> dict[str, Any]:
    """Returns all fields that hold a value, by their dotted names."""
    hints = type_hints(cls)
    names: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        nested = section_class(hints[field.name])
        names |= dotted_fields(nested, f"{prefix}{field.name}.") if nested else {f"{prefix}{field.name}": field}
    return names
