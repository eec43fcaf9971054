//! What the messages of an open channel do (RFC 7574 §3).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::keys::NtpTime;
use crate::limits::{BLOCK_LAYER, GRANULE_LAYER, MUNRO_LAYER};
use crate::ppspp::codec::{Message, Seats, WireClass};
use crate::tree::{MunroTree, NodeHash, SignedMunro, VerifiedMunro, VerifiedRun, VerifyError};
use crate::unit::{Bin, ChunkRange, MunroIndex};

use super::announce::{have, is_newer};
use super::channel::{Channel, ChannelIndex};
use super::climb::{Piece, stretch_of};
use super::event::{Class, DownReason, Event, HashId, HashRequest};
use super::interval::IntervalSet;
use super::limits::{
    AVAILABILITY_SPANS_MAX, AWAITED_BLOCKS_MAX, AWAITED_SPANS_MAX, ERRAND_MAX, HOLD_WAITED,
    MISSES_MAX, PLACES_MAX, STRAYS_MAX,
};
use super::source::Arrival;
use super::swarm::Swarm;
use super::turns::Place;

/// Runs to be hashed.
#[derive(Debug, Default)]
pub(super) struct HashQueue {
    pub(super) requests: VecDeque<HashRequest>,
    serial: u64,
}

/// One datagram being processed.
pub(super) struct Receive<'a> {
    pub(super) now: Instant,
    /// Our clock, as DATA and ACK count it.
    pub(super) clock_us: u64,
    pub(super) index: ChannelIndex,
    pub(super) channel: &'a mut Channel,
    pub(super) swarm: &'a mut Swarm,
    pub(super) events: &'a mut VecDeque<Event>,
    pub(super) hashing: &'a mut HashQueue,
    /// The munro's hash that a signature of the same datagram is about.
    pub(super) munro: Option<(MunroIndex, NodeHash)>,
}

