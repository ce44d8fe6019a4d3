//! Values arrive exactly as PostgreSQL writes them: every digit, byte and blank, whatever the size, the type or the
//! session.

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::harness::{Client, Database, Gateway};

/// A change with its rows as text: a parser would round numbers and tidy JSON.
#[derive(Debug, PartialEq)]
struct Exact {
    new: String,
    old: String,
    changed: Vec<String>,
    frame_bytes: usize,
}

#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    cursor: Option<&'a str>,
    #[serde(borrow, default)]
    rows: Vec<&'a RawValue>,
    #[serde(borrow, default)]
    changes: Vec<ChangeText<'a>>,
}

#[derive(Deserialize)]
struct ChangeText<'a> {
    #[serde(borrow)]
    new: Option<&'a RawValue>,
    #[serde(borrow)]
    old: Option<&'a RawValue>,
    #[serde(default)]
    changed: Vec<String>,
}

/// The next commit, which has one change.
async fn exact(client: &mut Client) -> Exact {
    loop {
        let text = client.text().await.unwrap();
        let frame: Frame = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text:.200}"));
        // The client checks the chain of what it reads later by what was read here.
        client.cursor = frame.cursor.map(str::to_owned).or(client.cursor.take());
        if frame.kind == "commit" {
            let [change] = &frame.changes[..] else { panic!("one change was due, and this came: {text:.500}") };
            let row = |row: Option<&RawValue>| row.map(|row| row.get().to_owned()).unwrap_or_default();
            let (new, old) = (row(change.new), row(change.old));
            return Exact { new, old, changed: change.changed.clone(), frame_bytes: text.len() };
        }
    }
}

/// The rows of a snapshot.
async fn exact_rows(gateway: &Gateway, parameters: &str) -> Vec<String> {
    let mut client = gateway.subscribe(parameters).await;
    let mut rows = Vec::new();
    loop {
        let text = client.text().await.unwrap();
        let frame: Frame = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text:.200}"));
        rows.extend(frame.rows.iter().map(|row| row.get().to_owned()));
        if frame.kind == "ready" {
            return rows;
        }
    }
}

/// A database with a watched table, and a gateway.
async fn start(create: &[&str], table: &str) -> (Database, Gateway) {
    let db = Database::new().await;
    db.run(create).await;
    db.watch(table).await;
    let gateway = Gateway::start(&db).await;
    (db, gateway)
}

/// Settings of a session that would colour values as text.
const COLOURS: &[&str] = &[
    "set TimeZone = 'Asia/Kolkata'",
    "set DateStyle = 'German, DMY'",
    "set IntervalStyle = 'sql_standard'",
    "set bytea_output = 'escape'",
    "set extra_float_digits = -15",
];

