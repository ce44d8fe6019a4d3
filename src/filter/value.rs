//! Values as the types compare them, read from the JSON texts that PostgreSQL makes of rows.
//!
//! Reading borrows from the row wherever it can. A text that has not the form of the type gives nothing: it was written when the
//! column was another one.

use std::borrow::Cow;
use std::cmp::Ordering;

use super::column::Class;

/// A value. Values of one class compare as PostgreSQL compares them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Datum<'a> {
    Bool(bool),
    Integer(i64),
    Decimal(Decimal<'a>),
    Float(Float),
    /// Text, and what compares like its text: uuid and bytea, in the one form that PostgreSQL writes.
    Text(Cow<'a, str>),
    Moment(Moment),
    /// A time of day, in microseconds.
    Time(i64),
    /// An enum's label, by its place among the labels.
    Rank(usize),
}

impl<'a> Datum<'a> {
    /// Reads a value that is not null.
    pub fn read(class: &Class, json: &'a str) -> Option<Datum<'a>> {
        Some(match class {
            Class::Bool => Datum::Bool(match json {
                "true" => true,
                "false" => false,
                _ => return None,
            }),
            Class::Int2 | Class::Int4 | Class::Int8 => Datum::Integer(json.parse().ok()?),
            Class::Oid => Datum::Integer(string(json)?.parse::<u32>().ok()?.into()),
            Class::Numeric => Datum::Decimal(Decimal::read(json)?),
            Class::Float4 => Datum::Float(Float::new(special(json).or_else(|| finite::<f32>(json).map(f64::from))?)),
            Class::Float8 => Datum::Float(Float::new(special(json).or_else(|| finite::<f64>(json))?)),
            Class::Text(_) => Datum::Text(string(json)?),
            Class::Char(_) => Datum::Text(trimmed(string(json)?)),
            Class::Uuid => Datum::Text(string(json).filter(|text| is_uuid(text))?),
            Class::Bytea => Datum::Text(string(json).filter(|text| text.starts_with("\\x"))?),
            Class::Timestamp => Datum::Moment(Moment::timestamp(&string(json)?, false)?),
            Class::Timestamptz => Datum::Moment(Moment::timestamp(&string(json)?, true)?),
            Class::Date => Datum::Moment(Moment::date(&string(json)?)?),
            Class::Time => Datum::Time(time(&string(json)?)?),
            Class::Enum(labels) => {
                let label = string(json)?;
                Datum::Rank(labels.iter().position(|known| *known == label)?)
            }
            Class::Json { .. } | Class::Other => return None,
        })
    }

    /// The same value, borrowing nothing.
    pub fn into_owned(self) -> Datum<'static> {
        match self {
            Datum::Bool(value) => Datum::Bool(value),
            Datum::Integer(value) => Datum::Integer(value),
            Datum::Decimal(value) => Datum::Decimal(value.into_owned()),
            Datum::Float(value) => Datum::Float(value),
            Datum::Text(value) => Datum::Text(Cow::Owned(value.into_owned())),
            Datum::Moment(value) => Datum::Moment(value),
            Datum::Time(value) => Datum::Time(value),
            Datum::Rank(value) => Datum::Rank(value),
        }
    }
}

/// A literal of a filter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Literal {
    pub value: Datum<'static>,
    /// Its one spelling, which PostgreSQL reads as this value.
    pub text: String,
}

impl Literal {
    /// Reads what PostgreSQL's `to_json` made of a literal.
    pub fn read(class: &Class, json: &str) -> Option<Literal> {
        let value = Datum::read(class, json)?.into_owned();
        let text = match &value {
            Datum::Bool(value) => value.to_string(),
            Datum::Integer(value) => value.to_string(),
            Datum::Decimal(value) => value.to_string(),
            Datum::Float(value) => value.spell(*class == Class::Float4),
            Datum::Text(value) => value.clone().into_owned(),
            Datum::Moment(_) | Datum::Time(_) | Datum::Rank(_) => string(json)?.into_owned(),
        };
        Some(Literal { value, text })
    }

