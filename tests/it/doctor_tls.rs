//! What the connection doctor says of certificates, on both engines.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use devkit::MariaDb;
use devkit::testing::own_mariadb;
use integration_tests::{Cluster, eventually, own_cluster};
use rcgen::{CertificateParams, IsCa, KeyPair};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, MySqlConnection};

use crate::doctor::{app, expect_failure, expect_ok, expect_skipped_after, fields, first_failure, line, said, test};
use crate::faults::run;
use crate::outages::Authority;

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_shown_and_what_is_wrong_with_them_is_told_apart() {
    let (_app, owner) = app().await;
    let server = own_cluster("doctor-tls").await;
    let (authority, stranger) = (Authority::new(), Authority::new());
    let database = server.brought().await;
    let port = server.port();
    let body = |tls: &str, ca: Option<&Authority>| {
        let ca = ca.map_or(json!({}), |ca| json!({ "caPem": ca.pem }));
        let mut body = fields(&database, port, &ca);
        body["tls"] = json!(tls);
        body
    };
    let report = test(&owner, body("require", None)).await;
    expect_failure(&report, "tls", "no-tls");
    expect_skipped_after(&report, "tls");

    present(server, "good", &authority.certify("127.0.0.1", 2095)).await;
    expect_failure(&test(&owner, body("verify-full", None)).await, "tls", "unknown-authority");
    let report = test(&owner, body("verify-full", Some(&stranger))).await;
    expect_failure(&report, "tls", "unknown-authority");
    assert!(said(&report, "tls", "advice").contains("did not sign"), "{report}");
    let report = test(&owner, body("require", None)).await;
    expect_ok(&report);
    assert_eq!(
        (&line(&report, "tls")["state"], said(&report, "tls", "code")),
        (&json!("warning"), "unknown-authority")
    );
    let report = test(&owner, body("verify-full", Some(&authority))).await;
    expect_ok(&report);
    let shown = said(&report, "tls", "detail");
    for word in ["TLS 1.3", "verify-full", "127.0.0.1", "issued by", "2095-12-31"] {
        assert!(shown.contains(word), "{shown}");
    }
    let mut unreadable = fields(&database, port, &json!({ "tls": "verify-full" }));
    unreadable["caPem"] = json!("-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n");
    expect_failure(&test(&owner, unreadable).await, "parse", "malformed");

    // An authority's own certificate is no server's, whoever trusts it.
    present(server, "itself", &authority.own()).await;
    for trusted in [None, Some(&authority)] {
        let report = test(&owner, body("verify-full", trusted)).await;
        expect_failure(&report, "tls", "self-signed");
        assert!(said(&report, "tls", "detail").contains("CA:TRUE"), "{report}");
    }
    // One that signs itself and is none, is taken where it is given, as the advice says.
    let (mut params, key) = (CertificateParams::new(["127.0.0.1".to_owned()]).unwrap(), KeyPair::generate().unwrap());
    params.is_ca = IsCa::ExplicitNoCa;
    let alone = params.self_signed(&key).unwrap().pem();
    present(server, "alone", &(alone.clone(), key.serialize_pem())).await;
    expect_failure(&test(&owner, body("verify-full", None)).await, "tls", "unknown-authority");
    expect_ok(&test(&owner, fields(&database, port, &json!({ "tls": "verify-full", "caPem": alone }))).await);
    present(server, "other", &authority.certify("db.elsewhere.example", 2095)).await;
    let report = test(&owner, body("verify-full", Some(&authority))).await;
    expect_failure(&report, "tls", "certificate-name");
    assert!(said(&report, "tls", "detail").contains("db.elsewhere.example"), "{report}");
    expect_ok(&test(&owner, body("verify-ca", Some(&authority))).await);
    present(server, "expired", &authority.certify("127.0.0.1", 2020)).await;
    expect_failure(&test(&owner, body("verify-full", Some(&authority))).await, "tls", "certificate-expired");
    present(server, "early", &authority.certify_between("127.0.0.1", 2090, 2095)).await;
    expect_failure(&test(&owner, body("verify-ca", Some(&authority))).await, "tls", "certificate-not-yet-valid");
}

/// Puts a certificate and its key into the folder of MariaDB's data, and starts the server anew with them.
async fn present_in_mariadb(server: &mut devkit::MariaDb, name: &str, (certificate, key): &(String, String)) {
    let mut admin = server.connect(None).await.unwrap();
    let folder: String = sqlx::query_scalar("select @@datadir").fetch_one(&mut admin).await.unwrap();
    for (end, text) in [("crt", certificate), ("key", key)] {
        let encoded = BASE64_STANDARD.encode(text);
        let write = format!("select from_base64('{encoded}') into dumpfile '{folder}{name}.{end}'");
        admin.execute(AssertSqlSafe(write)).await.unwrap();
    }
    admin.close().await.unwrap();
    let [certificate, key] = ["cert", "key"].map(|what| {
        let end = if what == "cert" { "crt" } else { "key" };
        format!("--ssl-{what}={folder}{name}.{end}")
    });
    server.set_options(&[&certificate, &key]);
    server.restart().await.unwrap();
}

