//! Properties of the parts that need no PostgreSQL: whatever happens in whatever order, what they promise holds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::Value;
use serde_json::value::RawValue;
use switchboard::change::{Change, Cursor, Op, Part, Place, Position, Table, TableName};
use switchboard::config::{Hosts, Origins};
use switchboard::filter::{self, Meter};
use switchboard::hub::{Bounds, Hub, Joined, News};
use switchboard::log::Visible;
use switchboard::names::quoted;
use switchboard::protocol::{Encoder, Form, Kind, Message, Request};
use switchboard::selection::{Draft, Selection};
use switchboard::table::{Tables, Watched};

use crate::harness::raw::measure;

/// A commit as the log has it: for each change its table; serials count on from 1.
#[derive(Clone, Debug)]
struct Commit {
    cursor: Cursor,
    tables: Vec<usize>,
}

impl Commit {
    /// The changes from `begin` up to `end` as a part.
    fn part(&self, begin: usize, end: usize) -> Part {
        let change = |index: usize| {
            let table = watched(self.tables[index]).table.clone();
            let row = RawValue::from_string(format!(r#"{{"n":{index},"filler":"{:100}"}}"#, "")).unwrap();
            Change::new(index as i64 + 1, table, Op::Insert, None, Some(row))
        };
        Part {
            cursor: self.cursor,
            tx: self.cursor.position as u64,
            at: String::new(),
            changes: (begin..end).map(change).collect(),
            end: end as i64,
            first: begin == 0,
            last: end == self.tables.len(),
        }
    }

    /// What a subscription gets of it.
    fn selected(&self, wanted: &Wanted) -> Vec<usize> {
        let takes = |index: &usize| {
            wanted.tables.contains(&self.tables[*index]) && wanted.rows.as_ref().is_none_or(|rows| rows.contains(index))
        };
        (0..self.tables.len()).filter(takes).collect()
    }
}

/// What a subscriber asks for: tables, and perhaps those rows of them whose "n" is one of these.
#[derive(Clone, Debug)]
struct Wanted {
    tables: BTreeSet<usize>,
    rows: Option<BTreeSet<usize>>,
}

impl Wanted {
    fn kind(&self) -> Kind {
        let numbers = |numbers: &BTreeSet<usize>| numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let tables = self.tables.iter().map(|table| format!("t{table}")).collect::<Vec<_>>().join(",");
        let rows = self.rows.as_ref().map(|rows| format!("&where=n.in.({})", numbers(rows))).unwrap_or_default();
        let request = Request::parse(&format!("table={tables}{rows}")).unwrap();
        let known: Tables = (0..3).map(|table| (table as i32, Arc::new(watched(table)))).collect();
        let draft = Draft::new(request.wish(), &known).unwrap();
        assert!(draft.questions().unwrap().iter().all(Option::is_none), "integers need no PostgreSQL");
        Kind { selection: draft.bind(vec![None; self.tables.len()]).unwrap(), form: Form::Feed }
    }
}

fn watched(table: usize) -> Watched {
    let name = TableName::new("public", format!("t{table}"));
    let table = Table { watch: table as i32, name, key: None, partitioned: false, active: true };
    let column = serde_json::json!([{
        "name": "n", "declared_type": 23, "domain": false, "modifier": -1, "base": "int4", "type_name": "integer",
        "is_enum": false, "labels": null, "collation": 0, "collation_of": null, "database": null, "encoding": "UTF8"
    }]);
    let columns = filter::columns(&column.to_string()).unwrap();
    Watched::new(Arc::new(table), columns)
}

/// What may happen around a hub.
#[derive(Clone, Debug)]
enum Event {
    /// These commits come; the last one perhaps with only so many of its changes at first.
    Publish {
        commits: Vec<Vec<usize>>,
        whole: bool,
    },
    /// The rest of a commit that was begun, or a bit of it.
    Continue {
        whole: bool,
    },
    Beat,
    Database(bool),
    /// The positions do not go on.
    BeginAnew,
    /// Somebody comes, who follows this.
    Come(Wanted),
    /// One of them takes what there is, at most so often.
    Take {
        who: usize,
        times: usize,
    },
    /// One of them goes.
    Leave(usize),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let commit = prop::collection::vec(0..3_usize, 1..6);
    let event = prop_oneof![
        4 => (prop::collection::vec(commit, 1..4), any::<bool>())
            .prop_map(|(commits, whole)| Event::Publish { commits, whole }),
        3 => any::<bool>().prop_map(|whole| Event::Continue { whole }),
        1 => Just(Event::Beat),
        1 => any::<bool>().prop_map(Event::Database),
        1 => Just(Event::BeginAnew),
        2 => (prop::collection::btree_set(0..3_usize, 1..3), prop::option::of(prop::collection::btree_set(0..5_usize, 0..3)))
            .prop_map(|(tables, rows)| Event::Come(Wanted { tables, rows })),
        6 => (0..4_usize, 1..4_usize).prop_map(|(who, times)| Event::Take { who, times }),
        1 => (0..4_usize).prop_map(Event::Leave),
    ];
    prop::collection::vec(event, 1..80)
}

/// A hub, the log behind it, and those who follow.
struct World {
    hub: Hub,
    bytes_max: usize,
    /// The most that one publishing made.
    largest: usize,
    /// The commits of this life; position 1 first.
    log: Vec<Commit>,
    /// How many changes of the last commit were published.
    begun: Option<usize>,
    base: Cursor,
    life: u32,
    subscribers: Vec<Subscriber>,
}

impl World {
    fn new(bytes_max: usize, steps_max: u64) -> World {
        let mut world = World {
            hub: Hub::bounded(Bounds {
                topic_steps_max: steps_max,
                publish_steps_max: steps_max * 2,
                ..Bounds::new(bytes_max)
            }),
            bytes_max,
            largest: 0,
            log: Vec::new(),
            begun: None,
            base: cursor(0, 0),
            life: 0,
            subscribers: Vec::new(),
        };
        world.begin_anew();
        world
    }

    fn begin_anew(&mut self) {
        self.life += 1;
        (self.log, self.begun, self.base) = (Vec::new(), None, cursor(0, self.life));
        self.hub.begin_at(self.base, "test");
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Publish { commits, whole } => {
                let mut parts = self.rest();
                let count = commits.len();
                for (index, tables) in commits.into_iter().enumerate() {
                    let commit = Commit { cursor: cursor(self.log.len() as i64 + 1, self.life), tables };
                    let size = commit.tables.len();
                    if index + 1 == count && !whole && size > 1 {
                        parts.push(commit.part(0, 1));
                        self.begun = Some(1);
                    } else {
                        parts.push(commit.part(0, size));
                    }
                    self.log.push(commit);
                }
                self.publish(&parts);
            }
            Event::Continue { whole: true } => {
                let parts = self.rest();
                self.publish(&parts);
            }
            Event::Continue { whole: false } => {
                let Some(from) = self.begun else { return };
                let commit = self.log.last().unwrap();
                let part = commit.part(from, from + 1);
                self.begun = Some(from + 1).filter(|_| !part.last);
                self.publish(&[part]);
            }
            Event::Beat => self.hub.beat(),
            Event::Database(up) => self.hub.set_database(up),
            Event::BeginAnew => self.begin_anew(),
            Event::Come(tables) => {
                let subscriber = Subscriber::new(tables, self);
                self.subscribers.push(subscriber);
            }
            Event::Take { who, times } => {
                for _ in 0..times {
                    self.serve(who);
                }
            }
            Event::Leave(who) => {
                if who < self.subscribers.len() {
                    self.subscribers.remove(who);
                }
            }
        }
    }

    fn rest(&mut self) -> Vec<Part> {
        let Some(from) = self.begun.take() else { return Vec::new() };
        let commit = self.log.last().unwrap();
        vec![commit.part(from, commit.tables.len())]
    }

    /// Publishes, and checks the bound: only the newest chunk may go beyond it.
    fn publish(&mut self, parts: &[Part]) {
        if parts.is_empty() {
            return;
        }
        self.hub.publish(parts);
        let mut frames = Vec::new();
        let mut encoder = Encoder::new(Kind { selection: Selection::default(), form: Form::Feed }, None);
        parts.iter().for_each(|part| encoder.encode(&part.open(), &mut unlimited(), &mut frames).unwrap());
        // Room for the frame of a last part that is owed and for one of its kind that comes with the beat, and for what surrounds them.
        self.largest = self.largest.max(frames.len() + 200 * (2 + parts.len()));
        assert!(self.hub.size().0 <= self.bytes_max.max(self.largest), "the bound is kept");
    }

    fn serve(&mut self, who: usize) {
        let Some(mut subscriber) = (who < self.subscribers.len()).then(|| self.subscribers.swap_remove(who)) else {
            return;
        };
        subscriber.serve(self);
        self.subscribers.push(subscriber);
    }
}

fn unlimited() -> Meter<'static> {
    Meter::new(u64::MAX)
}

