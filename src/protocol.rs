//! Protocol 1: what travels over the wire, and nothing of how.
//!
//! Requests are read here, frames and their WebSocket headers are written here, and the close codes have their one table here.

use std::borrow::Cow;
use std::collections::BTreeSet;

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;

use crate::change::{Change, Cursor, Op, Part, TableName, fields, write_json};

/// The number of the protocol, in `hello`.
pub const PROTOCOL: u32 = 1;

/// The table of `/switch/status`.
const SWITCH: (&str, &str) = ("public", "switch");

/// Which changes a subscription wants.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Selection {
    /// These tables; none means every watched table.
    pub tables: Option<BTreeSet<TableName>>,
}

impl Selection {
    /// Whether the change is among them.
    pub fn wants(&self, change: &Change) -> bool {
        self.tables.as_ref().is_none_or(|tables| tables.contains(&change.table.name))
    }
}

/// In which form a subscription gets its commits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Form {
    /// Protocol 1 in WebSocket text frames.
    Feed,
    /// The stream of `/switch/status`: one WebSocket text frame per changed switch.
    SwitchStatus,
}

/// What subscriptions have in common that can share their frames.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Kind {
    /// Which changes.
    pub selection: Selection,
    /// In which form.
    pub form: Form,
}

impl Kind {
    /// The stream of `/switch/status`.
    pub fn switch_status() -> Kind {
        let tables = BTreeSet::from([TableName::new(SWITCH.0, SWITCH.1)]);
        Kind { selection: Selection { tables: Some(tables) }, form: Form::SwitchStatus }
    }
}

/// Where a subscription begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum From {
    /// With the current rows.
    Snapshot,
    /// With whatever comes next.
    Now,
    /// Behind this cursor, which may be any text: what cannot be served gets a `reset`.
    Cursor(String),
}

/// What a cursor gets that cannot be served, after its `reset`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnReset {
    /// A fresh snapshot.
    Snapshot,
    /// [`Close::CursorGone`].
    Close,
}

/// The request for one subscription.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// The tables asked for, as they were written; none means all.
    pub tables: Option<Vec<String>>,
    /// Where to begin.
    pub from: From,
    /// What to do where that cannot be.
    pub on_reset: OnReset,
}

impl Request {
    /// Reads the parameters of an address. Unknown ones are ignored; a wrong one gives a sentence that names the value and the remedy.
    pub fn parse(query: &str) -> Result<Request, String> {
        let mut request = Request { tables: None, from: From::Snapshot, on_reset: OnReset::Snapshot };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "table" => request.tables = Some(table_names(&value)?),
                "from" => {
                    request.from = match &*value {
                        "" => return Err("from is empty; say snapshot, now, or a cursor".to_owned()),
                        "snapshot" => From::Snapshot,
                        "now" => From::Now,
                        cursor => From::Cursor(cursor.to_owned()),
                    }
                }
                "on_reset" => {
                    request.on_reset = match &*value {
                        "snapshot" => OnReset::Snapshot,
                        "close" => OnReset::Close,
                        other => return Err(format!("on_reset={other} is unknown; say snapshot or close")),
                    }
                }
                "where" | "columns" => {
                    return Err(format!("{name} is not served by this version; leave it out and select in the client"));
                }
                _ => {}
            }
        }
        Ok(request)
    }
}

/// Comma-separated names; one that holds a comma stands in double quotes.
fn table_names(text: &str) -> Result<Vec<String>, String> {
    let mut names = vec![String::new()];
    let mut quoted = false;
    for character in text.chars() {
        match character {
            '"' => quoted = !quoted,
            ',' if !quoted => names.push(String::new()),
            other => names.last_mut().expect("it begins with one name").push(other),
        }
    }
    if quoted {
        return Err(format!("table={text} has a quote that does not end; write \"a,b\" or leave the quotes out"));
    }
    if names.iter().any(|name| name.trim().is_empty()) {
        return Err(format!(
            "table={text} names an empty table; give names like switch or sales.orders, or leave it out"
        ));
    }
    Ok(names.into_iter().map(|name| name.trim().to_owned()).collect())
}

