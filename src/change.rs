//! What happened: changes, the commits that hold them, and the cursors that number commits.
//!
//! Plain values, without I/O. A row travels as the JSON text that PostgreSQL made of it, so that no value is rounded or re-spelt
//! on the way.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::names;

/// Numbers commits: 1, 2, 3 … without holes. 0 stands before the first commit of an epoch.
pub type Position = i64;

/// Numbers changes: within a commit they are read in the order of their serials.
pub type Serial = i64;

/// How many nonces there are: four digits of base 36.
const NONCES: u32 = 36 * 36 * 36 * 36;

/// Names one life of the log: four characters, `0` to `9` and `a` to `z`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch([u8; 4]);

impl FromStr for Epoch {
    type Err = InvalidCursor;

    fn from_str(text: &str) -> Result<Self, InvalidCursor> {
        let name: [u8; 4] = text.as_bytes().try_into().map_err(|_| InvalidCursor)?;
        if name.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'z')) {
            Ok(Epoch(name))
        } else {
            Err(InvalidCursor)
        }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.0).expect("an epoch holds ASCII only"))
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a reader stands: `EPOCH.POSITION.NONCE`, for example `k3f9.1042.5tq1`. Opaque to clients.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Cursor {
    /// The life of the log that the position belongs to.
    pub epoch: Epoch,
    /// The last commit that the reader has.
    pub position: Position,
    /// Drawn when the position was given: after a failover the same position may name another commit.
    pub nonce: u32,
}

/// The text is not of the form of a cursor.
#[derive(Debug, PartialEq, Eq)]
pub struct InvalidCursor;

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digit = |power: u32| char::from_digit(self.nonce / power % 36, 36).expect("a remainder of 36 is a digit");
        let [a, b, c, d] = [36 * 36 * 36, 36 * 36, 36, 1].map(digit);
        write!(f, "{}.{}.{a}{b}{c}{d}", self.epoch, self.position)
    }
}

impl FromStr for Cursor {
    type Err = InvalidCursor;

    fn from_str(text: &str) -> Result<Self, InvalidCursor> {
        let mut parts = text.split('.');
        let (Some(epoch), Some(position), Some(nonce), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(InvalidCursor);
        };
        let cursor = Cursor {
            epoch: epoch.parse()?,
            position: position.parse().map_err(|_| InvalidCursor)?,
            nonce: u32::from_str_radix(nonce, 36).map_err(|_| InvalidCursor)?,
        };
        // One spelling per cursor: no signs, no leading zeros, no capitals.
        if cursor.nonce < NONCES && cursor.to_string() == text { Ok(cursor) } else { Err(InvalidCursor) }
    }
}

/// The name of a table, with its schema.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TableName {
    /// The schema, as PostgreSQL spells it, without quotes.
    pub schema: String,
    /// The table, as PostgreSQL spells it, without quotes.
    pub table: String,
}

impl TableName {
    /// A name from its two parts.
    pub fn new(schema: impl Into<String>, table: impl Into<String>) -> Self {
        TableName { schema: schema.into(), table: table.into() }
    }

    /// The name as SQL spells it, and as people are told it.
    pub fn sql(&self) -> String {
        format!("{}.{}", names::ident(&self.schema), names::ident(&self.table))
    }
}

/// The name on the wire: `schema.table`. A part that holds a dot or begins with a quote stands in quotes, so that no two tables share a
/// name; all others are spelt without.
impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |part: &str| match part.contains('.') || part.starts_with('"') {
            true => names::quoted(part),
            false => part.to_owned(),
        };
        write!(f, "{}.{}", part(&self.schema), part(&self.table))
    }
}

/// A watched table, as it was when last looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Table {
    /// What log rows call it.
    pub watch: i32,
    /// Its name.
    pub name: TableName,
    /// The columns of its key, in the key's order; none for a table without a key.
    pub key: Option<Vec<String>>,
    /// Whether its rows lie in partitions.
    pub partitioned: bool,
    /// Whether it exists and is watched now; else only the log still knows of it.
    pub active: bool,
}

/// What was done to a row, or to a whole table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Op {
    /// A row came; it has no `old`.
    Insert,
    /// A row changed.
    Update,
    /// A row went; it has no `new`.
    Delete,
    /// All rows of the table went at once; neither `old` nor `new`.
    Truncate,
    /// What happened cannot be told: who follows the table has to begin anew. Never sent; neither `old` nor `new`.
    Reset,
}

