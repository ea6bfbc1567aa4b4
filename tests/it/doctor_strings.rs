//! Connection strings as they are pasted: what is understood leads to the database, what is not is refused by its part.

use integration_tests::TestMariaDb;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use crate::doctor::{app, expect_failure, expect_ok, said, test, test_url};
use crate::faults::run;

/// With everything in it that means something in a string.
const PASSWORD: &str = "p@ss:w/rd%? #&=+'\\x";
const ENCODED: &str = "p%40ss%3Aw%2Frd%25%3F%20%23%26%3D%2B%27%5Cx";

#[tokio::test(flavor = "multi_thread")]
async fn a_string_is_understood_whatever_it_is_pasted_with() {
    let (app, owner) = app().await;
    let database = app.cluster.brought().await;
    let (name, port) = (&database.database, app.cluster.port());
    let mut admin = database.admin().await;
    run(&mut admin, &format!("alter role {name} password '{}'", PASSWORD.replace('\'', "''"))).await;
    admin.close().await.unwrap();
    let url = format!("postgres://{name}:{ENCODED}@127.0.0.1:{port}/{name}");
    let quoted = PASSWORD.replace('\\', "\\\\").replace('\'', "\\'");
    for text in [
        format!("{url}\n"),
        format!("DATABASE_URL={url}"),
        format!("export DATABASE_URL=\"{url}\";\r\n"),
        format!("DATABASE_URL: {url}"),
        format!("\"url\": \"{url}\","),
        format!("psql {url}"),
        format!("psql \"{url}\""),
        format!("jdbc:postgresql://127.0.0.1:{port}/{name}?user={name}&password={ENCODED}"),
        format!("host=127.0.0.1 port={port} dbname={name} user={name} password='{quoted}'"),
        format!("pgsql:host=127.0.0.1;port={port};dbname={name};user={name};password='{quoted}'"),
        format!("Host=127.0.0.1;Port={port};Database={name};Username={name};Password={PASSWORD};Pooling=true"),
        format!(
            "spring.datasource.url=jdbc:postgresql://127.0.0.1:{port}/{name}\nspring.datasource.username={name}\n\
             spring.datasource.password={}\n",
            PASSWORD.replace('\\', "\\\\")
        ),
        format!(
            "{url}?options=endpoint%3Dep-cool-1&channel_binding=prefer&target_session_attrs=read-write&schema=public"
        ),
    ] {
        expect_ok(&test_url(&owner, &text).await);
    }

    let parts = json!({
        "engine": "postgres", "host": "127.0.0.1", "port": port, "database": name, "username": name, "password": PASSWORD
    });
    expect_ok(&test(&owner, parts.clone()).await);
    let mut copied = parts.clone();
    for (field, text) in [
        ("host", " 127.0.0.1 ".to_owned()),
        ("username", format!("{name}\n")),
        ("database", format!("\t{name}")),
        ("password", format!("{PASSWORD}\r\n")),
        ("caPem", String::new()),
    ] {
        copied[field] = json!(text);
    }
    expect_ok(&test(&owner, copied).await);
    let mut misplaced = parts;
    misplaced["host"] = json!(format!("127.0.0.1:{port}"));
    let report = test(&owner, misplaced).await;
    expect_failure(&report, "parse", "host");
    assert!(said(&report, "parse", "detail").contains("the port goes into port"), "{report}");

    let mariadb = TestMariaDb::create().await;
    let mut admin = mariadb.admin().await;
    let literal = PASSWORD.replace('\\', "\\\\").replace('\'', "''");
    let login = &mariadb.name;
    admin.execute(AssertSqlSafe(format!("alter user {login}@'%' identified by '{literal}'"))).await.unwrap();
    admin.close().await.unwrap();
    let url = format!("{login}:{ENCODED}@127.0.0.1:{}/{login}", mariadb.port());
    for scheme in ["mysql", "jdbc:mysql", "DB_URL: mysql2", "mariadb"] {
        expect_ok(&test_url(&owner, &format!("{scheme}://{url}")).await);
    }
    let port = mariadb.port();
    for text in [
        format!("{login}:{PASSWORD}@tcp(127.0.0.1:{port})/{login}?parseTime=true"),
        format!("mysql:host=127.0.0.1;port={port};dbname={login};user={login};password={PASSWORD};charset=utf8mb4"),
        format!("Server=127.0.0.1;Port={port};Database={login};Uid={login};Pwd={PASSWORD};"),
    ] {
        expect_ok(&test(&owner, json!({ "engine": "mariadb", "connectionString": text })).await);
    }
}

