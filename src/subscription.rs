//! A subscription: the way of one selection to one client, from its first frame to the reason it ends.
//!
//! It joins the hub before it reads the log, so that nothing falls between; catches up; says that it is ready; follows. One that falls
//! behind the hub's history does the same again. It writes to an outlet and knows neither sockets nor the other subscriptions of its
//! connection; dropping it ends it at any wait.
//!
//! What it holds while its client takes nothing, at most: when it catches up, one encoded page of the log (`CATCH_UP_BYTES_MAX` and one
//! row, with some 200 bytes for each of at most `CATCH_UP_CHANGES_MAX` changes); when it takes a snapshot, one piece of it
//! (`SNAPSHOT_PIECE_BYTES_MAX` and one frame); when it follows, `WRITE_BYTES_MAX` and one frame of a history, which it shares with all
//! who are as far behind. The next is fetched only once the client took everything. It holds no connection to the database meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{sleep, timeout};

use crate::change::{Cursor, Place, Position};
use crate::config::{JUDGE_STEPS_MAX, JUDGE_STEPS_PER_BYTE, LARGE_BYTES, LARGE_BYTES_MAX};
use crate::filter::Undecidable;
use crate::filter::weight::Weighing;
use crate::hub::{self, Head, Joined, News, NoPlace};
use crate::judging::Judging;
use crate::log::Refused;
use crate::outbox::Outlet;
use crate::pages::SharedPage;
use crate::protocol::{self, Encoder, Form, From, Kind, OnReset, Request};
use crate::selection::{Draft, Selection};
use crate::snapshot::{Interrupted, Join, Piece};
use crate::subscriber::Shared;

/// How often a step that needs PostgreSQL is tried while PostgreSQL seems to be there.
const ATTEMPTS_MAX: u32 = 5;
/// How long to wait between two of them.
const ATTEMPT_EVERY: Duration = Duration::from_millis(500);
/// How long to wait, while PostgreSQL is there, for a commit that has its position but was not published: only a fault takes so long.
const HEAD_PATIENCE: Duration = Duration::from_secs(600);

/// How a subscription ended. The client was told, as far as there is something to tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// What was asked for is not there.
    Wrong,
    /// The cursor cannot be served, and `on_reset=close` was asked for.
    CursorGone,
    /// A fault of the gateway's, or of its database.
    Failed,
}

/// One selection's way to one client.
pub struct Subscription {
    kind: Kind,
    shared: Arc<Shared>,
    outlet: Outlet,
    /// The cursor of the last frame sent that has one.
    last: Option<Cursor>,
    /// Which life of the hub's positions it follows.
    life: u64,
    /// When it was told that a table is not what it was.
    altered: Option<Instant>,
    /// How often in a row its rows broke off.
    interruptions: u32,
    /// What its filter weighs, for the connection and for the gateway.
    weighing: Option<Box<[Weighing; 2]>>,
}

/// Why a subscription cannot go on as it is.
enum End {
    /// The positions do not go on, for this reason: begin anew.
    Reset { reason: Arc<str>, oldest: Option<Cursor> },
    /// What was asked for is not there, as this sentence says.
    Wrong(String),
    /// There is no room for it beside others, as this sentence says.
    TooMany(String),
    /// A change takes more steps to judge than it may.
    TooHeavy,
    /// The rows cannot be read, as this sentence says, and will not be when they are asked for again.
    Unreadable(String),
    /// What was asked of PostgreSQL did not work.
    Failed(anyhow::Error),
}

impl End {
    /// A table is not any more, or was not yet, what it is taken for: select and begin anew.
    fn schema() -> End {
        End::Reset { reason: hub::SCHEMA.into(), oldest: None }
    }
}

fn undecidable(error: Undecidable) -> End {
    if error == Undecidable::TooHeavy {
        return End::TooHeavy;
    }
    tracing::debug!("a subscription begins anew: {error}");
    End::schema()
}

impl std::convert::From<anyhow::Error> for End {
    fn from(error: anyhow::Error) -> End {
        End::Failed(error)
    }
}

/// Serves what was asked for until that cannot go on.
pub async fn feed(request: Box<Request>, outlet: Outlet, shared: Arc<Shared>) -> Ended {
    let kind = Kind { selection: Selection::default(), form: Form::Feed };
    let mut subscription = Box::new(Subscription::new(kind, outlet, shared));
    subscription.serve(request).await
}

