//! Changes as people read them: one a line. Nothing that a row holds can drive the terminal.

use std::borrow::Cow;
use std::fmt::Write;

use super::frame::{Change, Frame};
use crate::change::{Fields, fields};

/// How many characters of a value are shown. `--json` shows all.
const VALUE_CHARS_MAX: usize = 200;
/// How wide the column of the time is.
const TIME_WIDTH: usize = 12;

/// Whether a terminal looks on that has colours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    /// Text, and nothing else.
    Plain,
    /// Text with the colours of a terminal.
    Colours,
}

impl Style {
    fn paint(self, code: &str, text: &str) -> String {
        match self {
            Style::Plain => text.to_owned(),
            Style::Colours => format!("\x1b[{code}m{text}\x1b[0m"),
        }
    }

    fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }
}

/// Prints rows and commits.
pub struct Printer {
    style: Style,
    unfinished: Option<Unfinished>,
}

/// A commit whose last part is still to come.
struct Unfinished {
    cursor: String,
    /// How many of its changes were printed.
    printed: usize,
    /// How many of those come again, because the connection ended in the middle.
    repeated: usize,
}

impl Printer {
    /// A printer.
    pub fn new(style: Style) -> Printer {
        Printer { style, unfinished: None }
    }

    /// Another connection begins: a commit that was printed in part comes again from its beginning.
    pub fn begin_again(&mut self) {
        if let Some(unfinished) = &mut self.unfinished {
            unfinished.repeated = unfinished.printed;
        }
    }

    /// What was begun does not go on.
    pub fn reset(&mut self) {
        self.unfinished = None;
    }

    /// Prints rows of a snapshot.
    pub fn rows(&self, frame: &Frame<'_>, out: &mut Vec<u8>) {
        let table = plain(frame.table.as_deref().unwrap_or("?"));
        let key = frame.key.as_deref().unwrap_or_default();
        for row in &frame.rows {
            let row = fields(row);
            let in_key = |name: &str| key.iter().any(|column| column == name);
            let key = Fields(row.0.iter().filter(|(name, _)| in_key(name)).cloned().collect());
            let time = self.style.faint(&format!("{:<TIME_WIDTH$}", "snapshot"));
            let op = self.style.paint("36", "row");
            line(out, &[&time, &table, &key_text(&key), &op, &columns(&row, &key)]);
        }
    }

    /// Prints the changes of a commit, or of a part of one.
    pub fn commit(&mut self, frame: &Frame<'_>, out: &mut Vec<u8>) {
        let cursor = frame.cursor.clone().unwrap_or_default();
        let begun = self.unfinished.take().filter(|unfinished| unfinished.cursor == cursor);
        let mut commit = begun.unwrap_or(Unfinished { cursor, printed: 0, repeated: 0 });
        let at = frame.at.as_deref().unwrap_or("");
        let time = plain(at.get(11..11 + TIME_WIDTH).unwrap_or(at)).into_owned();
        let together = frame.more || commit.printed > 0 || frame.changes.len() > 1;
        if together && commit.printed == 0 {
            let tx = plain(frame.tx.as_deref().unwrap_or("?"));
            let size = if frame.more { "in parts".to_owned() } else { format!("{} changes", frame.changes.len()) };
            line(out, &[&self.style.faint(&format!("{time} transaction {tx}, {size}:"))]);
        }
        for change in &frame.changes {
            if commit.repeated > 0 {
                commit.repeated -= 1;
                continue;
            }
            commit.printed += 1;
            if together {
                out.extend_from_slice(b"  ");
            }
            self.change(&time, change, out);
        }
        self.unfinished = frame.more.then_some(commit);
    }

    fn change(&self, time: &str, change: &Change<'_>, out: &mut Vec<u8>) {
        let colour = match change.op.as_ref() {
            "insert" => "32",
            "update" => "33",
            _ => "31",
        };
        let mut op = self.style.paint(colour, &plain(&change.op));
        // An insert always enters the filter, and a delete always leaves it.
        if let Some(fits) = change.fits.as_deref().filter(|fits| change.op == "update" && *fits != "stay") {
            op = format!("{op} ({})", plain(fits));
        }
        let [key, new, old] = [change.key, change.new, change.old].map(|row| row.map_or(Fields(Vec::new()), fields));
        let what = match change.op.as_ref() {
            "update" => differences(&change.changed, &old, &new),
            "delete" => columns(&old, &key),
            _ => columns(&new, &key),
        };
        line(out, &[&self.style.faint(time), &plain(&change.table), &key_text(&key), &op, &what]);
    }
}

/// Words that are not empty, with a space between them.
fn line(out: &mut Vec<u8>, words: &[&str]) {
    let words: Vec<&str> = words.iter().copied().filter(|word| !word.is_empty()).collect();
    out.extend_from_slice(words.join(" ").as_bytes());
    out.push(b'\n');
}

/// `a=1,b="x"`.
fn key_text(key: &Fields<'_>) -> String {
    let columns = key.0.iter().map(|(name, value)| format!("{}={}", plain(name), shown(value.get())));
    columns.collect::<Vec<_>>().join(",")
}

