//! The bytes of a frame, as a publisher writes them. `docs/format.md` has the tables.

use zstd::zstd_safe::{CCtx, CParameter, ResetDirective};

use crate::limits::FRAME_OPERATIONS_MAX;
use crate::unit::Bin;

use super::bytes::put_varint;
use super::coder::RangeEncoder;
use super::operations::{Models, Operation};

/// First byte of a full frame.
pub(super) const FULL: u8 = 0;
/// First byte of a delta frame.
pub(super) const DELTA: u8 = 1;
/// First byte of a delta frame whose literals are compressed with the bases before them.
pub(super) const DELTA_PREFIX: u8 = 3;

/// Literals that take fewer bytes alone are not tried with the bases before them: to index the bases
/// takes longer than everything else about such a frame.
const PREFIXED_BYTES_MIN: usize = 4096;
/// zstd level above which indexing the bases takes more time than it is worth.
const PREFIX_LEVEL_MAX: i32 = 3;

/// Encodes frames one after the other; keep one a thread, it holds the compressor's tables and those of
/// the models.
pub struct FrameEncoder {
    context: CCtx<'static>,
    models: Models,
}

impl Default for FrameEncoder {
    fn default() -> Self {
        Self::new()
    }
}

impl FrameEncoder {
    /// An encoder.
    pub fn new() -> Self {
        Self { context: CCtx::create(), models: Models::default() }
    }

    /// A full frame of `bytes` as the content of `bin`; `None` if compression does not make it smaller.
    pub fn full(&mut self, bin: Bin, bytes: &[u8], level: i32) -> Option<Vec<u8>> {
        let packed = self.pack(bytes, level)?;
        let mut frame = vec![FULL];
        put_varint(&mut frame, bin.uid());
        frame.extend(packed);
        (frame.len() < bytes.len()).then_some(frame)
    }

    /// A delta frame of `new` as the content of `bin`, which `operations` make of `bases`; `None` if these
    /// leave the bases or do not make up all of `new`, or if there are too many.
    pub fn delta(
        &mut self,
        bin: Bin,
        operations: &[Operation],
        new: &[u8],
        bases: &[u8],
        level: i32,
    ) -> Option<Vec<u8>> {
        let mut literals = Vec::new();
        let mut at = 0usize;
        for operation in operations.iter().take(FRAME_OPERATIONS_MAX) {
            let end = at.checked_add(operation.literals)?;
            literals.extend_from_slice(new.get(at..end)?);
            at = end.checked_add(operation.copied)?;
        }
        let mut coder = RangeEncoder::new();
        let mut out = new.to_vec();
        self.models.code(&mut coder, operations, &literals, bases, &mut out).ok()?;
        let (kind, packed) = self.pack_literals(&literals, bases, level);
        let mut frame = vec![kind];
        put_varint(&mut frame, bin.uid());
        put_varint(&mut frame, literals.len() as u64);
        put_varint(&mut frame, packed.as_ref().unwrap_or(&literals).len() as u64);
        frame.extend(packed.as_ref().unwrap_or(&literals));
        frame.extend(coder.finish());
        (out == new).then_some(frame)
    }

    /// The kind of a delta frame with these literals, and how they are stored if not as they are.
    fn pack_literals(
        &mut self,
        literals: &[u8],
        bases: &[u8],
        level: i32,
    ) -> (u8, Option<Vec<u8>>) {
        let packed = self.pack(literals, level);
        let alone = packed.as_ref().map_or(literals.len(), Vec::len);
        if alone < PREFIXED_BYTES_MIN {
            return (DELTA, packed);
        }
        let mut prefixed = vec![0; alone - 1];
        let level = level.min(PREFIX_LEVEL_MAX);
        match self.context.compress_using_dict(&mut prefixed[..], literals, bases, level) {
            Ok(written) => {
                prefixed.truncate(written);
                (DELTA_PREFIX, Some(prefixed))
            }
            // It does not become smaller.
            Err(_) => (DELTA, packed),
        }
    }

    /// Compresses; `None` if it does not become smaller.
    fn pack(&mut self, bytes: &[u8], level: i32) -> Option<Vec<u8>> {
        if bytes.is_empty() {
            return None;
        }
        let mut out = vec![0; bytes.len() - 1];
        self.context.reset(ResetDirective::SessionAndParameters).ok()?;
        self.context.set_parameter(CParameter::CompressionLevel(level)).ok()?;
        // An error here says that the room of one byte less than before was not enough.
        let written = self.context.compress2(&mut out[..], bytes).ok()?;
        out.truncate(written);
        Some(out)
    }
}
