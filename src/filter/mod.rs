//! Row filters in PostgREST's words: parsed, bound to the columns of a table, and then decided twice: by PostgreSQL over the rows of a
//! snapshot ([`Filter::sql`]), and here over the rows of the stream ([`Filter::judge`]). Both have to say the same, or a subscriber's
//! picture drifts from the table. They do because
//!
//! - PostgreSQL itself reads the literals ([`Expression::question`]), as the column's type and with the settings that the log's triggers
//!   pin. What it wrote back is what both sides compare with; only literals that can be read in one way are taken without asking.
//! - both compare as the type does ([`value`]): decimals digit by digit, floats with NaN as the greatest, moments by their parts, enums
//!   by the order of their labels, texts byte by byte where the collation says that this is right. Null is neither true nor false.
//! - what depends on a locale, or on more of PostgreSQL than is told here, is refused when the filter is bound, with the remedy. Nothing
//!   is guessed. The property test `tests/gateway/filters.rs` compares the two on whatever it can think of.
//!
//! A row that was written before a column was renamed or retyped may lack the column, or hold a value of another form; then `judge` says
//! that it cannot decide. The words are told to users in `docs/filters.md`.

mod column;
mod parse;
mod pattern;
mod value;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use regex::Regex;

pub use column::{Class, Collation, Column, Ctype, IndexKey, columns, columns_sql};
pub use parse::{CONDITIONS_MAX, DEPTH_MAX, Expression, LIST_MAX, WHERE_BYTES_MAX, parse};
pub use pattern::PATTERN_BYTES_MAX;

use crate::change::{Fields, TableName};
use column::quoted;
use parse::{Condition, Operator, Tree, Word, list, shown};
use pattern::{Case, Like, without_strange_letters};
use value::{Datum, Literal, string};

/// How many values all conditions of a filter may have together: each is a parameter of a statement, which takes 65535.
pub const VALUES_MAX: usize = 10_000;
/// How many literals PostgreSQL is asked to read for one filter: each is a column of the answer, which has at most 1664.
pub const QUESTIONS_MAX: usize = 1600;
/// How many regular expressions a filter may have: each may take some memory, and time for each row.
pub const REGEXES_MAX: usize = 8;
/// How many columns a message lists.
const COLUMNS_LISTED_MAX: usize = 20;

/// What PostgreSQL is asked before an expression can be bound: how it reads the literals.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Question {
    /// One statement that gives one row of texts. It takes its parameters as texts, and the settings of the log's triggers: `TimeZone`
    /// UTC, `DateStyle` ISO, MDY, `IntervalStyle` postgres, `bytea_output` hex, `extra_float_digits` 1.
    pub sql: String,
    /// Its parameters.
    pub params: Vec<String>,
    /// What each parameter is for.
    asked: Vec<Asked>,
    table: TableName,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Asked {
    column: String,
    type_name: String,
    text: String,
    /// The column of the answer.
    sql: String,
    pattern: bool,
}

impl Question {
    fn new(table: &TableName, asked: Vec<Asked>) -> Question {
        let columns: Vec<&str> = asked.iter().map(|asked| asked.sql.as_str()).collect();
        let params = asked.iter().map(|asked| asked.text.clone()).collect();
        Question { sql: format!("select {}", columns.join(", ")), params, asked, table: table.clone() }
    }

    /// What a client is told when PostgreSQL answers the question with this error.
    pub fn refusal(&self, message: &str) -> String {
        let named = |asked: &&Asked| message.contains(&format!("\"{}\"", asked.text));
        let only = self.asked.first().filter(|_| self.asked.len() == 1);
        match self.asked.iter().find(named).or(only) {
            Some(asked) if asked.pattern => format!(
                "PostgreSQL refuses the regular expression {} for the column {:?} of {}: {message}; write another one",
                shown(&asked.text),
                asked.column,
                self.table
            ),
            Some(asked) => format!(
                "PostgreSQL refuses {} for the column {:?} of {}: {message}; write a value of type {}",
                shown(&asked.text),
                asked.column,
                self.table,
                asked.type_name
            ),
            None => {
                let mut columns: Vec<String> = self.asked.iter().map(|asked| format!("{:?}", asked.column)).collect();
                columns.dedup();
                columns.truncate(COLUMNS_LISTED_MAX);
                format!(
                    "PostgreSQL refuses a value of the filter for {} ({}): {message}; write values of the columns' types",
                    self.table,
                    list(columns)
                )
            }
        }
    }
}

