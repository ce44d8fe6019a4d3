//! The server: accepts connections, answers what plain HTTP can answer, and hands upgraded sockets to subscribers.
//!
//! It always accepts. A connection has one of the [`places`](crate::places), a subscriber one of the seats (`--subscribers-max`); where there
//! is none, the answer is 503.
//!
//! warp routes and checks the handshake; then the raw stream is taken out of hyper's hands, read buffer and all. What it cannot promise
//! is the end of upgraded sockets: those are tracked here. Nor has it bodies that are written as they come: its answer carries the
//! receiving end of such a body along, and the two are put together here.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tungstenite::handshake::derive_accept_key;
use warp::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use warp::reply::{Reply, Response};
use warp::{Filter, Rejection};

use crate::addresses::{Addresses, Counted, TooMany};
use crate::answers::{Refusal, admit, allowed, check_host, error, preflight, with_header};
use crate::body::{Streamed, Streaming};
use crate::config::{ANSWER_PATIENCE, LEAVE_PATIENCE, LINK_CHECK_EVERY, REQUEST_PATIENCE};
use crate::documents;
use crate::filter::Column;
use crate::listen::{self, Channels, LISTEN_PATIENCE};
use crate::places::{Place, Places};
use crate::plain::{Answer, PageRequest, Reading};
use crate::protocol::parameters::{self, LISTEN, SWITCH_STATUS, TABLES};
use crate::protocol::{From, Request};
use crate::socket::Socket;
use crate::subscriber::{self, Shared, Spoken};
use crate::{page, plain, selection};

/// How old the last doorbell of our own may be while the gateway counts as ready.
const DOORBELL_AGE_MAX: Duration = Duration::from_secs(4 * LINK_CHECK_EVERY.as_secs());
/// The longest head of a request, in bytes.
const REQUEST_BYTES_MAX: usize = 16 << 10;
/// How long nothing is accepted after the system refused to.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often to say at most that no connection can be accepted.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);
/// What is answered though everything is full.
const ASK_HOW_IT_IS: [&str; 3] = ["/healthz", "/readyz", "/metrics"];

struct Server {
    shared: Arc<Shared>,
    subscribers: TaskTracker,
    /// One for each subscriber that there may be, and for each request that waits to become one.
    seats: Arc<Semaphore>,
    channels: Arc<Channels>,
}

/// What an answer has to know of the connection that it goes to.
#[derive(Clone)]
struct Connection {
    /// Ends it, if its client takes nothing.
    cut: CancellationToken,
    /// Says that it ended.
    ended: CancellationToken,
    place: Arc<Place>,
    peer: IpAddr,
    /// It, or what a proxy asks on it, as it is counted.
    counted: Option<Arc<Counted>>,
    /// Whether only the head of the answer is wanted.
    head: bool,
}

/// A connection that can become a WebSocket, and as what it is counted then.
#[derive(Clone)]
struct Upgrading {
    stream: OnUpgrade,
    counted: Option<Arc<Counted>>,
}

/// What decides whether a request is answered.
struct Door {
    shared: Arc<Shared>,
    places: Arc<Places>,
    addresses: Arc<Addresses>,
    /// Whether only its own machine reaches the gateway.
    local: bool,
}

/// Serves until the gateway stops, then ends what is open, within the stop time-out.
pub async fn serve(socket: TcpListener, shared: Arc<Shared>) {
    let stop = shared.stop.clone();
    let deadline = shared.config.stop_timeout;
    let channels = Channels::new(shared.log.database());
    // Runs for ever, and holds nothing that has to be ended in order.
    let _listening = AbortOnDropHandle::new(tokio::spawn(channels.clone().run()));
    let places = Places::new(shared.config.requests_max);
    let seats = Arc::new(Semaphore::new(shared.config.subscribers_max));
    // Without an address it would not have been bound.
    let local = socket.local_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback());
    let addresses = Addresses::new(shared.config.trusted_proxies.clone(), shared.config.connections_per_address_max);
    let door = Arc::new(Door { shared: shared.clone(), places: places.clone(), addresses, local });
    let server = Arc::new(Server { shared, subscribers: TaskTracker::new(), seats, channels });
    let requests = TaskTracker::new();
    let service = TowerToHyperService::new(warp::service(routes(server.clone())));
    let mut complained = None;
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                // Frames are merged by us; the kernel need not wait for more. One that is broken already finds out by itself.
                let _ = stream.set_nodelay(true);
                requests.spawn(serve_connection(stream, door.enter(peer.ip()), door.clone(), service.clone()));
            }
            // It was gone before it was accepted.
            Err(error)
                if error.kind() == ErrorKind::ConnectionAborted || error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => {
                // Out of file descriptors, most likely: connections that end make room.
                if complained.is_none_or(|at: Instant| at.elapsed() >= COMPLAIN_EVERY) {
                    complained = Some(Instant::now());
                    tracing::error!(
                        "cannot accept a connection: {error}; raise the limit on open files if this goes on"
                    );
                }
                places.make_room();
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(socket);
    requests.close();
    server.subscribers.close();
    let ended = async {
        server.subscribers.wait().await;
        requests.wait().await;
    };
    if timeout(deadline, ended).await.is_err() {
        tracing::warn!("{} connections did not end in time and are cut off", server.subscribers.len() + requests.len());
        server.shared.cut.cancel();
        server.subscribers.wait().await;
    }
}

