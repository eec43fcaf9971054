//! The words of a copy: guessing what is added to a number of the base, and coding where that is wrong.
//!
//! Copied bytes are taken as little-endian numbers of four bytes. A new release changes many of them
//! in tables (relocations, symbols, types), and hardly any two by chance: where what lies before a
//! number's target moved, it mostly moved by as much as another one:
//!
//! ```text
//! base   [0x3d7e9 | 2, 4 | 0x1e3b]   [0x3d7f7 | 2, 4 | 0x1cb5]   [0x3d7fc | 4, 4 | 0x1e3b]
//! added    +0x10           +2          +0x10           +2          +0x10           +2
//!                                      ^ as in the row before                      ^ as for 0x1e3b before
//! ```
//!
//! There are five guesses: what was added to this number where it was last seen, to the last number
//! that differs from it in the lowest 6 bits only, to the last one in this column of a table of
//! 24-byte rows, to the last number that differs in the lowest 12 bits, and nothing. The guess that
//! was right most often lately in the column, where they disagreed, comes first; where it is wrong, the
//! others; where all are, what is added is coded as a number of so many bytes, one of the last eight
//! such or a new one. Machine code has many of these: one that was inserted moves all jumps across it.
//!
//! Publisher and decoder run the same model, so all of it is part of the format.

#![expect(
    clippy::inline_always,
    reason = "every word passes all of this: calls would be half of the time"
)]

use super::coder::{Chance, Coder, Numbers, tree};

/// Bytes of a word.
pub const WORD_BYTES: usize = 4;
/// Instead of where words begin in a copy (modulo 4): nowhere, it is taken as it is.
pub const AS_IS: usize = WORD_BYTES;
/// Bytes of a piece of a copy that is told to be as its base by one decision.
const STILL_BYTES: usize = 64;
/// Words of a row: tables of 4, 8, 12 and 24 bytes a row have the same columns in each.
const COLUMNS: usize = 6;
/// Guesses about one word.
const GUESSES: usize = 5;
/// Bits of a number that those close to it may differ in.
const CLOSE_BITS: u32 = 6;
/// Bits of a number that those farther away may differ in.
const WIDE_BITS: u32 = 12;
/// Numbers below this have nothing in common with those close to them.
const NUMBER_MIN: u32 = 256;
/// What a right guess adds to its score, which loses a sixteenth each time.
const SCORE: u32 = 256;
/// A score from which on its guess is trusted.
const TRUSTED: u32 = 1025;

/// Kinds of trust in what tables say: none, by how often the first was right, or the second.
const TRUSTS: usize = 8;
/// Contexts of what comes first where no guess says that anything is added, and for zeros.
const QUIET: usize = 1 << 5;
const FIRSTS: usize = QUIET + (TRUSTS << 5) + (GUESSES << 10);

/// Additions that were told.
const RECENT: usize = 8;
/// Bits that tell one of them, or that it is another.
const RECENT_BITS: u32 = 4;
/// Sizes of words, by their bits: 0, 1 to 4, ... 29 to 32.
const SIZES: usize = 9;

/// What was added to the words of one frame so far, and how likely what is.
pub(super) struct Words {
    same: Table<{ 1 << 14 }>,
    close: Table<{ 1 << 13 }>,
    wide: Table<{ 1 << 13 }>,
    columns: [Column; COLUMNS],
    /// Whether the last words were as guessed first: a bit for each, 1 for wrong.
    wrong: usize,
    /// Whether anything was added in the last pieces of a copy: a bit for each.
    moved: usize,
    still: [Chance; 1 << 5],
    first: Vec<Chance>,
    other: Box<[[[[Chance; GUESSES]; GUESSES]; TRUSTS]; GUESSES]>,
    added: Added,
    part: [[Chance; 4]; WORD_BYTES],
    parts: Numbers<WORD_BYTES>,
}

/// What is known of the words of one column.
#[derive(Clone, Copy, Default)]
struct Column {
    /// What was added to the last one.
    last: u32,
    scores: [u32; GUESSES],
    /// As [`Words::wrong`].
    wrong: usize,
}

/// What may have been added to one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Guesses {
    /// The others than those there are, are 0.
    options: [u32; GUESSES],
    /// Which of them there are: a bit for each.
    known: u32,
    /// How much trust there is in the tables.
    trust: usize,
}

