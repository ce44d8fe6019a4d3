//! The hub: knows which kinds of subscription there are, encodes a commit once per kind, and never waits for a subscriber.
//!
//! A subscriber is a place in a history of frames that all of its kind share. The histories of all kinds together are bounded in
//! bytes; who falls out of it is told so, and reads the log like one who resumes. The hub knows neither PostgreSQL nor sockets.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use tokio::sync::watch;

use crate::change::{Cursor, Part, Place, Position};
use crate::config::WRITE_BYTES_MAX;
use crate::protocol::{self, Encoder, Form, Kind};

/// Where the feed brings commits and subscribers find them.
pub struct Hub {
    /// Taken before any history's lock, never while one is held.
    state: Mutex<State>,
    /// How far whole commits were published. Written with `state` locked, so that who joins finds both in step.
    head: watch::Sender<Option<Head>>,
    database_up: watch::Sender<bool>,
}

/// How far whole commits were published, and since when that goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// The newest commit.
    pub cursor: Cursor,
    /// Counts how often the positions did not go on: what was read in one life says nothing in the next.
    pub life: u64,
}

struct State {
    topics: HashMap<Kind, Arc<Topic>>,
    /// Every chunk in every history, oldest first: what to forget next.
    chunks: VecDeque<(Weak<Topic>, usize)>,
    bytes: usize,
    bytes_max: usize,
    /// Whether a commit is being published in parts.
    unfinished: bool,
    /// Why the positions did not go on when they last did not.
    reason: Arc<str>,
}

/// What subscriptions of one kind share.
pub struct Topic {
    history: Mutex<History>,
    /// The number that the next chunk will have.
    news: watch::Sender<u64>,
}

struct History {
    chunks: VecDeque<Chunk>,
    /// The number of the first chunk kept.
    first: u64,
    encoder: Encoder,
    /// The chain before the first frame, for those who join before there is one.
    began_at: Cursor,
    /// Where one stands who has sent all of it.
    end: Place,
    /// While a commit is published in parts: the number of its first chunk, and the chain before it.
    unfinished: Option<(u64, Cursor)>,
    /// Set when no frame of this history can be followed by another.
    reset: Option<Arc<str>>,
}

#[derive(Clone)]
struct Chunk {
    bytes: Bytes,
    /// Where one stands who has sent it.
    place: Place,
    /// The cursor of its last frame that has one.
    last: Cursor,
}

/// A subscriber's place in its kind's history, between two commits.
pub struct Joined {
    /// The history.
    pub topic: Arc<Topic>,
    /// The number of the next chunk to send.
    pub next: u64,
    /// Everything up to this commit lies before the place.
    pub head: Head,
    /// The chain at the place: the `prev` of the frame that will follow.
    pub last: Cursor,
}

/// What there is for a subscriber.
pub enum News {
    /// These bytes, then the subscriber stands here.
    Chunks {
        /// To be written in this order.
        chunks: Vec<Bytes>,
        /// The number of the next chunk.
        next: u64,
        /// How far the subscriber has then come.
        place: Place,
        /// The cursor of the last frame.
        last: Cursor,
    },
    /// Nothing yet.
    Nothing,
    /// What follows is no longer kept: read the log, then join again.
    Behind,
    /// The positions do not go on: begin anew, for this reason.
    Reset(Arc<str>),
}

impl Hub {
    /// A hub that keeps `history_bytes_max` bytes of frames.
    pub fn new(history_bytes_max: usize) -> Hub {
        let state = State {
            topics: HashMap::new(),
            chunks: VecDeque::new(),
            bytes: 0,
            bytes_max: history_bytes_max,
            unfinished: false,
            reason: "new".into(),
        };
        Hub { state: Mutex::new(state), head: watch::Sender::new(None), database_up: watch::Sender::new(false) }
    }

    /// How far whole commits were published; none before the feed knows where the log ends.
    pub fn head(&self) -> Option<Head> {
        *self.head.borrow()
    }

    /// Follows [`Hub::head`].
    pub fn heads(&self) -> watch::Receiver<Option<Head>> {
        self.head.subscribe()
    }

    /// Follows whether the feed has its PostgreSQL.
    pub fn database(&self) -> watch::Receiver<bool> {
        self.database_up.subscribe()
    }

    /// Begins at `head`: what comes before it is in the log only. Whoever follows something else gets `reason` and begins anew.
    pub fn begin_at(&self, cursor: Cursor, reason: &str) {
        let mut state = self.lock();
        state.unfinished = false;
        state.reason = reason.into();
        let State { topics, reason, .. } = &mut *state;
        for topic in topics.drain().map(|(_, topic)| topic) {
            topic.lock().reset = Some(reason.clone());
            topic.news.send_modify(|_| {});
        }
        self.head.send_modify(|head| *head = Some(Head { cursor, life: head.map_or(1, |head| head.life + 1) }));
    }

