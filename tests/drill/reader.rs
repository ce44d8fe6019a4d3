//! Readers: WebSocket clients that keep a copy of the tables, through any number of connections to any gateway.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_util::sync::CancellationToken;

use crate::gateways::Gateway;
use crate::story::Story;
use crate::writers::{EVERYTHING, RESTLESS, WATCHED};

/// How long a connection may take to come up.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);
/// How long a line may be silent: several heartbeats of the drill's gateways.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// How long to wait before the next attempt, at most.
const RETRY_MAX_MS: u64 = 300;
/// The codes after which a client is to come back; any other is a violation.
const RECONNECT: [u16; 4] = [1001, 1006, 1011, 4408];
/// What a client hears that asks for a table by name that is not watched at this moment.
const BAD_REQUEST: u16 = 4400;

/// What a reader asks for.
#[derive(Clone, Copy)]
pub struct Wish {
    pub name: &'static str,
    /// The tables; none means all that are not altered.
    pub tables: Option<&'static [&'static str]>,
    /// Which of their rows: as a parameter of the address, and as it should be judged.
    pub filter: Option<(&'static str, fn(&str) -> bool)>,
}

/// A reader and what it was told so far.
pub struct Reader {
    pub story: Arc<Mutex<Story>>,
    /// The tables that it asks for; none means all that are not altered.
    pub wants: Option<&'static [&'static str]>,
    /// While true it reads nothing.
    pub frozen: watch::Sender<bool>,
    /// How often it connected.
    pub connections: Arc<Mutex<u64>>,
}

impl Reader {
    /// A reader that listens until `stop`.
    pub fn start(
        wish: Wish,
        balanced: Vec<&'static str>,
        gateways: Arc<Vec<Gateway>>,
        seed: u64,
        stop: CancellationToken,
    ) -> Reader {
        let takes = wish.filter.map(|(_, takes)| takes);
        let reader = Reader {
            story: Arc::new(Mutex::new(Story::new(wish.name, balanced).filtered(takes).beside(RESTLESS))),
            wants: wish.tables,
            frozen: watch::Sender::new(false),
            connections: Arc::default(),
        };
        let line = Line {
            story: reader.story.clone(),
            selection: wish.selection(),
            frozen: reader.frozen.subscribe(),
            connections: reader.connections.clone(),
            gateways,
            restless: wish.tables.is_some_and(|tables| tables.iter().any(|table| RESTLESS.contains(table))),
        };
        tokio::spawn(async move { stop.run_until_cancelled(line.listen(Rng::with_seed(seed))).await });
        reader
    }
}

impl Wish {
    fn selection(&self) -> String {
        let tables = match self.tables {
            None => Some(WATCHED.join(",")),
            Some(tables) if tables == EVERYTHING => None,
            Some(tables) => Some(tables.join(",").replace("public.", "")),
        };
        let tables = tables.map(|tables| format!("table={tables}"));
        let filter = self.filter.map(|(filter, _)| format!("where={filter}"));
        tables.into_iter().chain(filter).collect::<Vec<_>>().join("&")
    }
}

struct Line {
    story: Arc<Mutex<Story>>,
    selection: String,
    frozen: watch::Receiver<bool>,
    connections: Arc<Mutex<u64>>,
    gateways: Arc<Vec<Gateway>>,
    /// Whether it asks for tables that come and go.
    restless: bool,
}

impl Line {
    async fn listen(mut self, mut random: Rng) {
        loop {
            let gateway = random.usize(..self.gateways.len());
            self.one_connection(gateway).await;
            tokio::time::sleep(Duration::from_millis(random.u64(1..RETRY_MAX_MS))).await;
        }
    }

    async fn one_connection(&mut self, gateway: usize) {
        let from = self.story.lock().unwrap().cursor.clone().unwrap_or_else(|| "snapshot".to_owned());
        let url = format!("ws://{}/v1/feed?from={from}&{}", self.gateways[gateway].clients.address, self.selection);
        let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        let connecting = tokio_tungstenite::connect_async_with_config(&url, Some(config), true);
        let Ok(Ok((mut socket, _))) = timeout(CONNECT_PATIENCE, connecting).await else { return };
        *self.connections.lock().unwrap() += 1;
        self.story.lock().unwrap().connected();
        loop {
            // The sender lives as long as the drill.
            let _ = self.frozen.wait_for(|frozen| !frozen).await;
            match timeout(SILENCE_MAX, socket.next()).await {
                Ok(Some(Ok(Message::Text(text)))) => self.hear(text.as_str()),
                Ok(Some(Ok(Message::Close(frame)))) => {
                    let code = frame.map_or(1006, |frame| frame.code.into());
                    if !RECONNECT.contains(&code) && !(self.restless && code == BAD_REQUEST) {
                        self.story.lock().unwrap().wrong(format!("closed with {code}"));
                    }
                    return;
                }
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(_)) | None) | Err(_) => return,
            }
        }
    }

    fn hear(&self, text: &str) {
        self.story.lock().unwrap().hear(text);
    }
}