impl Default for Words {
    fn default() -> Self {
        Self {
            same: Table::default(),
            close: Table::default(),
            wide: Table::default(),
            columns: [Column::default(); COLUMNS],
            wrong: 0,
            moved: 0,
            still: [Chance::NEW; 1 << 5],
            first: vec![Chance::NEW; FIRSTS],
            other: Box::new([[[[Chance::NEW; GUESSES]; GUESSES]; TRUSTS]; GUESSES]),
            added: Added::default(),
            part: [[Chance::NEW; 4]; WORD_BYTES],
            parts: Numbers::default(),
        }
    }
}

impl Words {
    /// Forgets everything: each frame begins anew.
    pub(super) fn clear(&mut self) {
        self.same.clear();
        self.close.clear();
        self.wide.clear();
        self.columns = [Column::default(); COLUMNS];
        self.wrong = 0;
        self.moved = 0;
        self.still = [Chance::NEW; 1 << 5];
        self.first.fill(Chance::NEW);
        self.other.as_flattened_mut().as_flattened_mut().as_flattened_mut().fill(Chance::NEW);
        self.added.clear();
        self.part = [[Chance::NEW; 4]; WORD_BYTES];
        self.parts.clear();
    }

    /// Codes a copy of `base` to byte `at` of the run, where words begin at bytes that are `phase` modulo
    /// 4. `new` holds what it becomes, for a coder that is told; afterwards it does in any case.
    pub(super) fn code<C: Coder>(
        &mut self,
        coder: &mut C,
        at: usize,
        phase: usize,
        base: &[u8],
        new: &mut [u8],
    ) {
        // What is not taken as it is begins with a change, most likely.
        self.wrong = usize::MAX;
        self.moved = usize::MAX;
        let head = match unit_bytes(at, at + new.len(), phase) {
            WORD_BYTES => 0,
            part => part,
        };
        let (base_head, base) = base.split_at(head);
        let (new_head, new) = new.split_at_mut(head);
        self.code_part(coder, base_head, new_head);
        let whole = base.len() / WORD_BYTES * WORD_BYTES;
        let (base, base_tail) = base.split_at(whole);
        let (new, new_tail) = new.split_at_mut(whole);
        let mut column = (at + head) / WORD_BYTES % COLUMNS;
        for (base, new) in base.chunks(STILL_BYTES).zip(new.chunks_mut(STILL_BYTES)) {
            if base.len() == STILL_BYTES {
                let context = self.moved & 7 | (self.wrong & 3) << 3;
                let moved = coder.bit(&mut self.still[context], base != new);
                self.moved = self.moved << 1 | usize::from(moved);
                if !moved {
                    new.copy_from_slice(base);
                    column = (column + STILL_BYTES / WORD_BYTES) % COLUMNS;
                    continue;
                }
            }
            let words = base.as_chunks::<WORD_BYTES>().0.iter();
            for (word, new) in words.zip(new.as_chunks_mut::<WORD_BYTES>().0) {
                let word = u32::from_le_bytes(*word);
                let told = u32::from_le_bytes(*new).wrapping_sub(word);
                let added = self.code_word(coder, word, column, told);
                *new = word.wrapping_add(added).to_le_bytes();
                column = if column + 1 == COLUMNS { 0 } else { column + 1 };
            }
        }
        self.code_part(coder, base_tail, new_tail);
    }

