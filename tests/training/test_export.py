"""What other trainers are given: their columns, scripts, and rewards that stay what they were."""

import json
import os
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig
from transformers import LlamaForSequenceClassification as Classifier

from shfcas.cli import main
from shfcas.data.candidates import CandidateTable, read_candidates, write_candidates
from shfcas.models.loading import load_reward_model, save_model
from shfcas.models.safe_rlhf import last_token_classifier
from shfcas.rewards.scorers import load_scorer
from shfcas.serve import client
from shfcas.training.launch import train_script, train_words
from shfcas.utils.files import read_json
from tests.support import tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A policy, a reward model of its family, another one of BERT's, and prompts."""
    tiny.save_policy(tmp_path / "policy")
    tiny.save_reward_model(tmp_path / "bert")
    tiny.save_decoder(tmp_path / "reward", str(tmp_path / "policy"))
    tiny.write_lines(tmp_path / "prompts.jsonl", tiny.prompts(5))
    tiny.write_lines(tmp_path / "held_out.jsonl", tiny.held_out_prompts(3))
    return tmp_path


def exported(folder: Path, engine: str, *flags: str, reward: str = "reward") -> int:
    files = {"prompts": "prompts.jsonl", "policy": "policy", "reward_model": reward, "output": engine}
    given = [w for name, value in files.items() for w in (f"--{name}", value if ":" in value else str(folder / value))]
    return main(["export", engine, *given, *flags])


def test_verl_gets_its_columns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exported(folder, "verl", "--eval_prompts", str(folder / "held_out.jsonl")) == 0
    rows = pq.read_table(folder / "verl" / "train.parquet").to_pylist()
    assert len(rows) == 5
    assert rows[1] == {
        "data_source": "shfcas",
        "prompt": tiny.prompts(5)[1]["prompt"],
        "ability": "chat",
        "reward_model": {"style": "model", "ground_truth": ""},
        "extra_info": {"split": "train", "index": 1, "prompt_id": "p1", "prompt": tiny.prompts(5)[1]["prompt"]},
    }
    held_out = pq.read_table(folder / "verl" / "test.parquet").to_pylist()
    assert [row["extra_info"]["split"] for row in held_out] == ["test"] * 3
    assert AutoModelForCausalLM.from_pretrained(folder / "verl" / "policy").num_parameters() > 0
    assert "largest_difference" in capsys.readouterr().out


def test_openrlhf_gets_its_columns(folder: Path) -> None:
    tiny.write_lines(folder / "prompts.jsonl", tiny.prompts(2, chat=False))
    assert exported(folder, "openrlhf") == 0
    first, _ = pq.read_table(folder / "openrlhf" / "train.parquet").to_pylist()
    asked = [{"role": "user", "content": tiny.prompts(1, chat=False)[0]["prompt"]}]
    assert first == {"datasource": "shfcas", "input": asked, "label": json.dumps({"prompt_id": "p0", "prompt": asked})}
    assert read_json(folder / "openrlhf" / "reward_model" / "config.json")["value_head_prefix"] == "score"
    assert not (folder / "openrlhf" / "test.parquet").exists()


@pytest.mark.parametrize("engine", ["verl", "openrlhf"])
@pytest.mark.parametrize("cost", [False, True])
def test_the_reward_model_scores_as_before(engine: str, cost: bool, folder: Path) -> None:
    """Loaded by transformers alone, and read at the last token."""
    assert exported(folder, engine, *(["--cost_model"] if cost else [])) == 0
    at = folder / engine / "reward_model"
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(at), AutoTokenizer.from_pretrained(at)
    assert model.config.num_labels == 1 and model.score.bias is None
    row = tiny.prompts(1)[0]
    expected = load_scorer(str(folder / "reward"))(prompts=[row["prompt"]], completions=["it was good"])[0]
    said = [*row["prompt"], {"role": "assistant", "content": "it was good"}]
    ids = tokenizer.apply_chat_template(said, return_tensors="pt", return_dict=True)["input_ids"]
    reward = model.eval()(ids).logits.item()
    assert abs(expected) > 1e-3
    assert reward == pytest.approx(-expected if cost else expected, abs=1e-5)
    assert load_scorer(str(at))(prompts=[row["prompt"]], completions=["it was good"])[0] == pytest.approx(reward)


