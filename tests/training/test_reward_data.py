"""What a reward model is trained on: prompts on one side only, the same side in every round, margins, signs."""

from collections import Counter

import pytest
from tokenizers import processors

from shfcas.data.chat import answer_suffix_ids
from shfcas.data.preferences import Preference
from shfcas.training.reward.config import RewardModelConfig
from shfcas.training.reward.data import encode_pairs, held_out_prompts, replayed, split, weighted
from shfcas.training.reward.refine import train_and_held_out
from shfcas.utils.config import build
from shfcas.utils.errors import UsageError, UserError
from tests.support import tiny


def pairs(count: int, prefix: str, **provenance: object) -> list[Preference]:
    """Three pairs a prompt."""
    return [Preference(f"{prefix} {i}", f"good {k}", f"bad {k}", **provenance) for i in range(count) for k in range(3)]


ORIGINAL = pairs(40, "original")
FIRST = pairs(20, "first", source="gold", round=1)
SECOND = pairs(10, "second", source="human", round=2)


def test_no_prompt_is_on_both_sides_and_each_stratum_gives_its_share() -> None:
    everything = [*ORIGINAL, *FIRST, *SECOND]
    train, held_out = split(everything, held_out_prompts(everything, 0.2, seed=0))
    assert len(train) + len(held_out) == len(everything)
    assert not {p.prompt for p in train} & {p.prompt for p in held_out}
    counts = [len({p.prompt for p in held_out if p.source == source}) for source in ("original", "gold", "human")]
    assert counts == [8, 4, 2]


@pytest.mark.parametrize("seed", range(6))
def test_what_is_held_out_in_one_round_is_held_out_in_the_next(seed: int) -> None:
    # The second round asks again about prompts of the first, and overrules some of its pairs.
    again = [Preference(p.prompt, p.rejected, p.chosen, source="human", round=2) for p in FIRST[:30]]
    before = held_out_prompts([*ORIGINAL, *FIRST], 0.25, seed)
    after = held_out_prompts([*ORIGINAL, *FIRST, *SECOND, *again], 0.25, seed)
    asked_before = {p.prompt for p in [*ORIGINAL, *FIRST]}
    assert {p.prompt for p in split([*ORIGINAL, *FIRST], before)[1]} == {
        p.prompt for p in split([*ORIGINAL, *FIRST, *SECOND, *again], after)[1] if p.prompt in asked_before
    }


def test_the_seed_decides_and_a_smaller_share_is_part_of_a_larger_one() -> None:
    small, large = held_out_prompts(ORIGINAL, 0.1, 0), held_out_prompts(ORIGINAL, 0.3, 0)
    assert len(small) == 4 and len(large) == 12 and small < large
    assert held_out_prompts(list(reversed(ORIGINAL)), 0.1, 0) == small
    assert held_out_prompts(ORIGINAL, 0.1, 1) != small


def test_few_prompts_are_all_trained_on() -> None:
    assert held_out_prompts(pairs(9, "few"), 0.1, 0) == set()
    assert len(held_out_prompts(pairs(10, "few"), 0.1, 0)) == 1
    assert held_out_prompts(ORIGINAL, 0.0, 0) == held_out_prompts([], 0.5, 0) == set()


def test_an_overruled_pair_stays_on_its_side() -> None:
    overruled = [Preference(p.prompt, p.rejected, p.chosen, source="gold", round=1) for p in ORIGINAL[:60]]
    settings = RewardModelConfig(held_out=0.1)
    for groups, count in (([ORIGINAL], 0), ([ORIGINAL, overruled], 60)):
        train, held_out = train_and_held_out(groups, settings, split_seed=0)
        assert {p.prompt for p in held_out} == {
            p.prompt for p in split(ORIGINAL, held_out_prompts(ORIGINAL, 0.1, 0))[1]
        }
        assert len(train) + len(held_out) == len(ORIGINAL)
        assert sum(p.source == "gold" for p in (*train, *held_out)) == count


def test_given_evaluation_pairs_replace_the_hold_out(caplog: pytest.LogCaptureFixture) -> None:
    settings = RewardModelConfig(held_out=0.5, new_pair_weight=2)
    train, held_out = train_and_held_out([ORIGINAL, FIRST], settings, split_seed=0, eval_preferences=SECOND)
    assert (train, held_out) == ([*ORIGINAL, *FIRST, *FIRST], SECOND)
    assert not caplog.text
    train_and_held_out([ORIGINAL], settings, split_seed=0, eval_preferences=[*SECOND, *ORIGINAL[:3]])
    assert "3 of 33 eval_preferences have prompts that are trained on" in caplog.text


