//! What was sent to a peer and is not acknowledged: pieces of a granule at most.
//!
//! An ACK counts only for what was sent (RFC 7574 §12.6.4): honest ACKs name the biggest interval
//! that the peer holds, other senders' chunks included.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::limits::GRANULE_LAYER;
use crate::unit::ChunkRange;

use super::limits::DATA_DATAGRAM_BYTES;

/// A piece that is under way.
#[derive(Clone, Copy, Debug)]
struct Piece {
    end: u64,
    /// Of what went out of it and is not acknowledged.
    bytes: u64,
    /// Its chunks that are acknowledged, as bits: we acknowledge runs, others may do so chunk by chunk.
    acked: u32,
    sent_at: Instant,
    /// Sent before: its ACK gives no sample of the round-trip time.
    again: bool,
}

/// What an ACK acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Acked {
    pub(super) bytes: u64,
    /// Round-trip time of the newest piece that was sent once.
    pub(super) rtt: Option<Duration>,
}

/// The pieces under way.
#[derive(Debug, Default)]
pub(super) struct Sent {
    pieces: BTreeMap<u64, Piece>,
    /// In order of sending; entries whose piece is gone are skipped.
    order: VecDeque<(Instant, u64)>,
    in_flight: u64,
}

impl Sent {
    /// Bytes under way.
    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Pieces under way.
    pub(super) fn len(&self) -> usize {
        self.pieces.len()
    }

    /// The first of `chunks` go out now; [`Self::add`] counts the bytes as they go.
    pub(super) fn push(&mut self, now: Instant, chunks: ChunkRange, again: bool) {
        let piece = Piece { end: chunks.end.0, bytes: 0, acked: 0, sent_at: now, again };
        if let Some(before) = self.pieces.insert(chunks.start.0, piece) {
            self.in_flight -= before.bytes;
        }
        // Acknowledged entries leave here, so that the queue stays as short as the table.
        while let Some((at, first)) = self.order.front()
            && self.pieces.get(first).is_none_or(|piece| piece.sent_at != *at)
        {
            self.order.pop_front();
        }
        self.order.push_back((now, chunks.start.0));
    }

    /// `bytes` more of the piece that begins with chunk `first` went out.
    pub(super) fn add(&mut self, first: u64, bytes: u64) {
        if let Some(piece) = self.pieces.get_mut(&first) {
            piece.bytes += bytes;
            self.in_flight += bytes;
        }
    }

    /// An ACK of `chunks`: pieces of which all chunks are acknowledged are no longer under way.
    pub(super) fn acknowledge(&mut self, now: Instant, chunks: ChunkRange) -> Acked {
        let mut acked = Acked::default();
        let mut newest = None;
        let mut whole = Vec::new();
        let granule = 1 << GRANULE_LAYER;
        let from = chunks.start.0 - chunks.start.0 % granule;
        for (first, piece) in self.pieces.range_mut(from..chunks.end.0) {
            let Some(part) =
                ChunkRange::new(*first, piece.end).and_then(|p| p.intersection(chunks))
            else {
                continue;
            };
            let bits = (1u32 << part.count()) - 1;
            let new = (bits << (part.start.0 - first)) & !piece.acked;
            piece.acked |= new;
            let is_whole = u64::from(piece.acked.count_ones()) == piece.end - first;
            let bytes = u64::from(new.count_ones()) * DATA_DATAGRAM_BYTES as u64;
            let bytes = if is_whole { piece.bytes } else { bytes.min(piece.bytes) };
            piece.bytes -= bytes;
            self.in_flight -= bytes;
            acked.bytes += bytes;
            if is_whole {
                whole.push(*first);
            }
            if new != 0 && !piece.again && newest.is_none_or(|newest| newest < piece.sent_at) {
                newest = Some(piece.sent_at);
            }
        }
        for first in whole {
            self.pieces.remove(&first);
        }
        acked.rtt = newest.map(|sent_at| now.saturating_duration_since(sent_at));
        acked
    }

    /// Pieces under way that overlap `chunks`, and when they were sent.
    pub(super) fn overlapping(&self, chunks: ChunkRange) -> Vec<(ChunkRange, Instant)> {
        let granule = 1 << GRANULE_LAYER;
        let from = chunks.start.0 - chunks.start.0 % granule;
        let pieces = self.pieces.range(from..chunks.end.0);
        pieces
            .filter(|(_, piece)| piece.end > chunks.start.0)
            .filter_map(|(first, piece)| Some((ChunkRange::new(*first, piece.end)?, piece.sent_at)))
            .collect()
    }

    /// The piece that begins with chunk `first` is no longer under way: it was lost, or is no longer
    /// wanted.
    pub(super) fn forget(&mut self, first: u64) {
        if let Some(piece) = self.pieces.remove(&first) {
            self.in_flight -= piece.bytes;
        }
    }

    /// Gives up pieces that were sent before `since`; whether there were any.
    pub(super) fn expire(&mut self, since: Instant) -> bool {
        let mut expired = false;
        while let Some((at, first)) = self.order.front().copied() {
            let gone = self.pieces.get(&first).is_none_or(|piece| piece.sent_at != at);
            if !gone && at > since {
                break;
            }
            self.order.pop_front();
            if !gone {
                self.forget(first);
                expired = true;
            }
        }
        expired
    }

    /// When the oldest piece was sent.
    pub(super) fn oldest(&self) -> Option<Instant> {
        if self.pieces.is_empty() { None } else { self.order.front().map(|(at, _)| *at) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ack_counts_once_whether_of_runs_or_of_single_chunks() {
        let now = Instant::now();
        let chunks = |start, end| ChunkRange::new(start, end).expect("not empty");
        let mut sent = Sent::default();
        let size = DATA_DATAGRAM_BYTES as u64;
        for first in [0, 16] {
            sent.push(now, chunks(first, first + 16), false);
            sent.add(first, 16 * size);
        }
        for chunk in 0..16 {
            let acked = sent.acknowledge(now, chunks(chunk, chunk + 1));
            assert_eq!((acked.bytes, acked.rtt.is_some()), (size, true));
            // The biggest interval that is there (RFC 7574 4.3.2) names the same again.
            assert_eq!(sent.acknowledge(now, chunks(0, chunk + 1)), Acked::default());
        }
        assert_eq!((sent.len(), sent.in_flight()), (1, 16 * size));
        assert_eq!(sent.acknowledge(now, chunks(8, 20)).bytes, 4 * size);
        assert_eq!(sent.acknowledge(now, chunks(0, 1 << 40)).bytes, 12 * size);
        assert_eq!((sent.len(), sent.in_flight()), (0, 0));
    }
}
