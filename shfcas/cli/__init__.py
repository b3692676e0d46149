"""The command line: `shfcas COMMAND [--config x.yaml] [--field value]`.

Each command is one module with a configuration dataclass `Config` and a function `run(config)`, which
returns what is printed on stdout. Logs go to stderr. Exit code 1 is a failure, 2 is wrong use.
"""

import argparse
import dataclasses
import difflib
import importlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

COMMANDS = {
    "demo": "the whole loop on a small language model, in minutes",
    "run": "all rounds of SHF-CAS from one configuration file, resumable",
    "compare": "strategies at the same numbers of comparisons, over seeds, with tests",
    "preflight": "what may be wrong with a reward model, found before it scores",
    "sample": "answers from a policy, with log-probabilities",
    "score": "rewards and conflict scores (PACS, Kendall-tau) for answers",
    "diagnose": "whether conflict finds errors on your data, from a small judged sample",
    "select": "the comparisons that are worth a label",
    "annotate": "the page where people answer the selected comparisons",
    "feedback": "judge them with a gold reward or a language model; export and import answers",
    "sft": "fine-tune a policy on good answers",
    "train-reward": "train or refine a reward model on preferences",
    "ppo": "fine-tune a policy against a reward with PPO",
    "rloo": "the same with RLOO: the other answers to a prompt as the baseline",
    "grpo": "the same with GRPO: advantages within a group of answers",
    "rso": "fine-tune a policy on pairs of its own answers, without sampling",
    "export": "prompts, policy and reward model for verl or OpenRLHF",
    "evaluate": "gold reward, win rate, KL and conflict of a policy",
    "report": "one HTML page about a finished run",
    "status": "stages of a run: state, time, and why one was made again",
    "verify": "check every output of a run against its recorded hash",
    "env": "versions and build facts, for bug reports",
}

OUTPUTS = ("output", "out", "histogram")

# What several processes, as `accelerate launch` starts them, do together; all else would be done by each of them.
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
            "matplotlib",
            "jinja2",
            "scipy",
            "sklearn",
        ),
        "rlhf",
    ),
    **dict.fromkeys(("fastapi", "uvicorn", "markdown_it", "krippendorff"), "web"),
    "openai": "judge",
    "ray": "ray",
    "vllm": "vllm",
    "vaderSentiment": "demo",
    "gguf": "demo",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from shfcas import __version__

        print(f"shfcas {__version__}")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        print(f"shfcas: unknown command {name!r}{f'; did you mean {near[0]}?' if near else ''}", file=sys.stderr)
        return 2
    return _run(name, arguments[1:])


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: shfcas COMMAND [--config FILE.yaml] [--field VALUE]",
            "",
            *lines,
            "",
            "shfcas COMMAND --help",
        ]
    )


def _run(name: str, arguments: list[str]) -> int:
    from shfcas.utils import distributed
    from shfcas.utils.errors import MissingExtra, UsageError, UserError

    _quiet()
    try:
        if distributed.count() > 1 and name not in DISTRIBUTED:
            raise UsageError(
                f"runs as one process, and {distributed.count()} were launched; start it without accelerate launch "
                f"({', '.join(DISTRIBUTED)} run as several)"
            )
        module = importlib.import_module(f"shfcas.cli.{name.replace('-', '_')}")
        parsed = _parse(_parser(name, module), arguments)
        _log_to_stderr(parsed.verbose)
        from shfcas.utils.config import from_flags

        config_file = getattr(parsed, getattr(module, "POSITIONAL", ""), None) or parsed.config
        config = from_flags(module.Config, parsed, config_file)
        _require(config)
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
        if not distributed.lost(error):
            raise
        remedy = "see what it says; the same command continues from the last checkpoint"
        return _fail(name, UserError(f"another process has ended, so this one does too: {remedy}"), 1)
    except KeyboardInterrupt:
        print(f"shfcas {name}: stopped; the same command continues where it was", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    """Wrong use is one line, as every other error."""

    def error(self, message: str) -> NoReturn:
        from shfcas.utils.errors import UsageError

        raise UsageError(f"{message}; see {self.prog} --help")


def _parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    parsed, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        flag = unknown[0].partition("=")[0]
        near = difflib.get_close_matches(flag, parser._option_string_actions, n=1)
        parser.error(f"unknown argument {flag}{f', did you mean {near[0]}?' if near else ''}")
    return parsed


def _require(config: Any) -> None:
    """What has an empty text as its default has to be given, and outputs have to be on this machine."""
    from shfcas.utils.errors import UsageError
    from shfcas.utils.files import local

    missing = [f.name for f in dataclasses.fields(config) if f.default == "" and not getattr(config, f.name)]
    if missing:
        raise UsageError(f"missing: {', '.join(missing)}")
    for name in OUTPUTS:
        local(getattr(config, name, None) or "")  # now, and not when all is done


def _parser(name: str, module: Any) -> argparse.ArgumentParser:
    from shfcas.utils.config import add_flags

    inputs = getattr(module, "INPUTS", "")
    positional = " [FILE]" if hasattr(module, "POSITIONAL") else f" [{inputs.upper()} ...]" if inputs else ""
    parser = _Parser(
        prog=f"shfcas {name}",
        usage=f"shfcas {name}{positional} [--config FILE] [--field VALUE ...]",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with the values below; flags win over it")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--verbose", action="store_true", help="log more, to stderr")
    if hasattr(module, "POSITIONAL"):
        parser.add_argument(
            module.POSITIONAL, nargs="?", metavar="FILE", default=argparse.SUPPRESS, help=module.POSITIONAL_HELP
        )
    if inputs:
        parser.add_argument(
            inputs, nargs="*", default=argparse.SUPPRESS, metavar=inputs.upper(), help=module.INPUTS_HELP
        )
    add_flags(parser, module.Config, skip=(getattr(module, "POSITIONAL", ""), inputs))
    return parser


def _fail(name: str, error: Exception, code: int) -> int:
    from shfcas.utils import distributed

    who = "" if distributed.is_main() else f" (process {distributed.index()})"
    print(f"shfcas {name}{who}: {error}", file=sys.stderr)
    return code


def _print(result: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result, indent=2, default=str))
    elif isinstance(result, dict):
        for key, value in result.items():
            if isinstance(value, str | int | float | bool) or value is None:
                print(f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}")
            elif isinstance(value, dict) and "mean" in value:
                print(f"{key}: {value['mean']:.4g} [{value['low']:.4g}, {value['high']:.4g}]")
    elif result is not None:
        print(result)


def _quiet() -> None:
    """No telemetry, no bars of other libraries outside a terminal, no warnings about their own future."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)


def _log_to_stderr(verbose: bool) -> None:
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s", force=True)
    from shfcas.utils import distributed

    level = logging.DEBUG if verbose else logging.INFO
    logging.getLogger("shfcas").setLevel(level if distributed.is_main() else logging.ERROR)
