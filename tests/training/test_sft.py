"""Supervised fine-tuning: the loss falls, only answers count, and what is saved is what was trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ByT5Tokenizer, Trainer

from shfcas.data.candidates import CandidateTable
from shfcas.data.chat import encode_prompt, end_token_ids, turn_end_id
from shfcas.data.templates import set_chat_template
from shfcas.models.loading import load_policy
from shfcas.pipeline.demonstrations import BootstrapConfig
from shfcas.pipeline.demonstrations import demonstrations as demonstrations_of
from shfcas.sampling.config import SamplingConfig
from shfcas.sampling.local import LocalSampler
from shfcas.training import sft
from shfcas.training.lora import AdapterConfig
from shfcas.training.sft import SFTStageConfig, encode_demonstrations, read_demonstrations, train_sft
from shfcas.utils.errors import UserError
from tests.support import architectures, tiny


def demonstrations(chat: bool = True) -> list[dict]:
    return [{"prompt": row["prompt"], "completion": "a good day"} for row in tiny.prompts(16, chat=chat)]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The first batch of the trainer, and the model as it is in memory when it is saved."""
    found: dict[str, Any] = {}
    train, save = sft.train, sft.save_policy

    def looking(trainer: Any, *arguments: Any) -> Any:
        found["batch"] = next(iter(trainer.get_train_dataloader()))
        return train(trainer, *arguments)

    def keeping(trainer: Any, *arguments: Any, **options: Any) -> None:
        save(trainer, *arguments, **options)
        found["model"] = trainer.model

    monkeypatch.setattr(sft, "train", looking)
    monkeypatch.setattr(sft, "save_policy", keeping)
    return found


