//! What the gateway says of itself: one call per event both logs and counts, so that the two cannot drift.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::change::Part;
use crate::hub::Hub;
use crate::log::Extent;
use crate::protocol::Close;

/// How often a database that stays away is mentioned again.
const REMIND_EVERY: Duration = Duration::from_secs(60);

/// Counters and gauges, and the log lines that belong to them.
pub struct Metrics {
    registry: Registry,
    subscribers: Gauge,
    subscribers_opened: Counter,
    subscribers_closed: Family<CloseLabel, Counter>,
    commits: Counter,
    changes: Counter,
    position: Gauge,
    log_oldest_position: Gauge,
    log_newest_position: Gauge,
    log_commits: Gauge,
    log_bytes: Gauge,
    database_up: Gauge,
    leads: Gauge,
    stand_ins: Counter,
    depositions: Counter,
    commits_forgotten: Counter,
    history_bytes: Gauge<i64, AtomicI64>,
    kinds: Gauge,
    sent_bytes: Counter<u64, AtomicU64>,
    reminded: Mutex<Option<Instant>>,
    refused: AtomicBool,
    doorbell: Mutex<Option<Instant>>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct CloseLabel {
    code: u16,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let mut metrics = Metrics {
            registry: Registry::with_prefix("switchboard"),
            subscribers: Gauge::default(),
            subscribers_opened: Counter::default(),
            subscribers_closed: Family::default(),
            commits: Counter::default(),
            changes: Counter::default(),
            position: Gauge::default(),
            log_oldest_position: Gauge::default(),
            log_newest_position: Gauge::default(),
            log_commits: Gauge::default(),
            log_bytes: Gauge::default(),
            database_up: Gauge::default(),
            leads: Gauge::default(),
            stand_ins: Counter::default(),
            depositions: Counter::default(),
            commits_forgotten: Counter::default(),
            history_bytes: Gauge::default(),
            kinds: Gauge::default(),
            sent_bytes: Counter::default(),
            reminded: Mutex::default(),
            refused: AtomicBool::default(),
            doorbell: Mutex::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("subscribers", "Subscribers connected now", self.subscribers.clone());
        registry.register("subscribers_opened", "Subscribers that came", self.subscribers_opened.clone());
        registry.register(
            "subscribers_closed",
            "Subscribers that went, by close code",
            self.subscribers_closed.clone(),
        );
        registry.register("commits", "Commits published", self.commits.clone());
        registry.register("changes", "Changes published", self.changes.clone());
        registry.register("position", "The newest position published", self.position.clone());
        registry.register("log_oldest_position", "The oldest position in the log", self.log_oldest_position.clone());
        registry.register("log_newest_position", "The newest position in the log", self.log_newest_position.clone());
        registry.register("log_commits", "Commits that the log holds", self.log_commits.clone());
        registry.register_with_unit("log", "What the log takes of the database", Unit::Bytes, self.log_bytes.clone());
        registry.register("database_up", "Whether the feed has its PostgreSQL", self.database_up.clone());
        registry.register("leads", "Whether this gateway numbers for all", self.leads.clone());
        registry.register(
            "stand_ins",
            "How often this gateway numbered what the leader should have",
            self.stand_ins.clone(),
        );
        registry.register(
            "depositions",
            "How often this gateway ended the session of a leader that was not heard any more",
            self.depositions.clone(),
        );
        registry.register("commits_forgotten", "Commits that retention forgot", self.commits_forgotten.clone());
        registry.register_with_unit("history", "Frames kept for subscribers", Unit::Bytes, self.history_bytes.clone());
        registry.register("kinds", "Kinds of subscription that are followed", self.kinds.clone());
        registry.register_with_unit("sent", "Written to subscribers", Unit::Bytes, self.sent_bytes.clone());
    }

    /// Everything in the text format of Prometheus.
    pub fn text(&self, hub: &Hub) -> String {
        let (bytes, kinds) = hub.size();
        self.history_bytes.set(bytes as i64);
        self.kinds.set(kinds as i64);
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a string takes all text");
        text
    }

    /// A subscriber came.
    pub fn subscriber_opened(&self) {
        tracing::debug!("a subscriber came");
        self.subscribers.inc();
        self.subscribers_opened.inc();
    }

    /// A subscriber went.
    pub fn subscriber_closed(&self, close: Close) {
        let (code, reason) = close.code_and_reason();
        tracing::debug!("a subscriber went: {code} {reason}");
        self.subscribers.dec();
        self.subscribers_closed.get_or_create(&CloseLabel { code }).inc();
    }

    /// Bytes went to a subscriber's socket.
    pub fn sent(&self, bytes: usize) {
        self.sent_bytes.inc_by(bytes as u64);
    }

    /// The feed brought parts of commits to the hub.
    pub fn published(&self, parts: &[Part]) {
        let whole = || parts.iter().filter(|part| part.last);
        self.commits.inc_by(whole().count() as u64);
        self.changes.inc_by(parts.iter().map(|part| part.changes.len() as u64).sum());
        if let Some(part) = whole().next_back() {
            self.position.set(part.cursor.position);
        }
    }

    /// This gateway leads, or follows.
    pub fn leads(&self, leads: bool) {
        if self.leads.set(i64::from(leads)) != i64::from(leads) {
            tracing::info!("this gateway {}", if leads { "leads" } else { "follows" });
        }
    }

    /// This gateway numbered what the leader should have.
    pub fn stood_in(&self) {
        tracing::debug!("stood in for the leader");
        self.stand_ins.inc();
    }

    /// This gateway ended the session of a leader that was not heard any more.
    pub fn deposed(&self) {
        tracing::warn!("the leading gateway was not heard any more: its session was ended");
        self.depositions.inc();
    }

    /// It may not do so. Said once.
    pub fn may_not_depose(&self, why: &str) {
        if !self.refused.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the leading gateway is not heard any more, and its session could not be ended: {why}; changes come late \
                 until it is gone: stop that gateway, and let all gateways use one role"
            );
        }
    }

    /// The feed looked where the log begins and ends.
    pub fn looked(&self, extent: &Extent) {
        self.log_oldest_position.set(extent.oldest.position);
        self.log_newest_position.set(extent.head.position);
        self.log_commits.set(extent.commits());
        self.log_bytes.set(extent.bytes);
    }

    /// Retention forgot commits.
    pub fn forgotten(&self, commits: i64) {
        self.commits_forgotten.inc_by(commits.unsigned_abs());
    }

    /// The feed has its PostgreSQL. `deaf`: why notifications do not arrive, if they do not. `rings`: whether writers ring.
    pub fn database_found(&self, deaf: Option<&str>, rings: bool) {
        self.database_up.set(1);
        *self.reminded.lock().unwrap_or_else(PoisonError::into_inner) = None;
        tracing::info!("connected to PostgreSQL");
        if let Some(why) = deaf {
            tracing::warn!("notifications do not arrive ({why}): polling; see \"switchboard check\"");
        } else if !rings {
            tracing::warn!("two-phase commit is enabled, so writers do not ring: polling; see \"switchboard check\"");
        }
        self.doorbell_checked();
    }

    /// Notifications arrive, which did not before.
    pub fn hears_again(&self) {
        tracing::info!("notifications arrive again: polling no more");
    }

    /// A doorbell of our own came back.
    pub fn doorbell_checked(&self) {
        *self.doorbell.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// How long ago that was.
    pub fn doorbell_age(&self) -> Option<Duration> {
        self.doorbell.lock().unwrap_or_else(PoisonError::into_inner).map(|at| at.elapsed())
    }

    /// The feed has no PostgreSQL, for the `failures`-th time in a row. Said once, and then rarely.
    pub fn database_lost(&self, why: &str, failures: u32) {
        self.database_up.set(0);
        self.leads(false);
        let mut reminded = self.reminded.lock().unwrap_or_else(PoisonError::into_inner);
        if reminded.is_none_or(|at| at.elapsed() >= REMIND_EVERY) {
            *reminded = Some(Instant::now());
            tracing::warn!("the feed has no PostgreSQL, and tries on (attempt {}): {why}", failures + 1);
        } else {
            tracing::debug!("the feed has no PostgreSQL (attempt {}): {why}", failures + 1);
        }
    }
}
