"""The guidelines of a labelling task: Markdown that people wrote, as HTML that the page may show."""

from collections.abc import Sequence
from typing import Any

from markdown_it import MarkdownIt
from markupsafe import Markup

from shfcas.utils.files import read_text


def rendered(path: str | None) -> Markup:
    """The guidelines as HTML: HTML in them is shown as text, and links to scripts stay text.

    Raises:
        UserError: the file is not there, or not text.
    """
    if path is None:
        return Markup("")
    markdown = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    markdown.add_render_rule("link_open", _link)
    return Markup(markdown.render(read_text(path)))


def _link(renderer: Any, tokens: Sequence[Any], index: int, options: Any, env: Any) -> str:
    """A link opens beside the page, which must not lose its place, and tells nobody where it was followed."""
    token = tokens[index]
    if not str(token.attrGet("href")).startswith("#"):
        token.attrSet("rel", "noopener noreferrer")
        token.attrSet("target", "_blank")
    return str(renderer.renderToken(tokens, index, options, env))
