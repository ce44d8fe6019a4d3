//! The attacks: one table, and what each of them may use. One file for each theme.

mod crowds;
mod filters;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use futures_util::{StreamExt, stream};
use tokio::sync::watch;

use crate::gateway::Settings;
use crate::stage::Stage;

/// By how much the innocents' p99 may grow during an ordinary attack.
const ORDINARY: f64 = 1.5;
/// By how much it may grow while many clients come at once.
const STORM: f64 = 2.0;
const MIB: u64 = 1 << 20;
/// The share of the time from which an attack takes its whole size.
const WHOLE_SIZE_FROM: Duration = Duration::from_secs(10);
/// How many connections an attacker opens at the same time: no more than the gateway's backlog holds.
const AT_ONCE: usize = 64;

/// One way to harm a gateway, and what must hold meanwhile.
pub struct Attack {
    pub name: &'static str,
    /// What it does, in one sentence.
    pub what: &'static str,
    /// How the gateway is started.
    pub settings: Settings,
    /// At least one refusal has to say one of these; none if the attack is to be withstood without refusals.
    pub expects: &'static [&'static str],
    /// By how much the gateway's memory may grow meanwhile.
    pub memory_bytes_max: u64,
    /// By how much the innocents' p99 may grow meanwhile.
    pub factor: f64,
    /// Attacks until it is dropped.
    pub run: for<'a> fn(&'a Field) -> LocalBoxFuture<'a, ()>,
}

/// The gateway as it is started without an attack's wishes.
const PLAIN: Settings = Settings { flags: &[], files_max: None };
/// Few places, so that they are taken soon.
const FEW_PLACES: Settings =
    Settings { flags: &[("subscribers-max", "300"), ("requests-max", "100")], files_max: None };

/// All attacks, in the order in which they are made.
pub const ATTACKS: &[Attack] = &[
    Attack {
        name: "event-streams",
        what: "more event streams than subscribers may be",
        settings: FEW_PLACES,
        expects: &["--subscribers-max"],
        memory_bytes_max: 64 * MIB,
        factor: ORDINARY,
        run: |field| Box::pin(crowds::event_streams(field)),
    },
    Attack {
        name: "heavy-like",
        what: "90 filters of 200 patterns with many stars each, and updates of a row with a large text",
        settings: PLAIN,
        expects: filters::TOO_HEAVY,
        memory_bytes_max: 128 * MIB,
        factor: ORDINARY,
        run: |field| Box::pin(filters::heavy_like(field)),
    },
];

/// What an attack did and was told.
#[derive(Clone, Default)]
pub struct Notes {
    /// By code: how often, and what the first one said.
    pub refusals: BTreeMap<String, Refusal>,
    /// How many of them said what was expected.
    pub expected: u64,
    /// Worth a line in the report.
    pub remarks: Vec<String>,
    pub violations: Vec<String>,
}

/// Refusals with the same code.
#[derive(Clone, Default)]
pub struct Refusal {
    pub count: u64,
    pub message: String,
}

/// Where an attack takes place: the gateway and the database, its size, and a place for its notes.
pub struct Field {
    pub stage: Arc<Stage>,
    pub seed: u64,
    attack: &'static Attack,
    share: Duration,
    notes: Mutex<Notes>,
    landed: watch::Sender<bool>,
}

impl Field {
    /// A field for this attack, which has this share of the time.
    pub fn new(stage: Arc<Stage>, attack: &'static Attack, share: Duration, seed: u64) -> Field {
        Field { stage, seed, attack, share, notes: Mutex::default(), landed: watch::Sender::new(false) }
    }

    /// The address of the gateway that is attacked.
    pub fn address(&self) -> SocketAddr {
        self.stage.address()
    }

    /// How many of something: few where there is little time.
    pub fn size(&self, short: usize, whole: usize) -> usize {
        if self.share >= WHOLE_SIZE_FROM { whole } else { short }
    }

    /// The gateway refused something.
    pub fn refused(&self, code: String, message: String) {
        let mut notes = self.notes.lock().unwrap();
        notes.expected += u64::from(self.attack.expects.iter().any(|part| message.contains(part)));
        let refusal = notes.refusals.entry(code).or_insert_with(|| Refusal { count: 0, message });
        refusal.count += 1;
    }

    /// The gateway closed a WebSocket; one that stops is no refusal.
    pub fn closed(&self, code: u16, reason: &str) {
        const GOODBYES: [u16; 2] = [1000, 1001];
        if !GOODBYES.contains(&code) {
            self.refused(format!("close {code}"), reason.to_owned());
        }
    }

    /// Something that the report should tell.
    pub fn remark(&self, remark: String) {
        self.notes.lock().unwrap().remarks.push(remark);
    }

    /// Something that must not be.
    pub fn violation(&self, what: String) {
        self.notes.lock().unwrap().violations.push(what);
    }

    /// What was noted until now.
    pub fn notes(&self) -> Notes {
        self.notes.lock().unwrap().clone()
    }

    /// The attack has come to what it is about; it need not be waited for any longer.
    pub fn landed(&self) {
        self.landed.send_replace(true);
    }

    /// Waits until it has landed.
    pub async fn has_landed(&self) {
        // The sender is in here.
        let _ = self.landed.subscribe().wait_for(|landed| *landed).await;
    }

    /// Has so many attackers come, some at a time; what they hold.
    pub async fn crowd<T>(&self, count: usize, attacker: impl AsyncFn(usize) -> Option<T>) -> Vec<T> {
        let attacker = &attacker;
        let attackers = stream::iter((0..count).map(async |n| attacker(n).await)).buffer_unordered(AT_ONCE);
        attackers.filter_map(std::future::ready).collect().await
    }
}
