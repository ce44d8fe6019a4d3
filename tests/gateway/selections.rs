//! Selections: row filters and columns, on the rows and on the stream, and what becomes of them when a table is altered.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::harness::{Client, Database, Gateway};

/// The ids of rows or of changes' keys.
fn ids(rows: &[Value]) -> Vec<i64> {
    rows.iter().map(|row| row["id"].as_i64().unwrap_or_else(|| row["key"]["id"].as_i64().unwrap())).collect()
}

/// Each change as `op match id`.
fn told(changes: &[Value]) -> Vec<String> {
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    changes.iter().map(|c| format!("{} {} {}", word(&c["op"]), word(&c["match"]), c["key"]["id"])).collect()
}

/// What follows an alteration: up to `ready`, or up to the close.
async fn after_altering(client: &mut Client) -> Vec<Value> {
    let mut frames = Vec::new();
    while let Ok(frame) = client.frame().await {
        match frame["type"].as_str().unwrap() {
            "position" | "status" | "hello" => {}
            "ready" => return frames,
            _ => frames.push(frame),
        }
    }
    frames
}

#[tokio::test]
async fn a_filter_chooses_the_rows_and_says_how_a_row_moves_through_it() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.subscribe("table=switch&where=and(level.gte.3,name.neq.Cellar)").await;

    let (rows, _) = client.snapshot().await;
    db.run(&[
        "begin;
         update switch set level = 4 where id = 1; update switch set level = 5 where id = 2;
         update switch set level = 0 where id = 3; update switch set level = 2 where id = 4;
         insert into switch (id, name, status, level) values (5, 'Cellar', true, 9), (6, 'Attic', true, 9);
         delete from switch where id in (1, 3, 5);
         commit",
        "truncate switch",
    ])
    .await;
    let changes = client.changes().await;
    let truncate = client.changes().await;

    assert_eq!(ids(&rows), [1, 3]);
    assert_eq!(
        told(&changes),
        ["update stay 1", "update enter 2", "update leave 3", "insert enter 6", "delete leave 1"]
    );
    assert_eq!(truncate, [json!({"op": "truncate", "table": "public.switch", "key": null})]);
}

#[tokio::test]
async fn columns_are_those_asked_for_and_those_of_the_key() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.subscribe("table=switch&columns=level,name&where=id.eq.1").await;

    let (rows, _) = client.snapshot().await;
    db.run(&["update switch set status = not status, level = 8 where id = 1", "delete from switch where id = 1"]).await;
    let update = client.changes().await;
    let delete = client.changes().await;

    assert_eq!(rows, [json!({"id": 1, "name": "Front door", "level": 3})]);
    let (old, new) =
        (json!({"id": 1, "name": "Front door", "level": 3}), json!({"id": 1, "name": "Front door", "level": 8}));
    let table = "public.switch";
    assert_eq!(
        update,
        [
            json!({"op": "update", "table": table, "key": {"id": 1}, "new": new, "old": old, "changed": ["level"], "match": "stay"})
        ]
    );
    assert_eq!(delete, [json!({"op": "delete", "table": table, "key": {"id": 1}, "old": new, "match": "leave"})]);
}

#[tokio::test]
async fn a_resumed_subscription_and_a_live_one_get_the_same_frames() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;
    let query = "table=switch&columns=status&where=or(level.in.(3,7),name.like.W*)";
    let mut live = gateway.subscribe(&format!("{query}&from=now")).await;
    let from = live.ready().await["cursor"].as_str().unwrap().to_owned();
    db.run(&[
        "update switch set level = 9 where id = 1",
        "begin; update switch set level = 7 where id = 1; update switch set level = 7 where id > 1; commit",
        "update switch set name = 'X' || id, level = id",
        "delete from switch where id > 2",
    ])
    .await;

    let mut resumed = gateway.subscribe(&format!("{query}&from={from}")).await;

    let commits: [&[&str]; 4] = [
        &["update leave 1"],
        &["update enter 1", "update stay 2", "update stay 3", "update enter 4"],
        &["update leave 1", "update leave 2", "update stay 3", "update leave 4"],
        &["delete leave 3"],
    ];
    for expected in commits {
        let between = ["hello", "ready", "position"];
        let (a, b) = (live.commit().await, resumed.next_of("commit", &between).await);
        assert_eq!(told(a["changes"].as_array().unwrap()), expected);
        assert_eq!((&a["changes"], &a["cursor"]), (&b["changes"], &b["cursor"]));
    }
}

