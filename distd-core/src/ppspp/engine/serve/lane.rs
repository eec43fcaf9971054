//! What a peer asked for in one class, and what is read of it.

use std::collections::VecDeque;

use crate::limits::{BLOCK_LAYER, CHUNK_BYTES, GRANULE_LAYER, MUNRO_LAYER};
use crate::ppspp::engine::asked::Asked;
use crate::ppspp::engine::event::DiskId;
use crate::ppspp::engine::interval::IntervalSet;
use crate::ppspp::engine::limits::{BATCH_SEGMENTS, MISSES_MAX, READ_LAYER_MAX};
use crate::tree::StoredRun;
use crate::unit::{Bin, ChunkRange};

use super::READ_AHEAD_MIN;

/// What was asked for in one class.
#[derive(Debug, Default)]
pub(super) struct Lane {
    /// Chunks asked for and not yet being read.
    pub(super) asked: Asked,
    pub(super) reads: VecDeque<Read>,
}

#[derive(Debug)]
pub(super) struct Read {
    pub(super) bin: Bin,
    /// The chunks that were asked for, within `bin`.
    pub(super) chunks: ChunkRange,
    /// The next chunk to send.
    pub(super) next: u64,
    /// It was sent before.
    pub(super) again: bool,
    pub(super) state: ReadState,
}

impl Read {
    pub(super) fn bytes(&self) -> u64 {
        self.chunks.count() * CHUNK_BYTES
    }

    /// What is proved apart: all of it if all was asked for, else each granule that was, or the run
    /// itself if it is smaller than one.
    pub(super) fn pieces(&self) -> impl Iterator<Item = Bin> + use<> {
        let whole = self.chunks == self.bin.chunks();
        let layer = self.bin.layer().min(if whole { MUNRO_LAYER } else { GRANULE_LAYER });
        let (first, last) = (self.chunks.start.0 >> layer, (self.chunks.end.0 - 1) >> layer);
        (first..=last).map(move |offset| Bin::new(layer, offset))
    }

    /// What is read of the granules that `chunks` touch and no datagram was sent of.
    pub(super) fn pending(&self, chunks: ChunkRange) -> Option<ChunkRange> {
        if !matches!(self.state, ReadState::Ready(_)) {
            return None;
        }
        let granule = 1 << GRANULE_LAYER;
        let begun = self.next > self.chunks.start.0;
        let from = if begun { self.next.next_multiple_of(granule) } else { self.next };
        let start = from.max(chunks.start.0 / granule * granule);
        let end = self.chunks.end.0.min(chunks.end.0.next_multiple_of(granule));
        ChunkRange::new(start, end)
    }

    /// The same read for a part of its chunks; `None` if nothing is left to send of it.
    pub(super) fn part(&self, start: u64, next: u64, end: u64) -> Option<Self> {
        let ReadState::Ready(run) = &self.state else { return None };
        ChunkRange::new(next, end)?;
        let chunks = ChunkRange::new(start, end)?;
        let state = ReadState::Ready(run.clone());
        Some(Self { bin: self.bin, chunks, next, again: self.again, state })
    }
}

#[derive(Debug)]
pub(super) enum ReadState {
    Wanted,
    Reading(DiskId),
    Ready(Box<StoredRun>),
}

impl Lane {
    /// How many of `allowed` datagrams to send at once: to the end of a piece, if that is among them.
    pub(super) fn whole_pieces(&self, allowed: usize) -> usize {
        let (granule, begun) = (1 << GRANULE_LAYER, self.begun() as usize);
        let most = allowed.min(BATCH_SEGMENTS);
        if most < begun + granule { most } else { begun + (most - begun) / granule * granule }
    }

    /// Whether less than a batch is read, and more is being read or will be.
    pub(super) fn will_have_more(&self) -> bool {
        let mut ready = 0;
        for read in &self.reads {
            if !matches!(read.state, ReadState::Ready(_)) {
                return true;
            }
            ready += (read.chunks.end.0 - read.next) as usize;
            if ready >= BATCH_SEGMENTS {
                return false;
            }
        }
        !self.asked.is_empty()
    }

    /// Chunks that are left of the piece in front, if some of it was sent.
    pub(super) fn begun(&self) -> u64 {
        let Some(read) = self.reads.front() else { return 0 };
        let granule = Bin::new(0, read.next).ancestor(GRANULE_LAYER).chunks();
        let begun = read.next > read.chunks.start.0.max(granule.start.0);
        if begun { read.chunks.end.0.min(granule.end.0) - read.next } else { 0 }
    }

    /// Takes a bin of at most `room` bytes off the front, with the chunks of it that are wanted.
    pub(super) fn cut(
        &mut self,
        held: &IntervalSet,
        room: u64,
        misses: &mut Vec<ChunkRange>,
    ) -> Option<(Bin, ChunkRange)> {
        loop {
            let front = self.asked.front()?;
            let (start, end) = (front.start.0, front.end.0);
            let block = start >> BLOCK_LAYER;
            let Some((_, held_until)) = held.covering(block) else {
                let last = end.div_ceil(1 << BLOCK_LAYER);
                let next = held.first_within(block, last).map_or(last, |(next, _)| next);
                let missing = ChunkRange::new(start, end.min(next << BLOCK_LAYER))?;
                self.asked.forget(missing);
                if misses.len() < MISSES_MAX {
                    misses.push(missing);
                }
                continue;
            };
            let end = end.min(held_until << BLOCK_LAYER);
            let fits = |layer: u32| start.is_multiple_of(1 << layer) && start + (1 << layer) <= end;
            // Short of room it reads less at once, but no crumbs: it waits for the room of a least read.
            let bytes = |layer: u32| CHUNK_BYTES << layer;
            let layer = (BLOCK_LAYER..=READ_LAYER_MAX)
                .rev()
                .filter(|layer| bytes(*layer) <= room.max(READ_AHEAD_MIN))
                .find(|layer| fits(*layer))
                .unwrap_or(BLOCK_LAYER);
            if bytes(layer) > room {
                return None;
            }
            let bin = Bin::new(layer, start >> layer);
            let chunks = ChunkRange::new(start, end.min(bin.chunks().end.0))?;
            self.asked.forget(chunks);
            return Some((bin, chunks));
        }
    }
}
