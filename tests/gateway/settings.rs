//! What administrators set for a role or a database changes nothing of what the gateway does, nor of what writers are told as.

use serde_json::{Value, json};
use switchboard::{check, install};
use tokio_postgres::Client as Session;

use crate::harness::{Client, Database, Gateway, soon, until};

/// A database with these settings, and the session that it was made in, which has none of them.
async fn with_settings(settings: &[(&str, &str)]) -> Database {
    let db = Database::without_log().await;
    for (name, value) in settings {
        set(&db, &format!("{name} = {value}")).await;
    }
    db
}

async fn set(db: &Database, setting: &str) {
    let name: String = db.value("select current_database()::text").await;
    db.run(&[&format!("alter database {name} set {setting}")]).await;
}

/// Installs and watches, as the commands do.
async fn install(db: &Database, tables: &[&str]) {
    let mut client = install::connect(&db.config()).await.unwrap();
    install::install(&mut client, false, None).await.unwrap();
    for table in tables {
        install::watch(&mut client, table).await.unwrap();
    }
}

async fn finds_nothing_wrong(db: &Database) {
    let findings = check::check(&db.config()).await;
    let wrong = findings.iter().filter(|finding| !matches!(finding.state, check::State::Good));
    assert_eq!(wrong.map(|finding| finding.to_string()).collect::<Vec<_>>(), Vec::<String>::new());
}

/// Its next commit, without a word of an outage before it.
async fn told(client: &mut Client) -> Vec<Value> {
    client.next_of("commit", &["position"]).await["changes"].as_array().unwrap().clone()
}

/// Whether a session of the gateway's is in this state for a while.
async fn lasts(db: &Database, what: &str, state: &str) {
    until(what, async || {
        let sql = format!(
            "select exists (select from pg_stat_activity where datname = current_database()
             and application_name = 'switchboard' and {state} and state_change < clock_timestamp() - interval '600 ms')"
        );
        db.value(&sql).await
    })
    .await;
}

/// Values that settings would colour.
const VALUES: &str = r"
    create table v (id int primary key, moment timestamptz, day date, span interval, bytes bytea, real float8, name regclass,
                    texts text[], quoted regtype);
    insert into v values (1, '2026-02-03 04:05:06.789+00', '2026-02-03', '1 year 2 days 03:04:05', '\x00ff5c', 0.1::float4,
                          'v', array['a', null, 'b\c'], 'v')";

const COLOURS: &[(&str, &str)] = &[
    ("timezone", "'Asia/Kathmandu'"),
    ("datestyle", "'German, DMY'"),
    ("intervalstyle", "'sql_standard'"),
    ("bytea_output", "'escape'"),
    ("extra_float_digits", "-15"),
    ("quote_all_identifiers", "on"),
    ("search_path", "public, pg_catalog"),
    ("standard_conforming_strings", "off"),
    ("backslash_quote", "off"),
    ("array_nulls", "off"),
    ("transform_null_equals", "on"),
    ("client_encoding", "'LATIN1'"),
    ("client_min_messages", "debug1"),
    ("row_security", "off"),
    ("lc_monetary", "'C'"),
    ("xmlbinary", "hex"),
];

/// Rows and changes of the values, as they come while `writer` writes.
async fn values(db: &Database, writer: &Session) -> (Vec<Value>, Vec<Value>, Vec<Value>) {
    let gateway = Gateway::start(db).await;
    let mut client = gateway
        .subscribe("table=v&where=texts.is.not_null&columns=id,moment,day,span,bytes,real,name,texts,quoted")
        .await;
    let (rows, _) = client.snapshot().await;
    writer
        .batch_execute("insert into v select 2, moment, day, span, bytes, real, name, texts, quoted from v")
        .await
        .unwrap();
    writer.batch_execute("begin; update v set id = id + 10; delete from v where id = 11; commit").await.unwrap();
    let changes = [told(&mut client).await, told(&mut client).await].concat();
    let cursor = client.cursor.clone().unwrap();
    writer.batch_execute("update v set real = real where id = 12").await.unwrap();
    let resumed = gateway.subscribe(&format!("table=v&from={cursor}")).await.resumed().await;
    finds_nothing_wrong(db).await;
    (rows, changes, resumed)
}

