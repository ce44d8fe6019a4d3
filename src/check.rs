//! The command `check`: says what is wrong between here and the database, and how to mend it. It changes nothing.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use anyhow::Result;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::config::{KEPT_BY_DEFAULT, Kept};
use crate::install::{self, STEPS};
use crate::listener::Listener;
use crate::names::shell;
use crate::session::{self, Database};

/// The oldest PostgreSQL that has what the log is made of (`xid8`, `pg_snapshot`), as `server_version_num`.
const VERSION_LEAST: i32 = 130_000;

/// The tables that grow and shrink with the log.
const LOG_TABLES: &[&str] = &["log", "mark", "commit", "forgotten"];

/// So many deleted rows wait for autovacuum at any time; it is told to come for 20,000 of a table (`sql/schema/01_log.sql`).
const DEAD_ROWS_FEW: i64 = 500_000;

/// One thing looked at.
pub struct Finding {
    /// What was looked at, and what was found.
    pub what: String,
    /// What it means.
    pub state: State,
}

/// What a finding means.
pub enum State {
    /// As it should be.
    Good,
    /// It works, with this drawback.
    Note(String),
    /// It does not work until this is done.
    Wrong(String),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.state {
            State::Good => write!(f, "good   {}", self.what),
            State::Note(remedy) => write!(f, "note   {}\n       {remedy}", self.what),
            State::Wrong(remedy) => write!(f, "WRONG  {}\n       {remedy}", self.what),
        }
    }
}

fn good(what: impl Into<String>) -> Finding {
    Finding { what: what.into(), state: State::Good }
}

fn note(what: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { what: what.into(), state: State::Note(remedy.into()) }
}

fn wrong(what: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { what: what.into(), state: State::Wrong(remedy.into()) }
}

/// Looks at everything that can be looked at; stops where the rest would make no sense.
pub async fn check(database: &tokio_postgres::Config) -> Vec<Finding> {
    let database = Database::new(database);
    let client = match database.connect_for_command().await {
        Ok(client) => client,
        Err(error) => {
            let remedy = "check the address, the password and that the server runs and accepts connections from here";
            return vec![wrong(format!("cannot connect: {error:#}"), remedy)];
        }
    };
    let mut findings = Vec::new();
    if let Err(error) = look(&client, &database, &mut findings).await {
        findings.push(wrong(format!("could not look further: {error:#}"), "mend the above first, then check again"));
    }
    findings
}

async fn look(client: &Client, database: &Database, findings: &mut Vec<Finding>) -> Result<()> {
    let server =
        "select current_setting('server_version_num')::integer, current_setting('server_version'), current_user::text,
                  current_database()::text, pg_is_in_recovery(), current_setting('session_replication_role'),
                  getdatabaseencoding()::text";
    let server = session::row(client, server, &[]).await?;
    let (version, name): (i32, &str) = (server.get(0), server.get(1));
    let (user, database_name): (&str, &str) = (server.get(2), server.get(3));
    if version < VERSION_LEAST {
        findings.push(wrong(format!("PostgreSQL {name}"), "version 13 or newer is needed; upgrade the server"));
        return Ok(());
    }
    findings.push(good(format!("PostgreSQL {name}, database {database_name}, as {user}")));
    if server.get(4) {
        findings.push(wrong("this server is a standby", "connect to the primary: positions are given there"));
        return Ok(());
    }
    let encoding: &str = server.get(6);
    if encoding == "SQL_ASCII" {
        findings.push(note(
            "the encoding of this database is SQL_ASCII, which does not say what its bytes mean",
            "a row whose text is not UTF-8 cannot be read: who follows its table begins anew; store UTF-8 only, or move to a database whose encoding is UTF8",
        ));
    }
    if server.get::<_, &str>(5) != "origin" {
        let remedy = "triggers are skipped for this role; undo it: alter role … reset session_replication_role";
        findings.push(wrong("session_replication_role is not origin", remedy));
    }
    look_at_strays(client, findings).await?;
    if !look_at_steps(client, findings).await? {
        return Ok(());
    }
    look_at_rights(client, user, findings).await?;
    look_at_grants(client, findings).await;
    look_at_locks(client, findings).await?;
    look_at_doorbell(database, findings).await;
    look_at_tables(client, findings).await?;
    look_at_row_security(client, findings).await;
    look_at_publications(client, findings).await?;
    look_at_log(client, findings).await
}

