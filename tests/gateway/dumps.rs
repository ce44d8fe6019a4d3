//! Dumps, restores, copies and replicas: what was brought elsewhere never speaks for another table, fails no restore and no writer,
//! and after `install` the feed works there as anywhere.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};
use switchboard::local::Programs;
use switchboard::{check, install};
use tokio::process::Command;

use crate::harness::{Client, Database, Gateway, Mirror, Server, connect, soon, until};

const ORDERS: &str = "select * from orders";
const ROOMS: &str = "select * from rooms";
/// What makes `psql` stop at the first error.
const STRICT: &str = "--set=ON_ERROR_STOP=1";

/// A dump in a file of its own.
struct Dump(PathBuf);

impl Dump {
    /// Dumps a database with these options.
    async fn of(db: &Database, options: &[&str]) -> Dump {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let file = std::env::temp_dir().join(format!("switchboard-test-{}-{number}.dump", std::process::id()));
        let to = format!("--file={}", file.display());
        let (code, said) = tool("pg_dump", db, &[&[&*to], options].concat()).await;
        assert_eq!(code, Some(0), "pg_dump {options:?}: {said}");
        Dump(file)
    }

    /// Loads a dump in plain SQL; the exit code of `psql`, and what it said.
    async fn load(&self, db: &Database, options: &[&str]) -> (Option<i32>, String) {
        let from = format!("--file={}", self.0.display());
        tool("psql", db, &[&["--no-psqlrc", "--quiet", "--output=/dev/null", &from], options].concat()).await
    }

    /// Restores a dump in the custom format; the exit code of `pg_restore`, and what it said.
    async fn restore(&self, db: &Database, options: &[&str]) -> (Option<i32>, String) {
        tool("pg_restore", db, &[options, &[&self.0.display().to_string()]].concat()).await
    }
}

