//! Clients for attackers and innocents: plain HTTP byte by byte, and WebSockets that note what they are refused.

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message, Utf8Bytes};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::attacks::Field;

/// A WebSocket on this machine.
pub type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// How large the receive buffer of a client is that reads slowly or not at all, so that the gateway notices soon.
const SMALL_BUFFER_BYTES: u32 = 16 << 10;
/// How many bytes of an answer are read at once.
const READ_BYTES: usize = 64 << 10;

/// An answer of plain HTTP.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    /// Whether the answer has this header, given in small letters.
    pub fn has_header(&self, name: &str) -> bool {
        self.head.to_lowercase().lines().any(|line| line.split(':').next() == Some(name))
    }

    /// The code and the message of a refusal.
    pub fn refusal(&self) -> (String, String) {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_default();
        let word = |name: &str| body["error"][name].as_str().unwrap_or_default().to_owned();
        (format!("{} {}", self.status, word("code")), word("message"))
    }
}

/// Asks over a connection of its own; none if that ends before the answer's head is whole. `headers` end with a line break each.
pub async fn ask(address: SocketAddr, path: &str, headers: &str) -> Option<Answer> {
    ask_as(address, path, &format!("host: {address}\r\n{headers}")).await
}

/// The same without a `Host` of its own.
pub async fn ask_as(address: SocketAddr, path: &str, headers: &str) -> Option<Answer> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nconnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut bytes = Vec::new();
    // One that is cut off behind its head is an answer all the same.
    let _ = stream.read_to_end(&mut bytes).await;
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Option<Answer> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

/// Opens a WebSocket; an answer that is no handshake is an error.
pub async fn websocket(url: &str) -> Result<Socket, tungstenite::Error> {
    let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
    Ok(tokio_tungstenite::connect_async_with_config(url, Some(config), true).await?.0)
}

/// A connection on which bytes are written and nothing need be read.
pub struct Line {
    pub stream: TcpStream,
}

impl Line {
    /// A connection on which nothing was said.
    pub async fn open(field: &Field) -> Option<Line> {
        let socket = TcpSocket::new_v4().ok()?;
        socket.set_recv_buffer_size(SMALL_BUFFER_BYTES).ok()?;
        Some(Line { stream: socket.connect(field.address()).await.ok()? })
    }

    /// The same, with these bytes written.
    pub async fn say(field: &Field, bytes: &str) -> Option<Line> {
        let mut line = Line::open(field).await?;
        line.stream.write_all(bytes.as_bytes()).await.ok()?;
        Some(line)
    }

    /// Asks with GET and reads the beginning of the answer. A refusal is noted, and the end of the line.
    pub async fn request(field: &Field, path: &str, headers: &str) -> Option<Line> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n{headers}\r\n", field.address());
        let mut line = Line::say(field, &request).await?;
        let mut bytes = Vec::new();
        loop {
            if line.stream.read_buf(&mut bytes).await.ok()? == 0 {
                return None;
            }
            let Some(answer) = parse(&bytes) else { continue };
            if answer.status < 400 {
                return Some(line);
            }
            // The body of a refusal is short; it comes with the head or right behind it.
            let _ = line.stream.read_to_end(&mut bytes).await;
            let (code, message) = parse(&bytes)?.refusal();
            field.refused(code, message);
            return None;
        }
    }

    /// A WebSocket whose handshake is done, on which frames are written byte by byte.
    pub async fn websocket(field: &Field, path: &str) -> Option<Line> {
        let headers = "upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n\
                       sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        Line::request(field, path, headers).await
    }

    /// Sends bytes; none if the connection has ended.
    pub async fn send(&mut self, bytes: &[u8]) -> Option<()> {
        self.stream.write_all(bytes).await.ok()
    }

    /// Sends the same bytes again and again until the gateway ends the connection.
    pub async fn flood(self, bytes: &[u8], reads: Reads) {
        let (mut read, mut write) = self.stream.into_split();
        let writing = async { while write.write_all(bytes).await.is_ok() {} };
        let reading = async {
            let mut buffer = vec![0; READ_BYTES];
            while reads == Reads::Everything && read.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
        };
        tokio::join!(writing, reading);
    }
}

