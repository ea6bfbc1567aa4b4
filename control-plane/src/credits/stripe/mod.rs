//! The payment provider, by a thin typed client: the calls that buying credits takes, and the signature of webhooks.
//!
//! A call that changes something carries a key that was written down before, so that repeating it cannot do it twice. It is
//! repeated here only while that can help: nobody answered, or the answer says so. When it is not known in the end whether it
//! was done, that is what the caller is told. A call that moves money does not rely on the key alone: once it may have been
//! done it is not repeated here, and the caller looks for what it did first.

pub mod objects;
pub mod signature;

use std::time::Duration;

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Method, StatusCode, Url};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::config::{ConfigError, PaymentArgs};
use crate::http::outgoing::{client, is_https_or_loopback, read_body, segment, without_url};
use objects::{BalanceTransaction, Charge, Customer, List, PaymentIntent, PaymentMethod, Refund, Session, SetupIntent};

/// The version of the API that the objects are read in.
pub const API_VERSION: &str = "2025-09-30.clover";
/// The most that one page of a list holds.
const PAGE: &str = "100";
const FIRST_BACKOFF: Duration = Duration::from_millis(250);
const MAX_BACKOFF: Duration = Duration::from_secs(2);
/// The largest answer that is read.
const MAX_ANSWER_BYTES: usize = 8 * 1024 * 1024;

/// Why the provider did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum StripeError {
    /// Nothing was done, and asking again changes nothing.
    #[error("the payment provider refused the call with {status} {code}")]
    Refused { status: u16, code: String },
    /// The bank did not let the payment through.
    #[error("the payment was declined: {code}")]
    Declined { code: String, payment_intent: Option<String> },
    /// Nobody answered, or not with an answer: it may have been done.
    #[error("the payment provider did not answer in time: {why}")]
    Unknown { why: String },
    /// What it answered cannot be read.
    #[error("the payment provider's answer cannot be read: {why}")]
    Malformed { why: String },
}

impl StripeError {
    /// Whether the thing that was named does not exist there.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }
}

/// Parameters of a call, in the form-encoded names of the API.
pub type Form<'a> = [(&'a str, String)];

/// When a call is made again by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repeat {
    /// Also when it may have been done: its key, or that it changes nothing, keeps it from being done twice.
    Unanswered,
    /// Only when it cannot have been done.
    Undone,
}

/// The provider's API.
pub struct Stripe {
    http: reqwest::Client,
    base: Url,
    key: SecretString,
    secrets: Vec<SecretString>,
    tolerance_s: i64,
    attempt_timeout: Duration,
    total_timeout: Duration,
    max_attempts: u32,
}

impl Stripe {
    /// The client, or nothing when nothing is to be sold.
    ///
    /// # Errors
    /// A sentence that names the variable, never its value.
    pub fn new(args: &PaymentArgs) -> Result<Option<Self>, ConfigError> {
        let Some(key) = args.stripe_secret_key.clone() else { return Ok(None) };
        let invalid = |name, why: String| ConfigError::Invalid { name, why };
        let base = Url::parse(&args.stripe_api_url).map_err(|error| invalid("STRIPE_API_URL", error.to_string()))?;
        if !is_https_or_loopback(&base) {
            return Err(invalid("STRIPE_API_URL", "must be https, or http at loopback".to_owned()));
        }
        let secrets: Vec<SecretString> =
            args.stripe_webhook_secrets.iter().chain(&args.stripe_webhook_secret).cloned().collect();
        if secrets.is_empty() {
            let how = "it is shown beside the webhook endpoint in Stripe's dashboard";
            return Err(ConfigError::Missing { name: "STRIPE_WEBHOOK_SECRET", how });
        }
        if secrets.iter().any(|secret| secret.expose_secret().len() < 8) {
            return Err(invalid("STRIPE_WEBHOOK_SECRET", "is too short for a secret".to_owned()));
        }
        let http = client(args.stripe_request_timeout).map_err(|error| invalid("STRIPE_API_URL", error.to_string()))?;
        Ok(Some(Self {
            http,
            base,
            key,
            secrets,
            tolerance_s: i64::from(args.stripe_webhook_tolerance_s),
            attempt_timeout: args.stripe_request_timeout,
            total_timeout: args.stripe_total_timeout,
            max_attempts: args.stripe_max_attempts,
        }))
    }

    /// Whether no real money moves.
    pub fn is_test(&self) -> bool {
        !self.key.expose_secret().starts_with("sk_live_") && !self.key.expose_secret().starts_with("rk_live_")
    }

