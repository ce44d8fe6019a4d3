-- Tables: which are watched, and whether they still are what they were when last seen. watch() and unwatch() are for people, from psql or by
-- the commands of the same names.

-- Watches a table: every change of its rows is captured from now on. May be repeated; makes triggers anew that are missing or disabled,
-- and then whoever follows the table begins anew, since changes may have been missed. Returns its number in the books.
create or replace function switchboard.watch(relation regclass) returns integer
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    class      record;
    watch      integer;
    known      boolean;
    was_active boolean;
    role_name  text;
begin
    select c.oid, c.relkind, c.relpersistence, c.relispartition, n.nspname, c.relname into strict class
    from pg_class as c join pg_namespace as n on n.oid = c.relnamespace where c.oid = relation;
    if class.nspname = 'switchboard' then
        raise exception '% is a table of Switchboard itself', relation
            using hint = 'Its contents are what the feed is made of; watch a table of yours.', errcode = 'wrong_object_type';
    elsif class.nspname in ('pg_catalog', 'information_schema') then
        raise exception '% is a table of PostgreSQL itself, which fires no triggers for it', relation
            using hint = 'Watch a table of yours.', errcode = 'wrong_object_type';
    elsif class.relkind not in ('r', 'p') then
        raise exception '% is not a table', relation
            using hint = 'Watch the tables that it reads from.', errcode = 'wrong_object_type';
    elsif class.relpersistence = 't' then
        raise exception '% is a temporary table; only its own session sees it', relation using errcode = 'wrong_object_type';
    elsif class.relispartition then
        raise exception '% is a partition', relation
            using hint = 'Watch the partitioned table that it belongs to.', errcode = 'wrong_object_type';
    end if;

    -- Two who watch the same table at the same time do so one after the other.
    insert into switchboard.watched (id, relation, schema_name, table_name)
    values (1 + floor(random() * 2147483646)::integer, class.oid, class.nspname, class.relname)
    on conflict on constraint watched_relation_key do nothing;
    known := not found;
    select w.id, w.active into watch, was_active from switchboard.watched as w where w.relation = class.oid for update;
    if not was_active then
        update switchboard.watched set active = true where id = watch;
    end if;

    perform switchboard.drop_strays(relation);
    -- A trigger that is as it should be stays: to make it again would lock the table for nothing.
    if not (known and was_active and switchboard.captures(class.oid, watch)) then
        perform switchboard.drop_triggers(relation);
        -- PostgreSQL fires triggers in the order of their names, and ours is to come first: one of the user's may change the row again, and
        -- that comes second. With the number in its name it does not stand in the way of a table that this one becomes a partition of.
        execute format('create trigger %I after insert or update or delete on %s
                        for each row execute function switchboard.capture(%L, %L)',
                       '!switchboard_capture_' || watch, relation, watch, class.oid);
        execute format('create trigger %I after truncate on %s
                        for each statement execute function switchboard.capture(%L, %L)',
                       '!switchboard_truncate_' || watch, relation, watch, class.oid);
        -- Nothing is known of what happened meanwhile, nor to a table of this name that was watched before.
        if known or exists (select from switchboard.watched as w where w.id <> watch
                            and (w.schema_name, w.table_name) = (class.nspname, class.relname)) then
            perform switchboard.begin_again(watch);
        end if;
        update switchboard.watched as w
        set schema_name = s.schema_name, table_name = s.table_name, key_columns = s.key_columns,
            triggers = s.triggers, columns = s.columns, storage = s.storage, attributes = s.attributes
        from switchboard.state(watch) as s where w.id = watch;
    end if;

    for role_name in select r.rolname from switchboard.gateway_role as g join pg_roles as r on r.rolname = g.role_name loop
        perform switchboard.lend(role_name, class.nspname, class.relname);
    end loop;
    return watch;
end
$$;

-- Stops watching a table: whoever has rows of it is told, at the position where that is. What the log holds of it stays until its time is
-- over. Returns whether it was watched.
create or replace function switchboard.unwatch(relation regclass) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    was_active boolean;
    watch      integer;
