//! Configuration: every option is also an environment variable; `.env.example` lists them all, and a test holds it so.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use kernel::Hostname;
use reqwest::Url;
use secrecy::{ExposeSecret as _, SecretString};
use tenancy::Reach;

use crate::http::outgoing::is_https_or_loopback;

/// What every command that talks to the master database needs.
#[derive(Args, Clone)]
pub struct MasterArgs {
    /// The master database, in session mode (no transaction pooler): postgres://user:password@host:port/database
    #[arg(long, env = "MASTER_DB_URL", hide_env_values = true)]
    pub master_db_url: SecretString,
    /// The most connections that one process opens to the master database
    #[arg(long, env = "MASTER_MAX_CONNECTIONS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(4..=1000))]
    pub master_max_connections: u32,
}

/// The keys that seal credentials.
#[derive(Args, Clone)]
pub struct KeyArgs {
    /// One key: base64 of 32 bytes (`tenantry keys generate` makes one)
    #[arg(long, env = "ENCRYPTION_KEY", hide_env_values = true)]
    pub encryption_key: Option<SecretString>,
    /// A ring of keys, kid:base64,kid:base64; the first one seals, all of them open. Wins over ENCRYPTION_KEY
    #[arg(long, env = "ENCRYPTION_KEYS", hide_env_values = true)]
    pub encryption_keys: Option<SecretString>,
}

impl KeyArgs {
    /// Whether a key or a ring is set.
    pub fn is_given(&self) -> bool {
        self.encryption_key.is_some() || self.encryption_keys.is_some()
    }

    /// A key that has sealed nothing, and is to seal nothing: for what only reads names and states.
    pub fn throwaway() -> Self {
        Self { encryption_key: Some(vault::generate_key()), encryption_keys: None }
    }

    /// The key ring.
    ///
    /// # Errors
    /// A sentence that names the variable, never its value.
    pub fn ring(&self) -> Result<vault::KeyRing, ConfigError> {
        let (name, ring) = match (&self.encryption_keys, &self.encryption_key) {
            (Some(ring), _) => ("ENCRYPTION_KEYS", vault::KeyRing::parse(ring.expose_secret())),
            (None, Some(key)) => ("ENCRYPTION_KEY", vault::KeyRing::single(key.expose_secret())),
            (None, None) => {
                return Err(ConfigError::Missing { name: "ENCRYPTION_KEY", how: "run `tenantry keys generate`" });
            }
        };
        ring.map_err(|error| ConfigError::Invalid { name, why: error.to_string() })
    }
}

/// Where the product answers and which names are its own.
#[derive(Args, Clone, Debug)]
pub struct HostArgs {
    /// Where the public listener answers
    #[arg(long, env = "LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Where health, metrics and the TLS question are answered; never reachable from outside
    #[arg(long, env = "INTERNAL_LISTEN", default_value = "127.0.0.1:8081")]
    pub internal_listen: SocketAddr,
    /// The domain below which every store gets a hostname of its own
    #[arg(long, env = "PLATFORM_DOMAIN", default_value = "stores.localhost", value_parser = Hostname::from_str)]
    pub platform_domain: Hostname,
    /// Hosts on which the API and the console answer, separated by commas [default: localhost, 127.0.0.1, [::1] and
    /// PLATFORM_DOMAIN itself]
    #[arg(long, env = "PLATFORM_HOSTS", value_delimiter = ',')]
    pub platform_hosts: Vec<String>,
    /// Addresses of proxies whose X-Forwarded-* headers count, separated by commas
    #[arg(long, env = "TRUSTED_PROXIES", value_delimiter = ',')]
    pub trusted_proxies: Vec<IpAddr>,
    /// How browsers reach the platform, for pages that other services lead back to [default: http://localhost and the port of
    /// LISTEN]
    #[arg(long, env = "PUBLIC_URL")]
    pub public_url: Option<String>,
}

impl HostArgs {
    /// How browsers reach the platform.
    ///
    /// # Errors
    /// When it is no URL, or one that others on the way could read.
    pub fn public_url(&self) -> Result<Url, ConfigError> {
        let invalid = |why: String| ConfigError::Invalid { name: "PUBLIC_URL", why };
        let default = || format!("http://localhost:{}", self.listen.port());
        let url = self.public_url.clone().unwrap_or_else(default);
        let url = Url::parse(&url).map_err(|error| invalid(error.to_string()))?;
        if is_https_or_loopback(&url) { Ok(url) } else { Err(invalid("must be https, or http at loopback".to_owned())) }
    }
}

