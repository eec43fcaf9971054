//! The bytes of a frame, as a publisher writes them. `docs/format.md` has the tables.

use zstd::zstd_safe::{CCtx, CParameter, ResetDirective};

use crate::unit::Bin;

use super::bytes::put_varint;

/// First byte of a full frame.
pub(super) const FULL: u8 = 0;
/// Set in the first byte of a delta frame.
pub(super) const DELTA: u8 = 1;
/// Literals are compressed with the bases before them.
pub(super) const PREFIX: u8 = 2;
/// What is added to a copied byte carries into the bytes behind it.
pub(super) const CARRY: u8 = 4;
/// Copied bytes are changed word by word, where they are not what is guessed.
pub(super) const WORDS: u8 = 8;

/// Streams of a delta frame.
pub(super) const STREAMS: usize = 4;

/// Literals that take fewer bytes alone are not tried with the bases before them: to index the bases
/// takes longer than everything else about such a frame.
const PREFIXED_BYTES_MIN: usize = 4096;
/// zstd level above which indexing the bases takes more time than it is worth.
const PREFIX_LEVEL_MAX: i32 = 3;

/// The streams of a delta frame, before compression.
///
/// The output is made of literals and of copies from the bases in turn: `control` is a sequence of
/// (literal bytes, copied bytes, signed distance of the copy's start from the end of the copy
/// before) as varints. Of all copied bytes, seen as one run, some are not as in the base: `gaps`
/// says how many bytes lie between one such place and the next, as varints, `values` what is added.
/// Where changes are those of words, each operation has one byte more, where words begin (modulo 4),
/// or 4 where the copy is taken as it is and does not count;
/// `gaps` counts words that are as [`super::Words`] guesses, and `values` has varints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeltaStreams {
    /// Literals and copies.
    pub control: Vec<u8>,
    /// Where copied bytes are changed.
    pub gaps: Vec<u8>,
    /// By how much.
    pub values: Vec<u8>,
    /// Bytes that are not copied.
    pub literals: Vec<u8>,
    /// What is changed.
    pub units: ChangedUnits,
}

/// What the changes of a delta frame are made to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChangedUnits {
    /// Single bytes.
    #[default]
    Bytes,
    /// Single bytes, and what is added carries into the bytes behind, as in a sum of little-endian
    /// integers.
    Carrying,
    /// Words, of which those are told that are not as guessed.
    Words,
}

impl DeltaStreams {
    /// Adds an operation to `control`.
    pub fn push(&mut self, literal: u64, copied: u64, distance: i64) {
        put_varint(&mut self.control, literal);
        put_varint(&mut self.control, copied);
        super::bytes::put_signed(&mut self.control, distance);
    }

    /// Adds an operation to `control` where words are changed, which begin at bytes of the run that
    /// are `phase` modulo 4; [`super::AS_IS`]: where nothing is changed.
    pub fn push_words(&mut self, literal: u64, copied: u64, distance: i64, phase: u8) {
        self.push(literal, copied, distance);
        self.control.push(phase);
    }

    /// Adds a changed byte, `gap` copied bytes behind the one before.
    pub fn change(&mut self, gap: u64, value: u8) {
        put_varint(&mut self.gaps, gap);
        self.values.push(value);
    }

    /// Adds a changed word, `gap` guessed ones behind the one before, by [`super::Guesses::value`].
    pub fn change_word(&mut self, gap: u64, value: u64) {
        put_varint(&mut self.gaps, gap);
        put_varint(&mut self.values, value);
    }
}

/// A full frame of `bytes` as the content of `bin`; `None` if compression does not make it smaller.
pub fn encode_full(context: &mut CCtx<'_>, bin: Bin, bytes: &[u8], level: i32) -> Option<Vec<u8>> {
    let packed = pack(context, bytes, level)?;
    let mut frame = vec![FULL];
    put_varint(&mut frame, bin.uid());
    frame.extend(packed);
    (frame.len() < bytes.len()).then_some(frame)
}

/// A delta frame of `streams` for `bin`. `bases`: where literals may be compressed with them as the
/// prefix.
pub fn encode_delta(
    context: &mut CCtx<'_>,
    bin: Bin,
    streams: &DeltaStreams,
    bases: Option<&[u8]>,
    level: i32,
) -> Vec<u8> {
    let plain = [&streams.control, &streams.gaps, &streams.values, &streams.literals];
    let mut packed: [Option<Vec<u8>>; STREAMS] = plain.map(|stream| pack(context, stream, level));
    let mut kind = DELTA
        | match streams.units {
            ChangedUnits::Bytes => 0,
            ChangedUnits::Carrying => CARRY,
            ChangedUnits::Words => WORDS,
        };
    let alone = packed[3].as_ref().map_or(streams.literals.len(), Vec::len);
    if let Some(bases) = bases.filter(|_| alone >= PREFIXED_BYTES_MIN) {
        let mut prefixed = vec![0; alone - 1];
        let level = level.min(PREFIX_LEVEL_MAX);
        let written =
            context.compress_using_dict(&mut prefixed[..], &streams.literals, bases, level);
        // An error here says that it does not become smaller.
        if let Ok(written) = written {
            prefixed.truncate(written);
            packed[3] = Some(prefixed);
            kind |= PREFIX;
        }
    }
    let mut frame = vec![kind];
    put_varint(&mut frame, bin.uid());
    for (plain, packed) in plain.iter().zip(&packed) {
        put_varint(&mut frame, plain.len() as u64);
        put_varint(&mut frame, packed.as_ref().map_or(plain.len(), Vec::len) as u64);
    }
    for (plain, packed) in plain.iter().zip(&packed) {
        frame.extend(packed.as_ref().unwrap_or(plain));
    }
    frame
}

/// Compresses; `None` if it does not become smaller.
fn pack(context: &mut CCtx<'_>, bytes: &[u8], level: i32) -> Option<Vec<u8>> {
    if bytes.is_empty() {
        return None;
    }
    let mut out = vec![0; bytes.len() - 1];
    context.reset(ResetDirective::SessionAndParameters).ok()?;
    context.set_parameter(CParameter::CompressionLevel(level)).ok()?;
    // An error here says that the room of one byte less than before was not enough.
    let written = context.compress2(&mut out[..], bytes).ok()?;
    out.truncate(written);
    Some(out)
}
