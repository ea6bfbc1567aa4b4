#![doc = include_str!("../README.md")]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "the harness of tests: what fails here fails the test"
)]

mod app;
mod brought;
mod client;
mod clock;
mod cluster;
mod events;
mod inside;
mod mariadb;
mod peers;
mod process;
mod proxy;
mod receiver;
mod wait;

pub use app::{ENCRYPTION_KEY, JWT_SECRET, Owner, TestApp, TestAppOptions, config, database_name};
pub use brought::{Brought, OwnServer};
pub use client::{Client, Response};
pub use clock::TestClock;
pub use cluster::{Cluster, TestDatabase, cluster, own_cluster};
pub use events::{EventStream, ServerEvent};
pub use inside::StoreSql;
pub use mariadb::TestMariaDb;
pub use peers::{Localstripe, Peer, Prism, supabase_description};
pub use process::{Cli, Process};
pub use proxy::{ChaosProxy, Fate};
pub use receiver::{Received, Receiver};
pub use wait::{eventually, within};
