//! Appending one epoch to an origin's log, with one commit point.
//!
//! ```text
//! append        lock; punch out everything beyond the commit
//! write         content to the disk, full munros to the hashing threads, which write node tables
//! seal          head munro, signatures, records; sync all segments; sync the directory
//!               replace commit.state                                   <- the commit
//! ```
//!
//! A crash before the commit leaves rubbish beyond it, which the next `append` drops before it
//! writes: so no position is ever signed twice with two contents.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rayon::prelude::*;

use crate::keys::{NtpTime, OriginId, OriginKey};
use crate::limits::{BLOCK_BYTES, LOG_MUNROS_MAX, MUNRO_BYTES};
use crate::tree::{Frontier, MunroTree, NodeHash, VerifiedMunro};
use crate::unit::{BlockIndex, BlockRange, MunroIndex};

use super::directory::{Access, Directory, Lock};
use super::log::{Committed, ReadError};
use super::nodes::table_bytes;
use super::segment::{
    CONTENT_OFFSET, DescriptorPool, GRANULE_TABLE_BYTES, Kind, RECORDS_END, SEGMENT_BYTES,
    SEGMENT_MUNROS, Segments, TABLE_BYTES, content_offset, encode_record, record_offset,
    table_offset,
};
use super::{Commit, DiskError, OpenError, OriginLog, StateError};

/// Full munros that may wait for a hashing thread, 1 MiB each.
const MUNROS_WAITING_MAX: usize = 8;
/// Hashing threads at most.
const HASHERS_MAX: usize = 4;
/// Munros after which what was written is synced in the background, so that the seal has less to do.
/// Not in the first section: most of what is plain goes before the seal, and need not reach the disk.
const SYNC_MUNROS: u64 = 64;

/// Why an epoch cannot be appended. Nothing of it is committed then.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The log cannot be opened, or another process appends to it.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The disk said no.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The commit file cannot be replaced.
    #[error(transparent)]
    State(#[from] StateError),
    /// An earlier write of this epoch failed, so that it cannot be committed.
    #[error("an earlier write of this publish failed: start it again")]
    Poisoned,
    /// The key is not that of the log.
    #[error("the key is that of origin {found}, the log is that of {expected}")]
    WrongKey {
        /// The log's origin.
        expected: OriginId,
        /// The key's.
        found: OriginId,
    },
    /// The log is as long as a log can be.
    #[error("the log has {LOG_MUNROS_MAX} munros and cannot grow")]
    Full,
}

/// One epoch in the making; dropped without [`Appender::seal`] it leaves the log as it was.
pub struct Appender {
    log: OriginLog,
    pub(super) segments: Arc<Segments>,
    hashers: Hashers,
    /// Content of the munro that is being filled, not yet on the disk.
    filling: Vec<u8>,
    munro: MunroIndex,
    /// Sections before the one that is being written.
    sections: u32,
    /// Written blocks whose content goes before the commit: frames hold it.
    dropped: Vec<BlockRange>,
    /// Munros all of whose content goes.
    emptied: Vec<MunroIndex>,
    /// Older segments that were written to.
    pub(super) touched: BTreeSet<u64>,
    poisoned: bool,
    _lock: Lock,
}

/// The log as its new head's block is made.
pub struct Sealing<'a> {
    /// Peaks of all munros before the head's own.
    pub frontier: &'a Frontier,
    /// Munros that the log will have, the head's own included.
    pub munros: u64,
    log: &'a OriginLog,
    first: MunroIndex,
    new: &'a [NodeHash],
}

impl Sealing<'_> {
    /// The hash of a munro before the head's own, committed or of this epoch.
    pub fn munro_hash(&self, munro: MunroIndex) -> Result<NodeHash, ReadError> {
        let new = munro.0.checked_sub(self.first.0).and_then(|i| self.new.get(i as usize));
        new.map_or_else(|| self.log.munro_hash(munro), |hash| Ok(*hash))
    }
}

impl OriginLog {
    /// Begins an epoch: takes the log for this process alone and drops what a crash left behind.
    pub fn append(dir: &Path) -> Result<Appender, AppendError> {
        Appender::over(Arc::new(Directory::public(dir)?))
    }
}

