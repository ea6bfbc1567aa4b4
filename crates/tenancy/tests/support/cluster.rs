//! The private PostgreSQL of these tests.

use std::sync::atomic::{AtomicU32, Ordering};

use devkit::Postgres;
use devkit::testing::shared_postgres;
use sqlx::Connection as _;
use sqlx::postgres::PgConnection;

pub(crate) struct Cluster {
    pub(crate) port: u16,
    postgres: &'static Postgres,
}

/// A name for a role, a database or a host that no other test has.
pub(crate) fn unique_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("t_{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

impl Cluster {
    pub(crate) async fn shared() -> Self {
        let postgres = shared_postgres().await;
        Self { port: postgres.port(), postgres }
    }

    /// A connection as the superuser.
    pub(crate) async fn admin(&self, database: &str) -> PgConnection {
        PgConnection::connect(&self.postgres.url(database)).await.expect("the test server answers")
    }
}
