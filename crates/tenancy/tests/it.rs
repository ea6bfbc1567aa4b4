//! The connection manager against a real server: one binary, one file per part of its promise.

#[path = "it/directory.rs"]
mod directory;
#[path = "it/example.rs"]
mod example;
#[path = "it/faults.rs"]
mod faults;
#[path = "it/hostile.rs"]
mod hostile;
#[path = "it/limits.rs"]
mod limits;
#[path = "it/poolers.rs"]
mod poolers;
#[path = "it/pools.rs"]
mod pools;
#[path = "it/reach.rs"]
mod reach;
#[path = "it/servers.rs"]
mod servers;
#[path = "it/sessions.rs"]
mod sessions;
mod support;
