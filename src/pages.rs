//! Pages of the log that were read a moment ago, shared by all who catch up near each other.
//!
//! When a gateway restarts, all its subscribers come back at once and need the same commits. Each page is read and decoded once for all
//! of them, and each kind of subscription encodes it once, unless it holds large rows. What is kept is bounded in bytes and in time;
//! nobody depends on it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::Result;
use bytes::Bytes;
use tokio::sync::OnceCell;
use tokio::time::sleep;

use crate::change::{Change, Cursor, Part, Place, Position};
use crate::config::{LARGE_BYTES, PAGES_BYTES_MAX, PAGES_KEPT_FOR, PAGES_NEAR};
use crate::filter::Undecidable;
use crate::judging::{Budget, Judging};
use crate::log::{Log, Page, PageSize};
use crate::protocol::{Encoder, Kind};

/// How many kinds of subscriptions a page keeps frames for.
const KINDS_MAX: usize = 16;

/// The pages of one log that somebody may still need.
pub struct Pages {
    log: Log,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The life of the hub's positions in which they were read: in another one they may not be true.
    life: u64,
    /// By where they begin.
    slots: BTreeMap<Place, Slot>,
    bytes: usize,
    /// Questions about cursors that are not answered yet: no more than there are subscribers.
    asked: HashMap<Cursor, Arc<OnceCell<Option<Refusal>>>>,
}

