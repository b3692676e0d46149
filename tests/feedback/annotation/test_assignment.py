"""Who is asked what next: never too many people, never the same twice but as a repeat, nothing forgotten."""

import itertools
import multiprocessing
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from shfcas.feedback.annotation.aggregation import effective, is_complete, votes
from shfcas.feedback.annotation.assignment import Assignment, Progress, Task, side
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.schema import ANSWERED, Item, Judgement
from shfcas.feedback.annotation.store import Store
from shfcas.utils.errors import UserError
from tests.support.queues import judged, make_queue

ITEMS = make_queue(6)
A, B, C, D, E, F = (item.id for item in ITEMS)


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store(tmp_path / "feedback.sqlite") as opened:
        opened.add_queue(ITEMS, seed=3)
        yield opened


@pytest.fixture
def assign(store: Store, clock: Clock) -> Callable[..., Assignment]:
    """An assignment of the queue without repeats, unless they are asked for."""
    return lambda **settings: Assignment(store, "round-1", HumanConfig(**{"repeat_share": 0.0} | settings), clock)


def id_of(task: Task | None) -> str | None:
    return task.item.id if task else None


def answer(assignment: Assignment, annotator: str, task: Task | None = None, choice: str = "first") -> Judgement:
    task = task or assignment.next(annotator)
    assert task is not None
    judgement = judged(task.item, annotator, choice, left=task.left, repeat=task.repeat)
    assert assignment.store.record(judgement)
    return judgement


# order, leases, overlap


def test_items_come_by_position_and_end(assign: Callable) -> None:
    assignment = assign()
    asked = [answer(assignment, "ada").item for _ in ITEMS]
    assert asked == [A, B, C, D, E, F]
    assert assignment.next("ada") is None


def test_a_task_holds_the_item_as_the_store_has_it_and_the_end_of_its_lease(assign: Callable, clock: Clock) -> None:
    task = assign(lease_minutes=2).next("ada")
    assert task.item == ITEMS[0]
    assert not task.repeat
    assert datetime.fromisoformat(task.lease_expires) == datetime.fromtimestamp(clock.now + 120, UTC)


def test_what_one_person_has_open_nobody_else_gets(assign: Callable) -> None:
    assignment = assign()
    assert [id_of(assignment.next(name)) for name in ("ada", "ben", "eve", "ada")] == [A, B, C, A]


def test_held_items_stay_and_another_is_handed_out(assign: Callable) -> None:
    assignment = assign()
    assert id_of(assignment.next("ada", [A])) == B  # holding what was never leased takes it, as nobody has it
    assert id_of(assignment.next("ada", [A, B])) == C
    assert id_of(assignment.next("ben")) == D
    assert id_of(assignment.next("ada", [A, B, C, E, F])) is None
    assert id_of(assignment.next("ada", ["unknown", A, A])) == B


def test_an_item_goes_to_as_many_people_as_are_asked(assign: Callable) -> None:
    assignment = assign(overlap=2)
    assert [id_of(assignment.next(name)) for name in ("ada", "ben", "eve", "dan", "fay")] == [A, A, B, B, C]
    answer(assignment, "ada")
    assert id_of(assignment.next("gus")) == C  # one answered and one has it open
    assert id_of(assignment.next("ada")) == D


def test_a_lease_runs_out(assign: Callable, clock: Clock) -> None:
    assignment = assign(lease_minutes=10)
    task = assignment.next("ada")
    clock.now += 599
    assert id_of(assignment.next("ben")) == B
    clock.now += 1
    assert id_of(assignment.next("eve")) == A
    answer(assignment, "ada", task)  # late, and not lost
    assert id_of(assignment.next("dan")) == C


def test_holding_renews_a_lease_and_takes_a_lapsed_one_back_if_nobody_has_it(assign: Callable, clock: Clock) -> None:
    assignment = assign(lease_minutes=10)
    assert [id_of(assignment.next("ada", held)) for held in ([], [A])] == [A, B]
    clock.now += 400
    assert id_of(assignment.next("ada", [A])) == B
    clock.now += 400
    assert id_of(assignment.next("ben")) == C  # A was renewed, B handed out again, 400 s ago
    clock.now += 300
    assert id_of(assignment.next("eve")) == A  # both ran out
    assert id_of(assignment.next("ada", [A, B])) == D  # A is eve's; B was taken back, C is ben's
    assert id_of(assignment.next("fay")) == E


