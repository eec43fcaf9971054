//! Everything that a file system knows of an entry is in the release.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use crate::support::{World, noise};
use distd_core::manifest::{Device, Entry, EntryKind, Extent};
use distd_origin::history::read_extents;
use rustix::fs::{
    CWD, FileType, Gid, Mode, Uid, XattrFlags, chownat, lgetxattr, lsetxattr, makedev, mknodat,
};

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    lsetxattr(path, name, value, XattrFlags::empty()).expect("set");
}

/// The entry shows what the source shows.
fn assert_same(path: &Path, entry: &Entry) {
    let metadata = path.symlink_metadata().expect("there");
    let shown = format!("{}", path.display());
    assert_eq!(u32::from(entry.mode), metadata.mode() & 0o7777, "{shown}");
    assert_eq!((entry.uid, entry.gid), (metadata.uid(), metadata.gid()), "{shown}");
    let mtime = (entry.mtime.seconds, i64::from(entry.mtime.nanoseconds));
    assert_eq!(mtime, (metadata.mtime(), metadata.mtime_nsec()), "{shown}");
    for xattr in &entry.xattrs {
        let mut value = vec![0; 65536];
        let name = OsStr::from_bytes(&xattr.name);
        let len = lgetxattr(path, name, &mut value).expect("there");
        assert_eq!(xattr.value, value[..len], "{shown}");
    }
    let file_type = metadata.file_type();
    let kind_is_right = match &entry.kind {
        EntryKind::File(file) => file_type.is_file() && file.size == metadata.len(),
        EntryKind::Directory(_) => file_type.is_dir(),
        EntryKind::Symlink(target) => {
            fs::read_link(path).is_ok_and(|found| found.as_os_str().as_bytes() == target)
        }
        _ => !file_type.is_file() && !file_type.is_dir() && !file_type.is_symlink(),
    };
    assert!(kind_is_right, "{shown}: {:?}", entry.kind);
}

/// Puts one of everything into the source; the socket lives as long as what is returned.
pub(crate) fn odd_tree(world: &World) -> UnixListener {
    let at = |path: &str| world.source.join(path);
    for len in [0, 1, 4095, 4096, 4097, 16384, 100_000, 1 << 20, (1 << 20) + 1, 3_500_000] {
        world.write(&format!("sizes/{len}"), &noise(len as u64, len));
    }
    let longest = "n".repeat(255);
    world.write(&longest, b"long");
    world.write("new\nline", b"x");
    let not_utf8 = world.source.join(OsStr::from_bytes(b"\xff\xfe raw"));
    fs::write(&not_utf8, b"raw").expect("written");
    fs::create_dir(at("empty")).expect("made");
    symlink("/etc/passwd", at("absolute")).expect("made");
    symlink("nowhere/../at all", at("dangling")).expect("made");
    symlink("t".repeat(4000), at("far")).expect("made");
    world.write("setuid", b"s");
    fs::set_permissions(at("setuid"), fs::Permissions::from_mode(0o6755)).expect("set");
    fs::set_permissions(at("empty"), fs::Permissions::from_mode(0o1777)).expect("set");
    mknodat(CWD, at("fifo"), FileType::Fifo, Mode::from(0o600), 0).expect("made");
    let socket = UnixListener::bind(at("socket")).expect("bound");
    if is_root() {
        set_xattr(&at("setuid"), "user.first", b"1");
        set_xattr(&at("setuid"), "user.empty", b"");
        set_xattr(&at("empty"), "user.large", &noise(1, 2000));
        set_xattr(&at("dangling"), "trusted.on.symlink", b"t");
        set_xattr(&at("fifo"), "trusted.on.fifo", b"t");
        let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        set_xattr(&at("sizes/4096"), "security.capability", &capability);
        let acl = [
            2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 232, 3, 0, 0, 4, 0, 4, 0, 255,
            255, 255, 255, 16, 0, 6, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255,
        ];
        set_xattr(&at("sizes/4097"), "system.posix_acl_access", &acl);
        for (name, kind) in [("tty", FileType::CharacterDevice), ("disk", FileType::BlockDevice)] {
            mknodat(CWD, at(name), kind, Mode::from(0o620), makedev(511, 1_048_575)).expect("made");
        }
        let owner = (Some(Uid::from_raw(4_000_000_000)), Some(Gid::from_raw(12)));
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        chownat(CWD, at("dangling"), owner.0, owner.1, flags).expect("owned");
    }
    socket
}

#[test]
fn an_odd_tree_is_published_whole() {
    let world = World::new();
    let _socket = odd_tree(&world);
    let report = world.publish("1");
    let entries = world.entries("1");
    assert_eq!(report.files, 14);
    assert_eq!(report.directories, 3);
    for (path, entry) in &entries {
        let there = world.source.join(OsStr::from_bytes(path));
        assert_same(&there, entry);
        if matches!(entry.kind, EntryKind::File(_)) {
            assert_eq!(world.content(entry), fs::read(&there).expect("read"));
        }
    }
    assert!(
        entries.contains_key("n".repeat(255).as_bytes()) && entries.contains_key(&b"new\nline"[..])
    );
    assert!(entries.contains_key(&b"\xff\xfe raw"[..]));
    assert_same(&world.source, &world.release("1").root);
    if is_root() {
        let device = Device { major: 511, minor: 1_048_575 };
        assert_eq!(entries[&b"tty"[..]].kind, EntryKind::CharDevice(device));
        assert_eq!(entries[&b"disk"[..]].kind, EntryKind::BlockDevice(device));
        let names = |path: &[u8]| -> Vec<String> {
            let name = |x: &distd_core::manifest::Xattr| String::from_utf8_lossy(&x.name).into();
            entries[path].xattrs.iter().map(name).collect()
        };
        assert_eq!(names(b"setuid"), ["user.empty", "user.first"]);
        assert_eq!(names(b"dangling"), ["trusted.on.symlink"]);
        assert_eq!(names(b"fifo"), ["trusted.on.fifo"]);
        assert_eq!(names(b"sizes/4096"), ["security.capability"]);
        assert_eq!(names(b"sizes/4097"), ["system.posix_acl_access"]);
    }
}

