"""Export of prompts, policy and reward to verl, OpenRLHF and slime, for reinforcement learning on many nodes."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from shfcas.data.chat import encode_prompt
from shfcas.data.messages import Prompt, as_messages
from shfcas.data.templates import render
from shfcas.models.loading import load_reward_model, policy_template, save_merged, save_model
from shfcas.models.resolve import is_cost_model
from shfcas.rewards.scorers import ModelScorer, check_scorer, ensemble_members, padded
from shfcas.utils.callables import is_callable_name
from shfcas.utils.errors import UserError
from shfcas.utils.files import write_jsonl
from shfcas.utils.parquet import write_parquet

logger = logging.getLogger(__name__)

ENGINES = ("verl", "openrlhf", "slime")
PROBES = ("Yes.", "I do not know, and I would rather not guess.")  # answers scored by shfcas and as the engine does
PROBED_PROMPTS = 8
TOLERANCE = 1e-3  # allowed difference of rewards, relative above 1
SUFFIX = {"verl": ".parquet", "openrlhf": ".parquet", "slime": ".jsonl"}  # of prompt files


class NeedsServer(UserError):
    """A reward that the engine cannot compute itself."""


def prompt_rows(engine: str, prompts: Sequence[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    """Returns the rows of a prompt file; text prompts become one user message, since all apply the policy's template.

    verl reads `data_source`, `prompt`, `ability`, `reward_model` and `extra_info`. OpenRLHF reads the columns of
    `--data.input_key`, here `input`, and `--data.label_key`, here `label`, and `datasource`. slime reads `prompt` and
    `label`. Reward functions get no prompt as messages, so `extra_info` and `label` hold a second copy.
    """
    rows: list[dict[str, Any]] = []
    for index, row in enumerate(prompts):
        messages = [{"role": m["role"], "content": m["content"]} for m in as_messages(row["prompt"])]
        named = {"prompt_id": row["prompt_id"], "prompt": messages}
        if engine == "verl":
            rows.append(
                {
                    "data_source": "shfcas",
                    "prompt": messages,
                    "ability": "chat",
                    "reward_model": {"style": "model", "ground_truth": ""},
                    "extra_info": {"split": split, "index": index, **named},
                }
            )
        elif engine == "openrlhf":
            rows.append({"datasource": "shfcas", "input": messages, "label": json.dumps(named)})
        else:
            rows.append({"prompt": messages, "label": json.dumps(named)})
    return rows


def write_prompts(engine: str, path: Path, prompts: Sequence[dict[str, Any]]) -> None:
    """Writes a prompt file, whose name is its split."""
    import pyarrow as pa

    rows = prompt_rows(engine, prompts, path.stem)
    if path.suffix == ".jsonl":
        write_jsonl(path, rows)
    else:
        write_parquet(pa.Table.from_pylist(rows), path)


def export(
    engine: str,
    output: Path,
    *,
    prompts: Sequence[dict[str, Any]],
    policy: str,
    reward_model: str,
    eval_prompts: Sequence[dict[str, Any]] = (),
    cost_model: bool = False,
    chat_template: str | None = None,
    served: bool = False,
) -> dict[str, Any]:
    """Writes `train` and `test` (held-out prompts) in the engine's format, `policy`, and `reward_model`.

    A reward that the engine cannot compute is left to `shfcas serve-reward`. Then there is no `reward_model`.

    Args:
        engine: one of `ENGINES`.
        output: an existing folder.
        prompts: rows with `prompt` and `prompt_id`.
        policy: the initial policy; an adapter is merged, in float32.
        reward_model: the reward model; the sign of a cost model is flipped.
        eval_prompts: held-out prompts.
        cost_model: whether lower is better. Models with a cost configuration are flipped automatically.
        chat_template: for a policy without one, see `shfcas.models.loading.load_policy`.
        served: leave the reward to the server even if the engine can compute it.

    Returns:
        Numbers of prompts, whether the reward is left to the server, and otherwise the largest difference between
        rewards of shfcas and rewards as the engine computes them.

    Raises:
        UserError: there is no such model, or the policy has no chat template.
    """
    write_prompts(engine, output / f"train{SUFFIX[engine]}", prompts)
    if eval_prompts:
        write_prompts(engine, output / f"test{SUFFIX[engine]}", eval_prompts)
    check_scorer(reward_model)
    if not policy_template(policy, chat_template):
        raise UserError(f"{policy} has no chat template, and {engine} applies one; set chat_template")
    policy_tokenizer, _ = save_merged(policy, output / "policy", chat_template=chat_template)
    result: dict[str, Any] = {
        "prompts": len(prompts),
        "eval_prompts": len(eval_prompts),
        "served": served or engine == "slime",
    }
    if not result["served"]:
        try:
            result["largest_difference"] = _export_reward_model(
                engine, output, reward_model, policy_tokenizer, cost_model=cost_model, prompts=prompts
            )
        except NeedsServer as reason:
            logger.info("%s; rewards will come from shfcas serve-reward", reason)
            result["served"] = True
    return result


def _export_reward_model(
    engine: str,
    output: Path,
    name: str,
    policy_tokenizer: Any,
    *,
    cost_model: bool,
    prompts: Sequence[dict[str, Any]],
) -> float:
    """Writes the reward model, and returns the largest difference of its rewards in the engine."""
    scorer, sign, bias = _plain_reward_model(name, cost_model, engine)
    if engine == "openrlhf" and scorer.tokenizer.get_vocab() != policy_tokenizer.get_vocab():
        raise NeedsServer(f"{name} has another vocabulary than the policy, and OpenRLHF passes on the policy's tokens")
    _save_reward_model(output / "reward_model", scorer, sign, engine)
    asked = [row["prompt"] for row in prompts[:PROBED_PROMPTS] for _ in PROBES]
    answers = list(PROBES) * (len(asked) // len(PROBES))
    ours = [sign * (reward - bias) for reward in scorer(prompts=asked, completions=answers)]
    theirs = _as_the_engine_scores(
        engine, output / "reward_model", policy_tokenizer=policy_tokenizer, prompts=asked, answers=answers
    )
    difference = max(abs(a - b) / max(1.0, abs(a)) for a, b in zip(ours, theirs, strict=True))
    if difference > TOLERANCE:
        logger.warning(
            "with the input format of %s, rewards differ from those of shfcas by up to %.3g, because of chat templates "
            "and end tokens; the reward model was not trained on that format",
            engine,
            difference,
        )
    return difference


def _plain_reward_model(name: str, cost_model: bool, engine: str) -> tuple[ModelScorer, int, float]:
    """Returns a decoder with a `score` head, the sign of its reward, and its bias, which the engines do not support.

    Raises:
        NeedsServer: the reward is not such a model.
    """
    if ensemble_members(name):
        raise NeedsServer(f"{name} is an ensemble, and {engine} loads one model")
    if is_callable_name(name):
        raise NeedsServer(f"{name} is a function, and {engine} loads a model")
    model, tokenizer = load_reward_model(name, torch.float32)
    if not isinstance(getattr(model, "score", None), torch.nn.Linear):
        raise NeedsServer(f"{name} is a {type(model).__name__}, and {engine} loads a decoder with a head named score")
    if engine == "verl" and not tokenizer.chat_template:
        raise NeedsServer(f"{name} has no chat template, and verl applies the reward model's")
    sign = -1 if cost_model or is_cost_model(name) else 1
    bias = 0.0 if model.score.bias is None else model.score.bias.item()
    if bias:
        logger.warning("the bias of %s, %.4g, is dropped: %s does not support it", name, bias, engine)
    return ModelScorer(model, tokenizer), sign, bias


def _save_reward_model(folder: Path, scorer: ModelScorer, sign: int, engine: str) -> None:
    """Saves a model for `AutoModelForSequenceClassification`: num_labels 1, a head `score` without a bias."""
    from transformers import AutoModelForSequenceClassification

    config = scorer.model.config
    with torch.device("meta"):
        plain = AutoModelForSequenceClassification.from_config(config)
    weights = {name: value for name, value in scorer.model.state_dict().items() if name != "score.bias"}
    weights["score.weight"] = sign * weights["score.weight"]
    plain.config.num_labels = 1
    plain.config.shfcas_cost_model = plain.config.shfcas_last_token_head = False
    if engine == "openrlhf":
        plain.config.value_head_prefix = "score"
    plain.load_state_dict(weights, strict=True, assign=True)
    save_model(folder, plain, scorer.tokenizer)


def _as_the_engine_scores(
    engine: str, folder: Path, *, policy_tokenizer: Any, prompts: list[Prompt], answers: list[str]
) -> list[float]:
    """Computes rewards of answers in the engine's input format, without the engine, which needs GPUs."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    rewards = []
    for prompt, answer in zip(prompts, answers, strict=True):
        messages = as_messages(prompt)
        if engine == "verl":  # the reward model's template as text, then its tokenizer with special tokens
            text = render(tokenizer, [*messages, {"role": "assistant", "content": answer}])
            ids = tokenizer(text.removeprefix(tokenizer.bos_token or ""), verbose=False)["input_ids"]
        else:  # the policy's own tokens, and its end token
            ids = encode_prompt(policy_tokenizer, messages)
            ids += policy_tokenizer(answer, add_special_tokens=False)["input_ids"] + [policy_tokenizer.eos_token_id]
        inputs = padded([ids], 0, "cpu")
        with torch.inference_mode():
            hidden = model.base_model(**inputs).last_hidden_state
            rewards.append(model.score(hidden)[0, -1, 0].item())
    return rewards
