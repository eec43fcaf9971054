//! An origin's log on its disk: what is committed, read back only verified.
//!
//! One small file, `commit.state`, says how many munros are committed and holds the newest one's
//! signature. Nothing beyond it is ever read as part of the log: after a crash it is rubbish that the
//! next [`super::Appender`] drops.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use lru::LruCache;

use crate::frame::{FrameError, IndexError};
use crate::keys::OriginId;
use crate::limits::{BLOCK_BYTES, MUNRO_LAYER};
use crate::tree::{
    Frontier, NodeHash, SignatureError, StoredRun, VerifiedMunro, VerifiedRun, VerifyError,
};
use crate::unit::{Bin, BlockRange, ByteRange, MunroIndex};

use super::directory::{Access, Directory};
use super::framed::{Framed, read_stored_blocks};
use super::nodes::{MunroNodes, by_munro, trusted_record};
use super::segment::{DescriptorPool, Kind, SegmentFile, Segments, decode_record, encode_record};
use super::{DiskError, OpenError, StateError, state_file};

/// Munros whose signature and tree are kept in memory, about 17 KiB each.
const MUNROS_IN_MEMORY_MAX: NonZeroUsize = NonZeroUsize::new(2048).unwrap();
/// How long a verified run is served without being verified again: what lies in memory does not rot,
/// and a disk rots slowly.
const DOUBT_AFTER: Duration = Duration::from_secs(60);
/// Name of the state file that commits.
const COMMIT_NAME: &str = "commit";

/// An origin's log, to read. Cheap to open, needs no lock, may be open in many processes.
pub struct OriginLog {
    origin: OriginId,
    segments: Segments,
    committed: RwLock<Committed>,
    nodes: Mutex<LruCache<u64, Arc<MunroNodes>>>,
    framed: Framed,
    /// How often somebody doubted what was served.
    doubts: AtomicU64,
}

/// How far a log reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Munros committed.
    pub munros: u64,
    /// The last of them; its last block is the head.
    pub newest: VerifiedMunro,
}

/// The content of the commit file.
#[derive(Clone)]
pub(super) struct Committed {
    pub(super) frontier: Frontier,
    /// `None` for the log that was never published to.
    pub(super) newest: Option<VerifiedMunro>,
}

