//! `/listen/{channel}`: the payloads of a channel's notifications, as they are.
//!
//! One PostgreSQL session listens for all subscribers of the gateway, to a channel for as long as anybody wants it. It is raw: there is no
//! cursor and nothing comes again. So that nobody waits in silence where something is missed, whoever was there when the session was
//! lost is closed, and so is whoever falls behind what is kept.

use std::collections::{HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use bytes::Bytes;
use futures_util::future::poll_fn;
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_postgres::{AsyncMessage, Client};

use crate::config::{
    CLOSING_MAX, Config, LINK_CHECK_EVERY, LINK_CHECK_PATIENCE, LINK_PATIENCE, RECONNECT_FIRST, RECONNECT_MOST,
    WRITE_BYTES_MAX,
};
use crate::listener;
use crate::names::quoted;
use crate::protocol::{self, Close};
use crate::session::{Connection, Database, Purpose, told, within};
use crate::socket::{Gone, Socket};
use crate::subscriber::Shared;

/// How long a client may have to wait until PostgreSQL listens, before it is told to come again.
pub const LISTEN_PATIENCE: Duration = Duration::from_secs(10);
/// The longest name of a channel, in bytes (NAMEDATALEN).
const NAME_BYTES_MAX: usize = 63;
/// How many frames a channel keeps for subscribers that have not taken them.
const CHANNEL_FRAMES_MAX: usize = 16 << 10;
/// How many bytes of frames a channel keeps for them.
const CHANNEL_BYTES_MAX: usize = 4 << 20;
/// How many bytes all channels keep together. Where they are more, the channel that keeps most forgets.
const CHANNELS_BYTES_MAX: usize = 64 << 20;
/// What a frame takes beside its bytes, about.
const FRAME_OVERHEAD_BYTES: usize = 64;
/// After how many notifications others get their turn.
const NOTIFICATIONS_AT_ONCE: u32 = 256;
/// After how many messages of a client others get their turn.
const MESSAGES_AT_ONCE: u32 = 32;

/// Reads the name of a channel from the rest of a path, where bytes may be spelled `%2F`.
///
/// What PostgreSQL would refuse or cut short is refused, in a sentence that names the remedy.
pub fn channel_name(path: &str) -> Result<String, String> {
    let mut name = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        let (byte, behind) = match (first, behind) {
            (b'%', [high, low, behind @ ..]) => {
                let digit = |byte: &u8| char::from(*byte).to_digit(16);
                let byte = digit(high).zip(digit(low)).map(|(high, low)| (16 * high + low) as u8);
                (byte.ok_or("a % in the name of the channel has to be written %25")?, behind)
            }
            (b'%', _) => return Err("a % in the name of the channel has to be written %25".to_owned()),
            (byte, behind) => (byte, behind),
        };
        name.push(byte);
        rest = behind;
    }
    let length = name.len();
    let name = String::from_utf8(name).map_err(|_| "the name of the channel is not UTF-8; encode it so".to_owned())?;
    match length {
        0 => Err("no channel is named; say /listen/CHANNEL".to_owned()),
        _ if name.contains('\0') => Err("a channel's name cannot hold the character NUL; leave it out".to_owned()),
        1..=NAME_BYTES_MAX => Ok(name),
        _ => Err(format!("the channel's name has {length} bytes; PostgreSQL allows {NAME_BYTES_MAX}")),
    }
}

/// Whether it is a channel of the gateway's own, which is nobody else's business.
pub fn is_ours(channel: &str) -> bool {
    channel == listener::CHANNEL
}

/// The channels that somebody listens to.
pub struct Channels {
    database: Database,
    /// Locked before any channel is.
    wanted: Mutex<Wanted>,
    /// There is something to do for the session.
    changed: Notify,
    /// What all channels keep.
    bytes: AtomicUsize,
    closing: Semaphore,
}

/// Lost channels are not among them, nor such that nobody waits for.
#[derive(Default)]
struct Wanted {
    channels: HashMap<String, Arc<Channel>>,
    /// Those to listen to, or no longer.
    due: HashSet<String>,
}

struct Channel {
    name: String,
    kept: Mutex<Kept>,
    /// There is something to take, or another state.
    news: watch::Sender<()>,
}

