//! The oracles: what has to be true of what readers were told, of what PostgreSQL holds, and of what writers know. No I/O.
//!
//! Each finding is a sentence that begins with its oracle. A story's own violations (an `old` that its copy did not hold, a broken
//! chain, a sum that was not kept) are found while it listens, in `story`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;

use super::story::{Rows, Run, Share, Story, Told, position_of};

/// How many findings of one kind are told.
const TOLD_MAX: usize = 5;

/// What a writer knows of a transaction.
#[derive(Clone, Debug)]
pub struct Entry {
    pub tx: u64,
    /// When its commit was sent, and when the answer came, on one clock for all writers.
    pub issued: u64,
    pub returned: u64,
    pub outcome: Outcome,
}

/// How a transaction ended, as far as its writer knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// PostgreSQL said so; with `synchronous_commit = off` a crash may take it back.
    Committed,
    RolledBack,
    /// The connection ended before the answer came.
    Unknown,
}

/// A reader's story, and which tables it asked for; none means all.
pub struct Reader<'a> {
    pub story: &'a Story,
    pub wants: Option<&'a [&'a str]>,
}

/// Everything that is known at the end of a round, when nothing moves any more.
#[derive(Default)]
pub struct Evidence<'a> {
    pub readers: Vec<Reader<'a>>,
    /// From a logical slot: the transactions, and how many changes each made to each table.
    pub decoded: BTreeMap<u64, BTreeMap<String, u64>>,
    pub ledger: Vec<Entry>,
    /// From `select`: the rows of every table.
    pub tables: HashMap<String, Rows>,
    /// The same of those tables that were altered meanwhile, for readers that asked for them by name.
    pub restless: HashMap<String, Rows>,
    /// From `switchboard.commit`: the cursor and transaction of each position that is kept.
    pub numbered: BTreeMap<i64, (String, u64)>,
    /// The positions that were given meanwhile: those behind the first, up to the second.
    pub span: (i64, i64),
}

/// What the oracles say.
#[derive(Default)]
pub struct Verdict {
    pub findings: Vec<String>,
    pub commits: usize,
    pub changes: u64,
    /// Commits that nobody could be told of who asked for everything: retention overtook all of them, and each was told so.
    pub untold: i64,
}

/// Asks every oracle.
pub fn judge(evidence: &Evidence<'_>) -> Verdict {
    let mut verdict = Verdict::default();
    for reader in &evidence.readers {
        verdict.findings.extend(reader.story.violations.iter().cloned());
        if reader.story.runs.is_empty() {
            verdict.findings.push(format!("{} never heard that it is ready", reader.story.name));
        }
        compare_rows(reader, &evidence.tables, &mut verdict);
        if reader.wants.is_some() {
            compare_rows(reader, &evidence.restless, &mut verdict);
        }
    }
    let told = join_stories(evidence, &mut verdict);
    let covered = Covered::by(evidence);
    for reader in &evidence.readers {
        for run in &reader.story.runs {
            compare_run(reader, run, &told, &covered, &mut verdict);
        }
    }
    verdict.untold = covered.untold(evidence.span);
    compare_decoded(&told, &evidence.decoded, &mut verdict);
    compare_numbered(&told, &evidence.numbered, &mut verdict);
    let ledger = unambiguous(&evidence.ledger);
    compare_order(&told, &ledger, &mut verdict);
    compare_outcomes(&told, &ledger, &mut verdict);
    verdict.commits = told.len();
    verdict.changes = told.values().flat_map(|told| told.tables.values()).map(|share| share.changes).sum();
    verdict
}

type Universe<'a> = BTreeMap<i64, &'a Told>;

impl Verdict {
    /// Tells the first few of many findings of one kind.
    fn found(&mut self, kind: &str, findings: impl IntoIterator<Item = String>) {
        let mut findings = findings.into_iter();
        self.findings.extend(findings.by_ref().take(TOLD_MAX).map(|finding| format!("{kind}: {finding}")));
        let more = findings.count();
        if more > 0 {
            self.findings.push(format!("{kind}: … and {more} more"));
        }
    }
}

