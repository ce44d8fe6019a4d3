//! Filters and selections that cost much: each costs only those who share it, and at most what is documented.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::process::Stdio;

use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{Client, Database, Gateway, get, soon, until};

/// A gateway in a process of its own, whose memory is nobody else's.
struct Apart {
    child: Child,
    address: SocketAddr,
}

impl Apart {
    async fn start(db: &Database, flags: &[&str]) -> Apart {
        let mut child = Command::new(env!("CARGO_BIN_EXE_switchboard"))
            .args(["serve", "--listen", "127.0.0.1:0", "--log", "error"])
            .args(flags)
            .env("DATABASE_URL", &db.url)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        soon("the addresses", out.read_line(&mut line)).await.unwrap();
        let address = line.split(['/', ' ']).find_map(|word| word.parse().ok());
        let apart = Apart { child, address: address.unwrap_or_else(|| panic!("no address in {line}")) };
        until("it is ready", async || get(apart.address, "/readyz").await.0 == 200).await;
        apart
    }

    async fn subscribe(&self, parameters: &str) -> Client {
        Client::connect(&format!("ws://{}/v1/feed?{parameters}", self.address)).await
    }

    /// The most memory that it ever had, in MiB.
    fn peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak.unwrap().trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
    }
}

/// A table of texts, one with numbers, and one that has nothing to do with them.
async fn three_tables() -> Database {
    let db = Database::new().await;
    db.run(&[
        "create table heavy (id int primary key, body text)",
        "create table number (id int primary key, n numeric)",
        "create table other (id int primary key)",
    ])
    .await;
    for table in ["heavy", "number", "other"] {
        db.watch(table).await;
    }
    db
}

/// The next frame of this type for this subscription of a socket; others may come before it.
async fn of_sub(client: &mut Client, sub: Value, kind: &str) -> Value {
    let coming = async {
        loop {
            let text = client.text().await.unwrap_or_else(|code| panic!("closed with {code}, and {kind} was due"));
            let frame: Value = serde_json::from_str(&text).unwrap();
            if frame["sub"] == sub && frame["type"] == kind {
                return frame;
            }
        }
    };
    soon(&format!("{kind} of {sub}"), coming).await
}