/// Serves the stream of `/switch/status` until that cannot go on.
pub async fn switch_status(outlet: Outlet, shared: Arc<Shared>) -> Ended {
    let mut subscription = Box::new(Subscription::new(Kind::switch_status(), outlet, shared));
    loop {
        let end = match Box::pin(subscription.begin_now()).await {
            Ok(joined) => subscription.follow(joined).await,
            Err(end) => end,
        };
        match end {
            // This stream has no positions to lose: it goes on with what comes next.
            End::Reset { .. } => {}
            End::Wrong(what) | End::Unreadable(what) => unreachable!("nothing was asked for: {what}"),
            End::TooHeavy => unreachable!("there is no filter"),
            End::TooMany(what) => {
                tracing::warn!("a subscriber could not be served: {what}");
                return Ended::Failed;
            }
            End::Failed(error) => {
                tracing::warn!("a subscriber could not be served: {error:#}");
                return Ended::Failed;
            }
        }
    }
}

impl Subscription {
    fn new(kind: Kind, outlet: Outlet, shared: Arc<Shared>) -> Subscription {
        Subscription { kind, shared, outlet, last: None, life: 0, altered: None, interruptions: 0, weighing: None }
    }

    // What is rare is on the heap, here and below, so that one that is idle is small.
    async fn serve(&mut self, request: Box<Request>) -> Ended {
        let mut from = request.from.clone();
        loop {
            let end = match Box::pin(self.arrive(&request, &from)).await {
                Ok(joined) => self.follow(joined).await,
                Err(end) => end,
            };
            if let Some(ended) = Box::pin(self.tell_end(end, request.on_reset)).await {
                return ended;
            }
            from = From::Snapshot;
        }
    }

    /// Tells the client why the subscription cannot go on as it is. None where it begins anew.
    async fn tell_end(&mut self, end: End, on_reset: OnReset) -> Option<Ended> {
        match end {
            End::Reset { reason, oldest } => {
                self.altered = (*reason == *hub::SCHEMA).then(Instant::now);
                self.send(protocol::reset(&reason, oldest)).await;
                self.last = None;
                if on_reset == OnReset::Snapshot {
                    return None;
                }
                if self.outlet.sub().is_some() {
                    // The connection goes on; without a word the client would wait for rows.
                    let remedy = "the cursor cannot be served, and on_reset=close was asked for; subscribe anew";
                    self.refuse("cursor_gone", remedy).await;
                }
                Some(Ended::CursorGone)
            }
            End::Wrong(mistake) => {
                self.refuse("bad_request", &mistake).await;
                Some(Ended::Wrong)
            }
            End::TooMany(mistake) => {
                self.refuse("too_many", &mistake).await;
                Some(Ended::Wrong)
            }
            End::TooHeavy => {
                let message = format!(
                    "the filter needs more than {JUDGE_STEPS_MAX} steps, and {JUDGE_STEPS_PER_BYTE} for each byte, to judge a change of this size; use fewer or simpler conditions, above all like and match on long texts, or follow more rows and choose among them in the client"
                );
                self.refuse("too_heavy", &message).await;
                Some(Ended::Wrong)
            }
            End::Unreadable(what) => {
                self.refuse("unreadable", &what).await;
                Some(Ended::Wrong)
            }
            End::Failed(error) => {
                tracing::warn!("a subscriber could not be served: {error:#}");
                let message =
                    format!("{error:#}; reconnect, and if it stays so let the operator run \"switchboard check\"");
                self.refuse("failed", &message).await;
                Some(Ended::Failed)
            }
        }
    }

    /// Sends everything up to `ready`, and says where in the hub it stands then.
    async fn arrive(&mut self, request: &Request, from: &From) -> Result<Joined, End> {
        let Start { place, skip, joined } = self.start(request, from).await?;
        let joined = match joined {
            Some(joined) => joined,
            None => self.catch_up(place, skip, Late::No).await?,
        };
        self.send(protocol::ready(self.last, joined.last)).await;
        self.last = Some(joined.last);
        self.interruptions = 0;
        Ok(joined)
    }

    /// Says why the subscription ends, under the `id` of the message that asked for it.
    async fn refuse(&self, code: &str, message: &str) {
        let id = self.outlet.sub().and_then(|sub| serde_json::from_str(sub).ok());
        self.send(protocol::error(code, message, id)).await;
    }

