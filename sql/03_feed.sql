-- Step 3: what gateways call. A gateway's role needs the right to execute these functions, and none on the tables.

-- Gives the transactions that became visible since the last numbering their positions, in the order of their marks.
--
-- Call it in a transaction that is repeatable read and that locked switchboard.numbering first, so that one snapshot serves all of it
-- and rivals queue. Were the lock forgotten, the primary key on position would let one of two rivals through.
--
-- announce: tell other gateways of a new head.
create or replace function switchboard.number(announce boolean, out head bigint, out head_nonce integer, out numbered bigint)
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    visible  pg_snapshot := pg_current_snapshot();
    previous record;
begin
    select position, nonce, snapshot into strict previous
    from switchboard.commit order by position desc limit 1;

    -- What was invisible to the previous snapshot is either younger than all it knew, or was running then: the cost follows
    -- what is new, not the size of the log. A statement sees exactly the rows whose transaction is visible to its snapshot.
    insert into switchboard.commit (position, nonce, xid, last_serial, at, snapshot)
    select previous.position + row_number() over by_mark,
           floor(random() * 1679616)::integer,
           fresh.xid,
           fresh.last_serial,
           fresh.at,
           case when lead(fresh.xid) over by_mark is null then visible end
    from (
        select mark.xid, mark.at, mark.mark, last.serial as last_serial
        from (select young.xid, max(young.mark) as mark, max(young.at) as at
              from (select * from switchboard.mark where xid >= pg_snapshot_xmax(previous.snapshot)
                    union all
                    select * from switchboard.mark where xid = any (array(select pg_snapshot_xip(previous.snapshot)))) as young
              group by young.xid) as mark
        cross join lateral (select log.serial from switchboard.log as log
                            where log.xid = mark.xid order by log.serial desc limit 1) as last
    ) as fresh
    -- With constraints set immediate the mark is drawn at the first change: the last serial is then nearer the commit.
    window by_mark as (order by greatest(fresh.mark, fresh.last_serial));
    get diagnostics numbered = row_count;

    if numbered = 0 then
        head := previous.position;
        head_nonce := previous.nonce;
        return;
    end if;
    select position, nonce into strict head, head_nonce
    from switchboard.commit order by position desc limit 1;
    -- A position promises that everything up to it is durable, also where writers commit asynchronously.
    if current_setting('synchronous_commit') in ('off', 'local') then
        perform set_config('synchronous_commit', 'on', true);
    end if;
    if announce then
        perform pg_notify('switchboard', 'head');
    end if;
end
$$;

-- The changes after a place, in order, whole commits or parts of one: those of commits after after_position and up to until_position,
-- beginning inside commit after_position + 1 behind change after_serial where that is not null.
-- Ends once rows_max rows or bytes_max bytes of row values are reached, after at least one row.
create or replace function switchboard.read(
    after_position bigint, after_serial bigint, until_position bigint, rows_max integer, bytes_max bigint)
    returns table ("position" bigint, nonce integer, xid text, at text, last_serial bigint,
                   serial bigint, watch integer, op text, old text, new text)
    language plpgsql stable security definer
    set search_path = pg_catalog, pg_temp
    set "TimeZone" = 'UTC'
as $$
declare
    change record;
    rows   integer := 0;
    bytes  bigint := 0;
