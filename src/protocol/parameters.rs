//! The words of a request: which parameters an address has and which fields a message, how an address spells them, and what to write in
//! the place of one that does not exist. Nothing is guessed: a word that is ignored would leave its reader with everything.

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

use crate::filter;
use crate::names::{ident, nearest, shown};

/// Something that takes words: an address its parameters, a message its fields.
#[derive(Clone, Copy)]
pub struct Place {
    name: &'static str,
    words: &'static [&'static str],
}

/// The feed.
pub const FEED: Place = Place { name: "/v1/feed", words: &["table", "where", "columns", "from", "on_reset", "first"] };
/// Pages of commits.
pub const CHANGES: Place =
    Place { name: "/v1/changes", words: &["table", "where", "columns", "from", "limit", "wait"] };
/// Current rows. `from` can only be what it is anyway.
pub const SNAPSHOT: Place = Place { name: "/v1/snapshot", words: &["table", "where", "columns", "from"] };
/// The list of tables.
pub const TABLES: Place = Place { name: "/v1/tables", words: &[] };
/// The classic stream of switches.
pub const SWITCH_STATUS: Place = Place { name: "/switch/status", words: &[] };
/// The notifications of a channel.
pub const LISTEN: Place = Place { name: "/listen/CHANNEL", words: &[] };

/// The message that begins a subscription.
pub const SUBSCRIBE: Place =
    Place { name: "subscribe", words: &["type", "id", "table", "where", "columns", "from", "on_reset"] };
/// The message that ends one.
pub const UNSUBSCRIBE: Place = Place { name: "unsubscribe", words: &["type", "id"] };
/// The message that is answered by `pong`.
pub const PING: Place = Place { name: "ping", words: &["type", "id"] };

/// Reads the parameters of an address (URL Standard, 5.1), all of which have to be words of the place and UTF-8.
pub fn parameters(query: &str, place: &Place) -> Result<Vec<(String, String)>, String> {
    let mut parameters = Vec::new();
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let name = decoded(name).ok_or_else(|| format!("the name of a parameter {}", not_utf8(name)))?;
        let Some(value) = decoded(value) else {
            return Err(format!("the parameter {} {}", shown(&name), not_utf8(value)));
        };
        if !place.words.contains(&name.as_str()) {
            return Err(place.mistake(&name, &value));
        }
        parameters.push((name, value));
    }
    Ok(parameters)
}

fn decoded(text: &str) -> Option<String> {
    percent_decode_str(&text.replace('+', " ")).decode_utf8().map(String::from).ok()
}

fn not_utf8(text: &str) -> String {
    format!("is not UTF-8: {:?}; encode it as UTF-8 (é is %C3%A9), as encodeURIComponent does", shown(text))
}

/// Whether all fields of a message are words of the place.
pub fn check_fields(fields: &Map<String, Value>, place: &Place) -> Result<(), String> {
    let unknown = fields.iter().find(|(name, _)| !place.words.contains(&name.as_str()));
    unknown.map_or(Ok(()), |(name, value)| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        Err(place.mistake(name, &text))
    })
}

impl Place {
    fn is_address(&self) -> bool {
        self.name.starts_with('/')
    }

    /// What is wrong with a word that the place has not, and what to write.
    fn mistake(&self, name: &str, value: &str) -> String {
        let kind = if self.is_address() { "parameter" } else { "field" };
        let here = self.name;
        if let Some((word, value)) = instead(name, value).filter(|(word, _)| self.words.contains(word)) {
            let written = match self.is_address() {
                true => format!("{word}={}", shown(&value)),
                false => format!("{:?}:{:?}", word, shown(&value)),
            };
            return format!("{here} has no {kind} {:?}; write {written}", shown(name));
        }
        let others: Vec<&str> = [FEED, CHANGES, SNAPSHOT]
            .iter()
            .filter(|place| place.words.contains(&name))
            .map(|place| place.name)
            .collect();
        if !others.is_empty() {
            return format!("{name} is a parameter of {}, not of {here}; leave it out", list(&others));
        }
        if self.words.is_empty() {
            return format!("{here} has no parameters; leave {:?} out", shown(name));
        }
        let near = nearest(name, self.words).map(|near| format!("did you mean {near}? ")).unwrap_or_default();
        format!("{here} has no {kind} {:?}; {near}it has {}", shown(name), list(self.words))
    }
}

