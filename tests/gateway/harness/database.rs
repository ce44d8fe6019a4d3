//! PostgreSQL for tests: one server that all share, servers of one's own for those who break them, and a database each.

use std::ops::Deref;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use switchboard::local::{LocalServer, Options};
use switchboard::{config, install};
use tokio_postgres::{Client, NoTls};

use super::Proxy;

/// A server of one test's own.
pub struct Server(pub LocalServer);

impl Server {
    /// Starts a server with these settings beside the usual ones; its folder goes with it.
    pub async fn start(settings: &[(&str, &str)]) -> Server {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("switchboard-test-{}-{number}", std::process::id()));
        let usual = [("max_connections", "400"), ("shared_buffers", "64MB")];
        let settings =
            usual.iter().chain(settings).map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let options = Options { dir, settings, durable: false, keep: false };
        Server(LocalServer::start(options, |_| {}).await.expect("a PostgreSQL server for tests"))
    }

    /// A new database on it, installed.
    pub async fn database(&self) -> Database {
        Database::create(self.0.url("postgres"), |name| self.0.url(name)).await
    }

    /// A new database on it, without the log.
    pub async fn empty_database(&self) -> Database {
        Database::bare(self.0.url("postgres"), "", |name| self.0.url(name)).await
    }
}

/// The server that most tests share. It lives as long as the process, on a runtime of its own.
fn shared() -> &'static Server {
    static SHARED: OnceLock<Server> = OnceLock::new();
    SHARED.get_or_init(|| {
        let start = || {
            let runtime = Box::leak(Box::new(tokio::runtime::Runtime::new().unwrap()));
            runtime.block_on(Server::start(&[]))
        };
        std::thread::spawn(start).join().expect("the shared server starts")
    })
}

/// A database of one test's own, with the log installed, and a session on it.
pub struct Database {
    client: Client,
    pub url: String,
}

impl Database {
    /// A database on the shared server.
    pub async fn new() -> Database {
        let server = tokio::task::spawn_blocking(shared).await.unwrap();
        server.database().await
    }

    /// The same, with the `switch` table.
    pub async fn with_switch() -> Database {
        let db = Database::new().await;
        let mut client = connect(&db.url).await;
        install::install(&mut client, true, None).await.unwrap();
        db
    }

    async fn create(admin: String, url: impl Fn(&str) -> String) -> Database {
        let db = Database::bare(admin, "", url).await;
        let mut client = connect(&db.url).await;
        install::install(&mut client, false, None).await.unwrap();
        db
    }

    async fn bare(admin: String, options: &str, url: impl Fn(&str) -> String) -> Database {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let admin = connect(&admin).await;
        admin.batch_execute(&format!("create database {name} {options}")).await.unwrap();
        let url = url(&name);
        Database { client: connect(&url).await, url }
    }

    /// A database without the log.
    pub async fn without_log() -> Database {
        let server = tokio::task::spawn_blocking(shared).await.unwrap();
        Database::bare(server.0.url("postgres"), "", |name| server.0.url(name)).await
    }

    /// A database on the shared server, made with these options of `create database`.
    pub async fn made_with(options: &str) -> Database {
        let server = tokio::task::spawn_blocking(shared).await.unwrap();
        let db = Database::bare(server.0.url("postgres"), options, |name| server.0.url(name)).await;
        install::install(&mut connect(&db.url).await, false, None).await.unwrap();
        db
    }

    /// One that is there already.
    pub async fn at(url: &str) -> Database {
        Database { client: connect(url).await, url: url.to_owned() }
    }

    /// What a gateway needs to know.
    pub fn config(&self) -> tokio_postgres::Config {
        config::database_config(&self.url, None).unwrap()
    }

    /// The same as it is reached through a network that fails on demand.
    pub async fn behind_proxy(&self) -> (Proxy, tokio_postgres::Config) {
        let proxy = Proxy::start().await;
        let (user, rest) = self.url.rsplit_once('@').unwrap();
        let (server, name) = rest.split_once('/').unwrap();
        proxy.lead_to(Some(server.parse().unwrap()));
        let url = format!("{user}@{}/{name}", proxy.address);
        (proxy, config::database_config(&url, None).unwrap())
    }

    /// Another session.
    pub async fn session(&self) -> Client {
        connect(&self.url).await
    }

    /// A new session after the server was away.
    pub async fn reconnect(&mut self) {
        self.client = connect(&self.url).await;
    }

    /// Runs statements, each by itself.
    pub async fn run(&self, statements: &[&str]) {
        for statement in statements {
            self.client.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
        }
    }

    /// Runs statements as one transaction.
    pub async fn transaction(&self, statements: &[&str]) {
        self.run(&[&format!("begin; {}; commit", statements.join("; "))]).await;
    }

    /// One value.
    pub async fn value<T: for<'a> tokio_postgres::types::FromSql<'a>>(&self, sql: &str) -> T {
        self.client.query_one(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
    }

    /// Watches a table.
    pub async fn watch(&self, table: &str) {
        install::watch(&mut self.session().await, table).await.unwrap();
    }
}

impl Deref for Database {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

pub async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}
