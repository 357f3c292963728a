-- Text is compared by its bytes: an index must not depend on the collations of the operating system.
-- Times are in milliseconds since 1970, except in replicas.

-- The end of the log, in one row. Who adds to the log locks it until the transaction ends.
CREATE TABLE head (
    one     boolean PRIMARY KEY DEFAULT true CHECK (one),
    size    bigint NOT NULL,
    seal    bytea,
    version bigint NOT NULL
);
INSERT INTO head (size, version) VALUES (0, 0);

CREATE TABLE replicas (
    number  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name    text NOT NULL,
    version text NOT NULL,
    knows   integer NOT NULL, -- the newest version of the schema that its program knows
    able    boolean NOT NULL DEFAULT false,
    seen    timestamptz NOT NULL
);

CREATE TABLE entries (
    idx   bigint PRIMARY KEY,
    entry bytea NOT NULL
);

CREATE TABLE tiles (
    level  integer NOT NULL,
    idx    bigint NOT NULL,
    hashes bytea NOT NULL,
    PRIMARY KEY (level, idx)
);
ALTER TABLE tiles ALTER hashes SET STORAGE EXTERNAL; -- hashes cannot be compressed

-- A partition is a month: an ID begins with 12 hex digits of the time of its request.
CREATE TABLE requests (
    id         text COLLATE "C" PRIMARY KEY,
    created    bigint NOT NULL,
    changed    bigint NOT NULL,
    key        text COLLATE "C" NOT NULL,
    state      text COLLATE "C" NOT NULL,
    requester  text COLLATE "C" NOT NULL,
    rule       text COLLATE "C" NOT NULL,
    digest     text COLLATE "C" NOT NULL,
    repository text COLLATE "C" NOT NULL,
    body       bytea NOT NULL,
    signature  bytea
) PARTITION BY RANGE (id);
CREATE INDEX requests_by_requester ON requests (requester, id);
CREATE INDEX requests_by_key ON requests (key, id);
CREATE INDEX requests_by_repository ON requests (repository, id);
CREATE INDEX requests_by_digest ON requests (digest, id);
-- Lists of requests that are not signed must not read all those that are.
CREATE INDEX requests_unsigned ON requests (state, id) WHERE state <> 'signed';

CREATE TABLE documents (
    sha256 bytea PRIMARY KEY,
    data   bytea NOT NULL
);

-- The documents of a request are in the partition of its month.
CREATE TABLE request_documents (
    request text COLLATE "C" NOT NULL,
    sha256  bytea NOT NULL,
    data    bytea NOT NULL,
    PRIMARY KEY (sha256, request)
) PARTITION BY RANGE (request);

CREATE TABLE snapshots (
    size bigint PRIMARY KEY,
    data bytea NOT NULL
);

CREATE TABLE meta (
    name  text COLLATE "C" PRIMARY KEY,
    value bytea NOT NULL
);

-- Messages to people and webhooks. One of due and done is NULL: a notice waits until it is done.
CREATE TABLE notices (
    id        text COLLATE "C" PRIMARY KEY,
    channel   text COLLATE "C" NOT NULL,
    recipient text NOT NULL,
    created   bigint NOT NULL,
    due       bigint,
    done      bigint,
    attempts  integer NOT NULL,
    body      bytea NOT NULL
);
CREATE INDEX notices_by_channel ON notices (channel, due) WHERE due IS NOT NULL;
CREATE INDEX notices_due ON notices (due) WHERE due IS NOT NULL;
CREATE INDEX notices_done ON notices (done) WHERE done IS NOT NULL;

-- Logins to tokens: in flight until a time, or refused. No PIN is in it.
CREATE TABLE logins (
    token  bytea PRIMARY KEY,
    login  bytea NOT NULL,
    until  timestamptz, -- NULL after a refused one
    record bytea NOT NULL
);

-- What can be used once: answers to challenges, login documents, ends of sessions.
CREATE TABLE uses (
    id    bytea PRIMARY KEY,
    until timestamptz NOT NULL
);
CREATE INDEX uses_until ON uses (until);
