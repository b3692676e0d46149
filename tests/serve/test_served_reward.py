"""Rewards of requests: ensembles, mixtures, costs, functions, shaping, and bits that depend on nothing else."""

import json
import random
from pathlib import Path
from statistics import fmean, stdev, variance
from typing import Any

import pytest
from transformers import BertForSequenceClassification

from shfcas.data.candidates import CandidateTable
from shfcas.models.loading import load_reward_model, save_model
from shfcas.rewards.scorers import ModelScorer, load_scorer
from shfcas.rewards.shaping import shaped_reward
from shfcas.serve.reward import Answers, ServedReward
from shfcas.utils.errors import UserError
from tests.support import reward_functions, tiny
from tests.support.reward_server import scored

LETTERS = "tests.support.tiny:letter_reward"
FUNCTIONS = "tests.support.reward_functions"
WORDS = ["the", "soup", "was", "good", "and", "bread", "a", "bad", "film", "late", "hotel"]


def answers(count: int, seed: int = 0) -> Answers:
    """Answers of one to sixty words."""
    rng = random.Random(seed)
    rows = tiny.prompts(count)
    return Answers([row["prompt"] for row in rows], [" ".join(rng.choices(WORDS, k=rng.randint(1, 60))) for _ in rows])


def part(given: Answers, *places: int) -> Answers:
    return Answers([given.prompts[i] for i in places], [given.completions[i] for i in places])


