//! A private PostgreSQL server in a folder, for `switchboard dev` and for the tests.
//!
//! Owns the folder (`data/`, `log`, `lock`, `password`, `port`) and the server that runs there.
//! Promises that the server does not outlive its owner, be that killed with -9: a guard process,
//! tied to us by a pipe, stops it. What is in the databases is left to others;
//! which installation runs is for `programs` to find.

use std::{
    env,
    ffi::OsStr,
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener},
    ops::Range,
    os::unix::{
        fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::LazyLock,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tokio::time::sleep;

mod programs;

pub use programs::Programs;

const LOCK_MAX: Duration = Duration::from_secs(8);
const INITDB_MAX: Duration = Duration::from_secs(120);
const START_MAX: Duration = Duration::from_secs(120);
/// How long one signal may take; the next one is harsher.
const STOP_MAX: Duration = Duration::from_secs(20);
const DROP_MAX: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(10);
const PORT_TRIES: usize = 100;
const LOG_LINES_SHOWN: usize = 12;
const PORT_TAKEN: &str = "could not create any TCP/IP sockets";

/// Below the range that outgoing connections use: a client that keeps trying while the server is
/// down could be given the server's own port there, connect to itself, and keep the server out.
const PORTS: Range<u16> = 20_000..30_000;

/// Becomes the program only when told to: the guard knows the process before there is a server.
const GATE: &str = r#"read -r go && exec "$@" </dev/null"#;

/// Waits for the end of its input, which is our end, then stops the process that was named last.
/// `$1`: the signals to try; `$2`: a folder to remove, or nothing.
/// A zombie counts as gone: not every container has an init that reaps.
const GUARD: &str = r#"
trap '' HUP INT TERM
pid=
while read -r line; do pid=$line; done
alive() {
    [ -n "$pid" ] && kill -0 "$pid" && ! grep -q ') Z ' "/proc/$pid/stat"
}
for signal in $1; do
    alive && kill -s "$signal" "$pid"
    tries=0
    while alive && [ "$tries" -lt 100 ]; do sleep 0.05; tries=$((tries + 1)); done
done
[ -z "$2" ] || rm -rf -- "$2"
"#;

/// Where to keep the data and how to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder: a new or empty one, or one that was made here before.
    pub dir: PathBuf,
    /// Server settings, which win over those in `postgresql.conf` and over `alter system`.
    pub settings: Vec<(String, String)>,
    /// Whether the data must survive a crash of the machine. Tests need not.
    pub durable: bool,
    /// Whether the folder stays when the server stops.
    pub keep: bool,
}

/// How to stop: `Fast` ends sessions and writes everything down, `Immediate` leaves a crash behind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StopMode {
    /// Sessions are ended, open transactions rolled back, and the data is written down.
    Fast,
    /// As in a crash: the next start recovers from the write-ahead log.
    Immediate,
}

impl StopMode {
    fn signals(self) -> &'static [&'static str] {
        match self {
            StopMode::Fast => &["INT", "QUIT", "KILL"],
            StopMode::Immediate => &["QUIT", "KILL"],
        }
    }
}

/// A running server. Dropping it stops the server and waits for that, for a bounded time.
pub struct LocalServer {
    programs: Programs,
    options: Options,
    password: String,
    port: u16,
    server: Option<Child>,
    guard: Guard,
    _lock: File,
}

impl LocalServer {
    /// Starts a server in the folder, made with `initdb` if new, and waits until it accepts.
    pub async fn start(mut options: Options, progress: impl Fn(&str)) -> Result<LocalServer> {
        let programs = Programs::find(made_by(&options.dir)?, &progress).await?;
        options.dir = prepare(&options.dir)?;
        let _lock = lock(&options.dir).await?;
        let guard = Guard::start(&options, &_lock)?;
        let mut local = LocalServer { programs, options, password: String::new(), port: 0, server: None, guard, _lock };
        local.stop_left_behind(&progress).await?;
        // The first time there is none. So the folder holds the logs of two runs at most.
        let _ = fs::rename(local.file("log"), local.file("log.old"));
        if made_by(&local.options.dir)?.is_none() {
            let place = local.options.dir.display();
            progress(&format!("preparing PostgreSQL {} in {place}", local.programs.version));
            local.initialize().await?;
        }
        let password = local.file("password");
        local.password = fs::read_to_string(&password)
            .with_context(|| format!("cannot read {}; start afresh in another folder", password.display()))?;
        local.run_on_some_port().await?;
        Ok(local)
    }

