//! A subscriber: one connection, from its greeting to the reason it ends.
//!
//! It joins the hub before it reads the log, so that nothing falls between; catches up; says that it is ready; follows. One that falls
//! behind the hub's history does the same again. It costs one task, and it waits for nobody but its own client.
//!
//! What it holds while its client takes nothing, at most: when it catches up, one encoded page of the log (`CATCH_UP_BYTES_MAX` and one
//! row, with some 200 bytes for each of at most `CATCH_UP_CHANGES_MAX` changes); when it takes a snapshot, one piece of it
//! (`SNAPSHOT_PIECE_BYTES_MAX` and one frame); when it follows, `WRITE_BYTES_MAX` and one frame of a history, which it shares with all
//! who are as far behind. The next is fetched only once the socket takes something. It holds no connection to the database meanwhile,
//! and after the write time-out it is closed.

use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::change::{Cursor, Place, Position};
use crate::config::{CLOSING_MAX, Config};
use crate::hub::{Head, Hub, Joined, News};
use crate::log::{Log, Page, PageSize, Visible};
use crate::metrics::Metrics;
use crate::protocol::{self, Close, Encoder, Form, From, Kind, Message, OnReset, Request, Selection};
use crate::snapshot::{Piece, Snapshots};
use crate::socket::{Gone, Incoming, Socket};

/// How often a step that needs PostgreSQL is tried while PostgreSQL seems to be there.
const ATTEMPTS_MAX: u32 = 5;
/// How long to wait between two of them.
const ATTEMPT_EVERY: Duration = Duration::from_millis(500);
/// How long to wait, while PostgreSQL is there, for a commit that has its position but was not published: only a fault takes so long.
const HEAD_PATIENCE: Duration = Duration::from_secs(600);
/// After how many messages of a client others get their turn.
const MESSAGES_AT_ONCE: usize = 32;

/// What all subscribers share.
pub struct Shared {
    /// The settings.
    pub config: Config,
    /// Where commits arrive.
    pub hub: Arc<Hub>,
    /// Where those are that the hub no longer has.
    pub log: Log,
    /// Where current rows come from.
    pub snapshots: Arc<Snapshots>,
    /// Where events are counted.
    pub metrics: Arc<Metrics>,
    /// Says that the gateway stops.
    pub stop: CancellationToken,
    /// Says that it stopped long enough: who is still there is cut off.
    pub cut: CancellationToken,
    closing: Semaphore,
}

impl Shared {
    /// What subscribers need.
    pub fn new(config: Config, hub: Arc<Hub>, log: Log, snapshots: Arc<Snapshots>, metrics: Arc<Metrics>) -> Shared {
        let (stop, cut) = (CancellationToken::new(), CancellationToken::new());
        Shared { config, hub, log, snapshots, metrics, stop, cut, closing: Semaphore::new(CLOSING_MAX) }
    }
}

/// What a connection asked for in its address.
pub enum Subscription {
    /// `/v1/feed`.
    Feed(Request),
    /// `/switch/status`.
    SwitchStatus,
}

struct Subscriber {
    socket: Socket,
    kind: Kind,
    shared: Arc<Shared>,
    /// The cursor of the last frame sent that has one.
    last: Option<Cursor>,
    /// Which life of the hub's positions it follows.
    life: u64,
    /// When the last ping was sent, or the connection began.
    pinged: Instant,
    /// Whether the client was not heard since then.
    pong_owed: bool,
}

/// Why a subscriber cannot go on as it is.
enum End {
    /// The connection ends.
    Gone(Gone),
    /// The positions do not go on, for this reason: begin anew.
    Reset { reason: Arc<str>, oldest: Option<Cursor> },
    /// What was asked of PostgreSQL did not work.
    Failed(anyhow::Error),
}

impl std::convert::From<Gone> for End {
    fn from(gone: Gone) -> End {
        End::Gone(gone)
    }
}

impl std::convert::From<anyhow::Error> for End {
    fn from(error: anyhow::Error) -> End {
        End::Failed(error)
    }
}

/// Serves one connection until it ends.
pub fn run(socket: Socket, subscription: Subscription, shared: Arc<Shared>) -> impl Future<Output = ()> {
    let (kind, request) = match subscription {
        Subscription::Feed(request) => (Kind { selection: Selection::default(), form: Form::Feed }, Some(request)),
        Subscription::SwitchStatus => (Kind::switch_status(), None),
    };
    let pinged = Instant::now();
    // On the heap before there is a future: one that it is moved through would keep room for a copy.
    Box::new(Subscriber { socket, kind, shared, last: None, life: 0, pinged, pong_owed: false }).live(request)
}

