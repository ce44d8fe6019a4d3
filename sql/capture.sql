-- Capture: what runs inside a user's transaction, so every microsecond here is the user's, and nothing here may raise.
--
-- The functions are "security definer" with a pinned search_path: whoever may write the table needs no right here, and cannot
-- bring operators of their own.

-- Writes one change. Its arguments: the number of the table in the books, and the table's oid.
--
-- The settings that would colour values as text are pinned, so that a value reads the same whoever wrote it. OLD and NEW are null where
-- an operation has none. Each further statement would cost its own set-up in every transaction.
create or replace function switchboard.capture() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    set "TimeZone" = 'UTC'
    set "DateStyle" = 'ISO, MDY'
    set "IntervalStyle" = 'postgres'
    set bytea_output = 'hex'
    set extra_float_digits = '1'
    set quote_all_identifiers = off
as $$
declare
    what   "char" := tg_op::"char";
    before json;
    after  json;
begin
    begin
        before := row_to_json(old);
        after := row_to_json(new);
    exception when others then
        -- A cast to json that raises, or a text of more than 1 GB.
        begin
            before := switchboard.row_by_value(tg_relid, old);
            after := switchboard.row_by_value(tg_relid, new);
        exception when others then
            before := null;
            after := null;
        end;
    end;
    -- All that is rare in one condition: an expression costs more to set up, once in every transaction, than to evaluate.
    --
    -- A partition speaks for the table above it. Any other table has a trigger that was made for another one: a copy. A row of the log
    -- holds old and new, and PostgreSQL makes no row larger than 1 GB.
    if tg_argv[1]::oid is distinct from tg_relid or pg_partition_root(tg_relid) is not null
       or coalesce(before, after) is null or pg_column_size(before) + pg_column_size(after) > 1000000000 then
        if (tg_argv[1]::oid is distinct from tg_relid or pg_partition_root(tg_relid) is not null)
           and not switchboard.speaks_for(tg_argv[0]::integer, tg_relid) then
            return null;
        elsif what <> 'T' and (coalesce(before, after) is null or pg_column_size(before) + pg_column_size(after) > 1000000000) then
            what := 'R';
            before := null;
            after := null;
        elsif what = 'T' and pg_partition_root(tg_relid) is not null then
            perform switchboard.note_storage(tg_argv[0]::integer);
        end if;
    end if;
    insert into switchboard.log (xid, watch, op, first, old, new)
    values (
        pg_current_xact_id(),
        tg_argv[0]::integer,
        what,
        -- Local to the transaction, so a savepoint that is rolled back takes the setting back together with its log rows.
        case when current_setting('switchboard.xid', true) = pg_current_xact_id()::text then false
             else set_config('switchboard.xid', pg_current_xact_id()::text, true) is not null end,
        before,
        after);
    return null;
end
$$;

-- Whether a trigger of this number may speak for this table: the books name the table, or one that it is a partition of. Of several that
-- are watched the topmost one speaks, so that a change comes once.
create or replace function switchboard.speaks_for(watch integer, relation oid) returns boolean
    language plpgsql stable security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    speaker integer;
begin
    select watched.id into speaker
    from (select relid::oid as relid, place from pg_partition_ancestors(relation) with ordinality as above (relid, place)
          union all select relation, 0) as line
    join switchboard.watched as watched on watched.relation = line.relid and watched.active
    order by line.place desc limit 1;
    if found or not switchboard.is_elsewhere() then
        return coalesce(speaker = watch, false);
    end if;
    -- Loaded from a dump, and no gateway has begun a new epoch yet: the books still name the tables of another database.
    return exists (
        select from (select relid::oid as relid from pg_partition_ancestors(relation) as above (relid) union all select relation) as line
        join pg_class as class on class.oid = line.relid
        join pg_namespace as namespace on namespace.oid = class.relnamespace
        join switchboard.watched as watched on (watched.schema_name, watched.table_name) = (namespace.nspname, class.relname)
        where watched.id = watch and watched.active);
end
$$;

-- A row as JSON, value by value, so that one that cannot be JSON comes as text. Null where there is no row.
create or replace function switchboard.row_by_value(relation oid, row_value anyelement) returns json
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    column_name name;
    value       json;
    pairs       text[] := '{}';
begin
    if row_value is not distinct from null then
        return null;
    end if;
    for column_name in select attname from pg_attribute
                       where attrelid = relation and attnum > 0 and not attisdropped order by attnum loop
        execute format('select switchboard.value_as_json(($1).%I)', column_name) using row_value into value;
        pairs := pairs || concat(to_json(column_name::text), ':', coalesce(value::text, 'null'));
    end loop;
    return concat('{', array_to_string(pairs, ','), '}')::json;
end
$$;

-- A value as JSON, and as text where its type has a cast to json that raises for it. Null for null.
create or replace function switchboard.value_as_json(value anyelement) returns json
    language plpgsql stable strict
    set search_path = pg_catalog, pg_temp
as $$
begin
    return to_json(value);
exception when others then
    return to_json(value::text);
end
$$;

