//! The end of a gateway: everybody is told, nobody can hold it up, and nothing is lost for those who go on elsewhere.

use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::harness::raw::Raw;
use crate::harness::{Client, Database, Gateway, soon, until};

/// How much longer than its time-out a stop may take on a machine that is busy with other tests.
const SLACK: Duration = Duration::from_secs(5);

/// Stops a gateway; how long that took.
async fn stopped(gateway: Gateway) -> Duration {
    let began = Instant::now();
    gateway.stop().await;
    began.elapsed()
}

#[tokio::test]
async fn everybody_is_told_and_the_end_comes_at_once() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start_with(&db, |config| config.stop_timeout = Duration::from_secs(20)).await;
    let mut clients = JoinSet::new();
    for n in 0..200 {
        // Of every kind: following, behind a snapshot, of the classic stream.
        let mut client = match n % 3 {
            0 => gateway.follow("table=switch").await,
            1 => gateway.subscribe("").await,
            _ => Client::connect(&format!("ws://{}/switch/status", gateway.address)).await,
        };
        clients.spawn(async move { client.closed().await });
    }

    let took = stopped(gateway).await;

    let codes = soon("the clients end", clients.join_all()).await;
    assert_eq!(codes, [1001; 200]);
    assert!(took < Duration::from_secs(10), "all clients answered, and yet it took {took:?}");
}

#[tokio::test]
async fn nobody_new_is_let_in_while_the_old_ones_end() {
    let db = Database::with_switch().await;
    let mut gateway = Gateway::start_with(&db, |config| config.stop_timeout = Duration::from_secs(2)).await;
    let address = gateway.address;
    // One that does not answer the closing frame keeps the end open for a while.
    let silent = Raw::upgrade(address, "/v1/feed?from=now").await;

    gateway.begin_to_stop();

    until("new connections are refused", async || TcpStream::connect(address).await.is_err()).await;
    gateway.stop().await;
    drop(silent);
}

#[tokio::test]
async fn a_connection_that_is_open_already_hears_that_the_gateway_stops() {
    let db = Database::with_switch().await;
    let mut gateway = Gateway::start(&db).await;
    let mut open = Raw::connect(gateway.address).await;
    open.write(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\n").await;

    gateway.begin_to_stop();
    until("it has stopped to accept", async || TcpStream::connect(gateway.address).await.is_err()).await;
    open.write(b"\r\n").await;

    let answer = open.rest().await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 503 "), "{answer}");
    gateway.stop().await;
}

#[tokio::test]
async fn those_who_do_not_answer_the_close_do_not_hold_it_up() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start_with(&db, |config| config.stop_timeout = Duration::from_secs(4)).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(Raw::upgrade(gateway.address, "/v1/feed?from=now").await);
    }
    let mut polite = gateway.follow("table=switch").await;

    let (took, code) = tokio::join!(stopped(gateway), polite.closed());

    assert_eq!(code, 1001);
    assert!(took < Duration::from_secs(4) + SLACK, "{took:?}");
    for mut client in silent {
        assert_eq!(client.close_code().await, 1001, "it does not answer, but it can read");
    }
}

#[tokio::test]
async fn one_who_does_not_read_does_not_hold_it_up() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start_with(&db, |config| {
        config.stop_timeout = Duration::from_secs(1);
        config.write_timeout = Duration::from_secs(120);
    })
    .await;
    let stalled = Raw::upgrade(gateway.address, "/v1/feed?from=now&table=switch").await;
    let mut polite = gateway.follow("table=switch").await;
    // More than the kernel's buffers take: its writing waits.
    for _ in 0..20 {
        db.run(&["insert into switch (name) values (repeat('x', 1000000))"]).await;
        polite.changes().await;
    }

    let (took, code) = tokio::join!(stopped(gateway), polite.closed());

    assert_eq!(code, 1001);
    assert!(took < Duration::from_secs(1) + SLACK, "{took:?}");
    drop(stalled);
}

#[tokio::test]
async fn half_a_request_does_not_hold_it_up() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start_with(&db, |config| config.stop_timeout = Duration::from_secs(1)).await;
    let silent = Raw::connect(gateway.address).await;
    let mut half = Raw::connect(gateway.address).await;
    half.write(b"GET /v1/feed HTTP/1.1\r\nhost: ").await;
    gateway.metric("switchboard_subscribers").await;

    let took = stopped(gateway).await;

    assert!(took < Duration::from_secs(1) + SLACK, "{took:?}");
    drop((silent, half));
}

#[tokio::test]
async fn a_gateway_without_its_database_stops_too() {
    let nowhere = Database::without_log().await;
    let gateway = Gateway::launch(nowhere.config(), |_| {}).await;
    let mut waiting = gateway.subscribe("table=switch").await;
    waiting.next_of("status", &["hello"]).await;

    let (took, code) = tokio::join!(stopped(gateway), waiting.closed());

    assert_eq!(code, 1001);
    assert!(took < SLACK, "{took:?}");
}

#[tokio::test]
async fn who_is_sent_away_goes_on_at_another_gateway_without_a_loss() {
    const ROUNDS: i64 = 3;
    const EACH: i64 = 50;
    let db = Database::new().await;
    db.run(&["create table t (n bigint primary key)"]).await;
    db.watch("t").await;
    let mut gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("table=t").await;
    let mut seen = Vec::new();

    for round in 0..ROUNDS {
        let write = async {
            for n in round * EACH..(round + 1) * EACH {
                db.run(&[&format!("insert into t values ({n})")]).await;
            }
        };
        // The gateway stops somewhere in the middle of the writing.
        let read = async {
            loop {
                match client.frame().await {
                    Ok(frame) if frame["type"] == "commit" => {
                        seen.push(frame["changes"][0]["new"]["n"].as_i64().unwrap())
                    }
                    Ok(frame) => assert_eq!(frame["type"], "position", "{frame}"),
                    Err(code) => break code,
                }
            }
        };
        let begin_to_stop = async {
            gateway.metric("switchboard_position").await;
            gateway.begin_to_stop();
        };
        let ((), code, ()) = tokio::join!(write, read, begin_to_stop);
        assert_eq!(code, 1001);
        let next = Gateway::start(&db).await;
        std::mem::replace(&mut gateway, next).stop().await;
        let cursor = client.cursor.clone().unwrap();
        client = gateway.subscribe(&format!("table=t&from={cursor}")).await;
        // From here on the client checks that the chain goes on from the cursor it asked for.
        client.cursor = Some(cursor);
        let (rows, commits) = client.snapshot().await;
        assert!(rows.is_empty(), "who resumes gets changes, not rows");
        seen.extend(commits.iter().map(|commit| commit["changes"][0]["new"]["n"].as_i64().unwrap()));
    }
    db.run(&["insert into t values (-1)"]).await;

    while seen.last() != Some(&-1) {
        seen.push(client.changes().await[0]["new"]["n"].as_i64().unwrap());
    }
    seen.pop();
    assert_eq!(seen, (0..ROUNDS * EACH).collect::<Vec<i64>>());
}
