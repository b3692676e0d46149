"""Which stages depend on which configuration keys: a table of all keys, held against the plan of a finished run.

Nothing is trained: each stage of the finished run wrote its own name.
"""

import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from shfcas.cli._parser import flat_keys
from shfcas.pipeline.config import RunConfig
from shfcas.pipeline.loop import Loop
from shfcas.pipeline.manifest import DONE
from shfcas.pipeline.run import run_rounds
from shfcas.pipeline.run_directory import RunDirectory
from shfcas.sampling.contrast import Principle
from shfcas.utils.config import build
from shfcas.utils.flags import Key
from tests.support import tiny

SAMPLED = (
    "round-0/bootstrap.parquet",
    "round-[12]/candidates.parquet",
    "round-[12]/unlabelled_candidates.parquet",
    "round-*/evaluation_candidates.parquet",
)
SCORED = ("round-[12]/conflicts.parquet", "round-[12]/unlabelled.parquet", "round-*/evaluation.parquet")
TRAINED = ("round-0/policy", "round-0/reward_model", "round-[12]/reward_model", "round-[12]/policy")
LABELS, WIN_RATES = "round-[12]/preferences.jsonl", "round-[12]/win_rate.json"

# Stages that a key changes themselves, by the first pattern that fits the key. What reads their outputs follows.
STAGES: dict[str, tuple[str, ...]] = {
    "chat_template": (*SAMPLED, "round-*/policy"),
    "cost_model": (
        *SCORED,
        "round-0/preflight.json",
        "round-[12]/policy",
        "round-*/metrics.json",
    ),
    "too_long": (*SCORED, "round-[12]/policy", "round-*/metrics.json"),
    "policy_score": (*SAMPLED[1:], *SCORED),  # logprob_ratio alone needs log-probabilities of the reference
    "principles": SCORED,
    "bootstrap.per_prompt": ("round-0/demonstrations.jsonl",),
    "bootstrap.threshold": ("round-0/demonstrations.jsonl",),
    "bootstrap.sampling.*": ("round-0/bootstrap.parquet",),
    "sft.*": ("round-0/policy",),
    "proxy.*": ("round-0/reward_model",),
    "preflight.*": ("round-0/preflight.json",),
    "sampling.max_new_tokens": (*SAMPLED[1:3], "round-0/preflight.json"),
    "sampling.*": SAMPLED[1:3],
    "selection.*": ("round-[12]/queue.jsonl",),
    "feedback": (LABELS,),
    "human.*": (LABELS, WIN_RATES),
    "judge.*": (LABELS, WIN_RATES),
    "reward.second_opinion.old_pairs": ("round-[12]/reward_model",),
    "reward.second_opinion.*": ("round-[12]/second_opinion",),
    "reward.held_out": ("round-[12]/second_opinion", "round-[12]/reward_model"),
    "reward.*": ("round-[12]/reward_model",),
    "rl.kl_reference": ("round-2/policy",),  # the first round starts from the reference of sft
    "rl.reward_shaping": ("round-[12]/policy",),
    "rl.best_of_n.n": (
        "round-[12]/evaluation_candidates.parquet",
        "round-[12]/evaluation.parquet",
        "round-[12]/metrics.json",
    ),
    "rl.*": ("round-[12]/policy",),
    "evaluation.sampling.*": ("round-*/evaluation_candidates.parquet",),
    "evaluation.group_by": ("round-*/metrics.json",),
    "evaluation.conflicts": ("round-*/evaluation.parquet",),
    "evaluation.num_comparisons": ("round-[12]/blind_pairs.parquet",),
    "evaluation.judge": (WIN_RATES,),
    "seed": (
        *SAMPLED,
        *TRAINED,
        "round-[12]/queue.jsonl",
        "round-[12]/second_opinion",
        LABELS,
        "round-[12]/blind_pairs.parquet",
        WIN_RATES,
    ),
}
# Inputs are read, so their content counts and not their names; see the tests below.
INPUTS = (
    "policy", "reference", "reward_model", "gold", "prompts", "eval_prompts", "preferences", "demonstrations",
    "bootstrap.prompts", "bootstrap.demonstrator", "judge.guidelines", "rl.ppo.value_model", "rl.ppo.cost",
    "max_prompts", "policy_score_model", "unlabelled_prompts", "prompt_column", "chosen_column", "rejected_column",
    "completion_column",
)  # fmt: skip
# Keys on which no stage depends, and why.
FREE = {
    "output": "the folder may be moved",
    "rounds": "more rounds are more stages; the earlier ones stay",
    "evaluation.judge_rounds": "decides which rounds have a stage for it, and nothing in that stage",
    "rl.algorithm": "chooses the section that is declared; see the test of algorithms",
    "engine": "a result does not depend on where it is computed",
    "ray.*": "a result does not depend on where it is computed",
    "finish_with_what_we_have": "ends a wait; labels that were given are kept",
    "human.lease_minutes": "who is asked when, not what the answers are",
    "human.guidelines": "text on the page; labels that were given are kept",
    "human.host": "where the page is",
    "human.port": "where the page is",
    "human.address": "where the page is",
    "human.allow_public": "where the page is",
    "human.root_path": "where the page is",
    "human.user_header*": "how annotators sign in",
    "human.known_*": "questions beside the comparisons, which give no label",
    "judge.concurrency": "speed",
    "judge.timeout": "patience",
    "judge.max_retries": "patience",
    "judge.retry_wait": "patience",
    "judge.max_failed_share": "when to give up",
    "judge.price_per_million_*": "what the report says about costs",
    "judge.cache": "where replies are kept",
    "*sampling.server.base_url": "where the server is; every answer is scored by the policy itself",
    "*sampling.server.model": "what the server calls the policy",
    "*sampling.server.concurrency": "speed",
    "*sampling.server.timeout": "patience",
    "*sampling.server.max_retries": "patience",
    "*sampling.server.retry_wait": "patience",
    "*sampling.vllm.gpu_memory_utilization": "memory",
    "*sampling.vllm.tensor_parallel_size": "where the policy is computed",
    "rl.ppo.report_to": "where metrics are sent",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "ppo, gold, people compare": {"feedback": "gold", "evaluation": "human", "rl": {"algorithm": "ppo"}},
    "rloo, people": {"feedback": "human", "evaluation": "gold", "rl": {"algorithm": "rloo"}},
    "grpo, a language model": {"feedback": "judge", "evaluation": "judge", "rl": {"algorithm": "grpo"}},
    "rso": {"feedback": "gold", "evaluation": "judge", "rl": {"algorithm": "rso"}},
    "dpo": {"feedback": "gold", "evaluation": "human", "rl": {"algorithm": "dpo"}},
    "best_of_n": {"feedback": "gold", "evaluation": "human", "rl": {"algorithm": "best_of_n"}},
    "contrast, soft labels": {"feedback": "human", "evaluation": "judge", "rl": {"algorithm": "ppo"}, "contrast": True},
}
PPO, CONTRAST = "ppo, gold, people compare", "contrast, soft labels"


