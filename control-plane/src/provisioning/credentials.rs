//! New credentials for a database that an owner brought: another password, login or address of it, or another database that
//! holds a copy of the store.
//!
//! - They are tried before they are kept, and must lead to a database that holds this store: its schema says whose it is. A
//!   copy must be whole, and at the version that the store is at. Nothing is written there, and no data is moved.
//! - They are sealed under the next version, so that the old ones open no longer at their place. That is one change of the
//!   route: every node that hears of it opens its pool anew, and no request that comes afterwards reaches the old one.
//! - When it is another database, the answer waits until the old one is left: what was under way there ends by itself, or is
//!   broken off when it takes too long. So no request that a node that hears of changes begins after the answer is served out
//!   of the old one. A node that master's word does not reach goes on as it does without master, and no longer.
//! - The old database is left as it is, so that its owner can go back. What was ordered there after the copy was made stays
//!   there: the copy is to be made while nobody orders, and one that has fewer orders, customers or products is refused unless
//!   that is allowed.

use std::time::Duration;

use kernel::{StoreId, StoreStatus};
use secrecy::SecretString;
use sqlx::PgConnection;
use tenancy::{Cause, ConnectError, Credential, Session};
use tenant_schema::SchemaState;
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::step_error::{StepError, is_lost, is_waiting};
use super::steps::CONNECT_TIMEOUT;
use super::target::{TargetError, TargetFields};
use super::{DatabaseKind, ProvisioningError, Target, db, engine};
use crate::audit::{self, Actor, Subject};
use crate::cx::OpsCx;
use crate::doctor::entry;
use crate::http::errors::chain;
use crate::stores::{self, Store};

/// How long a copy may be compared with the database that it is a copy of.
const COMPARE_LIMIT: Duration = Duration::from_secs(12);
/// How long what was begun in a database that a store leaves may take to end by itself.
const LEAVE_GRACE: Duration = Duration::from_secs(4);
/// How long ending what is left may take.
const LEAVE_LIMIT: Duration = Duration::from_secs(6);
/// A server that is started anew is back after so many looks.
const RESTART_TRIES: u32 = 4;
const RESTART_PAUSE: Duration = Duration::from_millis(500);
const LEAVE_LOOK: Duration = Duration::from_millis(50);
/// So often nobody must be found there: between two queries a request has no session.
const LEAVE_LOOKS: u32 = 3;

/// What is to connect a store's database from now on.
pub struct NewCredentials {
    pub connection: NewConnection,
    /// Whether a copy may take over though it has fewer rows than what it was copied from: its owner goes back to a backup.
    pub allows_fewer_rows: bool,
}

/// As much of a connection as is new.
pub enum NewConnection {
    /// All of it.
    Whole(Target),
    /// The login's; the place, and how much of TLS is asked for there, stay as they are.
    Login {
        /// Left out, it is the same login.
        username: Option<String>,
        password: SecretString,
    },
}

impl NewConnection {
    /// The whole, with what stays of the credentials that the store has.
    fn onto(self, cx: &OpsCx, store: StoreId, known: &db::StoreDatabase) -> Result<Target, TargetError> {
        let (username, password) = match self {
            Self::Whole(target) => return Ok(target),
            Self::Login { username, password } => (username, password),
        };
        let old = Credential::open(&cx.keys, &known.sealed, store, known.credential_version).map_err(|_| {
            let detail = "where the database is can no longer be read here; give the whole connection";
            TargetError::Invalid { pointer: "/host", code: "required", detail: detail.to_owned() }
        })?;
        Target::from_fields(TargetFields {
            engine: old.engine,
            host: Some(old.host),
            port: Some(old.port),
            username: Some(username.unwrap_or(old.username)),
            password: Some(password),
            database: Some(old.database),
            tls: Some(old.tls),
            ca_pem: old.ca_pem,
        })?
        .for_store()
    }
}

/// Replaces the credentials of a store's database, after proving that the new ones lead to it or to a copy of it.
pub async fn replace(
    cx: &OpsCx,
    actor: Actor,
    store: StoreId,
    new: NewCredentials,
) -> Result<Store, ProvisioningError> {
    let is_text = matches!(&new.connection, NewConnection::Whole(target) if target.is_text);
    replace_with(cx, actor, store, new).await.map_err(|error| match error {
        ProvisioningError::Refused(error) if is_text => ProvisioningError::TextRefused(error),
        error => error,
    })
}

