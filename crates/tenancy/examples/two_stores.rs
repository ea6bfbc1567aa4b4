//! Two stores out of the databases `tea` and `rum` of this machine. `curl tea.localhost:3000` after
//! `ENCRYPTION_KEY=$(openssl rand -base64 32) PGUSER=… PGPASSWORD=… PGPORT=5432 cargo run -p tenancy --example two_stores`.

use std::{collections::HashMap, env, error::Error, sync::Arc};

use axum::http::{HeaderMap, StatusCode, header::HOST};
use axum::{Router, extract::State, routing::get};
use kernel::{Clock as _, Engine, Hostname, StoreId, StoreStatus, SystemClock};
use sqlx::postgres::PgArguments;
use tenancy::{Credential, DatabaseRoute, Directory, DirectoryError, Route, query::Kind};
use tenancy::{Query, Tenancy, TenancyConfig, TlsMode};

/// Where the stores are. Yours asks a table, and says so when that does not answer.
pub(crate) struct Stores(pub(crate) HashMap<Hostname, Route>);

impl Directory for Stores {
    async fn find_by_hostname(&self, hostname: &Hostname) -> Result<Option<Route>, DirectoryError> {
        Ok(self.0.get(hostname).cloned())
    }
    async fn find_by_store(&self, store: StoreId) -> Result<Option<Route>, DirectoryError> {
        Ok(self.0.values().find(|route| route.store_id == store).cloned())
    }
}

async fn front(State(tenancy): State<Tenancy<Stores>>, headers: HeaderMap) -> Result<String, StatusCode> {
    let host = headers.get(HOST).and_then(|host| Hostname::from_authority(host.to_str().ok()?).ok());
    let host = host.ok_or(StatusCode::BAD_REQUEST)?;
    let route = tenancy.resolve_host(&host).await.map_err(|_| StatusCode::NOT_FOUND)?;
    let unavailable = |_| StatusCode::SERVICE_UNAVAILABLE;
    let mut connection = tenancy.lease(&route).await.map_err(unavailable)?.acquire().await.map_err(unavailable)?;
    let asked = Query::postgres(Kind::Read, "select current_database()::text", PgArguments::default());
    let (name,) = connection.fetch_one::<(String,)>(asked).await.map_err(|_| StatusCode::BAD_GATEWAY)?;
    Ok(format!("This is {name}.\n"))
}

pub(crate) fn app(tenancy: Tenancy<Stores>) -> Router {
    Router::new().route("/", get(front)).with_state(tenancy)
}

#[tokio::main]
#[expect(clippy::disallowed_methods, reason = "an example has no configuration to parse")]
async fn main() -> Result<(), Box<dyn Error>> {
    let (keys, mut stores) = (Arc::new(vault::KeyRing::single(&env::var("ENCRYPTION_KEY")?)?), HashMap::new());
    for name in ["tea", "rum"] {
        let (store_id, engine) = (StoreId::new(SystemClock.now()), Engine::Postgresql);
        let (host, port, database) = ("127.0.0.1".to_owned(), env::var("PGPORT")?.parse()?, name.to_owned());
        let (username, password) = (env::var("PGUSER")?, env::var("PGPASSWORD")?.into());
        let credential =
            Credential { engine, host, port, username, password, database, tls: TlsMode::Disable, ca_pem: None };
        let sealed = credential.seal(&keys, store_id, 1);
        let database = DatabaseRoute { engine, server: None, schema_version: 1, sealed, credential_version: 1 };
        let route =
            Route { store_id, status: StoreStatus::Active, is_read_only: false, version: 1, database: Some(database) };
        stores.insert(Hostname::parse(&format!("{name}.localhost"))?, route);
    }
    // Ours, at an address of this machine: what others bring is not let in there.
    let config = TenancyConfig { owners_reach: tenancy::Reach::Anywhere, ..TenancyConfig::default() };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    Ok(axum::serve(listener, app(Tenancy::new(Stores(stores), keys, config))).await?)
}
