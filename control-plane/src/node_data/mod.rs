//! What a node keeps in a folder of its own, so that it serves after a restart though master is down.
//!
//! - [`routes`]: the hostnames that it knows, where they lead, and what has changed since. Of a store that was suspended, moved or
//!   deleted as far as the node had heard, nothing older is served after the restart.
//! - [`shares`]: what it may have open at database servers, and until when: the share stays the node's, whichever process it is.
//!
//! Everything is sealed with the installation's keys, so nobody reads hostnames there or writes a route. Who can write the folder
//! can put an older state of it back: its routes count for as long as they would have counted then (`ROUTE_MAX_STALE_MS`), and only
//! while master does not answer; its shares for as long as they would have been the node's. After a restart of the machine itself
//! the clock on the wall has to be right.

pub mod routes;
pub mod shares;

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use kernel::Clock;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use vault::{Aad, KeyRing, Purpose, Sealed};

use crate::config::ConfigError;

/// Counts changes of the form of what is kept: another one does not open.
const FORM: i32 = 1;
/// The most bytes of one sealed value: more is not ours.
const LONGEST: u32 = 4 << 20;

/// The folder, which no other process uses while this one has it.
pub struct NodeData {
    folder: PathBuf,
    keys: Arc<KeyRing>,
    clock: Arc<dyn Clock>,
    /// Locked for as long as the process lives.
    lock: File,
}

impl NodeData {
    /// Takes the folder, and makes it if there is none.
    ///
    /// # Errors
    /// When it cannot be used, or another process uses it.
    pub fn open(folder: &Path, keys: Arc<KeyRing>, clock: Arc<dyn Clock>) -> Result<Self, ConfigError> {
        let invalid = |why: String| ConfigError::Invalid { name: "NODE_DATA", why };
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|error| invalid(format!("the folder cannot be made: {error}")))?;
        let lock = options().truncate(false).open(folder.join("lock"));
        let lock = lock.map_err(|error| invalid(format!("the folder cannot be written: {error}")))?;
        lock.try_lock().map_err(|error| match error {
            std::fs::TryLockError::WouldBlock => {
                invalid("another process uses the folder; every node needs one of its own".to_owned())
            }
            std::fs::TryLockError::Error(error) => invalid(format!("the folder cannot be locked: {error}")),
        })?;
        Ok(Self { folder: folder.to_owned(), keys, clock, lock })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Removes a file that must not be believed any more.
    fn remove(&self, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => self.sync(),
        }
    }

    /// Returns when the names of the folder are on the disk. In a folder that is gone there are none.
    fn sync(&self) -> io::Result<()> {
        match File::open(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            folder => folder?.sync_all(),
        }
    }

    /// What tells this folder from a copy of it.
    fn mark(&self) -> io::Result<Mark> {
        let lock = self.lock.metadata()?;
        Ok(Mark { device: lock.dev(), inode: lock.ino() })
    }

    fn now(&self) -> Moment {
        Moment::now(&*self.clock)
    }

    /// When a moment of this process was.
    fn moment(&self, at: Instant) -> Moment {
        self.now().before(at.elapsed())
    }
}

fn new_name(name: &str) -> String {
    format!("{name}.new")
}

fn options() -> std::fs::OpenOptions {
    let mut options = File::options();
    options.write(true).create(true).mode(0o600);
    options
}

/// A folder: its file that is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    device: u64,
    inode: u64,
}

/// When something was, for a process that comes later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Moment {
    /// Which run of the machine it was in.
    boot: String,
    /// How long that had run.
    uptime_ms: u64,
    /// By the clock on the wall.
    at: DateTime<Utc>,
}

