//! What is to be acknowledged to a peer (RFC 7574 §3.4, §4.3.2).
//!
//! An ACK names the biggest interval that this channel has delivered round the new run; so every
//! ACK also makes up for lost ones before it.

use crate::unit::ChunkRange;

use super::interval::IntervalSet;

/// Intervals remembered; beyond, the lowest is forgotten.
const SPANS_MAX: usize = 64;

/// The verified runs of one channel.
#[derive(Debug, Default)]
pub(super) struct Acks {
    /// Chunks that were delivered and verified.
    delivered: IntervalSet,
    /// Chunks to acknowledge, with the delay of the last DATA.
    due: Vec<(u64, u64)>,
    last: Option<(u64, u64)>,
}

impl Acks {
    /// `chunks` are verified; their last DATA took `delay_us`.
    pub(super) fn push(&mut self, chunks: ChunkRange, delay_us: u64) {
        self.delivered.insert(chunks.start.0, chunks.end.0);
        if self.delivered.len() > SPANS_MAX
            && let Some((start, end)) = self.delivered.first()
        {
            self.delivered.remove(start, end);
        }
        self.due.push((chunks.start.0, delay_us));
        self.last = Some((chunks.start.0, delay_us));
    }

    /// The peer does not seem to know what arrived: says everything again.
    pub(super) fn repeat(&mut self) {
        if let (true, Some((_, delay_us))) = (self.due.is_empty(), self.last) {
            self.due.extend(self.delivered.iter().map(|(start, _)| (start, delay_us)));
        }
    }

    /// A chunk came again: its ACK was lost, or is under way.
    pub(super) fn came_again(&mut self, chunk: u64) {
        if self.due.is_empty()
            && self.delivered.covering(chunk).is_some()
            && let Some((_, delay_us)) = self.last
        {
            self.due.push((chunk, delay_us));
        }
    }

    /// Whether anything is to be acknowledged.
    pub(super) fn is_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// The ACKs to send: intervals and delays.
    pub(super) fn take(&mut self) -> Vec<(ChunkRange, u64)> {
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
