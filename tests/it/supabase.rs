//! Signing in to Supabase: who may end what was begun, and how often.

use axum::body::Body;
use chrono::TimeDelta;
use control_plane::serve::Node;
use devkit::supabase::{Fault, NewProject, TestSupabase, TestSupabaseOptions};
use http::Method;
use integration_tests::{Client, Owner, Response, TestApp, TestAppOptions, TestDatabase};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor as _};
use tempfile::NamedTempFile;
use tokio_rustls::TlsAcceptor;

use crate::scenes::{join, store_path, text};

pub(crate) const CLIENT_ID: &str = "66666666-6666-4666-8666-666666666666";
pub(crate) const CLIENT_SECRET: &str = "sba_secret_of_our_app";

/// Where a project's own host is, and whether anybody listens there.
pub(crate) const REACHABLE: &str = "127.0.0.1";
/// As one that has no IPv4 address looks from a machine that has no IPv6.
pub(crate) const IPV6_ONLY: &str = "::1";

/// A certificate for 127.0.0.1, and the authority that vouches for it.
fn tls() -> (TlsAcceptor, String) {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = authority.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(authority, key);
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    (TlsAcceptor::from(std::sync::Arc::new(config)), pem)
}

/// An owner with a store, and a project at Supabase with a shop of another kind in its database.
pub(crate) struct Scene {
    pub(crate) app: TestApp,
    pub(crate) supabase: TestSupabase,
    pub(crate) owner: Owner,
    pub(crate) store: Value,
    pub(crate) database: TestDatabase,
    pub(crate) project: String,
    arguments: Vec<String>,
    node: Option<Node>,
    _authority: NamedTempFile,
}

/// Supabase, and what leads a node to it.
pub(crate) async fn supabase() -> (TestSupabase, Vec<String>, NamedTempFile) {
    let (tls, pem) = tls();
    let options = TestSupabaseOptions { client_id: CLIENT_ID.to_owned(), client_secret: CLIENT_SECRET.to_owned(), tls };
    let supabase = TestSupabase::start(options).await.unwrap();
    let authority = NamedTempFile::new().unwrap();
    std::fs::write(authority.path(), pem).unwrap();
    let arguments = [
        "--supabase-client-id",
        CLIENT_ID,
        "--supabase-client-secret",
        CLIENT_SECRET,
        "--supabase-api-url",
        supabase.url(),
        "--supabase-ca-file",
        authority.path().to_str().unwrap(),
        "--supabase-direct-port",
        &supabase.direct_port.to_string(),
        "--supabase-session-port",
        &supabase.session_port.to_string(),
        "--supabase-request-timeout-ms",
        "3000",
        // What it does is done by the tests, when they want it.
        "--supabase-sweep-ms",
        "100000000",
        // Tokens of ours that outlive the hours that tests let pass.
        "--access-token-ttl-s",
        "10000000",
        "--refresh-token-ttl-s",
        "10000000",
    ];
    let arguments = arguments.map(str::to_owned).to_vec();
    (supabase, arguments, authority)
}

impl Scene {
    pub(crate) async fn set() -> Self {
        Self::with(REACHABLE, &[]).await
    }

    pub(crate) async fn with(host: &str, more: &[&str]) -> Self {
        let (supabase, mut arguments, authority) = supabase().await;
        arguments.extend(more.iter().map(|&text| text.to_owned()));
        let options = TestAppOptions { arguments: arguments.clone(), ..TestAppOptions::default() };
        let app = TestApp::start_with(options).await;
        let owner = app.owner("ada").await;
        let store = owner.create_store("adas-tea").await.expect_status(201);
        let database = app.cluster.brought().await;
        let project = add_project(&supabase, &database, host).await;
        Self { app, supabase, owner, store, database, project, arguments, node: None, _authority: authority }
    }

    /// Another node on the same master, which is like the first.
    pub(crate) async fn other_node(&self) -> Node {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        self.app.other_node_with(&arguments).await
    }

