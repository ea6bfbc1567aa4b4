//! Two stores out of the databases `tea` and `rum` of this machine. `curl tea.localhost:3000` after
//! `ENCRYPTION_KEY=$(openssl rand -base64 32) PGUSER=… PGPASSWORD=… PGPORT=5432 cargo run -p tenancy --example two_stores`.

use std::{collections::HashMap, env, error::Error, sync::Arc, time::Duration};

use axum::http::{HeaderMap, StatusCode, header};
use axum::{Router, extract::State, response::AppendHeaders, response::IntoResponse, routing::get};
use kernel::{Clock as _, Engine, Hostname, StoreId, StoreStatus, SystemClock};
use tenancy::{Credential, DatabaseRoute, Directory, DirectoryError, LeaseError, Query, Route, query::Kind};
use tenancy::{Reach, Tenancy, TenancyConfig, TlsMode};

/// Yours asks a table, and says so when that does not answer.
pub(crate) struct Stores(pub(crate) HashMap<Hostname, Route>);
impl Directory for Stores {
    async fn find_by_hostname(&self, hostname: &Hostname) -> Result<Option<Route>, DirectoryError> {
        Ok(self.0.get(hostname).cloned())
    }
    async fn find_by_store(&self, store: StoreId) -> Result<Option<Route>, DirectoryError> {
        Ok(self.0.values().find(|route| route.store_id == store).cloned())
    }
}

fn refuse(status: StatusCode, again: Option<Duration>) -> impl IntoResponse {
    let status = if again.is_some() { StatusCode::SERVICE_UNAVAILABLE } else { status };
    (status, AppendHeaders(again.map(|after| (header::RETRY_AFTER, after.as_secs().max(1)))))
}

pub(crate) async fn front(state: State<Tenancy<Stores>>, headers: HeaderMap) -> Result<String, impl IntoResponse> {
    let host = headers.get(header::HOST).and_then(|host| Hostname::from_authority(host.to_str().ok()?).ok());
    let host = host.ok_or_else(|| refuse(StatusCode::BAD_REQUEST, None))?;
    let route = state.resolve_host(&host).await.map_err(|error| refuse(StatusCode::NOT_FOUND, error.retry_after()))?;
    let closed = |error: LeaseError| refuse(StatusCode::SERVICE_UNAVAILABLE, error.retry_after());
    let mut connection = state.lease(&route).await.map_err(closed)?.acquire().await.map_err(closed)?;
    let asked = Query::postgres(Kind::Read, "select current_database()::text", Default::default());
    let answer: Result<(String,), _> = connection.fetch_one(asked).await;
    answer.map(|(name,)| format!("This is {name}.\n")).map_err(|_| refuse(StatusCode::BAD_GATEWAY, None))
}

#[tokio::main]
#[expect(clippy::disallowed_methods, reason = "an example has no configuration to parse")]
async fn main() -> Result<(), Box<dyn Error>> {
    let (keys, mut stores) = (Arc::new(vault::KeyRing::single(&env::var("ENCRYPTION_KEY")?)?), HashMap::new());
    for name in ["tea", "rum"] {
        let (store_id, engine, tls) = (StoreId::new(SystemClock.now()), Engine::Postgresql, TlsMode::Disable);
        let (host, port, database) = ("127.0.0.1".to_owned(), env::var("PGPORT")?.parse()?, name.to_owned());
        let (username, password) = (env::var("PGUSER")?, env::var("PGPASSWORD")?.into());
        let credential = Credential { engine, host, port, username, password, database, tls, ca_pem: None };
        let sealed = credential.seal(&keys, store_id, 1);
        let database = Some(DatabaseRoute { engine, server: None, schema_version: 1, sealed, credential_version: 1 });
        let route = Route { store_id, status: StoreStatus::Active, is_read_only: false, version: 1, database };
        stores.insert(Hostname::parse(&format!("{name}.localhost"))?, route);
    }
    let config = TenancyConfig { owners_reach: Reach::Anywhere, ..TenancyConfig::default() }; // They are ours.
    let tenancy = Tenancy::new(Stores(stores), keys, config);
    let (app, stop) = (Router::new().route("/", get(front)).with_state(tenancy.clone()), tokio::signal::ctrl_c());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    axum::serve(listener, app).with_graceful_shutdown(async { stop.await.unwrap_or_default() }).await?;
    tenancy.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
