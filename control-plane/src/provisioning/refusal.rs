//! What servers and poolers mean when they refuse a connection, in words for whoever wants to connect, and with the statement
//! that helps. One place, so that the doctor, a provisioning run and new credentials say the same.

use kernel::Engine;
use tenancy::{Cause, ConnectError, Particular};

use super::remedy::{self, ANY_HOST, Guest};
use super::step_error::{OURS, transaction_pooler};

/// A refusal, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: &'static str,
    pub(super) what: &'static str,
    pub(super) advice: &'static str,
    pub(super) sql: Option<String>,
}

impl Refusal {
    fn sql(self, sql: impl Into<String>) -> Self {
        Self { sql: Some(sql.into()), ..self }
    }
}

const fn refusal(code: &'static str, what: &'static str, advice: &'static str) -> Refusal {
    Refusal { code, what, advice, sql: None }
}

const BY_ADMINISTRATOR: &str = "Have an administrator of the database run the statement.";
/// The server did not say which of its accounts it took the login for.
const ANY_ACCOUNT: &str = "Have an administrator of the database run the statement; when the login is for another host than %, \
                           with that one.";

/// What a refusal means to whoever knocks. The server's own code says more than the kind of trouble that it belongs to; of a
/// pooler's code, which follows the SQLSTATE (`XX000 ENOTFOUND`), the pooler's part counts.
pub(super) fn of(guest: &Guest<'_>, error: &ConnectError) -> Refusal {
    if error.cause == Cause::WrongPassword
        && !guest.has_password
        && matches!(error.code.as_deref(), Some("1045" | "28P01"))
    {
        return refusal(
            "no-password",
            "No password was given, and the server does not let this login in without one.",
            "Give the login's password: in a connection string it stands between : and @ behind the user.",
        );
    }
    let by_code = error.code.as_deref().and_then(|code| match guest.engine {
        Engine::Mysql => of_mysql(guest, code, error.particular.as_ref()),
        _ => match code.split_once(' ') {
            Some((_, name)) => Some(of_supavisor(name)),
            None => of_postgres(guest, code, error.particular.as_ref()),
        },
    });
    by_code.unwrap_or_else(|| of_cause(guest.engine, error.cause))
}

/// What a kind of trouble means, when nothing more is known.
pub(super) fn of_cause(engine: Engine, cause: Cause) -> Refusal {
    match cause {
        Cause::Refused => refusal(
            "refused",
            "Nothing listens at this host and port.",
            "Check host and port, and that the server listens on a public address.",
        ),
        Cause::Unreachable => refusal(
            "unreachable",
            "The server cannot be reached.",
            "Check the host's name, and that a firewall lets us in.",
        ),
        Cause::PrivateAddress => refusal(
            "private-address",
            "The host is at a private, loopback, link-local or other special address that this installation does not connect to.",
            "Give the database's own address; a public one is always connected to.",
        ),
        Cause::Timeout => {
            refusal("timeout", "The server did not answer in time.", "Check that a firewall lets us in, then retry.")
        }
        Cause::WrongPassword => refusal(
            "wrong-password",
            "The server refused the user or the password.",
            "Connect again with the right ones.",
        ),
        Cause::Forbidden => refusal(
            "forbidden",
            "This login may not enter this database.",
            "Let it in; the connection's test tells the statement for it.",
        ),
        Cause::MissingDatabase => refusal(
            "missing-database",
            "The server has no database of this name.",
            "Create it, or connect again with the right name.",
        ),
        Cause::Tls => refusal(
            "tls",
            "TLS could not be agreed on, or the certificate was not accepted.",
            "Check the certificate's name and date; give its CA, or another TLS mode.",
        ),
        Cause::TooManyConnections => refusal(
            "too-many-connections",
            "The server has no connection left.",
            "Raise its limit or close others, then retry.",
        ),
        Cause::NotReady => {
            refusal("not-ready", "The server is starting, stopping or recovering.", "Wait for it, then retry.")
        }
        Cause::TransactionPooler => {
            let (code, what, advice) = transaction_pooler();
            refusal(code, what, advice)
        }
        Cause::Sealed => refusal("sealed", "The stored credential does not open.", OURS),
        Cause::Protocol => {
            let what = match engine {
                Engine::Mysql => "What answered is no MySQL or MariaDB that we can talk to.",
                _ => "What answered is no PostgreSQL that we can talk to.",
            };
            refusal("protocol", what, "Check host, port and engine.")
        }
    }
}

