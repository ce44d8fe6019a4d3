//! From an expression to a filter: looks the columns up, has the literals read, and refuses what the stream cannot decide alike.

use crate::change::TableName;
use crate::names::{self, ident, quoted};

use super::Filter;
use super::column::{Class, Column, Ctype};
use super::node::{Check, Node, Test};
use super::parse::{CONDITIONS_MAX, Condition, Expression, Operator, Tree, Word, blank_at_an_end, list, shown};
use super::pattern::{self, Case, Like};
use super::value::{Datum, Literal, exponent};
use super::weight::{FILTER_WEIGHT_MAX, Weight};

/// How many values all conditions of a filter may have together: each is a parameter of a statement, which takes 65535.
pub const VALUES_MAX: usize = 10_000;
/// How many literals PostgreSQL is asked to read for one filter: each is a column of the answer, which has at most 1664.
pub const QUESTIONS_MAX: usize = 1600;
/// How many regular expressions a filter may have: each may take some memory, and time for each row.
pub const REGEXES_MAX: usize = 8;
/// The largest exponent, up or down, of a literal for a `numeric`: PostgreSQL writes it out with as many digits.
pub const NUMERIC_EXPONENT_MAX: u64 = 1_000;
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
    /// Whether the answer is the same whenever it is asked: "now" is a moment too.
    pub lasting: bool,
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
    lasting: bool,
}

impl Question {
    fn new(table: &TableName, asked: Vec<Asked>) -> Question {
        let columns: Vec<&str> = asked.iter().map(|asked| asked.sql.as_str()).collect();
        let params = asked.iter().map(|asked| asked.text.clone()).collect();
        let lasting = asked.iter().all(|asked| asked.lasting);
        Question { sql: format!("select {}", columns.join(", ")), params, lasting, asked, table: table.clone() }
    }

    /// What a client is told when PostgreSQL answers the question with this error.
    pub fn refusal(&self, message: &str) -> String {
        let named = |asked: &&Asked| message.contains(&format!("\"{}\"", asked.text));
        let only = self.asked.first().filter(|_| self.asked.len() == 1);
        match self.asked.iter().find(named).or(only) {
            Some(asked) if asked.pattern => format!(
                "PostgreSQL refuses the regular expression {} for the column {} of {}: {message}; write another one",
                shown(&asked.text),
                quoted(&asked.column),
                self.table.sql()
            ),
            Some(asked) => format!(
                "PostgreSQL refuses {} for the column {} of {}: {message}; write a value of type {}{}",
                shown(&asked.text),
                quoted(&asked.column),
                self.table.sql(),
                asked.type_name,
                lost_plus(&asked.text).unwrap_or_default()
            ),
            None => {
                let mut columns: Vec<String> = self.asked.iter().map(|asked| quoted(&asked.column)).collect();
                columns.dedup();
                columns.truncate(COLUMNS_LISTED_MAX);
                format!(
                    "PostgreSQL refuses a value of the filter for {} ({}): {message}; write values of the columns' types",
                    self.table.sql(),
                    list(columns)
                )
            }
        }
    }
}

