//! Filters that cost much to keep, to judge or to read.

use std::time::Duration;

use serde_json::{Value, json};

use crate::attacks::Field;
use crate::clients::{Client, ask};
use crate::database::connect;

/// What a refusal says of a filter that is too heavy by itself, with those of its connection, or for a change.
pub const TOO_HEAVY: &[&str] = &["weighs", "--filter-weight-max", "too heavy", "steps"];
/// What a refusal says of a number that PostgreSQL would write out.
pub const TOO_LONG: &[&str] = &["exponent", "weighs"];

/// How long an attacker rests between two updates.
const UPDATE_EVERY: Duration = Duration::from_millis(100);
/// After how many of them the gateway has felt it.
const UPDATES_MIN: usize = 3;
/// The largest exponent of a numeric; so many digits does PostgreSQL write.
const EXPONENT_MAX: usize = 131_071;

/// A subscription to the attackers' table, named by a number.
fn subscribe(id: usize, filter: &str) -> Value {
    json!({"type": "subscribe", "id": id, "table": "prey", "columns": "id", "from": "now", "where": filter})
}

/// Subscribes with these filters on one connection, and updates the row that all of them have to judge.
async fn judge(field: &Field, filters: Vec<String>) {
    let body_bytes = field.size(100_000, 1_000_000);
    let session = connect(&field.stage.database_url, "attacker").await;
    let Some(mut client) = Client::connect(field, "/v1/feed?first=none").await else { return };
    let requests: Vec<Value> = filters.iter().enumerate().map(|(id, filter)| subscribe(id, filter)).collect();
    client.subscribe(&requests).await;
    let update = format!("update prey set body = repeat('ab', {}) || clock_timestamp() where id = 1", body_bytes / 2);
    let writing = async {
        for n in 1.. {
            // A failure of the attacker's is no matter of the gateway's.
            let _ = session.batch_execute(&update).await;
            tokio::time::sleep(UPDATE_EVERY).await;
            if n == UPDATES_MIN {
                field.landed();
            }
        }
    };
    tokio::join!(writing, client.drain());
}

fn any_of(conditions: impl Iterator<Item = String>) -> String {
    format!("or({})", conditions.collect::<Vec<_>>().join(","))
}

/// Patterns of which each has to be tried at every place of the text.
pub async fn heavy_like(field: &Field) {
    let pattern = "*a*_a".repeat(8);
    let filter = |n: usize| any_of((0..200).map(|m| format!("body.like.\"{pattern}*_{m}-{n}\"")));
    judge(field, (0..90).map(filter).collect()).await;
}

/// Regular expressions with many states, with and without cases.
pub async fn heavy_match(field: &Field) {
    let filter = |n: usize| {
        let operator = ["match", "imatch"][n % 2];
        any_of((0..8).map(|m| format!("body.{operator}.\"(a|b)*a(a|b){{20}}c{m}-{n}\"")))
    };
    judge(field, (0..100).map(filter).collect()).await;
}

/// Patterns of hundreds of stars.
pub async fn many_stars(field: &Field) {
    let filter = |n: usize| format!("body.like.\"{}c{n}\"", "*a_".repeat(300));
    judge(field, (0..100).map(filter).collect()).await;
}

/// Numbers that are short here, and 131,072 digits long once PostgreSQL has written them out.
pub async fn exponents(field: &Field) {
    let values = field.size(200, 900);
    let filter = |n: usize| {
        let numbers = (0..values).map(|m| format!("1e{}", EXPONENT_MAX - n - m));
        format!("n.in.({})", numbers.collect::<Vec<_>>().join(","))
    };
    let requests: Vec<Value> = (0..field.size(2, 8)).map(|n| subscribe(n, &filter(n))).collect();
    loop {
        if let Some(mut client) = Client::connect(field, "/v1/feed?first=none").await {
            client.subscribe(&requests).await;
            field.landed();
        }
        tokio::time::sleep(UPDATE_EVERY).await;
    }
}

/// Literals that PostgreSQL does not take, another one each time. Sessions that are opened for them break a bound.
pub async fn wrong_literals(field: &Field) {
    const ENOUGH: usize = 100;
    for n in 0.. {
        let path = format!("/v1/snapshot?table=prey&where=at.gt.noon{n}");
        if let Some(answer) = ask(field.address(), &path, "").await {
            let (code, message) = answer.refusal();
            field.refused(code, message);
        }
        if n == ENOUGH {
            field.landed();
        }
    }
}
