//! The log: every statement that gateways send to PostgreSQL's side of it (`sql/`), over a pool.
//!
//! It reads in pages bounded in rows and bytes and checks that they join without a hole. Statements are unnamed, so that they also
//! work through a pooler. When to number, and what to do with what was read, it leaves to others.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use deadpool_postgres::{Object, Pool, PoolError};
use serde_json::value::RawValue;
use tokio::sync::{Semaphore, watch};
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};

use crate::change::{Change, Cursor, Epoch, Op, Part, Place, Position, Table, TableName, without};
use crate::config::{
    ANSWERS_BYTES_MAX, CATCH_UP_BYTES_MAX, CATCH_UP_CHANGES_MAX, FRAME_BYTES_MAX, Kept, LINK_PATIENCE, PAGE_BYTES_MAX,
    PAGE_CHANGES_MAX, QUESTIONS_AT_ONCE, STATEMENT_PATIENCE, TRIM_BYTES_MAX, TRIM_CHANGES_MAX, TRIM_COMMITS_MAX,
};

use crate::filter::{self, Column, Question};
use crate::session::{Database, Purpose, told, within};
use crate::table::{Tables, Watched};

/// A way to the log of one database.
#[derive(Clone)]
pub struct Log {
    pool: Pool,
    database: Database,
    tables: Arc<Mutex<LastSeen>>,
    /// Held while tables are looked up for those who can share that.
    looking_up: Arc<tokio::sync::Mutex<()>>,
    oldest: Arc<Mutex<Hint>>,
    /// When the link to PostgreSQL was found dead last.
    hung_up: Arc<watch::Sender<Option<Instant>>>,
    complaints: Arc<Complaints>,
    questions: Arc<Questions>,
}

/// What was asked about the literals of filters: many filters say the same.
struct Questions {
    answered: Mutex<Answered>,
    /// Held while one is asked: they are to leave connections for others.
    asking: Semaphore,
}

/// Answers that last, the oldest first to go.
#[derive(Default)]
struct Answered {
    answers: HashMap<Arc<Asked>, Answer>,
    order: VecDeque<(Arc<Asked>, usize)>,
    bytes: usize,
}

/// The statement of a question and its parameters.
type Asked = (String, Vec<String>);

impl Questions {
    fn known(&self, question: &Question) -> Option<Answer> {
        if !question.lasting {
            return None;
        }
        // A map of answers stays whole whatever panicked beside it.
        let answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        answered.answers.get(&(question.sql.clone(), question.params.clone())).cloned()
    }

    fn remember(&self, question: &Question, answer: &Answer) {
        let texts = question.params.iter().chain(answer.iter().flatten());
        let bytes = question.sql.len() + texts.map(|text| text.len() + size_of::<String>()).sum::<usize>();
        if !question.lasting || bytes > ANSWERS_BYTES_MAX {
            return;
        }
        let asked = Arc::new((question.sql.clone(), question.params.clone()));
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        if answered.answers.insert(asked.clone(), answer.clone()).is_some() {
            return;
        }
        answered.order.push_back((asked, bytes));
        answered.bytes += bytes;
        while answered.bytes > ANSWERS_BYTES_MAX {
            let Some((oldest, bytes)) = answered.order.pop_front() else { break };
            answered.answers.remove(&oldest);
            answered.bytes -= bytes;
        }
    }
}

/// The tables of which it was said that a change of theirs cannot be read: once each is enough.
#[derive(Default)]
struct Complaints(Mutex<HashSet<i32>>);

/// About how many tables it is remembered that there was a complaint. Any number may stand in the log.
const COMPLAINTS_MAX: usize = 1000;

impl Complaints {
    /// Whether this is the first one about the table.
    fn is_first(&self, watch: i32) -> bool {
        // A set stays whole whatever panicked beside it.
        let mut about = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        about.len() < COMPLAINTS_MAX && about.insert(watch)
    }
}

/// The oldest position that was seen, and its epoch: the oldest of now is that or a later one. Looking for it starts here, and need not
/// step over what retention left behind.
#[derive(Clone, Default)]
struct Hint {
    epoch: Option<String>,
    position: Position,
}

