//! A filter means the same to PostgreSQL, over the rows of a snapshot, and to the gateway, over the rows of the stream.

use std::collections::BTreeSet;
use std::fmt::Write;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::value::RawValue;
use switchboard::change::{TableName, fields};
use switchboard::filter::{self, Column, Filter, Meter};
use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use crate::harness::{Database, connect};

/// The settings that the log's triggers and a snapshot pin.
const PINNED: &str = "set \"TimeZone\" = 'UTC'; set \"DateStyle\" = 'ISO, MDY'; set \"IntervalStyle\" = 'postgres';
    set bytea_output = 'hex'; set extra_float_digits = 1; set search_path = pg_catalog, pg_temp";

const INTEGERS: &[&str] = &["0", "1", "-1", "2", "7", "100", "-32768", "32767"];
const BIG: &[&str] = &[
    "0",
    "7",
    "9007199254740991",
    "9007199254740992",
    "9007199254740993",
    "-9223372036854775808",
    "9223372036854775807",
];
const DECIMALS: &[&str] = &[
    "0",
    "1",
    "1.0",
    "1.00",
    "-1.5",
    "-1.49",
    "0.1",
    "0.10",
    "9007199254740993",
    "9007199254740992.5",
    "NaN",
    "123.45",
    "-0.001",
    "10",
    "9",
    "-10",
    "-9",
    "12345678.9",
    "0.099999999999999999999999",
];
const WIDE: &[&str] =
    &["1e30", "-1e30", "1e-20", "123456789012345678901234567890.5", "123456789012345678901234567890.50"];
const FLOATS: &[&str] = &[
    "0",
    "-0",
    "1",
    "0.1",
    "0.2",
    "0.30000000000000004",
    "NaN",
    "Infinity",
    "-Infinity",
    "1e20",
    "-1.5",
    "16777217",
    "3.4e38",
    "1e-30",
];
const TEXTS: &[&str] = &[
    "",
    "a",
    "A",
    "ab",
    "aB",
    "abc",
    "b",
    "B",
    "k",
    "K",
    "\u{212A}",
    "i",
    "I",
    "\u{130}",
    "\u{131}",
    "s",
    "ſ",
    "ß",
    "é",
    "É",
    "e\u{301}",
    "%",
    "_",
    "a_b",
    "a%b",
    "\\",
    "a\\b",
    "line\nbreak",
    "q\"uote'",
    "日本",
    "😀",
    " a",
    "a ",
    "null",
    "a,b",
    "(x)",
    "Σ",
    "ς",
    "ǅ",
    "\u{FFFD}",
    "\u{1}",
    "\t",
    "7",
    "٣",
    "a.b",
    "[a]",
    "\u{E000}",
    "ÅB",
    "\u{212B}b",
];
const SHORT: &[&str] = &["", "a", "a ", "ab", "AB", " a", "é", "a\n", "abcde"];
const STAMPS: &[&str] = &[
    "2024-02-29 12:34:56.789",
    "2024-02-29 12:34:56.789012",
    "2024-02-29",
    "0044-03-15 00:00:00 BC",
    "0001-12-31 23:59:59.999999 BC",
    "0001-01-01",
    "infinity",
    "-infinity",
    "10000-01-01",
    "294276-12-31",
    "4713-01-01 00:00:00 BC",
    "1999-12-31 24:00:00",
    "1970-01-01 00:00:00.000001",
];
const TIMES: &[&str] = &["00:00:00", "24:00:00", "12:34:56", "12:34:56.7", "12:34:56.700001", "23:59:59.999999"];
const UUIDS: &[&str] = &[
    "00000000-0000-0000-0000-000000000000",
    "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
    "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A12",
    "ffffffff-ffff-ffff-ffff-ffffffffffff",
];
const BYTES: &[&str] = &["\\x", "\\x00", "\\x0001", "\\xff", "\\xdeadBEEF", "\\x5c22", "a\\000b"];
const MOODS: &[&str] = &["sad", "ok", "a \"mood\"", "Ünique", "null"];
const JSONS: &[&str] = &["null", " null ", "{\"a\": null}", "[1]", "\"null\"", "1"];

/// A column, the values that rows have in it, and more literals that filters name.
struct Kind {
    name: &'static str,
    declared: &'static str,
    values: &'static [&'static str],
    literals: &'static [&'static str],
    patterns: bool,
}

