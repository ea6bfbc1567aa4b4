//! That what is written down of a schema, part by part, is what the migrations make, version by version and on both engines.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use kernel::Engine;
use sqlx::migrate::Migrator;
use tenant_schema::LATEST_VERSION;
use tenant_schema::migrate::{PARTS, found_parts, missing_parts};

use crate::support::{Database, run};

on_each_engine! {
    the_parts_that_are_written_down_are_those_that_the_migrations_make
    a_part_that_was_lost_is_named_and_of_a_lost_table_only_the_table
}

static POSTGRES: Migrator = sqlx::migrate!("../migrations-tenant/postgres");
static MYSQL: Migrator = sqlx::migrate!("../migrations-tenant/mysql");

/// Runs one file after the other, and looks after each.
async fn parts_by_version(engine: Engine) -> String {
    let database = Database::create(engine).await;
    let mut session = database.connect().await;
    let files = if engine == Engine::Mysql { &MYSQL } else { &POSTGRES };
    if engine == Engine::Postgresql {
        run(&mut session, "create schema tenantry; set search_path = tenantry").await;
    }
    let mut seen: BTreeMap<String, (i64, Option<i64>)> = BTreeMap::new();
    for file in files.iter() {
        run(&mut session, file.sql.as_str()).await;
        let there = found_parts(&mut session).await.unwrap();
        for part in &there {
            seen.entry(part.clone()).or_insert((file.version, None));
        }
        for (part, (_, until)) in &mut seen {
            if until.is_none() && !there.contains(part) {
                *until = Some(file.version);
            }
        }
    }
    session.close().await.unwrap();
    let mut lines: Vec<(i64, String)> = Vec::new();
    for (part, (since, until)) in seen {
        let until = until.map(|until| format!("-{until}")).unwrap_or_default();
        lines.push((since, format!("{since}{until} {part}")));
    }
    lines.sort();
    let mut text = String::new();
    for (_, line) in lines {
        writeln!(text, "{line}").unwrap();
    }
    text
}

async fn the_parts_that_are_written_down_are_those_that_the_migrations_make(engine: Engine) {
    let found = parts_by_version(engine).await;
    let new = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("parts.{engine}.txt"));
    std::fs::write(&new, &found).unwrap();
    let (found, written): (Vec<&str>, Vec<&str>) = (found.lines().collect(), PARTS.lines().collect());
    let only = |these: &[&str], those: &[&str]| -> Vec<String> {
        these.iter().filter(|line| !those.contains(line)).map(|&line| line.to_owned()).collect()
    };
    let (more, less) = (only(&found, &written), only(&written, &found));
    assert!(
        more.is_empty() && less.is_empty(),
        "only made: {more:#?}, only written down: {less:#?}; what is made stands in {}, to be copied to \
         tenant-schema/src/migrate/parts.txt",
        new.display()
    );
    assert!(found.len() > 200, "{found:?}");
}

async fn a_part_that_was_lost_is_named_and_of_a_lost_table_only_the_table(engine: Engine) {
    let database = Database::create(engine).await;
    database.migrate().await;
    let mut session = database.connect().await;
    assert_eq!(missing_parts(&mut session, LATEST_VERSION).await.unwrap(), Vec::<&str>::new());
    let (schema, drop_index) = match engine {
        Engine::Mysql => ("", "drop index orders_placed_at_idx on orders"),
        _ => ("tenantry.", "drop index tenantry.orders_placed_at_idx"),
    };
    run(&mut session, drop_index).await;
    run(&mut session, &format!("drop table {schema}credit_copy")).await;
    let missing = missing_parts(&mut session, LATEST_VERSION).await.unwrap();
    assert_eq!(missing.len(), 2, "{missing:?}");
    assert!(
        missing[0].starts_with("index orders_placed_at_idx of orders: ") && missing[1] == "table credit_copy",
        "{missing:?}"
    );
    // A schema of before has no such table, and lacks nothing.
    let before = missing_parts(&mut session, LATEST_VERSION - 1).await.unwrap();
    assert_eq!(before, missing[..1]);
    session.close().await.unwrap();
}
