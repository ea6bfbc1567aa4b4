//! Migrating, inspecting, seeding.

use std::time::Duration;

use kernel::StoreId;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};
use tenant_schema::migrate::{drop_schema, inspect, migrate, migrate_for, migrate_within};
use tenant_schema::seed::{SeedError, counts, seed, smoke_test};
use tenant_schema::settings::{SettingsError, StoreSettingsPatch, settings, settings_patch_in, store_view};
use tenant_schema::{LATEST_VERSION, SchemaError, SchemaState};
use tokio::task::JoinSet;

use crate::support::{Database, Store, now};

#[tokio::test]
async fn a_database_goes_from_empty_to_ours_and_migrating_twice_changes_nothing() {
    let database = Database::create().await;
    let mut conn = database.connect().await;
    assert_eq!(inspect(&mut conn).await.unwrap(), SchemaState::Empty);
    conn.execute("create schema tenantry").await.unwrap();
    assert_eq!(inspect(&mut conn).await.unwrap(), SchemaState::Empty);
    for _ in 0..2 {
        migrate(&mut conn).await.unwrap();
        assert_eq!(inspect(&mut conn).await.unwrap(), SchemaState::Ours { store: None, version: LATEST_VERSION });
    }
}

#[tokio::test]
async fn what_is_not_ours_is_told_and_never_touched() {
    for foreign in [
        "create table tenantry.products (id int)",
        "create type tenantry.mood as enum ('good')",
        "create table tenantry._migrations (id int)",
        "create function tenantry.f() returns int language sql as 'select 1'",
        "create table tenantry._migrations (version bigint, checksum bytea, success bool); create table tenantry.x (y int)",
        "create table tenantry._migrations (version bigint, checksum bytea, success bool);
         create table tenantry.store_identity (name text)",
    ] {
        let database = Database::create().await;
        let mut conn = database.connect().await;
        conn.execute("create schema tenantry").await.unwrap();
        conn.execute(foreign).await.unwrap();
        assert_eq!(inspect(&mut conn).await.unwrap(), SchemaState::Foreign, "{foreign}");
        assert!(matches!(migrate(&mut conn).await, Err(SchemaError::Foreign)), "{foreign}");
        assert_eq!(inspect(&mut conn).await.unwrap(), SchemaState::Foreign, "{foreign}");
    }
}

#[tokio::test]
async fn the_owners_own_schemas_stay_as_they_are() {
    let database = Database::create().await;
    let mut conn = database.connect().await;
    conn.execute("create table products (name text); insert into products values ('mine')").await.unwrap();
    let before = schema_print(&mut conn).await;
    migrate(&mut conn).await.unwrap();
    assert_eq!(schema_print(&mut conn).await, before);
}

async fn schema_print(conn: &mut sqlx::PgConnection) -> Vec<String> {
    sqlx::query_scalar(
        "select format('%s.%s %s', n.nspname, c.relname, c.relkind) from pg_class c
         join pg_namespace n on n.oid = c.relnamespace
         where n.nspname not in ('tenantry', 'pg_catalog', 'pg_toast', 'information_schema') order by 1",
    )
    .fetch_all(conn)
    .await
    .unwrap()
}

