"""Sampling: exact log-probabilities in padded batches, independent answers, the right distribution, shards."""

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedConfig

from shfcas.data.chat import encode_prompt
from shfcas.models.loading import load_policy
from shfcas.sampling.config import SamplingConfig
from shfcas.sampling.local import LocalSampler
from shfcas.sampling.logprobs import response_logprobs
from shfcas.sampling.table import sample_policy, sample_table
from shfcas.utils.errors import UsageError, UserError
from tests.support import architectures, tiny

QUESTION = {"prompt_id": "q", "prompt": "how was the soup?"}


@pytest.fixture(scope="module")
def policy(tiny_models: dict[str, str]) -> tuple[Any, Any]:
    return load_policy(tiny_models["policy"])


@pytest.fixture
def generated(policy: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Every sequence that `generate` returns, padding and all, as the tests run."""
    model, generate, seen = policy[0], policy[0].generate, []

    def recording(**arguments: Any) -> torch.Tensor:
        sequences = generate(**arguments)
        width = arguments["input_ids"].shape[1]
        for ids, mask, row in zip(arguments["input_ids"], arguments["attention_mask"], sequences, strict=True):
            seen.append((ids[mask.bool()].tolist(), row[width:].tolist()))
        return sequences

    monkeypatch.setattr(model, "generate", recording)
    return seen


def naive_logprob(model: Any, prompt: list[int], answer: list[int]) -> float:
    """One sequence, no padding, the whole softmax."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0]
    table = torch.log_softmax(logits, -1)
    return sum(table[len(prompt) - 1 + k, token].item() for k, token in enumerate(answer))


def test_logits_are_never_copied_in_float32(policy: tuple[Any, Any]) -> None:
    model = copy.deepcopy(policy[0]).bfloat16()
    ids, mask, made = torch.arange(120).reshape(4, 30), torch.ones(4, 10), []

    class Float32(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            made.extend(p.numel() for p in tree_leaves(result) if torch.is_tensor(p) and p.dtype == torch.float32)
            return result

    with Float32():
        got = response_logprobs(model, ids, mask)
    assert max(made) < 4 * 20 * model.config.vocab_size / 4
    expected = model(ids).logits.float().log_softmax(-1)[:, 9:-1].gather(-1, ids[:, 10:, None]).squeeze(-1)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def draw_first_tokens(policy: tuple[Any, Any], count: int, **options: Any) -> Counter:
    """The first tokens of many answers to one prompt; answers of one token are their own text."""
    model, tokenizer = policy
    drawn: list[int] = []
    generate = model.generate

    def recording(**arguments: Any) -> torch.Tensor:
        sequences = generate(**arguments)
        drawn.extend(sequences[:, -1].tolist())
        return sequences

    config = SamplingConfig(num_completions=count, max_new_tokens=1, batch_size=1000, **options)
    model.generate = recording
    try:
        list(LocalSampler(model, tokenizer, config=config)([QUESTION]))
    finally:
        del model.generate
    return Counter(drawn)


def next_token_logits(policy: tuple[Any, Any]) -> torch.Tensor:
    model, tokenizer = policy
    with torch.no_grad():
        return model(torch.tensor([encode_prompt(tokenizer, QUESTION["prompt"])])).logits[0, -1]


def test_logprobs_equal_a_naive_computation(
    policy: tuple[Any, Any], tiny_models: dict[str, str], generated: list
) -> None:
    model, tokenizer = policy
    reference = load_policy(tiny_models["reference"])[0]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    config = SamplingConfig(num_completions=40, temperature=0.9, max_new_tokens=24, batch_size=32)
    sampler = LocalSampler(model, tokenizer, config=config, seed=3, references={"reference_logprobs": reference})
    rows = list(sampler(tiny.prompts(6)))
    prompts = {tuple(encode_prompt(tokenizer, row["prompt"])): row for row in rows}
    assert len({len(p) for p in prompts}) > 1  # so some are padded
    position: Counter = Counter()
    finished = 0
    for prompt, tokens in generated:
        row = prompts[tuple(prompt)]
        i = position[row["prompt_id"]]
        position[row["prompt_id"]] += 1
        ends = tokenizer.eos_token_id in tokens
        answer = tokens[: tokens.index(tokenizer.eos_token_id) + 1] if ends else tokens
        finished += ends
        assert row["finished"][i] == ends
        assert row["num_tokens"][i] == len(answer)
        assert row["completions"][i] == tokenizer.decode(answer, skip_special_tokens=True).strip()
        assert row["logprobs"][i] == pytest.approx(naive_logprob(model, prompt, answer), abs=1e-4)
        assert row["reference_logprobs"][i] == pytest.approx(naive_logprob(reference, prompt, answer), abs=1e-4)
    assert set(position.values()) == {40} and len(position) == 6
    assert 3 <= finished <= 237  # both kinds were seen


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_a_policy_is_its_own_reference(positions: str, policy: tuple[Any, Any]) -> None:
    model, tokenizer = policy
    if positions == "learned":  # where a token stands counts, not just how far it is from the others
        torch.manual_seed(0)
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(tokenizer), n_positions=128, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2
            )
        ).eval()
    config = SamplingConfig(num_completions=6, max_new_tokens=12, batch_size=7)
    for row in LocalSampler(model, tokenizer, config=config, references={"reference_logprobs": model})(tiny.prompts(5)):
        assert row["reference_logprobs"] == row["logprobs"]


