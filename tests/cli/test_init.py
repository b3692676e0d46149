"""Configuration files to start from: they parse, they say what the help says, and they lead to the next command."""

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from shfcas.cli import main
from shfcas.cli._parser import flat_keys
from shfcas.cli._template import placeholders, template
from shfcas.cli.init import MODELS, STARTS
from shfcas.pipeline.config import RunConfig
from shfcas.utils.config import build, option
from shfcas.utils.flags import keys_of

RUNS = [name for name, start in STARTS.items() if start.config is RunConfig]
both = pytest.mark.parametrize("full", [False, True], ids=["short", "full"])
every = pytest.mark.parametrize("name", STARTS)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(name: str, full: bool) -> str:
    assert main(["init", name, "--output", "c.yaml", *(["--full"] if full else [])]) == 0
    return Path("c.yaml").read_text(encoding="utf-8")


@every
@both
def test_a_file_parses_to_the_defaults_and_the_values_of_its_start(name: str, full: bool) -> None:
    start = STARTS[name]
    assert build(start.config, yaml.safe_load(written(name, full))) == build(start.config, start.values)


def test_a_full_file_without_placeholders_is_the_default_configuration() -> None:
    values = yaml.safe_load(written("gold", full=True))
    assert values.keys() == {f.name for f in dataclasses.fields(RunConfig)} - {"bootstrap", "sft", "proxy"}
    assert build(RunConfig, {key: value for key, value in values.items() if key not in MODELS}) == RunConfig()


def test_a_section_that_is_off_is_turned_on_by_removing_its_marks() -> None:
    lines = written("gold", full=True).splitlines()
    on = [line[1:] if line.startswith("#") and (line[1] != " " or line[2] == " ") else line for line in lines]
    values = yaml.safe_load("\n".join(on))
    off = {key.name: key for key in keys_of(RunConfig()) if key.section and key.value is None}
    assert set(off) == {"bootstrap", "sft", "proxy"}
    assert all(build(key.section, values[name]) == key.section() for name, key in off.items())


@every
def test_a_short_file_has_the_common_keys_each_with_its_help(name: str) -> None:
    start, text = STARTS[name], written(name, full=False)
    config = build(start.config, start.values)
    common = flat_keys(config, common=True)
    assert text.count("\n") <= 75
    for key in common.values():
        assert key.help.split()[0] in text and f"{key.name}: " in text
    comments = " ".join(line.strip("# ") for line in text.splitlines() if line.strip().startswith("#"))
    assert all(key.help in comments for key in common.values())


@pytest.mark.parametrize("name", ["annotators", "judge"])
def test_gold_is_explained_where_it_does_not_label(name: str) -> None:
    text = written(name, full=False)
    assert "# For the evaluation only: " in text.partition("\n#gold: <GOLD>\n")[0]
    assert "gold" not in placeholders(STARTS[name].values)
    assert f"\n{STARTS[name].sections[0]}:\n" in text


def test_the_next_steps_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "wrote: config.yaml",
        "edit: policy, reward_model, gold, prompts, eval_prompts",
        "next: shfcas run config.yaml",
    ]
    assert main(["init", "judge", "--output", "j.yaml", "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)
    assert steps["output"] == "j.yaml" and "judge.model" in steps["edit"] and steps["next"][-1] == "shfcas run j.yaml"


def test_a_file_is_not_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    Path("config.yaml").write_text("seed: 7\n")
    assert main(["init"]) == 1
    assert "config.yaml exists already; name another file with --output" in capsys.readouterr().err
    assert Path("config.yaml").read_text() == "seed: 7\n"


def test_an_unknown_start_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "anotators"]) == 2
    assert "got anotators; did you mean annotators?" in capsys.readouterr().err
    assert not list(Path().iterdir())


@pytest.mark.parametrize("name", RUNS)
def test_a_run_with_placeholders_is_refused_by_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    written(name, full=False)
    capsys.readouterr()
    assert main(["run", "c.yaml"]) == 2
    edit = ", ".join(placeholders(STARTS[name].values))
    assert f"shfcas run: {edit}: expected values of your own, got placeholders" in capsys.readouterr().err


def test_scores_lead_to_a_queue(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "scores"]) == 0
    _, score, select = capsys.readouterr().out.splitlines()
    rows = [{"prompt_id": str(i), "rewards": [1.0, 0.2, i], "logprobs": [-4.0, -2.0, -1.0]} for i in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), "answers.parquet")
    for line in (score, select):
        command = line.removeprefix("next: shfcas ").partition("  #")[0].replace("<ANSWERS.parquet>", "answers.parquet")
        assert main(command.split()) == 0
    assert Path("queue.jsonl").read_text()


@dataclasses.dataclass
class Inner:
    text: str = option("a: b # c", "text that YAML would read as something else")
    number: float = option(1e-5, "a small number")
    names: list[str] = option(lambda: ["1", "yes", "ünï"], "texts that look like other types")


@dataclasses.dataclass
class Outer:
    long: str = option("", "word " * 40 + "end")
    inner: Inner = option(Inner, "a section")
    off: Inner | None = option(None, "a section that is off")
    last: int = option(1, "a number", choices=())


def test_values_survive_and_long_comments_wrap() -> None:
    text = template(Outer(), notes={"last": "a note"})
    assert build(Outer, yaml.safe_load(text)) == Outer()
    assert max(map(len, text.splitlines())) <= 110
    assert "\n# a number\n# a note\nlast: 1\n" in text
    assert "\n#off:\n#  # text that YAML" in text


def test_chosen_keys_alone_are_written() -> None:
    assert template(Outer(), {"inner.number"}) == "# a section\ninner:\n  # a small number\n  number: 1.0e-05\n"
