//! A client that keeps a copy of what it follows, by the rules of `docs/delivery.md`, and says what it was told.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::Value;

use super::{Client, Database, Gateway, PATIENCE, soon};

/// A copy of the rows of a subscription, kept up to date.
pub struct Mirror {
    client: Client,
    held: Held,
    /// Whether what it holds is whole.
    ready: bool,
    /// The reasons of the resets that it was told.
    pub resets: Vec<String>,
    /// How many commits it was told.
    pub commits: usize,
    error: Option<Value>,
}

/// Rows by their table and key, and the cursor that they are as of.
#[derive(Clone, Default)]
pub struct Held {
    rows: BTreeMap<String, Value>,
    /// What a client comes back with.
    pub cursor: String,
}

impl Mirror {
    /// Subscribes, and takes the rows.
    pub async fn begin(gateway: &Gateway, parameters: &str) -> Mirror {
        let client = gateway.subscribe(parameters).await;
        let mut mirror = Mirror::new(client, Held::default());
        mirror.until("its rows", |mirror| mirror.ready).await;
        mirror
    }

    /// Comes back with what another one held. It need not be ready yet.
    pub async fn resume(gateway: &Gateway, parameters: &str, held: &Held) -> Mirror {
        let mut client = gateway.subscribe(&format!("{parameters}&from={}", held.cursor)).await;
        client.next_of("hello", &["status"]).await;
        client.cursor = Some(held.cursor.clone());
        Mirror::new(client, held.clone())
    }

    fn new(client: Client, held: Held) -> Mirror {
        Mirror { client, held, ready: false, resets: Vec::new(), commits: 0, error: None }
    }

    /// Whether what it holds is whole.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// How many rows it holds.
    pub fn len(&self) -> usize {
        self.held.rows.len()
    }

    /// Goes away with what it holds.
    pub fn leave(self) -> Held {
        assert!(self.ready, "what it holds is not whole");
        self.held
    }

    /// Follows until it holds exactly the rows that a query returns now.
    pub async fn becomes(&mut self, db: &Database, query: &str) {
        // A column that came without values is in the table, and not in the rows that were told before.
        let mut expected: Vec<Value> = rows(db, query).await.into_iter().map(without_nulls).collect();
        expected.sort_by_key(Value::to_string);
        let held = |mirror: &Mirror| {
            let mut rows: Vec<Value> = mirror.held.rows.values().cloned().map(without_nulls).collect();
            rows.sort_by_key(Value::to_string);
            rows
        };
        let began = Instant::now();
        while !self.ready || held(self) != expected {
            let left = PATIENCE.saturating_sub(began.elapsed());
            let took = tokio::time::timeout(left, self.take()).await;
            let resets = &self.resets;
            match took {
                Ok(true) => {}
                Ok(false) => panic!("closed, after resets {resets:?} and the error {:?}: {query}", self.error),
                Err(_) => panic!(
                    "{query}: it holds {:?} (ready: {}, resets {resets:?}), and the table {expected:?}",
                    held(self),
                    self.ready
                ),
            }
        }
    }

    /// Waits until it is told that it has to begin again because a table is not what it was.
    pub async fn is_reset(&mut self) {
        let before = self.resets.len();
        self.until("a reset", |mirror| mirror.resets.len() > before).await;
        assert_eq!(self.resets[before], "schema");
    }

    /// Waits for the end, which has to come with an error: its message, and the close code.
    pub async fn ends(&mut self) -> (Value, u16) {
        self.until("an error", |mirror| mirror.error.is_some()).await;
        (self.error.take().unwrap(), self.client.closed().await)
    }

    /// Follows until something is so.
    pub async fn until(&mut self, what: &str, so: impl Fn(&Mirror) -> bool) {
        let following = async {
            while !so(self) {
                let goes_on = self.take().await;
                assert!(goes_on || so(self), "closed instead of {what}; the error was {:?}", self.error);
            }
        };
        soon(what, following).await;
    }

    /// Takes the next frame; false at the end.
    async fn take(&mut self) -> bool {
        let Ok(frame) = self.client.frame().await else { return false };
        match frame["type"].as_str().unwrap() {
            "reset" => {
                self.resets.push(frame["reason"].as_str().unwrap().to_owned());
                self.held.rows.clear();
                self.ready = false;
            }
            "rows" => {
                for row in frame["rows"].as_array().unwrap() {
                    let names: Vec<&str> = frame["key"].as_array().unwrap().iter().flat_map(Value::as_str).collect();
                    self.put(&frame["table"], &key_of(row, &names), row);
                }
            }
            "commit" => {
                self.commits += usize::from(frame["more"] != true);
                frame["changes"].as_array().unwrap().iter().for_each(|change| self.apply(change));
            }
            "ready" => self.ready = true,
            "error" => self.error = Some(frame.clone()),
            _ => {}
        }
        if let Some(cursor) = frame["cursor"].as_str() {
            self.held.cursor = cursor.to_owned();
        }
        true
    }

    /// By key, whatever was there before: what was written while a table was altered may come as it was then.
    fn apply(&mut self, change: &Value) {
        let table = &change["table"];
        if change["op"] == "truncate" {
            self.held.rows.retain(|place, _| !place.starts_with(&place_of(table, "")));
            return;
        }
        let names: Vec<&str> = change["key"].as_object().unwrap().keys().map(String::as_str).collect();
        if change["old"].is_object() {
            self.held.rows.remove(&place_of(table, &key_of(&change["old"], &names)));
        }
        if change["new"].is_object() && change["match"] != "leave" {
            self.put(table, &key_of(&change["new"], &names), &change["new"]);
        }
    }

    fn put(&mut self, table: &Value, key: &str, row: &Value) {
        self.held.rows.insert(place_of(table, key), row.clone());
    }
}

fn place_of(table: &Value, key: &str) -> String {
    format!("{} {key}", table.as_str().unwrap())
}

/// The values of a key, in the order of its names.
fn key_of(row: &Value, names: &[&str]) -> String {
    let mut names = names.to_vec();
    names.sort_unstable();
    names.iter().map(|name| format!("{} ", row[*name])).collect()
}

/// The rows of a query as PostgreSQL writes them, in some order.
async fn rows(db: &Database, query: &str) -> Vec<Value> {
    // A column could have any name that is easier to read.
    let sql = format!(r#"select row_to_json("the rows asked for")::text from ({query}) as "the rows asked for""#);
    let rows = db.query(&sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let mut rows: Vec<Value> = rows.iter().map(|row| serde_json::from_str(row.get(0)).unwrap()).collect();
    rows.sort_by_key(Value::to_string);
    rows
}

fn without_nulls(mut row: Value) -> Value {
    if let Some(fields) = row.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    row
}