/// Why a row cannot be judged: it was written when the table had other columns.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Undecidable {
    /// The column that the row lacks, or whose value has not the form of its type.
    pub column: String,
}

impl fmt::Display for Undecidable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the row has no value of the column {:?} as the table has it now", self.column)
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

/// A filter, bound to the columns of a table. Filters are equal where they judge alike by their text and their columns.
#[derive(Clone)]
pub struct Filter(Arc<Bound>);

struct Bound {
    root: Node,
    /// The columns that it looks at, in the order of its conditions.
    columns: Vec<Column>,
    /// The canonical text.
    text: String,
}

enum Node {
    All(Vec<Node>),
    Any(Vec<Node>),
    Not(Box<Node>),
    Test(Test),
}

struct Test {
    column: Column,
    /// Where the column usually stands in a row.
    place: usize,
    check: Check,
}

enum Check {
    Compare(Operator, Literal),
    /// Sorted, each value once.
    In(Vec<Literal>),
    Null,
    /// `is.true`, `is.false` and `is.unknown`
    Is(Option<bool>),
    Like(Operator, Like, String),
    Regex(Operator, Regex, String),
}

impl Expression {
    /// What PostgreSQL has to be asked before the expression can be bound to these columns; none where all literals are plain.
    pub fn question(&self, table: &TableName, columns: &[Column]) -> Result<Option<Question>, String> {
        let mut binder = Binder::new(table, columns, None);
        binder.node(&self.0)?;
        Ok((!binder.asked.is_empty()).then(|| Question::new(table, binder.asked)))
    }

    /// The filter; `answer` is the one row that the question gave, where there was one.
    pub fn bind(
        &self,
        table: &TableName,
        columns: &[Column],
        answer: Option<Vec<Option<String>>>,
    ) -> Result<Filter, String> {
        let mut binder = Binder::new(table, columns, answer);
        let root = binder.node(&self.0)?;
        if !binder.asked.is_empty() || binder.answers.next().is_some() {
            return Err(format!("the columns of {table} changed while the filter was read; subscribe again"));
        }
        let text = root.to_string();
        let mut columns = Vec::new();
        root.columns(&mut columns);
        Ok(Filter(Arc::new(Bound { root, columns, text })))
    }
}

/// Binds an expression, and gathers what PostgreSQL has to be asked as far as it has not answered.
struct Binder<'a> {
    table: &'a TableName,
    columns: &'a [Column],
    answers: std::vec::IntoIter<Option<String>>,
    asked: Vec<Asked>,
    conditions: usize,
    values: usize,
    regexes: usize,
}

impl<'a> Binder<'a> {
    fn new(table: &'a TableName, columns: &'a [Column], answer: Option<Vec<Option<String>>>) -> Self {
        let answers = answer.unwrap_or_default().into_iter();
        Binder { table, columns, answers, asked: Vec::new(), conditions: 0, values: 0, regexes: 0 }
    }

    fn node(&mut self, tree: &Tree) -> Result<Node, String> {
        Ok(match tree {
            Tree::All(trees) | Tree::Any(trees) if trees.len() == 1 => self.node(&trees[0])?,
            Tree::All(trees) => Node::All(trees.iter().map(|tree| self.node(tree)).collect::<Result<_, _>>()?),
            Tree::Any(trees) => Node::Any(trees.iter().map(|tree| self.node(tree)).collect::<Result<_, _>>()?),
            Tree::Not(tree) => self.node(tree)?.negated(),
            Tree::Condition(condition) => self.condition(condition)?,
        })
    }

    fn condition(&mut self, condition: &Condition) -> Result<Node, String> {
        self.count(condition)?;
        let (place, column) = self.column(condition)?;
        self.check_operator(column, condition.operator)?;
        let test = |check| Node::Test(Test { column: column.clone(), place, check });
        let Some(word) = condition.values.first().filter(|_| condition.operator != Operator::In) else {
            let literals = condition.values.iter().map(|word| self.literal(column, condition.operator, word));
            let mut literals = literals.collect::<Result<Vec<_>, _>>()?;
            literals.sort_by(|a, b| a.value.cmp(&b.value));
            literals.dedup_by(|a, b| a.value == b.value);
            return Ok(test(Check::In(literals)));
        };
        Ok(match condition.operator {
            Operator::Is => match self.is(column, word)? {
                Is::Null => test(Check::Null),
                Is::NotNull => test(Check::Null).negated(),
                Is::Truth(truth) => test(Check::Is(truth)),
            },
            Operator::Like | Operator::Ilike => test(self.like(column, condition.operator, word)?),
            Operator::Match | Operator::Imatch => test(self.regex(column, condition.operator, word)?),
            operator => test(Check::Compare(operator, self.literal(column, operator, word)?)),
        })
    }

