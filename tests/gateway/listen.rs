//! `/listen/{channel}`: payloads as they are, one session for everybody, and nobody left in silence.

use std::time::Duration;

use switchboard::config::{self, ListenChannels};
use switchboard::local::StopMode;
use tokio::net::TcpSocket;

use crate::harness::raw::{LAST, Raw, TEXT, handshake};
use crate::harness::{Client, Database, Gateway, Server, soon, until};

async fn gateway(db: &Database, channels: &str) -> Gateway {
    Gateway::start_with(db, |config| config.listen_channels = ListenChannels::new(channels)).await
}

async fn listen(gateway: &Gateway, channel: &str) -> Client {
    Client::connect(&format!("ws://{}/listen/{channel}", gateway.address)).await
}

async fn notify(db: &Database, channel: &str, payload: &str) {
    db.execute("select pg_notify($1, $2)", &[&channel, &payload]).await.unwrap();
}

/// How many sessions listen for gateways of this database.
async fn sessions(db: &Database) -> i64 {
    db.value(
        "select count(*) from pg_stat_activity
         where datname = current_database() and application_name = 'switchboard listen'",
    )
    .await
}

/// What the session that listens did last.
async fn last_statement(db: &Database) -> String {
    db.value(
        "select coalesce(max(query), '') from pg_stat_activity
         where datname = current_database() and application_name = 'switchboard listen'",
    )
    .await
}

