//! Crowds: more connections than there are places, that ask for something which lasts, or for nothing.

use std::time::Duration;

use crate::attacks::Field;
use crate::clients::{Line, cursor};

/// How often one more attacker comes once all places are taken.
const PRESS_EVERY: Duration = Duration::from_millis(20);
/// An event stream of a table that nobody writes meanwhile.
const EVENT_STREAM: (&str, &str) = ("/v1/feed?table=prey&from=now", "accept: text/event-stream\r\n");

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
    let (path, headers) = EVENT_STREAM;
    crowd(field, field.size(400, 3_000), async |_| Line::request(field, path, headers).await).await;
}

/// Requests that wait for a change that does not come. They are not answered, so the next one comes without waiting for that.
pub async fn held_requests(field: &Field) {
    let Some(cursor) = cursor(field, "prey").await else { return };
    let path = format!("/v1/changes?wait=60&table=prey&from={cursor}");
    let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", field.address());
    let _held = field.crowd(field.size(400, 3_000), async |_| Line::say(field, &request).await).await;
    loop {
        // Once all places are taken, this one is told so.
        Line::request(field, &path, "").await;
        field.landed();
        tokio::time::sleep(PRESS_EVERY).await;
    }
}

/// Connections on which nothing is said.
pub async fn idle_connections(field: &Field) {
    crowd(field, field.size(400, 3_000), async |_| Line::open(field).await).await;
}

/// Requests whose heads never end.
pub async fn unfinished_heads(field: &Field) {
    let head = "GET /v1/feed?table=prey HTTP/1.1\r\nhost: localhost\r\nx-never: ";
    crowd(field, field.size(400, 3_000), async |_| Line::say(field, head).await).await;
}

/// Connections of all of these kinds, more than the gateway may have files open.
pub async fn file_limit(field: &Field) {
    let (path, headers) = EVENT_STREAM;
    let stream = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n{headers}\r\n", field.address());
    let attacker = async |n: usize| match n % 3 {
        0 => Line::open(field).await,
        1 => Line::say(field, "GET / HTTP/1.1\r\nx-never: ").await,
        _ => Line::say(field, &stream).await,
    };
    crowd(field, field.size(350, 2_000), attacker).await;
}
