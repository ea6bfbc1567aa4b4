//! Supabase's management API, by a thin typed client: the calls that reaching a project takes.
//!
//! Every call has a time limit, and of every answer only so much is read. What an answer says of an error is neither shown nor
//! logged: it may repeat what was sent.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::{Method, StatusCode, Url};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::config::{ConfigError, SupabaseArgs};
use crate::http::outgoing::{client, is_https_or_loopback, read_body, segment, without_url};

/// The largest answer that is read.
const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;
/// The most that one page of projects holds.
pub const PAGE: usize = 100;
/// What is waited at least and at most when it says that there were too many calls.
const RATE_WAIT: (u64, u64) = (1, 3600);
/// What is waited when it does not say for how long.
const RATE_DEFAULT: u64 = 60;

/// Why Supabase did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The access token is not good any more.
    #[error("Supabase does not know the access token")]
    Unauthorized,
    /// The refresh token, or the code, is not good any more.
    #[error("Supabase gives no more tokens for this consent")]
    InvalidGrant,
    /// Whoever consented, or our app, may not do this.
    #[error("Supabase does not allow this")]
    Forbidden,
    #[error("Supabase knows no such thing")]
    NotFound,
    #[error("Supabase was asked too often")]
    RateLimited { retry_after: Duration },
    /// Nothing was done, and asking again changes nothing.
    #[error("Supabase refused the call with {status}")]
    Refused { status: u16 },
    /// Nobody answered, or not with an answer: it may have been done.
    #[error("Supabase did not answer: {why}")]
    Unknown { why: String },
    #[error("Supabase's answer cannot be read: {why}")]
    Malformed { why: String },
}

/// What a consent, or a refresh token, is exchanged for.
#[derive(Deserialize)]
pub struct TokenAnswer {
    pub access_token: SecretString,
    pub refresh_token: SecretString,
    /// Seconds.
    pub expires_in: i64,
}

#[derive(Debug, Deserialize)]
pub struct Organization {
    pub slug: String,
    pub name: String,
}

/// How a project is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ProjectStatus {
    Inactive,
    ActiveHealthy,
    ActiveUnhealthy,
    ComingUp,
    Unknown,
    GoingDown,
    InitFailed,
    Removed,
    Restoring,
    Upgrading,
    Pausing,
    RestoreFailed,
    Restarting,
    PauseFailed,
    Resizing,
    /// One that came to be since this was written.
    #[serde(other)]
    New,
}

/// A project as lists have it.
#[derive(Debug, Deserialize)]
pub struct ListedProject {
    #[serde(rename = "ref")]
    pub reference: String,
    pub name: String,
    pub region: String,
    pub status: ProjectStatus,
}

#[derive(Debug, Deserialize)]
pub struct ProjectPage {
    pub projects: Vec<ListedProject>,
    pub pagination: Pagination,
}

#[derive(Debug, Deserialize)]
pub struct Pagination {
    pub count: usize,
}

/// A project by itself.
#[derive(Debug, Deserialize)]
pub struct Project {
    #[serde(rename = "ref")]
    pub reference: String,
    pub name: String,
    pub status: ProjectStatus,
    pub database: ProjectDatabase,
}

#[derive(Debug, Deserialize)]
pub struct ProjectDatabase {
    /// The project's own host.
    pub host: String,
}

/// One way through a project's pooler. Its strings hold no password.
#[derive(Debug, Deserialize)]
pub struct Pooler {
    pub database_type: String,
    pub db_host: String,
    pub db_port: u16,
    pub pool_mode: String,
}

/// The API, spoken to as our app.
pub struct Client {
    http: reqwest::Client,
    base: Url,
    client_id: String,
    client_secret: SecretString,
    timeout: Duration,
}

/// What is sent along.
enum Content<'a> {
    Nothing,
    Json(Value),
    Form(&'a [(&'a str, &'a str)]),
}

