//! Proof that the ledger is what it was: the ten invariants, and sealed roots over the heads of all chains.
//!
//! The invariants find what does not fit together. A root finds what fits together and is not what was there before: it is
//! sealed under the installation's key, so who has only the database can neither change an old one nor make one.

pub mod db;

use kernel::OrganizationId;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;
use vault::{Aad, Purpose, Sealed};

use super::CreditError;
use crate::cx::OpsCx;
use db::{Head, RootRow, Violation};

/// Roots are kept and checked so far back: daily ones for a year.
const ROOTS: i64 = 400;

/// What a verification found.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Verification {
    /// Everything that does not hold, by account and version. Empty when all is well.
    pub violations: Vec<Violation>,
    /// How many sealed roots were compared with the ledger.
    pub roots_checked: usize,
}

/// Checks one account, or all of them and every sealed root.
pub async fn verify(cx: &OpsCx, organization: Option<OrganizationId>) -> Result<Verification, CreditError> {
    // One snapshot: what is spent meanwhile is not torn.
    let mut tx = cx.master.begin().await?;
    db::snapshot(&mut tx).await?;
    if let Some(one) = organization
        && !db::account_exists(&mut tx, one).await?
    {
        return Err(CreditError::OrganizationNotFound);
    }
    let mut violations = db::violations(&mut tx, organization).await?;
    let roots = db::roots(&mut tx, ROOTS).await?;
    for root in &roots {
        let heads = db::root_heads(&mut tx, root.id).await?;
        let whose = organization.or_else(|| heads.first().map(|head| head.organization_id));
        let is_sealed = Sealed::from_bytes(root.sealed.clone())
            .ok()
            .and_then(|sealed| cx.keys.open(&sealed, &Aad::for_platform(Purpose::LedgerRoot, 1)).ok())
            .is_some_and(|opened| *opened == statement(root.id, &digest(&heads)) && root.root == digest(&heads));
        if !is_sealed && let Some(organization_id) = whose {
            let what = format!("the root of {} is not what was sealed", root.created_at);
            violations.push(Violation { invariant: 5, organization_id, version: None, what });
        }
        for (organization_id, version) in db::root_heads_missing(&mut tx, root.id).await? {
            if organization.is_none_or(|only| only == organization_id) {
                let what = format!("the ledger is not the one that was sealed at {}", root.created_at);
                violations.push(Violation { invariant: 5, organization_id, version: Some(version), what });
            }
        }
    }
    tx.rollback().await?;
    Ok(Verification { violations, roots_checked: roots.len() })
}

/// Seals the heads of all chains, if the last root is older than `period`.
pub async fn seal_root(cx: &OpsCx, period: chrono::Duration) -> Result<(), sqlx::Error> {
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    // One node at a time.
    db::roots_lock(&mut tx).await?;
    if db::roots(&mut tx, 1).await?.first().is_some_and(|last| last.created_at + period > now) {
        return Ok(());
    }
    let heads = db::heads(&mut tx).await?;
    if heads.is_empty() {
        return Ok(());
    }
    let id = Uuid::from_bytes(kernel::random::bytes());
    let root = digest(&heads);
    let sealed = cx.keys.seal(&statement(id, &root), &Aad::for_platform(Purpose::LedgerRoot, 1));
    let row = RootRow { id, root: root.to_vec(), sealed: sealed.as_bytes().to_vec(), created_at: now };
    db::root_insert(&mut tx, &row, &heads).await?;
    db::roots_purge(&mut tx, ROOTS).await?;
    tx.commit().await
}

fn statement(id: Uuid, root: &[u8; 32]) -> Vec<u8> {
    [id.as_bytes().as_slice(), root].concat()
}

fn digest(heads: &[Head]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for head in heads {
        hash.update(head.organization_id.as_uuid().as_bytes());
        hash.update(head.version.to_be_bytes());
        hash.update(&head.chain);
    }
    hash.finalize().into()
}
