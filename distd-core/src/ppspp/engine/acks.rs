//! What is to be acknowledged to a peer (RFC 7574 §3.4, §4.3.2).
//!
//! An ACK names the biggest interval that this channel has delivered round the new run; so every
//! ACK also makes up for lost ones before it.

use std::time::{Duration, Instant};

use crate::unit::ChunkRange;

use super::interval::IntervalSet;

/// Intervals remembered; beyond, the lowest is forgotten.
const SPANS_MAX: usize = 64;

/// Runs that are acknowledged together.
const RUNS_TOGETHER: usize = 8;
/// Bytes to come from a peer above which an ACK may wait for more.
const OUTSTANDING_BYTES: u64 = 512 << 10;
/// How long it may.
const DELAY: Duration = Duration::from_millis(1);

/// The verified runs of one channel.
#[derive(Debug, Default)]
pub(super) struct Acks {
    /// Chunks that were delivered and verified.
    delivered: IntervalSet,
    /// Chunks to acknowledge, with the delay of the last DATA.
    due: Vec<(u64, u64)>,
    /// When the first of them became due.
    since: Option<Instant>,
    last: Option<(u64, u64)>,
}

impl Acks {
    /// `chunks` are verified; their last DATA took `delay_us`.
    pub(super) fn push(&mut self, now: Instant, chunks: ChunkRange, delay_us: u64) {
        self.delivered.insert(chunks.start.0, chunks.end.0);
        if self.delivered.len() > SPANS_MAX
            && let Some((start, end)) = self.delivered.first()
        {
            self.delivered.remove(start, end);
        }
        self.due.push((chunks.start.0, delay_us));
        self.since.get_or_insert(now);
        self.last = Some((chunks.start.0, delay_us));
    }

    /// The peer does not seem to know what arrived: says everything again.
    pub(super) fn repeat(&mut self, now: Instant) {
        if let (true, Some((_, delay_us))) = (self.due.is_empty(), self.last) {
            self.due.extend(self.delivered.iter().map(|(start, _)| (start, delay_us)));
            self.since = Some(now);
        }
    }

    /// A chunk came again: its ACK was lost, or is under way.
    pub(super) fn came_again(&mut self, now: Instant, chunk: u64) {
        if self.due.is_empty()
            && self.delivered.covering(chunk).is_some()
            && let Some((_, delay_us)) = self.last
        {
            self.due.push((chunk, delay_us));
            self.since = Some(now);
        }
    }

    /// When what is due is to be acknowledged; `outstanding` bytes are still to come from the peer.
    /// While many are, several runs share an ACK (RFC 7574 §3.4 allows it): each one costs both sides
    /// a wake-up.
    pub(super) fn due_at(&self, outstanding: u64) -> Option<Instant> {
        let since = self.since?;
        let wait = self.due.len() < RUNS_TOGETHER && outstanding >= OUTSTANDING_BYTES;
        Some(if wait { since + DELAY } else { since })
    }

    /// The ACKs to send: intervals and delays.
    pub(super) fn take(&mut self) -> Vec<(ChunkRange, u64)> {
        self.since = None;
        let mut acks: Vec<(ChunkRange, u64)> = Vec::new();
        for (chunk, delay_us) in self.due.drain(..) {
            let span = self.delivered.covering(chunk);
            let Some(span) = span.and_then(|(start, end)| ChunkRange::new(start, end)) else {
                continue;
            };
            match acks.last_mut() {
                Some((last, delay)) if *last == span => *delay = delay_us,
                _ => acks.push((span, delay_us)),
            }
        }
        acks
    }
}