const fn kind(
    name: &'static str,
    declared: &'static str,
    values: &'static [&'static str],
    literals: &'static [&'static str],
) -> Kind {
    Kind { name, declared, values, literals, patterns: false }
}

const fn text(name: &'static str, declared: &'static str) -> Kind {
    Kind { name, declared, values: TEXTS, literals: &["aa", "Z", "*", "zebra"], patterns: true }
}

fn kinds(icu: bool) -> Vec<Kind> {
    let odd_integers = &["007", "+7", " 7", "-0", "x", "40000", "1.5", "null", "99999999999999999999"];
    let odd_stamps =
        &["2024-02-29 13:34:56.789+01", "2024-02-29T12:34:56.789Z", "epoch", "1 Jan 2000 10:00 PST", "2024-02-30"];
    let mut kinds = vec![
        kind("int2", "int2", INTEGERS, odd_integers),
        kind("int4", "int4", INTEGERS, odd_integers),
        kind("int8", "int8", BIG, odd_integers),
        kind("counted", "public.counted", INTEGERS, odd_integers),
        kind("oid", "oid", &["0", "1", "4294967295"], &["-1", "01", "5"]),
        kind("exact", "numeric", DECIMALS, &["1.000", "+1", ".1", "1e0", "nan", "-0.0", "1e-3", "x"]),
        kind("wide", "numeric", WIDE, &["1000000000000000000000000000000", "1e29", "0.00000000000000000001"]),
        kind("price", "numeric(10,2)", &["0", "1", "1.5", "-1.5", "99999999.99", "NaN"], &["1.50", "1.499", "1e1"]),
        kind("single", "float4", FLOATS, &["0.1", "0.100000001", "1e39", "inf", "nan", "16777216", ".5"]),
        kind("double", "float8", FLOATS, &["0.3", "0.10", "1e400", "+1", "3.4e38"]),
        kind("flag", "bool", &["true", "false"], &["t", "YES", "0", "on", "maybe", "TRUE"]),
        kind("name", "name", &["a", "B", "Kk", "é", ""], &["b", "A", "aa"]),
        kind("chars", "char(5)", SHORT, &["a    ", "a      ", "abcdef", "\t"]),
        kind("stamp", "timestamp", STAMPS, odd_stamps),
        kind("zoned", "timestamptz", STAMPS, odd_stamps),
        kind("coarse", "timestamptz(0)", &["2024-02-29 12:34:56", "1970-01-01"], odd_stamps),
        kind(
            "day",
            "date",
            &["2024-02-29", "0044-03-15 BC", "0001-01-01", "infinity", "-infinity", "5874897-12-31", "4714-11-24 BC"],
            &["29 Feb 2024", "2024-02-30", "20240229", "epoch"],
        ),
        kind("time", "time", TIMES, &["24:00", "1 pm", "12:34:60", "25:00", "12:34:56.70"]),
        kind("uuid", "uuid", UUIDS, &["{a0eebc999c0b4ef8bb6d6bb9bd380a11}", "x"]),
        kind("bytes", "bytea", BYTES, &["\\xFF", "\\xf", "abc", "\\x 00 01"]),
        kind("mood", "public.\"Mood\"", MOODS, &["bad", "OK"]),
        kind("felt", "public.felt", MOODS, &["bad"]),
        kind("json", "json", JSONS, &["{}"]),
        kind("jsonb", "jsonb", JSONS, &["{}"]),
        kind("ints", "int4[]", &["{}", "{1,null}"], &["{}"]),
        kind("span", "interval", &["1 day", "24 hours"], &["1 day"]),
        kind("pair", "public.pair", &["(,)", "(1,)"], &["(,)"]),
        text("text", "text"),
        text("c", "text collate \"C\""),
        Kind { values: SHORT, ..text("short", "varchar(10)") },
        text("worded", "public.worded"),
    ];
    if icu {
        kinds.push(text("icu", "text collate \"und-x-icu\""));
        kinds.push(text("loose", "text collate public.loose"));
        kinds.push(text("turkish", "text collate \"tr-x-icu\""));
    }
    kinds
}