#[tokio::test]
async fn numbers_are_compared_exactly_and_literals_read_as_their_column_reads_them() {
    let db = Database::new().await;
    db.run(&[
        "create table t (id bigint primary key, at timestamptz, n numeric)",
        "insert into t values (9007199254740992, '2026-01-01T00:00:00+00', 1.0), (9007199254740993, '2026-01-01T01:00:00+01', 1.00)",
    ])
    .await;
    db.watch("t").await;
    let gateway = Gateway::start(&db).await;
    for (filter, expected) in [
        ("id.gt.9007199254740992", vec![9007199254740993_i64]),
        ("id.in.(9007199254740993)", vec![9007199254740993]),
        ("at.eq.2025-12-31T19:00:00-05", vec![9007199254740992, 9007199254740993]),
        ("n.eq.1.000", vec![9007199254740992, 9007199254740993]),
        ("and(n.eq.1,at.lt.2026-01-01)", vec![]),
    ] {
        // A plus sign in an address is a blank.
        let mut client = gateway.subscribe(&format!("table=t&where={filter}")).await;
        let (rows, _) = client.snapshot().await;
        assert_eq!(ids(&rows), expected, "{filter}");

        db.run(&["update t set n = n where id = 9007199254740993", "update t set n = n"]).await;

        let changed = if expected.len() == 2 { vec![9007199254740993] } else { expected.clone() };
        if !expected.is_empty() {
            assert_eq!(ids(&client.changes().await), changed, "{filter}");
            assert_eq!(ids(&client.changes().await), expected, "{filter}");
        }
    }
}

#[tokio::test]
async fn a_selection_that_cannot_be_is_refused_with_what_is_there() {
    let db = Database::with_switch().await;
    db.run(&["create table other (id int primary key)"]).await;
    db.watch("other").await;
    let gateway = Gateway::start(&db).await;

    for (query, remedy) in [
        ("table=switch&where=levle.gte.3", "\"id\", \"name\", \"status\" and \"level\""),
        ("table=switch&where=level.gte.x", "write a value of type integer"),
        ("where=level.gte.3", "public.other"),
        ("table=switch&columns=nonsense", "it has id, name, status, level"),
        ("columns=level", "public.other has no such column"),
    ] {
        let mut client = gateway.subscribe(query).await;

        let error = client.next_of("error", &["hello"]).await;
        assert_eq!(error["code"], "bad_request", "{query}");
        assert!(error["message"].as_str().unwrap().contains(remedy), "{query}: {error}");
        assert_eq!(client.closed().await, 4400);
    }
    let (status, body) = gateway.get("/v1/feed?table=switch&where=level.bigger.3").await;
    assert_eq!(status, 400);
    assert!(body.contains("gte"), "it names the operators: {body}");
}

#[tokio::test]
async fn filters_that_are_given_again_all_have_to_hold_up_to_a_bound() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;
    let query = format!("table=switch&where=level.lt.7{}", "&where=id.gt.1".repeat(200));
    let mut client = gateway.subscribe(&query).await;
    let mut greedy = gateway.subscribe(&format!("table=switch{}", "&where=id.gt.1".repeat(1000))).await;

    let (rows, _) = client.snapshot().await;
    db.run(&["update switch set level = 2"]).await;

    let error = greedy.next_of("error", &["hello"]).await;
    assert!(error["message"].as_str().unwrap().contains("more than 256 conditions"), "{error}");
    assert_eq!(ids(&rows), [2, 4]);
    assert_eq!(told(&client.changes().await), ["update stay 2", "update enter 3", "update stay 4"]);
}

