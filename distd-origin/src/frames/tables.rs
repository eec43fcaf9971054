//! Finding tables whose numbers moved, and what does not belong to a copy.
//!
//! In a table of relocations hardly a row is as it was: where something grew, every address behind it
//! moved by as much. Exact matches then lead to rows that have the right place in the table rather than
//! the right content. What stays is by how much one row's number is more than that of the row before:
//!
//! ```text
//! base   3d7e9  3d7f7  3d7fc  3d81b  3d829  3d836        + e  + 5  +1f  + e  + d
//! new           3d7f9  3d807  3d80c  3d82b  3d839  3d846      + e  + 5  +1f  + e  + d
//! ```
//!
//! Such differences of a column are the seeds here. A diagonal that they lead to is taken where most of
//! its words differ by nothing, or by as much as one of the last words.

use super::matching::{Copy, equal_bytes};

/// Bytes of a row: an ELF relocation or symbol of 64 bits, and a multiple of most others.
const ROW_BYTES: usize = 24;
/// Differences of a column that are a seed.
const SEED_ROWS: usize = 5;
/// Bytes of a seed.
const SEED_BYTES: usize = ROW_BYTES * SEED_ROWS + WORD;
/// Bytes by which the fit of diagonals is compared.
const WINDOW_BYTES: usize = ROW_BYTES * SEED_ROWS;
/// Bytes of a word.
const WORD: usize = 4;
/// Words before one that may differ by as much.
const RECENT_WORDS: usize = 6;
/// Odd words of a window from which on another diagonal is looked for.
const ODD_WORDS_MIN: usize = 3;
/// So many odd words fewer must another diagonal have, and no more than so many.
const BETTER_WORDS_MIN: usize = 3;
const ODD_WORDS_MAX: usize = 6;
/// Bytes that a diagonal is followed for with at most `ODD_WORDS_MIN` odd words.
const FOLLOWED_BYTES: usize = ROW_BYTES * 4;
/// Seeds of one hash that are tried. Measured on two kernel packages (change streams, CPU seconds of
/// all this): 4: 3.26 MB; 12: 3.25 MB, a fifth slower.
const CANDIDATES_MAX: usize = 4;
/// Differences above this are no steps from one row to the next.
const STEP_MAX: u32 = 1 << 27;
/// log2 of the seeds' slots.
const SLOT_BITS: u32 = 17;

/// Changed bytes in a row from which on they are a part of their own.
const NOISE_BYTES_MIN: usize = 48;
/// Bytes as in the base that end noise.
const QUIET_BYTES: usize = 6;

/// The seeds of one base. Kept between bases for its memory.
#[derive(Default)]
pub struct Columns {
    heads: Vec<u32>,
    next: Vec<u32>,
}

impl Columns {
    fn index(&mut self, base: &[u8]) {
        let count = base.len() / WORD;
        self.heads.clear();
        self.heads.resize(1 << SLOT_BITS, 0);
        self.next.clear();
        self.next.resize(count, 0);
        // From behind, so that the first of equal seeds is tried first.
        for position in (0..count).rev() {
            let Some(slot) = slot(base, position * WORD) else { continue };
            self.next[position] = self.heads[slot];
            self.heads[slot] = position as u32 + 1;
        }
    }

    /// The byte of the base that lies on the diagonal through `at` of `new` that fits best, with fewer
    /// than `odd` odd words, and how many it has. `followed`: what lies on the one followed so far.
    fn best(
        &self,
        base: &[u8],
        new: &[u8],
        at: usize,
        followed: Option<usize>,
        mut odd: usize,
    ) -> Option<(usize, usize)> {
        let mut best = None;
        // The base's seeds lie at every fourth byte, the column anywhere; but where a file was aligned
        // it still is.
        let (first, step) = match followed {
            Some(from) => (from.wrapping_neg() % WORD, WORD),
            None => (0, 1),
        };
        for offset in (first..ROW_BYTES).step_by(step) {
            let Some(slot) = slot(new, at + offset) else { continue };
            let mut candidate = self.heads[slot];
            for _ in 0..CANDIDATES_MAX {
                let Some(position) = candidate.checked_sub(1) else { break };
                candidate = self.next[position as usize];
                let Some(from) = (position as usize * WORD).checked_sub(offset) else { continue };
                let found = odd_words(base, new, (from, at), WINDOW_BYTES + ROW_BYTES, odd);
                if found < odd {
                    (best, odd) = (Some((from, found)), found);
                }
            }
        }
        best
    }
}

