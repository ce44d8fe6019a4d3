//! Clients that break the rules, lie, stall or flood: each costs only itself, and the next one is served as ever.

use std::time::Duration;

use futures_util::StreamExt;
use switchboard::config::MESSAGE_BYTES_MAX;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::harness::raw::*;
use crate::harness::{Client, Database, Gateway, soon, until};

/// A gateway and a client that keeps the rules.
async fn gateway_with_witness(change: impl FnOnce(&mut switchboard::config::Config)) -> (Database, Gateway, Client) {
    let db = Database::with_switch().await;
    let gateway = Gateway::start_with(&db, change).await;
    let witness = gateway.follow("table=switch").await;
    (db, gateway, witness)
}

/// The promise behind all of this: whatever happened, the one who keeps the rules gets the next change.
async fn gets_the_next_change(db: &Database, witness: &mut Client) {
    let id: i64 = db.value("insert into switch (name) values ('next') returning id").await;
    let changes = witness.changes().await;
    assert_eq!((changes.len(), changes[0]["new"]["id"].as_i64()), (1, Some(id)));
}

#[tokio::test]
async fn frames_that_break_the_protocol_are_closed_with_1002() {
    let (db, gateway, mut witness) = gateway_with_witness(|_| {}).await;
    let unmasked = [header(LAST | TEXT, 0, 15), br#"{"type":"ping"}"#.to_vec()].concat();
    let twice_begun = [masked(TEXT, b"a"), masked(LAST | TEXT, b"b")].concat();
    let mut closed = Vec::new();

    for (what, bytes) in [
        ("an unmasked frame", unmasked),
        ("reserved bit 1", masked(LAST | 0x40 | TEXT, b"x")),
        ("reserved bit 2", masked(LAST | 0x20 | TEXT, b"x")),
        ("reserved bit 3", masked(LAST | 0x10 | TEXT, b"x")),
        ("a ping in fragments", masked(PING, b"x")),
        ("a close in fragments", masked(CLOSE, &1000_u16.to_be_bytes())),
        ("a ping that is too long", masked(LAST | PING, &[0; 126])),
        ("an unknown kind of data", masked(LAST | 0x3, b"x")),
        ("an unknown kind of control", masked(LAST | 0xb, b"x")),
        ("a fragment of nothing", masked(LAST, b"x")),
        ("a message inside another", twice_begun),
        ("a closing frame of one byte", masked(LAST | CLOSE, &[3])),
    ] {
        let mut raw = Raw::follow(&gateway).await;

        raw.write(&bytes).await;

        assert_eq!(raw.close_code().await, 1002, "{what}");
        gets_the_next_change(&db, &mut witness).await;
        closed.push((what, raw));
    }
    for (what, mut raw) in closed {
        assert_eq!(raw.frame().await, None, "{what}: nothing comes behind the closing frame");
    }
}

#[tokio::test]
async fn text_that_is_not_utf8_is_closed_with_1007() {
    let (db, gateway, mut witness) = gateway_with_witness(|_| {}).await;
    let split_wrongly = [masked(TEXT, &[0xe2, 0x82]), masked(LAST, b"x")].concat();

    for bytes in [
        masked(LAST | TEXT, &[b'a', 0xff]),
        // An encoded surrogate, and a character cut off.
        masked(LAST | TEXT, &[0xed, 0xa0, 0x80]),
        masked(LAST | TEXT, &[0xe2, 0x82]),
        split_wrongly,
    ] {
        let mut raw = Raw::follow(&gateway).await;

        raw.write(&bytes).await;

        assert_eq!(raw.close_code().await, 1007, "{bytes:?}");
        gets_the_next_change(&db, &mut witness).await;
    }
}

#[tokio::test]
async fn a_message_in_fragments_is_read_as_one_even_where_a_character_is_cut() {
    let (db, gateway, mut witness) = gateway_with_witness(|_| {}).await;
    let mut raw = Raw::follow(&gateway).await;
    let message = r#"{"type":"ping","id":"€"}"#.as_bytes();
    let cut = message.iter().position(|byte| *byte == 0xe2).unwrap() + 1;

    raw.write(&masked(TEXT, &message[..cut])).await;
    // Control frames may come between fragments (RFC 6455, 5.4).
    raw.write(&masked(LAST | PING, b"between")).await;
    raw.write(&masked(0, &[])).await;
    raw.write(&masked(LAST, &message[cut..])).await;

    assert_eq!(raw.frame().await, Some((LAST | PONG, b"between".to_vec())));
    assert_eq!(raw.frame().await, Some((LAST | TEXT, r#"{"type":"pong","id":"€"}"#.as_bytes().to_vec())));
    gets_the_next_change(&db, &mut witness).await;
}

#[tokio::test]
async fn a_message_that_is_too_large_is_closed_with_1009() {
    let (db, gateway, mut witness) = gateway_with_witness(|_| {}).await;
    let half = vec![b' '; MESSAGE_BYTES_MAX / 2];
    let adding_up = [masked(TEXT, &half), masked(0, &half), masked(LAST, b" ")].concat();
    let only_announced = [header(LAST | TEXT, 0x80, 1 << 62), vec![0; 4]].concat();

    for (what, bytes) in [
        ("one byte too many", masked(LAST | TEXT, &vec![b' '; MESSAGE_BYTES_MAX + 1])),
        ("ten megabytes", masked(LAST | TEXT, &vec![b' '; 10 << 20])),
        ("fragments that add up", adding_up),
        ("a length beyond all bounds", only_announced),
    ] {
        let mut raw = Raw::follow(&gateway).await;

        raw.write(&bytes).await;

        assert_eq!(raw.close_code().await, 1009, "{what}");
        gets_the_next_change(&db, &mut witness).await;
    }
}

#[tokio::test]
async fn the_largest_message_allowed_is_answered() {
    let (_db, gateway, mut client) = gateway_with_witness(|_| {}).await;
    let mut message = r#"{"type":"ping","id":1}"#.to_owned();
    message.push_str(&" ".repeat(MESSAGE_BYTES_MAX - message.len()));

    client.send(&message).await;

    assert_eq!(client.text().await.unwrap(), r#"{"type":"pong","id":1}"#);
    drop(gateway);
}

#[tokio::test]
async fn what_is_no_request_is_refused_or_cut_off() {
    let (db, gateway, mut witness) = gateway_with_witness(|_| {}).await;
    let long_line = format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "a".repeat(100_000));
    let long_header = format!("GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "a".repeat(100_000));
    let many_headers = format!("GET /healthz HTTP/1.1\r\nhost: localhost\r\n{}\r\n", "x: y\r\n".repeat(1000));

    for (what, bytes) in [
        ("garbage", b"\x00\x01\x02\xff\r\n\r\n".to_vec()),
        ("the beginning of TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec()),
        ("another protocol", b"EHLO example.org\r\n\r\n".to_vec()),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("a long line", long_line.into_bytes()),
        ("a long header", long_header.into_bytes()),
        ("many headers", many_headers.into_bytes()),
    ] {
        let mut raw = Raw::connect(gateway.address).await;

        raw.write(&bytes).await;

        let answer = raw.rest().await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{what} got {answer}");
        gets_the_next_change(&db, &mut witness).await;
    }
}

#[tokio::test]
async fn a_request_that_never_ends_is_cut_off() {
    let (db, gateway, mut witness) = gateway_with_witness(|_| {}).await;
    let mut silent = Raw::connect(gateway.address).await;
    let mut slow = Raw::connect(gateway.address).await;
    slow.write(b"GET /v1/feed HTTP/1.1\r\nhost: localhost\r\nx-never: ").await;

    gets_the_next_change(&db, &mut witness).await;

    // Both at once: this takes the patience for a request's head, and that is long.
    let (first, second) = tokio::join!(slow.rest(), silent.rest());
    assert!(first.is_empty() || first.starts_with("HTTP/1.1 4"), "{first}");
    assert!(second.is_empty() || second.starts_with("HTTP/1.1 4"), "{second}");
    gets_the_next_change(&db, &mut witness).await;
}

#[tokio::test]
async fn a_connection_reset_at_any_moment_harms_nobody() {
    let (db, gateway, mut witness) = gateway_with_witness(|_| {}).await;
    let request = handshake(FEED);

    for end in [0, 1, 20, request.len() - 1, request.len()] {
        let mut raw = Raw::connect(gateway.address).await;
        raw.write(&request.as_bytes()[..end]).await;
        raw.stream.set_zero_linger().unwrap();
        drop(raw);
    }
    let following = Raw::follow(&gateway).await;
    following.stream.set_zero_linger().unwrap();
    drop(following);

    gets_the_next_change(&db, &mut witness).await;
    until("only the witness is left", async || gateway.metric("switchboard_subscribers").await == 1.0).await;
}

#[tokio::test]
async fn a_client_that_says_good_bye_is_answered_with_its_own_code() {
    let (db, gateway, mut witness) = gateway_with_witness(|_| {}).await;

    for code in [1000_u16, 1001, 3000, 4999] {
        let mut client = gateway.follow("table=switch").await;
        let frame = CloseFrame { code: code.into(), reason: "good-bye".into() };
        client.socket().close(Some(frame)).await.unwrap();

        let answer = soon("the answer", client.socket().next()).await.unwrap().unwrap();
        let Message::Close(Some(frame)) = answer else { panic!("a close was due, and this came: {answer:?}") };
        assert_eq!(u16::from(frame.code), code);
        assert!(soon("the end", client.socket().next()).await.is_none(), "{code}: the connection ends");
    }
    let mut without_code = Raw::follow(&gateway).await;
    without_code.write(&masked(LAST | CLOSE, &[])).await;

    assert_eq!(without_code.close_code().await, 1005);
    assert_eq!(without_code.frame().await, None);
    gets_the_next_change(&db, &mut witness).await;
}

#[tokio::test]
async fn what_comes_right_behind_the_handshake_is_answered_at_once() {
    // No heartbeat comes to help.
    let (_db, gateway, _witness) = gateway_with_witness(|config| config.heartbeat = Duration::from_secs(60)).await;
    let mut raw = Raw::connect(gateway.address).await;

    let eager = [handshake(FEED).into_bytes(), masked(LAST | TEXT, br#"{"type":"ping","id":1}"#)].concat();
    raw.write(&eager).await;

    raw.until_end_of_head().await;
    let mut texts = Vec::new();
    while !texts.iter().any(|text: &Vec<u8>| text.starts_with(br#"{"type":"pong""#)) {
        texts.push(raw.frame().await.expect("a pong").1);
    }
    assert!(texts[0].starts_with(br#"{"type":"hello""#), "hello is first all the same");
}

#[tokio::test]
async fn many_pings_at_once_are_all_answered_to_one_who_reads() {
    let (db, gateway, mut witness) = gateway_with_witness(|_| {}).await;
    let Raw { stream, .. } = Raw::follow(&gateway).await;
    let (read, mut write) = stream.into_split();
    let payload = [b'p'; 125];
    let pings = masked(LAST | PING, &payload).repeat(5000);

    let writing = tokio::spawn(async move { write.write_all(&pings).await.map(|()| write) });
    let mut pongs = Vec::new();
    soon("the pongs", read.take(5000 * 127).read_to_end(&mut pongs)).await.unwrap();

    let expected = [&header(LAST | PONG, 0, 125)[..], &payload].concat().repeat(5000);
    assert!(pongs == expected, "{} bytes of pongs instead of {}", pongs.len(), expected.len());
    writing.await.unwrap().unwrap();
    gets_the_next_change(&db, &mut witness).await;
}

#[tokio::test]
async fn a_flood_of_pings_whose_answers_nobody_reads_is_cut_off() {
    let (db, gateway, mut witness) =
        gateway_with_witness(|config| config.write_timeout = Duration::from_millis(500)).await;
    let raw = Raw::follow(&gateway).await;

    let flood = raw.flood(masked(LAST | PING, &[b'p'; 125]).repeat(500), Duration::from_secs(10));

    gets_the_next_change(&db, &mut witness).await;
    assert!(flood.was_cut_off().await, "the flood went on for as long as it liked");
    gets_the_next_change(&db, &mut witness).await;
}

#[tokio::test]
async fn a_flood_of_messages_whose_answers_nobody_reads_is_cut_off() {
    let (db, gateway, mut witness) =
        gateway_with_witness(|config| config.write_timeout = Duration::from_millis(500)).await;
    let raw = Raw::follow(&gateway).await;

    let flood = raw.flood(masked(LAST | TEXT, br#"{"type":"ping","id":"flood"}"#).repeat(500), Duration::from_secs(10));

    gets_the_next_change(&db, &mut witness).await;
    assert!(flood.was_cut_off().await, "the flood went on for as long as it liked");
    gets_the_next_change(&db, &mut witness).await;
}

#[tokio::test]
async fn a_flood_that_needs_no_answer_does_not_delay_the_others() {
    let (db, gateway, mut witness) = gateway_with_witness(|_| {}).await;
    let raw = Raw::follow(&gateway).await;

    let flood = raw.flood(masked(LAST | PONG, &[]).repeat(10_000), Duration::from_secs(6));
    for _ in 0..5 {
        gets_the_next_change(&db, &mut witness).await;
    }

    assert!(flood.goes_on(), "the changes came only when the flood was over");
    flood.was_cut_off().await;
}

#[tokio::test]
async fn a_message_of_endless_empty_fragments_does_not_delay_the_others() {
    let (db, gateway, mut witness) = gateway_with_witness(|_| {}).await;
    let mut raw = Raw::follow(&gateway).await;
    raw.write(&masked(TEXT, b"a")).await;

    let flood = raw.flood(masked(0, &[]).repeat(10_000), Duration::from_secs(6));
    for _ in 0..5 {
        gets_the_next_change(&db, &mut witness).await;
    }

    assert!(flood.goes_on(), "the changes came only when the flood was over");
    flood.was_cut_off().await;
}

#[tokio::test]
async fn a_client_that_talks_on_after_the_close_is_cut_off() {
    let (db, gateway, mut witness) = gateway_with_witness(|_| {}).await;
    let mut raw = Raw::upgrade(gateway.address, "/v1/feed?table=switch&from=nonsense&on_reset=close").await;
    assert_eq!(raw.close_code().await, 4410);

    let flood = raw.flood(masked(LAST | PONG, &[]).repeat(10_000), Duration::from_secs(8));
    gets_the_next_change(&db, &mut witness).await;

    assert!(flood.was_cut_off().await, "the flood went on for as long as it liked");
    gets_the_next_change(&db, &mut witness).await;
}

#[tokio::test]
async fn a_client_that_stops_reading_is_closed_while_the_others_get_everything() {
    const HISTORY_BYTES_MAX: usize = 1 << 20;
    let (db, gateway, mut witness) = gateway_with_witness(|config| {
        config.write_timeout = Duration::from_secs(1);
        config.history_bytes_max = HISTORY_BYTES_MAX;
    })
    .await;
    let stalled = Raw::follow(&gateway).await;

    for n in 0..20 {
        // Ten rows of 100 kB, hardly compressible.
        let rows = format!(
            "insert into switch (id, name) select {n} * 10 + 1000 + i, string_agg(md5(random()::text), '')
             from generate_series(0, 9) as i, generate_series(1, 3200) group by i order by i"
        );
        db.run(&[&rows]).await;
        let changes = witness.changes().await;
        let ids: Vec<i64> = changes.iter().map(|change| change["new"]["id"].as_i64().unwrap()).collect();
        assert_eq!(ids, (n * 10 + 1000..n * 10 + 1010).collect::<Vec<i64>>());
        let kept = gateway.metric("switchboard_history_bytes").await;
        assert!(kept <= HISTORY_BYTES_MAX as f64, "{kept} bytes are kept");
    }

    until("the stalled one is closed", async || gateway.metric("switchboard_subscribers").await == 1.0).await;
    let (_, metrics) = gateway.get("/metrics").await;
    assert!(metrics.contains("switchboard_subscribers_closed_total{code=\"4408\"} 1"), "{metrics}");
    gets_the_next_change(&db, &mut witness).await;
    drop(stalled);
}

#[tokio::test]
async fn a_client_that_reads_slower_than_changes_come_loses_nothing() {
    let (db, gateway, mut witness) = gateway_with_witness(|config| config.history_bytes_max = 1 << 20).await;
    let mut slow = Raw::follow(&gateway).await;

    // More than fits into the history and the kernel's buffers together: it has to come from the log.
    for n in 0..12 {
        let row = format!("insert into switch (id, name) values ({n} + 1000, repeat('x', 1000000))");
        db.run(&[&row]).await;
        witness.changes().await;
    }
    gets_the_next_change(&db, &mut witness).await;

    let mut ids = Vec::new();
    let mut prev = None;
    while ids.len() < 13 {
        let (_, text) = slow.frame().await.expect("a commit");
        let frame: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert!(prev.is_none() || prev.as_ref() == Some(&frame["prev"]), "the chain is broken by {frame:.200}");
        prev = Some(frame["cursor"].clone());
        for change in frame["changes"].as_array().into_iter().flatten() {
            ids.push(change["new"]["id"].as_i64().unwrap());
        }
    }
    assert_eq!(ids[..12], (1000..1012).collect::<Vec<i64>>());
}

#[tokio::test]
async fn a_client_that_stops_reading_while_it_catches_up_holds_nothing_of_the_database() {
    const ROWS: usize = 300;
    let (db, gateway, mut witness) = gateway_with_witness(|config| config.write_timeout = Duration::from_secs(2)).await;
    let cursor = witness.cursor.clone().unwrap();
    let fill = format!(
        "do $$ begin for n in 1..{ROWS} loop
             insert into switch (id, name)
             select n + 1000, string_agg(md5(random()::text), '') from generate_series(1, 3200); commit;
         end loop; end $$"
    );
    let reading = async {
        for _ in 0..ROWS {
            witness.changes().await;
        }
    };
    let statements = [fill.as_str()];
    tokio::join!(db.run(&statements), reading);
    let begun = gateway.metric("switchboard_sent_bytes_total").await;

    // As many as there are connections for those who catch up. 30 MB are more than any socket buffers.
    let from = format!("/v1/feed?table=switch&from={cursor}");
    let stalled = [Raw::upgrade(gateway.address, &from).await, Raw::upgrade(gateway.address, &from).await];
    until("they catch up", async || gateway.metric("switchboard_sent_bytes_total").await > begun + 100_000.0).await;
    until("nothing of the database is held for them", async || {
        let held = "select count(*) from pg_stat_activity where datname = current_database()
                    and application_name = 'switchboard' and xact_start is not null";
        db.value::<i64>(held).await == 0
    })
    .await;
    // This one gets a connection, and the same from the same cursor.
    let mut same = gateway.subscribe(&format!("table=switch&from={cursor}")).await;
    for n in 0..ROWS {
        assert_eq!(same.resumed().await[0]["new"]["id"], n + 1001);
    }
    gets_the_next_change(&db, &mut witness).await;

    until("they are closed", async || {
        let (_, metrics) = gateway.get("/metrics").await;
        metrics.contains("switchboard_subscribers_closed_total{code=\"4408\"} 2")
    })
    .await;
    drop(stalled);
    let mut again = gateway.subscribe(&format!("table=switch&from={cursor}")).await;
    for n in 0..ROWS {
        assert_eq!(again.resumed().await[0]["new"]["id"], n + 1001);
    }
}

#[tokio::test]
async fn those_who_follow_over_plain_http_leave_room_for_requests() {
    const EVENTS: usize = 1000;
    const HELD: usize = 100;
    let (db, gateway, mut witness) = gateway_with_witness(|_| {}).await;
    let cursor = witness.cursor.clone().unwrap();
    let mut following = Vec::new();
    for n in 0..EVENTS + HELD {
        let mut raw = Raw::connect(gateway.address).await;
        let request = match n < EVENTS {
            true => "GET /v1/feed?from=now&table=switch HTTP/1.1\r\naccept: text/event-stream".to_owned(),
            false => format!("GET /v1/changes?wait=60&table=switch&from={cursor} HTTP/1.1"),
        };
        raw.write(format!("{request}\r\nhost: localhost\r\n\r\n").as_bytes()).await;
        following.push(raw);
    }

    // More of them than there are places for plain HTTP.
    for raw in &mut following {
        assert!(raw.until_end_of_head().await.starts_with("HTTP/1.1 200 "));
    }

    assert_eq!(gateway.get("/healthz").await.0, 200);
    gets_the_next_change(&db, &mut witness).await;
    for raw in &mut following {
        while !String::from_utf8_lossy(raw.unread()).contains(r#""type":"commit""#) {
            assert!(raw.more().await, "everybody hears of it");
        }
    }
}

#[tokio::test]
async fn wrong_literals_cost_no_connections_to_postgresql() {
    let (db, gateway, mut witness) = gateway_with_witness(|_| {}).await;
    // PostgreSQL is asked how it reads a time.
    db.run(&["create table t (id int primary key, at timestamptz)"]).await;
    db.watch("t").await;
    let sessions = "select array_agg(pid::text) from pg_stat_activity
                    where application_name = 'switchboard' and datname = current_database()";
    gateway.follow("table=t&where=at.gt.2026-01-01").await;
    let before: Vec<String> = db.value(sessions).await;

    for n in 0..20 {
        let (status, body) = gateway.get(&format!("/v1/snapshot?table=t&where=at.gt.noon{n}")).await;
        assert_eq!(status, 400, "{body}");
    }

    let after: Vec<String> = db.value(sessions).await;
    let gone: Vec<&String> = before.iter().filter(|pid| !after.contains(pid)).collect();
    assert!(gone.is_empty(), "of the sessions {before:?} these were given up: {gone:?}");
    gateway.follow("table=t&where=at.gt.2026-01-01").await;
    gets_the_next_change(&db, &mut witness).await;
}
