//! The networks that this machine is in: its routes that lead over no gateway, as the kernel lists them.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::ppspp::engine::Networks;

/// Where the kernel lists the routes of the calling thread's network namespace.
const IPV4_ROUTES: &str = "/proc/thread-self/net/route";
const IPV6_ROUTES: &str = "/proc/thread-self/net/ipv6_route";
/// Most that is read of a list, in bytes: a router of the Internet has a million routes.
const ROUTES_BYTES_MAX: u64 = 1 << 20;

/// Flags of a route: it is up; it leads over a gateway; it leads nowhere.
const UP: u32 = 1;
const GATEWAY: u32 = 2;
const REJECT: u32 = 0x200;

/// The networks that this machine is in now. Where the kernel tells nothing, none are known.
pub(super) fn networks() -> Networks {
    let (ipv4, ipv6) = (routes(IPV4_ROUTES), routes(IPV6_ROUTES));
    Networks::new(
        ipv4.lines().filter_map(ipv4_network).chain(ipv6.lines().filter_map(ipv6_network)),
    )
}

fn routes(path: &str) -> String {
    let mut list = String::new();
    // A kernel without IPv6 has no such list; one that is cut ends in a line that is not read.
    let _ = std::fs::File::open(path)
        .and_then(|file| file.take(ROUTES_BYTES_MAX).read_to_string(&mut list));
    list
}

/// A line of the IPv4 list: interface, destination, gateway, flags, and so on; the eighth is the mask.
/// Addresses are in this machine's byte order.
fn ipv4_network(line: &str) -> Option<(IpAddr, u8)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let number = |at: usize| u32::from_str_radix(fields.get(at)?, 16).ok();
    let (destination, flags, mask) = (number(1)?, number(3)?, number(7)?);
    let address = Ipv4Addr::from(destination.to_ne_bytes());
    is_direct(flags).then_some((address.into(), mask.count_ones() as u8))
}

/// A line of the IPv6 list: destination, its bits, source, its bits, next hop, metric, users, uses,
/// flags, interface.
fn ipv6_network(line: &str) -> Option<(IpAddr, u8)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let address = u128::from_str_radix(fields.first()?, 16).ok()?;
    let bits = u8::from_str_radix(fields.get(1)?, 16).ok()?;
    let flags = u32::from_str_radix(fields.get(8)?, 16).ok()?;
    let address = Ipv6Addr::from_bits(address);
    (is_direct(flags) && !address.is_multicast()).then_some((address.into(), bits))
}

fn is_direct(flags: u32) -> bool {
    flags & (UP | GATEWAY | REJECT) == UP
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_routes_without_a_gateway_are_networks_of_ours() {
        let line = |destination: [u8; 4], gateway: &str, flags: &str, mask: [u8; 4]| {
            let field = |bytes| format!("{:08X}", u32::from_ne_bytes(bytes));
            let (destination, mask) = (field(destination), field(mask));
            format!("eth0\t{destination}\t{gateway}\t{flags}\t0\t0\t0\t{mask}\t0\t0\t0 ")
        };
        let direct = line([203, 0, 113, 128], "00000000", "0001", [255, 255, 255, 128]);
        assert_eq!(ipv4_network(&direct), Some(([203, 0, 113, 128].into(), 25)));
        let header = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU";
        let beyond = line([198, 51, 100, 0], "010071CB", "0003", [255, 255, 255, 0]);
        let nowhere = line([198, 51, 100, 0], "00000000", "0201", [255, 255, 255, 0]);
        for line in [header, &beyond, &nowhere, "", "eth0 1", "eth0 x 0 0001 0 0 0 0"] {
            assert_eq!(ipv4_network(line), None, "{line}");
        }
    }

    #[test]
    fn ipv6_routes_without_a_gateway_are_networks_of_ours() {
        let none = "0".repeat(32);
        let line = |destination: &str, bits: &str, flags: &str| {
            format!("{destination} {bits} {none} 00 {none} 00000100 00000001 00000000 {flags} eth0")
        };
        let network = "20010db8000100000000000000000000";
        let address: IpAddr = "2001:db8:1::".parse().expect("an address");
        assert_eq!(ipv6_network(&line(network, "40", "00000001")), Some((address, 64)));
        let multicast = "ff000000000000000000000000000000";
        for line in [
            line(network, "40", "00000003"),
            line(multicast, "08", "00000001"),
            line(network, "40", "00200200"),
            String::new(),
        ] {
            assert_eq!(ipv6_network(&line), None, "{line}");
        }
    }

    #[test]
    fn this_machine_is_near_to_itself() {
        assert!(networks().hold([127, 0, 0, 1].into()));
    }
}
