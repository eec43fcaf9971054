//! A file as static content: the whole one of a seeder, and the one that is being made of what arrives.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use rustix::fs::{FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::limits::{BRANCH_LAYER, CHUNK_BYTES, CONTENT_BYTES_MAX};
use crate::tree::merkle::{
    BranchHashes, BranchIndex, ContentId, ContentShape, MerkleFunction, MerkleHash, MerkleTree,
};
use crate::unit::Bin;

use super::DiskError;

/// How the file of kept hashes begins.
const MAGIC: &[u8; 8] = b"distdHSH";
/// Magic, hash function (1), root (32), length (8).
const HEADER_BYTES: usize = 8 + 1 + 32 + 8;
/// A node's number and its hash.
const RECORD_BYTES: usize = 8 + 32;
/// Branches that are hashed between two looks at the clock: 16 MiB.
const STRIDE: u64 = 256;

/// Why a file cannot be content, or become it.
#[derive(Debug, thiserror::Error)]
pub enum ContentFileError {
    /// The disk said no.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A directory, a device, a pipe.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// What was found.
        path: PathBuf,
    },
    /// Too long.
    #[error("{} has {found} bytes, at most {CONTENT_BYTES_MAX} can be one swarm's", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its length.
        found: u64,
    },
    /// It changed while it was hashed.
    #[error("{} changed while it was read: seed a file that stays as it is", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// There is a file of that name.
    #[error("{} exists and is not this content: remove it, or choose another name", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// There is a file where the unfinished one goes, and it is of something else.
    #[error("{} is not of this content: remove it and {}.hashes, or choose another name", path.display(), path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Another process makes the same file.
    #[error("{} is being written by another process", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
}

/// A whole file.
#[derive(Debug)]
pub struct ContentFile {
    file: File,
    path: PathBuf,
    bytes: u64,
}

impl ContentFile {
    /// Opens a file that is not too long.
    pub fn open(path: &Path) -> Result<Self, ContentFileError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = open(path, flags, "open")?;
        let metadata = file.metadata().map_err(|error| DiskError::new("look at", path, error))?;
        let path = path.to_owned();
        if !metadata.is_file() {
            return Err(ContentFileError::NotAFile { path });
        }
        let bytes = metadata.len();
        if bytes > CONTENT_BYTES_MAX {
            return Err(ContentFileError::TooLong { path, found: bytes });
        }
        Ok(Self { file, path, bytes })
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Hashes all of it; `None` for an empty file, which has no tree. `progress` is told how many bytes
    /// are done.
    pub fn tree(
        &self,
        function: MerkleFunction,
        mut progress: impl FnMut(u64),
    ) -> Result<Option<MerkleTree>, ContentFileError> {
        let Some(shape) = ContentShape::of_bytes(self.bytes) else { return Ok(None) };
        let mut tops = Vec::with_capacity(shape.branches() as usize);
        let wrong = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => ContentFileError::Changed { path: self.path.clone() },
            _ => DiskError::new("read", &self.path, error).into(),
        };
        for first in (0..shape.branches()).step_by(STRIDE as usize) {
            let branches = first..shape.branches().min(first + STRIDE);
            let stride: Result<Vec<MerkleHash>, io::Error> = branches
                .into_par_iter()
                .map(|branch| {
                    let branch = BranchIndex(branch);
                    let bytes = self.read(branch)?;
                    Ok(BranchHashes::of(function, shape, branch, &bytes).top())
                })
                .collect();
            tops.extend(stride.map_err(wrong)?);
            progress(self.bytes.min((first + STRIDE) * (CHUNK_BYTES << BRANCH_LAYER)));
        }
        let last = BranchIndex(shape.branches() - 1);
        let bytes = self.read(last).map_err(wrong)?;
        let last = BranchHashes::of(function, shape, last, &bytes);
        if tops.last() != Some(&last.top()) {
            return Err(ContentFileError::Changed { path: self.path.clone() });
        }
        Ok(Some(MerkleTree::over(function, shape, &tops, &last)))
    }

    /// The bytes of a branch, as they lie in the file now.
    pub fn read(&self, branch: BranchIndex) -> io::Result<Vec<u8>> {
        read(&self.file, branch, self.bytes)
    }
}

