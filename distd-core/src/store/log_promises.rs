//! What an origin's log promises: the old commit or the new one, and no wrong byte.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use rustix::io::Errno;

use crate::keys::OriginKey;
use crate::limits::MUNRO_BYTES;
use crate::unit::{BlockIndex, ByteRange, MunroIndex};

use super::directory::Directory;
use super::fixture::{blocks, content, key, origin, time};
use super::segment::{content_offset, record_offset, table_offset};
use super::{AppendError, Appender, Commit, Damage, OpenError, OriginLog, ReadError, Sealing};

const HEAD: [u8; 4096] = [0xdd; 4096];

#[expect(clippy::unnecessary_wraps, reason = "as seal takes it")]
fn head(_: &Sealing<'_>) -> Result<[u8; 4096], AppendError> {
    Ok(HEAD)
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(MUNRO_BYTES as usize), 0);
}

/// Appends the sections and a head; `model`, what the log held before, becomes what it is to hold.
pub(super) fn publish(
    mut appender: Appender,
    sections: &[u64],
    model: &mut Vec<u8>,
) -> Result<Commit, AppendError> {
    let mut written = Vec::new();
    for count in sections {
        pad(model);
        let bytes = content(blocks(model.len() as u64, *count));
        written.push((model.len() as u64, bytes.clone()));
        model.extend_from_slice(&bytes);
    }
    pad(model);
    model.resize(model.len() + MUNRO_BYTES as usize - HEAD.len(), 0);
    model.extend_from_slice(&HEAD);
    for (offset, bytes) in written {
        let (one, other) = bytes.split_at(bytes.len() / 4096 / 2 * 4096);
        appender.begin_section()?;
        assert_eq!(appender.next_block().byte_offset(), offset);
        appender.write(one)?;
        appender.write(other)?;
    }
    appender.seal(&key(), time(), head)
}

pub(super) fn whole(log: &OriginLog) -> Vec<u8> {
    let munros = log.committed().map_or(0, |commit| commit.munros);
    log.read_bytes(ByteRange { offset: 0, len: munros * MUNRO_BYTES }).expect("readable")
}

fn created() -> (tempfile::TempDir, OriginLog) {
    let temp = tempfile::tempdir().expect("tempdir");
    let log = OriginLog::create(temp.path(), origin()).expect("created");
    (temp, log)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn what_is_appended_is_what_is_read(epochs in proptest::collection::vec(
        proptest::collection::vec(prop_oneof![Just(0u64), Just(255), Just(256), Just(257), 1u64..900], 0..3), 1..4)
    ) {
        let (temp, log) = created();
        let mut model = Vec::new();
        for sections in epochs {
            let appender = OriginLog::append(temp.path()).expect("locked");
            let commit = publish(appender, &sections, &mut model).expect("published");
            prop_assert!(log.reload().expect("readable"));
            prop_assert_eq!(log.committed(), Some(commit));
            prop_assert!(whole(&log) == model);
            let root = log.frontier().root(|bin| {
                let half = bin.byte_len() as usize / 2;
                let child = |bin: Option<crate::unit::Bin>, bytes: &[u8]| {
                    crate::tree::NodeHash::of_bytes(bin.expect("tall"), bytes)
                };
                (child(bin.left(), &model[..half]), child(bin.right(), &model[half..]))
            });
            prop_assert_eq!(root, Some(*blake3::hash(&model).as_bytes()));
            prop_assert_eq!(log.verify(|_, _| {}).expect("readable"), vec![]);
        }
        let end = model.len() as u64;
        for (offset, len) in [(end, 1), (end - 1, 2), (u64::MAX, 1), (0, u64::MAX)] {
            let beyond = log.read_bytes(ByteRange { offset, len });
            let refused = matches!(beyond, Err(ReadError::Beyond { .. }));
            prop_assert!(refused);
        }
    }
}

#[test]
fn a_failure_at_any_change_leaves_the_old_log_or_the_new() {
    for errno in [Errno::IO, Errno::NOSPC] {
        for changes in 0..100 {
            let (temp, log) = created();
            let mut old = Vec::new();
            let appender = OriginLog::append(temp.path()).expect("locked");
            publish(appender, &[300], &mut old).expect("published");
            let mut new = old.clone();
            let directory = Arc::new(Directory::public(temp.path()).expect("opened"));
            directory.fault().after(changes, errno);
            let published = Appender::over(Arc::clone(&directory))
                .and_then(|appender| publish(appender, &[700, 3], &mut new));
            // The commit is the rename: a failure to make it durable comes after it.
            let done = published.is_ok();
            log.reload().expect("readable");
            let found = whole(&log);
            assert!(found == new || (!done && found == old), "{errno} after {changes}");
            assert_eq!(log.verify(|_, _| {}).expect("readable"), [], "{errno} after {changes}");
            let mut next = found;
            let appender = OriginLog::append(temp.path()).expect("locked");
            publish(appender, &[20], &mut next).expect("published");
            log.reload().expect("readable");
            assert!(whole(&log) == next, "{errno} after {changes}");
            assert_eq!(log.verify(|_, _| {}).expect("readable"), [], "{errno} after {changes}");
            if done {
                assert!(changes > 10, "a publish is more than {changes} changes");
                break;
            }
            assert!(changes < 99, "a publish ends");
        }
    }
}

