//! One origin's log in a node's cache: what of it is held, read back only verified.
//!
//! Presence is a claim. Every read folds the bytes to the munro's signature (`nodes`); what does not
//! fold loses its claim, is counted and reported as missing, so that the reader fetches it again.
//!
//! Locks, in the order in which they are taken: `flushing`, `io`, `state`, a munro's nodes. `io` is
//! shared by everything that reads or writes content, and exclusive for whoever gives disk space
//! back: a block is never punched between its claim and its read.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;
use lru::LruCache;

use serde::{Deserialize, Serialize};

use crate::keys::OriginId;
use crate::limits::{BLOCK_BYTES, GRANULE_BYTES, MUNRO_BYTES, MUNRO_LAYER};
use crate::tree::{VerifiedMunro, VerifiedRun};
use crate::unit::{Bin, BlockIndex, BlockRange, MunroIndex};

use super::cache::Shared;
use super::directory::Directory;
use super::eviction::Pins;
use super::nodes::{MunroNodes, by_munro, trusted_record};
use super::presence::{
    Bits, PresenceMap, and, and_not, bits_of, granule_bits, or, push_joined, runs,
};
use super::recent::Recent;
use super::segment::{SEGMENT_MUNROS, SegmentFile, Segments, content_offset};
use super::{ReadError, StateError, state_file};

/// Granules of a munro.
const GRANULES_PER_MUNRO: usize = (MUNRO_BYTES / GRANULE_BYTES) as usize;
/// Munros of one log whose signature and tree are kept in memory, about 33 KiB each.
const MUNROS_IN_MEMORY_MAX: NonZeroUsize = NonZeroUsize::new(512).unwrap();

/// One origin's log in a [`super::Cache`].
pub struct CachedLog {
    origin: OriginId,
    pub(super) shared: Arc<Shared>,
    pub(super) segments: Segments,
    pub(super) io: RwLock<()>,
    pub(super) flushing: Mutex<()>,
    /// Held while pins change, so that their file and the memory agree on the last change.
    pub(super) pinning: Mutex<()>,
    state: Mutex<State>,
    damaged_blocks: AtomicU64,
    evicted_blocks: AtomicU64,
}

/// What is known in memory.
pub(super) struct State {
    pub(super) presence: PresenceMap,
    pub(super) nodes: LruCache<u64, Arc<MunroNodes>>,
    /// Munros whose claims or nodes the disk does not have yet.
    pub(super) dirty: BTreeSet<u64>,
    /// Blocks that lost their claim since [`CachedLog::take_evicted`], by munro.
    pub(super) gone: BTreeMap<u64, Bits>,
    pub(super) pins: Pins,
    /// Runs that came in lately: who reads behind the network need not read them back.
    pub(super) recent: Recent,
    /// What is in `recent` and will be written in a moment.
    pub(super) arriving: Vec<BlockRange>,
    /// Disk space of each segment, in bytes: measured at flush, estimated in between.
    pub(super) allocated: BTreeMap<u64, u64>,
}

/// A munro's nodes and the segment that holds its content.
type OpenMunro = (Arc<MunroNodes>, Arc<SegmentFile>);

/// Blocks that lost their claim, since the cache was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drops {
    /// Found wrong when they were read: rot, a torn write, somebody else's bytes.
    pub damaged_blocks: u64,
    /// Given up for room, or by [`CachedLog::evict`].
    pub evicted_blocks: u64,
}

impl State {
    /// Reads blocks that wait to be written, if all of them do.
    fn read_arriving(&self, blocks: BlockRange, out: &mut [u8]) -> bool {
        // What was fetched at once may arrive in parts.
        let mut left = vec![blocks];
        for arriving in &self.arriving {
            left = left.into_iter().flat_map(|part| part.without(*arriving)).collect();
        }
        left.is_empty() && self.recent.read(blocks, out)
    }
}