    /// The address of a database, for the superuser `postgres`.
    pub fn url(&self, database: &str) -> String {
        let LocalServer { password, port, .. } = self;
        format!("postgres://postgres:{password}@127.0.0.1:{port}/{database}")
    }

    /// A shell line that opens a database, for a person to paste.
    pub fn psql(&self, database: &str) -> String {
        let ours = self.programs.dir.join("psql");
        let path = env::var_os("PATH").unwrap_or_default();
        let on_path = env::split_paths(&path).any(|dir| dir.join("psql").is_file());
        let program = if on_path || !ours.is_file() { Path::new("psql") } else { &ours };
        format!("{} {}", quoted(&program.to_string_lossy()), quoted(&self.url(database)))
    }

    /// The programs that it runs.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Stops the server and starts it again on the same port.
    pub async fn restart(&mut self, mode: StopMode) -> Result<()> {
        self.halt(mode).await?;
        self.run().await
    }

    /// Stops the server; removes the folder if it is not to be kept.
    pub async fn stop(mut self, mode: StopMode) -> Result<()> {
        let halted = self.halt(mode).await;
        tokio::task::spawn_blocking(move || drop(self)).await.context("the guard was left alone")?;
        halted
    }

    /// Crashes the server: -9 to its first process and all its children. See `start_again`.
    pub async fn kill(&mut self) -> Result<()> {
        let Some(first) = self.server.as_ref().map(Child::id) else { return Ok(()) };
        // Frozen, it starts no children while they are being counted.
        signal("STOP", &[first])?;
        let all = processes().into_iter().filter(|process| process.parent == first);
        let all: Vec<u32> = all.map(|process| process.id).chain([first]).collect();
        signal("KILL", &all)?;
        self.ended(STOP_MAX).await?;
        ensure!(gone(&all, STOP_MAX).await, "some of the processes {all:?} survived kill -9 for {STOP_MAX:?}");
        Ok(())
    }

    /// Starts a killed or crashed server on the same port; one that runs is left alone.
    pub async fn start_again(&mut self) -> Result<()> {
        self.ended(Duration::ZERO).await?;
        if self.server.is_some() { Ok(()) } else { self.run().await }
    }

    async fn initialize(&mut self) -> Result<()> {
        let fresh = self.file("data.new").to_string_lossy().into_owned();
        if Path::new(&fresh).exists() {
            fs::remove_dir_all(&fresh).with_context(|| format!("cannot remove {fresh}; remove it by hand"))?;
        }
        write_private(&self.file("password"), &random_hex()?)?;
        let pwfile = format!("--pwfile={}", self.file("password").display());
        let mut arguments = vec!["--username=postgres", "--auth=scram-sha-256", &pwfile];
        arguments.extend(["--encoding=UTF8", "--locale=C", "-D", &fresh]);
        arguments.extend((!self.options.durable).then_some("--no-sync"));
        let log_start = self.launch("initdb", &arguments)?;
        let ended = self.ended(INITDB_MAX).await?;
        let why = ended.map_or(format!("not done in {INITDB_MAX:?}"), |status| status.to_string());
        ensure!(ended.is_some_and(|status| status.success()), "initdb failed ({why}); {}", self.log_end(log_start));
        fs::rename(&fresh, self.file("data")).context("cannot move the new data into place")
    }

    /// Another port only where the kept one was taken while the server was away.
    async fn run_on_some_port(&mut self) -> Result<()> {
        let kept = fs::read_to_string(self.file("port")).ok().and_then(|text| text.trim().parse().ok());
        let mut next = kept.filter(is_free).or_else(free_port);
        for _ in 0..PORT_TRIES {
            self.port = next.with_context(|| format!("found no free port on 127.0.0.1 in {PORTS:?}"))?;
            match self.run().await {
                Err(error) if error.to_string().contains(PORT_TAKEN) => next = free_port(),
                Err(error) => return Err(error),
                Ok(()) => return fs::write(self.file("port"), self.port.to_string()).context("cannot keep the port"),
            }
        }
        bail!("ports in {PORTS:?} were taken by others {PORT_TRIES} times in a row; try again")
    }

