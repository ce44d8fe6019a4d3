//! Protocol 1: what travels over the wire, and nothing of how.
//!
//! Frames are written here, and the close codes have their one table here; requests are read in [`request`], the WebSocket frames that
//! carry it all are in [`frame`].

pub mod frame;
pub mod request;

use std::borrow::Cow;
use std::collections::BTreeSet;

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;

use frame::{Opcode, frame};
pub use frame::{payloads, tagged};
pub use request::{From, Message, OnReset, Request};

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
