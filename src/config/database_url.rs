//! The database's URL: read as libpq reads it, or refused in a sentence that names the part that is wrong and what to write.
//!
//! Other programs have other forms of it. No sentence repeats what may be a password, or a piece of one.

use std::error::Error;

use tokio_postgres::Config;

use crate::names::nearest;

const FORM: &str = "the form is postgres://USER:PASSWORD@HOST:PORT/DATABASE";
/// The parameters that a URL may have (as in libpq, as far as the driver knows them).
const PARAMETERS: [&str; 17] = [
    "user",
    "password",
    "dbname",
    "options",
    "application_name",
    "sslmode",
    "sslnegotiation",
    "host",
    "hostaddr",
    "port",
    "connect_timeout",
    "tcp_user_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "target_session_attrs",
];
/// More of them, which nobody mistakes others for.
const RARE_PARAMETERS: [&str; 2] = ["channel_binding", "load_balance_hosts"];

/// Reads a URL, or `key=value` words.
pub(super) fn parse(text: &str) -> Result<Config, String> {
    let text = text.trim();
    if let Some(mistake) = mistaken_form(text) {
        return Err(mistake);
    }
    let parsed = text.parse::<Config>();
    let Some((_, rest)) = text.split_once("://").filter(|(scheme, _)| is_ours(scheme)) else {
        // The driver's own words would repeat a part of the text.
        return parsed.map_err(|_| {
            format!(
                "neither a URL nor words such as host=… user=… dbname=… (a value with blanks in single quotes); {FORM}"
            )
        });
    };
    if let Some(mistake) = mistaken_at(rest, parsed.is_err()) {
        return Err(mistake);
    }
    parsed.map_err(|error| mistaken_parameter(rest).unwrap_or_else(|| in_words(&error)))
}

fn is_ours(scheme: &str) -> bool {
    matches!(scheme, "postgres" | "postgresql")
}

/// What is wrong before the first part.
fn mistaken_form(text: &str) -> Option<String> {
    let quotes = ['"', '\'', '`', '“', '”', '‘', '’'];
    if text.starts_with(quotes) || (text.contains("://") && text.ends_with(quotes)) {
        return Some(format!("it has quotes around it, which some files of settings keep; leave them out; {FORM}"));
    }
    let Some((scheme, _)) = text.split_once("://") else {
        let slashes = ["postgres:", "postgresql:"].iter().any(|scheme| text.starts_with(scheme));
        return slashes.then(|| format!("two slashes are missing behind \"postgres:\"; {FORM}"));
    };
    if is_ours(scheme) {
        return None;
    }
    // What has other signs is no scheme, and may be anything.
    let plain = |char: char| char.is_ascii_alphanumeric() || "+.-:".contains(char);
    if !scheme.starts_with(|char: char| char.is_ascii_alphabetic()) || !scheme.chars().all(plain) {
        let before = scheme.ends_with("postgres") || scheme.ends_with("postgresql");
        return before.then(|| format!("something stands before \"postgres://\"; leave it out; {FORM}"));
    }
    let small = scheme.to_ascii_lowercase();
    let driver = small.split_once('+').filter(|(base, _)| is_ours(base));
    Some(match (&*small, driver) {
        (_, Some((base, driver))) => format!(
            "its scheme is \"{scheme}\", which names a driver of SQLAlchemy's; leave \"+{driver}\" out: {base}://…; {FORM}"
        ),
        (small, _) if is_ours(small) => {
            format!("its scheme is \"{scheme}\"; write it in small letters: {small}://…; {FORM}")
        }
        (small, _) if small.starts_with("jdbc:") => format!(
            "it begins with \"jdbc:\", which is Java's; leave that out, and put user and password before the host; {FORM}"
        ),
        ("postgis" | "pgsql" | "pdo-pgsql" | "psql" | "pg" | "ecto" | "timescale" | "timescalegis", _) => {
            format!("its scheme is \"{scheme}\", which is an application's own; write postgres:// there; {FORM}")
        }
        _ => format!("its scheme is \"{scheme}\", and the database has to be a PostgreSQL; {FORM}"),
    })
}