impl Subscriber {
    /// A whole life; without a request, that of `/switch/status`.
    async fn live(mut self: Box<Self>, request: Option<Request>) {
        let gone = match request {
            Some(request) => self.serve_feed(request).await,
            None => Box::pin(self.serve_switch_status()).await,
        };
        let Subscriber { socket, shared, .. } = *self;
        // Not all at once when the gateway stops, so that clients do not come back at another one in the same moment. Never closed.
        let stops = gone == Gone::Close(Close::Stopping);
        let _turn = if stops { Some(shared.closing.acquire().await) } else { None };
        Box::pin(socket.close(gone)).await;
        shared.metrics.subscriber_closed(match gone {
            Gone::Close(close) => close,
            Gone::Closed => Close::Normal,
            Gone::Stalled => Close::NoProgress,
        });
    }

    async fn serve_switch_status(&mut self) -> Gone {
        // What came right behind the handshake was read with it; no news of the socket's will tell.
        if let Err(gone) = self.answer().await {
            return gone;
        }
        loop {
            match self.follow_from(None).await {
                End::Gone(gone) => return gone,
                // This stream has no positions to lose: it goes on with what comes next.
                End::Reset { .. } => {}
                End::Failed(error) => {
                    tracing::warn!("a subscriber could not be served: {error:#}");
                    return Gone::Close(Close::Fault);
                }
            }
        }
    }

    async fn serve_feed(&mut self, request: Request) -> Gone {
        match Box::pin(self.greet(&request)).await {
            Ok(()) => {}
            Err(gone) => return gone,
        }
        let mut from = request.from;
        loop {
            let end = match Box::pin(self.start(&from)).await {
                Ok(start) => self.follow_from(Some(start)).await,
                Err(end) => end,
            };
            match end {
                End::Gone(gone) => return gone,
                End::Reset { reason, oldest } => {
                    if let Err(gone) = self.send(protocol::reset(&reason, oldest)).await {
                        return gone;
                    }
                    if request.on_reset == OnReset::Close {
                        return Gone::Close(Close::CursorGone);
                    }
                    self.last = None;
                    from = From::Snapshot;
                }
                End::Failed(error) => {
                    tracing::warn!("a subscriber could not be served: {error:#}");
                    let message =
                        format!("{error:#}; reconnect, and if it stays so let the operator run \"switchboard check\"");
                    let told = self.send(protocol::error("failed", &message, None)).await;
                    return told.err().unwrap_or(Gone::Close(Close::Fault));
                }
            }
        }
    }

    /// Says hello, and finds the tables that were asked for.
    async fn greet(&mut self, request: &Request) -> Result<(), Gone> {
        let heartbeat = self.shared.config.heartbeat.as_millis() as u64;
        self.send(protocol::hello(heartbeat)).await?;
        // What came right behind the handshake was read with it; no news of the socket's will tell.
        self.answer().await?;
        self.wait_for_database().await?;
        let Some(wanted) = &request.tables else { return Ok(()) };
        let mut selection = find_tables(&self.shared.log, wanted);
        if selection.is_err() {
            // Watched a moment ago, perhaps.
            let log = self.shared.log.clone();
            if let Err(error) = self.attend(log.refresh_tables()).await? {
                tracing::debug!("tables could not be looked up: {error:#}");
            }
            selection = find_tables(&self.shared.log, wanted);
        }
        match selection {
            Ok(selection) => self.kind.selection = selection,
            Err(mistake) => {
                self.send(protocol::error("bad_request", &mistake, None)).await?;
                return Err(Gone::Close(Close::BadRequest));
            }
        }
        Ok(())
    }

    /// Sends what comes before the stream, and says where the stream begins.
    async fn start(&mut self, from: &From) -> Result<Start, End> {
        let head = self.begin().await?;
        match from {
            From::Now => {
                let joined = self.join().await?;
                Ok(Start { place: Place::after(joined.head.cursor.position), skip: None, joined: Some(joined) })
            }
            From::Cursor(text) => self.resume(text, head).await,
            From::Snapshot => self.send_rows(head).await,
        }
    }

