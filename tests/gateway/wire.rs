//! Protocol 1 as a client sees it: frames and their order, answers, refusals, and the pages beside the feed.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use switchboard::config::ListenChannels;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::raw::{Raw, handshake};
use crate::harness::{Client, Database, Gateway, documents, soon, until};

const UPGRADE: &str = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// An answer of plain HTTP.
struct Answer {
    status: u16,
    /// In lower case.
    head: String,
    body: String,
}

impl Answer {
    fn error(&self) -> (String, String) {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {}", self.body));
        let text = |name: &str| body["error"][name].as_str().unwrap().to_owned();
        (text("code"), text("message"))
    }
}

/// What a request gets: a method with a path, and further lines of the head.
async fn exchange(address: SocketAddr, request: &str, lines: &str) -> Answer {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let close = if lines.contains("connection:") { "" } else { "connection: close\r\n" };
        let request = format!("{request} HTTP/1.1\r\nhost: {address}\r\n{close}{lines}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        // A refusal leaves the connection open for another request; its length says where it ends.
        let mut answer = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&answer).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let head = head.to_lowercase();
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                if length.is_none_or(|length| body.len() >= length.parse().unwrap()) {
                    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
                    if let Some(path) = request.strip_prefix("GET ") {
                        documents::check_answer(path.split(' ').next().unwrap(), status, body);
                    }
                    return Answer { status, head, body: body.to_owned() };
                }
            }
            assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "the answer ended early: {text}");
        }
    };
    soon(request, exchange).await
}

/// What a handshake that is in order gets.
async fn refusal(gateway: &Gateway, parameters: &str) -> Answer {
    let lines = format!("{UPGRADE}sec-websocket-version: 13\r\n");
    exchange(gateway.address, &format!("GET /v1/feed?{parameters}"), &lines).await
}

#[tokio::test]
async fn the_first_frame_says_hello() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start_with(&db, |config| config.heartbeat = Duration::from_millis(12_345)).await;
    let mut client = gateway.subscribe("table=switch").await;

    let hello = client.frame().await.unwrap();

    let server = concat!("switchboard/", env!("CARGO_PKG_VERSION"));
    assert_eq!(hello, json!({"type": "hello", "protocol": 1, "server": server, "heartbeat_ms": 12_345}));
}

#[tokio::test]
async fn a_snapshot_gives_the_rows_of_each_table_and_then_says_ready() {
    let db = Database::with_switch().await;
    db.run(&[
        "create table empty (b text, a int, v text, primary key (a, b))",
        "create table keyless (v text)",
        "insert into keyless values ('x')",
    ])
    .await;
    db.watch("empty").await;
    db.watch("keyless").await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.subscribe("table=keyless,switch,empty&from=snapshot").await;

    let hello = client.frame().await.unwrap();
    let pages = [client.frame().await.unwrap(), client.frame().await.unwrap(), client.frame().await.unwrap()];
    let ready = client.frame().await.unwrap();

    assert_eq!(hello["type"], "hello");
    let switches = json!([
        {"id": 1, "name": "Front door", "status": true, "level": 3},
        {"id": 2, "name": "Workshop", "status": false, "level": 0},
        {"id": 3, "name": "Greenhouse", "status": true, "level": 7},
        {"id": 4, "name": "Cellar pump", "status": false, "level": 1}
    ]);
    assert_eq!(
        pages,
        [
            json!({"type": "rows", "table": "public.empty", "key": ["a", "b"], "rows": []}),
            json!({"type": "rows", "table": "public.keyless", "key": null, "rows": [{"v": "x"}]}),
            json!({"type": "rows", "table": "public.switch", "key": ["id"], "rows": switches})
        ]
    );
    assert_eq!(ready, json!({"type": "ready", "cursor": client.cursor.clone().unwrap()}));
}

