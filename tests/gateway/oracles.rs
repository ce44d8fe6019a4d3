//! The drill's oracles notice what they are there for: readers of the usual kinds and gateways that are broken on purpose are caught.

use serde_json::{Value, json};
use tokio_postgres::Client as Session;

use crate::drill::gather;
use crate::drill::oracles::{Entry, Evidence, Outcome, Reader, judge};
use crate::drill::story::Story;
use crate::harness::{Database, Gateway, Server, until};

const TABLES: [&str; 2] = ["account", "done"];

/// A database whose write-ahead log can be read, and two sessions that write.
struct Scene {
    _server: Server,
    db: Database,
    slow: Session,
    fast: Session,
    ledger: Vec<Entry>,
    clock: u64,
}

impl Scene {
    async fn begin() -> Scene {
        let server = Server::start(&[("wal_level", "logical")]).await;
        let db = server.database().await;
        db.run(&["create table account (id int primary key, n int)", "create table done (id int primary key)"]).await;
        db.run(&["insert into account select n, 100 from generate_series(1, 5) as n"]).await;
        for table in TABLES {
            db.watch(table).await;
        }
        gather::open_slot(&db).await;
        let (slow, fast) = (db.session().await, db.session().await);
        Scene { _server: server, db, slow, fast, ledger: Vec::new(), clock: 0 }
    }

    async fn commit(&mut self, slow: bool) {
        let session = if slow { &self.slow } else { &self.fast };
        let tx: String = session.query_one("select pg_current_xact_id()::text", &[]).await.unwrap().get(0);
        let issued = self.clock + 1;
        session.batch_execute("commit").await.unwrap();
        self.clock += 2;
        let (returned, outcome) = (self.clock, Outcome::Committed);
        self.ledger.push(Entry { tx: tx.parse().unwrap(), issued, returned, outcome });
    }

    /// A slow transaction that began first and commits last, after a fast one of which it overwrites a row. `between` runs once the
    /// fast one has committed.
    async fn overlap(&mut self, between: impl AsyncFnOnce()) {
        self.slow.batch_execute("begin; update account set n = n - 10 where id = 1").await.unwrap();
        self.fast.batch_execute("begin; update account set n = n - 1 where id = 2").await.unwrap();
        self.fast.batch_execute("update account set n = n + 1 where id = 3").await.unwrap();
        self.commit(false).await;
        between().await;
        self.slow.batch_execute("update account set n = n + 10 where id = 2").await.unwrap();
        self.commit(true).await;
    }

    /// The last commit of all, by which readers know that they have everything.
    async fn end(&mut self) {
        self.fast.batch_execute("begin; insert into done values (1)").await.unwrap();
        self.commit(false).await;
    }

    /// What the oracles find in this story.
    async fn judge(&self, story: &Story) -> Vec<String> {
        let (decoded, _) = gather::decoded(&self.db, "0/0", &[]).await;
        let evidence = Evidence {
            readers: vec![Reader { story, wants: None }],
            decoded,
            ledger: self.ledger.clone(),
            tables: gather::rows(&self.db, &TABLES).await,
            ..Evidence::default()
        };
        judge(&evidence).findings
    }
}

fn story() -> Story {
    Story::new("reader", vec!["public.account"])
}

/// A reader that polls the log by itself and keeps the highest number it has seen.
struct Naive {
    story: Story,
    last: i64,
    told: u64,
    /// What it asks for: `$1` is the highest number seen.
    condition: &'static str,
    /// The number it orders by.
    number: &'static str,
}

