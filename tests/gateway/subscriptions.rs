//! Several subscriptions on one socket: each with its own rows, its own chain and its own end.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{Client, Database, Gateway, soon};

/// What a socket brings, sorted by subscription, every chain checked.
struct Sorted {
    client: Client,
    /// The cursor of the last frame of each subscription, under the JSON text of its name.
    cursors: HashMap<String, String>,
}

impl Sorted {
    async fn connect(gateway: &Gateway, query: &str) -> Sorted {
        Sorted { client: gateway.subscribe(query).await, cursors: HashMap::new() }
    }

    async fn send(&mut self, message: Value) {
        self.client.say(message).await;
    }

    /// The next frame of this subscription and type; others may come before it.
    async fn next(&mut self, sub: Value, kind: &str) -> Value {
        let next = async {
            loop {
                let frame = self.frame().await;
                if frame["sub"] == sub && frame["type"] == kind {
                    return frame;
                }
            }
        };
        soon(&format!("{kind} of {sub}"), next).await
    }

    async fn frame(&mut self) -> Value {
        let text = self.client.text().await.unwrap_or_else(|code| panic!("closed with {code}"));
        let frame: Value = serde_json::from_str(&text).unwrap();
        let name = frame["sub"].to_string();
        if frame["type"] == "reset" {
            self.cursors.remove(&name);
        }
        if let Some(cursor) = frame["cursor"].as_str() {
            let before = self.cursors.insert(name, cursor.to_owned());
            assert!(before.is_none() || frame["prev"].as_str() == before.as_deref(), "a broken chain: {text}");
        }
        frame
    }
}

async fn two_tables() -> Database {
    let db = Database::with_switch().await;
    db.run(&["create table note (id int primary key, text text)", "insert into note values (1, 'one')"]).await;
    db.watch("note").await;
    db
}

#[tokio::test]
async fn each_subscription_of_a_socket_has_its_own_rows_and_its_own_stream() {
    let db = two_tables().await;
    let gateway = Gateway::start(&db).await;
    let mut socket = Sorted::connect(&gateway, "table=switch").await;
    socket.next(Value::Null, "ready").await;

    socket.send(json!({"type": "subscribe", "id": "notes", "table": "note"})).await;
    socket.send(json!({"type": "subscribe", "id": 7, "table": ["note", "switch"], "from": "now"})).await;
    let (mut rows, mut ready) = (Value::Null, 0);
    while ready < 2 {
        // Which of them comes first is not promised.
        let frame = socket.frame().await;
        ready += usize::from(frame["type"] == "ready");
        if frame["type"] == "rows" {
            rows = frame;
        }
    }
    db.run(&["begin; update switch set level = 9 where id = 1; update note set text = 'two'; commit"]).await;

    let expected = json!([{"id": 1, "text": "one"}]);
    assert_eq!(rows, json!({"sub": "notes", "type": "rows", "table": "public.note", "key": ["id"], "rows": expected}));
    let mut commits = HashMap::new();
    while commits.len() < 3 {
        let frame = socket.frame().await;
        if frame["type"] == "commit" {
            commits.insert(frame["sub"].to_string(), frame["changes"].as_array().unwrap().len());
        }
    }
    assert_eq!(commits, HashMap::from([("null".into(), 1), ("\"notes\"".into(), 1), ("7".into(), 2)]));
}