/// The tables as last seen.
#[derive(Default)]
struct LastSeen {
    tables: Tables,
    /// Counts how often they were not what they had been.
    version: u64,
    /// When the look began that saw them last.
    seen: Option<Instant>,
}

/// Where the log begins and ends.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// The oldest position that a reader may resume from.
    pub oldest: Cursor,
    /// The newest position.
    pub head: Cursor,
    /// The position that was asked about, as the log knows it.
    pub asked: Option<Cursor>,
    /// How many bytes of the database the log takes, about.
    pub bytes: i64,
}

impl Extent {
    /// Why a reader that stands at `cursor` cannot go on, given that it is the position that was asked about; none where it can.
    pub fn refusal(&self, cursor: Cursor) -> Option<&'static str> {
        match self.asked {
            _ if cursor.epoch != self.head.epoch => Some("epoch"),
            _ if cursor.position > self.head.position => Some("future"),
            None => Some("expired"),
            Some(known) if known.nonce != cursor.nonce => Some("nonce"),
            Some(_) => None,
        }
    }

    /// How many commits the log holds: those after the oldest position.
    pub fn commits(&self) -> i64 {
        self.head.position - self.oldest.position
    }
}

/// What one slice of retention did.
#[derive(Clone, Copy, Debug)]
pub struct Trimmed {
    /// How many commits were forgotten.
    pub commits: i64,
    /// There may be more to do.
    pub more: bool,
}

/// How much of the log is read at once.
#[derive(Clone, Copy, Debug)]
pub struct PageSize {
    changes_max: i32,
    bytes_max: i64,
}

impl PageSize {
    /// For the feed, of which there is one.
    pub const FEED: PageSize = PageSize { changes_max: PAGE_CHANGES_MAX, bytes_max: PAGE_BYTES_MAX };
    /// For a subscriber that catches up, of which there may be very many.
    pub const CATCH_UP: PageSize = PageSize { changes_max: CATCH_UP_CHANGES_MAX, bytes_max: CATCH_UP_BYTES_MAX };
}

/// What a page of the log holds.
#[derive(Debug)]
pub enum Page {
    /// The parts that follow; none where there is nothing more up to the position asked for.
    Parts(Vec<Part>),
    /// The log does not hold what follows: retention overtook the reader, or it is not the log that the reader's story is from.
    Overtaken,
}

/// How a gateway that numbered tells the others: the payload of the doorbell. An older gateway takes all but the first for
/// a ring, and says the first whatever its part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Word {
    /// The leader speaks.
    Head,
    /// Somebody else numbered.
    StandIn,
}

impl Word {
    /// What is said.
    pub fn payload(self) -> &'static str {
        match self {
            Word::Head => "head",
            Word::StandIn => "stand-in",
        }
    }
}

/// How PostgreSQL reads the literals of a filter: its columns of one row.
pub type Answer = Vec<Option<String>>;

/// Why there is no [`Answer`].
#[derive(Debug)]
pub enum Refused {
    /// PostgreSQL does not take a literal, as this sentence says.
    Said(String),
    /// It could not be asked.
    Failed(anyhow::Error),
}

/// Begins a transaction like those that a single statement is, whatever the session's settings say.
const BEGIN: &str = "begin isolation level read committed read write";

/// The settings that capture pins, for a transaction: a value then reads as it does in a change.
pub const AS_CAPTURED: &str = "set local \"TimeZone\" = 'UTC'; set local \"DateStyle\" = 'ISO, MDY';
    set local \"IntervalStyle\" = 'postgres'; set local bytea_output = 'hex'; set local extra_float_digits = 1;
    set local quote_all_identifiers = off; set local search_path = pg_catalog, pg_temp";

/// What one numbering did.
#[derive(Clone, Copy, Debug)]
pub struct Numbered {
    /// The newest position now.
    pub head: Position,
    /// Its nonce.
    pub nonce: u32,
    /// How many commits got a position.
    pub commits: i64,
}

