//! The MariaDB server that tests share.

use devkit::testing::own_mariadb;
use sqlx::{Connection as _, Executor as _};

#[tokio::test]
async fn what_was_committed_is_there_after_the_server_was_killed() {
    let mut server = own_mariadb("killed").await;
    let mut connection = server.connect(None).await.unwrap();
    connection.execute("create database shop").await.unwrap();
    connection.execute("create table shop.teas (name text)").await.unwrap();
    connection.execute("insert into shop.teas values ('sencha')").await.unwrap();

    server.kill().await.unwrap();
    connection.ping().await.unwrap_err();

    server.restart().await.unwrap();
    let mut connection = server.connect(Some("shop")).await.unwrap();
    let names: Vec<String> = sqlx::query_scalar("select name from teas").fetch_all(&mut connection).await.unwrap();
    assert_eq!(names, ["sencha"]);
    connection.close().await.unwrap();
    server.stop().await.unwrap();
}

#[tokio::test]
async fn nobody_gets_in_without_the_password() {
    use sqlx::mysql::{MySqlConnectOptions, MySqlSslMode};
    use sqlx::{ConnectOptions as _, MySqlConnection};

    let server = own_mariadb("password").await;
    for user in ["root", "", "tenantry"] {
        let options = MySqlConnectOptions::new().host("127.0.0.1").port(server.port()).username(user);
        let options = options.ssl_mode(MySqlSslMode::Disabled).disable_statement_logging();
        let error = MySqlConnection::connect_with(&options).await.expect_err(user);
        let number =
            error.as_database_error().map(|error| error.downcast_ref::<sqlx::mysql::MySqlDatabaseError>().number());
        assert!(matches!(number, Some(1045 | 1698)), "{user}: {error}");
    }
    server.stop().await.unwrap();
}
