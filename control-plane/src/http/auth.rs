//! Authorization by extractor type: a handler that names `MemberOf<Store>` or `Ops` cannot forget the check, because
//! loading and authorizing are one step. No handler takes a store's id from the path by itself.

use std::marker::PhantomData;

use axum::extract::{FromRequestParts, OptionalFromRequestParts, RawPathParams};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use kernel::StoreId;
use problem::Problem;

use super::authority::ClientAddress;
use crate::cx::Cx;
use crate::identity::{self, MemberRole, Principal};
use crate::stores::{self, Store};

fn unauthenticated() -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "unauthenticated", "A valid access token is needed")
        .detail("Send `Authorization: Bearer …` with an access token that has not expired.")
}

fn bearer(parts: &Parts) -> Result<Option<&str>, Problem> {
    let mut values = parts.headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(unauthenticated());
    }
    let text = value.to_str().map_err(|_| unauthenticated())?;
    let (scheme, token) = text.split_once(' ').ok_or_else(unauthenticated)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(Some(token.trim())) } else { Err(unauthenticated()) }
}

impl FromRequestParts<Cx> for Principal {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, cx: &Cx) -> Result<Self, Problem> {
        <Self as OptionalFromRequestParts<Cx>>::from_request_parts(parts, cx).await?.ok_or_else(unauthenticated)
    }
}

impl OptionalFromRequestParts<Cx> for Principal {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, cx: &Cx) -> Result<Option<Self>, Problem> {
        let Some(token) = bearer(parts)? else { return Ok(None) };
        let now = cx.clock.now();
        let subject = cx.signer.verify(token, now).ok_or_else(unauthenticated)?;
        let mut connection = cx.master.acquire().await.map_err(|error| super::errors::unexpected(&error))?;
        let user = identity::db::user_of_session(&mut connection, subject.session, subject.user, now)
            .await
            .map_err(|error| super::errors::unexpected(&error))?
            .ok_or_else(unauthenticated)?;
        Ok(Some(Self { user, session_id: subject.session, token_store: subject.store }))
    }
}

/// Somebody whose token is not limited to one store: what is about no store, or about all of them, takes one of these.
pub struct Person(pub Principal);

impl FromRequestParts<Cx> for Person {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, cx: &Cx) -> Result<Self, Problem> {
        let by = <Principal as FromRequestParts<Cx>>::from_request_parts(parts, cx).await?;
        match by.token_store {
            None => Ok(Self(by)),
            Some(store) => {
                Err(Problem::new(StatusCode::FORBIDDEN, "token-limited", "The token is limited to one store")
                    .detail("Log in without `storeId` for this.")
                    .member("storeId", store.to_string()))
            }
        }
    }
}

/// Somebody who may see the thing that the path names.
pub struct MemberOf<T> {
    pub by: Principal,
    pub role: MemberRole,
    pub store: T,
}

/// Somebody who may change the thing that the path names.
pub struct OwnerOf<T> {
    pub by: Principal,
    pub store: T,
}

impl FromRequestParts<Cx> for MemberOf<Store> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, cx: &Cx) -> Result<Self, Problem> {
        let by = <Principal as FromRequestParts<Cx>>::from_request_parts(parts, cx).await?;
        // What is no UTF-8 is no id.
        let params = RawPathParams::from_request_parts(parts, cx).await.map_err(|_| Problem::not_found())?;
        let id = params.iter().find(|(name, _)| *name == "id").map(|(_, value)| value).ok_or_else(Problem::internal)?;
        // An id of another kind names nothing, like an id that nobody has.
        let id: StoreId = id.parse().map_err(|_| Problem::not_found())?;
        agree_with_header(parts, id)?;
        // To a token that was made for one store the others do not exist.
        if by.token_store.is_some_and(|store| store != id) {
            return Err(Problem::not_found());
        }
        let mut connection = cx.master.acquire().await.map_err(|error| super::errors::unexpected(&error))?;
        let access = stores::db::store_for_member(&mut connection, id, by.user.id)
            .await
            .map_err(|error| super::errors::unexpected(&error))?
            .ok_or_else(Problem::not_found)?;
        Ok(Self { by, role: access.role, store: access.store })
    }
}

impl FromRequestParts<Cx> for OwnerOf<Store> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, cx: &Cx) -> Result<Self, Problem> {
        let member = MemberOf::<Store>::from_request_parts(parts, cx).await?;
        if member.role.is_manager() {
            Ok(Self { by: member.by, store: member.store })
        } else {
            Err(stores::StoreError::NotManager.into())
        }
    }
}

/// Somebody with the platform role. To others its routes do not exist.
pub struct Ops {
    pub by: Principal,
    _private: PhantomData<()>,
}

impl FromRequestParts<Cx> for Ops {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, cx: &Cx) -> Result<Self, Problem> {
        let Person(by) = Person::from_request_parts(parts, cx).await?;
        if by.user.platform_role.as_deref() == Some("admin") {
            Ok(Self { by, _private: PhantomData })
        } else {
            Err(Problem::not_found())
        }
    }
}

/// A request to a sign-in route, counted, and where it comes from.
pub struct RateLimited(pub std::net::IpAddr);

impl FromRequestParts<Cx> for RateLimited {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, cx: &Cx) -> Result<Self, Problem> {
        let ClientAddress(address) = parts.extensions.get().copied().ok_or_else(Problem::internal)?;
        cx.limits.check_address(address).map(|()| Self(address))
    }
}

/// The store that `X-Store-Id` (or the older `X-Tenant-ID`) names.
///
/// # Errors
/// 400 when it is no store id, or when the two headers differ.
pub fn named_store(parts: &Parts) -> Result<Option<StoreId>, Problem> {
    let mut named = None;
    for header in ["x-store-id", "x-tenant-id"] {
        for value in parts.headers.get_all(header) {
            let id = read_store_id(value)
                .ok_or_else(|| contradiction(header, "is no store id like sto_01JD8Q6X5MFKV9T3R0WZ2H4C7N"))?;
            if named.is_some_and(|other| other != id) {
                return Err(contradiction(header, "names another store than the rest of the request"));
            }
            named = Some(id);
        }
    }
    Ok(named)
}

/// A store header, if there is one, must name the store that the request is about.
///
/// # Errors
/// 400 when it names another one.
pub fn agree_with_header(parts: &Parts, store: StoreId) -> Result<(), Problem> {
    match named_store(parts)? {
        Some(named) if named != store => {
            Err(contradiction("x-store-id", "names another store than the rest of the request"))
        }
        _ => Ok(()),
    }
}

fn read_store_id(value: &HeaderValue) -> Option<StoreId> {
    value.to_str().ok()?.trim().parse().ok()
}

fn contradiction(header: &str, detail: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "store-mismatch", "The request names its store in contradictory ways")
        .field(header, "mismatch", detail)
}
