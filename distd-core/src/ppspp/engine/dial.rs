//! How channels come to be and end (RFC 7574 §3.1.1, §3.12, §12.1).
//!
//! ```text
//! initiator                          responder
//!     | -- 1: dst 0, our id, swarm --->  |   half-open: one entry of a fixed table
//!     | <-- 2: dst our id, its id, HAVE  |   not longer than 1
//!     | -- 3: dst its id, WANT ... --->  |   the initiator's address is proved: a channel
//!     | <-- 4: anything ---------------  |
//! ```

use std::net::SocketAddr;
use std::time::Instant;

use rand::Rng;

use crate::ppspp::codec::{
    ChannelId, Handshake, Message, MessageSet, MessageType, WireProfile, decode,
};

use super::channel::{Channel, ChannelIndex, State};
use super::event::{DownReason, Event, SwarmKey};
use super::half_open::HalfOpen;
use super::limits::{
    BAN, BAN_ALONE, BANS_MAX, CHANNELS_INBOUND_MAX, GREETING, HANDSHAKE_RETRY, HANDSHAKE_RETRY_MAX,
    LINKS_MAX, OWN_ADDRESSES_MAX, REFUSED_RETRY,
};
use super::swarm::Link;
use super::timers::Timer;
use super::{Engine, Transmit, handshake};

/// An address that lied.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ban {
    /// Where it lied last.
    pub(super) swarm: SwarmKey,
    pub(super) until: Instant,
    /// Lies since the last one was long enough ago.
    lies: u32,
}

impl Engine {
    /// Wants a peer: it is dialled, and dialled again whenever its channel is lost.
    pub fn connect(&mut self, now: Instant, key: SwarmKey, address: SocketAddr) {
        let Some(swarm) = self.swarms.get_mut(&key) else { return };
        if let Some(link) = swarm.links.get_mut(&address).filter(|link| link.found) {
            // It is no hearsay any more: what it says of its place counts.
            link.found = false;
            if let Some(channel) = link.channel.and_then(|index| self.channels.get_mut(index)) {
                channel.dialled = true;
            }
            swarm.turns.on_change();
            self.mark_dirty(key);
            return;
        }
        let known = swarm.links.contains_key(&address) || swarm.own.contains(&address);
        if known || swarm.links.len() >= LINKS_MAX {
            return;
        }
        let greeting = Some(now + GREETING);
        swarm.links.insert(address, Link { greeting, ..Link::default() });
        self.dial(now, key, address);
    }

    /// No longer wants a peer. An open channel stays.
    pub fn disconnect(&mut self, key: SwarmKey, address: SocketAddr) {
        let Some(swarm) = self.swarms.get_mut(&key) else { return };
        if let Some(mut link) = swarm.links.remove(&address) {
            self.timers.disarm(Timer::Link(key, address), &mut link.armed);
        }
    }

    /// Opens a new channel to a wanted peer.
    pub(super) fn dial(&mut self, now: Instant, key: SwarmKey, address: SocketAddr) {
        if let Some(ban) = self.bans.get(&address).filter(|ban| ban.until > now) {
            let until = ban.until;
            return self.dial_at(key, address, until);
        }
        let local = self.new_channel_id();
        let mut channel = self.new_channel(now, key, address, local, true);
        let Some(swarm) = self.swarms.get_mut(&key) else { return };
        let Some(link) = swarm.links.get_mut(&address) else { return };
        channel.traffic.greetings = (0, now);
        let index = self.channels.insert(channel);
        self.by_channel_id.insert(local, index);
        link.channel = Some(index);
        if let Some(channel) = self.channels.get_mut(index) {
            channel.dialled = !link.found;
        }
        self.greet(now, index);
    }

    fn dial_at(&mut self, key: SwarmKey, address: SocketAddr, at: Instant) {
        let Some(swarm) = self.swarms.get_mut(&key) else { return };
        if let Some(link) = swarm.links.get_mut(&address) {
            self.timers.arm(Timer::Link(key, address), at, &mut link.armed);
        }
    }

    /// Sends datagram 1, or datagram 3 again.
    pub(super) fn greet(&mut self, now: Instant, index: ChannelIndex) {
        let Some(channel) = self.channels.get_mut(index) else { return };
        let (count, at) = &mut channel.traffic.greetings;
        (*count, *at) = (*count + 1, now);
        match channel.state {
            State::Opening => {
                let Some(swarm) = self.swarms.get(&channel.swarm) else { return };
                let (to, payload) =
                    (channel.address, handshake::datagram_1(channel.local, &swarm.id));
                self.send(now, index, Transmit { to, payload, segment_bytes: None });
            }
            State::Unconfirmed => {
                channel.flags.keep_alive = true;
                self.mark_control(index);
            }
            State::Open => {}
        }
        self.touch(index);
    }

