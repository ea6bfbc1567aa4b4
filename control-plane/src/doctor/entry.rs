//! How whoever prepares or serves a database that was brought gets into it. What stands in the way is told as the doctor tells
//! it, because the doctor's own lines look at it.

use std::pin::pin;
use std::time::Duration;

use chrono::{DateTime, Utc};
use kernel::Engine;
use tenancy::{Cause, ConnectError, Credential, Particular, Reach, Session};
use tenant_schema::SchemaState;
use tokio::time::timeout;

use super::inside::{self, Seen};
use super::report::CheckState;
use super::{Place, TCP_LIMIT, network, tls};
use crate::provisioning::engine;
use crate::provisioning::{StepError, transaction_pooler};

/// How long a server may take to let us in: a login to PostgreSQL gives way to others hundreds of times, and so takes seconds in
/// a process that is busy. Who says nothing at all is found out sooner, by the lines before the login.
const CONNECT_LIMIT: Duration = Duration::from_secs(8);
/// How long it may take before what stands there is looked at meanwhile.
const PATIENCE: Duration = Duration::from_millis(700);
/// How long that may take in all.
const LOOK_LIMIT: Duration = Duration::from_secs(6);

/// Logs in. When that fails without a word of the server's, or takes unusually long, the lines before the login are looked at:
/// what is no server of this engine, or none that can be spoken to with the TLS that was asked for, is told to be that.
pub async fn enter(credential: &Credential, reach: Reach, now: DateTime<Utc>) -> Result<Session, StepError> {
    let mut connecting = pin!(credential.connect(reach, CONNECT_LIMIT));
    let mut looking = pin!(look(credential, reach, now));
    let mut has_looked = false;
    let connected = match timeout(PATIENCE, &mut connecting).await {
        Ok(connected) => connected,
        Err(_) => loop {
            tokio::select! {
                biased;
                connected = &mut connecting => break connected,
                found = &mut looking, if !has_looked => match found {
                    Some(wrong) => return Err(wrong),
                    None => has_looked = true,
                }
            }
        },
    };
    let error = match connected {
        Ok(session) => return Ok(session),
        Err(error) => error,
    };
    let is_servers_word = error.code.is_some();
    if !is_servers_word
        && !has_looked
        && let Some(wrong) = looking.await
    {
        return Err(wrong);
    }
    Err(StepError::connecting(credential, error))
}

/// The first of the doctor's lines before the login that fails, if one does.
async fn look(credential: &Credential, reach: Reach, now: DateTime<Utc>) -> Option<StepError> {
    let Credential { engine, host, port, .. } = credential;
    let place = Place { engine: *engine, host: host.clone(), port: *port };
    let lines = async {
        let (_, addresses) = network::resolve(&place, reach).await?;
        let (_, reached) = network::reach(&place, &addresses, TCP_LIMIT).await?;
        tls::shake(credential, reached, now).await
    };
    timeout(LOOK_LIMIT, lines).await.ok()?.err().map(StepError::from)
}

/// What two connections that are open at once are to one another.
pub enum Sides {
    Apart,
    /// They share the server's side: a transaction pooler stands between.
    Shared,
    /// There is no second one.
    Refused(StepError),
}

/// Compares the server's side of a second connection with that of the first.
pub async fn compare(
    credential: &Credential,
    first: &mut Session,
    second: Result<Session, ConnectError>,
) -> Result<Sides, sqlx::Error> {
    let mut second = match second {
        Ok(second) => second,
        Err(mut error) => {
            // Of MySQL's accounts of one name, the first session knows which it is.
            if credential.engine == Engine::Mysql && error.particular.is_none() {
                error.particular = engine::account_host(first).await?.map(Particular::AccountHost);
            }
            return Ok(Sides::Refused(StepError::connecting(credential, error)));
        }
    };
    let sides =
        async { Ok::<_, sqlx::Error>((engine::server_side(first).await?, engine::server_side(&mut second).await?)) };
    let sides = sides.await;
    engine::leave(second).await;
    let (one, two) = sides?;
    Ok(if one == two { Sides::Shared } else { Sides::Apart })
}

/// Refuses what is not one session of the server, with a second connection beside the `first`.
pub async fn check_session_mode(credential: &Credential, reach: Reach, first: &mut Session) -> Result<(), StepError> {
    let second = credential.connect(reach, CONNECT_LIMIT).await;
    let Ok(sides) = timeout(CONNECT_LIMIT, compare(credential, first, second)).await else {
        let asked = timeout(LOOK_LIMIT, refused_by_pooler(credential, credential.connect(reach, LOOK_LIMIT))).await;
        let refused = asked.ok().flatten();
        return Err(refused.unwrap_or_else(|| StepError::of_cause(credential.engine, Cause::Timeout)));
    };
    match sides? {
        Sides::Apart => Ok(()),
        Sides::Shared => {
            let (code, what, advice) = transaction_pooler();
            Err(StepError::new(code, what, advice))
        }
        Sides::Refused(error) => Err(error),
    }
}

/// Why somebody who was let in gets no answer, when it is because of a pooler: whoever asks first waits with it for its login at
/// the server, and only whoever comes after the server's refusal is told.
pub async fn refused_by_pooler(
    credential: &Credential,
    next: impl Future<Output = Result<Session, ConnectError>>,
) -> Option<StepError> {
    if credential.engine != Engine::Postgresql {
        return None;
    }
    let error = match next.await {
        Err(error) => error,
        Ok(mut session) => {
            let asked = engine::server_side(&mut session).await;
            engine::leave(session).await;
            ConnectError::from(&asked.err()?)
        }
    };
    StepError::by_pooler(credential, error)
}

/// What the database holds. What the login may not even read, it is to be given the rights for.
pub async fn inspect(credential: &Credential, session: &mut Session) -> Result<SchemaState, StepError> {
    match tenant_schema::inspect(session).await {
        Ok(state) => Ok(state),
        Err(error) => {
            if inside::is_forbidden(&error) {
                check(credential, session, Seen::Hidden).await?;
            }
            Err(error.into())
        }
    }
}

/// Whether the login may do what a store needs, in a database that holds this.
pub async fn check_privileges(
    credential: &Credential,
    session: &mut Session,
    state: SchemaState,
) -> Result<(), StepError> {
    check(credential, session, Seen::Held(state)).await
}

async fn check(credential: &Credential, session: &mut Session, seen: Seen) -> Result<(), StepError> {
    let note = inside::privileges(credential, session, seen).await?;
    if note.state == CheckState::Failed { Err(note.into()) } else { Ok(()) }
}
