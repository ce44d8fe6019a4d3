//! What keys promise of a copy at the end of each commit: none is there twice, and what refers to a row finds it.
//!
//! A copy that holds rows as they are does not notice two commits in the wrong order, an insert before the delete that made room for
//! it: at the end it holds the same rows. One that holds them by their keys is left without.

use std::collections::{BTreeSet, HashMap};

use serde_json::value::RawValue;

/// Which column of which table refers to the `id` of which other one.
const REFERENCES: [(&str, &str); 2] = [("public.child", "public.parent"), ("public.item", "public.lot")];

/// The columns of the drill's tables that keys are made of, and those that refer to one.
#[derive(serde::Deserialize)]
struct Row<'a> {
    #[serde(default, borrow)]
    id: Option<&'a RawValue>,
    #[serde(default, borrow)]
    day: Option<&'a RawValue>,
    #[serde(default, borrow)]
    round: Option<&'a RawValue>,
    #[serde(default, borrow)]
    parent: Option<&'a RawValue>,
    #[serde(default, borrow)]
    lot: Option<&'a RawValue>,
}

/// A table and a key in it, as text.
type Key = (String, String);

/// How often each key is there and is referred to.
#[derive(Default)]
pub struct Keys {
    there: HashMap<Key, i64>,
    referred: HashMap<Key, i64>,
    /// What was changed since the last check.
    touched: BTreeSet<Key>,
}

impl Keys {
    /// A row came.
    pub fn add(&mut self, table: &str, row: &str) {
        self.count(table, row, 1);
    }

    /// A row went.
    pub fn remove(&mut self, table: &str, row: &str) {
        self.count(table, row, -1);
    }

    fn count(&mut self, table: &str, row: &str, by: i64) {
        // Keys come first; most rows of the drill are of a table without one, and are many.
        if !["{\"id\"", "{\"day\"", "{\"round\""].iter().any(|start| row.starts_with(start)) {
            return;
        }
        let Ok(row) = serde_json::from_str::<Row<'_>>(row) else { return };
        let columns: Vec<&str> = [row.id, row.day, row.round].into_iter().flatten().map(RawValue::get).collect();
        if !columns.is_empty() {
            let key = (table.to_owned(), columns.join(","));
            *self.there.entry(key.clone()).or_default() += by;
            self.touched.insert(key);
        }
        let to = REFERENCES.iter().find(|(from, _)| *from == table).map(|(_, to)| *to);
        if let Some((to, id)) = to.zip(row.parent.or(row.lot)).filter(|(_, id)| id.get() != "null") {
            let key = (to.to_owned(), id.get().to_owned());
            *self.referred.entry(key.clone()).or_default() += by;
            self.touched.insert(key);
        }
    }

    /// A table was emptied.
    pub fn empty(&mut self, table: &str) {
        self.there.retain(|(of, _), _| of != table);
        let to = REFERENCES.iter().filter(|(from, _)| *from == table).map(|(_, to)| *to);
        to.for_each(|to| self.referred.retain(|(of, _), _| of != to));
    }

    /// Forgets what was changed: in the middle of a snapshot keys promise nothing.
    pub fn settle(&mut self) {
        self.touched.clear();
    }

    /// What is wrong now with what was changed since the last check.
    pub fn check(&mut self) -> Vec<String> {
        let mut findings = Vec::new();
        for key in std::mem::take(&mut self.touched) {
            let there = self.there.get(&key).copied().unwrap_or(0);
            let referred = self.referred.get(&key).copied().unwrap_or(0);
            if there > 1 {
                findings.push(format!("{} has {there} rows of the key {}", key.0, key.1));
            }
            if there == 0 && referred > 0 {
                findings.push(format!("{referred} rows refer to {} of {}, which is not there", key.1, key.0));
            }
            if there == 0 {
                self.there.remove(&key);
            }
            if referred == 0 {
                self.referred.remove(&key);
            }
        }
        findings
    }
}
