//! A real mount of a log in memory, where the machine lets us make one.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::Ordering;

use distd_core::manifest::{Device, Entry, EntryKind, HardLink, Name};
use fuser::{BackgroundSession, Config, MountOption, Session};

use super::*;
use crate::fs::testing::{Builder, Memory, entry};

/// A mount that goes away in all cases.
struct Mounted {
    directory: tempfile::TempDir,
    session: Option<BackgroundSession>,
    memory: Arc<Memory>,
}

impl Mounted {
    /// `None` where this machine or this user cannot mount.
    fn new(build: impl FnOnce(&Builder) -> Vec<Entry>) -> Option<Self> {
        let privileged = rustix::process::geteuid().is_root();
        if !privileged || !Path::new("/dev/fuse").exists() {
            eprintln!("not run: mounting needs root and /dev/fuse");
            return None;
        }
        let memory = Arc::new(Memory::default());
        let builder = Builder(Arc::clone(&memory));
        let entries = build(&builder);
        let view = Builder::view(builder.directory(entries));
        let fs = Fs::new(Arc::clone(&memory), view, Duration::from_secs(5));
        let directory = tempfile::tempdir().expect("a directory");
        let mut config = Config::default();
        config.mount_options = vec![MountOption::RO, MountOption::DefaultPermissions];
        config.n_threads = Some(2);
        config.clone_fd = true;
        let session = Session::new(Adapter::new(Arc::clone(&fs), true), directory.path(), &config)
            .and_then(Session::spawn)
            .expect("mounts");
        Some(Self { directory, session: Some(session), memory })
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn stat(&self, name: &str) -> Metadata {
        fs::symlink_metadata(self.path(name)).expect("is there")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.directory.path(), rustix::mount::UnmountFlags::DETACH);
        if let Some(session) = self.session.take() {
            let _ = session.join();
        }
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 4096 * 31 + i) as u8 | 1).collect()
}

#[test]
fn a_mount_shows_the_tree_as_it_was_published() {
    let big = pattern(3 << 20);
    let mounted = Mounted::new(|builder| {
        let link = Some(HardLink { id: 1, count: 2 });
        let sparse = [vec![0; 1 << 20], pattern(4096), vec![0; 1 << 20]].concat();
        let raw =
            Entry { name: Name::new(b"\xff\xfe").expect("safe"), ..entry("x", EntryKind::Fifo) };
        let many = (0..3000).map(|i| entry(&format!("{i:04}"), EntryKind::Socket)).collect();
        vec![
            entry("big", builder.file(&big)),
            entry("empty", builder.file(b"")),
            Entry { mode: 0o4755, uid: 12, gid: 34, ..entry("set-id", builder.file(b"#!")) },
            Entry { link, ..entry("one", builder.file(b"same")) },
            Entry { link, ..entry("two", builder.file(b"same")) },
            entry("sparse", builder.file(&sparse)),
            entry("null", EntryKind::CharDevice(Device { major: 1, minor: 3 })),
            entry("link", EntryKind::Symlink(b"big".to_vec())),
            entry("many", builder.directory(many)),
            raw,
        ]
    });
    let Some(mounted) = mounted else { return };
    assert_eq!(fs::read(mounted.path("big")).expect("reads"), big);
    assert_eq!(fs::read(mounted.path("link")).expect("follows"), big);
    assert_eq!(fs::read(mounted.path("empty")).expect("reads"), b"");
    let set_id = mounted.stat("set-id");
    assert_eq!((set_id.mode(), set_id.uid(), set_id.gid()), (0o104_755, 12, 34));
    assert_eq!((set_id.mtime(), set_id.mtime_nsec()), (1_700_000_000, 123_456_789));
    assert_eq!(mounted.stat("null").rdev(), rustix::fs::makedev(1, 3));
    let (one, two) = (mounted.stat("one"), mounted.stat("two"));
    assert_eq!((one.ino(), one.nlink()), (two.ino(), 2));
    let sparse = mounted.stat("sparse");
    assert_eq!((sparse.size(), sparse.blocks()), ((2 << 20) + 4096, 8));
    let file = fs::File::open(mounted.path("sparse")).expect("opens");
    let seek = |to| rustix::fs::seek(&file, to).expect("seeks");
    assert_eq!(seek(rustix::fs::SeekFrom::Data(0)), 1 << 20);
    assert_eq!(seek(rustix::fs::SeekFrom::Hole(1 << 20)), (1 << 20) + 4096);
    drop(file);
    let names: BTreeMap<_, _> = fs::read_dir(mounted.path("many"))
        .expect("lists")
        .map(|entry| entry.expect("an entry"))
        .map(|entry| (entry.file_name(), entry.metadata().expect("has metadata").mode()))
        .collect();
    assert_eq!(names.len(), 3000);
    assert!(names.values().all(|mode| *mode == 0o140_644));
    assert!(mounted.path("nope").symlink_metadata().is_err());
    let refused = fs::write(mounted.path("new"), b"x").expect_err("read-only");
    assert_eq!(refused.raw_os_error(), Some(Errno::EROFS.code()));
}

#[test]
fn the_head_of_a_large_file_costs_less_than_64_kib() {
    let mounted = Mounted::new(|builder| vec![entry("big", builder.file(&pattern(8 << 20)))]);
    let Some(mounted) = mounted else { return };
    mounted.stat("big");
    let before = mounted.memory.fetched.load(Ordering::Relaxed);
    let file = fs::File::open(mounted.path("big")).expect("opens");
    let mut head = [0; 4096];
    file.read_exact_at(&mut head, 0).expect("reads");
    let fetched = mounted.memory.fetched.load(Ordering::Relaxed) - before;
    assert!(fetched * 4096 < 64 << 10, "{fetched} blocks");
    assert!(mounted.memory.prefetched.lock().expect("not poisoned").is_empty());
}
