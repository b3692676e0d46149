"""Tasks so small that all answers can be listed, with the optimum of the KL-regularised objective in closed form."""

import itertools

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

EOS = 0
PROMPT = [3, 1]


def tokenizer(size: int) -> PreTrainedTokenizerFast:
    vocabulary = {"</s>": EOS} | {f"w{i}": i for i in range(1, size)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="</s>")


def answers(size: int, length: int) -> list[tuple[int, ...]]:
    """Every answer of up to `length` tokens: it ends with the end token or at that length."""
    words = range(1, size)
    ended = [(*body, EOS) for n in range(length) for body in itertools.product(words, repeat=n)]
    return ended + list(itertools.product(words, repeat=length))


@torch.no_grad()
def distribution(model: LlamaForCausalLM, outcomes: list[tuple[int, ...]]) -> Tensor:
    """The probability of each answer, one sequence at a time."""
    logs = []
    for answer in outcomes:
        log_softmax = model(torch.tensor([[*PROMPT, *answer]])).logits[0].log_softmax(-1)
        logs.append(sum(log_softmax[len(PROMPT) - 1 + t, token] for t, token in enumerate(answer)))
    return torch.stack(logs).double().exp()


def optimum(reference: Tensor, rewards: Tensor, beta: float) -> Tensor:
    return (reference.log() + rewards / beta).softmax(0)


def distance(p: Tensor, q: Tensor) -> float:
    """Total variation."""
    return 0.5 * (p - q).abs().sum().item()
