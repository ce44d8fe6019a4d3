//! Sessions: the one place that opens connections to PostgreSQL.
//!
//! A role or a database may have settings of its own (`alter role … set …`): a `statement_timeout` cuts off a snapshot, a
//! `default_transaction_read_only` refuses positions. So every session of ours states the settings that it depends on when it begins.
//! Some poolers refuse or ignore that. Then each transaction of ours states them for itself, and nothing stays in the session.

use std::collections::HashSet;
use std::fmt::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use deadpool_postgres::{Connect, Manager, ManagerConfig, Pool, RecyclingMethod};
use futures_util::future::BoxFuture;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::NoTlsStream;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, GenericClient, NoTls, Row, SimpleQueryMessage, Socket};

use crate::config::{CONNECT_PATIENCE, POOLER_ROUNDS, SESSION_PATIENCE};

/// One end of a session; whoever opens it drives it.
pub type Connection = tokio_postgres::Connection<Socket, NoTlsStream>;

/// The settings of every session of ours. All of them exist since PostgreSQL 13, and anybody may set them.
const PINS: &[(&str, &str)] = &[
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_deferrable", "off"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("row_security", "on"),
    ("client_min_messages", "warning"),
    ("standard_conforming_strings", "on"),
    ("transform_null_equals", "off"),
    ("array_nulls", "on"),
    ("gin_fuzzy_search_limit", "0"),
    ("TimeZone", "UTC"),
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "postgres"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "1"),
    ("quote_all_identifiers", "off"),
    ("plpgsql.extra_errors", "none"),
    ("plpgsql.extra_warnings", "none"),
    ("enable_bitmapscan", "on"),
    ("enable_hashagg", "on"),
    ("enable_hashjoin", "on"),
    ("enable_indexonlyscan", "on"),
    ("enable_indexscan", "on"),
    ("enable_material", "on"),
    ("enable_mergejoin", "on"),
    ("enable_nestloop", "on"),
    ("enable_seqscan", "on"),
    ("enable_sort", "on"),
    ("enable_tidscan", "on"),
];

/// Time-outs to be switched off, and the first version that has each. A first session gets them as soon as it knows its version; all
/// later ones begin with them.
const PINS_SINCE: &[(&str, u32)] = &[("idle_session_timeout", 140_000), ("transaction_timeout", 170_000)];

/// The settings of the gateway's own statements, which name every schema but that of the system.
const PINS_OF_A_GATEWAY: &[(&str, &str)] = &[("search_path", "pg_catalog, pg_temp")];

/// The settings of a command: what it creates has to be what it was tested with.
const PINS_OF_A_COMMAND: &[(&str, &str)] = &[("check_function_bodies", "on"), ("default_table_access_method", "heap")];

/// Those of a session that holds locks or listens. If this side vanishes, the server has to find out soon.
const PINS_OF_A_LISTENER: &[(&str, &str)] = &[
    ("search_path", "pg_catalog, pg_temp"),
    ("statement_timeout", "10s"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "10000"),
];

/// Those of a session that flips switches for the live page: how long somebody else's transaction may hold a row.
const PINS_OF_THE_PAGE: &[(&str, &str)] = &[("lock_timeout", "5s")];

/// Says in a session that its settings arrived: what ignores startup options ignores this one too.
const MARKER: &str = "switchboard.pinned";

/// What a session is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Statements of a gateway.
    Gateway,
    /// Notifications, and locks that last as long as the session.
    Listener,
    /// A command for a database. People name tables in it, so their `search_path` counts.
    Command,
    /// Clicks on the live page of `switchboard dev`.
    Page,
}

impl Purpose {
    fn pins(self) -> impl Iterator<Item = (&'static str, &'static str)> + Clone {
        let more = match self {
            Purpose::Gateway => PINS_OF_A_GATEWAY,
            Purpose::Listener => PINS_OF_A_LISTENER,
            Purpose::Command => PINS_OF_A_COMMAND,
            Purpose::Page => PINS_OF_THE_PAGE,
        };
        PINS.iter().chain(more).copied()
    }

