"""The command line: `shfcas COMMAND [--config x.yaml] [--key value]`.

Each command is one module with a configuration dataclass `Config` and a function `run(config)`. What `run` returns is
printed on stdout; logs go to stderr. Exit code 1 is a failure, 2 is wrong use, 128 and a signal's number a stop by it.
"""

import dataclasses
import difflib
import importlib
import logging
import os
import signal
import stat
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from shfcas import __version__
from shfcas.cli import _processes
from shfcas.cli._outputs import check_outputs
from shfcas.cli._parser import CommandParser
from shfcas.cli._stop import exit_code, stoppable
from shfcas.cli._template import placeholders
from shfcas.utils import distributed
from shfcas.utils.config import to_dict
from shfcas.utils.errors import MissingExtra, UsageError, UserError
from shfcas.utils.files import is_disk_full, to_json
from shfcas.utils.flags import from_flags
from shfcas.utils.text import escaped, visible

logger = logging.getLogger(__name__)

GROUPS = {
    "Start": {
        "init": "write a commented configuration file to edit",
        "demo": "run the whole loop on a small language model, in minutes",
        "run": "run all rounds of SHF-CAS from one configuration file; resumable",
        "compare": "compare strategies at equal numbers of labels, over seeds, with tests",
    },
    "Steps": {
        "preflight": "check a reward model before it scores anything",
        "sample": "sample answers from a policy, with log-probabilities",
        "score": "add rewards and conflict scores (PACS, Kendall-tau) to answers",
        "diagnose": "test on a small judged sample whether conflict finds errors in your data",
        "select": "select the comparisons that are worth a label",
    },
    "Feedback": {
        "annotate": "serve the page where people label the selected comparisons",
        "feedback": "label them with a gold reward or a language model; export and import labels",
    },
    "Training": {
        "sft": "fine-tune a policy on good answers",
        "train-reward": "train or refine a reward model on preferences",
        "ppo": "fine-tune a policy against a reward with PPO",
        "rloo": "the same with RLOO: the other answers to a prompt are the baseline",
        "grpo": "the same with GRPO: advantages within a group of answers",
        "rso": "fine-tune a policy on pairs of its own answers, without sampling",
        "dpo": "fine-tune a policy on preferences, without a reward model",
        "merge": "write a policy that is an adapter as a plain model",
        "export": "write prompts, policy and reward for verl, OpenRLHF or slime",
        "serve-reward": "serve rewards over HTTP to verl, OpenRLHF, slime, TRL and others",
    },
    "Results": {
        "evaluate": "measure gold reward, win rate, KL and conflict of a policy",
        "report": "write one HTML page about a finished run",
        "monitor": "watch conflict during training, with alarms at a false-alarm rate",
        "status": "show the stages of a run, why one was made again, and its labels",
        "verify": "check every output of a run against its recorded hash",
    },
    "Tools": {
        "schema": "print a JSON Schema of the configuration, for editors",
        "completion": "print a completion script for bash, zsh or fish",
        "env": "print versions and build facts, for bug reports",
    },
}
COMMANDS = {name: text for group in GROUPS.values() for name, text in group.items()}

# Commands that several processes run together, started by `--processes` or `accelerate launch`; each process would
# repeat any other command.
DISTRIBUTED = ("sft", "train-reward", "ppo")

EXTRAS = {
    **dict.fromkeys(
        (
            "transformers",
            "trl",
            "peft",
            "accelerate",
            "datasets",
            "pyarrow",
            "yaml",
            "tqdm",
            "httpx2",
            "matplotlib",
            "jinja2",
            "scipy",
            "sklearn",
        ),
        "rlhf",
    ),
    **dict.fromkeys(("fastapi", "uvicorn", "markdown_it", "krippendorff"), "web"),
    "ray": "ray",
    "vllm": "vllm",
    "vaderSentiment": "demo",
    "gguf": "demo",
    "shtab": "completion",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments and arguments[0] in COMMANDS else ""
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()  # errors come now, not at the end of the process
        return code
    except BrokenPipeError:  # the reader has seen enough, as head does
        if not _is_pipe(sys.stdout):
            raise
        _discard_stdout()
        return 128 + signal.SIGPIPE
    except Exception as error:
        if not is_disk_full(error):
            raise
        _discard_stdout()
        return _fail(name, UserError("no space left on the disk for the output; free some space and run it again"), 1)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"shfcas {__version__}")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        print(f"shfcas: unknown command {name!r}{f'; did you mean {near[0]}?' if near else ''}", file=sys.stderr)
        return 2
    try:
        with stoppable():
            return _run(name, arguments[1:])
    except KeyboardInterrupt as stop:
        print(f"shfcas {name}: stopped; the same command resumes", file=sys.stderr)
        return exit_code(stop)


