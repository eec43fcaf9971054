//! The log's units as types: chunk, block, granule and munro indexes, bins, ranges and extents.
//!
//! Pure arithmetic, no I/O. A bin (RFC 7574 §4.2) names a node of the log's binary tree:
//!
//! ```text
//! layer 3               7
//! layer 2       3               11
//! layer 1   1       5       9       13
//! layer 0 0   2   4   6   8   10  12  14      bin of the chunk i: 2i
//! chunk   0   1   2   3   4   5   6   7
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits::{
    BLOCK_BYTES, BLOCK_LAYER, CHUNK_BYTES, GRANULE_BYTES, GRANULE_LAYER, LOG_MUNROS_MAX,
    MUNRO_BYTES, MUNRO_LAYER,
};

macro_rules! index {
    ($(#[$doc:meta])* $name:ident, $layer:expr, $bytes:expr) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The one that holds byte `offset` of the log.
            pub const fn containing(offset: u64) -> Self {
                Self(offset / $bytes)
            }
            /// Its first byte in the log.
            pub const fn byte_offset(self) -> u64 {
                self.0 * $bytes
            }
            /// Its node in the log's tree.
            pub const fn bin(self) -> Bin {
                Bin::new($layer, self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

index!(
    /// Number of a 1 KiB chunk of the log.
    ChunkIndex, 0, CHUNK_BYTES
);
index!(
    /// Number of a 4 KiB block of the log.
    BlockIndex, BLOCK_LAYER, BLOCK_BYTES
);
index!(
    /// Number of a 16 KiB granule of the log.
    GranuleIndex, GRANULE_LAYER, GRANULE_BYTES
);
index!(
    /// Number of a 1 MiB munro of the log.
    MunroIndex, MUNRO_LAYER, MUNRO_BYTES
);

impl BlockIndex {
    /// The granule that the block lies in.
    pub const fn granule(self) -> GranuleIndex {
        GranuleIndex(self.0 / (GRANULE_BYTES / BLOCK_BYTES))
    }
    /// The munro that the block lies in.
    pub const fn munro(self) -> MunroIndex {
        MunroIndex(self.0 / (MUNRO_BYTES / BLOCK_BYTES))
    }
}

impl GranuleIndex {
    /// The munro that the granule lies in.
    pub const fn munro(self) -> MunroIndex {
        MunroIndex(self.0 / (MUNRO_BYTES / GRANULE_BYTES))
    }
    /// The granule's four blocks.
    pub const fn blocks(self) -> BlockRange {
        BlockRange::new(BlockIndex(self.0 * 4), 4)
    }
}

impl MunroIndex {
    /// The munro's 256 blocks.
    pub const fn blocks(self) -> BlockRange {
        BlockRange::new(BlockIndex(self.0 * 256), 256)
    }
}

/// A node of the log's binary tree by its bin number: the 64-bit uid of a hash (RFC 7574 §4.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bin(u64);

impl Bin {
    /// Highest layer that a bin may have here; one above has its last chunk beyond 2^63.
    pub const LAYER_MAX: u32 = 62;

    /// The `offset`-th node of `layer`: `2^(layer+1) * offset + 2^layer - 1`.
    ///
    /// # Panics
    /// If the number would not fit 64 bits; callers hold offsets below [`LOG_MUNROS_MAX`] munros.
    pub const fn new(layer: u32, offset: u64) -> Self {
        assert!(layer <= Self::LAYER_MAX && offset <= u64::MAX >> (layer + 1));
        Self((offset << (layer + 1)) | ((1 << layer) - 1))
    }

    /// The bin with this number; `None` for a layer above [`Self::LAYER_MAX`] (a peer may send it).
    pub const fn from_uid(uid: u64) -> Option<Self> {
        if uid.trailing_ones() > Self::LAYER_MAX { None } else { Some(Self(uid)) }
    }

    /// The aligned power-of-two range of chunks, as a bin; `None` for any other range.
    pub const fn from_chunks(range: ChunkRange) -> Option<Self> {
        let count = range.end.0 - range.start.0;
        if !count.is_power_of_two() {
            return None;
        }
        let layer = count.trailing_zeros();
        if layer > Self::LAYER_MAX || !range.start.0.is_multiple_of(count) {
            return None;
        }
        Some(Self::new(layer, range.start.0 >> layer))
    }

    /// The uid: the bin number.
    pub const fn uid(self) -> u64 {
        self.0
    }
    /// Height above the chunks.
    pub const fn layer(self) -> u32 {
        self.0.trailing_ones()
    }
    /// Position within its layer, from the left.
    pub const fn offset(self) -> u64 {
        // Two shifts: one by `layer + 1` is 64 at most and would overflow there.
        (self.0 >> self.layer()) >> 1
    }
    /// The node above.
    pub const fn parent(self) -> Self {
        Self::new(self.layer() + 1, self.offset() / 2)
    }
    /// The other child of the parent.
    pub const fn sibling(self) -> Self {
        Self::new(self.layer(), self.offset() ^ 1)
    }
    /// Whether it is the left child of its parent.
    pub const fn is_left(self) -> bool {
        self.offset().is_multiple_of(2)
    }
    /// Left child; `None` for a chunk.
    pub const fn left(self) -> Option<Self> {
        match self.layer() {
            0 => None,
            layer => Some(Self::new(layer - 1, self.offset() * 2)),
        }
    }
    /// Right child; `None` for a chunk.
    pub const fn right(self) -> Option<Self> {
        match self.layer() {
            0 => None,
            layer => Some(Self::new(layer - 1, self.offset() * 2 + 1)),
        }
    }
    /// The node on `layer` that holds this one (itself if `layer` is not above).
    pub const fn ancestor(self, layer: u32) -> Self {
        let own = self.layer();
        if layer <= own { self } else { Self::new(layer, self.offset() >> (layer - own)) }
    }
    /// Whether `other` is this node or lies below it.
    pub const fn contains(self, other: Self) -> bool {
        other.layer() <= self.layer() && other.ancestor(self.layer()).0 == self.0
    }
    /// The chunks below.
    pub const fn chunks(self) -> ChunkRange {
        let start = self.offset() << self.layer();
        ChunkRange { start: ChunkIndex(start), end: ChunkIndex(start + (1 << self.layer())) }
    }
    /// First byte below, in the log.
    pub const fn byte_offset(self) -> u64 {
        self.chunks().start.byte_offset()
    }
    /// Bytes below.
    pub const fn byte_len(self) -> u64 {
        CHUNK_BYTES << self.layer()
    }
    /// The blocks below, for a bin of layer 2 and above; `None` for smaller ones.
    pub const fn blocks(self) -> Option<BlockRange> {
        if self.layer() < BLOCK_LAYER {
            return None;
        }
        let shift = self.layer() - BLOCK_LAYER;
        Some(BlockRange::new(BlockIndex(self.offset() << shift), 1 << shift))
    }
    /// The munro that the node lies in; `None` for a node above a munro.
    pub const fn munro(self) -> Option<MunroIndex> {
        if self.layer() > MUNRO_LAYER {
            None
        } else {
            Some(MunroIndex(self.ancestor(MUNRO_LAYER).offset()))
        }
    }
}

impl fmt::Debug for Bin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bin({} = layer {} offset {})", self.0, self.layer(), self.offset())
    }
}

impl fmt::Display for Bin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Chunks `start..end` of the log (half-open; the wire's ranges are inclusive, RFC 7574 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkRange {
    /// First chunk.
    pub start: ChunkIndex,
    /// One past the last chunk.
    pub end: ChunkIndex,
}

impl ChunkRange {
    /// `start..end`; `None` unless it holds at least one chunk.
    pub const fn new(start: u64, end: u64) -> Option<Self> {
        if start < end {
            Some(Self { start: ChunkIndex(start), end: ChunkIndex(end) })
        } else {
            None
        }
    }
    /// Number of chunks.
    pub const fn count(self) -> u64 {
        self.end.0 - self.start.0
    }
    /// Whether `other` lies inside.
    pub const fn contains(self, other: Self) -> bool {
        self.start.0 <= other.start.0 && other.end.0 <= self.end.0
    }
    /// The chunks in both.
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::new(self.start.0.max(other.start.0), self.end.0.min(other.end.0))
    }
}

/// Blocks `start..start+count` of the log; may be empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockRange {
    /// First block.
    pub start: BlockIndex,
    /// Number of blocks.
    pub count: u64,
}

impl BlockRange {
    /// The range; callers keep `start + count` within the log.
    pub const fn new(start: BlockIndex, count: u64) -> Self {
        Self { start, count }
    }
    /// The blocks that hold the bytes `offset..offset+len`.
    pub const fn covering(offset: u64, len: u64) -> Self {
        if len == 0 {
            return Self::new(BlockIndex::containing(offset), 0);
        }
        let start = offset / BLOCK_BYTES;
        let end = (offset + len).div_ceil(BLOCK_BYTES);
        Self::new(BlockIndex(start), end - start)
    }
    /// One past the last block.
    pub const fn end(self) -> BlockIndex {
        BlockIndex(self.start.0 + self.count)
    }
    /// Whether it holds no block.
    pub const fn is_empty(self) -> bool {
        self.count == 0
    }
    /// Bytes in it.
    pub const fn byte_len(self) -> u64 {
        self.count * BLOCK_BYTES
    }
    /// First byte, in the log.
    pub const fn byte_offset(self) -> u64 {
        self.start.byte_offset()
    }
    /// Its chunks; `None` if empty.
    pub const fn chunks(self) -> Option<ChunkRange> {
        ChunkRange::new(self.start.0 * 4, self.end().0 * 4)
    }
    /// What of it lies outside of `other`: up to two ranges.
    pub fn without(self, other: Self) -> impl Iterator<Item = Self> {
        let common = self.intersection(other);
        let (start, end) =
            if common.is_empty() { (self.end(), self.end()) } else { (common.start, common.end()) };
        let before = Self::new(self.start, start.0 - self.start.0);
        let after = Self::new(end, self.end().0 - end.0);
        [before, after].into_iter().filter(|part| !part.is_empty())
    }
    /// Each block, in order.
    pub fn iter(self) -> impl Iterator<Item = BlockIndex> {
        (self.start.0..self.end().0).map(BlockIndex)
    }
    /// Whether the block lies inside.
    pub const fn contains(self, block: BlockIndex) -> bool {
        self.start.0 <= block.0 && block.0 < self.end().0
    }
    /// The blocks in both; empty where they do not meet.
    pub fn intersection(self, other: Self) -> Self {
        let start = self.start.0.max(other.start.0);
        let end = self.end().0.min(other.end().0);
        Self::new(BlockIndex(start), end.saturating_sub(start))
    }
}

/// Bytes `offset..offset+len` of the log: how metadata nodes are addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ByteRange {
    /// First byte, in the log.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
}

