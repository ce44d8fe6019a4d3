//! The commands that change a database: install, uninstall, watch, unwatch. They apply `sql/`, and say what they did.

use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use tokio::time::sleep;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, GenericClient, IsolationLevel, Transaction};

use crate::config::{COMMAND_LOCK_PATIENCE, COMMAND_LOCK_PAUSE, COMMAND_LOCK_TRY};
use crate::names::{Typed, shell};
use crate::session::{self, Database, Purpose, Told, told};

/// The steps that make and change tables, in order. A released one is never edited.
pub const STEPS: &[(i32, &str, &str)] = &[(1, "log", include_str!("../sql/schema/01_log.sql"))];

/// The functions, which every installation applies again.
const FUNCTIONS: &[(&str, &str)] = &[
    ("capture", include_str!("../sql/capture.sql")),
    ("number", include_str!("../sql/number.sql")),
    ("read", include_str!("../sql/read.sql")),
    ("epoch", include_str!("../sql/epoch.sql")),
    ("retention", include_str!("../sql/retention.sql")),
    ("tables", include_str!("../sql/tables.sql")),
    ("roles", include_str!("../sql/roles.sql")),
];
const SWITCH: &str = include_str!("../sql/switch.sql");
const UNINSTALL: &str = include_str!("../sql/uninstall.sql");

/// How many steps the schema had before they were folded into one, which was never released.
const UNRELEASED_STEPS: usize = 6;

/// Two installations at once would trip over each other; this advisory lock, of ours by its first number, makes the second wait.
const LOCK_INSTALL: &str = "1937203812, 4";

/// Connects for one command. The session ends with the client.
pub async fn connect(database: &tokio_postgres::Config) -> Result<Client> {
    Database::new(database).connect_for_command().await
}

/// Creates or upgrades the schema, and says which steps that took. May be repeated.
pub async fn install(client: &mut Client, switch: bool, gateway_role: Option<&str>) -> Result<String> {
    let installing = async |transaction: &Transaction<'_>| try_install(transaction, switch, gateway_role).await;
    patiently(client, Users::OfAll, installing).await
}

async fn try_install(transaction: &Transaction<'_>, switch: bool, gateway_role: Option<&str>) -> Result<String> {
    let lock = format!("select pg_catalog.pg_advisory_xact_lock({LOCK_INSTALL})");
    transaction.batch_execute(&lock).await.map_err(told)?;
    // Before anything in it is looked at: what somebody else put there would run as whoever installs.
    transaction.batch_execute("create schema if not exists switchboard").await.map_err(told)?;
    refuse_what_is_not_ours(transaction).await?;
    let applied = applied(transaction).await?;
    if applied.len() == UNRELEASED_STEPS {
        bail!(
            "the database has the schema of a version before the first release; run \"switchboard uninstall\", then \"switchboard install\""
        );
    }
    if let Some(newer) = applied.iter().find(|applied| STEPS.iter().all(|(number, ..)| number != *applied)) {
        bail!("the database has step {newer}, which this version does not know; use a newer switchboard");
    }
    let mut steps = Vec::new();
    for (number, name, sql) in STEPS.iter().filter(|(number, ..)| !applied.contains(number)) {
        let step = async {
            transaction.batch_execute(sql).await?;
            let note = "insert into switchboard.step (number, name) values ($1, $2)";
            transaction.execute_typed(note, &[(number, Type::INT4), (name, Type::TEXT)]).await
        };
        step.await.map_err(told).with_context(|| format!("step {number}, {name}"))?;
        steps.push(format!("{number} ({name})"));
    }
    for (name, sql) in FUNCTIONS {
        transaction.batch_execute(sql).await.map_err(told).with_context(|| format!("the functions of {name}"))?;
    }
    let mut said = match steps.is_empty() {
        true => format!("installed already, up to step {}", STEPS.len()),
        false => format!("applied step {}", steps.join(", ")),
    };
    let drop_strays = session::row(transaction, "select switchboard.drop_strays()", &[]).await;
    let strays: Vec<String> = drop_strays.context("triggers that belong to no watched table")?.get(0);
    if !strays.is_empty() {
        said.push_str(&format!("; dropped copies of triggers on {}", strays.join(", ")));
    }
    if switch {
        transaction.batch_execute(SWITCH).await.map_err(told).context("the table public.switch")?;
        said.push_str("; watching public.switch");
    }
    said.push_str(&owner_that_could_not_be(transaction).await?);
    if let Some(role) = gateway_role {
        let allow = "select switchboard.allow_gateway(quote_ident($1)::regrole)::text";
        session::rows(transaction, allow, &[(&role, Type::TEXT)]).await.context("the gateway's role")?;
        said.push_str(&format!("; {role} may run a gateway"));
    }
    Ok(said)
}

