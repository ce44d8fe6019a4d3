//! Snapshots: the current rows of a selection, and exactly where the stream goes on from them.
//!
//! Rows are read once, in one repeatable-read transaction, into a store that any number of clients empty at their own pace: a slow
//! client never keeps a transaction open, and those who ask for the same at the same time share one reading. The store lies in
//! memory while it is small and in an unnamed temporary file beyond that.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures_util::TryStreamExt;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use crate::change::{Cursor, Epoch, Part, Position, Table};
use crate::config::{LINK_PATIENCE, SNAPSHOT_PIECE_BYTES_MAX, SNAPSHOT_SHARED_FOR, SNAPSHOT_WAITERS_EVERY};
use crate::log::{AS_CAPTURED, Borrowed, Log, Numbered, Visible, Word};
use crate::names::quoted;
use crate::protocol::RowsFrame;
use crate::selection::{Pick, Selection};
use crate::session::told;

/// How many bytes of a snapshot stay in memory; the rest lies on disk.
const MEMORY_BYTES_MAX: u64 = 1 << 20;
/// After how many bytes a page of rows ends (one row may be larger).
const ROWS_BYTES_MAX: usize = 64 << 10;
/// How long a reading waits for tables that are being altered or emptied.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);
/// How often it tries them.
const LOCK_RETRY: Duration = Duration::from_millis(50);

/// Hands out snapshots.
pub struct Snapshots {
    readers: Log,
    /// Numbers while all readers may be busy with rows.
    numbering: Log,
    /// Looks whether somebody waits for what is being read.
    lookout: Log,
    /// How long a reading may take.
    reading_patience: Duration,
    /// Wakes the feed, which is to bring what was numbered here.
    nudge: Arc<Notify>,
    store: Store,
    /// When the last numbering for others began, and what it found. Held while one is under way.
    last_numbering: tokio::sync::Mutex<Option<(Instant, Position)>>,
    recent: Mutex<HashMap<Sought, Arc<Snapshot>>>,
}

/// What has to be the same for those who share a reading.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Sought {
    selection: Selection,
    /// In which life of the hub's positions it was begun: rows that were read in an earlier one may hold commits that are lost.
    life: u64,
    /// What the tables were: see [`Log::tables_version`].
    tables: u64,
}

/// How much room there is for rows.
pub struct Store {
    /// For those of one snapshot.
    one_bytes_max: u64,
    /// For those of all.
    all_bytes_max: u64,
    taken_bytes: Arc<AtomicU64>,
}

impl Store {
    /// Room for so many bytes of each snapshot, and of all together.
    pub fn new(one_bytes_max: u64, all_bytes_max: u64) -> Store {
        Store { one_bytes_max, all_bytes_max, taken_bytes: Arc::default() }
    }

    /// Room for some more of a snapshot.
    fn take(&self, room: &mut Room, bytes: u64) -> Result<()> {
        if room.bytes + bytes > self.one_bytes_max {
            let most = self.one_bytes_max;
            bail!(Unreadable(format!(
                "the rows take more than {most} bytes; select fewer, or let the operator raise --snapshot-bytes-max"
            )));
        }
        if self.taken_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > self.all_bytes_max {
            self.taken_bytes.fetch_sub(bytes, Ordering::Relaxed);
            bail!(
                "the snapshots that clients are taking at this moment fill {} bytes; try again later, or raise --snapshots-bytes-max",
                self.all_bytes_max
            );
        }
        room.bytes += bytes;
        Ok(())
    }
}

/// What a snapshot takes of the store, until it is dropped.
struct Room {
    bytes: u64,
    taken_bytes: Arc<AtomicU64>,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.taken_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The rows of one reading, as frames.
pub struct Snapshot {
    frames: Mutex<Frames>,
    progress: watch::Sender<Progress>,
}

struct Frames {
    stored: Vec<Stored>,
    room: Room,
    file: Option<Arc<File>>,
}

#[derive(Clone)]
enum Stored {
    Memory(Bytes),
    Disk { offset: u64, bytes: usize },
}

#[derive(Clone, Default)]
struct Progress {
    frames: usize,
    /// When it ended, and how.
    end: Option<(Instant, Result<Join, Failure>)>,
}

/// Why a reading has no end to join to.
#[derive(Clone)]
enum Failure {
    Changed,
    Interrupted,
    Unreadable(Arc<str>),
    Other(Arc<str>),
}

impl Failure {
    fn of(error: anyhow::Error) -> Failure {
        match error.downcast_ref::<Unreadable>() {
            Some(Unreadable(what)) => Failure::Unreadable(what.as_str().into()),
            None if error.is::<Changed>() => Failure::Changed,
            None if error.is::<Interrupted>() => Failure::Interrupted,
            None => Failure::Other(format!("{error:#}").into()),
        }
    }
}

/// A table is not any more what it was when it was selected.
#[derive(Debug)]
struct Changed;

impl std::fmt::Display for Changed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a table was altered, renamed or dropped since it was selected")
    }
}

