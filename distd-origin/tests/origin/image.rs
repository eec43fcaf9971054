//! A release's EROFS images hold what the tree holds: the kernel itself shows it.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::metadata::{is_root, odd_tree};
use crate::support::{World, noise};
use distd_core::unit::BlockRange;
use distd_origin::export::export;
use distd_origin::history::file_blocks;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// A mounted image.
struct Mounted(PathBuf);

impl Mounted {
    /// Mounts an image file, with its device; `None` where that is not possible here.
    fn new(image: &Path, device: Option<&Path>, at: &Path) -> Option<Self> {
        fs::create_dir_all(at).expect("made");
        let options = device.map(|device| format!("device={}", device.display()));
        let flags = MountFlags::RDONLY;
        let options = std::ffi::CString::new(options.unwrap_or_default()).expect("no NUL");
        match mount(image, at, "erofs", flags, &*options) {
            Ok(()) => Some(Self(at.into())),
            Err(error) => {
                // Kernels before 6.12 mount no files, some have no EROFS, and only root mounts; whatever else
                // the kernel says is about the image.
                let cannot = [Errno::NOTBLK, Errno::NODEV, Errno::PERM, Errno::ACCESS];
                assert!(cannot.contains(&error), "{}: {error}", image.display());
                eprintln!("SKIPPED: cannot mount {} here: {error}", image.display());
                None
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).expect("unmounted");
    }
}

/// Writes the release's image, and what it needs of the log, as two files.
fn dump(world: &World, wanted: &str) -> (PathBuf, PathBuf) {
    let (log, release) = (world.log(), world.release(wanted));
    let image = release.image.expect("an image");
    assert_eq!(image.devices, 1);
    let read = |blocks: BlockRange| {
        let mut bytes = vec![0; blocks.byte_len() as usize];
        log.read_blocks(blocks, &mut bytes).expect("read");
        bytes
    };
    let path = |name: &str| world.dir.path().join(format!("{wanted}.{name}"));
    fs::write(path("image"), read(image.blocks)).expect("written");
    let device = fs::File::create(path("log")).expect("made");
    device.set_len(log.committed().expect("published").munros << 20).expect("set");
    for blocks in file_blocks(&log, &release).expect("walked") {
        device.write_all_at(&read(blocks), blocks.byte_offset()).expect("written");
    }
    (path("image"), path("log"))
}

/// Nothing that rsync knows of differs.
fn assert_same(a: &Path, b: &Path) {
    let words = ["-aHAX", "--checksum", "--dry-run", "--itemize-changes", "--delete"];
    let slash = |path: &Path| format!("{}/", path.display());
    let out = Command::new("rsync").args(words).arg(slash(a)).arg(slash(b)).output();
    let out = out.expect("rsync is needed: scripts/setup.sh");
    let told = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && told.is_empty(), "{told}");
}

