//! The part of a store that lives in its own database, read and changed on its owner's behalf.

use std::borrow::Cow;

use kernel::{Engine, StoreStatus, UserId};
use problem::Problem;
use tenancy::{Cause, Connection, Lease, LeaseError};
use tenant_schema::fitness::{self, Ailment};
use tenant_schema::seed::{self, StoreCounts};
use tenant_schema::settings::{self, SettingsError, StoreSettings, StoreSettingsPatch};

use super::{Store, StoreError, check_name};
use crate::audit::{self, Actor, Subject};
use crate::cx::{Cx, OpsCx};
use crate::http::entry::from_resolve;
use crate::http::errors::chain;
use crate::provisioning::remedy::{self, Guest};
use crate::provisioning::{self, DatabaseKind, RunState, Step, StepError};
use crate::storefront::errors;

/// What a store's own database said.
pub enum Inside {
    /// There is none yet.
    None,
    /// It is being prepared.
    Preparing,
    /// Preparing it failed.
    Failed(Trouble),
    /// It does not answer.
    Unavailable(Trouble),
    Read {
        settings: Box<StoreSettings>,
        counts: StoreCounts,
        /// Why it can only be read.
        ailing: Option<Trouble>,
    },
}

/// Why there is nothing to be read, and what its owner can do about it.
#[derive(Debug)]
pub struct Trouble {
    /// For programs; the same as a failed step's.
    pub code: String,
    pub detail: Option<String>,
    pub advice: Option<String>,
    pub sql: Option<String>,
}

/// What master knows of a store's database.
struct Known {
    kind: DatabaseKind,
    engine: Engine,
    database: String,
    login: String,
}

impl Known {
    /// The statement that helps, as far as it can be made without asking the server: for which host an account of MySQL's is, and by
    /// which name it has its rights, only the connection's test tells.
    fn remedy(&self, ailment: Ailment) -> Option<String> {
        let Self { kind, engine, database, login } = self;
        let guest = Guest { engine: *engine, database, login, has_password: true, is_encrypted: true };
        match (kind, ailment, engine) {
            (DatabaseKind::Managed, ..) => None,
            (DatabaseKind::Brought, Ailment::ReadOnly, Engine::Mysql) => Some(remedy::MAKE_SERVER_WRITABLE.to_owned()),
            (DatabaseKind::Brought, Ailment::ReadOnly, _) => Some(guest.make_writable_unless_replica()),
            (DatabaseKind::Brought, Ailment::Unreadable | Ailment::Unwritable, Engine::Postgresql) => {
                Some(guest.grant_tables())
            }
            (DatabaseKind::Brought, ..) => None,
        }
    }
}

impl Trouble {
    fn of_cause(cause: Cause, Known { kind, engine, .. }: &Known) -> Self {
        let StepError { code, what, advice, .. } = StepError::of_cause(*engine, cause);
        let advice = match (kind, cause) {
            (DatabaseKind::Managed, _) => provisioning::OURS.into(),
            (DatabaseKind::Brought, Cause::WrongPassword) => {
                "Give the right password, with the user if that is another: PUT /api/stores/{id}/database/credentials. When these are right again: POST \
                 /api/stores/{id}/database/test; until then nobody tries them any more."
                    .into()
            }
            (DatabaseKind::Brought, Cause::MissingDatabase) => {
                "Bring it back, or give its new name: PUT /api/stores/{id}/database/credentials.".into()
            }
            (DatabaseKind::Brought, _) => advice,
        };
        Self { code: code.to_owned(), detail: Some(what), advice: Some(advice.into_owned()), sql: None }
    }

    /// It let us in, and a statement failed.
    fn of_db(error: sqlx::Error, kind: DatabaseKind) -> Self {
        let StepError { code, what, advice, .. } = StepError::from(error);
        Self::inside(code, what, advice, kind)
    }

    fn of_ailment(ailment: Ailment, known: &Known) -> Self {
        let StepError { code, what, advice, .. } = StepError::ailing(ailment);
        Self { sql: known.remedy(ailment), ..Self::inside(code, what, advice, known.kind) }
    }

    fn inside(code: &str, what: String, advice: Cow<'static, str>, kind: DatabaseKind) -> Self {
        let advice = match kind {
            DatabaseKind::Managed => provisioning::OURS.into(),
            DatabaseKind::Brought => advice,
        };
        Self { code: code.to_owned(), detail: Some(what), advice: Some(advice.into_owned()), sql: None }
    }

    fn of_problem(problem: &Problem) -> Self {
        Self { code: problem.code().to_owned(), detail: None, advice: None, sql: None }
    }
}

