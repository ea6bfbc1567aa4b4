//! Answers that caches may keep: validators from the catalogue's version, which every change of the catalogue bumps.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use kernel::StoreId;
use problem::Problem;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

/// Kept by browsers only with asking, by shared caches for a moment: a suspended store must be gone from them too, and asking
/// with the validator is one cheap read.
const PUBLIC: HeaderValue = HeaderValue::from_static("public, max-age=0, s-maxage=5");
const PRIVATE: HeaderValue = HeaderValue::from_static("private, max-age=0, must-revalidate");
const NO_STORE: HeaderValue = HeaderValue::from_static("private, no-store");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What an answer's validator depends on besides the catalogue's version.
pub struct Validator {
    what: [u8; 8],
    is_public: bool,
}

impl Validator {
    /// For the answer to this request of this store. Another build may write the same data in another way.
    pub fn new(store: StoreId, path_and_query: &str, is_public: bool) -> Self {
        let digest = Sha256::new()
            .chain_update(env!("CARGO_PKG_VERSION"))
            .chain_update(store.as_uuid().as_bytes())
            .chain_update(path_and_query)
            .finalize();
        let mut what = [0; 8];
        what.copy_from_slice(&digest[..8]);
        Self { what, is_public }
    }

    /// Weak, because compressing changes the bytes and not the meaning (RFC 9110 §8.8.1).
    fn etag(&self, catalog_version: i64) -> String {
        format!("W/\"{catalog_version}-{}\"", hex::encode(self.what))
    }

    /// Whether the client may have this very answer, so that asking for the version alone can spare the rest.
    pub fn may_match(&self, headers: &HeaderMap) -> bool {
        let what = hex::encode(self.what);
        headers
            .get_all(header::IF_NONE_MATCH)
            .iter()
            .any(|value| value.to_str().is_ok_and(|text| text.contains(&what) || text.trim() == "*"))
    }

    /// 304, when the client has the answer of this version.
    pub fn not_modified(&self, headers: &HeaderMap, catalog_version: i64) -> Option<Response> {
        let ours = self.etag(catalog_version);
        let bare = ours.trim_start_matches("W/");
        let mut tags = headers
            .get_all(header::IF_NONE_MATCH)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|text| text.split(','));
        let matches = tags.any(|tag| tag.trim() == "*" || tag.trim().trim_start_matches("W/") == bare);
        matches.then(|| {
            let mut response = StatusCode::NOT_MODIFIED.into_response();
            self.set(response.headers_mut(), &ours);
            response
        })
    }

    /// 200 with the answer of this version.
    pub fn ok<T: Serialize>(&self, catalog_version: i64, body: &T) -> Result<Response, Problem> {
        let bytes = serde_json::to_vec(body).map_err(|error| {
            tracing::error!(error = %error, "an answer could not be written");
            Problem::internal()
        })?;
        let mut response = Response::new(Body::from(bytes));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, JSON);
        self.set(headers, &self.etag(catalog_version));
        Ok(response)
    }

    fn set(&self, headers: &mut HeaderMap, etag: &str) {
        if let Ok(value) = HeaderValue::from_str(etag) {
            headers.insert(header::ETAG, value);
        }
        headers.insert(header::CACHE_CONTROL, if self.is_public { PUBLIC } else { PRIVATE });
        if !self.is_public {
            headers.insert(header::VARY, HeaderValue::from_static("Authorization, X-Store-Id"));
        }
    }
}

/// An answer that nobody may keep: a cart's, an order's.
pub fn no_store(status: StatusCode, body: impl IntoResponse) -> Response {
    let mut response = (status, body).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, NO_STORE);
    response
}
