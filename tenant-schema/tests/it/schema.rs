//! Migrating, inspecting, seeding.

use std::time::Duration;

use kernel::{Engine, StoreId};
use tenancy::Session;
use tenant_schema::migrate::{drop_schema, inspect, migrate, migrate_for, migrate_within};
use tenant_schema::seed::{SeedError, counts, seed, smoke_test};
use tenant_schema::settings::{SettingsError, StoreSettingsPatch, settings, settings_patch_in, store_view};
use tenant_schema::{LATEST_VERSION, SchemaError, SchemaState};
use tokio::task::JoinSet;

use crate::support::{Database, Store, now, run};

on_each_engine! {
    a_database_goes_from_empty_to_ours_and_migrating_twice_changes_nothing
    what_is_not_ours_is_told_and_never_touched
    two_migrators_at_once_make_one_schema_and_a_stuck_one_is_not_waited_for
    the_first_of_two_stores_has_the_schema_and_only_it_drops_it
    a_schema_that_was_begun_for_a_store_is_that_stores_however_little_is_in_it
    a_newer_database_is_told_and_left_alone
    a_schema_without_a_mark_is_its_identitys_and_without_either_whoever_migrates_it_next
    seeding_twice_changes_nothing_and_another_store_is_refused
    a_seeded_store_passes_its_smoke_test_and_is_counted
    settings_are_patched_and_the_currency_stays_once_there_are_prices
}

async fn a_database_goes_from_empty_to_ours_and_migrating_twice_changes_nothing(engine: Engine) {
    let database = Database::create(engine).await;
    let mut session = database.connect().await;
    assert_eq!(inspect(&mut session).await.unwrap(), SchemaState::Empty);
    if engine == Engine::Postgresql {
        run(&mut session, "create schema tenantry").await;
        assert_eq!(inspect(&mut session).await.unwrap(), SchemaState::Empty);
    }
    for _ in 0..2 {
        migrate(&mut session).await.unwrap();
        assert_eq!(inspect(&mut session).await.unwrap(), SchemaState::Ours { store: None, version: LATEST_VERSION });
    }
}

async fn what_is_not_ours_is_told_and_never_touched(engine: Engine) {
    const POSTGRESQL: [&str; 6] = [
        "create schema tenantry; create table tenantry.products (id int)",
        "create schema tenantry; create type tenantry.mood as enum ('good')",
        "create schema tenantry; create table tenantry._migrations (id int)",
        "create schema tenantry; create function tenantry.f() returns int language sql as 'select 1'",
        "create schema tenantry; create table tenantry._migrations (version bigint, checksum bytea, success bool);
         create table tenantry.x (y int)",
        "create schema tenantry; create table tenantry._migrations (version bigint, checksum bytea, success bool);
         create table tenantry.store_identity (name text)",
    ];
    const MYSQL: [&str; 8] = [
        "create table products (id int)",
        "create view products as select 1 as id",
        "create function f() returns int deterministic return 1",
        "create procedure p() select 1",
        "create event e on schedule every 1 year do select 1",
        "create table _migrations (id int)",
        "create table _migrations (version bigint, checksum blob, success bool); create table x (y int)",
        "create table _migrations (version bigint, checksum blob, success bool);
         create table store_identity (name text)",
    ];
    for foreign in if engine == Engine::Postgresql { &POSTGRESQL[..] } else { &MYSQL[..] } {
        let database = Database::create(engine).await;
        let mut session = database.connect().await;
        run(&mut session, foreign).await;
        assert_eq!(inspect(&mut session).await.unwrap(), SchemaState::Foreign, "{foreign}");
        assert!(matches!(migrate(&mut session).await, Err(SchemaError::Foreign)), "{foreign}");
        assert_eq!(inspect(&mut session).await.unwrap(), SchemaState::Foreign, "{foreign}");
    }
}

