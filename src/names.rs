//! Names as people type them and as they are told: quoted as SQL quotes them, safe in a shell, and which word is near to one that is not
//! there. It knows nothing of tables.

use std::borrow::Cow;

/// How many characters of a word are compared with others.
const COMPARED_CHARS_MAX: usize = 40;
/// How many characters of what was typed a sentence repeats.
const SHOWN_CHARS_MAX: usize = 80;

/// A name in double quotes, as SQL takes any name.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A name as SQL spells it: in double quotes if it holds other signs than small letters, digits and `_`.
pub fn ident(name: &str) -> Cow<'_, str> {
    let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_');
    match name.bytes().next() {
        Some(first) if !first.is_ascii_digit() && name.bytes().all(plain) => Cow::Borrowed(name),
        _ => Cow::Owned(quoted(name)),
    }
}

/// A word as a shell (POSIX) takes it for one word: in single quotes if it holds signs that a shell may read in another way.
pub fn shell(word: &str) -> Cow<'_, str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_./:@%+,-".contains(&byte);
    match !word.is_empty() && word.bytes().all(plain) {
        true => Cow::Borrowed(word),
        false => Cow::Owned(format!("'{}'", word.replace('\'', r"'\''"))),
    }
}

/// No more of a text than a sentence can hold.
pub fn shown(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

/// A name that somebody typed, quotes included. Without quotes it is taken as it stands, capitals too.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Typed(String);

impl Typed {
    /// A text that is one name, whatever it holds.
    pub fn new(text: impl Into<String>) -> Typed {
        Typed(text.into())
    }

    /// Names with commas between them. Blanks around a name do not count; what stands in double quotes does.
    pub fn list(text: &str) -> Result<Vec<Typed>, NotNames> {
        let mut names = Vec::new();
        let mut quoted = false;
        let mut start = 0;
        for (at, byte) in text.bytes().enumerate() {
            match byte {
                b'"' => quoted = !quoted,
                b',' if !quoted => {
                    names.push(&text[start..at]);
                    start = at + 1;
                }
                _ => {}
            }
        }
        if quoted {
            return Err(NotNames::OpenQuote);
        }
        names.push(&text[start..]);
        let names: Vec<&str> = names.into_iter().map(str::trim).collect();
        if names.iter().any(|name| matches!(*name, "" | "\"\"")) {
            return Err(NotNames::Empty);
        }
        Ok(names.into_iter().map(Typed::new).collect())
    }

    /// As it was typed.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The parts of a qualified name, as SQL reads them; none where quotes stand in other places than around a part.
    pub fn parts(&self) -> Option<Vec<String>> {
        let mut parts = Vec::new();
        let mut rest = self.0.as_str();
        loop {
            let (part, behind) = match rest.strip_prefix('"') {
                Some(inside) => unquoted(inside)?,
                None => {
                    let (part, behind) = rest.split_at(rest.find('.').unwrap_or(rest.len()));
                    (part.to_owned(), behind)
                }
            };
            if part.is_empty() || (!rest.starts_with('"') && part.contains('"')) {
                return None;
            }
            parts.push(part);
            match behind.strip_prefix('.') {
                Some(behind) => rest = behind,
                None => return behind.is_empty().then_some(parts),
            }
        }
    }

    /// Without its quotes, if it stands in quotes as a whole.
    pub fn plain(&self) -> Cow<'_, str> {
        match self.0.strip_prefix('"').and_then(unquoted) {
            Some((name, "")) => Cow::Owned(name),
            _ => Cow::Borrowed(&self.0),
        }
    }

    /// The table's name as SQL spells it, each part in quotes if it needs them. Only the first dot parts what has no quotes.
    pub fn sql(&self) -> String {
        let parts = self.parts().filter(|parts| parts.len() <= 2);
        let parts = parts.unwrap_or_else(|| self.0.splitn(2, '.').map(str::to_owned).collect());
        parts.iter().map(|part| ident(part)).collect::<Vec<_>>().join(".")
    }
}

/// A text that lists no names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotNames {
    /// A quote does not end.
    OpenQuote,
    /// There is nothing between two commas.
    Empty,
}

/// Reads to the end of a quoted name, whose first quote was taken: the name, and what stands behind it.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let mut name = String::new();
    let mut rest = text;
    loop {
        let end = rest.find('"')?;
        name.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(behind) => {
                name.push('"');
                rest = behind;
            }
            None => return Some((name, rest)),
        }
    }
}