    fn count(&mut self, condition: &Condition) -> Result<(), String> {
        self.conditions += 1;
        self.values += condition.values.len();
        if self.conditions > CONDITIONS_MAX || self.values > VALUES_MAX {
            return Err(format!(
                "the filter for {} has more than {CONDITIONS_MAX} conditions or {VALUES_MAX} values; use fewer, or follow more rows and choose among them in the client",
                self.table
            ));
        }
        Ok(())
    }

    fn column(&self, condition: &Condition) -> Result<(usize, &'a Column), String> {
        let found = self.columns.iter().enumerate().find(|(_, column)| column.name == condition.column);
        found.ok_or_else(|| {
            let names = self.columns.iter().take(COLUMNS_LISTED_MAX).map(|column| format!("{:?}", column.name));
            let more = if self.columns.len() > COLUMNS_LISTED_MAX { ", and others" } else { "" };
            format!("{} has no column {}; its columns are {}{more}", self.table, shown(&condition.column), list(names))
        })
    }

    fn check_operator(&self, column: &Column, operator: Operator) -> Result<(), String> {
        let operators = column.operators();
        if operators.contains(&operator) {
            return Ok(());
        }
        let (name, table, type_name, word) = (&column.name, self.table, &column.type_name, operator.name());
        let known = match operators.as_slice() {
            [only] => format!("use {}", only.name()),
            operators => format!("use one of {}", list(operators.iter().map(|operator| operator.name()))),
        };
        let reason = match &column.class {
            Class::Text(collation) | Class::Char(collation) if !collation.deterministic => {
                "under a collation that is not deterministic"
            }
            Class::Text(collation) if !collation.utf8 => "in a database whose encoding is not UTF8",
            Class::Text(_) if matches!(operator, Operator::Ilike | Operator::Imatch) => {
                "under a collation whose \"i\" may have other cases"
            }
            Class::Text(_) => "under a collation that sorts by language",
            _ => {
                let remedy = match operators.as_slice() {
                    [Operator::Is] => format!(
                        "write {name}.is.null or {name}.not.is.null, or keep what you ask for in a column of its own (also a generated one)"
                    ),
                    _ => known,
                };
                return Err(format!(
                    "the column {name:?} of {table} is of type {type_name}, of which the stream cannot decide {word}; {remedy}"
                ));
            }
        };
        Err(format!(
            "the column {name:?} of {table} is of type {type_name} {reason}, where the stream cannot decide {word}; {known}, or give the column collate \"C\""
        ))
    }

    fn is(&self, column: &Column, word: &Word) -> Result<Is, String> {
        let is = match word.text.to_ascii_lowercase().as_str() {
            "null" => return Ok(Is::Null),
            "not_null" => return Ok(Is::NotNull),
            "true" => Is::Truth(Some(true)),
            "false" => Is::Truth(Some(false)),
            "unknown" => Is::Truth(None),
            _ => {
                return Err(format!(
                    "is takes null, not_null, true, false or unknown, and not {}; write {}.eq.… for a value",
                    shown(&word.text),
                    column.name
                ));
            }
        };
        if column.class == Class::Bool {
            return Ok(is);
        }
        Err(format!(
            "the column {:?} of {} is of type {}, which is never {}; write is.null or is.not_null, or compare with eq",
            column.name, self.table, column.type_name, word.text
        ))
    }

    fn like(&self, column: &Column, operator: Operator, word: &Word) -> Result<Check, String> {
        let pattern = word.text.replace('*', "%");
        let case = match (operator, column.ctype()) {
            (Operator::Like, _) => Case::Sensitive,
            (_, Ctype::C) => Case::Ascii,
            _ => Case::Replacing,
        };
        let like = Like::new(&pattern, case).map_err(|reason| self.about(column, &reason))?;
        Ok(Check::Like(operator, like, pattern))
    }

