//! Small files that are replaced as a whole and know whether they are whole.
//!
//! ```text
//! offset  bytes  what
//! 0       16     magic "distd state 1\0\0\0"
//! 16      8      length n of the content, little endian
//! 24      32     blake3 of the name, a zero byte and the content
//! 56      n      content
//! ```

use std::path::PathBuf;

use super::directory::Directory;
use super::{DiskError, OpenError};

/// Longest content of a state file, in bytes.
const STATE_BYTES_MAX: u64 = 64 << 20;
const MAGIC: &[u8; 16] = b"distd state 1\0\0\0";
const HEADER_BYTES: usize = 56;

/// Why a state file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Torn, altered, or written under another name.
    #[error("{} is damaged: its checksum does not hold", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
    },
    /// Of another version.
    #[error("{} was written by another version of distd", path.display())]
    Version {
        /// The file.
        path: PathBuf,
    },
    /// A name that is no plain lower-case word.
    #[error("{name:?} is no name of a state file (a-z, 0-9, - and _, at most 64)")]
    Name {
        /// The name asked for.
        name: String,
    },
    /// More than a state file may hold.
    #[error("state file {name}: {len} bytes, at most {STATE_BYTES_MAX} are kept")]
    TooLong {
        /// The name.
        name: String,
        /// The length asked for.
        len: usize,
    },
    /// Something stands where the file should be.
    #[error("{} is not a regular file of ours with one name: remove it", path.display())]
    Planted {
        /// The file.
        path: PathBuf,
    },
    /// The disk said no.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Replaces the state file `name`, durably and at once.
pub(super) fn save(directory: &Directory, name: &str, bytes: &[u8]) -> Result<(), StateError> {
    let file = file_name(name)?;
    if bytes.len() as u64 > STATE_BYTES_MAX {
        return Err(StateError::TooLong { name: name.to_owned(), len: bytes.len() });
    }
    let mut content = Vec::with_capacity(HEADER_BYTES + bytes.len());
    content.extend_from_slice(MAGIC);
    content.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    content.extend_from_slice(&checksum(name, bytes));
    content.extend_from_slice(bytes);
    directory.replace(&file, &content).map_err(|error| from_open(directory, &file, error))
}

/// The content of the state file `name`; `None` if there is none.
pub(super) fn load(directory: &Directory, name: &str) -> Result<Option<Vec<u8>>, StateError> {
    let file = file_name(name)?;
    let max = STATE_BYTES_MAX + HEADER_BYTES as u64;
    let found = directory.read(&file, max).map_err(|error| from_open(directory, &file, error))?;
    let Some(mut bytes) = found else { return Ok(None) };
    let corrupt = || StateError::Corrupt { path: directory.path_of(&file) };
    let Some((header, content)) = bytes.split_at_checked(HEADER_BYTES) else {
        return Err(corrupt());
    };
    let (magic, rest) = header.split_at(16);
    if magic != MAGIC {
        return Err(if magic.starts_with(b"distd state ") {
            StateError::Version { path: directory.path_of(&file) }
        } else {
            corrupt()
        });
    }
    let (len, sum) = rest.split_at(8);
    if len != (content.len() as u64).to_le_bytes() || sum != checksum(name, content) {
        return Err(corrupt());
    }
    Ok(Some(bytes.split_off(HEADER_BYTES)))
}

fn file_name(name: &str) -> Result<String, StateError> {
    let plain = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
    if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
        return Err(StateError::Name { name: name.to_owned() });
    }
    Ok(format!("{name}.state"))
}

/// The name is hashed too, so that one state file does not pass for another.
fn checksum(name: &str, content: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(name.as_bytes()).update(&[0]).update(content);
    *hasher.finalize().as_bytes()
}

fn from_open(directory: &Directory, file: &str, error: OpenError) -> StateError {
    match error {
        OpenError::Disk(error) => StateError::Disk(error),
        _ => StateError::Planted { path: directory.path_of(file) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    fn directory() -> (tempfile::TempDir, Directory) {
        let temp = tempfile::tempdir().expect("tempdir");
        let directory = Directory::private(&temp.path().join("cache")).expect("created");
        (temp, directory)
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let (_temp, directory) = directory();
        assert!(load(&directory, "head").expect("readable").is_none());
        let long = vec![7; 100_000];
        for content in [&b""[..], b"one", &long] {
            save(&directory, "head", content).expect("saved");
            assert_eq!(load(&directory, "head").expect("readable").as_deref(), Some(content));
        }
        for name in ["", "../x", "A", "a/b", ".", &"a".repeat(65)] {
            assert!(matches!(save(&directory, name, b""), Err(StateError::Name { .. })), "{name}");
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_reported() {
        let (_temp, directory) = directory();
        save(&directory, "head", b"content").expect("saved");
        let path = directory.path_of("head.state");
        let whole = std::fs::read(&path).expect("read");
        for bit in 0..whole.len() * 8 {
            let mut altered = whole.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &altered).expect("written");
            assert!(load(&directory, "head").is_err(), "bit {bit}");
        }
        for len in 0..whole.len() {
            std::fs::write(&path, &whole[..len]).expect("written");
            assert!(load(&directory, "head").is_err(), "{len} bytes");
        }
        std::fs::write(&path, &whole).expect("written");
        std::fs::rename(&path, directory.path_of("other.state")).expect("renamed");
        assert!(matches!(load(&directory, "other"), Err(StateError::Corrupt { .. })));
    }

    #[test]
    fn a_crash_at_any_change_leaves_the_old_or_the_new() {
        for changes in 0..8 {
            let (_temp, directory) = directory();
            save(&directory, "head", b"old").expect("saved");
            directory.fault().after(changes, Errno::IO);
            let saved = save(&directory, "head", b"new");
            directory.fault().heal();
            let found = load(&directory, "head").expect("whole").expect("there");
            assert!(found == b"new" || (saved.is_err() && found == b"old"), "{changes}");
            save(&directory, "head", b"next").expect("saved");
        }
    }
}
