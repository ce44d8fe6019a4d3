//! Behind a pooler, whose clients share sessions: everything is delivered, and nothing of ours stays in a session.

use std::collections::HashSet;

use serde_json::json;
use switchboard::{check, install};
use tokio_postgres::Client as Session;

use crate::harness::{Client, Database, Gateway, Pooler, connect, until};

/// How PgBouncer deals with the settings that a session begins with: it refuses them, or is told to ignore them.
const REFUSES: &str = "pool_mode = transaction\nignore_startup_parameters = extra_float_digits";
const IGNORES: &str = "pool_mode = transaction\nignore_startup_parameters = options";

async fn database() -> Database {
    let db = Database::new().await;
    db.run(&[
        "create table t (id int primary key, at timestamptz)",
        "insert into t values (1, '2026-01-01 00:00:00+00')",
    ])
    .await;
    db.watch("t").await;
    db
}

/// What an application finds in the sessions that it shares with us: all there are, held in transactions at the same time.
async fn left_behind(db: &Database, pooler: &Pooler) -> Vec<String> {
    let sessions =
        "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()";
    let count = db.value::<i64>(sessions).await;
    let mut held: Vec<Session> = Vec::new();
    let mut seen = HashSet::new();
    let mut left = Vec::new();
    for _ in 0..count {
        let application = connect(&pooler.url).await;
        application.batch_execute("begin").await.unwrap();
        // Those that PgBouncer sets itself, for whichever client comes next, are its own business.
        let sql = "select pg_backend_pid(), array(select pg_listening_channels())
                       || array(select 'lock ' || objid from pg_locks where locktype = 'advisory' and pid = pg_backend_pid())
                       || array(select 'prepared ' || name from pg_prepared_statements where not from_sql)
                       || array(select name || ' = ' || setting from pg_settings where source = 'session'
                                and name not in ('application_name', 'client_encoding', 'DateStyle', 'TimeZone',
                                                 'standard_conforming_strings', 'IntervalStyle'))";
        let row = application.query_typed(sql, &[]).await.unwrap().remove(0);
        seen.insert(row.get::<_, i32>(0));
        left.extend(row.get::<_, Vec<String>>(1));
        held.push(application);
    }
    assert!(!seen.is_empty());
    left
}

/// Its next commit, without a word of an outage before it.
async fn told(client: &mut Client) -> serde_json::Value {
    client.next_of("commit", &["position"]).await["changes"][0].clone()
}

#[tokio::test]
async fn behind_a_transaction_pooler_everything_is_delivered_and_nothing_stays_in_its_sessions() {
    for lines in [REFUSES, IGNORES] {
        let db = database().await;
        let Some(pooler) = Pooler::start(&db, lines).await else { return };
        let gateway = Gateway::launch(pooler.config(), |_| {}).await;
        gateway.ready().await;

        let mut client = gateway.subscribe("table=t&where=at.gte.2026-01-01").await;
        let (rows, _) = client.snapshot().await;
        let cursor = client.cursor.clone().unwrap();
        for id in 2..=20 {
            db.run(&[&format!("insert into t values ({id}, now())")]).await;
            assert_eq!(told(&mut client).await["key"], json!({"id": id}));
        }
        let resumed = gateway.subscribe(&format!("table=t&from={cursor}")).await.resumed().await;
        let left = left_behind(&db, &pooler).await;
        gateway.kill();

        assert_eq!(rows.len(), 1);
        assert_eq!(resumed[0]["key"], json!({"id": 2}));
        assert_eq!(left, Vec::<String>::new(), "{lines}");
    }
}

