//! Row filters in PostgREST's words: parsed, bound to the columns of a table, and then decided twice: by PostgreSQL over the rows of a
//! snapshot ([`Filter::sql`]), and here over the rows of the stream ([`Filter::judge`]). Both have to say the same, or a subscriber's
//! picture drifts from the table. They do because
//!
//! - PostgreSQL itself reads the literals ([`Expression::question`]), as the column's type and with the settings that the log's triggers
//!   pin. What it wrote back is what both sides compare with; only literals that can be read in one way are taken without asking.
//! - both compare as the type does (`value.rs`): decimals digit by digit, floats with NaN as the greatest, moments by their parts, enums
//!   by the order of their labels, texts byte by byte where the collation says that this is right. Null is neither true nor false.
//! - what depends on a locale, or on more of PostgreSQL than is told here, is refused when the filter is bound, with the remedy. Nothing
//!   is guessed. The property test `tests/gateway/filters.rs` compares the two on whatever it can think of.
//!
//! A row that was written before a column was renamed or retyped may lack the column, or hold a value of another form; then `judge` says
//! that it cannot decide. The words are told to users in `docs/filters.md`.
mod bind;
mod column;
mod node;
mod parse;
mod pattern;
mod value;
pub mod weight;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

pub use bind::{NUMERIC_EXPONENT_MAX, QUESTIONS_MAX, Question, REGEXES_MAX, VALUES_MAX};
pub use column::{Class, Collation, Column, Ctype, IndexKey, columns, columns_sql};
pub use parse::{CONDITIONS_MAX, DEPTH_MAX, Expression, LIST_MAX, WHERE_BYTES_MAX, begins_with_operator, parse};
pub use pattern::PATTERN_BYTES_MAX;
pub use weight::Meter;

use crate::change::{Fields, TableName};
use node::Node;

/// A filter, bound to the columns of a table. Filters are equal where they judge alike by their text and their columns.
#[derive(Clone)]
pub struct Filter(Arc<Bound>);

struct Bound {
    root: Node,
    /// The columns that it looks at, in the order of its conditions.
    columns: Vec<Column>,
    /// The canonical text.
    text: String,
    weight: u64,
}

impl Filter {
    fn new(root: Node) -> Filter {
        let text = root.to_string();
        let mut columns = Vec::new();
        root.columns(&mut columns);
        let mut tests = Vec::new();
        root.tests(&mut tests);
        let weight = tests.iter().map(|test| test.weight.weight).sum();
        Filter(Arc::new(Bound { root, columns, text, weight }))
    }

    /// Whether the row belongs to the filter: only where SQL would say true. Fails where that takes more steps than the meter has.
    pub fn judge(&self, row: &Fields<'_>, meter: &mut Meter<'_>) -> Result<bool, Undecidable> {
        self.0.root.judge(row, meter).map(|truth| truth == Some(true))
    }

    /// What it takes while it is there (see [`weight`]).
    pub fn weight(&self) -> u64 {
        self.0.weight
    }

    /// The condition that weighs most, and its weight.
    fn heaviest(&self) -> Option<(String, u64)> {
        let mut tests = Vec::new();
        self.0.root.tests(&mut tests);
        let heaviest = tests.into_iter().max_by_key(|test| test.weight.weight);
        heaviest.map(|test| (test.to_string(), test.weight.weight))
    }

    /// The same as a condition in SQL over the columns of `alias`. Its parameters, all of them texts, are appended to `params`.
    pub fn sql(&self, alias: &str, params: &mut Vec<String>) -> String {
        self.0.root.sql(alias, params)
    }

    /// Where the filter can be true, if it says so by `eq` or `in`. A row whose column has no key ([`Column::index_key`]) is null there,
    /// or of another form and cannot be judged.
    pub fn route(&self) -> Option<Route> {
        self.0.root.route().map(|(column, literals)| Route {
            column: column.name.clone(),
            keys: literals.iter().map(|literal| IndexKey(literal.value.clone())).collect(),
        })
    }
}

impl PartialEq for Filter {
    fn eq(&self, other: &Filter) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || (self.0.text == other.0.text && self.0.columns == other.0.columns)
    }
}