    /// Has the owner speak to a node that reaches Supabase at another URL, for the rest of the test.
    pub(crate) async fn lead_to(&mut self, url: &str) {
        let more = ["--supabase-api-url", url];
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).chain(more).collect();
        let node = self.app.other_node_with(&arguments).await;
        self.owner = self.owner.at(node.address);
        self.node = Some(node);
    }

    /// Ends that node.
    pub(crate) async fn release(&mut self) {
        if let Some(node) = self.node.take() {
            node.stop().await;
        }
    }

    pub(crate) fn path(&self, rest: &str) -> String {
        store_path(&self.store, &format!("/supabase{rest}"))
    }

    pub(crate) async fn post(&self, rest: &str, body: Value) -> Response {
        self.owner.api.post(&self.path(rest), body).await
    }

    pub(crate) async fn state(&self) -> Value {
        self.owner.api.get(&self.path("")).await.expect_status(200)
    }

    /// Begins a consent; where to go for it.
    pub(crate) async fn begin(&self) -> String {
        let begun = self.owner.api.send(Method::POST, &self.path("/authorize"), None).await;
        assert_eq!(begun.header("cache-control"), "no-store");
        text(&begun.expect_status(201)["authorizeUrl"]).to_owned()
    }

    /// Goes there and presses a button; what Supabase leads back to.
    pub(crate) async fn press(&self, authorize_url: &str, button: &str) -> String {
        press(&self.supabase, authorize_url, button).await
    }

    /// Begins and consents; what Supabase leads back to.
    pub(crate) async fn consent(&self) -> String {
        let url = self.begin().await;
        self.press(&url, "").await
    }

    /// Comes back from Supabase; the completion code that the page shows.
    pub(crate) async fn come_back(&self, path: &str) -> String {
        let page = self.app.api().get(path).await;
        assert_eq!(page.status, 200, "{}", page.text());
        code_of(&page)
    }

    pub(crate) async fn complete(&self, code: &str) -> Response {
        self.post("/complete", json!({ "completionCode": code })).await
    }

    /// All of it.
    pub(crate) async fn sign_in(&self) {
        let back = self.consent().await;
        let code = self.come_back(&back).await;
        assert_eq!(self.complete(&code).await.expect_status(200)["state"], "connected");
    }

    pub(crate) async fn projects(&self) -> Response {
        self.owner.api.get(&self.path("/projects")).await
    }

    pub(crate) async fn connect(&self) -> Response {
        self.post("/connect", json!({ "projectRef": self.project, "demoProducts": true })).await
    }
}

/// A project with this database behind it, which its owner, no superuser, has put something into.
pub(crate) async fn add_project(supabase: &TestSupabase, database: &TestDatabase, host: &str) -> String {
    let name = &database.database;
    let mut admin = database.admin().await;
    admin
        .execute(AssertSqlSafe(format!(
            "alter role {name} createrole; create role anon_{name}; set role {name};
             create table public.notes (line text); insert into public.notes values ('mine');
             grant usage on schema public to anon_{name}; grant select on public.notes to anon_{name}"
        )))
        .await
        .unwrap();
    supabase.add_organization("acme", "Acme & Sons");
    supabase.add_project(NewProject {
        organization: "acme".to_owned(),
        name: "Shop".to_owned(),
        status: "ACTIVE_HEALTHY".to_owned(),
        host: host.to_owned(),
        pooler_host: REACHABLE.to_owned(),
        database_url: database.url(),
    })
}

/// Goes to where somebody consents and presses a button; what Supabase leads back to.
pub(crate) async fn press(supabase: &TestSupabase, authorize_url: &str, button: &str) -> String {
    // Prism would follow where it leads, so nobody stands between here.
    let url = url::Url::parse(authorize_url).unwrap();
    let supabase = url::Url::parse(supabase.url()).unwrap();
    let address = supabase.socket_addrs(|| None).unwrap()[0];
    let answer =
        Client::new(address, "localhost").get(&format!("{}?{}{button}", url.path(), url.query().unwrap())).await;
    assert_eq!(answer.status, 302, "{}", answer.text());
    let back = url::Url::parse(answer.header("location")).unwrap();
    format!("{}?{}", back.path(), back.query().unwrap())
}

pub(crate) fn code_of(page: &Response) -> String {
    page.text().split("<code>").nth(1).unwrap().split("</code>").next().unwrap().to_owned()
}

