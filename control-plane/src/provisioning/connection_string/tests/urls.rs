//! Connection strings that are URLs.

use super::super::*;
use super::{parse, refusal};

#[test]
fn a_connection_string_is_read_to_its_parts() {
    let target = parse("postgresql://ad%40a:p%3Ass%2Fw@db.example.com:6543/sh%20op?sslmode=require\n").expect("valid");
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
