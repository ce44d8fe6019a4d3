//! What a transaction of very many rows costs: how long until all of it has arrived, how long a small one behind it waits, and how much
//! memory the gateway takes meanwhile.
//!
//! The gateway runs as a process of its own; the clients here only look for the cursors of commits. Run with:
//!
//! ```text
//! cargo bench --bench bulk                # 1,000,000 rows, 3 rounds
//! cargo bench --bench bulk -- --short     # to see that it works
//! ```

mod harness;

use std::time::Instant;

use anyhow::{Context, Result, bail};
use futures_util::StreamExt;
use switchboard::install;
use switchboard::local::LocalServer;
use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{PATIENCE, Server, beside_postgresql, is_short};

struct Size {
    rows: u64,
    rounds: u64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let size = if is_short() { Size { rows: 20_000, rounds: 1 } } else { Size { rows: 1_000_000, rounds: 3 } };
    beside_postgresql(&[("max_wal_size", "4GB")], async |server, client| measure(server, client, &size).await).await
}

async fn measure(server: &LocalServer, mut client: Client, size: &Size) -> Result<()> {
    let url = &server.url("postgres");
    client
        .batch_execute(
            "create table bulk (id bigint primary key, level int not null);
             create table small (id int primary key, level int not null);
             insert into small values (1, 0)",
        )
        .await?;
    install::watch(&mut client, "bulk").await?;
    install::watch(&mut client, "small").await?;
    let gateway = Server::gateway(&[], url).await?;
    println!("{} rows in one transaction, then one row in another", size.rows);
    for round in 1..=size.rounds {
        let bulk = follow(&gateway, "bulk").await?;
        let small = follow(&gateway, "small").await?;
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

/// One commit, as it arrived.
struct Arrived {
    ended: Instant,
    frames: u64,
    changes: u64,
    bytes: u64,
}

/// A subscriber of one table that is ready; resolves once a whole commit came.
async fn follow(gateway: &Server, table: &str) -> Result<tokio::task::JoinHandle<Result<Arrived>>> {
    let url = format!("ws://{}/v1/feed?from=now&table={table}", gateway.address);
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
