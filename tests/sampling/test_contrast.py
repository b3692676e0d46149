"""The contrast of two instructions: exact against a plain forward pass, on several kinds of models and templates."""

from pathlib import Path
from typing import Any

import pytest
import torch

from shfcas.data.chat import encode_prompt, end_token_ids
from shfcas.models.loading import load_policy
from shfcas.sampling import contrast
from shfcas.sampling.contrast import Principle, completion_ids, completion_logprobs, contrasts, with_instruction
from shfcas.utils.errors import UsageError, UserError

GOOD, BAD = "the good soup", "the bad soup"
USER = [{"role": "user", "content": "how was the soup?"}]


@pytest.fixture(scope="module")
def policy(tiny_models: dict[str, str]) -> tuple[Any, Any]:
    return load_policy(tiny_models["policy"])


def plain_logprob(model: Any, prompt: list[int], completion: list[int]) -> float:
    """One sequence at a time, the whole softmax."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].double().log_softmax(-1)
    return sum(logits[len(prompt) - 1 + k, token].item() for k, token in enumerate(completion))


def test_log_probabilities_are_those_of_a_plain_forward_pass(policy: tuple[Any, Any]) -> None:
    model, tokenizer = policy
    prompt = encode_prompt(tokenizer, USER)
    completions = [[5, 6, 7], [9], [], [4, 4, 4, 4, 4, 4, 4, 4]]
    (found,) = completion_logprobs(model, [prompt], [completions])
    assert found.dtype == torch.float64 and found[2] == 0
    expected = [plain_logprob(model, prompt, c) if c else 0.0 for c in completions]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=2e-4, rtol=0)
    alone = torch.cat([completion_logprobs(model, [prompt], [[c]])[0] for c in completions])
    torch.testing.assert_close(found, alone, atol=1e-4, rtol=0)
    assert completion_logprobs(model, [prompt], [[[]]])[0].tolist() == [0.0]
    longer = encode_prompt(tokenizer, [{"role": "user", "content": "how was the long and rainy day?"}])
    together = completion_logprobs(model, [longer, prompt], [completions[:1], completions])
    torch.testing.assert_close(together[1], found, atol=1e-4, rtol=0)
    assert together[0].tolist() == pytest.approx([plain_logprob(model, longer, completions[0])], abs=2e-4)


def test_a_model_without_a_cache_reads_the_prompt_again(
    policy: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = policy
    prompt, completions = encode_prompt(tokenizer, USER), [[5, 6, 7], [9]]
    (expected,) = completion_logprobs(model, [prompt], [completions])
    monkeypatch.setattr(type(model), "_is_stateful", True)
    torch.testing.assert_close(completion_logprobs(model, [prompt], [completions])[0], expected, atol=1e-4, rtol=0)


def test_a_contrast_is_the_difference_of_two_plain_scores(policy: tuple[Any, Any]) -> None:
    model, tokenizer = policy
    rows = [
        {"prompt_id": "a", "prompt": USER, "completions": ["good", "bad day", ""], "finished": [True, False, True]},
        {"prompt_id": "b", "prompt": "how was the soup?", "completions": ["fine"]},
    ]
    principles = [Principle(GOOD, BAD), Principle("a happy day", "a cold day")]
    found = list(contrasts(model, tokenizer, rows, principles=principles, batch_tokens=8))
    ends = end_token_ids(model, tokenizer)
    for number, row in enumerate(rows):
        assert list(found[number]) == [p.column for p in principles]
        done = row.get("finished", [True] * len(row["completions"]))
        completions = [
            completion_ids(tokenizer, text, ends, finished)
            for text, finished in zip(row["completions"], done, strict=True)
        ]
        for principle in principles:
            prompts = [
                encode_prompt(tokenizer, with_instruction(tokenizer, row["prompt"], text)) for text in principle.texts()
            ]
            expected = [
                plain_logprob(model, prompts[0], ids) - plain_logprob(model, prompts[1], ids) for ids in completions
            ]
            assert found[number][principle.column] == pytest.approx(expected, abs=4e-4)


def test_a_principle_is_text_or_a_file_and_has_an_opposite(tmp_path: Path) -> None:
    guidelines = tmp_path / "guidelines.md"
    guidelines.write_text("# Be kind\n\nPraise the soup.\n", encoding="utf-8")
    named = Principle(str(guidelines))
    good, bad = named.texts()
    assert good == "# Be kind\n\nPraise the soup."
    assert bad.endswith(good) and bad.startswith("Do the opposite")
    assert named.column == Principle(good).column != Principle(GOOD, BAD).column
    guidelines.write_text("Be rude.", encoding="utf-8")
    assert named.column != Principle(good).column
    with pytest.raises(UsageError, match="two instructions that differ"):
        Principle(GOOD, GOOD).texts()
    with pytest.raises(UsageError, match="principles: expected an instruction"):
        Principle(" ", BAD).texts()
    with pytest.raises(UserError, match=r"missing\.md"):
        Principle("missing.md").texts()


def test_the_prompt_is_read_once_for_all_completions(policy: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = policy
    tokens = []
    forward = model.forward

    def counting(*arguments: Any, **named: Any) -> Any:
        tokens.append(named["input_ids"].numel())
        return forward(*arguments, **named)

    monkeypatch.setattr(model, "forward", counting)
    row = {"prompt_id": "a", "prompt": USER, "completions": ["good day", "bad day"] * 8}
    list(contrasts(model, tokenizer, [row], principles=[Principle(GOOD, BAD)]))
    prompt = len(encode_prompt(tokenizer, with_instruction(tokenizer, USER, GOOD)))
    width = max(len(completion_ids(tokenizer, t, end_token_ids(model, tokenizer), True)) for t in row["completions"])
    assert sum(tokens) <= 2 * (prompt + 2 + 16 * width) and len(tokens) == 2  # both instructions at once


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, [{"role": "system", "content": GOOD}, *USER]),
        (  # drops system turns
            "{% for m in messages if m['role'] != 'system' %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}",
            [{"role": "user", "content": f"{GOOD}\n\nhow was the soup?"}],
        ),
        (  # refuses them
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
            "{% for m in messages %}{{ m['content'] }}{% endfor %}",
            [{"role": "user", "content": f"{GOOD}\n\nhow was the soup?"}],
        ),
    ],
    ids=["system turn", "dropped", "refused"],
)
def test_where_the_instruction_goes(template: str | None, expected: list, tiny_models: dict[str, str]) -> None:
    tokenizer = load_policy(tiny_models["policy"])[1]
    if template:
        tokenizer.chat_template = template
    assert with_instruction(tokenizer, USER, GOOD) == expected


def test_it_joins_the_system_turn_that_is_there(policy: tuple[Any, Any]) -> None:
    prompt = [{"role": "system", "content": "be brief"}, *USER]
    assert with_instruction(policy[1], prompt, GOOD)[0] == {"role": "system", "content": f"be brief\n\n{GOOD}"}
    assert with_instruction(policy[1], "text", GOOD) == f"{GOOD}\n\ntext"


def test_errors_name_the_remedy(policy: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = policy
    row = {"prompt_id": "a", "prompt": USER, "completions": ["good"]}
    monkeypatch.setattr(contrast, "context_length", lambda model: 4)
    with pytest.raises(UserError, match=r"prompt 'a': with its principle .* tokens, and the model's context has 4"):
        list(contrasts(model, tokenizer, [row], principles=[Principle(GOOD, BAD)]))
    monkeypatch.setattr(tokenizer, "chat_template", "{{ 'nothing' }}")
    with pytest.raises(UserError, match=r"principles: the chat template of .* drops the instruction"):
        with_instruction(tokenizer, USER, GOOD)


def test_equal_completions_have_one_contrast(policy: tuple[Any, Any]) -> None:
    row = {"prompt_id": "p", "prompt": USER, "completions": ["good", "a bad night", "good", "good"]}
    (found,) = contrasts(*policy, [row], principles=[Principle(GOOD, BAD)], batch_tokens=9)
    (values,) = found.values()
    assert values[0] == values[2] == values[3] != values[1]
