//! Every change arrives, whole, as it was made: operations, values, transactions, tables of every kind.

use serde_json::{Value, json};

use crate::harness::{Database, Gateway, until};

#[tokio::test]
async fn every_operation_arrives_with_old_and_new_values() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("table=switch").await;

    db.run(&[
        "insert into switch (id, name) values (10, 'Attic')",
        "update switch set status = true, level = 2 where id = 10",
        "delete from switch where id = 10",
        "truncate switch",
    ])
    .await;

    let attic = json!({"id": 10, "name": "Attic", "status": false, "level": 0});
    let lit = json!({"id": 10, "name": "Attic", "status": true, "level": 2});
    let key = json!({"id": 10});
    let table = "public.switch";
    assert_eq!(client.changes().await, [json!({"op": "insert", "table": table, "key": key, "new": attic})]);
    assert_eq!(
        client.changes().await,
        [json!({"op": "update", "table": table, "key": key, "new": lit, "old": attic, "changed": ["status", "level"]})]
    );
    assert_eq!(client.changes().await, [json!({"op": "delete", "table": table, "key": key, "old": lit})]);
    assert_eq!(client.changes().await, [json!({"op": "truncate", "table": table, "key": null})]);
}

#[tokio::test]
async fn a_transaction_arrives_as_one_commit_in_the_order_it_was_made() {
    let db = Database::with_switch().await;
    db.run(&["create table lamp (id int primary key)"]).await;
    db.watch("lamp").await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("").await;

    db.transaction(&[
        "insert into lamp select generate_series(1, 3)",
        "update switch set level = 9 where id <= 2",
        "delete from lamp where id = 2",
    ])
    .await;
    db.run(&["insert into lamp values (4)"]).await;

    let commit = client.commit().await;
    let told: Vec<String> = commit["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| {
            format!("{} {} {}", change["op"].as_str().unwrap(), change["table"].as_str().unwrap(), change["key"]["id"])
        })
        .collect();
    assert_eq!(
        told,
        [
            "insert public.lamp 1",
            "insert public.lamp 2",
            "insert public.lamp 3",
            "update public.switch 1",
            "update public.switch 2",
            "delete public.lamp 2"
        ]
    );
    assert_eq!(client.changes().await.len(), 1);
}

#[tokio::test]
async fn what_was_rolled_back_is_absent() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("").await;

    db.run(&["begin; update switch set level = 1; rollback"]).await;
    db.transaction(&[
        "savepoint a",
        "update switch set level = 2 where id = 1",
        "rollback to a",
        "update switch set level = 3 where id = 2",
        "savepoint b",
        "update switch set level = 4 where id = 3",
        "rollback to b",
    ])
    .await;
    db.transaction(&["savepoint a", "update switch set level = 2", "rollback to a"]).await;
    db.run(&["update switch set level = 5 where id = 4"]).await;

    let first = client.changes().await;
    assert_eq!(first.len(), 1);
    assert_eq!(first[0]["new"]["level"], 3);
    assert_eq!(client.changes().await[0]["new"]["level"], 5);
}

#[tokio::test]
async fn keys_that_change_or_are_swapped_are_told_by_old_and_new() {
    let db = Database::new().await;
    db.run(&[
        "create table t (id int, constraint t_pkey primary key (id) deferrable, v text)",
        "insert into t values (1, 'a'), (2, 'b')",
    ])
    .await;
    db.watch("t").await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("").await;

    db.run(&["update t set id = 3 - id", "update t set id = id + 10"]).await;

    let swapped: Vec<(Value, Value)> =
        client.changes().await.iter().map(|change| (change["old"].clone(), change["new"].clone())).collect();
    assert_eq!(
        swapped,
        [
            (json!({"id": 1, "v": "a"}), json!({"id": 2, "v": "a"})),
            (json!({"id": 2, "v": "b"}), json!({"id": 1, "v": "b"}))
        ]
    );
    let moved = client.changes().await;
    assert_eq!(moved[0]["changed"], json!(["id"]));
    assert_eq!(moved[0]["key"], moved[0]["new"].as_object().map(|row| json!({"id": row["id"]})).unwrap());
}

#[tokio::test]
async fn tables_of_every_kind_speak_under_their_own_names() {
    let db = Database::new().await;
    db.run(&[
        "create table keyless (v text)",
        r#"create schema "My Schema"; create table "My Schema"."Odd ""Näme""" ("Ké""y" int primary key, "select" text)"#,
        "create table measured (at date, n int, primary key (at, n)) partition by range (at)",
        "create table measured_a partition of measured for values from ('2026-01-01') to ('2026-02-01')",
        "create table measured_b partition of measured for values from ('2026-02-01') to ('2026-03-01')",
    ])
    .await;
    for table in ["keyless", r#""My Schema"."Odd ""Näme""""#, "measured"] {
        db.watch(table).await;
    }
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("").await;

    db.run(&[
        "insert into keyless values ('x')",
        r#"insert into "My Schema"."Odd ""Näme""" values (1, 'y')"#,
        "insert into measured values ('2026-01-15', 1)",
        "insert into measured_b values ('2026-02-15', 2)",
        "update measured set at = '2026-02-01' where n = 1",
        "truncate measured",
    ])
    .await;

    assert_eq!(
        client.changes().await,
        [json!({"op": "insert", "table": "public.keyless", "key": null, "new": {"v": "x"}})]
    );
    assert_eq!(
        client.changes().await,
        [
            json!({"op": "insert", "table": "My Schema.Odd \"Näme\"", "key": {"Ké\"y": 1}, "new": {"Ké\"y": 1, "select": "y"}})
        ]
    );
    let change = client.changes().await.remove(0);
    assert_eq!((&change["table"], &change["key"]), (&json!("public.measured"), &json!({"at": "2026-01-15", "n": 1})));
    assert_eq!(client.changes().await[0]["table"], "public.measured");
    // A row that moves between partitions is deleted there and inserted here: that is what PostgreSQL does.
    let moved: Vec<Value> = client.changes().await.iter().map(|change| change["op"].clone()).collect();
    assert_eq!(moved, ["delete", "insert"]);
    assert_eq!(client.changes().await[0]["op"], "truncate");
}

#[tokio::test]
async fn a_page_of_a_large_commit_costs_what_it_holds() {
    let db = Database::new().await;
    db.run(&["create table t (id int primary key)"]).await;
    db.watch("t").await;
    let gateway = Gateway::start(&db).await;
    db.run(&["insert into t select generate_series(1, 30000)"]).await;
    until("the commit has a position", async || gateway.metric("switchboard_position").await == 1.0).await;

    db.run(&["begin", "select count(*) from switchboard.commit as c, switchboard.read(1, c.nonce, 0, null, 1, 100, 1000000, false) where c.position = 1"]).await;

    // Counted since the transaction began.
    let fetched =
        "select seq_tup_read + idx_tup_fetch from pg_stat_xact_all_tables where relid = 'switchboard.log'::regclass";
    let fetched: i64 = db.value(fetched).await;
    assert!((100..1_000).contains(&fetched), "{fetched} rows of the log were fetched for a page of 100");
}
