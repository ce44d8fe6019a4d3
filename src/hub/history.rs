//! A topic's history: the frames that all subscriptions of one kind share, oldest first, and each one's place in it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use crate::change::{Cursor, Opened, Place, Position};
use crate::config::WRITE_BYTES_MAX;
use crate::filter::Undecidable;
use crate::protocol::{Chosen, Encoder, Kind};

/// What a chunk takes beside its bytes: its places in two queues, its allocation.
pub(super) const CHUNK_BYTES: usize = 192;

/// A part, and what the topic's subscriptions want of it.
pub(super) type Judged<'p, 't> = (&'p Opened<'p>, Chosen<'t>);

/// What subscriptions of one kind share.
pub struct Topic {
    pub(super) kind: Kind,
    /// What its filter weighs.
    pub(super) weight: u64,
    history: Mutex<History>,
    /// The number that the next chunk will have.
    news: watch::Sender<u64>,
}

struct History {
    chunks: VecDeque<Chunk>,
    /// The number of the first chunk kept.
    first: u64,
    encoder: Encoder,
    /// The chain before the first frame, for those who join before there is one.
    began_at: Cursor,
    /// Where one stands who has sent all of it.
    end: Place,
    /// While a commit is published in parts: the number of its first chunk, and the chain before it.
    unfinished: Option<(u64, Cursor)>,
    /// Set when no frame of this history can be followed by another.
    reset: Option<Arc<str>>,
}

#[derive(Clone)]
struct Chunk {
    bytes: Bytes,
    /// Where one stands who has sent it.
    place: Place,
    /// The cursor of its last frame that has one.
    last: Cursor,
    /// Whether it stands for what was left out, and is in the log only.
    left_out: bool,
}

/// Who writes into a history beside the commits.
pub(super) struct Told<'a> {
    pub encoder: &'a mut Encoder,
    /// Whether no commit is under way in it.
    pub between_commits: bool,
}

/// What there is for a subscriber.
pub enum News {
    /// These bytes, then the subscriber stands here.
    Chunks {
        /// To be written in this order.
        chunks: Vec<Bytes>,
        /// The number of the next chunk.
        next: u64,
        /// How far the subscriber has then come.
        place: Place,
        /// The cursor of the last frame.
        last: Cursor,
    },
    /// Nothing yet.
    Nothing,
    /// What follows is no longer kept: read the log, then join again.
    Behind,
    /// The positions do not go on: begin anew, for this reason.
    Reset(Arc<str>),
}

impl Topic {
    /// A kind that nobody followed before. Where a commit is being published in parts, those that went by count as forgotten: who joins
    /// in front of it has to read the log.
    pub(super) fn new(kind: &Kind, head: Cursor, unfinished: bool) -> Topic {
        let history = History {
            chunks: VecDeque::new(),
            first: u64::from(unfinished),
            encoder: Encoder::new(kind.clone(), Some(head)),
            began_at: head,
            end: Place::after(head.position),
            unfinished: unfinished.then_some((0, head)),
            reset: None,
        };
        let (kind, weight) = (kind.clone(), kind.selection.weight());
        Topic { kind, weight, history: Mutex::new(history), news: watch::Sender::new(0) }
    }

    /// Follows the arrival of chunks.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// What follows chunk `next`, about [`WRITE_BYTES_MAX`] bytes at most.
    pub fn take(&self, next: u64) -> News {
        self.lock().take(next)
    }

    /// Appends what the topic's subscriptions want of these parts; returns the sizes of the new chunks. Fails where that cannot be
    /// said: nothing can follow then.
    pub(super) fn publish(&self, parts: &[Judged<'_, '_>]) -> Result<Vec<usize>, Undecidable> {
        let mut history = self.lock();
        let sizes = history.publish(parts)?;
        if !sizes.is_empty() {
            self.news.send_replace(history.next());
        }
        Ok(sizes)
    }

    /// Leaves out what follows, up to `head` and the beginning of a commit that is `unfinished`: everybody who follows reads it in the log,
    /// and comes back. Returns the size of the chunk that says so.
    pub(super) fn leave_out(&self, head: Cursor, unfinished: bool) -> usize {
        let mut history = self.lock();
        let at = history.next();
        history.encoder = Encoder::new(self.kind.clone(), Some(head));
        history.end = Place::after(head.position);
        // Who joins in front of that commit has to read the log as well.
        history.unfinished = unfinished.then_some((at, head));
        let place = history.end;
        history.chunks.push_back(Chunk { bytes: Bytes::new(), place, last: head, left_out: true });
        self.news.send_replace(history.next());
        CHUNK_BYTES
    }

