//! The thread of a subscription over any number of connections: where to go on, and whether nothing is lost and nothing comes twice.
//!
//! These are the rules of `docs/delivery.md` for clients, and nothing else.

use std::fmt;

use super::frame::Frame;

/// Where a subscription stands.
pub struct Thread {
    /// How to begin where there is no cursor.
    begin: String,
    /// Behind which commit to go on.
    cursor: Option<String>,
    /// The cursor of the last frame of this connection, or the one that it was asked to go on from.
    last: Option<String>,
    /// Whether cursors count on this connection: not while commits only complete the rows of a snapshot.
    counts: bool,
}

/// A frame that does not follow the one before it.
#[derive(Debug)]
pub struct Broken {
    known: String,
    prev: Option<String>,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Broken { known, prev } = self;
        let prev = prev.as_deref().unwrap_or("nothing");
        write!(
            f,
            "LOST OR REPEATED: the gateway sent what follows {prev}, where {known} was the last that came; \
             going on from what is certain, by another connection; tell the operator"
        )
    }
}

impl Thread {
    /// A subscription that begins with `snapshot`, `now`, or behind a cursor.
    pub fn from(from: &str) -> Thread {
        let (begin, cursor) = match from {
            "snapshot" | "now" => (from.to_owned(), None),
            // Never asked for: a cursor that cannot be served gets a reset.
            cursor => ("snapshot".to_owned(), Some(cursor.to_owned())),
        };
        Thread { begin, cursor, last: None, counts: false }
    }

    /// Begins a connection; where it is to begin.
    pub fn connect(&mut self) -> &str {
        self.last = self.cursor.clone();
        self.counts = self.cursor.is_some();
        self.cursor.as_deref().unwrap_or(&self.begin)
    }

    /// The cursor behind which to go on.
    pub fn cursor(&self) -> Option<&str> {
        self.cursor.as_deref()
    }

    /// Takes the next frame of the connection; fails where it does not follow the one before.
    pub fn hear(&mut self, frame: &Frame<'_>) -> Result<(), Broken> {
        if frame.kind == "reset" {
            (self.cursor, self.last, self.counts) = (None, None, false);
            self.begin = "snapshot".to_owned();
        }
        let Some(cursor) = &frame.cursor else { return Ok(()) };
        if let Some(known) = self.last.as_ref().filter(|known| frame.prev.as_ref() != Some(*known)) {
            return Err(Broken { known: known.clone(), prev: frame.prev.clone() });
        }
        self.last = Some(cursor.clone());
        self.counts |= frame.kind == "ready";
        if self.counts && !frame.more {
            self.cursor = Some(cursor.clone());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hear(thread: &mut Thread, frames: &[&str]) -> Result<(), Broken> {
        frames.iter().try_for_each(|text| thread.hear(&Frame::parse(text).expect("a frame")))
    }

    #[test]
    fn what_comes_before_ready_does_not_count_behind_a_snapshot() {
        let mut thread = Thread::from("snapshot");
        assert_eq!(thread.connect(), "snapshot");

        hear(&mut thread, &[r#"{"type":"commit","prev":null,"cursor":"e.1.a"}"#]).expect("a chain");
        assert_eq!(thread.cursor(), None);
        assert_eq!(thread.connect(), "snapshot");

        hear(&mut thread, &[r#"{"type":"commit","prev":null,"cursor":"e.2.a"}"#]).expect("a chain");
        hear(&mut thread, &[r#"{"type":"ready","prev":"e.2.a","cursor":"e.3.a"}"#]).expect("a chain");
        assert_eq!(thread.connect(), "e.3.a");
    }

    #[test]
    fn who_goes_on_from_a_cursor_counts_what_comes_before_ready() {
        let mut thread = Thread::from("e.1.a");
        assert_eq!(thread.connect(), "e.1.a");

        hear(&mut thread, &[r#"{"type":"commit","prev":"e.1.a","cursor":"e.2.a"}"#]).expect("a chain");

        assert_eq!(thread.connect(), "e.2.a");
    }

    #[test]
    fn a_commit_in_parts_counts_once_its_last_part_is_there() {
        let mut thread = Thread::from("e.1.a");
        thread.connect();
        let part = r#"{"type":"commit","prev":"e.1.a","cursor":"e.2.a","more":true}"#;

        hear(&mut thread, &[part]).expect("a chain");
        assert_eq!(thread.connect(), "e.1.a");

        hear(&mut thread, &[part, r#"{"type":"commit","prev":"e.2.a","cursor":"e.2.a"}"#]).expect("a chain");
        assert_eq!(thread.connect(), "e.2.a");
    }

    #[test]
    fn a_frame_that_does_not_follow_is_found_and_not_counted() {
        let mut thread = Thread::from("e.1.a");
        thread.connect();

        let gap = hear(&mut thread, &[r#"{"type":"commit","prev":"e.2.a","cursor":"e.3.a"}"#]).expect_err("a gap");
        assert!(gap.to_string().contains("follows e.2.a, where e.1.a"), "{gap}");
        hear(&mut thread, &[r#"{"type":"ready","cursor":"e.3.a"}"#]).expect_err("nothing that it follows");
        assert_eq!(thread.connect(), "e.1.a");
    }

    #[test]
    fn a_reset_begins_with_a_snapshot() {
        let mut thread = Thread::from("now");
        thread.connect();
        hear(&mut thread, &[r#"{"type":"ready","cursor":"e.1.a"}"#, r#"{"type":"reset","reason":"epoch"}"#])
            .expect("a chain");

        assert_eq!(thread.connect(), "snapshot");
        hear(&mut thread, &[r#"{"type":"ready","cursor":"f.1.a"}"#]).expect("another chain");
        assert_eq!(thread.connect(), "f.1.a");
    }
}