/// What to write if the text looks like a time whose offset lost its plus sign: in an address that sign is a blank.
fn lost_plus(text: &str) -> Option<String> {
    let (time, offset) = text.rsplit_once(' ')?;
    let digits = |text: &str| text.chars().filter(char::is_ascii_digit).count();
    let is_offset = digits(offset) >= 2 && offset.chars().all(|char| char.is_ascii_digit() || char == ':');
    // Behind a date alone it may be a time as well.
    let has_time = digits(time) >= 3 && time.contains([':', 'T']);
    (is_offset && has_time)
        .then(|| format!("; a + in an address is written %2B: {}%2B{offset}", time.trim_end().replace(' ', "%20")))
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
            return Err(format!("the columns of {} changed while the filter was read; subscribe again", table.sql()));
        }
        let filter = Filter::new(root);
        if filter.weight() <= FILTER_WEIGHT_MAX {
            return Ok(filter);
        }
        let (part, weight) = filter.heaviest().expect("what has no conditions weighs nothing");
        Err(format!(
            "the filter for {} weighs {} and may weigh {FILTER_WEIGHT_MAX}; the heaviest of its conditions is {} with {weight}; use fewer or shorter values and patterns, or follow more rows and choose among them in the client",
            table.sql(),
            filter.weight(),
            shown(&part)
        ))
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
        self.check_blanks(column, condition)?;
        let test = |check| Node::Test(Test { column: column.clone(), place, weight: Weight::of(&check), check });
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
                self.table.sql()
            ));
        }
        Ok(())
    }

    fn column(&self, condition: &Condition) -> Result<(usize, &'a Column), String> {
        let found = self.columns.iter().enumerate().find(|(_, column)| column.name == condition.column);
        found.ok_or_else(|| {
            let names = self.columns.iter().take(COLUMNS_LISTED_MAX).map(|column| quoted(&column.name));
            let more = if self.columns.len() > COLUMNS_LISTED_MAX { ", and others" } else { "" };
            format!(
                "{} has no column {}; its columns are {}{more}",
                self.table.sql(),
                quoted(&names::shown(&condition.column)),
                list(names)
            )
        })
    }

    fn check_operator(&self, column: &Column, operator: Operator) -> Result<(), String> {
        let operators = column.operators();
        if operators.contains(&operator) {
            return Ok(());
        }
        let (name, table) = (quoted(&column.name), self.table.sql());
        let (type_name, word) = (&column.type_name, operator.name());
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
                    [Operator::Is] if is_citext(column) => without_case(&column.name, &table, operator),
                    [Operator::Is] => {
                        let name = ident(&column.name);
                        format!(
                            "write {name}.is.null or {name}.not.is.null, or keep what you ask for in a column of its own (also a generated one)"
                        )
                    }
                    _ => known,
                };
                return Err(format!(
                    "the column {name} of {table} is of type {type_name}, of which the stream cannot decide {word}; {remedy}"
                ));
            }
        };
        Err(format!(
            "the column {name} of {table} is of type {type_name} {reason}, where the stream cannot decide {word}; {known}, or give the column collate \"C\""
        ))
    }

    /// An unquoted text with a blank at an end was hardly meant so; other types do not mind the blank.
    fn check_blanks(&self, column: &Column, condition: &Condition) -> Result<(), String> {
        let texts = matches!(column.class, Class::Text(_)) && condition.operator != Operator::Is;
        let mut words = condition.values.iter().filter(|word| texts && !word.quoted);
        let mistake = words.find_map(|word| blank_at_an_end(&word.text, ""));
        mistake.map_or(Ok(()), |mistake| Err(self.about(column, &mistake)))
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
                    ident(&column.name)
                ));
            }
        };
        if column.class == Class::Bool {
            return Ok(is);
        }
        Err(format!(
            "the column {} of {} is of type {}, which is never {}; write is.null or is.not_null, or compare with eq",
            quoted(&column.name),
            self.table.sql(),
            column.type_name,
            word.text
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
                self.table.sql()
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
                ident(&column.name),
                operator.name()
            ));
        }
        if let Some(literal) = Literal::known(&column.class, &word.text) {
            return Ok(literal);
        }
        if column.class == Class::Numeric && exponent(&word.text) > NUMERIC_EXPONENT_MAX {
            let reason = format!(
                "the value {} has an exponent beyond {NUMERIC_EXPONENT_MAX}, and is written out with as many digits; compare with another number",
                shown(&word.text)
            );
            return Err(self.about(column, &reason));
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
                self.table.sql()
            ));
        }
        self.asked.push(Asked {
            column: column.name.clone(),
            type_name: column.type_name.clone(),
            text: text.to_owned(),
            sql: sql(self.asked.len() + 1),
            pattern,
            lasting: !matches!(column.class, Class::Timestamp | Class::Timestamptz | Class::Date | Class::Time),
        });
        Ok(None)
    }

    fn about(&self, column: &Column, reason: &str) -> String {
        let (name, table) = (quoted(&column.name), self.table.sql());
        format!("the filter on the column {name} of {table} cannot be used: {reason}")
    }
}

/// Whether it is of the type of the extension `citext`, or of a domain over it.
fn is_citext(column: &Column) -> bool {
    column.class == Class::Other && column.type_name.rsplit('.').next() == Some("citext")
}

/// How to ask for a text whatever its capitals: what is a letter's other case depends on the locale, so PostgreSQL has to say it.
fn without_case(column: &str, table: &str, operator: Operator) -> String {
    let small = ident(&format!("{column}_lower")).into_owned();
    let operator = match operator {
        Operator::Ilike => Operator::Like,
        Operator::Imatch => Operator::Match,
        other => other,
    };
    format!(
        "have PostgreSQL keep it in small letters, alter table {table} add {small} text collate \"C\" generated always as (lower({})) stored, and write {small}.{}.… in small letters",
        ident(column),
        operator.name()
    )
}

enum Is {
    Null,
    NotNull,
    Truth(Option<bool>),
}
