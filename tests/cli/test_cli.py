"""The command line: help, one clear line for every mistake, and each command on its own in a chain."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shfcas.cli import COMMANDS, main
from shfcas.data.candidates import read_candidates
from shfcas.data.preferences import read_preferences
from shfcas.models.loading import load_policy
from shfcas.rewards.best_of_n import kl_bound
from shfcas.rewards.scorers import load_scorer
from tests.support import tiny

ROOT = Path(__file__).parents[2]
SHORT = ["--sampling.num_completions", "4", "--sampling.max_new_tokens", "6", "--sampling.temperature", "1"]
GOLD = "tests.support.tiny:letter_reward"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("files")
    answers = [("a good day", "bad"), ("a great happy morning", "it was cold"), ("the bread was fine", "terrible")]
    rows = tiny.prompts(9)
    return {
        "prompts": tiny.write_lines(folder / "prompts.jsonl", tiny.prompts(6)),
        "endless": tiny.write_lines(folder / "endless.jsonl", [{"prompt_id": "endless", "prompt": "the soup " * 200}]),
        "held_out": tiny.write_lines(folder / "held_out.jsonl", tiny.prompts(4, prefix="h")),
        "demonstrations": tiny.write_lines(
            folder / "demonstrations.jsonl", [{"prompt": r["prompt"], "completion": "a good day"} for r in rows]
        ),
        "original": tiny.write_lines(
            folder / "original.jsonl",
            [
                {
                    "prompt": r["prompt"],
                    "chosen": [{"role": "assistant", "content": answers[i % 3][0]}],
                    "rejected": [{"role": "assistant", "content": answers[i % 3][1]}],
                }
                for i, r in enumerate(rows)
            ],
        ),
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture) -> None:
    assert main([command, "--help"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"usage: shfcas {command}") and not captured.err
    assert "--config" in captured.out and "--json" in captured.out


def test_without_a_command_there_is_an_overview(capsys: pytest.CaptureFixture) -> None:
    assert main([]) == 2
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(f"  {command} " in overview for command in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("shfcas 0.")


def test_env_prints_versions_as_text_and_as_json(capsys: pytest.CaptureFixture) -> None:
    assert main(["env"]) == 0
    assert "transformers: " in capsys.readouterr().out
    assert main(["env", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["torch"]


def test_json_lines_carry_the_columns_that_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    line = {"prompt_id": "a", "rewards": [1, 2], "logprobs": [2, 1], "topic": "food", "source": "web"}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(line)))
    assert main(["score", "-", "--columns", "prompt_id,topic"]) == 0
    made = ["pacs", "kendall_distance", "kendall_tau_b", "mean_abs_pacs", "degenerate"]
    assert [*json.loads(capsys.readouterr().out)] == ["prompt_id", "topic", *made]


def mistakes() -> dict[str, tuple[list[str], int, str]]:
    """Command lines with a mistake: the arguments, the exit code, and what the one line has to say."""
    sample = ["sample", "--policy", "{policy}", "--prompts", "{prompts}"]
    ppo = ["ppo", "--policy", "{policy}", "--reward_model", "{reward_model}", "--output", "out/policy", "--prompts"]
    return {
        "command": (["sampel"], 2, "unknown command 'sampel'; did you mean sample?"),
        "flag": (["sample", "--polcy", "x"], 2, "unknown argument --polcy, did you mean --policy?"),
        "nested flag": (["sample", "--sampling.temprature=1"], 2, "did you mean --sampling.temperature?"),
        "flag without value": (["sample", "--policy"], 2, "expected one argument"),
        "missing flags": (["sample"], 2, "missing: policy, prompts"),
        "run without anything": (["run"], 2, "missing: policy, reward_model, prompts, eval_prompts"),
        "key": (
            ["sample", "--config", "bad_key.yaml"],
            2,
            "unknown key sampling.temprature; did you mean sampling.tem",
        ),
        "value": ([*sample, "--seed", "many"], 2, "seed: expected int, got 'many'"),
        "impossible value": (
            [*sample, "--sampling.top_p", "2"],
            2,
            "sampling.top_p: expected above 0 and at most 1, got 2.0",
        ),
        "yaml": (["sample", "--config", "broken.yaml"], 2, "broken.yaml: not valid YAML"),
        "no config": (["run", "none.yaml"], 1, "none.yaml does not exist"),
        "strategy": (
            ["select", "scored.parquet", "--strategy", "shf_csa"],
            2,
            "did you mean shf_cas?",
        ),
        "no folder": (["sample", "--policy", "./none", "--prompts", "{prompts}"], 1, "no model at ./none: the folder"),
        "no hub model": (
            ["sample", "--policy", "nobody/nothing", "--prompts", "{prompts}"],
            1,
            "no model nobody/nothing",
        ),
        "no package": (["sample", "--policy", "pypi:no-such-model", "--prompts", "{prompts}"], 1, "is not installed"),
        "no prompts": (["sample", "--policy", "{policy}", "--prompts", "none.jsonl"], 1, "none.jsonl does not exist"),
        "long prompt": (
            ["sample", "--policy", "{policy}", "--prompts", "{endless}"],
            1,
            "prompt 'endless' has 801 tok",
        ),
        "demonstrations without a weight": (
            [*ppo, "{prompts}", "--demonstrations", "d.jsonl"],
            2,
            "ptx_coef: expected both",
        ),
        "weight without demonstrations": ([*ppo, "{prompts}", "--ptx_coef", "1"], 2, "got (1.0, None)"),
        "long prompt for PPO": ([*ppo, "{endless}"], 1, "801 tokens"),
        "groups": (
            ["rloo", *ppo[1:], "{prompts}", "--num_generations", "3"],
            2,
            "rollout_batch_size: expected a multiple of num_generations (3), got 64",
        ),
        "long prompt for GRPO": (["grpo", *ppo[1:], "{endless}"], 1, "801 tokens"),
        "PAR without references": (
            [*ppo, "{prompts}", "--reward_shaping", "par"],
            2,
            "reward_shaping par compares rewards with those of other answers: give --references",
        ),
        "flag of another command": ([*ppo, "{prompts}", "--num_generations", "4"], 2, "unknown argument --num_gen"),
        "nothing to accept": (
            ["rso", *ppo[1:-1], "--candidates", "plain.parquet"],
            1,
            "prompt 'p0' has 2 candidates, fewer than num_samples=4",
        ),
        "best of none": (
            ["evaluate", *ppo[1:5], "--gold", GOLD, "--prompts", "{prompts}", "--best_of_n", "0"],
            2,
            "best_of_n: expected at least 1, got 0",
        ),
        "output to a URL": ([*sample, "--output", "s3://bucket/c.parquet"], 1, "c.parquet: expected a local path"),
        "histogram to a URL": (
            ["score", "plain.parquet", "--histogram", "gs://b/h.png"],
            1,
            "h.png: expected a local path",
        ),
        "no candidates": (["score", "none.parquet"], 1, "none.parquet does not exist"),
        "no rewards": (["score", "plain.parquet"], 1, "no column rewards"),
        "nan": (["score", "plain.parquet", "--reward_model", "tests.support.tiny:nan_reward"], 1, "is not a number"),
        "no head": (["score", "plain.parquet", "--reward_model", "{policy}"], 1, "no trained reward head"),
        "no function": (
            ["score", "plain.parquet", "--reward_model", "tests.support.tiny:none"],
            1,
            "no function non",
        ),
        "unscored": (["select", "plain.parquet"], 1, "no column pacs; shfcas score adds it"),
        "queue of another table": (
            ["feedback", "--input", "plain.parquet", "--queue", "other_queue.jsonl", "--gold", GOLD],
            1,
            "asks about prompt 'other'",
        ),
        "queue beyond the answers": (
            ["feedback", "--input", "plain.parquet", "--queue", "long_queue.jsonl", "--gold", GOLD],
            1,
            "compares answers 0 and 7 of prompt 'p0', which has 2 answers",
        ),
        "no preferences": (["train-reward", "--model", "{reward_model}"], 1, "no preferences"),
        "averages of one": (
            ["train-reward", "--model", "{reward_model}", "--preferences", "{original}", "--average_weights", "true"],
            2,
            "ensemble_size: expected at least 2 with average_weights, got 1",
        ),
        "no completion": (
            ["sft", "--policy", "{policy}", "--demonstrations", "{prompts}"],
            1,
            "row 0 has no column completion",
        ),
        "no run": (["report", "--run", "."], 1, "manifest.json does not exist"),
    }


@pytest.mark.parametrize("mistake", mistakes())
def test_a_mistake_is_one_line_and_leaves_nothing(
    mistake: str,
    tiny_models: dict[str, str],
    files: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    arguments, code, message = mistakes()[mistake]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    from shfcas.data.candidates import CandidateTable, write_candidates

    row = {"prompt_id": "p0", "prompt": "how was it?", "completions": ["a", "b"], "logprobs": [-1.0, -2.0]}
    write_candidates("plain.parquet", CandidateTable.from_rows([row]))
    tiny.write_lines(tmp_path / "other_queue.jsonl", [{"prompt_id": "other", "first": 0, "second": 1}])
    tiny.write_lines(tmp_path / "long_queue.jsonl", [{"prompt_id": "p0", "first": 0, "second": 7}])
    Path("bad_key.yaml").write_text("sampling: {temprature: 1}\n")
    Path("broken.yaml").write_text("sampling: {temperature: 1\n")
    before = sorted(tmp_path.rglob("*"))
    assert main([argument.format(**tiny_models, **files) for argument in arguments]) == code
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert message in captured.err and captured.err.startswith("shfcas")
    left = [path for path in sorted(tmp_path.rglob("*")) if path not in before]
    assert [path for path in left if path.is_file() or path.name.endswith(".partial")] == []
    assert not any((tmp_path / "out").glob("[!.]*"))


BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
from shfcas.cli import main
sys.exit(main({arguments!r}))
"""