impl std::error::Error for Changed {}

/// The rows cannot be read, whenever that is tried: why, and what to do about it.
#[derive(Debug)]
struct Unreadable(String);

/// What to do where it is a table whose rows cannot be read.
const REMEDY: &str = "select other tables, or let the operator run \"switchboard check\"";

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreadable {}

impl Unreadable {
    /// What an error says of the rows of this table: a right or a row security policy is in the way, or a value.
    fn of(table: &Table, error: tokio_postgres::Error) -> anyhow::Error {
        let code = error.code().map(|code| code.code().to_owned()).unwrap_or_default();
        // SQL_ASCII says nothing of its bytes, and PostgreSQL that they are no UTF-8.
        let encoding = if code == "22021" { "a text is not UTF-8: " } else { "" };
        // No right, damaged data or index, and whatever is wrong with a value. Other internal errors may be gone the next time.
        let lasts = ["42501", "XX001", "XX002"].contains(&&*code)
            || ["22", "54", "P0"].iter().any(|class| code.starts_with(class));
        let error = told(error);
        match lasts {
            true => {
                Unreadable(format!("the rows of {} cannot be read: {encoding}{error:#}; {REMEDY}", table.name)).into()
            }
            false => error.context(format!("reading {}", table.name)),
        }
    }
}
/// Somebody waits for a lock on a table that was being read, and all who write to that table wait behind them.
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(
            "the rows could not be read to their end, since somebody alters or empties their table again and again",
        )
    }
}

impl std::error::Error for Interrupted {}

/// Where the stream goes on from the rows: with the commits after `head` that the rows do not hold yet.
#[derive(Clone, Debug)]
pub struct Join {
    /// The epoch that the rows were read in.
    pub epoch: Epoch,
    /// All commits up to this one are in the rows.
    pub head: Position,
    /// Which of those behind it are in the rows too.
    pub visible: Visible,
    /// No commit behind this one is in the rows. What `visible` says of those is not to be trusted: a transaction that the rows hold and
    /// that wrote nothing else may be undone by a crash, and another one then have its number.
    pub covered: Cursor,
}

impl Join {
    /// Whether the rows hold what the part tells.
    pub fn hold(&self, part: &Part) -> bool {
        part.cursor.position <= self.covered.position && self.visible.sees(part.tx)
    }
}

/// What there is of a snapshot.
pub enum Piece {
    /// Whole frames, and the number of the next one.
    Frames(Bytes, usize),
    /// No more frames: the rows are complete.
    End(Join),
    /// A table is not any more what it was when it was selected: select anew.
    Changed,
    /// The rows cannot be read, as this sentence says.
    Unreadable(String),
    /// Nobody knows the rest of the rows: they are to be read from the beginning.
    Interrupted,
}

impl Snapshots {
    /// Snapshots read over the connections of `readers`, each within this patience.
    pub fn new(
        readers: Log,
        numbering: Log,
        nudge: Arc<Notify>,
        store: Store,
        reading_patience: Duration,
    ) -> Snapshots {
        let lookout = numbering.with_connections(1);
        let (last_numbering, recent) = Default::default();
        Snapshots { readers, numbering, lookout, reading_patience, nudge, store, last_numbering, recent }
    }

    /// The current rows: a reading that is under way or only just finished, or else a new one. `life` is that of the hub's positions
    /// (see [`crate::hub::Head`]) that the stream behind the rows is to follow.
    ///
    /// A reading that began before `asked` is shared only where the tables are as they were then: the stream behind it tells what was
    /// written since, but not what was done to a table.
    pub async fn get(self: &Arc<Self>, selection: &Selection, life: u64, asked: Instant) -> Result<Arc<Snapshot>> {
        // Over other connections than the readers', all of which may be busy with rows.
        self.numbering.tables_since(asked).await?;
        let mut recent = self.still_recent();
        let wanted = Sought { selection: selection.clone(), life, tables: self.readers.tables_version() };
        if let Some(snapshot) = recent.get(&wanted) {
            return Ok(snapshot.clone());
        }
        let room = Room { bytes: 0, taken_bytes: self.store.taken_bytes.clone() };
        let frames = Mutex::new(Frames { stored: Vec::new(), room, file: None });
        let snapshot = Arc::new(Snapshot { frames, progress: watch::Sender::default() });
        recent.insert(wanted, snapshot.clone());
        let (this, selection, reading) = (self.clone(), selection.clone(), snapshot.clone());
        // Not tied to the client that asked first: others may be waiting for it. Ends by itself, every step within its patience.
        tokio::spawn(async move {
            let end = this.read(&selection, &reading).await.map_err(Failure::of);
            reading.progress.send_modify(|progress| progress.end = Some((Instant::now(), end)));
            drop(reading);
            // Whoever is still taking the rows holds them; nobody else does after this.
            sleep(SNAPSHOT_SHARED_FOR).await;
            drop(this.still_recent());
        });
        Ok(snapshot)
    }

