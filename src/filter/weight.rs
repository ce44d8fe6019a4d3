//! What filters cost: one model, from which all bounds follow.
//!
//! - A filter's **weight** is what it takes while it is there: 1 for each condition, and 1 for every [`WEIGHT_BYTES`] of what it holds, its
//!   values as PostgreSQL spells them and its patterns as they are compiled. One filter weighs at most [`FILTER_WEIGHT_MAX`]; those of a
//!   connection, and those of a gateway, what [`Weights`] allows.
//! - What it costs to judge a row is counted in **steps**, of about a nanosecond each: some for each condition that is looked at, and for
//!   each byte of the column's value as many as the condition takes for a byte. They are counted while it is judged, by a [`Meter`], so
//!   that the same filter and the same change cost the same everywhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::Undecidable;
use super::node::Check;
use super::pattern::REGEX_CACHE_BYTES_MAX;

/// The most that one filter may weigh: about a megabyte.
pub const FILTER_WEIGHT_MAX: u64 = 5_000;
/// How many bytes weigh as much as a condition.
pub const WEIGHT_BYTES: u64 = 256;
/// What a value takes beside its text, in bytes.
const VALUE_BYTES: u64 = 64;
/// What a state of a compiled regular expression takes, about, in bytes.
const STATE_BYTES: u64 = 64;
/// What a change costs whatever is asked about it.
pub const CHANGE_STEPS: u64 = 32;
/// What one condition costs on a value of no length.
const CONDITION_STEPS: u64 = 64;
/// What each byte of a value costs whatever is done with it: it has to be read.
const READING_STEPS: u64 = 2;

/// What a condition costs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Weight {
    /// While it is there.
    pub weight: u64,
    /// Each time when it is looked at, for each byte of its column's value.
    pub steps_per_byte: u64,
}

impl Weight {
    pub fn of(check: &Check) -> Weight {
        let number = |usize: usize| u64::try_from(usize).unwrap_or(u64::MAX);
        let (bytes, steps) = match check {
            Check::Compare(_, literal) => (VALUE_BYTES + number(literal.text.len()), 1),
            Check::In(literals) => {
                let bytes = literals.iter().map(|literal| VALUE_BYTES + number(literal.text.len())).sum();
                // It is looked for by halves.
                (bytes, 1 + u64::from(literals.len().checked_ilog2().unwrap_or(0)))
            }
            Check::Null | Check::Is(_) => (0, 0),
            Check::Like(_, like, pattern) => (number(pattern.len() + like.bytes()), number(like.steps())),
            Check::Regex(_, regex, pattern) => {
                (number(pattern.len() + REGEX_CACHE_BYTES_MAX) + STATE_BYTES.saturating_mul(regex.states), regex.states)
            }
        };
        Weight { weight: 1 + bytes / WEIGHT_BYTES, steps_per_byte: READING_STEPS.saturating_add(steps) }
    }

    /// What the condition costs on a value of so many bytes.
    pub fn steps(self, bytes: usize) -> u64 {
        CONDITION_STEPS.saturating_add(self.steps_per_byte.saturating_mul(bytes as u64))
    }
}

/// Counts the steps of judging, up to a bound.
#[derive(Debug)]
pub struct Meter<'a> {
    left: u64,
    /// Set when nobody waits for the judgement any more.
    given_up: Option<&'a AtomicBool>,
}

impl<'a> Meter<'a> {
    /// A meter that stops behind so many steps.
    pub fn new(steps_max: u64) -> Meter<'a> {
        Meter { left: steps_max, given_up: None }
    }

    /// The same, which also stops when this is set.
    pub fn until(steps_max: u64, given_up: &'a AtomicBool) -> Meter<'a> {
        Meter { left: steps_max, given_up: Some(given_up) }
    }

    /// How many steps are left.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Takes some steps, before they are done.
    pub fn spend(&mut self, steps: u64) -> Result<(), Undecidable> {
        let given_up = self.given_up.is_some_and(|given_up| given_up.load(Ordering::Relaxed));
        self.left = self.left.checked_sub(steps).filter(|_| !given_up).ok_or(Undecidable::TooHeavy)?;
        Ok(())
    }
}

/// The weights of the filters that are there, on one side of the gateway: of a connection, or of all.
#[derive(Clone, Default, Debug)]
pub struct Weights(Arc<AtomicU64>);

impl Weights {
    /// Adds a weight where the sum stays within a bound; it is taken off again when what comes back is dropped.
    pub fn add(&self, weight: u64, weight_max: u64) -> Option<Weighing> {
        let add = |sum: u64| sum.checked_add(weight).filter(|sum| *sum <= weight_max);
        let added = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        added.ok().map(|_| Weighing { weight, all: self.clone() })
    }

    /// How much there is.
    pub fn sum(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A weight that counts for as long as this is there.
#[derive(Debug)]
pub struct Weighing {
    weight: u64,
    all: Weights,
}

impl Drop for Weighing {
    fn drop(&mut self) {
        self.all.0.fetch_sub(self.weight, Ordering::Relaxed);
    }
}
