-- Numbering: what became visible gets its positions.

-- Gives the transactions that became visible since the last numbering their positions, in the order of their marks, and their sizes.
--
-- Call it in a transaction that is repeatable read and that locked switchboard.numbering first, so that one snapshot serves all of it
-- and rivals queue. Were the lock forgotten, the primary key on position would let one of two rivals through.
create or replace function switchboard.number(out head bigint, out head_nonce integer, out numbered bigint)
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    -- A long commit is to be read from its end in the index, not sorted as a whole, and nothing here is worth compiling.
    set enable_indexscan = on
    set enable_bitmapscan = off
    set enable_nestloop = on
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
    -- A change that is written after the mark was drawn, by a deferred trigger of the user's, is nearer the commit.
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
end
$$;
