//! Which part this gateway plays beside the others: it leads, and numbers at every ring; or it follows, and numbers only where the
//! leader does not. A leader that lives says so, whenever somebody stood in for it; one that stays silent is deposed.

use std::time::Duration;

use anyhow::Result;
use tokio::time::{Instant, sleep};

use crate::config::{DEPOSE_PATIENCE, FOLLOW_PATIENCE, LOOK_EVERY};
use crate::listener::{Deposed, Listener, Rang, Session};
use crate::log::Word;
use crate::metrics::Metrics;

/// How often to ask for the lead of one who was deposed, and how long to wait in between: ending a session takes a moment.
const SUCCEED_ATTEMPTS_MAX: u32 = 50;
const SUCCEED_EVERY: Duration = Duration::from_millis(10);

/// Which part this gateway plays, and what it knows of the others.
pub struct Role {
    /// Whether it leads. Once it does, it does so until its session ends.
    pub leads: bool,
    /// Whether other gateways are there to be told.
    pub has_company: bool,
    /// Another gateway has numbered.
    pub has_news: bool,
    /// Whether it sleeps: writers ring.
    pub asleep: bool,
    /// How often in a row it might not fall asleep.
    pub sleepless: u32,
    /// When something was brought to the hub last.
    pub moved: Instant,
    /// When it looked around last.
    pub looked: Instant,
    /// Whether notifications arrived when it looked around last.
    pub heard: bool,
    silence: Silence,
}

impl Role {
    /// The part to begin with: the lead, where it is free.
    pub async fn new(listener: &Listener, metrics: &Metrics) -> Result<Role> {
        let now = Instant::now();
        let mut role = Role {
            leads: false,
            has_company: true,
            has_news: false,
            asleep: false,
            sleepless: 0,
            moved: now,
            looked: now,
            heard: false,
            silence: Silence::default(),
        };
        role.look_around(listener, metrics).await?;
        Ok(role)
    }

    /// Takes the lead where it is free, and counts who else is there.
    pub async fn look_around(&mut self, listener: &Listener, metrics: &Metrics) -> Result<()> {
        self.looked = Instant::now();
        let hears = listener.hears();
        if !hears {
            // Behind a pooler a lock would stay with somebody else's session. Everybody leads; numbering keeps them apart.
            self.leads = true;
        } else {
            // What it led while it was deaf, it led without the lock.
            self.leads &= self.heard;
            self.leads = self.leads || listener.try_lead().await?;
            self.has_company = listener.has_company().await?;
        }
        self.heard = hears;
        metrics.leads(self.leads);
        Ok(())
    }

    /// What the others are told of what is numbered here.
    pub fn word(&self) -> Option<Word> {
        let word = if self.leads { Word::Head } else { Word::StandIn };
        self.has_company.then_some(word)
    }

    /// How long to wait for a ring before it is time to look anyway: not for long behind a leader that seems to be gone, since
    /// it may have left writers in the belief that they need not ring.
    pub fn look_within(&self) -> Duration {
        let look = LOOK_EVERY.saturating_sub(self.looked.elapsed());
        if self.silence.lasts() { look.min(FOLLOW_PATIENCE) } else { look }
    }

    /// Takes note of what woke the feed.
    pub async fn heard(&mut self, rang: Rang, listener: &Listener) -> Result<()> {
        self.has_news = rang != Rang::Bell;
        match rang {
            Rang::Bell => {}
            Rang::Head => self.silence.end(),
            Rang::StandIn if self.leads => listener.speak().await?,
            // It was another one that stood in; this one knows as well now.
            Rang::StandIn => {
                if let Some(leader) = listener.leader().await? {
                    self.silence.stood_in(leader, Instant::now());
                }
            }
        }
        Ok(())
    }

    /// Wakes, so that writers need not ring.
    pub async fn wake(&mut self, listener: &Listener) -> Result<()> {
        if std::mem::take(&mut self.asleep) { listener.wake().await } else { Ok(()) }
    }

