"""The list of all pages for language models, docs/llms.txt, in the form of llmstxt.org."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).parents[1]
NEWEST = "latest/"  # the folder of the newest release, see docs/release.md


def llms() -> str:
    """Returns the project's description, and per page of the navigation its title, address and purpose."""
    # Tags that are Python's, such as !ENV, are not used; the safe loader refuses them.
    config = yaml.safe_load((DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8"))
    parts = [f"# {config['site_name']}\n", f"> {config['site_description']}\n", "## Documentation\n"]
    for name in pages(config["nav"]):
        title, purpose = described((DOCS / name).read_text(encoding="utf-8"))
        address = config["site_url"] + NEWEST + ("" if name == "index.md" else f"{name.removesuffix('.md')}/")
        parts.append(f"- [{title}]({address}): {purpose}")
    return "\n".join(parts) + "\n"


def pages(nav: list[Any]) -> Iterator[str]:
    """Yields the files of the navigation, in order."""
    for item in nav:
        if isinstance(item, str):
            yield item
        else:
            for inside in item.values():
                yield from pages(inside if isinstance(inside, list) else [inside])


def described(text: str) -> tuple[str, str]:
    """Returns the title of a page and the first sentence of its first paragraph, without links."""
    title = text.partition("\n")[0].removeprefix("# ")
    body = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    paragraphs = [part.strip() for part in body.split("\n\n")]
    first = next(part for part in paragraphs if part and not part.startswith(("#", "|", "!", "<")))
    plain = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", " ".join(first.split()))
    return title, re.split(r"(?<=[.:]) (?=[A-Z`])", plain, maxsplit=1)[0]
