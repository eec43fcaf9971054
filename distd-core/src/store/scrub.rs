//! Checking a whole log: every signature, every stored hash, every byte.

use bytes::Bytes;
use rayon::prelude::*;

use crate::frame::{FrameEntry, Part};
use crate::limits::MUNRO_LAYER;
use crate::tree::{Frontier, MunroTree, NodeHash, VerifiedMunro};
use crate::unit::{Bin, BlockRange, MunroIndex};

use super::framed::read_stored_blocks;
use super::gone::{ALL, gone_bits, retained_runs};
use super::nodes::{MunroNodes, trusted_record};
use super::presence::{Bits, and, granule_bits};
use super::segment::{GRANULE_TABLE_BYTES, SegmentFile, Segments, TABLE_BYTES, table_offset};
use super::{OriginLog, ReadError};

/// Munros that are checked between two calls of the progress function.
const BATCH_MUNROS: u64 = 64;

/// Slots of a node table before those of blocks and pairs of blocks.
const GRANULE_SLOTS: usize = GRANULE_TABLE_BYTES as usize / 32;

/// Something of the log that is not as the origin signed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// The segment with this munro is missing or has no valid header.
    Segment {
        /// A munro of it.
        munro: MunroIndex,
    },
    /// The munro's signature is missing or does not hold: none of it can be served.
    Signature {
        /// Which munro.
        munro: MunroIndex,
    },
    /// The blocks' bytes are wrong.
    Content {
        /// Which blocks.
        blocks: BlockRange,
    },
    /// A stored hash is wrong, the bytes below are right: it can be computed again.
    Hash {
        /// The first such node of the munro.
        bin: Bin,
    },
    /// The disk cannot read the munro.
    Unreadable {
        /// Which munro.
        munro: MunroIndex,
    },
    /// The munros' hashes do not fold to the committed peaks: one was replaced by another signed one.
    Peaks,
}

impl OriginLog {
    /// Checks all that is committed, on all cores. `progress` is told how many munros were checked
    /// of how many. Gives what is damaged, by position.
    pub fn verify(&self, mut progress: impl FnMut(u64, u64)) -> Result<Vec<Damage>, ReadError> {
        let committed = self.known().clone();
        let total = committed.frontier.munros();
        let mut damages = Vec::new();
        let mut frontier = Some(Frontier::empty());
        for start in (0..total).step_by(BATCH_MUNROS as usize) {
            let end = total.min(start + BATCH_MUNROS);
            let checked: Vec<_> = (start..end)
                .into_par_iter()
                .map(|munro| self.check_settled(MunroIndex(munro)))
                .collect();
            for result in checked {
                let (trust, damage) = result?;
                damages.extend(damage);
                match (trust, &mut frontier) {
                    (Some(trust), Some(frontier)) => frontier.push(trust.hash()),
                    // A munro without a hash is reported as such; nothing can be folded over it.
                    _ => frontier = None,
                }
            }
            progress(end, total);
        }
        if frontier.is_some_and(|frontier| frontier != committed.frontier) {
            damages.push(Damage::Peaks);
        }
        Ok(damages)
    }

    /// Checks a munro; once more if something is wrong, for a prune may have changed it meanwhile.
    fn check_settled(
        &self,
        munro: MunroIndex,
    ) -> Result<(Option<VerifiedMunro>, Vec<Damage>), ReadError> {
        let (trust, damages) = self.check(munro)?;
        if damages.is_empty() || self.reload().is_err() {
            return Ok((trust, damages));
        }
        self.framed().forget();
        self.check(munro)
    }

    fn check(&self, munro: MunroIndex) -> Result<(Option<VerifiedMunro>, Vec<Damage>), ReadError> {
        let Some(file) = self.segments().open(Segments::number_of(munro))? else {
            return Ok((None, vec![Damage::Segment { munro }]));
        };
        let trust = match trusted_record(&file, munro, &self.origin()) {
            Ok(Some(Ok(trust))) => trust,
            Ok(_) => return Ok((None, vec![Damage::Signature { munro }])),
            Err(_) => return Ok((None, vec![Damage::Unreadable { munro }])),
        };
        let Ok(gone) = gone_bits(&file, munro) else {
            return Ok((Some(trust), vec![Damage::Unreadable { munro }]));
        };
        if gone == ALL {
            return Ok((Some(trust), Vec::new()));
        }
        let damages = match self.undecodable(&file, trust)? {
            damages if damages.is_empty() => {
                check_content(&file, trust, gone, || self.content_of(trust))
                    .unwrap_or_else(|_| vec![Damage::Unreadable { munro }])
            }
            damages => damages,
        };
        Ok((Some(trust), damages))
    }

