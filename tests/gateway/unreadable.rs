//! One row never stops the rest: what cannot be turned into JSON, read or judged neither fails its writer nor holds up whoever follows
//! another table.

use serde_json::{Value, json};
use switchboard::check;

use crate::harness::{Client, Database, Gateway, Mirror, documents, until};

/// A type whose cast to json raises for values that begin with "arc", fails otherwise for some more, and is what others are made of.
const SHAPES: [&str; 9] = [
    "create type shape",
    "create function shape_in(cstring) returns shape language internal immutable strict as 'textin'",
    "create function shape_out(shape) returns cstring language internal immutable strict as 'textout'",
    "create type shape (input = shape_in, output = shape_out, like = text)",
    "create function shape_json(shape) returns json language plpgsql as $$
     begin
         if $1::text like 'deep%' then return public.shape_json($1); end if;
         if $1::text like 'zero%' then return to_json(1 / 0); end if;
         if $1::text like 'arc%' then raise '% is not supported', $1; end if;
         return json_build_object('kind', $1::text);
     end $$",
    "create cast (shape as json) with function shape_json(shape)",
    "create domain outline as shape",
    "create domain border as outline",
    "create type drawing as (title text, what shape)",
];

/// A database with the type, a watched table `other`, and a gateway.
async fn start() -> (Database, Gateway) {
    let db = Database::new().await;
    db.run(&SHAPES).await;
    db.run(&["create table other (n int generated always as identity primary key)"]).await;
    db.watch("other").await;
    let gateway = Gateway::start(&db).await;
    (db, gateway)
}

/// A value as it is written, as it comes where its cast works, and as it comes where that fails.
struct Way {
    column: &'static str,
    sql: fn(&str) -> String,
    good: fn(&str) -> Value,
    text: fn(&str) -> String,
}

