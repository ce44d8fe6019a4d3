//! A subscriber: one connection, from its greeting to the reason it ends.
//!
//! It owns the socket and drives the connection's subscriptions, all in one task: they put frames into the outbox, it writes what waits
//! there with one call. It answers the client's messages, adds and drops subscriptions, and looks after pings. It waits for nobody but
//! its own client; one that takes nothing for the write time-out is closed.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::future::{AbortHandle, Abortable, FutureExt};
use futures_util::stream::FuturesUnordered;
use futures_util::stream::StreamExt;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::config::{CLOSING_MAX, Config, JUDGES_MAX, LARGE_BYTES, LARGE_BYTES_MAX, REJOINING_MAX};
use crate::filter::weight::Weights;
use crate::hub::Hub;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::outbox::{Outbox, Outlet};
use crate::pages::Pages;
use crate::protocol::{self, Close, Message, Request};
use crate::snapshot::Snapshots;
use crate::socket::{Gone, Incoming, Socket};
use crate::subscription::{self, Ended};

/// After how many messages of a client its own subscriptions, and other clients, get their turn.
const MESSAGES_AT_ONCE: usize = 32;
/// The longest name that a client may give a subscription, in bytes of JSON.
const SUB_BYTES_MAX: usize = 128;

/// What all subscribers share.
pub struct Shared {
    /// The settings.
    pub config: Config,
    /// Where commits arrive.
    pub hub: Arc<Hub>,
    /// Where those are that the hub no longer has.
    pub log: Log,
    /// The same in pages, which those who catch up share.
    pub pages: Pages,
    /// Where current rows come from.
    pub snapshots: Arc<Snapshots>,
    /// Where events are counted.
    pub metrics: Arc<Metrics>,
    /// The weights of all filters.
    pub filters: Weights,
    /// Says that the gateway stops.
    pub stop: CancellationToken,
    /// Says that it stopped long enough: who is still there is cut off.
    pub cut: CancellationToken,
    /// Held by those who judge on a thread beside the others.
    pub judging: Semaphore,
    /// Held by those who fell behind the hub, while they read the log.
    pub rejoining: Semaphore,
    /// A permit for every [`LARGE_BYTES`] that were read from the log and wait for a client.
    pub large: Semaphore,
    closing: Semaphore,
}

impl Shared {
    /// What subscribers need.
    pub fn new(config: Config, hub: Arc<Hub>, log: Log, snapshots: Arc<Snapshots>, metrics: Arc<Metrics>) -> Shared {
        let (stop, cut) = (CancellationToken::new(), CancellationToken::new());
        let pages = Pages::new(log.clone());
        Shared {
            config,
            hub,
            log,
            pages,
            snapshots,
            metrics,
            filters: Weights::default(),
            stop,
            cut,
            judging: Semaphore::new(JUDGES_MAX),
            rejoining: Semaphore::new(REJOINING_MAX),
            large: Semaphore::new(LARGE_BYTES_MAX / LARGE_BYTES),
            closing: Semaphore::new(CLOSING_MAX),
        }
    }
}

/// What a connection speaks, and what it asked for in its address.
pub enum Spoken {
    /// Protocol 1, with a first subscription or none.
    Feed(Option<Request>),
    /// The stream of `/switch/status`, which has no messages.
    SwitchStatus,
}

/// What a client calls a subscription, as JSON text; none for the one of the address.
type Sub = Option<Arc<str>>;

/// A subscription that runs. On the heap by itself: it stays where it is while others come and go.
type Running = Pin<Box<dyn Future<Output = (Sub, Ended)> + Send>>;

struct Subscriber {
    socket: Socket,
    shared: Arc<Shared>,
    outbox: Arc<Outbox>,
    running: FuturesUnordered<Abortable<Running>>,
    /// How to end those that run.
    handles: Vec<(Sub, AbortHandle)>,
    /// Whether the client's messages mean something.
    speaks: bool,
    /// Whether messages may wait in the socket's buffer, of which the kernel no longer tells.
    unheard: bool,
    /// When to look next whether the client is still there.
    look_at: Instant,
    /// When the last ping was sent, or the connection began.
    pinged: Instant,
    /// Whether the client was not heard since then.
    pong_owed: bool,
}

