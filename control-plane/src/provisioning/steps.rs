//! The steps of a run: what each does, and how it is undone.

use std::pin::pin;
use std::time::Duration;

use kernel::{Engine, StoreStatus};
use sqlx::PgConnection;
use tenancy::{Cause, ConnectError, Credential, Reach, Session};
use tenant_schema::{SchemaError, SchemaState};
use tokio::time::timeout;

use super::db::{self, StoreDatabase};
use super::step_error::{OURS, StepError, grant_advice, transaction_pooler};
use super::{DatabaseKind, Run, TargetError, engine, mysql, postgres};
use crate::cx::OpsCx;
use crate::doctor::peer;
use crate::stores::{self, Store};
use crate::{hostnames, identity, servers};

/// How long a step may take before it counts as failed.
pub const STEP_TIMEOUT: Duration = Duration::from_secs(120);
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a server may take to let us in before it is asked what it is.
const PATIENCE: Duration = Duration::from_millis(700);

/// The steps by name, in the order in which they are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, sqlx::Type, utoipa::ToSchema)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum StepName {
    /// A database and a login of the store's own, from the template.
    CreateDatabase,
    /// Reach, TLS, login, version, pooler mode, rights, and whose schema it is.
    CheckConnection,
    Migrate,
    Seed,
    /// Reads and writes as the storefront will.
    SmokeTest,
    MapHostname,
    Activate,
}

impl StepName {
    /// The steps of a run of this kind.
    pub const fn of(kind: DatabaseKind) -> &'static [Self] {
        const ALL: &[StepName] = &[
            StepName::CreateDatabase,
            StepName::CheckConnection,
            StepName::Migrate,
            StepName::Seed,
            StepName::SmokeTest,
            StepName::MapHostname,
            StepName::Activate,
        ];
        match kind {
            DatabaseKind::Managed => ALL,
            DatabaseKind::Brought => ALL.split_at(1).1,
        }
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CreateDatabase => "create_database",
            Self::CheckConnection => "check_connection",
            Self::Migrate => "migrate",
            Self::Seed => "seed",
            Self::SmokeTest => "smoke_test",
            Self::MapHostname => "map_hostname",
            Self::Activate => "activate",
        }
    }

    /// Whether it leaves something behind outside master.
    pub const fn makes_something(self) -> bool {
        match self {
            Self::CreateDatabase | Self::Migrate | Self::Seed => true,
            Self::CheckConnection | Self::SmokeTest | Self::MapHostname | Self::Activate => false,
        }
    }
}

/// The version of the store's route that a step has made, if it has.
#[derive(Debug)]
#[must_use = "announce it after the commit"]
pub struct News(Option<i64>);

/// What a step leaves open for the next one of its run, since every login costs both sides milliseconds. Dropping it closes
/// it.
#[derive(Default)]
pub struct Kept {
    /// A connection with the store's own login.
    connection: Option<Session>,
    /// Keeps the pool of a store open that is not served yet.
    lease: Option<tenancy::Lease>,
}

/// What a step works with.
pub struct StepCx<'a> {
    pub cx: &'a OpsCx,
    pub run: &'a Run,
    pub store: Store,
    pub database: StoreDatabase,
    pub credential: Credential,
}

impl<'a> StepCx<'a> {
    /// Reads what the run is about; `None` when the store's database row is gone.
    pub async fn load(cx: &'a OpsCx, run: &'a Run) -> Result<Option<Self>, StepError> {
        let mut master = cx.master.acquire().await?;
        let Some(store) = stores::db::store_find(&mut master, run.store_id).await? else { return Ok(None) };
        let Some(database) = db::store_database_find(&mut master, run.store_id).await? else { return Ok(None) };
        let credential = Credential::open(&cx.keys, &database.sealed, run.store_id, database.credential_version)
            .map_err(|error| StepError::new("sealed", "The stored credential does not open.", OURS).because(error))?;
        Ok(Some(Self { cx, run, store, database, credential }))
    }

    fn reach(&self) -> Reach {
        self.cx.reach(self.run.kind)
    }

    async fn connect(&self) -> Result<Session, StepError> {
        let connected = self.credential.connect(self.reach(), CONNECT_TIMEOUT).await;
        let mut session = connected.map_err(|error| StepError::connecting(self.credential.engine, error))?;
        engine::set_limits(&mut session).await?;
        Ok(session)
    }

