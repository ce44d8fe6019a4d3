//! What the benchmarks share: a PostgreSQL, gateways in processes of their own, and clients that count frames.

#![allow(dead_code)] // Each of them uses a part.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use switchboard::config::database_config;
use switchboard::install;
use switchboard::local::{LocalServer, Options, StopMode};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::Notify;
use tokio::time::timeout;

/// How long anything here may take.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Whether it is only to be seen that the benchmark works.
pub fn is_short() -> bool {
    std::env::args().any(|argument| argument == "--short")
}

/// Measures on a new PostgreSQL, with the log installed, that flushes as it does by default. Stops it whatever came of that.
pub async fn beside_postgresql(
    settings: &[(&str, &str)],
    measure: impl AsyncFnOnce(&LocalServer, tokio_postgres::Client) -> Result<()>,
) -> Result<()> {
    let dir = std::env::temp_dir().join(format!("switchboard-bench-{}", std::process::id()));
    let settings = settings.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    let server = LocalServer::start(Options { dir, settings, durable: true, keep: false }, |_| {}).await?;
    let measured = async {
        let database = database_config(&server.url("postgres"), None).map_err(anyhow::Error::msg)?;
        let mut client = install::connect(&database).await?;
        install::install(&mut client, false, None).await?;
        measure(&server, client).await
    };
    let measured = measured.await;
    server.stop(StopMode::Fast).await?;
    measured
}

/// A server in a process of its own.
pub struct Server {
    child: Child,
    /// Where it listens.
    pub address: String,
    /// What its subscribers ask for.
    pub path: String,
}

impl Server {
    /// Starts a gateway.
    pub async fn gateway(flags: &[&str], url: &str) -> Result<Server> {
        let arguments = [&["serve", "--listen", "127.0.0.1:0", "--log", "error"], flags].concat();
        Server::start(Command::new(env!("CARGO_BIN_EXE_switchboard")), &arguments, url).await
    }

    /// Starts a server that says where it listens.
    pub async fn start(mut command: Command, arguments: &[&str], url: &str) -> Result<Server> {
        command.args(arguments).env("DATABASE_URL", url).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().context("its output is a pipe")?;
        let line = timeout(PATIENCE, BufReader::new(stdout).lines().next_line()).await??.context("it said nothing")?;
        let address =
            line.split("http://").nth(1).and_then(|rest| rest.split(' ').next()).context("no address")?.to_owned();
        Ok(Server { child, address, path: "/".to_owned() })
    }

    /// Opens subscribers, and waits until each heard that it is ready.
    pub async fn subscribe(&self, count: usize, counter: Arc<Counter>) -> Result<Vec<Subscriber>> {
        let mut subscribers = Vec::with_capacity(count);
        for _ in 0..count {
            let opening = Subscriber::open(&self.address, &self.path, counter.clone());
            subscribers.push(timeout(PATIENCE, opening).await??);
        }
        Ok(subscribers)
    }

    /// The process's proportional set size, of Linux.
    pub fn pss_bytes(&self) -> Result<u64> {
        self.memory("smaps_rollup", "Pss:")
    }

    /// The most memory that the process ever held, of Linux.
    pub fn peak_bytes(&self) -> Result<u64> {
        self.memory("status", "VmHWM:")
    }

    fn memory(&self, file: &str, field: &str) -> Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id().context("it ended")?))?;
        let kilobytes =
            text.lines().find_map(|line| line.strip_prefix(field)?.split_whitespace().next()?.parse::<u64>().ok());
        Ok(kilobytes.with_context(|| format!("no {field}"))? * 1024)
    }
}

/// How many frames came, to all subscribers together.
#[derive(Default)]
pub struct Counter {
    /// So many.
    pub frames: AtomicU64,
    /// How many are waited for; 0 for none.
    pub wanted: AtomicU64,
    /// Told when they have come.
    pub reached: Notify,
}

/// A client that counts text frames and looks at nothing else.
pub struct Subscriber {
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Subscriber {
    /// Opens a subscriber, and waits until it was greeted.
    pub async fn open(address: &str, path: &str, counter: Arc<Counter>) -> Result<Subscriber> {
        let mut stream = TcpStream::connect(address).await?;
        greet(&mut stream, address, path).await?;
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

/// Opens the WebSocket, and waits until the server greets.
pub async fn greet(stream: &mut TcpStream, address: &str, path: &str) -> Result<()> {
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
    Ok(())
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
