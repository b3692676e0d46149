"""One seed of one setting: a split, a proxy and its bias, a policy score, and every arm of the plan."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from experiments.annotators import flipped_labels
from experiments.opinion.numbers import Numbers
from shfcas.compare import AnswerSet, Bench, Cell, HeadFit, Label, RefineHead, judge
from shfcas.compare.cells import ask
from shfcas.compare.opinion import RefineOpinion
from shfcas.evaluation.metrics import z_scores
from shfcas.evaluation.statistics import auroc
from shfcas.rewards.arbiter import PRIOR_TRUST
from shfcas.selection import SelectionConfig
from shfcas.utils.seeds import derive_seed

INFORMED = "informed:"  # a simulated policy score, and its correlation with gold within a prompt
CONTRAST = "contrast:"  # and the number of its wording
SHARES = (0.35, 0.75)  # the proxy's prompts, those to ask about, and held-out ones
ASKED_ABOUT = 2 / 3  # where the proxy has prompts of its own
PAIRS = 4000  # at most, for the proxy
BLIND_GROUPS = {"sentiment": 3, "safety": 2, "moderation": 2}  # of 8 topics, of 5 categories, of 5 kinds of harm
SHORTER = "shorter is better"  # the blind group of `helpfulness`
STRENGTH = {"none": 1.0, "inverted": 1.0, "missing": 1.0, "noise": 0.3, "length": 0.5}
PROXY_L2, SOFT_L2, LABEL_WEIGHT = 30.0, 300.0, 3.0
PARTS = 10  # equal parts of all prompts, the same for all seeds
THRESHOLDS = {"kendall_threshold": "q0.5", "pacs_threshold": "q0.1"}
TRUST = {"reward_alone": (1.0, 0.0), "equal_trust": (0.5, 0.5), "policy_alone": (0.0, 1.0)}
NOTHING = "nothing"
LABEL_FREE = (NOTHING, *TRUST)
STRATEGIES = {
    "random": SelectionConfig(strategy="random"),
    "shf_cas": SelectionConfig(strategy="shf_cas", **THRESHOLDS),
    "half": SelectionConfig(strategy="shf_cas", audit_share=0.5, **THRESHOLDS),
}
REFINED = ("labels", "arbitrate")


@dataclass(frozen=True)
class Setting:
    """The settings of one bench.

    Attributes:
        task: a task of `experiments.opinion.tasks`.
        bias: the bias of the proxy's annotators, see `experiments.annotators.flipped_labels`.
        score: the policy's score: `logprob`, `mean_logprob`, `contrast:` and a wording, `informed:` and a correlation.
        policy: `raw` or `sft`.
        draw: the draw of the pool; 1 is the replication.
        left_out: which of the `PARTS` of the prompts is left out, after the split; -1 leaves out none.
    """

    task: str
    bias: str = "inverted"
    score: str = f"{CONTRAST}0"
    policy: str = "raw"
    draw: int = 0
    left_out: int = -1

    @property
    def pool(self) -> str:
        """The name of its pool."""
        return f"{self.task}-{self.policy}-{self.draw}"


def score_of(numbers: Numbers, score: str, seed: int) -> np.ndarray:
    """Return the policy's score of every answer, shape (T,)."""
    if score == "logprob":
        return numbers.logprobs
    if score == "mean_logprob":
        return numbers.logprobs / np.maximum(numbers.tokens, 1)
    if score.startswith(CONTRAST):
        return numbers.contrasts[:, int(score.removeprefix(CONTRAST))]
    correlation = float(score.removeprefix(INFORMED))
    noise = np.random.default_rng(derive_seed("informed", seed)).standard_normal(len(numbers.gold))
    bounds = zip(numbers.offsets, numbers.offsets[1:], strict=False)
    gold = np.concatenate([z_scores(numbers.gold[a:b]) for a, b in bounds])
    return correlation * gold + np.sqrt(1 - correlation**2) * noise


