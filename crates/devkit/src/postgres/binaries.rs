//! Where the server's programs are.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::ServerError;
use crate::supervise::env;

/// The programs of one PostgreSQL installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    /// The folder that holds `postgres`, `initdb` and, mostly, `psql`.
    pub dir: PathBuf,
    /// The full version, `15.18`.
    pub version: String,
}

impl Binaries {
    /// The version that data folders are bound to: `15` of `15.18`, `9.6` of `9.6.24`.
    #[must_use]
    pub fn major(&self) -> &str {
        major(&self.version)
    }

    /// The path of one program.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn in_dir(dir: &Path) -> Result<Binaries, ServerError> {
        // PATH entries and package managers link to the place where the programs find their libraries.
        let missing = |missing| ServerError::BinDirIncomplete { dir: dir.to_owned(), missing };
        let postgres = dir.join("postgres").canonicalize().map_err(|_| missing("postgres"))?;
        let dir = postgres.parent().unwrap_or(dir).to_owned();
        if !dir.join("initdb").is_file() {
            return Err(missing("initdb"));
        }
        let output = Command::new(&postgres).arg("--version").current_dir("/").stdin(Stdio::null()).output();
        let output = output.map_err(ServerError::io(format!("running {} --version", postgres.display())))?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        match parse_version(&text) {
            Some(version) => Ok(Binaries { dir, version: version.to_owned() }),
            None => {
                let output = text + String::from_utf8_lossy(&output.stderr).trim();
                Err(ServerError::VersionUnknown { program: postgres, output })
            }
        }
    }
}

/// Finds the programs: in `explicit` (the caller's `PG_BINDIR`) and nowhere else when it is given; else on `PATH`, in the
/// folders of Debian's, Red Hat's and Homebrew's packages (the highest version first), and where `cargo xtask` unpacks them.
///
/// # Errors
/// [`ServerError::BinariesNotFound`] says how to get them; another error is about the folder that was given.
pub fn find_binaries(explicit: Option<&Path>) -> Result<Binaries, ServerError> {
    find(explicit, None, None)
}

/// As [`find_binaries`], and looks beside the data folder too. Data that exists decides between several versions.
pub(super) fn find(
    explicit: Option<&Path>,
    data_dir: Option<&Path>,
    wanted_major: Option<&str>,
) -> Result<Binaries, ServerError> {
    if let Some(dir) = explicit {
        return Binaries::in_dir(dir);
    }
    let mut first = None;
    for dir in candidates(data_dir) {
        // A folder that holds half an installation, or one that does not run here, is passed over.
        let Ok(found) = Binaries::in_dir(&dir) else { continue };
        if wanted_major.is_none_or(|wanted| wanted == found.major()) {
            return Ok(found);
        }
        first.get_or_insert(found);
    }
    first.ok_or_else(|| ServerError::BinariesNotFound { searched: searched(data_dir) })
}

/// Parent folders of installations: `<parent>/<prefix><version>/bin`.
const INSTALLED: [(&str, &str); 5] = [
    ("/usr/lib/postgresql", ""),
    ("/usr", "pgsql-"),
    ("/opt/homebrew/opt", "postgresql@"),
    ("/usr/local/opt", "postgresql@"),
    ("/home/linuxbrew/.linuxbrew/opt", "postgresql@"),
];

fn candidates(data_dir: Option<&Path>) -> Vec<PathBuf> {
    let path = env("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).filter(|dir| dir.is_absolute()).collect();
    for (parent, prefix) in INSTALLED {
        let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
        let mut versions: Vec<String> = entries
            .filter_map(|entry| Some(entry.file_name().to_str()?.strip_prefix(prefix)?.to_owned()))
            .filter(|version| version.starts_with(|c: char| c.is_ascii_digit()))
            .collect();
        versions.sort_by_key(|version| std::cmp::Reverse(numbers(version)));
        dirs.extend(versions.iter().map(|version| Path::new(parent).join(format!("{prefix}{version}/bin"))));
    }
    dirs.extend(unpacked(data_dir).into_iter().flat_map(|dir| [dir.join("bin"), dir]));
    dirs.retain(|dir| dir.join("postgres").exists());
    dirs
}

/// Where `cargo xtask` unpacks a server when it cannot install one.
fn unpacked(data_dir: Option<&Path>) -> Vec<PathBuf> {
    let near = data_dir.into_iter().flat_map(|dir| [Some(dir), dir.parent()]).flatten().map(|dir| dir.join("pgbin"));
    near.chain([PathBuf::from("/var/lib/tenantry/pgbin")]).collect()
}

fn searched(data_dir: Option<&Path>) -> Vec<PathBuf> {
    let installed = INSTALLED.iter().map(|(parent, prefix)| Path::new(parent).join(format!("{prefix}*/bin")));
    std::iter::once(PathBuf::from("PATH")).chain(installed).chain(unpacked(data_dir)).collect()
}

/// `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` has the version 15.18.
fn parse_version(text: &str) -> Option<&str> {
    let version = text.split_once("(PostgreSQL) ")?.1.split_whitespace().next()?;
    version.starts_with(|c: char| c.is_ascii_digit()).then_some(version)
}

fn major(version: &str) -> &str {
    let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let first = digits(version);
    if version[..first].parse::<u32>().is_ok_and(|first| first >= 10) || first == version.len() {
        return &version[..first];
    }
    let rest = &version[first + 1..];
    &version[..first + 1 + digits(rest)]
}

fn numbers(version: &str) -> Vec<u32> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_out_of_every_vendors_words() {
        assert_eq!(parse_version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), Some("15.18"));
        assert_eq!(parse_version("postgres (PostgreSQL) 19beta1"), Some("19beta1"));
        assert_eq!(parse_version("command not found"), None);
    }

    #[test]
    fn data_is_bound_to_the_major_version() {
        assert_eq!(major("15.18"), "15");
        assert_eq!(major("19beta1"), "19");
        assert_eq!(major("9.6.24"), "9.6");
        assert_eq!(major("15"), "15");
    }

    #[test]
    fn the_highest_version_is_the_highest_number() {
        assert!(numbers("17") > numbers("9.6"));
        assert!(numbers("9.6") > numbers("9.5"));
    }

    #[test]
    fn a_folder_given_by_the_caller_is_not_replaced_by_another() {
        let dir = tempfile::tempdir().unwrap();
        let error = find_binaries(Some(dir.path())).unwrap_err();
        assert!(matches!(error, ServerError::BinDirIncomplete { missing: "postgres", .. }), "{error}");
    }

    #[test]
    fn programs_are_found_through_symlinks() {
        let real = find_binaries(None).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(real.program("postgres"), dir.path().join("postgres")).unwrap();
        assert_eq!(find_binaries(Some(dir.path())).unwrap(), real);
    }

    #[test]
    fn the_error_names_three_ways() {
        let error = ServerError::BinariesNotFound { searched: searched(None) }.to_string();
        for way in ["(1) install", "(2) run `cargo xtask dev`", "(3) set PG_BINDIR", "/usr/lib/postgresql/*/bin"] {
            assert!(error.contains(way), "{error}");
        }
    }
}
