//! Serving one peer: what it asked for, what is being read for it, what goes out next.
//!
//! Requests stay ranges. What is cut off their front is read from disk in bins of 256 KiB at most,
//! a bounded number of bytes ahead, and goes out in the order in which it was asked for; a waited
//! range goes before every background one.

mod lane;

use std::cmp::Ordering;
use std::time::{Duration, Instant};

use crate::congestion::{self, Controller};
use crate::limits::{BLOCK_LAYER, CHUNK_BYTES, GRANULE_LAYER};
use crate::ppspp::codec::{ChannelId, Message, MessageType};
use crate::tree::StoredRun;
use crate::unit::{Bin, ChunkRange};

use super::event::{Class, DiskId};
use super::interval::IntervalSet;
use super::known::Known;
use super::limits::{
    BATCH_SEGMENTS, CHOKE, DATA_DATAGRAM_BYTES, MISSES_MAX, READ_BYTES_PER_CHANNEL_MAX,
    REQUESTED_BYTES_MAX, REQUESTED_RANGES_MAX, SENT_RUNS_MAX,
};
use super::sent::{Acked, Sent};
use super::writer::Writer;
use lane::{Lane, Read, ReadState};

/// Least that is read ahead for a peer, in bytes.
const READ_AHEAD_MIN: u64 = 64 << 10;
/// What waited runs may exceed the read-ahead by, in bytes.
const WAITED_AHEAD: u64 = 256 << 10;

/// Bytes under way above which background data waits for a whole batch.
const HOLD_BYTES: u64 = 256 << 10;
/// What pacing saves up before sending goes on.
const PACED_BYTES: u64 = 16 * congestion::SEGMENT_BYTES;

/// What goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Urgency {
    /// It was sent before and lost: the rest of its run is there already, and nothing of the run is
    /// acknowledged without it.
    Again,
    /// A reader waits.
    Waited,
    /// Nobody waits.
    Background,
}

impl Urgency {
    const ALL: [Self; 3] = [Self::Again, Self::Waited, Self::Background];

    const fn of(class: Class) -> Self {
        match class {
            Class::Waited => Self::Waited,
            Class::Background => Self::Background,
        }
    }
    const fn index(self) -> usize {
        match self {
            Self::Again => 0,
            Self::Waited => 1,
            Self::Background => 2,
        }
    }
}

/// A peer that is served.
#[derive(Debug)]
pub(super) struct Serve {
    /// By [`Urgency`].
    lanes: [Lane; 3],
    known: Known,
    pub(super) sent: Sent,
    pub(super) controller: Controller,
    /// When pacing lets more out, if it is what holds sending up.
    pub(super) paced_until: Option<Instant>,
    /// Losses that the window has answered.
    pub(super) losses: u64,
    /// Ranges to answer with MISS.
    pub(super) misses: Vec<ChunkRange>,
    /// CHOKE (`true`) or UNCHOKE is to be said.
    pub(super) choke: Option<bool>,
    choked_until: Option<Instant>,
    /// Bytes read or being read.
    read_bytes: u64,
}

/// What goes out at once.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Datagrams of hashes: before the data.
    pub(super) proofs: Vec<Vec<u8>>,
    /// Datagrams of [`DATA_DATAGRAM_BYTES`] each.
    pub(super) data: Vec<u8>,
}

