//! The line of the login.

use std::net::SocketAddr;
use std::time::Duration;

use tenancy::{Credential, Session};

use super::report::{Note, Outcome};
use crate::provisioning::StepError;

/// Logs in, at an address that was looked at.
pub(super) async fn enter(credential: &Credential, addresses: &[SocketAddr], limit: Duration) -> Outcome<Session> {
    let Credential { database, username, .. } = credential;
    match credential.connect_at(addresses, limit).await {
        Ok(session) => Ok((Note::passed(format!("{username} is let into the database {database}.")), session)),
        Err(error) => Err(StepError::connecting(credential, error).into()),
    }
}
