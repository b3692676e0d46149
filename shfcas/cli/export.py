"""Write what verl, OpenRLHF or slime train on: prompts, policy, reward, and scripts that start them.

A reward that the trainer cannot load (an ensemble, an encoder, a function, a shaped reward) is left to `shfcas
serve-reward`, and serve.sh starts it.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas.data.candidates import CandidateTable, read_candidates, read_prompts, write_candidates
from shfcas.data.formats import PromptColumn
from shfcas.data.messages import plain_text, prompt_key
from shfcas.rewards.shaping import SHAPINGS
from shfcas.training.export import ENGINES, export
from shfcas.training.launch import serve_script, train_script
from shfcas.training.output import trained_folder
from shfcas.utils.config import option
from shfcas.utils.errors import UsageError, UserError
from shfcas.utils.files import write_text

KINDS = f"{', '.join(ENGINES[:-1])} or {ENGINES[-1]}"
INPUTS, INPUTS_HELP = "engine", f"trainer to export for: {KINDS}"
CHOICES = tuple(ENGINES)


@dataclass
class Config(PromptColumn):
    """`shfcas export`."""

    engine: list[str] = option(list, f"trainer to export for: {KINDS}")
    prompts: str = option("", "prompts to train on: a file, org/name on the Hub, or module:function")
    eval_prompts: str | None = option(None, "held-out prompts (none: no held-out prompts)")
    policy: str = option("", "policy to start from")
    chat_template: str | None = option(
        None, "chat template for a policy without one: plain, or a Jinja file (none: the policy's own)"
    )
    reward_model: str = option("", "reward model, ensemble, or module:function")
    cost_model: bool = option(False, "the reward model is a cost model: lower is better")
    serve: bool = option(False, "score with shfcas serve-reward even if the trainer can load the reward model")
    reward_shaping: str = option(
        "none", "shaping of the reward, which serve-reward computes: centre or par", ("none", *SHAPINGS)
    )
    references: str | None = option(None, "reward_shaping: candidate table with reference answers to all prompts")
    output: str = option("export", "folder to write")


def run(config: Config) -> dict[str, Any]:
    """Writes the folder."""
    if len(config.engine) != 1 or config.engine[0] not in ENGINES:
        raise UsageError(f"engine: expected {KINDS}, got {' '.join(config.engine) or 'none'}")
    (engine,) = config.engine
    prompts = read_prompts(config.prompts, config.columns())
    held_out = read_prompts(config.eval_prompts, config.columns()) if config.eval_prompts else []
    shaped = config.reward_shaping != "none"
    references = _references(config, [*prompts, *held_out]) if shaped else None
    with trained_folder(config.output) as (partial, _):
        partial.mkdir()
        result = export(
            engine,
            partial,
            prompts=prompts,
            policy=config.policy,
            reward_model=config.reward_model,
            eval_prompts=held_out,
            cost_model=config.cost_model,
            chat_template=config.chat_template,
            served=config.serve or shaped,
        )
        _write_scripts(partial, engine, config, references, served=result["served"], held_out=bool(held_out))
    return {**result, "output": config.output}


def _write_scripts(
    folder: Path, engine: str, config: Config, references: CandidateTable | None, *, served: bool, held_out: bool
) -> None:
    write_text(folder / "train.sh", train_script(engine, held_out=held_out, served=served))
    if served:
        from shfcas.serve import client

        shutil.copyfile(client.__file__, folder / "client.py")
        flags = ["--cost_model"] if config.cost_model else []
        if references is not None:
            write_candidates(folder / "references.parquet", references)
            flags.append(f"--reward_shaping {config.reward_shaping} --references references.parquet")
        model = Path(config.reward_model).expanduser()
        name = str(model.resolve()) if model.exists() else config.reward_model
        write_text(folder / "serve.sh", serve_script([name], flags))
    for script in folder.glob("*.sh"):
        script.chmod(0o755)


def _references(config: Config, prompts: list[dict[str, Any]]) -> CandidateTable:
    """Reads the reference answers, of which every prompt needs some."""
    if config.references is None:
        raise UsageError("missing: references; name a candidate table with answers to all prompts")
    table = read_candidates(config.references)
    known = {prompt_key(row["prompt"]) for row in table.rows() if row["completions"]}
    lacking = [row["prompt"] for row in prompts if prompt_key(row["prompt"]) not in known]
    if lacking:
        raise UserError(
            f"references: {config.references} lacks answers to {len(lacking)} of {len(prompts)} prompts, such as "
            f"{plain_text(lacking[0])[:60]!r}; sample them first: shfcas sample"
        )
    names = ["prompt_id", "prompt", "completions"]
    return CandidateTable(table.table.select(names), table.metadata)