/// What a client may send in a text frame.
#[derive(PartialEq, Eq, Debug)]
pub enum Message {
    /// To be answered by `pong`.
    Ping(Option<Value>),
    /// Anything else: the code and the sentence of the `error` frame, with the request's `id`.
    Wrong(&'static str, String, Option<Value>),
}

impl Message {
    /// Reads a message; what is wrong with it becomes an answer, never a failure.
    pub fn parse(text: &str) -> Message {
        let Ok(Value::Object(mut fields)) = serde_json::from_str(text) else {
            let remedy = r#"the message is not a JSON object; send for example {"type":"ping"}"#;
            return Message::Wrong("bad_message", remedy.to_owned(), None);
        };
        let id = fields.remove("id");
        match fields.get("type").and_then(|name| name.as_str()) {
            Some("ping") => Message::Ping(id),
            Some(other) => {
                let other: String = other.chars().take(100).collect();
                Message::Wrong("unknown_type", format!("type {other:?} is unknown to this version; it takes ping"), id)
            }
            None => {
                Message::Wrong("bad_message", "the message has no \"type\"; this version takes ping".to_owned(), id)
            }
        }
    }
}

/// Why a connection ends: the one table of close codes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Close {
    /// The client said good-bye first.
    Normal,
    /// The server stops. Reconnect.
    Stopping,
    /// A message broke the protocol (RFC 6455, 7.4.1). Stop.
    ProtocolError,
    /// A text frame was not UTF-8 (RFC 6455, 7.4.1). Stop.
    NotUtf8,
    /// Something that is not allowed, such as not reading the answers one asks for. Stop.
    Policy,
    /// A message was larger than [`crate::config::MESSAGE_BYTES_MAX`]. Stop.
    MessageTooBig,
    /// A fault of the server's. Reconnect.
    Fault,
    /// The request was wrong. Stop.
    BadRequest,
    /// No answer to pings, or no progress. Reconnect.
    NoProgress,
    /// The cursor is gone, and `on_reset=close` was asked for. Stop, and begin anew.
    CursorGone,
}

impl Close {
    /// The code on the wire, and a word for metrics and the closing frame.
    pub fn code_and_reason(self) -> (u16, &'static str) {
        match self {
            Close::Normal => (1000, "goodbye"),
            Close::Stopping => (1001, "server stops; reconnect"),
            Close::ProtocolError => (1002, "protocol error; stop"),
            Close::NotUtf8 => (1007, "not UTF-8; stop"),
            Close::Policy => (1008, "policy; stop"),
            Close::MessageTooBig => (1009, "message too big; stop"),
            Close::Fault => (1011, "fault; reconnect"),
            Close::BadRequest => (4400, "bad request; stop"),
            Close::NoProgress => (4408, "no progress; reconnect"),
            Close::CursorGone => (4410, "cursor gone; begin anew"),
        }
    }
}

/// A WebSocket opcode that the gateway writes (RFC 6455, 5.2).
#[derive(Clone, Copy)]
enum Opcode {
    Text = 0x1,
    Close = 0x8,
    Ping = 0x9,
}

/// Appends one unmasked, unfragmented WebSocket frame (RFC 6455, 5.2) whose payload `write` appends.
fn frame(out: &mut Vec<u8>, opcode: Opcode, write: impl FnOnce(&mut Vec<u8>)) {
    const LONGEST_HEADER: usize = 10;
    let start = out.len();
    out.extend_from_slice(&[0; LONGEST_HEADER]);
    write(out);
    let length = out.len() - start - LONGEST_HEADER;
    let mut header = [0; LONGEST_HEADER];
    header[0] = 0x80 | opcode as u8;
    let header_length = match length {
        0..=125 => {
            header[1] = length as u8;
            2
        }
        126..=0xffff => {
            header[1] = 126;
            header[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            4
        }
        _ => {
            header[1] = 127;
            header[2..10].copy_from_slice(&(length as u64).to_be_bytes());
            10
        }
    };
    // The length is known only now; the payload moves up to the header that it needs.
    out.copy_within(start + LONGEST_HEADER.., start + header_length);
    out.truncate(start + header_length + length);
    out[start..start + header_length].copy_from_slice(&header[..header_length]);
}

/// The frames that are not made in bulk.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Frame<'a> {
    Hello {
        protocol: u32,
        server: &'a str,
        heartbeat_ms: u64,
    },
    Status {
        database: &'a str,
    },
    Reset {
        reason: &'a str,
        oldest: Option<String>,
    },
    Error {
        code: &'a str,
        message: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<Value>,
    },
    Pong {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<Value>,
    },
}

impl Frame<'_> {
    fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(256);
        frame(&mut out, Opcode::Text, |out| write_json(out, self));
        out.into()
    }
}

/// A ping without content (RFC 6455, 5.5.2).
pub fn ping() -> Bytes {
    Bytes::from_static(&[0x80 | Opcode::Ping as u8, 0])
}

/// A closing frame (RFC 6455, 5.5.1).
pub fn close(close: Close) -> Bytes {
    let (code, reason) = close.code_and_reason();
    let mut out = Vec::with_capacity(64);
    frame(&mut out, Opcode::Close, |out| {
        out.extend_from_slice(&code.to_be_bytes());
        out.extend_from_slice(reason.as_bytes());
    });
    out.into()
}

/// `hello`, the first frame.
pub fn hello(heartbeat_ms: u64) -> Bytes {
    let server = concat!("switchboard/", env!("CARGO_PKG_VERSION"));
    Frame::Hello { protocol: PROTOCOL, server, heartbeat_ms }.encode()
}