/// Where what owners name may be.
pub const fn reach(allows_private: bool) -> Reach {
    if allows_private { Reach::Private } else { Reach::Public }
}

/// How organizations are told of events at their endpoints.
#[derive(Args, Clone, Debug)]
pub struct WebhookArgs {
    /// Lets owners register webhook endpoints at private and loopback addresses, and without TLS
    #[arg(long, env = "ALLOW_PRIVATE_WEBHOOKS", default_value_t = false, action = clap::ArgAction::Set)]
    pub allow_private_webhooks: bool,
    /// How long one attempt to deliver a webhook may take, from the look-up of the name to the end of the answer, in
    /// milliseconds
    #[arg(long = "webhook-timeout-ms", env = "WEBHOOK_TIMEOUT_MS", default_value = "15000", value_parser = millis)]
    pub webhook_timeout: Duration,
    /// How many webhooks one process delivers at one time; endpoints that fail get at most half of them
    #[arg(long, env = "WEBHOOK_CONCURRENCY", default_value_t = 32, value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub webhook_concurrency: u32,
    /// How many webhooks are on their way to one endpoint at one time, from all processes
    #[arg(long, env = "WEBHOOK_MAX_IN_FLIGHT", default_value_t = 4, value_parser = clap::value_parser!(i64).range(1..=100))]
    pub webhook_max_in_flight: i64,
    /// How often the outbox is looked at, in milliseconds
    #[arg(long = "webhook-poll-ms", env = "WEBHOOK_POLL_MS", default_value = "1000", value_parser = millis)]
    pub webhook_poll: Duration,
    /// How long events, and deliveries that have ended, are kept and can be sent again, in days
    #[arg(long, env = "WEBHOOK_RETENTION_DAYS", default_value_t = 30, value_parser = clap::value_parser!(i64).range(1..=3650))]
    pub webhook_retention_days: i64,
}

/// What stores are charged for by themselves.
#[derive(Args, Clone, Debug)]
pub struct ChargeArgs {
    /// How many days a store takes orders as before when its charges are not covered; then it is read-only until they are
    #[arg(long, env = "CHARGE_GRACE_DAYS", default_value_t = 7, value_parser = clap::value_parser!(i64).range(0..=365))]
    pub charge_grace_days: i64,
    /// How often it is looked at what is to be charged, in milliseconds
    #[arg(long = "charge-poll-ms", env = "CHARGE_POLL_MS", default_value = "5000", value_parser = millis)]
    pub charge_poll: Duration,
    /// How often the requests that were counted are written to master, in milliseconds; a process that is killed loses those
    /// that it has not written
    #[arg(long = "usage-flush-ms", env = "USAGE_FLUSH_MS", default_value = "10000", value_parser = millis)]
    pub usage_flush: Duration,
}

impl ChargeArgs {
    /// The days of grace.
    pub fn grace(&self) -> chrono::Duration {
        chrono::Duration::days(self.charge_grace_days)
    }
}

/// How databases are tested before they are connected.
#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    /// How long testing a database may take with all its lines, in milliseconds; over HTTP a second less than
    /// REQUEST_TIMEOUT_MS at most
    #[arg(long = "database-test-timeout-ms", env = "DATABASE_TEST_TIMEOUT_MS", default_value = "14000", value_parser = millis)]
    pub database_test_timeout: Duration,
    /// How many databases one person, and one address, may have tested a minute
    #[arg(long, env = "DATABASE_TESTS_PER_MINUTE", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub database_tests_per_minute: u32,
    /// How many databases one node tests at one time; who comes then is asked to come again
    #[arg(long, env = "DATABASE_TESTS_AT_ONCE", default_value_t = 8)]
    pub database_tests_at_once: usize,
}