/// What is wrong with an `@`, the first of which ends user and password.
fn mistaken_at(rest: &str, failed: bool) -> Option<String> {
    let (user, behind) = rest.split_once('@')?;
    let (place, query) = behind.split_once('?').unwrap_or((behind, ""));
    if place.contains('@') || (failed && query.contains('@')) {
        return Some(format!(
            "the user or the password holds an @ that ends it too early; write %40 for it, and %23 for #, %2F for /, %3F for ?, %25 for %; {FORM}"
        ));
    }
    // HOST:PORT/… before it: then it ends nothing that is a user.
    let first = user.split(['/', '?']).next().unwrap_or_default();
    let port = first.split_once(':').map_or("", |(_, port)| port);
    let is_host = first.len() < user.len() && port.bytes().all(|byte| byte.is_ascii_digit());
    is_host.then(|| {
        format!(
            "an @ stands behind a / or a ?; write %40 for it if it belongs to a parameter, and %2F for the / and %3F for the ? if they belong to the password; {FORM}"
        )
    })
}

/// What is wrong with the parameters behind the `?`.
fn mistaken_parameter(rest: &str) -> Option<String> {
    let behind = rest.split_once('@').map_or(rest, |(_, behind)| behind);
    let (_, query) = behind.split_once('?')?;
    let parameters = query.split('&').filter_map(|parameter| parameter.split_once('='));
    let known = |name: &str| PARAMETERS.contains(&name) || RARE_PARAMETERS.contains(&name);
    for (name, value) in parameters {
        let word = name.len() <= 40 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        return Some(match name {
            "schema" | "currentSchema" | "search_path" => format!(
                "the parameter {name} is an application's own; leave it out, and name tables with their schema: switchboard watch SCHEMA.TABLE; {FORM}"
            ),
            "sslmode" if !["disable", "prefer", "require"].contains(&value) => {
                format!("the value of sslmode has to be disable, prefer or require; {FORM}")
            }
            "ssl" => format!("the parameter ssl is a driver's own; leave it out, or write sslmode=…; {FORM}"),
            _ if known(name) => continue,
            _ if word => {
                let near = nearest(name, &PARAMETERS).map(|near| format!(" or write {near}")).unwrap_or_default();
                format!("the parameter {name} is not PostgreSQL's but an application's own; leave it out{near}; {FORM}")
            }
            _ => format!("the name of a parameter behind the ? is no word; leave it out; {FORM}"),
        });
    }
    None
}

fn in_words(error: &tokio_postgres::Error) -> String {
    let why = error.source().map_or_else(|| error.to_string(), |source| source.to_string());
    match why.as_str() {
        "invalid value for option `port`" => {
            format!("the port is no number; an IPv6 address stands in brackets; {FORM}")
        }
        "unterminated parameter" => format!("a parameter behind the ? has no =; {FORM}"),
        // It repeats the name, which is not ours to judge.
        why if why.starts_with("unknown option") => format!("a parameter behind the ? is not known; {FORM}"),
        why => format!("{why}; {FORM}"),
    }
}

#[cfg(test)]
mod tests {
    use tokio_postgres::config::Host;

    use super::*;

