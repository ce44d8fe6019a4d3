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
    /// Differs where anything about the columns does, or about how changes are captured: asking for this is cheaper than asking for them.
    pub fingerprint: String,
    /// Whether its rows have to be read value by value: there is a type whose cast to json may raise.
    pub careful: bool,
    /// Columns that changes do not have, and that rows are therefore without, too: virtual generated ones.
    pub left_out: Vec<String>,
}

impl Watched {
    /// A table of these columns, of which nothing else is known.
    pub fn new(table: Arc<Table>, columns: Vec<Column>) -> Watched {
        Watched { table, columns, fingerprint: String::new(), careful: false, left_out: Vec::new() }
    }
}

impl Hash for Watched {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.table.watch.hash(state);
    }
}

impl Watched {
    /// Whether nothing that its columns could depend on differs from a fresh description that is still without them.
    pub fn is_described_by(&self, fresh: &Watched) -> bool {
        self.table == fresh.table
            && self.fingerprint == fresh.fingerprint
            && self.careful == fresh.careful
            && self.left_out == fresh.left_out
    }

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
