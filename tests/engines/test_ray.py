"""A Ray cluster of several nodes on this machine: the same results as one process, whoever dies on the way."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from shfcas.cli import main
from shfcas.data import candidates
from shfcas.engines import RayConfig, open_engine
from shfcas.utils.errors import UserError
from shfcas.utils.files import write_json
from tests.support import tiny
from tests.support.ray_workers import Broken, Refusing, Writer, always_die, die_once, nothing, wait_for_go

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
pytest.importorskip("ray")
pytestmark = pytest.mark.system
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
    with open_engine("ray", RayConfig(address=cluster.address, retries=2, start_timeout=300)) as engine:
        yield engine


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])  # where workers find tests.support.tiny, too


@pytest.fixture(scope="module")
def files(tiny_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("files")
    prompts = {"prompts": tiny.write_lines(folder / "prompts.jsonl", tiny.prompts(20, chat=False))}
    return {**tiny_models, **prompts, "folder": str(folder)}


def check_files(folder: Path, count: int) -> None:
    """Every task has its whole file, once."""
    assert {p.name for p in folder.glob("task-*")} == {f"task-{task}" for task in range(count)}
    assert all(p.read_text() == f"all of {p.name[5:]}" for p in folder.glob("task-*"))


def is_alive(process: int) -> bool:
    return Path(f"/proc/{process}/exe").exists()  # a zombie has none


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
    node = cluster.add_node(num_cpus=1, object_store_memory=STORE)

    def wait_while(condition: Callable[[], bool]) -> None:
        until = time.monotonic() + 300
        while condition() and time.monotonic() < until:
            time.sleep(0.05)

    def kill() -> None:
        try:
            wait_while(lambda: sum(attempts(tmp_path, task) for task in range(2, 10)) < 3)  # all nodes are at work
            at_work = {int(p.name.rpartition("-")[2]) for p in tmp_path.glob("attempt-*")}
            cluster.remove_node(node, allow_graceful=False)
            wait_while(lambda: all(map(is_alive, at_work)))  # a worker may outlive its node for a moment
        finally:
            (tmp_path / "go").touch()  # or the test would never end

    killer = threading.Thread(target=kill)
    killer.start()
    made = list(engine.map(partial(Writer, tmp_path, wait_for_go), range(10)))
    killer.join()
    check_files(tmp_path, 10)
    assert len(made) == 10
    begun = [attempts(tmp_path, task) for task in range(10)]
    assert sorted(begun) == [1] * 9 + [2]  # the one that was lost with its node was done again


def test_a_task_that_kills_its_workers_is_given_up(engine: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task 1 of 4 ran on 3 workers, and each of them died"):
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
    settings = RayConfig(address=cluster.address, cpus=8, start_timeout=2)
    with open_engine("ray", settings) as engine, pytest.raises(UserError, match=r"no worker has started in \d+ s"):
        list(engine.map(Refusing, [5]))


def test_a_cluster_that_is_not_there_is_said() -> None:
    with (
        pytest.raises(UserError, match=r"^no Ray cluster at 127\.0\.0\.1:1 "),
        open_engine("ray", RayConfig(address="127.0.0.1:1")),
    ):
        pass


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As Ray's workers have here: with another number, the last digits may differ."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def shfcas(*arguments: str) -> None:
    assert main(list(arguments)) == 0


def check_same(one: Path, other: Path, parquet: int) -> None:
    """Both folders hold the same files, to the byte, and so many tables among them."""
    files = {p.relative_to(one): p for p in one.rglob("*") if p.is_file()}
    others = {p.relative_to(other): p for p in other.rglob("*") if p.is_file()}
    assert files.keys() == others.keys() and len([p for p in files if p.suffix == ".parquet"]) == parquet
    for name, path in files.items():
        if name.name != "_score.json":  # names its inputs, and when they were changed
            assert path.read_bytes() == others[name].read_bytes(), name


@pytest.fixture
def commands(files: dict[str, str], cluster: Any) -> dict[str, list[str]]:
    """Flags that several commands share."""
    return {
        "ask": ["--policy", files["policy"], "--prompts", files["prompts"]],
        "sampling": ["--sampling.num_completions", "3", "--sampling.max_new_tokens", "6", "--sampling.shard_size", "4"],
        "local": [],
        "ray": ["--engine", "ray", "--ray.address", cluster.address],
    }


def test_sample_score_and_select_make_the_same_files(
    commands: dict[str, list[str]], files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "GROUP_ROWS", 5)  # so that 20 prompts are something to share
    for engine in ("local", "ray"):
        folder = tmp_path / engine
        sampled, parts, queue = (str(folder / name) for name in ("c.parquet", "parts", "q.jsonl"))
        shfcas("sample", *commands["ask"], "--output", sampled, *commands["sampling"], *commands[engine])
        scoring = [sampled, "--reward_model", files["reward_model"], "--shard_rows", "5", "--output", parts]
        shfcas("score", *scoring, *commands[engine])
        selecting = [parts, "--output", queue, "--budget", "9", "--kendall_threshold", "q0.2"]
        shfcas("select", *selecting, *commands[engine])
    check_same(tmp_path / "local", tmp_path / "ray", parquet=5)


@pytest.mark.slow
def test_evaluate_makes_the_same_files(commands: dict[str, list[str]], files: dict[str, str], tmp_path: Path) -> None:
    sampling = [text.replace("--", "--evaluation.") for text in commands["sampling"]]
    rewards = [
        "--gold",
        "tests.support.tiny:letter_reward",
        "--reward_model",
        files["reward_model"],
        "--best_of_n",
        "2",
    ]
    for engine in ("local", "ray"):
        output = ["--output", str(tmp_path / engine / "evaluation.parquet")]
        shfcas("evaluate", *commands["ask"], *rewards, *output, *sampling, *commands[engine])
    check_same(tmp_path / "local", tmp_path / "ray", parquet=1)


@pytest.mark.slow
def test_a_run_makes_the_same_files_and_may_change_its_engine(
    commands: dict[str, list[str]], files: dict[str, str], tmp_path: Path
) -> None:
    short = {"num_completions": 4, "temperature": 1.0, "max_new_tokens": 6, "shard_size": 4}
    held_out = [{"prompt": f"how was the {thing}?"} for thing in ("match", "phone", "night", "day", "film")]
    config = {
        "policy": files["policy"],
        "reward_model": files["reward_model"],
        "gold": "tests.support.tiny:letter_reward",
        "prompts": files["prompts"],
        "eval_prompts": tiny.write_lines(tmp_path / "held_out.jsonl", held_out),
        "sampling": short,
        "selection": {"budget": 4, "kendall_threshold": "q0", "pacs_threshold": "q0.1"},
        "reward": {"num_train_epochs": 1, "learning_rate": 1e-3},
        "rl": {"algorithm": "best_of_n", "best_of_n": {"n": 2}},
        "evaluation": {"sampling": short},
    }
    write_json(tmp_path / "run.yaml", config)  # which is YAML, too
    for engine in ("local", "ray"):
        shfcas("run", str(tmp_path / "run.yaml"), "--output", str(tmp_path / engine), *commands[engine])
    names = [f"round-{k}/evaluation{kind}.parquet" for k in (0, 1) for kind in ("", "_candidates")]
    names += [f"round-1/{name}" for name in ("candidates.parquet", "conflicts.parquet", "queue.jsonl")]
    names += ["round-1/preferences.jsonl", "round-1/metrics.json"]
    for name in names:
        assert (tmp_path / "local" / name).read_bytes() == (tmp_path / "ray" / name).read_bytes(), name
    shfcas("run", str(tmp_path / "run.yaml"), "--output", str(tmp_path / "local"), *commands["ray"])