@pytest.mark.parametrize(
    ("package", "command"), [("transformers", "sample"), ("yaml", "sample"), ("pyarrow", "select"), ("tqdm", "score")]
)
def test_a_missing_extra_is_one_line(
    package: str, command: str, tiny_models: dict, files: dict, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(f"policy: {tiny_models['policy']}\nprompts: {files['prompts']}\n")
    arguments = [command, "--config", str(tmp_path / "config.yaml")]
    result = subprocess.run(
        [sys.executable, "-c", BLOCKER.format(package=package, arguments=arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        timeout=120,
    )
    expected = f"shfcas {command}: {package} is not installed; install it with: pip install 'shfcas[rlhf]'\n"
    assert (result.returncode, result.stdout, result.stderr) == (1, "", expected)


def test_the_commands_form_a_chain(
    tiny_models: dict[str, str],
    files: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)

    def shfcas(*arguments: object) -> dict:
        assert main([*map(str, arguments), "--json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    result = shfcas("sft", "--policy", tiny_models["policy"], "--demonstrations", files["demonstrations"])
    assert result["demonstrations"] == 9 and result["loss"] > 0
    load_policy("./policy-sft")

    result = shfcas("sample", "--policy", "./policy-sft", "--reference", tiny_models["policy"], *SHORT, "--prompts",
                    files["prompts"])  # fmt: skip
    assert (result["prompts"], result["answers"]) == (6, 24)

    proxy = ["train-reward", "--model", tiny_models["reward_model"], "--eval_preferences", files["original"]]
    result = shfcas(*proxy, "--preferences", files["original"], "--learning_rate", "1e-3", "--output", "proxy")
    assert result["pairs"] == 9 and 0 <= result["held_out_accuracy"] <= 1
    assert json.loads(Path("proxy/training.json").read_text())["held_out"] == result["held_out"]
    assert not Path("proxy/calibration.svg").exists()  # 9 held-out pairs are too few
    checks = shfcas("preflight", "./proxy", "--candidates", "candidates.parquet")
    assert {check["status"] for check in checks} <= {"pass", "warn"}

    result = shfcas("score", "--reward_model", "./proxy", "--policy_score", "logprob_ratio")
    assert result["prompts"] == 6 and result["nan"] == 0 and result["mean_abs_pacs"] > 0

    result = shfcas("select", "--budget", 5)
    assert 0 < result["comparisons"] <= 5

    judged = shfcas("feedback", "--gold", GOLD)
    assert judged["preferences"] + judged["ties"] == judged["comparisons"] == result["comparisons"]
    assert all(p.source == "gold" and p.round == 1 for p in read_preferences("preferences.jsonl"))

    both = f"{files['original']},preferences.jsonl"
    result = shfcas("train-reward", "--model", "./proxy", "--preferences", both, "--held_out", 0)
    assert result["pairs"] == 9 + judged["preferences"]
    assert load_scorer("./reward-model")(["how was it?"], ["good"])

    result = shfcas(
        "ppo", "--policy", "./policy-sft", "--reward_model", "./reward-model", "--gold", GOLD,
        "--references", "conflicts.parquet", "--prompts", files["prompts"], "--num_rollouts", 2,
        "--rollout_batch_size", 4, "--mini_batch_size", 2, "--max_completion_length", 6,
    )  # fmt: skip
    assert result["rollouts"] == 2 and "objective/gold" in result and "objective/kl" in result
    load_policy("./policy")

    result = shfcas("rso", "--policy", "./policy-sft", "--reward_model", "./reward-model", "--gold", GOLD,
                    "--candidates", "conflicts.parquet", "--output", "policy-rso")  # fmt: skip
    assert result["rollouts"] == 1 and result["rso/pairs"] > 0 and "objective/gold" in result
    load_policy("./policy-rso")

    evaluate = ["evaluate", "--reward_model", "./proxy", "--gold", GOLD, "--prompts", files["held_out"]]
    sampling = [argument.replace("--", "--evaluation.") for argument in SHORT]
    shfcas(*evaluate, *sampling, "--policy", "./policy-sft", "--output", "before.parquet")
    result = shfcas(*evaluate, *sampling, "--policy", "./policy", "--base", "./policy-sft", "--before",
                    "before.parquet")  # fmt: skip
    assert result["prompts"] == 4 and result["answers"] == 16
    assert 0 <= result["win_rate"]["mean"] <= 1 and result["kl"] != 0
    assert json.loads(Path("evaluation.json").read_text())["gold_reward"] == result["gold_reward"]
    assert "gold" in read_candidates("evaluation.parquet")
    best = shfcas(*evaluate, *sampling, "--policy", "./policy-sft", "--base", "./policy-sft", "--before",
                  "before.parquet", "--best_of_n", 3, "--output", "best.parquet")  # fmt: skip
    before, chosen = read_candidates("before.parquet"), read_candidates("best.parquet")
    assert (best["answers"], best["best_of_n"]) == (16, 3) and best["kl"] == pytest.approx(kl_bound(3), abs=1e-4)
    assert best["proxy_reward"]["mean"] > json.loads(Path("before.json").read_text())["proxy_reward"]["mean"]
    assert len(chosen.values("rewards")) == len(before.values("rewards"))
    assert not [path.name for path in Path().iterdir() if path.name.startswith(".")]  # nothing hidden stays

    assert main(["sft", "--policy", tiny_models["policy"], "--demonstrations", files["demonstrations"]]) == 1
    assert "policy-sft exists already" in capsys.readouterr().err


def test_metrics_of_a_reward_model_are_readable(
    tiny_models: dict[str, str], files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = str(tmp_path / "model")
    arguments = ["train-reward", "--model", tiny_models["reward_model"], "--preferences", files["original"]]
    assert main([*arguments, "--held_out", "0.4", "--eval_steps", "1", "--ensemble_size", "2", "--output", output]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["pairs: 6 (original 6)", "models: 2"]
    assert lines[2].startswith("loss: ") and lines[-1] == f"output: {output}"
    held_out = next(line for line in lines if line.startswith("accuracy on held-out pairs: "))
    assert re.fullmatch(r"accuracy on held-out pairs: \d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\] of 3", held_out)
    assert any(line.startswith("expected calibration error: ") for line in lines)


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_sister_commands_train_alike(
    algorithm: str,
    tiny_models: dict[str, str],
    files: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--policy", tiny_models["policy"], "--reward_model", GOLD, "--prompts", files["prompts"], "--json",
                 "--num_rollouts", "2", "--rollout_batch_size", "4", "--num_generations", "2", "--mini_batch_size", "2",
                 "--max_completion_length", "6", "--lora.r", "2", "--gold", GOLD]  # fmt: skip
    assert main([algorithm, *arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["rollouts"] == 2 and result["objective/gold"] == result["objective/scores"]
    assert len(json.loads((tmp_path / "policy" / "history.json").read_text())) == 2
    load_policy("./policy")
    assert not list(tmp_path.glob(".*"))
    assert main([algorithm, *arguments]) == 1 and "policy exists already" in capsys.readouterr().err


def test_an_evaluation_at_the_end_of_ppo_is_printed_beside_its_last_rollout(
    tiny_models: dict[str, str],
    files: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    arguments = ["--policy", tiny_models["policy"], "--reward_model", GOLD, "--prompts", files["prompts"], "--json",
                 "--num_rollouts", "2", "--rollout_batch_size", "4", "--mini_batch_size", "4", "--num_ppo_epochs", "1",
                 "--max_completion_length", "6", "--lora.r", "2", "--held_out", "0.4", "--eval_rollouts", "1",
                 "--output", str(tmp_path / "new")]  # fmt: skip
    assert main(["ppo", *arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    history = json.loads((tmp_path / "new" / "history.json").read_text())
    assert result["rollouts"] == 2 and len(history) == 3
    assert result["objective/scores"] == history[1]["objective/scores"]
    assert result["eval_scores"] == history[2]["eval_scores"]
