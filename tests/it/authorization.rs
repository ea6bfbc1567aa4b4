//! Who may do what: every operation of the API has a case here, and each case is tried by everybody who might come along.
//!
//! An operation without a case fails the suite, so a new route cannot be forgotten.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeSet;

use chrono::Duration;
use devkit::payments::{Checkout, TestPayments};
use http::Method;
use integration_tests::{Client, Owner, Receiver, Response, TestApp, TestAppOptions, TestDatabase};
use kernel::{Clock as _, ReconDifferenceId, UserId};
use serde_json::{Value, json};

use crate::credits::give;
use crate::described;
use crate::purchases::provider;
use crate::scenes::{Cart, checkout_body, join, send_raw, store_path, text, variant_of};

/// Who an operation is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    /// Anybody: what registers and signs in.
    Anybody,
    /// Whoever is signed in.
    SignedIn,
    /// Everybody of the store's organization.
    Member,
    /// Owners and admins of the store's organization.
    Manager,
    /// People with the platform role.
    Ops,
    /// Anybody at the store's own hostname; on the platform's hosts only members of the store.
    Shopper,
}

/// Which store a case is tried on.
#[derive(Debug, Clone, Copy)]
enum Stage {
    /// Without a database.
    Pending,
    /// Served.
    Active,
    /// Its run has failed.
    Failed,
}

/// An operation, whom it is for, and what the right person gets.
struct Case {
    operation: &'static str,
    who: Who,
    stage: Stage,
    status: u16,
}

const fn case(operation: &'static str, who: Who, status: u16) -> Case {
    on(Stage::Active, operation, who, status)
}

const fn on(stage: Stage, operation: &'static str, who: Who, status: u16) -> Case {
    Case { operation, who, stage, status }
}

