//! What is broken on purpose, on a weighted schedule: PostgreSQL, gateways, the network, clients, the doorbell, retention, tables.
//!
//! Each saboteur breaks one kind of thing at a time and mends it again; several work side by side, so that faults overlap.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use switchboard::local::{LocalServer, StopMode};
use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;

use crate::gateways::Gateway;
use crate::proxy::{Mode, Proxy};
use crate::reader::Reader;
use crate::story::position_of;
use crate::writers::pick;

/// What saboteurs work on.
pub struct Stage {
    pub server: tokio::sync::Mutex<LocalServer>,
    pub url: String,
    pub gateways: Arc<Vec<Gateway>>,
    pub readers: Vec<Reader>,
    pub stop: Mutex<CancellationToken>,
    pub done: Mutex<BTreeMap<&'static str, u64>>,
}

impl Stage {
    fn did(&self, what: &'static str) {
        *self.done.lock().unwrap().entry(what).or_default() += 1;
    }

    /// Waits a while, or until the round ends.
    async fn a_while(&self, random: &mut Rng, millis: std::ops::Range<u64>) {
        let stop = self.stop.lock().unwrap().clone();
        // Either way it is time to go on.
        let _ = tokio::time::timeout(Duration::from_millis(random.u64(millis)), stop.cancelled()).await;
    }

    fn over(&self) -> bool {
        self.stop.lock().unwrap().is_cancelled()
    }

    async fn session(&self) -> Option<Client> {
        let (client, connection) = tokio_postgres::connect(&self.url, NoTls).await.ok()?;
        tokio::spawn(connection);
        Some(client)
    }

    fn gateway(&self, random: &mut Rng) -> &Gateway {
        &self.gateways[random.usize(..self.gateways.len())]
    }

    fn reader(&self, random: &mut Rng) -> &Reader {
        &self.readers[random.usize(..self.readers.len())]
    }
}

/// Starts all saboteurs; each ends, with everything mended, soon after the round's end.
pub fn unleash(stage: &Arc<Stage>, random: &mut Rng) -> Vec<tokio::task::JoinHandle<()>> {
    let mut draw = || random.fork();
    vec![
        tokio::spawn(break_postgresql(stage.clone(), draw())),
        tokio::spawn(break_gateways(stage.clone(), draw())),
        tokio::spawn(break_networks(stage.clone(), draw())),
        tokio::spawn(break_clients(stage.clone(), draw())),
        tokio::spawn(break_promises(stage.clone(), draw())),
        tokio::spawn(alter_tables(stage.clone(), draw())),
    ]
}

async fn break_postgresql(stage: Arc<Stage>, mut random: Rng) {
    stage.a_while(&mut random, 500..3_000).await;
    while !stage.over() {
        match pick(&mut random, &[6, 3, 4, 2]) {
            0 => {
                let mut server = stage.server.lock().await;
                server.kill().await.expect("PostgreSQL can be killed");
                stage.did("PostgreSQL killed with -9");
                stage.a_while(&mut random, 0..500).await;
                server.start_again().await.expect("PostgreSQL recovers");
            }
            1 => {
                let mut server = stage.server.lock().await;
                server.restart(StopMode::Immediate).await.expect("PostgreSQL recovers");
                stage.did("PostgreSQL stopped immediately and restarted");
            }
            2 => terminate(&stage, "switchboard", "sessions of gateways terminated").await,
            _ => terminate(&stage, crate::writers::NAME, "sessions of writers terminated").await,
        }
        stage.a_while(&mut random, 500..5_000).await;
    }
}

async fn terminate(stage: &Stage, name: &str, what: &'static str) {
    let Some(session) = stage.session().await else { return };
    let sql = format!(
        "select count(pg_terminate_backend(pid)) from (select pid from pg_stat_activity
         where application_name = '{name}' and random() < 0.5) as some"
    );
    if let Ok(row) = session.query_one(&sql, &[]).await {
        *stage.done.lock().unwrap().entry(what).or_default() += u64::try_from(row.get::<_, i64>(0)).unwrap_or(0);
    }
}

async fn break_gateways(stage: Arc<Stage>, mut random: Rng) {
    stage.a_while(&mut random, 200..2_000).await;
    while !stage.over() {
        let gateway = stage.gateway(&mut random);
        match pick(&mut random, &[6, 4, 1]) {
            0 => {
                gateway.signal("KILL").await;
                stage.did("gateways killed with -9");
                stage.a_while(&mut random, 0..1_000).await;
                gateway.start_again().await;
            }
            1 => {
                gateway.signal("STOP").await;
                stage.did("gateways frozen");
                stage.a_while(&mut random, 200..5_000).await;
                gateway.signal("CONT").await;
            }
            _ => {
                for gateway in stage.gateways.iter() {
                    gateway.signal("TERM").await;
                    gateway.start_again().await;
                }
                stage.did("gateways rolled one after another");
            }
        }
        stage.a_while(&mut random, 500..4_000).await;
    }
}

async fn break_networks(stage: Arc<Stage>, mut random: Rng) {
    while !stage.over() {
        stage.a_while(&mut random, 300..3_000).await;
        let gateway = stage.gateway(&mut random);
        let database = random.bool();
        let side = if database { &gateway.database } else { &gateway.clients };
        match (pick(&mut random, &[4, 3, 2, 1]), database) {
            (0, _) => {
                side.cut();
                stage.did("networks cut");
            }
            (3, _) => {
                side.forget();
                stage.did("networks that forgot their connections");
            }
            (1, true) => hold(&stage, side, Mode::Silent, &mut random, "links to PostgreSQL half-open").await,
            (1, false) => hold(&stage, side, Mode::Silent, &mut random, "links to clients half-open").await,
            _ => {
                let delay = Mode::Slow(Duration::from_millis(random.u64(5..80)));
                hold(&stage, side, delay, &mut random, "networks slowed").await;
            }
        }
    }
}

