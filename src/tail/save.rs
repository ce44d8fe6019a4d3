//! The file that keeps the cursor of `switchboard tail` over restarts.
//!
//! It is written whole beside the old one and renamed, so it is always the old or the new one. It says which selection it belongs to: a
//! cursor of another one would leave out changes without a word.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::names::{Typed, shell};

/// The form of the file.
const FORM: u32 = 1;

/// What is selected, as it is sent.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct Selection {
    tables: Vec<String>,
    #[serde(rename = "where")]
    filter: Option<String>,
    columns: Option<String>,
}

impl Selection {
    /// These tables (none: all), this filter, these columns.
    pub fn new(tables: &[Typed], filter: Option<&str>, columns: Option<&str>) -> Selection {
        let mut tables: Vec<String> = tables.iter().map(|table| table.as_str().to_owned()).collect();
        tables.sort();
        tables.dedup();
        Selection { tables, filter: filter.map(str::to_owned), columns: columns.map(str::to_owned) }
    }

    /// The parameters of an address.
    pub fn query(&self, from: &str) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        if !self.tables.is_empty() {
            query.append_pair("table", &self.tables.join(","));
        }
        for (name, value) in [("where", &self.filter), ("columns", &self.columns)] {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        query.append_pair("from", from).finish()
    }

    /// The same as one would type it.
    fn arguments(&self) -> String {
        let mut words: Vec<String> = self.tables.iter().map(|table| shell(table).into_owned()).collect();
        words.extend(self.filter.iter().map(|filter| format!("--where {}", shell(filter))));
        words.extend(self.columns.iter().map(|columns| format!("--columns {}", shell(columns))));
        if words.is_empty() { "all tables".to_owned() } else { words.join(" ") }
    }
}

/// What the file holds.
#[derive(Serialize, Deserialize)]
struct Content {
    switchboard_tail: u32,
    cursor: String,
    #[serde(flatten)]
    selection: Selection,
}

/// The file.
pub struct Saved {
    path: PathBuf,
    selection: Selection,
    cursor: Option<String>,
    at: Option<Instant>,
}

impl Saved {
    /// Reads the file, if there is one. One that is damaged, somebody else's, or of another selection is refused and left as it is.
    pub fn open(path: PathBuf, selection: Selection) -> Result<Saved> {
        let name = path.display();
        if !folder(&path).is_dir() {
            bail!("--save {name}: its folder does not exist; make it, or name another file");
        }
        let cursor = match std::fs::read(&path) {
            Ok(bytes) => {
                let Some(content) = read(&bytes) else {
                    bail!(
                        "--save {name}: that is not a whole file of switchboard tail; remove it, or name another one"
                    );
                };
                if content.selection != selection {
                    let (theirs, ours) = (content.selection.arguments(), selection.arguments());
                    bail!(
                        "--save {name}: that is a cursor of {theirs}, and this would follow {ours}; \
                         ask for the same, remove the file, or name another one"
                    );
                }
                Some(content.cursor)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("--save {name}: cannot be read")),
        };
        Ok(Saved { path, selection, cursor, at: None })
    }

    /// The cursor that is saved.
    pub fn cursor(&self) -> Option<&str> {
        self.cursor.as_deref()
    }

    /// When it was last saved, or tried to be.
    pub fn at(&self) -> Option<Instant> {
        self.at
    }

    /// Saves a cursor.
    pub async fn save(&mut self, cursor: &str) -> Result<()> {
        if self.cursor() == Some(cursor) {
            return Ok(());
        }
        self.at = Some(Instant::now());
        let content = Content { switchboard_tail: FORM, cursor: cursor.to_owned(), selection: self.selection.clone() };
        let mut text = serde_json::to_vec(&content).context("the cursor as JSON")?;
        text.push(b'\n');
        let path = self.path.clone();
        let replacing = tokio::task::spawn_blocking(move || replace(&path, &text)).await?;
        replacing.with_context(|| {
            format!(
                "the cursor {cursor} could not be saved in {}; a later start would go on from an older one",
                self.path.display()
            )
        })?;
        self.cursor = Some(cursor.to_owned());
        Ok(())
    }
}

fn read(bytes: &[u8]) -> Option<Content> {
    let content: Content = serde_json::from_slice(bytes).ok()?;
    let whole = content.switchboard_tail == FORM && !content.cursor.is_empty();
    whole.then_some(content)
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Replaces a file by another one, so that a crash leaves the one or the other.
fn replace(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let folder = folder(path);
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(tables: &[&str]) -> Selection {
        let tables: Vec<Typed> = tables.iter().copied().map(Typed::new).collect();
        Selection::new(&tables, None, None)
    }

    #[test]
    fn the_parameters_are_sent_as_they_were_given() {
        let tables = ["sales.orders", "\"a,b\""].map(Typed::new);
        let selection = Selection::new(&tables, Some("and(a.eq.1,b.like.x*)"), Some("id,ä"));

        let sent: Vec<_> = form_urlencoded::parse(selection.query("e.1.a").as_bytes()).into_owned().collect();

        let sent: Vec<_> = sent.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(
            sent,
            [
                ("table", "\"a,b\",sales.orders"),
                ("where", "and(a.eq.1,b.like.x*)"),
                ("columns", "id,ä"),
                ("from", "e.1.a")
            ]
        );
        assert_eq!(Selection::default().query("now"), "from=now");
    }

    #[tokio::test]
    async fn a_cursor_reads_back_for_its_own_selection_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("cursor");
        let mut saved = Saved::open(path.clone(), selection(&["b", "a"])).expect("no file yet");

        saved.save("e.1.a").await.expect("saved");
        saved.save("e.2.b").await.expect("saved again");

        let again = Saved::open(path.clone(), selection(&["a", "b"])).expect("the same selection");
        assert_eq!(again.cursor(), Some("e.2.b"));
        let refused = Saved::open(path.clone(), selection(&["a"])).err().expect("another selection").to_string();
        assert!(refused.contains("a cursor of a b, and this would follow a;"), "{refused}");
        let names = std::fs::read_dir(folder.path()).expect("the folder").count();
        assert_eq!(names, 1, "nothing is left beside the file");
    }

    #[test]
    fn a_file_that_is_not_whole_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("cursor");
        for content in [
            "",
            "{",
            "precious",
            r#"{"cursor":"e.1.a","tables":[]}"#,
            r#"{"switchboard_tail":1,"cursor":"","tables":[]}"#,
            r#"{"switchboard_tail":2,"cursor":"e.1.a","tables":[]}"#,
        ] {
            std::fs::write(&path, content).expect("written");
            let refused = Saved::open(path.clone(), Selection::default()).err().expect(content).to_string();
            assert!(refused.contains("remove it, or name another one"), "{content}: {refused}");
            assert_eq!(std::fs::read_to_string(&path).expect("read"), content);
        }
        let nowhere = Saved::open(folder.path().join("no/file"), Selection::default()).err().expect("no folder");
        assert!(nowhere.to_string().contains("its folder does not exist"), "{nowhere}");
    }
}