    /// Finds what was asked for, sends what comes before the stream, and says where the stream begins.
    async fn start(&mut self, request: &Request, from: &From) -> Result<Start, End> {
        self.wait_for_database().await;
        if let Some(altered) = self.altered {
            self.with_database(|| self.shared.log.tables_since(altered)).await?;
        }
        self.select(request).await?;
        let head = self.begin().await;
        match from {
            From::Now => {
                let joined = self.join()?;
                Ok(Start { place: Place::after(joined.head.cursor.position), skip: None, joined: Some(joined) })
            }
            From::Cursor(text) => self.resume(text, head).await,
            From::Snapshot => {
                let outbox = self.outlet.outbox();
                let _turn = outbox.turn().await;
                self.send_rows(head).await
            }
        }
    }

    /// Finds what was asked for in the database.
    async fn select(&mut self, request: &Request) -> Result<(), End> {
        // Each by itself takes little; a client that sends very many leaves others their turn.
        tokio::task::yield_now().await;
        let mut selected = self.try_select(request).await;
        if matches!(selected, Err(End::Wrong(_))) {
            // Watched or altered a moment ago, perhaps.
            let looking = self.shared.log.tables_since(Instant::now());
            if let Err(error) = self.attend(looking).await {
                tracing::debug!("tables could not be looked up: {error:#}");
            }
            selected = self.try_select(request).await;
        }
        let selection = selected?;
        self.weighing = None;
        let weight = selection.weight();
        if weight > 0 {
            self.weighing = Some(Box::new(self.weigh(weight)?));
        }
        self.kind.selection = selection;
        Ok(())
    }

    /// Makes room for a filter among those of the connection, and among all.
    fn weigh(&self, weight: u64) -> Result<[Weighing; 2], End> {
        let config = &self.shared.config;
        let outbox = self.outlet.outbox();
        let full = |whose: &str, sum: u64, setting: &str, most: u64| {
            End::TooMany(format!(
                "the filter weighs {weight}, and {whose} weigh {sum} already and may weigh {most}; unsubscribe, use a filter with fewer values and patterns, or let the operator raise --{setting}"
            ))
        };
        let filters = outbox.filters();
        let most = config.filter_weight_max;
        let own = filters.add(weight, most);
        let own =
            own.ok_or_else(|| full("the filters of this connection", filters.sum(), "filter-weight-max", most))?;
        let filters = &self.shared.filters;
        let most = config.filters_weight_max;
        let all = filters.add(weight, most);
        let all = all.ok_or_else(|| full("all filters of this gateway", filters.sum(), "filters-weight-max", most))?;
        Ok([own, all])
    }

    async fn try_select(&self, request: &Request) -> Result<Selection, End> {
        let log = &self.shared.log;
        let draft = Draft::new(request.wish(), &log.tables()).map_err(End::Wrong)?;
        let mut answers = Vec::new();
        for question in draft.questions().map_err(End::Wrong)? {
            let Some(question) = question else {
                answers.push(None);
                continue;
            };
            let ask = || async {
                match log.answer(&question).await {
                    Ok(answer) => Ok(Ok(answer)),
                    Err(Refused::Said(mistake)) => Ok(Err(mistake)),
                    Err(Refused::Failed(error)) => Err(error),
                }
            };
            answers.push(Some(self.with_database(ask).await?.map_err(End::Wrong)?));
        }
        draft.bind(answers).map_err(End::Wrong)
    }

    async fn resume(&mut self, text: &str, head: Cursor) -> Result<Start, End> {
        let Ok(cursor) = text.parse::<Cursor>() else {
            return Err(End::Reset { reason: "unknown".into(), oldest: None });
        };
        if cursor != head {
            self.check(cursor).await?;
        }
        self.last = Some(cursor);
        Ok(Start { place: Place::after(cursor.position), skip: None, joined: None })
    }

