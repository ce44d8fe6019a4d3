//! The columns of a table, as far as a filter depends on them: their types, and what the stream can decide of each.

use std::sync::Arc;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::parse::Operator;
use super::value::Datum;
use crate::names::quoted;

/// A column of a table. Columns are equal where nothing differs that could change a judgement or the JSON form of a value.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Column {
    /// Its name, as PostgreSQL spells it, without quotes.
    pub name: String,
    /// Its number in the table: one that was dropped and made again under its name is another column.
    number: i16,
    /// Its type without modifiers, as SQL has to spell it; of a domain, the type under it.
    pub type_name: String,
    /// What a filter can decide of it.
    pub class: Class,
    /// Whether SQL has to cast it: operators of an enum do not see through a domain, and those of `name` cut literals off.
    cast: bool,
    declared_type: u32,
    modifier: i32,
    collation: u32,
}

/// What the stream can decide of a type.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Class {
    /// `boolean`
    Bool,
    /// `smallint`
    Int2,
    /// `integer`
    Int4,
    /// `bigint`
    Int8,
    /// `oid`
    Oid,
    /// `numeric`
    Numeric,
    /// `real`
    Float4,
    /// `double precision`
    Float8,
    /// `text`, `varchar` and `name`
    Text(Collation),
    /// `char(n)`, whose trailing blanks say nothing.
    Char(Collation),
    /// `timestamp`
    Timestamp,
    /// `timestamptz`
    Timestamptz,
    /// `date`
    Date,
    /// `time`
    Time,
    /// `uuid`
    Uuid,
    /// `bytea`
    Bytea,
    /// An enum, with its labels in their order.
    Enum(Arc<[String]>),
    /// `json` and `jsonb`, whose null a row does not tell from SQL's.
    Json {
        /// Whether it is `jsonb`.
        binary: bool,
    },
    /// Any other type: only whether it is null can be decided.
    Other,
}

/// What a collation says of the comparison of texts.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Collation {
    /// Whether only equal bytes are equal.
    pub deterministic: bool,
    /// Whether texts stand in the order of their code points.
    pub bytewise: bool,
    /// Who says what a letter is.
    pub ctype: Ctype,
    /// Whether "I" and "i" may be letters apart, as in Turkish.
    pub dotted: bool,
    /// Whether the database's encoding is UTF-8.
    pub utf8: bool,
}

/// Who says what a letter, a digit and a lower case are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Ctype {
    /// The locale "C": ASCII only.
    C,
    /// The operating system.
    Libc,
    /// ICU, or PostgreSQL's own tables.
    Unicode,
}

impl Collation {
    const C: Collation = Collation { deterministic: true, bytewise: true, ctype: Ctype::C, dotted: false, utf8: true };
}

/// A value of one column, for an index: equal exactly where SQL's `=` says true.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct IndexKey(pub(super) Datum<'static>);

impl Column {
    /// What a row's value is found under; none for null, or where the value has not the form of the column's type.
    pub fn index_key(&self, value: &RawValue) -> Option<IndexKey> {
        Datum::read(&self.class, value.get()).map(|value| IndexKey(value.into_owned()))
    }

    /// The type to which a literal, or the column, is cast in SQL.
    pub(super) fn cast(&self) -> &str {
        match &self.class {
            Class::Bool => "pg_catalog.bool",
            Class::Int2 => "pg_catalog.int2",
            Class::Int4 => "pg_catalog.int4",
            Class::Int8 => "pg_catalog.int8",
            Class::Oid => "pg_catalog.oid",
            Class::Numeric => "pg_catalog.numeric",
            Class::Float4 => "pg_catalog.float4",
            Class::Float8 => "pg_catalog.float8",
            Class::Text(_) => "pg_catalog.text",
            // Without a length, which would be 1.
            Class::Char(_) => "pg_catalog.bpchar",
            Class::Timestamp => "pg_catalog.timestamp",
            Class::Timestamptz => "pg_catalog.timestamptz",
            Class::Date => "pg_catalog.date",
            Class::Time => "pg_catalog.time",
            Class::Uuid => "pg_catalog.uuid",
            Class::Bytea => "pg_catalog.bytea",
            Class::Enum(_) | Class::Json { .. } | Class::Other => &self.type_name,
        }
    }

    /// The column as SQL compares it.
    pub(super) fn sql(&self, alias: &str) -> String {
        let name = format!("{}.{}", quoted(alias), quoted(&self.name));
        match self.cast {
            true => format!("{name}::{}", self.cast()),
            false => name,
        }
    }

