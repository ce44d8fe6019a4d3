-- Takes away the log, the functions and, with them, the triggers on every watched table. Tables of yours stay as they are.

do $$
begin
    if pg_catalog.to_regnamespace('switchboard') is not null then
        perform switchboard.take_back();
    end if;
end
$$;

drop schema if exists switchboard cascade;

-- The role that owned them, if it was made for that and owns nothing in another database.
do $$
begin
    if (select pg_catalog.shobj_description(oid, 'pg_authid') like 'Switchboard: %' from pg_catalog.pg_roles where rolname = 'switchboard') then
        drop role switchboard;
    end if;
exception when dependent_objects_still_exist or insufficient_privilege then
    null;
end
$$;
