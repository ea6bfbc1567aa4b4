//! Which addresses are of the public internet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether `address` is of the public internet (IANA's special-purpose registries; embedded IPv4 counts as IPv4).
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            let is_special = v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.is_documentation()
                || a == 0
                || a >= 240
                || (a == 100 && (64..128).contains(&b))
                || (a == 192 && b == 0 && c == 0)
                || (a == 198 && (18..20).contains(&b));
            !is_special
        }
        IpAddr::V6(v6) => {
            if let Some(v4) = embedded(v6) {
                return is_public(IpAddr::V4(v4));
            }
            let segments = v6.segments();
            // Only 2000::/3 is given out as global unicast; of that, documentation and Teredo are not hosts.
            let is_global = segments[0] & 0xe000 == 0x2000;
            let is_special =
                (segments[0] == 0x2001 && (segments[1] == 0x0db8 || segments[1] == 0)) || segments[0] == 0x3fff;
            is_global && !is_special
        }
    }
}

/// Whether nothing that somebody else names may be looked for at `address`, in whatever network we are: addresses of no one host
/// (unspecified, multicast, broadcast, reserved), link-local ones, and those at which clouds tell a machine its secrets.
#[must_use]
pub fn is_off_limits(address: IpAddr) -> bool {
    /// What is not link-local, of Azure, Alibaba and Oracle.
    const METADATA: [[u8; 4]; 3] = [[168, 63, 129, 16], [100, 100, 100, 200], [192, 0, 0, 192]];
    match address {
        IpAddr::V4(v4) => {
            let octets = v4.octets();
            v4.is_link_local() || v4.is_multicast() || octets[0] == 0 || octets[0] >= 240 || METADATA.contains(&octets)
        }
        IpAddr::V6(v6) => {
            if let Some(v4) = embedded(v6) {
                return is_off_limits(IpAddr::V4(v4));
            }
            // Unique local ones of AWS and Google.
            let is_metadata = matches!(v6.segments(), [0xfd00, 0x0ec2, ..] | [0xfd20, 0x00ce, ..]);
            v6.is_unspecified() || v6.is_unicast_link_local() || v6.is_multicast() || is_metadata
        }
    }
}

/// The IPv4 address that an IPv6 one stands for.
fn embedded(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let (high, low) = match v6.segments() {
        // ::ffff:a.b.c.d, ::a.b.c.d (but not :: and ::1) and NAT64's 64:ff9b::a.b.c.d.
        [0, 0, 0, 0, 0, 0xffff, high, low] => (high, low),
        [0, 0, 0, 0, 0, 0, high, low] if (high, low) != (0, 0) && (high, low) != (0, 1) => (high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => (high, low),
        // 6to4 carries its IPv4 in front.
        [0x2002, high, low, ..] => (high, low),
        _ => return None,
    };
    Some(((u32::from(high) << 16) | u32::from(low)).into())
}

#[cfg(test)]
mod tests {
    use super::{is_off_limits, is_public};

    #[test]
    fn no_network_makes_a_host_of_a_special_address() {
        for address in
            ["8.8.8.8", "127.0.0.1", "10.1.2.3", "192.168.1.1", "100.64.0.1", "::1", "fd00::1", "2606:4700::1111"]
        {
            assert!(!is_off_limits(address.parse().expect("an address")), "{address}");
        }
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "169.254.0.1",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "168.63.129.16",
            "100.100.100.200",
            "192.0.0.192",
            "::",
            "fe80::1",
            "febf::1",
            "ff02::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "::ffff:169.254.169.254",
            "::ffff:0.0.0.0",
            "64:ff9b::169.254.169.254",
            "2002:a9fe:a9fe::",
            "::169.254.169.254",
        ] {
            assert!(is_off_limits(address.parse().expect("an address")), "{address}");
        }
    }

    #[test]
    fn special_addresses_are_not_public() {
        for address in ["8.8.8.8", "2606:4700::1111", "64:ff9b::8.8.8.8"] {
            assert!(is_public(address.parse().expect("an address")), "{address}");
        }
        for address in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::10.0.0.1",
            "2002:7f00:1::",
            "2001:db8::1",
            "::127.0.0.1",
        ] {
            assert!(!is_public(address.parse().expect("an address")), "{address}");
        }
    }
}