/// Returns whether there is a schema to look into.
async fn look_at_steps(client: &Client, findings: &mut Vec<Finding>) -> Result<bool> {
    let applied = install::applied(client).await?;
    let missing: Vec<String> = STEPS
        .iter()
        .filter(|(number, ..)| !applied.contains(number))
        .map(|(number, name, _)| format!("{number} ({name})"))
        .collect();
    let newer = applied.iter().any(|applied| STEPS.iter().all(|(number, ..)| number != applied));
    if applied.is_empty() {
        findings.push(wrong("the schema \"switchboard\" is not installed", "run: switchboard install"));
        return Ok(false);
    }
    if !missing.is_empty() {
        let remedy = "an older switchboard installed it; run: switchboard install";
        findings.push(wrong(format!("the schema lacks step {}", missing.join(", ")), remedy));
        return Ok(false);
    }
    if newer {
        findings.push(note("a newer switchboard upgraded the schema", "use that version here too"));
    }
    findings.push(good(format!("the schema \"switchboard\" is installed, up to step {}", STEPS.len())));
    Ok(true)
}

async fn look_at_rights(client: &Client, user: &str, findings: &mut Vec<Finding>) -> Result<()> {
    let sql = "select has_schema_privilege('switchboard', 'usage')
                  and has_table_privilege('switchboard.numbering', 'delete')
                  and bool_and(has_function_privilege(oid, 'execute'))
               from pg_proc where pronamespace = 'switchboard'::regnamespace
                              and proname = any (switchboard.called_by_gateways())";
    let may: Option<bool> = session::row(client, sql, &[]).await?.get(0);
    findings.push(match may {
        Some(true) => good(format!("{user} may run a gateway")),
        _ => wrong(
            format!("{user} may not run a gateway"),
            format!("as the owner, run: switchboard install --gateway-role {}", shell(user)),
        ),
    });
    Ok(())
}

/// Whether somebody may read or write what is ours, beside its owner and the gateways' roles.
async fn look_at_grants(client: &Client, findings: &mut Vec<Finding>) {
    // Only the owner of the schema may ask.
    let sql = "select what, grantee from switchboard.foreign_grants() order by 1, 2";
    let rows = session::rows(client, sql, &[]).await.unwrap_or_default();
    let Some(row) = rows.first() else { return };
    let (what, grantee): (&str, &str) = (row.get(0), row.get(1));
    let more = if rows.len() > 1 { format!(", and {} more like that", rows.len() - 1) } else { String::new() };
    findings.push(wrong(
        format!("{grantee} has rights on the {what}{more}: the log holds the rows of all watched tables"),
        "run: switchboard install, which takes them back; so it does with rights that default privileges gave",
    ));
}

/// Whether somebody who is no gateway holds one of the locks that gateways tell each other something by. Whoever may connect can.
async fn look_at_locks(client: &Client, findings: &mut Vec<Finding>) -> Result<()> {
    let sql = "select distinct session.pid, session.usename::text
               from pg_locks as held join pg_stat_activity as session using (pid)
               where held.locktype = 'advisory' and held.classid = 1937203812 and held.objsubid = 2
                     and held.database = (select oid from pg_database where datname = current_database())
                     and not has_schema_privilege(session.usesysid, 'switchboard', 'usage') and held.mode = 'ExclusiveLock'
               order by 1";
    for row in session::rows(client, sql, &[]).await? {
        let (pid, role): (i32, &str) = (row.get(0), row.get(1));
        findings.push(note(
            format!("session {pid} of {role} holds a lock of Switchboard's: nothing is lost, but gateways are slower and ring more"),
            format!("ask {role} why; select pg_terminate_backend({pid}) ends it"),
        ));
    }
    Ok(())
}

async fn look_at_doorbell(database: &Database, findings: &mut Vec<Finding>) {
    match Listener::connect(database).await {
        Err(error) => {
            findings.push(wrong(format!("cannot listen: {error:#}"), "allow one more connection for this role"))
        }
        Ok(listener) => {
            findings.push(match listener.deaf() {
                None => good("the doorbell is heard"),
                Some(_) if listener.pooled => note(
                    "a transaction pooler is in the way: it shares sessions among its clients, so nobody can listen in one",
                    "gateways poll (--poll-ms), and /listen does not work; give them an address that leads to the server itself to be faster",
                ),
                Some(why) => note(
                    format!("notifications do not arrive: {why}"),
                    "gateways poll (--poll-ms), and try again every 5 s; if the queue is full, end the oldest transaction of a session that listens (pg_stat_activity); else give them an address that leads to the server itself",
                ),
            });
            if !listener.rings {
                findings.push(note(
                    "max_prepared_transactions is not 0, so writers do not ring (it would break PREPARE TRANSACTION)",
                    "gateways poll (--poll-ms); set it to 0 and restart the server if nobody uses two-phase commit",
                ));
            }
        }
    }
}