def test_signing_out_gives_back_what_was_open(assign: Callable, store: Store, clock: Clock) -> None:
    store.add_queue(make_queue(2, "round-2"), seed=0)
    assignment = assign()
    other = Assignment(store, "round-2", HumanConfig(), clock)
    elsewhere = id_of(other.next("ada"))
    assignment.next("ada")
    assignment.release("ada")
    assert id_of(assignment.next("ben")) == A
    assert id_of(other.next("ben")) not in (None, elsewhere)  # the other queue is another matter


def test_queues_do_not_mix(assign: Callable, store: Store, clock: Clock) -> None:
    later = make_queue(2, "round-2")
    store.add_queue(later, seed=0)
    first, second = assign(), Assignment(store, "round-2", HumanConfig(repeat_share=0.0), clock)
    for assignment, items in ((first, ITEMS), (second, later)):
        assert [answer(assignment, "ada").item for _ in items] == [item.id for item in items]
        assert assignment.next("ada") is None
    assert second.progress("ada") == Progress(total=2, settled=2, answers=2, wanted=2, mine=2, mine_left=0)
    with pytest.raises(UserError, match=f"queue 'round-2' has no item '{A}'; reload"):
        second.task("ada", A)
    with pytest.raises(UserError, match="no queue 'round-3'"):
        Assignment(store, "round-3", HumanConfig())


# skip, flag, undo


def test_a_skipped_item_goes_to_somebody_else_and_not_back(assign: Callable) -> None:
    assignment = assign()
    answer(assignment, "ada", choice="skip")
    assert id_of(assignment.next("ada")) == B
    assert id_of(assignment.next("ben")) == A
    answer(assignment, "ben")
    assert id_of(assignment.next("eve")) == C


def test_a_flagged_item_is_asked_no_more(assign: Callable) -> None:
    assignment = assign(overlap=3)
    answer(assignment, "ada", choice="flag")
    assert [id_of(assignment.next(name)) for name in ("ada", "ben")] == [B, B]


def test_an_undone_answer_is_asked_again_in_the_same_way(assign: Callable, store: Store) -> None:
    assignment = assign()
    task = assignment.next("ada")
    for choice in (*ANSWERED, "skip", "flag"):
        given = answer(assignment, "ada", task, choice)
        assert id_of(assignment.next("ada")) == B
        store.record(judged(A, "ada", "undo", undoes=given.id))
        assert assignment.next("ada") == task
        assert assignment.task("ada", A) == task
    assert id_of(assignment.next("ben")) == C  # ada has A and B


def test_the_item_of_an_undo_is_leased_to_who_undid(assign: Callable, store: Store, clock: Clock) -> None:
    assignment = assign()
    given = answer(assignment, "ada")
    store.record(judged(A, "ada", "undo", undoes=given.id))
    assignment.task("ada", A)
    assert id_of(assignment.next("ben")) == B
    clock.now += 1801
    assert id_of(assignment.next("eve")) == A


# sides and repeats


def test_sides_are_drawn_for_each_person_and_item() -> None:
    ids = [item.id for item in make_queue(400)]
    ada, ben = ([side(0, name, id) for id in ids] for name in ("ada", "ben"))
    for sides in (ada, ben):
        assert 150 < sides.count("first") < 250
    assert 150 < sum(a == b for a, b in zip(ada, ben, strict=True)) < 250
    assert ada == [side(0, "ada", id) for id in ids]
    assert 150 < sum(a == b for a, b in zip(ada, [side(1, "ada", id) for id in ids], strict=True)) < 250
    assert all({side(0, "ada", id), side(0, "ada", id, True)} == {"first", "second"} for id in ids)


def answer_all(assignment: Assignment, annotator: str) -> list[Task]:
    tasks = []
    while task := assignment.next(annotator):
        answer(assignment, annotator, task)
        tasks.append(task)
    return tasks


