//! The steps of a run: what each does, and how it is undone.

use std::time::Duration;

use kernel::{Engine, Ident, ServerId, StoreStatus};
use sqlx::PgConnection;
use sqlx::migrate::MigrateError;
use tenancy::{Cause, Credential, Reach, Reservation, Session};
use tenant_schema::{SchemaError, SchemaState};

use super::db::{self, StoreDatabase};
use super::held::Held;
use super::remedy::Guest;
use super::step_error::{OURS, StepError};
use super::{DatabaseKind, Run, engine, mysql, postgres};
use crate::cx::OpsCx;
use crate::doctor::entry;
use crate::stores::{self, Store};
use crate::{hostnames, identity, servers};

/// How long a step may take before it counts as failed.
pub const STEP_TIMEOUT: Duration = Duration::from_secs(120);
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a place at a server of ours is waited for.
const PLACE_TIMEOUT: Duration = Duration::from_secs(20);

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
    connection: Option<Held>,
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

    /// A place at the server that the store is at, where it is one of ours.
    async fn place(&self) -> Result<Option<Reservation>, StepError> {
        match self.database.server_id {
            Some(server) => reserve(self.cx, server).await.map(Some),
            None => Ok(None),
        }
    }

    async fn connect(&self) -> Result<Held, StepError> {
        let place = self.place().await?;
        let connected = Box::pin(self.credential.connect(self.reach(), CONNECT_TIMEOUT)).await;
        let session = connected.map_err(|error| self.of_ours(StepError::connecting(&self.credential, error)))?;
        let mut held = Held::new(session, place);
        engine::set_limits(&mut held).await?;
        Ok(held)
    }

    /// Of a managed database nobody but us can mend anything.
    fn of_ours(&self, error: StepError) -> StepError {
        match self.run.kind {
            DatabaseKind::Managed => error.on_our_side(),
            DatabaseKind::Brought => error,
        }
    }

    /// A connection with the rights of the server's administrator, at `database` of that server.
    async fn admin(&self, database: Option<&str>) -> Result<Held, StepError> {
        let credential = self.admin_credential(database).await?;
        let place = self.place().await?;
        let session = Box::pin(credential.connect(Reach::Anywhere, CONNECT_TIMEOUT)).await.map_err(|error| {
            StepError::new("server-unavailable", "Our database server cannot be reached.", OURS)
                .transient()
                .because(error)
        })?;
        let mut held = Held::new(session, place);
        engine::set_limits(&mut held).await?;
        Ok(held)
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
        Box::pin(self.work(step, Kept::default())).await?;
        let mut tx = self.cx.master.begin().await?;
        let news = self.record(step, &mut tx).await?;
        tx.commit().await?;
        self.announce(news);
        Ok(())
    }

    /// The part of the step that is done outside master.
    pub async fn work(&self, step: StepName, mut kept: Kept) -> Result<Kept, StepError> {
        match step {
            // Boxed: each is large, and lies deep in whatever waits for it.
            StepName::CreateDatabase => Box::pin(self.create_database()).await?,
            StepName::CheckConnection => kept.connection = Some(Box::pin(self.check_connection()).await?),
            StepName::Migrate => Box::pin(self.migrate(kept.connection.take())).await?,
            StepName::Seed => kept.lease = Some(Box::pin(self.seed()).await?),
            StepName::SmokeTest => Box::pin(self.smoke_test()).await?,
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
                // Of a database that was brought: it is at no server of ours.
                let mut session = match Box::pin(self.credential.connect(self.reach(), CONNECT_TIMEOUT)).await {
                    Ok(session) => Held::new(session, None),
                    // The owner has taken it away themselves.
                    Err(error) if error.cause == Cause::MissingDatabase => return Ok(()),
                    Err(error) => return Err(StepError::connecting(&self.credential, error)),
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
        let made = match &mut *admin {
            Session::Postgres(conn) => {
                let template =
                    postgres::ensure_template(conn, |name: Ident| async move { self.admin(Some(name.as_str())).await })
                        .await;
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
        let settled = match &mut *inside {
            Session::Postgres(conn) => postgres::settle_clone(conn, &name, password, store).await,
            Session::MySql(_) => Ok(()),
        };
        close(inside, settled).await
    }

    async fn check_connection(&self) -> Result<Held, StepError> {
        // What stands before a server of ours was looked at when ops registered it.
        if self.run.kind == DatabaseKind::Managed {
            let mut session = self.connect().await?;
            let checked = self.check_server(&mut session).await;
            return keep(session, checked).await;
        }
        let session = Box::pin(entry::enter(&self.credential, self.reach(), self.cx.clock.now())).await?;
        let mut session = Held::new(session, None);
        let checked = async {
            // Before it is known to be a session of ours alone, nothing is set that a pooler would leave to others.
            entry::check_session_mode(&self.credential, self.reach(), &mut session).await?;
            engine::set_limits(&mut session).await?;
            self.check_server(&mut session).await
        };
        let checked = checked.await;
        keep(session, checked).await
    }

    async fn check_server(&self, session: &mut Session) -> Result<(), StepError> {
        let facts = engine::facts(session).await?;
        facts.check(&(&self.credential).into()).map_err(|error| self.of_ours(error))?;
        let state = entry::inspect(&self.credential, session).await?;
        entry::check_privileges(&self.credential, session, state).await.map_err(|error| self.of_ours(error))?;
        match state {
            SchemaState::Empty => self.note_found_empty(true).await,
            // A schema that is marked for the store, and nothing in it, was made ready for this run.
            SchemaState::Ours { store, version } if store.is_none_or(|store| store == self.store.id) => {
                let is_empty = store.is_some() && version == 0 && tenant_schema::is_bare(session).await?;
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
                "Connect an empty one, since a store needs a whole database of MySQL's. We do not touch this one.",
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

    async fn migrate(&self, kept: Option<Held>) -> Result<(), StepError> {
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
                "Make this login the owner of it and of what is in it.",
            )
            .sql(Guest::from(&self.credential).hand_over())
            .because(error),
            SchemaError::Db(error)
            | SchemaError::Migrate(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _))
                if self.run.kind == DatabaseKind::Brought =>
            {
                StepError::migrating(error)
            }
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
        self.cx.stores.lease_unserved(&route).await.map_err(|error| self.lease_refused(error))
    }

    fn lease_refused(&self, error: tenancy::LeaseError) -> StepError {
        match error {
            tenancy::LeaseError::Unavailable { cause, .. } => {
                self.of_ours(StepError::of_cause(self.credential.engine, cause))
            }
            other => StepError::new("database-busy", "The store's database gave no connection.", OURS)
                .transient()
                .because(other),
        }
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

fn other_store() -> StepError {
    StepError::new(
        "belongs-to-another-store",
        "This database holds another store.",
        "Every store needs a database of its own: connect another one.",
    )
}

/// Keeps the session for the next step when everything about it is right.
async fn keep(session: Held, checked: Result<(), StepError>) -> Result<Held, StepError> {
    match checked {
        Ok(()) => Ok(session),
        Err(error) => close(session, Err(error)).await,
    }
}

/// Says good-bye to the server in every outcome.
async fn close<T>(held: Held, outcome: Result<T, StepError>) -> Result<T, StepError> {
    held.leave().await;
    outcome
}

/// A place among the connections that we may have to a server of ours.
pub async fn reserve(cx: &OpsCx, server: ServerId) -> Result<Reservation, StepError> {
    cx.stores.reserve(server, PLACE_TIMEOUT).await.map_err(|error| {
        StepError::new("server-busy", "Our database server has no connection to spare.", OURS)
            .transient()
            .because(error)
    })
}
