//! Whole files, whatever the line, the number of members, and who lies.

use super::*;
use crate::ppspp::engine::DownReason;
use MerkleFunction::{Sha1, Sha256};

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn content_of_any_length_arrives_whether_its_length_is_told_or_found() {
    for function in MerkleFunction::ALL {
        for len in
            [1, 20, 1023, 1024, 1025, 4096, 7162, 65_536, 65_537, 300_000, 1 << 20, (1 << 20) + 1]
        {
            for told in [false, true] {
                let mut world = World::new(len as u64, 0.0);
                let file = content(len, 1);
                let (seeder, id) = world.seed(function, &file);
                let getter = world.join(id, told.then_some(len as u64), None);
                world.connect(getter, seeder);
                world.run(&[getter], LIMIT);
                assert!(world.file(getter) == file, "{len} bytes, {function:?}");
                assert_eq!(world.members[getter].settled, Some(len as u64));
                let sent = world.members[seeder].engine.counters().data_sent_bytes;
                assert!(sent <= len as u64 + 64 * 1024, "{sent} of {len}");
            }
        }
    }
}

#[test]
fn a_file_arrives_over_a_bad_line_for_few_bytes_more() {
    for (seed, loss) in [(1, 0.01), (2, 0.1), (3, 0.3)] {
        let mut world = World::new(seed, loss);
        let file = content(3 << 20, seed);
        let (seeder, id) = world.seed(Sha256, &file);
        let getter = world.join(id, None, None);
        world.connect(getter, seeder);
        world.run(&[getter], LIMIT * 10);
        assert!(world.file(getter) == file);
        let sent = world.members[seeder].engine.counters().data_sent_bytes as f64;
        let most = file.len() as f64 * (1.0 + 6.0 * loss) + 65_536.0;
        assert!(sent <= most, "{sent} of {most} at {loss} in {:?}", world.elapsed());
        assert!(
            world.members[getter].downs.iter().all(|(_, r)| !matches!(r, DownReason::Lied { .. }))
        );
    }
}

#[test]
fn members_fetch_from_one_another_and_a_latecomer_needs_no_seeder() {
    let mut world = World::new(4, 0.01);
    let file = content(4 << 20, 4);
    let (seeder, id) = world.seed(Sha256, &file);
    let getters: Vec<usize> = (0..3).map(|_| world.join(id, None, None)).collect();
    for (at, getter) in getters.iter().enumerate() {
        world.connect(*getter, seeder);
        for other in &getters[..at] {
            world.connect(*getter, *other);
        }
    }
    world.run(&getters, LIMIT);
    assert!(getters.iter().all(|getter| world.file(*getter) == file));
    let from_others: u64 = getters
        .iter()
        .flat_map(|getter| world.members[*getter].engine.peers())
        .filter(|peer| peer.address != address(seeder as u16))
        .map(|peer| peer.verified_bytes)
        .sum();
    assert!(from_others > file.len() as u64 / 4, "{from_others} bytes from one another");
    world.members[seeder].online = false;
    let late = world.join(id, None, None);
    world.connect(late, getters[0]);
    world.connect(late, seeder);
    world.run(&[late], world.elapsed() + LIMIT);
    assert!(world.file(late) == file);
}

fn false_data(datagram: &mut [u8]) {
    if datagram.len() > 1000 {
        let last = datagram.len() - 1;
        datagram[last] ^= 1;
    }
}

/// Changes the first hash of a datagram that has one.
fn false_hash(datagram: &mut [u8]) {
    if datagram.len() > 60 && datagram[4] == 4 {
        datagram[20] ^= 1;
    }
}

/// Claims that the root is the only peak of a larger content.
fn false_peaks(datagram: &mut [u8]) {
    if datagram.len() > 60 && datagram[4] == 4 {
        datagram[9..13].copy_from_slice(&0x000f_ffff_u32.to_be_bytes());
    }
}

