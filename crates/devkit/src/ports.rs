//! The ports that our servers listen on.

use std::net::TcpListener;

use crate::ServerError;

/// Below the range that the operating systems take for outgoing connections.
const PORTS: std::ops::RangeInclusive<u16> = 15432..=25431;

/// The ports to try, the best first: the one wanted, then our range, beginning at a place that `hash` decides.
pub(crate) fn to_try(wanted: Option<u16>, hash: u64) -> impl Iterator<Item = u16> {
    let count = u64::from(PORTS.end() - PORTS.start()) + 1;
    let begin = hash % count;
    let ours = (0..count).filter_map(move |step| u16::try_from((begin + step) % count).ok());
    wanted.into_iter().chain(ours.map(|offset| PORTS.start() + offset))
}

pub(crate) fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}

pub(crate) fn none_free() -> ServerError {
    ServerError::NoFreePort { from: *PORTS.start(), to: *PORTS.end() }
}