    async fn send_rows(&mut self, head: Cursor) -> Result<Start, End> {
        let (snapshots, selection, life) = (self.shared.snapshots.clone(), self.kind.selection.clone(), self.life);
        let asked = Instant::now();
        let begin = || {
            let (snapshots, selection) = (snapshots.clone(), selection.clone());
            async move {
                let snapshot = snapshots.get(&selection, life, asked).await?;
                match snapshot.piece(0).await? {
                    Piece::Interrupted => Err(Interrupted.into()),
                    piece => Ok((snapshot, piece)),
                }
            }
        };
        let (snapshot, mut piece) = self.with_database(begin).await?;
        loop {
            match piece {
                Piece::Frames(frames, following) => {
                    self.send(frames).await;
                    self.outlet.emptied().await;
                    // Once rows were sent, another reading could not go on in the middle of them: a failure is the end.
                    piece = self.attend(snapshot.piece(following)).await?;
                }
                Piece::End(join) => {
                    if join.epoch != head.epoch {
                        return Err(End::Reset { reason: "epoch".into(), oldest: None });
                    }
                    // What the rows hold must be behind us before we join, or it would come again.
                    self.wait_for_head(join.covered.position).await?;
                    self.check(join.covered).await?;
                    return Ok(Start { place: Place::after(join.head), skip: Some(join), joined: None });
                }
                Piece::Changed => return Err(End::schema()),
                Piece::Unreadable(what) => return Err(End::Unreadable(what)),
                Piece::Interrupted => return Err(self.interrupted().await),
            }
        }
    }

    /// What to tell a client that has rows whose rest is not to be had: they come from the beginning, but not for ever.
    async fn interrupted(&mut self) -> End {
        self.interruptions += 1;
        if self.interruptions == ATTEMPTS_MAX {
            return End::Failed(Interrupted.into());
        }
        self.attend(sleep(ATTEMPT_EVERY)).await;
        End::schema()
    }

    /// Begins anew where the log does not hold this commit, or another one in its place.
    async fn check(&mut self, cursor: Cursor) -> Result<(), End> {
        let (shared, life) = (self.shared.clone(), self.life);
        let look = || {
            let shared = shared.clone();
            async move { shared.pages.refusal(life, cursor).await }
        };
        match self.with_database(look).await? {
            Some((reason, oldest)) => Err(End::Reset { reason: reason.into(), oldest: Some(oldest) }),
            None => Ok(()),
        }
    }

    /// Reads the log from `place` until the hub goes on from there, leaving out what the rows that `skip` tells of already hold.
    async fn catch_up(&mut self, mut place: Place, skip: Option<Join>, late: Late) -> Result<Joined, End> {
        // The commit that the client has a part of.
        let begun = self.last.filter(|last| place.serial.is_some() && last.position == place.whole());
        let mut encoder = Encoder::new(self.kind.clone(), self.last);
        if place.serial.is_some() {
            encoder.go_on();
        }
        let mut needs = Needs::default();
        loop {
            // Before the log is read: a commit published in between would be in neither.
            let joined = self.join()?;
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
            let outbox = self.outlet.outbox();
            let _turn = outbox.turn().await;
            while place < Place::after(until) {
                self.outlet.emptied().await;
                let (shared, known, life) = (self.shared.clone(), joined.head.cursor, self.life);
                // Before anything is read: what waits is to hold nothing. Room first, which takes as long as slow clients do.
                let room = self.permit(&shared.large, needs.room).await;
                let judge = self.permit(&shared.judging, u32::from(needs.judge)).await;
                let reading = self.permit(&shared.rejoining, u32::from(late == Late::Yes)).await;
                let read = || {
                    let shared = shared.clone();
                    async move { shared.pages.read(life, known, place, until).await }
                };
                let Some(page) = self.with_database(read).await? else { return Err(self.overtaken().await?) };
                drop(reading);
                let index = page.index(place).context("the page begins before the place, or there")?;
                let judging = if judge.is_some() { Judging::Beside } else { Judging::Here };
                // Nothing of it has to be left out: not what the rows hold, nor what the client has of a commit, nor what the hub brings.
                let is_whole = skip.is_none() && place.serial.is_none() && page.end() <= Place::after(until);
                let encoded = if is_whole {
                    let encoding = self.encode_shared(&encoder, &page, index, judging);
                    self.attend(encoding).await
                } else {
                    let up_to_until = page.parts[index..].iter().take_while(|part| part.cursor.position <= until);
                    let parts = index..index + up_to_until.count();
                    let is_another = |cursor: Cursor| {
                        begun.is_some_and(|begun| begun.position == cursor.position && begun != cursor)
                    };
                    if page.parts[parts.clone()].iter().any(|part| is_another(part.cursor)) {
                        return Err(End::Reset { reason: "nonce".into(), oldest: None });
                    }
                    let is_new = |part: &usize| !skip.as_ref().is_some_and(|rows| rows.hold(&page.parts[*part]));
                    let behind = parts.clone().last().map_or(place, |last| page.parts[last].place());
                    let encoding = encode(encoder.clone(), page.clone(), parts.filter(is_new).collect(), judging);
                    self.attend(encoding).await.map(|(after, out)| Encoded { after, out: vec![out], behind })
                };
                drop((judge, page));
                let encoded = match encoded {
                    // It is read again when there is a thread for it.
                    Err(Undecidable::TooHeavy) if !needs.judge => {
                        needs.judge = true;
                        continue;
                    }
                    encoded => encoded.map_err(undecidable)?,
                };
                let wanted = Needs::room(encoded.out.iter().map(Bytes::len).sum());
                let room = match room {
                    None if wanted > 0 => match shared.large.try_acquire_many(wanted) {
                        Ok(room) => Some(room),
                        // Or again when there is room: all who wait would hold it.
                        Err(_) => {
                            needs.room = wanted;
                            continue;
                        }
                    },
                    room => room,
                };
                (self.last, encoder, place) = (encoded.after.last, encoded.after, encoded.behind);
                self.outlet.send_all(encoded.out).await;
                if room.is_some() {
                    self.outlet.emptied().await;
                }
                needs.room = 0;
            }
        }
    }

