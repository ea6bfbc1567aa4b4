//! What a string begins with, and the engine that it names.

use kernel::Engine;

use super::super::target::{TargetError, invalid};
use super::AT;

/// Databases that a store cannot live in, by the schemes that begin their strings.
const OTHERS: [(&str, &[&str]); 8] = [
    ("SQLite", &["sqlite", "sqlite3", "file", "libsql"]),
    ("SQL Server", &["sqlserver", "mssql", "jtds"]),
    ("Oracle", &["oracle"]),
    ("MongoDB", &["mongodb"]),
    ("Redis", &["redis", "rediss"]),
    ("CockroachDB", &["cockroachdb", "cockroach"]),
    ("Redshift", &["redshift"]),
    ("H2", &["h2"]),
];

/// The engine that a scheme names, also as frameworks write it (`postgresql+psycopg`, `mysql2`, `pgsql`).
pub(super) fn engine_of(scheme: &str) -> Result<Engine, TargetError> {
    let refused = |detail: &str| Err(invalid(AT, "scheme", detail));
    let scheme = scheme.to_ascii_lowercase();
    let (scheme, driver) = scheme.split_once('+').unwrap_or((&scheme, ""));
    let (scheme, way) = scheme.split_once(':').unwrap_or((scheme, ""));
    let engine = engine_named(scheme);
    match (scheme, engine) {
        ("http" | "https", _) => refused(
            "is the address of a page or an API; copy the database's connection string, which begins with postgres:// or mysql://",
        ),
        ("prisma", _) => refused("leads to Prisma's own servers; give the connection string of the database itself"),
        ("mysqlx", _) => {
            refused("is for MySQL's X protocol; write mysql:// and the port of the classic one, usually 3306")
        }
        (_, Some(_)) if driver == "srv" => {
            refused("has its host looked up by SRV records; write mysql:// and the host")
        }
        (_, Some(_)) if driver == "ssh" => refused(
            "goes through an SSH tunnel, which is not supported; give the database's own host, user and password",
        ),
        (_, Some(_)) if !way.is_empty() => {
            refused("chooses among several servers; write postgres:// or mysql:// and name one, the primary")
        }
        (_, Some(engine)) => Ok(engine),
        (other, None) => Err(of_other(other).unwrap_or_else(|| {
            invalid(AT, "scheme", "the scheme must be postgres:// or mysql://: no other database is supported")
        })),
    }
}

/// The engine that drivers, frameworks and settings call so.
pub(super) fn engine_named(name: &str) -> Option<Engine> {
    match name {
        "postgres" | "postgresql" | "postgis" | "pgsql" | "psql" | "pg" | "pdo-pgsql" | "pdo_pgsql" | "timescale" => {
            Some(Engine::Postgresql)
        }
        "mysql" | "mysql2" | "mysqli" | "mariadb" | "pdo-mysql" | "pdo_mysql" | "mysqlgis" | "trilogy" => {
            Some(Engine::Mysql)
        }
        _ => None,
    }
}

/// The refusal of a database that is known and is no store's.
pub(super) fn of_other(scheme: &str) -> Option<TargetError> {
    let scheme = scheme.to_ascii_lowercase();
    OTHERS.iter().find(|(_, schemes)| schemes.contains(&scheme.as_str())).map(|(product, _)| of_product(product))
}

pub(super) fn of_product(product: &str) -> TargetError {
    let detail =
        format!("is one of {product}; a store lives in PostgreSQL, MySQL or MariaDB: no other database is supported");
    invalid(AT, "scheme", detail)
}
