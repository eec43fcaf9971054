//! Reading a file: inode, extents, blocks, answer.
//!
//! What is local is copied and answered on the spot. Each run of blocks that is not wholly local
//! becomes one request; the answer leaves with the last of them. An answer is whole or an error: a
//! short one in the middle of a file would count as its end and poison the page cache.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use distd_core::limits::BLOCK_BYTES;
use distd_core::manifest::{EntryKind, Extent};
use distd_core::unit::BlockRange;

use crate::blocks::{Blocks, Purpose, Unavailable};
use crate::errno::Failure;
use crate::inode::{Inode, Place};

use super::{ExtentMap, Found, Fs, Then};

/// The largest read that is planned at once, in bytes: above what the kernel sends.
const READ_BYTES_MAX: u64 = 16 << 20;

/// `lseek(2)`'s two questions about holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// SEEK_DATA.
    Data,
    /// SEEK_HOLE.
    Hole,
}

impl<B: Blocks> Fs<B> {
    /// Reads `len` bytes at `offset`; fewer only where the file ends.
    pub fn read(self: &Arc<Self>, number: u64, offset: u64, len: u64, then: impl Then<Vec<u8>>) {
        let fs = Arc::clone(self);
        self.with_file(number, move |file| match file {
            Err(failure) => then(Err(failure)),
            Ok((inode, map, size)) => {
                let end = size.min(offset.saturating_add(len.min(READ_BYTES_MAX)));
                if offset >= end {
                    return then(Ok(Vec::new()));
                }
                fs.read_ahead(&inode, &map, offset, end, size);
                fs.read_range(&inode, &map, offset, end, then);
            }
        });
    }

    /// The next data or hole at or after `offset`.
    pub fn seek(self: &Arc<Self>, number: u64, offset: u64, seek: Seek, then: impl Then<u64>) {
        self.with_file(number, move |file| {
            then(file.and_then(|(_, map, size)| {
                let found = match seek {
                    Seek::Data => map.seek_data(offset, size),
                    Seek::Hole => map.seek_hole(offset, size),
                };
                found.ok_or(Failure::NoOffset)
            }));
        });
    }

    /// A regular file's inode, extents and size.
    fn with_file(self: &Arc<Self>, number: u64, then: impl Then<(Inode, Arc<ExtentMap>, u64)>) {
        let fs = Arc::clone(self);
        self.find(number, move |found| {
            let found: Found = match found {
                Ok(found) => found,
                Err(failure) => return then(Err(failure)),
            };
            let EntryKind::File(file) = &found.entry().kind else {
                return then(Err(Failure::WrongKind));
            };
            let (inode, size) = (found.inode.clone(), file.size);
            fs.extents(&found.inode, file, move |map| then(map.map(|map| (inode, map, size))));
        });
    }

    fn read_range(
        self: &Arc<Self>,
        inode: &Inode,
        map: &ExtentMap,
        offset: u64,
        end: u64,
        then: impl Then<Vec<u8>>,
    ) {
        let (first, skip) = (offset / BLOCK_BYTES, (offset % BLOCK_BYTES) as usize);
        let count = end.div_ceil(BLOCK_BYTES) - first;
        if let Place::Entry { directory, index } = inode.place {
            let path = || self.whole_path(inode);
            self.trace.on_read((directory, index), first, first + count, path);
        }
        let wanted = (end - offset) as usize;
        let mut buffer = vec![0; (count * BLOCK_BYTES) as usize];
        let mut missing = Vec::new();
        let mut at = 0;
        for extent in map.slice(first, count) {
            let len = (extent.blocks() * BLOCK_BYTES) as usize;
            if let Extent::Data(range) = extent {
                match self.blocks.read_now(range, &mut buffer[at..at + len]) {
                    Ok(true) => {}
                    Ok(false) => missing.push((at, range)),
                    Err(error) => return then(Err(self.failed(inode, range, &error))),
                }
            }
            at += len;
        }
        if at < buffer.len() {
            return then(Err(Failure::Damaged));
        }
        let finish = move |buffer: Vec<u8>| cut(buffer, skip, wanted);
        if missing.is_empty() {
            return then(Ok(finish(buffer)));
        }
        let now = Instant::now();
        if missing.iter().any(|(_, range)| self.failed.is_repeated(inode.number, *range, now)) {
            return then(Err(Failure::Unavailable));
        }
        let requests = missing.len();
        let gathering = Arc::new(Gathering {
            state: Mutex::new(State { buffer, left: requests, failure: None, then: None }),
        });
        gathering.state().then =
            Some(Box::new(move |result: Result<Vec<u8>, Failure>| then(result.map(finish))));
        let deadline = self.deadline();
        for (at, range) in missing {
            let (fs, inode, gathering) = (Arc::clone(self), inode.clone(), Arc::clone(&gathering));
            let done = move |result: Result<Bytes, Unavailable>| {
                let result = result.map_err(|error| fs.failed(&inode, range, &error));
                gathering.put(at, range, result);
            };
            self.blocks.read(range, Purpose::Data, deadline, Box::new(done));
        }
    }

    fn read_ahead(&self, inode: &Inode, map: &ExtentMap, offset: u64, end: u64, size: u64) {
        let Some(ahead) = self.readahead.on_read(inode.number, offset..end, size) else { return };
        let first = ahead.start / BLOCK_BYTES;
        let count = ahead.end.div_ceil(BLOCK_BYTES) - first;
        let ranges: Vec<BlockRange> = map
            .slice_data(first, count)
            .filter(|range| self.blocks.held_blocks(*range) < range.count)
            .collect();
        if !ranges.is_empty() {
            self.blocks.prefetch(ranges, Purpose::Data);
        }
    }

    fn failed(&self, inode: &Inode, range: BlockRange, error: &Unavailable) -> Failure {
        self.failed.record(inode.number, range, Instant::now());
        self.journal.failed_read(&self.path(inode), Some(range), error);
        Failure::Unavailable
    }
}

/// The bytes asked for out of the whole blocks that hold them.
fn cut(mut buffer: Vec<u8>, skip: usize, wanted: usize) -> Vec<u8> {
    if skip > 0 {
        buffer.drain(..skip);
    }
    buffer.truncate(wanted);
    buffer
}

type Continue = Box<dyn FnOnce(Result<Vec<u8>, Failure>) + Send>;

/// A read of which some runs are on their way.
struct Gathering {
    state: Mutex<State>,
}

struct State {
    buffer: Vec<u8>,
    left: usize,
    failure: Option<Failure>,
    then: Option<Continue>,
}

impl Gathering {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts one run in place; the last one answers. The first failure answers at once: the reader
    /// need not wait for the rest.
    fn put(&self, at: usize, range: BlockRange, result: Result<Bytes, Failure>) {
        let mut state = self.state();
        state.left -= 1;
        let len = range.byte_len() as usize;
        match result {
            Ok(bytes) if bytes.len() == len => {
                if let Some(place) = state.buffer.get_mut(at..at + len) {
                    place.copy_from_slice(&bytes);
                }
            }
            Ok(_) => state.failure = Some(Failure::Damaged),
            Err(failure) => state.failure = Some(failure),
        }
        if state.left > 0 && state.failure.is_none() {
            return;
        }
        let Some(then) = state.then.take() else { return };
        let outcome = match state.failure {
            Some(failure) => Err(failure),
            None => Ok(std::mem::take(&mut state.buffer)),
        };
        drop(state);
        then(outcome);
    }
}