    /// Ends the history: nothing that was sent can be followed by anything, for this reason.
    pub(super) fn reset(&self, reason: &Arc<str>) {
        self.lock().reset = Some(reason.clone());
        self.news.send_modify(|_| {});
    }

    /// Appends what `tell` writes. Between two commits, who has all of it then stands behind `head`. Returns the size of the new chunk.
    pub(super) fn tell(&self, head: Option<Position>, tell: impl FnOnce(&mut Told<'_>, &mut Vec<u8>)) -> Option<usize> {
        let mut history = self.lock();
        let mut out = Vec::new();
        let between_commits = history.unfinished.is_none();
        tell(&mut Told { encoder: &mut history.encoder, between_commits }, &mut out);
        let place = head.filter(|_| between_commits).map_or(history.end, Place::after);
        let size = history.push(out, place);
        if size.is_some() {
            self.news.send_replace(history.next());
        }
        size
    }

    pub(super) fn forget_first(&self) {
        self.lock().forget_first();
    }

    pub(super) fn join(&self) -> (u64, Cursor) {
        self.lock().join()
    }

    fn lock(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl History {
    fn next(&self) -> u64 {
        self.first + self.chunks.len() as u64
    }

    fn last(&self) -> Cursor {
        self.encoder.last.unwrap_or(self.began_at)
    }

    /// Encodes parts into chunks of about [`WRITE_BYTES_MAX`]; returns their sizes. Chunks end where an unfinished commit begins and
    /// where it ends, so that one can join in front of it. It may begin with any of its parts: those before held nothing for this kind.
    fn publish(&mut self, parts: &[Judged<'_, '_>]) -> Result<Vec<usize>, Undecidable> {
        let mut sizes = Vec::new();
        let mut out = Vec::new();
        let mut place = self.end;
        for (opened, chosen) in parts {
            let part = opened.part;
            if !part.last && self.unfinished.is_none() {
                sizes.extend(self.push(std::mem::take(&mut out), place));
                self.unfinished = Some((self.next(), self.last()));
            }
            let before = out.len();
            self.encoder.write(opened, chosen, &mut out)?;
            if out.len() > before {
                place = part.place();
            }
            if out.len() >= WRITE_BYTES_MAX || !part.last {
                sizes.extend(self.push(std::mem::take(&mut out), place));
            }
            if part.last && self.unfinished.take().is_some() {
                sizes.extend(self.push(std::mem::take(&mut out), place));
            }
        }
        sizes.extend(self.push(out, place));
        Ok(sizes)
    }

    fn push(&mut self, bytes: Vec<u8>, place: Place) -> Option<usize> {
        self.end = place;
        if bytes.is_empty() {
            return None;
        }
        let bytes = Bytes::from(bytes.into_boxed_slice());
        let size = bytes.len() + CHUNK_BYTES;
        let last = self.last();
        self.chunks.push_back(Chunk { bytes, place, last, left_out: false });
        Some(size)
    }

    fn forget_first(&mut self) {
        if self.chunks.pop_front().is_some() {
            self.first += 1;
        }
    }

    fn join(&self) -> (u64, Cursor) {
        self.unfinished.unwrap_or((self.next(), self.last()))
    }

    fn take(&self, next: u64) -> News {
        if let Some(reason) = &self.reset {
            return News::Reset(reason.clone());
        }
        if next < self.first {
            return News::Behind;
        }
        let mut bytes = 0;
        let mut waiting = self.chunks.iter().skip((next - self.first) as usize).peekable();
        let Some(mut end) = waiting.peek().copied() else { return News::Nothing };
        if end.left_out {
            return News::Behind;
        }
        let mut chunks = Vec::new();
        for chunk in waiting {
            if chunk.left_out || (!chunks.is_empty() && bytes + chunk.bytes.len() > WRITE_BYTES_MAX) {
                break;
            }
            bytes += chunk.bytes.len();
            chunks.push(chunk.bytes.clone());
            end = chunk;
        }
        News::Chunks { next: next + chunks.len() as u64, place: end.place, last: end.last, chunks }
    }
}
