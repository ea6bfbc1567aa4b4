//! What a browser sees that comes back from Supabase.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use reqwest::Url;
use secrecy::ExposeSecret as _;

use super::Returned;

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

/// A page, or the way on to the console, which finds what it needs behind the `#`: that part is sent to nobody.
pub(super) fn show(returned: &Returned, return_url: Option<&Url>) -> Response {
    let on = |parts: &[(&str, &str)]| {
        let mut url = return_url?.clone();
        url.set_fragment(Some(&url::form_urlencoded::Serializer::new(String::new()).extend_pairs(parts).finish()));
        Some(url)
    };
    match returned {
        Returned::Unknown => html(
            StatusCode::BAD_REQUEST,
            "This link leads nowhere",
            "<p>It was used before, it is too old, or nobody began with it. Begin again, and consent within ten minutes.</p>",
        ),
        Returned::Denied { store, said } => match on(&[("storeId", &store.to_string()), ("error", "denied")]) {
            Some(url) => lead(&url),
            None => {
                let said =
                    if said.is_empty() { String::new() } else { format!("<p>Supabase says: {}</p>", escape(said)) };
                let text = format!("<p>Supabase was told not to let us in. Nothing is connected.</p>{said}");
                html(StatusCode::OK, "Nothing was allowed", &text)
            }
        },
        Returned::Consented { store, completion_code } => {
            let code = completion_code.expose_secret();
            match on(&[("storeId", &store.to_string()), ("completionCode", code)]) {
                Some(url) => lead(&url),
                None => {
                    let text = format!(
                        "<p>Nothing is connected yet. Did you begin this yourself? Then give this code where you began, within ten \
                         minutes:</p><p><code>{}</code></p><p>If somebody sent you here, close this page and give the code to \
                         nobody.</p>",
                        escape(code)
                    );
                    html(StatusCode::OK, "One more step", &text)
                }
            }
        }
    }
}

fn lead(url: &Url) -> Response {
    let headers = [
        (header::LOCATION, url.as_str()),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (StatusCode::SEE_OTHER, headers).into_response()
}

fn html(status: StatusCode, title: &str, text: &str) -> Response {
    let body = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title><style>body{{font:16px/1.5 system-ui,sans-serif;max-width:34rem;margin:3rem auto;padding:0 1rem}}\
         code{{background:#eee;color:#000;padding:.3rem .5rem;overflow-wrap:anywhere}}</style><h1>{title}</h1>{text}</html>"
    );
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    ];
    (status, headers, body).into_response()
}
