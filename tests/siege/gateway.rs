//! The gateway under attack: a process of its own, whose memory, files and processor time are read from outside.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// How long a gateway may take to say where it listens.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// What `--stop-timeout-ms` says, as the gateway is started here.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How much longer than that the process may take until it is gone, on a busy machine.
const STOP_SLACK: Duration = Duration::from_secs(3);
/// How long a killed process may take until it is gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// Clock ticks a second in `/proc/PID/stat`, as Linux has them everywhere.
const TICKS_PER_SECOND: u64 = 100;

/// What an attack needs of the gateway it attacks.
#[derive(Clone, Copy, Default)]
pub struct Settings {
    /// Settings and their values, as flags without the dashes.
    pub flags: &'static [(&'static str, &'static str)],
    /// How many files the process may have open.
    pub files_max: Option<u32>,
}

/// Where the program is and how it is started, whatever the attack.
pub struct Launcher {
    pub program: PathBuf,
    pub database_url: String,
    /// Settings that win over those of an attack.
    pub overrides: Vec<(String, String)>,
    /// Whether what the gateway logs is shown.
    pub shows_log: bool,
}

/// A running gateway.
pub struct Gateway {
    child: Child,
    pub address: SocketAddr,
}

/// What a process uses.
#[derive(Clone, Copy, Default)]
pub struct Usage {
    pub memory_bytes: u64,
    pub files: usize,
    pub processor: Duration,
}

impl Launcher {
    /// Starts a gateway at this address and waits until it says where it listens.
    pub async fn start(&self, settings: Settings, listen: &str) -> Gateway {
        let mut command = match settings.files_max {
            None => Command::new(&self.program),
            Some(most) => {
                let mut shell = Command::new("sh");
                shell.arg("-c").arg(format!("ulimit -n {most} && exec \"$0\" \"$@\"")).arg(&self.program);
                shell
            }
        };
        let stop_timeout = STOP_TIMEOUT.as_millis().to_string();
        command.args(["serve", "--log", "error", "--listen", listen, "--stop-timeout-ms", &stop_timeout]);
        let overridden = |name: &str| self.overrides.iter().any(|(other, _)| other == name);
        for (name, value) in settings.flags.iter().filter(|(name, _)| !overridden(name)) {
            command.arg(format!("--{name}")).arg(value);
        }
        for (name, value) in &self.overrides {
            command.arg(format!("--{name}")).arg(value);
        }
        let mut child = command
            .env("DATABASE_URL", &self.database_url)
            .stdout(Stdio::piped())
            .stderr(if self.shows_log { Stdio::inherit() } else { Stdio::null() })
            .kill_on_drop(true)
            .spawn()
            .expect("the gateway's program starts");
        let mut lines = BufReader::new(child.stdout.take().expect("its output is a pipe")).lines();
        let line = timeout(START_PATIENCE, lines.next_line()).await;
        let line = line.expect("a gateway says where it listens").expect("it can be read").unwrap_or_default();
        let address = line.split("http://").nth(1).and_then(|rest| rest.split(' ').next());
        let address = address.and_then(|address| address.parse().ok());
        Gateway { child, address: address.unwrap_or_else(|| panic!("no address in {line:?}")) }
    }
}

impl Gateway {
    /// The process, if it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Whether the process ended by itself, and how.
    pub fn ended(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(format!("the gateway ended by itself: {status}")),
            Err(error) => Some(format!("the gateway cannot be looked at: {error}")),
        }
    }

    /// Tells the gateway to stop. How long that took; an error if it was more than the gateway's own time-out.
    pub async fn stop(mut self) -> Result<Duration, String> {
        let Some(id) = self.child.id() else {
            return Err("the gateway was gone before it was told to stop".to_owned());
        };
        let began = Instant::now();
        signal("TERM", id);
        let most = STOP_TIMEOUT + STOP_SLACK;
        match timeout(most, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(began.elapsed()),
            Ok(Ok(status)) => Err(format!("the gateway stopped with {status}")),
            Ok(Err(error)) => Err(format!("the gateway cannot be waited for: {error}")),
            Err(_) => {
                // What is killed ends; the oracle has spoken already.
                let _ = timeout(KILL_PATIENCE, self.child.kill()).await;
                Err(format!("the gateway did not stop within {} s of SIGTERM; it was killed", most.as_secs()))
            }
        }
    }
}

/// Sends a signal to a process that this program started.
pub fn signal(name: &str, id: u32) {
    // It may be gone; whoever waits for it finds out.
    let _ = std::process::Command::new("kill").args(["-s", name, &id.to_string()]).status();
}

/// What a process uses at this moment.
pub fn usage(id: u32) -> Option<Usage> {
    let process = Path::new("/proc").join(id.to_string());
    let status = std::fs::read_to_string(process.join("status")).ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = resident.trim().trim_end_matches("kB").trim().parse().ok()?;
    let stat = std::fs::read_to_string(process.join("stat")).ok()?;
    // The name in brackets may hold blanks; 12 and 13 fields behind it are the ticks in user and in kernel mode.
    let ticks = stat.rsplit_once(") ")?.1.split(' ').skip(11).take(2);
    let ticks: u64 = ticks.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Some(Usage {
        memory_bytes: kilobytes << 10,
        files: std::fs::read_dir(process.join("fd")).ok()?.count(),
        processor: Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND),
    })
}