#[tokio::test]
async fn a_large_table_comes_in_pages_and_a_large_row_whole() {
    let db = Database::new().await;
    db.run(&[
        "create table t (id int primary key, v text)",
        "insert into t select n, repeat('x', 1000) from generate_series(1, 1000) as n",
        "insert into t values (1001, repeat('y', 3000000))",
    ])
    .await;
    db.watch("t").await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.subscribe("table=t").await;

    let mut pages = Vec::new();
    loop {
        let frame = client.frame().await.unwrap();
        match frame["type"].as_str().unwrap() {
            "hello" => {}
            "rows" => pages.push(frame["rows"].as_array().unwrap().clone()),
            "ready" => break,
            _ => panic!("rows were due, and this came: {frame:.300}"),
        }
    }

    assert!(pages.len() > 10, "{} pages", pages.len());
    let rows = pages.concat();
    let ids: Vec<i64> = rows.iter().map(|row| row["id"].as_i64().unwrap()).collect();
    assert_eq!(ids, (1..=1001).collect::<Vec<i64>>());
    assert_eq!(rows[1000]["v"].as_str().unwrap().len(), 3_000_000);
}

#[tokio::test]
async fn from_now_gives_no_rows_and_nothing_that_was_before() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;
    db.run(&["update switch set level = 1 where id = 1"]).await;
    let mut client = gateway.subscribe("from=now&table=switch").await;

    let hello = client.frame().await.unwrap();
    let ready = client.frame().await.unwrap();
    db.run(&["update switch set level = 2 where id = 1"]).await;
    let mut commit = client.commit().await;
    while commit["changes"][0]["new"]["level"] == 1 {
        // Published only after the client came, it was new to it: from then on it is a matter of order.
        commit = client.commit().await;
    }

    assert_eq!(hello["type"], "hello");
    assert_eq!(ready["type"], "ready");
    assert_eq!(ready.as_object().unwrap().len(), 2, "only a cursor beside the type: {ready}");
    assert_eq!(commit["changes"][0]["new"]["level"], 2);
}

#[tokio::test]
async fn a_commit_says_which_transaction_it_was_and_when() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("table=switch").await;
    let before = client.cursor.clone();

    db.run(&["begin; update switch set level = 8 where id = 1"]).await;
    let tx: String = db.value("select pg_current_xact_id()::text").await;
    db.run(&["commit"]).await;

    let commit = client.commit().await;
    assert_eq!(commit["tx"], tx);
    assert_eq!(commit["prev"].as_str(), before.as_deref());
    let at = commit["at"].as_str().unwrap();
    let near = format!("select '{at}'::timestamptz between now() - interval '1 minute' and now()");
    assert!(db.value::<bool>(&near).await, "{at}");
    let mut names: Vec<&String> = commit.as_object().unwrap().keys().collect();
    names.sort();
    assert_eq!(names, ["at", "changes", "cursor", "prev", "tx", "type"]);
}

#[tokio::test]
async fn a_ping_message_is_answered_with_its_id() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("table=switch").await;
    let ids = [json!(7), json!("a\u{1F600}\"b"), json!(null), json!({"deep": [1]})];

    for id in &ids {
        client.say(json!({"type": "ping", "id": id})).await;
    }
    client.say(json!({"type": "ping"})).await;

    for id in ids {
        assert_eq!(client.frame().await.unwrap(), json!({"type": "pong", "id": id}));
    }
    assert_eq!(client.frame().await.unwrap(), json!({"type": "pong"}));
}

#[tokio::test]
async fn a_websocket_ping_is_answered_with_the_same_payload() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("table=switch").await;

    for payload in [Vec::new(), b"are you there?".to_vec(), vec![0xff; 125]] {
        client.socket().send(Message::Ping(payload.clone().into())).await.unwrap();

        let answer = soon("the pong", client.socket().next()).await.unwrap().unwrap();
        assert_eq!(answer, Message::Pong(payload.into()));
    }
}

#[tokio::test]
async fn what_is_not_understood_is_answered_and_does_no_harm() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("table=switch").await;

    client.send(r#"{"type":"make coffee","id":"c1"}"#).await;
    client.send("not JSON").await;
    client.send(r#"{"id":5}"#).await;
    client.socket().send(Message::binary(vec![0, 159, 146, 150])).await.unwrap();
    db.run(&["update switch set level = 8 where id = 1"]).await;

    let unknown = client.frame().await.unwrap();
    assert_eq!((&unknown["type"], &unknown["code"]), (&json!("error"), &json!("unknown_type")));
    assert_eq!(unknown["id"], "c1");
    assert!(unknown["message"].as_str().unwrap().contains("make coffee"), "{unknown}");
    for id in [Value::Null, json!(5), Value::Null] {
        let error = client.frame().await.unwrap();
        assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!("bad_message")));
        assert_eq!(error["id"], id);
    }
    assert_eq!(client.changes().await[0]["new"]["level"], 8);
}