    async fn resume(&mut self, text: &str, head: Cursor) -> Result<Start, End> {
        let Ok(cursor) = text.parse::<Cursor>() else {
            return Err(End::Reset { reason: "unknown".into(), oldest: None });
        };
        if cursor != head {
            let log = self.shared.log.clone();
            let look = || {
                let log = log.clone();
                async move { log.look(cursor.position).await }
            };
            let extent = self.with_database(look).await?;
            if let Some(reason) = extent.refusal(cursor) {
                return Err(End::Reset { reason: reason.into(), oldest: Some(extent.oldest) });
            }
        }
        self.last = Some(cursor);
        Ok(Start { place: Place::after(cursor.position), skip: None, joined: None })
    }

    async fn send_rows(&mut self, head: Cursor) -> Result<Start, End> {
        let (snapshots, selection, life) = (self.shared.snapshots.clone(), self.kind.selection.clone(), self.life);
        let begin = || {
            let snapshot = snapshots.get(&selection, life);
            async move {
                let piece = snapshot.piece(0).await?;
                Ok((snapshot, piece))
            }
        };
        let (snapshot, mut piece) = self.with_database(begin).await?;
        loop {
            match piece {
                Piece::Frames(frames, following) => {
                    self.send(frames).await?;
                    self.socket.writable().await?;
                    // Once rows were sent, another reading could not go on in the middle of them: a failure is the end.
                    piece = self.attend(snapshot.piece(following)).await??;
                }
                Piece::End(join) => {
                    if join.epoch != head.epoch {
                        return Err(End::Reset { reason: "epoch".into(), oldest: None });
                    }
                    // What the rows hold must be behind us before we join, or it would come again.
                    self.wait_for_head(join.covered).await?;
                    return Ok(Start { place: Place::after(join.head), skip: Some(join.visible), joined: None });
                }
            }
        }
    }

    /// Follows the stream from here until it cannot go on. `None`: from now on, and without a word about it.
    async fn follow_from(&mut self, start: Option<Start>) -> End {
        let announce = start.is_some();
        let (mut place, mut joined, mut skip) = match start {
            Some(start) => (start.place, start.joined, start.skip),
            None => match self.begin_now().await {
                Ok(joined) => (Place::after(joined.head.cursor.position), Some(joined), None),
                Err(end) => return end,
            },
        };
        let mut ready = false;
        loop {
            let at = match joined.take() {
                Some(joined) => joined,
                None => match Box::pin(self.catch_up(place, skip.take())).await {
                    Ok(joined) => joined,
                    Err(end) => return end,
                },
            };
            let splice = match ready {
                false => Some(protocol::ready(self.last, at.last)),
                true if self.last != Some(at.last) => Some(protocol::position(self.last, at.last)),
                true => None,
            };
            self.last = Some(at.last);
            if let Some(frame) = splice.filter(|_| announce)
                && let Err(gone) = self.send(frame).await
            {
                return gone.into();
            }
            ready = true;
            match self.follow(at).await {
                Ok(behind) => place = behind,
                Err(end) => return end,
            }
        }
    }

    /// Reads the log from `place` until the hub goes on from there, leaving out what `skip` already saw.
    async fn catch_up(&mut self, mut place: Place, skip: Option<Visible>) -> Result<Joined, End> {
        let mut encoder = Encoder::new(self.kind.clone(), self.last);
        if place.serial.is_some() {
            encoder.go_on();
        }
        loop {
            // Before the log is read: a commit published in between would be in neither.
            let joined = self.join().await?;
            if place == Place::after(joined.head.cursor.position)
                && !matches!(joined.topic.take(joined.next), News::Behind)
            {
                return Ok(joined);
            }
            if place >= Place::after(joined.head.cursor.position) {
                // In the middle of a commit that the hub is being brought, or that its history does not hold whole.
                let beyond = joined.head.cursor.position + 1;
                drop(joined);
                self.wait_for_head(beyond).await?;
                continue;
            }
            let until = joined.head.cursor.position.max(place.whole());
            while place < Place::after(until) {
                self.socket.writable().await?;
                let (shared, known) = (self.shared.clone(), joined.head.cursor);
                let read = || {
                    let log = shared.log.clone();
                    async move { log.read(known, place, until, PageSize::CATCH_UP).await }
                };
                let parts = match self.with_database(read).await? {
                    Page::Parts(parts) => parts,
                    Page::Overtaken => return Err(self.overtaken().await?),
                };
                let mut out = Vec::new();
                for part in parts {
                    place = part.place();
                    if !skip.as_ref().is_some_and(|visible| visible.sees(part.tx)) {
                        encoder.encode(&part, &mut out);
                    }
                }
                self.last = encoder.last;
                self.send(Bytes::from(out)).await?;
            }
        }
    }

