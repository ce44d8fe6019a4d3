//! The doorbell: rings when the feed sleeps, not when it is awake, and nothing depends on it.

use std::time::Duration;

use futures_util::StreamExt;
use tokio_postgres::{AsyncMessage, NoTls};

use crate::harness::{Database, Gateway, Mode, Server, soon, until};

/// Whether a feed sleeps: it holds the lock of the doorbell exclusively.
pub async fn asleep(db: &Database) -> bool {
    db.value(
        "select exists (select from pg_locks where locktype = 'advisory' and classid = 1937203812 and objid = 1
         and mode = 'ExclusiveLock' and granted
         and database = (select oid from pg_database where datname = current_database()))",
    )
    .await
}

/// Holds the lock of the doorbell as a writer does that hangs in the middle of its commit: the feed may not sleep.
pub async fn hold_the_doorbell_shared(db: &Database, hanging: &tokio_postgres::Client) {
    until("the lock is shared", async || {
        let lock = "select pg_try_advisory_lock_shared(1937203812, 1)";
        hanging.query_one(lock, &[]).await.unwrap().get(0) || {
            // The feed sleeps: a commit wakes it, and for a moment it holds no lock.
            db.run(&["update switch set level = -1 where id = 4"]).await;
            false
        }
    })
    .await;
}

#[tokio::test]
async fn a_sleeping_feed_is_woken_by_the_first_commit() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("").await;

    for level in 1..=5 {
        until("the feed sleeps", async || asleep(&db).await).await;
        db.run(&[&format!("update switch set level = {level} where id = 1")]).await;
        assert_eq!(client.changes().await[0]["new"]["level"], level);
    }
}

#[tokio::test]
async fn a_feed_that_may_not_sleep_delivers_all_the_same() {
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("").await;
    let hanging = db.session().await;
    hold_the_doorbell_shared(&db, &hanging).await;

    db.run(&["update switch set level = 77 where id = 1"]).await;

    while client.changes().await[0]["new"]["level"] != 77 {}
    assert!(!asleep(&db).await);
}

#[tokio::test]
async fn a_doorbell_that_never_rings_costs_time_only() {
    let db = Database::with_switch().await;
    let silent =
        "create or replace function switchboard.confirm_mark() returns trigger language plpgsql security definer as
                  $$ begin return null; end $$";
    db.run(&[silent]).await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("").await;
    until("the feed sleeps", async || asleep(&db).await).await;

    db.run(&["update switch set level = 1 where id = 1", "update switch set level = 2 where id = 1"]).await;

    assert_eq!(client.changes().await[0]["new"]["level"], 1);
    assert_eq!(client.changes().await[0]["new"]["level"], 2);
}

#[tokio::test]
async fn a_gateway_that_could_not_hear_polls_until_it_can() {
    let db = Database::with_switch().await;
    let (proxy, through) = db.behind_proxy().await;
    proxy.set(Mode::Deaf);
    let gateway = Gateway::launch(through, |_| {}).await;
    gateway.ready().await;
    let mut client = gateway.follow("").await;
    let present =
        "select count(*) from pg_locks where locktype = 'advisory' and (classid, objid) = (1937203812, 3) and granted
                   and database = (select oid from pg_database where datname = current_database())";
    db.run(&["update switch set level = 1 where id = 1"]).await;
    assert_eq!(client.changes().await[0]["new"]["level"], 1);
    assert_eq!(db.value::<i64>(present).await, 0, "it polls");

    proxy.set(Mode::Pass);

    until("the feed sleeps", async || asleep(&db).await).await;
    assert_eq!(db.value::<i64>(present).await, 1);
    db.run(&["update switch set level = 2 where id = 1"]).await;
    assert_eq!(client.changes().await[0]["new"]["level"], 2);
    // It leads by the lock from now on, as it did without one.
    assert_eq!(db.value::<i64>(&present.replace("812, 3", "812, 2")).await, 1);
}

