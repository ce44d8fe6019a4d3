//! `switchboard tail`: a subscriber for the terminal, which comes back and goes on by itself.
//!
//! It keeps the rules of `docs/delivery.md` for clients, and checks the gateway by them. Standard output holds data only; all that is
//! said about it goes to standard error. The cursor that is saved never runs ahead of what was printed.

mod address;
mod frame;
mod print;
mod save;
mod thread;

use std::convert::Infallible;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, anyhow};
use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::io::{AsyncWriteExt, Stdout};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use tokio_util::sync::CancellationToken;
use tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tungstenite::{Error, Message};

use crate::config::{Mistakes, TailArgs};
use crate::hub;
use crate::protocol::{Close, PROTOCOL};
use address::Address;
use frame::Frame;
use print::{Printer, Style, plain};
use save::{Saved, Selection};
use thread::Thread;

/// How long a connection may take to come up, its handshake included.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// How long a gateway may take for its greeting, which says how often it will be heard.
const HELLO_PATIENCE: Duration = Duration::from_secs(10);
/// A line that is silent for so many heartbeats is dead …
const SILENT_HEARTBEATS: f64 = 2.5;
/// … but not sooner than this, so that a busy machine is not taken for a dead one.
const SILENCE_LEAST: Duration = Duration::from_secs(1);
/// The shortest wait before another attempt.
const BACK_OFF_LEAST: Duration = Duration::from_millis(100);
/// The longest wait before the second attempt; it doubles from there.
const BACK_OFF_FIRST: Duration = Duration::from_millis(500);
/// The longest wait before any attempt. A connection that lasted longer than this makes the waits short again.
const BACK_OFF_MOST: Duration = Duration::from_secs(10);
/// How often the cursor is saved at most.
const SAVE_EVERY: Duration = Duration::from_millis(250);
/// After how many bytes the output is written, even if more frames wait.
const OUTPUT_BYTES: usize = 64 << 10;
/// The longest frame that is taken: one change holds a row twice and its key, each at most 1 GB of JSON in PostgreSQL.
const FRAME_BYTES_MAX: usize = 3 << 30;
/// How long the end may take: writing out what was received, and saying good-bye.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// What to follow, checked.
pub struct Config {
    address: Address,
    selection: Selection,
    from: Option<String>,
    json: bool,
    save: Option<PathBuf>,
    count: Option<u64>,
}

impl Config {
    /// The settings, with everything that is wrong in `mistakes`.
    pub fn new(args: &TailArgs, mistakes: &mut Mistakes) -> Config {
        let address = Address::parse(&args.url).unwrap_or_else(|mistake| {
            mistakes.0.push(format!("--url: {mistake}"));
            Address::default()
        });
        if args.from.as_deref() == Some("") {
            mistakes.0.push("--from is empty; say now, snapshot, or a cursor".to_owned());
        }
        let tables = mistakes.tables("TABLES", &args.tables);
        Config {
            address,
            selection: Selection::new(&tables, args.filter.as_deref(), args.columns.as_deref()),
            from: args.from.clone(),
            json: args.json,
            save: args.save.clone(),
            count: args.count.as_ref().map(|count| mistakes.number("count", count, 1, u64::MAX)),
        }
    }
}

