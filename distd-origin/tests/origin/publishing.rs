//! What a publish stores, what it leaves alone, and what it refuses.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use crate::support::{World, noise};
use distd_core::limits::MUNRO_BYTES;
use distd_core::manifest::EntryKind;
use distd_core::store::OriginLog;
use distd_core::unit::ByteRange;
use distd_origin::diff::{Change, diff};
use distd_origin::history::{History, read_extents, read_head};
use distd_origin::publish::{PublishError, PublishOptions, Step, publish};
use distd_origin::rollback::rollback;
use distd_origin::scan::ScanError;
use distd_origin::verify::verify;

fn small_tree(world: &World) {
    world.write("big", &noise(1, 3 << 20));
    for directory in ["bin", "lib/a", "lib/b"] {
        for i in 0..5 {
            world.write(&format!("{directory}/{i}"), &noise(i, 1000 * i as usize));
        }
    }
}

/// Every byte that is committed.
fn log_bytes(world: &World) -> Vec<u8> {
    let log = world.log();
    let munros = log.committed().map_or(0, |commit| commit.munros);
    log.read_bytes(ByteRange { offset: 0, len: munros * MUNRO_BYTES }).expect("read")
}

fn assert_sound(world: &World) {
    let report = verify(&world.log(), |_, _| {}).expect("read");
    assert!(report.is_sound(), "{}", report.text());
}

#[test]
fn an_equal_tree_makes_equal_sections_whatever_the_threads_do() {
    let world = World::new();
    small_tree(&world);
    for i in 0..200 {
        world.write(&format!("many/{i}"), &noise(1000 + i, 10_000 + 7 * i as usize));
    }
    world.publish("1");
    let first = log_bytes(&world);
    for _ in 0..3 {
        let other = World { source: world.source.clone(), ..World::new() };
        other.publish("1");
        let head = History::read(&other.log()).expect("read").head.expect("published").head;
        // Up to the release record, which holds the time of its making.
        let end = head.tracks[0].release.offset as usize;
        assert!(log_bytes(&other)[..end] == first[..end]);
    }
}

#[test]
fn an_unchanged_tree_is_no_new_release() {
    let world = World::new();
    small_tree(&world);
    assert!(world.publish("1").changed);
    let before = log_bytes(&world);
    let again = world.publish("2");
    assert!(!again.changed && again.version == "1");
    assert!(log_bytes(&world) == before);
    assert_sound(&world);
    // Only a mode: metadata, and nothing else.
    fs::set_permissions(world.source.join("big"), fs::Permissions::from_mode(0o600)).expect("set");
    let third = world.publish("3");
    assert!(third.changed && third.new_bytes == 0, "{third:?}");
    assert_eq!(third.not_world_readable.examples, ["big"]);
    assert_sound(&world);
}

#[test]
fn what_is_known_by_its_state_is_not_read() {
    let world = World::new();
    small_tree(&world);
    world.publish("1");
    // States that were too young to be remembered are read once more, and then no more.
    assert!((0..1000).any(|_| world.publish("2").read_bytes == 0));
    let big = fs::File::options().write(true).open(world.source.join("big")).expect("opens");
    let before = big.metadata().expect("there").modified().expect("known");
    big.write_all_at(b"changed", 50_000).expect("written");
    big.set_modified(before).expect("set");
    drop(big);
    let report = world.publish("3");
    assert_eq!((report.read_bytes, report.new_bytes), (3 << 20, 4096));
    assert_eq!(
        world.content(&world.entries("3")[&b"big"[..]]),
        fs::read(world.source.join("big")).expect("read")
    );
}