#[tokio::test]
async fn numbers_keep_every_digit() {
    let create =
        "create table n (id bigint primary key, exact numeric, tiny numeric(40, 30), approx float8, single float4)";
    let (db, gateway) = start(&[create], "n").await;
    let mut client = gateway.follow("").await;
    let infinite = if db.value::<i32>("select current_setting('server_version_num')::int").await >= 140_000 {
        "'Infinity'"
    } else {
        "'NaN'"
    };

    db.run(&[
        "insert into n values (9007199254740993, 1234567890123456789012345678901234567890, 1.5, .1::float8 + .2, 1.1)",
        "insert into n values (-9223372036854775808, 0.0000000000000000000000000000000000000001, 0, -0.0, 3.4e38)",
        "insert into n values (9223372036854775807, 'NaN', 1e-30, 'NaN', 'Infinity')",
        &format!("insert into n values (1, {infinite}, null, '-Infinity', '-0')"),
    ])
    .await;

    assert_eq!(
        exact(&mut client).await.new,
        concat!(
            r#"{"id":9007199254740993,"exact":1234567890123456789012345678901234567890,"#,
            r#""tiny":1.500000000000000000000000000000,"approx":0.30000000000000004,"single":1.1}"#
        )
    );
    assert_eq!(
        exact(&mut client).await.new,
        concat!(
            r#"{"id":-9223372036854775808,"exact":0.0000000000000000000000000000000000000001,"#,
            r#""tiny":0.000000000000000000000000000000,"approx":0,"single":3.4e+38}"#
        )
    );
    assert_eq!(
        exact(&mut client).await.new,
        concat!(
            r#"{"id":9223372036854775807,"exact":"NaN","#,
            r#""tiny":0.000000000000000000000000000001,"approx":"NaN","single":"Infinity"}"#
        )
    );
    assert_eq!(
        exact(&mut client).await.new,
        format!(r#"{{"id":1,"exact":"{}","tiny":null,"approx":"-Infinity","single":-0}}"#, infinite.trim_matches('\''))
    );
}

#[tokio::test]
async fn the_key_keeps_every_digit_too() {
    let (db, gateway) = start(&["create table n (id numeric primary key)"], "n").await;
    let mut client = gateway.follow("").await;

    db.run(&["insert into n values (1234567890123456789012345678901234567890.10)"]).await;

    let text = client.text().await.unwrap();
    assert!(text.contains(r#""key":{"id":1234567890123456789012345678901234567890.10}"#), "{text}");
}

#[tokio::test]
async fn a_value_reads_the_same_whatever_its_writers_session_says_and_in_rows_as_in_changes() {
    let create = "create table v (id int primary key, f float8, s float4, bytes bytea, ints int[], texts text[],
        span interval, spans interval[], day date, days date[], at timestamptz, ats timestamptz[], clock timestamp,
        noon timetz, time time, during tstzrange, season daterange, counts int4range, id2 uuid, host inet, spot point,
        bits bit varying, cash money, words tsvector, padded char(5), sure boolean)";
    let values = r#"0.1::float8 + 0.2, 1.1, '\x00ff41', '{{1,2},{null,4}}',
        array['a,b', 'c"d', null, 'NULL', '', '\', '{}'], '1 year 2 mons -3 days 04:05:06.789', '{-1 day, 1 hour}',
        '2026-02-01', '{0044-03-15 BC, infinity}', '2026-02-01 12:34:56.789012+00',
        '{2026-07-01 00:00:00+00, -infinity}', '2026-02-01 12:34:56', '12:00:00+05:30', '23:59:59.999999',
        '[2026-02-01 12:00:00+00, 2026-03-01 12:00:00+00)', '[2026-02-01, 2026-03-01)', '[1,10)',
        'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '192.168.0.1/24', '(1.1, 2.2)', '101', 1234.5,
        'a fat cat', 'ab', true"#;
    let (db, gateway) = start(&[create], "v").await;
    let mut client = gateway.follow("").await;
    let coloured = db.session().await;
    coloured.batch_execute(&COLOURS.join("; ")).await.unwrap();

    db.run(&[&format!("insert into v values (1, {values})")]).await;
    coloured.batch_execute("update v set id = 2").await.unwrap();

    let row = concat!(
        r#""f":0.30000000000000004,"s":1.1,"bytes":"\\x00ff41","ints":[[1,2],[null,4]],"#,
        r#""texts":["a,b","c\"d",null,"NULL","","\\","{}"],"span":"1 year 2 mons -3 days +04:05:06.789","#,
        r#""spans":["-1 days","01:00:00"],"day":"2026-02-01","days":["0044-03-15 BC","infinity"],"#,
        r#""at":"2026-02-01T12:34:56.789012+00:00","ats":["2026-07-01T00:00:00+00:00","-infinity"],"#,
        r#""clock":"2026-02-01T12:34:56","noon":"12:00:00+05:30","time":"23:59:59.999999","#,
        r#""during":"[\"2026-02-01 12:00:00+00\",\"2026-03-01 12:00:00+00\")","season":"[2026-02-01,2026-03-01)","#,
        r#""counts":"[1,10)","id2":"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11","host":"192.168.0.1/24","spot":"(1.1,2.2)","#,
        r#""bits":"101","cash":"$1,234.50","words":"'a' 'cat' 'fat'","padded":"ab   ","sure":true}"#
    );
    assert_eq!(exact(&mut client).await.new, format!(r#"{{"id":1,{row}"#));
    let update = exact(&mut client).await;
    assert_eq!((update.old, update.new), (format!(r#"{{"id":1,{row}"#), format!(r#"{{"id":2,{row}"#)));
    assert_eq!(update.changed, ["id"]);
    assert_eq!(exact_rows(&gateway, "table=v").await, [format!(r#"{{"id":2,{row}"#)]);
}

/// A table whose values name objects of the database, and how they read.
async fn start_with_names() -> (Database, Gateway, [Value; 2]) {
    let create = [
        r#"create table "Odd" (id int primary key)"#,
        "create table o (id int primary key, what regclass, kind regtype)",
        r#"insert into o values (1, '"Odd"', 'o'), (2, 'o', 'int')"#,
    ];
    let (db, gateway) = start(&create, "o").await;
    let rows = [
        json!({"id": 1, "what": "public.\"Odd\"", "kind": "public.o"}),
        json!({"id": 2, "what": "public.o", "kind": "integer"}),
    ];
    (db, gateway, rows)
}

#[tokio::test]
async fn the_names_of_objects_read_the_same_whatever_the_writers_session_says() {
    let (db, gateway, expected) = start_with_names().await;
    let mut client = gateway.follow("").await;

    db.run(&["update o set id = id"]).await;
    db.run(&["set search_path = pg_catalog", "set quote_all_identifiers = on", "update public.o set id = id"]).await;

    for said in ["the usual", "otherwise"] {
        let new: Vec<Value> = client.changes().await.iter().map(|change| change["new"].clone()).collect();
        assert_eq!(new, expected, "the session says {said}");
    }
}

#[tokio::test]
async fn the_names_of_objects_read_the_same_in_rows_as_in_changes() {
    let (_db, gateway, expected) = start_with_names().await;

    let (rows, _) = gateway.subscribe("table=o").await.snapshot().await;

    assert_eq!(rows, expected);
}

#[tokio::test]
async fn a_snapshot_is_not_coloured_by_the_settings_of_the_gateways_role() {
    let db = Database::new().await;
    let name = format!("coloured_{}", db.value::<String>("select current_database()::text").await);
    db.run(&[&format!("create role {name} login superuser password 'secret'")]).await;
    for set in COLOURS {
        db.run(&[&format!("alter role {name} {set}")]).await;
    }
    db.run(&[
        "create table v (id int primary key, at timestamptz, during tstzrange, span interval, bytes bytea, f float8)",
    ])
    .await;
    db.watch("v").await;
    let mut config = db.config();
    config.user(&name).password("secret");
    let gateway = Gateway::launch(config, |_| {}).await;
    gateway.ready().await;
    let mut client = gateway.follow("").await;

    let values = "1, '2026-02-01 12:00+00', '[2026-02-01 12:00+00,)', '-1 day', '\\x00ff', 0.1::float8 + 0.2";
    db.run(&[&format!("insert into v values ({values})")]).await;

    let new = exact(&mut client).await.new;
    assert!(new.contains(r#""f":0.30000000000000004"#) && new.contains("2026-02-01 12:00:00+00"), "{new}");
    assert_eq!(exact_rows(&gateway, "table=v").await, [new]);
}

#[tokio::test]
async fn text_arrives_character_for_character() {
    let (db, gateway) = start(&["create table t (id int primary key, v text)"], "t").await;
    let controls: String = (1..=0x20).chain([0x7f, 0x85, 0x2028, 0x2029, 0xfeff]).filter_map(char::from_u32).collect();
    let texts = [
        "".to_owned(),
        "'single' \"double\" \\ back / slash </script> & %".to_owned(),
        "👩‍👩‍👧‍👦 🏳️‍🌈 e\u{301} 漢字 עברית \u{10ffff} \u{ffff} \u{fffd}".to_owned(),
        r#"\u0041 \n \" \\ {"a":1} null"#.to_owned(),
        controls,
        "null".to_owned(),
    ];
    let mut client = gateway.follow("").await;

    for (id, text) in (0..).zip(&texts) {
        db.execute("insert into t values ($1, $2)", &[&id, text]).await.unwrap();
    }
    db.run(&["insert into t values (6, null)"]).await;

    let mut expected: Vec<Value> = (0..).zip(&texts).map(|(id, text)| json!({"id": id, "v": text})).collect();
    expected.push(json!({"id": 6, "v": null}));
    for row in &expected {
        assert_eq!(&client.changes().await[0]["new"], row);
    }
    let (rows, _) = gateway.subscribe("table=t").await.snapshot().await;
    assert_eq!(rows, expected);
}

#[tokio::test]
async fn null_and_the_empty_string_are_two_values() {
    let (db, gateway) = start(&["create table t (id int primary key, v text)", "insert into t values (1)"], "t").await;
    let mut client = gateway.follow("").await;

    db.run(&["update t set v = ''", "update t set v = null"]).await;

    let emptied = exact(&mut client).await;
    assert_eq!((emptied.old.as_str(), emptied.new.as_str()), (r#"{"id":1,"v":null}"#, r#"{"id":1,"v":""}"#));
    assert_eq!(emptied.changed, ["v"]);
    let nulled = exact(&mut client).await;
    assert_eq!(nulled.new, r#"{"id":1,"v":null}"#);
    assert_eq!(nulled.changed, ["v"]);
}

#[tokio::test]
async fn json_arrives_as_its_type_keeps_it() {
    let (db, gateway) = start(&["create table j (id int primary key, t json, b jsonb)"], "j").await;
    let deep = format!("{}{}", "[".repeat(1_000), "]".repeat(1_000));
    // Blanks, lines, keys twice, characters that JSON can spell and text cannot, a number that no float can hold.
    let written = "{ \"a\" : 1,\n\t\"a\": [ 1.10 , 1e400, \"\\u0000\", \"\\ud800\" ],\r\n \"\": null }";
    let mut client = gateway.follow("").await;

    db.execute(
        "insert into j values (1, $1::text::json, $2::text::jsonb)",
        &[&written, &r#"{"b": [1, {"c": null, "a": {}}], "a": 1.10, "a": 2, "big": 123456789012345678901234567890}"#],
    )
    .await
    .unwrap();
    db.execute("insert into j values (2, $1::text::json, $1::text::jsonb)", &[&deep]).await.unwrap();
    db.run(&["insert into j values (3, 'null', 'null'), (4, null, null)"]).await;

    let tidy = r#"{"a": 2, "b": [1, {"a": {}, "c": null}], "big": 123456789012345678901234567890}"#;
    let first = format!(r#"{{"id":1,"t":{written},"b":{tidy}}}"#);
    assert_eq!(exact(&mut client).await.new, first);
    assert_eq!(exact(&mut client).await.new, format!(r#"{{"id":2,"t":{deep},"b":{deep}}}"#));
    assert_eq!(client.changes().await.len(), 2);
    let rows = exact_rows(&gateway, "table=j").await;
    assert_eq!(rows[0], first);
    assert_eq!(rows[2..], [r#"{"id":3,"t":null,"b":null}"#, r#"{"id":4,"t":null,"b":null}"#]);
}

#[tokio::test]
async fn only_blanks_that_changed_in_json_count_as_a_change() {
    let create = ["create table j (id int primary key, t json)", "insert into j values (1, '{\"a\": 1}')"];
    let (db, gateway) = start(&create, "j").await;
    let mut client = gateway.follow("").await;

    db.run(&["update j set t = '{\"a\":1}'"]).await;

    let change = exact(&mut client).await;
    assert_eq!((change.old.as_str(), change.new.as_str()), (r#"{"id":1,"t":{"a": 1}}"#, r#"{"id":1,"t":{"a":1}}"#));
    assert_eq!(change.changed, ["t"]);
}

#[tokio::test]
async fn types_of_the_users_own_arrive() {
    let create = [
        "create type mood as enum ('sad', 'it''s \"ok\"')",
        "create domain even as int check (value % 2 = 0)",
        "create type place as (street text, number int, moods mood[])",
        "create table u (id even primary key, m mood, p place, ps place[], ms mood[])",
    ];
    let (db, gateway) = start(&create, "u").await;
    let mut client = gateway.follow("").await;

    let places = r#"row('Elm, "St"', 5, '{sad}'), array[row(null, 1, null)::place]"#;
    db.run(&[&format!(r#"insert into u values (2, 'it''s "ok"', {places}, '{{sad,null}}')"#)]).await;

    let row = concat!(
        r#"{"id":2,"m":"it's \"ok\"","p":{"street":"Elm, \"St\"","number":5,"moods":["sad"]},"#,
        r#""ps":[{"street":null,"number":1,"moods":null}],"ms":["sad",null]}"#
    );
    assert_eq!(exact(&mut client).await.new, row);
    assert_eq!(exact_rows(&gateway, "table=u").await, [row]);
}

#[tokio::test]
async fn generated_columns_come_with_their_values_and_dropped_ones_do_not_come() {
    let create = [
        "create table g (id int primary key, gone text, n int, twice int generated always as (n * 2) stored)",
        "insert into g values (1, 'x', 1)",
        "alter table g drop column gone, add column later text default 'here'",
    ];
    let (db, gateway) = start(&create, "g").await;
    let mut client = gateway.follow("").await;

    db.run(&["update g set n = 2", "alter table g drop column later", "update g set n = 3"]).await;

    let change = exact(&mut client).await;
    assert_eq!(change.old, r#"{"id":1,"n":1,"twice":2,"later":"here"}"#);
    assert_eq!(change.new, r#"{"id":1,"n":2,"twice":4,"later":"here"}"#);
    assert_eq!(change.changed, ["n", "twice"]);
    assert_eq!(exact(&mut client).await.new, r#"{"id":1,"n":3,"twice":6}"#);
    assert_eq!(exact_rows(&gateway, "table=g").await, [r#"{"id":1,"n":3,"twice":6}"#]);
}

/// A row with a value of this many bytes, which does not shrink, is inserted, changed in another column, deleted.
async fn a_large_value_arrives_whole(bytes: usize) {
    let (db, gateway) = start(&["create table big (id int primary key, v text, note int)"], "big").await;
    let mut client = gateway.follow("").await;

    // Digits in no order stay about half as large when compressed: they lie out of line.
    let text = "(select string_agg(md5(i::text), '') from generate_series(1, $1::int / 32) as i)";
    let count = i32::try_from(bytes).unwrap();
    db.execute(&format!("insert into big values (1, {text} || repeat('x', $1::int % 32), 0)"), &[&count])
        .await
        .unwrap();
    db.run(&["update big set note = 1", "delete from big"]).await;

    let value = exact(&mut client).await.new;
    let update = exact(&mut client).await;
    let delete = exact(&mut client).await;
    let (head, tail) = (r#"{"id":1,"v":""#, r#"","note":0}"#);
    assert_eq!(value.len(), head.len() + bytes + tail.len());
    assert!(value.starts_with(head) && value.ends_with(tail));
    let sum: String = db.value(&format!("select md5({})", text.replace("$1::int", &count.to_string()))).await;
    let sent = &value[head.len()..head.len() + bytes / 32 * 32];
    let ours: String = db.query_one("select md5($1)", &[&sent]).await.unwrap().get(0);
    assert_eq!(ours, sum);
    let noted = value.replace(tail, r#"","note":1}"#);
    assert!(update.old == value && update.new == noted, "the value that was not touched came otherwise");
    assert_eq!(update.changed, ["note"]);
    assert!(update.frame_bytes > 2 * bytes);
    assert!(delete.old == noted && delete.new.is_empty());
}

#[tokio::test]
async fn a_value_of_100_kb_arrives_whole_though_it_did_not_change() {
    a_large_value_arrives_whole(100_000).await;
}

#[tokio::test]
async fn a_value_of_10_mb_arrives_whole_though_it_did_not_change() {
    a_large_value_arrives_whole(10_000_000).await;
}

#[tokio::test]
async fn a_row_of_10_mb_is_in_the_snapshot_too() {
    let create =
        ["create table big (id int primary key, v text)", "insert into big values (1, repeat('0123456789', 1000000))"];
    let (_db, gateway) = start(&create, "big").await;

    let rows = exact_rows(&gateway, "table=big").await;

    assert_eq!(rows.len(), 1);
    assert!(rows[0] == format!(r#"{{"id":1,"v":"{}"}}"#, "0123456789".repeat(1_000_000)));
}
