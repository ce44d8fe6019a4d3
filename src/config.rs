//! Every setting and every bound of the program, and the command line they are read from.
//!
//! A setting is a flag and an environment variable `SWITCHBOARD_…` of the same name, and names its unit. Mistakes are collected and
//! reported all at once. Bounds that nobody needs to set are the named constants at the end, or beside the one thing that they bound.

mod asking;
mod database_url;
mod networks;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

pub use self::asking::{Hosts, Origins, authority_of};
pub use self::networks::Networks;
use crate::names::{NotNames, Typed};

/// Every row change of PostgreSQL, once, in commit order, over a WebSocket.
#[derive(Parser, Debug)]
#[command(name = "switchboard", version, max_term_width = 100)]
pub struct CommandLine {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// How much to say on standard error: error, warn, info, debug or trace
    #[arg(long, global = true, env = "SWITCHBOARD_LOG", default_value = "info", hide_env_values = true)]
    pub log: String,
}

/// What the program can do. The groups of settings say what they are where they are defined.
#[derive(Subcommand, Debug)]
#[allow(missing_docs)]
pub enum Command {
    /// Everything on one machine: a private PostgreSQL in a folder, the switch table, the gateway and the live page
    Dev {
        /// The folder of the private PostgreSQL; kept between runs [default: ./switchboard-data]
        #[arg(long, env = "SWITCHBOARD_DATA")]
        data: Option<PathBuf>,
        #[command(flatten)]
        gateway: GatewayArgs,
    },
    /// Run the gateway beside your PostgreSQL
    Serve {
        #[command(flatten)]
        database: DatabaseArgs,
        /// Install or upgrade first, and watch these tables, comma-separated, as SQL spells them; for containers
        #[arg(long, env = "SWITCHBOARD_INSTALL", value_name = "TABLES")]
        install: Option<String>,
        /// With --install: also create the demonstration's table, public.switch, where there is none
        #[arg(long, env = "SWITCHBOARD_SWITCH", requires = "install")]
        switch: bool,
        #[command(flatten)]
        gateway: GatewayArgs,
    },
    /// Create or upgrade the schema "switchboard"; may be repeated
    Install {
        #[command(flatten)]
        database: DatabaseArgs,
        /// Also create and watch the demonstration's table, public.switch, where there is none
        #[arg(long)]
        switch: bool,
        /// Let this role run a gateway, with the least rights that work
        #[arg(long, value_name = "ROLE")]
        gateway_role: Option<String>,
    },
    /// Remove the schema "switchboard" and its triggers; your tables stay as they are
    Uninstall {
        #[command(flatten)]
        database: DatabaseArgs,
    },
    /// Capture the changes of these tables from now on
    Watch {
        #[command(flatten)]
        database: DatabaseArgs,
        /// The tables, as SQL spells them, also with commas between them: orders, sales.orders, '"Odd Name"'
        #[arg(required = true)]
        tables: Vec<String>,
    },
    /// Stop capturing the changes of these tables
    Unwatch {
        #[command(flatten)]
        database: DatabaseArgs,
        /// The tables, as SQL spells them, also with commas between them
        #[arg(required = true)]
        tables: Vec<String>,
    },
    /// Say what is wrong between here and the database, and how to mend it
    Check {
        #[command(flatten)]
        database: DatabaseArgs,
    },
    /// Follow a gateway in the terminal; comes back and goes on by itself
    Tail(TailArgs),
}

/// What to follow in the terminal, as it was given.
#[derive(Args, Debug)]
pub struct TailArgs {
    /// The tables, schema optional (public), also with commas between them; one with odd signs as '"a,b"' [default: every watched table]
    pub tables: Vec<String>,
    /// The gateway: http, https, ws or wss, with or without /v1/feed
    #[arg(long, env = "SWITCHBOARD_URL", default_value = "http://127.0.0.1:8080", value_name = "URL")]
    pub url: String,
    /// Only rows that fit, for example level.gte.3 or and(level.gte.3,name.like.A*); docs/filters.md tells the rest
    #[arg(long = "where", value_name = "FILTER")]
    pub filter: Option<String>,
    /// Only these columns, comma-separated, and the key
    #[arg(long, value_name = "COLUMNS")]
    pub columns: Option<String>,
    /// Where to begin: now, snapshot (current rows first), or a cursor (everything after it) [default: where --save left off, else
    /// now]
    #[arg(long, value_name = "FROM")]
    pub from: Option<String>,
    /// Print each frame of rows or commits as one line of JSON, as it came; notes go to standard error
    #[arg(long)]
    pub json: bool,
    /// A file that keeps the cursor, so that the next start goes on from there
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// End after so many commits, 1 or more
    #[arg(long, value_name = "COUNT")]
    pub count: Option<String>,
}

