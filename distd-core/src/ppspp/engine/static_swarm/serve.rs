//! Serving one peer: what it asked for, what it knows of the tree, what goes out next.
//!
//! The hashes that a chunk needs go with it in its datagram (RFC 7574 §5.3), or in one before where there
//! is no room. What was sent is taken for known until the peer asks for it again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::congestion::{self, Controller};
use crate::limits::{CHUNK_BYTES, DATAGRAM_BYTES_MAX};
use crate::ppspp::codec::{ChannelId, Encoder, Message, WireProfile};
use crate::tree::merkle::{BranchHashes, BranchIndex, ContentShape, MerkleHash, MerkleTree};
use crate::unit::{Bin, ChunkRange};

use super::super::Transmit;
use super::super::asked::Asked;
use super::super::interval::IntervalSet;
use super::super::limits::{AVAILABILITY_SPANS_MAX, BATCH_SEGMENTS, CHOKE};
use super::super::sent::Sent;
use super::limits::{REQUESTED_CHUNKS_MAX, REQUESTED_RANGES_MAX, SENT_CHUNKS_MAX};

/// Least that goes out of a peer's queue where pacing holds it up.
const PACED_BYTES: u64 = 4 * congestion::SEGMENT_BYTES;
/// Least time that a chunk stays unacknowledged before it counts as lost.
const SENT_LIFE_MIN: Duration = Duration::from_millis(500);
/// How much later a chunk must have been sent than one that is acknowledged to count as reordered only.
const REORDERING_MIN: Duration = Duration::from_millis(2);

/// A branch to be served: its bytes, and the hashes that they have.
#[derive(Debug)]
pub(super) struct Shelved {
    pub(super) bytes: Bytes,
    pub(super) hashes: BranchHashes,
}

impl Shelved {
    fn chunk(&self, chunk: u64) -> Option<&[u8]> {
        let first = self.hashes.branch().first_chunk();
        let start = (chunk.checked_sub(first)? * CHUNK_BYTES) as usize;
        let end = self.bytes.len().min(start + CHUNK_BYTES as usize);
        self.bytes.get(start..end).filter(|bytes| !bytes.is_empty())
    }
}

/// A peer that is served.
#[derive(Debug)]
pub(super) struct Serve {
    pub(super) asked: Asked,
    /// Chunks that it acknowledged or has: it knows the hashes above them.
    known: IntervalSet,
    /// Chunks that were sent since it last asked for something again.
    sent_of_late: IntervalSet,
    /// Chunks to be sent a second time: their ACK gives no round-trip time.
    repeated: IntervalSet,
    sent: Sent,
    pub(super) controller: Controller,
    pub(super) paced_until: Option<Instant>,
    /// The branch that is being sent.
    branch: Option<Arc<Shelved>>,
    /// CHOKE (`true`) or UNCHOKE is to be said.
    pub(super) choke: Option<bool>,
    choked_until: Option<Instant>,
    pub(super) data_sent_bytes: u64,
}

/// Datagrams on their way out, those of equal length together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) payload: Vec<u8>,
    segment: usize,
    count: usize,
    /// A shorter one ends a batch.
    closed: bool,
}

impl Batch {
    /// Adds a datagram; `false` if it needs a batch of its own.
    fn push(&mut self, datagram: &[u8]) -> bool {
        let first = self.count == 0;
        if !first && (self.closed || datagram.len() > self.segment || self.count >= BATCH_SEGMENTS)
        {
            return false;
        }
        if first {
            self.segment = datagram.len();
        }
        self.closed = datagram.len() < self.segment;
        self.count += 1;
        self.payload.extend_from_slice(datagram);
        true
    }

    pub(super) fn transmit(self, to: std::net::SocketAddr) -> Transmit {
        let segment_bytes = (self.count > 1).then_some(self.segment);
        Transmit { to, payload: self.payload, segment_bytes }
    }
}