    /// Codes what is shorter than a word: a number of its own.
    fn code_part<C: Coder>(&mut self, coder: &mut C, base: &[u8], new: &mut [u8]) {
        if new.is_empty() {
            return;
        }
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, byte| n << 8 | u32::from(*byte));
        let (bytes, mask) = (new.len(), (1 << (8 * new.len())) - 1);
        let mut added = number(new).wrapping_sub(number(base)) & mask;
        let changed = coder.bit(&mut self.part[bytes][self.wrong & 3], added != 0);
        self.wrong = self.wrong << 1 | usize::from(changed);
        added = if changed {
            self.parts.code(coder, bytes, added.wrapping_sub(1)).wrapping_add(1)
        } else {
            0
        };
        let sum = number(base).wrapping_add(added).to_le_bytes();
        new.copy_from_slice(&sum[..bytes]);
    }

    /// What is added to `word`, of a column, to make a new one.
    #[inline(always)]
    fn code_word<C: Coder>(&mut self, coder: &mut C, word: u32, column: usize, told: u32) -> u32 {
        let guesses = self.guess(word, column);
        let state = &self.columns[column];
        let of_column = state.wrong & 3;
        let (best, context) = if word == 0 {
            (GUESSES - 1, self.wrong & 7 | of_column << 3)
        } else if !guesses.differ() {
            (GUESSES - 1, QUIET + (self.wrong & 7 | of_column << 3 | guesses.trust << 5))
        } else {
            let best = guesses.best(&state.scores);
            let trusted = usize::from(state.scores[best] >= TRUSTED);
            let seen = self.wrong & 3 | of_column << 2 | guesses.agreeing(best) << 4 | trusted << 6;
            (best, QUIET + (TRUSTS << 5) + (seen | guesses.trust << 7 | best << 10))
        };
        let added = guesses.options[best];
        let wrong = coder.bit(&mut self.first[context], told != added);
        let added = if wrong { self.code_other(coder, word, &guesses, best, told) } else { added };
        self.wrong = self.wrong << 1 | usize::from(wrong);
        self.learn(word, column, &guesses, added, wrong);
        added
    }

    /// What may be added to `word`. Zeros are everywhere and have nothing to do with each other.
    #[inline(always)]
    fn guess(&self, word: u32, column: usize) -> Guesses {
        let number = word >= NUMBER_MIN;
        let same = self.same.find(word, word != 0);
        let close = self.close.find(word >> CLOSE_BITS, number);
        let wide = self.wide.find(word >> WIDE_BITS, number);
        let last = self.columns[column].last & mask(word != 0);
        // Whether a table knows a word is as good as chance: no branches on it.
        let by_close = (5 + close.times.min(1)) & mask(close.known);
        let trust = (1 + same.times) & mask(same.known) | by_close & mask(!same.known);
        let known = u32::from(same.known)
            | u32::from(close.known) << 1
            | u32::from(word != 0) << 2
            | u32::from(wide.known) << 3
            | 1 << 4;
        Guesses {
            options: [same.added, close.added, last, wide.added, 0],
            known,
            trust: trust as usize,
        }
    }

    /// What is added where the first guess is wrong.
    #[inline(never)]
    fn code_other<C: Coder>(
        &mut self,
        coder: &mut C,
        word: u32,
        guesses: &Guesses,
        best: usize,
        told: u32,
    ) -> u32 {
        let mut tried = [guesses.options[best]; GUESSES];
        let mut count = 0;
        for (i, option) in guesses.options.iter().enumerate() {
            if guesses.known >> i & 1 == 0 || tried.contains(option) {
                continue;
            }
            let chance = &mut self.other[count][guesses.trust][best][i];
            if coder.bit(chance, told == *option) {
                return *option;
            }
            tried[count] = *option;
            count += 1;
        }
        self.added.code(coder, word, told)
    }

    /// Remembers what was `added` to a word about which these were the guesses.
    #[inline(always)]
    fn learn(&mut self, word: u32, column: usize, guesses: &Guesses, added: u32, wrong: bool) {
        let column = &mut self.columns[column];
        column.last = added;
        column.wrong = column.wrong << 1 | usize::from(wrong);
        if word == 0 {
            return;
        }
        self.same.put(word, added);
        self.close.put(word >> CLOSE_BITS, added);
        self.wide.put(word >> WIDE_BITS, added);
        // Where all say the same, being right is no merit.
        if added == 0 && !guesses.differ() {
            return;
        }
        for (i, (score, option)) in column.scores.iter_mut().zip(guesses.options).enumerate() {
            let right = if option == added { SCORE } else { 0 };
            let now = *score - (*score >> 4) + right;
            *score = if guesses.known >> i & 1 == 1 { now } else { *score };
        }
    }
}

impl Guesses {
    /// Whether one of them says that anything is added.
    #[inline(always)]
    fn differ(&self) -> bool {
        let [same, close, last, wide, _] = self.options;
        same | close | last | wide != 0
    }

