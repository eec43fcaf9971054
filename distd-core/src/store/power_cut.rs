//! What a power cut may leave of a publish: any sector old or new since its file was last synced,
//! any name old or new since the directory was.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, Mutex};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::io::Errno;

use super::directory::Directory;
use super::fixture::{content, origin};
use super::log_promises::{publish, whole};
use super::segment::{CONTENT_OFFSET, table_offset};
use super::{Appender, OriginLog};
use crate::unit::MunroIndex;

const SECTOR_BYTES: usize = 512;
/// Munros that a log of these tests has at most.
const MUNROS: u64 = 12;

/// The parts of a file that these tests write: offset and bytes.
type Image = Vec<(u64, Vec<u8>)>;

/// What would be there after a power cut, if nothing unsynced survived.
#[derive(Clone, Default)]
struct Durable {
    /// Inode of each name.
    names: BTreeMap<String, u64>,
    files: BTreeMap<u64, Image>,
}

fn image(path: &Path) -> Image {
    let file = File::open(path).expect("opened");
    let len = file.metadata().expect("examined").len();
    let areas = [
        (0, 384 << 10),
        (table_offset(MunroIndex(0)), MUNROS * 16384),
        (CONTENT_OFFSET, MUNROS << 20),
    ];
    let mut image = Image::new();
    for (offset, area) in areas {
        let mut bytes = vec![0; area.min(len.saturating_sub(offset)) as usize];
        file.read_exact_at(&mut bytes, offset).expect("read");
        image.push((offset, bytes));
    }
    image
}

fn names(dir: &Path) -> BTreeMap<String, u64> {
    let entry = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().expect("ours");
        (name, entry.metadata().expect("examined").ino())
    };
    std::fs::read_dir(dir).expect("listed").flatten().map(entry).collect()
}

/// Everything in `dir`, as if it had just been synced.
fn synced(dir: &Path) -> Durable {
    let names = names(dir);
    let files = names.iter().map(|(name, inode)| (*inode, image(&dir.join(name)))).collect();
    Durable { names, files }
}

/// One of the disks that a power cut may leave: `durable` with some of what `dir` has beyond it.
fn cut(durable: &Durable, dir: &Path, to: &Path, random: &mut SmallRng) {
    let current = names(dir);
    let all: BTreeSet<_> = durable.names.keys().chain(current.keys()).collect();
    let share = [0.0, 0.5, 0.95, 1.0][random.random_range(0..4)];
    for name in all {
        let from = if random.random_bool(share) { &current } else { &durable.names };
        let Some(inode) = from.get(name) else { continue };
        let old = durable.files.get(inode).cloned().unwrap_or_default();
        // An inode without a name any more is only known as it was synced.
        let live = current.iter().find(|(_, other)| *other == inode);
        let new = live.map_or(old.clone(), |(name, _)| image(&dir.join(name)));
        let file = File::create(to.join(name)).expect("created");
        if name.ends_with(".segment") {
            file.set_len(CONTENT_OFFSET + (1 << 30)).expect("extended");
        }
        for (area, (offset, new)) in new.iter().enumerate() {
            let old = old.get(area).map_or(&[][..], |(_, bytes)| bytes);
            for (index, sector) in new.chunks(SECTOR_BYTES).enumerate() {
                let start = index * SECTOR_BYTES;
                let before = old.get(start..(start + SECTOR_BYTES).min(old.len()));
                let before = before.unwrap_or(&[]);
                let kept = if random.random_bool(share) { sector } else { before };
                if kept.iter().any(|byte| *byte != 0) {
                    file.write_all_at(kept, offset + start as u64).expect("written");
                }
            }
        }
    }
}

#[test]
fn a_power_cut_at_any_change_leaves_the_old_log_or_the_new() {
    let mut done = false;
    for changes in 0.. {
        let temp = tempfile::tempdir().expect("tempdir");
        let dir = temp.path().join("log");
        OriginLog::create(&dir, origin()).expect("created");
        let mut old = Vec::new();
        let appender = OriginLog::append(&dir).expect("locked");
        publish(appender, &[3], &mut old).expect("published");
        // An epoch that an earlier crash left behind, with other content at the same place.
        let mut crashed = OriginLog::append(&dir).expect("locked");
        crashed.write(&content(super::fixture::blocks(9000, 600))).expect("written");
        drop(crashed);

        let directory = Arc::new(Directory::public(&dir).expect("opened"));
        let durable = Arc::new(Mutex::new(synced(&dir)));
        directory.fault().watch({
            let (durable, dir) = (Arc::clone(&durable), dir.clone());
            move |path| {
                let mut durable = durable.lock().expect("no panic holds it");
                if path == dir {
                    durable.names = names(&dir);
                } else {
                    let inode = path.metadata().expect("examined").ino();
                    durable.files.insert(inode, image(path));
                }
            }
        });
        directory.fault().after(changes, Errno::IO);
        let mut new = old.clone();
        let published = Appender::over(Arc::clone(&directory))
            .and_then(|appender| publish(appender, &[260], &mut new));
        done |= published.is_ok();
        let durable = durable.lock().expect("no panic holds it").clone();
        for seed in 0..3 {
            let mut random = SmallRng::seed_from_u64(changes << 8 | seed);
            let disk = tempfile::tempdir().expect("tempdir");
            cut(&durable, &dir, disk.path(), &mut random);
            let log = OriginLog::open(disk.path()).expect("a whole commit");
            let found = whole(&log);
            assert!(found == new || (!done && found == old), "{changes} changes, seed {seed}");
            assert_eq!(log.verify(|_, _| {}).expect("readable"), [], "{changes}, seed {seed}");
            let mut next = found;
            let appender = OriginLog::append(disk.path()).expect("locked");
            publish(appender, &[20], &mut next).expect("published");
            assert!(log.reload().expect("readable"));
            assert!(whole(&log) == next, "{changes} changes, seed {seed}");
            assert_eq!(log.verify(|_, _| {}).expect("readable"), [], "{changes}, seed {seed}");
        }
        if done {
            assert!(changes > 10, "a publish is more than {changes} changes");
            break;
        }
    }
}
