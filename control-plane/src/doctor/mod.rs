//! The connection doctor: what is wrong with a database that an owner brings, or has brought, said line by line.
//!
//! - It changes nothing: it asks, and as soon as it has a session of the server, that session may only read. Before it is known
//!   to have one, nothing is set that a pooler would leave to others.
//! - It is no way to look around in networks: only public addresses are called, unless ops allow others, and only those that
//!   were checked. What answers and is no database is told to be none, and nothing of what it says is repeated; of our own
//!   network no address is told. How long a line took is told, failed or not: what is called is public, and whoever asks could
//!   measure it as well. How often one may ask, and how many are answered at once, is limited ([`limits`]).
//! - The connection string is repeated by parts at most, never the password, and never logged.
//! - Every line has a limit of time, and all of them have one together; each that fails says why and what to do. What does not
//!   depend on it is looked at all the same.

pub mod entry;
mod inside;
pub mod limits;
mod login;
mod mysql;
mod network;
mod peer;
mod postgres;
mod report;
pub mod routes;
mod supabase;
mod tls;

use std::time::Duration;

use kernel::{Engine, ServerId, StoreId, StoreStatus};
use problem::Problem;
use tenancy::{Credential, LeaseError, Reach, Reservation, TlsMode};
use tenant_schema::fitness::Ailment;

use crate::cx::OpsCx;
use crate::directory;
use crate::provisioning::held::STATEMENT_END;
use crate::provisioning::target::{Target, TargetError};
use crate::provisioning::{self, DatabaseKind, OURS, StepError, engine};
use crate::stores;

pub use inside::connections_taken;
pub use report::{Check, CheckName, CheckState, Report};
use report::{Course, Note, Outcome};

const DNS_LIMIT: Duration = Duration::from_secs(4);
const TCP_LIMIT: Duration = Duration::from_secs(6);
const TLS_LIMIT: Duration = Duration::from_secs(4);
const LOGIN_LIMIT: Duration = Duration::from_secs(6);
const LINE_LIMIT: Duration = Duration::from_secs(3);
/// What is left of a request's time for good-byes and the answer.
const RESERVE: Duration = Duration::from_secs(1);

/// Whose database it is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// Of no store yet.
    Anybody,
    /// Of a store that has none yet, or whose own is being prepared.
    New(StoreId),
    /// Of a store whose data is in it.
    Of(StoreId),
}

/// What is looked at.
enum Patient {
    /// What somebody typed.
    Typed(Result<Target, TargetError>),
    /// A store's own, brought by its owner.
    Brought(Box<Credential>),
    /// A store's own, on a server of ours.
    Managed(Box<Credential>),
    /// A store's own, whose credential does not open.
    Sealed,
}

