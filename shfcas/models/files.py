"""Checks of a model's files before a library reads them, with a remedy for each file that it could not read."""

import json
import pickle
from pathlib import Path
from typing import Any

from shfcas.utils.errors import UserError
from shfcas.utils.files import read_object

OBJECTS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "adapter_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")
TRUST = "SHFCAS_TRUST_REMOTE_CODE"
CONVERT = (
    "python -c \"import torch, safetensors.torch as s; w = torch.load('{0}', weights_only=True); "
    "s.save_file({{k: v.clone() for k, v in w.items()}}, 'model.safetensors', {{'format': 'pt'}})\""
)


def check_files(name: str, folder: str, trusted: bool) -> None:
    """Checks the JSON files of a model or tokenizer.

    Args:
        name: the model's name, for errors.
        folder: the local folder.
        trusted: whether remote code may run, which kernels of the hub are too.

    Raises:
        UserError: a file is not a JSON object, or the configuration asks for a quantisation that transformers does not
            know, or for remote code that is not trusted.
    """
    found = {file: read_object(path) for file in OBJECTS if (path := Path(folder) / file).is_file()}
    for config in (found.get("config.json", {}), found.get("generation_config.json", {})):
        if not trusted and (kernel := _kernel(config)):
            raise UserError(
                f"no usable model {name}: its config.json asks for the kernel {kernel}, which is remote code; set "
                f"attn_implementation to sdpa there, or {TRUST}=1 if you trust its author"
            )
    if "quantization_config" in found.get("config.json", {}):
        _check_quantisation(name, found["config.json"]["quantization_config"])


def _kernel(config: dict[str, Any]) -> str | None:
    """Returns the kernel of the hub that a configuration asks for, also for a part of the model."""
    for key, value in config.items():
        if isinstance(value, dict) and (inner := _kernel(value)):
            return inner
        if "implementation" in key:
            values = value.values() if isinstance(value, dict) else [value]
            for implementation in values:
                if isinstance(implementation, str) and "/" in implementation:
                    return implementation
    return None


def _check_quantisation(name: str, quantisation: Any) -> None:
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    remedy = "use its weights without quantisation"
    if quantisation is None:
        return
    if not isinstance(quantisation, dict):
        raise UserError(f"{name}: expected quantization_config in config.json to be an object; {remedy}")
    method = quantisation.get("quant_method")
    bitsandbytes = quantisation.get("load_in_4bit") or quantisation.get("load_in_8bit")
    if method not in AUTO_QUANTIZATION_CONFIG_MAPPING and not bitsandbytes:
        raise UserError(
            f"no usable model {name}: its config.json names the quantisation {method}, which this transformers does "
            f"not know; {remedy}, or update transformers"
        )


def unreadable(name: str, folder: str, error: Exception) -> UserError:
    """Returns the error of a model that a library could not load, as one line with a remedy where one is known."""
    text = " ".join(str(error).split())
    reason = text[:200] or type(error).__name__
    if isinstance(error, pickle.UnpicklingError) or "no file named" in text:
        reason = _not_safetensors(folder) or reason
    elif "trust_remote_code" in text:
        reason = f"it needs remote code; if you trust its author, set {TRUST}=1"
    elif "mismatched" in text:
        reason = "its weights do not have the shapes of its config.json"
    elif type(error).__name__ == "SafetensorError" or "PytorchStreamReader" in text:
        reason = f"its weights are damaged or cut off ({reason}); copy or download them again"
    elif isinstance(error, json.JSONDecodeError):
        reason = f"one of its JSON files is damaged ({reason}); copy or download it again"
    elif isinstance(error, TypeError | KeyError | AttributeError | IndexError):
        reason = f"{type(error).__name__}: {reason}"
    return UserError(f"no usable model {name}: {reason}")


def _not_safetensors(folder: str) -> str | None:
    """Describes weights in another format, with the way to safetensors; None if there are none."""
    pickles = sorted(path.name for path in Path(folder).iterdir() if path.suffix in PICKLES)
    if not pickles:
        return None
    remedy = f"if you trust their author, convert them to safetensors in that folder: {CONVERT.format(pickles[0])}"
    if Path(pickles[0]).suffix in (".h5", ".msgpack"):
        remedy = "save the model from PyTorch as safetensors"
    return f"its weights {pickles[0]} are not safetensors and cannot be loaded safely; {remedy}"
