//! What the provider knows, and what happens to it. Objects are kept as the JSON that is answered.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::API_VERSION;
use super::api::ApiError;
use super::form::Params;
use super::webhooks::WebhookFaults;

/// A session is good for a day.
const SESSION_S: i64 = 24 * 3600;
const DISPUTE_FEE: i64 = 1500;

/// What somebody does on the Checkout page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checkout {
    /// Pays with a card that works (4242).
    Pay,
    /// Pays with a card that is declined (0341); the page stays open.
    Decline,
    /// Pays with a card whose bank asks for authentication (3155); the page stays open until that is done.
    NeedAuthentication,
    /// Authenticates, and so pays.
    Authenticate,
    /// Does not manage to authenticate; the page stays open.
    FailAuthentication,
    /// Pays by a method whose money comes later, or does not.
    PayLater,
    /// Goes away; the session expires.
    Abandon,
}

/// What goes wrong with a call that changes something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiFault {
    /// It is refused with this status before it does anything.
    Before(u16),
    /// It is done, but the answer comes so late that nobody waits for it.
    LateAnswer(Duration),
    /// It is done, and answered with 500, also when it is repeated: the outcome is in the objects.
    After500,
}

#[derive(Debug)]
pub(super) struct Event {
    pub(super) body: Value,
    pub(super) attempts: u32,
    pub(super) is_delivered: bool,
}

impl Event {
    pub(super) fn id(&self) -> &str {
        text(&self.body["id"])
    }
}

/// What a key was used for, and what was answered.
#[derive(Debug, Clone)]
pub(super) struct Answered {
    pub(super) fingerprint: String,
    pub(super) status: u16,
    pub(super) body: Value,
}

#[derive(Debug)]
pub(super) struct World {
    base_url: String,
    objects: BTreeMap<String, Vec<Value>>,
    pub(super) events: Vec<Event>,
    pub(super) unsent: Vec<String>,
    pub(super) keys: BTreeMap<String, Answered>,
    pub(super) webhook_url: Option<String>,
    pub(super) webhook_faults: WebhookFaults,
    pub(super) faults: VecDeque<ApiFault>,
    /// Whether it asks for the owner of a card by a status where the owner is not there, as older versions did.
    pub(super) asks_absent_owners: bool,
    pub(super) ahead: Duration,
    pub(super) calls: u64,
    made: u64,
    salt: u128,
}

#[expect(clippy::disallowed_methods, reason = "the provider is a machine of its own, with a clock of its own")]
fn since_epoch() -> Duration {
    std::time::SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A text of an object; empty when it is none.
pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or_default()
}

/// A card as a number or as one of the ready-made ids says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Card {
    Good,
    Declined,
    Authentication,
}

impl Card {
    fn of_number(number: &str) -> Option<Self> {
        match number {
            "4242424242424242" => Some(Self::Good),
            "4000000000000341" => Some(Self::Declined),
            "4000002500003155" => Some(Self::Authentication),
            _ => None,
        }
    }

    fn last4(self) -> &'static str {
        match self {
            Self::Good => "4242",
            Self::Declined => "0341",
            Self::Authentication => "3155",
        }
    }
}

fn card_of_number(number: &str) -> Result<Card, ApiError> {
    Card::of_number(number)
        .ok_or_else(|| ApiError::invalid("card[number]", "Your card number is not one of the test numbers"))
}

impl World {
    pub(super) fn new(base_url: String) -> Self {
        Self {
            base_url,
            objects: BTreeMap::new(),
            events: Vec::new(),
            unsent: Vec::new(),
            keys: BTreeMap::new(),
            webhook_url: None,
            webhook_faults: WebhookFaults::default(),
            faults: VecDeque::new(),
            asks_absent_owners: false,
            ahead: Duration::ZERO,
            calls: 0,
            made: 0,
            salt: since_epoch().as_nanos() ^ u128::from(std::process::id()) << 64,
        }
    }

    pub(super) fn now(&self) -> i64 {
        i64::try_from((since_epoch() + self.ahead).as_secs()).unwrap_or(i64::MAX)
    }

    pub(super) fn id(&mut self, prefix: &str) -> String {
        self.made += 1;
        let digest = Sha256::digest(format!("{}:{}", self.salt, self.made));
        format!("{prefix}_{:06}{}", self.made, &hex::encode(digest)[..18])
    }

