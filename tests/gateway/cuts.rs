//! Wherever a connection is cut, the client that goes on from its last whole commit misses nothing and gets nothing twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::harness::raw::{Raw, measure};
use crate::harness::{Database, Gateway, soon};

/// How many sessions are cut at the same time.
const AT_ONCE: usize = 120;

/// The tables that are followed; a third one is not.
const TABLES: [&str; 2] = ["lamp", "note"];

/// What a client keeps: its copy of the tables, the story so far, and where it stands.
#[derive(Default, Clone)]
struct Reader {
    rows: BTreeMap<(String, i64), Value>,
    /// Every whole commit: its cursor, and its changes.
    commits: Vec<(String, Vec<Value>)>,
    /// The changes of a commit whose last part is still to come.
    begun: Vec<Value>,
    /// The last frame that had a cursor.
    last: Option<String>,
    /// The last such frame that ended a commit: where to resume.
    cursor: Option<String>,
    ready: bool,
}

impl Reader {
    /// What the complete frames among these bytes say.
    fn of(bytes: &[u8]) -> Reader {
        let mut reader = Reader::default();
        for frame in frames(bytes) {
            reader.take(&serde_json::from_slice(frame).unwrap());
        }
        reader
    }

    fn take(&mut self, frame: &Value) {
        let kind = frame["type"].as_str().unwrap();
        if let Some(cursor) = frame["cursor"].as_str() {
            if let Some(last) = &self.last {
                assert_eq!(frame["prev"].as_str(), Some(last.as_str()), "the chain is broken by {frame:.300}");
            }
            self.last = Some(cursor.to_owned());
        }
        match kind {
            "hello" => {}
            "rows" => {
                let table = frame["table"].as_str().unwrap();
                for row in frame["rows"].as_array().unwrap() {
                    let before = self.rows.insert((table.to_owned(), row["id"].as_i64().unwrap()), row.clone());
                    assert_eq!(before, None, "a row came twice");
                }
            }
            "commit" => {
                self.begun.extend(frame["changes"].as_array().unwrap().iter().cloned());
                if frame["more"] != true {
                    self.apply();
                }
            }
            "ready" => (self.cursor, self.ready) = (self.last.clone(), true),
            "position" => self.cursor = self.last.clone(),
            // A reading of rows breaks off where it would keep the script's TRUNCATE waiting.
            "reset" if frame["reason"] == "schema" && !self.ready => *self = Reader::default(),
            _ => panic!("unexpected: {frame:.300}"),
        }
    }

    /// Every `old` has to be what the copy holds, and every new row has to be new.
    fn apply(&mut self) {
        let changes = std::mem::take(&mut self.begun);
        for change in &changes {
            let table = change["table"].as_str().unwrap();
            let key = |row: &Value| row["id"].as_i64().map(|id| (table.to_owned(), id));
            if change["op"] == "truncate" {
                self.rows.retain(|(of, _), _| of != table);
            }
            if let Some(key) = key(&change["old"]) {
                assert_eq!(self.rows.remove(&key).as_ref(), Some(&change["old"]));
            }
            if let Some(key) = key(&change["new"]) {
                assert_eq!(self.rows.insert(key, change["new"].clone()), None);
            }
        }
        self.cursor = self.last.clone();
        self.commits.push((self.cursor.clone().unwrap(), changes));
    }

    /// What is left when the connection is gone: whole commits. Returns what to ask for.
    fn resume(&mut self) -> String {
        match &self.cursor {
            Some(cursor) => {
                self.begun.clear();
                (self.last, self.ready) = (self.cursor.clone(), false);
                cursor.clone()
            }
            None => {
                *self = Reader::default();
                "snapshot".to_owned()
            }
        }
    }

    fn position(&self) -> i64 {
        self.cursor.as_ref().map_or(-1, |cursor| cursor.split('.').nth(1).unwrap().parse().unwrap())
    }

    /// Follows until it stands at this position or behind it.
    async fn follow(&mut self, raw: &mut Raw, until: &mut watch::Receiver<Option<i64>>) {
        loop {
            if self.ready && self.position() >= soon("the end", until.wait_for(Option::is_some)).await.unwrap().unwrap()
            {
                return;
            }
            let (_, text) = raw.frame().await.expect("the connection lives");
            self.take(&serde_json::from_slice(&text).unwrap());
        }
    }
}

