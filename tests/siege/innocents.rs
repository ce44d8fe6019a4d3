//! The innocents: subscribers, writers, health checks and visitors who do nothing unusual, are timed, and must not notice anything.
//!
//! They live as long as the siege. A gateway that is stopped on purpose is followed to its next life with the last cursor, so that each
//! change has to come exactly once, in order, over all of them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use crate::clients::{self, ask};
use crate::database::connect;
use crate::report::Times;

/// How long anything may take until it counts as not answered at all.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The same for a health check, behind which an orchestrator restarts what does not answer.
const HEALTH_PATIENCE: Duration = Duration::from_secs(10);
/// How long a subscriber's line may be silent: changes come all the time.
const SILENCE_MAX: Duration = PATIENCE;
/// How often each writer writes.
const WRITE_EVERY: Duration = Duration::from_millis(40);
/// How often a health check asks.
const HEALTH_EVERY: Duration = Duration::from_millis(50);
/// How often a visitor comes.
const VISIT_EVERY: Duration = Duration::from_millis(200);
/// How long to wait before the next attempt to connect.
const RETRY_AFTER: Duration = Duration::from_millis(20);
/// How many different violations of an attack are told.
const VIOLATIONS_MAX: usize = 20;

/// The tables that the writers write, one each.
const TABLES: [&str; 2] = ["public.innocent_a", "public.innocent_b"];
/// What they hold: `at` is when the writer issued the insert, in microseconds of the siege.
pub const DEFINITION: &str = "
    create table innocent_a (n bigint primary key, even boolean not null, at bigint not null);
    create table innocent_b (n bigint primary key, even boolean not null, at bigint not null);";

/// What one subscriber asks for.
struct Wish {
    parameters: &'static str,
    /// For each table the distance from one number to the next one that it is told; 0 if it is told none.
    steps: [u64; TABLES.len()],
}

const WISHES: [Wish; 4] = [
    Wish { parameters: "table=innocent_a,innocent_b", steps: [1, 1] },
    Wish { parameters: "table=innocent_a", steps: [1, 0] },
    Wish { parameters: "table=innocent_a&where=even.is.true", steps: [2, 0] },
    Wish { parameters: "table=innocent_b&where=and(even.is.true,n.gte.0)", steps: [0, 2] },
];

/// All of them, running.
pub struct Innocents {
    common: Arc<Common>,
    subscribers: Vec<Arc<Subscriber>>,
}

/// What they share.
struct Common {
    began: Instant,
    /// The gateway's address; none while it is stopped on purpose.
    gateway: watch::Receiver<Option<SocketAddr>>,
    database_url: String,
    /// The last number that each writer has committed.
    written: [AtomicU64; TABLES.len()],
    times: Mutex<Times>,
    violations: Mutex<Vec<String>>,
    end: CancellationToken,
}

impl Innocents {
    /// Starts them: the subscribers first, so that the first change is told to all.
    pub async fn start(database_url: &str, gateway: watch::Receiver<Option<SocketAddr>>) -> Innocents {
        let common = Arc::new(Common {
            began: Instant::now(),
            gateway,
            database_url: database_url.to_owned(),
            written: Default::default(),
            times: Mutex::default(),
            violations: Mutex::default(),
            end: CancellationToken::new(),
        });
        let subscribers: Vec<Arc<Subscriber>> = WISHES.iter().map(|wish| Subscriber::new(wish, &common)).collect();
        for subscriber in &subscribers {
            common.run(subscriber.clone().follow());
        }
        let innocents = Innocents { common, subscribers };
        innocents.ready().await;
        for table in 0..TABLES.len() {
            let common = innocents.common.clone();
            innocents.common.run(async move { common.write(table).await });
        }
        for path in ["/healthz", "/readyz", "/metrics"] {
            let common = innocents.common.clone();
            innocents.common.run(async move { common.check_health(path).await });
        }
        let common = innocents.common.clone();
        innocents.common.run(async move { common.visit().await });
        innocents
    }

    /// Waits until every subscriber follows the gateway that runs now.
    pub async fn ready(&self) {
        for subscriber in &self.subscribers {
            let mut following = subscriber.following.subscribe();
            let gateway = *self.common.gateway.borrow();
            if timeout(PATIENCE, following.wait_for(|following| *following == gateway)).await.is_err() {
                self.common.wrong(format!("{}: not ready within {PATIENCE:?}", subscriber.wish.parameters));
            }
        }
    }