impl Naive {
    async fn begin(db: &Session, condition: &'static str, number: &'static str) -> Naive {
        let mut story = story();
        let row =
            "select json_agg(a)::text, pg_snapshot_xmin(pg_current_snapshot())::text::bigint - 1 from account as a";
        let row = db.query_one(row, &[]).await.unwrap();
        let rows: Value = serde_json::from_str(row.get(0)).unwrap();
        story.hear(&json!({"type": "rows", "table": "public.account", "rows": rows}).to_string());
        story.hear(r#"{"type":"ready","cursor":"naiv.0.0000"}"#);
        let last = if number == "serial" { 0 } else { row.get(1) };
        Naive { story, last, told: 0, condition, number }
    }

    async fn poll(&mut self, db: &Session) {
        let sql = format!(
            "select {}::text::bigint, xid::text,
                    json_agg(json_build_object('op', case op::text when 'I' then 'insert' else 'update' end,
                        'table', 'public.' || table_name, 'old', old, 'new', new) order by serial)::text
             from switchboard.log join switchboard.watched on id = watch
             where {} group by 1, 2 order by 1",
            self.number, self.condition
        );
        let rows = db.query(&sql, &[&self.last]).await.unwrap();
        // Row by row or transaction by transaction: one commit each.
        for row in rows {
            let (number, tx, changes): (i64, &str, &str) = (row.get(0), row.get(1), row.get(2));
            let (prev, cursor) = (self.told, self.told + 1);
            let text = format!(
                r#"{{"type":"commit","prev":"naiv.{prev}.0000","cursor":"naiv.{cursor}.0000","tx":"{tx}","changes":{changes}}}"#
            );
            self.story.hear(&text);
            (self.last, self.told) = (number, cursor);
        }
    }
}

#[tokio::test]
async fn a_reader_by_serial_is_caught() {
    let mut scene = Scene::begin().await;
    let db = scene.db.session().await;
    let mut naive = Naive::begin(&db, "serial > $1", "serial").await;

    scene.overlap(async || naive.poll(&db).await).await;
    scene.end().await;
    naive.poll(&db).await;

    let findings = scene.judge(&naive.story).await;
    assert!(findings.iter().any(|finding| finding.starts_with("not what the write-ahead log holds")), "{findings:#?}");
    assert!(findings.iter().any(|finding| finding.contains("only PostgreSQL has")), "{findings:#?}");
}

#[tokio::test]
async fn a_reader_below_the_oldest_open_transaction_is_caught() {
    let mut scene = Scene::begin().await;
    let db = scene.db.session().await;
    let condition = "xid > $1::bigint::text::xid8 and xid < pg_snapshot_xmin(pg_current_snapshot())";
    let mut naive = Naive::begin(&db, condition, "xid").await;

    scene.overlap(async || naive.poll(&db).await).await;
    scene.end().await;
    naive.poll(&db).await;

    let findings = scene.judge(&naive.story).await;
    assert!(findings.iter().any(|finding| finding.contains("the copy has no such row")), "{findings:#?}");
    assert!(findings.iter().any(|finding| finding.starts_with("out of order")), "{findings:#?}");
}

/// The story of a client at a real gateway, whose numbering was edited.
async fn told_by_a_gateway(edit: Option<(&str, &str)>) -> Vec<String> {
    let mut scene = Scene::begin().await;
    if let Some((right, wrong)) = edit {
        let function = "select pg_get_functiondef('switchboard.number()'::regprocedure)";
        let number: String = scene.db.value(function).await;
        assert!(number.contains(right), "there is nothing to break: {number}");
        scene.db.run(&[&number.replace(right, wrong)]).await;
    }
    let gateway = Gateway::start(&scene.db).await;
    let mut client = gateway.subscribe("").await;
    let mut story = story();
    while !story.ready {
        story.hear(&client.text().await.unwrap());
    }

    let numbering = scene.db.session().await;
    scene
        .overlap(async || {
            let all = "select count(*) = 0 from switchboard.mark where xid not in (select xid from switchboard.commit)";
            until("the fast one is numbered", async || numbering.query_one(all, &[]).await.unwrap().get(0)).await;
        })
        .await;
    // Again, with both numbered at once.
    numbering.batch_execute("begin; lock table switchboard.numbering in exclusive mode").await.unwrap();
    scene.overlap(async || {}).await;
    numbering.batch_execute("commit").await.unwrap();
    scene.end().await;
    while !story.tables.contains_key("public.done") {
        story.hear(&client.text().await.unwrap());
    }
    scene.judge(&story).await
}

#[tokio::test]
async fn a_gateway_that_is_whole_is_not_blamed() {
    assert_eq!(told_by_a_gateway(None).await, [""; 0]);
}

#[tokio::test]
async fn a_gateway_that_orders_by_the_transactions_number_is_caught() {
    let findings =
        told_by_a_gateway(Some(("order by greatest(fresh.mark, fresh.last_serial)", "order by fresh.xid"))).await;

    assert!(findings.iter().any(|finding| finding.contains("the copy has no such row")), "{findings:#?}");
    assert!(findings.iter().any(|finding| finding.starts_with("out of order")), "{findings:#?}");
}

#[tokio::test]
async fn a_gateway_that_forgets_who_was_running_is_caught() {
    let findings =
        told_by_a_gateway(Some(("array(select pg_snapshot_xip(previous.snapshot))", "array[]::xid8[]"))).await;

    assert!(findings.iter().any(|finding| finding.starts_with("lost")), "{findings:#?}");
}

#[tokio::test]
async fn a_gateway_that_numbers_twice_is_caught() {
    let twice = ("xid >= pg_snapshot_xmax(previous.snapshot)", "xid >= pg_snapshot_xmin(previous.snapshot)");
    let findings = told_by_a_gateway(Some(twice)).await;

    assert!(findings.iter().any(|finding| finding.starts_with("told twice")), "{findings:#?}");
}

/// Frames of an honest session: a row, `ready`, and five commits, one of them in parts.
fn session() -> Vec<String> {
    let frame = |prev: u32, cursor: u32, more: bool, from: i32, to: i32| {
        json!({"type": "commit", "prev": format!("test.{prev}.0000"), "cursor": format!("test.{cursor}.0000"),
               "tx": format!("{}", 700 + cursor), "more": more,
               "changes": [{"op": "update", "table": "public.account", "old": {"id": 1, "v": from}, "new": {"id": 1, "v": to}}]})
        .to_string()
    };
    let mut frames = vec![
        json!({"type": "rows", "table": "public.account", "rows": [{"id": 1, "v": 0}]}).to_string(),
        json!({"type": "ready", "cursor": "test.0.0000"}).to_string(),
    ];
    for commit in 1..=5 {
        frames.push(frame(commit - 1, commit, commit == 3, commit as i32 - 1, commit as i32));
        if commit == 3 {
            frames.push(frame(3, 3, false, 3, 3));
        }
    }
    frames
}

/// What the oracles find where a client heard these frames, and the write-ahead log holds what an honest session tells.
fn heard(frames: &[String]) -> Vec<String> {
    heard_beside(frames, Vec::new())
}

/// The same, where writers know this of their transactions.
fn heard_beside(frames: &[String], ledger: Vec<Entry>) -> Vec<String> {
    let mut reader = Story::new("reader", vec![]);
    for frame in frames {
        reader.hear(frame);
    }
    let count = |commit: u64| if commit == 3 { 2 } else { 1 };
    let tables = [("public.account".to_owned(), [(r#"{"id":1,"v":5}"#.into(), 1)].into_iter().collect())];
    let evidence = Evidence {
        readers: vec![Reader { story: &reader, wants: None }],
        decoded: (1..=5).map(|commit| (700 + commit, [("public.account".to_owned(), count(commit))].into())).collect(),
        tables: tables.into_iter().collect(),
        span: (0, 5),
        ledger,
        ..Evidence::default()
    };
    judge(&evidence).findings
}

#[test]
fn a_session_that_lost_repeated_swapped_or_altered_any_frame_is_caught() {
    let honest = session();
    assert_eq!(heard(&honest), [""; 0]);

    // `ready` and the rows too: whatever is missing shows somewhere.
    for index in 0..honest.len() {
        let mut frames = honest.clone();
        let frame = frames.remove(index);
        assert_ne!(heard(&frames), [""; 0], "lost: {frame}");

        let mut frames = honest.clone();
        frames.insert(index, honest[index].clone());
        assert_ne!(heard(&frames), [""; 0], "twice: {}", honest[index]);
    }
    for index in 2..honest.len() - 1 {
        let mut frames = honest.clone();
        frames.swap(index, index + 1);
        assert_ne!(heard(&frames), [""; 0], "swapped with the next: {}", honest[index]);

        let mut frames = honest.clone();
        frames[index] = frames[index].replace(r#""new":{"id":1,"#, r#""new":{"id":2,"#);
        assert_ne!(heard(&frames), [""; 0], "altered: {}", honest[index]);
    }
}

#[test]
fn only_what_retention_overtook_for_everybody_is_excused() {
    let honest = session();
    let again = [
        r#"{"type":"reset","reason":"expired"}"#,
        r#"{"type":"rows","table":"public.account","rows":[{"id":1,"v":4}]}"#,
        r#"{"type":"ready","cursor":"test.4.0000"}"#,
    ];
    let overtaken = |from: usize, to: usize| -> Vec<String> {
        let again = again.iter().map(|frame| frame.to_string());
        honest[..from].iter().cloned().chain(again).chain(honest[to..].iter().cloned()).collect()
    };

    // Behind commit 2, then rows that hold 3 and 4, then 5.
    assert_eq!(heard(&overtaken(4, 7)), [""; 0]);
    let (mut all, mut some) = (Story::new("all", vec![]), Story::new("some", vec![]));
    overtaken(4, 7).iter().for_each(|frame| _ = all.hear(frame));
    honest.iter().for_each(|frame| _ = some.hear(frame));
    let wants: &[&str] = &["public.account"];
    let readers = vec![Reader { story: &all, wants: None }, Reader { story: &some, wants: Some(wants) }];
    let findings = judge(&Evidence { readers, ..Evidence::default() }).findings;
    assert!(
        !findings.iter().any(|finding| finding.starts_with("missing")),
        "who has more is not blamed: {findings:#?}"
    );
    let mut lost = overtaken(4, 7);
    let last = lost.last_mut().unwrap();
    *last = last.replace(r#""tx":"705""#, r#""tx":"706""#);
    assert!(
        heard(&lost).iter().any(|finding| finding.starts_with("lost")),
        "one is missing beside those that were forgotten"
    );
}

#[test]
fn what_was_rolled_back_and_told_is_caught_unless_a_crash_gave_its_number_to_another() {
    let entry = |tx, outcome| Entry { tx, issued: 1, returned: 2, outcome };
    let undone = entry(703, Outcome::RolledBack);

    let findings = heard_beside(&session(), vec![undone.clone()]);
    assert!(findings.iter().any(|finding| finding.starts_with("rolled back, and told")), "{findings:#?}");
    assert_eq!(heard_beside(&session(), vec![undone, entry(703, Outcome::Committed)]), [""; 0]);
}

/// A story of a few rows and commits; what it finds wrong.
fn hears(rows: &[(&str, Value)], commits: &[Value]) -> Vec<String> {
    let mut story = Story::new("reader", Vec::new());
    for (table, rows) in rows {
        story.hear(&json!({"type": "rows", "table": table, "rows": rows}).to_string());
    }
    story.hear(r#"{"type":"ready","cursor":"made.0.0000"}"#);
    for (at, changes) in commits.iter().enumerate() {
        let (prev, cursor) = (format!("made.{at}.0000"), format!("made.{}.0000", at + 1));
        let commit = json!({"type": "commit", "prev": prev, "cursor": cursor, "tx": "1", "changes": changes});
        story.hear(&commit.to_string());
    }
    story.violations
}

#[test]
fn an_insert_that_is_told_before_the_delete_that_made_room_for_it_is_noticed() {
    let rows = [("public.slot", json!([{"id": 1, "v": "old"}]))];
    let delete = json!([{"op": "delete", "table": "public.slot", "old": {"id": 1, "v": "old"}}]);
    let insert = json!([{"op": "insert", "table": "public.slot", "new": {"id": 1, "v": "new"}}]);

    let right = hears(&rows, &[delete.clone(), insert.clone()]);
    let wrong = hears(&rows, &[insert, delete]);

    assert!(right.is_empty(), "{right:?}");
    assert_eq!(wrong, ["reader: public.slot has 2 rows of the key 1 after made.1.0000"]);
}

#[test]
fn a_child_that_is_told_before_its_parent_or_is_left_without_is_noticed() {
    let rows = [("public.lot", json!([{"id": 7}])), ("public.item", json!([{"id": 1, "lot": 7}]))];
    let change = |op: &str, table: &str, row: Value| {
        let side = if op == "insert" { "new" } else { "old" };
        json!([{"op": op, "table": table, side: row}])
    };
    let (parent, child) = (json!({"id": 8}), json!({"id": 2, "lot": 8}));
    let come = [change("insert", "public.lot", parent), change("insert", "public.item", child)];
    let go =
        [change("delete", "public.item", json!({"id": 1, "lot": 7})), change("delete", "public.lot", json!({"id": 7}))];

    for [first, second] in [come, go] {
        let right = hears(&rows, &[first.clone(), second.clone()]);
        let wrong = hears(&rows, &[second, first]);

        assert!(right.is_empty(), "{right:?}");
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        assert!(wrong[0].contains("which is not there after made.1.0000"), "{wrong:?}");
    }
}
