use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::{TimeDelta, TimeZone as _, Utc};
use kernel::{Clock as _, ServerId, SystemClock};
use tenancy::stats::BreakerState;
use tokio::time::Instant;
use vault::KeyRing;

use super::{Moment, NodeData, SealedFile, read_sealed};
use crate::shares::NodeKey;

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
fn a_folder_is_one_process_s_at_a_time_and_is_made_for_nobody_else_to_look_into() {
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
fn what_is_cut_off_is_left_out_and_what_is_changed_or_mixed_makes_the_file_worth_nothing() -> io::Result<()> {
    let folder = Folder::new();
    let data = open(&folder).map_err(io::Error::other)?;
    assert!(read_sealed::<String>(&data, "one")?.is_empty());
    for (name, text) in [("one", "first"), ("two", "other")] {
        let mut file = SealedFile::create(&data, name)?;
        file.append(&data.keys, text)?;
        file.append(&data.keys, "second")?;
        file.place(&data)?;
    }
    let path = data.path("one");
    let read = |bytes: &[u8]| {
        std::fs::write(&path, bytes)?;
        read_sealed::<String>(&data, "one")
    };
    let (whole, theirs) = (std::fs::read(&path)?, std::fs::read(data.path("two"))?);
    assert!(!whole.windows(5).any(|bytes| bytes == b"first"), "it is sealed");
    let length = 4 + u32::from_le_bytes(whole[..4].try_into().map_err(io::Error::other)?) as usize;
    for cut in 0..whole.len() {
        assert_eq!(
            read(&whole[..cut])?.len(),
            usize::from(cut >= length),
            "cut at {cut}, as a killed process leaves it"
        );
    }
    for at in 4..length {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        assert!(read(&changed).is_err(), "changed at {at}");
    }
    assert!(read(&theirs).is_err(), "of another name");
    assert!(read(&[&whole[..length], &theirs[length..]].concat()).is_err(), "a part of another file");
    assert!(read(&whole[length..]).is_err(), "the first is missing");
    assert!(read(&[&whole[..length], &whole[..length], &whole[length..]].concat()).is_err(), "one is twice");
    assert!(read(&u32::MAX.to_le_bytes()).is_err(), "no memory is set aside for what is not ours");
    assert_eq!(read(&whole)?, ["first", "second"]);
    drop(data);
    assert!(
        read_sealed::<String>(&open(&folder).map_err(io::Error::other)?, "one").is_err(),
        "of another installation"
    );
    Ok(())
}

#[tokio::test]
async fn shares_are_the_next_process_s_for_their_time_and_in_their_folder_only() -> io::Result<()> {
    let folder = Folder::new();
    let data = open(&folder).map_err(io::Error::other)?;
    let node = NodeKey { id: 7, since: Utc.timestamp_opt(1_800_000_000, 123_456_000).single().expect("a moment") };
    let server_id = ServerId::new(SystemClock.now());
    let breaker = BreakerState::Closed;
    let load = tenancy::ServerLoad { server_id, limit: 5, open: 3, waiting: 0, peak: 3, breaker };
    let (margin, minute) = (Duration::from_secs(15), Duration::from_secs(60));
    assert_eq!(data.load_shares("here", margin), None);
    data.keep_shares(node, "here", Instant::now() + minute, margin, &[load])?;
    let kept = data.load_shares("here", margin).expect("they are kept");
    assert_eq!((kept.node, &kept.limits[..]), (node, &[(server_id, 5)][..]));
    assert!(kept.left <= minute && kept.left > minute / 2, "{:?}", kept.left);
    let moved = data.load_shares("elsewhere", margin).expect("another container on the same folder");
    assert_eq!((&moved.limits, moved.is_same_run), (&kept.limits, true));
    // On another run of the machine, only under the same name, and without a connection.
    let mut written: Vec<serde_json::Value> = read_sealed(&data, "shares")?;
    written[0]["written"]["boot"] = "another".into();
    let mut file = SealedFile::create(&data, "shares")?;
    file.append(&data.keys, &written[0])?;
    file.place(&data)?;
    let after = data.load_shares("here", margin).expect("the machine was started anew");
    assert_eq!((after.node, after.left, after.limits.len(), after.is_same_run), (node, Duration::ZERO, 0, false));
    assert_eq!(data.load_shares("elsewhere", margin), None, "it may be a copy of the disk");
    data.keep_shares(node, "here", Instant::now() + minute, margin, &[load])?;
    let less = data.load_shares("here", margin + minute / 2).expect("they are kept").left;
    assert!(less <= minute / 2, "who takes longer to let go has to begin sooner: {less:?}");
    // Over, or given up: it is the same node, which may have nothing open.
    data.keep_shares(node, "here", Instant::now(), margin, &[load])?;
    let over = data.load_shares("here", margin).expect("the node is kept");
    assert_eq!((over.node, over.left, over.limits.len()), (node, Duration::ZERO, 0));

    // A copy of the folder is nobody.
    data.keep_shares(node, "here", Instant::now() + minute, margin, &[load])?;
    let copy = folder.0.join("copy");
    std::fs::create_dir(&copy)?;
    std::fs::copy(data.path("shares"), copy.join("shares"))?;
    let copy = NodeData::open(&copy, Arc::clone(&data.keys), Arc::new(SystemClock)).map_err(io::Error::other)?;
    assert_eq!(copy.load_shares("here", margin), None);
    // What cannot be written leaves nothing behind that says more.
    std::fs::create_dir_all(data.path("shares.new"))?;
    data.keep_shares(node, "here", Instant::now() + minute, margin, &[load])?;
    assert_eq!(data.load_shares("here", margin), None);
    std::fs::remove_dir(data.path("shares.new"))?;
    data.keep_shares(node, "here", Instant::now() + minute, margin, &[load])?;
    data.forget_shares()?;
    assert_eq!(data.load_shares("here", margin), None);
    Ok(())
}

#[test]
fn within_one_run_of_the_machine_no_clock_that_is_turned_counts() {
    let began = Moment::now(&SystemClock);
    let now = Moment { uptime_ms: began.uptime_ms + 5000, ..began.clone() };
    assert_eq!(began.age(&now), Some(Duration::from_secs(5)));
    assert_eq!(now.clone().before(Duration::from_secs(5)).uptime_ms, began.uptime_ms);
    assert_eq!(now.age(&began), None, "it is still to come");
    let turned = Moment { at: now.at - TimeDelta::hours(1), ..now.clone() };
    assert_eq!(began.age(&turned), Some(Duration::from_secs(5)));
    let after_restart = Moment { boot: "another".to_owned(), uptime_ms: 1000, at: now.at + TimeDelta::seconds(90) };
    assert_eq!(now.age(&after_restart), Some(Duration::from_secs(90)));
    let set_back = Moment { at: now.at - TimeDelta::seconds(1), ..after_restart };
    assert_eq!(now.age(&set_back), None, "nobody knows how long ago that was");
}
