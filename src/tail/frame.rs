//! A frame of protocol 1 as a client reads it: what a later version adds is ignored, and values stay the text that they are.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

/// Any frame; fields that it does not have are empty.
#[derive(Deserialize)]
pub struct Frame<'a> {
    #[serde(rename = "type", borrow)]
    pub kind: Cow<'a, str>,
    pub protocol: Option<u32>,
    pub heartbeat_ms: Option<u64>,
    pub prev: Option<String>,
    pub cursor: Option<String>,
    #[serde(default)]
    pub more: bool,
    pub tx: Option<String>,
    pub at: Option<String>,
    #[serde(borrow, default)]
    pub changes: Vec<Change<'a>>,
    pub table: Option<String>,
    pub key: Option<Vec<String>>,
    #[serde(borrow, default)]
    pub rows: Vec<&'a RawValue>,
    pub database: Option<String>,
    pub reason: Option<String>,
    pub message: Option<String>,
}

/// A change of a commit.
#[derive(Deserialize)]
pub struct Change<'a> {
    #[serde(borrow)]
    pub op: Cow<'a, str>,
    pub table: String,
    #[serde(borrow)]
    pub key: Option<&'a RawValue>,
    #[serde(borrow)]
    pub new: Option<&'a RawValue>,
    #[serde(borrow)]
    pub old: Option<&'a RawValue>,
    #[serde(default)]
    pub changed: Vec<String>,
    #[serde(rename = "match")]
    pub fits: Option<String>,
}

impl Frame<'_> {
    /// Reads a frame.
    pub fn parse(text: &str) -> Result<Frame<'_>, serde_json::Error> {
        serde_json::from_str(text)
    }
}