/// `name: "Front door", status: true`, without what stands in the key.
fn columns(row: &Fields<'_>, key: &Fields<'_>) -> String {
    let others = row.0.iter().filter(|(name, _)| key.0.iter().all(|(column, _)| column != name));
    others.map(|(name, value)| format!("{}: {}", plain(name), shown(value.get()))).collect::<Vec<_>>().join(", ")
}

/// `status: true → false`.
fn differences(changed: &[String], old: &Fields<'_>, new: &Fields<'_>) -> String {
    if changed.is_empty() {
        // Others than those of --columns may have.
        return "(no change in the columns followed)".to_owned();
    }
    let value = |row: &Fields<'_>, column: &String| {
        row.0.iter().find(|(name, _)| name == column).map_or("?".to_owned(), |(_, value)| shown(value.get()))
    };
    let one = |column: &String| format!("{}: {} → {}", plain(column), value(old, column), value(new, column));
    changed.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// The JSON of a value, shortened where it is long.
fn shown(json: &str) -> String {
    match json.char_indices().nth(VALUE_CHARS_MAX) {
        Some((end, _)) => format!("{}… ({} bytes)", plain(&json[..end]), json.len()),
        None => plain(json).into_owned(),
    }
}

/// Text with everything escaped that could drive a terminal: control characters, and those that change the direction of writing.
pub fn plain(text: &str) -> Cow<'_, str> {
    if !text.contains(drives) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            '\n' | '\r' | '\t' => out.push(' '),
            other if drives(other) => write!(out, "\\u{:04x}", u32::from(other)).expect("a string takes all text"),
            other => out.push(other),
        }
    }
    Cow::Owned(out)
}

fn drives(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(printer: &mut Printer, frame: &str) -> String {
        let frame = Frame::parse(frame).expect("a frame");
        let mut out = Vec::new();
        if frame.kind == "rows" {
            printer.rows(&frame, &mut out)
        } else {
            printer.commit(&frame, &mut out)
        }
        String::from_utf8(out).expect("text")
    }

    fn commit(fields: &str, changes: &[&str]) -> String {
        let changes = changes.join(",");
        format!(
            r#"{{"type":"commit","cursor":"e.1.a","tx":"729","at":"2026-11-23T23:16:54.446950Z",{fields}"changes":[{changes}]}}"#
        )
    }

    fn insert(id: u32) -> String {
        format!(r#"{{"op":"insert","table":"public.t","key":{{"id":{id}}},"new":{{"id":{id}}}}}"#)
    }

    #[test]
    fn nothing_in_a_row_can_drive_the_terminal() {
        let change = "{\"op\":\"insert\",\"table\":\"public.\\u001b[2J\",\"key\":null,\"new\":\
                      {\"\\u0007\":\"\\u001b]0;x\u{9b}31m\u{202e}\u{7f}\",\"j\":[1,\n\t2]}}";

        let text = print(&mut Printer::new(Style::Plain), &commit("", &[change]));

        assert_eq!(
            text,
            concat!(
                r#"23:16:54.446 public.\u001b[2J insert \u0007: "\u001b]0;x\u009b31m\u202e\u007f", j: [1,  2]"#,
                "\n"
            )
        );
    }

    #[test]
    fn a_long_value_is_shortened() {
        let value = "é".repeat(1_000_000);
        let change = format!(r#"{{"op":"insert","table":"public.t","key":{{"id":1}},"new":{{"id":1,"v":"{value}"}}}}"#);

        let text = print(&mut Printer::new(Style::Plain), &commit("", &[&change]));

        let shown = "é".repeat(VALUE_CHARS_MAX - 1);
        assert_eq!(text, format!("23:16:54.446 public.t id=1 insert v: \"{shown}… (2000002 bytes)\n"));
    }

    #[test]
    fn a_commit_in_parts_that_begins_again_goes_on_where_it_was() {
        let mut printer = Printer::new(Style::Plain);
        let (one, two, three) = (insert(1), insert(2), insert(3));

        let mut text = print(&mut printer, &commit(r#""more":true,"#, &[&one, &two]));
        printer.begin_again();
        // In parts of other sizes.
        text += &print(&mut printer, &commit(r#""more":true,"#, &[&one]));
        text += &print(&mut printer, &commit("", &[&two, &three]));

        assert_eq!(
            text,
            "23:16:54.446 transaction 729, in parts:\n  23:16:54.446 public.t id=1 insert\n  \
             23:16:54.446 public.t id=2 insert\n  23:16:54.446 public.t id=3 insert\n"
        );
    }

    #[test]
    fn a_terminal_with_colours_gets_them() {
        let mut printer = Printer::new(Style::Colours);

        let text = print(&mut printer, &commit("", &[&insert(1)]));

        assert_eq!(text, "\u{1b}[2m23:16:54.446\u{1b}[0m public.t id=1 \u{1b}[32minsert\u{1b}[0m\n");
    }
}