begin
    select active, id into was_active, watch from switchboard.watched where watched.relation = unwatch.relation;
    perform switchboard.take_back(n.nspname, c.relname)
    from pg_class as c join pg_namespace as n on n.oid = c.relnamespace where c.oid = relation;
    perform switchboard.drop_triggers(relation);
    if was_active then
        perform switchboard.begin_again(watch);
    end if;
    update switchboard.watched set active = false, triggers = null where watched.relation = unwatch.relation;
    return coalesce(was_active, false);
end
$$;

-- Has whoever follows the table begin anew: writes a change that says no more than that. It has a position like any other, so those who
-- are away now meet it too.
create or replace function switchboard.begin_again(watch integer) returns void
    language sql volatile
    set search_path = pg_catalog, pg_temp
as $$
    insert into switchboard.log (xid, watch, op, first)
    values (pg_current_xact_id(), watch, 'R',
            case when current_setting('switchboard.xid', true) = pg_current_xact_id()::text then false
                 else set_config('switchboard.xid', pg_current_xact_id()::text, true) is not null end)
$$;

-- Drops our triggers on a table, those that came from the table it is a partition of excepted: they go with that.
create or replace function switchboard.drop_triggers(relation regclass) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    name name;
begin
    for name in select tgname from pg_trigger
                where tgrelid = relation and tgfoid = 'switchboard.capture'::regproc and tgparentid = 0 loop
        execute format('drop trigger %I on %s', name, relation);
    end loop;
end
$$;

-- The triggers that were made for another table than the one they are on, or for one that is not in the books: copies, from a dump.
create or replace function switchboard.strays() returns table (relation oid, trigger_name name)
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
as $$
    select t.tgrelid, t.tgname from pg_trigger as t
    where t.tgfoid = 'switchboard.capture'::regproc and t.tgparentid = 0
      and not exists (
          select from switchboard.watched as w
          where w.relation = t.tgrelid and w.active
            and t.tgname in ('!switchboard_capture_' || w.id, '!switchboard_truncate_' || w.id))
$$;

-- Drops stray triggers, on one table or on all that the caller owns. Returns the names of the tables they were on.
create or replace function switchboard.drop_strays(only_relation oid default null) returns text[]
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    stray  record;
    tables text[] := '{}';
begin
    for stray in select s.relation::regclass as relation, s.trigger_name from switchboard.strays() as s
                 join pg_class as c on c.oid = s.relation
                 where (only_relation is null or s.relation = only_relation) and pg_has_role(c.relowner, 'usage') loop
        execute format('drop trigger %I on %s', stray.trigger_name, stray.relation);
        if stray.relation::text <> all (tables) then
            tables := tables || stray.relation::text;
        end if;
    end loop;
    return tables;
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

-- What makes a difference of a type that is not one of PostgreSQL's own: its name, an enum's labels, the fields of a row type; and the same
-- of the types that it is made of.
create or replace function switchboard.type_details(type oid) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    -- Types made by users have oids from 16384 on.
    select case when type >= 16384 then (
        with recursive part (oid) as (
            select type
            union
            select made_of.oid
            from part join pg_type as t on t.oid = part.oid
            cross join lateral (
                select t.typbasetype as oid where t.typtype = 'd'
                union all select t.typelem where t.typcategory = 'A'
                union all select r.rngsubtype from pg_range as r where r.rngtypid = t.oid
                union all select a.atttypid from pg_attribute as a
                          where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
            ) as made_of
            where made_of.oid >= 16384
        )
        select string_agg(concat_ws(' ', n.nspname, t.typname, t.typtypmod,
                                    (select string_agg(e.enumlabel, ',' order by e.enumsortorder)
                                     from pg_enum as e where e.enumtypid = t.oid),
                                    (select string_agg(concat_ws(' ', a.attname, a.atttypid, a.atttypmod), ',' order by a.attnum)
                                     from pg_attribute as a
                                     where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped)),
                          '<' order by t.oid)
        from part join pg_type as t on t.oid = part.oid join pg_namespace as n on n.oid = t.typnamespace) end
$$;

