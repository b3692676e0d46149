"""How the page shows texts in a real browser: hostile, long and different ones, by keys and on narrow screens."""

import re
from dataclasses import replace

import pytest

from tests.support.people import make_items, side

pytestmark = pytest.mark.system


HOSTILE = {
    "<script>document.title = 'owned'; alert(1)</script>": None,
    "<img src=x onerror=alert(1)><svg onload=alert(2)><iframe srcdoc='<script>alert(3)</script>'>": None,
    "<style>body { display: none }</style><form action=//evil.example><base href=//evil.example>": None,
    "price \u202e001$\u202c, \u2066isolated\u2069": "price <U+202E>001$<U+202C>, <U+2066>isolated<U+2069>",
    "\x1b[31mred\x1b[0m\x07 nul \x00\x00\x00, half \ud83d, blank \u3164": "<U+001B>[31mred<U+001B>[0m<U+0007> nul "
    "<U+0000 ×3>, half <U+D83D>, blank <U+3164>",
    "two\r\nlines, \tand\r return": "two\nlines, \tand<U+000D> return",
    "".join(chr(0xE0000 + ord(letter)) for letter in "hi"): "<U+E0068><U+E0069>",
    "family \U0001f468\u200d\U0001f469\u200d\U0001f467, \u0645\u0631\u062d\u0628\u0627, می\u200cخواهم": None,
    "\u202e\u202d" * 30_000: "<U+202E><U+202D>" * 30_000,
    "line of a long answer\n" * 50_000: None,  # 1.1 MB
    "x" * 1_000_000: None,
    "one word after another " * 9_000: None,
    "": None,
}


def test_hostile_text_is_shown_whole_and_does_nothing(served, person):
    items = make_items(len(HOSTILE))
    items = [
        replace(
            item,
            first_text=text,
            second_text="a harmless answer",
            prompt=[{"role": "<b>root</b>", "content": text[:2000]}, {"role": "user", "content": "\u202egnp.exe"}],
        )
        for item, text in zip(items, HOSTILE, strict=True)
    ]
    run = served(items)
    ada = person()
    ada.begins(run.link("ada"))
    for text, expected in HOSTILE.items():
        hostile, other = ("#left", "#right") if ada.text("#right") == "a harmless answer" else ("#right", "#left")
        assert ada.text(hostile) == (text if expected is None else expected)
        assert ada.text(other) == "a harmless answer"
        ada.press("d")  # on and off in turn
        assert ada.text(hostile) == (text if expected is None else expected)
        assert ada.text("#prompt .role >> nth=0") == "<b>root</b>"
        assert "<U+202E>gnp.exe" in ada.text("#prompt")
        assert ada.at("#work :is(script, img, svg, iframe, style, form, base, a, b)").count() == 0
        assert ada.page.title() == "Which answer is better?"
        ada.answers("1")
    ada.status("Saved")
    assert len(run.log()) == len(HOSTILE)


def test_long_answers_scroll_in_their_panes(served, person):
    run = served(make_items(1, first_text="a line\n" * 300, second_text="another line\n" * 300))
    ada = person()
    ada.begins(run.link("ada"))
    assert ada.page.evaluate("document.documentElement.scrollHeight <= innerHeight")
    ada.press("ArrowDown", "ArrowDown", "Space")
    for pane in ("#left", "#right"):
        ada.page.wait_for_function("pane => document.querySelector(pane).scrollTop > 120", arg=pane)
    assert ada.at("#choices").is_visible()


