//! Writing: the release's entries, one by one, under temporary names and then in place.

use std::collections::HashMap;

use distd_core::limits::TREE_DEPTH_MAX;
use distd_core::manifest::{DirectoryNode, Entry, EntryKind, File, Release};
use distd_core::unit::ByteRange;
use rustix::fs::{AtFlags, FileType, Mode, Stat, fchmod, linkat, mkdirat, mknodat, renameat};
use rustix::io::Errno;

use super::attributes::Attributes;
use super::content::{self, Source, Writing, Written};
use super::known::Known;
use super::place::{Place, file_type};
use super::survey::Survey;
use super::tree::{Tree, joined};
use super::{GetError, Report};
use crate::daemon::jobs::Progress;

/// Writes the release.
pub(super) struct Writer<'a> {
    tree: Tree<'a>,
    delete: bool,
    progress: &'a Progress,
    root: &'a Place,
    survey: &'a Survey,
    known: &'a Known,
    temp: Place,
    temporary: Vec<u8>,
    /// Temporary names given out.
    names: u64,
    /// Temporary names of inodes that have several names.
    links: HashMap<u64, Vec<u8>>,
    attributes: Attributes,
    report: Report,
    done_bytes: u64,
}

impl<'a> Writer<'a> {
    /// Writes into `temp`, a directory in the `root` that becomes the release, named `temporary`.
    pub(super) fn new(
        tree: Tree<'a>,
        root: &'a Place,
        (temp, temporary): (Place, Vec<u8>),
        delete: bool,
        (survey, known): (&'a Survey, &'a Known),
        progress: &'a Progress,
        release: &Release,
    ) -> Self {
        let (track, release) = (release.track.clone(), release.version.clone());
        Self {
            tree,
            delete,
            progress,
            root,
            survey,
            known,
            temp,
            temporary,
            names: 0,
            links: HashMap::new(),
            attributes: Attributes::new(),
            report: Report { track, release, ..Report::default() },
            done_bytes: 0,
        }
    }

    /// Gives the directory itself its attributes, and says what everything came to.
    pub(super) fn finish(mut self, entry: &Entry) -> Result<Report, GetError> {
        self.own_attributes(self.root, entry, b"")?;
        self.report.skipped_attributes = self.attributes.left_out;
        Ok(self.report)
    }

    fn next_name(&mut self) -> Vec<u8> {
        self.names += 1;
        self.names.to_string().into_bytes()
    }

    /// Makes a directory's content that of a node.
    pub(super) fn directory(
        &mut self,
        place: &Place,
        node: ByteRange,
        path: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), GetError> {
        if depth > TREE_DEPTH_MAX {
            return Err(GetError::Depth);
        }
        let node = self.tree.directory(node, path)?;
        self.still_wanted()?;
        if self.delete {
            self.delete_others(place, &node, path)?;
        }
        let len = path.len();
        for entry in node.entries() {
            self.still_wanted()?;
            let whole = joined(&path[..len], entry.name.as_bytes());
            path.clone_from(&whole);
            match &entry.kind {
                EntryKind::Directory(directory) => {
                    let below = self.enter(place, entry, path)?;
                    self.directory(&below, directory.node, path, depth + 1)?;
                    self.own_attributes(&below, entry, path)?;
                }
                _ => self.entry(place, entry, path)?,
            }
            path.truncate(len);
        }
        Ok(())
    }

    fn still_wanted(&self) -> Result<(), GetError> {
        if self.progress.is_stopped() { Err(GetError::Stopped) } else { Ok(()) }
    }

    fn delete_others(
        &mut self,
        place: &Place,
        node: &DirectoryNode,
        path: &[u8],
    ) -> Result<(), GetError> {
        let failed = |errno| GetError::System { doing: "look into", path: path.to_vec(), errno };
        for name in place.names().map_err(failed)? {
            if node.position(&name).is_some() || (path.is_empty() && name == self.temporary) {
                continue;
            }
            self.still_wanted()?;
            let failed =
                |errno| GetError::System { doing: "remove", path: joined(path, &name), errno };
            self.report.deleted += place.remove(&name).map_err(failed)?;
        }
        Ok(())
    }

    /// Opens a directory of the release, made if it is not there.
    fn enter(&mut self, place: &Place, entry: &Entry, path: &[u8]) -> Result<Place, GetError> {
        let name = entry.name.as_bytes();
        let failed = |doing| move |errno| GetError::System { doing, path: path.to_vec(), errno };
        let found = place.stat(name).map_err(failed("look at"))?;
        if found.as_ref().map(file_type) != Some(FileType::Directory) {
            if found.is_some() {
                place.remove(name).map_err(failed("replace"))?;
            }
            mkdirat(place, name, Mode::RWXU).map_err(failed("make"))?;
            self.report.written += 1;
        }
        let below = place.directory(name).map_err(failed("open"))?;
        if found.is_some_and(|stat| stat.st_mode & 0o700 != 0o700) && !self.attributes.privileged()
        {
            fchmod(&below, Mode::RWXU).map_err(failed("write into"))?;
        }
        Ok(below)
    }