async fn replace_with(
    cx: &OpsCx,
    actor: Actor,
    store: StoreId,
    NewCredentials { connection, allows_fewer_rows }: NewCredentials,
) -> Result<Store, ProvisioningError> {
    let known = check_replaceable(&mut *cx.master.acquire().await?, store).await?;
    let credential = connection.onto(cx, store, &known)?.resolve(cx.owners_reach).await?;
    check_engine(&known, &credential)?;
    // Done before the transaction: a server that does not answer must not keep a lock of master waiting.
    let mut new = check_leads_to(cx, &credential, &known, store).await?;
    let left = find_left(cx, &known, store, &mut new, allows_fewer_rows).await;
    engine::leave(new).await;
    let left = left?;
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    let locked = check_replaceable(&mut tx, store).await?;
    check_engine(&locked, &credential)?;
    if locked.credential_version != known.credential_version {
        // What was proven of a copy was proven beside other credentials.
        return Err(ProvisioningError::CredentialsChanged);
    }
    let version = known.credential_version + 1;
    let sealed = credential.seal(&cx.keys, store, version);
    let names = (credential.database.as_str(), credential.username.as_str());
    db::store_database_set_credential(&mut tx, store, names, &sealed, version, now).await?;
    let changed = stores::db::store_find(&mut tx, store).await?.ok_or(ProvisioningError::StoreNotFound)?;
    let is_moved = is_elsewhere(cx, &known, store, &credential) && !matches!(left, Left::Same);
    let data = serde_json::json!({ "databaseId": known.id, "credentialVersion": version, "isOtherDatabase": is_moved });
    let subject = Subject::store(changed.organization_id, store);
    audit::record(&mut tx, now, actor, "database_credentials_replace", subject, data).await?;
    tx.commit().await?;
    cx.announce(store, changed.route_version);
    if let Left::Database(session) = left {
        // It goes on when the request does not.
        let leaving = cx.tasks.spawn(leave(cx.clone(), store, version, session));
        if let Err(error) = leaving.await {
            tracing::error!(error = %error, "leaving the old database of store {store} broke off");
        }
    }
    Ok(changed)
}

/// What there is to leave.
enum Left {
    /// The new credentials lead to the same database.
    Same,
    /// It lets nobody in with the old credentials, so neither does it serve anybody who comes.
    Closed,
    /// Another database, with a session of the old login in it.
    Database(Box<Session>),
}

/// Whether the new credentials lead to another database than the old ones, however each is addressed.
async fn find_left(
    cx: &OpsCx,
    known: &db::StoreDatabase,
    store: StoreId,
    new: &mut Session,
    allows_fewer_rows: bool,
) -> Result<Left, ProvisioningError> {
    let Ok(old) = Credential::open(&cx.keys, &known.sealed, store, known.credential_version) else {
        return Ok(Left::Closed);
    };
    let mut session = match Box::pin(enter_left(cx, &old)).await {
        Ok(session) => session,
        // It is alive, and full of those that would have to leave.
        Err(error) if matches!(error.cause, Cause::TooManyConnections | Cause::NotReady) => {
            return Err(ProvisioningError::from(old_is_busy().because(error)));
        }
        // Slow, or away: what accepts connections is there.
        Err(error) if error.cause == Cause::Timeout && accepts(cx, &old).await => {
            return Err(ProvisioningError::from(old_is_busy().because(error)));
        }
        Err(error) => {
            tracing::info!(store.id = %store, "the old database of store {store} lets nobody in: {error}");
            return Ok(Left::Closed);
        }
    };
    match engine::is_same_database(new, &mut session).await {
        Ok(false) => {
            let comparing = timeout(COMPARE_LIMIT, check_rows(new, &mut session, allows_fewer_rows));
            match comparing.await.unwrap_or_else(|_| Err(old_is_busy())) {
                Ok(()) => Ok(Left::Database(Box::new(session))),
                Err(error) => {
                    engine::leave(session).await;
                    Err(ProvisioningError::from(error))
                }
            }
        }
        Ok(true) => {
            engine::leave(session).await;
            Ok(Left::Same)
        }
        Err(error) => {
            engine::leave(session).await;
            if ConnectError::from(&error).cause == Cause::PoolerServer {
                tracing::info!(store.id = %store, "the old database of store {store} lets its pooler in no more");
                return Ok(Left::Closed);
            }
            Err(ProvisioningError::from(old_is_busy().because(error)))
        }
    }
}

/// Enters the database that is to be left. One that is only being started anew is waited for.
async fn enter_left(cx: &OpsCx, old: &Credential) -> Result<Session, ConnectError> {
    let mut tries = interval(RESTART_PAUSE);
    for _ in 1..RESTART_TRIES {
        tries.tick().await;
        match old.connect(cx.owners_reach, CONNECT_TIMEOUT).await {
            Err(error) if matches!(error.cause, Cause::Refused | Cause::Unreachable | Cause::NotReady) => {}
            entered => return entered,
        }
    }
    tries.tick().await;
    old.connect(cx.owners_reach, CONNECT_TIMEOUT).await
}