    /// The first connection to a database that was brought: what is no server of its engine is told to be none, instead of
    /// waited for.
    async fn connect_to_brought(&self) -> Result<Session, StepError> {
        let mut session = connect_or_explain(&self.credential, self.reach()).await?;
        engine::set_limits(&mut session).await?;
        Ok(session)
    }

    /// A connection with the rights of the server's administrator, at `database` of that server.
    async fn admin(&self, database: Option<&str>) -> Result<Session, StepError> {
        let credential = self.admin_credential(database).await?;
        let mut session = credential.connect(Reach::Anywhere, CONNECT_TIMEOUT).await.map_err(|error| {
            StepError::new("server-unavailable", "Our database server cannot be reached.", OURS)
                .transient()
                .because(error)
        })?;
        engine::set_limits(&mut session).await?;
        Ok(session)
    }

    async fn admin_credential(&self, database: Option<&str>) -> Result<Credential, StepError> {
        let unusable = || StepError::new("server-unusable", "The database server that was chosen is not usable.", OURS);
        let server_id = self.database.server_id.ok_or_else(unusable)?;
        let server =
            servers::db::server_find(&mut *self.cx.master.acquire().await?, server_id).await?.ok_or_else(unusable)?;
        let mut credential = servers::open_credential(self.cx, &server).map_err(|error| unusable().because(error))?;
        if let Some(database) = database {
            credential.database = database.to_owned();
        }
        Ok(credential)
    }

    /// Does the step with everything that belongs to it. May be done again at any time, also after it was killed in the
    /// middle.
    pub async fn perform(&self, step: StepName) -> Result<(), StepError> {
        self.work(step, Kept::default()).await?;
        let mut tx = self.cx.master.begin().await?;
        let news = self.record(step, &mut tx).await?;
        tx.commit().await?;
        self.announce(news);
        Ok(())
    }

    /// The part of the step that is done outside master.
    pub async fn work(&self, step: StepName, mut kept: Kept) -> Result<Kept, StepError> {
        match step {
            StepName::CreateDatabase => self.create_database().await?,
            StepName::CheckConnection => kept.connection = Some(self.check_connection().await?),
            StepName::Migrate => self.migrate(kept.connection.take()).await?,
            StepName::Seed => kept.lease = Some(self.seed().await?),
            StepName::SmokeTest => self.smoke_test().await?,
            StepName::MapHostname | StepName::Activate => {}
        }
        Ok(kept)
    }

    /// What master is to know when the step is done, written in the caller's transaction; on an error it must be rolled
    /// back. Returns what [`Self::announce`] is to be told after the commit.
    pub async fn record(&self, step: StepName, tx: &mut PgConnection) -> Result<News, StepError> {
        match step {
            StepName::Migrate => {
                let version = tenant_schema::LATEST_VERSION;
                db::store_database_set_schema_version(tx, self.store.id, version, self.cx.clock.now()).await?;
            }
            StepName::MapHostname => self.map_hostname(tx).await?,
            StepName::Activate => return self.activate(tx).await,
            StepName::CreateDatabase | StepName::CheckConnection | StepName::Seed | StepName::SmokeTest => {}
        }
        Ok(News(None))
    }

    /// Tells this process what was committed, ahead of the notification.
    pub fn announce(&self, News(route_version): News) {
        if let Some(version) = route_version {
            self.cx.announce(self.store.id, version);
        }
    }

