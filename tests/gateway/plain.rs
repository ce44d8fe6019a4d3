//! The feed over plain HTTP: server-sent events, pages of changes, snapshots, and the list of tables.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::harness::{Database, Gateway, documents, soon, until};

/// An answer that is read as it comes (RFC 9112, 7.1: chunked).
struct Reader {
    stream: TcpStream,
    path: String,
    /// In lower case.
    head: String,
    status: u16,
    /// What came and was not looked at yet.
    raw: Vec<u8>,
    body: String,
    ended: bool,
}

impl Reader {
    async fn get(address: SocketAddr, path: &str, lines: &str) -> Reader {
        Reader::over(TcpStream::connect(address).await.unwrap(), address, path, lines).await
    }

    /// A client whose kernel takes little for it, so that one that does not read is felt soon.
    async fn narrow(address: SocketAddr, path: &str) -> Reader {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(16 << 10).unwrap();
        Reader::over(socket.connect(address).await.unwrap(), address, path, "").await
    }

    async fn over(mut stream: TcpStream, address: SocketAddr, path: &str, lines: &str) -> Reader {
        let opening = async {
            let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n{lines}\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut raw = Vec::new();
            loop {
                if let Some(end) = raw.windows(4).position(|window| window == b"\r\n\r\n") {
                    let head = String::from_utf8(raw.drain(..end + 4).collect()).unwrap().to_lowercase();
                    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
                    let (path, body) = (path.to_owned(), String::new());
                    return Reader { stream, path, head, status, raw, body, ended: false };
                }
                assert!(stream.read_buf(&mut raw).await.unwrap() > 0, "the head ended early");
            }
        };
        soon(path, opening).await
    }

    async fn events(gateway: &Gateway, query: &str, lines: &str) -> Reader {
        let lines = format!("accept: text/event-stream\r\n{lines}");
        Reader::get(gateway.address, &format!("/v1/feed?{query}"), &lines).await
    }

    /// Reads a piece more; false at the end. Panics where the answer is broken off.
    async fn more(&mut self) -> bool {
        let whole = |raw: &[u8]| {
            let line = raw.windows(2).position(|window| window == b"\r\n")?;
            let size = usize::from_str_radix(std::str::from_utf8(&raw[..line]).unwrap(), 16).unwrap();
            (raw.len() >= line + 2 + size + 2).then_some((line + 2, size))
        };
        loop {
            if let Some((start, size)) = whole(&self.raw) {
                self.body.push_str(std::str::from_utf8(&self.raw[start..start + size]).unwrap());
                self.raw.drain(..start + size + 2);
                self.ended = size == 0;
                return !self.ended;
            }
            let read = soon("more of the answer", self.stream.read_buf(&mut self.raw)).await;
            assert!(read.unwrap() > 0, "the answer was broken off");
        }
    }

    /// The next event: its id, and its data.
    async fn event(&mut self) -> (Option<String>, Value) {
        loop {
            while let Some((event, rest)) = self.body.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.body = rest;
                let field = |name: &str| {
                    let lines = event.lines().filter_map(|line| line.strip_prefix(name));
                    lines.map(|value| value.strip_prefix(' ').unwrap_or(value)).collect::<Vec<_>>()
                };
                let data = field("data:");
                if !data.is_empty() {
                    let data = serde_json::from_str(&data.join("\n")).unwrap();
                    documents::check_frame(&data);
                    return (field("id:").first().map(|id| (*id).to_owned()), data);
                }
            }
            assert!(self.more().await, "the stream ended");
        }
    }

    /// The next event of this type.
    async fn next_of(&mut self, kind: &str) -> (Option<String>, Value) {
        loop {
            let (id, data) = self.event().await;
            if data["type"] == kind {
                return (id, data);
            }
        }
    }

    async fn json(mut self) -> Value {
        match self.head.contains("transfer-encoding: chunked") {
            true => while self.more().await {},
            false => {
                let length = self.head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
                let length: usize = length.parse().unwrap();
                while self.raw.len() < length {
                    assert!(self.stream.read_buf(&mut self.raw).await.unwrap() > 0, "the answer ended early");
                }
                self.body = String::from_utf8(self.raw.clone()).unwrap();
            }
        }
        documents::check_answer(&self.path, self.status, &self.body);
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {}", self.body))
    }
}