    /// The one with the highest score, the first of equal ones.
    #[inline(always)]
    fn best(&self, scores: &[u32; GUESSES]) -> usize {
        let mut best = (0, 0);
        for (i, score) in scores.iter().enumerate() {
            // The score above the rest, so that the first of equal ones ranks higher.
            let rank = (score << 3 | (GUESSES - i) as u32) * (self.known >> i & 1);
            best = if rank > best.0 { (rank, i) } else { best };
        }
        best.1
    }

    /// How many others say the same as the best one, at most three.
    #[inline(always)]
    fn agreeing(&self, best: usize) -> usize {
        let added = self.options[best];
        let same = self.options.iter().enumerate();
        let same = same.map(|(i, option)| u32::from(*option == added) & self.known >> i);
        (same.map(|same| same & 1).sum::<u32>() - 1).min(3) as usize
    }
}

/// What is added where no guess is right: a signed number, so many bytes up.
struct Added {
    recent: [u32; RECENT],
    /// Whether the last was one of them.
    was_recent: usize,
    /// How many bytes up the last one was.
    up: usize,
    ups: [[[Chance; WORD_BYTES]; WORD_BYTES]; SIZES],
    which: [[[Chance; 1 << RECENT_BITS]; 2]; WORD_BYTES],
    signs: [Chance; WORD_BYTES],
    numbers: Numbers<{ WORD_BYTES * SIZES }>,
}

impl Default for Added {
    fn default() -> Self {
        Self {
            recent: [0; RECENT],
            was_recent: 0,
            up: 0,
            ups: [[[Chance::NEW; WORD_BYTES]; WORD_BYTES]; SIZES],
            which: [[[Chance::NEW; 1 << RECENT_BITS]; 2]; WORD_BYTES],
            signs: [Chance::NEW; WORD_BYTES],
            numbers: Numbers::default(),
        }
    }
}

impl Added {
    fn clear(&mut self) {
        self.recent = [0; RECENT];
        (self.was_recent, self.up) = (0, 0);
        self.ups = [[[Chance::NEW; WORD_BYTES]; WORD_BYTES]; SIZES];
        self.which = [[[Chance::NEW; 1 << RECENT_BITS]; 2]; WORD_BYTES];
        self.signs = [Chance::NEW; WORD_BYTES];
        self.numbers.clear();
    }

    fn code<C: Coder>(&mut self, coder: &mut C, word: u32, told: u32) -> u32 {
        let size = (u32::BITS - word.leading_zeros()).div_ceil(4) as usize;
        // Nothing is a guess: what is told has a byte that is not zero.
        let up = (told.trailing_zeros() / 8).min(3);
        let up = tree(coder, &mut self.ups[size][self.up], 2, up) as usize;
        self.up = up;
        let told = (told as i32 >> (8 * up)) as u32;
        let known = self.recent.iter().position(|recent| *recent == told).unwrap_or(RECENT);
        let which = &mut self.which[up][self.was_recent];
        let known = tree(coder, which, RECENT_BITS, known as u32).min(RECENT as u32) as usize;
        self.was_recent = usize::from(known < RECENT);
        if known < RECENT {
            self.recent[..=known].rotate_right(1);
        } else {
            let negative = coder.bit(&mut self.signs[up], (told as i32) < 0);
            let far = (told as i32).unsigned_abs().wrapping_sub(1);
            let far = self.numbers.code(coder, up * SIZES + size, far).wrapping_add(1);
            self.recent.rotate_right(1);
            self.recent[0] = if negative { far.wrapping_neg() } else { far };
        }
        self.recent[0] << (8 * up)
    }
}

/// All ones if it is so.
#[inline(always)]
fn mask(so: bool) -> u32 {
    u32::from(so).wrapping_neg()
}

/// Bytes of what begins at byte `at` of the run in a copy that ends at `end`, where words begin at
/// bytes that are `phase` modulo 4: a word, or what is left of one at either end.
fn unit_bytes(at: usize, end: usize, phase: usize) -> usize {
    let next = WORD_BYTES - (at + WORD_BYTES - phase % WORD_BYTES) % WORD_BYTES;
    next.min(end - at)
}

/// The last entry for each of so many slots: what was added (the lower half), and for what: one bit that
/// there is such an entry, those of the key's hash that the slot does not say, and in the lowest two how
/// often it was added again since. All is zero for none.
struct Table<const SLOTS: usize>(Box<[u64; SLOTS]>);

