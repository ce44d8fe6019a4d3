//! After any absence a subscriber goes on exactly where it was, or is told that it cannot.

use serde_json::Value;

use crate::harness::{Client, Database, Gateway, until};

async fn numbers() -> Database {
    let db = Database::new().await;
    db.run(&["create table number (n int primary key, note text)", "create table other (n int)"]).await;
    db.watch("number").await;
    db.watch("other").await;
    db
}

async fn insert(db: &Database, numbers: std::ops::Range<i32>) {
    for number in numbers {
        db.run(&[&format!("insert into number values ({number})")]).await;
    }
}

/// The numbers of the next commits, one each.
async fn next_numbers(client: &mut Client, count: usize) -> Vec<i64> {
    let mut numbers = Vec::new();
    while numbers.len() < count {
        numbers.push(client.changes().await[0]["new"]["n"].as_i64().unwrap());
    }
    numbers
}

async fn resume(gateway: &Gateway, cursor: &str, parameters: &str) -> Client {
    let mut client = gateway.subscribe(&format!("from={cursor}&{parameters}")).await;
    client.next_of("hello", &[]).await;
    client.cursor = Some(cursor.to_owned());
    client
}

#[tokio::test]
async fn resumes_after_the_last_commit_seen_and_says_when_it_is_live() {
    let db = numbers().await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("table=number").await;
    insert(&db, 0..5).await;
    next_numbers(&mut client, 3).await;
    let cursor = client.cursor.take().unwrap();
    drop(client);
    insert(&db, 5..8).await;
    db.run(&["insert into other values (1)"]).await;
    until("the gateway has all of it", async || gateway.metric("switchboard_position").await == 9.0).await;

    let mut client = resume(&gateway, &cursor, "table=number").await;

    assert_eq!(next_numbers(&mut client, 5).await, [3, 4, 5, 6, 7]);
    let before = client.cursor.clone();
    let ready = client.next_of("ready", &[]).await;
    assert_eq!(ready["prev"].as_str(), before.as_deref());
    insert(&db, 8..9).await;
    assert_eq!(next_numbers(&mut client, 1).await, [8]);
}

#[tokio::test]
async fn resumes_at_the_head_and_from_every_frame_that_has_a_cursor() {
    let db = numbers().await;
    let gateway = Gateway::start_with(&db, |config| config.heartbeat = std::time::Duration::from_millis(200)).await;
    let mut client = gateway.subscribe("table=number&from=now").await;
    let ready = client.ready().await["cursor"].as_str().unwrap().to_owned();
    insert(&db, 0..1).await;
    let commit = client.commit().await["cursor"].as_str().unwrap().to_owned();
    db.run(&["insert into other values (1)"]).await;
    let mut position = client.next_of("position", &[]).await["cursor"].as_str().unwrap().to_owned();
    while position == commit {
        position = client.next_of("position", &[]).await["cursor"].as_str().unwrap().to_owned();
    }
    insert(&db, 1..2).await;

    for (cursor, expected) in [(ready, vec![0, 1]), (commit, vec![1]), (position, vec![1])] {
        let mut client = resume(&gateway, &cursor, "table=number").await;
        assert_eq!(next_numbers(&mut client, expected.len()).await, expected);
        client.next_of("ready", &["position"]).await;
    }
    let head = client.commit().await["cursor"].as_str().unwrap().to_owned();
    resume(&gateway, &head, "table=number").await.next_of("ready", &[]).await;
}

#[tokio::test]
async fn resumes_at_another_gateway_and_after_the_gateway_was_killed() {
    let db = numbers().await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("").await;
    insert(&db, 0..2).await;
    next_numbers(&mut client, 1).await;
    let cursor = client.cursor.take().unwrap();
    gateway.kill();
    insert(&db, 2..4).await;

    let another = Gateway::start(&db).await;
    let mut client = resume(&another, &cursor, "").await;

    assert_eq!(next_numbers(&mut client, 3).await, [1, 2, 3]);
}

