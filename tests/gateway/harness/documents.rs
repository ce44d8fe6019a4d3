//! The wire as `docs/` has it written down: whatever a test sees of a gateway is held against that.

use std::sync::LazyLock;

use serde_json::Value;
use switchboard::documents::DOCUMENTS;

use super::schema::Schema;

/// The document that is served under this name.
pub fn document(name: &str) -> Value {
    let document = DOCUMENTS.into_iter().find(|document| document.name == name);
    serde_json::from_str(document.unwrap_or_else(|| panic!("{name} is not served")).text).unwrap()
}

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| Schema::new(&document("frames.schema.json")));

/// The statuses that `openapi.json` has for each address.
static STATUSES: LazyLock<Value> = LazyLock::new(|| {
    let paths = document("openapi.json")["paths"].clone();
    let statuses = |path: &Value| path["get"]["responses"].clone();
    paths.as_object().unwrap().iter().map(|(name, path)| (name.clone(), statuses(path))).collect()
});

/// Whether a value is as the definition of this name has it; else what is wrong.
pub fn fits(definition: &str, value: &Value) -> Result<(), String> {
    SCHEMA.fits(definition, value)
}

/// Panics unless the value is as the definition has it.
pub fn check(definition: &str, value: &Value) {
    if let Err(finding) = fits(definition, value) {
        panic!("not as docs/frames.schema.json has {definition}: {finding}");
    }
}

/// Panics unless a frame of the feed is as the definition of its type has it.
pub fn check_frame(frame: &Value) {
    let kind = frame["type"].as_str().unwrap_or_default();
    check(&definition(kind), frame);
}

/// The name of what defines this type of frame or message.
pub fn definition(kind: &str) -> String {
    let (first, rest) = kind.split_at(kind.len().min(1));
    first.to_uppercase() + rest
}

static CLOSE_CODES: LazyLock<Value> =
    LazyLock::new(|| document("asyncapi.json")["components"]["x-close-codes"].clone());

/// Panics unless `asyncapi.json` says what this close code means.
pub fn check_close(code: u16) {
    then(code);
}

/// Whether a client that is closed with this code is told not to come back.
pub fn stops(code: u16) -> bool {
    then(code) == "stop"
}

fn then(code: u16) -> &'static str {
    let row = CLOSE_CODES.as_array().unwrap().iter().find(|row| row["code"] == code);
    row.and_then(|row| row["then"].as_str()).unwrap_or_else(|| panic!("docs/asyncapi.json has no close code {code}"))
}

/// Panics unless the answer to a GET is as `openapi.json` has it.
pub fn check_answer(path: &str, status: u16, body: &str) {
    let path = path.split('?').next().unwrap();
    if let Some(statuses) = STATUSES.get(path) {
        assert!(
            statuses.get(status.to_string()).is_some(),
            "docs/openapi.json has no {status} for {path}: {body:.300}"
        );
    }
    let definition = match (status, path) {
        (400.., _) => "ErrorBody",
        (200, "/v1/changes") => "ChangesPage",
        (200, "/v1/snapshot") => "SnapshotBody",
        (200, "/v1/tables") => "TablesBody",
        _ => return,
    };
    check(definition, &serde_json::from_str(body).unwrap_or_else(|error| panic!("{error} in {body:.300}")));
}