-- Runs while the transaction commits, or when its constraints are made immediate: draws the transaction's mark. It may be too early:
-- a check of the user's tables that is deferred like this trigger may wait for another transaction after that, which then commits first
-- with a later mark. What is inserted here is looked at by PostgreSQL in a pass of its own, behind all that is deferred now.
--
-- This function and the next one pin no search_path, which would cost each transaction more than all that they do. So everything in
-- them is schema-qualified, operators too.
create or replace function switchboard.draw_mark() returns trigger
    language plpgsql security definer
as $$
begin
    -- Rows of other transactions come with a dump that is loaded.
    insert into switchboard.mark (xid, mark, at, final)
    select new.xid, pg_catalog.nextval('switchboard.serial'), pg_catalog.clock_timestamp(), false
    where new.xid operator(pg_catalog.=) pg_catalog.pg_current_xact_id();
    return null;
end
$$;

-- Runs in that later pass: sees to it that the mark is as good as one that is drawn now, so that marks are in the order of commits.
-- It is if no serial was drawn since, by nobody. Otherwise another one is drawn. If this transaction itself wrote more since, by a
-- deferred trigger of the user's, that may have checks to wait for as well, and so another pass looks again.
--
-- Then the doorbell. A feed that sleeps holds the lock exclusively: who cannot share it has to wake the feed. Who can, keeps it until
-- the commit is visible, and the feed does not fall asleep before that. A transaction that rang could not be prepared for
-- two-phase commit, so where that is enabled nobody rings and gateways poll.
create or replace function switchboard.confirm_mark() returns trigger
    language plpgsql security definer
as $$
begin
    -- What nearly always holds comes first, in one expression.
    if new.xid operator(pg_catalog.=) pg_catalog.pg_current_xact_id()
       and pg_catalog.pg_trigger_depth() operator(pg_catalog.=) 1
       and new.mark operator(pg_catalog.=) pg_catalog.pg_sequence_last_value('switchboard.serial')
       and not new.final then
        null;
    elsif new.final or new.xid operator(pg_catalog.<>) pg_catalog.pg_current_xact_id() then
        return null;
    elsif pg_catalog.pg_trigger_depth() operator(pg_catalog.>) 1 then
        -- Not deferred, but fired by the insertion: constraints are immediate at this moment. The commit is still to come.
        set constraints switchboard.mark_confirm deferred;
        insert into switchboard.mark (xid, mark, at, final) values (new.xid, 0, pg_catalog.clock_timestamp(), false);
        return null;
    elsif new.mark operator(pg_catalog.=) 0 then
        -- This is the commit, unless constraints were made immediate again. If they were, this insertion fires at once, as above.
        insert into switchboard.mark (xid, mark, at, final)
        values (new.xid, pg_catalog.nextval('switchboard.serial'), pg_catalog.clock_timestamp(), false);
        return null;
    elsif new.mark operator(pg_catalog.<>) pg_catalog.currval('switchboard.serial') then
        -- Without a serial of its own: two marks of one transaction would otherwise give each other another pass for ever.
        insert into switchboard.mark (xid, mark, at, final)
        values (new.xid, pg_catalog.currval('switchboard.serial'), pg_catalog.clock_timestamp(), false);
        return null;
    else
        insert into switchboard.mark (xid, mark, at, final)
        values (new.xid, pg_catalog.nextval('switchboard.serial'), pg_catalog.clock_timestamp(), true);
    end if;
    if pg_catalog.current_setting('max_prepared_transactions') operator(pg_catalog.=) '0'
       and not pg_catalog.pg_try_advisory_xact_lock_shared(1937203812, 1) then
        -- Into a full queue nobody can notify: the commit would fail. That takes a listener, of anybody's, that sits in an open
        -- transaction for long. The feed looks by itself meanwhile.
        if pg_catalog.pg_notification_queue_usage() operator(pg_catalog.<) 0.5 then
            perform pg_catalog.pg_notify('switchboard', '');
        end if;
    end if;
    return null;
end
$$;

-- Both deferred, so that they run as the transaction commits; on the first change only, so that they run once. Always, whatever the
-- session's replication role: where the user's triggers fire for it, the mark has to come too. (Loading data with triggers disabled leaves
-- them enabled as usual.)
do $$
begin
    if not exists (select from pg_catalog.pg_trigger
                   where tgrelid = 'switchboard.log'::pg_catalog.regclass and tgname = 'log_mark') then
        create constraint trigger log_mark
            after insert on switchboard.log
            deferrable initially deferred
            for each row when (new.first)
            execute function switchboard.draw_mark();
    end if;
    -- Without a condition: PostgreSQL would parse it again in every transaction.
    if not exists (select from pg_catalog.pg_trigger
                   where tgrelid = 'switchboard.mark'::pg_catalog.regclass and tgname = 'mark_confirm') then
        create constraint trigger mark_confirm
            after insert on switchboard.mark
            deferrable initially deferred
            for each row
            execute function switchboard.confirm_mark();
    end if;
    if exists (select from pg_catalog.pg_trigger
               where tgrelid in ('switchboard.log'::pg_catalog.regclass, 'switchboard.mark'::pg_catalog.regclass)
                 and tgname in ('log_mark', 'mark_confirm') and tgenabled <> 'A') then
        alter table switchboard.log enable always trigger log_mark;
        alter table switchboard.mark enable always trigger mark_confirm;
    end if;
end
$$;