def test_repeats_come_once_ten_answers_later_with_the_sides_swapped(tmp_path: Path) -> None:
    items = make_queue(120)
    with Store(tmp_path / "a.sqlite") as store:
        store.add_queue(items, seed=1)
        assignment = Assignment(store, "round-1", HumanConfig(overlap=2, repeat_share=0.2))
        tasks = answer_all(assignment, "ada")
        bens = [task.item.id for task in answer_all(assignment, "ben") if task.repeat]
    assert [task.item for task in tasks if not task.repeat] == items
    repeats = {task.item.id: (place, task.left) for place, task in enumerate(tasks) if task.repeat}
    assert len(tasks) == len(items) + len(repeats)
    assert 10 < len(repeats) < 40
    assert set(bens) != set(repeats)  # drawn for each person
    first = {task.item.id: (place, task.left) for place, task in enumerate(tasks) if not task.repeat}
    early = 0
    for id, (place, left) in repeats.items():
        before, left_before = first[id]
        assert left != left_before
        early += place - before <= 10
    last_fresh = max(place for place, _ in first.values())
    assert early == sum(place - first[id][0] <= 10 for id, (place, _) in repeats.items() if place > last_fresh)
    assert min(place - first[id][0] for id, (place, _) in repeats.items() if place < last_fresh) == 11


def test_the_same_items_are_repeated_whatever_happens_in_between(tmp_path: Path, clock: Clock) -> None:
    asked = []
    for order in (("ada", "ben"), ("ben", "ada")):
        with Store(tmp_path / f"{order[0]}.sqlite") as store:
            store.add_queue(make_queue(30), seed=1)
            assignment = Assignment(store, "round-1", HumanConfig(overlap=2, repeat_share=0.3), clock)
            tasks = {name: answer_all(assignment, name) for name in order}
            asked.append({name: sorted(t.item.id for t in done if t.repeat) for name, done in tasks.items()})
    assert asked[0] == asked[1]
    assert all(asked[0].values())


ALWAYS = 0.999999  # practically every answer is asked again


def test_repeats_come_early_when_nothing_else_is_left(assign: Callable) -> None:
    assignment = assign(repeat_share=ALWAYS)
    tasks = answer_all(assignment, "ada")
    assert [(task.item.id, task.repeat) for task in tasks] == [
        *((item.id, False) for item in ITEMS),
        *((item.id, True) for item in ITEMS),
    ]


def test_held_repeats_are_not_handed_out_twice(assign: Callable) -> None:
    assignment = assign(repeat_share=ALWAYS)
    for _ in ITEMS:
        answer(assignment, "ada")
    assert [id_of(assignment.next("ada", held)) for held in ([], [A], [A, B], [A])] == [A, B, C, B]
    assert assignment.next("ada", [item.id for item in ITEMS]) is None


def test_a_repeat_takes_nobody_elses_place(assign: Callable, store: Store) -> None:
    assignment = assign(overlap=2, repeat_share=ALWAYS)
    for item in ITEMS:
        store.record(judged(item, "ada", "first"))
    repeat = assignment.next("ada")
    assert (id_of(repeat), repeat.repeat) == (A, True)
    assert id_of(assignment.next("ben")) == A
    answer(assignment, "ada", repeat)
    assert id_of(assignment.next("ben")) == A
    assert assignment.progress("ada").answers == len(ITEMS)


def test_only_answers_that_count_are_repeated(assign: Callable, store: Store) -> None:
    assignment = assign(repeat_share=ALWAYS)
    for item, choice in zip(ITEMS, ("skip", "flag", "first", "first", "first", "first"), strict=True):
        answer(assignment, "ada", choice=choice)
        assert id_of(assignment.next("ada")) != item.id
    store.record(judged(C, "ben", "flag"))
    asked = answer(assignment, "ada")
    assert (asked.item, asked.repeat) == (D, True)
    assert id_of(assignment.next("ada")) == E
    store.record(judged(D, "ada", "undo", undoes=asked.id))
    again = assignment.task("ada", D)
    assert (id_of(again), again.repeat) == (D, True)
    assert again.left != side(3, "ada", D)
    assert id_of(assignment.next("ada")) == D  # its repeat does not count any more
    answer(assignment, "ada", again, "skip")
    assert id_of(assignment.next("ada")) == E  # a repeat that was skipped is not asked a third time


def test_a_repeat_whose_first_answer_was_undone_is_no_answer(assign: Callable, store: Store) -> None:
    assignment = assign(repeat_share=ALWAYS)
    first = answer(assignment, "ada")
    store.record(judged(A, "ada", "tie", repeat=True))
    store.record(judged(A, "ada", "undo", undoes=first.id))
    assert assignment.progress("ada").answers == assignment.progress("ada").mine == 0
    again = assignment.next("ada")
    assert (id_of(again), again.repeat) == (A, False)