    /// The operators that the stream decides for the column as PostgreSQL does.
    pub(super) fn operators(&self) -> Vec<Operator> {
        use Operator::*;
        let (collation, has_patterns) = match &self.class {
            Class::Text(collation) => (collation, true),
            Class::Char(collation) => (collation, false),
            Class::Json { .. } | Class::Other => return vec![Is],
            _ => return vec![Eq, Neq, Gt, Gte, Lt, Lte, In, Is, IsDistinct],
        };
        if !collation.deterministic {
            return vec![Is];
        }
        let mut operators = vec![Eq, Neq];
        if has_patterns && collation.utf8 && collation.bytewise {
            operators.extend([Gt, Gte, Lt, Lte]);
        }
        operators.extend([In, Is]);
        if has_patterns && collation.utf8 {
            operators.extend([Like, Match]);
            if !collation.dotted || collation.ctype == Ctype::C {
                operators.extend([Ilike, Imatch]);
            }
        }
        operators.push(IsDistinct);
        operators
    }

    /// Who decides what a letter in a pattern is.
    pub(super) fn ctype(&self) -> Ctype {
        match &self.class {
            Class::Text(collation) | Class::Char(collation) => collation.ctype,
            _ => Ctype::C,
        }
    }
}

/// An SQL expression that gives the columns of a relation as one JSON text, but for virtual generated ones, which triggers do not see;
/// `relation` is an expression of its oid. Of the session's settings only `quote_all_identifiers` colours it.
pub fn columns_sql(relation: &str) -> String {
    format!(
        "(select coalesce(pg_catalog.json_agg(pg_catalog.json_build_object(
            'name', a.attname, 'number', a.attnum, 'declared_type', a.atttypid::pg_catalog.int8, 'domain', t.oid <> a.atttypid,
            'modifier', t.modifier, 'base', case when n.nspname = 'pg_catalog' then t.typname end,
            'type_name', case when n.nspname = 'pg_catalog' then pg_catalog.format_type(t.oid, null)
                              else pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(t.typname) end,
            'labels', case when t.typtype = 'e' then
                (select pg_catalog.json_agg(e.enumlabel order by e.enumsortorder)
                 from pg_catalog.pg_enum e where e.enumtypid = t.oid) end,
            'is_enum', t.typtype = 'e',
            'collation', a.attcollation::pg_catalog.int8,
            'collation_of', pg_catalog.to_jsonb(l), 'database', pg_catalog.to_jsonb(d),
            'encoding', pg_catalog.getdatabaseencoding()
        ) order by a.attnum), '[]')::pg_catalog.text
        from pg_catalog.pg_attribute a
        cross join lateral (
            with recursive base (type, modifier) as (
                select a.atttypid, a.atttypmod
                union all
                select t.typbasetype, case when b.modifier <> -1 then b.modifier else t.typtypmod end
                from base b join pg_catalog.pg_type t on t.oid = b.type where t.typtype = 'd'
            )
            select t.oid, t.typname, t.typnamespace, t.typtype, b.modifier
            from base b join pg_catalog.pg_type t on t.oid = b.type where t.typtype <> 'd'
        ) t
        join pg_catalog.pg_namespace n on n.oid = t.typnamespace
        left join pg_catalog.pg_collation l on l.oid = a.attcollation
        left join pg_catalog.pg_database d on l.collprovider = 'd' and d.datname = pg_catalog.current_database()
        where a.attrelid = {relation} and a.attnum > 0 and not a.attisdropped and a.attgenerated <> 'v')"
    )
}

/// Reads what [`columns_sql`] gave: the columns in the table's order.
pub fn columns(json: &str) -> Result<Vec<Column>> {
    let rows: Vec<Row> =
        serde_json::from_str(json).context("the columns of a table are not of the form that was asked for")?;
    Ok(rows.into_iter().map(Row::column).collect())
}

#[derive(Deserialize)]
struct Row {
    name: String,
    /// Left out where columns are made up.
    #[serde(default)]
    number: i16,
    declared_type: u32,
    domain: bool,
    modifier: i32,
    /// The type's name in `pg_catalog`, if it is of there.
    base: Option<String>,
    type_name: String,
    is_enum: bool,
    labels: Option<Vec<String>>,
    collation: u32,
    collation_of: Option<CollationRow>,
    database: Option<DatabaseRow>,
    encoding: String,
}

