//! Taking another release: what stays, what follows, and what the kernel has to forget.
//!
//! ```text
//! /            number 1: follows
//! ├── bin      a new number in the new release; who has the old one open keeps it
//! ├── srv      above a mount point: follows under its old number
//! │   └── db   mount point: follows, and is not forgotten, because that would detach the mount
//! └── etc
//! ```
//!
//! A name that the kernel forgets is asked for again, and then found in the new release. A directory
//! that follows is one inode throughout, so that its names have to be forgotten one by one.
//!
//! The kernel forgets before the switch: until it, names are answered from the old release with the
//! request to ask again each time, so that from one moment to the next all of them are the new one's.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use distd_core::manifest::{Content, DirectoryNode, EntryKind};
use distd_core::unit::ByteRange;

use crate::blocks::Blocks;
use crate::inode::{Follower, Inode, ROOT};

use super::nodes::{Decoded, FetchError, Form};
use super::{Fs, View};

/// What the kernel has to forget after a switch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stale {
    /// Names, each in the directory of a number.
    pub names: Vec<(u64, Vec<u8>)>,
    /// Directories whose attributes and listing are new.
    pub directories: Vec<u64>,
}

/// A switch that is being worked out.
#[derive(Default)]
struct Plan {
    stale: Stale,
    followers: Vec<Follower>,
    kept: Vec<(u64, Vec<u8>, u64)>,
}

/// A directory in both releases.
struct Pair {
    path: Vec<u8>,
    before: Inode,
    old: Arc<DirectoryNode>,
    node: ByteRange,
    new: Arc<DirectoryNode>,
}

impl<B: Blocks> Fs<B> {
    /// Fetches what the first look at a release needs: its root, and what the attributes of the entries
    /// in it take. Blocks the calling thread; not for threads that answer the kernel.
    pub fn prepare(
        self: &Arc<Self>,
        view: &View,
        timeout: Duration,
    ) -> Result<(), Arc<FetchError>> {
        let root = self.directory_blocking(view.release.root_directory().node, timeout)?;
        for entry in root.entries() {
            if let EntryKind::File(file) = &entry.kind
                && let Content::List(list) = file.content
            {
                self.node_blocking(list, Form::Extents { size: file.size }, timeout)?;
            }
        }
        Ok(())
    }

    /// Shows `view` from here on; open files, and directories that somebody uses, stay what they are.
    /// `covered` are the paths below the root on which something is mounted. `forget` has the kernel
    /// forget what is stale, and waits for that. One switch at a time; blocks the calling thread.
    pub fn switch(
        self: &Arc<Self>,
        view: &Arc<View>,
        covered: &[Vec<u8>],
        timeout: Duration,
        forget: impl FnOnce(&Stale),
    ) -> Result<Stale, Arc<FetchError>> {
        let before = self.view();
        let node = view.release.root_directory().node;
        let root = Pair {
            path: Vec::new(),
            before: self.inodes.root(),
            old: self.directory_blocking(before.release.root_directory().node, timeout)?,
            node,
            new: self.directory_blocking(node, timeout)?,
        };
        let mut plan = Plan::default();
        let mut pairs = vec![root];
        while let Some(pair) = pairs.pop() {
            pairs.extend(self.plan_directory(&mut plan, &pair, covered, timeout)?);
        }
        self.switching.store(true, Ordering::SeqCst);
        forget(&plan.stale);
        self.inodes.switch(view, plan.followers, plan.kept);
        self.switching.store(false, Ordering::SeqCst);
        Ok(plan.stale)
    }

    /// Shows `view` from here on, where the kernel knows nothing of this file system.
    pub fn exchange(&self, view: &Arc<View>) {
        self.inodes.switch(view, Vec::new(), Vec::new());
    }

