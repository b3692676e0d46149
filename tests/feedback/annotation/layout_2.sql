PRAGMA application_id = 1397245507;
PRAGMA user_version = 2;
BEGIN TRANSACTION;
CREATE TABLE items (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    queue INTEGER NOT NULL REFERENCES queues (number),
    position INTEGER NOT NULL,  -- order of adding to the queue
    content TEXT NOT NULL,  -- as first selected. JSON in ASCII: a text may hold code points that UTF-8 cannot encode
    UNIQUE (queue, position)
);
INSERT INTO "items" VALUES(1,'c42ab55717ac7b85',1,0,'{"first": 0, "first_text": "yes to 0", "id": "c42ab55717ac7b85", "position": 0, "prompt": "question 0", "prompt_id": "p0", "queue": "round-1", "round": 1, "second": 2, "second_text": "no to 0", "why": {"kendall_distance": 3.0, "pacs": [0.5, -1.5]}}');
INSERT INTO "items" VALUES(2,'679d499ba72f9342',1,1,'{"first": 0, "first_text": "yes to 1", "id": "679d499ba72f9342", "position": 1, "prompt": [{"content": "question 1", "role": "user"}], "prompt_id": "p1", "queue": "round-1", "round": 1, "second": 2, "second_text": "no to 1", "why": {"kendall_distance": 3.0, "pacs": [0.5, -1.5]}}');
INSERT INTO "items" VALUES(3,'abc0cefe9eecc8f1',1,2,'{"first": 0, "first_text": "yes to 2", "id": "abc0cefe9eecc8f1", "position": 2, "prompt": "question 2", "prompt_id": "p2", "queue": "round-1", "round": 1, "second": 2, "second_text": "no to 2", "why": {"kendall_distance": 3.0, "pacs": [0.5, -1.5]}}');
INSERT INTO "items" VALUES(4,'61265808536828d3',1,3,'{"first": 0, "first_text": "yes to 3", "id": "61265808536828d3", "position": 3, "prompt": [{"content": "question 3", "role": "user"}], "prompt_id": "p3", "queue": "round-1", "round": 1, "second": 2, "second_text": "no to 3", "why": {"kendall_distance": 3.0, "pacs": [0.5, -1.5]}}');
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
    time TEXT NOT NULL
);
INSERT INTO "judgements" VALUES(1,'answer-1',1,'ada','first','first',NULL,'""',NULL,0,NULL,'','2026-11-30T22:18:01.379+00:00');
INSERT INTO "judgements" VALUES(2,'answer-2',1,'ben','second','second','clearly','"f\u00fcr"',NULL,0,NULL,'','2026-11-30T22:18:01.395+00:00');
INSERT INTO "judgements" VALUES(3,'answer-3',2,'ada','tie','first',NULL,'""',NULL,0,NULL,'','2026-11-30T22:18:01.426+00:00');
INSERT INTO "judgements" VALUES(4,'undo-3',2,'ada','undo','first',NULL,'""',NULL,0,'answer-3','','2026-11-30T22:18:01.455+00:00');
INSERT INTO "judgements" VALUES(5,'answer-4',3,'ada','flag','first',NULL,'""',NULL,0,NULL,'','2026-11-30T22:18:01.467+00:00');
INSERT INTO "judgements" VALUES(6,'answer-5',4,'ada','first','first',NULL,'""',NULL,0,NULL,'','2026-11-30T22:18:01.503+00:00');
INSERT INTO "judgements" VALUES(7,'answer-6',4,'ben','first','first',NULL,'""',NULL,0,NULL,'','2026-11-30T22:18:01.523+00:00');
CREATE TABLE leases (
    item INTEGER NOT NULL REFERENCES items (number),
    annotator TEXT NOT NULL,
    repeat INTEGER NOT NULL,
    expires REAL NOT NULL,  -- seconds since 1970
    PRIMARY KEY (item, annotator)
) WITHOUT ROWID;
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
INSERT INTO "marks" VALUES('ada',1,2.4465359296290745128e-01,1,0,0,0,1);
INSERT INTO "marks" VALUES('ada',2,6.05915694367503698813e-02,0,0,0,0,NULL);
INSERT INTO "marks" VALUES('ada',3,4.44085109315458637091e-01,0,0,0,1,5);
INSERT INTO "marks" VALUES('ada',4,3.08851287401673113564e-01,1,0,0,0,6);
INSERT INTO "marks" VALUES('ben',1,9.38235731642209747072e-01,1,0,0,0,2);
INSERT INTO "marks" VALUES('ben',4,7.27204092231637733156e-01,1,0,0,0,7);
CREATE TABLE queues (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, seed TEXT NOT NULL);
INSERT INTO "queues" VALUES(1,'round-1','3');
CREATE TABLE standing (
    item INTEGER PRIMARY KEY REFERENCES items (number),
    queue INTEGER NOT NULL,
    people INTEGER NOT NULL DEFAULT 0,  -- number of annotators who answered
    flagged INTEGER NOT NULL DEFAULT 0,  -- 1 if an annotator flagged it
    position INTEGER NOT NULL DEFAULT 0,
    place TEXT NOT NULL DEFAULT '{}'  -- JSON in ASCII: fields of the item that differ from its content
);
INSERT INTO "standing" VALUES(1,1,2,0,0,'{}');
INSERT INTO "standing" VALUES(2,1,0,0,1,'{}');
INSERT INTO "standing" VALUES(3,1,0,1,2,'{}');
INSERT INTO "standing" VALUES(4,1,2,0,3,'{}');
CREATE INDEX judged_item ON judgements (item, annotator);
CREATE INDEX judged_by ON judgements (annotator, number);
CREATE INDEX voted ON marks (item) WHERE votes > 0;
CREATE INDEX repeatable ON marks (annotator, draw) WHERE votes > 0 AND repeats = 0;
CREATE INDEX stands ON standing (queue, flagged, people, position);
CREATE INDEX expiring ON leases (expires);
CREATE INDEX leased_to ON leases (annotator);
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
        flagged = EXISTS (
            SELECT 1 FROM judgements AS j WHERE item = NEW.item AND choice = 'flag'
                AND NOT EXISTS (SELECT 1 FROM judgements WHERE undoes = j.id)
        )
    WHERE item = NEW.item;
    DELETE FROM leases WHERE item = NEW.item AND annotator = NEW.annotator AND NEW.choice <> 'undo';
END;
CREATE TRIGGER queues_no_update BEFORE UPDATE ON queues BEGIN SELECT RAISE(ABORT, 'rows are added and never changed'); END;
CREATE TRIGGER queues_no_delete BEFORE DELETE ON queues BEGIN SELECT RAISE(ABORT, 'rows are added and never changed'); END;
CREATE TRIGGER items_no_update BEFORE UPDATE ON items BEGIN SELECT RAISE(ABORT, 'rows are added and never changed'); END;
CREATE TRIGGER items_no_delete BEFORE DELETE ON items BEGIN SELECT RAISE(ABORT, 'rows are added and never changed'); END;
CREATE TRIGGER judgements_no_update BEFORE UPDATE ON judgements BEGIN SELECT RAISE(ABORT, 'rows are added and never changed'); END;
CREATE TRIGGER judgements_no_delete BEFORE DELETE ON judgements BEGIN SELECT RAISE(ABORT, 'rows are added and never changed'); END;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('judgements',7);
COMMIT;
