//! Our own directory in the one that becomes the release: where things are made, and what is put aside.
//!
//! ```text
//! .distd-get/1, 2, ...     being made; cleared by the next run
//! .distd-get/seeds/1, ...  files that go and whose content is still needed; the next run needs it, too
//! ```

use std::collections::HashMap;

use rustix::fs::{FileType, Mode, OFlags, fstat, mkdirat};
use rustix::io::Errno;

use super::content::link_beneath;
use super::place::{Place, file_type};

/// Where files are put aside.
const SEEDS: &[u8] = b"seeds";

/// The directory.
pub(super) struct Desk<'a> {
    root: &'a Place,
    name: Vec<u8>,
    seeds: Place,
    /// Names given out among the seeds.
    aside: u64,
    /// The seeds, by device and inode.
    names: HashMap<(u64, u64), Vec<u8>>,
}

impl<'a> Desk<'a> {
    /// Makes it, or clears what an earlier run left; it, and the place where things are made.
    pub(super) fn open(root: &'a Place, name: Vec<u8>) -> Result<(Self, Place), Errno> {
        tidy(root, &name)?;
        let make = |place: &Place, name: &[u8]| match mkdirat(place, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => place.directory(name),
            Err(error) => Err(error),
        };
        let place = make(root, &name)?;
        let seeds = make(&place, SEEDS)?;
        let (mut aside, mut names) = (0, HashMap::new());
        for name in seeds.names()? {
            let number = std::str::from_utf8(&name).ok().and_then(|name| name.parse::<u64>().ok());
            aside = aside.max(number.unwrap_or(0));
            if let Some(stat) = seeds.stat(&name)? {
                names.insert((stat.st_dev, stat.st_ino), name);
            }
        }
        Ok((Self { root, name, seeds, aside, names }, place))
    }

    /// Gives a file below the root another name, so that its content outlives its place; its new path. One
    /// that has such a name keeps it.
    pub(super) fn put_aside(&mut self, path: &[u8]) -> Result<Vec<u8>, Errno> {
        let stat = fstat(self.root.open_beneath(path, OFlags::PATH)?)?;
        let inode = (stat.st_dev, stat.st_ino);
        let name = match self.names.get(&inode) {
            Some(name) => name.clone(),
            None => {
                self.aside += 1;
                let name = self.aside.to_string().into_bytes();
                link_beneath(self.root, path, &self.seeds, &name)?;
                self.names.insert(inode, name.clone());
                name
            }
        };
        Ok([&self.name, &b"/"[..], SEEDS, b"/", &name].concat())
    }

    /// Clears all of it away: nothing of it is needed any more.
    pub(super) fn clear(self) -> Result<(), Errno> {
        self.root.remove(&self.name).map(drop)
    }
}

impl Drop for Desk<'_> {
    /// Leaves what the next run has a use for. What cannot be cleared away now is cleared by that.
    fn drop(&mut self) {
        if !matches!(self.root.stat(&self.name), Ok(Some(_)))
            || tidy(self.root, &self.name).is_err()
        {
            return;
        }
        // Those that are not empty stay.
        let place = self.root.directory(&self.name);
        if place.is_ok_and(|place| place.remove_empty(SEEDS)) {
            self.root.remove_empty(&self.name);
        }
    }
}

/// Whether a path leads into our own directory, and not to what was put aside there.
pub(super) fn is_on_desk(name: &[u8], path: &[u8]) -> bool {
    let below = path.strip_prefix(name).and_then(|rest| rest.strip_prefix(b"/"));
    below.is_some_and(|rest| {
        rest.strip_prefix(SEEDS).and_then(|rest| rest.strip_prefix(b"/")).is_none()
    })
}

/// Removes what lies under our name, but for the seeds in a directory that only we may write to.
fn tidy(root: &Place, name: &[u8]) -> Result<(), Errno> {
    let is_ours = |place: &Place, name: &[u8]| -> Result<bool, Errno> {
        let stat = place.stat(name)?;
        let us = rustix::process::geteuid().as_raw();
        let ours = stat.filter(|stat| file_type(stat) == FileType::Directory && stat.st_uid == us);
        Ok(ours.is_some_and(|stat| stat.st_mode & 0o777 == 0o700))
    };
    if !is_ours(root, name)? {
        return root.remove(name).map(drop);
    }
    let place = root.directory(name)?;
    for name in place.names()? {
        if name != SEEDS || !is_ours(&place, &name)? {
            place.remove(&name)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    #[test]
    fn what_was_put_aside_outlives_a_run_that_was_ended() {
        let scratch = tempfile::tempdir().expect("a directory");
        let root = Place::open(scratch.path()).expect("opens");
        let path = |name: &str| scratch.path().join(name);
        fs::write(path("file"), "old").expect("written");
        let (mut desk, place) = Desk::open(&root, b"own".to_vec()).expect("made");
        mkdirat(&place, c"7", Mode::RWXU).expect("made");
        let aside = desk.put_aside(b"file").expect("linked");
        assert_eq!(aside, b"own/seeds/1");
        assert!(!is_on_desk(b"own", &aside) && is_on_desk(b"own", b"own/7"));
        assert!(!is_on_desk(b"own", b"owner/7"));
        fs::write(path("new"), "new").expect("written");
        fs::rename(path("new"), path("file")).expect("renamed");
        drop(desk);
        let (mut desk, _) = Desk::open(&root, b"own".to_vec()).expect("opened");
        assert!(!path("own/7").exists());
        assert_eq!(fs::read_to_string(path("own/seeds/1")).expect("read"), "old");
        assert_eq!(desk.put_aside(b"file").expect("linked"), b"own/seeds/2");
        assert_eq!(desk.put_aside(b"file").expect("linked"), b"own/seeds/2", "a second run");
        desk.clear().expect("cleared");
        assert!(!path("own").exists());
        let (desk, _) = Desk::open(&root, b"own".to_vec()).expect("made");
        drop(desk);
        assert!(!path("own").exists(), "nothing was put aside");
    }

    #[test]
    fn what_others_laid_under_our_name_goes_and_leads_nowhere() {
        let scratch = tempfile::tempdir().expect("a directory");
        let outside = tempfile::tempdir().expect("a directory");
        fs::write(outside.path().join("precious"), "x").expect("written");
        let root = Place::open(scratch.path()).expect("opens");
        symlink(outside.path(), scratch.path().join("own")).expect("made");
        let (desk, _) = Desk::open(&root, b"own".to_vec()).expect("made");
        desk.clear().expect("cleared");
        fs::create_dir_all(scratch.path().join("own")).expect("made");
        fs::create_dir(scratch.path().join("own/deep")).expect("made");
        symlink(outside.path(), scratch.path().join("own/seeds")).expect("made");
        let (desk, _) = Desk::open(&root, b"own".to_vec()).expect("made");
        let own = fs::symlink_metadata(scratch.path().join("own")).expect("there");
        assert_eq!(own.mode() & 0o777, 0o700);
        drop(desk);
        assert!(outside.path().join("precious").exists());
        assert!(!scratch.path().join("own").exists());
    }
}
