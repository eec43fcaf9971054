//! The operations of a delta frame: so many literals, then so many bytes from the bases.
//!
//! Most go on in the bases where the one before ended, or behind what its literals replace:
//!
//! ```text
//! bases  |---- copy ----|........|---- copy ----|       in place: the literals replace as many bytes
//! run    |---- copy ----|literals|---- copy ----|
//! ```

use crate::limits::FRAME_OPERATIONS_MAX;

use super::coder::{Chance, Coder, Numbers, tree};
use super::decode::FrameFault;
use super::words::{AS_IS, Words};

/// Bits of where a copy begins, and of where its words do.
const PLACE_BITS: u32 = 2;
const PHASE_BITS: u32 = 3;
const PHASES: usize = 1 << PHASE_BITS;
/// Classes of how many literals precede a copy, by their bits.
const LITERAL_CLASSES: usize = 8;

/// One operation: literals, then a copy. Only the last one may be without a copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operation {
    /// Literals.
    pub literals: usize,
    /// Bytes copied.
    pub copied: usize,
    /// From which byte of the bases on.
    pub base: usize,
    /// Where words begin, by the byte of the run modulo 4; [`AS_IS`]: the copy is as its base.
    pub phase: usize,
}

/// Where a copy begins in the bases.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Place {
    /// As many bytes behind the copy before as there are literals.
    #[default]
    Along,
    /// Where the copy before ended.
    Behind,
    /// Elsewhere.
    Elsewhere,
}

/// How likely what is of operations, and of the words in their copies.
#[derive(Default)]
pub(super) struct Models {
    words: Words,
    operations: Operations,
    /// Whether anything was coded yet.
    used: bool,
}

struct Operations {
    /// What the operation before was, and where its copy ended.
    phase: usize,
    place: Place,
    base: usize,
    literals: Numbers<{ 2 * PHASES }>,
    places: [[[Chance; 1 << PLACE_BITS]; 3]; LITERAL_CLASSES],
    back: Chance,
    distances: Numbers<2>,
    phases: [[Chance; 1 << PHASE_BITS]; PHASES],
    copied: Numbers<6>,
}

/// What may be made of what.
#[derive(Clone, Copy)]
struct Room {
    /// Bytes of the run that are left.
    left: usize,
    /// Bytes of the bases.
    bases: usize,
}

impl Models {
    /// Codes a run of which `told` are the operations and `out` holds the bytes, for a coder that is told
    /// them; afterwards `out` does in any case. Literals are taken from `literals`.
    pub(super) fn code<C: Coder>(
        &mut self,
        coder: &mut C,
        told: &[Operation],
        literals: &[u8],
        bases: &[u8],
        out: &mut [u8],
    ) -> Result<(), FrameFault> {
        if std::mem::replace(&mut self.used, true) {
            self.words.clear();
            self.operations.clear();
        }
        let (mut at, mut literals, mut count) = (0, literals, 0);
        while at < out.len() {
            let room = Room { left: out.len() - at, bases: bases.len() };
            let told = told.get(count).copied().unwrap_or_default();
            count += 1;
            let operation = self.operations.code(coder, told, room);
            let operation = operation.filter(|_| count <= FRAME_OPERATIONS_MAX);
            let operation = operation.ok_or(FrameFault::Operations)?;
            let (taken, rest) =
                literals.split_at_checked(operation.literals).ok_or(FrameFault::Operations)?;
            literals = rest;
            out[at..at + taken.len()].copy_from_slice(taken);
            at += taken.len();
            let base = &bases[operation.base..operation.base + operation.copied];
            let new = &mut out[at..at + operation.copied];
            if operation.phase == AS_IS {
                new.copy_from_slice(base);
            } else {
                self.words.code(coder, at, operation.phase, base, new);
            }
            at += operation.copied;
        }
        if literals.is_empty() { Ok(()) } else { Err(FrameFault::Operations) }
    }
}

impl Default for Operations {
    fn default() -> Self {
        Self {
            phase: 0,
            place: Place::default(),
            base: 0,
            literals: Numbers::default(),
            places: [[[Chance::NEW; 1 << PLACE_BITS]; 3]; LITERAL_CLASSES],
            back: Chance::NEW,
            distances: Numbers::default(),
            phases: [[Chance::NEW; 1 << PHASE_BITS]; PHASES],
            copied: Numbers::default(),
        }
    }
}