    fn regex(&mut self, column: &Column, operator: Operator, word: &Word) -> Result<Check, String> {
        self.regexes += 1;
        if self.regexes > REGEXES_MAX {
            return Err(format!(
                "the filter for {} has more than {REGEXES_MAX} conditions with match or imatch; join patterns with |, or use like",
                self.table
            ));
        }
        let regex = pattern::regex(&word.text, operator == Operator::Imatch, column.ctype())
            .map_err(|reason| self.about(column, &reason))?;
        // PostgreSQL has to be able to compile it too; better that it says so now than in the middle of a snapshot.
        let sql =
            |number| format!("(''::pg_catalog.text {} ${number}::pg_catalog.text)::pg_catalog.text", operator.sql());
        self.answer(column, &word.text, true, sql)?;
        Ok(Check::Regex(operator, regex, word.text.clone()))
    }

    fn literal(&mut self, column: &Column, operator: Operator, word: &Word) -> Result<Literal, String> {
        let textual = matches!(column.class, Class::Text(_) | Class::Char(_));
        if !textual && !word.quoted && word.text.eq_ignore_ascii_case("null") {
            return Err(format!(
                "no value equals null, so {0}.{1} with null is never true; write {0}.is.null or {0}.not.is.null",
                column.name,
                operator.name()
            ));
        }
        if let Some(literal) = Literal::known(&column.class, &word.text) {
            return Ok(literal);
        }
        if let Class::Enum(labels) = &column.class {
            let labels = labels.iter().take(COLUMNS_LISTED_MAX).map(|label| format!("{label:?}"));
            let reason = format!(
                "the type {} has no label {}; its labels are {}",
                column.type_name,
                shown(&word.text),
                list(labels)
            );
            return Err(self.about(column, &reason));
        }
        let sql =
            |number| format!("pg_catalog.to_json(${number}::pg_catalog.text::{})::pg_catalog.text", column.cast());
        match self.answer(column, &word.text, false, sql)? {
            // Only to have one of any kind: the answers are still to come.
            None => Ok(Literal { value: Datum::Bool(false), text: String::new() }),
            Some(json) => Literal::read(&column.class, &json).ok_or_else(|| {
                let reason = format!(
                    "PostgreSQL reads {} as {json}, which has not the form of {}",
                    shown(&word.text),
                    column.type_name
                );
                self.about(column, &format!("{reason}; write another value"))
            }),
        }
    }

    /// What PostgreSQL answered, if it was asked.
    fn answer(
        &mut self,
        column: &Column,
        text: &str,
        pattern: bool,
        sql: impl FnOnce(usize) -> String,
    ) -> Result<Option<String>, String> {
        if let Some(answer) = self.answers.next() {
            return Ok(Some(answer.unwrap_or_default()));
        }
        if self.asked.len() == QUESTIONS_MAX {
            return Err(format!(
                "the filter for {} has more than {QUESTIONS_MAX} values that PostgreSQL has to read; use fewer, or write them in their plain form",
                self.table
            ));
        }
        self.asked.push(Asked {
            column: column.name.clone(),
            type_name: column.type_name.clone(),
            text: text.to_owned(),
            sql: sql(self.asked.len() + 1),
            pattern,
        });
        Ok(None)
    }

    fn about(&self, column: &Column, reason: &str) -> String {
        format!("the filter on the column {:?} of {} cannot be used: {reason}", column.name, self.table)
    }
}

enum Is {
    Null,
    NotNull,
    Truth(Option<bool>),
}

