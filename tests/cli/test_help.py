"""Help pages: short, complete, in topics, and without loading anything large."""

import subprocess
import sys

import pytest

from shfcas.cli import COMMANDS, GROUPS, command_module, main
from shfcas.cli._parser import FEW, CommandParser, flat_keys, page
from shfcas.utils.flags import from_flags

LINES, COLUMNS = 48, 100  # a screen and a half


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))


def parser(command: str) -> CommandParser:
    return CommandParser(command, command_module(command))


def names(command: str) -> set[str]:
    """All keys of a command that are flags."""
    module = command_module(command)
    positional = {getattr(module, "POSITIONAL", ""), getattr(module, "INPUTS", "")}
    return {*flat_keys(module.Config())} - positional


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 0
    out, err = capsys.readouterr()
    assert not err
    return out


@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_fits_a_screen_and_a_half(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, command, "--help").splitlines()
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= COLUMNS


@pytest.mark.parametrize("command", [name for name in COMMANDS if len(names(name)) > FEW])
def test_a_command_with_many_keys_shows_the_common_ones_and_names_all_of_the_top_level(command: str) -> None:
    text = page(parser(command))
    common = set(flat_keys(command_module(command).Config(), common=True)) & names(command)
    assert 3 <= len(common) <= 15
    assert all(f"\n  --{name}" in text for name in common)
    assert all(f"--{name}" in text for name in names(command) if "." not in name)
    assert all(f"\n  {section} " in text for section in parser(command).sections if "." not in section)


@pytest.mark.parametrize("command", COMMANDS)
def test_all_shows_every_key_once_and_in_one_spelling(command: str) -> None:
    shown = [line.split()[0] for line in page(parser(command), "all").splitlines() if line.startswith("  --")]
    assert sorted(shown) == sorted(
        [f"--{name}" for name in names(command)] + ["--config", "--json", "--verbose", "--help"]
    )


def test_topics_are_sections_and_keys(capsys: pytest.CaptureFixture[str]) -> None:
    sections = printed(capsys, "run", "--help", "sections")
    assert sections.count("\n") == len(parser("run").sections)
    assert all(f"  {name} " in sections for name in ("rl", "rl.ppo", "rl.ppo.lora", "bootstrap.sampling.server"))

    ppo = printed(capsys, "run", "--help", "rl.ppo")
    assert ppo.startswith("Section rl.ppo: ") and "--rl.ppo.kl_coef" in ppo
    assert "--rl.rloo" not in ppo and "--rl.ppo.lora.r" not in ppo and "  rl.ppo.lora " in ppo

    assert "[off]" in printed(capsys, "run", "--help", "sft")
    assert printed(capsys, "run", "--help", "rl.ppo.kl-coef").startswith("  --rl.ppo.kl_coef  weight")
    assert printed(capsys, "run", "-h", "seed").count("\n") == 1
    assert "no sections" in printed(capsys, "env", "--help", "sections")


def test_an_unknown_topic_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--help", "rl.pop"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "got 'rl.pop'; did you mean rl.ppo?" in error


def test_both_spellings_of_a_flag_are_understood() -> None:
    for flag in ("--rl.ppo.kl_coef", "--rl.ppo.kl-coef"):
        run = command_module("run")
        assert from_flags(run.Config, parser("run").parse([flag, "0.25"])).rl.ppo.kl_coef == 0.25


def test_a_long_text_is_cut_where_a_remark_begins_and_its_choices_stay() -> None:
    text = page(parser("run"))
    assert " prompts to sample, select and train on (required)\n" in text
    assert "(gold, human, judge, none) [gold]\n" in text
    assert "acquisition strategy [shf_cas]\n" in text  # too little space for all of its choices


def test_a_list_is_shown_as_a_flag_spells_it() -> None:
    assert "[random,shf_cas,mean_pacs]" in page(parser("compare"), "strategies")


def test_a_narrow_terminal_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, page(parser("run")).splitlines())) <= 60


def test_the_overview_groups_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    overview = printed(capsys, "--help")
    assert [line.rstrip(":") for line in overview.splitlines() if line.endswith(":")] == [*GROUPS]
    assert overview.count("\n") <= LINES


def test_the_package_is_a_command() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-m", "shfcas", *arguments], capture_output=True, text=True)

    version = run("--version")
    assert (version.returncode, version.stderr) == (0, "") and version.stdout.startswith("shfcas 0.")
    wrong = run("rnu")
    assert (wrong.returncode, wrong.stdout) == (2, "") and "did you mean run?" in wrong.stderr