/// The copy equals `select`, with the reader's filter as its condition.
fn compare_rows(reader: &Reader<'_>, tables: &HashMap<String, Rows>, verdict: &mut Verdict) {
    let none = Rows::new();
    let (story, wants) = (reader.story, reader.wants);
    let wanted = tables.keys().filter(|table| wants.is_none_or(|wants| wants.contains(&table.as_str())));
    for table in wanted {
        let copy = story.tables.get(table).unwrap_or(&none);
        let takes = |row: &str| story.takes.is_none_or(|takes| takes(row));
        let rows =
            &tables[table].iter().filter(|(row, _)| takes(row)).map(|(row, count)| (row.clone(), *count)).collect();
        let differ = |a: &Rows, b: &Rows, what: &str| -> Vec<String> {
            let differing = a.iter().filter(|(row, count)| b.get(*row) != Some(count));
            differing.map(|(row, count)| format!("{}: {what} {count} × {row:.200}", story.name)).collect()
        };
        verdict.found(table, differ(copy, rows, "only the copy has"));
        verdict.found(table, differ(rows, copy, "only PostgreSQL has"));
    }
}

/// What those who asked for everything were told, by position: no two may differ.
fn join_stories<'a>(evidence: &'a Evidence<'_>, verdict: &mut Verdict) -> Universe<'a> {
    let mut told = Universe::new();
    let all = evidence.readers.iter().filter(|reader| reader.wants.is_none());
    for (reader, commit) in all.flat_map(|reader| {
        let commits = reader.story.runs.iter().flat_map(|run| &run.commits);
        commits.map(move |commit| (reader, commit))
    }) {
        let other = told.entry(position_of(&commit.cursor)).or_insert(commit);
        if *other != commit {
            let finding = format!("{} was told {commit:?}, another {other:?}", reader.story.name);
            verdict.found("two stories differ", [finding]);
        }
    }
    told
}

/// The positions that were told to somebody who asked for everything: spans, each behind its first position and up to its second.
/// Between them retention overtook everybody.
struct Covered(Vec<(i64, i64)>);

impl Covered {
    fn by(evidence: &Evidence<'_>) -> Covered {
        let all = evidence.readers.iter().filter(|reader| reader.wants.is_none());
        let mut spans: Vec<_> = all.flat_map(|reader| &reader.story.runs).map(|run| (run.after, run.until)).collect();
        spans.sort_unstable();
        Covered(spans)
    }

    fn has(&self, position: i64) -> bool {
        self.0.iter().any(|(after, until)| *after < position && position <= *until)
    }

    /// How many positions of this span were told to nobody.
    fn untold(&self, (mut covered, end): (i64, i64)) -> i64 {
        let mut untold = 0;
        for (after, until) in self.0.iter().copied().chain([(end, end)]) {
            untold += (after.min(end) - covered).max(0);
            covered = covered.max(until);
        }
        untold
    }
}

/// A run is all of what was told in its span, once and in order, as far as its reader asked for it.
fn compare_run(reader: &Reader<'_>, run: &Run, told: &Universe<'_>, covered: &Covered, verdict: &mut Verdict) {
    if reader.story.takes.is_some() {
        // What is kept of the others' commits does not say which rows they changed. The copy tells.
        return;
    }
    let mut expected =
        told.range((Bound::Excluded(run.after), Bound::Included(run.until))).filter_map(|(position, told)| {
            let wanted = |table: &String| reader.wants.is_none_or(|wants| wants.contains(&table.as_str()));
            let tables: BTreeMap<&String, &Share> = told.tables.iter().filter(|(table, _)| wanted(table)).collect();
            (!tables.is_empty()).then_some((*position, tables))
        });
    let actual = run.commits.iter().map(|told| (position_of(&told.cursor), told.tables.iter().collect()));
    let mut actual = actual.filter(|(position, _)| covered.has(*position));
    loop {
        match (expected.next(), actual.next()) {
            (None, None) => return,
            (expected, actual) if expected == actual => {}
            (expected, actual) => {
                let name = &reader.story.name;
                let finding = format!("{name} was told {actual:?} where {expected:?} was due");
                return verdict.found("missing, twice or out of order", [finding]);
            }
        }
    }
}

