//! Several gateways on one database, and a database that comes and goes under them.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Instant;

use serde_json::Value;
use switchboard::listener::{Deposed, Listener};
use switchboard::local::StopMode;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio_postgres::{AsyncMessage, NoTls};
use tokio_util::sync::CancellationToken;

use crate::doorbell::{asleep, hold_the_doorbell_shared};
use crate::harness::{Client, Database, Gateway, Mode, PATIENCE, Server, get, metric, soon, until};

/// A gateway in a process of its own, which can be stopped as an operating system stops one.
struct Process {
    child: Child,
    address: SocketAddr,
}

impl Process {
    async fn start(url: &str) -> Process {
        let mut child = Command::new(env!("CARGO_BIN_EXE_switchboard"))
            .args(["serve", "--listen", "127.0.0.1:0", "--log", "error"])
            .env("DATABASE_URL", url)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = soon("the addresses", lines.next_line()).await.unwrap().unwrap();
        let address = line.split("http://").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().parse().unwrap();
        Process { child, address }
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().unwrap().to_string();
        let status = std::process::Command::new("kill").args([signal, &pid]).status().unwrap();
        assert!(status.success());
    }
}

/// A gateway that does not lead yet, and a client that writes down what it got.
struct Follower {
    gateway: Process,
    client: Client,
    seen: Vec<i64>,
}

impl Follower {
    async fn start(db: &Database) -> Follower {
        let gateway = Process::start(&db.url).await;
        let mut client = Client::connect(&format!("ws://{}/v1/feed?from=now", gateway.address)).await;
        client.ready().await;
        assert_eq!(metric(gateway.address, "switchboard_leads").await, 0.0);
        Follower { gateway, client, seen: Vec::new() }
    }

    async fn gets(&mut self, level: i64) {
        assert_eq!(levels(&mut self.client, 1).await, [level]);
        self.seen.push(level);
    }

    /// Writes, one commit after the other arrived, until this gateway leads; and some more, for which nobody stands in.
    async fn takes_over(&mut self, db: &Database, from: &str) {
        let address = self.gateway.address;
        let begun = Instant::now();
        let mut first = None;
        let mut level = 0;
        let write = async |follower: &mut Follower, level: i64| {
            db.run(&[&format!("update switch set level = {level} where id = 1")]).await;
            follower.gets(level).await;
        };
        while metric(address, "switchboard_leads").await == 0.0 {
            assert!(begun.elapsed() < PATIENCE, "{from}: nobody took over");
            level += 1;
            write(self, level).await;
            first.get_or_insert(begun.elapsed());
        }
        let led = begun.elapsed();
        let stand_ins = metric(address, "switchboard_stand_ins_total").await;
        for more in 1..=20 {
            write(self, level + more).await;
        }

        let first = first.unwrap_or_default().as_millis();
        eprintln!(
            "{from}: next commit after {first} ms, lead taken after {} ms, {stand_ins} stand-ins",
            led.as_millis()
        );
        assert_eq!(metric(address, "switchboard_stand_ins_total").await, stand_ins, "{from}");
        assert_eq!(metric(address, "switchboard_leads").await, 1.0, "{from}");
    }
}

/// A leader, and those that led before it.
struct Scene {
    leader: Follower,
    frozen: Vec<(Follower, usize)>,
    story: Vec<i64>,
}

impl Scene {
    async fn begin(db: &Database) -> Scene {
        let gateway = Process::start(&db.url).await;
        let mut client = Client::connect(&format!("ws://{}/v1/feed?from=now", gateway.address)).await;
        client.ready().await;
        leads(gateway.address).await;
        Scene { leader: Follower { gateway, client, seen: Vec::new() }, frozen: Vec::new(), story: Vec::new() }
    }

    /// The leader gets this signal, and the one that follows takes over.
    async fn leader_gets(&mut self, signal: &str, mut follower: Follower, db: &Database) {
        self.leader.gateway.signal(signal);
        follower.takes_over(db, signal).await;
        let began = self.story.len();
        self.story.extend(&follower.seen);
        let before = std::mem::replace(&mut self.leader, follower);
        if signal != "-KILL" {
            self.frozen.push((before, began));
        }
    }