/// Where the database is.
#[derive(Args, Debug, Default)]
pub struct DatabaseArgs {
    /// The database: postgres://USER:PASSWORD@HOST:PORT/DATABASE; also DATABASE_URL
    #[arg(long, env = "SWITCHBOARD_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: Option<String>,
    /// A file that holds the database's URL
    #[arg(long, env = "SWITCHBOARD_DATABASE_URL_FILE", value_name = "FILE")]
    pub database_url_file: Option<PathBuf>,
    /// A file that holds the password, if the URL has none
    #[arg(long, env = "SWITCHBOARD_DATABASE_PASSWORD_FILE", value_name = "FILE")]
    pub database_password_file: Option<PathBuf>,
}

/// The gateway's settings, as they were given.
#[derive(Args, Debug, Clone)]
pub struct GatewayArgs {
    /// Where to accept connections, ADDRESS:PORT; port 0 picks a free one
    #[arg(long, env = "SWITCHBOARD_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS:PORT")]
    pub listen: String,
    /// The web pages that may subscribe, comma-separated, as http://HOST:PORT or https://*.HOST; beside the gateway's own and those
    /// of this machine; * for all. Non-browser clients are not restricted
    #[arg(long, env = "SWITCHBOARD_ORIGINS", default_value = "", value_name = "ORIGINS")]
    pub origins: String,
    /// The names that clients may call the gateway by, comma-separated, without ports, as HOST or *.HOST; beside localhost and
    /// addresses; * for all [default: all, but none if --listen is an address of this machine only]
    #[arg(long, env = "SWITCHBOARD_HOSTS", default_value = "", hide_default_value = true, value_name = "HOSTS")]
    pub hosts: String,
    /// The channels whose notifications /listen/CHANNEL hands on, comma-separated, * for any characters and ? for any one; none by
    /// default
    #[arg(long, env = "SWITCHBOARD_LISTEN_CHANNELS", default_value = "", value_name = "CHANNELS")]
    pub listen_channels: String,
    /// How often a subscriber hears something at least, in milliseconds, 100 to 600000
    #[arg(long, env = "SWITCHBOARD_HEARTBEAT_MS", default_value = "15000", value_name = "MS")]
    pub heartbeat_ms: String,
    /// How long a subscriber's socket may take nothing before it is closed, in milliseconds, 100 to 600000
    #[arg(long, env = "SWITCHBOARD_WRITE_TIMEOUT_MS", default_value = "30000", value_name = "MS")]
    pub write_timeout_ms: String,
    /// How long the end may take, in milliseconds, 0 to 600000
    #[arg(long, env = "SWITCHBOARD_STOP_TIMEOUT_MS", default_value = "10000", value_name = "MS")]
    pub stop_timeout_ms: String,
    /// How often to look for changes where the database cannot ring, in milliseconds, 1 to 60000
    #[arg(long, env = "SWITCHBOARD_POLL_MS", default_value = "100", value_name = "MS")]
    pub poll_ms: String,
    /// How many subscribers at most, 1 to 1000000: sockets, event streams and requests that read or wait
    #[arg(long, env = "SWITCHBOARD_SUBSCRIBERS_MAX", default_value = "20000", value_name = "COUNT")]
    pub subscribers_max: String,
    /// How many connections at most beside those of subscribers, 1 to 100000; /healthz, /readyz and /metrics have room of their own
    #[arg(long, env = "SWITCHBOARD_REQUESTS_MAX", default_value = "1024", value_name = "COUNT")]
    pub requests_max: String,
    /// How many connections at most from one address, 1 to 1000000; of version 6 from one /64; not counted from this machine
    #[arg(long, env = "SWITCHBOARD_CONNECTIONS_PER_ADDRESS_MAX", default_value = "1000", value_name = "COUNT")]
    pub connections_per_address_max: String,
    /// The proxies whose X-Forwarded-For, or else Forwarded, says who asks, comma-separated, as 10.1.2.3 or 10.0.0.0/8; others are
    /// not believed
    #[arg(long, env = "SWITCHBOARD_TRUSTED_PROXIES", default_value = "", value_name = "NETWORKS")]
    pub trusted_proxies: String,
    /// How many subscriptions one subscriber may have at a time, 1 to 10000
    #[arg(long, env = "SWITCHBOARD_SUBSCRIPTIONS_MAX", default_value = "100", value_name = "COUNT")]
    pub subscriptions_max: String,
    /// How much the row filters of one connection may weigh together, 1 or more: 1 for each condition, and for every 256 bytes of their
    /// values and compiled patterns
    #[arg(long, env = "SWITCHBOARD_FILTER_WEIGHT_MAX", default_value = "20000", value_name = "WEIGHT")]
    pub filter_weight_max: String,
    /// How much the row filters of all connections may weigh together, 1 or more
    #[arg(long, env = "SWITCHBOARD_FILTERS_WEIGHT_MAX", default_value = "1000000", value_name = "WEIGHT")]
    pub filters_weight_max: String,
    /// How many different selections (tables, filter and columns) all subscriptions together may have, 1 or more
    #[arg(long, env = "SWITCHBOARD_SELECTIONS_MAX", default_value = "100000", value_name = "COUNT")]
    pub selections_max: String,
    /// How many bytes of frames to keep for subscribers that are a little behind, 1048576 or more
    #[arg(long, env = "SWITCHBOARD_HISTORY_BYTES_MAX", default_value = "67108864", value_name = "BYTES")]
    pub history_bytes_max: String,
    /// How many bytes one snapshot of current rows may take on disk, 1048576 or more
    #[arg(long, env = "SWITCHBOARD_SNAPSHOT_BYTES_MAX", default_value = "4294967296", value_name = "BYTES")]
    pub snapshot_bytes_max: String,
    /// How many bytes all snapshots that are read or taken at the same time may take on disk together, 1048576 or more
    #[arg(long, env = "SWITCHBOARD_SNAPSHOTS_BYTES_MAX", default_value = "8589934592", value_name = "BYTES")]
    pub snapshots_bytes_max: String,
    /// How many database connections snapshots share, 1 to 100; those who catch up have two of their own
    #[arg(long, env = "SWITCHBOARD_READERS_MAX", default_value = "4", value_name = "COUNT")]
    pub readers_max: String,
    /// How long the log keeps a commit, in seconds, 1 or more
    #[arg(long, env = "SWITCHBOARD_RETAIN_SECONDS", default_value = "86400", value_name = "SECONDS")]
    pub retain_seconds: String,
    /// How many commits the log keeps, 1 or more
    #[arg(long, env = "SWITCHBOARD_RETAIN_COMMITS_MAX", default_value = "1000000", value_name = "COUNT")]
    pub retain_commits_max: String,
    /// How many bytes of the database the log takes, by one commit more at most, 1048576 or more
    #[arg(long, env = "SWITCHBOARD_RETAIN_BYTES_MAX", default_value = "4294967296", value_name = "BYTES")]
    pub retain_bytes_max: String,
}