    /// Removes what the step has made, and nothing else. May be done again, and when the step was never done.
    pub async fn undo(&self, step: StepName) -> Result<(), StepError> {
        match step {
            StepName::CreateDatabase => {
                let mut admin = self.admin(None).await?;
                let name = super::managed_name(self.store.id);
                let undone = engine::drop_store_database(&mut admin, &name, self.store.id).await;
                close(admin, undone).await
            }
            StepName::Migrate if self.run.kind == DatabaseKind::Brought => {
                // A schema that was there before is not ours to drop.
                if !db::run_found_empty(&mut *self.cx.master.acquire().await?, self.run.id).await? {
                    return Ok(());
                }
                let mut session = match self.credential.connect(self.reach(), CONNECT_TIMEOUT).await {
                    Ok(session) => session,
                    // The owner has taken it away themselves.
                    Err(error) if error.cause == Cause::MissingDatabase => return Ok(()),
                    Err(error) => return Err(StepError::connecting(self.credential.engine, error)),
                };
                engine::set_limits(&mut session).await?;
                // Nor one that another store has begun to use since.
                let undone = tenant_schema::drop_schema(&mut session, self.store.id).await;
                let undone = undone.map(drop).map_err(|error| match error {
                    SchemaError::Db(error) => error.into(),
                    error => StepError::new(
                        "busy",
                        "A migration of the database is under way and did not end in time.",
                        "Cancel again in a moment.",
                    )
                    .because(error),
                });
                close(session, undone).await
            }
            // What these made goes with the database or the schema, or was there before the run.
            StepName::Migrate
            | StepName::Seed
            | StepName::CheckConnection
            | StepName::SmokeTest
            | StepName::MapHostname => Ok(()),
            StepName::Activate => self.deactivate().await,
        }
    }

    /// Closes the store before what it is served from is taken away.
    async fn deactivate(&self) -> Result<(), StepError> {
        let mut tx = self.cx.master.begin().await?;
        let store = stores::db::store_lock(&mut tx, self.store.id).await?;
        if store.is_some_and(|store| store.status == StoreStatus::Active) {
            let now = self.cx.clock.now();
            stores::db::store_set_status(&mut tx, self.store.id, StoreStatus::Provisioning, None, now).await?;
        }
        let store = stores::db::store_find(&mut tx, self.store.id).await?;
        tx.commit().await?;
        if let Some(store) = store {
            self.cx.announce(store.id, store.route_version);
        }
        Ok(())
    }

    async fn create_database(&self) -> Result<(), StepError> {
        let name = super::managed_name(self.store.id);
        let (password, store) = (&self.credential.password, self.store.id);
        let mut admin = self.admin(None).await?;
        let made = match &mut admin {
            Session::Postgres(conn) => {
                let template = postgres::ensure_template(conn, |name| self.admin_credential(Some(name))).await;
                match template {
                    Ok(template) => postgres::ensure_clone(conn, &name, &template, store).await,
                    Err(error) => Err(error),
                }
            }
            Session::MySql(conn) => mysql::ensure_database(conn, &name, password, store).await,
        };
        let engine = admin.engine();
        close(admin, made).await?;
        if engine != Engine::Postgresql {
            return Ok(());
        }
        let mut inside = self.admin(Some(name.as_str())).await?;
        let settled = match &mut inside {
            Session::Postgres(conn) => postgres::settle_clone(conn, &name, password, store).await,
            Session::MySql(_) => Ok(()),
        };
        close(inside, settled).await
    }

    async fn check_connection(&self) -> Result<Session, StepError> {
        if self.run.kind == DatabaseKind::Brought {
            let found = self.reach().addresses(&self.credential.host, self.credential.port).await;
            found.map_err(|error| {
                let error = TargetError::from(error);
                let advice = "Connect again with a host that is public and resolves.";
                StepError::new(error.code(), error.to_string(), advice)
            })?;
        }
        let mut first = match self.run.kind {
            DatabaseKind::Managed => self.connect().await?,
            DatabaseKind::Brought => self.connect_to_brought().await?,
        };
        // What stands before a server of ours was looked at when ops registered it.
        let checked = match self.run.kind {
            DatabaseKind::Managed => Ok(()),
            DatabaseKind::Brought => self.check_session_mode(&mut first).await,
        };
        let checked = match checked {
            Ok(()) => self.check_server(&mut first).await,
            Err(error) => Err(error),
        };
        match checked {
            Ok(()) => Ok(first),
            Err(error) => close(first, Err(error)).await,
        }
    }

    async fn check_session_mode(&self, first: &mut Session) -> Result<(), StepError> {
        let mut second = self.connect().await?;
        let sides = async { Ok((engine::server_side(first).await?, engine::server_side(&mut second).await?)) }.await;
        let (one, two) = close(second, sides).await?;
        let (code, what, advice) = transaction_pooler();
        if one == two { Err(StepError::new(code, what, advice)) } else { Ok(()) }
    }

