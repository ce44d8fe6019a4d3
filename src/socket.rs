//! The socket: a WebSocket over a raw TCP stream, written from frames that were encoded once for everybody.
//!
//! Reading, which has to be strict (RFC 6455: masking, fragments, control frames, UTF-8, the closing handshake), is tungstenite's, with a
//! small buffer. Writing is ours: what waits goes out with one call. Both are driven by the subscriber's one task.

use std::io::{self, IoSlice, Read, Write};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tungstenite::error::{CapacityError, Error, ProtocolError};
use tungstenite::protocol::{Message as Received, Role, WebSocketConfig, WebSocketContext};

use crate::config::{ANSWER_BYTES_MAX, CLOSE_PATIENCE, MESSAGE_BYTES_MAX};
use crate::protocol::{self, Close};

/// How many bytes of a client's are read at once; frames may be longer.
const READ_BYTES: usize = 512;
/// How often the stream is read for one message: fragments without content add up to no size that could be refused.
const READS_MAX: u32 = 16;
/// How many buffers are written with one call.
const SLICES_MAX: usize = 64;

/// A connection to a subscriber.
pub struct Socket {
    stream: TcpStream,
    websocket: WebSocketContext,
    /// Pongs and the closing frame that the protocol owes; written between frames of ours.
    owed: Vec<u8>,
    /// When the client was last heard.
    heard: Instant,
    write_timeout: Duration,
}

/// What a client sent.
pub enum Incoming {
    /// A text message.
    Text(String),
    /// A binary message, which protocol 1 does not have.
    Binary,
    /// Something between the two ends only: a ping, a pong, the beginning of the end.
    Control,
}

/// Why a socket is of no more use, and what to say to the client, if it can still be told.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Gone {
    /// The connection is closed, or broken.
    Closed,
    /// To be closed by us, with this code.
    Close(Close),
    /// It took nothing for the write time-out, so it cannot be told that this is [`Close::NoProgress`] either.
    Stalled,
}