/// Lays what is explained badly onto diagonals that only shift numbers.
pub fn realign(columns: &mut Columns, copies: Vec<Copy>, base: &[u8], new: &[u8]) -> Vec<Copy> {
    let mut found: Vec<Copy> = Vec::new();
    let (mut at, mut next, mut indexed) = (0, 0, false);
    while at + WINDOW_BYTES + WORD <= new.len() {
        while copies.get(next).is_some_and(|copy| copy.new + copy.len <= at) {
            next += 1;
        }
        let copy = copies.get(next).filter(|copy| copy.new <= at);
        let followed = copy.map(|copy| copy.base + (at - copy.new));
        // Most of most releases is as it was.
        let equal = followed.map_or(0, |from| equal_bytes(&base[from..], &new[at..]));
        if equal >= WINDOW_BYTES {
            at += equal / WORD * WORD;
            continue;
        }
        let odd = followed.map_or(WINDOW_BYTES / WORD, |from| {
            odd_words(base, new, (from, at), WINDOW_BYTES, usize::MAX)
        });
        if odd < ODD_WORDS_MIN {
            at += if odd == 0 { WINDOW_BYTES / 2 } else { ROW_BYTES };
            continue;
        }
        if !std::mem::replace(&mut indexed, true) {
            columns.index(base);
        }
        let better = columns.best(base, new, at, followed, odd);
        let better =
            better.filter(|(_, left)| left + BETTER_WORDS_MIN <= odd && *left <= ODD_WORDS_MAX);
        let Some((from, _)) = better else {
            at += WINDOW_BYTES / 2;
            continue;
        };
        let floor = found.last().map_or(0, |last| last.new + last.len);
        let copy = follow(base, new, (from, at), floor);
        at = copy.new + copy.len;
        found.push(copy);
    }
    overlay(copies, found)
}

/// Follows a diagonal, (byte of the base, byte of the new content), both ways for as long as it fits;
/// not before `floor`.
fn follow(base: &[u8], new: &[u8], (from, at): (usize, usize), floor: usize) -> Copy {
    let fits = |bytes: usize| at + bytes <= new.len() && from + bytes <= base.len();
    let odd = |bytes: usize, len: usize| {
        odd_words(base, new, (from + bytes, at + bytes), len, usize::MAX)
    };
    let mut len = WINDOW_BYTES;
    while fits(len + ROW_BYTES) {
        let before = len.saturating_sub(FOLLOWED_BYTES - ROW_BYTES);
        if odd(before, len + ROW_BYTES - before) > ODD_WORDS_MIN {
            break;
        }
        len += ROW_BYTES;
    }
    while len > ROW_BYTES && odd(len - ROW_BYTES, ROW_BYTES) > 0 {
        len -= ROW_BYTES;
    }
    let mut back = 0;
    while at >= back + floor + ROW_BYTES && from >= back + ROW_BYTES {
        let start = back + ROW_BYTES;
        if odd_words(base, new, (from - start, at - start), ROW_BYTES, 2) > 1 {
            break;
        }
        back = start;
    }
    Copy { new: at - back, base: from - back, len: back + len }
}

