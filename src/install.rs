//! The commands that change a database: install, uninstall, watch, unwatch. They apply `sql/`, and say what they did.

use anyhow::{Context, Result, anyhow, bail};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, GenericClient};

use crate::names::{Typed, shell};
use crate::session::{Database, told};

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

/// How long a command waits for a table that is in use; local to its transaction, since a pooler may share the session.
const BOUNDED: &str = "set local lock_timeout = '10s'; set local client_min_messages = warning";
/// Two installations at once would trip over each other; this advisory lock, of ours by its first number, makes the second wait.
const LOCK_INSTALL: &str = "1937203812, 4";

/// Connects for one command. The session ends with the client.
pub async fn connect(database: &tokio_postgres::Config) -> Result<Client> {
    Database::new(database).connect_for_command().await
}

/// Creates or upgrades the schema, and says which steps that took. May be repeated.
pub async fn install(client: &mut Client, switch: bool, gateway_role: Option<&str>) -> Result<String> {
    let transaction = client.transaction().await?;
    transaction
        .batch_execute(&format!("{BOUNDED}; select pg_advisory_xact_lock({LOCK_INSTALL})"))
        .await
        .map_err(told)?;
    let applied = applied(&transaction).await?;
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
            transaction.execute(note, &[number, name]).await
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
    let strays: Vec<String> = transaction
        .query_one("select switchboard.drop_strays()", &[])
        .await
        .map_err(told)
        .context("triggers that belong to no watched table")?
        .get(0);
    if !strays.is_empty() {
        said.push_str(&format!("; dropped copies of triggers on {}", strays.join(", ")));
    }
    if switch {
        transaction.batch_execute(SWITCH).await.map_err(told).context("the table public.switch")?;
        said.push_str("; watching public.switch");
    }
    if let Some(role) = gateway_role {
        let allow = "select switchboard.allow_gateway(quote_ident($1)::regrole)";
        transaction.execute(allow, &[&role]).await.map_err(told).context("the gateway's role")?;
        said.push_str(&format!("; {role} may run a gateway"));
    }
    transaction.commit().await.map_err(told)?;
    Ok(said)
}

/// The numbers of the steps that the database has.
pub async fn applied(client: &impl GenericClient) -> Result<Vec<i32>> {
    let schema =
        "select has_schema_privilege(oid, 'usage'), current_user::text from pg_namespace where nspname = 'switchboard'";
    match client.query_opt(schema, &[]).await.map_err(told)? {
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
    if !client
        .query_one("select to_regclass('switchboard.step') is not null", &[])
        .await
        .map_err(told)?
        .get::<_, bool>(0)
    {
        return Ok(Vec::new());
    }
    let rows = client.query("select number from switchboard.step order by number", &[]).await.map_err(told)?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Removes the schema and its triggers. Returns whether there was one.
pub async fn uninstall(client: &Client) -> Result<bool> {
    let was = !applied(client).await?.is_empty();
    client.batch_execute(&format!("begin; {BOUNDED}; {UNINSTALL}; commit")).await.map_err(told)?;
    Ok(was)
}

/// Watches a table, named as SQL spells it.
pub async fn watch(client: &mut Client, table: &str) -> Result<()> {
    call(client, "watch", table).await.map(|_| ())
}

/// Stops watching a table. Returns whether it was watched.
pub async fn unwatch(client: &mut Client, table: &str) -> Result<bool> {
    Ok(call(client, "unwatch", table).await?.get(0))
}

/// Calls the function of this name, as the command of this name does.
async fn call(client: &mut Client, function: &str, table: &str) -> Result<tokio_postgres::Row> {
    let transaction = client.transaction().await?;
    if applied(&transaction).await?.is_empty() {
        bail!("the database has no schema \"switchboard\"; run \"switchboard install\" first");
    }
    transaction.batch_execute(BOUNDED).await.map_err(told)?;
    refuse_our_own(&transaction, function, table).await?;
    let sql = format!("select switchboard.{function}($1::text::regclass)");
    let row = transaction.query_one(&sql, &[&table]).await.map_err(told)?;
    transaction.commit().await.map_err(told)?;
    Ok(row)
}

/// Looks a table up, and refuses one of Switchboard's.
async fn refuse_our_own(client: &impl GenericClient, command: &str, table: &str) -> Result<()> {
    let sql = "select n.nspname = 'switchboard', c.relname::text from pg_catalog.pg_class as c
               join pg_catalog.pg_namespace as n on n.oid = c.relnamespace where c.oid = $1::text::regclass";
    let found = client.query_opt(sql, &[&table]).await.map_err(|error| not_found(error, command, table))?;
    match found {
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
