//! Taking verified runs into a cached log.

use std::sync::Arc;

use crate::limits::BLOCK_BYTES;
use crate::tree::{VerifiedMunro, VerifiedRun};
use crate::unit::{BlockRange, MunroIndex};

use super::cached_log::CachedLog;
use super::nodes::{Conflict, MunroNodes, trusted_record};
use super::presence::bits_of;
use super::segment::{Segments, TABLE_BYTES, content_offset};
use super::{DiskError, OpenError};

/// Why a run was not kept. The caller has its bytes and goes on without a cache.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// No room within the quota and the disk's reserve, or none on the disk.
    #[error("the cache has no room for {needed} bytes: {allocated} of {quota} are in use")]
    Full {
        /// Bytes asked for.
        needed: u64,
        /// Bytes in use.
        allocated: u64,
        /// The bound, `u64::MAX` for none: the disk itself is full then.
        quota: u64,
    },
    /// The origin signed two hashes for one munro: evidence of a fork.
    #[error("munro {}: the origin signed two different hashes", known.munro())]
    Fork {
        /// The munro that is held.
        known: Box<VerifiedMunro>,
        /// The munro of the run.
        claimed: Box<VerifiedMunro>,
    },
    /// The disk said no.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A file of the cache cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
}

impl CachedLog {
    /// Keeps a run. Readers see it at once; [`super::Cache::flush`] makes it durable.
    pub fn put(&self, run: &VerifiedRun) -> Result<(), PutError> {
        self.put_joined(std::slice::from_ref(run))
    }

    /// Keeps runs of one munro that follow each other, with one write: a granule at a time would
    /// cost the file system twice as much. Nothing of them is kept if the result is an error.
    pub fn put_joined(&self, runs: &[VerifiedRun]) -> Result<(), PutError> {
        let Some(blocks) = joined(runs) else { return Ok(()) };
        let result = self.put_blocks(runs, blocks);
        self.state().arriving.retain(|arriving| *arriving != blocks);
        result
    }

    fn put_blocks(&self, runs: &[VerifiedRun], blocks: BlockRange) -> Result<(), PutError> {
        let len = blocks.byte_len();
        let munro = blocks.start.munro();
        let held = self.state().presence.holds(munro, blocks);
        if !held {
            self.make_room(munro, len)?;
        }
        match self.put_once(runs, blocks) {
            Err(PutError::Disk(error)) if error.is_full() => {
                // The quota was held and yet the disk is full: somebody else fills it.
                self.shared.evict_bytes(len.max(FULL_DISK_EVICTION_BYTES));
                self.put_once(runs, blocks).map_err(|error| match error {
                    PutError::Disk(error) if error.is_full() => self.shared.full(len),
                    other => other,
                })
            }
            other => other,
        }
    }

    /// Lets readers have runs that [`Self::put_joined`] will keep in a moment.
    pub fn receive(&self, runs: &[VerifiedRun]) {
        let mut state = self.state();
        for run in runs {
            state.recent.keep(run);
        }
        state.arriving.extend(joined(runs));
    }

    fn put_once(&self, runs: &[VerifiedRun], blocks: BlockRange) -> Result<(), PutError> {
        let munro = blocks.start.munro();
        let tick = self.shared.tick(blocks.byte_len());
        let _io = self.io();
        for run in runs {
            let nodes = self.nodes_for(run)?;
            nodes.learn(run).map_err(|conflict| Self::fork(&conflict, run))?;
        }
        self.write_content(munro, blocks, runs)?;
        let mut state = self.state();
        state.dirty.insert(munro.0);
        state.presence.touch(munro, blocks, tick);
        for run in runs {
            state.recent.keep(run);
        }
        Ok(())
    }

    fn make_room(&self, munro: MunroIndex, len: u64) -> Result<(), PutError> {
        let mut needed = 0;
        // Eviction may take the rest of this very munro, or of its segment: twice at most.
        while needed < len + self.overhead(munro) {
            needed = len + self.overhead(munro);
            self.shared.make_room(needed)?;
        }
        Ok(())
    }

