//! Answers of plain HTTP: refusals that name the remedy, and which web pages may ask.

use serde_json::{Value, json};
use warp::http::{HeaderMap, HeaderValue, StatusCode, header};
use warp::reply::{Reply, Response};

use crate::config::Origins;
use crate::protocol::REFUSAL_CODES;

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

/// Whether a web page of this origin may ask, where it is one that asks; its origin then, to be [`allowed`].
pub fn admit(origins: &Origins, headers: &HeaderMap) -> Result<Option<HeaderValue>, Refusal> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(None) };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
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

/// Lets a page of this origin read the answer (Fetch Standard, 3.3).
pub fn allowed(answer: impl Reply, origin: Option<HeaderValue>) -> Response {
    let mut answer = answer.into_response();
    if let Some(origin) = origin {
        answer.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        answer.headers_mut().insert(header::VARY, HeaderValue::from_static("origin"));
    }
    answer
}
