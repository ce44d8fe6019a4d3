//! What clients ask for: the parameters of an address, and the messages on a socket.

use serde_json::{Map, Value};

use super::parameters::{CHANGES, FEED, PING, Place, SNAPSHOT, SUBSCRIBE, UNSUBSCRIBE, check_fields, parameters};
use crate::filter::{self, Expression};
use crate::names::{NotNames, Typed};
use crate::selection::Wish;

/// Where a subscription begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum From {
    /// With the current rows.
    Snapshot,
    /// With whatever comes next.
    Now,
    /// Behind this cursor, which may be any text: what cannot be served gets a `reset`.
    Cursor(String),
}

/// What a cursor gets that cannot be served, after its `reset`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnReset {
    /// A fresh snapshot.
    Snapshot,
    /// [`super::Close::CursorGone`].
    Close,
}

/// The request for one subscription.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// The tables asked for, as they were written; none means all.
    pub tables: Option<Vec<Typed>>,
    /// Which of their rows; none means all.
    pub filter: Option<Expression>,
    /// Which of their columns; none means all.
    pub columns: Option<Vec<Typed>>,
    /// Where to begin.
    pub from: From,
    /// What to do where that cannot be.
    pub on_reset: OnReset,
}

impl Default for Request {
    fn default() -> Request {
        Request { tables: None, filter: None, columns: None, from: From::Snapshot, on_reset: OnReset::Snapshot }
    }
}

impl Request {
    /// Reads the address of a feed. What is wrong with it is told in a sentence that names the value and the remedy.
    pub fn parse(query: &str) -> Result<Request, String> {
        Request::first(query)?.ok_or_else(|| {
            "first=none asks for no subscription, and here is no other way to one; leave it out".to_owned()
        })
    }

    /// Reads the address of a socket: `first=none` asks for no subscription of the address's own.
    pub fn first(query: &str) -> Result<Option<Request>, String> {
        let parameters = parameters(query, &FEED)?;
        match parameters.iter().find(|(name, _)| name == "first").map(|(_, value)| value.as_str()) {
            None => Request::of(&parameters).map(Some),
            Some("none") => match parameters.iter().find(|(name, _)| name != "first") {
                None => Ok(None),
                Some((name, _)) => Err(format!(
                    "first=none asks for no subscription by the address, and {name} is there; leave one of them out"
                )),
            },
            Some(other) => {
                Err(format!("first={other} is unknown; say first=none to subscribe by messages only, or leave it out"))
            }
        }
    }

    /// Reads the address of a snapshot, which is of now.
    pub fn snapshot(query: &str) -> Result<Request, String> {
        let request = Request::of(&parameters(query, &SNAPSHOT)?)?;
        match request.from {
            From::Snapshot => Ok(Request { on_reset: OnReset::Close, ..request }),
            _ => Err("from is for /v1/feed and /v1/changes; a snapshot is of now, so leave it out".to_owned()),
        }
    }

    /// Reads the address of a page of changes, and gives the parameters that only that has.
    pub fn changes(query: &str) -> Result<(Request, Vec<(String, String)>), String> {
        let parameters = parameters(query, &CHANGES)?;
        Ok((Request::of(&parameters)?, parameters))
    }

    /// Reads those parameters that a subscription has.
    fn of(parameters: &[(String, String)]) -> Result<Request, String> {
        let mut request = Request::default();
        parameters.iter().try_for_each(|(name, value)| request.set(name, value))?;
        Ok(request)
    }

