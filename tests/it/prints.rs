//! A database as text, every object and every row of it: two prints that are equal mean that nothing was touched.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use integration_tests::StoreSql;
use sqlx::{AssertSqlSafe, MySqlConnection, PgConnection};

/// What is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    Everybodys,
    /// All but the schema that is ours; in MySQL there is none.
    NotOurs,
}

pub(crate) async fn print(inside: &mut StoreSql, whose: Whose) -> Vec<String> {
    match inside {
        StoreSql::Postgres(admin) => print_postgres(admin, whose).await,
        StoreSql::MySql(admin) => print_mysql(admin).await,
    }
}

async fn print_postgres(admin: &mut PgConnection, whose: Whose) -> Vec<String> {
    let ours = if whose == Whose::NotOurs { "tenantry" } else { "" };
    let mut print: Vec<String> = sqlx::query_scalar(
        "with n as (
             select oid, nspname, nspowner, nspacl from pg_namespace
             where nspname not in ('pg_catalog', 'information_schema', 'pg_toast', $1) and nspname not like 'pg\\_%'
         ), c as (select c.*, n.nspname from pg_class c join n on n.oid = c.relnamespace)
         select concat_ws('|', 'schema', nspname, nspowner::regrole, nspacl, obj_description(oid)) from n
         union all select concat_ws('|', 'relation', nspname, relname, relkind, relowner::regrole, relacl, reloptions,
             relfilenode, obj_description(oid, 'pg_class')) from c
         union all select concat_ws('|', 'column', c.nspname, c.relname, a.attname, a.attnum, a.atttypid::regtype, a.attnotnull,
             pg_get_expr(d.adbin, d.adrelid))
             from pg_attribute a join c on c.oid = a.attrelid left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
             where a.attnum > 0
         union all select concat_ws('|', 'constraint', k.conname, pg_get_constraintdef(k.oid))
             from pg_constraint k join n on n.oid = k.connamespace
         union all select concat_ws('|', 'index', pg_get_indexdef(oid)) from c where relkind = 'i'
         union all select concat_ws('|', 'view', nspname, relname, pg_get_viewdef(oid)) from c where relkind in ('v', 'm')
         union all select concat_ws('|', 'trigger', pg_get_triggerdef(t.oid), t.tgenabled)
             from pg_trigger t join c on c.oid = t.tgrelid where not t.tgisinternal
         union all select concat_ws('|', 'rule', pg_get_ruledef(r.oid)) from pg_rewrite r join c on c.oid = r.ev_class
         union all select concat_ws('|', 'program', pg_get_functiondef(p.oid), p.proowner::regrole, p.proacl)
             from pg_proc p join n on n.oid = p.pronamespace where p.prokind in ('f', 'p')
         union all select concat_ws('|', 'type', t.typname, t.typtype, t.typowner::regrole)
             from pg_type t join n on n.oid = t.typnamespace where t.typname not like '\\_%'
         union all select concat_ws('|', 'extension', extname, extversion) from pg_extension
         union all select concat_ws('|', 'database', datdba::regrole, datacl, shobj_description(oid, 'pg_database'))
             from pg_database where datname = current_database()
         order by 1",
    )
    .bind(ours)
    .fetch_all(&mut *admin)
    .await
    .unwrap();
    let tables: Vec<(bool, String)> = sqlx::query_as(
        "select c.relkind = 'S', format('%I.%I', n.nspname, c.relname)
         from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where c.relkind in ('r', 'm', 'S') and n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast', $1)
         order by 2",
    )
    .bind(ours)
    .fetch_all(&mut *admin)
    .await
    .unwrap();
    for (is_sequence, table) in tables {
        // The row's place in the file as well: not even an update that changes nothing has been there.
        let sum = "count(*) || ' ' || coalesce(md5(string_agg(ctid::text || t::text, '|' order by ctid)), '')";
        let rows = if is_sequence {
            format!("select concat_ws(' ', last_value, is_called) from {table}")
        } else {
            format!("select {sum} from {table} t")
        };
        let sum: String = sqlx::query_scalar(AssertSqlSafe(rows)).fetch_one(&mut *admin).await.unwrap();
        print.push(format!("{table} {sum}"));
    }
    print
}

async fn print_mysql(admin: &mut MySqlConnection) -> Vec<String> {
    let mut print: Vec<String> = sqlx::query_scalar(
        "select concat_ws('|', 'table', table_name, table_type, coalesce(engine, ''), coalesce(table_comment, ''),
             coalesce(create_time, '')) from information_schema.tables where table_schema = database()
         union all select concat_ws('|', 'column', table_name, column_name, ordinal_position, column_type, is_nullable,
             coalesce(column_default, '')) from information_schema.columns where table_schema = database()
         union all select concat_ws('|', 'trigger', trigger_name, action_statement) from information_schema.triggers
             where trigger_schema = database()
         union all select concat_ws('|', 'view', table_name, view_definition) from information_schema.views
             where table_schema = database()
         union all select concat_ws('|', routine_type, routine_name, routine_definition, last_altered)
             from information_schema.routines where routine_schema = database()
         union all select concat_ws('|', 'event', event_name, event_definition, last_altered)
             from information_schema.events where event_schema = database()
         order by 1",
    )
    .fetch_all(&mut *admin)
    .await
    .unwrap();
    let tables: Vec<String> = sqlx::query_scalar(
        "select table_name from information_schema.tables
         where table_schema = database() and table_type = 'BASE TABLE' order by 1",
    )
    .fetch_all(&mut *admin)
    .await
    .unwrap();
    for table in tables {
        let checksum = AssertSqlSafe(format!("checksum table `{table}` extended"));
        let (name, sum): (String, Option<i64>) = sqlx::query_as(checksum).fetch_one(&mut *admin).await.unwrap();
        print.push(format!("{name} {sum:?}"));
    }
    print
}
