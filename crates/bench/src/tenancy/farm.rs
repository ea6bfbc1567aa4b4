//! A private server with many small databases that are alike, each with a login of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context as _;
use devkit::{Postgres, PostgresOptions, Profile};
use kernel::Engine;
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tenancy::{Credential, TlsMode};
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::client::request;
use crate::load::Ask;
use crate::process;
use crate::report::say;

/// What every service is asked for.
pub(super) const PATH: &str = "/products";
/// One statement on one index, whose every row says which database it is of.
pub(super) const STATEMENT: &str = "select id, current_database()::text as shop, handle, title, price_minor, currency, is_available \
     from products order by id limit 20";
const TEMPLATE: &str = "shop_template";
/// Connections of the connection manager where none shall be closed for another.
pub(super) const COLD_BUDGET: usize = 200;
/// How many databases are made at a time.
const MAKERS: usize = 2;

/// A database that holds a shop's products, and the name that it goes by.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Shop {
    pub(super) hostname: String,
    /// The name of its database, and of its login.
    pub(super) name: String,
    port: u16,
    password: String,
}

impl Shop {
    /// How whoever has no connection manager reaches it.
    pub(super) fn pg_options(&self, application: &str) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.port)
            .username(&self.name)
            .password(&self.password)
            .database(&self.name)
            .ssl_mode(PgSslMode::Disable)
            .application_name(application)
            .options([("search_path", "tenantry")])
    }

    /// How the connection manager reaches it.
    pub(super) fn credential(&self) -> Credential {
        Credential {
            engine: Engine::Postgresql,
            host: "127.0.0.1".to_owned(),
            port: self.port,
            username: self.name.clone(),
            password: self.password.clone().into(),
            database: self.name.clone(),
            tls: TlsMode::Disable,
            ca_pem: None,
        }
    }

    /// The request for its list, and what only its answer holds.
    pub(super) fn ask(&self) -> Ask {
        Ask {
            request: request("GET", &self.hostname, PATH, "", ""),
            marker: format!("\"shop\":\"{}\"", self.name).into_bytes(),
        }
    }
}

pub(super) struct Farm {
    postgres: Postgres,
    data_dir: PathBuf,
    pub(super) shops: Vec<Shop>,
}

impl Farm {
    /// Makes `count` databases on a server of their own, which then is as durable as production.
    pub(super) async fn start(data_dir: &Path, count: usize, max_connections: usize) -> anyhow::Result<Self> {
        let options = |profile| -> anyhow::Result<PostgresOptions> {
            let mut options = PostgresOptions::new(data_dir, profile);
            options.bin_dir = process::env("PG_BINDIR").map(PathBuf::from);
            options.max_connections = u32::try_from(max_connections)?;
            Ok(options)
        };
        say(&format!("making {count} databases, of some 8 MB each ..."));
        let postgres = Postgres::start(options(Profile::Test)?).await?;
        let made = make(&postgres, count).await;
        postgres.stop().await?;
        let shops = made?;
        // What was written without waiting for the disk gets there now, and not while something is measured.
        let synced = Command::new("sync").status().await;
        anyhow::ensure!(synced.is_ok_and(|status| status.success()), "`sync` failed");
        let postgres = Postgres::start(options(Profile::Bench)?).await?;
        let data_dir = data_dir.to_owned();
        // The port may be another one than before.
        let port = postgres.port();
        let shops = shops.into_iter().map(|shop| Shop { port, ..shop }).collect();
        Ok(Self { postgres, data_dir, shops })
    }

    pub(super) async fn stop(self) -> anyhow::Result<()> {
        self.postgres.stop().await?;
        std::fs::remove_dir_all(&self.data_dir).with_context(|| format!("removing {}", self.data_dir.display()))
    }

    /// The server's first process.
    pub(super) fn process(&self) -> u32 {
        self.postgres.pid().unwrap_or_default()
    }

    /// A connection of the administrator.
    pub(super) async fn admin(&self) -> anyhow::Result<PgConnection> {
        Ok(PgConnection::connect(&self.postgres.url("postgres")).await?)
    }
}

async fn make(postgres: &Postgres, count: usize) -> anyhow::Result<Vec<Shop>> {
    let mut admin = PgConnection::connect(&postgres.url("postgres")).await?;
    admin.execute(AssertSqlSafe(format!("create database {TEMPLATE}"))).await?;
    let version: i32 =
        sqlx::query_scalar("select current_setting('server_version_num')::int").fetch_one(&mut admin).await?;
    admin.close().await?;
    let mut template = PgConnection::connect(&postgres.url(TEMPLATE)).await?;
    template
        .execute(
            "create schema tenantry;
             create table tenantry.products (
                 id bigint primary key, handle text not null, title text not null, price_minor bigint not null,
                 currency text not null, is_available boolean not null
             );
             insert into tenantry.products
             select n, 'tea-' || n, 'Mountain tea no ' || n, 500 + n % 90 * 25, 'EUR', n % 7 <> 0
             from generate_series(1, 200) n;
             grant usage on schema tenantry to public;
             grant select on tenantry.products to public",
        )
        .await?;
    template.execute("vacuum (analyze)").await?;
    template.close().await?;

    // Files are copied faster than logged, when nobody waits for the disk; older servers always copy them.
    let strategy = if version >= 150_000 { "strategy file_copy" } else { "" };
    let password = kernel::random::token();
    let shops: Arc<Vec<Shop>> = Arc::new(
        (0..count)
            .map(|n| Shop {
                hostname: format!("shop-{n:05}.stores.localhost"),
                name: format!("shop_{n:05}"),
                port: postgres.port(),
                password: password.clone(),
            })
            .collect(),
    );
    let next = Arc::new(AtomicUsize::new(0));
    let mut makers = JoinSet::new();
    for _ in 0..MAKERS {
        let (url, shops, next) = (postgres.url("postgres"), Arc::clone(&shops), Arc::clone(&next));
        makers.spawn(async move {
            let mut admin = PgConnection::connect(&url).await?;
            while let Some(Shop { name, password, .. }) = shops.get(next.fetch_add(1, Ordering::Relaxed)) {
                admin.execute(AssertSqlSafe(format!("create role {name} login password '{password}'"))).await?;
                let create = format!("create database {name} owner {name} template {TEMPLATE} {strategy}");
                admin.execute(AssertSqlSafe(create)).await?;
            }
            admin.close().await
        });
    }
    while let Some(done) = makers.join_next().await {
        done??;
    }
    Ok(shops.to_vec())
}