/// The payloads of the complete frames.
fn frames(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut frames = Vec::new();
    while let Some((header, length)) = measure(bytes)
        && bytes.len() >= header + length
    {
        frames.push(&bytes[header..header + length]);
        bytes = &bytes[header + length..];
    }
    frames
}

/// A session that is to be cut behind so many bytes.
struct Session {
    raw: Raw,
    cut: usize,
}

impl Session {
    /// Begins with a snapshot, and comes to its end or to the cut.
    async fn begin(gateway: &Gateway, selection: &str, cut: usize) -> Session {
        let raw = Raw::upgrade(gateway.address, &format!("/v1/feed?from=snapshot&{selection}")).await;
        let mut session = Session { raw, cut };
        while !session.is_cut() && !Reader::of(session.seen()).ready {
            session.read().await;
        }
        session
    }

    fn seen(&self) -> &[u8] {
        &self.raw.unread()[..self.cut.min(self.raw.unread().len())]
    }

    fn is_cut(&self) -> bool {
        self.raw.unread().len() >= self.cut
    }

    async fn read(&mut self) {
        self.raw.some(self.cut - self.raw.unread().len()).await;
    }

    /// Reads up to the cut; what the client knows then. Nothing more comes behind the commit that `is_last`.
    async fn end(mut self, is_last: fn(&Value) -> bool) -> Reader {
        // Where the next frame begins: only new ones are looked at, since some are large.
        let mut at = 0;
        while !self.is_cut() {
            let rest = &self.seen()[at..];
            match measure(rest).filter(|(header, length)| rest.len() >= header + length) {
                Some((header, length)) => {
                    at += header + length;
                    let frame: Value = serde_json::from_slice(&rest[header..header + length]).unwrap();
                    if frame["type"] == "commit" && is_last(&frame["changes"][0]) {
                        break;
                    }
                }
                None => self.read().await,
            }
        }
        Reader::of(self.seen())
    }
}

/// Two gateways, a database, and what is written while sessions are cut.
struct Scene {
    db: Database,
    one: Arc<Gateway>,
    two: Arc<Gateway>,
    script: Vec<&'static str>,
    rounds: u32,
}

impl Scene {
    /// The last statement of the script has to delete from `lamp`, and no other may.
    async fn new(script: Vec<&'static str>) -> Scene {
        let db = Database::new().await;
        db.run(&[
            "create table lamp (id int primary key, v int); insert into lamp values (1, 0), (2, 0)",
            "create table note (id int primary key, v text); insert into note values (1, 'é')",
            "create table other (id int)",
        ])
        .await;
        for table in ["lamp", "note", "other"] {
            db.watch(table).await;
        }
        // No frame that is not in the script.
        let calm = |config: &mut switchboard::config::Config| config.heartbeat = Duration::from_secs(600);
        let (one, two) = (Gateway::start_with(&db, calm).await, Gateway::start_with(&db, calm).await);
        Scene { db, one: Arc::new(one), two: Arc::new(two), script, rounds: 0 }
    }

    /// What to ask for in the next round: with an empty table of its own, so that nobody gets the rows that were read for an
    /// earlier one.
    async fn selection(&mut self) -> String {
        self.rounds += 1;
        let own = format!("round_{:03}", self.rounds);
        self.db.run(&[&format!("create table {own} (id int primary key)")]).await;
        self.db.watch(&own).await;
        format!("table={},{own}", TABLES.join(","))
    }

    fn is_last(change: &Value) -> bool {
        change["table"] == "public.lamp" && change["op"] == "delete"
    }

    /// The bytes of a session that is not cut.
    async fn record(&mut self) -> Vec<u8> {
        let selection = self.selection().await;
        let mut session = Session::begin(&self.one, &selection, usize::MAX).await;
        self.play().await;
        while !frames(session.seen()).last().is_some_and(|frame| {
            let frame: Value = serde_json::from_slice(frame).unwrap();
            frame["type"] == "commit" && Scene::is_last(&frame["changes"][0])
        }) {
            session.read().await;
        }
        session.seen().to_vec()
    }

    async fn play(&self) {
        self.db.run(&self.script).await;
    }

