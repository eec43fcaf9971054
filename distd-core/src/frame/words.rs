//! Guessing what is added to a number of the base: where what lies before it moved, it mostly moved by
//! as much as another one.
//!
//! Copied bytes are taken as little-endian numbers of four bytes. A new release changes many of them
//! in tables (relocations, symbols, types), and hardly any two by chance:
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
//! was right most often lately in the column, where they disagreed, is taken; a frame says where it is
//! wrong.
//!
//! Publisher and decoder run the same model, so all of it is part of the format.

/// Bytes of a word.
pub const WORD_BYTES: usize = 4;
/// Instead of where words begin in a copy (modulo 4): nowhere, it is taken as it is.
pub const AS_IS: usize = WORD_BYTES;
/// Words of a row: tables of 4, 8, 12 and 24 bytes a row have the same columns in each.
const COLUMNS: usize = 6;
/// Guesses about one word.
const GUESSES: usize = 5;
/// The guess that what is not guessed is told relative to.
const CLOSE: usize = 1;
/// Bits of a number that those close to it may differ in.
const CLOSE_BITS: u32 = 6;
/// Bits of a number that those farther away may differ in.
const WIDE_BITS: u32 = 12;
/// Numbers below this have nothing in common with those close to them.
const NUMBER_MIN: u32 = 256;
/// What a right guess adds to its score, which loses a sixteenth each time.
const SCORE: u32 = 256;

/// What was added to the words of one frame so far.
pub struct Words {
    same: Table<14>,
    close: Table<13>,
    wide: Table<13>,
    /// What was added to the last word of each column.
    row: [u32; COLUMNS],
    scores: [[u32; GUESSES]; COLUMNS],
}

/// What may have been added to one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guesses {
    options: [u32; GUESSES],
    /// Which of them there are. The others are 0.
    known: [bool; GUESSES],
    /// The likeliest.
    pub best: u32,
}

impl Default for Words {
    fn default() -> Self {
        Self {
            same: Table::default(),
            close: Table::default(),
            wide: Table::default(),
            row: [0; COLUMNS],
            scores: [[0; GUESSES]; COLUMNS],
        }
    }
}

impl Words {
    /// Forgets everything: each frame begins anew.
    pub fn clear(&mut self) {
        self.same.clear();
        self.close.clear();
        self.wide.clear();
        self.row = [0; COLUMNS];
        self.scores = [[0; GUESSES]; COLUMNS];
    }

    /// What may be added to `word` of the base to make that at byte `at` of the run. Zeros are
    /// everywhere and have nothing to do with each other.
    #[inline]
    pub fn guess(&self, word: u32, at: usize) -> Guesses {
        if word == 0 {
            return Guesses::NOTHING;
        }
        let column = column(at);
        let number = word >= NUMBER_MIN;
        let same = self.same.find(word);
        let close = self.close.find(word >> CLOSE_BITS).filter(|_| number);
        let wide = self.wide.find(word >> WIDE_BITS).filter(|_| number);
        let zero = |option: Option<u32>| option.unwrap_or(0);
        let options = [zero(same), zero(close), self.row[column], zero(wide), 0];
        let known = [same.is_some(), close.is_some(), true, wide.is_some(), true];
        let mut guesses = Guesses { options, known, best: 0 };
        if guesses.differ() {
            let scored = options.iter().zip(known).zip(self.scores[column]).enumerate();
            let mut best = (0, 0);
            for (i, ((option, known), score)) in scored {
                // The score above the rest, so that the first of equal ones ranks higher.
                let rank = (score << 3 | (GUESSES - i) as u32) * u32::from(known);
                best = if rank > best.0 { (rank, *option) } else { best };
            }
            guesses.best = best.1;
        }
        guesses
    }

