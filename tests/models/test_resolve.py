"""Every way a model comes: hub snapshots with their revisions, GGUF files, adapters; and what is recorded of it."""

import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from shfcas.models import loading, resolve
from shfcas.rewards.scorers import load_scorer
from shfcas.sampling.config import SamplingConfig
from shfcas.sampling.table import sample_policy
from shfcas.utils.errors import UserError
from tests.support import tiny

IDS = torch.arange(3, 40)[None]
COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub; nothing is asked over the network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    resolve._from_hub.cache_clear()
    return tmp_path / "hub"


def put_on_hub(hub: Path, name: str, folder: str, commit: str, branch: str | None = None, inside: str = "") -> None:
    """A repository as huggingface_hub caches it."""
    repository = hub / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / commit / inside)
    if branch:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / branch).write_text(commit)


def logits(name: str) -> torch.Tensor:
    with torch.no_grad():
        return loading.load_policy(name)[0](IDS).logits


def adapter(base: str, folder: Path, task: str, **options: Any) -> Any:
    """A random adapter on a model, saved; returns the adapted model."""
    load = loading.load_policy if task == "CAUSAL_LM" else loading.load_reward_model
    model, _ = load(base)
    torch.manual_seed(1)
    adapted = get_peft_model(
        model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type=task, **options)
    ).eval()
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.save_pretrained(folder)
    return adapted


def test_a_hub_id_with_and_without_a_revision(hub: Path, policy: str, tmp_path: Path) -> None:
    put_on_hub(hub, "owner/model", policy, COMMIT, "main")
    put_on_hub(hub, "owner/model", tiny.save_policy(tmp_path / "other", seed=5), OTHER, "v2")
    put_on_hub(hub, "gpt2", policy, COMMIT, "main")
    for name, commit in {
        "owner/model": COMMIT,
        "owner/model@v2": OTHER,
        f"owner/model@{OTHER}": OTHER,
        "gpt2": COMMIT,
    }.items():
        assert Path(resolve.resolve(name)).name == commit == resolve.revision(name)
    assert torch.equal(logits("owner/model"), logits(policy))
    assert torch.equal(logits("owner/model@v2"), logits(str(tmp_path / "other")))
    with pytest.raises(UserError, match="no model owner/model@v3"):
        resolve.resolve("owner/model@v3")


def test_a_folder_inside_a_repository(hub: Path, policy: str) -> None:
    put_on_hub(hub, "owner/many", policy, COMMIT, "main", inside="small/sft")
    assert torch.equal(logits("owner/many/small/sft"), logits(policy))
    assert resolve.revision("owner/many/small/sft@main") == COMMIT
    with pytest.raises(UserError, match="has no folder large"):
        resolve.resolve("owner/many/large")


