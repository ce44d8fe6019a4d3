//! The siege: attacks from outside on a gateway, while the subscribers, writers, health checks and visitors beside them are timed.
//!
//! ```text
//! cargo test --release --test siege -- --seconds 600
//! cargo test --release --test siege -- --only heavy-like --seconds 30 --gateway target/release/switchboard
//! ```
//!
//! First the innocents are timed alone. Then each attack has a gateway of its own and a share of the time: the attack, a rest, and the
//! attack once more while the gateway is told to stop. The innocents go from gateway to gateway with their cursors.
//!
//! It prints one table, and exits with 1 if an innocent lost, doubled or reordered a change or was not answered at all, if a bound of
//! memory or connections was broken, if a refusal did not come or said nothing, or if the gateway died or did not stop. Times are told,
//! and count with `--strict` only.

#![allow(clippy::unwrap_used)]

mod attacks;
mod clients;
mod database;
mod gateway;
mod innocents;
mod report;
mod stage;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

use crate::attacks::{ATTACKS, Attack, Field};
use crate::database::{Database, connect};
use crate::gateway::{Launcher, Settings};
use crate::innocents::Innocents;
use crate::report::{MEMORY_AFTER_BYTES_MAX, Outcome, Times};
use crate::stage::Stage;
use crate::watch::Watch;

/// Attacks a gateway from outside, and checks that nobody else is harmed.
#[derive(Parser)]
struct Arguments {
    /// How long the timing takes, in seconds, all attacks together; starting, settling and stopping comes on top
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Only the attacks whose names begin like this; may be repeated
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Draw the order of the attacks from this number; without it they come as --list tells them
    #[arg(long)]
    seed: Option<u64>,
    /// Fail on times too: a p99 of more than 1.5 times what it was, 2 times in storms
    #[arg(long)]
    strict: bool,
    /// The gateway's program, if not the one that was built with this test
    #[arg(long, env = "SIEGE_GATEWAY", value_name = "PATH", default_value = env!("CARGO_BIN_EXE_switchboard"))]
    gateway: PathBuf,
    /// A setting of the gateway's that wins over those of the attacks, as NAME=VALUE: subscribers-max=100000; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// Show what the gateways log; without it their logs are thrown away
    #[arg(long)]
    log: bool,
    /// Kill a gateway that takes more memory than this, in MiB, for the machine's sake
    #[arg(long, default_value_t = 3072)]
    memory_mib_max: u64,
    /// Say which attacks there are, and end
    #[arg(long)]
    list: bool,
}

/// Which part of the time the innocents are timed alone: one in so many.
const CALM_PART: u32 = 8;
/// Of an attack's share, how much comes behind the attack: one part in so many.
const AFTER_PART: u32 = 4;
/// How long a gateway runs before its memory is looked at.
const WARM_UP: Duration = Duration::from_millis(300);
/// How long an attack may take until it has come to what it is about.
const LANDING_PATIENCE: Duration = Duration::from_secs(60);
/// How long memory may take to come back: as long as pages of the log are kept after their last use, and some more.
const MEMORY_PATIENCE: Duration = Duration::from_secs(8);
/// How often to look whether it has.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long an attack is under way again when the gateway is told to stop, at most.
const STOP_HEAD_START: Duration = Duration::from_millis(1_000);
/// The same where there is little time: one part of the attack's share in so many.
const STOP_PART: u32 = 4;

#[tokio::main]
async fn main() -> ExitCode {
    // However it ends, what is dropped takes the gateway and PostgreSQL along.
    tokio::select! {
        code = besiege(Arguments::parse()) => code,
        () = interrupted() => ExitCode::FAILURE,
    }
}

/// Waits until somebody has the siege stop early.
async fn interrupted() {
    let mut terminate = signal(SignalKind::terminate()).expect("signals can be handled");
    let mut interrupt = signal(SignalKind::interrupt()).expect("signals can be handled");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

async fn besiege(arguments: Arguments) -> ExitCode {
    let mut attacks = match chosen(&arguments.only) {
        Ok(attacks) => attacks,
        Err(mistake) => {
            eprintln!("siege: {mistake}");
            return ExitCode::FAILURE;
        }
    };
    if arguments.list {
        attacks.iter().for_each(|attack| println!("{:20} {}", attack.name, attack.what));
        return ExitCode::SUCCESS;
    }
    if let Some(seed) = arguments.seed {
        fastrand::Rng::with_seed(seed).shuffle(&mut attacks);
    }
    println!("siege: --seconds {}, {}", arguments.seconds, arguments.gateway.display());
    let mut siege = Siege::prepare(&arguments).await;

    let time = Duration::from_secs(arguments.seconds);
    let calm = siege.time_alone(time / CALM_PART).await;
    let share = (time - time / CALM_PART) / attacks.len() as u32;
    let mut outcomes = Vec::new();
    for attack in attacks {
        let outcome = siege.make(attack, share).await;
        tell(&outcome, &calm, arguments.strict);
        outcomes.push(outcome);
    }
    report::print(&calm, &outcomes);
    let failed = outcomes.iter().filter(|outcome| !outcome.violations(&calm, arguments.strict).is_empty());
    let failed: Vec<&str> = failed.map(|outcome| outcome.attack.name).collect();
    if failed.is_empty() {
        println!("siege: every attack was withstood");
        return ExitCode::SUCCESS;
    }
    println!("siege: FAILED: {}", failed.join(", "));
    ExitCode::FAILURE
}

/// The attacks whose names begin with one of these; all without any.
fn chosen(only: &[String]) -> Result<Vec<&'static Attack>, String> {
    let begins = |name: &String, attack: &Attack| attack.name.starts_with(name.as_str());
    if let Some(unknown) = only.iter().find(|name| !ATTACKS.iter().any(|attack| begins(name, attack))) {
        let names: Vec<&str> = ATTACKS.iter().map(|attack| attack.name).collect();
        return Err(format!("--only: no attack is called {unknown}; there are {}", names.join(", ")));
    }
    let wanted = |attack: &&Attack| only.is_empty() || only.iter().any(|name| begins(name, attack));
    Ok(ATTACKS.iter().filter(wanted).collect())
}

