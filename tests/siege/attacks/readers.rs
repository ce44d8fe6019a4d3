//! Readers of rows and of the log: slow ones, and many who begin far back.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::attacks::{Field, write_commits};
use crate::clients::{Client, cursor};

/// How slowly a client takes a snapshot: one frame, then a rest.
const SIP_EVERY: Duration = Duration::from_millis(200);
/// How many bytes of values each commit has that is caught up with.
const COMMIT_BYTES: usize = 10_000;
/// How many rows a slow snapshot has, of 1 KiB each.
const ROWS: usize = 8_000;
/// How long an attacker rests that was refused.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// Snapshots that differ, so that none is shared, and are taken slowly, more than there is disk for.
pub async fn slow_snapshots(field: &Field) {
    let attacker = async |n: usize| {
        loop {
            let path = format!("/v1/feed?table=prey_large&where=id.lte.{}", ROWS + n);
            if let Some(mut client) = Client::connect(field, &path).await {
                while client.next().await.is_some() {
                    tokio::time::sleep(SIP_EVERY).await;
                }
                // Only a refusal ends it.
                field.landed();
            }
            tokio::time::sleep(RETRY_AFTER).await;
        }
    };
    join_all((0..field.size(6, 30)).map(attacker)).await;
}

/// Clients that resume from the same old position, read all that is behind it, and begin again.
pub async fn resumes(field: &Field) {
    let Some(cursor) = cursor(field, "prey").await else { return };
    write_commits(field, field.size(150, 1_100), COMMIT_BYTES).await;
    let path = format!("/v1/feed?table=prey&from={cursor}");
    let (clients, began) = (field.size(30, 200), Instant::now());
    let resume = async |_| {
        let mut client = Client::connect(field, &path).await?;
        client.until_ready().await
    };
    for pass in 0.. {
        let ready = join_all((0..clients).map(&resume)).await.into_iter().flatten().count();
        if pass == 0 {
            let took = began.elapsed().as_secs_f64();
            field.remark(format!("{ready} of {clients} have caught up after {took:.1} s"));
            field.landed();
        }
    }
}
