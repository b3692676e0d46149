"""Scripts that start a trainer, and the reward server beside it, on an exported folder."""

import shlex
from collections.abc import Sequence

# The address as the trainer's machines see it; the scripts read it from the environment.
SERVER = "http://127.0.0.1:8901"

_HEAD = """#!/usr/bin/env bash
# {about}
# Written by shfcas export; further arguments are passed on.
set -euo pipefail
cd "$(dirname "${{BASH_SOURCE[0]}}")"
"""


def train_script(engine: str, *, held_out: bool, served: bool) -> str:
    """Returns the script that starts training.

    Args:
        engine: one of `shfcas.training.export.ENGINES`.
        held_out: whether there are held-out prompts.
        served: whether rewards come from the server.
    """
    about = f"Trains the policy with {NAMES[engine]}."
    if served:
        about += " Start serve.sh first; on another machine, set SHFCAS_REWARD_URL here to its address."
    address = f'export SHFCAS_REWARD_URL="${{SHFCAS_REWARD_URL:-{SERVER}}}"\n' if served else ""
    return f"{_HEAD.format(about=about)}{address}{command(train_words(engine, held_out=held_out, served=served))}"


def train_words(engine: str, *, held_out: bool, served: bool) -> list[str]:
    """Returns the words of the command that starts training, see `train_script`."""
    if engine == "verl":
        test = "test" if held_out else "train"
        words = [
            "python -m verl.trainer.main_ppo",
            '"data.train_files=$PWD/train.parquet"',
            f'"data.val_files=$PWD/{test}.parquet"',
            "data.return_raw_chat=True",
            '"actor_rollout_ref.model.path=$PWD/policy"',
            "actor_rollout_ref.rollout.name=vllm",
            "actor_rollout_ref.actor.use_dynamic_bsz=True",
            "algorithm.adv_estimator=gae",
            '"critic.model.path=$PWD/policy"',
        ]
        if served:
            return [
                *words,
                '"reward.custom_reward_function.path=$PWD/client.py"',
                '"+reward.custom_reward_function.reward_kwargs.url=$SHFCAS_REWARD_URL"',
            ]
        return [
            *words,
            "reward.reward_model.enable=True",
            '"reward.reward_model.model_path=$PWD/reward_model"',
            "reward.reward_model.rollout.name=vllm",
        ]
    if engine == "openrlhf":
        words = [
            "python -m openrlhf.cli.train_ppo_ray",
            '--data.prompt_dataset "$PWD/train.parquet"',
            "--data.input_key input --data.label_key label --data.apply_chat_template",
            '--actor.model_name_or_path "$PWD/policy" --critic.model_name_or_path "$PWD/policy"',
        ]
        if served:
            held = ['--eval.dataset "$PWD/test.parquet"'] if held_out else []
            return [*words, *held, '--reward.remote_url "$SHFCAS_REWARD_URL/openrlhf"']
        return [*words, '--reward.model_name_or_path "$PWD/reward_model" --ds.value_head_prefix score']
    return [
        "python train.py",
        '--prompt-data "$PWD/train.jsonl" --input-key prompt --label-key label --apply-chat-template',
        '--hf-checkpoint "$PWD/policy"',
        '--rm-type remote_rm --rm-url "$SHFCAS_REWARD_URL/slime"',
    ]


def serve_script(models: Sequence[str], flags: Sequence[str]) -> str:
    """Returns the script that starts the reward server.

    Args:
        models: names of reward models, with absolute paths.
        flags: further words of the command.
    """
    words = [f"shfcas serve-reward {shlex.join(models)}", "--policy policy", *flags]
    about = "Serves the reward. For other machines: set SHFCAS_REWARD_TOKEN, and pass --host 0.0.0.0."
    return f"{_HEAD.format(about=about)}{command(words)}"


def command(words: Sequence[str]) -> str:
    """Returns a command of several lines that passes further arguments on."""
    return "exec " + " \\\n    ".join([*words, '"$@"']) + "\n"


NAMES = {"verl": "verl", "openrlhf": "OpenRLHF", "slime": "slime"}