    /// Deals with it that this gateway numbered, as a follower, what the leader should have: takes the lead where nobody has it any
    /// more, or from one that stays silent.
    pub async fn stood_in(&mut self, listener: &mut Listener, metrics: &Metrics) -> Result<()> {
        metrics.stood_in();
        if listener.heard_head() {
            self.silence.end();
            return Ok(());
        }
        let Some(leader) = listener.leader().await? else {
            return self.look_around(listener, metrics).await;
        };
        if self.silence.stood_in(leader, Instant::now()) == Verdict::Wait {
            return Ok(());
        }
        self.silence.end();
        match listener.depose(leader).await? {
            // It went by itself, or another gateway was faster.
            Deposed::Gone => {}
            Deposed::Done => metrics.deposed(),
            Deposed::Refused(why) => {
                metrics.may_not_depose(&why);
                return Ok(());
            }
        }
        for _ in 0..SUCCEED_ATTEMPTS_MAX {
            self.look_around(listener, metrics).await?;
            if self.leads || listener.leader().await?.is_some_and(|other| other != leader) {
                break;
            }
            sleep(SUCCEED_EVERY).await;
        }
        Ok(())
    }
}

/// The silence of a leader: what was numbered in its place since it spoke last.
#[derive(Default)]
struct Silence {
    /// Whose, and since when somebody had to stand in.
    began: Option<(Session, Instant)>,
}

/// What to do about a leader.
#[derive(PartialEq, Eq, Debug)]
enum Verdict {
    /// It may only be late.
    Wait,
    /// End its session and take its place.
    Depose,
}

impl Silence {
    /// The leader spoke.
    fn end(&mut self) {
        self.began = None;
    }

    fn lasts(&self) -> bool {
        self.began.is_some()
    }

    /// Somebody had to stand in for this leader. Once is an accident; twice, so far apart that a machine which hesitates would
    /// have come back, and without a word in between, is none.
    fn stood_in(&mut self, leader: Session, now: Instant) -> Verdict {
        match self.began {
            Some((whose, since)) if whose == leader && now - since >= DEPOSE_PATIENCE => Verdict::Depose,
            Some((whose, _)) if whose == leader => Verdict::Wait,
            _ => {
                self.began = Some((leader, now));
                Verdict::Wait
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Session = Session(1);
    const OTHER: Session = Session(2);

    fn after(began: Instant, patiences: f64) -> Instant {
        began + DEPOSE_PATIENCE.mul_f64(patiences)
    }

    #[test]
    fn one_that_stays_silent_while_others_stand_in_is_deposed() {
        let (mut silence, now) = (Silence::default(), Instant::now());

        assert_eq!(silence.stood_in(ONE, now), Verdict::Wait);
        assert_eq!(silence.stood_in(ONE, after(now, 0.5)), Verdict::Wait);
        assert_eq!(silence.stood_in(ONE, after(now, 1.0)), Verdict::Depose);
    }

    #[test]
    fn one_that_was_late_once_is_not_deposed_however_long_ago_it_was() {
        let (mut silence, now) = (Silence::default(), Instant::now());

        for round in 0..10 {
            assert_eq!(silence.stood_in(ONE, after(now, f64::from(round))), Verdict::Wait);
            silence.end();
        }

        assert!(!silence.lasts());
    }

    #[test]
    fn the_silence_of_one_is_not_that_of_its_successor() {
        let (mut silence, now) = (Silence::default(), Instant::now());

        silence.stood_in(ONE, now);

        assert_eq!(silence.stood_in(OTHER, after(now, 5.0)), Verdict::Wait);
        assert_eq!(silence.stood_in(OTHER, after(now, 5.5)), Verdict::Wait);
        assert_eq!(silence.stood_in(OTHER, after(now, 6.0)), Verdict::Depose);
    }
}
