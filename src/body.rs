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

/// A body of either kind, and what is dropped once it is written.
pub struct Streamed<B, W> {
    kind: Kind<B>,
    _written: W,
}

enum Kind<B> {
    /// As warp made it.
    Whole(B),
    /// Written while it is read.
    Pieces(Pieces),
}

impl<B, W> Streamed<B, W> {
    /// The answer with the body that travels with it, or else its own.
    pub fn of(answer: Response<B>, written: W) -> Response<Streamed<B, W>> {
        let (mut head, body) = answer.into_parts();
        let streaming = head.extensions.remove::<Streaming>();
        let pieces = streaming.and_then(|streaming| streaming.0.lock().unwrap_or_else(PoisonError::into_inner).take());
        let kind = pieces.map_or(Kind::Whole(body), Kind::Pieces);
        Response::from_parts(head, Streamed { kind, _written: written })
    }
}

impl<B: Body<Data = Bytes> + Unpin, W: Unpin> Body for Streamed<B, W>
where
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut self.get_mut().kind {
            Kind::Whole(body) => Pin::new(body).poll_frame(context).map_err(Into::into),
            Kind::Pieces(pieces) => {
                pieces.poll_recv(context).map(|piece| piece.map(|piece| piece.map(Frame::data).map_err(Into::into)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Whole(body) => body.is_end_stream(),
            Kind::Pieces(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Whole(body) => body.size_hint(),
            Kind::Pieces(_) => SizeHint::default(),
        }
    }
}