/// What to say where a superuser owns what it installed, because the role that should own it can be used by somebody: else nothing.
async fn owner_that_could_not_be(transaction: &Transaction<'_>) -> Result<String> {
    let sql = "select pg_catalog.pg_get_userbyid(n.nspowner)::text from pg_catalog.pg_namespace as n
               join pg_catalog.pg_roles as r on r.oid = n.nspowner where n.nspname = 'switchboard' and r.rolsuper";
    let owner = session::rows(transaction, sql, &[]).await?.pop();
    Ok(owner.map_or_else(String::new, |row| {
        let owner: &str = row.get(0);
        format!(
            "; {owner} owns the schema, since somebody can log in as or become the role switchboard (see \"switchboard check\")"
        )
    }))
}

/// Refuses a schema of our name, or something in it, that belongs to somebody else than who installs. A superuser also takes what belongs
/// to the role `switchboard`, if nobody can become that.
async fn refuse_what_is_not_ours(transaction: &Transaction<'_>) -> Result<()> {
    let sql = "with ours (owner) as (
                   select oid from pg_catalog.pg_roles where rolname = current_user
                   union all
                   select r.oid from pg_catalog.pg_roles as r
                   where r.rolname = 'switchboard' and not r.rolcanlogin and not r.rolsuper
                         and (select rolsuper from pg_catalog.pg_roles where rolname = current_user)
                         and not exists (select from pg_catalog.pg_auth_members as m
                                         join pg_catalog.pg_roles as member on member.oid = m.member
                                         where m.roleid = r.oid and not member.rolsuper)
               ), found (place, what, owner) as (
                   select 1, 'the schema \"switchboard\"', nspowner from pg_catalog.pg_namespace where nspname = 'switchboard'
                   union all
                   select 2, 'switchboard.' || relname, relowner from pg_catalog.pg_class where relnamespace = $1::regnamespace
                   union all
                   select 3, 'the function ' || oid::regprocedure, proowner from pg_catalog.pg_proc where pronamespace = $1::regnamespace
                   union all
                   select 4, 'the type switchboard.' || typname, typowner from pg_catalog.pg_type where typnamespace = $1::regnamespace
                   union all
                   select 5, 'the operator ' || oid::regoperator, oprowner from pg_catalog.pg_operator where oprnamespace = $1::regnamespace
                   union all
                   select 6, pg_catalog.format('the trigger %I on %s', t.tgname, t.tgrelid::regclass), p.proowner
                   from pg_catalog.pg_trigger as t join pg_catalog.pg_class as c on c.oid = t.tgrelid
                   join pg_catalog.pg_proc as p on p.oid = t.tgfoid
                   where c.relnamespace = $1::regnamespace and not t.tgisinternal
               )
               select what, pg_catalog.pg_get_userbyid(owner)::text, current_user::text
               from found where owner not in (select owner from ours) order by place, what limit 1";
    let Some(row) = session::rows(transaction, sql, &[(&"switchboard", Type::TEXT)]).await?.pop() else {
        return Ok(());
    };
    let (what, owner, user): (&str, &str, &str) = (row.get(0), row.get(1), row.get(2));
    bail!(
        "{what} belongs to {owner}, and installing would run what {owner} put there as {user}; \
         if {owner} installed Switchboard, install as {owner}; else look at it, then run: drop schema switchboard cascade"
    )
}

