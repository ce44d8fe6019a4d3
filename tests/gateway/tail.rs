//! `switchboard tail`: what it prints, that nothing is lost or repeated on the way, and how it ends.

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::commands::{Ran, collect, program, run};
use crate::harness::{Client, Database, Gateway, Proxy, soon, until};

/// A tail that runs.
struct Tail {
    child: Child,
    out: BufReader<ChildStdout>,
    err: Arc<Mutex<String>>,
    listening: JoinHandle<()>,
}

impl Tail {
    fn start(url: &str, arguments: &[&str]) -> Tail {
        let mut child = program(None, &[&["tail", "--url", url], arguments].concat()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let err = Arc::new(Mutex::new(String::new()));
        let listening = tokio::spawn(collect(child.stderr.take().unwrap(), err.clone()));
        Tail { child, out, err, listening }
    }

    /// One that is told of everything from now on.
    async fn following(url: &str, arguments: &[&str]) -> Tail {
        let tail = Tail::start(url, arguments);
        tail.says("following ws://").await;
        tail
    }

    /// Waits until it said this on standard error.
    async fn says(&self, what: &str) {
        until(what, async || self.said().contains(what)).await;
    }

    fn said(&self) -> String {
        self.err.lock().unwrap().clone()
    }

    /// The next line on standard output.
    async fn line(&mut self) -> String {
        let mut line = String::new();
        soon("the next line", self.out.read_line(&mut line)).await.unwrap();
        assert!(line.ends_with('\n'), "the output ended with {line:?}: {}", self.said());
        line.pop();
        line
    }

    /// The next line without its time, or what stands in its place.
    async fn change(&mut self) -> String {
        let line = self.line().await;
        let (indent, line) = if let Some(line) = line.strip_prefix("  ") { ("  ", line) } else { ("", line.as_str()) };
        let (time, rest) = line.split_at(12);
        let form: String = time.chars().map(|each| if each.is_ascii_digit() { '0' } else { each }).collect();
        assert!(["00:00:00.000", "snapshot    "].contains(&form.as_str()), "{line}");
        format!("{indent}{}", rest.trim_start())
    }

    async fn signal(&self, name: &str) {
        let kill = format!("kill -s {name} {}", self.child.id().unwrap());
        assert!(Command::new("/bin/sh").args(["-c", &kill]).status().await.unwrap().success());
    }

    /// Waits for the end; the exit code, and what was not read yet.
    async fn ended(mut self) -> Ran {
        let mut out = String::new();
        soon("the end of the output", self.out.read_to_string(&mut out)).await.unwrap();
        let status = soon("the end", self.child.wait()).await.unwrap();
        soon("the end of its messages", self.listening).await.unwrap();
        let err = self.err.lock().unwrap().clone();
        Ran { code: status.code(), out, err }
    }
}

fn url(gateway: &Gateway) -> String {
    format!("http://{}", gateway.address)
}

async fn numbers() -> Database {
    let db = Database::new().await;
    db.run(&["create table t (n bigint primary key, pad text)"]).await;
    db.watch("t").await;
    db
}

#[tokio::test]
async fn it_prints_a_change_a_line_and_a_transaction_together() {
    let db = Database::new().await;
    db.run(&[
        "create table t (id int, part text, on_air boolean, note json, primary key (id, part)); create table k (v int)",
    ])
    .await;
    db.watch("t").await;
    db.watch("k").await;
    let gateway = Gateway::start(&db).await;
    let mut tail = Tail::following(&url(&gateway), &["t", "public.k"]).await;

    db.run(&["insert into t values (1, 'a b', false, '{\"x\":\n\"\u{9b}\"}')"]).await;
    db.run(&["update t set on_air = true, note = null", "update t set id = 2", "update t set id = 2"]).await;
    db.transaction(&["insert into k values (7)", "update k set v = 8", "delete from t"]).await;
    db.run(&["truncate k"]).await;

    for expected in [
        r#"public.t id=1,part="a b" insert on_air: false, note: {"x": "\u009b"}"#,
        r#"public.t id=1,part="a b" update on_air: false → true, note: {"x": "\u009b"} → null"#,
        r#"public.t id=2,part="a b" update id: 1 → 2"#,
        r#"public.t id=2,part="a b" update (no change in the columns followed)"#,
    ] {
        assert_eq!(tail.change().await, expected);
    }
    let header = tail.change().await;
    assert!(header.starts_with("transaction ") && header.ends_with(", 3 changes:"), "{header}");
    for expected in [
        "  public.k insert v: 7",
        "  public.k update v: 7 → 8",
        r#"  public.t id=2,part="a b" delete on_air: true, note: null"#,
        "public.k truncate",
    ] {
        assert_eq!(tail.change().await, expected);
    }
    tail.signal("INT").await;
    let ran = tail.ended().await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), ""), "{}", ran.err);
}