fn sql_text(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A table of rows with every value of every column, and nulls.
struct World {
    table: TableName,
    columns: Vec<Column>,
    kinds: Vec<Kind>,
    rows: Vec<(i32, Box<RawValue>)>,
    client: Client,
}

const ROWS: usize = 64;

impl World {
    async fn new(client: Client) -> World {
        let icu = client.query_one("select count(*) from pg_collation where collname = 'und-x-icu'", &[]);
        let icu = icu.await.unwrap().get::<_, i64>(0) > 0;
        let kinds = kinds(icu);
        let mut create = "set standard_conforming_strings = on; create type public.\"Mood\" as enum ('sad', 'ok', 'a \"mood\"', 'Ünique', 'null');
            alter type public.\"Mood\" add value 'first' before 'sad';
            create type public.pair as (a int, b int); create domain public.counted as int;
            create domain public.felt_before as public.\"Mood\"; create domain public.felt as public.felt_before;
            create domain public.worded as text collate \"C\";"
            .to_owned();
        if icu {
            create.push_str(
                "create collation public.loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false);",
            );
        }
        create.push_str("create table public.\"odd table\" (id int primary key, gone int");
        for kind in &kinds {
            write!(create, ", \"{}\" {}", kind.name, kind.declared).unwrap();
        }
        create.push_str("); alter table public.\"odd table\" drop column gone;");
        for row in 0..ROWS {
            write!(create, "insert into public.\"odd table\" values ({row}").unwrap();
            for (place, kind) in kinds.iter().enumerate() {
                // Each value comes, and a null, and beside whom differs from column to column.
                let choices = kind.values.len() + 1;
                let at = (row + place * (1 + row / choices)) % choices;
                match kind.values.get(at) {
                    Some(value) => write!(create, ", {}", sql_text(value)).unwrap(),
                    None => create.push_str(", null"),
                }
            }
            create.push_str(");");
        }
        create.push_str(PINNED);
        client.batch_execute(&create).await.unwrap();

        let sql = format!("select {}", filter::columns_sql("'public.\"odd table\"'::regclass"));
        let columns = filter::columns(client.query_one(&sql, &[]).await.unwrap().get(0)).unwrap();
        let sql = "select id, row_to_json(t)::text from public.\"odd table\" t order by id";
        let rows = client.query(sql, &[]).await.unwrap();
        let rows = rows.iter().map(|row| (row.get(0), RawValue::from_string(row.get(1)).unwrap())).collect();
        World { table: TableName::new("public", "odd table"), columns, kinds, rows, client }
    }

    /// Binds a filter as the gateway does.
    async fn bind(&self, text: &str) -> Result<Filter, String> {
        let expression = filter::parse(text)?;
        let Some(question) = expression.question(&self.table, &self.columns)? else {
            return expression.bind(&self.table, &self.columns, None);
        };
        let params: Vec<(&(dyn ToSql + Sync), Type)> =
            question.params.iter().map(|param| (param as &(dyn ToSql + Sync), Type::TEXT)).collect();
        let answer = self.client.query_typed(&question.sql, &params).await;
        let rows = answer
            .map_err(|error| question.refusal(error.as_db_error().expect("an error of PostgreSQL's").message()))?;
        let [row] = &rows[..] else { panic!("one row was due, and {} came", rows.len()) };
        expression.bind(&self.table, &self.columns, Some((0..row.len()).map(|index| row.get(index)).collect()))
    }

    /// The rows that PostgreSQL selects.
    async fn selected(&self, condition: &str, params: &[String]) -> BTreeSet<i32> {
        let sql = format!("select id from public.\"odd table\" r where {condition}");
        let params: Vec<(&(dyn ToSql + Sync), Type)> =
            params.iter().map(|param| (param as &(dyn ToSql + Sync), Type::TEXT)).collect();
        let rows = self.client.query_typed(&sql, &params).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// The rows that the filter judges to be its own, having compared them with those that PostgreSQL selects.
    async fn check(&self, filter: &Filter) -> Result<BTreeSet<i32>, String> {
        let mut params = Vec::new();
        let condition = filter.sql("r", &mut params);
        let selected = self.selected(&condition, &params).await;
        let mut judged = BTreeSet::new();
        let route = filter.route();
        for (id, row) in &self.rows {
            let row = fields(row);
            let truth = filter
                .judge(&row, &mut Meter::new(u64::MAX))
                .map_err(|error| format!("{filter} cannot judge row {id}: {error}"))?;
            if truth != selected.contains(id) {
                return Err(format!("{filter} judges {truth} of row {id}, unlike {condition} with {params:?}"));
            }
            if truth {
                judged.insert(*id);
            }
            if let Some(route) = &route {
                let column = self.columns.iter().find(|column| column.name == route.column).unwrap();
                let (_, value) = row.0.iter().find(|(name, _)| *name == route.column).unwrap();
                let routed = column.index_key(value).is_some_and(|key| route.keys.contains(&key));
                if truth && !routed {
                    return Err(format!("{filter} judges row {id} to be its own, and its route leads elsewhere"));
                }
            }
        }
        Ok(judged)
    }

    /// Whatever is bound is judged alike, and its canonical text is the same filter again. Whether it was bound.
    async fn agree(&self, text: &str) -> Result<bool, String> {
        let Ok(filter) = self.bind(text).await else { return Ok(false) };
        self.check(&filter).await?;
        match self.bind(&filter.to_string()).await {
            Ok(again) if again == filter && again.to_string() == filter.to_string() => Ok(true),
            other => Err(format!("{text} is {filter}, and that is {other:?}")),
        }
    }
}

/// A value in quotes.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn pattern() -> BoxedStrategy<String> {
    let pieces = vec![
        "a", "b", "k", "K", "i", "I", "s", "é", "日", "\u{212A}", "%", "_", "*", "\\", "\\%", "\\_", "\\a", "\n", "A",
        "B", "€",
    ];
    prop::collection::vec(prop::sample::select(pieces), 0..6).prop_map(|pieces| pieces.concat()).boxed()
}

fn regular_expression() -> BoxedStrategy<String> {
    let atom = prop::sample::select(vec![
        "a",
        "b",
        "k",
        "K",
        "i",
        "S",
        "é",
        "日",
        ".",
        "[a-k]",
        "[^b]",
        "\\d",
        "\\D",
        "\\.",
        "\\n",
        "[]a]",
        "[a-]",
        "[-a]",
        "[^]a]",
        "[a\\]b]",
        "\\w",
        "\\s",
        "\\W",
        "\\S",
        "[[:alpha:]]",
        "[[:digit:]x]",
        "[[:punct:]]",
        "[^[:space:]]",
        "[A-Z_]",
        "[\\d.]",
        "[é-日]",
        "\\\\",
        " ",
        ",",
        "\"",
        "[a^]",
        "[$.*]",
        "\\$",
        "[--a]",
        "-",
        "[A-z]",
        "[[:upper:]]",
        "[[:lower:]]",
        "\u{212A}",
        "\\}",
        "&",
        "#",
        "~",
        "/",
        "[a&&b]",
        "[a~~b]",
    ]);
    let wild = prop::sample::select(vec![
        "(",
        ")",
        "|",
        "*",
        "^",
        "$",
        "{",
        "}",
        "[",
        "]",
        "?",
        "\\",
        "(?=a)",
        "\\1",
        "\\m",
        "(?i)",
        "***=",
        "{2",
        "{,2}",
        "a{300}",
        "[b-a]",
        "[a-c-e]",
        "[[=a=]]",
        "[[.a.]]",
        "[[:foo:]]",
        "\\y",
        "\\u0041",
    ]);
    let leaf = prop_oneof![30 => atom.prop_map(str::to_owned), 1 => wild.prop_map(str::to_owned)];
    let tree = leaf.prop_recursive(3, 12, 4, |inner| {
        let repeat =
            prop::sample::select(vec!["*", "+", "?", "{2}", "{0,2}", "{1,}", "{0}", "*?", "+?", "??", "{1,2}?"]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 1..4).prop_map(|parts| parts.concat()),
            (inner.clone(), repeat).prop_map(|(part, repeat)| format!("{part}{repeat}")),
            inner.clone().prop_map(|part| format!("({part})")),
            inner.clone().prop_map(|part| format!("(?:{part})")),
            prop::collection::vec(inner, 1..4).prop_map(|parts| format!("({})", parts.join("|"))),
        ]
    });
    let tree = prop_oneof![9 => tree, 1 => "[()\\[\\]{}*+?^$|.\\\\a-cK:,0-2-]{0,8}"];
    (prop::bool::weighted(0.3), tree, prop::bool::weighted(0.3))
        .prop_map(|(begin, tree, end)| format!("{}{tree}{}", if begin { "^" } else { "" }, if end { "$" } else { "" }))
        .boxed()
}

