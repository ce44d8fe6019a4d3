//! Crowds: whoever reaches the port takes up what there is for its kind, and nobody else's room.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use switchboard::config::{Config, Networks, RESERVED_CONNECTIONS_MAX};
use tokio::io::Interest;
use tokio::task::JoinSet;

use crate::harness::raw::{FEED, Raw, handshake};
use crate::harness::{Database, Gateway, soon, until};

/// What is asked for on a connection that stays open.
fn request(path: &str, lines: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{lines}\r\n")
}

/// The head of the answer to that, and its body if that has a length.
async fn ask(raw: &mut Raw, request: &str) -> (String, String) {
    raw.write(request.as_bytes()).await;
    let head = raw.until_end_of_head().await.to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
    (head, raw.exactly(length).await)
}

/// The same on a connection of its own.
async fn asked(gateway: &Gateway, request: &str) -> (String, String) {
    ask(&mut Raw::connect(gateway.address).await, request).await
}

#[track_caller]
fn refused((head, body): &(String, String), remedy: &str) {
    assert!(head.starts_with("http/1.1 503 ") && head.contains("\r\nretry-after: "), "{head}{body}");
    assert!(body.contains(r#""code":"too_many""#) && body.contains(remedy), "{body}");
}

async fn says_how_it_is(gateway: &Gateway) {
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(gateway.get(path).await.0, 200, "{path}");
    }
}

async fn crowded(change: impl FnOnce(&mut Config)) -> (Database, Gateway) {
    let db = Database::with_switch().await;
    let gateway = Gateway::start_with(&db, change).await;
    (db, gateway)
}

#[tokio::test]
async fn connections_on_which_nothing_is_said_keep_nobody_out() {
    let (_db, gateway) = crowded(|config| config.requests_max = 8).await;
    let mut silent = Vec::new();
    for n in 0..8 + RESERVED_CONNECTIONS_MAX + 20 {
        let mut raw = Raw::connect(gateway.address).await;
        if n % 2 == 0 {
            raw.write(b"GET /v1/feed HTTP/1.1\r\nhost: ").await;
        }
        silent.push(raw);
    }

    says_how_it_is(&gateway).await;

    // Once they had the time to ask.
    until("a subscriber is let in", async || asked(&gateway, &handshake(FEED)).await.0.starts_with("http/1.1 101 "))
        .await;
    drop(silent);
}

#[tokio::test]
async fn beyond_its_places_it_says_so_and_how_it_is() {
    let (db, gateway) = crowded(|config| (config.dev, config.requests_max) = (true, 2)).await;
    let lock = db.session().await;
    lock.batch_execute("begin; select from switch where id = 2 for update").await.unwrap();
    let mut busy = Vec::new();
    for _ in 0..2 {
        let mut raw = Raw::connect(gateway.address).await;
        raw.write(b"POST /dev/switch/2/flip HTTP/1.1\r\nhost: localhost\r\nx-switchboard: dev\r\n\r\n").await;
        busy.push(raw);
    }
    until("both wait", async || {
        let waiting =
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()";
        db.value::<i64>(waiting).await == 2
    })
    .await;

    for request in [request("/v1/tables", ""), handshake(FEED), request("/", "")] {
        let answer = asked(&gateway, &request).await;
        refused(&answer, "--requests-max");
        assert!(answer.0.contains("\r\nconnection: close\r\n"), "{}", answer.0);
    }
    says_how_it_is(&gateway).await;

    lock.batch_execute("rollback").await.unwrap();
    for mut raw in busy {
        assert!(raw.until_end_of_head().await.starts_with("HTTP/1.1 204 "));
    }
    let (head, _) = asked(&gateway, &request("/v1/tables", "")).await;
    assert!(head.starts_with("http/1.1 200 "), "those that rest make room: {head}");
}

#[tokio::test]
async fn whoever_waits_to_be_read_to_counts_as_a_subscriber() {
    const SEATS: usize = 10;
    let (db, gateway) = crowded(|config| (config.requests_max, config.subscribers_max) = (2, SEATS)).await;
    let fence = db.session().await;
    fence.batch_execute("begin; lock table switchboard.numbering in exclusive mode").await.unwrap();
    let address = gateway.address;
    let mut held = JoinSet::new();
    for n in 0..=SEATS {
        let request = match n % 2 {
            0 => request("/v1/snapshot?table=switch", ""),
            _ => request("/v1/feed?table=switch", "accept: text/event-stream\r\n"),
        };
        held.spawn(async move { ask(&mut Raw::connect(address).await, &request).await });
    }

    let one_too_many = soon("one is refused", held.join_next()).await.unwrap().unwrap();

    refused(&one_too_many, "--subscribers-max");
    assert_eq!(gateway.get("/v1/tables").await.0, 200, "the others took no places of requests");
    says_how_it_is(&gateway).await;
    fence.batch_execute("commit").await.unwrap();
    for (head, body) in soon("the others", held.join_all()).await {
        assert!(head.starts_with("http/1.1 200 "), "{head}{body}");
    }
}

#[tokio::test]
async fn event_streams_take_the_seats_of_subscribers_until_they_go() {
    let (_db, gateway) = crowded(|config| config.subscribers_max = 3).await;
    let events = request("/v1/feed?table=switch&from=now", "accept: text/event-stream\r\n");
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut raw = Raw::connect(gateway.address).await;
        assert!(ask(&mut raw, &events).await.0.starts_with("http/1.1 200 "));
        streams.push(raw);
    }

    for another in [events, handshake(FEED), request("/v1/snapshot", ""), request("/v1/changes", "")] {
        refused(&asked(&gateway, &another).await, "--subscribers-max");
    }
    assert_eq!(gateway.get("/v1/tables").await.0, 200);
    says_how_it_is(&gateway).await;

    streams.pop();
    until("its seat is free", async || gateway.get("/v1/changes").await.0 == 200).await;
}