/// The gateway's settings, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to accept connections.
    pub listen: SocketAddr,
    /// The database.
    pub database: tokio_postgres::Config,
    /// The web pages that may subscribe.
    pub origins: Origins,
    /// The names that the gateway goes by.
    pub hosts: Hosts,
    /// The channels that may be listened to.
    pub listen_channels: ListenChannels,
    /// How often a subscriber hears something at least.
    pub heartbeat: Duration,
    /// How long a subscriber's socket may take nothing.
    pub write_timeout: Duration,
    /// How long the end may take.
    pub stop_timeout: Duration,
    /// How often to look for changes where the database cannot ring.
    pub poll: Duration,
    /// How many subscribers at most.
    pub subscribers_max: usize,
    /// How many connections at most beside those of subscribers.
    pub requests_max: usize,
    /// How many connections at most from one address.
    pub connections_per_address_max: usize,
    /// The proxies that say who asks.
    pub trusted_proxies: Networks,
    /// How many subscriptions one subscriber may have at a time.
    pub subscriptions_max: usize,
    /// How much the filters of one connection may weigh.
    pub filter_weight_max: u64,
    /// How much all filters may weigh.
    pub filters_weight_max: u64,
    /// How many kinds of subscription there may be.
    pub selections_max: usize,
    /// How many bytes of frames the hub keeps.
    pub history_bytes_max: usize,
    /// How many bytes one snapshot may take on disk.
    pub snapshot_bytes_max: u64,
    /// How many bytes all snapshots together may take on disk.
    pub snapshots_bytes_max: u64,
    /// How long the rows of one snapshot may be read.
    pub snapshot_patience: Duration,
    /// How many database connections snapshots share.
    pub readers_max: usize,
    /// What the log keeps.
    pub retain: Kept,
    /// Whether the database is our own, so that the live page may flip its switches: in `switchboard dev`.
    pub dev: bool,
}