/// The transactions and their numbers of changes are those of the write-ahead log.
fn compare_decoded(told: &Universe<'_>, decoded: &BTreeMap<u64, BTreeMap<String, u64>>, verdict: &mut Verdict) {
    let mut seen = HashSet::new();
    let twice = told.iter().filter(|(_, told)| !seen.insert(told.tx));
    verdict.found("told twice", twice.map(|(position, told)| format!("transaction {} at {position}", told.tx)));
    let by_tx: HashMap<u64, &&Told> = told.values().map(|told| (told.tx, told)).collect();
    let lost: Vec<&u64> = decoded.keys().filter(|tx| !by_tx.contains_key(tx)).collect();
    // Every position holds one transaction, so those that lie between the runs are excused by their number. Some of them did not change
    // what is compared here.
    if lost.len() as i64 > verdict.untold {
        let between = verdict.untold;
        verdict.found("lost", lost.into_iter().map(|tx| {
            format!("transaction {tx} is in the write-ahead log and was never told ({between} positions lie between the runs)")
        }));
    }
    let differing = told.values().filter_map(|told| {
        let counts: BTreeMap<&String, u64> = told.tables.iter().map(|(table, share)| (table, share.changes)).collect();
        let Some(decoded) = decoded.get(&told.tx) else {
            return Some(format!("transaction {} was told and is not in the write-ahead log", told.tx));
        };
        let decoded: BTreeMap<&String, u64> = decoded.iter().map(|(table, count)| (table, *count)).collect();
        let counted = format!("transaction {}: told {counts:?}, decoded {decoded:?}", told.tx);
        (counts != decoded).then_some(counted)
    });
    verdict.found("not what the write-ahead log holds", differing);
}

/// What was told under a position is what has that position now, whatever crashed meanwhile.
fn compare_numbered(told: &Universe<'_>, numbered: &BTreeMap<i64, (String, u64)>, verdict: &mut Verdict) {
    let differing = told.iter().filter_map(|(position, told)| match numbered.get(position) {
        Some((cursor, tx)) if (cursor, *tx) != (&told.cursor, told.tx) => {
            Some(format!("{} was transaction {}, and is {cursor}, transaction {tx}", told.cursor, told.tx))
        }
        _ => None,
    });
    verdict.found("taken back", differing);
    if let Some(newest) = told.keys().next_back()
        && numbered.keys().next_back().is_some_and(|head| head < newest)
    {
        verdict.found("taken back", [format!("{newest} was told, and the log ends before it")]);
    }
}

/// By transaction. PostgreSQL gives a number again that a crash took back (of one that was rolled back, or committed asynchronously, and
/// not written down): of those nobody knows whose they are.
fn unambiguous(ledger: &[Entry]) -> HashMap<u64, &Entry> {
    let (mut by_tx, mut again) = (HashMap::new(), HashSet::new());
    for entry in ledger {
        if by_tx.insert(entry.tx, entry).is_some() {
            again.insert(entry.tx);
        }
    }
    by_tx.retain(|tx, _| !again.contains(tx));
    by_tx
}

/// A commit that returned before another was issued comes first.
fn compare_order(told: &Universe<'_>, ledger: &HashMap<u64, &Entry>, verdict: &mut Verdict) {
    let mut latest_issued = 0;
    let late = told.iter().filter_map(|(position, told)| {
        let entry = ledger.get(&told.tx)?;
        let late = entry.returned < latest_issued;
        latest_issued = latest_issued.max(entry.issued);
        late.then(|| format!("transaction {} at {position} had returned before an earlier one was issued", told.tx))
    });
    let late: Vec<String> = late.collect();
    verdict.found("out of order", late);
}

/// What was rolled back was not told.
fn compare_outcomes(told: &Universe<'_>, ledger: &HashMap<u64, &Entry>, verdict: &mut Verdict) {
    let all: HashSet<u64> = told.values().map(|told| told.tx).collect();
    let undone = ledger.values().filter(|entry| entry.outcome == Outcome::RolledBack && all.contains(&entry.tx));
    verdict.found("rolled back, and told", undone.map(|entry| format!("transaction {}", entry.tx)));
}
