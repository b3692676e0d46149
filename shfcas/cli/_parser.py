"""Parser of a command, and its help pages: a short one, one per section, one per key, and one with all keys."""

import argparse
import difflib
import re
import shutil
import textwrap
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, NoReturn

from shfcas.utils.errors import UsageError
from shfcas.utils.flags import Key, add_flags, details, keys_of

FEW = 16  # a command with at most this many keys shows them all
WIDTH, NAMES = 100, 30  # columns of a page, and of the names at its left
TOPICS = ("all", "sections")

Rows = list[tuple[str, str]]


class CommandParser(argparse.ArgumentParser):
    """Parser of one command, with its keys in groups: those of the top level, then one group per section.

    Args:
        name: name of the command.
        module: module of the command.
        several: whether it may run as several processes.
    """

    def __init__(self, name: str, module: Any, several: bool = False) -> None:
        positional = getattr(module, "POSITIONAL", "")
        inputs = getattr(module, "INPUTS", "")
        words = " [FILE]" if positional else f" [{inputs.upper()} ...]" if inputs else ""
        super().__init__(
            prog=f"shfcas {name}",
            usage=f"shfcas {name}{words} [--config FILE] [--key VALUE ...]",
            description=module.__doc__,
            add_help=False,
        )
        self.config = module.Config()
        if positional:
            self._add_words(positional, "?", "FILE", module.POSITIONAL_HELP)
        if inputs:
            self._add_words(inputs, "*", inputs.upper(), module.INPUTS_HELP)
        self.general = self.add_argument_group("Every command")
        self.keys = self.add_argument_group("Keys")
        self._add_general(several)
        add_flags(self, module.Config, skip=(positional, inputs), group=self.keys)

    def _add_words(self, name: str, nargs: str, metavar: str, text: str) -> None:
        self.add_argument(name, nargs=nargs, metavar=metavar, default=argparse.SUPPRESS, help=text)

    def _add_general(self, several: bool) -> None:
        add = self.general.add_argument
        add("--config", metavar="FILE", help="a YAML file with these keys; flags win over it")
        add("--json", action="store_true", help="print the result as JSON")
        add("--verbose", action="store_true", help="log more, to stderr")
        if several:
            add("--processes", metavar="N", help="processes to start, each with its GPU; auto: one per visible GPU")
        text = "print this page; more: --help all, --help sections, --help SECTION, --help KEY"
        add("--help", "-h", action=_Help, nargs="?", metavar="TOPIC", help=text)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parses the arguments; an unknown flag is an error that names the nearest known one."""
        parsed, unknown = self.parse_known_intermixed_args(arguments)
        if unknown:
            flag = unknown[0].partition("=")[0]
            near = difflib.get_close_matches(flag, self._option_string_actions, n=1)
            self.error(f"unknown argument {flag}{f', did you mean {near[0]}?' if near else ''}")
        return parsed

    def error(self, message: str) -> NoReturn:
        """Reports wrong use as one line, like every other error."""
        raise UsageError(f"{message}; see {self.prog} --help")

    @property
    def about(self) -> str:
        """Description, with its paragraphs filled and its lists as they are."""
        paragraphs = (self.description or "").strip().split("\n\n")
        return "\n\n".join(text if text.startswith("- ") else _filled(text, "") for text in paragraphs)

    @property
    def inputs(self) -> Rows:
        """Names and help texts of the positional arguments."""
        return [(str(action.metavar), _text(action)) for action in self._positionals._group_actions]

    @property
    def sections(self) -> dict[str, Any]:
        """Groups of the sections, by dotted name."""
        first = self._action_groups.index(self.keys) + 1
        return {str(group.title): group for group in self._action_groups[first:]}


class _Help(argparse.Action):
    """Prints a page and ends."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        print(page(parser, values))
        parser.exit()


def page(parser: CommandParser, topic: str | None = None) -> str:
    """Returns a help page.

    Args:
        parser: parser of the command.
        topic: nothing for the short page, `all`, `sections`, or the name of a section or of a key.

    Raises:
        UsageError: there is no such topic.
    """
    sections = parser.sections
    rows = [row for group in (parser.keys, *sections.values()) for row in _rows(group)]
    keys = {name.lstrip("-"): (name, text) for name, text in rows}
    if topic == "all" or (topic is None and len(keys) <= FEW):
        return _joined(_head(parser), *_all(parser), _block("Every command", _rows(parser.general)))
    if topic is None:
        return _joined(_head(parser), *_common(parser))
    if topic == "sections":
        return _table(_section_rows(parser, [*sections])) if sections else "no sections; --help shows every key"
    name = topic.replace("-", "_")
    if name in sections:
        inside = [other for other in sections if other.startswith(f"{name}.")]
        more = _block(f"Sections of {name}", _section_rows(parser, inside))
        return _joined(_section(parser, name), more)
    if name in keys:
        return _table([keys[name]])
    near = difflib.get_close_matches(name, [*TOPICS, *sections, *keys], n=1)
    hint = f"did you mean {near[0]}?" if near else f"{parser.prog} --help sections lists the sections"
    raise UsageError(f"--help: expected all, sections, a section or a key, got {topic!r}; {hint}")