    async fn check_server(&self, first: &mut Session) -> Result<(), StepError> {
        let facts = engine::facts(first).await?;
        facts.check()?;
        match tenant_schema::inspect(first).await? {
            SchemaState::Empty if !facts.may_create => Err(StepError::new(
                "missing-privilege",
                match facts.engine {
                    Engine::Mysql => "The login may not create tables in this database, or not write to them.",
                    _ => "The login may not create a schema in this database.",
                },
                grant_advice(facts.engine),
            )),
            SchemaState::Empty => self.note_found_empty(true).await,
            // A schema that is marked for the store, and nothing in it, was made ready for this run.
            SchemaState::Ours { store, version } if store.is_none_or(|store| store == self.store.id) => {
                let is_empty = store.is_some() && version == 0 && tenant_schema::is_bare(first).await?;
                self.note_found_empty(is_empty).await
            }
            SchemaState::Ours { .. } => Err(other_store()),
            SchemaState::Newer { version, .. } => Err(StepError::new(
                "schema-too-new",
                format!("The store's schema has version {version}, which is newer than this installation knows."),
                "Connect it to an installation that is up to date.",
            )),
            SchemaState::Foreign if facts.engine == Engine::Mysql => Err(StepError::new(
                "schema-in-use",
                "The database holds tables, programs or events that are not ours.",
                "Connect an empty one: CREATE DATABASE <name>; with rights on it. We do not touch this one.",
            )),
            SchemaState::Foreign => Err(StepError::new(
                "schema-in-use",
                "The database has a schema named tenantry that is not ours.",
                "Rename or remove that schema, or connect another database. We do not touch it.",
            )),
        }
    }

    async fn note_found_empty(&self, is_empty: bool) -> Result<(), StepError> {
        Ok(db::run_note_found_empty(&mut *self.cx.master.acquire().await?, self.run.id, is_empty).await?)
    }

    async fn migrate(&self, kept: Option<Session>) -> Result<(), StepError> {
        let mut session = match kept {
            Some(session) => session,
            None => self.connect().await?,
        };
        let migrated = match (self.run.kind, session.engine()) {
            // The whole database bears the store's mark.
            (DatabaseKind::Managed, Engine::Postgresql) => tenant_schema::migrate(&mut session).await,
            _ => tenant_schema::migrate_for(&mut session, self.store.id).await,
        };
        let migrated = migrated.map_err(|error| match error {
            // Another store was quicker, after both had found the database empty.
            SchemaError::OtherStore { .. } => other_store().because(error),
            SchemaError::NotOwner => StepError::new(
                "missing-privilege",
                "The schema tenantry in this database belongs to another login.",
                "Make this login its owner: ALTER SCHEMA tenantry OWNER TO <login>;",
            )
            .because(error),
            error => StepError::new("migration-failed", "The store's schema could not be brought up to date.", OURS)
                .because(error),
        });
        close(session, migrated).await
    }

    async fn lease(&self) -> Result<tenancy::Lease, StepError> {
        // The route as it is now, not as some cache has it: this run is what changes it.
        self.cx.announce(self.store.id, self.store.route_version);
        let route = self.cx.stores.resolve_store(self.store.id).await.map_err(|error| {
            StepError::new("directory-unavailable", "The store could not be looked up.", OURS)
                .transient()
                .because(error)
        })?;
        self.cx.stores.lease_unserved(&route).await.map_err(|error| lease_refused(self.credential.engine, error))
    }

    async fn seed(&self) -> Result<tenancy::Lease, StepError> {
        let owner = {
            let mut master = self.cx.master.acquire().await?;
            identity::db::user_of_store_creator(&mut master, self.store.id).await?
        };
        let input = tenant_schema::seed::SeedInput {
            store_id: self.store.id,
            name: self.store.name.clone(),
            slug: self.store.slug.clone(),
            currency: kernel::Currency::USD,
            owner: tenant_schema::seed::SeedOwner {
                user_id: owner.id.to_string(),
                email: owner.email,
                first_name: owner.first_name,
                last_name: owner.last_name,
            },
            demo: self.run.with_demo,
        };
        let lease = self.lease().await?;
        tenant_schema::seed::seed(&lease, &input, self.cx.clock.now()).await.map_err(|error| match error {
            // A store that an earlier release connected at the same time leaves no mark.
            tenant_schema::seed::SeedError::OtherStore { .. } => other_store(),
            error => StepError::new("seed-failed", "The store's first data could not be written.", OURS)
                .transient()
                .because(error),
        })?;
        Ok(lease)
    }

