"""The report: one page with tables, plots and the conflicts' own texts, which are never markup."""

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from shfcas.cli import main
from shfcas.conflicts.columns import add_conflicts
from shfcas.data.candidates import CandidateTable, write_candidates
from shfcas.data.preferences import Preference, write_preferences
from shfcas.evaluation.metrics import summarize
from shfcas.feedback.gold import GoldFeedback
from shfcas.pipeline.config import RunConfig
from shfcas.pipeline.run_directory import RunDirectory
from shfcas.report import plots, write_report
from shfcas.report.training import write_training_report
from shfcas.rewards.metrics import pair_report
from shfcas.selection import SelectionConfig, select
from shfcas.utils.config import to_dict
from shfcas.utils.errors import UserError
from shfcas.utils.files import read_json, write_json, write_jsonl
from tests.support import tiny

HOSTILE = "<script>alert('e')</script><img src=x onerror=alert(1)> & \"quotes\""


def finished_run(folder: Path) -> Path:
    """A run directory as one round leaves it, its answers written by hand; every text in it is hostile."""
    config = RunConfig(policy=HOSTILE, reward_model="r", gold="g", prompts="p", eval_prompts="e")
    run = RunDirectory(folder, to_dict(config), seed=0)
    run.begin()
    rng = np.random.default_rng(0)
    rows = [
        {
            "prompt_id": f"p{k}",
            "prompt": f"prompt {k} {HOSTILE}",
            "completions": [f"answer {k}.{i} {HOSTILE}" + "e" * i for i in range(4)],
            "logprobs": rng.normal(size=4).tolist(),
            "rewards": rng.normal(size=4).tolist(),
            "num_tokens": [3] * 4,
            "finished": [True] * 4,
        }
        for k in range(8)
    ]
    table = add_conflicts(CandidateTable.from_rows(rows), "logprob")
    queue = select(table.rows(), SelectionConfig(strategy="random", budget=12))
    gold = [tiny.letter_reward(None, row["completions"]) for row in rows]
    groups = {"groups": {"food": {"pair_accuracy": 0.5}, "travel": {"pair_accuracy": 0.75}}, "pair_accuracy": 0.625}
    metrics = {**summarize(table, gold, gold), **groups}
    history = [
        {"rollout": k, "objective/scores": 0.1 * k, "objective/gold": 0.2 * k, "objective/kl": 0.3 * k}
        for k in range(3)
    ]
    run.stage("round-0/metrics.json", lambda c: write_json(c.output, metrics))
    run.stage("round-1/conflicts.parquet", lambda c: write_candidates(c.output, table))
    run.stage("round-1/queue.jsonl", lambda c: write_jsonl(c.output, [vars(q) for q in queue]))
    labels = GoldFeedback(tiny.letter_reward)(queue, table, 1)
    run.stage("round-1/preferences.jsonl", lambda c: write_preferences(c.output, labels))
    pairs = [Preference("p", "x", "y", source=source, round=k) for k, source in enumerate(("original", "gold"))] * 4
    held_out = pair_report(pairs, rng.normal(size=8).tolist(), rng.normal(size=8).tolist())
    run.stage("round-1/reward_model", lambda c: write_training_report(c.output, {"held_out": held_out}))
    run.stage("round-1/policy", lambda c: write_json(c.output / "history.json", history))
    run.stage("round-1/metrics.json", lambda c: write_json(c.output, metrics))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("a") / "my-run")