    async fn run(&mut self) -> Result<()> {
        let pgdata = self.file("data").to_string_lossy().into_owned();
        let (port, listen) = (format!("port={}", self.port), "listen_addresses=127.0.0.1");
        let mut arguments = vec!["-D", &pgdata, "-c", &port, "-c", listen, "-c", "unix_socket_directories="];
        arguments.extend(if self.options.durable { [].as_slice() } else { &["-c", "fsync=off"] });
        let settings = self.options.settings.iter().map(|(name, value)| format!("{name}={value}"));
        let settings: Vec<String> = settings.collect();
        arguments.extend(settings.iter().flat_map(|setting| ["-c", setting]));
        let log_start = self.launch("postgres", &arguments)?;
        let began = Instant::now();
        while !self.is_ready() {
            if let Some(status) = self.ended(POLL).await? {
                bail!("PostgreSQL did not start ({status}); {}", self.log_end(log_start));
            }
            ensure!(began.elapsed() < START_MAX, "not ready in {START_MAX:?}; {}", self.log_end(log_start));
        }
        Ok(())
    }

    /// Starts a program as the unprivileged user; returns where its part of the log begins.
    fn launch(&mut self, program: &str, arguments: &[&str]) -> Result<usize> {
        let log = OpenOptions::new().create(true).append(true).open(self.file("log"))?;
        let log_start = usize::try_from(log.metadata()?.len())?;
        let mut gate = command("/bin/sh");
        gate.args(["-c", GATE, "sh"]).arg(self.programs.dir.join(program)).args(arguments);
        gate.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        let process = self.server.insert(gate.spawn().context("cannot start /bin/sh")?);
        self.guard.watch(&process.id().to_string()).context("the server's guard is gone")?;
        let mut go = process.stdin.take().context("a piped process has an input")?;
        writeln!(go, "go").with_context(|| format!("cannot start {program}"))?;
        Ok(log_start)
    }

    /// The server writes its state into the eighth line of this file.
    fn is_ready(&self) -> bool {
        let state = fs::read_to_string(self.file("data/postmaster.pid")).unwrap_or_default();
        let lines: Vec<&str> = state.lines().map(str::trim).collect();
        let ours = self.server.as_ref().map(|server| server.id().to_string());
        ours.is_some() && lines.first().copied() == ours.as_deref() && lines.get(7) == Some(&"ready")
    }

    async fn halt(&mut self, mode: StopMode) -> Result<()> {
        for name in mode.signals() {
            if let Some(server) = &self.server {
                signal(name, &[server.id()])?;
                self.ended(STOP_MAX).await?;
            }
        }
        let left = self.server.as_ref().map(Child::id);
        left.map_or(Ok(()), |id| bail!("process {id} does not stop, not even after kill -9"))
    }

    /// How the process ended, if it did within this time.
    async fn ended(&mut self, max: Duration) -> Result<Option<ExitStatus>> {
        let began = Instant::now();
        while let Some(server) = &mut self.server {
            if let Some(status) = server.try_wait()? {
                self.server = None;
                // A guard that is gone matters only when there is something to guard.
                let _ = self.guard.watch("");
                return Ok(Some(status));
            }
            if began.elapsed() >= max {
                break;
            }
            sleep(POLL).await;
        }
        Ok(None)
    }

