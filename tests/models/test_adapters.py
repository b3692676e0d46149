"""Policies that are a base model and an adapter: nothing is rounded away, and they load wherever they are."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from shfcas.cli import main
from shfcas.models.adapters import LowRank, base_name, fold_attached, probe
from shfcas.models.loading import load_policy, save_merged, save_model
from shfcas.models.resolve import adapter_base
from shfcas.utils.errors import UserError
from tests.support import architectures


def adapter(base: str, folder: Path, size: float = 0.02, seed: int = 0, **settings: object) -> str:
    """A random adapter of a base model, saved by PEFT."""
    torch.manual_seed(seed)
    options = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    model = get_peft_model(load_policy(base)[0], LoraConfig(**options | settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=size)
    model.save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    return model(input_ids=probe(model)).logits.float()


def kept(found: Tensor, start: Tensor, wanted: Tensor) -> float:
    """The share of an update of the logits that is left; rounding errors of single logits cancel."""
    return ((found - start) * wanted).sum().item() / (wanted**2).sum().item()


def test_a_small_update_survives_bfloat16_weights_beside_them_and_not_inside(policy: str, tmp_path: Path) -> None:
    model, tokenizer = load_policy(policy, dtype=torch.bfloat16)
    save_model(tmp_path / "base", model, tokenizer)  # its weights are exact in bfloat16, as those of released models
    base = str(tmp_path / "base")
    folder = adapter(base, tmp_path / "small", size=1e-4)
    start = logits(load_policy(base)[0])
    exact = logits(load_policy(folder)[0]) - start
    beside = load_policy(folder, dtype=torch.bfloat16)[0].float()
    save_merged(folder, tmp_path / "merged", torch.bfloat16)
    inside = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert kept(logits(beside), start, exact) == pytest.approx(1, abs=0.05)
    assert kept(logits(inside), start, exact) < 0.6


def test_an_adapter_beside_the_weights_is_the_merged_one(policy: str, tmp_path: Path) -> None:
    """In float32 weights the two are equal up to rounding; sampling and copies of the model work too."""
    folder = adapter(policy, tmp_path / "adapter")
    model = load_policy(policy)[0]
    found = LowRank.read(folder)
    assert found is not None
    found.attach(model)
    torch.testing.assert_close(logits(model), logits(load_policy(folder)[0]), atol=1e-5, rtol=1e-4)
    assert not [name for name in model.state_dict() if "adapter" in name]
    assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=3, do_sample=False).shape == (1, 5)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_training_on_top_of_an_attached_adapter_loses_nothing(kind: str, tmp_path: Path) -> None:
    """A copy has both adapters, and merged in float32 the model is what it was."""
    base = architectures.save_policy(kind, tmp_path / "base")
    model = load_policy(base, dtype=torch.bfloat16)[0]
    first = LowRank.read(adapter(base, tmp_path / "first", size=0.05))
    assert first is not None
    first.attach(model)
    top = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in top.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    wanted = logits(copy.deepcopy(top).float())
    with top.disable_adapter():
        assert not torch.allclose(wanted, logits(top), atol=0.05)
    merged = fold_attached(copy.deepcopy(top).float().merge_and_unload())
    torch.testing.assert_close(logits(merged), wanted, atol=1e-4, rtol=1e-4)
    save_model(tmp_path / "plain", merged, load_policy(base)[1])
    torch.testing.assert_close(logits(load_policy(str(tmp_path / "plain"))[0]), wanted, atol=1e-4, rtol=1e-4)


def test_two_adapters_are_one(policy: str, tmp_path: Path) -> None:
    """On different layers, of different ranks and scales; read by us and by PEFT."""
    parts = [
        LowRank.read(adapter(policy, tmp_path / "a", seed=1)),
        LowRank.read(adapter(policy, tmp_path / "b", seed=2, r=2, lora_alpha=5, target_modules=["q_proj", "o_proj"])),
    ]
    assert parts[0] is not None and parts[1] is not None
    model = load_policy(policy)[0]
    for part in parts:
        part.attach(model)
    both = tmp_path / "both"
    parts[0].joined(parts[1]).save(both, policy)
    assert json.loads((both / "adapter_config.json").read_text())["r"] == 6
    for found in (load_policy(str(both))[0], PeftModel.from_pretrained(load_policy(policy)[0], both)):
        torch.testing.assert_close(logits(found), logits(model), atol=1e-5, rtol=1e-4)


def test_other_adapters_are_merged_and_what_that_loses_is_said(
    policy: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = adapter(policy, tmp_path / "dora", use_dora=True)
    assert LowRank.read(folder) is None
    whole = logits(load_policy(folder)[0])
    assert "low precision" not in caplog.text
    half = load_policy(folder, dtype=torch.bfloat16)[0]
    assert "low precision changes the merged model by" in caplog.text
    assert kept(logits(half), logits(load_policy(policy)[0]), whole - logits(load_policy(policy)[0])) > 0.7


def test_an_adapter_follows_a_base_model_in_the_same_run_directory(policy: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(policy, run / "round-0" / "policy")
    (run / "manifest.json").write_text("{}")
    base, folder = run / "round-0" / "policy", run / "round-1" / "policy"
    part = LowRank.read(adapter(str(base), tmp_path / "a"))
    assert part is not None
    part.save(folder, str(base))
    part.save(tmp_path / "outside", policy)
    named = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == "../../round-0/policy"
    assert Path(base_name(str(tmp_path / "outside"))).is_absolute()
    expected = logits(load_policy(str(folder))[0])
    run.rename(tmp_path / "moved")
    moved = tmp_path / "moved" / "round-1" / "policy"
    assert adapter_base(str(moved)) == str(tmp_path / "moved" / "round-0" / "policy")
    assert torch.equal(logits(load_policy(str(moved))[0]), expected)
    save_model(tmp_path / "moved/round-0/policy", load_policy(str(moved))[0], load_policy(policy)[1])
    with pytest.raises(UserError, match=r"was trained on other weights than those now in .*round-0/policy"):
        load_policy(str(moved))


def test_the_command_merges(policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = adapter(policy, tmp_path / "adapter")
    assert main(["merge", "--policy", folder, "--output", str(tmp_path / "whole"), "--json"]) == 0
    assert "kl_lost" not in json.loads(capsys.readouterr().out)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    torch.testing.assert_close(logits(plain), logits(load_policy(folder)[0]))
    half = ["--output", str(tmp_path / "half"), "--dtype", "bfloat16", "--json"]
    assert main(["merge", "--policy", folder, *half]) == 0
    report = json.loads(capsys.readouterr().out)
    assert 0 < report["kl_lost"] < report["kl_of_adapter"]