def test_the_ten_answers_are_counted_from_the_answer_that_stands(assign: Callable, store: Store) -> None:
    store.add_queue(make_queue(40, "round-2"), seed=0)
    assignment = Assignment(store, "round-2", HumanConfig(repeat_share=ALWAYS))
    first = answer(assignment, "ada")
    for _ in range(8):
        answer(assignment, "ada")
    store.record(judged(first.item, "ada", "undo", undoes=first.id))
    answer(assignment, "ada", assignment.task("ada", first.item))
    asked = [answer(assignment, "ada") for _ in range(4)]
    assert [j.repeat for j in asked] == [False, False, True, True]
    assert first.item not in {j.item for j in asked}


# progress


def test_progress_counts_what_is_settled_and_what_is_left(assign: Callable, store: Store) -> None:
    assignment = assign(overlap=2)
    empty = Progress(total=6, settled=0, answers=0, wanted=12, mine=0, mine_left=0)
    assert assignment.progress() == empty
    assert assignment.progress("ada") == Progress(6, 0, 0, 12, 0, 6)
    rows = [
        judged(A, "ada", "first"),
        judged(A, "ben", "tie"),
        judged(A, "eve", "tie"),  # beyond the overlap
        judged(B, "ada", "both_bad"),
        judged(B, "ada", "tie", repeat=True),
        judged(C, "ada", "skip"),
        judged(D, "ben", "flag"),
        judged(E, "ada", "first", id="undone"),
        judged(E, "ada", "undo", undoes="undone"),
    ]
    store.record_all(rows)
    assert assignment.progress() == Progress(total=6, settled=2, answers=3, wanted=12, mine=0, mine_left=0)
    assert assignment.progress("ada") == Progress(6, 2, 3, 12, mine=2, mine_left=2)  # E and F
    assert assignment.progress("ben") == Progress(6, 2, 3, 12, mine=1, mine_left=4)
    assert assignment.progress("new") == Progress(6, 2, 3, 12, mine=0, mine_left=4)


# against an oracle


def expected_next(
    items: list[Item], log: list[Judgement], leases: dict, me: str, held: list[str], overlap: int
) -> str | None:
    """The next fresh item by the rules alone, looking at everything."""
    people, seen, flagged = defaultdict(set), set(), set()
    for j in effective(log):
        if j.choice in ANSWERED:
            people[j.item].add(j.annotator)
        if j.choice == "flag":
            flagged.add(j.item)
        if j.annotator == me:
            seen.add(j.item)
    for item in items:
        others = {name for (id, name) in leases if id == item.id and name != me}
        if item.id in flagged or item.id in seen or item.id in held:
            continue
        if len(people[item.id]) + len(others) < overlap:
            return item.id
    return None


@pytest.mark.parametrize("seed", range(6))
def test_what_is_next_is_what_the_rules_say(tmp_path: Path, clock: Clock, seed: int) -> None:
    rng = random.Random(seed)
    overlap, names = rng.choice([1, 2, 3]), ["ada", "ben", "eve", "dan"]
    items = make_queue(12)
    leases: dict[tuple[str, str], float] = {}
    log: list[Judgement] = []
    with Store(tmp_path / "a.sqlite") as store:
        store.add_queue(items, seed=seed)
        settings = HumanConfig(overlap=overlap, repeat_share=0.0, lease_minutes=1)
        assignment = Assignment(store, "round-1", settings, clock)
        for _ in range(250):
            name = rng.choice(names)
            clock.now += rng.choice([0, 1, 15])
            leases = {key: expires for key, expires in leases.items() if expires > clock.now}
            mine = [id for id, holder in leases if holder == name]
            action = rng.random()
            if action < 0.5:
                held = rng.sample(mine, rng.randint(0, len(mine)))
                expected = expected_next(items, log, leases, name, held, overlap)
                assert id_of(assignment.next(name, held)) == expected
                for id in [*held, *([expected] if expected else [])]:
                    leases[id, name] = clock.now + 60
            elif action < 0.85 and mine:
                id = rng.choice(mine)
                log.append(judged(id, name, rng.choice([*ANSWERED, *ANSWERED, *ANSWERED, "skip", "flag"])))
                store.record(log[-1])
                del leases[id, name]
            elif action < 0.95 and (own := [j for j in effective(log) if j.annotator == name]):
                undone = rng.choice(own)
                log.append(judged(undone.item, name, "undo", undoes=undone.id))
                store.record(log[-1])
            elif action > 0.98:
                assignment.release(name)
                leases = {key: expires for key, expires in leases.items() if key[1] != name}
            counted = votes(effective(log))
            progress = assignment.progress(name)
            assert progress.answers == sum(min(len(given), overlap) for given in counted.values())
            assert progress.mine == sum(name in given for given in counted.values())
            assert (progress.settled == progress.total) == is_complete(items, log, settings)