    /// Reads the fields of a message, which are called as the parameters are. Names may also stand in a list.
    fn of_message(fields: &Map<String, Value>) -> Result<Request, String> {
        let mut request = Request::default();
        for (name, value) in fields.iter().filter(|(name, _)| *name != "type") {
            match value {
                Value::Null => {}
                Value::String(text) => request.set(name, text)?,
                Value::Array(list) if name == "table" || name == "columns" => {
                    let name_of = |item: &Value| item.as_str().filter(|text| !text.is_empty()).map(Typed::new);
                    let names: Option<Vec<Typed>> = list.iter().map(name_of).collect();
                    let names = names.filter(|names| !names.is_empty());
                    request.add(name, names.ok_or_else(|| format!("{name} is {value}; list names, as text"))?);
                }
                other => return Err(format!("{name} is {other}; give text, as in the address")),
            }
        }
        Ok(request)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "table" | "columns" => self.add(name, names(name, value)?),
            "where" => {
                let filter = filter::parse(value)?;
                // Given again, both have to hold.
                self.filter = Some(match self.filter.take() {
                    Some(other) => Expression::and(vec![other, filter]),
                    None => filter,
                });
            }
            "from" => {
                self.from = match value {
                    "" => return Err("from is empty; say snapshot, now, or a cursor".to_owned()),
                    "snapshot" => From::Snapshot,
                    "now" => From::Now,
                    cursor => From::Cursor(cursor.to_owned()),
                }
            }
            "on_reset" => {
                self.on_reset = match value {
                    "snapshot" => OnReset::Snapshot,
                    "close" => OnReset::Close,
                    other => return Err(format!("on_reset={other} is unknown; say snapshot or close")),
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn add(&mut self, parameter: &str, names: Vec<Typed>) {
        let list = if parameter == "table" { &mut self.tables } else { &mut self.columns };
        list.get_or_insert_default().extend(names);
    }

    /// What of it says which changes are wanted.
    pub fn wish(&self) -> Wish<'_> {
        Wish { tables: self.tables.as_deref(), filter: self.filter.as_ref(), columns: self.columns.as_deref() }
    }
}

/// Comma-separated names, quoted as SQL does.
fn names(parameter: &str, text: &str) -> Result<Vec<Typed>, String> {
    Typed::list(text).map_err(|mistake| match mistake {
        NotNames::OpenQuote => format!(
            "{parameter}={text} has a quote that does not end; a name in quotes is written as in SQL, with two for a quote inside: \"a,b\" or \"o\"\"dd\""
        ),
        NotNames::Empty => {
            let example = if parameter == "table" { "switch,sales.orders" } else { "id,name" };
            format!(
                "{parameter}={text} holds an empty name; give names with commas between them, such as {example}, or leave it out"
            )
        }
    })
}

/// The types of messages there are.
const TYPES: &str = "subscribe, unsubscribe and ping";

/// What a client may send in a text frame.
#[derive(PartialEq, Eq, Debug)]
pub enum Message {
    /// To be answered by `pong`.
    Ping(Option<Value>),
    /// Another subscription, whose frames are to carry this `id` as their `sub`.
    Subscribe(Value, Box<Request>),
    /// The end of the subscription of this `id`; without one, of that of the address.
    Unsubscribe(Option<Value>),
    /// Anything else: the code and the sentence of the `error` frame, with the request's `id`.
    Wrong(&'static str, String, Option<Value>),
}

impl Message {
    /// Reads a message; what is wrong with it becomes an answer, never a failure.
    pub fn parse(text: &str) -> Message {
        let Ok(Value::Object(mut fields)) = serde_json::from_str(text) else {
            let remedy = r#"the message is not a JSON object; send for example {"type":"ping"}"#;
            return Message::Wrong("bad_message", remedy.to_owned(), None);
        };
        let id = fields.remove("id");
        match fields.get("type").and_then(|name| name.as_str()) {
            Some("ping") => Message::checked(&fields, &PING, id, Message::Ping),
            Some("subscribe") => Message::checked(&fields, &SUBSCRIBE, id, |id| Message::subscribe(id, &fields)),
            Some("unsubscribe") => {
                Message::checked(&fields, &UNSUBSCRIBE, id, |id| Message::Unsubscribe(id.filter(|id| !id.is_null())))
            }
            Some(other) => {
                let other: String = other.chars().take(100).collect();
                Message::Wrong(
                    "unknown_type",
                    format!("type {other:?} is unknown to this version; it takes {TYPES}"),
                    id,
                )
            }
            None => {
                Message::Wrong("bad_message", format!("the message has no \"type\"; this version takes {TYPES}"), id)
            }
        }
    }

    /// A message whose fields all exist.
    fn checked(
        fields: &Map<String, Value>,
        place: &Place,
        id: Option<Value>,
        read: impl FnOnce(Option<Value>) -> Message,
    ) -> Message {
        match check_fields(fields, place) {
            Ok(()) => read(id),
            Err(mistake) => Message::Wrong("bad_request", mistake, id),
        }
    }

    fn subscribe(id: Option<Value>, fields: &Map<String, Value>) -> Message {
        let id = match id {
            Some(id @ (Value::String(_) | Value::Number(_))) => id,
            other => {
                let remedy = r#"a subscription needs an "id", text or a number, which its frames will carry as "sub""#;
                return Message::Wrong("bad_request", remedy.to_owned(), other);
            }
        };
        match Request::of_message(fields) {
            Ok(request) => Message::Subscribe(id, Box::new(request)),
            Err(mistake) => Message::Wrong("bad_request", mistake, Some(id)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_reads_its_parameters() {
        assert_eq!(
            Request::parse("table=switch,%22a%2Cb%22&from=now&on_reset=close"),
            Ok(Request {
                tables: Some(vec![Typed::new("switch"), Typed::new("\"a,b\"")]),
                filter: None,
                columns: None,
                from: From::Now,
                on_reset: OnReset::Close
            })
        );
        assert_eq!(Request::parse(""), Ok(Request::default()));
        assert_eq!(Request::first("first=none"), Ok(None));
    }

    #[test]
    fn a_wrong_parameter_is_named_with_its_remedy() {
        assert_eq!(Request::parse("on_reset=x").unwrap_err(), "on_reset=x is unknown; say snapshot or close");
        assert!(Request::parse("table=a,,b").unwrap_err().contains("empty name"));
        assert!(Request::parse("table=%22a").unwrap_err().contains("quote"));
        assert!(Request::parse("from=").unwrap_err().contains("cursor"));
        assert!(Request::parse("first=none").unwrap_err().contains("leave it out"));
        assert!(Request::first("first=none&from=now").unwrap_err().contains("from is there"));
        assert!(Request::parse("table=a&wher=b.eq.1").unwrap_err().contains("did you mean where?"));
        assert!(Request::snapshot("limit=1").unwrap_err().contains("of /v1/changes, not of /v1/snapshot"));
    }

    #[test]
    fn whatever_a_client_sends_becomes_an_answer() {
        assert_eq!(Message::parse(r#"{"type":"ping","id":7}"#), Message::Ping(Some(7.into())));
        for text in ["", "[]", "1", "{", r#"{"type":1}"#, r#"{"type":"nonsense"}"#, "\u{0}"] {
            assert!(matches!(Message::parse(text), Message::Wrong(..)), "{text}");
        }
    }

    #[test]
    fn a_field_that_does_not_exist_is_named_with_what_to_write() {
        for (text, sentence) in [
            (r#"{"type":"ping","id":7,"x":1}"#, r#"ping has no field "x"; it has type and id"#),
            (r#"{"type":"unsubscribe","id":7,"sub":"hot"}"#, r#"unsubscribe has no field "sub"; write "id":"hot""#),
            (
                r#"{"type":"subscribe","id":7,"filter":"name=eq.\"x\""}"#,
                r#"subscribe has no field "filter"; write "where":"name.eq.\"x\"""#,
            ),
            (
                r#"{"type":"subscribe","id":7,"tables":["a"]}"#,
                r#"subscribe has no field "tables"; did you mean table? it has type, id, table, where, columns, from and on_reset"#,
            ),
            (
                r#"{"type":"subscribe","id":7,"limit":5}"#,
                "limit is a parameter of /v1/changes, not of subscribe; leave it out",
            ),
        ] {
            assert_eq!(Message::parse(text), Message::Wrong("bad_request", sentence.to_owned(), Some(7.into())));
        }
    }
}
