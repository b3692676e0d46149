"""Two processes under `accelerate launch`, on the CPU: they learn what one process learns from the same batches."""

import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from shfcas.cli import _processes, main
from shfcas.compare.heads import torch_threads
from shfcas.utils import distributed
from shfcas.utils.errors import UserError
from shfcas.utils.files import content_hash, read_json
from tests.support import tiny

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "accelerate"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
PPO = {
    "reward_model": "tests.support.tiny:letter_reward",
    "reward_shaping": "none",
    "num_rollouts": 3,
    "rollout_batch_size": 8,
    "mini_batch_size": 4,
    "max_completion_length": 8,
    "learning_rate": 1e-2,
    "held_out": 0.25,
    "eval_rollouts": 1,
    "early_stopping_patience": 2,
    "log_completions": "true",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models without dropout, whose random numbers differ between processes; 12 pairs; 8 prompts."""
    folder = tmp_path_factory.mktemp("distributed")
    tiny.write_models(folder)
    path = folder / "reward" / "config.json"
    path.write_text(json.dumps(read_json(path) | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}))
    words = ("good", "great", "happy"), ("bad", "terrible", "cold")
    pairs = [
        {
            "prompt": row["prompt"],
            "chosen": [{"role": "assistant", "content": f"it was {words[0][i % 3]}"}],
            "rejected": [{"role": "assistant", "content": f"it was {words[1][i % 3]}"}],
            "source": "gold",
        }
        for i, row in enumerate(tiny.prompts(12))
    ]
    tiny.write_lines(folder / "pairs.jsonl", pairs)
    tiny.write_lines(folder / "held_out.jsonl", [p | {"prompt": "and the soup?"} for p in plain(pairs[:4])])
    tiny.write_lines(folder / "prompts.jsonl", tiny.prompts(8))
    return folder


def plain(pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [p | {name: p[name][0]["content"] for name in ("chosen", "rejected")} for p in pairs]


def arguments(command: str, **flags: Any) -> list[str]:
    return [command, *(text for name, value in flags.items() for text in (f"--{name}", str(value)))]


def reward_flags(folder: Path, **flags: Any) -> list[str]:
    files = {"preferences": folder / "pairs.jsonl", "eval_preferences": folder / "held_out.jsonl"}
    settings = {"model": folder / "reward", "batch_size": 4, "num_train_epochs": 2, "learning_rate": 1e-3}
    return arguments("train-reward", **files | settings | flags)


def ppo_flags(folder: Path, **flags: Any) -> list[str]:
    files = {"policy": folder / "policy", "prompts": folder / "prompts.jsonl", "gold": folder / "reward"}
    return arguments("ppo", **files | PPO | flags)


def launched(flags: list[str], config: Path = CONFIGS / "cpu-gloo.yaml", *script: str) -> list[str]:
    """The command of two processes, on a port that is free."""
    what = script or ("-m", "shfcas")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    return [*launch, "--main_process_port", "0", *what, *flags]


def launch(*given: Any) -> subprocess.CompletedProcess:
    done = subprocess.run(launched(*given), env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def both(folder: Path) -> Path:
    """What two processes make of both commands, and one process."""
    at = folder / "both"
    two = [reward_flags(folder, output=at / "reward-2"), ppo_flags(folder, output=at / "policy-2")]
    done = launch([json.dumps(two)], CONFIGS / "cpu-gloo.yaml", "-m", "tests.support.commands")
    # One of the two speaks for both.
    assert done.stdout.count("accuracy on training pairs") == done.stdout.count("rollouts: 3") == 1
    with torch_threads(1):  # as each of the two has, so that sums round alike however many cores there are
        assert (
            main(reward_flags(folder, output=at / "reward-1")) == main(ppo_flags(folder, output=at / "policy-1")) == 0
        )
    assert {path.name for path in at.iterdir()} == {"reward-1", "reward-2", "policy-1", "policy-2"}
    return at


@pytest.mark.system
def test_two_processes_train_the_reward_model_of_one(both: Path) -> None:
    one, two = (read_json(both / name / "training.json") for name in ("reward-1", "reward-2"))
    assert len(one["loss"]) == 6 and one["loss"][-1] < one["loss"][0]
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-4)
    curves = [[row["loss"] for row in result["held_out_loss"]] for result in (one, two)]
    assert curves[1] == pytest.approx(curves[0], abs=1e-4)
    assert two["held_out"]["loss"] == pytest.approx(one["held_out"]["loss"], abs=1e-4)


@pytest.mark.system
def test_two_processes_train_the_policy_of_one(both: Path) -> None:
    """The same answers to the same prompts, the same mini-batches and evaluations; so the same history."""
    one, two = (read_json(both / name / "history.json") for name in ("policy-1", "policy-2"))
    assert [row["rollout"] for row in one] == [row["rollout"] for row in two]
    assert one[0]["objective/kl"] == 0 and one[2]["objective/kl"] > 0.1  # it has learned something
    for first, second in zip(one, two, strict=True):
        assert second == pytest.approx(first, rel=1e-3, abs=1e-3)
    files = [sorted((both / name / "completions").iterdir()) for name in ("policy-1", "policy-2")]
    said = [[json.loads(line)["completion"] for path in part for line in path.open()] for part in files]
    assert said[0] == said[1] and len(said[0]) == 3 * 8 and len(set(map(str, said[0]))) > 8


@pytest.mark.system
def test_the_command_starts_its_processes_itself(folder: Path, both: Path, tmp_path: Path) -> None:
    flags = [*reward_flags(folder, output=tmp_path / "reward"), "--processes", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "shfcas", *flags], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    one, two = (read_json(path / "training.json") for path in (both / "reward-1", tmp_path / "reward"))
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["sample", "--processes", "2"],
            "--processes: expected one of the commands sft, train-reward, ppo, got sample",
        ),
        (["ppo", "--processes=0"], "processes: expected a number from 1, or auto, got '0'"),
        (["ppo", "--processes"], "--processes: expected a number, or auto"),
    ],
)
def test_processes_that_cannot_be_started(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags) == 2
    assert message in capsys.readouterr().err


def test_without_gpus_auto_is_one_process() -> None:
    assert _processes.start("ppo", ["--policy", "p", "--processes", "auto"], ("ppo",)) == ["--policy", "p"]


@pytest.mark.system
@pytest.mark.slow
def test_a_killed_process_ends_the_command_and_the_same_command_goes_on(folder: Path, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"num_rollouts": 6, "save_rollouts": 1, "eval_rollouts": 0, "held_out": 0}
    flags |= {"early_stopping_patience": "none"}
    launch(ppo_flags(folder, **flags, output=tmp_path / "whole"))
    command = launched(ppo_flags(folder, **flags, output=tmp_path / "broken"))
    running = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    work = tmp_path / ".broken.work"
    until = time.monotonic() + 100
    while not list(work.glob("checkpoint-*/ppo_state.json")) and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(workers(running.pid)[1], signal.SIGKILL)
    _, said = running.communicate(timeout=100)
    assert running.returncode != 0
    assert "SIGKILL" in said and "rank      : 1" in said
    assert not (tmp_path / "broken").exists() and latest(work)
    launch(ppo_flags(folder, **flags, output=tmp_path / "broken"))
    weights = [content_hash(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "broken")]
    assert weights[0] == weights[1]


def workers(parent: int) -> list[int]:
    """The processes that a process has started, by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            status = (path / "stat").read_text().rpartition(")")[2].split()
            environment = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = [entry.partition(b"=")[2] for entry in environment if entry.startswith(b"RANK=")]
        if int(status[1]) == parent and rank:
            found[int(rank[0])] = int(path.name)
    return [found[rank] for rank in sorted(found)]


def latest(work: Path) -> list[Path]:
    return list(work.glob("checkpoint-*"))


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 4])
def test_a_sharded_reward_model_is_saved_whole(rank: int, folder: Path, tmp_path: Path) -> None:
    """FSDP2 with gloo: accelerate keeps it for GPUs, and a script talks it into the CPU."""
    flags = {"model": folder / "policy", "lora.r": rank, "lora.dropout": 0, "checkpoint_steps": 3}
    assert main(reward_flags(folder, **flags, output=tmp_path / "one")) == 0
    config = tmp_path / "fsdp.yaml"
    text = (CONFIGS / "fsdp.yaml").read_text(encoding="utf-8")
    config.write_text(text.replace("num_processes: 8", "num_processes: 2").replace("bf16", '"no"'))
    script = str(ROOT / "tests" / "support" / "sharded_on_cpu.py")
    launch(reward_flags(folder, **flags, output=tmp_path / "two"), config, script)
    one, two = (read_json(tmp_path / name / "training.json") for name in ("one", "two"))
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-4)
    assert two["train"]["loss"] == pytest.approx(one["train"]["loss"], abs=1e-4)
    assert two["train"]["loss"] < one["loss"][0]
    assert (tmp_path / "two" / "model.safetensors").stat().st_size == (
        tmp_path / "one" / "model.safetensors"
    ).stat().st_size


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_the_configurations(path: Path) -> None:
    parser = launch_command_parser()
    given = parser.parse_args(["--config_file", str(path), "-m", "shfcas"])
    known = set(vars(given))
    args, defaults, _ = _validate_launch_command(Namespace(**vars(given)))
    sharded = {"fsdp": args.use_fsdp, "deepspeed-zero3": args.use_deepspeed}
    assert sharded.get(path.stem, not (args.use_fsdp or args.use_deepspeed))
    assert args.multi_gpu == (path.stem in ("multi-gpu", "cpu-gloo"))
    assert args.num_processes == {"single-gpu": 1, "cpu-gloo": 2}.get(path.stem, 8)
    inner = {**defaults.fsdp_config, **defaults.deepspeed_config}
    assert not set(inner) - known  # a misspelt key would be ignored


def test_configurations_are_those_of_the_page() -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert all(f"`{path.stem}`" in page for path in CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("command", ["run", "score", "rloo"])
def test_other_commands_run_as_one_process(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([command]) == 2
    assert "expected one process, got 2" in capsys.readouterr().err


def test_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    shares = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        shares.append(distributed.share("abcdefgh"))
    assert shares == ["ab", "cde", "fgh"]
    assert distributed.per_process("batch_size", 6) == 2
    with pytest.raises(UserError, match="batch_size: expected a multiple of the number of processes, 3, got 4"):
        distributed.per_process("batch_size", 4)


def test_errors_that_say_no_more_than_that_another_process_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("[pair.cc:547] Connection closed by peer [127.0.0.1]:1234")
    assert not distributed.is_lost_peer(error)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert distributed.is_lost_peer(error) and not distributed.is_lost_peer(RuntimeError("out of memory"))