/// Limits: everything that can wait has a time limit, everything that grows has a bound.
#[derive(Args, Clone, Debug)]
pub struct LimitArgs {
    /// The most open connections on the public listener
    #[arg(long, env = "MAX_CLIENT_CONNECTIONS", default_value_t = 10_000)]
    pub max_client_connections: usize,
    /// The most of them from one address, or one /64 of IPv6, trusted proxies apart
    #[arg(long, env = "MAX_CLIENT_CONNECTIONS_PER_ADDRESS", default_value_t = 1000)]
    pub max_client_connections_per_address: usize,
    /// How long a client may take to send the head of a request, or to take a piece of an answer, in milliseconds
    #[arg(long = "client-timeout-ms", env = "CLIENT_TIMEOUT_MS", default_value = "30000", value_parser = millis)]
    pub client_timeout: Duration,
    /// The longest that an ordinary request may take, in milliseconds
    #[arg(long = "request-timeout-ms", env = "REQUEST_TIMEOUT_MS", default_value = "15000", value_parser = millis)]
    pub request_timeout: Duration,
    /// The longest that a product import may take, in milliseconds
    #[arg(long = "import-timeout-ms", env = "IMPORT_TIMEOUT_MS", default_value = "600000", value_parser = millis)]
    pub import_timeout: Duration,
    /// The largest body of an ordinary request, in bytes
    #[arg(long, env = "BODY_LIMIT_BYTES", default_value_t = 256 * 1024)]
    pub body_limit_bytes: usize,
    /// The largest product file, in bytes
    #[arg(long, env = "IMPORT_LIMIT_BYTES", default_value_t = 128 * 1024 * 1024)]
    pub import_limit_bytes: usize,
    /// How fast a product file has to be sent on average, in bytes a second
    #[arg(long, env = "IMPORT_UPLOAD_BYTES_PER_S", default_value_t = 32 * 1024, value_parser = clap::value_parser!(u32).range(1..))]
    pub import_upload_bytes_per_s: u32,
    /// How far its sender may fall behind that, and how long it may be silent, in milliseconds
    #[arg(long = "import-upload-grace-ms", env = "IMPORT_UPLOAD_GRACE_MS", default_value = "15000", value_parser = millis)]
    pub import_upload_grace: Duration,
    /// How many product imports run at one time, one of them for each organization; further ones are asked to come again
    #[arg(long, env = "MAX_IMPORTS", default_value_t = 4)]
    pub max_imports: usize,
    /// The most connections to one store's database
    #[arg(long, env = "STORE_MAX_CONNECTIONS", default_value_t = 8)]
    pub store_max_connections: usize,
    /// How many of them imports and other work apart from requests may use
    #[arg(long, env = "STORE_JOB_CONNECTIONS", default_value_t = 2)]
    pub store_job_connections: usize,
    /// The most connections to one database server, of what the nodes share of it; and to all databases together that owners
    /// brought
    #[arg(long, env = "NODE_MAX_CONNECTIONS", default_value_t = 200)]
    pub node_max_connections: usize,
    /// The most stores that have a pool at one time
    #[arg(long, env = "MAX_OPEN_POOLS", default_value_t = 1000)]
    pub max_open_pools: usize,
    /// How many of the most used stores get a connection when a node starts
    #[arg(long, env = "WARM_UP_STORES", default_value_t = 50)]
    pub warm_up_stores: u32,
    /// How many requests of one store a node answers at one time; the next is refused at once
    #[arg(long, env = "STORE_MAX_REQUESTS", default_value_t = 256)]
    pub store_max_requests: usize,
    /// How long a store's idle connection is kept, in milliseconds
    #[arg(long = "store-idle-timeout-ms", env = "STORE_IDLE_TIMEOUT_MS", default_value = "60000", value_parser = millis)]
    pub store_idle_timeout: Duration,
    /// How long a request waits for a connection to its store's database, in milliseconds
    #[arg(long = "store-acquire-timeout-ms", env = "STORE_ACQUIRE_TIMEOUT_MS", default_value = "2000", value_parser = millis)]
    pub store_acquire_timeout: Duration,
    /// How long connecting to a store's database may take, in milliseconds
    #[arg(long = "store-connect-timeout-ms", env = "STORE_CONNECT_TIMEOUT_MS", default_value = "3000", value_parser = millis)]
    pub store_connect_timeout: Duration,
    /// How long one statement in a store's database may run, in milliseconds
    #[arg(long = "store-statement-timeout-ms", env = "STORE_STATEMENT_TIMEOUT_MS", default_value = "5000", value_parser = millis)]
    pub store_statement_timeout: Duration,
    /// How often stores are looked for whose copy of what they may spend is not what it should be, or whose orders are to be
    /// counted, in milliseconds
    #[arg(long = "store-visit-poll-ms", env = "STORE_VISIT_POLL_MS", default_value = "15000", value_parser = millis)]
    pub store_visit_poll: Duration,
    /// How long a resolved hostname is believed before master is asked again, in milliseconds
    #[arg(long = "route-ttl-ms", env = "ROUTE_TTL_MS", default_value = "30000", value_parser = millis)]
    pub route_ttl: Duration,
    /// How long a resolved hostname is still served while master is down, since changes were last heard of, in milliseconds: the
    /// stated staleness. Not less than ROUTE_TTL_MS, for which nobody looks whether master is there
    #[arg(long = "route-max-stale-ms", env = "ROUTE_MAX_STALE_MS", default_value = "600000", value_parser = millis)]
    pub route_max_stale: Duration,
    /// How often the log of changes is read besides hearing of them, in milliseconds
    #[arg(long = "route-recheck-ms", env = "ROUTE_RECHECK_MS", default_value = "10000", value_parser = millis)]
    pub route_recheck: Duration,
    /// How long asking master for one route may take, in milliseconds
    #[arg(long = "route-lookup-timeout-ms", env = "ROUTE_LOOKUP_TIMEOUT_MS", default_value = "2000", value_parser = millis)]
    pub route_lookup_timeout: Duration,
    /// How many distinct unknown hostnames a second may reach master
    #[arg(long, env = "UNKNOWN_HOSTS_PER_SECOND", default_value_t = 50)]
    pub unknown_hosts_per_second: u32,
    /// How many distinct unknown hostnames may reach master at once, before that rate holds
    #[arg(long, env = "UNKNOWN_HOSTS_BURST", default_value_t = 200)]
    pub unknown_hosts_burst: u32,
    /// How many password hashes are computed at one time
    #[arg(long, env = "PASSWORD_HASHERS", default_value_t = 2)]
    pub password_hashers: usize,
    /// How many sign-in requests one address may make a minute
    #[arg(long, env = "AUTH_REQUESTS_PER_MINUTE", default_value_t = 30)]
    pub auth_requests_per_minute: u32,
    /// How many provisioning runs one process works on at one time
    #[arg(long, env = "JOB_CONCURRENCY", default_value_t = 4)]
    pub job_concurrency: usize,
    /// How long shutting down waits for requests in flight, in milliseconds
    #[arg(long = "shutdown-grace-ms", env = "SHUTDOWN_GRACE_MS", default_value = "10000", value_parser = millis)]
    pub shutdown_grace: Duration,
    #[command(flatten)]
    pub doctor: DoctorArgs,
    #[command(flatten, next_help_heading = "Webhooks")]
    pub webhooks: WebhookArgs,
    #[command(flatten, next_help_heading = "Charges")]
    pub charges: ChargeArgs,
}