/// What a table has for a key.
struct Found {
    known: bool,
    /// 0 if not known.
    added: u32,
    times: u32,
}

impl<const SLOTS: usize> Default for Table<SLOTS> {
    fn default() -> Self {
        Self(Box::new([0; SLOTS]))
    }
}

impl<const SLOTS: usize> Table<SLOTS> {
    const BITS: u32 = SLOTS.ilog2();

    fn clear(&mut self) {
        self.0.fill(0);
    }

    /// Where a key lies, and what its entry says about it apart from the times. No two keys have both in
    /// common: multiplying by an odd number can be undone.
    #[inline(always)]
    fn place(key: u32) -> (usize, u32) {
        let hash = key.wrapping_mul(0x9e37_79b1);
        let rest = hash & (u32::MAX >> Self::BITS) | 1 << (u32::BITS - Self::BITS);
        ((hash >> (u32::BITS - Self::BITS)) as usize, rest << 2)
    }

    #[inline(always)]
    fn find(&self, key: u32, wanted: bool) -> Found {
        let (slot, about) = Self::place(key);
        let entry = self.0[slot];
        #[expect(clippy::needless_bitwise_bool, reason = "no branch: neither can be foreseen")]
        let known = wanted & ((entry >> 32) as u32 & !3 == about);
        Found { known, added: entry as u32 & mask(known), times: (entry >> 32) as u32 & 3 }
    }

    #[inline(always)]
    fn put(&mut self, key: u32, added: u32) {
        let (slot, about) = Self::place(key);
        let entry = self.0[slot];
        let times = (entry >> 32) as u32 & 3;
        let now = u64::from(about) << 32 | u64::from(added);
        let again = entry & !(3 << 32) == now;
        let times = (times + 1).min(3) & mask(again);
        self.0[slot] = now | u64::from(times) << 32;
    }
}

#[cfg(test)]
mod tests {
    use super::super::coder::{RangeDecoder, RangeEncoder};
    use super::*;
    use proptest::prelude::*;

    /// The plain reference: all that was learned, looked through from behind.
    #[derive(Default)]
    struct Memory(Vec<(u32, usize, Guesses, u32)>);

    impl Memory {
        /// What was added last in the slot, if to the same, and how often in a row before that.
        fn find<const SLOTS: usize>(&self, shift: u32, word: u32) -> Option<(u32, usize)> {
            let slot = |word: u32| Table::<SLOTS>::place(word >> shift).0;
            let seen = self.0.iter().rev().filter(|(seen, ..)| *seen != 0);
            let mut seen = seen.filter(|(seen, ..)| slot(*seen) == slot(word));
            let (found, .., added) = seen.next()?;
            let again = |(seen, .., now): &&(u32, usize, Guesses, u32)| {
                seen >> shift == found >> shift && now == added
            };
            let times = seen.take_while(again).count().min(3);
            (found >> shift == word >> shift).then_some((*added, times))
        }

        fn guess(&self, word: u32, column: usize) -> Guesses {
            if word == 0 {
                return Guesses { options: [0; 5], known: 1 << 4, trust: 0 };
            }
            let number = |found: Option<(u32, usize)>| found.filter(|_| word >= 256);
            let same = self.find::<{ 1 << 14 }>(0, word);
            let close = number(self.find::<{ 1 << 13 }>(6, word));
            let wide = number(self.find::<{ 1 << 13 }>(12, word));
            let last = self.0.iter().rev().find(|(_, seen, ..)| *seen == column);
            let last = Some((last.map_or(0, |(.., added)| *added), 0));
            let options = [same, close, last, wide, Some((0, 0))];
            let known = options.iter().enumerate().map(|(i, o)| u32::from(o.is_some()) << i);
            let trust = match (same, close) {
                (Some((_, times)), _) => 1 + times,
                (None, Some((_, times))) => 5 + times.min(1),
                (None, None) => 0,
            };
            Guesses {
                options: options.map(|option| option.map_or(0, |(added, _)| added)),
                known: known.sum(),
                trust,
            }
        }