impl Appender {
    pub(super) fn over(directory: Arc<Directory>) -> Result<Self, AppendError> {
        let lock = directory.lock("lock")?;
        let log = OriginLog::over(Arc::clone(&directory))?;
        let pool = Arc::new(DescriptorPool::new());
        let segments =
            Arc::new(Segments::new(directory, Kind::Log, log.origin(), Access::Write, pool));
        let munro = MunroIndex(log.known().frontier.munros());
        drop_beyond(&segments, munro)?;
        Ok(Self {
            log,
            hashers: Hashers::spawn(&segments),
            segments,
            filling: Vec::with_capacity(MUNRO_BYTES as usize),
            munro,
            sections: 0,
            dropped: Vec::new(),
            emptied: Vec::new(),
            touched: BTreeSet::new(),
            poisoned: false,
            _lock: lock,
        })
    }

    /// What is committed so far.
    pub fn log(&self) -> &OriginLog {
        &self.log
    }

    /// Where the next block goes.
    pub fn next_block(&self) -> BlockIndex {
        BlockIndex(self.munro.blocks().start.0 + self.filling.len() as u64 / BLOCK_BYTES)
    }

    /// Appends whole blocks; gives the first one's index.
    ///
    /// # Panics
    /// If `bytes` is not a multiple of [`BLOCK_BYTES`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<BlockIndex, AppendError> {
        assert!((bytes.len() as u64).is_multiple_of(BLOCK_BYTES), "only whole blocks are appended");
        self.check_poison()?;
        let first = self.next_block();
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = MUNRO_BYTES as usize - self.filling.len();
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.filling.extend_from_slice(now);
            rest = later;
            if self.filling.len() as u64 == MUNRO_BYTES {
                self.finish_munro()?;
            }
        }
        Ok(first)
    }

    /// Goes to the next munro boundary, if it is not on one. What is skipped reads as zeros, is
    /// signed as zeros and takes no disk space.
    pub fn begin_section(&mut self) -> Result<(), AppendError> {
        self.check_poison()?;
        if !self.filling.is_empty() {
            self.finish_munro()?;
        }
        self.sections += 1;
        Ok(())
    }

    /// Reads blocks of this epoch back; they are not committed and so not verified.
    ///
    /// # Panics
    /// If they do not lie between what is committed and [`Self::next_block`].
    pub fn read_back(&self, blocks: BlockRange) -> Result<Vec<u8>, AppendError> {
        let committed = MunroIndex(self.log.known().frontier.munros()).blocks().start;
        assert!(blocks.start >= committed && blocks.end() <= self.next_block(), "of this epoch");
        let mut bytes = vec![0; blocks.byte_len() as usize];
        let mut rest = bytes.as_mut_slice();
        for (munro, part) in super::nodes::by_munro(blocks) {
            let (out, after) = rest.split_at_mut(part.byte_len() as usize);
            rest = after;
            if munro == self.munro {
                let from = (part.byte_offset() - munro.byte_offset()) as usize;
                out.copy_from_slice(&self.filling[from..from + out.len()]);
            } else if let Some(file) = self.segments.open(Segments::number_of(munro))? {
                file.read(content_offset(part.start), out)?;
            }
        }
        Ok(bytes)
    }

    /// Says that full frames of this epoch hold all blocks of these bins of `munro`, so that their
    /// plain bytes need not be stored: they go when the epoch is sealed.
    ///
    /// # Panics
    /// If the munro is not a whole one of this epoch.
    pub fn keep_as_frames(&mut self, munro: MunroIndex, blocks: impl Iterator<Item = BlockRange>) {
        let committed = self.log.known().frontier.munros();
        assert!((committed..self.munro.0).contains(&munro.0), "a munro of this epoch");
        let first = self.dropped.len();
        self.dropped.extend(blocks);
        let count: u64 = self.dropped[first..].iter().map(|blocks| blocks.count).sum();
        if count == munro.blocks().count {
            self.emptied.push(munro);
        }
    }

    /// Gives back the space of what frames hold.
    fn drop_framed(&mut self) -> Result<(), AppendError> {
        for blocks in self.dropped.drain(..) {
            let file = self.segments.open_or_create(Segments::number_of(blocks.start.munro()))?;
            file.punch(content_offset(blocks.start), blocks.byte_len())?;
        }
        for munro in self.emptied.drain(..) {
            // The hashes below granules are made again from what the frames decode to.
            let file = self.segments.open_or_create(Segments::number_of(munro))?;
            let (kept, all) = (GRANULE_TABLE_BYTES, TABLE_BYTES);
            file.punch(table_offset(munro) + kept, all - kept)?;
        }
        Ok(())
    }

    /// Commits the epoch: signs its munros, with the head as the last block of one more munro.
    ///
    /// `head` is given all that the head's block says of the log before it.
    pub fn seal<E: From<AppendError>>(
        mut self,
        key: &OriginKey,
        time: NtpTime,
        head: impl FnOnce(&Sealing<'_>) -> Result<[u8; BLOCK_BYTES as usize], E>,
    ) -> Result<Commit, E> {
        let (expected, found) = (self.log.origin(), key.id());
        if expected != found {
            return Err(AppendError::WrongKey { expected, found }.into());
        }
        let mut hashes = self.hash_all()?;
        self.drop_framed()?;
        let mut frontier = self.log.frontier();
        let first = MunroIndex(frontier.munros());
        for hash in &hashes {
            frontier.push(*hash);
        }
        if self.munro.0 >= LOG_MUNROS_MAX {
            return Err(AppendError::Full.into());
        }
        let munros = self.munro.0 + 1;
        let sealing = Sealing { frontier: &frontier, munros, log: &self.log, first, new: &hashes };
        let head = head(&sealing)?;
        hashes.push(self.write_head(&head)?);
        frontier.push(hashes[hashes.len() - 1]);
        Ok(self.commit(key, time, first, &hashes, frontier)?)
    }

    /// The hashes of the epoch's munros, in order.
    fn hash_all(&mut self) -> Result<Vec<NodeHash>, AppendError> {
        self.begin_section()?;
        let hashes = self.hashers.finish()?;
        let first = self.log.known().frontier.munros();
        assert!(hashes.keys().copied().eq(first..self.munro.0), "every munro is hashed once");
        Ok(hashes.into_values().collect())
    }

    fn write_head(&self, head: &[u8; BLOCK_BYTES as usize]) -> Result<NodeHash, AppendError> {
        let mut content = vec![0; MUNRO_BYTES as usize - head.len()];
        content.extend_from_slice(head);
        let block = BlockIndex(self.munro.blocks().end().0 - 1);
        let file = self.segments.open_or_create(Segments::number_of(self.munro))?;
        file.write(content_offset(block), head)?;
        let nodes = MunroTree::hash_content(self.munro, &content);
        file.write(table_offset(self.munro), &table_bytes(&*nodes))?;
        Ok(nodes[1])
    }

    fn commit(
        &mut self,
        key: &OriginKey,
        time: NtpTime,
        first: MunroIndex,
        hashes: &[NodeHash],
        frontier: Frontier,
    ) -> Result<Commit, AppendError> {
        let signed: Vec<VerifiedMunro> = hashes
            .par_iter()
            .enumerate()
            .map(|(i, hash)| VerifiedMunro::sign(key, MunroIndex(first.0 + i as u64), *hash, time))
            .collect();
        let mut segments = std::mem::take(&mut self.touched);
        for group in
            signed.chunk_by(|a, b| Segments::number_of(a.munro()) == Segments::number_of(b.munro()))
        {
            let file = self.segments.open_or_create(Segments::number_of(group[0].munro()))?;
            let records: Vec<u8> =
                group.iter().flat_map(|munro| encode_record(&munro.signed())).collect();
            file.write(record_offset(group[0].munro()), &records)?;
            segments.insert(Segments::number_of(group[0].munro()));
        }
        for segment in segments {
            self.segments.open_or_create(segment)?.sync()?;
        }
        self.segments.directory().sync()?;
        let munros = frontier.munros();
        let newest = signed[signed.len() - 1];
        let committed = Committed { frontier, newest: Some(newest) };
        committed.save(self.segments.directory(), &self.log.origin())?;
        self.log.commit(committed);
        Ok(Commit { munros, newest })
    }

    /// Writes the content of the munro that is being filled, and has it hashed.
    fn finish_munro(&mut self) -> Result<(), AppendError> {
        self.poisoned = true;
        if self.munro.0 >= LOG_MUNROS_MAX {
            return Err(AppendError::Full);
        }
        let file = self.segments.open_or_create(Segments::number_of(self.munro))?;
        file.write(content_offset(self.munro.blocks().start), &self.filling)?;
        let mut content =
            std::mem::replace(&mut self.filling, Vec::with_capacity(MUNRO_BYTES as usize));
        content.resize(MUNRO_BYTES as usize, 0);
        self.hashers.hash(self.munro, content)?;
        if self.sections > 0 && self.munro.0 % SYNC_MUNROS == SYNC_MUNROS - 1 {
            self.hashers.send(Job::Sync(Segments::number_of(self.munro)))?;
        }
        self.munro = MunroIndex(self.munro.0 + 1);
        self.poisoned = false;
        Ok(())
    }

    fn check_poison(&self) -> Result<(), AppendError> {
        if self.poisoned { Err(AppendError::Poisoned) } else { Ok(()) }
    }
}