/// What `tenantry serve` needs.
#[derive(Args, Clone)]
pub struct Config {
    #[command(flatten)]
    pub master: MasterArgs,
    #[command(flatten)]
    pub keys: KeyArgs,
    #[command(flatten)]
    pub hosts: HostArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub payments: PaymentArgs,
    #[command(flatten)]
    pub supabase: SupabaseArgs,
    /// What access tokens are signed with: at least 32 characters
    #[arg(long, env = "JWT_SECRET", hide_env_values = true)]
    pub jwt_secret: SecretString,
    /// How long an access token is good for, in seconds
    #[arg(long = "access-token-ttl-s", env = "ACCESS_TOKEN_TTL_S", default_value = "900", value_parser = seconds)]
    pub access_token_ttl: Duration,
    /// How long a device stays signed in without being used, in seconds
    #[arg(long = "refresh-token-ttl-s", env = "REFRESH_TOKEN_TTL_S", default_value = "2592000", value_parser = seconds)]
    pub refresh_token_ttl: Duration,
    /// A folder of this node's own, on a local disk, in which it keeps, sealed, the routes that it knows and its shares of
    /// database servers: it then serves what it knew also when it is started again while master is down. Without it a node
    /// starts only with master
    #[arg(long, env = "NODE_DATA")]
    pub node_data: Option<PathBuf>,
    /// Lets owners connect databases at private and loopback addresses, and without TLS
    #[arg(long, env = "ALLOW_PRIVATE_DATABASES", default_value_t = false, action = clap::ArgAction::Set)]
    pub allow_private_databases: bool,
}