/// Why a cursor cannot be served, and the oldest one that can.
pub type Refusal = (&'static str, Cursor);

#[derive(Clone)]
struct Slot {
    /// Nothing in it where the log does not hold what follows the place.
    page: Arc<OnceCell<Option<Arc<SharedPage>>>>,
    /// What is counted of it.
    bytes: usize,
    used: Instant,
}

/// A page, and what kinds of subscriptions get of it.
pub struct SharedPage {
    begin: Place,
    /// Its parts, in order; never none.
    pub parts: Vec<Part>,
    encoded: Mutex<Encoded>,
}

/// Frames by the kind and by the first part that they are made of.
type Encoded = HashMap<(Kind, usize), Arc<OnceCell<Arc<Frames>>>>;

/// What a kind of subscription gets of a page from a part on.
pub struct Frames {
    /// The first part of which it gets a frame, which everybody has to encode: it names the frame before it. None if it gets nothing.
    pub first: Option<usize>,
    /// All frames behind that one.
    pub rest: Bytes,
    /// What goes on behind them, if there was a first one.
    pub after: Encoder,
}

impl Pages {
    /// No pages yet.
    pub fn new(log: Log) -> Pages {
        Pages { log, state: Mutex::default() }
    }

    /// A page with a part that begins at `place`, and perhaps something before it and behind `until`. None where the log does not hold
    /// that. `life` and `known` are the life and the last commit of the story that the place belongs to (see [`Log::read`]).
    pub async fn read(
        &self,
        life: u64,
        known: Cursor,
        place: Place,
        until: Position,
    ) -> Result<Option<Arc<SharedPage>>> {
        let follows = |page: &Arc<SharedPage>| page.index(place).is_some();
        if let Some((begin, slot)) = self.near(life, place)
            && let Some(page) = self.fill(life, known, begin, until, slot).await?.filter(follows)
        {
            return Ok(Some(page));
        }
        let slot = self.at(life, place);
        Ok(self.fill(life, known, place, until, slot).await?.filter(follows))
    }

    /// A page that begins nearby and holds what follows the place, or one that is being read and may hold it.
    fn near(&self, life: u64, place: Place) -> Option<(Place, Slot)> {
        let mut state = self.lock(life)?;
        let (begin, slot) = state.slots.range_mut(..place).next_back()?;
        let may_hold = match slot.page.get() {
            Some(page) => page.as_ref().is_some_and(|page| page.index(place).is_some()),
            None => place.position - begin.position < PAGES_NEAR,
        };
        slot.used = Instant::now();
        may_hold.then(|| (*begin, slot.clone()))
    }

    /// The page that begins at this place, not read yet perhaps.
    fn at(&self, life: u64, place: Place) -> Slot {
        let new = || Slot { page: Arc::default(), bytes: 0, used: Instant::now() };
        let Some(mut state) = self.lock(life) else { return new() };
        let slot = state.slots.entry(place).or_insert_with(new);
        slot.used = Instant::now();
        slot.clone()
    }

    /// Reads a page that nobody has read yet. If the one who does gives up, another one who waits for it does.
    async fn fill(
        &self,
        life: u64,
        known: Cursor,
        begin: Place,
        until: Position,
        slot: Slot,
    ) -> Result<Option<Arc<SharedPage>>> {
        let read = async || {
            let page = match self.log.read(known, begin, until, PageSize::CATCH_UP).await? {
                Page::Parts(parts) if !parts.is_empty() => Some(Arc::new(SharedPage::new(begin, parts))),
                Page::Parts(_) | Page::Overtaken => None,
            };
            self.account(life, begin, page.as_deref());
            anyhow::Ok(page)
        };
        slot.page.get_or_try_init(read).await.cloned()
    }

    /// Counts a page that was read, and forgets those that nobody used for longest, and one that holds nothing.
    fn account(&self, life: u64, begin: Place, page: Option<&SharedPage>) {
        let Some(mut state) = self.lock(life) else { return };
        match page {
            None => state.remove(begin),
            // Not all the others for one.
            Some(page) if page.bytes() > PAGES_BYTES_MAX => state.remove(begin),
            Some(page) => state.count(begin, page.bytes()),
        }
        while state.bytes > PAGES_BYTES_MAX
            && let Some(oldest) = state.slots.iter().min_by_key(|(_, slot)| slot.used).map(|(begin, _)| *begin)
        {
            state.remove(oldest);
        }
    }

    /// Why the log cannot go on behind this cursor; none if it can. Those who come back with the same one at the same time share a question.
    pub async fn refusal(&self, life: u64, cursor: Cursor) -> Result<Option<Refusal>> {
        let look = async || {
            let extent = self.log.look(cursor.position).await?;
            anyhow::Ok(extent.refusal(cursor).map(|reason| (reason, extent.oldest)))
        };
        let Some(asked) = self.lock(life).map(|mut state| state.asked.entry(cursor).or_default().clone()) else {
            return look().await;
        };
        let mut is_own = false;
        let answer = asked.get_or_try_init(async || {
            is_own = true;
            look().await
        });
        let answer = answer.await.cloned();
        if let Some(mut state) = self.lock(life)
            && state.asked.get(&cursor).is_some_and(|now| Arc::ptr_eq(now, &asked))
        {
            state.asked.remove(&cursor);
        }
        match answer? {
            // Perhaps it was given between that question and this one.
            Some(_) if !is_own => look().await,
            refusal => Ok(refusal),
        }
    }

    /// Forgets what nobody needs any more, for as long as the gateway runs.
    pub async fn age(&self) {
        loop {
            sleep(PAGES_KEPT_FOR).await;
            self.forget();
        }
    }

    fn forget(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = state.slots.iter().filter(|(_, slot)| slot.used.elapsed() >= PAGES_KEPT_FOR);
        for begin in idle.map(|(begin, _)| *begin).collect::<Vec<_>>() {
            state.remove(begin);
        }
    }

    /// The pages of this life; none if a later one began.
    fn lock(&self, life: u64) -> Option<MutexGuard<'_, State>> {
        // What is kept stays whole whatever panicked beside it.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if life > state.life {
            *state = State { life, ..State::default() };
        }
        (life == state.life).then_some(state)
    }
}

impl State {
    /// Counts the page that begins there. Perhaps for the second time: it may have been forgotten while it was read, and read again.
    fn count(&mut self, begin: Place, bytes: usize) {
        if let Some(slot) = self.slots.get_mut(&begin) {
            self.bytes = self.bytes - slot.bytes + bytes;
            slot.bytes = bytes;
        }
    }

