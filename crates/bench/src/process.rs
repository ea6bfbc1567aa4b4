//! The programs that are measured, and what they cost.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::report::complain;

/// The unit of `/proc/PID/stat`: Linux reports hundredths of a second to programs, whatever it counts in.
const TICK: Duration = Duration::from_millis(10);
const START_LIMIT: Duration = Duration::from_secs(30);

/// A server in a process of its own. Dropping it kills it.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    /// Reads what it goes on to say.
    _reading: JoinSet<()>,
}

impl Server {
    /// Starts `command`, whose standard error or output says `listening on http://ADDRESS`.
    pub(crate) async fn start(mut command: Command, input: Option<String>) -> anyhow::Result<Self> {
        command.stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child = command.spawn().context("starting a server")?;
        if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
            stdin.write_all(input.as_bytes()).await?;
        }
        let mut lines = BufReader::new(child.stderr.take().context("no pipe")?).lines();
        let mut said = Vec::new();
        let listening = timeout(START_LIMIT, async {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some(address) = listening(&line) {
                    return Some(address);
                }
                said.push(line);
            }
            None
        });
        let Ok(Some(address)) = listening.await else { bail!("a server did not start: {}", said.join("\n")) };
        let mut reading = JoinSet::new();
        reading.spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if !line.contains("INFO") {
                    complain(&line);
                }
            }
        });
        Ok(Self { child, address, _reading: reading })
    }

    /// What it has used of the processors so far.
    pub(crate) fn cpu(&self) -> Duration {
        self.child.id().and_then(Stat::of).map_or(Duration::ZERO, |stat| stat.own)
    }

    /// Asks it to end, and waits.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        if let Some(pid) = self.child.id() {
            Command::new("kill").arg(pid.to_string()).status().await?;
        }
        if timeout(START_LIMIT, self.child.wait()).await.is_err() {
            self.child.kill().await?;
        }
        Ok(())
    }
}

fn listening(line: &str) -> Option<SocketAddr> {
    let rest = line.split_once("listening on http://")?.1;
    rest.split([',', ' ']).next()?.parse().ok()
}

/// `tenantry` with nothing of our environment but what the bench decides.
pub(crate) fn tenantry(master_url: &str) -> anyhow::Result<Command> {
    let mut command = Command::new(program()?);
    command
        .env_clear()
        .env("MASTER_DB_URL", master_url)
        .env("ENCRYPTION_KEY", crate::rig::ENCRYPTION_KEY)
        .env("JWT_SECRET", "a-secret-of-the-benchmarks-that-is-long-enough")
        .env("ACCESS_TOKEN_TTL_S", "86400")
        .env("ALLOW_PRIVATE_DATABASES", "true")
        .env("DATABASE_TESTS_PER_MINUTE", "1000000")
        .env("LISTEN", "127.0.0.1:0")
        .env("INTERNAL_LISTEN", "127.0.0.1:0")
        // No `.env` of the developer's applies.
        .current_dir("/");
    Ok(command)
}

/// Runs `tenantry` to its end.
pub(crate) async fn run(mut command: Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output().await.context("starting tenantry")?;
    if !output.status.success() {
        bail!("tenantry failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// The program: what `cargo xtask bench` says, or what stands beside us.
fn program() -> anyhow::Result<PathBuf> {
    if let Some(path) = env("TENANTRY_BIN") {
        return Ok(path.into());
    }
    Ok(std::env::current_exe()?.with_file_name("tenantry"))
}

/// A variable of the environment.
#[expect(clippy::disallowed_methods, reason = "the one site: what cargo xtask says are our arguments")]
pub(crate) fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// What PostgreSQL has used of the processors so far: the postmaster, its children, and those that have ended.
pub(crate) fn database_cpu(server: u32) -> Duration {
    let Some(stat) = Stat::of(server) else { return Duration::ZERO };
    let Ok(processes) = std::fs::read_dir("/proc") else { return stat.own };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let children = pids.filter_map(Stat::of).filter(|child| child.parent == server);
    stat.own + stat.ended + children.map(|child| child.own).sum::<Duration>()
}

struct Stat {
    parent: u32,
    own: Duration,
    /// Of children that were waited for.
    ended: Duration,
}

impl Stat {
    /// `None` when the process is gone, or where there is no `/proc`.
    fn of(pid: u32) -> Option<Self> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is a name in brackets, which may hold anything.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |at: usize| Some(TICK * fields.get(at)?.parse().ok()?);
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            own: ticks(11)? + ticks(12)?,
            ended: ticks(13)? + ticks(14)?,
        })
    }
}
