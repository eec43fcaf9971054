//! A channel: the link to one peer in one swarm (RFC 7574 §3.11), and the table of all of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::ppspp::codec::{ChannelId, MessageSet, MessageType, Seat};

use super::acks::Acks;
use super::announce::Told;
use super::event::{Class, SwarmKey};
use super::limits::{
    CIRCLES_PER_MINUTE, DEAD_AFTER, DEAD_SENT_MIN, HANDSHAKE_RETRY, HANDSHAKE_RETRY_MAX,
    KEEP_ALIVE, SIGNATURE_CHECKS_PER_MINUTE, SILENCE_BACKGROUND,
};
use super::meter::Meter;
use super::pex::Exchange;
use super::rtt::Rtt;
use super::serve::Serve;
use super::source::Source;
use super::turns::Place;

/// A place in the table of channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ChannelIndex(pub(super) u32);

/// How far the handshake is (RFC 7574 §3.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Datagram 1 was sent.
    Opening,
    /// Datagram 2 came: the peer's address is proved, ours perhaps not yet (datagram 3 may be
    /// lost), so it is repeated until something comes back.
    Unconfirmed,
    /// Both ways.
    Open,
}

/// The link to one peer in one swarm.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) swarm: SwarmKey,
    pub(super) address: SocketAddr,
    /// What the peer writes in front of its datagrams.
    pub(super) local: ChannelId,
    /// What we write in front of ours.
    pub(super) remote: ChannelId,
    pub(super) state: State,
    pub(super) outbound: bool,
    /// Its address is of a private network or of our own.
    pub(super) near: bool,
    /// Whether it is told what is held here, and gets it.
    pub(super) served: bool,
    /// Messages that the peer understands.
    pub(super) messages: MessageSet,
    /// Where it says that it stands, and how often it has said something else.
    pub(super) place: Option<Place>,
    pub(super) places: u32,
    /// Who takes turns, as it says.
    pub(super) circle: Vec<Seat>,
    /// We were told to dial it, or have found it ourselves.
    pub(super) dialled: bool,
    pub(super) rtt: Rtt,
    pub(super) source: Source,
    pub(super) serve: Serve,
    pub(super) told: Told,
    pub(super) acks: Acks,
    pub(super) exchange: Exchange,
    pub(super) traffic: Traffic,
    pub(super) flags: Flags,
    pub(super) armed: Option<Instant>,
    /// Its timer does not fire again before this: whatever is due, it cannot keep a core busy.
    pub(super) rest_until: Instant,
}

/// What went over a channel, and when.
#[derive(Debug)]
pub(super) struct Traffic {
    pub(super) since: Instant,
    pub(super) heard_at: Instant,
    pub(super) sent_at: Instant,
    /// Datagrams sent since something was heard.
    pub(super) unheard: u32,
    pub(super) received: Meter,
    pub(super) sent: Meter,
    /// Payload that was verified.
    pub(super) verified_bytes: u64,
    /// Malformed datagrams.
    pub(super) bad: u32,
    /// Signatures checked in the current minute, and when it began.
    pub(super) checks: (u32, Instant),
    /// CIRCLE messages looked at in the current minute, and when it began.
    pub(super) circles: (u32, Instant),
    /// Handshake datagrams sent, and when the last one was.
    pub(super) greetings: (u32, Instant),
}

/// Lists of the engine that the channel is on.
#[derive(Debug, Default)]
pub(super) struct Flags {
    /// Control messages are to be written.
    pub(super) control: bool,
    /// Waited data is to be sent.
    pub(super) urgent: bool,
    /// Background data is to be sent.
    pub(super) serving: bool,
    /// Its timer must be looked at.
    pub(super) touched: bool,
    /// A datagram must go out even if it says nothing.
    pub(super) keep_alive: bool,
    /// Waits for room to read.
    pub(super) starved: bool,
    /// Has data to send, and waits for the limit.
    pub(super) limited: bool,
}

impl Channel {
    pub(super) fn new(
        now: Instant,
        swarm: SwarmKey,
        address: SocketAddr,
        local: ChannelId,
        outbound: bool,
    ) -> Self {
        Self {
            swarm,
            address,
            local,
            remote: ChannelId(0),
            state: State::Opening,
            outbound,
            near: false,
            served: false,
            messages: MessageSet::default(),
            place: None,
            places: 0,
            circle: Vec::new(),
            dialled: outbound,
            rtt: Rtt::new(now),
            source: Source::new(now),
            serve: Serve::new(now),
            told: Told::default(),
            acks: Acks::default(),
            exchange: Exchange::default(),
            traffic: Traffic {
                since: now,
                heard_at: now,
                sent_at: now,
                unheard: 0,
                received: Meter::new(now),
                sent: Meter::new(now),
                verified_bytes: 0,
                bad: 0,
                checks: (0, now),
                circles: (0, now),
                greetings: (0, now),
            },
            flags: Flags::default(),
            armed: None,
            rest_until: now,
        }
    }

    /// The level where it stands, seen from level `ours`. Above us is only who we dialled: the word of
    /// others makes nobody wait for them.
    pub(super) fn level(&self, ours: u8) -> Option<u8> {
        let level = self.place?.level;
        Some(if self.dialled { level } else { level.max(ours) })
    }

    /// Whether messages may be sent: the peer's address is proved.
    pub(super) fn is_open(&self) -> bool {
        self.state != State::Opening
    }

    /// Whether the peer understands messages of this type.
    pub(super) fn understands(&self, kind: MessageType) -> bool {
        self.messages.contains(kind)
    }