    /// A datagram for channel 0: datagram 1, answered or met with silence.
    pub(super) fn on_datagram_1(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) {
        if self.answer(now, from, datagram).is_none() {
            // RFC 7574 3.1.1(2): no reply at all if any check of the swarm's metadata fails.
            self.counters.refused_handshakes += 1;
        }
    }

    fn answer(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) -> Option<()> {
        let first = decode(datagram, &WireProfile::LIVE).ok()?.next()?;
        let Message::Handshake(Handshake { source: remote, options }) = first else {
            return None;
        };
        if remote == ChannelId(0) || self.bans.get(&from).is_some_and(|ban| ban.until > now) {
            return None;
        }
        let id = options.swarm_id?.try_into().ok().map(crate::keys::SwarmId)?;
        let key = *self.by_swarm_id.get(&id)?;
        let messages = handshake::check(&options, &id, true)?;
        if !self.config.serves(from) {
            // Whoever has the swarm's id is told at once that there is nothing here for it.
            let payload = handshake::closing(remote);
            assert!(
                payload.len() <= datagram.len(),
                "an unproven address gets no more than it sent"
            );
            self.queues.transmits.push_back(Transmit { to: from, payload, segment_bytes: None });
            return None;
        }
        let open = self.channels.inbound(key, from);
        if open.is_some_and(|channel| channel.remote == remote) {
            // Datagram 1 came late and twice: the channel exists.
            return Some(());
        }
        if open.is_none() && self.channels.inbound_count() >= CHANNELS_INBOUND_MAX {
            return None;
        }
        let known = self.half_open.find(now, from, key).filter(|entry| entry.remote == remote);
        let local = if let Some(entry) = known {
            entry.local
        } else {
            let local = self.new_channel_id();
            let entry = HalfOpen { address: from, swarm: key, local, remote, messages, since: now };
            self.half_open.insert(&mut self.rng, entry).then_some(local)?
        };
        let swarm = self.swarms.get_mut(&key)?;
        let held = swarm.serve.then_some(&swarm.held);
        let says = swarm.serve && messages.contains(MessageType::Place);
        let place = says.then_some(swarm.turns.place);
        let payload = handshake::datagram_2(local, remote, place, held, datagram.len())?;
        assert!(payload.len() <= datagram.len(), "an unproven address gets no more than it sent");
        swarm.counters.sent_datagrams += 1;
        swarm.counters.sent_bytes += payload.len() as u64;
        self.queues.transmits.push_back(Transmit { to: from, payload, segment_bytes: None });
        Some(())
    }

    /// A half-open handshake is proved: its address echoed our channel id in datagram 3.
    pub(super) fn promote(
        &mut self,
        now: Instant,
        local: ChannelId,
        from: SocketAddr,
    ) -> Option<ChannelIndex> {
        let entry = self.half_open.take(now, local, from)?;
        let mut channel = self.new_channel(now, entry.swarm, from, local, false);
        channel.on_round_trip(now, now.saturating_duration_since(entry.since));
        let index = self.channels.insert(channel);
        self.by_channel_id.insert(local, index);
        self.open(now, index, entry.remote, entry.messages, State::Open);
        Some(index)
    }

    /// Datagram 2 came, or an unconfirmed peer restarted and answered again: checks its options.
    pub(super) fn on_datagram_2(
        &mut self,
        now: Instant,
        index: ChannelIndex,
        handshake: &Handshake<'_>,
    ) -> bool {
        let Some(channel) = self.channels.get_mut(index) else { return false };
        let Some(swarm) = self.swarms.get(&channel.swarm) else { return false };
        let options = &handshake.options;
        let Some(messages) = handshake::check(options, &swarm.id, false) else { return false };
        let (count, at) = channel.traffic.greetings;
        if count == 1 {
            channel.on_round_trip(now, now.saturating_duration_since(at));
        }
        channel.traffic.greetings = (1, now);
        self.open(now, index, handshake.source, messages, State::Unconfirmed);
        true
    }

