//! Chunk specifications (RFC 7574 §4): which chunks a message is about, in five notations.
//!
//! ```text
//! layer 3               7                       bin of chunk i: 2i; of a node: between its children
//! layer 2       3               11
//! layer 1   1       5       9       13          the node 9 = chunks 4..=5 = bytes 4096..=6143
//! layer 0 0   2   4   6   8   10  12  14
//! chunk   0   1   2   3   4   5   6   7
//! ```

use crate::limits::{LOG_MUNROS_MAX, MUNRO_LAYER};
use crate::unit::{Bin, ChunkRange};

use super::reader::Reader;
use super::{EncodeError, Fault, WireProfile};

/// Number of chunks of the longest log: no chunk, byte offset or bin below it overflows 64 bits.
pub(super) const CHUNKS_MAX: u64 = LOG_MUNROS_MAX << MUNRO_LAYER;

/// How a swarm writes chunk ranges (option 6, RFC 7574 §7.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Addressing {
    /// Bins of 32 bits: aligned power-of-two ranges only.
    Bin32,
    /// First and last byte, 64 bits each.
    Bytes64,
    /// First and last chunk, 32 bits each: the RFC's default.
    Chunk32,
    /// Bins of 64 bits.
    Bin64,
    /// First and last chunk, 64 bits each: what distd's logs use.
    Chunk64,
}

impl Addressing {
    /// All of them, in the order of their code.
    pub const ALL: [Self; 5] =
        [Self::Bin32, Self::Bytes64, Self::Chunk32, Self::Bin64, Self::Chunk64];

    /// Value of option 6.
    pub const fn code(self) -> u8 {
        match self {
            Self::Bin32 => 0,
            Self::Bytes64 => 1,
            Self::Chunk32 => 2,
            Self::Bin64 => 3,
            Self::Chunk64 => 4,
        }
    }

    /// The addressing with this code; 5 to 255 are unassigned.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// Bytes of a chunk specification.
    pub const fn spec_bytes(self) -> usize {
        match self {
            Self::Bin32 => 4,
            Self::Chunk32 | Self::Bin64 => 8,
            Self::Bytes64 | Self::Chunk64 => 16,
        }
    }

    /// Bytes of one value of a specification, which is also the width of the discard window
    /// (RFC 7574 §7.9).
    pub const fn value_bytes(self) -> usize {
        match self {
            Self::Bin32 | Self::Chunk32 => 4,
            Self::Bytes64 | Self::Bin64 | Self::Chunk64 => 8,
        }
    }
}

/// Reads a chunk specification.
pub(super) fn read_range(
    reader: &mut Reader<'_>,
    profile: &WireProfile,
) -> Result<ChunkRange, Fault> {
    match profile.addressing {
        Addressing::Chunk64 => {
            let (first, last) = (reader.u64()?, reader.u64()?);
            inclusive(first, last)
        }
        Addressing::Chunk32 => {
            let (first, last) = (reader.u32()?, reader.u32()?);
            inclusive(first.into(), last.into())
        }
        Addressing::Bytes64 => {
            let (first, last) = (reader.u64()?, reader.u64()?);
            whole_chunks(first, last, profile.chunk_bytes)
        }
        Addressing::Bin32 => match reader.u32()? {
            u32::MAX => Err(Fault::EmptyBin),
            uid => below(uid.into()),
        },
        Addressing::Bin64 => match reader.u64()? {
            u64::MAX => Err(Fault::EmptyBin),
            uid => below(uid),
        },
    }
}

/// `first..=last` as a range. RFC 7574 4.1: the end is inclusive.
fn inclusive(first: u64, last: u64) -> Result<ChunkRange, Fault> {
    let end = last.checked_add(1).filter(|end| *end <= CHUNKS_MAX).ok_or(Fault::BeyondLog(last))?;
    ChunkRange::new(first, end).ok_or(Fault::EmptyRange { first, last })
}

/// The chunks that a byte range consists of. RFC 7574 4.1.2 leaves open what a part of a chunk
/// would mean (a DATA message carries a whole one, 3.3): such a range is refused.
fn whole_chunks(first: u64, last: u64, chunk_bytes: u32) -> Result<ChunkRange, Fault> {
    let unaligned = Fault::UnalignedBytes { first, last };
    let size = u64::from(chunk_bytes);
    let end = last.checked_add(1).ok_or(Fault::BeyondLog(last))?;
    let (Some(0), Some(0)) = (first.checked_rem(size), end.checked_rem(size)) else {
        return Err(unaligned);
    };
    if chunk_bytes == WireProfile::VARIABLE {
        return Err(unaligned);
    }
    match (first.checked_div(size), end.checked_div(size)) {
        (Some(first), Some(end)) if end <= CHUNKS_MAX => {
            ChunkRange::new(first, end).ok_or(Fault::EmptyRange { first, last })
        }
        _ => Err(Fault::BeyondLog(last)),
    }
}

/// The chunks below a bin.
fn below(uid: u64) -> Result<ChunkRange, Fault> {
    Bin::from_uid(uid)
        .map(Bin::chunks)
        .filter(|chunks| chunks.end.0 <= CHUNKS_MAX)
        .ok_or(Fault::BeyondLog(uid))
}

/// A chunk specification in wire form: its bytes and how many of them count.
pub(super) struct Spec {
    bytes: [u8; 16],
    len: usize,
}

impl Spec {
    /// `chunks` in the swarm's notation.
    pub(super) fn new(chunks: ChunkRange, profile: &WireProfile) -> Result<Self, EncodeError> {
        let addressing = profile.addressing;
        Self::build(chunks, profile).ok_or(EncodeError::Range { chunks, addressing })
    }

    fn build(chunks: ChunkRange, profile: &WireProfile) -> Option<Self> {
        let (first, end) = (chunks.start.0, chunks.end.0);
        if first >= end || end > CHUNKS_MAX {
            return None;
        }
        let last = end.checked_sub(1)?;
        match profile.addressing {
            Addressing::Chunk64 => Some(Self::pair(first, last)),
            Addressing::Chunk32 => {
                let values = [u32::try_from(first).ok()?, u32::try_from(last).ok()?];
                Some(Self::of(values.map(u32::to_be_bytes).as_flattened()))
            }
            Addressing::Bytes64 if profile.chunk_bytes == WireProfile::VARIABLE => None,
            Addressing::Bytes64 => {
                let size = u64::from(profile.chunk_bytes);
                Some(Self::pair(first.checked_mul(size)?, end.checked_mul(size)?.checked_sub(1)?))
            }
            Addressing::Bin32 => {
                let uid = u32::try_from(Bin::from_chunks(chunks)?.uid()).ok()?;
                // All ones stand for the empty bin.
                (uid != u32::MAX).then(|| Self::of(&uid.to_be_bytes()))
            }
            Addressing::Bin64 => Some(Self::of(&Bin::from_chunks(chunks)?.uid().to_be_bytes())),
        }
    }

    fn pair(first: u64, last: u64) -> Self {
        Self::of([first, last].map(u64::to_be_bytes).as_flattened())
    }

    fn of(value: &[u8]) -> Self {
        let mut bytes = [0; 16];
        for (to, from) in bytes.iter_mut().zip(value) {
            *to = *from;
        }
        Self { bytes, len: value.len() }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&self.bytes)
    }
}