#[tokio::test]
async fn of_those_that_rest_between_two_requests_the_one_that_rests_longest_makes_room() {
    let (_db, gateway) = crowded(|config| config.requests_max = 2).await;
    let tables = request("/v1/tables", "");
    let (mut first, mut second) = (Raw::connect(gateway.address).await, Raw::connect(gateway.address).await);
    for raw in [&mut first, &mut second] {
        assert!(ask(raw, &tables).await.0.starts_with("http/1.1 200 "));
    }

    let third = asked(&gateway, &tables).await;

    assert!(third.0.starts_with("http/1.1 200 "), "{}", third.0);
    assert_eq!(first.rest().await, "", "it is closed, and well");
    assert!(ask(&mut second, &tables).await.0.starts_with("http/1.1 200 "));
}

#[tokio::test]
async fn one_who_does_not_take_its_answers_is_cut_off() {
    let (_db, gateway) = crowded(|_| {}).await;
    let mut raw = Raw::connect(gateway.address).await;

    // More than the kernel holds for it.
    raw.write(request("/page.js", "").repeat(1000).as_bytes()).await;

    until("it is cut off", async || {
        let ready = tokio::time::timeout(Duration::from_millis(10), raw.stream.ready(Interest::WRITABLE));
        ready.await.is_ok()
            && raw.stream.try_write(b" ").is_err_and(|error| error.kind() != std::io::ErrorKind::WouldBlock)
    })
    .await;
    says_how_it_is(&gateway).await;
}

#[tokio::test]
async fn one_address_has_its_share_and_a_trusted_proxy_says_whose() {
    let (_db, gateway) = crowded(|config| {
        config.connections_per_address_max = 2;
        config.trusted_proxies = Networks::new("127.0.0.1,10.0.0.0/8").unwrap();
    })
    .await;
    let from = |line: &str| handshake(FEED).replace("\r\n\r\n", &format!("\r\n{line}\r\n\r\n"));
    let events = request("/v1/feed?from=now", "accept: text/event-stream\r\nforwarded: for=192.0.2.1;proto=https\r\n");
    let (mut socket, mut stream) = (Raw::connect(gateway.address).await, Raw::connect(gateway.address).await);
    assert!(ask(&mut socket, &from("x-forwarded-for: 198.51.100.7, 192.0.2.1, 10.0.0.1")).await.0.contains(" 101 "));
    assert!(ask(&mut stream, &events).await.0.contains(" 200 "));

    for one_too_many in [from("x-forwarded-for: 192.0.2.1"), request("/v1/tables", "x-forwarded-for: 192.0.2.1:99\r\n")]
    {
        let answer = asked(&gateway, &one_too_many).await;
        refused(&answer, "from 192.0.2.1");
        refused(&answer, "--connections-per-address-max");
    }
    for other in ["x-forwarded-for: 192.0.2.1, 192.0.2.2", "x-forwarded-for: 2001:db8::1", "x-other: 192.0.2.1"] {
        assert!(asked(&gateway, &from(other)).await.0.contains(" 101 "), "{other}");
    }
    assert!(asked(&gateway, &request("/metrics", "x-forwarded-for: 192.0.2.1\r\n")).await.0.contains(" 200 "));

    drop(socket);
    until("the socket that went makes room", async || {
        asked(&gateway, &request("/v1/tables", "x-forwarded-for: 192.0.2.1\r\n")).await.0.contains(" 200 ")
    })
    .await;
}

#[tokio::test]
async fn this_machine_is_not_counted_and_nobody_is_believed_who_is_not_trusted() {
    let (_db, gateway) = crowded(|config| config.connections_per_address_max = 1).await;
    let lie = handshake(FEED).replace("\r\n\r\n", "\r\nx-forwarded-for: 192.0.2.1\r\n\r\n");

    let mut held = Vec::new();
    for _ in 0..3 {
        let mut raw = Raw::connect(gateway.address).await;
        assert!(ask(&mut raw, &lie).await.0.contains(" 101 "));
        held.push(raw);
    }
}

/// The address of this machine that others reach it by, if it has one.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // Nothing is sent.
    let led = socket.connect("192.0.2.254:9").and_then(|()| socket.local_addr());
    led.ok().map(|address| address.ip()).filter(|address| !address.is_loopback())
}

#[tokio::test]
async fn one_too_many_from_an_address_is_told_so_and_hears_how_it_is() {
    let Some(own) = own_address() else { return eprintln!("this machine has no address but a loopback one") };
    let (_db, gateway) = crowded(|config| {
        config.listen = "0.0.0.0:0".parse().unwrap();
        config.connections_per_address_max = 2;
    })
    .await;
    let from_outside = SocketAddr::new(own, gateway.address.port());
    let (_silent, mut socket) = (Raw::connect(from_outside).await, Raw::connect(from_outside).await);
    assert!(ask(&mut socket, &handshake(FEED)).await.0.contains(" 101 "));
    let asked_from_outside = async |request: String| ask(&mut Raw::connect(from_outside).await, &request).await;

    refused(&asked_from_outside(request("/v1/tables", "")).await, &format!("from {own}"));
    refused(&asked_from_outside(handshake(FEED)).await, "--connections-per-address-max");
    assert!(asked_from_outside(request("/healthz", "")).await.0.contains(" 200 "));
    assert!(asked(&gateway, &request("/v1/tables", "")).await.0.contains(" 200 "), "others are not concerned");

    drop(socket);
    until("the socket that went makes room", async || {
        asked_from_outside(request("/v1/tables", "")).await.0.contains(" 200 ")
    })
    .await;
}
