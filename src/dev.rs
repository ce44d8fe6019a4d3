//! The command `dev`: everything on one machine. A private PostgreSQL in a folder, the switch table, the gateway and its page.

use std::path::PathBuf;

use anyhow::{Context, Result};
use tokio::net::TcpListener;

use crate::config::{Config, GatewayArgs, Mistakes, database_config};
use crate::install;
use crate::local::{LocalServer, Options, StopMode, default_dir};

/// The database of the private server.
const DATABASE: &str = "switchboard";

/// Runs until `stop` resolves, then stops all of it, PostgreSQL too.
pub async fn run(
    data: Option<PathBuf>,
    gateway: &GatewayArgs,
    socket: TcpListener,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    let dir = data.unwrap_or_else(default_dir);
    let options = Options { dir: dir.clone(), settings: Vec::new(), durable: true, keep: true };
    let mut stop = std::pin::pin!(stop);
    let starting = LocalServer::start(options, |step| eprintln!("{step}"));
    let server = tokio::select! {
        server = starting => server?,
        // What was started so far goes with the future.
        () = &mut stop => return Ok(()),
    };
    let served = serve(&server, gateway, socket, stop).await;
    let stopped = server.stop(StopMode::Fast).await.context("stopping PostgreSQL");
    served.and(stopped)
}

async fn serve(
    server: &LocalServer,
    gateway: &GatewayArgs,
    socket: TcpListener,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    prepare(server).await?;
    let url = server.url(DATABASE);
    let database = database_config(&url, None).map_err(anyhow::Error::msg)?;
    // They were checked before the server was started.
    let config = Config { dev: true, ..gateway.check(database, &mut Mistakes::default()) };
    let address = socket.local_addr()?;
    crate::announce(address);
    eprintln!();
    eprintln!("  The live page   http://{address}/");
    eprintln!("  WebSocket       ws://{address}/v1/feed?table=switch");
    eprintln!("  Try             {} -c 'update switch set status = not status where id = 1'", server.psql(DATABASE));
    let program = std::env::args().next().unwrap_or_else(|| "switchboard".to_owned());
    eprintln!("  Your own table  DATABASE_URL={url} {program} watch TABLE");
    eprintln!("  Stop            Ctrl-C");
    eprintln!();
    crate::run(config, socket, stop).await;
    Ok(())
}

/// The database, the log and the switch table, where they are not there yet.
async fn prepare(server: &LocalServer) -> Result<()> {
    let postgres = database_config(&server.url("postgres"), None).map_err(anyhow::Error::msg)?;
    let client = install::connect(&postgres).await?;
    let there = client.query_one("select exists (select from pg_database where datname = $1)", &[&DATABASE]).await?;
    if !there.get::<_, bool>(0) {
        client.batch_execute(&format!("create database {DATABASE}")).await?;
    }
    let database = database_config(&server.url(DATABASE), None).map_err(anyhow::Error::msg)?;
    let mut client = install::connect(&database).await?;
    install::install(&mut client, true, None).await.context("installing")?;
    Ok(())
}