    /// The readings that others may share, without those that are over.
    fn still_recent(&self) -> MutexGuard<'_, HashMap<Sought, Arc<Snapshot>>> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.retain(|_, snapshot| match &snapshot.progress.borrow().end {
            None => true,
            Some((ended, Ok(_))) => ended.elapsed() < SNAPSHOT_SHARED_FOR,
            Some((_, Err(_))) => false,
        });
        recent
    }

    async fn read(&self, selection: &Selection, snapshot: &Arc<Snapshot>) -> Result<Join> {
        let picks = selection.picks(&self.readers.refresh_tables().await?).ok_or(Changed)?;
        let connection = self.begin(&picks).await?;
        let read = async {
            let sql = "select pg_current_snapshot()::text, pg_backend_pid()";
            let row = connection.within(connection.query_typed(sql, &[])).await?.pop();
            let row = row.context("no snapshot came back")?;
            let visible = Visible::parse(row.try_get(0)?).context("PostgreSQL gave no snapshot")?;
            tokio::select! {
                join = self.read_rows(&connection, selection, &picks, snapshot, visible) => join,
                () = self.waited_for(row.try_get(1)?) => Err(Interrupted.into()),
            }
        };
        let patience = self.reading_patience;
        let read = timeout(patience, read).await.unwrap_or_else(|_| {
            let seconds = patience.as_secs_f64();
            bail!(Unreadable(format!(
                "the rows could not be read within {seconds} s, and may not be locked for longer; select fewer"
            )))
        });
        match read {
            Ok(_) => connection.give_back(),
            Err(_) => stop(connection).await,
        }
        read
    }

    async fn read_rows(
        &self,
        connection: &Borrowed,
        selection: &Selection,
        picks: &[Pick],
        snapshot: &Arc<Snapshot>,
        visible: Visible,
    ) -> Result<Join> {
        // They may have been altered before they were locked, or others come: what the snapshot sees of that is not told again. (Over other
        // connections than the readers', all of which may be busy here.)
        let now = selection.picks(&self.numbering.refresh_tables().await?).ok_or(Changed)?;
        let goes_on = |(then, now): (&Pick, &Pick)| then.watched.goes_on_as(&now.watched);
        if now.len() != picks.len() || !picks.iter().zip(&now).all(goes_on) {
            bail!(Changed);
        }
        let Cursor { epoch, position: head, .. } = self.readers.look_on(connection, 0).await?.head;
        // After this, whatever the rows hold has a position.
        let covered = self.number().await?;
        let covered = Cursor { epoch, position: covered.head, nonce: covered.nonce };
        for pick in picks {
            self.read_table(connection, pick, snapshot).await?;
        }
        connection.within(connection.batch_execute("commit")).await?;
        Ok(Join { epoch, head, visible, covered })
    }

    /// Waits until somebody waits for a lock that keeps them from a table, or one of its indexes, which this process of PostgreSQL holds
    /// in the weakest mode there is.
    async fn waited_for(&self, process: i32) {
        let sql = "with locks as materialized (
                       select database, relation, mode, granted, pid from pg_locks where locktype = 'relation')
                   select exists (
                       select from locks as waiting join locks as held using (database, relation)
                       where not waiting.granted and waiting.mode = 'AccessExclusiveLock' and held.granted and held.pid = $1)";
        loop {
            sleep(SNAPSHOT_WAITERS_EVERY).await;
            match self.lookout.ask(sql, &[(&process, Type::INT4)]).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::debug!("cannot see whether somebody waits for a snapshot: {error:#}"),
            }
        }
    }

    /// Gives positions to what has committed until now, and tells the feed. Returns the newest.
    async fn number(&self) -> Result<Numbered> {
        let numbered = self.numbering.number().await?;
        if numbered.commits > 0 {
            self.numbering.say(Word::StandIn).await?;
        }
        self.nudge.notify_one();
        Ok(numbered)
    }

    /// The position of the newest commit that had returned at `since`. Those who ask at the same time share one numbering.
    pub async fn numbered_since(&self, since: Instant) -> Result<Position> {
        let mut last = self.last_numbering.lock().await;
        if let Some((began, head)) = *last
            && began >= since
        {
            return Ok(head);
        }
        let began = Instant::now();
        let head = self.number().await?.head;
        *last = Some((began, head));
        Ok(head)
    }

    /// Begins a transaction in which nobody can alter or empty the tables, before it has its snapshot: one that is rewritten or
    /// truncated between the snapshot and its reading would look empty.
    ///
    /// It never waits while it holds a lock: a user's transaction that locks the same tables in another order could be undone for it,
    /// as a deadlock.
    async fn begin(&self, picks: &[Pick]) -> Result<Borrowed> {
        // The settings that capture pins, so that a value reads the same in a row and in a change.
        let begin = format!(
            "begin isolation level repeatable read read only; {}{AS_CAPTURED}; set local row_security = off",
            self.readers.locals()
        );
        let locks: Vec<String> = picks
            .iter()
            .map(|pick| format!("lock table {} in access share mode nowait", source(&pick.watched.table)))
            .collect();
        let connection = self.readers.connection().await?;
        let began = Instant::now();
        let locked = |error: &tokio_postgres::Error| error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE);
        loop {
            connection.within(connection.batch_execute(&begin)).await?;
            let locking = async {
                for (lock, pick) in locks.iter().zip(picks) {
                    match connection.batch_execute(lock).await {
                        Err(error) if locked(&error) && began.elapsed() < LOCK_PATIENCE => return Ok(Ok(false)),
                        Err(error) => return Ok(Err(Unreadable::of(&pick.watched.table, error))),
                        Ok(()) => {}
                    }
                }
                Ok(Ok(true))
            };
            if connection.within(locking).await?? {
                return Ok(connection);
            }
            connection.within(connection.batch_execute("rollback")).await?;
            sleep(LOCK_RETRY).await;
        }
    }

    async fn read_table(&self, connection: &Borrowed, pick: &Pick, snapshot: &Arc<Snapshot>) -> Result<()> {
        let table = &pick.watched.table;
        let (sql, params) = rows_of(pick);
        let mut page = RowsFrame::new(&table.name, table.key.as_deref());
        let params = params.into_iter().map(|param| (param, Type::TEXT));
        let unreadable = |error| Unreadable::of(table, error);
        let asking = connection.query_typed_raw(&sql, params);
        let rows = connection.within(async { Ok(asking.await) }).await?.map_err(unreadable)?;
        let mut rows = std::pin::pin!(rows);
        let mut pages = 0;
        while let Some(row) = connection.within(async { Ok(rows.try_next().await) }).await?.map_err(unreadable)? {
            let Ok(row) = row.try_get(0) else {
                bail!(Unreadable(format!("the rows of {} cannot be read: a text is not UTF-8; {REMEDY}", table.name)));
            };
            page.push(row);
            if page.bytes() >= ROWS_BYTES_MAX {
                self.keep(snapshot, page.take())?;
                pages += 1;
                // This reading and the list of recent ones hold it anyhow.
                if Arc::strong_count(snapshot) <= 2 {
                    bail!("everybody who asked for the rows is gone");
                }
            }
        }
        // A table without rows has one page too: the client learns its name and its key.
        if pages == 0 || !page.is_empty() {
            self.keep(snapshot, page.take())?;
        }
        Ok(())
    }

    fn keep(&self, snapshot: &Snapshot, frame: Vec<u8>) -> Result<()> {
        let mut frames = snapshot.lock();
        let offset = frames.room.bytes;
        self.store.take(&mut frames.room, frame.len() as u64)?;
        frames.keep(frame, offset).context("keeping rows on disk")?;
        let count = frames.stored.len();
        drop(frames);
        snapshot.progress.send_modify(|progress| progress.frames = count);
        Ok(())
    }
}

