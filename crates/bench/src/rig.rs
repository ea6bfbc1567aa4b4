//! What everything is measured on: a private PostgreSQL, a master database, a node, and stores that are alike.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use devkit::{MariaDb, Postgres, PostgresOptions, Profile};
use futures_util::StreamExt as _;
use kernel::{Engine, StoreId};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tenancy::Credential;
use vault::{KeyRing, Sealed};

use crate::client::{Http, request};
use crate::load::Ask;
use crate::mysql;
use crate::process::{self, Server};
use crate::report::say;

/// The key that the measured nodes seal with.
pub(crate) const ENCRYPTION_KEY: &str = "dGVuYW50cnktYmVuY2gta2V5LTMyLWJ5dGVzLWxvbmc=";
/// The list that is measured.
pub(crate) const PATH: &str = "/store/v1/products?limit=20";
/// Three services keep their connections open while the others are measured.
const MAX_CONNECTIONS: u32 = 700;
const MASTER: &str = "tenantry_master";
/// Who owns all stores.
const OWNER: &str = "bench@example.com";
/// Tables whose rows make a store the store that it is; the others are copied from store to store.
pub(crate) const OWN_TABLES: [&str; 4] = ["_migrations", "store_identity", "settings", "staff"];

/// A store with a database of its own.
pub(crate) struct Store {
    pub(crate) id: StoreId,
    pub(crate) hostname: String,
    /// What its own products, and no other store's, are marked with. As long as any other store's.
    pub(crate) marker: String,
}

pub(crate) struct Rig {
    postgres: Postgres,
    mariadb: Option<MariaDb>,
    /// What the stores' databases are.
    pub(crate) engine: Engine,
    data_dir: PathBuf,
    pub(crate) node: Server,
    /// Of the owner of all stores.
    token: String,
    pub(crate) stores: Vec<Store>,
}