    /// What lets a browser act for the object with this id.
    fn client_secret(&mut self, id: &str) -> String {
        format!("{id}_secret_{}", self.id("x"))
    }

    pub(super) fn all(&self, kind: &str) -> impl DoubleEndedIterator<Item = &Value> {
        self.objects.get(kind).into_iter().flatten()
    }

    pub(super) fn find(&self, id: &str) -> Option<&Value> {
        self.objects.values().flatten().find(|object| object["id"] == id)
    }

    pub(super) fn find_mut(&mut self, id: &str) -> Option<&mut Value> {
        self.objects.values_mut().flatten().find(|object| object["id"] == id)
    }

    pub(super) fn forget(&mut self, id: &str) {
        for objects in self.objects.values_mut() {
            objects.retain(|object| object["id"] != id);
        }
        self.events.retain(|event| event.body["data"]["object"]["id"] != id);
    }

    pub(super) fn need(&self, kind: &str, id: &str) -> Result<Value, ApiError> {
        self.all(kind).find(|object| object["id"] == id).cloned().ok_or_else(|| ApiError::no_such(kind, id))
    }

    fn insert(&mut self, object: Value) -> Value {
        let kind = text(&object["object"]).to_owned();
        self.objects.entry(kind).or_default().push(object.clone());
        object
    }

    /// Changes members of an object, and returns it.
    fn set(&mut self, id: &str, members: &Value) -> Value {
        let Some(object) = self.find_mut(id) else { return Value::Null };
        for (name, value) in members.as_object().into_iter().flatten() {
            object[name] = value.clone();
        }
        object.clone()
    }

    fn emit(&mut self, kind: &str, object: &Value) {
        let id = self.id("evt");
        let body = json!({
            "id": id, "object": "event", "api_version": API_VERSION, "created": self.now(), "data": { "object": object },
            "livemode": false, "pending_webhooks": 1, "request": { "id": null, "idempotency_key": null }, "type": kind,
        });
        self.events.push(Event { body, attempts: 0, is_delivered: false });
        self.unsent.push(id);
    }

    /// A movement of the account's money.
    pub(super) fn balance_transaction(
        &mut self,
        kind: &str,
        category: &str,
        source: &str,
        amount: i64,
        fee: i64,
        currency: &str,
    ) -> String {
        let id = self.id("txn");
        let created = self.now();
        self.insert(json!({
            "id": id, "object": "balance_transaction", "amount": amount, "available_on": created, "created": created,
            "currency": currency, "fee": fee, "net": amount - fee, "reporting_category": category, "source": source,
            "status": "available", "type": kind,
        }));
        id
    }

    pub(super) fn customer_create(&mut self, params: &mut Params) -> Value {
        let (email, name, metadata) = (params.take("email"), params.take("name"), params.map("metadata"));
        let (id, created) = (self.id("cus"), self.now());
        let made = self.insert(json!({
            "id": id, "object": "customer", "created": created, "email": email, "name": name, "livemode": false,
            "metadata": metadata, "invoice_settings": { "default_payment_method": null },
        }));
        self.emit("customer.created", &made);
        made
    }

    pub(super) fn payment_method_create(&mut self, params: &mut Params) -> Result<Value, ApiError> {
        if params.need("type")? != "card" {
            return Err(ApiError::invalid("type", "Only cards are known to this test provider"));
        }
        let number = params.need("card[number]")?;
        params.take("card[exp_month]");
        params.take("card[exp_year]");
        params.take("card[cvc]");
        let card = card_of_number(&number)?;
        Ok(self.payment_method(card, None))
    }

    fn payment_method(&mut self, card: Card, customer: Option<&str>) -> Value {
        let (id, created) = (self.id("pm"), self.now());
        self.insert(json!({
            "id": id, "object": "payment_method", "type": "card",
            "card": { "brand": "visa", "last4": card.last4(), "exp_month": 12, "exp_year": 2034, "funding": "credit" },
            "created": created, "customer": customer, "livemode": false, "metadata": {},
            // Not Stripe's: one that was taken from its customer is good for nothing any more.
            "test": { "is_detached": false },
        }))
    }

