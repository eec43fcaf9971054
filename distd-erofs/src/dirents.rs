//! A directory's content: its entries with `.` and `..`, sorted by name, in blocks.
//!
//! ```text
//! block   | nid, offset, type | nid, offset, type | ... | name name ... | zeros |
//! ```
//!
//! The first entry's offset tells how many entries the block has.

use crate::format::{BLOCK, DIRENT, Record, TYPE_DIRECTORY};

/// One entry as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dirent<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) nid: u64,
    pub(crate) file_type: u8,
}

/// Adds `.` and `..` to a directory's entries and sorts them.
pub(crate) fn with_dots(mut entries: Vec<Dirent<'_>>, own: u64, parent: u64) -> Vec<Dirent<'_>> {
    entries.push(Dirent { name: b".", nid: own, file_type: TYPE_DIRECTORY });
    entries.push(Dirent { name: b"..", nid: parent, file_type: TYPE_DIRECTORY });
    entries.sort_unstable_by_key(|entry| entry.name);
    entries
}

/// How many bytes the whole blocks before the last one have, and the last one, which is not filled up.
pub(crate) fn lengths<'a>(names: impl Iterator<Item = &'a [u8]>) -> (u64, u64) {
    let (mut whole, mut last) = (0, 0);
    for name in names {
        let len = DIRENT + name.len();
        if last + len > BLOCK {
            whole += BLOCK as u64;
            last = 0;
        }
        last += len;
    }
    (whole, last as u64)
}

/// The blocks, the last one not filled up.
pub(crate) fn encode(entries: &[Dirent<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        let mut len = 0;
        let fits = |entry: &&Dirent<'_>| {
            len += DIRENT + entry.name.len();
            len <= BLOCK
        };
        let (block, after) = rest.split_at(rest.iter().take_while(fits).count());
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes.extend(encode_block(block));
        rest = after;
    }
    bytes
}

fn encode_block(entries: &[Dirent<'_>]) -> Vec<u8> {
    let mut record = Record::default();
    let mut offset = entries.len() * DIRENT;
    for entry in entries {
        record.u64(entry.nid).u16(offset as u16).u8(entry.file_type).u8(0);
        offset += entry.name.len();
    }
    for entry in entries {
        record.bytes(entry.name);
    }
    record.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_lengths_are_those_of_what_is_written(
            names in proptest::collection::btree_set(proptest::collection::vec(1u8..255, 1..256), 0..200),
        ) {
            let entries = names.iter().map(|name| Dirent { name, nid: 9, file_type: 1 }).collect();
            let entries = with_dots(entries, 7, 8);
            prop_assert!(entries.is_sorted_by_key(|entry| entry.name));
            let bytes = encode(&entries);
            let (whole, last) = lengths(entries.iter().map(|entry| entry.name));
            prop_assert_eq!(bytes.len() as u64, whole + last);
            prop_assert!(whole.is_multiple_of(BLOCK as u64) && last <= BLOCK as u64);
        }
    }
}
