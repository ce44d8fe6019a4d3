//! Selections: which changes a subscription wants, and how much of each. Tables, a row filter, columns.
//!
//! A request names them as the client knows them; a selection holds them as the database knew them when it was asked. Selections that
//! are equal share everything that is made for them.

use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::change::{Fields, Op, TableName, View};
use crate::filter::weight::CHANGE_STEPS;
use crate::filter::{Column, Expression, Filter, Meter, Question, Route, Undecidable};
use crate::names::{Typed, ident, shell};
use crate::table::{Tables, Watched};

/// How many tables or columns a message lists.
const LISTED_MAX: usize = 20;

/// Which changes a subscription wants, and how much of each. By default every change of every table, whole.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Selection(Scope);

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
enum Scope {
    /// Every table, those too that will be watched later.
    #[default]
    Everything,
    /// These, in the order of their names.
    Picked {
        picks: Arc<[Pick]>,
        /// Whether they were all there were, since none was named.
        all: bool,
    },
}

/// What is wanted of one table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pick {
    /// The table as it was when it was picked.
    pub watched: Arc<Watched>,
    /// Which of its rows; none means all.
    pub filter: Option<Filter>,
    /// Which of its columns, those of the key among them, in the table's order; none means all.
    pub columns: Option<Vec<String>>,
}

impl Hash for Pick {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.watched, &self.filter, &self.columns).hash(state);
    }
}

/// What an update does to a row that a filter looks at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Match {
    /// It belongs to the filter now, and did not before.
    Enter,
    /// It belonged to the filter, and does not any more.
    Leave,
    /// It belonged and belongs.
    Stay,
}

impl Match {
    /// The word of the protocol.
    pub fn name(self) -> &'static str {
        match self {
            Match::Enter => "enter",
            Match::Leave => "leave",
            Match::Stay => "stay",
        }
    }

    fn of(before: bool, after: bool) -> Option<Match> {
        match (before, after) {
            (false, true) => Some(Match::Enter),
            (true, false) => Some(Match::Leave),
            (true, true) => Some(Match::Stay),
            (false, false) => None,
        }
    }
}

/// How much of a change is wanted.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    /// What it does to the row, where there is a filter.
    pub matched: Option<Match>,
    /// Which columns; none means all.
    pub columns: Option<&'a [String]>,
}

impl Selection {
    /// How much of the change is wanted, if any. Fails where that cannot be said: its rows have not the columns that the filter looks at,
    /// what happened to a table of these cannot be told, or it takes more steps than the meter has.
    pub fn wants(&self, change: &View<'_>, meter: &mut Meter<'_>) -> Result<Option<Wanted<'_>>, Undecidable> {
        meter.spend(CHANGE_STEPS)?;
        let table = &change.change.table;
        let untold = change.change.op == Op::Reset;
        let Scope::Picked { picks, .. } = &self.0 else {
            let whole = Some(Wanted { matched: None, columns: None });
            return if untold { Err(Undecidable::Table(table.name.clone())) } else { Ok(whole) };
        };
        let Some(pick) = picks.iter().find(|pick| pick.watched.table.watch == table.watch) else {
            // Another table under the name of one of ours: ours was dropped, and this one is what there is of it now, or was then.
            let replaced = picks.iter().any(|pick| pick.watched.table.name == table.name);
            return if replaced { Err(Undecidable::Table(table.name.clone())) } else { Ok(None) };
        };
        if untold {
            return Err(Undecidable::Table(table.name.clone()));
        }
        let columns = pick.columns.as_deref();
        let Some(filter) = pick.filter.as_ref().filter(|_| change.change.op != Op::Truncate) else {
            return Ok(Some(Wanted { matched: None, columns }));
        };
        let mut judge = |row: Option<&Fields<'_>>| row.map_or(Ok(false), |row| filter.judge(row, meter));
        let matched = Match::of(judge(change.before())?, judge(change.after())?);
        Ok(matched.map(|matched| Wanted { matched: Some(matched), columns }))
    }

    /// What is wanted of each table, in the order of their names; `None` where the tables are not any more what they were.
    pub fn picks(&self, tables: &Tables) -> Option<Vec<Pick>> {
        match &self.0 {
            Scope::Everything => {
                let whole = |watched| Pick { watched, filter: None, columns: None };
                Some(active(tables).into_iter().map(whole).collect())
            }
            Scope::Picked { picks, .. } => self.holds(tables).then(|| picks.to_vec()),
        }
    }

    /// Whether the tables are still what they were when they were picked.
    pub fn holds(&self, tables: &Tables) -> bool {
        let Scope::Picked { picks, all } = &self.0 else { return true };
        let same = |pick: &Pick| {
            let now = tables.get(&pick.watched.table.watch);
            now.is_some_and(|now| pick.watched.goes_on_as(now))
        };
        picks.iter().all(same)
            && (!all || tables.values().filter(|watched| watched.table.active).count() == picks.len())
    }

    /// What its filters take while they are there (see [`crate::filter::weight`]).
    pub fn weight(&self) -> u64 {
        let Scope::Picked { picks, .. } = &self.0 else { return 0 };
        picks.iter().filter_map(|pick| pick.filter.as_ref()).map(Filter::weight).sum()
    }

    /// Whether it takes whatever table there is.
    pub fn is_everything(&self) -> bool {
        self.0 == Scope::Everything
    }

    /// The tables that it takes changes from, each with the values of a column that a row has to have, if there is such a column.
    pub fn routes(&self) -> Vec<(i32, Option<(&Column, Route)>)> {
        let Scope::Picked { picks, .. } = &self.0 else { return Vec::new() };
        picks.iter().map(|pick| (pick.watched.table.watch, pick.route())).collect()
    }
}

