//! `/switch/status`, the classic stream: a text frame for each switch whose status changed, and nothing else, ever.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::raw::Raw;
use crate::harness::{Client, Database, Gateway, documents, soon, until};

async fn listen(gateway: &Gateway) -> Client {
    let client = Client::connect(&format!("ws://{}/switch/status", gateway.address)).await;
    // Nothing is said at the beginning; that it is followed shows in the number of kinds.
    until("the stream is followed", async || gateway.metric("switchboard_kinds").await >= 1.0).await;
    client
}

fn frame(id: &str, status: &str) -> String {
    format!(r#"{{"switch_id":"{id}","status":"{status}"}}"#)
}

/// The next `count` frames, whatever their kind.
async fn frames(client: &mut Client, count: usize) -> Vec<Message> {
    let mut frames = Vec::new();
    while frames.len() < count {
        let frame = soon("the next frame", client.socket().next()).await.unwrap().unwrap();
        if let Message::Text(text) = &frame {
            documents::check("SwitchStatus", &serde_json::from_str(text).unwrap());
        }
        frames.push(frame);
    }
    frames
}

#[tokio::test]
async fn a_switch_that_comes_or_changes_its_status_is_one_frame() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;
    let mut client = listen(&gateway).await;

    db.run(&[
        "update switch set status = true where id = 2",
        "update switch set status = false where id = 2",
        "insert into switch (id, name, status) values (10, 'Attic', true)",
    ])
    .await;

    let expected = [frame("2", "1"), frame("2", "0"), frame("10", "1")].map(Message::text);
    assert_eq!(frames(&mut client, 3).await, expected);
}

#[tokio::test]
async fn what_does_not_change_a_status_is_silent() {
    let db = Database::with_switch().await;
    db.run(&["create schema s", "create table s.switch (id int primary key, status boolean)"]).await;
    db.watch("s.switch").await;
    let gateway = Gateway::start(&db).await;
    let mut client = listen(&gateway).await;

    db.run(&[
        "update switch set level = level + 10, name = 'x'",
        "update switch set status = status",
        "delete from switch where id = 3",
        "update switch set id = 30 where id = 4",
        "insert into s.switch values (1, true)",
        "begin; update switch set status = not status; rollback",
        "truncate switch",
        "insert into switch (id, name) values (77, 'sentinel')",
    ])
    .await;

    assert_eq!(frames(&mut client, 1).await, [Message::text(frame("77", "0"))]);
}

#[tokio::test]
async fn several_switches_of_one_transaction_are_one_frame_each_in_order() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;
    let mut client = listen(&gateway).await;

    db.transaction(&[
        "update switch set status = true where id = 4",
        "update switch set level = 99 where id = 1",
        "update switch set status = true where id = 2",
        "insert into switch (id, name) select n, 'n' from generate_series(101, 3100) as n",
        "delete from switch where id = 101",
        "update switch set status = false where id = 4",
    ])
    .await;

    let mut expected = vec![frame("4", "1"), frame("2", "1")];
    expected.extend((101..=3100).map(|id| frame(&id.to_string(), "0")));
    expected.push(frame("4", "0"));
    let expected: Vec<Message> = expected.into_iter().map(Message::text).collect();
    assert_eq!(frames(&mut client, expected.len()).await, expected);
}

#[tokio::test]
async fn values_of_every_type_are_strings() {
    for (id, status, values) in [
        ("int", "integer", [("1", "0", "0"), ("-2", "42", "42")]),
        ("text", "text", [("'Front \"door\"'", "'on'", "on"), ("'é\\'", "'öff\\'", "öff\\")]),
        (
            "uuid",
            "numeric(6,2)",
            [
                ("'00000000-0000-0000-0000-000000000001'", "1.50", "1.50"),
                ("'00000000-0000-0000-0000-000000000002'", "-0.10", "-0.10"),
            ],
        ),
        ("bigint", "boolean", [("9223372036854775807", "true", "1"), ("2", "false", "0")]),
        ("bigint", "boolean", [("1", "null", ""), ("2", "true", "1")]),
    ] {
        let db = Database::new().await;
        db.run(&[&format!("create table switch (id {id} primary key, label text, status {status})")]).await;
        db.watch("switch").await;
        let gateway = Gateway::start(&db).await;
        let mut client = listen(&gateway).await;

        for (key, value, text) in values {
            db.run(&[&format!("insert into switch values ({key}, 'status', {value})")]).await;

            let expected = json!({"switch_id": key.trim_matches('\''), "status": text});
            let told = client.text().await.unwrap();
            assert_eq!(serde_json::from_str::<serde_json::Value>(&told).unwrap(), expected);
            assert!(told.starts_with(r#"{"switch_id":""#) && told.contains(r#"","status":""#), "{told}");
        }
    }
}

#[tokio::test]
async fn whatever_the_client_says_is_not_answered() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;
    let mut client = listen(&gateway).await;

    for text in ["", "hello", r#"{"type":"ping","id":1}"#, r#"{"switch_id":"1","status":"1"}"#, "[[[["] {
        client.send(text).await;
    }
    client.socket().send(Message::binary(vec![0, 255])).await.unwrap();
    client.socket().send(Message::Ping(b"there?".to_vec().into())).await.unwrap();
    let pong = frames(&mut client, 1).await;
    db.run(&["update switch set status = true where id = 2"]).await;

    assert_eq!(pong, [Message::Pong(b"there?".to_vec().into())]);
    assert_eq!(frames(&mut client, 1).await, [Message::text(frame("2", "1"))]);
}

#[tokio::test]
async fn a_heartbeat_is_not_to_be_seen() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start_with(&db, |config| {
        config.heartbeat = Duration::from_millis(100);
        config.write_timeout = Duration::from_secs(20);
    })
    .await;
    let mut client = listen(&gateway).await;
    let mut feed = gateway.follow("table=switch").await;

    for _ in 0..5 {
        feed.next_of("position", &[]).await;
    }
    db.run(&["update switch set status = true where id = 2"]).await;

    assert_eq!(client.text().await.unwrap(), frame("2", "1"));
}

#[tokio::test]
async fn a_client_that_never_answers_is_closed_here_too() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start_with(&db, |config| {
        config.heartbeat = Duration::from_millis(100);
        config.write_timeout = Duration::from_millis(500);
    })
    .await;

    let silent = Raw::upgrade(gateway.address, "/switch/status").await;

    until("the silent one is closed", async || gateway.metric("switchboard_subscribers").await == 0.0).await;
    drop(silent);
}

#[tokio::test]
async fn it_goes_on_after_the_gateways_sessions_were_terminated() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;
    let mut client = listen(&gateway).await;

    for n in 0..3 {
        let ended: i64 = db
            .value(
                "select count(pg_terminate_backend(pid)) from pg_stat_activity
                 where application_name = 'switchboard' and datname = current_database()",
            )
            .await;
        db.run(&["update switch set status = not status where id = 2"]).await;

        assert!(ended > 0, "the gateway had sessions");
        assert_eq!(client.text().await.unwrap(), frame("2", if n % 2 == 0 { "1" } else { "0" }));
        gateway.ready().await;
    }
}

#[tokio::test]
async fn it_is_closed_with_1001_when_the_gateway_stops() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;
    let mut client = listen(&gateway).await;

    let ((), code) = tokio::join!(gateway.stop(), client.text());

    assert_eq!(code, Err(1001));
}