async fn hold(stage: &Stage, side: &Proxy, mode: Mode, random: &mut Rng, what: &'static str) {
    side.set(mode);
    stage.did(what);
    stage.a_while(random, 500..8_000).await;
    side.set(Mode::Pass);
    // What was held back comes late, or never.
    if random.bool() {
        side.cut();
    }
}

async fn break_clients(stage: Arc<Stage>, mut random: Rng) {
    while !stage.over() {
        stage.a_while(&mut random, 100..1_500).await;
        match pick(&mut random, &[3, 1]) {
            0 => {
                stage.gateway(&mut random).clients.cut_after(random.u32(..200_000));
                stage.did("clients cut at a random byte");
            }
            _ => {
                let reader = stage.reader(&mut random);
                reader.frozen.send_replace(true);
                stage.did("clients frozen");
                stage.a_while(&mut random, 500..6_000).await;
                reader.frozen.send_replace(false);
            }
        }
    }
}

/// What each alteration does, in pieces between which writers come.
const ALTERATIONS: [(&str, &[&str]); 8] = [
    (
        "triggers disabled, and enabled again",
        &["alter table loose disable trigger all", "update loose set v = 'unseen'", "alter table loose enable trigger all"],
    ),
    (
        "triggers disabled and enabled in one transaction",
        &["begin; alter table loose disable trigger all; update loose set v = 'unseen'; delete from loose where id % 7 = 0;
           alter table loose enable trigger all; commit"],
    ),
    (
        "tables unwatched, and watched again",
        &["select switchboard.unwatch('loose')", "update loose set v = 'unwatched'", "select switchboard.watch('loose')"],
    ),
    (
        "tables unwatched and watched in one transaction",
        &["begin; select switchboard.unwatch('loose'); delete from loose where id % 3 = 0; select switchboard.watch('loose'); commit"],
    ),
    (
        "columns added with a default",
        &["alter table loose drop column if exists extra", "alter table loose add column extra int default 7"],
    ),
    ("columns made anew under their name", &["alter table loose drop column v, add column v text default 'new'"]),
    (
        "partitions detached, and attached again",
        &[
            "alter table shelf detach partition shelf_high",
            "delete from shelf_high where id % 2 = 0",
            "alter table shelf attach partition shelf_high for values from (50) to (100)",
        ],
    ),
    ("partitions truncated", &["truncate shelf_low"]),
];

/// What undoes an alteration that was broken off.
const WHOLE_AGAIN: &str = "
    alter table loose enable trigger all;
    alter table loose add column if not exists v text;
    select switchboard.watch('loose');
    do $$ begin
        if not exists (select from pg_inherits where inhrelid = 'shelf_high'::regclass) then
            alter table shelf attach partition shelf_high for values from (50) to (100);
        end if;
    end $$;
    select switchboard.watch('shelf')";

/// How often to try to make the tables whole again: PostgreSQL may be away for as long as its own saboteur lets it be.
const WHOLE_TRIES: u32 = 200;

async fn alter_tables(stage: Arc<Stage>, mut random: Rng) {
    while !stage.over() {
        stage.a_while(&mut random, 200..2_000).await;
        let Some(session) = stage.session().await else { continue };
        let (what, pieces) = ALTERATIONS[random.usize(..ALTERATIONS.len())];
        let mut done = session.batch_execute("set lock_timeout = '2s'").await;
        for piece in pieces {
            if done.is_ok() {
                done = session.batch_execute(piece).await;
                stage.a_while(&mut random, 0..700).await;
            }
        }
        match done {
            Ok(()) => stage.did(what),
            // PostgreSQL went, or writers would not let go of the table.
            Err(_) => drop(make_whole(&stage).await),
        }
    }
    assert!(make_whole(&stage).await, "the tables cannot be made whole again");
}

async fn make_whole(stage: &Stage) -> bool {
    for _ in 0..WHOLE_TRIES {
        if let Some(session) = stage.session().await
            && session.batch_execute("set lock_timeout = '2s'").await.is_ok()
            && session.batch_execute(WHOLE_AGAIN).await.is_ok()
        {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    false
}

async fn break_promises(stage: Arc<Stage>, mut random: Rng) {
    while !stage.over() {
        stage.a_while(&mut random, 1_000..5_000).await;
        let Some(session) = stage.session().await else { continue };
        match pick(&mut random, &[3, 2]) {
            0 => {
                // Who holds this shared keeps the feed from sleeping, and so the writers from ringing. A sleeping feed has it.
                let silence = "set lock_timeout = '1s'; select pg_advisory_lock_shared(1937203812, 1)";
                if session.batch_execute(silence).await.is_ok() {
                    stage.did("doorbells silenced");
                    stage.a_while(&mut random, 500..4_000).await;
                }
            }
            _ => overtake(&stage, &session, &mut random).await,
        }
    }
}

/// Freezes a reader and has retention forget what it has not read; what the first reader stands at is kept, and what follows.
async fn overtake(stage: &Stage, session: &Client, random: &mut Rng) {
    let victim = &stage.readers[random.usize(1..stage.readers.len())];
    victim.frozen.send_replace(true);
    stage.a_while(random, 1_000..3_000).await;
    let safe = stage.readers[0].story.lock().unwrap().cursor.as_deref().map_or(0, position_of);
    let forget = crate::forget_up_to(safe - 1);
    if session.batch_execute(&forget).await.is_ok() {
        stage.did("readers overtaken by retention");
    }
    victim.frozen.send_replace(false);
}
