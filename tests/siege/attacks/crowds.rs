//! Crowds: more connections than there are places, that ask for something which lasts, or for nothing.

use std::time::Duration;

use crate::attacks::Field;
use crate::clients::Line;

/// How often one more attacker comes once all places are taken.
const PRESS_EVERY: Duration = Duration::from_millis(20);

/// Takes all places, holds them, and presses on.
async fn crowd(field: &Field, count: usize, attacker: impl AsyncFn(usize) -> Option<Line>) {
    let _held = field.crowd(count, &attacker).await;
    field.landed();
    for n in count.. {
        attacker(n).await;
        tokio::time::sleep(PRESS_EVERY).await;
    }
}

/// Event streams that are never read.
pub async fn event_streams(field: &Field) {
    let path = "/v1/feed?table=prey&from=now";
    crowd(field, field.size(400, 3_000), async |_| Line::request(field, path, "accept: text/event-stream\r\n").await)
        .await;
}