@dataclass(frozen=True)
class Experiment:
    """A proxy and everything that can be done about it.

    Attributes:
        pool: answers to ask about, with the proxy's rewards and the policy's score.
        held_out: answers to other prompts.
        blind: groups on which the proxy's annotators were wrong.
        proxy: fits heads to the proxy's pairs and new ones.
        seed: seed of all draws.
    """

    pool: AnswerSet
    held_out: AnswerSet
    blind: tuple[str, ...]
    proxy: HeadFit
    seed: int

    @cached_property
    def soft(self) -> HeadFit:
        """Fits heads to soft labels, starting from the proxy's head.

        The start is in the unit of soft labels: a z-score of the reward counts half, as without labels.
        """
        features = _features(self.pool)
        bounds = zip(self.pool.offsets, self.pool.offsets[1:], strict=False)
        deviation = np.mean([self.pool.rewards[a:b].std() for a, b in bounds])
        weight = self.proxy(features[:0]).weight
        return HeadFit(features, features[:0], centre=PRIOR_TRUST[0] / deviation * weight, l2=SOFT_L2)

    @cached_property
    def bench(self) -> Bench:
        """The pool, for selection and labels."""
        pairs = RefineHead(_features(self.pool), _features(self.held_out), self.proxy, LABEL_WEIGHT)
        return Bench(self.pool, self.held_out, pairs, "group", self.blind, pool_share=1.0, seed=self.seed)

    def opinion(self, arm: str, arbitrate: bool = False) -> RefineOpinion:
        """Return the refinement on soft labels of an arm without labels, or with labels as arbiters."""
        return RefineOpinion(
            self.pool,
            _features(self.held_out),
            self.soft,
            arbitrate,
            TRUST[arm],
            group_by="known",
            label_weight=LABEL_WEIGHT,
        )

    @cached_property
    def arbiter(self) -> RefineOpinion:
        """Refinement with labels as arbiters; its soft pairs are listed once."""
        return self.opinion("equal_trust", arbitrate=True)

    def without_labels(self, arm: str) -> np.ndarray:
        """Return the held-out rewards of an arm that asks nobody."""
        return self.held_out.rewards if arm == NOTHING else self.opinion(arm)([], 0)

    def labels(self, strategy: str, budget: int) -> list[Label]:
        """Return the labels that a strategy gets for a number of comparisons."""
        everything = np.arange(len(self.pool))
        queue = ask(self.bench, everything, Cell(strategy, budget, 0), STRATEGIES[strategy])
        return judge(self.bench, queue)

    def refined(self, labels: list[Label], how: str) -> np.ndarray:
        """Return the held-out rewards after refinement on labels."""
        return self.arbiter(labels, 0) if how == "arbitrate" else self.bench.refine(labels, 0)

    def measures(self, rewards: np.ndarray) -> dict[str, float]:
        """Return pair accuracy over all held-out prompts, the sound and the blind ones, and gold of the best answer."""
        accuracy, blind = self.held_out.pair_accuracy(rewards), _blind(self.held_out, self.blind)
        return {
            "accuracy": known_mean(accuracy),
            "sound": known_mean(accuracy[~blind]),
            "blind": known_mean(accuracy[blind]),
            "best_of_n": float(self.held_out.best_gold(rewards).mean()),
        }

    def facts(self) -> dict[str, float]:
        """Return what is known before any label: how good both sources are and what conflicts find."""
        both = [*_by_prompt(self.pool), *_by_prompt(self.held_out)]
        sets = (self.pool, self.held_out)
        distance = np.concatenate([s.table.column("kendall_distance") for s in sets]).astype(float)
        blind = np.concatenate([_blind(s, self.blind) for s in sets])
        # A prompt of which the proxy orders fewer than half of the pairs as gold does.
        proxy = np.concatenate([s.pair_accuracy(s.rewards) for s in sets])
        policy = np.concatenate([s.pair_accuracy(s.policy) for s in sets])
        judged = ~np.isnan(proxy) & ~np.isnan(distance)
        wrong = np.concatenate([np.abs(z_scores(r) - z_scores(g)) > 1 for r, _, g in both])
        pacs = np.concatenate([np.abs(z_scores(r) - z_scores(p)) for r, p, _ in both])
        return {
            "policy_knows": float(np.mean([np.mean(z_scores(p) * z_scores(g)) for _, p, g in both])),
            "proxy_knows": float(np.mean([np.mean(z_scores(r) * z_scores(g)) for r, _, g in both])),
            "proxy_sound": known_mean(proxy[~blind]),
            "proxy_blind": known_mean(proxy[blind]),
            "policy_accuracy": known_mean(policy),
            "finds_errors": auroc(distance[judged], proxy[judged] < 0.5),
            "finds_blind": auroc(distance[~np.isnan(distance)], blind[~np.isnan(distance)]),
            "finds_answers": auroc(pacs, wrong),
        }


class Split(NamedTuple):
    """What one seed draws for a kind of bias.

    Attributes:
        blind: groups on which the proxy's annotators were wrong.
        pool: positions of the prompts to ask about.
        held_out: positions of other prompts.
        proxy: fits heads to the proxy's pairs and new ones.
        rewards: the proxy's reward of every answer, shape (T,).
    """

    blind: tuple[str, ...]
    pool: np.ndarray
    held_out: np.ndarray
    proxy: HeadFit
    rewards: np.ndarray