    async fn those_that_were_frozen_have_lost_nothing(self) {
        for (mut follower, began) in self.frozen {
            follower.gateway.signal("-CONT");
            let missed = &self.story[began..];
            assert_eq!(levels(&mut follower.client, missed.len()).await, missed);
            let address = follower.gateway.address;
            until("it follows", async || metric(address, "switchboard_leads").await == 0.0).await;
            until("it is ready", async || get(address, "/readyz").await.0 == 200).await;
        }
        leads(self.leader.gateway.address).await;
    }
}

async fn leads(address: SocketAddr) {
    until("it leads", async || metric(address, "switchboard_leads").await == 1.0).await;
}

async fn listener(db: &Database) -> Listener {
    Listener::connect(&switchboard::session::Database::new(&db.config())).await.unwrap()
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
async fn a_follower_takes_over_from_one_that_is_killed_or_frozen_asleep_again_and_again() {
    let db = Database::with_switch().await;
    let mut scene = Scene::begin(&db).await;

    for signal in ["-KILL", "-STOP", "-STOP", "-KILL"] {
        let follower = Follower::start(&db).await;
        until("the leader sleeps", async || asleep(&db).await).await;
        scene.leader_gets(signal, follower, &db).await;
    }

    scene.those_that_were_frozen_have_lost_nothing().await;
}

#[tokio::test]
async fn a_follower_takes_over_from_one_that_is_frozen_awake() {
    let db = Database::with_switch().await;
    let hanging = db.session().await;
    hold_the_doorbell_shared(&db, &hanging).await;
    let mut scene = Scene::begin(&db).await;

    // Nobody rings: the writers believe that somebody looks anyway.
    for _ in 0..2 {
        let follower = Follower::start(&db).await;
        scene.leader_gets("-STOP", follower, &db).await;
    }

    hanging.batch_execute("select pg_advisory_unlock_all()").await.unwrap();
    scene.those_that_were_frozen_have_lost_nothing().await;
}

#[tokio::test]
async fn a_follower_takes_over_from_one_that_is_cut_off() {
    let db = Database::with_switch().await;
    let (proxy, through) = db.behind_proxy().await;
    let leader = Gateway::launch(through, |_| {}).await;
    leader.ready().await;
    leads(leader.address).await;
    let mut led = leader.follow("").await;
    let mut follower = Follower::start(&db).await;

    proxy.set(Mode::Silent);
    follower.takes_over(&db, "cut off").await;
    proxy.set(Mode::Pass);

    assert_eq!(levels(&mut led, follower.seen.len()).await, follower.seen);
    until("it follows", async || metric(leader.address, "switchboard_leads").await == 0.0).await;
    leader.ready().await;
}

#[tokio::test]
async fn a_leader_that_lives_answers_whoever_stood_in_for_it() {
    let db = Database::with_switch().await;
    let (leader, _follower) = (Gateway::start(&db).await, Gateway::start(&db).await);
    leads(leader.address).await;
    let (stranger, mut connection) = tokio_postgres::connect(&db.url, NoTls).await.unwrap();
    let (tell, answered) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut tell = Some(tell);
        // On and on, since the answers to what the session asks come this way too.
        while let Some(Ok(message)) = std::future::poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notification(said) = message
                && said.payload() == "head"
            {
                // It may be said more than once.
                let _ = tell.take().map(|tell| tell.send(()));
            }
        }
    });

    stranger.batch_execute("listen switchboard; notify switchboard, 'stand-in'").await.unwrap();

    soon("the leader's word", answered).await.unwrap();
}

#[tokio::test]
async fn a_leader_that_is_busy_with_a_large_commit_numbers_what_comes_behind_it() {
    let db = Database::with_switch().await;
    db.run(&["create table bulk (id int primary key, v text)"]).await;
    db.watch("bulk").await;
    let (leader, follower) = (Gateway::start(&db).await, Gateway::start(&db).await);
    leads(leader.address).await;
    let mut clients = [leader.follow("table=switch").await, follower.follow("table=switch").await];

    db.run(&["insert into bulk select n, repeat('x', 100) from generate_series(1, 30000) as n"]).await;
    db.run(&["update switch set level = 1 where id = 1"]).await;

    until("both have their position", async || db.value::<i64>("select head from switchboard.head()").await == 2).await;
    assert_eq!(metric(leader.address, "switchboard_position").await, 0.0, "the large one is not even published whole");
    for client in &mut clients {
        assert_eq!(levels(client, 1).await, [1]);
    }
    assert_eq!(metric(follower.address, "switchboard_depositions_total").await, 0.0);
    leads(leader.address).await;
}

