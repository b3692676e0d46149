"""The page about scale says what the model says, and the model agrees with what can be worked out by hand."""

import pytest

from benches import scale_model
from benches.scale_model import ASSUMED, BEGIN, END, PAGE, RESULTS, Stage, busy, plan, simulated_hours, stages
from benches.targets import read

CONSTANTS = {**scale_model.measured(read(RESULTS)), **ASSUMED}
C = {name: value.value for name, value in CONSTANTS.items()}


def test_the_page_has_the_tables_of_the_model() -> None:
    written = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert written.strip() == scale_model.text(CONSTANTS).strip()


def test_what_the_page_says_in_words() -> None:
    plans = [plan(answers, C) for answers in scale_model.SIZES]
    named = {stage.name: stage.hours for stage in plans[0].stages}
    assert max(named, key=named.__getitem__) == "sampling"
    assert 0.3 < named["rewards"] / named["sampling"] < 0.5
    assert sum(named.values()) - named["sampling"] - named["rewards"] < 0.01 * sum(named.values())
    assert C["core_scores"] > 1e6 and C["core_conflicts"] > 100 * C["core_scores"]
    for p in plans:
        assert 0.5 < p.people_dollars / p.machine_dollars < 2
        assert p.machine_dollars / p.prompts == pytest.approx(plans[0].machine_dollars / plans[0].prompts)


def test_a_million_answers_by_hand() -> None:
    """2 FLOP a weight and token; a reward model reads every answer with its prompt."""
    of = {stage.name: stage for stage in stages(1e6, C)}
    assert of["sampling"].flops == pytest.approx(2 * 8e9 * (125_000 * 256 + 1_000_000 * 256))
    assert of["rewards"].flops == pytest.approx(2 * 8e9 * 1_000_000 * 512)
    assert of["sampling"].hours == pytest.approx(of["sampling"].flops / (8 * 989e12 * 0.10) / 3600)
    assert of["reading and writing"].bytes == pytest.approx((125_000 + 1_000_000) * 256 * 4.5 / 2.5 + 37e6)
    assert plan(10**6, C).judgements == 125


@pytest.mark.parametrize("answers", scale_model.SIZES)
def test_nodes_are_as_few_as_end_within_a_day(answers: int) -> None:
    p = plan(answers, C)
    assert p.hours == simulated_hours(p.stages, p.nodes) <= scale_model.DAY
    assert p.nodes == 1 or simulated_hours(p.stages, p.nodes - 1) > scale_model.DAY
    busiest = max(busy(p.stages, resource) for resource in ("GPUs", "cores", "storage"))
    assert busiest <= p.nodes * p.hours * (1 + 1e-9) <= sum(stage.hours for stage in p.stages) * (1 + 1e-9)


def test_shards_overlap_where_resources_differ() -> None:
    """Two stages of an hour each on two resources: two hours as one shard, a little over one hour as many."""
    of = [Stage("sampling", "GPUs", 1, 0, 0), Stage("conflicts", "cores", 1, 0, 0)]
    assert simulated_hours(of, nodes=1, shards=1) == pytest.approx(2)
    assert simulated_hours(of, nodes=1, shards=100) == pytest.approx(1.01)
    assert simulated_hours(of, nodes=4, shards=100) == pytest.approx(1.01 / 4)
    training = Stage("policy", "GPUs", 1, 0, 0)
    assert simulated_hours([*of, training], nodes=1, shards=100) == pytest.approx(2.01)  # it waits for all of them
