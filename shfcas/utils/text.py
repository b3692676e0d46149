"""Texts of others where they are shown: on a terminal, in a table, in a figure."""

import re

# Control characters but tab and line feed, changes of direction, separators of lines, and halves of surrogate pairs.
ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""Writes out characters that act on a terminal, or reorder the text, instead of being shown.

    >>> visible("a\x1b[2Jb\n\u202ec")
    'a<U+001B>[2Jb\n<U+202E>c'
    """
    return ACTING.sub(_code, text)


def one_line(text: str) -> str:
    r"""Writes out line breaks and tabs too.

    >>> one_line("a\nb")
    'a<U+000A>b'
    """
    return re.sub("[\t\n]", _code, visible(text))


def escaped(json_text: str) -> str:
    """Returns the same JSON with these characters as escapes."""
    return ACTING.sub(lambda found: f"\\u{ord(found[0]):04x}", json_text)


def _code(found: re.Match[str]) -> str:
    return f"<U+{ord(found[0]):04X}>"
