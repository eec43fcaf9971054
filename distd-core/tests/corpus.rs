//! The stable twin of `fuzz/`: replays each target's seeds, cut at every byte and with every bit
//! flipped.

#[path = "../../fuzz/checks.rs"]
mod checks;

use std::fs;
use std::path::Path;

/// Calls `check` with each seed of `target` and its variants; returns how many seeds it accepted
/// and how many it refused.
fn replay(target: &str, check: fn(&[u8]) -> bool) -> (usize, usize) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let (mut accepted, mut refused) = (0, 0);
    for entry in fs::read_dir(&corpus).expect("the corpus of the target") {
        let seed = fs::read(entry.expect("an entry").path()).expect("a seed");
        if check(&seed) {
            accepted += 1;
        } else {
            refused += 1;
        }
        for end in 0..seed.len() {
            check(&seed[..end]);
        }
        let mut flipped = seed;
        for bit in 0..flipped.len() * 8 {
            flipped[bit / 8] ^= 1 << (bit % 8);
            check(&flipped);
            flipped[bit / 8] ^= 1 << (bit % 8);
        }
    }
    (accepted, refused)
}

#[test]
fn seeds_of_datagrams_are_read_or_refused() {
    assert_eq!(replay("datagram", checks::datagram), (10, 9));
}

#[test]
fn seeds_of_options_are_read_or_refused() {
    assert_eq!(replay("options", checks::options), (8, 9));
}

#[test]
fn seeds_of_frames_are_decoded_or_refused() {
    assert_eq!(replay("frame", checks::frame), (7, 12));
}

#[test]
fn seeds_of_frame_indexes_are_read_or_refused() {
    assert_eq!(replay("index", checks::index), (5, 11));
}
