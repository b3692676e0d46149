"""Names in Markdown tables."""

import re
from html import unescape

from markdown_it import MarkdownIt

from shfcas.compare.tables import markdown


def test_a_name_is_one_cell_of_a_markdown_table() -> None:
    names = ["a|b", "two\nlines", "<script>alert(1)</script>", "`code`", "$x$", "\x1b[2J", "a\\|b"]
    table = markdown([{"strategy": name, "value": "1"} for name in names])
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(table)
    cells = re.findall(r"<td>(.*?)</td>", html, re.DOTALL)
    assert [unescape(cell) for cell in cells[::2]] == [
        name.replace("\n", "<U+000A>").replace("\x1b", "<U+001B>") for name in names
    ]
    assert cells[1::2] == ["1"] * len(names) and "<code>" not in html and "<script" not in html
