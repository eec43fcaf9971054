//! Adaptive binary arithmetic coding: a decision costs the less, the more often it went that way before.
//!
//! A coder holds a range of numbers. Each decision divides it in two parts, as large as either outcome
//! was likely so far, and goes on with the one that it took; the bytes name a number in what is left.
//!
//! ```text
//! 0            bound                     range       1: goes on with what lies before bound
//! |----- 1 -----|---------- 0 -----------|           0: with what lies behind it
//! ```
//!
//! Publisher and decoder run the same models over a [`Coder`]: one is told what to write, the other
//! returns what it reads.

/// Below this range, a byte is written or read.
const RANGE_MIN: u32 = 1 << 24;
/// Bits of a chance.
const CHANCE_BITS: u32 = 16;
/// Bytes that are read before the first decision.
const HEAD_BYTES: usize = 4;
/// How far a chance moves towards what happened, as a power of two: at first farther.
const RATES: [u8; 13] = [1, 2, 2, 3, 3, 3, 4, 4, 4, 4, 4, 4, 5];

/// Classes of numbers, by their bits.
const CLASSES: usize = 64;
/// Bits below the highest one that have chances.
const TOP_BITS: u32 = 4;
/// Bits of which all values are as likely that are coded at once.
const EVEN_BITS_MAX: u32 = 16;

/// How likely a decision is a 1.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chance {
    /// In 2^16ths; never zero.
    of_one: u16,
    /// How often it was coded, as far as that counts.
    seen: u8,
}

/// Writes or reads decisions.
pub(super) trait Coder {
    /// Codes a decision. What reads does not look at `bit`.
    fn bit(&mut self, chance: &mut Chance, bit: bool) -> bool;

    /// Codes the lowest `bits` bits of a value, at most 16, of which all are as likely.
    fn even(&mut self, bits: u32, value: u32) -> u32;
}

/// Writes.
pub(super) struct RangeEncoder {
    out: Vec<u8>,
    low: u64,
    range: u32,
    /// A byte that is not written yet, and how many of 255 behind it: a carry changes them all.
    held: u8,
    full: usize,
}

/// Reads. Behind the end there are zeros.
pub(super) struct RangeDecoder<'a> {
    bytes: &'a [u8],
    /// Bytes read, those behind the end among them.
    at: usize,
    code: u32,
    range: u32,
}

/// Codes numbers: how many bits they have, the highest ones of these, and the rest as it is.
pub(super) struct Numbers<const CONTEXTS: usize> {
    classes: Box<[[Chance; CLASSES]; CONTEXTS]>,
    tops: Box<[[Chance; 1 << TOP_BITS]; u32::BITS as usize + 1]>,
}

impl Chance {
    /// Nothing is known yet.
    pub(super) const NEW: Self = Self { of_one: 1 << (CHANCE_BITS - 1), seen: 0 };

    #[inline]
    fn bound(self, range: u32) -> u32 {
        (range >> CHANCE_BITS) * u32::from(self.of_one)
    }

    #[inline]
    fn learn(&mut self, bit: bool) {
        let rate = RATES[usize::from(self.seen)];
        if bit {
            self.of_one += (u16::MAX - self.of_one) >> rate;
        } else {
            self.of_one -= self.of_one >> rate;
        }
        self.seen = (self.seen + 1).min(RATES.len() as u8 - 1);
    }
}

impl RangeEncoder {
    pub(super) const fn new() -> Self {
        Self { out: Vec::new(), low: 0, range: u32::MAX, held: 0, full: 0 }
    }

    /// All bytes.
    pub(super) fn finish(mut self) -> Vec<u8> {
        for _ in 0..=HEAD_BYTES {
            self.shift();
        }
        // The first byte is 0: the sum of all that is skipped never reaches the first range's end.
        self.out.remove(0);
        self.out
    }

    fn normalise(&mut self) {
        while self.range < RANGE_MIN {
            self.range <<= 8;
            self.shift();
        }
    }

