//! The listener: one PostgreSQL session that hears the doorbell.
//!
//! It promises that a gap is never hidden: a session is either known to work or reported lost. The same session holds the locks that
//! tell writers and other gateways whether this gateway sleeps, leads, or is there at all, so they vanish with it.
//! What is new it leaves to the feed to find out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use futures_util::future::poll_fn;
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;
use tokio_postgres::{AsyncMessage, Client};

use crate::config::{BELL_PATIENCE, LINK_CHECK_PATIENCE, LINK_PATIENCE};
use crate::log::Word;
use crate::session::{Connection, Database, Purpose, first, told, within};

/// The channel of the doorbell. Whatever the payload: look.
pub const CHANNEL: &str = "switchboard";

/// The advisory locks (two-number form) that `sql/` and gateways share: the first number says that they are ours.
const LOCKS: i32 = 1_937_203_812;
/// Held exclusively by the gateway that sleeps; writers try to share it.
const LOCK_DOORBELL: i32 = 1;
/// Held exclusively by the gateway that leads: it numbers at every ring, the others when it does not. Who holds it and
/// stays silent loses the session.
const LOCK_LEADER: i32 = 2;
/// Shared by all gateways, to be counted.
const LOCK_PRESENT: i32 = 3;

/// A session that listens.
pub struct Listener {
    client: Arc<Client>,
    heard: Arc<Heard>,
    lost: oneshot::Receiver<String>,
    own_channel: String,
    /// Whether a transaction pooler is in the way: nobody's session is their own.
    pub pooled: bool,
    /// Whether writers ring: not so where two-phase commit is enabled.
    pub rings: bool,
}

/// What the session heard and the feed has not looked at yet.
#[derive(Default)]
struct Heard {
    /// Why notifications do not arrive; none where they do.
    deaf: Mutex<Option<String>>,
    something: Notify,
    bell: AtomicBool,
    head: AtomicBool,
    stand_in: AtomicBool,
    own: Notify,
}

/// What woke the feed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rang {
    /// The leader has numbered, or says that it lives.
    Head,
    /// Another gateway has numbered, in the leader's place or beside it: the leader is to speak.
    StandIn,
    /// Anything else: a writer, or anybody.
    Bell,
}

/// A session of PostgreSQL, by the number of its process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Session(pub i32);

/// What came of deposing a leader.
pub enum Deposed {
    /// Its session ends.
    Done,
    /// It leads no more.
    Gone,
    /// PostgreSQL does not allow it, for this reason.
    Refused(String),
}

impl Listener {
    /// Connects, listens, and finds out whether it can hear. Once this returns, no commit goes by without a ring or a lost session
    /// (where writers ring and notifications arrive).
    pub async fn connect(database: &Database) -> Result<Listener> {
        let own_channel = format!("{CHANNEL}_{:016x}", fastrand::u64(..));
        let heard = Arc::new(Heard::default());
        let (lose, lost) = oneshot::channel();
        let ears = (heard.clone(), own_channel.clone());
        // The ready-made future of the connection would discard notifications. Ends with the connection.
        let drive = |mut connection: Connection| {
            tokio::spawn(async move {
                let (heard, own_channel) = ears;
                let why = loop {
                    match poll_fn(|context| connection.poll_message(context)).await {
                        Some(Ok(AsyncMessage::Notification(bell))) => {
                            heard.note(bell.channel(), bell.payload(), &own_channel)
                        }
                        Some(Ok(_)) => {}
                        Some(Err(error)) => break told(error).to_string(),
                        None => break "the connection was closed".to_owned(),
                    }
                };
                // Nobody waits any more where the listener itself is gone.
                let _ = lose.send(why);
            })
        };
        let (client, _) = database.connect(Purpose::Listener, drive).await?;
        let client = Arc::new(client);
        let mut listener = Listener { client, heard, lost, own_channel, pooled: false, rings: false };
        listener.begin(database).await?;
        Ok(listener)
    }