/// A file that is being made of branches: `NAME.part`, until it is whole. Beside it, in
/// `NAME.part.hashes`, lie the hashes that prove what is there; both are claims until they are checked.
#[derive(Debug)]
pub struct PartFile {
    target: PathBuf,
    part: File,
    part_path: PathBuf,
    hashes: File,
    hashes_path: PathBuf,
    bytes: u64,
}

impl PartFile {
    /// Opens what an earlier attempt left, or begins. Also gives the hashes that were kept.
    pub fn open(
        target: &Path,
        id: &ContentId,
        bytes: u64,
    ) -> Result<(Self, BTreeMap<Bin, MerkleHash>), ContentFileError> {
        if target.symlink_metadata().is_ok() {
            return Err(ContentFileError::Exists { path: target.to_owned() });
        }
        let (part_path, hashes_path) = (beside(target, ".part"), beside(target, ".part.hashes"));
        let new = !part_path.try_exists().unwrap_or(true);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let flags = flags | OFlags::NONBLOCK;
        let flags_of_hashes = flags | OFlags::APPEND;
        // The hashes come first: a part without them is nobody's that is known here.
        let kept_flags = if new { flags_of_hashes } else { flags_of_hashes & !OFlags::CREATE };
        let foreign = || ContentFileError::Foreign { path: part_path.clone() };
        let hashes = match open(&hashes_path, kept_flags, "open") {
            Ok(hashes) => hashes,
            Err(error) if error.source.kind() == io::ErrorKind::NotFound && !new => {
                return Err(foreign());
            }
            Err(error) => return Err(error.into()),
        };
        if let Err(errno) = rustix::fs::flock(&hashes, FlockOperation::NonBlockingLockExclusive) {
            return Err(match errno {
                Errno::WOULDBLOCK => ContentFileError::Busy { path: part_path },
                errno => DiskError::new("lock", &hashes_path, errno).into(),
            });
        }
        let kept = {
            let found = std::fs::read(&hashes_path)
                .map_err(|error| DiskError::new("read", &hashes_path, error))?;
            match parse(&found, id, bytes) {
                Some(kept) => kept,
                None if new && (found.starts_with(MAGIC) || MAGIC.starts_with(&found)) => {
                    let begun =
                        hashes.set_len(0).and_then(|()| (&hashes).write_all(&header(id, bytes)));
                    begun.map_err(|error| DiskError::new("write", &hashes_path, error))?;
                    BTreeMap::new()
                }
                None => return Err(foreign()),
            }
        };
        // A record that was cut short goes, so that those behind it stay readable.
        let records = |len: u64| (len - HEADER_BYTES as u64) / RECORD_BYTES as u64;
        let trimmed = hashes.metadata().and_then(|metadata| {
            let whole = HEADER_BYTES as u64 + records(metadata.len()) * RECORD_BYTES as u64;
            hashes.set_len(whole)
        });
        trimmed.map_err(|error| DiskError::new("write", &hashes_path, error))?;
        let part = open(&part_path, flags, "open")?;
        let metadata =
            part.metadata().map_err(|error| DiskError::new("look at", &part_path, error))?;
        if !metadata.is_file() || metadata.nlink() != 1 {
            return Err(ContentFileError::NotAFile { path: part_path });
        }
        if metadata.len() != bytes {
            part.set_len(bytes).map_err(|error| DiskError::new("extend", &part_path, error))?;
        }
        Ok((Self { target: target.to_owned(), part, part_path, hashes, hashes_path, bytes }, kept))
    }

