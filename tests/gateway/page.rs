//! The live page: what is served, under which policy, and the click that flips a switch, in `dev` only.

use serde_json::{Value, json};
use switchboard::config::Origins;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Database, Gateway, documents, soon};

/// The status, the head in lower case and the body that a request gets.
async fn ask(gateway: &Gateway, request: &str, lines: &str) -> (u16, String, String) {
    let address = gateway.address;
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("{request} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{lines}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let answer = soon(request, exchange).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    if let Some(path) = request.strip_prefix("GET ") {
        documents::check_answer(path, status, body);
    }
    (status, head.to_lowercase(), body.to_owned())
}

/// The status that a click gets, and code and message of a refusal.
async fn flip(gateway: &Gateway, id: &str, lines: &str) -> (u16, String, String) {
    bare_flip(gateway, id, &format!("x-switchboard: dev\r\n{lines}")).await
}

/// The same without the header that a click of the page has.
async fn bare_flip(gateway: &Gateway, id: &str, lines: &str) -> (u16, String, String) {
    let (status, _, body) = ask(gateway, &format!("POST /dev/switch/{id}/flip"), lines).await;
    let body: Value = if body.is_empty() { json!({}) } else { serde_json::from_str(&body).unwrap() };
    let text = |name: &str| body["error"][name].as_str().unwrap_or_default().to_owned();
    (status, text("code"), text("message"))
}

async fn dev(db: &Database) -> Gateway {
    Gateway::start_with(db, |config| {
        config.dev = true;
        config.origins = Origins::new("https://app.example").unwrap();
    })
    .await
}