class Page(HTMLParser):
    """The tags and the text of a page as a browser takes them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def test_a_page_has_tables_plots_and_examples(run: Path) -> None:
    html = write_report(run).read_text()
    page = Page(html)
    assert (run / "report.html").exists() and page.count("html") == 1
    assert page.count("table") == 3
    assert all(f">{label}</td>" in html for label in ("round 0", "round 1"))  # a row each
    plots = [html[start : html.index("</svg>", start) + 6] for start in find_all(html, "<svg")]
    assert len(plots) == 5  # training, groups, calibration, scatter, histogram
    for plot in plots:
        assert len(list(ElementTree.fromstring(plot).iter())) > 50
    assert "12 comparisons" in page.text
    assert sum(a.get("class") == "example" for _, a in page.tags) == 8
    assert sum(a.get("class") == "answer preferred" for _, a in page.tags) == 8  # one of each two, as gold said
    assert "my-run" in page.text


def test_reward_models_are_measured_on_held_out_pairs(run: Path) -> None:
    html = write_report(run).read_text()
    held_out = read_json(run / "round-1" / "reward_model" / "training.json")["held_out"]
    groups = {"all": held_out["accuracy"], "gold": held_out["by_source"]["gold"], "round 1": held_out["by_round"]["1"]}
    for group, found in groups.items():
        cells = f"{found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]</td><td>{found['count']}</td>"
        assert f"<tr><td>round 1</td><td>{group}</td>\n<td>{cells}" in html
    plot = run / "round-1" / "reward_model" / "calibration.svg"
    assert len(list(ElementTree.parse(plot).iter())) > 50


def test_without_held_out_pairs_there_is_no_such_plot(tmp_path: Path) -> None:
    write_training_report(tmp_path, {"held_out": None})
    assert [path.name for path in tmp_path.iterdir()] == ["training.json"]


def test_rso_is_drawn_over_its_steps_and_best_of_n_not_at_all() -> None:
    rows = [{"rollout": 0, "objective/scores": 0.1, "rso/pairs": 8}]
    rows += [{"step": k, "loss": 0.7 - 0.1 * k, "rewards/accuracies": 0.5, "rewards/margins": 0.1} for k in range(1, 4)]
    assert "loss on pairs" in svg_text(plots.training_curves({"round 1": rows}))
    online = [{"rollout": k, "objective/scores": 0.1 * k} for k in range(3)]  # without a KL penalty there is no KL
    assert "reward (trained on)" in svg_text(plots.training_curves({"round 1": online}))
    assert plots.training_curves({}) == ""


def svg_text(svg: str) -> str:
    """The comments in which matplotlib keeps the text that it draws as paths."""
    return " ".join(re.findall(r"<!-- (.*?) -->", svg))


def find_all(text: str, part: str) -> list[int]:
    return [i for i in range(len(text)) if text.startswith(part, i)]


@pytest.mark.parametrize("arms", [("shf_cas",), ("random", "shf_cas")])
def test_the_demos_results_name_the_arms_that_were_asked(tmp_path: Path, arms: tuple[str, ...]) -> None:
    """People answer for SHF-CAS alone, so the demo has no labels of the random arm then."""
    run = finished_run(tmp_path / "demo")
    policy = {"policy": "base", **read_json(run / "round-1/metrics.json")}
    results = {
        "policies": [policy | {"pair_accuracy_by_topic": {"sound": 0.9, "blind": 0.1}}],
        "detection": {"kendall_finds_blind_topics": 0.7, "pacs_finds_wrong_answers": 0.6},
        "labels": {arm: {"comparisons": 12, "blind": 6, "share": 0.5} for arm in arms},
    }
    write_json(run / "results.json", results)
    text = " ".join(Page(write_report(run).read_text()).text.split())
    labels = "random 50 %, SHF-CAS 50 %." if "random" in arms else "SHF-CAS 50 %."
    assert f"Labels about blind topics: {labels}" in text


def test_hostile_text_is_shown_and_never_run(run: Path) -> None:
    html = write_report(run).read_text()
    page = Page(html)
    assert page.count("script") == page.count("img") == 0
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert html.count("&lt;script&gt;alert(&#39;e&#39;)&lt;/script&gt;") >= 3 * 8  # a prompt and two answers each
    assert page.text.count(HOSTILE) >= 3 * 8


def test_a_page_needs_nothing_from_elsewhere(run: Path) -> None:
    page = Page(write_report(run).read_text())
    assert page.count("link") == page.count("iframe") == 0
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert all(link.startswith("#") for link in links)


def test_the_same_run_gives_the_same_page(run: Path) -> None:
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_the_command_names_the_page(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["report", "--run", str(run)]) == 0
    assert capsys.readouterr().out == f"report: {run / 'report.html'}\n"


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.json does not exist"):
        write_report(tmp_path)
    RunDirectory(tmp_path / "new", {}, seed=0).begin()
    with pytest.raises(UserError, match="no stage has been evaluated yet"):
        write_report(tmp_path / "new")
