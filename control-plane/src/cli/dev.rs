//! `tenantry dev`: everything on one machine. A private PostgreSQL under a data folder, master migrated, a database server
//! registered, a demo owner and a demo store with products; then it serves. A second start takes up where the first stopped.

use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, FromArgMatches as _};
use devkit::payments::{TestPayments, TestPaymentsOptions};
use devkit::{Postgres, PostgresOptions, Profile};
use kernel::{Engine, StoreStatus, SystemClock};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};

use super::output::{Printed, print};
use super::serve::Signals;
use crate::audit::Actor;
use crate::config::{Config, PaymentArgs};
use crate::cx::Cx;
use crate::provisioning::{self, NewDatabase, RunState};
use crate::servers::{self, NewServer, ServerError};
use crate::stores::{self, Store};
use crate::{identity, master, serve, telemetry};

const DEMO_EMAIL: &str = "demo@example.com";
const DEMO_SLUG: &str = "demo-tea";
const READY_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Args)]
pub(super) struct DevArgs {
    /// Where the private PostgreSQL and the secrets of this machine are kept
    #[arg(long, env = "DEV_DATA", default_value = "data")]
    data: PathBuf,
    /// A folder with PostgreSQL's programs, when they are at no usual place
    #[arg(long, env = "PG_BINDIR")]
    pg_bindir: Option<PathBuf>,
    /// Use this master database instead of a private PostgreSQL; its login must be able to create databases and roles
    #[arg(long, env = "MASTER_DB_URL", hide_env_values = true)]
    master_db_url: Option<SecretString>,
    /// Where the public listener answers
    #[arg(long, env = "LISTEN", default_value = "127.0.0.1:8080")]
    listen: String,
    /// Where health and metrics are answered
    #[arg(long, env = "INTERNAL_LISTEN", default_value = "127.0.0.1:8081")]
    internal_listen: String,
    /// Where the test payment provider answers that stands in for Stripe while STRIPE_SECRET_KEY is not set; loopback only
    #[arg(long, env = "DEV_PAYMENTS_LISTEN", default_value = "127.0.0.1:0")]
    payments_listen: SocketAddr,
    /// Lets owners connect databases at private and loopback addresses, and without TLS
    #[arg(long, env = "ALLOW_PRIVATE_DATABASES", default_value_t = true, action = clap::ArgAction::Set)]
    allow_private_databases: bool,
    /// Lets owners register webhook endpoints at private and loopback addresses, and without TLS
    #[arg(long, env = "ALLOW_PRIVATE_WEBHOOKS", default_value_t = true, action = clap::ArgAction::Set)]
    allow_private_webhooks: bool,
}

/// What is made up once for this machine and kept.
#[derive(Serialize, Deserialize)]
struct Secrets {
    encryption_key: String,
    jwt_secret: String,
    demo_password: String,
}

pub(super) async fn run(args: DevArgs) -> Result<ExitCode, anyhow::Error> {
    std::fs::create_dir_all(&args.data)
        .with_context(|| format!("cannot make the data folder {}", args.data.display()))?;
    let data = args.data.canonicalize()?;
    let secrets = secrets(&data.join("secrets.json"))?;
    let (postgres, admin_url) = match &args.master_db_url {
        Some(url) => (None, url.clone()),
        None => {
            let mut options = PostgresOptions::new(data.join("postgres"), Profile::Dev);
            options.bin_dir.clone_from(&args.pg_bindir);
            let postgres = Postgres::start(options).await?;
            let url = SecretString::from(postgres.url("postgres"));
            (Some(postgres), url)
        }
    };
    let outcome = serve_demo(&args, &data, &secrets, postgres.as_ref(), &admin_url).await;
    if let Some(postgres) = postgres {
        postgres.stop().await?;
    }
    outcome.map(|()| ExitCode::SUCCESS)
}

