//! How far the swarm was told of the log: the file by which a running `serve` tells it to `publish`.
//!
//! ```text
//! announced     twenty decimal digits and a newline: munros told; locked (shared) by every `serve`
//! ```
//!
//! So a publish can end when its release can be mounted, and a script may go on from there. Nothing else
//! depends on the file: without it, a publish ends at its commit.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

/// How long a publish waits for a server that runs.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Digits of a u64.
const DIGITS: u64 = 20;

/// A server's end.
#[derive(Debug)]
pub struct Announced {
    file: File,
}

/// What became of waiting for a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A node that asks now is told of it.
    Announced,
    /// None runs on this repository.
    NoServer,
    /// One runs, and has not told of it.
    Late,
}

impl Announced {
    /// Says that a server runs, until this is dropped or the process ends.
    pub fn hold(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o644);
        let file = options.custom_flags(NOFOLLOW).open(path)?;
        // A publisher that looks for a server holds its lock for an instant.
        flock(&file, FlockOperation::LockShared)?;
        Ok(Self { file })
    }

    /// Says how far the swarm was told.
    pub fn note(&self, munros: u64) -> io::Result<()> {
        self.file.write_all_at(format!("{munros:020}\n").as_bytes(), 0)
    }
}

/// Waits until a server has told of the log's first `munros`, at most `patience`.
pub fn wait(path: &Path, munros: u64, patience: Duration) -> Answer {
    let end = Instant::now() + patience;
    loop {
        let Ok(file) = OpenOptions::new().read(true).custom_flags(NOFOLLOW).open(path) else {
            return Answer::NoServer;
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {}
            // Nobody holds it, or the file system knows no locks.
            _ => return Answer::NoServer,
        }
        if told(file).is_some_and(|told| told >= munros) {
            return Answer::Announced;
        }
        if Instant::now() >= end {
            return Answer::Late;
        }
        thread::sleep(LOOK_EVERY);
    }
}

const NOFOLLOW: i32 = (OFlags::NOFOLLOW.bits() | OFlags::CLOEXEC.bits()).cast_signed();

fn told(file: File) -> Option<u64> {
    let mut text = String::new();
    file.take(DIGITS).read_to_string(&mut text).ok()?;
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publish_waits_only_for_a_server_that_runs() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("announced");
        let brief = Duration::from_millis(20);
        assert_eq!(wait(&path, 1, PATIENCE), Answer::NoServer, "no file");
        let server = Announced::hold(&path).expect("held");
        assert_eq!(wait(&path, 1, brief), Answer::Late, "nothing told yet");
        server.note(3).expect("noted");
        assert_eq!(wait(&path, 3, PATIENCE), Answer::Announced);
        assert_eq!(wait(&path, 4, brief), Answer::Late);
        let second = Announced::hold(&path).expect("two servers of one repository");
        drop(server);
        assert_eq!(wait(&path, 3, PATIENCE), Answer::Announced);
        drop(second);
        assert_eq!(wait(&path, 3, PATIENCE), Answer::NoServer, "the server is gone");
    }

    #[test]
    fn what_is_told_meanwhile_ends_the_wait() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("announced");
        let server = Announced::hold(&path).expect("held");
        server.note(1).expect("noted");
        thread::scope(|scope| {
            let waiting = scope.spawn(|| wait(&path, 2, Duration::from_secs(20)));
            server.note(2).expect("noted");
            assert_eq!(waiting.join().expect("no panic"), Answer::Announced);
        });
    }
}