pub async fn get(gateway: &Gateway, path: &str) -> Value {
    Reader::get(gateway.address, path, "").await.json().await
}

#[tokio::test]
async fn events_are_the_frames_and_carry_a_cursor_where_one_may_go_on() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;
    let mut reader = Reader::events(&gateway, "table=switch&where=id.lte.2", "").await;

    let mut types = Vec::new();
    for _ in 0..3 {
        let (id, data) = reader.event().await;
        types.push((data["type"].as_str().unwrap().to_owned(), id.is_some()));
        if data["type"] == "ready" {
            assert_eq!(id.as_deref(), data["cursor"].as_str());
        }
    }
    db.run(&["update switch set level = level + 1 where id < 4"]).await;
    let (id, commit) = reader.next_of("commit").await;

    for line in ["content-type: text/event-stream", "cache-control: no-cache, no-transform", "x-accel-buffering: no"] {
        assert!(reader.head.contains(line), "{line} in {}", reader.head);
    }
    assert_eq!(types, [("hello".into(), false), ("rows".into(), false), ("ready".into(), true)]);
    assert_eq!(id.as_deref(), commit["cursor"].as_str());
    assert_eq!(commit["changes"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_browser_that_comes_back_with_the_last_id_gets_what_it_missed() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;
    let mut reader = Reader::events(&gateway, "table=switch", "").await;
    let (id, _) = reader.next_of("ready").await;
    drop(reader);
    db.run(&["update switch set level = 8 where id = 1", "update switch set level = 9 where id = 1"]).await;

    let lines = format!("last-event-id: {}\r\n", id.unwrap());
    let mut reader = Reader::events(&gateway, "table=switch&from=snapshot", &lines).await;

    for level in [8, 9] {
        let (id, commit) = reader.next_of("commit").await;
        assert_eq!(commit["changes"][0]["new"]["level"], level);
        assert_eq!(id.as_deref(), commit["cursor"].as_str(), "it may go on from here, ready or not");
    }
}

#[tokio::test]
async fn only_the_last_part_of_a_large_commit_carries_a_cursor_and_no_commit_among_rows_does() {
    let db = Database::with_switch().await;
    db.run(&["create table t (id int primary key, v text)"]).await;
    db.watch("t").await;
    let gateway = Gateway::start(&db).await;
    let mut reader = Reader::events(&gateway, "table=t", "").await;
    reader.next_of("ready").await;

    db.run(&["insert into t select n, repeat('x', 1000) from generate_series(1, 1000) as n"]).await;

    let mut parts = 0;
    loop {
        let (id, commit) = reader.next_of("commit").await;
        parts += 1;
        assert_eq!(id.is_none(), commit["more"] == true);
        if commit["more"] != true {
            break;
        }
    }
    assert!(parts > 1);
    let mut lost = Reader::events(&gateway, "table=t", "last-event-id: nonsense\r\n").await;
    let (id, reset) = lost.next_of("reset").await;
    assert_eq!((id, &reset["reason"]), (None, &json!("unknown")));
    while let (id, data) = lost.event().await
        && data["type"] != "ready"
    {
        assert_eq!(id, None, "{data:.100}");
    }
}

#[tokio::test]
async fn a_line_break_inside_a_value_does_not_end_an_event() {
    let db = Database::new().await;
    db.run(&["create table t (id int primary key, v json)"]).await;
    db.watch("t").await;
    let gateway = Gateway::start(&db).await;
    let mut reader = Reader::events(&gateway, "table=t&from=now", "").await;
    reader.next_of("ready").await;

    db.run(&["insert into t values (1, E'{\"a\":\\n\\n\\r\\n[1,\\r2]}')"]).await;

    let (_, commit) = reader.next_of("commit").await;
    assert_eq!(commit["changes"][0]["new"]["v"], json!({"a": [1, 2]}));
}

#[tokio::test]
async fn what_cannot_be_streamed_is_refused_with_a_status_so_that_a_browser_stops() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;
    for (query, lines, status, code, remedy) in [
        ("table=nowhere", "", 400, "bad_request", "switchboard watch nowhere"),
        ("where=level", "", 400, "bad_request", "level"),
        ("first=none", "", 400, "bad_request", "leave it out"),
        ("table=switch&on_reset=close&from=x", "", 410, "gone", "take a snapshot"),
        ("table=switch", "origin: https://evil.example\r\n", 403, "origin", "--origins"),
        (
            "table=switch",
            "origin: null\r\n",
            403,
            "origin",
            "opened as a file may not do this here; serve it over HTTP",
        ),
    ] {
        let reader = Reader::events(&gateway, query, lines).await;

        assert_eq!(reader.status, status, "{query}");
        let error = reader.json().await["error"].clone();
        assert_eq!(error["code"], code, "{query}");
        assert!(error["message"].as_str().unwrap().contains(remedy), "{query}: {error}");
    }
    let allowed = Reader::events(&gateway, "table=switch", "origin: http://localhost:5173\r\n").await;
    assert!(allowed.head.contains("access-control-allow-origin: http://localhost:5173\r\n"), "{}", allowed.head);
}