    pub(super) fn payment_method_attach(&mut self, id: &str, params: &mut Params) -> Result<Value, ApiError> {
        let customer = params.need("customer")?;
        self.need("customer", &customer)?;
        self.may_be_used(&self.need("payment_method", id)?, &customer)?;
        Ok(self.set(id, &json!({ "customer": customer })))
    }

    pub(super) fn payment_method_detach(&mut self, id: &str) -> Result<Value, ApiError> {
        if self.need("payment_method", id)?["customer"].is_null() {
            return Err(ApiError::state(
                "The payment method you provided is not attached to a customer so detachment is impossible.",
            ));
        }
        Ok(self.set(id, &json!({ "customer": null, "test": { "is_detached": true } })))
    }

    /// Whether this customer may pay with it.
    fn may_be_used(&self, method: &Value, customer: &str) -> Result<(), ApiError> {
        if method["test"]["is_detached"] == true {
            return Err(ApiError::state(
                "This PaymentMethod was previously detached from a Customer and may not be used again.",
            ));
        }
        match method["customer"].as_str() {
            Some(owner) if owner != customer => Err(ApiError::state("The PaymentMethod belongs to another Customer.")),
            _ => Ok(()),
        }
    }

    pub(super) fn setup_intent_create(&mut self, params: &mut Params) -> Result<Value, ApiError> {
        let customer = params.need("customer")?;
        self.need("customer", &customer)?;
        let usage = params.take("usage").unwrap_or_else(|| "off_session".to_owned());
        let types = params.list("payment_method_types");
        let (id, created) = (self.id("seti"), self.now());
        let secret = self.client_secret(&id);
        Ok(self.insert(json!({
            "id": id, "object": "setup_intent", "client_secret": secret, "created": created, "customer": customer,
            "livemode": false, "metadata": {}, "payment_method": null, "payment_method_types": types,
            "status": "requires_payment_method", "usage": usage,
        })))
    }

    /// What the form for cards does in a browser: the card becomes the customer's.
    pub(super) fn setup_intent_confirm(&mut self, id: &str, method: &str) -> Result<Value, ApiError> {
        let setup = self.need("setup_intent", id)?;
        if setup["status"] != "requires_payment_method" {
            return Err(ApiError::state("This SetupIntent cannot be confirmed any more."));
        }
        let customer = text(&setup["customer"]).to_owned();
        self.may_be_used(&self.need("payment_method", method)?, &customer)?;
        self.set(method, &json!({ "customer": customer }));
        let setup = self.set(id, &json!({ "payment_method": method, "status": "succeeded" }));
        self.emit("setup_intent.succeeded", &setup);
        Ok(setup)
    }

    /// The same for a card by its number; the payment method.
    pub(super) fn setup_intent_fill_in(&mut self, id: &str, number: &str) -> Result<String, ApiError> {
        let method = self.payment_method(card_of_number(number)?, None);
        let method = text(&method["id"]).to_owned();
        self.setup_intent_confirm(id, &method)?;
        Ok(method)
    }

    pub(super) fn session_create(&mut self, params: &mut Params) -> Result<Value, ApiError> {
        if params.need("mode")? != "payment" {
            return Err(ApiError::invalid("mode", "Only payments are known to this test provider"));
        }
        let success_url = params.need("success_url")?;
        let cancel_url = params.take("cancel_url");
        let customer = params.need("customer")?;
        self.need("customer", &customer)?;
        let quantity =
            params.integer("line_items[0][quantity]")?.ok_or_else(|| ApiError::missing("line_items[0][quantity]"))?;
        let amount = params
            .integer("line_items[0][price_data][unit_amount]")?
            .ok_or_else(|| ApiError::missing("line_items[0][price_data][unit_amount]"))?;
        let currency = params.need("line_items[0][price_data][currency]")?;
        let name = params.need("line_items[0][price_data][product_data][name]")?;
        for known in ["[product_data][tax_code]", "[product_data][description]", "[tax_behavior]"] {
            params.take(&format!("line_items[0][price_data]{known}"));
        }
        if quantity < 1 || amount < 1 {
            return Err(ApiError::invalid("line_items[0]", "This value must be greater than or equal to 1"));
        }
        let reference = params.take("client_reference_id");
        let metadata = params.map("metadata");
        let intent_metadata = params.map("payment_intent_data[metadata]");
        let future_usage = params.take("payment_intent_data[setup_future_usage]");
        let types = params.list("payment_method_types");
        let total = quantity * amount;
        let (id, created) = (self.id("cs_test"), self.now());
        let url = format!("{}/c/pay/{id}", self.base_url);
        Ok(self.insert(json!({
            "id": id, "object": "checkout.session", "amount_subtotal": total, "amount_total": total, "cancel_url": cancel_url,
            "client_reference_id": reference, "created": created, "currency": currency.to_lowercase(), "customer": customer,
            "expires_at": created + SESSION_S, "livemode": false, "metadata": metadata, "mode": "payment",
            "payment_intent": null, "payment_method_types": types, "payment_status": "unpaid", "status": "open", "success_url": success_url,
            "total_details": { "amount_discount": 0, "amount_shipping": 0, "amount_tax": 0 }, "url": url,
            // Not Stripe's: what the page shows, and what the payment is made with.
            "test": { "name": name, "intent_metadata": intent_metadata, "setup_future_usage": future_usage },
        })))
    }

