//! The feed: the one loop that advances the position. It numbers what became visible, reads it, and brings it to the hub.
//!
//! It listens before it reads, so that nothing falls between; it sleeps only while writers know that they have to ring; and it looks
//! once a second whatever it hears. Many gateways may do so beside each other; which part this one plays is its role's to say.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use crate::change::{Cursor, Place};
use crate::config::{
    Config, FOLLOW_PATIENCE, GATHER, Kept, LINK_CHECK_EVERY, LOOK_EVERY, RECONNECT_FIRST, RECONNECT_MOST, SPEAK_EVERY,
    TRIM_EVERY,
};
use crate::hub::Hub;
use crate::listener::{Link, Listener, Rang};
use crate::log::{Log, Page, PageSize, Word};
use crate::metrics::Metrics;
use crate::role::Role;

/// How many slices of old commits one look of retention forgets at most.
const TRIM_SLICES_MAX: usize = 100;

/// How many times [`GATHER`] the feed waits at most while it may not fall asleep.
const SLEEPLESS_MAX: u32 = 20;

/// The loop and what it works with.
pub struct Feed {
    config: Config,
    log: Log,
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    nudge: Arc<Notify>,
    /// Where the hub stands; none before the first look at the log.
    at: Option<Standing>,
}

/// How far the feed has brought the hub.
#[derive(Clone, Copy)]
struct Standing {
    /// The last whole commit.
    cursor: Cursor,
    /// The commit behind it, if a part of that was brought.
    begun: Option<Cursor>,
    /// What to read next follows this.
    place: Place,
}

impl Standing {
    fn at(cursor: Cursor) -> Standing {
        Standing { cursor, begun: None, place: Place::after(cursor.position) }
    }
}

/// How to find out how far the log goes.
enum Means {
    /// Number what became visible, and tell the others so.
    Number,
    /// Look how far another gateway came.
    Look,
}

impl Feed {
    /// A feed from the log to the hub.
    pub fn new(config: Config, log: Log, hub: Arc<Hub>, metrics: Arc<Metrics>) -> Feed {
        Feed { config, log, hub, metrics, nudge: Arc::default(), at: None }
    }

    /// Wakes the feed as a doorbell would; for those who numbered beside it.
    pub fn nudge(&self) -> Arc<Notify> {
        self.nudge.clone()
    }

