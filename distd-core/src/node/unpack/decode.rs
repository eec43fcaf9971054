//! One frame: its bytes and its bases in, a verified run in the cache out.

use bytes::Bytes;

use crate::frame::{FrameDecoder, FrameError};
use crate::store::{CachedLog, PutError, ReadError};
use crate::tree::{MunroTree, VerifiedRun, VerifyError};
use crate::unit::BlockRange;

use super::choice::Chosen;

/// Why a frame gave nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// A base is not in the cache (any more).
    #[error("its base, blocks {}..{}, is not in the cache", base.start, base.end())]
    NoBase {
        /// What is missing.
        base: BlockRange,
    },
    /// The cache's disk.
    #[error("its base cannot be read: {0}")]
    Cache(#[from] ReadError),
    /// Not a frame, or not of what the index says.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// It decodes to something else than what the origin signed.
    #[error("what it decodes to is wrong: {0}")]
    Verify(#[from] VerifyError),
    /// What it decodes to is of another log than what is held.
    #[error(transparent)]
    Fork(PutError),
}

impl Refused {
    /// Whether it is the frame's fault: it will be as wrong next time.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Frame(_) | Self::Verify(_) | Self::Fork(_))
    }
}

/// What a frame gave.
pub(super) struct Decoded {
    pub(super) run: VerifiedRun,
    /// Whether the cache took it.
    pub(super) kept: bool,
}

/// Decodes a frame, checks the result against what the origin signed, and keeps it.
pub(super) fn decode(log: &CachedLog, chosen: &Chosen, frame: &[u8]) -> Result<Decoded, Refused> {
    let entry = &chosen.entry;
    let mut bases = vec![0; entry.base_bytes() as usize];
    let mut rest = bases.as_mut_slice();
    for base in &entry.bases {
        let (part, after) = rest.split_at_mut(base.byte_len() as usize);
        rest = after;
        if let Some(missing) = log.read_blocks(*base, part)?.first() {
            return Err(Refused::NoBase { base: *missing });
        }
    }
    let bytes = FrameDecoder::new().decode(entry, frame, &bases)?;
    let record = &chosen.record;
    let run = record.verify(&mut MunroTree::new(*record.munro()), entry.bin, Bytes::from(bytes))?;
    let kept = match log.put(&run) {
        Ok(()) => true,
        Err(error @ PutError::Fork { .. }) => return Err(Refused::Fork(error)),
        Err(error) => {
            tracing::debug!(%error, "what a frame decoded to is not kept");
            false
        }
    };
    Ok(Decoded { run, kept })
}
