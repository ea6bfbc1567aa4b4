//! What a buyer sees: a Checkout page that says on every line that it is a test.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::Value;

use super::Shared;
use super::api::id_of;
use super::form::Params;
use super::world::{Checkout, text};

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:34rem;margin:3rem auto;padding:0 1rem}\
    .test{background:#fd3;color:#000;padding:.5rem 1rem;font-weight:700}button{font:inherit;display:block;width:100%;\
    margin:.5rem 0;padding:.6rem}.bad{color:#a00}";

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

fn html(status: StatusCode, title: &str, inner: &str) -> Response {
    let body = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>TEST {title}</title><style>{STYLE}</style><p class=\"test\">TEST MODE: no money moves here</p>{inner}</html>"
    );
    let policy = HeaderValue::from_static(
        "default-src 'none'; style-src 'unsafe-inline'; form-action *; frame-ancestors 'none'",
    );
    let kind = HeaderValue::from_static("text/html; charset=utf-8");
    (status, [(header::CONTENT_TYPE, kind), (header::CONTENT_SECURITY_POLICY, policy)], body).into_response()
}

fn price(session: &Value) -> String {
    let amount = session["amount_total"].as_i64().unwrap_or_default();
    format!("{}.{:02} {}", amount / 100, amount % 100, text(&session["currency"]).to_uppercase())
}

pub(super) async fn index(State(shared): State<Arc<Shared>>) -> Response {
    let world = shared.world();
    let mut list = String::from("<h1>Test payments</h1><ul>");
    for session in world.all("checkout.session").rev().take(50) {
        let (id, status) = (escape(id_of(session)), escape(text(&session["status"])));
        let intent = world.find(text(&session["payment_intent"]));
        let is_late = intent.is_some_and(|intent| intent["status"] == "processing");
        let late = if is_late { ": its money is on its way, let it arrive or fail" } else { "" };
        let _ = write!(
            list,
            "<li><a href=\"/c/pay/{id}\">{}</a>, {}, {status}{late}</li>",
            escape(text(&session["test"]["name"])),
            price(session)
        );
    }
    html(StatusCode::OK, "payments", &format!("{list}</ul>"))
}

pub(super) async fn show(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    let world = shared.world();
    let Ok(session) = world.need("checkout.session", &id) else {
        return html(StatusCode::NOT_FOUND, "Checkout", "<h1>There is no such Checkout Session</h1>");
    };
    let mut inner =
        format!("<h1>{}</h1><p>To pay: <b>{}</b></p>", escape(text(&session["test"]["name"])), price(&session));
    let intent = world.find(text(&session["payment_intent"])).cloned().unwrap_or_default();
    if session["status"] != "open" {
        let _ = write!(inner, "<p>This session is {}.</p>", escape(text(&session["status"])));
        if intent["status"] == "processing" {
            inner.push_str("<p>Its money is on its way.</p><form method=\"post\">");
            buttons_into(&mut inner, &[("arrive", "Let the money arrive"), ("return", "Let the payment fail")]);
            inner.push_str("</form>");
        }
        return html(StatusCode::OK, "Checkout", &inner);
    }
    if let Some(message) = intent["last_payment_error"]["message"].as_str() {
        let _ = write!(inner, "<p class=\"bad\">{}</p>", escape(message));
    }
    let buttons: &[(&str, &str)] = if intent["status"] == "requires_action" {
        &[("authenticate", "Authenticate with the bank"), ("refuse", "Fail to authenticate")]
    } else {
        &[
            ("pay", "Pay with 4242 4242 4242 4242"),
            ("decline", "Pay with a card that is declined"),
            ("need-authentication", "Pay with a card that needs authentication"),
            ("pay-later", "Pay by a method whose money comes later"),
        ]
    };
    inner.push_str("<form method=\"post\">");
    buttons_into(&mut inner, buttons);
    buttons_into(&mut inner, &[("abandon", "Go away without paying")]);
    inner.push_str("</form>");
    html(StatusCode::OK, "Checkout", &inner)
}

fn buttons_into(inner: &mut String, buttons: &[(&str, &str)]) {
    for (name, label) in buttons {
        let _ = write!(inner, "<button name=\"do\" value=\"{name}\">{label}</button>");
    }
}

/// Ends a payment whose money comes later, and shows what became of it.
fn settle(shared: &Arc<Shared>, id: &str, is_paid: bool) -> Response {
    if let Err(error) = shared.act(|world| world.settle(id, is_paid)) {
        return html(StatusCode::CONFLICT, "Checkout", &format!("<h1>{}</h1>", escape(&error.message)));
    }
    let said = if is_paid { "The money has arrived" } else { "The payment has failed" };
    html(StatusCode::OK, "Checkout", &format!("<h1>{said}</h1><p><a href=\"/\">All payments</a></p>"))
}

pub(super) async fn press(State(shared): State<Arc<Shared>>, Path(id): Path<String>, body: Bytes) -> Response {
    let wanted = Params::parse(&String::from_utf8_lossy(&body)).take("do").unwrap_or_default();
    let action = match wanted.as_str() {
        "pay" => Checkout::Pay,
        "decline" => Checkout::Decline,
        "need-authentication" => Checkout::NeedAuthentication,
        "authenticate" => Checkout::Authenticate,
        "refuse" => Checkout::FailAuthentication,
        "pay-later" => Checkout::PayLater,
        "abandon" => Checkout::Abandon,
        "arrive" => return settle(&shared, &id, true),
        "return" => return settle(&shared, &id, false),
        _ => return html(StatusCode::BAD_REQUEST, "Checkout", "<h1>There is no such button</h1>"),
    };
    if let Err(error) = shared.act(|world| world.checkout(&id, action)) {
        return html(StatusCode::CONFLICT, "Checkout", &format!("<h1>{}</h1>", escape(&error.message)));
    }
    let session = shared.world().find(&id).cloned().unwrap_or_default();
    let place = match text(&session["status"]) {
        "complete" => text(&session["success_url"]).replace("{CHECKOUT_SESSION_ID}", &id),
        "expired" => text(&session["cancel_url"]).to_owned(),
        _ => format!("/c/pay/{id}"),
    };
    match HeaderValue::from_str(&place) {
        Ok(place) if !place.is_empty() => (StatusCode::SEE_OTHER, [(header::LOCATION, place)]).into_response(),
        _ => html(StatusCode::OK, "Checkout", "<h1>Done</h1>"),
    }
}