impl Log {
    /// A log over at most `connections_max` connections, opened as they are needed.
    pub fn new(database: &Database, connections_max: usize) -> Log {
        Log {
            pool: database.pool(Purpose::Gateway, connections_max, LINK_PATIENCE),
            database: database.clone(),
            tables: Arc::default(),
            looking_up: Arc::default(),
            oldest: Arc::default(),
            hung_up: Arc::default(),
            complaints: Arc::default(),
            questions: Arc::new(Questions { answered: Mutex::default(), asking: Semaphore::new(QUESTIONS_AT_ONCE) }),
        }
    }

    /// The same log over connections of its own; what is known of it is shared.
    pub fn with_connections(&self, connections_max: usize) -> Log {
        let pool = self.database.pool(Purpose::Gateway, connections_max, LINK_PATIENCE);
        Log { pool, ..self.clone() }
    }

    /// The database that it is the log of.
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// Statements with which a transaction begins: the settings that it depends on, if its session has not got them.
    pub fn locals(&self) -> String {
        self.database.locals(Purpose::Gateway)
    }

    /// A connection from the pool, waiting for one that is free.
    pub async fn connection(&self) -> Result<Borrowed> {
        let hung_up = self.hung_up.subscribe();
        loop {
            let connection = match self.pool.get().await {
                Ok(connection) => connection,
                Err(PoolError::Backend(error)) => return Err(told(error).context("cannot connect to PostgreSQL")),
                Err(error) => return Err(anyhow!(error).context("no connection to PostgreSQL")),
            };
            if hung_up.borrow().is_none_or(|at| Object::metrics(&connection).created > at) {
                return Ok(Borrowed { connection: Some(connection), hung_up });
            }
            // From before the link was found dead: at most as many as the pool has.
            drop(Object::take(connection));
        }
    }

    /// Gives up all connections that there are, whatever they are at: the link that they were made over is dead.
    pub fn hang_up(&self) {
        self.hung_up.send_replace(Some(Instant::now()));
    }

    async fn query(&self, sql: &str, values: &[(&(dyn ToSql + Sync), Type)]) -> Result<Vec<Row>> {
        self.alone(async |connection| connection.within(connection.query_typed(sql, values)).await).await
    }

    /// Does something over a connection of its own. Its session has the settings that this depends on, or its transaction gets them.
    async fn alone<T>(&self, work: impl AsyncFnOnce(&Borrowed) -> Result<T>) -> Result<T> {
        let connection = self.connection().await?;
        let locals = self.locals();
        if !locals.is_empty() {
            connection.within(connection.batch_execute(&format!("{BEGIN}; {locals}"))).await?;
        }
        let done = work(&connection).await?;
        if !locals.is_empty() {
            connection.within(connection.batch_execute("commit")).await?;
        }
        connection.give_back();
        Ok(done)
    }

    async fn query_one(&self, sql: &str, values: &[(&(dyn ToSql + Sync), Type)]) -> Result<Row> {
        self.query(sql, values).await?.pop().with_context(|| format!("no row came back from: {sql}"))
    }

    /// The answer to a question that is yes or no.
    pub async fn ask(&self, sql: &str, values: &[(&(dyn ToSql + Sync), Type)]) -> Result<bool> {
        Ok(self.query_one(sql, values).await?.try_get(0)?)
    }

    /// Begins a new epoch where the log cannot go on (a restored dump, another cluster); returns the reason then.
    pub async fn open(&self) -> Result<Option<String>> {
        // A server that took over may not have the last of what retention did.
        *self.lock_oldest() = Hint::default();
        Ok(self.query_one("select switchboard.open()", &[]).await?.try_get(0)?)
    }

    /// Where the log begins and ends, and what it knows of the position `asked`.
    pub async fn look(&self, asked: Position) -> Result<Extent> {
        self.alone(async |connection| self.look_on(connection, asked).await).await
    }

