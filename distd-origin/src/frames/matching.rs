//! Finding what of a run's new bytes is, byte for byte or nearly, in its base.
//!
//! Seeds are pieces of eight bytes, hashed at every fourth byte of the base. A match is a diagonal:
//! a distance between base and new bytes that is kept, through scattered bytes that differ, until
//! another diagonal explains what follows clearly better. Code whose addresses moved stays on its
//! diagonal; what was inserted or removed changes it.
//!
//! ```text
//! new     ....aaaaaXaaaaXaaa......bbbbbbYbbbb....
//! base  ..aaaaaUaaaaVaaa..    bbbbbbWbbbb       X, Y: changes, within the copy
//! ```

/// Bytes of a seed.
const SEED_BYTES: usize = 8;
/// Distance of two seeds of the base.
const SEED_STEP: usize = 4;
/// Seeds of one hash that are tried.
const CANDIDATES_MAX: usize = 12;
/// Shortest exact match that can begin a diagonal.
const MATCH_BYTES_MIN: usize = 12;
/// So many bytes more than the diagonal that is followed must a new one explain.
const BETTER_BYTES_MIN: usize = 8;
/// Equal bytes on a diagonal behind which nothing else is tried.
const GOOD_BYTES: usize = 24;

/// Bytes of the new content that come from the base, some of them changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copy {
    /// First byte in the new content.
    pub new: usize,
    /// First byte in the base.
    pub base: usize,
    /// Bytes.
    pub len: usize,
}

/// The seeds of one base. Kept between bases for its memory.
#[derive(Default)]
pub struct Seeds {
    heads: Vec<u32>,
    next: Vec<u32>,
    shift: u32,
}

impl Seeds {
    /// Indexes a base.
    fn index(&mut self, base: &[u8]) {
        let count = base.len() / SEED_STEP;
        let bits = (count.max(256)).next_power_of_two().trailing_zeros().min(20);
        self.shift = u64::BITS - bits;
        self.heads.clear();
        self.heads.resize(1 << bits, 0);
        self.next.clear();
        self.next.resize(count + 1, 0);
        // From behind, so that the first of equal seeds is tried first.
        for position in (0..count).rev() {
            let Some(seed) = seed(base, position * SEED_STEP) else { continue };
            let slot = self.slot(seed);
            self.next[position] = self.heads[slot];
            self.heads[slot] = position as u32 + 1;
        }
    }

    fn slot(&self, seed: u64) -> usize {
        (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize
    }

    /// The longest exact match of what begins at `at` in `new`: where in the base, how long.
    fn longest(&self, base: &[u8], new: &[u8], at: usize) -> (usize, usize) {
        let Some(seed) = seed(new, at) else { return (0, 0) };
        let mut best = (0, 0);
        let mut candidate = self.heads[self.slot(seed)];
        for _ in 0..CANDIDATES_MAX {
            let Some(position) = candidate.checked_sub(1) else { break };
            candidate = self.next[position as usize];
            let start = position as usize * SEED_STEP;
            // Most of what shares a slot is not the seed, and much of what is ends before the best does.
            let found = base[start..].first_chunk::<SEED_BYTES>();
            if found.map(|found| u64::from_le_bytes(*found)) != Some(seed)
                || (best.1 > 0 && base.get(start + best.1) != new.get(at + best.1))
            {
                continue;
            }
            let len = equal_bytes(&base[start..], &new[at..]);
            if len > best.1 {
                best = (start, len);
            }
        }
        best
    }
}

/// The seed at a byte; `None` where there are not enough bytes or all are alike.
fn seed(bytes: &[u8], at: usize) -> Option<u64> {
    let seed = u64::from_le_bytes(*bytes.get(at..)?.first_chunk::<SEED_BYTES>()?);
    // Zeros and filling are everywhere: no seed leads anywhere from them.
    (seed != seed.rotate_left(8)).then_some(seed)
}

/// Equal bytes at the beginning of both.
pub(super) fn equal_bytes(a: &[u8], b: &[u8]) -> usize {
    let words = a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0);
    let mut len = 0;
    for (a, b) in words {
        let differ = u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b);
        if differ != 0 {
            return len + differ.trailing_zeros() as usize / 8;
        }
        len += 8;
    }
    len + a[len..].iter().zip(&b[len..]).take_while(|(a, b)| a == b).count()
}

