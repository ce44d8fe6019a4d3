-- Step 6: pages. Reading the log costs what a page holds, and what is read follows what the reader knows.

-- The changes after a place, in order, whole commits or parts of one: those of commits after after_position and up to until_position,
-- beginning inside commit after_position + 1 behind change after_serial where that is not null.
-- Ends once rows_max rows or bytes_max bytes of row values are reached, after at least one row.
--
-- Nothing where the log does not hold known_position with known_nonce, a commit that the reader's story leads to: retention overtook
-- it, or this is another server than the one that told the story, promoted without the last transactions, which may have given the
-- positions behind that to others since.
create or replace function switchboard.read(
    known_position bigint, known_nonce integer,
    after_position bigint, after_serial bigint, until_position bigint, rows_max integer, bytes_max bigint)
    returns table ("position" bigint, nonce integer, xid text, at text, last_serial bigint,
                   serial bigint, watch integer, op text, old text, new text)
    language plpgsql stable security definer
    set search_path = pg_catalog, pg_temp
    set "TimeZone" = 'UTC'
    -- Rows of a large commit are in the log before there are statistics of it, and the planner then likes to fetch all that is left of
    -- the commit and to sort it, for every page. The index gives them in their order.
    set enable_sort = off
    set enable_bitmapscan = off
    set enable_seqscan = off
as $$
declare
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

-- As before this step, for gateways that are older than it.
create or replace function switchboard.read(
    after_position bigint, after_serial bigint, until_position bigint, rows_max integer, bytes_max bigint)
    returns table ("position" bigint, nonce integer, xid text, at text, last_serial bigint,
                   serial bigint, watch integer, op text, old text, new text)
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
as $$
    select page.* from (select position, nonce from switchboard.commit order by position desc limit 1) as newest
    cross join lateral switchboard.read(
        newest.position, newest.nonce, after_position, after_serial, until_position, rows_max, bytes_max) as page
$$;

select switchboard.lend_functions(g.role) from switchboard.gateway_role as g
join pg_catalog.pg_roles as r on r.oid = g.role;

-- Nobody may call these but the owner and the gateways.
revoke all on all functions in schema switchboard from public;
