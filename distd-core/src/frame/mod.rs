//! Frames: section P of an epoch once more, compressed, alone or against what the log held before.
//!
//! ```text
//! head ── EpochList ── EpochItem ── index table ── IndexEntry (one a munro of P, signed)
//!                                                     │            │
//!                                        update record: deltas    full record: full frames
//!                                                     └── MunroFrames ──┘
//!                                                          FrameEntry: bin, range in F, bases
//! ```
//!
//! How a reader that misses blocks gets them from frames:
//!
//! 1. [`EpochList::covering`] names the epoch; [`EpochItem::entry_range`] the bytes of the munro's
//!    [`IndexEntry`], which carries the munro's signature; [`IndexEntry::record`] the bytes of the
//!    record of deltas or of full frames, as wanted.
//! 2. [`MunroFrames::decode`] checks the record's hashes against that signature;
//!    [`MunroFrames::covering`] gives the frames. A frame can be used if the blocks of
//!    [`FrameEntry::bases`] are at hand (a full frame has none); bases may themselves be covered by
//!    frames of older epochs. All bases lie before the frame's bin, so that there is no cycle.
//! 3. The bytes of [`FrameEntry::range`] are fetched as plain log content (never through frames).
//! 4. [`FrameDecoder::decode`] makes the bin's bytes of them, [`MunroFrames::verify`] a
//!    [`crate::tree::VerifiedRun`] of those: only that may be kept, served or read.
//!
//! Pure: no I/O. What a frame declares is checked before memory is taken for it: decoding takes
//! less than 1 MiB beyond the bases and the bytes that come out, whatever the frame says.

mod bytes;
mod coder;
mod decode;
mod epochs;
mod index;
mod layout;
mod operations;
#[cfg(test)]
mod promises;
mod words;

pub use decode::{FrameDecoder, FrameDecoders, FrameError, FrameFault};
pub use epochs::{BLOCK_HASH_BYTES, EpochItem, EpochList};
pub use index::{FrameEntry, IndexEntry, IndexError, MunroFrames, Part};
pub use layout::FrameEncoder;
pub use operations::Operation;
pub use words::{AS_IS, WORD_BYTES};
