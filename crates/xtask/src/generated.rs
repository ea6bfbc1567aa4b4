//! Files that a program writes and we commit: queries as the database sees them, and the API's description.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, bail, ensure};

use crate::ready::{self, Server};
use crate::run::{output, run, say};
use crate::shown;
use crate::workspace::Workspace;

/// Renews `control-plane/.sqlx`, or compares it with what the queries and the migrations say today. The description files
/// are what the macros write when `compile` (a cargo command that checks control-plane) finds them a database: no sqlx-cli,
/// which takes minutes to build.
pub(crate) fn sqlx(workspace: &Workspace, check: bool, mut compile: Command) -> anyhow::Result<()> {
    let committed = workspace.root.join("control-plane/.sqlx");
    let fresh = workspace.target.join("xtask/sqlx");
    if fresh.exists() {
        fs::remove_dir_all(&fresh)?;
    }
    fs::create_dir_all(&fresh)?;

    let server = ready::server(workspace)?;
    let throwaway = Throwaway::start(workspace, &server)?;
    let url = throwaway.migrated_database(workspace, &server)?;
    // The macros look at their sources only, not at the environment: without a touch nothing would be described.
    for root in ["control-plane/src/lib.rs", "control-plane/src/main.rs"] {
        touch(&workspace.root.join(root))?;
    }
    compile.env("SQLX_OFFLINE", "false").env("SQLX_OFFLINE_DIR", &fresh).env("DATABASE_URL", &url);
    let checked = run(compile);
    throwaway.stop()?;
    checked?;

    let (old, new) = (files(&committed)?, files(&fresh)?);
    let differences = differences(&old, &new);
    if check {
        ensure!(
            differences.is_empty(),
            "control-plane/.sqlx is not current; run `cargo xtask sqlx` and commit:\n  {}",
            differences.join("\n  ")
        );
        return Ok(());
    }
    fs::create_dir_all(&committed)?;
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        fs::remove_file(committed.join(name))?;
    }
    for (name, text) in new.iter().filter(|(name, text)| old.get(*name) != Some(*text)) {
        fs::write(committed.join(name), text)?;
    }
    say(&format!("{} queries described, {} files changed", new.len(), differences.len()));
    Ok(())
}

/// Renews `control-plane/openapi.json`, or compares it with what the handlers say today.
pub(crate) fn openapi(workspace: &Workspace, check: bool) -> anyhow::Result<()> {
    let mut tenantry = Command::new(workspace.build_tenantry()?);
    tenantry.arg("openapi").current_dir(&workspace.root);
    let new = output(tenantry)?;
    ensure!(new.contains("\"openapi\""), "`tenantry openapi` printed no API description");
    let file = workspace.root.join("control-plane/openapi.json");
    let old = fs::read_to_string(&file).unwrap_or_default();
    if old == new {
        return Ok(());
    }
    if check {
        let line = 1 + old.lines().zip(new.lines()).take_while(|(old, new)| old == new).count();
        bail!("{} is not current from line {line} on; run `cargo xtask openapi` and commit", shown(workspace, &file));
    }
    fs::write(&file, new)?;
    say(&format!("renewed {}", shown(workspace, &file)));
    Ok(())
}

/// A server that goes when we go: it is held by `devkit-hold`, which stops it when its input ends.
struct Throwaway {
    holder: Child,
    url: String,
}

impl Throwaway {
    fn start(workspace: &Workspace, server: &Server) -> anyhow::Result<Throwaway> {
        // The whole workspace's features, so that nothing that the tests need is built for this alone.
        run(workspace.cargo(&["build", "--workspace", "--bin", "devkit-hold", "--quiet"]))?;
        let mut command = Command::new(workspace.built("debug", "devkit-hold"));
        command.arg("--data-dir").arg(workspace.target.join("devkit/sqlx"));
        command.args(["--profile", "test", "--bin-dir"]).arg(&server.bin_dir);
        let mut holder =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting devkit-hold")?;
        let mut line = String::new();
        let stdout = holder.stdout.take().context("devkit-hold has no output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        match url_in(&line) {
            Some(url) => Ok(Throwaway { holder, url: url.to_owned() }),
            None => bail!("devkit-hold did not start a server ({})", holder.wait()?),
        }
    }