impl Op {
    /// The word of the protocol.
    pub fn name(self) -> &'static str {
        match self {
            Op::Insert => "insert",
            Op::Update => "update",
            Op::Delete => "delete",
            Op::Truncate => "truncate",
            Op::Reset => "reset",
        }
    }
}

/// One row inserted, updated or deleted, or one table truncated.
#[derive(Debug)]
pub struct Change {
    /// Its place in the commit.
    pub serial: Serial,
    /// Where it happened.
    pub table: Arc<Table>,
    /// What happened.
    pub op: Op,
    /// The row before, a JSON object.
    pub old: Option<Box<RawValue>>,
    /// The row after, a JSON object.
    pub new: Option<Box<RawValue>>,
    json: OnceLock<Vec<u8>>,
}

impl Change {
    /// A change as the log tells it.
    pub fn new(
        serial: Serial,
        table: Arc<Table>,
        op: Op,
        old: Option<Box<RawValue>>,
        new: Option<Box<RawValue>>,
    ) -> Self {
        Change { serial, table, op, old, new, json: OnceLock::new() }
    }

    /// The change as a JSON object of the protocol, with every column. Made once, however many subscriptions ask.
    pub fn json(&self) -> &[u8] {
        self.json.get_or_init(|| self.encode())
    }

    /// Whether the row has all columns of its table's key, or its table none.
    pub fn fits(&self) -> bool {
        let (Some(key), Some(row)) = (&self.table.key, self.new.as_deref().or(self.old.as_deref())) else {
            return true;
        };
        let row = fields(row);
        key.iter().all(|column| row.0.iter().any(|(name, _)| name == column))
    }

    /// About how many bytes the change takes in a frame.
    pub fn bytes(&self) -> usize {
        let length = |row: &Option<Box<RawValue>>| row.as_ref().map_or(0, |row| row.get().len());
        128 + length(&self.old) + length(&self.new)
    }