    async fn smoke_test(&self) -> Result<(), StepError> {
        let lease = self.lease().await?;
        tenant_schema::seed::smoke_test(&lease, self.cx.clock.now()).await.map_err(|error| {
            StepError::new("smoke-test-failed", "The store's database does not answer as it should.", OURS)
                .transient()
                .because(error)
        })
    }

    async fn map_hostname(&self, tx: &mut PgConnection) -> Result<(), StepError> {
        let taken = || StepError::new("hostname-taken", "The store's hostname belongs to another store.", OURS);
        let slug = kernel::Slug::parse(&self.store.slug).map_err(|error| taken().because(error))?;
        let hostname = hostnames::platform_hostname(&slug, &self.cx.hosts.platform_domain).ok_or_else(taken)?;
        let now = self.cx.clock.now();
        let known = hostnames::db::hostnames_of_store(tx, self.store.id).await?;
        let new = hostnames::NewHostname {
            id: kernel::HostnameId::new(now),
            hostname,
            kind: hostnames::HostnameKind::Platform,
            is_primary: known.is_empty(),
        };
        if hostnames::db::hostname_ensure(tx, self.store.id, &new, now).await? { Ok(()) } else { Err(taken()) }
    }

    async fn activate(&self, tx: &mut PgConnection) -> Result<News, StepError> {
        let now = self.cx.clock.now();
        let store = stores::db::store_lock(tx, self.store.id).await?;
        match store.map(|store| store.status) {
            Some(StoreStatus::Provisioning) => {
                stores::db::store_set_status(tx, self.store.id, StoreStatus::Active, None, now).await?;
            }
            // Done before, or closed by ops meanwhile, which stays.
            Some(StoreStatus::Active | StoreStatus::Suspended | StoreStatus::Maintenance) => {}
            _ => {
                return Err(StepError::new(
                    "wrong-store-status",
                    "The store's status does not allow serving it.",
                    OURS,
                ));
            }
        }
        Ok(News(stores::db::store_find(tx, self.store.id).await?.map(|store| store.route_version)))
    }
}

/// Connects to a database that was brought. When that takes unusually long, what answers there is asked what it is meanwhile.
async fn connect_or_explain(credential: &Credential, reach: Reach) -> Result<Session, StepError> {
    let Credential { engine, host, port, .. } = credential;
    let mut connecting = pin!(credential.connect(reach, CONNECT_TIMEOUT));
    let connected = match timeout(PATIENCE, &mut connecting).await {
        Ok(connected) => connected,
        Err(_) => {
            let mut explaining = pin!(peer::explain(*engine, host, *port, reach));
            tokio::select! {
                biased;
                connected = &mut connecting => connected,
                Some(wrong) = &mut explaining => return Err(wrong),
            }
        }
    };
    match connected {
        Ok(session) => Ok(session),
        Err(error) if error.cause == Cause::Protocol => Err(explained(credential, reach, error).await),
        Err(error) => Err(StepError::connecting(*engine, error)),
    }
}

/// Why a connection to a database that was brought failed: when it did as it would at something else than a server of this
/// engine, what answers there is asked what it is.
pub(super) async fn explained(credential: &Credential, reach: Reach, error: ConnectError) -> StepError {
    let Credential { engine, host, port, .. } = credential;
    if matches!(error.cause, Cause::Protocol | Cause::Timeout)
        && let Some(wrong) = peer::explain(*engine, host, *port, reach).await
    {
        return wrong.because(error);
    }
    StepError::connecting(*engine, error)
}

fn other_store() -> StepError {
    StepError::new(
        "belongs-to-another-store",
        "This database holds another store.",
        "Every store needs a database of its own: connect another one.",
    )
}

fn lease_refused(engine: Engine, error: tenancy::LeaseError) -> StepError {
    match error {
        tenancy::LeaseError::Unavailable { cause, .. } => {
            StepError::connecting(engine, ConnectError { cause, code: None })
        }
        other => {
            StepError::new("database-busy", "The store's database gave no connection.", OURS).transient().because(other)
        }
    }
}

/// Says good-bye to the server in every outcome, so that no lock or session outlives the step.
async fn close<T>(session: Session, outcome: Result<T, StepError>) -> Result<T, StepError> {
    if let Err(error) = session.close().await {
        tracing::debug!(error = %error, "closing a connection failed");
    }
    outcome
}
