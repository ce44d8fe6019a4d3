//! The live page: its files, which are part of the program, and the click that flips a switch.
//!
//! The page is a client as any other: what it shows comes over the feed. Only in `dev`, where the database is the program's own, can it
//! change something, and only there is it told so.

use std::future::ready;
use std::sync::Arc;

use anyhow::anyhow;
use deadpool_postgres::{Pool, PoolError};
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use warp::http::{HeaderMap, Method, StatusCode, header};
use warp::reply::{Reply, Response};
use warp::{Filter, Rejection};

use crate::answers::{admit, error, for_all_origins, with_header};
use crate::config::{CONNECT_PATIENCE, Config, Origins, REQUEST_PATIENCE};
use crate::session::{Database, Purpose, told};

/// Values come from a database and can be hostile: nothing runs that is not a file of ours, and nothing but the gateway is spoken to.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const PAGE: &str = include_str!("page/index.html");
/// What `dev` puts into the page in the place of the other: the switches can be flipped there.
const MARKS: (&str, &str) = (r#"data-dev="no""#, r#"data-dev="yes""#);

const FLIP: &str = "update public.switch set status = not status where id = $1::bigint";
/// How many connections flip switches.
const FLIP_CONNECTIONS_MAX: usize = 2;

/// `/`, `/page.css` and `/page.js`.
pub fn files(dev: bool) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone {
    let page: Arc<str> = if dev { PAGE.replacen(MARKS.0, MARKS.1, 1).into() } else { PAGE.into() };
    let page = warp::path::end().and(warp::get()).map(move || {
        let page = file(page.to_string(), "text/html; charset=utf-8");
        with_header(page, header::CONTENT_SECURITY_POLICY, POLICY)
    });
    let get = |path: &'static str| warp::path(path).and(warp::path::end()).and(warp::get());
    let style = get("page.css").map(|| file(include_str!("page/page.css"), "text/css; charset=utf-8"));
    let script = get("page.js").map(|| file(include_str!("page/page.js"), "text/javascript; charset=utf-8"));
    page.or(style).unify().or(script).unify()
}

/// `/client.js`, the browser client, and its types. Pages of any origin may import it; it always is the one that fits this gateway.
pub fn client() -> impl Filter<Extract = (Response,), Error = Rejection> + Clone {
    let get = |path: &'static str| warp::path(path).and(warp::path::end()).and(warp::get());
    let for_all = |text, content_type| for_all_origins(file(text, content_type));
    let code = include_str!("../client/client.js");
    let code = get("client.js").map(move || for_all(code, "text/javascript; charset=utf-8"));
    let types = include_str!("../client/client.d.ts");
    let types = get("client.d.ts").map(move || for_all(types, "text/plain; charset=utf-8"));
    code.or(types).unify()
}

fn file(text: impl Reply, content_type: &str) -> Response {
    let file = with_header(text.into_response(), header::CONTENT_TYPE, content_type);
    let file = with_header(file, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    // After an upgrade, a browser that kept one file and not the others would mix two versions.
    with_header(file, header::CACHE_CONTROL, "no-cache")
}

/// `POST /dev/switch/{id}/flip` in `dev`; elsewhere an address as unknown as any other.
pub fn flip(config: &Config) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone + use<> {
    let flipper = config.dev.then(|| Arc::new(Flipper::new(config)));
    warp::path!("dev" / "switch" / String / "flip")
        .and_then(move |id: String| {
            ready(flipper.clone().map(|flipper| (flipper, id)).ok_or_else(warp::reject::not_found))
        })
        .and(warp::method())
        .and(warp::header::headers_cloned())
        .then(async |(flipper, id): (Arc<Flipper>, String), method, headers| {
            flipper.answer(&id, &method, &headers).await
        })
}

struct Flipper {
    pool: Pool,
    origins: Origins,
}

impl Flipper {
    fn new(config: &Config) -> Flipper {
        let database = Database::new(&config.database);
        let pool = database.pool(Purpose::Page, FLIP_CONNECTIONS_MAX, CONNECT_PATIENCE);
        Flipper { pool, origins: config.origins.clone() }
    }

    async fn answer(&self, id: &str, method: &Method, headers: &HeaderMap) -> Response {
        if method != Method::POST {
            let answer = error(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "use POST");
            return with_header(answer, header::ALLOW, "POST");
        }
        if let Err(refusal) = admit(&self.origins, headers) {
            return refusal.into_response();
        }
        if headers.get("x-switchboard").is_none_or(|value| value != "dev") {
            let remedy =
                "a click has to send the header \"X-Switchboard: dev\", which no form of a foreign page can send";
            return error(StatusCode::BAD_REQUEST, "bad_request", remedy);
        }
        let Ok(number) = id.parse() else {
            let mistake = format!("{id:?} is no id of a switch; give a whole number");
            return error(StatusCode::BAD_REQUEST, "bad_request", &mistake);
        };
        match timeout(REQUEST_PATIENCE, self.flip(number)).await {
            Ok(Ok(0)) => error(StatusCode::NOT_FOUND, "not_found", &format!("there is no switch {id} any more")),
            Ok(Ok(_)) => warp::reply::with_status(warp::reply(), StatusCode::NO_CONTENT).into_response(),
            Ok(Err(PoolError::Backend(why))) if why.code() == Some(&SqlState::UNDEFINED_TABLE) => {
                let remedy = "the table public.switch is gone; start \"switchboard dev\" again, which creates it anew";
                error(StatusCode::CONFLICT, "no_table", remedy)
            }
            Ok(Err(why)) => unavailable(&format!("{:#}", in_words(why))),
            Err(_) => unavailable("PostgreSQL does not answer"),
        }
    }

    /// How many switches were flipped.
    async fn flip(&self, id: i64) -> Result<u64, PoolError> {
        Ok(self.pool.get().await?.execute(FLIP, &[&id]).await?)
    }
}

fn in_words(why: PoolError) -> anyhow::Error {
    match why {
        PoolError::Backend(why) => told(why),
        why => anyhow!(why),
    }
}

fn unavailable(why: &str) -> Response {
    error(StatusCode::SERVICE_UNAVAILABLE, "not_flipped", &format!("the switch was not flipped: {why}; try again"))
}
