use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use kernel::{Clock as _, SystemClock};
use vault::KeyRing;

use super::{Moment, NodeData, SealedFile, read_sealed};

/// A folder that is gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("tenantry-node-data-{}", kernel::random::token()));
        std::fs::create_dir(&path).expect("it is new");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).expect("it is ours");
    }
}

fn keys() -> Arc<KeyRing> {
    Arc::new(KeyRing::single(secrecy::ExposeSecret::expose_secret(&vault::generate_key())).expect("a key"))
}

fn open(folder: &Folder) -> Result<NodeData, crate::config::ConfigError> {
    NodeData::open(&folder.0.join("node"), keys(), Arc::new(SystemClock))
}

#[test]
fn a_folder_is_one_process_s_at_a_time_and_nobody_else_may_look_into_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = Folder::new();
    let first = open(&folder).expect("it is made");
    let mode = std::fs::metadata(folder.0.join("node")).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let second = open(&folder).map(|_| ()).expect_err("it is taken");
    assert!(second.to_string().contains("another process"), "{second}");
    drop(first);
    open(&folder).expect("it is free again");
    std::fs::write(folder.0.join("file"), "").expect("it can be written");
    let no_folder = NodeData::open(&folder.0.join("file/node"), keys(), Arc::new(SystemClock)).map(|_| ());
    assert!(no_folder.expect_err("a file is no folder").to_string().contains("cannot be made"));
}

#[test]
fn what_is_cut_off_is_left_out_and_what_is_changed_or_mixed_makes_the_file_worth_nothing() {
    let (folder, keys) = (Folder::new(), keys());
    let [path, other] = ["one", "other"].map(|name| folder.0.join(name));
    assert!(read_sealed::<String>(&keys, &path).expect("there is none").is_empty());
    for (path, text) in [(&path, "first"), (&other, "other")] {
        let mut file = SealedFile::create(path).expect("it is made");
        file.append(&keys, text).expect("it is written");
        file.append(&keys, "second").expect("it is written");
    }
    let read = |bytes: &[u8]| {
        std::fs::write(&path, bytes).expect("it is written");
        read_sealed::<String>(&keys, &path)
    };
    let (whole, theirs) = (std::fs::read(&path).expect("it is there"), std::fs::read(&other).expect("it is there"));
    assert!(!whole.windows(5).any(|bytes| bytes == b"first"), "it is sealed");
    let length = 4 + u32::from_le_bytes(whole[..4].try_into().expect("four")) as usize;
    for cut in 0..whole.len() {
        let values = read(&whole[..cut]).expect("as a killed process leaves it");
        assert_eq!(values.len(), usize::from(cut >= length), "cut at {cut}");
    }
    for at in 4..length {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        assert!(read(&changed).is_err(), "changed at {at}");
    }
    assert!(read(&[&whole[..length], &theirs[length..]].concat()).is_err(), "a part of another file");
    assert!(read(&whole[length..]).is_err(), "the first is missing");
    assert!(read(&[&whole[..length], &whole[..length], &whole[length..]].concat()).is_err(), "one is twice");
    assert!(read(&u32::MAX.to_le_bytes()).is_err(), "no memory is set aside for what is not ours");
    assert_eq!(read(&whole).expect("whole"), ["first", "second"]);
    assert!(read_sealed::<String>(&super::tests::keys(), &path).is_err(), "of another installation");
}

#[test]
fn within_one_run_of_the_machine_no_clock_that_is_turned_counts() {
    let now = Moment::now(&SystemClock);
    assert_eq!(now.clone().before(Duration::from_secs(5)).age(&now), Some(Duration::from_secs(5)));
    let turned = Moment { at: now.at - TimeDelta::hours(1), ..now.clone() };
    assert_eq!(now.age(&turned), Some(Duration::ZERO));
    let after_restart = Moment { boot: "another".to_owned(), uptime_ms: 1000, at: now.at + TimeDelta::seconds(90) };
    assert_eq!(now.age(&after_restart), Some(Duration::from_secs(90)));
    let set_back = Moment { at: now.at - TimeDelta::seconds(1), ..after_restart };
    assert_eq!(now.age(&set_back), None, "nobody knows how long ago that was");
    assert!(SystemClock.now() >= now.at);
}
