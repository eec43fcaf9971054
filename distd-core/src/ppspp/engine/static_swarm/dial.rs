//! How channels of a static swarm come to be and end (RFC 7574 §3.1.1, §3.12, §12.1).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::Rng;

use crate::ppspp::codec::{ChannelId, Handshake, Message, MessageSet, decode};
use crate::tree::merkle::{BranchIndex, ContentShape};
use crate::unit::ChunkRange;

use super::super::channel::State;
use super::super::event::SwarmKey;
use super::super::half_open::HalfOpen;
use super::super::limits::{BAN, BAN_ALONE, BANS_MAX, HANDSHAKE_RETRY, HANDSHAKE_RETRY_MAX};
use super::super::{DownReason, Transmit};
use super::channel::Channel;
use super::limits::{CHANNELS_MAX, LINKS_MAX, PLAIN_AFTER};
use super::{Mismatch, StaticEvent, StaticPeer, StaticSwarm, handshake};

/// The only swarm of this engine, for the table of half-open handshakes.
const KEY: SwarmKey = SwarmKey(0);

/// An address to dial.
#[derive(Debug, Default)]
pub(super) struct Link {
    channel: Option<ChannelId>,
    /// When it is dialled again.
    at: Option<Instant>,
    failures: u32,
    pub(super) down: Option<DownReason>,
    pub(super) mismatch: Option<Mismatch>,
    /// It has answered without options 8 and 9.
    is_old: bool,
    /// What its channels before moved.
    pub(super) verified_bytes: u64,
    pub(super) data_sent_bytes: u64,
}

impl Link {
    pub(super) fn peer(&self, address: SocketAddr) -> StaticPeer {
        StaticPeer {
            address,
            is_source: true,
            is_open: false,
            mismatch: self.mismatch,
            down: self.down,
            ambiguous: None,
            unproved_chunks: 0,
            has_chunks: 0,
            is_choking: false,
            verified_bytes: self.verified_bytes,
            data_sent_bytes: self.data_sent_bytes,
            rtt: Duration::ZERO,
        }
    }
}

/// An address that lied.
#[derive(Clone, Copy, Debug)]
pub(super) struct Liar {
    until: Instant,
    lies: u32,
}

impl StaticSwarm {
    /// Wants a peer: it is dialled, and dialled again whenever its channel is lost.
    pub fn connect(&mut self, now: Instant, address: SocketAddr) {
        if self.links.len() < LINKS_MAX && !self.links.contains_key(&address) {
            self.links.insert(address, Link::default());
            self.dial(now, address);
        }
    }

    /// Leaves the swarm; what is polled afterwards says goodbye (RFC 7574 §3.1.1).
    pub fn close_all(&mut self, now: Instant) {
        self.links.clear();
        let channels: Vec<ChannelId> = self.channels.keys().copied().collect();
        for local in channels {
            self.close(now, local, DownReason::Left);
        }
    }

    pub(super) fn dial(&mut self, now: Instant, address: SocketAddr) {
        let banned = self.liars.get(&address).map(|liar| liar.until).filter(|until| *until > now);
        let local = self.new_channel_id();
        let cursor = self.cursor();
        let Some(link) = self.links.get_mut(&address) else { return };
        if banned.is_some() {
            link.at = banned;
            return;
        }
        (link.at, link.channel) = (None, Some(local));
        self.channels.insert(local, Channel::new(now, address, true, cursor));
        self.greet(now, local);
    }

    /// Where a new source is asked first: at another place than the others, so that members of the swarm
    /// have different chunks to give each other.
    fn cursor(&mut self) -> u64 {
        let chunks = self.content.shape().map_or(1 << 20, ContentShape::chunks);
        BranchIndex::of(self.rng.random_range(0..chunks)).first_chunk()
    }

    /// Dials what is due.
    pub(super) fn dial_due(&mut self, now: Instant) {
        let due = |link: &Link| link.channel.is_none() && link.at.is_some_and(|at| at <= now);
        let due: Vec<SocketAddr> =
            self.links.iter().filter(|(_, link)| due(link)).map(|(address, _)| *address).collect();
        for address in due {
            self.dial(now, address);
        }
    }

    /// When the next address is dialled.
    pub(super) fn dial_at(&self) -> Option<Instant> {
        self.links.values().filter(|link| link.channel.is_none()).filter_map(|link| link.at).min()
    }

