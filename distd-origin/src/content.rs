//! Reading the files' content: a few threads read ahead, the publisher takes it in order.
//!
//! ```text
//! thread 1   file 0 ######    file 2 ###      pieces of at most 1 MiB, hashed where they were read
//! thread 2   file 1 ##   file 3 #######
//! taken      file 0 ###### file 1 ## file 2 ### ...     always in the order of the files
//! ```
//!
//! What is read ahead is bounded by bytes; only the file that is being taken may go beyond, by one
//! piece, so that nobody waits for a file that has no room. A file's BLAKE3 and its blocks' hashes
//! come from the same buffer.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use distd_core::limits::BLOCK_BYTES;
use distd_core::tree::BlockHash;
use rustix::buffer::spare_capacity;
use rustix::fs::{OFlags, SeekFrom, fstat, seek};
use rustix::io::{Errno, read};

use crate::scan::{FileIndex, Root, Scan, ScanError, TreePath, attributes};

/// Bytes of content that are read ahead, for all threads together.
const AHEAD_BYTES_MAX: usize = 48 << 20;
/// Bytes of one piece.
const PIECE_BYTES: usize = 1 << 20;
/// Files below this are not worth two threads.
const PARALLEL_BYTES_MIN: usize = 256 << 10;
/// Readers: more than two processors need, so that a slow disk has several requests at once.
const READERS_MAX: usize = 8;
/// Blocks of a hole that are handed over at once, so that progress is seen in a huge sparse file.
const HOLE_BLOCKS_MAX: u64 = 1 << 16;

static ZEROS: [u8; PIECE_BYTES] = [0; PIECE_BYTES];

/// A part of a file, in order.
#[derive(Debug)]
pub enum Piece {
    /// Whole blocks, the file's last one padded with zeros.
    Blocks {
        /// Their bytes.
        bytes: Vec<u8>,
        /// Each block's hash; `None` for a block of zeros.
        hashes: Vec<Option<BlockHash>>,
    },
    /// Blocks of zeros that were not read, as the file system has none for them.
    Hole(u64),
    /// The file's end and the BLAKE3 of its content.
    End([u8; 32]),
}

/// Reads `files` and gives their pieces to `take`, in order, from its own thread. Ends with the
/// first error, of the reading or of `take`.
pub fn read_files<E: From<ScanError>>(
    root: &Root,
    scan: &Scan,
    files: &[FileIndex],
    mut take: impl FnMut(FileIndex, Piece) -> Result<(), E>,
) -> Result<(), E> {
    let queue = Queue::default();
    let next = AtomicUsize::new(0);
    let cores = thread::available_parallelism().map_or(2, NonZeroUsize::get);
    let readers = cores.clamp(2, READERS_MAX).min(files.len());
    thread::scope(|scope| {
        for _ in 0..readers {
            scope.spawn(|| {
                let _guard = CloseOnDrop { queue: &queue, only_in_panic: true };
                // Each reader takes the next file that nobody has.
                loop {
                    let position = next.fetch_add(1, Ordering::Relaxed);
                    let Some(file) = files.get(position) else { return };
                    // One piece is kept back, so that a small file's content and its end go
                    // together: most files are small, and each push wakes somebody.
                    let mut kept = Vec::with_capacity(2);
                    let mut push = |piece| {
                        let full = !kept.is_empty();
                        let ready = std::mem::replace(&mut kept, vec![Ok(piece)]);
                        !full || queue.push(position, ready)
                    };
                    let read = read_file(root, scan, *file, &mut push);
                    let goes_on = match read {
                        Ok(Some(end)) => {
                            kept.push(Ok(Piece::End(end)));
                            queue.push(position, kept)
                        }
                        Ok(None) => false,
                        Err(error) => {
                            queue.push(position, vec![Err(error)]);
                            false
                        }
                    };
                    if !goes_on {
                        return;
                    }
                }
            });
        }
        let _guard = CloseOnDrop { queue: &queue, only_in_panic: false };
        take_all(&queue, files, &mut take)
    })
}