    async fn begin(&mut self, database: &Database) -> Result<()> {
        self.rings = self.scalar("select current_setting('max_prepared_transactions')").await? == "0";
        self.pooled = database.is_pooled(&self.client).await?;
        if self.pooled {
            // The session is somebody else's, too: nothing of ours may stay in it, neither what it listens to nor a lock nor a setting.
            self.heard.say_deaf(Some("a transaction pooler is in the way".to_owned()));
            return Ok(());
        }
        database.settle(&self.client, Purpose::Listener).await?;
        self.link().try_to_hear().await
    }

    /// Whether notifications arrive at all. Where they do not, the link may find later that they do again.
    pub fn hears(&self) -> bool {
        self.deaf().is_none()
    }

    /// Why notifications do not arrive; none where they do.
    pub fn deaf(&self) -> Option<String> {
        self.heard.deaf()
    }

    /// Waits for the doorbell. Cancel-safe: a ring that nobody took is there for the next call.
    pub async fn rang(&mut self) -> Result<Rang> {
        loop {
            if self.heard.bell.swap(false, Ordering::AcqRel) {
                return Ok(Rang::Bell);
            }
            if self.heard_head() {
                return Ok(Rang::Head);
            }
            if self.heard_stand_in() {
                return Ok(Rang::StandIn);
            }
            tokio::select! {
                () = self.heard.something.notified() => {}
                why = &mut self.lost => bail!("the listening session was lost: {}", why.unwrap_or_default()),
            }
        }
    }

    /// Waits until another gateway has numbered, whatever else rings meanwhile. Cancel-safe.
    pub async fn news(&mut self) -> Result<Rang> {
        loop {
            match self.rang().await? {
                Rang::Bell => {}
                news => return Ok(news),
            }
        }
    }

    /// Whether the leader spoke since this was last asked. Who stood in for it before is answered by that.
    pub fn heard_head(&self) -> bool {
        let spoke = self.heard.head.swap(false, Ordering::AcqRel);
        if spoke {
            self.heard.stand_in.store(false, Ordering::Release);
        }
        spoke
    }

    /// Whether somebody stood in for the leader since this was last asked.
    pub fn heard_stand_in(&self) -> bool {
        self.heard.stand_in.swap(false, Ordering::AcqRel)
    }

    /// Says, as the leader, that it lives.
    pub async fn speak(&self) -> Result<()> {
        self.query(&format!("notify {CHANNEL}, '{}'", Word::Head.payload())).await
    }

    /// The link that it listens over, to be tried beside it.
    pub fn link(&self) -> Link {
        let Listener { client, heard, own_channel, pooled, .. } = self;
        Link { client: client.clone(), heard: heard.clone(), own_channel: own_channel.clone(), pooled: *pooled }
    }

    /// Tries to fall asleep: from then on writers ring. Not while one of them is in the middle of its commit.
    pub async fn try_sleep(&self) -> Result<bool> {
        self.try_lock(LOCK_DOORBELL).await
    }

    /// Wakes: writers need not ring.
    pub async fn wake(&self) -> Result<()> {
        self.query(&format!("select pg_advisory_unlock({LOCKS}, {LOCK_DOORBELL})")).await
    }

    /// Tries to become the gateway that leads. Once it is, it stays so until the session ends.
    pub async fn try_lead(&self) -> Result<bool> {
        self.try_lock(LOCK_LEADER).await
    }

    /// Whether other gateways listen to the same database, or may: where a stranger holds the lock, they cannot be counted.
    pub async fn has_company(&self) -> Result<bool> {
        let count = format!(
            "select count(*) > 1 or count(*) filter (where pid = pg_backend_pid()) = 0 from pg_locks where {}",
            held(LOCK_PRESENT)
        );
        Ok(self.scalar(&count).await? == "t")
    }

    /// The session that leads; none where nobody does, or where the lock is in the hands of somebody who is no gateway.
    pub async fn leader(&self) -> Result<Option<Session>> {
        let leader = format!("select pid from ({}) as leader", leaders());
        Ok(self.scalar(&leader).await?.parse().ok().map(Session))
    }

    /// Ends the session of a leader that is not heard any more. Gateways share a role, so that takes no special right.
    pub async fn depose(&self, leader: Session) -> Result<Deposed> {
        let Session(pid) = leader;
        let depose = format!("select pg_terminate_backend(pid) from ({}) as leader where pid = {pid}", leaders());
        let answer = timeout(LINK_PATIENCE, self.client.simple_query(&depose)).await;
        match answer.context("PostgreSQL does not answer")? {
            Ok(messages) => Ok(if first(&messages) == Some("t") { Deposed::Done } else { Deposed::Gone }),
            Err(error) if error.as_db_error().is_some() => Ok(Deposed::Refused(told(error).to_string())),
            Err(error) => Err(told(error)),
        }
    }

