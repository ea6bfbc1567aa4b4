//! Refusals that every domain shares.

use std::error::Error;
use std::time::Duration;

use axum::http::StatusCode;
use problem::Problem;
use sqlx::postgres::{PgDatabaseError, PgSeverity};

/// An error that the caller cannot act on: logged with its whole chain, answered as 503 when master cannot be reached and
/// as 500 otherwise.
pub fn unexpected(error: &(dyn Error + 'static)) -> Problem {
    let chain = chain(error);
    if is_unavailable(error) {
        tracing::warn!(error = chain, "the master database is not available");
        return Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "control-plane-unavailable",
            "The control plane is not available right now",
        )
        .detail("Nothing was changed. Try again.")
        .retry_after(Duration::from_secs(2));
    }
    tracing::error!(error = chain, "a request failed");
    Problem::internal()
}

/// The messages of an error and its sources, outermost first.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn is_unavailable(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<sqlx::Error>() {
            return match error {
                sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Tls(_) => true,
                // It lets nobody in or ends the session, whatever its reason; or it is read-only after a fail-over.
                sqlx::Error::Database(error) => {
                    let is_fatal =
                        |error: &PgDatabaseError| matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic);
                    error.try_downcast_ref().is_some_and(is_fatal) || error.code().as_deref() == Some("25006")
                }
                _ => false,
            };
        }
        cause = error.source();
    }
    false
}

/// 400 for a cursor of another list.
pub fn invalid_cursor() -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "invalid-cursor", "The cursor does not belong to this list").field(
        "cursor",
        "invalid",
        "use `meta.nextCursor` of the page before, with the same filters and sorting",
    )
}

/// 400 for a query parameter whose value is not allowed.
pub fn invalid_query(name: &str, detail: impl std::fmt::Display) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "invalid-query", "A query parameter is not valid")
        .field(name, "invalid", detail)
}

/// 504 for a request that took longer than it may.
pub fn timed_out() -> Problem {
    Problem::new(StatusCode::GATEWAY_TIMEOUT, "timed-out", "The request took too long")
        .detail("It was given up; what it had begun was rolled back unless it had finished.")
}