fn of_postgres(guest: &Guest<'_>, code: &str, particular: Option<&Particular>) -> Option<Refusal> {
    Some(match code {
        "28000" if particular == Some(&Particular::NoLogin) => refusal(
            "login-refused",
            "The server has no such login, or it may not log in.",
            "Check the user's name; when it is right, have an administrator of the database run the statement.",
        )
        .sql(guest.let_log_in()),
        "28000" => refusal(
            "login-refused",
            "The server does not let this login in from here, whatever its password.",
            if guest.is_encrypted {
                "Check the user's name, and that pg_hba.conf has a line for our address, this user and this database."
            } else {
                "Ask for TLS (sslmode=require, or verify-full with the server's CA): we came without it, and pg_hba.conf may let \
                 nobody in so. Check also the user's name, and that pg_hba.conf has a line for our address, this user and this \
                 database."
            },
        ),
        "28P01" => refusal(
            "wrong-password",
            "The server refused the user or the password.",
            "Connect again with the right ones. When they are: a login that has expired is refused in the same words; the statement \
             shows whether it has, or is there at all.",
        )
        .sql(guest.show_login()),
        "42501" => refusal("forbidden", "This login may not enter this database.", BY_ADMINISTRATOR).sql(guest.let_in(ANY_HOST)),
        "3D000" => refusal(
            "missing-database",
            "The server has no database of this name.",
            "Create it with the statement, or connect again with the right name.",
        )
        .sql(guest.create(ANY_HOST)),
        "55000" => refusal(
            "database-closed",
            "The database takes no connections: it is set so, or its removal was broken off.",
            "Use another database, or have an administrator let this one take connections with the statement.",
        )
        .sql(guest.open_database()),
        "53300" => match particular {
            Some(Particular::LoginLimit) => refusal(
                "login-connection-limit",
                "The login may have no more connections: it has a limit of its own, which is reached, or is 0.",
                "Close connections of this login, or have an administrator take the limit off with the statement.",
            )
            .sql(guest.unlimit_login(ANY_HOST)),
            Some(Particular::DatabaseLimit) => refusal(
                "database-connection-limit",
                "The database may have no more connections: it has a limit of its own, which is reached, or is 0.",
                "Close connections to this database, or have an administrator take the limit off with the statement.",
            )
            .sql(guest.unlimit_database()),
            _ => refusal(
                "too-many-connections",
                "The server has no connection left for anybody.",
                "The statement shows who has them: close some, or raise max_connections in postgresql.conf and restart the \
                 server, then retry.",
            )
            .sql(remedy::WHO_IS_CONNECTED),
        },
        "08P01" => of_pgbouncer(particular),
        "XX000" => refusal(
            "server-error",
            "The server failed while it let us in.",
            "Look into the server's log. At Supabase: check that the project is not paused, and copy the string anew.",
        ),
        _ => return None,
    })
}

fn of_mysql(guest: &Guest<'_>, code: &str, particular: Option<&Particular>) -> Option<Refusal> {
    let (host, by_administrator) = match particular {
        Some(Particular::AccountHost(host)) => (host.as_str(), BY_ADMINISTRATOR),
        _ => (ANY_HOST, ANY_ACCOUNT),
    };
    Some(match code {
        "1044" => refusal(
            "forbidden",
            "This login may not enter this database, or there is none of this name: the server does not tell which.",
            match particular {
                Some(Particular::AccountHost(_)) => {
                    "Check the database's name; then have an administrator of the database run the statements."
                }
                _ => {
                    "Check the database's name; then have an administrator of the database run the statements, and when the \
                     login is for another host than %, with that one."
                }
            },
        )
        .sql(guest.create(host)),
        "1049" => refusal(
            "missing-database",
            "The server has no database of this name.",
            match particular {
                Some(Particular::AccountHost(_)) => "Create it with the statements, or connect again with the right name.",
                _ => {
                    "Create it with the statements, when the login is for another host than % with that one; or connect again \
                     with the right name."
                }
            },
        )
        .sql(guest.create(host)),
        "1040" => refusal(
            "too-many-connections",
            "The server has no connection left for anybody.",
            "Close others, or have an administrator raise the limit with the statement, and max_connections in the server's \
             configuration as well; then retry.",
        )
        .sql(remedy::MORE_CONNECTIONS),
        "1130" => refusal(
            "host-not-allowed",
            "The server lets nobody in from our address.",
            "Make the login one for any host: an administrator runs the statement, then the one that it shows; it keeps its \
             password and rights. And let our address through the firewall.",
        )
        .sql(guest.rename_for_any_host()),
        "1129" => refusal(
            "host-blocked",
            "The server has blocked our address after too many broken connections.",
            "Let it back in: FLUSH HOSTS; (TRUNCATE TABLE performance_schema.host_cache; in MySQL 8).",
        ),
        "1203" => refusal(
            "login-connection-limit",
            "The login has as many connections as the server lets any login have.",
            "Close others, or have an administrator take the limit off with the statement, and max_user_connections in the \
             server's configuration as well.",
        )
        .sql(remedy::UNLIMIT_LOGINS),
        "1226" => refusal(
            "login-connection-limit",
            "The login has used up what it may have: connections at once, or connections, queries or changes in an hour.",
            by_administrator,
        )
        .sql(guest.unlimit_login(host)),
        // Many things have this one number, and the server tells nobody which.
        "1045" => refusal(
            "wrong-password",
            "The server refused the user or the password.",
            if guest.is_encrypted {
                "Connect again with the right ones. When they are: the login may not be one for our address, or another one of this \
                 name is, or one without a name; the statement shows an administrator who is let in from where."
            } else {
                "Connect again with the right ones. When they are: the login may be one with TLS only (ask for it: \
                 ssl-mode=REQUIRED), or not one for our address, or another one of this name is, or one without a name; the \
                 statement shows an administrator who is let in from where, and with what."
            },
        )
        .sql(guest.show_accounts()),
        "1698" => refusal(
            "login-refused",
            "This login gets in without a password, from the server's own machine only; or there is none of this name.",
            "Check the user's name, and use a login that has a password; create one if there is none.",
        ),
        "1820" | "1862" => refusal(
            "password-expired",
            "The login's password has expired.",
            "Give the login a new one (ALTER USER ... IDENTIFIED BY), then connect with that.",
        ),
        "3118" | "4151" => refusal("account-locked", "The login is locked.", by_administrator).sql(guest.unlock(host)),
        "3159" => {
            refusal("tls-required", "The server takes connections with TLS only.", "Ask for TLS: ssl-mode=REQUIRED.")
        }
        _ => return None,
    })
}