#[tokio::test]
async fn the_owners_own_schemas_stay_as_they_are() {
    let database = Database::create(Engine::Postgresql).await;
    let mut session = database.connect().await;
    run(&mut session, "create table products (name text); insert into products values ('mine')").await;
    let before = schema_print(&mut session).await;
    migrate(&mut session).await.unwrap();
    assert_eq!(schema_print(&mut session).await, before);
}

async fn schema_print(session: &mut Session) -> Vec<String> {
    sqlx::query_scalar(
        "select format('%s.%s %s', n.nspname, c.relname, c.relkind) from pg_class c
         join pg_namespace n on n.oid = c.relnamespace
         where n.nspname not in ('tenantry', 'pg_catalog', 'pg_toast', 'information_schema') order by 1",
    )
    .fetch_all(session.postgres().unwrap())
    .await
    .unwrap()
}

async fn a_newer_database_is_told_and_left_alone(engine: Engine) {
    let store = Store::empty(engine).await;
    store
        .execute(
            "insert into _migrations (version, description, success, checksum, execution_time)
             values (99991231000001, 'later', true, '', 0)",
        )
        .await;
    let mut conn = store.database.connect().await;
    let newer = SchemaState::Newer { store: Some(store.id), version: 99_991_231_000_001 };
    assert_eq!(inspect(&mut conn).await.unwrap(), newer);
    assert!(matches!(migrate(&mut conn).await, Err(SchemaError::Newer { .. })));
}

async fn two_migrators_at_once_make_one_schema_and_a_stuck_one_is_not_waited_for(engine: Engine) {
    let database = Database::create(engine).await;
    let (mut a, mut b) = (database.connect().await, database.connect().await);
    let (first, second) = tokio::join!(migrate(&mut a), migrate(&mut b));
    first.unwrap();
    second.unwrap();
    // Whoever holds the lock keeps the others out; once its connection is closed they get in.
    let mut holder = database.connect().await;
    run(&mut holder, take_lock(engine)).await;
    let short = Duration::from_millis(40);
    assert!(matches!(migrate_within(&mut a, short).await, Err(SchemaError::Busy)));
    holder.close().await.unwrap();
    migrate(&mut a).await.unwrap();
}

/// As a migrator takes it.
fn take_lock(engine: Engine) -> &'static str {
    match engine {
        Engine::Postgresql => "select pg_advisory_lock(8387231245791425145)",
        _ => "do get_lock(concat('tenantry:', md5(database())), 10)",
    }
}

fn two_stores() -> [StoreId; 2] {
    [(); 2].map(|()| StoreId::new(now()))
}

async fn the_first_of_two_stores_has_the_schema_and_only_it_drops_it(engine: Engine) {
    let database = Database::create(engine).await;
    let (mut a, mut b) = (database.connect().await, database.connect().await);
    let stores = two_stores();
    let (one, other) = tokio::join!(migrate_for(&mut a, stores[0]), migrate_for(&mut b, stores[1]));
    let (won, lost, refused) = if one.is_ok() { (0, 1, other) } else { (1, 0, one) };
    assert!(matches!(refused, Err(SchemaError::OtherStore { store }) if store == stores[won]), "{refused:?}");
    let begun = SchemaState::Ours { store: Some(stores[won]), version: LATEST_VERSION };
    assert_eq!(inspect(&mut a).await.unwrap(), begun);

    assert!(!drop_schema(&mut b, stores[lost]).await.unwrap());

    assert_eq!(inspect(&mut a).await.unwrap(), begun);
    migrate_for(&mut a, stores[won]).await.unwrap();
    assert!(drop_schema(&mut a, stores[won]).await.unwrap());
    assert_eq!(inspect(&mut a).await.unwrap(), SchemaState::Empty);
    assert!(!drop_schema(&mut a, stores[won]).await.unwrap(), "there is nothing left to drop");
    migrate_for(&mut b, stores[lost]).await.unwrap();
}