begin
    -- Without "order by" on the outside, which would sort a whole large commit for every page of it: the outer side comes in order
    -- from its index, and a lateral query runs once for each of its rows. The reader checks the order all the same.
    for change in
        select commit.position, commit.nonce, commit.xid, commit.at, commit.last_serial,
               log.serial, log.watch, log.op, log.old, log.new
        from (select * from switchboard.commit as c
              where c.position > after_position and c.position <= until_position
              order by c.position limit rows_max) as commit
        cross join lateral (
            select * from switchboard.log as l
            where l.xid = commit.xid
              and l.serial > case when commit.position = after_position + 1 then coalesce(after_serial, 0) else 0 end
            order by l.serial) as log
    loop
        "position" := change.position;
        nonce := change.nonce;
        xid := change.xid::text;
        at := to_char(change.at, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');
        last_serial := change.last_serial;
        serial := change.serial;
        watch := change.watch;
        op := change.op::text;
        old := change.old::text;
        new := change.new::text;
        return next;
        rows := rows + 1;
        -- octet_length reads the stored size; it does not fetch what lies out of line.
        bytes := bytes + coalesce(octet_length(change.old::text), 0) + coalesce(octet_length(change.new::text), 0);
        exit when rows >= rows_max or bytes >= bytes_max;
    end loop;
end
$$;

-- Where the log begins and ends, and the nonce of position "asked" where the log still knows it.
create or replace function switchboard.look(
    asked bigint, out epoch text, out oldest bigint, out oldest_nonce integer,
    out head bigint, out head_nonce integer, out asked_nonce integer)
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
as $$
    select (select name from switchboard.epoch),
           oldest.position, oldest.nonce,
           newest.position, newest.nonce,
           (select nonce from switchboard.commit where position = asked)
    from (select position, nonce from switchboard.commit order by position limit 1) as oldest,
         (select position, nonce from switchboard.commit order by position desc limit 1) as newest
$$;

-- Where the log ends. (To find where it begins may mean to step over much that retention left behind.)
create or replace function switchboard.head(out head bigint, out head_nonce integer)
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
as $$
    select position, nonce from switchboard.commit order by position desc limit 1
$$;

-- Begins a new epoch where the log has none yet, or where its positions cannot go on: in another cluster than the one that gave
-- them (a restored dump, an upgrade), or where transaction numbers went backwards. Returns the reason, or null where all goes on.
create or replace function switchboard.open() returns text
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    system bigint := (select system_identifier from pg_control_system());
    was    switchboard.epoch;
    newest pg_snapshot;
    reason text;
begin
    -- First, so that of two gateways that start together one finds the epoch that the other began.
    lock table switchboard.numbering in exclusive mode;
    select * into was from switchboard.epoch;
    select snapshot into newest from switchboard.commit order by position desc limit 1;
    reason := case
        when was.name is null or newest is null then 'the log is new'
        when was.system_identifier <> system then 'the log was brought into another cluster'
        when pg_snapshot_xmax(newest) > pg_snapshot_xmax(pg_current_snapshot()) then 'transaction numbers went backwards'
    end;
    if reason is null then
        return null;
    end if;
    -- Only row locks on committed rows: writers go on meanwhile.
    delete from switchboard.log;
    delete from switchboard.mark;
    delete from switchboard.commit;
    delete from switchboard.epoch;
    insert into switchboard.epoch (name, system_identifier, began_at, reason)
    select string_agg(substr('0123456789abcdefghijklmnopqrstuvwxyz', 1 + floor(random() * 36)::integer, 1), ''),
           system, clock_timestamp(), reason
    from generate_series(1, 4);
    -- Position 0: everything before the epoch.
    insert into switchboard.commit (position, nonce, xid, last_serial, at, snapshot)
    values (0, floor(random() * 1679616)::integer, '0'::xid8, 0, clock_timestamp(), pg_current_snapshot());
    return reason;
end
$$;

-- The watched tables, by the names and keys that they have now, or had when last seen.
create or replace function switchboard.tables()
    returns table (id integer, schema_name text, table_name text, key_columns text[], partitioned boolean, active boolean)
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    update switchboard.watched as watched
    set schema_name = namespace.nspname, table_name = class.relname, key_columns = switchboard.key_columns(class.oid)
    from pg_class as class join pg_namespace as namespace on namespace.oid = class.relnamespace
    where class.oid = watched.relation
      and (watched.schema_name, watched.table_name, watched.key_columns)
          is distinct from (namespace.nspname::text, class.relname::text, switchboard.key_columns(class.oid));
    return query
    select watched.id, watched.schema_name, watched.table_name, watched.key_columns,
           coalesce(class.relkind = 'p', false), watched.active and class.oid is not null
    from switchboard.watched as watched left join pg_class as class on class.oid = watched.relation
    order by watched.id;
end
$$;

-- The columns of a table's primary key, else of the index that is its replica identity; null where there is neither.
create or replace function switchboard.key_columns(relation oid) returns text[]
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select array_agg(attribute.attname::text order by part.ordinal)
    from (select indexrelid, indrelid, indkey, indnkeyatts from pg_index
          where indrelid = relation and (indisprimary or indisreplident)
          order by indisprimary desc limit 1) as index
    cross join lateral unnest(index.indkey::int2[]) with ordinality as part (number, ordinal)
    join pg_attribute as attribute on attribute.attrelid = index.indrelid and attribute.attnum = part.number
    where part.ordinal <= index.indnkeyatts
$$;

-- Forgets at most commits_max of the oldest commits: those older than age, and those that are more than commits_kept behind the head.
-- The newest commit always stays, as the state of numbering. Returns how many were forgotten.
create or replace function switchboard.trim(age interval, commits_kept bigint, commits_max integer) returns bigint
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    newest    bigint := (select position from switchboard.commit order by position desc limit 1);
    last      bigint;
    forgotten bigint;
begin
    select max(position) into last
    from (select position, at from switchboard.commit order by position limit commits_max) as oldest
    where position < newest and (at < clock_timestamp() - age or position <= newest - commits_kept);
    if last is null then
        return 0;
    end if;
    delete from switchboard.log where xid in (select xid from switchboard.commit where position <= last);
    delete from switchboard.mark where xid in (select xid from switchboard.commit where position <= last);
    delete from switchboard.commit where position <= last;
    get diagnostics forgotten = row_count;
    return forgotten;
end
$$;
