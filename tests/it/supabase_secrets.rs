//! Signing in to Supabase leaves no secret in the log of the program, however much of it goes wrong.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use devkit::supabase::{Fault, TestSupabase};
use http::Method;
use integration_tests::{Owner, Process, Response, cluster};
use kernel::Engine;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use crate::processes::master_with_server;
use crate::scenes::{store_path, text};
use crate::secrets::{LOUD, Secrets, credential, lines_with};
use crate::supabase::{CLIENT_ID, CLIENT_SECRET, REACHABLE, add_project, code_of, press, supabase};

/// An owner who signs in by the program, and everything that must not be told of it.
struct Visitor<'a> {
    node: &'a Process,
    supabase: &'a TestSupabase,
    owner: Owner,
    store: Value,
    secrets: Secrets,
    /// What was answered that holds no secret of its own.
    answers: String,
}

impl Visitor<'_> {
    fn path(&self, rest: &str) -> String {
        store_path(&self.store, &format!("/supabase{rest}"))
    }

    fn keep(&mut self, answer: &Response) {
        self.answers += &answer.text();
    }

    /// Begins, presses a button, and comes back; the page that is shown then.
    async fn come_back(&mut self, button: &str) -> Response {
        let begun = self.owner.api.send(Method::POST, &self.path("/authorize"), None).await.expect_status(201);
        let back = press(self.supabase, text(&begun["authorizeUrl"]), button).await;
        let state = back.split("state=").nth(1).unwrap().split('&').next().unwrap();
        self.secrets.add("state", state);
        self.node.api().get(&back).await
    }

    /// Consents and completes, which may fail.
    async fn sign_in(&mut self) -> Response {
        let code = code_of(&self.come_back("").await);
        self.secrets.add("completion code", &code);
        let done = self.owner.api.post(&self.path("/complete"), json!({ "completionCode": code })).await;
        self.keep(&done);
        done
    }

    async fn projects(&mut self) -> Response {
        let list = self.owner.api.get(&self.path("/projects")).await;
        self.keep(&list);
        list
    }

    async fn connect(&mut self, project: &str) -> Response {
        let begun = self.owner.api.post(&self.path("/connect"), json!({ "projectRef": project })).await;
        self.keep(&begun);
        begun
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_secret_is_in_the_log_after_all_that_can_happen_at_supabase() {
    let cluster = cluster().await;
    let master = master_with_server(Engine::Postgresql, cluster).await;
    let (supabase, arguments, _authority) = supabase().await;
    let variables: Vec<(String, &str)> = arguments
        .chunks(2)
        .map(|pair| (pair[0].trim_start_matches("--").replace('-', "_").to_uppercase(), pair[1].as_str()))
        .collect();
    let mut environment: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    environment.push(("LOG", LOUD));
    let node = Process::serve(&master.url(), &environment).await;
    let owner = node.owner("ada").await;
    let store = owner.create_store("adas-tea").await.expect_status(201);
    let database = cluster.brought().await;
    let project = add_project(&supabase, &database, REACHABLE).await;
    let (secrets, answers) = (Secrets::default(), String::new());
    let mut visitor = Visitor { node: &node, supabase: &supabase, owner, store, secrets, answers };

    // Nobody consents, and somebody comes with what they made up.
    let page = visitor.come_back("&deny=1").await;
    visitor.keep(&page);
    for made_up in ["made-up-state-of-somebody", "made-up-code-of-somebody"] {
        visitor.secrets.add("what somebody made up", made_up);
    }
    let forged = "/api/supabase/callback?state=made-up-state-of-somebody&code=made-up-code-of-somebody";
    let page = node.api().get(forged).await;
    assert_eq!(page.status, 400);
    visitor.keep(&page);
    let guess = json!({ "completionCode": "made-up-code-of-somebody" });
    let refused = visitor.owner.api.post(&visitor.path("/complete"), guess).await;
    refused.expect_field(422, "invalid-input", "/completionCode");
    visitor.keep(&refused);

    // The code is not exchanged: Supabase is down, does not know us, says something else, or breaks off.
    visitor.secrets.add("token that is none", "sbp_oauth_in_another_shape");
    let shapeless = json!({ "access_token": ["sbp_oauth_in_another_shape"], "refresh_token": "x", "expires_in": 1 });
    for fault in [
        Fault::Status(500),
        Fault::Answer(401, json!({ "message": "Invalid client credentials" })),
        Fault::Answer(201, shapeless.clone()),
        Fault::LoseAnswer,
    ] {
        supabase.fail_next("/oauth/token", fault);
        let failed = visitor.sign_in().await;
        assert!(!failed.status.is_success(), "{}", failed.text());
    }
    visitor.sign_in().await.expect_status(200);

    // What is asked with the tokens goes wrong as well, and so does refreshing them.
    for fault in [Fault::Status(403), Fault::RateLimited(1), Fault::Answer(200, shapeless.clone()), Fault::LoseAnswer] {
        supabase.fail_next("/organizations", fault);
        let failed = visitor.projects().await;
        assert!(!failed.status.is_success(), "{}", failed.text());
    }
    supabase.expire_access_tokens();
    for fault in [Fault::Status(500), Fault::Answer(201, shapeless)] {
        supabase.fail_next("/oauth/token", fault);
        let failed = visitor.projects().await;
        assert!(!failed.status.is_success(), "{}", failed.text());
    }
    if visitor.projects().await.status != 200 {
        // What was lost on the way is asked for again.
        visitor.sign_in().await.expect_status(200);
    }
    for fault in [Fault::Status(500), Fault::Status(400), Fault::LoseAnswer] {
        supabase.fail_next("/database/query", fault);
        let failed = visitor.connect(&project).await;
        assert!(!failed.status.is_success(), "{}", failed.text());
    }
    visitor.connect(&project).await.expect_status(202);
    let run = node.run_ended(&visitor.owner, &visitor.store).await;
    assert_eq!(run["state"], "succeeded", "{run}");
    node.storefront_of(&visitor.store).get("/store/v1/products").await.expect_status(200);
    let shown = visitor.owner.api.get(&visitor.path("")).await;
    visitor.keep(&shown);
    supabase.fail_next("/oauth/revoke", Fault::Status(500));
    let left = visitor.owner.api.delete(&visitor.path("?keepDatabase=true")).await;
    assert_eq!(left.status, 204, "{}", left.text());

    let Visitor { mut secrets, answers, store, .. } = visitor;
    secrets.add("client secret", CLIENT_SECRET);
    // As it is sent.
    secrets.add("client secret", &BASE64_STANDARD.encode(format!("{CLIENT_ID}:{CLIENT_SECRET}")));
    let (given, verifiers) = (supabase.secrets(), supabase.verifiers());
    assert!(given.iter().any(|given| given.starts_with("refresh_")) && verifiers.len() > 3, "{given:?} {verifiers:?}");
    given.iter().for_each(|given| secrets.add("code or token", given));
    verifiers.iter().for_each(|verifier| secrets.add("verifier", verifier));
    secrets.add("login's password", credential(&master, &store).await.password.expose_secret());
    let log = node.log_handle();
    assert_eq!(node.terminate().await, Some(0));
    let log = log.lock().unwrap().clone();
    assert!(log.contains("TRACE") && log.contains("supabase"), "the log was as loud as it gets");
    for (place, text) in [("the log", &log), ("answers", &answers)] {
        let found = secrets.found_in(text);
        assert!(found.is_empty(), "{place} holds: {found:?}\n{}", lines_with(&secrets, text));
    }
    assert_eq!(secrets.found_in(&format!("a line with {CLIENT_SECRET} in it")).len(), 1);
}