def test_a_round_sees_a_share_of_the_original_pairs_and_all_labels() -> None:
    original = [Preference(f"q{i}", "yes", "no") for i in range(40)]
    labels = [Preference(f"l{i}", "yes", "no", round=1) for i in range(5)]
    soft = [Preference(f"s{i}", "yes", "no", probability=0.7) for i in range(5)]
    rows = [*soft, *original, *labels]
    kept = [replayed(rows, 0.25, seed) for seed in (0, 0, 1)]
    assert kept[0] == kept[1] != kept[2]
    for found in kept:
        assert len(found) == 20 and set(map(id, [*labels, *soft])) <= set(map(id, found))
    assert replayed(rows, 1.0, 0) == rows and replayed(rows, 0.0, 0) == [*soft, *labels]


def test_labels_that_are_only_measured_on_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    original = [Preference(f"q{i}", "yes", "no") for i in range(20)]
    labels = [Preference(f"l{i}", "yes", "no", round=1, source="human") for i in range(20)]
    settings = RewardModelConfig(held_out=0.1)
    pairs, held_out = train_and_held_out([original, labels], settings, split_seed=0)
    assert sum(p.round for p in held_out) == 2 and sum(p.round for p in pairs) == 18
    assert "2 of 20 labels of the rounds so far are measured on and not trained on" in caplog.text
    caplog.clear()
    train_and_held_out([original, labels], RewardModelConfig(held_out=0.0), split_seed=0)
    train_and_held_out([original], settings, split_seed=0)
    assert not caplog.text


def test_new_pairs_are_repeated() -> None:
    assert weighted([*ORIGINAL, *FIRST], 3) == [*ORIGINAL, *FIRST, *FIRST, *FIRST]
    assert weighted(ORIGINAL, 3) == ORIGINAL


def test_a_pair_without_a_margin_has_margin_zero_where_others_have_one() -> None:
    tokenizer = tiny.reward_tokenizer()
    plain = Preference("how was it?", "a good film", "bad")
    strong = Preference("how was it?", "a good film", "bad", margin=2.0)
    rows, used = encode_pairs([strong, plain], tokenizer, 128)
    assert [row["margin"] for row in rows] == [2.0, 0.0] and used == [strong, plain]
    assert "margin" not in encode_pairs([plain], tokenizer, 128)[0][0]


def test_a_cost_is_higher_for_the_rejected_answer() -> None:
    tokenizer = tiny.reward_tokenizer()
    pair = Preference("how was it?", "a good film", "bad", chosen_safe=True, rejected_safe=False)
    half = Preference("how was it?", "a good film", "bad", rejected_safe=False)
    (reward,), _ = encode_pairs([pair], tokenizer, 128)
    rows, _ = encode_pairs([pair, half], tokenizer, 128, "cost")
    assert (rows[0]["chosen_ids"], rows[0]["rejected_ids"]) == (reward["rejected_ids"], reward["chosen_ids"])
    assert [row["signs"] for row in rows] == [[1, -1], [1, 0]]
    assert "signs" not in reward


