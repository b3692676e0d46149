"""Parity: a served model is compared with the same model here, and each way to differ is named."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from shfcas.cli import main
from shfcas.rewards.preflight import FAIL, PASS, Finding
from shfcas.rewards.preflight.known import OBVIOUS
from shfcas.rewards.preflight.parity import RewardEndpoint, check_parity
from shfcas.utils.errors import UserError
from tests.support import tiny
from tests.support.pooling_server import PoolingServer, sigmoid


@pytest.fixture(scope="module")
def decoder(tiny_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A decoder with a head and a chat template."""
    return tiny.save_decoder(tmp_path_factory.mktemp("decoder"), tiny_models["policy"])


def compared(folder: str, server: PoolingServer, path: str = "") -> list[Finding]:
    with server:
        return check_parity(folder, OBVIOUS[:6], RewardEndpoint(f"{server.root}{path}", server.name))


@pytest.mark.parametrize("paths", [("/classify",), ("/pooling",), ("/classify", "/pooling")])
def test_the_same_model_passes(paths: tuple[str, ...], decoder: str) -> None:
    findings = compared(decoder, server := PoolingServer(decoder, paths))
    assert [(f.check, f.status) for f in findings] == [("parity, tokens", PASS), ("parity, text", PASS)]
    assert findings[0].values["answers"] == 12 and findings[0].values["moved"] < 1e-4
    assert all(request["use_activation"] is False for request in server.requests)


def test_a_pair_model_is_asked_for_pairs(reward_model: str) -> None:
    (finding,) = compared(reward_model, PoolingServer(reward_model, ("/score",)), "/score")
    assert (finding.check, finding.status) == ("parity, text", PASS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (sigmoid, "the server's scores are sigmoids of the model's"),
        (lambda score: 1.0, "it applies a softmax to one output"),
        (lambda score: -score, "the server's scores have the opposite sign"),
        (lambda score: score + 3, "the server's scores differ by a constant"),
        (lambda score: score**3 + score, "scores differ from those of the server by up to"),
    ],
)
def test_a_known_difference_is_named(change: Callable[[float], float], message: str, decoder: str) -> None:
    tokens, text = compared(decoder, PoolingServer(decoder, change=change))
    assert tokens.status == text.status == FAIL
    assert message in tokens.message and tokens.remedy


def test_text_that_is_read_otherwise_is_told_from_another_model(decoder: str) -> None:
    tokens, text = compared(decoder, PoolingServer(decoder, suffix="<|end|> good"))
    assert (tokens.status, text.status) == (PASS, FAIL)
    assert "adds or drops special tokens" in text.remedy


def test_a_server_without_pooling_is_an_error(decoder: str) -> None:
    with pytest.raises(UserError, match="has no /classify or /pooling; serve the model for pooling"):
        compared(decoder, PoolingServer(decoder, ("/v1/completions",)))


def test_the_command_compares_and_writes_a_table(
    decoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "card.md"
    with PoolingServer(decoder, change=sigmoid) as server:
        flags = ["--server", server.url, "--served_model", "reward", "--markdown", str(table)]
        assert main(["preflight", decoder, *flags, "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert [f["check"] for f in findings][-2:] == ["parity, tokens", "parity, text"]
    lines = table.read_text().splitlines()
    assert lines[0] == f"Preflight of `{Path(decoder).name}`" and len(lines) == 4 + len(findings)
    assert lines[-1].startswith("| fail | parity, text | the server's scores are sigmoids")
    assert main(["preflight"]) == 2
    assert "reward_model: expected one, got none" in capsys.readouterr().err
