-- Step 2: capture. What runs inside a user's transaction, so every microsecond here is the user's.
--
-- Both functions are "security definer" with a pinned search_path: whoever may write the table needs no right here, and cannot
-- bring operators of their own.

-- One statement does it all: each further one costs its own set-up in every transaction. The settings that would colour values as
-- text are pinned, so that a value reads the same whoever wrote it. OLD and NEW are null where an operation has none.
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
    this xid8 := pg_current_xact_id();
begin
    insert into switchboard.log (xid, watch, op, first, old, new)
    values (
        this,
        tg_argv[0]::integer,
        tg_op::"char",
        -- Local to the transaction, so a savepoint that is rolled back takes the setting back together with its log rows.
        case when current_setting('switchboard.xid', true) = this::text then false
             else set_config('switchboard.xid', this::text, true) is not null end,
        row_to_json(old),
        row_to_json(new));
    return null;
end
$$;

-- Runs while the transaction commits. Its serial, drawn that late, orders transactions as their commits are ordered.
--
-- Then the doorbell. A feed that sleeps holds the lock exclusively: who cannot share it has to wake the feed. Who can, keeps it until
-- the commit is visible, and the feed does not fall asleep before that. A transaction that rang could not be prepared for
-- two-phase commit, so where that is enabled nobody rings and gateways poll.
create or replace function switchboard.mark() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    insert into switchboard.mark (xid, mark, at)
    values (new.xid, nextval('switchboard.serial'), clock_timestamp());
    if current_setting('max_prepared_transactions') = '0' and not pg_try_advisory_xact_lock_shared(1937203812, 1) then
        -- Into a full queue nobody can notify: the commit would fail. That takes a listener, of anybody's, that sits in an open
        -- transaction for long. The feed looks by itself meanwhile.
        if pg_notification_queue_usage() < 0.5 then
            perform pg_notify('switchboard', '');
        end if;
    end if;
    return null;
end
$$;

-- Deferred, so that it runs as the transaction commits; on the first row only, so that it runs once.
do $$
begin
    if not exists (select from pg_catalog.pg_trigger
                   where tgrelid = 'switchboard.log'::pg_catalog.regclass and tgname = 'log_mark') then
        create constraint trigger log_mark
            after insert on switchboard.log
            deferrable initially deferred
            for each row when (new.first)
            execute function switchboard.mark();
    end if;
end
$$;