impl ByteRange {
    /// One past the last byte; `None` beyond the longest log.
    pub fn end(self) -> Option<u64> {
        self.offset.checked_add(self.len).filter(|end| *end <= LOG_MUNROS_MAX * MUNRO_BYTES)
    }
    /// The blocks that hold it. The range must have an [`Self::end`].
    pub const fn blocks(self) -> BlockRange {
        BlockRange::covering(self.offset, self.len)
    }
}

/// Order of magnitude with a binary unit, for messages: `1.5 MiB`.
pub struct HumanBytes(pub u64);

impl fmt::Display for HumanBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut units = UNITS.iter().peekable();
        let mut unit = UNITS[0];
        while let Some(next) = units.next() {
            unit = next;
            if value < 1024.0 || units.peek().is_none() {
                break;
            }
            value /= 1024.0;
        }
        write!(f, "{value:.1} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bin_numbers_are_those_of_the_rfc_picture() {
        assert_eq!(ChunkIndex(3).bin().uid(), 6);
        assert_eq!(BlockIndex(1).bin().uid(), 11);
        assert_eq!(Bin::new(3, 0).uid(), 7);
        assert_eq!(Bin::new(1, 2).chunks(), ChunkRange::new(4, 6).expect("not empty"));
    }

    #[test]
    fn layer_63_is_no_bin() {
        assert!(Bin::from_uid(u64::MAX).is_none());
        assert!(Bin::from_uid(u64::MAX >> 1).is_none());
        assert_eq!(Bin::from_uid(u64::MAX >> 2).map(Bin::layer), Some(62));
    }

    #[test]
    fn bytes_are_named_with_their_unit() {
        assert_eq!(HumanBytes(1023).to_string(), "1023 B");
        assert_eq!(HumanBytes(1536 << 10).to_string(), "1.5 MiB");
        assert_eq!(HumanBytes(u64::MAX).to_string(), "16384.0 PiB");
    }

    proptest! {
        #[test]
        fn a_bin_is_the_range_of_its_chunks(layer in 0u32..20, offset in 0u64..1 << 30) {
            let bin = Bin::new(layer, offset);
            prop_assert_eq!(bin.layer(), layer);
            prop_assert_eq!(bin.offset(), offset);
            prop_assert_eq!(Bin::from_chunks(bin.chunks()), Some(bin));
            prop_assert_eq!(Bin::from_uid(bin.uid()), Some(bin));
            prop_assert!(bin.parent().contains(bin) && bin.parent().contains(bin.sibling()));
            prop_assert_eq!(bin.sibling().sibling(), bin);
            if let (Some(left), Some(right)) = (bin.left(), bin.right()) {
                prop_assert_eq!(left.sibling(), right);
                prop_assert_eq!(left.uid().midpoint(right.uid()), bin.uid());
            }
        }

        #[test]
        fn covering_blocks_hold_every_byte(offset in 0u64..1 << 40, len in 0u64..1 << 20) {
            let blocks = BlockRange::covering(offset, len);
            if len > 0 {
                prop_assert!(blocks.contains(BlockIndex::containing(offset)));
                prop_assert!(blocks.contains(BlockIndex::containing(offset + len - 1)));
                prop_assert!(blocks.byte_len() < len + 2 * BLOCK_BYTES);
            } else {
                prop_assert!(blocks.is_empty());
            }
        }
    }
}
