//! The outbox: what waits to be written to one client, from all of its subscriptions together, bounded in bytes.
//!
//! Subscriptions put whole frames in and wait while it is full; whoever owns the connection takes everything at once. It knows nothing
//! of sockets, so one and the same subscription can be written to a WebSocket or into the body of an HTTP answer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};

use crate::config::OUTBOX_BYTES_MAX;
use crate::filter::weight::Weights;
use crate::protocol;

/// How many subscriptions of one client read rows or the log at the same time: each holds a page of it.
const READING_MAX: usize = 4;

/// Frames that wait for one client.
pub struct Outbox {
    waiting: Mutex<Waiting>,
    /// Told when something was put in. One listens: who takes.
    news: Notify,
    /// Told when it was emptied. Every subscription may listen.
    room: Notify,
    reading: Semaphore,
    /// The filters of the client's subscriptions.
    filters: Weights,
}

impl Default for Outbox {
    fn default() -> Outbox {
        Outbox {
            waiting: Mutex::default(),
            news: Notify::new(),
            room: Notify::new(),
            reading: Semaphore::new(READING_MAX),
            filters: Weights::default(),
        }
    }
}

#[derive(Default)]
struct Waiting {
    frames: Vec<Bytes>,
    bytes: usize,
}

impl Outbox {
    /// Puts whole frames in, whatever waits there already: for answers, which are small and few, and written at once.
    pub fn push(&self, frames: Bytes) {
        let mut waiting = self.lock();
        waiting.bytes += frames.len();
        waiting.frames.push(frames);
        self.news.notify_one();
    }

    /// Puts whole frames in where less than [`OUTBOX_BYTES_MAX`] bytes wait there, however large they are; else gives them back. They are
    /// `made` only then: what waits for room is not to be copied yet.
    fn try_put(&self, chunks: Vec<Bytes>, made: impl FnOnce(Vec<Bytes>) -> Vec<Bytes>) -> Result<(), Vec<Bytes>> {
        let mut waiting = self.lock();
        if waiting.bytes >= OUTBOX_BYTES_MAX {
            return Err(chunks);
        }
        let chunks = made(chunks);
        waiting.bytes += chunks.iter().map(Bytes::len).sum::<usize>();
        waiting.frames.extend(chunks.into_iter().filter(|frames| !frames.is_empty()));
        self.news.notify_one();
        Ok(())
    }

    /// The weights of the client's filters, of which only few may be heavy.
    pub fn filters(&self) -> &Weights {
        &self.filters
    }

    /// Waits for leave to read rows or the log, which few subscriptions of one client do at the same time.
    pub async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // Nobody closes the semaphore.
        self.reading.acquire().await.ok()
    }

    /// Waits until nothing is in it: for those who would have to hold what they fetch for the client until then.
    pub async fn emptied(&self) {
        loop {
            let room = self.room.notified();
            if self.lock().frames.is_empty() {
                return;
            }
            room.await;
        }
    }

    /// All that waits, perhaps nothing.
    pub fn take(&self) -> Vec<Bytes> {
        let mut waiting = self.lock();
        waiting.bytes = 0;
        let frames = std::mem::take(&mut waiting.frames);
        self.room.notify_waiters();
        frames
    }

    /// Waits until something is there to be taken. For one listener; cancel-safe.
    pub async fn filled(&self) {
        while self.lock().frames.is_empty() {
            self.news.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A subscription's way into the outbox of its client.
pub struct Outlet {
    outbox: Arc<Outbox>,
    /// What the client calls the subscription, as JSON text; none for the one of the address.
    sub: Option<Arc<str>>,
}

impl Outlet {
    /// The way of the subscription that the client calls so.
    pub fn new(outbox: Arc<Outbox>, sub: Option<Arc<str>>) -> Outlet {
        Outlet { outbox, sub }
    }

    /// What the client calls the subscription.
    pub fn sub(&self) -> Option<&str> {
        self.sub.as_deref()
    }

    /// Where all subscriptions of the client put their frames.
    pub fn outbox(&self) -> Arc<Outbox> {
        self.outbox.clone()
    }

    /// Sends whole frames, waiting while the client is behind.
    pub async fn send(&self, frames: Bytes) {
        self.send_all(vec![frames]).await;
    }

    /// Sends whole frames in this order, waiting while the client is behind.
    pub async fn send_all(&self, chunks: Vec<Bytes>) {
        let mut chunks = chunks;
        loop {
            // Before the look, so that room that is made in between is noticed.
            let room = self.outbox.room.notified();
            match self.try_send_all(chunks) {
                Ok(()) => return,
                Err(back) => chunks = back,
            }
            room.await;
        }
    }

    /// Sends whole frames in this order where the client is not behind; else gives them back as they were.
    pub fn try_send_all(&self, chunks: Vec<Bytes>) -> Result<(), Vec<Bytes>> {
        self.outbox.try_put(chunks, |chunks| match &self.sub {
            None => chunks,
            Some(sub) => chunks.iter().flat_map(|frames| protocol::tagged(frames, sub)).collect(),
        })
    }

    /// Waits until the client took everything.
    pub async fn emptied(&self) {
        self.outbox.emptied().await;
    }
}
