//! What the directory holds already: files that can stay, and content that need not be fetched.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};

use distd_core::limits::TREE_DEPTH_MAX;
use rustix::fs::{FileType, OFlags, Stat};
use rustix::io::Errno;

use super::place::{Place, file_type};
use crate::daemon::jobs::Progress;

/// Bytes that are hashed at once.
const READ_BYTES: usize = 1 << 20;

/// `blake3::hash` of a whole file.
pub(super) type Digest = [u8; 32];

/// What tells that a file has not changed since it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp(u64, u64, i64, i64, i64, i64, i64);

impl Stamp {
    pub(super) fn of(stat: &Stat) -> Self {
        Self(
            stat.st_dev,
            stat.st_ino,
            stat.st_size,
            stat.st_mtime,
            stat.st_mtime_nsec as i64,
            stat.st_ctime,
            stat.st_ctime_nsec as i64,
        )
    }
}

/// The regular files below a directory that are of a size of interest.
#[derive(Default)]
pub(super) struct Survey {
    by_path: HashMap<Vec<u8>, (Stamp, Digest)>,
    by_digest: HashMap<Digest, Vec<u8>>,
}

impl Survey {
    /// Reads every file below `root` that is as long as one that is wanted.
    pub(super) fn take(
        root: &Place,
        sizes: &HashSet<u64>,
        skip: &[u8],
        progress: &Progress,
    ) -> Result<Self, (Vec<u8>, Errno)> {
        let mut survey = Self::default();
        let mut reader = Reader { buffer: vec![0; READ_BYTES], sizes, progress, bytes: 0 };
        progress.begin("reading what is there", 0);
        survey.take_directory(root, &mut Vec::new(), 0, skip, &mut reader)?;
        Ok(survey)
    }

    fn take_directory(
        &mut self,
        place: &Place,
        path: &mut Vec<u8>,
        depth: usize,
        skip: &[u8],
        reader: &mut Reader<'_>,
    ) -> Result<(), (Vec<u8>, Errno)> {
        let names = place.names().map_err(|error| (path.clone(), error))?;
        let len = path.len();
        for name in names {
            if (path.is_empty() && name == skip) || reader.progress.is_stopped() {
                continue;
            }
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend(&name);
            let failed = |error| (path.clone(), error);
            if let Some(stat) = place.stat(&name).map_err(failed)? {
                match file_type(&stat) {
                    FileType::Directory if depth < TREE_DEPTH_MAX => {
                        // One that cannot be opened has nothing to offer.
                        if let Ok(below) = place.directory(&name) {
                            self.take_directory(&below, path, depth + 1, skip, reader)?;
                        }
                    }
                    FileType::RegularFile => {
                        if let Some(digest) = reader.digest(place, &name, &stat) {
                            self.by_digest.entry(digest).or_insert_with(|| path.clone());
                            self.by_path.insert(path.clone(), (Stamp::of(&stat), digest));
                        }
                    }
                    _ => {}
                }
            }
            path.truncate(len);
        }
        Ok(())
    }

    /// What the file at a path holds, if it is still the one that was read.
    pub(super) fn digest(&self, path: &[u8], stat: &Stat) -> Option<Digest> {
        let (stamp, digest) = self.by_path.get(path)?;
        (*stamp == Stamp::of(stat)).then_some(*digest)
    }

    /// The same without a look at the file.
    pub(super) fn digest_then(&self, path: &[u8]) -> Option<Digest> {
        self.by_path.get(path).map(|(_, digest)| *digest)
    }

    /// Where content lies that is wanted elsewhere.
    pub(super) fn place_of(&self, digest: &Digest) -> Option<&[u8]> {
        self.by_digest.get(digest).map(Vec::as_slice)
    }
}

struct Reader<'a> {
    buffer: Vec<u8>,
    sizes: &'a HashSet<u64>,
    progress: &'a Progress,
    bytes: u64,
}

impl Reader<'_> {
    /// A file's digest; nothing where it is of no interest, or cannot be read.
    fn digest(&mut self, place: &Place, name: &[u8], stat: &Stat) -> Option<Digest> {
        let size = u64::try_from(stat.st_size).ok().filter(|size| self.sizes.contains(size))?;
        let file: File = place.open_beneath(name, OFlags::RDONLY).ok()?.into();
        let whole = file.take(size.saturating_add(1));
        let digest = digest_of(whole, &mut self.buffer, self.progress).ok()?;
        self.bytes += size;
        self.progress.set(self.bytes);
        Some(digest)
    }
}

/// Reads to the end and hashes.
fn digest_of(mut file: impl Read, buffer: &mut [u8], progress: &Progress) -> io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    loop {
        if progress.is_stopped() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let len = match file.read(buffer) {
            Ok(0) => return Ok(*hasher.finalize().as_bytes()),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&buffer[..len]);
    }
}
