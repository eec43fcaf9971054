//! Peer exchange (RFC 7574 §3.10, §8.13): a member that knows few asks its peers for others.
//!
//! Told are members of the asker's own level: who is above others is found by SOURCE, not by hearsay.
//! Addresses are hearsay. Whoever is found so is dialled a bounded number of times, is believed to
//! stand above nobody (`Channel::level`), and only within the networks that the swarm is open to: by
//! default near ones (RFC 7574 3.10.1: PEX_RESv4 and v6 MUST only be used in benign networks). The
//! injector neither asks nor answers (§12.2.3), and the addresses that the user gave stay (RFC 7574
//! 3.10.1: some connections MUST come from a trusted tracker).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use crate::ppspp::codec::{Message, MessageType};

use super::Engine;
use super::channel::{Channel, ChannelIndex, count_in_minute};
use super::event::{Event, SwarmKey};
use super::limits::{
    PEX_ADDRESSES_MAX, PEX_ASK_AFTER, PEX_EVERY, PEX_FOUND_MAX, PEX_HEARD_WITHIN,
    PEX_MEMBERS_ENOUGH, PEX_PROBES_PER_MINUTE, PEX_TRIED_FOR, PEX_TRIED_MAX,
};
use super::swarm::Link;
use super::turns::INJECTOR;

/// What passed between us and a peer of other peers.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    /// When it may be asked (again).
    ask_at: Option<Instant>,
    /// Addresses that it may yet tell.
    expected: usize,
    /// When it was last told some.
    told_at: Option<Instant>,
    /// It asks for addresses.
    wants: bool,
    /// Addresses to tell it.
    pub(super) answers: Vec<SocketAddr>,
    /// Addresses that it told.
    found: Vec<SocketAddr>,
}

impl Exchange {
    /// PEX_REQ: answered once in a while.
    pub(super) fn on_request(&mut self, now: Instant) {
        // It may count its minute from a little earlier.
        let soon = self.told_at.is_some_and(|at| now < at + PEX_EVERY / 2);
        self.wants |= !soon;
    }

    /// PEX_RES: what was not asked for is ignored.
    pub(super) fn on_response(&mut self, address: SocketAddr) {
        if self.expected > 0 {
            self.expected -= 1;
            // One address has one name.
            self.found.push(SocketAddr::new(address.ip().to_canonical(), address.port()));
        }
    }

    /// Whether something is to be done about what was said.
    pub(super) fn has_news(&self) -> bool {
        self.wants || !self.found.is_empty()
    }

    /// PEX_REQ goes out.
    pub(super) fn on_asked(&mut self, now: Instant) {
        (self.ask_at, self.expected) = (Some(now + PEX_EVERY), PEX_ADDRESSES_MAX);
    }
}

impl Channel {
    /// When the peer is to be asked for others by who has so many members.
    pub(super) fn ask_for_peers_at(&self, members: usize) -> Option<Instant> {
        let is_injector = self.place.is_some_and(|place| place.level == INJECTOR);
        self.exchange.ask_at.filter(|_| members < PEX_MEMBERS_ENOUGH && !is_injector)
    }
}

/// The message that tells an address.
pub(super) fn response(address: SocketAddr) -> Message<'static> {
    match address {
        SocketAddr::V4(address) => Message::PexResV4(address),
        SocketAddr::V6(address) => Message::PexResV6(address),
    }
}

impl Engine {
    /// A channel is open: its peer may be asked for others, soon.
    pub(super) fn begin_exchange(&mut self, now: Instant, index: ChannelIndex) {
        let Some(channel) = self.channels.get_mut(index) else { return };
        let Some(swarm) = self.swarms.get(&channel.swarm) else { return };
        let allowed = self.config.exchange.takes(channel.near);
        if allowed && channel.understands(MessageType::PexReq) && !swarm.turns.is_injector() {
            channel.exchange.ask_at = Some(now + PEX_ASK_AFTER);
        }
    }