    /// The channel is open: its address is proved. It takes the place of an older one that was
    /// opened from the same side.
    fn open(
        &mut self,
        now: Instant,
        index: ChannelIndex,
        remote: ChannelId,
        messages: MessageSet,
        state: State,
    ) {
        let Some(channel) = self.channels.get_mut(index) else { return };
        (channel.remote, channel.messages, channel.state) = (remote, messages, state);
        // Datagram 3, and datagram 4, are sent even if there is nothing to say.
        channel.flags.keep_alive = true;
        let (key, address, outbound) = (channel.swarm, channel.address, channel.outbound);
        let Some(swarm) = self.swarms.get_mut(&key) else { return };
        let channels = &self.channels;
        let same = |other: &ChannelIndex| {
            channels.get(*other).is_some_and(|c| c.address == address && c.outbound == outbound)
        };
        let older: Vec<ChannelIndex> = swarm.members.iter().copied().filter(same).collect();
        swarm.members.push(index);
        swarm.turns.on_change();
        if let Some(link) = swarm.links.get_mut(&address).filter(|_| outbound) {
            link.failures = 0;
        }
        swarm.on_news();
        self.begin_exchange(now, index);
        self.queues.events.push_back(Event::PeerUp { swarm: key, address });
        for older in older {
            self.close(now, older, DownReason::Superseded);
        }
        self.mark_dirty(key);
        self.mark_control(index);
        self.touch(index);
    }

    /// Ends a channel; its runs go elsewhere, and a wanted peer is dialled again later.
    pub(super) fn close(&mut self, now: Instant, index: ChannelIndex, reason: DownReason) {
        let Some(mut channel) = self.channels.remove(index) else { return };
        self.by_channel_id.remove(&channel.local);
        self.timers.disarm(Timer::Channel(index), &mut channel.armed);
        self.reads.retain(|_, reader| *reader != index);
        self.queues.disk.retain(|request| self.reads.contains_key(&request.id));
        self.read_bytes -= channel.serve.read_bytes();
        self.queues.forget(index);
        let (key, address) = (channel.swarm, channel.address);
        let Some(swarm) = self.swarms.get_mut(&key) else { return };
        swarm.members.retain(|member| *member != index);
        for first in channel.source.flights() {
            swarm.ledger.unassign(first, index);
        }
        swarm.ledger.forget_channel(index);
        swarm.turns.forget_channel(now, index);
        swarm.placed.retain(|other| *other != index);
        swarm.ledger.withdrawn.retain(|(of, _)| *of != index);
        let lied = matches!(reason, DownReason::Lied { .. } | DownReason::ForgedMunro);
        let alone = swarm.members.is_empty();
        if channel.is_open() {
            let unacknowledged = channel.serve.sent.in_flight() > 0;
            let event = Event::PeerDown { swarm: key, address, reason, unacknowledged };
            self.queues.events.push_back(event);
            // RFC 7574 3.1.1(8): SHOULD be sent on leaving. To one that closed: not answered.
            if reason != DownReason::Closed {
                let payload = handshake::closing(channel.remote);
                swarm.counters.sent_datagrams += 1;
                swarm.counters.sent_bytes += payload.len() as u64;
                self.queues.transmits.push_back(Transmit {
                    to: address,
                    payload,
                    segment_bytes: None,
                });
            }
        }
        let (mut lost, mut redial) = (Vec::new(), Vec::new());
        for (linked, link) in &mut swarm.links {
            if link.channel == Some(index) {
                (link.channel, link.down) = (None, Some(reason));
                link.failures = link.failures.saturating_add(1);
                let wait = HANDSHAKE_RETRY * (1 << link.failures.saturating_sub(1).min(8));
                let wait = match reason {
                    DownReason::Refused => REFUSED_RETRY,
                    _ => wait.min(HANDSHAKE_RETRY_MAX),
                };
                lost.push((*linked, now + wait));
            }
        }
        for (linked, at) in lost {
            let link = swarm.links.get(&linked);
            if link.is_some_and(|link| link.found) {
                swarm.links.remove(&linked);
            } else {
                redial.push((linked, at));
            }
        }
        for (linked, at) in redial {
            self.dial_at(key, linked, at);
        }
        if lied {
            self.ban(now, key, address, alone);
        }
        self.mark_dirty(key);
    }

