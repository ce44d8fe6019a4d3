-- Step 1: the log. Where commits are kept, numbered and trimmed.
--
--   switchboard.log     one row a change, written by the capture trigger in the user's transaction
--   switchboard.mark    one row a transaction, written while it commits; its order is the order of commits
--   switchboard.commit  one row a numbered transaction: its position, without holes
--
-- A released step is never edited; a later step changes what this one made.

create schema if not exists switchboard;

comment on schema switchboard is 'Switchboard: change feed (log, capture, numbering). Remove with: switchboard uninstall';

create table if not exists switchboard.step (
    number     integer     not null,
    name       text        not null,
    applied_at timestamptz not null default pg_catalog.now(),
    constraint step_pkey primary key (number)
);

-- One life of the log. Positions of another epoch mean nothing in this one.
create table if not exists switchboard.epoch (
    name              text        not null,
    system_identifier bigint      not null,
    began_at          timestamptz not null,
    reason            text        not null,
    -- The log has one epoch at a time.
    only_row          boolean     not null default true,
    constraint epoch_pkey primary key (only_row),
    constraint epoch_only_row check (only_row),
    constraint epoch_name check (name ~ '^[0-9a-z]{4}$')
);

-- Every watched table, with its name and key as they were when last seen, so that changes of a table that
-- has been dropped since can still be told.
create table if not exists switchboard.watched (
    id          integer  not null generated always as identity,
    relation    regclass not null,
    schema_name text     not null,
    table_name  text     not null,
    -- The columns of the primary key, else of the replica identity, in their order; null where there is none.
    key_columns text[],
    constraint watched_pkey primary key (id),
    -- False once unwatched; the row stays, for the changes that the log still holds.
    active      boolean not null default true,
    constraint watched_relation_key unique (relation)
);

-- Draws both serials and marks. It must not be cached: a cached number says nothing about order.
create sequence if not exists switchboard.serial as bigint cache 1 no cycle;

create table if not exists switchboard.log (
    xid    xid8    not null,
    serial bigint  not null default pg_catalog.nextval('switchboard.serial'),
    watch  integer not null,
    -- The first letter of the operation: I, U, D or T.
    op     "char"  not null,
    -- Whether this is the transaction's first row, the one that will draw the mark.
    first  boolean not null,
    old    json,
    new    json,
    -- No check constraint here or below: it would be parsed again in every transaction of every writer.
    constraint log_pkey primary key (xid, serial)
);

create table if not exists switchboard.mark (
    xid  xid8        not null,
    mark bigint      not null,
    at   timestamptz not null
);

-- Not unique: a session that resets its settings between two writes makes the second one look like a first one, and that must not
-- fail its commit. The last mark counts.
create index if not exists mark_xid on switchboard.mark (xid);

-- Positions. The newest row of each numbering carries the snapshot that it numbered by, and so the newest row of all is
-- the state of numbering. A state row that is updated in place would be slow to find while a long transaction keeps
-- all of its versions; an index read from its end is not.
create table if not exists switchboard.commit (
    position    bigint      not null,
    -- Tells this commit from another one that came to the same position after a failover.
    nonce       integer     not null,
    xid         xid8        not null,
    -- The serial of the transaction's last change: a reader that has it has the whole commit.
    last_serial bigint      not null,
    at          timestamptz not null,
    snapshot    pg_snapshot,
    constraint commit_pkey primary key (position),
    constraint commit_nonce check (nonce >= 0 and nonce < 1679616)
);

-- Empty: those who number hold a lock on it, one at a time.
create table if not exists switchboard.numbering ();

-- The roles that gateways use, beside the owner of this schema.
create table if not exists switchboard.gateway_role (
    role regrole not null,
    constraint gateway_role_pkey primary key (role)
);

-- What those roles were granted on behalf of Switchboard, to be taken back with it: usage of a schema, or select on a table.
create table if not exists switchboard.granted (
    role        regrole not null,
    schema_name text    not null,
    -- Null where it is the usage of the schema.
    table_name  text,
    constraint granted_key unique (role, schema_name, table_name)
);