/// The known word that is nearest to one that is not known, if any is near.
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let word = letters(word);
    let near = |known: &&'a str| {
        let other = letters(known);
        let common = word.iter().zip(&other).take_while(|(a, b)| a == b).count();
        let edits = edits(&word, &other);
        let longest = word.len().max(other.len());
        (common >= 3 || 2 * edits <= longest).then_some((2 * edits).saturating_sub(common))
    };
    let ranked = known.iter().filter_map(|known| near(known).map(|rank| (rank, *known)));
    ranked.min_by_key(|(rank, _)| *rank).map(|(_, known)| known)
}

/// What counts of a word.
fn letters(word: &str) -> Vec<char> {
    let letters = word.chars().take(COMPARED_CHARS_MAX).filter(|char| char.is_alphanumeric());
    letters.flat_map(char::to_lowercase).collect()
}

/// How many letters have to be put in, taken out, replaced, or exchanged with their neighbours to make one word of another.
fn edits(a: &[char], b: &[char]) -> usize {
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = match (i, j) {
                (0, length) | (length, 0) => length,
                _ => {
                    let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                    let mut least = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                    if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                        least = least.min(rows[i - 2][j - 2] + 1);
                    }
                    least
                }
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(text: &str) -> Typed {
        Typed::new(text)
    }

    #[test]
    fn a_name_is_quoted_for_sql_and_for_a_shell_where_it_has_to_be() {
        for (name, sql, word) in [
            ("orders", "orders", "orders"),
            ("_2", "_2", "_2"),
            ("2a", "\"2a\"", "'\"2a\"'"),
            ("User", "\"User\"", "'\"User\"'"),
            ("größe", "\"größe\"", "'\"größe\"'"),
            ("o'\"x", "\"o'\"\"x\"", "'\"o'\\''\"\"x\"'"),
            ("", "\"\"", "'\"\"'"),
        ] {
            assert_eq!(ident(name), sql);
            assert_eq!(shell(&ident(name)), word);
        }
        assert_eq!(shell(""), "''");
    }

    #[test]
    fn names_are_listed_with_commas_and_quoted_as_sql_does() {
        let list = Typed::list(r#" a , "a,""b ",S."x.y",p.q.r"#).expect("names");

        let parts: Vec<Vec<String>> = list.iter().map(|name| name.parts().expect("a name")).collect();
        assert_eq!(parts, [vec!["a"], vec!["a,\"b "], vec!["S", "x.y"], vec!["p", "q", "r"]]);
        assert_eq!(list.iter().map(Typed::sql).collect::<Vec<_>>(), ["a", r#""a,""b ""#, r#""S"."x.y""#, r#"p."q.r""#]);
        assert_eq!(list[1].plain(), "a,\"b ");
        for (text, mistake) in [
            ("", NotNames::Empty),
            ("a,", NotNames::Empty),
            ("a,\"\"", NotNames::Empty),
            ("\"a", NotNames::OpenQuote),
            ("a\"\"\",b", NotNames::OpenQuote),
        ] {
            assert_eq!(Typed::list(text), Err(mistake), "{text}");
        }
    }

    #[test]
    fn a_name_with_quotes_at_other_places_has_no_parts() {
        for text in ["a\"b\"", "\"a\"b", "a..b", ".a", "a.", "\"a", "\"\"", "a.\"b\"\"", "s.o\"dd"] {
            assert_eq!(typed(text).parts(), None, "{text}");
            assert_eq!(typed(text).plain(), if text == "\"\"" { "" } else { text });
        }
        assert_eq!(typed("s.o\"dd").sql(), r#"s."o""dd""#);
    }

    #[test]
    fn the_nearest_word_is_one_that_looks_alike() {
        let known = ["table", "where", "columns", "from", "on_reset", "first"];
        for (word, near) in [
            ("tabel", Some("table")),
            ("Tables", Some("table")),
            ("wher", Some("where")),
            ("cols", Some("columns")),
            ("onReset", Some("on_reset")),
            ("form", Some("from")),
            ("fist", Some("first")),
            ("x", None),
            ("limit", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, &known), near, "{word}");
        }
        nearest(&"é".repeat(100_000), &known);
    }
}