#[tokio::test]
async fn a_newer_database_is_told_and_left_alone() {
    let store = Store::empty().await;
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

#[tokio::test]
async fn two_migrators_at_once_make_one_schema_and_a_stuck_one_is_not_waited_for() {
    let database = Database::create().await;
    let (mut a, mut b) = (database.connect().await, database.connect().await);
    let (first, second) = tokio::join!(migrate(&mut a), migrate(&mut b));
    first.unwrap();
    second.unwrap();
    // Whoever holds the lock keeps the others out; once its connection is closed they get in.
    let mut holder = database.connect().await;
    holder.execute("select pg_advisory_lock(8387231245791425145)").await.unwrap();
    let short = Duration::from_millis(40);
    assert!(matches!(migrate_within(&mut a, short).await, Err(SchemaError::Busy)));
    holder.close().await.unwrap();
    migrate(&mut a).await.unwrap();
}

fn two_stores() -> [StoreId; 2] {
    [(); 2].map(|()| StoreId::new(now()))
}

#[tokio::test]
async fn the_first_of_two_stores_has_the_schema_and_only_it_drops_it() {
    let database = Database::create().await;
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

#[tokio::test]
async fn a_schema_that_was_begun_for_a_store_is_that_stores_however_little_is_in_it() {
    let [store, other] = two_stores();
    for begun in [
        "create schema tenantry",
        "create schema tenantry; create table tenantry._migrations (version bigint primary key, description text not null,
             installed_on timestamptz not null default now(), success bool not null, checksum bytea not null,
             execution_time bigint not null)",
    ] {
        let database = Database::create().await;
        let mut conn = database.connect().await;
        conn.execute(begun).await.unwrap();
        conn.execute(AssertSqlSafe(format!("comment on schema tenantry is 'tenantry {store}'"))).await.unwrap();
        assert_eq!(inspect(&mut conn).await.unwrap(), SchemaState::Ours { store: Some(store), version: 0 }, "{begun}");
        assert!(matches!(migrate_for(&mut conn, other).await, Err(SchemaError::OtherStore { .. })), "{begun}");
        assert!(!drop_schema(&mut conn, other).await.unwrap(), "{begun}");
        migrate_for(&mut conn, store).await.unwrap();
        assert!(drop_schema(&mut conn, store).await.unwrap(), "{begun}");
    }
}

#[tokio::test]
async fn a_schema_without_a_mark_is_its_identitys_and_without_either_whoever_migrates_it_next() {
    // As earlier releases made them.
    let seeded = Store::empty().await;
    let unseeded = Database::create().await;
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
    let database = Database::create().await;
    let mut conn = database.connect().await;
    let [store, _] = two_stores();
    let role = format!("r_{store}").to_lowercase();
    conn.execute(AssertSqlSafe(format!(
        "create schema tenantry; create role {role}; grant all on schema tenantry to {role};
         do $$ begin execute format('grant create on database %I to {role}', current_database()); end $$;
         set role {role}"
    )))
    .await
    .unwrap();
    assert!(matches!(migrate_for(&mut conn, store).await, Err(SchemaError::NotOwner)));
    assert_eq!(inspect(&mut conn).await.unwrap(), SchemaState::Empty);
}

#[tokio::test]
async fn dropping_waits_for_a_migrator() {
    let database = Database::create().await;
    let (mut holder, mut conn) = (database.connect().await, database.connect().await);
    let [store, _] = two_stores();
    migrate_for(&mut holder, store).await.unwrap();
    holder.execute("select pg_advisory_lock(8387231245791425145)").await.unwrap();

    let mut dropping = JoinSet::new();
    dropping.spawn(async move { drop_schema(&mut conn, store).await });
    let mut watcher = database.connect().await;
    // It has asked for the lock when a statement of its session says so, and asks again until it gets it.
    let asks = "select count(*) from pg_stat_activity where datname = current_database()
        and query like 'select pg_try_advisory_lock%' and pid <> pg_backend_pid()";
    let asking = async { while sqlx::query_scalar::<_, i64>(asks).fetch_one(&mut watcher).await.unwrap() == 0 {} };
    tokio::time::timeout(Duration::from_secs(10), asking).await.expect("it asks for the lock");
    let there = SchemaState::Ours { store: Some(store), version: LATEST_VERSION };
    assert_eq!(inspect(&mut watcher).await.unwrap(), there);

    holder.close().await.unwrap();
    assert!(dropping.join_next().await.unwrap().unwrap().unwrap());
    assert_eq!(inspect(&mut watcher).await.unwrap(), SchemaState::Empty);
}

#[tokio::test]
async fn seeding_twice_changes_nothing_and_another_store_is_refused() {
    let store = Store::demo().await;
    let print = "select sum(hashtext(t::text)) from (
        select p::text from products p union all select v::text from product_variants v
        union all select s::text from settings s union all select i::text from inventory_levels i
        union all select c::text from catalog_version c union all select p::text from pages p
        union all select s::text from staff s union all select m::text from inventory_movements m) t";
    let before = store.number(print).await;
    seed(&store.lease, &store.seed_input(true), now() + Duration::from_secs(60)).await.unwrap();
    assert_eq!(store.number(print).await, before);

    let mut other = store.seed_input(true);
    other.store_id = kernel::StoreId::new(now());
    let refused = seed(&store.lease, &other, now()).await;
    assert!(matches!(refused, Err(SeedError::OtherStore { store: owner }) if owner == store.id));
    assert_eq!(store.number(print).await, before);
}

#[tokio::test]
async fn a_seeded_store_passes_its_smoke_test_and_is_counted() {
    let store = Store::demo().await;
    smoke_test(&store.lease, now()).await.unwrap();
    assert_eq!(store.number("select count(*) from carts").await, 0);
    let counts = counts(&mut store.conn().await).await.unwrap();
    assert_eq!((counts.products, counts.variants, counts.categories), (12, 21, 3));
    assert_eq!((counts.orders, counts.customers), (0, 0));
    let ledger = "select count(*) from (select variant_id, sum(delta) d from inventory_movements group by 1) m
        full join inventory_levels l using (variant_id) where coalesce(m.d, 0) <> coalesce(l.stocked, 0)";
    assert_eq!(store.number(ledger).await, 0);

    let unseeded = Store::unseeded().await;
    assert!(smoke_test(&unseeded.lease, now()).await.is_err());
}

#[tokio::test]
async fn settings_are_patched_and_the_currency_stays_once_there_are_prices() {
    let store = Store::demo().await;
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
    let empty = Store::empty().await;
    let mut tx = empty.tx().await;
    assert_eq!(settings_patch_in(&mut tx, &euro, now()).await.unwrap().currency.as_str(), "EUR");
}