    /// Whether a name that is looked up from here on may be remembered: not during a switch. To be
    /// asked before the lookup, because what is found while the switch goes on may be the old
    /// release's.
    pub fn may_remember(&self) -> bool {
        !self.switching.load(Ordering::SeqCst)
    }

    /// Plans one directory that follows; the directories below it that follow, too.
    fn plan_directory(
        self: &Arc<Self>,
        plan: &mut Plan,
        pair: &Pair,
        covered: &[Vec<u8>],
        timeout: Duration,
    ) -> Result<Vec<Pair>, Arc<FetchError>> {
        let number = pair.before.number;
        let mut below = Vec::new();
        let above = names_above(&pair.path, covered);
        for name in &above {
            let path = joined(&pair.path, name);
            let index = pair.old.position(name).map(|index| index as u32);
            let Some(before) = self.inodes.following(&pair.before, name, index) else { continue };
            let place = pair.new.position(name);
            let next = place.map(|index| &pair.new.entries()[index].kind);
            let (Some(old), Some(index), Some(EntryKind::Directory(next))) =
                (before.directory, place, next)
            else {
                // Gone, or no directory: what is mounted there keeps it visible as it was.
                plan.kept.push((number, name.clone(), before.number));
                continue;
            };
            plan.followers.push(Follower {
                number: before.number,
                parent: number,
                name: name.clone(),
                place: (pair.node, index as u32),
                directory: next.node,
            });
            let old = self.directory_blocking(old, timeout)?;
            let new = self.directory_blocking(next.node, timeout)?;
            below.push(Pair { path, before, old, node: next.node, new });
        }
        let entries = pair.old.entries().iter().chain(pair.new.entries());
        let names = entries.map(|entry| entry.name.as_bytes());
        let forgotten = names.filter(|name| !above.iter().any(|kept| kept == name));
        plan.stale.names.extend(forgotten.map(|name| (number, name.to_vec())));
        plan.stale.directories.push(number);
        Ok(below)
    }

    fn directory_blocking(
        self: &Arc<Self>,
        range: ByteRange,
        timeout: Duration,
    ) -> Result<Arc<DirectoryNode>, Arc<FetchError>> {
        match self.node_blocking(range, Form::Directory, timeout)? {
            Decoded::Directory(node) => Ok(node),
            Decoded::Extents(_) => unreachable!("nodes answers in the form asked for"),
        }
    }

    fn node_blocking(
        self: &Arc<Self>,
        range: ByteRange,
        form: Form,
        timeout: Duration,
    ) -> Result<Decoded, Arc<FetchError>> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let deadline = std::time::Instant::now() + timeout;
        self.nodes.fetch(range, form, deadline, move |outcome| {
            // Nobody listens any more where the wait below was given up.
            let _ = sender.send(outcome);
        });
        // Who waits together with another caller waits until that one's deadline.
        let patience = timeout + self.timeout + Duration::from_secs(5);
        let dropped = |_| Arc::new(FetchError::Dropped { range });
        receiver.recv_timeout(patience).map_err(dropped)?
    }
}

