"""SHF-CAS, one round after another, in a run directory that can be killed and continued at any point."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from shfcas.conflicts.columns import add_conflicts
from shfcas.data.candidates import CandidateTable, read_candidates, read_prompts, write_candidates
from shfcas.data.chat import plain_text
from shfcas.data.preferences import Preference, read_preferences, write_preferences
from shfcas.engines import Engine, open_engine
from shfcas.engines.local import LocalEngine
from shfcas.evaluation.metrics import detection, grouped, ranking_accuracy, summarize
from shfcas.feedback import FeedbackSource, read_queue
from shfcas.feedback.gold import GoldFeedback
from shfcas.feedback.human import HumanFeedback
from shfcas.feedback.judge.source import JudgeFeedback
from shfcas.models.resolve import provenance
from shfcas.pipeline.config import RunConfig
from shfcas.pipeline.demonstrations import demonstrations
from shfcas.pipeline.run_directory import RunDirectory, StageContext
from shfcas.rewards.best_of_n import keep_best, kl_bound
from shfcas.rewards.preflight import PreflightConfig, preflight, refuse_failures
from shfcas.rewards.scorers import load_scorer
from shfcas.rewards.table import add_answer_rewards, answer_rewards
from shfcas.sampling.config import SamplingConfig
from shfcas.sampling.table import sample_policy
from shfcas.selection import SelectionConfig
from shfcas.selection.sharded import select_table
from shfcas.training.algorithms import PolicyTraining, train_policy
from shfcas.training.reward.config import RewardModelConfig
from shfcas.training.reward.refine import train_on_groups
from shfcas.training.sft import read_demonstrations, train_sft
from shfcas.utils.callables import is_callable_name
from shfcas.utils.config import fingerprint, to_dict, volatile_names
from shfcas.utils.errors import UsageError, UserError
from shfcas.utils.files import read_json, write_json, write_jsonl

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """What one round hands to the next.

    Attributes:
        policy: the current policy.
        reward_model: the current proxy reward model.
        preferences: preference files so far, the original ones first.
        best_of_n: of so many answers of the policy the reward model's favourite counts.
    """

    policy: str | Path
    reward_model: str | Path
    preferences: tuple[Path, ...] = ()
    best_of_n: int = 1


@dataclass(frozen=True)
class Start:
    """What every later policy is compared with: the models before the first round, and their held-out answers."""

    state: State
    answers: Path | None = None


class Loop:
    """The stages of SHF-CAS over one run directory.

    Args:
        run: the run directory.
        config: what to run.
        engine: where answers are sampled, scored and selected; None is this process.
    """

    def __init__(self, run: RunDirectory, config: RunConfig, engine: Engine | None = None) -> None:
        self.run, self.config, self.engine = run, config.check(), engine or LocalEngine()
        self.prompts = read_prompts(config.prompts)[: config.max_prompts]
        self.eval_prompts = read_prompts(config.eval_prompts)
        trained_on = {fingerprint(row["prompt"]) for row in self.prompts}
        shared = [row for row in self.eval_prompts if fingerprint(row["prompt"]) in trained_on]
        if shared:
            first = plain_text(shared[0]["prompt"])[:60]
            raise UserError(
                f"prompts and eval_prompts share {len(shared)} prompts, first {first!r}: evaluation must be held out"
            )
        self.gold = load_scorer(config.gold)
        # Made now, so that a missing key is said now; all rounds share its verdicts.
        self.judge = JudgeFeedback(config.judge, run.path / "judge.jsonl") if config.feedback == "judge" else None
        self.reference = config.reference or config.policy

    # -- before the first round -------------------------------------------------------------------------

    def prepare(self) -> State:
        """Demonstrations, original preferences, the SFT policy and the proxy: whichever the configuration asks for.

        The reward model that the first round starts with is then looked at before anything is scored with it.
        """
        config, run = self.config, self.run
        trained = {"proxy": config.proxy, "reward": config.reward if config.feedback != "none" else None}
        for name, training in trained.items():
            if config.cost_model and training and training.objective != "cost":
                raise UsageError(f"cost_model: a cost model is trained with {name}.objective cost, not as a reward")
        if trained["reward"] and config.proxy and config.proxy.held_out < config.reward.held_out:
            logger.warning("reward.held_out is larger than proxy.held_out: some of it is what the proxy was trained on")
        given = Path(config.demonstrations) if config.demonstrations else None
        if config.bootstrap and not given:
            settings, prompts = config.bootstrap, read_prompts(config.bootstrap.prompts)
            samples = run.stage(
                "round-0/bootstrap.parquet",
                lambda c: self._sample(c, config.policy, prompts, settings.sampling, c.seed),
                {"policy": config.policy, "prompts": fingerprint(prompts)},
            )
            given = run.stage(
                "round-0/demonstrations.jsonl",
                lambda c: write_jsonl(c.output, demonstrations(read_candidates(samples), settings)),
                {"candidates": samples},
            )
        original = None
        if config.preferences:
            source = config.preferences
            original = run.stage(
                "round-0/preferences.jsonl",
                lambda c: write_preferences(c.output, read_preferences(source)),
                {"preferences": source if is_callable_name(source) else Path(source)},
            )
        policy: str | Path = config.policy
        if config.sft and given:
            rows, sft = given, config.sft
            policy = run.stage(
                "round-0/policy",
                lambda c: train_sft(
                    config.policy,
                    read_demonstrations(rows),
                    settings=sft,
                    output=c.output,
                    work_dir=c.work_dir,
                    seed=c.seed,
                    chat_template=config.chat_template,
                ),
                {"policy": config.policy, "demonstrations": rows},
            )
        reward_model: str | Path = config.reward_model
        if config.proxy and original:
            pairs, proxy = original, config.proxy
            reward_model = run.stage(
                "round-0/reward_model",
                lambda c: self._train_reward(c, config.reward_model, [read_preferences(pairs)], proxy),
                {"backbone": config.reward_model, "preferences": pairs},
            )
        if config.preflight:
            pairs_known, checks = original, config.preflight
            run.stage(
                "round-0/preflight.json",
                lambda c: self._preflight(c, reward_model, pairs_known, checks),
                {"reward_model": reward_model, **({"preferences": original} if original else {})},
            )
        return State(policy, reward_model, (original,) if original else ())

    # -- the steps of a round ---------------------------------------------------------------------------

    def conflicts(self, state: State, name: str) -> Path:
        """Steps 1 to 3: samples the prompts, scores the answers, adds the conflict columns."""
        candidates = self.run.stage(
            f"{name}/candidates.parquet",
            lambda c: self._sample(
                c, state.policy, self.prompts, self.config.sampling, c.seed, self._score_reference()
            ),
            {"policy": state.policy, "prompts": fingerprint(self.prompts), **self._score_reference()},
        )
        return self.run.stage(
            f"{name}/conflicts.parquet",
            lambda c: write_candidates(c.output, self._scored(read_candidates(candidates), state.reward_model)),
            {"candidates": candidates, "reward_model": state.reward_model},
        )

    def ask(self, conflicts: Path, name: str, number: int, selection: SelectionConfig) -> Path:
        """Steps 4 and 5: selects comparisons within the budget, and has them judged."""

        def make_queue(context: StageContext) -> None:
            chosen = select_table([str(conflicts)], selection, seed=context.seed, engine=self.engine)
            write_jsonl(context.output, [vars(q) for q in chosen.comparisons])

        def judge(context: StageContext) -> None:
            comparisons = read_queue(queue)
            source = self._feedback(name, context.seed)
            write_preferences(context.output, source(comparisons, read_candidates(conflicts), number))
            if self.judge:
                write_json(self.run.path / name / "judge.json", self.judge.report)

        queue = self.run.stage(f"{name}/queue.jsonl", make_queue, {"conflicts": conflicts})
        inputs = {"queue": queue, "conflicts": conflicts}
        if self.judge and self.judge.settings.guidelines:
            inputs["guidelines"] = Path(self.judge.settings.guidelines)
        return self.run.stage(f"{name}/preferences.jsonl", judge, inputs)

    def refine(self, state: State, labels: Path, name: str) -> State:
        """Step 6: trains the reward model on the original preferences merged with the new ones."""
        settings = self.config.reward
        start = self.config.reward_model if settings.start == "backbone" else state.reward_model

        def make(context: StageContext) -> None:
            groups = [read_preferences(path) for path in (*state.preferences, labels)]
            self._train_reward(context, start, groups, settings)

        reward_model = self.run.stage(
            f"{name}/reward_model",
            make,
            {
                "reward_model": start,
                "labels": labels,
                **{f"preferences_{i}": p for i, p in enumerate(state.preferences)},
            },
        )
        return replace(state, reward_model=reward_model, preferences=(*state.preferences, labels))

    def improve(self, state: State, candidates: Path, name: str) -> State:
        """Step 7: the policy follows the reward model, made comparable across prompts by the candidates' rewards.

        The gold reward is watched, not trained on. Best-of-n trains nothing: the evaluation chooses.
        """
        settings = self.config.rl
        if settings.algorithm == "best_of_n":
            return replace(state, best_of_n=settings.best_of_n.n)

        def make(context: StageContext) -> None:
            training = PolicyTraining(
                policy=str(state.policy),
                reward_model=str(state.reward_model),
                settings=settings,
                seed=context.seed,
                cost_model=self.config.cost_model,
                prompts=self.prompts,
                candidates=read_candidates(candidates).rows(),
                gold=self.gold,
                chat_template=self.config.chat_template,
            )
            train_policy(training, context.output, context.work_dir)

        inputs = {"policy": state.policy, "reward_model": state.reward_model, "candidates": candidates}
        policy = self.run.stage(f"{name}/policy", make, inputs)
        return replace(state, policy=policy)

    def evaluate(self, state: State, name: str, start: Start) -> Path:
        """Step 8: answers to the held-out prompts, and their metrics in `metrics.json`; returns the answers.

        The proxy reward and the conflicts are always those of the first proxy, and KL and win rate refer to
        the policy before the first round, so that all policies of a run can be compared. With best-of-n, n times
        as many answers are sampled, and the current reward model chooses which are kept.
        """
        settings, n = self.config.evaluation, state.best_of_n
        sampling = replace(settings.sampling, num_completions=n * settings.sampling.num_completions)
        references = self._score_reference()
        if state.policy != start.state.policy:
            references["base_logprobs"] = start.state.policy
        sampled = self.run.stage(
            f"{name}/evaluation_candidates.parquet",
            # One seed for all policies: they are compared on the same random numbers.
            lambda c: self._sample(c, state.policy, self.eval_prompts, sampling, self.config.seed, references),
            {"policy": state.policy, "prompts": fingerprint(self.eval_prompts), **references},
        )

        def add_scores(context: StageContext) -> None:
            table = read_candidates(sampled)
            if n > 1:
                table = keep_best(table, self._rewards(table, state.reward_model), n)
            table = self._scored(table, start.state.reward_model)
            write_candidates(
                context.output, table.with_columns(gold=answer_rewards(self.engine, self.config.gold, table.rows()))
            )

        answers = self.run.stage(
            f"{name}/evaluation.parquet",
            add_scores,
            {
                "candidates": sampled,
                "proxy": start.state.reward_model,
                **({"reward_model": state.reward_model} if n > 1 else {}),
            },
        )
        before = start.answers or answers
        self.run.stage(
            f"{name}/metrics.json",
            lambda c: write_json(c.output, self._metrics(answers, before, state) | self._judge_report(name)),
            {"answers": answers, "before": before, "reward_model": state.reward_model},
        )
        return answers

    def start(self, state: State) -> Start:
        """Evaluates the models before the first round."""
        return Start(state, self.evaluate(state, "round-0", Start(state)))

    def round(
        self,
        state: State,
        number: int,
        start: Start,
        selection: SelectionConfig | None,
        folder: str = "",
        conflicts: Path | None = None,
    ) -> State:
        """One whole round; its metrics are in `round-K/metrics.json`.

        Args:
            state: the models to start from.
            number: the round, from 1.
            start: what the new policy is compared with.
            selection: what to ask for; None asks for nothing and keeps the reward model.
            folder: where in the run directory the round's folder lies.
            conflicts: a scored candidate table to select from; None samples one from the policy.
        """
        name = f"{folder}round-{number}"
        conflicts = conflicts or self.conflicts(state, name)
        if selection is not None:
            state = self.refine(state, self.ask(conflicts, name, number, selection), name)
        state = self.improve(state, conflicts, name)
        self.evaluate(state, name, start)
        return state

    # -- helpers ----------------------------------------------------------------------------------------

    def _sample(
        self,
        context: StageContext,
        policy: str | Path,
        prompts: Sequence[dict[str, Any]],
        sampling: SamplingConfig,
        seed: int,
        references: dict[str, str | Path] | None = None,
    ) -> None:
        """Samples prompts into `context.output`; `references` adds log-probabilities under other models."""
        template = self.config.chat_template
        table = sample_policy(
            policy,
            prompts,
            config=sampling,
            seed=seed,
            work_dir=context.work_dir,
            references=references,
            chat_template=template,
            engine=self.engine,
        )
        write_candidates(context.output, table)

    def _feedback(self, name: str, seed: int) -> FeedbackSource:
        """Who answers the queue that lies at `name` in the run directory."""
        config = self.config
        if config.feedback == "human":
            return HumanFeedback(
                self.run.path, name, settings=config.human, seed=seed, finish=config.finish_with_what_we_have
            )
        return self.judge or GoldFeedback(self.gold, config.gold)

    def _score_reference(self) -> dict[str, str | Path]:
        """The extra column of log-probabilities that the policy score needs, and the model it comes from."""
        if self.config.policy_score != "logprob_ratio":
            return {}
        return {"reference_logprobs": self.reference}

    def _scored(self, candidates: CandidateTable, reward_model: str | Path) -> CandidateTable:
        rewarded = add_answer_rewards(self.engine, str(reward_model), candidates, self.config.cost_model)
        return add_conflicts(rewarded, self.config.policy_score).with_metadata(
            reward_model=str(reward_model), **provenance(reward_model=str(reward_model))
        )

    def _rewards(self, candidates: CandidateTable, reward_model: str | Path) -> list[list[float]]:
        return answer_rewards(self.engine, str(reward_model), candidates.rows(), self.config.cost_model)

    def _train_reward(
        self,
        context: StageContext,
        start: str | Path,
        groups: Sequence[Sequence[Preference]],
        settings: RewardModelConfig,
    ) -> None:
        """Trains on the merged groups, the most trusted last, but for the prompts that are held out.

        Those depend on the run's seed and on where a prompt first appears, not on the stage: what one round has
        trained on is never held out in another.
        """
        from shfcas.report.training import write_training_report

        result = train_on_groups(
            str(start),
            groups,
            settings=settings,
            output=context.output,
            work_dir=context.work_dir,
            seed=context.seed,
            split_seed=self.config.seed,
        )
        write_training_report(context.output, result)

    def _preflight(
        self, context: StageContext, reward_model: str | Path, preferences: Path | None, settings: PreflightConfig
    ) -> None:
        findings = preflight(
            str(reward_model),
            settings,
            cost_model=self.config.cost_model,
            preferences=read_preferences(preferences) if preferences else [],
            candidates=[{**row, "completions": [""]} for row in self.prompts],
            answer_tokens=self.config.sampling.max_new_tokens,
        )
        refuse_failures(findings)
        write_json(context.output, [vars(finding) for finding in findings])

    def _judge_report(self, name: str) -> dict[str, Any]:
        """What the language model of this round was asked, and what it cost."""
        file = self.run.path / name / "judge.json"
        return {"judge": read_json(file)} if file.exists() else {}

    def _metrics(self, answers: Path, before: Path, state: State) -> dict[str, Any]:
        """Metrics of a policy's held-out answers, and of the current reward model on pairs of the first ones."""
        table, base = read_candidates(answers), read_candidates(before)
        gold = table.column("gold")
        metrics = summarize(table, gold, base.column("gold"))
        if state.best_of_n > 1:
            # Of best-of-n from its policy; the KL of that policy is in the metrics already.
            metrics |= {"best_of_n": state.best_of_n, "kl": metrics["kl"] + kl_bound(state.best_of_n)}
        metrics["detection"] = detection(table, gold)
        pairs = zip(self._rewards(base, state.reward_model), base.column("gold"), strict=True)
        accuracy = [ranking_accuracy(*pair) for pair in pairs]
        metrics["pair_accuracy"] = float(np.nanmean(accuracy))
        if self.config.evaluation.group_by:
            metrics["groups"] = {
                value: {
                    "gold_reward": float(np.mean([np.mean(gold[i]) for i in positions])),
                    "pair_accuracy": float(np.nanmean([accuracy[i] for i in positions])),
                }
                for value, positions in grouped(table.rows(), self.config.evaluation.group_by).items()
            }
        return metrics


def run(config: RunConfig) -> Path:
    """Runs all rounds, or what is left of them, and returns the path of the report."""
    from shfcas.report import write_report

    directory = RunDirectory(config.output, to_dict(config.check()), config.seed, volatile_names(RunConfig))
    with open_engine(config.engine, config.ray) as engine:
        loop = Loop(directory, config, engine)
        start = loop.start(loop.prepare())
        state = start.state
        selection = config.selection if config.feedback != "none" else None
        for number in range(1, config.rounds + 1):
            state = loop.round(state, number, start, selection)
    return write_report(directory.path)
