//! Subscriptions: very many, begun and ended in a loop, or held by clients that read nothing.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::attacks::Field;
use crate::clients::{Client, Line, Reads, text_frame};
use crate::database::connect;

/// How many subscriptions a connection may have by default.
pub const PER_CONNECTION: usize = 100;
/// How long an attacker rests between two updates.
const UPDATE_EVERY: Duration = Duration::from_millis(50);
/// How many pairs of messages are written at once.
const PAIRS: usize = 200;

/// Connections with a full number of subscriptions each, all of them made by `request`.
pub async fn subscribe_all(field: &Field, count: usize, request: impl Fn(usize) -> Value) -> Vec<Client<'_>> {
    let connect = async |n: usize| {
        let mut client = Client::connect(field, "/v1/feed?first=none").await?;
        let requests: Vec<Value> = (n * PER_CONNECTION..(n + 1) * PER_CONNECTION).map(&request).collect();
        client.subscribe(&requests).await?;
        Some(client)
    };
    field.crowd(count / PER_CONNECTION, connect).await
}

/// Filters of which each has to be asked, and no two are the same; all of them again and again.
pub async fn own_filters(field: &Field) {
    let request = |id: usize| {
        let filter = format!("and(id.gte.{id},id.lte.{id})");
        json!({"type": "subscribe", "id": id, "table": "prey", "from": "now", "where": filter})
    };
    loop {
        subscribe_all(field, field.size(1_000, 10_000), request).await;
        field.landed();
    }
}

/// Subscribes and unsubscribes without waiting for answers, as fast as they are taken.
pub async fn subscribe_loop(field: &Field) {
    let pair = |n: usize| {
        let subscribe = json!({"type": "subscribe", "id": n, "table": "prey", "from": "now"});
        let unsubscribe = json!({"type": "unsubscribe", "id": n});
        [text_frame(&subscribe.to_string()), text_frame(&unsubscribe.to_string())].concat()
    };
    let bytes: Vec<u8> = (0..PAIRS).flat_map(pair).collect();
    let attacker = async |_| {
        if let Some(line) = Line::websocket(field, "/v1/feed?first=none").await {
            field.landed();
            line.flood(&bytes, Reads::Everything).await;
        }
    };
    join_all((0..field.size(2, 4)).map(attacker)).await;
}

/// Sends messages that have to be answered, and reads none of the answers. It has to be cut off.
pub async fn message_flood(field: &Field) {
    let bytes = text_frame(r#"{"type":"ping","id":"flood"}"#).repeat(PAIRS);
    let attacker = async |_| {
        loop {
            if let Some(line) = Line::websocket(field, "/v1/feed?first=none").await {
                line.flood(&bytes, Reads::Nothing).await;
                field.landed();
            }
        }
    };
    join_all((0..field.size(2, 8)).map(attacker)).await;
}

/// Clients with all the subscriptions that they may have, which read nothing while a large row is updated.
pub async fn frozen(field: &Field) {
    let session = connect(&field.stage.database_url, "attacker").await;
    let subscribe = |id: usize| {
        let filter = format!("id.gt.-{}", id + 1);
        let message = json!({"type": "subscribe", "id": id, "table": "prey", "from": "now", "where": filter});
        text_frame(&message.to_string())
    };
    let bytes: Vec<u8> = (0..PER_CONNECTION).flat_map(subscribe).collect();
    let attacker = async |_| {
        let mut line = Line::websocket(field, "/v1/feed?first=none").await?;
        line.send(&bytes).await?;
        Some(line)
    };
    let _held = field.crowd(field.size(5, 20), attacker).await;
    loop {
        // A failure of the attacker's is no matter of the gateway's.
        let _ = session.batch_execute("update prey set body = repeat('x', 100000) where id = 1").await;
        field.landed();
        tokio::time::sleep(UPDATE_EVERY).await;
    }
}
