//! The PostgreSQL of the siege: a private server, the tables of innocents and attackers, and sessions.

use std::time::Duration;

use switchboard::config::database_config;
use switchboard::install;
use switchboard::local::{LocalServer, Options, Programs};
use tokio_postgres::{Client, Config, NoTls};

use crate::innocents;

/// The first version whose notification queue can be made small; before, it takes 8 GiB to fill.
const SMALL_QUEUE_VERSION: u32 = 17;
/// How large the notification queue is there, in pages of 8 KiB: the least that PostgreSQL allows.
const QUEUE_PAGES: &str = "64";

/// The tables that attackers write, beside those of the innocents.
const TABLES: &str = "
    create table innocent_few (id int primary key, name text);
    insert into innocent_few select id, 'row ' || id from generate_series(1, 20) as id;
    create table prey (id int primary key, body text, n numeric, at timestamptz, doc jsonb);
    insert into prey (id, body, n, at) values (1, 'short', 1, now());
    create table prey_rows (id int primary key, v int not null, filler text not null);
    insert into prey_rows select id, 0, repeat('x', 280) from generate_series(1, 3000) as id;
    create table prey_large (id int primary key, filler text not null);
    insert into prey_large select id, repeat(md5(id::text), 32) from generate_series(1, 16384) as id;
    create role stranger login password 'stranger';";
/// Makes the attackers' row what it was.
pub const RESTORE: &str = "update prey set body = 'short', doc = null where id = 1";
const WATCHED: [&str; 6] = ["innocent_a", "innocent_b", "innocent_few", "prey", "prey_rows", "prey_large"];

/// A server, a database on it that is installed and watched, and its address.
pub struct Database {
    _server: LocalServer,
    pub url: String,
    /// Whether its notification queue is small enough to be filled.
    pub small_queue: bool,
}

impl Database {
    /// Starts the server.
    pub async fn start() -> Database {
        let programs = Programs::find(None, &|_: &str| {}).await.expect("an installation of PostgreSQL");
        let small_queue = programs.version >= SMALL_QUEUE_VERSION;
        let mut settings = vec![("max_connections", "200"), ("shared_buffers", "64MB"), ("max_wal_size", "1GB")];
        settings.extend(small_queue.then_some(("max_notify_queue_pages", QUEUE_PAGES)));
        let settings = settings.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let dir = std::env::temp_dir().join(format!("switchboard-siege-{}", std::process::id()));
        let server = LocalServer::start(Options { dir, settings, durable: false, keep: false }, |_| {}).await;
        let server = server.expect("a PostgreSQL for the siege");
        let url = server.url("siege");
        connect(&server.url("postgres"), "siege").await.batch_execute("create database siege").await.unwrap();

        let mut client = connect(&url, "siege").await;
        install::install(&mut client, false, None).await.unwrap();
        client.batch_execute(innocents::DEFINITION).await.unwrap();
        client.batch_execute(TABLES).await.unwrap();
        for table in WATCHED {
            install::watch(&mut client, table).await.unwrap();
        }
        Database { _server: server, url, small_queue }
    }
}

/// How long a session may take to begin.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// A session by this name, which is not the gateway's.
pub async fn connect(url: &str, name: &str) -> Client {
    let mut config = database_config(url, None).unwrap();
    config.application_name(name);
    session(&config).await
}

/// A session of a role that may only connect.
pub async fn connect_as_stranger(url: &str) -> Client {
    let mut config = database_config(url, None).unwrap();
    config.user("stranger").password("stranger").application_name("stranger");
    session(&config).await
}

async fn session(config: &Config) -> Client {
    let connecting = tokio::time::timeout(CONNECT_PATIENCE, config.connect(NoTls)).await;
    let (client, connection) = connecting.expect("PostgreSQL answers").expect("a session");
    tokio::spawn(connection);
    client
}
