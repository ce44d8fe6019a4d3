//! The drill: real writers, gateways and clients, faults on purpose, and oracles that would notice a loss, a repeat or a disorder.
//!
//! ```text
//! cargo test --release --test drill -- --seconds 1800 --seed 7
//! ```
//!
//! It goes in rounds. In each, writers change thirteen tables in every way there is while saboteurs kill and freeze PostgreSQL, gateways,
//! networks and clients, and alter tables; then everything is mended, the writers stop, every reader has to arrive at the same end, and the oracles
//! compare. It prints its seed, what it did and what it saw, and exits with 1 at the first violation. The same seed draws the same
//! writes and faults; when they meet is up to the machine.

#![allow(clippy::unwrap_used)]

mod bounds;
mod faults;
mod gateways;
mod gather;
mod keys;
mod oracles;
mod proxy;
mod reader;
mod story;
mod writers;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::Parser;
use fastrand::Rng;
use switchboard::config::database_config;
use switchboard::install;
use switchboard::local::{LocalServer, Options};
use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;

use crate::faults::Stage;
use crate::gateways::Gateway;
use crate::oracles::{Entry, Evidence, Outcome, judge};
use crate::reader::{Reader, Wish};
use crate::story::{Rows, position_of};
use crate::writers::{Desk, EVERYTHING, RESTLESS, WATCHED};

/// Breaks everything on purpose, and checks that nothing is lost, told twice or out of order.
#[derive(Parser)]
struct Arguments {
    /// How long to go on, in seconds; the round that runs then is ended
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// What to draw writes and faults from; a new one is drawn where none is given
    #[arg(long)]
    seed: Option<u64>,
    /// How long the writers write in each round, in seconds
    #[arg(long, default_value_t = 12)]
    round_seconds: u64,
    /// How many writers
    #[arg(long, default_value_t = 6)]
    writers: usize,
    /// How many gateways
    #[arg(long, default_value_t = 3)]
    gateways: usize,
}

/// The tables of those readers that do not ask for all.
const MONEY: &[&str] = &["public.account", "public.vault", "public.marker"];
const ALTERED: &[&str] = &["public.loose", "public.shelf", "public.marker"];
const JOURNAL: &[&str] = &["public.journal", "public.marker"];
const ACCOUNT: &[&str] = &["public.account"];
/// What the readers ask for. The rows of the last two come and go: each transfer changes `n`, and keys are swapped.
const WISHES: [Wish; 11] = [
    Wish { name: "all-0", tables: None, filter: None },
    Wish { name: "all-1", tables: None, filter: None },
    Wish { name: "all-2", tables: None, filter: None },
    Wish { name: "all-3", tables: None, filter: None },
    Wish { name: "money", tables: Some(MONEY), filter: None },
    Wish { name: "journal", tables: Some(JOURNAL), filter: None },
    Wish { name: "altered-0", tables: Some(ALTERED), filter: None },
    Wish { name: "altered-1", tables: Some(ALTERED), filter: None },
    Wish { name: "everything", tables: Some(EVERYTHING), filter: None },
    Wish { name: "rich", tables: Some(ACCOUNT), filter: Some(("or(n.gte.1000,id.lte.3)", is_rich)) },
    Wish {
        name: "some",
        tables: Some(ACCOUNT),
        filter: Some(("and(id.in.(5,7,9,60,61,62,63,64),n.neq.0)", is_one_of_some)),
    },
];
/// Tables with one sum.
const BALANCED: [&str; 2] = ["public.account", "public.vault"];