/// In an order in which the right people can do all of it.
const CASES: &[Case] = &[
    case("auth_register", Who::Anybody, 201),
    case("auth_login", Who::Anybody, 200),
    case("auth_refresh", Who::Anybody, 200),
    case("auth_me", Who::SignedIn, 200),
    case("organization_member_list", Who::Manager, 200),
    case("store_list", Who::SignedIn, 200),
    case("store_create", Who::SignedIn, 201),
    case("store_get", Who::Member, 200),
    case("store_update", Who::Manager, 200),
    case("products_import", Who::Member, 200),
    case("provisioning_get", Who::Member, 200),
    case("provisioning_watch", Who::Member, 200),
    on(Stage::Pending, "database_connect", Who::Manager, 202),
    // The store's database is a managed one.
    case("database_credentials_replace", Who::Manager, 409),
    case("database_test", Who::SignedIn, 200),
    case("store_database_test", Who::Manager, 200),
    on(Stage::Failed, "provisioning_retry", Who::Manager, 202),
    on(Stage::Failed, "provisioning_cancel", Who::Manager, 202),
    // Nobody has an app at Supabase here; its own tests go on from where these end.
    case("supabase_get", Who::Member, 200),
    case("supabase_authorize", Who::Manager, 503),
    case("supabase_callback", Who::Anybody, 400),
    case("supabase_complete", Who::Manager, 503),
    case("supabase_project_list", Who::Manager, 503),
    case("supabase_project_resume", Who::Manager, 503),
    case("supabase_connect", Who::Manager, 503),
    case("supabase_disconnect", Who::Manager, 204),
    case("credit_balance", Who::Member, 200),
    case("credit_transaction_list", Who::Member, 200),
    case("credit_quote", Who::Member, 200),
    case("credit_price_list", Who::SignedIn, 200),
    case("credit_charge_price_list", Who::SignedIn, 200),
    case("credit_statement", Who::Member, 200),
    case("credit_allocation", Who::Member, 200),
    case("credit_budget_list", Who::Member, 200),
    case("credit_budget_set", Who::Manager, 200),
    case("credit_budget_remove", Who::Manager, 204),
    case("credit_alerts_set", Who::Manager, 204),
    case("credit_alerts_get", Who::Member, 200),
    case("credit_spend", Who::Member, 201),
    case("credit_hold_create", Who::Member, 201),
    case("credit_hold_list", Who::Member, 200),
    case("credit_hold_get", Who::Member, 200),
    case("credit_hold_capture", Who::Member, 200),
    case("credit_hold_void", Who::Member, 200),
    case("credit_usage", Who::Member, 200),
    case("ops_charge_price_list", Who::Ops, 200),
    case("ops_charge_price_set", Who::Ops, 201),
    case("ops_charges_waive", Who::Ops, 200),
    case("ops_credit_price_list", Who::Ops, 200),
    case("ops_credit_price_set", Who::Ops, 201),
    case("ops_credit_pack_list", Who::Ops, 200),
    case("webhook_endpoint_create", Who::Manager, 201),
    case("webhook_endpoint_list", Who::Manager, 200),
    case("webhook_endpoint_get", Who::Manager, 200),
    case("webhook_endpoint_update", Who::Manager, 200),
    case("webhook_secret_rotate", Who::Manager, 200),
    case("webhook_test_send", Who::Manager, 202),
    case("webhook_delivery_list", Who::Manager, 200),
    case("webhook_delivery_get", Who::Manager, 200),
    case("webhook_delivery_resend", Who::Manager, 202),
    case("webhook_resend_since", Who::Manager, 202),
    case("webhook_endpoint_delete", Who::Manager, 204),
    case("credit_payment_method_setup", Who::Manager, 201),
    case("credit_payment_method_set", Who::Manager, 200),
    case("credit_payment_method_get", Who::Member, 200),
    case("credit_top_up_set", Who::Manager, 200),
    case("credit_top_up_get", Who::Member, 200),
    case("credit_top_up_remove", Who::Manager, 204),
    case("credit_payment_method_remove", Who::Manager, 204),
    case("credit_pack_list", Who::SignedIn, 200),
    case("credit_purchase_create", Who::Manager, 201),
    case("credit_purchase_list", Who::Member, 200),
    case("credit_purchase_get", Who::Member, 200),
    case("credit_purchase_return", Who::Anybody, 200),
    case("stripe_webhook", Who::Anybody, 200),
    case("ops_purchase_list", Who::Ops, 200),
    case("ops_purchase_refund", Who::Ops, 201),
    case("ops_payments_reconcile", Who::Ops, 200),
    case("ops_reconciliation_list", Who::Ops, 200),
    case("ops_payment_difference_list", Who::Ops, 200),
    case("ops_payment_difference_note", Who::Ops, 200),
    case("ops_payment_event_list", Who::Ops, 200),
    case("ops_payment_event_retry", Who::Ops, 200),
    case("ops_credit_pack_set", Who::Ops, 201),
    case("ops_credit_grant", Who::Ops, 201),
    case("ops_credit_verify", Who::Ops, 200),
    case("ops_server_list", Who::Ops, 200),
    case("ops_server_add", Who::Ops, 201),
    case("ops_server_update", Who::Ops, 200),
    case("ops_server_drain", Who::Ops, 200),
    case("ops_server_activate", Who::Ops, 200),
    case("ops_node_list", Who::Ops, 200),
    case("ops_node_forget", Who::Ops, 200),
    case("ops_admin_grant", Who::Ops, 200),
    case("ops_admin_revoke", Who::Ops, 200),
    case("ops_store_list", Who::Ops, 200),
    case("ops_store_get", Who::Ops, 200),
    case("ops_host_explain", Who::Ops, 200),
    case("ops_doctor", Who::Ops, 200),
    case("ops_store_suspend", Who::Ops, 200),
    case("ops_store_resume", Who::Ops, 200),
    case("storefront_store_get", Who::Shopper, 200),
    case("storefront_product_list", Who::Shopper, 200),
    case("storefront_product_get", Who::Shopper, 200),
    case("storefront_category_list", Who::Shopper, 200),
    case("storefront_category_get", Who::Shopper, 200),
    case("storefront_page_list", Who::Shopper, 200),
    case("storefront_page_get", Who::Shopper, 200),
    case("storefront_redirect_get", Who::Shopper, 200),
    case("storefront_cart_create", Who::Shopper, 201),
    case("storefront_cart_get", Who::Shopper, 200),
    case("storefront_cart_update", Who::Shopper, 200),
    case("storefront_line_add", Who::Shopper, 200),
    case("storefront_line_change", Who::Shopper, 200),
    case("storefront_line_remove", Who::Shopper, 200),
    case("storefront_cart_complete", Who::Shopper, 201),
    case("storefront_order_get", Who::Shopper, 200),
    // Last: it ends the session.
    case("auth_logout", Who::SignedIn, 204),
];