impl Serve {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            lanes: Default::default(),
            known: Known::default(),
            sent: Sent::default(),
            controller: Controller::new(now),
            paced_until: None,
            losses: 0,
            misses: Vec::new(),
            choke: None,
            choked_until: None,
            read_bytes: 0,
        }
    }

    /// A REQUEST or WANT. A glutton is choked and its queue dropped (RFC 7574 §3.9).
    ///
    /// `round_trip` is the least that the path takes.
    pub(super) fn on_request(
        &mut self,
        now: Instant,
        chunks: ChunkRange,
        class: Class,
        round_trip: Duration,
    ) {
        if self.choked_until.is_some() {
            // RFC 7574 12.6.8: a REQUEST while choked is ignored, and CHOKE said again.
            self.choke = Some(true);
            return;
        }
        if class == Class::Waited {
            self.promote(chunks);
        }
        let mut wanted = IntervalSet::default();
        wanted.insert(chunks.start.0, chunks.end.0);
        for read in self.lanes.iter().flat_map(|lane| &lane.reads) {
            wanted.remove(read.next, read.chunks.end.0);
        }
        for (piece, sent_at) in self.sent.overlapping(chunks) {
            let Some(again) = piece.intersection(chunks) else { continue };
            wanted.remove(again.start.0, again.end.0);
            // Whoever asks could not know yet that the piece was coming.
            if now.saturating_duration_since(sent_at) < round_trip {
                continue;
            }
            self.sent.forget(piece.start.0);
            let bytes = again.count() * congestion::SEGMENT_BYTES;
            self.losses += u64::from(self.controller.on_loss(now, sent_at, bytes));
            self.queue(again, Urgency::Again);
        }
        for (start, end) in wanted.iter() {
            let Some(chunks) = ChunkRange::new(start, end) else { continue };
            // A hole: the rest of its granule arrived, and is not acknowledged without it.
            let granule = 1 << GRANULE_LAYER;
            let hole = chunks.count() < granule && self.known.has_sent(start);
            let urgency = if hole { Urgency::Again } else { Urgency::of(class) };
            self.queue(chunks, urgency);
        }
        let queued: u64 = self.lanes.iter().map(|lane| lane.asked.chunks()).sum();
        let ranges: usize = self.lanes.iter().map(|lane| lane.asked.ranges()).sum();
        if queued > REQUESTED_BYTES_MAX / CHUNK_BYTES || ranges > REQUESTED_RANGES_MAX {
            self.drop_requests();
            self.choked_until = Some(now + CHOKE);
            self.choke = Some(true);
        }
    }

    /// A reader waits for what was read ahead as background data: it goes out as urgent as that, in
    /// the order in which it was asked for now. A piece that was begun stays where it is.
    fn promote(&mut self, chunks: ChunkRange) {
        let mut promoted = Vec::new();
        let background = &mut self.lanes[Urgency::Background.index()].reads;
        if !background.iter().any(|read| read.pending(chunks).is_some()) {
            return;
        }
        for read in std::mem::take(background) {
            let Some(urgent) = read.pending(chunks) else {
                background.push_back(read);
                continue;
            };
            let before = read.part(read.chunks.start.0, read.next, urgent.start.0);
            let after = read.part(urgent.end.0, urgent.end.0, read.chunks.end.0);
            let within = read.part(urgent.start.0, urgent.start.0, urgent.end.0);
            // Whole granules that went out already are in no part.
            let left: u64 = [&before, &after, &within].into_iter().flatten().map(Read::bytes).sum();
            self.read_bytes -= read.bytes() - left;
            background.extend(before.into_iter().chain(after));
            promoted.extend(within);
        }
        self.lanes[Urgency::Waited.index()].reads.extend(promoted);
    }

    /// Queues a range, unless it is queued as that urgent.
    fn queue(&mut self, chunks: ChunkRange, urgency: Urgency) {
        for (at, lane) in self.lanes.iter_mut().enumerate() {
            match at.cmp(&urgency.index()) {
                Ordering::Less if lane.asked.contains(chunks) => return,
                Ordering::Greater => lane.asked.forget(chunks),
                _ => {}
            }
        }
        self.lanes[urgency.index()].asked.push(chunks);
    }

    /// CANCEL: an unknown one is ignored (RFC 7574 §12.6.7).
    pub(super) fn on_cancel(&mut self, chunks: ChunkRange) {
        self.lanes.iter_mut().for_each(|lane| lane.asked.forget(chunks));
        // What is under way of them will not be acknowledged, and is no loss either.
        for (piece, _) in self.sent.overlapping(chunks) {
            self.sent.forget(piece.start.0);
        }
    }

    /// Forgets everything that was asked for.
    pub(super) fn drop_requests(&mut self) {
        for lane in &mut self.lanes {
            *lane = Lane::default();
        }
        self.read_bytes = 0;
    }

    /// Whether the peer is told to ask for nothing.
    pub(super) fn is_choked(&self, now: Instant) -> bool {
        self.choked_until.is_some_and(|until| until > now)
    }

    /// Ends a choke that has lasted long enough; otherwise says when it will.
    pub(super) fn choked_until(&mut self, now: Instant) -> Option<Instant> {
        if self.choked_until.is_some_and(|until| until <= now) {
            self.choked_until = None;
            self.choke = Some(false);
        }
        self.choked_until
    }

    /// What is to be sent next, if anything is ready.
    pub(super) fn ready(&self) -> Option<Urgency> {
        Urgency::ALL.into_iter().find(|urgency| {
            let front = self.lanes[urgency.index()].reads.front();
            front.is_some_and(|read| matches!(read.state, ReadState::Ready(_)))
        })
    }

    /// Bytes read or being read for this peer.
    pub(super) fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// Whether something is asked for that is not being read.
    pub(super) fn has_unread(&self) -> bool {
        self.lanes.iter().any(|lane| {
            !lane.asked.is_empty()
                || lane.reads.iter().any(|read| matches!(read.state, ReadState::Wanted))
        })
    }

    /// The next bin to read, within `budget` bytes for each class; what is not `held` becomes a MISS.
    /// RFC 7574 3.7: requests SHOULD be served in the order in which they came.
    pub(super) fn next_read(
        &mut self,
        held: &IntervalSet,
        budget: [u64; 2],
        id: DiskId,
    ) -> Option<Bin> {
        let window = self.controller.window_bytes(true);
        let ahead = (window * 2).clamp(READ_AHEAD_MIN, READ_BYTES_PER_CHANNEL_MAX);
        for urgency in Urgency::ALL {
            let lane = &mut self.lanes[urgency.index()];
            if let Some(read) =
                lane.reads.iter_mut().find(|read| matches!(read.state, ReadState::Wanted))
            {
                read.state = ReadState::Reading(id);
                return Some(read.bin);
            }
            // A waited run is read even if background data fills the read-ahead.
            let (extra, budget) = match urgency {
                Urgency::Again => (2 * WAITED_AHEAD, budget[0]),
                Urgency::Waited => (WAITED_AHEAD, budget[0]),
                Urgency::Background => (0, budget[1]),
            };
            let room = (ahead + extra).saturating_sub(self.read_bytes).min(budget);
            let Some((bin, chunks)) = lane.cut(held, room, &mut self.misses) else { continue };
            let again = self.known.sent_before(bin);
            let (next, state) = (chunks.start.0, ReadState::Reading(id));
            lane.reads.push_back(Read { bin, chunks, next, again, state });
            self.read_bytes += chunks.count() * CHUNK_BYTES;
            return Some(bin);
        }
        None
    }

    /// What was sent before `since` and is not acknowledged is lost.
    pub(super) fn expire(&mut self, now: Instant, since: Instant) {
        if self.sent.expire(since) {
            self.losses += 1;
            self.controller.on_timeout(now);
        }
    }

    /// An ACK (RFC 7574 §12.6.4: it counts only for what was sent). Whether it did.
    pub(super) fn on_ack(&mut self, now: Instant, chunks: ChunkRange, delay_us: u64) -> Acked {
        let in_flight = self.sent.in_flight();
        let acked = self.sent.acknowledge(now, chunks);
        if acked.bytes > 0 {
            // A retransmission gives no sample: nobody knows which copy is acknowledged.
            let (bytes, rtt) = (acked.bytes, acked.rtt);
            let delay_us = rtt.map(|_| delay_us);
            self.controller.on_ack(now, congestion::Acked { bytes, in_flight, rtt, delay_us });
        }
        acked
    }

    /// Bytes that may go out now, in data of `class`. A piece that was begun is always finished:
    /// only whole pieces are acknowledged, so that a window smaller than one would wait for ever.
    pub(super) fn allowance(&mut self, now: Instant, urgency: Urgency) -> u64 {
        let waited = urgency != Urgency::Background;
        // A window that is full of what waits for a lost chunk must not hold that chunk up: what is
        // sent again is only paced.
        let in_flight = if urgency == Urgency::Again { 0 } else { self.sent.in_flight() };
        let allowed = self.controller.allowance(now, in_flight, waited);
        self.paced_until = None;
        if allowed >= congestion::SEGMENT_BYTES {
            return allowed;
        }
        let begun = self.lanes[urgency.index()].begun() * congestion::SEGMENT_BYTES;
        if begun == 0 && self.controller.window_bytes(waited) > in_flight {
            self.paced_until = self.controller.paced_until(now, PACED_BYTES);
        }
        begun
    }

    /// Blocks `start..end` are not delivered, nor fetched; beyond the bound, silence says so.
    pub(super) fn miss(&mut self, start: u64, end: u64) {
        if self.misses.len() < MISSES_MAX {
            self.misses.extend(ChunkRange::new(start << BLOCK_LAYER, end << BLOCK_LAYER));
        }
    }

    /// The disk's answer. A large bin that is not there whole is tried granule by granule; a small
    /// one is a MISS.
    pub(super) fn on_disk(&mut self, id: DiskId, run: Option<StoredRun>) {
        for lane in &mut self.lanes {
            let reading = |read: &Read| matches!(read.state, ReadState::Reading(at) if at == id);
            let Some(at) = lane.reads.iter().position(reading) else { continue };
            let bin = lane.reads[at].bin;
            if let Some(run) = run.filter(|run| run.bin() == bin) {
                lane.reads[at].state = ReadState::Ready(Box::new(run));
                return;
            }
            let Some(gone) = lane.reads.remove(at) else { return };
            if bin.layer() <= GRANULE_LAYER {
                self.read_bytes -= gone.bytes();
                if self.misses.len() < MISSES_MAX {
                    self.misses.push(gone.chunks);
                }
                return;
            }
            let granules = 1 << (bin.layer() - GRANULE_LAYER);
            for i in (0..granules).rev() {
                let bin = Bin::new(GRANULE_LAYER, bin.offset() * granules + i);
                let (chunks, state) = (bin.chunks(), ReadState::Wanted);
                let (next, again) = (chunks.start.0, gone.again);
                lane.reads.insert(at, Read { bin, chunks, next, again, state });
            }
            return;
        }
    }

    /// Whether background data waits for more, so that it goes out in whole batches: each costs both
    /// sides the same, however little it holds. Only while so much is under way that an
    /// acknowledgement will come and let it go.
    pub(super) fn holds_back(&self, urgency: Urgency) -> bool {
        let in_flight = self.sent.in_flight();
        if urgency != Urgency::Background || in_flight < HOLD_BYTES {
            return false;
        }
        let batch = (BATCH_SEGMENTS * DATA_DATAGRAM_BYTES) as u64;
        let window_left = self.controller.window_bytes(false).saturating_sub(in_flight);
        window_left < batch || self.lanes[urgency.index()].will_have_more()
    }

    /// Builds the next batch of this urgency, within `allowed` bytes.
    pub(super) fn fill(
        &mut self,
        now: Instant,
        urgency: Urgency,
        allowed: u64,
        remote: ChannelId,
        timestamp_us: u64,
    ) -> Batch {
        let mut batch = Batch::default();
        let mut proofs = Writer::new(remote);
        let lane = &mut self.lanes[urgency.index()];
        let mut left = lane.whole_pieces((allowed / DATA_DATAGRAM_BYTES as u64) as usize);
        while left > 0 && self.sent.len() < SENT_RUNS_MAX {
            let Some(read) = lane.reads.front_mut() else { break };
            let ReadState::Ready(run) = &read.state else { break };
            let granule = Bin::new(0, read.next).ancestor(GRANULE_LAYER);
            let piece = if read.bin.layer() > GRANULE_LAYER { granule } else { read.bin };
            let Some(chunks) = piece.chunks().intersection(read.chunks) else { break };
            if read.next == read.chunks.start.0 {
                // The hashes of all that was read go ahead of it together: a datagram of their own
                // for each batch would be every second one.
                for piece in read.pieces() {
                    let proof = self.known.prove(run, piece);
                    if proof.munro {
                        proofs.munro(run.munro());
                    }
                    for (bin, hash) in &proof.uncles {
                        proofs.push(&Message::Integrity { chunks: bin.chunks(), hash: &hash.0 });
                    }
                }
            }
            if read.next == chunks.start.0 {
                self.sent.push(now, chunks, read.again);
            }
            if batch.data.capacity() == 0 {
                let whole = read.chunks.end.0 - read.next;
                let more = if lane.reads.len() > 1 { left } else { left.min(whole as usize) };
                batch.data.reserve_exact(more * DATA_DATAGRAM_BYTES);
            }
            let Some(read) = lane.reads.front_mut() else { break };
            let ReadState::Ready(run) = &read.state else { break };
            let end = chunks.end.0.min(read.next + left as u64);
            let count = (end - read.next) as usize;
            left -= count;
            self.sent.add(chunks.start.0, (count * DATA_DATAGRAM_BYTES) as u64);
            let base = read.bin.chunks().start.0;
            let at = ((read.next - base) * CHUNK_BYTES) as usize;
            let (payloads, _) = run.bytes()[at..].as_chunks::<{ CHUNK_BYTES as usize }>();
            for (chunk, payload) in (read.next..end).zip(payloads) {
                write_data(&mut batch.data, remote, chunk, timestamp_us, payload);
            }
            read.next = end;
            if end == read.chunks.end.0 {
                self.read_bytes -= read.bytes();
                lane.reads.pop_front();
            }
        }
        batch.proofs = proofs.finish();
        let bytes = batch.data.len() + batch.proofs.iter().map(Vec::len).sum::<usize>();
        self.controller.on_sent(now, bytes as u64, urgency == Urgency::Waited);
        batch
    }
}

