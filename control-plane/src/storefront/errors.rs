//! What went wrong in a store's database, as answers. None names a host, a user or SQL.

use std::time::Duration;

use axum::http::StatusCode;
use kernel::VariantId;
use problem::Problem;
use sqlx::mysql::MySqlDatabaseError;
use tenancy::LeaseError;
use tenant_schema::FieldError;
use tenant_schema::cart::CartError;
use tenant_schema::catalog::CatalogError;
use tenant_schema::checkout::CheckoutError;
use tenant_schema::settings::SettingsError;

use crate::http::entry::read_only;
use crate::http::errors::{chain, invalid_cursor};

/// No connection was given.
pub fn from_lease(error: LeaseError) -> Problem {
    let retry_after = error.retry_after().unwrap_or(Duration::from_secs(5));
    match error {
        LeaseError::Busy { .. } => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store-busy", "The store is too busy at this moment")
        }
        LeaseError::Unavailable { cause, .. } => {
            tracing::debug!(cause = cause.as_str(), "a store's database is not available");
            database_unavailable()
        }
        LeaseError::Sealed => {
            tracing::error!(
                "a store's credential does not open: its key is missing from ENCRYPTION_KEYS, or the row was changed"
            );
            database_unavailable()
        }
        LeaseError::NotServing { .. } | LeaseError::NoDatabase => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store-not-ready", "The store is not ready")
        }
        LeaseError::Draining => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store-changing", "The store is being changed at this moment")
        }
        LeaseError::DirectoryUnavailable => Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "directory-unavailable",
            "The store cannot be looked up right now",
        ),
        LeaseError::ShuttingDown => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "shutting-down", "This node is shutting down")
        }
    }
    .retry_after(retry_after)
}

fn database_unavailable() -> Problem {
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "store-database-unavailable",
        "The store's database is not available right now",
    )
}

/// A statement failed.
pub fn from_db(error: &sqlx::Error) -> Problem {
    let is_outage = match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::Protocol(_) => true,
        sqlx::Error::Database(database) if let Some(mysql) = database.try_downcast_ref::<MySqlDatabaseError>() => {
            // As below: no resources, a time limit, the server or its session ended, and tables, a database or rights that
            // somebody took away.
            matches!(
                mysql.number(),
                1021 | 1030
                    | 1040
                    | 1044
                    | 1049
                    | 1053
                    | 1114
                    | 1142
                    | 1143
                    | 1146
                    | 1203
                    | 1205
                    | 1226
                    | 1317
                    | 1927
                    | 1969
                    | 3024
                    | 4031
            )
        }
        sqlx::Error::Database(database) => {
            let code = database.code().unwrap_or_default().into_owned();
            // Broken connection, no resources, operator intervention (which a statement's time limit is), system error,
            // a schema that somebody took away, no more rights.
            ["08", "53", "57", "58"].iter().any(|class| code.starts_with(class))
                || ["3F000", "42P01", "42501", "55P03"].contains(&code.as_str())
        }
        _ => false,
    };
    if is_read_only(error) {
        tracing::warn!(error = chain(error), "a store's database is read-only");
        return read_only().retry_after(Duration::from_secs(30));
    }
    if is_outage {
        tracing::warn!(error = chain(error), "a store's database failed");
        return database_unavailable().retry_after(Duration::from_secs(2));
    }
    tracing::error!(error = chain(error), "a statement in a store's database failed");
    Problem::internal()
}

/// As [`from_db`], for the owner: what ails the database is theirs to mend.
pub fn from_db_for_owner(error: &sqlx::Error) -> Problem {
    if !is_read_only(error) {
        return from_db(error);
    }
    tracing::warn!(error = chain(error), "a store's database is read-only");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store-read-only", "The store's database is read-only")
        .detail("Nothing can be changed in it. POST /api/stores/{id}/database/test says why, and what helps.")
        .retry_after(Duration::from_secs(30))
}

fn is_read_only(error: &sqlx::Error) -> bool {
    let Some(said) = error.as_database_error() else { return false };
    match said.try_downcast_ref::<MySqlDatabaseError>() {
        Some(said) => matches!(said.number(), 1290 | 1792 | 1836),
        None => said.code().as_deref() == Some("25006"),
    }
}

fn invalid(errors: Vec<FieldError>) -> Problem {
    errors
        .into_iter()
        .fold(Problem::invalid(), |problem, error| problem.field(pointer(&error.field), error.code, error.message))
}

/// `variants[1].priceMinor` as a JSON pointer.
fn pointer(field: &str) -> String {
    let parts = field.split(['.', '[', ']']).filter(|part| !part.is_empty());
    parts.fold(String::new(), |pointer, part| pointer + "/" + &part.replace('~', "~0").replace('/', "~1"))
}