/// How long everything that moves may take to come to rest at the end of a round.
const REST_PATIENCE: Duration = Duration::from_secs(120);

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!("drill: --seconds {} --seed {seed}", arguments.seconds);
    let dir = std::env::temp_dir().join(format!("switchboard-drill-{}", std::process::id()));
    let settings = [
        ("wal_level", "logical"),
        ("max_connections", "200"),
        ("shared_buffers", "64MB"),
        ("max_wal_size", "256MB"),
        ("autovacuum_naptime", "5s"),
        // Writers that claim each other's keys wait in circles.
        ("deadlock_timeout", "200ms"),
    ];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let options = Options { dir, settings, durable: true, keep: false };
    let server = LocalServer::start(options, |_| {}).await.expect("a PostgreSQL for the drill");
    let mut drill = Drill::prepare(server, &arguments, seed).await;
    let began = Instant::now();
    let mut violations = drill.assemble().await;
    while violations.is_empty() && began.elapsed() < Duration::from_secs(arguments.seconds) {
        violations = drill.round(&arguments).await;
    }
    drill.report(began.elapsed());
    for violation in &violations {
        println!("VIOLATION  {violation}");
    }
    let ok = violations.is_empty();
    println!("drill: --seconds {} --seed {seed}: {}", arguments.seconds, if ok { "no violation" } else { "FAILED" });
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[derive(serde::Deserialize)]
struct Account {
    id: i64,
    n: i64,
}

fn account(row: &str) -> Account {
    serde_json::from_str(row).expect("a row of account")
}

fn is_rich(row: &str) -> bool {
    let Account { id, n } = account(row);
    n >= 1000 || id <= 3
}

fn is_one_of_some(row: &str) -> bool {
    let Account { id, n } = account(row);
    [5, 7, 9, 60, 61, 62, 63, 64].contains(&id) && n != 0
}

/// A statement that has retention forget what is at or before this position.
fn forget_up_to(position: i64) -> String {
    let kept = format!("(select head from switchboard.head()) - {position}");
    format!(
        "select switchboard.trim('1000 days', {kept}, {}, {COUNT}, {COUNT}, {}, null, 0)",
        i64::MAX,
        i64::MAX,
        COUNT = i32::MAX
    )
}

struct Drill {
    stage: Arc<Stage>,
    random: Rng,
    round: i32,
    end: CancellationToken,
    merge: bool,
    /// Up to where in the write-ahead log the oracles have compared, and up to which position.
    decoded_until: String,
    head: i64,
    totals: Totals,
}

#[derive(Default)]
struct Totals {
    commits: u64,
    changes: u64,
    untold: i64,
    failed: u64,
    unknown: u64,
    most: BTreeMap<&'static str, f64>,
}

impl Drill {
    async fn prepare(server: LocalServer, arguments: &Arguments, seed: u64) -> Drill {
        let url = server.url("drill");
        session(&server.url("postgres")).await.batch_execute("create database drill").await.unwrap();
        let mut client = session(&url).await;
        install::install(&mut client, false, None).await.unwrap();
        client.batch_execute(writers::TABLES).await.unwrap();
        for table in WATCHED.iter().chain(RESTLESS) {
            install::watch(&mut client, table).await.unwrap();
        }
        gather::open_slot(&client).await;
        let version: i32 =
            client.query_one("select current_setting('server_version_num')::int", &[]).await.unwrap().get(0);

        let database = database_config(&url, None).unwrap();
        let address = format!("127.0.0.1:{}", database.get_ports()[0]).parse().unwrap();
        let mut gateways = Vec::new();
        for _ in 0..arguments.gateways {
            let through = |proxy: std::net::SocketAddr| url.replace(&format!("{address}"), &proxy.to_string());
            gateways.push(Gateway::start(address, through).await);
        }
        let gateways = Arc::new(gateways);
        let end = CancellationToken::new();
        let mut random = Rng::with_seed(seed);
        let readers = WISHES.into_iter().map(|wish| {
            let whole = wish.filter.is_none() && wish.tables != Some(JOURNAL) && wish.tables != Some(ALTERED);
            let balanced = if whole { BALANCED.to_vec() } else { vec![] };
            Reader::start(wish, balanced, gateways.clone(), random.u64(..), end.clone())
        });
        let readers = readers.collect();
        let stage =
            Stage { server: server.into(), url, gateways, readers, stop: Mutex::default(), done: Mutex::default() };
        Drill {
            stage: Arc::new(stage),
            random,
            round: 0,
            end,
            merge: version >= 150_000,
            decoded_until: "0/0".to_owned(),
            head: 0,
            totals: Totals::default(),
        }
    }