        fn best(&self, column: usize, now: &Guesses) -> usize {
            let mut best: Option<(usize, u32)> = None;
            for i in 0..GUESSES {
                let mut score = 0;
                for (word, seen, guesses, added) in &self.0 {
                    let undisputed = *added == 0 && guesses.options == [0; 5];
                    if *word != 0 && *seen == column && guesses.known >> i & 1 == 1 && !undisputed {
                        score -= score / 16;
                        score += if guesses.options[i] == *added { 256 } else { 0 };
                    }
                }
                if now.known >> i & 1 == 1 && best.is_none_or(|(_, best)| score > best) {
                    best = Some((i, score));
                }
            }
            best.expect("nothing is always an option").0
        }
    }

    /// Codes a copy and reads it again; the bytes that it took.
    fn round(at: usize, phase: usize, base: &[u8], new: &[u8]) -> usize {
        let mut encoder = RangeEncoder::new();
        let mut told = new.to_vec();
        let mut words = Words::default();
        words.code(&mut encoder, at, phase, base, &mut told);
        assert!(told == new);
        let bytes = encoder.finish();
        let mut decoder = RangeDecoder::new(&bytes);
        let mut read = vec![0; new.len()];
        words.clear();
        words.code(&mut decoder, at, phase, base, &mut read);
        assert!(read == new && decoder.is_at_end());
        bytes.len()
    }

    proptest! {
        #[test]
        fn guesses_are_those_of_a_plain_search(
            seen in proptest::collection::vec((0u32..40, 0u32..24, 0usize..COLUMNS, 0u32..4), 1..150),
        ) {
            let (mut words, mut memory) = (Words::default(), Memory::default());
            for (word, shift, column, added) in seen {
                let word = word << shift;
                let guesses = words.guess(word, column);
                prop_assert_eq!(guesses, memory.guess(word, column));
                let best = guesses.best(&words.columns[column].scores);
                prop_assert_eq!(best, memory.best(column, &guesses));
                words.learn(word, column, &guesses, added, false);
                memory.0.push((word, column, guesses, added));
            }
        }

        #[test]
        fn any_copy_becomes_what_it_was(
            at in 0usize..50,
            phase in 0usize..4,
            base in proptest::collection::vec((any::<u32>(), 0u32..32), 0..300),
            added in proptest::collection::vec((any::<u32>(), 0u32..40, 0u32..32, 0usize..4), 1..40),
            cut in 0usize..4,
        ) {
            let numbers = base.iter().map(|(word, shift)| word >> shift);
            let changed = numbers.clone().zip(added.iter().cycle()).map(|(word, (by, shift, up, how))| {
                // Often nothing, or as much as before.
                let by = by.checked_shr(*shift).unwrap_or(0) << up;
                word.wrapping_add(by * u32::from(*how > 1))
            });
            let base: Vec<u8> = numbers.flat_map(u32::to_le_bytes).collect();
            let new: Vec<u8> = changed.flat_map(u32::to_le_bytes).collect();
            let end = base.len().saturating_sub(cut);
            round(at, phase, &base[..end], &new[..end]);
        }

        #[test]
        fn units_cover_a_copy_without_gaps(start in 0usize..50, len in 0usize..50, phase in 0usize..4) {
            let (mut at, end) = (start, start + len);
            while at < end {
                let unit = unit_bytes(at, end, phase);
                prop_assert!((1..=WORD_BYTES).contains(&unit));
                prop_assert!(at == start || at % WORD_BYTES == phase);
                prop_assert!(at + unit == end || (at + unit) % WORD_BYTES == phase);
                at += unit;
            }
            prop_assert_eq!(at, end);
        }
    }

    #[test]
    fn a_shift_of_a_table_costs_next_to_nothing() {
        let table = |shift: u32, moved: u32| -> Vec<u8> {
            let rows = (0..1000u32).map(|row| {
                [
                    row * 0x1234,
                    0,
                    2,
                    4 + row % 3,
                    0x5000 + row * 24 + moved,
                    shift * u32::from(row > 500),
                ]
            });
            rows.flatten().flat_map(u32::to_le_bytes).collect()
        };
        let len = round(0, 0, &table(0, 0), &table(0, 0x288));
        assert!(len < 60, "{len}");
        assert!(round(0, 0, &table(0, 0), &table(0, 0)) < 30);
    }
}