const WAYS: [Way; 6] = [
    Way {
        column: "v shape",
        sql: |shape| format!("'{shape}'"),
        good: |shape| json!({"kind": shape}),
        text: str::to_owned,
    },
    Way {
        column: "d outline",
        sql: |shape| format!("'{shape}'"),
        good: |shape| json!({"kind": shape}),
        text: str::to_owned,
    },
    Way {
        column: "dd border",
        sql: |shape| format!("'{shape}'"),
        good: |shape| json!({"kind": shape}),
        text: str::to_owned,
    },
    Way {
        column: "list shape[]",
        sql: |shape| format!("array['point', '{shape}']::shape[]"),
        good: |shape| json!([{"kind": "point"}, {"kind": shape}]),
        text: |shape| format!(r#"{{point,"{shape}"}}"#),
    },
    Way {
        column: "c drawing",
        sql: |shape| format!("row('a b', '{shape}')"),
        good: |shape| json!({"title": "a b", "what": {"kind": shape}}),
        text: |shape| format!(r#"("a b","{shape}")"#),
    },
    Way {
        column: "cs drawing[]",
        sql: |shape| format!("array[row('a', '{shape}')::drawing]"),
        good: |shape| json!([{"title": "a", "what": {"kind": shape}}]),
        text: |shape| format!(r#"{{"(a,\"{shape}\")"}}"#),
    },
];

impl Way {
    fn name(&self) -> &str {
        self.column.split(' ').next().unwrap()
    }

    /// The value as it has to come.
    fn told(&self, shape: &str) -> Value {
        match shape {
            "point" => (self.good)(shape),
            _ => json!((self.text)(shape)),
        }
    }

    /// A row as it has to come.
    fn row(&self, id: i32, shape: &str) -> Value {
        json!({"id": id, self.name(): self.told(shape), "n": 1.5, "note": "a \"b\""})
    }
}

/// The rows of a snapshot, in the order of their ids.
async fn rows(gateway: &Gateway, parameters: &str) -> Vec<Value> {
    let (mut rows, _) = gateway.subscribe(parameters).await.snapshot().await;
    rows.sort_by_key(|row| row["id"].to_string());
    rows
}

#[tokio::test]
async fn a_value_whose_cast_to_json_raises_comes_as_text_and_fails_nobody() {
    for way in WAYS {
        let (db, gateway) = start().await;
        db.run(&[&format!("create table s (id int primary key, {}, n numeric, note text)", way.column)]).await;
        let insert =
            |id: i32, shape: &str| format!("insert into s values ({id}, {}, 1.5, 'a \"b\"')", (way.sql)(shape));
        db.run(&[&insert(1, "arc 1"), &insert(2, "point")]).await;
        db.watch("s").await;
        assert_eq!(rows(&gateway, "table=s").await, [way.row(1, "arc 1"), way.row(2, "point")], "{}", way.column);
        let mut client = gateway.follow("").await;

        // What was there before, what comes, what goes from the one kind to the other and back.
        let set = |id: i32, shape: &str| format!("update s set {} = {} where id = {id}", way.name(), (way.sql)(shape));
        db.run(&[&set(1, "point"), &set(1, "arc 2"), &set(2, "arc 3"), &insert(3, "arc 4")]).await;
        db.run(&["update s set n = 1.5 where id = 3", "delete from s where id = 2", "truncate s"]).await;
        db.run(&[&insert(4, "arc 5"), "insert into other default values"]).await;

        let mut told = Vec::new();
        for _ in 0..9 {
            for change in client.changes().await {
                told.push((change["op"].clone(), change["old"].clone(), change["new"].clone()));
            }
        }
        let expected = [
            ("update", way.row(1, "arc 1"), way.row(1, "point")),
            ("update", way.row(1, "point"), way.row(1, "arc 2")),
            ("update", way.row(2, "point"), way.row(2, "arc 3")),
            ("insert", Value::Null, way.row(3, "arc 4")),
            ("update", way.row(3, "arc 4"), way.row(3, "arc 4")),
            ("delete", way.row(2, "arc 3"), Value::Null),
            ("truncate", Value::Null, Value::Null),
            ("insert", Value::Null, way.row(4, "arc 5")),
            ("insert", Value::Null, json!({"n": 1})),
        ];
        assert_eq!(told, expected.map(|(op, old, new)| (json!(op), old, new)), "{}", way.column);
        // For a moment there is the reading of before, which commits complete.
        until(way.column, async || rows(&gateway, "table=s").await == [way.row(4, "arc 5")]).await;
    }
}

#[tokio::test]
async fn however_a_cast_fails_its_value_comes_as_text() {
    let (db, gateway) = start().await;
    db.run(&["create table s (id int primary key, v shape, w shape, big numeric, at timestamptz, j json)"]).await;
    db.watch("s").await;
    let mut client = gateway.follow("table=s").await;

    for (id, shape) in (1..).zip(["arc", "zero", "deep", "arc \"quoted\" \\ é\n"]) {
        let big = "12345678901234567890.10";
        db.execute(
            &format!("insert into s values ({id}, shape_in(textout($1::text)), 'point', {big}, '2026-02-01 12:00+02', '{{\"a\" :1}}')"),
            &[&shape],
        )
        .await
        .unwrap_or_else(|error| panic!("{shape}: {error:?}"));

        // The rest of the row is as exact as ever.
        let (told, text) = (client.text().await.unwrap(), serde_json::to_string(shape).unwrap());
        let row = format!(
            r#"{{"id":{id},"v":{text},"w":{{"kind" : "point"}},"big":{big},"at":"2026-02-01T10:00:00+00:00","j":{{"a" :1}}}}"#
        );
        assert!(told.contains(&format!(r#""new":{row}"#)), "{shape}: {told}");
        let mut reader = gateway.subscribe(&format!("table=s&where=id.eq.{id}")).await;
        let mut read = reader.text().await.unwrap();
        while !read.contains(r#""rows""#) {
            read = reader.text().await.unwrap();
        }
        assert!(read.contains(&row), "{shape}: {read}");
    }
}

#[tokio::test]
async fn a_key_whose_cast_to_json_raises_is_told_as_text() {
    let (db, gateway) = start().await;
    db.run(&[
        "create type kind as enum ('point', 'arc')",
        "create function kind_json(kind) returns json language plpgsql as $$ begin raise 'no'; end $$",
        "create cast (kind as json) with function kind_json(kind)",
        "create table s (id kind primary key, v int)",
        "insert into s values ('point', 1)",
    ])
    .await;
    db.watch("s").await;
    let mut client = gateway.subscribe("table=s").await;
    let (rows, _) = client.snapshot().await;

    db.run(&[
        "insert into s values ('arc', 2)",
        "update s set v = 3 where id = 'point'",
        "delete from s where id = 'arc'",
    ])
    .await;

    assert_eq!(rows, [json!({"id": "point", "v": 1})]);
    for key in ["arc", "point", "arc"] {
        assert_eq!(client.changes().await[0]["key"], json!({"id": key}));
    }
}

#[tokio::test]
async fn a_table_that_gets_such_a_column_or_such_a_cast_after_it_was_watched_fails_nobody() {
    let (db, gateway) = start().await;
    db.run(&["create type kind as enum ('point', 'arc')", "create table s (id int primary key, k kind)"]).await;
    db.watch("s").await;
    let mut others = Mirror::begin(&gateway, "table=other").await;
    let read = async |expected: Value| {
        until("the rows are as they are", async || rows(&gateway, "table=s").await == [expected.clone()]).await
    };

    // In the transaction that writes it at once, too.
    db.transaction(&["alter table s add column v shape", "insert into s values (1, 'arc', 'arc')"]).await;
    read(json!({"id": 1, "k": "arc", "v": "arc"})).await;
    db.run(&[
        "create function kind_json(kind) returns json language plpgsql as $$ begin raise 'no'; end $$",
        "create cast (kind as json) with function kind_json(kind)",
        "update s set v = 'point'",
    ])
    .await;
    read(json!({"id": 1, "k": "arc", "v": {"kind": "point"}})).await;
    db.run(&[
        "create or replace function shape_json(shape) returns json language plpgsql as $$ begin raise 'no'; end $$",
    ])
    .await;
    db.run(&["update s set id = 2"]).await;
    read(json!({"id": 2, "k": "arc", "v": "point"})).await;
    let mut client = gateway.follow("table=s").await;
    db.run(&["delete from s"]).await;

    assert_eq!(client.changes().await[0]["old"], json!({"id": 2, "k": "arc", "v": "point"}));
    db.run(&["insert into other default values"]).await;
    others.becomes(&db, "select * from other").await;
    assert_eq!(others.resets, [""; 0]);
}

#[tokio::test]
async fn filters_and_columns_work_beside_a_value_whose_cast_raises() {
    let (db, gateway) = start().await;
    db.run(&["create table s (id int primary key, v shape, n int)"]).await;
    db.run(&["insert into s values (1, 'arc', 1), (2, 'point', 2), (3, 'arc', 3), (4, null, 4)"]).await;
    db.watch("s").await;
    let row = |id: i32, v: Value| json!({"id": id, "v": v, "n": id});
    let (arc, point) = (json!("arc"), json!({"kind": "point"}));

    assert_eq!(rows(&gateway, "table=s&where=n.gt.2").await, [row(3, arc.clone()), row(4, Value::Null)]);
    assert_eq!(rows(&gateway, "table=s&where=v.is.null").await, [row(4, Value::Null)]);
    assert_eq!(
        rows(&gateway, "table=s&where=v.not.is.null&columns=v").await,
        [json!({"id": 1, "v": arc}), json!({"id": 2, "v": point}), json!({"id": 3, "v": arc})]
    );
    assert_eq!(
        rows(&gateway, "table=s&columns=n&where=n.lt.3").await,
        [json!({"id": 1, "n": 1}), json!({"id": 2, "n": 2})]
    );
    let mut client = gateway.follow("table=s&where=and(v.not.is.null,n.gt.1)&columns=n").await;
    db.run(&["update s set v = null where id = 3", "update s set v = 'arc' where id = 4"]).await;
    let told = [client.changes().await, client.changes().await].concat();
    let told: Vec<(&Value, &Value)> = told.iter().map(|change| (&change["key"]["id"], &change["match"])).collect();
    assert_eq!(told, [(&json!(3), &json!("leave")), (&json!(4), &json!("enter"))]);
}

/// A session whose client says that it sends bytes.
const BYTES: &str = "set client_encoding = sql_ascii";

/// A database in SQL_ASCII with two watched tables, `n` and `other`, and a gateway.
async fn start_with_bytes() -> (Database, Gateway) {
    let db = Database::made_with("encoding 'SQL_ASCII' template template0 locale 'C'").await;
    db.run(&["create table n (id int primary key, v text)", "insert into n values (0, 'plain')"]).await;
    db.run(&["create table other (n int generated always as identity primary key)"]).await;
    db.watch("n").await;
    db.watch("other").await;
    db.run(&[BYTES]).await;
    let gateway = Gateway::start(&db).await;
    (db, gateway)
}

#[tokio::test]
async fn text_in_sql_ascii_that_is_utf_8_arrives() {
    let (db, gateway) = start_with_bytes().await;
    let mut client = gateway.follow("table=n").await;

    db.run(&[r"insert into n values (1, E'caf\xc3\xa9')"]).await;

    assert_eq!(client.changes().await[0]["new"], json!({"id": 1, "v": "café"}));
    assert_eq!(rows(&gateway, "table=n&where=id.eq.1").await, [json!({"id": 1, "v": "café"})]);
}

#[tokio::test]
async fn text_in_another_encoding_arrives_as_the_characters_that_it_stands_for() {
    for (encoding, text) in [("LATIN1", "café £"), ("WIN1252", "café €"), ("EUC_JP", "日本")] {
        let db = Database::made_with(&format!("encoding '{encoding}' template template0 locale 'C'")).await;
        db.run(&["create table n (id int primary key, v text)"]).await;
        db.watch("n").await;
        let gateway = Gateway::start(&db).await;
        let mut client = gateway.follow("table=n").await;

        db.execute("insert into n values (1, $1)", &[&text]).await.unwrap();

        assert_eq!(client.changes().await[0]["new"], json!({"id": 1, "v": text}), "{encoding}");
        assert_eq!(rows(&gateway, "table=n").await, [json!({"id": 1, "v": text})], "{encoding}");
    }
}

/// The subscription is told that the table's rows cannot be read, and that there is no sense in coming again at once.
async fn is_told_that_it_cannot_be_read(client: &mut Client) {
    let error = client.next_of("error", &["hello", "status", "rows", "ready", "position", "reset"]).await;
    let message = error["message"].as_str().unwrap();
    assert_eq!(error["code"], "unreadable", "{message}");
    assert!(message.contains("public.n") && message.contains("UTF-8"), "{message}");
    let code = client.closed().await;
    assert!(documents::stops(code), "{code} lets clients come back for ever");
}

#[tokio::test]
async fn a_row_that_is_not_utf_8_costs_its_own_table_and_nobody_else() {
    let (db, gateway) = start_with_bytes().await;
    let mut of_n = gateway.follow("table=n").await;
    let mut of_all = gateway.follow("").await;
    let away = of_n.cursor.clone().unwrap();
    let mut others = gateway.follow("table=other").await;
    let mut mirror = Mirror::begin(&gateway, "table=other").await;
    let mut next = 0;
    let mut goes_on = async |others: &mut Client| {
        next += 1;
        db.run(&["insert into other default values"]).await;
        // Nothing but the change: no status, no reset.
        let commit = others.next_of("commit", &["position"]).await;
        assert_eq!(commit["changes"][0]["new"]["n"], next);
        assert_eq!(gateway.get("/readyz").await.0, 200);
    };

    db.run(&[r"insert into n values (1, E'caf\xe9')"]).await;
    goes_on(&mut others).await;

    for client in [&mut of_n, &mut of_all] {
        let reset = client.next_of("reset", &["position"]).await;
        assert_eq!(reset["reason"], "schema");
        is_told_that_it_cannot_be_read(client).await;
    }
    is_told_that_it_cannot_be_read(&mut gateway.subscribe("table=n").await).await;
    is_told_that_it_cannot_be_read(&mut gateway.subscribe(&format!("table=n&from={away}")).await).await;
    let (status, body) = gateway.get("/v1/snapshot?table=n").await;
    assert!(status >= 400 && body.contains("public.n"), "{status}: {body}");
    goes_on(&mut others).await;

    // Whoever wants other rows of it than that one gets them.
    assert_eq!(rows(&gateway, "table=n&where=id.eq.0").await, [json!({"id": 0, "v": "plain"})]);
    let findings: Vec<String> = check::check(&db.config()).await.iter().map(ToString::to_string).collect();
    let named: Vec<&String> = findings.iter().filter(|finding| finding.contains("SQL_ASCII")).collect();
    assert_eq!(named.len(), 1, "{findings:#?}");
    assert!(!named[0].starts_with("good"), "{}", named[0]);

    db.run(&["delete from n where id = 1", "insert into n values (2, 'well')"]).await;
    goes_on(&mut others).await;
    let mut of_n = Mirror::begin(&gateway, "table=n").await;
    of_n.becomes(&db, "select * from n").await;
    db.run(&["update n set v = v || '!'"]).await;
    of_n.becomes(&db, "select * from n").await;
    goes_on(&mut others).await;
    mirror.becomes(&db, "select * from other").await;
    assert_eq!((mirror.resets, mirror.commits), (vec![], 4));
}

#[tokio::test]
async fn a_large_transaction_with_a_row_that_is_not_utf_8_is_whole_for_those_who_follow_its_other_tables() {
    let (db, gateway) = start_with_bytes().await;
    let mut others = gateway.follow("table=other").await;
    let from = others.cursor.clone().unwrap();

    db.transaction(&[
        "insert into other select from generate_series(1, 3000)",
        "insert into n select i, repeat('x', 1000) from generate_series(1, 2000) as i",
        r"insert into n values (5000, E'\xff'), (5001, E'\xc3')",
        r"update n set v = E'\xfe' where id = 5000; delete from n where id >= 5000",
        "insert into other select from generate_series(1, 3000)",
    ])
    .await;

    assert_eq!(others.commit().await["changes"].as_array().unwrap().len(), 6000);
    let mut back = Client::connect(&format!("ws://{}/v1/feed?table=other&from={from}", gateway.address)).await;
    back.next_of("hello", &[]).await;
    back.cursor = Some(from);
    assert_eq!(back.commit().await["changes"].as_array().unwrap().len(), 6000);
    let mut of_n = Mirror::begin(&gateway, "table=n").await;
    of_n.becomes(&db, "select * from n").await;
}

/// JSON of any kind, as `json` keeps it.
fn any_json(random: &mut fastrand::Rng, depth: u32) -> String {
    let blank = [" ", "", "\n\t", ""][random.usize(..4)];
    match random.u8(..if depth > 3 { 8 } else { 12 }) {
        0 => "null".to_owned(),
        1 => ["true", "false"][random.usize(..2)].to_owned(),
        2 => format!("{}", random.i64(..)),
        3 => {
            ["-0", "1e999999", "-1E-400", "0.1e+5", "123456789012345678901234567890.000"][random.usize(..5)].to_owned()
        }
        4 => format!("{}{}{}", "9".repeat(random.usize(1..2000)), ".", "1".repeat(random.usize(1..20))),
        5 => [r#""\ud800""#, r#""\udc00\ud800""#, r#""\u0000""#, r#""\ud83d\ude00""#, r#""é \" \\ \/""#, r#""""#]
            [random.usize(..6)]
        .to_owned(),
        6 => format!(r#""{}""#, "x".repeat(random.usize(..3000))),
        7 => {
            let levels = random.usize(1..1500);
            format!("{}{blank}{}", "[".repeat(levels), "]".repeat(levels))
        }
        8 | 9 => {
            let items: Vec<String> = (0..random.usize(..4)).map(|_| any_json(random, depth + 1)).collect();
            format!("[{blank}{}{blank}]", items.join(","))
        }
        _ => {
            let names = [r#""id""#, r#""id""#, r#""v""#, r#""""#, r#""\ud800""#, r#""\u0069d""#, r#""a\nb""#];
            let fields: Vec<String> = (0..random.usize(..5))
                .map(|_| format!("{}{blank}:{}", names[random.usize(..names.len())], any_json(random, depth + 1)))
                .collect();
            format!("{{{blank}{}{blank}}}", fields.join(","))
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_the_log_with_anything_in_them_stop_nobody_who_follows_another_table() {
    const ROUNDS: usize = 80;
    let seed =
        std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!("seed {seed} (SEED={seed} repeats it)");
    let mut random = fastrand::Rng::with_seed(seed);
    let db = Database::new().await;
    db.run(&["create table t (id int primary key, v text)", "insert into t values (1, 'a')"]).await;
    db.run(&["create table other (n int generated always as identity primary key)"]).await;
    db.watch("t").await;
    db.watch("other").await;
    let watch: i32 = db.value("select id from switchboard.watched where table_name = 't'").await;
    let innocent: i32 = db.value("select id from switchboard.watched where table_name = 'other'").await;
    let flags: bool = db
        .value("select exists (select from pg_attribute where attrelid = 'switchboard.log'::regclass and attname = 'first')")
        .await;
    let gateway = Gateway::start(&db).await;
    let mut others = Mirror::begin(&gateway, "table=other").await;
    let held = Mirror::begin(&gateway, "table=other").await.leave();
    let mut followers = Vec::new();
    for parameters in
        ["table=t", "", "table=t&where=v.like.a*", "table=t&columns=id&where=id.gt.0", "table=t&where=v.is.null"]
    {
        let url = format!("ws://{}/v1/feed?{parameters}", gateway.address);
        // What it is sent is held against the documents; how often it has to begin again is not the point.
        followers.push(tokio::spawn(async move {
            loop {
                let mut client = Client::connect(&url).await;
                while client.text().await.is_ok() {}
            }
        }));
    }

    for round in 0..ROUNDS {
        let mut statements = vec!["insert into other default values".to_owned()];
        for _ in 0..random.usize(1..5) {
            let op = match random.u8(..3) {
                0 => random.i32(-128..128),
                _ => i32::from(b"IUDTR"[random.usize(..5)]),
            };
            let of = [watch, watch, watch, 0, -1, i32::MAX, random.i32(..)][random.usize(..7)];
            let of = if of == innocent { watch } else { of };
            let mut value = || match random.u8(..4) {
                0 => "null".to_owned(),
                _ => format!("$json${}$json$", any_json(&mut random, 0)),
            };
            let (old, new) = (value(), value());
            let (flag, no) = if flags { (", first", ", false") } else { ("", "") };
            statements.push(format!(
                "insert into switchboard.log (xid, watch, op, old, new{flag})
                 values (pg_current_xact_id(), {of}, ({op})::\"char\", {old}, {new}{no})"
            ));
        }
        if random.bool() {
            statements.push("update t set v = 'a' || v".to_owned());
        }
        let text = statements.join(";\n");
        db.batch_execute(&format!("begin;\n{text};\ncommit")).await.unwrap_or_else(|error| panic!("{error:?}: {text}"));

        let told = format!("round {round} of seed {seed}: {text:.2000}");
        others.until(&told, |mirror| mirror.len() == round + 1).await;
        assert_eq!(others.resets, [""; 0], "{told}");
    }

    others.becomes(&db, "select * from other").await;
    assert_eq!(others.commits, ROUNDS);
    let mut back = Mirror::resume(&gateway, "table=other", &held).await;
    back.becomes(&db, "select * from other").await;
    assert_eq!((back.resets, back.commits), (vec![], ROUNDS));
    assert_eq!(gateway.get("/readyz").await.0, 200);
    for follower in followers {
        assert!(!follower.is_finished(), "it was sent what is not documented: {:?}", follower.await);
        follower.abort();
    }
    // And those who followed the table itself hold what is in it again.
    let mut of_t = Mirror::begin(&gateway, "table=t").await;
    db.run(&["update t set v = 'end'"]).await;
    of_t.becomes(&db, "select * from t").await;
}
