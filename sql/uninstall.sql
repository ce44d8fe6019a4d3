-- Takes away the log, the functions and, with them, the triggers on every watched table. Tables of yours stay as they are.

do $$
begin
    if pg_catalog.to_regnamespace('switchboard') is not null then
        perform switchboard.take_back();
    end if;
end
$$;

drop schema if exists switchboard cascade;
