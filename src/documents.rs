//! The wire, written down for programs: AsyncAPI for the sockets, OpenAPI for HTTP, and the JSON Schema that both refer to.
//!
//! They are the files of `docs/` as they stand, so that those who generate clients have what fits this gateway; the references among
//! them are relative and hold here as there. Tests hold all that they see of the gateway against them.

use warp::http::header;
use warp::reply::{Reply, Response};
use warp::{Filter, Rejection};

use crate::answers::{for_all_origins, with_header};

/// A document that is served as it stands.
#[derive(Clone, Copy)]
pub struct Document {
    /// Its address, without the slash.
    pub name: &'static str,
    media_type: &'static str,
    /// What it says.
    pub text: &'static str,
}

/// All that there are.
pub const DOCUMENTS: [Document; 3] = [
    Document {
        name: "asyncapi.json",
        media_type: "application/vnd.aai.asyncapi+json;version=3.0.0",
        text: include_str!("../docs/asyncapi.json"),
    },
    Document {
        name: "openapi.json",
        media_type: "application/vnd.oai.openapi+json;version=3.1",
        text: include_str!("../docs/openapi.json"),
    },
    Document {
        name: "frames.schema.json",
        media_type: "application/schema+json",
        text: include_str!("../docs/frames.schema.json"),
    },
];

/// The addresses of the documents.
pub fn route() -> impl Filter<Extract = (Response,), Error = Rejection> + Clone {
    warp::path::param().and(warp::path::end()).and_then(find).and(warp::get()).map(answer)
}

async fn find(name: String) -> Result<Document, Rejection> {
    DOCUMENTS.into_iter().find(|document| document.name == name).ok_or_else(warp::reject::not_found)
}

fn answer(document: Document) -> Response {
    let answer = with_header(document.text.into_response(), header::CONTENT_TYPE, document.media_type);
    // Another version of the gateway has others.
    with_header(for_all_origins(answer), header::CACHE_CONTROL, "no-cache")
}
