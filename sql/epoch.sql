-- Epochs: one life of the log each.

-- Whether the log was made in another cluster or database, and no new epoch was begun here yet.
create or replace function switchboard.is_elsewhere() returns boolean
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
as $$
    select not exists (
        select from switchboard.epoch
        where epoch.database = (select oid from pg_database where datname = current_database())
          and epoch.system_identifier = (select system_identifier from pg_control_system()))
$$;

-- What every session of a feed begins with. Begins a new epoch where the log has none yet, or where its positions cannot go on: in
-- another cluster or database than the one that gave them (a restored dump, an upgrade), or where transaction numbers went backwards.
-- Returns the reason, or null where all goes on.
create or replace function switchboard.open() returns text
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
    set enable_indexscan = on
as $$
declare
    was     switchboard.epoch;
    newest  pg_snapshot;
    visible pg_snapshot;
    reason  text;
begin
    -- First, so that of two gateways that start together one finds the epoch that the other began.
    lock table switchboard.numbering in exclusive mode;
    select * into was from switchboard.epoch;
    select snapshot into newest from switchboard.commit order by position desc limit 1;
    reason := case
        when was.name is null or newest is null then 'the log is new'
        when switchboard.is_elsewhere() then 'the log was brought into another cluster or database'
        when pg_snapshot_xmax(newest) > pg_snapshot_xmax(pg_current_snapshot()) then 'transaction numbers went backwards'
    end;
    if reason is null then
        -- A crash empties them, and ends every session.
        perform switchboard.begin_again(state.id) from switchboard.state() as state where state.unlogged and state.captures;
        return null;
    end if;
    -- Retention must not mistake positions or transactions of the new epoch for those of the old one.
    lock table switchboard.trimming in exclusive mode;
    -- Only row locks on committed rows: writers go on meanwhile. One statement, so that all of it has one snapshot: what that does not
    -- see stays whole, and is the first that the new epoch numbers.
    with log as (delete from switchboard.log),
         mark as (delete from switchboard.mark),
         forgotten as (delete from switchboard.forgotten),
         positions as (delete from switchboard.commit),
         epoch as (delete from switchboard.epoch)
    select pg_current_snapshot() into visible;
    insert into switchboard.epoch (name, system_identifier, database, began_at, reason)
    select string_agg(substr('0123456789abcdefghijklmnopqrstuvwxyz', 1 + floor(random() * 36)::integer, 1), ''),
           (select system_identifier from pg_control_system()),
           (select oid from pg_database where datname = current_database()),
           clock_timestamp(), reason
    from generate_series(1, 4);
    -- Position 0: everything before the epoch.
    insert into switchboard.commit (position, nonce, xid, at, snapshot)
    values (0, floor(random() * 1679616)::integer, '0'::xid8, clock_timestamp(), visible);
    if was.name is not null then
        perform switchboard.find_tables();
        -- In this transaction too, so that nobody sees the books without what is true of the tables here.
        perform known.id from switchboard.tables() as known;
    end if;
    return reason;
end
$$;

-- Finds the tables in the books by their names: those of another database, or cluster, have other oids here.
create or replace function switchboard.find_tables() returns void
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    update switchboard.watched set relation = null, triggers = null, columns = null, storage = null, attributes = null;
    update switchboard.watched as watched set relation = found.oid
    from (select distinct on (class.oid) class.oid, w.id
          from switchboard.watched as w
          join pg_namespace as namespace on namespace.nspname = w.schema_name
          join pg_class as class on class.relnamespace = namespace.oid and class.relname = w.table_name and class.relkind in ('r', 'p')
          order by class.oid, w.active desc, w.id) as found
    where watched.id = found.id;
end
$$;