    /// Waits until every reader follows, so that the first write is told to all.
    async fn assemble(&mut self) -> Vec<String> {
        let client = session(&self.stage.url).await;
        let (_, late) = self.rest(&client, &mut Vec::new()).await;
        // What was written until here they have from their snapshots.
        self.gather(&client, &mut Evidence::default()).await;
        for reader in &self.stage.readers {
            reader.story.lock().unwrap().turn_the_page();
        }
        Vec::from_iter(late)
    }

    /// One round: breaks things while writers write, mends them, and asks the oracles.
    async fn round(&mut self, arguments: &Arguments) -> Vec<String> {
        self.round += 1;
        let began = Instant::now();
        let stop = CancellationToken::new();
        *self.stage.stop.lock().unwrap() = stop.clone();
        let writer_url = format!("{}?application_name={}", self.stage.url, writers::NAME);
        let desk = Arc::new(Desk { url: writer_url, clock: AtomicU64::new(1), stop: stop.clone(), merge: self.merge });
        let writing: Vec<_> =
            (0..arguments.writers).map(|_| tokio::spawn(writers::write(desk.clone(), self.random.fork()))).collect();
        let sabotage = faults::unleash(&self.stage, &mut self.random);
        let sampling = tokio::spawn(bounds::watch(self.stage.url.clone(), self.stage.gateways.clone(), stop.clone()));
        tokio::time::sleep(Duration::from_secs(arguments.round_seconds)).await;
        stop.cancel();
        for saboteur in sabotage {
            saboteur.await.expect("a saboteur mends what it broke");
        }
        let mut evidence = Evidence::default();
        let mut violations = Vec::new();
        for writer in writing {
            let notes = writer.await.expect("a writer comes home");
            self.totals.failed += notes.failed;
            violations.extend(notes.violations);
            evidence.ledger.extend(notes.ledger);
        }
        let samples = sampling.await.expect("the sampler comes home");
        violations.extend(samples.violations);
        for (what, value) in samples.most {
            let most = self.totals.most.entry(what).or_default();
            *most = most.max(value);
        }

        let client = session(&self.stage.url).await;
        let (rested, late) = self.rest(&client, &mut evidence.ledger).await;
        violations.extend(late);
        self.gather(&client, &mut evidence).await;
        let settled = self.settle(&evidence).await;
        violations.extend(gather::leaks(&client).await);
        let stage = self.stage.clone();
        let stories: Vec<_> = stage.readers.iter().map(|reader| reader.story.lock().unwrap()).collect();
        evidence.readers = stories
            .iter()
            .zip(&stage.readers)
            .map(|(story, reader)| oracles::Reader { story, wants: reader.wants })
            .collect();
        let verdict = judge(&evidence);
        violations.extend(verdict.findings);
        self.totals.commits += verdict.commits as u64;
        self.totals.changes += verdict.changes;
        self.totals.untold += verdict.untold;
        self.totals.unknown += evidence.ledger.iter().filter(|entry| entry.outcome == Outcome::Unknown).count() as u64;
        println!(
            "round {:3}: {:5.1} s, {:6} commits, {:7} changes, {:4} in doubt, at rest after {:.1} s, altered tables {:.1} s later",
            self.round,
            began.elapsed().as_secs_f64(),
            verdict.commits,
            verdict.changes,
            evidence.ledger.iter().filter(|entry| entry.outcome == Outcome::Unknown).count(),
            rested.as_secs_f64(),
            settled.as_secs_f64(),
        );
        drop(evidence);
        for mut story in stories {
            story.turn_the_page();
        }
        violations
    }

