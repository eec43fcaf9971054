//! What comes in: datagrams, and what each of their messages does.

use std::net::SocketAddr;
use std::time::Instant;

use crate::limits::{CHUNK_BYTES, CONTENT_BYTES_MAX};
use crate::ppspp::codec::{ChannelId, Message, Messages, decode, destination};
use crate::tree::merkle::{
    BranchIndex, ContentShape, MerkleHash, MerkleTree, UnprovedError, find_shape, verify_last,
};
use crate::unit::{Bin, ChunkRange};

use super::super::DownReason;
use super::super::channel::State;
use super::super::interval::IntervalSet;
use super::super::limits::AVAILABILITY_SPANS_MAX;
use super::content::ranges_of;
use super::handshake;
use super::limits::{BAD_MAX, EVENTS_MAX};
use super::source::{Source, Unproved};
use super::{StaticEvent, StaticSwarm};

/// One chunk as it came.
struct Arrived<'a> {
    chunk: u64,
    delay_us: u64,
    payload: &'a [u8],
}

impl StaticSwarm {
    /// Datagrams of one peer arrived together, of `stride` bytes each; the last may be shorter.
    pub fn handle_datagrams(
        &mut self,
        now: Instant,
        from: SocketAddr,
        received: &[u8],
        stride: usize,
    ) {
        for datagram in received.chunks(stride.max(1)) {
            self.on_datagram(now, from, datagram);
        }
    }

    fn on_datagram(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) {
        if self.queues.events.len() >= EVENTS_MAX {
            // Nobody takes the events: what is dropped here is asked for again.
            return;
        }
        let Ok(local) = destination(datagram) else {
            self.counters.bad_datagrams += 1;
            return;
        };
        if local == ChannelId(0) {
            return self.on_datagram_1(now, from, datagram);
        }
        if !self.channels.contains_key(&local) && !self.promote(now, local, from) {
            // RFC 7574 3.1.1(3): MUST discard datagrams with a wrong channel.
            self.counters.bad_datagrams += 1;
            return;
        }
        self.on_channel_datagram(now, local, from, datagram);
    }

    fn on_channel_datagram(
        &mut self,
        now: Instant,
        local: ChannelId,
        from: SocketAddr,
        datagram: &[u8],
    ) {
        let Some(channel) = self.channels.get_mut(&local) else { return };
        if channel.address != from {
            self.counters.bad_datagrams += 1;
            return;
        }
        self.counters.received_datagrams += 1;
        self.counters.received_bytes += datagram.len() as u64;
        let Ok(messages) = decode(datagram, &self.profile) else {
            self.counters.bad_datagrams += 1;
            channel.contact.bad += 1;
            if channel.contact.bad > BAD_MAX && channel.is_open() {
                // RFC 7574 3: SHOULD stop communicating with such a peer.
                self.close(now, local, DownReason::Malformed);
            }
            return;
        };
        // A handshake sets how the messages behind it are read: one that differs from what was agreed
        // would have them mean something else.
        let first = usize::from(channel.state == State::Opening);
        if messages.clone().skip(first).any(|message| self.is_another_handshake(&message)) {
            self.counters.bad_datagrams += 1;
            return;
        }
        let Some(channel) = self.channels.get_mut(&local) else { return };
        if channel.state != State::Open && !self.on_first(now, local, messages.clone()) {
            return;
        }
        let Some(channel) = self.channels.get_mut(&local) else { return };
        (channel.contact.heard_at, channel.contact.unheard) = (now, 0);
        for message in messages {
            if let Err(reason) = self.on_message(now, local, &message) {
                return self.close(now, local, reason);
            }
        }
        if let Err(reason) = self.prove_kept(now, local) {
            self.close(now, local, reason);
        }
    }

    /// Whether a message is a handshake with other options than this swarm's.
    fn is_another_handshake(&self, message: &Message<'_>) -> bool {
        match message {
            Message::Handshake(handshake) if !handshake.is_closing() => {
                handshake::check(&handshake.options, &self.content.id, false).is_err()
            }
            _ => false,
        }
    }

    /// Looks again at chunks that lacked hashes which are here by now.
    fn prove_kept(&mut self, now: Instant, local: ChannelId) -> Result<(), DownReason> {
        loop {
            let (Some(channel), Some(tree)) = (self.channels.get_mut(&local), &self.content.tree)
            else {
                return Ok(());
            };
            let provable = channel.source.take_provable(tree);
            if provable.is_empty() {
                return Ok(());
            }
            for Unproved { chunk, delay_us, payload } in provable {
                self.on_data(now, local, &Arrived { chunk, delay_us, payload: &payload })?;
            }
        }
    }