#[tokio::test]
async fn one_subscription_of_several_tables_gets_one_commit_for_a_transaction() {
    let db = Database::with_switch().await;
    db.run(&["create table note (id int primary key, level int)"]).await;
    db.watch("note").await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.subscribe("table=note,switch&where=level.gt.5&columns=level").await;
    client.snapshot().await;

    db.run(&["begin; insert into note values (1, 6), (2, 1); update switch set level = 9 where id = 2; commit"]).await;

    assert_eq!(told(&client.changes().await), ["insert enter 1", "update enter 2"]);
}

#[tokio::test]
async fn an_altered_table_ends_in_a_reset_or_an_error_and_never_in_silence() {
    let db = Database::new().await;
    let gateway = Gateway::start(&db).await;
    let cases: [(&str, &str, Option<&str>); 9] = [
        ("alter table t rename column v to w", "&where=v.eq.1", Some("\"w\"")),
        ("alter table t rename column v to w", "&columns=v", Some("it has id, w")),
        ("alter table t rename column v to w", "", None),
        ("alter table t drop column v", "&where=v.in.(1,2)", Some("\"id\"")),
        ("alter table t alter v type text", "&where=v.eq.1", None),
        ("alter table t alter v type bigint", "&where=v.gte.1", None),
        ("alter table t rename to u", "", Some("is not watched")),
        ("drop table t", "&where=id.eq.1", Some("is not watched")),
        ("select switchboard.unwatch('t')", "&where=id.eq.1", Some("is not watched")),
    ];
    for (alteration, selection, error) in cases {
        db.run(&["create table t (id int primary key, v int)", "insert into t values (1, 1)"]).await;
        db.watch("t").await;
        let mut client = gateway.subscribe(&format!("table=t{selection}")).await;
        client.snapshot().await;

        db.run(&[alteration]).await;
        let frames = after_altering(&mut client).await;

        assert_eq!((&frames[0]["type"], &frames[0]["reason"]), (&json!("reset"), &json!("schema")), "{alteration}");
        match error {
            None => assert_eq!(frames[1]["rows"].as_array().unwrap().len(), 1, "{alteration}: {frames:?}"),
            Some(remedy) => {
                assert_eq!(frames[1]["code"], "bad_request", "{alteration}: {frames:?}");
                assert!(frames[1]["message"].as_str().unwrap().contains(remedy), "{alteration}: {frames:?}");
            }
        }
        db.run(&["drop table if exists t, u"]).await;
    }
}

#[tokio::test]
async fn those_who_follow_everything_learn_that_a_table_was_dropped_but_not_that_one_got_a_column() {
    let db = Database::with_switch().await;
    db.run(&["create table t (id int primary key)", "insert into t values (1)"]).await;
    db.watch("t").await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.subscribe("").await;
    client.snapshot().await;

    db.run(&["alter table t add column v int", "insert into t values (2, 5)"]).await;
    let added = client.changes().await;
    db.run(&["drop table t"]).await;
    let frames = after_altering(&mut client).await;

    assert_eq!(added[0]["new"], json!({"id": 2, "v": 5}));
    let tables: Vec<&Value> = frames.iter().map(|frame| &frame["table"]).collect();
    assert_eq!(frames[0]["type"], "reset");
    assert_eq!(tables[1..], ["public.switch"]);
}

#[tokio::test]
async fn a_cursor_from_before_an_alteration_is_reset_where_the_rows_cannot_be_judged() {
    let db = Database::new().await;
    db.run(&["create table t (id int primary key, v int)", "insert into t values (1, 1)"]).await;
    db.watch("t").await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.subscribe("table=t&where=v.eq.1").await;
    client.snapshot().await;
    let cursor = client.cursor.clone().unwrap();
    drop(client);
    db.run(&["update t set v = 2", "alter table t rename column v to w"]).await;

    let mut client = gateway.subscribe(&format!("table=t&where=w.eq.2&from={cursor}")).await;
    // Perhaps it is ready before the update comes.
    let reset = client.next_of("reset", &["hello", "ready", "position"]).await;
    let frames = after_altering(&mut client).await;

    assert_eq!(reset["reason"], "schema");
    assert_eq!(frames[0]["rows"], json!([{"id": 1, "w": 2}]));
}