/// The payment provider.
#[derive(Args, Clone)]
pub struct PaymentArgs {
    /// Stripe's secret key; without it nothing can be bought
    #[arg(long, env = "STRIPE_SECRET_KEY", hide_env_values = true)]
    pub stripe_secret_key: Option<SecretString>,
    /// What Stripe signs webhooks with
    #[arg(long, env = "STRIPE_WEBHOOK_SECRET", hide_env_values = true)]
    pub stripe_webhook_secret: Option<SecretString>,
    /// Further secrets that webhooks may be signed with while the secret is changed, separated by commas
    #[arg(long, env = "STRIPE_WEBHOOK_SECRETS", hide_env_values = true, value_delimiter = ',')]
    pub stripe_webhook_secrets: Vec<SecretString>,
    /// Where Stripe's API answers; plain http only at loopback
    #[arg(long, env = "STRIPE_API_URL", default_value = "https://api.stripe.com")]
    pub stripe_api_url: String,
    /// How long one call of Stripe's API may take, in milliseconds
    #[arg(long = "stripe-request-timeout-ms", env = "STRIPE_REQUEST_TIMEOUT_MS", default_value = "4000", value_parser = millis)]
    pub stripe_request_timeout: Duration,
    /// How long a call may take with all its repetitions, in milliseconds
    #[arg(long = "stripe-total-timeout-ms", env = "STRIPE_TOTAL_TIMEOUT_MS", default_value = "7000", value_parser = millis)]
    pub stripe_total_timeout: Duration,
    /// How often a call is made at most, the first time counted
    #[arg(long, env = "STRIPE_MAX_ATTEMPTS", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=10))]
    pub stripe_max_attempts: u32,
    /// How old a webhook's signature may be, in seconds
    #[arg(long, env = "STRIPE_WEBHOOK_TOLERANCE_S", default_value_t = 300)]
    pub stripe_webhook_tolerance_s: u32,
    /// How often events are looked for that did not come by webhook, in seconds
    #[arg(long = "payment-sweep-s", env = "PAYMENT_SWEEP_S", default_value = "60", value_parser = seconds)]
    pub payment_sweep: Duration,
    /// How often Stripe's books are compared with ours, in seconds
    #[arg(long = "payment-reconcile-s", env = "PAYMENT_RECONCILE_S", default_value = "3600", value_parser = seconds)]
    pub payment_reconcile: Duration,
    /// How often it is looked at which organizations run out of credits and have set an automatic top-up, in milliseconds
    #[arg(long = "top-up-poll-ms", env = "TOP_UP_POLL_MS", default_value = "5000", value_parser = millis)]
    pub top_up_poll: Duration,
    /// How long an automatic top-up waits after a payment was declined, in seconds
    #[arg(long = "top-up-first-backoff-s", env = "TOP_UP_FIRST_BACKOFF_S", default_value = "3600", value_parser = seconds)]
    pub top_up_first_backoff: Duration,
    /// How long it waits after a second decline, in seconds; after a third it is off
    #[arg(long = "top-up-second-backoff-s", env = "TOP_UP_SECOND_BACKOFF_S", default_value = "21600", value_parser = seconds)]
    pub top_up_second_backoff: Duration,
}