impl Pick {
    fn route(&self) -> Option<(&Column, Route)> {
        // One that takes no value at all is to hear of a truncate like all others.
        let route = self.filter.as_ref()?.route().filter(|route| !route.keys.is_empty())?;
        Some((self.watched.column(&route.column)?, route))
    }
}

/// The tables that are watched now, in the order of their names.
pub fn active(tables: &Tables) -> Vec<Arc<Watched>> {
    let mut active: Vec<_> = tables.values().filter(|watched| watched.table.active).cloned().collect();
    active.sort_by(|a, b| a.table.name.cmp(&b.table.name));
    active
}

/// What was asked for.
#[derive(Clone, Copy, Default)]
pub struct Wish<'a> {
    /// Tables, as they were written; none means all.
    pub tables: Option<&'a [Typed]>,
    /// The rows.
    pub filter: Option<&'a Expression>,
    /// Columns; none means all.
    pub columns: Option<&'a [Typed]>,
}

/// A selection whose tables were found, and for whose filter PostgreSQL may have to be asked.
pub struct Draft<'a> {
    wish: Wish<'a>,
    tables: Vec<Arc<Watched>>,
    all: bool,
}

impl<'a> Draft<'a> {
    /// Finds the tables that were asked for among those that are watched; a sentence says which one is not, and what to do.
    pub fn new(wish: Wish<'a>, tables: &Tables) -> Result<Draft<'a>, String> {
        let watched = active(tables);
        let found = match wish.tables {
            None => watched,
            Some(names) => {
                let mut found = names.iter().map(|name| find(name, &watched)).collect::<Result<Vec<_>, _>>()?;
                found.sort_by(|a, b| a.table.name.cmp(&b.table.name));
                found.dedup();
                found
            }
        };
        Ok(Draft { wish, tables: found, all: wish.tables.is_none() })
    }

    /// What PostgreSQL has to be asked about the filter: nothing, or something for each table.
    pub fn questions(&self) -> Result<Vec<Option<Question>>, String> {
        let ask = |watched: &Arc<Watched>| match self.wish.filter {
            Some(filter) => {
                filter.columns().into_iter().try_for_each(|name| refuse_left_out(name, watched))?;
                filter.question(&watched.table.name, &watched.columns)
            }
            None => Ok(None),
        };
        self.tables.iter().map(ask).collect()
    }

    /// The selection; `answers` are those to the questions, in their order.
    pub fn bind(self, answers: Vec<Option<Vec<Option<String>>>>) -> Result<Selection, String> {
        if self.all && self.wish.filter.is_none() && self.wish.columns.is_none() {
            return Ok(Selection::default());
        }
        if self.tables.is_empty() {
            return Err("no table is watched, so nothing can be selected; to watch one: switchboard watch TABLE".into());
        }
        let pick = |(watched, answer): (&Arc<Watched>, _)| {
            let filter = self.wish.filter.map(|filter| filter.bind(&watched.table.name, &watched.columns, answer));
            let columns = self.wish.columns.map(|names| with_key(names, watched));
            Ok(Pick { watched: watched.clone(), filter: filter.transpose()?, columns: columns.transpose()? })
        };
        let picks: Vec<Pick> = self.tables.iter().zip(answers).map(pick).collect::<Result<_, String>>()?;
        Ok(Selection(Scope::Picked { picks: picks.into(), all: self.all }))
    }
}

/// How a name that was typed says which table it means.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Likeness {
    /// By its parts, as in SQL.
    Spelt,
    /// As frames call the table, also in quotes as a whole.
    OnTheWire,
    /// By parts that run into each other, with a dot that belongs to one of them.
    Joined,
}

