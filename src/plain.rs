//! The feed over plain HTTP: server-sent events, pages of changes, and snapshots.
//!
//! Each is a subscription like any other, whose frames are written into the body of an answer as they come: bounded by its outbox and
//! one piece on its way, and given up when the client takes nothing for the write time-out. What the first frame says decides the
//! status of the answer.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use warp::http::StatusCode;

use crate::answers::Refusal;
use crate::outbox::{Outbox, Outlet};
use crate::protocol::{self, Close, From, OnReset, Request};
use crate::subscriber::Shared;
use crate::subscription::{self, Ended};

/// How long a browser waits before it comes back, in milliseconds; half of it, or half as much again, so that not all do at once.
const RETRY_MS: u64 = 2000;
/// What some proxies and browsers want to see before they pass anything on, in bytes.
const PADDING_BYTES: usize = 2048;
/// How long an answer may wait for the commits that had returned when it was asked for.
const UP_TO_DATE_PATIENCE: Duration = Duration::from_secs(10);
/// How many commits a page has unless it is told.
pub const LIMIT_DEFAULT: usize = 100;
/// How many commits a page may have.
pub const LIMIT_MAX: usize = 1000;
/// How long a request may wait for a commit, in seconds.
pub const WAIT_SECONDS_MAX: u64 = 60;

/// Where an answer's body is written; an error breaks it off.
pub type Body = mpsc::Sender<Result<Bytes, std::io::Error>>;

/// A subscription that is read here, frame by frame.
pub struct Reading {
    outbox: Arc<Outbox>,
    running: Pin<Box<dyn Future<Output = Ended> + Send>>,
    ended: bool,
    /// The payloads that were taken out of the outbox.
    taken: VecDeque<Bytes>,
}

/// Waits until the hub has every commit that had returned by now, so that a client finds its own writes in what it asks for.
pub async fn up_to_date(shared: &Shared) -> Result<(), Refusal> {
    has_database(shared)?;
    let since = std::time::Instant::now();
    let catching_up = async {
        let newest = shared.snapshots.numbered_since(since).await?;
        let mut heads = shared.hub.heads();
        // The hub lives as long as the gateway.
        let _ = heads.wait_for(|head| head.is_some_and(|head| head.cursor.position >= newest)).await;
        anyhow::Ok(())
    };
    let failed = match timeout(UP_TO_DATE_PATIENCE, catching_up).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => format!("{error:#}"),
        Err(_) => format!("the newest commits did not come within {} s", UP_TO_DATE_PATIENCE.as_secs()),
    };
    let message = format!("{failed}; try again, and if it stays so let the operator run \"switchboard check\"");
    Err(Refusal::unavailable("failed", &message))
}

/// Nobody waits here for PostgreSQL to return: an answer that has begun cannot say any more that there will be none.
fn has_database(shared: &Shared) -> Result<(), Refusal> {
    if *shared.hub.database().borrow() { Ok(()) } else { Err(no_database()) }
}

fn no_database() -> Refusal {
    let message = "the gateway has no PostgreSQL at this moment; try again, and if it stays so let the operator run \
                   \"switchboard check\"";
    Refusal::unavailable("not_ready", message)
}

impl Reading {
    /// Begins a subscription, and waits for what it says first: something to be told, or why there is nothing.
    pub async fn begin(request: Request, shared: Arc<Shared>) -> Result<Reading, Refusal> {
        has_database(&shared)?;
        let closes = request.on_reset == OnReset::Close;
        let outbox = Arc::new(Outbox::default());
        let outlet = Outlet::new(outbox.clone(), None);
        let running = Box::pin(subscription::feed(Box::new(request), outlet, shared.clone()));
        let mut reading = Reading { outbox, running, ended: false, taken: VecDeque::new() };
        tokio::select! {
            () = reading.fill() => {}
            () = shared.stop.cancelled() => {}
        }
        match reading.taken.front().map(|payload| (kind(payload), payload)) {
            Some(("error", payload)) => Err(refusal(payload)),
            Some(("reset", payload)) if closes => Err(gone(payload)),
            Some(("status", payload)) if says_down(payload) => Err(no_database()),
            _ => Ok(reading),
        }
    }