/// What the log keeps: what is beyond one of these is forgotten, oldest first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kept {
    /// Commits not older than this.
    pub age: Duration,
    /// So many commits.
    pub commits: i64,
    /// So many bytes, and the rest of the commit that exceeds them.
    pub bytes: i64,
}

/// The channels that may be listened to: patterns in which `*` stands for any characters and `?` for any one.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ListenChannels(Vec<String>);

impl ListenChannels {
    /// Comma-separated patterns.
    pub fn new(text: &str) -> ListenChannels {
        let patterns = text.split(',').map(str::trim).filter(|pattern| !pattern.is_empty());
        ListenChannels(patterns.map(str::to_owned).collect())
    }

    /// Whether a channel of exactly this name is among them.
    pub fn allow(&self, channel: &str) -> bool {
        self.0.iter().any(|pattern| fits(pattern, channel))
    }
}

/// Whether a text fits a pattern, in no more steps than their lengths multiplied.
fn fits(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut at, mut read) = (0, 0);
    // Behind the last star, and up to where it stands for text.
    let mut star = None;
    while read < text.len() {
        match pattern.get(at) {
            Some('*') => {
                at += 1;
                star = Some((at, read));
            }
            Some(each) if *each == '?' || *each == text[read] => (at, read) = (at + 1, read + 1),
            _ => {
                let Some((behind, until)) = star else { return false };
                star = Some((behind, until + 1));
                (at, read) = (behind, until + 1);
            }
        }
    }
    pattern[at..].iter().all(|each| *each == '*')
}

/// What is wrong with the settings, one sentence each, naming the value and the remedy.
#[derive(Debug, Default)]
pub struct Mistakes(pub Vec<String>);

impl Mistakes {
    /// A whole number within its bounds.
    pub fn number<T>(&mut self, flag: &str, text: &str, least: T, most: T) -> T
    where
        T: std::str::FromStr + PartialOrd + std::fmt::Display + Copy,
    {
        match text.trim().parse::<T>() {
            Ok(number) if number >= least && number <= most => return number,
            Ok(_) => self.0.push(format!("--{flag}: {text} is out of bounds; give a number from {least} to {most}")),
            Err(_) => self.0.push(format!("--{flag}: {text:?} is not a whole number; give one from {least} to {most}")),
        }
        least
    }

    /// What a flag says, unless something is wrong with it.
    pub fn read<T>(&mut self, flag: &str, said: Result<T, Vec<String>>) -> Option<T> {
        said.map_err(|wrong| self.0.extend(wrong.iter().map(|wrong| format!("--{flag}: {wrong}")))).ok()
    }

    /// The tables that arguments name, each of them one or several with commas between them.
    pub fn tables(&mut self, argument: &str, texts: &[String]) -> Vec<Typed> {
        let mut names = Vec::new();
        for text in texts {
            match Typed::list(text) {
                Ok(list) => names.extend(list),
                Err(NotNames::Empty) => self.0.push(format!(
                    "{argument}: {text:?} holds an empty name; give names with commas between them, such as orders,sales.lines"
                )),
                Err(NotNames::OpenQuote) => self.0.push(format!(
                    "{argument}: {text:?} has a quote that does not end; write a name in quotes as in SQL, and in single quotes for the shell: '\"Odd Name\"'"
                )),
            }
        }
        names
    }

    fn millis(&mut self, flag: &str, text: &str, least: u64, most: u64) -> Duration {
        Duration::from_millis(self.number(flag, text, least, most))
    }
}

