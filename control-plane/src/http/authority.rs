//! Which host a request is for, decided once and by one rule (RFC 9112 §3.2, RFC 9113 §8.3.1).

use std::collections::HashSet;
use std::net::IpAddr;

use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use kernel::{Hostname, HostnameError};
use problem::Problem;

use crate::config::{ConfigError, HostArgs};

/// The peer of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub IpAddr);

/// Whom a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestHost {
    /// The platform itself: API and console.
    Platform,
    /// Whatever store has this name.
    Store(Hostname),
}

/// Where a request comes from: the peer, or what a trusted proxy says.
#[derive(Debug, Clone, Copy)]
pub struct ClientAddress(pub IpAddr);

/// The hosts on which the platform itself answers, and the proxies whose word counts.
#[derive(Debug)]
pub struct PlatformHosts {
    names: HashSet<Hostname>,
    addresses: HashSet<IpAddr>,
    proxies: HashSet<IpAddr>,
}

enum Authority {
    Name(Hostname),
    Address(IpAddr),
}

fn read(authority: &str) -> Result<Authority, HostnameError> {
    match Hostname::from_authority(authority) {
        Ok(name) => Ok(Authority::Name(name)),
        Err(HostnameError::Address) => {
            let bare = match authority.strip_prefix('[') {
                Some(rest) => rest.split(']').next().unwrap_or_default(),
                None => authority.split(':').next().unwrap_or_default(),
            };
            bare.parse().map(Authority::Address).map_err(|_| HostnameError::Malformed)
        }
        Err(other) => Err(other),
    }
}

impl PlatformHosts {
    /// # Errors
    /// When PLATFORM_HOSTS names something that is no host.
    pub fn new(args: &HostArgs) -> Result<Self, ConfigError> {
        let default = ["localhost", "127.0.0.1", "[::1]", args.platform_domain.as_str()].map(str::to_owned);
        let given: &[String] = if args.platform_hosts.is_empty() { &default } else { &args.platform_hosts };
        let (mut names, mut addresses) = (HashSet::new(), HashSet::new());
        for host in given {
            match read(host.trim()) {
                Ok(Authority::Name(name)) => {
                    names.insert(name);
                }
                Ok(Authority::Address(address)) => {
                    addresses.insert(address);
                }
                Err(_) => {
                    return Err(ConfigError::Invalid { name: "PLATFORM_HOSTS", why: format!("{host:?} is no host") });
                }
            }
        }
        Ok(Self { names, addresses, proxies: args.trusted_proxies.iter().copied().collect() })
    }

    /// Whether this name is one of the platform's own.
    pub fn is_platform(&self, name: &Hostname) -> bool {
        self.names.contains(name)
    }

    /// Whether `peer` is a proxy whose headers count.
    pub fn is_proxy(&self, peer: IpAddr) -> bool {
        self.proxies.contains(&peer.to_canonical())
    }

    /// The host of a request.
    ///
    /// # Errors
    /// 400 when there is none, more than one, two that differ, or one that is no host.
    pub fn of_request(&self, parts: &Parts, peer: IpAddr) -> Result<RequestHost, Problem> {
        let refused = |code, detail: &str| {
            Problem::new(StatusCode::BAD_REQUEST, code, "The request does not say which host it is for").detail(detail)
        };
        let mut hosts = parts.headers.get_all(header::HOST).iter();
        let header = hosts.next();
        if hosts.next().is_some() {
            return Err(refused("several-hosts", "Send one Host header."));
        }
        let header = match header {
            Some(value) => Some(value.to_str().map_err(|_| refused("invalid-host", "The Host header is not ASCII."))?),
            None => None,
        };
        // An absolute-form target overrides Host; a client that sends both must mean the same by them.
        let target = parts.uri.authority().map(axum::http::uri::Authority::as_str);
        if target.is_some_and(|target| target.contains('@')) {
            return Err(refused("invalid-host", "The target names a user."));
        }
        let authority = match (target, header) {
            (Some(target), Some(header)) if !target.eq_ignore_ascii_case(header) => {
                return Err(refused("several-hosts", "The target and the Host header name different hosts."));
            }
            (Some(name), _) | (None, Some(name)) => name,
            (None, None) => return Err(refused("missing-host", "Send a Host header.")),
        };
        let forwarded = if self.is_proxy(peer) { forwarded_host(parts, &refused)? } else { None };
        match read(forwarded.unwrap_or(authority)) {
            Ok(Authority::Name(name)) if self.names.contains(&name) => Ok(RequestHost::Platform),
            Ok(Authority::Name(name)) => Ok(RequestHost::Store(name)),
            Ok(Authority::Address(address)) if self.addresses.contains(&address) => Ok(RequestHost::Platform),
            // An address never names a store, and no store is the default.
            Ok(Authority::Address(_)) => Err(misdirected()),
            Err(HostnameError::Empty) => Err(refused("missing-host", "The Host header is empty.")),
            Err(HostnameError::Malformed | HostnameError::Address) => {
                Err(refused("invalid-host", "The Host header is no hostname."))
            }
        }
    }