    async fn try_lock(&self, lock: i32) -> Result<bool> {
        Ok(self.scalar(&format!("select pg_try_advisory_lock({LOCKS}, {lock})")).await? == "t")
    }

    async fn query(&self, sql: &str) -> Result<()> {
        within(LINK_PATIENCE, self.client.batch_execute(sql)).await
    }

    async fn scalar(&self, sql: &str) -> Result<String> {
        let messages = within(LINK_PATIENCE, self.client.simple_query(sql)).await?;
        Ok(first(&messages).unwrap_or_default().to_owned())
    }
}

/// The link of a listener's session.
pub struct Link {
    client: Arc<Client>,
    heard: Arc<Heard>,
    own_channel: String,
    pooled: bool,
}

impl Link {
    /// A round trip of our own, which waits for no lock: a dead link is not left to TCP to notice.
    pub async fn answers(&self) -> Result<()> {
        within(LINK_CHECK_PATIENCE, self.client.simple_query("select 1")).await.map(|_| ())
    }

    /// Whether notifications arrive.
    pub fn hears(&self) -> bool {
        self.heard.deaf().is_none()
    }

    /// A doorbell of our own comes back. Where none did so far, for a reason that may pass, this tries whether one does now, and returns
    /// whether notifications arrive.
    ///
    /// # Errors
    ///
    /// One does not come back, and did before.
    pub async fn rings(&self) -> Result<bool> {
        if self.hears() {
            self.ring().await?;
        } else if !self.pooled {
            self.try_to_hear().await?;
        }
        Ok(self.hears())
    }

    /// Listens, and finds out whether that helps. If it does, this gateway counts as present from then on.
    async fn try_to_hear(&self) -> Result<()> {
        let own = &self.own_channel;
        let run = async |sql: &str| within(LINK_PATIENCE, self.client.batch_execute(sql)).await;
        run(&format!("listen {CHANNEL}; listen {own}")).await?;
        let deaf = match self.ring().await {
            Ok(()) => {
                // Not so that it waits: whoever may connect can hold that lock.
                run(&format!("select pg_try_advisory_lock_shared({LOCKS}, {LOCK_PRESENT}); notify {CHANNEL}")).await?;
                None
            }
            Err(error) => {
                run(&format!("unlisten {CHANNEL}; unlisten {own}")).await?;
                Some(format!("{error:#}"))
            }
        };
        self.heard.say_deaf(deaf);
        Ok(())
    }

    async fn ring(&self) -> Result<()> {
        within(LINK_PATIENCE, self.client.batch_execute(&format!("notify {}", self.own_channel))).await?;
        timeout(BELL_PATIENCE, self.heard.own.notified()).await.context("a doorbell of our own did not come back")
    }
}

/// What `pg_locks` says of those who hold one of our locks in this database.
fn held(lock: i32) -> String {
    format!(
        "locktype = 'advisory' and classid = {LOCKS} and objid = {lock} and objsubid = 2 and granted
         and database = (select oid from pg_database where datname = current_database())"
    )
}

/// The gateway that leads: whoever else holds that lock is not ours to end.
fn leaders() -> String {
    let (leader, present) = (held(LOCK_LEADER), held(LOCK_PRESENT));
    format!("select pid from pg_locks where {leader} and pid in (select pid from pg_locks where {present})")
}

impl Heard {
    fn deaf(&self) -> Option<String> {
        self.deaf.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn say_deaf(&self, why: Option<String>) {
        *self.deaf.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    fn note(&self, channel: &str, payload: &str, own_channel: &str) {
        if channel == own_channel {
            return self.own.notify_one();
        }
        let heard = match payload {
            _ if payload == Word::Head.payload() => &self.head,
            _ if payload == Word::StandIn.payload() => &self.stand_in,
            _ => &self.bell,
        };
        heard.store(true, Ordering::Release);
        self.something.notify_one();
    }
}
