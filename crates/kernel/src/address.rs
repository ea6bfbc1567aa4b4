//! Which addresses are of the public internet.

use std::net::IpAddr;

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
            let segments = v6.segments();
            let embedded = match segments {
                // ::ffff:a.b.c.d, ::a.b.c.d and NAT64's 64:ff9b::a.b.c.d.
                [0, 0, 0, 0, 0, 0xffff | 0, high, low] if (high, low) != (0, 0) && (high, low) != (0, 1) => {
                    Some((high, low))
                }
                [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some((high, low)),
                // 6to4 carries its IPv4 in front.
                [0x2002, high, low, ..] => Some((high, low)),
                _ => None,
            };
            if let Some((high, low)) = embedded {
                return is_public(IpAddr::V4(((u32::from(high) << 16) | u32::from(low)).into()));
            }
            // Only 2000::/3 is given out as global unicast; of that, documentation and Teredo are not hosts.
            let is_global = segments[0] & 0xe000 == 0x2000;
            let is_special =
                (segments[0] == 0x2001 && (segments[1] == 0x0db8 || segments[1] == 0)) || segments[0] == 0x3fff;
            is_global && !is_special
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_public;

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
