//! Commits arrive in the order of commits, whatever order their numbers were drawn in.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;
use tokio_postgres::Client as Session;

use crate::harness::{Client, Database, Gateway, soon, until};

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

/// A database with keys that are checked as a transaction commits: `slot`, and `item` whose `lot` has to be there then.
///
/// No gateway runs while they are written, so that nobody gives a commit its position before the next one is there.
async fn deferred() -> (Database, String) {
    let db = Database::new().await;
    db.run(&[
        "create table slot (id int primary key deferrable initially deferred, v text)",
        "create table lot (id int primary key)",
        "create table item (id int primary key, lot int references lot deferrable initially deferred)",
        "insert into slot values (1, 'old'), (2, 'other')",
        "insert into lot values (7)",
        "insert into item values (1, 7)",
    ])
    .await;
    for table in ["slot", "lot", "item"] {
        db.watch(table).await;
    }
    let cursor = end(&db).await;
    (db, cursor)
}

/// The cursor at the end of the log.
async fn end(db: &Database) -> String {
    let gateway = Gateway::start(db).await;
    let cursor = gateway.follow("").await.cursor.unwrap();
    gateway.stop().await;
    cursor
}

/// Runs `waiting` in a session of its own until one of its statements waits for the transaction of `first`; that commits then, and the
/// waiting one goes on to its end. `meanwhile` runs while it waits.
async fn wait_for(db: &Database, first: &Session, waiting: &[&str], meanwhile: &[&str]) {
    let session = db.session().await;
    let pid: i32 = session.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    let statements: Vec<String> = waiting.iter().map(|statement| (*statement).to_owned()).collect();
    let working = tokio::spawn(async move {
        for statement in statements {
            session.batch_execute(&statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
        }
    });
    until("one waits for the other", async || {
        db.value::<bool>(&format!("select cardinality(pg_blocking_pids({pid})) > 0")).await
    })
    .await;
    db.run(meanwhile).await;
    first.batch_execute("commit").await.unwrap();
    soon("the one that waited", working).await.unwrap();
}

/// What each of the next commits did: its operations, with their tables and keys.
async fn deeds(db: &Database, cursor: &str, commits: usize) -> Vec<Vec<String>> {
    let gateway = Gateway::start(db).await;
    let mut client = gateway.subscribe(&format!("from={cursor}")).await;
    let deed = |change: &Value| {
        let table = change["table"].as_str().unwrap().trim_start_matches("public.");
        let id = [&change["new"]["id"], &change["old"]["id"]].into_iter().find(|id| !id.is_null()).unwrap();
        format!("{} {table} {id}", change["op"].as_str().unwrap())
    };
    let mut deeds = Vec::new();
    for _ in 0..commits {
        deeds.push(client.resumed().await.iter().map(deed).collect());
    }
    deeds
}

#[tokio::test]
async fn a_commit_that_waits_for_another_in_a_deferred_unique_check_comes_behind_it() {
    let (db, cursor) = deferred().await;
    let first = db.session().await;
    first.batch_execute("begin; delete from slot where id = 1").await.unwrap();

    let waiting = ["begin", "insert into slot values (5, 'a')", "insert into slot values (1, 'new')", "commit"];
    wait_for(&db, &first, &waiting, &[]).await;

    let told = deeds(&db, &cursor, 2).await;
    assert_eq!(told, [vec!["delete slot 1"], vec!["insert slot 5", "insert slot 1"]]);
}

#[tokio::test]
async fn a_commit_that_waits_for_a_key_that_another_moves_away_comes_behind_it() {
    let (db, cursor) = deferred().await;
    let first = db.session().await;
    first.batch_execute("begin; update slot set id = 3 - id").await.unwrap();
    first.batch_execute("update slot set id = id + 10").await.unwrap();

    let waiting =
        ["begin", "insert into slot values (5, 'a')", "insert into slot values (1, 'new'), (2, 'new')", "commit"];
    wait_for(&db, &first, &waiting, &[]).await;

    let moved = vec!["update slot 2", "update slot 1", "update slot 12", "update slot 11"];
    let told = deeds(&db, &cursor, 2).await;
    assert_eq!(told, [moved, vec!["insert slot 5", "insert slot 1", "insert slot 2"]]);
}

#[tokio::test]
async fn a_commit_that_waits_for_another_in_a_deferred_foreign_key_check_comes_behind_it() {
    let (db, cursor) = deferred().await;
    let first = db.session().await;
    first.batch_execute("begin; delete from item where id = 1").await.unwrap();

    let waiting = ["begin", "insert into lot values (8)", "delete from lot where id = 7", "commit"];
    wait_for(&db, &first, &waiting, &[]).await;

    let told = deeds(&db, &cursor, 2).await;
    assert_eq!(told, [vec!["delete item 1"], vec!["insert lot 8", "delete lot 7"]]);
}

#[tokio::test]
async fn a_parent_that_comes_while_a_commit_waits_comes_before_its_child() {
    let (db, cursor) = deferred().await;
    let first = db.session().await;
    first.batch_execute("begin; delete from slot where id = 1").await.unwrap();

    // It is not there when the commit is issued; when its foreign key is checked it is.
    let waiting = [
        "begin",
        "insert into slot values (5, 'a')",
        "insert into slot values (1, 'new')",
        "insert into item values (2, 9)",
        "commit",
    ];
    wait_for(&db, &first, &waiting, &["insert into lot values (9)"]).await;

    let told = deeds(&db, &cursor, 3).await;
    assert_eq!(
        told,
        [vec!["insert lot 9"], vec!["delete slot 1"], vec!["insert slot 5", "insert slot 1", "insert item 2"]]
    );
}

#[tokio::test]
async fn constraints_that_are_set_immediate_do_not_change_the_order() {
    const NOW: &str = "set constraints all immediate";
    const LATER: &str = "set constraints all deferred";
    let (five, one) = ("insert into slot values (5, 'a')", "insert into slot values (1, 'new')");
    let mut wrong = Vec::new();
    for waiting in [
        // Before the last write, which waits.
        vec!["begin", five, NOW, one, "commit"],
        // Before the first.
        vec!["begin", NOW, five, one, "commit"],
        vec!["begin", NOW, one, five, "commit"],
        // Behind the last, and that waits.
        vec!["begin", five, one, NOW, "commit"],
        // Twice.
        vec!["begin", five, NOW, LATER, one, "commit"],
        vec!["begin", five, NOW, LATER, one, NOW, "commit"],
        vec!["begin", five, NOW, LATER, NOW, one, "commit"],
    ] {
        let (db, cursor) = deferred().await;
        let first = db.session().await;
        first.batch_execute("begin; delete from slot where id = 1").await.unwrap();

        wait_for(&db, &first, &waiting, &[]).await;

        let told = deeds(&db, &cursor, 2).await;
        let insert = |statement: &&str| match *statement {
            statement if statement == five => Some("insert slot 5"),
            statement if statement == one => Some("insert slot 1"),
            _ => None,
        };
        if told != [vec!["delete slot 1"], waiting.iter().filter_map(insert).collect()] {
            wrong.push((waiting, told));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn what_a_deferred_trigger_of_the_users_writes_belongs_to_its_commit_and_its_place() {
    let (db, _) = deferred().await;
    db.run(&[
        "create table audit (id int primary key, what text)",
        "create function audit() returns trigger language plpgsql as $$ begin
             insert into audit values (new.id, new.v); return null; end $$",
        "create constraint trigger audit after insert on slot deferrable initially deferred
             for each row when (new.id = 5) execute function audit()",
    ])
    .await;
    db.watch("audit").await;
    let cursor = end(&db).await;
    let first = db.session().await;
    first.batch_execute("begin; delete from slot where id = 1").await.unwrap();

    let waiting = ["begin", "insert into slot values (5, 'a')", "insert into slot values (1, 'new')", "commit"];
    wait_for(&db, &first, &waiting, &[]).await;

    let told = deeds(&db, &cursor, 2).await;
    assert_eq!(told, [vec!["delete slot 1"], vec!["insert slot 5", "insert slot 1", "insert audit 5"]]);
}

#[tokio::test]
async fn a_commit_that_waits_for_another_over_what_a_deferred_trigger_wrote_comes_behind_it() {
    const NOW: &str = "set constraints all immediate";
    const LATER: &str = "set constraints all deferred";
    let (db, _) = deferred().await;
    db.run(&[
        "create table audit (id int primary key deferrable initially deferred, what text)",
        "insert into audit values (1, 'old')",
        "create function audit() returns trigger language plpgsql as $$ begin
             insert into audit values (new.id, new.v); return null; end $$",
        "create constraint trigger audit after insert on slot deferrable initially deferred
             for each row execute function audit()",
    ])
    .await;
    db.watch("audit").await;
    for settings in [vec![], vec![NOW, LATER]] {
        db.run(&["truncate slot, audit", "insert into audit values (1, 'old')"]).await;
        let cursor = end(&db).await;
        let first = db.session().await;
        first.batch_execute("begin; delete from audit where id = 1").await.unwrap();

        let begin = ["begin", "insert into slot values (5, 'a')"];
        let waiting = [&begin, &settings[..], &["insert into slot values (1, 'new')", "commit"]].concat();
        wait_for(&db, &first, &waiting, &[]).await;

        let told = deeds(&db, &cursor, 2).await;
        assert_eq!(told[0], ["delete audit 1"], "{waiting:?}");
        let mut inserts = told[1].clone();
        inserts.sort();
        assert_eq!(inserts, ["insert audit 1", "insert audit 5", "insert slot 1", "insert slot 5"], "{waiting:?}");
    }
}
