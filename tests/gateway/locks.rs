//! Who waits for whom: nobody who writes or alters a table waits for us.

use serde_json::Value;
use switchboard::install;
use tokio_postgres::Client as Session;

use crate::commands::{program, run};
use crate::harness::{Client, Database, Gateway, soon, until};

/// Whether somebody waits for a lock on a table.
async fn somebody_waits(db: &Database) -> bool {
    db.value(
        "select exists (select from pg_locks where locktype = 'relation' and not granted
         and database = (select oid from pg_database where datname = current_database()))",
    )
    .await
}

/// A session in the middle of a transaction that wrote to a table.
async fn long_transaction(db: &Database, table: &str) -> Session {
    let session = db.session().await;
    session
        .batch_execute(&format!(
            "set application_name = 'nightly report'; begin; insert into {table} (name) values ('long')"
        ))
        .await
        .unwrap();
    session
}

#[tokio::test]
async fn commands_that_wait_for_a_table_keep_no_writer_waiting() {
    for command in ["install", "watch", "unwatch", "uninstall"] {
        let db = Database::with_switch().await;
        let waits = ["install", "watch"].contains(&command);
        if waits {
            db.run(&["select switchboard.unwatch('switch')"]).await;
        }
        let long = long_transaction(&db, "switch").await;
        let mut client = install::connect(&db.config()).await.unwrap();
        let mut working = Box::pin(async {
            match command {
                "install" => drop(install::install(&mut client, true, None).await.unwrap()),
                "watch" => drop(install::watch(&mut client, "switch").await.unwrap()),
                "unwatch" => assert!(install::unwatch(&mut client, "switch").await.unwrap()),
                _ => assert!(install::uninstall(&mut client).await.unwrap()),
            }
        });

        for _ in 0..5 {
            let write = async {
                until("the command asks for its lock", async || somebody_waits(&db).await).await;
                db.run(&["insert into switch (name) values ('short')"]).await;
            };
            tokio::select! {
                biased;
                () = &mut working => panic!("{command} did not wait, or gave up before a writer got its turn"),
                () = write => {}
            }
        }
        long.batch_execute("commit").await.unwrap();
        soon(command, working).await;

        let triggers = "select exists (select from pg_trigger where tgrelid = 'switch'::regclass and not tgisinternal)";
        assert_eq!(db.value::<bool>(triggers).await, waits, "{command}");
        assert_eq!(db.value::<i64>("select count(*) from switch where name in ('long', 'short')").await, 6);
    }
}

#[tokio::test]
async fn a_command_that_does_not_get_its_lock_names_the_session_that_has_it() {
    let db = Database::with_switch().await;
    let long = long_transaction(&db, "switch").await;
    let pid: i32 = long.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);

    let ran = run(program(Some(&db.url), &["unwatch", "switch"])).await;

    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
    let told = format!(
        "switchboard: unwatching switch: switch is in use by session {pid} (role postgres, \"nightly report\", idle in transaction, in a transaction for 1"
    );
    assert!(ran.err.starts_with(&told), "{}", ran.err);
    assert!(ran.err.contains(&format!("select pg_terminate_backend({pid}), then try again")), "{}", ran.err);
}

/// A table whose reading comes to a row that cannot be read before a lock is let go, and the session that holds it.
async fn gated_table(db: &Database, rows_before: i32) -> Session {
    db.run(&[
        "create type gated as enum ('shut')",
        "create function gated_json(gated) returns json language plpgsql as $$
         begin perform pg_catalog.pg_advisory_xact_lock_shared(42); return pg_catalog.to_json($1::text); end $$",
        "create cast (gated as json) with function gated_json(gated)",
        "create table t (id int primary key, filler text, v gated)",
        &format!("insert into t select id, repeat('x', 1000) from generate_series(1, {rows_before}) as id"),
        "insert into t values (1000000, '', 'shut')",
    ])
    .await;
    db.watch("t").await;
    let gate = db.session().await;
    gate.batch_execute("select pg_advisory_lock(42)").await.unwrap();
    gate
}

/// A whole snapshot that no reset interrupts.
async fn rows_at_once(client: &mut Client) -> (Vec<Value>, Vec<Value>) {
    let (mut rows, mut commits) = (Vec::new(), Vec::new());
    loop {
        let frame = client.frame().await.unwrap();
        match frame["type"].as_str().unwrap() {
            "rows" => rows.extend(frame["rows"].as_array().unwrap().iter().cloned()),
            "commit" => commits.push(frame),
            "ready" => return (rows, commits),
            _ => panic!("rows were due, and this came: {frame:.500}"),
        }
    }
}

#[tokio::test]
async fn a_reading_that_somebody_waits_for_ends_and_begins_again_behind_them() {
    for (rows_before, statement, rows_behind) in [
        (1000, "alter table t add column more int default 7", 1002),
        (0, "alter table t add column more int default 7", 2),
        (0, "truncate t", 1),
        (0, "reindex table t", 2),
    ] {
        let db = Database::new().await;
        let gate = gated_table(&db, rows_before).await;
        let gateway = Gateway::start(&db).await;
        let (user, writer) = (db.session().await, db.session().await);

        let mut narrow = gateway.subscribe("table=t&columns=id,v").await;
        let mut wide = gateway.subscribe("table=t").await;
        until("both readings have come to the row", async || {
            let waiting =
                "select count(*) = 2 from pg_locks where locktype = 'advisory' and objid = 42 and not granted";
            db.value(waiting).await
        })
        .await;
        // Neither could return before the gate is opened if they had to wait for a reading.
        let (altered, written) = tokio::join!(
            soon(statement, user.batch_execute(statement)),
            soon("a writer's insert", async {
                until("somebody waits or is through", async || {
                    let seen = "select count(*) > 0 from pg_stat_activity where pid <> pg_backend_pid() and query = $1";
                    db.query_one(seen, &[&statement]).await.unwrap().get(0)
                })
                .await;
                writer.batch_execute("insert into t (id) values (2000000)").await
            })
        );
        altered.and(written).unwrap();
        gate.batch_execute("select pg_advisory_unlock(42)").await.unwrap();

        // Only one of them had a page of rows already.
        for (client, begun) in [(&mut narrow, false), (&mut wide, rows_before > 0)] {
            client.next_of("hello", &[]).await;
            if begun {
                let reset = client.next_of("reset", &["rows"]).await;
                assert_eq!(reset["reason"], "schema");
            }
            let (rows, commits) = rows_at_once(client).await;
            let inserted = commits.iter().flat_map(|commit| commit["changes"].as_array().unwrap());
            let inserted = inserted.filter(|change| change["op"] == "insert").count();
            assert_eq!(rows.len() + inserted, rows_behind, "{statement}");
        }
    }
}

#[tokio::test]
async fn a_reading_that_takes_too_long_ends_and_says_so() {
    let db = Database::new().await;
    let _gate = gated_table(&db, 0).await;
    let patience = std::time::Duration::from_millis(300);
    let gateway = Gateway::start_with(&db, |config| config.snapshot_patience = patience).await;

    let mut client = gateway.subscribe("table=t").await;
    let error = client.next_of("error", &["hello"]).await;

    assert!(error["message"].as_str().unwrap().contains("could not be read within 0.3 s"), "{error}");
    until("no lock is left", async || {
        db.value("select count(*) = 0 from pg_locks where relation = 't'::regclass").await
    })
    .await;
    assert_eq!((&error["code"], client.closed().await), (&"unreadable".into(), 4400));
}