    fn remove(&mut self, begin: Place) {
        if let Some(slot) = self.slots.remove(&begin) {
            self.bytes -= slot.bytes;
        }
    }
}

impl SharedPage {
    fn new(begin: Place, parts: Vec<Part>) -> SharedPage {
        SharedPage { begin, parts, encoded: Mutex::default() }
    }

    /// Where a reader stands that has all of it.
    pub fn end(&self) -> Place {
        self.parts.last().expect("a page has parts").place()
    }

    /// The index of the part that begins at this place, if one does: where a page begins says where its parts of a large commit do, so
    /// another page may have none there.
    pub fn index(&self, place: Place) -> Option<usize> {
        if place == self.begin {
            return Some(0);
        }
        let index = self.parts.partition_point(|part| part.place() <= place);
        let ends_there = index > 0 && self.parts[index - 1].place() == place;
        (ends_there && index < self.parts.len()).then_some(index)
    }

    /// Whether it holds a large row, or several: frames of such a page are not kept, since they would be as large for each kind.
    fn is_large(&self) -> bool {
        self.of_changes() >= LARGE_BYTES
    }

    fn of_changes(&self) -> usize {
        self.parts.iter().flat_map(|part| &part.changes).map(Change::bytes).sum()
    }

    /// What it takes in memory with the frames that are made of it: as much again for the JSON of its changes, and for the frames of a
    /// few kinds.
    fn bytes(&self) -> usize {
        let kinds = if self.is_large() { 0 } else { KINDS_MAX };
        (2 + kinds) * (self.of_changes() + 256 * self.parts.len())
    }

    /// What a kind of subscription that has whole commits gets of the parts from this index on; encoded once for all who ask for the same.
    /// None if the page keeps no frames, or those of as many others as it may already: then everybody encodes for themselves.
    ///
    /// Fails as [`Encoder::encode`] does.
    pub async fn frames(
        self: &Arc<Self>,
        kind: &Kind,
        index: usize,
        judging: Judging,
    ) -> Result<Option<Arc<Frames>>, Undecidable> {
        if self.is_large() {
            return Ok(None);
        }
        let slot = {
            let mut encoded = self.encoded.lock().unwrap_or_else(PoisonError::into_inner);
            let wanted = (kind.clone(), index);
            match encoded.get(&wanted) {
                Some(slot) => slot.clone(),
                None if encoded.len() >= KINDS_MAX => return Ok(None),
                None => encoded.entry(wanted).or_default().clone(),
            }
        };
        let encode = || {
            let (page, kind) = (self.clone(), kind.clone());
            judging.run(move |budget| Frames::of(kind, &page.parts[index..], index, budget).map(Arc::new))
        };
        slot.get_or_try_init(encode).await.cloned().map(Some)
    }
}

impl Frames {
    fn of(kind: Kind, parts: &[Part], index: usize, budget: &mut Budget<'_>) -> Result<Frames, Undecidable> {
        let mut encoder = Encoder::new(kind, None);
        let (mut first, mut rest) = (None, Vec::new());
        for (place, part) in parts.iter().enumerate() {
            encoder.encode(&part.open(), budget.meter(part), &mut rest)?;
            if first.is_none() && !rest.is_empty() {
                first = Some(index + place);
                rest.clear();
            }
        }
        Ok(Frames { first, rest: rest.into(), after: encoder })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_is_read_twice_is_counted_once_and_one_that_is_forgotten_not_at_all() {
        let mut state = State::default();
        let begin = Place::after(7);
        state.slots.insert(begin, Slot { page: Arc::default(), bytes: 0, used: Instant::now() });

        state.count(begin, 100);
        state.count(begin, 120);
        state.count(Place::after(8), 50);

        assert_eq!(state.bytes, 120);
        state.remove(begin);
        assert_eq!(state.bytes, 0);
    }
}
