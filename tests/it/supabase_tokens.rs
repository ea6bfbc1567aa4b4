//! The tokens that Supabase gave: refreshed once, whoever asks; lost in the open; revoked when their owner disconnects.

use std::time::Duration;

use chrono::TimeDelta;
use control_plane::supabase::jobs;
use devkit::supabase::Fault;
use integration_tests::{eventually, within};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::scenes::{store_path, text};
use crate::supabase::{REACHABLE, Scene, add_project};

impl Scene {
    /// Lets both clocks go on.
    fn advance(&self, by: u32) {
        self.app.clock.advance(TimeDelta::seconds(by.into()));
        self.supabase.advance(Duration::from_secs(by.into()));
    }

    async fn actions(&self) -> Vec<String> {
        sqlx::query_scalar("select action from audit_events where action like 'supabase%' order by at, id")
            .fetch_all(&mut self.app.master().await)
            .await
            .unwrap()
    }

    /// What is still to be revoked: how often it was tried.
    async fn pending(&self) -> Vec<i32> {
        sqlx::query_scalar("select attempts from supabase_revocations")
            .fetch_all(&mut self.app.master().await)
            .await
            .unwrap()
    }

    /// Whether our login is in the database.
    async fn has_role(&self) -> bool {
        let role = control_plane::supabase::role::name(text(&self.store["id"]).parse().unwrap());
        sqlx::query_scalar("select exists (select from pg_roles where rolname = $1 and rolcanlogin)")
            .bind(role.as_str())
            .fetch_one(&mut self.database.admin().await)
            .await
            .unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_access_token_is_refreshed_before_it_is_used_and_after_it_was_refused() {
    let scene = Scene::set().await;
    scene.sign_in().await;
    scene.projects().await.expect_status(200);
    assert_eq!(scene.supabase.calls("/oauth/token"), 1);
    // Its time is over, as far as we know.
    scene.advance(3590);
    scene.projects().await.expect_status(200);
    assert_eq!(scene.supabase.calls("/oauth/token"), 2);
    // Supabase does not know it any more, and we could not know.
    scene.supabase.expire_access_tokens();
    scene.projects().await.expect_status(200);
    assert_eq!(scene.supabase.calls("/oauth/token"), 3);
    scene.projects().await.expect_status(200);
    assert_eq!((scene.supabase.calls("/oauth/token"), scene.supabase.consents()), (3, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_who_ask_at_once_on_two_nodes_refresh_once() {
    let scene = Scene::set().await;
    scene.sign_in().await;
    let other = scene.other_node().await;
    scene.advance(4000);
    let mut asking = JoinSet::new();
    for number in 0..50 {
        let owner = if number % 2 == 0 { scene.owner.clone() } else { scene.owner.at(other.address) };
        let path = scene.path("/projects");
        asking.spawn(async move { owner.api.get(&path).await });
    }
    while let Some(answer) = asking.join_next().await {
        answer.unwrap().expect_status(200);
    }
    // The consent's own exchange, and one refresh.
    assert_eq!((scene.supabase.calls("/oauth/token"), scene.supabase.consents()), (2, 1));
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_goes_on_when_whoever_asked_for_it_is_gone() {
    let scene = Scene::with(REACHABLE, &["--supabase-request-timeout-ms", "1000"]).await;
    scene.sign_in().await;
    scene.advance(4000);
    scene.supabase.fail_next("/oauth/token", Fault::Hang);
    let (owner, path) = (scene.owner.clone(), scene.path("/projects"));
    let asking = tokio::spawn(async move { owner.api.get(&path).await });
    within("the refresh that hangs", scene.supabase.hanging()).await;
    asking.abort();
    // It gives up by itself, and whoever waited goes on.
    scene.projects().await.expect_status(200);
    assert_eq!(scene.supabase.consents(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_whose_answer_was_lost_ends_in_asking_for_consent_again() {
    let scene = Scene::set().await;
    scene.sign_in().await;
    scene.advance(4000);
    scene.supabase.fail_next("/oauth/token", Fault::LoseAnswer);
    scene.projects().await.expect_problem(503, "supabase-unavailable");
    // Nobody knows yet: the old refresh token may still be good.
    assert_eq!(scene.state().await["state"], "connected");
    scene.projects().await.expect_problem(409, "supabase-reauthorize");
    assert_eq!(scene.state().await["state"], "reauthorize");
    scene.projects().await.expect_problem(409, "supabase-reauthorize");
    assert!(scene.actions().await.contains(&"supabase_consent_lost".to_owned()));
    scene.sign_in().await;
    scene.projects().await.expect_status(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_that_was_not_done_is_done_the_next_time() {
    let scene = Scene::set().await;
    scene.sign_in().await;
    scene.advance(4000);
    scene.supabase.fail_next("/oauth/token", Fault::Status(500));
    scene.projects().await.expect_problem(503, "supabase-unavailable");
    scene.supabase.fail_next("/oauth/token", Fault::RateLimited(7));
    let busy = scene.projects().await;
    busy.expect_problem(503, "supabase-busy");
    assert_eq!(busy.header("retry-after"), "7");
    // What is wrong with our own secret takes no consent away.
    scene.supabase.fail_next("/oauth/token", Fault::Answer(401, json!({ "message": "Invalid client credentials" })));
    scene.projects().await.expect_problem(502, "supabase-refused");
    scene.projects().await.expect_status(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consent_that_was_taken_back_is_asked_for_again_and_the_store_goes_on() {
    let scene = Scene::set().await;
    scene.sign_in().await;
    scene.connect().await.expect_status(202);
    assert_eq!(scene.app.run_ended(&scene.owner, &scene.store).await["state"], "succeeded");
    scene.supabase.revoke_consents();
    scene.projects().await.expect_problem(409, "supabase-reauthorize");
    let state = scene.state().await;
    assert_eq!((&state["state"], &state["project"]["ref"]), (&json!("reauthorize"), &json!(scene.project)));
    scene.app.storefront_of(&scene.store).get("/store/v1/products").await.expect_status(200);
    scene.sign_in().await;
    assert_eq!(scene.state().await["project"]["name"], "Shop");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_supabase_says_of_its_limits_and_rights_is_passed_on() {
    let scene = Scene::set().await;
    scene.sign_in().await;
    scene.supabase.fail_next("/organizations", Fault::RateLimited(23));
    let busy = scene.projects().await;
    busy.expect_problem(503, "supabase-busy");
    assert_eq!(busy.header("retry-after"), "23");
    scene.supabase.fail_next("/organizations", Fault::Status(403));
    scene.projects().await.expect_problem(403, "supabase-forbidden");
    scene.supabase.fail_next("/organizations", Fault::Answer(200, json!({ "not": "a list" })));
    scene.projects().await.expect_problem(502, "supabase-malformed");
    scene.projects().await.expect_status(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn disconnecting_revokes_the_consent_and_can_be_said_twice() {
    let scene = Scene::set().await;
    scene.owner.api.delete(&scene.path("")).await.expect_status(204);
    scene.sign_in().await;
    scene.owner.api.delete(&scene.path("")).await.expect_status(204);
    assert_eq!((scene.supabase.consents(), scene.state().await["state"].clone()), (0, json!("none")));
    scene.owner.api.delete(&scene.path("")).await.expect_status(204);
    assert_eq!(scene.supabase.calls("/oauth/revoke"), 1);
    let wanted =
        ["supabase_authorize", "supabase_consent", "supabase_complete", "supabase_disconnect", "supabase_revoke"];
    assert_eq!(scene.actions().await, wanted);
    scene.projects().await.expect_problem(409, "supabase-not-connected");
    scene.sign_in().await;
    scene.projects().await.expect_status(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_served_store_is_disconnected_only_when_its_login_is_kept() {
    let scene = Scene::set().await;
    scene.sign_in().await;
    scene.connect().await.expect_status(202);
    assert_eq!(scene.app.run_ended(&scene.owner, &scene.store).await["state"], "succeeded");
    let refused = scene.owner.api.delete(&scene.path("")).await.expect_problem(409, "database-in-use");
    assert_eq!(refused["storeStatus"], "active");
    assert_eq!((scene.supabase.consents(), scene.state().await["state"].clone()), (1, json!("connected")));
    scene.owner.api.delete(&scene.path("?keepDatabase=true")).await.expect_status(204);
    assert_eq!((scene.supabase.consents(), scene.has_role().await), (0, true));
    scene.app.storefront_of(&scene.store).get("/store/v1/products").await.expect_status(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_project_of_another_store_is_refused_and_left_as_it_is() {
    let scene = Scene::set().await;
    scene.sign_in().await;
    // Nobody gets in, and nothing is made.
    let name = &scene.database.database;
    let mut admin = scene.database.admin().await;
    let limit = |limit: i32| sqlx::AssertSqlSafe(format!("alter database {name} connection limit {limit}"));
    sqlx::query(limit(0)).execute(&mut admin).await.unwrap();
    // The project's administrator does not get in either.
    scene.connect().await.expect_problem(502, "supabase-refused");
    sqlx::query(limit(-1)).execute(&mut admin).await.unwrap();
    scene.connect().await.expect_status(202);
    assert_eq!(scene.app.run_ended(&scene.owner, &scene.store).await["state"], "succeeded");
    assert!(scene.has_role().await);

    let second = scene.owner.create_store("second").await.expect_status(201);
    let path = store_path(&second, "/supabase");
    let begun = scene.owner.api.post(&format!("{path}/authorize"), json!({})).await.expect_status(201);
    let back = scene.press(text(&begun["authorizeUrl"]), "").await;
    let code = scene.come_back(&back).await;
    scene.owner.api.post(&format!("{path}/complete"), json!({ "completionCode": code })).await.expect_status(200);
    // The project holds the first store, whose login and data stay as they are.
    let body = json!({ "projectRef": scene.project });
    scene.owner.api.post(&format!("{path}/connect"), body).await.expect_problem(409, "belongs-to-another-store");
    scene.owner.api.delete(&path).await.expect_status(204);
    assert!(scene.has_role().await);
    scene.app.storefront_of(&scene.store).get("/store/v1/products").await.expect_status(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_revoked_yet_is_revoked_later() {
    let scene = Scene::set().await;
    scene.sign_in().await;
    scene.supabase.fail_next("/oauth/revoke", Fault::Status(500));
    scene.owner.api.delete(&scene.path("")).await.expect_status(204);
    assert_eq!((scene.supabase.consents(), scene.pending().await), (1, vec![1]));
    assert_eq!(scene.state().await["state"], "none");
    jobs::revoke(&scene.app.cx).await.unwrap();
    assert_eq!(scene.pending().await, [1], "it is not due yet");
    scene.advance(60);
    jobs::revoke(&scene.app.cx).await.unwrap();
    assert_eq!((scene.supabase.consents(), scene.pending().await), (0, vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_can_be_revoked_is_given_up_and_written_down() {
    let scene = Scene::set().await;
    scene.sign_in().await;
    for _ in 0..20 {
        scene.supabase.fail_next("/oauth/revoke", Fault::Status(503));
    }
    scene.owner.api.delete(&scene.path("")).await.expect_status(204);
    for _ in 0..19 {
        assert_eq!(scene.pending().await.len(), 1);
        scene.advance(7 * 3600);
        jobs::revoke(&scene.app.cx).await.unwrap();
    }
    assert_eq!(scene.pending().await, Vec::<i32>::new());
    assert_eq!(scene.actions().await.last().map(String::as_str), Some("supabase_revoke_abandon"));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_project_may_be_chosen_while_nothing_is_prepared_and_the_first_one_is_left_clean() {
    let scene = Scene::set().await;
    scene.sign_in().await;
    // The first project's database refuses our login at the last moment: what was made there is not used.
    scene.supabase.fail_next("/database/query", Fault::Status(500));
    scene.connect().await.expect_problem(503, "supabase-unavailable");
    let database = scene.app.cluster.brought().await;
    let other = add_project(&scene.supabase, &database, REACHABLE).await;
    scene.post("/connect", json!({ "projectRef": other })).await.expect_status(202);
    assert_eq!(scene.app.run_ended(&scene.owner, &scene.store).await["state"], "succeeded");
    assert_eq!(scene.state().await["project"]["ref"], json!(other));
    let schema: bool = sqlx::query_scalar("select to_regnamespace('tenantry') is not null")
        .fetch_one(&mut scene.database.admin().await)
        .await
        .unwrap();
    assert!(!schema);
}

#[tokio::test(flavor = "multi_thread")]
async fn disconnecting_leaves_neither_our_login_nor_our_schema_in_the_projects_database() {
    // The certificate is for 127.0.0.1 alone, so that nothing is prepared with what was made there.
    let scene = Scene::with("localhost", &[]).await;
    let role = control_plane::supabase::role::name(text(&scene.store["id"]).parse().unwrap());
    let mut admin = scene.database.admin().await;
    // Our login, our schema, and whether the database's own list of rights names the login.
    let mut ours = async || -> (bool, bool, bool) {
        sqlx::query_as(
            "select exists (select from pg_roles where rolname = $1), to_regnamespace('tenantry') is not null,
                    coalesce(datacl::text like '%' || $1 || '%', false)
             from pg_database where datname = current_database()",
        )
        .bind(role.as_str())
        .fetch_one(&mut admin)
        .await
        .unwrap()
    };
    scene.sign_in().await;
    scene.connect().await.expect_status(202);
    assert_eq!(scene.app.run_ended(&scene.owner, &scene.store).await["state"], "failed");
    assert_eq!(ours().await, (true, true, true));
    // While the run can go on, it needs them.
    scene.owner.api.delete(&scene.path("")).await.expect_problem(409, "database-in-use");
    assert_eq!(ours().await, (true, true, true));
    scene.owner.api.post(&store_path(&scene.store, "/provisioning/cancel"), json!({})).await.expect_status(202);
    assert_eq!(scene.app.run_ended(&scene.owner, &scene.store).await["state"], "cancelled");

    // Supabase fails at first: what was made goes when it answers again, and only then our access to it.
    scene.supabase.fail_next("/database/query", Fault::Status(500));
    scene.owner.api.delete(&scene.path("")).await.expect_status(204);
    assert!(ours().await.0 && scene.supabase.consents() == 1 && scene.pending().await == [1]);
    scene.advance(60);
    jobs::revoke(&scene.app.cx).await.unwrap();

    assert_eq!(ours().await, (false, false, false));
    assert_eq!((scene.supabase.consents(), scene.pending().await), (0, vec![]));
    let note: String = sqlx::query_scalar("select string_agg(line, ',') from public.notes")
        .fetch_one(&mut scene.database.admin().await)
        .await
        .unwrap();
    assert_eq!(note, "mine");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_login_is_dropped_with_the_access_when_the_store_does_not_live_there() {
    let scene = Scene::set().await;
    scene.sign_in().await;
    let mut admin = scene.database.admin().await;
    let role = control_plane::supabase::role::name(text(&scene.store["id"]).parse().unwrap());
    scene.connect().await.expect_status(202);
    assert_eq!(scene.app.run_ended(&scene.owner, &scene.store).await["state"], "succeeded");
    // As after a move: the store is reached by another login now.
    sqlx::query("update store_databases set role_name = 'somebody' where store_id = $1")
        .bind(text(&scene.store["id"]).parse::<kernel::StoreId>().unwrap().as_uuid())
        .execute(&mut scene.app.master().await)
        .await
        .unwrap();
    scene.advance(4000);
    scene.owner.api.delete(&scene.path("")).await.expect_status(204);
    eventually("the end of the revocation", async || scene.pending().await.is_empty().then_some(())).await;
    assert_eq!(scene.supabase.consents(), 0);
    // Its schema holds data, so it stays, and nobody logs in by it any more.
    let kept: Value =
        sqlx::query_scalar("select json_build_object('login', rolcanlogin) from pg_roles where rolname = $1")
            .bind(role.as_str())
            .fetch_one(&mut admin)
            .await
            .unwrap();
    assert_eq!(kept, json!({ "login": false }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consent_is_not_completed_while_the_one_before_is_being_revoked() {
    let scene = Scene::with(REACHABLE, &["--supabase-request-timeout-ms", "10000"]).await;
    scene.sign_in().await;
    scene.supabase.fail_next("/oauth/revoke", Fault::Status(500));
    scene.owner.api.delete(&scene.path("")).await.expect_status(204);
    scene.advance(60);
    scene.supabase.fail_next("/oauth/revoke", Fault::Hang);
    let cx = scene.app.cx.clone();
    let revoking = tokio::spawn(async move { jobs::revoke(&cx).await });
    within("the revocation that hangs", scene.supabase.hanging()).await;
    let back = scene.consent().await;
    let code = scene.come_back(&back).await;

    let refused = scene.complete(&code).await;

    refused.expect_problem(409, "supabase-disconnecting");
    assert!(!refused.header("retry-after").is_empty());
    assert_eq!(scene.supabase.calls("/oauth/token"), 1, "the code is not used up");
    // Whoever dies at it may have sent it: it is waited for as long as it may be under way.
    revoking.abort();
    drop(revoking.await);
    scene.complete(&code).await.expect_problem(409, "supabase-disconnecting");
    scene.advance(120);
    scene.complete(&code).await.expect_status(200);
    assert_eq!(scene.pending().await, Vec::<i32>::new());
    jobs::revoke(&scene.app.cx).await.unwrap();
    scene.projects().await.expect_status(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_revoked_while_a_consent_is_completed() {
    let scene = Scene::with(REACHABLE, &["--supabase-request-timeout-ms", "1000"]).await;
    scene.sign_in().await;
    scene.supabase.fail_next("/oauth/revoke", Fault::Status(500));
    scene.owner.api.delete(&scene.path("")).await.expect_status(204);
    let back = scene.consent().await;
    let code = scene.come_back(&back).await;
    scene.advance(60);
    scene.supabase.fail_next("/oauth/token", Fault::Hang);
    let (owner, path) = (scene.owner.clone(), scene.path("/complete"));
    let completing = tokio::spawn(async move { owner.api.post(&path, json!({ "completionCode": code })).await });
    within("the exchange that hangs", scene.supabase.hanging()).await;

    jobs::revoke(&scene.app.cx).await.unwrap();

    assert_eq!(scene.supabase.calls("/oauth/revoke"), 1, "it is due, and waits");
    completing.await.unwrap().expect_problem(503, "supabase-unavailable");
    scene.advance(120);
    jobs::revoke(&scene.app.cx).await.unwrap();
    assert_eq!((scene.supabase.calls("/oauth/revoke"), scene.pending().await), (2, vec![]));
}
