"""Low-rank adapters: a policy is its base model and one adapter, which is never rounded to the base model's precision.

A folder with an adapter is in PEFT's own format. Its configuration names the base model, and `base_model.json` has the
version of that model. Training on top of an adapter gives one adapter again: the two are joined, which
is exact, since B1 A1 + B2 A2 = [B1 B2] [A1; A2].
"""

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shfcas.models.resolve import adapter_base, resolve, revision
from shfcas.utils.errors import UserError
from shfcas.utils.files import disk_errors, read_object, write_json

logger = logging.getLogger(__name__)

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
VERSION = "base_model.json"  # which weights the base model had
PREFIX, DOWN, UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
RUN = "manifest.json"  # file of a run directory
# Variants of LoRA that are more than two factors per layer; PEFT merges them.
OTHERS = (
    "use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "layer_replication", "trainable_token_indices",
    "lora_bias", "use_qalora", "target_parameters",
)  # fmt: skip


@dataclass(frozen=True)
class LowRank:
    """A low-rank adapter: each layer's output is increased by `scale * up @ down @ input`.

    Attributes:
        factors: by the layer's name, `down` (r, inputs) and `up` (outputs, r), float32.
        scale: factor of all updates.
        transposed: the layers store their weights transposed (GPT-2's `Conv1D`).
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    scale: float = 1.0
    transposed: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> "LowRank | None":
        """Returns an adapter from PEFT's configuration and weights; None for anything that is not plain LoRA."""
        plain = config.get("peft_type") == "LORA" and config.get("bias") in (None, "none")
        if not plain or any(config.get(name) for name in OTHERS):
            return None
        names = [key.removeprefix(PREFIX).removesuffix(DOWN) for key in weights if key.endswith(DOWN)]
        if len(weights) != 2 * len(names) or not names:
            return None
        rank = math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]
        factors = {name: (weights[PREFIX + name + DOWN].float(), weights[PREFIX + name + UP].float()) for name in names}
        return cls(factors, config["lora_alpha"] / rank, bool(config.get("fan_in_fan_out")))

    @classmethod
    def read(cls, folder: str | Path) -> "LowRank | None":
        """Reads the adapter in a folder; None for anything that is not plain LoRA in safetensors."""
        from safetensors.torch import load_file

        path = Path(folder) / WEIGHTS
        return cls.of(read_object(Path(folder) / CONFIG), load_file(path)) if path.exists() else None

    def joined(self, later: "LowRank") -> "LowRank":
        """Returns the adapter that does what this one and a later one do together; its rank is the sum of theirs."""
        ranks = [next(iter(adapter.factors.values()))[0].shape[0] for adapter in (self, later)]
        factors = {}
        for name in dict.fromkeys([*self.factors, *later.factors]):
            down, up = self.factors.get(name) or later.factors[name]
            absent = [(down.new_zeros(rank, down.shape[1]), up.new_zeros(up.shape[0], rank)) for rank in ranks]
            parts = [
                (d, adapter.scale * u)
                for adapter, zero in zip((self, later), absent, strict=True)
                for d, u in [adapter.factors.get(name) or zero]
            ]
            factors[name] = torch.cat([d for d, _ in parts]), torch.cat([u for _, u in parts], dim=1)
        return LowRank(factors, transposed=self.transposed or later.transposed)

    def attach(self, model: Any) -> None:
        """Adds the adapter to a model's layers, frozen and unmerged; adapters of PEFT may be put on top."""
        for name, (down, up) in self.factors.items():
            try:
                layer = model.get_submodule(name)
            except AttributeError:
                raise UserError(f"the adapter has a layer {name}, which its base model lacks") from None
            update = _Update(down, self.scale * up).to(next(layer.parameters()).device)
            layer.register_module(f"frozen_adapter_{len(list(layer.children()))}", update)
            update.hook = layer.register_forward_hook(update.add)

    def save(self, folder: Path, base: str, config: Any = None) -> None:
        """Writes the adapter in PEFT's format.

        Args:
            folder: where to.
            base: name of the base model.
            config: PEFT's configuration of exactly this adapter; None makes one.
        """
        from peft import LoraConfig, TaskType
        from safetensors.torch import save_file

        if config is None:
            rank = next(iter(self.factors.values()))[0].shape[0]
            config = LoraConfig(
                r=rank,
                lora_alpha=self.scale * rank,  # type: ignore[arg-type]
                target_modules=sorted(self.factors),
                fan_in_fan_out=self.transposed,
                task_type=TaskType.CAUSAL_LM,
            )
        config.inference_mode = True
        config.base_model_name_or_path, config.revision = base_reference(base, folder)
        weights = {PREFIX + name + DOWN: down.contiguous().cpu() for name, (down, _) in self.factors.items()}
        weights |= {PREFIX + name + UP: up.contiguous().cpu() for name, (_, up) in self.factors.items()}
        with disk_errors(str(folder)):
            folder.mkdir(parents=True, exist_ok=True)
            # Two keys of metadata, or a set in PEFT's own file, would be written in another order by every process.
            save_file(weights, folder / WEIGHTS, {"format": "pt"})
            fields = {
                name: sorted(value) if isinstance(value, set) else value for name, value in config.to_dict().items()
            }
            write_json(folder / CONFIG, dict(sorted(fields.items())))
            write_json(folder / VERSION, {"revision": revision(base)})