    pub(super) fn session_expire(&mut self, id: &str) -> Result<Value, ApiError> {
        let session = self.need("checkout.session", id)?;
        if session["status"] != "open" {
            return Err(ApiError::state("Only Checkout Sessions with a status in [\"open\"] can be expired."));
        }
        let session = self.set(id, &json!({ "status": "expired", "url": null }));
        self.emit("checkout.session.expired", &session);
        Ok(session)
    }

    /// What a button of the page does.
    pub(super) fn checkout(&mut self, id: &str, action: Checkout) -> Result<(), ApiError> {
        let session = self.need("checkout.session", id)?;
        if session["status"] != "open" {
            return Err(ApiError::state("This Checkout Session is not open any more."));
        }
        if number(&session["expires_at"]) <= self.now() {
            self.session_expire(id)?;
            return Err(ApiError::state("This Checkout Session has expired."));
        }
        if action == Checkout::Abandon {
            self.session_expire(id)?;
            return Ok(());
        }
        let intent = self.intent_of_session(&session);
        match action {
            Checkout::Pay | Checkout::Authenticate => {
                let card = if action == Checkout::Pay { Card::Good } else { Card::Authentication };
                // Without a wish for later, the card is nobody's after the payment.
                let is_kept = !session["test"]["setup_future_usage"].is_null();
                let method = self.payment_method(card, session["customer"].as_str().filter(|_| is_kept));
                self.set(&intent, &json!({ "payment_method": method["id"] }));
                self.intent_pay(&intent);
                let session = self.set(id, &json!({ "status": "complete", "payment_status": "paid", "url": null }));
                self.emit("checkout.session.completed", &session);
            }
            Checkout::PayLater => {
                let intent = self.set(&intent, &json!({ "status": "processing" }));
                self.emit("payment_intent.processing", &intent);
                let session = self.set(id, &json!({ "status": "complete", "payment_status": "unpaid", "url": null }));
                self.emit("checkout.session.completed", &session);
            }
            Checkout::Decline => self.intent_decline(&intent, "card_declined", "Your card was declined."),
            Checkout::NeedAuthentication => {
                let intent = self.set(&intent, &json!({ "status": "requires_action" }));
                self.emit("payment_intent.requires_action", &intent);
            }
            Checkout::FailAuthentication => self.intent_decline(
                &intent,
                "payment_intent_authentication_failure",
                "The payment could not be authenticated.",
            ),
            Checkout::Abandon => {}
        }
        Ok(())
    }

    /// Ends a payment whose money comes later.
    pub(super) fn settle(&mut self, id: &str, is_paid: bool) -> Result<(), ApiError> {
        let session = self.need("checkout.session", id)?;
        let intent = text(&session["payment_intent"]).to_owned();
        if session["status"] != "complete" || self.need("payment_intent", &intent)?["status"] != "processing" {
            return Err(ApiError::state("Nothing is under way."));
        }
        if is_paid {
            self.intent_pay(&intent);
            let session = self.set(id, &json!({ "payment_status": "paid" }));
            self.emit("checkout.session.async_payment_succeeded", &session);
        } else {
            self.intent_decline(&intent, "payment_intent_payment_attempt_failed", "The payment was returned.");
            self.emit("checkout.session.async_payment_failed", &session);
        }
        Ok(())
    }