    /// For a server whose owner and guard were both killed. If the number in its file now belongs to
    /// a stranger, that one is left alone, and the file goes: PostgreSQL would refuse to start.
    async fn stop_left_behind(&self, progress: &impl Fn(&str)) -> Result<()> {
        let file = self.file("data/postmaster.pid");
        let text = fs::read_to_string(&file).unwrap_or_default();
        let Some(id) = text.lines().next().and_then(|line| line.trim().parse().ok()) else { return Ok(()) };
        if gone(&[id], Duration::ZERO).await {
            return Ok(());
        }
        if !serves(id, &self.file("data")) {
            return fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()));
        }
        progress(&format!("stopping the server that an earlier run left behind (process {id})"));
        for name in StopMode::Fast.signals() {
            signal(name, &[id])?;
            if gone(&[id], STOP_MAX).await {
                return Ok(());
            }
        }
        bail!("process {id}, left behind by an earlier run, does not stop, not even after kill -9")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.options.dir.join(name)
    }

    fn log_end(&self, start: usize) -> String {
        let log = fs::read(self.file("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(log.get(start..).unwrap_or_default());
        let lines: Vec<&str> = text.lines().collect();
        let shown = lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n");
        format!("the end of {}:\n{shown}", self.file("log").display())
    }
}

impl Drop for LocalServer {
    fn drop(&mut self) {
        self.guard.tie = None;
        let began = Instant::now();
        while began.elapsed() < DROP_MAX {
            // Reaped, so that the guard sees it gone where there is no /proc.
            let _ = self.server.as_mut().map(Child::try_wait);
            match self.guard.process.try_wait() {
                Ok(None) => std::thread::sleep(POLL),
                _ => return,
            }
        }
    }
}

struct Guard {
    process: Child,
    tie: Option<ChildStdin>,
}

impl Guard {
    /// It holds our lock on the folder as its output, so that nobody comes in while it still works.
    fn start(options: &Options, lock: &File) -> Result<Guard> {
        let signals = if options.keep { StopMode::Fast } else { StopMode::Immediate }.signals();
        let removed = if options.keep { OsStr::new("") } else { options.dir.as_os_str() };
        let mut guard = Command::new("/bin/sh");
        guard.args(["-c", GUARD, "switchboard-guard", &signals.join(" ")]).arg(removed);
        guard.current_dir("/").process_group(0);
        guard.stdin(Stdio::piped()).stdout(lock.try_clone()?).stderr(Stdio::null());
        let mut process = guard.spawn().context("cannot start /bin/sh as the server's guard")?;
        let tie = process.stdin.take();
        Ok(Guard { process, tie })
    }

    /// Names the process to stop; none if empty.
    fn watch(&mut self, id: &str) -> io::Result<()> {
        self.tie.as_mut().map_or(Ok(()), |tie| writeln!(tie, "{id}"))
    }
}

struct Account {
    name: &'static str,
    uid: u32,
    gid: u32,
}

/// Whom the server runs as when we are root, which it refuses to be.
static ACCOUNT: LazyLock<Option<Account>> = LazyLock::new(|| {
    let id = Command::new("id").arg("-u").env("PATH", "/usr/bin:/bin").output().ok()?;
    if id.stdout.trim_ascii() != b"0" {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let account = |name: &'static str| {
        let user = users.lines().find(|user| user.split(':').next() == Some(name))?;
        let mut numbers = user.split(':').skip(2);
        let (uid, gid) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
        Some(Account { name, uid, gid })
    };
    account("postgres").or_else(|| account("nobody"))
});

/// A program run as the server's user, out of reach of the terminal's Ctrl-C.
fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/").process_group(0).env("LC_ALL", "C");
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
        command.env_remove(name);
    }
    if let Some(account) = &*ACCOUNT {
        command.uid(account.uid).gid(account.gid);
    }
    command
}

/// Whether the server's user can get at a folder there. Ask before `start` when running as root.
pub fn reachable(dir: &Path) -> bool {
    let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let above = dir.ancestors().skip(1).find(|above| above.is_dir()).unwrap_or(Path::new("/"));
    let mut enter = command("/bin/sh");
    enter.args(["-c", r#"cd -- "$1" 2>/dev/null"#, "sh"]).arg(above);
    ACCOUNT.is_none() || enter.status().is_ok_and(|status| status.success())
}

/// `./switchboard-data`, or a place in `/var/lib` where we are root and the server is not let in.
pub fn default_dir() -> PathBuf {
    let here = PathBuf::from("./switchboard-data");
    if reachable(&here) { here } else { PathBuf::from("/var/lib/switchboard/dev") }
}

/// The major version of the data in the folder, if there is any.
fn made_by(dir: &Path) -> Result<Option<u32>> {
    let file = dir.join("data/PG_VERSION");
    let version = match fs::read_to_string(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(anyhow::Error::from).and_then(|text| Ok(text.trim().parse()?)),
    };
    version.map(Some).with_context(|| format!("cannot read the version in {}", file.display()))
}

fn prepare(dir: &Path) -> Result<PathBuf> {
    let dir = std::path::absolute(dir)?;
    let named = dir.display();
    if let Some(account) = ACCOUNT.as_ref().filter(|_| !reachable(&dir)) {
        bail!(
            "PostgreSQL does not run as root, and the user {} is not let into {named}; \
             name a folder elsewhere, such as /var/lib/switchboard/dev",
            account.name
        );
    }
    let empty = fs::read_dir(&dir).map_or(true, |mut entries| entries.next().is_none());
    ensure!(empty || dir.join("lock").exists(), "{named} holds other files; name a new or an empty folder");
    let make = || {
        let missing: Vec<&Path> = dir.ancestors().skip(1).take_while(|above| !above.exists()).collect();
        for above in missing.into_iter().rev() {
            fs::create_dir(above)?;
            // Whatever root's umask is, the server's user must get through.
            ACCOUNT.as_ref().map_or(Ok(()), |_| fs::set_permissions(above, Permissions::from_mode(0o755)))?;
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        if dir.join("data").exists() { Ok(()) } else { give(&dir) }
    };
    make().and_then(|()| dir.canonicalize()).with_context(|| format!("cannot make the folder {named}"))
}

fn give(path: &Path) -> io::Result<()> {
    ACCOUNT.as_ref().map_or(Ok(()), |account| chown(path, Some(account.uid), Some(account.gid)))
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| give(path)));
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// Waits a little: the guard of an owner that was just killed holds the lock until it is done.
async fn lock(dir: &Path) -> Result<File> {
    let cannot = || format!("cannot lock {}", dir.join("lock").display());
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).open(dir.join("lock")).with_context(cannot)?;
    let began = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(error).with_context(cannot),
            Err(TryLockError::WouldBlock) => ensure!(
                began.elapsed() < LOCK_MAX,
                "{} is in use by another switchboard; stop that one, or name another folder",
                dir.display()
            ),
        }
        sleep(POLL).await;
    }
}