/// Files that are pasted whole, for a database whose password they all read alike.
#[tokio::test(flavor = "multi_thread")]
async fn lines_of_a_settings_file_are_understood() {
    let (app, owner) = app().await;
    let database = app.cluster.brought().await;
    let (name, url, password) = (&database.database, database.url(), database.password());
    for text in [
        format!("\u{feff}DATABASE_URL={url}\r\n"),
        format!("$env:DATABASE_URL=\"{url}\""),
        format!("DATABASE_URL={url}\nDIRECT_URL={url}"),
        format!(
            "POSTGRES_URL=\"{url}\"\nPOSTGRES_PRISMA_URL=\"{url}?pgbouncer=true\"\nPOSTGRES_URL_NON_POOLING=\"{url}\"\n\
             POSTGRES_USER=\"{name}\"\nPOSTGRES_HOST=\"127.0.0.1\"\nPOSTGRES_PASSWORD=\"{password}\"\nPOSTGRES_DATABASE=\"{name}\""
        ),
    ] {
        expect_ok(&test_url(&owner, &text).await);
    }
    let differs = format!("POSTGRES_URL={url}\nPOSTGRES_USER=somebody");
    let report = test_url(&owner, &differs).await;
    expect_failure(&report, "parse", "parameter");
    assert!(said(&report, "parse", "detail").contains("the user is given twice"), "{report}");

    let mariadb = TestMariaDb::create().await;
    let (name, port, password) = (&mariadb.name, mariadb.port(), mariadb.password());
    for text in [
        format!("[client]\nhost=127.0.0.1\nport={port}\nuser={name}\npassword={password}\n[mysql]\ndatabase={name}"),
        format!(
            "MYSQLHOST=127.0.0.1\nMYSQLPORT={port}\nMYSQLUSER={name}\nMYSQLPASSWORD={password}\nMYSQLDATABASE={name}"
        ),
        format!(
            "WORDPRESS_DB_HOST=127.0.0.1:{port}\nWORDPRESS_DB_USER={name}\nWORDPRESS_DB_PASSWORD={password}\n\
             WORDPRESS_DB_NAME={name}"
        ),
        format!(
            "<?php\n// ** Database settings ** //\ndefine( 'DB_NAME', '{name}' );\ndefine( 'DB_USER', '{name}' );\n\
             define( 'DB_PASSWORD', '{password}' );\ndefine( 'DB_HOST', '127.0.0.1:{port}' );\n"
        ),
        format!(
            "DATABASES = {{\n'default': {{\n'ENGINE': 'django.db.backends.mysql',\n'NAME': '{name}',\n'USER': '{name}',\n\
             'PASSWORD': '{password}',\n'HOST': '127.0.0.1',\n'PORT': '{port}',\n}}\n}}"
        ),
    ] {
        expect_ok(&test_url(&owner, &text).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_understood_is_named_by_its_part_and_not_repeated() {
    let (_app, owner) = app().await;
    for (text, code, word) in [
        ("psql -h h.example -U hunter1 hunter2", "shell-line", "one by one"),
        ("PGPASSWORD=hunter2 psql -h h.example -U hunter1 d", "shell-line", "one by one"),
        ("host=h.example dbname=d user=hunter1 password=hunter2 hunter3", "malformed", "quotes"),
        ("host=/tmp dbname=d user=hunter1", "host", "socket"),
        ("host=h1,h2 dbname=d user=hunter1", "host", "several"),
        ("host=h.example port=hunter1 dbname=d user=a", "malformed", "port"),
        ("host=h.example dbname=d user=a hunter1=x", "parameter", "no word"),
        ("postgres://hunter1:${PW}@h.example/d", "placeholder", "password"),
        ("postgres://hunter1:$PW@h.example/d", "placeholder", "password"),
        ("postgres://hunter1:<password>@h.example/d", "placeholder", "password"),
        ("postgres://hunter1:****@h.example/d", "placeholder", "password"),
        ("postgres://hunter1:hunter2@<host>/d", "placeholder", "host"),
        ("postgres://hunter1:hunter2@HOST:PORT/d", "placeholder", "host"),
        ("postgres://hunter1:your_password@h.example/d", "placeholder", "password"),
        ("DATABASE_URL=${{Postgres.DATABASE_URL}}", "placeholder", "connection string"),
        ("postgres://hunter1:a@hunter2/c:hunter3@127.0.0.1:1/d", "malformed", "%40"),
        ("mysql://hunter1:p@localhost/hunter2@127.0.0.1:1/d", "malformed", "%40"),
        ("mysql://hunter1:p@hunter2?hunter3@127.0.0.1:1/d", "malformed", "%3F"),
        ("\u{201c}postgres://hunter1:hunter2@h.example/d\u{201d}", "malformed", "typographic"),
        ("", "required", "is empty"),
        ("jdbc:postgresql://h.example/hunter1", "required", "?user=…"),
        (
            "DATABASE_URL=postgres://a:hunter1@h.example/d\nTEST_URL=postgres://a:hunter2@h.example/d",
            "several-lines",
            "in the password",
        ),
        ("jdbc:postgresql://h.example/d?user=hunter1&password=hunter2%zz", "percent-encoding", "password"),
        ("postgres://hunter1:hunter2%zz@h.example/d", "percent-encoding", "password"),
        ("postgres://hunter1:hunter2@h.example/d?hunter3%zz", "percent-encoding", "behind the ?"),
        ("postgres://hunter1:hunter2@h.example/d?schema=hunter3&sslkey=hunter4", "parameter", "schema tenantry"),
        ("postgres://hunter1:hunter2@h.example/d?target_session_attrs=standby", "parameter", "has to write"),
        ("postgres://hunter1:hunter2@h.example:99999/d", "port", "1 to 65535"),
        ("jdbc:mysql:loadbalance://h1,h2/d?user=hunter1", "scheme", "the primary"),
        ("mysql:host=h.example;dbname=hunter1", "required", "user=…"),
        ("Host=h.example;Database=d;Username=a;Password=hunter1;hunter2", "malformed", "in quotes"),
        ("Server=h.example;Database=d;User Id=a;Password=hunter1", "required", "postgresql or mysql"),
        ("Driver={MySQL};Server=h.example;Database=d;Uid=a;Pwd=hunter1", "odbc", "one by one"),
        ("DB_HOST=h.example\nDB_PASSWORD=hunter1\\hunter2", "several-lines", "one by one"),
    ] {
        let report = test_url(&owner, text).await;
        expect_failure(&report, "parse", code);
        assert!(said(&report, "parse", "detail").contains(word), "{text}: {report}");
        assert!(!report.to_string().contains("hunter"), "{text}: {report}");
    }
    let key = "-----BEGIN PRIVATE KEY-----\nhunter1\n-----END PRIVATE KEY-----\n";
    let report = test(&owner, json!({ "connectionString": "postgres://a:b@h.example/d", "caPem": key })).await;
    expect_failure(&report, "parse", "private-key");
    assert!(!report.to_string().contains("hunter"), "{report}");
    // Of another engine than the one that is said beside it.
    let body = json!({ "engine": "mysql", "connectionString": "host=h.example dbname=d user=a password=b" });
    expect_failure(&test(&owner, body).await, "parse", "contradiction");
}