#[tokio::test]
async fn where_two_phase_commit_is_enabled_prepared_transactions_work_and_arrive() {
    let server = Server::start(&[("max_prepared_transactions", "5")]).await;
    let db = server.database().await;
    db.run(&["create table t (id int primary key)"]).await;
    db.watch("t").await;
    let gateway = Gateway::start_with(&db, |config| config.poll = Duration::from_millis(10)).await;
    let mut client = gateway.follow("").await;

    db.run(&["begin; insert into t values (1); prepare transaction 'p'", "insert into t values (2)"]).await;
    assert_eq!(client.changes().await[0]["new"]["id"], 2);
    db.run(&["commit prepared 'p'"]).await;

    assert_eq!(client.changes().await[0]["new"]["id"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_database_sends_next_to_no_notifications() {
    const COMMITS: usize = 2_000;
    let db = Database::with_switch().await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("").await;
    let (listener, mut connection) = tokio_postgres::connect(&db.url, NoTls).await.unwrap();
    let counted = tokio::spawn(async move {
        let mut messages = futures_util::stream::poll_fn(move |context| connection.poll_message(context));
        let mut count = 0;
        while let Some(Ok(message)) = messages.next().await {
            match message {
                AsyncMessage::Notification(bell) if bell.payload() == "end" => break,
                AsyncMessage::Notification(_) => count += 1,
                _ => {}
            }
        }
        count
    });
    listener.batch_execute("listen switchboard").await.unwrap();

    let writer =
        "do $$ begin for i in 1..500 loop update switch set level = i where id = $ID; commit; end loop; end $$";
    let sessions = [db.session().await, db.session().await, db.session().await, db.session().await];
    let writers = sessions.iter().enumerate().map(|(index, session)| {
        let sql = writer.replace("$ID", &(index + 1).to_string());
        async move { session.batch_execute(&sql).await.unwrap() }
    });
    futures_util::future::join_all(writers).await;
    db.run(&["notify switchboard, 'end'"]).await;

    let mut arrived = 0;
    while arrived < COMMITS {
        arrived += client.changes().await.len();
    }
    let rings: usize = counted.await.unwrap();
    // However slow the machine is just now: as many as there are commits would be the usual trigger's.
    assert!(rings < COMMITS / 2, "{rings} notifications for {COMMITS} commits");
}

#[tokio::test]
async fn a_commit_rings_while_the_feed_sleeps() {
    let db = Database::with_switch().await;
    let _gateway = Gateway::start(&db).await;
    let (listener, mut connection) = tokio_postgres::connect(&db.url, NoTls).await.unwrap();
    let heard = tokio::spawn(async move {
        loop {
            match std::future::poll_fn(|context| connection.poll_message(context)).await {
                Some(Ok(AsyncMessage::Notification(bell))) => return bell.payload().to_owned(),
                Some(Ok(_)) => {}
                _ => panic!("the listening session ended"),
            }
        }
    });
    until("the feed sleeps", async || asleep(&db).await).await;
    listener.batch_execute("listen switchboard").await.unwrap();

    db.run(&["update switch set level = 1 where id = 1"]).await;

    assert_eq!(soon("the ring", heard).await.unwrap(), "");
}

#[tokio::test]
async fn who_notifies_does_not_wait_for_a_numbering_that_tells_other_gateways() {
    let server = Server::start(&[]).await;
    let db = server.database().await;
    db.run(&["create table t (id int primary key)"]).await;
    db.watch("t").await;
    let (_one, _two) = (Gateway::start(&db).await, Gateway::start(&db).await);
    // Numbering flushes as the server is told to, so from here on it waits in its commit for a standby that does not exist.
    db.run(&["alter system set synchronous_standby_names = 'nobody'", "select pg_reload_conf()"]).await;
    db.run(&["set synchronous_commit = local", "set lock_timeout = '5s'"]).await;
    until("the standby is asked for", async || db.value::<String>("show synchronous_standby_names").await == "nobody")
        .await;

    db.run(&["insert into t values (1)"]).await;
    until("numbering is in its commit", async || {
        db.value("select count(*) > 0 from pg_stat_activity where wait_event = 'SyncRep' and query like '%switchboard.number%'").await
    })
    .await;

    db.run(&["notify anything"]).await;
}