    /// Where the request comes from: the last hop that a trusted proxy names, else the peer.
    pub fn client_of(&self, parts: &Parts, peer: IpAddr) -> ClientAddress {
        let forwarded = || {
            let value = parts.headers.get_all("x-forwarded-for").iter().next_back()?.to_str().ok()?;
            value.rsplit(',').next()?.trim().parse::<IpAddr>().ok()
        };
        let named = if self.is_proxy(peer) { forwarded() } else { None };
        ClientAddress(named.unwrap_or(peer).to_canonical())
    }
}

/// The host that the last proxy saw.
fn forwarded_host<'a>(
    parts: &'a Parts,
    refused: &impl Fn(&'static str, &str) -> Problem,
) -> Result<Option<&'a str>, Problem> {
    let Some(last) = parts.headers.get_all("x-forwarded-host").iter().next_back() else { return Ok(None) };
    let text = last.to_str().map_err(|_| refused("invalid-host", "X-Forwarded-Host is not ASCII."))?;
    Ok(text.rsplit(',').next().map(str::trim))
}

/// 421: no store has this name, and there is no default one.
pub fn misdirected() -> Problem {
    Problem::new(StatusCode::MISDIRECTED_REQUEST, "unknown-host", "No store answers under this hostname")
        .detail("Check the spelling of the hostname.")
}

#[cfg(test)]
mod tests {
    use super::{PlatformHosts, RequestHost};
    use crate::config::HostArgs;
    use axum::http::Request;
    use kernel::Hostname;
    use std::net::IpAddr;

    fn hosts() -> PlatformHosts {
        PlatformHosts::new(&HostArgs {
            listen: ([127, 0, 0, 1], 0).into(),
            internal_listen: ([127, 0, 0, 1], 0).into(),
            platform_domain: Hostname::parse("stores.localhost").expect("valid"),
            platform_hosts: Vec::new(),
            public_url: None,
            trusted_proxies: vec![[10, 0, 0, 1].into()],
        })
        .expect("valid")
    }

    fn of(headers: &[(&str, &str)], uri: &str, peer: [u8; 4]) -> Result<RequestHost, &'static str> {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).expect("valid").into_parts();
        hosts().of_request(&parts, IpAddr::from(peer)).map_err(|problem| problem.code())
    }

    fn store(name: &str) -> Result<RequestHost, &'static str> {
        Ok(RequestHost::Store(Hostname::parse(name).expect("valid")))
    }

    const STRANGER: [u8; 4] = [192, 0, 2, 9];

    #[test]
    fn platform_hosts_and_stores_are_told_apart() {
        for host in ["localhost:8080", "127.0.0.1:8080", "[::1]:8080", "Stores.Localhost."] {
            assert_eq!(of(&[("host", host)], "/", STRANGER), Ok(RequestHost::Platform), "{host}");
        }
        assert_eq!(of(&[("host", "tea.stores.localhost:8080")], "/", STRANGER), store("tea.stores.localhost"));
        assert_eq!(of(&[("host", "192.0.2.1")], "/", STRANGER), Err("unknown-host"));
    }

    #[test]
    fn none_two_and_nonsense_are_refused() {
        assert_eq!(of(&[], "/", STRANGER), Err("missing-host"));
        assert_eq!(of(&[("host", "")], "/", STRANGER), Err("missing-host"));
        assert_eq!(of(&[("host", "a.test"), ("host", "a.test")], "/", STRANGER), Err("several-hosts"));
        assert_eq!(of(&[("host", "a_b.test")], "/", STRANGER), Err("invalid-host"));
        assert_eq!(of(&[("host", "b.test")], "http://a.test/", STRANGER), Err("several-hosts"));
        assert_eq!(of(&[("host", "A.test")], "http://a.test/", STRANGER), store("a.test"));
    }

    #[test]
    fn a_forwarded_host_counts_from_a_trusted_proxy_only() {
        let headers = [("host", "inner.test"), ("x-forwarded-host", "evil.test, shop.test")];
        assert_eq!(of(&headers, "/", STRANGER), store("inner.test"));
        assert_eq!(of(&headers, "/", [10, 0, 0, 1]), store("shop.test"));
    }
}