# many at once


def work(assignment: Assignment, names: list[str], start: Callable[[], Any]) -> list[tuple[str, str, bool]]:
    """Answers in the names of several people, in turn, until there is nothing left for any of them."""
    start()
    done, left = [], list(names)
    while left:
        for name in list(left):
            held: list[Task] = []
            while len(held) < 3 and (task := assignment.next(name, [t.item.id for t in held])):
                held.append(task)
            for task in held:
                answer(assignment, name, task)
                done.append((name, task.item.id, task.repeat))
            if not held:
                left.remove(name)
    return done


def check_done(done: list[tuple[str, str, bool]], items: list[Item], log: list[Judgement], overlap: int) -> None:
    assert max(Counter(done).values()) == 1
    assert Counter(id for _, id, repeat in done if not repeat) == {item.id: overlap for item in items}
    assert {(name, id) for name, id, repeat in done if repeat} <= {(n, id) for n, id, repeat in done if not repeat}
    assert sorted((j.annotator, j.item, j.repeat) for j in log) == sorted(done)


@pytest.mark.parametrize("shared", [True, False], ids=["one store", "a store each"])
def test_threads_that_ask_at_once_stay_within_the_overlap(tmp_path: Path, shared: bool) -> None:
    items, path = make_queue(40), tmp_path / "a.sqlite"
    settings = HumanConfig(overlap=2, repeat_share=0.2)
    with Store(path) as store:
        store.add_queue(items, seed=0)
        start = threading.Barrier(6)

        def person(k: int) -> list[tuple[str, str, bool]]:
            names = [f"{k}-{part}" for part in range(2)]
            if shared:
                return work(Assignment(store, "round-1", settings), names, start.wait)
            with Store(path) as own:
                return work(Assignment(own, "round-1", settings), names, start.wait)

        with ThreadPoolExecutor(6) as threads:
            done = list(itertools.chain.from_iterable(threads.map(person, range(6))))
        check_done(done, items, store.judgements(), overlap=2)
        assert Assignment(store, "round-1", settings).progress().settled == 40


def test_many_people_who_only_ask_are_given_each_item_so_often(store: Store, assign: Callable) -> None:
    assignment = assign(overlap=2)
    start = threading.Barrier(16)

    def ask(k: int) -> str | None:
        start.wait()
        return id_of(assignment.next(f"person {k}"))

    with ThreadPoolExecutor(16) as threads:
        given = Counter(threads.map(ask, range(16)))
    assert given == {**{item.id: 2 for item in ITEMS}, None: 4}


def process(path: Path, settings: HumanConfig, names: list[str], start: Any, done: Any) -> None:
    with Store(path) as store:
        done.put(work(Assignment(store, "round-1", settings), names, start.wait))


def test_processes_that_ask_at_once_stay_within_the_overlap(tmp_path: Path) -> None:
    items, path = make_queue(40), tmp_path / "a.sqlite"
    settings = HumanConfig(overlap=2, repeat_share=0.2)
    with Store(path) as store:
        store.add_queue(items, seed=0)
    context = multiprocessing.get_context("fork")  # with every store closed
    start, done = context.Barrier(3), context.Queue()
    people = [["a", "b"], ["c", "d"], ["e"]]
    workers = [context.Process(target=process, args=(path, settings, names, start, done)) for names in people]
    for worker in workers:
        worker.start()
    together = list(itertools.chain.from_iterable(done.get(timeout=100) for _ in workers))
    for worker in workers:
        worker.join()
    with Store(path) as store:
        check_done(together, items, store.judgements(), overlap=2)