    /// Waits until every subscriber has what was committed until now.
    pub async fn settle(&self) {
        let written = self.common.written.each_ref().map(|written| written.load(Ordering::SeqCst));
        let settling = async {
            while !self.subscribers.iter().all(|subscriber| subscriber.has(written)) {
                sleep(RETRY_AFTER).await;
            }
        };
        if timeout(PATIENCE, settling).await.is_err() {
            let late = self.subscribers.iter().filter(|subscriber| !subscriber.has(written));
            let late: Vec<&str> = late.map(|subscriber| subscriber.wish.parameters).collect();
            self.common.wrong(format!("not told within {PATIENCE:?} of the commit: {}", late.join(" and ")));
        }
    }

    /// Waits until there is a time of each kind.
    pub async fn have_times(&self) {
        let waiting = async {
            while self.common.times.lock().unwrap().lacks_a_kind() {
                sleep(RETRY_AFTER).await;
            }
        };
        if timeout(PATIENCE, waiting).await.is_err() {
            self.common.wrong(format!("some of the innocents were not answered within {PATIENCE:?}"));
        }
    }

    /// The times since the last call.
    pub fn take_times(&self) -> Times {
        std::mem::take(&mut self.common.times.lock().unwrap())
    }

    /// What went wrong since the last call.
    pub fn take_violations(&self) -> Vec<String> {
        std::mem::take(&mut self.common.violations.lock().unwrap())
    }
}

impl Drop for Innocents {
    fn drop(&mut self) {
        self.common.end.cancel();
    }
}

impl Common {
    fn run(&self, work: impl Future<Output = ()> + Send + 'static) {
        let end = self.end.clone();
        tokio::spawn(async move { end.run_until_cancelled(work).await });
    }

    fn wrong(&self, what: String) {
        let mut violations = self.violations.lock().unwrap();
        if violations.len() < VIOLATIONS_MAX && !violations.contains(&what) {
            violations.push(what);
        }
    }

    fn note(&self, note: impl FnOnce(&mut Times)) {
        note(&mut self.times.lock().unwrap());
    }

    /// The address of the gateway, once it runs.
    async fn gateway(&self) -> SocketAddr {
        let mut gateway = self.gateway.clone();
        match gateway.wait_for(Option::is_some).await.map(|address| *address) {
            Ok(Some(address)) => address,
            // The siege is over.
            _ => std::future::pending().await,
        }
    }

    /// Whether the gateway at this address was not stopped on purpose.
    fn stands(&self, address: SocketAddr) -> bool {
        *self.gateway.borrow() == Some(address)
    }

    /// Inserts one row after the other, gently.
    async fn write(&self, table: usize) {
        let name = TABLES[table];
        let sql = format!("insert into {name} (n, even, at) values ($1::bigint, $1::bigint % 2 = 0, $2)");
        let session = connect(&self.database_url, "innocent").await;
        let insert = session.prepare(&sql).await.unwrap();
        for n in 1_i64.. {
            let issued = self.began.elapsed();
            let row: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&n, &(issued.as_micros() as i64)];
            match timeout(PATIENCE, session.execute(&insert, &row)).await {
                Ok(Ok(_)) => self.note(|times| times.writes.add(self.began.elapsed() - issued)),
                Ok(Err(error)) => return self.wrong(format!("a writer of {name} failed: {error:?}")),
                Err(_) => return self.wrong(format!("a writer of {name} waited for more than {PATIENCE:?}")),
            }
            self.written[table].store(n as u64, Ordering::SeqCst);
            sleep(WRITE_EVERY).await;
        }
    }

    /// Asks how the gateway is, as an orchestrator does.
    async fn check_health(&self, path: &str) {
        loop {
            let address = self.gateway().await;
            let asked = Instant::now();
            let answer = timeout(HEALTH_PATIENCE, ask(address, path, "")).await;
            // One that is stopped meanwhile owes no answer.
            if self.stands(address) {
                match answer {
                    Ok(Some(answer)) if answer.status == 200 => self.note(|times| times.health.add(asked.elapsed())),
                    // That the gateway is not ready may be true; the report tells it.
                    Ok(Some(answer)) if path == "/readyz" && answer.status == 503 => {
                        self.note(|times| times.unready += 1);
                    }
                    Ok(Some(answer)) => self.wrong(format!("{path} answered {}", answer.status)),
                    Ok(None) => self.wrong(format!("{path} was not answered: the connection ended")),
                    Err(_) => self.wrong(format!("{path} was not answered within {HEALTH_PATIENCE:?}")),
                }
            }
            sleep(HEALTH_EVERY).await;
        }
    }

    /// Takes a small snapshot now and then, as a page does that is opened. It may be turned away, if told when to come back.
    async fn visit(&self) {
        loop {
            let address = self.gateway().await;
            let asked = Instant::now();
            let answer = timeout(PATIENCE, ask(address, "/v1/snapshot?table=innocent_few", "")).await;
            if self.stands(address) {
                match answer {
                    Ok(Some(answer)) if answer.status == 200 => self.note(|times| times.visits.add(asked.elapsed())),
                    Ok(Some(answer)) if answer.status == 503 && answer.has_header("retry-after") => {
                        self.note(|times| times.turned_away += 1);
                    }
                    Ok(Some(answer)) => self.wrong(format!("a visitor got {}: {:.300}", answer.status, answer.body)),
                    Ok(None) => self.wrong("a visitor was not answered: the connection ended".to_owned()),
                    Err(_) => self.wrong(format!("a visitor was not answered within {PATIENCE:?}")),
                }
            }
            sleep(VISIT_EVERY).await;
        }
    }
}

