//! The data folder: what is where in it, whose it is, and who owns the server.
//!
//! Invariant: whoever holds the lock on `owner.lock` is the only one that changes the data or starts a server in it. The
//! lock goes with the process that holds it, so a lock that is free means that nobody looks after a server found there.
//! The same for the server itself: it inherits the lock on `server.log`, and so does every process that it starts. A lock
//! that is free means that nothing works in it; process numbers in files can only guess.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::user::{self, User};
use crate::{ServerError, process};

/// The longest path of a Unix socket is 107 bytes on Linux, 103 on macOS.
const SOCKET_PATH_MAX: usize = 103;
/// Where data goes that the server's user could not reach.
const INSTEAD: &str = "/var/lib/tenantry";

pub(crate) struct Folder {
    /// Absolute and without symlinks, as the operating system tells it of the server.
    pub(crate) dir: PathBuf,
    /// Whom the server runs as, when not as ourselves.
    pub(crate) run_as: Option<User>,
    /// Whose everything in it is.
    uid: u32,
    /// What the folder of the server's own files is called.
    data: &'static str,
}

impl Folder {
    /// Makes the folder, or takes it up; the server's own files are in `data` inside of it.
    pub(crate) fn open(asked: &Path, data: &'static str) -> Result<Folder, ServerError> {
        let asked = std::path::absolute(asked).map_err(ServerError::io(format!("finding {}", asked.display())))?;
        let run_as = user::run_as(&asked.join(data))?;
        let Some(user) = &run_as else {
            let uid = user::effective_uid().map_err(ServerError::io("asking `id` who we are"))?;
            return Ok(Folder { dir: make(&asked, None)?, run_as, uid, data });
        };
        if asked.ancestors().skip(1).find(|dir| dir.exists()).is_some_and(|dir| user::can_enter(user, dir)) {
            let dir = make(&asked, Some(user))?;
            if user::can_write(user, &dir) {
                return Ok(Folder { dir, uid: user.uid, run_as, data });
            }
        }
        let reach = format!("the user `{}` cannot reach {}", user.name, asked.display());
        let instead = instead_of(&asked);
        let Some(user) = user::run_as(&instead.join(data))? else { return Err(ServerError::NoUnprivilegedUser) };
        let dir = make(&instead, Some(&user))?;
        if !user::can_write(&user, &dir) {
            return Err(ServerError::Unreachable { dir, user: user.name });
        }
        tracing::warn!("the data is in {}, because {reach}", dir.display());
        Ok(Folder { dir, uid: user.uid, run_as: Some(user), data })
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.join(self.data)
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("server.log")
    }

    fn password_file(&self) -> PathBuf {
        self.dir.join("password")
    }

    fn port_file(&self) -> PathBuf {
        self.dir.join("port")
    }