/// Supabase, where owners may let us into a project of theirs.
#[derive(Args, Clone)]
pub struct SupabaseArgs {
    /// The client id of our OAuth app at Supabase; without it nobody signs in there
    #[arg(long, env = "SUPABASE_CLIENT_ID")]
    pub supabase_client_id: Option<String>,
    /// The client secret of that app
    #[arg(long, env = "SUPABASE_CLIENT_SECRET", hide_env_values = true)]
    pub supabase_client_secret: Option<SecretString>,
    /// Where Supabase's management API answers; plain http only at loopback
    #[arg(long, env = "SUPABASE_API_URL", default_value = "https://api.supabase.com")]
    pub supabase_api_url: String,
    /// The certificates of Supabase's own authority, as a file of PEM: projects are then spoken to with `verify-full`. Without
    /// it with `require`, which encrypts and does not check who answers, since no public authority vouches for them
    #[arg(long, env = "SUPABASE_CA_FILE")]
    pub supabase_ca_file: Option<PathBuf>,
    /// The page of a console that a browser is led to after the consent, with the completion code in the fragment; without it
    /// the code is shown
    #[arg(long, env = "SUPABASE_RETURN_URL")]
    pub supabase_return_url: Option<String>,
    /// How long one call of the management API may take, in milliseconds; 10,000 at most
    #[arg(long = "supabase-request-timeout-ms", env = "SUPABASE_REQUEST_TIMEOUT_MS", default_value = "4000", value_parser = call_limit)]
    pub supabase_request_timeout: Duration,
    /// Where projects' own hosts listen
    #[arg(long, env = "SUPABASE_DIRECT_PORT", default_value_t = 5432)]
    pub supabase_direct_port: u16,
    /// Where projects' poolers listen in session mode
    #[arg(long, env = "SUPABASE_SESSION_PORT", default_value_t = 5432)]
    pub supabase_session_port: u16,
    /// How often it is looked at what is still to be revoked, in milliseconds
    #[arg(long = "supabase-sweep-ms", env = "SUPABASE_SWEEP_MS", default_value = "30000", value_parser = millis)]
    pub supabase_sweep: Duration,
}

/// How log lines look and which are written.
#[derive(Args, Clone, Debug)]
pub struct LogArgs {
    /// Which log lines are written, in the syntax of tracing's EnvFilter
    #[arg(long, env = "LOG", default_value = "info", global = true)]
    pub log: String,
    /// `text` for people, `json` for machines
    #[arg(long, env = "LOG_FORMAT", default_value = "text", global = true)]
    pub log_format: LogFormat,
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One readable line.
    Text,
    /// One JSON object.
    Json,
}

/// Configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A variable is needed and not there.
    #[error("{name} is not set: {how}")]
    Missing { name: &'static str, how: &'static str },
    /// A variable holds something unusable.
    #[error("{name} is not valid: {why}")]
    Invalid { name: &'static str, why: String },
}

fn millis(text: &str) -> Result<Duration, String> {
    text.parse().map(Duration::from_millis).map_err(|_| "expected a whole number of milliseconds".to_owned())
}

/// A claim on what is called under it lasts longer.
fn call_limit(text: &str) -> Result<Duration, String> {
    millis(text).and_then(|limit| {
        let is_short = (Duration::from_millis(1)..=Duration::from_secs(10)).contains(&limit);
        if is_short { Ok(limit) } else { Err("expected 1 to 10000 milliseconds".to_owned()) }
    })
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse().map(Duration::from_secs).map_err(|_| "expected a whole number of seconds".to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use clap::CommandFactory as _;

    use crate::cli::Cli;

    /// The variables of a command and of those below it.
    fn collect(command: &clap::Command, into: &mut BTreeSet<String>) {
        for argument in command.get_arguments() {
            into.extend(argument.get_env().map(|name| name.to_string_lossy().into_owned()));
        }
        for below in command.get_subcommands() {
            collect(below, into);
        }
    }

    #[test]
    fn the_example_names_every_variable_once_with_a_comment() {
        let mut known = BTreeSet::new();
        collect(&Cli::command(), &mut known);
        let mut named = BTreeMap::new();
        let mut comment = false;
        for line in include_str!("../../.env.example").lines() {
            match line.trim_start_matches('#').split_once('=') {
                Some((name, _)) if !name.starts_with(' ') => {
                    assert!(comment, "{name} has no comment above it");
                    assert!(named.insert(name.to_owned(), ()).is_none(), "{name} stands there twice");
                    comment = false;
                }
                _ => comment = line.starts_with("# "),
            }
        }
        assert_eq!(named.into_keys().collect::<BTreeSet<_>>(), known);
    }
}
