"""Draw the picture of the loop for the README and the front page: `python -m docs._make.loop`.

The background is transparent. The grey of lines and captions is readable on white and on black.
"""

from pathlib import Path
from xml.sax.saxutils import escape

PICTURE = Path(__file__).parents[1] / "plots" / "loop.svg"
STEPS = (  # title, first line, second line; in the order of the loop
    ("1 Sample", "N answers per prompt", "with log-probabilities"),
    ("2 Score", "rewards from the", "reward model"),
    ("3 Compare", "PACS per answer, Kendall", "distance per prompt"),
    ("4 Select", "the largest conflicts,", "within a label budget"),
    ("5 Label", "annotators, gold model", "or language-model judge"),
    ("6 Refine", "reward model on old", "and new preferences"),
    ("7 Fine-tune", "policy with PPO, RLOO,", "GRPO or RSO"),
    ("8 Evaluate", "gold reward, win rate,", "KL on held-out prompts"),
)
CONFLICT = (2, 3)  # the steps that the method is named after
WIDTH, HEIGHT, GAP, DROP, MARGIN = 196, 84, 34, 56, 8
GREY, BLUE, RED = "#76828f", "#30638e", "#c23b4e"


def place(step: int) -> tuple[int, int]:
    """Return the upper left corner of a box: four to the right, then four back below."""
    row, column = divmod(step, 4)
    column = 3 - column if row else column
    return MARGIN + column * (WIDTH + GAP), MARGIN + row * (HEIGHT + DROP)


def box(step: int) -> str:
    """Return one box with its three lines of text."""
    x, y = place(step)
    title, *captions = map(escape, STEPS[step])
    fill, middle = RED if step in CONFLICT else BLUE, x + WIDTH // 2
    return (
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="8" fill="{fill}"/>'
        f'<text x="{middle}" y="{y + 27}" font-size="17" font-weight="600" fill="#fff">{title}</text>'
        f'<text x="{middle}" y="{y + 50}" font-size="13" fill="#fff">{captions[0]}</text>'
        f'<text x="{middle}" y="{y + 68}" font-size="13" fill="#fff">{captions[1]}</text>'
    )


def arrow(step: int) -> str:
    """Return the arrow from a box to the next one; the last one leads back to the first."""
    (x, y), (to_x, to_y) = place(step), place((step + 1) % len(STEPS))
    if y == to_y:
        forward = to_x > x
        start, end = (x + WIDTH + 3, to_x - 5) if forward else (x - 3, to_x + WIDTH + 5)
        points = (start, y + HEIGHT // 2, end, y + HEIGHT // 2)
    else:
        down = to_y > y
        start, end = (y + HEIGHT + 3, to_y - 5) if down else (y - 3, to_y + HEIGHT + 5)
        points = (x + WIDTH // 2, start, x + WIDTH // 2, end)
    return '<line x1="{}" y1="{}" x2="{}" y2="{}" marker-end="url(#head)"/>'.format(*points)


def draw() -> str:
    """Return the whole picture as SVG."""
    width, height = 2 * MARGIN + 4 * WIDTH + 3 * GAP, 2 * MARGIN + 2 * HEIGHT + DROP
    middle = MARGIN + HEIGHT + DROP // 2 + 5
    title = "The loop: sample, score, compare, select, label, refine, fine-tune, evaluate, and again"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{title}"',
        '  font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" text-anchor="middle">',
        f"<title>{title}</title>",
        '<marker id="head" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="8" markerHeight="8" orient="auto"',
        f'  markerUnits="userSpaceOnUse"><path d="M0 0 L10 5 L0 10 z" fill="{GREY}"/></marker>',
        *(box(step) for step in range(len(STEPS))),
        f'<g stroke="{GREY}" stroke-width="2">',
        *(arrow(step) for step in range(len(STEPS))),
        "</g>",
        f'<text x="{MARGIN + WIDTH // 2 + 14}" y="{middle}" font-size="13" fill="{GREY}" text-anchor="start">'
        "next round, with the new policy and reward model</text>",
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
