"""Command-line flags of configuration classes, and their keys as help texts and templates show them."""

import argparse
import dataclasses
from typing import Any

from shfcas.utils.config import Config, build, default_of, dotted_fields, read_yaml, section_class, type_hints


def add_flags(
    parser: argparse.ArgumentParser,
    cls: type,
    *,
    prefix: str = "",
    skip: tuple[str, ...] = (),
    owner: Any = None,
    group: Any = None,
) -> None:
    """Adds one flag for each field of a configuration class, with its help text and its default in `owner`.

    Each nested section is a group of its own in the help.
    """
    hints = type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name in skip:
            continue
        default = default_of(field) if owner is None else getattr(owner, field.name)
        nested = section_class(hints[field.name])
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


def details(field: Any, value: Any, choices: bool = True) -> str:
    """Returns what follows a key's help text: its choices, if asked for, then its default as a flag spells it."""
    allowed = field.metadata.get("choices") if choices else None
    text = f" ({', '.join(allowed)})" if allowed else ""
    if value == "":
        return f"{text} (required)"
    if value is dataclasses.MISSING or value == []:
        return text
    if isinstance(value, list):
        return f"{text} [{','.join(map(str, value))}]"
    return f"{text} [{str(value).lower() if value is None or isinstance(value, bool) else value}]"


def from_flags(cls: type[Config], arguments: argparse.Namespace, yaml_path: str | None = None) -> Config:
    """Makes a configuration from a YAML file and flags; flags win.

    Raises:
        UsageError: see `read_yaml` and `build`.
    """
    values = read_yaml(yaml_path) if yaml_path else {}
    known = dotted_fields(cls)
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


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a configuration: its field, the type and value of the field, and the class of a section."""

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
        return tuple(self.field.metadata.get("choices", ()))

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
    """Lists the keys of a configuration in the order of its fields."""
    hints = type_hints(type(config))
    return [
        Key(field, hints[field.name], getattr(config, field.name), section_class(hints[field.name]))
        for field in dataclasses.fields(config)
    ]