@pytest.fixture(scope="module")
def decoder(tiny_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A decoder with a head and a chat template."""
    return tiny.save_decoder(tmp_path_factory.mktemp("decoder"), tiny_models["policy"])


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("ensemble")
    for member in range(3):
        tiny.save_reward_model(folder / str(member), seed=member)
    (folder / "ensemble.json").write_text(json.dumps({"members": ["0", "1", "2"]}))
    return str(folder)


def alone(name: str, given: Answers) -> list[float]:
    """The rewards of a model that scores one answer at a time."""
    scorer: Any = load_scorer(name)
    scorer.batch_size = 1
    return [scorer([p], [c])[0] for p, c in zip(given.prompts, given.completions, strict=True)]


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_no_bit_of_a_reward_depends_on_other_answers(
    kind: str, batch_size: int, decoder: str, tiny_models: dict[str, str]
) -> None:
    reward = ServedReward([decoder if kind == "decoder" else tiny_models["reward_model"]], batch_size=batch_size)
    given = answers(24)
    expected = [scored(reward, part(given, i))[0].rewards[0] for i in range(24)]
    assert len({*expected}) > 20
    rng = random.Random(1)
    for _ in range(12):  # other neighbours, other places, other requests
        order = rng.sample(range(24), rng.randint(2, 24))
        cut = rng.randint(1, len(order) - 1)
        found = scored(reward, part(given, *order[:cut]), part(given, *order[cut:]))
        assert found[0].rewards + found[1].rewards == [expected[i] for i in order]


def test_padding_alone_would_change_bits(decoder: str) -> None:
    """What the shapes are fixed for: batches of any width do not give the rewards of the answers alone."""
    given = answers(24)
    together = ModelScorer(*load_reward_model(decoder))(given.prompts, given.completions)
    assert together != alone(decoder, given)
    assert together == pytest.approx(alone(decoder, given), abs=1e-4)


def test_one_at_a_time_is_the_model_itself(decoder: str) -> None:
    given = answers(6)
    assert scored(ServedReward([decoder]), given)[0].rewards == alone(decoder, given)


def test_an_ensemble_has_a_mean_a_variance_and_a_lower_bound(ensemble: str) -> None:
    given = answers(5)
    members = [alone(f"{ensemble}/{i}", given) for i in range(3)]
    each = list(zip(*members, strict=True))
    (plain,) = scored(ServedReward([ensemble]), given)
    assert plain.rewards == [fmean(scores) for scores in each]
    assert plain.variances == [variance(scores) for scores in each]
    (bound,) = scored(ServedReward([f"{ensemble}/{i}" for i in range(3)], pessimism=2.0), given)
    assert bound.rewards == pytest.approx([fmean(scores) - 2 * stdev(scores) for scores in each])
    assert bound.variances == plain.variances


def test_a_mixture_is_a_weighted_sum(ensemble: str) -> None:
    given = answers(4)
    (found,) = scored(ServedReward([ensemble, LETTERS], weights=[0.5, 2.0]), given)
    means = [fmean(scores) for scores in zip(*(alone(f"{ensemble}/{i}", given) for i in range(3)), strict=True)]
    letters = tiny.letter_reward(given.prompts, given.completions)
    assert found.rewards == pytest.approx([0.5 * m + 2 * e for m, e in zip(means, letters, strict=True)])
    assert found.variances is None


def test_costs_are_negated(tiny_models: dict[str, str], tmp_path: Path) -> None:
    given, name = answers(3), tiny_models["reward_model"]
    rewards = alone(name, given)
    assert scored(ServedReward([name], cost_model=True), given)[0].rewards == [-r for r in rewards]
    model = BertForSequenceClassification.from_pretrained(name)
    model.config.shfcas_cost_model = True
    save_model(tmp_path, model, tiny.reward_tokenizer())
    assert scored(ServedReward([str(tmp_path)]), given)[0].rewards == [-r for r in rewards]


def test_a_function_sees_one_request_at_a_time() -> None:
    reward_functions.calls.clear()
    found = scored(ServedReward([f"{FUNCTIONS}:counting"]), Answers(["a"], ["b"]), Answers(["a", "a"], ["c", "d"]))
    assert [r.rewards for r in found] == [[1.0], [2.0, 2.0]] and reward_functions.calls == [["b"], ["c", "d"]]


def test_coroutines_of_several_requests_run_at_the_same_time() -> None:
    reward_functions.gates["g"] = reward_functions.Gate(3)
    requests = [Answers(["a"], ["b"], {"gate": ["g"]}) for _ in range(3)]
    assert [r.rewards for r in scored(ServedReward([f"{FUNCTIONS}:gated"]), *requests)] == [[1.0]] * 3


def test_a_failure_is_that_of_one_request() -> None:
    reward = ServedReward([f"{FUNCTIONS}:picky"])
    good, boom, none, nan = reward([Answers(["a"], [text]) for text in ("good", "boom", "none", "nan")])
    assert good.rewards == [1.0] and none.rewards == [None]  # type: ignore[union-attr]
    assert isinstance(boom, UserError) and "no boom, please" in str(boom)
    assert isinstance(nan, UserError) and "expected a finite reward for answer 0, got nan" in str(nan)


def test_an_answer_that_is_too_long_fails_only_its_request(tiny_models: dict[str, str]) -> None:
    reward = ServedReward([tiny_models["reward_model"]], too_long="error")
    fine, long = reward([Answers(["a"], ["good"]), Answers(["a"], ["good " * 300])])
    assert fine.rewards == alone(tiny_models["reward_model"], Answers(["a"], ["good"]))  # type: ignore[union-attr]
    assert isinstance(long, UserError) and "more than the reward model's limit of 128" in str(long)
    (cut,) = scored(ServedReward([tiny_models["reward_model"]]), Answers(["a"], ["good " * 300]))
    assert cut.rewards[0] is not None


@pytest.mark.parametrize("shaping", ["centre", "par"])
def test_shaping_compares_with_references_of_the_same_prompt(shaping: str, tiny_models: dict[str, str]) -> None:
    name, given = tiny_models["reward_model"], answers(4)
    rows = [{**row, "completions": ["the soup was good", "a bad film"]} for row in tiny.prompts(4)]
    references = CandidateTable.from_rows(rows).rows()
    reward = ServedReward([name], shaping=shaping, references=references)
    plain: Any = load_scorer(name)
    plain.batch_size = 1
    expected = shaped_reward(plain, references, shaping)(
        given.prompts, given.completions, prompt_id=[row["prompt_id"] for row in rows]
    )
    text = [message["content"] for (message,) in given.prompts]  # the same prompt in another form
    assert scored(reward, given, Answers(text, given.completions))[1].rewards == pytest.approx(expected)
    (unknown,) = reward([Answers(["who?"], ["I"])])
    assert isinstance(unknown, UserError) and "no reference answers for the prompt 'who?'" in str(unknown)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1.0, 2.0]}, "weights: expected one for each of 1 models"),
        ({"pessimism": 1.0}, "pessimism: expected 0 without an ensemble"),
        ({"shaping": "par"}, "references: par compares with reference answers"),
    ],
)
def test_contradictions_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ServedReward([LETTERS], **options)