/// Follows until `stop` resolves, the count is reached or nobody reads the output; fails where the gateway says not to come back.
pub async fn run(config: Config, stop: impl Future<Output: Send> + Send + 'static) -> Result<()> {
    // Two libraries may each bring what TLS is made of; this one is in the tree anyway. An error says that one was chosen already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let stopping = CancellationToken::new();
    let stopped = stopping.clone();
    tokio::spawn(async move {
        stop.await;
        stopped.cancel();
    });
    let mut tail = Tail::new(config, stopping)?;
    let end = tail.follow().await;
    let saved = tail.save().await;
    match end {
        End::Refused(why) => Err(anyhow!("{}", plain(&why))),
        End::Done | End::Lost(_) => saved,
    }
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Why something cannot go on.
enum End {
    /// All was done that was asked for.
    Done,
    /// The connection is of no use, for this reason; another one may be.
    Lost(String),
    /// It would be of no use to try again, for this reason.
    Refused(String),
}

struct Tail {
    config: Config,
    stop: CancellationToken,
    thread: Thread,
    printer: Printer,
    notes: Notes,
    out: Stdout,
    /// What was not written yet. Empty whenever the socket is waited for.
    buffer: Vec<u8>,
    /// The cursor up to which everything was written.
    written: Option<String>,
    /// Whether the output ended in the middle of something.
    broken_off: bool,
    saved: Option<Saved>,
    /// Whether it was said that the cursor cannot be saved.
    save_failed: bool,
    /// How many commits are left to be printed.
    left: Option<u64>,
    /// How many attempts failed in a row.
    failures: u32,
    /// Whether it was said that there is no connection.
    away: bool,
    /// What the gateway last said of its database.
    database_up: bool,
    /// What it last complained about: the reason of the end that follows.
    complaint: Option<String>,
}

/// What was written to standard output.
#[derive(PartialEq, Eq)]
enum Written {
    Nothing,
    Something,
}

/// What is known of the life of a connection.
struct Line {
    opened: Instant,
    heard: Instant,
    pinged: Instant,
    heartbeat: Option<Duration>,
}

impl Line {
    fn new() -> Line {
        let now = Instant::now();
        Line { opened: now, heard: now, pinged: now, heartbeat: None }
    }

    /// When to ask whether the gateway is there, if it is not heard before.
    fn ask_at(&self) -> Option<Instant> {
        self.heartbeat.map(|heartbeat| self.heard.max(self.pinged) + heartbeat)
    }

    /// When the line counts as dead, if nothing is heard before.
    fn dead_at(&self) -> Instant {
        let patience = self.heartbeat.map(|heartbeat| heartbeat.mul_f64(SILENT_HEARTBEATS).max(SILENCE_LEAST));
        self.heard + patience.unwrap_or(HELLO_PATIENCE)
    }
}

impl Tail {
    fn new(config: Config, stop: CancellationToken) -> Result<Tail> {
        let notes = Notes { colours: colours(&std::io::stderr()) };
        let mut saved = config.save.clone().map(|path| Saved::open(path, config.selection.clone())).transpose()?;
        let kept = saved.as_mut().and_then(|saved| saved.cursor().map(str::to_owned));
        let thread = match (&config.from, kept) {
            (Some(from), kept) => {
                if kept.is_some() {
                    notes.say(&format!("--from {from} was given, so the saved cursor is not used"));
                }
                Thread::from(from)
            }
            (None, Some(cursor)) => Thread::from(&cursor),
            (None, None) => Thread::from("now"),
        };
        let style = if colours(&std::io::stdout()) { Style::Colours } else { Style::Plain };
        let left = config.count;
        Ok(Tail {
            config,
            stop,
            thread,
            printer: Printer::new(style),
            notes,
            out: tokio::io::stdout(),
            buffer: Vec::new(),
            written: None,
            broken_off: false,
            saved,
            save_failed: false,
            left,
            failures: 0,
            away: false,
            database_up: true,
            complaint: None,
        })
    }

    /// One connection after another.
    async fn follow(&mut self) -> End {
        loop {
            let why = match self.connection().await {
                End::Lost(why) => why,
                end => return end,
            };
            if !self.away {
                self.notes.say(&format!("{why}; trying again"));
            }
            self.away = true;
            let most = BACK_OFF_MOST.min(BACK_OFF_FIRST * 2u32.saturating_pow(self.failures.min(10)));
            let spread = most - BACK_OFF_LEAST;
            self.failures = self.failures.saturating_add(1);
            tokio::select! {
                () = self.stop.cancelled() => return End::Done,
                () = tokio::time::sleep(BACK_OFF_LEAST + spread.mul_f64(fastrand::f64())) => {}
            }
        }
    }

    /// One connection, from the handshake to its end.
    async fn connection(&mut self) -> End {
        let from = self.thread.connect().to_owned();
        self.printer.begin_again();
        self.complaint = None;
        let url = self.config.address.feed(&self.config.selection.query(&from));
        let connecting = timeout(CONNECT_PATIENCE, connect(&url));
        let connected = tokio::select! {
            () = self.stop.cancelled() => return End::Done,
            connected = connecting => connected,
        };
        let here = &self.config.address;
        let mut socket = match connected {
            Ok(Ok(socket)) => socket,
            Ok(Err(error)) => return refusal(here, error),
            Err(_) => {
                return End::Lost(format!("{here} did not answer within {} s", CONNECT_PATIENCE.as_secs()));
            }
        };
        let mut line = Line::new();
        let Err(mut end) = self.listen(&mut socket, &mut line).await;
        // What came last, if writing is not what ended it.
        if let Err(other) = self.write().await {
            end = other;
        }
        if line.opened.elapsed() > BACK_OFF_MOST {
            self.failures = 0;
        }
        // A courtesy; the gateway finds out by itself otherwise.
        let _ = timeout(END_PATIENCE, socket.close(None)).await;
        end
    }

    async fn listen(&mut self, socket: &mut Socket, line: &mut Line) -> Result<Infallible, End> {
        loop {
            let next = match socket.next().now_or_never() {
                Some(next) => next,
                None => {
                    if self.write().await? == Written::Something {
                        // Whatever came meanwhile was not looked for.
                        line.heard = Instant::now();
                    }
                    self.save_when_due().await;
                    let deadline = line.ask_at().into_iter().chain(self.save_at()).fold(line.dead_at(), Instant::min);
                    let next = tokio::select! {
                        biased;
                        () = self.stop.cancelled() => return Err(End::Done),
                        next = timeout_at(deadline, socket.next()) => next,
                    };
                    let Ok(next) = next else {
                        ask(socket, line).await?;
                        continue;
                    };
                    next
                }
            };
            line.heard = Instant::now();
            let text = match next {
                Some(Ok(Message::Text(text))) => text,
                Some(Ok(Message::Close(close))) => return Err(self.closed(close)),
                Some(Ok(_)) => continue,
                Some(Err(error)) => return Err(End::Lost(format!("the connection was lost: {error}"))),
                None => return Err(End::Lost("the connection was lost".to_owned())),
            };
            self.take(text.as_str(), line).await?;
            if self.buffer.len() >= OUTPUT_BYTES {
                self.write().await?;
                self.save_when_due().await;
            }
        }
    }

    /// Deals with one frame.
    async fn take(&mut self, text: &str, line: &mut Line) -> Result<(), End> {
        let Ok(frame) = Frame::parse(text) else {
            let begin: String = text.chars().take(100).collect();
            let here = &self.config.address;
            return Err(End::Refused(format!("{here} is no gateway of Switchboard: it sent {begin:?}")));
        };
        if let Err(broken) = self.thread.hear(&frame) {
            self.write().await?;
            self.notes.warn(&broken.to_string());
            return Err(End::Lost("the connection was given up".to_owned()));
        }
        match frame.kind.as_ref() {
            "hello" => {
                if frame.protocol != Some(PROTOCOL) {
                    let theirs = frame.protocol.map_or("another".to_owned(), |number| number.to_string());
                    let remedy = "use the program of that gateway's version";
                    return Err(End::Refused(format!(
                        "the gateway speaks protocol {theirs}, this program {PROTOCOL}; {remedy}"
                    )));
                }
                line.heartbeat = frame.heartbeat_ms.map(Duration::from_millis);
            }
            "rows" => self.print(text, |printer, out| printer.rows(&frame, out)),
            "commit" => {
                self.print(text, |printer, out| printer.commit(&frame, out));
                if !frame.more {
                    self.left = self.left.map(|left| left - 1);
                }
            }
            _ => self.remark(&frame).await?,
        }
        if self.left == Some(0) {
            self.write().await?;
            return Err(End::Done);
        }
        Ok(())
    }

    fn print(&mut self, text: &str, readable: impl FnOnce(&mut Printer, &mut Vec<u8>)) {
        if self.config.json {
            // A line break in a frame is white space between two tokens, in a column of type json; it would end the line here.
            self.buffer.extend(text.bytes().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte }));
            self.buffer.push(b'\n');
        } else {
            readable(&mut self.printer, &mut self.buffer);
        }
    }

    /// Says on standard error what a frame without data says, behind the data that came before it.
    async fn remark(&mut self, frame: &Frame<'_>) -> Result<(), End> {
        let remark = match frame.kind.as_ref() {
            "ready" => {
                (self.away, self.database_up) = (false, true);
                Some(format!("following {} from {}", self.config.address, frame.cursor.as_deref().unwrap_or("?")))
            }
            "reset" => {
                self.printer.reset();
                let reason = frame.reason.as_deref().unwrap_or("unknown");
                let why = why_reset(reason);
                Some(format!("{why} ({reason}); reading the current rows, which replace all that was printed before"))
            }
            "status" => {
                let up = frame.database.as_deref() == Some("up");
                let changed = std::mem::replace(&mut self.database_up, up) != up;
                let said = if up { "the gateway has its PostgreSQL again" } else { "the gateway has no PostgreSQL" };
                changed.then(|| said.to_owned())
            }
            "error" => {
                self.complaint = frame.message.clone();
                None
            }
            _ => None,
        };
        let Some(remark) = remark else { return Ok(()) };
        self.write().await?;
        self.notes.say(&remark);
        Ok(())
    }

    /// What a closing frame means.
    fn closed(&mut self, close: Option<CloseFrame>) -> End {
        let code = close.as_ref().map_or(1005, |close| close.code.into());
        let reason = close.map(|close| close.reason.to_string()).filter(|reason| !reason.is_empty());
        let why = self.complaint.take().or(reason).unwrap_or_else(|| "no reason was given".to_owned());
        let why = format!("the gateway closed the connection ({code}): {why}");
        if comes_back(code) { End::Lost(why) } else { End::Refused(why) }
    }

    /// Writes out what was printed, and remembers how far that went.
    async fn write(&mut self) -> Result<Written, End> {
        // Not put back where it fails: it was written in part, perhaps.
        let bytes = std::mem::take(&mut self.buffer);
        if bytes.is_empty() {
            self.note_written();
            return Ok(Written::Nothing);
        }
        let writing = async {
            self.out.write_all(&bytes).await?;
            self.out.flush().await
        };
        let mut writing = std::pin::pin!(writing);
        self.broken_off = true;
        let written = tokio::select! {
            biased;
            written = &mut writing => written,
            () = self.stop.cancelled() => {
                let Ok(written) = timeout(END_PATIENCE, writing).await else { return Err(End::Done) };
                written
            }
        };
        match written {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Err(End::Done),
            Err(error) => return Err(End::Refused(format!("cannot write to standard output: {error}"))),
        }
        self.broken_off = false;
        self.buffer = bytes;
        self.buffer.clear();
        self.note_written();
        Ok(Written::Something)
    }

    fn note_written(&mut self) {
        if !self.broken_off && self.written.as_deref() != self.thread.cursor() {
            self.written = self.thread.cursor().map(str::to_owned);
        }
    }

    /// When the cursor is to be saved, if it is.
    fn save_at(&self) -> Option<Instant> {
        let saved = self.saved.as_ref()?;
        let news = self.written.is_some() && self.written.as_deref() != saved.cursor();
        news.then(|| saved.at().map_or_else(Instant::now, |at| at + SAVE_EVERY))
    }

    async fn save_when_due(&mut self) {
        if self.save_at().is_none_or(|at| at > Instant::now()) {
            return;
        }
        match self.save().await {
            Err(error) if !self.save_failed => {
                self.notes.warn(&format!("{error:#}"));
                self.save_failed = true;
            }
            Err(_) => {}
            Ok(()) => self.save_failed = false,
        }
    }

    async fn save(&mut self) -> Result<()> {
        match (&mut self.saved, &self.written) {
            (Some(saved), Some(cursor)) => saved.save(cursor).await,
            _ => Ok(()),
        }
    }
}