    /// The same as a transaction sees it.
    pub async fn look_on(&self, connection: &Borrowed, asked: Position) -> Result<Extent> {
        let sql = "select epoch, oldest, oldest_nonce, head, head_nonce, asked_nonce, bytes from switchboard.look($1, $2, $3)";
        let hint = self.lock_oldest().clone();
        let values: &[(&(dyn ToSql + Sync), Type)] =
            &[(&asked, Type::INT8), (&hint.epoch, Type::TEXT), (&hint.position, Type::INT8)];
        let rows = connection.within(connection.query_typed(sql, values)).await?;
        let row = rows.first().context("the log has no end")?;
        let name: Option<String> = row.try_get(0)?;
        let epoch: Epoch = name
            .as_ref()
            .and_then(|name| name.parse().ok())
            .context("the log has no epoch; run \"switchboard install\", then \"switchboard check\"")?;
        let cursor = |position, nonce: i32| Cursor { epoch, position, nonce: nonce.unsigned_abs() };
        let extent = Extent {
            oldest: cursor(row.try_get(1)?, row.try_get(2)?),
            head: cursor(row.try_get(3)?, row.try_get(4)?),
            asked: row.try_get::<_, Option<i32>>(5)?.map(|nonce| cursor(asked, nonce)),
            bytes: row.try_get(6)?,
        };
        *self.lock_oldest() = Hint { epoch: name, position: extent.oldest.position };
        Ok(extent)
    }

    /// Gives what became visible its positions.
    ///
    /// One message, so that the lock never waits for this side of the wire.
    pub async fn number(&self) -> Result<Numbered> {
        let sql = format!(
            "begin isolation level repeatable read read write; {}lock table switchboard.numbering in exclusive mode;
             select head, head_nonce, numbered from switchboard.number(); commit",
            self.locals()
        );
        let connection = self.connection().await?;
        let messages = connection.within(connection.simple_query(&sql)).await?;
        connection.give_back();
        let row = messages.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let number = |index| row.and_then(|row| row.get(index)).and_then(|text| text.parse::<i64>().ok());
        let [Some(head), Some(nonce), Some(commits)] = [number(0), number(1), number(2)] else {
            bail!("numbering gave no head")
        };
        Ok(Numbered { head, nonce: nonce as u32, commits })
    }

    /// Tells the other gateways that there is a new head.
    ///
    /// In a transaction of its own: from its commit until that is flushed, one that notifies holds a lock that every other
    /// one in the cluster waits for, a ringing writer's too. This one has nothing to flush.
    pub async fn say(&self, word: Word) -> Result<()> {
        // Into a full queue nobody can notify. The others look by themselves meanwhile.
        let sql = "select pg_notify('switchboard', $1) where pg_notification_queue_usage() < 0.5";
        self.query(sql, &[(&word.payload(), Type::TEXT)]).await.map(|_| ())
    }

    /// How far another gateway numbered.
    pub async fn head(&self) -> Result<Numbered> {
        let row = self.query_one("select head, head_nonce from switchboard.head()", &[]).await?;
        let nonce: i32 = row.try_get(1)?;
        Ok(Numbered { head: row.try_get(0)?, nonce: nonce.unsigned_abs(), commits: 0 })
    }

    /// The page of parts that follows `place`, up to the whole commit `until`. `known` is a commit of the story that the place belongs
    /// to: where the log holds another one at its position, or none, nothing in it follows.
    ///
    /// A page ends where its size is reached; a part after [`FRAME_BYTES_MAX`].
    pub async fn read(&self, known: Cursor, place: Place, until: Position, size: PageSize) -> Result<Page> {
        if place.whole() > until || place == Place::after(until) {
            return Ok(Page::Parts(Vec::new()));
        }
        let sql = "select position, nonce, xid, at, last_serial, serial, watch, op, old, new
                   from switchboard.read($1, $2, $3, $4, $5, $6, $7, $8)";
        let nonce = i32::try_from(known.nonce).context("a nonce has four digits of base 36")?;
        let page = async |careful: bool| {
            let values: &[(&(dyn ToSql + Sync), Type)] = &[
                (&known.position, Type::INT8),
                (&nonce, Type::INT4),
                (&place.position, Type::INT8),
                (&place.serial, Type::INT8),
                (&until, Type::INT8),
                (&size.changes_max, Type::INT4),
                (&size.bytes_max, Type::INT8),
                (&careful, Type::BOOL),
            ];
            let asking = async |connection: &Borrowed| {
                let rows = connection.query_typed(sql, values);
                connection.within(async { Ok(rows.await) }).await
            };
            self.alone(asking).await
        };
        let rows = match page(false).await? {
            // One row that cannot be read must not stop the others.
            Err(error) if error.code().is_some_and(is_of_a_row) => page(true).await?,
            rows => rows,
        };
        let rows = rows.map_err(told)?;
        let tables = self.tables();
        match self.join(known.epoch, place, &rows, &tables, None)? {
            Some(page) => Ok(page),
            // A table was watched, or its key renamed, since they were last looked up.
            None => {
                let fresh = self.refresh_tables().await?;
                self.join(known.epoch, place, &rows, &fresh, Some(&tables))?.context("a second look settles every row")
            }
        }
    }

