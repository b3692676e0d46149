"""Pairs that a tiny reward model learns in seconds."""

import random

from shfcas.data.preferences import Preference

GOOD, BAD = ("good", "great", "happy", "fine"), ("bad", "terrible", "cold", "late")


NOUNS = ("soup", "bread", "train", "hotel", "film", "match", "phone", "day", "night", "morning")


FAST = {"num_train_epochs": 3, "batch_size": 8, "learning_rate": 5e-3, "weight_decay": 0.0}


def pairs(nouns: tuple[str, ...]) -> list[Preference]:
    """A nice word is better than a nasty one, whatever it is about."""
    rng = random.Random(0)
    rows = [
        Preference(
            [{"role": "user", "content": f"how was the {noun}?"}], f"the {noun} was {good}", f"the {noun} was {bad}"
        )
        for noun in nouns
        for good in GOOD
        for bad in BAD
    ]
    return rng.sample(rows, len(rows))


TRAIN, HELD_OUT = pairs(NOUNS[:7]), pairs(NOUNS[7:])


class Kill(Exception):
    """As SIGKILL is: nothing after it runs."""