    /// The munro's content, decoded where frames hold it.
    fn content_of(&self, trust: VerifiedMunro) -> Result<Bytes, ReadError> {
        let (nodes, file) = self.open_munro(trust.munro())?;
        self.content(&nodes, trust.munro().blocks(), |blocks| read_stored_blocks(&file, blocks))
    }

    /// The runs whose full frames do not give what was signed: nothing else holds them.
    fn undecodable(
        &self,
        file: &SegmentFile,
        trust: VerifiedMunro,
    ) -> Result<Vec<Damage>, ReadError> {
        let munro = trust.munro();
        let frames = match self.frames(munro, Part::Full) {
            Ok(Some(frames)) => frames,
            Ok(None) => return Ok(Vec::new()),
            // The index is damaged: what it lists cannot be found.
            Err(_) => return Ok(vec![Damage::Content { blocks: munro.blocks() }]),
        };
        let nodes = MunroNodes::load(file, trust, true)?;
        let undecodable = |entry: &&FrameEntry| self.decoded(&nodes, entry).is_err();
        let wrong = frames.frames().iter().filter(undecodable);
        Ok(wrong.map(|entry| Damage::Content { blocks: entry.blocks() }).collect())
    }
}

fn check_content(
    file: &SegmentFile,
    trust: VerifiedMunro,
    gone: Bits,
    content: impl FnOnce() -> Result<Bytes, ReadError>,
) -> Result<Vec<Damage>, ReadError> {
    let munro = trust.munro();
    let content = content()?;
    let mut nodes = MunroTree::hash_content(munro, &content);
    let mut table = vec![0; TABLE_BYTES as usize];
    file.read(table_offset(munro), &mut table)?;
    if gone != [0; 4] {
        fold_over_gone(&mut nodes, &table, gone);
    }
    if nodes[1] != trust.hash() {
        let stored = MunroNodes::load(file, trust, true)?;
        let offset = |blocks: BlockRange| (blocks.byte_offset() - munro.byte_offset()) as usize;
        let wrong: Vec<Damage> = retained_runs(munro, gone)
            .into_iter()
            .flat_map(|run| {
                let content = &content[offset(run)..][..run.byte_len() as usize];
                stored.wrong(run, content)
            })
            .map(|blocks| Damage::Content { blocks })
            .collect();
        // Every block proved by itself cannot fold to another munro, unless what stands for the
        // gone ones is wrong.
        let hashes = || vec![Damage::Hash { bin: munro.bin() }];
        return Ok(if wrong.is_empty() { hashes() } else { wrong });
    }
    let differs = table
        .as_chunks::<32>()
        .0
        .iter()
        .zip(nodes.iter())
        .enumerate()
        .skip(1)
        // Where frames hold the content, hashes below granules are not kept.
        .find(|(slot, (stored, hash))| {
            NodeHash(**stored) != **hash
                && (*slot < GRANULE_SLOTS || (**stored != [0; 32] && !is_gone(*slot, gone)))
        });
    Ok(differs.map(|(slot, _)| Damage::Hash { bin: bin_of(munro, slot) }).into_iter().collect())
}

/// Puts the stored hashes of granules that are gone in the place of those of the zeros that are read
/// there, and folds what lies above.
fn fold_over_gone(nodes: &mut [NodeHash; 512], table: &[u8], gone: Bits) {
    const GRANULES: usize = GRANULE_SLOTS / 2;
    let (stored, _) = table.as_chunks::<32>();
    for granule in (0..GRANULES).filter(|granule| and(granule_bits(*granule), gone) != [0; 4]) {
        nodes[GRANULES + granule] = NodeHash(stored[GRANULES + granule]);
    }
    for slot in (1..GRANULES).rev() {
        nodes[slot] = NodeHash::parent(nodes[slot * 2], nodes[slot * 2 + 1]);
    }
}

/// Whether a slot below the granules is one of blocks that are gone.
fn is_gone(slot: usize, gone: Bits) -> bool {
    let depth = slot.ilog2() - GRANULE_SLOTS.ilog2() + 1;
    let granule = (slot >> depth) - GRANULE_SLOTS / 2;
    and(granule_bits(granule), gone) != [0; 4]
}

/// The node of a slot (at least 1) of a munro's table.
fn bin_of(munro: MunroIndex, slot: usize) -> Bin {
    let depth = slot.ilog2();
    let first = munro.0 << depth;
    Bin::new(MUNRO_LAYER - depth, first + (slot as u64 - (1 << depth)))
}
