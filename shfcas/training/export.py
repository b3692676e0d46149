"""Export of prompts, reward model and policy to verl and OpenRLHF, for reinforcement learning on many nodes."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from shfcas.data.chat import encode_prompt
from shfcas.data.messages import Prompt, as_messages
from shfcas.data.templates import render
from shfcas.models.loading import has_trained_head, load_policy, load_reward_model, save_model
from shfcas.models.resolve import is_cost_model
from shfcas.rewards.scorers import ModelScorer, ensemble_members, padded
from shfcas.utils.errors import UserError
from shfcas.utils.parquet import write_parquet

logger = logging.getLogger(__name__)

ENGINES = ("verl", "openrlhf")
PROBES = ("Yes.", "I do not know, and I would rather not guess.")  # answers scored by shfcas and as the engine does
PROBED_PROMPTS = 8
TOLERANCE = 1e-3  # allowed difference of rewards, relative above 1


def prompt_rows(engine: str, prompts: Sequence[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    """Returns the rows of a prompt file; text prompts become one user message, since both apply the policy's template.

    verl reads `data_source`, `prompt`, `ability`, `reward_model` and `extra_info`. OpenRLHF reads the columns of
    `--input_key`, here `input`, and `--label_key`, here `label`, and `datasource`.
    """
    rows = []
    for index, row in enumerate(prompts):
        messages = [{"role": m["role"], "content": m["content"]} for m in as_messages(row["prompt"])]
        if engine == "verl":
            rows.append(
                {
                    "data_source": "shfcas",
                    "prompt": messages,
                    "ability": "chat",
                    "reward_model": {"style": "model", "ground_truth": ""},
                    "extra_info": {"split": split, "index": index, "prompt_id": row["prompt_id"]},
                }
            )
        else:
            rows.append({"datasource": "shfcas", "input": messages, "label": "", "prompt_id": row["prompt_id"]})
    return rows


def write_prompts(engine: str, path: Path, prompts: Sequence[dict[str, Any]]) -> None:
    """Writes a prompt file, whose name is its split."""
    import pyarrow as pa

    write_parquet(pa.Table.from_pylist(prompt_rows(engine, prompts, path.stem)), path)


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
) -> dict[str, Any]:
    """Writes `train.parquet`, `test.parquet` (with held-out prompts), `policy` and `reward_model`.

    Args:
        engine: one of `ENGINES`.
        output: an existing folder.
        prompts: rows with `prompt` and `prompt_id`.
        policy: the initial policy; an adapter is merged.
        reward_model: the reward model; the sign of a cost model is flipped.
        eval_prompts: held-out prompts.
        cost_model: whether lower is better. Models with a cost configuration are flipped automatically.
        chat_template: for a policy without one, see `shfcas.models.loading.load_policy`.

    Returns:
        Numbers of prompts, and the largest difference between rewards of shfcas and rewards as the engine computes
        them.

    Raises:
        UserError: the engine cannot read the reward model, or not with this policy; the message says why.
    """
    write_prompts(engine, output / "train.parquet", prompts)
    if eval_prompts:
        write_prompts(engine, output / "test.parquet", eval_prompts)
    model, policy_tokenizer = load_policy(policy, chat_template)
    if not policy_tokenizer.chat_template:
        raise UserError(f"{policy} has no chat template, and {engine} applies one; set chat_template")
    save_model(output / "policy", model, policy_tokenizer)
    del model
    scorer, sign, bias = _plain_reward_model(reward_model, cost_model, engine)
    if engine == "openrlhf" and scorer.tokenizer.get_vocab() != policy_tokenizer.get_vocab():
        raise UserError(
            f"{reward_model}: expected the vocabulary of {policy}, since OpenRLHF passes the policy's tokens to the "
            f"reward model; train one on the policy's family (shfcas train-reward --model {policy}), or use verl"
        )
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
    return {"prompts": len(prompts), "eval_prompts": len(eval_prompts), "largest_difference": difference}


def _plain_reward_model(name: str, cost_model: bool, engine: str) -> tuple[ModelScorer, int, float]:
    """Returns a decoder with a `score` head, the sign of its reward, and its bias, which the engines do not support."""
    if ensemble_members(name):
        raise UserError(f"{name}: expected one model for {engine}, got an ensemble; train one with average_weights")
    model, tokenizer = load_reward_model(name)
    if not has_trained_head(name):
        raise UserError(f"{name} has no trained reward head; train one with: shfcas train-reward")
    if not isinstance(getattr(model, "score", None), torch.nn.Linear):
        raise UserError(
            f"{name}: expected a decoder with a head named score for {engine}, got {type(model).__name__}: "
            "train a reward model on the policy's family"
        )
    if engine == "verl" and not tokenizer.chat_template:
        raise UserError(f"verl applies the reward model's chat template, and {name} has none")
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
