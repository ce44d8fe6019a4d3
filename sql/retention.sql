-- Retention: the log keeps a bounded age, number of commits and number of bytes.

-- Forgets a slice of the oldest commits: those older than age, those that are more than commits_kept behind the head, and those behind
-- which the log holds bytes_kept all the same, so that it is larger than that by one commit at most. The newest commit always
-- stays, as the state of numbering. The last one that is forgotten stays too, as the anchor, without its changes: a reader that has it
-- has missed nothing yet.
--
-- A slice ends after commits_max commits, rows_max changes or bytes_max bytes, in the middle of a commit if need be. That commit is
-- forgotten first, so that a reader finds it and all of its changes or nothing, and the rest of its changes goes in the next slices.
-- Transactions without a mark go with their neighbours, and whoever follows their tables begins anew.
--
-- hint, hint_epoch: as for look(). Returns how many commits were forgotten, whether there is more to do, and the anchor's position now,
-- where that was looked at. May be called by several gateways: one at a time does something.
create or replace function switchboard.trim(
    age interval, commits_kept bigint, bytes_kept bigint, commits_max integer, rows_max integer, bytes_max bigint,
    hint_epoch text, hint bigint, out forgotten bigint, out more boolean, out oldest bigint)
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
    -- As in number(): every slice of a long commit is to cost what it holds.
    set enable_indexscan = on
    set enable_nestloop = on
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    newest record;
    anchor bigint;
    anchor_xid xid8;
    unmarked xid8[];
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
    begin
        lock table switchboard.trimming in exclusive mode nowait;
    exception when lock_not_available then
        return;
    end;
    select c.position, c.bytes_end, c.snapshot into newest from switchboard.commit as c order by c.position desc limit 1;
    select c.position, c.xid into anchor, anchor_xid from switchboard.commit as c
    where c.position >= case when hint_epoch = (select name from switchboard.epoch) then least(hint, newest.position) else 0 end
    order by c.position limit 1;
    oldest := anchor;
    select max(c.position) into last
    from (select * from switchboard.commit where position > anchor order by position limit commits_max) as c
    where c.position < newest.position
      and (c.at < clock_timestamp() - age or c.position <= newest.position - commits_kept
           or c.bytes_end <= newest.bytes_end - bytes_kept);

    -- As in read(): the outer side comes in order, and a lateral query runs once for each of its rows.
    for change in
        select doomed.position, doomed.xid, doomed.after_serial, doomed.last_serial, log.serial, log.bytes
        from ((select null::bigint as position, f.xid, f.after_serial, f.last_serial from switchboard.forgotten as f)
              union all
              (select c.position, c.xid, 0, c.last_serial from switchboard.commit as c
               where c.position > anchor and c.position <= last order by c.position)) as doomed
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

    select count(each), max(each) into forgotten, last from unnest(positions) as each;
    if forgotten > 0 then
        delete from switchboard.commit where position >= anchor and position < last;
        update switchboard.commit set last_serial = null where position = last;
        oldest := last;
        unmarked := switchboard.unmarked(anchor_xid, xids[cardinality(xids)], newest.snapshot, commits_max);
    end if;
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
    insert into switchboard.forgotten (xid, after_serial, last_serial)
    select each, 0, (select log.serial from switchboard.log as log where log.xid = each order by log.serial desc limit 1)
    from unnest(unmarked) as each;
    perform switchboard.begin_again(tables.watch)
    from (select distinct changed.watch
          from unnest(unmarked) as each
          cross join lateral (select log.watch from switchboard.log as log where log.xid = each limit rows_max) as changed) as tables
    join switchboard.watched as watched on watched.id = tables.watch and watched.active;
    more := more or coalesce(last - anchor >= commits_max, false) or coalesce(cardinality(unmarked), 0) > 0;
end
$$;

-- The transactions between these two, at most so many, that have changes in the log and can get no position any more: they have no mark,
-- and the last numbering saw them as over. A writer that sets "switchboard.xid" to the number of its own transaction makes such a one.
create or replace function switchboard.unmarked(after xid8, until xid8, numbered pg_snapshot, count_max integer) returns xid8[]
    language sql stable
    set search_path = pg_catalog, pg_temp
    set enable_indexscan = on
    set enable_bitmapscan = off
    set enable_seqscan = off
as $$
    -- From one transaction to the next, however many changes it has.
    with recursive each (xid) as (
        (select log.xid from switchboard.log as log where log.xid > after and log.xid < until order by log.xid limit 1)
        union all
        select (select log.xid from switchboard.log as log where log.xid > each.xid and log.xid < until order by log.xid limit 1)
        from each where each.xid is not null
    )
    select coalesce(array_agg(found.xid), '{}')
    from (select xid from each where xid is not null limit count_max) as found
    where pg_visible_in_snapshot(found.xid, numbered)
      and not exists (select from switchboard.mark as mark where mark.xid = found.xid)
      and not exists (select from switchboard.forgotten as forgotten where forgotten.xid = found.xid)
$$;