impl Rig {
    pub(crate) async fn start(engine: Engine, data_dir: Option<&Path>) -> anyhow::Result<Self> {
        let data_dir = data_dir.map_or_else(temporary_dir, Path::to_owned);
        let mut server = PostgresOptions::new(&data_dir, Profile::Bench);
        server.bin_dir = process::env("PG_BINDIR").map(PathBuf::from);
        server.max_connections = MAX_CONNECTIONS;
        // The statement of the list is read off the server, whole.
        server.settings = vec![("track_activity_query_size".to_owned(), "8192".to_owned())];
        let postgres = Postgres::start(server).await?;
        let mut admin = PgConnection::connect(&postgres.url("postgres")).await?;
        admin.execute(AssertSqlSafe(format!("create database {MASTER}"))).await?;
        admin.close().await?;

        let master_url = postgres.url(MASTER);
        let mut migrate = process::tenantry(&master_url)?;
        migrate.args(["migrate", "master"]);
        process::run(migrate).await?;
        let mariadb = match engine {
            Engine::Mysql => Some(MariaDb::start(&data_dir.join("mariadb"), Profile::Bench, MAX_CONNECTIONS).await?),
            _ => None,
        };
        let mut add = process::tenantry(&master_url)?;
        add.args(["servers", "add", "local", "--max-stores", "10000", "--max-connections", "300"]);
        add.env("SERVER_URL", mariadb.as_ref().map_or_else(|| postgres.url("postgres"), |server| server.url("mysql")));
        process::run(add).await?;

        let node = start_node(&master_url).await?;
        let body = json!({ "email": OWNER, "password": "correct horse battery", "firstName": "B", "lastName": "B" });
        let mut http = Http::connect(node.address).await?;
        let body = body.to_string();
        let register = request("POST", "localhost", "/api/auth/register", "content-type: application/json\r\n", &body);
        let registered = http.ask(&register).await?.json(201)?;
        let token = registered["tokens"]["accessToken"].as_str().context("no token")?.to_owned();
        Ok(Self { postgres, mariadb, engine, data_dir, node, token, stores: Vec::new() })
    }

    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        self.node.stop().await?;
        if let Some(mariadb) = self.mariadb {
            mariadb.stop().await?;
        }
        self.postgres.stop().await?;
        std::fs::remove_dir_all(&self.data_dir).with_context(|| format!("removing {}", self.data_dir.display()))
    }

    /// A new process for the node, which knows no route and has no pool.
    pub(crate) async fn restart_node(&mut self) -> anyhow::Result<()> {
        let next = start_node(&self.postgres.url(MASTER)).await?;
        std::mem::replace(&mut self.node, next).stop().await
    }

    /// One more node on the same master.
    pub(crate) async fn another_node(&self) -> anyhow::Result<Server> {
        start_node(&self.postgres.url(MASTER)).await
    }

    /// Makes the owner a platform admin, too.
    pub(crate) async fn grant_admin(&self) -> anyhow::Result<()> {
        let mut grant = process::tenantry(&self.postgres.url(MASTER))?;
        grant.args(["admin", "grant", OWNER]);
        process::run(grant).await
    }

    /// How somebody brings a database of the server.
    pub(crate) fn login_url(&self, username: &str, password: &str, database: &str) -> String {
        format!("postgres://{username}:{password}@127.0.0.1:{}/{database}", self.postgres.port())
    }

    /// How the administrator reaches a database.
    pub(crate) fn url(&self, database: &str) -> String {
        self.postgres.url(database)
    }

    /// The process of the server that the stores' databases are on.
    pub(crate) fn database_process(&self) -> u32 {
        let pid = self.mariadb.as_ref().map_or_else(|| self.postgres.pid(), MariaDb::pid);
        pid.unwrap_or_default()
    }

    /// The name and version of that server.
    pub(crate) async fn database_version(&self) -> anyhow::Result<String> {
        if let Some(mariadb) = &self.mariadb {
            return mysql::version(mariadb).await;
        }
        let mut admin = self.admin("postgres").await?;
        let version: String = sqlx::query_scalar("show server_version").fetch_one(&mut admin).await?;
        admin.close().await?;
        Ok(format!("PostgreSQL {}", version.split(' ').next().unwrap_or_default()))
    }

    /// A connection of the administrator.
    pub(crate) async fn admin(&self, database: &str) -> anyhow::Result<PgConnection> {
        Ok(PgConnection::connect(&self.url(database)).await?)
    }

    /// A connection of the administrator to master.
    pub(crate) async fn master(&self) -> anyhow::Result<PgConnection> {
        self.admin(MASTER).await
    }

    /// A request of the owner.
    pub(crate) fn api(&self, method: &str, path: &str, body: Option<Value>) -> Vec<u8> {
        let mut headers = format!("authorization: Bearer {}\r\n", self.token);
        if body.is_some() {
            headers += "content-type: application/json\r\n";
        }
        request(method, "localhost", path, &headers, &body.map(|body| body.to_string()).unwrap_or_default())
    }

    /// How a store's database is reached, out of master.
    pub(crate) async fn credential(&self, store: &Store) -> anyhow::Result<Credential> {
        let mut master = self.master().await?;
        let (sealed, version): (Vec<u8>, i32) =
            sqlx::query_as("select sealed, credential_version from store_databases where store_id = $1")
                .bind(store.id.as_uuid())
                .fetch_one(&mut master)
                .await?;
        master.close().await?;
        let ring = KeyRing::single(ENCRYPTION_KEY)?;
        Ok(Credential::open(&ring, &Sealed::from_bytes(sealed)?, store.id, version)?)
    }

    /// Imports products into the first store, and copies them to the others.
    pub(crate) async fn fill_stores(&self, products: usize) -> anyhow::Result<()> {
        let (first, others) = self.stores.split_first().context("there are no stores")?;
        say(&format!("filling {} stores with {products} products each ...", self.stores.len()));
        let headers = format!("authorization: Bearer {}\r\ncontent-type: text/csv\r\n", self.token);
        let import = format!("/api/stores/{}/products/import", first.id);
        let import = request("POST", "localhost", &import, &headers, &products_csv(products, &first.marker));
        let report = Http::connect(self.node.address).await?.ask(&import).await?.json(200)?;
        ensure!(report["productsCreated"] == products, "the import did not make {products} products: {report}");

        if let Some(mariadb) = &self.mariadb {
            let source = self.credential(first).await?.database;
            for store in others {
                let target = self.credential(store).await?.database;
                mysql::copy_products(mariadb, &source, &target, &store.marker).await?;
            }
            return Ok(());
        }
        let source = self.credential(first).await?.database;
        let mut source = self.admin(&source).await?;
        let tables: Vec<String> =
            sqlx::query_scalar("select tablename::text from pg_tables where schemaname = 'tenantry' order by 1")
                .fetch_all(&mut source)
                .await?;
        let tables: Vec<String> = tables.into_iter().filter(|name| !OWN_TABLES.contains(&name.as_str())).collect();
        let mut copies = Vec::new();
        for table in &tables {
            copies.push((columns(&mut source, table).await?, copy_out(&mut source, table).await?));
        }
        for store in others {
            let target = self.credential(store).await?.database;
            let mut target = self.admin(&target).await?;
            target.execute("set session_replication_role = replica; set synchronous_commit = off").await?;
            for (table, (columns, rows)) in tables.iter().zip(&copies) {
                target.execute(AssertSqlSafe(format!("delete from tenantry.{table}"))).await?;
                let rows = replaced(rows, first.marker.as_bytes(), store.marker.as_bytes());
                let mut copy = target.copy_in_raw(&format!("copy tenantry.{table} ({columns}) from stdin")).await?;
                copy.send(rows).await?;
                copy.finish().await?;
            }
            target.execute("vacuum (analyze)").await?;
            target.close().await?;
        }
        source.execute("vacuum (analyze)").await?;
        source.execute("checkpoint").await?;
        source.close().await?;
        Ok(())
    }

    /// The request for the list of each store.
    pub(crate) fn asks(&self) -> Vec<Ask> {
        self.stores
            .iter()
            .map(|store| Ask {
                request: request("GET", &store.hostname, PATH, "", ""),
                marker: format!("\"vendor\":\"{}\"", store.marker).into_bytes(),
            })
            .collect()
    }

    /// The statement of the list, as the server got it from Tenantry.
    pub(crate) async fn statement(&self, store: &Store) -> anyhow::Result<String> {
        let ask = async || {
            let mut http = Http::connect(self.node.address).await?;
            http.ask(&request("GET", &store.hostname, PATH, "", "")).await?.json(200)
        };
        if let Some(mariadb) = &self.mariadb {
            return mysql::statement(mariadb, ask).await;
        }
        ask().await?;
        let database = self.credential(store).await?.database;
        let mut admin = self.admin("postgres").await?;
        let found: Vec<String> = sqlx::query_scalar(
            "select distinct query from pg_stat_activity
             where datname = $1 and query like 'SELECT%products%'",
        )
        .bind(database)
        .fetch_all(&mut admin)
        .await?;
        admin.close().await?;
        ensure!(found.len() == 1, "expected one statement of the list, found {found:?}");
        Ok(found.into_iter().next().expect("there is one"))
    }
}