    /// The bytes of a branch, whatever they are.
    pub fn read(&self, branch: BranchIndex) -> io::Result<Vec<u8>> {
        read(&self.part, branch, self.bytes)
    }

    /// Writes a branch, and the hashes that became known.
    pub fn write(
        &mut self,
        branch: BranchIndex,
        bytes: &[u8],
        proved: &[(Bin, MerkleHash)],
    ) -> Result<(), DiskError> {
        self.part
            .write_all_at(bytes, branch.byte_offset())
            .map_err(|error| DiskError::new("write", &self.part_path, error))?;
        let mut records = Vec::with_capacity(proved.len() * RECORD_BYTES);
        for (bin, hash) in proved {
            records.extend_from_slice(&bin.uid().to_be_bytes());
            records.extend_from_slice(hash.as_wide_bytes());
        }
        self.hashes
            .write_all(&records)
            .map_err(|error| DiskError::new("write", &self.hashes_path, error))
    }

    /// Everything is there: makes it durable, and gives it its name at one stroke.
    pub fn finish(self) -> Result<(), ContentFileError> {
        let disk = |action, path: &Path| {
            let path = path.to_owned();
            move |error: io::Error| DiskError { action, path, source: error }
        };
        self.part.sync_all().map_err(disk("flush", &self.part_path))?;
        let here = rustix::fs::CWD;
        let renamed = rustix::fs::renameat_with(
            here,
            &self.part_path,
            here,
            &self.target,
            RenameFlags::NOREPLACE,
        );
        match renamed {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(ContentFileError::Exists { path: self.target }),
            // A file system without that flag: nobody but us makes this file.
            Err(Errno::INVAL | Errno::NOSYS) => {
                std::fs::rename(&self.part_path, &self.target)
                    .map_err(disk("name", &self.target))?;
            }
            Err(errno) => return Err(DiskError::new("name", &self.target, errno).into()),
        }
        std::fs::remove_file(&self.hashes_path).map_err(disk("remove", &self.hashes_path))?;
        let parent = match self.target.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let flushed = File::open(parent).and_then(|directory| directory.sync_all());
        flushed.map_err(disk("flush", parent)).map_err(ContentFileError::from)
    }
}

/// Makes an empty file; there must be none.
pub fn create_empty(target: &Path) -> Result<(), ContentFileError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    match open(target, flags, "make") {
        Ok(_) => Ok(()),
        Err(error) if error.source.kind() == io::ErrorKind::AlreadyExists => {
            Err(ContentFileError::Exists { path: target.to_owned() })
        }
        Err(error) => Err(error.into()),
    }
}

fn open(path: &Path, flags: OFlags, action: &'static str) -> Result<File, DiskError> {
    let mode = Mode::from_raw_mode(0o666);
    let opened = rustix::fs::open(path, flags, mode);
    opened.map(File::from).map_err(|errno| DiskError::new(action, path, errno))
}