impl Client {
    /// The client, or nothing when nobody is to sign in there.
    ///
    /// # Errors
    /// A sentence that names the variable, never its value.
    pub fn new(args: &SupabaseArgs) -> Result<Option<Self>, ConfigError> {
        let Some(client_id) = args.supabase_client_id.clone() else { return Ok(None) };
        let invalid = |name, why: String| ConfigError::Invalid { name, why };
        if uuid::Uuid::parse_str(&client_id).is_err() {
            return Err(invalid(
                "SUPABASE_CLIENT_ID",
                "must be a UUID, as Supabase shows it beside the app".to_owned(),
            ));
        }
        let Some(client_secret) = args.supabase_client_secret.clone() else {
            let how = "Supabase shows it once, when the app is made";
            return Err(ConfigError::Missing { name: "SUPABASE_CLIENT_SECRET", how });
        };
        let base =
            Url::parse(&args.supabase_api_url).map_err(|error| invalid("SUPABASE_API_URL", error.to_string()))?;
        if !is_https_or_loopback(&base) {
            return Err(invalid("SUPABASE_API_URL", "must be https, or http at loopback".to_owned()));
        }
        let http =
            client(args.supabase_request_timeout).map_err(|error| invalid("SUPABASE_API_URL", error.to_string()))?;
        Ok(Some(Self { http, base, client_id, client_secret, timeout: args.supabase_request_timeout }))
    }

    /// The page on which somebody consents.
    pub fn authorize_url(&self, state: &str, challenge: &str, redirect: &Url) -> Url {
        let mut url = self.url("oauth/authorize");
        url.query_pairs_mut()
            .append_pair("client_id", &self.client_id)
            .append_pair("response_type", "code")
            .append_pair("redirect_uri", redirect.as_str())
            .append_pair("state", state)
            .append_pair("code_challenge", challenge)
            .append_pair("code_challenge_method", "S256");
        url
    }

    pub async fn code_exchange(
        &self,
        code: &SecretString,
        verifier: &SecretString,
        redirect: &Url,
    ) -> Result<TokenAnswer, ApiError> {
        self.token(&[
            ("grant_type", "authorization_code"),
            ("code", code.expose_secret()),
            ("code_verifier", verifier.expose_secret()),
            ("redirect_uri", redirect.as_str()),
        ])
        .await
    }

    /// New tokens for old. The refresh token is good for this once, and the answer has the next one.
    pub async fn refresh(&self, refresh_token: &SecretString) -> Result<TokenAnswer, ApiError> {
        self.token(&[("grant_type", "refresh_token"), ("refresh_token", refresh_token.expose_secret())]).await
    }

    async fn token(&self, form: &[(&str, &str)]) -> Result<TokenAnswer, ApiError> {
        let answer = self.ask(Method::POST, self.url("oauth/token"), None, Content::Form(form)).await?;
        if answer.status.is_success() {
            return answer.read();
        }
        match answer.status.as_u16() {
            // What is wrong with our own secret says nothing of the consent.
            401 if answer.names_the_client() => Err(ApiError::Refused { status: 401 }),
            400 | 401 | 403 | 404 | 422 if !answer.names_the_client() => Err(ApiError::InvalidGrant),
            _ => Err(answer.refusal()),
        }
    }

    /// Ends the consent, and with it every token that came of it. What is not known there any more is ended.
    pub async fn revoke(&self, refresh_token: &SecretString) -> Result<(), ApiError> {
        let body = json!({
            "client_id": self.client_id,
            "client_secret": self.client_secret.expose_secret(),
            "refresh_token": refresh_token.expose_secret(),
        });
        let answer = self.ask(Method::POST, self.url("oauth/revoke"), None, Content::Json(body)).await?;
        match answer.status.as_u16() {
            200..=299 | 404 => Ok(()),
            400 | 401 | 422 if !answer.names_the_client() => Ok(()),
            _ => Err(answer.refusal()),
        }
    }

    pub async fn organizations(&self, token: SecretString) -> Result<Vec<Organization>, ApiError> {
        self.call(Method::GET, self.url("organizations"), &token, Content::Nothing).await
    }