/// Drops everything at and beyond `munro`: content, node tables, records, whole segments.
fn drop_beyond(segments: &Segments, munro: MunroIndex) -> Result<(), AppendError> {
    let kept = munro.0.div_ceil(SEGMENT_MUNROS);
    for segment in segments.list()?.into_iter().filter(|segment| *segment >= kept) {
        segments.remove(segment)?;
    }
    if munro.0.is_multiple_of(SEGMENT_MUNROS) {
        return Ok(());
    }
    let file = segments.open_or_create(Segments::number_of(munro))?;
    let content = content_offset(munro.blocks().start);
    file.punch(content, CONTENT_OFFSET + SEGMENT_BYTES - content)?;
    file.punch(table_offset(munro), CONTENT_OFFSET - table_offset(munro))?;
    file.punch(record_offset(munro), RECORDS_END - record_offset(munro))?;
    Ok(())
}

/// Threads that hash full munros and write their node tables while the caller reads on.
struct Hashers {
    jobs: Option<SyncSender<Job>>,
    threads: Vec<JoinHandle<()>>,
    done: Arc<Mutex<Done>>,
}

enum Job {
    Hash(MunroIndex, Vec<u8>),
    Sync(u64),
}

#[derive(Default)]
struct Done {
    hashes: BTreeMap<u64, NodeHash>,
    /// The first failure; the epoch cannot be committed after it.
    failed: Option<AppendError>,
}

