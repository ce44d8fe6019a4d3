//! Where a siege takes place: the one gateway that runs at a time, where it is, and who looks at it.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::{Mutex, watch};

use crate::gateway::{Gateway, Launcher, Settings};
use crate::watch::Watch;

/// Any free port of this machine.
const ANY_PORT: &str = "127.0.0.1:0";

/// The gateway's place.
pub struct Stage {
    launcher: Launcher,
    gateway: Mutex<Option<Gateway>>,
    /// Where the gateway is; none while it is stopped on purpose.
    whereabouts: watch::Sender<Option<SocketAddr>>,
    pub watch: Watch,
    pub database_url: String,
    /// Whether the notification queue of the database is small enough to be filled.
    pub small_queue: bool,
}

impl Stage {
    pub fn new(launcher: Launcher, watch: Watch, small_queue: bool) -> Stage {
        let database_url = launcher.database_url.clone();
        let whereabouts = watch::Sender::new(None);
        Stage { launcher, gateway: Mutex::default(), whereabouts, watch, database_url, small_queue }
    }

    /// Starts a gateway where none runs.
    pub async fn start(&self, settings: Settings) {
        let mut gateway = self.gateway.lock().await;
        *gateway = Some(self.begin(settings).await);
    }

    /// Stops the gateway with SIGTERM, if it runs, and starts another one.
    pub async fn restart(&self, settings: Settings) -> Result<(), String> {
        let mut gateway = self.gateway.lock().await;
        let Some(running) = gateway.take() else { return Ok(()) };
        let stopped = self.end(running).await;
        *gateway = Some(self.begin(settings).await);
        stopped.map(drop)
    }

    /// Stops the gateway with SIGTERM; how long that took.
    pub async fn stop(&self) -> Result<Duration, String> {
        let gateway = self.gateway.lock().await.take();
        self.end(gateway.expect("a gateway runs")).await
    }

    async fn begin(&self, settings: Settings) -> Gateway {
        let gateway = self.launcher.start(settings, ANY_PORT).await;
        self.watch.at(gateway.id());
        self.whereabouts.send_replace(Some(gateway.address));
        gateway
    }

    async fn end(&self, gateway: Gateway) -> Result<Duration, String> {
        self.whereabouts.send_replace(None);
        let stopped = gateway.stop().await;
        self.watch.at(None);
        stopped
    }

    /// Whether the gateway ended by itself, and how.
    pub async fn ended(&self) -> Option<String> {
        self.gateway.lock().await.as_mut().and_then(Gateway::ended)
    }

    /// Where the gateway is, for those who follow it.
    pub fn whereabouts(&self) -> watch::Receiver<Option<SocketAddr>> {
        self.whereabouts.subscribe()
    }

    /// Where the gateway is, or an address that nobody is at while it is stopped.
    pub fn address(&self) -> SocketAddr {
        self.whereabouts.borrow().unwrap_or(SocketAddr::from(([127, 0, 0, 1], 1)))
    }
}