    /// Makes parts of rows, and checks that they follow `place` and one another without a hole.
    ///
    /// `None` where a row does not fit its table as it was last looked up: look again, and bring what was known `before`.
    fn join(
        &self,
        epoch: Epoch,
        place: Place,
        rows: &[Row],
        tables: &Tables,
        before: Option<&Tables>,
    ) -> Result<Option<Page>> {
        let mut parts: Vec<Part> = Vec::new();
        let mut at = place;
        let mut part_bytes = 0;
        for row in rows {
            let (position, serial, last_serial): (i64, i64, i64) =
                (row.try_get("position")?, row.try_get("serial")?, row.try_get("last_serial")?);
            if position != at.position + 1 {
                return Ok(Some(Page::Overtaken));
            }
            if at.serial.is_some_and(|before| serial <= before) {
                bail!(
                    "change {serial} of commit {position} came after change {:?}: the log is out of order",
                    at.serial
                );
            }
            let nonce: i32 = row.try_get("nonce")?;
            let cursor = Cursor { epoch, position, nonce: nonce.unsigned_abs() };
            let change = match change(row, serial, tables, before)? {
                Known::Change(change) => Some(change),
                Known::Nowhere(watch) => {
                    // Nothing can be said of it, and to stop at it would stop everything behind it.
                    if self.complaints.is_first(watch) {
                        tracing::error!(
                            "change {serial} of commit {position} is left out: no table of number {watch} is in the books"
                        );
                    }
                    None
                }
                Known::Unreadable(table, why) => {
                    if self.complaints.is_first(table.watch) {
                        tracing::error!(
                            "a change of {} at position {position} cannot be read: {why}; who follows the table begins anew, now and whenever that happens again; see switchboard check",
                            table.name
                        );
                    }
                    Some(Change::new(serial, table, Op::Reset, None, None))
                }
                Known::Unsettled => return Ok(None),
            };
            let begins = at.serial.is_none();
            if begins || parts.is_empty() || part_bytes >= FRAME_BYTES_MAX {
                let (tx, written): (&str, &str) = (row.try_get("xid")?, row.try_get("at")?);
                let tx = tx.parse().with_context(|| format!("the log names transaction {tx:?}"))?;
                parts.push(Part {
                    cursor,
                    tx,
                    at: written.to_owned(),
                    changes: Vec::new(),
                    first: begins,
                    last: false,
                    end: serial,
                });
                part_bytes = 0;
            }
            part_bytes += change.as_ref().map_or(0, Change::bytes);
            let part = parts.last_mut().expect("one was pushed above unless there was one");
            part.end = serial;
            part.changes.extend(change);
            part.last = serial == last_serial;
            at = if part.last { Place::after(position) } else { Place { serial: Some(serial), ..at } };
        }
        // Asked for something behind the head's beginning, the log has to answer with something.
        Ok(Some(if parts.is_empty() { Page::Overtaken } else { Page::Parts(parts) }))
    }

