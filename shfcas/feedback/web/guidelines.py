"""Guidelines of a labelling task: Markdown rendered as safe HTML for the page."""

from collections.abc import Sequence
from typing import Any

from markdown_it import MarkdownIt
from markupsafe import Markup

from shfcas.utils.files import read_text


def render_guidelines(path: str | None) -> Markup:
    """Renders the guidelines as HTML; HTML inside them, and links to scripts, stay text.

    Raises:
        UserError: the file is missing, or not text.
    """
    if path is None:
        return Markup("")
    markdown = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    markdown.add_render_rule("link_open", _link)
    return Markup(markdown.render(read_text(path)))


def _link(renderer: Any, tokens: Sequence[Any], index: int, options: Any, env: Any) -> str:
    """Makes a link open in a new tab, so that the annotator keeps their place, and without a referrer."""
    token = tokens[index]
    if not str(token.attrGet("href")).startswith("#"):
        token.attrSet("rel", "noopener noreferrer")
        token.attrSet("target", "_blank")
    return str(renderer.renderToken(tokens, index, options, env))
