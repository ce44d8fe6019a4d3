//! The watched tables as the catalog described them when last asked: their names, their keys, and their columns.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::change::Table;
use crate::filter::Column;

/// A watched table with its columns.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Watched {
    /// What changes say of it.
    pub table: Arc<Table>,
    /// Its columns, in the table's order; none where only the log still knows of it.
    pub columns: Vec<Column>,
    /// Differs where anything about the columns does: asking for this is cheaper than asking for them.
    pub fingerprint: String,
}

impl Hash for Watched {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.table.watch.hash(state);
    }
}

impl Watched {
    /// Whether what was found out about the table is still right: it may have got more columns, and nothing else may have happened to it.
    pub fn goes_on_as(&self, now: &Watched) -> bool {
        std::ptr::eq(self, now)
            || (self.table == now.table && self.columns.iter().all(|column| now.columns.contains(column)))
    }

    /// The column of this name.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }
}

/// All tables that are watched or that the log still knows of, by what log rows call them.
pub type Tables = HashMap<i32, Arc<Watched>>;
