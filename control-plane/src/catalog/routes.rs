//! HTTP of importing products.

use std::convert::Infallible;
use std::error::Error;
use std::io;

use axum::body::Body;
use axum::extract::multipart::MultipartError;
use axum::extract::{DefaultBodyLimit, FromRequest as _, Multipart, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt as _, TryStreamExt as _};
use http_body_util::{LengthLimitError, Limited};
use kernel::StoreId;
use problem::{Json, Problem, ProblemBody, Query};
use serde::Deserialize;
use tenant_schema::import::{ImportProgress, ImportReport};
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::audit::Actor;
use crate::cx::Cx;
use crate::http::auth::MemberOf;
use crate::http::errors::timed_out;
use crate::http::pace::{Pace, PacedBody, TooSlow};
use crate::stores::Store;

pub fn router() -> OpenApiRouter<Cx> {
    // The file is streamed and has a limit of its own.
    OpenApiRouter::new().routes(routes!(products_import)).layer(DefaultBodyLimit::disable())
}

#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ImportQuery {
    /// Say what would be done, and do nothing.
    dry_run: Option<bool>,
}

/// A form with the file in it, as a browser sends one.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described: the form is read as a stream")]
struct ImportForm {
    /// The file; its part may have any name.
    #[schema(value_type = String, format = Binary)]
    file: String,
}

/// Import products
///
/// A Shopify product CSV, with its classic header or the new one, as `text/csv` or as a file of a `multipart/form-data`.
/// Importing the same file again changes nothing. An organization imports one file at a time. With
/// `Accept: text/event-stream` the answer is a stream of `progress` events, ended by `done` with the report or `failed` with
/// a problem.
#[utoipa::path(post, path = "/api/stores/{id}/products/import", tag = "stores", operation_id = "products_import", security(("bearer" = [])),
    params(("id" = StoreId, Path), ImportQuery), request_body(content((String = "text/csv"), (ImportForm = "multipart/form-data"))),
    responses((status = 200, body = ImportReport), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody), (status = 408, body = ProblemBody), (status = 409, body = ProblemBody),
        (status = 413, body = ProblemBody), (status = 415, body = ProblemBody), (status = 422, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn products_import(
    member: MemberOf<Store>,
    State(cx): State<Cx>,
    Query(query): Query<ImportQuery>,
    request: Request,
) -> Result<Response, Problem> {
    let wants_events = request
        .headers()
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|text| text.contains("text/event-stream"));
    let work = Work {
        actor: Actor::User(member.by.user.id),
        store: member.store.id,
        dry_run: query.dry_run.unwrap_or(false),
        limit: cx.config.limits.import_limit_bytes,
        pace: Pace {
            bytes_per_s: cx.config.limits.import_upload_bytes_per_s,
            grace: cx.config.limits.import_upload_grace,
        },
    };
    if !wants_events {
        return Ok(Json(work.run(&cx, request, |_| {}).await?).into_response());
    }
    let (sender, receiver) = mpsc::channel(16);
    let tasks = cx.tasks.clone();
    tasks.spawn(async move {
        let progress = sender.clone();
        // A watcher that is slow misses steps in between, never the end.
        // The front door's limit ended with the head of the answer.
        let limit = cx.config.limits.import_timeout;
        let shutdown = cx.shutdown.clone();
        let running = work.run(&cx, request, |at| drop(progress.try_send(event("progress", &at))));
        let outcome = shutdown.run_until_cancelled(tokio::time::timeout(limit, running)).await;
        let outcome = match outcome {
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) => Err(timed_out()),
            None => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "shutting-down", "This node is shutting down")),
        };
        let last = match outcome {
            Ok(report) => event("done", &report),
            Err(problem) => {
                let bytes =
                    axum::body::to_bytes(problem.into_response().into_body(), 64 * 1024).await.unwrap_or_default();
                Event::default().event("failed").data(String::from_utf8_lossy(&bytes))
            }
        };
        // Nobody is left to be told.
        let _ = sender.send(last).await;
    });
    let events =
        futures_util::stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
    Ok(Sse::new(events.map(Ok::<_, Infallible>)).keep_alive(KeepAlive::default()).into_response())
}

