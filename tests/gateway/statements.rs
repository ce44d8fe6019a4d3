//! Whatever statement changes rows, and whoever runs it: the change arrives, and the statement never fails because of
//! the capture.

use bytes::Bytes;
use futures_util::SinkExt;
use serde_json::{Value, json};
use switchboard::config::FRAME_BYTES_MAX;

use crate::harness::{Client, Database, Gateway, Server};

/// A database with these tables, all watched, and a gateway.
async fn start(create: &[&str], tables: &[&str]) -> (Database, Gateway) {
    let db = Database::new().await;
    db.run(create).await;
    for table in tables {
        db.watch(table).await;
    }
    let gateway = Gateway::start(&db).await;
    (db, gateway)
}

/// A watched table `t (id, v)` with rows 1 and 2, a gateway and its client.
async fn start_with_t() -> (Database, Gateway, Client) {
    let create = ["create table t (id int primary key, v text)", "insert into t values (1, 'a'), (2, 'b')"];
    let (db, gateway) = start(&create, &["t"]).await;
    let client = gateway.follow("").await;
    (db, gateway, client)
}

/// The next commit in a few words: `insert t 1 a`, by table, `id` and `v` of the row after the change, else before it.
async fn told(client: &mut Client) -> Vec<String> {
    let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let tell = |change: &Value| {
        let row = if change["new"].is_object() { &change["new"] } else { &change["old"] };
        let (op, table) = (plain(&change["op"]), plain(&change["table"]).replace("public.", ""));
        let values = ["id", "v"].into_iter().filter_map(|column| row.get(column)).map(plain);
        [op, table].into_iter().chain(values).collect::<Vec<_>>().join(" ")
    };
    client.changes().await.iter().map(tell).collect()
}

/// A role that may log in and nothing else, and its session. Roles belong to all databases of a server, so its name
/// has that of the database in it.
async fn role(db: &Database, kind: &str) -> (String, tokio_postgres::Client) {
    let name = format!("{kind}_{}", db.value::<String>("select current_database()::text").await);
    db.run(&[&format!("create role {name} login password 'secret'")]).await;
    let mut config = db.config();
    config.user(&name).password("secret");
    let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    (name, client)
}

#[tokio::test]
async fn copy_arrives_as_one_commit() {
    let (db, _gateway, mut client) = start_with_t().await;

    let mut sink = Box::pin(db.copy_in::<_, Bytes>("copy t from stdin").await.unwrap());
    sink.send(Bytes::from_static(b"3\tc\n4\t\\N\n")).await.unwrap();
    sink.close().await.unwrap();

    assert_eq!(told(&mut client).await, ["insert t 3 c", "insert t 4 null"]);
}