impl CachedLog {
    pub(super) fn new(
        origin: OriginId,
        shared: Arc<Shared>,
        segments: Segments,
        presence: PresenceMap,
        allocated: BTreeMap<u64, u64>,
        pins: Pins,
    ) -> Self {
        let state = State {
            presence,
            nodes: LruCache::unbounded(),
            dirty: BTreeSet::new(),
            gone: BTreeMap::new(),
            pins,
            recent: Recent::default(),
            arriving: Vec::new(),
            allocated,
        };
        Self {
            origin,
            shared,
            segments,
            io: RwLock::new(()),
            flushing: Mutex::new(()),
            pinning: Mutex::new(()),
            state: Mutex::new(state),
            damaged_blocks: AtomicU64::new(0),
            evicted_blocks: AtomicU64::new(0),
        }
    }

    /// Whose log it is.
    pub fn origin(&self) -> OriginId {
        self.origin
    }

    /// A run of blocks within one munro with its proof, to serve it; `None` if not all of it is held.
    pub fn read_run(&self, bin: Bin) -> Result<Option<VerifiedRun>, ReadError> {
        let (Some(munro), Some(blocks)) = (bin.munro(), bin.blocks()) else { return Ok(None) };
        if bin.layer() > MUNRO_LAYER {
            return Ok(None);
        }
        let _io = self.io();
        if !self.state().presence.holds(munro, blocks) {
            return Ok(None);
        }
        let Some((nodes, file)) = self.open_munro(munro)? else {
            self.drop_damaged(munro, munro.blocks());
            return Ok(None);
        };
        self.prove_blocks(&nodes, &file, blocks);
        let read = file.read_vec(content_offset(blocks.start), blocks.byte_len() as usize);
        let bytes: Bytes = match read {
            Ok(read) => read.into(),
            Err(error) => {
                tracing::warn!(%error, "the cache cannot be read there");
                self.drop_damaged(munro, blocks);
                return Ok(None);
            }
        };
        let tick = self.shared.tick(blocks.byte_len());
        self.state().presence.touch(munro, blocks, tick);
        if let Ok(run) = nodes.verify(bin, bytes.clone()) {
            return Ok(Some(run));
        }
        let wrong = nodes.wrong(blocks, &bytes);
        // All blocks right one by one, and yet no run: a stored hash between is wrong.
        let wrong = if wrong.is_empty() { vec![blocks] } else { wrong };
        for part in wrong {
            self.drop_damaged(munro, part);
        }
        Ok(None)
    }

    /// Reads what is held of `blocks` into `out`, verified; gives the ranges that are missing, whose
    /// bytes in `out` are unspecified or zero.
    ///
    /// # Panics
    /// If `out` is not `blocks.byte_len()` long.
    pub fn read_blocks(
        &self,
        blocks: BlockRange,
        out: &mut [u8],
    ) -> Result<Vec<BlockRange>, ReadError> {
        assert_eq!(out.len() as u64, blocks.byte_len(), "the buffer is as long as the blocks");
        let tick = self.shared.tick(out.len() as u64);
        let _io = self.io();
        let mut missing = Vec::new();
        let mut rest = out;
        for (munro, part) in by_munro(blocks) {
            let (content, after) = rest.split_at_mut(part.byte_len() as usize);
            rest = after;
            self.read_part(munro, part, content, tick, &mut missing)?;
        }
        Ok(missing)
    }