fn read(file: &File, branch: BranchIndex, total: u64) -> io::Result<Vec<u8>> {
    let offset = branch.byte_offset();
    let len = total.saturating_sub(offset).min(CHUNK_BYTES << BRANCH_LAYER);
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

fn beside(target: &Path, end: &str) -> PathBuf {
    let mut path = target.as_os_str().to_owned();
    path.push(end);
    path.into()
}

fn header(id: &ContentId, bytes: u64) -> Vec<u8> {
    let function = match id.function {
        MerkleFunction::Sha1 => 0,
        MerkleFunction::Sha256 => 2,
    };
    [&MAGIC[..], &[function], id.root.as_wide_bytes(), &bytes.to_be_bytes()].concat()
}

/// The hashes of a file that was begun for this content; a record that was cut short is left out.
fn parse(found: &[u8], id: &ContentId, bytes: u64) -> Option<BTreeMap<Bin, MerkleHash>> {
    let records = found.strip_prefix(header(id, bytes).as_slice())?;
    let mut kept = BTreeMap::new();
    for record in records.chunks_exact(RECORD_BYTES) {
        let (uid, hash) = record.split_first_chunk::<8>()?;
        if let Some(bin) = Bin::from_uid(u64::from_be_bytes(*uid)) {
            kept.insert(bin, MerkleHash::from_wide_bytes(hash)?);
        }
    }
    Some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(directory: &Path, len: usize) -> (PathBuf, Vec<u8>) {
        let content: Vec<u8> = (0..len).map(|at| (at * 7 % 251) as u8).collect();
        let path = directory.join("file");
        std::fs::write(&path, &content).expect("written");
        (path, content)
    }

    #[test]
    fn a_part_is_taken_up_where_it_was_left_and_named_when_it_is_whole() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, content) = made(directory.path(), 200_000);
        let file = ContentFile::open(&path).expect("a file");
        let tree = file.tree(MerkleFunction::Sha256, |_| ()).expect("read").expect("content");
        let (id, shape) = (tree.id(), tree.shape());
        let target = directory.path().join("copy");
        let bin = shape.branch_bin(BranchIndex(0));
        let hash = tree.node(bin).expect("known");
        {
            let (mut part, kept) = PartFile::open(&target, &id, 200_000).expect("begun");
            assert!(kept.is_empty());
            let busy = PartFile::open(&target, &id, 200_000);
            assert!(matches!(busy, Err(ContentFileError::Busy { .. })));
            part.write(BranchIndex(0), &content[..65_536], &[(bin, hash)]).expect("written");
        }
        // Killed in the middle of a record.
        let hashes = directory.path().join("copy.part.hashes");
        let mut torn = std::fs::read(&hashes).expect("there");
        torn.extend([1; 17]);
        std::fs::write(&hashes, &torn).expect("written");
        let (mut part, kept) = PartFile::open(&target, &id, 200_000).expect("taken up");
        assert_eq!(kept, BTreeMap::from([(bin, hash)]));
        assert_eq!(part.read(BranchIndex(0)).expect("read"), content[..65_536]);
        for (at, bytes) in (0..).zip(content.chunks(65_536)) {
            part.write(BranchIndex(at), bytes, &[]).expect("written");
        }
        assert!(!target.exists());
        part.finish().expect("named");
        assert_eq!(std::fs::read(&target).expect("there"), content);
        assert!(!hashes.exists() && !directory.path().join("copy.part").exists());
        let again = PartFile::open(&target, &id, 200_000);
        assert!(matches!(again, Err(ContentFileError::Exists { .. })));
    }

    #[test]
    fn a_part_of_something_else_is_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, _) = made(directory.path(), 5000);
        let tree = |function| {
            let file = ContentFile::open(&path).expect("a file");
            file.tree(function, |_| ()).expect("read").expect("content").id()
        };
        let (one, other) = (tree(MerkleFunction::Sha256), tree(MerkleFunction::Sha1));
        let target = directory.path().join("copy");
        std::fs::write(directory.path().join("copy.part"), b"a browser's").expect("written");
        let foreign = PartFile::open(&target, &one, 5000);
        assert!(matches!(foreign, Err(ContentFileError::Foreign { .. })));
        assert_eq!(
            std::fs::read(directory.path().join("copy.part")).expect("there"),
            b"a browser's"
        );
        std::fs::remove_file(directory.path().join("copy.part")).expect("removed");
        drop(PartFile::open(&target, &one, 5000).expect("begun"));
        for (id, bytes) in [(&other, 5000), (&one, 5001)] {
            let foreign = PartFile::open(&target, id, bytes);
            assert!(matches!(foreign, Err(ContentFileError::Foreign { .. })));
        }
        assert!(matches!(
            ContentFile::open(directory.path()),
            Err(ContentFileError::NotAFile { .. })
        ));
    }
}