    /// The lock, if nobody has it.
    pub(crate) fn try_own(&self) -> Result<Option<File>, ServerError> {
        let path = self.dir.join("owner.lock");
        let doing = || format!("locking {}", path.display());
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(ServerError::io(doing()))?;
        give(&path, self.run_as.as_ref())?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(ServerError::io(doing())(error)),
        }
    }

    /// The cluster's password; `initdb` is given the file.
    pub(crate) fn password(&self) -> Result<String, ServerError> {
        let file = self.password_file();
        match fs::read_to_string(&file) {
            Ok(password) => Ok(password.trim().to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ServerError::PasswordMissing { file }),
            Err(error) => Err(ServerError::io(format!("reading {}", file.display()))(error)),
        }
    }

    /// Makes a new password and returns the file that holds it.
    pub(crate) fn renew_password(&self) -> Result<PathBuf, ServerError> {
        let mut random = [0; 24];
        File::open("/dev/urandom")
            .and_then(|mut source| source.read_exact(&mut random))
            .map_err(ServerError::io("reading /dev/urandom"))?;
        let password: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let file = self.password_file();
        self.write(&file, &password)?;
        Ok(file)
    }

    pub(crate) fn remembered_port(&self) -> Option<u16> {
        fs::read_to_string(self.port_file()).ok()?.trim().parse().ok()
    }

    pub(crate) fn remember_port(&self, port: u16) -> Result<(), ServerError> {
        self.write(&self.port_file(), &port.to_string())
    }

    /// The server's log, to append to, locked; nothing while a process of an earlier server lives. A long log is put aside.
    pub(crate) fn try_log(&self) -> Result<Option<File>, ServerError> {
        const LONG_BYTES: u64 = 16 * 1024 * 1024;
        let path = self.log();
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
        let file = file.map_err(ServerError::io(format!("opening {}", path.display())))?;
        give(&path, self.run_as.as_ref())?;
        match file.try_lock() {
            Ok(()) if file.metadata().is_ok_and(|meta| meta.len() > LONG_BYTES) => {
                fs::rename(&path, self.dir.join("server.old.log"))
                    .map_err(ServerError::io(format!("putting {} aside", path.display())))?;
                self.try_log()
            }
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(ServerError::io(format!("locking {}", path.display()))(error)),
        }
    }

    /// A folder for the server's socket: our own, and short enough.
    pub(crate) fn socket_dir(&self) -> Result<PathBuf, ServerError> {
        let inside = self.dir.join("socket");
        let temp = std::env::temp_dir();
        let hashed = format!("tenantry-{}", hash(&self.dir));
        let dir = [inside, temp.join(&hashed)]
            .into_iter()
            .find(|dir| dir.join(".s.PGSQL.65535").as_os_str().len() <= SOCKET_PATH_MAX)
            .unwrap_or_else(|| Path::new("/tmp").join(&hashed));
        make_own(&dir, self.uid, self.run_as.as_ref())?;
        Ok(dir)
    }

    /// Writes a file in the folder that only the server's user reads.
    pub(crate) fn write_private(&self, name: &str, text: &str) -> Result<(), ServerError> {
        self.write(&self.dir.join(name), text)
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), ServerError> {
        // Whole or not at all: a reader may come at any time.
        let half = path.with_extension("new");
        let _ = fs::remove_file(&half);
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&half)
            .and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()));
        written.map_err(ServerError::io(format!("writing {}", half.display())))?;
        give(&half, self.run_as.as_ref())?;
        fs::rename(&half, path).map_err(ServerError::io(format!("writing {}", path.display())))
    }
}

/// Waits until no process of an earlier server lives, and returns the log with the lock that says so. An earlier server
/// whose owner was killed is on its way out, or was left behind when its watchdog was killed too: then it is seen off.
pub(crate) async fn own_log(folder: &Folder, program: &str) -> Result<File, ServerError> {
    let data = folder.data();
    let began = Instant::now();
    let mut said = false;
    loop {
        if let Some(log) = folder.try_log()? {
            return Ok(log);
        }
        // One that is only just starting works elsewhere yet and does not listen to INT yet: so look, and ask, again.
        let pids = process::working_in(&data, program);
        if !pids.is_empty() && !said {
            tracing::info!("waiting for the end of an earlier server in {}", data.display());
            said = true;
        }
        let signal = match began.elapsed().as_secs() {
            0..10 => "INT",
            10..16 => "QUIT",
            16..20 => "KILL",
            _ => return Err(ServerError::StillRunning { data_dir: data, pids }),
        };
        process::signal(signal, &pids).map_err(ServerError::io("signalling an earlier server"))?;
        sleep(Duration::from_millis(50)).await;
    }
}