#[tokio::test]
async fn behind_a_transaction_pooler_settings_of_the_database_change_nothing() {
    for lines in [REFUSES, IGNORES] {
        let db = database().await;
        let fence = db.session().await;
        let name: String = db.value("select current_database()::text").await;
        for setting in [
            "default_transaction_read_only = on",
            "default_transaction_isolation = serializable",
            "datestyle = 'German, DMY'",
            "timezone = 'Asia/Kathmandu'",
            "search_path = nowhere",
            "lock_timeout = '1ms'",
            "statement_timeout = '200ms'",
            "idle_in_transaction_session_timeout = '200ms'",
        ] {
            db.run(&[&format!("alter database {name} set {setting}")]).await;
        }
        let Some(pooler) = Pooler::start(&db, lines).await else { return };
        let gateway = Gateway::launch(pooler.config(), |_| {}).await;
        gateway.ready().await;
        fence.batch_execute("begin; lock table switchboard.numbering in exclusive mode").await.unwrap();

        let mut client = gateway.subscribe("table=t").await;
        until("the reading waits in its transaction", async || {
            db.value(
                "select exists (select from pg_stat_activity where datname = current_database()
                      and state = 'idle in transaction' and query like '%switchboard.look(%'
                      and state_change < clock_timestamp() - interval '600 ms')",
            )
            .await
        })
        .await;
        fence.batch_execute("commit").await.unwrap();
        client.next_of("hello", &[]).await;
        let rows = client.next_of("rows", &[]).await;
        client.next_of("ready", &[]).await;
        db.run(&["insert into t values (2, '2026-01-01 00:00:00+00')"]).await;

        let row = |id: i32| json!({"id": id, "at": "2026-01-01T00:00:00+00:00"});
        assert_eq!(rows["rows"], json!([row(1)]), "{lines}");
        assert_eq!(told(&mut client).await["new"], row(2));
    }
}

#[tokio::test]
async fn check_recognises_a_transaction_pooler_even_if_nobody_else_is_there() {
    for (lines, note) in [
        (REFUSES, true),
        (IGNORES, true),
        ("pool_mode = transaction\ndefault_pool_size = 2\nserver_round_robin = 1", true),
        ("pool_mode = session\nserver_reset_query = DISCARD ALL", false),
    ] {
        let db = database().await;
        let Some(pooler) = Pooler::start(&db, lines).await else { return };

        let findings = check::check(&pooler.config()).await;

        let told: Vec<String> = findings.iter().map(|finding| finding.to_string()).collect();
        assert!(!findings.iter().any(|finding| matches!(finding.state, check::State::Wrong(_))), "{told:?}");
        let noted = told.iter().any(|told| told.contains("note   a transaction pooler is in the way"));
        assert_eq!(
            (noted, told.contains(&"good   the doorbell is heard".to_owned())),
            (note, !note),
            "{lines}: {told:?}"
        );
        assert!(told.contains(&"good   public.t is watched".to_owned()), "{told:?}");
        assert_eq!(left_behind(&db, &pooler).await, Vec::<String>::new(), "{lines}");
    }
}

#[tokio::test]
async fn the_commands_work_through_a_transaction_pooler() {
    let db = Database::without_log().await;
    db.run(&["create table a (id int primary key); create table b (id int primary key)"]).await;
    let Some(pooler) = Pooler::start(&db, REFUSES).await else { return };

    for _ in 0..2 {
        // Two at once, so that each gets the other's sessions now and then.
        let mut one = install::connect(&pooler.config()).await.unwrap();
        let mut other = install::connect(&pooler.config()).await.unwrap();
        install::install(&mut one, false, None).await.unwrap();
        for table in ["a", "b"] {
            let (watched, again) = tokio::join!(install::watch(&mut one, table), install::watch(&mut other, table));
            watched.and(again).unwrap();
        }
        assert!(install::unwatch(&mut other, "a").await.unwrap());
        assert_eq!(db.value::<i64>("select count(*) from switchboard.watched where active").await, 1);
        assert!(install::uninstall(&mut one).await.unwrap());
        assert_eq!(left_behind(&db, &pooler).await, Vec::<String>::new());
    }
}
