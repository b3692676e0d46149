"""A run directory: stages that are pure functions of the content they read and of the configuration they use.

A stage is made again exactly when its inputs or its settings changed. It writes to a hidden `.partial` path that is
renamed when complete, and may keep checkpoints in a hidden `.work` folder that is deleted then. `manifest.json` records
hashes of what went in and came out, settings, seeds, versions and times. A finished result is never replaced without
approval: the plan says first which ones would be made again, and why.
"""

import dataclasses
import json
import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from shfcas.pipeline.content import FileHashes, Model, Source, content_of
from shfcas.pipeline.manifest import DONE, RUNNING, Manifest, Record, damage, describe_files
from shfcas.utils.config import lasting
from shfcas.utils.errors import UsageError, UserError
from shfcas.utils.files import disk_errors, lock_file, publish, remove, write_text
from shfcas.utils.progress import stage_progress
from shfcas.utils.seeds import derive_seed

logger = logging.getLogger(__name__)

TODO, STALE = "to do", "stale"
UNKNOWN = "(not made yet)"


@dataclass(frozen=True)
class StageContext:
    """The place and the seed of a stage.

    Attributes:
        output: where to write the result, a file or a folder that does not exist yet.
        work_dir: a folder that survives a kill, for shards and checkpoints.
        seed: the stage's own seed, derived from the run's seed and the stage's name without the name of an arm.
    """

    output: Path
    work_dir: Path
    seed: int


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a plan.

    Attributes:
        name: its path inside the run directory.
        state: `done`, `running` (was begun and can be resumed), `stale` (done, but of changed content), or `to do`.
        reasons: of a stale stage, what changed.
        inputs: content hash of everything the stage reads.
        settings: the configuration that it uses.
        reads: inputs that are outputs of other stages, with the names of those stages.
        seconds: how long it will take at the rate of finished stages of its kind; None without a measured rate.
    """

    name: str
    state: str
    reasons: tuple[str, ...]
    inputs: dict[str, str]
    settings: dict[str, Any]
    reads: dict[str, str]
    seconds: float | None = None

    @property
    def asks_people(self) -> bool:
        """Whether it waits for annotators, so that nobody can tell how long."""
        return "human" in (self.settings.get("feedback"), self.settings.get("evaluation.judge"))


@dataclass
class Plan:
    """The stages of a run in order, before anything is made."""

    stages: list[PlannedStage] = field(default_factory=list)

    def stale(self) -> list[PlannedStage]:
        """Finished stages that would be made again."""
        return [stage for stage in self.stages if stage.state == STALE]

    def stale_text(self) -> str:
        """One line about what changed and which finished stages it makes stale."""
        changes = dict.fromkeys(r for s in self.stale() for r in s.reasons if not r.endswith("is made again"))
        names = ", ".join(stage.name for stage in self.stale())
        return f"{'; '.join(changes)}; made again: {names}"


class RunDirectory:
    """Stages and their manifest in one folder; only one process at a time may work in it.

    Args:
        path: the folder; it is made if it is not there.
        config: the whole configuration, for `config.yaml` and the report; stages depend on what they are given.
        seed: the run's seed.
        approved: make stale stages again without asking.

    Attributes:
        work: returns the kind and the amount of work of a stage, by its name; stages of one kind have one rate.

    Raises:
        UserError: another process works in the folder, or its manifest is missing or damaged.
    """

    def __init__(
        self,
        path: str | Path,
        config: dict[str, Any],
        seed: int,
        *,
        approved: bool = False,
    ) -> None:
        self.path, self.config, self.seed, self.approved = Path(path), config, seed, approved
        self.work: Callable[[str], tuple[str, float]] = lambda name: (name, 1.0)
        self._plan: Plan | None = None
        with disk_errors(str(self.path)):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("w")
        lock_file(self._lock, self.path)
        self.manifest = Manifest(self.path)
        self.hashes = FileHashes(self.path / ".hashes.json")
        self._sweep()

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.close()

    def begin(self) -> None:
        """Writes down what the run is now made with: the manifest's head and `config.yaml`."""
        import yaml

        self.manifest.about = {"seed": self.seed, "versions": versions(), "config": self.config}
        with disk_errors(str(self.path)):
            self.manifest.save()
            write_text(self.path / "config.yaml", yaml.safe_dump(self.config, sort_keys=False))

    @contextmanager
    def planning(self) -> Iterator[Plan]:
        """Yields a plan that fills while `stage` is called; inside, nothing is made."""
        self._plan = Plan()
        try:
            yield self._plan
        finally:
            self._plan = None

    def stage(
        self,
        name: str,
        make: Callable[[StageContext], Any],
        *,
        inputs: Mapping[str, Source] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Path:
        """Returns the output of a stage, making it first unless it is there and nothing that it depends on changed.

        Args:
            name: the path of the output inside the run directory, such as `round-1/candidates.parquet`.
            make: writes `context.output`.
            inputs: what the stage reads, by name. A path inside the run directory is the output of a stage.
            settings: the part of the configuration that the stage uses, by dotted name. All fields of a configuration
                dataclass count that change a result.

        Raises:
            UsageError: the stage is done, what it depends on changed, and making it again is not approved.
            UserError: an input or the output is damaged.
        """
        output = self.path / name
        planned = self._planned(name, dict(inputs or {}), flat_settings(settings or {}))
        if self._plan is not None:
            self._plan.stages.append(planned)
            return output
        if planned.state == DONE:
            return output
        if planned.state == STALE and not self.approved:
            raise UsageError(
                f"{output} was made otherwise ({'; '.join(planned.reasons)}); undo that, or delete the output to "
                "make it again"
            )
        self._make(planned, make)
        return output

    def _planned(self, name: str, inputs: dict[str, Source], settings: dict[str, Any]) -> PlannedStage:
        record, output = self.manifest.stages.get(name), self.path / name
        hashes = {key: self._content(source) for key, source in inputs.items()}
        reads = {key: stage for key, source in inputs.items() if (stage := self._stage_of(source)) is not None}

        def planned(state: str, reasons: tuple[str, ...] = ()) -> PlannedStage:
            seconds = None if state == DONE else self._expected(name)
            return PlannedStage(name, state, reasons, hashes, settings, reads, seconds)

        if record is None or (record.state == DONE and not output.exists()):
            return planned(TODO)
        reasons = tuple(self._changes(record, inputs, hashes, settings))
        if record.state == RUNNING:
            return planned(TODO if reasons else RUNNING, reasons)
        if not reasons:
            found = damage(output, record)
            if found:
                raise UserError(f"{found[0]}; restore it from a copy, or delete {output} to make it again")
        return planned(STALE if reasons else DONE, reasons)

    def _expected(self, name: str) -> float | None:
        """Seconds that a stage will take, at the mean rate of finished stages of its kind."""
        kind, amount = self.work(name)
        known = [record for record in self.manifest.stages.values() if record.work.get("kind") == kind]
        done = sum(record.work["amount"] for record in known)
        return amount * sum(record.seconds for record in known) / done if done else None

    def _changes(
        self, record: Record, inputs: dict[str, Source], hashes: dict[str, str], settings: dict[str, Any]
    ) -> Iterator[str]:
        for key in sorted(hashes.keys() | record.inputs.keys()):
            if hashes.get(key) != record.inputs.get(key):
                yield self._input_change(key, inputs.get(key), hashes.get(key))
        for key in sorted(settings.keys() | record.settings.keys()):
            before, now = record.settings.get(key), settings.get(key)
            if before != now:
                yield f"{key}: {before!r} -> {now!r}"

    def _input_change(self, key: str, source: Source | None, content: str | None) -> str:
        """One line about an input that changed."""
        if source is None:
            return f"{key}: no longer read"
        stage = self._stage_of(source)
        if stage is not None:
            return f"{key}: {stage} is made again" if content == UNKNOWN else f"{key}: {stage} changed"
        name = source if isinstance(source, Path) else getattr(source, "name", "")
        return f"{key}: {name} changed" if name else f"{key} changed"

    def _content(self, source: Source) -> str:
        """The hash of a source; of an earlier stage's output, the one in its record, after a look at the files."""
        name = self._stage_of(source)
        if name is not None:
            inside = self.path / name
            if self._plan is not None:
                planned = next((stage for stage in self._plan.stages if stage.name == name), None)
                if planned is not None and planned.state != DONE:
                    return UNKNOWN
            record = self.manifest.stages.get(name)
            if record is not None and record.state == DONE:
                found = damage(inside, record)
                if found:
                    raise UserError(f"{found[0]}; restore it from a copy, or delete {inside} to make it again")
                return record.output
        return content_of(source, self.hashes)

    def _stage_of(self, source: Source) -> str | None:
        """The name of the stage whose output a source is; None for everything outside the run directory."""
        path = source.name if isinstance(source, Model) else source
        return str(path.relative_to(self.path)) if isinstance(path, Path) and path.is_relative_to(self.path) else None

    def _make(self, planned: PlannedStage, make: Callable[[StageContext], Any]) -> None:
        name, output = planned.name, self.path / planned.name
        partial, work_dir = hidden(output, "partial"), hidden(output, "work")
        # Arms of a comparison, `random/round-1/policy` and `shf_cas/round-1/policy`, share their random numbers.
        seed, started = derive_seed(self.seed, "/".join(name.split("/")[-2:])), time.time()
        before = self.manifest.stages.get(name)
        resumed = before is not None and planned.state == RUNNING
        if before is not None and not resumed:
            for path in (output, partial, work_dir):
                remove(path)
        if not (resumed and output.exists()):  # it exists when a kill came between the rename and the manifest
            logger.info("%s", name)
            with disk_errors(str(output)):
                record = Record(RUNNING, planned.inputs, planned.settings, seed, reads=planned.reads)
                record.because = list(planned.reasons)
                self.manifest.stages[name] = record
                self.manifest.save()
                work_dir.mkdir(parents=True, exist_ok=True)
                remove(partial)
                with stage_progress(name):
                    make(StageContext(partial, work_dir, seed))
                publish(partial, output)
        with disk_errors(str(self.manifest.path)):
            record = self.manifest.stages[name]
            record.state, record.files, record.versions = DONE, describe_files(output), versions()
            record.seconds = round(time.time() - started, 3)
            if not resumed:  # otherwise the time is that of a part
                record.work = dict(zip(("kind", "amount"), self.work(name), strict=True))
            record.finished = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            self.manifest.save()
            self.hashes.save()
            remove(work_dir)

    def _sweep(self) -> None:
        """Removes partial outputs and work folders of stages that are not running."""
        running = {self.path / name for name, record in self.manifest.stages.items() if record.state == RUNNING}
        kept = {hidden(output, kind) for output in running for kind in ("partial", "work")}
        for kind in ("partial", "work"):
            for path in self.path.rglob(f".*.{kind}"):
                if path not in kept and not any(parent in kept for parent in path.parents):
                    remove(path)


def hidden(output: Path, kind: str) -> Path:
    """The hidden path beside an output, `partial` or `work`."""
    return output.with_name(f".{output.name}.{kind}")


def flat_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of settings by dotted name, as JSON reads them back, without fields that change no result."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(lasting(value) if dataclasses.is_dataclass(value) else value, name)
    return json.loads(json.dumps(found))


def _flat(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{name}.{key}")
    return found or {name: value}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("shfcas", "transformers", "trl", "peft", "datasets", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
