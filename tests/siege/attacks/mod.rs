//! The attacks: one table, and what each of them may use. One file for each theme.

mod asking;
mod crowds;
mod filters;
mod readers;
mod sizes;
mod storms;
mod strangers;
mod subscriptions;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use futures_util::{StreamExt, stream};
use tokio::sync::watch;

use crate::database::connect;
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

/// No refusal has to come.
const NOTHING: &[&str] = &[];

/// The gateway as it is started without an attack's wishes.
const PLAIN: Settings = Settings { flags: &[], files_max: None };
/// Few places, so that they are taken soon.
const FEW_PLACES: Settings =
    Settings { flags: &[("subscribers-max", "300"), ("requests-max", "100")], files_max: None };
/// Fewer files than connections may come.
const FEW_FILES: Settings = Settings { flags: &[], files_max: Some(300) };
/// Clients that take nothing are given up soon.
const IMPATIENT: Settings = Settings { flags: &[("write-timeout-ms", "500")], files_max: None };
/// Disk for some of the snapshots that an attack asks for.
const LITTLE_DISK: Settings = Settings { flags: &[("snapshots-bytes-max", "33554432")], files_max: None };

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
        name: "held-requests",
        what: "more requests that wait for a change than subscribers may be",
        settings: FEW_PLACES,
        expects: &["--subscribers-max"],
        memory_bytes_max: 64 * MIB,
        factor: ORDINARY,
        run: |field| Box::pin(crowds::held_requests(field)),
    },
    Attack {
        name: "idle-connections",
        what: "more connections on which nothing is said than there are places",
        settings: FEW_PLACES,
        expects: NOTHING,
        memory_bytes_max: 64 * MIB,
        factor: ORDINARY,
        run: |field| Box::pin(crowds::idle_connections(field)),
    },
    Attack {
        name: "unfinished-heads",
        what: "more requests whose heads never end than there are places",
        settings: FEW_PLACES,
        expects: NOTHING,
        memory_bytes_max: 64 * MIB,
        factor: ORDINARY,
        run: |field| Box::pin(crowds::unfinished_heads(field)),
    },
    Attack {
        name: "file-limit",
        what: "more connections of all kinds than the gateway may have files open",
        settings: FEW_FILES,
        expects: NOTHING,
        memory_bytes_max: 64 * MIB,
        factor: ORDINARY,
        run: |field| Box::pin(crowds::file_limit(field)),
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
    Attack {
        name: "heavy-match",
        what: "100 filters of 8 regular expressions each, and updates of a row with a large text",
        settings: PLAIN,
        expects: filters::TOO_HEAVY,
        memory_bytes_max: 128 * MIB,
        factor: ORDINARY,
        run: |field| Box::pin(filters::heavy_match(field)),
    },
    Attack {
        name: "many-stars",
        what: "100 patterns of 300 stars each, and updates of a row with a large text",
        settings: PLAIN,
        expects: NOTHING,
        memory_bytes_max: 128 * MIB,
        factor: ORDINARY,
        run: |field| Box::pin(filters::many_stars(field)),
    },
    Attack {
        name: "exponents",
        what: "filters with many short numbers that are 131,072 digits long when written out",
        settings: PLAIN,
        expects: filters::TOO_LONG,
        memory_bytes_max: 128 * MIB,
        factor: ORDINARY,
        run: |field| Box::pin(filters::exponents(field)),
    },
    Attack {
        name: "wrong-literals",
        what: "literals that PostgreSQL does not take, another one each time",
        settings: PLAIN,
        expects: &["PostgreSQL refuses"],
        memory_bytes_max: 64 * MIB,
        factor: ORDINARY,
        run: |field| Box::pin(filters::wrong_literals(field)),
    },
    Attack {
        name: "own-filters",
        what: "thousands of subscriptions, no two with the same filter, made at once, again and again",
        settings: PLAIN,
        expects: NOTHING,
        memory_bytes_max: 192 * MIB,
        factor: STORM,
        run: |field| Box::pin(subscriptions::own_filters(field)),
    },
    Attack {
        name: "subscribe-loop",
        what: "subscribes and unsubscribes in a loop without waiting for answers",
        settings: PLAIN,
        expects: NOTHING,
        memory_bytes_max: 64 * MIB,
        factor: ORDINARY,
        run: |field| Box::pin(subscriptions::subscribe_loop(field)),
    },
    Attack {
        name: "message-flood",
        what: "messages that have to be answered, from clients that do not read the answers",
        settings: IMPATIENT,
        expects: NOTHING,
        memory_bytes_max: 64 * MIB,
        factor: ORDINARY,
        run: |field| Box::pin(subscriptions::message_flood(field)),
    },
    Attack {
        name: "frozen",
        what: "clients with 100 subscriptions that read nothing, while a large row is updated",
        settings: IMPATIENT,
        expects: NOTHING,
        memory_bytes_max: 192 * MIB,
        factor: ORDINARY,
        run: |field| Box::pin(subscriptions::frozen(field)),
    },
    Attack {
        name: "slow-snapshots",
        what: "different snapshots of a large table, taken slowly, more than there is disk for",
        settings: LITTLE_DISK,
        expects: &["--snapshots-bytes-max"],
        memory_bytes_max: 96 * MIB,
        factor: ORDINARY,
        run: |field| Box::pin(readers::slow_snapshots(field)),
    },
    Attack {
        name: "resumes",
        what: "clients that read megabytes of the log from the same old cursor, again and again",
        settings: PLAIN,
        expects: NOTHING,
        memory_bytes_max: 192 * MIB,
        factor: STORM,
        run: |field| Box::pin(readers::resumes(field)),
    },
    Attack {
        name: "restart",
        what: "the gateway restarts, and clients that are many commits behind come back at once",
        settings: PLAIN,
        expects: NOTHING,
        memory_bytes_max: 256 * MIB,
        factor: STORM,
        run: |field| Box::pin(storms::restart(field)),
    },
    Attack {
        name: "foreign-origins",
        what: "a web page of an origin that is not allowed",
        settings: PLAIN,
        expects: &["--origins"],
        memory_bytes_max: 64 * MIB,
        factor: ORDINARY,
        run: |field| Box::pin(asking::foreign_origins(field)),
    },
    Attack {
        name: "foreign-hosts",
        what: "a web page whose name was made to lead here",
        settings: PLAIN,
        expects: &["--hosts"],
        memory_bytes_max: 64 * MIB,
        factor: ORDINARY,
        run: |field| Box::pin(asking::foreign_hosts(field)),
    },
    Attack {
        name: "images",
        what: "a web page of another site that loads rows as images",
        settings: PLAIN,
        expects: &["--origins"],
        memory_bytes_max: 64 * MIB,
        factor: ORDINARY,
        run: |field| Box::pin(asking::images(field)),
    },
    Attack {
        name: "many-pages",
        what: "thousands of selections, and one update of 3,000 rows that each of them sends",
        settings: PLAIN,
        expects: NOTHING,
        memory_bytes_max: 256 * MIB,
        factor: STORM,
        run: |field| Box::pin(sizes::many_pages(field)),
    },
    Attack {
        name: "large-row",
        what: "60 selections, and updates of one row with a very large value that each of them sends",
        settings: PLAIN,
        expects: NOTHING,
        memory_bytes_max: 512 * MIB,
        factor: STORM,
        run: |field| Box::pin(sizes::large_row(field)),
    },
    Attack {
        name: "held-locks",
        what: "a role without rights takes the advisory locks of the gateway",
        settings: PLAIN,
        expects: NOTHING,
        memory_bytes_max: 64 * MIB,
        factor: ORDINARY,
        run: |field| Box::pin(strangers::held_locks(field)),
    },
    Attack {
        name: "own-xid",
        what: "transactions that say themselves which their first change is",
        settings: PLAIN,
        expects: NOTHING,
        memory_bytes_max: 64 * MIB,
        factor: ORDINARY,
        run: |field| Box::pin(strangers::own_xid(field)),
    },
    Attack {
        name: "full-queue",
        what: "a role without rights fills the queue of notifications",
        settings: PLAIN,
        expects: NOTHING,
        memory_bytes_max: 64 * MIB,
        factor: ORDINARY,
        run: |field| Box::pin(strangers::full_queue(field)),
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
    /// The attack's share of the time.
    pub share: Duration,
    attack: &'static Attack,
    notes: Mutex<Notes>,
    landed: watch::Sender<bool>,
}

impl Field {
    /// A field for this attack, which has this share of the time.
    pub fn new(stage: Arc<Stage>, attack: &'static Attack, share: Duration) -> Field {
        Field { stage, attack, share, notes: Mutex::default(), landed: watch::Sender::new(false) }
    }

    /// The address of the gateway that is attacked.
    pub fn address(&self) -> SocketAddr {
        self.stage.address()
    }

    /// How the gateway was started.
    pub fn settings(&self) -> Settings {
        self.attack.settings
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

/// Commits so many updates of the attackers' table, with so many bytes of text each.
async fn write_commits(field: &Field, count: usize, bytes: usize) {
    let session = connect(&field.stage.database_url, "attacker").await;
    let sql = format!(
        "do $$ begin for i in 1..{count} loop
             update prey set body = repeat('x', {bytes}) || i where id = 1; commit;
         end loop; end $$"
    );
    session.batch_execute(&sql).await.expect("commits of the attacker's");
}