/// Serves one connection until it ends.
pub fn run(socket: Socket, spoken: Spoken, shared: Arc<Shared>) -> impl Future<Output = ()> {
    let now = Instant::now();
    // On the heap before there is a future: one that it is moved through would keep room for a copy.
    let mut subscriber = Box::new(Subscriber {
        look_at: now + shared.config.heartbeat,
        socket,
        shared,
        outbox: Arc::default(),
        running: FuturesUnordered::new(),
        handles: Vec::new(),
        speaks: matches!(spoken, Spoken::Feed(_)),
        unheard: false,
        pinged: now,
        pong_owed: false,
    });
    match spoken {
        Spoken::Feed(request) => {
            subscriber.outbox.push(protocol::hello(subscriber.shared.config.heartbeat.as_millis() as u64));
            if let Some(request) = request {
                subscriber.add(None, Box::new(request));
            }
        }
        Spoken::SwitchStatus => {
            let serving = subscription::switch_status(subscriber.outlet(None), subscriber.shared.clone());
            subscriber.drive(None, serving);
        }
    }
    subscriber.live()
}

impl Subscriber {
    async fn live(mut self: Box<Self>) {
        let gone = self.serve().await;
        let Subscriber { socket, shared, running, .. } = *self;
        drop(running);
        // Not all at once when the gateway stops, so that clients do not come back at another one in the same moment. Never closed.
        let stops = gone == Gone::Close(Close::Stopping);
        let _turn = if stops { Some(shared.closing.acquire().await) } else { None };
        Box::pin(socket.close(gone)).await;
        shared.metrics.subscriber_closed(match gone {
            Gone::Close(close) => close,
            Gone::Closed => Close::Normal,
            Gone::Stalled => Close::NoProgress,
        });
    }

    /// All that happens on the connection, until it ends.
    async fn serve(&mut self) -> Gone {
        loop {
            if let Err(gone) = self.turn().await {
                return gone;
            }
            // A client that never stops talking leaves others their turn.
            tokio::task::yield_now().await;
        }
    }

    /// Waits for whatever comes first, and deals with everything that is there then. Each turn does all of it, so that a stream that
    /// never pauses keeps neither the client from being heard nor the gateway from stopping.
    async fn turn(&mut self) -> Result<(), Gone> {
        let mut ended = None;
        tokio::select! {
            biased;
            // First, so that all of them have put in what they have before it is written.
            Some(end) = self.running.next(), if !self.running.is_empty() => ended = Some(end),
            () = self.outbox.filled() => {}
            () = self.shared.stop.cancelled() => {}
            () = self.socket.readable() => {}
            () = sleep_until(self.look_at) => {}
            () = std::future::ready(()), if self.unheard => {}
        }
        if self.shared.stop.is_cancelled() {
            return Err(Gone::Close(Close::Stopping));
        }
        self.flush().await?;
        // All that ended, or a client that begins and drops subscriptions in a loop would pile them up.
        while let Some(end) = ended {
            if let Ok((sub, end)) = end {
                self.ended(&sub, end)?;
            }
            ended = self.running.next().now_or_never().flatten();
        }
        Box::pin(self.answer()).await?;
        if self.look_at <= Instant::now() {
            Box::pin(self.keep_alive()).await?;
        }
        Ok(())
    }

    /// Writes what waits, and what the protocol owes the client.
    async fn flush(&mut self) -> Result<(), Gone> {
        let mut frames = self.outbox.take();
        if frames.is_empty() && !self.socket.owes() {
            return Ok(());
        }
        let sent = self.socket.send(&mut frames).await?;
        self.shared.metrics.sent(sent);
        Ok(())
    }

    fn outlet(&self, sub: Sub) -> Outlet {
        Outlet::new(self.outbox.clone(), sub)
    }

    /// Begins a subscription of the feed.
    fn add(&mut self, sub: Sub, request: Box<Request>) {
        let serving = subscription::feed(request, self.outlet(sub.clone()), self.shared.clone());
        self.drive(sub, serving);
    }

    fn drive(&mut self, sub: Sub, serving: impl Future<Output = Ended> + Send + 'static) {
        let (handle, registration) = AbortHandle::new_pair();
        self.handles.push((sub.clone(), handle));
        let running: Running = Box::pin(async move { (sub, serving.await) });
        self.running.push(Abortable::new(running, registration));
    }