#[tokio::test]
async fn it_follows_tables_of_any_name_as_arguments_or_with_commas_between() {
    let db = Database::new().await;
    let tables = [r#""a,b""#, r#""User""#, r#""o""dd ""#, "t", "other"];
    for sql in tables {
        db.run(&[&format!("create table {sql} (n int primary key)")]).await;
        db.watch(sql).await;
    }
    let gateway = Gateway::start(&db).await;
    let mut tail = Tail::following(&url(&gateway), &["\"a,b\", User", "\"o\"\"dd \"", "public.t"]).await;

    for (n, sql) in tables.iter().rev().enumerate() {
        db.run(&[&format!("insert into {sql} values ({n})")]).await;
    }

    for expected in
        ["public.t n=1 insert", "public.o\"dd  n=2 insert", "public.User n=3 insert", "public.a,b n=4 insert"]
    {
        assert_eq!(tail.change().await, expected);
    }
    let wrong = run(program(None, &["tail", "a,,b", "\"c"])).await;
    assert_eq!((wrong.code, wrong.out.as_str()), (Some(64), ""));
    assert!(
        wrong.err.contains("holds an empty name") && wrong.err.contains("a quote that does not end"),
        "{}",
        wrong.err
    );
}

#[tokio::test]
async fn it_prints_current_rows_first_where_they_are_asked_for() {
    let db = Database::with_switch().await;
    db.run(&["delete from switch where id > 1"]).await;
    let gateway = Gateway::start(&db).await;
    let mut tail = Tail::start(&url(&gateway), &["switch", "--from", "snapshot", "--count", "1"]);

    assert_eq!(tail.change().await, r#"public.switch id=1 row name: "Front door", status: true, level: 3"#);
    tail.says("following ws://").await;
    db.run(&["update switch set status = not status"]).await;
    assert_eq!(tail.change().await, "public.switch id=1 update status: true → false");

    let ran = tail.ended().await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), ""), "{}", ran.err);
}

#[tokio::test]
async fn json_is_one_line_a_frame_as_it_came() {
    let db = Database::new().await;
    db.run(&["create table t (n bigint primary key, j json)"]).await;
    db.watch("t").await;
    db.run(&["insert into t values (9007199254740993, '{\"a\" :\n 1}')"]).await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.subscribe("table=t").await;
    let mut tail = Tail::start(&url(&gateway), &["t", "--json", "--from", "snapshot"]);
    tail.says("following ws://").await;
    let mut frames = Vec::new();
    let mut take = async |client: &mut Client| {
        let text = client.text().await.unwrap();
        let kind =
            ["rows", "commit", "ready"].into_iter().find(|kind| text.starts_with(&format!(r#"{{"type":"{kind}""#)));
        frames.extend(kind.filter(|kind| *kind != "ready").map(|_| text));
        kind
    };
    soon("ready", async { while take(&mut client).await != Some("ready") {} }).await;

    db.run(&["update t set j = '[\n]'", "delete from t"]).await;

    for _ in 0..2 {
        soon("a commit", async { while take(&mut client).await != Some("commit") {} }).await;
    }
    assert!(frames[0].contains('\n'), "the test is about that, too: {}", frames[0]);
    for frame in frames {
        assert_eq!(tail.line().await, frame.replace('\n', " "));
    }
    tail.signal("TERM").await;
    let ran = tail.ended().await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), ""), "{}", ran.err);
}

