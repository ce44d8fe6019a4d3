//! Who asks: pages of strangers read nothing, whatever name they give the gateway, and those that may are told so.

use switchboard::config::{Config, Hosts, Origins};

use crate::harness::raw::{Raw, handshake};
use crate::harness::{Database, Gateway};

/// Where something is read.
const READING: [&str; 6] = ["/v1/feed", "/v1/changes", "/v1/snapshot", "/v1/tables", "/switch/status", "/listen/c"];

async fn gateway(change: impl FnOnce(&mut Config)) -> (Database, Gateway) {
    let db = Database::with_switch().await;
    let gateway = Gateway::start_with(&db, change).await;
    (db, gateway)
}

/// The head, in lower case, and the body of what this request gets.
async fn exchange(gateway: &Gateway, request: &str) -> (String, String) {
    let mut raw = Raw::connect(gateway.address).await;
    raw.write(request.as_bytes()).await;
    let head = raw.until_end_of_head().await.to_lowercase();
    if request.contains("connection: close") {
        return (head, raw.rest().await);
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length = length.filter(|_| !request.starts_with("HEAD")).map_or(0, |length| length.parse().unwrap());
    (head, raw.exactly(length).await)
}

/// What a request with these lines gets, its status and its code.
async fn ask(gateway: &Gateway, what: &str, lines: &str) -> (u16, String) {
    let (head, body) = exchange(gateway, &format!("{what} HTTP/1.1\r\nconnection: close\r\n{lines}\r\n")).await;
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
    (status, body["error"]["code"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn a_name_that_is_led_to_this_machine_reads_nothing_and_flips_nothing() {
    let (db, gateway) = gateway(|config| config.dev = true).await;
    let port = gateway.address.port();
    let rebound = format!("host: evil.example:{port}\r\norigin: http://evil.example:{port}\r\n");

    for path in READING.iter().chain(&["/", "/metrics", "/openapi.json"]) {
        assert_eq!(ask(&gateway, &format!("GET {path}"), &rebound).await, (403, "host".to_owned()), "{path}");
    }
    let flip = "POST /dev/switch/2/flip";
    let lines = format!("{rebound}x-switchboard: dev\r\n");
    assert_eq!(ask(&gateway, flip, &lines).await, (403, "host".to_owned()));
    let socket = handshake("/v1/feed").replace("host: localhost", &format!("host: evil.example:{port}"));
    let (head, body) = exchange(&gateway, &socket).await;
    assert!(
        head.starts_with("http/1.1 403 ") && body.contains("evil.example") && body.contains("--hosts"),
        "{head}{body}"
    );

    assert!(!db.value::<bool>("select status from switch where id = 2").await);
    for path in ["/healthz", "/readyz"] {
        assert_eq!(ask(&gateway, &format!("GET {path}"), &rebound).await.0, 200, "{path}");
    }
}

#[tokio::test]
async fn the_gateway_answers_to_its_names() {
    let (_db, local) = gateway(|config| config.hosts = Hosts::new("feed.example,*.wild.example").unwrap()).await;
    let (_other_db, public) = gateway(|config| config.listen = "0.0.0.0:0".parse().unwrap()).await;
    let status =
        async |gateway: &Gateway, host: &str| ask(gateway, "GET /v1/tables", &format!("host: {host}\r\n")).await.0;

    for host in
        ["feed.example", "FEED.example:81", "a.wild.example", "localhost:1", "127.0.0.1", "[::1]:8080", "192.0.2.1"]
    {
        assert_eq!(status(&local, host).await, 200, "{host}");
    }
    for host in ["evil.example", "wild.example", "feed.example.evil.example"] {
        assert_eq!(status(&local, host).await, 403, "{host}");
    }
    assert_eq!(status(&public, "whatever.example").await, 200, "behind a proxy any name may be its own");
    // The target of a request that is written for a proxy wins.
    let proxied = "GET http://evil.example/v1/tables";
    assert_eq!(ask(&local, proxied, "host: localhost\r\n").await, (403, "host".to_owned()));
}

#[tokio::test]
async fn a_host_that_is_missing_doubled_or_none_is_a_bad_request() {
    let (_db, gateway) = gateway(|_| {}).await;
    for lines in [
        "",
        "host: localhost\r\nhost: localhost\r\n",
        "host: \r\n",
        "host: a b\r\n",
        "host: localhost/x\r\n",
        "host: \u{e9}\r\n",
    ] {
        for path in ["/v1/tables", "/healthz", "/"] {
            let answer = ask(&gateway, &format!("GET {path}"), lines).await;
            assert_eq!(answer, (400, "bad_request".to_owned()), "{path} {lines:?}");
        }
    }

    let (head, _) = exchange(&gateway, "GET /healthz HTTP/1.0\r\n\r\n").await;
    assert!(head.contains(" 200 "), "old probes have none: {head}");
}

#[tokio::test]
async fn what_a_page_of_another_site_loads_without_saying_which_is_not_read() {
    let (_db, closed) = gateway(|config| config.origins = Origins::new("https://app.example").unwrap()).await;
    let (_other_db, open) = gateway(|config| config.origins = Origins::Any).await;
    let image = "host: localhost\r\nsec-fetch-site: cross-site\r\nsec-fetch-mode: no-cors\r\nsec-fetch-dest: image\r\n";

    for path in READING.iter().filter(|path| !path.starts_with("/listen")) {
        assert_eq!(ask(&closed, &format!("GET {path}"), image).await, (403, "origin".to_owned()), "{path}");
    }
    assert_eq!(ask(&closed, "GET /v1/tables", &format!("{image}origin: https://app.example\r\n")).await.0, 200);
    for site in ["same-origin", "same-site", "none"] {
        let lines = format!("host: localhost\r\nsec-fetch-site: {site}\r\n");
        assert_eq!(ask(&closed, "GET /v1/tables", &lines).await.0, 200, "{site}");
    }
    assert_eq!(ask(&open, "GET /v1/tables", image).await.0, 200);
    // A link leads to the page, and any page may import the client.
    for path in ["/", "/client.js"] {
        assert_eq!(ask(&closed, &format!("GET {path}"), image).await.0, 200, "{path}");
    }
}

#[tokio::test]
async fn the_same_origin_is_the_same_however_it_is_written() {
    let (_db, gateway) = gateway(|config| {
        config.listen = "0.0.0.0:0".parse().unwrap();
        config.origins = Origins::new("https://*.app.example, https://slash.example/").unwrap();
    })
    .await;
    for (host, origin, status) in [
        ("feed.example:8080", "http://feed.example:8080", 101),
        // As older iOS and React Native clients send it.
        ("feed.example:8080", "http://feed.example:8080/", 101),
        ("feed.example", "https://feed.example:443", 101),
        ("feed.example:80", "http://feed.example", 101),
        ("feed.example:8080", "http://feed.example", 403),
        ("x.example", "https://a.app.example", 101),
        ("x.example", "https://app.example", 403),
        ("x.example", "https://slash.example", 101),
        ("127.0.0.1:8080", "chrome-extension://127.0.0.1", 403),
        ("feed.example", "chrome-extension://feed.example", 403),
        ("x.example", "http://127.0.0.1:5173", 101),
    ] {
        let lines = format!("host: {host}\r\norigin: {origin}\r\n");
        let (head, _) = exchange(&gateway, &handshake("/v1/feed").replace("host: localhost\r\n", &lines)).await;
        assert!(head.starts_with(&format!("http/1.1 {status} ")), "{origin} at {host}: {head}");
    }
}

#[tokio::test]
async fn a_browser_that_asks_whether_a_page_may_is_told() {
    let (_db, gateway) = gateway(|config| config.origins = Origins::new("https://app.example").unwrap()).await;
    let ask = async |origin: &str| {
        let lines = format!(
            "host: localhost\r\norigin: {origin}\r\naccess-control-request-method: GET\r\n\
             access-control-request-headers: last-event-id\r\nconnection: close\r\n"
        );
        exchange(&gateway, &format!("OPTIONS /v1/feed?table=switch HTTP/1.1\r\n{lines}\r\n")).await.0
    };

    let (may, may_not) = (ask("https://app.example").await, ask("https://evil.example").await);

    assert!(may.starts_with("http/1.1 204 "), "{may}");
    for line in [
        "access-control-allow-origin: https://app.example",
        "access-control-allow-methods: get, head",
        "access-control-allow-headers: last-event-id",
        "access-control-max-age: 600",
        "vary: origin",
    ] {
        assert!(may.contains(&format!("\r\n{line}\r\n")), "{line} in {may}");
    }
    assert!(may_not.starts_with("http/1.1 403 "), "{may_not}");
    assert!(!may_not.contains("access-control-"), "{may_not}");
}

#[tokio::test]
async fn the_head_alone_is_to_be_had_wherever_the_whole_is() {
    let (_db, gateway) = gateway(|_| {}).await;
    let head = async |path: &str, lines: &str| {
        exchange(&gateway, &format!("HEAD {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{lines}\r\n"))
            .await
    };

    for (path, lines, status, kind) in [
        ("/", "", 200, "text/html"),
        ("/page.js", "", 200, "text/javascript"),
        ("/client.js", "", 200, "text/javascript"),
        ("/openapi.json", "", 200, "application/vnd.oai"),
        ("/healthz", "", 200, "text/plain"),
        ("/readyz", "", 200, "text/plain"),
        ("/metrics", "", 200, "application/openmetrics-text"),
        ("/v1/tables", "", 200, "application/json"),
        ("/v1/changes?wait=60&from=now", "", 200, "application/json"),
        ("/v1/snapshot", "", 200, "application/json"),
        ("/v1/snapshot?from=now", "", 400, "application/json"),
        ("/v1/feed", "accept: text/event-stream\r\n", 200, "text/event-stream"),
        ("/v1/feed", "", 426, "application/json"),
        ("/nowhere", "", 404, "application/json"),
    ] {
        let (head, body) = head(path, lines).await;
        assert!(head.starts_with(&format!("http/1.1 {status} ")), "{path}: {head}");
        assert!(head.contains(&format!("\r\ncontent-type: {kind}")), "{path}: {head}");
        assert_eq!(body, "", "{path}");
    }
    let (refused, _) = exchange(&gateway, &handshake("/v1/feed").replacen("GET", "HEAD", 1)).await;
    assert!(refused.starts_with("http/1.1 426 "), "{refused}");
    assert_eq!(gateway.metric("switchboard_subscribers").await, 0.0);
}
