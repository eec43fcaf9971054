//! A file to read with a temporary one over it: what a dry run writes never reaches the index.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

const PAGE_BYTES: u64 = 4096;

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Overlay {
    base: Option<File>,
    base_len: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    len: u64,
    scratch: File,
    /// Pages that lie in `scratch`.
    written: HashSet<u64>,
}

impl Overlay {
    /// Over the file at `path`; over nothing if there is none.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let base = match File::open(path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let base_len = base.as_ref().map_or(Ok(0), |file| file.metadata().map(|m| m.len()))?;
        Ok(Self { base, base_len, ..Self::empty()? })
    }

    /// Over nothing.
    pub(super) fn empty() -> io::Result<Self> {
        let state = State { len: 0, scratch: tempfile::tempfile()?, written: HashSet::new() };
        Ok(Self { base: None, base_len: 0, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the base has of the page; zeros beyond its end.
    fn read_base(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let known = self.base_len.saturating_sub(offset).min(out.len() as u64) as usize;
        let (content, beyond) = out.split_at_mut(known);
        beyond.fill(0);
        self.base.as_ref().map_or(Ok(()), |base| base.read_exact_at(content, offset))
    }
}

/// The parts of `offset..offset+len` that lie in one page each: page, offset, position, length.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, u64, usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at == len {
            return None;
        }
        let start = offset + at as u64;
        let room = (PAGE_BYTES - start % PAGE_BYTES) as usize;
        let count = room.min(len - at);
        let part = (start / PAGE_BYTES, start, at, count);
        at += count;
        Some(part)
    })
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        let written = self.state().len;
        Ok(if written == 0 { self.base_len } else { written })
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        for (page, start, at, count) in parts(offset, out.len()) {
            let out = &mut out[at..at + count];
            if state.written.contains(&page) {
                state.scratch.read_exact_at(out, start)?;
            } else {
                self.read_base(start, out)?;
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        // Sparse: only written pages take room. What lay beyond a shorter length must read as zeros
        // should the file grow again.
        let old = if state.len == 0 { self.base_len } else { state.len };
        for page in len.div_ceil(PAGE_BYTES)..old.div_ceil(PAGE_BYTES) {
            state.scratch.write_all_at(&[0; PAGE_BYTES as usize], page * PAGE_BYTES)?;
            state.written.insert(page);
        }
        state.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        state.len = state.len.max(self.base_len).max(offset + data.len() as u64);
        for (page, start, at, count) in parts(offset, data.len()) {
            if state.written.insert(page) && count < PAGE_BYTES as usize {
                let mut whole = [0; PAGE_BYTES as usize];
                self.read_base(page * PAGE_BYTES, &mut whole)?;
                state.scratch.write_all_at(&whole, page * PAGE_BYTES)?;
            }
            state.scratch.write_all_at(&data[at..at + count], start)?;
        }
        Ok(())
    }
}