#[tokio::test]
async fn a_stream_shows_that_it_is_alive_and_ends_when_the_gateway_stops() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start_with(&db, |config| config.heartbeat = std::time::Duration::from_millis(200)).await;
    let mut reader = Reader::events(&gateway, "table=switch", "").await;
    reader.next_of("ready").await;

    reader.next_of("position").await;
    until("it is counted", async || gateway.metric("switchboard_subscribers").await == 1.0).await;
    let ending = async { while reader.more().await {} };
    tokio::join!(ending, gateway.stop());

    assert!(reader.ended);
}

#[tokio::test]
async fn one_who_takes_nothing_is_cut_off() {
    let db = Database::with_switch().await;
    db.run(&["create table t (id int primary key, v text)"]).await;
    db.watch("t").await;
    let gateway = Gateway::start_with(&db, |config| config.write_timeout = std::time::Duration::from_millis(300)).await;
    let mut reader = Reader::events(&gateway, "table=t&from=now", "").await;
    reader.next_of("ready").await;

    for batch in 0..20 {
        let begin = batch * 1000;
        db.run(&[&format!("insert into t select {begin} + n, repeat('x', 1000) from generate_series(1, 1000) as n")])
            .await;
    }

    until("it is gone", async || gateway.metric("switchboard_subscribers").await == 0.0).await;
    let (_, metrics) = gateway.get("/metrics").await;
    assert!(metrics.contains("switchboard_subscribers_closed_total{code=\"4408\"} 1"), "{metrics}");
    // The kernel's buffers hold what came before; then there is the end, and not one that looks like one.
    let drained = tokio::spawn(async move { while reader.more().await {} });
    assert!(drained.await.is_err(), "a connection that is cut off is no whole answer");
}