    /// Reads the blocks of one munro.
    fn read_part(
        &self,
        munro: MunroIndex,
        part: BlockRange,
        out: &mut [u8],
        tick: u16,
        missing: &mut Vec<BlockRange>,
    ) -> Result<(), ReadError> {
        let not_on_disk = {
            let mut state = self.state();
            state.presence.touch(munro, part, tick);
            let absent = state.presence.parts_missing(part);
            if absent.is_empty() && state.recent.read(part, out) {
                return Ok(());
            }
            absent
        };
        let mut absent = not_on_disk.clone();
        absent.retain(|range| {
            let from = ((range.start.0 - part.start.0) * BLOCK_BYTES) as usize;
            let content = out.get_mut(from..from + range.byte_len() as usize);
            !content.is_some_and(|content| self.state().read_arriving(*range, content))
        });
        if not_on_disk == [part] {
            for range in absent {
                push_joined(missing, range);
            }
            return Ok(());
        }
        let Some((nodes, file)) = self.open_munro(munro)? else {
            self.drop_damaged(munro, munro.blocks());
            push_joined(missing, part);
            return Ok(());
        };
        for held in gaps(part, &not_on_disk) {
            let from = ((held.start.0 - part.start.0) * BLOCK_BYTES) as usize;
            let Some(content) = out.get_mut(from..from + held.byte_len() as usize) else { break };
            self.prove_blocks(&nodes, &file, held);
            let wrong = match file.read(content_offset(held.start), content) {
                Ok(()) => nodes.wrong(held, content),
                Err(error) => {
                    tracing::warn!(%error, "the cache cannot be read there");
                    vec![held]
                }
            };
            for part in wrong {
                let from = ((part.start.0 - held.start.0) * BLOCK_BYTES) as usize;
                // What was refused is not even left in the buffer.
                if let Some(bytes) = content.get_mut(from..from + part.byte_len() as usize) {
                    bytes.fill(0);
                }
                self.drop_damaged(munro, part);
                absent.push(part);
            }
        }
        absent.sort_unstable_by_key(|range| range.start);
        for range in absent {
            push_joined(missing, range);
        }
        Ok(())
    }

    /// What came as a whole granule is proved as one. Whoever reads less of it (`blocks` begin or end
    /// within it) needs its blocks proved one by one: they are, once, from all of it.
    fn prove_blocks(&self, nodes: &MunroNodes, file: &SegmentFile, blocks: BlockRange) {
        let Some(last) = blocks.end().0.checked_sub(1).filter(|_| !blocks.is_empty()) else {
            return;
        };
        let (first, last) = (blocks.start.granule(), BlockIndex(last).granule());
        for granule in [Some(first), Some(last).filter(|last| *last != first)].into_iter().flatten()
        {
            let whole = granule.blocks();
            let part = whole.intersection(blocks);
            let proved = |block: BlockIndex| nodes.proved(block.bin()).is_some();
            if part == whole || part.iter().all(proved) {
                continue;
            }
            let munro = whole.start.munro();
            if !self.state().presence.holds(munro, whole) {
                continue;
            }
            // What cannot be read or is wrong is found out by the read that follows.
            let content = file.read_vec(content_offset(whole.start), whole.byte_len() as usize);
            if content.is_ok_and(|content| nodes.learn_blocks(granule.bin(), &content)) {
                self.state().dirty.insert(munro.0);
            }
        }
    }

    /// Proves the blocks of granules of which only a part is `going`, for what stays; gives what may
    /// go. The hashes are on the disk before that: after a kill nothing else proves what stays.
    pub(super) fn prove_rest(&self, munro: MunroIndex, going: Bits) -> Bits {
        let held = self.state().presence.munro(munro).map_or([0; 4], |presence| presence.bits);
        let cut = (0..GRANULES_PER_MUNRO)
            .map(granule_bits)
            .filter(|granule| {
                and(and(held, going), *granule) != [0; 4]
                    && and(and_not(held, going), *granule) != [0; 4]
            })
            .fold([0; 4], or);
        if cut == [0; 4] {
            return going;
        }
        let Ok(Some((nodes, file))) = self.open_munro(munro) else {
            return going;
        };
        for part in runs(munro, and_not(and(held, cut), going)) {
            self.prove_blocks(&nodes, &file, part);
        }
        match nodes.write(&file) {
            Ok(()) => going,
            Err(error) => {
                tracing::warn!(%error, "granules that are wanted in part stay whole");
                and_not(going, cut)
            }
        }
    }

    /// The signed munro, if something of it is held or it was used lately.
    pub fn munro(&self, munro: MunroIndex) -> Result<Option<VerifiedMunro>, ReadError> {
        let _io = self.io();
        Ok(self.open_munro(munro)?.map(|(nodes, _)| nodes.trust()))
    }

