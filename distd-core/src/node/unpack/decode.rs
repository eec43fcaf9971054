//! One frame: its bytes and its bases in, a verified run in the cache out.

use bytes::Bytes;

use crate::frame::{FrameDecoders, FrameError};
use crate::limits::BLOCK_BYTES;
use crate::node::swarm::Shared;
use crate::store::{PutError, ReadError};
use crate::tree::{MunroTree, VerifiedRun, VerifyError};
use crate::unit::BlockRange;

use super::choice::Chosen;

/// Why a frame gave nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// A base is not in the cache (any more), nor lent.
    #[error("its base, blocks {}..{}, is not in the cache", base.start, base.end())]
    NoBase {
        /// What is missing.
        base: BlockRange,
    },
    /// What was lent as its base is not what the log has there.
    #[error("what a file outside of the cache has as its base, blocks {}..{}, is wrong: {source}", base.start, base.end())]
    Lent {
        /// The first of what was lent.
        base: BlockRange,
        /// How that was found out.
        source: Box<Refused>,
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

/// Decodes a frame, checks the result against what the origin signed, and keeps it. What is lent is a base
/// only if `borrows`.
pub(super) fn decode(
    shared: &Shared,
    chosen: &Chosen,
    frame: &[u8],
    borrows: bool,
) -> Result<Decoded, Refused> {
    let (bases, lent) = read_bases(shared, chosen, borrows)?;
    let run = match make(&shared.decoders, chosen, frame, &bases) {
        Err(source) if !lent.is_empty() => {
            for base in &lent {
                shared.lent.forget(*base);
            }
            return Err(Refused::Lent { base: lent[0], source: Box::new(source) });
        }
        made => made?,
    };
    let kept = match shared.log.put(&run) {
        Ok(()) => true,
        Err(error @ PutError::Fork { .. }) => return Err(Refused::Fork(error)),
        Err(error) => {
            tracing::debug!(%error, "what a frame decoded to is not kept");
            false
        }
    };
    Ok(Decoded { run, kept })
}

/// The bases of a frame, one after the other, and what of them is lent.
fn read_bases(
    shared: &Shared,
    chosen: &Chosen,
    borrows: bool,
) -> Result<(Vec<u8>, Vec<BlockRange>), Refused> {
    let (entry, mut lent) = (&chosen.entry, Vec::new());
    let mut bases = vec![0; entry.base_bytes() as usize];
    let mut rest = bases.as_mut_slice();
    for base in &entry.bases {
        let (part, after) = rest.split_at_mut(base.byte_len() as usize);
        rest = after;
        for missing in shared.log.read_blocks(*base, part)? {
            let from = ((missing.start.0 - base.start.0) * BLOCK_BYTES) as usize;
            let part = &mut part[from..from + missing.byte_len() as usize];
            let lacking = if borrows { shared.lent.read(missing, part) } else { vec![missing] };
            if let Some(base) = lacking.first() {
                return Err(Refused::NoBase { base: *base });
            }
            lent.push(missing);
        }
    }
    Ok((bases, lent))
}

/// What a frame decodes to, verified.
fn make(
    decoders: &FrameDecoders,
    chosen: &Chosen,
    frame: &[u8],
    bases: &[u8],
) -> Result<VerifiedRun, Refused> {
    let Chosen { record, entry, .. } = chosen;
    let bytes = decoders.decode(entry, frame, bases)?;
    Ok(record.verify(&mut MunroTree::new(*record.munro()), entry.bin, Bytes::from(bytes))?)
}
