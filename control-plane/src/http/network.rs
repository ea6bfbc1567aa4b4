//! What counts as one client where requests and connections are counted.

use std::net::{IpAddr, Ipv6Addr};

/// The network that counts as one client: an IPv4 address by itself, and the 64 bits of an IPv6 one, since whoever has one
/// address of those has them all.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => first(v6, 64),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// The largest IPv6 network that one household or office is given, which holds up to 65536 of [`network`].
pub fn site(address: IpAddr) -> Option<IpAddr> {
    match address.to_canonical() {
        IpAddr::V6(v6) => Some(first(v6, 48)),
        IpAddr::V4(_) => None,
    }
}

fn first(address: Ipv6Addr, bits: u32) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << (128 - bits))))
}

#[cfg(test)]
mod tests {
    use super::{network, site};

    #[test]
    fn ipv6_counts_by_its_64_bits_and_ipv4_by_the_address() {
        let of = |text: &str| network(text.parse().expect("an address")).to_string();
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(of("192.0.2.7"), "192.0.2.7");
        assert_eq!(of("::ffff:192.0.2.7"), "192.0.2.7");
        let site_of = |text: &str| site(text.parse().expect("an address")).map(|site| site.to_string());
        assert_eq!(site_of("2001:db8:1:2:3:4:5:6").as_deref(), Some("2001:db8:1::"));
        assert_eq!(site_of("::ffff:192.0.2.7"), None);
    }
}