/// PgBouncer has one code for everything.
fn of_pgbouncer(particular: Option<&Particular>) -> Refusal {
    match particular {
        Some(Particular::PoolerLogin) => refusal(
            "wrong-password",
            "The pooler before the database refused the user or the password.",
            "Connect again with the right ones; when they are, have the pooler learn them (PgBouncer: auth_file or auth_query, \
             then RELOAD).",
        ),
        Some(Particular::PoolerDatabase) => refusal(
            "missing-database",
            "The pooler before the database knows no database of this name.",
            "Check the name as the pooler calls it, which need not be the server's; or add it there (PgBouncer: [databases], then \
             RELOAD).",
        ),
        Some(Particular::PoolerFull) => refusal(
            "too-many-connections",
            "The pooler before the database has no place left.",
            "Close other clients, or raise its limits (PgBouncer: max_client_conn, default_pool_size), then retry.",
        ),
        Some(Particular::PoolerServer) => refusal(
            "pooler-server",
            "The pooler before the database could not get into it.",
            "Look into the pooler's log: host, user and password that it uses itself; then retry.",
        ),
        _ => refusal(
            "pooler-refused",
            "A pooler stands before the database and did not let us through.",
            "Check database and user as the pooler knows them, and its limits; or connect to the server itself.",
        ),
    }
}

