//! Strangers in the database: what somebody may do who is neither the owner of the log nor a gateway.

use std::time::Duration;

use serde_json::json;
use switchboard::{check, install};
use tokio_postgres::{Client, NoTls};

use crate::harness::{Database, Gateway, Server, until};

/// A role that may log in and, with a schema `theirs`, make tables; and a session of it.
async fn stranger(db: &Database, name: &str) -> (String, Client) {
    let database: String = db.value("select current_database()::text").await;
    let name = format!("{name}_{database}");
    db.run(&[
        &format!("create role {name} login password 'secret'"),
        &format!("create schema theirs authorization {name}"),
    ])
    .await;
    let mut config = db.config();
    config.user(&name).password("secret");
    let (session, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    (name, session)
}

async fn findings(db: &Database) -> Vec<String> {
    check::check(&db.config()).await.iter().map(|finding| finding.to_string()).collect()
}

#[tokio::test]
async fn a_schema_that_somebody_else_made_is_not_installed_into() {
    let db = Database::without_log().await;
    let (mallory, session) = stranger(&db, "mallory").await;
    let database: String = db.value("select current_database()::text").await;
    db.run(&[&format!("alter database {database} owner to {mallory}")]).await;
    let trap = format!(
        "create schema switchboard;
         create table switchboard.step (number integer, name text, applied_at timestamptz default now());
         create function switchboard.climb() returns trigger language plpgsql as
             $$ begin alter role {mallory} superuser; return new; end $$;
         create trigger climb before insert on switchboard.step for each row execute function switchboard.climb()"
    );
    session.batch_execute(&trap).await.unwrap();

    let mut superuser = db.session().await;
    let refused = install::install(&mut superuser, false, None).await.unwrap_err().to_string();

    assert!(
        refused.starts_with(&format!("the schema \"switchboard\" belongs to {mallory}, and installing")),
        "{refused}"
    );
    // A schema of ours in which somebody else has something is no better.
    for (owner, named) in [
        ("alter schema switchboard owner to postgres", "switchboard.step"),
        ("alter table switchboard.step owner to postgres", "the function switchboard.climb()"),
    ] {
        db.run(&[owner]).await;
        let refused = install::install(&mut superuser, false, None).await.unwrap_err().to_string();
        assert!(refused.starts_with(&format!("{named} belongs to {mallory}")), "{refused}");
    }
    let climbed = format!("select rolsuper from pg_roles where rolname = '{mallory}'");
    assert!(!db.value::<bool>(&climbed).await);
}

#[tokio::test]
async fn what_a_superuser_installs_belongs_to_a_role_that_nobody_can_be() {
    let db = Database::with_switch().await;
    let (owner, session) = stranger(&db, "owner").await;
    let cast = "create type theirs.mood as enum ('good');
                create function theirs.to_json(theirs.mood) returns json language sql as $$ select to_json(current_user) $$;
                create cast (theirs.mood as json) with function theirs.to_json(theirs.mood);
                create table theirs.t (id int primary key, v theirs.mood)";
    session.batch_execute(cast).await.unwrap();
    db.watch("theirs.t").await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("table=theirs.t").await;

    session.batch_execute("insert into theirs.t values (1, 'good')").await.unwrap();

    assert_eq!(client.changes().await[0]["new"]["v"], json!("switchboard"), "it runs as no superuser");
    let others = "select count(*) from pg_class where relnamespace = 'switchboard'::regnamespace
                  and pg_get_userbyid(relowner) <> 'switchboard'";
    assert_eq!(db.value::<i64>(others).await, 0);
    let others = "select count(*) from pg_proc where pronamespace = 'switchboard'::regnamespace
                  and pg_get_userbyid(proowner) <> 'switchboard'";
    assert_eq!(db.value::<i64>(others).await, 0);
    let role =
        "select not rolcanlogin and not rolsuper and not rolcreaterole from pg_roles where rolname = 'switchboard'";
    assert!(db.value::<bool>(role).await);
    let findings = findings(&db).await;
    let warned: Vec<&String> = findings.iter().filter(|finding| finding.contains("can act as")).collect();
    assert_eq!(warned.len(), 1, "{findings:#?}");
    let said = format!("note   who owns a watched table ({owner}) can act as switchboard: by a cast");
    assert!(warned[0].starts_with(&said), "{}", warned[0]);
}

#[tokio::test]
async fn a_role_that_somebody_can_be_does_not_own_the_schema_and_check_says_so() {
    let server = Server::start(&[]).await;
    let db = server.empty_database().await;
    db.run(&["create role switchboard login"]).await;
    let mut superuser = db.session().await;

    let said = install::install(&mut superuser, true, None).await.unwrap();

    assert!(
        said.contains("postgres owns the schema, since somebody can log in as or become the role switchboard"),
        "{said}"
    );
    let (_, session) = stranger(&db, "owner").await;
    session.batch_execute("create table theirs.t (id int primary key)").await.unwrap();
    db.watch("theirs.t").await;
    let wrong =
        async || findings(&db).await.into_iter().filter(|finding| finding.starts_with("WRONG")).collect::<Vec<_>>();
    let found = wrong().await;
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].contains("can act as postgres"), "{found:#?}");

    // The remedy that it names.
    db.run(&["drop role switchboard"]).await;
    install::install(&mut superuser, true, None).await.unwrap();
    assert_eq!(wrong().await, Vec::<String>::new());
}