async fn serve_demo(
    args: &DevArgs,
    data: &Path,
    secrets: &Secrets,
    postgres: Option<&Postgres>,
    admin_url: &SecretString,
) -> Result<(), anyhow::Error> {
    let master_url = match postgres {
        Some(postgres) => {
            master::create(admin_url).await?;
            SecretString::from(postgres.url("tenantry_master"))
        }
        None => admin_url.clone(),
    };
    let mut config = config(args, secrets, &master_url)?;
    let provider = payments(args, &mut config).await?;
    // Of the test provider only: who brings a key of Stripe's has it in an environment of their own.
    let test_payments = provider.as_ref().map(|_| config.payments.clone());
    let mut signals = Signals::listen()?;
    master::migrate(&config.master).await?;
    let metrics = telemetry::init_metrics()?;
    let node = serve::Node::start(config, Arc::new(SystemClock), metrics).await?;
    if let Some(provider) = &provider {
        provider.set_webhook_url(&format!("http://127.0.0.1:{}/api/webhooks/stripe", node.address.port()));
    }
    let served = async {
        let store = prepare(&node.cx, secrets, admin_url).await?;
        let environment = write_environment(args, data, secrets, &master_url, test_payments.as_ref())?;
        announce(&node, &store, secrets, &environment, provider.as_ref())?;
        std::future::pending().await
    };
    let outcome = tokio::select! {
        outcome = served => outcome,
        () = signals.asked_to_stop() => Ok(()),
    };
    tracing::info!("shutting down");
    node.stop().await;
    if let Some(provider) = provider {
        provider.stop().await;
    }
    outcome
}

/// Without a key of Stripe's, a test provider of our own takes its place: no money moves, and everything says so.
async fn payments(args: &DevArgs, config: &mut Config) -> Result<Option<TestPayments>, anyhow::Error> {
    if config.payments.stripe_secret_key.is_some() {
        return Ok(None);
    }
    let options = TestPaymentsOptions {
        listen: args.payments_listen,
        secret_key: format!("sk_test_{}", kernel::random::token()),
        webhook_secret: format!("whsec_{}", kernel::random::token()),
        webhook_url: None,
    };
    config.payments.stripe_secret_key = Some(options.secret_key.clone().into());
    config.payments.stripe_webhook_secret = Some(options.webhook_secret.clone().into());
    let provider = TestPayments::start(options).await?;
    config.payments.stripe_api_url = provider.url().to_owned();
    Ok(Some(provider))
}

fn config(args: &DevArgs, secrets: &Secrets, master_url: &SecretString) -> Result<Config, anyhow::Error> {
    let command = Config::augment_args(clap::Command::new("dev"));
    let [databases, webhooks] = [args.allow_private_databases, args.allow_private_webhooks].map(|is| is.to_string());
    // In one word with its name: a secret may begin with a dash.
    let arguments = [
        ("master-db-url", master_url.expose_secret()),
        ("encryption-key", &secrets.encryption_key),
        ("jwt-secret", &secrets.jwt_secret),
        ("listen", &args.listen),
        ("internal-listen", &args.internal_listen),
        ("allow-private-databases", &databases),
        ("allow-private-webhooks", &webhooks),
    ];
    let words = arguments.iter().map(|(name, value)| format!("--{name}={value}"));
    let matches = command.try_get_matches_from(std::iter::once("dev".to_owned()).chain(words))?;
    Ok(Config::from_arg_matches(&matches)?)
}

fn secrets(path: &Path) -> Result<Secrets, anyhow::Error> {
    if path.exists() {
        let text = std::fs::read_to_string(path)?;
        return serde_json::from_str(&text)
            .with_context(|| format!("{} cannot be read; remove it together with the data folder", path.display()));
    }
    let secrets = Secrets {
        encryption_key: vault::generate_key().expose_secret().to_owned(),
        jwt_secret: kernel::random::token(),
        demo_password: kernel::random::token().chars().filter(char::is_ascii_alphanumeric).take(16).collect(),
    };
    write_private(path, &serde_json::to_string_pretty(&secrets)?)?;
    Ok(secrets)
}

