"""JSON Schemas of configurations: what editors accept is what the commands accept."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from shfcas.cli import COMMANDS, main
from shfcas.cli.init import STARTS
from shfcas.compare.config import CompareConfig
from shfcas.pipeline.config import RunConfig
from shfcas.utils.config import to_dict

ROOT = Path(__file__).parents[2]
FILES = [*ROOT.glob("configs/*.yaml"), ROOT / "experiments" / "ppo.yaml", ROOT / "shfcas" / "demo" / "demo.yaml"]


class Yaml12(yaml.SafeLoader):
    """YAML 1.2 as editors read it: 5e-4 is a number, which PyYAML reads as text."""


Yaml12.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)[eE][-+]?\d+$"), list("-+.0123456789")
)


def schema(command: str) -> dict[str, Any]:
    return json.loads((ROOT / "docs" / "schema" / f"{command}.json").read_text(encoding="utf-8"))


def errors(command: str, values: Any) -> list[str]:
    found = jsonschema.Draft202012Validator(schema(command)).iter_errors(values)
    return [f"{error.json_path}: {error.message}" for error in found]


@pytest.mark.parametrize("command", ["run", "compare"])
def test_the_command_prints_the_committed_schema(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", command]) == 0
    assert capsys.readouterr().out == (ROOT / "docs" / "schema" / f"{command}.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_valid_schema(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", command, "--json"]) == 0
    jsonschema.Draft202012Validator.check_schema(json.loads(capsys.readouterr().out))


def test_the_schema_of_a_run_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "shfcas run"
    assert main(["schema", "rnu"]) == 2
    assert "got rnu; did you mean run?" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "config"), [("run", RunConfig()), ("compare", CompareConfig())])
def test_the_defaults_are_valid(command: str, config: Any) -> None:
    assert not errors(command, to_dict(config))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_examples_are_valid(path: Path) -> None:
    values = yaml.load(path.read_text(encoding="utf-8"), Yaml12)
    command = "compare" if "strategies" in values else "run"
    assert not errors(command, values)
    assert errors(command, values | {"sede": 1}) == ["$: Additional properties are not allowed ('sede' was unexpected)"]


@pytest.mark.parametrize("full", [False, True], ids=["short", "full"])
@pytest.mark.parametrize("name", [name for name, start in STARTS.items() if start.config is RunConfig])
def test_the_files_of_init_are_valid(name: str, full: bool) -> None:
    assert not errors("run", yaml.load(STARTS[name].text(full), Yaml12))


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"sampling": {"temprature": 1}}, "$.sampling: Additional properties"),
        ({"feedback": "people"}, "$.feedback: 'people' is not one of ['gold', 'human', 'judge', 'none']"),
        ({"seed": "many"}, "$.seed: 'many' is not of type 'integer'"),
        ({"seed": None}, "$.seed: None is not of type 'integer'"),
        ({"sampling": 8}, "$.sampling: 8 is not of type 'object', 'null'"),
        ({"rl": {"ppo": {"lora": {"r": 1.5}}}}, "$.rl.ppo.lora.r: 1.5 is not of type 'integer'"),
    ],
)
def test_mistakes_are_found(values: dict, error: str) -> None:
    (found,) = errors("run", values)
    assert found.startswith(error)


@pytest.mark.parametrize(
    "values",
    [
        {"sampling": None},
        {"sft": None, "preflight": None},
        {"selection": {"kendall_threshold": 0.5}},
        {"selection": {"kendall_threshold": "auto"}},
        {"rl": {"ppo": {"stop_token_ids": [1, 2], "report_to": None}}},
    ],
)
def test_what_a_run_understands_is_valid(values: dict) -> None:
    assert not errors("run", values)
