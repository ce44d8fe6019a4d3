//! The body of an HTTP answer that is written while it is read, beside those that warp makes.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::Response;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

/// What comes of a body, and what it is broken off with.
pub type Pieces = mpsc::Receiver<Result<Bytes, std::io::Error>>;

/// Travels with an answer of warp's, and takes the place of its body. (Such companions have to be clonable; one of the clones is used.)
#[derive(Clone)]
pub struct Streaming(pub Arc<Mutex<Option<Pieces>>>);

/// A body of either kind.
pub enum Streamed<B> {
    /// As warp made it.
    Whole(B),
    /// Written while it is read.
    Pieces(Pieces),
}

impl<B> Streamed<B> {
    /// The answer with the body that travels with it, or else its own.
    pub fn of(answer: Response<B>) -> Response<Streamed<B>> {
        let (mut head, body) = answer.into_parts();
        let streaming = head.extensions.remove::<Streaming>();
        let pieces = streaming.and_then(|streaming| streaming.0.lock().unwrap_or_else(PoisonError::into_inner).take());
        Response::from_parts(head, pieces.map_or(Streamed::Whole(body), Streamed::Pieces))
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Streamed<B>
where
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Streamed::Whole(body) => Pin::new(body).poll_frame(context).map_err(Into::into),
            Streamed::Pieces(pieces) => {
                pieces.poll_recv(context).map(|piece| piece.map(|piece| piece.map(Frame::data).map_err(Into::into)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Streamed::Whole(body) => body.is_end_stream(),
            Streamed::Pieces(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Streamed::Whole(body) => body.size_hint(),
            Streamed::Pieces(_) => SizeHint::default(),
        }
    }
}
