//! Finding peers on the local network: a datagram to a multicast group says which swarms a node is in,
//! and at which port.
//!
//! ```text
//! "distdLAN" (8) | nonce (8) | port (2) | keys (16 each): 64 at most
//! ```
//!
//! A key is derived from a swarm's id, so that only who knows the swarm learns of it. What is heard is
//! a hint: the peer proves itself as every other does. The group is heard on each interface; a datagram
//! does not leave its network (TTL 1), and only senders that are near are taken up.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, netdevice, sockopt};
use tokio::net::UdpSocket;

use crate::keys::{OriginId, SwarmId};
use crate::ppspp::engine::Networks;

/// The group, of the organization-local scope (RFC 2365), and its port.
const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 255, 75, 74), 7574);
const MAGIC: &[u8; 8] = b"distdLAN";
const HEAD_BYTES: usize = 18;
const KEY_BYTES: usize = 16;
/// Swarms named in one datagram; those beyond are not announced.
const KEYS_MAX: usize = 64;
/// Neighbours taken up for one swarm: with more, each of them would talk to all.
const NEIGHBOURS_MAX: usize = 32;
/// Interfaces that are listened on.
const INTERFACES_MAX: usize = 64;

/// How often a node says that it is there.
const INTERVAL: Duration = Duration::from_secs(30);
/// A neighbour that was not heard for so long is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(100);
/// Least time between two datagrams of ours.
const PAUSE: Duration = Duration::from_millis(500);

/// A swarm's name on the local network.
type Key = [u8; KEY_BYTES];

fn key_of(swarm: &SwarmId) -> Key {
    let hash = blake3::derive_key("distd 2026 local discovery of a swarm's members", &swarm.0);
    let mut key = [0; KEY_BYTES];
    key.copy_from_slice(&hash[..KEY_BYTES]);
    key
}

/// What is known of the neighbours; no socket in it.
#[derive(Debug)]
pub(super) struct Neighbours {
    nonce: [u8; 8],
    port: u16,
    /// The networks that this machine is in.
    pub(super) networks: Networks,
    heard: BTreeMap<(OriginId, SocketAddr), Instant>,
    say_at: Instant,
    said_at: Option<Instant>,
}

impl Neighbours {
    /// `port` is where peers reach this node.
    pub(super) fn new(now: Instant, nonce: [u8; 8], port: u16) -> Self {
        let networks = Networks::none();
        Self { nonce, port, networks, heard: BTreeMap::new(), say_at: now, said_at: None }
    }

    /// When the next datagram is due.
    pub(super) fn say_at(&self) -> Instant {
        self.said_at.map_or(self.say_at, |said| self.say_at.max(said + PAUSE))
    }

    /// A swarm was joined: whoever is there is to hear of it soon.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.say_at = self.say_at.min(now);
    }

    /// The datagram that says which swarms are here; `None` if there are none.
    pub(super) fn say(&mut self, now: Instant, origins: &[OriginId]) -> Option<Vec<u8>> {
        (self.said_at, self.say_at) = (Some(now), now + INTERVAL);
        self.heard.retain(|(origin, _), at| {
            origins.contains(origin) && now.saturating_duration_since(*at) < FORGOTTEN_AFTER
        });
        if origins.is_empty() {
            return None;
        }
        let mut datagram = MAGIC.to_vec();
        datagram.extend(self.nonce);
        datagram.extend(self.port.to_be_bytes());
        datagram.extend(origins.iter().take(KEYS_MAX).flat_map(|id| key_of(&id.swarm_id())));
        Some(datagram)
    }

    /// A datagram arrived: the peers to connect to. A new one is answered soon, so that it hears of us.
    pub(super) fn hear(
        &mut self,
        now: Instant,
        from: IpAddr,
        datagram: &[u8],
        origins: &[OriginId],
    ) -> Vec<(OriginId, SocketAddr)> {
        let Some((nonce, port, keys)) = parse(datagram) else { return Vec::new() };
        if nonce == self.nonce || !self.networks.hold(from) {
            return Vec::new();
        }
        let address = SocketAddr::new(from, port);
        let mut found = Vec::new();
        for origin in origins.iter().filter(|id| keys.contains(&key_of(&id.swarm_id()))) {
            let known = self.heard.keys().filter(|(of, _)| of == origin).count();
            let neighbour = (*origin, address);
            if let Some(at) = self.heard.get_mut(&neighbour) {
                *at = now;
            } else if known < NEIGHBOURS_MAX {
                self.heard.insert(neighbour, now);
                found.push(neighbour);
                self.hurry(now);
            }
        }
        found
    }
}

fn parse(datagram: &[u8]) -> Option<([u8; 8], u16, BTreeSet<Key>)> {
    let rest = datagram.strip_prefix(MAGIC)?;
    let (nonce, rest) = rest.split_first_chunk::<8>()?;
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let (keys, left) = rest.as_chunks::<KEY_BYTES>();
    let port = u16::from_be_bytes(*port);
    let well_formed = left.is_empty() && keys.len() <= KEYS_MAX && port != 0;
    well_formed.then(|| (*nonce, port, keys.iter().copied().collect()))
}

