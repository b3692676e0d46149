"""The file of annotators: private, whole after many writers, and malformed ones are named."""

import re
import stat
import threading
from pathlib import Path

import pytest

from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.web.annotators import FILE, Annotators, add_annotators
from shfcas.utils.errors import UserError

SETTINGS = HumanConfig(port=0, repeat_share=0.0)


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
        (f"ada {'a' * 32} more\n", "line 1: expected"),
        (f"ada {'a' * 32}\nada {'b' * 32}\n", "line 2 repeats"),
        (f"ada {'a' * 32}\nben {'a' * 32}\n", "line 2 repeats"),
    ],
)
def test_a_malformed_file_is_named_by_its_line_without_tokens(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        add_annotators(tmp_path, ["cleo"])
    assert "a" * 32 not in str(error.value)
    assert (tmp_path / FILE).read_text() == text


def test_a_line_without_an_end_is_not_run_together_with_the_next(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(f"ada {'a' * 32}")
    assert add_annotators(tmp_path, ["ben"]).keys() == add_annotators(tmp_path).keys() == {"ada", "ben"}