    /// The parts of `blocks` that are not held.
    pub fn missing(&self, blocks: BlockRange) -> Vec<BlockRange> {
        self.state().presence.parts_missing(blocks)
    }

    /// Everything that is held.
    pub fn held(&self) -> Vec<BlockRange> {
        self.state().presence.held()
    }

    /// How many of `blocks` are held.
    pub fn held_blocks(&self, blocks: BlockRange) -> u64 {
        self.state().presence.count_in(blocks)
    }

    /// How many blocks are held in all.
    pub fn held_blocks_total(&self) -> u64 {
        self.state().presence.count()
    }

    /// Blocks that lost their claim, evicted or damaged, since the last call, and are not held
    /// again: peers must be told.
    pub fn take_evicted(&self) -> Vec<BlockRange> {
        let gone = std::mem::take(&mut self.state().gone);
        let mut ranges = Vec::new();
        for (munro, bits) in gone {
            for run in runs(MunroIndex(munro), bits) {
                push_joined(&mut ranges, run);
            }
        }
        ranges
    }

    /// Blocks that lost their claim since the cache was opened.
    pub fn drops(&self) -> Drops {
        Drops {
            damaged_blocks: self.damaged_blocks.load(Ordering::Relaxed),
            evicted_blocks: self.evicted_blocks.load(Ordering::Relaxed),
        }
    }

    /// Replaces the small state file `name` (a-z, 0-9, -; not beginning with _), durably.
    pub fn save(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        state_file::save(self.directory(), Self::public_name(name)?, bytes)
    }

    /// The content of the state file `name`; `None` if it was never saved.
    pub fn load(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        state_file::load(self.directory(), Self::public_name(name)?)
    }

    /// Names that begin with _ are the store's own.
    fn public_name(name: &str) -> Result<&str, StateError> {
        if name.starts_with('_') {
            return Err(StateError::Name { name: name.to_owned() });
        }
        Ok(name)
    }

