//! What people and their programs do to a database while it is followed: no writer fails for it, no change is lost.

use serde_json::{Value, json};
use tokio_postgres::Client as Session;

use crate::harness::{Client, Database, Gateway, soon, until};

/// The advisory locks of `sql/capture.sql` and the gateways, in the hands of a stranger.
const DOORBELL: &str = "1937203812, 1";
const LEADER: &str = "1937203812, 2";

/// A database with two watched tables, and two subscribers: of everything, and of `switch` only.
async fn scene() -> (Database, Gateway, Client, Client) {
    let db = Database::with_switch().await;
    db.run(&["create table lamp (id int primary key, v text)"]).await;
    db.watch("lamp").await;
    let gateway = Gateway::start(&db).await;
    let (everything, switches) = (gateway.follow("").await, gateway.follow("table=switch").await);
    (db, gateway, everything, switches)
}

/// Whatever happened elsewhere, a subscriber of `switch` gets the next change of `switch`.
async fn gets_the_next_change(db: &Database, client: &mut Client) {
    let id: i64 = db.value("insert into switch (name) values ('next') returning id").await;
    let changes = client.changes().await;
    assert_eq!((changes.len(), &changes[0]["new"]["id"]), (1, &json!(id)));
}

/// The next change, the only one of its commit.
async fn change(client: &mut Client) -> Value {
    let mut changes = client.changes().await;
    assert_eq!(changes.len(), 1, "{changes:?}");
    changes.remove(0)
}

/// Waits until a client that follows an altered table has this row, by a change or by the rows that come behind a `reset`. The name of
/// the table that it is told under, and the columns of the key, sorted.
async fn hears_of(client: &mut Client, row: &Value) -> (String, Vec<String>) {
    let hearing = async {
        loop {
            let frame = client.frame().await.unwrap_or_else(|code| panic!("closed with {code} instead of {row}"));
            let (table, mut key): (&Value, Vec<String>) = match frame["type"].as_str() {
                Some("commit") => {
                    let changes = frame["changes"].as_array().unwrap();
                    let Some(change) = changes.iter().find(|change| change["new"] == *row) else { continue };
                    (
                        &change["table"],
                        change["key"].as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect(),
                    )
                }
                Some("rows") if frame["rows"].as_array().unwrap().contains(row) => {
                    let names = frame["key"].as_array().into_iter().flatten();
                    (&frame["table"], names.map(|name| name.as_str().unwrap().to_owned()).collect())
                }
                _ => continue,
            };
            key.sort();
            return (table.as_str().unwrap().to_owned(), key);
        }
    };
    soon("a row", hearing).await
}

#[tokio::test]
async fn anybody_may_ring_the_doorbell_with_anything() {
    let (db, gateway, mut everything, _) = scene().await;
    let stranger = db.session().await;
    let name: String = db.value("select current_database()::text").await;
    db.run(&[&format!("create role stranger_{name}")]).await;
    stranger.batch_execute(&format!("set role stranger_{name}")).await.unwrap();

    for payload in ["''", "repeat('x', 7999)", "'head'", "repeat('ü', 3999)", "U&'\\+01F600 \"\\0001'", "'{\"a\":1}'"]
    {
        for _ in 0..20 {
            stranger.batch_execute(&format!("select pg_notify('switchboard', {payload})")).await.unwrap();
        }
        gets_the_next_change(&db, &mut everything).await;
    }

    assert_eq!(gateway.get("/readyz").await.0, 200);
    stranger.batch_execute("reset role").await.unwrap();
    db.run(&[&format!("drop role stranger_{name}")]).await;
}

#[tokio::test]
async fn false_news_of_a_new_head_do_not_hide_a_change() {
    let (db, _gateway, mut everything, _) = scene().await;
    let stranger = db.session().await;

    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let liar = tokio::spawn(async move {
        let mut stopped = stopped;
        while stopped.try_recv().is_err() {
            stranger.batch_execute("notify switchboard, 'head'").await.unwrap();
        }
    });
    for _ in 0..50 {
        gets_the_next_change(&db, &mut everything).await;
    }

    stop.send(()).unwrap();
    liar.await.unwrap();
}