    /// Cuts one session at each of these offsets while the script is played, goes on at the other gateway, and compares.
    async fn cut_at(&mut self, offsets: &[usize]) {
        let selection = self.selection().await;
        let mut beginning = JoinSet::new();
        for cut in offsets.iter().copied().chain([usize::MAX]) {
            let (one, selection) = (self.one.clone(), selection.clone());
            beginning.spawn(async move { Session::begin(&one, &selection, cut).await });
        }
        let sessions = beginning.join_all().await;

        let (end, ended) = watch::channel(None);
        let mut going_on = JoinSet::new();
        for session in sessions {
            let (two, selection, mut ended) = (self.two.clone(), selection.clone(), ended.clone());
            going_on.spawn(async move {
                let cut = session.cut;
                let mut reader = session.end(Scene::is_last).await;
                let uncut = reader.clone();
                let from = reader.resume();
                let mut raw = Raw::upgrade(two.address, &format!("/v1/feed?from={from}&{selection}")).await;
                reader.follow(&mut raw, &mut ended).await;
                (cut, uncut, reader)
            });
        }
        self.play().await;
        end.send_replace(Some(self.head().await));
        let readers = going_on.join_all().await;

        let mut rows = BTreeMap::new();
        for table in TABLES {
            let query = format!("select id::bigint, row_to_json(t)::text from {table} as t");
            for row in self.db.query(&query, &[]).await.unwrap() {
                let value: Value = serde_json::from_str(row.get(1)).unwrap();
                rows.insert((format!("public.{table}"), row.get(0)), value);
            }
        }
        let (_, story, _) = readers.iter().find(|(cut, ..)| *cut == usize::MAX).unwrap();
        assert_eq!(story.commits.len(), self.script.iter().filter(|sql| !sql.contains("into other")).count());
        for (cut, before, reader) in &readers {
            let rows_are_equal = reader.rows == rows;
            assert!(rows_are_equal, "cut behind {cut} bytes: the copy is not the tables");
            // Who had the rows before the first commit has the whole story; who began anew has the end of it.
            let told = if before.cursor.is_some() {
                reader.commits == story.commits
            } else {
                story.commits.ends_with(&reader.commits)
            };
            assert!(told, "cut behind {cut} bytes: {:?}", reader.commits.iter().map(|(at, _)| at).collect::<Vec<_>>());
        }
    }

    /// The newest position, once everything that was written has one.
    async fn head(&self) -> i64 {
        let number = "begin isolation level repeatable read; lock table switchboard.numbering in exclusive mode;
                      select switchboard.number(); commit";
        self.db.run(&[number]).await;
        self.db.value("select head from switchboard.head()").await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_cut_behind_any_byte_goes_on_with_the_next_commit() {
    let mut scene = Scene::new(vec![
        "begin; update lamp set v = v + 1 where id = 1; insert into lamp values (3, 0); update note set v = v || 'x'; commit",
        "insert into other values (1)",
        "update lamp set v = v + 1 where id = 3",
        "begin; truncate note; insert into note values (1, 'é'), (2, '\u{1F600}'); commit",
        "delete from lamp where id = 3",
    ])
    .await;
    let bytes = scene.record().await.len();
    assert!((1000..3000).contains(&bytes), "a session of {bytes} bytes has enough offsets, and not too many");

    let offsets: Vec<usize> = (0..=bytes).collect();
    for some in offsets.chunks(AT_ONCE) {
        scene.cut_at(some).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_cut_around_any_part_of_a_large_commit_gets_that_commit_once_and_whole() {
    let mut scene = Scene::new(vec![
        "update lamp set v = v + 1 where id = 1",
        // Three parts: one begins after each 256 KiB.
        "begin; insert into lamp values (3, 0); insert into note select n, repeat('é', 75000) from generate_series(10, 14) as n; commit",
        "begin; truncate note; insert into note values (1, 'é'); commit",
        "delete from lamp where id = 3",
    ])
    .await;
    let bytes = scene.record().await;
    let mut offsets = Vec::new();
    let mut at = 0;
    while let Some((header, length)) = measure(&bytes[at..]) {
        // Only around the large frames: the other test cuts small ones.
        if length > 0xffff {
            let end = at + header + length;
            offsets.extend((at - 2..=at + header + 2).chain([at + header + length / 2]).chain(end - 2..=end + 2));
        }
        at += header + length;
    }
    offsets.sort_unstable();
    offsets.dedup();
    assert!(offsets.len() > 3 * 15, "three parts were sent: {offsets:?}");

    scene.cut_at(&offsets).await;
}