def flat_keys(config: Any, common: bool = False, prefix: str = "") -> dict[str, Key]:
    """Returns the keys of a configuration and of its sections by dotted name.

    Args:
        config: instance of the configuration.
        common: only the common keys, and those of a section only where the section is common too.
        prefix: name of the section, with a dot at its end.
    """
    found: dict[str, Key] = {}
    for key in keys_of(config):
        name = f"{prefix}{key.name}"
        if common and not key.common:
            continue
        found |= flat_keys(key.inside, common, f"{name}.") if key.section else {name: key}
    return found


def _head(parser: CommandParser) -> str:
    return _joined(f"usage: {parser.usage}", parser.about, _table(parser.inputs))


def _all(parser: CommandParser) -> list[str]:
    """Every key, section by section."""
    return [_block("Keys", _rows(parser.keys)), *(_section(parser, name) for name in parser.sections)]


def _common(parser: CommandParser) -> list[str]:
    """The common keys with a line each, the others of the top level by name, and the sections with a line each."""
    top = [name.lstrip("-") for name, _ in _rows(parser.keys)]
    common = {name: key for name, key in flat_keys(parser.config, common=True).items() if name in top or "." in name}
    others = [f"--{name}" for name in top if name not in common]
    outer = [name for name in parser.sections if "." not in name]
    left = max(len(name) for name in common) + 2
    return [
        _block("Common keys, explained by --help KEY", [(f"--{n}", _brief(k, left)) for n, k in common.items()]),
        f"Other keys, explained by --help all:\n{_filled(', '.join(others))}" if others else "",
        _block("Sections, shown by --help SECTION", _section_rows(parser, outer)),
        _filled("Every command: " + ", ".join(name for name, _ in _rows(parser.general)), ""),
    ]


def _brief(key: Key, left: int) -> str:
    """The help of a key on one line, beside a name of `left` columns; choices that do not fit are left out."""
    space, end = _width() - left - 4, details(key.field, key.value)
    if len(_cuts(key.help)[-1]) + len(end) > space:
        end = details(key.field, key.value, choices=False)
    return _cut(key.help, space - len(end)) + end


def _cuts(text: str) -> tuple[str, str, str]:
    """A text, the same without its remarks, and without its list."""
    return text, re.split(r"; | \(", text)[0], re.split(r"; | \(|: ", text)[0]


def _cut(text: str, space: int) -> str:
    """The longest cut of at most `space` columns, or the text with an ellipsis."""
    fitting = [cut for cut in _cuts(text) if len(cut) <= space]
    return fitting[0] if fitting else textwrap.shorten(text, max(space, 12), placeholder="...")


def _filled(text: str, indent: str = "  ") -> str:
    return textwrap.fill(text, _width(), initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _section(parser: CommandParser, name: str) -> str:
    title = textwrap.fill(f"Section {name}: {_about(parser, name)}{_off(parser, name)}", _width())
    return f"{title}\n{_table(_rows(parser.sections[name]))}"


def _section_rows(parser: CommandParser, names: list[str]) -> Rows:
    """Sections with one line each."""
    space = _width() - 4 - max(map(len, names), default=0)
    ends = {name: _off(parser, name) for name in names}
    return [(name, _cut(_about(parser, name), space - len(end)) + end) for name, end in ends.items()]


def _about(parser: CommandParser, section: str) -> str:
    return (parser.sections[section].description or "").replace("%%", "%")


def _off(parser: CommandParser, section: str) -> str:
    """A mark at a section that is off by default."""
    above, value = None, parser.config
    for part in section.split("."):
        above, value = value, getattr(value, part, None)
    return " [off]" if value is None and above is not None else ""


def _rows(group: Any) -> Rows:
    return [(action.option_strings[0], _text(action)) for action in group._group_actions]


def _text(action: argparse.Action) -> str:
    return (action.help or "").replace("%%", "%")


def _width() -> int:
    return max(50, min(WIDTH, shutil.get_terminal_size().columns))


def _block(title: str, rows: Rows) -> str:
    return f"{title}:\n{_table(rows)}" if rows else ""


def _table(rows: Rows) -> str:
    """Names at the left and texts at the right; a name that is too long has a line of its own."""
    left = min(NAMES, max((len(name) for name, _ in rows), default=0))
    lines = []
    for name, text in rows:
        wrapped = textwrap.wrap(text, _width() - left - 4, break_on_hyphens=False)
        if len(name) > left:
            lines.append(f"  {name}")
            name = ""
        lines += [f"  {word:<{left}}  {part}".rstrip() for word, part in zip_longest([name], wrapped, fillvalue="")]
    return "\n".join(lines)


def _joined(*blocks: str) -> str:
    return "\n\n".join(block for block in blocks if block)