impl Moment {
    fn now(clock: &dyn Clock) -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        // Not what /proc says of it: a container may be told its own.
        let uptime =
            Duration::try_from(rustix::time::clock_gettime(rustix::time::ClockId::Boottime)).unwrap_or_default();
        let uptime_ms = u64::try_from(uptime.as_millis()).unwrap_or_default();
        Self { boot, uptime_ms, at: clock.now() }
    }

    fn before(self, time: Duration) -> Self {
        let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let at = self.at - chrono::TimeDelta::from_std(time).unwrap_or_default();
        Self { uptime_ms: self.uptime_ms.saturating_sub(ms), at, ..self }
    }

    /// How long ago that was. Within one run of the machine nobody can turn the clock; across two of them only the clock on the
    /// wall tells, and when that says that it is still to come, nothing is known.
    fn age(&self, now: &Self) -> Option<Duration> {
        match self.is_same_run(now) {
            true => now.uptime_ms.checked_sub(self.uptime_ms).map(Duration::from_millis),
            false => (now.at - self.at).to_std().ok(),
        }
    }

    fn is_same_run(&self, now: &Self) -> bool {
        !self.boot.is_empty() && self.boot == now.boot
    }
}

/// Sealed values one after the other, each bound to its file's name, to this one file and to its place in it. What a killed process left unfinished at the
/// end is left out; what does not open makes the whole file worth nothing.
struct SealedFile {
    file: File,
    name: &'static str,
    /// Tells this file from every other one.
    id: String,
    next: u64,
    bytes: u64,
}

#[derive(Serialize, Deserialize)]
struct Entry<T> {
    name: String,
    file: String,
    number: u64,
    value: T,
}

const PLACE: Aad = Aad::for_platform(Purpose::NodeData, FORM);

impl SealedFile {
    /// A new file of what is called `name`, which is not in its place yet.
    fn create(data: &NodeData, name: &'static str) -> io::Result<Self> {
        let path = data.path(&new_name(name));
        // Whoever still writes to one that was given up writes to nothing.
        let _ = std::fs::remove_file(&path);
        let file = options().create_new(true).open(path)?;
        Ok(Self { file, name, id: kernel::random::token(), next: 0, bytes: 0 })
    }

    /// Puts it in its place, instead of the one that was there.
    fn place(&self, data: &NodeData) -> io::Result<()> {
        std::fs::rename(data.path(&new_name(self.name)), data.path(self.name))
    }

    fn append<T: Serialize>(&mut self, keys: &KeyRing, value: T) -> io::Result<()> {
        let entry = Entry { name: self.name.to_owned(), file: self.id.clone(), number: self.next, value };
        let sealed = keys.seal(&serde_json::to_vec(&entry)?, &PLACE);
        let length = u32::try_from(sealed.as_bytes().len()).ok().filter(|length| *length <= LONGEST);
        let length = length.ok_or_else(|| io::Error::other("a value that is too long"))?;
        let bytes = [&length.to_le_bytes(), sealed.as_bytes()].concat();
        self.file.write_all(&bytes)?;
        self.next += 1;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Returns when it is on the disk.
    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// The values of a file; none when there is no such file.
///
/// # Errors
/// When it cannot be read, or holds what was not sealed for it.
fn read_sealed<T: DeserializeOwned>(data: &NodeData, name: &str) -> io::Result<Vec<T>> {
    let file = match File::open(data.path(name)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let damaged = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let (mut from, mut id, mut values) = (io::BufReader::new(file), None, Vec::new());
    loop {
        let mut length = [0; 4];
        let mut bytes = Vec::new();
        if read_whole(&mut from, &mut length)? {
            let length = u32::from_le_bytes(length);
            if length > LONGEST {
                return Err(damaged("it was not written by us"));
            }
            bytes.resize(length as usize, 0);
        }
        if bytes.is_empty() || !read_whole(&mut from, &mut bytes)? {
            return Ok(values);
        }
        let sealed = Sealed::from_bytes(bytes).map_err(|error| damaged(&error.to_string()))?;
        let opened = data.keys.open(&sealed, &PLACE).map_err(|error| damaged(&error.to_string()))?;
        let entry: Entry<T> = serde_json::from_slice(&opened)?;
        let id = id.get_or_insert_with(|| entry.file.clone());
        if entry.name != name || entry.file != *id || entry.number != values.len() as u64 {
            return Err(damaged("a part of another file is in it"));
        }
        values.push(entry.value);
    }
}

/// Fills the whole buffer, unless the file ends before.
fn read_whole(from: &mut impl io::Read, buffer: &mut [u8]) -> io::Result<bool> {
    match from.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
