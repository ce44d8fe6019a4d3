//! What a bound filter is made of: conditions on columns, each judged over a row and told in SQL.

use std::fmt;

use crate::change::Fields;
use crate::names::quoted;

use super::Undecidable;
use super::column::{Class, Column};
use super::parse::Operator;
use super::pattern::{Compiled, Like, without_strange_letters};
use super::value::{Datum, Literal, string};
use super::weight::{Meter, Weight};

pub(super) enum Node {
    All(Vec<Node>),
    Any(Vec<Node>),
    Not(Box<Node>),
    Test(Test),
}

pub(super) struct Test {
    pub column: Column,
    /// Where the column usually stands in a row.
    pub place: usize,
    pub check: Check,
    pub weight: Weight,
}

pub(super) enum Check {
    Compare(Operator, Literal),
    /// Sorted, each value once.
    In(Vec<Literal>),
    Null,
    /// `is.true`, `is.false` and `is.unknown`
    Is(Option<bool>),
    Like(Operator, Like, String),
    Regex(Operator, Compiled, String),
}

/// True, false or, where null leaves it open, none.
pub(super) type Truth = Option<bool>;

impl Node {
    /// Twice is not at all, also where a truth is open.
    pub fn negated(self) -> Node {
        match self {
            Node::Not(node) => *node,
            node => Node::Not(Box::new(node)),
        }
    }

    pub fn judge(&self, row: &Fields<'_>, meter: &mut Meter<'_>) -> Result<Truth, Undecidable> {
        match self {
            Node::All(nodes) => judge_until(false, nodes, row, meter),
            Node::Any(nodes) => judge_until(true, nodes, row, meter),
            Node::Not(node) => Ok(node.judge(row, meter)?.map(|truth| !truth)),
            Node::Test(test) => test.judge(row, meter),
        }
    }

    /// All conditions.
    pub fn tests<'a>(&'a self, found: &mut Vec<&'a Test>) {
        match self {
            Node::All(nodes) | Node::Any(nodes) => nodes.iter().for_each(|node| node.tests(found)),
            Node::Not(node) => node.tests(found),
            Node::Test(test) => found.push(test),
        }
    }

    pub fn sql(&self, alias: &str, params: &mut Vec<String>) -> String {
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

    pub fn route(&self) -> Option<(&Column, &[Literal])> {
        match self {
            Node::All(nodes) => nodes.iter().filter_map(Node::route).min_by_key(|(_, literals)| literals.len()),
            Node::Test(Test { column, check: Check::Compare(Operator::Eq, literal), .. }) => {
                Some((column, std::slice::from_ref(literal)))
            }
            Node::Test(Test { column, check: Check::In(literals), .. }) => Some((column, literals)),
            _ => None,
        }
    }

    pub fn columns(&self, columns: &mut Vec<Column>) {
        match self {
            Node::All(nodes) | Node::Any(nodes) => nodes.iter().for_each(|node| node.columns(columns)),
            Node::Not(node) => node.columns(columns),
            Node::Test(test) if columns.contains(&test.column) => {}
            Node::Test(test) => columns.push(test.column.clone()),
        }
    }
}

/// Judges the nodes until one decides for all: a false one in `and`, a true one in `or`, whatever the others are.
fn judge_until(decisive: bool, nodes: &[Node], row: &Fields<'_>, meter: &mut Meter<'_>) -> Result<Truth, Undecidable> {
    let mut truth = Ok(Some(!decisive));
    for node in nodes {
        match node.judge(row, meter) {
            Ok(Some(decided)) if decided == decisive => return Ok(Some(decided)),
            Ok(Some(_)) => {}
            Ok(None) if truth.is_ok() => truth = Ok(None),
            Ok(None) => {}
            Err(Undecidable::TooHeavy) => return Err(Undecidable::TooHeavy),
            Err(undecidable) => truth = Err(undecidable),
        }
    }
    truth
}

impl Test {
    fn judge(&self, row: &Fields<'_>, meter: &mut Meter<'_>) -> Result<Truth, Undecidable> {
        let undecidable = || Undecidable::Column(self.column.name.clone());
        let json = match row.0.get(self.place) {
            Some((name, json)) if *name == self.column.name => json,
            _ => row
                .0
                .iter()
                .find(|(name, _)| *name == self.column.name)
                .map(|(_, json)| json)
                .ok_or_else(undecidable)?,
        };
        meter.spend(self.weight.steps(json.get().len()))?;
        if json.get() == "null" {
            return Ok(self.check.of_null());
        }
        let truth = match &self.check {
            Check::Null => Some(false),
            Check::Like(_, like, _) => string(json.get()).map(|text| like.matches(&text)),
            Check::Regex(_, regex, _) => string(json.get()).map(|text| regex.regex.is_match(&text)),
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
            Node::Test(test) => test.fmt(f),
        }
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", word(&self.column.name, ""), self.check)
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
