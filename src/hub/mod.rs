//! The hub: knows which kinds of subscription there are, encodes a commit once per kind, and never waits for a subscriber.
//!
//! A subscriber is a place in a history of frames that all of its kind share. The histories of all kinds together are bounded in
//! bytes; who falls out of it is told so, and reads the log like one who resumes. The hub knows neither PostgreSQL nor sockets.

mod history;
mod routes;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::watch;

use crate::change::{Cursor, Opened, Part, Position};
use crate::config::{PUBLISH_STEPS_MAX, TOPIC_STEPS_MAX};
use crate::filter::{Meter, Undecidable};
use crate::protocol::{self, Form, Kind};
use crate::table::Tables;
use history::{Judged, Told};
pub use history::{News, Topic};
use routes::{Asked, Found, Routes, TopicId, Wish};

/// Why subscriptions begin anew whose tables were altered.
pub const SCHEMA: &str = "schema";

/// Where the feed brings commits and subscribers find them.
pub struct Hub {
    /// Taken before any history's lock, never while one is held.
    state: Mutex<State>,
    /// How far whole commits were published. Written with `state` locked, so that who joins finds both in step.
    head: watch::Sender<Option<Head>>,
    database_up: watch::Sender<bool>,
}

/// What the hub may take of memory and time.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// How many bytes of frames it keeps, with what surrounds them.
    pub history_bytes_max: usize,
    /// How many kinds there may be.
    pub kinds_max: usize,
    /// In how many steps the parts that are published together may be judged for one kind.
    pub topic_steps_max: u64,
    /// And for all kinds.
    pub publish_steps_max: u64,
}

impl Bounds {
    /// The usual ones for a history of so many bytes.
    pub fn new(history_bytes_max: usize) -> Bounds {
        Bounds {
            history_bytes_max,
            kinds_max: usize::MAX,
            topic_steps_max: TOPIC_STEPS_MAX,
            publish_steps_max: PUBLISH_STEPS_MAX,
        }
    }
}

/// Why there is no place in the hub.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoPlace {
    /// The feed does not know yet where the log ends.
    TooEarly,
    /// There are as many kinds as there may be.
    Full,
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
    topics: HashMap<TopicId, Arc<Topic>>,
    /// The topic of each kind.
    kinds: HashMap<Kind, TopicId>,
    routes: Routes,
    next_topic: TopicId,
    /// The topics that may have got a part of the commit that is being published, and are owed its last.
    owed: HashSet<TopicId>,
    /// Every chunk in every history, oldest first: what to forget next.
    chunks: VecDeque<(Weak<Topic>, usize)>,
    bytes: usize,
    bounds: Bounds,
    /// While parts are judged: the topics that came meanwhile.
    came: Option<Vec<TopicId>>,
    /// Whether a commit is being published in parts.
    unfinished: bool,
    /// Why the positions did not go on when they last did not.
    reason: Arc<str>,
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

impl Hub {
    /// A hub with the usual bounds that keeps `history_bytes_max` bytes of frames.
    pub fn new(history_bytes_max: usize) -> Hub {
        Hub::bounded(Bounds::new(history_bytes_max))
    }

