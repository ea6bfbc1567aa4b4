//! Migrating, inspecting, seeding.

use std::time::Duration;

use sqlx::{Connection as _, Executor as _};
use tenant_schema::migrate::{inspect, migrate, migrate_within};
use tenant_schema::seed::{SeedError, counts, seed, smoke_test};
use tenant_schema::settings::{SettingsError, StoreSettingsPatch, settings, settings_patch_in, store_view};
use tenant_schema::{LATEST_VERSION, SchemaError, SchemaState};

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
