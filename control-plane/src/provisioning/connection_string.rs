//! A connection string as owners paste it: out of a hosting panel, an `.env` file, a framework's settings.
//!
//! What is understood is taken, whatever it is dressed in; what is not is refused by the name of its part. Nothing of the
//! string itself is ever repeated: any part of it may be the password.

use kernel::Engine;
use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret as _, SecretString};
use tenancy::TlsMode;
use url::Url;

use super::target::{Target, TargetError, TargetFields, invalid};

pub(super) const AT: &str = "/connectionString";
const MAX_LEN: usize = 4096;

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
const OF_OTHERS: &[&str] = &[
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
const KNOWN: &[&str] = &[
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

impl Target {
    /// Reads `postgres://user:password@host:port/database?sslmode=…` or `mysql://…`; mode and CA may come beside it. An
    /// `engine` that is given must be the string's.
    ///
    /// # Errors
    /// [`TargetError`] naming the part that is wrong.
    pub fn from_url(
        text: &SecretString,
        engine: Option<Engine>,
        tls: Option<TlsMode>,
        ca_pem: Option<String>,
    ) -> Result<Self, TargetError> {
        let text = undress(text.expose_secret())?;
        if text.len() > MAX_LEN {
            return Err(invalid(AT, "too-long", format!("must have at most {MAX_LEN} characters")));
        }
        if text.chars().any(char::is_control) {
            return Err(invalid(AT, "malformed", "must be one line"));
        }
        let mut asked = AskedTls { mode: tls, switch: None };
        let mut fields = if is_keywords(text) { read_keywords(text, &mut asked)? } else { read_url(text, &mut asked)? };
        let spoken = fields.engine;
        if engine.is_some_and(|engine| engine != spoken) {
            return Err(invalid("/engine", "contradiction", format!("the connection string is one of {spoken}")));
        }
        (fields.tls, fields.ca_pem) = (asked.settle()?, ca_pem);
        refuse_placeholders(&fields)?;
        if fields.host.as_deref() == Some("") {
            return Err(invalid(AT, "host", "names no host"));
        }
        let mut target = Self::from_fields(fields).map_err(|error| match error {
            // That one is given beside the string.
            error @ TargetError::Invalid { pointer: "/caPem", .. } => error,
            error => error.at(AT),
        })?;
        target.is_text = true;
        Ok(target)
    }
}

/// Programs that a line of a shell begins with, when a connection is copied out of instructions.
const PROGRAMS: [&str; 8] = ["psql", "pg_dump", "pg_restore", "pgcli", "mysql", "mysqldump", "mariadb", "mycli"];

/// Takes off what a string is pasted with: `export DATABASE_URL="…";`, `DATABASE_URL: …`, `psql "…"`, `jdbc:`.
fn undress(text: &str) -> Result<&str, TargetError> {
    let mut text = text.trim();
    text = text.strip_prefix("export ").unwrap_or(text).trim_start();
    if let Some((name, value)) = text.split_once('=') {
        let name = name.trim_end();
        if matches!(name, "PGPASSWORD" | "MYSQL_PWD") {
            return Err(shell_line());
        }
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if is_name && !KEYWORDS.contains(&name) {
            text = value.trim_start();
        }
    }
    text = without_yaml_name(text);
    // There it may be the end of the password.
    if !is_keywords(text) {
        text = text.trim_end_matches([';', ',']).trim_end();
    }
    text = unquoted(text);
    if let Some((program, rest)) = text.split_once(char::is_whitespace)
        && PROGRAMS.contains(&program)
    {
        let rest = rest.trim();
        let inner =
            unquoted(rest.strip_prefix("-d ").or_else(|| rest.strip_prefix("--dbname=")).unwrap_or(rest).trim());
        let is_url = inner.contains("://") && !inner.contains(char::is_whitespace);
        if !is_url && !is_keywords(inner) {
            return Err(shell_line());
        }
        text = inner;
    }
    Ok(match text.get(..5) {
        Some(prefix) if prefix.eq_ignore_ascii_case("jdbc:") => &text[5..],
        _ => text,
    })
}

fn shell_line() -> TargetError {
    invalid(
        AT,
        "shell-line",
        "is a line for a shell whose options are not read; give only the postgres:// or mysql:// string of it, or host, port, \
         user, password and database one by one",
    )
}

fn unquoted(text: &str) -> &str {
    let inner = |quote| text.strip_prefix(quote).and_then(|text| text.strip_suffix(quote));
    ['"', '\'', '`'].into_iter().find_map(inner).map_or(text, str::trim)
}

/// What stands behind the name in a line of YAML or JSON: `DATABASE_URL: …`, `"url": "…"`.
fn without_yaml_name(text: &str) -> &str {
    let Some((name, value)) = text.split_once(':') else { return text };
    let name = unquoted(name.trim());
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    // A scheme is followed by something else.
    if is_name && value.starts_with([' ', '\t', '"', '\'']) { value.trim_start() } else { text }
}

fn read_url(text: &str, asked: &mut AskedTls) -> Result<TargetFields, TargetError> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(invalid(AT, "malformed", "expected postgres://user:password@host:5432/database, or mysql://…"));
    };
    let engine = engine_of(scheme)?;
    check_authority(rest)?;
    // Of the scheme nothing more is needed; the drivers' own would be parsed by rules of their own.
    let url = Url::parse(&format!("db://{rest}")).map_err(|error| {
        let detail = match error {
            url::ParseError::InvalidPort => "the port is no number; a / ? or # of the password is written %2F %3F %23",
            _ => "host or port cannot be read; a / ? or # of the password is written %2F %3F %23",
        };
        invalid(AT, "malformed", detail)
    })?;
    if url.fragment().is_some() {
        return Err(invalid(AT, "malformed", "a # of the password is written %23"));
    }
    let host = url.host_str().unwrap_or_default();
    let mut fields = TargetFields {
        engine,
        host: Some(decode(host.trim_start_matches('[').trim_end_matches(']'), "host")?),
        port: url.port(),
        username: Some(decode(url.username(), "user")?),
        password: Some(decode(url.password().unwrap_or_default(), "password")?.into()),
        database: Some(decode(url.path().strip_prefix('/').unwrap_or_default(), "database")?),
        tls: None,
        ca_pem: None,
    };
    check_escapes(url.query().unwrap_or_default())?;
    for (name, value) in url.query_pairs() {
        take_parameter(&mut fields, asked, &name, &value)?;
    }
    Ok(fields)
}

