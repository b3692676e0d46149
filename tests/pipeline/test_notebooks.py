"""The notebooks in examples/notebooks run from top to bottom, on tiny models."""

import ast
import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pytest

from shfcas.feedback import ask as asking
from tests.support import notebooks
from tests.support.page_client import Client, answer_all

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
FIRST, SECOND, THIRD = PATHS


@pytest.fixture(autouse=True)
def no_windows() -> Iterator[None]:
    import matplotlib.pyplot as plt

    matplotlib.use("Agg")
    yield
    plt.close("all")


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_in_the_common_format(path: Path) -> None:
    book = json.loads(path.read_text(encoding="utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5) and path.stat().st_size < 20_000
    cells = book["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert cells[0]["cell_type"] == "markdown" and cells[0]["source"][0].startswith("# ")
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            ast.parse(source)  # no commands of Jupyter's own, which need Jupyter
        for link in re.findall(r"\]\(([\w./-]+)\)", source) if cell["cell_type"] == "markdown" else []:
            assert (FOLDER / link).exists(), link


def test_conflicts_in_five_minutes(capsys: pytest.CaptureFixture[str]) -> None:
    names = notebooks.run(FIRST, {})
    assert names["area"] > 0.7 and len(names["chosen"]) == 40
    assert names["about_blind"] > 2 * 40 / 4  # far more than at random
    assert "AUROC" in capsys.readouterr().out and names["axes"].get_legend()


def test_your_own_reward_model_and_annotators(
    tiny_models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(asking, "POLL", 0.01)
    people: list[threading.Thread] = []

    def someone_answers(names: notebooks.Names) -> None:
        address, _, token = names["asked"].links["annotator"].partition("#token=")

        def answer() -> None:
            client = Client(address)
            client.sign_in(token)
            answer_all(client)

        people.append(threading.Thread(target=answer))
        people[-1].start()

    parameters = {
        "policy": tiny_models["policy"],
        "backbone": tiny_models["reward_model"],
        "folder": str(tmp_path / "labels"),
        "max_new_tokens": 6,
        "topics": ["bread", "trains", "chess", "rain", "tea"],
    }
    try:
        names = notebooks.run(SECOND, parameters, {"asks": someone_answers})
    finally:
        for person in people:
            person.join()
        asking._close_all()
    assert [judgement.choice in ("a", "b") for judgement in names["judged"]] == [True] * len(names["pairs"])
    assert names["metrics"]["pairs"] == len(names["preferences"]) == len(names["pairs"]) > 0
    assert (names["work"] / "reward" / "model.safetensors").exists()
    assert "accuracy on them" in capsys.readouterr().out
    shutil.rmtree(names["work"])


def test_reading_a_report(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "report.html").unlink()
    names = notebooks.run(THIRD, {"run": str(run)})
    printed = capsys.readouterr().out
    assert "gold reward minus round 0: " in printed and "held-out pairs" in printed and "pass  head" in printed
    assert names["last"]["round"] == 1 and (run / "report.html").exists()


def test_every_notebook_is_run_and_in_the_list() -> None:
    listed = re.findall(r"\(([\w-]+\.ipynb)\)", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert listed == [path.name for path in PATHS] and len(PATHS) == 3
