//! Protocol 1: what travels over the wire, and nothing of how.
//!
//! The frames that one subscription or connection gets are written here, those that many share in [`encoder`], and the close codes have
//! their one table here; requests are read in [`request`], the words that they may hold stand in
//! [`parameters`], the WebSocket frames that carry it all are in [`frame`].

pub mod encoder;
pub mod frame;
pub mod parameters;
pub mod request;

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;

pub use encoder::{Chosen, Encoder};
use frame::{Opcode, frame};
pub use frame::{payloads, tagged};
pub use request::{From, Message, OnReset, Request};

use crate::change::{Cursor, TableName, write_json};
use crate::selection::Selection;

/// The number of the protocol, in `hello`.
pub const PROTOCOL: u32 = 1;

/// The codes of `error` frames. What they mean stands in `docs/frames.schema.json`.
pub const ERROR_CODES: [&str; 9] = [
    "bad_message",
    "bad_request",
    "cursor_gone",
    "failed",
    "too_heavy",
    "too_many",
    "unknown_subscription",
    "unknown_type",
    "unreadable",
];

/// The codes of refused requests. What they mean stands there too.
pub const REFUSAL_CODES: [&str; 18] = [
    "bad_request",
    "channel",
    "failed",
    "gone",
    "host",
    "method_not_allowed",
    "no_table",
    "not_flipped",
    "not_found",
    "not_listening",
    "not_ready",
    "origin",
    "stopping",
    "too_heavy",
    "too_many",
    "unreadable",
    "websocket_only",
    "websocket_version",
];

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
        // The form itself knows its table, which need not be there yet.
        Kind { selection: Selection::default(), form: Form::SwitchStatus }
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
    debug_assert!(ERROR_CODES.contains(&code), "{code} is not among the codes of errors");
    Frame::Error { code, message, id }.encode()
}

/// `pong`, the answer to a `ping` message.
pub fn pong(id: Option<Value>) -> Bytes {
    Frame::Pong { id }.encode()
}

/// A text as it stands, for streams that are not of protocol 1.
pub fn text(text: &str) -> Bytes {
    let mut out = Vec::with_capacity(text.len() + 10);
    frame(&mut out, Opcode::Text, |out| out.extend_from_slice(text.as_bytes()));
    out.into()
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

fn write_prev(out: &mut Vec<u8>, prev: Option<Cursor>) {
    match prev {
        Some(prev) => out.extend_from_slice(format!(r#""prev":"{prev}","#).as_bytes()),
        None => out.extend_from_slice(br#""prev":null,"#),
    }
}