    /// Moves the highest byte of `low` out.
    fn shift(&mut self) {
        let carry = u8::from(self.low > u64::from(u32::MAX));
        let byte = (self.low >> 24) as u8;
        if byte == u8::MAX && carry == 0 {
            self.full += 1;
        } else {
            self.out.push(self.held.wrapping_add(carry));
            let full = u8::MAX.wrapping_add(carry);
            self.out.extend(std::iter::repeat_n(full, std::mem::take(&mut self.full)));
            self.held = byte;
        }
        self.low = (self.low & 0x00ff_ffff) << 8;
    }
}

impl Coder for RangeEncoder {
    #[inline]
    fn bit(&mut self, chance: &mut Chance, bit: bool) -> bool {
        let bound = chance.bound(self.range);
        if bit {
            self.range = bound;
        } else {
            self.low += u64::from(bound);
            self.range -= bound;
        }
        chance.learn(bit);
        self.normalise();
        bit
    }

    fn even(&mut self, bits: u32, value: u32) -> u32 {
        let value = value & ((1 << bits) - 1);
        self.range >>= bits;
        self.low += u64::from(value) * u64::from(self.range);
        self.normalise();
        value
    }
}

impl<'a> RangeDecoder<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        let mut decoder = Self { bytes, at: 0, code: 0, range: u32::MAX };
        for _ in 0..HEAD_BYTES {
            decoder.shift();
        }
        decoder
    }

    /// Whether all bytes were read, and none behind them.
    pub(super) const fn is_at_end(&self) -> bool {
        self.at == self.bytes.len()
    }

    #[inline]
    fn shift(&mut self) {
        let byte = self.bytes.get(self.at).copied().unwrap_or(0);
        self.code = self.code << 8 | u32::from(byte);
        self.at += 1;
    }

    #[inline]
    fn normalise(&mut self) {
        while self.range < RANGE_MIN {
            self.range <<= 8;
            self.shift();
        }
    }
}

impl Coder for RangeDecoder<'_> {
    #[inline]
    fn bit(&mut self, chance: &mut Chance, _: bool) -> bool {
        let bound = chance.bound(self.range);
        let bit = self.code < bound;
        if bit {
            self.range = bound;
        } else {
            self.code -= bound;
            self.range -= bound;
        }
        chance.learn(bit);
        self.normalise();
        bit
    }

    fn even(&mut self, bits: u32, _: u32) -> u32 {
        self.range >>= bits;
        // No encoder makes a code behind the last value; whatever it means is bounded.
        let value = (self.code / self.range).min((1 << bits) - 1);
        self.code -= value * self.range;
        self.normalise();
        value
    }
}

/// Codes the lowest `bits` bits of a value, highest first, each by what those before it are. There are
/// `1 << bits` chances, of which the first is not used.
#[inline]
pub(super) fn tree<C: Coder>(coder: &mut C, chances: &mut [Chance], bits: u32, value: u32) -> u32 {
    let mut node = 1;
    for bit in (0..bits).rev() {
        let bit = coder.bit(&mut chances[node], value >> bit & 1 == 1);
        node = node << 1 | usize::from(bit);
    }
    node as u32 - (1 << bits)
}

impl<const CONTEXTS: usize> Default for Numbers<CONTEXTS> {
    fn default() -> Self {
        Self {
            classes: Box::new([[Chance::NEW; CLASSES]; CONTEXTS]),
            tops: Box::new([[Chance::NEW; 1 << TOP_BITS]; u32::BITS as usize + 1]),
        }
    }
}

impl<const CONTEXTS: usize> Numbers<CONTEXTS> {
    /// Forgets what was coded.
    pub(super) fn clear(&mut self) {
        self.classes.as_flattened_mut().fill(Chance::NEW);
        self.tops.as_flattened_mut().fill(Chance::NEW);
    }