    /// Remembers what was `added` to a word about which these were the guesses.
    #[inline]
    pub fn learn(&mut self, word: u32, at: usize, guesses: &Guesses, added: u32) {
        let column = column(at);
        self.row[column] = added;
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
        let known = guesses.options.iter().zip(&guesses.known);
        for (score, (option, known)) in self.scores[column].iter_mut().zip(known) {
            let right = if *option == added { SCORE } else { 0 };
            *score = if *known { *score - (*score >> 4) + right } else { *score };
        }
    }
}

impl Guesses {
    /// About zeros and about what is shorter than a word.
    pub const NOTHING: Self =
        Self { options: [0; GUESSES], known: [false, false, false, false, true], best: 0 };

    /// Whether one of them says that anything is added.
    fn differ(&self) -> bool {
        self.options.iter().fold(0, |any, option| any | option) != 0
    }

    fn option(&self, index: usize) -> Option<u32> {
        self.options.get(index).copied().filter(|_| self.known[index])
    }

    /// How a frame says that `added` was added: by the guess that is right, otherwise by how far it is
    /// from the close one.
    pub fn value(&self, added: u32) -> u64 {
        if let Some(right) = (0..GUESSES).find(|index| self.option(*index) == Some(added)) {
            return right as u64;
        }
        let far = added.wrapping_sub(self.options[CLOSE]) as i32;
        u64::from((far << 1 ^ far >> 31) as u32) + GUESSES as u64
    }

    /// What was added, by what the frame says; `None` if nothing can be meant by that.
    pub fn added(&self, value: u64) -> Option<u32> {
        let Some(far) = value.checked_sub(GUESSES as u64) else {
            return self.option(value as usize);
        };
        let far = u32::try_from(far).ok()?;
        let far = far >> 1 ^ (far & 1).wrapping_neg();
        Some(self.options[CLOSE].wrapping_add(far))
    }
}

/// Bytes of what begins at byte `at` of the run in a copy that ends at `end`, where words begin at
/// bytes that are `phase` modulo 4: a word, or what is left of one at either end.
pub fn unit_bytes(at: usize, end: usize, phase: usize) -> usize {
    let next = WORD_BYTES - (at + WORD_BYTES - phase % WORD_BYTES) % WORD_BYTES;
    next.min(end - at)
}

const fn column(at: usize) -> usize {
    at / WORD_BYTES % COLUMNS
}

/// The last entry for each hash of `BITS` bits: what was looked for, and what was added.
struct Table<const BITS: u32>(Vec<(u32, u32)>);

impl<const BITS: u32> Default for Table<BITS> {
    fn default() -> Self {
        Self(vec![(0, 0); 1 << BITS])
    }
}

impl<const BITS: u32> Table<BITS> {
    fn clear(&mut self) {
        self.0.fill((0, 0));
    }

    fn slot(key: u32) -> usize {
        (key.wrapping_mul(0x9e37_79b1) >> (u32::BITS - BITS)) as usize
    }

    fn find(&self, key: u32) -> Option<u32> {
        let (found, added) = self.0[Self::slot(key)];
        (found == key).then_some(added)
    }

