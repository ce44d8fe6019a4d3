//! PgBouncer in front of a database.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

use super::{Database, until};

/// Where Debian has it.
const PROGRAMS: [&str; 2] = ["/usr/sbin/pgbouncer", "/usr/local/bin/pgbouncer"];

/// A pooler of one test's own, which ends with it.
pub struct Pooler {
    _running: Child,
    file: PathBuf,
    pub url: String,
}

impl Pooler {
    /// Starts one with these lines in its configuration; none where PgBouncer is not installed.
    pub async fn start(db: &Database, lines: &str) -> Option<Pooler> {
        let Some(program) = PROGRAMS.into_iter().find(|program| Path::new(program).exists()) else {
            eprintln!("PgBouncer is not installed, so this test does nothing; apt-get install pgbouncer");
            return None;
        };
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let config = db.config();
        let password = String::from_utf8_lossy(config.get_password().unwrap()).into_owned();
        let (user, server, name) = (config.get_user().unwrap(), config.get_ports()[0], config.get_dbname().unwrap());
        let file = std::env::temp_dir().join(format!("switchboard-pgbouncer-{}-{name}.ini", std::process::id()));
        let text = format!(
            "[databases]\n{name} = host=127.0.0.1 port={server} user={user} password={password}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n{lines}\n"
        );
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(program);
        if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
            // It does not run as root.
            command.args(["-u", "nobody"]);
        }
        command.arg("-q").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let running = command.kill_on_drop(true).spawn().unwrap();
        until("the pooler accepts connections", async || TcpStream::connect(("127.0.0.1", port)).await.is_ok()).await;
        Some(Pooler { _running: running, file, url: format!("postgres://{user}@127.0.0.1:{port}/{name}") })
    }

    /// What a gateway needs to know.
    pub fn config(&self) -> tokio_postgres::Config {
        switchboard::config::database_config(&self.url, None).unwrap()
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        // It may have been removed already.
        let _ = std::fs::remove_file(&self.file);
    }
}