#[tokio::test]
async fn a_quiet_line_shows_a_position_in_every_heartbeat() {
    let db = Database::with_switch().await;
    db.run(&["create table other (id int)"]).await;
    db.watch("other").await;
    let heartbeat = Duration::from_millis(300);
    let gateway = Gateway::start_with(&db, |config| config.heartbeat = heartbeat).await;
    let mut client = gateway.follow("table=switch").await;
    let began = Instant::now();

    for _ in 0..5 {
        db.run(&["insert into other values (1)"]).await;
        // The client itself checks that they chain.
        let frame = client.frame().await.unwrap();
        assert_eq!(frame["type"], "position");
        assert_eq!(frame.as_object().unwrap().len(), 3, "prev and cursor beside the type: {frame}");
    }

    let most = 5 * heartbeat + Duration::from_secs(4);
    assert!(began.elapsed() < most, "five heartbeats took {:?}", began.elapsed());
}

#[tokio::test]
async fn a_client_that_answers_pings_stays() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start_with(&db, |config| {
        config.heartbeat = Duration::from_millis(200);
        config.write_timeout = Duration::from_millis(1500);
    })
    .await;
    let mut client = gateway.follow("table=switch").await;
    let (began, mut pings) = (Instant::now(), 0);

    // Longer than a client may be silent.
    while began.elapsed() < Duration::from_millis(2500) {
        match soon("a sign of life", client.socket().next()).await.unwrap().unwrap() {
            Message::Ping(_) => pings += 1,
            Message::Text(text) => assert!(text.contains("position"), "{text}"),
            other => panic!("this came instead of a sign of life: {other:?}"),
        }
    }

    assert!(pings >= 2, "{pings} pings");
    assert_eq!(gateway.metric("switchboard_subscribers").await, 1.0);
}

#[tokio::test]
async fn a_client_that_never_answers_is_closed_and_told_why() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start_with(&db, |config| {
        config.heartbeat = Duration::from_millis(100);
        config.write_timeout = Duration::from_millis(500);
    })
    .await;
    let mut silent = Raw::upgrade(gateway.address, "/v1/feed?from=now&table=switch").await;

    let code = silent.close_code().await;

    until("it was counted", async || gateway.metric("switchboard_subscribers_closed_total").await == 1.0).await;
    let (_, metrics) = gateway.get("/metrics").await;
    assert!(metrics.contains("switchboard_subscribers_closed_total{code=\"4408\"} 1"), "{metrics}");
    assert_eq!(code, 4408, "it reads, so it can be told");
}

#[tokio::test]
async fn a_wrong_parameter_is_refused_with_its_value_and_a_remedy() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;

    for (parameters, value, remedy) in [
        ("on_reset=explode", "explode", "close"),
        ("table=a,,b", "a,,b", "switch"),
        ("table=%22a", "\"a", "quote"),
        ("table=", "table", "leave"),
        ("from=", "from", "snapshot"),
    ] {
        for lines in ["", UPGRADE] {
            let answer = exchange(gateway.address, &format!("GET /v1/feed?{parameters}"), lines).await;

            let (code, message) = answer.error();
            assert_eq!((answer.status, code.as_str()), (400, "bad_request"), "{parameters}");
            assert!(message.contains(value) && message.contains(remedy), "{parameters} got {message}");
        }
    }
}

