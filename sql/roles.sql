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

-- Whether nobody can log in as this role, nor become it, superusers excepted.
create or replace function switchboard.is_nobody(role oid) returns boolean
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select not r.rolcanlogin and not r.rolsuper
           and not exists (select from pg_auth_members as m join pg_roles as member on member.oid = m.member
                           where m.roleid = r.oid and not member.rolsuper)
    from pg_roles as r where r.oid = role
$$;

-- What anybody but the owner and the gateways' roles was granted on what is ours: each as SQL spells it, with whom it was granted.
create or replace function switchboard.foreign_grants() returns table (what text, grantee text)
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select distinct ours.what, case grants.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(grants.grantee)) end
    from (select 'schema switchboard' as what, nspowner as owner, nspacl as acl
          from pg_namespace where nspname = 'switchboard'
          union all
          select format('%s switchboard.%I', case relkind when 'S' then 'sequence' else 'table' end, relname), relowner, relacl
          from pg_class where relnamespace = 'switchboard'::regnamespace and relkind in ('r', 'S')
          union all
          select format('function %s', oid::regprocedure), proowner, coalesce(proacl, acldefault('f', proowner))
          from pg_proc where pronamespace = 'switchboard'::regnamespace) as ours
    cross join lateral aclexplode(ours.acl) as grants
    where grants.grantee <> ours.owner
      and not exists (select from switchboard.gateway_role as g where g.role_name = pg_get_userbyid(grants.grantee))
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

-- A schema that a superuser installs gets an owner of its own, who is nobody else and cannot log in: what capture runs as must not
-- be a superuser, since the owner of a watched table can have it run a cast of theirs to json. A role of that name that somebody could
-- become is not taken.
do $$
declare
    owner oid;
    thing record;
begin
    if not (select rolsuper from pg_catalog.pg_roles where rolname = current_user) then
        return;
    end if;
    begin
        create role switchboard nologin;
        comment on role switchboard is 'Switchboard: owns its schemas (made by switchboard install)';
    exception when duplicate_object or unique_violation then
        null;
    end;
    select oid into owner from pg_catalog.pg_roles where rolname = 'switchboard' and switchboard.is_nobody(oid);
    if owner is null then
        return;
    end if;
    if exists (select from pg_catalog.pg_namespace where nspname = 'switchboard' and nspowner <> owner) then
        alter schema switchboard owner to switchboard;
    end if;
    for thing in select relname, relkind from pg_catalog.pg_class
                 where relnamespace = 'switchboard'::pg_catalog.regnamespace and relkind in ('r', 'S') and relowner <> owner loop
        execute pg_catalog.format('alter %s switchboard.%I owner to switchboard',
                                  case thing.relkind when 'S' then 'sequence' else 'table' end, thing.relname);
    end loop;
    for thing in select oid::pg_catalog.regprocedure as called from pg_catalog.pg_proc
                 where pronamespace = 'switchboard'::pg_catalog.regnamespace and proowner <> owner loop
        execute pg_catalog.format('alter function %s owner to switchboard', thing.called);
    end loop;
end
$$;

-- What somebody else was granted on our tables, functions and schema is taken away: default privileges may say so of every new one. Before
-- the gateways' roles get what they need, which also are functions that came since.
do $$
declare
    granted record;
begin
    for granted in select * from switchboard.foreign_grants() loop
        execute pg_catalog.format('revoke all on %s from %s', granted.what, granted.grantee);
    end loop;
    perform switchboard.allow_gateway(r.oid::pg_catalog.regrole)
    from switchboard.gateway_role as g join pg_catalog.pg_roles as r on r.rolname = g.role_name;
end
$$;

select switchboard.open();
