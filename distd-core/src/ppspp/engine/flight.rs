//! A run on its way from one peer, its place in that peer's order of service, and how fast the peer
//! delivers.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::limits::{CHUNK_BYTES, GRANULE_LAYER};
use crate::tree::HashedRun;
use crate::unit::{Bin, ChunkRange};

use super::event::Class;
use super::rtt::Rtt;

const CHUNK: usize = CHUNK_BYTES as usize;

/// A run asked of one peer.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) bin: Bin,
    pub(super) class: Class,
    /// When nobody wants it any more.
    pub(super) deadline: Instant,
    /// When something of it was asked for last.
    pub(super) asked_at: Instant,
    /// A second source is sought at this time.
    pub(super) hedge_at: Option<Instant>,
    /// Place of the first chunk in its lane.
    pub(super) order: u64,
    /// Bit i: chunk i is there.
    pub(super) got: u64,
    /// Taken when the first chunk arrives.
    pub(super) buffer: Vec<u8>,
    /// All chunks were there: their bytes are being hashed, or are.
    pub(super) hashing: Option<Hashing>,
    /// The uncle that is missing though all chunks are there.
    pub(super) lacks: Option<Bin>,
    pub(super) hashless: u8,
    /// Something of it was asked for a second time.
    pub(super) again: bool,
    /// It was asked for in another lane first: its chunks may come from there, which says nothing of
    /// what stands before it here.
    pub(super) moved: bool,
    /// It was asked for when nothing else was.
    pub(super) alone: bool,
}

/// How far the hashing of a complete flight is.
#[derive(Debug)]
pub(super) enum Hashing {
    /// Under way, by this name.
    Wanted(u64),
    /// Done.
    Done(HashedRun),
}

impl Flight {
    pub(super) fn chunks(&self) -> u64 {
        1 << self.bin.layer()
    }
    pub(super) fn is_complete(&self) -> bool {
        u64::from(self.got.count_ones()) == self.chunks()
    }
    pub(super) fn end(&self) -> u64 {
        self.order + self.chunks()
    }
    /// Writes a chunk. Most arrive in order: then nothing is zeroed first.
    pub(super) fn put(&mut self, at: usize, payload: &[u8]) {
        if let Some(place) = self.buffer.get_mut(at..at + CHUNK) {
            place.copy_from_slice(payload);
        } else {
            self.buffer.resize(at, 0);
            self.buffer.extend_from_slice(payload);
        }
    }
    pub(super) fn lane(&self) -> usize {
        lane(self.class, self.again)
    }
}

/// Waited, waited again, background, background again.
pub(super) const LANES: usize = 4;

pub(super) const fn lane(class: Class, again: bool) -> usize {
    class.index() * 2 + if again { 1 } else { 0 }
}

/// Moments remembered of a lane: some milliseconds of a fast transfer.
const MARKS_MAX: usize = 256;

/// The order of service of one class.
#[derive(Debug)]
pub(super) struct Lane {
    /// First chunk of each flight, by its place.
    pub(super) order: BTreeMap<u64, u64>,
    /// The next place.
    pub(super) next: u64,
    /// One past the highest place that arrived.
    pub(super) high: u64,
    pub(super) last_arrival: Instant,
    /// What `high` was at the end of each of the last moments in which something arrived.
    marks: VecDeque<(Instant, u64)>,
}

impl Lane {
    pub(super) fn new(now: Instant) -> Self {
        Self { order: BTreeMap::new(), next: 0, high: 0, last_arrival: now, marks: VecDeque::new() }
    }

    /// Something up to place `high` arrived; 0: something that says nothing of the order.
    pub(super) fn on_arrival(&mut self, now: Instant, high: u64) {
        self.high = self.high.max(high);
        self.last_arrival = now;
        match self.marks.back_mut() {
            Some((at, mark)) if *at == now => *mark = self.high,
            _ => {
                if self.marks.len() >= MARKS_MAX {
                    self.marks.pop_front();
                }
                self.marks.push_back((now, self.high));
            }
        }
    }

    /// One past the highest place that had arrived at `then`: what is missing below is lost if
    /// datagrams do not overtake each other by more than the time since (RACK, RFC 8985 §6.2).
    pub(super) fn high_at(&self, then: Instant) -> u64 {
        let mark = self.marks.iter().rev().find(|(at, _)| *at <= then);
        mark.map_or(0, |(_, high)| *high)
    }

    /// When `place` was overtaken, if it was.
    pub(super) fn overtaken_at(&self, place: u64) -> Option<Instant> {
        self.marks.iter().find(|(_, high)| *high >= place).map(|(at, _)| *at)
    }

    /// Takes the next places for the flight of these chunks.
    pub(super) fn place(&mut self, chunks: ChunkRange) -> u64 {
        let place = self.next;
        self.next += chunks.count();
        self.order.insert(place, chunks.start.0);
        place
    }
}

/// How fast a peer delivers: the best recent rate, decaying.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) since: Instant,
    pub(super) bytes: u64,
    /// Bytes a second.
    pub(super) rate: f64,
}

impl Delivery {
    pub(super) fn add(&mut self, now: Instant, rtt: &Rtt) {
        self.bytes += CHUNK_BYTES;
        if !self.bytes.is_multiple_of(CHUNK_BYTES << GRANULE_LAYER) {
            return;
        }
        let elapsed = now.saturating_duration_since(self.since);
        let span = rtt.minimum().max(Duration::from_millis(5));
        if elapsed < span {
            return;
        }
        let rate = self.bytes as f64 / elapsed.as_secs_f64();
        self.rate = rate.max(self.rate * 0.9);
        self.since = now;
        self.bytes = 0;
    }
}
