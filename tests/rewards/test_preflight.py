"""Preflight: sound models pass, and each thing that can be wrong is found in a model that is really broken."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, LlamaForSequenceClassification

from shfcas.cli import main
from shfcas.data.preferences import Preference
from shfcas.models.loading import load_reward_model
from shfcas.rewards.preflight import FAIL, PASS, WARN, Finding, PreflightConfig, check_model, preflight, refuse_failures
from shfcas.rewards.scorers import load_scorer
from shfcas.training.reward.config import RewardModelConfig
from shfcas.training.reward.train import train_reward_model
from shfcas.utils.errors import UserError
from tests.support import tiny
from tests.support.reward_pairs import FAST, HELD_OUT, TRAIN

KNOWN = [*TRAIN, *HELD_OUT]  # 160 pairs
SETTINGS = PreflightConfig()


@pytest.fixture(scope="module")
def sound(tiny_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A decoder with a chat template and an encoder without one, both trained."""
    folder = tmp_path_factory.mktemp("trained")
    made = {}
    for kind, start in (("decoder", tiny_models["policy"]), ("encoder", tiny_models["reward_model"])):
        settings = RewardModelConfig(**FAST)
        train_reward_model(
            start, TRAIN, settings=settings, output=folder / kind, work_dir=folder / f"{kind}.work", seed=0
        )
        made[kind] = str(folder / kind)
    return {**made, "policy": tiny_models["policy"], "random": tiny_models["reward_model"]}


@pytest.fixture
def copy(sound: dict[str, str], tmp_path: Path) -> Path:
    """The decoder, to be broken."""
    return Path(shutil.copytree(sound["decoder"], tmp_path / "broken"))


def found(findings: list[Finding], check: str) -> Finding:
    (finding,) = [f for f in findings if f.check == check]
    assert finding.message and (finding.remedy or finding.status == PASS)
    return finding


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_a_sound_model_passes(kind: str, sound: dict[str, str]) -> None:
    rows = [{"prompt": p.prompt, "completions": [p.chosen]} for p in HELD_OUT]
    findings = preflight(sound[kind], SETTINGS, preferences=KNOWN, candidates=rows, answer_tokens=16)
    checks = ["head", "length", "template", "numbers", "batch", "end", "accuracy", "dtype"]
    assert [(f.check, f.status) for f in findings] == [(check, PASS) for check in checks]
    refuse_failures(findings)
    assert found(findings, "accuracy").values["count"] == 160
    ending = {"decoder": "<|end|>", "encoder": "[SEP]"}[kind]
    assert found(findings, "end").message.startswith(repr(ending))
    assert ("without it, scores would change" in found(findings, "template").message) == (kind == "decoder")


def test_pairs_are_drawn_from_the_whole_file(sound: dict[str, str]) -> None:
    # Only the second half is judged as the model was trained.
    pairs = [replace(p, chosen=p.rejected, rejected=p.chosen) for p in KNOWN[:80]] + KNOWN[80:]
    findings = preflight(sound["encoder"], PreflightConfig(pairs=40), preferences=pairs)
    accuracy = found(findings, "accuracy")
    assert accuracy.values["count"] == 40 and abs(accuracy.values["mean"] - 0.5) < 0.1


def test_a_backbone_has_no_head(sound: dict[str, str]) -> None:
    findings = preflight(sound["policy"], SETTINGS, preferences=KNOWN)
    assert found(findings, "head").status == FAIL
    with pytest.raises(
        UserError, match=r"fails its preflight checks: head: the model has no trained reward head; train one"
    ):
        refuse_failures(findings)


