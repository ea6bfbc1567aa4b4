//! Programs of other people that tests measure ours by, each in a process of its own. `cargo xtask test` fetches them
//! (`tests/peers` pins them), and they end with whoever started them, however that ends: dropping one kills it, and each
//! ends by itself with its input.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use http::Method;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, Command};

use crate::client::{Client, Response};
use crate::cluster::from_environment;
use crate::wait::within;

/// What xtask writes once the folder of the peers is complete.
#[derive(Deserialize)]
struct Ready {
    python: PathBuf,
    node: PathBuf,
}

/// The folder of the peers: what `cargo xtask test` says, or where it has put them for this test binary.
fn folder() -> PathBuf {
    let told = from_environment("TENANTRY_PEERS").map(PathBuf::from);
    let beside = || {
        let exe = std::env::current_exe().ok()?;
        exe.ancestors().map(|dir| dir.join("peers")).find(|dir| dir.join("ready.json").is_file())
    };
    told.or_else(beside).expect("the tests' peers are not here: `cargo xtask test` fetches them")
}

fn ready(folder: &Path) -> Ready {
    let file = folder.join("ready.json");
    let text = std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// One of our scripts in `tests/peers`.
fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(name)
}

fn python(name: &str) -> Command {
    let folder = folder();
    let mut command = Command::new(ready(&folder).python);
    command.arg(script(name)).env("PYTHONPATH", folder.join("python")).env("PYTHONUTF8", "1");
    command
}

fn node(name: &str) -> Command {
    let folder = folder();
    let mut command = Command::new(ready(&folder).node);
    command.arg(script(name)).env("NODE_PATH", folder.join("node/node_modules"));
    command
}

/// A process that is spoken to line by line.
struct Running {
    input: ChildStdin,
    output: Lines<BufReader<Box<dyn AsyncRead + Send + Unpin>>>,
    _child: Child,
}

impl Running {
    fn start(mut command: Command) -> Self {
        // What it complains of belongs to the output of the test run.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        let input = child.stdin.take().expect("piped");
        let output: Box<dyn AsyncRead + Send + Unpin> = Box::new(child.stdout.take().expect("piped"));
        let output = BufReader::new(output).lines();
        Self { input, output, _child: child }
    }

    /// Has the rest of its output thrown away.
    fn drained(mut self) -> Self {
        let (_, nothing) = tokio::io::duplex(1);
        let nothing: Box<dyn AsyncRead + Send + Unpin> = Box::new(nothing);
        let mut output = std::mem::replace(&mut self.output, BufReader::new(nothing).lines());
        tokio::spawn(async move { while let Ok(Some(_)) = output.next_line().await {} });
        self
    }

    async fn line(&mut self, of: &str) -> String {
        within(of, self.output.next_line())
            .await
            .expect("text")
            .unwrap_or_else(|| panic!("{of}: the process has ended"))
    }
}

/// A library of the payment provider's, or of a standard's, that answers questions: one process for all that a test asks.
pub struct Peer(Running);

impl Peer {
    /// npm's `stripe` and `standardwebhooks`; `tests/peers/ask_node.cjs` says what it answers.
    pub fn node() -> Self {
        Self(Running::start(node("ask_node.cjs")))
    }

    /// PyPI's `stripe`; `tests/peers/ask_python.py` says what it answers.
    pub fn python() -> Self {
        Self(Running::start(python("ask_python.py")))
    }

    /// What it answers, or what its library says against it.
    pub async fn ask(&mut self, question: &Value) -> Result<Value, Value> {
        self.0.input.write_all(format!("{question}\n").as_bytes()).await.expect("it listens");
        let line = self.0.line("a peer's answer").await;
        let mut answer: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        match answer.get_mut("error") {
            Some(error) => Err(error.take()),
            None => Ok(answer["ok"].take()),
        }
    }
}

/// localstripe, unmodified, with a state of its own: a payment provider that others have written. GPL-3.0: it is spoken to
/// by HTTP only.
pub struct Localstripe {
    pub address: SocketAddr,
    _running: Running,
}

impl Localstripe {
    /// Any key of this form is let in.
    pub const SECRET_KEY: &str = "sk_test_of_localstripe";
    pub const PUBLISHABLE_KEY: &str = "pk_test_of_localstripe";