#[test]
fn who_lies_is_left_and_the_file_is_right() {
    for (at, lie) in [false_data as fn(&mut [u8]), false_hash, false_peaks].into_iter().enumerate()
    {
        for told in [None, Some(2 << 20)] {
            let mut world = World::new(10 + at as u64, 0.0);
            let file = content(2 << 20, 5);
            let (honest, id) = world.seed(Sha1, &file);
            let (liar, _) = world.seed(Sha1, &file);
            world.members[liar].lie = Some(lie);
            let getter = world.join(id, told, None);
            world.connect(getter, liar);
            world.connect(getter, honest);
            world.run(&[getter], LIMIT);
            assert!(world.file(getter) == file);
            let lied = |member: usize| {
                let of = |(from, reason): &(SocketAddr, DownReason)| {
                    *from == address(member as u16) && matches!(reason, DownReason::Lied { .. })
                };
                world.members[getter].downs.iter().any(of)
            };
            assert!(!lied(honest), "{at}");
            // A claim that nothing comes of is no lie that is seen.
            assert!(lied(liar) || at == 2, "{at} {told:?}");
        }
    }
}

#[test]
fn a_seeder_that_restarts_is_found_again() {
    let mut world = World::new(6, 0.0);
    let file = content(6 << 20, 6);
    let (seeder, id) = world.seed(Sha256, &file);
    let getter = world.join(id, None, None);
    world.connect(getter, seeder);
    while world.members[getter].engine.progress().0 < 1000 {
        world.step();
    }
    let mut rng_seed = [7; 32];
    rng_seed[0] = 9;
    let tree = Some(grown(Sha256, &file));
    let options = StaticOptions { rng_seed, id, bytes: Some(file.len() as u64), tree };
    world.members[seeder].engine = StaticSwarm::new(options, world.now).expect("a swarm");
    world.run(&[getter], LIMIT);
    assert!(world.file(getter) == file);
}

#[test]
fn what_was_fetched_before_is_not_fetched_again() {
    let mut world = World::new(7, 0.0);
    let file = content(1 << 20, 7);
    let (seeder, id) = world.seed(Sha256, &file);
    let first = world.join(id, None, None);
    world.connect(first, seeder);
    let mut proved = BTreeMap::new();
    while world.members[first].file.len() < 9 {
        world.step();
        proved.extend(world.members[first].engine.take_proved());
    }
    let kept = std::mem::take(&mut world.members[first].file);
    world.members[first].online = false;
    let before = world.members[seeder].engine.counters().data_sent_bytes;
    let second = world.join(id, Some(file.len() as u64), None);
    let now = world.now;
    let member = &mut world.members[second];
    member.engine.admit(&proved);
    for (branch, mut bytes) in kept {
        if branch.0 % 4 == 3 {
            // Half written when the power failed.
            bytes[70] ^= 1;
        }
        if member.engine.proves(branch, &bytes) {
            member.file.insert(branch, bytes);
            member.engine.hold(now, branch);
        }
    }
    let here = member.file.len();
    assert!(here >= 6, "{here} branches are proved");
    world.connect(second, seeder);
    world.run(&[second], world.elapsed() + LIMIT);
    assert!(world.file(second) == file);
    let sent = world.members[seeder].engine.counters().data_sent_bytes - before;
    assert!(sent <= ((16 - here + 4) * BRANCH_BYTES) as u64, "{sent} bytes again");
}

#[test]
fn a_file_that_changes_under_its_seeder_is_not_served() {
    let mut world = World::new(8, 0.0);
    let file = content(300_000, 8);
    let (seeder, id) = world.seed(Sha256, &file);
    world.members[seeder].file.get_mut(&BranchIndex(2)).expect("a branch")[5] ^= 1;
    let getter = world.join(id, Some(300_000), None);
    world.connect(getter, seeder);
    while world.elapsed() < Duration::from_secs(20) {
        world.step();
    }
    assert_eq!(world.members[getter].file.len(), 4, "all but one");
    assert!(world.members[getter].downs.iter().all(|(_, r)| !matches!(r, DownReason::Lied { .. })));
}