/// Whether something accepts connections where the database is.
async fn accepts(cx: &OpsCx, old: &Credential) -> bool {
    let Ok(addresses) = cx.owners_reach.addresses(&old.host, old.port).await else { return false };
    for address in addresses {
        if let Ok(Ok(_)) = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            return true;
        }
    }
    false
}

/// What an owner has put into a store, and nobody takes out of it whole.
const KEPT: [&str; 9] = [
    "store_identity",
    "settings",
    "staff",
    "categories",
    "products",
    "product_variants",
    "prices",
    "inventory_levels",
    "pages",
];
/// What visitors have left in it for good.
const LEFT: [&str; 2] = ["orders", "customers"];

/// Whether a copy has as many rows as the store's database; and when it may have fewer, some at least of
/// what an owner has put there.
async fn check_rows(copy: &mut Session, old: &mut Session, allows_fewer: bool) -> Result<(), StepError> {
    // What stands in the way there is ended later.
    engine::wait_little(old).await?;
    for table in KEPT.into_iter().chain(LEFT) {
        let had = match said_by_old(engine::count_rows(old, table).await)? {
            Said::Told(had) => had,
            Said::Nothing => continue,
            Said::Unreadable => return Ok(()),
        };
        if had == 0 {
            continue;
        }
        let has = engine::count_rows(copy, table).await?;
        if has == 0 && KEPT.contains(&table) {
            return Err(StepError::new(
                "incomplete-copy",
                format!("In this copy {table} is empty, and in the store's database it is not."),
                "Copy the store's database whole, with every table and row, and give that one.",
            ));
        }
        if has < had && !allows_fewer {
            return Err(StepError::new(
                "fewer-rows",
                format!("In this copy {table} has {has} rows, and in the store's database {had}."),
                "Copy the store's database again, while nobody changes it or orders, and give that copy. To go back to an older \
                 one, and leave what is missing there behind, say allowsFewerRows.",
            ));
        }
        if allows_fewer || !(LEFT.contains(&table) || table == "products") {
            continue;
        }
        let newest = match said_by_old(engine::newest_row(old, table).await)? {
            Said::Told(Some(newest)) => newest,
            Said::Told(None) | Said::Nothing => continue,
            Said::Unreadable => return Ok(()),
        };
        if !engine::has_row(copy, table, &newest).await? {
            return Err(StepError::new(
                "fewer-rows",
                format!("In this copy {table} has not the row that is the newest in the store's database."),
                "Copy the store's database again, while nobody changes it or orders, and give that copy. To go back to an older \
                 one, and leave what is missing there behind, say allowsFewerRows.",
            ));
        }
    }
    Ok(())
}

/// What the database that is left says of one of its tables.
enum Said<T> {
    Told(T),
    /// Somebody holds it, or it has too much to be told in time: the other tables tell.
    Nothing,
    /// It cannot be read, and the owner may be glad to have a copy.
    Unreadable,
}

fn said_by_old<T>(said: Result<T, sqlx::Error>) -> Result<Said<T>, StepError> {
    match said {
        Ok(told) => Ok(Said::Told(told)),
        Err(error) if is_waiting(&error) => Ok(Said::Nothing),
        Err(error) if is_lost(&error) => Err(old_is_busy().because(error)),
        Err(error) => {
            tracing::info!(error = chain(&error), "a database that is left cannot be compared with its copy");
            Ok(Said::Unreadable)
        }
    }
}

fn old_is_busy() -> StepError {
    StepError::new(
        "old-database-busy",
        "The database that the store is in now could not be asked who works in it.",
        "Try again in a moment; when it is full, close connections there or raise its limit.",
    )
    .transient()
}

/// Waits until nobody works in the database that a store has left, and in the end sees to it.
async fn leave(cx: OpsCx, store: StoreId, version: i32, mut session: Box<Session>) {
    match timeout(LEAVE_LIMIT, end_all(&cx, store, version, &mut session)).await {
        Ok(Ok(0)) => {}
        Ok(Ok(ended)) => {
            tracing::info!(store.id = %store, "store {store} left its old database; {ended} sessions were ended");
        }
        Ok(Err(error)) => {
            tracing::warn!(error = chain(&error), store.id = %store, "the old database of store {store} could not be watched");
        }
        Err(_) => {
            tracing::warn!(store.id = %store, "store {store} has moved, and its old database is still in use");
        }
    }
    engine::leave(*session).await;
}