@pytest.fixture(scope="module", autouse=True)
def _no_judge() -> Iterator[None]:
    """No language model is asked, so none is connected to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shfcas.pipeline.verdicts.JudgeFeedback", lambda settings, cache: None)
        yield


@pytest.fixture(scope="module")
def values(tiny_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A configuration in which every section is used, over two rounds."""
    folder = tmp_path_factory.mktemp("inputs")
    models = {name: shutil.copytree(tiny_models[kind], folder / name) for name, kind in (
        ("policy", "policy"), ("reference", "policy"), ("reward_model", "reward_model"), ("gold", "reward_model"),
        ("demonstrator", "reward_model"), ("value_model", "reward_model"), ("cost", "reward_model"),
        ("policy_score_model", "policy"),
    )}  # fmt: skip
    pairs = [{"prompt": "a pair?", "chosen": "a good day", "rejected": "bad"}]
    for name in ("guidelines.md", "template.jinja"):
        (folder / name).write_text("Be brief.")
    return {
        **{name: str(models[name]) for name in ("policy", "reference", "reward_model", "gold", "value_model", "cost")},
        "policy_score": "logprob_ratio",
        "chat_template": str(folder / "template.jinja"),
        "prompts": tiny.write_lines(folder / "prompts.jsonl", tiny.prompts(4)),
        "eval_prompts": tiny.write_lines(folder / "held_out.jsonl", tiny.held_out_prompts(3)),
        "preferences": tiny.write_lines(folder / "pairs.jsonl", pairs),
        "bootstrap": {
            "prompts": tiny.write_lines(folder / "bootstrap.jsonl", tiny.prompts(2, prefix="b")),
            "demonstrator": str(models["demonstrator"]),
        },
        "sft": {},
        "proxy": {},
        "human": {"guidelines": str(folder / "guidelines.md")},
        "judge": {"model": "j", "guidelines": str(folder / "guidelines.md")},
        "rounds": 2,
        "contrast": {
            "policy_score": "contrast",
            "principles": [{"good": "Be kind."}],
            "policy_score_model": str(models["policy_score_model"]),
            "unlabelled_prompts": tiny.write_lines(folder / "unlabelled.jsonl", tiny.prompts(2, prefix="u")),
            "reward": {"refine": "arbitrate"},
        },
    }