fn event(name: &str, data: &impl serde::Serialize) -> Event {
    Event::default().event(name).data(serde_json::to_string(data).unwrap_or_default())
}

struct Work {
    actor: Actor,
    store: StoreId,
    dry_run: bool,
    limit: usize,
    pace: Pace,
}

impl Work {
    /// Imports the file that the request carries.
    async fn run(
        self,
        cx: &Cx,
        request: Request,
        progress: impl FnMut(ImportProgress),
    ) -> Result<ImportReport, Problem> {
        let limit = self.limit;
        self.read(cx, request, progress).await.map_err(|problem| match problem.status() {
            StatusCode::PAYLOAD_TOO_LARGE => problem
                .detail(format!("It reads {limit} bytes. What came before the limit was imported. Split the file.")),
            _ => problem,
        })
    }

    async fn read(
        self,
        cx: &Cx,
        request: Request,
        progress: impl FnMut(ImportProgress),
    ) -> Result<ImportReport, Problem> {
        let kind = content_type(request.headers());
        // A sender that drips or falls silent must not hold one of the few places.
        let request = request.map(|body| Body::new(Limited::new(PacedBody::new(body, self.pace), self.limit)));
        match kind.as_str() {
            "text/csv" | "application/csv" => {
                let bytes = request.into_body().into_data_stream().map_err(io::Error::other);
                Ok(super::import(cx, self.actor, self.store, StreamReader::new(bytes), self.dry_run, progress).await?)
            }
            "multipart/form-data" => {
                let malformed = |detail: String| {
                    Problem::new(StatusCode::BAD_REQUEST, "malformed-multipart", "The form cannot be read")
                        .detail(detail)
                };
                let refused = |error: MultipartError| given_up(&error).unwrap_or_else(|| malformed(error.body_text()));
                let mut form =
                    Multipart::from_request(request, &()).await.map_err(|refused| malformed(refused.body_text()))?;
                while let Some(field) = form.next_field().await.map_err(refused)? {
                    if field.file_name().is_none() {
                        continue;
                    }
                    let bytes = field.map_err(io::Error::other);
                    return Ok(super::import(
                        cx,
                        self.actor,
                        self.store,
                        StreamReader::new(bytes),
                        self.dry_run,
                        progress,
                    )
                    .await?);
                }
                Err(malformed("The form holds no file.".to_owned()))
            }
            _ => Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported-media-type",
                "The body has another type than expected",
            )
            .detail("Send the file as `text/csv`, or as a file of a `multipart/form-data`.")),
        }
    }
}

fn content_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// A file that was not read to its end: too large, too slow, or broken off.
pub fn unreadable(error: &io::Error) -> Problem {
    error.get_ref().and_then(|cause| given_up(cause)).unwrap_or_else(|| {
        Problem::new(StatusCode::BAD_REQUEST, "body-unreadable", "The file could not be read to its end")
            .detail("Importing it again goes on from there.")
    })
}

/// Whether it was we who gave up reading a body, and why.
fn given_up(error: &(dyn Error + 'static)) -> Option<Problem> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<LengthLimitError>() {
            return Some(
                Problem::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "body-too-large",
                    "The file is larger than this route reads",
                )
                .detail("What came before the limit was imported. Split the file."),
            );
        }
        if error.is::<TooSlow>() {
            return Some(
                Problem::new(StatusCode::REQUEST_TIMEOUT, "upload-too-slow", "The file was sent too slowly")
                    .detail("Importing it again goes on from there. Split the file, or send it over a faster line."),
            );
        }
        cause = error.source();
    }
    None
}
