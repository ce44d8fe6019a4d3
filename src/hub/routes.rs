//! Routes: which topics may want a change. Found by the values that they look for, so that the cost follows what matches, and not how
//! many subscriptions there are.

use std::collections::{HashMap, HashSet};

use crate::change::{Op, Opened, View};
use crate::filter::{Column, IndexKey};
use crate::protocol::Kind;

/// Names a topic for as long as it lives.
pub(super) type TopicId = u64;

/// Where changes go.
#[derive(Default)]
pub(super) struct Routes {
    /// Those that take changes of every table.
    everything: HashSet<TopicId>,
    /// By what log rows call the table.
    tables: HashMap<i32, OfTable>,
}

#[derive(Default)]
struct OfTable {
    /// Those that have to look at each row.
    always: HashSet<TopicId>,
    /// Those that want certain values of a column.
    keyed: HashMap<Column, HashMap<IndexKey, HashSet<TopicId>>>,
}

impl Routes {
    /// Sends the topic what its kind may want.
    pub fn add(&mut self, kind: &Kind, topic: TopicId) {
        if kind.selection.is_everything() {
            self.everything.insert(topic);
        }
        for (watch, route) in kind.selection.routes() {
            let table = self.tables.entry(watch).or_default();
            let Some((column, route)) = route else {
                table.always.insert(topic);
                continue;
            };
            let keyed = table.keyed.entry(column.clone()).or_default();
            for key in route.keys {
                keyed.entry(key).or_default().insert(topic);
            }
        }
    }

    /// Sends the topic nothing more.
    pub fn remove(&mut self, kind: &Kind, topic: TopicId) {
        self.everything.remove(&topic);
        for (watch, route) in kind.selection.routes() {
            let Some(table) = self.tables.get_mut(&watch) else { continue };
            table.always.remove(&topic);
            if let Some((column, route)) = route
                && let Some(keyed) = table.keyed.get_mut(column)
            {
                for key in route.keys {
                    // Only what became empty goes: there may be very many keys.
                    if keyed.get_mut(&key).is_some_and(|topics| topics.remove(&topic) && topics.is_empty()) {
                        keyed.remove(&key);
                    }
                }
                if keyed.is_empty() {
                    table.keyed.remove(column);
                }
            }
            if table.always.is_empty() && table.keyed.is_empty() {
                self.tables.remove(&watch);
            }
        }
    }

    /// Whether nobody wants anything.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.everything.is_empty() && self.tables.is_empty()
    }

    /// Appends the topics that may want some of the part's changes; those that want certain values, once for each.
    pub fn find(&self, part: &Opened<'_>, found: &mut Vec<TopicId>) {
        found.extend(&self.everything);
        let mut tables: Vec<i32> = Vec::new();
        for change in &part.changes {
            let watch = change.change.table.watch;
            let Some(table) = self.tables.get(&watch) else { continue };
            if !tables.contains(&watch) {
                tables.push(watch);
                found.extend(&table.always);
            }
            table.find_keyed(change, found);
        }
    }
}

impl OfTable {
    fn find_keyed(&self, change: &View<'_>, found: &mut Vec<TopicId>) {
        for (column, keyed) in &self.keyed {
            if matches!(change.change.op, Op::Truncate | Op::Reset) {
                found.extend(keyed.values().flatten());
            }
            for row in [change.before(), change.after()].into_iter().flatten() {
                let value = row.0.iter().find(|(name, _)| *name == column.name).map(|(_, value)| *value);
                match value.and_then(|value| column.index_key(value)) {
                    Some(key) => found.extend(keyed.get(&key).into_iter().flatten()),
                    // Equal to nothing.
                    None if value.is_some_and(|value| value.get() == "null") => {}
                    // The table is not what it was, which each of them has to be told.
                    None => found.extend(keyed.values().flatten()),
                }
            }
        }
    }
}