def _is_pipe(stream: Any) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):  # a stream of a test has no file
        return False


def _discard_stdout() -> None:
    """Sends what stdout could not take nowhere, or the interpreter would try again at its end."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def command_module(name: str) -> Any:
    """Imports the module of a command."""
    return importlib.import_module(f"shfcas.cli.{name.replace('-', '_')}")


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = ["usage: shfcas COMMAND [--config FILE.yaml] [--key VALUE ...]"]
    for title, group in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:<{width}}  {text}" for name, text in group.items())]
    return "\n".join([*lines, "", "shfcas COMMAND --help explains a command."])


def _run(name: str, arguments: list[str]) -> int:
    _quiet()
    try:
        if distributed.count() > 1 and name not in DISTRIBUTED:
            raise UsageError(
                f"expected one process, got {distributed.count()}; start it without accelerate launch "
                f"(only {', '.join(DISTRIBUTED)} run as several)"
            )
        arguments = _processes.start(name, arguments, DISTRIBUTED)
        module = command_module(name)
        parsed = CommandParser(name, module, several=name in DISTRIBUTED).parse(arguments)
        _log_to_stderr(parsed.verbose)
        config_file = getattr(parsed, getattr(module, "POSITIONAL", ""), None) or parsed.config
        config = from_flags(module.Config, parsed, config_file)
        _require(config)
        check_outputs(name, config)
        result = module.run(config)
        if not distributed.is_main():
            return 0
        _print(result if parsed.json else getattr(module, "text", lambda r: r)(result), parsed.json)
        return getattr(module, "exit_code", lambda r: 0)(result)
    except SystemExit as stop:  # argparse, after --help
        return int(stop.code or 0)
    except UsageError as error:
        return _fail(name, error, 2)
    except UserError as error:
        return _fail(name, error, 1)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        return _fail(name, MissingExtra(package, EXTRAS[package]), 1)
    except RuntimeError as error:
        if not distributed.is_lost_peer(error):
            raise
        remedy = "see its message; the same command continues from the last checkpoint"
        return _fail(name, UserError(f"another process has ended, so this one ends too; {remedy}"), 1)


def _require(config: Any) -> None:
    """Checks that required keys are given, and that no placeholder is left."""
    missing = [f.name for f in dataclasses.fields(config) if f.default == "" and not getattr(config, f.name)]
    if missing:
        raise UsageError(f"missing: {', '.join(missing)}")
    left = placeholders(to_dict(config))
    if left:
        raise UsageError(f"{', '.join(left)}: expected values of your own, got placeholders; edit the configuration")


def _fail(name: str, error: Exception, code: int) -> int:
    logger.debug("%s", "".join(traceback.format_exception(error)).rstrip())  # with --verbose
    who = "" if distributed.is_main() else f" (process {distributed.index()})"
    print(visible(f"{f'shfcas {name}'.strip()}{who}: {error}"), file=sys.stderr)
    return code


def _print(result: Any, as_json: bool) -> None:
    if as_json:
        print(escaped(to_json(result, indent=2, default=str)))
    elif isinstance(result, dict):
        for key, value in result.items():
            if isinstance(value, str | int | float | bool) or value is None:
                print(f"{key}: {value:z.4g}" if isinstance(value, float) else visible(f"{key}: {value}"))
            elif isinstance(value, dict) and "mean" in value:
                print(f"{key}: {value['mean']:z.4g} [{value['low']:z.4g}, {value['high']:z.4g}]")
    elif result is not None:
        print(visible(str(result)))


class _Visible(logging.Formatter):
    """Writes out characters that would act on the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def _quiet() -> None:
    """Turns off telemetry, other libraries' progress bars outside a terminal, and their deprecation warnings."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)


def _log_to_stderr(verbose: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Visible("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    level = logging.DEBUG if verbose else logging.INFO
    logging.getLogger("shfcas").setLevel(level if distributed.is_main() else logging.ERROR)
