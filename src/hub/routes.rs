//! Routes: which topics may want a change. Found by the values that they look for, so that the cost follows what matches, and not how
//! many subscriptions there are.

use std::collections::{HashMap, HashSet};

use crate::change::{Op, View};
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
    /// Sends the topic what its kind may want, or does so no longer.
    pub fn change(&mut self, kind: &Kind, topic: TopicId, present: bool) {
        let set = |topics: &mut HashSet<TopicId>| match present {
            true => topics.insert(topic),
            false => topics.remove(&topic),
        };
        if kind.selection.is_everything() {
            set(&mut self.everything);
        }
        for (watch, route) in kind.selection.routes() {
            let table = self.tables.entry(watch).or_default();
            match route {
                None => drop(set(&mut table.always)),
                Some((column, route)) => {
                    let keyed = table.keyed.entry(column.clone()).or_default();
                    for key in route.keys {
                        set(keyed.entry(key).or_default());
                    }
                    keyed.retain(|_, topics| !topics.is_empty());
                }
            }
            table.keyed.retain(|_, keyed| !keyed.is_empty());
            if table.always.is_empty() && table.keyed.is_empty() {
                self.tables.remove(&watch);
            }
        }
    }

    /// Appends the topics that may want the change, some of them twice.
    pub fn find(&self, change: &View<'_>, found: &mut Vec<TopicId>) {
        found.extend(&self.everything);
        let Some(table) = self.tables.get(&change.change.table.watch) else { return };
        found.extend(&table.always);
        for (column, keyed) in &table.keyed {
            if change.change.op == Op::Truncate {
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