    fn encode(&self) -> Vec<u8> {
        let old = self.old.as_deref().map(fields);
        let new = self.new.as_deref().map(fields);
        let mut out = Vec::with_capacity(self.bytes());
        self.encode_head(new.as_ref().or(old.as_ref()), &mut out);
        for (name, row) in [("new", &self.new), ("old", &self.old)] {
            if let Some(row) = row {
                out.extend_from_slice(format!(r#","{name}":"#).as_bytes());
                out.extend_from_slice(row.get().as_bytes());
            }
        }
        if let (Op::Update, Some(old), Some(new)) = (self.op, &old, &new) {
            out.extend_from_slice(br#","changed":"#);
            write_json(&mut out, &differing(old, new));
        }
        out.push(b'}');
        out
    }

    fn encode_head(&self, row: Option<&Fields<'_>>, out: &mut Vec<u8>) {
        out.extend_from_slice(br#"{"op":""#);
        out.extend_from_slice(self.op.name().as_bytes());
        out.extend_from_slice(br#"","table":"#);
        write_json(out, &self.table.name.to_string());
        out.extend_from_slice(br#","key":"#);
        self.encode_key(row, out);
    }

    /// `{"id":1}`, or `null` where the table has no key, or the row none of its columns (it was written under another key).
    fn encode_key(&self, row: Option<&Fields<'_>>, out: &mut Vec<u8>) {
        let values: Option<Vec<_>> =
            self.table.key.as_ref().zip(row).and_then(|(key, row)| {
                key.iter().map(|column| row.0.iter().find(|(name, _)| name == column)).collect()
            });
        let Some(values) = values else { return out.extend_from_slice(b"null") };
        for (index, (name, value)) in values.into_iter().enumerate() {
            out.push(if index == 0 { b'{' } else { b',' });
            write_json(out, name);
            out.push(b':');
            out.extend_from_slice(value.get().as_bytes());
        }
        out.push(b'}');
    }
}

/// A change whose rows are taken apart once, for all who look into them.
pub struct View<'a> {
    /// The change.
    pub change: &'a Change,
    old: OnceCell<Option<Fields<'a>>>,
    new: OnceCell<Option<Fields<'a>>>,
}

impl<'a> View<'a> {
    /// The fields of the row before, if there was one.
    pub fn before(&self) -> Option<&Fields<'a>> {
        self.old.get_or_init(|| self.change.old.as_deref().map(fields)).as_ref()
    }

    /// The columns whose values differ between `old` and `new`, in the table's order; none unless this is an update.
    pub fn changed(&self) -> Vec<Cow<'a, str>> {
        match (self.change.op, self.before(), self.after()) {
            (Op::Update, Some(old), Some(new)) => differing(old, new),
            _ => Vec::new(),
        }
    }

    /// The fields of the row after, if there is one.
    pub fn after(&self) -> Option<&Fields<'a>> {
        self.new.get_or_init(|| self.change.new.as_deref().map(fields)).as_ref()
    }

    /// Appends the change with only these columns of its rows, but for its end: the closing brace is left to the caller. Fails where a
    /// row has not got one of them, and says which.
    pub fn write_columns(&self, columns: &[String], out: &mut Vec<u8>) -> Result<(), String> {
        let (change, old, new) = (self.change, self.before(), self.after());
        change.encode_head(new.or(old), out);
        for (name, row) in [("new", new), ("old", old)] {
            if let Some(row) = row {
                out.extend_from_slice(format!(r#","{name}":"#).as_bytes());
                encode_columns(row, columns, out)?;
            }
        }
        if let (Op::Update, Some(old), Some(new)) = (change.op, old, new) {
            let mut changed = differing(old, new);
            changed.retain(|name| columns.iter().any(|column| column == name));
            out.extend_from_slice(br#","changed":"#);
            write_json(out, &changed);
        }
        Ok(())
    }
}

/// A transaction's changes, or a part of them where the transaction is large.
#[derive(Debug)]
pub struct Part {
    /// The commit's cursor.
    pub cursor: Cursor,
    /// The transaction's `xid8`.
    pub tx: u64,
    /// When it committed, by the database's clock: RFC 3339, UTC, microseconds.
    pub at: String,
    /// The changes, in the order they were made.
    pub changes: Vec<Change>,
    /// The serial of the last change that was read for it.
    pub end: Serial,
    /// Whether the commit begins here.
    pub first: bool,
    /// Whether the commit ends here.
    pub last: bool,
}

/// A part of a commit whose changes can be looked into.
pub struct Opened<'a> {
    /// The part.
    pub part: &'a Part,
    /// Its changes.
    pub changes: Vec<View<'a>>,
}

impl Part {
    /// The part, to be looked into. Costs nothing until a row is.
    pub fn open(&self) -> Opened<'_> {
        let view = |change| View { change, old: OnceCell::new(), new: OnceCell::new() };
        Opened { part: self, changes: self.changes.iter().map(view).collect() }
    }

    /// Where a reader stands that has everything up to the end of this part.
    pub fn place(&self) -> Place {
        match self.last {
            true => Place::after(self.cursor.position),
            false => Place { position: self.cursor.position - 1, serial: Some(self.end) },
        }
    }
}

/// How far a reader of the log has come: whole commits, and perhaps a part of the next one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    /// The last commit that was read to its end.
    pub position: Position,
    /// The last change that was read of the commit behind it, if it was begun.
    pub serial: Option<Serial>,
}

impl Place {
    /// The place behind a whole commit.
    pub fn after(position: Position) -> Self {
        Place { position, serial: None }
    }

    /// The end of the commit that was begun, or where the place is already.
    pub fn whole(self) -> Position {
        self.position + i64::from(self.serial.is_some())
    }
}

/// The fields of a row, in the table's order, each value as its JSON text.
pub struct Fields<'a>(pub Vec<(Cow<'a, str>, &'a RawValue)>);

/// Takes a row apart, without looking into its values. A row that is no JSON object has no fields.
pub fn fields(row: &RawValue) -> Fields<'_> {
    serde_json::from_str(row.get()).unwrap_or(Fields(Vec::new()))
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a row as a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Vec::with_capacity(map.size_hint().unwrap_or(8));
                while let Some((Name(name), value)) = map.next_entry()? {
                    fields.push((name, value));
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

/// A column's name, borrowed from the text where it holds no escapes. (`Cow` by itself always copies.)
struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        struct Borrowing<'a>(#[serde(borrow)] Cow<'a, str>);
        Borrowing::deserialize(deserializer).map(|Borrowing(name)| Name(name))
    }
}

/// A row with only these columns.
fn encode_columns(row: &Fields<'_>, columns: &[String], out: &mut Vec<u8>) -> Result<(), String> {
    out.push(b'{');
    for (index, column) in columns.iter().enumerate() {
        let Some((name, value)) = row.0.iter().find(|(name, _)| name == column) else { return Err(column.clone()) };
        if index > 0 {
            out.push(b',');
        }
        write_json(out, name);
        out.push(b':');
        out.extend_from_slice(value.get().as_bytes());
    }
    out.push(b'}');
    Ok(())
}

