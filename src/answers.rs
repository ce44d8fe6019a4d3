//! Answers of plain HTTP: refusals that name the remedy, which web pages may ask, and by which name of the gateway's.

use hyper::body::Incoming;
use serde_json::{Value, json};
use warp::http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use warp::reply::{Reply, Response};

use crate::config::{Hosts, Origins, authority_of};
use crate::protocol::REFUSAL_CODES;

/// How long a browser may go by the answer to a preflight.
const PREFLIGHT_SECONDS: &str = "600";

/// Why there is no answer to be had.
pub struct Refusal {
    /// The status of the answer.
    pub status: StatusCode,
    /// `code`, a `message` that names the remedy, and what else there is to know.
    pub error: Value,
}

impl Refusal {
    /// A refusal with this code, and a message that names the remedy.
    pub fn new(status: StatusCode, code: &str, message: &str) -> Refusal {
        debug_assert!(REFUSAL_CODES.contains(&code), "{code} is not among the codes of refusals");
        Refusal { status, error: json!({"code": code, "message": message}) }
    }

    /// The request is wrong, as this sentence says.
    pub fn wrong(mistake: &str) -> Refusal {
        Refusal::new(StatusCode::BAD_REQUEST, "bad_request", mistake)
    }

    /// It cannot be done at this moment.
    pub fn unavailable(code: &str, why: &str) -> Refusal {
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, code, why)
    }
}

impl Reply for Refusal {
    fn into_response(self) -> Response {
        let answer = warp::reply::with_status(warp::reply::json(&json!({"error": self.error})), self.status);
        // A page whose handshake was refused asks once more over plain HTTP, to hear why.
        let answer = for_all_origins(answer.into_response());
        match self.error["code"].as_str() {
            Some("too_many" | "not_listening" | "not_ready") => with_header(answer, header::RETRY_AFTER, "5"),
            // RFC 9110, 15.5.22; RFC 6455, 4.4.
            Some("websocket_only") => with_header(answer, header::UPGRADE, "websocket"),
            Some("websocket_version") => with_header(answer, header::SEC_WEBSOCKET_VERSION, "13"),
            _ => answer,
        }
    }
}

/// A refusal as an answer.
pub fn error(status: StatusCode, code: &str, message: &str) -> Response {
    Refusal::new(status, code, message).into_response()
}

/// The same answer with another header.
pub fn with_header(answer: Response, name: header::HeaderName, value: &str) -> Response {
    warp::reply::with_header(answer, name, value).into_response()
}

/// Lets pages of all origins read what is no secret.
pub fn for_all_origins(answer: Response) -> Response {
    with_header(answer, header::ACCESS_CONTROL_ALLOW_ORIGIN, "*")
}

/// Whether the web page that asks may, where one does; its origin then, to be [`allowed`].
///
/// A page can also make a browser ask without an origin, as for an image. It cannot read the answer, but each such answer costs what
/// one costs that is read (Fetch Metadata, 2.3).
pub fn admit(origins: &Origins, headers: &HeaderMap) -> Result<Option<HeaderValue>, Refusal> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let Some(origin) = headers.get(header::ORIGIN) else {
        let foreign = headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site");
        if foreign && *origins != Origins::Any {
            let remedy = "a page of another site asked for this without saying which (as for an image, or by a link); open the \
                          address by itself, or let that page fetch it, and the operator add its origin to --origins";
            return Err(Refusal::new(StatusCode::FORBIDDEN, "origin", remedy));
        }
        return Ok(None);
    };
    if origins.allow(origin.to_str().unwrap_or(""), host.unwrap_or("")) {
        return Ok(Some(origin.clone()));
    }
    let remedy = match origin.as_bytes() {
        // So browsers call it, and nobody can list that.
        b"null" => "a page that was opened as a file may not do this here; serve it over HTTP, from this machine or an origin that \
                    --origins lists"
            .to_owned(),
        _ => format!("a page of {origin:?} may not do this here; let the operator add it to --origins"),
    };
    Err(Refusal::new(StatusCode::FORBIDDEN, "origin", &remedy))
}

/// Whether a request says whom it is meant for, once (RFC 9112, 3.2), and whether that is a name of this gateway's, which is
/// `local` if only its own machine reaches it.
pub fn check_host(hosts: &Hosts, local: bool, request: &hyper::Request<Incoming>) -> Result<(), Refusal> {
    let mut said = request.headers().get_all(header::HOST).iter();
    let host = match (said.next(), said.next()) {
        // Only programs speak that, and old health checks among them.
        (None, _) if request.version() == Version::HTTP_10 => return Ok(()),
        (Some(host), None) => host,
        (None, _) => return Err(Refusal::wrong("the request has no header Host; send one, as HTTP/1.1 has it")),
        (Some(_), Some(_)) => return Err(Refusal::wrong("the request has more than one header Host; send one")),
    };
    let Some((name, _)) = host.to_str().ok().and_then(authority_of) else {
        return Err(Refusal::wrong(&format!(
            "the header Host: {host:?} is no name and port; send those of the address"
        )));
    };
    // Who asks that may be a probe that knows no names.
    if hosts.allow(&name, local) || ["/healthz", "/readyz"].contains(&request.uri().path()) {
        return Ok(());
    }
    let remedy = format!(
        "this gateway does not go by the name {name:?}; use one that it has, or let the operator add it to --hosts"
    );
    Err(Refusal::new(StatusCode::FORBIDDEN, "host", &remedy))
}

/// The answer to a browser that asks, for a page, whether it may send a request (Fetch Standard, 4.8), if this is such a question.
pub fn preflight(origins: &Origins, request: &hyper::Request<Incoming>) -> Option<Response> {
    let headers = request.headers();
    headers.get(header::ACCESS_CONTROL_REQUEST_METHOD).filter(|_| request.method() == Method::OPTIONS)?;
    let origin = match admit(origins, headers) {
        Ok(origin) => origin?,
        // Not for all origins, as other refusals are: a browser would take that for leave.
        Err(refusal) => {
            let mut answer = refusal.into_response();
            answer.headers_mut().remove(header::ACCESS_CONTROL_ALLOW_ORIGIN);
            return Some(answer);
        }
    };
    let methods = if request.uri().path().starts_with("/dev/") { "POST" } else { "GET, HEAD" };
    let answer = warp::reply::with_status(warp::reply(), StatusCode::NO_CONTENT).into_response();
    let answer = with_header(answer, header::ACCESS_CONTROL_ALLOW_METHODS, methods);
    let mut answer = with_header(answer, header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_SECONDS);
    // Those that mean nothing here do no harm.
    if let Some(asked) = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        answer.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
    }
    Some(allowed(answer, Some(origin)))
}

/// Lets a page of this origin read the answer (Fetch Standard, 3.3).
pub fn allowed(answer: impl Reply, origin: Option<HeaderValue>) -> Response {
    let mut answer = answer.into_response();
    if let Some(origin) = origin {
        answer.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        answer.headers_mut().insert(header::VARY, HeaderValue::from_static("origin"));
    }
    answer
}