#[tokio::test]
async fn the_page_runs_nothing_but_its_own_files() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;

    let (status, head, page) = ask(&gateway, "GET /", "").await;

    assert_eq!(status, 200);
    let policy = head.lines().find_map(|line| line.strip_prefix("content-security-policy: ")).unwrap();
    for rule in ["default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'"] {
        assert!(policy.split("; ").any(|there| there == rule), "{rule} in {policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    // What the policy would not let run must not be there.
    assert!(!page.contains("<style") && !page.contains("style=\"") && !page.contains("onclick"), "{page}");
    assert_eq!(page.matches("<script").count(), 1, "{page}");
    assert!(page.contains(r#"<script type="module" src="page.js"></script>"#), "{page}");
}

#[tokio::test]
async fn the_files_of_the_page_are_what_they_are_called_and_no_browser_keeps_old_ones() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;

    for (path, kind) in [("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")] {
        let (status, head, body) = ask(&gateway, &format!("GET {path}"), "").await;
        assert_eq!(status, 200, "{path}");
        assert!(!body.is_empty(), "{path}");
        for line in [
            &format!("content-type: {kind}; charset=utf-8"),
            "x-content-type-options: nosniff",
            "cache-control: no-cache",
        ] {
            assert_eq!(head.lines().filter(|there| *there == line).count(), 1, "{path}: {line} in {head}");
        }
    }
}

#[tokio::test]
async fn only_in_dev_is_the_page_told_that_it_may_flip_switches() {
    let db = Database::with_switch().await;
    let (in_serve, in_dev) = (Gateway::start(&db).await, dev(&db).await);

    let (serve, dev) = (ask(&in_serve, "GET /", "").await.2, ask(&in_dev, "GET /", "").await.2);

    assert!(serve.contains(r#"data-dev="no""#), "{serve}");
    assert_eq!(serve.replacen(r#"data-dev="no""#, r#"data-dev="yes""#, 1), dev);
}

#[tokio::test]
async fn a_click_flips_a_switch_and_the_feed_tells_it() {
    let db = Database::with_switch().await;
    let gateway = dev(&db).await;
    let mut client = gateway.follow("table=switch").await;

    let flipped = flip(&gateway, "2", "").await.0;
    let change = client.changes().await.remove(0);
    let flipped_back = flip(&gateway, "2", "").await.0;
    let change_back = client.changes().await.remove(0);

    assert_eq!((flipped, flipped_back), (204, 204));
    for (change, status) in [(change, true), (change_back, false)] {
        assert_eq!((&change["key"], &change["changed"]), (&json!({"id": 2}), &json!(["status"])));
        assert_eq!(change["new"]["status"], status);
    }
}

#[tokio::test]
async fn outside_dev_nothing_is_flipped_and_the_address_is_unknown() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;

    let unknown = ask(&gateway, "POST /dev/switch/2/nowhere", "").await;
    for method in ["POST", "GET", "DELETE"] {
        let (status, _, body) = ask(&gateway, &format!("{method} /dev/switch/2/flip"), "").await;
        assert_eq!((status, &body), (404, &unknown.2), "{method}");
    }

    assert_eq!(unknown.0, 404);
    assert!(!db.value::<bool>("select status from switch where id = 2").await);
}

#[tokio::test]
async fn pages_of_foreign_origins_flip_nothing() {
    let db = Database::with_switch().await;
    let gateway = dev(&db).await;
    let from = async |origin: &str| flip(&gateway, "2", &format!("origin: {origin}\r\n")).await;
    let on = async || db.value::<bool>("select status from switch where id = 2").await;

    for origin in ["https://evil.example", "null", "", "http://localhost.evil.example"] {
        let (status, code, message) = from(origin).await;
        assert_eq!((status, code.as_str()), (403, "origin"), "{origin}");
        assert!(message.contains("--origins"), "{message}");
    }
    assert!(!on().await);
    for origin in [&format!("http://{}", gateway.address), "http://localhost:5173", "https://app.example"] {
        let before = on().await;
        assert_eq!(from(origin).await.0, 204, "{origin}");
        assert_ne!(on().await, before, "{origin}");
    }
}

#[tokio::test]
async fn what_a_form_can_send_flips_nothing() {
    let db = Database::with_switch().await;
    let gateway = dev(&db).await;
    let own = format!("origin: http://{}\r\n", gateway.address);

    for lines in [
        "",
        &own,
        "content-type: application/x-www-form-urlencoded\r\ncontent-length: 0\r\n",
        "content-type: text/plain\r\ncontent-length: 0\r\n",
        "x-switchboard: 1\r\n",
    ] {
        let (status, code, message) = bare_flip(&gateway, "2", lines).await;
        assert_eq!((status, code.as_str()), (400, "bad_request"), "{lines}");
        assert!(message.contains("X-Switchboard: dev"), "{message}");
    }

    assert!(!db.value::<bool>("select status from switch where id = 2").await);
}

#[tokio::test]
async fn a_click_that_flips_nothing_says_why() {
    let db = Database::with_switch().await;
    let gateway = dev(&db).await;

    let (gone, no_number) = (flip(&gateway, "77", "").await, flip(&gateway, "1%20or%20true", "").await);
    let (read, head, _) = ask(&gateway, "GET /dev/switch/2/flip", "").await;
    db.run(&["drop table switch"]).await;
    let no_table = flip(&gateway, "2", "").await;

    assert_eq!((gone.0, gone.1.as_str()), (404, "not_found"));
    assert!(gone.2.contains("77"), "{}", gone.2);
    assert_eq!((no_number.0, no_number.1.as_str()), (400, "bad_request"));
    assert!(no_number.2.contains("1%20or%20true"), "{}", no_number.2);
    assert_eq!(read, 405);
    assert!(head.contains("allow: post"), "{head}");
    assert_eq!((no_table.0, no_table.1.as_str()), (409, "no_table"));
    assert!(no_table.2.contains("switchboard dev"), "{}", no_table.2);
}

#[tokio::test]
async fn a_click_waits_for_a_locked_row_only_for_a_while_and_then_works_again() {
    let db = Database::with_switch().await;
    let gateway = dev(&db).await;

    db.run(&["begin", "select from switch where id = 2 for update"]).await;
    let locked = flip(&gateway, "2", "").await;
    db.run(&["rollback"]).await;
    let free = flip(&gateway, "2", "").await;

    assert_eq!((locked.0, locked.1.as_str()), (503, "not_flipped"));
    assert!(locked.2.contains("lock"), "{}", locked.2);
    assert_eq!(free.0, 204);
}