@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize("chat", [True, False])
def test_the_loss_falls_and_the_model_is_saved_as_it_is(
    chat: bool, rank: int, policy: str, tmp_path: Path, seen: dict[str, Any]
) -> None:
    settings = SFTStageConfig(
        num_train_epochs=4, batch_size=4, learning_rate=1e-2, lora=AdapterConfig(r=rank, dropout=0.0)
    )
    history = train_sft(
        policy, demonstrations(chat), settings=settings, output=tmp_path / "out", work_dir=tmp_path / "work", seed=0
    )
    losses = [row["loss"] for row in history]
    assert len(losses) == 16
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])

    _, tokenizer = load_policy(policy)
    batch = seen["batch"]
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        learned = ids[labels != -100]
        assert torch.equal(labels[labels != -100], learned)
        # The answer and its end token, nothing of the prompt: "how was" stands in every prompt.
        assert tokenizer.decode(learned).strip() == "a good day<|end|>"
        assert "how was" in tokenizer.decode(ids)

    reloaded, _ = load_policy(str(tmp_path / "out"))
    ids = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(reloaded(ids).logits, seen["model"].eval()(ids).logits, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(reloaded(ids).logits, load_policy(policy)[0](ids).logits)
    assert (tmp_path / "out" / "adapter_config.json").exists() == (rank > 0)
    assert (tmp_path / "out" / "model.safetensors").exists() == (rank == 0)


def test_the_same_seed_gives_the_same_policy(policy: str, tmp_path: Path) -> None:
    settings = SFTStageConfig(num_train_epochs=1, batch_size=4)
    ids = torch.arange(40)[None]
    logits = []
    for run, seed in enumerate((0, 0, 1)):
        torch.rand(run + 1)
        train_sft(
            policy,
            demonstrations(),
            settings=settings,
            output=tmp_path / f"out{run}",
            work_dir=tmp_path / f"work{run}",
            seed=seed,
        )
        with torch.no_grad():
            logits.append(load_policy(str(tmp_path / f"out{run}"))[0](ids).logits)
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


KINDS = {
    "generation marks": (architectures.llama, None, "<|eot_id|>", "good<|eot_id|>"),
    "ChatML": (architectures.qwen, None, "<|im_end|>", "good<|im_end|>"),
    "another end of turn": (architectures.gemma, None, "<end_of_turn>", "good<end_of_turn>"),
    "no generation prompt": (architectures.mistral, None, "</s>", "good</s>"),
    "plain": (architectures.one_special, "plain", "<|endoftext|>", "good<|endoftext|>"),
    "no end": (architectures.one_special, "{{ messages | map(attribute='content') | join(' ') }}", None, "good"),
    "thoughts": (
        architectures.qwen,
        "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>{{ m.content.split('# ')[-1] }}<|im_end|>"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|># {% endif %}",
        "<|im_end|>",
        "good<|im_end|>",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_learned_follows_the_sampled_prompt_and_ends_with_what_stops_the_policy(
    kind: str, tmp_path: Path
) -> None:
    make, template, end, learned = KINDS[kind]
    tokenizer = make()
    if template:
        path = tmp_path / "template.jinja"
        path.write_text(template)
        set_chat_template(tokenizer, template if template == "plain" else str(path))
    end_ids = end_token_ids(None, tokenizer)
    assert end is None or tokenizer.convert_tokens_to_ids(end) in end_ids
    for prompt in ([{"role": "user", "content": "how was it?"}], [{"role": "user", "content": "a "}]):
        (row,) = encode_demonstrations([{"prompt": prompt, "completion": "good"}], tokenizer, end_ids, 128)
        sampled = encode_prompt(tokenizer, prompt)
        assert row["input_ids"][: len(sampled)] == sampled
        assert row["labels"] == [-100] * len(sampled) + row["input_ids"][len(sampled) :]
        answer = row["input_ids"][len(sampled) :]
        expected = learned if end else learned + tokenizer.eos_token
        assert tokenizer.decode(answer).strip(" ") == expected
        assert len(end_ids.intersection(answer)) == 1
        assert tokenizer.bos_token_id is None or sampled.count(tokenizer.bos_token_id) <= 1


@pytest.mark.parametrize("make", [architectures.llama, architectures.opt, architectures.mistral, ByT5Tokenizer])
def test_text_is_learned_as_it_stands_with_one_end(make: Any) -> None:
    tokenizer = make()
    end_ids = end_token_ids(None, tokenizer)
    for completion in (" a good day", "!", "  two spaces"):
        row = {"prompt": "how was it? ", "completion": completion}
        (encoded,) = encode_demonstrations([row], tokenizer, end_ids, 128)
        sampled = encode_prompt(tokenizer, row["prompt"])
        assert encoded["input_ids"][: len(sampled)] == sampled and sampled[-1] != tokenizer.eos_token_id
        answer = encoded["input_ids"][len(sampled) :]
        assert answer[-1] == tokenizer.eos_token_id and len(end_ids.intersection(answer)) == 1
        text = tokenizer.decode(encoded["input_ids"], skip_special_tokens=True)
        assert text.split() == (row["prompt"] + completion).split()


@pytest.mark.parametrize(
    "prompt", ["how was it?", [{"role": "user", "content": "how was it?"}]], ids=["text", "messages"]
)
def test_sampled_answers_are_learned_by_their_tokens(prompt: Any) -> None:
    tokenizer = architectures.llama()
    end_ids = end_token_ids(None, tokenizer)
    end = turn_end_id(tokenizer)
    spelled = tokenizer.convert_tokens_to_ids(list("good"))
    row = {"prompt": prompt, "completion": "good", "completion_ids": [*spelled, end]}
    cut = {**row, "completion_ids": spelled}  # at the maximum length, so that its end is still to be learned
    for encoded in encode_demonstrations([row, cut], tokenizer, end_ids, 128):
        assert [token for token in encoded["labels"] if token != -100] == [*spelled, end]
    other = {**row, "completion_ids": [*reversed(spelled), end]}  # of another tokenizer
    (encoded,) = encode_demonstrations([other], tokenizer, end_ids, 128)
    text = tokenizer.decode(encoded["input_ids"], skip_special_tokens=True)
    assert text.endswith("how was it? good" if isinstance(prompt, str) else "good")


def test_demonstrations_of_samples_follow_their_prompts(tmp_path: Path) -> None:
    """With their tokens, or behind a space where a table has none."""
    rows = [
        {"prompt_id": "p", "prompt": "how was it?", "completions": ["bee", "a"], "completion_ids": [[5, 7], [6]]},
        {"prompt_id": "q", "prompt": "how? ", "completions": ["tree", "b"], "completion_ids": [[8], [9]]},
    ]
    settings = BootstrapConfig(demonstrator="tests.support.tiny:letter_reward", per_prompt=1, threshold=0.5)
    table = CandidateTable.from_rows(rows)
    assert demonstrations_of(table, settings) == [
        {"prompt": "how was it?", "completion": "bee", "completion_ids": [5, 7]},
        {"prompt": "how? ", "completion": "tree", "completion_ids": [8]},
    ]
    bare = CandidateTable(table.table.drop_columns(["completion_ids"]), {})
    assert [row["completion"] for row in demonstrations_of(bare, settings)] == [" bee", "tree"]


@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize("chat", [True, False])
def test_a_raw_base_model_learns_to_end_its_answers(chat: bool, rank: int, tmp_path: Path) -> None:
    """From a model without pad token and template to a policy that stops by itself."""
    base = architectures.save_policy("gpt_neox", tmp_path / "base")
    rows = demonstrations(chat)
    settings = SFTStageConfig(num_train_epochs=12, batch_size=4, learning_rate=1e-2, lora=AdapterConfig(r=rank))
    template = "plain" if chat else None
    train_sft(
        base,
        rows,
        settings=settings,
        output=tmp_path / "out",
        work_dir=tmp_path / "work",
        seed=0,
        chat_template=template,
    )
    config = SamplingConfig(num_completions=4, max_new_tokens=16, temperature=0.5)

    def sample(name: str) -> list[dict]:
        return list(LocalSampler(*load_policy(name, template), config=config)(tiny.prompts(6, chat=chat)))

    assert not any(all(row["finished"]) for row in sample(base))
    answers = list(LocalSampler(*load_policy(str(tmp_path / "out")), config=config)(tiny.prompts(6, chat=chat)))
    finished = [f for row in answers for f in row["finished"]]
    assert sum(finished) > 0.9 * len(finished)
    assert sum(text == "a good day" for row in answers for text in row["completions"]) > 0.5 * len(finished)
    saved = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [0]


def test_a_run_that_was_stopped_goes_on(policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SFTStageConfig(num_train_epochs=2, batch_size=4, checkpoint_steps=3)

    def train(name: str) -> list[float]:
        places = {"output": tmp_path / name, "work_dir": tmp_path / f"{name}.work"}
        return [row["loss"] for row in train_sft(policy, demonstrations(), settings=settings, seed=0, **places)]

    history = train("whole")

    def save_once(self: Any, *rest: Any, **more: Any) -> None:
        save(self, *rest, **more)
        raise KeyboardInterrupt

    save = Trainer._save_checkpoint
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_save_checkpoint", save_once)
        train("broken")
    assert train("broken") == history
    one, other = (load_policy(str(tmp_path / name))[0] for name in ("whole", "broken"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_what_cannot_be_learned_is_an_error_that_names_the_row(tmp_path: Path) -> None:
    name = architectures.save_policy("gemma2", tmp_path / "policy")
    rows = demonstrations()
    rows[2] = {"prompt": [{"role": "system", "content": "be brief"}, *rows[2]["prompt"]], "completion": "good"}
    with pytest.raises(UserError, match=r"^demonstration 2: the chat template of .* rejects .*system, user"):
        train_sft(name, rows, settings=SFTStageConfig(), output=tmp_path / "out", work_dir=tmp_path / "work", seed=0)
    endless = architectures.qwen()
    endless.eos_token = endless.chat_template = None
    with pytest.raises(UserError, match="demonstration 0: the tokenizer has no end token"):
        encode_demonstrations([{"prompt": "how?", "completion": "good"}], endless, set(), 100)


@pytest.mark.parametrize("chat", [True, False])
def test_a_demonstration_that_is_too_long_is_an_error(chat: bool, policy: str, tmp_path: Path) -> None:
    rows = [*demonstrations(chat), {**demonstrations(chat)[0], "completion": "a good day " * 20}]
    with pytest.raises(UserError, match=r"demonstration 16 has \d+ tokens, more than the 60 that sft"):
        train_sft(
            policy,
            rows,
            settings=SFTStageConfig(max_length=60),
            output=tmp_path / "out",
            work_dir=tmp_path / "work",
            seed=0,
        )
    rows[-1]["completion"] = "a good day " * 60
    with pytest.raises(UserError, match=r"demonstration 16 has \d+ tokens, more than the 128 that .* context allow"):
        train_sft(policy, rows, settings=SFTStageConfig(), output=tmp_path / "out", work_dir=tmp_path / "work", seed=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "row 1 has no column completion; its columns are prompt"),
        ({"prompt": "a", "completion": " "}, "row 1 has no completion"),
        ({"completion": "b"}, "row 1 has no column prompt; its columns are completion"),
        ({"prompt": "", "completion": "b"}, "row 1: the prompt is empty"),
    ],
)
def test_a_bad_demonstration_is_named(row: dict, message: str, tmp_path: Path) -> None:
    path = tiny.write_lines(tmp_path / "demonstrations.jsonl", [{"prompt": "a", "completion": "b"}, row])
    with pytest.raises(UserError, match=f"demonstrations.jsonl: {message}"):
        read_demonstrations(path)


def test_demonstrations_are_read_as_they_are(tmp_path: Path) -> None:
    path = tiny.write_lines(tmp_path / "demonstrations.jsonl", demonstrations())
    assert read_demonstrations(path) == json.loads(json.dumps(demonstrations()))
    with pytest.raises(UserError, match="no demonstrations"):
        read_demonstrations(tiny.write_lines(tmp_path / "empty.jsonl", []))
