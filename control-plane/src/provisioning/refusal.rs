//! What servers and poolers mean when they refuse a connection, in words for whoever wants to connect, and with the statement
//! that helps. One place, so that the doctor, a provisioning run and new credentials say the same.

use std::borrow::Cow;
use std::net::IpAddr;

use kernel::Engine;
use tenancy::{Cause, ConnectError, Particular};

use super::remedy::{self, ANY_HOST, Guest};
use super::step_error::{OURS, transaction_pooler};

/// A refusal, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: &'static str,
    pub(super) what: &'static str,
    pub(super) advice: Cow<'static, str>,
    pub(super) sql: Option<String>,
}

impl Refusal {
    fn sql(self, sql: impl Into<String>) -> Self {
        Self { sql: Some(sql.into()), ..self }
    }
}

fn refusal(code: &'static str, what: &'static str, advice: impl Into<Cow<'static, str>>) -> Refusal {
    Refusal { code, what, advice: advice.into(), sql: None }
}

/// To whoever has given a wrong user or password. Whether it is of a store that is connected already, only they know.
const RIGHT_ONES: &str = "Give the right ones; of a store that is connected already with PUT /api/stores/{id}/database/credentials, where the password alone is \
     enough.";

/// The same, and what may be wrong when they were right.
fn right_ones(more: &str) -> String {
    format!("{RIGHT_ONES} {more}")
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
            "Check that the server runs and listens on a public address, and its host and port.",
        ),
        Cause::Unreachable => refusal(
            "unreachable",
            "The server cannot be reached.",
            "Check that the server runs, the host's name, and that a firewall lets us in.",
        ),
        Cause::PrivateAddress => refusal(
            "private-address",
            "The host is at a private, loopback, link-local or other special address that this installation does not connect to.",
            "Give the database's own address; a public one is always connected to.",
        ),
        Cause::Timeout => refusal(
            "timeout",
            "The server did not answer in time.",
            "Check that it runs and is not overloaded, and that a firewall lets us in, then retry. When a pooler stands before it, \
             its log says whether it waits for the server.",
        ),
        Cause::WrongPassword => refusal("wrong-password", "The server refused the user or the password.", RIGHT_ONES),
        Cause::Forbidden => refusal(
            "forbidden",
            "This login may not enter this database.",
            "Let it in; the connection's test tells the statement for it.",
        ),
        Cause::MissingDatabase => refusal(
            "missing-database",
            "The server has no database of this name.",
            "Create it, or give the right name.",
        ),
        Cause::Tls => refusal(
            "tls",
            "TLS could not be agreed on, or the certificate was not accepted.",
            "Check the certificate's name and date; give its CA, or another TLS mode.",
        ),
        Cause::TooManyConnections => refusal(
            "too-many-connections",
            "The server, or a pooler before it, has no connection left.",
            "Raise its limit or close others, then retry.",
        ),
        Cause::NotReady => {
            refusal("not-ready", "The server is starting, stopping or recovering.", "Wait for it, then retry.")
        }
        Cause::PoolerServer => refusal(
            "pooler-server",
            "The pooler before the database cannot log in at the server.",
            "Check there the role that the pooler uses, its password and its rights, and that the server runs. The reason is in the \
             pooler's log; it tries again some seconds after it was refused.",
        ),
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
            right_ones(
                "When they are: a login that has expired is refused in the same words; the first statement shows whether it has, or \
                 is there at all, and the second ends that.",
            ),
        )
        .sql(guest.show_login()),
        "42501" => refusal("forbidden", "This login may not enter this database.", BY_ADMINISTRATOR).sql(guest.let_in(ANY_HOST)),
        "3D000" => refusal(
            "missing-database",
            "The server has no database of this name.",
            "Create it with the statement, or give the right name.",
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
        // Whoever has no right on a database of this name is told 1044.
        "1049" => refusal(
            "missing-database",
            "The server has no database of this name.",
            "Create it with the statement: the login has rights on one of this name already. Or give the right name.",
        )
        .sql(guest.create_database()),
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
            right_ones(if guest.is_encrypted {
                "When they are: the login may not be one for our address, or another one of this name is, or one without a name; \
                 the statement shows an administrator who is let in from where."
            } else {
                "When they are: the login may be one with TLS only (ask for it: ssl-mode=REQUIRED), or not one for our address, or \
                 another one of this name is, or one without a name; the statement shows an administrator who is let in from \
                 where, and with what."
            }),
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

/// What a pooler means that lets everybody in, and refuses what is asked then, because it does not get to the server.
pub(super) fn of_pooler(error: &ConnectError) -> Option<Refusal> {
    let code = error.code.as_deref()?;
    match (code.split_once(' '), &error.particular) {
        (Some((_, name)), _) => Some(of_supavisor(name)),
        (None, Some(particular)) if code == "08P01" => Some(of_pgbouncer(Some(particular))),
        _ => None,
    }
}

/// PgBouncer has one code for everything.
fn of_pgbouncer(particular: Option<&Particular>) -> Refusal {
    match particular {
        Some(Particular::PoolerLogin) => refusal(
            "wrong-password",
            "The pooler before the database refused the user or the password.",
            right_ones("When they are, have the pooler learn them (PgBouncer: auth_file or auth_query, then RELOAD)."),
        ),
        Some(Particular::PoolerDatabase) => refusal(
            "missing-database",
            "The pooler before the database knows no database of this name.",
            "Check the name as the pooler calls it, which need not be the server's; or add it there (PgBouncer: [databases], then \
             RELOAD).",
        ),
        Some(Particular::ServerDatabase) => refusal(
            "missing-database",
            "The server behind the pooler has not the database that the pooler looks for there.",
            "Create it at the server; or correct its name, here or as the pooler calls it there (PgBouncer: dbname in [databases], \
             then RELOAD).",
        ),
        Some(Particular::PoolerFull) => refusal(
            "too-many-connections",
            "The pooler before the database has no place left, or got no connection to the server in its time.",
            "Close other clients, or raise its limits (PgBouncer: max_client_conn, default_pool_size), then retry. When it is not \
             full, the server does not let it in: its log says why.",
        ),
        Some(Particular::PoolerServer) => of_cause(Engine::Postgresql, Cause::PoolerServer),
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
            right_ones("The database's password can be reset (Database, Settings)."),
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

/// What to do about a host that is found where it was copied from, and not from here.
pub fn advice_on_host(host: &str) -> Option<&'static str> {
    const INSIDE: [&str; 6] = [".internal", ".local", ".lan", ".svc", ".localdomain", ".home.arpa"];
    let host = host.trim_matches(['[', ']', '.']).to_ascii_lowercase();
    if let Ok(address) = host.parse::<IpAddr>() {
        return address.to_canonical().is_loopback().then_some(LOCALHOST);
    }
    if host == "localhost" || host.ends_with(".localhost") || host == "localhost.localdomain" {
        return Some(LOCALHOST);
    }
    let is_inside = !host.contains('.') || INSIDE.iter().any(|end| host.ends_with(end));
    is_inside.then_some(
        "This name works only inside your host's network: use the external (public) one, which its panel shows beside it.",
    )
}

const LOCALHOST: &str = "localhost is the machine of the panel or program that shows it, and here it would be ours. Ask there \
                         for the database's remote host, and allow remote access to it (in cPanel: Remote MySQL).";

#[cfg(test)]
mod tests {
    use super::{Refusal, advice_on_host, of, of_pooler};
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
            (Some(Particular::ServerDatabase), "missing-database"),
            (Some(Particular::PoolerFull), "too-many-connections"),
            (Some(Particular::PoolerServer), "pooler-server"),
            (None, "pooler-refused"),
        ] {
            let refusal = told(Engine::Postgresql, "08P01", particular);
            assert_eq!((refusal.code, refusal.sql), (code, None));
        }
    }

    #[test]
    fn a_pooler_that_refuses_after_the_login_means_the_same_as_at_it() {
        let said = |code: &str, particular| {
            let error = ConnectError { code: Some(code.to_owned()), particular, ..ConnectError::new(Cause::Protocol) };
            of_pooler(&error).map(|refusal| refusal.code)
        };
        assert_eq!(said("08P01", Some(Particular::PoolerServer)), Some("pooler-server"));
        assert_eq!(said("08P01", Some(Particular::PoolerFull)), Some("too-many-connections"));
        assert_eq!(said("XX000 ECHECKOUTTIMEOUT", None), Some("too-many-connections"));
        // PostgreSQL has this code, too, and means nothing by it that its words tell.
        assert_eq!(said("08P01", None), None);
        assert_eq!(said("53300", Some(Particular::LoginLimit)), None);
    }

    #[test]
    fn a_host_that_works_elsewhere_only_is_told_to_be_one() {
        for host in ["localhost", "LOCALHOST.", "shop.localhost", "127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            assert!(advice_on_host(host).is_some_and(|advice| advice.contains("remote host")), "{host}");
        }
        for host in ["db", "mysql.railway.internal", "x.default.svc.cluster.local", "nas.lan", "x.default.svc"] {
            assert!(advice_on_host(host).is_some_and(|advice| advice.contains("external")), "{host}");
        }
        for host in ["db.example.com", "10.0.0.1", "203.0.113.7", "local.example", "fd00::1"] {
            assert_eq!(advice_on_host(host), None, "{host}");
        }
    }

    #[test]
    fn the_account_is_the_servers_word_where_there_is_one() {
        let sql = |particular| told(Engine::Mysql, "1044", particular).sql.unwrap_or_default();
        assert!(sql(None).ends_with("TO 'ada'@'%';"));
        assert!(sql(Some(Particular::AccountHost("10.0.0.%".to_owned()))).ends_with("TO 'ada'@'10.0.0.%';"));
        assert!(told(Engine::Mysql, "1226", None).advice.contains("another host"));
        // Who is told that there is no such database has its rights on it.
        let missing = told(Engine::Mysql, "1049", None);
        assert_eq!(
            missing.sql.as_deref(),
            Some("CREATE DATABASE IF NOT EXISTS `shop` CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;")
        );
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
