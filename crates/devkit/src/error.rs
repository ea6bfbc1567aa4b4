use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why there is no server. Each variant is something that a person at the machine can act on.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// No PostgreSQL anywhere we look.
    #[error(
        "no PostgreSQL server found (looked in {}). Three ways to get one: \
         (1) install it, e.g. `apt-get install postgresql` or `brew install postgresql@17`; \
         (2) run `cargo xtask dev`, which installs it or unpacks one into the data folder; \
         (3) set PG_BINDIR to a folder that holds `postgres` and `initdb`", list(.searched)
    )]
    BinariesNotFound {
        /// The folders and patterns that were searched.
        searched: Vec<PathBuf>,
    },
    /// No MariaDB anywhere we look.
    #[error(
        "no MariaDB server found (looked for `{missing}` on PATH, in /usr/sbin and /usr/local): install it, e.g. `apt-get install mariadb-server`"
    )]
    MariaDbNotFound {
        /// The program that is not there.
        missing: &'static str,
    },
    /// The folder given by the caller is not one of a PostgreSQL server.
    #[error("PG_BINDIR is {}, which holds no `{missing}`: point it at a folder that holds `postgres` and `initdb`", .dir.display())]
    BinDirIncomplete {
        /// The folder.
        dir: PathBuf,
        /// The program that is not there.
        missing: &'static str,
    },
    /// `postgres --version` did not answer with a version.
    #[error("{} does not say its version: {output}", .program.display())]
    VersionUnknown {
        /// The program asked.
        program: PathBuf,
        /// What came instead.
        output: String,
    },
    /// The unprivileged user cannot run the server's programs.
    #[error("the user `{user}`, whom the server runs as under root, cannot run the programs in {}: put them where everybody can", .dir.display())]
    BinariesUnreachable {
        /// The folder of the programs.
        dir: PathBuf,
        /// Whom we drop to.
        user: String,
    },
    /// Root, and nobody to drop to.
    #[error("the server does not run as root, and there is neither a user `postgres` nor `nobody` to run it as")]
    NoUnprivilegedUser,
    /// `initdb` refuses a user without a name.
    #[error("the user id {uid} has no entry in the user database, which the server asks for: add one to /etc/passwd")]
    UnknownUser {
        /// Our user id.
        uid: u32,
    },
    /// Neither the folder asked for nor the one instead of it can be used.
    #[error("the user `{user}`, whom the server runs as under root, cannot write {}", .dir.display())]
    Unreachable {
        /// The last folder tried.
        dir: PathBuf,
        /// Whom we drop to.
        user: String,
    },
    /// The folder holds something that is not ours.
    #[error("{} is not empty and holds no cluster of ours: choose another folder, or empty it", .dir.display())]
    ForeignFolder {
        /// The folder.
        dir: PathBuf,
    },
    /// The data was written by another major version, which only that version can read.
    #[error(
        "the data in {} was written by PostgreSQL {data_version}, but the programs in {} are version {binaries_version}, \
         which cannot read it. Either set PG_BINDIR to the programs of {data_version}, or dump the data with those and \
         load it into a new folder, or, if it is not needed, move the folder away and start again",
        .data_dir.display(), .bin_dir.display()
    )]
    OtherMajorVersion {
        /// The folder asked for.
        data_dir: PathBuf,
        /// The major version that wrote the data.
        data_version: String,
        /// The folder of the programs.
        bin_dir: PathBuf,
        /// Their version.
        binaries_version: String,
    },
    /// The cluster is there, but its password is not.
    #[error("the password of the cluster is missing: {} (move the data folder away to begin anew)", .file.display())]
    PasswordMissing {
        /// Where it should be.
        file: PathBuf,
    },
    /// The program that makes the data failed.
    #[error("making the server's data failed ({status}):\n{output}")]
    InitFailed {
        /// How it ended.
        status: String,
        /// The last lines that it printed.
        output: String,
    },
    /// The server ended while starting.
    #[error("the server did not start ({status}); the last lines of {}:\n{log_tail}", .log.display())]
    StartFailed {
        /// How it ended.
        status: String,
        /// The server's log.
        log: PathBuf,
        /// The log's last 20 lines.
        log_tail: String,
    },
    /// The port that a restarted server must have again was taken meanwhile.
    #[error("the port {port} was taken by somebody else while the server was down")]
    PortTaken {
        /// The port.
        port: u16,
    },
    /// No free port in our range.
    #[error("no free port between {from} and {to} on 127.0.0.1")]
    NoFreePort {
        /// The first one tried.
        from: u16,
        /// The last one.
        to: u16,
    },
    /// A server without an owner works on the data and does not end.
    #[error("an abandoned server still works in {} and does not end: processes {pids:?}", .data_dir.display())]
    StillRunning {
        /// The folder.
        data_dir: PathBuf,
        /// Its processes.
        pids: Vec<u32>,
    },
    /// Something took longer than its limit.
    #[error("gave up {doing} after {} s; the last lines of the server's log:\n{log_tail}", .after.as_secs())]
    TimedOut {
        /// What we waited for.
        doing: &'static str,
        /// The limit.
        after: Duration,
        /// The log's last 20 lines.
        log_tail: String,
    },
    /// Only the process that started a server may take it down.
    #[error("the server belongs to another process, which alone may stop it")]
    NotOwner,
    /// The operating system refused.
    #[error("failed {doing}")]
    Io {
        /// What we did.
        doing: String,
        /// The refusal.
        source: io::Error,
    },
}

impl ServerError {
    /// For `map_err`: `doing` reads on after "failed".
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> ServerError {
        move |source| ServerError::Io { doing: doing.into(), source }
    }
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
