//! SQL of the job queue. The queue's own schema is made by its library, so this one statement is checked at run time.

use sqlx::PgConnection;

pub(super) async fn job_add(
    conn: &mut PgConnection,
    identifier: &str,
    payload: &serde_json::Value,
    key: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query("select from graphile_worker.add_job($1, payload => $2::json, job_key => $3, max_attempts => 25)")
        .bind(identifier)
        .bind(payload)
        .bind(key)
        .execute(conn)
        .await?;
    Ok(())
}