fn cursor(position: Position, life: u32) -> Cursor {
    // The nonce tells the lives apart.
    Cursor { epoch: "test".parse().unwrap(), position, nonce: life }
}

/// Does what `subscriber.rs` does with the hub and the log, and checks what it would send.
struct Subscriber {
    wanted: Wanted,
    kind: Kind,
    place: Place,
    joined: Option<Joined>,
    /// The chain, as the client sees it.
    last: Cursor,
    life: u32,
    /// What the client has of a commit that goes on.
    begun: Vec<usize>,
    /// The commits that it has, by position, and behind which one it began.
    got: Vec<(Position, Vec<usize>)>,
    since: Position,
}

impl Subscriber {
    fn new(wanted: Wanted, world: &World) -> Subscriber {
        let kind = wanted.kind();
        let joined = world.hub.join(&kind).unwrap();
        Subscriber {
            wanted,
            kind,
            place: Place::after(joined.head.cursor.position),
            last: joined.last,
            since: joined.head.cursor.position,
            joined: Some(joined),
            life: world.life,
            begun: Vec::new(),
            got: Vec::new(),
        }
    }

    /// One step: takes from the hub, or from the log where it fell behind.
    fn serve(&mut self, world: &World) {
        let Some(joined) = &mut self.joined else { return self.catch_up(world) };
        match joined.topic.take(joined.next) {
            News::Nothing => {}
            News::Chunks { chunks, next, place, last } => {
                joined.next = next;
                self.hear(&chunks.concat());
                assert_eq!(self.last, last, "the hub knows the chain");
                self.place = place;
                if self.begun.is_empty() {
                    self.last = last;
                }
            }
            News::Behind => {
                self.joined = None;
                self.catch_up(world);
            }
            News::Reset(_) => self.reset(world),
        }
    }

