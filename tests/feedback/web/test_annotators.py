"""The file of annotators: private, whole after many writers, and malformed ones are named."""

import re
import secrets
import stat
import threading
from pathlib import Path

import pytest

from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.web.annotators import FILE, MIN_BITS, Annotators, add_annotators, strength
from shfcas.utils.errors import UserError

SETTINGS = HumanConfig(port=0, repeat_share=0.0)
SECRET = "9c1f7e3b5a0d8264e2f1c7b3095d6a48"


def test_tokens_are_long_random_and_private(tmp_path: Path) -> None:
    tokens = add_annotators(tmp_path, ["ada", "ben", "zoë-2@x.org"])
    assert all(re.fullmatch("[0-9a-f]{32}", token) for token in tokens.values()) and len(set(tokens.values())) == 3
    path = tmp_path / FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    assert add_annotators(tmp_path, ["cleo", "ada"]).items() > tokens.items()  # those who were there keep theirs
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert add_annotators(tmp_path) == Annotators(tmp_path).tokens()
    assert add_annotators(tmp_path / "..", []).keys() == {"annotator"}


def test_annotators_are_added_by_many_at_once(tmp_path: Path) -> None:
    threads = [threading.Thread(target=add_annotators, args=(tmp_path, [f"a{i}", "ada"])) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(add_annotators(tmp_path)) == {"ada", *(f"a{i}" for i in range(8))}


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a,b", "a\nb", "\x1b[31m", "\u202ea", "a" * 65, "#a"])
def test_names_that_cannot_be_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="annotators: expected names"):
        add_annotators(tmp_path, ["ada", name])
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ada\n", "line 1: expected a name and a token"),
        ("# x\n\nada short\n", "line 3: expected a name and a token"),
        (f"ada {SECRET} more\n", "line 1: expected"),
        (f"ada {SECRET} observer more\n", "line 1: expected"),
        (f"ada {SECRET}\nada {SECRET[::-1]}\n", "line 2 repeats"),
        (f"ada {SECRET}\nben {SECRET}\n", "line 2 repeats"),
        (f"ada {'a' * 32}\n", "line 1: the token is easy to guess; delete the line"),
        ("ada 12345678901234567890\n", "line 1: the token is easy to guess"),
        ("ada passwordpasswordpassword\n", "line 1: the token is easy to guess"),
        ("ada abcdefghijklmnopqrstuvwxyz\n", "line 1: the token is easy to guess"),
    ],
)
def test_a_malformed_file_is_named_by_its_line_without_tokens(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        add_annotators(tmp_path, ["cleo"])
    assert not any(field in str(error.value) for field in text.split() if len(field) > 15)
    assert (tmp_path / FILE).read_text() == text


def test_a_line_without_an_end_is_not_run_together_with_the_next(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(f"ada {SECRET}")
    assert add_annotators(tmp_path, ["ben"]).keys() == add_annotators(tmp_path).keys() == {"ada", "ben"}


def test_tokens_made_here_are_strong() -> None:
    assert all(strength(secrets.token_hex(16)) > MIN_BITS for _ in range(2000))


def test_observers_are_no_annotators(tmp_path: Path) -> None:
    tokens = add_annotators(tmp_path, ["ada"], ["eva"])
    assert set(tokens) == {"ada", "eva"} and Annotators(tmp_path).people() == {"ada"}
    assert add_annotators(tmp_path, ["ada"], ["eva"]) == tokens
    for names, observers in ((["eva"], []), ([], ["ada"]), (["new"], ["new"])):
        with pytest.raises(UserError, match="cannot both answer and only observe"):
            add_annotators(tmp_path, names, observers)
    (tmp_path / FILE).unlink()
    assert set(add_annotators(tmp_path, [], ["eva"])) == {"annotator", "eva"}  # one person has to answer