async fn look_at_tables(client: &Client, findings: &mut Vec<Finding>) -> Result<()> {
    let sql = "select format('%I.%I', schema_name, table_name), active, class.oid is not null,
                      switchboard.captures(relation, watched.id),
                      coalesce(has_table_privilege(class.oid, 'select'), false), key_columns is not null,
                      pg_get_userbyid(class.relowner)::text, pg_get_userbyid(capture.proowner)::text,
                      coalesce(pg_has_role(class.relowner, capture.proowner, 'usage'), true),
                      coalesce((select rolsuper from pg_roles where oid = capture.proowner), false)
               from switchboard.watched left join pg_class as class on class.oid = relation
               cross join (select proowner from pg_proc where oid = 'switchboard.capture'::regproc) as capture order by 1";
    let rows = match session::rows(client, sql, &[]).await {
        Ok(rows) => rows,
        Err(error) => {
            let remedy = "only the owner of the schema sees which; check as that role too";
            findings.push(note(format!("watched tables: {error:#}"), remedy));
            return Ok(());
        }
    };
    let watched = rows.iter().filter(|row| row.get(1));
    if watched.clone().count() == 0 {
        findings.push(note("no table is watched", "run: switchboard watch TABLE"));
    }
    let owners: BTreeSet<&str> = watched.clone().filter(|row| !row.get::<_, bool>(8)).map(|row| row.get(6)).collect();
    if let Some(row) = rows.first().filter(|_| !owners.is_empty()) {
        let owners = owners.into_iter().collect::<Vec<_>>().join(", ");
        let installer: &str = row.get(7);
        let what = format!(
            "who owns a watched table ({owners}) can act as {installer}: by a cast of a type of theirs to json, which runs when a row is captured"
        );
        findings.push(match row.get(9) {
            true => wrong(
                what,
                "a role that nobody can use should own the schema: rename or drop the role switchboard, then run: switchboard install",
            ),
            false => note(what, "trust them with what the log holds, or let them own no table that is watched"),
        });
    }
    for row in watched {
        let table: &str = row.get(0);
        let (exists, captures, readable, keyed): (bool, bool, bool, bool) =
            (row.get(2), row.get(3), row.get(4), row.get(5));
        findings.push(match (exists, captures, readable, keyed) {
            (false, ..) => {
                note(format!("{table} was dropped"), "nothing to do; if it came back, run: switchboard watch")
            }
            (_, false, ..) => wrong(
                format!("{table} is watched, but its triggers are missing or disabled: changes are being lost"),
                format!("run: switchboard watch {}", shell(table)),
            ),
            (_, _, false, _) => wrong(
                format!("{table} is watched, but its rows cannot be read for snapshots"),
                format!("run: grant select on {table} to this role"),
            ),
            (.., false) => note(
                format!("{table} is watched, and has no primary key"),
                "its changes have \"key\":null; clients cannot tell its rows apart",
            ),
            _ => good(format!("{table} is watched")),
        });
    }
    Ok(())
}

/// Whether those who run gateways can read the rows of what is watched.
async fn look_at_row_security(client: &Client, findings: &mut Vec<Finding>) {
    let hidden = match install::hidden_rows(client, None).await {
        Ok(hidden) => hidden,
        // A gateway's own role may not look into the books, but sees what it is told of. (That it may not do this either is found elsewhere.)
        Err(_) => {
            let sql = "select format('%I.%I', n.nspname, c.relname), quote_ident(current_user)
                       from switchboard.tables() as t join pg_class as c on c.oid = t.relation
                       join pg_namespace as n on n.oid = c.relnamespace
                       where t.active and row_security_active(c.oid) order by 1";
            let rows = session::rows(client, sql, &[]).await.unwrap_or_default();
            rows.iter().map(|row| install::Hidden::new(row.get(0), row.get(1))).collect()
        }
    };
    findings.extend(hidden.iter().map(|hidden| wrong(hidden.what(), hidden.remedy())));
}

/// Triggers that came with a dump and speak for no table: they write nothing, and are confusing.
async fn look_at_strays(client: &Client, findings: &mut Vec<Finding>) -> Result<()> {
    // Only the owner of the schema sees the books.
    let sql = "select distinct format('%I.%I', n.nspname, c.relname) from switchboard.strays() as stray
               join pg_class as c on c.oid = stray.relation join pg_namespace as n on n.oid = c.relnamespace order by 1";
    let Ok(rows) = session::rows(client, sql, &[]).await else { return Ok(()) };
    findings.extend(rows.iter().map(|row| {
        let table: &str = row.get(0);
        note(
            format!("{table} has a trigger of ours that was made for another table: a copy, which captures nothing"),
            format!(
                "if the table is to be watched, run: switchboard watch {}; else run: switchboard install, which drops the trigger",
                shell(table)
            ),
        )
    }));
    Ok(())
}

