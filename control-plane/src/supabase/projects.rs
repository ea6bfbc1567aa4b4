//! The projects of whoever consented, and the one that the store is prepared in.

use std::time::Duration;

use kernel::{Engine, StoreId, StoreStatus, UserId};
use secrecy::SecretString;
use serde_json::json;
use tenancy::TlsMode;
use tokio::net::TcpStream;
use vault::{Aad, Purpose};

use super::client::{ApiError, ListedProject, PAGE, Project, ProjectStatus};
use super::role::{self, Place};
use super::{Connection, ConnectionState, Supabase, SupabaseError, configured, db, revoke, tokens};
use crate::audit::{self, Actor, Subject};
use crate::cx::OpsCx;
use crate::provisioning::target::TargetFields;
use crate::provisioning::{self, NewDatabase, ProvisioningError, RunWithSteps, Target};
use crate::stores;

/// So many organizations, and pages of each, are read; who has more chooses by the project's reference.
const MAX_ORGANIZATIONS: usize = 20;
const MAX_PAGES: usize = 5;
/// So long it is tried whether a project's own host answers.
const REACH_TIMEOUT: Duration = Duration::from_secs(2);
const REFERENCE_LEN: usize = 20;

/// The projects of whoever consented, each with the name of its organization.
pub struct Projects {
    pub projects: Vec<(ListedProject, String)>,
    /// Whether there are no others.
    pub is_complete: bool,
}

/// Whether a project can be connected.
pub(super) const fn is_active(status: ProjectStatus) -> bool {
    matches!(status, ProjectStatus::ActiveHealthy | ProjectStatus::ActiveUnhealthy)
}

/// Whether Supabase has put it to sleep.
pub(super) const fn is_paused(status: ProjectStatus) -> bool {
    matches!(status, ProjectStatus::Inactive | ProjectStatus::Pausing | ProjectStatus::PauseFailed)
}

/// Every project of every organization, up to a limit.
pub async fn list(cx: &OpsCx, store: StoreId) -> Result<Projects, SupabaseError> {
    let client = &configured(cx)?.client;
    let organizations = tokens::call(cx, store, |token| client.organizations(token)).await?;
    let mut is_complete = organizations.len() <= MAX_ORGANIZATIONS;
    let mut projects = Vec::new();
    for organization in organizations.into_iter().take(MAX_ORGANIZATIONS) {
        let mut seen = 0;
        for page in 0.. {
            let slug = organization.slug.as_str();
            let found = tokens::call(cx, store, |token| client.projects(token, slug, seen)).await?;
            let len = found.projects.len();
            projects.extend(found.projects.into_iter().map(|project| (project, organization.name.clone())));
            seen += len;
            if len == 0 || seen >= found.pagination.count {
                break;
            }
            if page + 1 == MAX_PAGES {
                is_complete = false;
                break;
            }
        }
    }
    debug_assert!(projects.len() <= MAX_ORGANIZATIONS * MAX_PAGES * PAGE, "a page is longer than was asked for");
    Ok(Projects { projects, is_complete })
}

fn check_reference(project: &str) -> Result<(), SupabaseError> {
    let is_reference = project.len() == REFERENCE_LEN && project.bytes().all(|byte| byte.is_ascii_lowercase());
    if is_reference { Ok(()) } else { Err(SupabaseError::InvalidProject) }
}

/// Wakes a paused project; it takes Supabase some minutes.
pub async fn resume(cx: &OpsCx, by: UserId, store: StoreId, project: &str) -> Result<(), SupabaseError> {
    // A reference that is none names nothing.
    check_reference(project).map_err(|_| ApiError::NotFound)?;
    let client = &configured(cx)?.client;
    let found = tokens::call(cx, store, |token| client.project(token, project)).await?;
    if found.status != ProjectStatus::Inactive {
        return Err(SupabaseError::NotPaused { status: found.status });
    }
    tokens::call(cx, store, |token| client.restore(token, project)).await?;
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    let store = stores::db::store_find(&mut tx, store).await?.ok_or(SupabaseError::StoreNotFound)?;
    let subject = Subject::store(store.organization_id, store.id);
    let data = json!({ "projectRef": project });
    audit::record(&mut tx, now, Actor::User(by), "supabase_project_resume", subject, data).await?;
    Ok(tx.commit().await?)
}