    /// The tables as they are now: renamed, retyped, with another key, new, or gone. What did not change stays the same value.
    pub async fn refresh_tables(&self) -> Result<Tables> {
        let sql = "select id, schema_name, table_name, key_columns, partitioned, active, relation, fingerprint, careful, left_out
                   from switchboard.tables()";
        let began = Instant::now();
        let known = self.tables();
        let mut fresh = Tables::new();
        let mut unknown = Vec::new();
        for row in self.query(sql, &[]).await? {
            let table = Table {
                watch: row.try_get(0)?,
                name: TableName::new(row.try_get::<_, String>(1)?, row.try_get::<_, String>(2)?),
                key: row.try_get(3)?,
                partitioned: row.try_get(4)?,
                active: row.try_get(5)?,
            };
            let relation: Option<u32> = row.try_get(6)?;
            let watched = Watched {
                table: Arc::new(table),
                columns: Vec::new(),
                fingerprint: row.try_get(7)?,
                careful: row.try_get(8)?,
                left_out: row.try_get::<_, Option<_>>(9)?.unwrap_or_default(),
            };
            match known.get(&watched.table.watch) {
                Some(before) if before.is_described_by(&watched) => {
                    fresh.insert(before.table.watch, before.clone());
                }
                _ => unknown.push((watched, relation)),
            }
        }
        for (mut watched, relation) in unknown {
            if let Some(relation) = relation.filter(|_| watched.table.active) {
                watched.columns = self.columns(relation).await?;
            }
            fresh.insert(watched.table.watch, Arc::new(watched));
        }
        let mut last = self.lock_tables();
        last.version += u64::from(last.tables != fresh);
        last.tables.clone_from(&fresh);
        last.seen = last.seen.max(Some(began));
        drop(last);
        Ok(fresh)
    }

    /// The tables as they were at `since` or later. Those who ask at the same time share one look.
    pub async fn tables_since(&self, since: Instant) -> Result<Tables> {
        let _only_one = self.looking_up.lock().await;
        if self.lock_tables().seen.is_some_and(|seen| seen >= since) {
            return Ok(self.tables());
        }
        self.refresh_tables().await
    }

    async fn columns(&self, relation: u32) -> Result<Vec<Column>> {
        let sql = format!("select {}", filter::columns_sql("$1"));
        let row = self.query_one(&sql, &[(&relation, Type::OID)]).await?;
        filter::columns(row.try_get(0)?)
    }

    /// The tables as last seen.
    pub fn tables(&self) -> Tables {
        self.lock_tables().tables.clone()
    }

    /// Counts how often the tables were seen to have changed.
    pub fn tables_version(&self) -> u64 {
        self.lock_tables().version
    }

    /// How PostgreSQL reads the literals of a filter; or what it says against one of them.
    pub async fn answer(&self, question: &Question) -> Result<Answer, Refused> {
        if let Some(answer) = self.questions.known(question) {
            return Ok(answer);
        }
        // Nobody closes it.
        let _turn = self.questions.asking.acquire().await;
        // Somebody may have asked the same meanwhile.
        if let Some(answer) = self.questions.known(question) {
            return Ok(answer);
        }
        let answer = self.ask_literals(question).await?;
        self.questions.remember(question, &answer);
        Ok(answer)
    }

    async fn ask_literals(&self, question: &Question) -> Result<Answer, Refused> {
        let connection = self.connection().await.map_err(Refused::Failed)?;
        let params = question.params.iter().map(|text| (text as &(dyn ToSql + Sync), Type::TEXT)).collect::<Vec<_>>();
        let asking = async {
            connection.batch_execute(&format!("begin read only; {}{AS_CAPTURED}", self.locals())).await?;
            let rows = connection.query_typed(&question.sql, &params).await?;
            connection.batch_execute("commit").await?;
            Ok::<_, tokio_postgres::Error>(rows)
        };
        let asked = connection.within(async { Ok::<_, tokio_postgres::Error>(asking.await) }).await;
        let rows = match asked.map_err(Refused::Failed)? {
            Ok(rows) => rows,
            Err(error) if error.code().is_some_and(is_of_the_literal) => {
                let said = error.as_db_error().map_or_else(String::new, |error| error.message().to_owned());
                // A wrong literal is no reason to give the connection up.
                connection.within(connection.batch_execute("rollback")).await.map_err(Refused::Failed)?;
                connection.give_back();
                return Err(Refused::Said(question.refusal(&said)));
            }
            Err(error) => return Err(Refused::Failed(told(error))),
        };
        connection.give_back();
        let row = rows.first().context("a question has an answer of one row").map_err(Refused::Failed)?;
        let answer: Result<Answer, _> = (0..row.len()).map(|index| row.try_get(index)).collect();
        answer.map_err(|error| Refused::Failed(error.into()))
    }

