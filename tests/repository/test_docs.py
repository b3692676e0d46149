"""What the documentation says is tried: its Python, its YAML and its commands, on tiny models."""

import contextlib
import doctest
import importlib
import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from docs._make import loop
from shfcas.cli import COMMANDS, main
from shfcas.compare.config import CompareConfig
from shfcas.pipeline.config import RunConfig
from shfcas.selection import STRATEGIES
from shfcas.utils.config import build
from tests.support import tiny

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

# Small enough for a test; a flag that stands later wins.
SMALL = {
    "sample": "--sampling.num_completions 4 --sampling.max_new_tokens 6",
    "train-reward": "--num_train_epochs 1",
    "ppo": "--num_rollouts 1 --rollout_batch_size 8 --mini_batch_size 8 --num_ppo_epochs 1 "
    "--max_prompt_length 64 --max_completion_length 6",
    "evaluate": "--evaluation.sampling.num_completions 2 --evaluation.sampling.max_new_tokens 6",
}
REWARD = SMALL["train-reward"].replace("--", "--reward.")
PPO = SMALL["ppo"].replace("--", "--rl.ppo.")
SMALL["run"] = f"--rounds 1 {SMALL['sample']} {REWARD} {PPO} {SMALL['evaluate']}"


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def pages_with(language: str) -> pytest.MarkDecorator:
    pages = [page for page in PAGES if blocks(page, language)]
    return pytest.mark.parametrize("page", pages, ids=[str(page.relative_to(ROOT)) for page in pages])


def commands(page: Path) -> list[list[str]]:
    """The arguments of every `shfcas ...` line in a page's shell blocks."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("shfcas ")]


@pytest.fixture
def folder(tiny_models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the pages take for granted: a policy, a reward model, prompts and a judge, in the current folder."""
    shutil.copytree(tiny_models["policy"], tmp_path / "my-policy")
    shutil.copytree(tiny_models["reward_model"], tmp_path / "my-reward-model")
    for name, rows in (("prompts", tiny.prompts(8)), ("eval-prompts", tiny.held_out_prompts(8))):
        lines = [json.dumps(row) + "\n" for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    (judge,) = [block for block in blocks(ROOT / "docs" / "quickstart.md", "python") if "def gold" in block]
    (tmp_path / "judge.py").write_text(judge, encoding="utf-8")
    (config,) = blocks(ROOT / "docs" / "quickstart.md", "yaml")
    (tmp_path / "config.yaml").write_text(config, encoding="utf-8")
    (tmp_path / "answers").mkdir()
    scores = {"prompt_id": ["a", "b"], "rewards": [[1.0, 2.0], [0.5, 0.1]], "logprobs": [[-3.0, -2.0], [-1.0, -4.0]]}
    pq.write_table(pa.table(scores), tmp_path / "answers" / "a.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "judge", raising=False)
    importlib.invalidate_caches()
    return tmp_path


@pages_with("python")
@mock.patch.dict(STRATEGIES)  # what a page registers is for that page
def test_python(page: Path, folder: Path) -> None:
    names: dict[str, object] = {"__name__": page.stem}
    for block in blocks(page, "python"):
        if ">>>" in block:
            test = doctest.DocTestParser().get_doctest(block, names, page.name, str(page), 0)
            runner = doctest.DocTestRunner()
            runner.run(test, clear_globs=False)
            assert not runner.failures
            names.update(test.globs)
        else:
            with contextlib.redirect_stdout(sys.stderr):
                exec(compile(block, str(page), "exec"), names)


@pages_with("yaml")
def test_yaml_is_a_run_configuration(page: Path) -> None:
    for block in blocks(page, "yaml"):
        values = yaml.safe_load(block)
        build(CompareConfig if "strategies" in values else RunConfig, values).check_inputs()


@pages_with("bash")
def test_flags_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in commands(page):
        name, flags = arguments[0], {a for a in arguments[1:] if a.startswith("--")}
        if name.startswith("-"):
            continue
        assert name in COMMANDS
        assert main([name, "--help", "all"]) == 0
        known = set(re.findall(r"--[\w.-]+", capsys.readouterr().out))
        assert flags <= known, name


def test_quickstart_commands(folder: Path) -> None:
    """The steps of the quickstart, in their order, on models of a few thousand weights."""
    tools = ("init", "schema", "completion")  # tried in tests/cli
    done = [arguments for arguments in commands(ROOT / "docs" / "quickstart.md") if arguments[0] not in tools]
    for arguments in done:
        assert main([*arguments, *SMALL.get(arguments[0], "").split()]) == 0, shlex.join(arguments)
    assert [a[0] for a in done] == [
        "sample", "score", "select", "feedback", "train-reward", "ppo", "evaluate", "score", "run", "run", "status",
    ]  # fmt: skip
    assert (folder / "evaluation.json").exists() and (folder / "scores" / "part-00000.parquet").exists()
    assert (folder / "runs" / "mine" / "report.html").exists()


def test_the_picture_of_the_loop_is_the_one_that_its_script_draws() -> None:
    assert loop.PICTURE.read_text(encoding="utf-8") == loop.draw()