#[tokio::test]
async fn it_goes_on_at_another_gateway_with_nothing_lost_or_repeated() {
    let db = numbers().await;
    let proxy = Proxy::start().await;
    let mut gateway = Gateway::start(&db).await;
    proxy.lead_to(Some(gateway.address));
    let mut tail = Tail::following(&format!("ws://{}", proxy.address), &["t"]).await;
    let mut expected = 0;

    for round in 0..3 {
        db.run(&[&format!("insert into t values ({})", 2 * round)]).await;
        gateway.stop().await;
        db.run(&[&format!("insert into t values ({})", 2 * round + 1)]).await;
        gateway = Gateway::start(&db).await;
        proxy.lead_to(Some(gateway.address));
        for _ in 0..2 {
            assert_eq!(tail.change().await, format!("public.t n={expected} insert pad: null"));
            expected += 1;
        }
    }

    assert!(tail.said().contains("(1001): server stops; reconnect; trying again"), "{}", tail.said());
    tail.signal("TERM").await;
    assert_eq!(tail.ended().await.out, "");
}

#[tokio::test]
async fn a_large_commit_that_is_cut_off_again_and_again_is_printed_once() {
    const ROWS: usize = 2000;
    let db = numbers().await;
    let proxy = Proxy::start().await;
    let gateway = Gateway::start(&db).await;
    proxy.lead_to(Some(gateway.address));
    let mut tail = Tail::following(&format!("ws://{}", proxy.address), &["t"]).await;

    for (round, bytes) in [700_000, 1_000_000, 400_000].into_iter().enumerate() {
        let rows = round * ROWS + 1..=(round + 1) * ROWS;
        proxy.cut_after(bytes);
        let (first, last) = (rows.start(), rows.end());
        db.run(&[&format!("insert into t select n, repeat('x', 500) from generate_series({first}, {last}) n")]).await;

        let header = tail.change().await;
        assert!(header.starts_with("transaction ") && header.ends_with(", in parts:"), "{header}");
        for n in rows {
            let line = tail.change().await;
            assert!(line.starts_with(&format!("  public.t n={n} insert ")), "{line} came instead of {n}");
        }
        until("it follows again", async || tail.said().matches("following ws://").count() == round + 2).await;
    }

    db.run(&["truncate t"]).await;
    assert_eq!(tail.change().await, "public.t truncate");
    assert_eq!(tail.said().matches("trying again").count(), 3, "{}", tail.said());
}

#[tokio::test]
async fn a_line_that_is_silent_is_given_up_and_another_one_opened() {
    let db = numbers().await;
    let proxy = Proxy::start().await;
    let gateway = Gateway::start_with(&db, |config| config.heartbeat = Duration::from_millis(200)).await;
    proxy.lead_to(Some(gateway.address));
    let mut tail = Tail::following(&format!("http://{}", proxy.address), &["t"]).await;

    proxy.forget();
    db.run(&["insert into t values (1)"]).await;

    assert_eq!(tail.change().await, "public.t n=1 insert pad: null");
    tail.says("the line counts as dead").await;
}

#[tokio::test]
async fn a_saved_cursor_goes_on_where_the_last_start_ended() {
    let db = numbers().await;
    let gateway = Gateway::start(&db).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cursor");
    let file = path.to_str().unwrap();
    let mut expected = 0;

    for (count, signal) in [(1, "TERM"), (3, "INT"), (3, "TERM")] {
        let mut tail = Tail::start(&url(&gateway), &["t", "--save", file]);
        if expected == 0 {
            tail.says("following ws://").await;
        }
        // Some before it starts, or follows; none of them behind a gap.
        db.run(&[&format!("insert into t values ({})", expected + count - 1)]).await;
        let first = expected;
        while expected < first + count {
            let line = tail.change().await;
            assert_eq!(line, format!("public.t n={expected} insert pad: null"));
            expected += 1;
        }
        tail.signal(signal).await;
        let ran = tail.ended().await;
        assert_eq!((ran.code, ran.out.as_str()), (Some(0), ""), "{}", ran.err);
        for n in expected..expected + 2 {
            db.run(&[&format!("insert into t values ({n})")]).await;
        }
    }
}