/// Prepares the store in a project: makes our login and its schema there, finds out how it is reached, and begins the run. Doing
/// it again does the same again, and makes no second run.
pub async fn connect(
    cx: &OpsCx,
    by: UserId,
    store: StoreId,
    project: &str,
    with_demo: bool,
) -> Result<RunWithSteps, SupabaseError> {
    check_reference(project)?;
    let supabase = configured(cx)?;
    let under_way = provisioning::check_connectable(cx, store).await?;
    let known = super::find(cx, store).await?.ok_or(SupabaseError::NotConnected)?;
    if let Some(run) = under_way
        && known.project_ref.as_deref() != Some(project)
    {
        return Err(ProvisioningError::InProgress { run: run.run.id }.into());
    }
    let found = tokens::call(cx, store, |token| supabase.client.project(token, project)).await?;
    if !is_active(found.status) {
        return Err(SupabaseError::Project { status: found.status });
    }
    let before = inspect(cx, supabase, store, project).await?;
    check_place(before.place(store))?;
    let password = choose(cx, by, &known, &found).await?;
    let statement = role::make(store, &password);
    let statement = statement.ok_or(ApiError::Malformed { why: "the made-up password is not usable".to_owned() })?;
    let made = tokens::call(cx, store, |token| supabase.client.query(token, project, &statement)).await;
    if let Err(SupabaseError::Api(ApiError::Refused { .. })) = made {
        // Somebody was quicker, or it is something that we do not know.
        check_place(inspect(cx, supabase, store, project).await?.place(store))?;
    }
    made?;
    // While it was made, somebody may have disconnected, or chosen another one: then the login is gone again.
    let chosen = super::find(cx, store).await?.ok_or(SupabaseError::NotConnected)?;
    if chosen.state != ConnectionState::Connected || chosen.project_ref.as_deref() != Some(project) {
        return Err(SupabaseError::ChosenMeanwhile);
    }
    let (host, port, username) = address(cx, supabase, store, &found).await?;
    let target = Target::from_fields(TargetFields {
        engine: Engine::Postgresql,
        host: Some(host),
        port: Some(port),
        username: Some(username),
        password: Some(password),
        database: Some(before.database),
        tls: Some(if supabase.ca_pem.is_some() { TlsMode::VerifyFull } else { TlsMode::Require }),
        ca_pem: supabase.ca_pem.clone(),
    })
    .map_err(ProvisioningError::from)?;
    Ok(provisioning::connect(cx, Actor::User(by), store, NewDatabase::Brought(target), with_demo).await?)
}

async fn inspect(cx: &OpsCx, supabase: &Supabase, store: StoreId, project: &str) -> Result<role::Found, SupabaseError> {
    let statement = role::inspect(store);
    let rows = tokens::call(cx, store, |token| supabase.client.query(token, project, &statement)).await?;
    Ok(role::found(rows)?)
}

fn check_place(place: Place) -> Result<(), SupabaseError> {
    match place {
        Place::Free | Place::Ours => Ok(()),
        Place::OtherLogin => Err(SupabaseError::OtherLogin),
        Place::OtherStore => Err(SupabaseError::OtherStore),
        Place::Foreign => Err(SupabaseError::SchemaInUse),
    }
}