/// What a channel keeps until all of its subscribers have it.
struct Kept {
    state: State,
    seats: usize,
    /// The number of the first frame that is kept.
    first: u64,
    /// Each with the number of seats that have not taken it.
    frames: VecDeque<(Bytes, usize)>,
    bytes: usize,
}

#[derive(Clone, PartialEq, Eq)]
enum State {
    /// PostgreSQL does not listen yet.
    Waiting,
    /// PostgreSQL listens.
    Listening,
    /// It did, and does no more.
    Lost,
    /// It will not, for this reason.
    Refused(String),
}

impl Kept {
    fn end(&self) -> u64 {
        self.first + self.frames.len() as u64
    }

    /// Lets go of the first frame; how many bytes that frees.
    fn forget_first(&mut self) -> usize {
        let freed = self.frames.pop_front().map_or(0, |(frame, _)| frame.len() + FRAME_OVERHEAD_BYTES);
        self.first += 1;
        self.bytes -= freed;
        freed
    }

    /// Lets go of what nobody waits for any more; how many bytes that frees.
    fn forget_taken(&mut self) -> usize {
        let mut freed = 0;
        while self.frames.front().is_some_and(|(_, waiting)| *waiting == 0) {
            freed += self.forget_first();
        }
        freed
    }
}

impl Channel {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, state: State) {
        self.kept().state = state;
        self.news.send_replace(());
    }
}

impl Channels {
    /// No channels yet.
    pub fn new(database: &Database) -> Arc<Channels> {
        Arc::new(Channels {
            // So that it can be told from the feed's sessions.
            database: database.named(&format!("{} listen", database.name())),
            wanted: Mutex::default(),
            changed: Notify::new(),
            bytes: AtomicUsize::new(0),
            closing: Semaphore::new(CLOSING_MAX),
        })
    }

    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a seat at a channel, once PostgreSQL listens to it: whatever is notified from then on arrives there.
    pub async fn sit(self: &Arc<Self>, channel: &str) -> Result<Seat> {
        let mut seat = self.sit_down(channel);
        loop {
            seat.news.mark_unchanged();
            let state = seat.channel.kept().state.clone();
            match state {
                State::Waiting => {}
                State::Listening => return Ok(seat),
                State::Lost => bail!("the session that listens was lost"),
                State::Refused(why) => bail!("PostgreSQL does not listen to {channel:?}: {why}"),
            }
            seat.news.changed().await?;
        }
    }

    fn sit_down(self: &Arc<Self>, name: &str) -> Seat {
        let mut wanted = self.wanted();
        let channel = match wanted.channels.get(name) {
            Some(channel) => channel.clone(),
            None => {
                let kept = Kept { state: State::Waiting, seats: 0, first: 0, frames: VecDeque::new(), bytes: 0 };
                let channel = Channel { name: name.to_owned(), kept: Mutex::new(kept), news: watch::Sender::new(()) };
                let channel = Arc::new(channel);
                wanted.channels.insert(name.to_owned(), channel.clone());
                wanted.due.insert(name.to_owned());
                self.changed.notify_one();
                channel
            }
        };
        let next = {
            let mut kept = channel.kept();
            kept.seats += 1;
            kept.end()
        };
        let news = channel.news.subscribe();
        Seat { channels: self.clone(), channel, next, news }
    }

