//! From the consent to a served storefront, in a real database, with Prism judging what is said on the way.

use std::path::{Path, PathBuf};

use control_plane::provisioning::db;
use devkit::supabase::Fault;
use integration_tests::{Client, Prism, supabase_description};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor as _, PgConnection};
use tenancy::{Credential, Reach, TlsMode};

use crate::provisioning::store_id;
use crate::scenes::{store_path, text};
use crate::supabase::{CLIENT_SECRET, IPV6_ONLY, REACHABLE, Scene, add_project};

/// Everything, up to a storefront that sells; the credential that master keeps.
async fn served(scene: &Scene) -> Credential {
    scene.sign_in().await;
    scene.projects().await.expect_status(200);
    let begun = scene.connect().await.expect_status(202);
    assert_eq!(begun["run"]["kind"], "brought");
    let run = scene.app.run_ended(&scene.owner, &scene.store).await;
    assert_eq!(run["state"], "succeeded", "{run}");
    let products = scene.app.storefront_of(&scene.store).get("/store/v1/products").await.expect_status(200);
    assert!(!products["data"].as_array().unwrap().is_empty(), "{products}");
    assert_eq!(scene.state().await["project"], json!({ "ref": scene.project, "name": "Shop" }));
    let id = store_id(&scene.store);
    let row = db::store_database_find(&mut scene.app.master().await, id).await.unwrap().unwrap();
    Credential::open(&scene.app.cx.keys, &row.sealed, id, row.credential_version).unwrap()
}