/// Settings were not read or written.
pub fn from_settings(error: SettingsError) -> Problem {
    match error {
        SettingsError::Invalid(errors) => invalid(errors),
        SettingsError::CurrencyInUse { current } => Problem::new(
            StatusCode::CONFLICT,
            "currency-in-use",
            "The currency cannot change while products have prices",
        )
        .detail(format!("Prices are kept in {current}. A store's currency is chosen before its first product.")),
        SettingsError::Incomplete => {
            tracing::error!("a store's settings are incomplete");
            Problem::internal()
        }
        SettingsError::Db(error) => from_db(&error),
    }
}

/// The catalogue was not read.
pub fn from_catalog(error: CatalogError) -> Problem {
    match error {
        CatalogError::Cursor(_) => invalid_cursor(),
        CatalogError::Invalid(errors) => invalid(errors),
        CatalogError::Db(error) => from_db(&error),
        other => {
            tracing::error!(error = chain(&other), "the catalogue could not be read");
            Problem::internal()
        }
    }
}

fn out_of_stock(variant: Option<VariantId>, available: i64) -> Problem {
    let detail =
        if available > 0 { format!("{available} are available. Ask for fewer.") } else { "It is sold out.".to_owned() };
    let problem = Problem::new(StatusCode::CONFLICT, "out-of-stock", "There are fewer than asked for")
        .detail(detail)
        .member("available", available);
    match variant {
        Some(variant) => problem.member("variantId", variant.to_string()),
        None => problem,
    }
}

/// A cart was not read or changed.
pub fn from_cart(error: CartError) -> Problem {
    match error {
        CartError::NotFound | CartError::LineNotFound => Problem::not_found(),
        CartError::Completed => Problem::new(StatusCode::CONFLICT, "cart-completed", "The cart has become an order")
            .detail("Make a new cart."),
        CartError::Stale { version } => {
            Problem::new(StatusCode::PRECONDITION_FAILED, "cart-changed", "The cart was changed since you read it")
                .detail("Read it again, then repeat the change.")
                .member("version", version)
        }
        CartError::VariantUnavailable => Problem::invalid().field("/variantId", "unavailable", "is no variant on sale"),
        CartError::OutOfStock { available } => out_of_stock(None, available),
        CartError::Quantity => Problem::invalid().field("/quantity", "range", "must be 1 to 999"),
        CartError::TooManyLines => {
            Problem::new(StatusCode::CONFLICT, "cart-full", "The cart has as many lines as it may")
                .detail("At most 100.")
        }
        CartError::TotalTooLarge => Problem::new(StatusCode::CONFLICT, "total-too-large", "The total is too large"),
        CartError::Invalid(errors) => invalid(errors),
        CartError::Settings(error) => from_settings(error),
        CartError::Db(error) => from_db(&error),
    }
}

/// No order was made.
pub fn from_checkout(error: CheckoutError) -> Problem {
    match error {
        CheckoutError::CartNotFound => Problem::not_found(),
        CheckoutError::CartCompleted { order } => {
            Problem::new(StatusCode::CONFLICT, "cart-completed", "The cart has become an order")
                .detail("It was made with another Idempotency-Key.")
                .member("orderId", order.to_string())
        }
        CheckoutError::CartEmpty => {
            Problem::new(StatusCode::CONFLICT, "cart-empty", "The cart is empty").detail("Add something first.")
        }
        CheckoutError::KeyMalformed => Problem::new(
            StatusCode::BAD_REQUEST,
            "invalid-idempotency-key",
            "The Idempotency-Key is not valid",
        )
        .field("Idempotency-Key", "invalid", "use 1 to 200 visible ASCII characters"),
        CheckoutError::KeyReused => crate::idempotency::reused(),
        CheckoutError::VariantUnavailable { variant } => {
            Problem::new(StatusCode::CONFLICT, "variant-unavailable", "Something in the cart is no longer sold")
                .detail("Remove its line.")
                .member("variantId", variant.to_string())
        }
        CheckoutError::OutOfStock { variant, available } => out_of_stock(Some(variant), available),
        CheckoutError::PriceChanged { total_minor } => {
            Problem::new(StatusCode::CONFLICT, "price-changed", "The total is another than expected")
                .detail("Show the shopper the new total, then ask again.")
                .member("totalMinor", total_minor)
        }
        CheckoutError::PaymentMethod => {
            Problem::invalid().field("/paymentMethod", "unavailable", "is not offered by the store")
        }
        CheckoutError::TotalTooLarge => Problem::new(StatusCode::CONFLICT, "total-too-large", "The total is too large"),
        CheckoutError::Invalid(errors) => invalid(errors),
        CheckoutError::Contended => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store-busy", "Too many checkouts at this moment")
                .retry_after(Duration::from_secs(1))
        }
        CheckoutError::Settings(error) => from_settings(error),
        CheckoutError::Lease(error) => from_lease(error),
        CheckoutError::Db(error) => from_db(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::pointer;

    #[test]
    fn fields_become_json_pointers() {
        assert_eq!(pointer("variants[1].priceMinor"), "/variants/1/priceMinor");
        assert_eq!(pointer("email"), "/email");
        assert_eq!(pointer("a/b"), "/a~1b");
    }
}