fn likeness(typed: &Typed, name: &TableName) -> Option<Likeness> {
    let spelt = match typed.parts().as_deref() {
        Some([schema, table]) => *schema == name.schema && *table == name.table,
        Some([table]) => name.schema == "public" && *table == name.table,
        _ => false,
    };
    if spelt {
        return Some(Likeness::Spelt);
    }
    let spellings = [typed.as_str(), &typed.plain()];
    let is_one = |of: &dyn Fn(&str) -> bool| spellings.iter().any(|spelling| of(spelling));
    let on_the_wire = name.to_string();
    if is_one(&|spelling| spelling == on_the_wire) {
        return Some(Likeness::OnTheWire);
    }
    let joined = format!("{}.{}", name.schema, name.table);
    let in_public = name.schema == "public";
    is_one(&|spelling| spelling == joined || (in_public && spelling == name.table)).then_some(Likeness::Joined)
}

fn find(typed: &Typed, watched: &[Arc<Watched>]) -> Result<Arc<Watched>, String> {
    let alike = |watched: &Arc<Watched>| likeness(typed, &watched.table.name).map(|how| (how, watched.clone()));
    let alike: Vec<_> = watched.iter().filter_map(alike).collect();
    let nearest = alike.iter().map(|(how, _)| *how).min();
    let mut meant = alike.into_iter().filter(|(how, _)| Some(*how) == nearest).map(|(_, watched)| watched);
    let name = typed.as_str();
    match (meant.next(), meant.next()) {
        (Some(only), None) => Ok(only),
        (Some(one), Some(other)) => Err(format!(
            "table {name} may be {} or {}; write it with these quotes",
            one.table.name.sql(),
            other.table.name.sql()
        )),
        (None, _) => {
            let there = listed(watched.iter().map(|watched| watched.table.name.sql()), "no table");
            let command = shell(&typed.sql()).into_owned();
            Err(format!("table {name} is not watched; watched is {there}; to watch it: switchboard watch {command}"))
        }
    }
}

/// The columns that were asked for and those of the key, in the table's order.
fn with_key(names: &[Typed], watched: &Watched) -> Result<Vec<String>, String> {
    names.iter().try_for_each(|typed| refuse_left_out(&typed.plain(), watched))?;
    let column = |typed: &Typed| {
        let column = watched.column(&typed.plain()).or_else(|| watched.column(typed.as_str()));
        column.map(|column| column.name.as_str()).ok_or_else(|| {
            let there = listed(watched.columns.iter().map(|column| ident(&column.name).into_owned()), "none");
            let (name, table) = (typed.as_str(), watched.table.name.sql());
            format!("columns names {name}, and {table} has no such column; it has {there}")
        })
    };
    let mut wanted = names.iter().map(column).collect::<Result<BTreeSet<&str>, _>>()?;
    wanted.extend(watched.table.key.iter().flatten().map(String::as_str));
    let columns = watched.columns.iter().map(|column| &column.name);
    Ok(columns.filter(|name| wanted.contains(name.as_str())).cloned().collect())
}

/// Refuses a column that is there and that changes do not have.
fn refuse_left_out(column: &str, watched: &Watched) -> Result<(), String> {
    if !watched.left_out.iter().any(|name| name == column) {
        return Ok(());
    }
    let (column, table) = (ident(column), watched.table.name.sql());
    Err(format!(
        "{column} is a virtual generated column of {table}, which triggers do not see; leave it out, or let it be a stored one"
    ))
}

fn listed(mut names: impl Iterator<Item = String>, none: &str) -> String {
    let mut listed: Vec<String> = names.by_ref().take(LISTED_MAX).collect();
    if listed.is_empty() {
        return none.to_owned();
    }
    if names.next().is_some() {
        listed.push("…".to_owned());
    }
    listed.join(", ")
}