/// Words of a window that differ from the base by neither nothing nor as much as a recent word; stops
/// counting at `max`. What lies beyond either end counts.
fn odd_words(base: &[u8], new: &[u8], (from, at): (usize, usize), len: usize, max: usize) -> usize {
    let back = (RECENT_WORDS * WORD).min(from).min(at) / WORD * WORD;
    let old = base.get(from - back..).unwrap_or_default();
    let new = &new[at - back..];
    let words = old.as_chunks::<WORD>().0.iter().zip(new.as_chunks::<WORD>().0);
    let mut recent = [0u32; RECENT_WORDS + 1];
    let (mut odd, mut seen) = (0, 0);
    for (i, (old, new)) in words.take((back + len) / WORD).enumerate() {
        let added = u32::from_le_bytes(*new).wrapping_sub(u32::from_le_bytes(*old));
        if i >= back / WORD {
            seen += 1;
            odd += usize::from(!recent.contains(&added));
            if odd >= max {
                return odd;
            }
        }
        // The last of `recent` stays zero: nothing added is never odd.
        recent[i % RECENT_WORDS] = added;
    }
    odd + len / WORD - seen
}

/// The slot of the seed in the column that begins at a byte; `None` where there is none or the column
/// says nothing.
fn slot(bytes: &[u8], at: usize) -> Option<usize> {
    let column = bytes.get(at..)?.first_chunk::<SEED_BYTES>()?;
    let word = |row: usize| {
        let at = row * ROW_BYTES;
        u32::from_le_bytes([column[at], column[at + 1], column[at + 2], column[at + 3]])
    };
    // Most columns are constant or rise evenly, and lead nowhere.
    if word(1).wrapping_sub(word(0)) == word(2).wrapping_sub(word(1)) {
        return None;
    }
    let mut hash = 0u32;
    for row in 1..=SEED_ROWS {
        let step = word(row).wrapping_sub(word(row - 1));
        if step > STEP_MAX && step < STEP_MAX.wrapping_neg() {
            return None;
        }
        hash = (hash ^ step).wrapping_mul(0x9e37_79b1).rotate_left(13);
    }
    Some((hash.wrapping_mul(0x85eb_ca6b) >> (u32::BITS - SLOT_BITS)) as usize)
}

/// `copies`, but `found` where there is such a one.
fn overlay(copies: Vec<Copy>, found: Vec<Copy>) -> Vec<Copy> {
    if found.is_empty() {
        return copies;
    }
    let mut all = Vec::with_capacity(copies.len() + found.len());
    let mut over = found.iter().peekable();
    for mut copy in copies {
        while copy.len > 0 {
            while over.next_if(|over| over.new + over.len <= copy.new).is_some() {}
            let Some(over) = over.peek().filter(|over| over.new < copy.new + copy.len) else {
                all.push(copy);
                break;
            };
            if over.new > copy.new {
                all.push(Copy { len: over.new - copy.new, ..copy });
            }
            let covered = (over.new + over.len - copy.new).min(copy.len);
            copy = Copy {
                new: copy.new + covered,
                base: copy.base + covered,
                len: copy.len - covered,
            };
        }
    }
    all.extend(found);
    all.sort_unstable_by_key(|copy| copy.new);
    let mut joined: Vec<Copy> = Vec::with_capacity(all.len());
    for copy in all {
        match joined.last_mut() {
            Some(last) if last.new + last.len == copy.new && last.base + last.len == copy.base => {
                last.len += copy.len;
            }
            _ => joined.push(copy),
        }
    }
    joined
}

/// Takes out of copies what has hardly a byte in common with the base, such as signatures: it is no
/// number of which a part was changed.
pub fn without_noise(copies: &[Copy], base: &[u8], new: &[u8]) -> Vec<Copy> {
    let mut left = Vec::with_capacity(copies.len());
    for copy in copies {
        let pairs = new[copy.new..copy.new + copy.len].iter().zip(&base[copy.base..]);
        let (mut start, mut noise) = (0, Noise::default());
        let mut cut = |noise: &Noise| {
            if noise.is_long() {
                let len = noise.start - start;
                left.push(Copy { new: copy.new + start, base: copy.base + start, len });
                start = noise.end;
            }
        };
        for (at, (new, base)) in pairs.enumerate() {
            if new != base {
                noise.extend(at);
            } else if at >= noise.end + QUIET_BYTES {
                cut(&noise);
                noise = Noise { start: at + 1, end: at + 1, changed: 0 };
            }
        }
        cut(&noise);
        left.push(Copy { new: copy.new + start, base: copy.base + start, len: copy.len - start });
    }
    left.retain(|copy| copy.len > 0);
    left
}