    /// A peer asked for others, or told some.
    pub(super) fn exchange(&mut self, now: Instant, index: ChannelIndex) {
        let Some(channel) = self.channels.get_mut(index) else { return };
        let (key, near, asker) = (channel.swarm, channel.near, channel.address);
        let level = channel.place.map(|place| place.level);
        let wants = std::mem::take(&mut channel.exchange.wants);
        let found = std::mem::take(&mut channel.exchange.found);
        for address in found {
            self.on_found(now, key, address, near);
        }
        let Some(swarm) = self.swarms.get(&key) else { return };
        if !wants || swarm.turns.is_injector() || !self.config.exchange.takes(near) {
            return;
        }
        // RFC 7574 3.10.1: peers MUST have been exchanged messages with in the last 60 seconds. RFC 7574
        // 8.13: private addresses MUST NOT be told to a peer that is not on such a one.
        let known = swarm.members.iter().filter_map(|member| self.channels.get(*member));
        let lively = known.filter(|peer| {
            peer.near == near
                && peer.place.map(|place| place.level) == level
                && peer.address != asker
                && peer.served
                && peer.traffic.heard_at + PEX_HEARD_WITHIN >= now
                && !peer.source.is_silent()
        });
        let mut answers: Vec<SocketAddr> = lively.map(|peer| peer.address).collect();
        answers.sort_unstable();
        answers.dedup();
        // Others for everybody that asks, so that they come to know others than each other.
        let begin = if answers.is_empty() { 0 } else { index.0 as usize % answers.len() };
        answers.rotate_left(begin);
        answers.truncate(PEX_ADDRESSES_MAX);
        if let Some(channel) = self.channels.get_mut(index) {
            channel.exchange.told_at = Some(now);
            channel.exchange.answers = answers;
            self.mark_control(index);
        }
    }

    /// A peer that is near, or not, says that another one is at this address.
    fn on_found(&mut self, now: Instant, key: SwarmKey, address: SocketAddr, teller_is_near: bool) {
        let near = self.config.networks.hold(address.ip());
        // Whoever is far names nobody here, and nobody names what only this machine has.
        let usable = is_usable(address) && (teller_is_near || !near);
        let Some(swarm) = self.swarms.get_mut(&key) else { return };
        let is_member = |index: &ChannelIndex| {
            self.channels.get(*index).is_some_and(|channel| channel.address == address)
        };
        let known = swarm.links.contains_key(&address)
            || swarm.own.contains(&address)
            || swarm.members.iter().any(is_member);
        let found = swarm.links.values().filter(|link| link.found).count();
        let wanted = usable && self.config.exchange.takes(near) && !known && found < PEX_FOUND_MAX;
        if wanted && swarm.hearsay.may_probe(now, address) {
            swarm.links.insert(address, Link { found: true, ..Link::default() });
            self.queues.events.push_back(Event::Found { swarm: key, address });
            self.dial(now, key, address);
        }
    }
}

/// Whether a peer can be at such an address at all.
fn is_usable(address: SocketAddr) -> bool {
    let ip = address.ip();
    let is_special = ip.is_unspecified() || ip.is_multicast() || ip.is_loopback();
    let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    address.port() != 0 && !is_special && !is_broadcast
}

/// What was dialled on hearsay.
#[derive(Debug, Default)]
pub(super) struct Hearsay {
    /// Addresses that were tried, and when.
    tried: BTreeMap<SocketAddr, Instant>,
    /// How many were in the current minute, and when it began.
    probes: Option<(u32, Instant)>,
}

impl Hearsay {
    /// Whether the address may be dialled now, which counts.
    fn may_probe(&mut self, now: Instant, address: SocketAddr) -> bool {
        self.tried.retain(|_, at| now < *at + PEX_TRIED_FOR);
        let full = self.tried.len() >= PEX_TRIED_MAX;
        if full || self.tried.contains_key(&address) {
            return false;
        }
        let probes = self.probes.get_or_insert((0, now));
        if count_in_minute(probes, now) > PEX_PROBES_PER_MINUTE {
            return false;
        }
        self.tried.insert(address, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_peer_is_where_only_this_machine_or_everybody_is() {
        for (address, usable) in [
            ("10.0.0.5:7574", true),
            ("[fd00::1]:7574", true),
            ("10.0.0.5:0", false),
            ("127.0.0.1:7574", false),
            ("224.0.0.1:7574", false),
            ("255.255.255.255:7574", false),
            ("0.0.0.0:7574", false),
            ("[::1]:7574", false),
            ("[ff02::1]:7574", false),
        ] {
            assert_eq!(is_usable(address.parse().expect("an address")), usable, "{address}");
        }
    }
}