fn assert_sound(image: &Path, device: Option<&Path>) {
    let mut fsck = Command::new("fsck.erofs");
    fsck.args(device.map(|device| format!("--device={}", device.display()))).arg(image);
    let out = fsck.output().expect("fsck.erofs is needed: scripts/setup.sh");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

fn sparse(world: &World, name: &str) {
    let file = fs::File::create(world.source.join(name)).expect("made");
    file.set_len(64 << 20).expect("set");
    for (at, len) in [(0, 10), (8192, 4096), ((10 << 20) + 5, 5000), ((64 << 20) - 3, 3)] {
        file.write_all_at(&noise(at, len), at).expect("written");
    }
}

#[test]
fn the_image_on_the_log_shows_the_tree() {
    if !is_root() {
        return eprintln!("SKIPPED: only root mounts");
    }
    let world = World::new();
    let _socket = odd_tree(&world);
    sparse(&world, "sparse");
    for i in 0..500 {
        world.write(&format!("wide/with-a-name-that-is-long-{i}"), &noise(i, 50));
    }
    fs::hard_link(world.source.join("sparse"), world.source.join("a-linked")).expect("linked");
    let at = world.dir.path().join("mnt");
    for version in ["1", "2"] {
        let report = world.publish(version);
        assert!(report.no_image.is_none(), "{report:?}");
        let (image, device) = dump(&world, version);
        assert_sound(&image, Some(&device));
        let Some(_mounted) = Mounted::new(&image, Some(&device), &at) else { return };
        assert_same(&world.source, &at);
        // In the second release most files lie in several places of the log.
        let mut large = fs::read(world.source.join("sizes/3500000")).expect("read");
        for block in (0..large.len()).step_by(40_960) {
            large[block] ^= 1;
        }
        world.write("sizes/3500000", &large);
    }
}

#[test]
fn an_exported_image_stands_alone_and_depends_on_the_tree_only() {
    let (world, other) = (World::new(), World::new());
    let _socket = odd_tree(&world);
    sparse(&world, "sparse");
    world.write("equal-1", &noise(3, 9000));
    world.write("equal-2", &noise(3, 9000));
    world.publish("1");
    other.write("something", &noise(9, 100_000));
    other.publish("0");
    let odd = world.source.as_path();
    other.publish_from(odd, "stable", "1", false).expect("published");
    let path = |world: &World, name: &str| world.dir.path().join(name);
    let (a, b, c) = (path(&world, "a"), path(&world, "b"), path(&other, "c"));
    let mut told = 0;
    let report = export(&world.log(), "1", &a, |done, _| told = done).expect("exported");
    assert_eq!(report.bytes, told);
    assert_eq!(report.bytes, fs::metadata(&a).expect("there").len());
    export(&world.log(), "stable@1", &b, |_, _| {}).expect("exported");
    export(&other.log(), "1", &c, |_, _| {}).expect("exported");
    let bytes = fs::read(&a).expect("read");
    assert!(bytes == fs::read(b).expect("read") && bytes == fs::read(c).expect("read"));
    assert!(report.bytes < 10 << 20, "equal files are there once, holes not at all: {report:?}");
    assert_sound(&a, None);
    let at = path(&world, "mnt");
    if is_root()
        && let Some(_mounted) = Mounted::new(&a, None, &at)
    {
        assert_same(odd, &at);
    }
}

#[test]
fn an_export_that_fails_leaves_nothing() {
    let world = World::new();
    world.write("file", b"x");
    world.publish("1");
    let nowhere = world.dir.path().join("no/such/directory");
    for wrong in [nowhere.as_path(), world.dir.path()] {
        export(&world.log(), "1", wrong, |_, _| {}).expect_err("not written");
    }
    export(&world.log(), "9", &world.dir.path().join("x"), |_, _| {}).expect_err("no release");
    assert_eq!(fs::read_dir(world.dir.path()).expect("read").count(), 3);
    // What lies where it is written to is neither followed nor written to.
    let (precious, link) = (world.source.join("file"), world.dir.path().join("image"));
    std::os::unix::fs::symlink(&precious, &link).expect("made");
    export(&world.log(), "1", &link, |_, _| {}).expect("exported");
    assert!(fs::symlink_metadata(&link).expect("there").is_file());
    assert_eq!(fs::read(&precious).expect("read"), b"x");
    fs::remove_file(link).expect("removed");
    let left: Vec<_> = fs::read_dir(world.dir.path()).expect("read").flatten().collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn the_same_tree_has_the_same_image_and_it_is_stored_once() {
    let world = World::new();
    world.write("dir/file", &noise(1, 10_000));
    world.publish("1");
    let first = world.release("1").image.expect("an image");
    world.write("dir/other", &noise(2, 10_000));
    world.publish("2");
    fs::remove_file(world.source.join("dir/other")).expect("removed");
    // The directory's time is another one, so the tree is.
    world.publish("3");
    let report =
        world.publish_from(&world.source, "beta", "1", false).expect("published to another track");
    let again = world.release("beta@1").image.expect("an image");
    assert_eq!(again, world.release("3").image.expect("an image"));
    assert!(again != first && report.image_bytes > 0, "{report:?}");
    fs::remove_file(world.dir.path().join("repo/index.redb")).expect("removed");
    let report = world.publish_from(&world.source, "gamma", "1", false).expect("published");
    assert_eq!(world.release("gamma@1").image, Some(again), "{report:?}");
}