    /// Writes this round's marker and waits until every reader has it, and nothing else.
    async fn rest(&self, client: &Client, ledger: &mut Vec<Entry>) -> (Duration, Option<String>) {
        let began = Instant::now();
        let insert = format!("insert into marker values ({}) returning pg_current_xact_id()::text", self.round);
        let tx = client.query_one(&insert, &[]).await.unwrap().get::<_, &str>(0).parse().unwrap();
        // After all others.
        ledger.push(Entry { tx, issued: u64::MAX - 1, returned: u64::MAX, outcome: Outcome::Committed });
        let marker = format!("{{\"round\":{}}}", self.round);
        // Who does not ask for markers has come as far as the others, by its cursor.
        let mut far = i64::MAX;
        loop {
            let lagging: Vec<String> = self
                .stage
                .readers
                .iter()
                .filter_map(|reader| {
                    let story = reader.story.lock().unwrap();
                    let position = story.cursor.as_deref().map_or(-1, position_of);
                    let marked = story.tables.get("public.marker").is_some_and(|rows| rows.contains_key(&*marker));
                    if marked {
                        far = far.min(position);
                    }
                    let there = marked || (story.takes.is_some() && position >= far);
                    let told = format!("{} stands at {:?}", story.name, story.cursor);
                    (!(there && story.ready && story.cursor.is_some())).then_some(told)
                })
                .collect();
            if lagging.is_empty() {
                return (began.elapsed(), None);
            }
            if began.elapsed() > REST_PATIENCE {
                let late = format!("not told within {REST_PATIENCE:?} of the last commit: {}", lagging.join(", "));
                return (began.elapsed(), Some(late));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until those who follow the altered tables have what is there: they are told within a second or two, by a `reset`. What is
    /// wrong then is for the oracles to find.
    async fn settle(&self, evidence: &Evidence<'_>) -> Duration {
        let began = Instant::now();
        let behind = || {
            let readers = self.stage.readers.iter();
            let mut altered = readers.filter(|reader| reader.wants.is_some_and(|wants| wants.contains(&RESTLESS[0])));
            altered.any(|reader| {
                let story = reader.story.lock().unwrap();
                let none = Rows::new();
                let copy = |table: &String| story.tables.get(table).unwrap_or(&none);
                !story.ready || evidence.restless.iter().any(|(table, rows)| copy(table) != rows)
            })
        };
        while behind() && began.elapsed() < REST_PATIENCE {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        began.elapsed()
    }

    /// What PostgreSQL holds, by its own account.
    async fn gather(&mut self, client: &Client, evidence: &mut Evidence<'_>) {
        evidence.tables = gather::rows(client, &WATCHED).await;
        evidence.restless =
            gather::rows(client, &RESTLESS.iter().map(|table| table.trim_start_matches("public.")).collect::<Vec<_>>())
                .await;
        (evidence.decoded, self.decoded_until) = gather::decoded(client, &self.decoded_until, RESTLESS).await;
        evidence.numbered = gather::numbered(client).await;
        let head = evidence.numbered.keys().next_back().copied().unwrap_or(self.head);
        evidence.span = (std::mem::replace(&mut self.head, head), head);
    }

    fn report(&self, took: Duration) {
        self.end.cancel();
        let totals = &self.totals;
        println!("in {:.0} s, {} rounds:", took.as_secs_f64(), self.round);
        println!("  {} commits with {} changes", totals.commits, totals.changes);
        println!("  {} commits were forgotten before anybody who asked for all had read them", totals.untold);
        println!("  {} transactions failed as PostgreSQL has it, {} were left in doubt", totals.failed, totals.unknown);
        for (what, count) in self.stage.done.lock().unwrap().iter() {
            println!("  {count} × {what}");
        }
        for reader in &self.stage.readers {
            let story = reader.story.lock().unwrap();
            let (connections, resets) = (*reader.connections.lock().unwrap(), &story.resets);
            println!(
                "  {} was told {} changes over {connections} connections, resets {resets:?}",
                story.name, story.changes
            );
        }
        for (what, value) in &totals.most {
            println!("  at most: {what}: {value}");
        }
    }
}

async fn session(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("PostgreSQL is up");
    tokio::spawn(connection);
    client
}
