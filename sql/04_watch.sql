-- Step 4: which tables are watched, and who may read the feed. For people, from psql or by the commands of the same names.

-- Watches a table: every change of its rows is captured from now on. May be repeated; mends triggers that are missing or disabled.
create or replace function switchboard.watch(relation regclass) returns integer
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    class   record;
    watch   integer;
    grantee regrole;
begin
    select c.oid, c.relkind, c.relpersistence, c.relispartition, n.nspname, c.relname into strict class
    from pg_class as c join pg_namespace as n on n.oid = c.relnamespace where c.oid = relation;
    if class.relkind not in ('r', 'p') then
        raise exception '% is not a table', relation
            using hint = 'Watch the tables that it reads from.', errcode = 'wrong_object_type';
    elsif class.relpersistence = 't' then
        raise exception '% is a temporary table; only its own session sees it', relation using errcode = 'wrong_object_type';
    elsif class.relispartition then
        raise exception '% is a partition', relation
            using hint = 'Watch the partitioned table that it belongs to.', errcode = 'wrong_object_type';
    elsif class.nspname in ('switchboard', 'pg_catalog', 'information_schema') then
        raise exception '% is in a schema that is not yours', relation
            using hint = format('If it is, it got there by search_path: alter table %s set schema public', relation),
                  errcode = 'wrong_object_type';
    end if;

    insert into switchboard.watched (relation, schema_name, table_name, key_columns)
    values (relation, class.nspname, class.relname, switchboard.key_columns(relation))
    on conflict on constraint watched_relation_key
        do update set active = true, schema_name = excluded.schema_name, table_name = excluded.table_name,
                      key_columns = excluded.key_columns
    returning id into watch;

    -- A trigger that is as it should be stays: to make it again would lock the table for nothing. PostgreSQL fires triggers in the
    -- order of their names, and ours is to come first: one of the user's may change the row again, and that comes second.
    if not switchboard.captures(relation, '!switchboard_capture', watch) then
        execute format('drop trigger if exists "!switchboard_capture" on %s', relation);
        execute format('create trigger "!switchboard_capture" after insert or update or delete on %s
                        for each row execute function switchboard.capture(%L)', relation, watch);
    end if;
    if not switchboard.captures(relation, '!switchboard_capture_truncate', watch) then
        execute format('drop trigger if exists "!switchboard_capture_truncate" on %s', relation);
        execute format('create trigger "!switchboard_capture_truncate" after truncate on %s
                        for each statement execute function switchboard.capture(%L)', relation, watch);
    end if;

    for grantee in select g.role from switchboard.gateway_role as g join pg_roles as r on r.oid = g.role loop
        perform switchboard.lend(grantee, class.nspname, class.relname);
    end loop;
    return watch;
end
$$;

-- Whether the table has this trigger of ours, enabled, and for this watch: one that came with a restored schema speaks of another.
create or replace function switchboard.captures(relation oid, trigger_name name, watch integer) returns boolean
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select exists (select from pg_trigger
                   where tgrelid = relation and tgname = trigger_name and tgenabled in ('O', 'A')
                     and tgfoid = 'switchboard.capture'::regproc and tgargs = convert_to(watch::text, 'UTF8') || '\x00'::bytea)
$$;

-- Stops watching a table. What the log holds of it stays until its time is over. Returns whether it was watched.
create or replace function switchboard.unwatch(relation regclass) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    was_active boolean;
begin
    select active into was_active from switchboard.watched where watched.relation = unwatch.relation;
    perform switchboard.take_back(n.nspname, c.relname)
    from pg_class as c join pg_namespace as n on n.oid = c.relnamespace where c.oid = relation;
    execute format('drop trigger if exists "!switchboard_capture" on %s', relation);
    execute format('drop trigger if exists "!switchboard_capture_truncate" on %s', relation);
    update switchboard.watched set active = false where watched.relation = unwatch.relation;
    return coalesce(was_active, false);
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
    execute format('grant execute on function switchboard.number(boolean), switchboard.read(bigint, bigint, bigint, integer, bigint),
                    switchboard.look(bigint), switchboard.head(), switchboard.open(), switchboard.tables(),
                    switchboard.trim(interval, bigint, integer) to %s', role);
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

-- Grants a role what it needs to read a table, where it has not got it anyhow, and notes what it granted.
create or replace function switchboard.lend(role regrole, schema_name text, table_name text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    if not has_schema_privilege(role, schema_name, 'usage') then
        execute format('grant usage on schema %I to %s', schema_name, role);
        insert into switchboard.granted values (role, schema_name, null) on conflict do nothing;
    end if;
    if not has_table_privilege(role, format('%I.%I', schema_name, table_name), 'select') then
        execute format('grant select on %I.%I to %s', schema_name, table_name, role);
        insert into switchboard.granted values (role, schema_name, table_name) on conflict do nothing;
    end if;
end
$$;

-- Takes back what was lent: on one table, or all of it.
create or replace function switchboard.take_back(only_schema text default null, only_table text default null) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    lent record;
begin
    for lent in delete from switchboard.granted as g
                where only_table is null or (g.schema_name = only_schema and g.table_name = only_table)
                returning * loop
        -- The role, the schema or the table may be gone by now, and the grant with it.
        continue when not exists (select from pg_roles where oid = lent.role);
        if lent.table_name is not null and to_regclass(format('%I.%I', lent.schema_name, lent.table_name)) is not null then
            execute format('revoke select on %I.%I from %s', lent.schema_name, lent.table_name, lent.role);
        elsif lent.table_name is null and to_regnamespace(quote_ident(lent.schema_name)) is not null then
            execute format('revoke usage on schema %I from %s', lent.schema_name, lent.role);
        end if;
    end loop;
end
$$;

-- Nobody may call these but the owner and the gateways. (A trigger's function needs no right of the writer's.)
revoke all on all functions in schema switchboard from public;

select switchboard.open();
