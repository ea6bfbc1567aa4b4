//! The lines before anything is said: where the host is, and whether a database answers there.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use kernel::Engine;
use tenancy::{Cause, Reach};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::peer::{self, Peer};
use super::report::{Note, Outcome};
use super::{Place, product, supabase};
use crate::provisioning::{StepError, advice_on_host};

/// So many addresses of one name are tried.
const MAX_ADDRESSES: usize = 4;
/// How long one of them may take to take the connection.
const CONNECT_LIMIT: Duration = Duration::from_millis(2500);

/// Looks the host up, and refuses it when any of its addresses may not be called. What is handed on is called, and nothing
/// else, whatever the name means a moment later.
pub(super) async fn resolve(place: &Place, reach: Reach) -> Outcome<Vec<SocketAddr>> {
    let Ok(addresses) = Reach::Anywhere.addresses(&place.host, place.port).await else {
        return Err(Note::failed(
            "unresolvable",
            "The host's name does not resolve.",
            match supabase::kind_of(&place.host, place.port) {
                Some(_) => "Check its spelling, and that the project exists and is not paused.",
                None => advice_on_host(&place.host).unwrap_or("Check its spelling."),
            },
        ));
    };
    if addresses.iter().any(|address| !reach.allows(address.ip())) {
        // Of the others not even the addresses: a name of our own network would tell them.
        let public: Vec<_> = addresses.iter().filter(|address| Reach::Public.allows(address.ip())).collect();
        let mut note = Note::from(StepError::of_cause(place.engine, Cause::PrivateAddress));
        if let Some(advice) = advice_on_host(&place.host) {
            note.advice = Some(advice.to_owned());
        }
        return Err(match public.as_slice() {
            [] => note,
            public => note.particulars(format!("Public ones: {}.", shown(public))),
        });
    }
    let mut reachable = Vec::new();
    for address in &addresses {
        if address.is_ipv4() || has_route(*address).await {
            reachable.push(*address);
        }
    }
    let detail = shown(&addresses.iter().collect::<Vec<_>>());
    if reachable.is_empty() {
        return Err(Note::failed(
            "ipv6-only",
            "The host has an IPv6 address only, and this server has no IPv6.",
            supabase::ipv6_advice(&place.host, place.port),
        )
        .particulars(format!("{detail}.")));
    }
    reachable.truncate(MAX_ADDRESSES);
    Ok((Note::passed(format!("{detail}.")), reachable))
}

/// `A 192.0.2.1; AAAA none`.
fn shown(addresses: &[&SocketAddr]) -> String {
    let of = |is_v6: bool| {
        let found: Vec<_> = addresses.iter().filter(|address| address.is_ipv6() == is_v6).collect();
        let texts: Vec<_> = found.iter().take(8).map(|address| address.ip().to_string()).collect();
        if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }
    };
    format!("A {}; AAAA {}", of(false), of(true))
}

/// Whether there is a way to an IPv6 address. Nothing is sent: only the system's table of routes is asked.
async fn has_route(address: SocketAddr) -> bool {
    let socket = UdpSocket::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))).await;
    match socket {
        Ok(socket) => socket.connect(address).await.is_ok(),
        Err(_) => false,
    }
}

/// A connection to what said that it is a database of the right engine.
pub(super) struct Reached {
    pub(super) stream: TcpStream,
    pub(super) peer: Peer,
}

/// Connects to one of the addresses, and listens to what answers, for as long as `limit` in all.
pub(super) async fn reach(place: &Place, addresses: &[SocketAddr], limit: Duration) -> Outcome<Reached> {
    let mut trouble = None;
    let mut reached = None;
    for address in addresses {
        match timeout(CONNECT_LIMIT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                reached = Some((stream, *address));
                break;
            }
            Ok(Err(error)) => trouble = Some((kind_of(&error), *address)),
            Err(_) => trouble = Some((Trouble::Timeout, *address)),
        }
    }
    let Some((mut stream, address)) = reached else {
        let (trouble, address) = trouble.unwrap_or((Trouble::Unreachable, ([0, 0, 0, 0], 0).into()));
        return Err(trouble.note(place, address.ip()));
    };
    let patience = limit.saturating_sub(CONNECT_LIMIT).min(peer::PATIENCE);
    let mut heard = peer::ask(place.engine, &mut stream, patience).await;
    if heard.is_spent && heard.peer.engine() == Some(place.engine) {
        // It is slow to begin with. What it was sent meanwhile is nothing to go on with.
        let again = timeout(CONNECT_LIMIT, TcpStream::connect(address)).await;
        let Ok(Ok(fresh)) = again else { return Err(Trouble::Timeout.note(place, address.ip())) };
        stream = fresh;
        heard = peer::ask(place.engine, &mut stream, peer::LONG_PATIENCE).await;
    }
    match heard.peer.trouble(place.engine) {
        Some(wrong) => Err(wrong.into()),
        None => {
            let detail = format!("{} answers at {}, port {}.", product(place.engine), address.ip(), place.port);
            Ok((Note::passed(detail), Reached { stream, peer: heard.peer }))
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Refused,
    Timeout,
    Unreachable,
}

fn kind_of(error: &io::Error) -> Trouble {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Trouble::Refused,
        io::ErrorKind::TimedOut => Trouble::Timeout,
        _ => Trouble::Unreachable,
    }
}

impl Trouble {
    fn note(self, place: &Place, address: IpAddr) -> Note {
        let port = place.port;
        let StepError { code, what, advice, is_transient, .. } = match self {
            Self::Refused => StepError::of_cause(place.engine, Cause::Refused),
            // It was waited for long enough.
            Self::Timeout => StepError::new(
                "timeout",
                "The server did not take a connection in time.",
                "Let our address through the server's firewall, and check host and port, and that the server runs.",
            ),
            Self::Unreachable => StepError::of_cause(place.engine, Cause::Unreachable),
        };
        let usual = match (place.engine, port) {
            (Engine::Mysql, 5432 | 6543) => " 5432 is PostgreSQL's port, MySQL's is 3306.",
            (Engine::Postgresql, 3306 | 3307) => " 3306 is MySQL's port, PostgreSQL's is 5432.",
            (Engine::Mysql, 33060) => " 33060 is the port of another protocol of MySQL's; use 3306.",
            _ => "",
        };
        let note = Note::failed(code, what, format!("{advice}{usual}"))
            .particulars(format!("That was {}.", SocketAddr::new(address, port)));
        if is_transient { note.transient() } else { note }
    }
}

#[cfg(test)]
mod tests {
    use super::{Place, Trouble};
    use kernel::Engine;

    #[test]
    fn the_other_engines_port_is_pointed_out() {
        let advice = |engine, port| {
            let place = Place { engine, host: "db.example".to_owned(), port };
            Trouble::Refused.note(&place, [192, 0, 2, 1].into()).advice.unwrap_or_default()
        };
        assert!(advice(Engine::Mysql, 5432).contains("3306"));
        assert!(advice(Engine::Postgresql, 3306).contains("5432"));
        assert!(!advice(Engine::Postgresql, 5432).contains("3306"));
    }
}