    /// A peer has said where it stands: we do not talk to ourselves, nor twice to one peer, and a
    /// relay takes its own place by it.
    pub(super) fn on_placed(&mut self, now: Instant, index: ChannelIndex) {
        let Some(channel) = self.channels.get(index) else { return };
        let (key, address, outbound) = (channel.swarm, channel.address, channel.outbound);
        let dialled = channel.dialled;
        let (Some(place), Some(swarm)) = (channel.place, self.swarms.get_mut(&key)) else { return };
        if place.id == swarm.turns.place.id {
            if outbound {
                if swarm.own.len() < OWN_ADDRESSES_MAX {
                    swarm.own.insert(address);
                }
                self.disconnect(key, address);
                self.close(now, index, DownReason::Ourselves);
            }
            return;
        }
        swarm.turns.on_change();
        if outbound && dialled && swarm.turns.place.stand_below(place) {
            for member in swarm.members.clone() {
                self.mark_control(member);
            }
        }
        self.keep_one(now, index, place.id);
        self.mark_dirty(key);
    }

    /// Of two channels to one peer the one is kept that the peer with the larger id has opened: both
    /// sides come to the same conclusion, and who has opened the other closes it.
    fn keep_one(&mut self, now: Instant, index: ChannelIndex, id: u64) {
        let Some(channel) = self.channels.get(index) else { return };
        let (key, address, outbound) = (channel.swarm, channel.address, channel.outbound);
        let Some(swarm) = self.swarms.get(&key) else { return };
        let channels = &self.channels;
        let is_other = |other: &ChannelIndex| {
            let other_channel = channels.get(*other);
            // An id is easily copied: whoever copies it at another address drives nobody out.
            *other != index
                && other_channel.is_some_and(|other| {
                    other.address == address && other.place.is_some_and(|place| place.id == id)
                })
        };
        let Some(other) = swarm.members.iter().copied().find(is_other) else { return };
        let other_outbound = channels.get(other).is_some_and(|channel| channel.outbound);
        let (closed, kept) = match (outbound, other_outbound) {
            (true, false) if swarm.turns.place.id < id => (index, other),
            (false, true) if swarm.turns.place.id < id => (other, index),
            _ => return,
        };
        self.close(now, closed, DownReason::Superseded);
        let Some(swarm) = self.swarms.get_mut(&key) else { return };
        if let Some(link) = swarm.links.get_mut(&address) {
            self.timers.disarm(Timer::Link(key, address), &mut link.armed);
            (link.channel, link.failures) = (Some(kept), 0);
        }
    }

    /// Talks to an address that lied no more for a while. A bit that flips on the way looks like a
    /// lie: the only source of a swarm is tried again soon, and less soon each time.
    fn ban(&mut self, now: Instant, swarm: SwarmKey, address: SocketAddr, alone: bool) {
        if self.bans.len() >= BANS_MAX && !self.bans.contains_key(&address) {
            let earliest = self.bans.iter().min_by_key(|(_, ban)| ban.until);
            if let Some(earliest) = earliest.map(|(address, _)| *address) {
                self.bans.remove(&earliest);
            }
        }
        let ban = self.bans.entry(address).or_insert(Ban { swarm, until: now, lies: 0 });
        if now.saturating_duration_since(ban.until) > BAN {
            ban.lies = 0;
        }
        let length = if alone { (BAN_ALONE * (1 << ban.lies.min(16))).min(BAN) } else { BAN };
        ban.lies = ban.lies.saturating_add(1);
        (ban.swarm, ban.until) = (swarm, now + length);
    }

    fn new_channel(
        &self,
        now: Instant,
        swarm: SwarmKey,
        address: SocketAddr,
        local: ChannelId,
        outbound: bool,
    ) -> Channel {
        let serve = self.swarms.get(&swarm).is_some_and(|swarm| swarm.serve);
        let mut channel = Channel::new(now, swarm, address, local, outbound);
        channel.near = self.config.networks.hold(address.ip());
        channel.served = serve && self.config.serves(address);
        channel
    }

    /// RFC 7574 3.11: random (RFC 4960 5.1.3: not zero, from a CSPRNG), and not in use here.
    fn new_channel_id(&mut self) -> ChannelId {
        loop {
            let id = ChannelId(self.rng.random());
            if id != ChannelId(0)
                && !self.by_channel_id.contains_key(&id)
                && !self.half_open.holds(id)
            {
                return id;
            }
        }
    }
}

impl super::Queues {
    /// A channel is gone: its index may become another peer's.
    fn forget(&mut self, index: ChannelIndex) {
        for queue in [&mut self.control, &mut self.serving, &mut self.urgent, &mut self.starved] {
            queue.retain(|other| *other != index);
        }
        self.touched.retain(|other| *other != index);
    }
}
