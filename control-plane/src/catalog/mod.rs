//! A store's products, on behalf of the people who run it: for now, importing them.

pub mod routes;

use std::time::Duration;

use dashmap::DashSet;
use kernel::{OrganizationId, StoreId};
use problem::Problem;
use tenancy::Lane;
use tenant_schema::import::{ImportError, ImportOptions, ImportProgress, products_import};
use tokio::io::AsyncRead;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::audit::{self, Actor, Subject};
use crate::cx::OpsCx;
use crate::storefront::errors;
use crate::stores::{self, StoreError, inside};

pub use tenant_schema::import::ImportReport;

/// When it is worth asking for a turn again.
const COME_AGAIN: Duration = Duration::from_secs(10);

/// Why nothing, or not everything, was imported.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the store's database gave no connection")]
    Closed(Problem),
    #[error("as many imports as allowed are running")]
    Busy,
    #[error("an import of the same organization is running")]
    Running,
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error("database error")]
    Db(#[from] sqlx::Error),
}

/// The imports that run at one time: so many in all, and one for each organization, so that nobody has all of them.
pub struct Imports {
    turns: Semaphore,
    running: DashSet<OrganizationId>,
}

/// An import's turn, until it is dropped.
struct Turn<'a> {
    imports: &'a Imports,
    organization: OrganizationId,
    _turn: SemaphorePermit<'a>,
}

impl Imports {
    pub fn new(max: usize) -> Self {
        Self { turns: Semaphore::new(max), running: DashSet::new() }
    }

    /// Whether an import into a store of this organization is running.
    pub fn is_running(&self, organization: OrganizationId) -> bool {
        self.running.contains(&organization)
    }

    fn begin(&self, organization: OrganizationId) -> Result<Turn<'_>, CatalogError> {
        let turn = self.turns.try_acquire().map_err(|_| CatalogError::Busy)?;
        if self.running.insert(organization) {
            Ok(Turn { imports: self, organization, _turn: turn })
        } else {
            Err(CatalogError::Running)
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.imports.running.remove(&self.organization);
    }
}

/// Imports a product file into a store. A store that is closed to shoppers can be filled all the same.
pub async fn import(
    cx: &OpsCx,
    actor: Actor,
    store: StoreId,
    file: impl AsyncRead + Unpin,
    dry_run: bool,
    progress: impl FnMut(ImportProgress),
) -> Result<ImportReport, CatalogError> {
    let store = stores::find(cx, store).await?;
    let _turn = cx.imports.begin(store.organization_id)?;
    let lease = inside::lease(cx, &store).await.map_err(CatalogError::Closed)?.map(|lease| lease.in_lane(Lane::Job));
    let lease = lease.ok_or(StoreError::WrongStatus { status: store.status, wanted: "active" })?;
    let options = if dry_run { ImportOptions::dry_run() } else { ImportOptions::new() };
    let report = products_import(&lease, file, options, cx.clock.now(), progress).await?;
    if !dry_run {
        let data = serde_json::json!({
            "rows": report.rows,
            "created": report.products_created,
            "updated": report.products_updated,
            "failed": report.products_failed,
        });
        let mut connection = cx.master.acquire().await?;
        let subject = Subject::store(store.organization_id, store.id);
        audit::record(&mut connection, cx.clock.now(), actor, "products_import", subject, data).await?;
    }
    tracing::info!(store.id = %store.id, rows = report.rows, dry_run, "imported a product file into store {}", store.id);
    Ok(report)
}

impl From<CatalogError> for Problem {
    fn from(error: CatalogError) -> Self {
        use axum::http::StatusCode as S;
        let unreadable = |code, detail: String| {
            Self::new(S::UNPROCESSABLE_ENTITY, code, "The product file cannot be read").detail(detail)
        };
        match error {
            CatalogError::Store(error) => error.into(),
            CatalogError::Closed(problem) => problem,
            CatalogError::Busy => {
                Self::new(S::SERVICE_UNAVAILABLE, "busy", "Too many imports at this moment").retry_after(COME_AGAIN)
            }
            CatalogError::Running => {
                Self::new(S::CONFLICT, "import-running", "Another import of this organization is running")
                    .detail("One file is imported at a time. Send this one again when the other one has ended.")
                    .retry_after(COME_AGAIN)
            }
            CatalogError::Import(error) => match error {
                ImportError::Empty => unreadable("file-empty", error.to_string()),
                ImportError::NotUtf8 { line } => unreadable("file-not-utf8", error.to_string()).member("line", line),
                ImportError::MissingColumns { ref missing } => {
                    let missing = missing.clone();
                    unreadable("missing-columns", error.to_string()).member("columns", missing)
                }
                ImportError::DuplicateColumn { .. } => unreadable("duplicate-column", error.to_string()),
                ImportError::TooManyColumns { .. } => unreadable("too-many-columns", error.to_string()),
                ImportError::TooManyRows { .. } => {
                    unreadable("too-many-rows", format!("{error}; what came before was imported. Split the file."))
                }
                ImportError::Read(error) => routes::unreadable(&error),
                ImportError::Settings(error) => errors::from_settings(error),
                ImportError::Lease(error) => errors::from_lease(error),
                ImportError::Db(error) => errors::from_db_for_owner(&error),
            },
            error @ CatalogError::Db(_) => crate::http::errors::unexpected(&error),
        }
    }
}
