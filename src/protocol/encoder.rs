//! The encoder: writes the commits of one kind of subscription, once for all who follow it.

use std::borrow::Cow;

use super::frame::{Opcode, frame};
use super::{Form, Kind, position, write_prev};
use crate::change::{Cursor, Op, Opened, View, write_json};
use crate::filter::{Meter, Undecidable};
use crate::selection::Wanted;

/// The table of `/switch/status`.
const SWITCH: (&str, &str) = ("public", "switch");

/// What is wanted of a part: some of its changes, by their places in it, in their order.
pub type Chosen<'a> = Vec<(usize, Wanted<'a>)>;

impl Kind {
    /// What this kind of subscription wants of a part. Fails as [`crate::selection::Selection::wants`] does.
    pub fn choose(&self, part: &Opened<'_>, meter: &mut Meter<'_>) -> Result<Chosen<'_>, Undecidable> {
        let mut chosen = Vec::new();
        if self.form == Form::SwitchStatus {
            return Ok(chosen);
        }
        for (index, change) in part.changes.iter().enumerate() {
            chosen.extend(self.selection.wants(change, meter)?.map(|wanted| (index, wanted)));
        }
        Ok(chosen)
    }
}

/// Writes the commits of one kind of subscription, and keeps their chain.
#[derive(Clone)]
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
    ///
    /// Fails where a row has not the columns that were selected: the table is not any more, or was not yet, what it was when it was
    /// selected. What was appended counts for nothing then, and nothing can follow.
    pub fn encode(&mut self, part: &Opened<'_>, meter: &mut Meter<'_>, out: &mut Vec<u8>) -> Result<(), Undecidable> {
        let kind = self.kind.clone();
        self.write(part, &kind.choose(part, meter)?, out)
    }

    /// The same, where it was found out before what is wanted of the part.
    pub fn write(&mut self, part: &Opened<'_>, chosen: &Chosen<'_>, out: &mut Vec<u8>) -> Result<(), Undecidable> {
        match self.kind.form {
            Form::Feed => self.write_commit(part, chosen, out),
            Form::SwitchStatus => {
                encode_switch_status(part, out);
                Ok(())
            }
        }
    }

    fn write_commit(&mut self, opened: &Opened<'_>, chosen: &Chosen<'_>, out: &mut Vec<u8>) -> Result<(), Undecidable> {
        let part = opened.part;
        // The last part is owed where others were sent, even if it holds nothing that was selected.
        let owed = part.last && self.continues;
        if chosen.is_empty() && !owed {
            return Ok(());
        }
        let mut written = Ok(());
        frame(out, Opcode::Text, |out| {
            out.extend_from_slice(br#"{"type":"commit","#);
            write_prev(out, self.last);
            out.extend_from_slice(format!(r#""cursor":"{}","#, part.cursor).as_bytes());
            if !part.last {
                out.extend_from_slice(br#""more":true,"#);
            }
            out.extend_from_slice(format!(r#""tx":"{}","at":"{}","changes":["#, part.tx, part.at).as_bytes());
            for (count, (index, wanted)) in chosen.iter().enumerate() {
                if count > 0 {
                    out.push(b',');
                }
                if let Err(missing) = write_change(&opened.changes[*index], *wanted, out) {
                    written = Err(missing);
                }
            }
            out.extend_from_slice(b"]}");
        });
        self.last = Some(part.cursor);
        self.continues = !part.last;
        written
    }

    /// Appends a `position` frame up to `cursor`, for the forms that have one.
    pub fn encode_position(&mut self, cursor: Cursor, out: &mut Vec<u8>) {
        if self.kind.form == Form::Feed {
            out.extend_from_slice(&position(self.last, cursor));
            self.last = Some(cursor);
        }
    }
}

/// Appends what is wanted of a change, as a JSON object.
fn write_change(change: &View<'_>, wanted: Wanted<'_>, out: &mut Vec<u8>) -> Result<(), Undecidable> {
    match wanted.columns {
        Some(columns) => change.write_columns(columns, out).map_err(Undecidable::Column)?,
        None => {
            // Made once for everybody; but for its end, behind which there may be more.
            let json = change.change.json();
            out.extend_from_slice(&json[..json.len() - 1]);
        }
    }
    if let Some(matched) = wanted.matched {
        out.extend_from_slice(format!(r#","match":"{}""#, matched.name()).as_bytes());
    }
    out.push(b'}');
    Ok(())
}

/// `{"switch_id":"1","status":"1"}` for every switch that came or whose status changed.
fn encode_switch_status(part: &Opened<'_>, out: &mut Vec<u8>) {
    let of_switches = |change: &&View<'_>| {
        let name = &change.change.table.name;
        (name.schema.as_str(), name.table.as_str()) == SWITCH
    };
    for change in part.changes.iter().filter(of_switches) {
        let news = match change.change.op {
            Op::Insert => true,
            Op::Update => change.changed().iter().any(|column| column == "status"),
            Op::Delete | Op::Truncate | Op::Reset => false,
        };
        let Some(row) = change.after().filter(|_| news) else { continue };
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
