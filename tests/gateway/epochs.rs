//! Positions mean nothing in another life of the log: a restored copy, a cluster that went back in time, a standby that was
//! promoted without the last transactions. Whoever stands at such a position is told, and begins anew.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use serde_json::Value;
use switchboard::change::{Cursor, Place};
use switchboard::config;
use switchboard::local::{LocalServer, Options};
use switchboard::log::{Log, Page, PageSize};
use tokio::process::Command;
use tokio_postgres::Client as Session;

use crate::harness::{Client, Database, Gateway, Mirror, Server, connect, soon, until};
use crate::retention::{held_readers, hold_readers, number, release_readers};

async fn numbers(db: &Database) {
    db.run(&["create table number (n int primary key)"]).await;
    db.watch("number").await;
}

async fn insert(session: &Session, numbers: std::ops::Range<i32>) {
    for number in numbers {
        session.batch_execute(&format!("insert into number values ({number})")).await.unwrap();
    }
}

/// The numbers of the next commits, one each.
async fn next_numbers(client: &mut Client, count: usize) -> Vec<i64> {
    let mut numbers = Vec::new();
    while numbers.len() < count {
        numbers.push(client.changes().await[0]["new"]["n"].as_i64().unwrap());
    }
    numbers
}

async fn snapshot_numbers(client: &mut Client) -> Vec<i64> {
    let (rows, commits) = client.snapshot().await;
    let told = commits.iter().flat_map(|commit| commit["changes"].as_array().unwrap()).map(|change| &change["new"]);
    let mut numbers: Vec<i64> = rows.iter().chain(told).map(|row| row["n"].as_i64().unwrap()).collect();
    numbers.sort_unstable();
    numbers
}

/// The reason of the reset that a cursor gets, with what the client is given instead.
async fn refused(gateway: &Gateway, cursor: &str) -> (Value, Vec<i64>) {
    let mut client = gateway.subscribe(&format!("table=number&from={cursor}")).await;
    let reset = client.next_of("reset", &["hello", "status"]).await;
    (reset["reason"].clone(), snapshot_numbers(&mut client).await)
}

/// Waits for the reset of a client that stayed connected; its reason.
async fn reset(client: &mut Client) -> Value {
    client.next_of("reset", &["status", "position"]).await["reason"].clone()
}

async fn resume(gateway: &Gateway, cursor: &str) -> Client {
    let mut client = gateway.subscribe(&format!("table=number&from={cursor}")).await;
    client.next_of("hello", &[]).await;
    client.cursor = Some(cursor.to_owned());
    client
}