#[tokio::test]
async fn a_saved_cursor_is_refused_to_others_and_yields_to_from() {
    let db = numbers().await;
    let gateway = Gateway::start(&db).await;
    let folder = tempfile::tempdir().unwrap();
    let (path, damaged) = (folder.path().join("cursor"), folder.path().join("damaged"));
    std::fs::write(&damaged, r#"{"switchboard_tail":1,"cursor":"k3"#).unwrap();
    let file = path.to_str().unwrap();
    let tail = Tail::start(&url(&gateway), &["t", "--save", file]);
    until("the cursor is saved", async || path.exists()).await;
    tail.signal("TERM").await;
    assert_eq!(tail.ended().await.code, Some(0));

    let other = run(program(None, &["tail", "--url", &url(&gateway), "--save", file])).await;
    let broken = run(program(None, &["tail", "--url", &url(&gateway), "--save", damaged.to_str().unwrap()])).await;
    let mut from = Tail::start(&url(&gateway), &["t", "--save", file, "--from", "snapshot", "--count", "1"]);
    from.says("following ws://").await;
    db.run(&["insert into t values (1)"]).await;

    assert_eq!((other.code, other.out.as_str()), (Some(1), ""));
    assert!(other.err.contains("a cursor of t, and this would follow all tables; ask for the same"), "{}", other.err);
    assert_eq!((broken.code, broken.out.as_str()), (Some(1), ""));
    assert!(broken.err.contains("not a whole file of switchboard tail; remove it"), "{}", broken.err);
    assert_eq!(from.change().await, "public.t n=1 insert pad: null");
    let from = from.ended().await;
    assert!(from.err.contains("--from snapshot was given, so the saved cursor is not used"), "{}", from.err);
}

#[tokio::test]
async fn with_a_filter_it_says_which_updates_move_a_row_into_it_or_out_of_it() {
    let db = Database::new().await;
    db.run(&["create table t (id int primary key, level int, name text, secret text)"]).await;
    db.watch("t").await;
    db.run(&["insert into t values (1, 3, 'a', 'x'), (2, 0, 'b', 'x')"]).await;
    let gateway = Gateway::start(&db).await;
    let selection = ["t", "--where", "level.gte.3", "--columns", "name,level", "--from", "snapshot", "--count", "9"];
    let mut tail = Tail::start(&url(&gateway), &selection);
    assert_eq!(tail.change().await, r#"public.t id=1 row level: 3, name: "a""#);
    tail.says("following ws://").await;

    db.run(&[
        "update t set level = 2 where id = 1",
        "update t set name = 'outside' where id = 1",
        "update t set level = 4 where id = 1",
        "update t set level = 5 where id = 1",
        "update t set id = 10 where id = 1",
        "update t set id = 20, level = 3 where id = 2",
        "update t set secret = 'y' where id = 20",
        "insert into t values (3, 7, 'c', 'x'), (4, 1, 'd', 'x')",
        "delete from t where level < 7",
        "truncate t",
    ])
    .await;

    for expected in [
        "public.t id=1 update (leave) level: 3 → 2",
        "public.t id=1 update (enter) level: 2 → 4",
        "public.t id=1 update level: 4 → 5",
        "public.t id=10 update id: 1 → 10",
        "public.t id=20 update (enter) id: 2 → 20, level: 0 → 3",
        "public.t id=20 update (no change in the columns followed)",
        r#"public.t id=3 insert level: 7, name: "c""#,
    ] {
        assert_eq!(tail.change().await, expected);
    }
    let header = tail.change().await;
    assert!(header.ends_with(", 2 changes:"), "{header}");
    let mut deleted = [tail.change().await, tail.change().await];
    deleted.sort();
    assert_eq!(
        deleted,
        [r#"  public.t id=10 delete level: 5, name: "outside""#, r#"  public.t id=20 delete level: 3, name: "b""#]
    );
    assert_eq!(tail.change().await, "public.t truncate");
    let ran = tail.ended().await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), ""), "{}", ran.err);
}