/// An operation as the API's description has it.
#[derive(Clone)]
pub(crate) struct Operation {
    pub(crate) id: String,
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) needs_token: bool,
    /// Whether it reads a JSON body.
    pub(crate) reads_json: bool,
    /// The names of its query parameters.
    pub(crate) query: Vec<String>,
}

pub(crate) fn operations() -> Vec<Operation> {
    let document = serde_json::to_value(control_plane::http::openapi::document()).unwrap();
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let Ok(method) = method.to_uppercase().parse::<Method>() else { continue };
            let Some(id) = operation["operationId"].as_str() else { continue };
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            let query = parameters
                .filter(|parameter| parameter["in"] == "query")
                .map(|parameter| text(&parameter["name"]).to_owned())
                .collect();
            operations.push(Operation {
                id: id.to_owned(),
                reads_json: operation["requestBody"]["content"].get("application/json").is_some(),
                query,
                method,
                path: path.clone(),
                needs_token: operation["security"].as_array().is_some_and(|rules| {
                    !rules.iter().any(|rule| rule.as_object().is_some_and(serde_json::Map::is_empty))
                }),
            });
        }
    }
    operations
}

fn operation(id: &str) -> Operation {
    operations().into_iter().find(|operation| operation.id == id).unwrap_or_else(|| panic!("no operation {id}"))
}

/// Somebody's cart with a line, an order, and what reaches them.
struct Shopping {
    cart: Cart,
    line: String,
    order: Cart,
    order_id: String,
    order_token: String,
}

/// One platform with everything that a case may name.
struct Scene {
    app: TestApp,
    owner: Owner,
    pending: Value,
    active: Value,
    failed: Value,
    variant: String,
    other_variant: String,
    /// Two holds of the active store.
    holds: [String; 2],
    /// A webhook endpoint, and a delivery of it.
    endpoint: [String; 2],
    receiver: Receiver,
    provider: TestPayments,
    /// A pack, and a purchase of it that is paid.
    pack: Value,
    purchase: Value,
    session: String,
    /// The card that it was paid with, and that pays for top-ups.
    card: String,
    /// Something that the books do not agree on.
    difference: ReconDifferenceId,
    /// A process that has ended.
    node: i32,
    /// It lives as long as the store that failed to connect to it.
    _brought: TestDatabase,
}

impl Scene {
    async fn set() -> Self {
        let (provider, arguments) = provider().await;
        let app = TestApp::start_with(TestAppOptions { arguments, ..TestAppOptions::default() }).await;
        app.disguise_servers().await;
        let owner = app.owner("ada").await;
        let active = app.active_store(&owner, "adas-tea").await;
        let pending = owner.create_store("pending").await.expect_status(201);
        let failed = owner.create_store("failed").await.expect_status(201);
        let brought = app.cluster.brought().await;
        let url = brought.url().replace(&brought.password(), "not-the-password");
        owner.connect(&failed, json!({ "engine": "postgresql", "connectionString": url })).await.expect_status(202);
        assert_eq!(app.run_ended(&owner, &failed).await["state"], "failed");
        let shop = app.storefront_of(&active);
        let variant = variant_of(&shop, "harbour-breakfast", 0).await;
        let other_variant = variant_of(&shop, "night-orchard", 0).await;
        sqlx::query(
            "insert into tenantry.redirects (from_path, to_path, code, created_at) values ('/old', '/new', 301, now())",
        )
        .execute(&mut app.store_database(&active).await)
        .await
        .unwrap();
        give(&app, &active, 1000).await;
        let hold = async |key: &str| {
            let body = json!({ "storeId": active["id"], "amount": 10 });
            let held = owner.api.with("idempotency-key", key).post("/api/credits/holds", body).await;
            text(&held.expect_status(201)["holdId"]).to_owned()
        };
        let holds = [hold("scene-1").await, hold("scene-2").await];
        let receiver = Receiver::start().await;
        let made =
            owner.api.post("/api/webhooks/endpoints", json!({ "url": receiver.url("/") })).await.expect_status(201);
        let endpoint = text(&made["id"]).to_owned();
        let test = owner.api.send(Method::POST, &format!("/api/webhooks/endpoints/{endpoint}/test"), None).await;
        let endpoint = [endpoint, text(&test.expect_status(202)["id"]).to_owned()];
        let pack = owner.api.get("/api/credits/packs").await.expect_status(200)["data"][0]["id"].clone();
        let ordered = owner
            .api
            .with("idempotency-key", "scene")
            .post("/api/credits/purchase", json!({ "packId": pack, "saveCard": true }))
            .await;
        let ordered = ordered.expect_status(201);
        let session = text(&ordered["checkoutUrl"]).rsplit('/').next().unwrap().to_owned();
        provider.checkout(&session, Checkout::Pay).unwrap();
        let purchase = ordered["purchase"]["id"].clone();
        let page = format!("/api/credits/purchases/{}/success?session_id={session}", text(&purchase));
        assert_eq!(app.api().get(&page).await.status, 200);
        let rule = json!({ "threshold": 1, "packId": pack, "monthlyCapMinor": 1_000_000 });
        owner.api.send(Method::PUT, "/api/credits/top-up", Some(rule)).await.expect_status(200);
        let card = text(&provider.objects("payment_method")[0]["id"]).to_owned();
        let difference = ReconDifferenceId::new(app.clock.now());
        sqlx::query("insert into recon_differences (id, kind, external_ref, created_at) values ($1, 'missing_here', 'ch_scene', now())")
            .bind(difference.as_uuid())
            .execute(&mut app.master().await)
            .await
            .unwrap();
        let node = sqlx::query_scalar(
            "insert into nodes (host, process, started_at, renewed_at, expires_at)
             values ('elsewhere', 'gone', now(), now() - interval '1 hour', now() + interval '1 hour') returning id",
        )
        .fetch_one(&mut app.master().await)
        .await
        .unwrap();
        Self {
            node,
            provider,
            pack,
            purchase,
            session,
            card,
            difference,
            app,
            owner,
            pending,
            active,
            failed,
            variant,
            other_variant,
            holds,
            endpoint,
            receiver,
            _brought: brought,
        }
    }