    fn intent_of_session(&mut self, session: &Value) -> String {
        if let Some(known) = session["payment_intent"].as_str() {
            return known.to_owned();
        }
        let (id, created) = (self.id("pi"), self.now());
        let secret = self.client_secret(&id);
        let intent = self.insert(json!({
            "id": id, "object": "payment_intent", "amount": session["amount_total"], "amount_received": 0,
            "client_secret": secret, "created": created, "currency": session["currency"], "customer": session["customer"], "last_payment_error": null,
            "latest_charge": null, "livemode": false, "metadata": session["test"]["intent_metadata"], "payment_method": null,
            "setup_future_usage": session["test"]["setup_future_usage"], "status": "requires_payment_method",
        }));
        self.set(text(&session["id"]), &json!({ "payment_intent": id }));
        self.emit("payment_intent.created", &intent);
        id
    }

    fn intent_pay(&mut self, id: &str) {
        let Ok(intent) = self.need("payment_intent", id) else { return };
        let (charge, created) = (self.id("ch"), self.now());
        let (amount, currency) = (number(&intent["amount"]), text(&intent["currency"]).to_owned());
        let fee = amount * 29 / 1000 + 30;
        let movement = self.balance_transaction("charge", "charge", &charge, amount, fee, &currency);
        let made = self.insert(json!({
            "id": charge, "object": "charge", "amount": amount, "amount_captured": amount, "amount_refunded": 0,
            "balance_transaction": movement, "captured": true, "created": created, "currency": currency,
            "customer": intent["customer"], "disputed": false, "livemode": false, "metadata": intent["metadata"],
            "paid": true, "payment_intent": id, "payment_method": intent["payment_method"], "refunded": false,
            "status": "succeeded",
        }));
        let paid = json!({
            "amount_received": amount, "last_payment_error": null, "latest_charge": charge, "next_action": null, "status": "succeeded",
        });
        let intent = self.set(id, &paid);
        self.emit("charge.succeeded", &made);
        self.emit("payment_intent.succeeded", &intent);
    }

    fn intent_decline(&mut self, id: &str, code: &str, message: &str) {
        let error =
            json!({ "type": "card_error", "code": code, "decline_code": "generic_decline", "message": message });
        let failed = json!({ "status": "requires_payment_method", "last_payment_error": error, "next_action": null });
        let intent = self.set(id, &failed);
        self.emit("payment_intent.payment_failed", &intent);
    }

    pub(super) fn intent_create(&mut self, params: &mut Params) -> Result<Value, ApiError> {
        let amount = params.integer("amount")?.ok_or_else(|| ApiError::missing("amount"))?;
        let currency = params.need("currency")?.to_lowercase();
        if amount < 1 {
            return Err(ApiError::invalid("amount", "This value must be greater than or equal to 1."));
        }
        let customer = params.take("customer");
        if let Some(customer) = &customer {
            self.need("customer", customer)?;
        }
        let method = params.take("payment_method");
        if let Some(known) = self.find(method.as_deref().unwrap_or_default()) {
            self.may_be_used(known, customer.as_deref().unwrap_or_default())?;
        }
        let (confirm, off_session) = (params.flag("confirm"), params.flag("off_session"));
        params.take("description");
        params.list("payment_method_types");
        let metadata = params.map("metadata");
        let (id, created) = (self.id("pi"), self.now());
        let secret = self.client_secret(&id);
        let intent = self.insert(json!({
            "id": id, "object": "payment_intent", "amount": amount, "amount_received": 0, "client_secret": secret,
            "created": created,
            "currency": currency, "customer": customer, "last_payment_error": null, "latest_charge": null, "livemode": false,
            "metadata": metadata, "payment_method": method, "status": "requires_confirmation",
        }));
        self.emit("payment_intent.created", &intent);
        if confirm { self.intent_confirm_now(&id, off_session) } else { Ok(intent) }
    }

