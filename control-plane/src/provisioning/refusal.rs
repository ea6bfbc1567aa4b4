//! What servers and poolers mean by the codes with which they refuse a connection, in words for whoever wants to connect. One
//! table, so that the doctor, a provisioning run and new credentials say the same.

use kernel::Engine;

/// A refusal, in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: &'static str,
    pub(super) what: &'static str,
    pub(super) advice: &'static str,
}

const fn refusal(code: &'static str, what: &'static str, advice: &'static str) -> Option<Refusal> {
    Some(Refusal { code, what, advice })
}

/// What more the server's own code says than the kind of trouble that it belongs to; nothing where that says it all. Of a
/// pooler's code, which follows the SQLSTATE (`XX000 ENOTFOUND`), the pooler's part counts.
pub(super) fn of_code(engine: Engine, code: &str) -> Option<Refusal> {
    match engine {
        Engine::Mysql => of_mysql(code),
        _ => match code.split_once(' ') {
            Some((_, name)) => of_supavisor(name),
            None => of_postgres(code),
        },
    }
}

fn of_postgres(code: &str) -> Option<Refusal> {
    match code {
        "28000" => refusal(
            "login-refused",
            "The server does not let this login in from here, whatever its password.",
            "Check the user's name and that it may log in, that pg_hba.conf has a line for our address, and that this line \
             asks for no more TLS than we use.",
        ),
        "08P01" => refusal(
            "pooler-refused",
            "A pooler stands before the database and did not let us through.",
            "Check database and user as the pooler knows them, and its limits; or connect to the server itself.",
        ),
        "XX000" => refusal(
            "server-error",
            "The server failed while it let us in.",
            "Look into the server's log. At Supabase: check that the project is not paused, and copy the string anew.",
        ),
        _ => None,
    }
}

fn of_mysql(code: &str) -> Option<Refusal> {
    match code {
        "1130" => refusal(
            "host-not-allowed",
            "The server lets nobody in from our address.",
            "Make the login one for any host: CREATE USER '<login>'@'%' ...; and let our address through the firewall.",
        ),
        "1129" => refusal(
            "host-blocked",
            "The server has blocked our address after too many broken connections.",
            "Let it back in: FLUSH HOSTS; (TRUNCATE TABLE performance_schema.host_cache; in MySQL 8).",
        ),
        "1203" | "1226" => refusal(
            "too-many-connections",
            "The login has as many connections as it may have.",
            "Raise its limit: ALTER USER '<login>'@'%' WITH MAX_USER_CONNECTIONS 20; or close others.",
        ),
        "1698" => refusal(
            "login-refused",
            "This login gets in without a password, from the server's own machine only.",
            "Use a login with a password: CREATE USER '<login>'@'%' IDENTIFIED BY '...';",
        ),
        "1820" | "1862" => refusal(
            "password-expired",
            "The login's password has expired.",
            "Give it a new one: ALTER USER '<login>'@'%' IDENTIFIED BY '...'; then connect with that.",
        ),
        "3118" | "4151" => {
            refusal("account-locked", "The login is locked.", "Unlock it: ALTER USER '<login>'@'%' ACCOUNT UNLOCK;")
        }
        "3159" => {
            refusal("tls-required", "The server takes connections with TLS only.", "Ask for TLS: ssl-mode=REQUIRED.")
        }
        _ => None,
    }
}

/// The names that Supabase's pooler, Supavisor, gives to its errors.
fn of_supavisor(name: &str) -> Option<Refusal> {
    match name {
        "ENOTFOUND" | "ETENANTNOTFOUND" | "ENOIDENTIFIER" => refusal(
            "unknown-project",
            "Supabase's pooler knows no such project or user at this host.",
            "Copy the Session pooler string anew (Connect, Session pooler): its host is not the same for every project of a \
             region, its user is postgres.<project>, and a paused project has to be resumed first.",
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
    use super::of_code;
    use kernel::Engine;

    #[test]
    fn a_poolers_code_counts_for_more_than_the_sqlstate_that_it_comes_with() {
        let code = |engine, code| of_code(engine, code).map(|refusal| refusal.code);
        assert_eq!(code(Engine::Postgresql, "XX000 ENOTFOUND"), Some("unknown-project"));
        assert_eq!(code(Engine::Postgresql, "28P01 EWRONGPASSWORD"), Some("wrong-password"));
        assert_eq!(code(Engine::Postgresql, "XX000 ENEW"), Some("pooler-refused"));
        assert_eq!(code(Engine::Postgresql, "XX000"), Some("server-error"));
        // The kind of trouble says it all.
        assert_eq!(code(Engine::Postgresql, "28P01"), None);
        assert_eq!(code(Engine::Mysql, "1045"), None);
        assert_eq!(code(Engine::Mysql, "1130"), Some("host-not-allowed"));
        // The numbers of one engine mean nothing to the other.
        assert_eq!(code(Engine::Postgresql, "1130"), None);
    }

    #[test]
    fn every_refusal_says_what_and_what_to_do() {
        let postgres = ["28000", "08P01", "XX000"];
        let poolers = ["ENOTFOUND", "EMAXCONNSESSION", "EMAXCLIENTCONN", "ECHECKOUTTIMEOUT", "EADDRNOTALLOWED"];
        let more = ["ESSLREQUIRED", "EWRONGPASSWORD", "ECIRCUITBREAKER", "EBANNED", "EDBHANDLEREXITED", "EOTHER"];
        let mysql = ["1129", "1130", "1203", "1226", "1698", "1820", "1862", "3118", "3159", "4151"];
        let poolers = poolers.iter().chain(&more).map(|name| (Engine::Postgresql, format!("XX000 {name}")));
        let plain = postgres.iter().map(|code| (Engine::Postgresql, (*code).to_owned()));
        for (engine, code) in plain.chain(poolers).chain(mysql.iter().map(|code| (Engine::Mysql, (*code).to_owned()))) {
            let refusal = of_code(engine, &code).unwrap_or_else(|| panic!("{code} is not in the table"));
            assert!(refusal.what.ends_with('.') && refusal.advice.len() > 10, "{code}: {refusal:?}");
        }
    }
}