    /// Starts one, on loopback, and waits until it answers.
    pub async fn start() -> Self {
        let mut running = Running::start(python("start_localstripe.py"));
        let port = running.line("localstripe's port").await;
        let address = SocketAddr::from(([127, 0, 0, 1], port.parse().expect("a port")));
        let localstripe = Self { address, _running: running };
        localstripe.api().get("/v1/customers").await.expect_status(200);
        localstripe
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Somebody with its secret key.
    pub fn api(&self) -> Client {
        Client::new(self.address, "localhost").with_token(Self::SECRET_KEY)
    }

    /// Sends a form.
    pub async fn post(&self, path: &str, form: &[(&str, &str)]) -> Response {
        let body = form_encoded(form);
        self.api().send_bytes(Method::POST, path, FORM, body).await
    }

    /// Has events sent there, signed with this secret, about a second after they happened: each once, in no order.
    pub async fn send_webhooks(&self, url: &str, secret: &str) {
        self.post("/_config/webhooks/test", &[("url", url), ("secret", secret)]).await.expect_status(200);
    }

    /// The owner of a card tells of it in the browser, where a setup was begun for that; the card's name.
    pub async fn fill_in(&self, setup_intent: &str, client_secret: &str, customer: &str, number: &str) -> String {
        let form = [
            ("key", Self::PUBLISHABLE_KEY),
            ("client_secret", client_secret),
            ("payment_method_data[type]", "card"),
            ("payment_method_data[card][number]", number),
            ("payment_method_data[card][exp_month]", "12"),
            ("payment_method_data[card][exp_year]", "2040"),
            ("payment_method_data[card][cvc]", "123"),
        ];
        let browser = Client::new(self.address, "localhost");
        let path = format!("/v1/setup_intents/{setup_intent}/confirm");
        let answer = browser.send_bytes(Method::POST, &path, FORM, form_encoded(&form)).await;
        let card = answer.expect_status(200)["payment_method"].as_str().expect("a card").to_owned();
        // Stripe makes it the customer's by that; localstripe has to be told.
        self.attach(&card, customer).await;
        card
    }

    async fn attach(&self, card: &str, customer: &str) {
        self.post(&format!("/v1/payment_methods/{card}/attach"), &[("customer", customer)]).await.expect_status(200);
    }

    /// Somebody's card, ready to be charged.
    pub async fn card(&self, customer: &str, number: &str) -> String {
        let card = [
            ("type", "card"),
            ("card[number]", number),
            ("card[exp_month]", "12"),
            ("card[exp_year]", "2040"),
            ("card[cvc]", "123"),
        ];
        let method = self.post("/v1/payment_methods", &card).await.expect_status(200);
        let id = method["id"].as_str().expect("an id").to_owned();
        self.attach(&id, customer).await;
        id
    }

    /// The owner of a card answers their bank, in the browser.
    pub async fn authenticate(&self, payment_intent: &str, succeeds: bool) -> Response {
        let path = format!("/v1/payment_intents/{payment_intent}");
        let intent = self.api().get(&path).await.expect_status(200);
        let form = [
            ("key", Self::PUBLISHABLE_KEY),
            ("client_secret", intent["client_secret"].as_str().expect("a secret")),
            ("success", if succeeds { "true" } else { "false" }),
        ];
        let browser = Client::new(self.address, "localhost");
        let path = format!("{path}/_authenticate");
        browser.send_bytes(Method::POST, &path, FORM, form_encoded(&form)).await
    }
}

/// Prism, unmodified: it stands before a server of ours, and answers 500 in its place to whatever does not fit a description.
pub struct Prism {
    pub address: SocketAddr,
    _running: Running,
}

impl Prism {
    /// Starts one, on loopback, and waits until it listens.
    pub async fn judge(description: &Path, upstream: &str) -> Self {
        let mut command = node("start_prism.cjs");
        command.arg(description).arg(upstream);
        let mut running = Running::start(command);
        let mut port = None;
        loop {
            let line = running.line("Prism's start").await;
            if let Some(told) = line.strip_prefix("port ") {
                port = told.parse().ok();
            } else if line.contains("Prism is listening") {
                break;
            }
        }
        let address = SocketAddr::from(([127, 0, 0, 1], port.expect("it says its port first")));
        // What it says of each call is read and passed over, so that it never waits for a reader.
        Self { address, _running: running.drained() }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// The description of Supabase's API in our own words, which is as much of it as we use.
pub fn supabase_description() -> PathBuf {
    script("supabase.openapi.json")
}

const FORM: &str = "application/x-www-form-urlencoded";

fn form_encoded(form: &[(&str, &str)]) -> String {
    url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish()
}