impl Socket {
    /// A socket whose handshake is done; `read` is what the client sent behind it.
    pub fn new(stream: TcpStream, read: &[u8], write_timeout: Duration) -> Socket {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BYTES)
            .write_buffer_size(0)
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let websocket = WebSocketContext::from_partially_read(read.to_vec(), Role::Server, Some(config));
        Socket { stream, websocket, owed: Vec::new(), heard: Instant::now(), write_timeout }
    }

    /// When the client was last heard.
    pub fn heard(&self) -> Instant {
        self.heard
    }

    /// Waits until the client sent something. Cancel-safe.
    pub async fn readable(&self) {
        // An error is found again by the read that follows.
        let _ = self.stream.readable().await;
    }

    /// The next message that has arrived whole; `None` when none has. Pings are answered at the next sending.
    pub fn receive(&mut self) -> Result<Option<Incoming>, Gone> {
        let (stream, owed, heard) = (&self.stream, &mut self.owed, &mut self.heard);
        let mut both = ReadHereOweThere { stream, owed, heard, reads_left: READS_MAX };
        let message = match self.websocket.read(&mut both) {
            Ok(Received::Text(text)) => Incoming::Text(text.as_str().to_owned()),
            Ok(Received::Binary(_)) => Incoming::Binary,
            Ok(_) => Incoming::Control,
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(gone(&error)),
        };
        if self.owed.len() > ANSWER_BYTES_MAX { Err(Gone::Close(Close::Policy)) } else { Ok(Some(message)) }
    }

    /// Whether the protocol owes the client something, such as a pong.
    pub fn owes(&self) -> bool {
        !self.owed.is_empty()
    }

    /// Waits until the socket takes something, as far as that is known, and fails when it takes nothing for the write time-out. For
    /// those who would have to hold what they fetch for the client until then.
    pub async fn writable(&self) -> Result<(), Gone> {
        match timeout(self.write_timeout, Box::pin(self.stream.writable())).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Gone::Closed),
            Err(_) => Err(Gone::Stalled),
        }
    }

    /// Writes what the protocol owes, then these whole frames, merged as far as they go. Returns how many bytes of them were sent.
    ///
    /// What the client sends meanwhile waits in the kernel. Fails when the socket takes nothing for the write time-out.
    pub async fn send(&mut self, frames: &mut [Bytes]) -> Result<usize, Gone> {
        let bytes = frames.iter().map(Bytes::len).sum();
        if !self.owed.is_empty() {
            let owed = Bytes::from(std::mem::take(&mut self.owed));
            self.write(&mut [owed]).await?;
        }
        self.write(frames).await?;
        Ok(bytes)
    }

    async fn write(&mut self, frames: &mut [Bytes]) -> Result<(), Gone> {
        let mut first = 0;
        while first < frames.len() {
            if frames[first].is_empty() {
                first += 1;
                continue;
            }
            match self.try_write(&frames[first..]) {
                Ok(written) => advance(&mut frames[first..], written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.writable().await?;
                }
                Err(_) => return Err(Gone::Closed),
            }
        }
        Ok(())
    }

    /// As much as the kernel takes, with one call. Not part of the future above, which would keep room for the slices.
    fn try_write(&self, frames: &[Bytes]) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        for (slice, frame) in slices.iter_mut().zip(frames) {
            *slice = IoSlice::new(frame);
        }
        self.stream.try_write_vectored(&slices[..frames.len().min(SLICES_MAX)])
    }

    /// Ends the connection: says why, hears the client out for a little while, and lets go.
    ///
    /// What a client has sent and nobody read would make the kernel reset the connection, and could take our last word with it.
    pub async fn close(mut self, gone: Gone) {
        let mut last_word = match gone {
            // What is owed is at most the closing frame that answers the client's.
            Gone::Closed => None,
            Gone::Close(close) => Some(protocol::close(close)),
            Gone::Stalled => {
                // Its buffers are full. A reset frees them at once.
                let _ = self.stream.set_zero_linger();
                return;
            }
        };
        let closing = async {
            let sent = self.send(last_word.as_mut_slice()).await;
            if sent.is_err() || self.stream.shutdown().await.is_err() {
                return;
            }
            let mut unheard = [0; READ_BYTES];
            while !matches!(self.stream.read(&mut unheard).await, Ok(0) | Err(_)) {
                // So that the time-out gets its turn, however much the client has to say.
                tokio::task::yield_now().await;
            }
        };
        // However it ends, the connection is closed below.
        let _ = timeout(CLOSE_PATIENCE, closing).await;
    }
}

fn advance(frames: &mut [Bytes], mut written: usize) {
    for frame in frames {
        let step = written.min(frame.len());
        frame.advance(step);
        written -= step;
        if written == 0 {
            return;
        }
    }
}

fn gone(error: &Error) -> Gone {
    match error {
        Error::Capacity(CapacityError::MessageTooLong { .. }) => Gone::Close(Close::MessageTooBig),
        Error::Utf8(_) => Gone::Close(Close::NotUtf8),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Gone::Closed,
        Error::Protocol(_) => Gone::Close(Close::ProtocolError),
        _ => Gone::Closed,
    }
}

/// What tungstenite reads from and writes to: the stream, and a buffer that is written between frames of ours.
struct ReadHereOweThere<'a> {
    stream: &'a TcpStream,
    owed: &'a mut Vec<u8>,
    heard: &'a mut Instant,
    reads_left: u32,
}

impl Read for ReadHereOweThere<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(left) = self.reads_left.checked_sub(1) else { return Err(io::ErrorKind::WouldBlock.into()) };
        self.reads_left = left;
        let read = self.stream.try_read(buffer)?;
        *self.heard = Instant::now();
        Ok(read)
    }
}

impl Write for ReadHereOweThere<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.owed.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