    /// The settings as startup options for this version of PostgreSQL. A later one wins.
    fn options(self, version: u32) -> String {
        let mut options = format!("-c {MARKER}=on");
        for (name, _) in PINS_SINCE.iter().filter(|(_, since)| version >= *since) {
            // Cannot fail: it is a string.
            let _ = write!(options, " -c {name}=0");
        }
        for (name, value) in self.pins() {
            let _ = write!(options, " -c {name}={}", value.replace('\\', "\\\\").replace(' ', "\\ "));
        }
        options
    }

    /// The settings as statements, for a session or for a transaction.
    pub fn statements(self, set: &str) -> String {
        // A list of values is not one value.
        let value = |name, value: &str| match name {
            "search_path" => value.to_owned(),
            _ => format!("'{value}'"),
        };
        let each = self.pins().map(|(name, text)| format!("{set} {name} = {}; ", value(name, text)));
        each.collect()
    }
}

/// A database, and what is known about the way to it.
#[derive(Clone)]
pub struct Database {
    config: tokio_postgres::Config,
    /// Whether something on the way refused or ignored the settings of a session. Remembered for as long as the program runs.
    bare: Arc<AtomicBool>,
    /// The version of the server as last seen; 0 before that.
    version: Arc<AtomicU32>,
}

impl Database {
    /// A database that nobody connected to yet.
    pub fn new(config: &tokio_postgres::Config) -> Database {
        Database { config: config.clone(), bare: Arc::default(), version: Arc::default() }
    }

    /// The same database under another name in `pg_stat_activity`.
    pub fn named(&self, application_name: &str) -> Database {
        let mut named = self.clone();
        named.config.application_name(application_name);
        named
    }

    /// The name of this program in `pg_stat_activity`.
    pub fn name(&self) -> &str {
        self.config.get_application_name().unwrap_or("switchboard")
    }

    /// Whether sessions do not have the settings of their purpose: then each transaction needs [`Database::locals`].
    pub fn is_bare(&self) -> bool {
        self.bare.load(Ordering::Relaxed)
    }

    /// Statements with which a transaction begins that depends on the settings; none if the session has them.
    pub fn locals(&self, purpose: Purpose) -> String {
        if self.is_bare() { purpose.statements("set local") } else { String::new() }
    }

    /// Opens a session. `drive` gets its connection, and has to see that it is polled.
    pub async fn connect<D>(&self, purpose: Purpose, drive: impl FnOnce(Connection) -> D) -> Result<(Client, D)> {
        let opening = timeout(SESSION_PATIENCE, self.begin(purpose, drive)).await;
        opening.context("PostgreSQL does not answer")?.map_err(told)
    }

    /// The same for a command. The session ends with the client.
    pub async fn connect_for_command(&self) -> Result<Client> {
        // What goes wrong with the connection shows in the client's calls.
        let (client, _) = self.connect(Purpose::Command, tokio::spawn).await?;
        Ok(client)
    }

    /// A pool of sessions, opened as they are needed.
    pub fn pool(&self, purpose: Purpose, sessions_max: usize, patience: Duration) -> Pool {
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let opener = Opener { database: self.clone(), purpose };
        Pool::builder(Manager::from_connect(self.config.clone(), opener, recycling))
            .max_size(sessions_max)
            .runtime(deadpool_postgres::Runtime::Tokio1)
            .create_timeout(Some(patience))
            .recycle_timeout(Some(patience))
            .build()
            .expect("a pool with a runtime takes time-outs")
    }

    async fn begin<D>(
        &self,
        purpose: Purpose,
        drive: impl FnOnce(Connection) -> D,
    ) -> Result<(Client, D), tokio_postgres::Error> {
        let (client, connection) = self.open(purpose).await?;
        let driven = drive(connection);
        if !self.is_bare() {
            match version_with_settings(&client).await? {
                Some(version) => self.version.store(version, Ordering::Relaxed),
                None => {
                    self.bare.store(true, Ordering::Relaxed);
                    tracing::debug!("startup options are ignored on the way to PostgreSQL (a pooler?)");
                }
            }
        }
        Ok((client, driven))
    }