/// A folder of this process, for private servers.
pub(crate) fn temporary_dir() -> PathBuf {
    std::env::temp_dir().join(format!("tenantry-bench-{}", std::process::id()))
}

async fn start_node(master_url: &str) -> anyhow::Result<Server> {
    let mut serve = process::tenantry(master_url)?;
    serve.arg("serve");
    Server::start(serve, None).await
}

fn products_csv(count: usize, vendor: &str) -> String {
    let mut csv = "Handle,Title,Body (HTML),Vendor,Type,Tags,Published,Option1 Name,Option1 Value,Variant SKU,Variant \
                   Inventory Tracker,Variant Inventory Qty,Variant Inventory Policy,Variant Price,Variant Compare At \
                   Price,Image Src,Image Position,Image Alt Text,Status\n"
        .to_owned();
    for n in 0..count {
        let (price, tag) = (500 + n % 90 * 25, ["green", "black", "white", "oolong"][n % 4]);
        let (whole, cents) = (price / 100, price % 100);
        csv += &format!(
            "tea-{n:05},Mountain tea no {n:05},<p>A tea of the {tag} kind with a text of some length.</p>,{vendor},Tea,\
             \"{tag}, loose\",true,Title,Default Title,SKU-{n:05},shopify,{},deny,{whole}.{cents:02},,\
             https://cdn.example.com/teas/{n:05}.jpg,1,A cup of tea no {n:05},active\n",
            10 + n % 50,
        );
    }
    csv
}

/// The columns of a table that can be written.
async fn columns(source: &mut PgConnection, table: &str) -> anyhow::Result<String> {
    let names: Vec<String> = sqlx::query_scalar(
        "select quote_ident(attname) from pg_attribute
         where attrelid = ('tenantry.' || $1)::regclass and attnum > 0 and not attisdropped and attgenerated = ''
         order by attnum",
    )
    .bind(table)
    .fetch_all(source)
    .await?;
    Ok(names.join(", "))
}

async fn copy_out(source: &mut PgConnection, table: &str) -> anyhow::Result<Vec<u8>> {
    let columns = columns(source, table).await?;
    let mut rows = Vec::new();
    let mut copy = source.copy_out_raw(&format!("copy tenantry.{table} ({columns}) to stdout")).await?;
    while let Some(chunk) = copy.next().await {
        rows.extend_from_slice(&chunk?);
    }
    Ok(rows)
}

/// `bytes` with `from` replaced by `to`, which is as long.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for at in 0..bytes.len().saturating_sub(from.len() - 1) {
        if bytes[at..].starts_with(from) {
            bytes[at..at + from.len()].copy_from_slice(to);
        }
    }
    bytes
}