    /// Carries commits for ever. Whatever goes wrong with PostgreSQL is said, waited for and tried again.
    pub async fn run(mut self) {
        let mut failures = 0;
        loop {
            let begun = Instant::now();
            let Err(error) = self.session().await;
            self.hub.set_database(false);
            self.metrics.database_lost(&format!("{error:#}"), failures);
            failures = if begun.elapsed() > 2 * RECONNECT_MOST { 1 } else { failures + 1 };
            let most = RECONNECT_MOST.min(RECONNECT_FIRST * 2_u32.saturating_pow(failures.min(16)));
            // Jitter: gateways that lost the same server do not all come back at the same moment.
            sleep(most.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        }
    }

    /// One session with PostgreSQL, from listening to the loss of it.
    async fn session(&mut self) -> Result<Infallible> {
        let listener = Listener::connect(self.log.database()).await?;
        let watch = watch(listener.link(), self.log.clone(), self.metrics.clone());
        tokio::select! {
            ended = self.work(listener) => ended,
            lost = watch => lost,
        }
    }

    /// What is done in a session. May be dropped at any wait: the hub's place moves with what is published, without one in between.
    async fn work(&mut self, mut listener: Listener) -> Result<Infallible> {
        self.open().await?;
        let mut role = Role::new(&listener, &self.metrics).await?;
        self.carry(Means::Number, &listener, &mut role).await?;
        self.hub.set_database(true);
        self.metrics.database_found(listener.deaf().as_deref(), listener.rings);
        let retain = retain(self.config.retain, self.log.clone(), self.metrics.clone());
        let steps = async {
            loop {
                self.step(&mut listener, &mut role).await?;
            }
        };
        tokio::select! {
            ended = steps => ended,
            never = retain => match never {},
        }
    }

    /// Finds out whether the positions go on where the hub stands, and begins anew where they do not.
    async fn open(&mut self) -> Result<()> {
        if let Some(reason) = self.log.open().await? {
            tracing::warn!("a new epoch begins: {reason}");
        }
        self.hub.hold(&self.log.refresh_tables().await?);
        match self.at {
            None => self.begin_at(self.log.look(0).await?.head, "new"),
            Some(at) => {
                for cursor in [Some(at.cursor), at.begun].into_iter().flatten() {
                    let extent = self.log.look(cursor.position).await?;
                    if let Some(reason) = extent.refusal(cursor) {
                        tracing::warn!(
                            "position {cursor} is not in the log any more ({reason}): all subscribers begin anew"
                        );
                        self.begin_at(extent.head, reason);
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    fn begin_at(&mut self, head: Cursor, reason: &str) {
        self.hub.begin_at(head, reason);
        self.at = Some(Standing::at(head));
    }

    /// Fails where the positions do not go on, so that the next session opens the log anew.
    async fn look_behind(&self) -> Result<()> {
        let at = self.at.context("the feed opened the log before")?;
        let extent = self.log.look(at.cursor.position).await?;
        self.metrics.looked(&extent);
        match extent.refusal(at.cursor) {
            Some(reason) => bail!("the log was replaced: position {} is not in it any more ({reason})", at.cursor),
            None => Ok(()),
        }
    }

    /// One look at the log, and the wait for the next.
    async fn step(&mut self, listener: &mut Listener, role: &mut Role) -> Result<()> {
        if role.leads && listener.heard_stand_in() {
            listener.speak().await?;
        }
        // News that bring nothing for so long are none: anybody may say so.
        let has_news = std::mem::take(&mut role.has_news) && role.moved.elapsed() < LOOK_EVERY;
        let before = self.at.map(|at| at.place);
        let numbered = self.carry(if has_news { Means::Look } else { Means::Number }, listener, role).await?;
        if self.at.map(|at| at.place) != before {
            role.moved = Instant::now();
        }
        if numbered > 0 && !role.leads && role.heard && listener.rings {
            role.stood_in(listener, &self.metrics).await?;
        }
        if role.looked.elapsed() >= LOOK_EVERY {
            role.look_around(listener, &self.metrics).await?;
            // Tables that were watched, renamed, keyed anew or dropped meanwhile.
            self.hub.hold(&self.log.refresh_tables().await?);
            self.look_behind().await?;
        }
        if numbered > 0 && role.leads {
            role.wake(listener).await?;
            role.sleepless = 0;
            sleep(GATHER).await;
            return Ok(());
        }
        if !role.heard || !listener.rings {
            let _ = timeout(self.config.poll, self.nudge.notified()).await; // Either way it is time to look.
            return Ok(());
        }
        if role.leads && !role.asleep {
            role.asleep = listener.try_sleep().await?;
            role.sleepless = if role.asleep { 0 } else { role.sleepless + 1 };
            if !role.asleep {
                // A writer is in the middle of its commit, and did not ring. One that stays there for long is not worth the haste.
                sleep(GATHER * role.sleepless.min(SLEEPLESS_MAX)).await;
            }
            // Asleep or not, what was committed before is to be seen before any wait.
            return Ok(());
        }
        self.wait(listener, role).await
    }

    /// Waits for a ring, a nudge, or the time to look anyway.
    async fn wait(&self, listener: &mut Listener, role: &mut Role) -> Result<()> {
        tokio::select! {
            rang = listener.rang() => {
                let mut rang = rang?;
                if rang == Rang::Bell && !role.leads {
                    // The leader heard it too. If it does not say so, it is not what it was.
                    rang = timeout(FOLLOW_PATIENCE, listener.news()).await.unwrap_or(Ok(Rang::Bell))?;
                }
                role.heard(rang, listener).await?;
            }
            () = self.nudge.notified() => {}
            () = sleep(role.look_within()) => {}
        }
        Ok(())
    }

    /// Finds the head, reads what is new, and publishes it. Returns how many commits got their position here.
    async fn carry(&mut self, means: Means, listener: &Listener, role: &mut Role) -> Result<i64> {
        let numbered = match means {
            Means::Number => self.log.number().await?,
            Means::Look => self.log.head().await?,
        };
        if let Some(word) = role.word().filter(|_| numbered.commits > 0) {
            self.log.say(word).await?;
        }
        let mut commits = numbered.commits;
        let mut spoke = Instant::now();
        let mut at = self.at.context("the feed opened the log before")?;
        let replaced = numbered.head == at.cursor.position && numbered.nonce != at.cursor.nonce;
        if replaced || numbered.head < at.cursor.position {
            bail!("the log was replaced: its head is {}, and position {} was published", numbered.head, at.cursor);
        }
        while at.place < Place::after(numbered.head) {
            let Page::Parts(parts) = self.log.read(at.cursor, at.place, numbered.head, PageSize::FEED).await? else {
                let extent = self.log.look(at.cursor.position).await?;
                let reason = extent.refusal(at.cursor).unwrap_or("expired");
                tracing::warn!("what follows {} is not in the log ({reason}): all subscribers begin anew", at.cursor);
                self.begin_at(extent.head, reason);
                break;
            };
            let follows = |begun: Cursor| parts.first().is_none_or(|part| part.cursor == begun);
            if let Some(begun) = at.begun.filter(|begun| !follows(*begun)) {
                tracing::warn!(
                    "another commit than {begun}, of which a part was told, has its position: all subscribers begin anew"
                );
                self.begin_at(self.log.look(at.cursor.position).await?.head, "nonce");
                break;
            }
            self.hub.publish(&parts);
            self.metrics.published(&parts);
            for part in &parts {
                (at.cursor, at.begun) = if part.last { (part.cursor, None) } else { (at.cursor, Some(part.cursor)) };
                at.place = part.place();
            }
            self.at = Some(at);
            if role.leads && spoke.elapsed() >= SPEAK_EVERY {
                // For as long as this takes, writers need not ring, and other gateways neither wait nor think that nobody
                // leads. What is numbered here is for the next turn: this one has an end, however much is written meanwhile.
                role.wake(listener).await?;
                if role.has_company {
                    commits += self.log.number().await?.commits;
                    // Also where there was nothing to number: that it lives is news.
                    self.log.say(Word::Head).await?;
                }
                spoke = Instant::now();
            }
        }
        Ok(commits)
    }
}

/// Tries a link for as long as it works.
async fn watch(link: Link, log: Log, metrics: Arc<Metrics>) -> Result<Infallible> {
    let mut heard = link.hears();
    loop {
        sleep(LINK_CHECK_EVERY).await;
        if let Err(error) = link.answers().await {
            // Statements in flight would wait for their answers far longer.
            log.hang_up();
            return Err(error.context("the link to PostgreSQL is dead"));
        }
        let hears = link.rings().await?;
        if hears && !heard {
            metrics.hears_again();
        }
        heard = hears;
        metrics.doorbell_checked();
    }
}

/// Forgets old commits, for as long as it is driven. Any number of gateways may: one at a time does something.
async fn retain(kept: Kept, log: Log, metrics: Arc<Metrics>) -> Infallible {
    loop {
        if let Err(error) = trim(&kept, &log, &metrics).await {
            tracing::warn!("retention could not forget old commits, and tries again: {error:#}");
        }
        sleep(TRIM_EVERY).await;
    }
}

async fn trim(kept: &Kept, log: &Log, metrics: &Metrics) -> Result<()> {
    for _ in 0..TRIM_SLICES_MAX {
        let trimmed = log.trim(kept).await?;
        metrics.forgotten(trimmed.commits);
        if !trimmed.more {
            break;
        }
    }
    Ok(())
}

/// Beats for as long as the gateway runs, so that every subscriber hears something in every interval.
pub async fn heart(hub: Arc<Hub>, every: Duration) {
    let mut beat = tokio::time::interval(every);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    beat.tick().await;
    loop {
        beat.tick().await;
        hub.beat();
    }
}