    /// Whether the provider has signed this body, not too long ago.
    ///
    /// # Errors
    /// What is wrong with the signature.
    pub fn verify(&self, header: &str, body: &[u8], now_s: i64) -> Result<(), signature::SignatureError> {
        signature::verify(header, body, &self.secrets, now_s, self.tolerance_s)
    }

    pub async fn customer_create(&self, key: &str, form: &Form<'_>) -> Result<Customer, StripeError> {
        self.call(Method::POST, "customers", form, Some(key)).await
    }

    pub async fn session_create(&self, key: &str, form: &Form<'_>) -> Result<Session, StripeError> {
        self.call(Method::POST, "checkout/sessions", form, Some(key)).await
    }

    pub async fn session_get(&self, id: &str) -> Result<Session, StripeError> {
        self.call(Method::GET, &format!("checkout/sessions/{}", segment(id)), &[], None).await
    }

    pub async fn session_expire(&self, id: &str, key: &str) -> Result<Session, StripeError> {
        self.call(Method::POST, &format!("checkout/sessions/{}/expire", segment(id)), &[], Some(key)).await
    }

    /// A customer's newest sessions.
    pub async fn sessions_of(&self, customer: &str) -> Result<List<Session>, StripeError> {
        let form = [("customer", customer.to_owned()), ("limit", PAGE.to_owned())];
        self.call(Method::GET, "checkout/sessions", &form, None).await
    }

    /// Makes a payment and confirms it at once, with a card that its owner left for that. When it is not known whether that was
    /// done, look for it before asking again.
    pub async fn payment_intent_create(&self, key: &str, form: &Form<'_>) -> Result<PaymentIntent, StripeError> {
        self.call_as(Repeat::Undone, Method::POST, "payment_intents", form, Some(key)).await
    }

    pub async fn payment_intent_get(&self, id: &str) -> Result<PaymentIntent, StripeError> {
        self.call(Method::GET, &format!("payment_intents/{}", segment(id)), &[], None).await
    }

    /// Gives a payment up that has not succeeded.
    pub async fn payment_intent_cancel(&self, id: &str, key: &str) -> Result<PaymentIntent, StripeError> {
        self.call(Method::POST, &format!("payment_intents/{}/cancel", segment(id)), &[], Some(key)).await
    }

    /// A customer's newest payments.
    pub async fn payment_intents_of(&self, customer: &str) -> Result<List<PaymentIntent>, StripeError> {
        let mut form = vec![("limit", PAGE.to_owned()), ("customer", customer.to_owned())];
        match self.call(Method::GET, "payment_intents", &form, None).await {
            // Who speaks an older dialect does not choose by customer: the reader does.
            Err(StripeError::Refused { status: 400, .. }) => {
                form.pop();
                self.call(Method::GET, "payment_intents", &form, None).await
            }
            outcome => outcome,
        }
    }

    /// Begins to take a card down that is charged later, while its owner is there.
    pub async fn setup_intent_create(&self, key: &str, form: &Form<'_>) -> Result<SetupIntent, StripeError> {
        self.call(Method::POST, "setup_intents", form, Some(key)).await
    }

    pub async fn payment_method_get(&self, id: &str) -> Result<PaymentMethod, StripeError> {
        self.call(Method::GET, &format!("payment_methods/{}", segment(id)), &[], None).await
    }

    /// Takes a card from the customer that it belongs to; nobody can be charged with it after that.
    pub async fn payment_method_detach(&self, id: &str, key: &str) -> Result<PaymentMethod, StripeError> {
        self.call(Method::POST, &format!("payment_methods/{}/detach", segment(id)), &[], Some(key)).await
    }

    pub async fn charge_get(&self, id: &str) -> Result<Charge, StripeError> {
        self.call(Method::GET, &format!("charges/{}", segment(id)), &[], None).await
    }

    /// Gives money back. When it is not known whether that was done, look for it before asking again.
    pub async fn refund_create(&self, key: &str, form: &Form<'_>) -> Result<Refund, StripeError> {
        self.call_as(Repeat::Undone, Method::POST, "refunds", form, Some(key)).await
    }

    /// The newest refunds of a payment.
    pub async fn refunds_of(&self, payment_intent: &str) -> Result<List<Refund>, StripeError> {
        let form = [("payment_intent", payment_intent.to_owned()), ("limit", PAGE.to_owned())];
        self.call(Method::GET, "refunds", &form, None).await
    }