impl Filter {
    /// Whether the row belongs to the filter: only where SQL would say true.
    pub fn judge(&self, row: &Fields<'_>) -> Result<bool, Undecidable> {
        self.0.root.judge(row).map(|truth| truth == Some(true))
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

/// True, false or, where null leaves it open, none.
type Truth = Option<bool>;

impl Node {
    /// Twice is not at all, also where a truth is open.
    fn negated(self) -> Node {
        match self {
            Node::Not(node) => *node,
            node => Node::Not(Box::new(node)),
        }
    }

    fn judge(&self, row: &Fields<'_>) -> Result<Truth, Undecidable> {
        match self {
            Node::All(nodes) => judge_until(false, nodes, row),
            Node::Any(nodes) => judge_until(true, nodes, row),
            Node::Not(node) => Ok(node.judge(row)?.map(|truth| !truth)),
            Node::Test(test) => test.judge(row),
        }
    }

    fn sql(&self, alias: &str, params: &mut Vec<String>) -> String {
        let mut joined = |nodes: &[Node], word: &str, none: &str| match nodes {
            [] => none.to_owned(),
            nodes => {
                let conditions: Vec<String> = nodes.iter().map(|node| node.sql(alias, params)).collect();
                format!("({})", conditions.join(word))
            }
        };
        match self {
            Node::All(nodes) => joined(nodes, " and ", "true"),
            Node::Any(nodes) => joined(nodes, " or ", "false"),
            Node::Not(node) => format!("(not {})", node.sql(alias, params)),
            Node::Test(test) => test.sql(alias, params),
        }
    }

    fn route(&self) -> Option<(&Column, &[Literal])> {
        match self {
            Node::All(nodes) => nodes.iter().filter_map(Node::route).min_by_key(|(_, literals)| literals.len()),
            Node::Test(Test { column, check: Check::Compare(Operator::Eq, literal), .. }) => {
                Some((column, std::slice::from_ref(literal)))
            }
            Node::Test(Test { column, check: Check::In(literals), .. }) => Some((column, literals)),
            _ => None,
        }
    }

    fn columns(&self, columns: &mut Vec<Column>) {
        match self {
            Node::All(nodes) | Node::Any(nodes) => nodes.iter().for_each(|node| node.columns(columns)),
            Node::Not(node) => node.columns(columns),
            Node::Test(test) if columns.contains(&test.column) => {}
            Node::Test(test) => columns.push(test.column.clone()),
        }
    }
}

/// Judges the nodes until one decides for all: a false one in `and`, a true one in `or`, whatever the others are.
fn judge_until(decisive: bool, nodes: &[Node], row: &Fields<'_>) -> Result<Truth, Undecidable> {
    let mut truth = Ok(Some(!decisive));
    for node in nodes {
        match node.judge(row) {
            Ok(Some(decided)) if decided == decisive => return Ok(Some(decided)),
            Ok(Some(_)) => {}
            Ok(None) if truth.is_ok() => truth = Ok(None),
            Ok(None) => {}
            Err(undecidable) => truth = Err(undecidable),
        }
    }
    truth
}

impl Test {
    fn judge(&self, row: &Fields<'_>) -> Result<Truth, Undecidable> {
        let undecidable = || Undecidable { column: self.column.name.clone() };
        let json = match row.0.get(self.place) {
            Some((name, json)) if *name == self.column.name => json,
            _ => row
                .0
                .iter()
                .find(|(name, _)| *name == self.column.name)
                .map(|(_, json)| json)
                .ok_or_else(undecidable)?,
        };
        if json.get() == "null" {
            return Ok(self.check.of_null());
        }
        let truth = match &self.check {
            Check::Null => Some(false),
            Check::Like(_, like, _) => string(json.get()).map(|text| like.matches(&text)),
            Check::Regex(_, regex, _) => string(json.get()).map(|text| regex.is_match(&text)),
            check => Datum::read(&self.column.class, json.get()).map(|value| check.of(&value)),
        };
        truth.map(Some).ok_or_else(undecidable)
    }

    fn sql(&self, alias: &str, params: &mut Vec<String>) -> String {
        let column = self.column.sql(alias);
        let mut parameter = |text: &str, cast: &str| {
            params.push(text.to_owned());
            let text = format!("${}::pg_catalog.text", params.len());
            if cast == "pg_catalog.text" { text } else { format!("{text}::{cast}") }
        };
        match &self.check {
            Check::Compare(operator, literal) => {
                format!("({column} {} {})", operator.sql(), parameter(&literal.text, self.column.cast()))
            }
            Check::In(literals) if literals.is_empty() => "false".to_owned(),
            Check::In(literals) => {
                let values: Vec<String> =
                    literals.iter().map(|literal| parameter(&literal.text, self.column.cast())).collect();
                format!("({column} in ({}))", values.join(", "))
            }
            Check::Null => self.null_sql(alias),
            Check::Is(Some(truth)) => format!("({column} is {truth})"),
            Check::Is(None) => format!("({column} is unknown)"),
            Check::Like(operator, like, pattern) => {
                let column = if like.replaces() { without_strange_letters(&column) } else { column };
                format!("({column} {} {})", operator.sql(), parameter(pattern, "pg_catalog.text"))
            }
            Check::Regex(operator, _, pattern) => {
                format!("({column} {} {})", operator.sql(), parameter(pattern, "pg_catalog.text"))
            }
        }
    }

    fn null_sql(&self, alias: &str) -> String {
        let column = format!("{}.{}", quoted(alias), quoted(&self.column.name));
        match self.column.class {
            // A row's JSON does not tell the two nulls apart; neither may SQL.
            Class::Json { binary: true } => format!("(coalesce(pg_catalog.jsonb_typeof({column}), 'null') = 'null')"),
            Class::Json { binary: false } => format!("(coalesce(pg_catalog.json_typeof({column}), 'null') = 'null')"),
            // A composite value that has only nulls "is null", and is not null in JSON.
            Class::Other => format!("({column} is not distinct from null)"),
            _ => format!("({column} is null)"),
        }
    }
}

impl Check {
    fn of_null(&self) -> Truth {
        match self {
            Check::Null | Check::Is(None) | Check::Compare(Operator::IsDistinct, _) => Some(true),
            Check::Is(Some(_)) => Some(false),
            Check::In(literals) if literals.is_empty() => Some(false),
            _ => None,
        }
    }

    /// Of a value that is not null; patterns are matched elsewhere.
    fn of(&self, value: &Datum<'_>) -> bool {
        match self {
            Check::Compare(operator, literal) => {
                let order = value.cmp(&literal.value);
                match operator {
                    Operator::Eq => order.is_eq(),
                    Operator::Gt => order.is_gt(),
                    Operator::Gte => order.is_ge(),
                    Operator::Lt => order.is_lt(),
                    Operator::Lte => order.is_le(),
                    _ => order.is_ne(),
                }
            }
            Check::In(literals) => literals.binary_search_by(|literal| literal.value.cmp(value)).is_ok(),
            Check::Is(truth) => *truth == Some(*value == Datum::Bool(true)),
            Check::Null | Check::Like(..) | Check::Regex(..) => false,
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let write_all = |f: &mut fmt::Formatter<'_>, word: &str, nodes: &[Node]| {
            write!(f, "{word}(")?;
            for (index, node) in nodes.iter().enumerate() {
                write!(f, "{}{node}", if index == 0 { "" } else { "," })?;
            }
            f.write_str(")")
        };
        match self {
            Node::All(nodes) => write_all(f, "and", nodes),
            Node::Any(nodes) => write_all(f, "or", nodes),
            Node::Not(node) => match &**node {
                Node::Test(test) => write!(f, "{}.not.{}", word(&test.column.name, ""), test.check),
                node => write!(f, "not.{node}"),
            },
            Node::Test(test) => write!(f, "{}.{}", word(&test.column.name, ""), test.check),
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = |text: &str| word(text, "-+.:");
        match self {
            Check::Compare(operator, literal) => write!(f, "{}.{}", operator.name(), value(&literal.text)),
            Check::In(literals) => {
                let values: Vec<String> = literals.iter().map(|literal| value(&literal.text)).collect();
                write!(f, "in.({})", values.join(","))
            }
            Check::Null => f.write_str("is.null"),
            Check::Is(Some(truth)) => write!(f, "is.{truth}"),
            Check::Is(None) => f.write_str("is.unknown"),
            Check::Like(operator, _, pattern) | Check::Regex(operator, _, pattern) => {
                write!(f, "{}.{}", operator.name(), value(pattern))
            }
        }
    }
}

/// A value or a name, in quotes where it holds other signs than letters, digits and `also`.
fn word(text: &str, also: &str) -> String {
    let plain = |char: char| char.is_alphanumeric() || char == '_' || also.contains(char);
    match !text.is_empty() && text != "null" && text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
    }
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
        filter(text).judge(&fields(&row))
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
        let undecidable = Err(Undecidable { column: "level".to_owned() });
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
    fn several_filters_together_keep_the_bounds_of_one() {
        let one = parse(&format!("or({})", vec!["level.eq.1"; CONDITIONS_MAX].join(","))).expect("a filter");
        let both = Expression::and(vec![one.clone(), one.clone()]);

        assert!(one.bind(&table(), &switch_columns(), None).is_ok());
        assert!(both.bind(&table(), &switch_columns(), None).is_err());
        let patterns = format!("or({})", ["name.match.a"; REGEXES_MAX + 1].join(","));
        assert!(bound(&patterns).is_err_and(|error| error.contains("match")));
    }
}
