"""Sample answers from a policy, with the log-probability of each, into a candidate table (Parquet)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas.data.candidates import read_prompts, write_candidates
from shfcas.data.formats import PromptColumn
from shfcas.engines import ENGINES, RayConfig, open_engine
from shfcas.sampling.config import SamplingConfig
from shfcas.sampling.table import sample_policy
from shfcas.utils.config import option
from shfcas.utils.files import work_folder


@dataclass
class Config(PromptColumn):
    """`shfcas sample`."""

    policy: str = option("", "policy: a folder, a hub id, or pypi:PACKAGE", common=True)
    prompts: str = option("", "prompts: a file, org/name on the Hub, or module:function", common=True)
    output: str = option("candidates.parquet", "candidate table to write", common=True)
    reference: str | None = option(
        None, "model of the same vocabulary, for policy_score logprob_ratio (none: no reference)"
    )
    chat_template: str | None = option(
        None, "chat template for a policy without one: plain, or a Jinja file (none: the policy's own)"
    )
    seed: int = option(0, "seed of the sampling", common=True)
    sampling: SamplingConfig = option(SamplingConfig, "sampling of answers", common=True)
    engine: str = option("local", "where to run: in this process, or on a Ray cluster", ENGINES)
    ray: RayConfig = option(RayConfig, "engine ray: the cluster")


def run(config: Config) -> dict[str, Any]:
    """Samples; resumes an interrupted call at its first missing shard."""
    output = Path(config.output)
    references = {"reference_logprobs": config.reference} if config.reference else {}
    with work_folder(output) as work_dir, open_engine(config.engine, config.ray) as engine:
        table = sample_policy(
            config.policy,
            read_prompts(config.prompts, config.columns()),
            config=config.sampling,
            seed=config.seed,
            work_dir=work_dir,
            references=references,
            chat_template=config.chat_template,
            engine=engine,
        )
        write_candidates(output, table)
    return {"prompts": len(table), "answers": len(table.values("logprobs")), "output": str(output)}