/// A database `shop` of a user `shop`, whose password is `a-secret-word`; returns the administrator's connection.
pub(crate) async fn shop_on(server: &MariaDb) -> MySqlConnection {
    let mut admin = server.connect(None).await.unwrap();
    for statement in [
        "create database shop",
        "create user shop@'%' identified by 'a-secret-word'",
        "grant all privileges on shop.* to shop@'%'",
    ] {
        admin.execute(statement).await.unwrap();
    }
    admin
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadbs_certificates_are_told_apart_as_well_and_a_read_only_or_crowded_server_is_told() {
    let (_app, owner) = app().await;
    let mut server = own_mariadb("doctor").await;
    let (authority, stranger) = (Authority::new(), Authority::new());
    shop_on(&server).await.close().await.unwrap();
    let port = server.port();
    let body = |tls: &str, ca: Option<&Authority>| {
        let mut body = json!({ "engine": "mysql", "host": "127.0.0.1", "port": port, "username": "shop",
            "password": "a-secret-word", "database": "shop", "tls": tls });
        if let Some(ca) = ca {
            body["caPem"] = json!(ca.pem);
        }
        body
    };
    expect_failure(&test(&owner, body("require", None)).await, "tls", "no-tls");
    present_in_mariadb(&mut server, "good", &authority.certify("127.0.0.1", 2095)).await;
    expect_failure(&test(&owner, body("verify-full", Some(&stranger))).await, "tls", "unknown-authority");
    let report = test(&owner, body("verify-full", Some(&authority))).await;
    expect_ok(&report);
    assert!(said(&report, "tls", "detail").contains("2095-12-31"), "{report}");
    present_in_mariadb(&mut server, "other", &authority.certify("db.elsewhere.example", 2095)).await;
    expect_failure(&test(&owner, body("verify-full", Some(&authority))).await, "tls", "certificate-name");
    expect_ok(&test(&owner, body("verify-ca", Some(&authority))).await);
    present_in_mariadb(&mut server, "expired", &authority.certify("127.0.0.1", 2020)).await;
    expect_failure(&test(&owner, body("verify-full", Some(&authority))).await, "tls", "certificate-expired");
    assert_eq!(said(&test(&owner, body("require", None)).await, "tls", "code"), "certificate-expired");

    let mut admin = server.connect(None).await.unwrap();
    admin.execute("set global read_only = 1").await.unwrap();
    let report = test(&owner, body("disable", None)).await;
    expect_failure(&report, "server", "read-only");
    // The rest can be looked at all the same.
    assert_eq!(line(&report, "privileges")["state"], "passed", "{report}");
    // As it is copied: first it shows whether the server is a replica, which is not to be written to.
    let statements = said(&report, "server", "sql").to_owned();
    let (replica, writable) = (statements.find("\nSHOW REPLICA STATUS;"), statements.find("\nSET GLOBAL read_only"));
    assert!(statements.starts_with("-- ") && replica.is_some() && replica < writable, "{statements}");
    assert!(said(&report, "server", "advice").contains("SHOW SLAVE STATUS"), "{report}");
    admin.execute(sqlx::raw_sql(AssertSqlSafe(statements))).await.unwrap();
    expect_ok(&test(&owner, body("disable", None)).await);
    admin.execute("alter user shop@'%' password expire").await.unwrap();
    let report = test(&owner, body("disable", None)).await;
    expect_failure(&report, "server", "password-expired");
    assert_eq!(said(&report, "server", "serverCode"), "1820", "{report}");
    admin.execute("alter user shop@'%' identified by 'a-secret-word'").await.unwrap();
    admin.execute("alter user shop@'%' with max_user_connections 1").await.unwrap();
    let report = test(&owner, body("disable", None)).await;
    expect_failure(&report, "pooler", "login-connection-limit");
    let url = format!("mysql://shop:a-secret-word@127.0.0.1:{port}/shop?ssl-mode=DISABLED");
    let taken = MySqlConnection::connect(&url).await.unwrap();
    let report = test(&owner, body("disable", None)).await;
    expect_failure(&report, "login", "login-connection-limit");
    assert_eq!(said(&report, "login", "serverCode"), "1226", "{report}");
    taken.close().await.unwrap();
    admin.execute("alter user shop@'%' with max_user_connections 0").await.unwrap();
    admin.execute("alter user shop@'%' account lock").await.unwrap();
    expect_failure(&test(&owner, body("disable", None)).await, "login", "account-locked");
    admin.execute("alter user shop@'%' account unlock").await.unwrap();
    admin.execute("rename user shop@'%' to shop@'192.0.2.1'").await.unwrap();
    let report = test(&owner, body("disable", None)).await;
    assert_eq!(first_failure(&report).0, "login", "{report}");
    admin.close().await.unwrap();
    server.stop().await.unwrap();
}

/// Makes the server show this certificate to whoever connects from now on.
async fn present(cluster: &Cluster, name: &str, (certificate, key): &(String, String)) {
    let mut admin = cluster.admin().await;
    for (end, text) in [("crt", certificate), ("key", key)] {
        let encoded = BASE64_STANDARD.encode(text);
        run(&mut admin, &format!("copy (select '{encoded}') to program 'umask 077; base64 -d > {name}.{end}'")).await;
        let setting = if end == "crt" { "ssl_cert_file" } else { "ssl_key_file" };
        run(&mut admin, &format!("alter system set {setting} = '{name}.{end}'")).await;
    }
    run(&mut admin, "alter system set ssl = on").await;
    run(&mut admin, "select pg_reload_conf()").await;
    admin.close().await.unwrap();
    eventually("the server has the certificate", || async {
        let mut fresh = cluster.admin().await;
        let shown: String =
            sqlx::query_scalar("select current_setting('ssl') || ' ' || current_setting('ssl_cert_file')")
                .fetch_one(&mut fresh)
                .await
                .unwrap();
        fresh.close().await.unwrap();
        (shown == format!("on {name}.crt")).then_some(())
    })
    .await;
}
