//! What many measured durations come to.
//!
//! Percentiles are of the nearest rank: always a duration that was measured, never one between two.

use std::time::Duration;

use serde::Serialize;

/// Of one case.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figures {
    /// How many were measured.
    pub count: usize,
    /// How many were answered in a second.
    pub per_second: f64,
    /// The median.
    pub p50_us: f64,
    /// 99 of 100 were faster.
    pub p99_us: f64,
    /// Answered with an error; counted nowhere else.
    pub failed: u64,
}

impl Figures {
    /// Of these durations, which ended within `window`. All zero when there is none.
    pub fn new(mut durations: Vec<Duration>, window: Duration, failed: u64) -> Figures {
        durations.sort_unstable();
        let at = |percent| percentile(&durations, percent).map_or(0.0, |duration| duration.as_secs_f64() * 1e6);
        let per_second = durations.len() as f64 / window.as_secs_f64();
        Figures { count: durations.len(), per_second, p50_us: at(50), p99_us: at(99), failed }
    }
}

/// The smallest of `sorted` that at least `percent` of a hundred (1 to 100) are not above; none of nothing.
///
/// # Panics
/// For a percentage out of bounds.
pub fn percentile<T: Copy>(sorted: &[T], percent: usize) -> Option<T> {
    assert!((1..=100).contains(&percent), "{percent} is no percentile");
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let hundred: Vec<u32> = (1..=100).collect();
        assert_eq!(percentile(&hundred, 50), Some(50));
        assert_eq!(percentile(&hundred, 99), Some(99));
        assert_eq!(percentile(&hundred, 100), Some(100));
        assert_eq!(percentile(&hundred, 1), Some(1));
        assert_eq!(percentile(&[7, 8, 9], 50), Some(8));
        assert_eq!(percentile(&[7, 8], 50), Some(7));
        assert_eq!(percentile(&[7], 99), Some(7));
        assert_eq!(percentile::<u32>(&[], 50), None);
    }

    #[test]
    fn the_order_in_which_they_came_counts_nothing() {
        let durations = [5, 1, 3, 2, 4].map(Duration::from_micros).to_vec();
        let figures = Figures::new(durations, Duration::from_millis(500), 2);
        assert_eq!(figures, Figures { count: 5, per_second: 10.0, p50_us: 3.0, p99_us: 5.0, failed: 2 });
        assert_eq!(Figures::new(Vec::new(), Duration::from_secs(1), 0).p50_us, 0.0);
    }
}
