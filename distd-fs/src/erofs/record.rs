//! What others can know of the mounts of this machine's nodes.
//!
//! The kernel goes on to show an EROFS mount whose node was killed: from its caches, and errors for the
//! rest. A file per mount in the runtime directory says which cache's node serves it, and how it was asked
//! for: whoever mounts there next can tell a dead one from a live one, and the cache's next node can put it
//! right. Root's mounts in the tree view have one, too, for the latter.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::control::{self, CallError, MountRequest, PathText, Request};
use crate::mountinfo::MountLine;

use super::superblock;

/// Type of the view's mounts.
pub(crate) const FILE_SYSTEM_TYPE: &str = "erofs";
/// End of a record's name.
const ENDING: &str = "mount";
/// How long a node may take to say that it lives.
const PATIENCE: Duration = Duration::from_secs(5);

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The cache of its node.
    pub(crate) cache: PathText,
    /// How it was asked for.
    pub(crate) request: MountRequest,
    /// Number of the kernel's connection to the node; 0 where it is that of the mount.
    pub(crate) connection: u32,
}

/// Where the records are: empty after each start of the machine.
pub(crate) fn runtime_directory() -> PathBuf {
    "/run/distd".into()
}

/// Makes the runtime directory, root's alone.
pub(crate) fn make_runtime_directory() -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(runtime_directory()) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Whether a line of a mount table is a release in the erofs view.
pub(crate) fn is_view(line: &MountLine) -> bool {
    let source = line.source.to_string_lossy();
    line.kind == FILE_SYSTEM_TYPE && source.parse::<distd_core::manifest::Source>().is_ok()
}

/// Whether a node serves the view that lies on `directory`, and can; `cache` is asked where no record says which.
pub(crate) fn is_alive(directory: &Path, cache: &Path) -> bool {
    let cache =
        Record::of(directory).map_or_else(|| cache.to_owned(), |record| record.cache.into());
    let shown = directory.to_string_lossy();
    let begin = Instant::now();
    loop {
        return match control::call(&cache, &Request::Status, PATIENCE) {
            Ok(Ok(status)) => {
                let mut mounts = status["mounts"].as_array().into_iter().flatten();
                mounts.any(|mount| mount["directory"] == *shown && mount["broken"] != true)
            }
            Err(CallError::NoNode { .. }) => false,
            // A node that was just killed takes a moment to be gone.
            Err(CallError::Broken { .. }) if begin.elapsed() < PATIENCE => {
                std::thread::sleep(PATIENCE / 50);
                continue;
            }
            // It is there, if nothing else.
            Ok(Err(_)) | Err(CallError::Broken { .. }) => true,
        };
    }
}

/// Ends the kernel's connection to the node of the view that lies on `directory`, unless the node lives
/// and answers: then what waits gets its error by its deadline. Other mounts of the same log are dead with it.
pub(crate) fn abort(directory: &Path) -> io::Result<()> {
    let record = Record::of(directory).ok_or(io::ErrorKind::NotFound)?;
    let cache = PathBuf::from(record.cache);
    match control::call(&cache, &Request::Status, PATIENCE) {
        Ok(_) | Err(CallError::NoNode { .. }) => Ok(()),
        Err(CallError::Broken { .. }) => Ok(superblock::abort(record.connection)?),
    }
}

impl Record {
    /// The record of the mount on a directory.
    pub(crate) fn of(directory: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(file_of(directory)).ok()?).ok()
    }

    /// All records of a cache's mounts.
    pub(crate) fn of_cache(cache: &Path) -> Vec<Self> {
        let files = fs::read_dir(runtime_directory()).into_iter().flatten().flatten();
        let files = files.map(|file| file.path());
        files
            .filter(|file| file.extension().is_some_and(|end| end == ENDING))
            .filter_map(|file| serde_json::from_slice::<Self>(&fs::read(file).ok()?).ok())
            .filter(|record| PathBuf::from(record.cache.clone()) == cache)
            .collect()
    }

    /// Where it is mounted.
    pub(crate) fn directory(&self) -> PathBuf {
        self.request.directory.clone().into()
    }

    /// Leaves it for others.
    pub(crate) fn write(&self) -> io::Result<()> {
        make_runtime_directory()?;
        let file = file_of(&self.directory());
        let new = file.with_extension("new");
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(new, file)
    }

    /// Takes it away.
    pub(crate) fn remove(directory: &Path) {
        let _ = fs::remove_file(file_of(directory));
    }
}

/// Directories have names of any length and any bytes.
fn file_of(directory: &Path) -> PathBuf {
    let hash = blake3::hash(directory.as_os_str().as_bytes()).to_hex();
    runtime_directory().join(format!("{}.{ENDING}", &hash[..32]))
}
