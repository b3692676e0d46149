"""Reference pages that the code writes about itself: `python -m docs._make.reference`, or `make reference`.

Writes docs/commands.md from the help pages, docs/configuration.md and docs/schema/*.json from the configurations, and
the tables of docs/api.md from the docstrings, and docs/llms.txt from the navigation. All are committed, so that
they can be read without building the site.
"""

import importlib
import inspect
import json
import os
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from shfcas.cli import COMMANDS, GROUPS, command_module
from shfcas.cli._parser import CommandParser, flat_keys, page
from shfcas.cli.schema import Config as SchemaConfig
from shfcas.cli.schema import run as schema
from shfcas.cli.schema import text as schema_text
from shfcas.compare.config import CompareConfig
from shfcas.pipeline.config import RunConfig
from shfcas.utils.flags import Key, keys_of

DOCS = Path(__file__).parents[1]
IN_CONFIGURATION = ("run", "compare")  # commands whose keys have tables of their own
LISTED = re.compile(r"(?:\| name \| purpose \|\n(?:\|[^\n]*\n)+\n)?<!-- reference\n(.*?)-->\n", re.DOTALL)


def files() -> dict[Path, str]:
    """Returns the text of every generated file."""
    from docs._make.llms import llms  # not above: mkdocs imports this file from beside its hook

    schemas = {DOCS / "schema" / f"{name}.json": f"{json_schema(name)}\n" for name in IN_CONFIGURATION}
    return {
        DOCS / "commands.md": commands(),
        DOCS / "configuration.md": configuration(),
        DOCS / "api.md": api((DOCS / "api.md").read_text(encoding="utf-8")),
        DOCS / "llms.txt": llms(),
        **schemas,
    }


def main() -> None:
    """Writes all files."""
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


def json_schema(command: str) -> str:
    """Returns what `shfcas schema COMMAND` prints."""
    return schema_text(schema(SchemaConfig([command])))


# Commands


def commands() -> str:
    """Returns one section per command: its description, and its keys as `--help all` prints them."""
    parts = [_part("commands.md")]
    for title, names in GROUPS.items():
        parts.append(f"## {title}\n")
        for name in names:
            description, keys = _help_of(name)
            more = "\nEvery key is in [Configuration](configuration.md).\n" if name in IN_CONFIGURATION else ""
            block = f"\n```text\n{keys}\n```\n" if keys else ""
            parts.append(f"### {name}\n\n{description}\n{more}{block}")
    return "\n".join(parts)


def _help_of(command: str) -> tuple[str, str]:
    """The description of a command, and its keys, as on a terminal of 100 columns."""
    parser = CommandParser(command, command_module(command))
    with mock.patch.dict(os.environ, COLUMNS="100"):
        description = parser.about
        text = page(parser, None if command in IN_CONFIGURATION else "all")
    keys, _, _ = text.partition(f"{description}\n\n")[2].partition("Every command")
    return description, keys.rstrip()


# Configuration


def configuration() -> str:
    """Returns one table per section of a run's YAML file, and one of what `shfcas compare` adds."""
    tables = "\n".join(_section(RunConfig(), "", "The top level"))
    return f"{_part('configuration.md')}{tables}\n\n{_compare()}\n"


def _section(config: Any, prefix: str, title: str) -> list[str]:
    """The table of one section, then the tables of the sections in it."""
    rows, below = ["| key | type | default | meaning |", "|---|---|---|---|"], []
    for key in keys_of(config):
        if key.section is None:
            rows.append(_row(key.name, key))
            continue
        path = f"{prefix}{key.name}"
        kind = "section, off unless given" if key.value is None else "section"
        rows.append(f"| `{key.name}` | {kind} | [below](#{path.replace('.', '')}) | {_cell(key.help)} |")
        below += _section(key.inside, f"{path}.", f"`{path}`")
    purpose = (type(config).__doc__ or "").strip().splitlines()[0]
    return [f"\n## {title}\n\n{purpose}\n", *rows, *below]


def _compare() -> str:
    run = flat_keys(RunConfig())
    differ = {
        name: key
        for name, key in flat_keys(CompareConfig()).items()
        if name not in run or (key.help, key.value) != (run[name].help, run[name].value)
    }
    about = "## Keys of `shfcas compare`\n\nA comparison has all keys above, and those of this table."
    head = "| key | type | default | meaning |\n|---|---|---|---|"
    return "\n".join([about, "", head, *(_row(name, key) for name, key in differ.items())])


def _row(name: str, key: Key) -> str:
    choices = f" ({', '.join(key.choices)})" if key.choices else ""
    return f"| `{name}` | {_type(key.annotation)} | {default(key.value)} | {_cell(key.help + choices)} |"


def _type(annotation: Any) -> str:
    if typing.get_origin(annotation) is list:
        return f"list of {typing.get_args(annotation)[0].__name__}"
    if alternatives := typing.get_args(annotation):
        return " or ".join(_type(alternative) for alternative in alternatives)
    return "none" if annotation is type(None) else annotation.__name__


def default(value: Any) -> str:
    """Formats a default as YAML and JSON write it; nothing for a required key."""
    return "" if value == "" else f"`{json.dumps(value, ensure_ascii=False)}`"


# API


def api(text: str) -> str:
    """Returns a page with a table above each list of names for mkdocstrings, which is a comment."""
    return LISTED.sub(lambda found: f"{_names(found[1])}\n<!-- reference\n{found[1]}-->\n", text)


def _names(listed: str) -> str:
    names = re.findall(r"^::: (\S+)", listed, re.MULTILINE)
    return "\n".join(["| name | purpose |", "|---|---|", *(_described(name) for name in names)]) + "\n"


def _described(name: str) -> str:
    """A function with its arguments, or a class, and the first line of its docstring."""
    module, _, attribute = name.rpartition(".")
    found = getattr(importlib.import_module(module), attribute)
    arguments = f"({', '.join(_arguments(found))})" if inspect.isfunction(found) else ""
    summary = (inspect.getdoc(found) or "").partition("\n")[0]
    return f"| `{name}{arguments}` | {_cell(summary)} |"


def _arguments(function: Any) -> Iterator[str]:
    keyword_only = False
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            yield "*"
        yield {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "") + name
        keyword_only |= parameter.kind is parameter.VAR_POSITIONAL


def _cell(text: str) -> str:
    return re.sub(r":\w+:(?=`)", "", text).replace("|", "\\|")


def _part(name: str) -> str:
    """The part of a page that people write."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


if __name__ == "__main__":
    assert {*IN_CONFIGURATION} <= {*COMMANDS}
    main()