#[test]
fn a_new_release_costs_what_changed() {
    let world = World::new();
    small_tree(&world);
    let first = world.publish("1");
    let plain = first.new_bytes + first.metadata_bytes.next_multiple_of(4096);
    assert!(first.update_bytes <= plain && first.frame_bytes > 0, "{first:?}");
    let mut big = noise(1, 3 << 20);
    big[1_000_000] ^= 1;
    world.write("big", &big);
    world.write("lib/a/new", &noise(77, 9000));
    fs::remove_file(world.source.join("lib/b/4")).expect("removed");
    let second = world.publish("2");
    assert_eq!(second.new_bytes, 4096 + 3 * 4096, "{second:?}");
    // The changed block comes as the one changed bit, only the new file whole.
    assert!(second.metadata_bytes < 4096 && second.update_bytes < 9000 + 4096, "{second:?}");
    // The directory that did not change is shared.
    let node = |version, path: &str| world.entries(version)[path.as_bytes()].kind.clone();
    assert_eq!(node("1", "bin"), node("2", "bin"));
    assert_ne!(node("1", "lib"), node("2", "lib"));
    assert_sound(&world);
}

#[test]
fn a_dry_run_tells_the_same_and_touches_nothing() {
    let world = World::new();
    small_tree(&world);
    let dry =
        |version: &str| world.publish_from(&world.source, "stable", version, true).expect("told");
    let state = || -> Vec<_> {
        let files = fs::read_dir(world.repo.dir()).expect("read");
        let logs = fs::read_dir(world.repo.log_dir()).expect("read");
        let entry = |e: std::io::Result<fs::DirEntry>| e.expect("read").path();
        let stat = |path: &Path| {
            let metadata = path.metadata().expect("there");
            (path.to_owned(), metadata.len(), metadata.modified().expect("known"))
        };
        let mut all: Vec<_> = files.chain(logs).map(|e| stat(&entry(e))).collect();
        all.sort();
        all
    };
    for round in 0..3 {
        let before = state();
        let version = format!("{round}");
        let told = dry(&version);
        assert_eq!(state(), before);
        let done = world.publish(&version);
        assert!(told.changed && told.dry_run);
        let figures = |r: &distd_origin::publish::PublishReport| {
            (r.files, r.bytes, r.new_bytes, r.metadata_bytes, r.extents)
        };
        assert_eq!(figures(&told), figures(&done));
        // The release record holds the time, and compresses accordingly.
        assert!(told.update_bytes.abs_diff(done.update_bytes) < 64, "{told:?} {done:?}");
        assert!(told.frame_bytes.abs_diff(done.frame_bytes) < 4096, "{told:?} {done:?}");
        let now = state();
        assert!(!dry("again").changed);
        assert_eq!(state(), now);
        world.write(&format!("new{round}"), &noise(round + 50, 30_000));
        world.write("big", &[noise(round + 60, 4096), noise(1, 3 << 20)].concat());
    }
}

#[test]
fn a_lost_damaged_or_old_index_is_made_anew() {
    let world = World::new();
    small_tree(&world);
    world.publish("1");
    let index = world.repo.index_path();
    let old = fs::read(&index).expect("read");
    world.write("second", &noise(2, 100_000));
    world.publish("2");
    let copies = |n: u64| {
        for i in 0..3 {
            world.write(&format!("copy{n}{i}"), &noise(2, 100_000));
        }
        world.write(&format!("big{n}"), &noise(1, 3 << 20));
    };
    for (round, damage) in [
        None,
        Some(Vec::new()),
        Some(old.clone()),
        Some(noise(9, 100_000)),
        Some(old[..old.len() / 2].to_vec()),
        Some(vec![0; old.len()]),
    ]
    .into_iter()
    .enumerate()
    {
        match damage {
            None => fs::remove_file(&index).expect("removed"),
            Some(bytes) => fs::write(&index, bytes).expect("written"),
        }
        copies(round as u64);
        let report = world.publish(&format!("after{round}"));
        assert_eq!(report.new_bytes, 0, "{round}: {report:?}");
        assert!(report.metadata_bytes < 8192, "{round}: nodes are found again: {report:?}");
        assert_sound(&world);
    }
}