/// Opens a WebSocket.
async fn connect(url: &str) -> Result<Socket, Error> {
    let config =
        WebSocketConfig::default().max_message_size(Some(FRAME_BYTES_MAX)).max_frame_size(Some(FRAME_BYTES_MAX));
    let (socket, _) = tokio_tungstenite::connect_async_with_config(url, Some(config), true).await?;
    Ok(socket)
}

/// Asks a gateway that was silent whether it is there; gives it up where it does not answer.
async fn ask(socket: &mut Socket, line: &mut Line) -> Result<(), End> {
    let now = Instant::now();
    if line.dead_at() <= now {
        let silent = line.heard.elapsed().as_secs_f64();
        return Err(End::Lost(format!("nothing was heard for {silent:.1} s, so the line counts as dead")));
    }
    if line.ask_at().is_some_and(|at| at <= now) {
        line.pinged = now;
        // A line that does not take it is dead, and will be found so.
        let _ = timeout(SILENCE_LEAST, socket.send(Message::Ping(Default::default()))).await;
    }
    Ok(())
}

/// What a handshake that failed means.
fn refusal(address: &Address, error: Error) -> End {
    let Error::Http(response) = error else {
        return End::Lost(format!("{address} cannot be reached: {error}"));
    };
    let status = response.status();
    let message = response.body().as_deref().and_then(message).unwrap_or_else(|| {
        format!("{address} answered {status}, which no gateway does; is the address right, and everything before it?")
    });
    // Too early, too slow, too many: all of that passes.
    let passes = status.is_server_error() || [408, 425, 429].contains(&status.as_u16());
    if passes { End::Lost(message) } else { End::Refused(message) }
}

