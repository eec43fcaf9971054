//! Decoding a frame, with every bound checked before memory is taken.

use std::sync::{Mutex, PoisonError};

use zstd::zstd_safe::DCtx;

use crate::unit::Bin;

use super::FrameEntry;
use super::bytes::Reader;
use super::coder::RangeDecoder;
use super::layout::{DELTA, DELTA_PREFIX, FULL};
use super::operations::Models;

/// Decodes frames one after the other. It holds the decompressor's tables and those of the models, some
/// 0.5 MB: keep it, or take it from [`FrameDecoders`].
pub struct FrameDecoder {
    context: DCtx<'static>,
    /// Made when the first delta frame comes.
    models: Option<Models>,
}

/// Decoders for threads that share them: as many as decode at once.
#[derive(Default)]
pub struct FrameDecoders(Mutex<Vec<FrameDecoder>>);

/// A frame that cannot be decoded. Whoever signed the log made it so: asking another peer for the
/// same bytes does not help, other ways to the same blocks do.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the frame of bin {bin} at byte {offset} of the log: {fault}")]
pub struct FrameError {
    /// The bin that it should decode to.
    pub bin: Bin,
    /// Where the frame lies.
    pub offset: u64,
    /// What is wrong.
    pub fault: FrameFault,
}

/// What is wrong with a frame.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameFault {
    /// Fewer or more bytes than the index says.
    #[error("expected {expected} bytes, found {found}")]
    Length {
        /// Bytes by the index.
        expected: u64,
        /// Bytes given.
        found: usize,
    },
    /// Fewer or more base bytes than the index says.
    #[error("expected {expected} bytes of base, found {found}")]
    BaseLength {
        /// Bytes by the index.
        expected: u64,
        /// Bytes given.
        found: usize,
    },
    /// A frame of something else.
    #[error("it is the frame of another run: of uid {found}")]
    AnotherRun {
        /// The uid that it names.
        found: u64,
    },
    /// Unknown kind, or one that does not fit the index.
    #[error("kind {found} is not known here")]
    Kind {
        /// The first byte.
        found: u8,
    },
    /// The header ends too early or has impossible numbers.
    #[error("its header is cut off or damaged")]
    Header,
    /// Literals that say that they are longer than anything in the frame could be.
    #[error("its literals declare {declared} bytes, at most {max} are possible")]
    Literals {
        /// What they say.
        declared: u64,
        /// The bound.
        max: u64,
    },
    /// Compressed content or literals that do not decode to what is declared.
    #[error("what is compressed in it does not decode to its declared length")]
    Compression,
    /// Operations beyond the bases, the literals or the bin, or too many.
    #[error("its operations leave the base or the run")]
    Operations,
    /// Operations that end before the frame or behind it.
    #[error("its operations are cut off, or end before it does")]
    Coded,
}

impl FrameDecoders {
    /// As [`FrameDecoder::decode`].
    pub fn decode(
        &self,
        entry: &FrameEntry,
        frame: &[u8],
        bases: &[u8],
    ) -> Result<Vec<u8>, FrameError> {
        // Nothing panics while it holds the lock, and decoders keep nothing from one frame to the next.
        let idle = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut decoder = idle().pop().unwrap_or_default();
        let decoded = decoder.decode(entry, frame, bases);
        idle().push(decoder);
        decoded
    }
}

impl Default for FrameDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl FrameDecoder {
    /// A decoder.
    pub fn new() -> Self {
        Self { context: DCtx::create(), models: None }
    }

    /// The bytes of `entry.bin`, from the bytes of `entry.range` and those of `entry.bases`, one
    /// after the other. They are not verified yet: [`super::MunroFrames::verify`].
    pub fn decode(
        &mut self,
        entry: &FrameEntry,
        frame: &[u8],
        bases: &[u8],
    ) -> Result<Vec<u8>, FrameError> {
        self.decode_unnamed(entry, frame, bases).map_err(|fault| FrameError {
            bin: entry.bin,
            offset: entry.range.offset,
            fault,
        })
    }

    fn decode_unnamed(
        &mut self,
        entry: &FrameEntry,
        frame: &[u8],
        bases: &[u8],
    ) -> Result<Vec<u8>, FrameFault> {
        if frame.len() as u64 != entry.range.len {
            return Err(FrameFault::Length { expected: entry.range.len, found: frame.len() });
        }
        if bases.len() as u64 != entry.base_bytes() {
            let expected = entry.base_bytes();
            return Err(FrameFault::BaseLength { expected, found: bases.len() });
        }
        let len = entry.bin.byte_len() as usize;
        let mut reader = Reader::new(frame);
        let kind = reader.byte().ok_or(FrameFault::Header)?;
        let found = reader.varint().ok_or(FrameFault::Header)?;
        if found != entry.bin.uid() {
            return Err(FrameFault::AnotherRun { found });
        }
        if kind == FULL && entry.bases.is_empty() {
            let mut out = vec![0; len];
            self.unpack(reader.rest(), &mut out)?;
            return Ok(out);
        }
        if (kind != DELTA && kind != DELTA_PREFIX) || entry.bases.is_empty() {
            return Err(FrameFault::Kind { found: kind });
        }
        let literals = Literals::read(&mut reader, len)?;
        let literals = match literals.packed.len() {
            stored if stored == literals.plain => literals.packed.to_vec(),
            _ if kind == DELTA_PREFIX => unpack_behind(bases, &literals)?,
            _ => {
                let mut plain = vec![0; literals.plain];
                self.unpack(literals.packed, &mut plain)?;
                plain
            }
        };
        let mut out = vec![0; len];
        let mut coder = RangeDecoder::new(reader.rest());
        let models = self.models.get_or_insert_default();
        models.code(&mut coder, &[], &literals, bases, &mut out)?;
        if coder.is_at_end() { Ok(out) } else { Err(FrameFault::Coded) }
    }

    /// Decompresses in one go into `out`, which bounds window, memory and output alike.
    fn unpack(&mut self, packed: &[u8], out: &mut [u8]) -> Result<(), FrameFault> {
        match self.context.decompress(out, packed) {
            Ok(written) if written == out.len() => Ok(()),
            _ => Err(FrameFault::Compression),
        }
    }
}

/// Decompresses literals that were compressed with the bases before them.
fn unpack_behind(bases: &[u8], literals: &Literals<'_>) -> Result<Vec<u8>, FrameFault> {
    let failed = FrameFault::Compression;
    let mut out = vec![0; literals.plain];
    let mut context = DCtx::create();
    context.ref_prefix(bases).map_err(|_| failed)?;
    match context.decompress(&mut out[..], literals.packed) {
        Ok(written) if written == out.len() => Ok(out),
        _ => Err(failed),
    }
}

/// Literals as they lie in the frame: stored as they are where they did not become smaller.
struct Literals<'a> {
    plain: usize,
    packed: &'a [u8],
}

impl<'a> Literals<'a> {
    fn read(reader: &mut Reader<'a>, len: usize) -> Result<Self, FrameFault> {
        let mut read = |max: usize| {
            let declared = reader.varint().ok_or(FrameFault::Header)?;
            let max = max as u64;
            if declared > max {
                return Err(FrameFault::Literals { declared, max });
            }
            Ok(declared as usize)
        };
        let plain = read(len)?;
        let packed = read(plain)?;
        let packed = reader.take(packed).ok_or(FrameFault::Header)?;
        Ok(Self { plain, packed })
    }
}