    fn reset(&mut self, world: &World) {
        assert_ne!(self.life, world.life, "nobody is reset without need");
        *self = Subscriber::new(self.wanted.clone(), world);
    }

    fn catch_up(&mut self, world: &World) {
        let mut encoder = Encoder::new(self.kind.clone(), Some(self.last));
        if self.place.serial.is_some() {
            encoder.go_on();
        }
        loop {
            let joined = world.hub.join(&self.kind).unwrap();
            if self.life != world.life {
                return self.reset(world);
            }
            let head = joined.head.cursor.position;
            if self.place == Place::after(head) && !matches!(joined.topic.take(joined.next), News::Behind) {
                if self.last != joined.last {
                    // A position frame.
                    self.last = joined.last;
                }
                self.joined = Some(joined);
                return;
            }
            if self.place >= Place::after(head) {
                // It waits for the hub.
                return;
            }
            let until = head.max(self.place.whole());
            let mut out = Vec::new();
            while self.place < Place::after(until) {
                let commit = &world.log[self.place.position as usize];
                let from = self.place.serial.unwrap_or(0) as usize;
                // Pages end anywhere.
                let to = (from + 2).min(commit.tables.len());
                let part = commit.part(from, to);
                self.place = part.place();
                encoder.encode(&part.open(), &mut unlimited(), &mut out).unwrap();
            }
            self.hear(&out);
        }
    }

    /// Checks frames as a client does: the chain, and whole commits.
    fn hear(&mut self, mut bytes: &[u8]) {
        while let Some((header, length)) = measure(bytes) {
            let frame: Value = serde_json::from_slice(&bytes[header..header + length]).unwrap();
            bytes = &bytes[header + length..];
            if frame["type"] == "status" {
                continue;
            }
            assert_eq!(frame["prev"], self.last.to_string(), "the chain");
            let before = std::mem::replace(&mut self.last, frame["cursor"].as_str().unwrap().parse().unwrap());
            assert!(before.position <= self.last.position, "positions never go back");
            assert!(self.begun.is_empty() || before == self.last, "nothing comes between the parts of a commit");
            assert_eq!(self.last.nonce, self.life, "nothing of another life");
            if frame["type"] == "commit" {
                let changes = frame["changes"].as_array().unwrap();
                self.begun.extend(changes.iter().map(|change| change["new"]["n"].as_u64().unwrap() as usize));
                if frame["more"] != true {
                    self.got.push((self.last.position, std::mem::take(&mut self.begun)));
                }
            }
        }
        assert!(bytes.is_empty(), "whole frames only");
    }

