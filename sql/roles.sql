-- Roles: who may run a gateway, and what was granted for that.

-- Lets a role run a gateway: it may call what a gateway calls and read the watched tables, and no more.
create or replace function switchboard.allow_gateway(role regrole) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    -- As it is called, not as it is spelt.
    name    constant text := (select rolname from pg_roles where oid = role);
    called  regprocedure;
    watched record;
begin
    insert into switchboard.gateway_role (role_name) values (name) on conflict do nothing;
    execute format('grant usage on schema switchboard to %I', name);
    for called in select oid from pg_proc
                  where pronamespace = 'switchboard'::regnamespace and proname = any (switchboard.called_by_gateways()) loop
        execute format('grant execute on function %s to %I', called, name);
    end loop;
    -- To lock the empty table is the right to number.
    execute format('grant delete on switchboard.numbering to %I', name);
    execute format('grant select on switchboard.step to %I', name);
    for watched in select n.nspname, c.relname from switchboard.watched as w
                   join pg_class as c on c.oid = w.relation join pg_namespace as n on n.oid = c.relnamespace
                   where w.active loop
        perform switchboard.lend(name, watched.nspname, watched.relname);
    end loop;
end
$$;

-- The functions that a gateway calls.
create or replace function switchboard.called_by_gateways() returns text[]
    language sql immutable
    set search_path = pg_catalog, pg_temp
as $$
    select array['number', 'read', 'look', 'head', 'open', 'tables', 'trim', 'value_as_json', 'called_by_gateways']
$$;

-- Grants a role what it needs to read a table, where it has not got it anyhow, and notes what it granted.
create or replace function switchboard.lend(role_name text, schema_name text, table_name text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    if not has_schema_privilege(role_name, schema_name, 'usage') then
        execute format('grant usage on schema %I to %I', schema_name, role_name);
        insert into switchboard.granted values (role_name, schema_name, null) on conflict do nothing;
    end if;
    if not has_table_privilege(role_name, format('%I.%I', schema_name, table_name), 'select') then
        execute format('grant select on %I.%I to %I', schema_name, table_name, role_name);
        insert into switchboard.granted values (role_name, schema_name, table_name) on conflict do nothing;
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
        continue when not exists (select from pg_roles where rolname = lent.role_name);
        if lent.table_name is not null and to_regclass(format('%I.%I', lent.schema_name, lent.table_name)) is not null then
            execute format('revoke select on %I.%I from %I', lent.schema_name, lent.table_name, lent.role_name);
        elsif lent.table_name is null and to_regnamespace(quote_ident(lent.schema_name)) is not null then
            execute format('revoke usage on schema %I from %I', lent.schema_name, lent.role_name);
        end if;
    end loop;
end
$$;

-- The gateways' roles may call functions that came since.
select switchboard.allow_gateway(r.oid::pg_catalog.regrole)
from switchboard.gateway_role as g join pg_catalog.pg_roles as r on r.rolname = g.role_name;

-- Nobody may call these but the owner and the gateways. (A trigger's function needs no right of the writer's.)
revoke all on all functions in schema switchboard from public;

select switchboard.open();