    pub(super) fn directory(&self) -> &Directory {
        self.segments.directory()
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // Claims are checked at every read: what a panicking thread left behind cannot be believed
        // wrongly, so that one panic does not take the cache away from everybody.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn io(&self) -> RwLockReadGuard<'_, ()> {
        self.io.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn count_evicted(&self, blocks: u64) {
        self.evicted_blocks.fetch_add(blocks, Ordering::Relaxed);
    }

    /// Takes the claim of blocks away that were found wrong.
    fn drop_damaged(&self, munro: MunroIndex, blocks: BlockRange) {
        let mut state = self.state();
        let removed = state.presence.remove(munro, bits_of(blocks));
        let count = super::presence::count(removed);
        if count == 0 {
            return;
        }
        let gone = state.gone.entry(munro.0).or_insert([0; 4]);
        *gone = or(*gone, removed);
        state.dirty.insert(munro.0);
        self.damaged_blocks.fetch_add(count, Ordering::Relaxed);
        tracing::warn!(
            origin = %self.origin, munro = munro.0, first = blocks.start.0, count,
            "damaged blocks dropped from the cache"
        );
    }

    /// The nodes and the segment of a munro; `None` if its record is missing or forged.
    fn open_munro(&self, munro: MunroIndex) -> Result<Option<OpenMunro>, ReadError> {
        let Some(file) = self.segments.open(Segments::number_of(munro))? else { return Ok(None) };
        if let Some(nodes) = self.state().nodes.get(&munro.0) {
            return Ok(Some((Arc::clone(nodes), file)));
        }
        let loaded = trusted_record(&file, munro, &self.origin).and_then(|record| {
            record
                .and_then(Result::ok)
                .map(|trust| MunroNodes::load(&file, trust, true))
                .transpose()
        });
        match loaded {
            Ok(nodes) => Ok(nodes.map(|nodes| (self.remember(nodes), file))),
            Err(error) => {
                // A sector that cannot be read is as good as one that is wrong: fetched again.
                tracing::warn!(%error, "the cache cannot be read there");
                Ok(None)
            }
        }
    }

    /// Keeps nodes in memory; what is longest unused goes, to the disk first if that lacks it.
    pub(super) fn remember(&self, nodes: MunroNodes) -> Arc<MunroNodes> {
        let munro = nodes.trust().munro();
        let mut state = self.state();
        if let Some(known) = state.nodes.get(&munro.0) {
            return Arc::clone(known);
        }
        let nodes = Arc::new(nodes);
        state.nodes.put(munro.0, Arc::clone(&nodes));
        // Nodes that somebody holds at this moment stay; the next call takes them.
        for _ in 0..8 {
            if state.nodes.len() <= MUNROS_IN_MEMORY_MAX.get() {
                break;
            }
            let Some((oldest, nodes)) = state.nodes.pop_lru() else { break };
            if Arc::strong_count(&nodes) > 1 || !self.write_nodes(&state, oldest, &nodes) {
                state.nodes.put(oldest, nodes);
            }
        }
        nodes
    }

    /// Writes nodes that leave memory; `false` if the disk refuses.
    fn write_nodes(&self, state: &State, munro: u64, nodes: &MunroNodes) -> bool {
        if !nodes.is_dirty() || state.presence.munro(MunroIndex(munro)).is_none() {
            return true;
        }
        let file = self.segments.open(munro / SEGMENT_MUNROS);
        matches!(file, Ok(Some(file)) if nodes.write(&file).is_ok())
    }
}

/// The parts of `whole` that lie between the (sorted, disjoint) `holes`.
fn gaps(whole: BlockRange, holes: &[BlockRange]) -> Vec<BlockRange> {
    let mut gaps = Vec::with_capacity(holes.len() + 1);
    let mut next = whole.start;
    for hole in holes {
        if hole.start > next {
            gaps.push(BlockRange::new(next, hole.start.0 - next.0));
        }
        next = hole.end();
    }
    if whole.end() > next {
        gaps.push(BlockRange::new(next, whole.end().0 - next.0));
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{blocks, content, origin, run};
    use super::super::{Cache, CacheOptions};
    use super::*;
    use crate::unit::{BlockIndex, GranuleIndex};

    fn open(dir: &std::path::Path) -> (Cache, Arc<CachedLog>) {
        let cache = Cache::open(dir, CacheOptions::default()).expect("opened");
        let log = cache.log(origin()).expect("opened");
        (cache, log)
    }

    #[test]
    fn what_is_put_is_read_at_once_and_after_a_flush_and_a_kill() {
        let temp = tempfile::tempdir().expect("tempdir");
        let dir = temp.path().join("cache");
        let (cache, log) = open(&dir);
        let bins = [GranuleIndex(0).bin(), BlockIndex(7).bin(), GranuleIndex(64 * 1024).bin()];
        for bin in bins {
            log.put(&run(bin)).expect("put");
        }
        cache.flush().expect("flushed");
        let late = GranuleIndex(5).bin();
        log.put(&run(late)).expect("put");
        let check = |log: &CachedLog, bins: &[Bin]| {
            for bin in bins {
                let read = log.read_run(*bin).expect("read").expect("held");
                assert_eq!(read.bytes(), run(*bin).bytes());
                assert_eq!(read.uncles(), run(*bin).uncles());
            }
        };
        check(&log, &bins);
        check(&log, &[late]);
        // Dropped without a flush: what a kill leaves.
        drop((cache, log));
        let (cache, log) = open(&dir);
        check(&log, &bins);
        assert_eq!(log.held(), [blocks(0, 4), blocks(7, 1), blocks(256 * 1024, 4)]);
        assert!(log.read_run(late).expect("read").is_none());
        let mut out = vec![0; 10 * 4096];
        let missing = log.read_blocks(blocks(0, 10), &mut out).expect("read");
        assert_eq!(missing, [blocks(4, 3), blocks(8, 2)]);
        assert_eq!(out[..4 * 4096], content(blocks(0, 4)));
        assert_eq!(out[7 * 4096..8 * 4096], content(blocks(7, 1)));
        assert_eq!(cache.usage().drops, Drops::default());
    }
}