#[tokio::test]
async fn a_table_that_is_dropped_takes_nobody_with_it() {
    let (db, gateway, mut everything, mut switches) = scene().await;
    let mut lamps = gateway.follow("table=lamp").await;

    db.run(&["insert into lamp values (1, 'a'); drop table lamp"]).await;
    db.run(&["update switch set level = 8 where id = 1"]).await;

    let told = json!({"op": "insert", "table": "public.lamp", "key": {"id": 1}, "new": {"id": 1, "v": "a"}});
    assert_eq!(change(&mut lamps).await, told);
    assert_eq!(change(&mut everything).await, told);
    let front_door = json!({"id": 1, "name": "Front door", "status": true, "level": 8});
    hears_of(&mut everything, &front_door).await;
    hears_of(&mut switches, &front_door).await;
    until("it is known that the table is gone", async || {
        let mut client = gateway.subscribe("table=lamp").await;
        client.next_of("hello", &[]).await;
        client.frame().await.is_ok_and(|frame| frame["type"] == "error")
    })
    .await;
    let (rows, _) = gateway.subscribe("").await.snapshot().await;
    assert_eq!(rows.len(), 4, "the rows of switch");
}

#[tokio::test]
async fn a_table_made_anew_under_the_same_name_is_followed_by_those_who_followed_the_old_one() {
    let (db, gateway, mut everything, mut switches) = scene().await;
    let mut lamps = gateway.follow("table=lamp").await;

    db.run(&["insert into lamp values (1, 'a')"]).await;
    for client in [&mut lamps, &mut everything] {
        assert_eq!(change(client).await["key"], json!({"id": 1}));
    }
    db.transaction(&[
        "drop table lamp",
        "create table lamp (name text primary key)",
        "insert into lamp values ('nobody watches')",
        "select switchboard.watch('lamp')",
        "insert into lamp values ('b')",
    ])
    .await;

    for client in [&mut lamps, &mut everything] {
        client.next_of("reset", &["commit"]).await;
        assert_eq!(
            hears_of(client, &json!({"name": "nobody watches"})).await,
            ("public.lamp".into(), vec!["name".into()])
        );
    }
    let (rows, _) = gateway.subscribe("table=lamp").await.snapshot().await;
    assert_eq!(rows, [json!({"name": "nobody watches"}), json!({"name": "b"})]);
    gets_the_next_change(&db, &mut switches).await;
}

#[tokio::test]
async fn a_table_that_is_renamed_or_moved_goes_on_under_its_new_name() {
    let (db, _gateway, mut everything, mut switches) = scene().await;
    let mut next = 1;

    for (statement, name) in [
        ("alter table lamp rename to lantern", "lantern"),
        ("create schema attic; alter table lantern set schema attic", "attic.lantern"),
    ] {
        db.run(&[statement]).await;
        let full = if name.contains('.') { name.to_owned() } else { format!("public.{name}") };
        // Every row arrives, from the first on; the name follows within the second.
        until("the new name", async || {
            db.run(&[&format!("insert into {name} values ({next})")]).await;
            let (told, _) = hears_of(&mut everything, &json!({"id": next, "v": null})).await;
            next += 1;
            told == full
        })
        .await;
    }

    gets_the_next_change(&db, &mut switches).await;
}

#[tokio::test]
async fn columns_that_come_go_or_change_are_told_as_they_are() {
    let (db, gateway, mut everything, mut switches) = scene().await;
    let steps: &[(&[&str], Value)] = &[
        (
            &["alter table lamp add column lit boolean default true", "insert into lamp values (1, 'a')"],
            json!({"id": 1, "v": "a", "lit": true}),
        ),
        (&["alter table lamp drop column v", "insert into lamp values (2, false)"], json!({"id": 2, "lit": false})),
        (
            &["alter table lamp alter lit type text using 'was ' || lit", "insert into lamp values (3, 'x')"],
            json!({"id": 3, "lit": "x"}),
        ),
        (
            &["alter table lamp alter id type bigint", "insert into lamp values (5000000000)"],
            json!({"id": 5_000_000_000_i64, "lit": "true"}),
        ),
        (
            &["alter table lamp rename lit to shining", "insert into lamp values (5, 'y')"],
            json!({"id": 5, "shining": "y"}),
        ),
    ];

    for (statements, row) in steps {
        db.run(statements).await;

        assert_eq!(hears_of(&mut everything, row).await, ("public.lamp".into(), vec!["id".into()]));
    }

    let (rows, _) = gateway.subscribe("table=lamp").await.snapshot().await;
    assert_eq!(rows[0], json!({"id": 1, "shining": "was true"}));
    gets_the_next_change(&db, &mut switches).await;
}

#[tokio::test]
async fn a_table_may_be_altered_and_emptied_in_the_transaction_that_wrote_it() {
    let (db, _gateway, mut everything, _) = scene().await;

    db.transaction(&[
        "insert into lamp values (1, 'a')",
        "alter table lamp add column n int",
        "truncate lamp",
        "insert into lamp values (2, 'b', 3)",
        "alter table lamp alter n type text",
        "drop table lamp",
    ])
    .await;
    gets_told(&mut everything, &["insert", "truncate", "insert"]).await;

    db.run(&["insert into switch (id, name, status, level) values (9, 'next', true, 1)"]).await;
    hears_of(&mut everything, &json!({"id": 9, "name": "next", "status": true, "level": 1})).await;
}