/// The row without these columns.
pub fn without(row: &RawValue, columns: &[String]) -> Box<RawValue> {
    let kept: Vec<_> =
        fields(row).0.into_iter().filter(|(name, _)| !columns.iter().any(|column| column == name)).collect();
    let mut out = vec![b'{'];
    for (index, (name, value)) in kept.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_json(&mut out, name);
        out.push(b':');
        out.extend_from_slice(value.get().as_bytes());
    }
    out.push(b'}');
    let text = String::from_utf8(out).expect("names and values were texts");
    RawValue::from_string(text).expect("an object of JSON values is JSON")
}

fn differing<'a>(old: &Fields<'_>, new: &Fields<'a>) -> Vec<Cow<'a, str>> {
    let unchanged = |index: usize, name: &str, value: &RawValue| {
        // The two rows of one update nearly always have their columns in the same places.
        let before = match old.0.get(index) {
            Some((at_index, before)) if at_index == name => Some(before),
            _ => old.0.iter().find(|(other, _)| other == name).map(|(_, before)| before),
        };
        before.is_some_and(|before| before.get() == value.get())
    };
    let fields = new.0.iter().enumerate();
    fields.filter(|(index, (name, value))| !unchanged(*index, name, value)).map(|(_, (name, _))| name.clone()).collect()
}

/// Appends a value as JSON.
pub fn write_json<T: serde::Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value).expect("strings and lists of them are JSON, and a vector takes all bytes");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Option<Box<RawValue>> {
        Some(RawValue::from_string(text.to_owned()).expect("valid JSON"))
    }

    fn table(key: Option<&[&str]>) -> Arc<Table> {
        Arc::new(Table {
            watch: 1,
            name: TableName::new("public", "switch"),
            key: key.map(|columns| columns.iter().map(|column| column.to_string()).collect()),
            partitioned: false,
            active: true,
        })
    }

    #[test]
    fn a_cursor_reads_back_as_it_was_written() {
        let cursor = Cursor { epoch: "k3f9".parse().expect("an epoch"), position: 1042, nonce: 5 * 36 * 36 * 36 + 1 };

        assert_eq!(cursor.to_string(), "k3f9.1042.5001");
        assert_eq!("k3f9.1042.5001".parse(), Ok(cursor));
    }

    #[test]
    fn a_cursor_has_one_spelling() {
        for text in [
            "",
            "k3f9",
            "k3f9.1042",
            "k3f9.1042.5tq1.",
            "K3f9.1.0000",
            "k3f9.+1.0000",
            "k3f9.01.0000",
            "k3f9.1.1",
            "k3f9.1.00001",
            "k3f9.x.0000",
            "k3f9.99999999999999999999.0000",
            "é9.1.0000",
        ] {
            assert_eq!(text.parse::<Cursor>(), Err(InvalidCursor), "{text}");
        }
    }

    #[test]
    fn an_update_names_what_changed_and_keeps_every_digit() {
        let change = Change::new(
            1,
            table(Some(&["id"])),
            Op::Update,
            raw(r#"{"id":9007199254740993,"status":false,"note":"a\"b"}"#),
            raw(r#"{"id":9007199254740993,"status":true,"note":"a\"b"}"#),
        );

        assert_eq!(
            String::from_utf8_lossy(change.json()),
            r#"{"op":"update","table":"public.switch","key":{"id":9007199254740993},"new":{"id":9007199254740993,"status":true,"note":"a\"b"},"old":{"id":9007199254740993,"status":false,"note":"a\"b"},"changed":["status"]}"#
        );
    }

    #[test]
    fn a_key_is_that_of_the_new_row_and_null_where_there_is_none() {
        let moved =
            Change::new(1, table(Some(&["b", "a"])), Op::Update, raw(r#"{"a":1,"b":2}"#), raw(r#"{"a":1,"b":3}"#));
        let keyless = Change::new(1, table(None), Op::Delete, raw(r#"{"a":1}"#), None);
        let truncated = Change::new(1, table(Some(&["a"])), Op::Truncate, None, None);

        let text = |change: &Change| String::from_utf8_lossy(change.json()).into_owned();
        assert!(text(&moved).contains(r#""key":{"b":3,"a":1}"#));
        assert_eq!(text(&keyless), r#"{"op":"delete","table":"public.switch","key":null,"old":{"a":1}}"#);
        assert_eq!(text(&truncated), r#"{"op":"truncate","table":"public.switch","key":null}"#);
    }
}