/// A page that connects nothing.
async fn leads_nowhere(scene: &Scene, path: &str) {
    let page = scene.app.api().get(path).await;
    assert_eq!(page.status, 400, "{path}: {}", page.text());
    assert!(page.header("content-type").starts_with("text/html") && !page.text().contains("<code>"), "{}", page.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_app_at_supabase_it_is_said_so() {
    let app = TestApp::start().await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);
    let path = store_path(&store, "/supabase");
    owner.api.post(&format!("{path}/authorize"), json!({})).await.expect_problem(503, "supabase-not-configured");
    let shown = owner.api.get(&path).await.expect_status(200);
    assert_eq!((&shown["isConfigured"], &shown["state"]), (&json!(false), &json!("none")));
    owner.api.delete(&path).await.expect_status(204);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consent_is_completed_by_whoever_began_it_and_once() {
    let scene = Scene::set().await;
    assert_eq!(scene.state().await, json!({ "isConfigured": true, "state": "none", "since": null, "project": null }));
    scene.projects().await.expect_problem(409, "supabase-not-connected");
    let back = scene.consent().await;
    let page = scene.app.api().get(&back).await;
    assert_eq!((page.header("cache-control"), page.header("referrer-policy")), ("no-store", "no-referrer"));
    assert!(page.header("content-security-policy").starts_with("default-src 'none'"), "{:?}", page.headers);
    let code = code_of(&page);
    // Nothing is connected by coming back.
    assert_eq!(scene.state().await["state"], "none");
    assert_eq!(scene.supabase.calls("/oauth/token"), 0);
    // Nor by coming back once more with the same state.
    leads_nowhere(&scene, &back).await;

    // Another manager of the same organization did not begin it.
    let other = scene.app.owner("max").await;
    join(&scene.app, &scene.owner, &other, "admin").await;
    let body = json!({ "completionCode": code });
    let refused = other.api.post(&scene.path("/complete"), body.clone()).await;
    refused.expect_field(422, "invalid-input", "/completionCode");
    // Nor is it for another store.
    let second = scene.owner.create_store("second").await.expect_status(201);
    let refused = scene.owner.api.post(&store_path(&second, "/supabase/complete"), body).await;
    refused.expect_field(422, "invalid-input", "/completionCode");
    scene.complete("guessed").await.expect_field(422, "invalid-input", "/completionCode");
    assert_eq!(scene.supabase.calls("/oauth/token"), 0);

    let done = scene.complete(&code).await.expect_status(200);
    assert_eq!((&done["state"], &done["project"]), (&json!("connected"), &Value::Null));
    scene.complete(&code).await.expect_problem(409, "supabase-connected");
    let again = scene.owner.api.send(Method::POST, &scene.path("/authorize"), None).await;
    again.expect_problem(409, "supabase-connected");
    assert_eq!(scene.supabase.consents(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_is_forged_old_or_replaced_leads_nowhere() {
    let scene = Scene::set().await;
    let back = scene.consent().await;
    let state = back.split("state=").nth(1).unwrap();
    leads_nowhere(&scene, "/api/supabase/callback").await;
    leads_nowhere(&scene, "/api/supabase/callback?code=abc").await;
    leads_nowhere(&scene, &back.replace(state, &"x".repeat(43))).await;
    leads_nowhere(&scene, &format!("/api/supabase/callback?state={state}")).await;
    // Beginning again ends what was begun before.
    let newer = scene.consent().await;
    leads_nowhere(&scene, &back).await;
    // What is too old is over, before it was given and after.
    scene.app.clock.advance(TimeDelta::minutes(11));
    leads_nowhere(&scene, &newer).await;
    let back = scene.consent().await;
    let code = scene.come_back(&back).await;
    scene.app.clock.advance(TimeDelta::minutes(11));
    scene.complete(&code).await.expect_field(422, "invalid-input", "/completionCode");
    assert_eq!((scene.supabase.calls("/oauth/token"), scene.state().await["state"].clone()), (0, json!("none")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_consent_connects_nothing_and_shows_no_markup_of_others() {
    let scene = Scene::set().await;
    let url = scene.begin().await;
    let back = scene.press(&url, "&deny=1").await;
    let page = scene.app.api().get(&back).await;
    assert_eq!(page.status, 200);
    assert!(page.text().contains("&lt;b&gt;denied&lt;/b&gt;") && !page.text().contains("<b>"), "{}", page.text());
    leads_nowhere(&scene, &back).await;
    assert_eq!(scene.state().await["state"], "none");
    let ended: String = sqlx::query_scalar("select status from supabase_authorizations")
        .fetch_one(&mut scene.app.master().await)
        .await
        .unwrap();
    assert_eq!(ended, "denied");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_console_is_led_to_with_the_code_behind_the_hash() {
    let scene = Scene::with(REACHABLE, &["--supabase-return-url", "https://console.example.com/back?x=1"]).await;
    let back = scene.consent().await;
    let led = scene.app.api().request(scene.app.api().build(Method::GET, &back).body(Body::empty()).unwrap()).await;
    assert_eq!(led.status, 303);
    let place = url::Url::parse(led.header("location")).unwrap();
    assert_eq!((place.host_str(), place.query()), (Some("console.example.com"), Some("x=1")));
    let parts: std::collections::HashMap<_, _> =
        url::form_urlencoded::parse(place.fragment().unwrap().as_bytes()).into_owned().collect();
    assert_eq!(parts["storeId"], text(&scene.store["id"]));
    scene.complete(&parts["completionCode"]).await.expect_status(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_whose_answer_was_lost_are_not_asked_for_twice() {
    let scene = Scene::set().await;
    let back = scene.consent().await;
    let code = scene.come_back(&back).await;
    scene.supabase.fail_next("/oauth/token", Fault::LoseAnswer);
    scene.complete(&code).await.expect_problem(503, "supabase-unavailable");
    // The code is used up; beginning again is all that helps.
    scene.complete(&code).await.expect_field(422, "invalid-input", "/completionCode");
    assert_eq!((scene.supabase.calls("/oauth/token"), scene.state().await["state"].clone()), (1, json!("none")));
    scene.sign_in().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_project_of_every_organization_is_listed_and_none_chosen() {
    let scene = Scene::set().await;
    scene.supabase.add_organization("other-org", "Other");
    for number in 0..120 {
        scene.supabase.add_project(NewProject {
            organization: "other-org".to_owned(),
            name: format!("p{number}"),
            status: if number == 0 { "INACTIVE" } else { "COMING_UP" }.to_owned(),
            host: REACHABLE.to_owned(),
            pooler_host: REACHABLE.to_owned(),
            database_url: scene.database.url(),
        });
    }
    scene.sign_in().await;
    let listed = scene.projects().await.expect_status(200);
    let data = listed["data"].as_array().unwrap();
    assert_eq!((data.len(), &listed["meta"]["isComplete"]), (121, &json!(true)));
    assert_eq!(
        data[0],
        json!({ "ref": scene.project, "name": "Shop", "organization": "Acme & Sons", "region": "eu-central-1",
            "status": "active", "isPaused": false, "canBeConnected": true })
    );
    assert_eq!((&data[1]["isPaused"], &data[1]["canBeConnected"]), (&json!(true), &json!(false)));
    assert_eq!(data[2]["status"], "not_ready");
    scene.post("/connect", json!({})).await.expect_field(422, "invalid-input", "/projectRef");
    scene.post("/connect", json!({ "projectRef": "no" })).await.expect_field(422, "invalid-input", "/projectRef");
    let unknown = json!({ "projectRef": "abcdefghijklmnopqrst" });
    scene.post("/connect", unknown).await.expect_problem(404, "project-not-found");
    assert_eq!(scene.state().await["project"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_project_is_said_to_be_paused_and_can_be_resumed() {
    let scene = Scene::set().await;
    scene.sign_in().await;
    let resume = format!("/projects/{}/resume", scene.project);
    scene.post(&resume, json!({})).await.expect_problem(409, "project-not-paused");
    scene.supabase.set_status(&scene.project, "INACTIVE");
    let paused = scene.connect().await.expect_problem(409, "project-paused");
    assert!(text(&paused["detail"]).contains("resume"), "{paused}");
    assert!(scene.supabase.queries().is_empty());
    assert_eq!(scene.post(&resume, json!({})).await.status, 202);
    assert_eq!(scene.supabase.status(&scene.project).as_deref(), Some("RESTORING"));
    scene.connect().await.expect_problem(409, "project-not-ready");
    scene.supabase.set_status(&scene.project, "ACTIVE_HEALTHY");
    scene.connect().await.expect_status(202);
    assert_eq!(scene.app.run_ended(&scene.owner, &scene.store).await["state"], "succeeded");
}
