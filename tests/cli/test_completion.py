"""Completion scripts: what a real shell completes."""

import contextlib
import io
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shfcas.cli import COMMANDS, main
from shfcas.cli.completion import SHELLS

# What bash does at Tab: it calls the function of the command, which sets COMPREPLY.
TAB = r"""
source "$1"; shift
[[ "$(complete -p shfcas)" =~ -F\ ([^ ]+) ]]
COMP_WORDS=("$@") COMP_CWORD=$(( $# - 1 ))
"${BASH_REMATCH[1]}" shfcas "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("completion")
    for shell in SHELLS:
        with contextlib.redirect_stdout(io.StringIO()) as output:
            assert main(["completion", shell]) == 0
        (folder / shell).write_text(output.getvalue(), encoding="utf-8")
    return {shell: folder / shell for shell in SHELLS}


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("", {*COMMANDS}),
        ("sa", {"sample"}),
        ("init ", {"gold", "annotators", "judge", "scores"}),
        ("completion ", {*SHELLS}),
        ("export v", {"verl"}),
        ("run --selection.b", {"--selection.batch", "--selection.budget"}),
        ("run --rl.ppo.kl_c", {"--rl.ppo.kl_coef"}),
        ("run --rl.ppo.kl-c", set()),
        ("run --feedback ", {"gold", "human", "judge", "none"}),
        ("run --help rl.ppo", {"rl.ppo", "rl.ppo.lora"}),
        ("run con", {"config.yaml"}),
        ("run config.yaml --po", {"--policy", "--policy_score", "--policy_score_model"}),
        ("run --config con", {"config.yaml"}),
        ("score --reward_model con", {"config.yaml"}),
    ],
)
def test_bash_completes(line: str, completed: set[str], scripts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    command = ["bash", "--norc", "-c", TAB, "bash", str(scripts["bash"]), "shfcas", *line.split(" ")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert {*done.stdout.split()} == completed
    assert not done.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_scripts_are_valid(shell: str, scripts: dict[str, Path]) -> None:
    assert "shfcas" in scripts[shell].read_text(encoding="utf-8")
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n", str(scripts[shell])], check=True)


@pytest.mark.parametrize("arguments", [[], ["tcsh"], ["bash", "zsh"]])
def test_a_shell_has_to_be_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", *arguments]) == 2
    assert "shell: expected one of bash, zsh, fish, got " in capsys.readouterr().err


def test_without_the_extra_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 1
    assert "shtab is not installed; install it with: pip install 'shfcas[completion]'" in capsys.readouterr().err