    fn store(&self, stage: Stage) -> &Value {
        match stage {
            Stage::Pending => &self.pending,
            Stage::Active => &self.active,
            Stage::Failed => &self.failed,
        }
    }

    async fn shopping(&self) -> Shopping {
        let shop = self.app.storefront_of(&self.active);
        let cart = Cart::with(&shop, &self.variant, 1).await;
        let line = text(&cart.get().await.expect_status(200)["lines"][0]["id"]).to_owned();
        let order = Cart::with(&shop, &self.variant, 1).await;
        let placed = order.complete("scene", checkout_body()).await.expect_status(201);
        let (order_id, order_token) = (text(&placed["id"]).to_owned(), text(&placed["orderToken"]).to_owned());
        Shopping { cart, line, order, order_id, order_token }
    }

    /// A sound request for the case, sent by this client.
    async fn ask(&self, case: &Case, client: &Client, shopping: Option<&Shopping>) -> Response {
        let operation = operation(case.operation);
        let store = text(&self.store(case.stage)["id"]);
        let mut path = operation.path.replace("{id}", store).replace("{store}", store).replace("{server}", "local");
        path = path.replace("{node}", &self.node.to_string());
        path = path
            .replace("{ref}", "abcdefghijklmnopqrst")
            .replace("{product}", "harbour-breakfast")
            .replace("{handle}", "tea")
            .replace("{slug}", "about");
        let mut client = client.clone();
        if let Some(Shopping { cart, line, order_id, order_token, .. }) = shopping {
            path = path.replace("{cart}", &cart.id).replace("{line}", line).replace("{order}", order_id);
            client = client.with("x-cart-token", &cart.token).with("x-order-token", order_token);
        }
        let body = match case.operation {
            "auth_register" => Some(
                json!({ "email": "new@example.com", "password": "correct horse", "firstName": "N", "lastName": "E" }),
            ),
            "auth_login" => Some(json!({ "email": self.owner.email, "password": self.owner.password })),
            "auth_refresh" => Some(json!({ "refreshToken": self.owner.registered["tokens"]["refreshToken"] })),
            "store_create" => Some(json!({ "name": "Another" })),
            "store_update" => Some(json!({ "name": "Renamed", "settings": { "locale": "de" } })),
            "database_connect" => Some(json!({ "managed": true })),
            "database_credentials_replace" => Some(json!({ "connectionString": "postgres://u:p@127.0.0.1:1/d" })),
            "database_test" => Some(json!({ "connectionString": "postgres://u:p@127.0.0.1:1/d" })),
            "supabase_complete" => Some(json!({ "completionCode": "guessed" })),
            "supabase_connect" => Some(json!({ "projectRef": "abcdefghijklmnopqrst" })),
            "ops_admin_grant" | "ops_admin_revoke" => Some(json!({ "email": self.owner.email })),
            "ops_server_add" => Some(json!({ "name": "second", "url": self.app.cluster.url("postgres") })),
            "ops_server_update" => Some(json!({ "maxStores": 900 })),
            "ops_store_suspend" => Some(json!({ "reason": "they asked" })),
            "credit_budget_set" => Some(json!({ "storeId": store, "monthlyAmount": 1000, "isHard": false })),
            "credit_alerts_set" => Some(json!({ "lowBalance": 5 })),
            "credit_quote" | "credit_spend" | "credit_hold_create" => Some(json!({ "storeId": store, "amount": 1 })),
            "credit_hold_capture" => Some(json!({ "amount": 1 })),
            "webhook_endpoint_create" => {
                Some(json!({ "organizationId": self.owner.organization_id(), "url": self.receiver.url("/second") }))
            }
            "webhook_endpoint_update" => Some(json!({ "description": "ours" })),
            "webhook_secret_rotate" => Some(json!({})),
            "webhook_resend_since" => Some(json!({ "since": self.app.clock.now() })),
            "credit_purchase_create" => {
                Some(json!({ "packId": self.pack, "organizationId": self.owner.organization_id() }))
            }
            "credit_payment_method_set" => Some(json!({ "paymentMethod": self.card })),
            "credit_top_up_set" => Some(json!({ "threshold": 1, "packId": self.pack, "monthlyCapMinor": 1_000_000 })),
            "ops_purchase_refund" => Some(json!({})),
            "ops_credit_grant" => Some(json!({ "storeId": store, "amount": 5, "reason": "a gift" })),
            "ops_charges_waive" => Some(json!({ "storeId": store, "reason": "a gift" })),
            "ops_credit_price_set" => Some(json!({ "service": "fresh", "name": "Fresh", "unit": "one", "credits": 1 })),
            "ops_credit_pack_set" => {
                Some(json!({ "code": "fresh", "name": "Fresh", "credits": 1, "priceMinor": 100, "currency": "EUR" }))
            }
            "ops_payment_difference_note" => Some(json!({ "note": "They know." })),
            "ops_charge_price_set" => Some(json!({ "service": "store-day", "amount": 1 })),
            "storefront_cart_update" => Some(json!({ "email": "sam@example.com" })),
            "storefront_line_add" => Some(json!({ "variantId": self.other_variant, "quantity": 1 })),
            "storefront_line_change" => Some(json!({ "quantity": 2 })),
            "storefront_cart_complete" => Some(checkout_body()),
            _ => None,
        };
        path = path.replace("{endpoint}", &self.endpoint[0]).replace("{delivery}", &self.endpoint[1]);
        match case.operation {
            "credit_balance"
            | "credit_transaction_list"
            | "credit_budget_list"
            | "credit_budget_set"
            | "credit_alerts_set"
            | "credit_alerts_get"
            | "credit_hold_list"
            | "credit_payment_method_setup"
            | "credit_payment_method_set"
            | "credit_payment_method_get"
            | "credit_payment_method_remove"
            | "credit_top_up_set"
            | "credit_top_up_get"
            | "credit_top_up_remove"
            | "webhook_endpoint_list"
            | "credit_purchase_list" => {
                path.push_str(&format!("?organizationId={}", self.owner.organization_id()));
            }
            "credit_budget_remove" => {
                path.push_str(&format!("?organizationId={}&storeId={store}", self.owner.organization_id()));
            }
            "credit_statement" | "credit_allocation" => path.push_str(&format!(
                "?organizationId={}&from=2026-01-01T00:00:00Z&until=2027-01-01T00:00:00Z",
                self.owner.organization_id()
            )),
            "organization_member_list" => path = path.replace("{organization}", self.owner.organization_id()),
            "credit_hold_get" | "credit_hold_capture" => path = path.replace("{hold}", &self.holds[0]),
            "credit_hold_void" => path = path.replace("{hold}", &self.holds[1]),
            "credit_usage" => path.push_str(&format!("?storeId={store}")),
            "credit_purchase_get" => path = path.replace("{purchase}", text(&self.purchase)),
            "credit_purchase_return" => {
                path = path.replace("{purchase}", text(&self.purchase));
                path.push_str(&format!("?session_id={}", self.session));
            }
            "ops_purchase_refund" => {
                path = path.replace("{purchase}", text(&self.purchase));
                client = client.with("idempotency-key", "a-key");
            }
            "ops_purchase_list" => path.push_str(&format!("?organizationId={}", self.owner.organization_id())),
            "ops_payment_difference_note" => path = path.replace("{difference}", &self.difference.to_string()),
            "ops_payment_event_retry" => path = path.replace("{event}", text(&self.provider.events()[0]["id"])),
            "stripe_webhook" => {
                let (body, signature) = self.provider.signed(&self.provider.events()[0]);
                let client = client.with("stripe-signature", &signature);
                return client.send_bytes(operation.method, &path, "application/json", body).await;
            }
            "ops_host_explain" => path.push_str("?host=adas-tea.stores.localhost"),
            "storefront_redirect_get" => path.push_str("?path=/old"),
            "storefront_cart_complete" => client = client.with("idempotency-key", "a-key"),
            "products_import" => {
                let file = "Handle,Title,Variant Price\ncup,Cup,1.00\n";
                return client.send_bytes(operation.method, &path, "text/csv", file).await;
            }
            _ => {}
        }
        if case.operation.starts_with("credit_") && operation.method == Method::POST {
            client = client.with("idempotency-key", case.operation);
        }
        assert!(!path.contains('{'), "the case of {} does not fill in {path}", case.operation);
        client.send(operation.method, &path, body).await
    }
}

