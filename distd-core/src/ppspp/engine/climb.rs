//! How something that is wanted climbs: from who is near to who stands above.

use std::time::Instant;

use crate::limits::BLOCK_LAYER;

use super::channel::ChannelIndex;
use super::event::Class;

/// Layer of a stretch: 256 KiB, what one owner fetches at a time.
pub(super) const STRETCH_LAYER: u32 = 8;
/// Blocks of a stretch.
pub(super) const STRETCH_BLOCKS: u64 = 1 << (STRETCH_LAYER - BLOCK_LAYER);
/// Above every level.
pub(super) const RUNG_MAX: usize = 256;
/// How far up something that is wanted has climbed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Climb {
    pub(super) rung: usize,
    pub(super) since: Instant,
    pub(super) asked: Option<Asked>,
    /// How often its owner has changed while it was waited for.
    pub(super) changes: u8,
}

/// A member that was asked to fetch something.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) index: ChannelIndex,
    pub(super) at: Instant,
    /// Over how many equals it is to get it; 0: it is above us. Nodes go past a relay that lives only
    /// when it says that it cannot.
    pub(super) hops: u8,
    /// The circle's version at which it was the owner.
    pub(super) version: u64,
}

impl Asked {
    pub(super) const fn is_above(&self) -> bool {
        self.hops == 0
    }
}

impl Climb {
    pub(super) const fn new(now: Instant) -> Self {
        Self { rung: 0, since: now, asked: None, changes: 0 }
    }

    /// `index` does not fetch it: the next rung.
    pub(super) fn on_miss(&mut self, index: ChannelIndex) {
        if self.asked.is_some_and(|asked| asked.index == index) {
            self.asked = None;
            self.rung += 1;
        }
    }

    /// A channel is gone: its index may become another peer's.
    pub(super) fn forget_channel(&mut self, index: ChannelIndex) {
        self.asked.take_if(|asked| asked.index == index);
    }

    /// What comes is late: all sources are welcome.
    pub(super) fn hurry(&mut self) {
        (self.rung, self.asked) = (RUNG_MAX, None);
    }
}

/// What a want may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Be asked of whoever has it, up to this rank.
    Take(usize),
    /// Wait for whoever was asked to fetch it.
    Wait,
    /// Ask this member to fetch it, and wait.
    Ask(ChannelIndex),
}

/// Something that is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want {
    pub(super) stretch: u64,
    pub(super) class: Class,
    /// How many more peers may pass a wish for it on.
    pub(super) hops: u8,
}

/// Blocks `start..end` of one stretch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) start: u64,
    pub(super) end: u64,
    /// How many more peers may pass a wish for it on.
    pub(super) hops: u8,
}

/// The stretch that holds a block.
pub(super) const fn stretch_of(block: u64) -> u64 {
    block / STRETCH_BLOCKS
}

/// Cuts blocks where stretches end.
pub(super) fn pieces(Piece { start, end, hops }: Piece) -> impl Iterator<Item = Piece> {
    let last = if start < end { end.div_ceil(STRETCH_BLOCKS) } else { 0 };
    (start / STRETCH_BLOCKS..last).map(move |stretch| {
        let (from, until) = (stretch * STRETCH_BLOCKS, (stretch + 1) * STRETCH_BLOCKS);
        Piece { start: start.max(from), end: end.min(until), hops }
    })
}

/// How many peers a wish for something that they lack may pass: a circle's farthest seat and a level
/// above.
pub(super) const HOPS: u8 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_with_their_stretches() {
        let piece = |start, end| Piece { start, end, hops: 3 };
        assert_eq!(
            pieces(piece(10, 200)).collect::<Vec<_>>(),
            [piece(10, 64), piece(64, 128), piece(128, 192), piece(192, 200)]
        );
        assert_eq!(pieces(piece(5, 5)).count(), 0);
        assert_eq!(stretch_of(64), 1);
    }
}