impl DatabaseArgs {
    /// The database that is meant; what is wrong goes to `mistakes`.
    pub fn check(&self, mistakes: &mut Mistakes) -> tokio_postgres::Config {
        let mut read = |flag: &str, path: &PathBuf| {
            let text = std::fs::read_to_string(path).map(|text| text.trim().to_owned());
            text.map_err(|error| mistakes.0.push(format!("--{flag}: cannot read {}: {error}", path.display()))).ok()
        };
        let from_file = self.database_url_file.as_ref().map(|path| read("database-url-file", path));
        let password = self.database_password_file.as_ref().and_then(|path| read("database-password-file", path));
        let url = match (&self.database_url, from_file) {
            (Some(url), None) => Some(url.clone()),
            (Some(_), Some(_)) => {
                mistakes.0.push("--database-url and --database-url-file exclude each other; give one".into());
                None
            }
            (None, Some(url)) => url,
            (None, None) => match std::env::var("DATABASE_URL") {
                Ok(url) if !url.trim().is_empty() => Some(url),
                _ => {
                    let wanted = "no database given; set DATABASE_URL=postgres://USER:PASSWORD@HOST:PORT/DATABASE";
                    mistakes.0.push(format!("--database-url: {wanted}"));
                    None
                }
            },
        };
        let parsed = url.map(|url| database_config(&url, password.as_deref()));
        parsed.and_then(|parsed| parsed.map_err(|mistake| mistakes.0.push(mistake)).ok()).unwrap_or_default()
    }
}

/// Reads a database's URL (or `key=value` words) and adds what every connection of ours has: a name, and bounds on waiting for
/// a link that is gone.
pub fn database_config(url: &str, password: Option<&str>) -> Result<tokio_postgres::Config, String> {
    let mut config = database_url::parse(url).map_err(|mistake| format!("--database-url: {mistake}"))?;
    if config.get_hosts().is_empty() {
        config.host("localhost");
    }
    if let (None, Some(password)) = (config.get_password(), password) {
        config.password(password);
    }
    if config.get_application_name().is_none() {
        config.application_name("switchboard");
    }
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_PATIENCE);
    }
    config.keepalives_idle(Duration::from_secs(10)).keepalives_interval(Duration::from_secs(5)).keepalives_retries(3);
    config.tcp_user_timeout(LINK_PATIENCE);
    Ok(config)
}

impl GatewayArgs {
    /// The settings, with everything that is wrong in `mistakes`.
    pub fn check(&self, database: tokio_postgres::Config, mistakes: &mut Mistakes) -> Config {
        let listen = self.listen.parse().unwrap_or_else(|_| {
            let text = &self.listen;
            mistakes.0.push(format!("--listen: {text:?} is not ADDRESS:PORT; 127.0.0.1:8080 or [::]:8080 would be"));
            SocketAddr::from(([127, 0, 0, 1], 8080))
        });
        Config {
            listen,
            database,
            origins: mistakes.read("origins", Origins::new(&self.origins)).unwrap_or(Origins::Any),
            hosts: mistakes.read("hosts", Hosts::new(&self.hosts)).unwrap_or_default(),
            listen_channels: ListenChannels::new(&self.listen_channels),
            heartbeat: mistakes.millis("heartbeat-ms", &self.heartbeat_ms, 100, 600_000),
            write_timeout: mistakes.millis("write-timeout-ms", &self.write_timeout_ms, 100, 600_000),
            stop_timeout: mistakes.millis("stop-timeout-ms", &self.stop_timeout_ms, 0, 600_000),
            poll: mistakes.millis("poll-ms", &self.poll_ms, 1, 60_000),
            subscribers_max: mistakes.number("subscribers-max", &self.subscribers_max, 1, 1_000_000),
            requests_max: mistakes.number("requests-max", &self.requests_max, 1, 100_000),
            connections_per_address_max: mistakes.number(
                "connections-per-address-max",
                &self.connections_per_address_max,
                1,
                1_000_000,
            ),
            trusted_proxies: mistakes.read("trusted-proxies", Networks::new(&self.trusted_proxies)).unwrap_or_default(),
            subscriptions_max: mistakes.number("subscriptions-max", &self.subscriptions_max, 1, 10_000),
            filter_weight_max: mistakes.number("filter-weight-max", &self.filter_weight_max, 1, u64::MAX),
            filters_weight_max: mistakes.number("filters-weight-max", &self.filters_weight_max, 1, u64::MAX),
            selections_max: mistakes.number("selections-max", &self.selections_max, 1, usize::MAX),
            history_bytes_max: mistakes.number("history-bytes-max", &self.history_bytes_max, 1 << 20, usize::MAX),
            snapshot_bytes_max: mistakes.number("snapshot-bytes-max", &self.snapshot_bytes_max, 1 << 20, u64::MAX),
            snapshots_bytes_max: mistakes.number("snapshots-bytes-max", &self.snapshots_bytes_max, 1 << 20, u64::MAX),
            snapshot_patience: SNAPSHOT_PATIENCE,
            readers_max: mistakes.number("readers-max", &self.readers_max, 1, 100),
            retain: Kept {
                age: Duration::from_secs(mistakes.number("retain-seconds", &self.retain_seconds, 1, u32::MAX.into())),
                commits: mistakes.number("retain-commits-max", &self.retain_commits_max, 1, i64::MAX),
                bytes: mistakes.number("retain-bytes-max", &self.retain_bytes_max, 1 << 20, i64::MAX),
            },
            dev: false,
        }
    }
}

