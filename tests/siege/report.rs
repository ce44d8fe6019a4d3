//! What was measured, as one table, and what of it is out of bounds.

use std::time::Duration;

use crate::attacks::{Attack, Notes};
use crate::gateway::Usage;
use crate::watch::Seen;

/// Times below this count as this much where they are compared: below, the machine's noise is larger.
const NOISE: Duration = Duration::from_millis(5);
/// By how much the gateway's memory may have grown once the attackers are gone.
pub const MEMORY_AFTER_BYTES_MAX: u64 = 64 << 20;
/// Connections to PostgreSQL: four readers, four of the feed, one that looks for waiting locks, one for `/listen`, and one for a moment.
const CONNECTIONS_MAX: usize = 4 + 4 + 1 + 1 + 1;
/// How many sessions a gateway may open during an attack: those it may have, for each of its lives, and some that broke.
const SESSIONS_OPENED_MAX: usize = 3 * CONNECTIONS_MAX;
const MIB: u64 = 1 << 20;

/// Durations of one kind.
#[derive(Default)]
pub struct Series(Vec<Duration>);

impl Series {
    pub fn add(&mut self, duration: Duration) {
        self.0.push(duration);
    }

    /// The duration that so many percent of all do not exceed; none without any.
    pub fn percentile(&self, percent: usize) -> Option<Duration> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).copied()
    }

    fn p99(&self) -> String {
        self.percentile(99).map_or_else(|| "-".to_owned(), millis)
    }
}

/// How long the innocents waited during one phase.
#[derive(Default)]
pub struct Times {
    /// From the insert that a writer issues to the frame at a subscriber.
    pub delivery: Series,
    pub writes: Series,
    pub health: Series,
    pub visits: Series,
    /// How often the gateway said that it is not ready.
    pub unready: u64,
    /// How many visitors were told to come back later.
    pub turned_away: u64,
}

impl Times {
    /// Whether there is nothing of some kind.
    pub fn lacks_a_kind(&self) -> bool {
        [&self.delivery, &self.writes, &self.health, &self.visits].iter().any(|series| series.0.is_empty())
    }

    /// In words, for the innocents alone.
    pub fn told(&self) -> String {
        let both = |series: &Series| {
            let p50 = series.percentile(50).map_or_else(|| "-".to_owned(), millis);
            format!("p50 {p50}, p99 {} of {}", series.p99(), series.0.len())
        };
        format!(
            "delivery {}; health {}; writers {}; visitors {} (milliseconds)",
            both(&self.delivery),
            both(&self.health),
            both(&self.writes),
            both(&self.visits)
        )
    }
}

/// One attack, as it went.
pub struct Outcome {
    pub attack: &'static Attack,
    pub during: Times,
    pub after: Times,
    pub usage_before: Usage,
    pub usage_after: Usage,
    pub seen: Seen,
    pub notes: Notes,
    pub stopped: Result<Duration, String>,
    /// What the innocents and the gateway's process have to complain about.
    pub violations: Vec<String>,
}

impl Outcome {
    /// Everything that is out of bounds; times only if `strict`.
    pub fn violations(&self, before: &Times, strict: bool) -> Vec<String> {
        let mut violations = self.violations.clone();
        violations.extend(self.seen.violations.iter().cloned());
        violations.extend(self.notes.violations.iter().cloned());
        violations.extend(self.stopped.as_ref().err().cloned());
        violations.extend(self.memory_violations());
        let seen = &self.seen;
        if seen.connections_peak > CONNECTIONS_MAX {
            let most = seen.connections_peak;
            violations.push(format!("{most} connections to PostgreSQL; {CONNECTIONS_MAX} are the most"));
        }
        if seen.sessions_opened() > SESSIONS_OPENED_MAX {
            let opened = seen.sessions_opened();
            violations.push(format!("{opened} sessions of PostgreSQL were opened; {SESSIONS_OPENED_MAX} are the most"));
        }
        violations.extend(self.refusal_violations());
        if strict {
            violations.extend(self.time_violations(before));
        }
        violations
    }