    /// One page of an organization's projects.
    pub async fn projects(&self, token: SecretString, slug: &str, offset: usize) -> Result<ProjectPage, ApiError> {
        let mut url = self.url(&format!("organizations/{}/projects", slug_segment(slug)));
        url.query_pairs_mut().append_pair("offset", &offset.to_string()).append_pair("limit", &PAGE.to_string());
        self.call(Method::GET, url, &token, Content::Nothing).await
    }

    pub async fn project(&self, token: SecretString, project: &str) -> Result<Project, ApiError> {
        self.call(Method::GET, self.url(&format!("projects/{}", segment(project))), &token, Content::Nothing).await
    }

    /// Wakes a paused project.
    pub async fn restore(&self, token: SecretString, project: &str) -> Result<(), ApiError> {
        let url = self.url(&format!("projects/{}/restore", segment(project)));
        self.done(self.ask(Method::POST, url, Some(&token), Content::Nothing).await?).map(drop)
    }

    pub async fn poolers(&self, token: SecretString, project: &str) -> Result<Vec<Pooler>, ApiError> {
        let url = self.url(&format!("projects/{}/config/database/pooler", segment(project)));
        self.call(Method::GET, url, &token, Content::Nothing).await
    }

    /// Runs a statement in a project's database, with the rights of its administrator; the rows of the last one that has any.
    pub async fn query(&self, token: SecretString, project: &str, query: &str) -> Result<Vec<Value>, ApiError> {
        let url = self.url(&format!("projects/{}/database/query", segment(project)));
        self.call(Method::POST, url, &token, Content::Json(json!({ "query": query }))).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        url: Url,
        token: &SecretString,
        content: Content<'_>,
    ) -> Result<T, ApiError> {
        self.done(self.ask(method, url, Some(token), content).await?)?.read()
    }

    fn done(&self, answer: Answered) -> Result<Answered, ApiError> {
        if answer.status.is_success() { Ok(answer) } else { Err(answer.refusal()) }
    }

    fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}/v1/{path}", self.base.path().trim_end_matches('/')));
        url
    }

    async fn ask(
        &self,
        method: Method,
        url: Url,
        token: Option<&SecretString>,
        content: Content<'_>,
    ) -> Result<Answered, ApiError> {
        let work = async {
            let request = self.http.request(method, url);
            let request = match token {
                Some(token) => request.bearer_auth(token.expose_secret()),
                None => request.header("authorization", self.basic()),
            };
            let request = match content {
                Content::Nothing => request,
                Content::Json(body) => request.header(CONTENT_TYPE, "application/json").body(body.to_string()),
                Content::Form(form) => {
                    let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
                    request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(body)
                }
            };
            let mut response = request.header("accept", "application/json").send().await?;
            let (status, retry_after) = (response.status(), rate_reset(response.headers()));
            let body = read_body(&mut response, MAX_ANSWER_BYTES).await?;
            Ok(Answered { status, retry_after, body })
        };
        match tokio::time::timeout(self.timeout, work).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(ApiError::Unknown { why: without_url(error) }),
            Err(_) => Err(ApiError::Unknown { why: format!("nothing came within {:?}", self.timeout) }),
        }
    }

    /// Our app's name and secret, for the calls about tokens.
    fn basic(&self) -> String {
        let pair = format!("{}:{}", self.client_id, self.client_secret.expose_secret());
        format!("Basic {}", STANDARD.encode(pair))
    }
}

/// The slug of an organization, which may hold dashes.
fn slug_segment(slug: &str) -> String {
    segment(slug).replace("%2D", "-")
}

struct Answered {
    status: StatusCode,
    retry_after: Duration,
    body: Vec<u8>,
}