fn is_free(port: &u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()
}

fn free_port() -> Option<u16> {
    (0..PORT_TRIES).map(|_| fastrand::u16(PORTS)).find(is_free)
}

fn random_hex() -> Result<String> {
    let mut bytes = [0; 16];
    let read = File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut bytes));
    read.context("cannot read /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/:.,@_-".contains(c);
    if word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

struct Process {
    id: u32,
    parent: u32,
    zombie: bool,
}

/// Every process of this machine: from /proc where there is one, since small images have no `ps`.
fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let stats = entries.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    // "ID (name) STATE PARENT …", and the name may hold anything.
    let mut lines: Vec<String> =
        stats.filter_map(|stat| Some(format!("{} {}", stat.split_once(" (")?.0, stat.rsplit_once(") ")?.1))).collect();
    if lines.is_empty() {
        let ps = Command::new("ps").args(["-A", "-o", "pid=", "-o", "state=", "-o", "ppid="]).output();
        let text = ps.map(|ps| String::from_utf8_lossy(&ps.stdout).into_owned()).unwrap_or_default();
        lines.extend(text.lines().map(str::to_owned));
    }
    let process = |line: &String| {
        let mut words = line.split_whitespace();
        let (id, state) = (words.next()?.parse().ok()?, words.next()?);
        Some(Process { id, zombie: state.starts_with('Z'), parent: words.next()?.parse().ok()? })
    };
    lines.iter().filter_map(process).collect()
}

/// Waits until none of them runs; tells whether that came true in time.
async fn gone(ids: &[u32], max: Duration) -> bool {
    let began = Instant::now();
    while processes().iter().any(|process| ids.contains(&process.id) && !process.zombie) {
        if began.elapsed() >= max {
            return false;
        }
        sleep(POLL).await;
    }
    true
}

/// Whether the process is a server for that data: it works inside the folder.
fn serves(id: u32, data: &Path) -> bool {
    if Path::new("/proc/self").exists() {
        // Asked as the server's user: in a container, root may not look into the processes of others.
        let mut ask = command("/bin/sh");
        ask.args(["-c", r#"[ "/proc/$1/cwd" -ef "$2" ]"#, "sh", &id.to_string()]).arg(data).stdin(Stdio::null());
        return ask.status().is_ok_and(|status| status.success());
    }
    let ps = Command::new("ps").args(["-o", "command=", "-p", &id.to_string()]).output();
    ps.is_ok_and(|ps| String::from_utf8_lossy(&ps.stdout).contains(&*data.to_string_lossy()))
}

/// A process that is already gone is no error.
fn signal(name: &str, ids: &[u32]) -> Result<()> {
    let mut kill = Command::new("/bin/sh");
    kill.args(["-c", r#"kill -s "$0" "$@" 2>/dev/null"#, name]);
    kill.args(ids.iter().map(u32::to_string)).stdin(Stdio::null());
    kill.status().with_context(|| format!("cannot send {name} to {ids:?}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_for_the_shell_is_quoted_where_needed() {
        assert_eq!(quoted("/usr/bin/psql"), "/usr/bin/psql");
        assert_eq!(quoted("/My Programs/it's"), r"'/My Programs/it'\''s'");
    }

    #[test]
    fn the_port_lies_below_those_of_outgoing_connections() {
        let port = free_port();

        assert!(port.is_some_and(|port| PORTS.contains(&port)));
    }
}