    /// Keeps a session while somebody wants a channel. For ever.
    pub async fn run(self: Arc<Self>) {
        let mut failures = 0;
        loop {
            while self.wanted().channels.is_empty() {
                self.changed.notified().await;
            }
            let begun = Instant::now();
            let ended = self.session().await;
            self.lose();
            let Err(error) = ended else {
                failures = 0;
                continue;
            };
            failures = if begun.elapsed() > 2 * RECONNECT_MOST { 1 } else { failures + 1 };
            if failures == 1 {
                tracing::warn!("/listen has no PostgreSQL, and tries on: {error:#}");
            } else {
                tracing::debug!("/listen has no PostgreSQL (attempt {failures}): {error:#}");
            }
            let most = RECONNECT_MOST.min(RECONNECT_FIRST * 2_u32.saturating_pow(failures.min(16)));
            sleep(most.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        }
    }

    /// One session, until nobody wants a channel or it is lost.
    async fn session(self: &Arc<Self>) -> Result<()> {
        let mut session = Session::connect(self).await?;
        {
            let mut wanted = self.wanted();
            wanted.due = wanted.channels.keys().cloned().collect();
        }
        let ended = self.serve(&mut session).await;
        session.end().await;
        ended
    }

    async fn serve(&self, session: &mut Session) -> Result<()> {
        loop {
            match self.next_step() {
                Step::Listen(channel) => match session.query(&format!("listen {}", quoted(&channel))).await {
                    Ok(()) => self.listening(&channel),
                    // What it says of itself concerns all; what it says of the channel, the channel.
                    Err(error) if session.client.is_closed() || error.downcast_ref::<Refused>().is_none() => {
                        return Err(error);
                    }
                    Err(error) => self.refuse(&channel, &error.to_string()),
                },
                Step::Unlisten(channel) => session.query(&format!("unlisten {}", quoted(&channel))).await?,
                Step::Wait => tokio::select! {
                    () = self.changed.notified() => {}
                    why = &mut session.lost => bail!("the session that listens was lost: {}", why.unwrap_or_default()),
                    () = sleep(LINK_CHECK_EVERY) => session.answers().await?,
                },
                Step::End => return Ok(()),
            }
        }
    }

    /// What the session has to do next.
    fn next_step(&self) -> Step {
        let mut wanted = self.wanted();
        loop {
            let Some(name) = wanted.due.iter().next().cloned() else {
                return if wanted.channels.is_empty() { Step::End } else { Step::Wait };
            };
            wanted.due.remove(&name);
            let Some(channel) = wanted.channels.get(&name) else { return Step::Unlisten(name) };
            let (state, seats) = {
                let kept = channel.kept();
                (kept.state.clone(), kept.seats)
            };
            match state {
                State::Waiting => return Step::Listen(name),
                _ if seats == 0 => {
                    wanted.channels.remove(&name);
                    return Step::Unlisten(name);
                }
                // Somebody came back in time.
                _ => {}
            }
        }
    }

    fn listening(&self, name: &str) {
        let mut wanted = self.wanted();
        match wanted.channels.get(name) {
            Some(channel) => channel.enter(State::Listening),
            // All who wanted it went meanwhile.
            None => drop(wanted.due.insert(name.to_owned())),
        }
    }

    fn refuse(&self, name: &str, why: &str) {
        if let Some(channel) = self.wanted().channels.remove(name) {
            channel.enter(State::Refused(why.to_owned()));
        }
    }

    /// Tells everybody who was listening that something may have been missed.
    fn lose(&self) {
        let mut wanted = self.wanted();
        wanted.due.clear();
        wanted.channels.retain(|_, channel| {
            let listened = channel.kept().state == State::Listening;
            if listened {
                channel.enter(State::Lost);
            }
            !listened
        });
    }

    /// Keeps a payload for all who sit at its channel.
    fn publish(&self, name: &str, payload: &str) {
        let Some(channel) = self.wanted().channels.get(name).cloned() else { return };
        {
            let mut kept = channel.kept();
            if kept.state != State::Listening || kept.seats == 0 {
                return;
            }
            let frame = protocol::text(payload);
            let bytes = frame.len() + FRAME_OVERHEAD_BYTES;
            let waiting = kept.seats;
            kept.frames.push_back((frame, waiting));
            kept.bytes += bytes;
            let mut freed = 0;
            while kept.bytes > CHANNEL_BYTES_MAX || kept.frames.len() > CHANNEL_FRAMES_MAX {
                freed += kept.forget_first();
            }
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
            self.bytes.fetch_sub(freed, Ordering::Relaxed);
        }
        channel.news.send_replace(());
        if self.bytes.load(Ordering::Relaxed) > CHANNELS_BYTES_MAX {
            self.forget_most();
        }
    }

    /// Lets the channel that keeps most forget all of it.
    fn forget_most(&self) {
        let wanted = self.wanted();
        let Some(most) = wanted.channels.values().max_by_key(|channel| channel.kept().bytes) else { return };
        let mut kept = most.kept();
        while !kept.frames.is_empty() {
            self.bytes.fetch_sub(kept.forget_first(), Ordering::Relaxed);
        }
    }
}

/// What a session has to do.
enum Step {
    Listen(String),
    Unlisten(String),
    Wait,
    End,
}

/// PostgreSQL said no to a statement, and lives.
#[derive(Debug)]
struct Refused(String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// The PostgreSQL session that listens.
struct Session {
    client: Client,
    hearing: JoinHandle<()>,
    lost: oneshot::Receiver<String>,
}

impl Session {
    async fn connect(channels: &Arc<Channels>) -> Result<Session> {
        let (lose, lost) = oneshot::channel();
        let heard = channels.clone();
        // The ready-made future of the connection would discard notifications.
        let drive = |mut connection: Connection| {
            tokio::spawn(async move {
                let mut count = 0_u32;
                let why = loop {
                    match poll_fn(|context| connection.poll_message(context)).await {
                        Some(Ok(AsyncMessage::Notification(one))) => heard.publish(one.channel(), one.payload()),
                        Some(Ok(_)) => {}
                        Some(Err(error)) => break told(error).to_string(),
                        None => break "the connection was closed".to_owned(),
                    }
                    count = count.wrapping_add(1);
                    if count.is_multiple_of(NOTIFICATIONS_AT_ONCE) {
                        tokio::task::yield_now().await;
                    }
                };
                // Nobody waits any more where the session was given up.
                let _ = lose.send(why);
            })
        };
        let (client, hearing) = channels.database.connect(Purpose::Listener, drive).await?;
        let session = Session { client, hearing, lost };
        if channels.database.is_pooled(&session.client).await? {
            bail!(
                "a transaction pooler is in the way, behind which nothing is heard; give the gateway an address that leads to the server itself"
            );
        }
        channels.database.settle(&session.client, Purpose::Listener).await?;
        Ok(session)
    }

    /// Each statement is a transaction of its own: a session that listens inside of one would hear nothing, and hold up others.
    async fn query(&self, sql: &str) -> Result<()> {
        match timeout(LINK_PATIENCE, self.client.batch_execute(sql)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) if error.as_db_error().is_some() => Err(Refused(told(error).to_string()).into()),
            Ok(Err(error)) => Err(told(error)),
            Err(_) => bail!("PostgreSQL did not answer within {} s", LINK_PATIENCE.as_secs()),
        }
    }

    /// A round trip: a dead link is not left to TCP to notice.
    async fn answers(&self) -> Result<()> {
        within(LINK_CHECK_PATIENCE, self.client.simple_query("select 1")).await.map(drop)
    }

    /// Ends it, so that nothing of it is heard any more.
    async fn end(self) {
        self.hearing.abort();
        // It was aborted, or had ended.
        let _ = self.hearing.await;
    }
}

/// A subscriber's place at a channel.
pub struct Seat {
    channels: Arc<Channels>,
    channel: Arc<Channel>,
    /// The number of the next frame to take.
    next: u64,
    news: watch::Receiver<()>,
}

/// What there is to take.
enum Taken {
    Frames(Vec<Bytes>),
    Nothing,
    /// The next frame is no longer kept.
    Behind,
    /// PostgreSQL does not listen any more.
    Lost,
}

impl Seat {
    /// The next frames, as many as are written with one call.
    fn take(&mut self) -> Taken {
        let mut kept = self.channel.kept();
        let Some(skip) = self.next.checked_sub(kept.first) else { return Taken::Behind };
        let (mut frames, mut bytes) = (Vec::new(), 0);
        for (frame, waiting) in kept.frames.iter_mut().skip(skip as usize) {
            *waiting -= 1;
            bytes += frame.len();
            frames.push(frame.clone());
            if bytes >= WRITE_BYTES_MAX {
                break;
            }
        }
        self.next += frames.len() as u64;
        self.channels.bytes.fetch_sub(kept.forget_taken(), Ordering::Relaxed);
        match kept.state {
            _ if !frames.is_empty() => Taken::Frames(frames),
            State::Listening => Taken::Nothing,
            _ => Taken::Lost,
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut wanted = self.channels.wanted();
        let mut kept = self.channel.kept();
        kept.seats -= 1;
        let skip = self.next.saturating_sub(kept.first) as usize;
        kept.frames.iter_mut().skip(skip).for_each(|(_, waiting)| *waiting -= 1);
        self.channels.bytes.fetch_sub(kept.forget_taken(), Ordering::Relaxed);
        let name = &self.channel.name;
        let current = wanted.channels.get(name).is_some_and(|channel| Arc::ptr_eq(channel, &self.channel));
        if !current || kept.seats > 0 {
            return;
        }
        match kept.state {
            // Asked for already, perhaps; then it is undone.
            State::Waiting => {
                wanted.channels.remove(name);
                wanted.due.remove(name);
            }
            _ => {
                wanted.due.insert(name.clone());
            }
        }
        self.channels.changed.notify_one();
    }
}

/// A connection to `/listen/…`.
struct Listening {
    socket: Socket,
    seat: Seat,
    shared: Arc<Shared>,
    /// When the last ping was sent, or the connection began.
    pinged: Instant,
    /// Whether the client was not heard since then.
    pong_owed: bool,
}

/// Serves one connection until it ends.
pub fn run(socket: Socket, seat: Seat, shared: Arc<Shared>) -> impl Future<Output = ()> {
    // On the heap before there is a future: one that it is moved through would keep room for a copy.
    Box::new(Listening { socket, seat, shared, pinged: Instant::now(), pong_owed: false }).live()
}

impl Listening {
    /// A whole life.
    async fn live(mut self: Box<Self>) {
        let Err(gone) = self.serve().await;
        let Listening { socket, seat, shared, .. } = *self;
        let channels = seat.channels.clone();
        // Nothing is kept for it while it says good-bye.
        drop(seat);
        // Not all at once when the gateway stops. Never closed.
        let stops = gone == Gone::Close(Close::Stopping);
        let _turn = if stops { Some(channels.closing.acquire().await) } else { None };
        Box::pin(socket.close(gone)).await;
        shared.metrics.subscriber_closed(match gone {
            Gone::Close(close) => close,
            Gone::Closed => Close::Normal,
            Gone::Stalled => Close::NoProgress,
        });
    }