fn cases(who: &[Who]) -> impl Iterator<Item = &'static Case> {
    CASES.iter().filter(move |case| who.contains(&case.who))
}

#[test]
fn every_operation_has_one_case_and_every_case_an_operation() {
    let operations = operations();
    let known: BTreeSet<&str> = operations.iter().map(|operation| operation.id.as_str()).collect();
    let cases: BTreeSet<&str> = CASES.iter().map(|case| case.operation).collect();
    assert!(operations.len() >= 40, "the document was not read: {} operations", operations.len());
    assert_eq!(known.len(), operations.len(), "two operations have one id");
    assert_eq!(cases.len(), CASES.len(), "an operation has two cases");
    assert_eq!(known, cases);
}

#[test]
fn the_document_says_of_each_operation_whether_it_needs_a_token() {
    for operation in operations() {
        let case = CASES.iter().find(|case| case.operation == operation.id).unwrap();
        let is_public = matches!(case.who, Who::Anybody | Who::Shopper);
        assert_eq!(operation.needs_token, !is_public, "{}", operation.id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_living_token_every_operation_that_needs_one_answers_401() {
    let scene = Scene::set().await;
    let owner = &scene.owner;
    let shopping = scene.shopping().await;
    let token = text(&owner.registered["tokens"]["accessToken"]);
    let claims = token.split('.').nth(1).unwrap();
    let unsigned = format!("Bearer eyJhbGciOiJub25lIiwidHlwIjoiYXQrand0In0.{claims}.");
    let changed = format!("Bearer {}x", &token[..token.len() - 1]);
    let refresh = format!("Bearer {}", text(&owner.registered["tokens"]["refreshToken"]));
    let good = format!("Bearer {token}");
    let bad = ["", "Bearer", "Bearer ", "Bearer garbage", "Basic YWRhOmFkYQ==", token, &unsigned, &changed, &refresh];
    let secured = [Who::SignedIn, Who::Member, Who::Manager, Who::Ops, Who::Shopper];
    let store = text(&scene.active["id"]);
    let platform = scene.app.api().with("x-store-id", store);
    for case in cases(&secured) {
        let ask = |client: Client| {
            let (scene, shopping) = (&scene, &shopping);
            async move { scene.ask(case, &client, Some(shopping)).await }
        };
        // On stores that differ from the active one, the header would contradict the path.
        let client = if matches!(case.stage, Stage::Active) { platform.clone() } else { scene.app.api() };
        ask(client.clone()).await.expect_problem(401, "unauthenticated");
        for value in bad {
            ask(client.with("authorization", value)).await.expect_problem(401, "unauthenticated");
        }
    }
    let twice = format!(
        "GET /api/auth/me HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: {good}\r\nAuthorization: {good}\r\n\r\n"
    );
    assert_eq!(send_raw(scene.app.address, &twice).await.0, 401);
    scene.app.api().with("authorization", &good).get("/api/auth/me").await.expect_status(200);
    scene.app.clock.advance(Duration::seconds(901));
    for case in cases(&secured) {
        let client = if matches!(case.stage, Stage::Active) { platform.clone() } else { scene.app.api() };
        let expired = client.with("authorization", &good);
        scene.ask(case, &expired, Some(&shopping)).await.expect_problem(401, "unauthenticated");
    }
    let unchanged = owner.login(json!({})).await.expect_status(200);
    let api = scene.app.api().with_token(text(&unchanged["tokens"]["accessToken"]));
    let store = api.get(&store_path(&scene.active, "")).await.expect_status(200);
    assert_eq!((&store["name"], &store["status"]), (&json!("adas-tea"), &json!("active")));
    shopping.cart.get().await.expect_status(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_yours_is_not_there() {
    let scene = Scene::set().await;
    let shopping = scene.shopping().await;
    let stranger = scene.app.owner("eve").await;
    stranger.create_store("eves").await.expect_status(201);
    for case in cases(&[Who::Member, Who::Manager, Who::Ops]) {
        scene.ask(case, &stranger.api, None).await.expect_problem(404, "not-found");
    }
    // Owning a store is no platform role, not even for that store.
    for case in cases(&[Who::Ops]) {
        scene.ask(case, &scene.owner.api, None).await.expect_problem(404, "not-found");
    }
    let naming_it = stranger.api.with("x-store-id", text(&scene.active["id"]));
    let older = stranger.api.with("x-tenant-id", text(&scene.active["id"]));
    for case in cases(&[Who::Shopper]) {
        scene.ask(case, &naming_it, Some(&shopping)).await.expect_problem(404, "not-found");
        scene.ask(case, &older, Some(&shopping)).await.expect_problem(404, "not-found");
    }
    // A stranger's list holds their own store alone, and nothing of the other was touched.
    let list = stranger.api.get("/api/stores").await.expect_status(200);
    assert_eq!(list["data"].as_array().map(Vec::len), Some(1), "{list}");
    let store = scene.owner.api.get(&store_path(&scene.active, "")).await.expect_status(200);
    assert_eq!((&store["name"], &store["status"]), (&json!("adas-tea"), &json!("active")));
    assert_eq!(store["counts"]["orders"], 1);
    let lines = shopping.cart.get().await.expect_status(200);
    assert_eq!(lines["lines"][0]["quantity"], 1);
    let pending = scene.owner.api.get(&store_path(&scene.pending, "")).await.expect_status(200);
    assert_eq!(pending["status"], "pending_database");
}

#[tokio::test(flavor = "multi_thread")]
async fn staff_may_look_and_import_but_not_manage() {
    let scene = Scene::set().await;
    let staff = scene.app.owner("sam").await;
    join(&scene.app, &scene.owner, &staff, "staff").await;
    for case in cases(&[Who::Manager]) {
        scene.ask(case, &staff.api, None).await.expect_problem(403, "forbidden");
    }
    let body = json!({ "name": "Mine", "organizationId": scene.owner.organization_id() });
    staff.api.post("/api/stores/create", body).await.expect_problem(403, "forbidden");
    for case in cases(&[Who::Member]) {
        let answer = scene.ask(case, &staff.api, None).await;
        assert_eq!(answer.status.as_u16(), case.status, "{}: {}", case.operation, answer.text());
    }
    for case in cases(&[Who::Ops]) {
        scene.ask(case, &staff.api, None).await.expect_problem(404, "not-found");
    }
    // An admin of the organization may what its owner may.
    let admin = scene.app.owner("max").await;
    join(&scene.app, &scene.owner, &admin, "admin").await;
    admin.api.patch(&store_path(&scene.active, ""), json!({ "name": "By Max" })).await.expect_status(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_right_person_may_do_every_operation() {
    let scene = Scene::set().await;
    let ops = scene.app.admin().await;
    let shop = scene.app.storefront_of(&scene.active);
    let shopping = scene.shopping().await;
    for case in CASES {
        let (client, shopping) = match case.who {
            Who::Anybody => (scene.app.api(), None),
            Who::SignedIn | Who::Member | Who::Manager => (scene.owner.api.clone(), None),
            Who::Ops => (ops.api.clone(), None),
            Who::Shopper => (shop.clone(), Some(&shopping)),
        };
        let answer = scene.ask(case, &client, shopping).await;
        assert_eq!(answer.status.as_u16(), case.status, "{}: {}", case.operation, answer.text());
        described::check(case.operation, &answer);
    }
    scene.owner.api.get("/api/auth/me").await.expect_problem(401, "unauthenticated");
    let again = scene.owner.login(json!({})).await.expect_status(200);
    let mut owner = scene.owner.clone();
    owner.api = scene.app.api().with_token(text(&again["tokens"]["accessToken"]));
    assert_eq!(scene.app.run_ended(&owner, &scene.pending).await["state"], "succeeded");
    assert_eq!(scene.app.run_ended(&owner, &scene.failed).await["state"], "cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_may_shop_on_the_platforms_host_by_naming_the_store() {
    let scene = Scene::set().await;
    let staff = scene.app.owner("sam").await;
    join(&scene.app, &scene.owner, &staff, "staff").await;
    let shopping = scene.shopping().await;
    let client = staff.api.with("x-store-id", text(&scene.active["id"]));
    for case in cases(&[Who::Shopper]) {
        let answer = scene.ask(case, &client, Some(&shopping)).await;
        assert_eq!(answer.status.as_u16(), case.status, "{}: {}", case.operation, answer.text());
        let cache = answer.header("cache-control");
        assert!(cache.starts_with("private") || case.operation.contains("redirect"), "{}: {cache}", case.operation);
    }
    // The token of a cart or an order is needed beside the credential.
    let naked = staff.api.with("x-store-id", text(&scene.active["id"])).with("x-order-token", "guess");
    naked.get(&format!("/store/v1/orders/{}", shopping.order_id)).await.expect_problem(404, "not-found");
    naked.get(&shopping.order.path("")).await.expect_field(400, "missing-token", "X-Cart-Token");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logged_out_session_is_over_at_once_and_no_other() {
    let app = TestApp::start().await;
    let owner = app.owner("ada").await;
    let other = owner.login(json!({})).await.expect_status(200);
    let other = app.api().with_token(text(&other["tokens"]["accessToken"]));
    owner.api.send(Method::POST, "/api/auth/logout", None).await.expect_status(204);
    owner.api.get("/api/auth/me").await.expect_problem(401, "unauthenticated");
    owner.api.send(Method::POST, "/api/auth/logout", None).await.expect_problem(401, "unauthenticated");
    other.get("/api/auth/me").await.expect_status(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_persons_tokens_are_dead() {
    let app = TestApp::start().await;
    let owner = app.owner("ada").await;
    let user: UserId = text(&owner.registered["user"]["id"]).parse().unwrap();
    sqlx::query("update users set is_active = false where id = $1")
        .bind(user.as_uuid())
        .execute(&mut app.master().await)
        .await
        .unwrap();
    owner.api.get("/api/auth/me").await.expect_problem(401, "unauthenticated");
    let body = json!({ "refreshToken": owner.registered["tokens"]["refreshToken"] });
    app.api().post("/api/auth/refresh", body).await.expect_problem(401, "invalid-refresh-token");
    owner.login(json!({})).await.expect_problem(401, "invalid-credentials");
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_who_left_the_organization_is_a_stranger_at_once() {
    let app = TestApp::start().await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("adas-tea").await.expect_status(201);
    let member = app.owner("sam").await;
    join(&app, &owner, &member, "admin").await;
    let login = member.login(json!({ "storeId": store["id"] })).await.expect_status(200);
    let by_store_token = app.api().with_token(text(&login["tokens"]["accessToken"]));
    member.api.get(&store_path(&store, "")).await.expect_status(200);
    sqlx::query("delete from organization_members where role = 'admin'")
        .execute(&mut app.master().await)
        .await
        .unwrap();
    member.api.get(&store_path(&store, "")).await.expect_problem(404, "not-found");
    by_store_token.get(&store_path(&store, "")).await.expect_problem(404, "not-found");
    by_store_token.get("/store/v1/store").await.expect_problem(404, "not-found");
}
