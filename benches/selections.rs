//! What a change costs among very many subscriptions with different filters: nearly as much as among one, where the filter says by `eq`
//! or `in` which rows it wants; and what it would cost to ask each of them.
//!
//! The hub alone, without PostgreSQL and sockets, so that nothing else is measured. Run with:
//!
//! ```text
//! cargo bench --bench selections                # up to 10,000 subscriptions, 5 rounds
//! cargo bench --bench selections -- --short     # to see that it works
//! ```

mod harness;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use serde_json::json;
use serde_json::value::RawValue;
use switchboard::change::{Change, Cursor, Op, Part, Position, Table, TableName};
use switchboard::filter;
use switchboard::hub::{Hub, Joined, News};
use switchboard::protocol::{Form, Kind, Request};
use switchboard::selection::Draft;
use switchboard::table::{Tables, Watched};

use crate::harness::is_short;

/// Room for everything: forgetting is not what is measured.
const HISTORY_BYTES_MAX: usize = 1 << 30;

struct Size {
    subscriptions: usize,
    /// How many changes are published where they are cheap; a hundredth of that where each subscription is asked.
    changes: i64,
    rounds: usize,
}

fn main() -> Result<()> {
    let size = match is_short() {
        true => Size { subscriptions: 200, changes: 200, rounds: 1 },
        false => Size { subscriptions: 10_000, changes: 20_000, rounds: 5 },
    };
    let Size { subscriptions, changes, rounds } = size;
    println!("time of one change of one row in the hub, median of {rounds} rounds in turns");
    let (mut one, mut keyed, mut asked, mut shared) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        // The only subscription wants every row; of the many each wants one, so that a change is for one in both cases.
        one.push(measure(1, subscriptions, changes, |_| "id.gte.0".to_owned())?);
        keyed.push(measure(subscriptions, subscriptions, changes, |id| format!("id.eq.{id}"))?);
        asked.push(measure(subscriptions, subscriptions, (changes / 100).max(1), |id| {
            format!("and(id.gte.{id},id.lte.{id})")
        })?);
        shared.push(measure(subscriptions, subscriptions, changes, |_| "id.gte.0".to_owned())?);
    }
    let base = median(&mut one);
    for (what, times) in [
        ("1 subscription of all rows", &mut one),
        (&*format!("{subscriptions} subscriptions, id.eq.N each"), &mut keyed),
        (&*format!("{subscriptions} that have to be asked, and(id.gte.N,id.lte.N)"), &mut asked),
        (&*format!("{subscriptions} of all rows, which share one selection"), &mut shared),
    ] {
        let middle = median(times);
        let ratio = middle.as_secs_f64() / base.as_secs_f64();
        let (least, most) = (times[0].as_secs_f64() * 1e6, times[times.len() - 1].as_secs_f64() * 1e6);
        let middle = middle.as_secs_f64() * 1e6;
        println!("  {what:62} {middle:9.2} µs ({least:.2} to {most:.2}), {ratio:.1} times the first");
    }
    Ok(())
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// The time of one change of one row among so many subscriptions.
fn measure(subscriptions: usize, ids: usize, changes: i64, filter: impl Fn(usize) -> String) -> Result<Duration> {
    let watched = watched()?;
    let hub = Hub::new(HISTORY_BYTES_MAX);
    hub.begin_at(cursor(0)?, "new");
    let mut joined: Vec<Joined> = Vec::new();
    for id in 0..subscriptions {
        joined.push(hub.join(&kind(&watched, &filter(id))?).map_err(|_| anyhow!("the hub has not begun"))?);
    }
    let parts =
        (1..=changes).map(|position| part(&watched, position, position as usize % ids)).collect::<Result<Vec<_>>>()?;
    let begun = Instant::now();
    for part in &parts {
        hub.publish(std::slice::from_ref(part));
    }
    let took = begun.elapsed() / changes as u32;
    let mut frames = 0;
    let mut seen = std::collections::HashSet::new();
    for place in &mut joined {
        while let News::Chunks { chunks, next, .. } = place.topic.take(place.next) {
            place.next = next;
            if seen.insert((Arc::as_ptr(&place.topic), next)) {
                frames += chunks.len();
            }
        }
    }
    ensure!(frames as i64 == changes, "{frames} frames were made of {changes} changes");
    Ok(took)
}

fn cursor(position: Position) -> Result<Cursor> {
    Ok(Cursor { epoch: "test".parse().map_err(|_| anyhow!("no epoch"))?, position, nonce: 0 })
}

fn watched() -> Result<Arc<Watched>> {
    let column = json!([{
        "name": "id", "declared_type": 23, "domain": false, "modifier": -1, "base": "int4", "type_name": "integer",
        "is_enum": false, "labels": null, "collation": 0, "collation_of": null, "database": null, "encoding": "UTF8"
    }]);
    let name = TableName::new("public", "t");
    let table = Arc::new(Table { watch: 1, name, key: Some(vec!["id".into()]), partitioned: false, active: true });
    Ok(Arc::new(Watched::new(table, filter::columns(&column.to_string())?)))
}

fn kind(watched: &Arc<Watched>, filter: &str) -> Result<Kind> {
    let request = Request::parse(&format!("table=t&where={filter}")).map_err(anyhow::Error::msg)?;
    let tables = Tables::from([(1, watched.clone())]);
    let draft = Draft::new(request.wish(), &tables).map_err(anyhow::Error::msg)?;
    let selection = draft.bind(vec![None]).map_err(anyhow::Error::msg)?;
    Ok(Kind { selection, form: Form::Feed })
}

fn part(watched: &Watched, position: Position, id: usize) -> Result<Part> {
    let row = |level: Position| RawValue::from_string(format!(r#"{{"id":{id},"name":"a switch","level":{level}}}"#));
    let change =
        Change::new(position, watched.table.clone(), Op::Update, Some(row(position - 1)?), Some(row(position)?));
    let cursor = cursor(position)?;
    Ok(Part { cursor, tx: 1, at: String::new(), changes: vec![change], end: position, first: true, last: true })
}
