//! What capture costs a writer: pgbench updates one row a transaction in three tables that are alike but for their trigger.
//!
//! `bare` has none; `notify` has the usual one, `pg_notify` of the row as JSON, with a session that listens; `watched` is captured
//! while a gateway reads. All in one PostgreSQL that flushes as it does by default, in turns, so that a change of the machine's
//! mood hits all three. Run with:
//!
//! ```text
//! cargo bench --bench write_path                # 1, 8 and 32 clients, 5 rounds of 5 s each
//! cargo bench --bench write_path -- --short     # to see that it works
//! ```

mod harness;

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use switchboard::config::{Config, database_config};
use switchboard::install;
use switchboard::local::LocalServer;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio_postgres::Client;

use crate::harness::{beside_postgresql, is_short};

const ROWS: u32 = 10_000;
const TABLES: [&str; 3] = ["bare", "notify", "watched"];

#[tokio::main]
async fn main() -> Result<()> {
    let (rounds, seconds) = if is_short() { (1, 1) } else { (5, 5) };
    let settings = [("max_connections", "100"), ("shared_buffers", "256MB"), ("max_wal_size", "4GB")];
    beside_postgresql(&settings, async |server, client| measure(server, client, rounds, seconds).await).await
}

async fn measure(server: &LocalServer, mut client: Client, rounds: usize, seconds: u32) -> Result<()> {
    let url = server.url("postgres");
    for table in TABLES {
        let create = format!(
            "create table {table} (id int primary key, name text not null, status boolean not null, level int not null);
             insert into {table} select n, 'switch ' || n, false, 0 from generate_series(1, {ROWS}) as n"
        );
        client.batch_execute(&create).await?;
    }
    install::watch(&mut client, "watched").await?;
    let usual = "create function notify() returns trigger language plpgsql as
                 $$ begin perform pg_notify('changes', row_to_json(new)::text); return null; end $$;
                 create trigger notify after insert or update on notify for each row execute function notify();
                 vacuum analyze; checkpoint";
    for statement in usual.rsplitn(3, ';').collect::<Vec<_>>().into_iter().rev() {
        client.batch_execute(statement).await?;
    }
    client.batch_execute("listen changes").await?;
    let socket = TcpListener::bind("127.0.0.1:0").await?;
    let gateway = tokio::spawn(switchboard::run(
        Config::new(database_config(&url, None).map_err(anyhow::Error::msg)?),
        socket,
        std::future::pending(),
    ));

    println!("one-row updates a second, median of {rounds} rounds of {seconds} s");
    println!("{:>8} {:>9} {:>9} {:>9}  watched/bare  watched/notify", "clients", TABLES[0], TABLES[1], TABLES[2]);
    for clients in [1, 8, 32] {
        let mut speeds: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for _ in 0..rounds {
            for table in TABLES {
                speeds.entry(table).or_default().push(pgbench(&url, server, table, clients, seconds).await?);
            }
        }
        let [bare, notify, watched] = TABLES.map(|table| median(&speeds[table]));
        let ratio = |other: &str| {
            let ratios: Vec<f64> = speeds["watched"].iter().zip(&speeds[other]).map(|(a, b)| a / b).collect();
            let (least, most) = ratios.iter().fold((f64::MAX, 0.0_f64), |(a, b), ratio| (a.min(*ratio), b.max(*ratio)));
            format!("{:.2} ({least:.2} to {most:.2})", median(&ratios))
        };
        println!("{clients:>8} {bare:>9.0} {notify:>9.0} {watched:>9.0}  {}  {}", ratio("bare"), ratio("notify"));
    }
    gateway.abort();
    Ok(())
}

async fn pgbench(url: &str, server: &LocalServer, table: &str, clients: u32, seconds: u32) -> Result<f64> {
    let script = std::env::temp_dir().join(format!("switchboard-bench-{}-{table}.sql", std::process::id()));
    let update = format!("\\set id random(1, {ROWS})\nupdate {table} set level = level + 1 where id = :id;\n");
    std::fs::write(&script, update)?;
    let beside = server.programs().dir.join("pgbench");
    let program = if beside.exists() { beside } else { "pgbench".into() };
    let output = Command::new(program)
        .args(["--no-vacuum", "--protocol=prepared", "--jobs=2"])
        .args([format!("--client={clients}"), format!("--time={seconds}"), format!("--file={}", script.display())])
        .arg(url)
        .output()
        .await
        .context("pgbench, which comes with PostgreSQL's server or contrib package")?;
    std::fs::remove_file(&script)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let speed = said.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    speed.with_context(|| format!("pgbench: {}", String::from_utf8_lossy(&output.stderr)))
}

fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