#[tokio::test]
async fn a_word_that_does_not_exist_is_refused_with_the_one_to_write() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start_with(&db, |config| config.listen_channels = ListenChannels::new("*")).await;

    for (path, remedy) in [
        ("/v1/feed?tabel=switch", "did you mean table?"),
        ("/v1/feed?table=switch&wher=id.eq.1", "did you mean where?"),
        ("/v1/feed?table=switch&id=eq.1", "write where=id.eq.1"),
        ("/v1/feed?table=switch&filter=id=eq.1", "write where=id.eq.1"),
        ("/v1/feed?table=switch&limit=1", "a parameter of /v1/changes"),
        ("/v1/changes?table=switch&form=now", "did you mean from?"),
        ("/v1/changes?table=switch&id=in.(1,2)", "write where=id.in.(1,2)"),
        ("/v1/changes?table=switch&on_reset=close", "a parameter of /v1/feed"),
        ("/v1/snapshot?table=switch&colums=id", "did you mean columns?"),
        ("/v1/snapshot?table=switch&level=not.gte.3", "write where=level.not.gte.3"),
        ("/v1/tables?table=switch", "not of /v1/tables"),
        ("/switch/status?id=eq.1", "/switch/status has no parameters"),
        ("/listen/jobs?from=now", "not of /listen/CHANNEL"),
    ] {
        for lines in ["", "accept: text/event-stream\r\n", &format!("{UPGRADE}sec-websocket-version: 13\r\n")] {
            let answer = exchange(gateway.address, &format!("GET {path}"), lines).await;

            let (code, message) = answer.error();
            assert_eq!((answer.status, code.as_str()), (400, "bad_request"), "{path}");
            assert!(message.contains(remedy), "{path} got {message}");
        }
    }
    // A page is no place where a word could choose rows.
    for path in ["/?utm_source=x", "/client.js?v=2", "/healthz?x", "/metrics?x=1", "/openapi.json?v=1"] {
        assert_eq!(exchange(gateway.address, &format!("GET {path}"), "").await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn a_field_that_does_not_exist_is_refused_and_does_nothing() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("table=switch").await;

    for (message, remedy) in [
        (json!({"type": "subscribe", "id": 1, "tabel": "switch"}), "did you mean table?"),
        (json!({"type": "subscribe", "id": 1, "table": "switch", "filter": "id=eq.1"}), r#"write "where":"id.eq.1""#),
        (json!({"type": "subscribe", "id": 1, "table": "switch", "level": "gte.3"}), r#"write "where":"level.gte.3""#),
        (json!({"type": "unsubscribe", "sub": "a"}), r#"write "id":"a""#),
        (json!({"type": "ping", "id": 1, "time": 5}), "it has type and id"),
    ] {
        client.send(&message.to_string()).await;

        let error = client.next_of("error", &[]).await;
        assert_eq!(error["code"], "bad_request", "{error}");
        assert_eq!(error.get("id"), message.get("id"), "{error}");
        assert!(error["message"].as_str().unwrap().contains(remedy), "{error}");
    }
    // Nothing was subscribed, and the subscription of the address goes on.
    db.run(&["update switch set level = 8 where id = 1"]).await;
    assert_eq!(client.changes().await[0]["new"]["level"], 8);
}

#[tokio::test]
async fn what_is_not_utf_8_is_refused_and_never_taken_for_something_else() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start_with(&db, |config| config.listen_channels = ListenChannels::new("*")).await;

    for (path, parameter) in [
        ("/v1/feed?table=switch&where=name.eq.caf%E9", "the parameter where is not UTF-8: \"name.eq.caf%E9\""),
        ("/v1/feed?table=%ff", "the parameter table"),
        ("/v1/feed?from=now&t%E9=1", "the name of a parameter"),
        ("/v1/changes?columns=%C3", "the parameter columns"),
        ("/v1/changes?limit=1%FF", "the parameter limit"),
        ("/v1/snapshot?where=name.like.%Ad*", "the parameter where"),
        ("/v1/tables?%E9", "the name of a parameter"),
        ("/switch/status?%E9", "the name of a parameter"),
        ("/listen/caf%E9", "the name of the channel is not UTF-8"),
        ("/listen/jobs?%E9", "the name of a parameter"),
    ] {
        for lines in ["", "accept: text/event-stream\r\n", &format!("{UPGRADE}sec-websocket-version: 13\r\n")] {
            let answer = exchange(gateway.address, &format!("GET {path}"), lines).await;

            assert_eq!(answer.status, 400, "{path}: {}", answer.body);
            let message = answer.error().1;
            assert!(message.contains(parameter) && message.contains("UTF-8"), "{path} got {message}");
        }
    }
    let mut raw = Raw::connect(gateway.address).await;
    raw.write(b"GET /v1/feed HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\nlast-event-id: \xe9\r\n\r\n")
        .await;
    let head = raw.until_end_of_head().await;
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
}

#[tokio::test]
async fn a_table_that_is_not_watched_is_named_before_the_close() {
    let db = Database::with_switch().await;
    db.run(&["create table secret (id int)"]).await;
    let gateway = Gateway::start(&db).await;

    for table in ["secret", "nowhere", "public.secret", "switch,secret", "pg_catalog.pg_class", "a'%3B--"] {
        let mut client = gateway.subscribe(&format!("table={table}")).await;

        let error = client.next_of("error", &["hello"]).await;
        assert_eq!(error["code"], "bad_request");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("is not watched") && message.contains("public.switch"), "{message}");
        assert_eq!(client.closed().await, 4400, "{table}");
    }
}

#[tokio::test]
async fn a_table_watched_after_the_start_is_found_at_once() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;
    let mut everything = gateway.follow("").await;

    for n in 0..5 {
        db.run(&[&format!("create table t{n} (id int primary key)")]).await;
        db.watch(&format!("t{n}")).await;
        let mut client = gateway.follow(&format!("table=t{n}")).await;
        db.run(&[&format!("insert into t{n} values ({n})")]).await;

        let change = json!({"op": "insert", "table": format!("public.t{n}"), "key": {"id": n}, "new": {"id": n}});
        let expected = [change];
        assert_eq!(client.changes().await, expected);
        assert_eq!(everything.changes().await, expected);
    }
}

#[tokio::test]
async fn without_a_table_all_watched_ones_are_meant() {
    let db = Database::with_switch().await;
    db.run(&["create schema s", "create table s.a (id int primary key)", "create table hidden (id int)"]).await;
    db.watch("s.a").await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.subscribe("").await;

    let mut tables = Vec::new();
    loop {
        let frame = client.frame().await.unwrap();
        match frame["type"].as_str().unwrap() {
            "rows" => tables.push(frame["table"].as_str().unwrap().to_owned()),
            "ready" => break,
            _ => {}
        }
    }
    db.transaction(&["insert into hidden values (1)", "insert into s.a values (1)", "delete from switch where id = 1"])
        .await;

    assert_eq!(tables, ["public.switch", "s.a"]);
    let changed: Vec<Value> = client.changes().await.iter().map(|change| change["table"].clone()).collect();
    assert_eq!(changed, ["s.a", "public.switch"]);
}

#[tokio::test]
async fn a_subscriber_of_one_table_hears_nothing_of_another_and_its_chain_holds() {
    let db = Database::with_switch().await;
    db.run(&["create table other (id int)"]).await;
    db.watch("other").await;
    let gateway = Gateway::start_with(&db, |config| config.heartbeat = Duration::from_millis(100)).await;
    let mut client = gateway.follow("table=switch").await;

    for level in 0..20 {
        db.run(&["insert into other values (1)"]).await;
        db.transaction(&[
            "insert into other values (2)",
            &format!("update switch set level = {level} + 10 where id = 1"),
        ])
        .await;
    }

    for level in 0..20 {
        // The client checks the chain.
        let changes = client.changes().await;
        assert_eq!(changes.len(), 1);
        assert_eq!((&changes[0]["table"], &changes[0]["new"]["level"]), (&json!("public.switch"), &json!(level + 10)));
    }
}

#[tokio::test]
async fn subscribers_of_one_table_get_the_same_bytes() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;
    let mut clients = Vec::new();
    for _ in 0..50 {
        clients.push(gateway.follow("table=switch").await);
    }

    db.run(&["update switch set level = level + 10", "insert into switch (name) values (repeat('é', 50000))"]).await;

    let first = [clients[0].text().await.unwrap(), clients[0].text().await.unwrap()];
    assert!(first[0].starts_with(r#"{"type":"commit","#) && first[1].len() > 100_000);
    for client in &mut clients[1..] {
        assert_eq!(client.text().await.unwrap(), first[0]);
        assert!(client.text().await.unwrap() == first[1], "the large commit differs");
    }
}

#[tokio::test]
async fn one_subscriber_too_many_is_asked_to_come_later() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start_with(&db, |config| config.subscribers_max = 2).await;
    let mut first = gateway.follow("table=switch").await;
    let second = gateway.follow("table=switch").await;

    let answer = refusal(&gateway, "table=switch").await;

    assert_eq!((answer.status, answer.error().0.as_str()), (503, "too_many"));
    assert!(answer.error().1.contains("--subscribers-max"), "{}", answer.body);
    assert!(answer.head.contains("\r\nretry-after: 5"), "{}", answer.head);
    // Plain requests and the subscribers that are there do not suffer, and a place that is left is free again.
    assert_eq!(gateway.get("/healthz").await.0, 200);
    db.run(&["update switch set level = 8 where id = 1"]).await;
    assert_eq!(first.changes().await[0]["new"]["level"], 8);
    drop(second);
    until("the place is free", async || gateway.metric("switchboard_subscribers").await < 2.0).await;
    let mut third = gateway.follow("table=switch").await;
    db.run(&["update switch set level = 9 where id = 1"]).await;
    assert_eq!(third.changes().await[0]["new"]["level"], 9);
}

#[tokio::test]
async fn who_does_not_speak_websocket_is_told_to() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;

    for path in ["/v1/feed", "/v1/feed?table=switch", "/switch/status"] {
        let answer = exchange(gateway.address, &format!("GET {path}"), "").await;

        assert_eq!((answer.status, answer.error().0.as_str()), (426, "websocket_only"), "{path}");
        assert!(answer.head.contains("\r\nupgrade: websocket"), "{}", answer.head);
        assert!(answer.error().1.contains("WebSocket"), "{}", answer.body);
    }
}

