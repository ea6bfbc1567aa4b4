//! What may stand behind the `?` of a URL.

use secrecy::ExposeSecret as _;

use super::super::target::{TargetError, TargetFields, invalid};
use super::tls::{AskedTls, read_mode, read_switch};
use super::{AT, socket};

/// Parameters that we take, or refuse by their name.
const TAKEN: &[&str] = &[
    "host",
    "password",
    "socket",
    "ssl",
    "ssl-mode",
    "sslaccept",
    "sslmode",
    "tls",
    "unix_socket",
    "unixsocket",
    "user",
    "username",
    "usessl",
];

/// Parameters that say how somebody else's program should behave: nothing is lost with them.
pub(super) const OF_OTHERS: &[&str] = &[
    "allowpublickeyretrieval",
    "application_name",
    "applicationname",
    "autoreconnect",
    "channel_binding",
    "characterencoding",
    "charset",
    "client_encoding",
    "collation",
    "connect_timeout",
    "connection_limit",
    "connecttimeout",
    "encoding",
    "pgbouncer",
    "pool",
    "pool_timeout",
    "servertimezone",
    "timezone",
    "useunicode",
];

/// Parameters that the engines' own clients know and we do not take: of what else stands there, not even the name is told.
pub(super) const KNOWN: &[&str] = &[
    "allowmultiqueries",
    "currentschema",
    "database",
    "dbname",
    "fallback_application_name",
    "gssdelegation",
    "gssencmode",
    "gsslib",
    "hostaddr",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "krbsrvname",
    "load_balance_hosts",
    "options",
    "passfile",
    "port",
    "replication",
    "require_auth",
    "requirepeer",
    "requiressl",
    "schema",
    "search_path",
    "server_rsa_public_key_path",
    "service",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslca",
    "sslcert",
    "sslcertmode",
    "sslcompression",
    "sslcrl",
    "sslcrldir",
    "sslkey",
    "sslnegotiation",
    "sslpassword",
    "sslrootcert",
    "sslsni",
    "statement-cache-capacity",
    "target_session_attrs",
    "tcp_user_timeout",
];

/// Whether it is the name of a parameter, taken or not.
pub(super) fn is_name(name: &str) -> bool {
    [TAKEN, OF_OTHERS, KNOWN].iter().any(|names| names.contains(&name))
}

pub(super) fn take_parameter(
    fields: &mut TargetFields,
    asked: &mut AskedTls,
    name: &str,
    value: &str,
) -> Result<(), TargetError> {
    let name = name.to_ascii_lowercase();
    match name.as_str() {
        "sslmode" | "ssl-mode" => AskedTls::say(&mut asked.mode, read_mode(value)?)?,
        "ssl" | "usessl" | "tls" | "sslaccept" => AskedTls::say(&mut asked.switch, read_switch(value, &name)?)?,
        // As JDBC has them.
        "user" | "username" if fields.username.as_deref() == Some("") => fields.username = Some(value.to_owned()),
        "password" if fields.password.as_ref().is_some_and(|password| password.expose_secret().is_empty()) => {
            fields.password = Some(value.to_owned().into());
        }
        "user" | "username" | "password" => {
            return Err(invalid(AT, "parameter", format!("the {name} is given twice; leave the parameter out")));
        }
        "host" | "socket" | "unix_socket" | "unixsocket" if value.starts_with('/') => return Err(socket()),
        "host" if fields.host.as_deref() == Some("") => fields.host = Some(value.to_owned()),
        "host" | "socket" | "unix_socket" | "unixsocket" => {
            return Err(invalid(AT, "parameter", format!("the parameter {name} is not supported; leave it out")));
        }
        _ if OF_OTHERS.contains(&name.as_str()) => {}
        // A password with a question mark ends here, too.
        _ => {
            let detail = if KNOWN.contains(&name.as_str()) {
                format!("the parameter {name} is not supported; leave it out")
            } else {
                "what follows the ? is no parameter; a ? of the password is written %3F".to_owned()
            };
            return Err(invalid(AT, "parameter", detail));
        }
    }
    Ok(())
}