/// Changed bytes, close to each other.
#[derive(Default)]
struct Noise {
    start: usize,
    end: usize,
    changed: usize,
}

impl Noise {
    fn extend(&mut self, at: usize) {
        if self.changed == 0 {
            self.start = at;
        }
        self.end = at + 1;
        self.changed += 1;
    }

    fn is_long(&self) -> bool {
        let len = self.end - self.start;
        self.changed > 0 && len >= NOISE_BYTES_MIN && self.changed * 10 >= len * 9
    }
}

#[cfg(test)]
mod tests {
    use super::super::noise;
    use super::*;
    use proptest::prelude::*;

    /// A table of relocations: where, of what kind, to which address.
    fn table(rows: u64, moved: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut address = 0x1000 + moved;
        for row in 0..rows {
            address += 1 + row * row * 7919 % 61;
            let info = 2 | 1 << 32;
            for number in [row * 4 + moved / 8, info, address] {
                bytes.extend(number.to_le_bytes());
            }
        }
        bytes
    }

    #[test]
    fn a_table_that_got_rows_is_followed_by_content() {
        let base = [noise(1, 1000), table(400, 0)].concat();
        let shifted = table(400, 0x20);
        let new = [&noise(2, 1001)[..], &noise(3, 240), &shifted].concat();
        // As exact matches have it: each row against the one that has its place.
        let wrong = Copy { new: 1241, base: 1000 + 24, len: 399 * 24 };
        let copies = realign(&mut Columns::default(), vec![wrong], &base, &new);
        let right: usize = copies
            .iter()
            .filter(|copy| copy.new + 1000 == copy.base + 1241)
            .map(|copy| copy.len)
            .sum();
        assert!(right >= 380 * 24, "{copies:?}");
    }

    #[test]
    fn a_signature_is_taken_out_of_its_copy() {
        let base = noise(1, 4000);
        let mut new = base.clone();
        new[1000..1512].copy_from_slice(&noise(2, 512));
        new[3000] ^= 1;
        let copy = Copy { new: 0, base: 0, len: 4000 };
        let left = without_noise(&[copy], &base, &new);
        assert_eq!(left.len(), 2, "{left:?}");
        assert!(left[0].len.abs_diff(1000) < 4 && left[1].new.abs_diff(1512) < 4, "{left:?}");
        assert_eq!(left[1].new + left[1].len, 4000);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn copies_stay_apart_and_within(
            pieces in proptest::collection::vec((0usize..9000, 24usize..3000, 0usize..60, 0u64..3), 1..6),
        ) {
            let base = [table(300, 0), noise(1, 2000), table(100, 8)].concat();
            let moved = [table(300, 16), noise(1, 2000), table(100, 80)].concat();
            let (mut new, mut copies) = (Vec::new(), Vec::new());
            for (i, (from, len, inserted, kind)) in pieces.into_iter().enumerate() {
                let end = (from + len).min(moved.len());
                new.extend(noise(2 + i as u64, inserted));
                if kind > 0 {
                    let shift = if kind == 2 { from.min(24) } else { 0 };
                    copies.push(Copy { new: new.len(), base: from - shift, len: end - from });
                }
                new.extend_from_slice(&moved[from..end]);
            }
            let before: usize = copies.iter().map(|copy| copy.len).sum();
            let after = realign(&mut Columns::default(), copies, &base, &new);
            let quiet = without_noise(&after, &base, &new);
            for copies in [&after, &quiet] {
                for pair in copies.windows(2) {
                    prop_assert!(pair[0].new + pair[0].len <= pair[1].new);
                }
                for copy in copies {
                    prop_assert!(copy.len > 0 && copy.new + copy.len <= new.len());
                    prop_assert!(copy.base + copy.len <= base.len());
                }
            }
            prop_assert!(after.iter().map(|copy| copy.len).sum::<usize>() >= before);
        }
    }
}
