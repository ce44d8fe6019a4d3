//! Commits arrive in the order of commits, whatever order their numbers were drawn in.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;

use crate::harness::{Client, Database, Gateway};

const WRITERS: u64 = 8;
const TRANSACTIONS: u64 = 60;

/// When a transaction's commit was sent, and when its answer came, on one clock for all.
struct Span {
    tx: u64,
    issued: u64,
    returned: u64,
}

/// Writers that contend for a few rows, each transaction changing one to three of them, some slowly, some asynchronously.
async fn write(db: &Database, seed: u64) -> Vec<Span> {
    eprintln!("seed {seed}");
    let clock = Arc::new(AtomicU64::new(0));
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let session = db.session().await;
        let clock = clock.clone();
        let mut random = fastrand::Rng::with_seed(seed + writer);
        writers.push(tokio::spawn(async move {
            let mut spans = Vec::new();
            if writer % 2 == 0 {
                session.batch_execute("set synchronous_commit = off").await.unwrap();
            }
            for _ in 0..TRANSACTIONS {
                session.batch_execute("begin").await.unwrap();
                // In the order of their keys, so that writers do not wait for each other in a circle.
                let mut rows: Vec<i32> = (0..random.usize(1..=3)).map(|_| random.i32(1..=20)).collect();
                rows.sort_unstable();
                for row in rows {
                    let update = "update tally set n = n + 1 where id = $1";
                    session.execute(update, &[&row]).await.unwrap();
                    if random.u8(..) < 40 {
                        tokio::task::yield_now().await;
                    }
                }
                let tx: String = session.query_one("select pg_current_xact_id()::text", &[]).await.unwrap().get(0);
                let issued = clock.fetch_add(1, Ordering::SeqCst);
                session.batch_execute("commit").await.unwrap();
                let returned = clock.fetch_add(1, Ordering::SeqCst);
                spans.push(Span { tx: tx.parse().unwrap(), issued, returned });
            }
            spans
        }));
    }
    let mut spans = Vec::new();
    for writer in writers {
        spans.extend(writer.await.unwrap());
    }
    spans
}

async fn tally() -> Database {
    let db = Database::new().await;
    db.run(&["create table tally (id int primary key, n int)", "insert into tally select generate_series(1, 20), 0"])
        .await;
    db.watch("tally").await;
    db
}

async fn commits(client: &mut Client, count: usize) -> Vec<Value> {
    let mut commits = Vec::new();
    while commits.len() < count {
        commits.push(client.commit().await);
    }
    commits
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_returned_before_another_was_issued_comes_first() {
    let db = tally().await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("table=tally").await;

    let spans = write(&db, fastrand::u64(..1 << 32)).await;
    let commits = commits(&mut client, spans.len()).await;

    let order: HashMap<u64, usize> = commits
        .iter()
        .enumerate()
        .map(|(index, commit)| (commit["tx"].as_str().unwrap().parse().unwrap(), index))
        .collect();
    assert_eq!(order.len(), spans.len(), "every transaction once");
    // In the order of arrival, nobody may come whose commit had returned before one that came earlier was issued.
    let mut arrived: Vec<&Span> = spans.iter().collect();
    arrived.sort_by_key(|span| order[&span.tx]);
    let mut latest_issued = 0;
    for span in arrived {
        assert!(span.returned > latest_issued, "transaction {} came too late", span.tx);
        latest_issued = latest_issued.max(span.issued);
    }
    // Two changes of one row come in the order they were made: each finds what the one before it left.
    let mut rows: HashMap<i64, i64> = (1..=20).map(|id| (id, 0)).collect();
    for change in commits.iter().flat_map(|commit| commit["changes"].as_array().unwrap()) {
        let id = change["key"]["id"].as_i64().unwrap();
        assert_eq!(change["old"]["n"].as_i64(), rows.get(&id).copied());
        rows.insert(id, change["new"]["n"].as_i64().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_have_no_holes_and_no_repeats_for_many_subscribers() {
    let db = tally().await;
    let gateway = Gateway::start(&db).await;
    let mut first = gateway.follow("table=tally").await;
    let mut second = gateway.follow("").await;

    let count = write(&db, fastrand::u64(..1 << 32)).await.len();

    let (first, second) = (commits(&mut first, count).await, commits(&mut second, count).await);
    let cursors = |commits: &[Value]| -> Vec<String> {
        commits.iter().map(|commit| commit["cursor"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(cursors(&first), cursors(&second));
    let position = |cursor: &String| cursor.split('.').nth(1).unwrap().parse::<u64>().unwrap();
    let positions: Vec<u64> = cursors(&first).iter().map(position).collect();
    assert!(positions.windows(2).all(|pair| pair[1] == pair[0] + 1), "{positions:?}");
}

#[tokio::test]
async fn a_transaction_that_draws_its_numbers_early_and_commits_late_is_not_lost() {
    let db = tally().await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("table=tally").await;
    let slow = db.session().await;
    slow.batch_execute("begin; update tally set n = 100 where id = 1").await.unwrap();

    db.run(&["update tally set n = 200 where id = 2"]).await;
    let fast = client.commit().await;
    slow.batch_execute("commit").await.unwrap();
    let late = client.commit().await;

    assert_eq!(fast["changes"][0]["new"]["n"], 200);
    assert_eq!(late["changes"][0]["new"]["n"], 100);
    let from = fast["cursor"].as_str().unwrap();
    let mut resumed = gateway.subscribe(&format!("table=tally&from={from}")).await;
    resumed.next_of("hello", &[]).await;
    assert_eq!(resumed.frame().await.unwrap(), late, "who resumes after the fast one gets the slow one");
}
