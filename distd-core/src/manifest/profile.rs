//! A profile: what a release is first used for, in order. As text it names places in files, so that it
//! outlives the release that it was recorded of; in the log it names blocks.
//!
//! ```text
//! # distd profile 1
//! 0 32 usr/bin/program         first block of the file, number of blocks, path
//! 64 4 usr/lib/lib\040x.so     a byte below 33, above 126, or a backslash is \ and three octal digits
//! ```

use std::fmt::Write;

use crate::limits::{PROFILE_RANGES_MAX, TREE_DEPTH_MAX};
use crate::unit::BlockRange;

use super::extent::{Extents, WireExtent};
use super::node::{decode, encode};
use super::{Extent, NodeError};

/// The first line of the text form.
const HEADING: &str = "# distd profile 1";

/// Blocks of a file that are used together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// The file's path in the release.
    pub path: Vec<u8>,
    /// First block of the file.
    pub first: u64,
    /// Number of blocks.
    pub count: u64,
}

/// A line of a profile that is none.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {line} of the profile: expected {expected}; record it with 'distd-fs trace'")]
pub struct ProfileError {
    /// Which line, from 1.
    pub line: usize,
    /// What should be there.
    pub expected: &'static str,
}

/// The text form of accesses.
pub fn profile_text<'a>(accesses: impl IntoIterator<Item = &'a Access>) -> String {
    let mut text = format!("{HEADING}\n");
    for Access { path, first, count } in accesses {
        let _ = write!(text, "{first} {count} ");
        for byte in path {
            if (33..127).contains(byte) && *byte != b'\\' {
                text.push(char::from(*byte));
            } else {
                let _ = write!(text, "\\{byte:03o}");
            }
        }
        text.push('\n');
    }
    text
}

/// Reads the text form; of more than [`PROFILE_RANGES_MAX`] accesses the first ones count.
pub fn parse_profile(text: &str) -> Result<Vec<Access>, ProfileError> {
    let mut lines = text.lines().enumerate();
    let wrong = |line: usize, expected| ProfileError { line: line + 1, expected };
    if lines.next().is_none_or(|(_, line)| line != HEADING) {
        return Err(wrong(0, "'# distd profile 1'"));
    }
    let mut accesses = Vec::new();
    for (number, line) in lines.take(PROFILE_RANGES_MAX) {
        let wrong = || wrong(number, "FIRST COUNT PATH");
        let mut words = line.splitn(3, ' ');
        let mut number = || words.next()?.parse::<u64>().ok().filter(|n| *n <= 1 << 50);
        let (first, count) = (number().ok_or_else(wrong)?, number().ok_or_else(wrong)?);
        let path = words.next().and_then(unescape).ok_or_else(wrong)?;
        if count == 0 || path.is_empty() || path.split(|b| *b == b'/').count() > TREE_DEPTH_MAX {
            return Err(wrong());
        }
        accesses.push(Access { path, first, count });
    }
    Ok(accesses)
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first == b'\\' {
            let (digits, after) = after.split_first_chunk::<3>()?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()?);
            rest = after;
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    Some(bytes)
}

/// A release's profile in the log.
pub struct Profile;

impl Profile {
    const WHAT: &str = "profile";

    /// Encodes the blocks in the order of their use.
    pub fn encode(ranges: &[BlockRange]) -> Vec<u8> {
        let extents: Extents =
            ranges.iter().take(PROFILE_RANGES_MAX).copied().map(Extent::Data).collect();
        encode(&extents.to_wire())
    }

    /// Decodes verified bytes of the log.
    pub fn decode(bytes: &[u8]) -> Result<Vec<BlockRange>, NodeError> {
        let invalid = |rule| NodeError::Invalid { what: Self::WHAT, rule, index: 0 };
        let wire: Vec<WireExtent> = decode(Self::WHAT, bytes)?;
        if wire.len() > PROFILE_RANGES_MAX {
            return Err(invalid("more ranges than a profile may have"));
        }
        let extents = Extents::unsized_from_wire(&wire).map_err(invalid)?;
        if extents.data().count() != extents.len() {
            return Err(invalid("a profile has a hole"));
        }
        Ok(extents.data().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unit::BlockIndex;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_profile_reads_as_it_was_written(
            list in proptest::collection::vec(
                (proptest::collection::vec(any::<u8>(), 1..20), 0u64..1 << 40, 1u64..1000), 0..20,
            ),
        ) {
            let access = |(path, first, count)| Access { path, first, count };
            let accesses: Vec<Access> = list.into_iter().map(access).collect();
            prop_assert_eq!(parse_profile(&profile_text(&accesses)), Ok(accesses));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".*") {
            let _ = parse_profile(&text);
            let _ = parse_profile(&format!("{HEADING}\n{text}"));
        }

        #[test]
        fn ranges_come_back_in_their_order(list in proptest::collection::vec((0u64..100, 1u64..9), 0..20)) {
            let range = |(start, count)| BlockRange::new(BlockIndex(start), count);
            let ranges: Vec<_> = list.into_iter().map(range).collect();
            let blocks = |ranges: &[BlockRange]| -> Vec<u64> {
                ranges.iter().flat_map(|range| range.iter()).map(|block| block.0).collect()
            };
            let decoded = Profile::decode(&Profile::encode(&ranges)).expect("canonical");
            prop_assert_eq!(blocks(&decoded), blocks(&ranges));
        }
    }

    #[test]
    fn what_is_wrong_with_a_profile_is_named_by_its_line() {
        for (text, line) in [
            ("", 1),
            ("nonsense", 1),
            ("# distd profile 1\n0 0 x", 2),
            ("# distd profile 1\n0 1 x\n1 x", 3),
            ("# distd profile 1\n0 1 a\\9", 2),
        ] {
            assert_eq!(parse_profile(text).expect_err("wrong").line, line, "{text}");
        }
    }
}
