//! A connection string as owners paste it: out of a hosting panel, an `.env` file, a framework's settings.
//!
//! What is understood is taken, whatever it is dressed in ([`undress`]), as a URL ([`url`]) or in PostgreSQL's own words
//! ([`keywords`]); what is not is refused by the name of its part. Nothing of the string itself is ever repeated: any part
//! of it may be the password.

mod gap;
mod keywords;
mod parameters;
mod tls;
mod undress;
mod url;

use kernel::Engine;
use secrecy::{ExposeSecret as _, SecretString};
use tenancy::TlsMode;

use self::gap::refuse_placeholders;
use self::keywords::{is_keywords, read_keywords};
use self::tls::AskedTls;
use self::undress::undress;
use self::url::read_url;
use super::target::{Target, TargetError, invalid};

pub(super) const AT: &str = "/connectionString";
const MAX_LEN: usize = 4096;

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

fn several_hosts() -> TargetError {
    invalid(AT, "host", "names several hosts; name one, the primary")
}

fn socket() -> TargetError {
    invalid(AT, "host", "names a socket, which is a place on the database's own machine; name a host")
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
