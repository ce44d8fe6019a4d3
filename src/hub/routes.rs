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

    /// Which topics may want which of the parts.
    pub fn find<'p>(&self, parts: &'p [Opened<'p>]) -> Found<'p> {
        let mut found = Found { parts, of_tables: HashMap::new(), topics: HashMap::new() };
        for topic in &self.everything {
            found.topics.entry(*topic).or_default().everything = true;
        }
        let mut keyed = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            for change in &part.changes {
                let watch = change.change.table.watch;
                let Some(table) = self.tables.get(&watch) else { continue };
                let of_table = found.of_tables.entry(watch).or_insert_with(|| {
                    for topic in &table.always {
                        found.topics.entry(*topic).or_default().tables.push(watch);
                    }
                    Vec::new()
                });
                if of_table.last() != Some(&index) {
                    of_table.push(index);
                }
                table.find_keyed(change, &mut keyed);
                for topic in keyed.drain(..) {
                    found.add(topic, index);
                }
            }
        }
        found
    }
}

/// Which topics may want which parts of those that are published together.
pub(super) struct Found<'p> {
    parts: &'p [Opened<'p>],
    /// By the number of a table, the parts with changes of it.
    of_tables: HashMap<i32, Vec<usize>>,
    pub topics: HashMap<TopicId, Wish>,
}

/// What a topic may want of them.
#[derive(Default)]
pub(super) struct Wish {
    everything: bool,
    /// The parts with changes of these.
    tables: Vec<i32>,
    /// These, by their places.
    parts: Vec<usize>,
}

impl<'p> Found<'p> {
    /// Adds a part for a topic.
    pub fn add(&mut self, topic: TopicId, part: usize) {
        let parts = &mut self.topics.entry(topic).or_default().parts;
        if parts.last() != Some(&part) {
            parts.push(part);
        }
    }

    /// Adds a part for a topic, in front of what was found for it.
    pub fn owe(&mut self, topic: TopicId, part: usize) {
        // They are sorted before they are used.
        self.topics.entry(topic).or_default().parts.push(part);
    }

    /// Whether any of these parts is wished for.
    pub fn wants_any(&self, wish: &Wish, parts: std::ops::RangeInclusive<usize>) -> bool {
        let mut of_tables = wish.tables.iter().filter_map(|table| self.of_tables.get(table));
        wish.everything
            || wish.parts.iter().any(|part| parts.contains(part))
            || of_tables.any(|of_table| of_table.iter().any(|part| parts.contains(part)))
    }

    /// The parts that are wished for, and behind each part of a commit its others: who gets one is owed the last.
    pub fn parts(&self, wish: &Wish) -> Vec<&'p Opened<'p>> {
        if wish.everything {
            return self.parts.iter().collect();
        }
        let mut wished = wish.parts.clone();
        for table in &wish.tables {
            wished.extend(self.of_tables.get(table).into_iter().flatten());
        }
        wished.sort_unstable();
        wished.dedup();
        let mut parts = Vec::with_capacity(wished.len());
        // The next that is not there yet.
        let mut next = 0;
        for index in wished {
            next = next.max(index);
            while next <= index || (next > 0 && next < self.parts.len() && !self.parts[next - 1].part.last) {
                parts.push(&self.parts[next]);
                next += 1;
            }
        }
        parts
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
