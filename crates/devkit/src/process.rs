//! Processes that we did not start ourselves, found through the operating system.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, io};

/// The live processes whose program is called `program` and which work in `dir`. A PostgreSQL server and each of its
/// backends work in their data folder, so this finds a whole server, also one whose first process was killed, and it is
/// not misled by a process number that someone else has now, or by a zombie.
pub(crate) fn working_in(dir: &Path, program: &str) -> Vec<u32> {
    if Path::new("/proc/self/cwd").exists() { by_proc(dir, program) } else { by_ps(dir, program) }
}

/// Whether the process number is in use at all, be it by a zombie or a stranger.
pub(crate) fn exists(pid: u32) -> bool {
    if Path::new("/proc/self").exists() {
        return Path::new("/proc").join(pid.to_string()).exists();
    }
    let mut ps = Command::new("ps");
    ps.args(["-p", &pid.to_string()]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    ps.status().is_ok_and(|status| status.success())
}

/// Sends a signal (`INT`, `QUIT`, `KILL`) to all of `pids`; those that are gone already do not matter.
pub(crate) fn signal(name: &str, pids: &[u32]) -> io::Result<()> {
    if pids.is_empty() {
        return Ok(());
    }
    let mut kill = Command::new("kill");
    kill.arg(format!("-{name}")).args(pids.iter().map(ToString::to_string));
    kill.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().map(drop)
}

fn by_proc(dir: &Path, program: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            let process = PathBuf::from(format!("/proc/{pid}"));
            // A zombie has no working folder any more, and a stranger's may not be read: both are none of ours.
            fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == dir)
                && fs::read_to_string(process.join("comm")).is_ok_and(|comm| comm.trim() == program)
        })
        .collect()
}

/// Without `/proc` only the first process can be told, by its command line.
fn by_ps(dir: &Path, program: &str) -> Vec<u32> {
    let Ok(output) = Command::new("ps").args(["-axo", "pid=,state=,command="]).stdin(Stdio::null()).output() else {
        return Vec::new();
    };
    let dir = dir.display().to_string();
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (pid, state, command) = (words.next()?, words.next()?, words.next()?);
            let ours = !state.starts_with('Z') && command.ends_with(program) && line.contains(&dir);
            if ours { pid.parse().ok() } else { None }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_by_its_folder_and_name_and_only_so() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let mut child = Command::new("sleep").arg("60").current_dir(&dir).spawn().unwrap();

        assert_eq!(working_in(&dir, "sleep"), [child.id()]);
        assert!(working_in(&dir, "postgres").is_empty());
        assert!(working_in(Path::new("/nowhere"), "sleep").is_empty());

        signal("KILL", &[child.id()]).unwrap();
        child.wait().unwrap();
        assert!(working_in(&dir, "sleep").is_empty());
        assert!(!exists(child.id()));
    }
}