class Finished:
    """A finished run of a variant, whose stages wrote their names."""

    def __init__(self, values: dict[str, Any], variant: dict[str, Any], path: Path) -> None:
        evaluation = {"judge": variant["evaluation"], "judge_rounds": "each"}
        ppo = {key: values[key] for key in ("value_model", "cost")} if variant["rl"]["algorithm"] == "ppo" else {}
        rl = {**variant["rl"], "ppo": ppo | variant.get("ppo", {})}
        contrast = values["contrast"] if "contrast" in variant else {}
        values = {
            key: value for key, value in values.items() if key not in ("value_model", "cost", "contrast")
        } | contrast
        self.values = {**values, "feedback": variant["feedback"], "evaluation": evaluation, "rl": rl}
        self.directory = RunDirectory(path, {}, 0)
        make = self.directory.stage
        self.directory.stage = lambda name, _, **rest: make(  # type: ignore[method-assign]
            name, lambda context: context.output.write_text(name), **rest
        )
        run_rounds(Loop(self.directory, self.config()))
        self.records = dict(self.directory.manifest.stages)

    def config(self) -> RunConfig:
        return build(RunConfig, self.values)

    def stale(self, config: RunConfig) -> set[str]:
        """The stages that the configuration makes stale, new ones left out."""
        self.directory.seed = config.seed
        with self.directory.planning() as plan:
            run_rounds(Loop(self.directory, config))
        self.planned = {stage.name for stage in plan.stages}
        return {stage.name for stage in plan.stages if stage.state != DONE and stage.name in self.records}

    def downstream(self, first: set[str]) -> set[str]:
        """These stages and all that read their outputs, directly or not."""
        found = set(first)
        for name, record in self.records.items():  # in the order in which they were made
            if found & set(record.reads.values()):
                found.add(name)
        return found

    def named(self, patterns: tuple[str, ...]) -> set[str]:
        return {name for name in self.records if any(fnmatch(name, pattern) for pattern in patterns)}


@pytest.fixture(scope="module", params=VARIANTS)
def case(
    request: pytest.FixtureRequest, values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Finished]:
    variant = VARIANTS[request.param]
    return variant, Finished(values, variant, tmp_path_factory.mktemp("run") / "run")


def keys(finished: Finished) -> dict[str, Key]:
    return flat_keys(finished.config())


def first_fit(table: dict[str, Any] | tuple[str, ...], key: str) -> str | None:
    return next((pattern for pattern in table if fnmatch(key, pattern)), None)


def changed(config: RunConfig, name: str, key: Key) -> RunConfig:
    """The configuration with another value of one key, which nothing checks."""
    owner, last = owner_of(config, name)
    value = getattr(owner, last)
    if name == "chat_template":  # otherwise it names a file
        new: Any = "plain"
    elif name == "principles":
        new = [Principle("Be brief.")]
    elif last == "base_url":
        new = "http://localhost:1/v1"
    elif key.choices:
        new = next(choice for choice in key.choices if choice != value)
    elif isinstance(value, bool):
        new = not value
    elif isinstance(value, int):
        new = value + 1
    elif isinstance(value, float):
        new = value / 2 or 0.5
    else:
        new = ["changed"] if isinstance(value, list) else 1 if "int" in str(key.annotation) else "changed"
    setattr(owner, last, new)
    return config


def expected(variant: dict[str, Any], key: str) -> tuple[str, ...]:
    """The stages that a key changes in a variant."""
    if first_fit(FREE, key):
        return ()
    stages = STAGES[str(first_fit(STAGES, key))]
    section, _, rest = key.partition(".")
    if "contrast" not in variant and (key == "principles" or key.startswith("reward.second_opinion.")):
        return ()
    if "contrast" in variant and key == "policy_score":
        return SCORED
    if section in ("human", "judge"):
        used = {LABELS: variant["feedback"], WIN_RATES: variant["evaluation"]}
        return tuple(stage for stage in stages if used[stage] == section)
    if section == "rl" and rest.split(".")[0] in {*_algorithms()} - {variant["rl"]["algorithm"]}:
        return ()
    if key == "seed" and variant["feedback"] == "gold":
        return tuple(stage for stage in stages if stage != LABELS)
    return stages


