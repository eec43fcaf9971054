//! Handshakes that were answered and are not proved yet: one fixed table (RFC 7574 §12.1.2).
//!
//! Nothing else is kept for an address before its datagram 3 echoes the channel id that was sent to
//! it. A flood of datagrams 1 pushes out its own entries: the table is full of them, and the one
//! that gives way is drawn by lot.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use rand::Rng;
use rand::rngs::StdRng;

use crate::ppspp::codec::{ChannelId, MessageSet};

use super::event::SwarmKey;
use super::limits::{HALF_OPEN_LIFE, HALF_OPEN_MAX, HALF_OPEN_PER_PREFIX_MAX};

/// An answered datagram 1.
#[derive(Clone, Copy, Debug)]
pub(super) struct HalfOpen {
    pub(super) address: SocketAddr,
    pub(super) swarm: SwarmKey,
    /// The channel id that the initiator must echo.
    pub(super) local: ChannelId,
    /// The initiator's.
    pub(super) remote: ChannelId,
    /// The messages that the initiator understands.
    pub(super) messages: MessageSet,
    pub(super) since: Instant,
}

/// The network that an address is counted with: /24 of IPv4, /56 of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Prefix([u8; 8]);

impl Prefix {
    fn of(address: &SocketAddr) -> Self {
        let mut prefix = [0; 8];
        match address.ip().to_canonical() {
            IpAddr::V4(ip) => {
                prefix[..3].copy_from_slice(&ip.octets()[..3]);
                prefix[7] = 4;
            }
            IpAddr::V6(ip) => prefix[..7].copy_from_slice(&ip.octets()[..7]),
        }
        Self(prefix)
    }
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct HalfOpenTable {
    slots: Vec<HalfOpen>,
    by_local: BTreeMap<u32, usize>,
    by_remote: BTreeMap<(SocketAddr, SwarmKey), usize>,
    by_prefix: BTreeMap<Prefix, u16>,
    /// In order of age; entries that were taken or pushed out are skipped.
    order: VecDeque<(Instant, u32)>,
}

impl HalfOpenTable {
    /// The entry of this address in this swarm: a datagram 1 that came again is answered with the
    /// same channel id.
    pub(super) fn find(
        &self,
        now: Instant,
        address: SocketAddr,
        swarm: SwarmKey,
    ) -> Option<&HalfOpen> {
        let slot = *self.by_remote.get(&(address, swarm))?;
        self.slots.get(slot).filter(|entry| Self::lives(entry, now))
    }

    /// Whether `id` is in use here.
    pub(super) fn holds(&self, id: ChannelId) -> bool {
        self.by_local.contains_key(&id.0)
    }

    /// Keeps `entry`; `false` if its network has too many.
    pub(super) fn insert(&mut self, rng: &mut StdRng, entry: HalfOpen) -> bool {
        if let Some(slot) = self.by_remote.get(&(entry.address, entry.swarm)) {
            self.remove(*slot);
        }
        self.expire(entry.since);
        let prefix = Prefix::of(&entry.address);
        if self.by_prefix.get(&prefix).is_some_and(|count| *count >= HALF_OPEN_PER_PREFIX_MAX) {
            return false;
        }
        if self.slots.len() >= HALF_OPEN_MAX {
            let slot = rng.random_range(0..self.slots.len());
            self.remove(slot);
        }
        if self.order.len() >= 2 * HALF_OPEN_MAX {
            let by_local = &self.by_local;
            self.order.retain(|(_, local)| by_local.contains_key(local));
        }
        self.order.push_back((entry.since, entry.local.0));
        *self.by_prefix.entry(prefix).or_default() += 1;
        self.by_local.insert(entry.local.0, self.slots.len());
        self.by_remote.insert((entry.address, entry.swarm), self.slots.len());
        self.slots.push(entry);
        true
    }

