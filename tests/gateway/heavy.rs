//! Filters and selections that cost much: each costs only those who share it, and at most what is documented.

use serde_json::{Value, json};

use crate::harness::{Client, Database, Gateway};

/// A table of texts, one with numbers, and one that has nothing to do with them.
async fn three_tables() -> Database {
    let db = Database::new().await;
    db.run(&[
        "create table heavy (id int primary key, body text)",
        "create table number (id int primary key, n numeric)",
        "create table other (id int primary key)",
    ])
    .await;
    for table in ["heavy", "number", "other"] {
        db.watch(table).await;
    }
    db
}

/// The next frame of this type for this subscription of a socket; others may come before it.
async fn of_sub(client: &mut Client, sub: Value, kind: &str) -> Value {
    loop {
        let text = client.text().await.unwrap_or_else(|code| panic!("closed with {code}, and {kind} was due"));
        let frame: Value = serde_json::from_str(&text).unwrap();
        if frame["sub"] == sub && frame["type"] == kind {
            return frame;
        }
    }
}

#[tokio::test]
async fn a_number_that_would_be_written_out_with_very_many_digits_is_refused() {
    let db = three_tables().await;
    let gateway = Gateway::start(&db).await;
    let numbers: Vec<String> = (0..800).map(|number| format!("1e{}", 131_071 - number)).collect();

    let mut bomb = gateway.subscribe(&format!("table=number&where=n.in.({})", numbers.join(","))).await;
    let mut large = gateway.subscribe("table=number&from=now&where=n.gte.1e1000").await;
    large.ready().await;
    db.run(&["insert into number values (1, 1e1001), (2, 1e999), (3, 1e1000)"]).await;

    let error = bomb.next_of("error", &["hello"]).await;
    assert_eq!(error["code"], "bad_request");
    assert!(error["message"].as_str().unwrap().contains("an exponent beyond 1000"), "{error}");
    let text = large.text().await.unwrap();
    assert_eq!(text.matches(r#""match":"enter""#).count(), 2, "{text:.200}");
}

#[tokio::test]
async fn the_filters_of_a_connection_and_of_a_gateway_weigh_no_more_than_they_may() {
    let db = three_tables().await;
    let gateway = Gateway::start_with(&db, |config| {
        config.filter_weight_max = 10;
        config.filters_weight_max = 12;
    })
    .await;
    let mut client = gateway.subscribe("first=none").await;
    let heavy = |id: &str| {
        let conditions = vec!["body.is.null"; 8].join(",");
        json!({"type": "subscribe", "id": id, "table": "heavy", "where": format!("or({conditions})"), "from": "now"})
    };

    client.say(heavy("a")).await;
    of_sub(&mut client, json!("a"), "ready").await;
    client.say(heavy("b")).await;
    let own = of_sub(&mut client, json!("b"), "error").await;
    let mut other = gateway.subscribe("table=heavy&where=and(id.gt.1,id.gt.2,id.gt.3,id.gt.4,id.gt.5)").await;
    let all = other.next_of("error", &["hello"]).await;
    let mut light = gateway.follow("table=heavy&where=id.gt.1").await;
    client.say(json!({"type": "unsubscribe", "id": "a"})).await;
    client.say(heavy("c")).await;
    of_sub(&mut client, json!("c"), "ready").await;

    for (error, setting) in [(own, "--filter-weight-max"), (all, "--filters-weight-max")] {
        assert_eq!(error["code"], "too_many");
        assert!(error["message"].as_str().unwrap().contains(setting), "{error}");
    }
    assert_eq!(other.closed().await, 4400);
    db.run(&["insert into heavy values (2)"]).await;
    assert_eq!(light.changes().await.len(), 1);
    of_sub(&mut client, json!("c"), "commit").await;
}