    /// Brings parts of commits, which follow what was brought before, to every kind that wants them.
    pub fn publish(&self, parts: &[Part]) {
        let mut state = self.lock();
        let State { topics, chunks, bytes, .. } = &mut *state;
        for topic in topics.values() {
            for size in topic.publish(parts) {
                chunks.push_back((Arc::downgrade(topic), size));
                *bytes += size;
            }
        }
        state.forget();
        state.unfinished = parts.last().map_or(state.unfinished, |part| !part.last);
        if let Some(whole) = parts.iter().rev().find(|part| part.last) {
            self.head.send_modify(|head| *head = head.map(|head| Head { cursor: whole.cursor, ..head }));
        }
    }

    /// Lets every subscriber know that the line is alive, and keeps resuming cheap for those who hear little. Forgets kinds that
    /// nobody follows.
    pub fn beat(&self) {
        let mut state = self.lock();
        let Some(head) = self.head() else { return };
        state.topics.retain(|_, topic| Arc::strong_count(topic) > 1);
        state.tell_all(Some(head.cursor.position), |history, out| {
            // Between the parts of a commit the chain is inside it; those frames show life themselves.
            if history.unfinished.is_none() {
                history.encoder.encode_position(head.cursor, out);
            }
        });
    }

    /// Says that the gateway lost or regained its PostgreSQL, where that is news.
    pub fn set_database(&self, up: bool) {
        if self.database_up.send_replace(up) == up {
            return;
        }
        let frame = protocol::status(up);
        let mut state = self.lock();
        let head = self.head().map(|head| head.cursor.position);
        state.tell_all(head, |history, out| {
            if history.encoder.form() == Form::Feed {
                out.extend_from_slice(&frame);
            }
        });
    }

    /// A place at the end of a kind's history, between two commits. `None` before the feed knows where the log ends.
    pub fn join(&self, kind: &Kind) -> Option<Joined> {
        let mut state = self.lock();
        let head = self.head()?;
        let unfinished = state.unfinished;
        let topic = state
            .topics
            .entry(kind.clone())
            .or_insert_with(|| Arc::new(Topic::new(kind, head.cursor, unfinished)))
            .clone();
        let (next, last) = topic.lock().join();
        Some(Joined { topic, next, head, last })
    }

    /// Why the last life of the positions ended: for those who followed it, and find themselves in the next.
    pub fn reason(&self) -> Arc<str> {
        self.lock().reason.clone()
    }

    /// How many bytes all histories hold, and how many kinds there are.
    pub fn size(&self) -> (usize, usize) {
        let state = self.lock();
        (state.bytes, state.topics.len())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Appends what `tell` writes to every history.
    fn tell_all(&mut self, head: Option<Position>, mut tell: impl FnMut(&mut History, &mut Vec<u8>)) {
        for topic in self.topics.values() {
            let mut history = topic.lock();
            let mut out = Vec::new();
            tell(&mut history, &mut out);
            // Between commits, who has all of a history has everything up to the head.
            let place = if history.unfinished.is_some() { history.end } else { head.map_or(history.end, Place::after) };
            if let Some(size) = history.push(out, place) {
                self.chunks.push_back((Arc::downgrade(topic), size));
                self.bytes += size;
            }
            // Also where there is nothing to send: subscribers look after their connections when they wake.
            topic.news.send_replace(history.next());
        }
        self.forget();
    }

    /// Keeps the bound. The newest chunk stays, however large: those who are up to date are to get it.
    fn forget(&mut self) {
        while self.bytes > self.bytes_max && self.chunks.len() > 1 {
            let Some((topic, size)) = self.chunks.pop_front() else { break };
            self.bytes -= size;
            if let Some(topic) = topic.upgrade() {
                topic.lock().forget_first();
            }
        }
    }
}

impl Topic {
    /// A kind that nobody followed before. Where a commit is being published in parts, those that went by count as forgotten: who joins
    /// in front of it has to read the log.
    fn new(kind: &Kind, head: Cursor, unfinished: bool) -> Topic {
        let history = History {
            chunks: VecDeque::new(),
            first: u64::from(unfinished),
            encoder: Encoder::new(kind.clone(), Some(head)),
            began_at: head,
            end: Place::after(head.position),
            unfinished: unfinished.then_some((0, head)),
            reset: None,
        };
        Topic { history: Mutex::new(history), news: watch::Sender::new(0) }
    }

    /// Follows the arrival of chunks.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// What follows chunk `next`, about [`WRITE_BYTES_MAX`] bytes at most.
    pub fn take(&self, next: u64) -> News {
        self.lock().take(next)
    }