@functools.cache
def _algorithms() -> tuple[str, ...]:
    rl = RunConfig().rl
    return tuple(f.name for f in dataclasses.fields(rl) if dataclasses.is_dataclass(getattr(rl, f.name)))


def test_every_key_is_in_one_table() -> None:
    names = flat_keys(RunConfig())
    for name, key in names.items():
        known = name in INPUTS or first_fit(FREE, name) or first_fit(STAGES, name)
        assert known, f"{name}: name the stages that depend on it, or say why none does"
        if key.field.metadata.get("volatile"):
            assert first_fit(FREE, name), f"{name} is volatile: say why no result depends on it"
    for pattern in (*STAGES, *FREE, *INPUTS):
        assert any(fnmatch(name, pattern) for name in names), f"{pattern}: there is no such key"


def test_a_key_makes_stale_what_depends_on_it_and_nothing_else(case: tuple[dict[str, Any], Finished]) -> None:
    variant, finished = case
    assert finished.stale(finished.config()) == set()
    idle = finished.config()
    tried = 0
    for name, key in keys(finished).items():
        if name in INPUTS or name in ("output", "rounds", "feedback", "evaluation.judge", "rl.algorithm"):
            continue
        tried += 1
        wanted = finished.downstream(finished.named(expected(variant, name)))
        decides = name in ("reward.refine", "evaluation.judge_rounds")  # which stages there are
        if not wanted and not decides:
            changed(idle, name, key)  # all of these together, which is one plan and not hundreds
            continue
        found = finished.stale(changed(finished.config(), name, key))
        assert found == wanted & finished.planned, name
        assert decides or finished.planned == finished.records.keys()
    assert tried > 200
    assert finished.stale(idle) == set()
    assert finished.planned == finished.records.keys()


def test_every_key_is_used_in_some_variant() -> None:
    """So the test above has seen each key change a stage."""
    declared = {name for name in flat_keys(RunConfig()) if not first_fit(FREE, name) and name not in INPUTS}
    for name in declared:
        assert any(expected(variant, name) for variant in VARIANTS.values()), name


@pytest.mark.parametrize(
    "key",
    [
        "selection.worth",
        "reward.second_opinion.reward_trust",
        "reward.second_opinion.policy_trust",
        "human.overlap",
        "reward.second_opinion.pairs_per_prompt",
    ],
)
def test_a_sequential_selection_depends_on_what_decides_it(values: dict[str, Any], tmp_path: Path, key: str) -> None:
    finished = Finished({**values, "selection": {"strategy": "auto"}}, VARIANTS[CONTRAST], tmp_path / "run")
    stale = finished.stale(changed(finished.config(), key, keys(finished)[key]))
    decides = key != "reward.second_opinion.pairs_per_prompt"
    assert ("round-1/queue.jsonl" in stale) == decides
    assert "round-1/second_opinion" in stale and "round-1/conflicts.parquet" not in stale


@pytest.mark.parametrize(("key", "value"), [("feedback", "judge"), ("evaluation.judge", "judge")])
def test_another_source_of_verdicts(values: dict[str, Any], tmp_path: Path, key: str, value: str) -> None:
    finished = Finished(values, VARIANTS[PPO], tmp_path / "run")
    config = finished.config()
    owner = config.evaluation if key == "evaluation.judge" else config
    setattr(owner, key.rpartition(".")[2], value)
    assert finished.stale(config) == finished.downstream(finished.named(STAGES[key]))
    owner.__dict__[key.rpartition(".")[2]] = "none" if key == "feedback" else "gold"
    if key == "evaluation.judge":
        assert finished.stale(config) == set()


@pytest.mark.parametrize("algorithm", ["rloo", "grpo", "rso", "dpo"])
def test_another_algorithm_trains_the_policies_again(values: dict[str, Any], tmp_path: Path, algorithm: str) -> None:
    finished = Finished(values, VARIANTS[PPO], tmp_path / "run")
    config = finished.config()
    config.rl.algorithm = algorithm
    assert finished.stale(config) == finished.downstream(finished.named(("round-[12]/policy",)))


