//! Storms: everybody comes back at once.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::attacks::{Field, write_commits};
use crate::clients::{Client, cursor};

/// How many different selections the clients have.
const SELECTIONS: usize = 10;
/// How many bytes of values each commit has that they missed.
const COMMIT_BYTES: usize = 100;
/// The share of the time from which as many come as a large site has.
const LARGE_FROM: Duration = Duration::from_secs(60);

/// Restarts the gateway, and has clients come back that stand behind it by many commits.
pub async fn restart(field: &Field) {
    let Some(cursor) = cursor(field, "prey").await else { return };
    write_commits(field, field.size(200, 1_000), COMMIT_BYTES).await;
    if let Err(late) = field.stage.restart(field.settings()).await {
        field.violation(late);
    }
    let count = if field.share >= LARGE_FROM { 10_000 } else { field.size(100, 1_000) };
    let began = Instant::now();
    let attacker = async |n: usize| {
        let path = format!("/v1/feed?table=prey&from={cursor}&where=id.gt.-{}", n % SELECTIONS + 1);
        Client::connect(field, &path).await
    };
    let mut clients = field.crowd(count, attacker).await;
    let ready = join_all(clients.iter_mut().map(|client| client.until_ready())).await.into_iter().flatten().count();
    field.remark(format!("{ready} of {count} were live {:.1} s after the restart", began.elapsed().as_secs_f64()));
    if ready < count {
        field.violation(format!("{} of {count} clients did not come back", count - ready));
    }
    field.landed();
    join_all(clients.iter_mut().map(|client| client.drain())).await;
}
