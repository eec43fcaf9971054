//! What is published: a directory, or one file.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::repo::Repo;
use crate::scan::{Root, ScanError, TreePath, split_file};

use super::PublishError;

/// The opened source.
pub(super) struct Source {
    pub(super) root: Root,
    /// Set for a source that is one file: its name in the root.
    pub(super) only: Option<OsString>,
    /// Its absolute path.
    pub(super) path: PathBuf,
}

impl Source {
    pub(super) fn open(repo: &Repo, path: &Path) -> Result<Self, PublishError> {
        let missing = || PublishError::NoSource { path: path.into() };
        let failed = |verb, source: std::io::Error| {
            let path = TreePath(path.as_os_str().as_bytes().to_vec());
            PublishError::Scan(ScanError::Io { verb, path, source })
        };
        let kind = match path.metadata() {
            Ok(metadata) => metadata.file_type(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(missing()),
            Err(error) => return Err(failed("stat", error)),
        };
        let real = path.canonicalize().map_err(|error| failed("resolve", error))?;
        let repo_dir = repo
            .dir()
            .canonicalize()
            .map_err(|error| failed("resolve the repository for", error))?;
        if real.starts_with(&repo_dir) || repo_dir.starts_with(&real) {
            return Err(PublishError::Nested { repo: repo_dir, source_dir: real });
        }
        let (dir, only) = if kind.is_dir() {
            (real.as_path(), None)
        } else if kind.is_file() {
            let (dir, name) = split_file(&real);
            (dir, Some(name.ok_or_else(missing)?.to_owned()))
        } else {
            return Err(PublishError::NotASource { path: path.into() });
        };
        let root = Root::open(dir).map_err(|errno| failed("open", errno.into()))?;
        Ok(Self { root, only, path: real })
    }
}