#[tokio::test]
async fn a_cursor_that_cannot_be_served_gets_a_reset_with_its_reason_and_a_fresh_snapshot() {
    let db = numbers().await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("table=number").await;
    insert(&db, 0..3).await;
    let old = client.commit().await["cursor"].as_str().unwrap().to_owned();
    next_numbers(&mut client, 2).await;
    let head = client.cursor.clone().unwrap();
    let parts: Vec<&str> = head.split('.').collect();
    let nonce = if parts[2] == "0000" { "0001" } else { "0000" };
    db.run(&["select switchboard.trim('1 day', 1, 1 << 30, 1000, 1000, 1 << 30, null, 0)"]).await;

    for (cursor, reason) in [
        ("garbage".to_owned(), "unknown"),
        ("%00%C3%BF".to_owned(), "unknown"),
        (format!("zzzz.{}.{}", parts[1], parts[2]), "epoch"),
        (format!("{}.{}.{nonce}", parts[0], parts[1]), "nonce"),
        (format!("{}.9999.{}", parts[0], parts[2]), "future"),
        (old.clone(), "expired"),
    ] {
        let mut client = gateway.subscribe(&format!("table=number&from={cursor}")).await;
        let reset = client.next_of("reset", &["hello"]).await;
        assert_eq!(reset["reason"], reason, "{cursor}");
        let (rows, _) = client.snapshot().await;
        assert_eq!(rows.len(), 3, "{cursor}");
    }
    let mut strict = gateway.subscribe(&format!("table=number&from={old}&on_reset=close")).await;
    strict.next_of("reset", &["hello"]).await;
    assert_eq!(strict.closed().await, 4410);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_falls_behind_the_history_reads_the_log_and_joins_again() {
    const COMMITS: i64 = 400;
    let db = numbers().await;
    let gateway = Gateway::start_with(&db, |config| config.history_bytes_max = 1 << 20).await;
    let mut slow = gateway.follow("table=number").await;
    let mut quick = gateway.follow("table=other").await;

    // 24 MB of frames: more than the history and all socket buffers hold together.
    let write = format!(
        "do $$ begin for i in 1..{COMMITS} loop insert into number values (i, repeat('x', 60000)); commit; end loop; end $$"
    );
    db.run(&[&write, "insert into other values (1)"]).await;
    assert_eq!(quick.changes().await.len(), 1, "the slow one delays nobody");

    let expected: Vec<i64> = (1..=COMMITS).collect();
    assert_eq!(next_numbers(&mut slow, COMMITS as usize).await, expected);
    insert(&db, 1000..1001).await;
    assert_eq!(next_numbers(&mut slow, 1).await, [1000], "and it follows again");
    assert!(gateway.metric("switchboard_history_bytes").await <= f64::from(1 << 20));
}

#[tokio::test]
async fn everybody_begins_anew_when_the_log_does() {
    let db = numbers().await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("table=number").await;
    insert(&db, 0..2).await;
    next_numbers(&mut client, 2).await;

    // What a restored dump looks like: the log says that it lived in another cluster.
    db.run(&["update switchboard.epoch set system_identifier = 1"]).await;
    db.run(&["select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'switchboard'
              and datname = current_database()"])
        .await;

    let reset: Value = client.next_of("reset", &["status", "position"]).await;
    assert_eq!(reset["reason"], "epoch");
    let (rows, _) = client.snapshot().await;
    assert_eq!(rows.len(), 2);
    insert(&db, 2..3).await;
    assert_eq!(next_numbers(&mut client, 1).await, [2]);
}

#[tokio::test]
async fn a_log_that_is_replaced_under_the_gateway_is_noticed() {
    let db = numbers().await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("table=number").await;
    insert(&db, 0..5).await;
    next_numbers(&mut client, 5).await;

    let mut session = db.session().await;
    switchboard::install::uninstall(&mut session).await.unwrap();
    switchboard::install::install(&mut session, false, None).await.unwrap();
    db.watch("number").await;

    client.next_of("reset", &["status", "position"]).await;
    let (rows, _) = client.snapshot().await;
    assert_eq!(rows.len(), 5);
    insert(&db, 5..6).await;
    assert_eq!(next_numbers(&mut client, 1).await, [5]);
}

/// All changes that come before a subscriber has caught up.
async fn until_ready(client: &mut Client) -> Vec<Value> {
    let mut changes = Vec::new();
    loop {
        let frame = client.frame().await.unwrap();
        match frame["type"].as_str().unwrap() {
            "commit" => changes.extend(frame["changes"].as_array().unwrap().iter().cloned()),
            "ready" => return changes,
            _ => {}
        }
    }
}

#[tokio::test]
async fn those_who_resume_near_each_other_get_a_large_commit_once_wherever_they_stand() {
    const ROWS: usize = 3_000;
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;
    let mut follower = gateway.follow("").await;
    let mut cursors = vec![follower.cursor.clone().unwrap()];
    for level in 1..4 {
        db.run(&[&format!("update switch set level = {level} where id = 1")]).await;
        cursors.push(follower.commit().await["cursor"].as_str().unwrap().to_owned());
    }
    let large = format!("insert into switch (name, level) select 'n' || n, 0 from generate_series(1, {ROWS}) as n");
    db.run(&[&large, "update switch set level = 9 where id = 1"]).await;

    while follower.changes().await[0]["new"]["level"] != 9 {}

    // The later ones first: they share no part of the pages that are there already.
    for (behind, cursor) in cursors.iter().rev().enumerate() {
        for query in ["", "&columns=id", "&where=name.like.n*"] {
            let mut client = gateway.subscribe(&format!("table=switch{query}&from={cursor}")).await;
            let changes = until_ready(&mut client).await;
            let inserted = changes.iter().filter(|change| change["op"] == "insert").count();
            assert_eq!(inserted, ROWS, "{behind} {query}");
            let others = if query == "&where=name.like.n*" { 0 } else { behind + 1 };
            assert_eq!(changes.len() - inserted, others, "{behind} {query}");
        }
    }
}