    /// A new database with every migration of master, and its URL.
    fn migrated_database(&self, workspace: &Workspace, server: &Server) -> anyhow::Result<String> {
        let (user, password, host, port) = address(&self.url).context("devkit-hold gave no URL of a server")?;
        let psql = |database: &str, args: &[&str]| {
            let mut command = Command::new(server.bin_dir.join("psql"));
            command.args(["--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--dbname", database]).args(args);
            // Not among the arguments: those are for everybody to see.
            command.env("PGUSER", user).env("PGPASSWORD", password).env("PGHOST", host).env("PGPORT", port);
            command
        };
        run(psql("postgres", &["-c", "drop database if exists sqlx_prepare", "-c", "create database sqlx_prepare"]))?;
        for file in migrations(&workspace.root.join("migrations-master"))? {
            let text = fs::read_to_string(&file)?;
            let transaction: &[&str] = if is_transactional(&text) { &["--single-transaction"] } else { &[] };
            let mut command = psql("sqlx_prepare", transaction);
            command.arg("--file").arg(&file);
            run(command).with_context(|| format!("applying {}", shown(workspace, &file)))?;
        }
        Ok(format!("postgres://{user}:{password}@{host}:{port}/sqlx_prepare"))
    }

    fn stop(mut self) -> anyhow::Result<()> {
        drop(self.holder.stdin.take());
        let status = self.holder.wait()?;
        ensure!(status.success(), "devkit-hold failed ({status})");
        Ok(())
    }
}

/// The URL in `{"url":"...",...}`; it holds no character that JSON would escape.
fn url_in(line: &str) -> Option<&str> {
    line.split_once("\"url\":\"")?.1.split_once('"').map(|(url, _)| url)
}

/// User, password, host and port of the holder's URL, which needs no decoding.
fn address(url: &str) -> Option<(&str, &str, &str, &str)> {
    let (login, server) = url.strip_prefix("postgres://")?.split_once('@')?;
    let (user, password) = login.split_once(':')?;
    let (host, port) = server.split_once('/')?.0.split_once(':')?;
    Some((user, password, host, port))
}

/// The files of a migrations folder in the order of their numbers. Undoing is not for us.
fn migrations(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut files: Vec<(u64, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            if !name.ends_with(".sql") || name.ends_with(".down.sql") {
                return None;
            }
            Some((name.split_once('_')?.0.parse().ok()?, entry.path()))
        })
        .collect();
    files.sort();
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

/// As sqlx's migrator has it: the first line decides.
fn is_transactional(migration: &str) -> bool {
    !migration.starts_with("-- no-transaction")
}

fn touch(file: &Path) -> anyhow::Result<()> {
    let touched = run({
        let mut command = Command::new("touch");
        command.arg("-c").arg(file);
        command
    });
    touched.with_context(|| format!("touching {}", file.display()))
}

/// The JSON files of a folder, by name.
fn files(folder: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry?.path();
        if let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|name| name.ends_with(".json")) {
            files.insert(name.to_owned(), fs::read_to_string(&path)?);
        }
    }
    Ok(files)
}

fn differences(old: &BTreeMap<String, String>, new: &BTreeMap<String, String>) -> Vec<String> {
    let gone =
        old.keys().filter(|name| !new.contains_key(*name)).map(|name| format!("{name}: no query has it any more"));
    let changed = new.iter().filter_map(|(name, text)| match old.get(name) {
        None => Some(format!("{name}: missing")),
        Some(old) if old != text => Some(format!("{name}: differs")),
        Some(_) => None,
    });
    gone.chain(changed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(files: &[(&str, &str)]) -> BTreeMap<String, String> {
        files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn a_file_too_many_one_too_few_and_a_changed_one_are_differences() {
        let old = map(&[("a", "1"), ("b", "2"), ("c", "3")]);
        assert!(differences(&old, &old).is_empty());
        let new = map(&[("b", "2"), ("c", "4"), ("d", "5")]);
        assert_eq!(differences(&old, &new), ["a: no query has it any more", "c: differs", "d: missing"]);
    }

    #[test]
    fn the_url_is_read_out_of_the_holders_line() {
        assert_eq!(
            url_in("{\"url\":\"postgres://a:b@127.0.0.1:1/postgres\",\"port\":1}\n"),
            Some("postgres://a:b@127.0.0.1:1/postgres")
        );
        assert_eq!(url_in(""), None);
        assert_eq!(address("postgres://a:b@127.0.0.1:1/postgres"), Some(("a", "b", "127.0.0.1", "1")));
    }

    #[test]
    fn only_the_first_line_takes_a_migration_out_of_its_transaction() {
        assert!(!is_transactional("-- no-transaction\ncreate index concurrently"));
        assert!(is_transactional("create table t ();\n-- no-transaction\n"));
    }
}