#[test]
fn an_epoch_with_a_failed_write_cannot_be_sealed() {
    let (temp, log) = created();
    let directory = Arc::new(Directory::public(temp.path()).expect("opened"));
    let mut appender = Appender::over(Arc::clone(&directory)).expect("locked");
    directory.fault().after(0, Errno::IO);
    assert!(appender.write(&content(blocks(0, 256))).is_err());
    directory.fault().heal();
    let poisoned = |result| matches!(result, Err(AppendError::Poisoned));
    assert!(poisoned(appender.write(&[0; 4096]).map(|_| ())));
    assert!(poisoned(appender.seal(&key(), time(), head).map(|_| ())));
    assert!(!log.reload().expect("readable"));
}

#[test]
fn every_flipped_bit_is_found_and_none_is_served() {
    let (temp, log) = created();
    let mut model = Vec::new();
    let appender = OriginLog::append(temp.path()).expect("locked");
    publish(appender, &[700], &mut model).expect("published");
    assert!(log.reload().expect("readable"));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(temp.path().join("00000000.segment"))
        .expect("opened");
    let flip = |bit: u64| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, bit / 8).expect("read");
        byte[0] ^= 1 << (bit % 8);
        file.write_all_at(&byte, bit / 8).expect("written");
    };
    // Padding and the head are signed like everything else.
    for bit in (0..4 * MUNRO_BYTES * 8).step_by(1_048_573) {
        let block = BlockIndex(bit / 8 / 4096);
        flip((content_offset(BlockIndex(0))) * 8 + bit);
        let damage = Damage::Content { blocks: crate::unit::BlockRange::new(block, 1) };
        assert_eq!(log.verify(|_, _| {}).expect("readable"), [damage], "bit {bit}");
        let fresh = OriginLog::open(temp.path()).expect("opened");
        for bin in [block.bin(), block.granule().bin(), block.munro().bin()] {
            assert!(matches!(fresh.read_run(bin), Err(ReadError::Damaged { blocks })
                if blocks.contains(block)));
        }
        assert!(fresh.read_run(BlockIndex(block.0 ^ 1).bin()).expect("readable").is_some());
        flip((content_offset(BlockIndex(0))) * 8 + bit);
    }
    for bit in (256..512 * 32 * 8).step_by(4799) {
        flip(table_offset(MunroIndex(2)) * 8 + bit);
        let damages = log.verify(|_, _| {}).expect("readable");
        assert!(matches!(damages[..], [Damage::Hash { .. }]), "bit {bit}: {damages:?}");
        let fresh = OriginLog::open(temp.path()).expect("opened");
        for block in (512..768).step_by(16).map(BlockIndex) {
            if let Ok(run) = fresh.read_run(block.granule().bin()) {
                let run = run.expect("committed");
                let start = run.bin().byte_offset() as usize;
                assert!(run.bytes()[..] == model[start..start + run.bytes().len()]);
            }
        }
        flip(table_offset(MunroIndex(2)) * 8 + bit);
    }
    for bit in (0..104 * 8).step_by(13) {
        flip(record_offset(MunroIndex(1)) * 8 + bit);
        let damage = Damage::Signature { munro: MunroIndex(1) };
        assert_eq!(log.verify(|_, _| {}).expect("readable"), [damage], "bit {bit}");
        let fresh = OriginLog::open(temp.path()).expect("opened");
        assert!(fresh.read_run(MunroIndex(1).bin()).is_err());
        flip(record_offset(MunroIndex(1)) * 8 + bit);
    }
    assert_eq!(log.verify(|_, _| {}).expect("readable"), []);
}

#[test]
fn what_is_served_is_verified_again_when_it_is_doubted_or_was_pruned() {
    let (temp, log) = created();
    let appender = OriginLog::append(temp.path()).expect("locked");
    publish(appender, &[300], &mut Vec::new()).expect("published");
    assert!(log.reload().expect("readable"));
    let segment = temp.path().join("00000000.segment");
    let file = OpenOptions::new().read(true).write(true).open(segment).expect("opened");
    let (granule, at) = (BlockIndex(16).granule().bin(), content_offset(BlockIndex(17)) + 100);
    let served = || log.stored_run(granule);
    let first = served().expect("right").expect("committed");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 4], at).expect("written");
    // Verified a moment ago: the peer verifies it, and tells by leaving.
    let (rotten, right) = (served().expect("not read again").expect("committed"), first.bytes());
    assert_eq!(rotten.bytes().iter().zip(right).filter(|(a, b)| a != b).count(), 1);
    log.doubt();
    assert!(matches!(served(), Err(ReadError::Damaged { .. })));
    file.write_all_at(&byte, at).expect("written");
    assert_eq!(served().expect("right").expect("committed").bytes(), right);
    file.write_all_at(&[0; 4096], content_offset(BlockIndex(18))).expect("written");
    assert!(served().is_err(), "a hole is never served");
}

