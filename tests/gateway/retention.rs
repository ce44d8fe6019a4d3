//! The log keeps a bounded age, number of commits and number of bytes, and whoever is overtaken by that is told, never left with a hole.

use std::time::Duration;

use serde_json::Value;
use switchboard::install;

use crate::harness::{Client, Database, Gateway, Server, soon, until};
use crate::plain;

async fn numbers() -> Database {
    let db = Database::new().await;
    watch_numbers(&db).await;
    db
}

async fn watch_numbers(db: &Database) {
    db.run(&["create table number (n int primary key, note text)"]).await;
    db.watch("number").await;
}

/// One commit of these numbers.
async fn insert(db: &Database, numbers: std::ops::Range<i32>) {
    let (first, last) = (numbers.start, numbers.end - 1);
    db.run(&[&format!("insert into number select n, 'note ' || n from generate_series({first}, {last}) as n")]).await;
}

/// Numbers what was committed, where no gateway does.
pub async fn number(db: &Database) {
    db.run(&["begin isolation level repeatable read; lock table switchboard.numbering in exclusive mode;
              select switchboard.number(); commit"])
        .await;
}

/// One slice of retention, by the number of commits: how many were forgotten, and whether there is more to do.
async fn trim(db: &Database, commits_kept: i64, rows_max: i32) -> (i64, bool) {
    let sql = format!(
        "select forgotten, more
         from switchboard.trim('1 day', {commits_kept}, 1 << 30, 1000, {rows_max}, 1 << 30, null, 0)"
    );
    let row = db.query_one(&sql, &[]).await.unwrap();
    (row.get(0), row.get(1))
}

/// Forgets all but the newest commit.
async fn trim_all(db: &Database) {
    while trim(db, 1, 10_000).await.1 {}
}

async fn count(db: &Database, table: &str) -> i64 {
    db.value(&format!("select count(*) from switchboard.{table}")).await
}

/// The numbers that a commit's frame brings.
fn brought(frame: &Value) -> Vec<i64> {
    frame["changes"].as_array().unwrap().iter().map(|change| change["new"]["n"].as_i64().unwrap()).collect()
}

/// Whoever goes on reading in the middle of a commit waits, for as long as this session holds the lock 77.
pub async fn hold_readers(db: &Database) {
    hold_readers_where(db, "after_serial is not null").await;
}

/// Whoever reads the log so waits, for as long as this session holds the lock 77. Whatever else the function takes and gives.
async fn hold_readers_where(db: &Database, condition: &str) {
    db.run(&[
        &format!(
            "do $do$
             declare
                 this record;
             begin
                 select oid::regprocedure as name, pg_get_function_arguments(oid) as arguments, pg_get_function_result(oid) as result,
                        (select string_agg('$' || n, ', ' order by n) from generate_series(1, pronargs) as n) as passed
                 into strict this
                 from pg_proc where pronamespace = 'switchboard'::regnamespace and proname = 'read' order by pronargs desc limit 1;
                 execute format('alter function %s rename to read_at_once', this.name);
                 execute format(
                     'create function switchboard.read(%s) returns %s language plpgsql volatile as %L', this.arguments, this.result,
                     format('begin
                                 if {condition} then
                                     perform pg_advisory_xact_lock_shared(77);
                                 end if;
                                 return query select * from switchboard.read_at_once(%s);
                             end', this.passed));
             end $do$"
        ),
        "select pg_advisory_lock(77)",
    ])
    .await;
}

/// How many wait there.
pub async fn held_readers(db: &Database) -> i64 {
    db.value("select count(*) from pg_locks where locktype = 'advisory' and objid = 77 and not granted").await
}

pub async fn release_readers(db: &Database) {
    db.run(&["select pg_advisory_unlock(77)"]).await;
}

/// The next frames are parts of one commit, the last of them not the end of it, and then a reset because it expired.
async fn cut_off(client: &mut Client) {
    let mut part = client.next_of("commit", &["hello"]).await;
    loop {
        assert_eq!(part["more"], true, "the commit must not look whole");
        part = client.frame().await.unwrap();
        match part["type"].as_str() {
            Some("commit") => {}
            Some("status") => part = serde_json::json!({"more": true}),
            _ => break,
        }
    }
    assert_eq!((&part["type"], &part["reason"]), (&"reset".into(), &"expired".into()), "{part:.300}");
}

#[tokio::test]
async fn forgets_what_is_too_much_and_keeps_the_head() {
    let db = numbers().await;
    let gateway = Gateway::start_with(&db, |config| config.retain.commits = 3).await;
    let mut client = gateway.follow("").await;

    for n in 0..10 {
        insert(&db, n..n + 1).await;
    }
    for n in 0..10 {
        assert_eq!(brought(&client.commit().await), [n]);
    }

    until("retention forgets", async || {
        // One commit more is the anchor.
        count(&db, "commit").await == 4 && count(&db, "log").await == 3 && count(&db, "mark").await == 3
    })
    .await;
    insert(&db, 10..11).await;
    assert_eq!(brought(&client.commit().await), [10]);
}

#[tokio::test]
async fn forgets_what_is_too_old() {
    let db = numbers().await;
    for n in 0..10 {
        insert(&db, n..n + 1).await;
    }
    number(&db).await;
    db.run(&["update switchboard.commit set at = now() - interval '2 hours' where position <= 6"]).await;

    let gateway = Gateway::start_with(&db, |config| config.retain.age = Duration::from_secs(3600)).await;

    until("retention forgets", async || count(&db, "log").await == 4).await;
    assert_eq!(db.value::<i64>("select min(position) from switchboard.commit").await, 6);
    until("it is told", async || gateway.metric("switchboard_commits_forgotten_total").await == 6.0).await;
}

#[tokio::test]
async fn the_log_exceeds_its_bytes_by_one_commit_at_most() {
    const BYTES: i64 = 100_000;
    let db = numbers().await;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let gateway = Gateway::start_with(&db, |config| config.retain.bytes = BYTES).await;

    let mut next = 0;
    for _ in 0..60 {
        let size = random.i32(1..100);
        insert(&db, next..next + size).await;
        next += size;
    }

    let settled =
        "select position > 1 and bytes_end - (select bytes_end from switchboard.commit where last_serial is not null order by position limit 1)
                          < 100000 and position = 60 from switchboard.commit order by position desc limit 1";
    until("retention forgets", async || db.value::<bool>(settled).await).await;
    let kept: i64 = db.value("select sum(bytes)::bigint from switchboard.commit where last_serial is not null").await;
    let first = "select bytes from switchboard.commit where last_serial is not null order by position limit 1";
    let oldest: i64 = db.value(first).await;
    assert!(kept >= BYTES, "too much was forgotten: {kept} are left");
    assert!(kept - oldest < BYTES, "too much was kept: {kept}, {oldest} of them in the oldest commit");
    until("the metrics agree", async || {
        let oldest: i64 = db.value("select min(position) from switchboard.commit").await;
        gateway.metric("switchboard_log_bytes").await == kept as f64
            && gateway.metric("switchboard_log_oldest_position").await == oldest as f64
            && gateway.metric("switchboard_log_newest_position").await == 60.0
            && gateway.metric("switchboard_log_commits").await == (60 - oldest) as f64
    })
    .await;
}

#[tokio::test]
async fn a_large_last_commit_stays_whatever_the_bounds() {
    let db = numbers().await;
    insert(&db, 0..3).await;
    insert(&db, 3..1000).await;
    number(&db).await;

    let tight = "select switchboard.trim('0 s', 0, 0, 1000, 10000, 1 << 30, null, 0)";
    db.run(&[tight, tight]).await;

    assert_eq!((count(&db, "commit").await, count(&db, "log").await), (2, 997));
}

#[tokio::test]
async fn a_commit_counts_what_it_stores() {
    let db = numbers().await;
    db.run(&["insert into number values (-1, repeat('x', 1000000))"]).await;
    number(&db).await;
    insert(&db, 0..1000).await;
    number(&db).await;
    // More than are measured one by one.
    insert(&db, 1000..151_000).await;
    number(&db).await;

    let sizes = "select bytes, (select sum(pg_column_size(new)) + 88 * count(*) + 192
                                from switchboard.log where xid = c.xid)::bigint from switchboard.commit as c
                 where position > 0 order by position";
    let sizes = db.query(sizes, &[]).await.unwrap();
    let sizes: Vec<(i64, i64)> = sizes.iter().map(|row| (row.get(0), row.get(1))).collect();
    let end: i64 = db.value("select bytes_end from switchboard.commit order by position desc limit 1").await;
    let disk: i64 = db
        .value(
            "select sum(pg_total_relation_size(t))::bigint
             from unnest('{switchboard.log,switchboard.mark,switchboard.commit}'::regclass[]) as t",
        )
        .await;

    assert_eq!((sizes[0].0, sizes[1].0), (sizes[0].1, sizes[1].1));
    assert!(sizes[0].0 < 20_000, "compressed, it takes little: {}", sizes[0].0);
    assert!((sizes[2].0 as f64 / sizes[2].1 as f64 - 1.0).abs() < 0.02, "{:?}", sizes[2]);
    assert_eq!(end, sizes.iter().map(|(bytes, _)| bytes).sum::<i64>());
    assert!((end as f64 / disk as f64 - 1.0).abs() < 0.2, "{end} are counted, {disk} are taken of the disk");
}

#[tokio::test]
async fn a_large_commit_is_forgotten_at_once_and_deleted_in_slices() {
    let db = numbers().await;
    insert(&db, 0..10).await;
    insert(&db, 10..2510).await;
    insert(&db, 2510..2520).await;
    number(&db).await;
    let changes = async || (count(&db, "commit").await, count(&db, "mark").await, count(&db, "log").await);

    // The first commit, and the beginning of the second, which is the anchor then.
    assert_eq!(trim(&db, 1, 1000).await, (2, true));
    assert_eq!(changes().await, (2, 1, 1520));
    assert_eq!(trim(&db, 1, 1000).await, (0, true));
    assert_eq!(changes().await, (2, 1, 520));
    // Whoever goes on need not be who began.
    let another = db.session().await;
    let rest = "select more from switchboard.trim('1 day', 9, 1 << 30, 1000, 1000, 1 << 30, null, 0)";
    assert!(!another.query_one(rest, &[]).await.unwrap().get::<_, bool>(0));
    assert_eq!(changes().await, (2, 1, 10));
    assert_eq!(count(&db, "forgotten").await, 0);
}

#[tokio::test]
async fn a_slice_ends_after_so_many_bytes() {
    let db = numbers().await;
    db.run(&[
        "insert into number select n, (select string_agg(md5((random() + part)::text), '') from generate_series(1, 1000) as part)
              from generate_series(1, 20) as n",
    ])
    .await;
    insert(&db, 100..101).await;
    number(&db).await;

    db.run(&["select switchboard.trim('1 day', 1, 1 << 30, 1000, 1000, 100000, null, 0)"]).await;

    // Four rows of 32,000 bytes are the first that reach 100,000.
    assert_eq!(count(&db, "log").await, 17);
}

#[tokio::test]
async fn one_gateway_at_a_time_forgets_and_the_others_do_not_wait() {
    let db = numbers().await;
    for n in 0..5 {
        insert(&db, n..n + 1).await;
    }
    number(&db).await;
    let another = db.session().await;
    another
        .batch_execute("begin; select switchboard.trim('1 day', 3, 1 << 30, 1000, 1000, 1 << 30, null, 0)")
        .await
        .unwrap();

    assert_eq!(soon("trimming beside another", trim(&db, 1, 1000)).await, (0, false));
    another.batch_execute("commit").await.unwrap();

    assert_eq!(trim(&db, 1, 1000).await, (2, false));
}

#[tokio::test]
async fn what_retention_had_begun_is_over_with_the_epoch() {
    let db = numbers().await;
    insert(&db, 0..100).await;
    insert(&db, 100..101).await;
    number(&db).await;
    assert_eq!(trim(&db, 1, 10).await, (1, true));

    db.run(&["update switchboard.epoch set system_identifier = 1; select switchboard.open()"]).await;

    assert_eq!((count(&db, "forgotten").await, count(&db, "log").await), (0, 0));
}

#[tokio::test]
async fn finding_the_oldest_position_does_not_step_over_what_a_long_transaction_keeps() {
    let db = numbers().await;
    let long = db.session().await;
    long.batch_execute("begin isolation level repeatable read; select 1").await.unwrap();
    db.run(&["insert into switchboard.commit select n, 0, n::text::xid8, 0, now(), pg_current_snapshot()
              from generate_series(1, 50000) as n"])
        .await;
    while trim(&db, 10, 10_000).await.1 {}
    let epoch: String = db.value("select name from switchboard.epoch").await;
    let blocks = async |hint: &str| {
        let sql = format!("explain (analyze, buffers, format json) select * from switchboard.look(0, {hint})");
        let plan: String = db.simple_query(&sql).await.unwrap().iter().find_map(text).unwrap();
        let plan: Value = serde_json::from_str(&plan).unwrap();
        let plan = &plan[0]["Plan"];
        plan["Shared Hit Blocks"].as_i64().unwrap() + plan["Shared Read Blocks"].as_i64().unwrap()
    };
    // The first time the catalogues are read too.
    blocks("null, 0").await;

    let (with, without) = (blocks(&format!("'{epoch}', 49990")).await, blocks("null, 0").await);
    let stale: i64 = db.value("select oldest from switchboard.look(0, 'none', 49999)").await;
    let beyond: i64 = db.value(&format!("select oldest from switchboard.look(0, '{epoch}', 70000)")).await;

    assert!(with < 30 && without > 300, "{with} blocks with the hint, {without} without");
    assert_eq!(stale, 49_990, "a position of another epoch says nothing");
    assert_eq!(beyond, 50_000, "something is found even so");
}

/// The first column of a row.
fn text(message: &tokio_postgres::SimpleQueryMessage) -> Option<String> {
    match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }
}

#[tokio::test]
async fn a_gateway_remembers_the_oldest_position_for_as_long_as_the_epoch_lasts() {
    let db = numbers().await;
    db.run(&[
        "alter function switchboard.look(bigint, text, bigint) rename to look_unseen",
        "create table hints (epoch text, hint bigint)",
        "create function switchboard.look(asked bigint, hint_epoch text, hint bigint,
             out epoch text, out oldest bigint, out oldest_nonce integer, out oldest_at timestamptz,
             out head bigint, out head_nonce integer, out asked_nonce integer, out bytes bigint)
         language plpgsql volatile as $$
         begin
             insert into public.hints values (hint_epoch, hint);
             select * into epoch, oldest, oldest_nonce, oldest_at, head, head_nonce, asked_nonce, bytes
             from switchboard.look_unseen(asked, hint_epoch, hint);
         end $$",
    ])
    .await;
    let epoch = async || db.value::<String>("select name from switchboard.epoch").await;
    let first = epoch().await;
    let _gateway = Gateway::start_with(&db, |config| config.retain.commits = 2).await;

    for n in 0..10 {
        insert(&db, n..n + 1).await;
    }
    let used = format!("select exists (select from hints where epoch = '{first}' and hint = 8)");
    until("the hint is used", async || db.value::<bool>(&used).await).await;
    let cut = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'switchboard'
               and datname = current_database()";
    db.run(&["delete from hints", cut]).await;
    let forgot = "select exists (select from hints where epoch is null)";
    until("a new session trusts nothing", async || db.value::<bool>(forgot).await).await;
    db.run(&["delete from hints", "update switchboard.epoch set system_identifier = 1", cut]).await;

    until("the new epoch is looked at from its beginning", async || {
        let second = epoch().await;
        second != first
            && db
                .value::<bool>(&format!("select exists (select from hints where epoch = '{second}' and hint = 0)"))
                .await
    })
    .await;
}

#[tokio::test]
async fn one_that_resumes_in_a_commit_that_is_forgotten_meanwhile_is_reset() {
    let db = numbers().await;
    let gateway = Gateway::start(&db).await;
    let mut follower = gateway.subscribe("from=now").await;
    let cursor = follower.ready().await["cursor"].as_str().unwrap().to_owned();
    insert(&db, 0..5000).await;
    insert(&db, 5000..5001).await;
    follower.commit().await;
    follower.commit().await;
    hold_readers(&db).await;
    let mut client = gateway.subscribe(&format!("from={cursor}")).await;
    let mut strict = gateway.subscribe(&format!("from={cursor}&on_reset=close")).await;
    until("the page that both need is being read", async || held_readers(&db).await == 1).await;

    trim_all(&db).await;
    release_readers(&db).await;

    cut_off(&mut client).await;
    let (rows, commits) = client.snapshot().await;
    assert_eq!((rows.len(), commits.len()), (5001, 0));
    cut_off(&mut strict).await;
    assert_eq!(strict.closed().await, 4410);
    insert(&db, 6000..6001).await;
    assert_eq!(brought(&client.commit().await), [6000]);
    assert_eq!(brought(&follower.commit().await), [6000], "who follows is not troubled");
}

#[tokio::test]
async fn everybody_is_reset_when_the_feed_itself_is_overtaken() {
    let db = numbers().await;
    let gateway = Gateway::start(&db).await;
    let mut follower = gateway.subscribe("from=now").await;
    let cursor = follower.ready().await["cursor"].as_str().unwrap().to_owned();
    hold_readers(&db).await;
    insert(&db, 0..5000).await;
    insert(&db, 5000..5001).await;
    assert_eq!(follower.next_of("commit", &[]).await["more"], true);
    let mut resumed = gateway.subscribe(&format!("from={cursor}")).await;
    resumed.next_of("ready", &["hello"]).await;
    // Its rows hold more than the feed has brought: it waits for the feed.
    let mut waiting = gateway.subscribe("").await;
    waiting.next_of("rows", &["hello"]).await;

    trim_all(&db).await;
    release_readers(&db).await;

    cut_off(&mut resumed).await;
    for client in [&mut follower, &mut waiting] {
        let reset = client.next_of("reset", &["rows", "status", "position"]).await;
        assert_eq!(reset["reason"], "expired");
    }
    for client in [&mut follower, &mut resumed, &mut waiting] {
        assert_eq!(client.snapshot().await.0.len(), 5001);
    }
    insert(&db, 6000..6001).await;
    assert_eq!(brought(&follower.commit().await), [6000]);
    assert_eq!(brought(&resumed.commit().await), [6000]);
    assert_eq!(brought(&waiting.commit().await), [6000]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_subscriber_that_is_overtaken_is_reset() {
    const COMMITS: i64 = 400;
    let db = numbers().await;
    let gateway = Gateway::start_with(&db, |config| config.history_bytes_max = 1 << 20).await;
    let mut slow = gateway.follow("").await;
    // More than the history and all socket buffers hold together.
    db.run(&[&format!(
        "do $$ begin for i in 1..{COMMITS} loop insert into number values (i, repeat('x', 60000)); commit; end loop; end $$"
    )])
    .await;
    until("all is published", async || gateway.metric("switchboard_position").await == COMMITS as f64).await;

    trim_all(&db).await;

    let mut seen = Vec::new();
    let reset = loop {
        let frame = slow.frame().await.unwrap();
        match frame["type"].as_str() {
            Some("commit") => seen.extend(brought(&frame)),
            Some("position") => {}
            _ => break frame,
        }
    };
    assert_eq!((&reset["type"], &reset["reason"]), (&"reset".into(), &"expired".into()), "{reset:.300}");
    assert_eq!(seen, (1..=seen.len() as i64).collect::<Vec<_>>());
    assert_eq!(slow.snapshot().await.0.len(), COMMITS as usize);
    insert(&db, 1000..1001).await;
    assert_eq!(brought(&slow.commit().await), [1000]);
}

#[tokio::test]
async fn the_log_does_not_outgrow_its_disk_space_while_writers_write() {
    let server = Server::start(&[("autovacuum_naptime", "1s")]).await;
    let db = server.database().await;
    db.run(&["create table number (n int, note text)"]).await;
    db.watch("number").await;
    let vacuums = "select autovacuum_count from pg_stat_user_tables where relid = 'switchboard.log'::regclass";
    let mut sizes: Vec<i64> = Vec::new();

    for _ in 0..8 {
        let before: i64 = db.value(vacuums).await;
        for _ in 0..25 {
            insert(&db, 0..1000).await;
        }
        number(&db).await;
        trim_all(&db).await;
        until("autovacuum comes by", async || db.value::<i64>(vacuums).await > before).await;
        sizes.push(db.value("select pg_total_relation_size('switchboard.log')").await);
    }

    // At first it grows to what one round takes, and what dies meanwhile.
    let (first, last) = (sizes[3], sizes[7]);
    assert!(last as f64 <= 1.1 * first as f64, "{sizes:?}");
}

#[tokio::test]
async fn an_installation_that_is_repeated_keeps_the_log_and_the_roles() {
    let db = numbers().await;
    let role = format!("gateway_{}", db.value::<String>("select current_database()::text").await);
    db.run(&[
        &format!("create role {role} login password 'secret'"),
        &format!("select switchboard.allow_gateway('{role}')"),
    ])
    .await;
    for n in 0..5 {
        insert(&db, n..n + 1).await;
    }
    number(&db).await;
    let look = "select t::text from switchboard.look(3, null, 0) as t";
    let before: String = db.value(look).await;

    // As if it had come since.
    db.run(&["drop function switchboard.head()"]).await;
    install::install(&mut db.session().await, false, None).await.unwrap();

    assert_eq!(db.value::<String>(look).await, before);
    let mut database = db.config();
    database.user(&role).password("secret");
    let gateway = Gateway::launch(database, |config| config.retain.commits = 2).await;
    gateway.ready().await;
    let mut client = gateway.follow("").await;
    insert(&db, 5..6).await;
    assert_eq!(brought(&client.commit().await), [5]);
    until("retention forgets", async || count(&db, "log").await == 2).await;
}

/// A client that comes back to a cursor.
async fn resume(gateway: &Gateway, cursor: &str) -> Client {
    let mut client = gateway.subscribe(&format!("from={cursor}")).await;
    client.next_of("hello", &[]).await;
    client.cursor = Some(cursor.to_owned());
    client
}

/// Commits of one number each, from 0 on; the cursors that a client is given with them.
async fn commits(db: &Database, gateway: &Gateway, count: i32) -> Vec<String> {
    let mut client = gateway.follow("").await;
    let mut cursors = Vec::new();
    for n in 0..count {
        insert(db, n..n + 1).await;
        cursors.push(client.commit().await["cursor"].as_str().unwrap().to_owned());
    }
    cursors
}

#[tokio::test]
async fn whoever_has_all_that_was_forgotten_goes_on_without_a_reset() {
    let db = numbers().await;
    let gateway = Gateway::start(&db).await;
    let ready = gateway.follow("").await.cursor.unwrap();
    let cursors = commits(&db, &gateway, 6).await;
    // Nothing is forgotten yet: also what came before the first commit is a place to go on from.
    assert_eq!(brought(&resume(&gateway, &ready).await.commit().await), [0]);

    trim(&db, 3, 10_000).await;

    let mut client = resume(&gateway, &cursors[2]).await;
    for n in 3..6 {
        assert_eq!(brought(&client.commit().await), [n]);
    }
    client.next_of("ready", &["position"]).await;
    for gone in [&ready, &cursors[1]] {
        let mut client = gateway.subscribe(&format!("from={gone}")).await;
        assert_eq!(client.next_of("reset", &["hello"]).await["reason"], "expired");
    }
    // And so on, slice by slice, until all but the newest is forgotten.
    for newest_gone in 3..5 {
        trim(&db, 5 - newest_gone as i64, 10_000).await;
        let mut client = resume(&gateway, &cursors[newest_gone]).await;
        assert_eq!(brought(&client.commit().await), [newest_gone as i64 + 1]);
        let mut client = gateway.subscribe(&format!("from={}", cursors[newest_gone - 1])).await;
        assert_eq!(client.next_of("reset", &["hello"]).await["reason"], "expired");
    }
}

#[tokio::test]
async fn whoever_has_a_large_commit_goes_on_while_it_is_forgotten_in_slices() {
    let db = numbers().await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("").await;
    insert(&db, 0..1).await;
    let before = client.commit().await["cursor"].as_str().unwrap().to_owned();
    insert(&db, 1..3000).await;
    let large = client.commit().await["cursor"].as_str().unwrap().to_owned();
    insert(&db, 3000..3001).await;
    client.commit().await;

    loop {
        let (_, more) = trim(&db, 1, 1000).await;
        assert_eq!(brought(&resume(&gateway, &large).await.commit().await), [3000]);
        let mut late = gateway.subscribe(&format!("from={before}")).await;
        assert_eq!(late.next_of("reset", &["hello"]).await["reason"], "expired");
        if !more {
            break;
        }
    }
}

#[tokio::test]
async fn from_oldest_brings_everything_that_the_log_holds() {
    let db = numbers().await;
    let gateway = Gateway::start(&db).await;
    let cursors = commits(&db, &gateway, 6).await;
    let held = async |parameters: &str| -> Vec<i64> {
        let page = plain::get(&gateway, &format!("/v1/changes?limit=100{parameters}")).await;
        page["commits"].as_array().unwrap().iter().flat_map(brought).collect()
    };
    assert_eq!(held("").await, [0, 1, 2, 3, 4, 5]);

    for kept in (1..6).rev() {
        trim(&db, kept, 10_000).await;
        assert_eq!(count(&db, "log").await, kept);

        let expected: Vec<i64> = (6 - kept..6).collect();
        assert_eq!(held("").await, expected);
        assert_eq!(held("&from=oldest").await, expected);
        // What a refusal names as the oldest is just that.
        let gone = &cursors[0];
        let mut client = gateway.subscribe(&format!("from={gone}&on_reset=close")).await;
        if kept == 5 {
            assert_eq!(brought(&client.next_of("commit", &["hello"]).await), [1], "it was behind no more than it has");
            continue;
        }
        let reset = client.next_of("reset", &["hello"]).await;
        let oldest = reset["oldest"].as_str().unwrap();
        assert_eq!(held(&format!("&from={oldest}")).await, expected);
        let mut client = resume(&gateway, oldest).await;
        for n in &expected {
            assert_eq!(brought(&client.commit().await), [*n]);
        }
        let refusal = plain::get(&gateway, &format!("/v1/changes?from={gone}")).await;
        assert_eq!(refusal["error"]["oldest"], oldest);
    }
}

#[tokio::test]
async fn a_feed_that_brought_exactly_what_was_forgotten_goes_on() {
    let db = numbers().await;
    let gateway = Gateway::start(&db).await;
    let mut follower = gateway.follow("").await;
    insert(&db, 0..1).await;
    insert(&db, 1..2).await;
    assert_eq!([brought(&follower.commit().await), brought(&follower.commit().await)], [[0], [1]]);
    hold_readers_where(&db, "true").await;
    insert(&db, 2..3).await;
    until("the feed reads", async || held_readers(&db).await > 0).await;
    insert(&db, 3..4).await;
    number(&db).await;

    trim(&db, 2, 10_000).await;
    assert_eq!(count(&db, "log").await, 2, "what was brought is forgotten, and nothing else");
    release_readers(&db).await;

    // Neither a reset nor anything else comes in between.
    let next = [follower.next_of("commit", &[]).await, follower.next_of("commit", &[]).await];
    assert_eq!(next.each_ref().map(brought), [[2], [3]]);
}

#[tokio::test]
async fn a_gateway_that_was_away_goes_on_where_exactly_what_it_brought_was_forgotten() {
    let db = numbers().await;
    let (proxy, database) = db.behind_proxy().await;
    let gateway = Gateway::launch(database, |_| {}).await;
    gateway.ready().await;
    let mut follower = gateway.follow("").await;
    insert(&db, 0..1).await;
    assert_eq!(brought(&follower.commit().await), [0]);
    let (server, _) = db.url.rsplit_once('@').unwrap().1.split_once('/').unwrap();
    proxy.lead_to(None);
    proxy.cut();
    until("it is away", async || gateway.get("/readyz").await.0 != 200).await;

    for n in 1..4 {
        insert(&db, n..n + 1).await;
    }
    number(&db).await;
    trim(&db, 3, 10_000).await;
    proxy.lead_to(Some(server.parse().unwrap()));

    for n in 1..4 {
        assert_eq!(brought(&follower.next_of("commit", &["status", "position"]).await), [n]);
    }
}
