"""Reference pages that the code writes: current, complete, and readable without building the site."""

import re
from pathlib import Path

import pytest

from docs._make import reference
from shfcas.cli import COMMANDS, command_module
from shfcas.cli._parser import flat_keys
from shfcas.compare.config import CompareConfig
from shfcas.pipeline.config import RunConfig

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_committed_files_are_current() -> None:
    old = [path.name for path, text in reference.files().items() if path.read_text(encoding="utf-8") != text]
    assert not old, "run: make reference"


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in reference.IN_CONFIGURATION])
def test_every_key_of_a_command_is_in_its_section(command: str) -> None:
    section = (reference.DOCS / "commands.md").read_text(encoding="utf-8").partition(f"### {command}\n")[2]
    section = section.partition("\n### ")[0]
    module = command_module(command)
    positional = {getattr(module, "POSITIONAL", ""), getattr(module, "INPUTS", "")}
    assert all(f"  --{name}" in section for name in flat_keys(module.Config()) if name not in positional)


def documented() -> set[str]:
    """Dotted names of all keys in docs/configuration.md."""
    names, prefix = set(), ""
    for line in (reference.DOCS / "configuration.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            prefix = f"{line[4:-1]}." if line.startswith("## `") else ""
        elif line.startswith("| `"):
            names.add(prefix + line.split("`")[1])
    return names


def test_every_key_of_a_run_and_of_a_comparison_has_a_row() -> None:
    assert {*flat_keys(RunConfig()), *flat_keys(CompareConfig())} <= documented()


def test_every_name_of_the_api_has_a_row() -> None:
    text = (reference.DOCS / "api.md").read_text(encoding="utf-8")
    names = re.findall(r"^::: (\S+)", text, re.MULTILINE)
    assert len(names) == len({*names}) > 100
    assert all(re.search(rf"^\| `{re.escape(name)}[`(]", text, re.MULTILINE) for name in names)
    visible = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    assert ":::" not in visible


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_of_a_plain_checkout(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(([^)\s]+)", text)
    paths = [link.partition("#")[0] for link in links if not re.match(r"\w+:", link)]
    assert not [path for path in paths if path and not (page.parent / path).exists()]