/// Why the log cannot be read there.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The disk said no.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A file cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The commit file is damaged.
    #[error(transparent)]
    State(#[from] StateError),
    /// The stored signature of a munro does not hold, or there is none.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// Bytes that are not what the origin signed: run `distd-origin verify`.
    #[error("blocks {}..{} of the log are damaged: run verify", blocks.start, blocks.end())]
    Damaged {
        /// The smallest range known to be wrong.
        blocks: BlockRange,
    },
    /// The index of frames.
    #[error("{0}: run verify")]
    Index(#[from] IndexError),
    /// A frame.
    #[error("{0}: run verify")]
    Frame(#[from] FrameError),
    /// No retained release needs it.
    #[error("blocks {}..{} of the log are gone: the releases that needed them were pruned", blocks.start, blocks.end())]
    Gone {
        /// What is gone of what was asked for.
        blocks: BlockRange,
    },
    /// Not committed.
    #[error("the log ends at block {end}, asked for blocks {}..{}", blocks.start, blocks.end())]
    Beyond {
        /// What was asked for.
        blocks: BlockRange,
        /// One past the last committed block.
        end: u64,
    },
    /// A committed log grew shorter: an old copy was put in its place.
    #[error("the log had {known} munros and has {found}: an older copy stands in its place")]
    Shrunk {
        /// Munros that were committed before.
        known: u64,
        /// Munros that the commit file names.
        found: u64,
    },
}

impl OriginLog {
    /// Makes an empty log in `dir`.
    pub fn create(dir: &Path, origin: OriginId) -> Result<Self, OpenError> {
        let directory = Directory::public_created(dir)?;
        if state_file::load(&directory, COMMIT_NAME)?.is_some() {
            return Err(OpenError::Exists { path: dir.to_owned() });
        }
        let empty = Committed { frontier: Frontier::empty(), newest: None };
        empty.save(&directory, &origin)?;
        Self::open(dir)
    }

    /// Opens the log in `dir`.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        Self::over(Arc::new(Directory::public(dir)?))
    }

    pub(super) fn over(directory: Arc<Directory>) -> Result<Self, OpenError> {
        let Some((origin, committed)) = Committed::load(&directory)? else {
            return Err(OpenError::NoLog { path: directory.path().to_owned() });
        };
        let pool = Arc::new(DescriptorPool::new());
        Ok(Self {
            origin,
            segments: Segments::new(directory, Kind::Log, origin, Access::Read, pool),
            committed: RwLock::new(committed),
            nodes: Mutex::new(LruCache::new(MUNROS_IN_MEMORY_MAX)),
            framed: Framed::new(),
            doubts: AtomicU64::new(0),
        })
    }

    /// Whose log it is.
    pub fn origin(&self) -> OriginId {
        self.origin
    }

    /// Its directory; a commit is a rename in it.
    pub fn dir(&self) -> &Path {
        self.segments.directory().path()
    }

    /// How far the log reaches; `None` before the first publish.
    pub fn committed(&self) -> Option<Commit> {
        let committed = self.known();
        Some(Commit { munros: committed.frontier.munros(), newest: committed.newest? })
    }

    /// The peaks of what is committed.
    pub fn frontier(&self) -> Frontier {
        self.known().frontier.clone()
    }

    /// Looks for what another process has committed meanwhile; whether there is more.
    pub fn reload(&self) -> Result<bool, ReadError> {
        let directory = self.segments.directory();
        let Some((origin, found)) = Committed::load(directory)? else {
            return Err(OpenError::NoLog { path: directory.path().to_owned() }.into());
        };
        let known = self.known().frontier.munros();
        if origin != self.origin || found.frontier.munros() < known {
            return Err(ReadError::Shrunk { known, found: found.frontier.munros() });
        }
        let changed = found.frontier.munros() > known;
        if changed {
            self.commit(found);
        }
        Ok(changed)
    }

    /// A run of blocks within one munro with its proof; `None` beyond what is committed, and where
    /// something of it is gone on purpose.
    pub fn read_run(&self, bin: Bin) -> Result<Option<VerifiedRun>, ReadError> {
        self.read_run_as(bin, MunroNodes::verify)
    }

    /// A run for a peer, who verifies it: what this process has verified within a minute is not
    /// hashed once more, which is a third of what serving costs. `None` as of [`Self::read_run`].
    pub fn stored_run(&self, bin: Bin) -> Result<Option<StoredRun>, ReadError> {
        let era = (self.doubts.load(Ordering::Relaxed), DOUBT_AFTER);
        self.read_run_as(bin, |nodes, bin, bytes| nodes.stored_run(bin, bytes, era))
    }

    /// Something that was served may have been wrong: everything is hashed again before it is served.
    pub fn doubt(&self) {
        self.doubts.fetch_add(1, Ordering::Relaxed);
    }

    fn read_run_as<R>(
        &self,
        bin: Bin,
        verify: impl Fn(&MunroNodes, Bin, Bytes) -> Result<R, VerifyError>,
    ) -> Result<Option<R>, ReadError> {
        let Some(blocks) = bin.blocks() else { return Ok(None) };
        match self.read_again(blocks, || self.read_run_once(bin, &verify)) {
            Err(ReadError::Gone { .. }) => Ok(None),
            other => other,
        }
    }

    /// Reads; once more if that failed and a prune may meanwhile have changed where `blocks` lie.
    fn read_again<T>(
        &self,
        blocks: BlockRange,
        read: impl Fn() -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        let error = match read() {
            Err(error) if !matches!(error, ReadError::Beyond { .. }) => error,
            other => return other,
        };
        // Whoever asks for what went must not cost everybody the index.
        let named = |error| match self.gone(blocks).as_deref() {
            Ok([first, ..]) => ReadError::Gone { blocks: *first },
            _ => error,
        };
        let error = match named(error) {
            gone @ ReadError::Gone { .. } => return Err(gone),
            error => error,
        };
        if self.reload().is_err() {
            return Err(error);
        }
        self.framed.forget();
        read().map_err(named)
    }

    fn read_run_once<R>(
        &self,
        bin: Bin,
        verify: impl Fn(&MunroNodes, Bin, Bytes) -> Result<R, VerifyError>,
    ) -> Result<Option<R>, ReadError> {
        let (Some(munro), Some(blocks)) = (bin.munro(), bin.blocks()) else { return Ok(None) };
        if bin.layer() > MUNRO_LAYER || munro.0 >= self.known().frontier.munros() {
            return Ok(None);
        }
        let (nodes, file) = self.open_munro(munro)?;
        self.prove_blocks(&nodes, &file, bin)?;
        let bytes = self.content(&nodes, blocks, |part| read_stored_blocks(&file, part))?;
        verify(&nodes, bin, bytes.clone()).map(Some).map_err(|_| {
            let wrong = nodes.wrong(blocks, &bytes);
            ReadError::Damaged { blocks: wrong.first().copied().unwrap_or(blocks) }
        })
    }

    /// Reads blocks, verified.
    ///
    /// # Panics
    /// If `out` is not `blocks.byte_len()` long.
    pub fn read_blocks(&self, blocks: BlockRange, out: &mut [u8]) -> Result<(), ReadError> {
        let out = std::cell::RefCell::new(out);
        self.read_again(blocks, || {
            self.read_parts(blocks, &mut out.borrow_mut(), |nodes, file, part| {
                self.content(nodes, part, |stored| read_verified(nodes, file, stored))
            })
        })
    }

    /// Reads bytes, verified.
    pub fn read_bytes(&self, range: ByteRange) -> Result<Vec<u8>, ReadError> {
        self.read_range(range, |blocks, out| self.read_blocks(blocks, out))
    }

    /// Reads bytes that are stored as they are, verified: of frames, their index, or heads.
    pub(super) fn read_stored(&self, range: ByteRange) -> Result<Vec<u8>, ReadError> {
        self.read_range(range, |blocks, out| self.read_parts(blocks, out, read_verified))
    }

    fn read_parts(
        &self,
        blocks: BlockRange,
        out: &mut [u8],
        read: impl Fn(&MunroNodes, &SegmentFile, BlockRange) -> Result<Bytes, ReadError>,
    ) -> Result<(), ReadError> {
        assert_eq!(out.len() as u64, blocks.byte_len(), "the buffer is as long as the blocks");
        let end = self.known().frontier.munros() * MunroIndex(0).blocks().count;
        if blocks.start.0.checked_add(blocks.count).is_none_or(|last| last > end) {
            return Err(ReadError::Beyond { blocks, end });
        }
        let mut rest = out;
        for (munro, part) in by_munro(blocks) {
            let (content, after) = rest.split_at_mut(part.byte_len() as usize);
            rest = after;
            let (nodes, file) = self.open_munro(munro)?;
            content.copy_from_slice(&read(&nodes, &file, part)?);
        }
        Ok(())
    }

    fn read_range(
        &self,
        range: ByteRange,
        read: impl Fn(BlockRange, &mut [u8]) -> Result<(), ReadError>,
    ) -> Result<Vec<u8>, ReadError> {
        let beyond = BlockRange::new(crate::unit::BlockIndex(range.offset / BLOCK_BYTES), 1);
        let end = self.known().frontier.munros() * MunroIndex(0).blocks().count;
        if range.end().is_none_or(|last| last > end * BLOCK_BYTES) {
            return Err(ReadError::Beyond { blocks: beyond, end });
        }
        let blocks = range.blocks();
        let mut bytes = vec![0; blocks.byte_len() as usize];
        read(blocks, &mut bytes)?;
        bytes.truncate((range.offset - blocks.byte_offset() + range.len) as usize);
        Ok(bytes.split_off((range.offset - blocks.byte_offset()) as usize))
    }

    /// A committed munro's signature.
    pub fn munro(&self, munro: MunroIndex) -> Result<VerifiedMunro, ReadError> {
        let end = self.known().frontier.munros();
        if munro.0 >= end {
            let blocks = munro.blocks();
            return Err(ReadError::Beyond { blocks, end: end * blocks.count });
        }
        Ok(self.open_munro(munro)?.0.trust())
    }

    /// A committed munro's hash, for proofs.
    pub fn munro_hash(&self, munro: MunroIndex) -> Result<NodeHash, ReadError> {
        Ok(self.munro(munro)?.hash())
    }

    pub(super) fn framed(&self) -> &Framed {
        &self.framed
    }

    pub(super) fn segments(&self) -> &Segments {
        &self.segments
    }

    pub(super) fn known(&self) -> std::sync::RwLockReadGuard<'_, Committed> {
        self.committed.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn commit(&self, committed: Committed) {
        *self.committed.write().unwrap_or_else(PoisonError::into_inner) = committed;
    }

    pub(super) fn open_munro(
        &self,
        munro: MunroIndex,
    ) -> Result<(Arc<MunroNodes>, Arc<SegmentFile>), ReadError> {
        let unsigned = SignatureError { munro, origin: self.origin };
        let Some(file) = self.segments.open(Segments::number_of(munro))? else {
            return Err(ReadError::Damaged { blocks: munro.blocks() });
        };
        let lock = || self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(nodes) = lock().get(&munro.0) {
            return Ok((Arc::clone(nodes), file));
        }
        let trust = trusted_record(&file, munro, &self.origin)?.ok_or(unsigned)??;
        let nodes = Arc::new(MunroNodes::load(&file, trust, true)?);
        lock().put(munro.0, Arc::clone(&nodes));
        Ok((nodes, file))
    }
}

/// Blocks of one munro as they are stored, verified.
fn read_verified(
    nodes: &MunroNodes,
    file: &SegmentFile,
    blocks: BlockRange,
) -> Result<Bytes, ReadError> {
    let bytes = read_stored_blocks(file, blocks)?;
    match nodes.wrong(blocks, &bytes).first() {
        None => Ok(bytes),
        Some(wrong) => Err(ReadError::Damaged { blocks: *wrong }),
    }
}

impl Committed {
    /// ```text
    /// 0  origin (32)  32  munros (8)  40  record of the newest munro (128)  168  peaks (32 each)
    /// ```
    pub(super) fn save(&self, directory: &Directory, origin: &OriginId) -> Result<(), StateError> {
        let mut bytes = origin.0.to_vec();
        bytes.extend_from_slice(&self.frontier.munros().to_le_bytes());
        let record = self.newest.map_or([0; 128], |newest| encode_record(&newest.signed()));
        bytes.extend_from_slice(&record);
        bytes.extend(self.frontier.peaks().iter().flat_map(|peak| peak.0));
        state_file::save(directory, COMMIT_NAME, &bytes)
    }

    fn load(directory: &Directory) -> Result<Option<(OriginId, Self)>, OpenError> {
        let Some(bytes) = state_file::load(directory, COMMIT_NAME)? else { return Ok(None) };
        let corrupt =
            || OpenError::State(StateError::Corrupt { path: directory.path_of("commit.state") });
        let (origin, rest) = bytes.split_first_chunk::<32>().ok_or_else(corrupt)?;
        let (munros, rest) = rest.split_first_chunk::<8>().ok_or_else(corrupt)?;
        let (record, peaks) = rest.split_first_chunk::<128>().ok_or_else(corrupt)?;
        let (peaks, tail) = peaks.as_chunks::<32>();
        if !tail.is_empty() {
            return Err(corrupt());
        }
        let (origin, munros) = (OriginId(*origin), u64::from_le_bytes(*munros));
        let peaks = peaks.iter().copied().map(NodeHash).collect();
        let frontier = Frontier::from_peaks(munros, peaks).map_err(|_| corrupt())?;
        let newest = match munros.checked_sub(1) {
            None => None,
            Some(last) => {
                let signed = decode_record(MunroIndex(last), record).ok_or_else(corrupt)?;
                Some(signed.verify(&origin)?)
            }
        };
        Ok(Some((origin, Self { frontier, newest })))
    }
}
