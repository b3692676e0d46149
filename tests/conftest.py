"""Fixtures for all tests: tiny models, and the same random numbers and one thread for each.

The tests of the ops run without the model libraries too, so these are imported inside the fixtures.
"""

import gc
import os

# Before torch is imported; processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import contextlib
import logging
import signal
import sys
from collections.abc import Iterator

import pytest
import torch

# A shell starts its background jobs with SIGINT ignored, and nohup ignores SIGHUP. Processes that tests signal would
# inherit that; with a handler here, they start with the default.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: None)

with contextlib.suppress(ModuleNotFoundError):
    from hypothesis import settings

    # `quick` tries the same examples in every run; `--hypothesis-profile thorough` searches for new ones.
    settings.register_profile("quick", max_examples=25, deadline=None, derandomize=True, database=None)
    settings.register_profile("thorough", max_examples=250, deadline=None, print_blob=True)
    settings.load_profile("quick")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("needs_cuda"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def quick_collections() -> Iterator[None]:
    """Leave what was imported out of garbage collection: trainers start it often, and it would take a second each."""
    known = 0

    def freeze(phase: str, facts: dict[str, int]) -> None:
        nonlocal known
        if phase == "stop" and facts["generation"] == 2 and len(sys.modules) > known + 100:
            gc.freeze()
            known = len(sys.modules)

    gc.callbacks.append(freeze)
    gc.collect()
    yield
    gc.callbacks.remove(freeze)


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    """Undo what a command does to the loggers: it sends their records to a stderr that ends with the test."""
    loggers = logging.getLogger(), logging.getLogger("shfcas")
    before = [(logger.handlers[:], logger.level) for logger in loggers]
    yield
    for logger, (handlers, level) in zip(loggers, before, strict=True):
        logger.handlers[:] = handlers
        logger.setLevel(level)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Folders of a policy, a reference and a reward model, to read; a test that changes one copies it first."""
    from shfcas.utils.files import content_hash
    from tests.support import tiny

    folder = tmp_path_factory.mktemp("tiny-models")
    names = tiny.write_models(folder)
    before = content_hash(folder)
    yield names
    assert content_hash(folder) == before, f"a test changed the shared models in {folder}: let it copy them first"


@pytest.fixture(scope="session")
def policy(tiny_models: dict[str, str]) -> str:
    """The folder of a tiny policy, to read."""
    return tiny_models["policy"]


@pytest.fixture(scope="session")
def reward_model(tiny_models: dict[str, str]) -> str:
    """The folder of a tiny reward model, to read."""
    return tiny_models["reward_model"]