/// Writes down which project it is, before anything is made there, and the password of our login in it: the same one for as long
/// as it is this project. What was made in another one before is removed there.
async fn choose(cx: &OpsCx, by: UserId, known: &Connection, project: &Project) -> Result<SecretString, SupabaseError> {
    let mut tx = cx.master.begin().await?;
    let store = stores::db::store_lock(&mut tx, known.store_id).await?.ok_or(SupabaseError::StoreNotFound)?;
    let locked = db::connection_lock(&mut tx, store.id).await?.ok_or(SupabaseError::NotConnected)?;
    if locked.state != ConnectionState::Connected {
        return Err(SupabaseError::NotConnected);
    }
    let place = |version| Aad::for_store(store.id, Purpose::RolePassword, version);
    if locked.project_ref.as_deref() == Some(project.reference.as_str())
        && let Some(sealed) = &locked.role_password
    {
        return cx.keys.open_text(sealed, &place(locked.role_version)).map_err(SupabaseError::Sealed);
    }
    // Somebody else has chosen, or prepares the store where it was chosen before.
    let run = provisioning::db::run_latest(&mut tx, store.id).await?;
    let is_prepared = run.is_some_and(|run| !run.run.state.is_finished());
    let is_free = matches!(store.status, StoreStatus::PendingDatabase | StoreStatus::Provisioning) && !is_prepared;
    if locked.project_ref != known.project_ref || !is_free {
        return Err(SupabaseError::ChosenMeanwhile);
    }
    let now = cx.clock.now();
    let password = SecretString::from(kernel::random::token());
    let version = locked.role_version + 1;
    let sealed = cx.keys.seal_text(&password, &place(version));
    let named = (project.reference.as_str(), project.name.as_str());
    db::project_set(&mut tx, store.id, named, (&sealed, version), now).await?;
    let subject = Subject::store(store.organization_id, store.id);
    let data = json!({ "projectRef": project.reference });
    audit::record(&mut tx, now, Actor::User(by), "supabase_project_choose", subject, data).await?;
    tx.commit().await?;
    if let Some(former) = &locked.project_ref {
        match revoke::unmake(cx, store.id, former).await {
            // It is gone, and our login with it.
            Ok(()) | Err(SupabaseError::Api(ApiError::NotFound)) => {}
            // Whoever consented now may not go there: our login stays, and its owner can drop it.
            Err(SupabaseError::Api(ApiError::Forbidden)) => {
                tracing::warn!(store.id = %store.id, "our login in a project at Supabase stays: we are let in no more");
            }
            Err(error) => {
                choose_again(cx, &locked, project, version).await?;
                return Err(error);
            }
        }
    }
    Ok(password)
}

/// Takes a choice back after which the login in the project before could not be removed, so that it is not forgotten.
async fn choose_again(cx: &OpsCx, before: &Connection, project: &Project, version: i32) -> Result<(), SupabaseError> {
    let mut tx = cx.master.begin().await?;
    stores::db::store_lock(&mut tx, before.store_id).await?;
    let now_chosen = db::connection_lock(&mut tx, before.store_id).await?;
    let is_ours = now_chosen.is_some_and(|chosen| is_chosen(&chosen, project, version));
    if let (true, Some(reference), Some(sealed)) = (is_ours, &before.project_ref, &before.role_password) {
        let named = (reference.as_str(), before.project_name.as_deref().unwrap_or_default());
        // Under its own version again, for which it was sealed.
        db::project_set(&mut tx, before.store_id, named, (sealed, before.role_version), cx.clock.now()).await?;
    }
    Ok(tx.commit().await?)
}

fn is_chosen(connection: &Connection, project: &Project, version: i32) -> bool {
    connection.state == ConnectionState::Connected
        && connection.project_ref.as_deref() == Some(project.reference.as_str())
        && connection.role_version == version
}

/// How the project is reached from here: at its own host, which often has no IPv4 address, or else through its pooler in session
/// mode. The pooler's host is what Supabase says, and never made up from the region: each project has its own.
async fn address(
    cx: &OpsCx,
    supabase: &Supabase,
    store: StoreId,
    project: &Project,
) -> Result<(String, u16, String), SupabaseError> {
    let role = role::name(store).as_str().to_owned();
    let host = &project.database.host;
    if is_reachable(cx, host, supabase.direct_port).await {
        return Ok((host.clone(), supabase.direct_port, role));
    }
    let reference = project.reference.as_str();
    let poolers = tokens::call(cx, store, |token| supabase.client.poolers(token, reference)).await?;
    let pooler = poolers.into_iter().find(|pooler| pooler.database_type == "PRIMARY");
    let pooler = pooler.ok_or(SupabaseError::Unreachable)?;
    // It names its way in transaction mode, mostly; the same host has one in session mode at another port.
    let port = if pooler.pool_mode == "session" { pooler.db_port } else { supabase.session_port };
    Ok((pooler.db_host, port, format!("{role}.{reference}")))
}

async fn is_reachable(cx: &OpsCx, host: &str, port: u16) -> bool {
    let reach = async {
        let addresses = cx.owners_reach.addresses(host, port).await.unwrap_or_default();
        TcpStream::connect(addresses.as_slice()).await.is_ok()
    };
    tokio::time::timeout(REACH_TIMEOUT, reach).await.unwrap_or(false)
}