@pytest.mark.parametrize("head", [False, True], ids=["bfloat16 head", "float32 head"])
def test_a_bfloat16_policy_has_no_kl_to_itself(head: bool, tiny_models: dict[str, str]) -> None:
    """Decoding and a forward pass round differently, so both log-probabilities come from a forward pass."""
    model, tokenizer = load_policy(tiny_models["policy"], dtype=torch.bfloat16, float32_head=head)
    again = load_policy(tiny_models["policy"], dtype=torch.bfloat16, float32_head=head)[0]
    config = SamplingConfig(num_completions=6, max_new_tokens=12, batch_size=7)
    columns = {"reference_logprobs": again}
    sampled = [
        list(LocalSampler(model, tokenizer, config=config, references=references)(tiny.prompts(5)))
        for references in (columns, {})
    ]
    for row in sampled[0]:
        assert row["reference_logprobs"] == row["logprobs"]
    assert [row["completions"] for row in sampled[0]] == [row["completions"] for row in sampled[1]]
    exact = load_policy(tiny_models["policy"], dtype=torch.bfloat16)[0].float()
    errors = [
        abs(logprob - naive_logprob(exact, encode_prompt(tokenizer, row["prompt"]), ids))
        for row in sampled[0]
        for logprob, ids in zip(row["logprobs"], row["completion_ids"], strict=True)
    ]
    assert sum(errors) / len(errors) < (0.1 if head else 0.5)


def test_answers_do_not_depend_on_the_batch_or_the_order(policy: tuple[Any, Any]) -> None:
    prompts = tiny.prompts(6)

    def sample(rows: list[dict], batch_size: int) -> dict[str, list[str]]:
        config = SamplingConfig(num_completions=3, temperature=1.0, max_new_tokens=12, batch_size=batch_size)
        return {row["prompt_id"]: row["completions"] for row in LocalSampler(*policy, config=config, seed=1)(rows)}

    together = sample(prompts, 64)
    assert len({tuple(answers) for answers in together.values()}) == 6
    assert all(len(set(answers)) > 1 for answers in together.values())
    assert sample(prompts[::-1], 5) == together
    for row in prompts:
        assert sample([row], 1) == {row["prompt_id"]: together[row["prompt_id"]]}


