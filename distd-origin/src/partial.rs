//! A file that is written beside its name, and takes it when it is whole.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// A file that is not whole yet; removed if it does not become so.
pub(crate) struct Partial {
    beside: PathBuf,
    path: PathBuf,
}

impl Partial {
    /// Makes one. Its name cannot be foreseen, and nothing that is there is followed or written to: others
    /// may be allowed to write into the directory.
    pub(crate) fn create(path: &Path) -> io::Result<(Self, File)> {
        if path.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{:016x}.part", u64::from_le_bytes(random)));
        let beside = PathBuf::from(beside);
        let file = OpenOptions::new().write(true).create_new(true).open(&beside)?;
        Ok((Self { beside, path: path.to_owned() }, file))
    }

    /// Gives it its name.
    pub(crate) fn finish(self) -> io::Result<()> {
        fs::rename(&self.beside, &self.path)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After it became whole there is nothing under this name.
        let _ = fs::remove_file(&self.beside);
    }
}