def test_a_local_folder_comes_before_the_hub(
    hub: Path, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_hub(hub, "owner/model", policy, COMMIT, "main")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(policy, tmp_path / "owner" / "model")
    assert resolve.resolve("owner/model") == "owner/model"


def test_without_a_network_a_missing_model_is_an_error_and_no_retry(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://localhost:9")  # nobody answers
    with pytest.raises(UserError, match="no model owner/nothing") as error:
        loading.load_policy("owner/nothing")
    assert "refused" in str(error.value.__cause__)
    assert sum(waits) < 5


def test_a_gguf_file_is_converted_once_and_again_when_it_changes(
    hub: Path, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf_file = pytest.importorskip("tests.support.gguf_file")
    monkeypatch.setenv("SHFCAS_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "given" / "small.gguf"
    file.parent.mkdir()
    gguf_file.write_gguf(file, *loading.load_policy(policy))
    _, tokenizer = loading.load_policy(str(file))
    assert torch.equal(logits(str(file)), logits(policy))
    assert tokenizer.decode(tokenizer("how was the soup?")["input_ids"]) == "how was the soup?"
    assert tokenizer.chat_template == tiny.CHAT_TEMPLATE and tokenizer.eos_token == "<|end|>"
    folder = Path(resolve.resolve(str(file)))
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert resolve.resolve(str(file)) == str(folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    gguf_file.write_gguf(file, *loading.load_policy(tiny.save_policy(tmp_path / "other", seed=1)))
    os.utime(file, ns=(1, 1))
    assert resolve.resolve(str(file)) != str(folder)

    shutil.copytree(file.parent, hub / "models--owner--quantised" / "snapshots" / COMMIT)
    (hub / "models--owner--quantised" / "refs").mkdir()
    (hub / "models--owner--quantised" / "refs" / "main").write_text(COMMIT)
    assert torch.equal(logits("owner/quantised/small.gguf"), logits(str(file)))


def test_what_is_no_gguf_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(UserError, match="cannot be converted from GGUF") as error:
        loading.load_policy(str(tmp_path / "a.gguf"))
    assert "\n" not in str(error.value)
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="neither a folder nor a GGUF file"):
        loading.load_policy(str(tmp_path / "model.bin"))


@pytest.mark.parametrize("own_tokenizer", [False, True])
def test_an_adapter_is_merged_into_the_model_that_it_names(own_tokenizer: bool, policy: str, tmp_path: Path) -> None:
    adapted = adapter(policy, tmp_path, "CAUSAL_LM")
    if own_tokenizer:
        tokenizer = tiny.policy_tokenizer()
        tokenizer.chat_template = "mine"
        tokenizer.save_pretrained(tmp_path)
    model, tokenizer = loading.load_policy(str(tmp_path))
    with torch.no_grad():
        assert torch.allclose(model(IDS).logits, adapted(IDS).logits, atol=1e-4)
        assert not torch.allclose(model(IDS).logits, logits(policy), atol=1e-2)
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert (tokenizer.chat_template == "mine") == own_tokenizer
    loading.save_model(tmp_path / "plain", model, tokenizer)
    assert torch.equal(logits(str(tmp_path / "plain")), logits(str(tmp_path)))


def test_an_adapter_of_a_pinned_hub_model(hub: Path, policy: str, tmp_path: Path) -> None:
    put_on_hub(hub, "owner/base", policy, COMMIT, "main")
    put_on_hub(hub, "owner/base", tiny.save_policy(tmp_path / "newer", seed=7), OTHER, "v2")
    adapted = adapter("owner/base@v2", tmp_path / "adapter", "CAUSAL_LM")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "owner/base"}))
    put_on_hub(hub, "owner/adapter", str(tmp_path / "adapter"), COMMIT, "main")
    with torch.no_grad():
        assert not torch.allclose(logits("owner/adapter"), adapted(IDS).logits, atol=1e-2)  # on main
    path.write_text(json.dumps({**json.loads(path.read_text()), "revision": "v2"}))
    with torch.no_grad():
        assert torch.allclose(logits(str(tmp_path / "adapter")), adapted(IDS).logits, atol=1e-4)


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_a_reward_adapter_brings_its_score_head(kind: str, policy: str, reward_model: str, tmp_path: Path) -> None:
    base = policy if kind == "decoder" else reward_model
    torch.manual_seed(3)
    head = "score" if kind == "decoder" else "classifier"
    adapted = adapter(base, tmp_path / "adapter", "SEQ_CLS", modules_to_save=[head])
    torch.manual_seed(4)  # a fresh head would be another one now
    model, _ = loading.load_reward_model(str(tmp_path / "adapter"))
    with torch.no_grad():
        assert torch.allclose(model(IDS).logits, adapted(IDS).logits, atol=1e-4)
    assert loading.has_trained_head(str(tmp_path / "adapter"))
    (score,) = load_scorer(str(tmp_path / "adapter"))(["how was it?"], ["good"])
    assert np.isfinite(score)


def test_an_adapter_of_another_model_is_one_clear_error(policy: str, tmp_path: Path) -> None:
    adapter(policy, tmp_path, "CAUSAL_LM")
    weights = load_file(tmp_path / "adapter_model.safetensors")
    save_file({name: torch.zeros(3, 3) for name in weights}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"no usable adapter .*does not fit its base model") as error:
        loading.load_policy(str(tmp_path))
    assert "\n" not in str(error.value)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": None}))
    with pytest.raises(UserError, match="does not name its base model"):
        loading.load_policy(str(tmp_path))


def test_a_revision_is_that_of_the_weights(policy: str, tmp_path: Path) -> None:
    before = resolve.revision(policy)
    assert before == resolve.revision(policy) and before.startswith("weights-")
    shutil.copytree(policy, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("the same weights")
    assert resolve.revision(str(tmp_path / "copy")) == before
    weights = load_file(tmp_path / "copy" / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, tmp_path / "copy" / "model.safetensors", metadata={"format": "pt"})
    assert resolve.revision(str(tmp_path / "copy")) != before
    one, other = tmp_path / "one", tmp_path / "other"
    adapter(policy, one, "CAUSAL_LM")
    adapter(str(tmp_path / "copy"), other, "CAUSAL_LM")
    assert len({before, resolve.revision(str(one)), resolve.revision(str(other))}) == 3


def test_a_table_says_which_models_made_it(policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SamplingConfig(num_completions=2, max_new_tokens=2)
    table = sample_policy(
        policy,
        tiny.prompts(2),
        config=config,
        seed=0,
        work_dir=tmp_path / "a",
        references={"reference_logprobs": policy},
    )
    assert table.metadata["policy_revision"] == resolve.revision(policy)
    assert table.metadata["reference_logprobs_revision"] == resolve.revision(policy)
    assert "trust_remote_code" not in table.metadata
    monkeypatch.setenv("SHFCAS_TRUST_REMOTE_CODE", "1")
    assert (
        sample_policy(policy, tiny.prompts(2), config=config, seed=0, work_dir=tmp_path / "b").metadata[
            "trust_remote_code"
        ]
        is True
    )
    assert resolve.provenance(gold="tests.support.tiny:letter_reward") == {"trust_remote_code": True}


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class Own(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_that_a_model_brings_runs_only_when_it_is_allowed(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "own_model"
    shutil.copytree(policy, folder)
    (folder / "own.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"needs remote code; .* set SHFCAS_TRUST_REMOTE_CODE=1"):
        loading.load_policy(str(folder))
    monkeypatch.setenv("SHFCAS_TRUST_REMOTE_CODE", "1")
    with caplog.at_level(logging.WARNING, "shfcas"):
        assert torch.equal(logits(str(folder)), logits(policy))
    assert "may run remote code" in caplog.text
