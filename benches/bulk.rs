//! What a transaction of very many rows costs: how long until all of it has arrived, how long a small one behind it waits, and how much
//! memory the gateway takes meanwhile.
//!
//! The gateway runs as a process of its own; the clients here only look for the cursors of commits. Run with:
//!
//! ```text
//! cargo bench --bench bulk                # 1,000,000 rows, 3 rounds
//! cargo bench --bench bulk -- --short     # to see that it works
//! ```

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_util::StreamExt;
use switchboard::config::database_config;
use switchboard::install;
use switchboard::local::{LocalServer, Options, StopMode};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(300);

struct Size {
    rows: u64,
    rounds: u64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let size = match std::env::args().any(|argument| argument == "--short") {
        true => Size { rows: 20_000, rounds: 1 },
        false => Size { rows: 1_000_000, rounds: 3 },
    };
    let dir = std::env::temp_dir().join(format!("switchboard-bulk-{}", std::process::id()));
    let settings = vec![("max_wal_size".to_owned(), "4GB".to_owned())];
    let server = LocalServer::start(Options { dir, settings, durable: true, keep: false }, |_| {}).await?;
    let measured = measure(&server, &size).await;
    server.stop(StopMode::Fast).await?;
    measured
}

async fn measure(server: &LocalServer, size: &Size) -> Result<()> {
    let url = server.url("postgres");
    let database = database_config(&url, None).map_err(anyhow::Error::msg)?;
    let mut client = install::connect(&database).await?;
    install::install(&mut client, false, None).await?;
    client
        .batch_execute(
            "create table bulk (id bigint primary key, level int not null);
             create table small (id int primary key, level int not null);
             insert into small values (1, 0)",
        )
        .await?;
    install::watch(&mut client, "bulk").await?;
    install::watch(&mut client, "small").await?;
    let gateway = Gateway::start(&url).await?;
    println!("{} rows in one transaction, then one row in another", size.rows);
    for round in 1..=size.rounds {
        let bulk = gateway.follow("bulk").await?;
        let small = gateway.follow("small").await?;
        let first = round * size.rows;
        let insert =
            format!("insert into bulk select n, 0 from generate_series({first}, {}) as n", first + size.rows - 1);
        let begun = Instant::now();
        client.batch_execute(&insert).await?;
        let committed = Instant::now();
        client.batch_execute("update small set level = level + 1").await?;
        let small_committed = Instant::now();
        let (bulk, small) = tokio::try_join!(timeout(PATIENCE, bulk), timeout(PATIENCE, small))?;
        let (bulk, small) = (bulk??, small??);
        if bulk.changes != size.rows || small.changes != 1 {
            bail!("{} and {} changes came", bulk.changes, small.changes);
        }
        let took = (bulk.ended - committed).as_secs_f64();
        println!(
            "  round {round}: written in {:.1} s; arrived {took:.2} s after the commit ({:.0} rows/s, {} parts of {:.0} KB); \
             the small one {:.2} s after its own; peak memory {:.0} MB",
            (committed - begun).as_secs_f64(),
            size.rows as f64 / took,
            bulk.frames,
            bulk.bytes as f64 / bulk.frames as f64 / 1e3,
            small.ended.saturating_duration_since(small_committed).as_secs_f64(),
            gateway.peak_bytes()? as f64 / 1e6,
        );
    }
    Ok(())
}

/// The gateway, in a process of its own.
struct Gateway {
    child: Child,
    address: String,
}

/// One commit, as it arrived.
struct Arrived {
    ended: Instant,
    frames: u64,
    changes: u64,
    bytes: u64,
}

impl Gateway {
    async fn start(url: &str) -> Result<Gateway> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_switchboard"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--log", "error"]).env("DATABASE_URL", url);
        let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let stdout = child.stdout.take().context("its output is a pipe")?;
        let line = timeout(PATIENCE, BufReader::new(stdout).lines().next_line()).await??.context("it said nothing")?;
        let address =
            line.split("http://").nth(1).and_then(|rest| rest.split(' ').next()).context("no address")?.to_owned();
        Ok(Gateway { child, address })
    }

    /// A subscriber of one table that is ready; resolves once a whole commit came.
    async fn follow(&self, table: &str) -> Result<tokio::task::JoinHandle<Result<Arrived>>> {
        let url = format!("ws://{}/v1/feed?from=now&table={table}", self.address);
        let (mut socket, _) = timeout(PATIENCE, tokio_tungstenite::connect_async(&url)).await??;
        while !timeout(PATIENCE, socket.next()).await?.context("closed")??.to_text()?.contains(r#""type":"ready""#) {}
        Ok(tokio::spawn(async move {
            let mut arrived = Arrived { ended: Instant::now(), frames: 0, changes: 0, bytes: 0 };
            while let Some(message) = socket.next().await {
                let Message::Text(text) = message? else { continue };
                if !text.starts_with(r#"{"type":"commit""#) {
                    continue;
                }
                arrived.frames += 1;
                arrived.bytes += text.len() as u64;
                arrived.changes += text.matches(r#"{"op":""#).count() as u64;
                if !text[..text.len().min(200)].contains(r#""more":true"#) {
                    arrived.ended = Instant::now();
                    return Ok(arrived);
                }
            }
            bail!("the connection ended within the commit")
        }))
    }

    /// The most memory that the process ever held, of Linux.
    fn peak_bytes(&self) -> Result<u64> {
        let pid = self.child.id().context("it ended")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kilobytes =
            status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<u64>().ok());
        Ok(kilobytes.context("no VmHWM")? * 1024)
    }
}
