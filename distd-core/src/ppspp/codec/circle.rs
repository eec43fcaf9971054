//! The list of a CIRCLE message: who of a level takes turns.

use super::reader::Reader;
use super::{EncodeError, Fault};

/// Members in one list at the most.
pub const SEATS_MAX: usize = 16;
/// Bytes of a seat: id, hops.
const SEAT_BYTES: usize = 9;

/// A member of the sender's level that takes turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// The id of its PLACE.
    pub id: u64,
    /// Over how many peers the sender knows of it; 0: the sender itself.
    pub hops: u8,
}

/// At most [`SEATS_MAX`] seats, as they lie in the datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seats<'a>(&'a [[u8; SEAT_BYTES]]);

impl<'a> Seats<'a> {
    /// The seats, one after the other.
    pub fn iter(self) -> impl Iterator<Item = Seat> + 'a {
        self.0.iter().map(|[id @ .., hops]| Seat { id: u64::from_be_bytes(*id), hops: *hops })
    }

    /// How many there are.
    pub const fn len(self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, Fault> {
        let count = usize::from(reader.u8()?);
        if count > SEATS_MAX {
            return Err(Fault::TooManySeats { count });
        }
        let (seats, _) = reader.take(count.saturating_mul(SEAT_BYTES))?.as_chunks();
        Ok(Self(seats))
    }

    pub(super) const fn encoded_len(self) -> usize {
        self.0.len().saturating_mul(SEAT_BYTES).saturating_add(1)
    }

    pub(super) fn write(self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let count = u8::try_from(self.len()).unwrap_or(u8::MAX);
        if self.len() > SEATS_MAX {
            return Err(Fault::TooManySeats { count: self.len() }.into());
        }
        out.push(count);
        out.extend_from_slice(self.0.as_flattened());
        Ok(())
    }
}

/// Seats of one's own making.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeatList(Vec<[u8; SEAT_BYTES]>);

impl SeatList {
    /// The list as a message has it.
    pub fn as_seats(&self) -> Seats<'_> {
        Seats(&self.0)
    }
}

impl FromIterator<Seat> for SeatList {
    /// Takes the first [`SEATS_MAX`].
    fn from_iter<I: IntoIterator<Item = Seat>>(seats: I) -> Self {
        let seat = |Seat { id, hops }: Seat| {
            let mut bytes = [0; SEAT_BYTES];
            if let Some((head, [last])) = bytes.split_first_chunk_mut() {
                (*head, *last) = (id.to_be_bytes(), hops);
            }
            bytes
        };
        Self(seats.into_iter().take(SEATS_MAX).map(seat).collect())
    }
}
