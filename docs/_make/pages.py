"""The pages that are written by the code they describe; a mkdocs hook.

`commands.md` comes from the `--help` of each command, `configuration.md` from the fields of `RunConfig`, and the
options in `training.md` from those of PPO.
"""

import contextlib
import dataclasses
import io
import json
import os
import typing
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from shfcas.cli import COMMANDS, main
from shfcas.pipeline.config import RunConfig
from shfcas.training.ppo.options import PPOBaseConfig
from shfcas.training.ppo.train import PPOStageConfig


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages to the site."""
    for name, page in {"commands.md": commands, "configuration.md": configuration}.items():
        files.append(File.generated(config, name, content=page()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts the table of PPO's options where the page about training asks for it."""
    return markdown.replace("<!-- options of PPO -->", ppo_options())


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings name functions in Sphinx's way; mkdocstrings leaves the role standing."""
    return html.replace(":func:<code>", "<code>")


# Commands


def commands() -> str:
    """One section a command: what it does, and its options as `--help` prints them."""
    parts = [_part("commands.md")]
    for name in COMMANDS:
        description, options = split_help(help_of(name))
        parts.append(f"## {name}\n\n{description}\n\n```text\n{options}\n```\n")
    return "\n".join(parts)


def help_of(command: str) -> str:
    """What `shfcas COMMAND --help` prints."""
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        with contextlib.redirect_stdout(io.StringIO()) as output:
            main([command, "--help"])
    finally:
        if columns is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = columns
    return output.getvalue()


def split_help(text: str) -> tuple[str, str]:
    """The description, and the options; the line of usage repeats the options and is left out."""
    description, _, options = text.partition("\n\n")[2].partition("\n\npositional arguments:\n")
    if options:
        return description, f"positional arguments:\n{options}".rstrip()
    description, _, options = description.partition("\n\noptions:\n")
    return description, f"options:\n{options}".rstrip()


# Configuration


def configuration() -> str:
    """One table a section of the YAML file: key, type, default, meaning."""
    return _part("configuration.md") + "\n".join(_section(RunConfig(), "", "The top level"))


def _section(instance: Any, prefix: str, title: str) -> list[str]:
    """The table of one dataclass, then the tables of the sections in it."""
    hints = typing.get_type_hints(type(instance))
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    below: list[str] = []
    for field in dataclasses.fields(instance):
        value, meaning = getattr(instance, field.name), field.metadata.get("help", "")
        section = next((t for t in _alternatives(hints[field.name]) if dataclasses.is_dataclass(t)), None)
        if section is None:
            choices = field.metadata.get("choices")
            meaning += f" ({', '.join(choices)})" if choices else ""
            rows.append(f"| `{field.name}` | {_type_name(hints[field.name])} | {_default(value)} | {_cell(meaning)} |")
            continue
        path = f"{prefix}{field.name}"
        kind = "section, off unless given" if value is None else "section"
        rows.append(f"| `{field.name}` | {kind} | [below](#{path.replace('.', '')}) | {_cell(meaning)} |")
        below += _section(section() if value is None else value, f"{path}.", f"`{path}`")
    anchor = prefix.replace(".", "") or "top"
    purpose = (type(instance).__doc__ or "").strip().splitlines()[0]
    return [f"\n## {title} {{ #{anchor} }}\n\n{purpose}\n", *rows, *below]


def ppo_options() -> str:
    """One row an option of PPO: its default, that of a run where it is another one, and what it means."""
    rows = ["| option | default | in a run | meaning |", "|---|---|---|---|"]
    trainer, run = PPOBaseConfig(), PPOStageConfig()
    for field in dataclasses.fields(PPOBaseConfig):
        values = [getattr(trainer, field.name), getattr(run, field.name)]
        other = _default(values[1]) if values[0] != values[1] else ""
        rows.append(f"| `{field.name}` | {_default(values[0])} | {other} | {_cell(field.metadata['help'])} |")
    return "\n".join(rows)


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) or (annotation,)


def _type_name(annotation: Any) -> str:
    if typing.get_origin(annotation) is list:
        return f"list of {typing.get_args(annotation)[0].__name__}"
    names = ["none" if t is type(None) else t.__name__ for t in _alternatives(annotation)]
    return " or ".join(names)


def _default(value: Any) -> str:
    return "" if value == "" else f"`{json.dumps(value)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _part(name: str) -> str:
    """The part of a page that people write."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
