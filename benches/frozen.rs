//! What one frozen client costs the others: how long a change takes to the last of 999 subscribers, while the thousandth reads nothing
//! and while it is not there.
//!
//! The frozen one follows the same table as the others and is stuck for good: its socket is full before the measuring begins. Run with:
//!
//! ```text
//! cargo bench --bench frozen                # 1,000 subscribers, 500 changes, 3 rounds in turns
//! cargo bench --bench frozen -- --short     # to see that it works
//! ```

mod harness;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use switchboard::install;
use switchboard::local::LocalServer;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_postgres::Client;

use crate::harness::{Counter, PATIENCE, Server, beside_postgresql, greet, is_short};

/// What is written to fill the frozen one's socket: 30 changes of 200 kB, old and new, more than Linux buffers for a connection.
const BALLAST: &str = "update watched set name = repeat('x', 100000) where id = 0";
const BALLAST_ROWS: u64 = 30;
/// How much at least has to wait in its socket.
const STUCK_BYTES_LEAST: u64 = 100_000;

struct Size {
    subscribers: usize,
    changes: usize,
    rounds: usize,
}

#[tokio::main]
async fn main() -> Result<()> {
    let size = match is_short() {
        true => Size { subscribers: 50, changes: 50, rounds: 1 },
        false => Size { subscribers: 1_000, changes: 500, rounds: 3 },
    };
    rlimit::increase_nofile_limit(u64::MAX)?;
    beside_postgresql(&[], async |server, client| measure(server, client, &size).await).await
}

/// Times from a write to its arrival at the last subscriber, in order of size.
struct Latencies(Vec<Duration>);

impl Latencies {
    fn at(&self, share: f64) -> f64 {
        self.0[((self.0.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3
    }
}

async fn measure(server: &LocalServer, mut client: Client, size: &Size) -> Result<()> {
    let url = &server.url("postgres");
    client
        .batch_execute(
            "create table watched (id int primary key, name text not null, level int not null);
             insert into watched select n, 'switch ' || n, 0 from generate_series(0, 100) as n",
        )
        .await?;
    install::watch(&mut client, "watched").await?;
    let mut gateway = Server::gateway(&["--write-timeout-ms", "600000", "--heartbeat-ms", "600000"], url).await?;
    gateway.path = "/v1/feed?table=watched&from=now".to_owned();

    println!(
        "{} changes to {} subscribers, each after the one before it arrived everywhere",
        size.changes, size.subscribers
    );
    let (mut medians, mut tails) = (Vec::new(), Vec::new());
    for round in 1..=size.rounds {
        let alone = latencies(&gateway, &client, size, false).await?;
        let beside = latencies(&gateway, &client, size, true).await?;
        medians.push(beside.at(0.5) / alone.at(0.5));
        tails.push(beside.at(0.99) / alone.at(0.99));
        println!(
            "  round {round}: to the last, median {:.2} ms, beside a frozen one {:.2} ms, ratio {:.2}; 99 % {:.2} ms, {:.2} ms, {:.2}",
            alone.at(0.5),
            beside.at(0.5),
            medians[round - 1],
            alone.at(0.99),
            beside.at(0.99),
            tails[round - 1]
        );
    }
    for (what, mut ratios) in [("median", medians), ("99 %", tails)] {
        ratios.sort_by(f64::total_cmp);
        println!(
            "  {what}: ratio {:.2} ({:.2} to {:.2})",
            ratios[ratios.len() / 2],
            ratios[0],
            ratios[ratios.len() - 1]
        );
    }
    let usage: f64 = client.query_one("select pg_notification_queue_usage()", &[]).await?.get(0);
    let memory = gateway.pss_bytes()? as f64 / 1e6;
    println!("  at the end pg_notification_queue_usage() is {usage}, and the gateway takes {memory:.0} MB (PSS)");
    Ok(())
}

async fn latencies(gateway: &Server, client: &Client, size: &Size, with_frozen: bool) -> Result<Latencies> {
    let counter = Arc::new(Counter::default());
    let others = gateway.subscribe(size.subscribers - 1, counter.clone()).await?;
    // In its place another one that reads, so that both runs write as many frames.
    let (frozen, last) = match with_frozen {
        true => (Some(Frozen::open(gateway).await?), Vec::new()),
        false => (None, gateway.subscribe(1, Arc::default()).await?),
    };
    let fill = |row: u64| arrive(client, &counter, BALLAST, (row + 1) * others.len() as u64);
    counter.frames.store(0, Ordering::SeqCst);
    for row in 0..BALLAST_ROWS {
        fill(row).await?;
    }
    if let Some(frozen) = &frozen {
        let stuck = frozen.waiting_bytes()?;
        ensure!(stuck >= STUCK_BYTES_LEAST, "the frozen client is not stuck: {stuck} bytes wait for it");
    }
    counter.frames.store(0, Ordering::SeqCst);
    let mut taken = Vec::with_capacity(size.changes);
    for change in 1..=size.changes as u64 {
        let write = format!("update watched set level = level + 1 where id = 1 + {change} % 100");
        taken.push(arrive(client, &counter, &write, change * others.len() as u64).await?);
    }
    taken.sort_unstable();
    drop((frozen, last));
    Ok(Latencies(taken))
}

/// Writes, and waits until so many frames have come. Returns how long that took.
async fn arrive(client: &Client, counter: &Counter, write: &str, frames: u64) -> Result<Duration> {
    counter.wanted.store(frames, Ordering::SeqCst);
    let began = Instant::now();
    client.batch_execute(write).await?;
    while counter.frames.load(Ordering::SeqCst) < frames {
        let more = timeout(PATIENCE, counter.reached.notified()).await;
        more.with_context(|| format!("{} of {frames} frames came", counter.frames.load(Ordering::SeqCst)))?;
    }
    Ok(began.elapsed())
}

/// A client that reads nothing after its greeting.
struct Frozen(TcpStream);

impl Frozen {
    async fn open(gateway: &Server) -> Result<Frozen> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(16 << 10)?;
        let mut stream = socket.connect(gateway.address.parse()?).await?;
        greet(&mut stream, &gateway.address, &gateway.path).await?;
        Ok(Frozen(stream))
    }

    /// How many bytes of the gateway's wait in the kernel, by Linux's list of connections.
    fn waiting_bytes(&self) -> Result<u64> {
        let hex = |port: u16| format!(":{port:04X}");
        let (near, far) = (hex(self.0.peer_addr()?.port()), hex(self.0.local_addr()?.port()));
        let list = std::fs::read_to_string("/proc/net/tcp")?;
        let line = list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find(|words| {
            words.get(1).is_some_and(|local| local.ends_with(&near))
                && words.get(2).is_some_and(|peer| peer.ends_with(&far))
        });
        let queues = line.context("the connection is not in the list")?[4].to_owned();
        Ok(u64::from_str_radix(queues.split(':').next().unwrap_or_default(), 16)?)
    }
}
