//! Routes: which topics may want a change. Found by the values that they look for, so that the cost follows what matches, and not how
//! many subscriptions there are.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use super::history::Topic;
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
    /// Those that have to look at each row, and want nothing of other tables. There may be very many, so that they are found with their ids.
    only: HashMap<TopicId, Weak<Topic>>,
    /// Those that have to look at each row, here and elsewhere.
    always: HashSet<TopicId>,
    /// Those that want certain values of a column.
    keyed: HashMap<Column, HashMap<IndexKey, HashSet<TopicId>>>,
}

impl Routes {
    /// Sends the topic what its kind may want.
    pub fn add(&mut self, topic: &Arc<Topic>, id: TopicId) {
        let selection = &topic.kind.selection;
        if selection.is_everything() {
            self.everything.insert(id);
        }
        let routes = selection.routes();
        let is_only = routes.len() == 1;
        for (watch, route) in routes {
            let table = self.tables.entry(watch).or_default();
            match route {
                None if is_only => {
                    table.only.insert(id, Arc::downgrade(topic));
                }
                None => {
                    table.always.insert(id);
                }
                Some((column, route)) => {
                    let keyed = table.keyed.entry(column.clone()).or_default();
                    for key in route.keys {
                        keyed.entry(key).or_default().insert(id);
                    }
                }
            }
        }
    }

    /// Sends the topic nothing more.
    pub fn remove(&mut self, kind: &Kind, topic: TopicId) {
        self.everything.remove(&topic);
        for (watch, route) in kind.selection.routes() {
            let Some(table) = self.tables.get_mut(&watch) else { continue };
            table.only.remove(&topic);
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
            if table.only.is_empty() && table.always.is_empty() && table.keyed.is_empty() {
                self.tables.remove(&watch);
            }
        }
    }

    /// Whether nobody wants anything.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.everything.is_empty() && self.tables.is_empty()
    }

    /// Which topics may want which of the parts. If these `are_whole` commits, nobody is owed a part in which there is nothing to want.
    pub fn find<'p>(&self, parts: &'p [Opened<'p>], are_whole: bool) -> Found<'p> {
        let mut found = Found {
            parts,
            are_whole,
            numbers: HashMap::new(),
            of_tables: Vec::new(),
            only: Vec::new(),
            several: HashMap::new(),
        };
        for topic in &self.everything {
            found.several.entry(*topic).or_default().everything = true;
        }
        let mut keyed = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            for change in &part.changes {
                let watch = change.change.table.watch;
                let Some(table) = self.tables.get(&watch) else { continue };
                let number = match found.numbers.get(&watch) {
                    Some(number) => *number,
                    None => found.add_table(watch, table),
                };
                let of_table = &mut found.of_tables[number];
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
    pub are_whole: bool,
    /// By what log rows call the table, its number here.
    numbers: HashMap<i32, usize>,
    /// By that number, the parts with changes of the table.
    of_tables: Vec<Vec<usize>>,
    /// Those that may want all changes of one table.
    pub only: Vec<Asked>,
    /// What the others may want.
    pub several: HashMap<TopicId, Several>,
}

/// A topic that has to be asked what it wants.
pub(super) struct Asked {
    pub id: TopicId,
    pub topic: Arc<Topic>,
    pub wish: Wish,
}

/// What a topic may want of the parts.
pub(super) enum Wish {
    /// Those with changes of the table that has this number.
    Only(usize),
    Several(Several),
}

/// What a topic may want of them that has to be put together.
#[derive(Default)]
pub(super) struct Several {
    everything: bool,
    /// The parts with changes of the tables that have these numbers.
    tables: Vec<usize>,
    /// These, by their places.
    parts: Vec<usize>,
}

impl<'p> Found<'p> {
    /// Gives the table a number, and finds those who look at each of its rows.
    fn add_table(&mut self, watch: i32, table: &OfTable) -> usize {
        let number = self.of_tables.len();
        self.numbers.insert(watch, number);
        self.of_tables.push(Vec::new());
        for topic in &table.always {
            self.several.entry(*topic).or_default().tables.push(number);
        }
        if self.are_whole {
            let asked = |(id, topic): (&TopicId, &Weak<Topic>)| {
                Some(Asked { id: *id, topic: topic.upgrade()?, wish: Wish::Only(number) })
            };
            self.only.extend(table.only.iter().filter_map(asked));
        } else {
            // They may be owed other parts too.
            for topic in table.only.keys() {
                self.several.entry(*topic).or_default().tables.push(number);
            }
        }
        number
    }

    /// Adds a part for a topic.
    fn add(&mut self, topic: TopicId, part: usize) {
        let parts = &mut self.several.entry(topic).or_default().parts;
        if parts.last() != Some(&part) {
            parts.push(part);
        }
    }

    /// Adds a part for a topic, in front of what was found for it.
    pub fn owe(&mut self, topic: TopicId, part: usize) {
        // They are sorted before they are used.
        self.several.entry(topic).or_default().parts.push(part);
    }

    /// Whether any of these parts is wished for.
    pub fn wants_any(&self, several: &Several, parts: std::ops::RangeInclusive<usize>) -> bool {
        let mut of_tables = several.tables.iter().map(|number| &self.of_tables[*number]);
        several.everything
            || several.parts.iter().any(|part| parts.contains(part))
            || of_tables.any(|of_table| of_table.iter().any(|part| parts.contains(part)))
    }

    /// By its number, the parts with changes of each table.
    pub fn of_tables(&self) -> Vec<Vec<&'p Opened<'p>>> {
        let opened = |parts: &Vec<usize>| parts.iter().map(|part| &self.parts[*part]).collect();
        self.of_tables.iter().map(opened).collect()
    }

    /// The parts that are wished for, and behind each part of a commit its others: who gets one is owed the last.
    pub fn parts(&self, several: &Several) -> Vec<&'p Opened<'p>> {
        if several.everything {
            return self.parts.iter().collect();
        }
        let mut wished = several.parts.clone();
        for number in &several.tables {
            wished.extend(&self.of_tables[*number]);
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