/// The names in the directory `path` that lead to a mount point or are one.
fn names_above(path: &[u8], covered: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let below = |point: &Vec<u8>| {
        let rest = match path {
            [] => Some(point.as_slice()),
            _ => point.strip_prefix(path).and_then(|rest| rest.strip_prefix(b"/")),
        };
        let name = rest?.split(|byte| *byte == b'/').next()?;
        (!name.is_empty()).then(|| name.to_vec())
    };
    let mut names: Vec<Vec<u8>> = covered.iter().filter_map(below).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

const _: () = assert!(ROOT == 1, "the kernel's own number for the root");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::testing::{Builder, Memory, entry, outcome};
    use distd_core::manifest::{Entry, HardLink};

    const TIMEOUT: Duration = Duration::from_secs(5);

    struct Mount {
        fs: Arc<Fs<Memory>>,
        builder: Builder,
    }

    impl Mount {
        fn new(build: impl FnOnce(&Builder) -> Vec<Entry>) -> Self {
            let builder = Builder(Arc::new(Memory::default()));
            let view = Builder::view(builder.directory(build(&builder)));
            Self { fs: Fs::new(Arc::clone(&builder.0), view, TIMEOUT), builder }
        }

        fn switch(&self, covered: &[&str], build: impl FnOnce(&Builder) -> Vec<Entry>) -> Stale {
            let root = self.builder.directory(build(&self.builder));
            let generation = self.fs.view().generation + 1;
            let view = Arc::new(View { generation, ..Builder::plain_view(root) });
            let covered: Vec<Vec<u8>> = covered.iter().map(|path| path.as_bytes().into()).collect();
            self.fs.prepare(&view, TIMEOUT).expect("available");
            let forget = |_: &Stale| assert!(!self.fs.may_remember());
            let stale = self.fs.switch(&view, &covered, TIMEOUT, forget).expect("available");
            assert!(self.fs.may_remember());
            stale
        }

        fn find(&self, parent: u64, name: &str) -> Option<u64> {
            let found = outcome(|then| self.fs.lookup(parent, name.as_bytes(), then));
            found.expect("available").map(|attributes| attributes.number)
        }

        fn read(&self, number: u64) -> Vec<u8> {
            outcome(|then| self.fs.read(number, 0, 100, then)).expect("available")
        }
    }

    #[test]
    fn open_files_and_directories_keep_their_release_and_new_lookups_see_the_new_one() {
        let tree = |builder: &Builder, text: &[u8]| {
            let file = entry("f", builder.file(text));
            vec![entry("d", builder.directory(vec![file.clone()])), file]
        };
        let mount = Mount::new(|builder| tree(builder, b"one"));
        let (file, directory) = (mount.find(ROOT, "f"), mount.find(ROOT, "d"));
        let (file, directory) = (file.expect("is there"), directory.expect("is there"));
        let stale = mount.switch(&[], |builder| tree(builder, b"two"));
        assert_eq!(stale.directories, [ROOT]);
        assert!(stale.names.contains(&(ROOT, b"d".to_vec())));
        assert_eq!(mount.read(file), b"one");
        let below = mount.find(directory, "f").expect("is there");
        assert_eq!(mount.read(below), b"one");
        let (file2, directory2) = (mount.find(ROOT, "f"), mount.find(ROOT, "d"));
        let (file2, directory2) = (file2.expect("is there"), directory2.expect("is there"));
        assert_eq!(mount.read(file2), b"two");
        assert_eq!(mount.read(mount.find(directory2, "f").expect("is there")), b"two");
        let numbers = std::collections::BTreeSet::from([file, directory, below, file2, directory2]);
        assert_eq!(numbers.len(), 5, "a number has one meaning");
    }

    #[test]
    fn directories_above_mount_points_follow_and_are_not_forgotten() {
        let tree = |builder: &Builder, text: &[u8]| {
            let file = entry("f", builder.file(text));
            let point = builder.directory(vec![file.clone()]);
            let above = builder.directory(vec![entry("point", point), file.clone()]);
            vec![entry("above", above), file]
        };
        let mount = Mount::new(|builder| tree(builder, b"one"));
        let above = mount.find(ROOT, "above").expect("is there");
        let point = mount.find(above, "point").expect("is there");
        for (text, again) in [(b"two", b"two"), (b"thr", b"thr")] {
            let stale = mount.switch(&["above/point"], |builder| tree(builder, text));
            for kept in [(ROOT, b"above".to_vec()), (above, b"point".to_vec())] {
                assert!(!stale.names.contains(&kept), "{kept:?} would be detached");
            }
            assert!(stale.names.contains(&(point, b"f".to_vec())));
            assert_eq!(stale.directories, [ROOT, above, point]);
            for number in [ROOT, above, point] {
                assert_eq!(mount.read(mount.find(number, "f").expect("is there")), again);
            }
            assert_eq!(mount.find(ROOT, "above"), Some(above), "under its old number");
        }
        // A listing of a former release names it by its number, too.
        let former = outcome(|then| mount.fs.list(ROOT, Some(0), then)).expect("available");
        let (first, lasts) = mount.fs.enter(&former, 0).expect("shown");
        assert_eq!((first.number, lasts), (above, false));
        // A release with something else there: it stays as it was, and follows again once it is back.
        let file = |builder: &Builder| entry("above", builder.file(b"no directory"));
        mount.switch(&["above/point"], |builder| vec![file(builder)]);
        let listing = outcome(|then| mount.fs.list(ROOT, None, then)).expect("available");
        assert!(mount.fs.enter(&listing, 0).is_none(), "it would be detached");
        mount.switch(&["above/point"], |builder| vec![entry("f", builder.file(b"four"))]);
        assert_eq!(mount.read(mount.find(above, "f").expect("is there")), b"thr");
        assert_eq!(mount.find(ROOT, "above"), None);
        mount.switch(&["above/point"], |builder| tree(builder, b"five"));
        assert_eq!(mount.read(mount.find(above, "f").expect("is there")), b"five");
        assert_eq!(mount.find(ROOT, "above"), Some(above));
    }

    #[test]
    fn a_listing_that_began_before_a_switch_is_of_its_release_to_the_end() {
        let file = |builder: &Builder| builder.file(b"x");
        let mount =
            Mount::new(|builder| vec![entry("a", file(builder)), entry("b", file(builder))]);
        mount.switch(&[], |builder| vec![entry("c", file(builder))]);
        let names = |generation| {
            let listing = outcome(|then| mount.fs.list(ROOT, Some(generation), then));
            let listing = listing.expect("available");
            let names = listing.entries(0).map(|(_, name, _)| name.to_vec());
            let lasts = mount.fs.enter(&listing, 0).map(|(_, lasts)| lasts);
            (names.collect::<Vec<_>>(), lasts)
        };
        assert_eq!(names(0), (vec![b"a".to_vec(), b"b".to_vec()], Some(false)));
        assert_eq!(names(1), (vec![b"c".to_vec()], Some(true)));
        assert_eq!(names(7), (vec![b"c".to_vec()], Some(true)), "that never was: the newest");
    }

    #[test]
    fn a_thousand_switches_leave_nothing_behind() {
        let link = Some(HardLink { id: 1, count: 2 });
        let tree = |builder: &Builder| {
            let linked = |name| Entry { link, ..entry(name, EntryKind::Fifo) };
            vec![linked("a"), linked("b"), entry("d", builder.directory(Vec::new()))]
        };
        let mount = Mount::new(tree);
        for _ in 0..1000 {
            let numbers = ["a", "b", "d"].map(|name| mount.find(ROOT, name).expect("is there"));
            assert_eq!(numbers[0], numbers[1]);
            mount.switch(&[], tree);
            for number in numbers {
                mount.fs.forget(number, 1);
            }
        }
        assert_eq!(mount.fs.remembered(), 0);
        assert!(mount.fs.inodes.kept() <= 70, "{} things kept", mount.fs.inodes.kept());
    }

    #[test]
    fn names_on_the_way_to_mount_points_are_found() {
        let covered = [b"a/b/c".to_vec(), b"a/x".to_vec(), b"d".to_vec(), b"ab".to_vec()];
        let names = |path: &[u8]| {
            let names = names_above(path, &covered).into_iter();
            names.map(|name| String::from_utf8(name).expect("text")).collect::<Vec<_>>()
        };
        assert_eq!(names(b""), ["a", "ab", "d"]);
        assert_eq!(names(b"a"), ["b", "x"]);
        assert_eq!(names(b"a/b"), ["c"]);
        assert!(names(b"d").is_empty() && names(b"b").is_empty());
    }
}
