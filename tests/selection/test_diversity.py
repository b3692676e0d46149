"""Comparisons spread out by greedy k-centre: against brute force, and what it is measured by."""

import zlib
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shfcas.data.shards import TableRows
from shfcas.selection import Comparison, SelectionConfig, select
from shfcas.selection.diversity import embed, embedding_source, hash_words, k_centre
from shfcas.utils.errors import UserError
from tests.support.selection_rows import asked, row


def settings(budget: int, pool: int = 5, strategy: str = "kendall") -> SelectionConfig:
    return SelectionConfig(
        strategy=strategy, kendall_threshold="0", budget=budget, diversity="k_centre", diversity_pool=pool
    )


def prompt(name: str, distance: float, **columns: Any) -> dict[str, Any]:
    return row(name, [1.0, -1.0], distance, **columns)


def radius(vectors: np.ndarray, centres: Any) -> float:
    """How far the point that lies farthest from all centres is from the nearest."""
    return float(np.linalg.norm(vectors[:, None] - vectors[list(centres)], axis=2).min(axis=1).max())


def test_each_centre_is_the_farthest_from_those_before() -> None:
    vectors = np.random.default_rng(0).standard_normal((40, 3))
    chosen = k_centre(vectors, 12)
    assert chosen[0] == 0 and len(set(chosen)) == 12
    for count in range(1, 12):
        gaps = np.linalg.norm(vectors[:, None] - vectors[chosen[:count]], axis=2).min(axis=1)
        assert gaps[chosen[count]] == pytest.approx(gaps.max(), abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_centres_are_at_most_twice_as_far_as_the_best(seed: int) -> None:
    vectors = np.random.default_rng(seed).standard_normal((12, 2))
    best = min(radius(vectors, centres) for centres in combinations(range(12), 3))
    assert radius(vectors, k_centre(vectors, 3)) <= 2 * best + 1e-9


def test_equal_places_are_taken_in_the_order_of_priority() -> None:
    vectors = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    assert k_centre(vectors, 5) == [0, 2, 1, 3, 4]
    assert k_centre(vectors, 9) == [0, 2, 1, 3, 4]


def test_prompts_about_the_same_thing_wait() -> None:
    rows = [
        prompt("soup-1", 0.9, prompt="How was the soup?"),
        prompt("soup-2", 0.8, prompt="how was the SOUP"),
        prompt("train", 0.3, prompt="When does the train to Lyon leave?"),
        prompt("soup-3", 0.7, prompt=[{"role": "user", "content": "How was the soup?"}]),
    ]
    assert [c[0] for c in asked(rows, settings(4))] == ["soup-1", "train", "soup-2", "soup-3"]
    assert [c[0] for c in asked(rows, settings(2))] == ["soup-1", "train"]
    assert [c[0] for c in asked(rows, settings(2, pool=1))] == ["soup-1", "soup-2"]  # train is not in the pool
    plain = SelectionConfig(strategy="kendall", kendall_threshold="0", budget=2)
    assert [c[0] for c in asked(rows, plain)] == ["soup-1", "soup-2"]


def test_embeddings_of_prompts_come_before_words() -> None:
    rows = [
        prompt("a", 0.9, prompt="one", embeddings=[1.0, 0.0]),
        prompt("b", 0.8, prompt="two", embeddings=[2.0, 0.1]),  # the length of a vector does not matter
        prompt("c", 0.7, prompt="one", embeddings=[-0.1, 0.5]),
    ]
    assert [c[0] for c in asked(rows, settings(3))] == ["a", "c", "b"]


def test_embeddings_of_answers_tell_comparisons_of_a_prompt_apart() -> None:
    # Answers 0 and 3 point east, 1 and 2 north; opposed PACS pairs 0 with 1, and 2 with 3 (adjacent in PACS).
    near = row("near", [2.0, -2.0, 1.0, -1.0], 0.9, embeddings=[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    same = row("same", [2.0, -2.0], 0.8, embeddings=[[1.0, 0.1], [1.0, -0.1]])
    assert asked([near, same], settings(2)) == [("near", 0, 1), ("near", 2, 3)]
    assert asked([near, same], settings(3))[2] == ("same", 0, 1)


def test_a_bag_of_words() -> None:
    assert np.array_equal(hash_words("The soup, the SOUP!"), 2 * hash_words("soup the"))
    assert not np.array_equal(hash_words("soup"), hash_words("train"))
    assert hash_words("").sum() == 0
    found = embed(["", "soup", [3.0] + [0.0] * 255])
    assert np.linalg.norm(found, axis=1).round(6).tolist() == [0, 1, 1]
    assert k_centre(found, 3) == [0, 1, 2]


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        ([[1.0, 2.0], [1.0, 2.0, 3.0]], "column embeddings: expected one length per table, got 2, 3"),
        ([[[1.0], [1.0, 2.0]], [[1.0], [1.0]]], "column embeddings: expected lists of equal length"),
        ([[1.0, float("nan")], [1.0, 2.0]], "column embeddings: a value is not a number"),
        ([None, None], "diversity k_centre: expected a column embeddings or prompt, got neither"),
    ],
)
def test_embeddings_that_cannot_be_compared_are_refused(embeddings: list, message: str) -> None:
    rows = [prompt(f"p{i}", 0.5, embeddings=e) for i, e in enumerate(embeddings)]
    with pytest.raises(UserError, match=message):
        select(rows, settings(2))


@pytest.mark.parametrize("strategy", ["shf_cas", "random"])
@pytest.mark.parametrize("embedded", [True, False])
def test_neither_the_order_of_rows_nor_files_matter(strategy: str, embedded: bool, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = []
    for i in range(150):
        place = {"embeddings": draw.standard_normal(8).round(1).tolist()} if embedded else {}
        pacs = draw.standard_normal(4).round(1).tolist()
        rows.append(row(f"p{i}", pacs, float(draw.integers(0, 11)) / 10, prompt=f"what about {i % 40}?", **place))
    chosen = settings(20, 3, strategy)
    expected = asked(rows, chosen)
    assert len(set(expected)) == 20
    # All of them are among the most wanted ones, and they lie farther apart.
    pool = asked(rows, SelectionConfig(strategy=strategy, kendall_threshold="0", budget=60))
    assert set(expected) <= set(pool) and set(expected) != set(pool[:20])
    shuffled = [rows[i] for i in draw.permutation(150)]
    for number, (begin, end) in enumerate(pairwise((0, 1, 70, 150))):
        pq.write_table(pa.Table.from_pylist(shuffled[begin:end]), tmp_path / f"{number}.parquet")
    assert asked(TableRows([str(tmp_path)]), chosen) == expected


def test_bins_and_signs_of_words() -> None:
    # CRC-32 of "soup" and "the": the lowest byte is the bin, the highest bit the sign.
    bins = np.zeros(256)
    for word in ("soup", "the", "the"):
        number = zlib.crc32(word.encode())
        bins[number & 255] += 1 if number & 0x8000_0000 else -1
    found = hash_words("The soup - the")
    assert found.dtype == np.float32 and found.tolist() == bins.tolist()
    signs = {hash_words(f"word{i}").sum() for i in range(20)}
    assert signs == {-1, 1}


def test_unit_vectors_by_hand() -> None:
    # Answers of (3, 4) and (0, -2) have the directions (0.6, 0.8) and (0, -1); their mean is (0.3, -0.1).
    found = embed([[[3.0, 4.0], [0.0, -2.0]], [0, 5], [[0.0, 0.0], [7.0, 0.0]], [0.0, 0.0]])
    assert found.dtype == np.float32
    expected = [[0.3 / 0.1**0.5, -0.1 / 0.1**0.5], [0, 1], [1, 0], [0, 0]]
    assert found == pytest.approx(np.array(expected), abs=1e-6)
    assert embed([[2.0], [-3.0]]).tolist() == [[1], [-1]]


def test_words_of_text_and_of_messages() -> None:
    messages = [{"role": "user", "content": "the soup"}, {"role": "assistant", "content": "is hot"}]
    found = embed(["", messages, [{"role": "user", "content": "the soup"}], "the soup"])
    assert found[0].tolist() == [0] * 256 and np.array_equal(found[2], found[3])
    assert not np.array_equal(found[1], found[2]) and np.linalg.norm(found[1]) == pytest.approx(1)
    with pytest.raises(UserError, match=r"^column embeddings: expected one length per table, got 0, 256$"):
        embed([[], "the soup"])


def test_the_source_of_an_embedding() -> None:
    pair = Comparison("a", 2, 0)
    assert embedding_source({"prompt": "p", "embeddings": [[1.0], [2.0], [3.0]]}, pair) == [[3.0], [1.0]]
    assert embedding_source({"prompt": "p", "embeddings": [4.0]}, pair) == [4.0]
    assert embedding_source({"prompt": "p", "embeddings": []}, pair) == []
    assert embedding_source({"prompt": "p", "embeddings": None}, pair) == embedding_source({"prompt": "p"}, pair) == "p"
    with pytest.raises(UserError, match=r"^diversity k_centre: expected a column embeddings or prompt, got neither$"):
        embedding_source({"embeddings": None}, pair)


def test_places_that_differ_by_rounding_alone_are_one_place() -> None:
    # Squared distances of 4e-6 from the first: as near as its copy, which comes first. 3.6e-5 is farther.
    vectors = np.array([[0.0], [3.0], [0.0], [0.002], [3.0], [-0.002]])
    assert k_centre(vectors, 6) == [0, 1, 2, 3, 4, 5]
    assert k_centre(np.array([[0.0], [3.0], [0.0], [0.006]]), 4) == [0, 1, 3, 2]


def test_distances_of_long_and_short_vectors() -> None:
    # From 0, the third is the farthest; then the first two are 1 and 2 from their nearest centres, and the last 3.
    assert k_centre(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [9.0, 0.0], [9.0, 3.0]]), 5) == [0, 4, 3, 2, 1]
    assert k_centre(np.array([[0.0, 0.0], [1.0, 0.0]]), 0) == []
    tiny = np.array([[0.0], [0.3], [0.1], [0.2]])
    assert k_centre(tiny, 4) == [0, 1, 2, 3]