    fn publish(&self, parts: &[Part]) -> Vec<usize> {
        let mut history = self.lock();
        let sizes = history.publish(parts);
        if !sizes.is_empty() {
            self.news.send_replace(history.next());
        }
        sizes
    }

    fn lock(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl History {
    fn next(&self) -> u64 {
        self.first + self.chunks.len() as u64
    }

    fn last(&self) -> Cursor {
        self.encoder.last.unwrap_or(self.began_at)
    }

    /// Encodes parts into chunks of about [`WRITE_BYTES_MAX`]; returns their sizes. Chunks end where an unfinished commit begins and
    /// where it ends, so that one can join in front of it.
    fn publish(&mut self, parts: &[Part]) -> Vec<usize> {
        let mut sizes = Vec::new();
        let mut out = Vec::new();
        let mut place = self.end;
        for part in parts {
            if part.first && !part.last {
                sizes.extend(self.push(std::mem::take(&mut out), place));
                self.unfinished = Some((self.next(), self.last()));
            }
            let before = out.len();
            self.encoder.encode(part, &mut out);
            if out.len() > before {
                place = part.place();
            }
            if out.len() >= WRITE_BYTES_MAX || !part.last {
                sizes.extend(self.push(std::mem::take(&mut out), place));
            }
            if part.last && self.unfinished.take().is_some() {
                sizes.extend(self.push(std::mem::take(&mut out), place));
            }
        }
        sizes.extend(self.push(out, place));
        sizes
    }

    fn push(&mut self, bytes: Vec<u8>, place: Place) -> Option<usize> {
        self.end = place;
        if bytes.is_empty() {
            return None;
        }
        let bytes = Bytes::from(bytes.into_boxed_slice());
        let size = bytes.len();
        let last = self.last();
        self.chunks.push_back(Chunk { bytes, place, last });
        Some(size)
    }

    fn forget_first(&mut self) {
        if self.chunks.pop_front().is_some() {
            self.first += 1;
        }
    }

    fn join(&self) -> (u64, Cursor) {
        self.unfinished.unwrap_or((self.next(), self.last()))
    }

    fn take(&self, next: u64) -> News {
        if let Some(reason) = &self.reset {
            return News::Reset(reason.clone());
        }
        if next < self.first {
            return News::Behind;
        }
        let mut bytes = 0;
        let mut waiting = self.chunks.iter().skip((next - self.first) as usize).peekable();
        let Some(mut end) = waiting.peek().copied() else { return News::Nothing };
        let mut chunks = Vec::new();
        for chunk in waiting {
            if !chunks.is_empty() && bytes + chunk.bytes.len() > WRITE_BYTES_MAX {
                break;
            }
            bytes += chunk.bytes.len();
            chunks.push(chunk.bytes.clone());
            end = chunk;
        }
        News::Chunks { next: next + chunks.len() as u64, place: end.place, last: end.last, chunks }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::change::{Change, Op, Table, TableName};
    use crate::protocol::Selection;

    fn cursor(position: Position) -> Cursor {
        Cursor { epoch: "test".parse().expect("an epoch"), position, nonce: 0 }
    }

    fn part(position: Position, table: &str, serials: &[i64], first: bool, last: bool) -> Part {
        let name = TableName::new("public", table);
        let table = Arc::new(Table { watch: 1, name, key: None, partitioned: false, active: true });
        let change = |serial: &i64| Change::new(*serial, table.clone(), Op::Truncate, None, None);
        Part {
            cursor: cursor(position),
            tx: 1,
            at: String::new(),
            changes: serials.iter().map(change).collect(),
            end: serials[serials.len() - 1],
            first,
            last,
        }
    }

    fn whole(position: Position, table: &str) -> Part {
        part(position, table, &[position], true, true)
    }

    fn kind(table: &str) -> Kind {
        let tables = BTreeSet::from([TableName::new("public", table)]);
        Kind { selection: Selection { tables: Some(tables) }, form: Form::Feed }
    }

    fn hub(bytes_max: usize) -> Hub {
        let hub = Hub::new(bytes_max);
        hub.begin_at(cursor(0), "new");
        hub
    }

    fn taken(joined: &mut Joined) -> Vec<serde_json::Value> {
        let mut frames = Vec::new();
        while let News::Chunks { chunks, next, .. } = joined.topic.take(joined.next) {
            joined.next = next;
            let bytes = chunks.concat();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (header, length) = match rest[1] {
                    126 => (4, u16::from_be_bytes([rest[2], rest[3]]) as usize),
                    length => (2, length as usize),
                };
                frames.push(serde_json::from_slice(&rest[header..header + length]).expect("JSON"));
                rest = &rest[header + length..];
            }
        }
        frames
    }

    fn chain(frames: &[serde_json::Value]) -> Vec<(String, String)> {
        let text = |value: &serde_json::Value| value.as_str().unwrap_or("-").trim_start_matches("test.").to_owned();
        frames.iter().map(|frame| (text(&frame["prev"]), text(&frame["cursor"]))).collect()
    }

    #[test]
    fn a_subscriber_gets_what_its_kind_selects_in_one_chain() {
        let hub = hub(1 << 20);
        let mut a = hub.join(&kind("a")).expect("a head");

        hub.publish(&[whole(1, "a"), whole(2, "b")]);
        hub.publish(&[whole(3, "a")]);
        hub.publish(&[whole(4, "b")]);
        hub.beat();

        let chained = chain(&taken(&mut a));
        assert_eq!(
            chained,
            [("0.0000", "1.0000"), ("1.0000", "3.0000"), ("3.0000", "4.0000")].map(|(a, b)| (a.into(), b.into()))
        );
    }

    #[test]
    fn joining_during_a_commit_in_parts_is_joining_in_front_of_it() {
        let hub = hub(1 << 20);
        let mut early = hub.join(&kind("a")).expect("a head");
        hub.publish(&[whole(1, "a"), part(2, "a", &[2], true, false)]);

        let mut late = hub.join(&kind("a")).expect("a head");
        hub.publish(&[part(2, "b", &[3], false, true), whole(3, "a")]);

        assert_eq!(late.head.cursor, cursor(1));
        assert_eq!(late.last, cursor(1));
        let (early, late) = (taken(&mut early), taken(&mut late));
        assert_eq!(early[1..], late[..]);
        assert_eq!(late[0]["more"], true);
        assert_eq!(late[1]["more"], serde_json::Value::Null);
        assert_eq!(
            late[1]["changes"],
            serde_json::json!([]),
            "the last part is owed, though nothing in it was selected"
        );
        assert_eq!(chain(&late)[2], ("2.0000".into(), "3.0000".into()));
    }

    #[test]
    fn the_first_of_its_kind_to_join_during_a_commit_in_parts_is_sent_to_the_log() {
        let hub = hub(1 << 20);
        hub.publish(&[whole(1, "a"), part(2, "a", &[2], true, false)]);

        let late = hub.join(&kind("a")).expect("a head");
        hub.publish(&[part(2, "a", &[3], false, true)]);

        assert_eq!(late.head.cursor, cursor(1));
        assert!(matches!(late.topic.take(late.next), News::Behind), "half a commit would look like a whole one");
        let mut next = hub.join(&kind("a")).expect("a head");
        hub.publish(&[whole(3, "a")]);
        assert_eq!(chain(&taken(&mut next)), [("2.0000".to_owned(), "3.0000".to_owned())]);
    }

    #[test]
    fn one_who_falls_out_of_the_history_is_told_so() {
        let hub = hub(500);
        let mut slow = hub.join(&kind("a")).expect("a head");
        for position in 1..20 {
            hub.publish(&[whole(position, "a")]);
        }

        assert!(matches!(slow.topic.take(slow.next), News::Behind));
        assert!(hub.size().0 <= 500);
        slow.next = hub.join(&kind("a")).expect("a head").next;
        assert!(matches!(slow.topic.take(slow.next), News::Nothing));
    }

    #[test]
    fn the_newest_chunk_is_kept_however_large() {
        let hub = hub(10);
        let mut a = hub.join(&kind("a")).expect("a head");

        hub.publish(&[whole(1, "a")]);

        assert_eq!(taken(&mut a).len(), 1);
    }

    #[test]
    fn a_busy_kind_does_not_push_out_one_that_is_up_to_date() {
        let hub = hub(500);
        let mut quiet = hub.join(&kind("quiet")).expect("a head");
        let _busy = hub.join(&kind("busy")).expect("a head");
        hub.publish(&[whole(1, "quiet")]);
        taken(&mut quiet);
        for position in 2..50 {
            hub.publish(&[whole(position, "busy")]);
        }

        hub.publish(&[whole(50, "quiet")]);

        assert_eq!(chain(&taken(&mut quiet)), [("1.0000".to_owned(), "50.0000".to_owned())]);
    }

    #[test]
    fn a_kind_that_nobody_follows_is_forgotten() {
        let hub = hub(1 << 20);
        drop(hub.join(&kind("a")));

        hub.beat();

        assert_eq!(hub.size().1, 0);
    }

    #[test]
    fn a_reset_reaches_everybody() {
        let hub = hub(1 << 20);
        let a = hub.join(&kind("a")).expect("a head");

        hub.begin_at(cursor(7), "another epoch");

        assert!(matches!(a.topic.take(a.next), News::Reset(reason) if &*reason == "another epoch"));
        assert_eq!(hub.join(&kind("a")).expect("a head").last, cursor(7));
    }
}
