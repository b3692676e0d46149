"""Take the screenshots for docs/annotate.md: `python -m docs._make.screenshots`.

A real page is served from a temporary folder and opened in chromium. Inter and Charis SIL are used if they are
installed (on Debian: fonts-inter, fonts-sil-charis).
"""

import datetime
import io
import random
import tempfile
import uuid
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from docs._make import comparisons
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.schema import Item, Judgement
from shfcas.feedback.annotation.store import Store
from shfcas.feedback.web.annotators import add_annotators
from shfcas.feedback.web.server import serve
from tests.support.chromium import ARGUMENTS, executable

PLOTS = Path(__file__).parents[1] / "plots"
PEOPLE = {"ada": 0.95, "ben": 0.8, "cleo": 0.9, "dora": 0.9}  # how often each gives the right answer
WIDE, PHONE = (1280, 800), (360, 780)
MOST_BYTES = 150_000


def main() -> None:
    """Take all screenshots."""
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        (folder / "guidelines.md").write_text(comparisons.GUIDELINES, encoding="utf-8")
        items = comparisons.items(300)
        with Store(folder / "feedback.sqlite") as store:
            store.add_queue(items, seed=4)
            store.record_all(answers(items))
        add_annotators(folder, list(PEOPLE))
        settings = HumanConfig(overlap=2, repeat_share=0, port=0, guidelines=str(folder / "guidelines.md"))
        browser = playwright.chromium.launch(executable_path=executable(), args=ARGUMENTS)
        with serve(folder, settings) as page:
            link = page.links["dora"]
            take(browser, link, "light", WIDE, keys="d")
            take(browser, link, "dark", WIDE, "dark", keys="d")
            take(browser, link, "phone", PHONE)
            take(browser, link, "guidelines", WIDE, keys="g")
            take(browser, link, "dashboard", WIDE, path="dashboard")
            take(browser, link, "why", WIDE, keys="1w")  # last, because it answers
        browser.close()


def take(
    browser: Browser, link: str, name: str, size: tuple[int, int], scheme: Any = "light", keys: str = "", path: str = ""
) -> None:
    """Take one screenshot, after some keys."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme=scheme,
        device_scale_factor=1.5,
        has_touch=size == PHONE,
        is_mobile=size == PHONE,
    )
    page = context.new_page()
    page.goto(link)
    page.locator("#work[data-item]").wait_for()
    for key in keys:
        page.keyboard.press(key)
    if path:
        page.goto(link.partition("#")[0] + path)
        page.locator(".chart svg").first.wait_for()
    else:
        page.locator("#status", has_text="Saved").wait_for()
    page.wait_for_timeout(300)
    save(page, PLOTS / f"annotate-{name}.png", full=bool(path))
    context.close()


def save(page: Page, path: Path, full: bool) -> None:
    """Save a screenshot with 256 colours, which is enough for text."""
    picture = Image.open(io.BytesIO(page.screenshot(full_page=full))).convert("RGB")
    picture.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(path, optimize=True)
    size = path.stat().st_size
    print(f"{path.name}: {picture.width} x {picture.height}, {size:,} bytes")
    assert size < MOST_BYTES, f"{path} is too large for a repository"


def answers(items: list[Item]) -> list[Judgement]:
    """Return the answers of four people in an afternoon; the comparison about basil is left open for the pictures."""
    rng = random.Random(3)
    now = datetime.datetime(2026, 11, 20, 13, 0, tzinfo=datetime.UTC)
    times = dict.fromkeys(PEOPLE, now)
    log: list[Judgement] = []

    def answer(item: Item, name: str, left: str, truth: str, repeat: bool = False) -> None:
        seconds = rng.lognormvariate(3.2, 0.5)
        times[name] += datetime.timedelta(seconds=seconds + 2)
        if rng.random() < 0.02:
            times[name] += datetime.timedelta(minutes=rng.uniform(5, 25))
        choice = truth if rng.random() < PEOPLE[name] else rng.choice(["first", "second", "tie", "both_bad", "skip"])
        log.append(
            Judgement(
                id=str(uuid.UUID(int=rng.getrandbits(128))),
                item=item.id,
                annotator=name,
                choice=choice,
                left=left,
                strength=rng.choice(["slightly", "clearly", None]) if choice in ("first", "second") else None,
                seconds=round(seconds, 1),
                repeat=repeat,
                time=times[name].isoformat(),
            )
        )

    for position, item in enumerate(items[1:231]):
        truth = rng.choices(["first", "second", "tie", "both_bad"], [0.42, 0.42, 0.1, 0.06])[0]
        for name in rng.sample(sorted(PEOPLE), 2):
            left = rng.choice(["first", "second"])
            answer(item, name, left, truth)
            if position > 20 and rng.random() < 0.06:
                answer(item, name, "second" if left == "first" else "first", truth, repeat=True)
    return sorted(log, key=lambda judgement: judgement.time)


if __name__ == "__main__":
    main()
