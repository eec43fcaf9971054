//! The operations of a delta frame, from its copies: where the words of each begin, and what of them is as
//! it was.

use distd_core::frame::{AS_IS, Operation, WORD_BYTES};

use super::matching::{Copy, equal_bytes};

/// So many bytes without a change are a copy of their own, in which nothing is guessed. Measured on Python
/// wheels (what the operations and words of all delta frames take; how fast they are decoded is the same):
/// 8192: 466 KB, 16384: 456 KB, 32768: 455 KB.
const AS_IS_BYTES_MIN: usize = 32768;

/// What makes `new` of `base`: its copies, and literals between them.
pub fn operations(copies: &[Copy], base: &[u8], new: &[u8]) -> Vec<Operation> {
    let mut pieces = Vec::with_capacity(copies.len() + 1);
    let mut phase = 0;
    for copy in copies {
        phase = best_phase(copy, base, new, phase);
        divide(copy, base, new, phase, &mut pieces);
    }
    let mut at = 0;
    let mut operations: Vec<Operation> = pieces
        .into_iter()
        .map(|(copy, phase)| {
            let literals = copy.new - at;
            at = copy.new + copy.len;
            Operation { literals, copied: copy.len, base: copy.base, phase }
        })
        .collect();
    if at < new.len() {
        operations.push(Operation { literals: new.len() - at, ..Operation::default() });
    }
    operations
}

/// Divides a copy whose words begin at `phase` into what is changed and what is as it is, at borders
/// of words.
fn divide(copy: &Copy, base: &[u8], new: &[u8], phase: usize, pieces: &mut Vec<(Copy, usize)>) {
    let (old, new) = (&base[copy.base..copy.base + copy.len], &new[copy.new..][..copy.len]);
    let mut push = |from: usize, to: usize, phase: usize| {
        if from < to {
            let piece = Copy { new: copy.new + from, base: copy.base + from, len: to - from };
            pieces.push((piece, phase));
        }
    };
    let (mut at, mut start) = (0, 0);
    while at < copy.len {
        let end = at + equal_bytes(&old[at..], &new[at..]);
        let whole = |at: usize| (copy.new + at + WORD_BYTES - phase).is_multiple_of(WORD_BYTES);
        let first = (at..end).find(|at| whole(*at)).unwrap_or(end);
        let last = if end == copy.len {
            end
        } else {
            (first..end).rfind(|at| whole(*at)).unwrap_or(first)
        };
        if last - first >= AS_IS_BYTES_MIN {
            push(start, first, phase);
            push(first, last, AS_IS);
            start = last;
        }
        at = end + 1;
    }
    push(start, copy.len, phase);
}

/// Where words begin (modulo 4) so that the fewest of a copy are changed; that of the copy before
/// where it is no worse.
fn best_phase(copy: &Copy, base: &[u8], new: &[u8], before: usize) -> usize {
    let (base, new) = (&base[copy.base..copy.base + copy.len], &new[copy.new..][..copy.len]);
    // For each phase, the last changed word and how many there are.
    let mut changed = [(usize::MAX, 0usize); WORD_BYTES];
    let mut at = 0;
    loop {
        at += equal_bytes(&base[at..], &new[at..]);
        if at >= copy.len {
            break;
        }
        for (phase, (last, count)) in changed.iter_mut().enumerate() {
            let word = (copy.new + at + WORD_BYTES - phase) / WORD_BYTES;
            *count += usize::from(*last != word);
            *last = word;
        }
        at += 1;
    }
    let phases = 0..WORD_BYTES;
    phases.min_by_key(|phase| (changed[*phase].1, *phase != before)).unwrap_or(before)
}

#[cfg(test)]
mod tests {
    use super::super::noise;
    use super::*;
    use distd_core::frame::{FrameDecoder, FrameEncoder, FrameEntry};
    use distd_core::unit::{Bin, BlockIndex, BlockRange, ByteRange};
    use proptest::prelude::*;