#[tokio::test]
async fn another_version_of_websocket_is_told_which_one_is_spoken() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;

    for version in ["", "sec-websocket-version: 8\r\n", "sec-websocket-version: 130\r\n"] {
        let answer = exchange(gateway.address, "GET /v1/feed", &format!("{UPGRADE}{version}")).await;

        assert_eq!((answer.status, answer.error().0.as_str()), (426, "websocket_version"), "{version}");
        assert!(answer.head.contains("\r\nsec-websocket-version: 13"), "{}", answer.head);
    }
}

#[tokio::test]
async fn the_handshake_is_accepted_as_the_rfc_says() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;

    let lines = "Connection: keep-alive, Upgrade\r\nUPGRADE: WebSocket\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nconnection: x\r\n";
    let answer = exchange(gateway.address, "GET /v1/feed?from=now", lines).await;

    assert_eq!(answer.status, 101);
    // The example of RFC 6455, 1.3.
    assert!(answer.head.contains("\r\nsec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{}", answer.head);
    assert!(answer.head.contains("\r\nconnection: upgrade"), "{}", answer.head);
    assert!(answer.head.contains("\r\nupgrade: websocket"), "{}", answer.head);
}

#[tokio::test]
async fn health_and_readiness_have_their_addresses() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;
    let nowhere = Database::without_log().await;
    let unready = Gateway::launch(nowhere.config(), |_| {}).await;

    let answers = [gateway.get("/healthz").await, gateway.get("/readyz").await, unready.get("/healthz").await];
    let why = exchange(unready.address, "GET /readyz", "").await;

    assert_eq!(answers.map(|(status, _)| status), [200, 200, 200]);
    assert_eq!((why.status, why.error().0.as_str()), (503, "not_ready"));
    assert!(why.error().1.contains("switchboard check"), "{}", why.body);
}

