"""Made-up comparisons for the screenshots of the annotation page, with plausible numbers."""

import random

from shfcas.feedback.annotation.schema import Item, item_id

BASIL = [
    {
        "role": "system",
        "content": "You help the customers of a garden centre. Be brief, and ask when something is unclear.",
    },
    {"role": "user", "content": "The basil on my kitchen windowsill keeps wilting, though I water it every day."},
    {"role": "assistant", "content": "Does the pot have holes, and does water stand in the saucer?"},
    {"role": "user", "content": "There are holes. The saucer is usually full. What should I do?"},
]
BASIL_ANSWERS = (
    """Your basil is getting too much water, not too little. Roots that stand in water cannot breathe; they rot, and \
the plant wilts just as if it were thirsty.

What to do now:

1. Empty the saucer, and let the soil dry until the top 2 cm feel dry to the finger.
2. Lift the plant out and look at the roots. Cut off those that are brown and soft.
3. If the soil smells sour, repot it into fresh soil.

From then on, water from below: put the pot into a bowl of water for ten minutes, then let it drain. Twice a week is \
usually enough, a little more often on hot days.

Supermarket pots hold a dozen seedlings that crowd each other. If it still looks weak in two weeks, split it into \
three or four pots.""",
    """Your basil is getting too little water. A full saucer means that the water runs straight through, so the roots \
stay dry, and the plant wilts because it is thirsty.

What to do now:

1. Fill the saucer twice a day, and let the soil soak until the top 2 cm feel wet to the finger.
2. Lift the plant out and look at the roots. White and firm ones are healthy.
3. If the soil smells sour, add fertiliser.

From then on, water from above: pour until it runs out of the holes, then leave it standing. Twice a day is usually \
enough, a little more often on hot days.

Supermarket pots hold a dozen seedlings that support each other. If it still looks weak in two weeks, move it to a \
sunnier window.""",
)
OTHERS = [
    (
        "Explain to a ten-year-old why the sky is blue.",
        "Sunlight looks white, but it is a mix of all colours. When it passes through the air, the tiny bits that air "
        "is made of push blue light around much more than red light. So blue comes to your eyes from every direction, "
        "and the whole sky glows blue. In the evening the light has a longer way to go, most of the blue is pushed "
        "aside, and what is left is orange and red.",
        "The sky is blue because it reflects the sea. Most of the Earth is covered by water, and the water is blue.",
    ),
    (
        "Write a Python function that returns the median of a list of numbers.",
        "def median(numbers):\n    ordered = sorted(numbers)\n    middle = len(ordered) // 2\n"
        "    if len(ordered) % 2:\n        return ordered[middle]\n"
        "    return (ordered[middle - 1] + ordered[middle]) / 2\n\n"
        "It raises IndexError for an empty list.",
        "def median(numbers):\n    numbers.sort()\n    return numbers[len(numbers) // 2]\n\nThis works for every list.",
    ),
    (
        "Make this friendlier: 'You sent the report late again. Send the next one on time.'",
        "Thank you for the report. It came after the deadline again, which left us little time to read it. Could you "
        "send the next one by Thursday? If that is hard, tell me, and we will find another day.",
        "Hey!!! No worries at all about the report, take all the time you need, deadlines are only numbers anyway!",
    ),
    (
        "How long can cooked rice be kept?",
        "Cool it within an hour and keep it in the fridge for at most one day; reheat it once, until it steams.",
        "About a week. If it smells fine, it is fine.",
    ),
]
GUIDELINES = """\
# What makes an answer better

Choose the answer that you would rather have got yourself.

1. **True** before everything else. One wrong fact that matters outweighs good style.
2. **Helpful**: it answers what was asked, and says what is not known.
3. **Brief**: of two that are alike, the shorter one.

Length, headings and politeness are no merits of their own.

- *Tie*: you would not mind which one you get.
- *Both bad*: you would want neither.
- *Skip*: you cannot tell. Somebody else is asked.
- *Flag*: nobody should be asked this, because the prompt is cut off or private, say. Write why.
"""


def items(count: int, seed: int = 0) -> list[Item]:
    """Return a queue: the comparison about basil first, then the others in turn."""
    rng = random.Random(seed)
    found = []
    for position in range(count):
        prompt, first, second = (BASIL, *BASIL_ANSWERS) if position == 0 else OTHERS[position % len(OTHERS)]
        prompt_id = f"prompt-{position}"
        low, high = sorted(rng.gauss(0, 1) for _ in range(2))
        found.append(
            Item(
                id=item_id("round-1", prompt_id, 0, 1),
                queue="round-1",
                round=1,
                position=position,
                prompt_id=prompt_id,
                first=0,
                second=1,
                prompt=prompt,
                first_text=first,
                second_text=second,
                why={
                    "kendall_distance": 0.93 - 0.6 * position / count,
                    "mean_abs_pacs": 1.31 - 0.8 * position / count,
                    "pacs": [low - 1, high + 1],
                    "rewards": [low, high],
                    "logprobs": [-41.2 + rng.gauss(0, 5), -63.8 + rng.gauss(0, 5)],
                },
            )
        )
    return found
