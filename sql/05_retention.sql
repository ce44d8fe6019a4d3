-- Step 5: retention. The log keeps a bounded age, number of commits and number of bytes, and disk space that is free again is used again.

-- A commit's stored bytes, and those of all commits of the epoch up to and including it: how large the log is takes no look at it.
-- Zero for the commits that were numbered before there was this step; they go by their age and number.
alter table switchboard.commit add column if not exists bytes bigint not null default 0;
alter table switchboard.commit add column if not exists bytes_end bigint not null default 0;

-- Commits of which some changes are still to be deleted: those up to last_serial and after after_serial.
create table if not exists switchboard.forgotten (
    xid          xid8   not null,
    after_serial bigint not null,
    last_serial  bigint not null
);

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

-- Gives the transactions that became visible since the last numbering their positions, in the order of their marks, and their sizes.
--
-- Call it in a transaction that is repeatable read and that locked switchboard.numbering first, so that one snapshot serves all of it
-- and rivals queue. Were the lock forgotten, the primary key on position would let one of two rivals through.
--
-- announce: tell other gateways of a new head.
create or replace function switchboard.number(announce boolean, out head bigint, out head_nonce integer, out numbered bigint)
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    -- A long commit is to be read from its end in the index, not sorted as a whole, and nothing here is worth compiling.
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    -- What is stored beside the values, which pg_column_size() counts as they lie on disk, compressed or out of line. For a change:
    -- the head of its row and the other columns (52 bytes), and its entry in the index (28), both with some air.
    change_bytes constant integer := 88;
    -- For a commit: its mark with an entry in an index, and its position with another.
    commit_bytes constant integer := 192;
    -- Of a longer commit only so many changes are measured, its last, and the others count as much, by the serials that it spans:
    -- numbering has to be quick whatever was committed.
    measured_max constant integer := 100000;
    visible  pg_snapshot := pg_current_snapshot();
    previous record;
