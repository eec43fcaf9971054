//! Reading the hidden superblock's files: a window of the log, block by block.
//!
//! What is local is answered on the spot; what is missing waits for the network until the deadline, but
//! where a part is local (see `mixed`). A read that failed is not waited for again at once: by the same
//! process, or for a single page, which is how the kernel repeats for all who wait for it.
//!
//! Nothing behind the end of the log is answered: the kernel would keep the zeros when the log has grown.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use distd_core::limits::BLOCK_BYTES;
use distd_core::unit::{BlockIndex, BlockRange};

use super::hidden::Hidden;
use super::mixed::Pending;
use crate::blocks::{Blocks, Purpose, Unavailable};
use crate::errno::Failure;

/// A continuation that takes what was read.
pub(super) trait Take: FnOnce(Result<&[u8], Failure>) + Send + 'static {}
impl<F: FnOnce(Result<&[u8], Failure>) + Send + 'static> Take for F {}

thread_local! {
    /// What a thread that answers the kernel reads into. Kept, because the kernel takes a copy and clean
    /// memory costs as much as the reading.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The largest read that is answered, in bytes: above what the kernel sends.
const READ_BYTES_MAX: u64 = 16 << 20;

impl<B: Blocks> Hidden<B> {
    /// Reads `len` bytes of a file at `offset` for a process; fewer only where the file ends.
    pub(super) fn read(
        self: &Arc<Self>,
        (number, reader): (u64, u32),
        offset: u64,
        len: u64,
        then: impl Take,
    ) {
        let Some((window, purpose)) = self.window(number) else { return then(Err(Failure::Stale)) };
        let end = window.byte_len().min(offset.saturating_add(len.min(READ_BYTES_MAX)));
        if offset >= end {
            return then(Ok(&[]));
        }
        let (first, skip) = (offset / BLOCK_BYTES, (offset % BLOCK_BYTES) as usize);
        let count = end.div_ceil(BLOCK_BYTES) - first;
        let blocks = BlockRange::new(BlockIndex(window.start.0 + first), count);
        let wanted = (end - offset) as usize;
        if purpose == Purpose::Data {
            self.accessed.on_read(blocks);
        }
        self.read_blocks(blocks, (purpose, reader), move |bytes: Result<&[u8], Failure>| {
            then(bytes.and_then(|bytes| bytes.get(skip..skip + wanted).ok_or(Failure::Damaged)));
        });
    }

    fn read_blocks(
        self: &Arc<Self>,
        blocks: BlockRange,
        (purpose, reader): (Purpose, u32),
        then: impl Take,
    ) {
        let then = BUFFER.with_borrow_mut(|buffer| {
            let len = blocks.byte_len() as usize;
            if buffer.len() < len {
                buffer.resize(len, 0);
            }
            let buffer = &mut buffer[..len];
            match self.blocks.read_now(blocks, buffer) {
                Ok(true) => then(Ok(buffer)),
                Ok(false) => return Some(then),
                Err(error) => then(Err(self.fail(blocks, reader, &error))),
            }
            None
        });
        match then {
            None => self.read_ahead(blocks, purpose),
            Some(then) => self.fetch_blocks(blocks, (purpose, reader), then),
        }
    }

    /// Reads what is missing at least in part.
    fn fetch_blocks(
        self: &Arc<Self>,
        blocks: BlockRange,
        (purpose, reader): (Purpose, u32),
        then: impl Take,
    ) {
        let now = Instant::now();
        let excused = blocks.count == 1 && self.mixed.take_excuse(blocks.start.0, now);
        if blocks.end() > self.blocks.end() || excused || self.is_repeated(blocks, reader, now) {
            return then(Err(Failure::Unavailable));
        }
        self.read_ahead(blocks, purpose);
        let pending = Pending::new(then);
        let (hidden, waits) = (Arc::clone(self), pending.clone());
        let done = move |result: Result<Bytes, Unavailable>| {
            // One that was declined is fetched all the same: somebody may ask again.
            let Some(then) = waits.claim() else { return };
            match result {
                Ok(bytes) if bytes.len() as u64 == blocks.byte_len() => then(Ok(&bytes)),
                Ok(_) => then(Err(Failure::Damaged)),
                Err(error) => then(Err(hidden.fail(blocks, reader, &error))),
            }
        };
        self.blocks.read(blocks, purpose, now + self.timeout, Box::new(done));
        let ahead = blocks.count > 1 && purpose == Purpose::Data;
        if ahead && !self.mixed.was_declined(blocks, now) {
            self.mixed.watch(blocks, &pending, &*self.blocks);
        }
    }

    fn read_ahead(&self, blocks: BlockRange, purpose: Purpose) {
        // An image is fetched whole in the background.
        if purpose != Purpose::Data {
            return;
        }
        let Some(ahead) = self.streams.on_read(blocks, self.blocks.end()) else { return };
        if self.blocks.held_blocks(ahead) < ahead.count {
            self.blocks.prefetch(vec![ahead], purpose);
        }
    }

    /// Takes note of a read that failed, in one line of the log.
    fn fail(&self, blocks: BlockRange, reader: u32, error: &Unavailable) -> Failure {
        let now = Instant::now();
        munros(blocks).for_each(|munro| self.failed.record(munro, blocks, now));
        self.failed_by.record(reader.into(), blocks, now);
        if let Some(journal) = &self.journal {
            journal.failed_read(&self.label, Some(blocks), error);
        }
        Failure::Unavailable
    }

    /// Whether a part of this has just failed, and this is the kernel that repeats.
    fn is_repeated(&self, blocks: BlockRange, reader: u32, now: Instant) -> bool {
        let failed = |munro| self.failed.is_repeated(munro, blocks, now);
        self.failed_by.is_repeated(reader.into(), blocks, now)
            || (blocks.count == 1 && munros(blocks).any(failed))
    }
}

/// Failures are remembered by munro, too: the log is one file.
fn munros(blocks: BlockRange) -> impl Iterator<Item = u64> {
    let last = BlockIndex(blocks.end().0.saturating_sub(1).max(blocks.start.0));
    blocks.start.munro().0..=last.munro().0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::erofs::hidden::device_name;
    use crate::fs::testing::Memory;
    use distd_core::manifest::ReleaseImage;
    use std::sync::atomic::Ordering;
    use std::sync::mpsc;
    use std::time::Duration;

    const BLOCK: usize = BLOCK_BYTES as usize;

    /// A log of `count` blocks, each filled with its number; an image of blocks 2 to 5.
    fn hidden(count: u8) -> (Arc<Memory>, Arc<Hidden<Memory>>, u64, u64) {
        let memory = Arc::new(Memory::default());
        for block in 0..count {
            memory.append(&[block; BLOCK]);
        }
        let hidden = Hidden::new(Arc::clone(&memory), Duration::from_secs(1), "the log".into());
        let hidden = Arc::new(hidden.expect("a thread"));
        let blocks = BlockRange::new(BlockIndex(2), 4);
        let image = ReleaseImage { blocks, device_block: 8, devices: 1 };
        let room = hidden.enter("s", &image).expect("a path");
        let (log, _) = hidden.lookup(room.number, device_name(0).as_bytes()).expect("is there");
        (memory, hidden, room.image, log)
    }

    const READER: u32 = 7;

    fn read(hidden: &Arc<Hidden<Memory>>, file: u64, at: u64, len: u64) -> Result<Bytes, Failure> {
        let (sender, receiver) = mpsc::channel();
        hidden.read((file, READER), at, len, move |bytes: Result<&[u8], Failure>| {
            sender.send(bytes.map(Bytes::copy_from_slice)).expect("somebody listens");
        });
        receiver.recv_timeout(Duration::from_secs(5)).expect("answered")
    }

    #[test]
    fn a_file_is_its_window_of_the_log() {
        let (_, hidden, image, log) = hidden(8);
        let bytes = read(&hidden, image, 0, 1 << 20).expect("fetched");
        assert_eq!((bytes.len(), bytes[0], bytes[4 * BLOCK - 1]), (4 * BLOCK, 2, 5));
        assert_eq!(&read(&hidden, image, 4095, 2).expect("local")[..], [2, 3]);
        assert!(read(&hidden, image, 4 << 12, 1).expect("the end").is_empty());
        assert_eq!(&read(&hidden, log, 3 << 12, 1).expect("local")[..], [3]);
        assert_eq!(read(&hidden, 99, 0, 1), Err(Failure::Stale));
    }

    #[test]
    fn nothing_behind_the_log_is_answered() {
        let (memory, hidden, _, log) = hidden(8);
        for (at, len) in [(8u64 << 12, 4096u64), (7 << 12, 8192), (1 << 40, 4096)] {
            assert_eq!(read(&hidden, log, at, len), Err(Failure::Unavailable), "{at}+{len}");
        }
        memory.append(&[8; BLOCK]);
        assert_eq!(read(&hidden, log, 8 << 12, 4096).expect("there by now")[0], 8);
    }

    #[test]
    fn a_failure_is_told_at_once_when_it_is_asked_for_again() {
        let (memory, hidden, _, log) = hidden(8);
        memory.offline.store(true, Ordering::Relaxed);
        assert_eq!(read(&hidden, log, 0, 8 << 12), Err(Failure::Unavailable));
        let asked = memory.asked.load(Ordering::Relaxed);
        assert_eq!(read(&hidden, log, 1 << 12, 4096), Err(Failure::Unavailable));
        assert_eq!(memory.asked.load(Ordering::Relaxed), asked);
        // Somebody else, who reads more than a page, has waited for nothing yet.
        let (sender, receiver) = mpsc::channel();
        hidden.read((log, READER + 1), 0, 2 << 12, move |bytes: Result<&[u8], Failure>| {
            sender.send(bytes.is_ok()).expect("somebody listens");
        });
        assert!(!receiver.recv_timeout(Duration::from_secs(5)).expect("answered"));
        assert_eq!(memory.asked.load(Ordering::Relaxed), asked + 1);
    }

    #[test]
    fn what_can_be_had_does_not_wait_a_deadline_for_what_nobody_has() {
        let (memory, hidden, _, log) = hidden(8);
        memory.silent.store(true, Ordering::Relaxed);
        let (late, begin) = (Arc::clone(&memory), Instant::now());
        // Of a cold read a part comes, and no more.
        let comes = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            late.prefetch(vec![BlockRange::new(BlockIndex(0), 4)], Purpose::Data);
        });
        let hidden_long = Arc::clone(&hidden);
        assert_eq!(read(&hidden_long, log, 0, 8 << 12), Err(Failure::Unavailable), "declined");
        comes.join().expect("ended");
        assert!(begin.elapsed() < hidden.timeout * 3, "before a deadline of 30 s");
        for at in 0..4 {
            assert_eq!(read(&hidden, log, at << 12, 4096).expect("local")[0], at as u8);
        }
        // The kernel gives up what it read ahead.
        let asked = memory.asked.load(Ordering::Relaxed);
        assert_eq!(read(&hidden, log, 4 << 12, 4096), Err(Failure::Unavailable));
        assert_eq!(memory.asked.load(Ordering::Relaxed), asked);
        memory.silent.store(false, Ordering::Relaxed);
        assert_eq!(read(&hidden, log, 4 << 12, 4096).expect("there by now")[0], 4);
    }

    #[test]
    fn what_is_local_does_not_wait_for_its_neighbours() {
        let (memory, hidden, _, log) = hidden(8);
        read(&hidden, log, 0, 4 << 12).expect("fetched");
        memory.silent.store(true, Ordering::Relaxed);
        let begin = Instant::now();
        assert_eq!(read(&hidden, log, 0, 8 << 12), Err(Failure::Unavailable), "declined");
        assert!(begin.elapsed() < hidden.timeout, "before the deadline");
        assert_eq!(read(&hidden, log, 3 << 12, 4096).expect("local")[0], 3, "and not a failure");
        let blocks = BlockRange::new(BlockIndex(0), 8);
        assert!(hidden.mixed.was_declined(blocks, Instant::now()));
        memory.silent.store(false, Ordering::Relaxed);
        assert_eq!(read(&hidden, log, 0, 8 << 12).map(|bytes| bytes.len()), Ok(8 << 12));
    }
}