impl Eq for Filter {}

impl Hash for Filter {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.text.hash(state);
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Filter({})", self.0.text)
    }
}

/// Why a change cannot be judged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Undecidable {
    /// The row was written when the table had other columns: it lacks this one, or its value there has not the form of its type.
    Column(String),
    /// What happened to this table cannot be told, or it is another one under its name.
    Table(TableName),
    /// It takes more steps than it may.
    TooHeavy,
}

impl fmt::Display for Undecidable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Undecidable::Column(column) => {
                write!(f, "the row has no value of the column {column:?} as the table has it now")
            }
            Undecidable::Table(table) => write!(f, "{table} is not what it was"),
            Undecidable::TooHeavy => f.write_str("it takes more steps to judge than it may"),
        }
    }
}

impl std::error::Error for Undecidable {}

/// Where a filter can be true: only in rows whose column has one of these values.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// The column.
    pub column: String,
    /// Its values, each once.
    pub keys: Vec<IndexKey>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use serde_json::value::RawValue;

    use super::*;
    use crate::change::fields;

    fn table() -> TableName {
        TableName::new("public", "switch")
    }

    /// `id`, `level` and `price` are numbers, `name` a text that sorts by language, `status` a boolean, `data` a jsonb.
    fn switch_columns() -> Vec<Column> {
        let text = json!({"collprovider": "c", "collisdeterministic": true, "collcollate": "de_DE.UTF-8", "collctype": "de_DE.UTF-8"});
        let column = |name: &str, base: &str, type_name: &str| {
            json!({"name": name, "declared_type": 1, "domain": false, "modifier": -1, "base": base, "type_name": type_name,
                "is_enum": false, "labels": null, "collation": 0, "collation_of": text, "database": null, "encoding": "UTF8"})
        };
        let json = json!([
            column("id", "int8", "bigint"),
            column("level", "int4", "integer"),
            column("price", "numeric", "numeric"),
            column("name", "text", "text"),
            column("status", "bool", "boolean"),
            column("data", "jsonb", "jsonb"),
        ]);
        columns(&json.to_string()).expect("columns")
    }

    fn bound(text: &str) -> Result<Filter, String> {
        parse(text)?.bind(&table(), &switch_columns(), None)
    }

    fn filter(text: &str) -> Filter {
        bound(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn judge(text: &str, row: &str) -> Result<bool, Undecidable> {
        let row = RawValue::from_string(row.to_owned()).expect("valid JSON");
        filter(text).judge(&fields(&row), &mut Meter::new(1 << 20))
    }

    #[test]
    fn literals_of_one_value_make_one_filter() {
        for (text, canonical) in [
            ("level.gte.003", "level.gte.3"),
            ("price.eq.-0.50", "price.eq.-0.5"),
            ("price.in.(2,1.0,1)", "price.in.(1,2)"),
            ("and(level.eq.1)", "level.eq.1"),
            ("not.or(level.not.eq.1)", "level.eq.1"),
            ("not.and(level.eq.1,name.is.not_null)", "not.and(level.eq.1,name.not.is.null)"),
            ("name.like.A*", r#"name.like."A%""#),
            (r#"name.eq.say "hi" \"#, r#"name.eq."say \"hi\" \\""#),
            ("name.eq.null", r#"name.eq."null""#),
        ] {
            assert_eq!(filter(text).to_string(), canonical);
            assert_eq!(filter(canonical), filter(text));
        }
    }

    #[test]
    fn the_same_words_on_another_type_are_another_filter() {
        let mut columns = switch_columns();
        columns[1].class = Class::Numeric;

        let other = parse("level.eq.1").and_then(|expression| expression.bind(&table(), &columns, None));

        assert_ne!(other.expect("a filter"), filter("level.eq.1"));
    }

    #[test]
    fn null_leaves_open_what_it_does_not_decide() {
        let row = r#"{"id":1,"level":null,"price":1.50,"name":"a\nb","status":null,"data":null}"#;
        for (text, truth) in [
            ("level.eq.1", false),
            ("level.not.eq.1", false),
            ("level.isdistinct.1", true),
            ("level.in.(1)", false),
            ("level.not.in.(1)", false),
            ("level.not.in.()", true),
            ("not.and(level.eq.1,id.eq.1)", false),
            ("not.and(level.eq.1,id.eq.2)", true),
            ("or(level.eq.1,id.eq.1)", true),
            ("not.or(level.eq.1,id.eq.2)", false),
            ("status.is.true", false),
            ("status.not.is.true", true),
            ("status.is.unknown", true),
            ("data.is.null", true),
            ("price.eq.1.5", true),
            ("name.like.a_b", true),
        ] {
            assert_eq!(judge(text, row), Ok(truth), "{text}");
        }
    }

    #[test]
    fn a_row_of_other_columns_is_judged_only_where_they_do_not_matter() {
        let undecidable = Err(Undecidable::Column("level".to_owned()));
        for row in [r#"{"id":1}"#, r#"{"id":1,"level":"1"}"#, r#"{"id":1,"level":1.5}"#, "{}"] {
            assert_eq!(judge("level.eq.1", row), undecidable);
            assert_eq!(judge("level.not.eq.1", row), undecidable);
        }
        assert_eq!(judge("and(level.eq.1,id.eq.2)", r#"{"id":1}"#), Ok(false));
        assert_eq!(judge("or(level.eq.1,id.eq.1)", r#"{"id":1}"#), Ok(true));
        assert_eq!(judge("or(level.eq.1,id.eq.2)", r#"{"id":1}"#), undecidable);
        // In another place than now, under the same name.
        assert_eq!(judge("level.eq.1", r#"{"level":1,"id":2}"#), Ok(true));
    }

    #[test]
    fn a_route_leads_to_the_fewest_keys() {
        let columns = switch_columns();
        let key = |index: usize, json: &str| {
            let value = RawValue::from_string(json.to_owned()).expect("valid JSON");
            columns[index].index_key(&value).expect("a key")
        };
        let route = |column: &str, keys: Vec<IndexKey>| Some(Route { column: column.to_owned(), keys });

        assert_eq!(filter("price.eq.1").route(), route("price", vec![key(2, "1.00")]));
        assert_eq!(
            filter("and(level.in.(1,2,2),or(id.eq.1,id.eq.2))").route(),
            route("level", vec![key(1, "1"), key(1, "2")])
        );
        assert_eq!(filter("and(level.in.(1,2),name.eq.x)").route(), route("name", vec![key(3, "\"x\"")]));
        for text in ["level.gt.1", "level.not.eq.1", "or(level.eq.1,name.eq.x)", "level.is.null"] {
            assert_eq!(filter(text).route(), None, "{text}");
        }
    }

    #[test]
    fn sql_has_its_literals_as_parameters() {
        let mut params = vec!["before".to_owned()];

        let sql = filter("and(level.gte.3,name.not.eq.x,data.is.null)").sql("a\"b", &mut params);

        assert_eq!(
            sql,
            concat!(
                r#"(("a""b"."level" >= $2::pg_catalog.text::pg_catalog.int4) and "#,
                r#"(not ("a""b"."name" = $3::pg_catalog.text)) and "#,
                r#"(coalesce(pg_catalog.jsonb_typeof("a""b"."data"), 'null') = 'null'))"#
            )
        );
        assert_eq!(params, ["before", "3", "x"]);
    }

    #[test]
    fn only_what_is_not_plain_is_asked() {
        let asked = |text: &str| {
            let question = parse(text).and_then(|expression| expression.question(&table(), &switch_columns()));
            question.unwrap_or_else(|error| panic!("{text}: {error}"))
        };

        assert_eq!(asked(r#"and(level.eq.7,id.in.(1,-2),price.lt.2.50,status.eq.true,name.eq."7 up")"#), None);
        let question = asked("and(level.eq.+7,id.eq.7,name.match.^a)").expect("a question");
        assert_eq!(
            question.sql,
            "select pg_catalog.to_json($1::pg_catalog.text::pg_catalog.int4)::pg_catalog.text, (''::pg_catalog.text ~ $2::pg_catalog.text)::pg_catalog.text"
        );
        assert_eq!(question.params, ["+7", "^a"]);
    }

    #[test]
    fn a_refusal_names_the_column_the_value_and_the_remedy() {
        for (text, refusal) in [
            (
                "lvl.eq.1",
                r#"public.switch has no column "lvl"; its columns are "id", "level", "price", "name", "status" and "data""#,
            ),
            (
                "level.eq.null",
                "no value equals null, so level.eq with null is never true; write level.is.null or level.not.is.null",
            ),
            (
                "level.like.1*",
                r#"the column "level" of public.switch is of type integer, of which the stream cannot decide like; use one of eq, neq, gt, gte, lt, lte, in, is and isdistinct"#,
            ),
            (
                "name.gt.m",
                r#"the column "name" of public.switch is of type text under a collation that sorts by language, where the stream cannot decide gt; use one of eq, neq, in, is, like, match, ilike, imatch and isdistinct, or give the column collate "C""#,
            ),
            (
                "data.eq.1",
                r#"the column "data" of public.switch is of type jsonb, of which the stream cannot decide eq; write data.is.null or data.not.is.null, or keep what you ask for in a column of its own (also a generated one)"#,
            ),
            (
                "level.is.true",
                r#"the column "level" of public.switch is of type integer, which is never true; write is.null or is.not_null, or compare with eq"#,
            ),
            (
                r"name.like.a\",
                r#"the filter on the column "name" of public.switch cannot be used: the pattern "a\\" ends with a backslash, which escapes nothing; write two for one"#,
            ),
        ] {
            assert_eq!(bound(text), Err(refusal.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_filter_weighs_what_it_holds_and_is_judged_in_as_many_steps_anywhere() {
        let weights = |text: &str| filter(text).weight();
        for (text, weight) in
            [("id.gt.1", 1), ("and(id.gt.1,level.is.null)", 2), ("id.in.(1,2,3,4,5,6,7,8)", 3), ("name.like.A*", 1)]
        {
            assert_eq!(weights(text), weight, "{text}");
        }
        let regex = |text: &str| {
            let answer = Some(vec![Some("false".to_owned())]);
            parse(text)
                .and_then(|filter| filter.bind(&table(), &switch_columns(), answer))
                .map(|filter| filter.weight())
        };
        assert_eq!(regex("name.match.^[A-C]"), Ok(258));
        assert!(weights(&format!("name.eq.{}", "x".repeat(10_000))) > 39);
        assert_eq!(regex("name.imatch.(a|b){100}"), Ok(1 + (64 * 1024 + 64 * 300 + 11) / 256));

        let row = RawValue::from_string(format!(r#"{{"id":1,"name":"{}"}}"#, "x".repeat(998))).expect("JSON");
        let steps = |text: &str| {
            let mut meter = Meter::new(1 << 20);
            filter(text).judge(&fields(&row), &mut meter).expect("a row that has the column");
            (1 << 20) - meter.left()
        };
        assert_eq!(steps("id.gt.1"), 64 + 3);
        assert_eq!(steps("name.like.*y*"), 64 + 3 * 1000);
        assert_eq!(steps("and(id.eq.2,name.like.*y*)"), 64 + 3, "what is not looked at costs nothing");
        let mut meter = Meter::new(3000);
        assert_eq!(filter("name.like.*y*").judge(&fields(&row), &mut meter), Err(Undecidable::TooHeavy));
        let mut meter = Meter::new(3000);
        assert_eq!(filter("or(name.like.*y*,id.eq.1)").judge(&fields(&row), &mut meter), Err(Undecidable::TooHeavy));
    }

    #[test]
    fn what_is_too_heavy_is_refused_by_the_name_of_its_heaviest_part() {
        let list = |count: usize| vec!["1e9"; count].join(",");
        let heavy = format!("or(level.eq.1,price.in.({}),price.in.({}))", list(600), list(1000));
        let expression = parse(&heavy).expect("a filter");
        // As PostgreSQL would spell numbers of a thousand digits.
        let answers = (0..1600).map(|number| Some(format!("{number}{}", "7".repeat(1000)))).collect();

        let refusal = expression.bind(&table(), &switch_columns(), Some(answers)).expect_err("too heavy");

        for said in ["public.switch weighs", "may weigh 5000", "the heaviest of its conditions is \"price.in.(600777"] {
            assert!(refusal.contains(said), "{refusal}");
        }
    }

    #[test]
    fn a_number_that_is_written_out_with_too_many_digits_is_refused() {
        for text in ["price.eq.1e1001", "price.in.(1,-1.5E-1_001)", "price.gt.1e99999999999999999999"] {
            let question = parse(text).and_then(|expression| expression.question(&table(), &switch_columns()));
            let refusal = question.expect_err(text);
            assert!(refusal.contains("an exponent beyond 1000"), "{refusal}");
        }
        for text in ["price.eq.1e1000", "price.eq.0x1e9999", "price.eq.NaN", "name.eq.1e9999"] {
            let question = parse(text).and_then(|expression| expression.question(&table(), &switch_columns()));
            assert!(question.is_ok(), "{text}: {question:?}");
        }
    }

    #[test]
    fn a_refusal_spells_names_as_they_have_to_be_typed() {
        let table = TableName::new("Sales", "o\"dd");
        let mut columns = switch_columns();
        columns[1].name = "e mail\"".to_owned();
        columns[1].type_name = "public.citext".to_owned();
        columns[1].class = Class::Other;
        let refusal = |text: &str| parse(text).and_then(|filter| filter.bind(&table, &columns, None)).err();

        for (text, sentence) in [
            (
                r#""a""b".eq.1"#,
                r#""Sales"."o""dd" has no column "a""b"; its columns are "id", "e mail""", "price", "name", "status" and "data""#,
            ),
            (
                r#""e mail\"".ilike.x*"#,
                r#"the column "e mail""" of "Sales"."o""dd" is of type public.citext, of which the stream cannot decide ilike; have PostgreSQL keep it in small letters, alter table "Sales"."o""dd" add "e mail""_lower" text collate "C" generated always as (lower("e mail""")) stored, and write "e mail""_lower".like.… in small letters"#,
            ),
            (
                "name.eq. 4912",
                r#"the filter on the column "name" of "Sales"."o""dd" cannot be used: there is a blank before the value "4912"; take it out, or put the value in double quotes if the blank belongs to it; a + in an address is written %2B"#,
            ),
        ] {
            assert_eq!(refusal(text), Some(sentence.to_owned()), "{text}");
        }
        assert_eq!(refusal(r#"and(name.eq." 4912",id.eq.1)"#), None);
    }

    #[test]
    fn a_time_whose_plus_sign_was_lost_is_refused_with_how_it_is_written() {
        let mut columns = switch_columns();
        columns[1].class = Class::Timestamptz;
        columns[1].type_name = "timestamp with time zone".to_owned();
        let refusal = |value: &str| {
            let filter = parse(&format!("level.gte.{value}")).expect("a filter");
            let question = filter.question(&table(), &columns).expect("columns").expect("a question");
            question.refusal(&format!("invalid input syntax: \"{value}\""))
        };

        for (value, written) in [
            ("2026-01-01T00:00:00 01:00", "; a + in an address is written %2B: 2026-01-01T00:00:00%2B01:00"),
            ("2026-01-01 13:00 01", "; a + in an address is written %2B: 2026-01-01%2013:00%2B01"),
            ("2026-01-01 13:00x", "write a value of type timestamp with time zone"),
            ("yesterday 99", "write a value of type timestamp with time zone"),
        ] {
            assert!(refusal(value).ends_with(written), "{}", refusal(value));
        }
    }

    #[test]
    fn several_filters_together_keep_the_bounds_of_one() {
        let one = parse(&format!("or({})", vec!["level.eq.1"; CONDITIONS_MAX].join(","))).expect("a filter");
        let both = Expression::and(vec![one.clone(), one.clone()]);

        assert!(one.bind(&table(), &switch_columns(), None).is_ok());
        assert!(both.bind(&table(), &switch_columns(), None).is_err());
        let patterns = format!("or({})", ["name.match.a"; REGEXES_MAX + 1].join(","));
        assert!(bound(&patterns).is_err_and(|error| error.contains("match")));
    }
}
