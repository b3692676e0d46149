"""Configuration: dataclasses whose fields carry their own help, filled from YAML and from flags.

Every room keeps its own dataclass beside the code that it configures. A field's help text is
`field(metadata={"help": ...})`; nested dataclasses become dotted flags such as `--rl.ppo.learning_rate`.
"""

import argparse
import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

from shfcas.utils.errors import UsageError
from shfcas.utils.files import read_text

Config = TypeVar("Config")


def option(default: Any, help: str, choices: tuple[str, ...] = (), volatile: bool = False, common: bool = False) -> Any:
    """A dataclass field with a help text; a callable default is called for each new instance.

    A volatile field does not change what a run comes to, so it may differ when the run is continued. A common field
    is one that most people set: `--help` and `shfcas init` show it first.
    """
    metadata: dict[str, Any] = {"help": help} | ({"choices": choices} if choices else {})
    if volatile:
        metadata["volatile"] = True
    if common:
        metadata["common"] = True
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _types(annotation: Any) -> tuple[Any, ...]:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return typing.get_args(annotation)
    return (annotation,)


def _nested(annotation: Any) -> Any:
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
            items = value.split(",") if isinstance(value, str) else value
            if isinstance(items, list):
                return [_convert(v, item, where) for v in items]
    names = " or ".join("none" if t is type(None) else getattr(t, "__name__", str(t)) for t in allowed)
    raise UsageError(f"{where}: expected {names}, got {value!r}")


def _default(field: Any) -> Any:
    """The value of a field that nothing is said about; MISSING where something has to be."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _over(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Nested values over nested base values."""
    merged = dict(base)
    for key, value in values.items():
        section = merged.get(key)
        merged[key] = _over(section, value) if isinstance(section, dict) and isinstance(value, dict) else value
    return merged


def build(cls: type[Config], values: dict[str, Any], where: str = "") -> Config:
    """Makes a config dataclass from nested dictionaries; an unknown key names the nearest known one."""
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{where}{key}"
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.5)
            hint = f"; did you mean {where}{near[0]}?" if near else f"; known keys: {', '.join(fields)}"
            raise UsageError(f"unknown key {name}{hint}")
        nested = _nested(hints[key])
        choices = fields[key].metadata.get("choices")
        if nested is not None and value is None and type(None) not in _types(hints[key]):
            value = {}  # a section whose keys are all commented out
        if nested is not None and isinstance(value, dict):
            default = _default(fields[key])  # a section keeps its owner's defaults for what it leaves out
            base = to_dict(default) if dataclasses.is_dataclass(default) else {}
            arguments[key] = build(nested, _over(base, value), f"{name}.")
        elif nested is not None and value is not None:
            raise UsageError(f"{name}: expected a section with keys of its own, got {value!r}")
        elif (choices and value in choices) or (isinstance(value, str) and value == fields[key].default):
            arguments[key] = value  # as it stands: a choice, or a default, may be called none
        else:
            arguments[key] = _convert(value, hints[key], name) if nested is None else None
        if choices and arguments[key] not in choices:
            near = difflib.get_close_matches(str(arguments[key]), choices, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"{name}: unknown choice {arguments[key]!r}, one of {', '.join(choices)}{hint}")
    missing = [
        f"{where}{name}"
        for name, f in fields.items()
        if name not in arguments and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UsageError(f"missing: {', '.join(missing)}")
    return cls(**arguments)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads a YAML mapping (safe loader)."""
    import yaml

    try:
        values = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{path}: expected a mapping of configuration keys")
    return values


def to_dict(config: Any) -> dict[str, Any]:
    """The nested dictionary of a config dataclass, as YAML and JSON write it."""
    return dataclasses.asdict(config)


def lasting(config: Any) -> dict[str, Any]:
    """The same without the volatile fields: all that a result depends on."""
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
    """A short stable hash of a configuration (or of anything that JSON can write)."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(
    old: dict[str, Any], new: dict[str, Any], where: str = "", skip: Collection[str] = frozenset()
) -> list[str]:
    """The fields in which two configurations differ, but for the dotted names in `skip`, as `key: old -> new`."""
    found = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{where}{key}.", skip)
        elif a != b and f"{where}{key}" not in skip:
            found.append(f"{where}{key}: {a!r} -> {b!r}")
    return found


