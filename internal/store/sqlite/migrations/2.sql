CREATE INDEX requests_by_repository ON requests (repository, id);
CREATE INDEX requests_by_digest ON requests (digest, id);

-- Messages to people and webhooks. One of due and done is NULL: a notice waits until it is done.
CREATE TABLE notices (
    id        TEXT PRIMARY KEY,
    channel   TEXT NOT NULL,
    recipient TEXT NOT NULL,
    created   INTEGER NOT NULL,
    due       INTEGER,
    done      INTEGER,
    attempts  INTEGER NOT NULL,
    body      BLOB NOT NULL
) STRICT;
CREATE INDEX notices_by_channel ON notices (channel, due) WHERE due IS NOT NULL;
CREATE INDEX notices_due ON notices (due) WHERE due IS NOT NULL;
CREATE INDEX notices_done ON notices (done) WHERE done IS NOT NULL;