#[tokio::test]
async fn metrics_can_be_read_by_prometheus() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("table=switch").await;
    Client::connect(&format!("ws://{}/v1/feed?table=nowhere", gateway.address)).await.closed().await;
    db.run(&["update switch set level = level + 10"]).await;
    client.changes().await;

    let answer = exchange(gateway.address, "GET /metrics", "").await;

    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{}", answer.head);
    let (body, end) = answer.body.rsplit_once("# EOF").unwrap();
    assert_eq!(end, "\n");
    let mut names = Vec::new();
    for line in body.lines().filter(|line| !line.starts_with("# ")) {
        let (name, number) = line.rsplit_once(' ').unwrap();
        number.parse::<f64>().unwrap_or_else(|error| panic!("{error} in {line}"));
        names.push(name);
    }
    names.sort();
    names.retain(|name| !name.contains("_closed_total"));
    assert_eq!(
        names,
        [
            "switchboard_changes_total",
            "switchboard_commits_forgotten_total",
            "switchboard_commits_total",
            "switchboard_database_up",
            "switchboard_depositions_total",
            "switchboard_history_bytes",
            "switchboard_kinds",
            "switchboard_leads",
            "switchboard_log_bytes",
            "switchboard_log_commits",
            "switchboard_log_newest_position",
            "switchboard_log_oldest_position",
            "switchboard_position",
            "switchboard_sent_bytes_total",
            "switchboard_stand_ins_total",
            "switchboard_subscribers",
            "switchboard_subscribers_opened_total"
        ]
    );
    for (name, number) in [
        ("switchboard_changes_total", 4.0),
        ("switchboard_commits_total", 1.0),
        ("switchboard_database_up", 1.0),
        ("switchboard_leads", 1.0),
        ("switchboard_subscribers_opened_total", 2.0),
    ] {
        assert_eq!(gateway.metric(name).await, number, "{name}");
    }
    until("the closed one is counted", async || {
        gateway.get("/metrics").await.1.contains("switchboard_subscribers_closed_total{code=\"4400\"} 1\n")
    })
    .await;
}

