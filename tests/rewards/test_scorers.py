"""Scoring: rewards that do not depend on their company, callables of TRL's shape, and errors that name the cause."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, BertForSequenceClassification, BertModel

from shfcas.data.candidates import CandidateTable
from shfcas.data.chat import model_inputs
from shfcas.data.preferences import Preference
from shfcas.models.loading import load_reward_model
from shfcas.rewards.metrics import pair_accuracy
from shfcas.rewards.scorers import ModelScorer, accepted_inputs, load_scorer, negated
from shfcas.rewards.shaping import CentredReward, PreferenceAsReward, shaped_reward
from shfcas.rewards.table import add_rewards, score_rows
from shfcas.training.reward.data import encode_pairs
from shfcas.training.reward.pair_trainer import PairCollator
from shfcas.utils.errors import UserError
from tests.support import architectures, tiny

WORDS = ["the", "soup", "was", "good", "and", "bread", "a", "bad", "film", "late", "hotel"]
ROUNDING = 5e-6  # some twenty units in the last place of float32: what padding may do to a sum


@pytest.fixture(scope="module")
def llama_scorer(policy: str) -> ModelScorer:
    """A decoder as a reward model: it reads the last token, so padding could shift what it reads."""
    torch.manual_seed(0)
    model, tokenizer = load_reward_model(policy)
    return ModelScorer(model, tokenizer)


def rows(chat: bool = True) -> list[dict]:
    """Prompts with answers from one word to thirty, one of them empty."""
    rng = random.Random(0)
    answers = [[" ".join(rng.choices(WORDS, k=k)) for k in (0, 1, 7, 30)] for _ in range(6)]
    return [{**row, "completions": a} for row, a in zip(tiny.prompts(6, chat=chat), answers, strict=True)]


def flat(rows: list[dict]) -> tuple[list, list]:
    return [r["prompt"] for r in rows for _ in r["completions"]], [c for r in rows for c in r["completions"]]


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_rewards_do_not_depend_on_order_or_batch_size(kind: str, reward_model: str, llama_scorer: ModelScorer) -> None:
    scorer = load_scorer(reward_model) if kind == "bert" else llama_scorer
    prompts, answers = flat(rows())
    together = scorer(prompts, answers)
    assert len({round(r, 4) for r in together}) > len(together) // 2
    order = random.Random(1).sample(range(len(answers)), len(answers))
    shuffled = scorer([prompts[i] for i in order], [answers[i] for i in order])
    assert shuffled == pytest.approx([together[i] for i in order], abs=ROUNDING)
    for batch_size in (1, 3):
        smaller = ModelScorer(scorer.model, scorer.tokenizer, batch_size=batch_size)
        assert smaller(prompts, answers) == pytest.approx(together, abs=ROUNDING)


def test_messages_and_text_of_an_answer_are_the_same(reward_model: str) -> None:
    scorer = load_scorer(reward_model)
    prompt = [{"role": "user", "content": "how was the film?"}]
    assert scorer([prompt], [[{"role": "assistant", "content": "a good film"}]]) == scorer([prompt], ["a good film"])
    assert scorer([prompt], ["a good film"]) == scorer(["how was the film?"], ["a good film"])


def test_scoring_leaves_dropout_off_and_the_mode_as_it_was(reward_model: str) -> None:
    scorer = load_scorer(reward_model)
    expected = scorer(["how was it?"], ["good"])
    scorer.model.train()
    assert scorer(["how was it?"], ["good"]) == expected
    assert scorer.model.training


@pytest.mark.parametrize("chat", [True, False])
def test_a_callable_gets_what_trl_would_pass(chat: bool) -> None:
    calls: list[dict] = []

    def reward(prompts: list, completions: list, **columns: Any) -> list[float]:
        calls.append({"prompts": prompts, "completions": completions, **columns})
        return [float(len(calls))] * len(completions)

    table = [{**row, "rewards": [0.0] * 4} for row in rows(chat)]
    rewards = score_rows(reward, table, block=4)
    assert rewards == [[1.0] * 4] * 4 + [[2.0] * 4] * 2
    assert set(calls[0]) == {"prompts", "completions", "prompt_id", "topic"}  # scalars, no lists
    assert [len(call["prompt_id"]) for call in calls] == [16, 8]
    assert calls[0]["topic"][:8] == ["food"] * 4 + ["travel"] * 4
    assert calls[0]["prompts"][4] == table[1]["prompt"]
    answer = table[0]["completions"][1]
    assert calls[0]["completions"][1] == ([{"role": "assistant", "content": answer}] if chat else answer)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (lambda n: [0.0] * (n - 1) + [float("nan")], "answer 3 of prompt 'p5' is not a number"),
        (lambda n: [None] + [0.0] * (n - 1), "answer 0 of prompt 'p0' is not a number"),
        (lambda n: [0.0] * (n - 1), "expected 24 rewards, one per answer, got 23"),
        (lambda n: [], "expected 24 rewards, one per answer, got 0"),
    ],
)
def test_a_scorer_that_fails_is_an_error(values: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        score_rows(lambda prompts, completions, **columns: values(len(completions)), rows())


def test_rewards_become_a_column(reward_model: str) -> None:
    table = CandidateTable.from_rows(rows())
    scored = add_rewards(table, load_scorer(reward_model))
    assert [len(r) for r in scored.column("rewards")] == [4] * 6
    prompts, answers = flat(table.rows())
    single = ModelScorer(*load_reward_model(reward_model), batch_size=1)
    assert scored.values("rewards").tolist() == pytest.approx(single(prompts, answers), abs=ROUNDING)


def test_a_cost_is_turned_into_a_reward(reward_model: str) -> None:
    prompts, answers = flat(rows())
    rewards = load_scorer(reward_model)(prompts, answers)
    assert load_scorer(reward_model, cost_model=True)(prompts, answers) == [-r for r in rewards]
    topics = negated(lambda prompts, completions, topic: [float(len(t)) for t in topic])
    assert topics(["a"], ["b"], topic=["food"]) == [-4.0]


def test_a_centred_reward_has_mean_zero_over_its_references() -> None:
    references = rows()
    centred = CentredReward(tiny.letter_reward, references)
    prompts, answers = flat(references)
    ids = [row["prompt_id"] for row in references for _ in range(4)]
    values = centred(prompts, answers, prompt_id=ids)
    assert [sum(values[4 * k : 4 * k + 4]) for k in range(6)] == pytest.approx([0.0] * 6, abs=1e-9)
    plain = tiny.letter_reward(prompts, answers)
    assert values[1] - values[0] == pytest.approx(plain[1] - plain[0])
    with pytest.raises(UserError, match="no reference answers for prompt 'new'"):
        centred(["a"], ["b"], prompt_id=["new"])
    with pytest.raises(UserError, match="without a prompt_id"):
        centred(["a"], ["b"])


def length_reward(prompts: list, completions: list, **columns: object) -> list[float]:
    return [float(len(c)) for c in completions]


def test_preference_as_reward_by_hand() -> None:
    references = [{"prompt_id": "p", "prompt": "a", "completions": ["xx", "xxxx"]}]  # rewards 2 and 4
    par = PreferenceAsReward(length_reward, references)
    values = par(["a"] * 4, ["xxx", "xxxx", "", "x" * 2000], prompt_id=["p"] * 4)
    # (sigmoid(1) + sigmoid(-1)) / 2, (sigmoid(2) + sigmoid(0)) / 2, (sigmoid(-2) + sigmoid(-4)) / 2, and no overflow
    assert values == pytest.approx([0.5, 0.690398539, 0.068594572, 1.0])
    with pytest.raises(UserError, match="no reference answers for prompt 'new'"):
        par(["a"], ["b"], prompt_id=["new"])


def test_shaped_reward() -> None:
    references = [{"prompt_id": "p", "prompt": "a", "completions": ["xx", "xxxx"]}]
    assert shaped_reward(length_reward, references, "none") is length_reward
    for shaping, expected in (("centre", 1.0), ("par", 0.690398539)):
        reward = shaped_reward(length_reward, references, shaping)
        assert reward(["a"], ["xxxx"], prompt_id=["p"]) == pytest.approx([expected])
    with pytest.raises(UserError, match="reward_shaping: expected one of none, centre, par, got 'PAR'"):
        shaped_reward(length_reward, references, "PAR")


def test_a_tie_is_half_a_correct_pair() -> None:
    pairs = [Preference("a", "eee", "e"), Preference("a", "e", "eee"), Preference("a", "et", "te")]
    assert pair_accuracy(tiny.letter_reward, pairs) == 0.5
    assert pair_accuracy(tiny.letter_reward, pairs[:1] + pairs[2:]) == 0.75


def test_a_model_without_a_trained_head_is_refused(policy: str, reward_model: str, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(reward_model)
    BertModel(config).save_pretrained(tmp_path)
    tiny.reward_tokenizer().save_pretrained(tmp_path)
    for name in (str(tmp_path), policy):
        with pytest.raises(UserError, match="no trained reward head"):
            load_scorer(name)


def test_a_classifier_with_two_outputs_is_refused(reward_model: str, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(reward_model, num_labels=2)
    model = BertForSequenceClassification(config)
    model.save_pretrained(tmp_path)
    tiny.reward_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"expected one output .*got 2"):
        ModelScorer(model, tiny.reward_tokenizer())
    with pytest.raises(UserError, match="expected a reward model with one output, got 2 outputs"):
        load_scorer(str(tmp_path))


def test_an_answer_beyond_the_context_is_cut_or_the_worst_or_an_error(
    reward_model: str, caplog: pytest.LogCaptureFixture
) -> None:
    prompts, answers = ["how was it? " * 100, "how was it?", "how was it?"], ["good", "good", "a bad night"]
    short = load_scorer(reward_model)(prompts[1:], answers[1:])
    cut = load_scorer(reward_model)
    assert cut(prompts, answers)[1:] == pytest.approx(short, abs=1e-5) and cut.too_long_count == 1
    assert "1 answers so far are longer than its limit of 128 tokens" in caplog.text
    inputs = model_inputs(cut.tokenizer, prompts[0], answers[0], 128, cut=True)
    whole = model_inputs(cut.tokenizer, prompts[0], answers[0])
    assert inputs["input_ids"] == [whole["input_ids"][0], *whole["input_ids"][-127:]]
    floor = load_scorer(reward_model, too_long="floor")
    assert floor(prompts, answers) == [min(short), *short]
    with pytest.raises(UserError, match="all 1 answers are longer than the 128 tokens"):
        floor(prompts[:1], answers[:1])
    with pytest.raises(UserError, match="more than the reward model's limit of 128"):
        load_scorer(reward_model, too_long="error")(prompts, answers)


def test_equal_inputs_have_one_reward(reward_model: str) -> None:
    """In batches of other sizes, sums are rounded differently."""
    answers = [" ".join(["good", "bad", "late"][: 1 + i % 3] * (1 + i % 7)) for i in range(60)]
    scorer = load_scorer(reward_model)
    scorer.batch_size = 7
    rewards = scorer(["how was it?"] * 120, [*answers, *reversed(answers)])
    assert len({(text, reward) for text, reward in zip([*answers, *reversed(answers)], rewards, strict=True)}) == len(
        set(answers)
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:reward", "cannot import no_such_module"),
        ("tests.support.tiny:no_such_reward", "module tests.support.tiny has no function no_such_reward"),
        ("tests.support.tiny:CORPUS", "is not callable"),
        ("./no/such/folder", "the folder does not exist"),
    ],
)
def test_a_scorer_that_is_not_there(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_scorer(name)


@pytest.mark.parametrize("model_type", ["bert", "electra", "deberta-v2"])
def test_a_pair_model_is_told_which_text_is_the_answer(model_type: str, tmp_path: Path) -> None:
    """Scored and trained as transformers' own tokenizer and forward pass do it: with token types, padded with 0."""
    folder = architectures.save_pair_model(model_type, tmp_path / "model")
    model, tokenizer = load_reward_model(folder)
    texts = [("how was the soup?", "good"), ("how was the train?", "the train was late and cold")]
    expected = []
    for prompt, answer in texts:
        inputs = tokenizer(prompt, answer, return_tensors="pt")
        assert inputs["token_type_ids"].sum() > 0
        with torch.no_grad():
            expected.append(model(**inputs).logits.item())
            untyped = model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.item()
        assert abs(untyped - expected[-1]) > 1e-3
    rewards = ModelScorer(model, tokenizer)(*map(list, zip(*texts, strict=True)))
    assert rewards == pytest.approx(expected, abs=1e-5)

    rows, _ = encode_pairs([Preference(*texts[0], "bad"), Preference(*texts[1], "late")], tokenizer, 64)
    batch = PairCollator(pad_token_id=tokenizer.pad_token_id, token_types=True)(rows)
    with torch.no_grad():
        assert model(**batch).logits.flatten()[:2].tolist() == pytest.approx(expected, abs=1e-5)
    assert "token_type_ids" not in PairCollator(pad_token_id=0)(rows)


def test_token_types_do_not_reach_a_model_that_has_none(tmp_path: Path) -> None:
    for name in ("modernbert", "gpt2"):
        model, tokenizer = load_reward_model(architectures.save_reward(name, tmp_path / name))
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
        encoded = [model_inputs(tokenizer, "how?", "good")]
        assert "token_type_ids" in encoded[0] and accepted_inputs(model, encoded) == ["input_ids"]
        assert len(ModelScorer(model, tokenizer)(["how?"], ["good"])) == 1
