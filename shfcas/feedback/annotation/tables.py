"""The tables of the file of judgements, and the updates of files with earlier layouts."""

from collections.abc import Iterator
from sqlite3 import complete_statement

VERSION = 3

# Triggers forbid changes to queues, items and judgements. `standing` is the latest selection of each queue: its items,
# their places, and counts per item. An item that is no longer selected leaves `standing` and keeps its judgements.
# These counts and those in `marks` (per annotator and item) are derived from the log, so that finding the next item
# need not read all of it. A trigger recounts both after each judgement, for its item only.
_TABLES = """
CREATE TABLE queues (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, seed TEXT NOT NULL);
CREATE TABLE items (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    queue INTEGER NOT NULL REFERENCES queues (number),
    position INTEGER NOT NULL,  -- order of adding to the queue
    content TEXT NOT NULL,  -- as first selected. JSON in ASCII: a text may hold code points that UTF-8 cannot encode
    UNIQUE (queue, position)
);
CREATE TABLE judgements (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    item INTEGER NOT NULL REFERENCES items (number),
    annotator TEXT NOT NULL,
    choice TEXT NOT NULL,
    left TEXT NOT NULL,
    strength TEXT,
    comment TEXT NOT NULL,  -- JSON in ASCII
    seconds REAL,
    repeat INTEGER NOT NULL,
    undoes TEXT UNIQUE REFERENCES judgements (id),
    page_version TEXT NOT NULL,
    time TEXT NOT NULL,
    informed INTEGER NOT NULL DEFAULT 0  -- 1 if the annotator had looked at why the item was asked
);
CREATE INDEX judged_item ON judgements (item, annotator);
CREATE INDEX judged_by ON judgements (annotator, number);
CREATE TABLE marks (
    annotator TEXT NOT NULL,
    item INTEGER NOT NULL REFERENCES items (number),
    draw REAL NOT NULL,  -- in [0, 1): the item is repeated if this is below the share of repeats
    votes INTEGER NOT NULL DEFAULT 0,
    repeats INTEGER NOT NULL DEFAULT 0,
    skips INTEGER NOT NULL DEFAULT 0,
    flags INTEGER NOT NULL DEFAULT 0,
    last INTEGER,  -- number of the last judgement that counts
    PRIMARY KEY (annotator, item)
) WITHOUT ROWID;
CREATE INDEX voted ON marks (item) WHERE votes > 0;
CREATE INDEX repeatable ON marks (annotator, draw) WHERE votes > 0 AND repeats = 0;
CREATE TABLE standing (
    item INTEGER PRIMARY KEY REFERENCES items (number),
    queue INTEGER NOT NULL,
    people INTEGER NOT NULL DEFAULT 0,  -- number of annotators who answered
    flagged INTEGER NOT NULL DEFAULT 0,  -- 1 if an annotator flagged it
    position INTEGER NOT NULL DEFAULT 0,
    place TEXT NOT NULL DEFAULT '{}',  -- JSON in ASCII: fields of the item that differ from its content
    leading INTEGER NOT NULL DEFAULT 0  -- number of annotators who gave the most frequent answer
);
CREATE INDEX stands ON standing (queue, flagged, people, position);
CREATE TABLE looks (judgement TEXT PRIMARY KEY REFERENCES judgements (id), time TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE leases (
    item INTEGER NOT NULL REFERENCES items (number),
    annotator TEXT NOT NULL,
    repeat INTEGER NOT NULL,
    expires REAL NOT NULL,  -- seconds since 1970
    PRIMARY KEY (item, annotator)
) WITHOUT ROWID;
CREATE INDEX expiring ON leases (expires);
CREATE INDEX leased_to ON leases (annotator);
"""

_ANSWERS = "('first', 'second', 'tie', 'both_bad')"
_STANDS = "NOT EXISTS (SELECT 1 FROM judgements WHERE undoes = {row}.id)"