@pytest.mark.parametrize("stateful", [False, True])
def test_a_prompt_is_read_once_for_its_answers(
    stateful: bool, policy: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = policy
    rows = [QUESTION, {"prompt_id": "r", "prompt": "how was the long and rainy day with the soup?"}]
    config = SamplingConfig(num_completions=4, max_new_tokens=3, batch_size=6)  # the second batch has one prompt
    expected = list(LocalSampler(model, tokenizer, config=config)(rows))
    read, forward = [], model.forward

    def counting(*arguments: Any, **named: Any) -> Any:
        ids = named["input_ids"] if "input_ids" in named else arguments[0]
        read.append(ids.shape)
        return forward(*arguments, **named)

    monkeypatch.setattr(type(model), "_is_stateful", stateful)
    monkeypatch.setattr(model, "forward", counting)
    found = list(LocalSampler(model, tokenizer, config=config)(rows))
    assert [row["completions"] for row in found] == [row["completions"] for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert row["logprobs"] == pytest.approx(other["logprobs"], abs=1e-4)
    width = max(len(encode_prompt(tokenizer, row["prompt"])) for row in rows)
    of_prompts = [count for count, length in read if length in (width, width - 1)]
    assert of_prompts == ([6, 2] if stateful else [2, 1])


def test_rows_come_in_the_given_order_with_their_own_columns(policy: tuple[Any, Any]) -> None:
    prompts = tiny.prompts(7)[::-1]
    rows = list(
        LocalSampler(*policy, config=SamplingConfig(num_completions=2, max_new_tokens=2, batch_size=3))(prompts)
    )
    assert [(row["prompt_id"], row["topic"]) for row in rows] == [(p["prompt_id"], p["topic"]) for p in prompts]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_first_tokens_follow_the_softmax(policy: tuple[Any, Any], temperature: float) -> None:
    count = 4000
    drawn = draw_first_tokens(policy, count, temperature=temperature)
    expected = torch.softmax(next_token_logits(policy) / temperature, -1) * count
    common = [token for token in range(len(expected)) if expected[token] >= 5]
    rest = sum(expected[t].item() for t in range(len(expected)) if expected[t] < 5)
    statistic = sum((drawn[t] - expected[t].item()) ** 2 / expected[t].item() for t in common)
    statistic += (count - sum(drawn[t] for t in common) - rest) ** 2 / max(rest, 1e-9)
    freedom = len(common)
    assert freedom > 20
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5  # five standard deviations of a chi-square


def test_top_k_and_top_p_restrict_the_support(policy: tuple[Any, Any]) -> None:
    logits = next_token_logits(policy)
    ranked = logits.argsort(descending=True).tolist()
    assert set(draw_first_tokens(policy, 1000, temperature=1.0, top_k=3)) == set(ranked[:3])
    shares = torch.softmax(logits, -1)[ranked].cumsum(0)
    nucleus = ranked[: int((shares < 0.5).sum()) + 1]  # the fewest tokens that hold half of the probability
    assert 1 < len(nucleus) < len(ranked)
    assert set(draw_first_tokens(policy, 2000, temperature=1.0, top_p=0.5)) == set(nucleus)


def test_logprobs_are_at_temperature_one_whatever_the_support(policy: tuple[Any, Any], generated: list) -> None:
    model, tokenizer = policy
    config = SamplingConfig(num_completions=8, temperature=0.5, top_k=5, top_p=0.9, max_new_tokens=1)
    (row,) = LocalSampler(model, tokenizer, config=config)([QUESTION])
    for i, (prompt, answer) in enumerate(generated):
        assert row["logprobs"][i] == pytest.approx(naive_logprob(model, prompt, answer), abs=1e-4)


def test_a_generation_config_of_the_models_own_changes_nothing(policy: tuple[Any, Any]) -> None:
    model, tokenizer = policy
    config = SamplingConfig(num_completions=4, max_new_tokens=12)
    prompts = tiny.prompts(3)
    expected = list(LocalSampler(model, tokenizer, config=config)(prompts))
    own = model.generation_config
    model.generation_config = GenerationConfig(
        repetition_penalty=2.0, no_repeat_ngram_size=1, min_new_tokens=9, do_sample=True, temperature=0.1, top_k=2
    )
    try:
        rows = list(LocalSampler(model, tokenizer, config=config, references={"reference_logprobs": model})(prompts))
        assert model.generation_config.repetition_penalty == 2.0
    finally:
        model.generation_config = own
    for row, other in zip(rows, expected, strict=True):
        assert row["completions"] == other["completions"]
        assert row["reference_logprobs"] == pytest.approx(row["logprobs"], abs=1e-4)


def test_every_end_token_ends_an_answer(policy: tuple[Any, Any], generated: list[list[int]]) -> None:
    model, tokenizer = policy
    own = model.generation_config
    model.generation_config = GenerationConfig(eos_token_id=[40, 41, 42])
    tokenizer.chat_template = tiny.CHAT_TEMPLATE.replace("<|end|>{% endfor", "<|system|>{% endfor")
    ends = {40, 41, 42, tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|system|>")}
    try:
        sampler = LocalSampler(
            model, tokenizer, config=SamplingConfig(num_completions=60, max_new_tokens=16, temperature=1.5)
        )
        rows = list(sampler(tiny.prompts(2)))
    finally:
        model.generation_config, tokenizer.chat_template = own, tiny.CHAT_TEMPLATE
    assert sampler.end_ids == ends
    last = Counter()
    for _, tokens in generated:
        end = next((k for k, token in enumerate(tokens) if token in ends), None)
        last[None if end is None else tokens[end]] += 1
    assert last.keys() >= ends  # each of them ended some answer
    assert sum(sum(row["finished"]) for row in rows) == sum(last.values()) - last[None]


def test_padding_side_and_pad_token_change_nothing(policy: tuple[Any, Any]) -> None:
    model, tokenizer = policy
    config = SamplingConfig(num_completions=3, max_new_tokens=8, batch_size=4)
    expected = list(LocalSampler(model, tokenizer, config=config)(tiny.prompts(5)))
    for side, pad in (("left", "<|system|>"), ("right", "<|end|>")):
        other = tiny.policy_tokenizer()
        other.padding_side, other.pad_token = side, pad
        assert list(LocalSampler(model, other, config=config)(tiny.prompts(5))) == expected


def test_a_tokenizer_without_an_end_takes_the_models(tmp_path: Path) -> None:
    name = tiny.save_policy(tmp_path)
    tokenizer = tiny.policy_tokenizer()
    tokenizer.eos_token = tokenizer.pad_token = tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    model, loaded = load_policy(name, "plain")
    assert loaded.eos_token == loaded.pad_token == "<|end|>"
    model.generation_config.eos_token_id = loaded.eos_token = loaded.chat_template = None
    rows = list(
        LocalSampler(model, loaded, config=SamplingConfig(num_completions=2, max_new_tokens=5))(tiny.prompts(2, False))
    )
    assert all(row["num_tokens"] == [5, 5] and not any(row["finished"]) for row in rows)


def test_a_prompt_that_the_template_refuses_is_named(tmp_path: Path) -> None:
    policy = load_policy(architectures.save_policy("gemma2", tmp_path))
    prompts = tiny.prompts(2)
    prompts[1]["prompt"].insert(0, {"role": "system", "content": "be brief"})
    with pytest.raises(
        UserError, match=r"^prompt 'p1': the chat template of .* rejects a conversation of system, user"
    ):
        list(LocalSampler(*policy, config=SamplingConfig(max_new_tokens=4))(prompts))


def test_a_prompt_beyond_the_context_is_named(policy: tuple[Any, Any]) -> None:
    prompts = [*tiny.prompts(1), {"prompt_id": "endless", "prompt": "the soup " * 200}]
    with pytest.raises(UserError, match=r"prompt 'endless' has \d+ tokens; the model's context of 128"):
        list(LocalSampler(*policy, config=SamplingConfig(max_new_tokens=4))(prompts))


def test_another_vocabulary_is_refused(policy: tuple[Any, Any]) -> None:
    class Other:
        config = PreTrainedConfig(vocab_size=7)

    with pytest.raises(UserError, match="expected a model with the policy's vocabulary of 320 tokens, got 7"):
        LocalSampler(*policy, config=SamplingConfig(), references={"reference_logprobs": Other()})


def test_finished_shards_are_not_sampled_again(policy: tuple[Any, Any], tmp_path: Path) -> None:
    config = SamplingConfig(num_completions=2, max_new_tokens=4, shard_size=3)
    sampler, asked = LocalSampler(*policy, config=config), []

    def counting(prompts: list[dict]) -> Any:
        asked.extend(p["prompt_id"] for p in prompts)
        return sampler(prompts)

    prompts = tiny.prompts(8)
    whole = sample_table(counting, prompts, config=config, metadata={"seed": 0}, work_dir=tmp_path).rows()
    assert asked == [p["prompt_id"] for p in prompts]
    shards = sorted(tmp_path.glob("shard-*"))
    assert len(shards) == 3
    shards[1].write_bytes(shards[1].read_bytes()[:-9])
    with pytest.raises(
        UserError, match=r"shard-.*00001.parquet: not a readable Parquet file .*; delete it and run the"
    ):
        sample_table(counting, prompts, config=config, metadata={"seed": 0}, work_dir=tmp_path)
    shards[1].unlink()
    asked.clear()
    assert sample_table(counting, prompts, config=config, metadata={"seed": 0}, work_dir=tmp_path).rows() == whole
    assert asked == ["p3", "p4", "p5"]
    asked.clear()
    sample_table(
        counting, prompts, config=config, metadata={"seed": 1}, work_dir=tmp_path
    )  # shards of another recipe do not count
    assert len(asked) == 8
    prompts[7] = {**prompts[7], "prompt": [{"role": "user", "content": "a prompt that was rewritten"}]}
    assert (
        sample_table(counting, prompts, config=config, metadata={"seed": 0}, work_dir=tmp_path).rows()[7]["prompt"]
        == prompts[7]["prompt"]
    )


def test_an_interrupted_shard_leaves_nothing(policy: tuple[Any, Any], tmp_path: Path) -> None:
    config = SamplingConfig(num_completions=1, max_new_tokens=2, shard_size=2)
    sampler = LocalSampler(*policy, config=config)

    def failing(prompts: list[dict]) -> Any:
        for row in sampler(prompts):
            if row["prompt_id"] == "p3":
                raise KeyboardInterrupt
            yield row

    with pytest.raises(KeyboardInterrupt):
        sample_table(failing, tiny.prompts(4), config=config, metadata={}, work_dir=tmp_path)
    assert [path.name.rpartition("-")[2] for path in tmp_path.iterdir()] == ["00000.parquet"]


def test_the_table_says_how_it_was_made(tiny_models: dict[str, str], tmp_path: Path) -> None:
    config = SamplingConfig(num_completions=2, max_new_tokens=2)
    references = {"reference_logprobs": tiny_models["reference"]}
    table = sample_policy(
        tiny_models["policy"], tiny.prompts(2), config=config, seed=5, work_dir=tmp_path, references=references
    )
    assert table.metadata["policy"] == tiny_models["policy"]
    assert table.metadata["reference_logprobs"] == tiny_models["reference"]
    assert table.metadata["seed"] == 5 and table.metadata["sampling"]["num_completions"] == 2


@pytest.mark.parametrize("bad", [{"temperature": 0}, {"top_p": 0}, {"top_p": 1.5}, {"top_k": -1}, {"batch_size": 0}])
def test_impossible_settings_are_refused(bad: dict) -> None:
    with pytest.raises(UsageError, match=f"^{next(iter(bad))}: expected "):
        SamplingConfig(**bad)


def test_equal_texts_among_the_answers_of_a_prompt_are_one_answer(policy: tuple[Any, Any]) -> None:
    """A short answer is sampled several times, in batches of different sizes, which round differently."""
    config = SamplingConfig(num_completions=24, max_new_tokens=1, temperature=0.4, batch_size=5)
    for row in LocalSampler(*policy, config=config)(tiny.prompts(4)):
        assert len(set(row["completions"])) < 24
        for name in ("logprobs", "num_tokens", "finished", "completion_ids"):
            assert len({(text, str(value)) for text, value in zip(row["completions"], row[name], strict=True)}) == len(
                set(row["completions"])
            )


def test_the_sampled_tokens_are_stored(policy: tuple[Any, Any]) -> None:
    model, tokenizer = policy
    config = SamplingConfig(num_completions=4, max_new_tokens=6)
    for row in LocalSampler(model, tokenizer, config=config)(tiny.prompts(3)):
        for ids, text, count, done in zip(
            row["completion_ids"], row["completions"], row["num_tokens"], row["finished"], strict=True
        ):
            assert len(ids) == count and (ids[-1] == tokenizer.eos_token_id) == done
            assert tokenizer.decode(ids[:-1] if done else ids, skip_special_tokens=True).strip() == text