async fn can(connection: &mut PgConnection, role: &str, right: &str, what: &str) -> bool {
    let question = format!("select has_{what}_privilege($1, $2, $3)");
    let thing = if what == "schema" { "tenantry" } else { "public.notes" };
    sqlx::query_scalar(AssertSqlSafe(question)).bind(role).bind(thing).bind(right).fetch_one(connection).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_served_out_of_a_schema_of_its_own_and_nothing_else_of_the_project() {
    let scene = Scene::set().await;
    let credential = served(&scene).await;
    let role = credential.username.clone();
    assert_eq!((credential.host.as_str(), credential.port), (REACHABLE, scene.supabase.direct_port));
    assert_eq!((credential.tls, credential.ca_pem.is_some()), (TlsMode::VerifyFull, true));
    assert!(scene.supabase.sessions().0 > 0);
    assert_eq!(scene.supabase.sessions().1, 0);

    let mut admin = scene.database.admin().await;
    let owner: String =
        sqlx::query_scalar("select nspowner::regrole::text from pg_namespace where nspname = 'tenantry'")
            .fetch_one(&mut admin)
            .await
            .unwrap();
    assert_eq!(owner, role);
    // What was there is as it was, and closed to us.
    let note: String =
        sqlx::query_scalar("select string_agg(line, ',') from public.notes").fetch_one(&mut admin).await.unwrap();
    assert_eq!(note, "mine");
    assert!(!can(&mut admin, &role, "select", "table").await);
    let name = scene.database.database.as_str();
    let creates: bool = sqlx::query_scalar("select has_database_privilege($1, $2, 'create')")
        .bind(&role)
        .bind(name)
        .fetch_one(&mut admin)
        .await
        .unwrap();
    assert!(!creates);
    // The Data API's role does not see ours.
    let anon = format!("anon_{name}");
    assert!(can(&mut admin, &anon, "select", "table").await);
    assert!(!can(&mut admin, &anon, "usage", "schema").await);
    let flags: Vec<bool> = sqlx::query_scalar(
        "select unnest(array[rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls]) from pg_roles where rolname = $1",
    )
    .bind(&role)
    .fetch_all(&mut admin)
    .await
    .unwrap();
    assert_eq!(flags, [false; 5]);
    let members: i64 = sqlx::query_scalar("select count(*) from pg_auth_members where roleid = $1::regrole")
        .bind(&role)
        .fetch_one(&mut admin)
        .await
        .unwrap();
    assert_eq!(members, 0, "the project's administrator is not left with the login's rights");
    scene.connect().await.expect_problem(409, "already-connected");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_without_an_address_of_ours_is_reached_by_its_pooler_in_session_mode() {
    let scene = Scene::with(IPV6_ONLY, &[]).await;
    let credential = served(&scene).await;
    assert_eq!((credential.host.as_str(), credential.port), (REACHABLE, scene.supabase.session_port));
    assert!(credential.username.ends_with(&format!(".{}", scene.project)), "{}", credential.username);
    assert!(scene.supabase.sessions().1 > 0);
    assert_eq!(scene.supabase.sessions().0, 0);
    // Nobody is let in under another project's name.
    let mut wrong = credential.clone();
    wrong.username = wrong.username.replace(&scene.project, "abcdefghijklmnopqrst");
    let refused = wrong.connect(Reach::Anywhere, std::time::Duration::from_secs(5)).await.err().unwrap();
    assert_eq!(refused.code.as_deref(), Some("XX000 ENOTFOUND"));
    scene.owner.api.delete(&scene.path("")).await.expect_problem(409, "database-in-use");
}

#[tokio::test(flavor = "multi_thread")]
async fn connecting_twice_at_once_makes_one_login_and_one_run() {
    let scene = Scene::set().await;
    scene.sign_in().await;
    let (one, two) = tokio::join!(scene.connect(), scene.connect());
    let ids = [one.expect_status(202), two.expect_status(202)].map(|begun| begun["run"]["id"].clone());
    assert_eq!(ids[0], ids[1]);
    assert_eq!(scene.app.run_ended(&scene.owner, &scene.store).await["state"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_is_not_the_stores_is_refused_without_change() {
    let scene = Scene::set().await;
    scene.sign_in().await;
    let mut admin = scene.database.admin().await;
    admin.execute("create schema tenantry; create table tenantry.diary (line text)").await.unwrap();
    scene.connect().await.expect_problem(409, "schema-in-use");
    admin.execute("comment on schema tenantry is 'tenantry 1'").await.unwrap();
    scene.connect().await.expect_problem(409, "schema-in-use");
    let role = control_plane::supabase::role::name(store_id(&scene.store));
    let exists: bool = sqlx::query_scalar("select exists (select from pg_roles where rolname = $1)")
        .bind(role.as_str())
        .fetch_one(&mut admin)
        .await
        .unwrap();
    assert!(!exists);
    admin.execute("drop schema tenantry cascade").await.unwrap();
    scene.connect().await.expect_status(202);
    assert_eq!(scene.app.run_ended(&scene.owner, &scene.store).await["state"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_that_is_not_who_it_says_is_not_spoken_to() {
    let scene = Scene::set().await;
    // The certificate is for 127.0.0.1 alone.
    scene.sign_in().await;
    let database = scene.app.cluster.brought().await;
    let other = add_project(&scene.supabase, &database, "localhost").await;
    let answer = scene.post("/connect", json!({ "projectRef": other })).await;
    answer.expect_status(202);
    let run = scene.app.run_ended(&scene.owner, &scene.store).await;
    let step = &run["steps"][0];
    assert_eq!(
        (&step["name"], &step["error"]["code"]),
        (&json!("check_connection"), &json!("certificate-name")),
        "{run}"
    );
    // Nothing was made by the run, so that what was made before it goes when another project is chosen.
    scene.connect().await.expect_status(202);
    assert_eq!(scene.app.run_ended(&scene.owner, &scene.store).await["state"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_supabase_gave_and_no_password_is_anywhere_in_master() {
    let scene = Scene::set().await;
    let credential = served(&scene).await;
    scene.supabase.fail_next("/oauth/revoke", Fault::Status(500));
    let back = scene.path("?keepDatabase=true");
    scene.owner.api.delete(&back).await.expect_status(204);
    let mut secrets = scene.supabase.secrets();
    assert!(secrets.len() >= 3);
    secrets.push(CLIENT_SECRET.to_owned());
    secrets.push(secrecy::ExposeSecret::expose_secret(&credential.password).to_owned());
    let mut master = scene.app.master().await;
    let tables: Vec<String> = sqlx::query_scalar(
        "select format('%I.%I', schemaname, tablename) from pg_tables where schemaname not in ('pg_catalog', 'information_schema')",
    )
    .fetch_all(&mut master)
    .await
    .unwrap();
    assert!(tables.iter().any(|table| table.ends_with("supabase_revocations")), "{tables:?}");
    for table in tables {
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(format!("select t::text from {table} t")))
            .fetch_all(&mut master)
            .await
            .unwrap();
        let all = rows.join("\n");
        for secret in &secrets {
            assert!(!all.contains(secret) && !all.contains(&hex::encode(secret)), "{table} holds a secret");
        }
    }
    // Nor is the password in what was sent to the project.
    let sent = scene.supabase.queries().join("\n");
    assert!(sent.contains("SCRAM-SHA-256$") && !sent.contains(secrets.last().unwrap()));
}

/// The flow with Prism between the node and Supabase: what does not fit the description is answered 500.
async fn judged_by(description: &Path) {
    let mut scene = Scene::set().await;
    let prism = Prism::judge(description, scene.supabase.url()).await;
    scene.lead_to(&prism.url()).await;
    scene.sign_in().await;
    assert_eq!(scene.projects().await.expect_status(200)["data"].as_array().map(Vec::len), Some(1));
    scene.supabase.set_status(&scene.project, "INACTIVE");
    scene.connect().await.expect_problem(409, "project-paused");
    let resume = format!("/projects/{}/resume", scene.project);
    assert_eq!(scene.post(&resume, json!({})).await.status, 202);
    scene.supabase.set_status(&scene.project, "ACTIVE_HEALTHY");
    // Refreshed on the way.
    scene.supabase.expire_access_tokens();
    scene.connect().await.expect_status(202);
    assert_eq!(scene.app.run_ended(&scene.owner, &scene.store).await["state"], "succeeded");
    scene.app.storefront_of(&scene.store).get("/store/v1/products").await.expect_status(200);
    scene.owner.api.delete(&scene.path("?keepDatabase=true")).await.expect_status(204);
    assert_eq!((scene.supabase.consents(), scene.supabase.calls("/oauth/revoke")), (0, 1));
    assert_eq!(scene.supabase.calls("/oauth/token"), 2);

    // Had Supabase, or we, said anything else, it would have been seen.
    scene.sign_in().await;
    let wrong = json!([{ "id": "acme", "slug": "not a slug!", "name": "Acme" }]);
    scene.supabase.fail_next("/organizations", Fault::Answer(200, wrong));
    scene.projects().await.expect_problem(503, "supabase-unavailable");
    let asked = Client::new(prism.address, "localhost")
        .send(http::Method::POST, "/v1/oauth/revoke", Some(json!({ "refresh_token": 7 })))
        .await;
    assert_eq!(asked.status, 422, "{}", asked.text());
    assert!(asked.text().contains("prism/errors"), "{}", asked.text());
    scene.release().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prism_finds_nothing_wrong_by_the_description_in_our_words() {
    judged_by(&supabase_description()).await;
}

/// The real one lies beside the repository on some machines only.
#[tokio::test(flavor = "multi_thread")]
async fn prism_finds_nothing_wrong_by_supabases_own_description() {
    let real = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/supabase/openapi.json"));
    if !real.is_file() {
        println!("skipped: there is no {}", real.display());
        return;
    }
    judged_by(&real).await;
}

/// A plain connection string of Supabase's is one of any PostgreSQL.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_string_of_the_session_pooler_is_connected_as_any_other() {
    let scene = Scene::set().await;
    let (name, port) = (&scene.database.database, scene.supabase.session_port);
    let string = format!(
        "postgresql://{name}.{}:{}@127.0.0.1:{port}/{name}?sslmode=require",
        scene.project,
        scene.database.password()
    );
    let body = json!({ "engine": "postgresql", "connectionString": string });
    scene.owner.connect(&scene.store, body).await.expect_status(202);
    let run: Value = scene.app.run_ended(&scene.owner, &scene.store).await;
    assert_eq!(run["state"], "succeeded", "{run}");
    let detail = scene.owner.api.get(&store_path(&scene.store, "")).await.expect_status(200);
    assert_eq!(text(&detail["status"]), "active");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_connects_projects_again_and_again_has_to_wait() {
    let scene = Scene::with(REACHABLE, &["--database-tests-per-minute", "1"]).await;
    scene.connect().await.expect_problem(409, "supabase-not-connected");
    let refused = scene.connect().await;
    refused.expect_problem(429, "too-many-requests");
    assert!(!refused.header("retry-after").is_empty());
}