impl Frames {
    fn keep(&mut self, frame: Vec<u8>, offset: u64) -> std::io::Result<()> {
        let bytes = frame.len();
        let stored = if offset + bytes as u64 <= MEMORY_BYTES_MAX {
            Stored::Memory(frame.into())
        } else {
            let file = match &self.file {
                Some(file) => file.clone(),
                None => self.file.insert(Arc::new(tempfile::tempfile()?)).clone(),
            };
            // What is in memory leaves a hole at the file's beginning, which takes no space.
            file.write_all_at(&frame, offset)?;
            Stored::Disk { offset, bytes }
        };
        self.stored.push(stored);
        Ok(())
    }
}

impl Snapshot {
    /// What follows frame `next`: some frames, about [`SNAPSHOT_PIECE_BYTES_MAX`] bytes at most, or the end. Waits while there is neither.
    pub async fn piece(&self, next: usize) -> Result<Piece> {
        let mut progress = self.progress.subscribe();
        let there = |progress: &Progress| progress.frames > next || progress.end.is_some();
        let now = progress.wait_for(there).await.context("the reading was given up")?.clone();
        match now.end {
            Some((_, Err(Failure::Changed))) => Ok(Piece::Changed),
            Some((_, Err(Failure::Unreadable(what)))) => Ok(Piece::Unreadable(what.to_string())),
            Some((_, Err(Failure::Interrupted))) => Ok(Piece::Interrupted),
            Some((_, Err(Failure::Other(reason)))) => bail!("{reason}"),
            Some((_, Ok(join))) if now.frames == next => Ok(Piece::End(join)),
            _ => self.frames(next).await,
        }
    }

