//! The part of a store that lives in its own database, read and changed on its owner's behalf.

use kernel::{StoreStatus, UserId};
use problem::Problem;
use tenancy::Lease;
use tenant_schema::seed::{self, StoreCounts};
use tenant_schema::settings::{self, SettingsError, StoreSettings, StoreSettingsPatch};

use super::{Store, StoreError, check_name};
use crate::audit::{self, Actor, Subject};
use crate::cx::{Cx, OpsCx};
use crate::http::entry::from_resolve;
use crate::storefront::errors;

/// What a store's own database said.
pub enum Inside {
    /// There is none yet.
    None,
    /// It does not answer.
    Unavailable(Problem),
    Read {
        settings: Box<StoreSettings>,
        counts: StoreCounts,
    },
}

/// A lease for the owner, who may look into a closed store, but not into one that is being prepared.
pub async fn lease(cx: &OpsCx, store: &Store) -> Result<Option<Lease>, Problem> {
    match store.status {
        StoreStatus::Active | StoreStatus::Suspended | StoreStatus::Maintenance => {}
        StoreStatus::PendingDatabase | StoreStatus::Provisioning | StoreStatus::Archived | StoreStatus::Deleted => {
            return Ok(None);
        }
    }
    let route = cx.stores.resolve_store(store.id).await.map_err(from_resolve)?;
    cx.stores.lease_unserved(&route).await.map(Some).map_err(errors::from_lease)
}

/// Settings and counts. A database that does not answer takes nothing else down.
pub async fn read(cx: &Cx, store: &Store) -> Inside {
    let found = async {
        let Some(lease) = lease(cx, store).await? else { return Ok(None) };
        let mut connection = lease.acquire().await.map_err(errors::from_lease)?;
        let settings = settings::settings(&mut connection).await.map_err(errors::from_settings)?;
        let counts = seed::counts(&mut connection).await.map_err(|error| errors::from_db(&error))?;
        Ok(Some((settings, counts)))
    };
    match found.await {
        Ok(None) => Inside::None,
        Ok(Some((settings, counts))) => Inside::Read { settings: Box::new(settings), counts },
        Err(problem) => Inside::Unavailable(problem),
    }
}

/// Changes name and settings. The store's own database comes first: master's name is a copy of the one there, so a failure
/// in between leaves the copy behind and the same request mends it.
pub async fn update(
    cx: &Cx,
    by: UserId,
    store: Store,
    name: Option<String>,
    patch: Option<StoreSettingsPatch>,
) -> Result<Store, Problem> {
    let name = name.map(|name| check_name(&name)).transpose()?;
    let mut patch = patch.unwrap_or_default();
    let name = match (name, patch.name.take()) {
        (Some(one), Some(two)) if one != two => {
            return Err(Problem::invalid().field("/settings/name", "contradiction", "name the store once"));
        }
        (one, two) => one.or(two.map(|name| check_name(&name)).transpose()?),
    };
    let changes_settings = patch != StoreSettingsPatch::default();
    patch.name.clone_from(&name);
    if patch != StoreSettingsPatch::default() {
        match lease(cx, &store).await? {
            Some(lease) => patch_settings(cx, &lease, &patch).await?,
            // A name can wait: the seed takes it from master.
            None if !changes_settings => {}
            None => return Err(StoreError::WrongStatus { status: store.status, wanted: "active" }.into()),
        }
    }
    if changes_settings {
        let mut connection = cx.master.acquire().await.map_err(StoreError::Db)?;
        let subject = Subject::store(store.organization_id, store.id);
        audit::record(
            &mut connection,
            cx.clock.now(),
            Actor::User(by),
            "store_settings_update",
            subject,
            serde_json::json!({}),
        )
        .await
        .map_err(StoreError::Db)?;
    }
    match name {
        Some(name) if name != store.name => Ok(super::rename(cx, by, &store, &name).await?),
        _ => Ok(store),
    }
}

async fn patch_settings(cx: &Cx, lease: &Lease, patch: &StoreSettingsPatch) -> Result<(), Problem> {
    let mut tx = lease.begin().await.map_err(errors::from_lease)?;
    match settings::settings_patch_in(&mut tx, patch, cx.clock.now()).await {
        Ok(_) => tx.commit().await.map_err(|error| errors::from_db(&error)),
        Err(error) => {
            tx.rollback().await.map_err(|error| errors::from_db(&error))?;
            Err(errors::from_settings(in_body(error)))
        }
    }
}

/// The fields by their place in the request, where the settings are one member.
fn in_body(error: SettingsError) -> SettingsError {
    match error {
        SettingsError::Invalid(mut errors) => {
            for error in &mut errors {
                error.field.insert_str(0, "settings.");
            }
            SettingsError::Invalid(errors)
        }
        other => other,
    }
}
