//! The plumbing: a PostgreSQL for all tests, a database and gateways for each, and clients that check what every frame has to keep.

mod client;
mod database;
pub mod documents;
mod mirror;
mod pooler;
pub mod raw;
mod schema;

use std::net::SocketAddr;
use std::time::Duration;

use switchboard::config::Config;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub use crate::drill::proxy::{Mode, Proxy};
pub use client::{Client, get};
pub use database::{Database, Server, connect};
pub use mirror::{Held, Mirror};
pub use pooler::Pooler;

/// How long any test waits for any fact.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for something, no longer than the patience of all tests.
pub async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: not within {} s", PATIENCE.as_secs()),
    }
}

/// Asks again and again until the answer is yes.
pub async fn until(what: &str, mut fact: impl AsyncFnMut() -> bool) {
    let asking = async {
        while !fact().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon(what, asking).await;
}

/// One of the numbers in a gateway's `/metrics`.
pub async fn metric(address: SocketAddr, name: &str) -> f64 {
    let (_, text) = get(address, "/metrics").await;
    let line = text.lines().find(|line| line.split([' ', '{']).next() == Some(name));
    line.and_then(|line| line.rsplit(' ').next()).and_then(|number| number.parse().ok()).unwrap_or(0.0)
}

/// A gateway in this process.
pub struct Gateway {
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<()>,
}

impl Gateway {
    /// A gateway with the defaults, ready.
    pub async fn start(db: &Database) -> Gateway {
        Gateway::start_with(db, |_| {}).await
    }

    /// A gateway with other settings, ready.
    pub async fn start_with(db: &Database, change: impl FnOnce(&mut Config)) -> Gateway {
        let gateway = Gateway::launch(db.config(), change).await;
        gateway.ready().await;
        gateway
    }

    /// A gateway that need not be ready yet, nor ever.
    pub async fn launch(database: tokio_postgres::Config, change: impl FnOnce(&mut Config)) -> Gateway {
        let mut config = Config::new(database);
        change(&mut config);
        let socket = TcpListener::bind(config.listen).await.unwrap();
        let address = socket.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(switchboard::run(config, socket, async {
            // A dropped sender stops the gateway too.
            let _ = stopped.await;
        }));
        Gateway { address, stop: Some(stop), running }
    }

    /// Waits until the gateway says that it is ready.
    pub async fn ready(&self) {
        until("the gateway is ready", async || self.get("/readyz").await.0 == 200).await;
    }

    /// A client of `/v1/feed` with these parameters.
    pub async fn subscribe(&self, parameters: &str) -> Client {
        Client::connect(&format!("ws://{}/v1/feed?{parameters}", self.address)).await
    }

    /// A client of `/v1/feed` that follows from now on, and is ready.
    pub async fn follow(&self, parameters: &str) -> Client {
        let mut client = self.subscribe(&format!("from=now&{parameters}")).await;
        client.ready().await;
        client
    }

    /// The status and the body of a plain GET.
    pub async fn get(&self, path: &str) -> (u16, String) {
        client::get(self.address, path).await
    }

    /// One of the numbers in `/metrics`.
    pub async fn metric(&self, name: &str) -> f64 {
        metric(self.address, name).await
    }

    /// Stops the gateway, without waiting for it.
    pub fn begin_to_stop(&mut self) {
        // It may have ended by itself.
        let _ = self.stop.take().map(|stop| stop.send(()));
    }

    /// Stops the gateway gracefully, to its end.
    pub async fn stop(mut self) {
        self.begin_to_stop();
        soon("the gateway stops", &mut self.running).await.unwrap();
    }

    /// Ends the gateway as a crash would: nothing is said to anybody.
    pub fn kill(self) {
        self.running.abort();
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.begin_to_stop();
    }
}