    /// Encodes all of a page from a part on, sharing what it can with others of its kind.
    async fn encode_shared(
        &self,
        encoder: &Encoder,
        page: &Arc<SharedPage>,
        index: usize,
        judging: Judging,
    ) -> Result<Encoded, Undecidable> {
        let behind = page.end();
        let Some(frames) = page.frames(&self.kind, index, judging).await? else {
            let parts = (index..page.parts.len()).collect();
            let (after, out) = encode(encoder.clone(), page.clone(), parts, judging).await?;
            return Ok(Encoded { after, out: vec![out], behind });
        };
        let Some(first) = frames.first else { return Ok(Encoded { after: encoder.clone(), out: Vec::new(), behind }) };
        let (_, out) = encode(encoder.clone(), page.clone(), vec![first], judging).await?;
        Ok(Encoded { after: frames.after.clone(), out: vec![out, frames.rest.clone()], behind })
    }

    /// So many permits, none for 0.
    async fn permit<'a>(&self, from: &'a Semaphore, count: u32) -> Option<SemaphorePermit<'a>> {
        if count == 0 {
            return None;
        }
        // Nobody closes it.
        self.attend(from.acquire_many(count)).await.ok()
    }

    /// Follows the hub until that cannot go on, through the log where the hub no longer has what comes next.
    async fn follow(&mut self, mut joined: Joined) -> End {
        let mut place = Place::after(joined.head.cursor.position);
        let mut news = joined.topic.news();
        loop {
            news.mark_unchanged();
            match joined.topic.take(joined.next) {
                // An error says that the topic is gone; this subscription holds it.
                News::Nothing => drop(news.changed().await),
                News::Chunks { chunks, next, place: end, last } => {
                    if let Err(chunks) = self.outlet.try_send_all(chunks) {
                        Box::pin(self.outlet.send_all(chunks)).await;
                    }
                    (joined.next, place, self.last) = (next, end, Some(last));
                }
                News::Behind => match Box::pin(self.rejoin(place)).await {
                    Ok(again) => {
                        place = Place::after(again.head.cursor.position);
                        joined = again;
                        news = joined.topic.news();
                    }
                    Err(end) => return end,
                },
                News::Reset(reason) => return End::Reset { reason, oldest: None },
            }
        }
    }

    /// Catches up, and splices the chain of the hub onto what was sent.
    async fn rejoin(&mut self, place: Place) -> Result<Joined, End> {
        let joined = self.catch_up(place, None, Late::Yes).await?;
        if self.last != Some(joined.last) && self.kind.form == Form::Feed {
            self.send(protocol::position(self.last, joined.last)).await;
        }
        self.last = Some(joined.last);
        Ok(joined)
    }

    /// Waits until the hub knows where the log ends, and follows its positions from then on.
    async fn begin(&mut self) -> Cursor {
        loop {
            if let Some(head) = self.shared.hub.head() {
                self.life = head.life;
                return head.cursor;
            }
            self.wait_for_database().await;
        }
    }

    async fn begin_now(&mut self) -> Result<Joined, End> {
        self.begin().await;
        self.join()
    }

    /// A place at the end of the hub's history.
    fn join(&self) -> Result<Joined, End> {
        match self.shared.hub.join(&self.kind) {
            Ok(joined) if joined.head.life == self.life => Ok(joined),
            Ok(_) | Err(NoPlace::TooEarly) => Err(End::Reset { reason: self.shared.hub.reason(), oldest: None }),
            Err(NoPlace::Full) => {
                let most = self.shared.config.selections_max;
                Err(End::TooMany(format!(
                    "all subscribers together have {most} different selections, which is the most; select what others do, come back later, or let the operator raise --selections-max"
                )))
            }
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
        while !self.attend(arrived()).await {
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
    async fn wait_for_database(&self) {
        let mut database = self.shared.hub.database();
        let heartbeat = self.shared.config.heartbeat;
        let mut waited = false;
        while !*database.borrow_and_update() {
            waited = true;
            self.tell_status(false).await;
            // Either way the state is looked at again.
            let _ = Box::pin(timeout(heartbeat, database.changed())).await;
        }
        if waited {
            self.tell_status(true).await;
        }
    }

    async fn tell_status(&self, database_up: bool) {
        if self.kind.form == Form::Feed {
            self.send(protocol::status(database_up)).await;
        }
    }

    /// Does something that needs PostgreSQL, again where that fails while PostgreSQL comes and goes.
    async fn with_database<T, W>(&self, mut work: impl FnMut() -> W) -> Result<T, End>
    where
        W: Future<Output = anyhow::Result<T>>,
    {
        let mut attempt = 1;
        loop {
            match self.attend(work()).await {
                Ok(done) => return Ok(done),
                Err(error) if attempt == ATTEMPTS_MAX => return Err(error.into()),
                Err(error) => tracing::debug!("a subscription tries again: {error:#}"),
            }
            self.attend(sleep(ATTEMPT_EVERY)).await;
            if *self.shared.hub.database().borrow() {
                attempt += 1;
            } else {
                self.wait_for_database().await;
            }
        }
    }

    /// Waits for something, and shows the client meanwhile that the line is alive: nothing else does.
    async fn attend<T>(&self, something: impl Future<Output = T>) -> T {
        // On the heap: these are the rare waits, and an idle subscriber is to be small.
        let mut something = Box::pin(something);
        loop {
            if let Ok(done) = Box::pin(timeout(self.shared.config.heartbeat, &mut something)).await {
                return done;
            }
            let up = *self.shared.hub.database().borrow();
            self.tell_status(up).await;
        }
    }

    async fn send(&self, frames: Bytes) {
        self.outlet.send(frames).await;
    }
}

/// Whether a subscription reads the log because it fell behind the hub.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Late {
    No,
    Yes,
}

/// What a page of the log was found to need, by trying.
#[derive(Default)]
struct Needs {
    /// A thread to be judged on.
    judge: bool,
    /// So many permits of [`Shared::large`].
    room: u32,
}

impl Needs {
    fn room(bytes: usize) -> u32 {
        if bytes < LARGE_BYTES {
            return 0;
        }
        bytes.min(LARGE_BYTES_MAX).div_ceil(LARGE_BYTES) as u32
    }
}

/// What a page of the log became.
struct Encoded {
    /// The encoder that goes on behind it.
    after: Encoder,
    out: Vec<Bytes>,
    /// Where a reader stands that has it.
    behind: Place,
}

/// Writes some parts of a page for one subscription alone.
async fn encode(
    mut encoder: Encoder,
    page: Arc<SharedPage>,
    parts: Vec<usize>,
    judging: Judging,
) -> Result<(Encoder, Bytes), Undecidable> {
    let encoding = judging.run(move |budget| {
        let mut out = Vec::new();
        for part in parts.iter().map(|index| &page.parts[*index]) {
            encoder.encode(&part.open(), budget.meter(part), &mut out)?;
        }
        Ok((encoder, Bytes::from(out)))
    });
    encoding.await
}

/// Where a stream begins.
struct Start {
    place: Place,
    skip: Option<Join>,
    joined: Option<Joined>,
}
