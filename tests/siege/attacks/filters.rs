//! Filters that cost much to keep, to judge or to read.

use std::time::Duration;

use serde_json::{Value, json};

use crate::attacks::Field;
use crate::clients::Client;
use crate::database::connect;

/// What a refusal says of a filter that is too heavy by itself, with those of its connection, or for a change.
pub const TOO_HEAVY: &[&str] = &["weighs", "--filter-weight-max", "too heavy", "steps"];

/// How long an attacker rests between two updates.
const UPDATE_EVERY: Duration = Duration::from_millis(100);

/// A subscription to the attackers' table, named by a number.
fn subscribe(id: usize, filter: &str) -> Value {
    json!({"type": "subscribe", "id": id, "table": "prey", "columns": "id", "from": "now", "where": filter})
}

/// Subscribes with these filters on one connection, and updates the row that all of them have to judge.
async fn judge(field: &Field, filters: Vec<String>, body_bytes: usize) {
    let session = connect(&field.stage.database_url, "attacker").await;
    let Some(mut client) = Client::connect(field, "/v1/feed?first=none").await else { return };
    let requests: Vec<Value> = filters.iter().enumerate().map(|(id, filter)| subscribe(id, filter)).collect();
    client.subscribe(&requests).await;
    let update = format!("update prey set body = repeat('ab', {}) || clock_timestamp() where id = 1", body_bytes / 2);
    let writing = async {
        loop {
            // A failure of the attacker's is no matter of the gateway's.
            let _ = session.batch_execute(&update).await;
            field.landed();
            tokio::time::sleep(UPDATE_EVERY).await;
        }
    };
    tokio::join!(writing, client.drain());
}

/// Patterns of which each has to be tried at every place of the text.
pub async fn heavy_like(field: &Field) {
    let pattern = "*a*_a".repeat(8);
    let filter = |n: usize| {
        let conditions: Vec<String> = (0..200).map(|m| format!("body.like.\"{pattern}*_{m}-{n}\"")).collect();
        format!("or({})", conditions.join(","))
    };
    judge(field, (0..90).map(filter).collect(), field.size(100_000, 1_000_000)).await;
}