    /// A literal whose value is plain to see; none where PostgreSQL has to be asked.
    pub fn known(class: &Class, word: &str) -> Option<Literal> {
        /// Numbers of these lengths are exact in each type.
        const FLOAT_DIGITS_MAX: usize = 7;
        const NUMERIC_CHARS_MAX: usize = 1000;
        let digits = word.strip_prefix('-').unwrap_or(word);
        let integer = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let json = match class {
            Class::Text(_) | Class::Char(_) | Class::Enum(_) => serde_json::to_string(word).ok()?,
            Class::Bool if matches!(word, "true" | "false") => word.to_owned(),
            Class::Int2 if integer => word.parse::<i16>().ok()?.to_string(),
            Class::Int4 if integer => word.parse::<i32>().ok()?.to_string(),
            Class::Int8 if integer => word.parse::<i64>().ok()?.to_string(),
            Class::Oid if integer => format!("\"{}\"", word.parse::<u32>().ok()?),
            Class::Float4 | Class::Float8 if integer && digits.len() <= FLOAT_DIGITS_MAX => word.to_owned(),
            Class::Numeric if word.len() <= NUMERIC_CHARS_MAX && is_decimal(digits) => word.to_owned(),
            Class::Uuid if is_uuid(word) => format!("\"{word}\""),
            _ => return None,
        };
        Literal::read(class, &json)
    }
}

/// The text of a JSON string, copied only where it holds escapes.
pub(super) fn string(json: &str) -> Option<Cow<'_, str>> {
    let inner = json.strip_prefix('"')?.strip_suffix('"')?;
    match inner.contains('\\') {
        true => serde_json::from_str(json).ok().map(Cow::Owned),
        false => Some(Cow::Borrowed(inner)),
    }
}

fn trimmed(text: Cow<'_, str>) -> Cow<'_, str> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.trim_end_matches(' ')),
        Cow::Owned(text) => Cow::Owned(text.trim_end_matches(' ').to_owned()),
    }
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        })
}

fn is_decimal(digits: &str) -> bool {
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    [whole, fraction].iter().all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
}

/// How large the exponent of a number is, whatever its sign; 0 where it has none. What is no number PostgreSQL will say.
pub(super) fn exponent(word: &str) -> u64 {
    let word = word.trim();
    let digits = word.trim_start_matches(['+', '-']);
    // From version 16 on there are numbers of other bases, in which e is a digit, and underscores between digits.
    if digits.starts_with("0x") || digits.starts_with("0X") {
        return 0;
    }
    let Some((_, exponent)) = digits.split_once(['e', 'E']) else { return 0 };
    let exponent = exponent.trim_start_matches(['+', '-']).replace('_', "");
    match exponent.bytes().all(|byte| byte.is_ascii_digit()) && !exponent.is_empty() {
        // One that is too long to be read is large.
        true => exponent.parse().unwrap_or(u64::MAX),
        false => 0,
    }
}

/// What JSON has no numbers for.
fn special(json: &str) -> Option<f64> {
    match json {
        "\"NaN\"" => Some(f64::NAN),
        "\"Infinity\"" => Some(f64::INFINITY),
        "\"-Infinity\"" => Some(f64::NEG_INFINITY),
        _ => None,
    }
}

/// A JSON number, rounded once to the type.
fn finite<T: std::str::FromStr + Into<f64> + Copy>(json: &str) -> Option<T> {
    let number = json.starts_with(|first: char| first == '-' || first.is_ascii_digit());
    let value = number.then(|| json.parse::<T>().ok())??;
    value.into().is_finite().then_some(value)
}

/// A float in PostgreSQL's order: NaN is the greatest and equals itself, and -0 equals 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Float(f64);

impl Float {
    fn new(value: f64) -> Float {
        match value {
            0.0 => Float(0.0),
            _ if value.is_nan() => Float(f64::NAN),
            _ => Float(value),
        }
    }

    fn spell(self, single: bool) -> String {
        if self.0.is_infinite() {
            return if self.0 > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
        }
        let text = if single { format!("{:?}", self.0 as f32) } else { format!("{:?}", self.0) };
        text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
    }
}