impl Config {
    /// The defaults, for a database and a free port on this machine. For tests and for programs that embed the gateway.
    pub fn new(database: tokio_postgres::Config) -> Config {
        let line = CommandLine::try_parse_from(["switchboard", "dev", "--listen", "127.0.0.1:0"]);
        let Ok(CommandLine { command: Command::Dev { gateway, .. }, .. }) = line else {
            panic!("the defaults make a command line: {line:?}")
        };
        let mut mistakes = Mistakes::default();
        let config = gateway.check(database, &mut mistakes);
        assert!(
            mistakes.0.is_empty(),
            "the defaults are within their bounds, unless the environment says otherwise: {mistakes:?}"
        );
        config
    }
}

/// How long a connection to PostgreSQL may take to come up.
pub const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// How long a session may take to begin: with one that is refused, and its settings.
pub const SESSION_PATIENCE: Duration = Duration::from_secs(12);
/// How often two sessions look for a transaction pooler between them and PostgreSQL, each of them in turn.
pub const POOLER_ROUNDS: usize = 3;
/// How long a command waits for a lock at a time: all who come to the table meanwhile wait behind it.
pub const COMMAND_LOCK_TRY: Duration = Duration::from_millis(100);
/// How long it lets them pass before it tries again.
pub const COMMAND_LOCK_PAUSE: Duration = Duration::from_millis(400);
/// For how long it tries.
pub const COMMAND_LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// How long PostgreSQL may leave bytes of ours unacknowledged before the link counts as dead.
pub const LINK_PATIENCE: Duration = Duration::from_secs(10);
/// How long one statement of ours may take. Numbering the backlog of a day without a gateway is the longest.
pub const STATEMENT_PATIENCE: Duration = Duration::from_secs(120);
/// How often the listener tries its own link.
pub const LINK_CHECK_EVERY: Duration = Duration::from_secs(5);
/// How long that may take before the link counts as dead, and everything that is in flight is given up.
pub const LINK_CHECK_PATIENCE: Duration = Duration::from_secs(5);
/// How long the listener waits for a doorbell of its own before it concludes that it cannot hear.
pub const BELL_PATIENCE: Duration = Duration::from_secs(3);
/// The first wait between two attempts to reach PostgreSQL; it doubles from there.
pub const RECONNECT_FIRST: Duration = Duration::from_millis(50);
/// The longest wait between two attempts to reach PostgreSQL.
pub const RECONNECT_MOST: Duration = Duration::from_secs(2);
/// How often the feed looks at the log whatever the doorbell says.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long an awake feed lets commits gather before it numbers again; the first after a rest is numbered at once.
pub const GATHER: Duration = Duration::from_millis(5);
/// How long a gateway leaves a doorbell to the one that leads before it numbers by itself.
pub const FOLLOW_PATIENCE: Duration = Duration::from_millis(250);
/// How long a leader may be silent, while others stand in for it, before it is deposed.
pub const DEPOSE_PATIENCE: Duration = Duration::from_millis(500);
/// How often a leader that is busy with a large commit numbers what comes behind it, and says that it lives.
pub const SPEAK_EVERY: Duration = Duration::from_millis(100);
/// How many changes the feed reads at once.
pub const PAGE_CHANGES_MAX: i32 = 1_000;
/// After how many bytes of row values such a page ends (one row may be larger).
pub const PAGE_BYTES_MAX: i64 = 1 << 20;
/// How many bytes the pages take that those who catch up share.
pub const PAGES_BYTES_MAX: usize = 64 << 20;
/// How long such a page is kept after its last use.
pub const PAGES_KEPT_FOR: Duration = Duration::from_secs(5);
/// Who comes so many commits behind the beginning of a page that is being read waits for it before they read one of their own.
pub const PAGES_NEAR: i64 = 1_000;
/// How many changes a subscriber that catches up reads at once.
pub const CATCH_UP_CHANGES_MAX: i32 = 500;
/// After how many bytes of row values such a page ends (one row may be larger).
pub const CATCH_UP_BYTES_MAX: i64 = 64 << 10;
/// After how many bytes of changes a commit is continued in another frame (one change may be larger).
pub const FRAME_BYTES_MAX: usize = 256 << 10;
/// In how many steps of about a nanosecond (see `filter::weight`) what the feed reads at once may be judged for one kind of
/// subscription before it is published. Those who need more read it in the log.
pub const TOPIC_STEPS_MAX: u64 = 2_000_000;
/// And for all kinds together, beginning with those whose filters weigh least.
pub const PUBLISH_STEPS_MAX: u64 = 50_000_000;
/// In how many steps a subscription that reads the log may judge a part of a commit (one change, or [`FRAME_BYTES_MAX`] of them). One
/// whose filter needs more ends.
pub const JUDGE_STEPS_MAX: u64 = 200_000_000;
/// And so many more for each byte of the part.
pub const JUDGE_STEPS_PER_BYTE: u64 = 8;
/// How many questions about the literals of filters are asked at the same time, of the connections that readers share.
pub const QUESTIONS_AT_ONCE: usize = 2;
/// How many bytes of their answers are remembered, with what was asked.
pub const ANSWERS_BYTES_MAX: usize = 4 << 20;
/// How many subscriptions judge beside the others, which takes a thread each, because they need more than [`TOPIC_STEPS_MAX`] for a page.
pub const JUDGES_MAX: usize = 1;
/// How many subscriptions that fell behind the hub read the log at the same time.
pub const REJOINING_MAX: usize = 2;
/// From how many bytes on what was read from the log counts as large, and waits for room.
pub const LARGE_BYTES: usize = 1 << 20;
/// How many bytes of that wait for clients at the same time (one page may be larger).
pub const LARGE_BYTES_MAX: usize = 64 << 20;
/// How many bytes a subscriber writes with one call, about.
pub const WRITE_BYTES_MAX: usize = 256 << 10;
/// While so many bytes wait for a subscriber, its subscriptions wait too.
pub const OUTBOX_BYTES_MAX: usize = 256 << 10;
/// How many bytes of a snapshot a subscriber holds for its client, about.
pub const SNAPSHOT_PIECE_BYTES_MAX: usize = 64 << 10;
/// How long a client may take for its request's head.
pub const REQUEST_PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take where it has a reserved place.
pub const RESERVED_PATIENCE: Duration = Duration::from_secs(2);
/// How long a connection may be silent, at first, before it has to make room for another.
pub const HEAD_GRACE: Duration = Duration::from_secs(1);
/// How long a connection that has to make room may take for its last answer to be written.
pub const LEAVE_PATIENCE: Duration = Duration::from_secs(1);
/// How long an answer may take, to the last byte that its client takes of it, unless it is a subscriber's.
pub const ANSWER_PATIENCE: Duration = Duration::from_secs(15);
/// How many connections there may be beyond `--requests-max`: to be told so, or how the gateway is.
pub const RESERVED_CONNECTIONS_MAX: usize = 64;
/// How long a client may take to answer our closing frame.
pub const CLOSE_PATIENCE: Duration = Duration::from_secs(2);
/// How many subscribers are told to go at once when the gateway stops.
pub const CLOSING_MAX: usize = 256;
/// The longest message a client may send, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// How many bytes of answers (pongs) may wait for a client that does not read them.
pub const ANSWER_BYTES_MAX: usize = 256 << 10;
/// How long the rows of one snapshot may be read: for so long autovacuum cannot remove what died meanwhile.
pub const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(30 * 60);
/// How often a reading looks whether somebody waits for the tables that it has locked. Less than a command's [`COMMAND_LOCK_TRY`].
pub const SNAPSHOT_WAITERS_EVERY: Duration = Duration::from_millis(50);
/// How long a finished snapshot serves others who ask for the same.
pub const SNAPSHOT_SHARED_FOR: Duration = Duration::from_secs(1);
/// What the log keeps by default.
pub const KEPT_BY_DEFAULT: Kept = Kept { age: Duration::from_secs(86_400), commits: 1_000_000, bytes: 4 << 30 };
/// How many of the oldest commits one statement of retention forgets.
pub const TRIM_COMMITS_MAX: i32 = 1_000;
/// How many changes one statement of retention deletes.
pub const TRIM_CHANGES_MAX: i32 = 10_000;
/// After how many bytes of row values a statement of retention ends (one row may be larger).
pub const TRIM_BYTES_MAX: i64 = 64 << 20;
/// How often retention looks.
pub const TRIM_EVERY: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(flags: &[&str]) -> (Config, Mistakes) {
        let line = CommandLine::try_parse_from(["switchboard", "dev"].iter().chain(flags)).expect("known flags");
        let Command::Dev { gateway, .. } = line.command else { panic!("the command was dev") };
        let mut mistakes = Mistakes::default();
        (gateway.check(tokio_postgres::Config::new(), &mut mistakes), mistakes)
    }

    #[test]
    fn all_mistakes_are_reported_at_once_with_value_and_remedy() {
        let (_, mistakes) = gateway(&["--listen", "8080", "--heartbeat-ms", "soon", "--readers-max", "0"]);

        assert_eq!(
            mistakes.0,
            [
                r#"--listen: "8080" is not ADDRESS:PORT; 127.0.0.1:8080 or [::]:8080 would be"#,
                r#"--heartbeat-ms: "soon" is not a whole number; give one from 100 to 600000"#,
                "--readers-max: 0 is out of bounds; give a number from 1 to 100",
            ]
        );
    }

    #[test]
    fn wrong_origins_hosts_and_proxies_are_mistakes_of_their_flags() {
        let (_, mistakes) = gateway(&[
            "--origins",
            "app.example,null",
            "--hosts",
            "http://feed.example",
            "--trusted-proxies",
            "proxy.example",
        ]);

        let begin = [
            "--origins: \"app.example\" ",
            "--origins: \"null\" ",
            "--hosts: \"http://feed.example\" ",
            "--trusted-proxies: \"proxy.example\" ",
        ];
        assert_eq!(mistakes.0.len(), begin.len(), "{mistakes:?}");
        for (mistake, begin) in mistakes.0.iter().zip(begin) {
            assert!(mistake.starts_with(begin), "{mistake}");
        }
    }

    #[test]
    fn channels_are_allowed_by_patterns_and_none_by_default() {
        let allowed = |channels| gateway(&["--listen-channels", channels]).0.listen_channels;

        for (patterns, channel, fit) in [
            ("", "a", false),
            ("", "", false),
            ("a, b c", "b c", true),
            ("a", "A", false),
            ("a", "ab", false),
            ("*", "", true),
            ("*", "anything, at all", true),
            ("chat_*", "chat_", true),
            ("chat_*", "chat", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-c-", false),
            ("*ab", "aab", true),
            ("?", "ä", true),
            ("a?", "a", false),
            ("**?*", "x", true),
            ("[a]", "a", false),
        ] {
            assert_eq!(allowed(patterns).allow(channel), fit, "{patterns:?} {channel:?}");
        }
        let slow = format!("{}b", "a*".repeat(30));
        assert!(!allowed(&slow).allow(&"a".repeat(63)));
    }

    #[test]
    fn the_log_keeps_by_default_what_the_constant_says() {
        assert_eq!(gateway(&[]).0.retain, KEPT_BY_DEFAULT);
    }

    #[test]
    fn a_wrong_database_url_is_not_repeated_since_it_may_hold_a_password() {
        let mistake = database_config("postgres://me:secret@host:notaport/db", None).expect_err("no such port");

        assert!(!mistake.contains("secret"), "{mistake}");
        assert!(mistake.contains("postgres://USER:PASSWORD@HOST:PORT/DATABASE"), "{mistake}");
    }

    #[test]
    fn a_password_may_come_from_a_file_of_its_own() {
        let config = database_config("postgres://me@host/db", Some("secret")).expect("a URL");

        assert_eq!(config.get_password(), Some(&b"secret"[..]));
    }
}
