//! The link to one peer of a static swarm (RFC 7574 §3.11).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::ppspp::codec::{ChannelId, MessageSet};
use crate::unit::ChunkRange;

use super::super::acks::Acks;
use super::super::channel::State;
use super::super::interval::IntervalSet;
use super::super::limits::{
    DEAD_AFTER, DEAD_SENT_MIN, HANDSHAKE_RETRY, HANDSHAKE_RETRY_MAX, KEEP_ALIVE,
};
use super::super::rtt::Rtt;
use super::limits::{ANNOUNCE_REPEAT, ANNOUNCE_SPANS_MAX, PLAIN_AFTER};
use super::serve::Serve;
use super::source::Source;

/// The link to one peer.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) address: SocketAddr,
    /// What we write in front of our datagrams.
    pub(super) remote: ChannelId,
    pub(super) state: State,
    pub(super) outbound: bool,
    /// Messages that the peer understands.
    pub(super) messages: MessageSet,
    pub(super) rtt: Rtt,
    pub(super) source: Source,
    pub(super) serve: Serve,
    pub(super) acks: Acks,
    pub(super) told: Told,
    pub(super) contact: Contact,
}

/// When something was heard and said.
#[derive(Debug)]
pub(super) struct Contact {
    pub(super) heard_at: Instant,
    pub(super) sent_at: Instant,
    /// Datagrams sent since something was heard.
    pub(super) unheard: u32,
    /// Handshake datagrams sent, when the first and the last one was.
    pub(super) greetings: (u32, Instant, Instant),
    /// Malformed datagrams.
    pub(super) bad: u32,
    /// A datagram must go out even if it says nothing.
    pub(super) keep_alive: bool,
}

/// What the peer was told of what is held here.
#[derive(Debug, Default)]
pub(super) struct Told {
    chunks: IntervalSet,
    /// When news are due.
    pub(super) due_at: Option<Instant>,
    /// When all of it is said once more: nobody acknowledges a HAVE.
    repeat_at: Option<Instant>,
}

impl Told {
    /// When there is something to say.
    pub(super) fn at(&self) -> Option<Instant> {
        [self.due_at, self.repeat_at].into_iter().flatten().min()
    }

    /// The intervals to announce. RFC 7574 4.3.1: the biggest complete ones that hold what is new.
    pub(super) fn take(&mut self, now: Instant, held: &IntervalSet) -> Vec<ChunkRange> {
        let repeats = self.repeat_at.is_some_and(|at| at <= now);
        if repeats {
            (self.chunks, self.repeat_at) = (IntervalSet::default(), None);
        } else if self.due_at.is_none_or(|at| at > now) {
            return Vec::new();
        }
        self.due_at = None;
        let news = held.iter().filter(|(start, end)| !self.chunks.contains(*start, *end));
        let news: Vec<(u64, u64)> = news.take(ANNOUNCE_SPANS_MAX + 1).collect();
        if news.len() > ANNOUNCE_SPANS_MAX {
            self.due_at = Some(now + ANNOUNCE_REPEAT / 10);
        }
        for (start, end) in news.iter().take(ANNOUNCE_SPANS_MAX) {
            self.chunks.insert(*start, *end);
        }
        if !repeats && !news.is_empty() {
            self.repeat_at = Some(now + ANNOUNCE_REPEAT);
        }
        let news = news.into_iter().take(ANNOUNCE_SPANS_MAX);
        news.filter_map(|(start, end)| ChunkRange::new(start, end)).collect()
    }
}

impl Channel {
    pub(super) fn new(now: Instant, address: SocketAddr, outbound: bool, cursor: u64) -> Self {
        Self {
            address,
            remote: ChannelId(0),
            state: State::Opening,
            outbound,
            messages: MessageSet::default(),
            rtt: Rtt::new(now),
            source: Source::new(now, cursor),
            serve: Serve::new(now),
            acks: Acks::default(),
            told: Told::default(),
            contact: Contact {
                heard_at: now,
                sent_at: now,
                unheard: 0,
                greetings: (0, now, now),
                bad: 0,
                keep_alive: false,
            },
        }
    }

    /// Whether messages may be sent: the peer's address is proved.
    pub(super) fn is_open(&self) -> bool {
        self.state != State::Opening
    }

    /// A round trip that was measured.
    pub(super) fn on_round_trip(&mut self, now: Instant, sample: Duration) {
        self.rtt.sample(now, sample);
        self.serve.controller.on_round_trip(now, sample);
    }

    /// When datagram 1 or 3 is to be repeated.
    pub(super) fn greet_at(&self) -> Option<Instant> {
        let (count, first, at) = self.contact.greetings;
        let wait =
            (HANDSHAKE_RETRY * (1 << count.saturating_sub(1).min(8))).min(HANDSHAKE_RETRY_MAX);
        // The attempt that leaves new options out is made when it is due, not later.
        let plain_at = Some(first + PLAIN_AFTER).filter(|plain_at| *plain_at > at);
        let next = plain_at.map_or(at + wait, |plain_at| plain_at.min(at + wait));
        (self.state != State::Open).then_some(next)
    }

    /// When a keep-alive is due.
    pub(super) fn keep_alive_at(&self) -> Instant {
        self.contact.sent_at + KEEP_ALIVE
    }

    /// When the peer is dead; RFC 7574 3.12: 3 minutes, and at least 3 datagrams sent meanwhile.
    pub(super) fn dead_at(&self) -> Option<Instant> {
        let contact = &self.contact;
        (contact.unheard >= DEAD_SENT_MIN).then(|| contact.heard_at + DEAD_AFTER)
    }

    /// Bytes to come from the peer.
    pub(super) fn outstanding_bytes(&self) -> u64 {
        self.source.outstanding() * crate::limits::CHUNK_BYTES
    }

    /// When this channel has something to do, if nothing is heard meanwhile.
    pub(super) fn next_at(&self, is_sounding: bool) -> Option<Instant> {
        if !self.is_open() {
            return self.greet_at();
        }
        let sound_at = if is_sounding && !self.source.is_choking {
            self.source.sound_at(&self.rtt)
        } else {
            None
        };
        [
            self.greet_at(),
            Some(self.keep_alive_at()),
            self.dead_at(),
            self.source.late_at(&self.rtt),
            self.acks.due_at(self.outstanding_bytes()),
            self.serve.due_at(),
            self.told.at(),
            sound_at,
        ]
        .into_iter()
        .flatten()
        .min()
    }
}