-- What the tables in the books are now, those that are there; one, or all. It takes no lock on any of them.
--
-- captures: all triggers are there and enabled, on every partition. triggers, storage: of the table and each partition, the same text as
-- long as nothing was done to its triggers, nor was the table made a partition itself; and to where its rows lie (TRUNCATE, VACUUM FULL and
-- rewrites change that). columns: by their numbers, everything that could make a difference to the JSON form of a value or to what a filter
-- says of it.
create or replace function switchboard.state(only_watch integer default null)
    returns table (id integer, relation oid, schema_name text, table_name text, key_columns text[], partitioned boolean, unlogged boolean,
                   captures boolean, triggers jsonb, columns jsonb, storage jsonb, attributes text)
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    set enable_indexscan = on
    set jit = off
as $$
    select watched.id, class.oid, namespace.nspname::text, class.relname::text, switchboard.key_columns(class.oid),
           class.relkind = 'p', class.relpersistence = 'u',
           coalesce(line.captures and line.truncates, false), line.triggers, described.columns, line.storage, described.attributes
    from switchboard.watched as watched
    join pg_class as class on class.oid = watched.relation
    join pg_namespace as namespace on namespace.oid = class.relnamespace
    cross join lateral (
        with recursive member (relid) as (
            select class.oid
            union all
            select inherits.inhrelid from member join pg_inherits as inherits on inherits.inhparent = member.relid
            where class.relkind = 'p'
        )
        select bool_and(exists (select from pg_trigger as t where t.tgrelid = member.relid and t.tgenabled in ('O', 'A')
                                  and t.tgname = '!switchboard_capture_' || watched.id and t.tgfoid = 'switchboard.capture'::regproc))
                   as captures,
               exists (select from pg_trigger as t where t.tgrelid = class.oid and t.tgenabled in ('O', 'A')
                         and t.tgname = '!switchboard_truncate_' || watched.id and t.tgfoid = 'switchboard.capture'::regproc) as truncates,
               jsonb_object_agg(member.relid, (
                   select string_agg(concat_ws(' ', t.oid, t.xmin, t.tgenabled, class.relispartition), ',' order by t.oid)
                   from pg_trigger as t
                   where t.tgrelid = member.relid
                     and t.tgname in ('!switchboard_capture_' || watched.id, '!switchboard_truncate_' || watched.id))) as triggers,
               jsonb_object_agg(member.relid, leaf.relfilenode) as storage
        from member join pg_class as leaf on leaf.oid = member.relid
    ) as line
    cross join lateral (
        select coalesce(jsonb_object_agg(a.attnum, concat_ws(' ', a.attname, a.atttypid, a.atttypmod, a.attcollation, a.attgenerated,
                                                             switchboard.type_details(a.atttypid))), '{}') as columns,
               md5(string_agg(concat_ws(' ', a.attnum, a.xmin), ';' order by a.attnum)) as attributes
        -- Virtual generated ones are left out everywhere, so that one that comes or goes makes no difference.
        from pg_attribute as a
        where a.attrelid = class.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated <> 'v'
    ) as described
    where watched.active and (only_watch is null or watched.id = only_watch)
$$;

-- Whether every change of the table is captured for this number.
create or replace function switchboard.captures(relation oid, watch integer) returns boolean
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select coalesce((select s.captures from switchboard.state(watch) as s where s.relation = captures.relation), false)
$$;

-- Whether a table has no rows, as far as can be told without waiting for somebody who holds it.
create or replace function switchboard.is_empty(relation oid) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '50ms'
as $$
begin
    return coalesce(pg_relation_size(relation) = 0, true);
exception when others then
    return false;
end
$$;

-- The tables in the books, by the names and keys that they have now, or had when last seen. What a gateway calls once a second: it notices
-- what happened to them that no trigger tells, and has whoever follows such a table begin anew.
--
-- careful: rows have to be read value by value (switchboard.value_as_json): there is a type whose cast to json may raise.
-- left_out: columns that a trigger does not see, virtual generated ones.
create or replace function switchboard.tables()
    returns table (id integer, relation oid, schema_name text, table_name text, key_columns text[], partitioned boolean, active boolean,
                   careful boolean, left_out text[], fingerprint text)
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    now_is  record;
    dropped integer;
