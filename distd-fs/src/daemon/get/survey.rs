//! What the directory holds already: files that can stay, and content that need not be fetched.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read};

use distd_core::limits::TREE_DEPTH_MAX;
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use super::desk::is_on_desk;
use super::place::{Place, file_type};
use crate::daemon::jobs::Progress;

/// Bytes that are hashed at once.
const READ_BYTES: usize = 1 << 20;

/// `blake3::hash` of a whole file.
pub(super) type Digest = [u8; 32];

/// A file's number in a survey.
pub(super) type FileNumber = u32;

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

    fn size(&self) -> u64 {
        self.2.max(0) as u64
    }

    const fn inode(&self) -> (u64, u64) {
        (self.0, self.1)
    }
}

/// A regular file below the directory.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) path: Vec<u8>,
    stamp: Stamp,
    /// If it was read.
    pub(super) digest: Option<Digest>,
}

impl Found {
    pub(super) fn size(&self) -> u64 {
        self.stamp.size()
    }
}

/// The regular files below a directory, by path.
#[derive(Default)]
pub(super) struct Survey {
    files: Vec<Found>,
    by_digest: HashMap<Digest, FileNumber>,
}

impl Survey {
    /// Looks at every file below `root`, and reads none.
    pub(super) fn look(root: &Place, progress: &Progress) -> Result<Self, (Vec<u8>, Errno)> {
        let mut survey = Self::default();
        survey.look_into(root, &mut Vec::new(), 0, progress)?;
        survey.files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        // What is beyond is not looked at: it is made anew if it is wanted.
        survey.files.truncate(FileNumber::MAX as usize);
        Ok(survey)
    }

    fn look_into(
        &mut self,
        place: &Place,
        path: &mut Vec<u8>,
        depth: usize,
        progress: &Progress,
    ) -> Result<(), (Vec<u8>, Errno)> {
        let names = place.names().map_err(|error| (path.clone(), error))?;
        let len = path.len();
        for name in names {
            if progress.is_stopped() {
                return Ok(());
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
                            self.look_into(&below, path, depth + 1, progress)?;
                        }
                    }
                    FileType::RegularFile => {
                        let (path, stamp) = (path.clone(), Stamp::of(&stat));
                        self.files.push(Found { path, stamp, digest: None });
                    }
                    _ => {}
                }
            }
            path.truncate(len);
        }
        Ok(())
    }

    /// Leaves out what is in our own directory, but for the seeds that a run before this one put aside and
    /// that do not lie elsewhere, too.
    pub(super) fn leave_out(&mut self, temporary: &[u8]) {
        self.files.retain(|found| !is_on_desk(temporary, &found.path));
        let is_aside = |found: &Found| {
            found.path.strip_prefix(temporary).is_some_and(|rest| rest.starts_with(b"/"))
        };
        if self.files.iter().any(is_aside) {
            let others = self.files.iter().filter(|found| !is_aside(found));
            let mut inodes: HashSet<_> = others.map(|found| found.stamp.inode()).collect();
            self.files.retain(|found| !is_aside(found) || inodes.insert(found.stamp.inode()));
        }
    }

    /// Reads every file that is as long as one that is wanted and was not read before.
    pub(super) fn read(&mut self, root: &Place, sizes: &HashSet<u64>, progress: &Progress) {
        let wanted = |found: &Found| found.digest.is_none() && sizes.contains(&found.size());
        let total = self.files.iter().filter(|found| wanted(found)).map(Found::size).sum();
        progress.begin("reading what is there", total);
        let (mut buffer, mut bytes) = (vec![0; READ_BYTES], 0);
        for (number, found) in (0..).zip(&mut self.files) {
            if !wanted(found) {
                continue;
            }
            found.digest = digest_of(root, found, &mut buffer, progress);
            bytes += found.size();
            progress.set(bytes);
            if let Some(digest) = found.digest {
                self.by_digest.entry(digest).or_insert(number);
            }
            if progress.is_stopped() {
                return;
            }
        }
    }

    /// What the file at a path holds, if it is still the one that was read.
    pub(super) fn digest(&self, path: &[u8], stat: &Stat) -> Option<Digest> {
        let found = self.at(self.number_of(path)?)?;
        found.digest.filter(|_| found.stamp == Stamp::of(stat))
    }

    /// The file at a path.
    pub(super) fn number_of(&self, path: &[u8]) -> Option<FileNumber> {
        let at = self.files.binary_search_by(|found| found.path.as_slice().cmp(path)).ok()?;
        Some(at as FileNumber)
    }

    /// A file by its number.
    pub(super) fn at(&self, number: FileNumber) -> Option<&Found> {
        self.files.get(number as usize)
    }

    /// A file with this content.
    pub(super) fn with(&self, digest: &Digest) -> Option<FileNumber> {
        self.by_digest.get(digest).copied()
    }

    /// All files.
    pub(super) fn files(&self) -> impl Iterator<Item = (FileNumber, &Found)> {
        (0..).zip(&self.files)
    }

    /// The files below a directory.
    pub(super) fn below(&self, path: &[u8]) -> &[Found] {
        if path.is_empty() {
            return &self.files;
        }
        let first = [path, b"/"].concat();
        // The byte behind the slash.
        let end = [path, b"0"].concat();
        let at = |bound: &Vec<u8>| self.files.partition_point(|found| found.path < *bound);
        &self.files[at(&first)..at(&end)]
    }
}