/// Words of which PostgreSQL's own form of a connection begins with one.
const KEYWORDS: [&str; 8] = ["host", "hostaddr", "port", "dbname", "user", "password", "sslmode", "service"];

/// Whether it is `host=… dbname=…`.
fn is_keywords(text: &str) -> bool {
    text.split_once('=').is_some_and(|(word, _)| KEYWORDS.contains(&word.trim_end()))
}

/// Reads PostgreSQL's own form: words with values, in quotes where they hold a space, a backslash before what is meant as it is.
fn read_keywords(text: &str, asked: &mut AskedTls) -> Result<TargetFields, TargetError> {
    let malformed = |detail| Err(invalid(AT, "malformed", detail));
    let mut fields = TargetFields {
        engine: Engine::Postgresql,
        host: Some(String::new()),
        port: None,
        username: Some(String::new()),
        password: Some(SecretString::default()),
        database: Some(String::new()),
        tls: None,
        ca_pem: None,
    };
    let mut seen = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let Some((word, value)) = rest.split_once('=') else {
            return malformed("what stands at the end has no =; a value with a space in it is written 'in quotes'");
        };
        let word = word.trim_end();
        if word.contains(char::is_whitespace) {
            return malformed("a value with a space in it is written 'in quotes'");
        }
        let Some((value, left)) = keyword_value(value.trim_start()) else {
            return malformed("a value is in quotes that do not end; a ' of the password is written \\'");
        };
        rest = left.trim_start();
        if seen.contains(&word) {
            return malformed("says one of its words twice");
        }
        seen.push(word);
        match word {
            "host" if value.contains(',') => return Err(several_hosts()),
            "host" if value.starts_with(['/', '@']) => return Err(socket()),
            "host" => fields.host = Some(value),
            "port" => match value.parse() {
                Ok(port) => fields.port = Some(port),
                Err(_) => return malformed("the port is no number"),
            },
            "user" => fields.username = Some(value),
            "password" => fields.password = Some(value.into()),
            "dbname" => fields.database = Some(value),
            "sslmode" => AskedTls::say(&mut asked.mode, read_mode(&value)?)?,
            _ if OF_OTHERS.contains(&word) => {}
            _ if KNOWN.contains(&word) => {
                return Err(invalid(AT, "parameter", format!("the parameter {word} is not supported; leave it out")));
            }
            // Part of a password without quotes, for all that is known.
            _ => {
                return Err(invalid(
                    AT,
                    "parameter",
                    "what stands before an = is no word of a connection; a value with a \
                     space in it is written 'in quotes'",
                ));
            }
        }
    }
    Ok(fields)
}

