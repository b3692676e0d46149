"""A Ray cluster of several nodes on this machine: the same results as one process, whoever dies on the way."""

import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from shfcas.cli import main
from shfcas.engines import RaySettings, open_engine
from shfcas.errors import UserError
from tests import tiny
from tests.ray_workers import Broken, Refusing, Writer, always_die, die_once, nothing, wait_for_go

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
pytest.importorskip("ray")
STORE = 100 << 20


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that does no work, and two nodes of one core."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=STORE)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def engine(cluster: Any) -> Iterator[Any]:
    with open_engine("ray", RaySettings(address=cluster.address, retries=2, start_timeout=60)) as engine:
        yield engine


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)  # where workers find tests.tiny, too


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("files")
    prompts = {"prompts": tiny.write_lines(folder / "prompts.jsonl", tiny.prompts(20, chat=False))}
    return {**tiny.write_models(folder), **prompts, "folder": str(folder)}


def check_files(folder: Path, count: int) -> None:
    """Every task has its whole file, once."""
    assert {p.name for p in folder.glob("task-*")} == {f"task-{task}" for task in range(count)}
    assert all(p.read_text() == f"all of {p.name[5:]}" for p in folder.glob("task-*"))


def attempts(folder: Path, task: int) -> int:
    return len([*folder.glob(f"attempt-{task}-*")])


def test_a_worker_that_is_killed_loses_nothing(engine: Any, tmp_path: Path) -> None:
    ticks: list[int] = []
    made = list(engine.map(partial(Writer, tmp_path, die_once), range(12), ticks.append))
    check_files(tmp_path, 12)
    assert attempts(tmp_path, 3) == 2 and all(attempts(tmp_path, task) == 1 for task in range(12) if task != 3)
    assert ticks == [10] * 12
    assert len(made) == 12 and os.getpid() not in made


def test_a_node_that_is_killed_loses_nothing(cluster: Any, engine: Any, tmp_path: Path) -> None:
    import ray

    node = cluster.add_node(num_cpus=1, object_store_memory=STORE)

    def kill() -> None:
        while sum(attempts(tmp_path, task) for task in range(2, 10)) < 3:  # until all three nodes are at work
            time.sleep(0.05)
        cluster.remove_node(node, allow_graceful=False)
        (tmp_path / "go").touch()

    killer = threading.Thread(target=kill)
    killer.start()
    made = list(engine.map(partial(Writer, tmp_path, wait_for_go), range(10)))
    killer.join()
    check_files(tmp_path, 10)
    assert len(made) == 10
    begun = [attempts(tmp_path, task) for task in range(10)]
    assert sorted(begun) == [1] * 9 + [2]  # the one that was lost with its node was done again
    assert sum(node["Alive"] for node in ray.nodes()) == 3


def test_a_task_that_kills_its_workers_is_given_up(engine: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task 1 of 4 was given to 3 workers, and each of them died"):
        list(engine.map(partial(Writer, tmp_path, always_die), range(4)))
    assert attempts(tmp_path, 1) == 3
    assert list(engine.map(partial(Writer, tmp_path, nothing), [7]))  # nothing holds the cluster's cores


def test_errors_of_workers_are_those_of_the_command(engine: Any, tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(UserError, match=r"^row 5, column prompt: empty$"):
        list(engine.map(Refusing, [5]))
    with pytest.raises(UserError, match=r"^node \S+ has no module a_module_that_nobody_has; install the same as here"):
        list(engine.map(Broken, [5]))
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setattr(Path, "cwd", lambda: gone)
    with pytest.raises(UserError, match=r"cannot work in .*gone .*all nodes need the same storage under the same path"):
        list(engine.map(Refusing, [5]))


def test_a_cluster_without_room_is_said(cluster: Any) -> None:
    settings = RaySettings(address=cluster.address, cpus=8, start_timeout=2)
    with open_engine("ray", settings) as engine, pytest.raises(UserError, match=r"no worker has started in \d+ s"):
        list(engine.map(Refusing, [5]))


def test_a_cluster_that_is_not_there_is_said() -> None:
    with (
        pytest.raises(UserError, match=r"^no Ray cluster at 127\.0\.0\.1:1 "),
        open_engine("ray", RaySettings(address="127.0.0.1:1")),
    ):
        pass


def test_the_commands_make_the_same_files_on_a_cluster(
    cluster: Any, files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    ray = ["--engine", "ray", "--ray.address", cluster.address]
    letters = ["--gold", "tests.tiny:letter_reward", "--reward_model", files["reward_model"]]
    short = {"num_completions": 3, "max_new_tokens": 6, "shard_size": 4}

    def shfcas(*arguments: str) -> None:
        assert main(list(arguments)) == 0, capsys.readouterr().err

    for name, engine in (("local", []), ("ray", ray)):
        folder = tmp_path / name
        folder.mkdir()
        sampling = [text for key, value in short.items() for text in (f"--sampling.{key}", str(value))]
        candidates, parts, queue = (str(folder / part) for part in ("c.parquet", "parts", "queue.jsonl"))
        asked = ["--policy", files["policy"], "--prompts", files["prompts"]]
        shfcas("sample", *asked, "--output", candidates, *sampling, *engine)
        # In several row groups, so that there is something to share.
        write_in_groups(candidates, folder / "groups.parquet")
        score = ["score", str(folder / "groups.parquet"), *letters[2:], "--shard_rows", "5"]
        shfcas(*score, "--output", parts, *engine)
        shfcas(*score, "--output", str(folder / "one.parquet"), *engine)
        shfcas("select", parts, "--output", queue, "--budget", "9", "--kendall_threshold", "q0.2", *engine)
        evaluation = [text.replace("--", "--evaluation.") for text in sampling]
        shfcas("evaluate", *asked, *letters, "--output", str(folder / "evaluation.parquet"), *evaluation, *engine)
    local = {p.relative_to(tmp_path / "local"): p for p in (tmp_path / "local").rglob("*") if p.is_file()}
    there = {p.relative_to(tmp_path / "ray"): p for p in (tmp_path / "ray").rglob("*") if p.is_file()}
    assert local.keys() == there.keys() and len([p for p in local if p.suffix == ".parquet"]) == 8
    for name, path in local.items():
        if name.name != "_score.json":  # names its inputs, and when they were changed
            assert path.read_bytes() == there[name].read_bytes(), name


def write_in_groups(source: str, path: Path) -> None:
    pq.write_table(pq.read_table(source), path, row_group_size=5)