#[tokio::test]
async fn a_wrong_filter_or_column_ends_it_with_what_would_help() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;

    for (option, value, says) in [
        (
            "--where",
            "level.about.3",
            r#"switchboard: "about" is no operator in "level.about.3"; the operators are eq, neq,"#,
        ),
        ("--where", "levle.gte.3", r#"(4400): public.switch has no column "levle"; its columns are "id", "name", "#),
        ("--where", "level.gte.x", r#"(4400): PostgreSQL refuses "x" for the column "level" of public.switch"#),
        ("--columns", "nmae", "(4400): columns names nmae, and public.switch has no such column; it has id, name, "),
    ] {
        let ran = run(program(None, &["tail", "--url", &url(&gateway), "switch", option, value])).await;

        assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{value}");
        assert!(ran.err.contains(says), "{value}: {}", ran.err);
    }
}

#[tokio::test]
async fn an_altered_table_is_read_afresh_or_ends_what_it_no_longer_fits() {
    let db = numbers().await;
    db.run(&["insert into t values (1, 'x')"]).await;
    let gateway = Gateway::start(&db).await;
    let mut whole = Tail::following(&url(&gateway), &["t"]).await;
    let filtered = Tail::following(&url(&gateway), &["t", "--where", "pad.eq.x"]).await;

    db.run(&["alter table t rename pad to note"]).await;

    assert_eq!(whole.change().await, r#"public.t n=1 row note: "x""#);
    whole.says("a table was altered (schema); reading the current rows").await;
    let ran = filtered.ended().await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
    assert!(ran.err.contains(r#"(4400): public.t has no column "pad"; its columns are "n" and "note""#), "{}", ran.err);
    until("it follows again", async || whole.said().matches("following ws://").count() == 2).await;
    db.run(&["insert into t values (2)"]).await;
    assert_eq!(whole.change().await, "public.t n=2 insert note: null");
}

#[tokio::test]
async fn a_wrong_table_ends_it_with_what_would_help() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;

    let ran = run(program(None, &["tail", "--url", &url(&gateway), "nowhere"])).await;

    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
    assert!(
        ran.err.contains("(4400): table nowhere is not watched; watched is public.switch; to watch it:"),
        "{}",
        ran.err
    );
}

#[tokio::test]
async fn a_gateway_that_is_not_there_is_waited_for_and_mentioned_once() {
    let db = numbers().await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    let proxy = Proxy::start().await;
    let refused = Tail::start(&format!("http://{address}"), &[]);
    let mut waiting = Tail::start(&format!("http://{}", proxy.address), &["t"]);
    refused.says("cannot be reached: IO error: Connection refused").await;
    waiting.says("cannot be reached").await;

    let gateway = Gateway::start(&db).await;
    proxy.lead_to(Some(gateway.address));
    waiting.says("following ws://").await;
    db.run(&["insert into t values (1)"]).await;

    assert_eq!(waiting.change().await, "public.t n=1 insert pad: null");
    assert_eq!(waiting.said().matches("trying again").count(), 1, "{}", waiting.said());
    refused.signal("TERM").await;
    let refused = refused.ended().await;
    assert_eq!((refused.code, refused.err.lines().count()), (Some(0), 1), "{}", refused.err);
}

#[tokio::test]
async fn who_reads_its_output_may_leave_at_any_time() {
    let db = numbers().await;
    let gateway = Gateway::start(&db).await;
    let mut tail = Tail::following(&url(&gateway), &["t"]).await;
    db.run(&["insert into t values (1)"]).await;
    tail.line().await;

    drop(tail.out);
    db.run(&["insert into t values (2)"]).await;

    let status = soon("the end", tail.child.wait()).await.unwrap();
    soon("the end of its messages", tail.listening).await.unwrap();
    assert_eq!(status.code(), Some(0));
    assert_eq!(tail.err.lock().unwrap().lines().count(), 1, "{}", tail.err.lock().unwrap());
}

#[tokio::test]
async fn a_reader_who_is_stuck_does_not_keep_it_from_ending() {
    let db = numbers().await;
    let gateway = Gateway::start(&db).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cursor");
    let mut tail = Tail::following(&url(&gateway), &["t", "--json", "--save", path.to_str().unwrap()]).await;
    until("the cursor is saved", async || path.exists()).await;
    let before = std::fs::read_to_string(&path).unwrap();
    // More than a pipe takes.
    db.run(&["insert into t values (1, repeat('x', 1000000))"]).await;
    soon("some of it", tail.out.fill_buf()).await.unwrap();

    tail.signal("TERM").await;

    let status = soon("the end", tail.child.wait()).await.unwrap();
    assert_eq!(status.code(), Some(0));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), before, "what was not written whole does not count");
}

/// A gateway that says what the test wants.
struct Fake {
    listener: TcpListener,
}

impl Fake {
    async fn start() -> (Fake, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        (Fake { listener }, url)
    }

    /// The address that the next connection asks for, and the connection, with these frames sent.
    async fn accept(&self, frames: &[&str]) -> (String, WebSocketStream<TcpStream>) {
        let (stream, _) = soon("a connection", self.listener.accept()).await.unwrap();
        let mut asked = String::new();
        #[allow(clippy::result_large_err)]
        let look = |request: &Request, response: Response| {
            asked = request.uri().to_string();
            Ok(response)
        };
        let mut socket = soon("a handshake", tokio_tungstenite::accept_hdr_async(stream, look)).await.unwrap();
        for frame in [r#"{"type":"hello","protocol":1,"server":"fake","heartbeat_ms":60000}"#].iter().chain(frames) {
            socket.send(Message::text(*frame)).await.unwrap();
        }
        (asked, socket)
    }
}

#[tokio::test]
async fn the_selection_is_sent_as_it_was_given() {
    let (fake, url) = Fake::start().await;
    let selection = ["--where", "and(a.gte.3,b.like.x*)", "--columns", "id,a", "sales.orders", "t"];
    let _tail = Tail::start(&format!("{url}/behind/v1/feed"), &selection);

    let (asked, _socket) = fake.accept(&[]).await;

    let (path, query) = asked.split_once('?').unwrap();
    assert_eq!(path, "/behind/v1/feed");
    assert_eq!(query, "table=sales.orders%2Ct&where=and%28a.gte.3%2Cb.like.x*%29&columns=id%2Ca&from=now");
}

#[tokio::test]
async fn a_broken_chain_is_said_aloud_and_what_came_of_it_not_printed() {
    let (fake, url) = Fake::start().await;
    let ready = r#"{"type":"ready","cursor":"e.1.a"}"#;
    let commit = |prev: &str, n: u32| {
        format!(
            r#"{{"type":"commit","prev":"{prev}","cursor":"e.{n}.a","tx":"9","at":"2026-11-23T23:16:54.446950Z","changes":[{{"op":"truncate","table":"t{n}","key":null}}]}}"#
        )
    };
    let mut tail = Tail::start(&url, &["--count", "2"]);

    let _one = fake.accept(&[ready, &commit("e.1.a", 2), &commit("e.3.a", 4)]).await;
    let (asked, _two) = fake.accept(&[&commit("e.2.a", 3)]).await;

    assert!(asked.ends_with("?from=e.2.a"), "{asked}");
    assert_eq!(tail.line().await, "23:16:54.446 t2 truncate");
    assert_eq!(tail.line().await, "23:16:54.446 t3 truncate");
    let ran = tail.ended().await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), ""));
    assert!(ran.err.contains("LOST OR REPEATED: the gateway sent what follows e.3.a, where e.2.a was"), "{}", ran.err);
}