async fn gets_told(client: &mut Client, ops: &[&str]) {
    let told: Vec<Value> = client.changes().await.iter().map(|change| change["op"].clone()).collect();
    assert_eq!(told, ops);
}

#[tokio::test]
async fn a_key_column_that_is_renamed_keeps_being_the_key() {
    let (db, _gateway, mut everything, mut switches) = scene().await;

    db.run(&["alter table lamp rename id to number", "insert into lamp values (1, 'a')"]).await;

    let (_, key) = hears_of(&mut everything, &json!({"number": 1, "v": "a"})).await;
    assert_eq!(key, ["number"]);
    gets_the_next_change(&db, &mut switches).await;
}

#[tokio::test]
async fn a_key_that_is_dropped_and_made_anew_is_told_from_then_on() {
    let (db, _gateway, mut everything, _) = scene().await;
    let mut next = 1;

    for (statement, key) in [
        ("alter table lamp drop constraint lamp_pkey", vec![]),
        ("alter table lamp add primary key (v, id)", vec!["id", "v"]),
    ] {
        db.run(&[statement]).await;
        until("the new key", async || {
            db.run(&[&format!("insert into lamp values ({next}, 'v')")]).await;
            let (_, told) = hears_of(&mut everything, &json!({"id": next, "v": "v"})).await;
            next += 1;
            told == key
        })
        .await;
    }
}

#[tokio::test]
async fn a_stranger_who_holds_our_locks_delays_nobody_for_long() {
    let (db, gateway, mut everything, mut switches) = scene().await;
    let stranger = db.session().await;

    for mode in ["", "_shared"] {
        // The sleeping feed holds the lock itself; it lets go of it for every change.
        until("the stranger has the lock", async || {
            gets_the_next_change(&db, &mut everything).await;
            let take = format!("select pg_try_advisory_lock{mode}({DOORBELL})");
            stranger.query_one(&take, &[]).await.unwrap().get(0)
        })
        .await;

        for _ in 0..5 {
            gets_the_next_change(&db, &mut everything).await;
        }
        stranger.batch_execute("select pg_advisory_unlock_all()").await.unwrap();
        gets_the_next_change(&db, &mut everything).await;
    }

    while switches.changes().await[0]["new"]["id"] != db.value::<i64>("select max(id) from switch").await {}
    assert_eq!(gateway.get("/readyz").await.0, 200);
}

#[tokio::test]
async fn a_gateway_that_finds_its_locks_taken_delivers_all_the_same() {
    for lock in [DOORBELL, LEADER] {
        let db = Database::with_switch().await;
        let stranger = db.session().await;
        stranger.batch_execute(&format!("select pg_advisory_lock({lock})")).await.unwrap();
        let gateway = Gateway::start(&db).await;
        let mut client = gateway.follow("").await;

        for _ in 0..3 {
            gets_the_next_change(&db, &mut client).await;
        }
        stranger.batch_execute("select pg_advisory_unlock_all()").await.unwrap();

        gets_the_next_change(&db, &mut client).await;
        assert_eq!(gateway.get("/readyz").await.0, 200);
    }
}

#[tokio::test]
async fn sessions_idle_in_their_transactions_do_not_delay_the_others() {
    const IDLE: usize = 15;
    let (db, gateway, mut everything, _) = scene().await;
    db.run(&["insert into lamp select n, 'dark' from generate_series(1, 15) as n"]).await;
    assert_eq!(everything.changes().await.len(), IDLE);
    let old = db.session().await;
    old.batch_execute("begin isolation level repeatable read; select count(*) from switchboard.log").await.unwrap();
    let mut idle: Vec<Session> = Vec::new();
    for n in 1..=IDLE {
        let session = db.session().await;
        session.batch_execute(&format!("begin; update lamp set v = 'lit' where id = {n}")).await.unwrap();
        idle.push(session);
    }

    for _ in 0..20 {
        gets_the_next_change(&db, &mut everything).await;
    }
    // The last comes first: positions follow the order of commits, not that of beginnings.
    for session in idle.iter().rev() {
        session.batch_execute("commit").await.unwrap();
    }

    for n in (1..=IDLE).rev() {
        assert_eq!(change(&mut everything).await["key"], json!({"id": n}));
    }
    old.batch_execute("commit").await.unwrap();
    gets_the_next_change(&db, &mut everything).await;
    assert_eq!(gateway.get("/readyz").await.0, 200);
}

