//! Databases on the shared MariaDB, as owners bring them.

use std::sync::atomic::{AtomicU32, Ordering};

use devkit::MariaDb;
use devkit::testing::shared_mariadb;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, MySqlConnection};

use crate::cluster::block_on;

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// An empty database with a login of its own that has every right on it and none elsewhere. Dropped with the test.
pub struct TestMariaDb {
    /// The administrator's way to the server.
    admin_url: String,
    port: u16,
    pub name: String,
}

impl TestMariaDb {
    pub async fn create() -> Self {
        Self::with_rights("all privileges").await
    }

    /// One whose login may do only this much.
    pub async fn with_rights(rights: &str) -> Self {
        Self::on(shared_mariadb().await, rights).await
    }

    /// One on another server than the shared one.
    pub(crate) async fn on(server: &MariaDb, rights: &str) -> Self {
        let name = format!("it_my_{}", COUNTER.fetch_add(1, Ordering::SeqCst));
        let database = Self { admin_url: server.url(""), port: server.port(), name };
        let mut admin = server.connect(None).await.unwrap();
        let (name, password) = (&database.name, database.password());
        for statement in [
            format!("create database {name}"),
            format!("create user '{name}'@'%' identified by '{password}'"),
            format!("grant {rights} on `{}`.* to '{name}'@'%'", name.replace('_', "\\_")),
        ] {
            admin.execute(AssertSqlSafe(statement)).await.unwrap();
        }
        admin.close().await.unwrap();
        database
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn password(&self) -> String {
        format!("brought-secret-{}", self.name)
    }

    /// How its owner reaches it.
    pub fn url(&self) -> String {
        format!("mysql://{}:{}@127.0.0.1:{}/{}", self.name, self.password(), self.port(), self.name)
    }

    /// What connects a store to it.
    pub fn body(&self) -> Value {
        json!({ "engine": "mysql", "connectionString": self.url() })
    }

    /// A connection of the administrator to it.
    pub async fn admin(&self) -> MySqlConnection {
        connect(&self.admin_url, &self.name).await.unwrap()
    }
}

/// Connects as the administrator, who has no use for TLS.
async fn connect(admin_url: &str, database: &str) -> Result<MySqlConnection, sqlx::Error> {
    MySqlConnection::connect(&format!("{admin_url}{database}?ssl-mode=DISABLED")).await
}

impl Drop for TestMariaDb {
    fn drop(&mut self) {
        let (admin_url, name) = (self.admin_url.clone(), self.name.clone());
        block_on(async move {
            let mut admin = connect(&admin_url, "").await?;
            admin.execute(AssertSqlSafe(format!("drop user if exists '{name}'@'%'"))).await?;
            // A session that is still in a transaction would keep the drop waiting.
            let sessions: Vec<i64> =
                sqlx::query_scalar("select cast(id as signed) from information_schema.processlist where db = ?")
                    .bind(&name)
                    .fetch_all(&mut admin)
                    .await?;
            for session in sessions {
                // It may have gone by itself.
                drop(admin.execute(AssertSqlSafe(format!("kill {session}"))).await);
            }
            admin.execute(AssertSqlSafe(format!("drop database if exists {name}"))).await?;
            admin.close().await
        });
    }
}