    fn memory_violations(&self) -> Vec<String> {
        let mut violations = Vec::new();
        let before = self.usage_before.memory_bytes;
        let (peak, most) = (self.seen.memory_peak_bytes.saturating_sub(before), self.attack.memory_bytes_max);
        if peak > most {
            violations.push(format!("memory grew by {} MiB; {} are the most", peak / MIB, most / MIB));
        }
        let after = self.usage_after.memory_bytes.saturating_sub(before);
        if after > MEMORY_AFTER_BYTES_MAX {
            let most = MEMORY_AFTER_BYTES_MAX / MIB;
            violations.push(format!("{} MiB more memory than before stay; {most} are the most", after / MIB));
        }
        violations
    }

    fn refusal_violations(&self) -> Vec<String> {
        let mut violations = Vec::new();
        if !self.attack.expects.is_empty() && self.notes.expected == 0 {
            let said = self.attack.expects.join("\" or \"");
            violations.push(format!("no refusal said \"{said}\""));
        }
        for (code, refusal) in &self.notes.refusals {
            if refusal.message.trim().is_empty() {
                violations.push(format!("the refusal {code} says nothing"));
            }
        }
        violations
    }

    fn time_violations(&self, before: &Times) -> Vec<String> {
        let during = &self.during;
        let kinds = [
            ("a subscriber's", &before.delivery, &during.delivery),
            ("a health check's", &before.health, &during.health),
            ("a writer's", &before.writes, &during.writes),
        ];
        let mut violations = Vec::new();
        for (whose, before, during) in kinds {
            let (Some(before), Some(during)) = (before.percentile(99), during.percentile(99)) else { continue };
            let most = before.max(NOISE).mul_f64(self.attack.factor);
            if during > most {
                let (during, most) = (millis(during), millis(most));
                violations.push(format!("{whose} p99 was {during} ms during the attack; {most} are the most"));
            }
        }
        violations
    }

    fn row(&self, before: &Times) -> Vec<String> {
        let pair = |before: &Series, during: &Series| format!("{} {}", before.p99(), during.p99());
        let memory = [self.usage_before.memory_bytes, self.seen.memory_peak_bytes, self.usage_after.memory_bytes];
        let processor = self.usage_after.processor.saturating_sub(self.usage_before.processor);
        let refusals: Vec<String> =
            self.notes.refusals.iter().map(|(code, refusal)| format!("{}x {code}", refusal.count)).collect();
        vec![
            self.attack.name.to_owned(),
            format!("{} {}", pair(&before.delivery, &self.during.delivery), self.after.delivery.p99()),
            pair(&before.health, &self.during.health),
            pair(&before.writes, &self.during.writes),
            pair(&before.visits, &self.during.visits),
            memory.map(|bytes| (bytes / MIB).to_string()).join(" "),
            self.seen.connections_peak.to_string(),
            self.seen.files_peak.to_string(),
            format!("{:.1}", processor.as_secs_f64()),
            self.stopped.as_ref().map_or_else(|_| "never".to_owned(), |took| millis(*took)),
            if refusals.is_empty() { "-".to_owned() } else { refusals.join(", ") },
        ]
    }

    /// What is worth a line of its own.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = self.notes.remarks.clone();
        let (unready, turned_away) = (self.during.unready, self.during.turned_away);
        remarks.extend((unready > 0).then(|| format!("/readyz said {unready} times that the gateway is not ready")));
        remarks.extend((turned_away > 0).then(|| format!("{turned_away} visitors were told to come back later")));
        for (code, refusal) in &self.notes.refusals {
            remarks.push(format!("{code}: {:.200}", refusal.message));
        }
        remarks
    }
}

/// Prints one table of all attacks.
pub fn print(before: &Times, outcomes: &[Outcome]) {
    let head = [
        "attack",
        "delivery p99 b d a",
        "health p99 b d",
        "writer p99 b d",
        "visitor p99 b d",
        "MiB b peak a",
        "conn",
        "files",
        "cpu s",
        "stop",
        "refusals",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(outcomes.iter().map(|outcome| outcome.row(before)));
    let widths: Vec<usize> =
        (0..head.len()).map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0)).collect();
    println!(
        "\nmilliseconds before, during and after each attack; the largest memory, connections and files during it"
    );
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        println!("{}", cells.join(" | ").trim_end());
    }
}

fn millis(duration: Duration) -> String {
    let millis = duration.as_secs_f64() * 1e3;
    if millis < 100.0 { format!("{millis:.1}") } else { format!("{millis:.0}") }
}