def test_a_head_that_was_lost_is_missed(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    for load in (lambda: preflight(str(copy), SETTINGS, preferences=KNOWN), lambda: load_scorer(str(copy))):
        with pytest.raises(
            UserError, match=r"lack weights of this architecture, such as score\.weight, which would be"
        ):
            load()


def test_a_random_model_is_no_better_than_chance(sound: dict[str, str]) -> None:
    rng = random.Random(0)
    words = " ".join(tiny.CORPUS).split()
    pairs = [
        Preference(f"how was {i}?", *(" ".join(rng.choices(words, k=rng.randint(2, 8))) for _ in range(2)))
        for i in range(200)
    ]
    finding = found(preflight(sound["random"], SETTINGS, preferences=pairs), "accuracy")
    assert finding.status == FAIL and finding.values["low"] < 0.5 < finding.values["high"]
    few = found(preflight(sound["random"], SETTINGS, preferences=pairs[:40]), "accuracy")
    assert few.status == WARN and "at least 100 known pairs are needed" in few.remedy


def test_a_cost_that_is_taken_for_a_reward_is_noticed(sound: dict[str, str]) -> None:
    findings = preflight(sound["decoder"], SETTINGS, cost_model=True, preferences=KNOWN[:24])
    assert found(findings, "accuracy").status == FAIL
    assert "lower may be better: set cost_model" in found(findings, "accuracy").remedy


def test_obvious_pairs_only_warn(sound: dict[str, str]) -> None:
    findings = preflight(sound["random"], SETTINGS)
    assert found(findings, "accuracy").status in (PASS, WARN)
    assert "obvious pairs" in found(findings, "accuracy").message
    refuse_failures(findings)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(value: float, copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][0] = value
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    finding = found(preflight(str(copy), SETTINGS, preferences=KNOWN), "numbers")
    assert finding.status == FAIL and "320 of 320 scores are not finite" in finding.message


def test_a_constant_score(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["score.weight"].zero_()
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert (
        "all 320 answers get the same score"
        in found(preflight(str(copy), SETTINGS, preferences=KNOWN), "numbers").message
    )


class LastPosition(LlamaForSequenceClassification):
    """Reads the score at the last position, whatever stands there: right only with padding on the left."""

    def forward(self, input_ids: Any, attention_mask: Any = None, **options: Any) -> Any:
        position = attention_mask.cumsum(-1).sub(1).clamp(min=0)
        output = self.model(input_ids, attention_mask=attention_mask, position_ids=position)
        return type("Output", (), {"logits": self.score(output.last_hidden_state[:, -1])})


class NoMask(torch.nn.Module):
    """Takes the mean over all positions, padding too."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner, self.config, self.device = model, model.config, model.device

    def forward(self, input_ids: Any, attention_mask: Any = None) -> Any:
        output = self.inner.model(input_ids)
        return type("Output", (), {"logits": self.inner.score(output.last_hidden_state).mean(1)})


def test_a_model_that_reads_the_wrong_end(sound: dict[str, str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(sound["decoder"])
    tokenizer.pad_token = "<|system|>"  # an end token as padding would look like the end of the answer
    model = LastPosition.from_pretrained(sound["decoder"], pad_token_id=tokenizer.pad_token_id).eval()
    finding = found(check_model(model, tokenizer, settings=SETTINGS, preferences=KNOWN), "batch")
    assert finding.status == FAIL and "assumes padding on the left" in finding.remedy


def test_a_model_that_reads_its_padding(sound: dict[str, str]) -> None:
    model, tokenizer = load_reward_model(sound["decoder"])
    finding = found(check_model(NoMask(model), tokenizer, settings=SETTINGS, preferences=KNOWN), "batch")
    assert finding.status == FAIL and finding.values["moved"] > 1e-3
    assert "left" not in finding.remedy and "attention mask" in finding.remedy


def test_the_padding_side_of_the_tokenizer_does_not_matter(sound: dict[str, str]) -> None:
    model, tokenizer = load_reward_model(sound["decoder"])
    tokenizer.padding_side = "left"
    assert found(check_model(model, tokenizer, settings=SETTINGS, preferences=KNOWN), "batch").status == PASS


def template(folder: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = text
    tokenizer.save_pretrained(folder)


OPEN = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"


def test_a_tokenizer_that_drops_the_end_token_of_training(copy: Path) -> None:
    template(copy, OPEN)
    finding = found(preflight(str(copy), SETTINGS, preferences=KNOWN), "end")
    assert finding.status == FAIL
    assert finding.message == "answers end with '', but the model was trained with '<|end|>'"


def test_an_answer_that_nothing_closes(copy: Path) -> None:
    """Of a model about whose training nothing is known: a failure, unless the model shows that it can do without."""
    template(copy, OPEN)
    config = AutoConfig.from_pretrained(copy)
    del config.shfcas_ending
    config.save_pretrained(copy)
    unproven = found(preflight(str(copy), SETTINGS, preferences=KNOWN[:4]), "end")
    assert unproven.status == FAIL and "answers have no end token" in unproven.message
    findings = preflight(str(copy), SETTINGS, preferences=KNOWN)
    assert found(findings, "accuracy").values["low"] > 0.5
    assert found(findings, "end").status == WARN
    assert "orders known pairs without one" in found(findings, "end").message


def test_an_end_token_that_is_padding_too(copy: Path) -> None:
    config = AutoConfig.from_pretrained(copy)
    del config.shfcas_ending
    config.save_pretrained(copy)
    finding = found(preflight(str(copy), SETTINGS, preferences=KNOWN), "end")
    assert (
        finding.status == WARN and "is also the pad token" in finding.message and "another pad token" in finding.remedy
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{% for m in messages if m['role'] == 'user' %}<|user|>{{ m['content'] }}<|end|>{% endfor %}",
            "an answer 0 times",
        ),
        (
            "{% for m in messages if m['role'] != 'user' %}<|assistant|>{{ m['content'] }}<|end|>{% endfor %}",
            "the model's input does not depend on the prompt",
        ),
    ],
)
def test_a_template_that_drops_a_part(text: str, message: str, copy: Path) -> None:
    template(copy, text)
    finding = found(preflight(str(copy), SETTINGS, preferences=KNOWN), "template")
    assert finding.status == FAIL and message in finding.message


def test_a_template_that_drops_the_system_turn(copy: Path) -> None:
    text = "{% for m in messages if m['role'] != 'system' %}<|user|>{{ m['content'] }}<|end|>{% endfor %}"
    template(copy, text)
    system = [replace(p, prompt=[{"role": "system", "content": "Be short."}, *p.prompt]) for p in KNOWN]
    finding = found(preflight(str(copy), SETTINGS, preferences=system), "template")
    assert finding.status == WARN and finding.message.endswith("messages of: system")
    assert found(preflight(str(copy), SETTINGS, preferences=KNOWN), "template").status == PASS


def test_a_decoder_that_has_lost_its_template(copy: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    config = AutoConfig.from_pretrained(copy)
    del config.shfcas_ending
    config.save_pretrained(copy)
    finding = found(preflight(str(copy), SETTINGS, preferences=KNOWN), "template")
    assert finding.status == WARN and "joined by a blank line" in finding.message


def test_what_the_model_cannot_see(sound: dict[str, str]) -> None:
    def status(**arguments: Any) -> Finding:
        return found(preflight(sound["encoder"], SETTINGS, **arguments), "length")

    long = replace(KNOWN[0], chosen="good " * 200)
    fits, beyond = (
        {"prompt": "how?", "completions": ["good"]},
        {"prompt": "how?", "completions": ["good", "good " * 200]},
    )
    assert (status(preferences=[*KNOWN, long]).status, status(preferences=[long]).status) == (WARN, FAIL)
    assert (
        "1 of 161 known pairs are longer than the model's limit of 128 tokens"
        in status(preferences=[*KNOWN, long]).message
    )
    finding = status(preferences=KNOWN, candidates=[fits, beyond])
    assert finding.status == WARN and finding.message.startswith("1 of 3 prompts or answers")
    tight = status(preferences=KNOWN, candidates=[fits], answer_tokens=126)
    assert tight.status == WARN and "leave less than 126 of 128 tokens for an answer" in tight.message


def test_half_precision(sound: dict[str, str]) -> None:
    model, tokenizer = load_reward_model(sound["decoder"])
    finding = found(check_model(model.to(torch.bfloat16), tokenizer, settings=SETTINGS, preferences=KNOWN), "dtype")
    assert finding.status == WARN and "bfloat16" in finding.message and finding.values["ties"] > 0


def wants_a_topic(prompts: list, completions: list, topic: list) -> list[float]:
    return [0.0] * len(topic)


def depends_on_company(prompts: list, completions: list, **columns: Any) -> list[float]:
    return [len(c) + float(len(completions)) for c in completions]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tests.support.tiny:letter_reward", {"numbers": PASS, "batch": PASS}),
        ("tests.support.tiny:nan_reward", {"numbers": FAIL}),
        ("tests.rewards.test_preflight:wants_a_topic", {"numbers": WARN}),
        ("tests.rewards.test_preflight:depends_on_company", {"numbers": PASS, "batch": FAIL}),
    ],
)
def test_a_function_is_checked_from_outside(name: str, expected: dict[str, str]) -> None:
    statuses = {f.check: f.status for f in preflight(name, SETTINGS)}
    assert {**statuses, **expected} == statuses


def test_every_member_of_an_ensemble_is_checked(sound: dict[str, str], copy: Path, tmp_path: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["score.weight"].zero_()
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    shutil.copytree(sound["decoder"], tmp_path / "sound")
    (tmp_path / "ensemble.json").write_text(json.dumps({"members": ["sound", "broken"]}))
    findings = preflight(str(tmp_path), SETTINGS, preferences=KNOWN)
    assert [f.check for f in findings if f.status == FAIL] == ["broken, numbers"]
    assert found(findings, "sound, accuracy").status == PASS


def test_the_command(sound: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pairs = tiny.write_lines(tmp_path / "known.jsonl", [p.to_row() for p in KNOWN])
    arguments = ["preflight", "--preferences", pairs]
    assert main([*arguments, sound["decoder"]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 and all(line.startswith("pass  ") for line in lines)
    assert main([*arguments, sound["policy"]]) == 1
    assert "fail  head " in capsys.readouterr().out
    assert main([*arguments, sound["policy"], "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert findings[0] == {
        "check": "head",
        "status": "fail",
        "message": "the model has no trained reward head",
        "remedy": "train one with: shfcas train-reward",
        "values": {},
    }
