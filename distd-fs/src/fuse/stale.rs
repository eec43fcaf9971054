//! Telling the kernel what it has to forget.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fuser::{INodeNo, Notifier};

use crate::fs::Stale;

/// Has the kernel forget names, and the directories' attributes and listings. Not for threads that
/// answer the kernel: it waits until lookups and listings under way in these directories are answered.
pub fn forget_stale(notifier: &Notifier, stale: &Stale) {
    for (parent, name) in &stale.names {
        if let Err(error) = notifier.inval_entry(INodeNo(*parent), OsStr::from_bytes(name)) {
            // The mount is gone, or the kernel lacks memory.
            tracing::debug!(%error, "the kernel does not forget a name");
        }
    }
    forget_directories(notifier, stale);
}

/// Has the kernel forget the directories' attributes and listings.
pub fn forget_directories(notifier: &Notifier, stale: &Stale) {
    for number in &stale.directories {
        if let Err(error) = notifier.inval_inode(INodeNo(*number), 0, 0) {
            tracing::debug!(%error, "the kernel does not forget a directory");
        }
    }
}