    pub(super) fn intent_confirm(&mut self, id: &str, params: &mut Params) -> Result<Value, ApiError> {
        self.need("payment_intent", id)?;
        if let Some(method) = params.take("payment_method") {
            self.set(id, &json!({ "payment_method": method }));
        }
        let off_session = params.flag("off_session");
        self.intent_confirm_now(id, off_session)
    }

    fn intent_confirm_now(&mut self, id: &str, off_session: bool) -> Result<Value, ApiError> {
        let intent = self.need("payment_intent", id)?;
        if !["requires_confirmation", "requires_payment_method"].contains(&text(&intent["status"])) {
            return Err(ApiError::state("This PaymentIntent cannot be confirmed any more."));
        }
        let method = text(&intent["payment_method"]).to_owned();
        let card = match method.as_str() {
            "pm_card_visa" => Card::Good,
            "pm_card_chargeCustomerFail" => Card::Declined,
            "pm_card_authenticationRequired" => Card::Authentication,
            known => {
                let method = self.need("payment_method", known)?;
                self.may_be_used(&method, text(&intent["customer"]))?;
                match text(&method["card"]["last4"]) {
                    "4242" => Card::Good,
                    "0341" => Card::Declined,
                    _ => Card::Authentication,
                }
            }
        };
        match card {
            Card::Good => self.intent_pay(id),
            Card::Declined => {
                self.intent_decline(id, "card_declined", "Your card was declined.");
                return Err(ApiError::card(
                    "card_declined",
                    "Your card was declined.",
                    self.need("payment_intent", id)?,
                ));
            }
            Card::Authentication if off_session && !self.asks_absent_owners => {
                let message = "Your card was declined. This transaction requires authentication.";
                self.intent_decline(id, "authentication_required", message);
                return Err(ApiError::card("authentication_required", message, self.need("payment_intent", id)?));
            }
            Card::Authentication => {
                let next = json!({ "type": "redirect_to_url", "redirect_to_url": { "url": format!("{}/c/authenticate/{id}", self.base_url) } });
                let intent = self.set(id, &json!({ "status": "requires_action", "next_action": next }));
                self.emit("payment_intent.requires_action", &intent);
            }
        }
        self.need("payment_intent", id)
    }

    /// The owner of a card answers their bank, outside of Checkout.
    pub(super) fn intent_authenticate(&mut self, id: &str, is_done: bool) -> Result<Value, ApiError> {
        if self.need("payment_intent", id)?["status"] != "requires_action" {
            return Err(ApiError::state("This PaymentIntent does not wait for authentication."));
        }
        if is_done {
            self.intent_pay(id);
        } else {
            let message = "The payment could not be authenticated.";
            self.intent_decline(id, "payment_intent_authentication_failure", message);
        }
        self.need("payment_intent", id)
    }

    pub(super) fn intent_cancel(&mut self, id: &str) -> Result<Value, ApiError> {
        let intent = self.need("payment_intent", id)?;
        if ["succeeded", "canceled", "processing"].contains(&text(&intent["status"])) {
            return Err(ApiError::state("This PaymentIntent cannot be canceled any more."));
        }
        let intent = self.set(id, &json!({ "status": "canceled" }));
        self.emit("payment_intent.canceled", &intent);
        Ok(intent)
    }

    fn charge_of(&self, intent: &str) -> Result<Value, ApiError> {
        let intent = self.need("payment_intent", intent)?;
        match intent["latest_charge"].as_str() {
            Some(charge) => self.need("charge", charge),
            None => Err(ApiError::state("This PaymentIntent does not have a successful charge to refund.")),
        }
    }

