//! Signing in to Supabase: an owner consents there, chooses a project, and the store is prepared in a schema of its own in that
//! project's database, as in any that an owner brings. We never hold the password of the owner's database, nor a key of theirs.
//!
//! - A consent is completed by whoever began it, for the store that they began it for, and once: what comes back from Supabase is
//!   bound to both by a random `state`, of which the hash is kept. Coming back is not enough, since somebody else may have been
//!   led to consent: the browser that consented gets a completion code, and only who began can use it.
//! - What is kept is sealed for its row and version. In logs, in the trail and in jobs nothing of it appears.
//! - The project is what the owner names. What we make there is a login and a schema (see `role`), by which of its addresses it is
//!   reached is found out, and never one that mixes up answers.
//! - What was made is revoked when the owner disconnects, as soon as Supabase answers.

pub mod client;
pub mod db;
pub mod jobs;
mod oauth;
mod page;
mod projects;
mod revoke;
pub mod role;
pub mod routes;
mod tokens;

use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use kernel::{RunId, StoreId, StoreStatus, SupabaseAuthorizationId, UserId};
use problem::Problem;
use reqwest::Url;
use vault::{OpenError, Sealed};

use crate::config::{ConfigError, HostArgs, SupabaseArgs};
use crate::cx::OpsCx;
use crate::http::outgoing::is_https_or_loopback;
use crate::provisioning::ProvisioningError;
use client::{ApiError, Client, ProjectStatus};

pub use oauth::{Begun, Returned, authorize, callback, complete};
pub use projects::{Projects, connect, list, resume};
pub use revoke::disconnect;

const CALLBACK: &str = "/api/supabase/callback";

/// Supabase, and how it leads back to us.
pub struct Supabase {
    pub client: Client,
    redirect: Url,
    return_url: Option<Url>,
    /// Supabase's own authority.
    ca_pem: Option<String>,
    direct_port: u16,
    session_port: u16,
    /// How often it is looked at what is still to be revoked.
    pub sweep: std::time::Duration,
}

impl Supabase {
    /// What is configured; nothing when nobody is to sign in there.
    ///
    /// # Errors
    /// A sentence that names the variable, never its value.
    pub fn new(args: &SupabaseArgs, hosts: &HostArgs) -> Result<Option<Self>, ConfigError> {
        let Some(client) = Client::new(args)? else { return Ok(None) };
        let invalid = |name, why: String| ConfigError::Invalid { name, why };
        let mut redirect = hosts.public_url()?;
        redirect.set_path(&format!("{}{CALLBACK}", redirect.path().trim_end_matches('/')));
        let return_url = args.supabase_return_url.as_deref().map(Url::parse).transpose();
        let return_url = return_url.map_err(|error| invalid("SUPABASE_RETURN_URL", error.to_string()))?;
        if return_url.as_ref().is_some_and(|url| !is_https_or_loopback(url)) {
            return Err(invalid("SUPABASE_RETURN_URL", "must be https, or http at loopback".to_owned()));
        }
        let ca_pem = args.supabase_ca_file.as_deref().map(std::fs::read_to_string).transpose();
        let ca_pem = ca_pem.map_err(|error| invalid("SUPABASE_CA_FILE", error.to_string()))?;
        if ca_pem.as_ref().is_some_and(|pem| !pem.contains("-----BEGIN CERTIFICATE-----")) {
            return Err(invalid("SUPABASE_CA_FILE", "holds no certificate in PEM".to_owned()));
        }
        Ok(Some(Self {
            client,
            redirect,
            return_url,
            ca_pem,
            direct_port: args.supabase_direct_port,
            session_port: args.supabase_session_port,
            sweep: args.supabase_sweep,
        }))
    }
}

/// Supabase, where it is configured.
///
/// # Errors
/// When it is not.
pub fn configured(cx: &OpsCx) -> Result<&Supabase, SupabaseError> {
    cx.supabase.as_ref().ok_or(SupabaseError::NotConfigured)
}

/// How a store's connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::Type)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum ConnectionState {
    Connected,
    /// Supabase takes the tokens no more.
    Reauthorize,
    Disconnected,
}

/// What a store may do at Supabase.
pub struct Connection {
    pub store_id: StoreId,
    pub state: ConnectionState,
    pub connected_at: DateTime<Utc>,
    /// There while it is connected.
    pub tokens: Option<Sealed>,
    pub token_version: i32,
    pub access_expires_at: DateTime<Utc>,
    /// What the owner chose.
    pub project_ref: Option<String>,
    pub project_name: Option<String>,
    role_password: Option<Sealed>,
    role_version: i32,
}

/// Somebody's going to Supabase.
pub struct Authorization {
    pub id: SupabaseAuthorizationId,
    pub store_id: StoreId,
    pub user_id: UserId,
    pub expires_at: DateTime<Utc>,
}