#[tokio::test]
async fn changes_come_in_pages_that_join() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("table=switch").await;
    for level in 0..25 {
        db.run(&[&format!("update switch set level = {level} where id = 1")]).await;
        client.commit().await;
    }

    let mut levels = Vec::new();
    let mut page = get(&gateway, "/v1/changes?table=switch&limit=10").await;
    let mut pages = 1;
    let mut last: Option<Value> = None;
    loop {
        for commit in page["commits"].as_array().unwrap() {
            assert!(last.is_none() || last.as_ref() == Some(&commit["prev"]), "a broken chain");
            last = Some(commit["cursor"].clone());
            levels.push(commit["changes"][0]["new"]["level"].as_i64().unwrap());
        }
        let cursor = page["cursor"].as_str().unwrap().to_owned();
        if page["more"] == false {
            break;
        }
        page = get(&gateway, &format!("/v1/changes?table=switch&limit=10&from={cursor}")).await;
        pages += 1;
    }

    assert_eq!(levels, (0..25).collect::<Vec<i64>>());
    assert_eq!(pages, 3);
    let selected = get(&gateway, "/v1/changes?table=switch&where=level.eq.7&columns=level").await;
    let told: Vec<&Value> = selected["commits"].as_array().unwrap().iter().map(|c| &c["changes"][0]["match"]).collect();
    assert_eq!(told, ["enter", "leave"]);
}

#[tokio::test]
async fn whoever_asks_finds_what_was_committed_before() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;
    gateway.follow("from=now").await;
    let mut cursor = get(&gateway, "/v1/changes?from=now").await["cursor"].as_str().unwrap().to_owned();

    for level in 0..30 {
        db.run(&[&format!("update switch set level = {level} where id = 1")]).await;
        let page = get(&gateway, &format!("/v1/changes?from={cursor}")).await;
        let told: Vec<&Value> =
            page["commits"].as_array().unwrap().iter().map(|commit| &commit["changes"][0]["new"]["level"]).collect();
        assert_eq!(told, [level]);

        // Others may have read the rows a moment ago; what came since completes them.
        db.run(&[&format!("update switch set level = {level} where id = 2")]).await;
        let snapshot = get(&gateway, "/v1/snapshot?table=switch").await;
        let rows = snapshot["tables"][0]["rows"].as_array().unwrap();
        let row = rows.iter().find(|row| row["id"] == 2).unwrap()["level"].clone();
        let commits = snapshot["commits"].as_array().unwrap().iter();
        let mut news = commits.flat_map(|commit| commit["changes"].as_array().unwrap()).map(|change| &change["new"]);
        let last = news.rfind(|new| new["id"] == 2).map_or(row, |new| new["level"].clone());
        assert_eq!(last, level);
        cursor = snapshot["cursor"].as_str().unwrap().to_owned();
    }
}

#[tokio::test]
async fn a_request_may_wait_for_the_next_commit() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;
    let now = get(&gateway, "/v1/changes?from=now").await;
    let cursor = now["cursor"].as_str().unwrap().to_owned();
    assert_eq!(now, json!({"commits": [], "cursor": cursor, "more": false}));

    let address = gateway.address;
    let path = format!("/v1/changes?table=switch&from={cursor}&wait=60");
    let waiting = tokio::spawn(async move { Reader::get(address, &path, "").await.json().await });
    until("it waits", async || gateway.metric("switchboard_subscribers").await == 1.0).await;
    db.run(&["update switch set level = 9 where id = 1"]).await;
    let page = soon("the page", waiting).await.unwrap();
    let empty = get(&gateway, &format!("/v1/changes?from={}&wait=1", page["cursor"].as_str().unwrap())).await;

    assert_eq!(page["commits"][0]["changes"][0]["new"]["level"], 9);
    assert_eq!(page["commits"][0]["prev"], cursor);
    assert_eq!((&empty["commits"], &empty["cursor"]), (&json!([]), &page["cursor"]));
}

#[tokio::test]
async fn a_page_that_cannot_be_is_refused_with_its_remedy() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;
    for (path, status, remedy) in [
        ("/v1/changes?limit=0", 400, "from 1 to 1000"),
        ("/v1/changes?wait=never", 400, "from 0 to 60"),
        ("/v1/changes?from=snapshot", 400, "/v1/snapshot"),
        ("/v1/changes?table=nowhere", 400, "switchboard watch nowhere"),
        ("/v1/changes?from=aaaa.1.0000", 410, "take a snapshot"),
        ("/v1/snapshot?from=now", 400, "leave it out"),
        ("/v1/snapshot?table=switch&where=level.gt.high", 400, "type integer"),
    ] {
        let reader = Reader::get(gateway.address, path, "").await;

        assert_eq!(reader.status, status, "{path}");
        let error = reader.json().await["error"].clone();
        assert!(error["message"].as_str().unwrap().contains(remedy), "{path}: {error}");
    }
}