#[tokio::test]
async fn values_come_the_same_whatever_the_database_sets_for_all_sessions() {
    let plain = with_settings(&[]).await;
    plain.run(&[VALUES]).await;
    install(&plain, &["v"]).await;
    let expected = values(&plain, &plain).await;
    assert_eq!(expected.0[0]["moment"], "2026-02-03T04:05:06.789+00:00", "{expected:?}");
    assert_eq!(expected.0[0]["name"], "public.v", "{expected:?}");

    let set = with_settings(COLOURS).await;
    set.run(&[VALUES]).await;
    install(&set, &["v"]).await;

    assert_eq!(values(&set, &set.session().await).await, expected);
}

#[tokio::test]
async fn values_and_order_are_the_same_whatever_is_set_for_the_writer() {
    let plain = with_settings(&[]).await;
    plain.run(&[VALUES]).await;
    install(&plain, &["v"]).await;
    let expected = values(&plain, &plain).await;

    let db = with_settings(&[]).await;
    db.run(&[VALUES]).await;
    install(&db, &["v"]).await;
    let more = [
        ("plpgsql.extra_errors", "'all'"),
        ("plpgsql.variable_conflict", "use_variable"),
        ("default_transaction_isolation", "serializable"),
        ("default_transaction_deferrable", "on"),
        ("synchronous_commit", "off"),
        ("enable_indexscan", "off"),
        ("enable_indexonlyscan", "off"),
        ("enable_seqscan", "off"),
        ("jit_above_cost", "0"),
        ("check_function_bodies", "off"),
    ];
    // Set in the session, where it is written: what a role sets comes to the same.
    let writer = db.session().await;
    for (name, value) in COLOURS.iter().chain(&more) {
        writer.batch_execute(&format!("set {name} = {value}")).await.unwrap();
    }

    assert_eq!(values(&db, &writer).await, expected);
}

/// A type that takes its time: who reads a value waits for as many seconds as it says.
const SLOW: &str = "create type slow as enum ('0.1');
     create function slow_json(slow) returns json language plpgsql as $$
         begin perform pg_catalog.pg_sleep($1::text::float8); return pg_catalog.to_json($1::text); end $$;
     create cast (slow as json) with function slow_json(slow);
     create table t (id int primary key, v slow)";

#[tokio::test]
async fn time_outs_of_the_database_end_no_statement_and_no_session_of_ours() {
    let version: i32 = Database::without_log().await.value("select current_setting('server_version_num')::int").await;
    let mut time_outs = vec!["statement_timeout", "idle_in_transaction_session_timeout", "lock_timeout"];
    time_outs.extend((version >= 140_000).then_some("idle_session_timeout"));
    time_outs.extend((version >= 170_000).then_some("transaction_timeout"));
    for time_out in time_outs {
        eprintln!("{time_out}");
        let db = Database::without_log().await;
        let fence = db.session().await;
        set(&db, &format!("{time_out} = '200ms'")).await;
        db.run(&[SLOW, "insert into t select id, '0.1' from generate_series(1, 5) as id"]).await;
        install(&db, &["t"]).await;
        let gateway = Gateway::start(&db).await;
        let mut follower = gateway.follow("table=t&columns=id").await;
        fence.batch_execute("begin; lock table switchboard.numbering in exclusive mode").await.unwrap();

        // Its reading waits in its transaction for a numbering that waits for a lock, then for slow rows.
        let mut client = gateway.subscribe("table=t").await;
        lasts(&db, "the reading waits in its transaction", "state = 'idle in transaction'").await;
        lasts(&db, "the numbering waits for its lock", "wait_event_type = 'Lock'").await;
        lasts(&db, "an idle session stays", "state = 'idle'").await;
        fence.batch_execute("commit").await.unwrap();
        client.next_of("hello", &[]).await;
        let rows = client.next_of("rows", &[]).await;
        client.next_of("ready", &[]).await;
        db.run(&["insert into t values (6)"]).await;

        assert_eq!(rows["rows"].as_array().unwrap().len(), 5, "{rows}");
        assert_eq!(told(&mut client).await[0]["key"], json!({"id": 6}));
        assert_eq!(told(&mut follower).await[0]["key"], json!({"id": 6}));
    }
}

