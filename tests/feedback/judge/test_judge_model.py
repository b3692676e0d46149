"""A real model as the judge."""

import json
from pathlib import Path

from shfcas.feedback.judge.source import JudgeFeedback
from tests.support.judge_cases import QUEUE, ROWS, TABLE, Serve, judged, settings
from tests.support.judge_server import ModelJudge, Request, answers


def test_a_real_model_in_its_own_words_is_no_judge(policy: str, serve: Serve, tmp_path: Path) -> None:
    judge = JudgeFeedback(settings(serve(ModelJudge(policy, constrained=False))), tmp_path / "cache.jsonl")
    judge.settings.max_failed_share = 1.0
    assert judge(QUEUE[:2], TABLE, round=1) == []
    assert judge.report["malformed"] == 2 and judge.report["malformed_replies"] == 8


def test_a_real_model_held_to_the_protocol_is_understood(policy: str, serve: Serve, tmp_path: Path) -> None:
    model = ModelJudge(policy, constrained=True)
    verdicts: dict[tuple[str, str], str] = {}

    def script(request: Request) -> str:
        reply = model(request)
        verdicts[answers(request)] = json.loads(reply)["verdict"]
        return reply

    judge = JudgeFeedback(settings(serve(script)), tmp_path / "cache.jsonl")
    made = judge(QUEUE[:3], TABLE, round=1)
    expected = []
    for c in QUEUE[:3]:
        (row,) = [row for row in ROWS if row["prompt_id"] == c.prompt_id]
        one, two = row["completions"][c.first], row["completions"][c.second]
        pair = verdicts[one, two] + verdicts[two, one]
        expected += {"AB": [(c.prompt_id, c.first, c.second)], "BA": [(c.prompt_id, c.second, c.first)]}.get(pair, [])
    assert len(verdicts) == 6 and judged(made) == expected
    assert judge.report["malformed_replies"] == 0 and judge.report["asked"] == 6
