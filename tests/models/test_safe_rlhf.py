"""safe-rlhf's reward and cost models, and decoders whose configuration does not say what pads."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from shfcas.data.chat import encode_answer
from shfcas.data.preferences import Preference
from shfcas.models.loading import has_trained_head, load_reward_model, save_model
from shfcas.models.resolve import is_cost_model
from shfcas.models.safe_rlhf import LAST_TOKEN
from shfcas.rewards.scorers import load_scorer
from shfcas.training.lora import AdapterConfig
from shfcas.training.reward.config import RewardModelConfig
from shfcas.training.reward.train import train_reward_model
from shfcas.utils.errors import UserError
from tests.support import tiny
from tests.support.architectures import sentence_piece
from tests.support.safe_rlhf_model import MEAN, VAR, save_safe_rlhf

PROMPTS = [row["prompt"] for row in tiny.prompts(6)]
ANSWERS = ["good", "a bad day and a cold night", "", "fine", "it was a great film, the soup was fine", "no"]


@torch.no_grad()
def by_hand(folder: Path, kind: str | None) -> list[float]:
    """Their forward pass: the head over the last token, the end token, of their prompt; one text at a time."""
    trunk = AutoModel.from_pretrained(folder / "policy").eval()
    path = folder / "model.safetensors"
    weights = load_file(path) if path.exists() else torch.load(folder / "pytorch_model.bin", weights_only=True)
    tokenizer = sentence_piece(["<s>", "</s>"], "<s>", bos_token="<s>", eos_token="</s>")
    scores = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        text = f"BEGINNING OF CONVERSATION: USER: {prompt[0]['content']} ASSISTANT:{answer}</s>"
        ids = tokenizer(text)["input_ids"]
        assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        hidden = trunk(torch.tensor([ids])).last_hidden_state[0, -1]
        score = hidden @ weights["score_head.weight"][0] + weights.get("score_head.bias", torch.zeros(1))[0]
        if kind == "reward":
            score = (score - MEAN) / (VAR**0.5 + 1e-8)
        if kind == "cost":
            score = score / (VAR**0.5 + 1e-8)
        scores.append(score.item())
    return scores


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("options", "normalized"),
    [
        ({}, None),
        ({"do_normalize": True}, "reward"),
        ({"do_normalize": True, "score_type": "cost"}, "cost"),
        ({"do_normalize": True, "score_type": "critic"}, None),
        ({"architectures": ["MistralModelForScore"], "pad_token_id": 1}, None),  # the end token pads
    ],
)
def test_scores_are_those_of_their_own_forward_pass(
    options: dict, normalized: str | None, bias: bool, tmp_path: Path
) -> None:
    name = save_safe_rlhf(tmp_path, bias, **options)
    expected = by_hand(tmp_path, normalized)
    assert len(set(expected)) == len(expected)
    assert has_trained_head(name)
    model, tokenizer = load_reward_model(name)
    rewards = [-score for score in expected] if options.get("score_type") == "cost" else expected
    assert load_scorer(name)(PROMPTS, ANSWERS) == pytest.approx(rewards, abs=1e-5)
    ids = encode_answer(tokenizer, PROMPTS[0], ANSWERS[0], 128)
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[-1] == tokenizer.eos_token_id

    save_model(tmp_path / "again", model, tokenizer)
    again = load_scorer(str(tmp_path / "again"))(PROMPTS, ANSWERS)
    assert again == pytest.approx(load_scorer(name)(PROMPTS, ANSWERS), abs=1e-5)
    assert is_cost_model(name) == is_cost_model(str(tmp_path / "again")) == (options.get("score_type") == "cost")
    saved = load_file(tmp_path / "again" / "model.safetensors")
    assert {"score.weight", "score.bias"} <= saved.keys() and not any("score_head" in key for key in saved)


def test_weights_in_torchs_own_format(tmp_path: Path) -> None:
    name = save_safe_rlhf(tmp_path, binary=True, do_normalize=True)
    assert load_scorer(name)(PROMPTS, ANSWERS) == pytest.approx(by_hand(tmp_path, "reward"), abs=1e-5)


@pytest.mark.parametrize("rank", [0, 4])
def test_it_is_refined_with_its_bias(rank: int, tmp_path: Path) -> None:
    name = save_safe_rlhf(tmp_path / "given")
    pairs = [Preference(p, chosen="a good day", rejected="a bad night") for p in PROMPTS]
    settings = RewardModelConfig(num_train_epochs=3, learning_rate=5e-3, lora=AdapterConfig(r=rank, dropout=0.0))
    result = train_reward_model(
        name, pairs, settings=settings, output=tmp_path / "out", work_dir=tmp_path / "work", seed=0
    )
    assert result["loss"][-1] < result["loss"][0]
    trained, _ = load_reward_model(str(tmp_path / "out"))
    assert trained.score.bias.item() != 0
    scorer = load_scorer(str(tmp_path / "out"))
    alone = [scorer([p], [a])[0] for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    assert scorer(PROMPTS, ANSWERS) == pytest.approx(alone, abs=2e-5)


def test_our_own_mark_makes_a_cost_model(tmp_path: Path) -> None:
    name = tiny.save_reward_model(tmp_path)
    assert not is_cost_model(name)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "shfcas_cost_model": True}))
    assert is_cost_model(name)
    save_model(tmp_path / "again", *load_reward_model(name))
    assert is_cost_model(str(tmp_path / "again"))


def test_a_head_that_is_not_there_is_not_made_up(tmp_path: Path) -> None:
    name = save_safe_rlhf(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    head = weights.pop("score_head.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"no score_head\.weight among its weights"):
        load_reward_model(name)
    weights["score_head.weight"] = head.repeat(2, 1)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="its head has 2 outputs"):
        load_reward_model(name)

    bert = tmp_path / "bert"
    tiny.save_reward_model(bert)
    weights = load_file(bert / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, bert / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack weights of this architecture, such as classifier\.weight"):
        load_reward_model(str(bert))


@torch.no_grad()
@pytest.mark.parametrize("pad", [None, -1, "eos", "other"])
def test_a_foreign_decoder_scores_as_it_does_alone(pad: str | int | None, policy: str, tmp_path: Path) -> None:
    """What its configuration calls padding decides where the score is read; a pad of ours must not move it."""
    torch.manual_seed(0)
    model, tokenizer = load_reward_model(policy)
    model.config.pad_token_id = {"eos": tokenizer.eos_token_id, "other": 7}.get(pad, pad)  # type: ignore[arg-type]
    tokenizer.pad_token = None
    save_model(tmp_path / "reward", model, tokenizer)
    expected = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        ids = encode_answer(tokenizer, prompt, answer, 128)
        assert ids[-1] == tokenizer.eos_token_id
        expected.append(model(torch.tensor([ids])).logits.item())
    assert load_scorer(str(tmp_path / "reward"))(PROMPTS, ANSWERS) == pytest.approx(expected, abs=1e-5)
    again, _ = load_reward_model(str(tmp_path / "reward"))
    assert bool(getattr(again.config, LAST_TOKEN, False)) == (pad in (None, -1))
    if pad == "other":  # an ordinary token: it pads, but text is cut into tokens as before
        _, saved = load_reward_model(str(tmp_path / "reward"))
        assert saved.pad_token_id == tokenizer.eos_token_id