#[test]
fn an_index_ahead_of_a_restored_log_is_made_anew() {
    let world = World::new();
    small_tree(&world);
    world.publish("1");
    let (log, kept) = (world.repo.log_dir(), world.dir.path().join("kept"));
    let copy = |from: &Path, to: &Path| {
        let done = std::process::Command::new("cp")
            .args(["-a", "--sparse=always"])
            .arg(from)
            .arg(to)
            .status();
        assert!(done.expect("cp runs").success());
    };
    copy(&log, &kept);
    world.write("second", &noise(2, 200_000));
    world.publish("2");
    fs::remove_dir_all(&log).expect("removed");
    copy(&kept, &log);
    // The index knows blocks, nodes and a state of "second" that this log does not hold.
    let report = world.publish("2");
    assert_eq!(report.new_bytes, 49 * 4096, "{report:?}");
    assert_eq!(world.content(&world.entries("2")[&b"second"[..]]), noise(2, 200_000));
    assert_sound(&world);
}

#[test]
fn a_publish_that_is_given_up_leaves_no_trace() {
    let world = World::new();
    small_tree(&world);
    world.publish("1");
    let before = log_bytes(&world);
    world.write("large", &noise(5, 8 << 20));
    // The source changes while it is read: the epoch is dropped before its seal.
    let changed = Cell::new(false);
    let options = PublishOptions {
        source: &world.source,
        track: "stable",
        version: "2",
        message: "",
        dry_run: false,
        profile: &[],
        level: 3,
    };
    let large = world.source.join("large");
    let error = publish(&world.repo, &options, &|step| {
        if matches!(step, Step::Read(..)) && !changed.replace(true) {
            fs::write(&large, noise(6, 8 << 20)).expect("written");
        }
    })
    .expect_err("it changed");
    assert!(error.to_string().contains("large"), "{error}");
    assert!(matches!(error, PublishError::Scan(ScanError::Changed { .. })));
    assert!(log_bytes(&world) == before);
    assert_sound(&world);
    let report = world.publish("2");
    assert_eq!(report.new_bytes, 8 << 20);
    assert_eq!(world.content(&world.entries("2")[&b"large"[..]]), noise(6, 8 << 20));
    assert_sound(&world);
}

#[test]
fn a_tree_that_changes_meanwhile_is_refused_by_name() {
    let world = World::new();
    small_tree(&world);
    let source = &world.source;
    type Mutation<'a> = (&'a str, Box<dyn Fn() + 'a>);
    let mutations: [Mutation<'_>; 6] = [
        ("big", Box::new(|| drop(fs::write(source.join("big"), b"short")))),
        ("bin/3", Box::new(|| fs::remove_file(source.join("bin/3")).expect("removed"))),
        ("lib", Box::new(|| fs::write(source.join("lib/a/added"), b"x").expect("written"))),
        (
            "lib",
            Box::new(|| fs::rename(source.join("lib/a"), source.join("lib/z")).expect("moved")),
        ),
        (
            "bin/2",
            Box::new(|| {
                fs::remove_file(source.join("bin/2")).expect("removed");
                std::os::unix::fs::symlink("/etc/passwd", source.join("bin/2")).expect("made");
            }),
        ),
        (
            "bin",
            Box::new(|| {
                fs::rename(source.join("bin"), source.join("was-bin")).expect("moved");
                std::os::unix::fs::symlink("/etc", source.join("bin")).expect("made");
            }),
        ),
    ];
    for (round, (name, mutate)) in mutations.iter().enumerate() {
        let done = Cell::new(false);
        let version = format!("{round}");
        let options = PublishOptions {
            source,
            track: "stable",
            version: &version,
            message: "",
            dry_run: false,
            profile: &[],
            level: 3,
        };
        let result = publish(&world.repo, &options, &|step| {
            if matches!(step, Step::Read(..)) && !done.replace(true) {
                mutate();
            }
        });
        let error = result.expect_err(name).to_string();
        assert!(error.contains(name), "{name}: {error}");
        assert!(world.log().committed().is_none());
        fs::remove_dir_all(source).expect("removed");
        fs::create_dir(source).expect("made");
        small_tree(&world);
    }
}