/// Answers the requests of one connection, until it ends or becomes a WebSocket.
async fn serve_connection<S>(stream: TcpStream, connection: Connection, door: Arc<Door>, routes: S)
where
    S: Service<hyper::Request<Incoming>, Response = Response, Error = Infallible> + Clone,
{
    let place = connection.place.clone();
    let stop = door.shared.stop.clone();
    let (cut, _ended) = (connection.cut.clone(), connection.ended.clone().drop_guard());
    let service = service_fn(move |request| {
        let (door, routes, connection) = (door.clone(), routes.clone(), connection.clone());
        async move {
            let (answer, written) = door.answer(request, connection, routes).await?;
            Ok::<_, Infallible>(Streamed::of(answer, written))
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(place.patience())
        .max_buf_size(REQUEST_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let mut leaves = false;
    let mut look_at = Instant::now() + ANSWER_PATIENCE;
    let ended = loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => break ended,
            // Its client takes nothing, so it would not end by itself.
            () = cut.cancelled() => return,
            () = stop.cancelled(), if !leaves => {
                connection.as_mut().graceful_shutdown();
                (leaves, look_at) = (true, Instant::now() + LEAVE_PATIENCE);
            }
            () = place.leave.cancelled(), if !leaves => {
                if !place.was_asked() {
                    return;
                }
                connection.as_mut().graceful_shutdown();
                (leaves, look_at) = (true, Instant::now() + LEAVE_PATIENCE);
            }
            () = sleep_until(look_at) => {
                // One that rests is ended by hyper before that, unless its client has not taken what was written.
                let overdue = place.since().is_some_and(|since| since.elapsed() >= ANSWER_PATIENCE);
                if overdue || (leaves && (place.is_idle() || !place.was_asked())) {
                    return;
                }
                look_at = place.since().map_or_else(Instant::now, Instant::from) + ANSWER_PATIENCE;
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!("a request ended early: {error}");
    }
}

impl Door {
    /// Lets a connection in; one too many from its address only to be told so.
    fn enter(&self, peer: IpAddr) -> Connection {
        let counted = self.addresses.connected(peer);
        let place = Arc::new(self.places.take(counted.is_err()));
        let (cut, ended) = (CancellationToken::new(), CancellationToken::new());
        Connection { cut, ended, place, peer, counted: counted.unwrap_or(None).map(Arc::new), head: false }
    }

    /// Answers one request, if there is room for it and it may be answered. What comes with the answer is dropped once it is written.
    async fn answer<S>(
        &self,
        mut request: hyper::Request<Incoming>,
        connection: Connection,
        routes: S,
    ) -> Result<(Response, Written), Infallible>
    where
        S: Service<hyper::Request<Incoming>, Response = Response, Error = Infallible>,
    {
        let mut connection = connection;
        let place = connection.place.clone();
        let admitted = self.admit(&mut request, &mut connection);
        let written = Written { place: place.clone(), _counted: connection.counted.clone() };
        let answer = match admitted {
            Ok(Some(answer)) => answer,
            Ok(None) => {
                let stream = request.extensions_mut().remove::<OnUpgrade>();
                connection.head = request.method() == Method::HEAD;
                if connection.head {
                    // hyper leaves the body out. A handshake it is not (RFC 6455, 4.1).
                    *request.method_mut() = Method::GET;
                } else if let Some(stream) = stream {
                    let counted = connection.counted.clone();
                    request.extensions_mut().insert(Upgrading { stream, counted });
                }
                request.extensions_mut().insert(connection);
                routes.call(request).await?
            }
            Err(refusal) => refusal.into_response(),
        };
        // Others may have more use for it.
        let answer = if place.is_reserved() { with_header(answer, header::CONNECTION, "close") } else { answer };
        Ok((answer, written))
    }

    /// Whether a request may be answered; the answer, if it needs nothing else.
    fn admit(
        &self,
        request: &mut hyper::Request<Incoming>,
        connection: &mut Connection,
    ) -> Result<Option<Response>, Refusal> {
        let asks_how_it_is = ASK_HOW_IT_IS.contains(&request.uri().path());
        if !connection.place.begin(asks_how_it_is) {
            return Err(if connection.place.unwanted { too_many_from(connection.peer) } else { no_place() });
        }
        if !asks_how_it_is {
            match self.addresses.asked(connection.peer, request.headers()) {
                Ok(None) => {}
                Ok(Some(counted)) => connection.counted = Some(Arc::new(counted)),
                Err(TooMany(address)) => return Err(too_many_from(address)),
            }
        }
        // What a request for a proxy says there is what counts (RFC 9112, 3.2.2).
        let target = request.uri().authority().and_then(|target| HeaderValue::from_str(target.as_str()).ok());
        if let Some(target) = target {
            request.headers_mut().insert(header::HOST, target);
        }
        check_host(&self.shared.config.hosts, self.local, request)?;
        Ok(preflight(&self.shared.config.origins, request))
    }
}

/// Says that an answer was written, when it is dropped.
struct Written {
    place: Arc<Place>,
    _counted: Option<Arc<Counted>>,
}

impl Drop for Written {
    fn drop(&mut self) {
        self.place.rest();
    }
}

fn too_many_from(address: IpAddr) -> Refusal {
    let remedy = format!(
        "too many connections from {address}; close some, or let the operator raise --connections-per-address-max, or name the proxy \
         that this is in --trusted-proxies"
    );
    Refusal::unavailable("too_many", &remedy)
}

fn no_place() -> Refusal {
    let remedy = "too many connections; try later, or let the operator raise --requests-max";
    Refusal::unavailable("too_many", remedy)
}

fn routes(server: Arc<Server>) -> impl Filter<Extract = (impl Reply,), Error = Infallible> + Clone {
    let get = |path: &'static str| warp::path(path).and(warp::path::end()).and(warp::get());
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    let upgrade = warp::header::headers_cloned().and(warp::ext::optional::<Upgrading>());

    let config = &server.shared.config;
    let (page, client, flip) = (page::files(config.dev), page::client(), page::flip(config));
    let with_server = warp::any().map(move || server.clone());
    let connection = warp::header::headers_cloned().and(warp::ext::get::<Connection>());
    let events = warp::path!("v1" / "feed")
        .and(warp::get())
        .and(warp::header::headers_cloned().and_then(async |headers: HeaderMap| match wants_events(&headers) {
            true => Ok(()),
            false => Err(warp::reject()),
        }))
        .untuple_one()
        .and(with_server.clone())
        .and(query)
        .and(connection)
        .then(async |server: Arc<Server>, query: String, headers, connection| {
            server.events(&query, &headers, connection).await
        });
    let changes =
        warp::path!("v1" / "changes").and(warp::get()).and(with_server.clone()).and(query).and(connection).then(
            async |server: Arc<Server>, query: String, headers, connection| {
                server.changes(&query, &headers, connection).await
            },
        );
    let snapshot =
        warp::path!("v1" / "snapshot").and(warp::get()).and(with_server.clone()).and(query).and(connection).then(
            async |server: Arc<Server>, query: String, headers, connection| {
                server.snapshot(&query, &headers, connection).await
            },
        );
    let tables = warp::path!("v1" / "tables")
        .and(warp::get())
        .and(with_server.clone())
        .and(query)
        .and(warp::header::headers_cloned())
        .map(|server: Arc<Server>, query: String, headers| server.tables(&query, &headers));
    let feed = warp::path!("v1" / "feed")
        .and(warp::get())
        .and(with_server.clone())
        .and(query)
        .and(upgrade)
        .map(|server: Arc<Server>, query: String, headers, upgrade| server.feed(&query, &headers, upgrade));
    let switch_status =
        warp::path!("switch" / "status").and(warp::get()).and(with_server.clone()).and(query).and(upgrade).map(
            |server: Arc<Server>, query: String, headers, upgrade| server.switch_status(&query, &headers, upgrade),
        );
    let listen = warp::path("listen")
        .and(warp::path::tail())
        .and(warp::get())
        .and(with_server.clone())
        .and(query)
        .and(upgrade)
        .then(async |channel: warp::path::Tail, server: Arc<Server>, query: String, headers, upgrade| {
            server.listen(channel.as_str(), &query, &headers, upgrade).await
        });
    let alive = get("healthz").map(|| "alive\n".into_response());
    let ready = get("readyz").and(with_server.clone()).map(|server: Arc<Server>| server.ready());
    let metrics = get("metrics").and(with_server).map(|server: Arc<Server>| server.metrics());

    let plain = events.or(changes).unify().or(snapshot).unify().or(tables).unify();
    let all = page
        .or(client)
        .unify()
        .or(flip)
        .unify()
        .or(plain)
        .unify()
        .or(feed)
        .unify()
        .or(switch_status)
        .unify()
        .or(listen)
        .unify()
        .or(alive)
        .unify()
        .or(ready)
        .unify()
        .or(metrics)
        .unify()
        .or(documents::route())
        .unify();
    all.recover(refuse)
}

impl Server {
    fn feed(&self, query: &str, headers: &HeaderMap, upgrade: Option<Upgrading>) -> Response {
        let first = match Request::first(query) {
            Ok(first) => first,
            Err(mistake) => return Refusal::wrong(&mistake).into_response(),
        };
        // Whether the tables are watched is found out once the socket is up; who is wrong there gets 4400.
        self.upgrade(headers, upgrade, Spoken::Feed(first))
    }

    fn switch_status(&self, query: &str, headers: &HeaderMap, upgrade: Option<Upgrading>) -> Response {
        match check_words(query, &SWITCH_STATUS) {
            Ok(()) => self.upgrade(headers, upgrade, Spoken::SwitchStatus),
            Err(refusal) => refusal.into_response(),
        }
    }

    /// Answers a WebSocket handshake and starts the subscriber.
    fn upgrade(&self, headers: &HeaderMap, upgrade: Option<Upgrading>, spoken: Spoken) -> Response {
        let seat = match self.check_handshake(headers, upgrade.as_ref()) {
            Ok(seat) => seat,
            Err(refusal) => return refusal.into_response(),
        };
        let shared = self.shared.clone();
        self.accept(headers, upgrade, seat, move |socket| subscriber::run(socket, spoken, shared))
    }

    /// Accepts a subscriber of a channel, once PostgreSQL listens to it.
    async fn listen(&self, path: &str, query: &str, headers: &HeaderMap, upgrade: Option<Upgrading>) -> Response {
        let channel = match check_words(query, &LISTEN).and_then(|()| self.channel(path)) {
            Ok(channel) => channel,
            Err(refusal) => return refusal.into_response(),
        };
        let seat = match self.check_handshake(headers, upgrade.as_ref()) {
            Ok(seat) => seat,
            Err(refusal) => return refusal.into_response(),
        };
        let sitting = tokio::select! {
            sitting = timeout(LISTEN_PATIENCE, self.channels.sit(&channel)) => sitting,
            () = self.shared.stop.cancelled() => return stopping().into_response(),
        };
        let sits = match sitting {
            Ok(Ok(sits)) => sits,
            failed => {
                let why = match failed {
                    Ok(Err(why)) => format!("{why:#}"),
                    _ => "PostgreSQL is not there, or does not answer".to_owned(),
                };
                let remedy = format!("{why}; try later, or let the operator run \"switchboard check\"");
                return Refusal::unavailable("not_listening", &remedy).into_response();
            }
        };
        if self.shared.stop.is_cancelled() {
            return stopping().into_response();
        }
        let shared = self.shared.clone();
        self.accept(headers, upgrade, seat, move |socket| listen::run(socket, sits, shared))
    }

    /// The channel of an address, if it may be listened to.
    fn channel(&self, path: &str) -> Result<String, Refusal> {
        let channel = listen::channel_name(path).map_err(|mistake| Refusal::wrong(&mistake))?;
        if listen::is_ours(&channel) {
            let remedy = format!("{channel:?} is the gateway's own doorbell; open /v1/feed to hear of changes");
            return Err(Refusal::new(StatusCode::FORBIDDEN, "channel", &remedy));
        }
        if !self.shared.config.listen_channels.allow(&channel) {
            let remedy = format!("{channel:?} may not be listened to; let the operator add it to --listen-channels");
            return Err(Refusal::new(StatusCode::FORBIDDEN, "channel", &remedy));
        }
        Ok(channel)
    }

    /// Whether a WebSocket handshake (RFC 6455, 4.2) can be accepted now; a seat for what comes of it.
    fn check_handshake(
        &self,
        headers: &HeaderMap,
        upgrade: Option<&Upgrading>,
    ) -> Result<OwnedSemaphorePermit, Refusal> {
        let says = |name: header::HeaderName, word: &str| {
            let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
            values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(word))
        };
        admit(&self.shared.config.origins, headers)?;
        let asks = headers.contains_key(header::SEC_WEBSOCKET_KEY)
            && says(header::CONNECTION, "upgrade")
            && says(header::UPGRADE, "websocket");
        if !asks || upgrade.is_none() {
            let remedy = "this address speaks WebSocket; open it with new WebSocket(\"ws://…\") or a client of that kind \
                 (/v1/feed also gives server-sent events to those who send Accept: text/event-stream)";
            return Err(Refusal::new(StatusCode::UPGRADE_REQUIRED, "websocket_only", remedy));
        }
        if !says(header::SEC_WEBSOCKET_VERSION, "13") {
            let remedy = "only version 13 of WebSocket is spoken here";
            return Err(Refusal::new(StatusCode::UPGRADE_REQUIRED, "websocket_version", remedy));
        }
        self.seat()
    }

    /// Accepts a handshake that was checked, and serves what comes of it.
    fn accept<S>(
        &self,
        headers: &HeaderMap,
        upgrade: Option<Upgrading>,
        seat: OwnedSemaphorePermit,
        serve: impl FnOnce(Socket) -> S + Send + 'static,
    ) -> Response
    where
        S: Future<Output = ()> + Send + 'static,
    {
        let key = headers.get(header::SEC_WEBSOCKET_KEY).zip(upgrade);
        let (key, upgrade) = key.expect("a handshake without a key or a connection is refused");
        let accept = derive_accept_key(key.as_bytes());
        self.shared.metrics.subscriber_opened();
        let (cut, shared) = (self.shared.cut.clone(), self.shared.clone());
        // Boxed, since what waits for either of two things keeps room for the future it was given, twice.
        self.subscribers.spawn(cut.run_until_cancelled_owned(Box::pin(run_upgraded(upgrade, seat, shared, serve))));
        let answer = warp::reply::with_status(warp::reply(), StatusCode::SWITCHING_PROTOCOLS).into_response();
        let answer = with_header(answer, header::UPGRADE, "websocket");
        with_header(with_header(answer, header::CONNECTION, "upgrade"), header::SEC_WEBSOCKET_ACCEPT, &accept)
    }

    /// Server-sent events, which a browser resumes by itself.
    async fn events(&self, query: &str, headers: &HeaderMap, connection: Connection) -> Response {
        let request = Request::parse(query).and_then(|request| match headers.get("last-event-id") {
            Some(id) if !id.is_empty() => match std::str::from_utf8(id.as_bytes()) {
                Ok(id) => Ok(Request { from: From::Cursor(id.to_owned()), ..request }),
                Err(_) => {
                    Err("the header Last-Event-ID is not UTF-8; give it the id of an event, as it came".to_owned())
                }
            },
            _ => Ok(request),
        });
        let resumes = request.as_ref().is_ok_and(|request| request.from != From::Snapshot);
        let serve = async move |answer: Answer, reading| answer.events(reading, resumes).await;
        let answer = self.read(request, async |request| Ok(request), headers, connection, serve).await;
        // So that no proxy keeps them back, nor rewrites them.
        let answer = with_header(answer, header::HeaderName::from_static("x-accel-buffering"), "no");
        match answer.status() {
            StatusCode::OK => with_header(answer, header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
            _ => answer,
        }
    }

    /// A page of commits.
    async fn changes(&self, query: &str, headers: &HeaderMap, connection: Connection) -> Response {
        let PageRequest { request, oldest, limit, wait } = match PageRequest::parse(query) {
            Ok(page) => page,
            Err(mistake) => return Refusal::wrong(&mistake).into_response(),
        };
        let begin = async |mut request: Request| {
            plain::up_to_date(&self.shared).await?;
            if oldest {
                request.from = match self.shared.log.look(0).await {
                    Ok(extent) => From::Cursor(extent.oldest.to_string()),
                    Err(failure) => {
                        let message = format!("{failure:#}; try again, and if it stays so run \"switchboard check\"");
                        return Err(Refusal::unavailable("failed", &message));
                    }
                };
            }
            Ok(request)
        };
        let serve = async move |answer: Answer, reading| answer.changes(reading, limit, wait).await;
        self.read(Ok(request), begin, headers, connection, serve).await
    }

    /// The current rows, and where the stream goes on from them.
    async fn snapshot(&self, query: &str, headers: &HeaderMap, connection: Connection) -> Response {
        let begin = async |request| plain::up_to_date(&self.shared).await.map(|()| request);
        let serve = async |answer: Answer, reading| answer.snapshot(reading).await;
        self.read(Request::snapshot(query), begin, headers, connection, serve).await
    }

    /// An answer whose body is written by `serve` from a subscription. From here on it counts as one, though it may have to wait for
    /// what `begin` waits for, and for what is said first.
    async fn read<S, F>(
        &self,
        request: Result<Request, String>,
        begin: impl AsyncFnOnce(Request) -> Result<Request, Refusal>,
        headers: &HeaderMap,
        connection: Connection,
        serve: S,
    ) -> Response
    where
        S: FnOnce(Answer, Reading) -> F,
        F: Future<Output = ()> + Send + 'static,
    {
        let origin = match admit(&self.shared.config.origins, headers) {
            Ok(origin) => origin,
            Err(refusal) => return refusal.into_response(),
        };
        let seat = match self.seat() {
            Ok(seat) => seat,
            Err(refusal) => return allowed(refusal, origin),
        };
        let request = match request {
            Ok(request) => request,
            Err(mistake) => return allowed(Refusal::wrong(&mistake), origin),
        };
        if connection.head {
            return readable(warp::reply().into_response(), origin);
        }
        connection.place.leave();
        let begun = async { Reading::begin(begin(request).await?, self.shared.clone()).await };
        let reading = match begun.await {
            Ok(reading) => reading,
            Err(refusal) => {
                connection.place.come_back();
                return allowed(refusal, origin);
            }
        };
        self.shared.metrics.subscriber_opened();
        let (body, receiver) = mpsc::channel(1);
        let serving = serve(Answer::new(self.shared.clone(), body, connection.cut.clone()), reading);
        let write_timeout = self.shared.config.write_timeout;
        let whole = async move {
            let _seat = seat;
            serving.await;
            // hyper has yet to write the last of it. Until then the connection counts.
            if timeout(write_timeout, connection.ended.cancelled()).await.is_err() {
                connection.cut.cancel();
            }
        };
        self.subscribers.spawn(self.shared.cut.clone().run_until_cancelled_owned(Box::pin(whole)));
        let mut answer = warp::reply().into_response();
        answer.extensions_mut().insert(Streaming(Arc::new(Mutex::new(Some(receiver)))));
        // The connection left its place, so it cannot ask for anything else.
        readable(with_header(answer, header::CONNECTION, "close"), origin)
    }

    /// The watched tables, their keys and their columns.
    fn tables(&self, query: &str, headers: &HeaderMap) -> Response {
        let origin = match admit(&self.shared.config.origins, headers) {
            Ok(origin) => origin,
            Err(refusal) => return refusal.into_response(),
        };
        if let Err(refusal) = check_words(query, &TABLES) {
            return allowed(refusal, origin);
        }
        if self.shared.hub.head().is_none() {
            let message = "the gateway has not reached its PostgreSQL yet; try again, or run \"switchboard check\"";
            return allowed(error(StatusCode::SERVICE_UNAVAILABLE, "not_ready", message), origin);
        }
        let column = |column: &Column| json!({"name": column.name, "type": column.type_name});
        let tables: Vec<_> = selection::active(&self.shared.log.tables())
            .into_iter()
            .map(|watched| {
                let columns: Vec<_> = watched.columns.iter().map(column).collect();
                json!({"table": watched.table.name.to_string(), "key": watched.table.key, "columns": columns})
            })
            .collect();
        allowed(warp::reply::json(&json!({"tables": tables})).into_response(), origin)
    }

    /// A seat for another subscriber.
    fn seat(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        if self.shared.stop.is_cancelled() {
            return Err(stopping());
        }
        let remedy = "too many subscribers; try later, or let the operator raise --subscribers-max";
        self.seats.clone().try_acquire_owned().map_err(|_| Refusal::unavailable("too_many", remedy))
    }

    fn ready(&self) -> Response {
        let unready = |why: &str| error(StatusCode::SERVICE_UNAVAILABLE, "not_ready", why);
        if self.shared.stop.is_cancelled() {
            return unready("the gateway stops");
        }
        if !*self.shared.hub.database().borrow() {
            return unready("no PostgreSQL; run \"switchboard check\"");
        }
        match self.shared.metrics.doorbell_age() {
            Some(age) if age <= DOORBELL_AGE_MAX => "ready\n".into_response(),
            _ => unready("a doorbell of our own did not come back lately; run \"switchboard check\""),
        }
    }

    fn metrics(&self) -> Response {
        let text = self.shared.metrics.text(&self.shared.hub);
        with_header(
            text.into_response(),
            header::CONTENT_TYPE,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        )
    }
}

/// An answer of rows or changes.
fn readable(answer: Response, origin: Option<HeaderValue>) -> Response {
    let answer = with_header(answer, header::CONTENT_TYPE, "application/json");
    allowed(with_header(answer, header::CACHE_CONTROL, "no-cache, no-transform"), origin)
}

/// Takes the raw stream out of hyper's hands and serves a subscriber on it.
async fn run_upgraded<S: Future<Output = ()>>(
    Upgrading { stream, counted: _counted }: Upgrading,
    _seat: OwnedSemaphorePermit,
    shared: Arc<Shared>,
    serve: impl FnOnce(Socket) -> S,
) {
    let parts = match timeout(REQUEST_PATIENCE, stream).await {
        Ok(Ok(upgraded)) => upgraded.downcast::<TokioIo<TcpStream>>().ok(),
        _ => None,
    };
    let Some(parts) = parts else { return shared.metrics.subscriber_closed(crate::protocol::Close::Normal) };
    let socket = Socket::new(parts.io.into_inner(), &parts.read_buf, shared.config.write_timeout);
    // hyper's read buffer is let go here: it is larger than all the rest of an idle subscriber.
    drop(parts.read_buf);
    drop(shared);
    serve(socket).await;
}

/// Whether an address without parameters was left without.
fn check_words(query: &str, place: &parameters::Place) -> Result<(), Refusal> {
    parameters::parameters(query, place).map(drop).map_err(|mistake| Refusal::wrong(&mistake))
}

fn stopping() -> Refusal {
    Refusal::unavailable("stopping", "the gateway stops; connect to another one")
}

async fn refuse(rejection: Rejection) -> Result<Response, Infallible> {
    if rejection.find::<warp::reject::MethodNotAllowed>().is_some() {
        let answer = error(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "use GET");
        return Ok(with_header(answer, header::ALLOW, "GET, HEAD"));
    }
    if rejection.is_not_found() {
        let here = "there is nothing at this address; there is / (a page), /client.js, /client.d.ts, /v1/feed, /v1/changes, /v1/snapshot, /v1/tables, /switch/status, /listen/CHANNEL, /healthz, /readyz, /metrics, /asyncapi.json, /openapi.json, /frames.schema.json";
        return Ok(error(StatusCode::NOT_FOUND, "not_found", here));
    }
    tracing::debug!("a request was refused: {rejection:?}");
    Ok(error(StatusCode::BAD_REQUEST, "bad_request", "the request is not one that HTTP allows here"))
}

/// Whether the client asks for server-sent events.
fn wants_events(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    let types = accepted.flat_map(|value| value.split(',')).filter_map(|value| value.split(';').next());
    types.into_iter().any(|value| value.trim().eq_ignore_ascii_case("text/event-stream"))
}
