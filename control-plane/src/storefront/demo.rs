//! Pictures for the made-up products of a demo store, drawn from their names: nothing is fetched and nothing is stored.

use axum::Router;
use axum::extract::Path;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use kernel::Slug;
use problem::Problem;

use crate::cx::Cx;

/// Beside the API, not part of its description.
pub fn router() -> Router<Cx> {
    Router::new().route("/demo/{file}", get(picture))
}

/// A label on a field of colour. The name is a slug, so nothing in it can leave the text that it stands in.
async fn picture(Path(file): Path<String>) -> Result<Response, Problem> {
    let name = file.strip_suffix(".svg").and_then(|name| Slug::parse(name).ok()).ok_or_else(Problem::not_found)?;
    let hue = name.as_str().bytes().fold(7_u32, |hue, byte| (hue * 31 + u32::from(byte)) % 360);
    let label = name.as_str().replace('-', " ");
    let svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 640 640\" role=\"img\" aria-label=\"{label}\">\
         <rect width=\"640\" height=\"640\" fill=\"hsl({hue} 35% 86%)\"/><circle cx=\"320\" cy=\"280\" r=\"150\" fill=\"hsl({hue} 40% 62%)\"/>\
         <text x=\"320\" y=\"540\" font-family=\"Georgia, serif\" font-size=\"44\" text-anchor=\"middle\" fill=\"hsl({hue} 45% 22%)\">{label}</text></svg>"
    );
    Ok(([(header::CONTENT_TYPE, "image/svg+xml"), (header::CACHE_CONTROL, "public, max-age=86400")], svg)
        .into_response())
}