    async fn serve(&mut self) -> Result<Infallible, Gone> {
        loop {
            self.answer().await?;
            self.keep_alive().await?;
            if self.shared.stop.is_cancelled() {
                return Err(Gone::Close(Close::Stopping));
            }
            self.seat.news.mark_unchanged();
            match self.seat.take() {
                Taken::Frames(mut frames) => self.send(&mut frames).await?,
                Taken::Nothing => self.wait().await,
                Taken::Behind => return Err(Gone::Close(Close::NoProgress)),
                Taken::Lost => return Err(Gone::Close(Close::Fault)),
            }
        }
    }

    /// Waits for anything that makes it worth looking again.
    async fn wait(&mut self) {
        let Config { heartbeat, write_timeout, .. } = self.shared.config;
        let due = self.pinged + if self.pong_owed { heartbeat + write_timeout } else { heartbeat };
        tokio::select! {
            // An error says that the channel is gone; the seat holds it.
            _ = self.seat.news.changed() => {}
            () = self.socket.readable() => {}
            () = self.shared.stop.cancelled() => {}
            () = sleep_until(due + Duration::from_millis(1)) => {}
        }
    }

    /// Hears the client out; what it says means nothing here.
    async fn answer(&mut self) -> Result<(), Gone> {
        let mut count = 0_u32;
        while self.socket.receive()?.is_some() {
            count += 1;
            if count.is_multiple_of(MESSAGES_AT_ONCE) {
                self.pay().await?;
                tokio::task::yield_now().await;
            }
        }
        self.pay().await
    }