#[tokio::test]
async fn behind_the_answer_to_a_later_message_nothing_comes_of_a_subscription_that_was_dropped() {
    let db = two_tables().await;
    let gateway = Gateway::start(&db).await;
    let mut socket = Sorted::connect(&gateway, "table=switch&from=now").await;
    socket.next(Value::Null, "ready").await;
    for round in 0..20 {
        // A new subscription has a chain of its own, which may begin in front of what the last one told: rows that were read are shared.
        socket.cursors.clear();
        socket.send(json!({"type": "subscribe", "id": "n", "table": "note"})).await;
        socket.next(json!("n"), "ready").await;
        let write = db.session().await;
        let writing = tokio::spawn(async move {
            for text in 0..10 {
                write.batch_execute(&format!("update note set text = '{round} {text}'")).await.unwrap();
            }
        });

        socket.send(json!({"type": "unsubscribe", "id": "n"})).await;
        socket.send(json!({"type": "ping", "id": round})).await;
        while socket.frame().await != json!({"type": "pong", "id": round}) {}
        writing.await.unwrap();
        db.run(&["update switch set level = level + 1 where id = 1"]).await;

        loop {
            let frame = socket.frame().await;
            assert_eq!(frame["sub"], Value::Null, "{frame}");
            if frame["type"] == "commit" {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_wrong_message_is_answered_under_its_id_and_costs_no_subscription() {
    let db = two_tables().await;
    let gateway = Gateway::start_with(&db, |config| config.subscriptions_max = 2).await;
    let mut socket = Sorted::connect(&gateway, "table=switch&from=now").await;
    socket.next(Value::Null, "ready").await;
    let mut answer = async |message: Value| {
        // Not all of them are what is documented.
        socket.client.send(&message.to_string()).await;
        loop {
            let frame = socket.frame().await;
            if frame["type"] == "error" {
                return (frame["code"].clone(), frame["id"].clone(), frame["message"].as_str().unwrap().to_owned());
            }
        }
    };

    let asked = [
        (json!({"type": "subscribe", "table": "note"}), "bad_request", Value::Null, "needs an \"id\""),
        (json!({"type": "subscribe", "id": [1]}), "bad_request", json!([1]), "needs an \"id\""),
        (
            json!({"type": "subscribe", "id": "x".repeat(200)}),
            "bad_request",
            json!("x".repeat(200)),
            "128 are the most",
        ),
        (json!({"type": "subscribe", "id": 1, "table": 5}), "bad_request", json!(1), "table is 5; give text"),
        (json!({"type": "subscribe", "id": 1, "from": ""}), "bad_request", json!(1), "say snapshot, now, or a cursor"),
        (
            json!({"type": "subscribe", "id": 1, "table": "nowhere"}),
            "bad_request",
            json!(1),
            "switchboard watch nowhere",
        ),
        (json!({"type": "unsubscribe", "id": 1}), "unknown_subscription", json!(1), "no subscription 1 here"),
        (json!({"type": "nonsense", "id": 4}), "unknown_type", json!(4), "subscribe, unsubscribe and ping"),
    ];
    for (message, code, id, remedy) in asked {
        let (is, of, says) = answer(message.clone()).await;
        assert_eq!((is, of), (json!(code), id), "{message}");
        assert!(says.contains(remedy), "{message}: {says}");
    }
    socket.send(json!({"type": "subscribe", "id": 1, "table": "note"})).await;
    socket.next(json!(1), "ready").await;
    for (id, code, remedy) in [(1, "bad_request", "unsubscribe it first"), (2, "too_many", "--subscriptions-max")] {
        socket.send(json!({"type": "subscribe", "id": id, "table": "note"})).await;
        let error = socket.next(Value::Null, "error").await;
        assert_eq!((&error["code"], &error["id"]), (&json!(code), &json!(id)));
        assert!(error["message"].as_str().unwrap().contains(remedy), "{error}");
    }
    db.run(&["update note set text = 'x'"]).await;
    socket.next(json!(1), "commit").await;
}

#[tokio::test]
async fn a_socket_may_begin_without_a_subscription_and_drop_that_of_its_address() {
    let db = two_tables().await;
    let gateway = Gateway::start_with(&db, |config| config.heartbeat = Duration::from_millis(200)).await;
    let mut socket = Sorted::connect(&gateway, "first=none").await;

    let frames = [socket.frame().await, socket.frame().await, socket.frame().await];
    socket.send(json!({"type": "subscribe", "id": "a", "table": "note", "from": "now"})).await;
    socket.next(json!("a"), "ready").await;
    db.run(&["update note set text = 'x'"]).await;
    socket.next(json!("a"), "commit").await;
    let mut other = Sorted::connect(&gateway, "table=note&from=now").await;
    other.next(Value::Null, "ready").await;
    other.send(json!({"type": "unsubscribe"})).await;
    other.send(json!({"type": "ping"})).await;
    other.next(Value::Null, "pong").await;
    db.run(&["update note set text = 'y'"]).await;
    socket.next(json!("a"), "commit").await;

    let types: Vec<&Value> = frames.iter().map(|frame| &frame["type"]).collect();
    assert_eq!(types, ["hello", "status", "status"], "the line shows that it is alive");
    assert_eq!(other.frame().await, json!({"type": "status", "database": "up"}));
}

#[tokio::test]
async fn each_subscription_resumes_from_its_own_cursor_and_is_reset_by_itself() {
    let db = two_tables().await;
    let gateway = Gateway::start(&db).await;
    let mut socket = Sorted::connect(&gateway, "first=none").await;
    socket.send(json!({"type": "subscribe", "id": "a", "table": "note"})).await;
    let early = socket.next(json!("a"), "ready").await["cursor"].clone();
    db.run(&["update note set text = 'x'", "update note set text = 'y'"]).await;
    let late = socket.next(json!("a"), "commit").await["cursor"].clone();
    socket.next(json!("a"), "commit").await;
    drop(socket);

    let mut socket = Sorted::connect(&gateway, "first=none").await;
    for (id, cursor) in [("early", early), ("late", late), ("never", json!("nonsense"))] {
        socket.send(json!({"type": "subscribe", "id": id, "table": "note", "from": cursor, "on_reset": "close"})).await;
    }
    let mut texts: HashMap<String, Vec<Value>> = HashMap::new();
    let mut others = Vec::new();
    let sorting = async {
        while texts.values().map(Vec::len).sum::<usize>() < 3 || others.len() < 2 {
            let frame = socket.frame().await;
            let name = frame["sub"].as_str().unwrap_or("").to_owned();
            match frame["type"].as_str().unwrap() {
                "commit" => texts.entry(name).or_default().push(frame["changes"][0]["new"]["text"].clone()),
                "reset" | "error" => others.push(frame),
                _ => {}
            }
        }
    };
    soon("what was missed", sorting).await;

    let expected = HashMap::from([("early".into(), vec![json!("x"), json!("y")]), ("late".into(), vec![json!("y")])]);
    assert_eq!(texts, expected);
    assert_eq!(
        (&others[0]["type"], &others[0]["sub"], &others[0]["reason"]),
        (&json!("reset"), &json!("never"), &json!("unknown"))
    );
    assert_eq!((&others[1]["code"], &others[1]["id"]), (&json!("cursor_gone"), &json!("never")));
}

#[tokio::test]
async fn many_subscriptions_of_one_socket_all_get_their_rows() {
    let db = two_tables().await;
    db.run(&["insert into note select n, repeat('x', 1000) from generate_series(2, 3000) as n"]).await;
    let gateway = Gateway::start(&db).await;
    let mut socket = Sorted::connect(&gateway, "first=none").await;
    for id in 0..50 {
        socket.send(json!({"type": "subscribe", "id": id, "table": "note"})).await;
    }

    let mut rows: HashMap<String, usize> = HashMap::new();
    let mut ready = 0;
    let taking = async {
        while ready < 50 {
            let frame = socket.frame().await;
            match frame["type"].as_str().unwrap() {
                "rows" => {
                    *rows.entry(frame["sub"].to_string()).or_default() += frame["rows"].as_array().unwrap().len();
                }
                "ready" => ready += 1,
                _ => {}
            }
        }
    };
    soon("all rows of all", taking).await;

    assert_eq!(rows.len(), 50);
    assert!(rows.values().all(|count| *count == 3000), "{rows:?}");
}

#[tokio::test]
async fn a_loop_of_subscribing_and_unsubscribing_neither_starves_the_other_subscriptions_nor_misses_the_stop() {
    let db = two_tables().await;
    let mut gateway = Gateway::start_with(&db, |config| config.stop_timeout = Duration::from_secs(60)).await;
    let (socket, _) =
        tokio_tungstenite::connect_async(format!("ws://{}/v1/feed?from=now&table=switch", gateway.address))
            .await
            .unwrap();
    let (mut sink, mut stream) = socket.split();
    let mut next = async || {
        let next = soon("the next frame", stream.next()).await;
        next.and_then(Result::ok).unwrap_or_else(|| panic!("the connection broke off"))
    };
    while !next().await.to_text().unwrap().contains(r#""type":"ready""#) {}
    let looping = tokio::spawn(async move {
        let subscribe = Message::text(json!({"type": "subscribe", "id": 1, "table": "note"}).to_string());
        let unsubscribe = Message::text(json!({"type": "unsubscribe", "id": 1}).to_string());
        // Until the gateway closes the connection.
        while sink.feed(subscribe.clone()).await.is_ok() && sink.feed(unsubscribe.clone()).await.is_ok() {}
    });

    for level in [8, 9] {
        db.run(&[&format!("update switch set level = {level} where id = 1")]).await;
        while !next().await.to_text().unwrap().contains(&format!(r#""level":{level}"#)) {}
    }
    gateway.begin_to_stop();

    loop {
        if let Message::Close(frame) = next().await {
            assert_eq!(frame.map(|frame| u16::from(frame.code)), Some(1001));
            break;
        }
    }
    looping.abort();
}