    /// Sends datagram 1, or has datagram 3 sent again.
    pub(super) fn greet(&mut self, now: Instant, local: ChannelId) {
        let Some(channel) = self.channels.get_mut(&local) else { return };
        let (count, first, at) = &mut channel.contact.greetings;
        (*count, *at) = (*count + 1, now);
        if channel.state == State::Opening {
            // Whoever knows no options 8 and 9 cannot read what has them, and is silent.
            let is_old = self.links.get(&channel.address).is_some_and(|link| link.is_old);
            let plain = now.saturating_duration_since(*first) >= PLAIN_AFTER;
            let modern =
                if is_old { count.is_multiple_of(2) } else { !plain || !count.is_multiple_of(2) };
            let payload = handshake::datagram_1(local, &self.content.id, modern);
            let to = channel.address;
            channel.contact.sent_at = now;
            self.send(Transmit { to, payload, segment_bytes: None });
        } else {
            channel.contact.keep_alive = true;
        }
    }

    /// A datagram for channel 0: datagram 1, answered or met with silence.
    pub(super) fn on_datagram_1(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) {
        if self.answer(now, from, datagram).is_none() {
            // RFC 7574 3.1.1(2): no reply at all if any check of the swarm's metadata fails.
            self.counters.refused_handshakes += 1;
        }
    }

    fn answer(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) -> Option<()> {
        let Message::Handshake(Handshake { source: remote, options }) =
            decode(datagram, &self.profile).ok()?.next()?
        else {
            return None;
        };
        let banned = self.liars.get(&from).is_some_and(|liar| liar.until > now);
        if remote == ChannelId(0) || banned {
            return None;
        }
        let messages = handshake::check(&options, &self.content.id, true).ok()?;
        let open = self.channels.values().find(|c| !c.outbound && c.address == from);
        if open.is_some_and(|channel| channel.remote == remote) {
            // Datagram 1 came late and twice: the channel exists.
            return Some(());
        }
        if open.is_none() && self.channels.len() >= CHANNELS_MAX {
            return None;
        }
        let known = self.half_open.find(now, from, KEY).filter(|entry| entry.remote == remote);
        let local = if let Some(entry) = known {
            entry.local
        } else {
            let local = self.new_channel_id();
            let entry = HalfOpen { address: from, swarm: KEY, local, remote, messages, since: now };
            self.half_open.insert(&mut self.rng, entry).then_some(local)?
        };
        let held = self.content.held.iter().filter_map(|(start, end)| ChunkRange::new(start, end));
        let modern = options.chunk_bytes.is_some();
        let payload =
            handshake::datagram_2((local, remote), &self.content.id, modern, held, datagram.len())?;
        assert!(payload.len() <= datagram.len(), "an unproven address gets no more than it sent");
        self.send(Transmit { to: from, payload, segment_bytes: None });
        Some(())
    }

    /// A half-open handshake is proved: its address echoed our channel id in datagram 3.
    pub(super) fn promote(&mut self, now: Instant, local: ChannelId, from: SocketAddr) -> bool {
        let Some(entry) = self.half_open.take(now, local, from) else { return false };
        // There was room at datagram 1.
        if self.channels.len() >= CHANNELS_MAX {
            return false;
        }
        let cursor = self.cursor();
        let mut channel = Channel::new(now, from, false, cursor);
        channel.on_round_trip(now, now.saturating_duration_since(entry.since));
        self.channels.insert(local, channel);
        self.open(now, local, (entry.remote, entry.messages), State::Open);
        true
    }

    /// Datagram 2 came: checks its options.
    pub(super) fn on_datagram_2(
        &mut self,
        now: Instant,
        local: ChannelId,
        handshake: &Handshake<'_>,
    ) -> bool {
        let Some(channel) = self.channels.get_mut(&local) else { return false };
        let link = self.links.get_mut(&channel.address);
        match handshake::check(&handshake.options, &self.content.id, false) {
            Ok(messages) => {
                let (count, _, at) = channel.contact.greetings;
                if count == 1 {
                    channel.on_round_trip(now, now.saturating_duration_since(at));
                }
                channel.contact.greetings = (1, now, now);
                if let Some(link) = link {
                    (link.mismatch, link.failures) = (None, 0);
                    link.is_old = handshake.options.chunk_bytes.is_none();
                }
                self.open(now, local, (handshake.source, messages), State::Unconfirmed);
                true
            }
            Err(mismatch) => {
                if let Some(link) = link {
                    link.mismatch = Some(mismatch);
                }
                // RFC 7574 3.1.1(4): MAY be told that the communication ceases.
                (channel.remote, channel.state) = (handshake.source, State::Unconfirmed);
                self.close(now, local, DownReason::Refused);
                false
            }
        }
    }