/// Returns how many sessions had to be ended, once none is found any more.
async fn end_all(cx: &OpsCx, store: StoreId, version: i32, session: &mut Session) -> Result<usize, sqlx::Error> {
    let deadline = Instant::now() + LEAVE_GRACE;
    let mut looks = interval(LEAVE_LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut ended, mut quiet) = (0, 0);
    while quiet < LEAVE_LOOKS {
        looks.tick().await;
        let found = engine::sessions_beside(session).await?;
        quiet = if found.is_empty() { quiet + 1 } else { 0 };
        if Instant::now() < deadline || found.is_empty() {
            continue;
        }
        // The store may have come back meanwhile: then they are its own.
        let known = db::store_database_find(&mut *cx.master.acquire().await?, store).await?;
        if known.is_none_or(|known| known.credential_version != version) {
            return Ok(ended);
        }
        for other in found {
            engine::end_session(session, other).await?;
            ended += 1;
        }
    }
    Ok(ended)
}

/// Whether the credentials name another place than the old ones. Old ones that do not open any more name none.
fn is_elsewhere(cx: &OpsCx, known: &db::StoreDatabase, store: StoreId, credential: &Credential) -> bool {
    let old = Credential::open(&cx.keys, &known.sealed, store, known.credential_version);
    old.is_ok_and(|old| !old.is_same_place(credential))
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
    Err(ProvisioningError::from(StepError::new(
        "other-database",
        format!("The store's database is {}, and these credentials are for {}.", known.engine, credential.engine),
        "Give credentials of the database that the store was connected to, or of a copy of it on the same engine.",
    )))
}

/// A session in the database that the credentials lead to, once everything about it is right.
async fn check_leads_to(
    cx: &OpsCx,
    credential: &Credential,
    known: &db::StoreDatabase,
    store: StoreId,
) -> Result<Session, ProvisioningError> {
    let reach = cx.owners_reach;
    let mut session = entry::enter(credential, reach, cx.clock.now()).await.map_err(ProvisioningError::from)?;
    // At the same place it is the same database, and whatever version it has, the store has.
    let wanted = is_elsewhere(cx, known, store, credential).then(|| known.schema_version.unwrap_or_default());
    let checked = async {
        entry::check_session_mode(credential, reach, &mut session).await?;
        check_inside(credential, &mut session, store, wanted).await
    };
    match checked.await {
        Ok(()) => Ok(session),
        Err(error) => {
            engine::leave(session).await;
            Err(ProvisioningError::from(error))
        }
    }
}

async fn check_inside(
    credential: &Credential,
    session: &mut Session,
    store: StoreId,
    wanted: Option<i64>,
) -> Result<(), StepError> {
    engine::set_limits(session).await?;
    engine::facts(session).await?.check(&credential.into())?;
    let state = entry::inspect(credential, session).await?;
    let version = match state {
        SchemaState::Ours { store: Some(found), version } | SchemaState::Newer { store: Some(found), version }
            if found == store =>
        {
            version
        }
        SchemaState::Empty | SchemaState::Foreign | SchemaState::Ours { .. } | SchemaState::Newer { .. } => {
            return Err(StepError::new(
                "other-database",
                "This database does not hold this store.",
                "Give credentials of the database that the store was connected to, or of a copy of it. We move no data.",
            ));
        }
    };
    if let Some(wanted) = wanted {
        check_copy(session, version, wanted).await?;
    }
    entry::check_privileges(credential, session, state).await
}

/// The parts that a schema lacks. Of one that lost many of them, the rest says no more than the first ones do.
pub(crate) fn parts_in_words(missing: &[&str]) -> String {
    const NAMED: usize = 8;
    let (first, others) = missing.split_at(missing.len().min(NAMED));
    let others = if others.is_empty() { String::new() } else { format!("; and {} more", others.len()) };
    format!("{}{others}", first.join("; "))
}

/// Whether a copy is one that the store can go on from without a line of it being changed.
async fn check_copy(session: &mut Session, version: i64, wanted: i64) -> Result<(), StepError> {
    if version == 0 {
        return Err(StepError::new(
            "incomplete-copy",
            "This copy has tables, and not the rows that say which version they are of.",
            "It was copied without its rows: copy the store's database whole, with every table and row, and give that one.",
        ));
    }
    if version < wanted {
        return Err(StepError::new(
            "schema-too-old",
            format!("The schema of this copy has version {version}; the store's has {wanted}."),
            "It was copied before the store was upgraded: copy the store's database as it is now, and give that one.",
        ));
    }
    if version > wanted {
        return Err(StepError::new(
            "schema-too-new",
            format!("The schema of this copy has version {version}; the store's has {wanted}."),
            "It was upgraded after it was copied: copy the store's database as it is now, and give that one.",
        ));
    }
    let missing = tenant_schema::missing_parts(session, version).await?;
    if missing.is_empty() {
        return Ok(());
    }
    Err(StepError::new(
        "incomplete-copy",
        format!("In this copy these parts of the store are missing or changed: {}.", parts_in_words(&missing)),
        "Copy the store's database whole, with every table, index, constraint and row, and give that one.",
    ))
}
