"""verl's own code reads the exports, parses the commands and asks the server."""

import asyncio
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("verl", reason="make test-engines runs this")

import verl
from hydra import compose, initialize_config_dir
from running import TOKEN, World
from transformers import AutoTokenizer
from verl import DataProto
from verl.trainer.ppo.reward import load_reward_manager
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import omega_conf_to_dataclass, validate_config
from verl.utils.dataset.rl_dataset import RLHFDataset

CONFIGS = os.path.join(os.path.dirname(verl.__file__), "trainer", "config")


def parsed(words: list[str]) -> Any:
    """The configuration as verl's command line composes and checks it."""
    assert words[:2] == ["-m", "verl.trainer.main_ppo"]
    with initialize_config_dir(CONFIGS, version_base=None):
        config = compose("ppo_trainer", overrides=words[2:])
    validate_config(config, need_reference_policy(config), need_critic(config))
    return config


@pytest.mark.parametrize("tested", ["", "-tested"])
def test_the_command_of_a_reward_model_is_parsed(tested: str, world: World) -> None:
    folder = world.folder / f"verl-decoder{tested}"
    config = parsed(world.words(folder.name))
    assert config.data.train_files == str(folder / "train.parquet")
    assert config.data.val_files == str(folder / ("test.parquet" if tested else "train.parquet"))
    assert all(Path(path).is_file() for path in (config.data.train_files, config.data.val_files))
    assert config.actor_rollout_ref.model.path == config.critic.model.path == str(folder / "policy")
    assert config.reward.reward_model.enable
    assert config.reward.reward_model.model_path == str(folder / "reward_model")
    assert omega_conf_to_dataclass(config.reward.reward_model).model_path == str(folder / "reward_model")


def test_the_command_of_a_server_is_parsed(world: World) -> None:
    config = parsed(world.words("verl-encoder"))
    assert config.reward.custom_reward_function.path == str(world.folder / "verl-encoder" / "client.py")
    assert config.reward.custom_reward_function.name == "compute_score"
    assert config.reward.custom_reward_function.reward_kwargs.url == world.address
    assert not config.reward.reward_model.enable


def test_its_reward_manager_gets_every_bit_of_the_rewards(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHFCAS_REWARD_TOKEN", TOKEN)
    config = parsed(world.words("verl-encoder"))
    tokenizer = AutoTokenizer.from_pretrained(config.actor_rollout_ref.model.path)
    rows = RLHFDataset(data_files=config.data.train_files, tokenizer=tokenizer, config=config.data)
    assert [list(row["raw_prompt"]) for row in rows] == world.prompts

    async def scored() -> list[list[float]]:
        manager = load_reward_manager(config, tokenizer)
        rewards = []
        for row in rows:
            rewards.append([])
            for answer in world.answers:
                found = await manager.run_single(sampled(tokenizer, row, answer))
                assert found["reward_extra_info"] == {"score": found["reward_score"]}
                rewards[-1].append(found["reward_score"])
        return rewards

    assert asyncio.run(scored()) == world.rewards


def sampled(tokenizer: Any, row: dict[str, Any], answer: str) -> DataProto:
    """An answer as verl's rollouts hold it: padded tokens, and the row's other columns."""
    prompt = torch.tensor([tokenizer.apply_chat_template(list(row["raw_prompt"]), return_dict=True)["input_ids"]])
    ids = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    padding = 7
    responses = torch.tensor([ids + [tokenizer.pad_token_id] * padding])
    mask = torch.cat([torch.ones_like(prompt), torch.tensor([[1] * len(ids) + [0] * padding])], dim=1)
    columns = {name: np.array([row[name]], dtype=object) for name in ("data_source", "reward_model", "extra_info")}
    return DataProto.from_dict(
        tensors={"prompts": prompt, "responses": responses, "attention_mask": mask}, non_tensors=columns
    )


def test_a_prompt_that_is_missing_is_an_error(world: World) -> None:
    from verl.utils.import_utils import load_extern_object

    client: Any = load_extern_object(str(world.folder / "verl-encoder" / "client.py"), "compute_score")
    with pytest.raises(RuntimeError, match="expected the prompt under `prompt`"):
        asyncio.run(client("shfcas", "an answer", "", {"index": 0}))
