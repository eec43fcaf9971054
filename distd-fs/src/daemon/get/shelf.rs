//! The directory's files as seeds: where each can be read for as long as the get lasts.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use distd_core::node::SeedFiles;
use lru::LruCache;

use super::place::Place;
use super::survey::FileNumber;

/// Files that are open at one time.
const OPEN_MAX: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// Files by number.
pub(super) struct Shelf {
    root: Place,
    /// Below the root.
    paths: RwLock<HashMap<FileNumber, Vec<u8>>>,
    open: Mutex<LruCache<FileNumber, Arc<File>>>,
}

impl Shelf {
    pub(super) fn new(root: Place) -> Self {
        Self { root, paths: RwLock::default(), open: Mutex::new(LruCache::new(OPEN_MAX)) }
    }

    /// Says where a file lies for as long as it may be read.
    pub(super) fn put(&self, number: FileNumber, path: Vec<u8>) {
        self.paths.write().unwrap_or_else(PoisonError::into_inner).insert(number, path);
    }

    /// Where a file lies.
    pub(super) fn path_of(&self, number: FileNumber) -> Option<Vec<u8>> {
        self.paths.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }

    fn file(&self, number: FileNumber) -> io::Result<Arc<File>> {
        let open = || self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open().get(&number) {
            return Ok(Arc::clone(file));
        }
        let path = self.path_of(number).ok_or(io::ErrorKind::NotFound)?;
        let file = Arc::new(self.root.open_file(&path)?);
        open().put(number, Arc::clone(&file));
        Ok(file)
    }
}

impl SeedFiles for Shelf {
    fn read(&self, file: FileNumber, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let file = self.file(file)?;
        let mut done = 0;
        while done < out.len() {
            match file.read_at(&mut out[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(len) => done += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        out[done..].fill(0);
        Ok(())
    }
}