#[tokio::test]
async fn a_payload_arrives_byte_for_byte() {
    let db = Database::new().await;
    let gateway = gateway(&db, "c").await;
    let mut client = listen(&gateway, "c").await;
    let longest = "ä'".repeat(2666) + "x";
    assert_eq!(longest.len(), 7999, "the longest that PostgreSQL allows");
    let payloads = ["x", "", r#"{"a": "b\"\\'"}"#, "ünï → 𝄞\u{0301}\u{202e}", "line\r\nline\t\u{1}\u{7f}", &longest];

    for payload in payloads {
        notify(&db, "c", payload).await;
    }
    db.run(&["notify c"]).await;

    for payload in payloads.into_iter().chain([""]) {
        assert_eq!(client.text().await.as_deref(), Ok(payload));
    }
}

#[tokio::test]
async fn a_channels_name_is_taken_exactly() {
    let db = Database::new().await;
    let gateway = gateway(&db, "chat_*, Odd ?*").await;
    let longest = format!("chat_{}", "ä".repeat(29));
    assert_eq!(longest.len(), 63);
    let names = [
        ("chat_1", "chat_1"),
        ("chat_A", "chat_A"),
        ("chat_a", "chat_a"),
        ("chat_%22%27%25%2F%3B--", "chat_\"'%/;--"),
        ("Odd%20%C3%A4", "Odd ä"),
        (longest.as_str(), longest.as_str()),
    ];
    let mut clients = Vec::new();
    for (path, _) in names {
        let path: String = form_urlencoded::byte_serialize(path.as_bytes()).collect();
        // All that is encoded in the table above is meant.
        clients.push(listen(&gateway, &path.replace("%25", "%")).await);
    }

    for (_, name) in names {
        notify(&db, name, &format!("to {name}")).await;
    }

    for (client, (_, name)) in clients.iter_mut().zip(names) {
        assert_eq!(client.text().await, Ok(format!("to {name}")));
    }
    assert_eq!(gateway.get("/listen/chat").await.0, 403);
    assert_eq!(gateway.get("/listen/CHAT_1").await.0, 403);
}

#[tokio::test]
async fn what_may_not_be_listened_to_is_refused_with_the_remedy() {
    let db = Database::new().await;
    let (none, all) = (Gateway::start(&db).await, gateway(&db, "*").await);
    let long = format!("/listen/{}", "x".repeat(64));

    for (gateway, path, status, remedy) in [
        (&none, "/listen/c", 403, r#"\"c\" may not be listened to; let the operator add it to --listen-channels"#),
        (&none, "/listen/switchboard", 403, "doorbell"),
        (&all, "/listen/switchboard", 403, "doorbell"),
        (&all, "/listen/%73witchboard", 403, "doorbell"),
        (&all, "/listen/", 400, "say /listen/CHANNEL"),
        (&all, "/listen", 400, "say /listen/CHANNEL"),
        (&all, &long, 400, "64 bytes; PostgreSQL allows 63"),
        (&all, "/listen/a%00b", 400, "NUL"),
        (&all, "/listen/a%ff", 400, "UTF-8"),
        (&all, "/listen/a%", 400, "%25"),
        (&all, "/listen/c", 426, "WebSocket"),
    ] {
        let (code, body) = gateway.get(path).await;
        assert_eq!(code, status, "{path}: {body}");
        assert!(body.contains(remedy), "{path}: {body}");
    }
    assert_eq!(sessions(&db).await, 0, "nobody who is refused costs a session");
}

#[tokio::test]
async fn pages_of_other_origins_and_too_many_are_refused() {
    let db = Database::new().await;
    let gateway = Gateway::start_with(&db, |config| {
        config.listen_channels = ListenChannels::new("*");
        config.subscribers_max = 1;
    })
    .await;
    let answer = async |request: String| {
        let mut raw = Raw::connect(gateway.address).await;
        raw.write(request.as_bytes()).await;
        raw.until_end_of_head().await
    };

    let origin = handshake("/listen/c").replace("\r\n\r\n", "\r\norigin: https://evil.example\r\n\r\n");
    let origin = answer(origin).await;
    let _first = listen(&gateway, "c").await;
    let second = answer(handshake("/listen/c")).await;

    assert!(origin.starts_with("HTTP/1.1 403 "), "{origin}");
    assert!(second.starts_with("HTTP/1.1 503 "), "{second}");
}

#[tokio::test]
async fn whatever_is_notified_once_the_socket_is_open_arrives() {
    let db = Database::new().await;
    let gateway = gateway(&db, "*").await;
    // Keeps the session, so that the channel comes and goes on it.
    let _other = listen(&gateway, "other").await;

    for round in 0..100 {
        let mut client = listen(&gateway, "c").await;
        notify(&db, "c", &round.to_string()).await;
        assert_eq!(client.text().await, Ok(round.to_string()));
    }
}

#[tokio::test]
async fn a_transaction_of_many_notifications_arrives_whole_and_in_order() {
    const MANY: u32 = 5000;
    let db = Database::new().await;
    let gateway = gateway(&db, "c").await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(listen(&gateway, "c").await);
    }

    db.run(&[&format!("select pg_notify('c', n::text) from generate_series(1, {MANY}) n")]).await;

    for client in &mut clients {
        for n in 1..=MANY {
            assert_eq!(client.text().await, Ok(n.to_string()));
        }
    }
}

#[tokio::test]
async fn one_session_listens_for_all_and_goes_with_the_last() {
    let db = Database::new().await;
    let gateway = gateway(&db, "*").await;
    let mut clients = Vec::new();
    for n in 0..60 {
        clients.push((n % 3, listen(&gateway, &format!("c{}", n % 3)).await));
    }

    assert_eq!(sessions(&db).await, 1);
    for n in 0..3 {
        notify(&db, &format!("c{n}"), &format!("to {n}")).await;
    }
    for (n, client) in &mut clients {
        assert_eq!(client.text().await, Ok(format!("to {n}")));
    }
    let in_transaction = "select count(*) from pg_stat_activity
        where datname = current_database() and application_name = 'switchboard listen' and state like '%in transaction%'";
    assert_eq!(db.value::<i64>(in_transaction).await, 0);

    drop(clients);
    until("the session ends", async || sessions(&db).await == 0).await;
    let mut again = listen(&gateway, "c0").await;
    notify(&db, "c0", "again").await;
    assert_eq!(again.text().await.as_deref(), Ok("again"));
}

#[tokio::test]
async fn a_channel_that_nobody_wants_any_more_is_unlistened() {
    let db = Database::new().await;
    let gateway = gateway(&db, "*").await;
    let mut stays = listen(&gateway, "stays").await;
    let (one, mut other) = (listen(&gateway, "leaves").await, listen(&gateway, "leaves").await);

    drop(one);
    until("one has left", async || gateway.metric("switchboard_subscribers").await == 2.0).await;
    notify(&db, "leaves", "x").await;
    assert_eq!(other.text().await.as_deref(), Ok("x"), "it is unlistened with the last, not with the first");
    drop(other);

    until("it is unlistened", async || last_statement(&db).await == r#"unlisten "leaves""#).await;
    notify(&db, "stays", "x").await;
    assert_eq!(stays.text().await.as_deref(), Ok("x"));
}

#[tokio::test]
async fn who_listened_when_postgresql_went_away_is_told_to_come_back() {
    let mut server = Server::start(&[]).await;
    let mut db = server.database().await;
    let gateway = gateway(&db, "c").await;
    let mut client = listen(&gateway, "c").await;

    server.0.restart(StopMode::Immediate).await.unwrap();

    assert_eq!(soon("the end", client.closed()).await, 1011);
    // Waits until PostgreSQL listens again, whether it is there yet or not.
    let mut client = listen(&gateway, "c").await;
    db.reconnect().await;
    notify(&db, "c", "again").await;
    assert_eq!(client.text().await.as_deref(), Ok("again"));
}

#[tokio::test]
async fn a_dead_link_to_postgresql_is_noticed_and_nobody_left_in_silence() {
    let db = Database::new().await;
    let (proxy, database) = db.behind_proxy().await;
    let gateway = Gateway::launch(database, |config| config.listen_channels = ListenChannels::new("c")).await;
    let mut client = listen(&gateway, "c").await;

    proxy.forget();

    assert_eq!(soon("the end", client.closed()).await, 1011);
    let mut client = listen(&gateway, "c").await;
    notify(&db, "c", "again").await;
    assert_eq!(client.text().await.as_deref(), Ok("again"));
}

#[tokio::test]
async fn without_postgresql_the_handshake_is_refused_and_the_client_told_to_try_later() {
    let socket = TcpSocket::new_v4().unwrap();
    // Bound, so that nobody else gets its port; nobody listens.
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("postgres://me@{}/db", socket.local_addr().unwrap());
    let database = config::database_config(&url, None).unwrap();
    let gateway = Gateway::launch(database, |config| config.listen_channels = ListenChannels::new("c")).await;
    let mut raw = Raw::connect(gateway.address).await;

    raw.write(handshake("/listen/c").as_bytes()).await;

    let head = raw.until_end_of_head().await;
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("retry-after: 5"), "{head}");
    gateway.stop().await;
}

#[tokio::test]
async fn a_frozen_client_does_not_stop_the_others_and_is_told_that_it_fell_behind() {
    let db = Database::new().await;
    let gateway = Gateway::start_with(&db, |config| {
        config.listen_channels = ListenChannels::new("*");
        config.write_timeout = Duration::from_secs(120);
    })
    .await;
    let mut frozen = Raw::upgrade(gateway.address, "/listen/c").await;
    let mut witness = listen(&gateway, "c").await;
    let (mut sent, mut received) = (0, 0);

    // Much more than the kernel's buffers and the channel's together.
    for _ in 0..30 {
        db.run(&["select pg_notify('c', n || repeat('x', 7990)) from generate_series(100, 199) n"]).await;
        for n in 100..200 {
            let payload = witness.text().await.unwrap();
            assert_eq!((&payload[..3], payload.len()), (n.to_string().as_str(), 7993));
            sent += 1;
        }
    }

    loop {
        let (first, payload) = soon("the closing frame", frozen.frame()).await.expect("a closing frame");
        if first != LAST | TEXT {
            assert_eq!(payload[..2], 4408_u16.to_be_bytes());
            break;
        }
        assert_eq!(payload[..3], *(100 + received % 100).to_string().as_bytes(), "no gap before the end");
        received += 1;
    }
    assert!(received < sent, "it missed some");
    notify(&db, "c", "still there").await;
    assert_eq!(witness.text().await.as_deref(), Ok("still there"));
}

#[tokio::test]
async fn one_who_takes_nothing_for_the_write_time_out_is_cut_off_and_counted() {
    let db = Database::new().await;
    let gateway = Gateway::start_with(&db, |config| {
        config.listen_channels = ListenChannels::new("*");
        config.write_timeout = Duration::from_millis(500);
    })
    .await;
    let _frozen = Raw::upgrade(gateway.address, "/listen/c").await;

    for _ in 0..10 {
        db.run(&["select pg_notify('c', n || repeat('x', 7990)) from generate_series(100, 199) n"]).await;
    }

    until("it is cut off", async || gateway.metric("switchboard_subscribers").await == 0.0).await;
    let (_, metrics) = gateway.get("/metrics").await;
    assert!(metrics.contains(r#"switchboard_subscribers_closed_total{code="4408"} 1"#), "{metrics}");
}

#[tokio::test]
async fn a_client_that_does_not_answer_pings_is_let_go_and_one_that_does_stays() {
    let db = Database::new().await;
    let gateway = Gateway::start_with(&db, |config| {
        config.listen_channels = ListenChannels::new("*");
        config.heartbeat = Duration::from_millis(100);
        config.write_timeout = Duration::from_millis(400);
    })
    .await;
    let mut silent = Raw::upgrade(gateway.address, "/listen/c").await;
    let mut polite = listen(&gateway, "c").await;

    let (code, (), ()) = tokio::join!(
        silent.close_code(),
        async {
            // Reading is what answers the pings.
            assert_eq!(polite.text().await.as_deref(), Ok("x"));
        },
        async {
            until("the silent one is let go", async || gateway.metric("switchboard_subscribers").await == 1.0).await;
            notify(&db, "c", "x").await;
        }
    );

    assert_eq!(code, 4408);
}

#[tokio::test]
async fn what_a_client_sends_means_nothing_and_its_goodbye_is_answered() {
    let db = Database::new().await;
    let gateway = gateway(&db, "c").await;
    let mut client = listen(&gateway, "c").await;

    for _ in 0..100 {
        client.send(r#"{"type":"ping"}"#).await;
    }
    notify(&db, "c", "x").await;

    assert_eq!(client.text().await.as_deref(), Ok("x"));
    client.socket().close(None).await.unwrap();
    until("it is gone", async || gateway.metric("switchboard_subscribers").await == 0.0).await;
}

#[tokio::test]
async fn a_gateway_that_stops_says_so() {
    let db = Database::new().await;
    let gateway = gateway(&db, "*").await;
    let (mut one, mut other) = (listen(&gateway, "a").await, listen(&gateway, "b").await);

    let ((), one, other) = tokio::join!(gateway.stop(), one.closed(), other.closed());

    assert_eq!((one, other), (1001, 1001));
    until("the session ends", async || sessions(&db).await == 0).await;
}