    /// Takes the entry whose channel id `address` echoes: its address is proved.
    pub(super) fn take(
        &mut self,
        now: Instant,
        local: ChannelId,
        address: SocketAddr,
    ) -> Option<HalfOpen> {
        let slot = *self.by_local.get(&local.0)?;
        let entry = *self.slots.get(slot).filter(|entry| entry.address == address)?;
        self.remove(slot);
        Self::lives(&entry, now).then_some(entry)
    }

    /// Forgets the entries of a swarm that is left.
    pub(super) fn remove_swarm(&mut self, swarm: SwarmKey) {
        while let Some(slot) = self.slots.iter().position(|entry| entry.swarm == swarm) {
            self.remove(slot);
        }
    }

    /// Entries, expired ones included.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Drops the entries that are too old.
    fn expire(&mut self, now: Instant) {
        while let Some((since, local)) = self.order.front().copied() {
            let slot = self.by_local.get(&local).copied();
            if slot.is_some() && now.saturating_duration_since(since) < HALF_OPEN_LIFE {
                break;
            }
            self.order.pop_front();
            if let Some(slot) = slot {
                self.remove(slot);
            }
        }
    }

    fn lives(entry: &HalfOpen, now: Instant) -> bool {
        now.saturating_duration_since(entry.since) < HALF_OPEN_LIFE
    }

    fn remove(&mut self, slot: usize) {
        let entry = self.slots.swap_remove(slot);
        self.by_local.remove(&entry.local.0);
        self.by_remote.remove(&(entry.address, entry.swarm));
        let prefix = Prefix::of(&entry.address);
        if let Some(count) = self.by_prefix.get_mut(&prefix) {
            *count -= 1;
            if *count == 0 {
                self.by_prefix.remove(&prefix);
            }
        }
        if let Some(moved) = self.slots.get(slot) {
            self.by_local.insert(moved.local.0, slot);
            self.by_remote.insert((moved.address, moved.swarm), slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use std::net::Ipv4Addr;

    fn entry(ip: u32, local: u32, since: Instant) -> HalfOpen {
        HalfOpen {
            address: SocketAddr::from((Ipv4Addr::from(ip), 7574)),
            swarm: SwarmKey(0),
            local: ChannelId(local),
            remote: ChannelId(1),
            messages: MessageSet::default(),
            since,
        }
    }

    #[test]
    fn a_flood_never_grows_the_table_and_is_capped_per_network() {
        let (now, mut rng) = (Instant::now(), StdRng::seed_from_u64(1));
        let mut table = HalfOpenTable::default();
        for i in 0..100_000u32 {
            table.insert(&mut rng, entry(i.wrapping_mul(0x9e37_79b9), i + 1, now));
        }
        assert_eq!(table.len(), HALF_OPEN_MAX);
        assert_eq!(table.by_local.len(), HALF_OPEN_MAX);
        assert_eq!(table.by_remote.len(), HALF_OPEN_MAX);
        let mut table = HalfOpenTable::default();
        let kept = (0..1000u32)
            .filter(|i| table.insert(&mut rng, entry(0x0a00_0000 | (i % 250), i + 1, now)))
            .count();
        assert_eq!(kept, 1000, "the same address replaces its own entry");
        assert!(table.len() <= usize::from(HALF_OPEN_PER_PREFIX_MAX));
    }

    // Shows C10 (RFC 7574 3.1.1).
    #[test]
    fn only_the_address_that_was_answered_opens_a_channel_and_only_in_time() {
        let (now, mut rng) = (Instant::now(), StdRng::seed_from_u64(1));
        let mut table = HalfOpenTable::default();
        let (one, other) = (entry(1, 11, now), entry(2, 12, now));
        assert!(table.insert(&mut rng, one) && table.insert(&mut rng, other));
        assert!(table.take(now, ChannelId(11), other.address).is_none());
        assert!(table.take(now, ChannelId(11), one.address).is_some());
        assert!(table.take(now, ChannelId(11), one.address).is_none());
        assert!(table.take(now + HALF_OPEN_LIFE, ChannelId(12), other.address).is_none());
        assert_eq!((table.len(), table.by_prefix.len()), (0, 0));
    }
}