impl Drop for Dump {
    fn drop(&mut self) {
        // It lies among temporary files anyway.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The folder of PostgreSQL's programs, where those of this file are among them.
async fn programs() -> Option<PathBuf> {
    let dir = Programs::find(None, &|_| {}).await.unwrap().dir;
    let all = ["pg_dump", "pg_restore", "psql"].iter().all(|program| dir.join(program).is_file());
    if !all {
        eprintln!("skipped: this installation of PostgreSQL has no pg_dump, pg_restore and psql");
    }
    all.then_some(dir)
}

async fn tool(program: &str, db: &Database, options: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(programs().await.unwrap().join(program));
    command.args(options).arg(format!("--dbname={}", db.url)).kill_on_drop(true);
    let output = soon(program, command.output()).await.unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Two watched tables with rows, and with changes of each in the log.
async fn shop() -> Database {
    fill(Database::new().await).await
}

async fn fill(db: Database) -> Database {
    db.run(&[
        "create table orders (id int primary key, item text)",
        "create table rooms (id int primary key, name text)",
        "insert into orders select n, 'item ' || n from generate_series(1, 5) as n",
        "insert into rooms values (1, 'hall')",
    ])
    .await;
    db.watch("orders").await;
    db.watch("rooms").await;
    db.run(&["update orders set item = item || '!'", "insert into rooms values (2, 'attic')"]).await;
    db
}

async fn install(db: &Database) {
    install::install(&mut db.session().await, false, None).await.unwrap_or_else(|error| panic!("install: {error:#}"));
}

/// What `check` says.
async fn findings(db: &Database) -> Vec<String> {
    check::check(&db.config()).await.iter().map(ToString::to_string).collect()
}

/// Whether some finding that is not good holds all of these words.
fn warns(findings: &[String], words: &[&str]) -> bool {
    findings.iter().any(|finding| !finding.starts_with("good") && words.iter().all(|word| finding.contains(word)))
}

/// Everything works: rows, changes of both tables, nothing else, and nothing that `check` finds wrong.
async fn works(db: &Database) {
    let gateway = Gateway::start(db).await;
    works_at(db, &gateway).await;
}

async fn works_at(db: &Database, gateway: &Gateway) {
    let mut orders = Mirror::begin(gateway, "table=orders").await;
    let mut rooms = Mirror::begin(gateway, "table=rooms").await;
    let mut all = gateway.follow("").await;
    db.run(&["insert into orders values (100, 'new')", "update rooms set name = upper(name)"]).await;
    db.run(&[
        "update orders set item = 'newer' where id = 100",
        "truncate rooms",
        "insert into rooms values (9, 'new')",
    ])
    .await;
    let mut told = Vec::new();
    for _ in 0..5 {
        let changes = all.changes().await;
        told.push(format!("{} {}", changes[0]["op"].as_str().unwrap(), changes[0]["table"].as_str().unwrap()));
    }
    let [a, b] = ["public.orders", "public.rooms"];
    let expected = [("insert", a), ("update", b), ("update", a), ("truncate", b), ("insert", b)];
    assert_eq!(told, expected.map(|(op, table)| format!("{op} {table}")));
    orders.becomes(db, ORDERS).await;
    rooms.becomes(db, ROOMS).await;
    let findings = findings(db).await;
    assert!(!findings.iter().any(|finding| finding.starts_with("WRONG")), "{findings:#?}");
}

/// The names of our triggers on a table.
async fn triggers(db: &Database, table: &str) -> Vec<String> {
    let sql = "select tgname::text from pg_trigger where tgrelid = $1::text::regclass and not tgisinternal
               and tgname like '!switchboard%' order by 1";
    db.query(sql, &[&table]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// Lets our triggers on a table fire for replicas too.
async fn always(db: &Database, table: &str) {
    for trigger in triggers(db, table).await {
        db.run(&[&format!(r#"alter table {table} enable always trigger "{trigger}""#)]).await;
    }
}

/// A cursor of the feed.
async fn cursor(db: &Database) -> String {
    let gateway = Gateway::start(db).await;
    let client = gateway.follow("").await;
    client.cursor.unwrap()
}

/// The reason of the reset that a cursor gets.
async fn refused(gateway: &Gateway, cursor: &str) -> Value {
    let mut client = gateway.subscribe(&format!("table=orders&from={cursor}")).await;
    client.next_of("reset", &["hello", "status"]).await["reason"].clone()
}

/// The one row of the next commit.
async fn row(client: &mut Client) -> Value {
    let [change] = &client.changes().await[..] else { panic!("one change was due") };
    change["new"].clone()
}

#[tokio::test]
async fn a_publication_of_all_tables_hinders_neither_the_log_nor_anybody() {
    let server = Server::start(&[("wal_level", "logical")]).await;
    for published_first in [true, false] {
        let db = server.empty_database().await;
        if published_first {
            db.run(&["create publication dbz for all tables"]).await;
        }
        install(&db).await;
        let db = fill(db).await;
        if !published_first {
            db.run(&["create publication dbz for all tables"]).await;
        }

        let findings = findings(&db).await;
        assert!(warns(&findings, &["dbz", "switchboard"]), "it says that our schema is published: {findings:#?}");
        assert!(!findings.iter().any(|finding| finding.starts_with("WRONG")), "{findings:#?}");
        let gateway = Gateway::start_with(&db, |config| config.retain.commits = 2).await;
        works_at(&db, &gateway).await;
        until("retention forgets", async || db.value::<i64>("select count(*) from switchboard.log").await == 2).await;
        // Another role, a table less, a slice of a large commit, another life of the log.
        let role = format!("published_{}", db.value::<String>("select current_database()::text").await);
        db.run(&[&format!("create role {role}"), &format!("select switchboard.allow_gateway('{role}')")]).await;
        db.run(&["select switchboard.unwatch('rooms')", "select switchboard.watch('rooms')"]).await;
        db.run(&["insert into orders select n, 'many' from generate_series(1000, 5000) as n", "delete from orders"])
            .await;
        db.run(&["insert into orders values (1, 'last')", "insert into orders values (2, 'last')"]).await;
        until("retention forgets", async || db.value::<i64>("select count(*) from switchboard.log").await == 2).await;
        let mut client = gateway.follow("table=orders").await;
        db.run(&["update switchboard.epoch set system_identifier = 1"]).await;
        db.run(&["select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'switchboard'
                  and datname = current_database()"])
            .await;
        assert_eq!(client.next_of("reset", &["status", "position"]).await["reason"], "epoch");
        assert_eq!(client.snapshot().await.0.len(), 2);
        gateway.stop().await;
        assert!(install::uninstall(&mut db.session().await).await.unwrap());
    }
}

#[tokio::test]
async fn a_schema_only_copy_never_speaks_for_another_table() {
    if programs().await.is_none() {
        return;
    }
    let db = shop().await;
    let dump = Dump::of(&db, &["-s", "-x", "-O"]).await;
    let copy = Database::without_log().await;
    let (code, said) = dump.load(&copy, &[STRICT]).await;
    assert_eq!(code, Some(0), "{said}");
    copy.run(&["drop table rooms", "insert into orders values (1, 'before')"]).await;

    let found = findings(&copy).await;
    assert!(warns(&found, &["public.orders"]), "it names what came with the copy: {found:#?}");
    install(&copy).await;
    assert_eq!(triggers(&copy, "orders").await, [""; 0], "nothing of ours is left where nothing is watched");
    // Several, so that one has the number that orders had.
    for table in ["halls", "rooms", "yards"] {
        copy.run(&[&format!("create table {table} (id int primary key, name text)")]).await;
        copy.watch(table).await;
    }
    let gateway = Gateway::start(&copy).await;
    let mut of_rooms = Mirror::begin(&gateway, "table=rooms").await;
    let mut of_all = gateway.follow("").await;
    copy.run(&["insert into rooms values (1, 'mine')", "insert into orders values (2, 'theirs')"]).await;
    copy.run(&["update orders set item = 'x'", "truncate orders", "insert into rooms values (2, 'mine')"]).await;

    assert_eq!([row(&mut of_all).await, row(&mut of_all).await], [1, 2].map(|id| json!({"id": id, "name": "mine"})));
    of_rooms.becomes(&copy, ROOMS).await;
    assert_eq!(of_rooms.commits, 2);
    let found = findings(&copy).await;
    assert!(!found.iter().any(|finding| finding.contains("orders")), "{found:#?}");
    copy.watch("orders").await;
    gateway.stop().await;
    works(&copy).await;
}

#[tokio::test]
async fn a_schema_only_copy_that_was_never_installed_fails_no_writer_and_tells_nothing() {
    if programs().await.is_none() {
        return;
    }
    let db = shop().await;
    let copy = Database::without_log().await;
    assert_eq!(Dump::of(&db, &["-s"]).await.load(&copy, &[STRICT]).await.0, Some(0));

    copy.run(&[
        "insert into orders values (1, 'a'); update orders set item = 'b'; delete from orders; truncate orders",
    ])
    .await;
    copy.transaction(&["insert into orders values (1, 'a')", "alter table orders add column n int", "truncate rooms"])
        .await;

    assert_eq!(copy.value::<i64>("select count(*) from switchboard.log").await, 0);
}

#[tokio::test]
async fn a_triggers_copy_that_came_after_watch_never_speaks_for_another_table() {
    if programs().await.is_none() {
        return;
    }
    let db = shop().await;
    // The schema of another application, from a machine where it is watched, beside tables that are watched here.
    let copy = Database::new().await;
    for table in ["halls", "rooms"] {
        copy.run(&[&format!("create table {table} (id int primary key, name text)")]).await;
        copy.watch(table).await;
    }
    let dump = Dump::of(&db, &["-s", "-t", "orders"]).await;
    let (code, said) = dump.load(&copy, &[STRICT]).await;
    assert_eq!(code, Some(0), "{said}");
    let gateway = Gateway::start(&copy).await;
    let mut of_all = gateway.follow("").await;

    copy.run(&["insert into orders values (1, 'theirs')", "truncate orders", "insert into rooms values (1, 'mine')"])
        .await;

    assert_eq!(row(&mut of_all).await, json!({"id": 1, "name": "mine"}));
    let found = findings(&copy).await;
    assert!(warns(&found, &["public.orders"]), "{found:#?}");
    copy.watch("orders").await;
    copy.run(&["insert into orders values (2, 'mine')"]).await;
    assert_eq!(row(&mut of_all).await, json!({"id": 2, "item": "mine"}));
    gateway.stop().await;
    works(&copy).await;
}

#[tokio::test]
async fn a_dump_is_restored_where_the_gateways_role_does_not_exist() {
    if programs().await.is_none() {
        return;
    }
    let db = shop().await;
    let role = format!("gw_{}", db.value::<String>("select current_database()::text").await);
    db.run(&[&format!("create role {role}"), &format!("select switchboard.allow_gateway('{role}')")]).await;
    let old = cursor(&db).await;
    let dump = Dump::of(&db, &["-Fc"]).await;
    let elsewhere = Server::start(&[]).await;
    for options in [&[][..], &["-1"], &["-j", "4"]] {
        let copy = elsewhere.empty_database().await;
        let usual = ["--no-owner", "--no-privileges", "--exit-on-error"];
        let (code, said) = dump.restore(&copy, &[&usual, options].concat()).await;
        assert_eq!(code, Some(0), "{options:?}: {said}");

        install(&copy).await;

        let gateway = Gateway::start(&copy).await;
        assert_eq!(refused(&gateway, &old).await, "epoch");
        works_at(&copy, &gateway).await;
        // Whoever may run a gateway is known by name: it need not exist, and may come later.
        assert!(!findings(&copy).await.iter().any(|finding| finding.starts_with("WRONG")));
        copy.run(&["create table later (id int primary key)"]).await;
        copy.watch("later").await;
        install::uninstall(&mut copy.session().await).await.unwrap();
    }
}

#[tokio::test]
async fn a_role_that_is_gone_hinders_nobody() {
    let db = shop().await;
    let role = format!("gone_{}", db.value::<String>("select current_database()::text").await);
    db.run(&[&format!("create role {role}"), &format!("select switchboard.allow_gateway('{role}')")]).await;
    db.run(&[&format!("drop owned by {role}"), &format!("drop role {role}")]).await;

    install(&db).await;
    db.run(&["create table later (id int primary key)"]).await;
    db.watch("later").await;
    db.run(&["select switchboard.unwatch('later')"]).await;

    works(&db).await;
    install::uninstall(&mut db.session().await).await.unwrap();
}

#[tokio::test]
async fn a_dump_that_is_restored_into_another_database_of_the_same_cluster_begins_a_new_epoch() {
    if programs().await.is_none() {
        return;
    }
    let db = shop().await;
    let original = Gateway::start(&db).await;
    let mut follower = Mirror::begin(&original, "table=orders").await;
    let old = Mirror::begin(&original, "table=orders").await.leave();
    for options in [&[STRICT][..], &[STRICT, "--single-transaction"]] {
        let copy = Database::without_log().await;
        let (code, said) = Dump::of(&db, &[]).await.load(&copy, options).await;
        assert_eq!(code, Some(0), "{options:?}: {said}");
        install(&copy).await;

        let gateway = Gateway::start(&copy).await;

        assert_eq!(refused(&gateway, &old.cursor).await, "epoch");
        works_at(&copy, &gateway).await;
    }
    // And the original goes on as if nothing had been.
    db.run(&["insert into orders values (50, 'original')"]).await;
    follower.becomes(&db, ORDERS).await;
    let mut back = Mirror::resume(&original, "table=orders", &old).await;
    back.becomes(&db, ORDERS).await;
    assert_eq!((follower.resets, back.resets), (vec![], vec![]));
}

#[tokio::test]
async fn a_database_that_is_a_template_of_another_is_not_taken_for_it() {
    let db = shop().await;
    let old = cursor(&db).await;
    let name: String = db.value("select current_database()::text").await;
    let url = db.url.clone();
    drop(db);
    let admin = connect(&url.replace(&format!("/{name}"), "/postgres")).await;
    // Nobody may be connected to it meanwhile.
    until("the copy is made", async || {
        admin.batch_execute(&format!("create database {name}_copy template {name}")).await.is_ok()
    })
    .await;
    let copy = Database::at(&format!("{url}_copy")).await;
    copy.run(&["insert into orders values (60, 'before a gateway came')"]).await;

    let gateway = Gateway::start(&copy).await;

    assert_eq!(refused(&gateway, &old).await, "epoch");
    works_at(&copy, &gateway).await;
    gateway.stop().await;
    install(&copy).await;
    copy.run(&["truncate orders, rooms", "insert into rooms values (1, 'hall')"]).await;
    works(&copy).await;
    // The original is still in its epoch.
    let db = Database::at(&url).await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.subscribe(&format!("table=orders&from={old}")).await;
    client.next_of("ready", &["hello"]).await;
}

#[tokio::test]
async fn data_that_is_restored_with_triggers_disabled_is_told() {
    if programs().await.is_none() {
        return;
    }
    let db = shop().await;
    let dump = Dump::of(&db, &["-Fc"]).await;
    for options in [
        &["--data-only", "--disable-triggers", "-t", "orders"][..],
        &["--data-only", "-1", "--disable-triggers", "-t", "orders"],
    ] {
        let target = shop().await;
        target.run(&["truncate orders"]).await;
        let gateway = Gateway::start(&target).await;
        let mut live = Mirror::begin(&gateway, "table=orders").await;
        let away = Mirror::begin(&gateway, "table=orders").await.leave();
        let mut others = Mirror::begin(&gateway, "table=rooms").await;

        let (code, said) = dump.restore(&target, &[options, &["--exit-on-error"]].concat()).await;

        assert_eq!(code, Some(0), "{said}");
        live.is_reset().await;
        live.becomes(&target, ORDERS).await;
        let mut back = Mirror::resume(&gateway, "table=orders", &away).await;
        back.is_reset().await;
        back.becomes(&target, ORDERS).await;
        target.run(&["insert into rooms values (70, 'next')"]).await;
        others.becomes(&target, ROOMS).await;
        assert_eq!(others.resets, [""; 0]);
        works_at(&target, &gateway).await;
    }
}

#[tokio::test]
async fn schema_and_data_that_are_restored_one_after_the_other_work() {
    if programs().await.is_none() {
        return;
    }
    let db = shop().await;
    always(&db, "orders").await;
    always(&db, "rooms").await;
    let (schema, data) = (Dump::of(&db, &["-Fc", "-s"]).await, Dump::of(&db, &["-Fc", "-a"]).await);
    for options in [&["--disable-triggers"][..], &["--disable-triggers", "-1"], &[]] {
        let copy = Database::without_log().await;
        let (code, said) = schema.restore(&copy, &["--exit-on-error"]).await;
        assert_eq!(code, Some(0), "{said}");
        let (code, said) = data.restore(&copy, &[&["--exit-on-error"], options].concat()).await;
        assert_eq!(code, Some(0), "{options:?}: {said}");

        install(&copy).await;

        works(&copy).await;
        // `enable trigger all`, as pg_restore says it, makes of "always" what is usual. Not so for ours on our own tables.
        always(&copy, "orders").await;
        let gateway = Gateway::start(&copy).await;
        let mut client = gateway.follow("table=orders").await;
        copy.run(&["set session_replication_role = replica", "insert into orders values (80, 'applied')"]).await;
        assert_eq!(row(&mut client).await, json!({"id": 80, "item": "applied"}));
    }
}

#[tokio::test]
async fn a_dump_without_one_of_the_watched_tables_is_restored() {
    if programs().await.is_none() {
        return;
    }
    let db = shop().await;
    db.run(&["create table gone (id int primary key)", "create table extra (id int primary key)"]).await;
    db.watch("gone").await;
    db.watch("extra").await;
    db.run(&["insert into gone values (1)", "insert into extra values (1)", "drop table gone"]).await;
    let dump = Dump::of(&db, &["-T", "extra"]).await;
    let copy = Database::without_log().await;

    let (code, said) = dump.load(&copy, &[STRICT]).await;

    assert_eq!(code, Some(0), "{said}");
    install(&copy).await;
    works(&copy).await;
    for table in ["gone", "extra"] {
        // Another table of that name is another table.
        copy.run(&[&format!("create table {table} (name text, id int primary key)")]).await;
        let gateway = Gateway::start(&copy).await;
        copy.run(&[&format!("insert into {table} values ('unseen', 1)")]).await;
        copy.watch(table).await;
        let mut follower = Mirror::begin(&gateway, &format!("table={table}")).await;
        copy.run(&[&format!("insert into {table} values ('seen', 2)")]).await;
        follower.becomes(&copy, &format!("select * from {table}")).await;
        assert_eq!(follower.commits, 1);
    }
}

#[tokio::test]
async fn a_table_that_is_restored_beside_its_renamed_original_does_not_speak_for_it() {
    if programs().await.is_none() {
        return;
    }
    let db = shop().await;
    let dump = Dump::of(&db, &["-t", "orders"]).await;
    let gateway = Gateway::start(&db).await;
    db.run(&["alter table orders rename to orders_old", "alter index orders_pkey rename to orders_old_pkey"]).await;
    until("the new name is known", async || gateway.get("/v1/tables").await.1.contains("orders_old")).await;
    let mut original = Mirror::begin(&gateway, "table=orders_old").await;

    let (code, said) = dump.load(&db, &[STRICT]).await;
    assert_eq!(code, Some(0), "{said}");
    db.run(&[
        "insert into orders values (90, 'of the copy')",
        "truncate orders",
        "insert into orders_old values (91, 'of the original')",
    ])
    .await;

    original.becomes(&db, "select * from orders_old").await;
    assert_eq!((original.commits, &original.resets), (1, &vec![]), "the copy spoke for the original");
    let found = findings(&db).await;
    assert!(warns(&found, &["public.orders"]), "{found:#?}");
    db.watch("orders").await;
    let mut copy = Mirror::begin(&gateway, "table=orders").await;
    db.run(&["insert into orders values (92, 'of the copy')", "insert into orders_old values (93, 'of the original')"])
        .await;
    copy.becomes(&db, ORDERS).await;
    original.becomes(&db, "select * from orders_old").await;
    assert_eq!(original.commits, 2);
}

#[tokio::test]
async fn what_replicas_write_is_told_in_order_where_the_triggers_are_always_on() {
    let db = shop().await;
    always(&db, "orders").await;
    let gateway = Gateway::start(&db).await;
    let replica = db.session().await;
    replica.batch_execute("set session_replication_role = replica").await.unwrap();
    let mut follower = Mirror::begin(&gateway, "table=orders").await;
    let mut client = gateway.follow("table=orders").await;

    for n in 0..20 {
        let write = format!("update orders set item = '{n}' where id = 1");
        match n % 3 {
            0 => db.run(&[&write]).await,
            1 => replica.batch_execute(&write).await.unwrap(),
            _ => {
                replica.batch_execute(&format!("begin; {write}; set constraints all immediate; commit")).await.unwrap()
            }
        }
    }
    replica
        .batch_execute(
            "begin; savepoint s; truncate orders; rollback to s; insert into orders values (95, 'x'); commit",
        )
        .await
        .unwrap();
    replica.batch_execute("truncate orders").await.unwrap();

    for n in 0..20 {
        assert_eq!(row(&mut client).await, json!({"id": 1, "item": n.to_string()}));
    }
    assert_eq!(row(&mut client).await, json!({"id": 95, "item": "x"}));
    assert_eq!(client.changes().await[0]["op"], "truncate");
    follower.becomes(&db, ORDERS).await;
    // Nothing is left behind for ever.
    let untold = "select count(*) from switchboard.log where xid not in (select xid from switchboard.commit)";
    assert_eq!(db.value::<i64>(untold).await, 0);
    let found = findings(&db).await;
    assert!(found.iter().any(|finding| finding.starts_with("good") && finding.contains("public.orders")), "{found:#?}");
}

#[tokio::test]
async fn a_dump_of_a_part_is_restored_where_switchboard_is_installed() {
    if programs().await.is_none() {
        return;
    }
    let db = shop().await;
    for part in [&["-n", "public"][..], &["-N", "switchboard"], &["-t", "orders", "-t", "rooms"]] {
        // As docs/dumps.md has it: install, restore, watch.
        let copy = Database::without_log().await;
        install(&copy).await;
        copy.run(&["drop schema public cascade"]).await;
        if part[0] == "-t" || part[0] == "-N" {
            copy.run(&["create schema public"]).await;
        }
        let dump = Dump::of(&db, &[&["-Fc"], part].concat()).await;
        let (code, said) = dump.restore(&copy, &["--exit-on-error"]).await;
        assert_eq!(code, Some(0), "{part:?}: {said}");

        let found = findings(&copy).await;
        assert!(warns(&found, &["public.orders", "switchboard watch"]), "{part:?}: {found:#?}");
        let gateway = Gateway::start(&copy).await;
        let mut all = gateway.follow("").await;
        copy.run(&["insert into orders values (97, 'not yet')"]).await;
        for table in ["orders", "rooms"] {
            copy.watch(table).await;
            assert_eq!(triggers(&copy, table).await.len(), 2, "{part:?}: strays are gone");
        }
        copy.run(&["insert into orders values (98, 'now')"]).await;
        let told = all.next_of("commit", &["position"]).await;
        assert_eq!(told["changes"][0]["new"]["id"], 98, "{part:?}: {told}");
        gateway.stop().await;
        works(&copy).await;
    }
}

#[tokio::test]
async fn a_dump_without_the_rows_of_the_log_is_restored_anywhere() {
    if programs().await.is_none() {
        return;
    }
    let db = shop().await;
    let old = cursor(&db).await;
    // As docs/dumps.md has it: dump without them, restore, install, watch.
    let dump = Dump::of(&db, &["-Fc", "--exclude-table-data=switchboard.*"]).await;
    let elsewhere = Server::start(&[]).await;
    let same = Database::without_log().await;
    // The role that owns the log is not there yet: without "--exit-on-error", whoever restores owns it, until "install".
    let without_role = elsewhere.empty_database().await;
    let with_role = elsewhere.empty_database().await;
    for (copy, options, exit) in
        [(same, &["--exit-on-error"][..], 0), (without_role, &[], 1), (with_role, &["--exit-on-error"], 0)]
    {
        let (code, said) = dump.restore(&copy, options).await;
        assert_eq!(code, Some(exit), "{said}");
        assert!(exit == 0 || said.contains("role \"switchboard\" does not exist"), "{said}");
        assert_eq!(copy.value::<i64>("select count(*) from orders").await, 5);

        install(&copy).await;
        copy.watch("orders").await;
        copy.watch("rooms").await;

        let gateway = Gateway::start(&copy).await;
        assert_eq!(refused(&gateway, &old).await, "epoch");
        works_at(&copy, &gateway).await;
    }
}