/// The value that a text begins with, and what follows it; nothing when its quotes do not end.
fn keyword_value(text: &str) -> Option<(String, &str)> {
    let (is_quoted, inner) = match text.strip_prefix('\'') {
        Some(inner) => (true, inner),
        None => (false, text),
    };
    let mut value = String::new();
    let mut letters = inner.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => value.extend(letters.next().map(|(_, letter)| letter)),
            '\'' if is_quoted => return Some((value, &inner[at + 1..])),
            letter if !is_quoted && letter.is_whitespace() => return Some((value, &inner[at..])),
            letter => value.push(letter),
        }
    }
    (!is_quoted).then_some((value, ""))
}

/// The engine that a scheme names, also as frameworks write it (`postgresql+psycopg`, `mysql2`).
fn engine_of(scheme: &str) -> Result<Engine, TargetError> {
    let scheme = scheme.to_ascii_lowercase();
    match scheme.split_once('+').map_or(scheme.as_str(), |(scheme, _driver)| scheme) {
        "postgres" | "postgresql" | "postgis" => Ok(Engine::Postgresql),
        "mysql" | "mysql2" | "mariadb" => Ok(Engine::Mysql),
        "http" | "https" => Err(invalid(
            AT,
            "scheme",
            "is the address of a page or an API; copy the database's connection string, which begins with postgres:// or mysql://",
        )),
        _ => Err(invalid(AT, "scheme", "the scheme must be postgres:// or mysql://: no other database is supported")),
    }
}

/// What [`Url`] would not name: several hosts, and a socket in place of one.
fn check_authority(rest: &str) -> Result<(), TargetError> {
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let place = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
    if place.contains(',') {
        return Err(several_hosts());
    }
    let end = if place.starts_with('[') { place.find(']').map(|at| at + 1) } else { place.find(':') };
    let host = end.map_or(place, |end| &place[..end]);
    if is_gap(host) {
        return Err(placeholder("host"));
    }
    if place.starts_with('/') || place.get(..3).is_some_and(|start| start.eq_ignore_ascii_case("%2f")) {
        return Err(socket());
    }
    Ok(())
}

fn several_hosts() -> TargetError {
    invalid(AT, "host", "names several hosts; name one, the primary")
}

fn socket() -> TargetError {
    invalid(AT, "host", "names a socket, which is a place on the database's own machine; name a host")
}

fn decode(part: &str, what: &str) -> Result<String, TargetError> {
    let is_escape = |rest: &str| rest.len() >= 2 && rest.as_bytes()[..2].iter().all(u8::is_ascii_hexdigit);
    if !part.split('%').skip(1).all(is_escape) {
        return Err(invalid(AT, "percent-encoding", format!("a % of the {what} is written %25")));
    }
    percent_decode_str(part)
        .decode_utf8()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| invalid(AT, "percent-encoding", format!("the {what} is not UTF-8 when decoded")))
}