    /// A hub with these bounds.
    pub fn bounded(bounds: Bounds) -> Hub {
        let state = State {
            topics: HashMap::new(),
            kinds: HashMap::new(),
            routes: Routes::default(),
            next_topic: 0,
            owed: HashSet::new(),
            chunks: VecDeque::new(),
            bytes: 0,
            bounds,
            came: None,
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
        let reason = state.reason.clone();
        for topic in state.topics.keys().copied().collect::<Vec<_>>() {
            state.reset(topic, &reason);
        }
        self.head.send_modify(|head| *head = Some(Head { cursor, life: head.map_or(1, |head| head.life + 1) }));
    }

    /// Says what the tables are now. Who follows one that was altered, renamed or dropped gets a reset, and selects anew; that a table
    /// got another column is no reason. (Who follows whatever there is did not select: what the log says of a table is enough for them.)
    pub fn hold(&self, tables: &Tables) {
        let mut state = self.lock();
        let holds = |kind: &Kind| match kind.form {
            Form::SwitchStatus => true,
            Form::Feed => kind.selection.holds(tables),
        };
        let altered = state.topics.iter().filter(|(_, topic)| !holds(&topic.kind));
        for topic in altered.map(|(topic, _)| *topic).collect::<Vec<_>>() {
            state.reset(topic, &SCHEMA.into());
        }
    }

    /// Brings parts of commits, which follow what was brought before, to every kind that wants them. For the feed alone.
    ///
    /// Judging takes no lock, and a bounded number of steps: first for those whose filters weigh least for each of their followers. Writing
    /// takes a bounded number of bytes. Kinds beyond these bounds are left out: who follows them reads these parts in the log, each in its own time.
    pub fn publish(&self, parts: &[Part]) {
        let opened: Vec<Opened<'_>> = parts.iter().map(Part::open).collect();
        let (bounds, found, asked) = self.lock().sort(&opened);
        let judgements = judge(&bounds, &found, &asked);
        let mut state = self.lock();
        let whole = parts.iter().rev().find(|part| part.last).map(|part| part.cursor);
        let Some(head) = whole.or(self.head().map(|head| head.cursor)) else { return };
        state.unfinished = parts.last().map_or(state.unfinished, |part| !part.last);
        let mut written = 0;
        for (Asked { id, topic, .. }, judged) in judgements {
            let full = written > bounds.history_bytes_max / 2;
            let published = match judged {
                Ok(parts) if full && parts.iter().any(|(_, chosen)| !chosen.is_empty()) => Err(Undecidable::TooHeavy),
                Ok(parts) => topic.publish(&parts),
                Err(undecidable) => Err(undecidable),
            };
            match published {
                Ok(sizes) => {
                    written += sizes.iter().sum::<usize>();
                    sizes.into_iter().for_each(|size| state.keep(topic, size));
                    // What those before it got may be forgotten already: else all of them together would be beyond the bound.
                    state.forget();
                }
                Err(Undecidable::TooHeavy) => state.leave_out(*id, topic, head),
                Err(undecidable) => {
                    tracing::debug!("subscriptions begin anew: {undecidable}");
                    state.reset(*id, &SCHEMA.into());
                }
            }
        }
        for id in state.came.take().unwrap_or_default() {
            // It may want some of these parts, and nobody looked.
            if let Some(topic) = state.topics.get(&id).cloned() {
                state.leave_out(id, &topic, head);
            }
        }
        if let Some(cursor) = whole {
            self.head.send_modify(|head| *head = head.map(|head| Head { cursor, ..head }));
        }
    }

    /// Lets every subscriber know that the line is alive, and keeps resuming cheap for those who hear little. Forgets kinds that
    /// nobody follows.
    pub fn beat(&self) {
        let mut state = self.lock();
        let Some(head) = self.head() else { return };
        state.sweep();
        state.tell_all(Some(head.cursor.position), |told, out| {
            // Between the parts of a commit the chain is inside it; those frames show life themselves.
            if told.between_commits {
                told.encoder.encode_position(head.cursor, out);
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
        state.tell_all(head, |told, out| {
            if told.encoder.form() == Form::Feed {
                out.extend_from_slice(&frame);
            }
        });
    }

    /// A place at the end of a kind's history, between two commits.
    pub fn join(&self, kind: &Kind) -> Result<Joined, NoPlace> {
        let mut state = self.lock();
        let head = self.head().ok_or(NoPlace::TooEarly)?;
        let topic = state.topic(kind, head.cursor).ok_or(NoPlace::Full)?;
        let (next, last) = topic.join();
        Ok(Joined { topic, next, head, last })
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
    /// The topic of this kind, a new one where nobody followed it and there is room.
    fn topic(&mut self, kind: &Kind, head: Cursor) -> Option<Arc<Topic>> {
        if let Some(topic) = self.kinds.get(kind).and_then(|id| self.topics.get(id)) {
            return Some(topic.clone());
        }
        if self.topics.len() >= self.bounds.kinds_max {
            self.sweep();
        }
        if self.topics.len() >= self.bounds.kinds_max {
            return None;
        }
        let topic = Arc::new(Topic::new(kind, head, self.unfinished));
        let id = self.next_topic;
        self.next_topic += 1;
        self.routes.add(&topic, id);
        if self.unfinished {
            self.owed.insert(id);
        }
        self.kinds.insert(kind.clone(), id);
        self.topics.insert(id, topic.clone());
        if let Some(came) = &mut self.came {
            came.push(id);
        }
        Some(topic)
    }

    /// Forgets kinds that nobody follows.
    fn sweep(&mut self) {
        let left = self.topics.iter().filter(|(_, topic)| Arc::strong_count(topic) == 1);
        for topic in left.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.remove(topic);
        }
    }

    fn remove(&mut self, id: TopicId) -> Option<Arc<Topic>> {
        let topic = self.topics.remove(&id)?;
        self.kinds.remove(&topic.kind);
        self.routes.remove(&topic.kind, id);
        self.owed.remove(&id);
        Some(topic)
    }

    /// Tells those who follow the topic that nothing follows. Who comes next begins a new one.
    fn reset(&mut self, id: TopicId, reason: &Arc<str>) {
        if let Some(topic) = self.remove(id) {
            topic.reset(reason);
        }
    }

    /// Which topics may want which parts, those first that weigh least for each of their followers. From here on those that come are
    /// noted, until the parts are written.
    fn sort<'p>(&mut self, parts: &'p [Opened<'p>]) -> (Bounds, Found<'p>, Vec<Asked>) {
        let are_whole = self.owed.is_empty() && parts.iter().all(|part| part.part.first && part.part.last);
        let mut found = self.routes.find(parts, are_whole);
        // Those that got a part of the commit before get its others.
        let ends = parts.iter().position(|part| part.part.last).unwrap_or(parts.len().saturating_sub(1));
        for topic in self.owed.drain() {
            (0..=ends).filter(|part| *part < parts.len()).for_each(|part| found.owe(topic, part));
        }
        if let Some(last) = parts.len().checked_sub(1).filter(|last| !parts[*last].part.last) {
            let begins = parts.iter().rposition(|part| part.part.last).map_or(0, |whole| whole + 1);
            let wanting = found.several.iter().filter(|(_, several)| found.wants_any(several, begins..=last));
            self.owed = wanting.map(|(topic, _)| *topic).collect();
        }
        let mut asked = std::mem::take(&mut found.only);
        for (id, several) in found.several.drain() {
            let topic = self.topics.get(&id).cloned();
            asked.extend(topic.map(|topic| Asked { id, topic, wish: Wish::Several(several) }));
        }
        // One that many share is worth more of the time.
        asked.sort_by_cached_key(|Asked { topic, .. }| topic.weight * 1024 / Arc::strong_count(topic) as u64);
        self.came = Some(Vec::new());
        (self.bounds, found, asked)
    }

    /// Leaves the parts out that were published last, up to `head`.
    fn leave_out(&mut self, id: TopicId, topic: &Arc<Topic>, head: Cursor) {
        if self.unfinished {
            self.owed.insert(id);
        }
        let size = topic.leave_out(head, self.unfinished);
        self.keep(topic, size);
        self.forget();
    }

    /// Appends what `tell` writes to every history.
    fn tell_all(&mut self, head: Option<Position>, mut tell: impl FnMut(&mut Told<'_>, &mut Vec<u8>)) {
        for topic in self.topics.values() {
            if let Some(size) = topic.tell(head, &mut tell) {
                self.chunks.push_back((Arc::downgrade(topic), size));
                self.bytes += size;
            }
        }
        self.forget();
    }

    fn keep(&mut self, topic: &Arc<Topic>, size: usize) {
        self.chunks.push_back((Arc::downgrade(topic), size));
        self.bytes += size;
    }

    /// Keeps the bound. The newest chunk stays, however large: those who are up to date are to get it.
    fn forget(&mut self) {
        while self.bytes > self.bounds.history_bytes_max && self.chunks.len() > 1 {
            let Some((topic, size)) = self.chunks.pop_front() else { break };
            self.bytes -= size;
            if let Some(topic) = topic.upgrade() {
                topic.forget_first();
            }
        }
    }
}

/// What a topic wants of the parts, or why that cannot be said.
type Judgement<'p, 't> = (&'t Asked, Result<Vec<Judged<'p, 't>>, Undecidable>);

/// What the topics want of the parts, as far as that can be said within the bounds. Nothing of those that want nothing, which is most of
/// them if there are many: they are not to cost an allocation each.
fn judge<'p, 't>(bounds: &Bounds, found: &Found<'p>, asked: &'t [Asked]) -> Vec<Judgement<'p, 't>> {
    let mut left = bounds.publish_steps_max;
    let of_tables = found.of_tables();
    let mut judgements = Vec::new();
    for asked in asked {
        if left == 0 {
            judgements.push((asked, Err(Undecidable::TooHeavy)));
            continue;
        }
        let steps_max = left.min(bounds.topic_steps_max);
        let mut meter = Meter::new(steps_max);
        let kind = &asked.topic.kind;
        // Only the feed knows before it writes whether there is anything.
        let is_owed = !found.are_whole || kind.form != Form::Feed;
        let judged = match &asked.wish {
            Wish::Only(number) => choose(kind, &of_tables[*number], is_owed, &mut meter),
            Wish::Several(several) => choose(kind, &found.parts(several), is_owed, &mut meter),
        };
        left -= steps_max - meter.left();
        if matches!(judged, Err(Undecidable::TooHeavy)) && steps_max < bounds.topic_steps_max {
            // Those behind it are no lighter.
            left = 0;
        }
        if !judged.as_ref().is_ok_and(Vec::is_empty) {
            judgements.push((asked, judged));
        }
    }
    judgements
}

/// What a kind wants of these parts, without those of which it wants nothing unless they are owed.
fn choose<'p, 't>(
    kind: &'t Kind,
    parts: &[&'p Opened<'p>],
    is_owed: bool,
    meter: &mut Meter<'_>,
) -> Result<Vec<Judged<'p, 't>>, Undecidable> {
    let mut judged = Vec::new();
    for part in parts {
        let chosen = kind.choose(part, meter)?;
        if is_owed || !chosen.is_empty() {
            judged.push((*part, chosen));
        }
    }
    Ok(judged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Change, Op, Table, TableName};
    use crate::filter;
    use crate::selection::{Draft, Wish};
    use crate::table::Watched;

    fn cursor(position: Position) -> Cursor {
        Cursor { epoch: "test".parse().expect("an epoch"), position, nonce: 0 }
    }

    fn part(position: Position, table: &str, serials: &[i64], first: bool, last: bool) -> Part {
        let table = watched(table).table.clone();
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

    fn watched(name: &str) -> Arc<Watched> {
        let watch = ["a", "b", "quiet", "busy"].iter().position(|other| *other == name).expect("one of these") as i32;
        let name = TableName::new("public", name);
        let table = Arc::new(Table { watch, name, key: None, partitioned: false, active: true });
        let column = serde_json::json!([{
            "name": "id", "declared_type": 23, "domain": false, "modifier": -1, "base": "int4", "type_name": "integer",
            "is_enum": false, "labels": null, "collation": 0, "collation_of": null, "database": null, "encoding": "UTF8"
        }]);
        let columns = filter::columns(&column.to_string()).expect("columns");
        Arc::new(Watched::new(table, columns))
    }

    fn kind(table: &str) -> Kind {
        filtered(table, None)
    }

    fn filtered(table: &str, filter: Option<&str>) -> Kind {
        let filter = filter.map(|filter| filter::parse(filter).expect("a filter"));
        let tables = Tables::from([(watched(table).table.watch, watched(table))]);
        let wish = Wish { tables: Some(&[crate::names::Typed::new(table)]), filter: filter.as_ref(), columns: None };
        let selection = Draft::new(wish, &tables).and_then(|draft| draft.bind(vec![None])).expect("a watched table");
        Kind { selection, form: Form::Feed }
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
    fn those_who_want_certain_values_hear_of_a_truncate_too_and_leave_no_trace() {
        let hub = hub(1 << 20);
        for filter in ["id.eq.7", "id.in.(1,2,3)", "id.in.()", "and(id.eq.1,id.gt.0)"] {
            let mut joined = hub.join(&filtered("a", Some(filter))).expect("a head");
            let position = hub.head().expect("a head").cursor.position + 1;

            hub.publish(&[whole(position, "a")]);

            assert_eq!(taken(&mut joined).len(), 1, "{filter}");
        }
        hub.beat();

        assert_eq!(hub.size().1, 0);
        assert!(hub.lock().routes.is_empty());
    }

    #[test]
    fn a_row_without_the_column_that_is_asked_for_is_a_reset_for_those_who_ask() {
        let hub = hub(1 << 20);
        let asking = hub.join(&filtered("a", Some("id.eq.7"))).expect("a head");
        let mut all = hub.join(&kind("a")).expect("a head");
        let row = serde_json::value::RawValue::from_string(r#"{"number":7}"#.to_owned()).expect("JSON");
        let change = Change::new(1, watched("a").table.clone(), Op::Insert, None, Some(row));

        hub.publish(&[Part { changes: vec![change], ..whole(1, "a") }]);

        assert!(matches!(asking.topic.take(asking.next), News::Reset(reason) if &*reason == SCHEMA));
        assert_eq!(taken(&mut all).len(), 1);
    }

    #[test]
    fn who_follows_a_table_that_was_altered_is_reset_and_nobody_else() {
        let hub = hub(1 << 20);
        let tables =
            |names: &[&str]| names.iter().map(|name| (watched(name).table.watch, watched(name))).collect::<Tables>();
        hub.hold(&tables(&["a", "b"]));
        let (a, b) = (hub.join(&kind("a")).expect("a head"), hub.join(&kind("b")).expect("a head"));

        hub.hold(&tables(&["a", "b", "quiet"]));
        let more = matches!(a.topic.take(a.next), News::Nothing);
        hub.hold(&tables(&["b", "quiet"]));

        assert!(more, "another table is no reason");
        assert!(matches!(a.topic.take(a.next), News::Reset(_)));
        assert!(matches!(b.topic.take(b.next), News::Nothing));
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