#[test]
fn diff_names_exactly_what_differs() {
    let world = World::new();
    small_tree(&world);
    world.publish("1");
    world.write("lib/a/1", b"changed");
    fs::remove_file(world.source.join("lib/b/0")).expect("removed");
    world.write("added/new", &noise(4, 5000));
    fs::set_permissions(world.source.join("bin/2"), fs::Permissions::from_mode(0o700))
        .expect("set");
    fs::remove_file(world.source.join("bin/4")).expect("removed");
    std::os::unix::fs::symlink("3", world.source.join("bin/4")).expect("made");
    world.publish("2");
    let report = diff(&world.log(), "1", "2", true).expect("compared");
    let changes: Vec<_> = report.changes.iter().map(|d| (d.path.as_str(), d.change)).collect();
    assert_eq!(
        changes,
        [
            // The root and the other directories whose entries came or went have a new mtime.
            (".", Change::Metadata),
            ("added", Change::Added),
            ("added/new", Change::Added),
            ("bin", Change::Metadata),
            ("bin/2", Change::Metadata),
            ("bin/4", Change::Content),
            ("lib/a/1", Change::Content),
            ("lib/b", Change::Metadata),
            ("lib/b/0", Change::Removed),
        ]
    );
    let new_bytes: u64 = report.changes.iter().map(|d| d.new_bytes).sum();
    assert_eq!(new_bytes, 3 * 4096);
    assert!(report.fetch_bytes > new_bytes && report.fetch_bytes <= new_bytes + 3 * 4096);
    assert_eq!(diff(&world.log(), "2", "2", false).expect("compared").changes, []);
    let backwards = diff(&world.log(), "2", "1", false).expect("compared");
    assert_eq!(backwards.changes.len(), report.changes.len());
}

#[test]
fn rollback_moves_the_track_and_heads_follow_each_other() {
    let world = World::new();
    small_tree(&world);
    world.publish("1");
    world.write("more", b"x");
    world.publish("2");
    let length = log_bytes(&world).len();
    let report = rollback(&world.repo, "stable", "1").expect("moved");
    assert_eq!((report.changed, report.from.as_str()), (true, "2"));
    assert_eq!(log_bytes(&world).len(), length + MUNRO_BYTES as usize);
    assert!(!rollback(&world.repo, "stable", "1").expect("there").changed);
    assert!(rollback(&world.repo, "stable", "9").is_err());
    assert!(rollback(&world.repo, "beta", "1").is_err());
    assert!(world.publish("3").changed, "the tree is not the one that the track stands at");
    let log = world.log();
    let mut newer = History::read(&log).expect("read").head.expect("published");
    let mut heads = 1;
    while let Some(previous) = newer.head.previous.clone() {
        let older = read_head(&log, previous.munros).expect("read");
        assert_eq!(newer.follows(&older), Ok(()));
        newer = older;
        heads += 1;
    }
    assert_eq!(heads, 4);
    assert_sound(&world);
    // 2 and 3 are the same tree: nothing of it is stored again.
    let root = |version| world.release(version).root;
    assert_eq!(root("2"), root("3"));
}

#[test]
fn verify_names_what_is_damaged() {
    let world = World::new();
    small_tree(&world);
    // Between the damaged file and the metadata, which else lie in one frame.
    world.write("lib/c/last", &noise(5, 200_000));
    world.publish("1");
    let entries = world.entries("1");
    let segment = fs::read_dir(world.repo.log_dir())
        .expect("read")
        .map(|entry| entry.expect("read").path())
        .find(|path| path.extension().is_some_and(|ext| ext == "segment"))
        .expect("a segment");
    let bytes = fs::read(&segment).expect("read");
    let file = fs::File::options().write(true).open(&segment).expect("opens");
    for path in ["big", "lib/b/3"] {
        let content = world.content(&entries[path.as_bytes()]);
        let needle = &content[1000..1064];
        let at = bytes.windows(64).position(|window| window == needle).expect("stored") as u64;
        file.write_all_at(&[needle[0] ^ 4], at).expect("written");
        let report = verify(&world.log(), |_, _| {}).expect("read");
        assert!(!report.is_sound());
        let named = report.damaged_files.iter().any(|name| name.ends_with(path));
        assert!(named, "{path}: {}", report.text());
        file.write_all_at(&needle[..1], at).expect("written");
        assert_sound(&world);
    }
}