/// Names the parameter whose escapes are none: decoding would leave them as they are.
fn check_escapes(query: &str) -> Result<(), TargetError> {
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = name.to_ascii_lowercase();
        let is_known = [TAKEN, OF_OTHERS, KNOWN].iter().any(|names| names.contains(&name.as_str()));
        decode(&name, "part behind the ?")?;
        // What is no parameter may be the end of a password.
        decode(value, if is_known { &name } else { "part behind the ?" })?;
    }
    Ok(())
}

/// What a string, and the body beside it, say about TLS: it must be one thing. A bare switch that turns it on never lowers what
/// a mode says.
struct AskedTls {
    mode: Option<TlsMode>,
    switch: Option<TlsMode>,
}

impl AskedTls {
    fn say(told: &mut Option<TlsMode>, mode: TlsMode) -> Result<(), TargetError> {
        match told.replace(mode) {
            Some(before) if before != mode => Err(contradictory_tls()),
            _ => Ok(()),
        }
    }

    fn settle(self) -> Result<Option<TlsMode>, TargetError> {
        match (self.mode, self.switch) {
            (Some(TlsMode::Disable), Some(switch)) if switch != TlsMode::Disable => Err(contradictory_tls()),
            (Some(mode), Some(TlsMode::Disable)) if mode != TlsMode::Disable => Err(contradictory_tls()),
            (mode, switch) => Ok(mode.or(switch)),
        }
    }
}

fn contradictory_tls() -> TargetError {
    invalid(
        AT,
        "contradiction",
        "says two things about TLS; say once how much of it is wanted, such as sslmode=verify-full",
    )
}