#[tokio::test]
async fn merge_arrives_as_what_it_did_to_each_row() {
    let (db, _gateway, mut client) = start_with_t().await;
    if db.value::<i32>("select current_setting('server_version_num')::int").await < 150_000 {
        return;
    }

    db.run(&["merge into t using (values (1, 'x'), (2, null), (3, 'c')) as s (id, v) on t.id = s.id
              when matched and s.v is null then delete
              when matched then update set v = s.v
              when not matched then insert values (s.id, s.v)"])
        .await;

    let mut told = told(&mut client).await;
    told.sort();
    assert_eq!(told, ["delete t 2 b", "insert t 3 c", "update t 1 x"]);
}

#[tokio::test]
async fn on_conflict_arrives_as_the_insert_or_the_update_that_it_became() {
    let (db, _gateway, mut client) = start_with_t().await;

    db.run(&[
        "insert into t values (1, 'x') on conflict do nothing",
        "insert into t values (1, 'y'), (3, 'z') on conflict (id) do update set v = excluded.v",
        "insert into t values (2, 'w') on conflict (id) do update set v = excluded.v where false",
        "insert into t values (4, 'end')",
    ])
    .await;

    assert_eq!(told(&mut client).await, ["update t 1 y", "insert t 3 z"]);
    assert_eq!(told(&mut client).await, ["insert t 4 end"]);
}

#[tokio::test]
async fn what_a_deleted_row_takes_along_arrives_in_the_same_commit() {
    let create = [
        "create table parent (id int primary key)",
        "create table child (id int primary key, v int references parent on delete cascade on update cascade)",
        "create table guest (id int primary key, v int references parent on delete set null)",
        "insert into parent values (1), (2)",
        "insert into child values (10, 1), (20, 2)",
        "insert into guest values (11, 1), (21, 2)",
    ];
    let (db, gateway) = start(&create, &["parent", "child", "guest"]).await;
    let mut client = gateway.follow("").await;

    db.run(&["delete from parent where id = 1", "delete from guest", "update parent set id = 3"]).await;

    let mut deleted = told(&mut client).await;
    deleted.sort();
    assert_eq!(deleted, ["delete child 10 1", "delete parent 1", "update guest 11 null"]);
    assert_eq!(told(&mut client).await.len(), 2);
    let mut moved = told(&mut client).await;
    moved.sort();
    assert_eq!(moved, ["update child 20 3", "update parent 3"]);
}

#[tokio::test]
async fn an_update_that_changes_nothing_arrives_and_names_no_column() {
    let (db, _gateway, mut client) = start_with_t().await;

    db.run(&["update t set v = v where id = 1", "update t set v = 'x' where false", "delete from t where id = 2"])
        .await;

    let row = json!({"id": 1, "v": "a"});
    assert_eq!(
        client.changes().await,
        [json!({"op": "update", "table": "public.t", "key": {"id": 1}, "new": row, "old": row, "changed": []})]
    );
    assert_eq!(told(&mut client).await, ["delete t 2 b"]);
}

#[tokio::test]
async fn a_trigger_that_changes_the_row_or_skips_it_is_taken_at_its_word() {
    let (db, _gateway, mut client) = start_with_t().await;
    db.run(&[
        "create function edit() returns trigger language plpgsql as $$
         begin
             if new.v = 'skip' then return null; end if;
             new.v := upper(new.v);
             return new;
         end $$",
        "create trigger edit before insert or update on t for each row execute function edit()",
    ])
    .await;

    db.run(&["insert into t values (3, 'c'), (4, 'skip'), (5, 'e')", "update t set v = 'skip' where id = 3"]).await;
    db.run(&["update t set v = 'x' where id = 3"]).await;

    assert_eq!(told(&mut client).await, ["insert t 3 C", "insert t 5 E"]);
    assert_eq!(told(&mut client).await, ["update t 3 X"]);
}

#[tokio::test]
async fn what_a_trigger_writes_to_another_table_arrives_in_the_same_commit() {
    let (db, _gateway, mut client) = start_with_t().await;
    db.run(&[
        "create table audit (id int generated always as identity primary key, v text)",
        "create function note() returns trigger language plpgsql as $$
         begin insert into audit (v) values (tg_op || new.id); return null; end $$",
        "create trigger note after insert or update on t for each row execute function note()",
    ])
    .await;
    db.watch("audit").await;

    db.run(&["insert into t values (3, 'c')", "update t set v = 'x' where id = 3"]).await;

    let mut first = told(&mut client).await;
    first.sort();
    assert_eq!(first, ["insert audit 1 INSERT3", "insert t 3 c"]);
    let mut second = told(&mut client).await;
    second.sort();
    assert_eq!(second, ["insert audit 2 UPDATE3", "update t 3 x"]);
}

#[tokio::test]
async fn a_row_that_a_trigger_changes_again_ends_as_it_stands_in_the_table() {
    let (db, _gateway, mut client) = start_with_t().await;
    // By its name it fires before the trigger of the capture.
    db.run(&[
        "create function again() returns trigger language plpgsql as $$
         begin update t set v = new.v || '!' where id = new.id; return null; end $$",
        "create trigger a_first after insert on t for each row execute function again()",
    ])
    .await;

    db.run(&["insert into t values (3, 'c')"]).await;

    assert_eq!(told(&mut client).await, ["insert t 3 c", "update t 3 c!"]);
}

#[tokio::test]
async fn a_row_that_refers_to_itself_ends_as_it_stands_in_the_table() {
    let create = [
        "create table tree (id int primary key, v int references tree on update cascade)",
        "insert into tree values (1, 1)",
    ];
    let (db, gateway) = start(&create, &["tree"]).await;
    let mut client = gateway.follow("").await;

    db.run(&["update tree set id = 2"]).await;

    assert_eq!(told(&mut client).await, ["update tree 2 1", "update tree 2 2"]);
}

#[tokio::test]
async fn constraints_set_immediate_leave_a_commit_whole_and_in_its_place() {
    let (db, _gateway, mut client) = start_with_t().await;
    let other = db.session().await;

    db.run(&["begin; set constraints all immediate; update t set v = 'first' where id = 1"]).await;
    other.batch_execute("update t set v = 'between' where id = 2").await.unwrap();
    db.run(&["insert into t values (3, 'second'); savepoint s; insert into t values (4, 'x'); rollback to s; commit"])
        .await;
    db.run(&[
        "begin; insert into t values (5, 'e'); set constraints all immediate; insert into t values (6, 'f'); commit",
    ])
    .await;

    assert_eq!(told(&mut client).await, ["update t 2 between"]);
    assert_eq!(told(&mut client).await, ["update t 1 first", "insert t 3 second"]);
    assert_eq!(told(&mut client).await, ["insert t 5 e", "insert t 6 f"]);
}

#[tokio::test]
async fn a_savepoint_rolled_back_with_constraints_immediate_leaves_the_rest() {
    let (db, _gateway, mut client) = start_with_t().await;

    db.transaction(&[
        "set constraints all immediate",
        "savepoint s",
        "insert into t values (3, 'gone')",
        "rollback to s",
        "insert into t values (4, 'stays')",
        "insert into t values (5, 'too')",
    ])
    .await;

    assert_eq!(told(&mut client).await, ["insert t 4 stays", "insert t 5 too"]);
}

#[tokio::test]
async fn a_refresh_that_would_write_a_watched_table_is_refused_and_never_silent() {
    let (db, _gateway, mut client) = start_with_t().await;
    db.run(&[
        "create function note() returns int language plpgsql as
             $$ begin insert into public.t values (3, 'refresh'); return 3; end $$",
        "create materialized view noted as select note() as id with no data",
    ])
    .await;

    let refused = db.batch_execute("refresh materialized view noted").await.unwrap_err();
    db.run(&["insert into t values (4, 'next')"]).await;

    // PostgreSQL's rule, which docs/delivery.md quotes: no deferred trigger can be queued there, ours or anybody's.
    let refused = refused.as_db_error().unwrap();
    assert_eq!(refused.message(), "cannot fire deferred trigger within security-restricted operation");
    assert_eq!(db.value::<i64>("select count(*) from t where id = 3").await, 0);
    assert_eq!(told(&mut client).await, ["insert t 4 next"]);
}

#[tokio::test]
async fn what_deferred_triggers_write_arrives_in_the_commit_that_queued_them() {
    let (db, _gateway, mut client) = start_with_t().await;
    // Each fires as the transaction commits; the second one, which the first one queues, a pass later.
    db.run(&[
        "create table relay (n int)",
        "create function once() returns trigger language plpgsql as
             $$ begin insert into relay values (new.id); insert into t values (new.id + 100, 'once'); return null; end $$",
        "create function twice() returns trigger language plpgsql as
             $$ begin insert into t values (new.n + 200, 'twice'); return null; end $$",
        "create constraint trigger once after insert on t deferrable initially deferred
             for each row when (new.id < 100) execute function once()",
        "create constraint trigger twice after insert on relay deferrable initially deferred
             for each row execute function twice()",
    ])
    .await;

    db.run(&["insert into t values (3, 'c')"]).await;
    db.transaction(&["insert into t values (4, 'd')", "update t set v = 'e' where id = 1"]).await;
    db.run(&["insert into relay values (5)"]).await;

    assert_eq!(told(&mut client).await, ["insert t 3 c", "insert t 103 once", "insert t 203 twice"]);
    assert_eq!(told(&mut client).await, ["insert t 4 d", "update t 1 e", "insert t 104 once", "insert t 204 twice"]);
    assert_eq!(told(&mut client).await, ["insert t 205 twice"], "the first change of all may come that late");
}

#[tokio::test]
async fn settings_that_a_session_resets_neither_fail_its_commit_nor_hide_it() {
    let (db, _gateway, mut client) = start_with_t().await;

    db.transaction(&["update t set v = 'x' where id = 1", "reset all", "update t set v = 'y' where id = 2"]).await;
    db.run(&["discard all", "update t set v = 'z' where id = 1"]).await;

    assert_eq!(told(&mut client).await, ["update t 1 x", "update t 2 y"]);
    assert_eq!(told(&mut client).await, ["update t 1 z"]);
}

#[tokio::test]
async fn serializable_transactions_on_different_tables_do_not_fail_because_of_the_log() {
    let create = ["create table a (id int primary key, v text)", "create table b (id int primary key, v text)"];
    let (db, gateway) = start(&create, &["a", "b"]).await;
    let mut client = gateway.follow("").await;
    let other = db.session().await;

    for round in 1..=20 {
        db.run(&[&format!("begin isolation level serializable; insert into a values ({round}, 'x')")]).await;
        other
            .batch_execute(&format!("begin isolation level serializable; insert into b values ({round}, 'y')"))
            .await
            .unwrap();
        db.run(&[&format!("update a set v = 'z' where id = {round}")]).await;
        other.batch_execute("commit").await.unwrap();
        db.run(&["commit"]).await;
    }

    for round in 1..=20 {
        assert_eq!(told(&mut client).await, [format!("insert b {round} y")]);
        assert_eq!(told(&mut client).await, [format!("insert a {round} x"), format!("update a {round} z")]);
    }
}

#[tokio::test]
async fn a_function_with_exception_blocks_tells_only_what_it_kept() {
    let (db, _gateway, mut client) = start_with_t().await;

    db.run(&["do $$
              begin
                  for i in 1..6 loop
                      begin
                          insert into t values (i, 'new');
                          if i = 5 then raise 'no'; end if;
                      exception when unique_violation then update t set v = 'was there' where id = i;
                                when raise_exception then null;
                      end;
                  end loop;
              end $$"])
        .await;

    assert_eq!(
        told(&mut client).await,
        ["update t 1 was there", "update t 2 was there", "insert t 3 new", "insert t 4 new", "insert t 6 new"]
    );
}

#[tokio::test]
async fn a_function_with_settings_of_its_own_is_one_commit_with_what_surrounds_it() {
    let (db, _gateway, mut client) = start_with_t().await;
    db.run(&[
        "create function put(id int) returns void language plpgsql set timezone = 'UTC' set search_path = public as
              $$ begin insert into t values (put.id, 'put'); end $$",
    ])
    .await;

    db.transaction(&["select put(3)", "insert into t values (4, 'd')", "select put(5)"]).await;

    assert_eq!(told(&mut client).await, ["insert t 3 put", "insert t 4 d", "insert t 5 put"]);
}

#[tokio::test]
async fn a_procedure_that_commits_tells_each_of_its_transactions() {
    let (db, _gateway, mut client) = start_with_t().await;
    db.run(&["create procedure put() language plpgsql as
              $$ begin
                  insert into t values (3, 'c'); commit;
                  insert into t values (4, 'd'); rollback;
                  insert into t values (5, 'e');
              end $$"])
        .await;

    db.run(&["call put()"]).await;

    assert_eq!(told(&mut client).await, ["insert t 3 c"]);
    assert_eq!(told(&mut client).await, ["insert t 5 e"]);
}

#[tokio::test]
async fn truncate_of_several_tables_is_one_commit_that_names_each() {
    let create = [
        "create table a (id int primary key)",
        "create table b (id int primary key)",
        "create table c (id int references a)",
        "insert into a values (1)",
    ];
    let (db, gateway) = start(&create, &["a", "b", "c"]).await;
    let mut client = gateway.follow("").await;

    db.run(&["truncate a, b cascade"]).await;

    assert_eq!(told(&mut client).await, ["truncate a", "truncate b", "truncate c"]);
}

#[tokio::test]
async fn a_table_may_be_altered_and_truncated_in_the_transaction_that_wrote_it() {
    let (db, _gateway, mut client) = start_with_t().await;

    db.transaction(&[
        "insert into t values (3, 'c')",
        "alter table t add column n int default 7",
        "insert into t values (4, 'd')",
        "alter table t rename column v to w",
        "alter table t alter column id type bigint",
        "update t set w = 'e' where id = 4",
        "create index on t (w)",
        "truncate t",
        "insert into t values (5, 'f', 8)",
        "alter table t drop column n",
        "insert into t values (6, 'g')",
    ])
    .await;

    let changes: Vec<(Value, Value)> =
        client.changes().await.iter().map(|change| (change["op"].clone(), change["new"].clone())).collect();
    assert_eq!(
        changes,
        [
            (json!("insert"), json!({"id": 3, "v": "c"})),
            (json!("insert"), json!({"id": 4, "v": "d", "n": 7})),
            (json!("update"), json!({"id": 4, "w": "e", "n": 7})),
            (json!("truncate"), Value::Null),
            (json!("insert"), json!({"id": 5, "w": "f", "n": 8})),
            (json!("insert"), json!({"id": 6, "w": "g"})),
        ]
    );
}

#[tokio::test]
async fn a_table_may_be_made_watched_written_and_dropped_in_one_transaction() {
    let (db, gateway, mut client) = start_with_t().await;
    let mut of_t = gateway.follow("table=t").await;

    db.transaction(&[
        "create table brief (id int primary key, v text)",
        "select switchboard.watch('brief')",
        "insert into brief values (1, 'x')",
        "drop table brief",
    ])
    .await;
    db.run(&["insert into t values (3, 'after')"]).await;

    assert_eq!(told(&mut client).await, ["insert brief 1 x"]);
    assert_eq!(told(&mut of_t).await, ["insert t 3 after"], "that brief was dropped is nothing to them");
}

#[tokio::test]
async fn a_writer_needs_no_right_but_that_to_write_the_table() {
    let (db, _gateway, mut client) = start_with_t().await;
    let (name, writer) = role(&db, "writer").await;
    db.run(&[&format!("grant insert, update, delete, select, truncate on t to {name}")]).await;

    writer
        .batch_execute("insert into t values (3, 'c'); update t set v = 'd' where id = 3; delete from t where id = 3")
        .await
        .unwrap();
    writer.batch_execute("truncate t").await.unwrap();

    assert_eq!(told(&mut client).await, ["insert t 3 c", "update t 3 d", "delete t 3 d"]);
    assert_eq!(told(&mut client).await, ["truncate t"]);
    for forbidden in [
        "select * from switchboard.log",
        "insert into switchboard.log (xid, watch, op, first) values (pg_current_xact_id(), 1, 'T', true)",
        "select nextval('switchboard.serial')",
        "select switchboard.number()",
        "select switchboard.watch('t')",
        "select switchboard.read(0, null, 10, 10, 10)",
    ] {
        assert_eq!(
            writer.batch_execute(forbidden).await.unwrap_err().code().map(|code| code.code()),
            Some("42501"),
            "{forbidden}"
        );
    }
}

#[tokio::test]
async fn a_transaction_that_discards_its_sequences_commits() {
    let (db, _gateway, mut client) = start_with_t().await;
    const NOW: &str = "set constraints all immediate";

    for (id, settings) in [(5, ""), (6, NOW)] {
        let insert = format!("insert into t values ({id}, 'x')");
        db.batch_execute(&format!("begin; {insert}; {settings}; discard sequences; commit")).await.unwrap();
        db.batch_execute(&format!("begin; {settings}; delete from t where id = {id}; discard sequences; commit"))
            .await
            .unwrap();
    }

    for expected in ["insert t 5 x", "delete t 5 x", "insert t 6 x", "delete t 6 x"] {
        assert_eq!(told(&mut client).await, [expected]);
    }
}

#[tokio::test]
async fn a_search_path_with_traps_catches_nobody() {
    let (db, _gateway, mut client) = start_with_t().await;
    db.run(&["create schema trap"]).await;
    for (name, arguments, returns) in [
        ("row_to_json", "record", "json"),
        ("current_setting", "text, boolean", "text"),
        ("set_config", "text, text, boolean", "text"),
        ("pg_current_xact_id", "", "xid8"),
        ("clock_timestamp", "", "timestamptz"),
        ("nextval", "regclass", "bigint"),
        ("currval", "regclass", "bigint"),
        ("pg_trigger_depth", "", "integer"),
        ("pg_try_advisory_xact_lock_shared", "integer, integer", "boolean"),
        ("equal", "text, text", "boolean"),
        ("equal", "xid8, xid8", "boolean"),
        ("equal", "bigint, bigint", "boolean"),
    ] {
        let trap = "language plpgsql as $$ begin raise 'trapped'; end $$";
        db.run(&[&format!("create function trap.{name}({arguments}) returns {returns} {trap}")]).await;
    }
    for of in ["text", "xid8", "bigint"] {
        db.run(&[&format!("create operator trap.= (leftarg = {of}, rightarg = {of}, function = trap.equal)")]).await;
    }
    let writer = db.session().await;

    writer.batch_execute("set search_path = trap, pg_catalog").await.unwrap();
    writer
        .batch_execute("create temp table log (); create temp table waiting (); create temp table mark ()")
        .await
        .unwrap();
    writer
        .batch_execute("insert into public.t values (3, 'c'), (4, 'd'); delete from public.t where id = 3")
        .await
        .unwrap();

    assert_eq!(told(&mut client).await, ["insert t 3 c", "insert t 4 d", "delete t 3 c"]);
}

#[tokio::test]
async fn a_table_may_belong_to_another_role() {
    let db = Database::new().await;
    let (owner, session) = role(&db, "owner").await;
    db.run(&[&format!("create schema theirs authorization {owner}")]).await;
    session.batch_execute("create table theirs.t (id int primary key, v text)").await.unwrap();
    db.watch("theirs.t").await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("").await;

    session.batch_execute("insert into theirs.t values (1, 'x')").await.unwrap();
    session
        .batch_execute("alter table theirs.t add column n int; update theirs.t set n = 1; truncate theirs.t")
        .await
        .unwrap();

    assert_eq!(told(&mut client).await, ["insert theirs.t 1 x"]);
    assert_eq!(told(&mut client).await, ["update theirs.t 1 x", "truncate theirs.t"]);
}

#[tokio::test]
async fn row_level_security_does_not_hide_a_change() {
    let (db, _gateway, mut client) = start_with_t().await;
    let (name, writer) = role(&db, "tenant").await;
    db.run(&[
        &format!("grant insert, select, update on t to {name}"),
        "alter table t enable row level security",
        "alter table t force row level security",
        "create policy own on t using (id > 100) with check (true)",
    ])
    .await;

    writer.batch_execute("insert into t values (3, 'unseen'), (101, 'seen')").await.unwrap();
    writer.batch_execute("update t set v = 'x'").await.unwrap();

    assert_eq!(told(&mut client).await, ["insert t 3 unseen", "insert t 101 seen"]);
    assert_eq!(told(&mut client).await, ["update t 101 x"]);
}

#[tokio::test]
async fn a_prepared_transaction_arrives_when_it_is_committed() {
    let server = Server::start(&[("max_prepared_transactions", "10")]).await;
    let db = server.database().await;
    db.run(&["create table t (id int primary key, v text)"]).await;
    db.watch("t").await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("").await;

    db.run(&["begin; insert into t values (1, 'a'), (2, 'b'); prepare transaction 'kept'"]).await;
    db.run(&["begin; insert into t values (3, 'gone'); prepare transaction 'dropped'"]).await;
    db.run(&["insert into t values (4, 'd')"]).await;
    let before = told(&mut client).await;
    db.run(&["rollback prepared 'dropped'", "commit prepared 'kept'", "insert into t values (5, 'e')"]).await;

    assert_eq!(before, ["insert t 4 d"]);
    assert_eq!(told(&mut client).await, ["insert t 1 a", "insert t 2 b"]);
    assert_eq!(told(&mut client).await, ["insert t 5 e"]);
}

#[tokio::test]
async fn commits_that_do_not_wait_for_the_disk_arrive_too() {
    let (db, _gateway, mut client) = start_with_t().await;

    db.run(&["set synchronous_commit = off", "insert into t values (3, 'c')", "update t set v = 'd' where id = 3"])
        .await;

    assert_eq!(told(&mut client).await, ["insert t 3 c"]);
    assert_eq!(told(&mut client).await, ["update t 3 d"]);
}

#[tokio::test]
async fn a_large_transaction_arrives_in_parts_and_in_order() {
    let (db, _gateway, mut client) = start_with_t().await;

    db.run(&["insert into t select i, repeat(md5(i::text), 32) from generate_series(1001, 6000) as i"]).await;
    db.run(&["insert into t values (3, 'small')"]).await;

    let (mut ids, mut parts, mut seen) = (Vec::new(), 0, None);
    loop {
        let text = client.text().await.unwrap();
        let part: Value = serde_json::from_str(&text).unwrap();
        if part["type"] != "commit" {
            continue;
        }
        client.cursor = part["cursor"].as_str().map(str::to_owned);
        parts += 1;
        assert!(text.len() < FRAME_BYTES_MAX + 4_096, "a part has {} bytes", text.len());
        let place = (part["cursor"].clone(), part["tx"].clone(), part["at"].clone());
        assert_eq!(*seen.get_or_insert(place.clone()), place, "the parts of a commit have its cursor, tx and time");
        for change in part["changes"].as_array().unwrap() {
            assert_eq!(change["new"]["v"].as_str().map(str::len), Some(1_024));
            ids.push(change["new"]["id"].as_i64().unwrap());
        }
        if part.get("more").is_none() {
            break;
        }
        assert_eq!(part["more"], true);
    }
    assert!(parts >= 5_000 * 1_024 / FRAME_BYTES_MAX, "{parts} parts");
    assert!(ids.iter().copied().eq(1001..=6000), "{} changes, not all in order", ids.len());
    assert_eq!(told(&mut client).await, ["insert t 3 small"]);
}

#[tokio::test]
async fn a_large_transaction_comes_before_one_that_committed_after_it_and_behind_one_that_committed_before() {
    let (db, _gateway, mut client) = start_with_t().await;
    let other = db.session().await;

    db.run(&["begin; insert into t select i, repeat('x', 1000) from generate_series(1001, 3000) as i"]).await;
    other.batch_execute("insert into t values (3, 'before')").await.unwrap();
    db.run(&["commit"]).await;
    other.batch_execute("insert into t values (4, 'after')").await.unwrap();

    assert_eq!(told(&mut client).await, ["insert t 3 before"]);
    assert_eq!(client.changes().await.len(), 2_000);
    assert_eq!(told(&mut client).await, ["insert t 4 after"]);
}