#[tokio::test]
async fn only_a_gateway_of_the_same_database_is_deposed() {
    let (db, other) = (Database::new().await, Database::new().await);
    let (leader, elsewhere, second) = (listener(&db).await, listener(&other).await, listener(&db).await);
    assert!(leader.try_lead().await.unwrap() && elsewhere.try_lead().await.unwrap());
    let (session, far) = (leader.leader().await.unwrap().unwrap(), elsewhere.leader().await.unwrap().unwrap());
    assert_ne!(session, far);

    assert!(matches!(second.depose(far).await.unwrap(), Deposed::Gone));
    assert!(elsewhere.try_lead().await.unwrap());
    assert!(matches!(second.depose(session).await.unwrap(), Deposed::Done));

    until("the lead is free", async || second.try_lead().await.unwrap()).await;
    let person = other.session().await;
    drop(elsewhere);
    until("the lock is a person's", async || {
        person.query_one("select pg_try_advisory_lock(1937203812, 2)", &[]).await.unwrap().get(0)
    })
    .await;
    assert_eq!(listener(&other).await.leader().await.unwrap(), None);
}

#[tokio::test]
async fn where_it_may_not_depose_a_follower_stands_in_for_each_commit() {
    let db = Database::with_switch().await;
    let leader = Process::start(&db.url).await;
    leads(leader.address).await;
    let name: String = db.value("select current_database()::text").await;
    db.run(&[
        &format!("create role gateway_{name} login password 'secret'"),
        &format!("select switchboard.allow_gateway('gateway_{name}')"),
    ])
    .await;
    let mut config = db.config();
    config.user(format!("gateway_{name}")).password("secret");
    let follower = Gateway::launch(config, |_| {}).await;
    follower.ready().await;
    let mut client = follower.follow("").await;
    until("the leader sleeps", async || asleep(&db).await).await;

    leader.signal("-STOP");
    for level in 1..=5 {
        flip(&db, level..level + 1).await;
        // It keeps its database all the while: no word of "status".
        let commit = client.next_of("commit", &["position"]).await;
        assert_eq!(commit["changes"][0]["new"]["level"], level);
    }

    assert_eq!(follower.metric("switchboard_leads").await, 0.0);
    assert!(follower.metric("switchboard_stand_ins_total").await >= 2.0);
    drop(leader);
    leads(follower.address).await;
}

#[tokio::test]
async fn a_stranger_who_says_that_there_is_a_new_head_hides_nothing_that_a_frozen_leader_left_lying() {
    let db = Database::with_switch().await;
    let leader = Process::start(&db.url).await;
    leads(leader.address).await;
    let follower = Gateway::start(&db).await;
    let mut client = follower.follow("").await;
    let stop = CancellationToken::new();
    let mut lying = Vec::new();
    for _ in 0..8 {
        let (liar, stop) = (db.session().await, stop.clone());
        lying.push(tokio::spawn(async move {
            while !stop.is_cancelled() {
                liar.batch_execute("notify switchboard, 'head'").await.unwrap();
            }
        }));
    }

    leader.signal("-STOP");
    for level in 1..=3 {
        flip(&db, level..level + 1).await;
        // Not by a new session: no word of "status".
        let commit = client.next_of("commit", &["position"]).await;
        assert_eq!(commit["changes"][0]["new"]["level"], level);
    }

    stop.cancel();
    for liar in lying {
        liar.await.unwrap();
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

#[tokio::test]
async fn a_link_that_goes_silent_for_good_is_given_up_for_a_new_one() {
    let db = Database::with_switch().await;
    let (proxy, through) = db.behind_proxy().await;
    let gateway = Gateway::launch(through, |_| {}).await;
    gateway.ready().await;
    let mut client = gateway.follow("").await;
    flip(&db, 0..1).await;
    assert_eq!(levels(&mut client, 1).await, [0]);

    // Nobody closes them, and whoever is asked still acknowledges every byte.
    proxy.forget();
    flip(&db, 1..5).await;

    assert_eq!(levels(&mut client, 4).await, [1, 2, 3, 4]);
    gateway.ready().await;
    let (rows, _) = gateway.subscribe("").await.snapshot().await;
    assert_eq!(rows.len(), 4, "the connections for snapshots are new as well");
}
