//! Why nothing was published.

use std::path::PathBuf;

use distd_core::head::LabelError;
use distd_core::limits::{MESSAGE_BYTES_MAX, RELEASES_MAX};
use distd_core::store::{AppendError, OpenError, ReadError};

use crate::catch_up::CatchUpError;
use crate::history::HistoryError;
use crate::index::IndexError;
use crate::metadata::LayoutError;
use crate::repo::RepoError;
use crate::scan::ScanError;
use crate::seal::SealError;

/// Why nothing was published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// No such source.
    #[error("there is no '{}' to publish", path.display())]
    NoSource {
        /// What was named.
        path: PathBuf,
    },
    /// Not a tree and not a file.
    #[error("'{}' is neither a directory nor a regular file", path.display())]
    NotASource {
        /// What was named.
        path: PathBuf,
    },
    /// It would publish its own log.
    #[error(
        "the repository '{}' and the source '{}' lie within each other: a release cannot hold the log that it goes into; move one of them",
        repo.display(), source_dir.display()
    )]
    Nested {
        /// The repository.
        repo: PathBuf,
        /// The source.
        source_dir: PathBuf,
    },
    /// A wrong name.
    #[error(transparent)]
    Label(#[from] LabelError),
    /// Too much to say.
    #[error("the message has {found} bytes, at most {MESSAGE_BYTES_MAX} are possible")]
    Message {
        /// Its length.
        found: usize,
    },
    /// The version is taken.
    #[error(
        "the track '{track}' has a release '{version}' already: releases never change, choose another version (or 'distd-origin rollback {track} {version}' to go back to it)"
    )]
    Exists {
        /// The track.
        track: String,
        /// The version.
        version: String,
    },
    /// The catalog is full.
    #[error("the catalog lists {RELEASES_MAX} releases, which is all it can")]
    CatalogFull,
    /// The tree.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// Its metadata.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The log's writing side.
    #[error("{0}; nothing was published, the log is as it was")]
    Append(#[from] AppendError),
    /// What was published before.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// A dry run has nowhere to put new content.
    #[error("cannot use a temporary file for the new content (TMPDIR says where): {0}")]
    Scratch(std::io::Error),
    /// Older content that new content is compared with.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The repository.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// The end of it.
    #[error(transparent)]
    Seal(#[from] SealError),
}

impl PublishError {
    /// Whether another process has the log or the index.
    pub(super) fn is_busy(&self) -> bool {
        matches!(
            self,
            Self::Append(AppendError::Open(OpenError::Busy { .. }))
                | Self::Repo(RepoError::Busy { .. })
        )
    }
}

impl From<std::convert::Infallible> for PublishError {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

impl From<CatchUpError> for PublishError {
    fn from(error: CatchUpError) -> Self {
        match error {
            CatchUpError::History(error) => Self::History(error),
            CatchUpError::Index(error) => Self::Index(error),
        }
    }
}
