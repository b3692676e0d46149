"""Write a configuration file to start from: commented, with placeholders to replace.

- gold: a gold model or a Python function labels the comparisons
- annotators: people label them, on a page
- judge: a language model labels them
- scores: no models, only log-probabilities and rewards; a file for `shfcas select`
"""

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shfcas.cli import select
from shfcas.cli._parser import flat_keys
from shfcas.cli._template import placeholders, template
from shfcas.pipeline.config import RunConfig
from shfcas.utils.config import Options, build, option
from shfcas.utils.errors import UsageError, UserError
from shfcas.utils.files import write_text


@dataclass(frozen=True)
class Start:
    """Starting point: which file is written, and which commands use it.

    Args:
        purpose: first line of the file.
        values: values that differ from the defaults.
        notes: further comments by dotted name.
        optional: values by dotted name, for keys that are written as comments.
        sections: sections whose common keys are in the short file too.
        steps: commands to run; {} is the file.
        command: name of the command that reads the file.
        config: configuration of that command.
        file: name of the file.
    """

    purpose: str
    values: dict[str, Any]
    notes: dict[str, str]
    steps: tuple[str, ...]
    sections: tuple[str, ...] = ()
    command: str = "run"
    config: type = RunConfig
    file: str = "config.yaml"
    optional: dict[str, str] = field(default_factory=dict)

    def text(self, full: bool) -> str:
        """Returns the text of the file, with every key or the common ones."""
        config: Any = build(self.config, self.values)
        chosen = {*flat_keys(config, common=True), *placeholders(self.values)}
        for section in self.sections:
            chosen |= {*flat_keys(getattr(config, section), common=True, prefix=f"{section}.")}
        more = f"shfcas {self.command} --help all explains every key"
        head = f"# {self.purpose}\n# A key that is left out has its default; {more}.\n\n"
        return head + template(config, None if full else chosen, self.notes, self.optional)


MODELS = {
    "policy": "<POLICY>",
    "reward_model": "<REWARD_MODEL>",
    "gold": "<GOLD>",
    "prompts": "<PROMPTS>",
    "eval_prompts": "<EVAL_PROMPTS>",
}
WITHOUT_GOLD = {key: value for key, value in MODELS.items() if key != "gold"}
STARTS = {
    "gold": Start(
        "SHF-CAS run: a gold model or a Python function labels the comparisons.",
        MODELS,
        {"gold": "It labels the selected comparisons and measures the policies in the evaluation."},
        ("shfcas run {}",),
    ),
    "annotators": Start(
        "SHF-CAS run: people label the comparisons on a page.",
        WITHOUT_GOLD | {"feedback": "human"},
        {"gold": "For the evaluation only: people label, gold measures the policies. It may be left out."},
        (
            "shfcas run {}  # serves the page and prints a sign-in link",
            f"shfcas annotate {RunConfig.output} --annotators ada,ben  # meanwhile: a link for each annotator",
        ),
        ("human",),
        optional={"gold": "<GOLD>"},
    ),
    "judge": Start(
        "SHF-CAS run: a language model labels the comparisons.",
        WITHOUT_GOLD | {"feedback": "judge", "judge": {"model": "<JUDGE>"}},
        {"gold": "For the evaluation only: the judge labels, gold measures the policies. It may be left out."},
        ("export OPENAI_API_KEY=...  # or set judge.base_url to a server of your own", "shfcas run {}"),
        ("judge",),
        optional={"gold": "<GOLD>"},
    ),
    "scores": Start(
        "Selection of comparisons from answers that have log-probabilities and rewards.",
        {},
        {},
        (
            "shfcas score <ANSWERS.parquet> --output conflicts.parquet  # columns prompt_id, logprobs, rewards",
            "shfcas select --config {}",
        ),
        command="select",
        config=select.Config,
        file="select.yaml",
    ),
}

INPUTS, INPUTS_HELP = "start", f"starting point: {', '.join(STARTS)} [gold]"
CHOICES = tuple(STARTS)


@dataclass
class Config(Options):
    """`shfcas init`."""

    start: list[str] = option(list, f"starting point: {', '.join(STARTS)}")
    output: str | None = option(None, "file to write (none: config.yaml, or select.yaml for scores)")
    full: bool = option(False, "write every key, not only the common ones")


def run(config: Config) -> dict[str, Any]:
    """Writes the file; returns what to edit and the next commands."""
    name = " ".join(config.start) or "gold"
    if name not in STARTS:
        near = difflib.get_close_matches(name, STARTS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"start: expected one of {', '.join(STARTS)}, got {name}{hint}")
    start = STARTS[name]
    output = config.output or start.file
    if Path(output).exists():
        raise UserError(f"{output} exists already; name another file with --output")
    write_text(output, start.text(config.full))
    edit = placeholders(start.values)
    return {"output": output, "edit": edit, "next": [step.replace("{}", output) for step in start.steps]}


def text(result: dict[str, Any]) -> str:
    """Formats the next steps."""
    edit = [f"edit: {', '.join(result['edit'])}"] if result["edit"] else []
    return "\n".join([f"wrote: {result['output']}", *edit, *(f"next: {step}" for step in result["next"])])
