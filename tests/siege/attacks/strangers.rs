//! Strangers in the database: a role that may only connect, and a writer that means harm.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::attacks::Field;
use crate::database::{connect, connect_as_stranger};

/// The first number of the gateway's advisory locks, and how many second numbers there are.
const LOCKS: i32 = 1_937_203_812;
const LOCKS_MAX: i32 = 8;
/// How often a lock that somebody else has is tried again.
const TRY_EVERY: Duration = Duration::from_millis(5);
/// How long a change may take until it is told or trimmed, however its transaction was made.
const TOLD_PATIENCE: Duration = Duration::from_secs(3);
/// How often to look.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Takes each advisory lock of the gateway's as soon as it is free, and keeps it.
pub async fn held_locks(field: &Field) {
    let stranger = connect_as_stranger(&field.stage.database_url).await;
    let mut wanted: Vec<i32> = (1..=LOCKS_MAX).collect();
    loop {
        let mut left = Vec::new();
        for lock in wanted {
            let sql = format!("select pg_try_advisory_lock({LOCKS}, {lock})");
            let taken = stranger.query_one(&sql, &[]).await.is_ok_and(|row| row.get(0));
            if !taken {
                left.push(lock);
            }
        }
        wanted = left;
        field.landed();
        tokio::time::sleep(TRY_EVERY).await;
    }
}

/// Sets what tells a transaction's first change from the others, so that nobody numbers it.
pub async fn own_xid(field: &Field) {
    const TRANSACTIONS: usize = 20;
    let session = connect(&field.stage.database_url, "attacker").await;
    for n in 0..TRANSACTIONS {
        let sql = format!(
            "begin; select set_config('switchboard.xid', pg_current_xact_id()::text, true);
             update prey set body = 'hidden {n}' where id = 1; commit"
        );
        session.batch_execute(&sql).await.unwrap();
    }
    let began = Instant::now();
    let mut lost = untold(&session).await;
    while lost > 0 && began.elapsed() < TOLD_PATIENCE {
        tokio::time::sleep(LOOK_EVERY).await;
        lost = untold(&session).await;
    }
    if lost > 0 {
        field.violation(format!("{lost} changes are neither told nor trimmed {TOLD_PATIENCE:?} after their commits"));
    }
    field.landed();
}

/// How many changes of the attackers' table have no position, and never had one.
async fn untold(session: &Client) -> i64 {
    let sql = "select count(*) from switchboard.log as l
               join switchboard.watched as w on w.id = l.watch and w.table_name = 'prey'
               where not exists (select from switchboard.commit as c where c.xid = l.xid)
                 and not exists (select from switchboard.forgotten as f where f.xid = l.xid)";
    session.query_one(sql, &[]).await.unwrap().get(0)
}

/// Fills the queue of notifications, which a listener in an open transaction keeps from being emptied.
pub async fn full_queue(field: &Field) {
    if !field.stage.small_queue {
        field.remark("left out: before PostgreSQL 17 the queue takes 8 GiB to fill".to_owned());
        return field.landed();
    }
    let listener = connect_as_stranger(&field.stage.database_url).await;
    let notifier = connect_as_stranger(&field.stage.database_url).await;
    // A session that the gateway's database ends is not this attack's concern.
    let _ = listener.batch_execute("listen stranger; begin; select 1").await;
    loop {
        if notifier.batch_execute("select pg_notify('stranger', repeat('x', 7900) || random())").await.is_err() {
            field.landed();
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
