//! The watchdog: whatever it runs ends when the process that holds its reins ends, in whichever way.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};

use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStdin, Command};

use crate::user::User;

/// The signals that end a program: the polite one, then the impatient one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ending {
    polite: &'static str,
    impatient: &'static str,
}

impl Ending {
    /// A fast shutdown, and an immediate one.
    pub(crate) const POSTGRES: Self = Self { polite: "INT", impatient: "QUIT" };
    /// A shutdown, and its like: for what does not hear INT, or waits for its clients at it.
    pub(crate) const BY_TERM: Self = Self { polite: "TERM", impatient: "QUIT" };
}

/// `$@` after the two signals runs in the background, because somebody has to read the reins; a reader of its own does, because somebody has to
/// notice when `$@` ends by itself. The signals are sent again
/// and again, because a shell starts its background with both ignored: one that comes before `$@` listens is lost.
const SCRIPT: &str = r#"
exec 3<&0 0</dev/null
polite=$1 impatient=$2
shift 2
"$@" 3<&- &
server=$!
(
    while read -r word; do kill -s "$word" "$server"; done
    tenths=0
    while [ $tenths -lt 150 ]; do
        if [ $tenths -lt 100 ]; then kill -s "$polite" "$server"; else kill -s "$impatient" "$server"; fi
        sleep 0.1
        tenths=$((tenths + 1))
    done
    kill -s KILL "$server"
) <&3 >/dev/null 2>&1 &
exec 3<&-
wait "$server"
code=$?
trap '' TERM
kill -s TERM 0
exit $code
"#;

/// What the server may know of our environment: secrets are not among it.
const INHERITED: [&str; 5] = ["PATH", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"];

/// A program that runs for as long as this value lives. Dropping it begins the shutdown and does not wait for it.
pub(crate) struct Watchdog {
    child: Child,
    /// The write end of the script's input. std opens pipes close-on-exec: no other child of ours can hold it open.
    reins: Option<ChildStdin>,
}

impl Watchdog {
    /// Starts `program`; what it prints goes to `log`, whose lock it and all its children inherit.
    pub(crate) fn spawn(
        program: &Path,
        args: &[OsString],
        ending: Ending,
        run_as: Option<&User>,
        log: &File,
    ) -> io::Result<Watchdog> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", SCRIPT, "devkit", ending.polite, ending.impatient]).arg(program).args(args);
        command.env_clear().envs(INHERITED.iter().filter_map(|name| Some((name, env(name)?)))).env("LC_ALL", "C");
        command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log.try_clone()?);
        command.current_dir("/").process_group(0);
        if let Some(user) = run_as {
            command.uid(user.uid).gid(user.gid);
        }
        let mut child = command.spawn()?;
        let reins = child.stdin.take();
        Ok(Watchdog { child, reins })
    }

    /// Sends the program a signal, by its name without `SIG`.
    pub(crate) async fn signal(&mut self, name: &str) {
        if let Some(reins) = &mut self.reins {
            // When this fails the script is gone, and so is the program: `ended` says so.
            let _ = reins.write_all(format!("{name}\n").as_bytes()).await;
            let _ = reins.flush().await;
        }
    }

    /// Lets go of the reins: the polite signal now, the impatient one after ten seconds, KILL after fifteen.
    pub(crate) fn let_go(&mut self) {
        self.reins = None;
    }

    /// How the program ended, if it has.
    pub(crate) fn try_ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Waits until the program has ended.
    pub(crate) async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }
}

/// A variable of our environment, for finding programs and passing on to them.
#[expect(clippy::disallowed_methods, reason = "the one site: PATH and its like are not configuration of ours")]
pub(crate) fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