#[tokio::test]
async fn a_snapshot_gives_whole_tables_and_the_cursor_to_go_on_from() {
    let db = Database::with_switch().await;
    db.run(&[
        "create table \"o\"\"dd \"\"rows\"\":[\" (\"k\"\"rows\"\":[\" int primary key, v text)",
        "insert into \"o\"\"dd \"\"rows\"\":[\" select n, repeat('x', 1000) from generate_series(1, 500) as n",
        "create table empty (id int primary key)",
    ])
    .await;
    db.watch("\"o\"\"dd \"\"rows\"\":[\"").await;
    db.watch("empty").await;
    let gateway = Gateway::start(&db).await;

    let snapshot = get(&gateway, "/v1/snapshot").await;
    let filtered = get(&gateway, "/v1/snapshot?table=switch&where=level.gte.3&columns=level").await;
    db.run(&["update switch set level = 5 where id = 1"]).await;
    let cursor = filtered["cursor"].as_str().unwrap();
    let changes = get(&gateway, &format!("/v1/changes?table=switch&from={cursor}&wait=60")).await;

    let tables: Vec<(&str, usize)> = snapshot["tables"]
        .as_array()
        .unwrap()
        .iter()
        .map(|table| (table["table"].as_str().unwrap(), table["rows"].as_array().unwrap().len()))
        .collect();
    assert_eq!(tables, [("public.empty", 0), ("public.o\"dd \"rows\":[", 500), ("public.switch", 4)]);
    assert_eq!(
        filtered["tables"],
        json!([{"table": "public.switch", "key": ["id"], "rows": [{"id": 1, "level": 3}, {"id": 3, "level": 7}]}])
    );
    assert_eq!(filtered["commits"], json!([]));
    assert_eq!(changes["commits"][0]["changes"][0]["new"]["level"], 5);
}

#[tokio::test]
async fn the_tables_are_listed_with_their_keys_and_columns() {
    let db = Database::with_switch().await;
    db.run(&["create table log (at timestamptz, what text)", "create table unwatched (id int)"]).await;
    db.watch("log").await;
    let gateway = Gateway::start(&db).await;
    gateway.follow("from=now").await;

    let tables = get(&gateway, "/v1/tables").await;

    let columns = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(name, kind)| json!({"name": name, "type": kind})).collect::<Vec<_>>()
    };
    let log = columns(&[("at", "timestamp with time zone"), ("what", "text")]);
    let switch = columns(&[("id", "bigint"), ("name", "text"), ("status", "boolean"), ("level", "integer")]);
    let expected = json!({"tables": [
        {"table": "public.log", "key": null, "columns": log},
        {"table": "public.switch", "key": ["id"], "columns": switch}
    ]});
    assert_eq!(tables, expected);
}