def test_another_layout_is_noticed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """OpenRLHF reads at the policy's end token; this reward model was trained to read at a line break."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "reward")
    tokenizer.chat_template = tiny.CHAT_TEMPLATE.replace("<|end|>", "<|end|>!")
    tokenizer.save_pretrained(folder / "reward")
    assert exported(folder, "openrlhf") == 0
    assert "rewards differ from those of shfcas by up to" in capsys.readouterr().err
    assert exported(folder, "verl") == 0
    assert "rewards differ" not in capsys.readouterr().err


def test_a_bias_is_left_out_and_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = load_reward_model(str(folder / "reward"))
    biased = last_token_classifier(model.config)(model.config)
    biased.load_state_dict(model.state_dict(), strict=False)
    torch.nn.init.constant_(biased.score.bias, 2.5)
    save_model(folder / "biased", biased, tokenizer)
    assert exported(folder, "verl", reward="biased") == 0
    said = capsys.readouterr()
    assert "2.5, is dropped" in said.err and "rewards differ" not in said.err


@pytest.mark.parametrize(
    ("engine", "reward", "message"),
    [
        ("verl", "bert", "is a BertForSequenceClassification, and verl loads a decoder with a head named score"),
        ("verl", "ensemble", "is an ensemble, and verl loads one model"),
        ("verl", "tests.support.tiny:letter_reward", "is a function, and verl loads a model"),
        ("openrlhf", "other", "has another vocabulary than the policy"),
    ],
)
def test_what_the_trainer_cannot_load_is_left_to_the_server(
    engine: str, reward: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if reward == "ensemble":
        (folder / "ensemble").mkdir()
        for member in range(2):
            tiny.save_reward_model(folder / "ensemble" / str(member), seed=member)
        (folder / "ensemble" / "ensemble.json").write_text(json.dumps({"members": ["0", "1"]}))
    if reward == "other":
        tokenizer = tiny.reward_tokenizer()
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_labels=1,
            pad_token_id=tokenizer.pad_token_id,
        )
        save_model(folder / "other", Classifier(config), tokenizer)
    assert exported(folder, engine, reward=reward) == 0
    said = capsys.readouterr()
    assert message in said.err and "served: True" in said.out
    assert not (folder / engine / "reward_model").exists()
    name = str(folder / reward) if ":" not in reward else reward
    words = shell_words(folder / engine / "serve.sh", "shfcas")
    assert words == ["serve-reward", name, "--policy", "policy", "--host", "x"]
    assert (folder / engine / "client.py").read_text() == Path(client.__file__).read_text()


def shell_words(script: Path, program: str) -> list[str]:
    """The words that a script passes to a program, with further ones of the caller's."""
    shim = script.parent.parent / "bin"
    shim.mkdir(exist_ok=True)
    (shim / program).write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
    (shim / program).chmod(0o755)
    environment = {**os.environ, "PATH": f"{shim}:{os.environ['PATH']}"}
    done = subprocess.run([str(script), "--host", "x"], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


@pytest.mark.parametrize("reward", ["policy", "missing"])
def test_a_model_that_scores_nothing_is_refused(reward: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exported(folder, "verl", reward=reward) == 1
    assert {"policy": "has no trained reward head", "missing": "no model"}[reward] in capsys.readouterr().err
    assert main(["export", "nemo"]) == 2
    assert not (folder / "verl").exists()


def test_the_references_of_a_shaped_reward_go_along(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "completions": ["good", "bad"], "rewards": [1.0, 2.0]} for row in tiny.prompts(5)]
    write_candidates(folder / "few.parquet", CandidateTable.from_rows(rows[:3]))
    write_candidates(folder / "all.parquet", CandidateTable.from_rows(rows))
    shaped = ["--reward_shaping", "centre"]
    assert exported(folder, "verl", *shaped) == 2
    assert "missing: references" in capsys.readouterr().err
    assert exported(folder, "verl", *shaped, "--references", str(folder / "few.parquet")) == 1
    assert "lacks answers to 2 of 5 prompts" in capsys.readouterr().err
    assert exported(folder, "verl", *shaped, "--references", str(folder / "all.parquet"), "--cost_model") == 0
    words = shell_words(folder / "verl" / "serve.sh", "shfcas")
    assert words[4:9] == ["--cost_model", "--reward_shaping", "centre", "--references", "references.parquet"]
    kept = read_candidates(folder / "verl" / "references.parquet")
    assert kept.table.column_names == ["prompt_id", "prompt", "completions"] and len(kept) == 5


def test_slime_gets_its_lines(folder: Path) -> None:
    assert exported(folder, "slime") == 0
    rows = [json.loads(line) for line in (folder / "slime" / "train.jsonl").read_text().splitlines()]
    prompt = tiny.prompts(5)[2]["prompt"]
    assert rows[2] == {"prompt": prompt, "label": json.dumps({"prompt_id": "p2", "prompt": prompt})}
    words = shell_words(folder / "slime" / "train.sh", "python")
    assert words[words.index("--rm-url") + 1] == "http://127.0.0.1:8901/slime"


@pytest.mark.parametrize(
    ("engine", "held_out", "served"),
    [("verl", True, False), ("verl", True, True), ("openrlhf", True, False), ("openrlhf", True, True)],
)
def test_the_page_shows_the_commands_of_the_scripts(engine: str, held_out: bool, served: bool) -> None:
    """Those that `make test-engines` has the trainers parse."""
    page = (Path(__file__).parents[2] / "docs" / "engines.md").read_text(encoding="utf-8")
    command = " \\\n    ".join(train_words(engine, held_out=held_out, served=served))
    assert f"```text\n{command}\n```" in page
    assert f"exec {command} \\\n" in train_script(engine, held_out=held_out, served=served)
