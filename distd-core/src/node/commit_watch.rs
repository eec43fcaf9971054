//! Tells when a log's commit file is replaced.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

/// Room for some events, of at most 272 bytes each.
const EVENTS_BYTES: usize = 4096;

/// A watch on a log's directory. Where the kernel grants none (out of watches, a network file system),
/// [`CommitWatch::changed`] never resolves, and the caller's slow poll has to do.
pub(super) struct CommitWatch(Option<AsyncFd<OwnedFd>>);

impl CommitWatch {
    /// Watches `dir`. Must run inside a tokio runtime.
    pub(super) fn new(dir: &Path) -> Self {
        let watched = Self::watched(dir).inspect_err(|error| {
            tracing::warn!(%error, dir = %dir.display(), "cannot watch the log; looking at it once a second");
        });
        Self(watched.ok())
    }

    fn watched(dir: &Path) -> io::Result<AsyncFd<OwnedFd>> {
        let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        // A commit is a rename; what a publish writes before it is none of our business.
        inotify::add_watch(&events, dir, WatchFlags::MOVED_TO | WatchFlags::ONLYDIR)?;
        #[allow(
            deprecated,
            reason = "an OwnedFd keeps I/O safety, and the successor is unsafe to call"
        )]
        AsyncFd::new(events)
    }

    /// Resolves when a file was renamed into the directory since the last time.
    pub(super) async fn changed(&mut self) {
        let Some(events) = &self.0 else { return std::future::pending().await };
        while let Ok(mut ready) = events.readable().await {
            let mut buffer = [0; EVENTS_BYTES];
            match ready.try_io(|events| Ok(rustix::io::read(events, &mut buffer)?)) {
                Ok(Ok(1..)) => return,
                Ok(_) => break,
                // Not readable after all.
                Err(_) => {}
            }
        }
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_rename_is_told_once_and_writing_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut watch = CommitWatch::new(dir.path());
        std::fs::write(dir.path().join("new"), b"x").expect("written");
        let brief = Duration::from_millis(50);
        assert!(tokio::time::timeout(brief, watch.changed()).await.is_err(), "only written");
        std::fs::rename(dir.path().join("new"), dir.path().join("commit")).expect("renamed");
        let long = Duration::from_secs(5);
        assert!(tokio::time::timeout(long, watch.changed()).await.is_ok(), "renamed");
        assert!(tokio::time::timeout(brief, watch.changed()).await.is_err(), "told already");
    }

    #[tokio::test]
    async fn without_a_directory_nothing_is_told() {
        let mut watch = CommitWatch::new(Path::new("/nonexistent"));
        let brief = Duration::from_millis(20);
        assert!(tokio::time::timeout(brief, watch.changed()).await.is_err());
    }
}
