-- Reading: pages of the log, and where it begins and ends.

-- The changes after a place, in order, whole commits or parts of one: those of commits after after_position and up to until_position,
-- beginning inside commit after_position + 1 behind change after_serial where that is not null.
-- Ends once rows_max rows or bytes_max bytes of row values are reached, after at least one row.
--
-- Nothing where the log does not hold known_position with known_nonce, a commit that the reader's story leads to: retention overtook
-- it, or this is another server than the one that told the story, promoted without the last transactions, which may have given the
-- positions behind that to others since.
--
-- Rows come as the bytes that the database has, in UTF-8 if it can be asked for that: one row that is not what its encoding says must not
-- fail all others of the page. With "careful", a row that cannot be read comes empty instead of failing them.
create or replace function switchboard.read(
    known_position bigint, known_nonce integer,
    after_position bigint, after_serial bigint, until_position bigint, rows_max integer, bytes_max bigint, careful boolean)
    returns table ("position" bigint, nonce integer, xid text, at text, last_serial bigint,
                   serial bigint, watch integer, op text, old bytea, new bytea)
    language plpgsql stable security definer
    set search_path = pg_catalog, pg_temp
    set "TimeZone" = 'UTC'
    -- Rows of a large commit are in the log before there are statistics of it, and the planner then likes to fetch all that is left of
    -- the commit and to sort it, for every page. The index gives them in their order.
    set enable_sort = off
    set enable_bitmapscan = off
    set enable_seqscan = off
    set enable_indexscan = on
    set enable_nestloop = on
as $$
declare
    -- SQL_ASCII says nothing of what its bytes mean.
    encoding constant name := case getdatabaseencoding() when 'SQL_ASCII' then 'SQL_ASCII' else 'UTF8' end;
    change record;
    rows   integer := 0;
    bytes  bigint := 0;
begin
    if not exists (select from switchboard.commit as c where c.position = known_position and c.nonce = known_nonce) then
        return;
    end if;
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
        -- The anchor's changes are forgotten; some of them may still be there.
        where commit.last_serial is not null
    loop
        "position" := change.position;
        nonce := change.nonce;
        xid := change.xid::text;
        at := to_char(change.at, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');
        last_serial := change.last_serial;
        serial := change.serial;
        watch := change.watch;
        -- Other bytes are no operation of ours, and before version 16 they need not even be text.
        op := case when change.op::integer between 33 and 126 then change.op::text else '?' end;
        if careful then
            old := switchboard.bytes_or_nothing(change.old, encoding);
            new := switchboard.bytes_or_nothing(change.new, encoding);
        else
            old := convert_to(change.old::text, encoding);
            new := convert_to(change.new::text, encoding);
        end if;
        return next;
        rows := rows + 1;
        bytes := bytes + coalesce(octet_length(old), 0) + coalesce(octet_length(new), 0);
        exit when rows >= rows_max or bytes >= bytes_max;
    end loop;
end
$$;

-- The bytes of a text in an encoding; empty where it cannot be read or has no form in it.
create or replace function switchboard.bytes_or_nothing(value json, encoding name) returns bytea
    language plpgsql stable strict
    set search_path = pg_catalog, pg_temp
as $$
begin
    return convert_to(value::text, encoding);
exception when others then
    return '';
end
$$;

-- Where the log begins and ends, how large it is, and the nonce of position "asked" where the log still knows it.
--
-- oldest: the position that all the log holds comes after. hint: a position at or before it, as long as the epoch is hint_epoch. Finding
-- the oldest starts there; from the beginning of the index it would have to step over all that retention left behind, for as long as one
-- long transaction keeps it.
create or replace function switchboard.look(
    asked bigint, hint_epoch text, hint bigint,
    out epoch text, out oldest bigint, out oldest_nonce integer, out oldest_at timestamptz,
    out head bigint, out head_nonce integer, out asked_nonce integer, out bytes bigint)
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    set enable_indexscan = on
as $$
    select epoch.name,
           oldest.position, oldest.nonce,
           (select c.at from switchboard.commit as c where c.position > oldest.position order by c.position limit 1),
           newest.position, newest.nonce,
           (select nonce from switchboard.commit where position = asked),
           newest.bytes_end - oldest.bytes_end
    from (select * from switchboard.commit order by position desc limit 1) as newest
    left join switchboard.epoch on true
    cross join lateral (
        select * from switchboard.commit as c
        where c.position >= case when epoch.name = hint_epoch then least(hint, newest.position) else 0 end
        order by c.position limit 1) as oldest
$$;

-- Where the log ends. (To find where it begins may mean to step over much that retention left behind.)
create or replace function switchboard.head(out head bigint, out head_nonce integer)
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    set enable_indexscan = on
as $$
    select position, nonce from switchboard.commit order by position desc limit 1
$$;