/// A parameter as an address spells it.
fn parameter(name: &str, value: &str) -> String {
    form_urlencoded::Serializer::new(String::new()).append_pair(name, value).finish()
}

#[tokio::test]
async fn a_table_whatever_its_name_is_asked_for_as_sql_spells_it_and_as_frames_call_it() {
    let db = Database::new().await;
    db.run(&[r#"create schema p; create schema "p.q"; create schema "Ünder;score""#]).await;
    let tables = [
        ("orders", "public.orders"),
        (r#""User""#, "public.User"),
        (r#""a,b""#, "public.a,b"),
        (r#""ends in a blank ""#, "public.ends in a blank "),
        (r#"" begins""#, "public. begins"),
        (r#""o""dd""#, r#"public.o"dd"#),
        (r#""""""#, r#"public."""""#),
        (r#""2.0""#, r#"public."2.0""#),
        (r#""Ünder;score"."%41+&=#""#, "Ünder;score.%41+&=#"),
        (r#"p."q.r""#, r#"p."q.r""#),
        (r#""p.q".r"#, r#""p.q".r"#),
    ];
    for (sql, name) in tables {
        db.run(&[&format!("create table {sql} (name text)")]).await;
        db.execute(&format!("insert into {sql} values ($1)"), &[&name]).await.unwrap();
        db.watch(sql).await;
    }
    let gateway = Gateway::start(&db).await;

    for (sql, name) in tables {
        // As frames call it: in quotes as a whole if it would fall apart.
        let whole = format!("\"{}\"", name.replace('"', "\"\""));
        for typed in [sql, &whole] {
            let mut client = gateway.subscribe(&parameter("table", typed)).await;
            let rows = client.next_of("rows", &["hello"]).await;
            assert_eq!((&rows["table"], &rows["rows"]), (&json!(name), &json!([{"name": name}])), "{typed}");
        }
        let mut client = gateway.subscribe("first=none").await;
        client.say(json!({"type": "subscribe", "id": 1, "table": [name]})).await;
        assert_eq!(client.next_of("rows", &["hello"]).await["table"], name);
    }
    let (_, listed) = gateway.get("/v1/tables").await;
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let listed = listed["tables"].as_array().unwrap().iter().map(|table| table["table"].as_str().unwrap());
    assert_eq!(listed.collect::<BTreeSet<_>>(), tables.into_iter().map(|(_, name)| name).collect());
    // A dot that belongs to a name needs no quotes while only one table can be meant.
    for (typed, name) in [("2.0", "public.2.0"), ("public.2.0", "public.2.0"), ("User", "public.User")] {
        let rows = gateway.subscribe(&parameter("table", typed)).await.next_of("rows", &["hello"]).await;
        assert_eq!(rows["rows"][0]["name"].as_str().unwrap().replace('"', ""), name, "{typed}");
    }
    let mut torn = gateway.subscribe("table=p.q.r").await;
    let error = torn.next_of("error", &["hello"]).await;
    let message = error["message"].as_str().unwrap();
    assert_eq!(message, r#"table p.q.r may be p."q.r" or "p.q".r; write it with these quotes"#);
}

#[tokio::test]
async fn a_column_whatever_its_name_is_asked_for_and_filtered_as_sql_spells_it() {
    let db = Database::new().await;
    let columns = [r#"Name"#, "a,b", "say \"hi\"", "first.name", " ends ", "\"", "->", "not", "in.(1)"];
    let quoted = columns.map(|name| format!("\"{}\"", name.replace('"', "\"\"")));
    db.run(&[
        &format!("create table t (id int primary key, {} int)", quoted.join(" int, ")),
        &format!(
            "insert into t (id, {}) values (1, {})",
            quoted.join(", "),
            (1..10).map(|n| n.to_string()).collect::<Vec<_>>().join(", ")
        ),
    ])
    .await;
    db.watch("t").await;
    let gateway = Gateway::start(&db).await;

    for (index, (name, sql)) in columns.iter().zip(&quoted).enumerate() {
        let filter = parameter("where", &format!("{sql}.eq.{}", index + 1));
        let mut client = gateway.subscribe(&format!("table=t&{}&{filter}", parameter("columns", sql))).await;

        let (rows, _) = client.snapshot().await;

        assert_eq!(rows, [json!({"id": 1, *name: index + 1})]);
    }
    let mut client = gateway.subscribe("table=t&columns=nonsense").await;
    let error = client.next_of("error", &["hello"]).await;
    let there = format!(
        "it has id, {}",
        quoted.iter().map(|sql| if sql == "\"not\"" { "not" } else { sql }).collect::<Vec<_>>().join(", ")
    );
    assert!(error["message"].as_str().unwrap().ends_with(&there), "{error}");
}

#[tokio::test]
async fn a_blank_that_nobody_may_have_meant_is_refused_and_one_in_quotes_counts() {
    let db = Database::new().await;
    db.run(&[
        "create table t (id int primary key, name text, at timestamptz)",
        "insert into t values (1, 'x', '2026-01-01T00:00:00+01'), (2, ' abc', null), (3, '+49', null)",
    ])
    .await;
    db.watch("t").await;
    let gateway = Gateway::start(&db).await;

    for (filter, remedy) in [
        ("name.in.(x,+abc)", "there is a blank before the value \"abc\""),
        ("name.eq.+49", "a + in an address is written %2B"),
        ("name.like.%20abc", "put the value in double quotes"),
        ("at.eq.2026-01-01T00:00:00+01", "%2B: 2026-01-01T00:00:00%2B01"),
        ("and(at.lt.2026-01-01%2013:00+0130,id.eq.1)", "%2B: 2026-01-01%2013:00%2B0130"),
        ("at.in.(2026-01-01T00:00+01:00)", "%2B: 2026-01-01T00:00%2B01:00"),
    ] {
        let (status, error) = gateway.get(&format!("/v1/snapshot?table=t&where={filter}")).await;
        let error: Value = serde_json::from_str(&error).unwrap();
        assert_eq!(status, 400, "{filter}: {error}");
        assert!(error["error"]["message"].as_str().unwrap().contains(remedy), "{filter}: {error}");
    }
    for (filter, expected) in [
        ("name.in.(x,%22+abc%22)", vec![1, 2]),
        ("name.eq.%2B49", vec![3]),
        ("at.eq.2026-01-01T00:00:00%2B01", vec![1]),
        ("id.eq.+3", vec![3]),
    ] {
        let (rows, _) = gateway.subscribe(&format!("table=t&where={filter}")).await.snapshot().await;
        assert_eq!(ids(&rows), expected, "{filter}");
    }
}

#[tokio::test]
async fn a_filter_on_citext_is_refused_with_a_column_that_works() {
    let db = Database::new().await;
    if db.batch_execute("create extension citext").await.is_err() {
        eprintln!("this PostgreSQL has no citext, so nothing was tried");
        return;
    }
    db.run(&[
        r#"create table person (id int primary key, "eMail" citext)"#,
        "insert into person values (1, 'Ann@Example.com'), (2, 'Bob@example.com')",
    ])
    .await;
    db.watch("person").await;
    let gateway = Gateway::start(&db).await;

    let mut refused = gateway.subscribe("table=person&where=eMail.eq.ann@example.com").await;
    let error = refused.next_of("error", &["hello"]).await;
    let message = error["message"].as_str().unwrap();
    let (alter, write) = message.split_once(", alter ").unwrap().1.split_once(", and write ").unwrap();
    db.run(&[&format!("alter {alter}")]).await;
    let filter = write.strip_suffix(" in small letters").unwrap().replace('…', "ann@example.com");
    let mut client = gateway.subscribe(&format!("table=person&{}", parameter("where", &filter))).await;
    let (rows, _) = client.snapshot().await;
    db.run(&["update person set \"eMail\" = 'ANN@example.com' where id = 2"]).await;

    assert!(message.contains("is of type public.citext, of which the stream cannot decide eq"), "{message}");
    assert_eq!(ids(&rows), [1]);
    assert_eq!(told(&client.changes().await), ["update enter 2"]);
}