/// A condition on one of the columns; now and then one that makes no sense.
fn condition(kinds: &[Kind]) -> BoxedStrategy<String> {
    let kinds: Vec<(String, Vec<&'static str>, bool)> =
        kinds.iter().map(|kind| (kind.name.to_owned(), [kind.values, kind.literals].concat(), kind.patterns)).collect();
    let of_kind = |(name, literals, patterns): (String, Vec<&'static str>, bool)| {
        let value = prop::sample::select(literals).prop_map(quoted).boxed();
        let compare = prop::sample::select(vec!["eq", "neq", "gt", "gte", "lt", "lte", "isdistinct"]);
        let is = prop::sample::select(vec!["null", "not_null", "true", "false", "unknown", "NULL"]);
        let like = (
            prop::sample::select(vec!["like", "ilike"]),
            prop_oneof![3 => pattern(), 1 => prop::sample::select(TEXTS).prop_map(str::to_owned)],
        );
        let regex = (prop::sample::select(vec!["match", "imatch"]), regular_expression());
        let weight = if patterns { 4 } else { 0 };
        let check = prop_oneof![
            8 => (compare, value.clone()).prop_map(|(operator, value)| format!("{operator}.{value}")),
            3 => prop::collection::vec(value.clone(), 0..5).prop_map(|values| format!("in.({})", values.join(","))),
            2 => is.prop_map(|is| format!("is.{is}")),
            weight => like.prop_map(|(operator, pattern)| format!("{operator}.{}", quoted(&pattern))),
            weight => regex.prop_map(|(operator, pattern)| format!("{operator}.{}", quoted(&pattern))),
        ];
        (prop::bool::weighted(0.2), check)
            .prop_map(move |(not, check)| format!("{}.{}{check}", quoted(&name), if not { "not." } else { "" }))
    };
    prop::sample::select(kinds).prop_flat_map(of_kind).boxed()
}

fn expression(kinds: &[Kind]) -> BoxedStrategy<String> {
    let tree = condition(kinds).prop_recursive(3, 8, 4, |inner| {
        (prop::sample::select(vec!["and", "or", "not.and", "not.or"]), prop::collection::vec(inner, 1..4))
            .prop_map(|(word, inner)| format!("{word}({})", inner.join(",")))
    });
    // Most filters are one condition: a nested one is refused where any of its conditions is.
    prop_oneof![3 => condition(kinds), 1 => tree].boxed()
}

/// Compares generated filters; `PROPTEST_CASES` says how many, in fours.
fn compare(locale: &str) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = runtime.block_on(async {
        let db = Database::without_log().await;
        let (server, name) = db.url.rsplit_once('/').unwrap();
        let name = format!("{name}_filters");
        let create = format!("create database {name} encoding 'UTF8' {locale} template template0");
        match db.batch_execute(&create).await {
            Ok(()) => Some(World::new(connect(&format!("{server}/{name}")).await).await),
            // Not every machine has every locale, and not every PostgreSQL ICU.
            Err(error) if locale != "locale 'C'" => {
                eprintln!("nothing is compared under {locale}: {error}");
                None
            }
            Err(error) => panic!("{create}: {error}"),
        }
    });
    let Some(world) = world else { return };
    let cases = 4 * ProptestConfig::default().cases;
    // What chance may miss: the characters outside ASCII that have a case within it.
    for check in [
        "ilike.k",
        "ilike.i",
        "ilike._",
        "ilike.\"_*\"",
        "ilike.\u{FFFD}",
        "imatch.^k$",
        "imatch.^[i-k]$",
        "imatch.^s$",
        "imatch.^.$",
    ] {
        for column in ["text", "icu"] {
            let agreed = runtime.block_on(world.agree(&format!("{column}.{check}")));
            assert_eq!(
                agreed,
                Ok(world.columns.iter().any(|known| known.name == column)),
                "{column}.{check} under {locale}"
            );
        }
    }
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let bound = std::cell::Cell::new(0);

    TestRunner::new(config)
        .run(&expression(&world.kinds), |text| {
            let agreed = runtime.block_on(world.agree(&text));
            bound.set(bound.get() + u32::from(agreed.map_err(TestCaseError::fail)?));
            Ok(())
        })
        .unwrap_or_else(|error| panic!("under {locale}: {error}"));

    assert!(bound.get() > cases / 4, "only {} of {cases} filters were bound under {locale}", bound.get());
}