    /// The first datagrams on a channel that was opened from here; `false` to drop this one.
    fn on_first(&mut self, now: Instant, local: ChannelId, mut messages: Messages<'_>) -> bool {
        let Some(channel) = self.channels.get_mut(&local) else { return false };
        match (channel.state, messages.next()) {
            (State::Opening, Some(Message::Handshake(handshake))) if !handshake.is_closing() => {
                self.on_datagram_2(now, local, &handshake)
            }
            (State::Opening, Some(Message::Handshake(_))) => {
                self.close(now, local, DownReason::Refused);
                false
            }
            (State::Opening, _) => false,
            (State::Unconfirmed, Some(Message::Handshake(handshake)))
                if !handshake.is_closing() =>
            {
                // Datagram 2 again. If the peer has restarted since, its new id is the right one.
                channel.remote = handshake.source;
                true
            }
            _ => {
                channel.state = State::Open;
                true
            }
        }
    }

    fn on_message(
        &mut self,
        now: Instant,
        local: ChannelId,
        message: &Message<'_>,
    ) -> Result<(), DownReason> {
        let clock_us = self.clock_us(now);
        let Some(channel) = self.channels.get_mut(&local) else { return Ok(()) };
        match *message {
            Message::Handshake(handshake) if handshake.is_closing() => {
                return Err(DownReason::Closed);
            }
            Message::Data { chunks, timestamp_us, payload } => {
                let delay_us = clock_us.wrapping_sub(timestamp_us);
                let arrived = Arrived { chunk: chunks.start.0, delay_us, payload };
                return self.on_data(now, local, &arrived);
            }
            Message::Ack { chunks, delay_us } => {
                if let Some(sample) = channel.serve.on_ack(now, chunks, delay_us) {
                    channel.rtt.sample(now, sample);
                }
            }
            // No content has these.
            Message::Have(chunks) if chunks.end.0 > CONTENT_BYTES_MAX / CHUNK_BYTES => {}
            Message::Have(chunks) => {
                let availability = &mut channel.source.availability;
                if availability.len() < AVAILABILITY_SPANS_MAX {
                    availability.insert(chunks.start.0, chunks.end.0);
                }
                // RFC 7574 3.8: a HAVE is a CANCEL as well.
                channel.serve.on_cancel(chunks);
                channel.serve.on_known(chunks);
            }
            Message::Integrity { chunks, hash } => return self.on_integrity(local, chunks, hash),
            Message::Request(chunks) => {
                let round_trip = channel.rtt.minimum();
                let held = &self.content.held;
                for (start, end) in held.iter_within(chunks.start.0, chunks.end.0) {
                    if channel.serve.refuses() {
                        break;
                    }
                    if let Some(held) = ChunkRange::new(start, end) {
                        channel.serve.on_request(now, held, round_trip);
                    }
                }
            }
            Message::Cancel(chunks) => channel.serve.on_cancel(chunks),
            Message::Choke => {
                channel.source.is_choking = true;
                for (branch, bits) in channel.source.withdraw() {
                    self.give_back(branch, bits);
                }
            }
            Message::Unchoke => channel.source.is_choking = false,
            // Datagram 2 once more; peers of others, signatures and distd's extensions are not for
            // static swarms.
            Message::Handshake(_)
            | Message::SignedIntegrity { .. }
            | Message::PexReq
            | Message::PexResV4(_)
            | Message::PexResV6(_)
            | Message::PexResCert(_)
            | Message::Want { .. }
            | Message::Miss(_)
            | Message::HaveMap { .. }
            | Message::Place { .. }
            | Message::Circle(_) => {}
        }
        Ok(())
    }

    /// A hash: nothing is proved by it yet, unless it is known already.
    fn on_integrity(
        &mut self,
        local: ChannelId,
        chunks: ChunkRange,
        hash: &[u8],
    ) -> Result<(), DownReason> {
        let function = self.content.id.function;
        let (Some(bin), Some(hash)) =
            (Bin::from_chunks(chunks), MerkleHash::from_bytes(function, hash))
        else {
            return Ok(());
        };
        let Some(channel) = self.channels.get_mut(&local) else { return Ok(()) };
        let Some(tree) = &self.content.tree else {
            if ContentShape::new(chunks.end.0).is_some() {
                channel.source.offer(bin, hash);
            }
            return Ok(());
        };
        match tree.node(bin) {
            Some(known) if known == hash => {}
            Some(_) => return Err(DownReason::Lied { bin }),
            // RFC 7574 5.3: MUST remember the hashes that are needed for what is still wanted.
            None if tree.shape().has(bin) && !self.content.is_complete() => {
                channel.source.offer(bin, hash);
            }
            None => {}
        }
        Ok(())
    }

