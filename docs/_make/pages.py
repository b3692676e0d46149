"""Hook of mkdocs: fills in what a page leaves to the code, when the site is built.

docs/_make/reference.py writes the pages that are committed.
"""

import dataclasses
import re
from typing import Any

from reference import default  # mkdocs looks beside a hook

from shfcas.training.ppo.options import PPOBaseConfig, PPOStageConfig


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts the table of PPO's options into the page about training, and turns lists of names into documentation."""
    markdown = re.sub(r"<!-- reference\n(.*?)-->", r"\1", markdown, flags=re.DOTALL)
    return markdown.replace("<!-- options of PPO -->", ppo_options())


def on_page_content(html: str, **_: Any) -> str:
    """Removes Sphinx's role before the names of functions, which mkdocstrings leaves in docstrings."""
    return html.replace(":func:<code>", "<code>")


def ppo_options() -> str:
    """Returns one row per option of PPO: its default, its default in a run where that differs, and its meaning."""
    rows = ["| option | default | in a run | meaning |", "|---|---|---|---|"]
    trainer, run = PPOBaseConfig(), PPOStageConfig()
    for field in dataclasses.fields(PPOBaseConfig):
        values = [getattr(trainer, field.name), getattr(run, field.name)]
        other = default(values[1]) if values[0] != values[1] else ""
        meaning = field.metadata["help"].replace("|", "\\|")
        rows.append(f"| `{field.name}` | {default(values[0])} | {other} | {meaning} |")
    return "\n".join(rows)