impl Operations {
    fn clear(&mut self) {
        (self.phase, self.place, self.base) = (0, Place::default(), 0);
        self.literals.clear();
        self.places = [[[Chance::NEW; 1 << PLACE_BITS]; 3]; LITERAL_CLASSES];
        self.back = Chance::NEW;
        self.distances.clear();
        self.phases = [[Chance::NEW; 1 << PHASE_BITS]; PHASES];
        self.copied.clear();
    }

    /// Codes an operation; `None` if it leaves the run or the bases. It makes at least a byte.
    fn code<C: Coder>(&mut self, coder: &mut C, told: Operation, room: Room) -> Option<Operation> {
        let context = self.phase << 1 | usize::from(self.place != Place::Along);
        let literals = self.literals.code(coder, context, told.literals as u32) as usize;
        let left = room.left.checked_sub(literals)?;
        if left == 0 {
            return Some(Operation { literals, phase: AS_IS, ..Operation::default() });
        }
        let base = self.code_place(coder, told.base, literals)?;
        let phases = &mut self.phases[self.phase];
        let phase = tree(coder, phases, PHASE_BITS, told.phase as u32) as usize;
        let context = 2 * self.place as usize + usize::from(phase == AS_IS);
        let copied = told.copied.wrapping_sub(1) as u32;
        let copied = self.copied.code(coder, context, copied) as usize + 1;
        self.base = base.checked_add(copied)?;
        self.phase = phase;
        let sound = copied <= left && self.base <= room.bases && phase <= AS_IS;
        sound.then_some(Operation { literals, copied, base, phase })
    }