    /// The channel is open. It takes the place of an older one that was opened from the same side.
    fn open(
        &mut self,
        now: Instant,
        local: ChannelId,
        (remote, messages): (ChannelId, MessageSet),
        state: State,
    ) {
        let Some(channel) = self.channels.get_mut(&local) else { return };
        (channel.remote, channel.messages, channel.state) = (remote, messages, state);
        // Datagram 3, and datagram 4, are sent even if there is nothing to say.
        channel.contact.keep_alive = true;
        channel.told.due_at = Some(now);
        let (address, outbound) = (channel.address, channel.outbound);
        self.queues.events.push_back(StaticEvent::PeerUp { address });
        let older = |(other, channel): (&ChannelId, &Channel)| {
            let same = channel.address == address && channel.outbound == outbound;
            (same && *other != local).then_some(*other)
        };
        let older: Vec<ChannelId> = self.channels.iter().filter_map(older).collect();
        for older in older {
            self.close(now, older, DownReason::Superseded);
        }
    }

    /// Ends a channel; its chunks are wanted of others, and a source is dialled again later.
    pub(super) fn close(&mut self, now: Instant, local: ChannelId, reason: DownReason) {
        let Some(mut channel) = self.channels.remove(&local) else { return };
        let address = channel.address;
        for (branch, bits) in channel.source.withdraw() {
            self.give_back(branch, bits);
        }
        if channel.is_open() {
            self.queues.events.push_back(StaticEvent::PeerDown { address, reason });
            // RFC 7574 3.1.1(8): SHOULD be sent on leaving. To one that closed: not answered.
            if reason != DownReason::Closed {
                let payload = handshake::closing(channel.remote, &self.content.id);
                self.send(Transmit { to: address, payload, segment_bytes: None });
            }
        }
        let alone = !self.channels.values().any(Channel::is_open);
        let banned =
            matches!(reason, DownReason::Lied { .. }).then(|| self.ban(now, address, alone));
        if let Some(link) = self.links.get_mut(&address).filter(|link| link.channel == Some(local))
        {
            link.channel = None;
            link.down = Some(reason);
            link.verified_bytes += channel.source.verified_bytes;
            link.data_sent_bytes += channel.serve.data_sent_bytes;
            link.failures = link.failures.saturating_add(1);
            let wait = HANDSHAKE_RETRY * (1 << link.failures.saturating_sub(1).min(8));
            link.at = banned.or(Some(now + wait.min(HANDSHAKE_RETRY_MAX)));
        }
    }

    /// Talks to an address that lied no more for a while: the only source soon again, since a bit that
    /// flips on the way looks like a lie.
    fn ban(&mut self, now: Instant, address: SocketAddr, alone: bool) -> Instant {
        if self.liars.len() >= BANS_MAX && !self.liars.contains_key(&address) {
            let earliest = self.liars.iter().min_by_key(|(_, liar)| liar.until);
            if let Some(earliest) = earliest.map(|(address, _)| *address) {
                self.liars.remove(&earliest);
            }
        }
        let liar = self.liars.entry(address).or_insert(Liar { until: now, lies: 0 });
        let length = if alone { (BAN_ALONE * (1 << liar.lies.min(16))).min(BAN) } else { BAN };
        liar.lies = liar.lies.saturating_add(1);
        liar.until = now + length;
        liar.until
    }

    /// Chunks are asked of one source no longer: they are wanted, unless another one was asked for them.
    pub(super) fn give_back(&mut self, branch: BranchIndex, bits: u64) {
        let elsewhere = self.channels.values().fold(0, |all, c| all | c.source.asked(branch));
        self.content.give_back(branch, bits & !elsewhere);
    }

    /// RFC 7574 3.11: random (RFC 4960 5.1.3: not zero, from a CSPRNG), and not in use here.
    fn new_channel_id(&mut self) -> ChannelId {
        loop {
            let id = ChannelId(self.rng.random());
            if id != ChannelId(0) && !self.channels.contains_key(&id) && !self.half_open.holds(id) {
                return id;
            }
        }
    }
}