    /// A chunk: RFC 7574 5.2: it counts when it leads to the root.
    fn on_data(
        &mut self,
        now: Instant,
        local: ChannelId,
        arrived: &Arrived<'_>,
    ) -> Result<(), DownReason> {
        let settled = self.content.tree.is_none() && self.on_sounding(local, arrived)?;
        let Self { channels, content, counters, queues, .. } = self;
        let (Some(channel), Some(total)) = (channels.get_mut(&local), content.bytes) else {
            return Ok(());
        };
        let (chunk, payload, source) = (arrived.chunk, arrived.payload, &mut channel.source);
        let branch = BranchIndex::of(chunk);
        if content.has(chunk) {
            counters.duplicate_bytes += payload.len() as u64;
            source.on_chunk(now, chunk, &channel.rtt);
            channel.acks.came_again(now, chunk);
            return Ok(());
        }
        if !settled && !content.is_open(branch) {
            counters.duplicate_bytes += payload.len() as u64;
            return Ok(());
        }
        let Some(tree) = content.tree.as_mut() else { return Ok(()) };
        let leaf = Bin::new(0, chunk);
        let len = total.saturating_sub(chunk * crate::limits::CHUNK_BYTES);
        if payload.len() as u64 != len.min(crate::limits::CHUNK_BYTES) {
            return Err(DownReason::Lied { bin: leaf });
        }
        admit_peaks(tree, source)?;
        match tree.verify(chunk, payload, |bin| source.offered.get(&bin).copied()) {
            Ok(verified) => {
                source.on_chunk(now, chunk, &channel.rtt);
                source.forget_offers(leaf, tree.shape());
                source.verified_bytes += payload.len() as u64;
                counters.verified_bytes += payload.len() as u64;
                // RFC 7574 3.4: what was verified MUST be acknowledged.
                if let Some(one) = ChunkRange::new(chunk, chunk + 1) {
                    channel.acks.push(now, one, arrived.delay_us);
                }
                if let Some((branch, bytes)) = content.take(&verified) {
                    queues.events.push_back(StaticEvent::Branch { branch, bytes });
                }
                // RFC 7574 3.8: SHOULD be cancelled where it was asked for, too.
                for (_, other) in channels.iter_mut().filter(|(other, _)| **other != local) {
                    other.source.cancel(chunk);
                }
                Ok(())
            }
            // RFC 7574 5.3: SHOULD be dropped if something is missing to process it: it is kept apart, as
            // long as it is asked for, since what is missing is asked for again.
            Err(UnprovedError::Lacking(bin)) => {
                counters.hashless += 1;
                let (delay_us, payload) = (arrived.delay_us, payload.to_vec());
                source.on_hashless(now, Unproved { chunk, delay_us, payload }, bin, &channel.rtt);
                Ok(())
            }
            Err(UnprovedError::False(bin)) => Err(DownReason::Lied { bin }),
            Err(UnprovedError::Ambiguous { .. }) => Ok(()),
        }
    }

    /// A chunk of content whose length is not known: whether it is now. RFC 7574 5.6.2: the peaks MUST
    /// be checked against the root, and the last chunk tells the exact length.
    fn on_sounding(&mut self, local: ChannelId, arrived: &Arrived<'_>) -> Result<bool, DownReason> {
        let id = self.content.id;
        let Some(channel) = self.channels.get_mut(&local) else { return Ok(false) };
        let source = &mut channel.source;
        let claim = find_shape(id, &source.offered);
        source.sounding.claim = claim.or(source.sounding.claim);
        // Content of one chunk needs no peak: its hash is the root (RFC 7574 8.16).
        let Some(shape) = claim.or_else(|| ContentShape::new(1)) else { return Ok(false) };
        if arrived.chunk + 1 != shape.chunks() {
            source.unproved += u64::from(claim.is_none());
            return Ok(false);
        }
        match verify_last(id, shape, arrived.payload, &source.offered) {
            Ok(bytes) => {
                self.content.settle(shape, bytes);
                self.queues.events.push_back(StaticEvent::Settled { bytes });
                Ok(true)
            }
            Err(UnprovedError::Ambiguous { bytes }) => {
                let before = (shape.chunks() - 1) * crate::limits::CHUNK_BYTES;
                source.sounding.ambiguous = Some(before + bytes as u64);
                Ok(false)
            }
            Err(UnprovedError::False(bin)) if claim.is_some() => Err(DownReason::Lied { bin }),
            Err(UnprovedError::False(_) | UnprovedError::Lacking(_)) => {
                self.counters.hashless += 1;
                source.unproved += 1;
                Ok(false)
            }
        }
    }

    /// A branch is not what it was: nobody is served it.
    pub(super) fn forget_branch(&mut self, branch: BranchIndex) {
        self.content.lose(branch);
        for channel in self.channels.values_mut() {
            for chunks in ranges_of(branch, u64::MAX) {
                channel.serve.asked.forget(chunks);
            }
        }
        self.queues.events.push_back(StaticEvent::Spoiled { branch });
    }
}

/// Takes the peaks that a source offers, if they are not known.
fn admit_peaks(tree: &mut MerkleTree, source: &Source) -> Result<(), DownReason> {
    let peaks = tree.shape().peaks();
    let Some(first) = peaks.first().filter(|first| tree.node(**first).is_none()).copied() else {
        return Ok(());
    };
    let offered: Option<Vec<(Bin, MerkleHash)>> =
        peaks.into_iter().map(|bin| Some((bin, *source.offered.get(&bin)?))).collect();
    match offered {
        Some(peaks) if !tree.admit_peaks(&peaks) => Err(DownReason::Lied { bin: first }),
        _ => Ok(()),
    }
}

/// Chunks that a peer has, of those that are there.
pub(super) fn has_all(availability: &IntervalSet, shape: Option<ContentShape>) -> bool {
    shape.is_some_and(|shape| availability.contains(0, shape.chunks()))
}