/// The numbers of the steps that the database has.
pub async fn applied(client: &impl GenericClient) -> Result<Vec<i32>> {
    let schema = "select pg_catalog.has_schema_privilege(oid, 'usage'), current_user::text
                  from pg_catalog.pg_namespace where nspname = 'switchboard'";
    match session::rows(client, schema, &[]).await?.pop() {
        None => return Ok(Vec::new()),
        Some(row) if !row.get::<_, bool>(0) => {
            let user: &str = row.get(1);
            bail!(
                "{user} may not use the schema \"switchboard\"; as its owner, run: switchboard install --gateway-role {}",
                shell(user)
            );
        }
        Some(_) => {}
    }
    let there = "select pg_catalog.to_regclass('switchboard.step') is not null";
    if !session::row(client, there, &[]).await?.get::<_, bool>(0) {
        return Ok(Vec::new());
    }
    let rows = session::rows(client, "select number from switchboard.step order by number", &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Removes the schema and its triggers. Returns whether there was one.
pub async fn uninstall(client: &mut Client) -> Result<bool> {
    patiently(client, Users::OfAll, async |transaction| {
        let was = !applied(transaction).await?.is_empty();
        transaction.batch_execute(UNINSTALL).await.map_err(told)?;
        Ok(was)
    })
    .await
}

/// Watches a table, named as SQL spells it. Returns what gateways will lack nevertheless.
pub async fn watch(client: &mut Client, table: &str) -> Result<Vec<Hidden>> {
    call(client, "watch", table).await?;
    hidden_rows(client, Some(table)).await
}

/// A watched table whose rows a role that runs gateways, or may, cannot read because of row security.
#[derive(Debug)]
pub struct Hidden {
    /// The table, as SQL spells it.
    table: String,
    /// The role, as SQL spells it.
    role: String,
}

impl Hidden {
    /// Of this table, from this role, both as SQL spells them.
    pub fn new(table: &str, role: &str) -> Hidden {
        Hidden { table: table.to_owned(), role: role.to_owned() }
    }

    /// What is so.
    pub fn what(&self) -> String {
        let Hidden { table, role } = self;
        format!(
            "row security of {table} applies to {role}: a gateway of that role tells changes, but gives no snapshots"
        )
    }

    /// What to do about it.
    pub fn remedy(&self) -> String {
        format!("run: alter role {} bypassrls", self.role)
    }
}

/// Which watched tables, or whether this one, have row security that applies to a role that gateways use, or to the role of this session.
/// What the policies say makes no difference: a snapshot has all rows or none.
pub async fn hidden_rows(client: &impl GenericClient, only: Option<&str>) -> Result<Vec<Hidden>> {
    let sql = "select pg_catalog.format('%I.%I', n.nspname, c.relname), pg_catalog.quote_ident(r.rolname)
               from pg_catalog.pg_class as c join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
               cross join pg_catalog.pg_roles as r
               where c.oid in (select relation from switchboard.watched where active) and c.relrowsecurity
                     and ($1 is null or c.oid = $1::regclass)
                     and (r.rolname = current_user or r.rolname in (select role_name from switchboard.gateway_role))
                     and not r.rolsuper and not r.rolbypassrls
                     and (c.relforcerowsecurity or not pg_catalog.pg_has_role(r.oid, c.relowner, 'usage'))
               order by 1, 2";
    let rows = session::rows(client, sql, &[(&only, Type::TEXT)]).await?;
    Ok(rows.iter().map(|row| Hidden::new(row.get(0), row.get(1))).collect())
}

/// Stops watching a table. Returns whether it was watched.
pub async fn unwatch(client: &mut Client, table: &str) -> Result<bool> {
    Ok(call(client, "unwatch", table).await?.as_deref() == Some("true"))
}

/// Calls the function of this name, as the command of this name does.
async fn call(client: &mut Client, function: &str, table: &str) -> Result<Option<String>> {
    let sql = format!("select switchboard.{function}($1::regclass)::text");
    patiently(client, Users::Of(table), async |transaction| {
        if applied(transaction).await?.is_empty() {
            bail!("the database has no schema \"switchboard\"; run \"switchboard install\" first");
        }
        refuse_our_own(transaction, function, table).await?;
        Ok(session::row(transaction, &sql, &[(&table, Type::TEXT)]).await?.get(0))
    })
    .await
}

/// Who may hold the locks that a command needs.
#[derive(Clone, Copy)]
enum Users<'a> {
    /// Whoever uses this table, named as SQL spells it, or a partition of it.
    Of(&'a str),
    /// Whoever uses a table of ours or one that has a trigger of ours.
    OfAll,
}

/// Does something in a transaction of its own, whatever locks it needs: it asks for each for a moment, and tries again after a pause, since
/// all who come to a table behind a lock that waits have to wait as well.
async fn patiently<T>(
    client: &mut Client,
    users: Users<'_>,
    work: impl AsyncFn(&Transaction<'_>) -> Result<T>,
) -> Result<T> {
    // Stated for the transaction, since something on the way may have kept them from the session.
    let settings = format!(
        "{}set local lock_timeout = {}",
        Purpose::Command.statements("set local"),
        COMMAND_LOCK_TRY.as_millis()
    );
    let began = Instant::now();
    loop {
        let begin = client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).read_only(false);
        let transaction = begin.start().await.map_err(told)?;
        transaction.batch_execute(&settings).await.map_err(told)?;
        let error = match work(&transaction).await {
            Ok(done) => {
                transaction.commit().await.map_err(told)?;
                return Ok(done);
            }
            Err(error) => error,
        };
        transaction.rollback().await.map_err(told)?;
        let in_use = [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED];
        if !Told::of(&error).is_some_and(|told| in_use.contains(&told.code)) {
            return Err(error);
        }
        if began.elapsed() >= COMMAND_LOCK_PATIENCE {
            let seconds = COMMAND_LOCK_PATIENCE.as_secs();
            return match holder(client, users).await? {
                Some(holder) => bail!("{holder}; tried for {seconds} s, and kept nobody waiting meanwhile"),
                None => Err(error),
            };
        }
        sleep(COMMAND_LOCK_PAUSE).await;
    }
}

/// Who holds such a lock, if that is still so, and what to do about it. Of several, those who write and those who began first.
async fn holder(client: &Client, users: Users<'_>) -> Result<Option<String>> {
    let (tables, table) = match users {
        Users::Of(table) => {
            ("select relid from pg_catalog.pg_partition_tree($1::regclass) union select $1::regclass", table)
        }
        Users::OfAll => (
            "select tgrelid from pg_catalog.pg_trigger
             where tgfoid = pg_catalog.to_regproc('switchboard.capture') and $1 = ''
             union select oid from pg_catalog.pg_class
             where relnamespace = pg_catalog.to_regnamespace('switchboard') and relkind = 'r'",
            "",
        ),
    };
    let sql = format!(
        "select held.relation::regclass::text, held.pid, session.usename::text, session.application_name, session.state,
                pg_catalog.floor(extract(epoch from pg_catalog.clock_timestamp() - session.xact_start))::bigint
         from pg_catalog.pg_locks as held left join pg_catalog.pg_stat_activity as session using (pid)
         where held.locktype = 'relation' and held.granted and held.pid is distinct from pg_catalog.pg_backend_pid()
               and held.database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
               and held.relation in ({tables})
         order by held.mode = 'AccessShareLock', session.xact_start limit 1"
    );
    let Some(row) = session::rows(client, &sql, &[(&table, Type::TEXT)]).await?.pop() else { return Ok(None) };
    let table: &str = row.get(0);
    let Some(pid) = row.get::<_, Option<i32>>(1) else {
        let remedy = "commit it or roll it back (see pg_prepared_xacts), then try again";
        return Ok(Some(format!("{table} is in use by a prepared transaction; {remedy}")));
    };
    let known = |index: usize| row.get::<_, Option<&str>>(index).filter(|text| !text.is_empty());
    let mut who = Vec::new();
    who.extend(known(2).map(|role| format!("role {role}")));
    who.extend(known(3).map(|name| format!("{name:?}")));
    who.extend(known(4).map(str::to_owned));
    who.extend(row.get::<_, Option<i64>>(5).map(|seconds| format!("in a transaction for {seconds} s")));
    Ok(Some(format!(
        "{table} is in use by session {pid} ({}); end its transaction, for instance by select pg_terminate_backend({pid}), then try again",
        who.join(", ")
    )))
}

/// Looks a table up, and refuses one of Switchboard's.
async fn refuse_our_own(client: &impl GenericClient, command: &str, table: &str) -> Result<()> {
    let sql = "select n.nspname = 'switchboard', c.relname::text from pg_catalog.pg_class as c
               join pg_catalog.pg_namespace as n on n.oid = c.relnamespace where c.oid = $1::text::regclass";
    let found = client.query_typed(sql, &[(&table, Type::TEXT)]).await;
    match found.map_err(|error| not_found(error, command, table))?.first() {
        Some(row) if row.get(0) => bail!(
            "switchboard.{} is in a schema that is not yours, but Switchboard's own; {command} tables of your own",
            row.get::<_, &str>(1)
        ),
        _ => Ok(()),
    }
}

/// Why there is no such table, and how its name may have to be spelt: SQL makes small letters of capitals without quotes, and a shell
/// takes quotes away.
fn not_found(error: tokio_postgres::Error, command: &str, table: &str) -> anyhow::Error {
    let spelt = Typed::new(table).sql();
    let remedy = format!("switchboard {command} {}", shell(&spelt));
    let why = match error.code() {
        Some(code) if *code == SqlState::UNDEFINED_TABLE && spelt != table && has_capitals(table) => {
            "if its name has these capitals, quote it"
        }
        Some(code)
            if [SqlState::INVALID_NAME, SqlState::SYNTAX_ERROR, SqlState::FEATURE_NOT_SUPPORTED].contains(code) =>
        {
            "a name with blanks, dots or quotes stands in double quotes, and in single quotes for the shell"
        }
        _ => return told(error),
    };
    anyhow!("{:#}; {why}: {remedy}", told(error))
}

fn has_capitals(text: &str) -> bool {
    text.bytes().any(|byte| byte.is_ascii_uppercase())
}