/// Writes the numbers from `from` on as one writer, each in a transaction of its own.
async fn write(session: &Session, writer: i32, from: i32, count: i32) {
    for n in from..from + count {
        let sql = format!("insert into lamp values ({}, 'w{writer}')", writer * 100_000 + n);
        session.batch_execute(&sql).await.unwrap();
    }
}

/// Ends every session of the gateway's.
async fn terminate_the_gateways_sessions(db: &Database) -> i64 {
    db.value(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity
         where application_name = 'switchboard' and datname = current_database()",
    )
    .await
}

#[tokio::test]
async fn sessions_of_the_gateway_that_are_terminated_cost_neither_changes_nor_clients() {
    const ROUNDS: i32 = 4;
    const EACH: i32 = 30;
    let (db, gateway, everything, _) = scene().await;
    let lamps = gateway.follow("table=lamp").await;
    let mut clients = [(everything, [0; 3]), (lamps, [0; 3])];
    let writers = [db.session().await, db.session().await, db.session().await];

    for round in 0..ROUNDS {
        let kill = async || {
            for _ in 0..3 {
                let _ended = terminate_the_gateways_sessions(&db).await;
            }
        };
        let from = round * EACH;
        tokio::join!(
            write(&writers[0], 0, from, EACH),
            write(&writers[1], 1, from, EACH),
            kill(),
            write(&writers[2], 2, from, EACH)
        );

        for (client, next) in &mut clients {
            while next.iter().any(|next| *next < from + EACH) {
                // The client checks the chain, and takes nothing but status and position frames for granted.
                let id = change(client).await["key"]["id"].as_i64().unwrap() as i32;
                let (writer, n) = ((id / 100_000) as usize, id % 100_000);
                assert_eq!(n, next[writer], "writer {writer}");
                next[writer] += 1;
            }
        }
    }

    gateway.ready().await;
    assert_eq!(terminate_the_gateways_sessions(&db).await.signum(), 1, "there were sessions to terminate");
    db.run(&["insert into lamp values (-1)"]).await;
    for (client, _) in &mut clients {
        assert_eq!(change(client).await["key"]["id"], -1, "nothing came twice");
    }
}

#[tokio::test]
async fn sessions_that_are_terminated_during_a_snapshot_end_in_a_whole_one_or_a_close() {
    let (db, gateway, _, mut switches) = scene().await;
    db.run(&["insert into lamp select n, repeat('x', 1000) from generate_series(1, 5000) as n"]).await;

    for _ in 0..3 {
        let mut client = gateway.subscribe("table=lamp").await;
        let reading = async {
            let mut rows = 0;
            loop {
                match client.frame().await {
                    Ok(frame) if frame["type"] == "rows" => rows += frame["rows"].as_array().unwrap().len(),
                    Ok(frame) if frame["type"] == "ready" => return (rows, None),
                    Ok(_) => {}
                    Err(code) => return (rows, Some(code)),
                }
            }
        };
        let (_, (rows, code)) = tokio::join!(terminate_the_gateways_sessions(&db), soon("the rows", reading));

        match code {
            None => assert_eq!(rows, 5000, "ready means that all rows were sent, once"),
            Some(code) => assert_eq!(code, 1011, "what could not be finished is a fault, to be tried again"),
        }
    }

    gets_the_next_change(&db, &mut switches).await;
}

#[tokio::test]
async fn a_trigger_that_came_with_another_databases_schema_stops_nobody_and_watch_mends_it() {
    let db = Database::with_switch().await;
    db.run(&["create table t (id int primary key)"]).await;
    db.watch("t").await;
    db.run(&[
        "select switchboard.drop_triggers('t')",
        r#"create trigger "!switchboard_capture_999" after insert on t for each row
           execute function switchboard.capture('999', '999')"#,
    ])
    .await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("").await;

    db.run(&["insert into t values (1)", "update switch set level = 5 where id = 1"]).await;
    assert_eq!(client.changes().await[0]["new"]["level"], 5);
    db.watch("t").await;
    db.run(&["insert into t values (2)"]).await;

    let mut rows = gateway.subscribe("table=t").await.snapshot().await.0;
    rows.sort_by_key(|row| row["id"].as_i64());
    assert_eq!(rows.iter().map(|row| row["id"].as_i64().unwrap()).collect::<Vec<_>>(), [1, 2]);
    let mut client = gateway.follow("").await;
    db.run(&["insert into t values (3)"]).await;
    assert_eq!(client.changes().await[0]["new"]["id"], 3);
}
