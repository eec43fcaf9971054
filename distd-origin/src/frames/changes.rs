//! The streams of a delta frame, from its copies: byte by byte, or word by word where guesses are
//! better.

use distd_core::frame::{
    AS_IS, ChangedUnits, DeltaStreams, Guesses, WORD_BYTES, Words, add_carrying, unit_bytes,
};

use super::matching::{Copy, equal_bytes};

/// So many bytes without a change are a copy of their own, in which nothing is guessed: that is most of
/// what decoding takes.
const AS_IS_BYTES_MIN: usize = 1024;

/// Streams that change single bytes.
pub fn byte_streams(copies: &[Copy], base: &[u8], new: &[u8]) -> DeltaStreams {
    let mut streams = operations(copies, new, |streams, literal, copied, distance| {
        streams.push(literal, copied, distance);
    });
    let plain = changed_bytes(copies, base, new, ChangedUnits::Bytes);
    let carrying = changed_bytes(copies, base, new, ChangedUnits::Carrying);
    // Fewer changes are the better proxy than compressing both.
    let best = if carrying.values.len() < plain.values.len() { carrying } else { plain };
    (streams.gaps, streams.values, streams.units) = (best.gaps, best.values, best.units);
    streams
}

/// Streams that change words where they are not what is guessed.
pub fn word_streams(words: &mut Words, copies: &[Copy], base: &[u8], new: &[u8]) -> DeltaStreams {
    let mut pieces = Vec::with_capacity(copies.len());
    let mut phase = 0;
    for copy in copies {
        phase = best_phase(copy, base, new, phase);
        divide(copy, base, new, phase, &mut pieces);
    }
    let copies: Vec<Copy> = pieces.iter().map(|(copy, _)| *copy).collect();
    let mut phases = pieces.iter().map(|(_, phase)| *phase as u8);
    let mut streams = operations(&copies, new, |streams, literal, copied, distance| {
        // What is not copied has no words either.
        let phase = phases.next().unwrap_or_default();
        streams.push_words(literal, copied, distance, phase);
    });
    streams.units = ChangedUnits::Words;
    words.clear();
    // Words guessed since the last change.
    let mut gap = 0;
    for (copy, phase) in pieces.iter().filter(|(_, phase)| *phase != AS_IS) {
        let (mut at, end) = (copy.new, copy.new + copy.len);
        while at < end {
            let unit = unit_bytes(at, end, *phase);
            let word = number(&base[copy.base + (at - copy.new)..][..unit]);
            let added = number(&new[at..at + unit]).wrapping_sub(word);
            let whole = unit == WORD_BYTES;
            let guesses = if whole { words.guess(word, at) } else { Guesses::NOTHING };
            if guesses.best == added {
                gap += 1;
            } else {
                streams.change_word(gap, guesses.value(added));
                gap = 0;
            }
            if whole {
                words.learn(word, at, &guesses, added);
            }
            at += unit;
        }
    }
    streams
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

/// Control and literals, each operation as `push` writes it: (streams, literal bytes, copied bytes,
/// distance).
fn operations(
    copies: &[Copy],
    new: &[u8],
    mut push: impl FnMut(&mut DeltaStreams, u64, u64, i64),
) -> DeltaStreams {
    let mut streams = DeltaStreams::default();
    let (mut at, mut base_at) = (0, 0);
    for copy in copies {
        streams.literals.extend_from_slice(&new[at..copy.new]);
        let distance = copy.base as i64 - base_at as i64;
        push(&mut streams, (copy.new - at) as u64, copy.len as u64, distance);
        at = copy.new + copy.len;
        base_at = copy.base + copy.len;
    }
    if at < new.len() {
        streams.literals.extend_from_slice(&new[at..]);
        push(&mut streams, (new.len() - at) as u64, 0, 0);
    }
    streams
}

/// Bytes that differ between the copies' bases and their new bytes.
fn changed_bytes(copies: &[Copy], base: &[u8], new: &[u8], units: ChangedUnits) -> DeltaStreams {
    let mut streams = DeltaStreams { units, ..DeltaStreams::default() };
    // Copied bytes behind the last change.
    let mut gap = 0;
    // What a decoder has made of a copy's base so far.
    let mut made = Vec::new();
    for copy in copies {
        let new = &new[copy.new..copy.new + copy.len];
        made.clear();
        made.extend_from_slice(&base[copy.base..copy.base + copy.len]);
        let mut at = 0;
        while at < made.len() {
            let equal = equal_bytes(&made[at..], &new[at..]);
            gap += equal as u64;
            at += equal;
            let Some(byte) = made.get(at) else { break };
            let value = new[at].wrapping_sub(*byte);
            streams.change(gap, value);
            gap = 0;
            if units == ChangedUnits::Carrying {
                add_carrying(&mut made[at..], value);
            }
            at += 1;
        }
    }
    streams
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

/// The little-endian number of up to four bytes.
fn number(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::super::noise;
    use super::*;
    use distd_core::frame::{FrameDecoder, FrameEntry, encode_delta};
    use distd_core::unit::{Bin, BlockIndex, BlockRange, ByteRange};
    use proptest::prelude::*;
    use zstd::zstd_safe::CCtx;

    const BIN: Bin = Bin::new(6, 1000);

    fn decoded(streams: &DeltaStreams, base: &[u8]) -> (Vec<u8>, usize) {
        let frame = encode_delta(&mut CCtx::create(), BIN, streams, None, 3);
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
            let by_words = word_streams(&mut Words::default(), &copies, &base, &new);
            let by_bytes = byte_streams(&copies, &base, &new);
            for streams in [by_words, by_bytes] {
                if streams.values.len() + streams.literals.len() <= 1 << 16 && streams.gaps.len() <= 1 << 16 {
                    prop_assert!(decoded(&streams, &base).0 == new);
                }
            }
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
        let (made, words) =
            decoded(&word_streams(&mut Words::default(), &copies, &base, &new), &base);
        assert!(made == new);
        let (made, bytes) = decoded(&byte_streams(&copies, &base, &new), &base);
        assert!(made == new);
        assert!(words < 600 && words * 3 < bytes, "{words} by words, {bytes} by bytes");
    }
}
