"""A tiny random reward or cost model with the files of safe-rlhf."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.support.architectures import save_policy, sentence_piece

MEAN, VAR = 0.7, 4.0


def save_safe_rlhf(folder: Path, bias: bool = True, binary: bool = False, **config: Any) -> str:
    """A random model with the names of weights and of settings that safe-rlhf saves."""
    torch.manual_seed(0)
    save_policy("mistral", folder / "policy")
    weights = load_file(folder / "policy" / "model.safetensors")
    weights.pop("lm_head.weight", None)
    weights["score_head.weight"] = torch.randn(1, 32)
    if bias:
        weights["score_head.bias"] = torch.tensor([0.3])
    weights |= {"normalizer.mean": torch.tensor([MEAN]), "normalizer.var": torch.tensor([VAR])}
    weights["normalizer.count"] = torch.tensor([17])
    tokenizer = sentence_piece(["<s>", "</s>"], "<s>", bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(folder)
    values = json.loads((folder / "policy" / "config.json").read_text())
    values |= {"architectures": ["MistralForScore"], "score_dim": 1, "score_type": "reward", "do_normalize": False}
    (folder / "config.json").write_text(json.dumps(values | config))
    if binary:
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)
