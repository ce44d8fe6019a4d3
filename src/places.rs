//! The places of connections: how many there may be, and which of them makes room for another.
//!
//! Every connection is accepted. One that comes while all places are taken gets a reserved one, on which only those are answered who ask
//! how the gateway is; everybody else is told to come back. A connection that asks for nothing makes room for one that does. Subscribers
//! leave their places; they are counted elsewhere.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::config::{HEAD_GRACE, REQUEST_PATIENCE, RESERVED_CONNECTIONS_MAX, RESERVED_PATIENCE};

/// All places of a gateway.
pub struct Places {
    requests_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// How many connections have an ordinary place.
    taken: usize,
    /// What the next one to wait is called; the oldest has the least number.
    next: u64,
    /// Those in ordinary places that were answered and may ask again.
    idle: BTreeMap<u64, CancellationToken>,
    /// Those in ordinary places that never asked yet.
    silent: BTreeMap<u64, (Instant, CancellationToken)>,
    /// Those in reserved places.
    reserved: BTreeMap<u64, CancellationToken>,
}

/// The place of one connection.
pub struct Place {
    places: Arc<Places>,
    /// Says that the connection has to make room.
    pub leave: CancellationToken,
    /// Whether it may not have an ordinary one.
    pub unwanted: bool,
    spot: Mutex<Spot>,
}

/// What a connection does, and what it is called where it can be made to leave. Locked before the [`State`], never behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Spot {
    Reserved(u64),
    Silent(u64),
    /// Its answer is written, though not all of it may be taken yet, since then.
    Idle(u64, Instant),
    /// It is being answered, since then.
    Busy(Instant),
    /// It is a subscriber.
    Away,
}

impl Places {
    /// Places for so many connections that are not subscribers.
    pub fn new(requests_max: usize) -> Arc<Places> {
        Arc::new(Places { requests_max, state: Mutex::default() })
    }

    /// A place for a connection that was accepted; a reserved one for one that is `unwanted` where others have room.
    pub fn take(self: &Arc<Places>, unwanted: bool) -> Place {
        let leave = CancellationToken::new();
        let mut state = self.lock();
        let number = state.number();
        let spot = if !unwanted && self.room(&mut state) {
            state.taken += 1;
            state.silent.insert(number, (Instant::now(), leave.clone()));
            Spot::Silent(number)
        } else {
            if state.reserved.len() >= RESERVED_CONNECTIONS_MAX
                && let Some((_, oldest)) = state.reserved.pop_first()
            {
                oldest.cancel();
            }
            state.reserved.insert(number, leave.clone());
            Spot::Reserved(number)
        };
        drop(state);
        Place { places: self.clone(), leave, unwanted, spot: Mutex::new(spot) }
    }

    /// Makes some room where there is any to be made, such as after the system refused another open file.
    pub fn make_room(&self) {
        self.lock().let_one_go();
    }

    /// Whether there is an ordinary place, if need be that of a connection that asks for nothing.
    fn room(&self, state: &mut State) -> bool {
        state.taken < self.requests_max || state.let_one_go()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Tells one to leave: the one that has been idle for longest, or else the oldest that never asked and had time to.
    fn let_one_go(&mut self) -> bool {
        let silent = self.silent.first_entry().filter(|oldest| oldest.get().0.elapsed() >= HEAD_GRACE);
        let one = match self.idle.pop_first() {
            Some((_, leave)) => Some(leave),
            None => silent.map(|oldest| oldest.remove().1),
        };
        one.inspect(CancellationToken::cancel).is_some()
    }

    fn forget(&mut self, spot: Spot) {
        match spot {
            Spot::Reserved(number) => drop(self.reserved.remove(&number)),
            Spot::Silent(number) => drop(self.silent.remove(&number)),
            Spot::Idle(number, _) => drop(self.idle.remove(&number)),
            Spot::Busy(_) | Spot::Away => {}
        }
    }
}

impl Place {
    /// A request has come whole. Whether it may be answered: on a reserved place only if it `asks_how_it_is`, unless an ordinary one
    /// has come free meanwhile.
    pub fn begin(&self, asks_how_it_is: bool) -> bool {
        self.change(|spot, places, state| match spot {
            Spot::Reserved(_) if asks_how_it_is => (spot, true),
            Spot::Reserved(_) if self.unwanted || !places.room(state) => (spot, false),
            Spot::Reserved(_) | Spot::Away => {
                state.taken += 1;
                (Spot::Busy(Instant::now()), true)
            }
            _ => (Spot::Busy(Instant::now()), true),
        })
    }

    /// The answer is written, as far as the connection is concerned.
    pub fn rest(&self) {
        self.change(|spot, _, state| match spot {
            Spot::Busy(_) => {
                let number = state.number();
                state.idle.insert(number, self.leave.clone());
                (Spot::Idle(number, Instant::now()), ())
            }
            other => (other, ()),
        });
    }

    /// From now on it counts as a subscriber.
    pub fn leave(&self) {
        self.change(|spot, _, state| {
            state.taken -= usize::from(spot.is_ordinary());
            (Spot::Away, ())
        });
    }

    /// It was none: it takes its place again, whether or not that was given away.
    pub fn come_back(&self) {
        self.change(|spot, _, state| {
            state.taken += usize::from(spot == Spot::Away);
            (Spot::Busy(Instant::now()), ())
        });
    }

    /// Whether it has a reserved place, which it should not keep.
    pub fn is_reserved(&self) -> bool {
        matches!(self.spot(), Spot::Reserved(_))
    }

    /// Whether its client has asked for anything yet, so that the end must not take an answer along.
    pub fn was_asked(&self) -> bool {
        !matches!(self.spot(), Spot::Reserved(_) | Spot::Silent(_))
    }

    /// Since when it is being answered, or rests.
    pub fn since(&self) -> Option<Instant> {
        match self.spot() {
            Spot::Busy(since) | Spot::Idle(_, since) => Some(since),
            _ => None,
        }
    }

    /// Whether it rests.
    pub fn is_idle(&self) -> bool {
        matches!(self.spot(), Spot::Idle(..))
    }

    /// How long its client may take for a request's head.
    pub fn patience(&self) -> Duration {
        if self.is_reserved() { RESERVED_PATIENCE } else { REQUEST_PATIENCE }
    }

    fn spot(&self) -> Spot {
        *self.spot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(Spot, &Places, &mut State) -> (Spot, T)) -> T {
        let mut spot = self.spot.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.places.lock();
        let (now, done) = change(*spot, &self.places, &mut state);
        if now != *spot {
            state.forget(*spot);
        }
        *spot = now;
        done
    }
}

impl Spot {
    fn is_ordinary(self) -> bool {
        matches!(self, Spot::Silent(_) | Spot::Idle(..) | Spot::Busy(_))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}