async fn a_schema_that_was_begun_for_a_store_is_that_stores_however_little_is_in_it(engine: Engine) {
    const RECORD: &str = "create table tenantry._migrations (version bigint primary key, description text not null,
        installed_on timestamptz not null default now(), success bool not null, checksum bytea not null,
        execution_time bigint not null)";
    const MYSQL_RECORD: &str = "create table _migrations (version bigint primary key, description text not null,
        installed_on timestamp not null default current_timestamp, success bool not null, checksum blob not null,
        execution_time bigint not null)";
    let [store, other] = two_stores();
    let states = match engine {
        Engine::Postgresql => {
            let mark = format!("create schema tenantry; comment on schema tenantry is 'tenantry {store}'");
            [mark.clone(), format!("{mark}; {RECORD}")]
        }
        // What a migrator leaves that was killed after the mark, and after its first table, which it has not recorded.
        _ => {
            let mark = format!("{MYSQL_RECORD} comment = 'tenantry {store}'");
            let identity = include_str!("../../../migrations-tenant/mysql/20261121000001_store_identity.sql");
            [mark.clone(), format!("{mark}; {identity}")]
        }
    };
    for begun in &states {
        let database = Database::create(engine).await;
        let mut session = database.connect().await;
        run(&mut session, begun).await;
        let state = inspect(&mut session).await.unwrap();
        assert_eq!(state, SchemaState::Ours { store: Some(store), version: 0 }, "{begun}");
        assert!(matches!(migrate_for(&mut session, other).await, Err(SchemaError::OtherStore { .. })), "{begun}");
        assert!(!drop_schema(&mut session, other).await.unwrap(), "{begun}");
        migrate_for(&mut session, store).await.unwrap();
        assert!(drop_schema(&mut session, store).await.unwrap(), "{begun}");
        assert_eq!(inspect(&mut session).await.unwrap(), SchemaState::Empty, "{begun}");
    }
}

/// In MySQL a file's statement and its record are two commits.
#[tokio::test]
async fn a_file_that_was_begun_and_not_recorded_is_taken_up_again() {
    let last = LATEST_VERSION;
    for killed in [
        // Before its statement was done, and after it.
        format!("update _migrations set success = false where version = {last}; drop table credit_copy"),
        format!("update _migrations set success = false where version = {last}"),
        // Before the record: nothing is known of it, and it is done.
        format!("delete from _migrations where version = {last}"),
    ] {
        let database = Database::create(Engine::Mysql).await;
        let mut session = database.connect().await;
        let [store, _] = two_stores();
        migrate_for(&mut session, store).await.unwrap();
        run(&mut session, &killed).await;
        let state = inspect(&mut session).await.unwrap();
        assert!(
            matches!(state, SchemaState::Ours { store: Some(of), version } if of == store && version < last),
            "{killed}"
        );

        migrate_for(&mut session, store).await.unwrap();

        assert_eq!(inspect(&mut session).await.unwrap(), SchemaState::Ours { store: Some(store), version: last });
        let columns = "select count(*) from information_schema.columns
            where table_schema = database() and table_name = 'credit_copy'";
        assert_eq!(database.number(columns).await, 6, "{killed}");
        assert_eq!(database.number("select count(*) from _migrations where not success").await, 0, "{killed}");
    }
}

