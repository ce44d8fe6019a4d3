//! The order of life: read the command line, check the settings, bind, run, and say how it ended.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use switchboard::check::{self, State};
use switchboard::config::{Command, CommandLine, Config, DatabaseArgs, Mistakes};
use switchboard::names::Typed;
use switchboard::{dev, install, tail};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The settings are wrong (sysexits.h: EX_USAGE).
const EXIT_SETTINGS: u8 = 64;
/// How long `serve --install` waits before it tries again to reach PostgreSQL.
const INSTALL_RETRY: Duration = Duration::from_secs(5);
/// How long the end waits for what cannot be interrupted, such as a write to a pipe that nobody reads.
const END_PATIENCE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let line = match CommandLine::try_parse() {
        Ok(line) => line,
        Err(error) => {
            // Where even this cannot be written, there is nobody to tell.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(EXIT_SETTINGS) } else { ExitCode::SUCCESS };
        }
    };
    let mut mistakes = Mistakes::default();
    let settings = check_settings(&line, &mut mistakes);
    if !mistakes.0.is_empty() {
        for mistake in &mistakes.0 {
            eprintln!("switchboard: {mistake}");
        }
        return ExitCode::from(EXIT_SETTINGS);
    }
    log_to_stderr(&line.log);
    // A subscriber is an open file; the usual soft limit of 1024 is for programs that use select().
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::debug!("the limit on open files stays as it is: {error}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let ended = runtime.context("starting threads").and_then(|runtime| {
        let ended = runtime.block_on(run(line.command, settings));
        runtime.shutdown_timeout(END_PATIENCE);
        ended
    });
    match ended {
        Ok(code) => code,
        Err(error) => {
            eprintln!("switchboard: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Everything that can be said about the settings before anything is done.
enum Settings {
    Gateway(Box<Config>),
    Database(Box<tokio_postgres::Config>),
    Tail(Box<tail::Config>),
}

fn check_settings(line: &CommandLine, mistakes: &mut Mistakes) -> Settings {
    if !["error", "warn", "info", "debug", "trace"].contains(&line.log.as_str()) {
        mistakes.0.push(format!("--log: {:?} is unknown; say error, warn, info, debug or trace", line.log));
    }
    let of = |database: &DatabaseArgs, mistakes: &mut Mistakes| Settings::Database(Box::new(database.check(mistakes)));
    match &line.command {
        Command::Dev { gateway, .. } => Settings::Gateway(Box::new(gateway.check(Default::default(), mistakes))),
        Command::Serve { database, install, gateway, .. } => {
            let database = database.check(mistakes);
            tables_to_install(install.as_deref(), mistakes);
            Settings::Gateway(Box::new(gateway.check(database, mistakes)))
        }
        Command::Watch { database, tables } | Command::Unwatch { database, tables } => {
            mistakes.tables("TABLES", tables);
            of(database, mistakes)
        }
        Command::Install { database, .. } | Command::Uninstall { database } | Command::Check { database } => {
            of(database, mistakes)
        }
        Command::Tail(tail) => Settings::Tail(Box::new(tail::Config::new(tail, mistakes))),
    }
}

/// The tables that `serve --install` names; none is right too.
fn tables_to_install(install: Option<&str>, mistakes: &mut Mistakes) -> Vec<Typed> {
    match install.map(str::trim) {
        None | Some("") => Vec::new(),
        Some(tables) => mistakes.tables("--install", &[tables.to_owned()]),
    }
}

fn log_to_stderr(level: &str) {
    // The pool would report a lost connection that we report ourselves.
    let filter = EnvFilter::new(format!("warn,deadpool.postgres=off,switchboard={level}"));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .with_target(false)
        .init();
}

async fn run(command: Command, settings: Settings) -> Result<ExitCode> {
    match (command, settings) {
        (Command::Dev { data, gateway }, Settings::Gateway(config)) => {
            let (stop, socket) = (stop_signal()?, bind(&config).await?);
            dev::run(data, &gateway, socket, stop).await?;
        }
        (Command::Serve { install, switch, .. }, Settings::Gateway(config)) => {
            let (stop, socket) = (stop_signal()?, bind(&config).await?);
            let mut stop = std::pin::pin!(stop);
            if let Some(tables) = install {
                tokio::select! {
                    installed = install_first(&config, &tables, switch) => installed?,
                    () = &mut stop => return Ok(ExitCode::SUCCESS),
                }
            }
            switchboard::announce(socket.local_addr()?);
            switchboard::run(*config, socket, stop).await;
        }
        (_, Settings::Tail(config)) => tail::run(*config, signals()?).await?,
        (command, Settings::Database(database)) => return database_command(command, &database).await,
        (command, Settings::Gateway(_)) => unreachable!("{command:?} has no gateway's settings"),
    }
    Ok(ExitCode::SUCCESS)
}

async fn bind(config: &Config) -> Result<TcpListener> {
    let listen = config.listen;
    TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen}; give another --listen ADDRESS:PORT"))
}

/// Installs and watches before serving, once PostgreSQL is there.
async fn install_first(config: &Config, tables: &str, switch: bool) -> Result<()> {
    let mut client = loop {
        match install::connect(&config.database).await {
            Ok(client) => break client,
            Err(error) => tracing::warn!("no PostgreSQL to install into, trying on: {error:#}"),
        }
        tokio::time::sleep(INSTALL_RETRY).await;
    };
    tracing::info!("{}", install::install(&mut client, switch, None).await?);
    // What is wrong with the names was said already.
    for table in tables_to_install(Some(tables), &mut Mistakes::default()) {
        let table = table.as_str();
        let hidden = install::watch(&mut client, table).await.with_context(|| format!("watching {table}"))?;
        hidden.iter().for_each(|hidden| tracing::warn!("{}; {}", hidden.what(), hidden.remedy()));
    }
    Ok(())
}

async fn database_command(command: Command, database: &tokio_postgres::Config) -> Result<ExitCode> {
    if let Command::Check { .. } = command {
        let findings = check::check(database).await;
        for finding in &findings {
            println!("{finding}");
        }
        let wrong = findings.iter().any(|finding| matches!(finding.state, State::Wrong(_)));
        return Ok(if wrong { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    let mut client = install::connect(database).await?;
    match command {
        Command::Install { switch, gateway_role, .. } => {
            println!("{}", install::install(&mut client, switch, gateway_role.as_deref()).await?);
        }
        Command::Uninstall { .. } => match install::uninstall(&mut client).await? {
            true => println!("removed the schema \"switchboard\" and its triggers; your tables stay as they are"),
            false => println!("there was nothing to remove"),
        },
        Command::Watch { tables, .. } => {
            for table in Mistakes::default().tables("TABLES", &tables) {
                let table = table.as_str();
                let hidden = install::watch(&mut client, table).await.with_context(|| format!("watching {table}"))?;
                println!("watching {table}");
                hidden.iter().for_each(|hidden| eprintln!("switchboard: {}; {}", hidden.what(), hidden.remedy()));
            }
        }
        Command::Unwatch { tables, .. } => {
            for table in Mistakes::default().tables("TABLES", &tables) {
                let table = table.as_str();
                let was = install::unwatch(&mut client, table).await.with_context(|| format!("unwatching {table}"))?;
                println!("{} {table}", if was { "no longer watching" } else { "was not watching" });
            }
        }
        Command::Dev { .. } | Command::Serve { .. } | Command::Check { .. } | Command::Tail(_) => {
            unreachable!("handled above")
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Resolves at SIGTERM or SIGINT, and says so.
fn stop_signal() -> Result<impl Future<Output = ()>> {
    let signal = signals()?;
    Ok(async move {
        // Not inside of the message: where that is not logged, nothing in it happens.
        let name = signal.await;
        tracing::info!("{name}: stopping");
    })
}

/// The name of the first signal to stop that comes.
fn signals() -> Result<impl Future<Output = &'static str> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    })
}