    pub(super) fn refund_create(
        &mut self,
        intent: &str,
        amount: Option<i64>,
        reason: Option<&str>,
        metadata: &Map<String, Value>,
    ) -> Result<Value, ApiError> {
        let charge = self.charge_of(intent)?;
        let left = number(&charge["amount"]) - number(&charge["amount_refunded"]);
        let amount = amount.unwrap_or(left);
        if left == 0 {
            return Err(ApiError::coded("charge_already_refunded", "The charge has already been refunded."));
        }
        if amount < 1 || amount > left {
            return Err(ApiError::invalid("amount", "Refund amount is greater than unrefunded amount on charge"));
        }
        if charge["disputed"] == true {
            return Err(ApiError::coded("charge_disputed", "The charge has been charged back and cannot be refunded."));
        }
        let (id, created) = (self.id("re"), self.now());
        let (charge_id, currency) = (text(&charge["id"]).to_owned(), text(&charge["currency"]).to_owned());
        let movement = self.balance_transaction("refund", "refund", &id, -amount, 0, &currency);
        let refund = self.insert(json!({
            "id": id, "object": "refund", "amount": amount, "balance_transaction": movement, "charge": charge_id,
            "created": created, "currency": currency, "metadata": metadata, "payment_intent": intent, "reason": reason,
            "status": "succeeded",
        }));
        let refunded = number(&charge["amount_refunded"]) + amount;
        let charge = self.set(
            &charge_id,
            &json!({ "amount_refunded": refunded, "refunded": refunded == number(&charge["amount"]) }),
        );
        self.emit("refund.created", &refund);
        self.emit("charge.refunded", &charge);
        Ok(refund)
    }

    pub(super) fn refund_fail(&mut self, id: &str) -> Result<Value, ApiError> {
        let refund = self.need("refund", id)?;
        if refund["status"] == "failed" {
            return Err(ApiError::state("The refund has failed already."));
        }
        let (amount, charge_id) = (number(&refund["amount"]), text(&refund["charge"]).to_owned());
        let charge = self.need("charge", &charge_id)?;
        let currency = text(&refund["currency"]).to_owned();
        let movement = self.balance_transaction("refund_failure", "refund_failure", id, amount, 0, &currency);
        let failed = json!({ "status": "failed", "failure_reason": "lost_or_stolen_card", "failure_balance_transaction": movement });
        let refund = self.set(id, &failed);
        self.set(
            &charge_id,
            &json!({ "amount_refunded": number(&charge["amount_refunded"]) - amount, "refunded": false }),
        );
        self.emit("refund.updated", &refund);
        self.emit("refund.failed", &refund);
        Ok(refund)
    }

    pub(super) fn dispute_open(&mut self, intent: &str, amount: Option<i64>) -> Result<String, ApiError> {
        let charge = self.charge_of(intent)?;
        let left = number(&charge["amount"]) - number(&charge["amount_refunded"]);
        let amount = amount.unwrap_or(left);
        if amount < 1 || amount > left {
            return Err(ApiError::invalid("amount", "More is disputed than was paid"));
        }
        let (id, created) = (self.id("dp"), self.now());
        let (charge_id, currency) = (text(&charge["id"]).to_owned(), text(&charge["currency"]).to_owned());
        let movement = self.balance_transaction("adjustment", "dispute", &id, -amount, DISPUTE_FEE, &currency);
        let movement = self.find(&movement).cloned();
        let dispute = self.insert(json!({
            "id": id, "object": "dispute", "amount": amount, "balance_transactions": [movement], "charge": charge_id,
            "created": created, "currency": currency, "livemode": false, "metadata": {}, "payment_intent": intent,
            "reason": "fraudulent", "status": "needs_response",
        }));
        self.set(&charge_id, &json!({ "disputed": true }));
        self.emit("charge.dispute.created", &dispute);
        self.emit("charge.dispute.funds_withdrawn", &dispute);
        Ok(id)
    }

    pub(super) fn dispute_close(&mut self, id: &str, is_won: bool) -> Result<Value, ApiError> {
        let dispute = self.need("dispute", id)?;
        if dispute["status"] != "needs_response" {
            return Err(ApiError::state("The dispute is closed."));
        }
        let dispute = self.set(id, &json!({ "status": if is_won { "won" } else { "lost" } }));
        let dispute = if is_won {
            let currency = text(&dispute["currency"]).to_owned();
            let movement = self.balance_transaction(
                "adjustment",
                "dispute_reversal",
                id,
                number(&dispute["amount"]),
                0,
                &currency,
            );
            let mut movements = dispute["balance_transactions"].as_array().cloned().unwrap_or_default();
            movements.extend(self.find(&movement).cloned());
            let dispute = self.set(id, &json!({ "balance_transactions": movements }));
            self.emit("charge.dispute.funds_reinstated", &dispute);
            dispute
        } else {
            dispute
        };
        self.emit("charge.dispute.closed", &dispute);
        Ok(dispute)
    }
}