/// The last 20 lines of a text file, of what was written after `from`.
pub(crate) fn tail(path: &Path, from: u64) -> String {
    let text = fs::read(path).unwrap_or_default();
    let from = usize::try_from(from).unwrap_or(0).min(text.len());
    last_lines(&String::from_utf8_lossy(&text[from..]))
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// A number that belongs to a path on this machine, the same in every version of this program (FNV-1a).
pub(crate) fn hash_number(path: &Path) -> u64 {
    path.as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn hash(path: &Path) -> String {
    format!("{:016x}", hash_number(path))
}

fn instead_of(asked: &Path) -> PathBuf {
    Path::new(INSTEAD).join(hash(asked))
}

/// Makes `dir` if it is not there, refuses it if it is somebody else's, hands it to the server's user and resolves it.
fn make(dir: &Path, user: Option<&User>) -> Result<PathBuf, ServerError> {
    let doing = || format!("making {}", dir.display());
    fs::create_dir_all(dir).map_err(ServerError::io(doing()))?;
    let empty = fs::read_dir(dir).map_err(ServerError::io(doing()))?.next().is_none();
    if !empty && !dir.join("owner.lock").exists() {
        return Err(ServerError::ForeignFolder { dir: dir.to_owned() });
    }
    // The mark comes before everything else, so that a kill at any line leaves a folder that is known as ours.
    let mark = dir.join("owner.lock");
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&mark)
        .map_err(ServerError::io(doing()))?;
    give(&mark, user)?;
    give(dir, user)?;
    if fs::metadata(dir).is_ok_and(|meta| meta.mode() & 0o077 != 0) {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(ServerError::io(doing()))?;
    }
    dir.canonicalize().map_err(ServerError::io(doing()))
}

/// Makes a folder that only its owner enters. One that is there already must be ours: below `/tmp` anybody could have put it.
fn make_own(dir: &Path, uid: u32, user: Option<&User>) -> Result<(), ServerError> {
    let doing = || format!("making the socket folder {}", dir.display());
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => give(dir, user),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let meta = fs::symlink_metadata(dir).map_err(ServerError::io(doing()))?;
            // Root's own: left by a start that was killed before it handed the folder over.
            if meta.is_dir() && (meta.uid() == uid || (user.is_some() && meta.uid() == 0)) {
                return give(dir, user);
            }
            Err(ServerError::io(doing())(io::Error::other("it is there and belongs to somebody else")))
        }
        Err(error) => Err(ServerError::io(doing())(error)),
    }
}

/// Hands a path to the server's user.
fn give(path: &Path, user: Option<&User>) -> Result<(), ServerError> {
    let Some(user) = user else { return Ok(()) };
    std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid)).map_err(ServerError::io(format!(
        "handing {} to the user `{}`",
        path.display(),
        user.name
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A temporary folder that the server's user can pass.
    fn passable() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        dir
    }

    #[test]
    fn the_hash_of_a_path_never_changes() {
        assert_eq!(hash(Path::new("/root/tenantry/data")), "39a5e87da521a6f7");
    }

    #[test]
    fn a_folder_with_somebody_elses_files_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("letter.txt"), "dear").unwrap();
        let before = fs::metadata(dir.path()).unwrap();

        assert!(matches!(Folder::open(dir.path(), "pgdata"), Err(ServerError::ForeignFolder { .. })));

        let after = fs::metadata(dir.path()).unwrap();
        assert_eq!((before.uid(), before.mode()), (after.uid(), after.mode()));
        assert!(!dir.path().join("owner.lock").exists());
    }

    #[test]
    fn a_folder_has_one_owner_and_the_lock_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path(), "pgdata").unwrap();
        let lock = folder.try_own().unwrap();
        assert!(lock.is_some());
        assert!(folder.try_own().unwrap().is_none());
        drop(lock);
        // A process that another test starts holds what was open here until it is a program of its own.
        let began = Instant::now();
        while folder.try_own().unwrap().is_none() {
            assert!(began.elapsed() < Duration::from_secs(10), "the lock is still held");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_long_folder_gets_its_socket_elsewhere() {
        let dir = passable();
        let short = Folder::open(&dir.path().join("a"), "pgdata").unwrap();
        assert!(short.socket_dir().unwrap().starts_with(&short.dir));

        let long = Folder::open(&dir.path().join("l".repeat(100)), "pgdata").unwrap();
        let socket = long.socket_dir().unwrap();
        assert!(socket.as_os_str().len() + "/.s.PGSQL.65535".len() <= SOCKET_PATH_MAX, "{}", socket.display());
        fs::remove_dir(socket).unwrap();
    }

    #[test]
    fn passwords_are_random_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path(), "pgdata").unwrap();
        assert!(matches!(folder.password(), Err(ServerError::PasswordMissing { .. })));

        let file = folder.renew_password().unwrap();
        let first = folder.password().unwrap();
        assert_eq!(first.len(), 48);
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);

        folder.renew_password().unwrap();
        assert_ne!(folder.password().unwrap(), first);
    }

    #[test]
    fn the_tail_is_the_last_twenty_lines() {
        let text: String = (1..=30).map(|line| format!("line {line}\n")).collect();
        let tail = last_lines(&text);
        assert!(tail.starts_with("line 11\n") && tail.ends_with("line 30"));
    }
}