def test_the_words_that_differ_are_those_outside_a_longest_common_subsequence(served, person):
    run = served(make_items(1))
    ada = person()
    ada.begins(run.link("ada"))
    cases = [
        ("", ""), ("a", ""), ("a b c", "a b c"), ("a b c d", "a x c d"), ("one two. three", "two three, four"),
        ("a b a b a b c", "b a b c a"), ("x y  z\n\nw", "y x w z"), ("深い海", "深い空"),
        ("don't stop", "don't you stop"),
    ]  # fmt: skip
    script = """async (cases) => {
        const { differences } = await import('/static/diff.js');
        const without = (text, ranges) => {
            let at = 0, kept = '';
            for (const [start, end] of ranges) { kept += text.slice(at, start) + ' '; at = end; }
            return (kept + text.slice(at)).match(/[\\p{L}]+|[^\\s]/gu) ?? [];
        };
        return cases.map(([a, b]) => {
            const found = differences(a, b);
            return [without(a, found.left), without(b, found.right), found.by];
        });
    }"""

    def longest(a: str, b: str) -> int:
        x, y = (re.findall(r"[぀-ヿ一-鿿]|\w+|[^\s]", text) for text in (a, b))
        table = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
        for i, one in enumerate(x):
            for j, other in enumerate(y):
                table[i + 1][j + 1] = table[i][j] + 1 if one == other else max(table[i][j + 1], table[i + 1][j])
        return table[-1][-1]

    for (a, b), (left, right, by) in zip(cases, ada.page.evaluate(script, cases), strict=True):
        assert "".join(left) == "".join(right)
        assert by == "words"
        if not any(ord(letter) > 0x3000 for letter in a):
            assert len(left) == longest(a, b), (a, b)
    long = [
        ["a b\n" * 3000 + "c d e\n" + "f\n" * 3000, "a b\n" * 3000 + "c X e\n" * 3 + "g f\n" * 3000],
        ["x " * 9000, "y " * 9000],
    ]
    assert [by for _, _, by in ada.page.evaluate(script, long)] == ["ends", "lines"]


def test_keys_can_be_turned_off(served, person):
    run = served(make_items(2))
    ada = person()
    ada.begins(run.link("ada"))
    ada.press("?")
    ada.at("#keys-on").uncheck()
    ada.closes("#keys")
    ada.press("1", "2", "t")
    ada.at("button", has_text="A better").click()
    ada.another(run.items[0].id)
    ada.status("Saved")
    assert [side(j) for j in run.log()] == ["left"]
    ada.page.reload()
    ada.works()
    assert not ada.at("#keys-on").is_checked()


@pytest.mark.parametrize("width", [360, 800, 1024])
def test_narrow_screens(served, person, width):
    run = served(make_items(4, first_text="word " * 400 + "unbroken" * 60))
    ada = person(viewport={"width": width, "height": 740}, has_touch=True, is_mobile=True)
    ada.begins(run.link("ada"))
    if width == 360:  # the links above the comparison fill one line
        lines = ada.page.evaluate(
            "[...document.querySelectorAll('#nav > *')].filter(e => e.checkVisibility())"
            ".map(e => e.getBoundingClientRect().top)"
        )
        assert len(lines) == 4 and len(set(lines)) == 1

    def fits(selector: str = "html") -> None:
        assert ada.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        for box, name in ada.page.evaluate(
            """selector => [...document.querySelector(selector).querySelectorAll('button, nav a')]
            .filter(each => each.checkVisibility()).map(each => [each.getBoundingClientRect(), each.textContent])""",
            selector,
        ):
            assert box["left"] >= 0 and box["right"] <= width, name
            assert box["height"] >= 44, name

    fits()
    for scrolled in (0, 10_000):
        ada.page.evaluate("top => scrollTo(0, top)", scrolled)
        boxes = [button.bounding_box() for button in ada.at(".choice").all()]
        assert all(box and box["y"] >= 0 and box["y"] + box["height"] <= 740 for box in boxes)
    ada.at("[data-choice=right][data-strength=clearly]").tap()
    ada.another(run.items[0].id)
    assert ada.page.evaluate("scrollY") == 0
    fits()
    ada.at("#flag-button").tap()
    ada.at("#comment").fill("cut off")
    fits()
    ada.at("#send-flag").tap()
    ada.another(run.items[1].id)
    ada.at("#undo").tap()
    ada.another(run.items[2].id)
    ada.at("#guidelines-button").tap()
    fits("#guidelines")
    ada.at("#close-guidelines").tap()
    ada.at("#why-button").tap()
    fits("#why")
    ada.closes("#why")
    ada.status("Saved")
    ada.page.goto(run.address + "dashboard")
    ada.at(".chart svg").first.wait_for()
    fits()
    assert [(side(j), j.strength) for j in run.log()] == [("right", "clearly"), ("flag", None), ("undo", None)]