/// Makes a file that nobody else may read.
fn write_private(path: &Path, text: &str) -> Result<(), std::io::Error> {
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// What the other commands need to act on this machine's master database, and at the test payment provider, for a shell.
fn write_environment(
    args: &DevArgs,
    data: &Path,
    secrets: &Secrets,
    master_url: &SecretString,
    test_payments: Option<&PaymentArgs>,
) -> Result<PathBuf, anyhow::Error> {
    let path = data.join("dev.env");
    let allow_private_databases = args.allow_private_databases.to_string();
    let mut lines = vec![
        ("MASTER_DB_URL", master_url.expose_secret()),
        ("ENCRYPTION_KEY", &secrets.encryption_key),
        ("JWT_SECRET", &secrets.jwt_secret),
        ("ALLOW_PRIVATE_DATABASES", &allow_private_databases),
    ];
    if let Some(payments) = test_payments {
        lines.push(("STRIPE_API_URL", &payments.stripe_api_url));
        let key = payments.stripe_secret_key.as_ref().map(|key| ("STRIPE_SECRET_KEY", key.expose_secret()));
        let secret =
            payments.stripe_webhook_secret.as_ref().map(|secret| ("STRIPE_WEBHOOK_SECRET", secret.expose_secret()));
        lines.extend(key.into_iter().chain(secret));
    }
    let quoted = lines.iter().map(|(name, value)| format!("{name}='{}'\n", value.replace('\'', "'\\''")));
    let text: String = quoted.collect();
    // Made anew, so that it has the rights that it is made with. The last start's may be there.
    if let Err(error) = std::fs::remove_file(&path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error.into());
    }
    write_private(&path, &text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Registers the server, the owner and the store that are not there yet, and waits until the store is served.
async fn prepare(cx: &Cx, secrets: &Secrets, admin_url: &SecretString) -> Result<Store, anyhow::Error> {
    let new = NewServer {
        name: "local".to_owned(),
        engine: Some(Engine::Postgresql),
        url: admin_url.clone(),
        ca_pem: None,
        region: Some("local".to_owned()),
        max_stores: 1000,
        max_connections: 80,
    };
    match servers::add(cx, Actor::System, new).await {
        Ok(_) | Err(ServerError::NameTaken | ServerError::Registered { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let password = SecretString::from(secrets.demo_password.clone());
    let store = match identity::login(cx, DEMO_EMAIL, password.clone(), None).await {
        Ok(owner) => {
            let (mine, _) = stores::list(cx, owner.user.id, None, None, None).await?;
            mine.into_iter()
                .find(|store| store.slug == DEMO_SLUG)
                .context("the demo owner has no demo store; remove the data folder")?
        }
        Err(identity::IdentityError::InvalidCredentials) => {
            let new = identity::NewUser {
                email: DEMO_EMAIL.to_owned(),
                password,
                first_name: "Demo".to_owned(),
                last_name: "Owner".to_owned(),
                store_name: Some("Demo Tea".to_owned()),
            };
            let made = identity::register(cx, new).await?;
            identity::admin_grant(cx, Actor::System, DEMO_EMAIL).await?;
            made.store.context("registering with a store name makes a store")?
        }
        Err(error) => return Err(error.into()),
    };
    if store.status == StoreStatus::PendingDatabase {
        provisioning::connect(
            cx,
            Actor::System,
            store.id,
            NewDatabase::Managed { engine: Engine::Postgresql, region: None },
            true,
        )
        .await?;
    }
    wait_until_served(cx, store).await
}

async fn wait_until_served(cx: &Cx, store: Store) -> Result<Store, anyhow::Error> {
    let mut news = cx.run_events.subscribe();
    let waiting = async {
        loop {
            let now = stores::find(cx, store.id).await?;
            if now.status != StoreStatus::Provisioning {
                return Ok(now);
            }
            let run = provisioning::latest(cx, store.id).await?;
            if run.run.state == RunState::Failed {
                let step = run.failed_step();
                let part = |text: Option<&String>| text.cloned().unwrap_or_default();
                anyhow::bail!(
                    "preparing the demo store failed: {} {}",
                    part(step.and_then(|step| step.error.as_ref())),
                    part(step.and_then(|step| step.advice.as_ref())),
                );
            }
            // A lost notification costs a second, not the start.
            let _ = tokio::time::timeout(Duration::from_secs(1), news.recv()).await;
        }
    };
    tokio::time::timeout(READY_TIMEOUT, waiting)
        .await
        .context("the demo store was not ready in time; see the log above")?
}

fn announce(
    node: &serve::Node,
    store: &Store,
    secrets: &Secrets,
    environment: &Path,
    payments: Option<&TestPayments>,
) -> Result<(), anyhow::Error> {
    let program = std::env::current_exe()?;
    let here = std::env::current_dir()?;
    let shown = |path: &Path| path.strip_prefix(&here).unwrap_or(path).display().to_string();
    // A shell looks for a bare name elsewhere.
    let sourced =
        environment.strip_prefix(&here).map_or_else(|_| shown(environment), |path| format!("./{}", path.display()));
    let paid_at = payments.map_or("Stripe", TestPayments::url);
    let is_test = if payments.is_some() { "   TEST: no money moves" } else { "" };
    let (port, internal) = (node.address.port(), node.internal_address);
    let host = store.hostname.as_deref().unwrap_or_default();
    let printed = Printed::new(serde_json::Value::Null)
        .line("")
        .line("Tenantry is ready.")
        .line("")
        .line(format!("  storefront   http://{host}:{port}/store/v1/products"))
        .line(format!("  API          http://localhost:{port}/docs      described: http://localhost:{port}/openapi.json"))
        .line(format!("  internal     http://{internal}/health/ready   http://{internal}/metrics"))
        .line(format!("  payments     {paid_at}{is_test}"))
        .line(format!("  demo login   {DEMO_EMAIL} / {}", secrets.demo_password))
        .line(format!("  commands     (set -a; . '{sourced}'; '{}' doctor)", shown(&program)))
        .line("")
        .line(format!("  curl 'http://{host}:{port}/store/v1/products'"))
        .line(format!("  curl 'http://{host}:{port}/store/v1/products?q=green&sort=price'"))
        .line(format!(
            "  curl -H 'content-type: application/json' -d '{{\"email\":\"{DEMO_EMAIL}\",\"password\":\"{}\"}}' 'http://localhost:{port}/api/auth/login'",
            secrets.demo_password
        ))
        .line("")
        .line("Ctrl-C ends everything; the next start takes it up again.");
    print(false, &printed)
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches as _};
    use secrecy::ExposeSecret as _;

    use super::{DevArgs, Secrets, config};

    fn args(words: &[&str]) -> DevArgs {
        let command = DevArgs::augment_args(clap::Command::new("dev"));
        let matches = command.try_get_matches_from([&["dev"], words].concat()).expect("they are understood");
        DevArgs::from_arg_matches(&matches).expect("they are understood")
    }

    fn secrets() -> Secrets {
        Secrets {
            encryption_key: vault::generate_key().expose_secret().to_owned(),
            jwt_secret: "a-secret-that-is-long-enough-to-sign-with".to_owned(),
            demo_password: "demo".to_owned(),
        }
    }

    #[test]
    fn private_networks_are_open_to_owners_unless_it_is_said_otherwise() {
        let allowed = |words: &[&str]| {
            let config = config(&args(words), &secrets(), &"postgres://localhost/master".into()).expect("it is usable");
            (config.allow_private_databases, config.limits.webhooks.allow_private_webhooks)
        };
        assert_eq!(allowed(&[]), (true, true));
        assert_eq!(allowed(&["--allow-private-databases=false"]), (false, true));
        assert_eq!(allowed(&["--allow-private-webhooks=false"]), (true, false));
    }

    #[test]
    fn a_made_up_secret_may_begin_with_a_dash() {
        let secret = "-2_a-secret-that-is-long-enough-to-sign-with";
        let secrets = Secrets { jwt_secret: secret.to_owned(), ..secrets() };
        let config = config(&args(&[]), &secrets, &"postgres://localhost/master".into()).expect("it is usable");
        assert_eq!(config.jwt_secret.expose_secret(), secret);
    }
}