#[tokio::test]
async fn a_reset_is_said_and_the_rows_begin_again() {
    let (fake, url) = Fake::start().await;
    let mut tail = Tail::start(&url, &["--from", "e.1.a"]);
    let reset = r#"{"type":"reset","reason":"expired","oldest":"e.7.a"}"#;
    let rows = r#"{"type":"rows","table":"public.t","key":["id"],"rows":[{"id":1}]}"#;

    let (first, socket) = fake.accept(&[reset, rows]).await;
    assert_eq!(tail.change().await, "public.t id=1 row");
    drop(socket);
    let (second, _socket) = fake.accept(&[rows, r#"{"type":"ready","cursor":"e.9.a"}"#]).await;

    assert_eq!(tail.change().await, "public.t id=1 row");
    assert_eq!((first.as_str(), second.as_str()), ("/v1/feed?from=e.1.a", "/v1/feed?from=snapshot"));
    tail.says("following ws://").await;
    assert!(
        tail.said().contains("the log no longer holds what was missed (expired); reading the current rows"),
        "{}",
        tail.said()
    );
}

#[tokio::test]
async fn whoever_may_not_come_back_is_told_why_and_does_not() {
    for (code, stops) in [(4400, true), (4403, true), (1008, true), (4408, false), (1011, false), (1012, false)] {
        let (fake, url) = Fake::start().await;
        let tail = Tail::start(&url, &[]);
        let error = r#"{"type":"error","code":"x","message":"do \u001b[2J that"}"#;
        let (_, mut socket) = fake.accept(&[error]).await;

        socket.close(Some(CloseFrame { code: code.into(), reason: "".into() })).await.unwrap();
        // Its answer to that, and the end.
        while soon("the end of the connection", socket.next()).await.is_some_and(|answer| answer.is_ok()) {}

        let why = format!("the gateway closed the connection ({code}): do \\u001b[2J that");
        if stops {
            let ran = tail.ended().await;
            assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{code}");
            assert!(ran.err.contains(&why), "{code}: {}", ran.err);
        } else {
            tail.says(&format!("{why}; trying again")).await;
            fake.accept(&[]).await;
        }
    }
}

#[tokio::test]
async fn a_refused_handshake_says_what_the_gateway_said() {
    let body = |message: &str| format!(r#"{{"error":{{"code":"x","message":"{message}"}}}}"#);
    for (status, body, says) in [
        ("400 Bad Request", body("say it so"), "switchboard: say it so\n"),
        ("403 Forbidden", body("ask the operator"), "switchboard: ask the operator\n"),
        ("404 Not Found", "<html>".to_owned(), "answered 404 Not Found, which no gateway does"),
    ] {
        let (fake, url) = Fake::start().await;
        let tail = Tail::start(&url, &[]);
        let (mut stream, _) = soon("a connection", fake.listener.accept()).await.unwrap();
        let length = body.len();
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}");
        let mut head = BufReader::new(&mut stream);
        let mut line = String::new();
        while soon("the request", head.read_line(&mut line)).await.unwrap() > 2 {
            line.clear();
        }

        stream.write_all(answer.as_bytes()).await.unwrap();

        let ran = tail.ended().await;
        assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{status}");
        assert!(ran.err.contains(says), "{status}: {}", ran.err);
    }
}

#[tokio::test]
async fn too_many_subscribers_are_a_reason_to_wait() {
    let db = numbers().await;
    let gateway = Gateway::start_with(&db, |config| config.subscribers_max = 1).await;
    let first = gateway.follow("").await;
    let mut tail = Tail::start(&url(&gateway), &["t"]);
    tail.says("too many subscribers; try later").await;

    drop(first);
    tail.says("following ws://").await;
    db.run(&["insert into t values (1)"]).await;

    assert_eq!(tail.change().await, "public.t n=1 insert pad: null");
}

#[tokio::test]
async fn what_is_wrong_with_its_arguments_is_said_at_once() {
    let mut command = program(None, &["tail", "--url", "localhost", "--from", "", "--count", "0"]);
    command.stdin(Stdio::null());

    let ran = run(command).await;

    assert_eq!((ran.code, ran.out.as_str()), (Some(64), ""));
    assert_eq!(ran.err.lines().count(), 3, "{}", ran.err);
}