fn take_all<E: From<ScanError>>(
    queue: &Queue,
    files: &[FileIndex],
    take: &mut impl FnMut(FileIndex, Piece) -> Result<(), E>,
) -> Result<(), E> {
    for (position, file) in files.iter().enumerate() {
        loop {
            let piece = queue.pop(position)?;
            let last = matches!(piece, Piece::End(_));
            take(*file, piece)?;
            if last {
                break;
            }
        }
    }
    Ok(())
}

/// Pieces that were read and not taken yet.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    /// A piece of the file that is being taken is there.
    arrived: Condvar,
    /// There is room again, or another file's turn has come.
    room: Condvar,
}

#[derive(Default)]
struct State {
    /// Position of the file that is being taken.
    taking: usize,
    ahead_bytes: usize,
    /// Readers that wait for room.
    waiting: usize,
    /// Pieces by the file's position.
    pieces: BTreeMap<usize, VecDeque<Result<Piece, ScanError>>>,
    closed: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two statements: a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for room for some pieces of one file; `false` when nobody takes pieces any more.
    fn push(&self, position: usize, pieces: Vec<Result<Piece, ScanError>>) -> bool {
        let bytes: usize = pieces.iter().map(piece_bytes).sum();
        let mut state = self.lock();
        while !state.closed && state.ahead_bytes + bytes > AHEAD_BYTES_MAX {
            let mine_is_next = state.taking == position
                && state.pieces.get(&position).is_none_or(VecDeque::is_empty);
            if mine_is_next {
                break;
            }
            state.waiting += 1;
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        if state.closed {
            return false;
        }
        state.ahead_bytes += bytes;
        state.pieces.entry(position).or_default().extend(pieces);
        if state.taking == position {
            self.arrived.notify_one();
        }
        true
    }

    /// Waits for the next piece of that file.
    fn pop(&self, position: usize) -> Result<Piece, ScanError> {
        let mut state = self.lock();
        let turn = state.taking != position;
        state.taking = position;
        if turn && state.waiting > 0 {
            self.room.notify_all();
        }
        loop {
            if let Some(piece) = state.pieces.get_mut(&position).and_then(VecDeque::pop_front) {
                state.ahead_bytes -= piece_bytes(&piece);
                if matches!(piece, Ok(Piece::End(_))) {
                    state.pieces.remove(&position);
                }
                if state.waiting > 0 {
                    self.room.notify_all();
                }
                return piece;
            }
            assert!(!state.closed, "a reader ended before its file did");
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
        self.room.notify_all();
    }
}

/// Wakes everybody who waits when its owner ends, so that a panic on one side never leaves the
/// other one waiting.
struct CloseOnDrop<'a> {
    queue: &'a Queue,
    only_in_panic: bool,
}

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        if thread::panicking() || !self.only_in_panic {
            self.queue.close();
        }
    }
}

fn piece_bytes(piece: &Result<Piece, ScanError>) -> usize {
    match piece {
        Ok(Piece::Blocks { bytes, .. }) => bytes.len(),
        _ => 0,
    }
}

