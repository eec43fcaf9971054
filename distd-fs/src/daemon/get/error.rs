//! Why a directory is not the release that it should be.

use std::path::PathBuf;

use distd_core::limits::TREE_DEPTH_MAX;
use distd_core::manifest::NodeError;
use distd_core::node::ReadError;
use rustix::io::Errno;

use crate::blocks::Unavailable;
use crate::daemon::prefetch::BringError;
use crate::exit::{Complaint, Exit};

/// Why a directory is not the release; run again, it goes on where it ended.
#[derive(Debug, thiserror::Error)]
pub(in crate::daemon) enum GetError {
    /// A call to the system.
    #[error("cannot {doing} {}: {errno}", shown(.path))]
    System {
        /// What was tried.
        doing: &'static str,
        /// Below the directory.
        path: Vec<u8>,
        /// The kernel's answer.
        errno: Errno,
    },
    /// Content that did not come.
    #[error("cannot read the content of {}: {source}", shown(.path))]
    Content {
        /// Below the directory.
        path: Vec<u8>,
        /// Why.
        source: ReadError,
    },
    /// Metadata that did not come.
    #[error("cannot read the metadata of {}: {source}", shown(.path))]
    Metadata {
        /// Below the directory.
        path: Vec<u8>,
        /// Why.
        source: Unavailable,
    },
    /// Metadata that is wrong.
    #[error("the origin signed wrong metadata of {}: {source}", shown(.path))]
    Damaged {
        /// Below the directory.
        path: Vec<u8>,
        /// What is wrong.
        source: NodeError,
    },
    /// A directory with something in it, where the release has something else.
    #[error(
        "{} is a directory that is not empty, the release has {kind} there: remove it, or add --delete",
        shown(.path)
    )]
    InTheWay {
        /// Below the directory.
        path: Vec<u8>,
        /// What belongs there.
        kind: &'static str,
    },
    /// Another get.
    #[error("another get is at work on {}", .directory.display())]
    Busy {
        /// Where.
        directory: PathBuf,
    },
    /// Deeper than a tree may be.
    #[error("the tree is deeper than {TREE_DEPTH_MAX} directories")]
    Depth,
    /// What was to be fetched.
    #[error(transparent)]
    Bring(#[from] BringError),
    /// Nobody wants it any more.
    #[error("stopped; run it again to go on")]
    Stopped,
}

fn shown(path: &[u8]) -> String {
    if path.is_empty() { "the directory".to_owned() } else { path.escape_ascii().to_string() }
}

impl From<GetError> for Complaint {
    fn from(error: GetError) -> Self {
        let exit = match &error {
            GetError::System { .. } | GetError::InTheWay { .. } | GetError::Stopped => {
                Exit::Failure
            }
            GetError::Content { .. } | GetError::Metadata { .. } => Exit::Unreachable,
            GetError::Damaged { .. } | GetError::Depth => Exit::Unverified,
            GetError::Busy { .. } => Exit::Busy,
            GetError::Bring(_) => match error {
                GetError::Bring(error) => return error.into(),
                _ => Exit::Failure,
            },
        };
        Self::new(exit, error)
    }
}