/// Subscribers of logical replication that copy our schema get a log that means nothing there.
async fn look_at_publications(client: &Client, findings: &mut Vec<Finding>) -> Result<()> {
    let sql = "select distinct pubname::text from pg_publication_tables where schemaname = 'switchboard' order by 1";
    let rows = session::rows(client, sql, &[]).await?;
    findings.extend(rows.iter().map(|row| {
        let publication: &str = row.get(0);
        note(
            format!("the publication {publication} also publishes the schema \"switchboard\""),
            "it works, and every change is sent twice; name the tables or the schemas that are meant instead of all",
        )
    }));
    Ok(())
}

async fn look_at_log(client: &Client, findings: &mut Vec<Finding>) -> Result<()> {
    let sql = "select look.epoch, look.oldest, look.head, look.bytes,
                      greatest(extract(epoch from now() - look.oldest_at), 0)::float8,
                      (select sum(pg_total_relation_size(oid))::bigint from pg_class where relkind = 'r' and relname = any ($1)
                                                            and relnamespace = 'switchboard'::regnamespace),
                      (select coalesce(sum(n_dead_tup), 0)::bigint from pg_stat_all_tables
                       where schemaname = 'switchboard' and relname = any ($1))
               from switchboard.look(0, null, 0) as look";
    let Ok(log) = session::row(client, sql, &[(&LOG_TABLES, Type::TEXT_ARRAY)]).await else { return Ok(()) };
    let (epoch, oldest, head): (Option<&str>, Option<i64>, Option<i64>) = (log.get(0), log.get(1), log.get(2));
    if let (Some(epoch), Some(oldest), Some(head)) = (epoch, oldest, head) {
        let (bytes, disk_bytes, dead): (i64, i64, i64) = (log.get(3), log.get(5), log.get(6));
        let age = Duration::from_secs_f64(log.get(4));
        findings.push(good(format!(
            "the log holds {} commits, after position {oldest} and up to {head} of epoch {epoch}: {}, {} on disk; the oldest came {} s ago",
            head - oldest,
            size(bytes),
            size(disk_bytes),
            age.as_secs()
        )));
        findings.extend(trimmed(&Kept { age, commits: head - oldest, bytes }));
        if dead > DEAD_ROWS_FEW {
            findings.push(note(
                format!("{dead} rows of the log are deleted, and their space cannot be used again yet"),
                "end transactions that are open for long (pg_stat_activity, by xact_start), and see that autovacuum is on",
            ));
        }
    } else {
        findings.push(note("the log has no epoch yet", "the first gateway that runs begins one"));
    }
    // Marks that have no position yet: where there are old ones, no gateway is at work, and the log grows.
    let waiting = "select count(*), coalesce(extract(epoch from now() - min(at)), 0)::float8
                   from (select at from switchboard.mark
                         where xid >= (select pg_snapshot_xmax(snapshot) from switchboard.commit order by position desc limit 1)
                         limit 100000) as waiting";
    if let Ok(row) = session::row(client, waiting, &[]).await {
        let (count, age): (i64, f64) = (row.get(0), row.get(1));
        if count > 0 && age > 5.0 {
            findings.push(note(
                format!("{count} commits wait for their position, the oldest for {age:.0} s: no gateway is at work"),
                "run: switchboard serve; without a gateway nothing trims the log",
            ));
        }
    }
    Ok(())
}

/// A remark where the log holds far more than gateways keep by default.
fn trimmed(log: &Kept) -> Option<Finding> {
    let usual = KEPT_BY_DEFAULT;
    // The newest commit always stays, however old.
    let far =
        log.commits > 0 && log.age > 2 * usual.age || log.commits > 2 * usual.commits || log.bytes > 2 * usual.bytes;
    far.then(|| {
        note(
            format!(
                "the log holds far more than {} s, {} commits or {}, which is what gateways keep by default",
                usual.age.as_secs(),
                usual.commits,
                size(usual.bytes)
            ),
            "without a gateway nothing trims it: run: switchboard serve; nothing to do where its --retain settings say so",
        )
    })
}

fn size(bytes: i64) -> String {
    match bytes {
        ..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}