    #[test]
    fn the_forms_of_other_programs_are_refused_with_the_part_that_is_wrong_and_what_to_write() {
        for (url, part) in [
            ("postgresql+asyncpg://me:hush@db/shop", r#"leave "+asyncpg" out: postgresql://…"#),
            ("postgres+psycopg2://me:hush@db/shop", r#"leave "+psycopg2" out: postgres://…"#),
            (
                "postgis://me:hush@db/shop",
                r#"its scheme is "postgis", which is an application's own; write postgres://"#,
            ),
            ("POSTGRES://me:hush@db/shop", "in small letters: postgres://…"),
            ("mysql://me:hush@db/shop", r#"its scheme is "mysql", and the database has to be a PostgreSQL"#),
            ("jdbc:postgresql://db/shop?user=me&password=hush", r#"it begins with "jdbc:""#),
            ("\"postgres://me:hush@db/shop\"", "it has quotes around it"),
            ("'postgres://me:hush@db/shop'", "it has quotes around it"),
            ("postgres://me:hush@db/shop\"", "it has quotes around it"),
            ("DATABASE_URL=postgres://me:hush@db/shop", r#"something stands before "postgres://""#),
            ("psql postgresql://me:hush@db/shop", r#"something stands before "postgres://""#),
            ("postgres:me:hush@db/shop", "two slashes are missing"),
            ("postgres:/me:hush@db/shop", "two slashes are missing"),
            ("postgres://me:hush@db/shop?schema=public", "the parameter schema is an application's own; leave it out"),
            ("postgres://me:hush@db/shop?pgbouncer=true", "the parameter pgbouncer is not PostgreSQL's"),
            ("postgres://me:hush@db/shop?connection_timeout=5", "leave it out or write connect_timeout"),
            ("postgres://me:hush@db/shop?sslmode=prefer&ssl=true", "the parameter ssl is a driver's own"),
            ("postgres://me:hush@db/shop?sslmode=verify-full", "sslmode has to be disable, prefer or require"),
            ("postgres://me:hush@db/shop?sslmode", "has no ="),
            ("postgres://me:hu@sh@db/shop", "holds an @ that ends it too early; write %40"),
            ("postgres://me:hu@s/h@db/shop", "write %40 for it, and %23 for #, %2F for /"),
            ("postgres://me:hu@s?h@db/shop", "write %40"),
            ("postgres://me:hu@s?h=ush@db/shop", "write %40"),
            ("postgres://m@e:hush@db/shop", "the user or the password holds an @"),
            ("postgres://me:4711/hush@db/shop", "%2F for the /"),
            ("postgres://db/shop?application_name=a@hush", "%40 for it if it belongs to a parameter"),
            ("postgres://me:hush/shop", "the port is no number"),
            ("postgres://me:hush@db:hush/shop", "the port is no number"),
            ("host=db password=my hush=x", "a value with blanks in single quotes"),
            ("my hush", "neither a URL nor words"),
        ] {
            let mistake = parse(url).expect_err(url);
            assert!(mistake.contains(part), "{url}: {mistake}");
            assert!(!mistake.contains("hush"), "{url}: {mistake}");
        }
    }

    #[test]
    fn a_password_is_taken_as_it_stands_where_it_can_be() {
        for (url, password) in [
            ("postgres://me:a%40b%2Fc@db/shop", "a@b/c"),
            ("postgres://me:a#b@db/shop", "a#b"),
            ("postgres://me:a/b?c@db/shop", "a/b?c"),
            ("postgres://me:a:b@db/shop", "a:b"),
            ("postgresql://db/shop?user=me&password=a%40b", "a@b"),
            ("host=db user=me password='a @/#b' dbname=shop", "a @/#b"),
            (" postgres://me:ab@db/shop?application_name=a@b\n", "ab"),
        ] {
            let config = parse(url).unwrap_or_else(|mistake| panic!("{url}: {mistake}"));
            assert_eq!(config.get_password(), Some(password.as_bytes()), "{url}");
            assert_eq!((config.get_user(), config.get_dbname()), (Some("me"), Some("shop")), "{url}");
            assert_eq!(config.get_hosts(), [Host::Tcp("db".to_owned())], "{url}");
        }
        for url in ["postgres://db:5433", "postgres:///shop?host=/var/run/postgresql", "postgres://me@[::1]:1,db/shop"]
        {
            parse(url).unwrap_or_else(|mistake| panic!("{url}: {mistake}"));
        }
    }
}