    /// Where the copy begins behind so many literals.
    fn code_place<C: Coder>(
        &mut self,
        coder: &mut C,
        told: usize,
        literals: usize,
    ) -> Option<usize> {
        let in_place = self.base + literals;
        let place = match told {
            told if told == in_place => Place::Along,
            told if told == self.base => Place::Behind,
            _ => Place::Elsewhere,
        };
        let class = (usize::BITS - literals.leading_zeros()) as usize;
        let chances = &mut self.places[class.min(LITERAL_CLASSES - 1)][self.place as usize];
        self.place = match tree(coder, chances, PLACE_BITS, place as u32) {
            0 => Place::Along,
            1 => Place::Behind,
            2 => Place::Elsewhere,
            _ => return None,
        };
        match self.place {
            Place::Along => Some(in_place),
            Place::Behind => Some(self.base),
            Place::Elsewhere => {
                let back = coder.bit(&mut self.back, told < in_place);
                let context = usize::from(literals > 0);
                let distance = told.abs_diff(in_place).wrapping_sub(1) as u32;
                let distance = self.distances.code(coder, context, distance) as usize + 1;
                if back { in_place.checked_sub(distance) } else { in_place.checked_add(distance) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::coder::{RangeDecoder, RangeEncoder};
    use super::*;
    use proptest::prelude::*;

    const ROOM: Room = Room { left: 1 << 18, bases: 1 << 20 };

    /// What reads as these operations, whatever they are.
    fn coded(told: &[Operation]) -> Vec<u8> {
        let mut coder = RangeEncoder::new();
        let mut operations = Operations::default();
        let anything = Room { left: usize::MAX, bases: usize::MAX };
        for operation in told {
            operations.code(&mut coder, *operation, anything);
        }
        coder.finish()
    }

    fn copy(literals: usize, copied: usize, base: usize) -> Operation {
        Operation { literals, copied, base, phase: AS_IS }
    }

    proptest! {
        #[test]
        fn operations_are_read_as_they_were_written(
            told in proptest::collection::vec((0usize..600, 1usize..9000, 0usize..3, 0usize..1 << 20, 0usize..5), 1..60),
        ) {
            let (mut at, mut base) = (0, 0);
            let mut operations = Vec::new();
            for (literals, copied, place, elsewhere, phase) in told {
                let start = [base + literals, base, elsewhere][place];
                if at + literals + copied < ROOM.left && start + copied <= ROOM.bases {
                    operations.push(Operation { literals, copied, base: start, phase });
                    (at, base) = (at + literals + copied, start + copied);
                }
            }
            operations.push(Operation { literals: ROOM.left - at, phase: AS_IS, ..Operation::default() });
            let mut encoder = RangeEncoder::new();
            let (mut models, mut left) = (Operations::default(), ROOM.left);
            for told in &operations {
                let room = Room { left, ..ROOM };
                prop_assert_eq!(models.code(&mut encoder, *told, room), Some(*told));
                left -= told.literals + told.copied;
            }
            let bytes = encoder.finish();
            let mut decoder = RangeDecoder::new(&bytes);
            models.clear();
            left = ROOM.left;
            for told in &operations {
                let room = Room { left, ..ROOM };
                let read = models.code(&mut decoder, Operation::default(), room);
                prop_assert_eq!(read, Some(*told));
                left -= told.literals + told.copied;
            }
            prop_assert!(decoder.is_at_end());
        }

        #[test]
        fn whatever_is_read_stays_within_the_run_and_the_bases(bytes: Vec<u8>, bases in 0usize..10_000) {
            let mut out = vec![0; 10_000];
            let base = vec![7; bases];
            let mut decoder = RangeDecoder::new(&bytes);
            // No panic, and an end.
            let _ = Models::default().code(&mut decoder, &[], &bytes, &base, &mut out);
        }
    }

    #[test]
    fn operations_that_leave_the_run_or_the_bases_are_refused() {
        let (len, bases) = (1usize << 16, 1usize << 14);
        let refused = |told: &[Operation], literals: usize| {
            let (bytes, literals, base) = (coded(told), vec![1; literals], vec![2; bases]);
            let mut decoder = RangeDecoder::new(&bytes);
            Models::default().code(&mut decoder, &[], &literals, &base, &mut vec![0; len]).is_err()
        };
        let rest = |literals: usize| Operation { literals, ..Operation::default() };
        assert!(!refused(&[copy(100, bases, 0), rest(len - 100 - bases)], len - bases));
        // Too few literals, too many.
        assert!(refused(&[copy(100, bases, 0), rest(len - 100 - bases)], len - bases - 1));
        assert!(refused(&[copy(100, bases, 0), rest(len - 100 - bases)], len - bases + 1));
        // Beyond the run.
        assert!(refused(&[copy(len + 1, 1, 0)], len + 1));
        assert!(refused(&[copy(u32::MAX as usize, 1, 0)], len));
        assert!(refused(&[copy(len - 10, 11, 0)], len - 10));
        // Beyond the bases, or before them.
        for (copied, base) in [(bases + 1, 0), (bases, 1), (1, bases), (1, u32::MAX as usize)] {
            assert!(refused(&[copy(0, copied, base)], 0), "{copied} from {base}");
        }
        assert!(refused(&[copy(0, u32::MAX as usize, 0)], 0));
        let back = |by: usize| {
            let mut coder = RangeEncoder::new();
            let mut models = Operations::default();
            // What ends elsewhere than it says: the next one goes back from there.
            models.code(&mut coder, copy(0, 10, 0), ROOM);
            models.base = by;
            models.code(&mut coder, copy(0, 10, 0), ROOM);
            let bytes = coder.finish();
            let mut decoder = RangeDecoder::new(&bytes);
            let mut models = Operations::default();
            models.code(&mut decoder, Operation::default(), ROOM).expect("sound");
            models.code(&mut decoder, Operation::default(), ROOM)
        };
        assert_eq!(back(10), Some(copy(0, 10, 0)));
        assert_eq!(back(11), None);
        // Words that begin nowhere.
        assert!(refused(&[Operation { phase: AS_IS + 1, ..copy(0, bases, 0) }], 0));
        // More operations than there may be.
        let single = |count: usize| {
            let mut told = vec![copy(0, 1, 0); count - 1];
            told.push(copy(0, len - (count - 1), 0));
            told
        };
        let within = |count: usize| {
            let bytes = coded(&single(count));
            let mut decoder = RangeDecoder::new(&bytes);
            let code =
                Models::default().code(&mut decoder, &[], &[], &vec![0; len], &mut vec![0; len]);
            code.is_ok()
        };
        assert!(within(FRAME_OPERATIONS_MAX) && !within(FRAME_OPERATIONS_MAX + 1));
    }
}