/// A row of `pg_collation`; which columns there are depends on PostgreSQL's version.
#[derive(Deserialize)]
struct CollationRow {
    collprovider: String,
    collisdeterministic: bool,
    collcollate: Option<String>,
    collctype: Option<String>,
    /// Version 15 and 16.
    colliculocale: Option<String>,
    /// From version 17 on.
    colllocale: Option<String>,
}

/// A row of `pg_database`, where the collation is the database's.
#[derive(Deserialize)]
struct DatabaseRow {
    datcollate: String,
    datctype: String,
    /// From version 15 on; before, it is always the operating system's.
    datlocprovider: Option<String>,
    daticulocale: Option<String>,
    datlocale: Option<String>,
}

impl Row {
    fn column(self) -> Column {
        let class = self.class();
        Column {
            name: self.name,
            number: self.number,
            type_name: self.type_name,
            class,
            cast: self.domain || self.base.as_deref() == Some("name"),
            declared_type: self.declared_type,
            modifier: self.modifier,
            collation: self.collation,
        }
    }

    fn class(&self) -> Class {
        if self.is_enum {
            return Class::Enum(self.labels.clone().unwrap_or_default().into());
        }
        match self.base.as_deref().unwrap_or_default() {
            "bool" => Class::Bool,
            "int2" => Class::Int2,
            "int4" => Class::Int4,
            "int8" => Class::Int8,
            "oid" => Class::Oid,
            "numeric" => Class::Numeric,
            "float4" => Class::Float4,
            "float8" => Class::Float8,
            "text" | "varchar" | "name" => Class::Text(self.collation()),
            "bpchar" => Class::Char(self.collation()),
            "timestamp" => Class::Timestamp,
            "timestamptz" => Class::Timestamptz,
            "date" => Class::Date,
            "time" => Class::Time,
            "uuid" => Class::Uuid,
            "bytea" => Class::Bytea,
            "json" => Class::Json { binary: false },
            "jsonb" => Class::Json { binary: true },
            _ => Class::Other,
        }
    }

    fn collation(&self) -> Collation {
        let utf8 = self.encoding == "UTF8";
        let (provider, collate, ctype) = match (&self.collation_of, &self.database) {
            (Some(_), Some(database)) => {
                let provider = database.datlocprovider.as_deref().unwrap_or("c");
                let own = database.datlocale.as_deref().or(database.daticulocale.as_deref());
                match (provider, own) {
                    ("c", _) => (provider, database.datcollate.as_str(), database.datctype.as_str()),
                    (_, own) => (provider, own.unwrap_or_default(), own.unwrap_or_default()),
                }
            }
            (Some(row), None) => {
                let own = row.colllocale.as_deref().or(row.colliculocale.as_deref());
                let collate = row.collcollate.as_deref().or(own).unwrap_or_default();
                let ctype = row.collctype.as_deref().or(own).unwrap_or_default();
                (row.collprovider.as_str(), collate, ctype)
            }
            // Nothing is known, so nothing but null can be decided.
            (None, _) => return Collation { deterministic: false, utf8, ..Collation::C },
        };
        let plain = |locale: &str| matches!(locale, "C" | "POSIX");
        Collation {
            deterministic: self.collation_of.as_ref().is_some_and(|row| row.collisdeterministic),
            bytewise: match provider {
                "c" => plain(collate),
                // PostgreSQL's own provider sorts by code point in all of its locales.
                "b" => true,
                _ => false,
            },
            ctype: match provider {
                "c" | "b" if plain(ctype) => Ctype::C,
                "c" => Ctype::Libc,
                _ => Ctype::Unicode,
            },
            dotted: is_dotted(ctype),
            utf8,
        }
    }
}

/// Whether a locale's language may have letters of its own for the case of "i", or dots that come and go: Turkish, Azeri and
/// Lithuanian, and those that the GNU C library gives Turkish letters.
fn is_dotted(locale: &str) -> bool {
    const LANGUAGES: &[&str] = &[
        "tr",
        "tur",
        "turkish",
        "az",
        "aze",
        "azeri",
        "azerbaijani",
        "lt",
        "lit",
        "lithuanian",
        "crh",
        "ku",
        "tt",
        "ber",
    ];
    let language = locale.split(|char: char| !char.is_ascii_alphabetic()).next().unwrap_or_default();
    LANGUAGES.contains(&language.to_ascii_lowercase().as_str())
}