#[tokio::test]
async fn without_a_database_plain_http_answers_503_at_once() {
    let db = Database::with_switch().await;
    let (proxy, through) = db.behind_proxy().await;
    let gateway = Gateway::launch(through, |_| {}).await;
    gateway.ready().await;
    let cursor = get(&gateway, "/v1/changes?from=now").await["cursor"].as_str().unwrap().to_owned();
    let path = format!("/v1/changes?from={cursor}&wait=60");
    let address = gateway.address;
    let held = tokio::spawn(async move { Reader::get(address, &path, "").await.json().await });
    until("it waits", async || gateway.metric("switchboard_subscribers").await == 1.0).await;

    proxy.lead_to(None);
    proxy.cut();

    let page = soon("the page of the one that waited", held).await.unwrap();
    assert_eq!(page, json!({"commits": [], "cursor": cursor, "more": false}), "it may ask again from there");
    until("the gateway knows", async || gateway.get("/readyz").await.0 == 503).await;
    for (path, lines) in [
        ("/v1/changes", ""),
        ("/v1/changes?from=now&wait=60", ""),
        ("/v1/snapshot", ""),
        ("/v1/feed", "accept: text/event-stream\r\n"),
    ] {
        let answer = Reader::get(gateway.address, path, lines).await;

        assert_eq!(answer.status, 503, "{path}");
        assert!(answer.head.contains("\r\nretry-after: "), "{path}: {}", answer.head);
        let error = answer.json().await["error"].clone();
        assert_eq!(error["code"], "not_ready", "{path}");
        assert!(error["message"].as_str().unwrap().contains("switchboard check"), "{path}: {error}");
    }
}

/// How many bytes a gateway sent to its subscribers.
async fn sent(gateway: &Gateway) -> f64 {
    gateway.metric("switchboard_sent_bytes_total").await
}

#[tokio::test]
async fn commits_behind_the_rows_of_a_snapshot_are_held_only_as_far_as_the_client_takes_them() {
    const COMMITS: i64 = 300;
    const EACH: i64 = 100_000;
    let db = Database::with_switch().await;
    db.run(&[
        "create table t (id int primary key, v text)",
        "insert into t select n, repeat('x', 100000) from generate_series(1, 100) as n",
    ])
    .await;
    db.watch("t").await;
    let patience = std::time::Duration::from_secs(60);
    let gateway = Gateway::start_with(&db, |config| config.write_timeout = patience).await;
    // The rows are more than any socket buffers, so it still takes those while the commits come.
    let mut reader = Reader::narrow(gateway.address, "/v1/snapshot?table=t").await;
    let fill = format!(
        "do $$ begin for n in 1..{COMMITS} loop
             insert into t values (n + 1000, repeat('y', {EACH})); commit;
         end loop; end $$"
    );
    db.run(&[&fill]).await;
    until("they are published", async || gateway.metric("switchboard_position").await == COMMITS as f64).await;

    const FIRST: &str = r#"],"commits":[{"#;
    while !reader.body.contains(FIRST) {
        assert!(reader.more().await, "the commits come behind the rows");
    }
    let begun = sent(&gateway).await;

    let whole = (COMMITS * EACH) as f64;
    assert!(begun < whole / 2.0 + 10_000_000.0, "{begun} bytes were given away for a client that has taken the rows");
    let body = reader.json().await;
    let commits = body["commits"].as_array().unwrap();
    let ids: Vec<i64> = commits.iter().map(|commit| commit["changes"][0]["new"]["id"].as_i64().unwrap()).collect();
    assert_eq!(ids, (1001..=1000 + COMMITS).collect::<Vec<i64>>());
}

#[tokio::test]
async fn one_who_leaves_the_last_piece_of_an_answer_is_cut_off_and_counts_until_then() {
    let db = Database::with_switch().await;
    db.run(&["create table t (id int primary key, v text)", "insert into t values (1, repeat('x', 20000000))"]).await;
    db.watch("t").await;
    let gateway = Gateway::start_with(&db, |config| {
        config.write_timeout = std::time::Duration::from_secs(1);
        config.subscribers_max = 1;
    })
    .await;
    let mut reader = Reader::narrow(gateway.address, "/v1/snapshot?table=t").await;

    let answer = Reader::get(gateway.address, "/v1/snapshot?table=switch", "").await;

    assert_eq!(answer.status, 503, "there is room for one");
    until("its place is free", async || {
        Reader::get(gateway.address, "/v1/snapshot?table=switch", "").await.status == 200
    })
    .await;
    let drained = tokio::spawn(async move { while reader.more().await {} });
    assert!(drained.await.is_err(), "a connection that is cut off is no whole answer");
}