    /// Everything that was selected since it came, once, whole and in order.
    fn check(&self, world: &World) {
        assert!(self.begun.is_empty());
        let told = world.log.iter().filter(|commit| commit.cursor.position > self.since);
        let told = told.map(|commit| (commit.cursor.position, commit.selected(&self.wanted)));
        let expected: Vec<_> = told.filter(|(_, changes)| !changes.is_empty()).collect();
        assert_eq!(self.got, expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whoever_follows_the_hub_and_the_log_gets_every_selected_commit_once_whole_and_in_order(
        events in events(), bytes_max in 1..12_000_usize, steps_max in 1..3000_u64
    ) {
        let mut world = World::new(bytes_max, steps_max);

        for event in events {
            world.happen(event);
        }
        world.happen(Event::Continue { whole: true });

        for mut subscriber in std::mem::take(&mut world.subscribers) {
            for _ in 0..1000 {
                subscriber.serve(&world);
            }
            subscriber.check(&world);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_cursor_reads_back_as_it_was_written(
        epoch in "[0-9a-z]{4}", position in any::<i64>(), nonce in 0..36_u32.pow(4)
    ) {
        let cursor = Cursor { epoch: epoch.parse().unwrap(), position, nonce };

        prop_assert_eq!(cursor.to_string().parse(), Ok(cursor));
    }

    #[test]
    fn a_text_that_is_taken_for_a_cursor_is_its_one_spelling(
        text in prop_oneof![".*", "[0-9a-zA-Z]{3,5}\\.[-+]?[0-9]{0,20}\\.[-+]?[0-9a-zA-Z]{3,5}"]
    ) {
        if let Ok(cursor) = text.parse::<Cursor>() {
            prop_assert_eq!(cursor.to_string(), text);
        }
    }

    #[test]
    fn a_snapshot_sees_what_ended_before_it(
        xmin in 0..50_u64, length in 0..50_u64, running in prop::collection::btree_set(0..100_u64, 0..20)
    ) {
        let xmax = xmin + length;
        // As PostgreSQL writes it: those between the bounds, in no order that is promised.
        let running: Vec<u64> = running.into_iter().filter(|xid| (xmin..xmax).contains(xid)).rev().collect();
        let text: Vec<String> = running.iter().map(u64::to_string).collect();
        let visible = Visible::parse(&format!("{xmin}:{xmax}:{}", text.join(","))).unwrap();

        for xid in 0..120 {
            prop_assert_eq!(visible.sees(xid), xid < xmax && !running.contains(&xid), "{}", xid);
        }
    }

    #[test]
    fn no_text_makes_a_reader_panic(text in any::<String>(), other in any::<String>(), wild in "[\"{}:,.a0%&=\\-+\\[\\]]*") {
        for text in [&text, &other, &wild] {
            let _ = Visible::parse(text);
            let _ = Message::parse(text);
            let _ = Message::parse(&serde_json::json!({"type": text, "id": text}).to_string());
            let _ = Request::parse(text);
            for name in ["table", "from", "on_reset", "where"] {
                let _ = Request::parse(&format!("{name}={text}"));
            }
            let _ = Origins::new(&other).map(|origins| origins.allow(text, &wild));
            let _ = Origins::Listed(Vec::new()).allow(&format!("http://{text}"), text);
            let _ = Hosts::new(text).map(|hosts| hosts.allow(&wild, true));
        }
    }

    #[test]
    fn tables_asked_for_in_quotes_are_read_as_they_are_named(
        names in prop::collection::vec("[a-zA-Z_.,é&=%\" +]+", 1..5)
    ) {
        let list: Vec<String> = names.iter().map(|name| quoted(name)).collect();
        let query = form_urlencoded::Serializer::new(String::new()).append_pair("table", &list.join(" , ")).finish();

        let tables = Request::parse(&query).unwrap().tables.unwrap();

        prop_assert_eq!(tables.iter().map(|table| table.plain()).collect::<Vec<_>>(), names.clone());
        let parts: Vec<_> = tables.iter().map(|table| table.parts().unwrap()).collect();
        prop_assert_eq!(parts, names.into_iter().map(|name| vec![name]).collect::<Vec<_>>());
    }

    #[test]
    fn no_two_tables_share_a_name_on_the_wire(text in "[a.\"]{3,8}") {
        let split = |text: &str| -> Vec<TableName> {
            let at_dot = |(at, _)| TableName::new(&text[..at], &text[at + 1..]);
            text.match_indices('.').map(at_dot).filter(|name| !name.schema.is_empty() && !name.table.is_empty()).collect()
        };
        let alike = split(&text);
        // And those whose parts look like what one of these is called.
        let others: Vec<TableName> = alike.iter().flat_map(|name| split(&name.to_string())).collect();

        let mut called = BTreeMap::new();
        for name in alike.into_iter().chain(others) {
            let before = called.insert(name.to_string(), name.clone());
            prop_assert!(before.as_ref().is_none_or(|before| *before == name), "{:?} and {:?}", before, name);
        }
    }
}