    /// What a munro's first block takes besides itself, in bytes: a bound; flush measures.
    fn overhead(&self, munro: MunroIndex) -> u64 {
        let state = self.state();
        match state.presence.munro(munro) {
            Some(_) => 0,
            None if state.allocated.contains_key(&Segments::number_of(munro)) => {
                TABLE_BYTES + INDEX_PAGES_BYTES
            }
            None => TABLE_BYTES + 2 * INDEX_PAGES_BYTES,
        }
    }

    /// Writes content and claims it. The caller holds `io`: nothing is punched in between.
    fn write_content(
        &self,
        munro: MunroIndex,
        blocks: BlockRange,
        runs: &[VerifiedRun],
    ) -> Result<(), PutError> {
        if self.state().presence.holds(munro, blocks) {
            return Ok(());
        }
        let segment = Segments::number_of(munro);
        let file = self.segments.open_or_create(segment).map_err(|error| match error {
            OpenError::Disk(error) => PutError::Disk(error),
            other => PutError::Open(other),
        })?;
        let overhead = self.overhead(munro);
        let parts: Vec<&[u8]> = runs.iter().map(|run| &run.bytes()[..]).collect();
        file.write_parts(content_offset(blocks.start), &parts)?;
        self.shared.count_kept(blocks.byte_len());
        let mut state = self.state();
        let added = state.presence.insert(munro, bits_of(blocks));
        if let Some(gone) = state.gone.get_mut(&munro.0) {
            *gone = super::presence::and_not(*gone, bits_of(blocks));
        }
        let grown = added * BLOCK_BYTES + overhead;
        *state.allocated.entry(segment).or_insert(0) += grown;
        self.shared.grow(grown);
        Ok(())
    }

    fn fork(conflict: &Conflict, run: &VerifiedRun) -> PutError {
        PutError::Fork { known: Box::new(conflict.known), claimed: Box::new(*run.munro()) }
    }

    /// The nodes of a run's munro, begun with the run's signature if there are none.
    fn nodes_for(&self, run: &VerifiedRun) -> Result<Arc<MunroNodes>, PutError> {
        let (trust, munro) = (*run.munro(), run.munro().munro());
        let fresh = {
            let mut state = self.state();
            if let Some(nodes) = state.nodes.get(&munro.0) {
                return Ok(Arc::clone(nodes));
            }
            state.presence.munro(munro).is_none()
        };
        let file = if fresh { None } else { self.segments.open(Segments::number_of(munro))? };
        let Some(file) = file else { return Ok(self.remember(MunroNodes::new(trust))) };
        // Whatever is wrong with the stored record, the run brings a right one.
        let stored =
            trusted_record(&file, munro, &self.origin()).ok().flatten().and_then(Result::ok);
        match stored {
            Some(known) if known.hash() != trust.hash() => {
                Err(Self::fork(&Conflict { known }, run))
            }
            Some(known) => Ok(self.remember(MunroNodes::load(&file, known, true)?)),
            None => Ok(self.remember(MunroNodes::load(&file, trust, false)?)),
        }
    }
}

/// The blocks of runs that follow each other; `None` for no runs.
fn joined(runs: &[VerifiedRun]) -> Option<BlockRange> {
    let mut joined = runs.first()?.bin().blocks()?;
    for run in &runs[1..] {
        let next = run.bin().blocks()?;
        assert_eq!(joined.end(), next.start, "runs that follow each other");
        joined.count += next.count;
    }
    Some(joined)
}

/// A page each of the map, the ticks and the records, and one for the file system's own index.
const INDEX_PAGES_BYTES: u64 = 4 * BLOCK_BYTES;
/// What is given up at once when the disk is full although the quota is held.
const FULL_DISK_EVICTION_BYTES: u64 = 8 << 20;