begin
    select position, nonce, snapshot, bytes_end into strict previous
    from switchboard.commit order by position desc limit 1;

    -- What was invisible to the previous snapshot is either younger than all it knew, or was running then: the cost follows
    -- what is new, not the size of the log. A statement sees exactly the rows whose transaction is visible to its snapshot.
    insert into switchboard.commit (position, nonce, xid, last_serial, at, snapshot, bytes, bytes_end)
    select previous.position + row_number() over by_mark,
           floor(random() * 1679616)::integer,
           fresh.xid,
           fresh.last_serial,
           fresh.at,
           case when lead(fresh.xid) over by_mark is null then visible end,
           fresh.bytes,
           previous.bytes_end + sum(fresh.bytes) over by_mark
    from (
        select mark.xid, mark.at, mark.mark, changes.last_serial, commit_bytes + changes.bytes as bytes
        from (select young.xid, max(young.mark) as mark, max(young.at) as at
              from (select * from switchboard.mark where xid >= pg_snapshot_xmax(previous.snapshot)
                    union all
                    select * from switchboard.mark where xid = any (array(select pg_snapshot_xip(previous.snapshot)))) as young
              group by young.xid) as mark
        cross join lateral (
            select max(change.serial) as last_serial,
                   case when count(*) < measured_max then sum(change.bytes)
                        else sum(change.bytes) / (max(change.serial) - min(change.serial))::double precision
                             * (max(change.serial) - (select log.serial from switchboard.log as log
                                                      where log.xid = mark.xid order by log.serial limit 1))
                   end::bigint as bytes
            from (select log.serial,
                         change_bytes + coalesce(pg_column_size(log.old), 0) + coalesce(pg_column_size(log.new), 0) as bytes
                  from switchboard.log as log
                  where log.xid = mark.xid order by log.serial desc limit measured_max) as change
            having count(*) > 0) as changes
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

-- Where the log begins and ends, how large it is, and the nonce of position "asked" where the log still knows it.
--
-- hint: a position at or before the oldest, as long as the epoch is hint_epoch. Finding the oldest starts there; from the beginning
-- of the index it would have to step over all that retention left behind, for as long as one long transaction keeps it.
create or replace function switchboard.look(
    asked bigint, hint_epoch text, hint bigint,
    out epoch text, out oldest bigint, out oldest_nonce integer, out oldest_at timestamptz,
    out head bigint, out head_nonce integer, out asked_nonce integer, out bytes bigint)
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
as $$
    select epoch.name,
           oldest.position, oldest.nonce, oldest.at,
           newest.position, newest.nonce,
           (select nonce from switchboard.commit where position = asked),
           newest.bytes_end - oldest.bytes_end + oldest.bytes
    from (select * from switchboard.commit order by position desc limit 1) as newest
    left join switchboard.epoch on true
    cross join lateral (
        select * from switchboard.commit as c
        where c.position >= case when epoch.name = hint_epoch then least(hint, newest.position) else 0 end
        order by c.position limit 1) as oldest
$$;

-- As before this step, for gateways that are older than it.
create or replace function switchboard.look(
    asked bigint, out epoch text, out oldest bigint, out oldest_nonce integer,
    out head bigint, out head_nonce integer, out asked_nonce integer)
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
as $$
    select epoch, oldest, oldest_nonce, head, head_nonce, asked_nonce from switchboard.look(asked, null, 0)
$$;

-- As before, and whatever retention had begun is over with the old epoch.
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
    -- Retention must not mistake positions or transactions of the new epoch for those of the old one.
    perform pg_advisory_xact_lock(1937203812, 5);
    delete from switchboard.forgotten;
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

-- Forgets a slice of the oldest commits: those older than age, those that are more than commits_kept behind the head, and those behind
-- which the log holds bytes_kept all the same, so that it is larger than that by one commit at most. The newest commit always
-- stays, as the state of numbering.
--
-- A slice ends after commits_max commits, rows_max changes or bytes_max bytes, in the middle of a commit if need be. That commit is
-- forgotten first, so that a reader finds it and all of its changes or nothing, and the rest of its changes goes in the next slices.
--
-- hint, hint_epoch: as for look(). Returns how many commits were forgotten, whether there is more to do, and the oldest position now,
-- where that was looked at. May be called by several gateways: one at a time does something.
drop function if exists switchboard.trim(interval, bigint, integer);
create or replace function switchboard.trim(
    age interval, commits_kept bigint, bytes_kept bigint, commits_max integer, rows_max integer, bytes_max bigint,
    hint_epoch text, hint bigint, out forgotten bigint, out more boolean, out oldest bigint)
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
    -- As in number(): every slice of a long commit is to cost what it holds.
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    newest record;
    first  bigint;
    last   bigint;
    change record;
    -- The commits that the slice comes to; all but the last of them are deleted to their end.
    positions bigint[] := '{}';
    xids      xid8[]   := '{}';
    rows      integer  := 0;
    bytes     bigint   := 0;
begin
    forgotten := 0;
    more := false;
    if not pg_try_advisory_xact_lock(1937203812, 5) then
        return;
    end if;
    select c.position, c.bytes_end into newest from switchboard.commit as c order by c.position desc limit 1;
    select c.position into first from switchboard.commit as c
    where c.position >= case when hint_epoch = (select name from switchboard.epoch) then least(hint, newest.position) else 0 end
    order by c.position limit 1;
    oldest := first;
    select max(c.position) into last
    from (select * from switchboard.commit where position >= first order by position limit commits_max) as c
    where c.position < newest.position
      and (c.at < clock_timestamp() - age or c.position <= newest.position - commits_kept
           or c.bytes_end <= newest.bytes_end - bytes_kept);

    -- As in read(): the outer side comes in order, and a lateral query runs once for each of its rows.
    for change in
        select doomed.position, doomed.xid, doomed.after_serial, doomed.last_serial, log.serial, log.bytes
        from ((select null::bigint as position, f.xid, f.after_serial, f.last_serial from switchboard.forgotten as f)
              union all
              (select c.position, c.xid, 0, c.last_serial from switchboard.commit as c
               where c.position between first and last order by c.position)) as doomed
        left join lateral (
            select l.serial, coalesce(pg_column_size(l.old), 0) + coalesce(pg_column_size(l.new), 0) as bytes
            from switchboard.log as l
            where l.xid = doomed.xid and l.serial > doomed.after_serial order by l.serial) as log on true
    loop
        if change.xid is distinct from xids[cardinality(xids)] then
            positions := positions || change.position;
            xids := xids || change.xid;
        end if;
        rows := rows + 1;
        bytes := bytes + coalesce(change.bytes, 0);
        more := rows >= rows_max or bytes >= bytes_max;
        exit when more;
    end loop;
    if rows = 0 then
        return;
    end if;

    delete from switchboard.commit where position = any (positions);
    get diagnostics forgotten = row_count;
    delete from switchboard.mark where xid = any (xids);
    delete from switchboard.forgotten where xid = any (xids);
    if more and change.serial < change.last_serial then
        delete from switchboard.log
        where xid = change.xid and serial > change.after_serial and serial <= change.serial;
        insert into switchboard.forgotten (xid, after_serial, last_serial)
        values (change.xid, change.serial, change.last_serial);
        xids := xids[:cardinality(xids) - 1];
    end if;
    delete from switchboard.log where xid = any (xids);
    if forgotten > 0 then
        oldest := positions[cardinality(positions)] + 1;
    end if;
    more := more or coalesce(last - first + 1 >= commits_max, false);
end
$$;

-- Lets a role run a gateway: it may call what a gateway calls and read the watched tables, and no more.
create or replace function switchboard.allow_gateway(role regrole) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    watched record;
begin
    insert into switchboard.gateway_role (role) values (allow_gateway.role) on conflict do nothing;
    execute format('grant usage on schema switchboard to %s', role);
    perform switchboard.lend_functions(role);
    -- To lock the empty table is the right to number.
    execute format('grant delete on switchboard.numbering to %s', role);
    execute format('grant select on switchboard.step to %s', role);
    for watched in select n.nspname, c.relname from switchboard.watched as w
                   join pg_class as c on c.oid = w.relation join pg_namespace as n on n.oid = c.relnamespace
                   where w.active loop
        perform switchboard.lend(role, watched.nspname, watched.relname);
    end loop;
end
$$;

-- Grants a role what gateways call, of whichever version.
create or replace function switchboard.lend_functions(role regrole) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    called regprocedure;
begin
    for called in select oid from pg_proc
                  where pronamespace = 'switchboard'::regnamespace
                    and proname in ('number', 'read', 'look', 'head', 'open', 'tables', 'trim') loop
        execute format('grant execute on function %s to %s', called, role);
    end loop;
end
$$;

select switchboard.lend_functions(g.role) from switchboard.gateway_role as g
join pg_catalog.pg_roles as r on r.oid = g.role;

-- Nobody may call these but the owner and the gateways.
revoke all on all functions in schema switchboard from public;
