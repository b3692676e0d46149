"""`shfcas run`, killed with SIGKILL in one stage after another, ends as an unbroken run does."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import tiny

CONFIG = """
policy: {policy}
reference: {reference}
reward_model: {reward_model}
gold: tests.support.tiny:letter_reward
prompts: {folder}/train.jsonl
eval_prompts: {folder}/held_out.jsonl
preferences: {folder}/preferences.jsonl
demonstrations: {folder}/demonstrations.jsonl
policy_score: logprob_ratio
sft: {{num_train_epochs: 2, batch_size: 4, checkpoint_steps: 1}}
proxy: {{num_train_epochs: 2, batch_size: 4, checkpoint_steps: 1}}
sampling: {{num_completions: 4, temperature: 1.0, max_new_tokens: 8, shard_size: 2}}
selection: {{budget: 8}}
reward: {{num_train_epochs: 2, batch_size: 4, checkpoint_steps: 1}}
rl: {{ppo: {{num_rollouts: 4, rollout_batch_size: 8, mini_batch_size: 4, num_ppo_epochs: 1, learning_rate: 1e-2,
            max_prompt_length: 64, max_completion_length: 8, save_rollouts: 1}}}}
evaluation: {{group_by: topic, sampling: {{num_completions: 4, temperature: 1.0, max_new_tokens: 8, shard_size: 2}}}}
"""
# A kill lands as soon as this path is seen; the ones inside .work show that a stage has made progress.
KILL_AT = [
    "round-0/.policy.work/checkpoint-*",
    "round-0/.reward_model.work/checkpoint-*",
    "round-0/.evaluation_candidates.parquet.work/shard-*",
    "round-1/.candidates.parquet.work/shard-*",
    "round-1/conflicts.parquet",
    "round-1/queue.jsonl",
    "round-1/.reward_model.work/checkpoint-*",
    "round-1/.policy.work/checkpoint-2/ppo_state.json",
    "round-1/.policy.work/checkpoint-6/ppo_state.json",
    "round-1/.policy.partial",
    "round-1/.evaluation_candidates.parquet.work/shard-*",
    "round-1/metrics.json",
]
RESULTS = ["round-0/metrics.json", "round-1/queue.jsonl", "round-1/preferences.jsonl", "round-1/metrics.json"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    names = tiny.write_models(folder)
    words = {"good": "good great happy", "bad": "bad terrible cold"}
    pairs = [
        {
            "prompt": row["prompt"],
            "chosen": [{"role": "assistant", "content": f"it was {words['good'].split()[i % 3]}"}],
            "rejected": [{"role": "assistant", "content": f"it was {words['bad'].split()[i // 3 % 3]}"}],
        }
        for i, row in enumerate(tiny.prompts(12, prefix="seed"))
    ]
    demonstrations = [{"prompt": p["prompt"], "completion": p["chosen"][0]["content"]} for p in pairs]
    files = {
        "train": tiny.prompts(8, prefix="train"),
        "held_out": tiny.held_out_prompts(6),
        "preferences": pairs,
        "demonstrations": demonstrations,
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(CONFIG.format(folder=folder, **names))
    return folder / "config.yaml"


def start(config: Path, output: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "shfcas", "run", str(config), "--output", str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )


def finish(process: subprocess.Popen) -> None:
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr


def kill_at(process: subprocess.Popen, output: Path, pattern: str) -> bool:
    """Kills the process as soon as the path is there; False if the process ended before."""
    while process.poll() is None:
        if any(output.glob(pattern)):
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return True
        time.sleep(0.001)
    process.communicate()
    return False


def test_killed_and_resumed_equals_unbroken(config: Path, tmp_path: Path) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    finish(start(config, unbroken))
    hit = [pattern for pattern in KILL_AT if kill_at(start(config, broken), broken, pattern)]
    assert hit == KILL_AT
    finish(start(config, broken))
    for name in RESULTS:
        assert (broken / name).read_text() == (unbroken / name).read_text(), name
    history = [(run / "round-1/policy/history.json").read_text() for run in (broken, unbroken)]
    assert len(json.loads(history[0])) == 4
    assert history[0] == history[1]
    stages = json.loads((broken / "manifest.json").read_text())["stages"]
    assert all(stage["state"] == "done" for stage in stages.values())
    assert not list(broken.rglob(".*.partial")) and not list(broken.rglob(".*.work"))


def test_a_changed_configuration_is_refused(config: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    kill_at(start(config, output), output, "round-0/preferences.jsonl")
    changed = config.with_name("changed.yaml")
    changed.write_text(config.read_text().replace("budget: 8", "budget: 9"))
    process = start(changed, output)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "made with another configuration" in stderr and "selection.budget: 8 -> 9" in stderr
    assert "Traceback" not in stderr