/// What a client does with answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    Everything,
    Nothing,
}

/// A text frame of up to 65,535 bytes, masked with zeros.
pub fn text_frame(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).expect("a message of an attack is short");
    let mut frame = vec![0x81, 0x80 | 126];
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(text.as_bytes());
    frame
}

/// The cursor of now, for this table.
pub async fn cursor(field: &Field, table: &str) -> Option<String> {
    let mut client = Client::connect(field, &format!("/v1/feed?table={table}&from=now")).await?;
    client.until_ready().await
}

/// A WebSocket of an attacker's, which notes every refusal that it is told.
pub struct Client<'a> {
    field: &'a Field,
    socket: Socket,
}

impl<'a> Client<'a> {
    /// Connects; none if the handshake is refused, which is noted, or fails.
    pub async fn connect(field: &'a Field, path: &str) -> Option<Client<'a>> {
        match websocket(&format!("ws://{}{path}", field.address())).await {
            Ok(socket) => Some(Client { field, socket }),
            Err(tungstenite::Error::Http(answer)) => {
                let body = answer.body().as_deref().unwrap_or_default();
                let body = String::from_utf8_lossy(body).into_owned();
                let (code, message) = Answer { status: answer.status().as_u16(), head: String::new(), body }.refusal();
                field.refused(code, message);
                None
            }
            Err(_) => None,
        }
    }

    /// Asks for these subscriptions, all at once, and reads until each is ready or refused.
    pub async fn subscribe(&mut self, requests: &[Value]) -> Option<()> {
        for request in requests {
            self.socket.feed(Message::text(request.to_string())).await.ok()?;
        }
        self.socket.flush().await.ok()?;
        let mut answered = 0;
        while answered < requests.len() {
            answered += usize::from(["ready", "error"].contains(&self.next().await?.kind()));
        }
        Some(())
    }

    /// Reads until the subscription of the address is ready; its cursor then.
    pub async fn until_ready(&mut self) -> Option<String> {
        let mut heard = self.next().await?;
        while heard.kind() != "ready" {
            heard = self.next().await?;
        }
        Some(heard.word("cursor"))
    }

    /// Reads until a commit has come.
    pub async fn until_commit(&mut self) -> Option<()> {
        while self.next().await?.kind() != "commit" {}
        Some(())
    }

    /// Reads to the end.
    pub async fn drain(&mut self) {
        while self.next().await.is_some() {}
    }

    /// The next frame; none at the end. What says no is noted.
    pub async fn next(&mut self) -> Option<Heard> {
        loop {
            match self.socket.next().await?.ok()? {
                Message::Text(text) => {
                    let heard = Heard(text);
                    if heard.kind() == "error" {
                        self.field.refused(heard.word("code"), heard.word("message"));
                    }
                    return Some(heard);
                }
                Message::Close(Some(frame)) => {
                    self.field.closed(frame.code.into(), frame.reason.as_str());
                    return None;
                }
                _ => {}
            }
        }
    }
}

/// A frame of the feed. Attackers take more of them than they could parse, so only what they need is read.
pub struct Heard(Utf8Bytes);

impl Heard {
    /// Its type, which stands first, or behind the number of the subscription.
    pub fn kind(&self) -> &str {
        let behind = self.0.split_once(r#""type":""#).map_or("", |(_, behind)| behind);
        behind.split('"').next().unwrap_or_default()
    }

    /// One of its fields.
    fn word(&self, name: &str) -> String {
        let frame: Value = serde_json::from_str(self.0.as_str()).unwrap_or_default();
        frame[name].as_str().unwrap_or_default().to_owned()
    }
}
