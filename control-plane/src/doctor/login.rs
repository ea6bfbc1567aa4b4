//! The line of the login, and what all lines need that speak of a database and a login by their names.

use std::net::SocketAddr;
use std::time::Duration;

use kernel::Engine;
use tenancy::{Cause, Credential, Session};
use tokio::time::timeout;

use super::report::{Note, Outcome};
use crate::provisioning::StepError;

const GOOD_BYE: Duration = Duration::from_secs(1);

/// Logs in, at an address that was looked at.
pub(super) async fn enter(credential: &Credential, addresses: &[SocketAddr], limit: Duration) -> Outcome<Session> {
    let Credential { engine, database, username, .. } = credential;
    match credential.connect_at(addresses, limit).await {
        Ok(session) => Ok((Note::passed(format!("{username} is let into the database {database}.")), session)),
        Err(error) => {
            let (code, cause) = (error.code.clone(), error.cause);
            let note = Note::from(StepError::connecting(*engine, error)).server_code(code);
            // A pooler's words for what is missing are about something else.
            let is_servers_own = note.server_code.as_ref().is_some_and(|code| !code.contains(' '));
            Err(match (cause, is_servers_own) {
                (Cause::Forbidden, true) if note.code == Some("forbidden") => {
                    note.sql(let_in(*engine, database, username))
                }
                (Cause::MissingDatabase, true) => note.sql(create(*engine, database, username)),
                _ => note,
            })
        }
    }
}

/// Says good-bye, whatever became of the session.
pub(super) async fn leave(session: Session) {
    match timeout(GOOD_BYE, session.close()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(error = %error, "closing a tested connection failed"),
        Err(_) => tracing::debug!("closing a tested connection took too long"),
    }
}

/// What lets a login into a database.
fn let_in(engine: Engine, database: &str, login: &str) -> String {
    match engine {
        Engine::Mysql => grant_all(database, &account(login, "%")),
        _ => format!("GRANT CONNECT ON DATABASE {} TO {};", pg_name(database), pg_name(login)),
    }
}

fn create(engine: Engine, database: &str, login: &str) -> String {
    match engine {
        Engine::Mysql => {
            let made = format!("CREATE DATABASE {} CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;", mysql_name(database));
            format!("{made}\n{}", grant_all(database, &account(login, "%")))
        }
        _ => format!("CREATE DATABASE {} OWNER {};", pg_name(database), pg_name(login)),
    }
}

fn grant_all(database: &str, account: &str) -> String {
    format!("GRANT ALL PRIVILEGES ON {}.* TO {account};", mysql_pattern(database))
}

/// A name as PostgreSQL quotes it.
pub(super) fn pg_name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A name as MySQL quotes it.
fn mysql_name(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// A database's name as MySQL's grants take it, where an underscore or a percent sign stands for others.
pub(super) fn mysql_pattern(name: &str) -> String {
    mysql_name(&name.replace('\\', "\\\\").replace('_', "\\_").replace('%', "\\%"))
}

/// A login as MySQL's grants take it.
pub(super) fn account(user: &str, host: &str) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"));
    format!("{}@{}", quoted(user), quoted(host))
}

#[cfg(test)]
mod tests {
    use super::{account, create, let_in};
    use kernel::Engine;

    #[test]
    fn statements_hold_whatever_names_there_are() {
        assert_eq!(
            let_in(Engine::Postgresql, "the \"shop\"; x", "ada's"),
            "GRANT CONNECT ON DATABASE \"the \"\"shop\"\"; x\" TO \"ada's\";"
        );
        assert_eq!(
            let_in(Engine::Mysql, "my_shop`s", "a'da"),
            "GRANT ALL PRIVILEGES ON `my\\_shop``s`.* TO 'a''da'@'%';"
        );
        assert_eq!(create(Engine::Postgresql, "shop", "ada"), "CREATE DATABASE \"shop\" OWNER \"ada\";");
        assert!(create(Engine::Mysql, "my_shop", "ada").starts_with("CREATE DATABASE `my_shop` CHARACTER SET utf8mb4"));
        assert_eq!(account("o\\'x", "10.0.0.%"), "'o\\\\''x'@'10.0.0.%'");
    }
}
