//! What is done to `pgdata` by the one who owns it: make it, check it, clear what a killed server left.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::{fs, io};

use tokio::time::Instant;

use super::binaries::{self, Binaries};
use super::{PostgresOptions, Profile, SUPERUSER};
use crate::ServerError;
use crate::folder::{Folder, tail};
use crate::process;
use crate::supervise::{Ending, Watchdog};
use crate::user;

/// Chooses the programs for the data in the folder, or refuses to touch it with those that there are.
pub(super) fn choose_binaries(folder: &Folder, options: &PostgresOptions) -> Result<Binaries, ServerError> {
    let data_version = fs::read_to_string(folder.data().join("PG_VERSION")).ok().map(|text| text.trim().to_owned());
    let data_version = data_version.as_deref();
    let found = binaries::find(options.bin_dir.as_deref(), Some(&options.data_dir), data_version)?;
    if let Some(data_version) = data_version.filter(|version| *version != found.major()) {
        return Err(ServerError::OtherMajorVersion {
            data_dir: folder.dir.clone(),
            data_version: data_version.to_owned(),
            bin_dir: found.dir,
            binaries_version: found.version,
        });
    }
    match &folder.run_as {
        Some(user) if !user::can_run(user, &found.program("postgres")) => {
            Err(ServerError::BinariesUnreachable { dir: found.dir, user: user.name.clone() })
        }
        _ => Ok(found),
    }
}

/// Makes the cluster if there is none: in a folder beside it first, so that a kill leaves no half of one.
pub(super) async fn init(
    folder: &Folder,
    binaries: &Binaries,
    profile: Profile,
    log: &File,
    deadline: Instant,
) -> Result<(), ServerError> {
    let half = folder.dir.join("pgdata.new");
    remove_half_made(&half)?;
    let pgdata = folder.data();
    if pgdata.exists() {
        return Ok(());
    }
    let password = folder.renew_password()?;
    let sorting = if cfg!(target_os = "linux") { "C.UTF-8" } else { "en_US.UTF-8" };
    let mut failure = None;
    for locale in [sorting, "C"] {
        let mut args: Vec<OsString> =
            vec!["-D".into(), half.clone().into(), "--pwfile".into(), password.clone().into()];
        args.extend(["--auth=scram-sha-256", "--encoding=UTF8", "--username", SUPERUSER].map(OsString::from));
        args.push(format!("--locale={locale}").into());
        if profile == Profile::Test {
            args.push("--no-sync".into());
        }
        match run_initdb(folder, binaries, &args, log, deadline).await {
            Ok(()) => {
                fs::rename(&half, &pgdata).map_err(ServerError::io(format!("making {}", pgdata.display())))?;
                tracing::info!("made a PostgreSQL {} cluster in {}", binaries.version, folder.dir.display());
                return Ok(());
            }
            Err(error) => {
                remove_half_made(&half)?;
                let unknown_locale =
                    matches!(&error, ServerError::InitFailed { output, .. } if output.contains("locale"));
                let first = failure.get_or_insert(error);
                if !unknown_locale {
                    break;
                }
                tracing::debug!("initdb does not know the locale {locale}: {first}");
            }
        }
    }
    Err(failure.expect("the loop ends without a failure only by returning"))
}

async fn run_initdb(
    folder: &Folder,
    binaries: &Binaries,
    args: &[OsString],
    log: &File,
    deadline: Instant,
) -> Result<(), ServerError> {
    let from = log.metadata().map_or(0, |meta| meta.len());
    let doing = "running initdb";
    let mut initdb = Watchdog::spawn(&binaries.program("initdb"), args, Ending::POSTGRES, folder.run_as.as_ref(), log)
        .map_err(ServerError::io(doing))?;
    let Ok(status) = tokio::time::timeout_at(deadline, initdb.ended()).await else {
        initdb.signal("KILL").await;
        let log_tail = tail(&folder.log(), from);
        return Err(ServerError::TimedOut { doing, after: super::START_LIMIT, log_tail });
    };
    let status = status.map_err(ServerError::io(doing))?;
    if status.success() {
        return Ok(());
    }
    let output = tail(&folder.log(), from);
    Err(ServerError::InitFailed { status: status.to_string(), output })
}

fn remove_half_made(half: &Path) -> Result<(), ServerError> {
    match fs::remove_dir_all(half) {
        Ok(()) => tracing::info!("removed a half-made cluster: {}", half.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(ServerError::io(format!("removing {}", half.display()))(error)),
    }
    Ok(())
}

/// Removes the lock files of a server that is gone, when PostgreSQL would not: it takes any process with the number in
/// the file for a server, a zombie and a stranger as well. `_log` is the proof that it is gone.
pub(super) fn clear_stale(pgdata: &Path, socket_dir: &Path, _log: &File) -> Result<(), ServerError> {
    let remove = |path: &Path| match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ServerError::io(format!("removing {}", path.display()))(error))
        }
        _ => Ok(()),
    };
    let pid_file = pgdata.join("postmaster.pid");
    // Otherwise it stays: PostgreSQL clears up after the shared memory that the file names.
    if PidFile::read(pgdata).is_some_and(|file| process::exists(file.pid)) {
        tracing::info!("removed the lock file of a server that is gone: {}", pid_file.display());
        remove(&pid_file)?;
    }
    let sockets = fs::read_dir(socket_dir).map_err(ServerError::io(format!("reading {}", socket_dir.display())))?;
    for entry in sockets.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(".s.PGSQL.")) {
        remove(&entry.path())?;
    }
    Ok(())
}

/// What a server says of itself in `postmaster.pid`.
pub(super) struct PidFile {
    pub(super) pid: u32,
    pub(super) port: u16,
    pub(super) socket_dir: PathBuf,
    /// Whether all of it is said: a server that starts writes line after line, and listens before it names its socket.
    pub(super) is_ready: bool,
}

impl PidFile {
    /// Nothing while the server has not even said which process it is.
    pub(super) fn read(pgdata: &Path) -> Option<PidFile> {
        let text = fs::read_to_string(pgdata.join("postmaster.pid")).ok()?;
        PidFile::parse(&text)
    }

    fn parse(text: &str) -> Option<PidFile> {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let pid = lines.first()?.parse().ok()?;
        let port = lines.get(3).and_then(|line| line.parse().ok()).unwrap_or(0);
        let socket_dir = lines.get(4).map(PathBuf::from).unwrap_or_default();
        Some(PidFile { pid, port, socket_dir, is_ready: lines.get(7) == Some(&"ready") })
    }
}

#[cfg(test)]
mod tests {
    use super::PidFile;

    #[test]
    fn a_server_is_taken_at_its_word_when_it_has_said_all_of_it() {
        let said = "4711\n/data\n1795000000\n15432\n\n127.0.0.1\n  5432001   1234567\nstarting\n";
        let half = PidFile::parse(said).expect("it says which process it is");
        assert_eq!((half.pid, half.port, half.is_ready), (4711, 15432, false));
        let whole = said.replace("\n\n", "\n/data/socket\n").replace("starting", "ready   ");
        let whole = PidFile::parse(&whole).expect("as before");
        assert!(whole.is_ready && whole.socket_dir.ends_with("socket"));
        assert!(PidFile::parse("").is_none());
    }
}