    fn put(&mut self, key: u32, added: u32) {
        self.0[Self::slot(key)] = (key, added);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The plain reference: all that was learned, looked through from behind.
    #[derive(Default)]
    struct Memory(Vec<(u32, usize, Guesses, u32)>);

    impl Memory {
        fn find<const BITS: u32>(&self, shift: u32, word: u32) -> Option<u32> {
            let key = word >> shift;
            let slot = |word: u32| Table::<BITS>::slot(word >> shift);
            let last =
                self.0.iter().rev().find(|(seen, ..)| *seen != 0 && slot(*seen) == slot(word));
            // An empty slot says that nothing is added to zero.
            let (found, added) = last.map_or((0, 0), |(seen, .., added)| (seen >> shift, *added));
            (found == key).then_some(added)
        }

        fn guess(&self, word: u32, at: usize) -> Guesses {
            if word == 0 {
                return Guesses::NOTHING;
            }
            let in_column = |seen: usize| seen / 4 % 6 == at / 4 % 6;
            let row = self.0.iter().rev().find(|(_, seen, ..)| in_column(*seen));
            let number = |found: Option<u32>| found.filter(|_| word >= 256);
            let options = [
                self.find::<14>(0, word),
                number(self.find::<13>(6, word)),
                Some(row.map_or(0, |(.., added)| *added)),
                number(self.find::<13>(12, word)),
                Some(0),
            ];
            let mut best: Option<(u32, u32)> = None;
            for (i, option) in options.iter().enumerate() {
                let mut score = 0;
                for (word, seen, guesses, added) in &self.0 {
                    let undisputed = *added == 0 && guesses.options == [0; 5];
                    if *word != 0 && in_column(*seen) && guesses.known[i] && !undisputed {
                        score -= score / 16;
                        score += if guesses.options[i] == *added { 256 } else { 0 };
                    }
                }
                if let Some(option) = option
                    && best.is_none_or(|(_, best)| score > best)
                {
                    best = Some((*option, score));
                }
            }
            Guesses {
                options: options.map(Option::unwrap_or_default),
                known: options.map(|option| option.is_some()),
                best: best.expect("nothing is always an option").0,
            }
        }
    }

    proptest! {
        #[test]
        fn guesses_are_those_of_a_plain_search(
            seen in proptest::collection::vec((0u32..40, 0u32..24, 0usize..40, 0u32..4), 1..150),
        ) {
            let (mut words, mut memory) = (Words::default(), Memory::default());
            for (word, shift, at, added) in seen {
                let word = word << shift;
                let guesses = words.guess(word, at);
                prop_assert_eq!(guesses, memory.guess(word, at));
                words.learn(word, at, &guesses, added);
                memory.0.push((word, at, guesses, added));
            }
        }

        #[test]
        fn whatever_was_added_can_be_told(
            seen in proptest::collection::vec((any::<u32>(), 0u32..32, 0usize..64, any::<u32>(), 0u32..32), 1..200),
        ) {
            let mut words = Words::default();
            for (word, shift, at, added, by) in seen {
                let (word, added) = (word >> shift, added >> by);
                let guesses = words.guess(word, at);
                prop_assert_eq!(guesses.added(guesses.value(added)), Some(added));
                prop_assert!((0..GUESSES).any(|i| guesses.option(i) == Some(guesses.best)));
                words.learn(word, at, &guesses, added);
                let again = words.guess(word, at);
                prop_assert!(word == 0 || again.option(0) == Some(added));
            }
            words.clear();
            prop_assert_eq!(words.guess(7, 0).best, 0);
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
    fn a_shift_of_a_table_is_guessed_from_its_second_row_on() {
        let mut words = Words::default();
        let mut wrong = 0;
        for row in 0..100u32 {
            let numbers = [row * 0x1234, 0, 2, 4 + row % 3, 0x5000 + row * 24, 0];
            let added = [0x10, 0, 0, 0, 0x288, 0];
            for (column, (word, added)) in numbers.into_iter().zip(added).enumerate() {
                let at = row as usize * 24 + column * 4;
                let guesses = words.guess(word, at);
                wrong += usize::from(guesses.best != added);
                words.learn(word, at, &guesses, if word == 0 { 0 } else { added });
            }
        }
        assert!(wrong <= 6, "{wrong}");
    }

    #[test]
    fn what_no_guess_and_no_number_can_mean_is_refused() {
        assert_eq!(Guesses::NOTHING.added(0), None);
        assert_eq!(Guesses::NOTHING.added(4), Some(0));
        assert_eq!(Guesses::NOTHING.added(u64::from(u32::MAX) + 6), None);
        assert_eq!(Guesses::NOTHING.added(u64::MAX), None);
        assert_eq!(Guesses::NOTHING.added(u64::from(u32::MAX) + 5), Some(1 << 31));
    }
}