/// Reads one file and gives the BLAKE3 of the whole; `None` when `push` wants no more.
fn read_file(
    root: &Root,
    scan: &Scan,
    file: FileIndex,
    push: &mut impl FnMut(Piece) -> bool,
) -> Result<Option<[u8; 32]>, ScanError> {
    let path = scan.file_path(file);
    let expected = &scan.file(file).attributes;
    let changed = || ScanError::Changed { path: path.clone() };
    let fd = root.open_beneath(&path.0, OFlags::RDONLY).map_err(|errno| match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::NXIO => changed(),
        errno => ScanError::io("open", &path, errno),
    })?;
    let same_state = || -> Result<bool, ScanError> {
        let stat = fstat(&fd).map_err(|errno| ScanError::io("stat", &path, errno))?;
        Ok(attributes(&stat).same_state(expected))
    };
    if !same_state()? {
        return Err(changed());
    }
    let mut reader = FileReader { fd: &fd, path: &path, hasher: blake3::Hasher::new(), at: 0 };
    while reader.at < expected.size {
        let data = if expected.sparse {
            reader.skip_hole(expected.size, push)?
        } else {
            Some(expected.size)
        };
        let Some(end) = data else { return Ok(None) };
        if !reader.read_data(end, push)? {
            return Ok(None);
        }
        if reader.at < end {
            return Err(changed());
        }
    }
    if !same_state()? {
        return Err(changed());
    }
    Ok(Some(*reader.hasher.finalize().as_bytes()))
}

struct FileReader<'a> {
    fd: &'a OwnedFd,
    path: &'a TreePath,
    hasher: blake3::Hasher,
    /// Bytes behind us; a multiple of a block until the file's end.
    at: u64,
}