/// A table of one of our names is ours only when it says so: never adopted, and never dropped.
#[tokio::test]
async fn a_table_that_is_only_named_like_ours_is_its_makers() {
    const RECORD: &str = "create table _migrations (version bigint primary key, description text not null,
        installed_on timestamp not null default current_timestamp, success bool not null, checksum blob not null,
        execution_time bigint not null)";
    let [store, _] = two_stores();
    let database = Database::create(Engine::Mysql).await;
    let mut session = database.connect().await;
    // A run has begun and was given up; then the owner loads a shop of their own.
    run(&mut session, &format!("{RECORD} comment = 'tenantry {store}'")).await;
    run(&mut session, "create table orders (id int); insert into orders values (7)").await;
    assert_eq!(inspect(&mut session).await.unwrap(), SchemaState::Foreign);
    assert!(matches!(migrate_for(&mut session, store).await, Err(SchemaError::Foreign)));
    assert!(!drop_schema(&mut session, store).await.unwrap());
    assert_eq!(database.number("select id from orders").await, 7);

    // One of a name that a later release will want is in the way of that release, not of this one.
    let database = Database::create(Engine::Mysql).await;
    let mut session = database.connect().await;
    migrate_for(&mut session, store).await.unwrap();
    run(&mut session, "delete from _migrations where version = 20261121000029; drop table credit_copy").await;
    run(&mut session, "create table credit_copy (mine int)").await;
    assert_eq!(inspect(&mut session).await.unwrap(), SchemaState::Foreign);
    assert!(matches!(migrate_for(&mut session, store).await, Err(SchemaError::Foreign)));
}

/// What an owner has put beside our tables is not ours to drop.
#[tokio::test]
async fn dropping_leaves_what_somebody_else_has_made() {
    let database = Database::create(Engine::Mysql).await;
    let mut session = database.connect().await;
    let [store, _] = two_stores();
    migrate_for(&mut session, store).await.unwrap();
    run(&mut session, "create table notes (text text); insert into notes values ('mine')").await;
    assert!(drop_schema(&mut session, store).await.unwrap());
    assert_eq!(inspect(&mut session).await.unwrap(), SchemaState::Foreign);
    assert_eq!(database.number("select count(*) from notes").await, 1);
}

async fn a_schema_without_a_mark_is_its_identitys_and_without_either_whoever_migrates_it_next(engine: Engine) {
    // As earlier releases made them.
    let seeded = Store::empty(engine).await;
    let unseeded = Database::create(engine).await;
    unseeded.migrate().await;
    let [store, other] = two_stores();

    let mut conn = seeded.database.connect().await;
    migrate_for(&mut conn, seeded.id).await.unwrap();
    assert!(matches!(migrate_for(&mut conn, other).await, Err(SchemaError::OtherStore { .. })));
    assert!(!drop_schema(&mut conn, other).await.unwrap());
    assert!(drop_schema(&mut conn, seeded.id).await.unwrap());

    let mut conn = unseeded.connect().await;
    assert!(!drop_schema(&mut conn, store).await.unwrap(), "nobody knows who made it");
    migrate_for(&mut conn, store).await.unwrap();
    assert!(matches!(migrate_for(&mut conn, other).await, Err(SchemaError::OtherStore { .. })));
}

#[tokio::test]
async fn a_schema_of_another_login_is_not_taken() {
    let database = Database::create(Engine::Postgresql).await;
    let mut conn = database.connect().await;
    let [store, _] = two_stores();
    let role = format!("r_{store}").to_lowercase();
    let sql = format!(
        "create schema tenantry; create role {role}; grant all on schema tenantry to {role};
         do $$ begin execute format('grant create on database %I to {role}', current_database()); end $$;
         set role {role}"
    );
    run(&mut conn, &sql).await;
    assert!(matches!(migrate_for(&mut conn, store).await, Err(SchemaError::NotOwner)));
    assert_eq!(inspect(&mut conn).await.unwrap(), SchemaState::Empty);
}

