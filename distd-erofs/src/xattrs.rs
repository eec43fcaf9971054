//! Extended attributes: those of one inode behind it, those that several have in one place.
//!
//! The shared ones are sorted, so that their places depend on nothing but themselves.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::format::{Record, XATTR_ENTRY, XATTR_HEADER};
use crate::plan::Unfit;
use crate::tree::Xattr;

/// Namespaces and their numbers. The two ACLs are whole names.
const NAMESPACES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", ACL_ACCESS),
    (b"system.posix_acl_default", ACL_DEFAULT),
    (b"trusted.", 4),
    (b"security.", 6),
];
const ACL_ACCESS: u8 = 2;
const ACL_DEFAULT: u8 = 3;
/// An inode may refer to this many shared ones.
const SHARED_MAX: usize = 255;

/// Attributes that several inodes have, by place.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Each one's number: its place in units of four bytes.
    ids: BTreeMap<(Vec<u8>, Vec<u8>), u32>,
    len: u64,
}

/// Finds out which attributes several inodes have.
#[derive(Debug, Default)]
pub(crate) struct Counting {
    /// Those met, by hash. Of two that have one hash, the second is taken for shared: no harm.
    seen: HashSet<u64>,
    shared: Shared,
}

impl Counting {
    pub(crate) fn meet(&mut self, xattr: &Xattr<'_>) {
        let mut hasher = DefaultHasher::new();
        xattr.hash(&mut hasher);
        if !self.seen.insert(hasher.finish()) {
            self.shared.ids.insert((xattr.name.to_vec(), xattr.value.to_vec()), 0);
        }
    }

    /// Gives each its place.
    pub(crate) fn finish(self) -> Shared {
        let mut shared = self.shared;
        let mut at = 0;
        for ((name, value), id) in &mut shared.ids {
            *id = (at / XATTR_ENTRY as u64) as u32;
            at += encoded_len(name, value);
        }
        shared.len = at;
        shared
    }
}

impl Shared {
    /// Bytes of all of them.
    pub(crate) const fn len(&self) -> u64 {
        self.len
    }

    /// Gives the bytes of each, in order.
    pub(crate) fn encode(&self) -> impl Iterator<Item = Vec<u8>> {
        self.ids.keys().map(|(name, value)| encode_one(name, value))
    }

    /// The numbers of an inode's shared attributes, and its others.
    fn split<'a, 'x>(&self, xattrs: &'a [Xattr<'x>]) -> (Vec<u32>, Vec<&'a Xattr<'x>>) {
        let (mut ids, mut own) = (Vec::new(), Vec::new());
        for xattr in xattrs {
            let key = (xattr.name.to_vec(), xattr.value.to_vec());
            match self.ids.get(&key) {
                Some(id) if ids.len() < SHARED_MAX => ids.push(*id),
                _ => own.push(xattr),
            }
        }
        (ids, own)
    }

    /// Bytes of an inode's attributes.
    pub(crate) fn inode_len(&self, xattrs: &[Xattr<'_>]) -> Result<u64, Unfit> {
        if xattrs.is_empty() {
            return Ok(0);
        }
        for xattr in xattrs {
            let unfit = || Unfit::Xattr { name: xattr.name.to_vec() };
            let (_, rest) = namespace(&xattr.name).ok_or_else(unfit)?;
            if rest.len() > usize::from(u8::MAX) || xattr.value.len() > usize::from(u16::MAX) {
                return Err(unfit());
            }
        }
        let (ids, own) = self.split(xattrs);
        let own: u64 = own.iter().map(|xattr| encoded_len(&xattr.name, &xattr.value)).sum();
        let len = XATTR_HEADER as u64 + ids.len() as u64 * 4 + own;
        if count(len) > u64::from(u16::MAX) { Err(Unfit::XattrBytes { len }) } else { Ok(len) }
    }

    /// An inode's attributes.
    pub(crate) fn encode_inode(&self, xattrs: &[Xattr<'_>]) -> Vec<u8> {
        if xattrs.is_empty() {
            return Vec::new();
        }
        let (ids, own) = self.split(xattrs);
        let mut record = Record::default();
        record.u32(0).u8(ids.len() as u8).pad_to(XATTR_HEADER);
        for id in ids {
            record.u32(id);
        }
        for xattr in own {
            record.bytes(&encode_one(&xattr.name, &xattr.value));
        }
        record.0
    }
}

/// What an inode says of the length of its attributes.
pub(crate) const fn count(len: u64) -> u64 {
    if len == 0 { 0 } else { (len - XATTR_HEADER as u64) / 4 + 1 }
}

/// The full name for a namespace's number and the rest of the name.
pub(crate) fn full_name(index: u8, rest: &[u8]) -> Option<Vec<u8>> {
    let (prefix, _) = NAMESPACES.iter().find(|(_, number)| *number == index)?;
    Some([prefix, rest].concat())
}

/// The number of a name's namespace, and the rest of the name.
fn namespace(name: &[u8]) -> Option<(u8, &[u8])> {
    NAMESPACES.iter().find_map(|(prefix, number)| {
        let rest = name.strip_prefix(*prefix)?;
        let whole = matches!(*number, ACL_ACCESS | ACL_DEFAULT);
        (whole == rest.is_empty()).then_some((*number, rest))
    })
}

fn encoded_len(name: &[u8], value: &[u8]) -> u64 {
    let rest = namespace(name).map_or(name, |(_, rest)| rest);
    (XATTR_ENTRY + rest.len() + value.len()).next_multiple_of(XATTR_ENTRY) as u64
}

fn encode_one(name: &[u8], value: &[u8]) -> Vec<u8> {
    let (number, rest) = namespace(name).unwrap_or((0, name));
    let mut record = Record::default();
    record.u8(rest.len() as u8).u8(number).u16(value.len() as u16).bytes(rest).bytes(value);
    let len = record.0.len().next_multiple_of(XATTR_ENTRY);
    record.pad_to(len);
    record.0
}