def add_flags(
    parser: argparse.ArgumentParser,
    cls: type,
    *,
    prefix: str = "",
    skip: tuple[str, ...] = (),
    owner: Any = None,
    group: Any = None,
) -> None:
    """Adds one flag for each field of a config dataclass, with its help text and its default in `owner`.

    Each nested section is a group of its own in the help.
    """
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name in skip:
            continue
        default = _default(field) if owner is None else getattr(owner, field.name)
        nested = _nested(hints[field.name])
        if nested is not None:
            section = default if dataclasses.is_dataclass(default) else None
            name = f"{prefix}{field.name}"
            titled = parser.add_argument_group(name, field.metadata.get("help", "").replace("%", "%%"))
            add_flags(parser, nested, prefix=f"{name}.", owner=section, group=titled)
            continue
        help_text = field.metadata.get("help", "") + details(field, default)
        flags = [f"--{prefix}{field.name}"]
        if "_" in flags[0]:
            flags.append(flags[0].replace("_", "-"))
        alone: dict[str, Any] = {"nargs": "?", "const": "true"} if hints[field.name] is bool else {}  # --flag is true
        (group or parser).add_argument(
            *flags,
            dest=f"{prefix}{field.name}",
            default=argparse.SUPPRESS,
            metavar="VALUE",
            **alone,
            help=help_text.replace("%", "%%"),
        )


def details(field: Any, value: Any) -> str:
    """What follows a key's help text: its choices, then its default as a flag spells it."""
    choices = field.metadata.get("choices")
    text = f" ({', '.join(choices)})" if choices else ""
    if value == "":
        return f"{text} (required)"
    if value is dataclasses.MISSING or value == []:
        return text
    if isinstance(value, list):
        return f"{text} [{','.join(map(str, value))}]"
    return f"{text} [{str(value).lower() if value is None or isinstance(value, bool) else value}]"


def from_flags(cls: type[Config], arguments: argparse.Namespace, yaml_path: str | None = None) -> Config:
    """YAML sets the values, flags win over it."""
    values = read_yaml(yaml_path) if yaml_path else {}
    known = _dotted(cls)
    for name, value in vars(arguments).items():
        if name not in known:
            continue
        *sections, key = name.split(".")
        target = values
        for section in sections:
            if not isinstance(target.get(section), dict):
                target[section] = {}
            target = target[section]
        target[key] = value
    return build(cls, values)


def volatile_names(cls: type) -> set[str]:
    """The dotted names of the fields that may differ when a run is continued."""
    return {name for name, field in _dotted(cls).items() if field.metadata.get("volatile")}


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a configuration: its field, the type and value of the field, and the dataclass of a section."""

    field: Any
    annotation: Any
    value: Any
    section: type | None

    @property
    def name(self) -> str:
        """Name of the field."""
        return self.field.name

    @property
    def help(self) -> str:
        """Help text."""
        return self.field.metadata.get("help", "")

    @property
    def choices(self) -> tuple[str, ...]:
        """Allowed values; empty where any value of the type is allowed."""
        return self.field.metadata.get("choices", ())

    @property
    def common(self) -> bool:
        """Whether most people set the key."""
        return bool(self.field.metadata.get("common"))

    @property
    def inside(self) -> Any:
        """Instance of the section, also of one that is off."""
        assert self.section is not None
        return self.section() if self.value is None else self.value


def keys_of(config: Any) -> list[Key]:
    """Lists the keys of a config instance in the order of its fields."""
    hints = typing.get_type_hints(type(config))
    return [
        Key(field, hints[field.name], getattr(config, field.name), _nested(hints[field.name]))
        for field in dataclasses.fields(config)
    ]


def _dotted(cls: type, prefix: str = "") -> dict[str, Any]:
    """All fields that hold a value, by their dotted names."""
    hints = typing.get_type_hints(cls)
    names: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        nested = _nested(hints[field.name])
        names |= _dotted(nested, f"{prefix}{field.name}.") if nested else {f"{prefix}{field.name}": field}
    return names
