//! What PostgreSQL holds, by its own account: the other side of what the oracles compare.

use std::collections::{BTreeMap, HashMap};

use switchboard::change::Cursor;
use tokio_postgres::Client;

use super::story::Rows;

/// The logical slot that tells what the write-ahead log holds. Needs `wal_level = logical`.
pub const SLOT: &str = "drill";

/// Begins to keep what is written from now on.
pub async fn open_slot(client: &Client) {
    let sql = format!("select pg_create_logical_replication_slot('{SLOT}', 'test_decoding')");
    client.batch_execute(&sql).await.expect("a logical slot");
}

/// The rows of tables in `public`, as text that reads like the feed's.
pub async fn rows(client: &Client, tables: &[&str]) -> HashMap<String, Rows> {
    let settings = "set timezone = 'UTC'; set extra_float_digits = 1; set bytea_output = 'hex'";
    client.batch_execute(settings).await.expect("settings that every session may change");
    let mut all = HashMap::new();
    for table in tables {
        let mut rows = Rows::new();
        let sql = format!("select row_to_json(t)::text from {table} as t");
        for row in client.query(&sql, &[]).await.expect("the rows of a table") {
            *rows.entry(row.get::<_, &str>(0).into()).or_default() += 1;
        }
        all.insert(format!("public.{table}"), rows);
    }
    all
}

/// The transactions of the write-ahead log that changed tables in `public`, with their numbers of changes, and where it ends now.
///
/// A crash may take the slot back to where a checkpoint left it: what lies before `since` does not count again. Call it while nobody
/// writes. Tables whose names begin with `besides` are left out.
pub async fn decoded(client: &Client, since: &str, besides: &[&str]) -> (BTreeMap<u64, BTreeMap<String, u64>>, String) {
    let sql = format!(
        "select split_part(data, ': ', 1), xid::text from pg_logical_slot_get_changes('{SLOT}', null, null,
            'include-xids', 'on', 'skip-empty-xacts', 'on') where data like 'table public.%' and lsn >= '{since}'"
    );
    let mut decoded: BTreeMap<u64, BTreeMap<String, u64>> = BTreeMap::new();
    for row in client.query(&sql, &[]).await.expect("the changes in the slot") {
        let table = row.get::<_, &str>(0).trim_start_matches("table ");
        if besides.iter().any(|name| table.starts_with(name)) {
            continue;
        }
        // Partitions speak under their table's name; TRUNCATE names them all.
        let table = table.split([',']).next().unwrap_or(table);
        let table = if table.starts_with("public.measure") { "public.measure" } else { table }.to_owned();
        let tx = row.get::<_, &str>(1).parse().expect("a transaction's number");
        *decoded.entry(tx).or_default().entry(table).or_default() += 1;
    }
    let end = client.query_one("select pg_current_wal_insert_lsn()::text", &[]).await.expect("the end of the log");
    (decoded, end.get(0))
}

/// The cursor and the transaction of every position that the log keeps.
pub async fn numbered(client: &Client) -> BTreeMap<i64, (String, u64)> {
    let sql = "select position, (select name from switchboard.epoch), nonce, xid::text from switchboard.commit
               where position > 0";
    let rows = client.query(sql, &[]).await.expect("the positions");
    let numbered = rows.iter().map(|row| {
        let (position, epoch, nonce): (i64, &str, i32) = (row.get(0), row.get(1), row.get(2));
        let epoch = epoch.parse().expect("an epoch's name");
        let cursor = Cursor { epoch, position, nonce: nonce.unsigned_abs() };
        (position, (cursor.to_string(), row.get::<_, &str>(3).parse().expect("a transaction's number")))
    });
    numbered.collect()
}

/// Rows that the log holds of no commit that it knows, and that retention has not taken note of either: they would stay for ever.
/// Call it while nothing waits for its position.
pub async fn leaks(client: &Client) -> Option<String> {
    let sql = "select (select count(*) from switchboard.log as l
                       where not exists (select from switchboard.commit as c where c.xid = l.xid)
                         and not exists (select from switchboard.forgotten as f where f.xid = l.xid)),
                      (select count(*) from switchboard.mark as m
                       where not exists (select from switchboard.commit as c where c.xid = m.xid))";
    let row = client.query_one(sql, &[]).await.expect("the counts");
    let (changes, marks): (i64, i64) = (row.get(0), row.get(1));
    (changes + marks > 0).then(|| format!("leaked: {changes} changes and {marks} marks of no commit"))
}
