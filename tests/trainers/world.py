"""Models, exports and a running server for the tests of trainers; runs in the environment of shfcas.

    python -m tests.trainers.world FOLDER

writes `world.json` and then serves the encoder's rewards until it is interrupted.
"""

import json
import sys
from pathlib import Path
from typing import Any

from shfcas.cli import main
from shfcas.rewards.scorers import load_scorer
from tests.support import tiny

ANSWERS = ["the soup was good", "a bad film, and late", "it was é 你好 <b>&amp;</b>\n\nfine"]


def build(folder: Path) -> str:
    """Writes everything; returns the reward model that is served."""
    policy, encoder = tiny.save_policy(folder / "policy"), tiny.save_reward_model(folder / "encoder")
    tiny.save_decoder(folder / "decoder", policy)
    prompts = tiny.prompts(4)
    tiny.write_lines(folder / "prompts.jsonl", prompts)
    tiny.write_lines(folder / "held_out.jsonl", tiny.held_out_prompts(2))
    for engine in ("verl", "openrlhf"):
        for reward in ("decoder", "encoder"):
            for held_out in (False, True):
                flags = {"prompts": "prompts.jsonl", "policy": "policy", "reward_model": reward}
                flags |= {"eval_prompts": "held_out.jsonl"} if held_out else {}
                words = [word for name, value in flags.items() for word in (f"--{name}", str(folder / value))]
                output = folder / f"{engine}-{reward}{'-tested' if held_out else ''}"
                assert main(["export", engine, *words, "--output", str(output)]) == 0
    scorer: Any = load_scorer(encoder)
    rewards = [[scorer([row["prompt"]], [answer])[0] for answer in ANSWERS] for row in prompts]
    world = {"prompts": [row["prompt"] for row in prompts], "answers": ANSWERS, "rewards": rewards}
    (folder / "world.json").write_text(json.dumps(world))
    return encoder


if __name__ == "__main__":
    given = Path(sys.argv[1])
    name = build(given)
    sys.exit(main(["serve-reward", name, "--policy", str(given / "policy"), "--port", "0"]))
