//! A connection string as owners paste it: out of a hosting panel, an `.env` file, a framework's settings.
//!
//! What is understood is taken, whatever it is dressed in ([`undress`]), as a URL ([`url`]), in PostgreSQL's own words
//! ([`keywords`]), as PHP ([`pdo`]), .NET ([`ado`]) or Go ([`go`]) write it, or as several lines of a file ([`lines`]); what is
//! not is refused by the name of its part. Nothing of the string itself is ever repeated: any part of it may be the password.

mod ado;
mod gap;
mod go;
mod keywords;
mod lines;
mod parameters;
mod parts;
mod pdo;
mod scheme;
mod tls;
mod undress;
mod url;

use kernel::Engine;
use secrecy::{ExposeSecret as _, SecretString};
use tenancy::TlsMode;

use self::ado::{is_ado, read_ado};
use self::gap::{is_gap, placeholder, refuse_placeholders};
use self::go::{is_go, read_go};
use self::keywords::{is_keywords, read_keywords};
use self::lines::{lines_of, read_lines};
use self::parts::Parts;
use self::pdo::{is_pdo, read_pdo};
use self::tls::AskedTls;
use self::undress::{Undressed, undress};
use self::url::read_url;
use super::target::{Target, TargetError, invalid};

pub(super) const AT: &str = "/connectionString";
const MAX_LEN: usize = 4096;

/// Of a string of Java's that has no user.
const JAVA_WITHOUT_USER: &str = "the user is missing, which in Java stands beside the string, as does the password; add \
                                 ?user=…&password=… to it, with & for the ? where it has one, or give the parts one by one";

impl Target {
    /// Reads `postgres://user:password@host:port/database?sslmode=…` or `mysql://…`, or any other form that drivers are given;
    /// mode and CA may come beside it. An `engine` that is given must be the string's, and is needed where the string does not
    /// say it.
    ///
    /// # Errors
    /// [`TargetError`] naming the part that is wrong.
    pub fn from_url(
        text: &SecretString,
        engine: Option<Engine>,
        tls: Option<TlsMode>,
        ca_pem: Option<String>,
    ) -> Result<Self, TargetError> {
        // Editors of Windows begin a file with a mark of its encoding.
        let text = text.expose_secret().trim_start_matches('\u{feff}').trim();
        if text.len() > MAX_LEN {
            return Err(invalid(AT, "too-long", format!("must have at most {MAX_LEN} characters")));
        }
        let mut parts = Parts::new(AskedTls { mode: tls, switch: None, is_checked: None, names_host: false });
        let lines = lines_of(text);
        let unknown = match lines.as_slice() {
            lines @ [_, _, ..] => read_lines(lines, &mut parts)?,
            [line] => read_line(line, &mut parts)?,
            [] => read_line(text, &mut parts)?,
        };
        let mut fields = parts.finish(engine, unknown)?;
        fields.ca_pem = ca_pem;
        refuse_placeholders(&fields)?;
        if fields.host.is_none() {
            return Err(invalid(AT, "host", "names no host"));
        }
        let mut target = Self::from_parts(fields).map_err(|error| match error {
            // That one is given beside the string.
            error @ TargetError::Invalid { pointer: "/caPem", .. } => error,
            error => error.at(AT),
        })?;
        target.is_text = true;
        Ok(target)
    }
}