    const BIN: Bin = Bin::new(6, 1000);

    /// What a frame of the copies decodes to, and its length.
    fn decoded(copies: &[Copy], base: &[u8], new: &[u8]) -> (Vec<u8>, usize) {
        let operations = operations(copies, base, new);
        let frame =
            FrameEncoder::new().delta(BIN, &operations, new, base, 3).expect("within bounds");
        let range = ByteRange { offset: 1 << 30, len: frame.len() as u64 };
        let bases = vec![BlockRange::new(BlockIndex(1), base.len() as u64 / 4096)];
        let entry = FrameEntry { bin: BIN, range, bases };
        (FrameDecoder::new().decode(&entry, &frame, base).expect("sound"), frame.len())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn any_copies_and_changes_are_decoded_as_they_were(
            pieces in proptest::collection::vec((0usize..60_000, 0usize..5000, 0usize..20), 1..30),
            edits in proptest::collection::vec((0usize..1 << 16, any::<u32>(), 0u32..32, 1usize..40), 0..200),
        ) {
            let mut base = noise(1, 1 << 16);
            base[20_000..30_000].fill(0);
            let (mut new, mut copies) = (Vec::new(), Vec::new());
            for (from, len, literal) in pieces {
                new.extend(noise(from as u64, literal));
                let len = len.min((1 << 16) - new.len().min(1 << 16));
                if len > 0 {
                    copies.push(Copy { new: new.len(), base: from, len });
                    new.extend_from_slice(&base[from..from + len]);
                }
            }
            new.resize(1 << 16, 7);
            for (at, value, shift, times) in edits {
                for row in 0..times {
                    let Some(word) = new.get_mut(at + row * 24..).and_then(|new| new.first_chunk_mut()) else { break };
                    *word = u32::from_le_bytes(*word).wrapping_add(value >> shift).to_le_bytes();
                }
            }
            prop_assert!(decoded(&copies, &base, &new).0 == new);
        }
    }

    #[test]
    fn renumbered_symbols_and_moved_addresses_cost_almost_nothing() {
        let random = noise(5, 4 * 3000);
        let table = |moved: u32, renumber: fn(u32) -> u32| -> Vec<u8> {
            let mut address = 0x1000;
            let rows = random.as_chunks::<4>().0.iter().enumerate();
            let mut bytes: Vec<u8> = rows
                .flat_map(|(row, random)| {
                    address += 1 + u32::from(random[0] & 63);
                    let symbol = renumber(u32::from(random[1] % 50));
                    let numbers = [row as u32 * 4, 0, 2, symbol, address + moved, 0];
                    numbers.map(u32::to_le_bytes).concat()
                })
                .take(1 << 16)
                .collect();
            bytes.resize(1 << 16, 0);
            bytes
        };
        let base = table(0, |symbol| symbol * 7 + 600);
        let new = table(0x288, |symbol| symbol * 11 % 53 + 700);
        let copies = [Copy { new: 0, base: 0, len: 1 << 16 }];
        let (made, len) = decoded(&copies, &base, &new);
        assert!(made == new);
        assert!(len < 300, "{len}");
    }

    #[test]
    fn jumps_across_what_was_inserted_cost_a_byte_or_two() {
        let base = noise(6, 1 << 16);
        let mut new = base.clone();
        // Distances in the second to fifth byte of each instruction, wherever it lies.
        for at in (100..65_000).step_by(211) {
            let distance = &mut new[at + 1..at + 5];
            let moved = u32::from_le_bytes(distance.try_into().expect("four")).wrapping_add(0x2f0);
            distance.copy_from_slice(&moved.to_le_bytes());
        }
        let copies = [Copy { new: 0, base: 0, len: 1 << 16 }];
        let (made, len) = decoded(&copies, &base, &new);
        assert!(made == new);
        assert!(len < 308 * 3, "{len}");
    }
}