#[test]
fn hard_links_are_known_by_one_id_and_counted_within_the_tree() {
    let world = World::new();
    world.write("a", b"linked");
    fs::hard_link(world.source.join("a"), world.source.join("z")).expect("linked");
    fs::create_dir(world.source.join("d")).expect("made");
    fs::hard_link(world.source.join("a"), world.source.join("d/m")).expect("linked");
    world.write("once", b"outside");
    fs::hard_link(world.source.join("once"), world.dir.path().join("outside")).expect("linked");
    world.write("other", b"linked too");
    fs::hard_link(world.source.join("other"), world.source.join("other2")).expect("linked");
    let report = world.publish("1");
    assert_eq!((report.files, report.bytes), (6, 6 + 7 + 10));
    let entries = world.entries("1");
    let link = |path: &str| entries[path.as_bytes()].link;
    assert_eq!(link("a").expect("linked").count, 3);
    assert_eq!((link("a"), link("a")), (link("z"), link("d/m")));
    assert_eq!(link("once"), None);
    assert_eq!(link("other").expect("linked").count, 2);
    assert_ne!(link("other").map(|link| link.id), link("a").map(|link| link.id));
}

#[test]
fn holes_are_kept_and_blocks_of_zeros_become_holes() {
    let world = World::new();
    let path = world.source.join("sparse");
    let file = fs::File::create(&path).expect("made");
    file.set_len(64 << 20).expect("set");
    for (at, len) in [(0, 10), (8192, 4096), ((10 << 20) + 5, 5000), ((64 << 20) - 3, 3)] {
        std::os::unix::fs::FileExt::write_all_at(&file, &noise(at, len), at).expect("written");
    }
    drop(file);
    let mut zeros = noise(7, 4096);
    zeros.resize(12 * 4096, 0);
    zeros.extend(noise(8, 4096));
    world.write("zeros", &zeros);
    fs::File::create(world.source.join("hole")).expect("made").set_len(5000).expect("set");
    let report = world.publish("1");
    assert!(report.new_bytes <= 8 * 4096 + 4 * 4096, "{report:?}");
    let entries = world.entries("1");
    for name in ["sparse", "zeros", "hole"] {
        let entry = &entries[name.as_bytes()];
        assert!(world.content(entry) == fs::read(world.source.join(name)).expect("read"), "{name}");
    }
    let EntryKind::File(zeros) = &entries[&b"zeros"[..]].kind else { panic!("a file") };
    let extents: Vec<Extent> = read_extents(&world.log(), zeros).expect("read").iter().collect();
    assert!(matches!(extents[..], [Extent::Data(_), Extent::Hole(11), Extent::Data(_)]));
}

#[test]
fn a_release_of_one_file_is_a_directory_that_holds_it() {
    let world = World::new();
    world.write("image.bin", &noise(1, 50_000));
    world.write("other", b"not this one");
    let file = world.source.join("image.bin");
    let report = world.publish_from(&file, "images", "1", false).expect("published");
    assert_eq!((report.files, report.directories), (1, 1));
    let entries = world.entries("images@1");
    assert_eq!(entries.keys().collect::<Vec<_>>(), [&b"image.bin".to_vec()]);
    assert_eq!(world.content(&entries[&b"image.bin"[..]]), noise(1, 50_000));
    let root = world.release("images@1").root;
    assert_eq!((root.mode, root.mtime), (0o755, entries[&b"image.bin"[..]].mtime));
    let again = world.publish_from(&file, "images", "2", false).expect("nothing to do");
    assert!(!again.changed);
}

#[test]
fn a_wide_directory_and_a_deep_tree_are_published() {
    let world = World::new();
    for i in 0..3000 {
        world.write(&format!("wide/{i}"), &[]);
    }
    let deep = "d/".repeat(400);
    world.write(&format!("{deep}leaf"), b"deep");
    world.publish("1");
    let entries = world.entries("1");
    assert_eq!(entries.len(), 1 + 3000 + 400 + 1);
    assert_eq!(world.content(&entries[format!("{deep}leaf").as_bytes()]), b"deep");
    let release = world.release("1");
    assert_eq!(release.metadata.len(), 1, "all nodes lie side by side");
}

#[test]
fn a_tree_deeper_than_the_limit_is_refused_by_name() {
    let world = World::new();
    fs::create_dir_all(world.source.join("d/".repeat(520))).expect("made");
    let error = world.try_publish("1").expect_err("too deep").to_string();
    assert!(error.contains("512"), "{error}");
    fs::remove_dir_all(&world.source).expect("removed");
}