    /// Codes a number in a context.
    pub(super) fn code<C: Coder>(&mut self, coder: &mut C, context: usize, value: u32) -> u32 {
        let class = u32::BITS - value.leading_zeros();
        let class = tree(coder, &mut self.classes[context], CLASSES.ilog2(), class).min(u32::BITS);
        let Some(mut left) = class.checked_sub(1) else { return 0 };
        let mut coded = 1;
        let top = left.min(TOP_BITS);
        left -= top;
        coded = coded << top | tree(coder, &mut self.tops[class as usize], top, value >> left);
        while left > 0 {
            let bits = left.min(EVEN_BITS_MAX);
            left -= bits;
            coded = coded << bits | coder.even(bits, value >> left);
        }
        coded
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One thing to be coded.
    #[derive(Clone, Debug)]
    enum Item {
        Bit(usize, bool),
        Even(u32, u32),
        Tree(u32),
        Number(usize, u32),
    }

    fn item() -> impl Strategy<Value = Item> {
        prop_oneof![
            (0usize..4, prop::bool::weighted(0.1)).prop_map(|(at, bit)| Item::Bit(at, bit)),
            (1u32..17, any::<u32>()).prop_map(|(bits, n)| Item::Even(bits, n & ((1 << bits) - 1))),
            (0u32..8).prop_map(Item::Tree),
            (0usize..2, any::<u32>(), 0u32..33)
                .prop_map(|(at, n, shift)| Item::Number(at, n.checked_shr(shift).unwrap_or(0))),
        ]
    }

    /// Codes the items; the decoder is told nothing of them but their kinds.
    fn code<C: Coder>(coder: &mut C, items: &[Item], told: bool) -> Vec<u32> {
        let mut chances = [Chance::NEW; 4];
        let mut trees = [Chance::NEW; 8];
        let mut numbers = Numbers::<2>::default();
        let tell = |value: u32| if told { value } else { 0 };
        let coded = items.iter().map(|item| match *item {
            Item::Bit(at, bit) => u32::from(coder.bit(&mut chances[at], bit && told)),
            Item::Even(bits, value) => coder.even(bits, tell(value)),
            Item::Tree(value) => tree(coder, &mut trees, 3, tell(value)),
            Item::Number(at, value) => numbers.code(coder, at, tell(value)),
        });
        coded.collect()
    }

    fn values(items: &[Item]) -> Vec<u32> {
        let value = |item: &Item| match *item {
            Item::Bit(_, bit) => u32::from(bit),
            Item::Even(_, value) | Item::Tree(value) | Item::Number(_, value) => value,
        };
        items.iter().map(value).collect()
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(items in proptest::collection::vec(item(), 0..600)) {
            let mut encoder = RangeEncoder::new();
            prop_assert_eq!(code(&mut encoder, &items, true), values(&items));
            let bytes = encoder.finish();
            let mut decoder = RangeDecoder::new(&bytes);
            prop_assert_eq!(code(&mut decoder, &items, false), values(&items));
            prop_assert!(decoder.is_at_end());
            for cut in 0..bytes.len() {
                let mut decoder = RangeDecoder::new(&bytes[..cut]);
                code(&mut decoder, &items, false);
                prop_assert!(!decoder.is_at_end() || items.is_empty());
            }
        }

        #[test]
        fn any_bytes_are_read_as_something(bytes: Vec<u8>, items in proptest::collection::vec(item(), 0..200)) {
            let read = code(&mut RangeDecoder::new(&bytes), &items, false);
            prop_assert_eq!(read.len(), items.len());
        }
    }

    #[test]
    fn what_is_likely_costs_next_to_nothing() {
        let mut encoder = RangeEncoder::new();
        let mut chance = Chance::NEW;
        for i in 0..100_000 {
            encoder.bit(&mut chance, i % 1000 == 999);
        }
        // By its entropy: 143 bytes.
        let len = encoder.finish().len();
        assert!(len < 300, "{len}");
    }

    #[test]
    fn carries_run_through_what_was_not_written_yet() {
        // Values of all ones leave nothing but bytes of 255 until the end.
        for tail in [0, 1] {
            let mut items = vec![Item::Even(16, u32::from(u16::MAX)); 40];
            items.push(Item::Bit(0, tail == 1));
            items.extend(vec![Item::Bit(1, false); 40]);
            let mut encoder = RangeEncoder::new();
            code(&mut encoder, &items, true);
            let bytes = encoder.finish();
            assert_eq!(code(&mut RangeDecoder::new(&bytes), &items, false), values(&items));
        }
    }
}