/// One datagram with one chunk (RFC 7574 §8.6), as [`Message::Data`] encodes it, without its checks:
/// this is most of what a sender does.
fn write_data(
    out: &mut Vec<u8>,
    remote: ChannelId,
    chunk: u64,
    timestamp_us: u64,
    payload: &[u8; CHUNK_BYTES as usize],
) {
    let mut head = [0; DATA_DATAGRAM_BYTES - CHUNK_BYTES as usize];
    head[..4].copy_from_slice(&remote.0.to_be_bytes());
    head[4] = MessageType::Data.code();
    head[5..13].copy_from_slice(&chunk.to_be_bytes());
    head[13..21].copy_from_slice(&chunk.to_be_bytes());
    head[21..].copy_from_slice(&timestamp_us.to_be_bytes());
    out.extend_from_slice(&head);
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ppspp::codec::WireProfile;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn data_is_written_as_the_codec_writes_it(
            remote: u32, chunk in 0u64..1 << 50, timestamp_us: u64, byte: u8,
        ) {
            let payload = [byte; CHUNK_BYTES as usize];
            let mut fast = Vec::new();
            write_data(&mut fast, ChannelId(remote), chunk, timestamp_us, &payload);
            let mut plain = remote.to_be_bytes().to_vec();
            let chunks = ChunkRange::new(chunk, chunk + 1).expect("one");
            Message::Data { chunks, timestamp_us, payload: &payload }
                .encode(&WireProfile::LIVE, &mut plain)
                .expect("a chunk");
            prop_assert_eq!(fast, plain);
        }
    }
}
