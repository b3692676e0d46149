"""All chat templates of the pinned TRL: the whole answer is learned and read, then one end token, nothing after."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trl

from shfcas.data.chat import encode_answer, encode_demonstration, encode_prompt, end_token_ids, turn_end_id
from shfcas.data.templates import render
from shfcas.utils.errors import UserError
from tests.support.architectures import byte_level, sentence_piece

TEMPLATES = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
# What looks like a special token in a template's source.
TOKEN = re.compile(r"<[|｜][^<>\s]{1,40}?[|｜]>|</?s>|<\|?turn\|?>|<(?:end_of_turn|start_of_turn|end_of_utterance)>")
QUESTION = [{"role": "user", "content": "how was the soup?"}]
THOUGHTS = "I think it was fine.\n</think>\n\nthe soup was good"
COMPLETIONS = {
    "plain": "the soup was good",
    "white space behind": "the soup was good \n",
    "white space before": "\n the soup was good",
    "two paragraphs": "the soup was good\n\nthe bread was not",
    "the end of reasoning": THOUGHTS,
    "reasoning": f"<think>\n{THOUGHTS}",
    "letters of an end token": "end",
    "one letter": "a",
    "the question again": "how was the soup?",
    "a role": "assistant",
    "many scripts": "die Suppe schmeckte süß 🍜 ведь да 美味",
    "code": "```python\nif a < b and c > d:\n    print('{{ x }}')\n```",
    "json": '{"soup": [1, 2, {"a": null}]}',
    "nothing": "",
    "only white space": " \n",
}


def tokenizer_of(path: Path, make: Callable[..., Any]) -> Any:
    """A tokenizer with the special tokens that a template writes."""
    template = path.read_text(encoding="utf-8")
    special = ["<begin>", "<end>", *dict.fromkeys(TOKEN.findall(template))]
    tokenizer = make(special, bos_token="<begin>", eos_token="<end>")
    tokenizer.chat_template = template
    return tokenizer


def keeps_white_space(tokenizer: Any) -> bool:
    return "mark \n" in render(tokenizer, [*QUESTION, {"role": "assistant", "content": "mark \n"}])


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_the_whole_answer_and_one_end_token_are_learned(path: Path, make: Callable[..., Any]) -> None:
    tokenizer = tokenizer_of(path, make)
    end_ids = end_token_ids(None, tokenizer)
    for name, completion in COMPLETIONS.items():
        prompt, answer = encode_demonstration(tokenizer, QUESTION, completion, end_ids)
        assert prompt == encode_prompt(tokenizer, QUESTION), name
        assert answer[-1] in end_ids and not end_ids.intersection(answer[:-1]), name
        assert answer[-1] == (turn_end_id(tokenizer) or tokenizer.eos_token_id), name
        opened = tokenizer.decode(prompt).rstrip().endswith("<think>") and name == "reasoning"
        expected = THOUGHTS if opened else completion  # the generation prompt has said <think> already
        said = tokenizer.decode(prompt + answer[:-1])
        assert said.rstrip().endswith(expected.strip()), name
        if keeps_white_space(tokenizer) and not opened:
            assert said.endswith(expected), name


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_reward_model_reads_the_whole_answer(path: Path) -> None:
    tokenizer = tokenizer_of(path, byte_level)
    for name, completion in COMPLETIONS.items():
        text = tokenizer.decode(encode_answer(tokenizer, QUESTION, completion))
        asked = completion.strip() == QUESTION[0]["content"]
        assert text.count(completion.strip()) >= 1 + asked, name


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_an_answer_with_an_end_token_inside_is_refused_and_one_behind_it_is_the_end(path: Path) -> None:
    tokenizer = tokenizer_of(path, byte_level)
    end_ids = end_token_ids(None, tokenizer)
    for end in end_ids:
        text = tokenizer.decode([end])
        try:
            _, answer = encode_demonstration(tokenizer, QUESTION, f"good{text}", end_ids)
        except UserError as error:
            assert "rejects" in str(error)  # templates may refuse their own marks
        else:
            assert len(end_ids.intersection(answer)) == 1 and answer[-1] in end_ids
        with pytest.raises(UserError, match=r"has the end token .* inside|rejects"):
            encode_demonstration(tokenizer, QUESTION, f"good{text} and bad", end_ids)
