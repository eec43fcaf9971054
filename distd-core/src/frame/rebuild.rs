//! A bin's bytes, from the four streams of a delta frame and the bytes of its bases.

use super::bytes::Reader;
use super::decode::FrameFault;
use super::words::{AS_IS, Guesses, WORD_BYTES, Words, unit_bytes};

/// The streams of a delta frame, decompressed.
pub(super) struct Streams<'a> {
    /// Literals and copies.
    pub(super) control: &'a [u8],
    /// Where copied bytes are changed.
    pub(super) gaps: &'a [u8],
    /// By how much.
    pub(super) values: &'a [u8],
    /// Bytes that are not copied.
    pub(super) literals: &'a [u8],
}

/// What is changed in copied bytes.
pub(super) enum Units<'a> {
    /// Single bytes.
    Bytes,
    /// Single bytes, with what is carried from them into those behind.
    Carrying,
    /// Words, where they are not what is guessed.
    Words(&'a mut Words),
}

/// An operation of the control stream.
struct Operation<'a> {
    literal: &'a [u8],
    copied: &'a [u8],
    /// Where words begin, modulo 4; `AS_IS` where there are no words.
    phase: usize,
}

/// The `len` bytes of a bin.
pub(super) fn rebuild(
    len: usize,
    streams: &Streams<'_>,
    bases: &[u8],
    mut units: Units<'_>,
) -> Result<Vec<u8>, FrameFault> {
    let mut out: Vec<u8> = Vec::with_capacity(len);
    let mut operations = Operations {
        len,
        control: Reader::new(streams.control),
        literals: Reader::new(streams.literals),
        bases,
        base_at: 0,
        phases: matches!(units, Units::Words(_)),
    };
    let mut changes = Changes::new(streams)?;
    while let Some(operation) = operations.next(len - out.len())? {
        out.extend_from_slice(operation.literal);
        let at = out.len();
        out.extend_from_slice(operation.copied);
        match &mut units {
            Units::Bytes => changes.apply_bytes(&mut out[at..], false)?,
            Units::Carrying => changes.apply_bytes(&mut out[at..], true)?,
            Units::Words(_) if operation.phase == AS_IS => {}
            Units::Words(words) => changes.apply_words(&mut out, at, operation.phase, words)?,
        }
    }
    if changes.until.is_some() {
        return Err(FrameFault::Changes);
    }
    if out.len() != len || !operations.literals.is_empty() {
        return Err(FrameFault::Short { expected: len as u64, found: out.len() });
    }
    Ok(out)
}

/// Reads operations, none of which leaves the literals, the bases or the bin.
struct Operations<'a> {
    len: usize,
    control: Reader<'a>,
    literals: Reader<'a>,
    bases: &'a [u8],
    base_at: i64,
    phases: bool,
}

impl<'a> Operations<'a> {
    /// The next operation, which must not make more than `room` bytes.
    fn next(&mut self, room: usize) -> Result<Option<Operation<'a>>, FrameFault> {
        if self.control.is_empty() {
            return Ok(None);
        }
        let (len, control) = (self.len as u64, &mut self.control);
        let mut number = || control.varint().filter(|n| *n <= len).map(|n| n as usize);
        let literal = number().ok_or(FrameFault::Control)?;
        let copied = number().ok_or(FrameFault::Control)?;
        let distance = control.signed().ok_or(FrameFault::Control)?;
        let phase = if self.phases { control.byte().ok_or(FrameFault::Control)? } else { 0 };
        if literal + copied > room || usize::from(phase) > AS_IS {
            return Err(FrameFault::Control);
        }
        let literal = self.literals.take(literal).ok_or(FrameFault::Control)?;
        let start = self.base_at.checked_add(distance).and_then(|at| usize::try_from(at).ok());
        let start = start.ok_or(FrameFault::Control)?;
        let end = start.checked_add(copied).ok_or(FrameFault::Control)?;
        let copied = self.bases.get(start..end).ok_or(FrameFault::Control)?;
        self.base_at = end as i64;
        Ok(Some(Operation { literal, copied, phase: phase.into() }))
    }
}

/// What differs from the base, in the order of the copied bytes.
struct Changes<'a> {
    gaps: Reader<'a>,
    values: Reader<'a>,
    /// Units before the next change; `None` behind the last one.
    until: Option<u64>,
}

