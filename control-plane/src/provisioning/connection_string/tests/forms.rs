//! The forms of drivers and frameworks that are no URLs, and several lines of one file.

use super::super::*;
use super::{parse, refusal};

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
        ("ConnectionStrings__Default=Host=h.example;Database=shop;Username=a;Password=pq", Engine::Postgresql, "pq"),
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
    for text in ["postgres://a:b@zoë.example/d", "postgres://a:b@ñ/d", "é", "jdbcé://a", "postgres://é:é@é.example/é"]
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
