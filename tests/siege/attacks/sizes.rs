//! Sizes: few changes that become very many bytes, since many selections send them.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;

use crate::attacks::Field;
use crate::attacks::subscriptions::subscribe_all;
use crate::clients::Client;
use crate::database::connect;

/// How long an attacker rests between two updates.
const UPDATE_EVERY: Duration = Duration::from_millis(500);

/// Updates on and on, while these clients read what it makes.
async fn update(field: &Field, mut clients: Vec<Client<'_>>, update: &str) {
    let session = connect(&field.stage.database_url, "attacker").await;
    let writing = async {
        loop {
            // A failure of the attacker's is no matter of the gateway's.
            let _ = session.batch_execute(update).await;
            tokio::time::sleep(UPDATE_EVERY).await;
        }
    };
    let reading = async {
        join_all(clients.iter_mut().map(|client| client.until_commit())).await;
        field.landed();
        join_all(clients.iter_mut().map(|client| client.drain())).await;
    };
    tokio::join!(writing, reading);
}

/// One update of 3,000 rows, which each of the selections sends whole.
pub async fn many_pages(field: &Field) {
    let request = |id: usize| {
        let filter = format!("id.gt.-{}", id + 1);
        json!({"type": "subscribe", "id": id, "table": "prey_rows", "from": "now", "where": filter})
    };
    let clients = subscribe_all(field, field.size(300, 5_000), request).await;
    update(field, clients, "update prey_rows set v = v + 1").await;
}

/// One large value, which each of the selections sends whole.
pub async fn large_row(field: &Field) {
    const SELECTIONS: usize = 60;
    let attacker = async |n: usize| {
        let mut client = Client::connect(field, "/v1/feed?first=none").await?;
        let filter = format!("id.gt.-{}", n + 1);
        let request = json!({"type": "subscribe", "id": n, "table": "prey", "from": "now", "where": filter});
        client.subscribe(&[request]).await?;
        Some(client)
    };
    let clients = field.crowd(SELECTIONS, attacker).await;
    let bytes = field.size(4_000_000, 50_000_000);
    let sql =
        format!("update prey set doc = jsonb_build_object('at', now(), 'text', repeat('x', {bytes})) where id = 1");
    update(field, clients, &sql).await;
}
