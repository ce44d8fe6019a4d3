-- Step 1: the log. Where commits are kept, numbered and trimmed.
--
--   switchboard.log      one row a change, written by the capture trigger in the user's transaction
--   switchboard.mark     written while a transaction commits; the order of marks is the order of commits
--   switchboard.commit   one row a numbered transaction: its position, without holes
--
-- Steps change tables. Once released they are never edited; a later step changes what this one made. Functions are in files of their own,
-- which every installation applies again. Everything may be there already, without a row: a dump of the schema only.
--
-- Every logged table has a replica identity, so that a publication for all tables does not forbid us to delete. No column holds an object of
-- this cluster under a type such as regclass or regrole: a dump has to load where that object does not exist.

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
    -- Where the log lives. A dump that is loaded elsewhere says so by these.
    system_identifier bigint      not null,
    database          oid         not null,
    began_at          timestamptz not null,
    reason            text        not null,
    -- The log has one epoch at a time.
    only_row          boolean     not null default true,
    constraint epoch_pkey primary key (only_row),
    constraint epoch_only_row check (only_row),
    constraint epoch_name check (name ~ '^[0-9a-z]{4}$')
);

-- The books: every watched table as it was when last seen, so that changes of a table that has been dropped since can still be told,
-- and so that a table that is not what it was is noticed.
create table if not exists switchboard.watched (
    -- Drawn at random: a trigger that was copied into another database names a table that is not in the books there.
    id          integer not null,
    -- Null where the table is not in this database.
    relation    oid,
    schema_name text    not null,
    table_name  text    not null,
    -- The columns of the primary key, else of the replica identity, in their order; null where there is none.
    key_columns text[],
    -- False once unwatched; the row stays, for the changes that the log still holds.
    active      boolean not null default true,
    -- What switchboard.state() said of the table, null before it was asked: its triggers, by itself and its partitions; its columns by their
    -- numbers; where its rows lie, by itself and its partitions; and which versions of its columns' descriptions these are.
    triggers    jsonb,
    columns     jsonb,
    storage     jsonb,
    attributes  text,
    constraint watched_pkey primary key (id),
    constraint watched_relation_key unique (relation)
);

-- Draws both serials and marks. It must not be cached: a cached number says nothing about order.
create sequence if not exists switchboard.serial as bigint cache 1 no cycle;

create table if not exists switchboard.log (
    xid    xid8    not null,
    serial bigint  not null default pg_catalog.nextval('switchboard.serial'),
    watch  integer not null,
    -- The first letter of the operation: I, U, D or T. R where the table has to be read again: what happened to it cannot be told.
    op     "char"  not null,
    -- Whether this is the transaction's first row, the one that will draw the mark.
    first  boolean not null,
    old    json,
    new    json,
    -- No check constraint here or below: it would be parsed again in every transaction of every writer.
    constraint log_pkey primary key (xid, serial)
);

-- Not unique: a mark that was drawn too early gets a successor (see switchboard.confirm_mark()), and a session that resets its settings
-- between two writes makes the second one look like a first one, which must not fail its commit. The last mark counts.
create table if not exists switchboard.mark (
    xid   xid8        not null,
    -- 0 where it was drawn while constraints were immediate: the commit was still to come.
    mark  bigint      not null,
    at    timestamptz not null,
    -- Whether nothing more is to be looked at.
    final boolean     not null
);
create index if not exists mark_xid on switchboard.mark (xid);
alter table switchboard.mark replica identity full;

-- Positions. The newest row of each numbering carries the snapshot that it numbered by, and so the newest row of all is
-- the state of numbering. A state row that is updated in place would be slow to find while a long transaction keeps
-- all of its versions; an index read from its end is not.
--
-- The oldest row is the anchor: its changes were forgotten (at position 0 there were none), and a reader that has them can go on.
create table if not exists switchboard.commit (
    position    bigint      not null,
    -- Tells this commit from another one that came to the same position after a failover.
    nonce       integer     not null,
    xid         xid8        not null,
    -- The serial of the transaction's last change: a reader that has it has the whole commit. Null at the anchor.
    last_serial bigint,
    at          timestamptz not null,
    snapshot    pg_snapshot,
    -- The stored bytes of the commit, and of all commits of the epoch up to and including it: how large the log is takes no look at it.
    bytes       bigint      not null default 0,
    bytes_end   bigint      not null default 0,
    constraint commit_pkey primary key (position),
    constraint commit_nonce check (nonce >= 0 and nonce < 1679616)
);

-- Commits of which some changes are still to be deleted: those up to last_serial and after after_serial.
create table if not exists switchboard.forgotten (
    xid          xid8   not null,
    after_serial bigint not null,
    last_serial  bigint not null,
    constraint forgotten_pkey primary key (xid)
);

-- Empty: those who number hold a lock on it, one at a time.
create table if not exists switchboard.numbering ();
alter table switchboard.numbering replica identity full;

-- Empty: those who delete old commits hold a lock on it. (Whoever may connect can hold an advisory lock.)
create table if not exists switchboard.trimming ();
alter table switchboard.trimming replica identity full;

-- The roles that gateways use, beside the owner of this schema.
create table if not exists switchboard.gateway_role (
    role_name text not null,
    constraint gateway_role_pkey primary key (role_name)
);

-- What those roles were granted on behalf of Switchboard, to be taken back with it: usage of a schema, or select on a table.
create table if not exists switchboard.granted (
    role_name   text not null,
    schema_name text not null,
    -- Null where it is the usage of the schema.
    table_name  text,
    constraint granted_key unique (role_name, schema_name, table_name)
);
alter table switchboard.granted replica identity full;

-- By count, not by the fraction of the table that is the default: as many rows die as come, and a log of ten million would wait for two
-- million dead ones. Inserted rows too, so that a first vacuum need not read a whole day's log. The limits are high enough that a
-- vacuum, which reads all of an index, is rare, and so low that dead rows take some 10 MB. (Truncation stays allowed: it gives back
-- the disk space of a burst, and yields to writers at once.)
alter table switchboard.log set (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000,
    toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 10000,
    toast.autovacuum_vacuum_insert_scale_factor = 0, toast.autovacuum_vacuum_insert_threshold = 50000);
alter table switchboard.mark set (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000);
alter table switchboard.commit set (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000);
alter table switchboard.forgotten set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 100);