    async fn pay(&mut self) -> Result<(), Gone> {
        if self.socket.owes() { self.send(&mut []).await } else { Ok(()) }
    }

    async fn send(&mut self, frames: &mut [Bytes]) -> Result<(), Gone> {
        let sent = self.socket.send(frames).await?;
        self.shared.metrics.sent(sent);
        Ok(())
    }

    /// Sends a ping when it is time for one. Fails when the last one found no answer.
    async fn keep_alive(&mut self) -> Result<(), Gone> {
        let Config { heartbeat, write_timeout, .. } = self.shared.config;
        let waited = self.pinged.elapsed();
        self.pong_owed &= self.socket.heard() < self.pinged;
        if self.pong_owed && waited > heartbeat + write_timeout {
            return Err(Gone::Close(Close::NoProgress));
        }
        if !self.pong_owed && waited >= heartbeat {
            (self.pinged, self.pong_owed) = (Instant::now(), true);
            self.send(&mut [protocol::ping()]).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channels_name_is_read_exactly_or_refused_with_the_remedy() {
        let long = "ä".repeat(31) + "x";
        for (path, name) in [
            ("orders", "orders"),
            ("Or%64ers%20%22x%22", "Orders \"x\""),
            ("a/b+c", "a/b+c"),
            ("a%2fb%25", "a/b%"),
            ("%C3%A4", "ä"),
            (long.as_str(), long.as_str()),
        ] {
            assert_eq!(channel_name(path), Ok(name.to_owned()), "{path}");
        }
        for (path, remedy) in [
            ("", "/listen/CHANNEL"),
            ("a%00", "NUL"),
            ("a%", "%25"),
            ("a%4", "%25"),
            ("a%+4b", "%25"),
            ("%ff", "UTF-8"),
            (&"ä".repeat(32), "64 bytes; PostgreSQL allows 63"),
        ] {
            let mistake = channel_name(path).expect_err(path);
            assert!(mistake.contains(remedy), "{path}: {mistake}");
        }
    }

    /// A channel that PostgreSQL listens to.
    fn listened(channels: &Arc<Channels>, name: &str) -> Seat {
        let seat = channels.sit_down(name);
        channels.listening(name);
        seat
    }

    fn taken(seat: &mut Seat) -> usize {
        match seat.take() {
            Taken::Frames(frames) => frames.len(),
            Taken::Nothing => 0,
            Taken::Behind | Taken::Lost => panic!("the seat is of no more use"),
        }
    }

    #[test]
    fn what_everybody_took_is_not_kept_and_what_somebody_did_not_take_is_bounded() {
        let channels = Channels::new(&Database::new(&tokio_postgres::Config::new()));
        let (mut quick, mut frozen) = (listened(&channels, "c"), channels.sit_down("c"));
        let kept = || channels.bytes.load(Ordering::Relaxed);

        channels.publish("c", "x");
        assert_eq!((taken(&mut quick), taken(&mut quick)), (1, 0));
        assert_ne!(kept(), 0);
        assert_eq!(taken(&mut frozen), 1);
        assert_eq!(kept(), 0);

        for payload in [String::new(), "x".repeat(7999)] {
            for _ in 0..CHANNEL_FRAMES_MAX + 1 {
                channels.publish("c", &payload);
                assert_eq!(taken(&mut quick), 1);
                assert!(kept() <= CHANNEL_BYTES_MAX);
            }
            assert!(matches!(frozen.take(), Taken::Behind));
            frozen = channels.sit_down("c");
            assert_eq!(kept(), 0);
        }
    }

    #[test]
    fn all_channels_together_are_bounded_too_and_those_that_keep_little_keep_it() {
        let channels = Channels::new(&Database::new(&tokio_postgres::Config::new()));
        let mut small = listened(&channels, "small");
        channels.publish("small", "x");
        let payload = "x".repeat(7999);
        let mut frozen = Vec::new();

        for number in 0..20 {
            let name = format!("c{number}");
            frozen.push(listened(&channels, &name));
            for _ in 0..500 {
                channels.publish(&name, &payload);
                assert!(channels.bytes.load(Ordering::Relaxed) <= CHANNELS_BYTES_MAX);
            }
        }

        assert_eq!(taken(&mut small), 1);
        assert!(frozen.iter_mut().any(|seat| matches!(seat.take(), Taken::Behind)));
    }

    #[test]
    fn who_leaves_takes_with_it_what_waited_for_it_alone() {
        let channels = Channels::new(&Database::new(&tokio_postgres::Config::new()));
        let (mut stays, leaves) = (listened(&channels, "c"), channels.sit_down("c"));
        channels.publish("c", "x");
        assert_eq!(taken(&mut stays), 1);

        drop(leaves);
        assert_eq!(channels.bytes.load(Ordering::Relaxed), 0);
        assert!(matches!(channels.next_step(), Step::Listen(_) | Step::Wait));

        drop(stays);
        assert!(matches!(channels.next_step(), Step::Unlisten(name) if name == "c"));
        assert!(matches!(channels.next_step(), Step::End));
    }
}
