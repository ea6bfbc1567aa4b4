//! The copy of what the store may still spend, for whoever looks into its database. It is only ever written: nobody here reads
//! it to decide anything, and what the owner of the database makes of it changes nothing elsewhere. It stays for a day at most:
//! then at the latest the copy is written again.

use chrono::{DateTime, NaiveDate, Utc};
use sea_query::{Expr, ExprTrait as _, Query, UpdateStatement};
use sqlx::error::DatabaseError;
use tenancy::Connection;

use crate::sql;
use crate::stored::stored_enum;

/// The version of the schema from which on the copy is there.
pub const SINCE_VERSION: i64 = 20_261_121_000_029;

stored_enum! {
    /// Whether the store may spend.
    #[derive(sqlx::Type)]
    #[sqlx(type_name = "text", rename_all = "snake_case")]
    CreditState {
        /// It may: as much as is said, or as its organization has.
        Open = "open",
        /// It may, but less than what is left of its budget.
        Limited = "limited",
        /// It may not.
        Ended = "ended",
    }
}

/// What a store may still spend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreditCopy {
    /// Whether it may spend.
    pub state: CreditState,
    /// What is left of its budget, where that may be told.
    pub spendable: Option<i64>,
    /// The first day of the month that this holds for.
    pub month: NaiveDate,
    /// When it was true.
    pub as_of: DateTime<Utc>,
    /// When it is written.
    pub copied_at: DateTime<Utc>,
}

/// The moment of a copy that was there, to name it by. As text: its owner may have written what is no moment of ours, such as
/// infinity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundCopy(String);

/// Writes the copy unless the one that is there is of the same moment or a later one, which is returned then.
///
/// # Errors
/// What the server or the connection says.
pub async fn credit_copy_write(conn: &mut Connection, copy: &CreditCopy) -> Result<Option<FoundCopy>, sqlx::Error> {
    let update = update(copy).and_where(Expr::col("as_of").lt(copy.as_of)).take();
    if sql::run(conn, &update).await? == 1 {
        return Ok(None);
    }
    if let Some(found) = found(conn).await? {
        return Ok(Some(found));
    }
    let insert = Query::insert()
        .into_table("credit_copy")
        .columns(["singleton", "state", "spendable", "month", "as_of", "copied_at"])
        .values_panic([
            1i16.into(),
            copy.state.as_str().into(),
            copy.spendable.into(),
            copy.month.into(),
            copy.as_of.into(),
            copy.copied_at.into(),
        ])
        .take();
    match sql::run(conn, &insert).await {
        Ok(_) => Ok(None),
        // Somebody wrote the first one in between.
        Err(error) if error.as_database_error().is_some_and(DatabaseError::is_unique_violation) => {
            Ok(Some(found(conn).await?.ok_or(sqlx::Error::RowNotFound)?))
        }
        Err(error) => Err(error),
    }
}

async fn found(conn: &mut Connection) -> Result<Option<FoundCopy>, sqlx::Error> {
    let select = Query::select().expr(sql::as_text(conn.engine(), "as_of")).from("credit_copy").take();
    let found: Option<(String,)> = sql::optional(conn, &select).await?;
    Ok(found.map(|(found,)| FoundCopy(found)))
}

/// Writes the copy over one that was found, for who knows that nobody wrote a newer one; false when another is there now.
///
/// # Errors
/// What the server or the connection says.
pub async fn credit_copy_replace(
    conn: &mut Connection,
    copy: &CreditCopy,
    found: &FoundCopy,
) -> Result<bool, sqlx::Error> {
    let update = update(copy).and_where(sql::as_text(conn.engine(), "as_of").eq(found.0.as_str())).take();
    Ok(sql::run(conn, &update).await? == 1)
}

fn update(copy: &CreditCopy) -> UpdateStatement {
    Query::update()
        .table("credit_copy")
        .value("state", copy.state.as_str())
        .value("spendable", copy.spendable)
        .value("month", copy.month)
        .value("as_of", copy.as_of)
        .value("copied_at", copy.copied_at)
        .take()
}