    async fn frames(&self, next: usize) -> Result<Piece> {
        let (wanted, file) = {
            let frames = self.lock();
            let mut bytes = 0;
            let size = |stored: &Stored| match stored {
                Stored::Memory(frame) => frame.len(),
                Stored::Disk { bytes, .. } => *bytes,
            };
            let fit = |stored: &&Stored| {
                let fits = bytes < SNAPSHOT_PIECE_BYTES_MAX;
                bytes += size(stored);
                fits
            };
            (frames.stored[next..].iter().take_while(fit).cloned().collect::<Vec<_>>(), frames.file.clone())
        };
        let end = next + wanted.len();
        let read = move || -> Result<Bytes> {
            let mut out = Vec::new();
            for stored in wanted {
                match stored {
                    Stored::Memory(frame) => out.extend_from_slice(&frame),
                    Stored::Disk { offset, bytes } => {
                        let start = out.len();
                        out.resize(start + bytes, 0);
                        let file = file.as_ref().context("what lies on disk lies in a file")?;
                        file.read_exact_at(&mut out[start..], offset).context("reading rows from disk")?;
                    }
                }
            }
            Ok(out.into())
        };
        Ok(Piece::Frames(tokio::task::spawn_blocking(read).await.context("reading rows")??, end))
    }

    fn lock(&self) -> MutexGuard<'_, Frames> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends what PostgreSQL is at for a connection, and the connection: by itself, a statement would run on to its end.
async fn stop(connection: Borrowed) {
    let cancelling = connection.cancel_token();
    if !matches!(timeout(LINK_PATIENCE, cancelling.cancel_query(NoTls)).await, Ok(Ok(()))) {
        tracing::debug!("a statement could not be cancelled");
    }
}

/// The statement that reads the rows of a selection, each as a JSON text, and its parameters.
fn rows_of(pick: &Pick) -> (String, Vec<String>) {
    const ALIAS: &str = "switchboard_row";
    let mut params = Vec::new();
    let table = source(&pick.watched.table);
    let condition = pick.filter.as_ref().map(|filter| format!(" where {}", filter.sql(ALIAS, &mut params)));
    let condition = condition.unwrap_or_default();
    let watched = &pick.watched;
    let all = || watched.columns.iter().map(|column| column.name.clone()).collect();
    let spelt = watched.careful || !watched.left_out.is_empty();
    // Of a row, as "name.*", and never by its name alone, which may also be that of a column.
    let rows = match pick.columns.clone().or_else(|| spelt.then(all)) {
        None => format!("select row_to_json({ALIAS}.*)::text from {table} as {ALIAS}{condition}"),
        Some(columns) => {
            let value = |name: &String| {
                let name = quoted(name);
                match watched.careful {
                    true => format!("switchboard.value_as_json({ALIAS}.{name}) as {name}"),
                    false => format!("{ALIAS}.{name}"),
                }
            };
            let columns = columns.iter().map(value).collect::<Vec<_>>().join(", ");
            format!(
                "select row_to_json(selected.*)::text from (select {columns} from {table} as {ALIAS}{condition}) as selected"
            )
        }
    };
    (rows, params)
}

/// A table as SQL reads from it. The rows of tables that inherit from this one are theirs; those of partitions are not.
fn source(table: &Table) -> String {
    let only = if table.partitioned { "" } else { "only " };
    format!("{only}{}.{}", quoted(&table.name.schema), quoted(&table.name.table))
}