/// Ends every session of the gateways.
async fn cut_off(db: &Database) {
    db.run(&["select pg_terminate_backend(pid) from pg_stat_activity
              where application_name = 'switchboard' and datname = current_database()"])
        .await;
}

async fn reason(session: &Session) -> String {
    session.query_one("select reason from switchboard.epoch", &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_dump_that_is_restored_into_another_cluster_begins_a_new_epoch() {
    let (old, new) = (Server::start(&[]).await, Server::start(&[]).await);
    let (dump, psql) = (old.0.programs().dir.join("pg_dump"), old.0.programs().dir.join("psql"));
    if !dump.is_file() || !psql.is_file() {
        return eprintln!("skipped: this installation of PostgreSQL has no pg_dump and psql");
    }
    let db = old.database().await;
    numbers(&db).await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("table=number").await;
    insert(&db, 0..3).await;
    next_numbers(&mut client, 2).await;
    let cursor = client.cursor.clone().unwrap();

    let admin = connect(&new.0.url("postgres")).await;
    // Roles are not in a dump.
    for statement in ["create role switchboard nologin", "create database copy"] {
        admin.batch_execute(statement).await.unwrap();
    }
    let mut dumping = Command::new(dump).arg(&db.url).stdout(Stdio::piped()).spawn().unwrap();
    let text: Stdio = dumping.stdout.take().unwrap().try_into().unwrap();
    let mut restoring = Command::new(psql);
    restoring.args(["--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--dbname", &new.0.url("copy")]);
    let restored = soon("the dump is restored", restoring.stdin(text).stdout(Stdio::null()).status()).await.unwrap();
    assert!(restored.success() && soon("the dump ends", dumping.wait()).await.unwrap().success());
    let copy = connect(&new.0.url("copy")).await;
    let another = Gateway::launch(config::database_config(&new.0.url("copy"), None).unwrap(), |_| {}).await;
    another.ready().await;

    assert_eq!(reason(&copy).await, "the log was brought into another cluster or database");
    assert_eq!(refused(&another, &cursor).await, ("epoch".into(), vec![0, 1, 2]));
    let mut follower = another.follow("table=number").await;
    insert(&copy, 3..5).await;
    assert_eq!(next_numbers(&mut follower, 2).await, [3, 4], "new changes flow");
    // And the original goes on as if nothing had been.
    insert(&db, 10..11).await;
    assert_eq!(next_numbers(&mut resume(&gateway, &cursor).await, 2).await, [2, 10]);
}

#[tokio::test]
async fn an_epoch_that_cannot_go_on_ends_for_every_gateway_and_says_why() {
    for (change, expected) in [
        // As after pg_upgrade, which makes a new cluster around the old data.
        (
            "update switchboard.epoch set system_identifier = system_identifier + 1",
            "the log was brought into another cluster or database",
        ),
        (
            "update switchboard.commit set snapshot = '4000000000:4000000000:'
             where position = (select max(position) from switchboard.commit)",
            "transaction numbers went backwards",
        ),
    ] {
        let db = Database::new().await;
        numbers(&db).await;
        let (one, two) = (Gateway::start(&db).await, Gateway::start(&db).await);
        let mut clients = [one.follow("table=number").await, two.follow("table=number").await];
        insert(&db, 0..3).await;
        for client in &mut clients {
            next_numbers(client, 3).await;
        }
        let cursor = clients[0].cursor.clone().unwrap();

        db.run(&[change]).await;
        cut_off(&db).await;

        for client in &mut clients {
            assert_eq!(reset(client).await, "epoch");
            assert_eq!(snapshot_numbers(client).await, [0, 1, 2], "{expected}");
        }
        assert_eq!(reason(&db).await, expected);
        assert_eq!(refused(&one, &cursor).await, ("epoch".into(), vec![0, 1, 2]));
        assert_eq!(refused(&two, &cursor).await, ("epoch".into(), vec![0, 1, 2]));
        insert(&db, 3..5).await;
        for client in &mut clients {
            assert_eq!(next_numbers(client, 2).await, [3, 4]);
        }
    }
}

#[tokio::test]
async fn a_gateway_whose_sessions_live_on_notices_the_epoch_that_another_one_began() {
    let db = Database::new().await;
    numbers(&db).await;
    let one = Gateway::start(&db).await;
    let mut client = one.follow("table=number").await;
    insert(&db, 0..3).await;
    next_numbers(&mut client, 3).await;

    db.run(&["update switchboard.epoch set system_identifier = 1"]).await;
    let two = Gateway::start(&db).await;

    reset(&mut client).await;
    assert_eq!(snapshot_numbers(&mut client).await, [0, 1, 2]);
    let mut other = two.follow("table=number").await;
    insert(&db, 3..4).await;
    for client in [&mut client, &mut other] {
        assert_eq!(next_numbers(client, 1).await, [3]);
    }
}

/// What a failover leaves that lost the last transactions, made by hand: the log and the table as they were before.
async fn lose_commits_behind(db: &Database, cursor: &str) {
    let position = cursor.split('.').nth(1).unwrap();
    db.transaction(&[
        "set local session_replication_role = replica",
        "lock table switchboard.numbering in exclusive mode",
        &format!(
            "create temporary table lost on commit drop as
             select log.xid, (log.new->>'n')::int as n from switchboard.commit join switchboard.log using (xid)
             where position > {position}"
        ),
        "delete from number where n in (select n from lost)",
        "delete from switchboard.log where xid in (select xid from lost)",
        "delete from switchboard.mark where xid in (select xid from lost)",
        &format!("delete from switchboard.commit where position > {position}"),
        &format!("update switchboard.commit set snapshot = pg_current_snapshot() where position = {position}"),
    ])
    .await;
}

#[tokio::test]
async fn rows_that_were_read_before_commits_were_lost_are_given_to_nobody_after() {
    let db = Database::new().await;
    numbers(&db).await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("table=number").await;
    insert(&db, 0..2).await;
    next_numbers(&mut client, 2).await;
    let kept = client.cursor.clone().unwrap();
    insert(&db, 2..4).await;
    next_numbers(&mut client, 2).await;
    let mut early = gateway.subscribe("table=number").await;
    assert_eq!(snapshot_numbers(&mut early).await, [0, 1, 2, 3]);

    lose_commits_behind(&db, &kept).await;
    cut_off(&db).await;

    for client in [&mut early, &mut client] {
        reset(client).await;
        assert_eq!(snapshot_numbers(client).await, [0, 1]);
    }
    insert(&db, 10..11).await;
    assert_eq!(next_numbers(&mut early, 1).await, [10]);
}

#[tokio::test]
async fn a_log_that_goes_on_from_another_commit_is_read_by_nobody() {
    let db = Database::new().await;
    numbers(&db).await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("table=number").await;
    insert(&db, 0..4).await;
    next_numbers(&mut client, 2).await;
    let kept: Cursor = client.cursor.as_deref().unwrap().parse().unwrap();
    next_numbers(&mut client, 2).await;
    let lost: Cursor = client.cursor.as_deref().unwrap().parse().unwrap();
    gateway.stop().await;
    // One connection of its own, as if the feed had not noticed yet that the server is another.
    let log = Log::new(&switchboard::session::Database::new(&db.config()), 1);
    let read = async |known: Cursor| {
        log.read(known, Place::after(kept.position), lost.position, PageSize::FEED).await.unwrap()
    };
    assert!(matches!(read(lost).await, Page::Parts(parts) if parts.len() == 2));

    lose_commits_behind(&db, &kept.to_string()).await;
    insert(&db, 10..14).await;
    log.number().await.unwrap();

    assert!(matches!(read(lost).await, Page::Overtaken), "other commits have these positions now");
    assert!(matches!(read(kept).await, Page::Parts(parts) if parts.len() == 2));
}

/// The next frames are parts of one commit, none of them its end, and then a reset: the reason.
async fn cut_off_in_a_commit(client: &mut Client) -> Value {
    let mut cursor = None;
    loop {
        let frame = client.frame().await.unwrap();
        match frame["type"].as_str().unwrap() {
            "commit" => {
                assert_eq!(frame["more"], true, "half of one commit and half of another look like one: {frame:.300}");
                assert_eq!(*cursor.get_or_insert(frame["cursor"].clone()), frame["cursor"], "and parts of both came");
                let numbers = frame["changes"].as_array().unwrap().iter().map(|change| change["new"]["n"].as_i64());
                assert!(numbers.flatten().all(|n| n < 100_000), "what came next is of another commit");
            }
            "reset" => return frame["reason"].clone(),
            "status" | "position" | "hello" => {}
            _ => panic!("the rest of a commit or a reset was due, and this came: {frame:.300}"),
        }
    }
}

#[tokio::test]
async fn half_a_commit_is_never_completed_by_another_one_that_has_its_place_after_a_failover() {
    for sessions_live_on in [true, false] {
        let db = Database::new().await;
        numbers(&db).await;
        let gateway = Gateway::start(&db).await;
        let mut live = gateway.follow("table=number").await;
        insert(&db, 0..1).await;
        next_numbers(&mut live, 1).await;
        let kept = live.cursor.clone().unwrap();
        hold_readers(&db).await;
        db.run(&["insert into number select generate_series(10000, 15000)"]).await;
        until("the feed is in the middle of it", async || held_readers(&db).await == 1).await;
        // One that reads the log itself stands there too.
        let mut late = resume(&gateway, &kept).await;

        lose_commits_behind(&db, &kept).await;
        db.run(&["insert into number select generate_series(100000, 106000)", "insert into number values (200000)"])
            .await;
        number(&db).await;
        if !sessions_live_on {
            cut_off(&db).await;
        }
        release_readers(&db).await;

        assert_eq!(cut_off_in_a_commit(&mut live).await, "nonce", "sessions live on: {sessions_live_on}");
        let expected: Vec<i64> = std::iter::once(0).chain(100_000..=106_000).chain([200_000]).collect();
        assert_eq!(snapshot_numbers(&mut live).await, expected);
        // The other one began behind what both have, so it gets the new commits whole, or is told.
        let mut numbers = Vec::new();
        while numbers.last() != Some(&200_000) {
            let frame = late.frame().await.unwrap();
            match frame["type"].as_str().unwrap() {
                "commit" => {
                    numbers.extend(frame["changes"].as_array().unwrap().iter().filter_map(|c| c["new"]["n"].as_i64()))
                }
                "reset" => numbers.clear(),
                "rows" => numbers.extend(frame["rows"].as_array().unwrap().iter().filter_map(|row| row["n"].as_i64())),
                _ => {}
            }
        }
        numbers.retain(|n| *n != 0);
        assert_eq!(numbers, expected[1..], "sessions live on: {sessions_live_on}");
        insert(&db, 300_000..300_001).await;
        assert_eq!(next_numbers(&mut live, 1).await, [300_000]);
    }
}

/// What numbering has seen has its position: it will not look there again, and nobody would tell or forget the rest.
async fn nothing_is_left_behind(db: &Database, told: &str) {
    for table in ["log", "mark"] {
        let left = format!(
            "select count(*) from switchboard.{table}
             where xid not in (select xid from switchboard.commit)
               and pg_visible_in_snapshot(xid, (select snapshot from switchboard.commit order by position desc limit 1))"
        );
        let left: i64 = db.value(&left).await;
        assert_eq!(left, 0, "{told}: rows of switchboard.{table} that nobody will tell or forget");
    }
}

#[tokio::test]
async fn what_commits_while_a_new_epoch_begins_is_in_it_or_gone_with_the_old_one() {
    for table in ["log", "mark", "commit", "epoch"] {
        let db = Database::new().await;
        numbers(&db).await;
        insert(&db, 0..5).await;
        number(&db).await;
        insert(&db, 5..8).await;
        db.run(&["update switchboard.epoch set system_identifier = 1"]).await;
        let (writer, opener, holder) = (db.session().await, db.session().await, db.session().await);
        writer.batch_execute("begin; insert into number values (100)").await.unwrap();
        // Whoever deletes these rows waits here: in the middle of it others commit.
        holder.batch_execute(&format!("begin; select from switchboard.{table} for update")).await.unwrap();
        let opening = tokio::spawn(async move { opener.batch_execute("select switchboard.open()").await });
        let waits =
            "select exists (select from pg_stat_activity where query like '%open()%' and pid <> pg_backend_pid()
                                    and datname = current_database() and (wait_event_type = 'Lock' or state = 'idle'))";
        until("the new epoch begins", async || db.value(waits).await).await;

        let writing = tokio::spawn(async move {
            writer.batch_execute("commit").await?;
            writer.batch_execute("insert into number values (101)").await
        });
        // Perhaps writers wait for the new epoch. Not for ever.
        let both_wait =
            "select count(*) = 2 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        until("the writer is done, or waits", async || writing.is_finished() || db.value(both_wait).await).await;
        holder.batch_execute("rollback").await.unwrap();
        soon("the epoch is open", opening).await.unwrap().unwrap();
        soon("the writer is done", writing).await.unwrap().unwrap();

        number(&db).await;
        nothing_is_left_behind(&db, table).await;
        let gateway = Gateway::start(&db).await;
        let mut client = gateway.subscribe("table=number").await;
        assert_eq!(snapshot_numbers(&mut client).await, [0, 1, 2, 3, 4, 5, 6, 7, 100, 101]);
        insert(&db, 102..103).await;
        assert_eq!(next_numbers(&mut client, 1).await, [102]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn epochs_that_begin_again_and_again_while_writers_commit_lose_nothing_and_leave_nothing() {
    const EPOCHS: usize = 25;
    let db = Database::new().await;
    numbers(&db).await;
    let gateway = Gateway::start(&db).await;
    let mut follower = Mirror::begin(&gateway, "table=number").await;
    let going = Arc::new(AtomicBool::new(true));
    let mut writers = Vec::new();
    for writer in 0..3 {
        let (session, going) = (db.session().await, going.clone());
        writers.push(tokio::spawn(async move {
            let mut n = writer * 1_000_000;
            while going.load(Ordering::Relaxed) {
                let rows = if n % 10 == 0 { 500 } else { 1 };
                insert_many(&session, n, rows).await;
                n += rows;
            }
        }));
    }

    for epoch in 0..EPOCHS {
        db.run(&[
            "update switchboard.epoch set system_identifier = system_identifier + 1",
            "select switchboard.open()",
        ])
        .await;
        nothing_is_left_behind(&db, &format!("epoch {epoch}")).await;
    }

    going.store(false, Ordering::Relaxed);
    for writer in writers {
        soon("the writers end", writer).await.unwrap();
    }
    number(&db).await;
    nothing_is_left_behind(&db, "after all").await;
    insert(&db, -1..0).await;
    follower.becomes(&db, "select * from number").await;
    assert!(
        !follower.resets.is_empty() && follower.resets.iter().all(|reason| reason == "epoch"),
        "{:?}",
        follower.resets
    );
}

async fn insert_many(session: &Session, first: i32, rows: i32) {
    let sql = format!("insert into number select n from generate_series({first}, {first} + {rows} - 1) as n");
    session.batch_execute(&sql).await.unwrap();
}

/// A streaming standby of a server, and how to reach both.
struct Standby {
    server: LocalServer,
    /// A session on it.
    session: Session,
    /// Both servers, for a client that wants the one that takes writes.
    both: String,
}

impl Standby {
    /// A copy of the server that follows it, in a database of the same name. `None` where this installation cannot make one.
    async fn of(primary: &Server, db: &Database) -> Option<Standby> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let backup = primary.0.programs().dir.join("pg_basebackup");
        if !backup.is_file() {
            eprintln!("skipped: this installation of PostgreSQL has no pg_basebackup");
            return None;
        }
        let from = PathBuf::from(db.value::<String>("select current_setting('data_directory')").await);
        let dir = std::env::temp_dir().join(format!("switchboard-test-{}-standby-{number}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let mut copying = Command::new(backup);
        copying.args([
            "--write-recovery-conf",
            "--checkpoint=fast",
            "--no-sync",
            "--dbname",
            &primary.0.url("postgres"),
        ]);
        let copied = soon("the copy", copying.arg("--pgdata").arg(dir.join("data")).status()).await.unwrap();
        assert!(copied.success());
        std::fs::write(dir.join("lock"), "").unwrap();
        std::fs::copy(from.with_file_name("password"), dir.join("password")).unwrap();
        give(&dir, &from.metadata().unwrap());

        let settings = [("max_connections", "400"), ("shared_buffers", "64MB")];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let options = Options { dir, settings, durable: false, keep: false };
        let server = LocalServer::start(options, |_| {}).await.unwrap();
        let name: String = db.value("select current_database()::text").await;
        let url = server.url(&name);
        let second = url.split(['@', '/']).find(|part| part.starts_with("127.")).unwrap().to_owned();
        let both = db.url.replace(&format!("/{name}"), &format!(",{second}/{name}?target_session_attrs=read-write"));
        Some(Standby { session: connect(&url).await, server, both })
    }

    /// Waits until it has replayed what the primary wrote so far.
    async fn catch_up(&self, db: &Database) {
        let written: String = db.value("select pg_current_wal_lsn()::text").await;
        let replayed = format!("select pg_last_wal_replay_lsn() >= '{written}'");
        until("the standby has everything", async || self.ask(&replayed).await).await;
    }

    /// From here on nothing that the primary writes arrives.
    async fn stop_receiving(&self) {
        self.session.batch_execute("alter system set primary_conninfo = ''").await.unwrap();
        self.session.batch_execute("select pg_reload_conf()").await.unwrap();
        let gone = "select not exists (select from pg_stat_activity where backend_type = 'walreceiver')";
        until("the standby receives no more", async || self.ask(gone).await).await;
    }

    async fn promote(&self) {
        assert!(self.ask("select pg_promote(true)").await, "the standby is promoted");
    }

    async fn ask(&self, sql: &str) -> bool {
        self.session.query_one(sql, &[]).await.unwrap().get(0)
    }
}

/// Gives a folder to the user that the servers run as.
fn give(path: &Path, like: &std::fs::Metadata) {
    chown(path, Some(like.uid()), Some(like.gid())).unwrap();
    if path.is_dir() && !path.is_symlink() {
        for entry in std::fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path(), like);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_that_lost_commits_resets_those_who_had_seen_them_and_nobody_else() {
    let mut primary = Server::start(&[]).await;
    let db = primary.database().await;
    numbers(&db).await;
    let Some(standby) = Standby::of(&primary, &db).await else { return };
    let gateway = Gateway::launch(config::database_config(&standby.both, None).unwrap(), |_| {}).await;
    gateway.ready().await;
    let mut client = gateway.follow("table=number").await;
    insert(&db, 0..3).await;
    next_numbers(&mut client, 2).await;
    let old = client.cursor.clone().unwrap();
    next_numbers(&mut client, 1).await;
    let newest_kept = client.cursor.clone().unwrap();
    standby.catch_up(&db).await;
    standby.stop_receiving().await;
    insert(&db, 100..103).await;
    assert_eq!(next_numbers(&mut client, 1).await, [100]);
    let lost_early = client.cursor.clone().unwrap();
    assert_eq!(next_numbers(&mut client, 2).await, [101, 102]);
    let lost = client.cursor.clone().unwrap();

    primary.0.kill().await.unwrap();
    standby.promote().await;

    // Who stayed connected and has seen what is lost:
    assert_eq!(reset(&mut client).await, "future");
    assert_eq!(snapshot_numbers(&mut client).await, [0, 1, 2]);
    // Who comes back from a commit that is lost:
    assert_eq!(refused(&gateway, &lost).await, ("future".into(), vec![0, 1, 2]));
    // And when as many new commits have the same positions again:
    insert(&standby.session, 3..6).await;
    assert_eq!(next_numbers(&mut client, 3).await, [3, 4, 5]);
    let position = |cursor: &str| cursor.split('.').nth(1).unwrap().to_owned();
    assert_eq!(position(client.cursor.as_deref().unwrap()), position(&lost));
    for cursor in [&lost_early, &lost] {
        assert_eq!(refused(&gateway, cursor).await, ("nonce".into(), vec![0, 1, 2, 3, 4, 5]));
    }
    // Who had not seen what is lost goes on.
    assert_eq!(next_numbers(&mut resume(&gateway, &old).await, 4).await, [2, 3, 4, 5]);
    assert_eq!(next_numbers(&mut resume(&gateway, &newest_kept).await, 3).await, [3, 4, 5]);
    assert_ne!(reason(&standby.session).await, "transaction numbers went backwards");
    drop(standby.server);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_that_lost_nothing_costs_nobody_a_reset() {
    let mut primary = Server::start(&[]).await;
    let db = primary.database().await;
    numbers(&db).await;
    let Some(standby) = Standby::of(&primary, &db).await else { return };
    let gateway = Gateway::launch(config::database_config(&standby.both, None).unwrap(), |_| {}).await;
    gateway.ready().await;
    let mut client = gateway.follow("table=number").await;
    insert(&db, 0..3).await;
    next_numbers(&mut client, 2).await;
    let cursor = client.cursor.clone().unwrap();
    next_numbers(&mut client, 1).await;
    standby.catch_up(&db).await;

    primary.0.kill().await.unwrap();
    standby.promote().await;
    insert(&standby.session, 3..5).await;

    assert_eq!(next_numbers(&mut client, 2).await, [3, 4]);
    assert_eq!(next_numbers(&mut resume(&gateway, &cursor).await, 3).await, [2, 3, 4]);
    drop(standby.server);
}