/// The copies that make up most of `new`, ascending and apart from each other.
pub fn find_copies(seeds: &mut Seeds, base: &[u8], new: &[u8]) -> Vec<Copy> {
    seeds.index(base);
    let starts = follow_diagonals(seeds, base, new);
    extend(&starts, base, new)
}

/// Where diagonals begin: (byte of the new content, byte of the base).
fn follow_diagonals(seeds: &Seeds, base: &[u8], new: &[u8]) -> Vec<(usize, usize)> {
    let mut starts: Vec<(usize, usize)> = Vec::new();
    let (mut at, mut missed) = (0, 0);
    while at < new.len() {
        let followed = starts.last().map(|(start, from)| from + (at - start));
        let on_diagonal = followed.filter(|from| *from < base.len());
        let good = on_diagonal.map_or(0, |from| equal_bytes(&base[from..], &new[at..]));
        if good >= GOOD_BYTES {
            at += good;
            missed = 0;
            continue;
        }
        let (from, len) = seeds.longest(base, new, at);
        if len < MATCH_BYTES_MIN || Some(from) == on_diagonal {
            missed = if len < MATCH_BYTES_MIN && good < SEED_BYTES { missed + 1 } else { 0 };
            at += good.max(step_after(missed));
            continue;
        }
        missed = 0;
        let explained = on_diagonal.map_or(0, |followed| {
            let (base, new) = (&base[followed..], &new[at..at + len]);
            base.iter().zip(new).filter(|(a, b)| a == b).count()
        });
        if len >= explained + BETTER_BYTES_MIN {
            starts.push((at, from));
            at += len;
        } else {
            at += 1;
        }
    }
    starts
}

/// How far to go after so many places in a row where nothing begins: odd numbers, so that the places
/// meet seeds of every alignment. Measured on two versions of a browser (update, CPU seconds): always
/// 1: 84.3 MB, 33 s; so: 84.8 MB, 18 s; on two kernel packages 20.2 and 20.3 MB.
const fn step_after(missed: usize) -> usize {
    match missed {
        0..96 => 1,
        96..1024 => 3,
        _ => 5,
    }
}

/// Extends each diagonal forwards and backwards while more bytes agree than not, and divides what
/// two neighbours both explain.
fn extend(starts: &[(usize, usize)], base: &[u8], new: &[u8]) -> Vec<Copy> {
    let mut copies: Vec<Copy> = Vec::with_capacity(starts.len());
    let mut low = 0;
    for (i, (start, from)) in starts.iter().enumerate() {
        let high = starts.get(i + 1).map_or(new.len(), |next| next.0);
        let back = backward(&base[..*from], &new[low..*start]);
        let forward = forward(&base[*from..], &new[*start..high]);
        let mut copy = Copy { new: start - back, base: from - back, len: back + forward };
        if let Some(last) = copies.last_mut()
            && last.new + last.len > copy.new
        {
            divide(last, &mut copy, base, new);
        }
        low = *start;
        copies.push(copy);
    }
    copies.retain(|copy| copy.len > 0);
    copies
}

/// How many bytes forwards keep the balance of equal over unequal ones highest.
fn forward(base: &[u8], new: &[u8]) -> usize {
    best_prefix(base.iter().zip(new).map(|(a, b)| a == b))
}

fn backward(base: &[u8], new: &[u8]) -> usize {
    best_prefix(base.iter().rev().zip(new.iter().rev()).map(|(a, b)| a == b))
}

fn best_prefix(equal: impl Iterator<Item = bool>) -> usize {
    let (mut balance, mut best, mut len) = (0i64, 0, 0);
    for (i, equal) in equal.enumerate() {
        balance += if equal { 1 } else { -1 };
        if balance > best {
            (best, len) = (balance, i + 1);
        }
    }
    len
}