/// The names that Supabase's pooler, Supavisor, gives to its errors.
fn of_supavisor(name: &str) -> Refusal {
    match name {
        "ENOTFOUND" | "ETENANTNOTFOUND" | "ENOIDENTIFIER" => refusal(
            "unknown-project",
            "Supabase's pooler knows no such project or user at this host.",
            "Copy the Session pooler string anew (Connect, Session pooler): its host is not the same for every project of a \
             region, its user is postgres, a dot and the project, and a paused project has to be resumed first.",
        ),
        "EMAXCONNSESSION" => refusal(
            "too-many-connections",
            "Supabase's pooler has no session left: in session mode there are as many as its pool is large.",
            "Raise the pool size (Database, Settings), close other clients, or use the direct host.",
        ),
        "EMAXCLIENTCONN" | "EMAXCONN" => refusal(
            "too-many-connections",
            "Supabase's pooler has as many clients as it may have.",
            "Close other clients, or choose a larger compute size.",
        ),
        "ECHECKOUTTIMEOUT" => refusal(
            "too-many-connections",
            "Supabase's pooler waited in vain for a connection of its own to the database.",
            "Look for slow queries and open transactions in the project, or raise the pool size, then try again.",
        ),
        "EADDRNOTALLOWED" => refusal(
            "host-not-allowed",
            "The project's network restrictions do not let our address in.",
            "Add our address to them (Database, Settings, Network restrictions).",
        ),
        "ESSLREQUIRED" => refusal(
            "tls-required",
            "The project takes connections with TLS only.",
            "Ask for TLS: sslmode=require, or verify-full with the project's CA.",
        ),
        "EWRONGPASSWORD" | "EAUTHQUERY" => refusal(
            "wrong-password",
            "Supabase's pooler refused the user or the password.",
            "Connect again with the right ones; the database's password can be reset (Database, Settings).",
        ),
        "ECIRCUITBREAKER" => refusal(
            "too-many-failures",
            "Supabase's pooler lets nobody try for now, after too many wrong passwords or failed connections.",
            "Wait some minutes without trying; then connect once, with the right password.",
        ),
        "EBANNED" => refusal(
            "project-banned",
            "Supabase has closed this project to connections.",
            "Look into the project's dashboard, or ask Supabase.",
        ),
        "EDBHANDLEREXITED" => refusal(
            "not-ready",
            "The database closed the connection to Supabase's pooler.",
            "Check that the project runs, then try again.",
        ),
        _ => refusal(
            "pooler-refused",
            "Supabase's pooler did not let us through.",
            "Look the pooler's code up at Supabase, and check that the project runs.",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::{Refusal, of};
    use crate::provisioning::remedy::Guest;
    use kernel::Engine;
    use tenancy::{Cause, ConnectError, Particular};

    fn told(engine: Engine, code: &str, particular: Option<Particular>) -> Refusal {
        let guest = Guest { engine, database: "shop", login: "ada", has_password: true, is_encrypted: false };
        let code = Some(code.to_owned());
        of(&guest, &ConnectError { code, particular, ..ConnectError::new(Cause::WrongPassword) })
    }

    #[test]
    fn a_poolers_code_counts_for_more_than_the_sqlstate_that_it_comes_with() {
        let code = |engine, code| told(engine, code, None).code;
        assert_eq!(code(Engine::Postgresql, "XX000 ENOTFOUND"), "unknown-project");
        assert_eq!(code(Engine::Postgresql, "XX000 ENEW"), "pooler-refused");
        assert_eq!(code(Engine::Postgresql, "XX000"), "server-error");
        // What is missing there is no database.
        assert_eq!(told(Engine::Postgresql, "3D000 ENOTFOUND", None).sql, None);
        // The kind of trouble says it all.
        assert_eq!(code(Engine::Postgresql, "28P01"), "wrong-password");
        assert_eq!(code(Engine::Mysql, "1045"), "wrong-password");
        // The numbers of one engine mean nothing to the other.
        assert_eq!(code(Engine::Mysql, "1130"), "host-not-allowed");
        assert_eq!(code(Engine::Postgresql, "1130"), "wrong-password");
    }

    #[test]
    fn what_pgbouncer_means_counts_for_more_than_its_one_code() {
        for (particular, code) in [
            (Some(Particular::PoolerLogin), "wrong-password"),
            (Some(Particular::PoolerDatabase), "missing-database"),
            (Some(Particular::PoolerFull), "too-many-connections"),
            (Some(Particular::PoolerServer), "pooler-server"),
            (None, "pooler-refused"),
        ] {
            let refusal = told(Engine::Postgresql, "08P01", particular);
            assert_eq!((refusal.code, refusal.sql), (code, None));
        }
    }

    #[test]
    fn the_account_is_the_servers_word_where_there_is_one() {
        let sql = |particular| told(Engine::Mysql, "1044", particular).sql.unwrap_or_default();
        assert!(sql(None).ends_with("TO 'ada'@'%';"));
        assert!(sql(Some(Particular::AccountHost("10.0.0.%".to_owned()))).ends_with("TO 'ada'@'10.0.0.%';"));
        assert!(told(Engine::Mysql, "1226", None).advice.contains("another host"));
    }

    #[test]
    fn every_refusal_says_what_and_what_to_do() {
        let postgres = ["28000", "42501", "3D000", "55000", "53300", "08P01", "XX000"];
        let poolers = ["ENOTFOUND", "EMAXCONNSESSION", "EMAXCLIENTCONN", "ECHECKOUTTIMEOUT", "EADDRNOTALLOWED"];
        let more = ["ESSLREQUIRED", "EWRONGPASSWORD", "ECIRCUITBREAKER", "EBANNED", "EDBHANDLEREXITED", "EOTHER"];
        let mysql =
            ["1040", "1044", "1049", "1129", "1130", "1203", "1226", "1698", "1820", "1862", "3118", "3159", "4151"];
        let poolers = poolers.iter().chain(&more).map(|name| (Engine::Postgresql, format!("XX000 {name}")));
        let plain = postgres.iter().map(|code| (Engine::Postgresql, (*code).to_owned()));
        for (engine, code) in plain.chain(poolers).chain(mysql.iter().map(|code| (Engine::Mysql, (*code).to_owned()))) {
            let refusal = told(engine, &code, None);
            assert!(refusal.what.ends_with('.') && refusal.advice.len() > 10, "{code}: {refusal:?}");
            // What was typed is put into the statement, never left to whoever copies it.
            let words = format!("{} {} {:?}", refusal.what, refusal.advice, refusal.sql);
            assert!(!words.contains('<') && !words.contains("IDENTIFIED BY '"), "{code}: {refusal:?}");
        }
    }
}