/// The group's socket.
pub(super) struct GroupSocket {
    io: UdpSocket,
    joined: BTreeSet<u32>,
}

impl GroupSocket {
    /// Several nodes of one machine share the port. Must run inside a tokio runtime.
    pub(super) fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let kind = SocketType::DGRAM;
        let socket =
            rustix::net::socket_with(AddressFamily::INET, kind, flags, Some(ipproto::UDP))?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        sockopt::set_ip_multicast_ttl(&socket, 1)?;
        rustix::net::bind(&socket, &SocketAddr::V4(GROUP))?;
        let io = UdpSocket::from_std(std::net::UdpSocket::from(socket))?;
        Ok(Self { io, joined: BTreeSet::new() })
    }

    /// Sends a datagram, if there is one, on every interface, and listens there from then on.
    pub(super) async fn send(&mut self, datagram: Option<&[u8]>) {
        for index in self.interfaces() {
            let (group, any) = (GROUP.ip(), &Ipv4Addr::UNSPECIFIED);
            if self.joined.insert(index)
                && sockopt::set_ip_add_membership_with_ifindex(&self.io, group, any, index).is_err()
            {
                // An interface without IPv4, or without multicast: another time, perhaps.
                self.joined.remove(&index);
                continue;
            }
            let Some(datagram) = datagram else { continue };
            if sockopt::set_ip_multicast_if_with_ifindex(&self.io, group, any, index).is_ok() {
                // One that is down, or where nobody is: there is nobody to tell.
                let _ = self.io.send_to(datagram, GROUP).await;
            }
        }
    }

    /// The next datagram.
    pub(super) async fn receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<(IpAddr, &'a [u8])> {
        let (length, from) = self.io.recv_from(buffer).await?;
        Ok((from.ip(), buffer.get(..length).unwrap_or_default()))
    }

    /// Indices of the interfaces of this network namespace.
    fn interfaces(&self) -> Vec<u32> {
        let listed = std::fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
        let names = listed.lines().filter_map(|line| Some(line.split_once(':')?.0.trim()));
        let indices = names.filter_map(|name| netdevice::name_to_index(&self.io, name).ok());
        indices.take(INTERFACES_MAX).collect()
    }
}

/// Longest datagram that makes sense.
pub(super) const DATAGRAM_BYTES: usize = HEAD_BYTES + KEYS_MAX * KEY_BYTES;

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 7, 9));

    fn origin(id: u8) -> OriginId {
        OriginId([id; 32])
    }

    #[test]
    fn members_of_one_swarm_find_each_other_and_answer_new_ones_soon() {
        let now = Instant::now();
        let mut one = Neighbours::new(now, [1; 8], 7001);
        let mut other = Neighbours::new(now, [2; 8], 7002);
        let said = one.say(now, &[origin(3), origin(4)]).expect("two swarms");
        assert!(said.len() <= DATAGRAM_BYTES);
        let _ = other.say(now, &[origin(4), origin(5)]);
        assert!(other.say_at() >= now + INTERVAL);
        let found = other.hear(now, HERE, &said, &[origin(4), origin(5)]);
        assert_eq!(found, [(origin(4), SocketAddr::new(HERE, 7001))]);
        assert_eq!(other.say_at(), now + PAUSE, "an answer, but not two in a breath");
        assert!(other.hear(now, HERE, &said, &[origin(4)]).is_empty(), "known by now");
        assert!(one.hear(now, HERE, &said, &[origin(3)]).is_empty(), "our own voice");
        // Forgotten after a while, and found again.
        let later = now + FORGOTTEN_AFTER;
        let _ = other.say(later, &[origin(4)]);
        assert_eq!(other.hear(later, HERE, &said, &[origin(4)]).len(), 1);
    }

    #[test]
    fn strangers_and_noise_are_not_taken_up_and_neighbours_are_bounded() {
        let now = Instant::now();
        let mut node = Neighbours::new(now, [1; 8], 7001);
        let said = Neighbours::new(now, [2; 8], 9).say(now, &[origin(3)]).expect("one swarm");
        let public = IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8));
        assert!(node.hear(now, public, &said, &[origin(3)]).is_empty());
        node.networks = Networks::new([(public, 24)]);
        assert_eq!(node.hear(now, public, &said, &[origin(3)]).len(), 1, "of a network of our own");
        for cut in 0..said.len() {
            assert!(node.hear(now, HERE, &said[..cut], &[origin(3)]).is_empty(), "{cut} bytes");
        }
        for octet in 0..=255 {
            let from = IpAddr::V4(Ipv4Addr::new(10, 0, 0, octet));
            let _ = node.hear(now, from, &said, &[origin(3)]);
        }
        assert_eq!(node.heard.len(), NEIGHBOURS_MAX);
        assert!(node.say(now, &[]).is_none(), "nothing to say without a swarm");
    }
}