def test_the_ending_is_what_follows_every_answer() -> None:
    chat, bert = tiny.policy_tokenizer(), tiny.reward_tokenizer()
    assert chat.decode(answer_suffix_ids(chat, [{"role": "user", "content": "how?"}])) == "<|end|>"
    assert bert.decode(answer_suffix_ids(bert, "how?")) == "[SEP]"
    chat.chat_template = None
    assert chat.decode(answer_suffix_ids(chat, "how?")) == "<|end|>"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"held_out": 1.0}, "held_out: expected at least 0 and below 1, got 1.0"),
        ({"held_out": -0.1}, "held_out: expected at least 0 and below 1, got -0.1"),
        ({"eval_steps": 0}, "eval_steps: expected above 0, got 0"),
        ({"eval_steps": 2.5}, "eval_steps: expected a whole number of steps, or a share below 1, got 2.5"),
        ({"ensemble_size": 0}, "ensemble_size: expected at least 1"),
        ({"early_stopping_patience": -1}, "early_stopping_patience: expected at least 0"),
        ({"new_pair_weight": 0}, "new_pair_weight: expected at least 1"),
        ({"average_weights": True}, "ensemble_size: expected at least 2 with average_weights, got 1"),
        ({"objective": "costs"}, "did you mean cost"),
    ],
)
def test_settings_that_cannot_work_are_refused(values: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(RewardModelConfig, values)


def test_a_prompt_in_other_spellings_stays_on_its_side() -> None:
    """As text before the first round, as messages of a candidate table in the next."""
    spelled = [
        Preference([{"role": "user", "content": p.prompt, "name": None}], f"new {i}", "old", source="gold", round=1)
        for i, p in enumerate(ORIGINAL)
    ]
    settings = build(RewardModelConfig, {"held_out": 0.25})
    train, held_out = train_and_held_out([ORIGINAL, spelled], settings, split_seed=0)
    trained = {p.prompt if isinstance(p.prompt, str) else p.prompt[0]["content"] for p in train}
    assert held_out and not trained & {p.prompt for p in held_out if isinstance(p.prompt, str)}
    assert not trained & {p.prompt[0]["content"] for p in held_out if not isinstance(p.prompt, str)}


def test_answers_of_several_turns_are_rendered_whole_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    asked, thanks = [{"role": "user", "content": "how?"}], {"role": "user", "content": "thanks"}
    bye = {"role": "assistant", "content": "bye"}
    sides = [[{"role": "assistant", "content": text}, thanks, bye] for text in ("good", "bad")]
    pair, plain = Preference(asked, *sides), Preference(asked, "yes", "no", source="gold")
    tokenizer = tiny.policy_tokenizer()
    (row, _), used = encode_pairs([pair, plain], tokenizer, 128)
    ending = "how?<|end|><|assistant|>good<|end|><|user|>thanks<|end|><|assistant|>bye<|end|>"
    assert tokenizer.decode(row["chosen_ids"]).endswith(ending)
    assert row["chosen_ids"] != row["rejected_ids"] and used == [pair, plain]
    counts: Counter[tuple[str, str]] = Counter()
    rows, used = encode_pairs([pair, plain], tiny.reward_tokenizer(), 128, counts=counts)
    assert (len(rows), used) == (1, [plain]) and counts == {("refused", "original"): 1}
    encode_pairs([pair, pair], tiny.reward_tokenizer(), 128, counts=counts)
    assert counts == {("refused", "original"): 3}
    assert "a pair is left out: an answer has several turns" in caplog.text


@pytest.mark.parametrize(("too_long", "kept"), [("cut", 2), ("floor", 1)])
def test_long_pairs_are_cut_or_left_out_and_counted(too_long: str, kept: int) -> None:
    long, short = Preference("how? " * 200, "good", "bad"), Preference("how?", "good", "bad", source="gold")
    counts: Counter[tuple[str, str]] = Counter()
    rows, _ = encode_pairs([long, short], tiny.reward_tokenizer(), 32, too_long=too_long, counts=counts)
    assert len(rows) == kept and counts == {("too_long", "original"): 1}
    encode_pairs([long, short, long], tiny.reward_tokenizer(), 32, too_long=too_long, counts=counts)
    assert counts == {("too_long", "original"): 3}
    assert max(len(row[side]) for row in rows for side in ("chosen_ids", "rejected_ids")) <= 32
    with pytest.raises(UserError, match="more than the reward model's limit of 32"):
        encode_pairs([long], tiny.reward_tokenizer(), 32, too_long="error")


def test_each_answer_has_the_token_types_of_its_tokenizer() -> None:
    tokenizer = tiny.reward_tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    types = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(name, tokenizer.convert_tokens_to_ids(name)) for name in ("[CLS]", "[SEP]")],
    )
    tokenizer.backend_tokenizer.post_processor = types
    (row,), _ = encode_pairs([Preference("good", "bad bad", "bad")], tokenizer, 64)
    # [CLS] good [SEP], then the answer and [SEP].
    assert row["chosen_types"] == [0, 0, 0, 1, 1, 1] and row["rejected_types"] == [0, 0, 0, 1, 1]
    assert len(row["chosen_ids"]) == 6 and len(row["rejected_ids"]) == 5
    (row,), _ = encode_pairs([Preference("good", "bad bad", "bad")], tiny.reward_tokenizer(), 64)
    assert row.keys() == {"chosen_ids", "rejected_ids"}
