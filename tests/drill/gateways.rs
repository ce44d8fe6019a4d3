//! Gateways in processes of their own, which can be killed, frozen and cut off.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;

use crate::proxy::Proxy;

/// How long a gateway may take to say where it listens, or to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// One gateway, with the network on both of its sides.
pub struct Gateway {
    process: Mutex<Option<Child>>,
    /// Between the gateway and PostgreSQL.
    pub database: Proxy,
    /// Between clients and the gateway.
    pub clients: Proxy,
    url: String,
}

impl Gateway {
    /// Starts a gateway whose PostgreSQL is at `server`, by `url` once that names the proxy's address.
    pub async fn start(server: SocketAddr, url: impl Fn(SocketAddr) -> String) -> Gateway {
        let (database, clients) = (Proxy::start().await, Proxy::start().await);
        database.lead_to(Some(server));
        let gateway = Gateway { process: Mutex::default(), url: url(database.address), database, clients };
        gateway.start_again().await;
        gateway
    }

    /// Starts it where it does not run.
    pub async fn start_again(&self) {
        let mut process = self.process.lock().await;
        if process.is_some() {
            return;
        }
        let mut child = Command::new(env!("CARGO_BIN_EXE_switchboard"))
            .args(["serve", "--listen", "127.0.0.1:0", "--log", "error"])
            // Small bounds, so that they are met often.
            .args(["--heartbeat-ms", "1000", "--write-timeout-ms", "4000", "--history-bytes-max", "2097152"])
            .args(["--retain-seconds", "120"])
            .env("DATABASE_URL", &self.url)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the gateway's program starts");
        let mut lines = BufReader::new(child.stdout.take().expect("its output is a pipe")).lines();
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await;
        let line = line.expect("a gateway says where it listens").expect("it can be read").unwrap_or_default();
        let address = line.split("http://").nth(1).and_then(|rest| rest.split(' ').next());
        let address = address.and_then(|address| address.parse().ok());
        self.clients.lead_to(Some(address.unwrap_or_else(|| panic!("no address in {line:?}"))));
        *process = Some(child);
    }

    /// Sends a signal; one that ends it is waited for.
    pub async fn signal(&self, name: &str) {
        let mut process = self.process.lock().await;
        let Some(id) = process.as_ref().and_then(Child::id) else { return };
        let sent = std::process::Command::new("kill").args(["-s", name, &id.to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "kill -s {name} {id}");
        if ["KILL", "TERM"].contains(&name)
            && let Some(mut child) = process.take()
        {
            self.clients.lead_to(None);
            let ended = tokio::time::timeout(PATIENCE, child.wait()).await;
            assert!(ended.is_ok(), "a gateway did not end within {PATIENCE:?} of SIG{name}");
        }
    }

    /// The process, if it runs.
    pub async fn id(&self) -> Option<u32> {
        self.process.lock().await.as_ref().and_then(Child::id)
    }
}