    /// Follows the hub. Returns how far that went when the hub no longer has what comes next.
    async fn follow(&mut self, joined: Joined) -> Result<Place, End> {
        let mut place = Place::after(joined.head.cursor.position);
        let mut next = joined.next;
        let mut news = joined.topic.news();
        loop {
            news.mark_unchanged();
            match joined.topic.take(next) {
                News::Nothing => {
                    self.keep_alive().await?;
                    // An error says that the topic is gone; this subscriber holds it.
                    let _ = self.attend_closely(news.changed()).await?;
                }
                News::Chunks { mut chunks, next: following, place: end, last } => {
                    self.send_all(&mut chunks).await?;
                    (next, place) = (following, end);
                    self.last = Some(last);
                    // A stream that never pauses must not keep the client from being heard, nor the gateway from stopping.
                    if self.shared.stop.is_cancelled() {
                        return Err(Gone::Close(Close::Stopping).into());
                    }
                    Box::pin(self.answer()).await?;
                    self.keep_alive().await?;
                }
                News::Behind => return Ok(place),
                News::Reset(reason) => return Err(End::Reset { reason, oldest: None }),
            }
        }
    }

    /// Waits until the hub knows where the log ends, and follows its positions from then on.
    async fn begin(&mut self) -> Result<Cursor, Gone> {
        loop {
            if let Some(head) = self.shared.hub.head() {
                self.life = head.life;
                return Ok(head.cursor);
            }
            self.wait_for_database().await?;
        }
    }

    async fn begin_now(&mut self) -> Result<Joined, End> {
        self.begin().await?;
        self.join().await
    }

    /// A place at the end of the hub's history.
    async fn join(&mut self) -> Result<Joined, End> {
        match self.shared.hub.join(&self.kind) {
            Some(joined) if joined.head.life == self.life => Ok(joined),
            _ => Err(End::Reset { reason: self.shared.hub.reason(), oldest: None }),
        }
    }

    /// Waits until the hub has published this commit.
    async fn wait_for_head(&mut self, position: Position) -> Result<(), End> {
        let mut heads = self.shared.hub.heads();
        let life = self.life;
        let mut arrived = async || {
            let there =
                |head: &Option<Head>| head.is_some_and(|head| head.cursor.position >= position || head.life != life);
            // Where the positions do not go on, joining says so.
            timeout(HEAD_PATIENCE, heads.wait_for(there)).await.is_ok()
        };
        while !self.attend(arrived()).await? {
            if *self.shared.hub.database().borrow() {
                return Err(anyhow!("position {position} did not come within {} s", HEAD_PATIENCE.as_secs()).into());
            }
        }
        Ok(())
    }

    /// What to tell a client for which the log does not hold what follows.
    async fn overtaken(&mut self) -> Result<End, End> {
        let (log, last) = (self.shared.log.clone(), self.last);
        let look = || {
            let log = log.clone();
            async move { log.look(last.map_or(0, |last| last.position)).await }
        };
        let extent = self.with_database(look).await?;
        let reason = last.and_then(|last| extent.refusal(last)).unwrap_or("expired");
        Ok(End::Reset { reason: reason.into(), oldest: Some(extent.oldest) })
    }

    /// Waits until the gateway has its PostgreSQL, telling the client when it has not.
    async fn wait_for_database(&mut self) -> Result<(), Gone> {
        let mut database = self.shared.hub.database();
        let heartbeat = self.shared.config.heartbeat;
        let mut waited = false;
        while !*database.borrow_and_update() {
            waited = true;
            self.tell_status(false).await?;
            // Either way the state is looked at again.
            let _ = self.attend_closely(Box::pin(timeout(heartbeat, database.changed()))).await?;
        }
        if waited { self.tell_status(true).await } else { Ok(()) }
    }

    async fn tell_status(&mut self, database_up: bool) -> Result<(), Gone> {
        if self.kind.form == Form::Feed { self.send(protocol::status(database_up)).await } else { Ok(()) }
    }

    /// Does something that needs PostgreSQL, again where that fails while PostgreSQL comes and goes.
    async fn with_database<T, W>(&mut self, mut work: impl FnMut() -> W) -> Result<T, End>
    where
        W: Future<Output = anyhow::Result<T>>,
    {
        let mut attempt = 1;
        loop {
            match self.attend(work()).await? {
                Ok(done) => return Ok(done),
                Err(error) if attempt == ATTEMPTS_MAX => return Err(error.into()),
                Err(error) => tracing::debug!("a subscriber tries again: {error:#}"),
            }
            self.attend(sleep(ATTEMPT_EVERY)).await?;
            if *self.shared.hub.database().borrow() {
                attempt += 1;
            } else {
                self.wait_for_database().await?;
            }
        }
    }