/// Says how an attack went as soon as that is known.
fn tell(outcome: &Outcome, calm: &Times, strict: bool) {
    println!("{}: {}", outcome.attack.name, outcome.attack.what);
    for remark in outcome.remarks() {
        println!("    {remark}");
    }
    for violation in outcome.violations(calm, strict) {
        println!("    VIOLATION  {violation}");
    }
}

struct Siege {
    stage: Arc<Stage>,
    innocents: Innocents,
    session: Client,
    _database: Database,
}

impl Siege {
    async fn prepare(arguments: &Arguments) -> Siege {
        let overrides = arguments.set.iter().map(|setting| {
            let (name, value) = setting.split_once('=').unwrap_or_else(|| panic!("--set {setting}: give NAME=VALUE"));
            (name.to_owned(), value.to_owned())
        });
        let overrides = overrides.collect();
        let database = Database::start().await;
        let watch = Watch::start(connect(&database.url, "siege").await, arguments.memory_mib_max << 20);
        let launcher = Launcher {
            program: arguments.gateway.clone(),
            database_url: database.url.clone(),
            overrides,
            shows_log: arguments.log,
        };
        let stage = Arc::new(Stage::new(launcher, watch, database.small_queue));
        stage.start(Settings::default()).await;
        let innocents = Innocents::start(&database.url, stage.whereabouts()).await;
        let session = connect(&database.url, "siege").await;
        Siege { stage, innocents, session, _database: database }
    }

    /// Times the innocents without an attack.
    async fn time_alone(&mut self, time: Duration) -> Times {
        sleep(WARM_UP).await;
        self.innocents.take_times();
        sleep(time).await;
        self.innocents.have_times().await;
        self.innocents.settle().await;
        let calm = self.innocents.take_times();
        println!("alone: {}", calm.told());
        let stopped = self.stage.stop().await;
        assert!(stopped.is_ok(), "a gateway without attackers stops: {stopped:?}");
        let violations = self.innocents.take_violations();
        assert!(violations.is_empty(), "the innocents have to be well without an attack: {violations:?}");
        calm
    }

    /// Makes one attack on a gateway of its own.
    async fn make(&mut self, attack: &'static Attack, share: Duration) -> Outcome {
        let Siege { stage, innocents, session, .. } = self;
        session.batch_execute(database::RESTORE).await.expect("the attackers' table is as it was");
        stage.start(attack.settings).await;
        innocents.ready().await;
        sleep(WARM_UP).await;
        innocents.take_times();
        let usage_before = stage.watch.usage();
        stage.watch.begin();

        let field = Field::new(stage.clone(), attack, share);
        attack_until(&field, attack, async {
            sleep(share - share / AFTER_PART - share / STOP_PART).await;
            if timeout(LANDING_PATIENCE, field.has_landed()).await.is_err() {
                field.violation(format!("the attack did not come to what it is about within {LANDING_PATIENCE:?}"));
            }
        })
        .await;
        Siege::settle(stage, innocents).await;
        let (during, seen) = (innocents.take_times(), stage.watch.seen());

        sleep(share / AFTER_PART).await;
        Siege::settle(stage, innocents).await;
        let after = innocents.take_times();
        let usage_after = Siege::rest(stage, usage_before.memory_bytes).await;
        let mut violations = Vec::from_iter(stage.ended().await);

        let again = Field::new(stage.clone(), attack, share);
        let stopped = attack_until(&again, attack, async {
            sleep(STOP_HEAD_START.min(share / STOP_PART)).await;
            stage.stop().await
        })
        .await;
        violations.extend(innocents.take_violations());
        Outcome { attack, during, after, usage_before, usage_after, seen, notes: field.notes(), stopped, violations }
    }

    /// Waits until the innocents have what was committed, unless there is no gateway any more to tell them.
    async fn settle(stage: &Stage, innocents: &Innocents) {
        if stage.ended().await.is_none() {
            innocents.settle().await;
        }
    }

    /// Waits until memory has come back, or no longer. What the gateway uses then.
    async fn rest(stage: &Stage, before_bytes: u64) -> gateway::Usage {
        let began = Instant::now();
        loop {
            let usage = stage.watch.usage();
            let back = usage.memory_bytes <= before_bytes + MEMORY_AFTER_BYTES_MAX;
            if back || began.elapsed() > MEMORY_PATIENCE {
                return usage;
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

/// Attacks until this is over.
async fn attack_until<T>(field: &Field, attack: &Attack, over: impl Future<Output = T>) -> T {
    let attacking = async {
        (attack.run)(field).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        over = over => over,
        () = attacking => unreachable!("an attack goes on until it is over"),
    }
}