#[tokio::test]
async fn defaults_for_transactions_change_nothing() {
    let db = with_settings(&[
        ("default_transaction_isolation", "serializable"),
        ("default_transaction_read_only", "on"),
        ("default_transaction_deferrable", "on"),
    ])
    .await;
    db.run(&["create table t (id int primary key, at timestamptz)"]).await;
    // A transaction of ours that is serializable, read only and deferrable would wait for the end of this one.
    let writer = db.session().await;
    writer.batch_execute("begin isolation level serializable read write; select count(*) from t").await.unwrap();

    install(&db, &["t"]).await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.subscribe("table=t&where=at.gte.2026-01-01").await;
    client.snapshot().await;
    for id in 1..=3 {
        db.run(&[&format!("insert into t values ({id}, now())")]).await;
        assert_eq!(told(&mut client).await[0]["key"], json!({"id": id}));
    }

    // What a serializable transaction has read is known until all that overlap with it are over.
    assert_eq!(
        db.value::<i64>(
            "select count(*) from pg_locks where mode = 'SIReadLock'
        and pid in (select pid from pg_stat_activity where application_name = 'switchboard')"
        )
        .await,
        0
    );
    finds_nothing_wrong(&db).await;
}

#[tokio::test]
async fn settings_of_planner_and_plpgsql_change_nothing() {
    let kinds = [
        "bitmapscan",
        "hashagg",
        "hashjoin",
        "indexonlyscan",
        "indexscan",
        "material",
        "mergejoin",
        "nestloop",
        "sort",
        "tidscan",
    ];
    let off: Vec<String> = kinds.iter().map(|kind| format!("enable_{kind}")).collect();
    let mut settings: Vec<(&str, &str)> = off.iter().map(|name| (name.as_str(), "off")).collect();
    settings.extend([
        ("plpgsql.extra_errors", "'all'"),
        ("plpgsql.extra_warnings", "'all'"),
        ("plpgsql.variable_conflict", "use_variable"),
        ("check_function_bodies", "off"),
        ("jit_above_cost", "0"),
        ("gin_fuzzy_search_limit", "1"),
        ("search_path", "''"),
    ]);
    let db = with_settings(&settings).await;
    db.run(&[
        "create table t (id int primary key, tags text[])",
        "create index on t using gin (tags)",
        "insert into t select id, array['a', 'b'] from generate_series(1, 5000) as id",
        "analyze t",
    ])
    .await;
    install(&db, &["public.t"]).await;
    let gateway = Gateway::start(&db).await;

    let mut client = gateway.subscribe("table=t&where=id.gt.0").await;
    let (rows, _) = client.snapshot().await;
    let cursor = client.cursor.clone().unwrap();
    db.run(&["update t set tags = null where id <= 1000"]).await;
    let mut told = soon("the changes", async { client.changes().await }).await;
    let resumed = gateway.subscribe(&format!("table=t&from={cursor}")).await.resumed().await;

    assert_eq!(rows.len(), 5000);
    assert_eq!(told.len(), 1000);
    assert_eq!(told.remove(0)["key"], resumed[0]["key"]);
    finds_nothing_wrong(&db).await;
}