/// What is to be revoked.
pub struct Revocation {
    pub id: i64,
    pub store_id: StoreId,
    pub tokens: Sealed,
    pub token_version: i32,
    pub access_expires_at: DateTime<Utc>,
    /// The project whose login of ours is to be dropped before.
    pub project_ref: Option<String>,
    pub attempts: i32,
}

/// The connection of a store, unless there is none.
pub async fn find(cx: &OpsCx, store: StoreId) -> Result<Option<Connection>, SupabaseError> {
    let found = db::connection_find(&mut *cx.master.acquire().await?, store).await?;
    Ok(found.filter(|connection| connection.state != ConnectionState::Disconnected))
}

/// Forgets what is over.
pub async fn keep_house(cx: &OpsCx) -> Result<(), sqlx::Error> {
    let before = cx.clock.now() - chrono::Duration::days(1);
    db::authorizations_purge(&mut *cx.master.acquire().await?, before).await
}

/// Why an operation was refused.
#[derive(Debug, thiserror::Error)]
pub enum SupabaseError {
    #[error("Supabase is not configured")]
    NotConfigured,
    #[error("there is no such store")]
    StoreNotFound,
    #[error("nobody has signed in to Supabase for the store")]
    NotConnected,
    #[error("somebody has signed in to Supabase for the store")]
    AlreadyConnected,
    #[error("what the store had at Supabase is being revoked")]
    BeingRevoked,
    #[error("Supabase takes the store's tokens no more")]
    Reauthorize,
    #[error("the completion code is not good")]
    InvalidCompletion,
    #[error("Supabase gave no tokens for the consent")]
    ConsentRefused,
    #[error("the project's reference is not one")]
    InvalidProject,
    #[error("the project is {status:?}")]
    Project { status: ProjectStatus },
    #[error("the project is not paused")]
    NotPaused { status: ProjectStatus },
    #[error("another project was chosen meanwhile")]
    ChosenMeanwhile,
    #[error("the project has no address that can be reached")]
    Unreachable,
    #[error("the project's database has a schema tenantry that is not ours")]
    SchemaInUse,
    #[error("the project's database holds another store")]
    OtherStore,
    #[error("the store's schema in the project belongs to another login")]
    OtherLogin,
    #[error("the store's database is reached through it")]
    DatabaseInUse { status: StoreStatus, run: Option<RunId> },
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("what is sealed does not open")]
    Sealed(#[source] OpenError),
    #[error("a task has ended early: {0}")]
    Broken(String),
    #[error(transparent)]
    Provisioning(#[from] ProvisioningError),
    #[error("database error")]
    Db(#[from] sqlx::Error),
}

/// What a project's status means to whoever wants to connect it.
fn project_problem(status: ProjectStatus) -> Problem {
    let conflict =
        |code, title: &'static str, detail: &str| Problem::new(StatusCode::CONFLICT, code, title).detail(detail);
    match status {
        ProjectStatus::Inactive | ProjectStatus::Pausing | ProjectStatus::PauseFailed => conflict(
            "project-paused",
            "The project is paused",
            "Supabase pauses projects that nobody uses. Resume it with POST /api/stores/{id}/supabase/projects/{ref}/resume, or in \
             Supabase's dashboard, and connect it when it is active, a few minutes later.",
        ),
        ProjectStatus::ComingUp
        | ProjectStatus::Restoring
        | ProjectStatus::Upgrading
        | ProjectStatus::Restarting
        | ProjectStatus::Resizing => conflict(
            "project-not-ready",
            "The project is not ready yet",
            "Connect it when Supabase says that it is active.",
        )
        .retry_after(std::time::Duration::from_secs(60)),
        ProjectStatus::ActiveHealthy
        | ProjectStatus::ActiveUnhealthy
        | ProjectStatus::Unknown
        | ProjectStatus::GoingDown
        | ProjectStatus::InitFailed
        | ProjectStatus::Removed
        | ProjectStatus::RestoreFailed
        | ProjectStatus::New => conflict(
            "project-unusable",
            "The project cannot be used",
            "Supabase does not say that it is active. See what its dashboard says, or choose another project.",
        ),
    }
}

impl From<ApiError> for Problem {
    fn from(error: ApiError) -> Self {
        use std::time::Duration;
        let away = |error: &ApiError| tracing::warn!("Supabase: {error}");
        match error {
            ApiError::Unauthorized | ApiError::InvalidGrant => SupabaseError::Reauthorize.into(),
            ApiError::Forbidden => {
                Self::new(StatusCode::FORBIDDEN, "supabase-forbidden", "Supabase does not allow this").detail(
                    "Whoever signed in there may not do this with that project, or did not let us: sign in again.",
                )
            }
            ApiError::NotFound => {
                Self::new(StatusCode::NOT_FOUND, "project-not-found", "Supabase knows no such project")
                    .detail("Choose one of GET /api/stores/{id}/supabase/projects.")
            }
            ApiError::RateLimited { retry_after } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "supabase-busy", "Supabase was asked too often")
                    .retry_after(retry_after)
            }
            error @ ApiError::Refused { .. } => {
                away(&error);
                Self::new(StatusCode::BAD_GATEWAY, "supabase-refused", "Supabase refused what it was asked for")
                    .detail("Nothing to do for you: this is on our side. Ask support.")
            }
            error @ ApiError::Malformed { .. } => {
                away(&error);
                Self::new(StatusCode::BAD_GATEWAY, "supabase-malformed", "Supabase's answer could not be read")
            }
            error @ ApiError::Unknown { .. } => {
                away(&error);
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "supabase-unavailable", "Supabase does not answer")
                    .retry_after(Duration::from_secs(5))
            }
        }
    }
}