    /// Waits until something was taken, or the subscription ended. Cancel-safe.
    async fn fill(&mut self) {
        while self.taken.is_empty() && !self.ended {
            tokio::select! {
                biased;
                _ = &mut self.running, if !self.ended => self.ended = true,
                () = self.outbox.filled() => {}
            }
            for frames in self.outbox.take() {
                self.taken.extend(protocol::payloads(&frames).map(|payload| frames.slice_ref(payload)));
            }
        }
    }

    /// The next frame; none behind the last.
    async fn next(&mut self) -> Option<Bytes> {
        self.fill().await;
        self.taken.pop_front()
    }
}

fn refusal(payload: &[u8]) -> Refusal {
    let frame: Value = serde_json::from_slice(payload).unwrap_or_default();
    let status = match frame["code"].as_str() {
        Some("bad_request" | "too_heavy") => StatusCode::BAD_REQUEST,
        Some("unreadable") => StatusCode::CONFLICT,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    Refusal { status, error: json!({"code": frame["code"], "message": frame["message"]}) }
}

fn gone(payload: &[u8]) -> Refusal {
    let frame: Value = serde_json::from_slice(payload).unwrap_or_default();
    let message = match frame["reason"] == "unknown" {
        true => {
            "from= is no cursor, which comes from a frame or an answer of this gateway; take a snapshot, and go on from its cursor"
        }
        false => "the cursor cannot be served (see reason); take a snapshot, and go on from its cursor",
    };
    let error = json!({"code": "gone", "message": message, "reason": frame["reason"], "oldest": frame["oldest"]});
    Refusal { status: StatusCode::GONE, error }
}

/// The type of a frame.
fn kind(payload: &[u8]) -> &str {
    let text = payload.strip_prefix(br#"{"type":""#).unwrap_or_default();
    let end = text.iter().position(|byte| *byte == b'"').unwrap_or(0);
    std::str::from_utf8(&text[..end]).unwrap_or_default()
}

/// Whether a `status` says that the gateway lost its PostgreSQL.
fn says_down(payload: &[u8]) -> bool {
    payload.ends_with(br#""down"}"#)
}

/// The cursor of a frame that has one and ends there: of a commit in parts only the last does.
fn resumable(payload: &[u8]) -> Option<&str> {
    const FIELD: &[u8] = br#""cursor":""#;
    if !matches!(kind(payload), "commit" | "position" | "ready") {
        return None;
    }
    // Before it there are only the type and another cursor.
    let start = payload.windows(FIELD.len()).position(|window| window == FIELD)? + FIELD.len();
    let end = start + payload[start..].iter().position(|byte| *byte == b'"')?;
    let more = payload[end..].starts_with(br#"","more":true"#);
    std::str::from_utf8(&payload[start..end]).ok().filter(|_| !more)
}

/// Where an answer goes, for as long as the client takes it.
pub struct Answer {
    shared: Arc<Shared>,
    body: Body,
    /// Ends the connection, where its client is not to be reached any more.
    cut: CancellationToken,
}

/// Nobody takes the answer any more, or the gateway stops.
struct Over(Close);

impl Answer {
    /// An answer on a connection that `cut` ends.
    pub fn new(shared: Arc<Shared>, body: Body, cut: CancellationToken) -> Answer {
        Answer { shared, body, cut }
    }

    async fn send(&self, bytes: impl Into<Bytes>) -> Result<(), Over> {
        let bytes = bytes.into();
        let size = bytes.len();
        match timeout(self.shared.config.write_timeout, self.body.send(Ok(bytes))).await {
            Ok(Ok(())) => {
                self.shared.metrics.sent(size);
                Ok(())
            }
            Ok(Err(_)) => Err(Over(Close::Normal)),
            Err(_) => {
                self.cut.cancel();
                Err(Over(Close::NoProgress))
            }
        }
    }

    /// Breaks the answer off, so that nobody takes it for a whole one.
    async fn break_off(&self, why: &str) -> Over {
        let broken = std::io::Error::other(why.to_owned());
        // Who is gone need not be told.
        let _ = timeout(self.shared.config.write_timeout, self.body.send(Err(broken))).await;
        Over(Close::Fault)
    }

    /// Waits for something while the client is there and the gateway runs.
    async fn attend<T>(&self, something: impl Future<Output = T>) -> Result<T, Over> {
        tokio::select! {
            done = something => Ok(done),
            () = self.body.closed() => Err(Over(Close::Normal)),
            () = self.shared.stop.cancelled() => Err(Over(Close::Stopping)),
        }
    }

    fn closed(&self, over: Result<(), Over>) {
        self.shared.metrics.subscriber_closed(match over {
            Ok(()) => Close::Normal,
            Err(Over(close)) => close,
        });
    }

    /// Server-sent events (HTML Living Standard, 9.2) for as long as the client stays. `whole` says that it resumes, so that even what
    /// comes before `ready` can be gone on from.
    pub async fn events(self, reading: Reading, whole: bool) {
        self.closed(self.try_events(reading, whole).await);
    }

    async fn try_events(&self, mut reading: Reading, mut whole: bool) -> Result<(), Over> {
        let heartbeat = self.shared.config.heartbeat;
        let retry = RETRY_MS / 2 + fastrand::u64(..RETRY_MS);
        let mut out = format!("retry: {retry}\n:{:PADDING_BYTES$}\n\n", "").into_bytes();
        let hello = protocol::hello(heartbeat.as_millis() as u64);
        protocol::payloads(&hello).for_each(|payload| write_event(payload, None, &mut out));
        loop {
            while let Some(payload) = reading.taken.pop_front() {
                // Rows are no place to go on from before what completes them has come.
                whole = match kind(&payload) {
                    "rows" | "reset" => false,
                    "ready" => true,
                    _ => whole,
                };
                write_event(&payload, resumable(&payload).filter(|_| whole), &mut out);
            }
            self.send(std::mem::take(&mut out)).await?;
            if reading.ended {
                return Ok(());
            }
            if self.attend(timeout(heartbeat, reading.fill())).await?.is_err() {
                out.extend_from_slice(b":\n\n");
            }
        }
    }

    /// A page of commits: at most `limit`, or what there is within `wait`.
    pub async fn changes(self, reading: Reading, limit: usize, wait: Duration) {
        self.closed(self.try_changes(reading, limit, wait).await);
    }

    async fn try_changes(&self, mut reading: Reading, limit: usize, wait: Duration) -> Result<(), Over> {
        let deadline = Instant::now() + wait;
        let mut commits = 0;
        let mut first = true;
        let mut cursor = String::new();
        // Whether all that there was has come: from then on the first commit is worth an answer.
        let mut caught_up = false;
        let mut out = br#"{"commits":["#.to_vec();
        while commits < limit && !(caught_up && commits > 0) {
            let next = match caught_up {
                false => self.attend(reading.next()).await?,
                true => match self.attend(timeout_at(deadline, reading.next())).await? {
                    Ok(next) => next,
                    Err(_) => break,
                },
            };
            let Some(payload) = next else { return Err(self.break_off("the feed ended").await) };
            match kind(&payload) {
                "commit" => {
                    if !std::mem::take(&mut first) {
                        out.push(b',');
                    }
                    out.extend_from_slice(&payload);
                    self.send(std::mem::take(&mut out)).await?;
                }
                "error" | "reset" => return Err(self.break_off("the feed was reset").await),
                // A client that has a cursor to ask again with gets it at once.
                "status" if says_down(&payload) && caught_up => break,
                "status" if says_down(&payload) => return Err(self.break_off("PostgreSQL was lost").await),
                kind => caught_up |= kind == "ready",
            }
            if let Some(at) = resumable(&payload) {
                cursor = at.to_owned();
                commits += usize::from(kind(&payload) == "commit");
            }
        }
        out.extend_from_slice(format!(r#"],"cursor":"{cursor}","more":{}}}"#, !caught_up).as_bytes());
        out.push(b'\n');
        self.send(out).await
    }

    /// The rows of each table, the commits that complete them, and where the stream goes on.
    pub async fn snapshot(self, reading: Reading) {
        self.closed(self.try_snapshot(reading).await);
    }

    async fn try_snapshot(&self, mut reading: Reading) -> Result<(), Over> {
        let mut out = br#"{"tables":["#.to_vec();
        // What a page begins with: its table and its key.
        let mut open: Option<Bytes> = None;
        // They come behind all rows, and are as many as happened while the client took those.
        let mut commits = 0;
        loop {
            let Some(payload) = self.attend(reading.next()).await? else {
                return Err(self.break_off("the feed ended").await);
            };
            match kind(&payload) {
                "rows" => {
                    let (head, rows) = page(&payload);
                    match &open {
                        Some(before) if *before == head => out.push(b','),
                        Some(_) => out.extend_from_slice(b"]},"),
                        None => {}
                    }
                    if open.as_ref() != Some(&head) {
                        out.push(b'{');
                        out.extend_from_slice(&head);
                    }
                    out.extend_from_slice(&rows);
                    open = Some(head);
                    self.send(std::mem::take(&mut out)).await?;
                }
                kind @ ("commit" | "ready") => {
                    if commits == 0 {
                        out.extend_from_slice(if open.is_some() { br#"]}],"commits":["# } else { br#"],"commits":["# });
                    }
                    if kind == "ready" {
                        let cursor = resumable(&payload).unwrap_or_default();
                        out.extend_from_slice(format!("],\"cursor\":\"{cursor}\"}}\n").as_bytes());
                        return self.send(out).await;
                    }
                    out.extend_from_slice(if commits == 0 { b"" } else { b"," });
                    out.extend_from_slice(&payload);
                    commits += 1;
                    self.send(std::mem::take(&mut out)).await?;
                }
                "status" if says_down(&payload) => return Err(self.break_off("PostgreSQL was lost").await),
                "error" | "reset" => return Err(self.break_off("the rows were lost on the way; ask again").await),
                _ => {}
            }
        }
    }
}

/// Takes a page of rows apart: `"table":…,"key":…,"rows":[`, and the rows.
fn page(payload: &Bytes) -> (Bytes, Bytes) {
    const TYPE: usize = br#"{"type":"rows","#.len();
    const ROWS: &[u8] = br#""rows":["#;
    // Before it there are only names, in which quotes are escaped.
    let start =
        payload.windows(ROWS.len()).position(|window| window == ROWS).map_or(payload.len(), |at| at + ROWS.len());
    let end = payload.len().saturating_sub(b"]}".len()).max(start);
    (payload.slice(TYPE.min(start)..start), payload.slice(start..end))
}

/// Appends one event. A value of type json keeps the line breaks that it was written with; a reader joins the lines again.
fn write_event(payload: &[u8], id: Option<&str>, out: &mut Vec<u8>) {
    if let Some(id) = id {
        out.extend_from_slice(format!("id: {id}\n").as_bytes());
    }
    for line in payload.split(|byte| matches!(byte, b'\n' | b'\r')) {
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(line);
        out.push(b'\n');
    }
    out.push(b'\n');
}

/// What a page of changes is asked for.
pub struct PageRequest {
    /// The subscription that it is a piece of.
    pub request: Request,
    /// How many commits at most.
    pub limit: usize,
    /// How long to wait for one.
    pub wait: Duration,
    /// Whether to begin with the oldest commit that there is.
    pub oldest: bool,
}

impl PageRequest {
    /// Reads the parameters of an address: those of a subscription, `limit` and `wait`. `from` may also be `oldest`, which it is where
    /// nothing else is said.
    pub fn parse(query: &str) -> Result<PageRequest, String> {
        let (request, parameters) = Request::changes(query)?;
        let mut page = PageRequest { request, limit: LIMIT_DEFAULT, wait: Duration::ZERO, oldest: true };
        for (name, value) in &parameters {
            match name.as_str() {
                "limit" => page.limit = number("limit", value, 1, LIMIT_MAX as u64)? as usize,
                "wait" => page.wait = Duration::from_secs(number("wait", value, 0, WAIT_SECONDS_MAX)?),
                "from" => page.oldest = false,
                _ => {}
            }
        }
        page.request.on_reset = OnReset::Close;
        match &page.request.from {
            From::Cursor(text) if text == "oldest" => page.oldest = true,
            From::Snapshot if !page.oldest => {
                return Err(
                    "from=snapshot gives rows, and this address gives changes; get /v1/snapshot, then ask here for \
                            what follows its cursor"
                        .to_owned(),
                );
            }
            _ => {}
        }
        Ok(page)
    }
}

fn number(name: &str, text: &str, least: u64, most: u64) -> Result<u64, String> {
    let number = text.parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("{name}={text} is not a whole number from {least} to {most}"))
}