/// The message of a refusal's body.
fn message(body: &[u8]) -> Option<String> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    body["error"]["message"].as_str().map(str::to_owned)
}

/// What a reset's reason means.
fn why_reset(reason: &str) -> &'static str {
    match reason {
        hub::SCHEMA => "a table was altered",
        "expired" => "the log no longer holds what was missed",
        _ => "the cursor is not of this log",
    }
}

/// Whether to come back after this close code. Codes of others, such as those of a proxy, speak of one connection only.
fn comes_back(code: u16) -> bool {
    let ours = [Close::Stopping, Close::Fault, Close::NoProgress].map(|close| close.code_and_reason().0);
    ours.contains(&code) || matches!(code, 1000 | 1005 | 1006 | 1012..=1015)
}

/// Whether colours are welcome there (see no-color.org).
fn colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// What is said on standard error.
struct Notes {
    colours: bool,
}

impl Notes {
    fn say(&self, note: &str) {
        self.tell("\x1b[2m", note);
    }

    fn warn(&self, warning: &str) {
        self.tell("\x1b[1;31m", warning);
    }

    fn tell(&self, style: &str, text: &str) {
        let (on, off) = if self.colours { (style, "\x1b[0m") } else { ("", "") };
        // Nobody may be listening; that is no reason to stop.
        let _ = writeln!(std::io::stderr(), "{on}switchboard: {}{off}", plain(text));
    }
}
