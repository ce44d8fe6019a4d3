//! Several gateways on one database, and a database that comes and goes under them.

use std::process::Stdio;

use serde_json::Value;
use switchboard::local::StopMode;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::harness::{Client, Database, Gateway, Server, soon, until};

/// A gateway in a process of its own, which can be stopped as an operating system stops one.
struct Process {
    child: Child,
    address: String,
}

impl Process {
    async fn start(db: &Database) -> Process {
        let mut child = Command::new(env!("CARGO_BIN_EXE_switchboard"))
            .args(["serve", "--listen", "127.0.0.1:0", "--log", "error"])
            .env("DATABASE_URL", &db.url)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = soon("the addresses", lines.next_line()).await.unwrap().unwrap();
        let address = line.split("http://").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().to_owned();
        Process { child, address }
    }

    async fn follow(&self, parameters: &str) -> Client {
        let mut client = Client::connect(&format!("ws://{}/v1/feed?from=now&{parameters}", self.address)).await;
        client.ready().await;
        client
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().unwrap().to_string();
        let status = std::process::Command::new("kill").args([signal, &pid]).status().unwrap();
        assert!(status.success());
    }
}

async fn flip(db: &Database, times: std::ops::Range<i32>) {
    for level in times {
        db.run(&[&format!("update switch set level = {level} where id = 1")]).await;
    }
}

async fn levels(client: &mut Client, count: usize) -> Vec<i64> {
    let mut levels = Vec::new();
    while levels.len() < count {
        levels.push(client.changes().await[0]["new"]["level"].as_i64().unwrap());
    }
    levels
}

#[tokio::test]
async fn two_gateways_tell_the_same_story() {
    let db = Database::with_switch().await;
    let (one, two) = (Gateway::start(&db).await, Gateway::start(&db).await);
    let (mut first, mut second) = (one.follow("").await, two.follow("").await);

    flip(&db, 0..50).await;

    for _ in 0..50 {
        let (a, b): (Value, Value) = (first.commit().await, second.commit().await);
        assert_eq!((&a["cursor"], &a["tx"], &a["changes"]), (&b["cursor"], &b["tx"], &b["changes"]));
    }
}

#[tokio::test]
async fn another_gateway_takes_over_from_one_that_was_killed_or_stands_still() {
    let db = Database::with_switch().await;
    for signal in ["-KILL", "-STOP"] {
        let leader = Process::start(&db).await;
        let mut led = leader.follow("").await;
        flip(&db, 0..1).await;
        levels(&mut led, 1).await;
        let follower = Gateway::start(&db).await;
        let mut client = follower.follow("").await;

        leader.signal(signal);
        flip(&db, 1..20).await;

        assert_eq!(levels(&mut client, 19).await, (1..20).collect::<Vec<i64>>(), "{signal}");
        follower.stop().await;
    }
}

#[tokio::test]
async fn gateways_outlive_a_restart_of_postgresql_and_clients_stay_connected() {
    let mut server = Server::start(&[]).await;
    let mut db = server.database().await;
    db.run(&["create table switch (id int primary key, level int)", "insert into switch values (1, 0)"]).await;
    db.watch("switch").await;
    let (one, two) = (Gateway::start(&db).await, Gateway::start(&db).await);
    let mut clients = [one.follow("").await, two.follow("").await];
    let mut expected = Vec::new();

    for (round, mode) in [StopMode::Fast, StopMode::Immediate].into_iter().enumerate() {
        let round = round as i32 * 10;
        flip(&db, round..round + 3).await;
        server.0.restart(mode).await.unwrap();
        db.reconnect().await;
        flip(&db, round + 3..round + 6).await;
        expected.extend(i64::from(round)..i64::from(round) + 6);
    }

    for client in &mut clients {
        assert_eq!(levels(client, expected.len()).await, expected);
    }
    for gateway in [&one, &two] {
        gateway.ready().await;
    }
}

#[tokio::test]
async fn a_client_hears_that_the_database_went_and_came() {
    let mut server = Server::start(&[]).await;
    let db = server.database().await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("").await;

    server.0.kill().await.unwrap();

    assert_eq!(client.next_of("status", &["position"]).await["database"], "down");
    assert_eq!(gateway.get("/readyz").await.0, 503);
    assert_eq!(gateway.get("/healthz").await.0, 200);
    let mut late = gateway.subscribe("from=snapshot").await;
    assert_eq!(late.next_of("status", &["hello"]).await["database"], "down");
    server.0.start_again().await.unwrap();
    assert_eq!(client.next_of("status", &["position"]).await["database"], "up");
    while late.next_of("status", &[]).await["database"] != "up" {}
    late.next_of("ready", &["status", "rows"]).await;
}

#[tokio::test]
async fn nothing_is_lost_when_connections_are_cut_while_writers_write() {
    let db = Database::with_switch().await;
    let (one, two) = (Gateway::start(&db).await, Gateway::start(&db).await);
    let mut clients = [one.follow("table=switch").await, two.follow("table=switch").await];
    let cutter = db.session().await;

    for round in 0..10 {
        flip(&db, round * 10..round * 10 + 10).await;
        let cut = "select pg_terminate_backend(pid) from pg_stat_activity
                   where application_name = 'switchboard' and datname = current_database()";
        cutter.batch_execute(cut).await.unwrap();
    }

    for client in &mut clients {
        assert_eq!(levels(client, 100).await, (0..100).collect::<Vec<i64>>());
    }
    until("both have their database again", async || {
        one.get("/readyz").await.0 == 200 && two.get("/readyz").await.0 == 200
    })
    .await;
}