def leading(item: str) -> str:
    """Returns the SQL expression for the number of annotators who gave an item's most frequent answer.

    The answers are those of `aggregation.votes`: of several answers of one annotator, the latest counts.
    """
    vote = "NOT {row}.repeat AND {row}.choice IN " + _ANSWERS + " AND " + _STANDS
    return f"""(
        SELECT ifnull(max(n), 0) FROM (
            SELECT count(*) AS n FROM judgements AS j
            WHERE item = {item} AND {vote.format(row="j")} AND NOT EXISTS (
                SELECT 1 FROM judgements AS k
                WHERE k.item = j.item AND k.annotator = j.annotator AND (k.time, k.id) > (j.time, j.id)
                    AND {vote.format(row="k")}
            )
            GROUP BY choice
        )
    )"""


_JUDGED = f"""
CREATE TRIGGER judged AFTER INSERT ON judgements BEGIN
    UPDATE marks SET (votes, repeats, skips, flags, last) = (
        SELECT
            count(*) FILTER (WHERE NOT repeat AND choice IN ('first', 'second', 'tie', 'both_bad')),
            count(*) FILTER (WHERE repeat),
            count(*) FILTER (WHERE NOT repeat AND choice = 'skip'),
            count(*) FILTER (WHERE choice = 'flag'),
            max(number)
        FROM judgements AS j
        WHERE item = NEW.item AND annotator = NEW.annotator AND choice <> 'undo'
            AND NOT EXISTS (SELECT 1 FROM judgements WHERE undoes = j.id)
    ) WHERE item = NEW.item AND annotator = NEW.annotator;
    UPDATE standing SET
        people = (SELECT count(*) FROM marks WHERE item = NEW.item AND votes > 0),
        leading = {leading("NEW.item")},
        flagged = EXISTS (
            SELECT 1 FROM judgements AS j WHERE item = NEW.item AND choice = 'flag'
                AND NOT EXISTS (SELECT 1 FROM judgements WHERE undoes = j.id)
        )
    WHERE item = NEW.item;
    DELETE FROM leases WHERE item = NEW.item AND annotator = NEW.annotator AND NEW.choice <> 'undo';
END;
"""
# From layout 1, where each queue had one selection.
_UPDATE_1 = """
ALTER TABLE standing ADD COLUMN position INTEGER NOT NULL DEFAULT 0;
ALTER TABLE standing ADD COLUMN place TEXT NOT NULL DEFAULT '{}';
UPDATE standing SET position = (SELECT position FROM items WHERE number = standing.item);
DROP INDEX stands;
CREATE INDEX stands ON standing (queue, flagged, people, position);
"""
# From layout 2, which did not know who had looked, nor whether the answers to an item agree.
_UPDATE_2 = f"""
ALTER TABLE judgements ADD COLUMN informed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE standing ADD COLUMN leading INTEGER NOT NULL DEFAULT 0;
CREATE TABLE looks (judgement TEXT PRIMARY KEY REFERENCES judgements (id), time TEXT NOT NULL) WITHOUT ROWID;
DROP TRIGGER judged;
UPDATE standing SET leading = {leading("standing.item")};
"""


def _frozen(*tables: str) -> str:
    return "".join(
        f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
        "BEGIN SELECT RAISE(ABORT, 'rows are added and never changed'); END;\n"
        for table in tables
        for verb in ("UPDATE", "DELETE")
    )


_SCRIPTS = {
    0: _TABLES + _JUDGED + _frozen("queues", "items", "judgements", "looks"),
    1: _UPDATE_1 + _UPDATE_2 + _JUDGED + _frozen("looks"),
    2: _UPDATE_2 + _JUDGED + _frozen("looks"),
}


def statements(layout: int) -> Iterator[str]:
    """Yields the statements that bring a file to the newest layout; layout 0 is an empty file.

    One at a time, because `executescript` would commit the open transaction.
    """
    statement = ""
    for line in _SCRIPTS[layout].splitlines(keepends=True):
        statement += line
        if complete_statement(statement):
            yield statement
            statement = ""
