//! What a file operation can fail with, and the one place where that becomes an errno.
//!
//! `docs/semantics.md` shows the table to readers.

use rustix::io::Errno;

/// Why a file operation has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The kernel names an inode that it was never given or has given back.
    #[error("no such inode")]
    Stale,
    /// No entry of that name.
    #[error("no such entry")]
    NoEntry,
    /// Not a directory.
    #[error("not a directory")]
    NotADirectory,
    /// An operation that this kind of file does not know.
    #[error("wrong kind of file")]
    WrongKind,
    /// No extended attribute of that name.
    #[error("no such attribute")]
    NoAttribute,
    /// The caller's buffer is too small for an attribute.
    #[error("buffer too small")]
    TooSmall,
    /// An offset at or beyond the end of the file, or no data after it.
    #[error("no such offset")]
    NoOffset,
    /// An argument without meaning.
    #[error("invalid argument")]
    Invalid,
    /// A call that would change something.
    #[error("read-only")]
    ReadOnly,
    /// Blocks that nobody sent by the deadline.
    #[error("not available in time")]
    Unavailable,
    /// Verified bytes that are not what the manifest says: the origin published nonsense.
    #[error("the manifest is damaged")]
    Damaged,
    /// The node is leaving, or a bug was caught.
    #[error("interrupted")]
    Interrupted,
}

impl Failure {
    /// The errno that the caller of the system call sees.
    pub const fn errno(self) -> Errno {
        match self {
            Self::Stale => Errno::STALE,
            Self::NoEntry => Errno::NOENT,
            Self::NotADirectory => Errno::NOTDIR,
            Self::WrongKind | Self::Invalid => Errno::INVAL,
            Self::NoAttribute => Errno::NODATA,
            Self::TooSmall => Errno::RANGE,
            Self::NoOffset => Errno::NXIO,
            Self::ReadOnly => Errno::ROFS,
            Self::Unavailable | Self::Damaged | Self::Interrupted => Errno::IO,
        }
    }
}