#[tokio::test]
async fn dropping_waits_for_a_migrator() {
    let engine = Engine::Postgresql;
    let database = Database::create(engine).await;
    let (mut holder, mut session) = (database.connect().await, database.connect().await);
    let [store, _] = two_stores();
    migrate_for(&mut holder, store).await.unwrap();
    run(&mut holder, take_lock(engine)).await;

    let mut dropping = JoinSet::new();
    dropping.spawn(async move { drop_schema(&mut session, store).await });
    // It asks for the lock again and again until it gets it: between two times the session's last statement says so.
    let asks = "select count(*) from pg_stat_activity where datname = current_database()
        and query like 'select pg_try_advisory_lock%' and pid <> pg_backend_pid()";
    let asking = async { while database.number(asks).await == 0 {} };
    tokio::time::timeout(Duration::from_secs(10), asking).await.expect("it asks for the lock");
    let mut watcher = database.connect().await;
    let there = SchemaState::Ours { store: Some(store), version: LATEST_VERSION };
    assert_eq!(inspect(&mut watcher).await.unwrap(), there);

    holder.close().await.unwrap();
    assert!(dropping.join_next().await.unwrap().unwrap().unwrap());
    assert_eq!(inspect(&mut watcher).await.unwrap(), SchemaState::Empty);
}

async fn seeding_twice_changes_nothing_and_another_store_is_refused(engine: Engine) {
    let store = Store::demo(engine).await;
    let before = store.print().await;
    seed(&store.lease, &store.seed_input(true), now() + Duration::from_secs(60)).await.unwrap();
    assert_eq!(store.print().await, before);

    let mut other = store.seed_input(true);
    other.store_id = kernel::StoreId::new(now());
    let refused = seed(&store.lease, &other, now()).await;
    assert!(matches!(refused, Err(SeedError::OtherStore { store: owner }) if owner == store.id));
    assert_eq!(store.print().await, before);
}

async fn a_seeded_store_passes_its_smoke_test_and_is_counted(engine: Engine) {
    let store = Store::demo(engine).await;
    smoke_test(&store.lease, now()).await.unwrap();
    assert_eq!(store.number("select count(*) from carts").await, 0);
    let counts = counts(&mut store.conn().await).await.unwrap();
    assert_eq!((counts.products, counts.variants, counts.categories), (12, 21, 3));
    assert_eq!((counts.orders, counts.customers), (0, 0));
    let unbalanced = "select count(*) from inventory_levels l where stocked <>
        (select coalesce(sum(delta), 0) from inventory_movements m where m.variant_id = l.variant_id)";
    assert_eq!(store.number(unbalanced).await, 0);
    let unknown = "select count(*) from inventory_movements m where not exists
        (select 1 from inventory_levels l where l.variant_id = m.variant_id and l.location_id = m.location_id)";
    assert_eq!(store.number(unknown).await, 0);

    let unseeded = Store::unseeded(engine).await;
    assert!(smoke_test(&unseeded.lease, now()).await.is_err());
}

async fn settings_are_patched_and_the_currency_stays_once_there_are_prices(engine: Engine) {
    let store = Store::demo(engine).await;
    let before = store_view(&mut store.conn().await).await.unwrap();
    let patch: StoreSettingsPatch =
        serde_json::from_str(r#"{"name": "Harbour", "tax": {"rateBasisPoints": 700}}"#).unwrap();
    let mut tx = store.tx().await;
    settings_patch_in(&mut tx, &patch, now()).await.unwrap();
    tx.commit().await.unwrap();
    let after = store_view(&mut store.conn().await).await.unwrap();
    assert_eq!((after.name.as_str(), after.catalog_version), ("Harbour", before.catalog_version + 1));
    assert_eq!(settings(&mut store.conn().await).await.unwrap().tax.rate_basis_points, 700);

    let euro = StoreSettingsPatch { currency: Some("EUR".to_owned()), ..StoreSettingsPatch::default() };
    let mut tx = store.tx().await;
    assert!(matches!(settings_patch_in(&mut tx, &euro, now()).await, Err(SettingsError::CurrencyInUse { .. })));
    tx.rollback().await.unwrap();
    let empty = Store::empty(engine).await;
    let mut tx = empty.tx().await;
    assert_eq!(settings_patch_in(&mut tx, &euro, now()).await.unwrap().currency.as_str(), "EUR");
}
