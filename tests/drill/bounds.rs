//! Samples, while a round runs, of what has to stay within bounds: memory, connections, the log, the notification queue, and that no
//! writer waits for us.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;

use crate::gateways::Gateway;
use crate::writers;

/// How often to look.
const EVERY: Duration = Duration::from_millis(300);
/// How much memory one gateway may take: its history of 2 MiB, a page or two for each reader and each snapshot, and the program.
const MEMORY_BYTES_MAX: u64 = 200 << 20;
/// Connections of one gateway: the listener, the feed's three, four for snapshots (`--readers-max`), and two for those who catch up. Twice
/// that, since the server may not yet know that a killed or cut-off one is gone.
const CONNECTIONS_MAX: i64 = 2 * (1 + 3 + 4 + 2);
/// How large the log's tables may become on disk.
const LOG_BYTES_MAX: i64 = 4 << 30;
/// How full the queue of notifications may be.
const QUEUE_MAX: f64 = 0.01;

/// The largest values seen, and what was out of bounds.
#[derive(Default)]
pub struct Samples {
    pub most: BTreeMap<&'static str, f64>,
    pub violations: Vec<String>,
    waiting: HashMap<(i32, i32), String>,
}

impl Samples {
    fn note(&mut self, what: &'static str, value: f64, most: f64) {
        let seen = self.most.entry(what).or_default();
        *seen = seen.max(value);
        if value > most && self.violations.len() < 10 {
            self.violations.push(format!("{what}: {value} is more than {most}"));
        }
    }
}

/// Looks until told to stop.
pub async fn watch(url: String, gateways: Arc<Vec<Gateway>>, stop: CancellationToken) -> Samples {
    let mut samples = Samples::default();
    let mut session = None;
    while !stop.is_cancelled() {
        for gateway in gateways.iter() {
            if let Some(bytes) = memory(gateway).await {
                samples.note("memory of a gateway, bytes", bytes as f64, MEMORY_BYTES_MAX as f64);
            }
        }
        if session.is_none() {
            session = connect(&url).await;
        }
        if let Some(client) = &session
            && look(client, gateways.len() as i64, &mut samples).await.is_err()
        {
            session = None;
        }
        tokio::time::sleep(EVERY).await;
    }
    samples
}

async fn connect(url: &str) -> Option<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.ok()?;
    tokio::spawn(connection);
    Some(client)
}

async fn memory(gateway: &Gateway) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.id().await?)).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()? << 10)
}

async fn look(client: &Client, gateways: i64, samples: &mut Samples) -> Result<(), tokio_postgres::Error> {
    let sql = "select (select count(*) from pg_stat_activity where application_name = 'switchboard'),
                      pg_notification_queue_usage(),
                      (select sum(pg_total_relation_size(oid))::bigint from pg_class
                       where relnamespace = 'switchboard'::regnamespace and relkind = 'r')";
    let row = client.query_one(sql, &[]).await?;
    samples.note("connections of gateways", row.get::<_, i64>(0) as f64, (CONNECTIONS_MAX * gateways) as f64);
    samples.note("use of the notification queue", row.get(1), QUEUE_MAX);
    samples.note(
        "size of the log on disk, bytes",
        row.get::<_, Option<i64>>(2).unwrap_or(0) as f64,
        LOG_BYTES_MAX as f64,
    );
    // What lasts from one look to the next is more than the moment that two commits take beside each other.
    let waits = waits(client).await?;
    for (who, told) in &waits {
        if samples.waiting.contains_key(who) && samples.violations.len() < 10 {
            samples.violations.push(format!("a writer waits: {told}"));
        }
    }
    samples.waiting = waits;
    Ok(())
}

/// The writers that wait for a gateway: whose session for whose, and for what.
async fn waits(client: &Client) -> Result<HashMap<(i32, i32), String>, tokio_postgres::Error> {
    // A snapshot holds the weakest lock there is on a table; what empties or alters the table waits for it, and who queues behind that.
    let sql = format!(
        "select waiting.pid, blocking.pid,
                format('%L waits for %s of %s, held by %L', waiting.query, lock.mode,
                       coalesce(lock.relation::regclass::text, lock.locktype), blocking.query)
         from pg_locks as lock join pg_stat_activity as waiting on waiting.pid = lock.pid
         cross join lateral unnest(pg_blocking_pids(lock.pid)) as by (pid)
         join pg_stat_activity as blocking on blocking.pid = by.pid
         where not lock.granted and waiting.application_name = '{}' and blocking.application_name = 'switchboard'
           and lock.mode <> 'AccessExclusiveLock'",
        writers::NAME
    );
    let rows = client.query(&sql, &[]).await?;
    Ok(rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect())
}