/// Reads what stands in one line; answers with what its form says of words that are none.
fn read_line(text: &str, parts: &mut Parts) -> Result<&'static str, TargetError> {
    let Undressed { text, is_java } = undress(text)?;
    if text.is_empty() {
        return Err(invalid(AT, "required", "is empty"));
    }
    if text.chars().any(char::is_control) {
        return Err(invalid(AT, "malformed", "must be one line"));
    }
    if is_gap(text) {
        return Err(placeholder("connection string"));
    }
    if is_java {
        parts.without_user = Some(JAVA_WITHOUT_USER);
    }
    if is_ado(text) {
        read_ado(text, parts).map(|()| ado::UNKNOWN)
    } else if is_pdo(text) {
        read_pdo(text, parts).map(|()| ado::UNKNOWN)
    } else if is_keywords(text) {
        parts.engine = Some(Engine::Postgresql);
        read_keywords(text, char::is_whitespace, parts).map(|()| keywords::UNKNOWN)
    } else if is_go(text) {
        read_go(text, parts).map(|()| url::UNKNOWN)
    } else {
        read_url(text, parts).map(|()| url::UNKNOWN)
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
    use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, prop_assume, proptest};

    use super::*;

    fn parse(text: &str) -> Result<Target, TargetError> {
        Target::from_url(&text.to_owned().into(), None, None, None)
    }

    fn refusal(text: &str) -> (&'static str, String) {
        match parse(text) {
            Ok(_) => panic!("accepted: {text}"),
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
            "\u{feff}DATABASE_URL=postgres://a:p%3D@db.example.com/shop\r\n",
            "$env:DATABASE_URL=\"postgres://a:p%3D@db.example.com/shop\"",
            "$Env:DATABASE_URL = 'postgres://a:p%3D@db.example.com/shop'",
            "set DATABASE_URL=postgres://a:p%3D@db.example.com/shop",
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
            ("sslmode=require&channel_binding=prefer", TlsMode::Require),
            ("sslmode=require&channel_binding=require", TlsMode::VerifyFull),
            ("sslmode=verify-ca&channel_binding=prefer", TlsMode::VerifyCa),
            ("sslmode=verify-ca&channel_binding=require", TlsMode::VerifyFull),
            ("sslmode=disable&channel_binding=prefer", TlsMode::Disable),
            ("sslmode=verify-full&ssl=require", TlsMode::VerifyFull),
            ("ssl-mode=DISABLED", TlsMode::Disable),
        ] {
            assert_eq!(
                parse(&format!("mysql://a:b@h.example/d?{parameter}")).expect("valid").tls,
                Some(mode),
                "{parameter}"
            );
        }
        for twice in [
            "sslmode=verify-full&ssl=false",
            "sslmode=disable&ssl=true",
            "sslmode=require&ssl-mode=VERIFY_CA",
            "sslmode=disable&channel_binding=require",
            "ssl=false&channel_binding=require",
        ] {
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
            ("", "required", "is empty"),
            (" \n", "required", "is empty"),
            ("DATABASE_URL=\"\"", "required", "is empty"),
            ("\u{201c}postgres://a:b@h.example/d\u{201d}", "malformed", "typographic quotes"),
            ("DATABASE_URL=\u{2018}postgres://a:b@h.example/d\u{2019}", "malformed", "typographic quotes"),
            ("psql \u{201c}postgres://a:b@h.example/d\u{201d}", "malformed", "typographic quotes"),
            ("jdbc:postgresql://h.example/d", "required", "?user=…&password=…"),
            ("JDBC_URL=jdbc:mysql://h.example:3306/d?useSSL=true", "required", "in Java"),
            ("postgres://a:b@h.example/", "required", "database"),
            ("postgres://:b@h.example/d", "required", "user"),
            ("postgres://a:b@h.example:port/d", "malformed", "port"),
            ("postgres://a:b@h.example:99999/d", "port", "1 to 65535"),
            ("postgres://a:b@h.example:0/d", "port", "1 to 65535"),
            ("host=h.example port=99999 dbname=d user=a", "port", "1 to 65535"),
            ("Host=h.example;Port=99999;Database=d;Username=a", "port", "1 to 65535"),
            ("postgres://a:b@/d", "host", "no host"),
            ("postgres://a:b@:5432/d", "host", "no host"),
            ("postgres://a:b@/d?host=a,b", "host", "several"),
            ("postgres://a:b@/d?host=/cloudsql/x:y:z", "host", "socket"),
            ("postgres://a:b@h.example/d?port=5432,5433", "host", "several"),
            ("postgres://a:b@2001:db8::1/d", "malformed", "[brackets]"),
            ("postgres://a:12/c@h.example/d", "malformed", "%2F"),
            ("postgres://a:b@h.example:${PORT}/d", "placeholder", "port"),
            ("host=h.example:5432 dbname=d user=a", "host", "goes into port"),
            ("postgres://a:b@h.example/d?options=-c%20x", "parameter", "options"),
            ("postgres://a:b@h.example/d?secret=1", "parameter", "%3F"),
            ("postgres://a:b?c@h.example/d", "malformed", "%3F"),
            ("postgres://a:b#c@h.example/d", "malformed", "%23"),
            ("postgres://a:b/c@h.example/d", "malformed", "%2F"),
            ("postgres://pw:a@b/c:d@127.0.0.1:25432/pwdb", "malformed", "%40"),
            ("postgres://pw:p@ss/word@h.example/d", "malformed", "%40"),
            ("mysql://pw:p@localhost/word@127.0.0.1:23306/pwdb", "malformed", "%2F"),
            ("mysql://pw:p@localhost?word@127.0.0.1:23306/pwdb", "malformed", "%3F"),
            ("mysql://pw:p@localhost/x?word@127.0.0.1:23306/pwdb", "malformed", "%40"),
            ("mysql://pw:p@localhost#word@127.0.0.1:23306/pwdb", "malformed", "%23"),
            ("mysql://pw:p@tcp(localhost)/word@127.0.0.1:23306/pwdb", "malformed", "%40"),
            ("postgres://a:b@h.example/d@x", "malformed", "any other @ is %40"),
            ("DATABASE_URL=postgres://pw:p@ss/word@h.example/d\nPORT=80", "malformed", "%40"),
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
            ("mysql://USERNAME:PASSWORD@HOST:PORT/DATABASE", "placeholder", "host"),
            ("mysql://a:b@h.example:PORT/d", "placeholder", "port"),
            ("mysql://USER:PASSWORD@h.example/d", "placeholder", "password"),
            ("postgres://a:your_password@h.example/d", "placeholder", "password"),
            ("postgres://a:your-password@h.example/d", "placeholder", "password"),
            ("postgres://a:yourpassword@h.example/d", "placeholder", "password"),
            ("postgres://a:YOUR_DB_PASSWORD@h.example/d", "placeholder", "password"),
            ("postgres://a:xxxxx@h.example/d", "placeholder", "password"),
            ("postgres://your_user:b@h.example/d", "placeholder", "user"),
            ("postgres://a:b@your-host/d", "placeholder", "host"),
            ("DATABASE_URL=${{Postgres.DATABASE_URL}}", "placeholder", "connection string"),
            ("DATABASE_URL=$DATABASE_URL", "placeholder", "connection string"),
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
    fn a_word_that_people_take_for_a_password_is_no_placeholder() {
        for password in ["changeme", "password", "PASSWORD", "secret", "xxx", "yours", "your", "xxxy"] {
            let target = parse(&format!("postgres://a:{password}@db_1.internal/d")).expect(password);
            assert_eq!((target.password.expose_secret(), target.host.as_str()), (password, "db_1.internal"));
        }
        // Only a raw @ is refused, and only where none belongs.
        let target = parse("postgres://a:p@ss@h.example/d%40x").expect("valid");
        assert_eq!((target.password.expose_secret(), target.database.as_str()), ("p@ss", "d@x"));
        let target = parse("jdbc:postgresql://h.example/d?user=a@h&password=p@/ss").expect("valid");
        assert_eq!((target.username.as_str(), target.password.expose_secret()), ("a@h", "p@/ss"));
    }

    #[test]
    fn a_scheme_is_understood_or_named() {
        for (scheme, engine) in [
            ("postgis", Engine::Postgresql),
            ("pgsql", Engine::Postgresql),
            ("postgresql+asyncpg", Engine::Postgresql),
            ("jdbc:postgresql", Engine::Postgresql),
            ("jdbc:aws-wrapper:postgresql", Engine::Postgresql),
            ("r2dbc:postgresql", Engine::Postgresql),
            ("mariadb", Engine::Mysql),
            ("mysql2", Engine::Mysql),
            ("mysql+pymysql", Engine::Mysql),
            ("jdbc:mariadb", Engine::Mysql),
            ("jdbc:mysql", Engine::Mysql),
        ] {
            assert_eq!(parse(&format!("{scheme}://a:b@h.example/d")).expect(scheme).engine, engine, "{scheme}");
        }
        for (text, says) in [
            ("jdbc:mysql:loadbalance://h1,h2/d", "name one, the primary"),
            ("jdbc:mysql:replication://h1,h2/d?user=a", "name one, the primary"),
            ("jdbc:mariadb:sequential://h1/d?user=a", "name one, the primary"),
            ("mysqlx://a:b@h.example:33060/d", "3306"),
            ("mysql+srv://a:b@h.example/d", "SRV"),
            ("jdbc:mysql+srv://h.example/d", "SRV"),
            ("postgresql+ssh://a@jump.example/b:c@h.example/d", "SSH"),
            ("prisma+postgres://accelerate.prisma-data.net/?api_key=x", "Prisma"),
            ("jdbc:sqlserver://h.example:1433;databaseName=d;user=a", "SQL Server"),
            ("Server=tcp:h.example,1433;Initial Catalog=d;User ID=a;Password=b;", "SQL Server"),
            ("sqlite:///data/shop.db", "SQLite"),
            ("sqlite::memory:", "SQLite"),
            ("file:./dev.db", "SQLite"),
            ("jdbc:oracle:thin:@h.example:1521:xe", "Oracle"),
            ("cockroachdb://a:b@h.example/d", "CockroachDB"),
        ] {
            let (code, detail) = refusal(text);
            assert!(code == "scheme" && detail.contains(says), "{text}: {code}: {detail}");
        }
    }

    #[test]
    fn parameters_of_somebody_elses_program_are_left_out() {
        for (scheme, parameters) in [
            // Neon, Vercel with Supabase, Heroku
            ("postgres", "sslmode=require&channel_binding=require&options=endpoint%3Dep-cool-name-123"),
            ("postgres", "options=project%3Dcool-name-123"),
            ("postgres", "sslmode=require&supa=base-pooler.x&pgbouncer=true"),
            ("postgres", "target_session_attrs=read-write&gssencmode=disable&load_balance_hosts=random"),
            ("postgres", "target_session_attrs=primary&keepalives=1&keepalives_idle=30&tcp_user_timeout=1000"),
            ("postgres", "target_session_attrs=any&ssl_min_protocol_version=TLSv1.2&sslcompression=0&sslsni=1"),
            // Prisma
            ("postgresql", "schema=public&connection_limit=5&pool_timeout=20&socket_timeout=30&statement_cache_size=0"),
            ("postgresql", "schema=tenantry"),
            // SQLAlchemy, Django, Rails
            ("postgresql+asyncpg", "prepared_statement_cache_size=0&command_timeout=60&pool_pre_ping=true&echo=1"),
            ("postgres", "conn_max_age=600&conn_health_checks=true&search_path=public"),
            ("postgres", "pool=5&encoding=unicode&prepared_statements=false&reconnect=true&checkout_timeout=5"),
            ("mysql2", "encoding=utf8mb4&collation=utf8mb4_unicode_ci&read_timeout=5&write_timeout=5"),
            // pgx, golang-migrate, node-postgres, postgres.js, sqlx
            (
                "postgres",
                "pool_max_conns=10&pool_max_conn_lifetime=1h&default_query_exec_mode=exec&x-migrations-table=m",
            ),
            ("postgres", "max=10&idle_timeout=20&prepare=false&uselibpqcompat=true&statement-cache-capacity=0"),
            // JDBC
            ("jdbc:postgresql", "currentSchema=public&ApplicationName=x&prepareThreshold=0&reWriteBatchedInserts=true"),
            ("jdbc:postgresql", "targetServerType=primary&loginTimeout=10&socketTimeout=30&stringtype=unspecified"),
            (
                "jdbc:mysql",
                "useSSL=true&amp;serverTimezone=UTC&allowPublicKeyRetrieval=true&useUnicode=true&characterEncoding=utf8",
            ),
            ("jdbc:mysql", "zeroDateTimeBehavior=CONVERT_TO_NULL&rewriteBatchedStatements=true&allowMultiQueries=true"),
            // Doctrine, mysql2
            ("mysql", "serverVersion=8.0.32&charset=utf8mb4&connectionLimit=10&waitForConnections=true&timezone=Z"),
            // Switched off they mean nothing.
            ("mysql", "allowCleartextPasswords=false&allowOldPasswords=0&readOnly=false"),
        ] {
            let text = format!("{scheme}://a:b@h.example/d?{parameters}");
            let target = parse(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((target.host.as_str(), target.database.as_str()), ("h.example", "d"), "{text}");
        }
    }

    #[test]
    fn parameters_that_change_what_is_connected_are_named_all_at_once() {
        for (parameters, says) in [
            ("options=-c%20search_path%3Dx", "the parameter options is not supported"),
            ("options=endpoint%3Dx%20-c%20y", "options"),
            ("options=reference%3Dx", "options"),
            ("target_session_attrs=standby", "has to write"),
            ("target_session_attrs=read-only", "has to write"),
            ("target_session_attrs=prefer-standby", "has to write"),
            ("targetServerType=secondary", "has to write"),
            ("readOnly=true", "has to write"),
            ("schema=shop", "keeps to the schema tenantry"),
            ("currentSchema=shop,public", "keeps to the schema tenantry"),
            ("search_path=shop", "remove the parameter search_path"),
            ("gssencmode=require", "gssencmode"),
            ("ssl_min_protocol_version=TLSv1.3", "ssl_min_protocol_version"),
            ("sslrootcert=/etc/ca.pem", "as caPem"),
            ("ssl-ca=/etc/ca.pem", "the parameter ssl-ca leads to a file"),
            ("allowCleartextPasswords=true", "allowCleartextPasswords"),
            (
                "socketFactory=com.google.cloud.sql.postgres.SocketFactory&cloudSqlInstance=x",
                "socketFactory and cloudSqlInstance",
            ),
            ("init_command=set%20role%20x", "init_command"),
            (
                "hostaddr=1.2.3.4&service=x&role=y",
                "the parameters hostaddr, service and role are not supported; leave them out",
            ),
            ("sslcert=x&sslkey=y&SCHEMA=z", "the parameters sslcert and sslkey lead to files"),
        ] {
            let (code, detail) = refusal(&format!("postgres://a:b@h.example/d?{parameters}"));
            assert!(code == "parameter" && detail.contains(says), "{parameters}: {code}: {detail}");
        }
        let (_, detail) = refusal(
            "postgres://a:b@h.example/d?hostaddr=1&sslkey=2&schema=s3cret&target_session_attrs=standby&s3cret=1",
        );
        for part in ["hostaddr", "sslkey", "tenantry", "target_session_attrs", "%3F"] {
            assert!(detail.contains(part) && !detail.contains("s3cret"), "{part}: {detail}");
        }
    }

    #[test]
    fn what_drivers_say_of_certificates_is_heard() {
        for (parameters, mode) in [
            ("sslmode=no-verify", TlsMode::Require),
            ("sslmode=VerifyFull", TlsMode::VerifyFull),
            ("sslMode=trust", TlsMode::Require),
            ("ssl=true&sslfactory=org.postgresql.ssl.NonValidatingFactory", TlsMode::Require),
            ("useSSL=true&requireSSL=true&verifyServerCertificate=false", TlsMode::Require),
            ("useSSL=true&requireSSL=false", TlsMode::VerifyFull),
            ("useSSL=false&requireSSL=false", TlsMode::Disable),
            ("sslmode=require&sslaccept=strict", TlsMode::VerifyFull),
            ("sslaccept=accept_invalid_certs", TlsMode::Require),
            ("sslrootcert=system", TlsMode::VerifyFull),
            ("sslmode=require&sslrootcert=system", TlsMode::VerifyFull),
            ("sslmode=verify-ca&sslrootcert=system", TlsMode::VerifyFull),
            ("ssl_verify_cert=true&ssl_verify_identity=true", TlsMode::VerifyFull),
            ("ssl-mode=VERIFY_CA&ssl_verify_identity=true", TlsMode::VerifyFull),
            ("ssl-mode=VERIFY_CA&ssl_check_hostname=true", TlsMode::VerifyFull),
            ("ssl-mode=REQUIRED&ssl_verify_identity=true", TlsMode::VerifyFull),
            ("ssl-mode=VERIFY_CA&ssl_verify_identity=false", TlsMode::VerifyCa),
            ("ssl-mode=VERIFY_CA&ssl_verify_cert=true", TlsMode::VerifyCa),
            ("ssl-mode=DISABLED&ssl_verify_cert=false&ssl_verify_identity=false", TlsMode::Disable),
            ("ssl={\"minVersion\":\"TLSv1.2\",\"rejectUnauthorized\":true}", TlsMode::VerifyFull),
            ("ssl={\"rejectUnauthorized\": false}", TlsMode::Require),
            ("tls=skip-verify", TlsMode::Require),
            ("ssl_disabled=true", TlsMode::Disable),
            ("tls=true&trustServerCertificate=maybe&sslaccept=&ssl_disabled=no", TlsMode::VerifyFull),
        ] {
            let text = format!("mysql://a:b@h.example/d?{parameters}");
            let target = parse(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(target.tls, Some(mode), "{parameters}");
        }
        for (parameters, code) in [
            ("sslmode=verify-full&trustServerCertificate=true", "contradiction"),
            ("useSSL=false&requireSSL=true", "contradiction"),
            ("useSSL=false&verifyServerCertificate=true", "contradiction"),
            ("ssl_disabled=true&ssl_verify_identity=true", "contradiction"),
            ("ssl-mode=DISABLED&sslrootcert=system", "contradiction"),
            ("ssl_verify_cert=false&ssl_verify_identity=true", "contradiction"),
            ("tls=preferred", "sslmode"),
            ("ssl=Amazon%20RDS", "sslmode"),
            ("ssl={\"ca\":\"x\"}", "sslmode"),
        ] {
            assert_eq!(refusal(&format!("mysql://a:b@h.example/d?{parameters}")).0, code, "{parameters}");
        }
    }

    #[test]
    fn the_forms_of_php_net_and_go_are_read_like_a_url() {
        for (text, engine, password) in [
            ("mysql:host=h.example;port=3306;dbname=shop;charset=utf8mb4;user=a;password=p;;q", Engine::Mysql, "p;q"),
            ("DB_DSN=\"mysql:host=h.example;dbname=shop;user=a;password=pq\"", Engine::Mysql, "pq"),
            ("pgsql:host=h.example;dbname=shop;user=a;password='p;q'", Engine::Postgresql, "p;q"),
            ("DSN=mysql:host=h.example;dbname=shop;user=a;password=pq", Engine::Mysql, "pq"),
            ("pgsql:host=h.example port=5432 dbname=shop user=a password=pq sslmode=require", Engine::Postgresql, "pq"),
            (
                "Host=h.example;Port=5432;Database=shop;Username=a;Password=p=q;SSL Mode=Require;Trust Server Certificate=true",
                Engine::Postgresql,
                "p=q",
            ),
            ("User ID=a;Password=pq;Host=h.example;Port=5432;Database=shop;Pooling=true;", Engine::Postgresql, "pq"),
            ("host=h.example;username=a;password=pq;database=shop", Engine::Postgresql, "pq"),
            ("Server=h.example:5432;Database=shop;User Id=a;Password=\"p;\"\"q\";", Engine::Postgresql, "p;\"q"),
            ("Server=h.example;Database=shop;Uid=a;Pwd='p;''q';", Engine::Mysql, "p;'q"),
            ("Server=h.example; Port=3306; Database=shop; User=a; Password=pq; SslMode=Required;", Engine::Mysql, "pq"),
            (
                "\"DefaultConnection\": \"Server=h.example;Database=shop;Uid=a;Pwd=pq;AllowUserVariables=true\",",
                Engine::Mysql,
                "pq",
            ),
            (
                "ConnectionStrings__Default=Host=h.example;Database=shop;Username=a;Password=pq",
                Engine::Postgresql,
                "pq",
            ),
            (
                "a:pq@tcp(h.example:3306)/shop?parseTime=true&charset=utf8mb4&loc=Local&multiStatements=true",
                Engine::Mysql,
                "pq",
            ),
            ("a:p@(q:/x%zz@tcp(h.example)/shop?tls=true", Engine::Mysql, "p@(q:/x%zz"),
            ("DSN=\"a:pq@(h.example:3306)/shop?interpolateParams=true\"", Engine::Mysql, "pq"),
            ("mysql://a:pq@tcp(h.example:3306)/shop?x-migrations-table=m", Engine::Mysql, "pq"),
            ("spring.datasource.url=jdbc:postgresql://h.example/shop?user=a&password=pq", Engine::Postgresql, "pq"),
        ] {
            let target = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            let port = if engine == Engine::Mysql { 3306 } else { 5432 };
            assert_eq!((target.engine, target.host.as_str(), target.port), (engine, "h.example", port), "{text}");
            assert_eq!((target.username.as_str(), target.database.as_str()), ("a", "shop"), "{text}");
            assert_eq!(target.password.expose_secret(), password, "{text}");
        }
        let npgsql = "Host=h.example;Database=d;Username=a;Password=b;SSL Mode=";
        assert_eq!(parse(&format!("{npgsql}VerifyFull")).expect("valid").tls, Some(TlsMode::VerifyFull));
        assert_eq!(parse("a:b@tcp(h.example)/d?tls=true").expect("valid").tls, Some(TlsMode::VerifyFull));
        assert_eq!(parse("a:b@tcp([2001:db8::1]:3307)/d").expect("valid").host, "2001:db8::1");
    }

    #[test]
    fn what_is_wrong_in_them_is_named() {
        for (text, code, says) in [
            ("mysql:host=h.example;dbname=d", "required", "user=…;password=…"),
            ("mysql:unix_socket=/tmp/mysql.sock;dbname=d;user=a", "host", "socket"),
            ("mysql:host=h.example;dbname=d;user=a;password=b;c", "malformed", ";;"),
            ("mysql:host=h.example;dbname=d;user=a;sekret=b", "parameter", "no word"),
            ("pgsql:host=h.example;dbname=d;user=a;password='b", "malformed", "quotes"),
            ("Host=h.example;Database=d;Username=a;Password=b;c", "malformed", "in quotes"),
            ("Host=h.example;Database=d;Username=a;Password=\"b\"c;Port=1", "malformed", "twice"),
            ("Host=h.example;Database=d;Username=a;Password=b;c=d", "parameter", "no word"),
            ("Host=h1,h2;Database=d;Username=a;Password=b", "host", "several"),
            ("Host=/tmp;Database=d;Username=a;Password=b", "host", "socket"),
            ("Host=h.example;Database=d;Username=a;Password=b;Search Path=shop", "parameter", "tenantry"),
            ("Host=h.example;Database=d;Username=a;Password={your_password}", "placeholder", "password"),
            ("Host=h.example;Server=h2.example;Database=d;Username=a", "parameter", "twice"),
            ("Server=h.example;Database=d;User Id=a;Password=b", "required", "postgresql or mysql"),
            ("Driver={MySQL ODBC 8.0 Unicode Driver};Server=h.example;Database=d;Uid=a;Pwd={b}", "odbc", "one by one"),
            ("a:b@unix(/tmp/mysql.sock)/d", "host", "socket"),
            ("a:b@cloudsql(x:y:z)/d", "host", "tcp(host:3306)"),
            ("mysql://a:b%40@tcp(h.example:3306)/d", "percent-encoding", "one by one"),
            ("a:b@tcp(h.example:3306)/d?allowFallbackToPlaintext=true", "parameter", "allowFallbackToPlaintext"),
            ("postgres://a:b@tcp(h.example:5432)/d", "host", "brackets"),
            ("jdbc:mysql://address=(host=h.example)(port=3306)/d", "host", "brackets"),
        ] {
            let (found, detail) = refusal(text);
            assert_eq!(found, code, "{text}: {detail}");
            assert!(detail.contains(says), "{text}: {detail}");
        }
        let text = SecretString::from("Server=h.example;Database=d;User Id=a;Password=b".to_owned());
        let target = Target::from_url(&text, Some(Engine::Mysql), None, None).expect("its engine is said beside it");
        assert_eq!((target.engine, target.port), (Engine::Mysql, 3306));
    }

    #[test]
    fn lines_of_one_file_are_taken_together() {
        for text in [
            "spring.datasource.url=jdbc:postgresql://h.example:5432/shop\nspring.datasource.username=a\nspring.datasource.password=p\\\\q",
            "# the shop\r\nserver.port=8080\r\nspring.datasource.url = jdbc\\:postgresql\\://h.example/shop\r\n\
             spring.datasource.username = a\r\nspring.datasource.password = p\\u005cq\r\nspring.jpa.open-in-view=false",
            "spring:\n  datasource:\n    url: jdbc:postgresql://h.example/shop?user=a&password=p%5Cq\n    hikari:\n",
            "SPRING_DATASOURCE_URL=jdbc:postgresql://h.example/shop\nSPRING_DATASOURCE_USERNAME=a\nSPRING_DATASOURCE_PASSWORD=\"pq\"",
            "PGHOST='h.example'\nPGDATABASE='shop'\nPGUSER='a'\nPGPASSWORD='pq'\nPGSSLMODE='require'\nPGCHANNELBINDING='require'",
            "APP_NAME=x\nDB_CONNECTION=pgsql\nDB_HOST=h.example\nDB_PORT=5432\nDB_DATABASE=shop\nDB_USERNAME=a\nDB_PASSWORD=pq\nPORT=80",
            "username = a\npassword = pq\nhost = h.example\nport = 5432\ndatabase = shop\nsslmode = require",
            "{\n  \"host\": \"h.example\",\n  \"port\": 5432,\n  \"dbname\": \"shop\",\n  \"username\": \"a\",\n  \"password\": \"pq\"\n}",
            "APP_NAME=x\nSHOP_DSN='postgres://a:pq@h.example/shop'",
            "# pooled\nDATABASE_URL=\"postgres://a:pq@h.example/shop\"\n",
            // What is said twice is said alike.
            "DATABASE_URL=postgres://a:pq@h.example/shop\nDIRECT_URL=postgres://a:pq@h.example:5432/shop",
            "DB_URL=postgres://a:pq@h.example/shop\nDB_URL=postgres://a:pq@H.example/shop",
            "DATABASE_URL=postgres://a:pq@h.example/shop\nPGHOST=h.example\nPGPORT=5432\nPGPASSWORD=pq",
            // Vercel's, and with a pooler: what its name calls direct is the one.
            "POSTGRES_URL=\"postgres://a:pq@h.example/shop?sslmode=require\"\n\
             POSTGRES_PRISMA_URL=\"postgres://a:pq@h.example/shop?sslmode=require&pgbouncer=true&connect_timeout=15\"\n\
             POSTGRES_URL_NO_SSL=\"postgres://a:pq@h.example/shop\"\n\
             POSTGRES_URL_NON_POOLING=\"postgres://a:pq@h.example/shop?sslmode=require\"\n\
             POSTGRES_USER=\"a\"\nPOSTGRES_HOST=\"h.example\"\nPOSTGRES_PASSWORD=\"pq\"\nPOSTGRES_DATABASE=\"shop\"",
            "POSTGRES_URL=postgres://a:pq@h-pooler.example/shop\nPOSTGRES_URL_NON_POOLING=postgres://a:pq@h.example/shop\n\
             POSTGRES_USER=a\nPOSTGRES_HOST=h-pooler.example\nPGHOST=h-pooler.example\nPGHOST_UNPOOLED=h.example",
            "DATABASE_URL=postgres://a.ref:pq@h-pooler.example:6543/shop\nDIRECT_URL=postgres://a:pq@h.example/shop",
            // An empty one says nothing.
            "DB_CONNECTION=pgsql\nDB_URL=\nDB_HOST=h.example\nDB_DATABASE=shop\nDB_USERNAME=a\nDB_PASSWORD=pq",
            "$env:PGHOST=\"h.example\"\n$env:PGDATABASE=\"shop\"\n$env:PGUSER=\"a\"\n$env:PGPASSWORD=\"pq\"",
            "DB_DSN=pgsql:host=h.example;dbname=shop\nDB_USER=a\nDB_PASSWORD=pq",
            "[postgresql]\nhost=h.example\ndatabase=shop\nuser=a\npassword=pq",
            "DATABASES = {\n    'default': {\n        'ENGINE': 'django.db.backends.postgresql_psycopg2',\n        'NAME': 'shop',\n\
             'USER': 'a',\n        'PASSWORD': 'pq',\n        'HOST': 'h.example',\n        'PORT': '',\n    }\n}",
            "'ENGINE': 'django.contrib.gis.db.backends.postgis',\n'NAME': 'shop',\n'USER': 'a',\n'PASSWORD': 'pq',\n\
             'OPTIONS': {\n'sslmode': 'require',\n},\n'HOST': 'h.example',",
        ] {
            let target = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((target.engine, target.port), (Engine::Postgresql, 5432), "{text}");
            assert_eq!((target.host.as_str(), target.database.as_str()), ("h.example", "shop"), "{text}");
            let password = if text.contains('\\') || text.contains("%5C") { "p\\q" } else { "pq" };
            assert_eq!((target.username.as_str(), target.password.expose_secret()), ("a", password), "{text}");
        }
        for text in [
            "[client]\nuser=a\npassword=pq\nhost=h.example\nport=3306\ndatabase=shop",
            "# mine\n[client]\nuser = a\npassword = \"pq\"\nhost = h.example\nquick\n\n[mysql]\ndatabase = shop\nno-auto-rehash\n\
             [mysqld]\nbind-address = 0.0.0.0\nhost = h2.example\nuser = mysql\nsql_mode = \"X'Y\"",
            "[mysqld]\nhost=h.example\nuser=a\npassword=pq\ndatabase=shop",
            "MYSQLHOST=h.example\nMYSQLPORT=3306\nMYSQLUSER=a\nMYSQLPASSWORD=pq\nMYSQLDATABASE=shop\nMYSQL_DATABASE=shop\n\
             MYSQL_ROOT_PASSWORD=pq\nMYSQL_URL=mysql://a:pq@h.example:3306/shop",
            "WORDPRESS_DB_HOST=h.example:3306\nWORDPRESS_DB_USER=a\nWORDPRESS_DB_PASSWORD=pq\nWORDPRESS_DB_NAME=shop",
            "environment:\n  - WORDPRESS_DB_HOST=h.example\n  - WORDPRESS_DB_USER=a\n  - WORDPRESS_DB_PASSWORD=pq\n\
             - WORDPRESS_DB_NAME=shop\n  - WORDPRESS_TABLE_PREFIX=wp_",
            "<?php\n/**\n * The name of the database\n */\ndefine( 'DB_NAME', 'shop' );\ndefine('DB_USER', 'a');\n\
             define( \"DB_PASSWORD\", \"pq\" );\n/** Host */\ndefine( 'DB_HOST', 'h.example:3306' );\n\
             define( 'DB_CHARSET', 'utf8mb4' );\ndefine( 'DB_COLLATE', '' );\ndefine('AUTH_KEY', 'it\\'s');\n\
             $table_prefix = 'wp_';\nif ( ! defined( 'ABSPATH' ) ) {\n}",
            "'ENGINE': 'django.db.backends.mysql',\n'NAME': 'shop',\n'USER': 'a',\n'PASSWORD': 'pq',\n'HOST': 'h.example',",
        ] {
            let target = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((target.engine, target.port), (Engine::Mysql, 3306), "{text}");
            assert_eq!((target.host.as_str(), target.database.as_str()), ("h.example", "shop"), "{text}");
            assert_eq!((target.username.as_str(), target.password.expose_secret()), ("a", "pq"), "{text}");
        }
        for (text, code, says) in [
            (
                "DATABASE_URL=postgres://a:b@h.example/d\nTEST_URL=postgres://a:b@h2.example/d",
                "several-lines",
                "which differ in the host; give one of them, or host",
            ),
            (
                "DATABASE_URL=postgres://a:b@h.example/d\nDIRECT_URL=postgres://a:c@h.example/d",
                "several-lines",
                "in the password",
            ),
            ("DATABASE_URL=postgres://a:b@h.example/d\nPGHOST=h2.example", "parameter", "the host is given twice"),
            ("DATABASE_URL=postgres://a:b@h.example/d\nPGPORT=6543", "parameter", "the port is given twice"),
            ("POSTGRES_URL=postgres://a:b@h.example/d\nPOSTGRES_USER=c", "parameter", "the user is given twice"),
            ("DATABASE_URL=postgres://a:b@h.example/d\nMYSQL_USER=a", "several-lines", "in the engine"),
            ("DB_HOST=h.example\nPGHOST=h.example", "several-lines", "more than one connection; give one of them, or"),
            ("[a]\nhost=h.example\nuser=a\n[b]\nhost=h2.example\nuser=a", "several-lines", "several sections"),
            ("[client]\nuser=a\npassword=b\n[mysql]\ndatabase=d", "host", "no host"),
            ("'ENGINE': 'django.db.backends.sqlite3',\n'NAME': 'd.sqlite3',", "scheme", "SQLite"),
            ("DATABASE_URL=${{Postgres.DATABASE_URL}}\nPORT=80", "placeholder", "connection string"),
            ("DB_HOST=h.example\nDB_PASSWORD=\u{201c}b\u{201d}", "malformed", "typographic quotes"),
            ("DB_DSN=mysql:host=h.example;dbname=d\nDB_PASSWORD=b", "required", "user=…;password=…"),
            ("APP_NAME=x\nMAIL_PASSWORD=y", "several-lines", "none is known"),
            ("DB_HOST=h.example\nDB_PASSWORD=p\\q", "several-lines", "the password has"),
            ("DB_HOST=h.example\nDB_PASSWORD=p #q", "several-lines", "the password has"),
            ("DB_HOST=h.example\nDB_PASSWORD=${SEKRET:x}", "placeholder", "password"),
            ("DB_HOST=h.example\nDB_DATABASE=d\nDB_USERNAME=a", "required", "postgresql or mysql"),
            ("DB_URL=postgres://a:b@h.example/d\nDB_PASSWORD=c", "parameter", "twice"),
            ("postgres://a:b@h.example\n/d", "malformed", "one line"),
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

    /// What is printable, with more of what means something somewhere.
    fn written(least: usize) -> impl Strategy<Value = String> {
        let letter =
            prop::sample::select("aB7 \"'`;%=\\@:/?#&+{}()[]$,.\u{e9}\u{4e2d}\u{1f600}".chars().collect::<Vec<_>>());
        let odd = prop::collection::vec(letter, least..24).prop_map(String::from_iter);
        let any = proptest::string::string_regex(&format!("\\\\PC{{{least},24}}")).expect("a pattern");
        odd.boxed().prop_union(any.boxed())
    }

    fn encoded(text: &str) -> String {
        percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
    }

    /// As each form writes what is quoted in it.
    fn writings(user: &str, password: &str, database: &str) -> Vec<String> {
        let libpq = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
        let ado = |quote: &str, text: &str| format!("{quote}{}{quote}", text.replace(quote, &quote.repeat(2)));
        let [u, p, d] = [user, password, database].map(encoded);
        let [lu, lp, ld] = [user, password, database].map(libpq);
        let mut writings = vec![
            format!("postgres://{u}:{p}@h.example:5432/{d}"),
            format!("DATABASE_URL=\"mysql://{u}:{p}@h.example/{d}?charset=utf8\""),
            format!("jdbc:postgresql://h.example/{d}?user={u}&password={p}"),
            format!("host=h.example user={lu} dbname={ld} password={lp}"),
            format!("pgsql:host=h.example;dbname={ld};user={lu};password={lp}"),
        ];
        let [du, dp, dd] = [user, password, database].map(|text| text.replace(';', ";;"));
        writings.push(format!("mysql:host=h.example;dbname={dd};user={du};password={dp};charset=utf8"));
        for quote in ["\"", "'"] {
            let [u, p, d] = [user, password, database].map(|text| ado(quote, text));
            writings.push(format!("Host=h.example;Username={u};Password={p};Database={d};Pooling=true"));
            writings.push(format!("Password={p};Server=h.example;Uid={u};Database={d}"));
        }
        writings
    }

    proptest! {
        #[test]
        fn what_is_written_by_the_rules_of_a_form_is_read_as_it_was(
            user in written(1), password in written(1), database in written(1)
        ) {
            prop_assume!(![&user, &password, &database].into_iter().any(|text| is_gap(text)));
            for text in writings(&user, &password, &database) {
                let target = match parse(&text) {
                    Ok(target) => target,
                    Err(error) => panic!("{text}: {error}"),
                };
                prop_assert_eq!(target.host.as_str(), "h.example", "{}", &text);
                prop_assert_eq!((&target.username, &target.database), (&user, &database), "{}", &text);
                prop_assert_eq!(target.password.expose_secret(), &password, "{}", &text);
            }
        }

        #[test]
        fn no_piece_of_a_password_is_taken_for_a_place(password in "[a-c1@/:?#&=%]{1,12}", scheme in 0..2_usize) {
            let text = format!("{}://user:{password}@h.example:5432/d", ["postgres", "mysql"][scheme]);
            if let Ok(target) = parse(&text) {
                prop_assert_eq!((target.host.as_str(), target.port), ("h.example", 5432), "{}", &text);
                prop_assert_eq!((target.username.as_str(), target.database.as_str()), ("user", "d"), "{}", &text);
            }
        }

        #[test]
        fn no_text_panics_and_no_refusal_repeats_the_password(
            parts in prop::collection::vec(prop::sample::select(FRAGMENTS), 1..12), noise in any::<String>(), at in 0..12_usize
        ) {
            let mut parts = parts;
            let place = at.min(parts.len());
            parts.insert(place, NEEDLE);
            let text = parts.concat();
            for text in [&text, &format!("{text}{noise}"), &format!("{noise}{text}"), &noise] {
                for engine in [None, Some(Engine::Mysql)] {
                    if let Err(error) = Target::from_url(&text.clone().into(), engine, None, None) {
                        prop_assert!(!format!("{error:?}").to_lowercase().contains(NEEDLE), "{text}: {error:?}");
                    }
                }
            }
        }
    }

    const NEEDLE: &str = "hunter2needle";

    /// Of every form, so that chance comes far into each.
    const FRAGMENTS: &[&str] = &[
        "postgres://",
        "mysql://",
        "jdbc:",
        "mysql:",
        "pgsql:",
        "a:",
        "a",
        "@",
        "h.example",
        ":5432",
        "/d",
        "/",
        "?",
        "&",
        "=",
        ";",
        "\n",
        " ",
        "#",
        "%",
        "%2F",
        "'",
        "\"",
        "\\",
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        ",",
        "$",
        "user=",
        "password=",
        "host=h.example",
        "dbname=d",
        "sslmode=",
        "ssl=",
        "options=",
        "schema=",
        "port=",
        "target_session_attrs=",
        "Host=h.example;",
        "Username=a;",
        "Password=",
        "Database=d;",
        "tcp(",
        ")/d",
        "export ",
        "PGPASSWORD=",
        "DB_HOST=h.example\n",
        "DB_PASSWORD=",
        "spring.datasource.url=",
        "psql ",
        "$env:",
        "[client]\n",
        "host=h.example\n",
        "define('DB_PASSWORD', '",
        "');\n",
        "POSTGRES_URL=",
        "DIRECT_URL=postgres://a:b@h.example/d\n",
        "'ENGINE': 'django.db.backends.mysql',\n",
        "\u{201c}",
        "\u{feff}",
    ];
}