#[tokio::test]
async fn default_privileges_open_nothing_of_ours() {
    let db = Database::without_log().await;
    let (stranger, session) = stranger(&db, "stranger").await;
    db.run(&[
        "alter default privileges grant all on tables to public",
        "alter default privileges grant all on sequences to public",
        "alter default privileges grant all on functions to public",
        "alter default privileges grant all on schemas to public",
    ])
    .await;

    install::install(&mut db.session().await, true, None).await.unwrap();

    for forbidden in
        ["select * from switchboard.log", "select nextval('switchboard.serial')", "select switchboard.number()"]
    {
        let error = session.batch_execute(forbidden).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "42501", "{forbidden}");
    }
    let open = async || {
        findings(&db).await.into_iter().filter(|finding| finding.contains("has rights on")).collect::<Vec<_>>()
    };
    assert_eq!(open().await, Vec::<String>::new());

    db.run(&[&format!("grant select on switchboard.log to {stranger}")]).await;
    let found = open().await;
    assert!(
        found[0].starts_with(&format!("WRONG  {stranger} has rights on the table switchboard.log: ")),
        "{found:#?}"
    );
    install::install(&mut db.session().await, false, None).await.unwrap();
    assert_eq!(open().await, Vec::<String>::new());
}

#[tokio::test]
async fn what_a_writer_keeps_from_being_told_is_trimmed_and_its_followers_begin_anew() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start_with(&db, |config| config.retain.commits = 1).await;
    let mut client = gateway.follow("table=switch").await;
    db.run(&["update switch set level = 1 where id = 1"]).await;
    client.changes().await;
    db.run(&["begin; select set_config('switchboard.xid', pg_current_xact_id()::text, true);
              update switch set level = 77 where id = 1; commit"])
        .await;

    for level in 2..=4 {
        db.run(&[&format!("update switch set level = {level} where id = 2")]).await;
    }

    let hidden = "select count(*) from switchboard.log as log
                  where not exists (select from switchboard.mark as mark where mark.xid = log.xid)";
    until("it is trimmed", async || db.value::<i64>(hidden).await == 0).await;
    client.next_of("reset", &["commit", "position"]).await;
    let (rows, _) = client.snapshot().await;
    assert!(rows.iter().any(|row| row["level"] == 77), "{rows:?}");
}

#[tokio::test]
async fn whoever_holds_our_locks_stops_neither_the_feed_nor_retention_nor_a_new_epoch() {
    let db = Database::with_switch().await;
    let (name, session) = stranger(&db, "holder").await;
    session.batch_execute("select pg_advisory_lock(1937203812, n) from generate_series(1, 9) as n").await.unwrap();
    let found = findings(&db).await;
    assert!(
        found.iter().any(|finding| finding.contains(&format!("of {name} holds a lock of Switchboard's"))),
        "{found:#?}"
    );
    // Another life of the log begins when a gateway comes.
    db.run(&["update switchboard.epoch set database = 1"]).await;

    let gateway = Gateway::start_with(&db, |config| {
        config.retain.commits = 1;
        config.poll = Duration::from_millis(10);
    })
    .await;
    let mut client = gateway.follow("table=switch").await;

    for level in 1..=5 {
        db.run(&[&format!("update switch set level = {level} where id = 1")]).await;
        assert_eq!(client.changes().await[0]["new"]["level"], level);
    }
    until("old commits are forgotten", async || db.value::<i64>("select count(*) from switchboard.commit").await <= 2)
        .await;
}