impl From<SupabaseError> for Problem {
    fn from(error: SupabaseError) -> Self {
        use StatusCode as S;
        let conflict = |code, title: &'static str, detail: &str| Self::new(S::CONFLICT, code, title).detail(detail);
        match error {
            SupabaseError::NotConfigured => {
                Self::new(S::SERVICE_UNAVAILABLE, "supabase-not-configured", "This installation has no app at Supabase")
                    .detail("Connect the project by its connection string: the direct host, or the session pooler.")
            }
            SupabaseError::StoreNotFound => Self::not_found(),
            SupabaseError::NotConnected => conflict(
                "supabase-not-connected",
                "Nobody has signed in to Supabase for this store",
                "Begin with POST /api/stores/{id}/supabase/authorize.",
            ),
            SupabaseError::AlreadyConnected => conflict(
                "supabase-connected",
                "Somebody has signed in to Supabase for this store",
                "Disconnect first: DELETE /api/stores/{id}/supabase.",
            ),
            SupabaseError::BeingRevoked => conflict(
                "supabase-disconnecting",
                "The store is being disconnected from Supabase",
                "Our access of before is revoked at this moment, which would end the new one. Complete it in some seconds, or sign in \
                 again.",
            )
            .retry_after(std::time::Duration::from_secs(5)),
            SupabaseError::Reauthorize => conflict(
                "supabase-reauthorize",
                "Supabase lets us in no more",
                "The consent was taken back, or has run out. Sign in again: POST /api/stores/{id}/supabase/authorize.",
            ),
            SupabaseError::InvalidCompletion => Self::invalid().field(
                "/completionCode",
                "invalid-completion-code",
                "is not known, is used or too old, or belongs to another person or store; sign in again",
            ),
            SupabaseError::ConsentRefused => conflict(
                "supabase-consent-refused",
                "Supabase gave us no access for this consent",
                "Sign in again: POST /api/stores/{id}/supabase/authorize.",
            ),
            SupabaseError::InvalidProject => Self::invalid().field(
                "/projectRef",
                "project",
                "must be the 20 letters that Supabase calls the reference id",
            ),
            SupabaseError::Project { status } => project_problem(status),
            SupabaseError::NotPaused { .. } => {
                conflict("project-not-paused", "The project is not paused", "There is nothing to resume.")
            }
            SupabaseError::ChosenMeanwhile => conflict(
                "project-chosen-meanwhile",
                "Somebody else has chosen a project, or disconnected, meanwhile",
                "See how it stands with GET /api/stores/{id}/supabase, and connect again.",
            ),
            SupabaseError::Unreachable => conflict(
                "project-unreachable",
                "The project's database cannot be reached",
                "Its own host does not answer us (it may be IPv6 only), and it has no pooler. Switch the pooler or the IPv4 \
                 add-on on in Supabase's dashboard, and let us in at its network restrictions.",
            ),
            SupabaseError::SchemaInUse => conflict(
                "schema-in-use",
                "The project's database has a schema named tenantry that is not ours",
                "Rename or remove that schema, or choose another project. We do not touch it.",
            ),
            SupabaseError::OtherStore => conflict(
                "belongs-to-another-store",
                "The project's database holds another store",
                "Every store needs a database of its own: choose another project.",
            ),
            SupabaseError::OtherLogin => conflict(
                "schema-of-another-login",
                "The store's schema in this project belongs to another login",
                "It was connected by a connection string before. Connect it by that login again.",
            ),
            SupabaseError::DatabaseInUse { status, run } => {
                let problem = conflict(
                    "database-in-use",
                    "The store's database is reached through this connection",
                    "Say keepDatabase=true to take our access to Supabase away and keep the store's login and data where they are.",
                )
                .member("storeStatus", status.as_str());
                match run {
                    Some(run) => problem.member("runId", run.to_string()),
                    None => problem,
                }
            }
            SupabaseError::Api(error) => error.into(),
            SupabaseError::Provisioning(error) => error.into(),
            error @ (SupabaseError::Sealed(_) | SupabaseError::Broken(_) | SupabaseError::Db(_)) => {
                crate::http::errors::unexpected(&error)
            }
        }
    }
}
