//! Histograms with one bucket for each power of two, counted in atomics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Number of buckets.
pub const BUCKETS: usize = 40;

/// Counts values by their bit length: bucket 0 holds 0, bucket `n` holds `2^(n-1)` to `2^n - 1`, the
/// last bucket everything above.
#[derive(Debug)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            sum: AtomicU64::new(0),
        }
    }
}

impl Histogram {
    /// Counts `value`.
    pub fn record(&self, value: u64) {
        let bits = usize::try_from(u64::BITS.saturating_sub(value.leading_zeros()));
        let bucket = bits.unwrap_or(BUCKETS).min(BUCKETS.saturating_sub(1));
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.fetch_add(1, Relaxed);
        }
        self.sum.fetch_add(value, Relaxed);
    }

    /// Adds what was counted so far to `total`.
    pub(crate) fn add_to(&self, total: &mut HistogramSnapshot) {
        for (sum, bucket) in total.buckets.iter_mut().zip(&self.buckets) {
            *sum = sum.wrapping_add(bucket.load(Relaxed));
        }
        total.sum = total.sum.wrapping_add(self.sum.load(Relaxed));
    }
}

/// The values of a [`Histogram`] at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistogramSnapshot {
    /// Number of values in each bucket; [`HistogramSnapshot::upper_bound`] has their borders.
    pub buckets: [u64; BUCKETS],
    /// Sum of all values.
    pub sum: u64,
}

impl Default for HistogramSnapshot {
    fn default() -> Self {
        Self {
            buckets: [0; BUCKETS],
            sum: 0,
        }
    }
}

impl HistogramSnapshot {
    /// The largest value that bucket number `bucket` holds; `None` for the last one, which has no
    /// bound.
    #[must_use]
    pub fn upper_bound(bucket: usize) -> Option<u64> {
        if bucket >= BUCKETS.saturating_sub(1) {
            return None;
        }
        let shift = u32::try_from(bucket).ok()?;
        1u64.checked_shl(shift)?.checked_sub(1)
    }

    /// Number of values.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, n| sum.wrapping_add(*n))
    }

    /// An upper bound of the value that `percent` of all values do not exceed; 0 without values.
    #[must_use]
    pub fn percentile(&self, percent: u32) -> u64 {
        let rank = u128::from(self.count()).saturating_mul(u128::from(percent));
        let mut seen = 0u128;
        for (bucket, n) in self.buckets.iter().enumerate() {
            seen = seen.saturating_add(u128::from(*n).saturating_mul(100));
            if *n > 0 && seen >= rank {
                return Self::upper_bound(bucket).unwrap_or(u64::MAX);
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_lies_in_the_bucket_whose_bound_it_does_not_exceed() {
        for value in [0, 1, 2, 3, 4, 1023, 1024, u64::MAX] {
            let histogram = Histogram::default();
            histogram.record(value);
            let mut snapshot = HistogramSnapshot::default();
            histogram.add_to(&mut snapshot);
            let bucket = snapshot.buckets.iter().position(|n| *n == 1).unwrap();
            let upper = HistogramSnapshot::upper_bound(bucket).unwrap_or(u64::MAX);
            assert!(value <= upper, "{value} {upper}");
            if bucket > 0 {
                assert!(value > HistogramSnapshot::upper_bound(bucket - 1).unwrap());
            }
            assert_eq!((snapshot.count(), snapshot.sum), (1, value));
        }
    }

    #[test]
    fn percentile_names_the_bucket_that_holds_the_rank() {
        let histogram = Histogram::default();
        for value in 1..=100 {
            histogram.record(value);
        }
        let mut snapshot = HistogramSnapshot::default();
        assert_eq!(snapshot.percentile(50), 0);
        histogram.add_to(&mut snapshot);
        assert_eq!(snapshot.percentile(50), 63);
        assert_eq!(snapshot.percentile(99), 127);
    }
}
