"""The page for those who listen, who see little, who use a keyboard; and the dashboard's numbers."""

import itertools
import re

import pytest

from tests.support.people import Person, make_items

pytestmark = pytest.mark.system

NAMED = {"button", "link", "textbox", "checkbox", "region", "progressbar", "dialog", "img", "navigation"}

# The contrast of each visible text with what is behind it, by WCAG 2.
CONTRASTS = """() => {
    const numbers = (colour) => (colour.match(/[\\d.]+/g) ?? []).map(Number);
    const luminance = ([r, g, b]) => {
        const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        const [x, y, z] = [r, g, b].map((v) => linear(v / 255));
        return 0.2126 * x + 0.7152 * y + 0.0722 * z;
    };
    const ground = (element) => {
        for (let each = element; each; each = each.parentElement) {
            const style = getComputedStyle(each);
            const image = style.backgroundImage.match(/rgb\\([^)]*\\)/);
            if (image) return numbers(image[0]);
            const colour = numbers(style.backgroundColor);
            if (colour.length === 3) return colour;
        }
        return [255, 255, 255];
    };
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest('noscript')) continue;
        const style = getComputedStyle(element);
        const ink = numbers(element.closest('svg') ? style.fill : style.color);
        const [one, other] = [ink, ground(element)].map(luminance);
        const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        found.push([walker.currentNode.data.trim(), contrast]);
    }
    return found;
}"""


def check_names(ada: Person) -> None:
    """Chromium computes what a screen reader would say; everything that can be used has a name, and ids are unique."""
    session = ada.context.new_cdp_session(ada.page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    roles = [
        (node["role"]["value"], node.get("name", {}).get("value", "").strip())
        for node in nodes
        if not node["ignored"] and "role" in node
    ]
    assert [role for role, name in roles if role in NAMED and not name] == []
    if "dialog" not in dict(roles):  # which hides the rest
        assert {"banner", "main", "heading"} <= {role for role, _ in roles}
    ids = ada.page.evaluate("[...document.querySelectorAll('[id]')].map(each => each.id)")
    assert len(ids) == len(set(ids))
    levels = ada.page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3')].filter(h => h.checkVisibility()).map(h => +h.localName[1])"
    )
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def check_contrasts(ada: Person) -> None:
    found = ada.page.evaluate(CONTRASTS)
    assert found
    assert [(text, round(contrast, 2)) for text, contrast in found if contrast < 4.5] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_a_name_and_contrast(served, person, scheme):
    run = served(make_items(8, second_text="with \u202e mark"), overlap=2)
    ada = person(color_scheme=scheme)
    ada.page.goto(run.address)
    ada.at("#sign-in").wait_for()
    check_names(ada)
    check_contrasts(ada)
    ada.begins(run.link("ada"))
    ground = ada.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 200) == (scheme == "dark")
    ada.answers("1")
    ada.answers("2")
    ada.press("d", "g", "f")
    ada.at("#guidelines").wait_for()
    check_names(ada)
    check_contrasts(ada)
    ada.press("Escape", "g", "?")
    check_names(ada)
    check_contrasts(ada)
    ada.closes("#keys")
    ada.press("w")
    ada.at("#why").wait_for()
    check_contrasts(ada)
    ada.closes("#why")
    ada.context.set_offline(True)
    ada.status("Offline")
    check_contrasts(ada)
    ada.context.set_offline(False)
    ada.status("Saved")
    ada.page.goto(run.address + "dashboard")
    ada.at(".chart svg").first.wait_for()
    check_names(ada)
    check_contrasts(ada)
    ada.page.goto(run.address + "guidelines")
    check_names(ada)


def test_the_focus_goes_round_and_is_seen(served, person):
    run = served(make_items(2))
    ada = person(reduced_motion="reduce")
    ada.begins(run.link("ada"))
    assert ada.page.evaluate("document.activeElement.id") == "heading"
    reached = []
    for _ in range(40):
        ada.press("Tab")
        name, outline = ada.page.evaluate(
            """() => {
                const e = document.activeElement, style = getComputedStyle(e);
                const name = e.id || `choose ${e.dataset.choice} ${e.dataset.strength ?? ''}`.trim();
                return [name, style.outlineStyle + parseFloat(style.outlineWidth)];
            }"""
        )
        if name in reached or ada.page.evaluate("document.activeElement === document.body"):
            break
        reached.append(name)
        assert outline == "solid3", name
    order = ["differences", "fixed", "prompt", "left", "right", "choose left clearly", "choose tie", "comment-button"]
    assert [name for name in reached if name in order] == order
    assert ada.page.evaluate("getComputedStyle(document.querySelector('.choice')).transitionDuration") == "0s"

    ada.at("[data-choice=tie]").focus()
    ada.answers("Enter")
    assert ada.page.evaluate("document.activeElement.id") == "heading"
    assert ada.text("#last p").split() == ["Last", "answer:", "tie"]
    assert ada.at("#status").get_attribute("role") == "status"


def test_the_dashboard_shows_the_numbers_of_the_report(served, person):
    run = served(make_items(6), overlap=2)
    ada, ben = person(), person()
    for name, each, keys in (("ada", ada, "11tt2s"), ("ben", ben, "11t1b1")):
        each.begins(run.link(name))
        for key in keys:
            each.answers(key)
        each.status("Saved")
    ada.at("a", has_text="Dashboard").click()
    ada.at(".chart svg").first.wait_for()
    numbers = ada.page.evaluate("fetch('/api/dashboard').then(each => each.json())")
    report = numbers["report"]
    figures = ada.at(".figures dd:nth-of-type(1)").all_inner_texts()
    assert figures[:3] == [str(numbers["progress"]["settled"]), str(numbers["progress"]["answers"]), "2"]
    assert figures[3] == f"{report['alpha']:.2f}".replace("-", "−")
    rows = [row.split("\t") for row in ada.at("section[aria-label=People] tbody tr").all_inner_texts()]
    assert [(row[0], row[1], row[2]) for row in rows] == [("ada", "5", "1"), ("ben", "6", "0")]
    pair = ada.at("section[aria-label=Agreement] tbody tr").inner_text().split("\t")
    assert pair[:2] == ["ada and ben", "5"]
    assert pair[3] == f"{report['pairs'][0]['kappa']:.2f}".replace("-", "−")
    ada.at("summary").nth(1).click()
    counts = dict(row.split("\t") for row in ada.at("section[aria-label=Answers] tbody tr").all_inner_texts())
    assert counts == {
        "First": str(report["labels"]["first"]),
        "Second": str(report["labels"]["second"]),
        "Tie": "3",
        "Both bad": "1",
        "Skipped": "1",
        "Flagged": "0",
    }
    assert ada.at("svg .bar").count() == 12
    assert ada.at("svg .curve").count() == 1
