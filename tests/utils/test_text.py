"""Texts of others on a terminal: nothing in them acts there."""

import json
import logging
import sys
from typing import Any

import pytest

from shfcas import cli
from shfcas.utils.errors import UserError
from shfcas.utils.text import ACTING, escaped, one_line, visible

ATTACKS = {
    "clear": "\x1b[2J\x1b[H",
    "title": "\x1b]0;owned\x07",
    "overwrite": "real\rfake",
    "C1": "\x9b31m",
    "back": "a\b\b\bb",
    "bidi": "\u202egnp.exe",
    "lines": "a\u2028b\x0bc\x0cd",
    "half": "\ud800",
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_characters_that_act_are_written_out(attack: str) -> None:
    shown = visible(f"before {attack} after\n\tnext")
    assert not ACTING.search(shown) and "<U+" in shown
    assert shown.startswith("before ") and shown.endswith(" after\n\tnext")
    assert "\n" not in one_line(f"{attack}\n") and one_line("a\tb\n") == "a<U+0009>b<U+000A>"
    assert json.loads(escaped(json.dumps({"x": attack}, ensure_ascii=False))) == {"x": attack}
    assert not ACTING.search(escaped(json.dumps([attack], ensure_ascii=False)))


def test_other_letters_stay() -> None:
    text = "旅行 šķērsām עברית 👩‍👩‍👧 $x_1$ <b> a|b"
    assert visible(text) == one_line(text) == text


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_no_output_of_a_command_acts_on_the_terminal(
    attack: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The result as text, as values and as JSON, the log, and an error."""
    results: list[Any] = [f"group {attack}", {"group": attack, "number": 1.0}, UserError(f"{attack}: no such group")]

    def run(config: Any) -> Any:
        logging.getLogger("shfcas.test").warning("a warning about %s", attack)
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    module = cli.command_module("env")
    monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr(module, "text", lambda result: result, raising=False)
    root = logging.getLogger()
    before = root.handlers[:]
    try:
        for arguments in (["env"], ["env", "--json"], ["env"]):
            cli.main(arguments)
            output = capsys.readouterr()
            assert not ACTING.search(output.out) and not ACTING.search(output.err)
            assert "a warning about" in output.err and ("<U+" in output.err)
    finally:
        root.handlers[:] = before
    assert not results and sys.stdout


def test_json_for_programs_keeps_the_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(cli.command_module("env"), "run", lambda config: {"group": "\x1b[2J\u202e\x9b"})
    cli.main(["env", "--json"])
    assert json.loads(capsys.readouterr().out) == {"group": "\x1b[2J\u202e\x9b"}
