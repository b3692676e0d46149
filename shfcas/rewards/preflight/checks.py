"""Preflight checks, one function each."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from shfcas.data.chat import ModelInputs, answer_suffix_ids, encode_answer, model_inputs, special_ids
from shfcas.data.messages import Completion, Prompt, as_messages, completion_text, plain_text
from shfcas.data.preferences import Preference
from shfcas.data.templates import answer_frame, conversation
from shfcas.rewards.metrics import accuracy
from shfcas.rewards.preflight.finding import FAIL, PASS, WARN, Finding
from shfcas.rewards.scorers import ModelScorer, accepted_inputs, padded_inputs
from shfcas.utils.errors import UserError

ENOUGH = 100  # pairs needed to reject a model that is no better than chance; a half-width of 0.1
FEW = 20  # below this number of pairs nothing is concluded
BATCH = 16
CUT = "the beginning of the prompt is cut, unless too_long says otherwise"


def check_head(trained: bool) -> Finding:
    """Checks that the model has a trained head; loading fails earlier if its weights are missing."""
    if not trained:
        return Finding("head", FAIL, "the model has no trained reward head", "train one with: shfcas train-reward")
    return Finding("head", PASS, "the reward head was trained and is in the checkpoint")


def check_length(limit: int, pairs: Sequence[int], answers: Sequence[int], answer_tokens: int) -> Finding:
    """Checks that pairs and answers fit the context of the model; all numbers are tokens."""
    long_pairs, long_answers = sum(n > limit for n in pairs), sum(n > limit for n in answers)
    tight = sum(n + answer_tokens > limit for n in answers)
    values = {"limit": limit, "longest": max([*pairs, *answers], default=0)}
    values |= {"long_pairs": long_pairs, "long_answers": long_answers}
    beyond = f"longer than the model's limit of {limit} tokens"
    if long_answers:
        message = f"{long_answers} of {len(answers)} prompts or answers are {beyond}"
        return Finding("length", WARN, message, f"{CUT}: shorten the prompts or use a longer context", values)
    if pairs and long_pairs == len(pairs):
        message = f"all {long_pairs} known pairs are {beyond}"
        return Finding("length", FAIL, message, "use shorter pairs or a model with a longer context", values)
    if tight:
        message = f"{tight} of {len(answers)} prompts leave less than {answer_tokens} of {limit} tokens for an answer"
        return Finding("length", WARN, message, f"{CUT}: sample fewer tokens", values)
    if long_pairs:
        message = f"{long_pairs} of {len(pairs)} known pairs are {beyond}"
        return Finding("length", WARN, message, f"{CUT}: shorten them", values)
    return Finding("length", PASS, f"all texts are within the model's limit of {limit} tokens", values=values)


def check_frame(tokenizer: Any) -> Finding | None:
    """Checks that the chat template, if there is one, writes an answer once; None if it does."""
    if tokenizer.chat_template:
        try:
            answer_frame(tokenizer, "question")
        except UserError as error:
            return Finding("template", FAIL, str(error), "fix the tokenizer's chat template")
    return None


def check_template(scorer: ModelScorer, pairs: Sequence[Preference]) -> Finding:
    """Checks that the template passes the conversation to the model, and measures its effect on the scores."""
    tokenizer = scorer.tokenizer
    if not pairs:
        return Finding("template", WARN, "no known pair is short enough to be scored", "use shorter pairs")
    different = [p for p in pairs if p.chosen != p.rejected]
    if different and all(encode(tokenizer, p, p.chosen) == encode(tokenizer, p, p.rejected) for p in different):
        return Finding(
            "template",
            FAIL,
            "the model's input does not depend on the answer",
            "fix the tokenizer's chat template, which drops assistant messages",
        )
    first = pairs[0]
    other = "zebra quartz" if isinstance(first.prompt, str) else [{"role": "user", "content": "zebra quartz"}]
    if model_inputs(tokenizer, other, first.chosen) == encode(tokenizer, first, first.chosen):
        return Finding(
            "template",
            FAIL,
            "the model's input does not depend on the prompt",
            "fix the tokenizer's chat template, which drops user messages",
        )
    if not tokenizer.chat_template:
        paired = tokenizer.sep_token_id is not None
        known = paired or hasattr(scorer.model.config, "shfcas_ending")
        return Finding(
            "template",
            PASS if known else WARN,
            f"there is no chat template: prompt and answer are {'a pair' if paired else 'joined by a blank line'}",
            "" if known else "if the model was trained with a template, save it in the tokenizer",
        )
    few = pairs[:BATCH]
    for p in few:
        text = conversation(tokenizer, p.prompt, p.chosen)
        lost = sorted({m["role"] for m in as_messages(p.prompt) if m["content"].strip() not in text})
        if lost:
            message = f"the chat template drops or changes messages of: {', '.join(lost)}"
            return Finding("template", WARN, message, "fix it, or move important content to a user message")
    templated = [encode(tokenizer, p, p.chosen) for p in few]
    texts = [f"{plain_text(p.prompt)}\n\n{completion_text(p.chosen)}" for p in few]
    plain = [{"input_ids": tokenizer(text, verbose=False)["input_ids"][: scorer.max_length]} for text in texts]
    shift = mean_shift(scorer.score_inputs(templated), scorer.score_inputs(plain))
    message = f"the chat template is applied; without it, scores would change by {shift:.2f} standard deviations"
    return Finding("template", PASS, message, values={"moved": shift})


def check_numbers(rewards: Sequence[float]) -> Finding:
    """Checks that scores are finite and not all equal."""
    bad = int((~np.isfinite(rewards)).sum())
    if bad:
        return Finding(
            "numbers",
            FAIL,
            f"{bad} of {len(rewards)} scores are not finite numbers",
            "the weights are broken, or overflow in half precision: load the model in float32, or train it again",
        )
    low, high = float(np.min(rewards)), float(np.max(rewards))
    if high - low < 1e-6:
        return Finding(
            "numbers", FAIL, f"all {len(rewards)} answers get the same score, {low:.4g}", "train the reward model"
        )
    return Finding("numbers", PASS, f"scores lie between {low:.3g} and {high:.3g}", values={"low": low, "high": high})


def check_batch(scorer: ModelScorer, pairs: Sequence[Preference], tolerance: float) -> Finding:
    """Checks that a score does not depend on the batch, as it does if padding is read as text."""
    first, tokenizer = pairs[0], scorer.tokenizer
    encoded = sorted((encode(tokenizer, p, p.chosen) for p in pairs), key=lambda inputs: len(inputs["input_ids"]))
    encoded = [*encoded[: BATCH // 2], *encoded[-BATCH // 2 :]]
    longer = model_inputs(tokenizer, first.prompt, " ".join([completion_text(first.chosen)] * 2))
    encoded += [longer] if len(longer["input_ids"]) <= scorer.max_length else []  # so that the batch needs padding
    one = ModelScorer(scorer.model, tokenizer, batch_size=1, max_length=scorer.max_length)
    alone = one.score_inputs(encoded)
    finding = batch_finding(
        alone, scorer.score_inputs(encoded), tolerance, "its forward must use the attention mask to find the text's end"
    )
    if finding.status == FAIL and np.abs(np.subtract(alone, left_padded(scorer, encoded))).max() < 1e-3:
        remedy = f"it reads the last position and assumes padding on the left: {finding.remedy}"
        return replace(finding, remedy=remedy)
    return finding


def batch_finding(alone: Sequence[float], together: Sequence[float], tolerance: float, remedy: str) -> Finding:
    """Compares scores of the same answers alone and in a batch."""
    shift, deviation = float(np.abs(np.subtract(alone, together)).max()), float(np.std(alone))
    values = {"moved": shift, "standard_deviation": deviation}
    rounding = 1e-5 + 1e-5 * float(np.abs(alone).max())  # rounding errors of float32
    if shift > max(tolerance * deviation, rounding):
        message = f"a score changes by up to {shift:.3g} in a batch (standard deviation {deviation:.3g})"
        return Finding("batch", FAIL, message, remedy, values)
    message = f"scores are the same alone and in a padded batch (within {shift:.1g})"
    return Finding("batch", PASS, message, values=values)


def check_end(scorer: ModelScorer, pairs: Sequence[Preference], judged: Finding) -> Finding:
    """Checks that answers end with the same tokens as in training; most reward models read the score there."""
    tokenizer, config = scorer.tokenizer, scorer.model.config
    tail = answer_suffix_ids(tokenizer, pairs[0].prompt)
    text = tokenizer.decode(tail)
    trained = getattr(config, "shfcas_ending", None)
    if trained is not None and list(trained) != tail:
        return Finding(
            "end",
            FAIL,
            f"answers end with {text!r}, but the model was trained with {tokenizer.decode(list(trained))!r}",
            "use the tokenizer and template that were saved with the model",
            {"ending": text},
        )
    if not set(tail) & special_ids(tokenizer):
        works = judged.values["known"] and judged.values["low"] > 0.5 and judged.values["count"] >= FEW
        return Finding(
            "end",
            WARN if works or trained is not None else FAIL,
            "answers have no end token" + (", but the model orders known pairs without one" if works else ""),
            "set the tokenizer's eos_token, or a chat template that ends the assistant's turn",
            {"ending": text},
        )
    encoded = [encode(tokenizer, p, p.chosen) for p in pairs[:BATCH]]
    ended = [{name: values[: -len(tail)] for name, values in inputs.items()} for inputs in encoded]
    shift = mean_shift(scorer.score_inputs(encoded), scorer.score_inputs(ended))
    values = {"ending": text, "moved": shift}
    if shift < 1e-4 and tokenizer.pad_token_id in tail and trained is None:
        return Finding(
            "end",
            WARN,
            f"{text!r} ends an answer and is also the pad token, so the model reads its score one token earlier",
            "if it was trained with another pad token, set it in the tokenizer",
            values,
        )
    message = f"{text!r} ends every answer; without it, scores would change by {shift:.2f} standard deviations"
    return Finding("end", PASS, message, values=values)


def check_accuracy(differences: np.ndarray, known: bool) -> Finding:
    """Checks that the model orders pairs as labelled."""
    found = accuracy(differences)
    values = {**found, "known": known}
    what = "known pairs" if known else "obvious pairs"
    share = f"{found['mean']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
    message = f"{share} of {found['count']} {what} are ordered as labelled (0.5 is chance)"
    if found["low"] > 0.5:
        return Finding("accuracy", PASS, message, values=values)
    reversed_ = found["high"] < 0.5
    remedy = "train the reward model on such pairs first"
    if reversed_:
        remedy = "lower may be better: set cost_model, or check whether chosen and rejected are swapped"
    sure = known and found["count"] >= (FEW if reversed_ else ENOUGH)
    if not sure and not reversed_:
        remedy = f"at least {ENOUGH} known pairs are needed to decide: pass them with preferences"
    return Finding("accuracy", FAIL if sure else WARN, message, remedy, values)


def check_dtype(scorer: ModelScorer, rewards: Sequence[float], pairs: Sequence[Preference]) -> Finding:
    """Checks that the precision of the weights is enough to distinguish answers."""
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in scorer.model.parameters() if p.is_floating_point()})
    answers = {(str(p.prompt), str(answer)) for p in pairs for answer in (p.chosen, p.rejected)}
    ties = max(0, len(answers) - len(set(rewards)))
    message, values = f"the weights are in {', '.join(dtypes)}", {"dtypes": dtypes, "ties": ties}
    trunk, half = f"{getattr(scorer.model, 'base_model_prefix', '')}.", (torch.float16, torch.bfloat16)
    head = [p.dtype in half for name, p in scorer.model.named_parameters() if not name.startswith(trunk)]
    if any(head) or (ties and {"float16", "bfloat16"} & set(dtypes)):
        message += f"; {ties} of {len(answers)} different answers have the same score as another"
        return Finding("dtype", WARN, message, "load the reward model in float32", values)
    return Finding("dtype", PASS, message, values=values)


def num_tokens(tokenizer: Any, prompt: Prompt, completion: Completion) -> int:
    """Returns the number of tokens of a prompt and its answer."""
    return len(encode_answer(tokenizer, prompt, completion))


def pair_length(tokenizer: Any, preference: Preference) -> int:
    """Returns the number of tokens of the longer of two answers, including the prompt."""
    return max(num_tokens(tokenizer, preference.prompt, answer) for answer in (preference.chosen, preference.rejected))


def encode(tokenizer: Any, preference: Preference, answer: Completion) -> ModelInputs:
    """Returns the model's inputs of a pair's prompt with one answer."""
    return model_inputs(tokenizer, preference.prompt, answer)


def mean_shift(before: Sequence[float], after: Sequence[float]) -> float:
    """Returns the mean absolute change, in standard deviations of the scores."""
    return float(np.abs(np.subtract(before, after)).mean() / (np.std(before) + 1e-12))


@torch.inference_mode()
def left_padded(scorer: ModelScorer, encoded: Sequence[ModelInputs]) -> list[float]:
    """Scores one batch with padding on the left."""
    names = accepted_inputs(scorer.model, encoded)
    inputs = padded_inputs(encoded, names, scorer.pad_id, scorer.model.device, "left")
    return scorer.model(**inputs).logits.float().squeeze(-1).tolist()