#[test]
fn a_flipped_bit_of_a_frame_is_named_and_never_served() {
    let world = World::new();
    let text = |salt: u64| -> Vec<u8> {
        (0..40_000u64).flat_map(|i| format!("{} {}\n", i * i + salt, i % 97).into_bytes()).collect()
    };
    for i in 0..4 {
        world.write(&format!("text/{i}"), &text(i));
    }
    world.publish("1");
    let mut changed = text(2);
    changed.splice(1000..1000, *b"inserted");
    world.write("text/2", &changed);
    let report = world.publish("2");
    assert!(report.update_bytes < report.new_bytes / 10, "{report:?}");
    let sections =
        History::read(&world.log()).expect("read").head.expect("published").head.sections;
    let sources: Vec<_> =
        ["text/0", "text/2"].map(|path| (path, fs::read(world.source.join(path)))).into();
    let entries = world.entries("2");
    let segment = world.repo.log_dir().join("00000000.segment");
    let file = fs::File::options().read(true).write(true).open(&segment).expect("opens");
    for step in 0..40 {
        // Content begins at 32 MiB of a segment.
        let at = (32 << 20) + (sections.frames.munro << 20) + sections.frames.bytes * step / 40;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("read");
        file.write_all_at(&[byte[0] ^ 1 << (step % 8)], at).expect("written");
        let log = world.log();
        let found = verify(&log, |_, _| {}).expect("read");
        let block = ((at - (32 << 20)) >> 12 << 12).to_string();
        assert!(found.text().contains(&block), "{at}: {}", found.text());
        for (path, expected) in &sources {
            if let EntryKind::File(file) = &entries[path.as_bytes()].kind
                && let Ok(extents) = read_extents(&log, file)
            {
                let mut content = Vec::new();
                let whole = extents.data().all(|run| {
                    let mut bytes = vec![0; run.byte_len() as usize];
                    let read = log.read_blocks(run, &mut bytes).is_ok();
                    content.extend(bytes);
                    read
                });
                content.truncate(file.size as usize);
                assert!(!whole || Some(&content) == expected.as_ref().ok(), "{path} at {at}");
            }
        }
        file.write_all_at(&byte, at).expect("written");
    }
    assert_sound(&world);
}

#[test]
fn bad_requests_are_refused_before_anything_is_read() {
    let world = World::new();
    small_tree(&world);
    let publish = |source: &Path, track: &str, version: &str| {
        world.publish_from(source, track, version, false).expect_err("refused")
    };
    let source = world.source.as_path();
    assert!(matches!(publish(source, "a/b", "1"), PublishError::Label(_)));
    assert!(matches!(publish(source, "a", ""), PublishError::Label(_)));
    let nowhere = world.dir.path().join("nowhere");
    assert!(matches!(publish(&nowhere, "a", "1"), PublishError::NoSource { .. }));
    assert!(matches!(publish(Path::new("/dev/null"), "a", "1"), PublishError::NotASource { .. }));
    assert!(matches!(publish(world.dir.path(), "a", "1"), PublishError::Nested { .. }));
    assert!(matches!(publish(&world.repo.log_dir(), "a", "1"), PublishError::Nested { .. }));
    world.publish("1");
    assert!(matches!(publish(source, "stable", "1"), PublishError::Exists { .. }));
    let key = world.repo.dir().join("key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).expect("set");
    let error = publish(source, "stable", "2").to_string();
    assert!(error.contains("0640") && error.contains("key"), "{error}");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("set");
    let _publishing = OriginLog::append(&world.repo.log_dir()).expect("locked");
    let error = publish(source, "stable", "2").to_string();
    assert!(error.contains(&std::process::id().to_string()), "{error}");
}

#[test]
fn more_tracks_than_a_head_holds_are_refused() {
    let world = World::new();
    for i in 0..24 {
        world.write("number", &noise(i, 100));
        let track = format!("track{i}");
        world.publish_from(&world.source, &track, "1", false).expect("published");
    }
    let error = world.publish_from(&world.source, "onemore", "1", false).expect_err("refused");
    assert!(error.to_string().contains("24 tracks"), "{error}");
    assert_sound(&world);
}