impl<'a> Changes<'a> {
    fn new(streams: &Streams<'a>) -> Result<Self, FrameFault> {
        let (gaps, values) = (Reader::new(streams.gaps), Reader::new(streams.values));
        let mut changes = Self { gaps, values, until: None };
        changes.advance()?;
        Ok(changes)
    }

    /// Goes on to the next change.
    fn advance(&mut self) -> Result<(), FrameFault> {
        self.until = match (self.values.is_empty(), self.gaps.is_empty()) {
            (true, true) => None,
            (false, false) => Some(self.gaps.varint().ok_or(FrameFault::Changes)?),
            _ => return Err(FrameFault::Changes),
        };
        Ok(())
    }

    /// Changes what was copied byte by byte.
    fn apply_bytes(&mut self, run: &mut [u8], carry: bool) -> Result<(), FrameFault> {
        let mut done = 0;
        while let Some(gap) = self.until {
            let left = (run.len() - done) as u64;
            if gap >= left {
                self.until = Some(gap - left);
                break;
            }
            let place = done + gap as usize;
            let value = self.values.byte().ok_or(FrameFault::Changes)?;
            if carry {
                add_carrying(&mut run[place..], value);
            } else {
                run[place] = run[place].wrapping_add(value);
            }
            done = place + 1;
            self.advance()?;
        }
        Ok(())
    }

    /// Changes what was copied, from byte `at` of `out` on, word by word.
    fn apply_words(
        &mut self,
        out: &mut [u8],
        at: usize,
        phase: usize,
        words: &mut Words,
    ) -> Result<(), FrameFault> {
        let run = &mut out[at..];
        let head = match unit_bytes(at, at + run.len(), phase) {
            WORD_BYTES => 0,
            part => part,
        };
        let (head, whole) = run.split_at_mut(head);
        let at = at + head.len();
        self.apply_part(head)?;
        let (whole, tail) = whole.as_chunks_mut::<WORD_BYTES>();
        let mut until = self.until.unwrap_or(u64::MAX);
        for (i, bytes) in whole.iter_mut().enumerate() {
            let (word, at) = (u32::from_le_bytes(*bytes), at + i * WORD_BYTES);
            let guesses = words.guess(word, at);
            let mut added = guesses.best;
            if until == 0 {
                added = self.take(&guesses)?;
                until = self.until.unwrap_or(u64::MAX);
            } else {
                until -= 1;
            }
            words.learn(word, at, &guesses, added);
            *bytes = word.wrapping_add(added).to_le_bytes();
        }
        self.until = self.until.map(|_| until);
        self.apply_part(tail)
    }

    /// Changes what is shorter than a word.
    fn apply_part(&mut self, bytes: &mut [u8]) -> Result<(), FrameFault> {
        match self.until {
            Some(0) if !bytes.is_empty() => {
                let added = self.take(&Guesses::NOTHING)?;
                add_part(bytes, added);
            }
            Some(gap) if !bytes.is_empty() => self.until = Some(gap - 1),
            _ => {}
        }
        Ok(())
    }

    /// What the next change adds; goes on to the one behind it.
    fn take(&mut self, guesses: &Guesses) -> Result<u32, FrameFault> {
        let value = self.values.varint().ok_or(FrameFault::Changes)?;
        let added = guesses.added(value).ok_or(FrameFault::Changes)?;
        self.advance()?;
        Ok(added)
    }
}

/// Adds to the number that is all of `bytes`, fewer than those of a word, what fits.
fn add_part(bytes: &mut [u8], added: u32) {
    let mut word = [0; WORD_BYTES];
    word[..bytes.len()].copy_from_slice(bytes);
    let sum = u32::from_le_bytes(word).wrapping_add(added).to_le_bytes();
    bytes.copy_from_slice(&sum[..bytes.len()]);
}

/// Bytes behind a changed one that a carry reaches at most: those of a 64-bit integer.
const CARRY_BYTES: usize = 7;

/// Adds a signed byte to the little-endian number that begins with the first byte: what a change
/// does in a frame whose changes carry.
pub fn add_carrying(bytes: &mut [u8], value: u8) {
    let Some((first, behind)) = bytes.split_first_mut() else { return };
    let sum = i16::from(*first) + i16::from(value as i8);
    *first = sum as u8;
    let mut carry = sum.div_euclid(256);
    for byte in behind.iter_mut().take(CARRY_BYTES) {
        if carry == 0 {
            return;
        }
        let sum = i16::from(*byte) + carry;
        *byte = sum as u8;
        carry = sum.div_euclid(256);
    }
}