    /// A round trip of the handshake.
    pub(super) fn on_round_trip(&mut self, now: Instant, sample: Duration) {
        self.rtt.sample(now, sample);
        self.serve.controller.on_round_trip(now, sample);
    }

    /// Counts what goes out.
    pub(super) fn on_sent(&mut self, now: Instant, datagrams: u64, bytes: u64) {
        self.traffic.sent_at = now;
        self.traffic.unheard = self.traffic.unheard.saturating_add(datagrams as u32);
        self.traffic.sent.add(now, bytes);
    }

    /// Whether the peer is silent for too long to be waited for. Readers go elsewhere at once; the
    /// background gives a busy machine time, for all of its level would turn to the injector.
    pub(super) fn is_out_of_reach(&self, now: Instant, class: Class) -> bool {
        let patience = match class {
            Class::Waited => Duration::ZERO,
            Class::Background => SILENCE_BACKGROUND,
        };
        self.source.is_silent() && now >= self.traffic.heard_at + patience
    }

    /// Whether it is time to acknowledge something.
    pub(super) fn acks_due(&self, now: Instant) -> bool {
        self.acks.due_at(self.source.outstanding).is_some_and(|at| at <= now)
    }

    /// Counts what came in.
    pub(super) fn on_heard(&mut self, now: Instant, bytes: usize) {
        self.traffic.heard_at = now;
        self.traffic.unheard = 0;
        self.traffic.received.add(now, bytes as u64);
    }

    /// When datagram 1 or 3 is to be repeated.
    pub(super) fn greet_at(&self) -> Option<Instant> {
        let (count, at) = self.traffic.greetings;
        let wait =
            (HANDSHAKE_RETRY * (1 << count.saturating_sub(1).min(8))).min(HANDSHAKE_RETRY_MAX);
        (self.state != State::Open).then(|| at + wait)
    }

    /// When a keep-alive is due.
    pub(super) fn keep_alive_at(&self) -> Instant {
        self.traffic.sent_at + KEEP_ALIVE
    }

    /// When the peer is dead; RFC 7574 3.12: 3 minutes, and at least 3 datagrams sent meanwhile.
    pub(super) fn dead_at(&self) -> Option<Instant> {
        (self.traffic.unheard >= DEAD_SENT_MIN).then(|| self.traffic.heard_at + DEAD_AFTER)
    }

    /// How long nothing was heard.
    pub(super) fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.traffic.heard_at)
    }

    /// One more signature check for what was not asked for; `false` if the minute's are used up.
    pub(super) fn may_check(&mut self, now: Instant) -> bool {
        count_in_minute(&mut self.traffic.checks, now) <= SIGNATURE_CHECKS_PER_MINUTE
    }

    /// One more CIRCLE; `false` if the minute's are used up.
    pub(super) fn may_tell_circle(&mut self, now: Instant) -> bool {
        count_in_minute(&mut self.traffic.circles, now) <= CIRCLES_PER_MINUTE
    }

    /// The signature was the origin's and news: as many of these as it makes are welcome.
    pub(super) fn on_news_checked(&mut self) {
        let (count, _) = &mut self.traffic.checks;
        *count = count.saturating_sub(1);
    }
}

/// How often something has happened in the current minute, this time included.
pub(super) fn count_in_minute((count, since): &mut (u32, Instant), now: Instant) -> u32 {
    if now.saturating_duration_since(*since) > Duration::from_secs(60) {
        (*count, *since) = (0, now);
    }
    *count = count.saturating_add(1);
    *count
}

/// The table of channels.
#[derive(Debug, Default)]
pub(super) struct Channels {
    slots: Vec<Option<Box<Channel>>>,
    free: Vec<u32>,
    /// The channels that others opened: one for each address and swarm.
    inbound: BTreeMap<(SwarmKey, SocketAddr), ChannelIndex>,
}

impl Channels {
    pub(super) fn get(&self, index: ChannelIndex) -> Option<&Channel> {
        self.slots.get(index.0 as usize)?.as_deref()
    }

    pub(super) fn get_mut(&mut self, index: ChannelIndex) -> Option<&mut Channel> {
        self.slots.get_mut(index.0 as usize)?.as_deref_mut()
    }

    pub(super) fn insert(&mut self, channel: Channel) -> ChannelIndex {
        let inbound = (!channel.outbound).then_some((channel.swarm, channel.address));
        let slot = self.free.pop().map_or(self.slots.len(), |free| free as usize);
        if slot == self.slots.len() {
            self.slots.push(None);
        }
        self.slots[slot] = Some(Box::new(channel));
        let index = ChannelIndex(slot as u32);
        if let Some(key) = inbound {
            self.inbound.insert(key, index);
        }
        index
    }

    pub(super) fn remove(&mut self, index: ChannelIndex) -> Option<Channel> {
        let channel = self.slots.get_mut(index.0 as usize)?.take()?;
        self.free.push(index.0);
        let key = (channel.swarm, channel.address);
        if self.inbound.get(&key) == Some(&index) {
            self.inbound.remove(&key);
        }
        Some(*channel)
    }

    /// The channel that this address opened.
    pub(super) fn inbound(&self, swarm: SwarmKey, address: SocketAddr) -> Option<&Channel> {
        self.get(*self.inbound.get(&(swarm, address))?)
    }

    /// Channels that others opened.
    pub(super) fn inbound_count(&self) -> usize {
        self.inbound.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (ChannelIndex, &Channel)> {
        let channels = self.slots.iter().enumerate();
        channels.filter_map(|(i, slot)| Some((ChannelIndex(i as u32), slot.as_deref()?)))
    }

    #[cfg(test)]
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Channel> {
        self.slots.iter_mut().filter_map(|slot| slot.as_deref_mut())
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}