begin
    for dropped in
        select w.id from switchboard.watched as w
        where w.active and w.triggers is not null and not exists (select from pg_class where oid = w.relation)
        for update skip locked
    loop
        perform switchboard.begin_again(dropped);
        update switchboard.watched as w set triggers = null where w.id = dropped;
    end loop;
    -- Locked by somebody who watches or unwatches it at this moment: it is for the next time.
    for now_is in
        select s.*, w.columns as known_columns, s.captures
                    and ((w.schema_name, w.table_name, w.key_columns) is distinct from (s.schema_name, s.table_name, s.key_columns)
                         or w.triggers is null or not w.triggers <@ s.triggers
                         or not w.columns <@ s.columns
                         or s.partitioned and not w.storage <@ s.storage
                         or w.storage <> s.storage and w.attributes <> s.attributes
                         -- A partition that came with rows.
                         or exists (select from jsonb_object_keys(s.triggers) as came (relid)
                                    where not w.triggers ? came.relid and not switchboard.is_empty(came.relid::oid))) as altered,
               -- Triggers were there, and are missing or disabled now.
               w.triggers is not null and not s.captures as ended
        from switchboard.state() as s join switchboard.watched as w on w.id = s.id
        where (w.schema_name, w.table_name, w.key_columns, w.triggers, w.columns, w.storage, w.attributes)
              is distinct from (s.schema_name, s.table_name, s.key_columns, case when s.captures then s.triggers end,
                                s.columns, s.storage, s.attributes)
        for update of w skip locked
    loop
        if now_is.known_columns is not null and (now_is.altered or now_is.ended or now_is.captures and exists (
            -- A column that came with values for the rows that were there.
            select from pg_attribute as a
            where a.attrelid = now_is.relation and a.attnum > 0 and not a.attisdropped and a.attgenerated <> 'v'
              and not now_is.known_columns ? a.attnum::text
              and (a.atthasdef or a.atthasmissing or a.attidentity <> ''))) then
            perform switchboard.begin_again(now_is.id);
        end if;
        update switchboard.watched as w
        set schema_name = now_is.schema_name, table_name = now_is.table_name, key_columns = now_is.key_columns,
            triggers = case when now_is.captures then now_is.triggers end, columns = now_is.columns,
            storage = now_is.storage, attributes = now_is.attributes
        where w.id = now_is.id;
    end loop;
    return query
    select w.id, w.relation, w.schema_name, w.table_name, w.key_columns,
           coalesce(class.relkind = 'p', false),
           w.active and w.triggers is not null and class.oid is not null and not coalesce(above.watched, false),
           coalesce(casts.any and exists (select from pg_attribute as a where a.attrelid = class.oid and a.attnum > 0
                                            and not a.attisdropped and a.atttypid >= 16384), false),
           (select array_agg(a.attname::text order by a.attnum) from pg_attribute as a
            where a.attrelid = class.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = 'v'),
           md5(concat_ws(' ', w.triggers::text, w.columns::text, w.attributes, case when class.relkind = 'p' then w.storage::text end))
    from switchboard.watched as w
    left join pg_class as class on class.oid = w.relation and w.active
    cross join (select exists (select from pg_cast where casttarget = 'json'::regtype and castfunc <> 0) as any) as casts
    left join lateral (
        select bool_or(true) as watched
        from pg_partition_ancestors(class.oid) as line (relid) join switchboard.watched as parent on parent.relation = line.relid
        where class.relispartition and parent.active and parent.id <> w.id) as above on true
    order by w.id;
end
$$;

-- Takes note of where a partitioned table's rows lie, when a TRUNCATE of it is told: so it is not taken for one of a single partition.
-- It waits for nobody: what is locked now stays as it is.
create or replace function switchboard.note_storage(watch integer) returns void
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    update switchboard.watched as w set storage = s.storage
    from (select id from switchboard.watched where id = watch for update skip locked) as free
    join switchboard.state(watch) as s on s.id = free.id
    where w.id = free.id;
exception when others then
    -- Whoever follows the table begins anew, which is no more than a nuisance; to fail the user's statement would be.
    return;
end
$$;