/// A file's digest; nothing where it cannot be read.
fn digest_of(
    root: &Place,
    found: &Found,
    buffer: &mut [u8],
    progress: &Progress,
) -> Option<Digest> {
    let file = root.open_file(&found.path).ok()?;
    let mut whole = file.take(found.size().saturating_add(1));
    let mut hasher = blake3::Hasher::new();
    loop {
        if progress.is_stopped() {
            return None;
        }
        match whole.read(buffer) {
            Ok(0) => return Some(*hasher.finalize().as_bytes()),
            Ok(len) => drop(hasher.update(&buffer[..len])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_was_put_aside_and_is_in_its_place_still_is_one_file() {
        let scratch = tempfile::tempdir().expect("a directory");
        let root = Place::open(scratch.path()).expect("opens");
        let path = |name: &str| scratch.path().join(name);
        fs::create_dir_all(path("own/seeds")).expect("made");
        for name in ["file", "own/7", "own/seeds/2"] {
            fs::write(path(name), name).expect("written");
        }
        fs::hard_link(path("file"), path("own/seeds/1")).expect("linked");
        fs::hard_link(path("own/seeds/2"), path("own/seeds/3")).expect("linked");
        let mut survey = Survey::look(&root, &Progress::default()).expect("looked at");
        survey.leave_out(b"own");
        let paths: Vec<_> = survey.files().map(|(_, found)| found.path.as_slice()).collect();
        assert_eq!(paths, [&b"file"[..], b"own/seeds/2"]);
    }

    #[test]
    fn it_knows_files_by_path_by_content_and_by_directory() {
        let scratch = tempfile::tempdir().expect("a directory");
        let root = Place::open(scratch.path()).expect("opens");
        for (path, content) in [("a/x", "1"), ("a.b", "22"), ("a/c/y", "1"), ("b", "333")] {
            let path = scratch.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, content).expect("written");
        }
        std::os::unix::fs::symlink("/etc", scratch.path().join("a/link")).expect("made");
        let progress = Progress::default();
        let mut survey = Survey::look(&root, &progress).expect("looked at");
        let paths = |files: &[Found]| -> Vec<String> {
            files.iter().map(|found| found.path.escape_ascii().to_string()).collect()
        };
        assert_eq!(paths(survey.below(b"")), ["a.b", "a/c/y", "a/x", "b"]);
        assert_eq!(paths(survey.below(b"a")), ["a/c/y", "a/x"]);
        survey.read(&root, &[1, 3].into(), &progress);
        let digest = |content: &str| *blake3::hash(content.as_bytes()).as_bytes();
        assert_eq!(survey.with(&digest("1")), survey.number_of(b"a/c/y"));
        assert_eq!(survey.with(&digest("22")), None, "no such length is wanted");
        let stat = root.directory(b"a").expect("open").stat(b"x").expect("a look").expect("there");
        assert_eq!(survey.digest(b"a/x", &stat), Some(digest("1")));
        assert_eq!(survey.digest(b"b", &stat), None, "it is another file");
    }
}