    async fn open(&self, purpose: Purpose) -> Result<(Client, Connection), tokio_postgres::Error> {
        if self.is_bare() {
            return self.config.connect(NoTls).await;
        }
        let mut config = self.config.clone();
        // Behind the user's own.
        let own = config.get_options().map(|own| format!("{own} ")).unwrap_or_default();
        config.options(own + &purpose.options(self.version.load(Ordering::Relaxed)));
        match config.connect(NoTls).await {
            Err(error) if refuses_options(&error) => {
                let opened = self.config.connect(NoTls).await?;
                self.bare.store(true, Ordering::Relaxed);
                tracing::debug!("startup options are refused on the way to PostgreSQL (a pooler?): {}", told(error));
                Ok(opened)
            }
            opened => opened,
        }
    }

    /// Gives a session the settings of its purpose if it has not got them. Only for a session that is ours alone.
    pub async fn settle(&self, client: &Client, purpose: Purpose) -> Result<()> {
        if !self.is_bare() {
            return Ok(());
        }
        within(CONNECT_PATIENCE, client.batch_execute(&purpose.statements("set"))).await
    }

    /// Whether a transaction pooler is on the way: then consecutive transactions of one session run in different sessions of
    /// PostgreSQL, and different sessions of ours in the same one. Two sessions of ours find out, even if nobody else is there.
    ///
    /// `client` is one of them, outside of any transaction. Nothing stays in either.
    pub async fn is_pooled(&self, client: &Client) -> Result<bool> {
        let other = match self.connect(Purpose::Gateway, tokio::spawn).await {
            Ok((other, _)) => other,
            // No more connections for this role. A pooler lets us have them, or at least does not pass our settings on.
            Err(error) if !self.is_bare() => {
                tracing::debug!("no second session to look for a pooler with: {error:#}");
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let mut seen = [HashSet::new(), HashSet::new()];
        for round in 0..2 * POOLER_ROUNDS {
            // The one holds its session of PostgreSQL while the other needs one, so that a pooler has to show what it does.
            let (holds, asks) = (round % 2, (round + 1) % 2);
            let clients = [client, &other];
            seen[asks].insert(process(clients[asks], "").await?);
            match process(clients[holds], "begin; ").await {
                Ok(process) => drop(seen[holds].insert(process)),
                // PgBouncer in its statement mode allows no transactions.
                Err(error) if error.downcast_ref::<Told>().is_some() => return Ok(true),
                Err(error) => return Err(error),
            }
            let shared = |seen: &[HashSet<String>; 2]| seen.iter().any(|seen| seen.len() > 1) || seen[0] == seen[1];
            let mut pooled = shared(&seen);
            // A pool of one session has none left for this.
            if !pooled {
                seen[asks].insert(process(clients[asks], "").await?);
                pooled = shared(&seen);
            }
            within(SESSION_PATIENCE, clients[holds].batch_execute("commit")).await?;
            if pooled {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Opens the sessions of a pool.
struct Opener {
    database: Database,
    purpose: Purpose,
}

impl Connect for Opener {
    fn connect(
        &self,
        _: &tokio_postgres::Config,
    ) -> BoxFuture<'_, Result<(Client, JoinHandle<()>), tokio_postgres::Error>> {
        Box::pin(self.database.begin(self.purpose, |connection| {
            tokio::spawn(async {
                // What goes wrong with it shows in the client's calls.
                let _ = connection.await;
            })
        }))
    }
}

/// The process of PostgreSQL that serves a session at this moment.
async fn process(client: &Client, before: &str) -> Result<String> {
    let sql = format!("{before}select pg_catalog.pg_backend_pid()");
    let messages = within(SESSION_PATIENCE, client.simple_query(&sql)).await?;
    Ok(first(&messages).context("a session has a process")?.to_owned())
}

/// The version of the server, if the settings of its purpose have arrived in a session. Then those follow that were not among its
/// startup options.
async fn version_with_settings(client: &Client) -> Result<Option<u32>, tokio_postgres::Error> {
    let names = PINS_SINCE.iter().map(|(name, _)| format!("'{name}'")).collect::<Vec<_>>().join(", ");
    let sql = format!(
        "select pg_catalog.current_setting('server_version_num') where pg_catalog.current_setting('{MARKER}', true) = 'on';
         select pg_catalog.set_config(name, '0', false) from pg_catalog.pg_settings
         where name in ({names}) and setting <> '0' and pg_catalog.current_setting('{MARKER}', true) = 'on'"
    );
    Ok(first(&client.simple_query(&sql).await?).and_then(|version| version.parse().ok()))
}

/// Whether a session was refused for its startup options. Others refuse them in words of their own: without them it is tried anyway.
fn refuses_options(error: &tokio_postgres::Error) -> bool {
    let Some(said) = error.as_db_error() else { return false };
    let codes = [
        SqlState::PROTOCOL_VIOLATION,
        SqlState::FEATURE_NOT_SUPPORTED,
        SqlState::UNDEFINED_OBJECT,
        SqlState::INVALID_PARAMETER_VALUE,
        SqlState::CANT_CHANGE_RUNTIME_PARAM,
    ];
    let words = ["startup parameter", "startup option", "options"];
    codes.contains(said.code()) || words.iter().any(|words| said.message().contains(words))
}

/// The rows that a statement without a name gives: named ones are of no use behind a pooler, where another session may have to find them.
pub async fn rows(client: &impl GenericClient, sql: &str, values: &[(&(dyn ToSql + Sync), Type)]) -> Result<Vec<Row>> {
    client.query_typed(sql, values).await.map_err(told)
}

/// The first of them.
pub async fn row(client: &impl GenericClient, sql: &str, values: &[(&(dyn ToSql + Sync), Type)]) -> Result<Row> {
    rows(client, sql, values).await?.into_iter().next().with_context(|| format!("no row came back from: {sql}"))
}

/// Waits for a statement no longer than its patience.
pub async fn within<T>(patience: Duration, work: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T> {
    let done = timeout(patience, work).await;
    done.with_context(|| format!("PostgreSQL did not answer within {} s", patience.as_secs()))?.map_err(told)
}

/// What PostgreSQL said against a statement or a session.
#[derive(Debug)]
pub struct Told {
    /// Its code for that.
    pub code: SqlState,
    /// Its message, without hint or remedy.
    pub message: String,
    /// All of it in one line.
    line: String,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

impl std::error::Error for Told {}

impl Told {
    /// What PostgreSQL said, if that is why something failed.
    pub fn of(error: &anyhow::Error) -> Option<&Told> {
        error.chain().find_map(|cause| cause.downcast_ref())
    }
}

/// What PostgreSQL said, with its hint, in one line.
pub fn told(error: tokio_postgres::Error) -> anyhow::Error {
    let Some(said) = error.as_db_error() else {
        let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
        return anyhow!("{error}{source}");
    };
    let hint = said.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
    let message = said.message().to_owned();
    let remedy = match said.code().code() {
        "55P03" => "; it was in use: try again when no long transaction holds it",
        "42501" => "; use a role that may",
        "42P01" | "3F000" if !message.contains("switchboard") => "; name it as SQL does, with its schema",
        "3F000" | "42P01" | "42883" if message.contains("switchboard") => "; run \"switchboard check\"",
        _ => "",
    };
    Told { code: said.code().clone(), line: format!("{message}{hint}{remedy}"), message }.into()
}

/// The first value of an answer.
pub fn first(messages: &[SimpleQueryMessage]) -> Option<&str> {
    messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    })
}
