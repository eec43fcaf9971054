//! A set of disjoint, half-open intervals of integers: availability, what is held, what is wanted.
//!
//! Neighbours are merged, so that a whole log is one interval whatever the order of insertion.

use std::collections::BTreeMap;

/// Disjoint intervals `start..end`, never empty, never touching.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct IntervalSet {
    spans: BTreeMap<u64, u64>,
}

impl IntervalSet {
    /// Number of intervals.
    pub(super) fn len(&self) -> usize {
        self.spans.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Adds `start..end`; an empty interval adds nothing.
    pub(super) fn insert(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let (mut start, mut end) = (start, end);
        if let Some((before, until)) = self.spans.range(..=start).next_back()
            && *until >= start
        {
            if *until >= end {
                return;
            }
            start = *before;
        }
        while let Some((next, until)) = self.spans.range(start..=end).next() {
            let (next, until) = (*next, *until);
            end = end.max(until);
            self.spans.remove(&next);
        }
        self.spans.insert(start, end);
    }

    /// Takes `start..end` out.
    pub(super) fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        if let Some((before, until)) = self.spans.range(..start).next_back() {
            let (before, until) = (*before, *until);
            if until > start {
                self.spans.insert(before, start);
                if until > end {
                    self.spans.insert(end, until);
                    return;
                }
            }
        }
        while let Some((next, until)) = self.spans.range(start..end).next() {
            let (next, until) = (*next, *until);
            self.spans.remove(&next);
            if until > end {
                self.spans.insert(end, until);
            }
        }
    }

    /// Whether all of `start..end` is in the set.
    pub(super) fn contains(&self, start: u64, end: u64) -> bool {
        self.covering(start).is_some_and(|(_, until)| until >= end)
    }

    /// The interval that holds `at`.
    pub(super) fn covering(&self, at: u64) -> Option<(u64, u64)> {
        let (start, end) = self.spans.range(..=at).next_back()?;
        (*end > at).then_some((*start, *end))
    }

    /// The first stretch of the set within `start..end`.
    pub(super) fn first_within(&self, start: u64, end: u64) -> Option<(u64, u64)> {
        if start >= end {
            return None;
        }
        if let Some((_, until)) = self.covering(start) {
            return Some((start, until.min(end)));
        }
        let (next, until) = self.spans.range(start..end).next()?;
        Some((*next, (*until).min(end)))
    }

    /// The first stretch that is in both sets.
    pub(super) fn first_common(&self, other: &Self) -> Option<(u64, u64)> {
        self.next_common(other, 0)
    }

    /// The first stretch at `at` or behind that is in both sets.
    pub(super) fn next_common(&self, other: &Self, mut at: u64) -> Option<(u64, u64)> {
        loop {
            let (start, end) = self.first_within(at, u64::MAX)?;
            if let Some(common) = other.first_within(start, end) {
                return Some(common);
            }
            // Nothing of this interval: jump to where the other set goes on.
            let (next, _) = other.spans.range(end..).next()?;
            at = (*next).max(end);
        }
    }

    /// How many integers there are.
    pub(super) fn count(&self) -> u64 {
        self.iter().map(|(start, end)| end - start).sum()
    }

    /// The first interval.
    pub(super) fn first(&self) -> Option<(u64, u64)> {
        self.spans.first_key_value().map(|(start, end)| (*start, *end))
    }

    /// The stretches of the set within `start..end`, in order.
    pub(super) fn iter_within(
        &self,
        start: u64,
        end: u64,
    ) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut at = start;
        std::iter::from_fn(move || {
            let found = self.first_within(at, end)?;
            at = found.1;
            Some(found)
        })
    }

    /// All intervals in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.spans.iter().map(|(start, end)| (*start, *end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_behaves_as_a_set_of_integers(
            ops in prop::collection::vec((any::<bool>(), 0u64..60, 0u64..20), 0..40),
            (from, len) in (0u64..60, 1u64..20),
            others in prop::collection::vec((0u64..60, 1u64..10), 0..5),
        ) {
            let (mut set, mut plain) = (IntervalSet::default(), BTreeSet::new());
            for (insert, start, len) in ops {
                if insert {
                    set.insert(start, start + len);
                    plain.extend(start..start + len);
                } else {
                    set.remove(start, start + len);
                    (start..start + len).for_each(|i| { plain.remove(&i); });
                }
            }
            let listed: BTreeSet<u64> = set.iter().flat_map(|(s, e)| s..e).collect();
            prop_assert_eq!(&listed, &plain);
            let spans: Vec<_> = set.iter().collect();
            prop_assert!(spans.windows(2).all(|w| w[0].1 < w[1].0));
            prop_assert_eq!(set.contains(from, from + len), (from..from + len).all(|i| plain.contains(&i)));
            let first = (from..from + len).find(|i| plain.contains(i));
            prop_assert_eq!(set.first_within(from, from + len).map(|(s, _)| s), first);
            let mut other = IntervalSet::default();
            for (s, l) in others {
                other.insert(s, s + l);
            }
            let common = plain.iter().copied().find(|i| other.contains(*i, i + 1));
            prop_assert_eq!(set.first_common(&other).map(|(s, _)| s), common);
        }
    }
}