/// `ready`: what follows is live. `prev` is the cursor of the frame before it, if there was one.
pub fn ready(prev: Option<Cursor>, cursor: Cursor) -> Bytes {
    let mut out = Vec::with_capacity(96);
    frame(&mut out, Opcode::Text, |out| {
        out.extend_from_slice(br#"{"type":"ready","#);
        if prev.is_some() {
            write_prev(out, prev);
        }
        out.extend_from_slice(format!(r#""cursor":"{cursor}"}}"#).as_bytes());
    });
    out.into()
}

/// `position`: nothing that was selected happened between the two.
pub fn position(prev: Option<Cursor>, cursor: Cursor) -> Bytes {
    let mut out = Vec::with_capacity(96);
    frame(&mut out, Opcode::Text, |out| {
        out.extend_from_slice(br#"{"type":"position","#);
        write_prev(out, prev);
        out.extend_from_slice(format!(r#""cursor":"{cursor}"}}"#).as_bytes());
    });
    out.into()
}

/// `status`: whether the gateway has its PostgreSQL.
pub fn status(database_up: bool) -> Bytes {
    Frame::Status { database: if database_up { "up" } else { "down" } }.encode()
}

/// `reset`: the cursor asked for cannot be served.
pub fn reset(reason: &str, oldest: Option<Cursor>) -> Bytes {
    Frame::Reset { reason, oldest: oldest.map(|cursor| cursor.to_string()) }.encode()
}

/// `error`, with the `id` of the request that it answers, if there is one.
pub fn error(code: &str, message: &str, id: Option<Value>) -> Bytes {
    Frame::Error { code, message, id }.encode()
}

/// `pong`, the answer to a `ping` message.
pub fn pong(id: Option<Value>) -> Bytes {
    Frame::Pong { id }.encode()
}

/// A page of `rows`, built row by row.
pub struct RowsFrame {
    json: Vec<u8>,
    head_bytes: usize,
}

impl RowsFrame {
    /// An empty page of a table.
    pub fn new(table: &TableName, key: Option<&[String]>) -> RowsFrame {
        let mut json = br#"{"type":"rows","table":"#.to_vec();
        write_json(&mut json, &table.to_string());
        json.extend_from_slice(br#","key":"#);
        write_json(&mut json, &key);
        json.extend_from_slice(br#","rows":["#);
        RowsFrame { head_bytes: json.len(), json }
    }

    /// Appends a row, the text of a JSON object.
    pub fn push(&mut self, row: &str) {
        if !self.is_empty() {
            self.json.push(b',');
        }
        self.json.extend_from_slice(row.as_bytes());
    }

    /// Whether the page has no rows.
    pub fn is_empty(&self) -> bool {
        self.json.len() == self.head_bytes
    }

    /// How many bytes the page has.
    pub fn bytes(&self) -> usize {
        self.json.len()
    }

    /// The finished frame; the page begins anew, empty.
    pub fn take(&mut self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.json.len() + 16);
        frame(&mut out, Opcode::Text, |out| {
            out.extend_from_slice(&self.json);
            out.extend_from_slice(b"]}");
        });
        self.json.truncate(self.head_bytes);
        out
    }
}

/// Writes the commits of one kind of subscription, and keeps their chain.
pub struct Encoder {
    kind: Kind,
    /// The cursor of the last frame; none before the first.
    pub last: Option<Cursor>,
    /// Whether parts of a commit were written and its last is still to come.
    continues: bool,
}

impl Encoder {
    /// An encoder whose next frame follows `last`.
    pub fn new(kind: Kind, last: Option<Cursor>) -> Encoder {
        Encoder { kind, last, continues: false }
    }

    /// Says that parts of a commit went before, so that its last part is owed.
    pub fn go_on(&mut self) {
        self.continues = true;
    }

    /// The form in which it writes.
    pub fn form(&self) -> Form {
        self.kind.form
    }

    /// Appends what this kind of subscription gets of a part: a frame, several, or nothing.
    pub fn encode(&mut self, part: &Part, out: &mut Vec<u8>) {
        match self.kind.form {
            Form::Feed => self.encode_commit(part, out),
            Form::SwitchStatus => encode_switch_status(&self.kind.selection, part, out),
        }
    }

    fn encode_commit(&mut self, part: &Part, out: &mut Vec<u8>) {
        let mut wanted = part.changes.iter().filter(|change| self.kind.selection.wants(change)).peekable();
        // The last part is owed where others were sent, even if it holds nothing that was selected.
        let owed = part.last && self.continues;
        if wanted.peek().is_none() && !owed {
            return;
        }
        frame(out, Opcode::Text, |out| {
            out.extend_from_slice(br#"{"type":"commit","#);
            write_prev(out, self.last);
            out.extend_from_slice(format!(r#""cursor":"{}","#, part.cursor).as_bytes());
            if !part.last {
                out.extend_from_slice(br#""more":true,"#);
            }
            out.extend_from_slice(format!(r#""tx":"{}","at":"{}","changes":["#, part.tx, part.at).as_bytes());
            for (index, change) in wanted.enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                out.extend_from_slice(change.json());
            }
            out.extend_from_slice(b"]}");
        });
        self.last = Some(part.cursor);
        self.continues = !part.last;
    }

    /// Appends a `position` frame up to `cursor`, for the forms that have one.
    pub fn encode_position(&mut self, cursor: Cursor, out: &mut Vec<u8>) {
        if self.kind.form == Form::Feed {
            out.extend_from_slice(&position(self.last, cursor));
            self.last = Some(cursor);
        }
    }
}

fn write_prev(out: &mut Vec<u8>, prev: Option<Cursor>) {
    match prev {
        Some(prev) => out.extend_from_slice(format!(r#""prev":"{prev}","#).as_bytes()),
        None => out.extend_from_slice(br#""prev":null,"#),
    }
}

/// `{"switch_id":"1","status":"1"}` for every switch that came or whose status changed.
fn encode_switch_status(selection: &Selection, part: &Part, out: &mut Vec<u8>) {
    for change in part.changes.iter().filter(|change| selection.wants(change)) {
        let news = match change.op {
            Op::Insert => true,
            Op::Update => change.changed().iter().any(|column| column == "status"),
            Op::Delete | Op::Truncate => false,
        };
        let Some(row) = change.new.as_deref().filter(|_| news) else { continue };
        let row = fields(row);
        let value = |column: &str| {
            let value = row.0.iter().find(|(name, _)| name == column).map(|(_, value)| value.get());
            value.map_or(Cow::Borrowed(""), plain_text)
        };
        frame(out, Opcode::Text, |out| {
            out.extend_from_slice(br#"{"switch_id":"#);
            write_json(out, &value("id"));
            out.extend_from_slice(br#","status":"#);
            write_json(out, &value("status"));
            out.push(b'}');
        });
    }
}

/// A JSON value as the classic demonstration spells it: booleans as 1 and 0, null as nothing, all else as it stands.
fn plain_text(json: &str) -> Cow<'_, str> {
    match json {
        "true" => Cow::Borrowed("1"),
        "false" => Cow::Borrowed("0"),
        "null" => Cow::Borrowed(""),
        text if text.starts_with('"') => serde_json::from_str(text).map_or(Cow::Borrowed(text), Cow::Owned),
        other => Cow::Borrowed(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_the_shortest_header_that_fits() {
        for (length, header) in [
            (0, vec![0x81, 0]),
            (125, vec![0x81, 125]),
            (126, vec![0x81, 126, 0, 126]),
            (65535, vec![0x81, 126, 0xff, 0xff]),
            (65536, vec![0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let mut out = b"before".to_vec();

            frame(&mut out, Opcode::Text, |out| out.extend(std::iter::repeat_n(b'x', length)));

            assert_eq!(out[6..6 + header.len()], header);
            assert_eq!(out[6 + header.len()..], vec![b'x'; length]);
        }
    }

    #[test]
    fn a_request_reads_its_parameters_and_ignores_others() {
        assert_eq!(
            Request::parse("table=switch,%22a%2Cb%22&from=now&on_reset=close&x=1"),
            Ok(Request {
                tables: Some(vec!["switch".into(), "a,b".into()]),
                from: From::Now,
                on_reset: OnReset::Close
            })
        );
        assert_eq!(Request::parse(""), Ok(Request { tables: None, from: From::Snapshot, on_reset: OnReset::Snapshot }));
    }

    #[test]
    fn a_wrong_parameter_is_named_with_its_remedy() {
        assert_eq!(Request::parse("on_reset=x").unwrap_err(), "on_reset=x is unknown; say snapshot or close");
        assert!(Request::parse("table=a,,b").unwrap_err().contains("empty table"));
        assert!(Request::parse("table=%22a").unwrap_err().contains("quote"));
        assert!(Request::parse("from=").unwrap_err().contains("cursor"));
        assert!(Request::parse("where=a.eq.1").unwrap_err().contains("where"));
    }

    #[test]
    fn whatever_a_client_sends_becomes_an_answer() {
        assert_eq!(Message::parse(r#"{"type":"ping","id":7,"x":1}"#), Message::Ping(Some(7.into())));
        for text in ["", "[]", "1", "{", r#"{"type":1}"#, r#"{"type":"nonsense"}"#, "\u{0}"] {
            assert!(matches!(Message::parse(text), Message::Wrong(..)), "{text}");
        }
    }
}