#[tokio::test]
async fn the_page_is_html_that_may_load_nothing_from_elsewhere() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;

    let page = exchange(gateway.address, "GET /", "").await;

    assert_eq!(page.status, 200);
    assert!(page.head.contains("content-type: text/html"), "{}", page.head);
    assert!(page.head.contains("content-security-policy: default-src 'none';"), "{}", page.head);
    assert!(page.body.trim_start().to_lowercase().starts_with("<!doctype html>"));
}

#[tokio::test]
async fn pages_of_any_origin_may_import_the_client_and_always_get_that_of_their_gateway() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;

    let code = exchange(gateway.address, "GET /client.js", "origin: https://app.example\r\n").await;
    let types = exchange(gateway.address, "GET /client.d.ts", "").await;

    for (answer, kind) in [(&code, "text/javascript"), (&types, "text/plain")] {
        assert_eq!(answer.status, 200);
        assert!(answer.head.contains(&format!("content-type: {kind}; charset=utf-8")), "{}", answer.head);
        assert!(answer.head.contains("access-control-allow-origin: *"), "{}", answer.head);
        assert!(answer.head.contains("cache-control: no-cache"), "{}", answer.head);
    }
    assert_eq!(code.body, include_str!("../../client/client.js"));
    assert_eq!(types.body, include_str!("../../client/client.d.ts"));
}

#[tokio::test]
async fn a_page_whose_handshake_was_refused_may_read_why() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;

    let foreign = exchange(gateway.address, "GET /v1/feed", "origin: https://app.example\r\n").await;
    let wrong = exchange(gateway.address, "GET /v1/feed?from=", "origin: http://localhost:1\r\n").await;

    assert_eq!((foreign.status, foreign.error().0.as_str()), (403, "origin"));
    assert_eq!((wrong.status, wrong.error().0.as_str()), (400, "bad_request"));
    for answer in [foreign, wrong] {
        assert!(answer.head.contains("access-control-allow-origin: *"), "{}", answer.head);
    }
}

#[tokio::test]
async fn other_addresses_and_methods_are_refused_in_words() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;

    for path in ["/nowhere", "/v1", "/v1/feed/more", "/v2/feed", "/metrics/all", "/..%2f..%2fetc/passwd"] {
        let answer = exchange(gateway.address, &format!("GET {path}"), "").await;
        assert_eq!((answer.status, answer.error().0.as_str()), (404, "not_found"), "{path}");
        assert!(answer.error().1.contains("/v1/feed"), "{}", answer.body);
    }
    for (method, path) in [("POST", "/v1/feed"), ("DELETE", "/metrics"), ("PUT", "/"), ("POST", "/switch/status")] {
        let answer = exchange(gateway.address, &format!("{method} {path}"), "content-length: 0\r\n").await;
        assert_eq!((answer.status, answer.error().0.as_str()), (405, "method_not_allowed"), "{method} {path}");
    }
}

#[tokio::test]
async fn a_web_page_of_a_foreign_origin_is_refused_with_the_remedy() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start_with(&db, |config| {
        config.origins = switchboard::config::Origins::new("https://app.example").unwrap();
    })
    .await;
    let answer = async |origin: &str| {
        let mut raw = Raw::connect(gateway.address).await;
        let head = handshake("/v1/feed").replace("\r\n\r\n", &format!("\r\norigin: {origin}\r\n\r\n"));
        raw.write(head.as_bytes()).await;
        raw.until_end_of_head().await
    };

    let (foreign, own, listed) = (
        answer("https://evil.example").await,
        answer(&format!("http://{}", gateway.address)).await,
        answer("https://app.example").await,
    );

    assert!(foreign.starts_with("HTTP/1.1 403 "), "{foreign}");
    assert!(own.starts_with("HTTP/1.1 101 ") && listed.starts_with("HTTP/1.1 101 "), "{own} {listed}");
}