fn take_parameter(fields: &mut TargetFields, asked: &mut AskedTls, name: &str, value: &str) -> Result<(), TargetError> {
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

/// How much of TLS, in the words of either engine's clients.
fn read_mode(text: &str) -> Result<TlsMode, TargetError> {
    match text.to_ascii_lowercase().replace('_', "-").as_str() {
        "disable" | "disabled" => Ok(TlsMode::Disable),
        "require" | "required" => Ok(TlsMode::Require),
        "verify-ca" => Ok(TlsMode::VerifyCa),
        "verify-full" | "verify-identity" => Ok(TlsMode::VerifyFull),
        "prefer" | "preferred" | "allow" => Err(invalid(
            AT,
            "sslmode",
            "sslmode must not leave it to chance whether the connection is encrypted; use require or verify-full",
        )),
        _ => Err(invalid(AT, "sslmode", "sslmode must be disable, require, verify-ca or verify-full")),
    }
}

fn read_switch(value: &str, name: &str) -> Result<TlsMode, TargetError> {
    match value.to_ascii_lowercase().replace(' ', "").as_str() {
        // Switched on without another word: as where nothing is said, the certificate is checked.
        "true" | "1" | "strict" | "verify-full" | "{\"rejectunauthorized\":true}" => Ok(TlsMode::VerifyFull),
        "require" | "accept_invalid_certs" | "{\"rejectunauthorized\":false}" => Ok(TlsMode::Require),
        "false" | "0" | "disable" => Ok(TlsMode::Disable),
        _ => Err(invalid(AT, "sslmode", format!("{name} is not understood; write sslmode=verify-full, or require"))),
    }
}

/// A string that was copied before its gaps were filled.
fn refuse_placeholders(fields: &TargetFields) -> Result<(), TargetError> {
    let password = fields.password.as_ref().map_or("", |password| password.expose_secret());
    let parts = [
        ("password", password),
        ("host", fields.host.as_deref().unwrap_or_default()),
        ("user", fields.username.as_deref().unwrap_or_default()),
        ("database", fields.database.as_deref().unwrap_or_default()),
    ];
    parts.iter().find(|(_, text)| is_gap(text)).map_or(Ok(()), |(what, _)| Err(placeholder(what)))
}

fn placeholder(what: &str) -> TargetError {
    let detail = format!("the {what} is still a placeholder; put the real one in its place");
    invalid(
        AT,
        "placeholder",
        if what == "password" { format!("{detail}, or give the parts one by one") } else { detail },
    )
}

/// Whether a part is `[YOUR-PASSWORD]`, `<password>`, `{password}`, `${PW}`, `$PW` or `****`.
fn is_gap(text: &str) -> bool {
    let between = |(begin, end): (&str, &str)| text.strip_prefix(begin).and_then(|text| text.strip_suffix(end));
    let bracketed = [("[", "]"), ("<", ">"), ("${{", "}}"), ("${", "}"), ("{{", "}}"), ("{", "}")];
    let is_name = |inner: &str| {
        inner.chars().any(|c| c.is_ascii_alphabetic())
            && inner.chars().all(|c| c.is_ascii_alphanumeric() || "-_. ".contains(c))
    };
    // A password may begin with a dollar; the name of a variable is written in capitals.
    let is_variable = |name: &str| {
        name.len() > 1
            && name.starts_with(|c: char| c.is_ascii_uppercase() || c == '_')
            && name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
    };
    let is_covered = |cover: char| text.chars().count() > 2 && text.chars().all(|c| c == cover);
    bracketed.into_iter().filter_map(between).any(is_name)
        || text.strip_prefix('$').is_some_and(is_variable)
        || ['*', '\u{2022}', '\u{25cf}'].into_iter().any(is_covered)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Target, TargetError> {
        Target::from_url(&text.to_owned().into(), None, None, None)
    }

    fn refusal(text: &str) -> (&'static str, String) {
        match parse(text) {
            Ok(_) => panic!("accepted"),
            Err(TargetError::Invalid { code, detail, .. }) => (code, detail),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn a_connection_string_is_read_to_its_parts() {
        let target =
            parse("postgresql://ad%40a:p%3Ass%2Fw@db.example.com:6543/sh%20op?sslmode=require\n").expect("valid");
        assert_eq!((target.host.as_str(), target.port, target.username.as_str()), ("db.example.com", 6543, "ad@a"));
        assert_eq!((target.password.expose_secret(), target.database.as_str()), ("p:ss/w", "sh op"));
        assert_eq!(target.tls, Some(TlsMode::Require));
        assert_eq!(parse("postgres://a:b@db.example.com/shop").expect("valid").tls, None);
        assert_eq!(parse("mysql://a:b@db.example.com/shop").expect("valid").port, 3306);
    }

    #[test]
    fn what_it_is_pasted_with_is_taken_off() {
        for text in [
            "DATABASE_URL=postgres://a:p%3D@db.example.com:5432/shop",
            " export DATABASE_URL=\"postgres://a:p%3D@db.example.com/shop\";\r\n",
            "DATABASE_URL = 'postgresql+psycopg2://a:p%3D@db.example.com/shop'",
            "jdbc:postgresql://db.example.com:5432/shop?user=a&password=p%3D",
            "JDBC:POSTGRESQL://a:p%3D@DB.example.com/shop?ApplicationName=x",
            "psql postgres://a:p%3D@db.example.com/shop",
            "psql \"postgres://a:p%3D@db.example.com/shop?sslmode=require\"",
            "psql -d 'postgres://a:p%3D@db.example.com/shop'",
            "psql \"host=db.example.com dbname=shop user=a password='p='\"",
            "DATABASE_URL: postgres://a:p%3D@db.example.com/shop",
            "DATABASE_URL: \"postgres://a:p%3D@db.example.com/shop\"",
            "\"url\": \"postgres://a:p%3D@db.example.com/shop\",",
            "host=db.example.com port=5432 dbname=shop user=a password='p=' connect_timeout=10",
            "  user = a  password = p\\=  host = 'db.example.com'  dbname = shop ",
            "`postgres://a:p=@db.example.com/shop?pgbouncer=true&connection_limit=1`",
        ] {
            let target = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((target.engine, target.port), (Engine::Postgresql, 5432), "{text}");
            assert_eq!((target.username.as_str(), target.password.expose_secret()), ("a", "p="), "{text}");
            assert_eq!(
                (target.host.to_lowercase().as_str(), target.database.as_str()),
                ("db.example.com", "shop"),
                "{text}"
            );
        }
    }

    #[test]
    fn the_engines_words_for_tls_mean_the_same() {
        for (parameter, mode) in [
            ("sslmode=verify-full", TlsMode::VerifyFull),
            ("ssl-mode=VERIFY_IDENTITY", TlsMode::VerifyFull),
            ("sslaccept=strict", TlsMode::VerifyFull),
            ("ssl={\"rejectUnauthorized\":true}", TlsMode::VerifyFull),
            ("sslMode=VERIFY_CA", TlsMode::VerifyCa),
            ("ssl=true", TlsMode::VerifyFull),
            ("useSSL=true", TlsMode::VerifyFull),
            ("ssl=require", TlsMode::Require),
            ("sslmode=require&ssl=true", TlsMode::Require),
            ("sslmode=verify-full&ssl=require", TlsMode::VerifyFull),
            ("ssl-mode=DISABLED", TlsMode::Disable),
        ] {
            assert_eq!(
                parse(&format!("mysql://a:b@h.example/d?{parameter}")).expect("valid").tls,
                Some(mode),
                "{parameter}"
            );
        }
        for twice in ["sslmode=verify-full&ssl=false", "sslmode=disable&ssl=true", "sslmode=require&ssl-mode=VERIFY_CA"]
        {
            assert_eq!(refusal(&format!("postgres://a:b@h.example/d?{twice}")).0, "contradiction", "{twice}");
        }
        let text = SecretString::from("postgres://a:b@h.example/d?sslmode=require".to_owned());
        let beside = Target::from_url(&text, None, Some(TlsMode::VerifyFull), None).err();
        assert!(matches!(beside, Some(TargetError::Invalid { code: "contradiction", .. })));
        assert_eq!(refusal("postgres://a:b@h.example/d?sslmode=prefer").0, "sslmode");
        assert_eq!(refusal("postgres://a:b@h.example/d?sslmode=maybe").0, "sslmode");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, code, says) in [
            ("mongodb://a:b@h/d", "scheme", "no other database"),
            ("https://supabase.com/dashboard/project/x", "scheme", "page"),
            ("not a url", "malformed", "expected"),
            ("postgres://a:b@h.example/", "required", "database"),
            ("postgres://:b@h.example/d", "required", "user"),
            ("postgres://a:b@h.example:port/d", "malformed", "port"),
            ("postgres://a:b@h.example:99999/d", "malformed", "port"),
            ("postgres://a:b@h.example/d?options=-c%20x", "parameter", "options"),
            ("postgres://a:b@h.example/d?secret=1", "parameter", "%3F"),
            ("postgres://a:b?c@h.example/d", "malformed", "%3F"),
            ("postgres://a:b#c@h.example/d", "malformed", "%23"),
            ("postgres://a:b/c@h.example/d", "malformed", "%2F"),
            ("postgres://a:b@%2Ftmp/d", "host", "socket"),
            ("postgres://a:p%zz@h.example/d", "percent-encoding", "password"),
            ("postgres://a:p%2@h.example/d", "percent-encoding", "password"),
            ("postgres://a:p%@h.example/d", "percent-encoding", "password"),
            ("postgres://a%b:p@h.example/d", "percent-encoding", "user"),
            ("postgres://a:p@h.example/100%", "percent-encoding", "database"),
            ("jdbc:postgresql://h.example/d?user=a&password=p%zz", "percent-encoding", "password"),
            ("jdbc:postgresql://h.example/d?user=a%&password=p", "percent-encoding", "user"),
            ("postgres://a:b?c%zz@h.example/d", "malformed", "%3F"),
            ("postgres://a:b@h.example/d?c%zz", "percent-encoding", "behind the ?"),
            ("psql -h h.example -U a d", "shell-line", "one by one"),
            ("PGPASSWORD=b psql -h h.example -U a d", "shell-line", "one by one"),
            ("mysql -h h.example -u a -pb d", "shell-line", "one by one"),
            ("DATABASE_URL:", "malformed", "expected"),
            ("host=/tmp dbname=d user=a", "host", "socket"),
            ("host=h1,h2 dbname=d user=a", "host", "several"),
            ("host=h.example port=x dbname=d user=a", "malformed", "port"),
            ("host=h.example dbname=d user=a password=b c", "malformed", "quotes"),
            ("host=h.example dbname=d user=a password='b", "malformed", "quotes"),
            ("host=h.example dbname=d user=a host=h2", "malformed", "twice"),
            ("host=h.example dbname=d user=a hostaddr=1.2.3.4", "parameter", "hostaddr"),
            ("host=h.example dbname=d user=a b=c", "parameter", "no word"),
            ("host=h.example dbname=d user=a sslmode=prefer", "sslmode", "chance"),
            ("host=h.example user=a", "required", "database"),
            ("dbname=d user=a", "host", "no host"),
            ("host=h.example dbname=d user=a password=****", "placeholder", "password"),
            ("postgres://a:${PW}@h.example/d", "placeholder", "password"),
            ("postgres://a:$PW@h.example/d", "placeholder", "password"),
            ("postgres://a:<password>@h.example/d", "placeholder", "password"),
            ("postgres://a:****@h.example/d", "placeholder", "password"),
            ("postgres://a:${{ secrets.PW }}@h.example/d", "placeholder", "password"),
            ("postgres://a:b@<host>/d", "placeholder", "host"),
            ("postgres://a:b@[YOUR-HOST]:5432/d", "placeholder", "host"),
            ("postgres://${DB_USER}:b@h.example/d", "placeholder", "user"),
            ("postgres:///d?host=/var/run/postgresql", "host", "socket"),
            ("postgres://a:b@h1,h2/d", "host", "several"),
            ("postgres://a:b@h1:5432,h2:5432/d", "host", "several"),
            ("postgres:///d", "host", "no host"),
            ("postgres://a:[YOUR-PASSWORD]@h.example/d", "placeholder", "password"),
            ("postgres://a:%5BYOUR-PASSWORD%5D@h.example/d", "placeholder", "password"),
            ("mysql://a:b@h.example/d?password=c", "parameter", "twice"),
            ("mysql://a:b@h.example/d?socket=/tmp/mysql.sock", "host", "socket"),
            ("postgres://a:b@h.example/d\npostgres://a:b@h.example/d", "malformed", "one line"),
        ] {
            let (found, detail) = refusal(text);
            assert_eq!(found, code, "{text}: {detail}");
            assert!(detail.contains(says), "{text}: {detail}");
        }
    }

    #[test]
    fn letters_of_any_script_are_no_trouble() {
        for text in
            ["postgres://a:b@zoë.example/d", "postgres://a:b@ñ/d", "é", "jdbcé://a", "postgres://é:é@é.example/é"]
        {
            // Taken or refused: that is for others to say.
            drop(parse(text));
        }
    }

    #[test]
    fn the_engine_that_was_said_must_be_the_strings() {
        let text = SecretString::from("mysql://a:b@h.example/d".to_owned());
        let refused = Target::from_url(&text, Some(Engine::Postgresql), None, None).err();
        assert!(matches!(refused, Some(TargetError::Invalid { pointer: "/engine", code: "contradiction", .. })));
        assert!(Target::from_url(&text, Some(Engine::Mysql), None, None).is_ok());
    }

    #[test]
    fn nothing_of_a_refused_string_is_told() {
        for text in [
            "postgres://user1:hunter2?hunter3@h.example/d",
            "postgres://user1:hunter2#hunter3@h.example/d",
            "hunter2://user1:hunter3@h.example/d",
            "postgres://user1:hunter2@h.example/d?hunter3=hunter4",
            "postgres://user1:hunter2/hunter3@h.example/d",
            "postgres://joë:hunt/hunter2@h.example/d",
            "postgres://é:hunter2?x@h.example/d",
        ] {
            let (_, detail) = refusal(text);
            assert!(!detail.contains("hunter") && !detail.contains("user1"), "{text}: {detail}");
        }
    }
}
