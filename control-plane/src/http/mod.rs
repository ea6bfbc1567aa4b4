//! HTTP: which host a request is for, who sends it, what every answer has in common.

pub mod auth;
pub mod authority;
pub mod entry;
pub mod errors;
pub mod internal;
pub mod moment;
pub mod network;
pub mod openapi;
pub mod outgoing;
pub mod pace;
pub mod paging;
pub mod server;