    fn lock_tables(&self) -> std::sync::MutexGuard<'_, LastSeen> {
        // A map of what the database said stays whole whatever panicked beside it.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_oldest(&self) -> std::sync::MutexGuard<'_, Hint> {
        self.oldest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets a slice of the oldest commits that need not be `kept`, or goes on with the changes of one that was begun.
    pub async fn trim(&self, kept: &Kept) -> Result<Trimmed> {
        let seconds = kept.age.as_secs_f64();
        let hint = self.lock_oldest().clone();
        let sql = "select forgotten, more, oldest from switchboard.trim(make_interval(secs => $1), $2, $3, $4, $5, $6, $7, $8)";
        let values: &[(&(dyn ToSql + Sync), Type)] = &[
            (&seconds, Type::FLOAT8),
            (&kept.commits, Type::INT8),
            (&kept.bytes, Type::INT8),
            (&TRIM_COMMITS_MAX, Type::INT4),
            (&TRIM_CHANGES_MAX, Type::INT4),
            (&TRIM_BYTES_MAX, Type::INT8),
            (&hint.epoch, Type::TEXT),
            (&hint.position, Type::INT8),
        ];
        let row = self.query_one(sql, values).await?;
        if let Some(oldest) = row.try_get::<_, Option<Position>>(2)? {
            let mut known = self.lock_oldest();
            // Unless the epoch that was trimmed is not, or no longer, the one that is known.
            if known.epoch.is_some() && known.epoch == hint.epoch {
                known.position = known.position.max(oldest);
            }
        }
        Ok(Trimmed { commits: row.try_get(0)?, more: row.try_get(1)? })
    }
}

/// Whether an error is one of a row that is read, not of the connection or the server: it has no form in UTF-8, is damaged, or too large.
fn is_of_a_row(code: &SqlState) -> bool {
    ["22", "54", "XX"].iter().any(|class| code.code().starts_with(class))
}

/// Whether an error is one of what was asked (data exceptions, and what a cast may raise), not of the connection or the server.
fn is_of_the_literal(code: &SqlState) -> bool {
    ["22", "42", "0A"].iter().any(|class| code.code().starts_with(class))
}

/// A connection from the pool that is closed rather than handed to the next one, unless it was given back: dropped half-way through
/// a statement or a transaction, it would carry that along.
pub struct Borrowed {
    connection: Option<Object>,
    hung_up: watch::Receiver<Option<Instant>>,
}

impl Borrowed {
    /// Waits for a statement of this connection's, no longer than its patience, nor than the link lives.
    pub async fn within<T>(&self, work: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T> {
        let mut hung_up = self.hung_up.clone();
        tokio::select! {
            done = within(STATEMENT_PATIENCE, work) => done,
            // The log lives as long as its gateway.
            Ok(()) = hung_up.changed() => bail!("the link to PostgreSQL is dead"),
        }
    }

    /// Gives it back, outside of any transaction.
    pub fn give_back(mut self) {
        self.connection = None;
    }
}

impl std::ops::Deref for Borrowed {
    type Target = Object;

    fn deref(&self) -> &Object {
        self.connection.as_ref().expect("only giving it back, which takes self, takes it")
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            drop(Object::take(connection));
        }
    }
}

/// What a row of the log becomes.
enum Known {
    Change(Change),
    /// Its table is none that was ever watched here.
    Nowhere(i32),
    /// It cannot be told, for this reason.
    Unreadable(Arc<Table>, String),
    /// It does not fit what is known of its table: look again.
    Unsettled,
}

