//! What a store's schema is made of, part by part: tables, columns, indexes and constraints, the same in both engines. A copy of a
//! database may have been made by a program that leaves some of it out, and works until it is slow, or holds a thing twice.
//!
//! `parts.txt` says of each part from which version on it is there; a test holds it against the migrations. Server versions write
//! expressions differently, so checks are known by their names.

use tenancy::Session;

use super::{mysql, postgres};

/// Line by line the version that made a part, behind a dash that which took it away if one did, and the part.
pub const PARTS: &str = include_str!("parts.txt");

/// The parts of a schema at `version` that are not there, or not as they should be. Of a table that is missing, the rest is not
/// said.
///
/// # Errors
/// What the server or the connection says.
pub async fn missing_parts(session: &mut Session, version: i64) -> Result<Vec<&'static str>, sqlx::Error> {
    let there = found_parts(session).await?;
    let missing: Vec<&str> = parts_of(version).filter(|part| !there.iter().any(|found| found == part)).collect();
    let is_of_missing_table = |part: &str| {
        let table = part.split_once(" of ").and_then(|(_, rest)| rest.split([' ', ':']).next());
        table.is_some_and(|table| missing.iter().any(|other| other.strip_prefix("table ") == Some(table)))
    };
    Ok(missing.iter().copied().filter(|part| !is_of_missing_table(part)).collect())
}

/// The version that stores of the first release are at. Whatever is served has its tables, and those of later ones not for sure.
const OLDEST_SERVED: i64 = 20261121000028;

/// The tables that every store has.
pub(crate) fn oldest_tables() -> impl Iterator<Item = &'static str> {
    parts_of(OLDEST_SERVED).filter_map(|part| part.strip_prefix("table "))
}

/// The parts that are there, whoever made them.
///
/// # Errors
/// What the server or the connection says.
pub async fn found_parts(session: &mut Session) -> Result<Vec<String>, sqlx::Error> {
    match session {
        Session::Postgres(conn) => postgres::parts(conn).await,
        Session::MySql(conn) => mysql::parts(conn).await,
    }
}

/// The parts that a schema has at this version.
fn parts_of(version: i64) -> impl Iterator<Item = &'static str> {
    PARTS.lines().filter_map(move |line| {
        let (versions, part) = line.split_once(' ')?;
        let (since, until) = versions.split_once('-').unwrap_or((versions, ""));
        let is_made = since.parse::<i64>().is_ok_and(|since| since <= version);
        let is_gone = until.parse::<i64>().is_ok_and(|until| until <= version);
        (is_made && !is_gone).then_some(part)
    })
}