    /// Waits for something while the client is listened to and the gateway runs.
    async fn attend<T>(&mut self, something: impl Future<Output = T>) -> Result<T, Gone> {
        // On the heap: these are the rare waits, and an idle subscriber is to be small.
        let mut something = Box::pin(something);
        loop {
            let a_while = Box::pin(timeout(self.shared.config.heartbeat, &mut something));
            if let Ok(done) = self.attend_closely(a_while).await? {
                return Ok(done);
            }
            // Nothing else tells the client meanwhile that the line is alive.
            let up = *self.shared.hub.database().borrow();
            self.tell_status(up).await?;
        }
    }

    async fn attend_closely<T>(&mut self, something: impl Future<Output = T>) -> Result<T, Gone> {
        let mut something = std::pin::pin!(something);
        loop {
            tokio::select! {
                biased;
                done = &mut something => return Ok(done),
                () = self.shared.stop.cancelled() => return Err(Gone::Close(Close::Stopping)),
                () = self.socket.readable() => {}
            }
            Box::pin(self.answer()).await?;
            // A client that never stops talking leaves others their turn.
            tokio::task::yield_now().await;
        }
    }

    /// Answers what the client has sent.
    async fn answer(&mut self) -> Result<(), Gone> {
        let mut count = 0;
        while let Some(message) = self.socket.receive()? {
            let answer = match (self.kind.form, message) {
                (Form::SwitchStatus, _) | (_, Incoming::Control) => None,
                (Form::Feed, Incoming::Binary) => {
                    Some(protocol::error("bad_message", "binary messages mean nothing here; send text", None))
                }
                (Form::Feed, Incoming::Text(text)) => Some(match Message::parse(&text) {
                    Message::Ping(id) => protocol::pong(id),
                    Message::Wrong(code, message, id) => protocol::error(code, &message, id),
                }),
            };
            if let Some(answer) = answer {
                self.send(answer).await?;
            }
            count += 1;
            if count % MESSAGES_AT_ONCE == 0 {
                self.pay().await?;
                tokio::task::yield_now().await;
            }
        }
        self.pay().await
    }

    /// Sends what the protocol owes the client.
    async fn pay(&mut self) -> Result<(), Gone> {
        if self.socket.owes() { self.send_all(&mut []).await } else { Ok(()) }
    }

    async fn send(&mut self, frames: Bytes) -> Result<(), Gone> {
        self.send_all(&mut [frames]).await
    }

    async fn send_all(&mut self, frames: &mut [Bytes]) -> Result<(), Gone> {
        let sent = self.socket.send(frames).await?;
        self.shared.metrics.sent(sent);
        Ok(())
    }

    /// Sends a ping when it is time for one. Fails when the last one found no answer. Every heartbeat wakes every subscriber, so this
    /// is asked often enough.
    async fn keep_alive(&mut self) -> Result<(), Gone> {
        let Config { heartbeat, write_timeout, .. } = self.shared.config;
        let waited = self.pinged.elapsed();
        self.pong_owed &= self.socket.heard() < self.pinged;
        if self.pong_owed && waited > heartbeat + write_timeout {
            return Err(Gone::Close(Close::NoProgress));
        }
        if !self.pong_owed && waited >= heartbeat {
            (self.pinged, self.pong_owed) = (Instant::now(), true);
            self.send(protocol::ping()).await?;
        }
        Ok(())
    }
}

/// Where a stream begins.
struct Start {
    place: Place,
    skip: Option<Visible>,
    joined: Option<Joined>,
}

/// The selection of the tables that were asked for; or which one is not watched, and what to do.
fn find_tables(log: &Log, wanted: &[String]) -> Result<Selection, String> {
    let watched = log.watched();
    let find = |name: &String| {
        let exact = watched.iter().find(|table| table.name.to_string() == *name);
        let public = || watched.iter().find(|table| table.name.schema == "public" && table.name.table == *name);
        exact.or_else(public).map(|table| table.name.clone()).ok_or_else(|| {
            let names: Vec<String> = watched.iter().take(20).map(|table| table.name.to_string()).collect();
            let watched = if names.is_empty() { "no table".to_owned() } else { names.join(", ") };
            format!("table {name} is not watched; watched is {watched}; to watch it: switchboard watch {name}")
        })
    };
    Ok(Selection { tables: Some(wanted.iter().map(find).collect::<Result<_, _>>()?) })
}
