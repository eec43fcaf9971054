//! A cursor over received bytes: every read is checked, none allocates.

use super::Fault;

/// What is left of a datagram.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes left.
    pub(super) const fn len(&self) -> usize {
        self.rest.len()
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        self.number(|bytes| bytes)
    }

    /// The next `N` bytes as a number. An array that passes through a `Result` on its way would be
    /// taken apart and stored bytewise; loading the number from there waits for every store before
    /// it, which cost a sixth of a transfer's time on the receiving thread.
    #[inline]
    fn number<const N: usize, T>(&mut self, number: impl FnOnce([u8; N]) -> T) -> Result<T, Fault> {
        let Some((head, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(Fault::Truncated { needed: N, found: self.rest.len() });
        };
        self.rest = rest;
        Ok(number(*head))
    }

    /// The next `len` bytes, borrowed.
    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], Fault> {
        let (head, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(Fault::Truncated { needed: len, found: self.rest.len() })?;
        self.rest = rest;
        Ok(head)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Fault> {
        self.number(u8::from_be_bytes)
    }
    pub(super) fn u16(&mut self) -> Result<u16, Fault> {
        self.number(u16::from_be_bytes)
    }
    pub(super) fn u32(&mut self) -> Result<u32, Fault> {
        self.number(u32::from_be_bytes)
    }
    pub(super) fn u64(&mut self) -> Result<u64, Fault> {
        self.number(u64::from_be_bytes)
    }
}