impl FileReader<'_> {
    /// Hands over the whole blocks of the hole that begins here, if any, and gives the end of the
    /// data after it, rounded up to blocks; `None` when `push` wants no more.
    fn skip_hole(
        &mut self,
        size: u64,
        push: &mut impl FnMut(Piece) -> bool,
    ) -> Result<Option<u64>, ScanError> {
        let data = match seek(self.fd, SeekFrom::Data(self.at)) {
            Ok(data) => data.min(size),
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => size,
            // A file system that knows no holes.
            Err(Errno::INVAL | Errno::NOTSUP) => return Ok(Some(size)),
            Err(errno) => return Err(self.failed(errno)),
        };
        let mut end = data / BLOCK_BYTES * BLOCK_BYTES;
        if data == size {
            end = size;
        }
        while self.at < end {
            let len = (end - self.at).min(HOLE_BLOCKS_MAX * BLOCK_BYTES);
            self.hash_zeros(len);
            self.at += len;
            if !push(Piece::Hole(len.div_ceil(BLOCK_BYTES))) {
                return Ok(None);
            }
        }
        if self.at >= size {
            return Ok(Some(size));
        }
        let hole = match seek(self.fd, SeekFrom::Hole(data)) {
            Ok(hole) => hole.max(data + 1),
            Err(Errno::NXIO | Errno::INVAL | Errno::NOTSUP) => size,
            Err(errno) => return Err(self.failed(errno)),
        };
        seek(self.fd, SeekFrom::Start(self.at)).map_err(|errno| self.failed(errno))?;
        Ok(Some(hole.next_multiple_of(BLOCK_BYTES).min(size)))
    }

    fn hash_zeros(&mut self, mut len: u64) {
        while len > 0 {
            let part = len.min(PIECE_BYTES as u64);
            self.hasher.update_rayon(&ZEROS[..part as usize]);
            len -= part;
        }
    }

    /// Reads up to `end` or the end of the file; `false` when `push` wants no more.
    fn read_data(
        &mut self,
        end: u64,
        push: &mut impl FnMut(Piece) -> bool,
    ) -> Result<bool, ScanError> {
        while self.at < end {
            let want = (end - self.at).min(PIECE_BYTES as u64) as usize;
            let block = BLOCK_BYTES as usize;
            let mut bytes = Vec::with_capacity(want.next_multiple_of(block));
            while bytes.len() < want {
                match read(self.fd, spare_capacity(&mut bytes)) {
                    Ok(0) => break,
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(errno) => return Err(self.failed(errno)),
                }
            }
            // The buffer has room for the padding, so that a file that grew may give more.
            bytes.truncate(want);
            let len = bytes.len();
            if len == 0 {
                break;
            }
            bytes.resize(len.next_multiple_of(block), 0);
            let hashes = self.hash(&bytes, len);
            self.at += len as u64;
            if !push(Piece::Blocks { bytes, hashes }) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Hashes whole blocks, of which the first `len` bytes are the file's.
    fn hash(&mut self, bytes: &[u8], len: usize) -> Vec<Option<BlockHash>> {
        let content = &bytes[..len];
        if len < PARALLEL_BYTES_MIN {
            self.hasher.update(content);
            return hash_blocks(bytes);
        }
        let hasher = &mut self.hasher;
        rayon::join(|| hasher.update(content), || hash_blocks(bytes)).1
    }

    fn failed(&self, errno: Errno) -> ScanError {
        ScanError::io("read", self.path, errno)
    }
}

fn hash_blocks(bytes: &[u8]) -> Vec<Option<BlockHash>> {
    let zeros = &ZEROS[..BLOCK_BYTES as usize];
    bytes
        .chunks_exact(BLOCK_BYTES as usize)
        .map(|block| (block != zeros).then(|| BlockHash::of(block)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::scan;

    #[derive(Debug)]
    enum Ended {
        ByChoice,
        ByScan,
    }

    impl From<ScanError> for Ended {
        fn from(_: ScanError) -> Self {
            Self::ByScan
        }
    }

    /// Files of so many MiB, scanned.
    fn files(mebibytes: &[usize]) -> (tempfile::TempDir, Root, Scan, Vec<FileIndex>) {
        let dir = tempfile::tempdir().expect("a directory");
        for (i, len) in mebibytes.iter().enumerate() {
            let name = dir.path().join(format!("{i:03}"));
            std::fs::write(name, vec![i as u8 + 1; (len << 20) + i]).expect("written");
        }
        let root = Root::open(dir.path()).expect("opens");
        let scan = scan(&root, None, |_| {}).expect("scanned");
        let files = (0..mebibytes.len() as u32).map(FileIndex).collect();
        (dir, root, scan, files)
    }

    #[test]
    fn more_than_the_budget_arrives_whole_and_in_order() {
        let sizes = [0, 30, 1, 30, 0, 2, 20];
        let (_dir, root, scan, files) = files(&sizes);
        let (mut ended, mut len) = (0, 0);
        read_files(&root, &scan, &files, |file, piece| {
            assert_eq!(file.0, ended, "one file after the other");
            match piece {
                Piece::Blocks { bytes, hashes } => {
                    assert_eq!(bytes.len(), hashes.len() * BLOCK_BYTES as usize);
                    len += bytes.len();
                }
                Piece::Hole(_) => panic!("there is none"),
                Piece::End(hash) => {
                    let size = (sizes[ended as usize] << 20) + ended as usize;
                    assert_eq!(len, size.next_multiple_of(BLOCK_BYTES as usize));
                    let content = vec![ended as u8 + 1; size];
                    assert_eq!(hash, *blake3::hash(&content).as_bytes());
                    (ended, len) = (ended + 1, 0);
                }
            }
            Ok::<_, Ended>(())
        })
        .expect("read");
        assert_eq!(ended as usize, sizes.len());
    }

    #[test]
    fn a_taker_that_gives_up_leaves_nobody_waiting() {
        let (_dir, root, scan, files) = files(&[1, 40, 40, 1]);
        for give_up_at in [0, 3, 60] {
            let mut taken = 0;
            let result = read_files(&root, &scan, &files, |_, _| {
                taken += 1;
                if taken > give_up_at { Err(Ended::ByChoice) } else { Ok(()) }
            });
            assert!(matches!(result, Err(Ended::ByChoice)));
        }
    }

    #[test]
    fn a_file_that_went_ends_the_reading() {
        let (dir, root, scan, files) = files(&[1, 1, 1]);
        std::fs::remove_file(dir.path().join("001")).expect("removed");
        let result = read_files(&root, &scan, &files, |file, _| {
            assert!(file.0 == 0, "nothing behind the missing file");
            Ok::<_, Ended>(())
        });
        assert!(matches!(result, Err(Ended::ByScan)));
    }
}