#[test]
fn a_filter_judges_as_postgresql_selects() {
    compare("locale 'C'");
}

#[test]
fn a_filter_judges_as_postgresql_selects_where_letters_are_unicodes() {
    compare("locale 'C.UTF-8'");
}

#[test]
fn a_filter_judges_as_postgresql_selects_where_texts_sort_by_language() {
    compare("locale 'en_US.UTF-8'");
}

#[test]
fn a_filter_judges_as_postgresql_selects_where_icu_knows_the_letters() {
    compare("locale 'C' locale_provider icu icu_locale 'en-US'");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_filter_makes_its_reader_panic(
        text in any::<String>(), wild in "((and|or|not)[(.]|[a-c]\\.(eq|in|is|like)\\.|[(),.\"\\\\aé1 ]){0,20}"
    ) {
        for text in [text, wild] {
            let _ = filter::parse(&text);
        }
    }
}

/// A table whose rows number what is told of them.
async fn world() -> World {
    let db = Database::without_log().await;
    World::new(connect(&db.url).await).await
}

#[tokio::test]
async fn a_filter_selects_what_the_same_words_of_sql_select() {
    let world = world().await;
    for (text, sql) in [
        ("int4.eq.007", "int4 = 7"),
        ("int4.neq.7", "int4 <> 7"),
        ("int4.not.in.(1,2)", "int4 not in (1, 2)"),
        ("int4.in.()", "false"),
        ("int4.not.in.()", "true"),
        ("int4.is.null", "int4 is null"),
        ("int4.is.not_null", "int4 is not null"),
        ("int4.isdistinct.7", "int4 is distinct from 7"),
        ("counted.lte.0", "counted <= 0"),
        ("int8.gt.9007199254740992", "int8 > 9007199254740992"),
        ("oid.gte.1", "oid >= 1"),
        ("exact.eq.1.000", "exact = 1"),
        ("exact.gt.9007199254740992", "exact > 9007199254740992"),
        ("exact.lt.NaN", "exact < 'NaN'"),
        ("exact.lt.-1.49", "exact < -1.49"),
        ("wide.gte.1e29", "wide >= 1e29"),
        ("single.eq.0.1", "single = 0.1::float4"),
        ("single.gte.NaN", "single >= 'NaN'"),
        ("double.eq.0", "double = 0"),
        ("double.lt.-1", "double < -1"),
        ("flag.is.true", "flag is true"),
        ("flag.not.is.true", "flag is not true"),
        ("flag.is.unknown", "flag is unknown"),
        ("flag.eq.no", "not flag"),
        ("text.eq.", "text = ''"),
        ("text.gt.a", "text > 'a'"),
        ("text.like.a*", "text like 'a%'"),
        (r"text.like.a\_b", r"text like 'a\_b'"),
        ("text.ilike._B*", "text ilike '_b%'"),
        ("text.match.^[a-c]+$", "text ~ '^[a-c]+$'"),
        ("text.imatch.^AB?c*$", "text ~* '^AB?c*$'"),
        ("name.lt.a", "name < 'a'"),
        ("name.ilike.k*", "name ilike 'k%'"),
        ("chars.eq.a", "chars = 'a'"),
        ("chars.in.(a,\"ab  \")", "chars in ('a', 'ab')"),
        ("stamp.lt.0001-01-01", "stamp < '0001-01-01'"),
        ("stamp.eq.infinity", "stamp = 'infinity'"),
        ("zoned.eq.2024-02-29 13:34:56.789+01", "zoned = '2024-02-29 12:34:56.789+00'"),
        ("zoned.gte.\"0044-03-15 BC\"", "zoned >= '0044-03-15 00:00:00+00 BC'"),
        ("day.lte.2024-02-29", "day <= '2024-02-29'"),
        ("time.gt.12:34:56", "time > '12:34:56'"),
        ("uuid.gt.A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "uuid > 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"),
        (r"bytes.gte.\xFF", r"bytes >= '\xff'"),
        ("mood.lt.ok", "mood < 'ok'"),
        ("felt.in.(ok,first)", r#"felt::public."Mood" in ('ok', 'first')"#),
        ("json.is.null", "json is null or json_typeof(json) = 'null'"),
        ("jsonb.not.is.null", "jsonb is not null and jsonb <> 'null'"),
        ("pair.is.null", "pair is not distinct from null"),
        ("span.is.null", "span is null"),
        ("and(int4.gt.0,or(flag.is.true,flag.is.null))", "int4 > 0 and (flag is true or flag is null)"),
        ("not.and(int4.gt.0,exact.gt.0)", "not (int4 > 0 and exact > 0)"),
        ("not.or(int4.gt.0,exact.gt.0)", "not (int4 > 0 or exact > 0)"),
    ] {
        let filter = world.bind(text).await.unwrap_or_else(|error| panic!("{text}: {error}"));

        let judged = world.check(&filter).await.unwrap_or_else(|error| panic!("{text}: {error}"));

        assert_eq!(judged, world.selected(sql, &[]).await, "{text}");
        let of_some = (1..ROWS).contains(&judged.len()) || ["false", "true"].contains(&sql);
        assert!(of_some, "{text} is told apart from true and false by no row");
    }
}

#[tokio::test]
async fn literals_are_read_as_postgresql_reads_them() {
    let world = world().await;
    for (text, canonical) in [
        ("int4.eq. +7", "int4.eq.7"),
        ("exact.eq.1e1", "exact.eq.10"),
        ("single.eq.0.100000001", "single.eq.0.1"),
        ("double.eq.-0", "double.eq.0"),
        ("flag.eq.YES", "flag.eq.true"),
        ("zoned.eq.2024-02-29 13:00+01", "zoned.eq.2024-02-29T12:00:00+00:00"),
        ("stamp.eq.epoch", "stamp.eq.1970-01-01T00:00:00"),
        ("day.in.(20240229,29 Feb 2024)", "day.in.(2024-02-29)"),
        ("uuid.eq.{A0EEBC999C0B4EF8BB6D6BB9BD380A11}", "uuid.eq.a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        (r"bytes.eq.abc", r#"bytes.eq."\\x616263""#),
        ("chars.eq.a   ", "chars.eq.a"),
        ("mood.in.(null,first)", r#"mood.in.(first,"null")"#),
    ] {
        let text = text.replace("(null", "(\"null\"");

        let filter = world.bind(&text).await.unwrap_or_else(|error| panic!("{text}: {error}"));

        assert_eq!(filter.to_string(), canonical, "{text}");
    }
}

#[tokio::test]
async fn what_postgresql_refuses_is_refused_with_the_column_the_value_and_the_remedy() {
    let world = world().await;
    for (text, refusal) in [
        (
            "int4.eq.x",
            r#"PostgreSQL refuses "x" for the column "int4" of public."odd table": invalid input syntax for type integer: "x"; write a value of type integer"#,
        ),
        (
            "and(int4.eq.+1,day.eq.2024-02-30)",
            r#"PostgreSQL refuses "2024-02-30" for the column "day" of public."odd table": date/time field value out of range: "2024-02-30"; write a value of type date"#,
        ),
        (
            "mood.eq.Sad",
            r#"the filter on the column "mood" of public."odd table" cannot be used: the type public."Mood" has no label "Sad"; its labels are "first", "sad", "ok", "a \"mood\"", "Ünique" and "null""#,
        ),
    ] {
        assert_eq!(world.bind(text).await, Err(refusal.to_owned()), "{text}");
    }
}

#[tokio::test]
async fn a_column_that_becomes_another_one_is_no_longer_equal() {
    let world = world().await;
    let columns = async || {
        let sql = format!("select {}", filter::columns_sql("(select 'public.\"odd table\"'::regclass)"));
        filter::columns(world.client.query_one(&sql, &[]).await.unwrap().get(0)).unwrap()
    };
    let mut before = columns().await;
    assert_eq!(before, world.columns);
    assert_eq!(before[0].name, "id");
    assert_eq!(before.len(), world.kinds.len() + 1, "a dropped column is none");

    for (alter, name) in [
        ("alter table public.\"odd table\" alter int4 type int8", "int4"),
        ("alter table public.\"odd table\" alter price type numeric(12,2)", "price"),
        ("alter table public.\"odd table\" alter text type text collate \"POSIX\"", "text"),
        ("alter type public.\"Mood\" rename value 'ok' to 'well'", "mood"),
        ("alter table public.\"odd table\" rename c to d", "c"),
    ] {
        world.client.batch_execute(alter).await.unwrap();
        let after = columns().await;
        let differs = before.iter().zip(&after).find(|(before, after)| before != after);
        assert_eq!(differs.map(|(before, _)| before.name.as_str()), Some(name), "{alter}");
        before = after;
    }
}