impl Answered {
    fn read<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        serde_json::from_slice(&self.body).map_err(|error| {
            // Its own words may repeat a token.
            let why = format!("line {}, column {} ({:?})", error.line(), error.column(), error.classify());
            ApiError::Malformed { why }
        })
    }

    /// Whether it says that our app is what is wrong.
    fn names_the_client(&self) -> bool {
        #[derive(Deserialize)]
        struct Said {
            error: Option<String>,
            message: Option<String>,
        }
        let said: Option<Said> = serde_json::from_slice(&self.body).ok();
        said.is_some_and(|said| {
            said.error.into_iter().chain(said.message).any(|text| text.to_ascii_lowercase().contains("client"))
        })
    }

    fn refusal(&self) -> ApiError {
        match self.status {
            StatusCode::UNAUTHORIZED => ApiError::Unauthorized,
            StatusCode::FORBIDDEN => ApiError::Forbidden,
            StatusCode::NOT_FOUND => ApiError::NotFound,
            StatusCode::TOO_MANY_REQUESTS => ApiError::RateLimited { retry_after: self.retry_after },
            status if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
                ApiError::Unknown { why: format!("it answered {}", status.as_u16()) }
            }
            status => ApiError::Refused { status: status.as_u16() },
        }
    }
}

/// When calls are let in again: seconds from now.
fn rate_reset(headers: &HeaderMap) -> Duration {
    let said = |name| headers.get(name)?.to_str().ok()?.trim().parse::<f64>().ok();
    let seconds = said("x-ratelimit-reset").or_else(|| said("retry-after")).unwrap_or(RATE_DEFAULT as f64);
    let (least, most) = RATE_WAIT;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is kept within bounds")]
    Duration::from_secs(seconds.clamp(least as f64, most as f64).ceil() as u64)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use reqwest::StatusCode;
    use reqwest::header::{HeaderMap, HeaderValue};

    use super::{Answered, ApiError, ProjectStatus, rate_reset, slug_segment};

    #[test]
    fn what_it_says_of_its_limit_is_kept_to_within_reason() {
        let said = |name: &'static str, value: &'static str| {
            rate_reset(&HeaderMap::from_iter([(name.parse().expect("a name"), HeaderValue::from_static(value))]))
        };
        assert_eq!(said("x-ratelimit-reset", "17"), Duration::from_secs(17));
        assert_eq!(said("retry-after", "3"), Duration::from_secs(3));
        assert_eq!(said("x-ratelimit-reset", "0"), Duration::from_secs(1));
        assert_eq!(said("x-ratelimit-reset", "99999999999"), Duration::from_secs(3600));
        assert_eq!(said("x-ratelimit-reset", "soon"), Duration::from_secs(60));
    }

    #[test]
    fn our_own_secret_is_told_apart_from_a_consent_that_is_gone() {
        let names = |body: &str| {
            let answer = Answered {
                status: StatusCode::UNAUTHORIZED,
                retry_after: Duration::ZERO,
                body: body.as_bytes().into(),
            };
            answer.names_the_client()
        };
        assert!(names(r#"{"message":"Invalid client credentials"}"#) && names(r#"{"error":"invalid_client"}"#));
        assert!(!names(r#"{"message":"Invalid refresh token"}"#) && !names(r#"{"error":"invalid_grant"}"#));
        assert!(!names("not what was agreed on"));
    }

    #[test]
    fn nothing_that_was_answered_is_in_an_error() {
        let answer = Answered {
            status: StatusCode::CREATED,
            retry_after: Duration::ZERO,
            body: br#"{"access_token":["sbp_secret"],"refresh_token":"x","expires_in":1}"#.to_vec(),
        };
        let Err(error @ ApiError::Malformed { .. }) = answer.read::<super::TokenAnswer>() else {
            panic!("it was read")
        };
        assert!(!format!("{error} {error:?}").contains("secret"));
    }

    #[test]
    fn a_status_that_is_not_known_is_no_error() {
        let read = |text: &str| serde_json::from_str::<ProjectStatus>(text).expect("a status");
        assert_eq!(read("\"ACTIVE_HEALTHY\""), ProjectStatus::ActiveHealthy);
        assert_eq!(read("\"SOMETHING_NEW\""), ProjectStatus::New);
        assert_eq!(slug_segment("acme-tea_1/../x"), "acme-tea_1%2F%2E%2E%2Fx");
    }
}