class _Update(nn.Module):
    """The frozen update of one layer; it is no part of the model's state."""

    down: Tensor
    up: Tensor
    hook: Any = None

    def __init__(self, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.register_buffer("down", down, persistent=False)
        self.register_buffer("up", up, persistent=False)

    def add(self, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Returns the layer's output with the update, computed in the adapter's precision."""
        hidden = inputs[0].to(self.down.dtype)
        return output + nn.functional.linear(nn.functional.linear(hidden, self.down), self.up).to(output.dtype)


@torch.no_grad()
def fold_attached(model: Any) -> Any:
    """Adds attached adapters to the weights of their layers, which should be float32; returns the model."""
    for layer in list(model.modules()):
        for name, update in list(layer.named_children()):
            if isinstance(update, _Update):
                change = update.up @ update.down
                layer.weight += change.T if _transposed(layer) else change
                update.hook.remove()
                delattr(layer, name)
    return model


def _transposed(layer: Any) -> bool:
    return type(layer).__name__ == "Conv1D"  # GPT-2's, with weights (inputs, outputs)


def base_name(policy: str) -> str:
    """Returns the name of the base model of a policy that is an adapter, or else the policy's own name."""
    return adapter_base(resolve(policy)) or policy


def base_reference(base: str, folder: Path) -> tuple[str, str | None]:
    """Returns what an adapter's configuration says about its base model: a name and, for a hub id, a revision.

    A base model inside the same run directory is named relative to the adapter's folder, so the run may be moved. Any
    other folder has its absolute path.
    """
    path = Path(base).expanduser()
    if not path.exists():
        name, _, version = base.partition("@")
        return name, version or None
    path, own = path.resolve(), folder.resolve()
    run = next((parent for parent in own.parents if (parent / RUN).is_file()), None)
    inside = run is not None and path.is_relative_to(run)
    return (os.path.relpath(path, own) if inside else str(path)), None


def check_version(folder: str, base: str) -> None:
    """Raises UserError if the base model in a local folder is no longer the one that the adapter was trained on."""
    path = Path(folder) / VERSION
    if not path.exists() or not Path(base).is_dir():
        return
    expected, found = str(read_object(path).get("revision")), revision(base)
    if expected.startswith("weights-") and found.startswith("weights-") and found != expected:
        raise UserError(
            f"the adapter {folder} was trained on other weights than those now in {base} ({expected}, now {found}); "
            "restore the base model, or name it in base_model_name_or_path of adapter_config.json"
        )


def merge_adapter(model: Any, name: str) -> Any:
    """Returns PEFT's model with its adapter merged; logs what a merge in lower precision than float32 loses.

    Args:
        model: a model with an adapter of PEFT.
        name: its name, for the log.
    """
    if model.dtype == torch.float32:
        return model.merge_and_unload()
    ids = probe(model)
    wanted = token_log_probabilities(model, ids)
    with model.disable_adapter():
        whole = kl(wanted, token_log_probabilities(model, ids))
    merged = model.merge_and_unload()
    report_loss(name, kl(wanted, token_log_probabilities(merged, ids)), whole)
    return merged


def report_loss(name: str, lost: float, whole: float) -> None:
    """Logs how far a merged model is from the one with its adapter, beside what the adapter changes."""
    logger.warning(
        "%s: low precision changes the merged model by %.2g nats per token; its adapter changes the base model by %.2g",
        name,
        lost,
        whole,
    )


def probe(model: Any) -> Tensor:
    """Returns (8, 32) token ids on which models are compared, always the same for a vocabulary."""
    size = model.get_input_embeddings().weight.shape[0]
    return torch.randint(size, (8, 32), generator=torch.Generator().manual_seed(0)).to(model.device)


@torch.no_grad()
def token_log_probabilities(model: Any, ids: Tensor) -> Tensor:
    """Returns the log-probabilities (B, T, V) of all next tokens, float32."""
    output = model.eval()(input_ids=ids)
    return output.logits.float().log_softmax(-1)


def kl(wanted: Tensor, found: Tensor) -> float:
    """Returns the mean KL of two distributions over tokens, from log-probabilities (..., V), in nats."""
    return (wanted.exp() * (wanted - found)).sum(-1).mean().item()