fn change(row: &Row, serial: i64, tables: &Tables, before: Option<&Tables>) -> Result<Known> {
    let watch: i32 = row.try_get("watch")?;
    let Some(watched) = tables.get(&watch) else {
        return Ok(if before.is_some() { Known::Nowhere(watch) } else { Known::Unsettled });
    };
    let table = watched.table.clone();
    let op = match row.try_get("op")? {
        "I" => Op::Insert,
        "U" => Op::Update,
        "D" => Op::Delete,
        "T" => Op::Truncate,
        "R" => Op::Reset,
        other => return Ok(Known::Unreadable(table, format!("this version does not know the operation {other:?}"))),
    };
    let read = |column| -> Result<Result<Option<Box<RawValue>>, String>> {
        let bytes: Option<&[u8]> = row.try_get(column)?;
        Ok(bytes.map(|bytes| read_row(bytes, &watched.left_out)).transpose())
    };
    let (old, new) = match (read("old")?, read("new")?) {
        (Ok(old), Ok(new)) => (old, new),
        (Err(why), _) | (_, Err(why)) => return Ok(Known::Unreadable(table, why)),
    };
    let expected = match op {
        Op::Insert => (false, true),
        Op::Update => (true, true),
        Op::Delete => (true, false),
        Op::Truncate | Op::Reset => (false, false),
    };
    if (old.is_some(), new.is_some()) != expected {
        return Ok(Known::Unreadable(
            table,
            format!("it is no {}: a row is missing, or one is there too many", op.name()),
        ));
    }
    let change = Change::new(serial, table, op, old, new);
    if change.fits() {
        return Ok(Known::Change(change));
    }
    let Some(before) = before else { return Ok(Known::Unsettled) };
    // Written before its table's key was renamed; else by a key that nobody remembers.
    let then = before.get(&watch).unwrap_or(watched).table.clone();
    Ok(Known::Change(Change::new(serial, then, op, change.old, change.new)))
}

/// A row as it came from the log, without the columns that are left out; or what is wrong with it.
fn read_row(bytes: &[u8], left_out: &[String]) -> Result<Box<RawValue>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
    if !text.starts_with('{') {
        return Err("it has no row that is a JSON object".to_owned());
    }
    let row = RawValue::from_string(text.to_owned()).map_err(|error| format!("it is not JSON ({error})"))?;
    Ok(if left_out.is_empty() { row } else { without(&row, left_out) })
}

/// Which transactions were visible to a transaction of PostgreSQL: the text form of its `pg_snapshot`,
/// `XMIN:XMAX:XIP,XIP,…` (PostgreSQL manual, 9.27.8).
#[derive(Clone, PartialEq, Eq)]
pub struct Visible {
    xmin: u64,
    xmax: u64,
    running: Vec<u64>,
}

impl Visible {
    /// Reads the text form; `None` where it is not one.
    pub fn parse(text: &str) -> Option<Visible> {
        let mut parts = text.splitn(3, ':');
        let (xmin, xmax) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let running = parts.next()?.split(',').filter(|xid| !xid.is_empty());
        let mut running = running.map(|xid| xid.parse().ok()).collect::<Option<Vec<u64>>>()?;
        running.sort_unstable();
        Some(Visible { xmin, xmax, running })
    }

    /// Whether what this transaction did could be seen, given that it committed.
    pub fn sees(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && self.running.binary_search(&xid).is_err())
    }
}

impl fmt::Debug for Visible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{:?}", self.xmin, self.xmax, self.running)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_sees_what_had_ended_when_it_was_taken() {
        let visible = Visible::parse("10:20:10,14,15").expect("a snapshot");

        let seen: Vec<u64> = (8..22).filter(|xid| visible.sees(*xid)).collect();
        assert_eq!(seen, [8, 9, 11, 12, 13, 16, 17, 18, 19]);
        assert_eq!(Visible::parse("10:10:").map(|visible| visible.sees(9)), Some(true));
        assert_eq!(Visible::parse("10"), None);
        assert_eq!(Visible::parse("10:20:x"), None);
    }
}
