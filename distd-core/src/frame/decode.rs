//! Decoding a frame, with every bound checked before memory is taken.

use zstd::zstd_safe::DCtx;

use crate::limits::FRAME_CONTROL_BYTES_MAX;
use crate::unit::Bin;

use super::FrameEntry;
use super::bytes::Reader;
use super::layout::{CARRY, DELTA, FULL, PREFIX, STREAMS, WORDS};
use super::rebuild::{self, Units, rebuild};
use super::words::Words;

/// Decodes frames one after the other; keep one a thread, it holds the decompressor's tables and those
/// of the guesses.
pub struct FrameDecoder {
    context: DCtx<'static>,
    words: Words,
}

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
    /// A stream that says that it is longer than anything in the frame could be.
    #[error("stream {stream} declares {declared} bytes, at most {max} are possible")]
    Stream {
        /// Which.
        stream: usize,
        /// What it says.
        declared: u64,
        /// The bound.
        max: u64,
    },
    /// A compressed stream that does not decode to what is declared.
    #[error("stream {stream} does not decode to its declared length")]
    Compression {
        /// Which; 0 for a full frame.
        stream: usize,
    },
    /// Control numbers beyond the base, the literals or the bin.
    #[error("its operations leave the base or the run")]
    Control,
    /// Changes behind the last copied byte.
    #[error("its changes lie behind what was copied")]
    Changes,
    /// The streams make fewer bytes than the bin has.
    #[error("it makes {found} bytes, expected {expected}")]
    Short {
        /// Bytes of the bin.
        expected: u64,
        /// Bytes made.
        found: usize,
    },
}

impl Default for FrameDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl FrameDecoder {
    /// A decoder.
    pub fn new() -> Self {
        Self { context: DCtx::create(), words: Words::default() }
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
            self.unpack(0, reader.rest(), &mut out)?;
            return Ok(out);
        }
        let known = DELTA | PREFIX | CARRY | WORDS;
        if kind & DELTA == 0
            || kind & !known != 0
            || kind & (CARRY | WORDS) == CARRY | WORDS
            || entry.bases.is_empty()
        {
            return Err(FrameFault::Kind { found: kind });
        }
        let [control, gaps, values, literals] = Stream::read_all(&mut reader, len)?;
        let control = self.stream(0, &control)?;
        let gaps = self.stream(1, &gaps)?;
        let values = self.stream(2, &values)?;
        let literals = if kind & PREFIX != 0 && literals.plain != literals.packed.len() {
            unpack_behind(bases, &literals)?
        } else {
            self.stream(3, &literals)?
        };
        let units = match kind & (CARRY | WORDS) {
            0 => Units::Bytes,
            CARRY => Units::Carrying,
            _ => {
                self.words.clear();
                Units::Words(&mut self.words)
            }
        };
        let streams = rebuild::Streams {
            control: &control,
            gaps: &gaps,
            values: &values,
            literals: &literals,
        };
        rebuild(len, &streams, bases, units)
    }

    fn stream(&mut self, index: usize, stream: &Stream<'_>) -> Result<Vec<u8>, FrameFault> {
        if stream.plain == stream.packed.len() {
            return Ok(stream.packed.to_vec());
        }
        let mut out = vec![0; stream.plain];
        self.unpack(index, stream.packed, &mut out)?;
        Ok(out)
    }

    /// Decompresses in one go into `out`, which bounds window, memory and output alike.
    fn unpack(&mut self, stream: usize, packed: &[u8], out: &mut [u8]) -> Result<(), FrameFault> {
        match self.context.decompress(out, packed) {
            Ok(written) if written == out.len() => Ok(()),
            _ => Err(FrameFault::Compression { stream }),
        }
    }
}

/// Decompresses literals that were compressed with the bases before them.
fn unpack_behind(bases: &[u8], stream: &Stream<'_>) -> Result<Vec<u8>, FrameFault> {
    let failed = FrameFault::Compression { stream: 3 };
    let mut out = vec![0; stream.plain];
    let mut context = DCtx::create();
    context.ref_prefix(bases).map_err(|_| failed)?;
    match context.decompress(&mut out[..], stream.packed) {
        Ok(written) if written == out.len() => Ok(out),
        _ => Err(failed),
    }
}

/// One stream as it lies in the frame. It is stored as it is where it did not become smaller.
struct Stream<'a> {
    plain: usize,
    packed: &'a [u8],
}

impl<'a> Stream<'a> {
    fn read_all(reader: &mut Reader<'a>, len: usize) -> Result<[Self; STREAMS], FrameFault> {
        let max = [FRAME_CONTROL_BYTES_MAX, len, len, len];
        let mut plain = [0; STREAMS];
        let mut packed = [0; STREAMS];
        for stream in 0..STREAMS {
            let declared = reader.varint().ok_or(FrameFault::Header)?;
            let max = max[stream] as u64;
            if declared > max {
                return Err(FrameFault::Stream { stream, declared, max });
            }
            plain[stream] = declared as usize;
            let declared = reader.varint().ok_or(FrameFault::Header)?;
            let max = plain[stream] as u64;
            if declared > max {
                return Err(FrameFault::Stream { stream, declared, max });
            }
            packed[stream] = declared as usize;
        }
        if plain[2] + plain[3] > len {
            let declared = (plain[2] + plain[3]) as u64;
            return Err(FrameFault::Stream { stream: 3, declared, max: len as u64 });
        }
        if packed.iter().sum::<usize>() != reader.rest().len() {
            return Err(FrameFault::Header);
        }
        let mut index = 0;
        let streams = [(); STREAMS].map(|()| {
            let packed = reader.take(packed[index]).unwrap_or_default();
            let stream = Self { plain: plain[index], packed };
            index += 1;
            stream
        });
        Ok(streams)
    }
}
