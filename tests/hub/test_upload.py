"""Results on the Hub: what huggingface_hub's own client uploads to a server that speaks the Hub's API."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants

from shfcas.cli import main
from shfcas.data.preferences import Preference, write_preferences
from shfcas.hub.cards import metric, model_card, on_hub, preferences_card, shown, without_names
from shfcas.hub.upload import HubOptions, push
from shfcas.utils.errors import UsageError, UserError
from tests.support.hub_server import TOKEN, HubServer

PAIRS = [
    Preference("Hot?", "warm and good", "cold", source="human", annotator="Ada Lovelace", round=1, prompt_id="a"),
    Preference("Wet?", "dry", "very wet", source="human", annotator="Bob", round=1, prompt_id="b"),
    Preference("Big?", "huge indeed", "tiny", source="human", annotator="Ada Lovelace", round=2, prompt_id="c"),
]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        server.use(monkeypatch)
        yield server


def metadata(card: str) -> dict[str, Any]:
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    assert found
    return yaml.safe_load(found[1])


def card_of(**changes: Any) -> str:
    values: dict[str, Any] = {
        "base": "org/base@main",
        "task": "text-generation",
        "data": [("prompts", "prompts.jsonl, 8 rows")],
        "metrics": [metric("gold reward", {"mean": 0.25, "low": 0.125, "high": 0.5}, 8), metric("KL", 1.5)],
        "seed": 3,
        "settings": {"rl": {"ppo": {"learning_rate": 1e-5}}},
    }
    return model_card("my-policy", "A language model.", **(values | changes))


def test_a_model_card_states_data_seed_metrics_and_intervals() -> None:
    card = card_of()
    assert metadata(card) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["shfcas", "rlhf"],
        "base_model": "org/base",
    }
    assert "| prompts | prompts.jsonl, 8 rows |" in card and "Seed: 3." in card
    assert "| gold reward | 0.25 | [0.125, 0.5] | 8 |" in card and "| KL | 1.5 |  |  |" in card
    assert '"learning_rate": 1e-05' in card and "95 % bootstrap intervals" in card


def test_a_card_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    model = tmp_path / "secret-place" / "base"
    model.mkdir(parents=True)
    card = card_of(base=str(model), settings={"prompts": str(model), "inside": [str(tmp_path / "not-there")]})
    assert "judge.intern" not in card_of(settings={"judge": {"base_url": "http://judge.intern/v1"}})
    assert "secret-place" not in card and str(tmp_path) not in card
    assert "base_model" not in metadata(card) and "| base model | base |" in card


def test_a_table_of_a_card_keeps_its_columns() -> None:
    assert "| a \\| b | 1 2 |" in card_of(data=[("a | b", "1\n2")])


@pytest.mark.parametrize(
    ("name", "expected"), [("org/model", True), ("pypi:model", False), ("./org/model", False), ("model", False)]
)
def test_names_on_the_hub(name: str, expected: bool) -> None:
    assert on_hub(name) is expected


def test_shown_names() -> None:
    assert (shown(None), shown("org/model"), shown("/somewhere/x.jsonl")) == ("none", "org/model", "x.jsonl")
    assert shown("http://judge.intern:8000/v1") == "(an address)"


def test_a_card_of_preferences_counts_labels_and_measures_length() -> None:
    card = preferences_card("labels", PAIRS, about="Labels.", data=[("budget", 3)], seed=0)
    assert "| pairs | 3 |" in card and "| labels by round | 1: 2, 2: 1 |" in card and "| annotators | 2 |" in card
    assert re.search(r"\| the longer answer is preferred \| 0\.6667 \| \[\S+, \S+\] \| 3 \|", card)
    assert "Ada" not in card and metadata(card)["configs"][0]["data_files"] == "preferences.jsonl"


def test_names_of_annotators_are_replaced() -> None:
    assert [row["annotator"] for row in without_names(PAIRS)] == ["annotator-1", "annotator-2", "annotator-1"]
    assert without_names([Preference("a", "b", "c")])[0]["annotator"] == ""


@pytest.mark.parametrize("public", [False, True])
def test_a_folder_is_uploaded_with_its_card(hub: HubServer, tmp_path: Path, public: bool) -> None:
    (tmp_path / "part").mkdir()
    files = {
        "config.json": b"{}",
        "part/model.safetensors": b"\x00" * 3000,
        ".hidden": b"x",
        "README.md": b"of the base",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    address = push("me/model", card_of(), tmp_path, public=public)
    repository = hub.repositories["model", "me/model"]
    assert address == f"{hub.url}/me/model" and repository["visibility"] == ("public" if public else "private")
    assert repository["files"].pop("README.md").decode() == card_of()
    assert repository["files"] == {name: files[name] for name in ("config.json", "part/model.safetensors")}


def test_an_upload_can_be_repeated(hub: HubServer, tmp_path: Path) -> None:
    for text in ("{}", '{"a": 1}'):
        (tmp_path / "config.json").write_text(text)
        push("me/model", card_of(), tmp_path)
    assert hub.repositories["model", "me/model"]["files"]["config.json"] == b'{"a": 1}'


def test_an_upload_that_fails_says_where_the_result_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    with HubServer(refuse="/commit/") as server:
        server.use(monkeypatch)
        with pytest.raises(UserError, match=r"the upload failed.*quota.*hf upload me/model") as failure:
            push("me/model", card_of(), tmp_path)
    assert str(tmp_path) in str(failure.value)


def test_a_hub_that_is_away_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with HubServer() as server:
        server.use(monkeypatch)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="me/model: the upload failed"):
        push("me/model", card_of(), tmp_path)


def test_what_can_be_known_before_the_work_is_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    HubOptions().check_hub()
    with pytest.raises(UsageError, match="push_to_hub: expected owner/name, got 'model'"):
        HubOptions("model").check_hub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set; unset it"):
        HubOptions("me/model").check_hub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="expected a token for the Hub, got none"):
        HubOptions("me/model").check_hub()


def test_train_reward_uploads_its_model(hub: HubServer, tiny_models: dict[str, str], tmp_path: Path) -> None:
    pairs = [Preference(f"p{i} ?", "good great", "bad cold", prompt_id=f"p{i}") for i in range(8)]
    write_preferences(tmp_path / "pairs.jsonl", pairs)
    flags = ["--num_train_epochs", "1", "--batch_size", "4", "--output", str(tmp_path / "reward"), "--seed", "5"]
    flags += ["--model", tiny_models["reward_model"], "--preferences", str(tmp_path / "pairs.jsonl")]
    assert main(["train-reward", *flags, "--held_out", "0.5", "--push_to_hub", "me/reward"]) == 0
    files = hub.repositories["model", "me/reward"]["files"]
    card = files["README.md"].decode()
    assert metadata(card)["pipeline_tag"] == "text-classification" and "Seed: 5." in card
    assert re.search(r"\| accuracy on held-out pairs \| \S+ \| \[\S+, \S+\] \| [1-9]\d* \|", card)
    assert "| preferences | pairs.jsonl |" in card and str(tmp_path) not in card
    assert files["model.safetensors"] == (tmp_path / "reward" / "model.safetensors").read_bytes()


def test_a_name_that_cannot_be_is_refused_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train-reward", "--model", "x", "--preferences", "y", "--push_to_hub", "no-owner"]) == 2
    assert "push_to_hub: expected owner/name" in capsys.readouterr().err


@pytest.mark.system
def test_the_address_of_the_hub_comes_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    card = "---\ntags: [shfcas]\n---\n"
    program = f"from shfcas.hub.upload import push; print(push('me/model', {card!r}, Path({str(tmp_path)!r})))"
    with HubServer() as server:
        environment = {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", f"from pathlib import Path; {program}"]
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == f"{server.url}/me/model", done.stderr
    assert set(server.repositories["model", "me/model"]["files"]) == {"README.md", "config.json"}
