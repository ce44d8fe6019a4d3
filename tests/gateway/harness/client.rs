//! A subscriber that trusts nobody: it checks the chain of every frame it gets, and that it is documented.

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::{documents, soon};

/// A WebSocket client of the feed.
pub struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// Whether it speaks protocol 1.
    speaks: bool,
    /// The cursor of the last frame that had one.
    pub cursor: Option<String>,
}

impl Client {
    /// Connects; `/v1/feed` then sends `hello`.
    pub async fn connect(url: &str) -> Client {
        let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        let connecting = tokio_tungstenite::connect_async_with_config(url, Some(config), false);
        let (socket, _) = soon("connecting", connecting).await.unwrap();
        Client { socket, speaks: url.contains("/v1/feed"), cursor: None }
    }

    /// The next text frame as it stands; the close code where there is none.
    pub async fn text(&mut self) -> Result<String, u16> {
        let text = self.read().await?;
        if let Some(frame) = self.speaks.then(|| held(&text)).flatten() {
            documents::check_frame(&frame);
        }
        Ok(text)
    }

    async fn read(&mut self) -> Result<String, u16> {
        let next = async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Text(text))) => return Ok(text.as_str().to_owned()),
                    Some(Ok(Message::Close(Some(frame)))) => {
                        documents::check_close(frame.code.into());
                        return Err(frame.code.into());
                    }
                    Some(Ok(Message::Close(None))) => return Err(1005),
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Err(1006),
                }
            }
        };
        // Pings between the frames are no reason to wait for longer.
        soon("the next frame", next).await
    }

    /// The next frame, its chain checked; the close code where there is none.
    pub async fn frame(&mut self) -> Result<Value, u16> {
        let text = self.read().await?;
        let frame = parse(&text);
        if frame["type"] == "reset" {
            self.cursor = None;
        }
        if let Some(cursor) = frame["cursor"].as_str() {
            if let Some(seen) = &self.cursor {
                assert_eq!(frame["prev"].as_str(), Some(seen.as_str()), "the chain is broken by {text:.300}");
            }
            self.cursor = Some(cursor.to_owned());
        }
        Ok(frame)
    }

    /// The next frame of this type; others of the given types may come before it, for as long as a test waits for any fact.
    pub async fn next_of(&mut self, wanted: &str, between: &[&str]) -> Value {
        let next = async {
            loop {
                let frame = self.frame().await.unwrap_or_else(|code| panic!("closed with {code} instead of {wanted}"));
                match frame["type"].as_str() {
                    Some(kind) if kind == wanted => return frame,
                    Some(kind) if between.contains(&kind) => {}
                    _ => panic!("{wanted} was due, and this came: {frame:.500}"),
                }
            }
        };
        soon(wanted, next).await
    }

    /// The `ready` frame, with the rows before it and the commits among them: for clients that begin with a snapshot.
    pub async fn snapshot(&mut self) -> (Vec<Value>, Vec<Value>) {
        let (mut rows, mut commits) = (Vec::new(), Vec::new());
        let taking = async {
            loop {
                let frame = self.frame().await.unwrap_or_else(|code| panic!("closed with {code} instead of ready"));
                match frame["type"].as_str() {
                    Some("rows") => rows.extend(frame["rows"].as_array().unwrap().iter().cloned()),
                    Some("commit") => commits.push(frame),
                    Some("ready") => return,
                    Some("hello" | "position" | "reset" | "status") => {}
                    _ => panic!("a snapshot was due, and this came: {frame:.500}"),
                }
            }
        };
        soon("a whole snapshot", taking).await;
        (rows, commits)
    }

    /// Waits for `ready`; only `hello` and the database's state may come before it.
    pub async fn ready(&mut self) -> Value {
        self.next_of("ready", &["hello", "status"]).await
    }

    /// The next commit, its parts joined.
    pub async fn commit(&mut self) -> Value {
        let mut commit = self.next_of("commit", &["position", "status"]).await;
        while commit["more"] == true {
            let part = self.next_of("commit", &["status"]).await;
            assert_eq!(part["cursor"], commit["cursor"], "the parts of a commit have its cursor");
            assert_eq!(part["tx"], commit["tx"], "the parts of a commit have its tx");
            let changes = part["changes"].as_array().unwrap().clone();
            commit["changes"].as_array_mut().unwrap().extend(changes);
            commit["more"] = part["more"].clone();
        }
        commit
    }

    /// The changes of the next commit.
    pub async fn changes(&mut self) -> Vec<Value> {
        self.commit().await["changes"].as_array().unwrap().clone()
    }

    /// The changes of the next commit, before or behind `ready`.
    pub async fn resumed(&mut self) -> Vec<Value> {
        let commit = self.next_of("commit", &["hello", "status", "position", "ready"]).await;
        commit["changes"].as_array().unwrap().clone()
    }

    /// Waits for the end; the close code.
    pub async fn closed(&mut self) -> u16 {
        loop {
            if let Err(code) = self.text().await {
                return code;
            }
        }
    }

    /// Sends a message, which has to be one that is documented.
    pub async fn say(&mut self, message: Value) {
        documents::check("ClientMessage", &message);
        self.send(&message.to_string()).await;
    }

    /// Sends a text frame.
    pub async fn send(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    /// The socket itself.
    pub fn socket(&mut self) -> &mut WebSocketStream<MaybeTlsStream<TcpStream>> {
        &mut self.socket
    }
}

/// The JSON of a text. None where `Value` cannot hold it: a number that is too large, half a surrogate pair, a hundred levels and more.
fn held(text: &str) -> Option<Value> {
    let value = serde_json::from_str(text);
    if let Err(error) = &value {
        serde_json::from_str::<&RawValue>(text).unwrap_or_else(|_| panic!("{error} in {text:.200}"));
    }
    value.ok()
}

/// A frame of the feed, which has to be one that is documented.
fn parse(text: &str) -> Value {
    let frame = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text:.200}"));
    documents::check_frame(&frame);
    frame
}

/// The status and the body of a plain GET.
pub async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let answer = soon(path, exchange).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.unwrap_or_else(|| panic!("no status in {head}"));
    // What is written while it is read comes in chunks, which are left as they are.
    if !head.to_lowercase().contains("transfer-encoding: chunked") {
        documents::check_answer(path, status, body);
    }
    (status, body.to_owned())
}
