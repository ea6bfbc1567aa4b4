//! Migrations of master while nodes of the release before go on.

use std::borrow::Cow;

use chrono::Utc;
use control_plane::config::MasterArgs;
use control_plane::master::{self, MIGRATOR};
use integration_tests::{cluster, within};
use kernel::OrganizationId;
use sqlx::migrate::Migrator;
use sqlx::{Connection as _, Executor as _, PgConnection};

/// The last version of the release before.
const BEFORE: i64 = 20_261_121_000_016;

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_waits_for_its_locks_does_not_make_spends_wait() {
    let cluster = cluster().await;
    let database = cluster.empty().await;
    let mut node = PgConnection::connect(&database.url()).await.unwrap();
    let old: Vec<_> = MIGRATOR.iter().filter(|migration| migration.version <= BEFORE).cloned().collect();
    let before = Migrator { migrations: Cow::Owned(old), ..Migrator::DEFAULT };
    before.run_direct(None, &mut node, false).await.unwrap();
    let organization = OrganizationId::new(Utc::now()).as_uuid();
    sqlx::query("insert into organizations (id, name, created_at, updated_at) values ($1, 'an old one', now(), now())")
        .bind(organization)
        .execute(&mut node)
        .await
        .unwrap();

    // A verification reads the whole ledger, and holds its tables for as long.
    let mut reader = PgConnection::connect(&database.url()).await.unwrap();
    reader.execute("begin; select count(*) from credit_transactions").await.unwrap();
    let args = MasterArgs { master_db_url: database.url().into(), master_max_connections: 4 };
    let migrating = tokio::spawn(async move { master::migrate(&args).await });
    let mut looker = PgConnection::connect(&database.url()).await.unwrap();
    let waits = "select count(*) from pg_locks where not granted and database = (select oid from pg_database where datname = current_database())";
    within("the migration's wait", async {
        while sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut looker).await.unwrap() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // As a node of the release before spends, with the time limit that it has.
    node.execute("set lock_timeout = '5s'").await.unwrap();
    let spend = "select (s.decided).status from credit_spend($1, array[gen_random_uuid()], array['k'], array[sha256('a')], '{spend}',
                     '{null}', '{null}', '{1}', '{null}', '{null}', '{null}', '{null}', now()) s";
    let decided: String = sqlx::query_scalar(spend).bind(organization).fetch_one(&mut node).await.unwrap();
    assert_eq!(decided, "rejected");
    assert!(!migrating.is_finished());
    reader.execute("rollback").await.unwrap();
    let applied = migrating.await.unwrap().unwrap();
    assert_eq!(applied, MIGRATOR.iter().filter(|migration| migration.version > BEFORE).count());
    // What was decided by the old function is what the new one answers by.
    let found: i64 = sqlx::query_scalar("select count(*) from credit_violations()").fetch_one(&mut node).await.unwrap();
    assert_eq!(found, 0);
}
