//! What subscribers cost: the memory of idle ones, and how fast changes reach many, beside the plainest warp program.
//!
//! The gateway and the plain program (`warp::ws` and a broadcast channel, fed by `LISTEN` and the usual notifying trigger) run as
//! processes of their own against one PostgreSQL; the clients here only count frames. Run with:
//!
//! ```text
//! cargo bench --bench fan_out                # 5,000 idle subscribers; 1,000 that get 2,000 changes, 3 rounds in turns
//! cargo bench --bench fan_out -- --short     # to see that it works
//! ```

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_util::{SinkExt, StreamExt};
use switchboard::config::database_config;
use switchboard::install;
use switchboard::local::{LocalServer, Options, StopMode};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::{Notify, broadcast};
use tokio::time::timeout;
use tokio_postgres::{AsyncMessage, NoTls};
use warp::Filter;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(300);
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
    let size = match arguments.iter().any(|argument| argument == "--short") {
        true => Size { idle: 200, subscribers: 50, changes: 200, rounds: 1 },
        false => Size { idle: 5_000, subscribers: 1_000, changes: 2_000, rounds: 3 },
    };
    let files = rlimit::increase_nofile_limit(u64::MAX)?;
    if files < size.idle as u64 + 100 {
        bail!("only {files} files may be open; run: ulimit -n {}", size.idle + 100);
    }
    let dir = std::env::temp_dir().join(format!("switchboard-bench-{}", std::process::id()));
    let server = LocalServer::start(Options { dir, settings: Vec::new(), durable: true, keep: false }, |_| {}).await?;
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

    let gateway = Command::new(env!("CARGO_BIN_EXE_switchboard"));
    let mut gateway = Server::start(gateway, &["serve", "--listen", "127.0.0.1:0", "--log", "error"], &url).await?;
    gateway.path = "/v1/feed?table=watched&from=now".to_owned();
    memory(&gateway, size.idle).await?;

    let plain = Command::new(std::env::current_exe()?);
    let plain = Server::start(plain, &[PLAIN, &url], &url).await?;
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

/// A server in a process of its own.
struct Server {
    child: Child,
    address: String,
    path: String,
}

impl Server {
    async fn start(mut command: Command, arguments: &[&str], url: &str) -> Result<Server> {
        command.args(arguments).env("DATABASE_URL", url).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().context("its output is a pipe")?;
        let line = timeout(PATIENCE, BufReader::new(stdout).lines().next_line()).await??.context("it said nothing")?;
        let address =
            line.split("http://").nth(1).and_then(|rest| rest.split(' ').next()).context("no address")?.to_owned();
        Ok(Server { child, address, path: "/".to_owned() })
    }

    /// Opens subscribers, and waits until each heard that it is ready.
    async fn subscribe(&self, count: usize, counter: Arc<Counter>) -> Result<Vec<Subscriber>> {
        let mut subscribers = Vec::with_capacity(count);
        for _ in 0..count {
            let opening = Subscriber::open(&self.address, &self.path, counter.clone());
            subscribers.push(timeout(PATIENCE, opening).await??);
        }
        Ok(subscribers)
    }

    /// The process's proportional set size, of Linux.
    fn pss_bytes(&self) -> Result<u64> {
        let pid = self.child.id().context("it ended")?;
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let kilobytes =
            rollup.lines().find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next()?.parse::<u64>().ok());
        Ok(kilobytes.context("no PSS")? * 1024)
    }
}

#[derive(Default)]
struct Counter {
    frames: AtomicU64,
    wanted: AtomicU64,
    reached: Notify,
}

/// A client that counts text frames and looks at nothing else.
struct Subscriber {
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Subscriber {
    async fn open(address: &str, path: &str, counter: Arc<Counter>) -> Result<Subscriber> {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut buffer = Vec::with_capacity(1024);
        // Both greet: the gateway with hello and ready, the plain program with a frame of its own.
        let greeted = |buffer: &[u8]| [&b"\"ready\""[..], b"welcome"].iter().any(|word| contains(buffer, word));
        while !greeted(&buffer) {
            if stream.read_buf(&mut buffer).await? == 0 {
                bail!("refused: {}", String::from_utf8_lossy(&buffer));
            }
        }
        let task = tokio::spawn(async move {
            let mut frames = Frames::default();
            let mut buffer = Vec::new();
            loop {
                // Idle clients hold no buffer.
                if stream.readable().await.is_err() {
                    return;
                }
                buffer.reserve(64 << 10);
                match stream.try_read_buf(&mut buffer) {
                    Ok(0) => return,
                    Ok(_) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                    Err(_) => return,
                }
                let count = frames.count(&buffer);
                buffer.clear();
                let wanted = counter.wanted.load(Ordering::Relaxed);
                if counter.frames.fetch_add(count, Ordering::SeqCst) + count >= wanted && wanted > 0 {
                    counter.reached.notify_one();
                }
            }
        });
        Ok(Subscriber { task })
    }
}

/// Counts the text frames in a stream of bytes.
#[derive(Default)]
struct Frames {
    header: Vec<u8>,
    payload_left: u64,
}

impl Frames {
    fn count(&mut self, mut bytes: &[u8]) -> u64 {
        let mut count = 0;
        while !bytes.is_empty() {
            if self.payload_left > 0 {
                let skip = self.payload_left.min(bytes.len() as u64);
                self.payload_left -= skip;
                bytes = &bytes[skip as usize..];
                continue;
            }
            self.header.push(bytes[0]);
            bytes = &bytes[1..];
            let length = match self.header[..] {
                [_, 126, a, b] => u64::from(u16::from_be_bytes([a, b])),
                [_, 127, a, b, c, d, e, f, g, h] => u64::from_be_bytes([a, b, c, d, e, f, g, h]),
                [_, length] if length < 126 => u64::from(length),
                _ => continue,
            };
            count += u64::from(self.header[0] == 0x81);
            self.payload_left = length;
            self.header.clear();
        }
        count
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
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