/// What is needed to write a peer's datagrams.
pub(super) struct Writing<'a> {
    pub(super) now: Instant,
    pub(super) remote: ChannelId,
    pub(super) profile: &'a WireProfile,
    pub(super) tree: &'a MerkleTree,
    pub(super) timestamp_us: u64,
}

impl Serve {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            asked: Asked::default(),
            known: IntervalSet::default(),
            sent_of_late: IntervalSet::default(),
            repeated: IntervalSet::default(),
            sent: Sent::default(),
            controller: Controller::new(now),
            paced_until: None,
            branch: None,
            choke: None,
            choked_until: None,
            data_sent_bytes: 0,
        }
    }

    /// A REQUEST for chunks that are held, of which as many are taken as there is room for: what is left
    /// will be asked for again. Who asks for crumbs is choked, and its queue dropped (RFC 7574 §3.9).
    /// `round_trip` is the least that the path takes.
    pub(super) fn on_request(&mut self, now: Instant, chunks: ChunkRange, round_trip: Duration) {
        let mut wanted = IntervalSet::default();
        wanted.insert(chunks.start.0, chunks.end.0);
        let mut again = false;
        for (piece, sent_at) in self.sent.overlapping(chunks) {
            // Whoever asks could not know yet that it was coming.
            if now.saturating_duration_since(sent_at) < round_trip {
                wanted.remove(piece.start.0, piece.end.0);
                continue;
            }
            self.sent.forget(piece.start.0);
            self.repeated.insert(piece.start.0, piece.end.0);
            self.controller.on_loss(now, sent_at, congestion::SEGMENT_BYTES);
            again = true;
        }
        let late = &self.sent_of_late;
        if again || wanted.iter().any(|(start, end)| late.first_within(start, end).is_some()) {
            // The hashes that were sent may be what was lost.
            self.sent_of_late = IntervalSet::default();
        }
        for (start, end) in wanted.iter() {
            let room = REQUESTED_CHUNKS_MAX.saturating_sub(self.asked.chunks());
            let Some(chunks) = ChunkRange::new(start, end.min(start + room)) else { break };
            self.asked.push(chunks);
        }
        if self.asked.ranges() > REQUESTED_RANGES_MAX {
            self.asked = Asked::default();
            self.repeated = IntervalSet::default();
            self.choked_until = Some(now + CHOKE);
            self.choke = Some(true);
        }
    }

    /// Whether it is told to ask for nothing: RFC 7574 12.6.8: it is told so again.
    pub(super) fn refuses(&mut self) -> bool {
        if self.choked_until.is_some() {
            self.choke = Some(true);
        }
        self.choked_until.is_some()
    }

    /// CANCEL, or a HAVE, which is one too: RFC 7574 3.8. An unknown one is ignored.
    pub(super) fn on_cancel(&mut self, chunks: ChunkRange) {
        self.asked.forget(chunks);
        self.repeated.remove(chunks.start.0, chunks.end.0);
        for (piece, _) in self.sent.overlapping(chunks) {
            // It will not be acknowledged, and is no loss either.
            self.sent.forget(piece.start.0);
        }
    }

    /// It has verified these chunks.
    pub(super) fn on_known(&mut self, chunks: ChunkRange) {
        self.known.insert(chunks.start.0, chunks.end.0);
        while self.known.len() > AVAILABILITY_SPANS_MAX {
            let Some((start, end)) = self.known.first() else { break };
            self.known.remove(start, end);
        }
    }

    /// An ACK: RFC 7574 12.6.4: it counts only for what was sent. Gives the round-trip time.
    pub(super) fn on_ack(
        &mut self,
        now: Instant,
        chunks: ChunkRange,
        delay_us: u64,
    ) -> Option<Duration> {
        let in_flight = self.sent.in_flight();
        let acked = self.sent.acknowledge(now, chunks);
        self.on_known(chunks);
        if acked.bytes == 0 {
            return None;
        }
        let (bytes, rtt) = (acked.bytes, acked.rtt);
        let delay_us = rtt.map(|_| delay_us);
        self.controller.on_ack(now, congestion::Acked { bytes, in_flight, rtt, delay_us });
        // What was sent well before something that arrived has not.
        let slack = (self.controller.rtt().smoothed() / 4).max(REORDERING_MIN);
        if let Some(newest) = rtt.and_then(|rtt| now.checked_sub(rtt + slack)) {
            let (before, oldest) = (self.sent.in_flight(), self.sent.oldest());
            if self.sent.expire(newest)
                && let Some(oldest) = oldest
            {
                self.controller.on_loss(now, oldest, before - self.sent.in_flight());
            }
        }
        rtt
    }

    /// Time has passed: ends chokes, and gives up what was sent too long ago.
    pub(super) fn on_time(&mut self, now: Instant) {
        if self.choked_until.is_some_and(|until| until <= now) {
            self.choked_until = None;
            self.choke = Some(false);
        }
        if self.paced_until.is_some_and(|at| at <= now) {
            self.paced_until = None;
        }
        if let Some(since) = now.checked_sub(self.sent_life())
            && self.sent.expire(since)
        {
            self.controller.on_timeout(now);
        }
    }

    fn sent_life(&self) -> Duration {
        (self.controller.rtt().smoothed() * 8).max(SENT_LIFE_MIN)
    }

    /// When [`Self::on_time`] has something to do.
    pub(super) fn due_at(&self) -> Option<Instant> {
        let expires = self.sent.oldest().map(|at| at + self.sent_life());
        [self.choked_until, self.paced_until, expires].into_iter().flatten().min()
    }

    /// The branch that must be read before more can be sent, if it is not the one here.
    pub(super) fn lacks_branch(&mut self) -> Option<BranchIndex> {
        let branch = BranchIndex::of(self.asked.front()?.start.0);
        let here = self.branch.as_ref().is_some_and(|here| here.hashes.branch() == branch);
        (!here).then_some(branch)
    }

    pub(super) fn provide(&mut self, branch: Arc<Shelved>) {
        self.branch = Some(branch);
    }

    /// Bytes that may go out now.
    pub(super) fn allowance(&mut self, now: Instant) -> u64 {
        if self.asked.is_empty() || self.paced_until.is_some_and(|at| at > now) {
            return 0;
        }
        let in_flight = self.sent.in_flight();
        // RFC 7574 8: MUST use LEDBAT: nobody waits for a single chunk of a static swarm.
        let allowed = self.controller.allowance(now, in_flight, false);
        self.paced_until = None;
        if allowed < congestion::SEGMENT_BYTES && self.controller.window_bytes(false) > in_flight {
            self.paced_until = self.controller.paced_until(now, PACED_BYTES);
        }
        allowed
    }

    /// Writes the next chunks, as far as they are of the branch here.
    pub(super) fn fill(&mut self, writing: &Writing<'_>, allowed: u64) -> Vec<Batch> {
        let mut batches: Vec<Batch> = Vec::new();
        let mut left = allowed;
        let mut datagrams = 0;
        while left >= congestion::SEGMENT_BYTES
            && datagrams < BATCH_SEGMENTS
            && self.sent.len() < SENT_CHUNKS_MAX
        {
            let (Some(front), Some(shelved)) = (self.asked.front(), self.branch.clone()) else {
                break;
            };
            let chunk = front.start.0;
            let Some(one) = ChunkRange::new(chunk, chunk + 1) else { break };
            if BranchIndex::of(chunk) != shelved.hashes.branch() {
                break;
            }
            self.asked.forget(one);
            let Some(payload) = shelved.chunk(chunk) else { continue };
            let again = self.repeated.contains(chunk, chunk + 1);
            self.repeated.remove(chunk, chunk + 1);
            let proof = self.proof(writing.tree, &shelved.hashes, chunk);
            self.sent.push(writing.now, one, again);
            let data = Message::Data { chunks: one, timestamp_us: writing.timestamp_us, payload };
            let mut bytes = 0;
            for datagram in pack(writing, &proof, &data) {
                bytes += datagram.len() as u64;
                if !batches.last_mut().is_some_and(|batch| batch.push(&datagram)) {
                    let mut batch = Batch::default();
                    batch.push(&datagram);
                    batches.push(batch);
                }
                datagrams += 1;
            }
            self.sent.add(chunk, bytes);
            self.sent_of_late.insert(chunk, chunk + 1);
            // Who asks for crumbs gets hashes a second time rather than fill this.
            if self.sent_of_late.len() > AVAILABILITY_SPANS_MAX {
                self.sent_of_late = IntervalSet::default();
            }
            self.data_sent_bytes += payload.len() as u64;
            left = left.saturating_sub(bytes);
        }
        if left < allowed {
            self.controller.on_sent(writing.now, allowed - left, false);
        }
        batches
    }

    /// The hashes that the peer lacks to verify a chunk: RFC 7574 5.2, 5.3: the sender MUST include what
    /// it believes is needed. RFC 7574 5.6.2: all peaks first, until it has acknowledged any chunk. RFC
    /// 7574 5.4: then the uncles, tallest first.
    fn proof(
        &self,
        tree: &MerkleTree,
        hashes: &BranchHashes,
        chunk: u64,
    ) -> Vec<(Bin, MerkleHash)> {
        let shape = tree.shape();
        let hash = |bin: Bin| hashes.node(bin).or_else(|| tree.node(bin)).map(|hash| (bin, hash));
        let peaks = shape.peaks();
        let mut uncles = Vec::new();
        let mut at = Bin::new(0, chunk);
        while !peaks.contains(&at) && !self.knows(shape, at.parent()) {
            uncles.extend(hash(at.sibling()));
            at = at.parent();
        }
        uncles.reverse();
        let knows_peaks = !self.known.is_empty() || !self.sent_of_late.is_empty();
        let peaks = if knows_peaks { Vec::new() } else { peaks };
        peaks.into_iter().filter_map(hash).chain(uncles).collect()
    }

    /// Whether the peer has verified, or was sent of late, some chunk below a node: then it knows both of
    /// the node's children.
    fn knows(&self, shape: ContentShape, bin: Bin) -> bool {
        let (start, end) = (bin.chunks().start.0, bin.chunks().end.0.min(shape.chunks()));
        [&self.known, &self.sent_of_late].iter().any(|set| set.first_within(start, end).is_some())
    }
}

