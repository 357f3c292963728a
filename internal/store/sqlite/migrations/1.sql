CREATE TABLE entries (
    idx   INTEGER PRIMARY KEY,
    entry BLOB NOT NULL
) STRICT;

CREATE TABLE tiles (
    level  INTEGER NOT NULL,
    idx    INTEGER NOT NULL,
    hashes BLOB NOT NULL,
    PRIMARY KEY (level, idx)
) STRICT, WITHOUT ROWID;

-- Times are in milliseconds since 1970.
CREATE TABLE requests (
    id         TEXT PRIMARY KEY,
    created    INTEGER NOT NULL,
    changed    INTEGER NOT NULL,
    key        TEXT NOT NULL,
    state      TEXT NOT NULL,
    requester  TEXT NOT NULL,
    rule       TEXT NOT NULL,
    digest     TEXT NOT NULL,
    repository TEXT NOT NULL,
    body       BLOB NOT NULL,
    signature  BLOB
) STRICT;
CREATE INDEX requests_by_requester ON requests (requester, id);
CREATE INDEX requests_by_key ON requests (key, id);
-- Lists of requests that are not signed must not read all those that are.
CREATE INDEX requests_unsigned ON requests (state, id) WHERE state <> 'signed';

CREATE TABLE documents (
    sha256 BLOB PRIMARY KEY,
    data   BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE snapshots (
    size INTEGER PRIMARY KEY,
    data BLOB NOT NULL
) STRICT;

CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT;