def split(numbers: Numbers, task: str, bias: str, seed: int, training: Numbers | None = None) -> Split:
    """Draw prompts and blind groups, and train the proxy.

    Args:
        numbers: the pool.
        task: its task.
        bias: the bias of the proxy's annotators.
        seed: the seed.
        training: other prompts that the proxy learns from; None takes a share of the pool's.
    """
    rng = np.random.default_rng(derive_seed("split", task, seed))
    blind: tuple[str, ...] = (SHORTER,)
    if task in BLIND_GROUPS:
        blind = tuple(sorted(rng.choice(np.unique(numbers.groups), BLIND_GROUPS[task], replace=False).tolist()))
    count = len(numbers.prompts)
    shares = SHARES if training is None else (0.0, ASKED_ABOUT)
    own, pool, held_out = np.split(rng.permutation(count), [round(share * count) for share in shares])
    differences = proxy_pairs(training or numbers.part(own), blind, bias, seed)
    proxy = HeadFit(numbers.features, differences, l2=PROXY_L2)
    return Split(blind, pool, held_out, proxy, proxy(differences[:0])(numbers.features))


def experiment(numbers: Numbers, setting: Setting, seed: int, drawn: Split) -> Experiment:
    """Make the bench of one seed."""
    parts = np.random.default_rng(derive_seed("parts", setting.task)).permutation(len(numbers.prompts)) % PARTS
    score = score_of(numbers, setting.score, seed)
    pool, held_out = (
        answer_set(numbers, np.sort(prompts[parts[prompts] != setting.left_out]), drawn.rewards, score)
        for prompts in (drawn.pool, drawn.held_out)
    )
    return Experiment(pool, held_out, drawn.blind, drawn.proxy, derive_seed("draws", setting.task, seed))


def proxy_pairs(numbers: Numbers, blind: tuple[str, ...], bias: str, seed: int) -> np.ndarray:
    """Return feature differences of the proxy's training pairs, the answer that its annotators preferred first."""
    better, worse, _ = labelled_pairs(numbers, bias, blind, seed)
    return numbers.features[better] - numbers.features[worse]


def labelled_pairs(numbers: Numbers, bias: str, blind: tuple[str, ...], seed: int) -> np.ndarray:
    """Return the proxy's training pairs as its biased annotators label them: chosen, rejected, prompt; shape (3, n)."""
    found = []
    for prompt, (start, end) in enumerate(zip(numbers.offsets, numbers.offsets[1:], strict=False)):
        better, worse = (numbers.gold[start:end, None] > numbers.gold[None, start:end]).nonzero()
        found.append(np.stack([better + start, worse + start, np.full(len(better), prompt)]))
    pairs = np.concatenate(found, axis=1)
    rng = np.random.default_rng(derive_seed("proxy", seed))
    pairs = pairs[:, rng.permutation(pairs.shape[1])[:PAIRS]]
    better, worse, prompt = pairs
    keep, turn = flipped_labels(
        bias,
        STRENGTH[bias],
        np.isin(numbers.groups[prompt], blind),
        numbers.words[better] - numbers.words[worse],
        seed,
    )
    return np.stack([np.where(turn, worse, better), np.where(turn, better, worse), prompt])[:, keep]


def answer_set(numbers: Numbers, prompts: np.ndarray, rewards: np.ndarray, score: np.ndarray) -> AnswerSet:
    """Return the answers to some prompts with the proxy's rewards and the policy's score."""
    rows, at = [], []
    for i in prompts:
        here = np.arange(numbers.offsets[i], numbers.offsets[i + 1])
        at.append(here)
        rows.append(
            {
                "prompt_id": str(numbers.prompts[i]),
                "prompt": str(numbers.prompts[i]),
                "group": str(numbers.groups[i]),
                "known": str(numbers.known[i]),
                "completions": [str(t) for t in numbers.texts[here]],
                "rewards": rewards[here].tolist(),
                "logprobs": score[here].tolist(),
            }
        )
    return AnswerSet.from_rows(rows, [numbers.gold[a] for a in at], numbers.features[np.concatenate(at)])


def known_mean(values: np.ndarray) -> float:
    """Return the mean of the values that are not NaN, or NaN if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _features(answers: AnswerSet) -> np.ndarray:
    assert answers.features is not None
    return answers.features


def _blind(answers: AnswerSet, blind: tuple[str, ...]) -> np.ndarray:
    return np.isin(answers.groups("group"), list(blind))


def _by_prompt(answers: AnswerSet) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    bounds = zip(answers.offsets, answers.offsets[1:], strict=False)
    return [(answers.rewards[a:b], answers.policy[a:b], answers.gold[a:b]) for a, b in bounds]