/// The word, and its value, that somebody meant who knows those of others: PostgREST, Supabase, and EventSources that are not the
/// browser's.
fn instead(name: &str, value: &str) -> Option<(&'static str, String)> {
    let folded: String = name.to_lowercase().chars().filter(|char| !matches!(char, '_' | '-')).collect();
    match folded.as_str() {
        "filter" => {
            let condition = value.split_once('=').filter(|(_, rest)| filter::begins_with_operator(rest));
            Some(("where", condition.map_or(value.to_owned(), |(column, rest)| format!("{column}.{rest}"))))
        }
        "and" | "or" | "not.and" | "not.or" if value.starts_with('(') => Some(("where", format!("{name}{value}"))),
        "select" if value != "*" => Some(("columns", value.to_owned())),
        "schema" => Some(("table", format!("{}.TABLE", ident(value)))),
        "cursor" | "since" | "after" | "lasteventid" => Some(("from", value.to_owned())),
        "sub" => Some(("id", value.to_owned())),
        _ if filter::begins_with_operator(value) => Some(("where", format!("{}.{value}", ident(name)))),
        _ => None,
    }
}

/// Several words as a list in a sentence.
fn list(words: &[&str]) -> String {
    match words {
        [first @ .., last] if !first.is_empty() => format!("{} and {last}", first.join(", ")),
        words => words.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistake(query: &str, place: &Place) -> String {
        parameters(query, place).expect_err(query)
    }

    #[test]
    fn parameters_are_decoded_as_a_browser_encodes_them() {
        let read = parameters("table=a+b%2B%25%zz&&where=%E2%82%AC=1&from", &FEED).expect("parameters");

        let read: Vec<(&str, &str)> = read.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(read, [("table", "a b+%%zz"), ("where", "€=1"), ("from", "")]);
        assert_eq!(parameters("", &TABLES), Ok(Vec::new()));
    }

    #[test]
    fn a_word_that_does_not_exist_is_named_with_what_to_write() {
        for (query, place, sentence) in [
            (
                "tabel=ev2",
                &FEED,
                r#"/v1/feed has no parameter "tabel"; did you mean table? it has table, where, columns, from, on_reset and first"#,
            ),
            ("x=1", &SNAPSHOT, r#"/v1/snapshot has no parameter "x"; it has table, where, columns and from"#),
            ("table=ev2&id=eq.1", &FEED, r#"/v1/feed has no parameter "id"; write where=id.eq.1"#),
            ("Id=not.in.(1,2)", &CHANGES, r#"/v1/changes has no parameter "Id"; write where="Id".not.in.(1,2)"#),
            ("filter=id=eq.1", &FEED, r#"/v1/feed has no parameter "filter"; write where=id.eq.1"#),
            ("filter=id.eq.1", &FEED, r#"/v1/feed has no parameter "filter"; write where=id.eq.1"#),
            ("or=(a.eq.1,b.eq.2)", &FEED, r#"/v1/feed has no parameter "or"; write where=or(a.eq.1,b.eq.2)"#),
            ("select=id,name", &FEED, r#"/v1/feed has no parameter "select"; write columns=id,name"#),
            ("schema=sales", &FEED, r#"/v1/feed has no parameter "schema"; write table=sales.TABLE"#),
            ("lastEventId=a.1.b", &FEED, r#"/v1/feed has no parameter "lastEventId"; write from=a.1.b"#),
            ("limit=10", &FEED, "limit is a parameter of /v1/changes, not of /v1/feed; leave it out"),
            ("on_reset=close", &CHANGES, "on_reset is a parameter of /v1/feed, not of /v1/changes; leave it out"),
            (
                "table=switch",
                &SWITCH_STATUS,
                "table is a parameter of /v1/feed, /v1/changes and /v1/snapshot, not of /switch/status; leave it out",
            ),
            ("id=eq.1", &TABLES, r#"/v1/tables has no parameters; leave "id" out"#),
        ] {
            assert_eq!(mistake(query, place), sentence);
        }
        assert!(mistake(&"x".repeat(10_000), &FEED).len() < 300);
    }

    #[test]
    fn what_is_not_utf_8_is_named_and_never_guessed() {
        assert_eq!(
            mistake("where=name.eq.caf%E9", &FEED),
            r#"the parameter where is not UTF-8: "name.eq.caf%E9"; encode it as UTF-8 (é is %C3%A9), as encodeURIComponent does"#
        );
        assert!(mistake("caf%E9=1", &FEED).starts_with("the name of a parameter is not UTF-8: \"caf%E9\";"));
        assert!(mistake("from=%ED%A0%80", &FEED).contains("UTF-8"), "half a surrogate pair");
    }
}
