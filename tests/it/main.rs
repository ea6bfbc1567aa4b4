//! The one binary of integration tests; `../README.md` says how they are written.

mod main_path;
mod provisioning;
mod secrets;
