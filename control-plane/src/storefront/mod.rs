//! The storefront API: every route works on the one store that the hostname names, or, on the platform's own hosts, on the
//! store that a credential is allowed into. A handler gets a lease on that store and nothing else.

pub mod demo;
pub mod errors;
pub mod respond;
pub mod routes;
mod upkeep;

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use kernel::StoreId;
use problem::Problem;
use tenancy::{Connection, Lease, Route, Transaction};

use crate::cx::Cx;
use crate::http::authority::RequestHost;
use crate::http::{auth, entry};
use crate::identity::Principal;
use crate::stores;

/// The store that a request is about, open for business.
pub struct Storefront {
    pub store_id: StoreId,
    /// Whether the answer may be kept by shared caches: not when a credential named the store.
    pub is_public: bool,
    lease: Lease,
}

impl Storefront {
    async fn open(cx: &Cx, route: &Arc<Route>, is_public: bool) -> Result<Self, Problem> {
        let lease = cx.stores.lease(route).await.map_err(errors::from_lease)?;
        Ok(Self { store_id: route.store_id, is_public, lease })
    }

    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// A connection to the store's database, for one query or a few.
    pub async fn acquire(&self) -> Result<Connection, Problem> {
        self.lease.acquire().await.map_err(errors::from_lease)
    }

    /// A transaction in the store's database.
    pub async fn begin(&self) -> Result<Transaction, Problem> {
        self.lease.begin().await.map_err(errors::from_lease)
    }
}

impl FromRequestParts<Cx> for Storefront {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, cx: &Cx) -> Result<Self, Problem> {
        let (route, is_public) = route_of(parts, cx).await?;
        Self::open(cx, &route, is_public).await
    }
}

/// The store that a request is about, when it takes carts and orders: what changes something takes one of these.
pub struct TakingOrders(pub Storefront);

impl FromRequestParts<Cx> for TakingOrders {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, cx: &Cx) -> Result<Self, Problem> {
        let (route, is_public) = route_of(parts, cx).await?;
        entry::taking_orders(&route)?;
        Ok(Self(Storefront::open(cx, &route, is_public).await?))
    }
}

/// The route that the hostname or a credential names, and whether it was the hostname.
async fn route_of(parts: &mut Parts, cx: &Cx) -> Result<(Arc<Route>, bool), Problem> {
    match parts.extensions.get::<RequestHost>().ok_or_else(Problem::internal)? {
        RequestHost::Store(_) => {
            Ok((parts.extensions.get::<Arc<Route>>().cloned().ok_or_else(Problem::internal)?, true))
        }
        RequestHost::Platform => Ok((named_route(parts, cx).await?, false)),
    }
}

/// On the platform's hosts a store is named by header or token, and only beside a credential that is allowed into it.
async fn named_route(parts: &mut Parts, cx: &Cx) -> Result<Arc<Route>, Problem> {
    let by = <Principal as FromRequestParts<Cx>>::from_request_parts(parts, cx).await?;
    if let Some(store) = by.token_store {
        auth::agree_with_header(parts, store)?;
    }
    let id = by.token_store.or(auth::named_store(parts)?).ok_or_else(|| {
        Problem::new(StatusCode::BAD_REQUEST, "store-not-named", "The request does not say which store it is about")
            .detail("Send X-Store-Id, use a token that was made for a store, or call the store's own hostname.")
    })?;
    let mut connection = cx.master.acquire().await.map_err(|error| crate::http::errors::unexpected(&error))?;
    stores::db::store_for_member(&mut connection, id, by.user.id)
        .await
        .map_err(|error| crate::http::errors::unexpected(&error))?
        .ok_or_else(Problem::not_found)?;
    drop(connection);
    let route = cx.stores.resolve_store(id).await.map_err(entry::from_resolve)?;
    entry::serving(&route)?;
    Ok(route)
}