impl From<&Step> for Trouble {
    fn from(step: &Step) -> Self {
        let code = step.error_code.clone().unwrap_or_else(|| "unexpected".to_owned());
        Self { code, detail: step.error.clone(), advice: step.advice.clone(), sql: step.sql.clone() }
    }
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
    if store.status == StoreStatus::Provisioning {
        return preparing(cx, store).await;
    }
    let found = async {
        let Some(lease) = lease(cx, store).await? else { return Ok(Inside::None) };
        let mut connection = match lease.acquire().await {
            Ok(connection) => connection,
            Err(LeaseError::Unavailable { cause, .. }) => {
                return Ok(Inside::Unavailable(Trouble::of_cause(cause, &known(cx, store).await?)));
            }
            Err(LeaseError::Sealed) => {
                return Ok(Inside::Unavailable(Trouble::of_cause(Cause::Sealed, &known(cx, store).await?)));
            }
            Err(error) => return Err(errors::from_lease(error)),
        };
        let read = async {
            let settings = settings::settings(&mut connection).await?;
            let counts = seed::counts(&mut connection).await?;
            Ok((Box::new(settings), counts))
        };
        let error = match read.await {
            Ok((settings, counts)) => {
                let Some(ailment) = ailment_known(store, &mut connection).await else {
                    return Ok(Inside::Read { settings, counts, ailing: None });
                };
                // When it is mended, another session sees it.
                connection.give_up();
                drop(connection);
                let trouble = Trouble::of_ailment(ailment, &known(cx, store).await?);
                return Ok(if ailment.leaves_readable() {
                    Inside::Read { settings, counts, ailing: Some(trouble) }
                } else {
                    Inside::Unavailable(trouble)
                });
            }
            Err(SettingsError::Db(error)) => error,
            Err(error @ SettingsError::Incomplete) => {
                drop(connection);
                drop(errors::from_settings(error));
                return Ok(Inside::Unavailable(Trouble::inside(
                    "settings-missing",
                    "The store's settings are not whole in its database.".to_owned(),
                    "Bring its rows back from a backup.".into(),
                    known(cx, store).await?.kind,
                )));
            }
            Err(error) => return Err(errors::from_settings(error)),
        };
        // Which writes it into the log.
        drop(errors::from_db(&error));
        // Of a table in a schema that it may not enter, PostgreSQL says that it is not there.
        let ailment = ailment_known(store, &mut connection).await;
        drop(connection);
        let known = known(cx, store).await?;
        Ok(Inside::Unavailable(match ailment {
            Some(ailment) => Trouble::of_ailment(ailment, &known),
            None => Trouble::of_db(error, known.kind),
        }))
    };
    found.await.unwrap_or_else(|problem| Inside::Unavailable(Trouble::of_problem(&problem)))
}

/// What ails the database, if that can be found out: what was read of it is worth showing anyway.
async fn ailment_known(store: &Store, connection: &mut Connection) -> Option<Ailment> {
    fitness::ailment(connection).await.unwrap_or_else(|error| {
        tracing::info!(store.id = %store.id, error = chain(&error), "what ails the database of store {} is not known", store.id);
        None
    })
}

/// How far the run is that prepares the database.
async fn preparing(cx: &Cx, store: &Store) -> Inside {
    match provisioning::latest(cx, store.id).await {
        Ok(latest) if latest.run.state == RunState::Failed => {
            latest.failed_step().map_or(Inside::Preparing, |step| Inside::Failed(step.into()))
        }
        // What master does not say now is no news.
        _ => Inside::Preparing,
    }
}

async fn known(cx: &Cx, store: &Store) -> Result<Known, Problem> {
    let found = async {
        let mut connection = cx.master.acquire().await?;
        provisioning::db::store_database_find(&mut connection, store.id).await
    };
    let found = found.await.map_err(StoreError::Db)?;
    Ok(match found {
        Some(found) => {
            Known { kind: found.kind, engine: found.engine, database: found.database_name, login: found.role_name }
        }
        None => Known {
            kind: DatabaseKind::Managed,
            engine: Engine::Postgresql,
            database: String::new(),
            login: String::new(),
        },
    })
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
        note_change(cx, by, &store).await.map_err(StoreError::Db)?;
    }
    match name {
        Some(name) if name != store.name => Ok(super::rename(cx, by, &store, &name).await?),
        _ => Ok(super::find(cx, store.id).await?),
    }
}

/// What master keeps of a change of the settings: that there was one.
async fn note_change(cx: &Cx, by: UserId, store: &Store) -> Result<(), sqlx::Error> {
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    super::db::store_touch(&mut tx, store.id, now).await?;
    let subject = Subject::store(store.organization_id, store.id);
    let action = "store_settings_update";
    audit::record(&mut tx, now, Actor::User(by), action, subject, serde_json::json!({})).await?;
    tx.commit().await
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
