//! What a reader was told: its copy of the tables, checked change by change, and the list of commits that made it.
//!
//! It trusts nobody: what it finds wrong it writes down, for the oracles to show.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::value::RawValue;

use super::keys::Keys;

/// How many violations one story keeps; the first ones tell the most.
const VIOLATIONS_MAX: usize = 20;

/// A frame of the feed, borrowed from its text. Values stay as they were written.
#[derive(serde::Deserialize, Debug)]
pub struct Frame<'a> {
    #[serde(rename = "type")]
    pub kind: &'a str,
    #[serde(default)]
    pub prev: Option<&'a str>,
    #[serde(default)]
    pub cursor: Option<&'a str>,
    #[serde(default)]
    pub tx: Option<&'a str>,
    #[serde(default)]
    pub more: bool,
    #[serde(default, borrow)]
    pub changes: Vec<Change<'a>>,
    #[serde(default, borrow)]
    pub rows: Vec<&'a RawValue>,
    #[serde(default)]
    pub table: Option<&'a str>,
    #[serde(default)]
    pub reason: Option<&'a str>,
}

/// A change in a frame.
#[derive(serde::Deserialize, Debug)]
pub struct Change<'a> {
    pub op: &'a str,
    pub table: &'a str,
    #[serde(default, borrow)]
    pub new: Option<&'a RawValue>,
    #[serde(default, borrow)]
    pub old: Option<&'a RawValue>,
    #[serde(default, rename = "match")]
    pub matched: Option<&'a str>,
}

/// A commit as a reader was told of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Told {
    pub cursor: String,
    pub tx: u64,
    /// What it did to each table.
    pub tables: BTreeMap<String, Share>,
}

/// What a commit did to one table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Share {
    pub changes: u64,
    /// Of the changes, values and all, in their order.
    pub hash: u64,
}

/// An unbroken run of commits: from a `ready` on, over any number of connections.
#[derive(Clone, Debug)]
pub struct Run {
    /// The position that it begins behind.
    pub after: i64,
    /// The last position that it covers.
    pub until: i64,
    pub commits: Vec<Told>,
}

/// The rows of one table: as text, and how often each is there.
pub type Rows = HashMap<Box<str>, u32>;

/// What one reader was told.
#[derive(Default)]
pub struct Story {
    pub name: String,
    /// The tables that have to keep one sum of their columns `n`, in every commit.
    pub balanced: Vec<&'static str>,
    /// The tables that are altered meanwhile: what is told of them holds only until the next `reset`, and their changes are not kept.
    restless: &'static [&'static str],
    /// Which rows belong to the filter that the reader asked with.
    pub takes: Option<fn(&str) -> bool>,
    pub tables: HashMap<String, Rows>,
    keys: Keys,
    pub runs: Vec<Run>,
    pub violations: Vec<String>,
    pub changes: u64,
    pub resets: BTreeMap<String, u64>,
    sum: i64,
    balance: Option<i64>,
    /// The cursor of the last frame that had one; the chain.
    chain: Option<String>,
    /// From where to resume: that of the last whole commit, `ready` or `position`. None before the first `ready`.
    pub cursor: Option<String>,
    /// Whether `ready` came on this connection.
    pub ready: bool,
    /// The parts of a commit that is not whole yet.
    parts: Vec<Owned>,
}

struct Owned {
    op: String,
    table: String,
    old: Option<Box<str>>,
    new: Option<Box<str>>,
    matched: Option<String>,
}

impl Story {
    pub fn new(name: impl Into<String>, balanced: Vec<&'static str>) -> Story {
        Story { name: name.into(), balanced, ..Story::default() }
    }

    /// The story of a reader whose filter takes these rows.
    pub fn filtered(self, takes: Option<fn(&str) -> bool>) -> Story {
        Story { takes, ..self }
    }