impl Hashers {
    fn spawn(segments: &Arc<Segments>) -> Self {
        let (sender, receiver) = sync_channel(MUNROS_WAITING_MAX);
        let receiver = Arc::new(Mutex::new(receiver));
        let done = Arc::new(Mutex::new(Done::default()));
        let count = std::thread::available_parallelism().map_or(1, usize::from).min(HASHERS_MAX);
        let threads = (0..count)
            .map(|_| {
                let (receiver, done) = (Arc::clone(&receiver), Arc::clone(&done));
                let segments = Arc::clone(segments);
                std::thread::spawn(move || work(&segments, &receiver, &done))
            })
            .collect();
        Self { jobs: Some(sender), threads, done }
    }

    fn hash(&self, munro: MunroIndex, content: Vec<u8>) -> Result<(), AppendError> {
        if let Some(error) = self.done().failed.take() {
            return Err(error);
        }
        self.send(Job::Hash(munro, content))
    }

    fn send(&self, job: Job) -> Result<(), AppendError> {
        // The threads end only after a panic, or when the sender is dropped.
        self.jobs.as_ref().and_then(|jobs| jobs.send(job).ok()).ok_or(AppendError::Poisoned)
    }

    /// Waits for all munros to be hashed and their tables to be written.
    fn finish(&mut self) -> Result<BTreeMap<u64, NodeHash>, AppendError> {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                return Err(AppendError::Poisoned);
            }
        }
        let mut done = self.done();
        match done.failed.take() {
            Some(error) => Err(error),
            None => Ok(std::mem::take(&mut done.hashes)),
        }
    }

    fn done(&self) -> std::sync::MutexGuard<'_, Done> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hashers {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A panic was printed; nothing is committed after it.
            let _ = thread.join();
        }
    }
}

fn work(segments: &Segments, jobs: &Mutex<Receiver<Job>>, done: &Mutex<Done>) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        let result = match job {
            Job::Hash(munro, content) => {
                hash_munro(segments, munro, &content).map(|hash| Some((munro.0, hash)))
            }
            Job::Sync(segment) => sync(segments, segment).map(|()| None),
        };
        let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(Some((munro, hash))) => {
                done.hashes.insert(munro, hash);
            }
            Ok(None) => {}
            Err(error) => done.failed = done.failed.take().or(Some(error)),
        }
    }
}

