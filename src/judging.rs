//! Judging pages of the log: here, as long as nobody has to wait for it, or beside the others on a thread of its own.

use std::future::pending;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::spawn_blocking;

use crate::change::{Change, Part};
use crate::config::{JUDGE_STEPS_MAX, JUDGE_STEPS_PER_BYTE, TOPIC_STEPS_MAX};
use crate::filter::{Meter, Undecidable};

/// Where a page is judged, and so how long that may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Judging {
    /// On the thread that serves others too: [`TOPIC_STEPS_MAX`] for the page.
    Here,
    /// On a thread beside: [`JUDGE_STEPS_MAX`] for each part, and more for its bytes.
    Beside,
}

/// The steps that are left for a page.
pub struct Budget<'a> {
    meter: Meter<'a>,
    /// Set when nobody waits any more. None where the page is judged here.
    given_up: Option<&'a AtomicBool>,
}

impl Judging {
    /// Does the work where it belongs. If nobody waits for it any more, it ends at its next step.
    pub async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce(&mut Budget<'_>) -> Result<T, Undecidable> + Send + 'static,
    ) -> Result<T, Undecidable> {
        if self == Judging::Here {
            return work(&mut Budget { meter: Meter::new(TOPIC_STEPS_MAX), given_up: None });
        }
        let given_up = Arc::new(AtomicBool::new(false));
        let _watch = GivesUp(given_up.clone());
        let working =
            spawn_blocking(move || work(&mut Budget { meter: Meter::new(0), given_up: Some(&given_up) })).await;
        match working.map_err(|error| error.try_into_panic()) {
            Ok(done) => done,
            Err(Ok(panic)) => resume_unwind(panic),
            // The runtime ends, with all who wait.
            Err(Err(_)) => pending().await,
        }
    }
}

impl<'a> Budget<'a> {
    /// The meter for the next part.
    pub fn meter(&mut self, part: &Part) -> &mut Meter<'a> {
        if let Some(given_up) = self.given_up {
            let bytes: usize = part.changes.iter().map(Change::bytes).sum();
            let more = JUDGE_STEPS_PER_BYTE.saturating_mul(bytes as u64);
            self.meter = Meter::until(JUDGE_STEPS_MAX.saturating_add(more), given_up);
        }
        &mut self.meter
    }
}

/// Says that nobody waits any more.
struct GivesUp(Arc<AtomicBool>);

impl Drop for GivesUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
