"""Files of a model that are damaged, of another kind, or ask for what is not trusted: one line with the remedy."""

import json
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from shfcas.models import loading
from shfcas.models.files import CONVERT, check_files
from shfcas.models.resolve import adapter_base
from shfcas.rewards.scorers import load_scorer
from shfcas.utils.errors import UserError


@pytest.fixture
def folder(policy: str, tmp_path: Path) -> Path:
    """A policy that a test may break."""
    return Path(shutil.copytree(policy, tmp_path / "model"))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        loading.load_policy(str(folder))
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def set_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize("content", ["[]", "null", '"text"', "3", "true"])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_a_json_file_that_holds_no_object_is_named(name: str, content: str, folder: Path) -> None:
    (folder / name).write_text(content)
    refused(folder, rf"{name}: expected a JSON object, got .*; restore the file")


def test_a_damaged_tokenizer_and_a_damaged_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("[]")
    refused(folder, r"index\.json: expected a JSON object, got a list")
    (folder / "model.safetensors.index.json").unlink()
    (folder / "tokenizer.json").write_text('{"a":')
    refused(folder, "one of its JSON files is damaged .*; copy or download it again")


def test_weights_that_are_cut_off(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    whole = (folder / "model.safetensors").read_bytes()
    for size in (0, 5, len(whole) // 2, len(whole) - 1):
        (folder / "model.safetensors").write_bytes(whole[:size])
        refused(folder, "its weights are damaged or cut off .*; copy or download them again")
    (folder / "model.safetensors").unlink()
    loading.load_policy(str(folder))  # safe to load, though pickled
    part = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(part[: len(part) // 2])
    refused(folder, "no usable model")


class Hostile:
    def __reduce__(self) -> tuple:
        return pytest.fail, ("a pickle ran code",)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_weights_run_nothing_and_the_way_to_safetensors_is_named(legacy: bool, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    if legacy:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Hostile()}))
    else:
        torch.save({"a": Hostile()}, folder / "pytorch_model.bin")
        assert zipfile.is_zipfile(folder / "pytorch_model.bin")
    refused(
        folder, r"pytorch_model.bin are not safetensors .*if you trust their author, convert .*python -c \"import torch"
    )


@pytest.mark.parametrize(("name", "remedy"), [("tf_model.h5", "save the model from PyTorch"), ("w.pth", "python -c")])
def test_weights_of_another_kind(name: str, remedy: str, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / name)
    refused(folder, f"its weights {name} are not safetensors .*{remedy}")


def test_the_conversion_that_the_error_names_works(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = load_file(folder / "model.safetensors")
    before = loading.load_policy(str(folder))[0].state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    monkeypatch.chdir(folder)
    exec(CONVERT.format("pytorch_model.bin").removeprefix('python -c "').removesuffix('"'), {})
    (folder / "pytorch_model.bin").unlink()
    after = loading.load_policy(str(folder))[0].state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("quantisation", "message"),
    [
        ({"quant_method": "unheard"}, "names the quantisation unheard, which this transformers does not know; use its"),
        ({"bits": 4}, "names the quantisation None"),
        ("int4", "expected quantization_config in config.json to be an object"),
    ],
)
def test_an_unknown_quantisation(quantisation: Any, message: str, folder: Path) -> None:
    set_config(folder, quantization_config=quantisation)
    refused(folder, message)


def test_a_quantisation_whose_package_is_missing_is_one_line(folder: Path) -> None:
    pytest.importorskip("transformers")
    set_config(folder, quantization_config={"quant_method": "awq", "bits": 4})
    refused(folder, "no usable model .*gptqmodel")


def adapter(folder: Path, config: Any) -> str:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(2, 2)}, folder / "adapter_model.safetensors")
    return str(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "adapter_config.json: expected a JSON object, got a list"),
        ({"base_model_name_or_path": 5}, "does not name its base model; set base_model_name_or_path"),
        ({"base_model_name_or_path": "{policy}"}, "no usable adapter .*KeyError"),
        ({"base_model_name_or_path": "{policy}", "peft_type": "NONE"}, "no usable adapter"),
        ({"base_model_name_or_path": "{policy}", "peft_type": "LORA", "r": "x"}, "no usable adapter"),
    ],
)
def test_an_adapter_that_cannot_be_read(config: Any, message: str, policy: str, tmp_path: Path) -> None:
    text = json.dumps(config).replace("{policy}", policy)
    refused(Path(adapter(tmp_path / "adapter", json.loads(text))), message)


def test_adapters_that_lead_back_to_themselves(tmp_path: Path) -> None:
    for name, base in (("own", "own"), ("one", "two"), ("two", "three"), ("three", "one")):
        adapter(tmp_path / name, {"base_model_name_or_path": str(tmp_path / base), "peft_type": "LORA"})
    for name in ("own", "one", "two", "three"):
        refused(tmp_path / name, "leads back to itself through its base model .*; set base_model_name_or_path")
    hub = tmp_path / "models--ada--adapter" / "snapshots" / "0"
    hub.parent.mkdir(parents=True)
    adapter(hub, {"base_model_name_or_path": "ada/adapter", "revision": "main"})
    with pytest.raises(UserError, match="leads back to itself"):
        adapter_base(str(hub))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "expected a JSON object, got a list"),
        ("{}", "expected members, a list of folders"),
        ('{"members": [1]}', "expected members, a list of folders"),
        ('{"members": []}', "expected members, a list of folders"),
        ('{"members": ["."]}', "expected members that are models, got an ensemble"),
    ],
)
def test_an_ensemble_that_cannot_be_read(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "ensemble.json").write_text(content)
    with pytest.raises(UserError, match=rf"ensemble\.json: {message}"):
        load_scorer(str(tmp_path))


@pytest.mark.parametrize(
    "values",
    [
        {"attn_implementation": "someone/kernel"},
        {"attn_implementation": {"": "kernels-community/flash-attn2@main"}},
        {"experts_implementation": "someone/experts"},
        {"text_config": {"attn_implementation": "someone/kernel:function"}},
    ],
)
def test_a_kernel_of_the_hub_is_remote_code(values: dict, folder: Path) -> None:
    set_config(folder, **values)
    refused(
        folder, "asks for the kernel .*, which is remote code; set attn_implementation to sdpa there, or SHFCAS_TRUST"
    )
    check_files("m", str(folder), trusted=True)


def test_transformers_loads_no_kernel_by_itself(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some models and quantisations load kernels of the hub wherever the package `kernels` is installed."""
    from transformers.integrations import hub_kernels

    for name, value in (("_kernels_enabled", True), ("get_kernel_hub", pytest.fail)):
        monkeypatch.setattr(hub_kernels, name, value, raising=False)
    monkeypatch.setattr(hub_kernels, "is_kernels_available", lambda: True)
    loading.load_policy(policy)
    with pytest.raises(UserError, match=r"the kernel a/b of the hub is remote code; .*SHFCAS_TRUST_REMOTE_CODE=1"):
        hub_kernels.get_kernel("a/b", version=1)
    assert hub_kernels.lazy_load_kernel("causal-conv1d", {}) is None