def test_demonstrations_are_read_where_they_are_learned(values: dict[str, Any], tmp_path: Path) -> None:
    """In any other run, the policies of the rounds do not depend on them."""
    for coefficient in (0.0, 0.5):
        variant = VARIANTS[PPO] | {"ppo": {"ptx_coef": coefficient}}
        finished = Finished(values, variant, tmp_path / str(coefficient))
        for stage in ("round-1/policy", "round-2/policy"):
            assert ("round-0/demonstrations.jsonl" in finished.records[stage].reads.values()) == (coefficient > 0)


READ_BY: dict[str, tuple[str, ...]] = {
    "policy": ("round-0/bootstrap.parquet", "round-0/policy"),
    "reference": ("round-[12]/candidates.parquet", "round-*/evaluation_candidates.parquet"),
    "reward_model": ("round-0/reward_model",),
    "gold": ("round-*/evaluation.parquet", LABELS),
    "prompts": ("round-[12]/candidates.parquet", "round-0/preflight.json", "round-[12]/policy"),
    "eval_prompts": ("round-*/evaluation_candidates.parquet",),
    "preferences": ("round-0/preferences.jsonl",),
    "bootstrap.prompts": ("round-0/bootstrap.parquet",),
    "bootstrap.demonstrator": ("round-0/demonstrations.jsonl",),
    "rl.ppo.value_model": ("round-[12]/policy",),
    "rl.ppo.cost": ("round-[12]/policy",),
    "policy_score_model": SCORED,
    "unlabelled_prompts": ("round-[12]/unlabelled_candidates.parquet",),
}


def path_of(config: RunConfig, key: str) -> Path:
    return Path(getattr(*owner_of(config, key)))


def owner_of(config: RunConfig, key: str) -> tuple[Any, str]:
    """The section that a key is in, and the key's name there."""
    *sections, name = key.split(".")
    return functools.reduce(getattr, sections, config), name


def edit_rows(path: Path) -> None:
    rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*rows[1:], *rows[:1]]) if len(rows) > 1 else rows[0].replace("a good day", "a nice day"))


def edit_model(path: Path) -> Callable[[], None]:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if path.suffix == ".safetensors" else content + b"\n")
    return lambda: path.write_bytes(content) and None


@pytest.mark.parametrize("key", READ_BY)
def test_the_content_of_an_input_counts_and_not_its_name(values: dict[str, Any], tmp_path: Path, key: str) -> None:
    variant = CONTRAST if key in values["contrast"] else PPO
    finished = Finished(values, VARIANTS[variant], tmp_path / "run")
    config = finished.config()
    path = path_of(config, key)
    copy = tmp_path / ("other" + path.suffix)
    (shutil.copytree if path.is_dir() else shutil.copyfile)(path, copy)
    owner, name = owner_of(config, key)
    setattr(owner, name, str(copy))
    assert finished.stale(config) == set(), "the same content under another name"
    wanted = finished.downstream(finished.named(READ_BY[key]))
    if not path.is_dir():
        edit_rows(copy)
        assert finished.stale(config) == wanted
        return
    files = [file for file in sorted(copy.rglob("*")) if file.is_file()]
    assert {file.name for file in files} >= {"config.json", "model.safetensors", "tokenizer.json"}
    for file in files:
        undo = edit_model(file)
        assert finished.stale(config) == wanted, file.name
        undo()
    assert finished.stale(config) == set()


def test_fewer_prompts_and_the_text_of_a_template_and_of_guidelines_count(
    values: dict[str, Any], tmp_path: Path
) -> None:
    finished = Finished(values, VARIANTS["grpo, a language model"], tmp_path / "run")
    config = finished.config()
    config.max_prompts = 3
    assert finished.stale(config) == finished.downstream(finished.named(READ_BY["prompts"]))
    for key, stages in (("chat_template", STAGES["chat_template"]), ("judge.guidelines", (LABELS, WIN_RATES))):
        config = finished.config()
        path = path_of(config, key)
        text = path.read_text()
        path.write_text(text + " And kind.")
        assert finished.stale(config) == finished.downstream(finished.named(stages)), key
        path.write_text(text)


def test_demonstrations_of_ones_own_are_an_input(values: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"prompt": row["prompt"], "completion": "a good day"} for row in tiny.prompts(2, prefix="d")]
    path = tiny.write_lines(tmp_path / "demonstrations.jsonl", rows)
    own = {**values, "demonstrations": path, "bootstrap": None}
    finished = Finished(own, VARIANTS[PPO], tmp_path / "run")
    edit_rows(Path(path))
    assert finished.stale(finished.config()) == finished.downstream({"round-0/policy"})