    /// One page of the events since a moment, newest first, as they are.
    pub async fn events(
        &self,
        types: &[&str],
        since_s: i64,
        only_undelivered: bool,
        after: Option<&str>,
    ) -> Result<List<serde_json::Value>, StripeError> {
        let mut form: Vec<(&str, String)> = types.iter().map(|&kind| ("types[]", kind.to_owned())).collect();
        form.extend([("created[gte]", since_s.to_string()), ("limit", PAGE.to_owned())]);
        if only_undelivered {
            form.push(("delivery_success", "false".to_owned()));
        }
        form.extend(after.map(|id| ("starting_after", id.to_owned())));
        self.call(Method::GET, "events", &form, None).await
    }

    /// One page of what moved money in a span of time, newest first.
    pub async fn balance_transactions(
        &self,
        since_s: i64,
        until_s: i64,
        after: Option<&str>,
    ) -> Result<List<BalanceTransaction>, StripeError> {
        let mut form = vec![
            ("created[gte]", since_s.to_string()),
            ("created[lt]", until_s.to_string()),
            ("limit", PAGE.to_owned()),
        ];
        form.extend(after.map(|id| ("starting_after", id.to_owned())));
        self.call(Method::GET, "balance_transactions", &form, None).await
    }

    /// What an object moved.
    pub async fn balance_transactions_of(&self, source: &str) -> Result<List<BalanceTransaction>, StripeError> {
        let form = [("source", source.to_owned()), ("limit", PAGE.to_owned())];
        self.call(Method::GET, "balance_transactions", &form, None).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        form: &Form<'_>,
        key: Option<&str>,
    ) -> Result<T, StripeError> {
        self.call_as(Repeat::Unanswered, method, path, form, key).await
    }

    async fn call_as<T: DeserializeOwned>(
        &self,
        repeat: Repeat,
        method: Method,
        path: &str,
        form: &Form<'_>,
        key: Option<&str>,
    ) -> Result<T, StripeError> {
        let deadline = Instant::now() + self.total_timeout;
        let mut backoff = FIRST_BACKOFF;
        let mut attempt = 1;
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).min(self.attempt_timeout);
            let outcome = tokio::time::timeout(left, self.attempt(&method, path, form, key)).await;
            let (failure, wait, may_be_done) = match outcome {
                Ok(Ok(Answered { status, body, .. })) if status.is_success() => {
                    return serde_json::from_slice(&body)
                        .map_err(|error| StripeError::Malformed { why: error.to_string() });
                }
                Ok(Ok(answered)) => {
                    let wait = answered.retry_after;
                    if !answered.may_be_repeated {
                        return Err(answered.refusal());
                    }
                    let may_be_done = answered.status != StatusCode::TOO_MANY_REQUESTS;
                    let why = format!("it answered {}", answered.status.as_u16());
                    (StripeError::Unknown { why }, wait, may_be_done)
                }
                Ok(Err(error)) => {
                    let may_be_done = !error.is_connect();
                    (StripeError::Unknown { why: without_url(error) }, None, may_be_done)
                }
                Err(_) => (StripeError::Unknown { why: format!("nothing came within {left:?}") }, None, true),
            };
            if may_be_done && repeat == Repeat::Undone {
                return Err(failure);
            }
            let jitter = backoff.mul_f64(0.5 + 0.5 * jitter());
            let wait = wait.unwrap_or(jitter);
            if attempt >= self.max_attempts || Instant::now() + wait >= deadline {
                return Err(failure);
            }
            tracing::debug!("asking the payment provider again after {wait:?}: {failure}");
            metrics::counter!("tenantry_stripe_retries_total").increment(1);
            tokio::time::sleep(wait).await;
            backoff = (backoff * 2).min(MAX_BACKOFF);
            attempt += 1;
        }
    }

    async fn attempt(
        &self,
        method: &Method,
        path: &str,
        form: &Form<'_>,
        key: Option<&str>,
    ) -> Result<Answered, reqwest::Error> {
        let mut url = self.base.clone();
        url.set_path(&format!("{}/v1/{path}", self.base.path().trim_end_matches('/')));
        let encoded = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(form.iter().map(|(name, value)| (name, value)))
            .finish();
        let mut request = if *method == Method::GET {
            url.set_query(Some(&encoded).filter(|text| !text.is_empty()).map(String::as_str));
            self.http.get(url)
        } else {
            self.http.post(url).header("content-type", "application/x-www-form-urlencoded").body(encoded)
        };
        request = request.bearer_auth(self.key.expose_secret()).header("stripe-version", API_VERSION);
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let mut response = request.send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        // Cut off, it cannot be read, which is what the caller is told.
        let body = read_body(&mut response, MAX_ANSWER_BYTES).await?;
        Ok(Answered {
            status,
            may_be_repeated: may_be_repeated(status, &headers),
            retry_after: retry_after(&headers),
            body,
        })
    }
}