    /// Gives an open directory its entry's attributes.
    fn own_attributes(
        &mut self,
        place: &Place,
        entry: &Entry,
        path: &[u8],
    ) -> Result<(), GetError> {
        let failed =
            |errno| GetError::System { doing: "set the attributes of", path: path.to_vec(), errno };
        let stat = place.stat(b".").map_err(failed)?.ok_or(Errno::NOENT).map_err(failed)?;
        if !self.attributes.match_entry(place, b".", &stat, entry).map_err(failed)? {
            self.attributes.set(place, b".", entry).map_err(failed)?;
        }
        Ok(())
    }

    /// Makes an entry that is no directory.
    fn entry(&mut self, place: &Place, entry: &Entry, path: &[u8]) -> Result<(), GetError> {
        let failed = |doing| move |errno| GetError::System { doing, path: path.to_vec(), errno };
        let name = entry.name.as_bytes();
        let found = place.stat(name).map_err(failed("look at"))?;
        if let Some(link) = entry.link
            && let Some(first) = self.links.get(&link.id).cloned()
        {
            return self.link(place, &first, found.as_ref(), entry, path);
        }
        let stays = match &found {
            Some(stat) => self.stays(place, entry, stat, path).map_err(failed("look at"))?,
            None => false,
        };
        if let Some(stat) = &found
            && stays
            && stat.st_nlink <= entry.link.map_or(1, |link| link.count).into()
        {
            let matches = self.attributes.match_entry(place, name, stat, entry);
            if matches.map_err(failed("look at"))? {
                self.report.unchanged += 1;
                return self.remember_link(place, entry, path);
            }
            if stat.st_nlink == 1 && self.touch(place, entry, stat) {
                self.report.touched += 1;
                return self.remember_link(place, entry, path);
            }
        }
        let Some(temporary) = self.make(place, entry, stays, path)? else { return Ok(()) };
        self.attributes
            .set(&self.temp, &temporary, entry)
            .map_err(failed("set the attributes of"))?;
        if let Some(link) = entry.link {
            let kept = self.next_name();
            linkat(&self.temp, &temporary[..], &self.temp, &kept[..], AtFlags::empty())
                .map_err(failed("link"))?;
            self.links.insert(link.id, kept);
        }
        self.put(place, &temporary, found.as_ref(), entry, path)
    }

    /// Whether what is there is what the entry says, its attributes left out.
    fn stays(&self, place: &Place, entry: &Entry, stat: &Stat, path: &[u8]) -> Result<bool, Errno> {
        let name = entry.name.as_bytes();
        Ok(match (&entry.kind, file_type(stat)) {
            (EntryKind::File(file), FileType::RegularFile) => {
                self.survey.digest(path, stat) == Some(file.blake3)
            }
            (EntryKind::Symlink(target), FileType::Symlink) => {
                rustix::fs::readlinkat(place, name, Vec::new())?.as_bytes() == target
            }
            (EntryKind::CharDevice(device), FileType::CharacterDevice)
            | (EntryKind::BlockDevice(device), FileType::BlockDevice) => {
                stat.st_rdev == rustix::fs::makedev(device.major, device.minor)
            }
            (EntryKind::Fifo, FileType::Fifo) | (EntryKind::Socket, FileType::Socket) => true,
            _ => false,
        })
    }

    /// Changes the attributes alone, of a file that has no other name; whether that could be done. By a
    /// name in our own directory, so that nobody can put something else in its place meanwhile.
    fn touch(&mut self, place: &Place, entry: &Entry, stat: &Stat) -> bool {
        let (name, temporary) = (entry.name.as_bytes(), self.next_name());
        if linkat(place, name, &self.temp, &temporary[..], AtFlags::empty()).is_err() {
            return false;
        }
        let same =
            |now: Stat| (now.st_dev, now.st_ino, now.st_nlink) == (stat.st_dev, stat.st_ino, 2);
        let linked = self.temp.stat(&temporary).ok().flatten();
        let done =
            linked.is_some_and(same) && self.attributes.set(&self.temp, &temporary, entry).is_ok();
        // What stays there goes with the directory.
        let _ = self.temp.remove(&temporary);
        done
    }

