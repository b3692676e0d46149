"""The page about training says what there is."""

import dataclasses
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from datasets import Dataset

from shfcas.training.lora import AdapterConfig
from shfcas.training.ppo.options import PPOBaseConfig
from shfcas.training.ppo.trainer import PPOTrainer
from shfcas.training.sft import SFTStageConfig
from tests.support.ppo_tiny import config, prompts, share_of, tiny_model, tiny_tokenizer

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "training.md").read_text(encoding="utf-8")


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The hook of mkdocs that fills the page in."""
    monkeypatch.syspath_prepend(str(DOCS / "_make"))  # where mkdocs looks for modules of a hook
    spec = importlib.util.spec_from_file_location("pages", DOCS / "_make" / "pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_option_is_in_the_table(pages: ModuleType) -> None:
    filled = pages.on_page_markdown(PAGE).partition("## Options\n")[2]
    for field in dataclasses.fields(PPOBaseConfig):
        (row,) = [line for line in filled.splitlines() if line.startswith(f"| `{field.name}` |")]
        assert field.metadata["help"] in row
    assert "| `max_kl` | `null` | `100.0` |" in filled
    assert "| `cliprange` | `0.2` |  |" in filled


def test_defaults_of_supervised_fine_tuning_are_those_of_the_code() -> None:
    section = PAGE.partition("## Supervised fine-tuning\n")[2].partition("\n## ")[0]
    table = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section, re.MULTILINE))
    lora = table.pop("lora")
    assert lora == "r {r}, alpha {alpha}, dropout {dropout}".format(**vars(AdapterConfig()))
    given = {field.name: getattr(SFTStageConfig(), field.name) for field in dataclasses.fields(SFTStageConfig)}
    assert given.pop("lora") == AdapterConfig()
    for name, value in given.items():
        if isinstance(value, float | int) and not isinstance(value, bool):
            assert float(table.pop(name)) == value, name
        else:
            assert table.pop(name) == ("none" if value is None else str(value)), name
    assert not table


def test_every_metric_is_explained(tmp_path: Path) -> None:
    """Those of PPO, in the rows of a run that logs all of them; the others are the base class's."""
    ppo = PPOTrainer(
        tiny_model(),
        config(tmp_path, eval_rollouts=1),
        train_dataset=prompts(),
        processing_class=tiny_tokenizer(),
        reward_funcs=share_of("w7"),
        eval_dataset=Dataset.from_dict({"prompt": ["w20"]}),
        metric_funcs={"gold": share_of("w8")},
    )
    ppo.train()
    logged = {name for row in ppo.state.log_history if "rollout" in row for name in row}
    table = {name for line in PAGE.splitlines() if line.startswith("| `") for name in re.findall(r"`([^`]+)`", line)}
    known = table | {
        "rewards/share",
        "objective/gold",
        "rollout",
        "step",
        "epoch",
        "loss",
        "grad_norm",
        "learning_rate",
    }
    assert not {name for name in logged - known if not name.startswith("eval_")}
    assert {"objective/rlhf_reward", "val/ratio_var", "episode", "eval_gold"} <= logged
