//! A client that keeps no rules: what it sends is written byte by byte.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::{Gateway, documents, soon, until};

pub const FEED: &str = "/v1/feed?from=now&table=switch";
pub const TEXT: u8 = 0x1;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xa;
pub const LAST: u8 = 0x80;

/// A client that sends what it likes, byte by byte.
pub struct Raw {
    pub stream: TcpStream,
    read: Vec<u8>,
    /// Whether protocol 1 is spoken.
    speaks: bool,
}

impl Raw {
    /// A connection on which nothing was said.
    pub async fn connect(address: SocketAddr) -> Raw {
        let socket = TcpSocket::new_v4().unwrap();
        // Small, so that a client that does not read is noticed soon.
        socket.set_recv_buffer_size(16 << 10).unwrap();
        Raw { stream: soon("connecting", socket.connect(address)).await.unwrap(), read: Vec::new(), speaks: false }
    }

    /// A WebSocket whose handshake is done.
    pub async fn upgrade(address: SocketAddr, path: &str) -> Raw {
        let mut raw = Raw::connect(address).await;
        raw.write(handshake(path).as_bytes()).await;
        let head = raw.until_end_of_head().await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        raw.speaks = path.starts_with("/v1/feed");
        raw
    }

    /// The same, following the feed.
    pub async fn follow(gateway: &Gateway) -> Raw {
        let mut raw = Raw::upgrade(gateway.address, FEED).await;
        while !raw.frame().await.is_some_and(|(_, text)| text.starts_with(br#"{"type":"ready""#)) {}
        raw
    }

    /// Sends bytes; who is closed meanwhile finds out by reading.
    pub async fn write(&mut self, bytes: &[u8]) {
        // A reset is what the test is about.
        let _ = soon("writing", self.stream.write_all(bytes)).await;
    }

    /// The head of an answer.
    pub async fn until_end_of_head(&mut self) -> String {
        loop {
            if let Some(end) = self.read.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = self.read.drain(..end + 4).collect();
                return String::from_utf8(head).unwrap();
            }
            assert!(self.more().await, "the connection ended in the head: {:?}", String::from_utf8_lossy(&self.read));
        }
    }

    /// The first byte and the payload of the next frame; none at the end of the connection, however it ends.
    pub async fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            let read = &self.read;
            let header = measure(read);
            if let Some((start, length)) = header.filter(|(start, length)| read.len() >= start + length) {
                let frame: Vec<u8> = self.read.drain(..start + length).collect();
                if self.speaks && frame[0] == LAST | TEXT {
                    documents::check_frame(&serde_json::from_slice(&frame[start..]).unwrap());
                }
                return Some((frame[0], frame[start..].to_vec()));
            }
            if !self.more().await {
                return None;
            }
        }
    }

    /// The code of the closing frame, whatever comes before it; 1006 where the connection ends without one.
    pub async fn close_code(&mut self) -> u16 {
        while let Some((first, payload)) = self.frame().await {
            if first == LAST | CLOSE {
                return payload.get(..2).map_or(1005, |code| u16::from_be_bytes([code[0], code[1]]));
            }
        }
        1006
    }

    /// All that is left until the end of the connection.
    pub async fn rest(&mut self) -> String {
        while self.more().await {}
        String::from_utf8_lossy(&self.read).into_owned()
    }

    /// The next so many bytes.
    pub async fn exactly(&mut self, length: usize) -> String {
        while self.read.len() < length {
            assert!(self.more().await, "the connection ended early: {:?}", String::from_utf8_lossy(&self.read));
        }
        String::from_utf8(self.read.drain(..length).collect()).unwrap()
    }

    pub async fn more(&mut self) -> bool {
        soon("the next bytes", self.stream.read_buf(&mut self.read)).await.is_ok_and(|count| count > 0)
    }

    /// What was read and not taken yet.
    pub fn unread(&self) -> &[u8] {
        &self.read
    }

    /// Reads on, at most this many bytes.
    pub async fn some(&mut self, bytes_max: usize) {
        let mut stream = (&mut self.stream).take(bytes_max as u64);
        let count = soon("the next bytes", stream.read_buf(&mut self.read)).await.unwrap();
        assert_ne!(count, 0, "the gateway ended the connection");
    }

    /// Sends the same bytes again and again, from a thread of its own, until the gateway ends the connection or the
    /// `patience` is over.
    pub fn flood(self, bytes: Vec<u8>, patience: Duration) -> Flood {
        let over = Arc::new(AtomicBool::new(false));
        let mut stream = self.stream.into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        stream.set_write_timeout(Some(patience)).unwrap();
        let done = over.clone();
        let thread = std::thread::spawn(move || {
            let began = Instant::now();
            let mut refused = false;
            while !refused && began.elapsed() < patience {
                refused = stream.write_all(&bytes).is_err();
            }
            done.store(true, Ordering::Release);
            refused && began.elapsed() < patience
        });
        Flood { over, thread }
    }
}

/// How long the header and the payload of a frame are, where the header is whole.
pub fn measure(bytes: &[u8]) -> Option<(usize, usize)> {
    match bytes.get(1)? {
        126 => Some((4, u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?) as usize)),
        127 => Some((10, u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?) as usize)),
        length => Some((2, usize::from(*length))),
    }
}

pub fn handshake(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// A frame as a client has to send it: masked.
pub fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x5a, 0, 0xff, 0x13];
    let mut frame = header(first, 0x80, payload.len());
    frame.extend_from_slice(&MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

pub fn header(first: u8, mask: u8, length: usize) -> Vec<u8> {
    match length {
        0..=125 => vec![first, mask | length as u8],
        126..=0xffff => [&[first, mask | 126][..], &(length as u16).to_be_bytes()].concat(),
        _ => [&[first, mask | 127][..], &(length as u64).to_be_bytes()].concat(),
    }
}

/// A flood that goes on beside the test.
pub struct Flood {
    over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<bool>,
}

impl Flood {
    pub fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Acquire)
    }

    /// Waits for the end; whether it was the gateway that ended it.
    pub async fn was_cut_off(self) -> bool {
        until("the flood is over", async || self.over.load(Ordering::Acquire)).await;
        self.thread.join().unwrap()
    }
}
