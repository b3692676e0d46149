"""The report: one page with tables, plots and the conflicts' own texts, which are never markup."""

import re
import warnings
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

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
from shfcas.report.conclusion import conclusion, describe, difference
from shfcas.report.training import write_training_report
from shfcas.rewards.metrics import pair_report
from shfcas.selection import SelectionConfig, select
from shfcas.utils.config import to_dict
from shfcas.utils.errors import UserError
from shfcas.utils.files import read_json, write_json, write_jsonl
from shfcas.utils.numbers import fixed, interval
from tests.support import tiny

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>alert('e')</script><img src=x onerror=alert(1)> & \"quotes\""


GROUPS = ["$x_1$", "旅行", "a & b <c>", "100 % $5"]


def finished_run(folder: Path, better: float = 1.0, gold_column: bool = True, pairs: int = 24, **values: Any) -> Path:
    """A run directory as one round leaves it, its answers written by hand; every text in it is hostile.

    Args:
        folder: the run directory.
        better: difference of the gold rewards after the round.
        gold_column: whether there are gold rewards.
        pairs: held-out pairs of the reward model.
        values: of the configuration.
    """
    names = {"policy": HOSTILE, "reward_model": "r", "gold": "g", "prompts": "p", "eval_prompts": "e", **values}
    config = RunConfig(**names)
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
    groups = {"groups": {name: {"pair_accuracy": 0.5} for name in GROUPS}, "pair_accuracy": 0.625}
    metrics = {**summarize(table, gold, gold), **groups}
    history = [
        {"rollout": k, "objective/scores": 0.1 * k, "objective/gold": 0.2 * k, "objective/kl": 0.3 * k}
        for k in range(3)
    ]
    noise = rng.normal(size=(2, 8, 4)) * 0.1
    for number, shift in enumerate((0.0, better)):
        rewards = (noise[number] + shift).tolist()
        scored = table.with_columns(rewards=rewards, **({"gold": rewards} if gold_column else {}))
        run.stage(f"round-{number}/evaluation.parquet", lambda c, scored=scored: write_candidates(c.output, scored))
    run.stage("round-0/metrics.json", lambda c: write_json(c.output, metrics))
    run.stage("round-1/conflicts.parquet", lambda c: write_candidates(c.output, table))
    run.stage("round-1/queue.jsonl", lambda c: write_jsonl(c.output, [vars(q) for q in queue]))
    labels = GoldFeedback(tiny.letter_reward)(queue, table, 1)
    run.stage("round-1/preferences.jsonl", lambda c: write_preferences(c.output, labels))
    known = [Preference("p", "x", "y", source=s, round=k) for k, s in enumerate(("original", "gold"))] * (pairs // 2)
    held_out = pair_report(known, rng.normal(size=pairs).tolist(), rng.normal(size=pairs).tolist())
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
    assert page.count("table") == 5  # labels, policies, reward models, diagnosis, stages
    assert all(f">{label}</td>" in html for label in ("round 0", "round 1"))  # a row each
    plots = [html[start : html.index("</svg>", start) + 6] for start in find_all(html, "<svg")]
    assert len(plots) == 6  # training, groups, calibration, diagnosis, scatter, histogram
    for plot in plots:
        assert len(list(ElementTree.fromstring(plot).iter())) > 50
    assert "12 comparisons" in page.text
    assert sum(a.get("class") == "example" for _, a in page.tags) == 8
    assert sum(a.get("class") == "answer preferred" for _, a in page.tags) == 8  # one of each two, as gold said
    assert "my-run" in page.text


@pytest.mark.parametrize(
    ("better", "sentence"),
    [
        (1.0, r"0\.9\d\d \[0\.\d+, 1\.\d+\] higher than the base policy's"),
        (-1.0, r"1\.0\d\d \[0\.\d+, 1\.\d+\] lower than the base policy's"),
        (0.0, r"not distinguishable from the base policy's: difference -0\.0\d\d \[-0\.\d+, \+0\.\d+\]"),
    ],
)
def test_the_conclusion_compares_with_the_base(better: float, sentence: str, tmp_path: Path) -> None:
    found = conclusion_of(finished_run(tmp_path / "run", better=better))
    start, end = "After round 1, the policy's gold reward is", r"\(95 %, paired over 8 held-out prompts\)\."
    assert re.fullmatch(f"{start} {sentence} {end}", found["sentences"][0])
    assert len(found["sentences"]) == 1 and found["minutes"] == 1.5 and found["judge"] is None
    assert found["labels"] == [{"name": "round 1", "asked": 12, "answered": 12, "ties": 0, "budget": 100}]


def test_the_page_opens_with_the_conclusion(run: Path) -> None:
    html = write_report(run).read_text()
    start = html.index('<section class="conclusion">')
    assert html.index("<h1>") < start < html.index("<h2>")
    text = " ".join(Page(html[start : html.index("</section>", start)].replace("><", "> <")).text.split())
    assert text.startswith("After round 1, the policy's gold reward is ")
    assert text.endswith("labels asked answered ties budget round 1 12 12 0 100 All stages took 0.0 minutes.")


def test_the_conclusion_without_gold_rewards_says_what_it_rests_on(tmp_path: Path) -> None:
    first, second = conclusion_of(finished_run(tmp_path / "run", gold_column=False))["sentences"]
    assert "the policy's proxy reward is 0.9" in first and "no evidence of better answers" in second


def test_the_difference_is_paired_by_prompt() -> None:
    def answers(gold: dict[str, list[float]]) -> CandidateTable:
        return CandidateTable.from_rows(
            [{"prompt_id": name, "prompt": "q", "completions": ["x"] * 2, "gold": g} for name, g in gold.items()]
        )

    before = answers({"a": [0.0, 2.0], "b": [10.0, 10.0], "gone": [0.0, 0.0]})
    after = answers({"b": [10.5, 10.5], "a": [1.0, 2.0]})
    found = difference(before, after, "gold")
    assert found == {"mean": 0.5, "low": 0.5, "high": 0.5, "prompts": 2, "distinguishable": True}
    same = difference(before, before, "gold")
    assert same is not None and not same["distinguishable"]
    assert describe("round 1", same, "gold reward").endswith(
        "difference +0.000 [+0.000, +0.000] (95 %, paired over 3 held-out prompts)."
    )
    assert difference(before, answers({"new": [0.0, 0.0]}), "gold") is None
    assert difference(before, after, "rewards") is None


def test_the_cost_of_a_language_model_is_added_up(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", feedback="judge")
    judge = {"ties": 1, "order_disagreements": 2, "input_tokens": 1000, "output_tokens": 234, "cost": 0.5}
    write_json(run / "round-1" / "judge.json", judge)
    labelled = len((run / "round-1" / "preferences.jsonl").read_text().splitlines())
    found = conclusion_of(run)
    assert (found["labels"][0]["answered"], found["labels"][0]["ties"]) == (labelled + 3, 3)
    assert found["judge"] == {"cost": 0.5, "tokens": 1234}
    assert "used 1,234 tokens;\nits cost is 0.5." in write_report(run).read_text()
    write_json(run / "round-1" / "win_rate.json", {"report": {**judge, "cost": None}})
    assert conclusion_of(run)["judge"] == {"cost": None, "tokens": 2468}


def test_a_calibration_curve_takes_twenty_pairs(tmp_path: Path) -> None:
    for pairs in (18, 20):
        run = finished_run(tmp_path / str(pairs), pairs=pairs)
        html = write_report(run).read_text()
        assert ("No calibration curve: it takes at least 20 held-out pairs" in html) == (pairs < 20)
        assert (run / "round-1" / "reward_model" / "calibration.svg").exists() == (pairs == 20)


def test_names_are_drawn_as_they_are_written(run: Path) -> None:
    """A dollar is no formula, and other letters need no font of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot = plots.accuracy_by_group({"round $0$": {name: {"pair_accuracy": 0.5} for name in GROUPS}})
    drawn = [element.text for element in ElementTree.fromstring(plot).iter(f"{SVG}text")]
    assert {*GROUPS, "round $0$"} <= set(drawn)
    text = Page(write_report(run).read_text()).text
    assert all(name in text for name in GROUPS)


def test_names_with_control_characters_leave_a_valid_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plots.plt.rcParams, "text.usetex", False)
    names = [
        "\x1b[31mred",
        "nul\x00",
        "$\\frac{1}{",
        "\\input{/etc/passwd}",
        "two\nlines",
        "\x9b\x07\x08",
        "x" * 500,
        "_",
        "",
    ]
    plot = plots.accuracy_by_group({"round": {name: {"pair_accuracy": 0.5} for name in names}})
    drawn = " ".join(element.text or "" for element in ElementTree.fromstring(plot).iter(f"{SVG}text"))
    assert "\ufffd[31mred" in drawn and "$\\frac{1}{" in drawn and "\\input{/etc/passwd}" in drawn


def test_no_number_is_minus_zero(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    for name in ("round-0/metrics.json", "round-1/metrics.json"):
        metrics = read_json(run / name)
        tiny_number = {"mean": -1e-9, "low": -1e-9, "high": -1e-9}
        write_json(run / name, {**metrics, "kl": -1e-9, "gold_reward": tiny_number, "proxy_reward": tiny_number})
    text = Page(write_report(run).read_text()).text
    assert "0.00" in text and not re.search(r"-0\.0+\b", text)
    assert [fixed(x, 2) for x in (-0.0, -0.001, 0.005, None, float("nan"))] == ["0.00", "0.00", "0.01", "-", "-"]
    assert fixed(-0.001, 2, sign=True) == "+0.00" and interval(None) == interval({"value": None}) == "-"


@pytest.mark.parametrize(
    "content", ["[]", "null", "{}", '{"stages": []}', '{"stages": {"a": []}, "config": {}, "versions": {}}']
)
def test_a_manifest_that_is_none_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json: expected .*; restore the file"):
        write_report(tmp_path)


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
    steps = [{"step": k, "loss": 0.7 - 0.1 * k, "rewards/accuracies": 0.5, "rewards/margins": 0.1} for k in range(1, 4)]
    for name in ("rso/pairs", "dpo/pairs"):
        rows = [{"rollout": 0, "objective/scores": 0.1, name: 8}, *steps]
        assert "loss on pairs" in svg_text(plots.training_curves({"round 1": rows}))
    online = [{"rollout": k, "objective/scores": 0.1 * k} for k in range(3)]  # without a KL penalty there is no KL
    assert "reward (trained on)" in svg_text(plots.training_curves({"round 1": online}))
    assert plots.training_curves({}) == ""


def svg_text(svg: str) -> str:
    """The text in a plot."""
    return " ".join(element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text"))


def conclusion_of(run: Path) -> dict[str, Any]:
    manifest = read_json(run / "manifest.json")
    return conclusion(run, manifest["config"], list(manifest["stages"]), 90.0)


def find_all(text: str, part: str) -> list[int]:
    return [i for i in range(len(text)) if text.startswith(part, i)]


def test_the_demos_results_are_a_section_with_the_conclusion(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "demo")
    interval = {"mean": 0.25, "low": 0.125, "high": 0.5}
    results = {
        "policies": [{"policy": "base", **read_json(run / "round-1/metrics.json")}],
        "conclusion": ["Conflicts find the blind topics.", "The policies are alike."],
        "scores": [{"name": "log-probability", "correlation": interval, "finds_blind": {**interval, "value": 0.75}}],
        "reward_models": [{"arm": "biased proxy", "all": interval, "sound": interval, "blind": interval}],
    }
    write_json(run / "results.json", results)
    (run / "labels.svg").write_text("<svg><title>accuracy against labels</title></svg>", encoding="utf-8")
    html = write_report(run).read_text()
    text = " ".join(Page(html).text.split())
    assert "Conflicts find the blind topics. The policies are alike." in text
    table = text.replace(" ", "")
    assert "log-probability0.250[0.125,0.500]0.75[0.12,0.50]" in table
    assert "biasedproxy0.250[0.125,0.500]" in table
    assert "<title>accuracy against labels</title>" in html


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
    for words in ([str(run)], ["--run", str(run)]):
        assert main(["report", *words]) == 0
        assert capsys.readouterr().out == f"report: {run / 'report.html'}\n"
    assert main(["report", str(run), str(run)]) == 2
    assert "expected one run directory" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.json does not exist"):
        write_report(tmp_path)
    RunDirectory(tmp_path / "new", {}, seed=0).begin()
    with pytest.raises(UserError, match="no stage has been evaluated yet"):
        write_report(tmp_path / "new")
