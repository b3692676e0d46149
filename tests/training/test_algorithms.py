"""One setting chooses the algorithm: whole tiny runs with each, and what is refused before any work is done."""

import math
from pathlib import Path
from typing import Any

import pytest

from shfcas.data.candidates import read_candidates
from shfcas.pipeline.config import RunConfig
from shfcas.pipeline.run import run
from shfcas.rewards.best_of_n import best_of_n, kl_bound
from shfcas.rewards.scorers import load_scorer
from shfcas.rewards.table import score_rows
from shfcas.training.algorithms import ALGORITHMS, PolicyTraining, RLConfig, train_policy, warn_of_no_change
from shfcas.utils.config import build
from shfcas.utils.errors import UsageError, UserError
from shfcas.utils.files import content_hash, read_json
from tests.support import tiny
from tests.support.processes import Command

SHORT = {"num_completions": 4, "temperature": 1.0, "max_new_tokens": 6}
ONLINE = {
    "num_rollouts": 2,
    "rollout_batch_size": 4,
    "mini_batch_size": 2,
    "learning_rate": 1e-2,
    "max_completion_length": 16,  # long enough for answers that the reward model can tell apart
}


@pytest.fixture(scope="module")
def values(tiny_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("values")
    held_out = [{"prompt": f"how was the {thing}?", "topic": "x"} for thing in ("match", "phone", "night")]
    return {
        "policy": tiny_models["policy"],
        "reward_model": tiny_models["reward_model"],
        "gold": "tests.support.tiny:letter_reward",
        "prompts": tiny.write_lines(folder / "prompts.jsonl", tiny.prompts(6, chat=False)),
        "eval_prompts": tiny.write_lines(folder / "held_out.jsonl", held_out),
        "sampling": SHORT,
        "selection": {"budget": 4, "kendall_threshold": "q0", "pacs_threshold": "q0"},
        "reward": {"num_train_epochs": 1, "learning_rate": 1e-3},
        "rl": {
            "ppo": {**ONLINE, "num_ppo_epochs": 1},
            "rloo": {**ONLINE, "num_generations": 2},
            "grpo": {**ONLINE, "num_generations": 2},
            "rso": {"num_samples": 4, "learning_rate": 1e-2},
            "dpo": {"learning_rate": 1e-2},
            "best_of_n": {"n": 3},
        },
        "evaluation": {"sampling": SHORT},
    }


@pytest.mark.parametrize("algorithm", ["ppo", "rloo", "grpo", "rso", "dpo"])
def test_a_whole_run_with_each_algorithm(algorithm: str, values: dict[str, Any], tmp_path: Path) -> None:
    rl = {**values["rl"], "algorithm": algorithm}
    report = run(build(RunConfig, {**values, "rl": rl, "output": str(tmp_path / "run")}))
    path = report.parent
    history = read_json(path / "round-1" / "policy" / "history.json")
    rollouts = [row for row in history if "rollout" in row]
    assert [row["rollout"] for row in rollouts] == ([0] if algorithm in ("rso", "dpo") else [0, 1])
    assert all("objective/scores" in row and "objective/gold" in row for row in rollouts)
    assert read_json(path / "round-1" / "metrics.json")["kl"] != 0
    saved = {file.name for file in (path / "round-1/policy").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= saved and "model.safetensors" not in saved
    assert f"<h2>{algorithm.upper()}</h2>" in report.read_text()


def test_best_of_n_trains_nothing_and_chooses_with_the_current_reward_model(
    values: dict[str, Any], tmp_path: Path
) -> None:
    rl = {**values["rl"], "algorithm": "best_of_n"}
    reward = {"num_train_epochs": 10, "learning_rate": 1e-2}  # so that its taste changes
    report = run(build(RunConfig, {**values, "rl": rl, "reward": reward, "output": str(tmp_path / "run")}))
    path, stages = report.parent, read_json(report.parent / "manifest.json")["stages"]
    assert not [name for name in stages if name.endswith("/policy")]
    inputs = stages["round-1/evaluation.parquet"]["inputs"]
    assert inputs["reward_model"] == stages["round-1/reward_model"]["output"]
    assert stages["round-1/evaluation_candidates.parquet"]["reads"] == {}  # the policy of the start

    before = read_candidates(path / "round-0/evaluation.parquet")
    sampled = read_candidates(path / "round-1/evaluation_candidates.parquet").rows()
    kept = read_candidates(path / "round-1/evaluation.parquet").rows()
    rewards = score_rows(load_scorer(str(path / "round-1/reward_model")), sampled)
    for row, all_of_it, values_of_row, first in zip(kept, sampled, rewards, before.rows(), strict=True):
        assert len(all_of_it["completions"]) == 3 * len(row["completions"]) == 12
        assert all_of_it["completions"][:4] == first["completions"]  # the answers before are among them
        assert row["completions"] == [all_of_it["completions"][i] for i in best_of_n(values_of_row, 3)]
    first_choice = [best_of_n(r, 3) for r in score_rows(load_scorer(values["reward_model"]), sampled)]
    assert first_choice != [best_of_n(r, 3) for r in rewards]
    metrics = read_json(path / "round-1/metrics.json")
    assert (metrics["best_of_n"], metrics["kl"]) == (3, pytest.approx(kl_bound(3)))
    assert "best_of_n" not in read_json(path / "round-0/metrics.json")
    text = report.read_text()
    assert "of every 3 answers, the one with" in text and "<h2>BEST_OF_N</h2>" not in text


@pytest.mark.parametrize(
    ("rl", "message"),
    [
        (
            {"algorithm": "pqo"},
            "rl.algorithm: expected one of ppo, rloo, grpo, rso, dpo, best_of_n, got 'pqo'; did you mean",
        ),
        (
            {"reward_shaping": "center"},
            "rl.reward_shaping: expected one of none, centre, par, got 'center'",
        ),
        (
            {"ppo": {"mini_batch_size": 5}},
            r"rl\.ppo\.rollout_batch_size: .* multiple of mini_batch_size \(5\), got 4",
        ),
        (
            {"algorithm": "rloo", "rloo": {"num_generations": 3}},
            r"rl\.rloo\.rollout_batch_size: expected a multiple of num_generations \(3\), got 64",
        ),
        (
            {"algorithm": "rso", "rso": {"num_samples": 5}},
            r"rl\.rso\.num_samples: .* at most sampling\.num_completions \(4\), got 5",
        ),
        ({"algorithm": "dpo", "dpo": {"beta": 0.0}}, r"rl\.dpo\.beta: expected above 0, got 0.0"),
        ({"algorithm": "best_of_n", "best_of_n": {"n": 1}}, r"rl\.best_of_n\.n: expected at least 2, got 1"),
    ],
)
def test_what_the_algorithm_cannot_do_is_said_before_any_work(
    rl: dict, message: str, values: dict[str, Any], tmp_path: Path
) -> None:
    ppo = {**values["rl"]["ppo"], **rl.get("ppo", {})}
    with pytest.raises(UserError, match=message):
        run(build(RunConfig, {**values, "rl": {**rl, "ppo": ppo}, "output": str(tmp_path / "run")}))
    assert not (tmp_path / "run").exists()


def test_a_section_that_is_not_chosen_is_checked_all_the_same() -> None:
    with pytest.raises(UsageError, match=r"^grpo\.rollout_batch_size: .* multiple of num_generations \(7\), got 64"):
        build(RLConfig, {"algorithm": "rloo", "grpo": {"num_generations": 7}})


def test_every_algorithm_has_a_section() -> None:
    settings = RLConfig()
    assert set(ALGORITHMS) == set(vars(settings)) - {"algorithm", "reward_shaping", "kl_reference"}


def test_the_kl_refers_to_the_policy_before_the_first_round() -> None:
    for start, chosen, expected in (
        ("two", "sft", "one"), ("one", "sft", None), ("two", "round", None), ("two", "base", "raw"),
    ):  # fmt: skip
        assert RLConfig(kl_reference=chosen).reference(start=start, sft="one", base="raw") == expected


@pytest.mark.parametrize("algorithm", ["ppo", "rloo", "grpo", "rso", "dpo"])
@pytest.mark.parametrize("rank", [0, 4])
def test_the_kl_refers_to_another_model(algorithm: str, rank: int, tiny_models: dict[str, str], tmp_path: Path) -> None:
    """Measured before any update, it is the distance of the two models; a policy has none to itself."""
    settings: dict[str, Any] = {**ONLINE, "num_rollouts": 1, "max_completion_length": 6}
    settings |= {"num_ppo_epochs": 1} if algorithm == "ppo" else {"num_generations": 2}
    if algorithm in ("rso", "dpo"):
        settings = {"num_train_epochs": 1, **({"num_samples": 2} if algorithm == "rso" else {"pairs": "reward"})}
    rows = [
        {**row, "completions": ["good", "a bad day"], "finished": [True, True], "rewards": [1.0, 0.0]}
        for row in tiny.prompts(4, chat=False)
    ]
    first = {}
    for name in ("policy", "reference"):
        training = PolicyTraining(
            policy=tiny_models["policy"],
            reward_model="tests.support.tiny:letter_reward",
            settings=build(RLConfig, {"algorithm": algorithm, algorithm: settings | {"lora": {"r": rank}}}),
            seed=0,
            prompts=tiny.prompts(4, chat=False),
            candidates=rows,
            reference=None if name == "policy" else tiny_models[name],
        )
        history = train_policy(training, tmp_path / name, tmp_path / f"{name}.work")
        if algorithm in ("rso", "dpo"):
            first[name] = next(row["loss"] for row in history if "loss" in row)
        else:
            first[name] = history[0]["objective/kl"]
    if algorithm in ("rso", "dpo"):  # log-ratios of 0 give a loss of log 2
        assert first["policy"] == pytest.approx(math.log(2), abs=1e-6) and abs(first["reference"] - math.log(2)) > 1e-4
    else:
        assert first["policy"] == 0 and first["reference"] > 1


def test_a_policy_that_hardly_changed_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    def warned(algorithm: str, rows: list[dict[str, float]], anchored: bool = False) -> str:
        caplog.clear()
        warn_of_no_change(rows, RLConfig(algorithm=algorithm), anchored)
        return caplog.text

    still, moved = [{"objective/kl": 0.0}, {"objective/kl": 0.003}], [{"objective/kl": 0.0}, {"objective/kl": 0.4}]
    text = warned("rloo", still)
    assert "hardly changed: 0.003 nats per answer" in text and "raise rl.rloo.learning_rate (now 0.0001)" in text
    assert not warned("rloo", moved) and not warned("rloo", still[:1]) and not warned("ppo", still, anchored=True)
    assert warned("dpo", [{"rewards/margins": 0.001}]) and not warned("dpo", [{"rewards/margins": 0.1}])
    assert warned("rso", [{"rewards/margins": 0.0005}]) and not warned("rso", [{"rewards/margins": 0.05}])


def test_dpo_learns_from_labels_or_from_what_the_reward_says(values: dict[str, Any]) -> None:
    def config(**changes: Any) -> RunConfig:
        rl = {"algorithm": "dpo", "dpo": {"pairs": changes.pop("pairs")}}
        return build(RunConfig, {**values, "rl": rl, **changes})

    labels, original = [Path("a"), Path("b")], [Path("o")]
    found = {pairs: config(pairs=pairs).rl.learned_pairs(labels, original) for pairs in ("labels", "all", "reward")}
    assert found == {"labels": (*labels,), "all": (*original, *labels), "reward": ()}
    assert RLConfig().learned_pairs(labels, original) == ()
    with pytest.raises(UsageError, match=r"feedback: expected labels with rl\.dpo\.pairs labels, got 'none'"):
        config(pairs="labels", feedback="none")
    with pytest.raises(UsageError, match="preferences: expected labels or original preferences"):
        config(pairs="all", feedback="none")
    config(pairs="all", feedback="none", preferences="p.jsonl")
    with pytest.raises(UsageError, match=r"sampling\.num_completions: expected at least 2"):
        config(pairs="reward", sampling={"num_completions": 1})


def test_best_of_n_has_nothing_to_train(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="best_of_n trains nothing"):
        settings = RLConfig(algorithm="best_of_n")
        train_policy(PolicyTraining(policy="p", reward_model="r", settings=settings, seed=0), tmp_path, tmp_path)


def test_the_old_section_is_refused_with_a_hint() -> None:
    with pytest.raises(UsageError, match="unknown key ppo"):
        build(RunConfig, {"ppo": {"num_rollouts": 1}})


@pytest.mark.parametrize(
    ("heading", "column", "settings"),
    [
        ("RLOO and GRPO", 0, RLConfig().rloo),
        ("RLOO and GRPO", 1, RLConfig().grpo),
        ("RSO", 0, RLConfig().rso),
        ("DPO", 0, RLConfig().dpo),
        ("Best-of-n", 0, RLConfig().best_of_n),
    ],
    ids=["rloo", "grpo", "rso", "dpo", "best_of_n"],
)
def test_the_page_about_algorithms_states_every_default(heading: str, column: int, settings: Any) -> None:
    page = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text(encoding="utf-8")
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    cells = [line.split("|") for line in section.splitlines() if line.startswith("| `")]
    stated = {row[1].strip(" `"): row[2 + column].strip() for row in cells if row[2 + column].strip()}
    expected = {
        name: f"r {value.r}" if name == "lora" else "none" if value is None else str(value)
        for name, value in vars(settings).items()
    }
    assert stated == expected


@pytest.mark.system
def test_a_killed_command_continues_from_its_last_checkpoint(values: dict[str, Any], tmp_path: Path) -> None:
    """SIGKILL as soon as a checkpoint is there, twice; weights and history are those of an unbroken call."""

    def start(output: Path) -> Command:
        flags = {
            **{name: values[name] for name in ("policy", "reward_model", "prompts", "gold")},
            **ONLINE,
            "output": output,
            "num_rollouts": 6,
            "num_generations": 2,
            "save_rollouts": 1,
        }
        arguments = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
        return Command(["grpo", *arguments], tmp_path / "printed")

    def finish(output: Path) -> tuple[str, str]:
        start(output).finish()
        return content_hash(output / "history.json"), content_hash(output / "adapter_model.safetensors")

    unbroken = finish(tmp_path / "unbroken")
    for checkpoint in ("checkpoint-4", "checkpoint-8"):
        start(tmp_path / "broken").kill_at(tmp_path, f".broken.work/{checkpoint}/trainer_state.json")
        assert not (tmp_path / "broken").exists()
    assert finish(tmp_path / "broken") == unbroken
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "printed", "unbroken"]
