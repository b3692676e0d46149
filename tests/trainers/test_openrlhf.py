"""OpenRLHF's own code reads the exports, parses the commands and asks the server."""

import asyncio
import runpy
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

pytest.importorskip("openrlhf", reason="make test-engines runs this")

from openrlhf.datasets.prompts_dataset import PromptDataset
from openrlhf.datasets.utils import blending_datasets
from openrlhf.utils.agent import SingleTurnAgentExecutor
from running import TOKEN, World
from transformers import AutoTokenizer


class Parsed(Exception):
    """Ends the trainer where it would start."""


class Stub(types.ModuleType):
    """A module that is not installed; everything in it is another stub."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return mock.MagicMock(name=f"{self.__name__}.{name}")


def parsed(words: list[str]) -> Any:
    """The arguments as OpenRLHF's command line parses and checks them, up to the start of its cluster."""
    stubs = {name: Stub(name) for name in ("openrlhf.trainer.ray", *(f"openrlhf.trainer.ray.{m}" for m in MODULES))}
    ray = mock.MagicMock()
    ray.is_initialized.side_effect = Parsed
    stubs |= {"ray": ray, "ray.util": mock.MagicMock(), "ray.util.placement_group": mock.MagicMock()}
    assert words[0] == "-m"
    with mock.patch.dict(sys.modules, stubs), mock.patch.object(sys, "argv", words[1:]), pytest.raises(Parsed) as ended:
        runpy.run_module(words[1], run_name="__main__")
    frame: Any = ended.value.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_name == "train":
            return frame.tb_frame.f_locals["args"]
        frame = frame.tb_next
    raise AssertionError("the trainer did not start")


MODULES = ("launcher", "ppo_actor", "ppo_critic")


@pytest.mark.parametrize("tested", ["", "-tested"])
def test_the_command_of_a_reward_model_is_parsed(tested: str, world: World) -> None:
    folder = world.folder / f"openrlhf-decoder{tested}"
    args = parsed(world.words(folder.name))
    assert args.data.prompt_dataset == str(folder / "train.parquet") and Path(args.data.prompt_dataset).is_file()
    assert (args.data.input_key, args.data.label_key, args.data.apply_chat_template) == ("input", "label", True)
    assert args.actor.model_name_or_path == args.critic.model_name_or_path == str(folder / "policy")
    assert args.reward.model_name_or_path == str(folder / "reward_model") and args.ds.value_head_prefix == "score"
    assert args.reward.remote_url is None and (folder / "reward_model" / "config.json").is_file()


@pytest.mark.parametrize("tested", ["", "-tested"])
def test_the_command_of_a_server_is_parsed(tested: str, world: World) -> None:
    folder = world.folder / f"openrlhf-encoder{tested}"
    args = parsed(world.words(folder.name))
    assert args.reward.remote_url == [f"{world.address}/openrlhf"] and args.reward.model_name_or_path is None
    assert args.eval.dataset == (str(folder / "test.parquet") if tested else None)


def dataset(world: World, export: str) -> PromptDataset:
    """The prompts of an export as the trainer reads them."""
    args = parsed(world.words(export))
    strategy = SimpleNamespace(args=args, print=lambda *_: None, is_rank_0=lambda: True)
    rows = blending_datasets(args.data.prompt_dataset, None, strategy, dataset_split=args.data.prompt_split)
    return PromptDataset(rows, AutoTokenizer.from_pretrained(args.actor.model_name_or_path), strategy)


class Engine:
    """Samples the tokens of a given answer."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    async def generate(self, prompt: list[int], params: Any, multi_modal_data: Any = None) -> Any:
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=self.tokens, finish_reason="stop", logprobs=None)])


def executed(world: World, endpoint: str) -> list[list[list[float]]]:
    """The rewards that the trainer's executor reports, by prompt and answer."""
    tokenizer = AutoTokenizer.from_pretrained(world.folder / "policy")
    executor, params = SingleTurnAgentExecutor([endpoint]), SimpleNamespace(max_tokens=60, logprobs=None)
    rewards = []
    for _, prompt, label, _ in dataset(world, "openrlhf-encoder"):
        rewards.append([])
        for answer in world.answers:
            engine = Engine([*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id])
            found = asyncio.run(executor.execute(prompt, label, params, 512, tokenizer, engine))
            assert found["scores"] == found["reward"]
            rewards[-1].append(found["reward"])
    return rewards


def test_its_http_client_gets_every_bit_of_the_rewards(world: World) -> None:
    expected = [[[reward] for reward in row] for row in world.rewards]
    assert executed(world, world.url("/openrlhf")) == expected


def test_its_reward_function_gets_every_bit_of_the_rewards(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHFCAS_REWARD_URL", world.address)
    monkeypatch.setenv("SHFCAS_REWARD_TOKEN", TOKEN)
    expected = [[[reward] for reward in row] for row in world.rewards]
    assert executed(world, str(world.folder / "openrlhf-encoder" / "client.py")) == expected