fn hash_munro(
    segments: &Segments,
    munro: MunroIndex,
    content: &[u8],
) -> Result<NodeHash, AppendError> {
    let nodes = MunroTree::hash_content(munro, content);
    let file = segments.open_or_create(Segments::number_of(munro))?;
    file.write(table_offset(munro), &table_bytes(&*nodes))?;
    Ok(nodes[1])
}

fn sync(segments: &Segments, segment: u64) -> Result<(), AppendError> {
    Ok(segments.open_or_create(segment)?.sync()?)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{blocks, content, key, origin, time};
    use super::*;
    use crate::unit::ByteRange;

    #[expect(clippy::unnecessary_wraps, reason = "as seal takes it")]
    fn head(sealing: &Sealing<'_>) -> Result<[u8; 4096], AppendError> {
        assert_eq!(sealing.frontier.munros() + 1, sealing.munros);
        Ok([sealing.munros as u8; 4096])
    }

    #[test]
    fn what_is_sealed_is_read_and_what_is_not_is_dropped() {
        let temp = tempfile::tempdir().expect("tempdir");
        let log = OriginLog::create(temp.path(), origin()).expect("created");
        assert!(log.committed().is_none());
        let mut appender = OriginLog::append(temp.path()).expect("locked");
        let busy = OriginLog::append(temp.path());
        assert!(matches!(busy, Err(AppendError::Open(OpenError::Busy { holder, .. }))
            if holder == std::process::id().to_string()));
        let bytes = content(blocks(0, 600));
        assert_eq!(appender.write(&bytes[..4096 * 300]).expect("written"), BlockIndex(0));
        assert_eq!(appender.write(&bytes[4096 * 300..]).expect("written"), BlockIndex(300));
        let back = appender.read_back(blocks(250, 300)).expect("read");
        assert_eq!(back, bytes[250 * 4096..550 * 4096]);
        appender.begin_section().expect("begun");
        appender.begin_section().expect("begun");
        assert_eq!(appender.next_block(), BlockIndex(768));
        appender.write(&bytes[..4096]).expect("written");
        let commit = appender.seal(&key(), time(), head).expect("sealed");
        assert_eq!(commit.munros, 5);
        assert!(log.reload().expect("readable") && !log.reload().expect("readable"));
        assert_eq!(log.committed(), Some(commit));
        let range = ByteRange { offset: 5000, len: 600 * 4096 - 5000 };
        assert_eq!(log.read_bytes(range).expect("read"), bytes[5000..]);
        let mut all = bytes.clone();
        all.resize(768 * 4096, 0);
        all.extend_from_slice(&bytes[..4096]);
        all.resize(5 * (1 << 20) - 4096, 0);
        all.extend_from_slice(&[5; 4096]);
        let whole = log.read_bytes(ByteRange { offset: 0, len: 5 << 20 }).expect("read");
        assert!(whole == all);
        let root = log.frontier().root(|_| unreachable!("5 munros have two peaks"));
        assert_eq!(root, Some(*blake3::hash(&all).as_bytes()));
        assert!(log.read_run(MunroIndex(5).bin()).expect("read").is_none());
        assert!(log.read_run(MunroIndex(4).bin()).expect("read").is_some());
        assert_eq!(log.verify(|_, _| {}).expect("readable"), []);

        // An epoch that is given up leaves nothing behind.
        let mut appender = OriginLog::append(temp.path()).expect("locked");
        assert_eq!(appender.next_block(), BlockIndex(5 * 256));
        appender.write(&bytes).expect("written");
        drop(appender);
        let appender = OriginLog::append(temp.path()).expect("locked");
        let commit = appender.seal(&key(), time(), head).expect("sealed");
        assert_eq!(commit.munros, 6);
        assert!(log.reload().expect("readable"));
        let padding = log.read_bytes(ByteRange { offset: 5 << 20, len: 4096 }).expect("read");
        assert_eq!(padding, [0; 4096]);
        assert_eq!(log.verify(|_, _| {}).expect("readable"), []);
    }
}
