//! What subscribers cost: the memory of idle ones, and how fast changes reach many, beside the plainest warp program.
//!
//! The gateway and the plain program (`warp::ws` and a broadcast channel, fed by `LISTEN` and the usual notifying trigger) run as
//! processes of their own against one PostgreSQL; the clients here only count frames. Run with:
//!
//! ```text
//! cargo bench --bench fan_out                # 5,000 idle subscribers; 1,000 that get 2,000 changes, 3 rounds in turns
//! cargo bench --bench fan_out -- --short     # to see that it works
//! ```

mod harness;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use futures_util::{SinkExt, StreamExt};
use switchboard::install;
use switchboard::local::LocalServer;
use tokio::process::Command;
use tokio::sync::broadcast;
use tokio::time::timeout;
use tokio_postgres::{AsyncMessage, NoTls};
use warp::Filter;

use crate::harness::{Counter, PATIENCE, Server, beside_postgresql, is_short};

/// The argument that makes this program the plain one.
const PLAIN: &str = "--plain-warp";

struct Size {
    idle: usize,
    subscribers: usize,
    changes: u64,
    rounds: usize,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(url) =
        arguments.iter().position(|argument| argument == PLAIN).and_then(|index| arguments.get(index + 1))
    {
        return plain_warp(url).await;
    }
    let size = match is_short() {
        true => Size { idle: 200, subscribers: 50, changes: 200, rounds: 1 },
        false => Size { idle: 5_000, subscribers: 1_000, changes: 2_000, rounds: 3 },
    };
    let files = rlimit::increase_nofile_limit(u64::MAX)?;
    if files < size.idle as u64 + 100 {
        bail!("only {files} files may be open; run: ulimit -n {}", size.idle + 100);
    }
    beside_postgresql(&[], async |server, client| measure(server, client, &size).await).await
}

async fn measure(server: &LocalServer, mut client: tokio_postgres::Client, size: &Size) -> Result<()> {
    let url = &server.url("postgres");
    client
        .batch_execute(
            "create table watched (id int primary key, name text not null, status boolean not null, level int not null);
             insert into watched select n, 'switch ' || n, false, 0 from generate_series(1, 100) as n;
             create table notify (like watched including all);
             insert into notify select * from watched;
             create function notify() returns trigger language plpgsql as
             $$ begin perform pg_notify('changes', row_to_json(new)::text); return null; end $$;
             create trigger notify after update on notify for each row execute function notify()",
        )
        .await?;
    install::watch(&mut client, "watched").await?;

    let mut gateway = Server::gateway(&[], url).await?;
    gateway.path = "/v1/feed?table=watched&from=now".to_owned();
    memory(&gateway, size.idle).await?;

    let plain = Command::new(std::env::current_exe()?);
    let plain = Server::start(plain, &[PLAIN, url], url).await?;
    let subscribers = size.subscribers;
    println!("{} changes to {subscribers} subscribers each, changes delivered a second", size.changes);
    let mut ratios = Vec::new();
    for round in 1..=size.rounds {
        let ours = deliveries(&gateway, &client, "watched", size).await?;
        let theirs = deliveries(&plain, &client, "notify", size).await?;
        ratios.push(ours / theirs);
        println!("  round {round}: switchboard {ours:>9.0}   plain warp {theirs:>9.0}   ratio {:.2}", ours / theirs);
    }
    ratios.sort_by(f64::total_cmp);
    println!("  median ratio {:.2}", ratios[ratios.len() / 2]);
    Ok(())
}

/// Opens idle subscribers and prints what the process grew by.
async fn memory(gateway: &Server, count: usize) -> Result<()> {
    // The first few bring up what all share: threads, pools, the first history.
    let _first = gateway.subscribe(50, Arc::default()).await?;
    let before = gateway.pss_bytes()?;
    let subscribers = gateway.subscribe(count, Arc::default()).await?;
    let after = gateway.pss_bytes()?;
    let each = (after - before) as f64 / subscribers.len() as f64;
    println!("{count} idle subscribers: {:.1} MB in all, {:.2} KB each (PSS)", after as f64 / 1e6, each / 1024.0);
    Ok(())
}

/// Changes delivered a second, from the first write to the last frame at the last subscriber.
async fn deliveries(server: &Server, client: &tokio_postgres::Client, table: &str, size: &Size) -> Result<f64> {
    let counter = Arc::new(Counter::default());
    let subscribers = server.subscribe(size.subscribers, counter.clone()).await?;
    counter.frames.store(0, Ordering::SeqCst);
    let wanted = size.changes * size.subscribers as u64;
    counter.wanted.store(wanted, Ordering::SeqCst);
    let begun = Instant::now();
    let write = format!(
        "set synchronous_commit = off;
         do $$ begin for n in 1..{} loop update {table} set level = level + 1 where id = 1 + n % 100; commit; end loop; end $$",
        size.changes
    );
    for statement in write.splitn(2, ';') {
        client.batch_execute(statement).await?;
    }
    let all = timeout(PATIENCE, counter.reached.notified()).await;
    all.with_context(|| format!("{} of {wanted} frames came", counter.frames.load(Ordering::SeqCst)))?;
    let speed = wanted as f64 / begun.elapsed().as_secs_f64();
    drop(subscribers);
    Ok(speed)
}

/// What one writes first: every notification goes into a broadcast channel, and every socket sends what it receives from there.
async fn plain_warp(url: &str) -> Result<()> {
    let (sender, _) = broadcast::channel::<String>(1 << 16);
    let (client, mut connection) = tokio_postgres::connect(url, NoTls).await?;
    let notifications = sender.clone();
    tokio::spawn(async move {
        let mut messages = futures_util::stream::poll_fn(move |context| connection.poll_message(context));
        while let Some(Ok(message)) = messages.next().await {
            if let AsyncMessage::Notification(notification) = message {
                // Nobody may be listening yet.
                let _ = notifications.send(notification.payload().to_owned());
            }
        }
    });
    client.batch_execute("listen changes").await?;
    let route = warp::ws().map(move |handshake: warp::ws::Ws| {
        let mut receiver = sender.subscribe();
        handshake.on_upgrade(async move |mut socket| {
            let mut sent = socket.send(warp::ws::Message::text("welcome")).await;
            while sent.is_ok() {
                match receiver.recv().await {
                    Ok(text) => sent = socket.send(warp::ws::Message::text(text)).await,
                    Err(_) => return,
                }
            }
        })
    });
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("listening on http://{} ", socket.local_addr()?);
    warp::serve(route).incoming(socket).run().await;
    Ok(())
}