impl Ord for Float {
    fn cmp(&self, other: &Float) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Float {
    fn partial_cmp(&self, other: &Float) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Float {
    fn eq(&self, other: &Float) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Float {}

impl std::hash::Hash for Float {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

/// A numeric, whatever its length; the variants stand in PostgreSQL's order.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Decimal<'a> {
    NegativeInfinity,
    Finite(Digits<'a>),
    Infinity,
    NotANumber,
}

/// Zeros that say nothing are left out, so that equal numbers have equal digits; zero has none and is not negative.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Digits<'a> {
    negative: bool,
    whole: Cow<'a, str>,
    fraction: Cow<'a, str>,
}

impl<'a> Decimal<'a> {
    fn read(json: &'a str) -> Option<Decimal<'a>> {
        match json {
            "\"NaN\"" => return Some(Decimal::NotANumber),
            "\"Infinity\"" => return Some(Decimal::Infinity),
            "\"-Infinity\"" => return Some(Decimal::NegativeInfinity),
            _ => {}
        }
        let digits = json.strip_prefix('-').unwrap_or(json);
        if !is_decimal(digits) {
            return None;
        }
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
        let negative = digits.len() < json.len() && !(whole.is_empty() && fraction.is_empty());
        Some(Decimal::Finite(Digits { negative, whole: Cow::Borrowed(whole), fraction: Cow::Borrowed(fraction) }))
    }

    fn into_owned(self) -> Decimal<'static> {
        match self {
            Decimal::NegativeInfinity => Decimal::NegativeInfinity,
            Decimal::Finite(Digits { negative, whole, fraction }) => Decimal::Finite(Digits {
                negative,
                whole: Cow::Owned(whole.into_owned()),
                fraction: Cow::Owned(fraction.into_owned()),
            }),
            Decimal::Infinity => Decimal::Infinity,
            Decimal::NotANumber => Decimal::NotANumber,
        }
    }
}

impl std::fmt::Display for Decimal<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Decimal::Finite(Digits { negative, whole, fraction }) = self else {
            return f.write_str(match self {
                Decimal::NegativeInfinity => "-Infinity",
                Decimal::Infinity => "Infinity",
                _ => "NaN",
            });
        };
        let (sign, whole) = (if *negative { "-" } else { "" }, if whole.is_empty() { "0" } else { whole });
        match fraction.is_empty() {
            true => write!(f, "{sign}{whole}"),
            false => write!(f, "{sign}{whole}.{fraction}"),
        }
    }
}

impl Ord for Digits<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        // A fraction that goes on is the larger one, since it does not end with zeros.
        let larger = || {
            let whole = (self.whole.len(), &self.whole).cmp(&(other.whole.len(), &other.whole));
            whole.then_with(|| self.fraction.cmp(&other.fraction))
        };
        match (self.negative, other.negative) {
            (false, false) => larger(),
            (true, true) => larger().reverse(),
            (negative, _) => {
                if negative {
                    Ordering::Less
                } else {
                    Ordering::Greater
                }
            }
        }
    }
}

impl PartialOrd for Digits<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A date or a timestamp; the variants and fields stand in their order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Moment {
    /// `-infinity`.
    Past,
    At {
        /// 0 is 1 BC.
        year: i32,
        month: u8,
        day: u8,
        microseconds: i64,
    },
    /// `infinity`.
    Future,
}

impl Moment {
    fn special(text: &str) -> Option<Moment> {
        match text {
            "-infinity" => Some(Moment::Past),
            "infinity" => Some(Moment::Future),
            _ => None,
        }
    }

    /// `2024-02-29`, `0044-03-15 BC`.
    fn date(text: &str) -> Option<Moment> {
        Moment::special(text).or_else(|| {
            let (date, bc) = without_bc(text);
            Moment::at(date, bc, 0)
        })
    }

    /// `2024-02-29T12:00:00.5`, with `+00:00` where the type has a zone.
    fn timestamp(text: &str, zone: bool) -> Option<Moment> {
        Moment::special(text).or_else(|| {
            let (text, bc) = without_bc(text);
            let (date, clock) = text.split_once('T')?;
            let clock = if zone { clock.strip_suffix("+00:00")? } else { clock };
            Moment::at(date, bc, time(clock)?)
        })
    }

    fn at(date: &str, bc: bool, microseconds: i64) -> Option<Moment> {
        let (year, rest) = date.split_once('-')?;
        let (month, day) = rest.split_once('-')?;
        let year: i32 = number(year, 4..8)?.try_into().ok()?;
        let year = if bc { 1 - year } else { year };
        let (month, day) = (number(month, 2..3)?.try_into().ok()?, number(day, 2..3)?.try_into().ok()?);
        Some(Moment::At { year, month, day, microseconds })
    }
}

fn without_bc(text: &str) -> (&str, bool) {
    text.strip_suffix(" BC").map_or((text, false), |text| (text, true))
}

/// `12:34:56.789` in microseconds.
fn time(text: &str) -> Option<i64> {
    let (clock, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let mut parts = clock.split(':');
    let mut part = || number(parts.next()?, 2..3);
    let seconds = (part()? * 60 + part()?) * 60 + part()?;
    let places = u32::try_from(fraction.len()).ok()?;
    let microseconds = number(fraction, 1..7)? * 10_i64.pow(6 - places);
    parts.next().is_none().then_some(seconds * 1_000_000 + microseconds)
}

/// Digits only, so many of them.
fn number(text: &str, lengths: std::ops::Range<usize>) -> Option<i64> {
    (lengths.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}
