//! New credentials for a database that an owner brought: another password, login or address of the same database.
//!
//! - They are tried before they are kept, and must lead to the database that holds this store: its schema says whose it is.
//!   Nothing is moved and nothing is written there.
//! - They are sealed under the next version, so that the old ones open no longer at their place, and the new version of the
//!   route makes every node open its pool anew.

use kernel::{StoreId, StoreStatus};
use sqlx::PgConnection;
use tenancy::{Credential, Session};
use tenant_schema::SchemaState;

use super::step_error::StepError;
use super::steps::{CONNECT_TIMEOUT, explained};
use super::{DatabaseKind, ProvisioningError, Target, db, engine};
use crate::audit::{self, Actor, Subject};
use crate::cx::OpsCx;
use crate::stores::{self, Store};

/// Replaces the credentials of a store's database, after proving that the new ones lead to the same one.
pub async fn replace(cx: &OpsCx, actor: Actor, store: StoreId, target: Target) -> Result<Store, ProvisioningError> {
    let known = check_replaceable(&mut *cx.master.acquire().await?, store).await?;
    let credential = target.resolve(cx.owners_reach).await?;
    check_engine(&known, &credential)?;
    // Done before the transaction: a server that does not answer must not keep a lock of master waiting.
    check_leads_to(cx, &credential, store).await?;
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    let known = check_replaceable(&mut tx, store).await?;
    check_engine(&known, &credential)?;
    let version = known.credential_version + 1;
    let sealed = credential.seal(&cx.keys, store, version);
    let names = (credential.database.as_str(), credential.username.as_str());
    db::store_database_set_credential(&mut tx, store, names, &sealed, version, now).await?;
    let changed = stores::db::store_find(&mut tx, store).await?.ok_or(ProvisioningError::StoreNotFound)?;
    let data = serde_json::json!({ "databaseId": known.id, "credentialVersion": version });
    let subject = Subject::store(changed.organization_id, store);
    audit::record(&mut tx, now, actor, "database_credentials_replace", subject, data).await?;
    tx.commit().await?;
    cx.announce(store, changed.route_version);
    Ok(changed)
}

/// The database of a store whose credentials are its owner's to change; the store is locked when in a transaction.
async fn check_replaceable(conn: &mut PgConnection, store: StoreId) -> Result<db::StoreDatabase, ProvisioningError> {
    let store = stores::db::store_lock(conn, store).await?.ok_or(ProvisioningError::StoreNotFound)?;
    match store.status {
        StoreStatus::Active | StoreStatus::Suspended | StoreStatus::Maintenance => {}
        status => return Err(ProvisioningError::WrongStatus { status }),
    }
    let known = db::store_database_find(conn, store.id).await?;
    let known = known.ok_or(ProvisioningError::WrongStatus { status: store.status })?;
    match known.kind {
        DatabaseKind::Brought => Ok(known),
        DatabaseKind::Managed => Err(ProvisioningError::Managed),
    }
}

/// A database is of one engine for as long as it is the store's.
fn check_engine(known: &db::StoreDatabase, credential: &Credential) -> Result<(), ProvisioningError> {
    if known.engine == credential.engine {
        return Ok(());
    }
    Err(ProvisioningError::Refused(StepError::new(
        "other-database",
        format!("The store's database is {}, and these credentials are for {}.", known.engine, credential.engine),
        "Give credentials of the database that the store was connected to. Its data is not moved.",
    )))
}

async fn check_leads_to(cx: &OpsCx, credential: &Credential, store: StoreId) -> Result<(), ProvisioningError> {
    let refused = |error: StepError| ProvisioningError::Refused(error);
    let unreachable = |error| refused(StepError::connecting(credential.engine, error));
    if let Err(error) = credential.check_session_mode(cx.owners_reach, CONNECT_TIMEOUT).await {
        return Err(refused(explained(credential, cx.owners_reach, error).await));
    }
    let mut connection = credential.connect(cx.owners_reach, CONNECT_TIMEOUT).await.map_err(unreachable)?;
    let checked = check_inside(&mut connection, store).await;
    if let Err(error) = connection.close().await {
        tracing::debug!(error = %error, "closing a connection failed");
    }
    checked.map_err(refused)
}

async fn check_inside(session: &mut Session, store: StoreId) -> Result<(), StepError> {
    engine::set_limits(session).await?;
    engine::facts(session).await?.check()?;
    match tenant_schema::inspect(session).await? {
        SchemaState::Ours { store: Some(found), .. } | SchemaState::Newer { store: Some(found), .. }
            if found == store => {}
        SchemaState::Empty | SchemaState::Foreign | SchemaState::Ours { .. } | SchemaState::Newer { .. } => {
            return Err(StepError::new(
                "other-database",
                "This database does not hold this store.",
                "Give credentials of the database that the store was connected to. Its data is not moved.",
            ));
        }
    }
    if engine::owns_schema(session).await? {
        Ok(())
    } else {
        Err(StepError::new(
            "missing-privilege",
            "The login may not act for the owner of the store's tables.",
            "Use the login that owns them, or let the new one act for it: GRANT <owner> TO <login>;",
        ))
    }
}
