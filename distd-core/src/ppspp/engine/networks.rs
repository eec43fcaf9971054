//! Which addresses are near: of networks that the Internet does not reach, or of one that this machine
//! is in itself.

use std::net::IpAddr;

/// Networks that are kept; those beyond are not known as our own.
const NETWORKS_MAX: usize = 256;

/// Leading bits of the widest network that may be our own.
const IPV4_BITS_MIN: u8 = 8;
const IPV6_BITS_MIN: u8 = 32;

/// The networks that this machine reaches without a gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Vec<(u128, u128)>);

impl Networks {
    /// No network of our own: only what is private, link-local or of this machine is near.
    pub const fn none() -> Self {
        Self(Vec::new())
    }

    /// Networks, each an address in it and how many leading bits of that count. Tunnels that take all
    /// traffic come as halves of the Internet: what is wider than any network of machines is left out.
    pub fn new(networks: impl IntoIterator<Item = (IpAddr, u8)>) -> Self {
        let counts = |(address, bits): &(IpAddr, u8)| {
            *bits >= if address.is_ipv4() { IPV4_BITS_MIN } else { IPV6_BITS_MIN }
        };
        let networks = networks.into_iter().filter(counts).filter_map(|(address, bits)| {
            let bits = if address.is_ipv4() { 96 + u32::from(bits) } else { u32::from(bits) };
            let mask = !u128::MAX.checked_shr(bits).unwrap_or(0);
            (bits <= 128).then(|| (number(address) & mask, mask))
        });
        Self(networks.take(NETWORKS_MAX).collect())
    }

    /// Whether an address is near.
    pub fn hold(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let local = match address {
            IpAddr::V4(ip) => ip.is_private() || ip.is_link_local() || ip.is_loopback(),
            IpAddr::V6(ip) => {
                ip.is_unique_local() || ip.is_unicast_link_local() || ip.is_loopback()
            }
        };
        local || self.0.iter().any(|(network, mask)| number(address) & mask == *network)
    }
}

/// An address as IPv6 writes it.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn private_addresses_and_those_of_our_own_networks_are_near() {
        let networks = [("203.0.113.9", 25), ("2001:db8:1::1", 64), ("198.51.100.1", 32)];
        let networks = Networks::new(networks.map(|(address, bits)| (ip(address), bits)));
        for near in [
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.7.7",
            "127.0.0.1",
            "::1",
            "fe80::1",
            "fd00::1",
            "::ffff:10.1.2.3",
            "203.0.113.127",
            "::ffff:203.0.113.1",
            "2001:db8:1::ffff",
            "198.51.100.1",
        ] {
            assert!(networks.hold(ip(near)), "{near}");
        }
        for far in ["8.8.8.8", "203.0.113.128", "198.51.100.2", "2001:db8:2::1", "100.64.0.1"] {
            assert!(!networks.hold(ip(far)), "{far}");
        }
        assert!(!Networks::none().hold(ip("203.0.113.9")));
    }

    #[test]
    fn a_default_route_and_nonsense_make_nobody_near() {
        let networks = [
            ("0.0.0.0", 0),
            ("0.0.0.0", 1),
            ("128.0.0.0", 1),
            ("::", 0),
            ("2000::", 3),
            ("203.0.113.1", 33),
            ("2001:db8::1", 129),
        ];
        let networks = Networks::new(networks.map(|(address, bits)| (ip(address), bits)));
        assert_eq!(networks, Networks::none());
        let many = (0..10_000u32).map(|i| (IpAddr::from(i.to_be_bytes()), 32));
        assert_eq!(Networks::new(many).0.len(), NETWORKS_MAX);
    }

    proptest! {
        #[test]
        fn a_network_holds_what_begins_with_its_bits(a: u32, b: u32, bits in 8u8..=32) {
            let networks = Networks::new([(IpAddr::from(a.to_be_bytes()), bits)]);
            let address = IpAddr::from(b.to_be_bytes());
            let shift = 32 - u32::from(bits);
            let expected = a >> shift == b >> shift || Networks::none().hold(address);
            prop_assert_eq!(networks.hold(address), expected);
        }
    }
}
