"""SHF-CAS, one round after another, in a run directory that can be killed and resumed at any point."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from shfcas.data.candidates import read_prompts
from shfcas.engines import Engine
from shfcas.engines.local import LocalEngine
from shfcas.pipeline import arbitration, cleaning, evaluation, preparation, steps
from shfcas.pipeline.config import RunConfig
from shfcas.pipeline.policy_score import PolicyScore
from shfcas.pipeline.run_directory import RunDirectory
from shfcas.pipeline.sequential import ask_in_batches
from shfcas.pipeline.steps import ModelName
from shfcas.pipeline.verdicts import Verdicts
from shfcas.pipeline.workload import Workload
from shfcas.rewards.scorers import RewardScorer, load_scorer
from shfcas.selection import STRATEGIES, SelectionConfig
from shfcas.training.reward.config import CLEAN, DROP, LABELS
from shfcas.utils.errors import UsageError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """Models and preferences that one round hands to the next.

    Attributes:
        policy: the current policy.
        reward_model: the current proxy reward model.
        original: the original preferences, None without any.
        labels: the labels of the rounds so far, the first round first.
        best_of_n: number of answers of the policy of which the reward model keeps the best; 1 keeps all.
        demonstrations: the demonstrations, None without any.
    """

    policy: ModelName
    reward_model: ModelName
    original: Path | None = None
    labels: tuple[Path, ...] = ()
    best_of_n: int = 1
    demonstrations: str | Path | None = None

    @property
    def preferences(self) -> tuple[Path, ...]:
        """All preference files so far, the original ones first."""
        return (*([self.original] if self.original else ()), *self.labels)


@dataclass(frozen=True)
class Start:
    """Baseline of every later policy: the models before the first round, and their held-out answers."""

    state: State
    answers: Path | None = None


class Loop:
    """Steps of SHF-CAS over one run directory: gives each its inputs and its part of the configuration.

    Args:
        run: the run directory.
        config: the configuration.
        engine: where answers are sampled, scored and selected; None is this process.

    Raises:
        UserError: the configuration does not fit together, or a prompt is both trained and evaluated on.
    """

    def __init__(self, run: RunDirectory, config: RunConfig, engine: Engine | None = None) -> None:
        self.run, self.config, self.engine = run, config, engine or LocalEngine()
        columns = config.columns()
        self.prompts = read_prompts(config.prompts, columns)[: config.max_prompts]
        self.eval_prompts = read_prompts(config.eval_prompts, columns)
        self.unlabelled_prompts = []
        if config.unlabelled_prompts:
            self.unlabelled_prompts = read_prompts(config.unlabelled_prompts, columns)
        for key, rows in {"prompts": self.prompts, "unlabelled_prompts": self.unlabelled_prompts}.items():
            preparation.refuse_shared_prompts((row["prompt"] for row in rows), self.eval_prompts, key)
        run.work = Workload(config, len(self.prompts), len(self.eval_prompts), len(self.unlabelled_prompts)).of
        self.verdicts = Verdicts(config, run.path, lambda: self.gold)
        # Models whose log-probabilities the policy score needs, by column.
        self.references: dict[str, ModelName] = {}
        if config.policy_score == "logprob_ratio":
            self.references["reference_logprobs"] = config.reference or config.policy

    @cached_property
    def gold(self) -> RewardScorer:
        """The gold reward, loaded when it is first needed.

        Raises:
            UsageError: the run has none.
        """
        if not self.config.gold:
            raise UsageError("missing: gold")
        return load_scorer(self.config.gold)

    # -- before the first round -------------------------------------------------------------------------

    def prepare(self) -> State:
        """Makes the models of the first round: the SFT policy and the proxy, where the configuration asks for them.

        The proxy is checked before anything is scored with it.
        """
        config, run = self.config, self.run
        preparation.warn_of_held_out(config)
        demonstrations: str | Path | None = config.demonstrations
        if config.bootstrap and not demonstrations:
            demonstrations = preparation.make_demonstrations(
                run,
                "round-0/demonstrations.jsonl",
                policy=config.policy,
                bootstrap=config.bootstrap,
                columns=config.columns(),
                chat_template=config.chat_template,
                engine=self.engine,
            )
        preferences = None
        if config.preferences:
            preferences = preparation.copy_preferences(
                run, "round-0/preferences.jsonl", preferences=config.preferences, columns=config.columns()
            )
        policy: ModelName = config.policy
        if config.sft and demonstrations:
            policy = preparation.fine_tune_on_demonstrations(
                run,
                "round-0/policy",
                policy=config.policy,
                demonstrations=demonstrations,
                columns=config.columns(),
                sft=config.sft,
                chat_template=config.chat_template,
            )
        reward_model: ModelName = config.reward_model
        if config.proxy and preferences:
            reward_model = preparation.train_proxy(
                run,
                "round-0/reward_model",
                backbone=config.reward_model,
                preferences=preferences,
                proxy=config.proxy,
                split_seed=config.seed,
            )
        if config.preflight:
            preparation.check_reward_model(
                run,
                "round-0/preflight.json",
                reward_model=reward_model,
                preferences=preferences,
                prompts=self.prompts,
                settings=config.preflight,
                cost_model=config.cost_model,
                answer_tokens=config.sampling.max_new_tokens,
            )
        return State(policy, reward_model, preferences, demonstrations=demonstrations)

    def start(self) -> Start:
        """Prepares the models of the first round and evaluates them."""
        state = self.prepare()
        return Start(state, self.evaluate(state, "round-0", Start(state)))

    # -- a round ----------------------------------------------------------------------------------------

    def round(
        self,
        state: State,
        number: int,
        *,
        start: Start,
        selection: SelectionConfig | None,
        arm: str = "",
        conflicts: Path | None = None,
    ) -> State:
        """Runs one whole round; its metrics are in `round-K/metrics.json`.

        Args:
            state: the models to start from.
            number: the round, from 1.
            start: the baseline of the new policy.
            selection: which comparisons to label; None labels none.
            arm: a folder in the run directory that the round's folder is put into.
            conflicts: a scored candidate table to select from; None samples one from the policy.
        """
        config, folder = self.config, f"{arm}/round-{number}" if arm else f"round-{number}"
        if conflicts is None:
            candidates = self.sample(state, folder)
            conflicts = self.score(state, candidates, folder)
        labels = None
        if selection is not None:
            queue = self.select(conflicts, folder, selection, number)
            labels = self.label(queue, conflicts, folder, number)
        state = self.refine(state, conflicts, labels, folder)
        state = self.fine_tune(state, conflicts, folder, start)
        self.evaluate(state, folder, start)
        if config.compares_blindly(number):
            self.compare_blindly(state, folder, start, number)
        return state

    def sample(
        self,
        state: State,
        folder: str,
        name: str = "candidates.parquet",
        *,
        prompts: Sequence[dict[str, Any]] | None = None,
    ) -> Path:
        """Step 1: samples answers to the prompts, or to other ones, with their log-probabilities."""
        return steps.sample(
            self.run,
            f"{folder}/{name}",
            policy=state.policy,
            prompts=self.prompts if prompts is None else prompts,
            sampling=self.config.sampling,
            references=self.references,
            chat_template=self.config.chat_template,
            engine=self.engine,
        )

    def score(self, state: State, candidates: Path, folder: str, name: str = "conflicts.parquet") -> Path:
        """Steps 2 and 3: scores the answers with the reward model and adds the conflict columns."""
        return steps.score(
            self.run,
            f"{folder}/{name}",
            candidates=candidates,
            reward_model=state.reward_model,
            cost_model=self.config.cost_model,
            too_long=self.config.too_long,
            policy_score=self._policy_score(state.policy),
            engine=self.engine,
        )

    def _policy_score(self, policy: ModelName) -> PolicyScore:
        """The policy score of answers of a policy."""
        config, model = self.config, self.config.policy_score_model or policy
        return PolicyScore(config.policy_score, model, config.principles, config.chat_template)

    def select(self, conflicts: Path, folder: str, selection: SelectionConfig, number: int = 1) -> Path:
        """Step 4: selects the comparisons to label, within the budget; with `auto`, labels decide what is asked."""
        output, own = f"{folder}/queue.jsonl", self.config.reward.second_opinion
        if STRATEGIES[selection.strategy].sequential:
            return ask_in_batches(
                self.run,
                output,
                conflicts=conflicts,
                number=number,
                selection=selection,
                trust=(own.reward_trust, own.policy_trust),
                **self._feedback(folder),
            )
        return steps.select(self.run, output, conflicts=conflicts, selection=selection, engine=self.engine)

    def label(self, queue: Path, conflicts: Path, folder: str, number: int) -> Path:
        """Step 5: labels the selected comparisons."""
        return steps.label(
            self.run,
            f"{folder}/preferences.jsonl",
            queue=queue,
            conflicts=conflicts,
            number=number,
            **self._feedback(folder),
        )

    def _feedback(self, folder: str) -> dict[str, Any]:
        """The source of feedback of a round, and what a stage that asks it depends on."""
        name = self.config.feedback
        return {
            "source": partial(self.verdicts.source, name, folder),
            "reads": self.verdicts.reads(name),
            "settings": {"feedback": name, **self.verdicts.settings(name)},
        }

    def refine(self, state: State, conflicts: Path, labels: Path | None, folder: str) -> State:
        """Step 6: trains the reward model on what was labelled, and on what policy and reward model say together.

        Without labels and without a second opinion, the reward model stays as it is.
        """
        config, settings = self.config, self.config.reward
        earlier = state.preferences
        opinion = None
        if settings.refine == CLEAN:
            if labels is None or state.original is None:
                return state
            original = cleaning.clean(
                self.run,
                folder,
                conflicts=conflicts,
                labels=labels,
                original=state.original,
                reward_model=state.reward_model,
                settings=settings,
                split_seed=config.seed,
            )
            state = replace(state, original=original)
            earlier = state.preferences
        elif settings.refine != LABELS:
            opinion = arbitration.second_opinion(
                self.run,
                f"{folder}/second_opinion",
                conflicts=conflicts,
                unlabelled=self.unlabelled(state, folder),
                labels=labels,
                preferences=earlier,
                reward_model=state.reward_model,
                settings=settings,
                split_seed=config.seed,
            )
            if settings.second_opinion.old_pairs == DROP:
                earlier = state.labels
        elif labels is None:
            return state
        reward_model = steps.refine(
            self.run,
            f"{folder}/reward_model",
            reward_model=config.reward_model if settings.start == "backbone" else state.reward_model,
            labels=labels,
            opinion=opinion,
            preferences=earlier,
            settings=settings,
            split_seed=config.seed,
        )
        return replace(state, reward_model=reward_model, labels=(*state.labels, *([labels] if labels else ())))

    def unlabelled(self, state: State, folder: str) -> Path | None:
        """Scored answers to the prompts that are never asked about; None without any."""
        if not self.unlabelled_prompts:
            return None
        candidates = self.sample(state, folder, "unlabelled_candidates.parquet", prompts=self.unlabelled_prompts)
        return self.score(state, candidates, folder, "unlabelled.parquet")

    def fine_tune(self, state: State, candidates: Path, folder: str, start: Start) -> State:
        """Step 7: fine-tunes the policy against the reward model. Best-of-n trains nothing: the evaluation chooses."""
        config = self.config
        if config.rl.algorithm == "best_of_n":
            return replace(state, best_of_n=config.rl.best_of_n.n)
        policy = steps.fine_tune(
            self.run,
            f"{folder}/policy",
            policy=state.policy,
            reward_model=state.reward_model,
            candidates=candidates,
            prompts=self.prompts,
            rl=config.rl,
            gold=(lambda: self.gold) if config.gold else None,
            cost_model=config.cost_model,
            too_long=config.too_long,
            chat_template=config.chat_template,
            reference=config.rl.reference(start=state.policy, sft=start.state.policy, base=config.policy),
            demonstrations=state.demonstrations if config.rl.shows_demonstrations else None,
            columns=config.columns(),
            preferences=config.rl.learned_pairs(state.labels, [state.original] if state.original else []),
        )
        return replace(state, policy=policy)

    def evaluate(self, state: State, folder: str, start: Start) -> Path:
        """Step 8: evaluates the policy on the held-out prompts, in `metrics.json`; returns its scored answers.

        All policies of a run can be compared: proxy rewards and conflicts are those of the first proxy, KL and win
        rate refer to the policy before the first round, and all answers are sampled with the run's seed. With
        best-of-n, n times as many answers are sampled, and the current reward model chooses which to keep.
        """
        config, n = self.config, state.best_of_n
        sampling = config.evaluation.sampling
        base = {"base_logprobs": start.state.policy} if state.policy != start.state.policy else {}
        candidates = steps.sample(
            self.run,
            f"{folder}/evaluation_candidates.parquet",
            policy=state.policy,
            prompts=self.eval_prompts,
            sampling=replace(sampling, num_completions=n * sampling.num_completions),
            references={**self.references, **base},
            chat_template=config.chat_template,
            engine=self.engine,
            seed=config.seed,
            section="evaluation.sampling",
        )
        answers = evaluation.score_held_out(
            self.run,
            f"{folder}/evaluation.parquet",
            candidates=candidates,
            proxy=start.state.reward_model,
            reward_model=state.reward_model,
            gold=config.gold,
            best_of_n=n,
            cost_model=config.cost_model,
            too_long=config.too_long,
            policy_score=self._policy_score(state.policy) if config.evaluation.conflicts else None,
            engine=self.engine,
        )
        evaluation.measure(
            self.run,
            f"{folder}/metrics.json",
            answers=answers,
            before=start.answers or answers,
            reward_model=state.reward_model,
            best_of_n=n,
            group_by=config.evaluation.group_by,
            cost_model=config.cost_model,
            too_long=config.too_long,
            engine=self.engine,
        )
        return answers

    def compare_blindly(self, state: State, folder: str, start: Start, number: int) -> Path:
        """Has people or a language model compare the policy's held-out answers with those of the first policy.

        The win rate is in `win_rate.json`. Annotators have a queue of their own, such as `round-1-evaluation`.
        """
        config = self.config
        judge = config.evaluation.judge
        pairs = evaluation.pair_answers(
            self.run,
            f"{folder}/blind_pairs.parquet",
            base=self._answers(start.state, "round-0"),
            policy=self._answers(state, folder),
            count=config.evaluation.num_comparisons,
        )
        return evaluation.compare_blindly(
            self.run,
            f"{folder}/win_rate.json",
            pairs=pairs,
            number=number,
            judge=judge,
            source=partial(self.verdicts.ask, judge, f"{folder}-evaluation"),
            reads=self.verdicts.reads(judge),
            settings=self.verdicts.settings(judge),
        )

    def _answers(self, state: State, folder: str) -> Path:
        """The held-out answers of a policy: as sampled, which no reward changes, or the best of n."""
        name = "evaluation.parquet" if state.best_of_n > 1 else "evaluation_candidates.parquet"
        return self.run.path / folder / name
