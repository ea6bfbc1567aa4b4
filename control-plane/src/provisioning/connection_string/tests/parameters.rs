//! What the parameters of a URL say.

use super::super::*;
use super::{parse, refusal};

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
        ("postgres", "pool_max_conns=10&pool_max_conn_lifetime=1h&default_query_exec_mode=exec&x-migrations-table=m"),
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
    let (_, detail) =
        refusal("postgres://a:b@h.example/d?hostaddr=1&sslkey=2&schema=s3cret&target_session_attrs=standby&s3cret=1");
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