/// Why nothing was looked at.
#[derive(Debug, thiserror::Error)]
pub enum DoctorError {
    #[error("there is no such store")]
    StoreNotFound,
    #[error("the store has no database")]
    NoDatabase { status: StoreStatus },
    #[error("the database server has no connection to spare")]
    Busy(#[source] LeaseError),
    #[error("database error")]
    Db(#[from] sqlx::Error),
}

impl From<DoctorError> for Problem {
    fn from(error: DoctorError) -> Self {
        match error {
            DoctorError::StoreNotFound => Self::not_found(),
            DoctorError::NoDatabase { status } => {
                Self::new(axum::http::StatusCode::CONFLICT, "no-database", "The store has no database")
                    .detail("Send the connection of the one that is to be tested.")
                    .member("storeStatus", status.as_str())
            }
            DoctorError::Busy(error) => crate::storefront::errors::from_lease(error),
            error @ DoctorError::Db(_) => crate::http::errors::unexpected(&error),
        }
    }
}

/// Looks at a database that is no store's yet.
pub async fn examine(cx: &OpsCx, target: Result<Target, TargetError>) -> Report {
    look(cx, Patient::Typed(target), Holder::Anybody).await
}

/// Looks at a store's own database, or at one that is to be it. When the store's own is well, every node tries it again at once,
/// though it was in trouble before.
pub async fn examine_store(
    cx: &OpsCx,
    store: StoreId,
    candidate: Option<Result<Target, TargetError>>,
) -> Result<Report, DoctorError> {
    let (store, known) = {
        let mut master = cx.master.acquire().await?;
        let store = stores::db::store_find(&mut master, store).await?.ok_or(DoctorError::StoreNotFound)?;
        let known = provisioning::db::store_database_find(&mut master, store.id).await?;
        (store, known)
    };
    // As soon as it has been served, its data is there and nowhere else.
    let is_settled = matches!(store.status, StoreStatus::Active | StoreStatus::Suspended | StoreStatus::Maintenance);
    let holder = if is_settled { Holder::Of(store.id) } else { Holder::New(store.id) };
    let is_own = candidate.is_none();
    let server = known.as_ref().and_then(|known| known.server_id);
    let patient = match (candidate, known) {
        (Some(target), _) => Patient::Typed(target),
        (None, None) => return Err(DoctorError::NoDatabase { status: store.status }),
        (None, Some(known)) => match Credential::open(&cx.keys, &known.sealed, store.id, known.credential_version) {
            Err(error) => {
                tracing::error!(store.id = %store.id, error = %error, "a stored credential does not open");
                Patient::Sealed
            }
            Ok(credential) if known.kind == DatabaseKind::Managed => Patient::Managed(Box::new(credential)),
            Ok(credential) => Patient::Brought(Box::new(credential)),
        },
    };
    // It opens two sessions, to see that they are two.
    let places = match server.filter(|_| matches!(patient, Patient::Managed(_))) {
        Some(server) => Places(vec![reserve(cx, server).await?, reserve(cx, server).await?]),
        None => Places(Vec::new()),
    };
    let mut report = look(cx, patient, holder).await;
    if !report.checks.iter().any(|check| check.code == Some("timeout")) {
        places.give_back();
    }
    if is_own && matches!(holder, Holder::Of(_)) {
        report.checks.iter_mut().for_each(tell_of_own);
    }
    if is_own && report.ok {
        directory::db::store_recovery_tell(&mut *cx.master.acquire().await?, store.id).await?;
    }
    Ok(report)
}

/// Places at a server of ours. When a look ends in the middle, by a line's time limit or because nobody waits for it any more,
/// they are kept until the server has ended what it was asked.
struct Places(Vec<Reservation>);

impl Places {
    fn give_back(mut self) {
        self.0.clear();
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        self.0.drain(..).for_each(|place| place.keep_for(STATEMENT_END));
    }
}

async fn reserve(cx: &OpsCx, server: ServerId) -> Result<Reservation, DoctorError> {
    cx.stores.reserve(server, LINE_LIMIT).await.map_err(DoctorError::Busy)
}

async fn look(cx: &OpsCx, patient: Patient, holder: Holder) -> Report {
    let is_managed = matches!(patient, Patient::Managed(_));
    // The checklist must be there before the request that asked for it is given up.
    let limit = cx.limits.request_timeout.saturating_sub(RESERVE).min(cx.limits.doctor.database_test_timeout);
    let mut course = Course::new(limit);
    walk(cx, &mut course, patient, holder).await;
    let mut report = course.end();
    if is_managed {
        report.checks.iter_mut().for_each(hide_ours);
    }
    for failed in report.checks.iter().filter(|check| check.state == CheckState::Failed) {
        let (line, code) = (failed.name.as_str(), failed.code.unwrap_or_default());
        metrics::counter!("tenantry_database_tests_failed_total", "line" => line, "code" => code).increment(1);
    }
    report
}

/// A connection that is under way to be made.
struct Place {
    engine: Engine,
    host: String,
    port: u16,
}

async fn walk(cx: &OpsCx, course: &mut Course, patient: Patient, holder: Holder) {
    let reach = if matches!(patient, Patient::Managed(_)) { Reach::Anywhere } else { cx.owners_reach };
    let Some(patient) = course.line(CheckName::Parse, LINE_LIMIT, async { parse(patient, reach) }).await else {
        return;
    };
    let place = match &patient {
        Read::Target(target) => Place { engine: target.engine, host: target.host.clone(), port: target.port },
        Read::Credential(known) => Place { engine: known.engine, host: known.host.clone(), port: known.port },
    };
    let Some(addresses) = course.line(CheckName::Dns, DNS_LIMIT, network::resolve(&place, reach)).await else {
        return;
    };
    let credential = match patient {
        Read::Target(target) => target.settle(&addresses, reach),
        Read::Credential(known) => *known,
    };
    let Some(reached) = course.line(CheckName::Tcp, TCP_LIMIT, network::reach(&place, &addresses, TCP_LIMIT)).await
    else {
        return;
    };
    let now = cx.clock.now();
    if course.line(CheckName::Tls, TLS_LIMIT, tls::shake(&credential, reached, now)).await.is_none() {
        return;
    }
    let limit = course.left(LOGIN_LIMIT);
    let Some(mut session) =
        course.line(CheckName::Login, LOGIN_LIMIT, login::enter(&credential, &addresses, limit)).await
    else {
        return;
    };
    inside::look(cx, course, (&credential, &addresses), &mut session, holder).await;
    engine::leave(session).await;
}

/// What a patient is after reading.
enum Read {
    Target(Box<Target>),
    Credential(Box<Credential>),
}

fn parse(patient: Patient, reach: Reach) -> Outcome<Read> {
    match patient {
        Patient::Sealed => Err(Note::failed("sealed", "The stored credential does not open.", OURS)),
        Patient::Brought(known) | Patient::Managed(known) => {
            let place = (known.host.as_str(), known.port);
            let note = describe(known.engine, place, &known.database, &known.username, Some(known.tls));
            Ok((note, Read::Credential(known)))
        }
        Patient::Typed(target) => {
            let target = target.and_then(|target| target.check_plain(reach).map(|()| target));
            match target {
                Ok(target) => {
                    let place = (target.host.as_str(), target.port);
                    let note = describe(target.engine, place, &target.database, &target.username, target.tls);
                    Ok((note, Read::Target(Box::new(target))))
                }
                Err(TargetError::Invalid { pointer, code, detail }) => {
                    let part = pointer.trim_start_matches('/');
                    Err(Note::failed(code, format!("{part}: {detail}."), "Correct this part of the connection."))
                }
                Err(error @ TargetError::PlainRefused) => Err(Note::failed(
                    "tls-required",
                    format!("{}.", capitalized(&error.to_string())),
                    "Ask for TLS: sslmode=require, verify-ca or verify-full.",
                )),
                Err(error @ (TargetError::PrivateAddress | TargetError::Unresolvable)) => {
                    Err(Note::failed("host", format!("{}.", capitalized(&error.to_string())), "Check the host's name."))
                }
            }
        }
    }
}

fn describe(engine: Engine, (host, port): (&str, u16), database: &str, login: &str, tls: Option<TlsMode>) -> Note {
    let tls = match tls {
        None => "TLS as the host needs it",
        Some(TlsMode::Disable) => "without TLS",
        Some(TlsMode::Require) => "TLS without a check of the certificate",
        Some(TlsMode::VerifyCa) => "TLS, the certificate's authority checked",
        Some(TlsMode::VerifyFull) => "TLS, the certificate checked",
    };
    let product = product(engine);
    let detail = format!("{product} at host {host}, port {port}, database {database}, login {login}, {tls}");
    supabase::kind_of(host, port).map_or_else(
        || Note::passed(format!("{detail}.")),
        |kind| kind.remark(login, &format!("{detail}; this is Supabase's {}.", kind.as_str())),
    )
}

/// What people call it.
const fn product(engine: Engine) -> &'static str {
    match engine {
        Engine::Mysql => "MySQL or MariaDB",
        _ => "PostgreSQL",
    }
}

fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// What is missing from a copy, or is elsewhere, is lost when it is the store's own.
fn tell_of_own(check: &mut Check) {
    let lost = StepError::ailing(Ailment::TablesMissing);
    check.code = match check.code {
        Some("incomplete-copy") => Some("schema-damaged"),
        Some("other-database") => {
            check.detail = lost.what;
            Some(lost.code)
        }
        _ => return,
    };
    check.advice = Some(lost.advice.into_owned());
}

/// Takes off a line what is about our own servers: where they are, how they are certified, how full they are.
fn hide_ours(check: &mut Check) {
    let shown = match (check.name, check.state) {
        (CheckName::Parse, _) => "A managed database.",
        (CheckName::Dns, CheckState::Failed) => "Its server was not found.",
        (CheckName::Dns, _) => "Its server was looked for.",
        (CheckName::Tcp, CheckState::Failed) => "Its server was called, and does not answer as it should.",
        (CheckName::Tcp, _) => "Its server was called.",
        (CheckName::Tls, CheckState::Failed) => "Encryption was looked at, and is not as it should be.",
        (CheckName::Tls, _) => "Encryption was looked at.",
        (CheckName::Limits, CheckState::Failed) => "Its server's limits could not be looked at.",
        (CheckName::Limits, _) => "Its server's limits were looked at.",
        _ => "",
    };
    let is_looked_at = check.state != CheckState::Skipped;
    if !shown.is_empty() && is_looked_at {
        shown.clone_into(&mut check.detail);
    }
    check.sql = None;
    check.server_code = None;
    if matches!(check.state, CheckState::Failed | CheckState::Warning) {
        check.advice = Some(OURS.to_owned());
    }
}
