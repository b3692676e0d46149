"""`shfcas evaluate --before`: the same prompts or a refusal, paired differences, and blind pairs."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from shfcas.cli import main
from shfcas.data.candidates import read_candidates, write_candidates
from shfcas.feedback.web.annotators import Annotators
from shfcas.feedback.web.server import running
from tests.support import judge_server, tiny
from tests.support.page_client import Client, answer_all

GOLD = "tests.support.tiny:letter_reward"


class Case:
    """An evaluation of the base, and the flags to evaluate another policy on the same prompts."""

    def __init__(self, models: dict[str, str], folder: Path) -> None:
        self.folder = folder
        prompts = tiny.write_lines(folder / "prompts.jsonl", tiny.held_out_prompts(4))
        sampling = ["--evaluation.sampling.num_completions", "2", "--evaluation.sampling.max_new_tokens", "6"]
        self.flags = [
            *self.of(policy=models["policy"], reward_model=models["reward_model"], prompts=prompts),
            *sampling,
        ]
        assert main(["evaluate", *self.flags, *self.of(gold=GOLD, output=self.path("before.parquet"))]) == 0

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def of(self, **values: str) -> list[str]:
        return [text for key, value in values.items() for text in (f"--{key}", value)]

    def after(self, **values: str) -> list[str]:
        """The command that evaluates with another seed, and so with other answers."""
        given = {"before": self.path("before.parquet"), "output": self.path("after.parquet"), "seed": "1", **values}
        return ["evaluate", *self.flags, *self.of(**given), "--json"]


@pytest.fixture
def case(tiny_models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture) -> Case:
    made = Case(tiny_models, tmp_path)
    capsys.readouterr()
    return made


def test_differences_are_paired_by_prompt_in_any_order(case: Case, capsys: pytest.CaptureFixture) -> None:
    before = read_candidates(case.path("before.parquet"))
    write_candidates(case.path("turned.parquet"), type(before)(before.table.take([3, 1, 0, 2]), before.metadata))
    assert main(case.after(gold=GOLD)) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(case.after(gold=GOLD, before=case.path("turned.parquet"))) == 0
    turned = json.loads(capsys.readouterr().out)
    assert turned == found
    gold = {name: read_candidates(case.path(f"{name}.parquet")).column("gold") for name in ("before", "after")}
    mean = {name: sum(map(sum, values)) / 8 for name, values in gold.items()}
    assert found["gold_difference"]["mean"] == pytest.approx(mean["after"] - mean["before"])
    assert found["gold_difference"]["low"] <= found["gold_difference"]["mean"] <= found["gold_difference"]["high"]


def test_answers_that_were_sampled_otherwise_are_a_warning(case: Case, capsys: pytest.CaptureFixture) -> None:
    assert main([*case.after(gold=GOLD), "--evaluation.sampling.temperature", "0.5"]) == 0
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("before:")]
    assert "(temperature 1.0, here 0.5)" in warning
    assert main(case.after(gold=GOLD)) == 0
    assert "sampled otherwise" not in capsys.readouterr().err


def test_other_prompts_are_refused_before_anything_is_sampled(
    case: Case, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shfcas.cli.evaluate.sample_policy", lambda *a, **k: pytest.fail("sampled"))
    before = read_candidates(case.path("before.parquet"))
    write_candidates(case.path("fewer.parquet"), type(before)(before.table.slice(0, 3), before.metadata))
    assert main(case.after(gold=GOLD, before=case.path("fewer.parquet"))) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "1 of 4 are not in it" in line and f"before ({case.path('fewer.parquet')})" in line
    write_candidates(case.path("ungold.parquet"), type(before)(before.table.drop_columns(["gold"]), before.metadata))
    assert main(case.after(gold=GOLD, before=case.path("ungold.parquet"))) == 1
    assert "has no gold rewards" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "missing: gold; name the gold reward, or set evaluation.judge to human or judge"),
        (["--evaluation.judge", "human"], "missing: before, the evaluation that evaluation.judge human compares with"),
    ],
)
def test_what_a_judge_needs_is_checked_first(
    case: Case, capsys: pytest.CaptureFixture, flags: list[str], message: str
) -> None:
    assert main(["evaluate", *case.flags, *flags]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_language_model_compares_without_gold(case: Case, capsys: pytest.CaptureFixture) -> None:
    with judge_server.JudgeServer(judge_server.longer) as server:
        flags = case.of(**{"evaluation.judge": "judge", "judge.model": "j", "judge.base_url": server.url})
        assert main([*case.after(), *flags]) == 0
        asked = len(server.requests)
    found = json.loads(capsys.readouterr().out)
    judged = json.loads(Path(case.path("after.json")).read_text())["judged"]
    assert "gold_reward" not in found and "gold" not in read_candidates(case.path("after.parquet"))
    assert (found["judged_asked"], found["judged_answered"]) == (judged["asked"], judged["answered"])
    assert asked == 2 * judged["asked"] > 0  # both orders
    wins = losses = 0
    before, after = (
        read_candidates(case.path(f"{name}.parquet")).column("completions") for name in ("before", "after")
    )
    for base, policy in zip(before, after, strict=True):
        for one, other in zip(base, policy, strict=True):
            wins, losses = wins + (len(other) > len(one)), losses + (len(other) < len(one))
    assert (judged["wins"], judged["losses"]) == (wins, losses)


def test_people_compare_on_the_page(case: Case, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shfcas.feedback.human.QUIET_POLLS", 1)
    folder = Path(case.path("labels"))
    folder.mkdir()
    (folder / "config.yaml").write_text("human: {port: 0, repeat_share: 0}\n")
    flags = case.of(**{"evaluation.judge": "human", "folder": str(folder)})
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main([*case.after(), *flags])), daemon=True)
    thread.start()
    end = time.monotonic() + 100
    while not (address := running(folder)):
        assert thread.is_alive() and time.monotonic() < end
        time.sleep(0.02)
    person = Client(address)
    person.sign_in(Annotators(folder).tokens()["annotator"])
    new = {text for row in read_candidates(case.path("after.parquet")).column("completions") for text in row}

    def choose(task: dict[str, Any]) -> str:
        return "left" if task["left"]["text"] in new else "right"

    count = answer_all(person, choose)
    thread.join(timeout=100)
    assert codes == [0]
    judged = json.loads(Path(case.path("after.json")).read_text())["judged"]
    assert judged["asked"] == judged["answered"] == count > 0
    assert judged["wins"] > judged["losses"]