struct Answered {
    status: StatusCode,
    may_be_repeated: bool,
    retry_after: Option<Duration>,
    body: Vec<u8>,
}

#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorParts,
}

#[derive(Deserialize)]
struct ErrorParts {
    #[serde(rename = "type")]
    kind: Option<String>,
    code: Option<String>,
    decline_code: Option<String>,
    payment_intent: Option<objects::Reference>,
}

impl Answered {
    fn refusal(&self) -> StripeError {
        let status = self.status.as_u16();
        let Ok(ErrorBody { error }) = serde_json::from_slice(&self.body) else {
            return StripeError::Refused { status, code: "unknown".to_owned() };
        };
        let kind = error.kind.unwrap_or_default();
        // The status is for payments that did not go through, and nothing else.
        if kind == "card_error" || self.status == StatusCode::PAYMENT_REQUIRED {
            let code = objects::failure_code(error.code, error.decline_code).unwrap_or(kind);
            return StripeError::Declined {
                code,
                payment_intent: error.payment_intent.map(objects::Reference::into_id),
            };
        }
        StripeError::Refused { status, code: error.code.unwrap_or(kind) }
    }
}

/// Whether the same call may be made again: the provider's own word counts first.
fn may_be_repeated(status: StatusCode, headers: &HeaderMap) -> bool {
    match headers.get("stripe-should-retry").and_then(|value| value.to_str().ok()) {
        Some("true") => true,
        Some("false") => false,
        _ => status.is_server_error() || status == StatusCode::CONFLICT || status == StatusCode::TOO_MANY_REQUESTS,
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

/// From 0 to 1.
fn jitter() -> f64 {
    let [byte] = kernel::random::bytes::<1>();
    f64::from(byte) / 255.0
}

#[cfg(test)]
mod tests {
    use reqwest::StatusCode;
    use reqwest::header::{HeaderMap, HeaderValue};

    use super::{Answered, StripeError, may_be_repeated};

    #[test]
    fn the_providers_word_on_repeating_counts_first() {
        let said = |word: &'static str| {
            HeaderMap::from_iter([("stripe-should-retry".parse().expect("a name"), HeaderValue::from_static(word))])
        };
        assert!(may_be_repeated(StatusCode::BAD_REQUEST, &said("true")));
        assert!(!may_be_repeated(StatusCode::INTERNAL_SERVER_ERROR, &said("false")));
        assert!(may_be_repeated(StatusCode::CONFLICT, &HeaderMap::new()));
        assert!(!may_be_repeated(StatusCode::PAYMENT_REQUIRED, &HeaderMap::new()));
    }

    #[test]
    fn a_payment_that_did_not_go_through_is_told_by_its_type_or_by_the_status() {
        let answered = |status: u16, body: &str| {
            let status = StatusCode::from_u16(status).expect("a status");
            Answered { status, may_be_repeated: false, retry_after: None, body: body.as_bytes().to_vec() }.refusal()
        };
        let declined = |error: &StripeError, wanted: &str, intent: Option<&str>| {
            matches!(error, StripeError::Declined { code, payment_intent }
                if code == wanted && payment_intent.as_deref() == intent)
        };
        let card = r#"{"error":{"type":"card_error","code":"card_declined","payment_intent":{"id":"pi_1"}}}"#;
        assert!(declined(&answered(402, card), "card_declined", Some("pi_1")));
        assert!(declined(&answered(400, card), "card_declined", Some("pi_1")));
        let other = r#"{"error":{"type":"invalid_request_error","code":"card_declined","charge":"ch_1"}}"#;
        assert!(declined(&answered(402, other), "card_declined", None));
        for (status, body) in [(400, other), (404, "404: Not Found"), (402, "not what was agreed on")] {
            let refused = answered(status, body);
            assert!(matches!(&refused, StripeError::Refused { status: said, .. } if *said == status), "{refused}");
        }
    }
}
