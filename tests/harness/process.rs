//! The built program, as a user runs it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};

use kernel::Engine;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::app::{ENCRYPTION_KEY, JWT_SECRET, Owner};
use crate::client::Client;
use crate::cluster::from_environment;
use crate::wait::{eventually, within};

/// `tenantry serve` in a process of its own. Dropping it kills it.
pub struct Process {
    child: Child,
    pub address: SocketAddr,
    pub internal_address: SocketAddr,
    log: Arc<Mutex<String>>,
}

/// The environment that every command of a test gets, and nothing else.
fn command(master_url: &str) -> Command {
    let mut command = Command::new(program());
    command
        .env_clear()
        .env("PATH", from_environment("PATH").unwrap_or_default())
        .env("MASTER_DB_URL", master_url)
        .env("ENCRYPTION_KEY", ENCRYPTION_KEY)
        .env("JWT_SECRET", JWT_SECRET)
        .env("LISTEN", "127.0.0.1:0")
        .env("INTERNAL_LISTEN", "127.0.0.1:0")
        .env("ALLOW_PRIVATE_DATABASES", "true")
        .env("AUTH_REQUESTS_PER_MINUTE", "100000")
        .env("LOG", "debug")
        .env("LOG_FORMAT", "json")
        // No `.env` of the developer's applies.
        .current_dir("/")
        .kill_on_drop(true);
    command
}

/// The program: what `cargo xtask test` says, or what stands beside the test binary.
fn program() -> PathBuf {
    if let Some(path) = from_environment("TENANTRY_BIN") {
        return path.into();
    }
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.join("tenantry")));
    match beside {
        Some(path) if path.exists() => path,
        _ => panic!("the program is not built: run `cargo xtask test`, or `cargo build -p control-plane` first"),
    }
}

impl Process {
    /// Starts a node on this master database and waits until it listens.
    pub async fn serve(master_url: &str, environment: &[(&str, &str)]) -> Self {
        let mut command = command(master_url);
        command
            .arg("serve")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let log = Arc::new(Mutex::new(String::new()));
        let keep = Arc::clone(&log);
        let addresses = within("the node's start", async {
            while let Ok(Some(line)) = lines.next_line().await {
                keep.lock().unwrap().push_str(&format!("{line}\n"));
                if let Some(found) = listening(&line) {
                    return Some(found);
                }
            }
            None
        })
        .await;
        let Some((address, internal_address)) = addresses else { panic!("the node ended: {}", log.lock().unwrap()) };
        let keep = Arc::clone(&log);
        tokio::task::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                keep.lock().unwrap().push_str(&format!("{line}\n"));
            }
        });
        Self { child, address, internal_address, log }
    }

    pub fn api(&self) -> Client {
        Client::new(self.address, "localhost")
    }

    pub fn storefront(&self, hostname: &str) -> Client {
        Client::new(self.address, hostname)
    }

    /// A shopper of a store, as the API describes it.
    pub fn storefront_of(&self, store: &Value) -> Client {
        self.storefront(store["hostname"].as_str().unwrap())
    }

    pub fn internal(&self) -> Client {
        Client::new(self.internal_address, "localhost")
    }

    /// The value of a metric, summed over the series that have all of these labels (`result="ok"`).
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.internal().get("/metrics").await.text();
        text.lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
            .filter(|line| labels.iter().all(|label| line.contains(label)))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Somebody new, with an organization of their own.
    pub async fn owner(&self, name: &str) -> Owner {
        Owner::register(self.address, name).await
    }

    /// Waits until the store's last run has ended, and returns it.
    pub async fn run_ended(&self, owner: &Owner, store: &Value) -> Value {
        let path = format!("/api/stores/{}/provisioning", store["id"].as_str().unwrap());
        let owner = owner.at(self.address);
        eventually("the provisioning run's end", || async {
            let run = owner.api.get(&path).await.expect_status(200)["run"].clone();
            ["succeeded", "failed", "cancelled"].contains(&run["state"].as_str().unwrap()).then_some(run)
        })
        .await
    }

    /// A store that is served: with a managed database of this engine and made-up products.
    pub async fn active_store(&self, owner: &Owner, engine: Engine, slug: &str) -> Value {
        let store = owner.create_store(slug).await.expect_status(201);
        let managed = json!({ "managed": true, "engine": engine, "demoProducts": true });
        owner.connect(&store, managed).await.expect_status(202);
        let run = self.run_ended(owner, &store).await;
        assert_eq!(run["state"], "succeeded", "{run}");
        store
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The log, for after the process has ended.
    pub fn log_handle(&self) -> Arc<Mutex<String>> {
        Arc::clone(&self.log)
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// `kill -9`.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("it can be killed");
    }

    /// Asks it to end, and returns its exit code.
    pub async fn terminate(mut self) -> Option<i32> {
        let pid = self.pid().to_string();
        let done = Command::new("kill").args(["-TERM", &pid]).status().await.expect("kill runs");
        assert!(done.success());
        within("the node's end", self.child.wait()).await.expect("it can be waited for").code()
    }
}

fn listening(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let rest = line.split_once("listening on http://")?.1;
    let (address, rest) = rest.split_once(", internally on http://")?;
    let internal: String = rest.chars().take_while(|c| c.is_ascii_digit() || ".:[]".contains(*c)).collect();
    Some((address.parse().ok()?, internal.parse().ok()?))
}

/// A command that runs to its end.
pub struct Cli;

impl Cli {
    /// Runs `tenantry ARGUMENTS` on this master database.
    pub async fn run(master_url: &str, arguments: &[&str]) -> Output {
        let output = command(master_url).args(arguments).stdin(Stdio::null()).output();
        within(&format!("tenantry {arguments:?}"), output).await.expect("the program starts")
    }

    /// Runs it with variables set otherwise, or not at all.
    pub async fn run_in(master_url: &str, environment: &[(&str, Option<&str>)], arguments: &[&str]) -> Output {
        let mut command = command(master_url);
        for (name, value) in environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let output = command.args(arguments).stdin(Stdio::null()).output();
        within(&format!("tenantry {arguments:?}"), output).await.expect("the program starts")
    }

    /// Registers a database server.
    pub async fn add_server(master_url: &str, name: &str, url: &str) -> Value {
        let added = Self::run_in(master_url, &[("SERVER_URL", Some(url))], &["servers", "add", name, "--json"]).await;
        assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
        serde_json::from_slice(&added.stdout).expect("JSON")
    }

    /// Runs it with `--json` and returns what it answers; it must succeed.
    pub async fn json(master_url: &str, arguments: &[&str]) -> Value {
        let output = Self::run(master_url, &[arguments, &["--json"]].concat()).await;
        let (out, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "tenantry {arguments:?} failed: {log}");
        serde_json::from_str(&out)
            .unwrap_or_else(|error| panic!("tenantry {arguments:?} answered no JSON ({error}): {out}"))
    }
}