#[tokio::test]
async fn a_number_that_would_be_written_out_with_very_many_digits_is_refused() {
    let db = three_tables().await;
    let gateway = Gateway::start(&db).await;
    let numbers: Vec<String> = (0..800).map(|number| format!("1e{}", 131_071 - number)).collect();

    let mut bomb = gateway.subscribe(&format!("table=number&where=n.in.({})", numbers.join(","))).await;
    let mut large = gateway.subscribe("table=number&from=now&where=n.gte.1e1000").await;
    large.ready().await;
    db.run(&["insert into number values (1, 1e1001), (2, 1e999), (3, 1e1000)"]).await;

    let error = bomb.next_of("error", &["hello"]).await;
    assert_eq!(error["code"], "bad_request");
    assert!(error["message"].as_str().unwrap().contains("an exponent beyond 1000"), "{error}");
    let text = large.text().await.unwrap();
    assert_eq!(text.matches(r#""match":"enter""#).count(), 2, "{text:.200}");
}

#[tokio::test]
async fn the_filters_of_a_connection_and_of_a_gateway_weigh_no_more_than_they_may() {
    let db = three_tables().await;
    let gateway = Gateway::start_with(&db, |config| {
        config.filter_weight_max = 10;
        config.filters_weight_max = 12;
    })
    .await;
    let mut client = gateway.subscribe("first=none").await;
    let heavy = |id: &str| {
        let conditions = ["body.is.null"; 8].join(",");
        json!({"type": "subscribe", "id": id, "table": "heavy", "where": format!("or({conditions})"), "from": "now"})
    };

    client.say(heavy("a")).await;
    of_sub(&mut client, json!("a"), "ready").await;
    client.say(heavy("b")).await;
    let own = of_sub(&mut client, json!("b"), "error").await;
    let mut other = gateway.subscribe("table=heavy&where=and(id.gt.1,id.gt.2,id.gt.3,id.gt.4,id.gt.5)").await;
    let all = other.next_of("error", &["hello"]).await;
    let mut light = gateway.follow("table=heavy&where=id.gt.1").await;
    client.say(json!({"type": "unsubscribe", "id": "a"})).await;
    client.say(heavy("c")).await;
    of_sub(&mut client, json!("c"), "ready").await;

    for (error, setting) in [(own, "--filter-weight-max"), (all, "--filters-weight-max")] {
        assert_eq!(error["code"], "too_many");
        assert!(error["message"].as_str().unwrap().contains(setting), "{error}");
    }
    assert_eq!(other.closed().await, 4400);
    db.run(&["insert into heavy values (2)"]).await;
    assert_eq!(light.changes().await.len(), 1);
    of_sub(&mut client, json!("c"), "commit").await;
}

/// A filter that has to read a text so often to find that it has no "z" behind an "a" and something else.
fn reads(times: usize, tag: usize) -> String {
    let conditions: Vec<String> = (0..times).map(|count| format!(r#"body.like."*a_{count}.{tag}*z*""#)).collect();
    format!("or(id.eq.0,{})", conditions.join(","))
}

/// A socket with so many subscriptions of heavy filters, all ready.
async fn heavy_socket(gateway: &Gateway, count: usize, filter: impl Fn(usize) -> String) -> Client {
    let mut client = gateway.subscribe("first=none").await;
    for id in 0..count {
        let filter = filter(id);
        client.say(json!({"type": "subscribe", "id": id, "table": "heavy", "where": filter, "from": "now"})).await;
        of_sub(&mut client, json!(id), "ready").await;
    }
    client
}

/// Takes what comes until so many subscriptions of a socket have a commit; appends the keys of the changes to theirs.
async fn commits_of(client: &mut Client, subs: usize, told: &mut HashMap<String, Vec<Value>>) {
    let taking = async {
        while told.len() < subs {
            let frame: Value = serde_json::from_str(&client.text().await.unwrap()).unwrap();
            if frame["type"] == "commit" {
                let keys = frame["changes"].as_array().unwrap().iter().map(|change| change["key"]["id"].clone());
                told.entry(frame["sub"].to_string()).or_default().extend(keys);
            }
        }
    };
    soon("a commit for each", taking).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heavy_filter_is_judged_beside_the_others_and_misses_nothing() {
    let db = three_tables().await;
    let gateway = Gateway::start(&db).await;
    let mut heavy = heavy_socket(&gateway, 3, |id| reads(30, id)).await;
    let mut same_table = gateway.follow("table=heavy&where=id.gte.0").await;
    let mut other_table = gateway.follow("table=other").await;

    for _ in 0..2 {
        db.run(&["insert into heavy values ((select count(*) + 1 from heavy), repeat('a', 50000))"]).await;
    }
    db.run(&["insert into heavy values (0, repeat('a', 50000))", "insert into other values (1)"]).await;

    // Each of the heavy ones has to read two texts sixty times before it has something to say, and one after the other does.
    let mut told = HashMap::new();
    let told_first = tokio::select! {
        biased;
        () = commits_of(&mut heavy, 3, &mut told) => panic!("the others waited"),
        changes = other_table.changes() => changes,
    };
    assert_eq!(told_first.len(), 1);
    for _ in 0..3 {
        assert_eq!(same_table.changes().await.len(), 1);
    }
    commits_of(&mut heavy, 3, &mut told).await;
    assert!(told.values().all(|keys| *keys == [json!(0)]), "the only one that is selected, once: {told:?}");
    // What comes next is light, and comes to all as ever.
    db.run(&["update heavy set body = 'a' where id = 0"]).await;
    let mut told = HashMap::new();
    commits_of(&mut heavy, 3, &mut told).await;
    assert!(told.values().all(|keys| *keys == [json!(0)]), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_that_no_change_may_take_so_long_to_judge_for_ends_with_an_error_and_nobody_else_does() {
    let db = three_tables().await;
    let gateway = Gateway::start(&db).await;
    // As many states as a text may have bytes before it takes too long.
    let filter = |id: usize| format!(r#"body.match."(ab|cd){{100}}{id}""#);
    let mut heavy = heavy_socket(&gateway, 2, filter).await;
    heavy.say(json!({"type": "subscribe", "id": "light", "table": "heavy", "where": "id.gt.0", "from": "now"})).await;
    of_sub(&mut heavy, json!("light"), "ready").await;
    let mut only = gateway.follow(&format!("table=heavy&where={}", filter(7).replace('"', "%22"))).await;
    let mut other = gateway.follow("table=other").await;

    db.run(&["insert into heavy values (1, repeat('a', 1000000))", "insert into other values (1)"]).await;

    assert_eq!(other.changes().await.len(), 1);
    let mut told = Vec::new();
    let telling = async {
        while told.len() < 3 {
            let frame: Value = serde_json::from_str(&heavy.text().await.unwrap()).unwrap();
            match frame["type"].as_str().unwrap() {
                "commit" => told.push(format!("commit {}", frame["sub"])),
                "error" => {
                    assert!(frame["message"].as_str().unwrap().contains("fewer or simpler conditions"), "{frame}");
                    told.push(format!("{} {}", frame["code"], frame["sub"]));
                }
                _ => {}
            }
        }
    };
    soon("a commit and two errors", telling).await;
    told.sort();
    assert_eq!(told, [r#""too_heavy" 0"#, r#""too_heavy" 1"#, r#"commit "light""#]);
    assert_eq!(only.next_of("error", &["position", "status"]).await["code"], "too_heavy");
    assert_eq!(only.closed().await, 4400);
    db.run(&["insert into heavy values (2, 'a')"]).await;
    of_sub(&mut heavy, json!("light"), "commit").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_stops_while_filters_are_judged() {
    let db = three_tables().await;
    let gateway = Gateway::start(&db).await;
    let mut heavy = heavy_socket(&gateway, 4, |id| reads(60, id)).await;
    let mut other = gateway.follow("table=other").await;
    for id in 1..5 {
        db.run(&[&format!("insert into heavy values ({id}, repeat('a', 200000))")]).await;
    }
    db.run(&["insert into other values (1)"]).await;
    other.changes().await;

    gateway.stop().await;

    assert_eq!(heavy.closed().await, 1001);
}

#[tokio::test]
async fn there_are_only_so_many_different_selections() {
    let db = three_tables().await;
    let gateway = Gateway::start_with(&db, |config| config.selections_max = 2).await;
    let mut first = gateway.follow("table=other").await;
    let second = gateway.follow("table=other&where=id.gt.1").await;

    let mut third = gateway.subscribe("table=other&where=id.gt.2&from=now").await;
    let error = third.next_of("error", &["hello"]).await;
    let mut shared = gateway.follow("table=other").await;
    drop(second);
    until("there is room again", async || {
        let mut again = gateway.subscribe("table=other&where=id.gt.2&from=now").await;
        again.frame().await.unwrap();
        again.frame().await.unwrap()["type"] == "ready"
    })
    .await;

    assert_eq!(error["code"], "too_many");
    assert!(error["message"].as_str().unwrap().contains("--selections-max"), "{error}");
    db.run(&["insert into other values (1)"]).await;
    assert_eq!((first.changes().await.len(), shared.changes().await.len()), (1, 1));
}

/// Follows a table with so many different filters over sockets of so many subscriptions, all ready.
async fn follow_all(gateway: &Apart, table: &str, sockets: usize, each: usize) -> Vec<Client> {
    let mut clients = Vec::new();
    for socket in 0..sockets {
        let mut client = gateway.subscribe("first=none").await;
        for id in 0..each {
            let filter = format!("id.gt.-{}", 1 + socket * each + id);
            client.say(json!({"type": "subscribe", "id": id, "table": table, "where": filter, "from": "now"})).await;
            of_sub(&mut client, json!(id), "ready").await;
        }
        clients.push(client);
    }
    clients
}

/// Takes what comes until each subscription of a socket has so many changes. What they hold is not looked into: it is much.
async fn count_changes(client: &mut Client, subs: usize, changes: usize) {
    let mut counts = vec![0; subs];
    let counting = async {
        while counts.iter().any(|count| *count < changes) {
            let message = client.socket().next().await.unwrap().unwrap();
            let Message::Text(text) = message else { continue };
            if text.contains(r#""type":"commit""#) {
                let sub: usize = text[r#"{"sub":"#.len()..].split(',').next().unwrap().parse().unwrap();
                counts[sub] += text.matches(r#""op":"#).count();
            }
        }
    };
    soon("all changes of all subscriptions", counting).await;
    assert!(counts.iter().all(|count| *count == changes), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_row_that_many_filters_select_is_not_held_once_for_each() {
    let db = three_tables().await;
    db.run(&["insert into heavy values (1, '')"]).await;
    let gateway = Apart::start(&db, &["--write-timeout-ms", "1000"]).await;
    // They take nothing: what they are owed has to wait somewhere, until they are closed for it.
    let clients = follow_all(&gateway, "heavy", 12, 5).await;
    let mut other = gateway.subscribe("table=other&from=now").await;
    other.ready().await;
    let before = gateway.peak();

    db.run(&["update heavy set body = repeat('x', 16 << 20)", "insert into other values (1)"]).await;

    assert_eq!(other.changes().await.len(), 1);
    db.run(&["insert into other values (2)"]).await;
    assert_eq!(other.changes().await.len(), 1);
    until("they are closed", async || {
        let (_, metrics) = get(gateway.address, "/metrics").await;
        metrics.lines().any(|line| line == "switchboard_subscribers 1")
    })
    .await;
    // Sixty times sixteen would be 960.
    let more = gateway.peak() - before;
    assert!(more < 400, "{more} MiB");
    drop(clients);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_history_keeps_its_bound_while_many_selections_want_a_large_commit() {
    let db = three_tables().await;
    db.run(&["insert into heavy select n, '' from generate_series(1, 2000) as n"]).await;
    let gateway = Apart::start(&db, &["--history-bytes-max", "4194304"]).await;
    let mut clients = follow_all(&gateway, "heavy", 20, 10).await;
    let mut other = gateway.subscribe("table=other&from=now").await;
    other.ready().await;
    let before = gateway.peak();

    db.run(&["update heavy set body = repeat('x', 600)", "insert into other values (1)"]).await;

    assert_eq!(other.changes().await.len(), 1);
    // Two hundred times 1.5 MB of frames would be 300.
    let more = gateway.peak() - before;
    assert!(more < 100, "{more} MiB");
    clients.truncate(1);
    count_changes(&mut clients[0], 10, 2000).await;
}