/// Cuts the overlap of two copies where most bytes agree in all.
fn divide(left: &mut Copy, right: &mut Copy, base: &[u8], new: &[u8]) {
    let overlap = left.new + left.len - right.new;
    let (left_at, right_at) = (left.base + (right.new - left.new), right.base);
    let (mut balance, mut best, mut cut) = (0i64, 0, 0);
    for i in 0..overlap {
        let byte = new[right.new + i];
        balance += i64::from(base[left_at + i] == byte) - i64::from(base[right_at + i] == byte);
        if balance > best {
            (best, cut) = (balance, i + 1);
        }
    }
    left.len -= overlap - cut;
    right.new += cut;
    right.base += cut;
    right.len -= cut;
}

#[cfg(test)]
mod tests {
    use super::super::noise;
    use super::*;
    use proptest::prelude::*;

    /// The plain reference: bytes that no exact match of at least `min` bytes covers, each place of
    /// the base compared with each place of the new content.
    fn uncovered(base: &[u8], new: &[u8], min: usize) -> usize {
        let mut covered = vec![false; new.len()];
        for at in 0..new.len() {
            for from in 0..base.len() {
                let len = base[from..].iter().zip(&new[at..]).take_while(|(a, b)| a == b).count();
                if len >= min {
                    covered[at..at + len].fill(true);
                }
            }
        }
        covered.iter().filter(|covered| !**covered).count()
    }

    /// Bytes of the new content that copies do not give as they are.
    fn unexplained(copies: &[Copy], base: &[u8], new: &[u8]) -> usize {
        let equal = |copy: &Copy| {
            let (base, new) = (&base[copy.base..][..copy.len], &new[copy.new..][..copy.len]);
            base.iter().zip(new).filter(|(a, b)| a == b).count()
        };
        new.len() - copies.iter().map(equal).sum::<usize>()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn copies_are_apart_and_explain_as_much_as_a_plain_search(
            pieces in proptest::collection::vec((0usize..1400, 40usize..400, 0usize..30, any::<bool>()), 1..6),
        ) {
            let base = noise(1, 1800);
            let mut new = Vec::new();
            for (i, (from, len, inserted, changed)) in pieces.iter().enumerate() {
                let at = new.len();
                new.extend_from_slice(&base[*from..from + len]);
                if *changed {
                    new[at + len / 2] ^= 0x55;
                }
                new.extend(noise(2 + i as u64, *inserted));
            }
            let copies = find_copies(&mut Seeds::default(), &base, &new);
            for pair in copies.windows(2) {
                prop_assert!(pair[0].new + pair[0].len <= pair[1].new);
            }
            for copy in &copies {
                prop_assert!(copy.new + copy.len <= new.len() && copy.base + copy.len <= base.len());
            }
            // A match is surely seen from 16 bytes on; at each border a few bytes may go astray.
            let (found, plain) = (unexplained(&copies, &base, &new), uncovered(&base, &new, 16));
            prop_assert!(found <= plain + 8 * pieces.len(), "{} > {}", found, plain);
        }
    }

    #[test]
    fn scattered_changes_do_not_end_a_copy() {
        let base = noise(1, 20_000);
        let mut new = noise(2, 100);
        new.extend_from_slice(&base);
        for at in (130..new.len()).step_by(30) {
            new[at] = new[at].wrapping_add(4);
        }
        let copies = find_copies(&mut Seeds::default(), &base, &new);
        assert_eq!(copies, [Copy { new: 100, base: 0, len: 20_000 }]);
    }

    #[test]
    fn nothing_in_common_gives_no_copy() {
        for (base, new) in [(0, 0), (0, 5000), (5000, 0), (5000, 5000), (7, 7)] {
            assert_eq!(find_copies(&mut Seeds::default(), &noise(1, base), &noise(2, new)), []);
        }
        assert_eq!(find_copies(&mut Seeds::default(), &[0; 4096], &[0; 4096]), []);
    }
}