    /// Makes the entry under a temporary name; nothing where that is for root.
    fn make(
        &mut self,
        place: &Place,
        entry: &Entry,
        stays: bool,
        path: &[u8],
    ) -> Result<Option<Vec<u8>>, GetError> {
        let temporary = self.next_name();
        let failed = |doing| move |errno| GetError::System { doing, path: path.to_vec(), errno };
        let device = |kind, number: rustix::fs::Dev| {
            mknodat(&self.temp, &temporary[..], kind, Mode::RUSR, number)
        };
        let made = match &entry.kind {
            EntryKind::File(file) => {
                let written = self.content(place, entry, file, stays, &temporary, path)?;
                self.done_bytes += file.size;
                self.report.reused_bytes += written.reused_bytes;
                self.report.read_bytes += written.read_bytes;
                Ok(())
            }
            EntryKind::Symlink(target) => {
                rustix::fs::symlinkat(&target[..], &self.temp, &temporary[..])
            }
            EntryKind::Fifo => device(FileType::Fifo, 0),
            EntryKind::Socket => device(FileType::Socket, 0),
            EntryKind::CharDevice(_) | EntryKind::BlockDevice(_)
                if !self.attributes.privileged() =>
            {
                self.report.skipped_devices += 1;
                return Ok(None);
            }
            EntryKind::CharDevice(number) => {
                device(FileType::CharacterDevice, rustix::fs::makedev(number.major, number.minor))
            }
            EntryKind::BlockDevice(number) => {
                device(FileType::BlockDevice, rustix::fs::makedev(number.major, number.minor))
            }
            EntryKind::Directory(_) => Err(Errno::ISDIR),
        };
        made.map_err(failed("make"))?;
        Ok(Some(temporary))
    }

    /// Makes a file's content under a temporary name.
    fn content(
        &self,
        place: &Place,
        entry: &Entry,
        file: &File,
        stays: bool,
        temporary: &[u8],
        path: &[u8],
    ) -> Result<Written, GetError> {
        let elsewhere = self.survey.with(&file.blake3);
        let elsewhere = elsewhere.and_then(|number| self.known.shelf.path_of(number));
        let source = Source {
            own: stays.then_some((place, entry.name.as_bytes())),
            seed: elsewhere.as_deref().map(|path| (self.root, path)),
        };
        let Tree { swarm, timeout } = self.tree;
        let writing = Writing { swarm, timeout, seeds: &self.known.seeds };
        let target = content::Target { place: &self.temp, name: temporary, path };
        writing.write(&target, file, &source, &|bytes| {
            self.progress.set(self.done_bytes + bytes);
            !self.progress.is_stopped()
        })
    }

    /// Gives a temporary file its place.
    fn put(
        &mut self,
        place: &Place,
        temporary: &[u8],
        found: Option<&Stat>,
        entry: &Entry,
        path: &[u8],
    ) -> Result<(), GetError> {
        let name = entry.name.as_bytes();
        let failed = |doing| move |errno| GetError::System { doing, path: path.to_vec(), errno };
        if found.map(file_type) == Some(FileType::Directory) {
            let emptied = rustix::fs::unlinkat(place, name, AtFlags::REMOVEDIR);
            if emptied.is_err() && !self.delete {
                return Err(GetError::InTheWay { path: path.to_vec(), kind: "something else" });
            }
            self.report.deleted += place.remove(name).map_err(failed("replace"))?;
        }
        renameat(&self.temp, temporary, place, name).map_err(failed("put in place"))?;
        // A rename between two names of one inode does nothing.
        self.temp.remove(temporary).map_err(failed("put in place"))?;
        self.report.written += 1;
        Ok(())
    }

    /// Makes the entry another name of the inode that lies at `first`.
    fn link(
        &mut self,
        place: &Place,
        first: &[u8],
        found: Option<&Stat>,
        entry: &Entry,
        path: &[u8],
    ) -> Result<(), GetError> {
        let failed = |doing| move |errno| GetError::System { doing, path: path.to_vec(), errno };
        let inode = |stat: &Stat| (stat.st_dev, stat.st_ino);
        let wanted = self.temp.stat(first).map_err(failed("link"))?;
        if found.map(inode) == wanted.as_ref().map(inode) {
            self.report.unchanged += 1;
            return Ok(());
        }
        let temporary = self.next_name();
        linkat(&self.temp, first, &self.temp, &temporary[..], AtFlags::empty())
            .map_err(failed("link"))?;
        self.put(place, &temporary, found, entry, path)
    }

    /// Keeps an inode that stays, for its other names.
    fn remember_link(&mut self, place: &Place, entry: &Entry, path: &[u8]) -> Result<(), GetError> {
        let Some(link) = entry.link else { return Ok(()) };
        let kept = self.next_name();
        linkat(place, entry.name.as_bytes(), &self.temp, &kept[..], AtFlags::empty())
            .map_err(|errno| GetError::System { doing: "link", path: path.to_vec(), errno })?;
        self.links.insert(link.id, kept);
        Ok(())
    }
}
