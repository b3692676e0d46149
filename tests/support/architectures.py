"""Tiny random models of many architectures, each with a tokenizer of the kind that its family has."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.support import tiny

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (  # begins with BOS, ends turns with another token than EOS, wants no system turn
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (  # users and assistants in turn, or an exception
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% else %} {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}<|start|>{{ message['role'] }}<|stop|>\n\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|eot_id|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|eot_id|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|stop|>\n\n{% endif %}"
)


def byte_level(special: list[str], before: str | None = None, **tokens: Any) -> PreTrainedTokenizerFast:
    """As GPT-2's; `before` is a special token that the tokenizer itself puts before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(tiny.CORPUS, trainer)
    return _finished(tokenizer, before, tokens)


def sentence_piece(special: list[str], before: str | None = None, **tokens: Any) -> PreTrainedTokenizerFast:
    """As Llama's first: words begin with a mark, and what is not in the vocabulary is spelled in bytes."""
    words = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = words
    trainer = trainers.BpeTrainer(vocab_size=140, special_tokens=["<unk>", *special], show_progress=False)
    trained.train_from_iterator(tiny.CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    for byte in range(256):
        model["vocab"][f"<0x{byte:02X}>"] = len(model["vocab"])
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(models.BPE(model["vocab"], merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.add_special_tokens(["<unk>", *special])
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _finished(tokenizer, before, {"unk_token": "<unk>", **tokens})


def _finished(tokenizer: Tokenizer, before: str | None, tokens: dict[str, Any]) -> PreTrainedTokenizerFast:
    if before:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{before} $A", special_tokens=[(before, tokenizer.token_to_id(before))]
        )
    template = tokens.pop("chat_template", None)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **tokens)
    fast.chat_template = template
    return fast


def llama() -> PreTrainedTokenizerFast:
    special = ["<s>", "</s>", "<|start|>", "<|stop|>", "<|eot_id|>"]
    return byte_level(special, "<s>", bos_token="<s>", eos_token="</s>", chat_template=LLAMA3)


def qwen() -> PreTrainedTokenizerFast:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return byte_level(special, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML)


def gemma() -> PreTrainedTokenizerFast:
    special = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
    return sentence_piece(
        special, "<bos>", bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", chat_template=GEMMA
    )


def mistral() -> PreTrainedTokenizerFast:
    return sentence_piece(
        ["<s>", "</s>"], "<s>", bos_token="<s>", eos_token="</s>", padding_side="left", chat_template=MISTRAL
    )


def one_special() -> PreTrainedTokenizerFast:
    """As GPT-2's and Pythia's: one special token, no pad token, no template."""
    end = "<|endoftext|>"
    return byte_level([end], bos_token=end, eos_token=end, unk_token=end)


def opt() -> PreTrainedTokenizerFast:
    return byte_level(["<s>", "<pad>", "</s>"], "</s>", bos_token="</s>", eos_token="</s>", pad_token="<pad>")


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128}
GROUPED = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}

# model_type: tokenizer, options of the configuration, whether prompts are messages, chat template to set
POLICIES: dict[str, tuple[Callable[[], Any], dict[str, Any], bool, str | None]] = {
    "llama": (llama, GROUPED, True, None),
    "qwen3": (qwen, GROUPED, True, None),
    "gemma2": (
        gemma,
        {**GROUPED, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0, "sliding_window": 16},
        True,
        None,
    ),
    "gpt_neox": (one_special, {**SIZES, "intermediate_size": 48}, True, "plain"),
    "gpt2": (one_special, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}, False, None),
    "opt": (opt, {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 16}, False, None),
    "phi": (one_special, {**SIZES, "intermediate_size": 48}, False, None),
    "bloom": (one_special, {"hidden_size": 32, "n_layer": 2, "n_head": 4}, False, None),  # takes no positions
    "mistral": (mistral, {**GROUPED, "sliding_window": 8}, True, None),
}
ENCODERS = {
    "bert": {"intermediate_size": 48},
    "modernbert": {"intermediate_size": 48, "local_attention": 8, "global_attn_every_n_layers": 2},
    "deberta-v2": {
        "intermediate_size": 48,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "max_relative_positions": 32,
    },
}
REWARDS = [*ENCODERS, *POLICIES]


def _config(model_type: str, tokenizer: Any, options: dict[str, Any], **more: Any) -> Any:
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    return transformers.AutoConfig.for_model(
        model_type, vocab_size=len(tokenizer), initializer_range=0.3, **ids, **options, **more
    )


def _save(model: Any, tokenizer: Any, folder: Path) -> str:
    with torch.no_grad():  # biases and norms are constant in fresh models, and would hide what they do
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_policy(model_type: str, folder: Path, seed: int = 0) -> str:
    """A random causal language model; returns its folder."""
    make_tokenizer, options, _, _ = POLICIES[model_type]
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(_config(model_type, tokenizer, options))
    return _save(model, tokenizer, folder)


def save_reward(model_type: str, folder: Path, seed: int = 0) -> str:
    """A random sequence classifier with one output; returns its folder."""
    if model_type in ENCODERS:
        tokenizer, options = tiny.reward_tokenizer(), {**SIZES, **ENCODERS[model_type]}
    else:
        make_tokenizer, options, _, _ = POLICIES[model_type]
        tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    config = _config(model_type, tokenizer, options, num_labels=1)
    if model_type == "modernbert":  # has tokens of its own in their place
        config.cls_token_id, config.sep_token_id = tokenizer.cls_token_id, tokenizer.sep_token_id
    return _save(transformers.AutoModelForSequenceClassification.from_config(config), tokenizer, folder)


def save_pair_model(model_type: str, folder: Path) -> str:
    """A random classifier with one output whose tokenizer, as BERT's, marks the second text; returns its folder."""
    tokenizer = tiny.reward_tokenizer()
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in ("[CLS]", "[SEP]")}
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=list(ids.items())
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        model_max_length=128,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **tokenizer.special_tokens_map,
    )
    torch.manual_seed(0)
    options = {**SIZES, "intermediate_size": 48, "type_vocab_size": 2, "num_labels": 1}
    config = _config(model_type, tokenizer, options)
    return _save(transformers.AutoModelForSequenceClassification.from_config(config), tokenizer, folder)