    /// The story of a reader some of whose tables may be altered.
    pub fn beside(self, restless: &'static [&'static str]) -> Story {
        Story { restless, ..self }
    }

    /// A new connection goes on where the last whole commit ended, or from the beginning.
    pub fn connected(&mut self) {
        self.parts.clear();
        self.ready = false;
        self.chain.clone_from(&self.cursor);
        if self.cursor.is_none() {
            self.forget();
        }
    }

    /// Takes a frame in. Returns its kind.
    pub fn hear<'a>(&mut self, text: &'a str) -> &'a str {
        let frame: Frame<'a> = match serde_json::from_str(text) {
            Ok(frame) => frame,
            Err(error) => {
                self.wrong(format!("not a frame: {error} in {text:.300}"));
                return "";
            }
        };
        if frame.kind == "reset" {
            *self.resets.entry(frame.reason.unwrap_or("none").to_owned()).or_default() += 1;
            self.forget();
        }
        if let Some(cursor) = frame.cursor {
            if self.chain.is_some() && self.chain.as_deref() != frame.prev {
                self.wrong(format!("the chain stood at {:?}, and this came: {text:.300}", self.chain));
            }
            self.chain = Some(cursor.to_owned());
        }
        match frame.kind {
            "rows" => {
                let table = frame.table.unwrap_or_default();
                for row in frame.rows {
                    self.insert(table, row.get());
                }
            }
            "commit" => self.part(&frame, text),
            "ready" if self.cursor.is_none() => self.begin(frame.cursor.unwrap_or_default()),
            "ready" | "position" => self.advance(frame.cursor.unwrap_or_default()),
            _ => {}
        }
        self.ready |= frame.kind == "ready";
        frame.kind
    }

    fn part(&mut self, frame: &Frame<'_>, text: &str) {
        let tx = frame.tx.and_then(|tx| tx.parse().ok());
        let (Some(cursor), Some(tx)) = (frame.cursor, tx) else {
            return self.wrong(format!("a commit without a cursor or tx: {text:.300}"));
        };
        self.parts.extend(frame.changes.iter().map(Owned::of));
        if !frame.more {
            self.whole(cursor, tx);
        }
    }

    fn whole(&mut self, cursor: &str, tx: u64) {
        let mut told = Told { cursor: cursor.to_owned(), tx, tables: BTreeMap::new() };
        for change in std::mem::take(&mut self.parts) {
            self.apply(&change, cursor);
            self.changes += 1;
            if self.is_restless(&change.table) {
                continue;
            }
            let share = told.tables.entry(change.table).or_default();
            let mut hasher = DefaultHasher::new();
            (share.hash, &change.op, &change.old, &change.new).hash(&mut hasher);
            *share = Share { changes: share.changes + 1, hash: hasher.finish() };
        }
        if self.balance.is_some_and(|balance| balance != self.sum) {
            self.wrong(format!("the sum was {:?}, and is {} after {cursor}", self.balance, self.sum));
            self.balance = Some(self.sum);
        }
        if self.cursor.is_some() {
            for finding in self.keys.check() {
                self.wrong(format!("{finding} after {cursor}"));
            }
        }
        // Before `ready` a commit belongs to the rows: what it comes behind is not all of what went before.
        if self.cursor.is_some() {
            if let Some(run) = self.runs.last_mut().filter(|_| !told.tables.is_empty()) {
                run.commits.push(told);
            }
            self.advance(cursor);
        }
    }

    fn apply(&mut self, change: &Owned, cursor: &str) {
        self.check_match(change, cursor);
        if change.op == "truncate" {
            let rows = self.tables.remove(&change.table).unwrap_or_default();
            self.keys.empty(&change.table);
            if self.balanced.contains(&change.table.as_str()) {
                self.sum -= rows.iter().map(|(row, count)| n_of(row) * i64::from(*count)).sum::<i64>();
            }
        }
        // A row that enters was not in the copy, one that leaves does not stay there.
        let (enters, leaves) = (change.matched.as_deref() == Some("enter"), change.matched.as_deref() == Some("leave"));
        if let Some(old) = change.old.as_ref().filter(|_| !enters)
            && !self.remove(&change.table, old)
            && !self.is_restless(&change.table)
        {
            self.wrong(format!("{cursor}: {} of {}: the copy has no such row: {old:.300}", change.op, change.table));
        }
        if let Some(new) = change.new.as_ref().filter(|_| !leaves) {
            self.insert(&change.table, new);
        }
    }

    /// What the change says of the filter is so.
    fn check_match(&mut self, change: &Owned, cursor: &str) {
        let Some(takes) = self.takes.filter(|_| change.op != "truncate") else {
            if change.matched.is_some() {
                self.wrong(format!("{cursor}: a match where there is no filter"));
            }
            return;
        };
        let before = change.old.as_deref().is_some_and(takes);
        let after = change.new.as_deref().is_some_and(takes);
        let due = match (before, after) {
            (false, true) => Some("enter"),
            (true, false) => Some("leave"),
            (true, true) => Some("stay"),
            (false, false) => None,
        };
        if change.matched.as_deref() != due {
            let (old, new) = (&change.old, &change.new);
            self.wrong(format!("{cursor}: match {:?} where {due:?} was due: {old:.200?} {new:.200?}", change.matched));
        }
    }

    fn insert(&mut self, table: &str, row: &str) {
        if self.balanced.contains(&table) {
            self.sum += n_of(row);
        }
        if !self.tables.contains_key(table) {
            self.tables.insert(table.to_owned(), Rows::new());
        }
        let rows = self.tables.get_mut(table).expect("inserted above");
        *rows.entry(row.into()).or_default() += 1;
        if !self.is_restless(table) {
            self.keys.add(table, row);
        }
    }

    fn remove(&mut self, table: &str, row: &str) -> bool {
        let Some(rows) = self.tables.get_mut(table) else { return false };
        let Some(count) = rows.get_mut(row) else { return false };
        *count -= 1;
        if *count == 0 {
            rows.remove(row);
        }
        if !self.is_restless(table) {
            self.keys.remove(table, row);
        }
        if self.balanced.contains(&table) {
            self.sum -= n_of(row);
        }
        true
    }

    fn is_restless(&self, table: &str) -> bool {
        self.restless.contains(&table)
    }

    fn begin(&mut self, cursor: &str) {
        let position = position_of(cursor);
        self.runs.push(Run { after: position, until: position, commits: Vec::new() });
        self.cursor = Some(cursor.to_owned());
        self.balance = Some(self.sum);
        self.keys.settle();
    }

    fn advance(&mut self, cursor: &str) {
        self.cursor = Some(cursor.to_owned());
        if let Some(run) = self.runs.last_mut() {
            run.until = position_of(cursor);
        }
    }

    fn forget(&mut self) {
        self.tables.clear();
        self.keys = Keys::default();
        self.parts.clear();
        (self.sum, self.balance) = (0, None);
        (self.chain, self.cursor) = (None, None);
    }

    /// Drops the commits that the oracles have seen; what follows goes on behind them.
    pub fn turn_the_page(&mut self) {
        let last = self.runs.pop().filter(|_| self.cursor.is_some());
        self.runs.clear();
        self.runs.extend(last.map(|run| Run { after: run.until, until: run.until, commits: Vec::new() }));
    }

    pub fn wrong(&mut self, what: String) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(format!("{}: {what}", self.name));
        }
    }
}

impl Owned {
    fn of(change: &Change<'_>) -> Owned {
        let text = |row: Option<&RawValue>| row.map(|row| row.get().into());
        Owned {
            op: change.op.to_owned(),
            table: change.table.to_owned(),
            old: text(change.old),
            new: text(change.new),
            matched: change.matched.map(str::to_owned),
        }
    }
}

/// The position in a cursor.
pub fn position_of(cursor: &str) -> i64 {
    cursor.split('.').nth(1).and_then(|position| position.parse().ok()).unwrap_or(-1)
}

fn n_of(row: &str) -> i64 {
    #[derive(serde::Deserialize)]
    struct Balanced {
        n: i64,
    }
    serde_json::from_str::<Balanced>(row).map_or(0, |row| row.n)
}