/// A subscriber that checks what it is told.
struct Subscriber {
    wish: &'static Wish,
    common: Arc<Common>,
    /// The last number of each table that it was told.
    told: [AtomicU64; TABLES.len()],
    /// The gateway that it is ready at.
    following: watch::Sender<Option<SocketAddr>>,
}

impl Subscriber {
    fn new(wish: &'static Wish, common: &Arc<Common>) -> Arc<Subscriber> {
        let following = watch::Sender::new(None);
        Arc::new(Subscriber { wish, common: common.clone(), told: Default::default(), following })
    }

    /// Whether it was told all that is for it up to these numbers.
    fn has(&self, written: [u64; TABLES.len()]) -> bool {
        let each = self.wish.steps.iter().zip(written).zip(&self.told);
        each.into_iter().all(|((step, written), told)| *step == 0 || told.load(Ordering::SeqCst) + step > written)
    }

    /// Connects again and again, each time behind the last cursor.
    async fn follow(self: Arc<Self>) {
        let mut cursor = None;
        loop {
            let address = self.common.gateway().await;
            let ended = self.one_connection(address, &mut cursor).await;
            if self.common.stands(address) {
                self.common.wrong(format!("{}: {ended}", self.wish.parameters));
            }
            sleep(RETRY_AFTER).await;
        }
    }

    /// One connection, to its end; the reason.
    async fn one_connection(&self, address: SocketAddr, cursor: &mut Option<String>) -> String {
        let from = cursor.clone().unwrap_or_else(|| "now".to_owned());
        let url = format!("ws://{address}/v1/feed?from={from}&{}", self.wish.parameters);
        let mut socket = match timeout(PATIENCE, clients::websocket(&url)).await {
            Ok(Ok(socket)) => socket,
            Ok(Err(error)) => return format!("the handshake failed: {error}"),
            Err(_) => return format!("no handshake within {PATIENCE:?}"),
        };
        let mut live_since = None;
        loop {
            match timeout(SILENCE_MAX, socket.next()).await {
                Ok(Some(Ok(Message::Text(text)))) => {
                    let frame: Value = serde_json::from_str(text.as_str()).expect("a frame is JSON");
                    if frame["type"] == "ready" {
                        live_since = Some(self.common.began.elapsed());
                        self.following.send_replace(Some(address));
                    }
                    self.hear(&frame, cursor, live_since);
                }
                Ok(Some(Ok(Message::Close(frame)))) => return format!("closed with {frame:?}"),
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(error))) => return format!("the connection broke: {error}"),
                Ok(None) => return "the connection ended".to_owned(),
                Err(_) => return format!("nothing came for {SILENCE_MAX:?}"),
            }
        }
    }

    /// Checks the frame's place in the chain, and its changes.
    fn hear(&self, frame: &Value, cursor: &mut Option<String>, live_since: Option<Duration>) {
        let wish = self.wish.parameters;
        if ["reset", "error"].iter().any(|kind| frame["type"] == *kind) {
            self.common.wrong(format!("{wish}: {frame:.300}"));
        }
        let Some(next) = frame["cursor"].as_str() else { return };
        if let Some(last) = cursor
            && frame["prev"].as_str() != Some(last)
        {
            self.common.wrong(format!("{wish}: the chain is broken behind {last} by {frame:.300}"));
        }
        *cursor = Some(next.to_owned());
        for change in frame["changes"].as_array().into_iter().flatten() {
            self.hear_of(change, live_since);
        }
    }

    fn hear_of(&self, change: &Value, live_since: Option<Duration>) {
        let table = TABLES.iter().position(|table| change["table"] == *table).expect("a table that was asked for");
        let n = change["new"]["n"].as_u64().unwrap_or_default();
        let last = self.told[table].swap(n, Ordering::SeqCst);
        if n != last + self.wish.steps[table] {
            let wish = self.wish.parameters;
            self.common.wrong(format!("{wish}: number {n} of {} came behind {last}", TABLES[table]));
        }
        let issued = Duration::from_micros(change["new"]["at"].as_u64().unwrap_or_default());
        // What was written while the gateway was away says nothing about it.
        if live_since.is_some_and(|since| since <= issued) {
            self.common.note(|times| times.delivery.add(self.common.began.elapsed() - issued));
        }
    }
}
