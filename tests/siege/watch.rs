//! Looks at the gateway from outside while it is attacked: memory, files, processor time, and connections to PostgreSQL.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::gateway::{self, Usage};

/// How often to look.
const EVERY: Duration = Duration::from_millis(50);

/// What was seen since the last [`Watch::begin`].
#[derive(Clone, Default)]
pub struct Seen {
    pub memory_peak_bytes: u64,
    pub files_peak: usize,
    pub connections_peak: usize,
    /// The gateway's sessions of PostgreSQL, by process and the moment they began.
    sessions: HashSet<(i32, String)>,
    /// Those that were there when it began.
    old: HashSet<(i32, String)>,
    pub violations: Vec<String>,
}

impl Seen {
    /// How many sessions were opened meanwhile.
    pub fn sessions_opened(&self) -> usize {
        self.sessions.difference(&self.old).count()
    }
}

/// A task that looks on and on.
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    process: watch::Sender<Option<u32>>,
    looking: JoinHandle<()>,
}

impl Watch {
    /// Looks with a session of its own. A process that takes more than `memory_bytes_max` is killed, for the machine's sake.
    pub fn start(session: Client, memory_bytes_max: u64) -> Watch {
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let (process, current) = watch::channel(None);
        let looking = tokio::spawn(look(session, memory_bytes_max, current, seen.clone()));
        Watch { seen, process, looking }
    }

    /// Looks at this process from now on, or at none.
    pub fn at(&self, process: Option<u32>) {
        self.process.send_replace(process);
    }

    /// What the process uses now.
    pub fn usage(&self) -> Usage {
        self.process.borrow().and_then(gateway::usage).unwrap_or_default()
    }

    /// Forgets what was seen, but for the sessions that are there.
    pub fn begin(&self) {
        let mut seen = self.seen.lock().unwrap();
        let old = std::mem::take(&mut seen.sessions);
        *seen = Seen { old, ..Seen::default() };
    }

    /// What was seen since it began.
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.looking.abort();
    }
}

async fn look(session: Client, memory_bytes_max: u64, process: watch::Receiver<Option<u32>>, seen: Arc<Mutex<Seen>>) {
    let sql = "select pid, backend_start::text from pg_stat_activity where application_name = 'switchboard'";
    loop {
        let current = *process.borrow();
        if let Some(usage) = current.and_then(gateway::usage) {
            let mut seen = seen.lock().unwrap();
            seen.memory_peak_bytes = seen.memory_peak_bytes.max(usage.memory_bytes);
            seen.files_peak = seen.files_peak.max(usage.files);
            if usage.memory_bytes > memory_bytes_max {
                seen.violations.push(format!("the gateway took {} MiB and was killed", usage.memory_bytes >> 20));
                current.iter().for_each(|id| gateway::signal("KILL", *id));
            }
        }
        if let Ok(rows) = session.query(sql, &[]).await {
            let mut seen = seen.lock().unwrap();
            seen.connections_peak = seen.connections_peak.max(rows.len());
            seen.sessions
                .extend(rows.iter().map(|row| (row.get(0), row.get::<_, Option<String>>(1).unwrap_or_default())));
        }
        tokio::time::sleep(EVERY).await;
    }
}
