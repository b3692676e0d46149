"""Tiny random models with real tokenizers, made in a moment and saved as any model is."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CORPUS = [
    "the soup was good and the bread was fine",
    "the train was late and the hotel was cold",
    "a good film with a bad ending",
    "how was the match? tell me about the new phone",
    "it was a great day, a terrible night, a happy morning",
]


def policy_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer whose pad token is its end token, with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>", model_max_length=128
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def reward_tokenizer() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer as BERT's: no end token, a separator, no template."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    ids = {name: tokenizer.token_to_id(name) for name in special}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=128,
    )


def save_policy(folder: Path, seed: int = 0) -> str:
    """A random two-layer Llama; returns its folder."""
    tokenizer = policy_tokenizer()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=True,
            initializer_range=0.2,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_reward_model(folder: Path, seed: int = 0) -> str:
    """A random two-layer BERT with one output; returns its folder."""
    tokenizer = reward_tokenizer()
    torch.manual_seed(seed)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            num_labels=1,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=0.2,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def prompts(count: int = 8, chat: bool = True, prefix: str = "p") -> list[dict]:
    """Short prompts over two topics."""
    rows = []
    for i in range(count):
        topic = ("food", "travel")[i % 2]
        text = f"how was the {('soup', 'train', 'bread', 'hotel')[i % 4]}{' and the film' * (i % 3)}?"
        prompt = [{"role": "user", "content": text}] if chat else text
        rows.append({"prompt_id": f"{prefix}{i}", "topic": topic, "prompt": prompt})
    return rows


def held_out_prompts(count: int = 6) -> list[dict]:
    """Prompts that ask what none of `prompts` asks."""
    rows = prompts(count, prefix="held")
    for row in rows:
        row["prompt"][0]["content"] = row["prompt"][0]["content"].replace("how was", "tell me about")
    return rows


def letter_reward(prompts: list, completions: list, **columns: object) -> list[float]:
    """A reward that anyone can check: how many letters e an answer has."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [float(text.count("e")) + 0.01 * len(text) for text in texts]


def write_models(folder: Path) -> dict[str, str]:
    """A policy, a reference and a reward model in one folder."""
    return {
        "policy": save_policy(folder / "policy", seed=0),
        "reference": save_policy(folder / "reference", seed=1),
        "reward_model": save_reward_model(folder / "reward"),
    }


def nan_reward(prompts: list, completions: list, **columns: object) -> list[float]:
    """A reward that fails on its last answer."""
    return [0.0] * (len(completions) - 1) + [float("nan")]


def write_lines(path: Path, rows: list[dict]) -> str:
    """Writes JSON lines; returns the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)