/// The datagrams of one chunk: hashes that find no room beside it go before it (RFC 7574 §5.3).
fn pack(writing: &Writing<'_>, proof: &[(Bin, MerkleHash)], data: &Message<'_>) -> Vec<Vec<u8>> {
    let function = writing.tree.id().function;
    let needed = data.encoded_len(writing.profile);
    let integrity: Vec<Message<'_>> = proof
        .iter()
        .map(|(bin, hash)| Message::Integrity {
            chunks: bin.chunks(),
            hash: hash.as_bytes(function),
        })
        .collect();
    let each = integrity.first().map_or(1, |message| message.encoded_len(writing.profile));
    let beside = DATAGRAM_BYTES_MAX.saturating_sub(4 + needed) / each;
    let (before, with) = integrity.split_at(integrity.len().saturating_sub(beside));
    let mut datagrams = Vec::with_capacity(2);
    let mut write = |messages: &mut dyn Iterator<Item = &Message<'_>>| {
        let mut datagram = Vec::with_capacity(DATAGRAM_BYTES_MAX);
        let (remote, profile) = (writing.remote, writing.profile);
        let mut encoder = Encoder::new(&mut datagram, remote, profile, DATAGRAM_BYTES_MAX);
        for message in messages {
            let written = encoder.push(message);
            assert!(written.is_ok(), "a chunk and its hashes fit: {written:?}");
        }
        datagrams.push(datagram);
    };
    for part in before.chunks((DATAGRAM_BYTES_MAX - 4) / each) {
        write(&mut part.iter());
    }
    write(&mut with.iter().chain([data]));
    datagrams
}