    /// What the end of a subscription means for the connection: that of the address takes it along.
    fn ended(&mut self, sub: &Sub, ended: Ended) -> Result<(), Gone> {
        self.handles.retain(|(other, _)| other != sub);
        if sub.is_some() {
            return Ok(());
        }
        Err(Gone::Close(match ended {
            Ended::Wrong => Close::BadRequest,
            Ended::CursorGone => Close::CursorGone,
            Ended::Failed => Close::Fault,
        }))
    }

    /// Answers what the client has sent, at most [`MESSAGES_AT_ONCE`] messages of it: its subscriptions get their turn in between.
    async fn answer(&mut self) -> Result<(), Gone> {
        self.unheard = true;
        for _ in 0..MESSAGES_AT_ONCE {
            let Some(message) = self.socket.receive()? else {
                self.unheard = false;
                break;
            };
            match message {
                Incoming::Text(text) if self.speaks => self.obey(Message::parse(&text)),
                Incoming::Binary if self.speaks => {
                    let remedy = "binary messages mean nothing here; send text";
                    self.outbox.push(protocol::error("bad_message", remedy, None));
                }
                _ => {}
            }
            self.flush().await?;
        }
        self.flush().await
    }

    fn obey(&mut self, message: Message) {
        let refusal = match message {
            Message::Ping(id) => return self.outbox.push(protocol::pong(id)),
            Message::Subscribe(id, request) => match self.admit(&id) {
                Ok(sub) => return self.add(Some(sub), request),
                Err((code, mistake)) => (code, mistake, Some(id)),
            },
            Message::Unsubscribe(id) => {
                let sub = id.as_ref().map(|id| id.to_string());
                match self.handles.iter().position(|(other, _)| other.as_deref() == sub.as_deref()) {
                    // It is dropped before it is looked at again, so nothing of it comes behind the answer to a later message.
                    Some(index) => return self.handles.swap_remove(index).1.abort(),
                    None => ("unknown_subscription", unknown(sub.as_deref()), id),
                }
            }
            Message::Wrong(code, message, id) => (code, message, id),
        };
        let (code, mistake, id) = refusal;
        self.outbox.push(protocol::error(code, &mistake, id));
    }

    /// Whether a subscription may have this name here; its name as JSON text.
    fn admit(&self, id: &serde_json::Value) -> Result<Arc<str>, (&'static str, String)> {
        let sub = id.to_string();
        let most = self.shared.config.subscriptions_max;
        if sub.len() > SUB_BYTES_MAX {
            let mistake = format!("the id of a subscription has {} bytes; {SUB_BYTES_MAX} are the most", sub.len());
            Err(("bad_request", mistake))
        } else if self.handles.iter().any(|(other, _)| other.as_deref() == Some(&*sub)) {
            let mistake = format!("subscription {sub} is there already; unsubscribe it first, or choose another id");
            Err(("bad_request", mistake))
        } else if self.handles.len() >= most {
            let mistake = format!(
                "this connection has {most} subscriptions, which is the most; unsubscribe one, or let the operator raise --subscriptions-max"
            );
            Err(("too_many", mistake))
        } else {
            Ok(sub.into())
        }
    }

    /// Sends a ping when it is time for one. Fails when the last one found no answer.
    async fn keep_alive(&mut self) -> Result<(), Gone> {
        let Config { heartbeat, write_timeout, .. } = self.shared.config;
        let waited = self.pinged.elapsed();
        self.look_at = Instant::now() + heartbeat;
        self.pong_owed &= self.socket.heard() < self.pinged;
        if self.pong_owed && waited > heartbeat + write_timeout {
            return Err(Gone::Close(Close::NoProgress));
        }
        if !self.pong_owed {
            (self.pinged, self.pong_owed) = (Instant::now(), true);
            self.outbox.push(protocol::ping());
        }
        if self.speaks && self.handles.is_empty() {
            // No subscription shows that the line is alive.
            self.outbox.push(protocol::status(*self.shared.hub.database().borrow()));
        }
        self.flush().await
    }
}

fn unknown(sub: Option<&str>) -> String {
    match sub {
        Some(sub) => format!("there is no subscription {sub} here; it may have ended"),
        None => "the subscription of the address has ended already; name another one by its \"id\"".to_owned(),
    }
}