#[test]
fn what_is_gone_is_told_and_the_rest_keeps_its_proofs() {
    let (temp, log) = created();
    let mut model = Vec::new();
    let appender = OriginLog::append(temp.path()).expect("locked");
    publish(appender, &[700], &mut model).expect("published");
    assert!(log.reload().expect("readable"));
    // Two granules, and a whole munro.
    let gone = [blocks(4, 8), blocks(256, 256)];
    OriginLog::mark_gone(temp.path(), &gone).expect("marked");
    assert_eq!(log.gone(blocks(0, 700)).expect("readable"), gone);
    assert_eq!(log.verify(|_, _| {}).expect("readable"), []);
    // Again, as after a kill.
    for again in [false, true] {
        let freed = OriginLog::free_gone(temp.path(), |_, _| {}).expect("freed");
        assert_eq!(freed > 0, !again);
        assert_eq!(log.verify(|_, _| {}).expect("readable"), []);
        let fresh = OriginLog::open(temp.path()).expect("opened");
        for block in (0..700).map(BlockIndex) {
            let range = blocks(block.0, 1);
            let is_gone = gone.iter().any(|gone| gone.contains(block));
            for bin in [block.bin(), block.granule().bin()] {
                assert_eq!(fresh.read_run(bin).expect("readable").is_none(), is_gone, "{block}");
            }
            let mut bytes = [0; 4096];
            match fresh.read_blocks(range, &mut bytes) {
                Err(ReadError::Gone { blocks }) => assert!(is_gone && blocks == range),
                other => {
                    other.expect("readable");
                    assert!(!is_gone && bytes[..] == model[block.0 as usize * 4096..][..4096]);
                }
            }
        }
    }
    let file = OpenOptions::new().write(true).open(temp.path().join("00000000.segment"));
    let wrong = content_offset(BlockIndex(13));
    file.and_then(|file| file.write_all_at(&[0; 100], wrong)).expect("written");
    let damage = Damage::Content { blocks: blocks(13, 1) };
    assert_eq!(log.verify(|_, _| {}).expect("readable"), [damage]);
}

#[test]
fn a_damaged_commit_is_refused_and_an_older_one_noticed() {
    let (temp, log) = created();
    let path = temp.path().join("commit.state");
    let empty = std::fs::read(&path).expect("read");
    let appender = OriginLog::append(temp.path()).expect("locked");
    publish(appender, &[3], &mut Vec::new()).expect("published");
    log.reload().expect("readable");
    let whole = std::fs::read(&path).expect("read");
    for bit in 0..whole.len() * 8 {
        let mut altered = whole.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, &altered).expect("written");
        assert!(OriginLog::open(temp.path()).is_err(), "bit {bit}");
        assert!(log.reload().is_err(), "bit {bit}");
    }
    std::fs::write(&path, &empty).expect("written");
    assert!(matches!(log.reload(), Err(ReadError::Shrunk { known: 2, found: 0 })));
    std::fs::write(&path, &whole).expect("written");
    assert!(!log.reload().expect("readable"));
}

#[test]
fn a_log_is_made_once_opened_where_it_is_and_sealed_by_its_key() {
    let (temp, _log) = created();
    let again = OriginLog::create(temp.path(), origin()).map(|_| ());
    assert!(matches!(again, Err(OpenError::Exists { .. })), "{again:?}");
    let nowhere = OriginLog::open(Path::new("/nonexistent")).map(|_| ());
    assert!(matches!(nowhere, Err(OpenError::Disk(_))), "{nowhere:?}");
    let empty = tempfile::tempdir().expect("tempdir");
    let none = OriginLog::open(empty.path()).map(|_| ());
    assert!(matches!(none, Err(OpenError::NoLog { .. })), "{none:?}");
    let none = OriginLog::append(empty.path()).map(|_| ());
    assert!(matches!(none, Err(AppendError::Open(OpenError::NoLog { .. }))), "{none:?}");
    let appender = OriginLog::append(temp.path()).expect("locked");
    let other = OriginKey::from_seed(&[1; 32]);
    let refused = appender.seal(&other, time(), head).map(|_| ());
    assert!(matches!(refused, Err(AppendError::WrongKey { .. })), "{refused:?}");
}