impl Receive<'_> {
    /// One message; an error ends the channel.
    pub(super) fn message(&mut self, message: &Message<'_>) -> Result<(), DownReason> {
        match *message {
            Message::Data { chunks, timestamp_us, payload } => {
                return self.on_data(chunks.start.0, timestamp_us, payload);
            }
            Message::Integrity { chunks, hash } => self.on_integrity(chunks, hash),
            Message::SignedIntegrity { chunks, time, signature } => {
                return self.on_signed(chunks, time, signature);
            }
            Message::Ack { chunks, delay_us } => self.on_ack(chunks, delay_us),
            Message::Have(chunks) => self.on_have(chunks),
            Message::HaveMap { munro, granules } => self.on_have_map(munro, granules),
            Message::Request(chunks) => self.on_request(chunks, Class::Background),
            Message::Want { chunks, class, deadline_ms, hops } => {
                let class = match class {
                    WireClass::Waited => Class::Waited,
                    WireClass::Background => Class::Background,
                };
                if hops == 0 {
                    self.on_request(chunks, class);
                } else {
                    let patience = Duration::from_millis(deadline_ms.into()).min(ERRAND_MAX);
                    self.on_wish(chunks, class, self.now + patience, hops);
                }
            }
            Message::Place { id, level } => {
                return self.on_place(id, level);
            }
            Message::Circle(seats) => self.on_circle(seats),
            Message::Cancel(chunks) => self.channel.serve.on_cancel(chunks),
            Message::Miss(chunks) => self.on_miss(chunks),
            Message::Choke => {
                self.channel.source.choked = true;
                for first in self.channel.source.flights() {
                    self.channel.source.remove(first);
                    self.swarm.ledger.unassign(first, self.index);
                }
                self.swarm.dirty = true;
            }
            Message::Unchoke => {
                self.channel.source.choked = false;
                self.swarm.on_news();
            }
            // RFC 7574 8.4: a source channel of 0 closes.
            Message::Handshake(handshake) if handshake.is_closing() => {
                return Err(DownReason::Closed);
            }
            Message::PexReq => self.channel.exchange.on_request(self.now),
            Message::PexResV4(address) => self.channel.exchange.on_response(address.into()),
            Message::PexResV6(address) => self.channel.exchange.on_response(address.into()),
            // A datagram 2 that came twice; replies may be ignored (RFC 7574 3.10), and nobody here
            // issues certificates.
            Message::Handshake(_) | Message::PexResCert(_) => {}
        }
        Ok(())
    }

    /// The peer says where it stands.
    fn on_place(&mut self, id: u64, level: u8) -> Result<(), DownReason> {
        let link = self.swarm.links.get(&self.channel.address);
        self.channel.dialled = link.is_some_and(|link| !link.found);
        let place = Place { id, level };
        // One of a datagram counts, and who speaks on a channel does not change.
        let same = self.channel.place.is_none_or(|known| known.id == id);
        let first = !self.swarm.placed.contains(&self.index);
        if self.channel.place != Some(place) && same && first {
            self.channel.places += 1;
            if self.channel.places > PLACES_MAX {
                return Err(DownReason::Flooded);
            }
            self.channel.place = Some(place);
            self.swarm.placed.push(self.index);
        }
        Ok(())
    }

    /// The peer says who of its level takes turns.
    fn on_circle(&mut self, seats: Seats<'_>) {
        if seats.iter().eq(self.channel.circle.iter().copied()) {
            return;
        }
        self.channel.circle = seats.iter().collect();
        let is_frequent = !self.channel.may_tell_circle(self.now);
        self.swarm.turns.on_circle(self.now, is_frequent);
        self.swarm.dirty = true;
    }

    /// One chunk.
    pub(super) fn on_data(
        &mut self,
        chunk: u64,
        timestamp_us: u64,
        payload: &[u8],
    ) -> Result<(), DownReason> {
        let counters = &mut self.swarm.counters;
        counters.data_received_bytes += payload.len() as u64;
        let channel = &mut *self.channel;
        let silent = channel.source.is_silent();
        let arrival = channel.source.on_data(self.now, chunk, payload, &mut channel.rtt);
        match arrival {
            Arrival::Kept => {}
            Arrival::Duplicate => {
                counters.duplicate_bytes += payload.len() as u64;
                channel.acks.came_again(self.now, chunk);
            }
            Arrival::Stray => {
                // Neither hashed nor stored (DATA.2, RFC 7574 12.6.3).
                counters.stray_datagrams += 1;
                channel.source.strays += 1;
                if channel.source.strays > STRAYS_MAX {
                    return Err(DownReason::Flooded);
                }
            }
            Arrival::Complete(first) => {
                let delay_us = self.clock_us.wrapping_sub(timestamp_us);
                self.hashing.serial += 1;
                let serial = self.hashing.serial;
                if let Some((bin, bytes)) = channel.source.begin_hashing(first, serial) {
                    let id = HashId { channel: self.index, first, serial, delay_us };
                    self.hashing.requests.push_back(HashRequest { id, bin, bytes });
                } else {
                    self.on_complete(first, delay_us)?;
                }
            }
        }
        if silent && !self.channel.source.is_silent() {
            self.swarm.on_news();
        }
        Ok(())
    }

    /// All chunks of a flight are there and hashed: verifies it, and then what waited for its hashes.
    pub(super) fn on_complete(&mut self, first: u64, delay_us: u64) -> Result<(), DownReason> {
        let mut ready = vec![first];
        while let Some(first) = ready.pop() {
            if let Some(lacks) = self.channel.source.lacks(first)
                && !self.has_hash(lacks)
            {
                continue;
            }
            let Some(run) = self.channel.source.hashed(first) else { continue };
            let bin = run.bin();
            let Some(munro) = bin.munro() else { continue };
            self.swarm.trust_newest(munro);
            let Some(tree) = self.swarm.trees.get_mut(&munro) else {
                self.channel.source.wait_for_hash(first, munro.bin());
                continue;
            };
            let offered = &self.channel.source.offered;
            match tree.prove(run, |bin| offered.hash(bin)) {
                Ok(run) => {
                    self.on_verified(run, delay_us);
                    let waiting = self.channel.source.lacking(munro.bin());
                    ready.extend(waiting.into_iter().map(|(first, _)| first));
                }
                Err(VerifyError::MissingUncle { missing, .. }) => {
                    self.channel.source.wait_for_hash(first, missing);
                }
                Err(VerifyError::Mismatch { .. } | VerifyError::NotARun { .. }) => {
                    // Bytes and hashes came from this peer alone: it is known who lied.
                    self.swarm.counters.false_runs += 1;
                    return Err(DownReason::Lied { bin });
                }
            }
        }
        Ok(())
    }

    fn has_hash(&mut self, bin: Bin) -> bool {
        let Some(munro) = bin.munro() else { return false };
        self.swarm.trust_newest(munro);
        let Some(tree) = self.swarm.trees.peek(&munro) else { return false };
        tree.node(bin).is_some() || self.channel.source.offered.hash(bin).is_some()
    }

    fn on_verified(&mut self, run: VerifiedRun, delay_us: u64) {
        let bin = run.bin();
        let chunks = bin.chunks();
        self.channel.source.remove(chunks.start.0);
        // RFC 7574 3.4: an ACK for what was verified.
        self.channel.acks.push(self.now, chunks, delay_us);
        self.swarm.counters.verified_bytes += bin.byte_len();
        self.swarm.counters.verified_from.add(self.channel.kind(), bin.byte_len());
        self.channel.traffic.verified_bytes += bin.byte_len();
        if self.channel.source.wants_more(&self.channel.rtt) {
            self.swarm.dirty = true;
        } else {
            self.swarm.on_small_news();
        }
        let (swarm, from) = (self.swarm.key, self.channel.address);
        self.events.push_back(Event::Verified { swarm, run, from });
        for fetch in self.swarm.ledger.verified(bin, self.index) {
            self.events.push_back(Event::Fetched { fetch });
        }
    }

    fn on_integrity(&mut self, chunks: ChunkRange, hash: &[u8]) {
        let (Some(bin), Ok(hash)) = (Bin::from_chunks(chunks), hash.try_into()) else {
            return;
        };
        let hash = NodeHash(hash);
        if bin.layer() == MUNRO_LAYER {
            self.munro = Some((MunroIndex(bin.offset()), hash));
        } else {
            self.channel.source.offered.offer(bin, hash);
        }
    }

    fn on_signed(
        &mut self,
        chunks: ChunkRange,
        time: NtpTime,
        signature: &[u8],
    ) -> Result<(), DownReason> {
        let (Some((munro, hash)), Ok(signature)) = (self.munro, signature.try_into()) else {
            return Ok(());
        };
        if munro.bin().chunks() != chunks {
            return Ok(());
        }
        let claimed = SignedMunro { munro, hash, time, signature };
        let known = self.known(munro);
        if known.is_some_and(|known| known.signed() == claimed) {
            self.note_known(claimed);
            return Ok(());
        }
        let asked = self.channel.source.offered.is_expected(munro);
        let newer = match &self.swarm.newest {
            Some(newest) if newest.munro() == munro => {
                time.unix_seconds() > newest.time().unix_seconds()
            }
            Some(newest) => newest.munro() < munro,
            None => true,
        };
        let forks = known.is_some_and(|known| known.hash() != hash);
        let needed = asked && !self.swarm.trees.contains(&munro);
        if !(needed || newer || forks) {
            // RFC 7574 6.1.2.4: too old to matter; the same munro at another time proves nothing new.
            return Ok(());
        }
        // RFC 7574 12.6.5: checks that a peer can cause are bounded.
        if !needed && !self.channel.may_check(self.now) {
            return Ok(());
        }
        let Ok(verified) = claimed.verify(&self.swarm.origin) else {
            return Err(DownReason::ForgedMunro);
        };
        let from = self.channel.address;
        let swarm = self.swarm.key;
        if let (true, Some(known)) = (forks, known) {
            let known = known.signed();
            self.events.push_back(Event::Fork { swarm, known, claimed, from });
            return Err(DownReason::Forked);
        }
        if needed {
            self.swarm.trees.put(munro, MunroTree::new(verified));
        } else if let Some(tree) = self.swarm.trees.get_mut(&munro) {
            tree.renew(verified);
        }
        if newer {
            self.channel.on_news_checked();
            self.swarm.newest = Some(verified);
            self.swarm.spread = true;
            self.events.push_back(Event::Newest { swarm, munro: verified, from });
        }
        self.note_known(claimed);
        for (first, _) in self.channel.source.lacking(munro.bin()) {
            self.on_complete(first, 0)?;
        }
        Ok(())
    }

    /// What was verified of a munro.
    fn known(&self, munro: MunroIndex) -> Option<VerifiedMunro> {
        let newest = self.swarm.newest.filter(|newest| newest.munro() == munro);
        newest.or_else(|| self.swarm.trees.peek(&munro).map(|tree| *tree.trust()))
    }

    /// The peer need not be told a munro that it sent.
    fn note_known(&mut self, claimed: SignedMunro) {
        if let Some(newest) = self.swarm.newest.filter(|newest| newest.signed() == claimed)
            && self.channel.told.knows.is_none_or(|knows| is_newer(&newest, &knows))
        {
            self.channel.told.knows = Some(newest);
        }
    }

    fn on_ack(&mut self, chunks: ChunkRange, delay_us: u64) {
        let channel = &mut *self.channel;
        let acked = channel.serve.on_ack(self.now, chunks, delay_us);
        if let Some(rtt) = acked.rtt {
            channel.rtt.sample(self.now, rtt);
        }
        if acked.bytes > 0 {
            channel.told.on_reached(chunks);
        }
    }

    fn on_have(&mut self, chunks: ChunkRange) {
        // RFC 7574 3.8: a HAVE cancels its sender's requests for the same chunks.
        self.channel.serve.on_cancel(chunks);
        self.channel.told.on_reached(chunks);
        let start = chunks.start.0.div_ceil(1 << BLOCK_LAYER);
        self.learn(start, chunks.end.0 >> BLOCK_LAYER);
    }

    fn on_have_map(&mut self, munro: MunroIndex, granules: u64) {
        let blocks = 1 << (GRANULE_LAYER - BLOCK_LAYER);
        let first = munro.blocks().start.0;
        for granule in (0..64u64).filter(|granule| granules & (1 << granule) != 0) {
            let start = first + granule * blocks;
            self.learn(start, start + blocks);
        }
        self.channel.told.on_reached(munro.bin().chunks());
    }

    /// The peer has blocks `start..end`.
    fn learn(&mut self, start: u64, end: u64) {
        self.channel.source.on_have(start, end);
        let known: &mut IntervalSet = &mut self.channel.source.availability;
        if start >= end || known.contains(start, end) {
            return;
        }
        if known.len() >= AVAILABILITY_SPANS_MAX
            && known.first_within(start.saturating_sub(1), end.saturating_add(1)).is_none()
        {
            return;
        }
        known.insert(start, end);
        if !self.swarm.held.contains(start, end) {
            self.channel.source.on_progress(self.now);
        }
        self.channel.source.dry = 0;
        self.channel.source.sought = None;
        self.swarm.on_small_news();
    }

    fn on_request(&mut self, chunks: ChunkRange, class: Class) {
        if self.channel.served {
            let round_trip = self.channel.rtt.minimum();
            self.channel.serve.on_request(self.now, chunks, class, round_trip);
        } else {
            self.refuse(chunks);
        }
    }

    /// The peer asks us to fetch what we lack and to say so when it is here; what is here is said at
    /// once. Upwards only: nobody fetches for those above it, and for an equal we fetch from above
    /// ourselves.
    fn on_wish(&mut self, chunks: ChunkRange, class: Class, deadline: Instant, hops: u8) {
        if !self.channel.served {
            return self.refuse(chunks);
        }
        let (start, end) = (chunks.start.0 >> BLOCK_LAYER, chunks.end.0.div_ceil(1 << BLOCK_LAYER));
        // Nothing is wanted behind the end of the signed log, and no more looked at than may be taken.
        let signed = self.swarm.newest.map_or(u64::MAX, |newest| newest.munro().blocks().end().0);
        let taken = end.min(signed).min(start.saturating_add(AWAITED_BLOCKS_MAX));
        let mut until = taken;
        let mut lacking = IntervalSet::default();
        lacking.insert(start, until);
        let awaited = &self.channel.source.awaited;
        for (from, to) in self.swarm.held.iter_within(start, until) {
            let spans = awaited.len() + lacking.len();
            if self.channel.told.queue.len() >= MISSES_MAX || spans >= AWAITED_SPANS_MAX {
                until = from;
                break;
            }
            lacking.remove(from, to);
            self.channel.told.queue.extend(have(from, to));
        }
        lacking.remove(until, u64::MAX);
        // Who dials nobody has nobody above, but perhaps an equal that has.
        let ours = self.swarm.turns.place.level;
        let level = self.channel.level(ours);
        let is_above = level.is_some_and(|level| level < ours);
        let is_equal = level == Some(ours);
        let is_stuck = is_equal && class == Class::Waited && self.swarm.turns.has_nobody_above();
        let nobody = self.swarm.links.values().all(|link| link.found)
            && !self.swarm.turns.circle.has_others();
        let mut room = if nobody || is_above || is_stuck {
            0
        } else {
            AWAITED_BLOCKS_MAX.saturating_sub(awaited.count())
        };
        for (start, end) in lacking.iter() {
            let awaited = &mut self.channel.source.awaited;
            let known: u64 = awaited.iter_within(start, end).map(|(from, to)| to - from).sum();
            let new = end - start - known;
            let piece = Piece { start, end, hops: hops - 1 };
            // Who may ask nobody else fetches nothing that is another's turn.
            let is_others =
                is_equal && hops == 1 && self.swarm.turns.circle.is_others(stretch_of(start));
            let refuses = new > room || is_others;
            if refuses || !self.swarm.ledger.insert_errand(piece, class, deadline) {
                let mut refused = IntervalSet::default();
                refused.insert(start, end);
                awaited.iter_within(start, end).for_each(|(from, to)| refused.remove(from, to));
                refused.iter().for_each(|(from, to)| self.channel.serve.miss(from, to));
                continue;
            }
            room -= new;
            awaited.insert(start, end);
            if class == Class::Waited {
                self.channel.source.awaited_by_readers.insert(start, end);
            }
            if is_equal && class == Class::Waited {
                let until = deadline.min(self.now + HOLD_WAITED);
                self.swarm.turns.claim(start, end, until);
            }
        }
        // What is held and was not said for lack of room is not denied.
        self.channel.serve.miss(taken.max(start), end);
        self.swarm.dirty = true;
    }

    /// There is nothing here for this peer.
    fn refuse(&mut self, chunks: ChunkRange) {
        let (start, end) = (chunks.start.0 >> BLOCK_LAYER, chunks.end.0.div_ceil(1 << BLOCK_LAYER));
        self.channel.serve.miss(start, end);
    }

    /// Without blame: a cache evicts.
    fn on_miss(&mut self, chunks: ChunkRange) {
        self.swarm.counters.missed += 1;
        let end = chunks.end.0.div_ceil(1 << BLOCK_LAYER);
        self.channel.source.on_miss(chunks.start.0 >> BLOCK_LAYER, end);
        for first in self.channel.source.flights_within(chunks) {
            self.channel.source.remove(first);
            self.swarm.ledger.unassign(first, self.index);
        }
        self.swarm.ledger.on_miss(chunks, self.index);
        self.swarm.turns.on_miss(self.index, chunks.start.0 >> BLOCK_LAYER, end);
        self.swarm.on_news();
    }
}
