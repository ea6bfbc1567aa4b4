//! What is said of many measurements of one thing.

use std::fmt::Write as _;

/// The middle and the spread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Spread {
    /// Median, lowest and highest.
    pub(crate) fn range(values: &[f64]) -> Self {
        Self { median: quantile(values, 0.5), low: quantile(values, 0.0), high: quantile(values, 1.0) }
    }

    /// Median and quartiles, for many single events with outliers.
    pub(crate) fn quartiles(values: &[f64]) -> Self {
        Self { median: quantile(values, 0.5), low: quantile(values, 0.25), high: quantile(values, 0.75) }
    }

    /// `0.92 (0.89..0.95)`.
    pub(crate) fn show(self, decimals: usize) -> String {
        let mut text = String::new();
        let Self { median, low, high } = self;
        write!(text, "{median:.decimals$} ({low:.decimals$}..{high:.decimals$})").expect("writing to a string");
        text
    }
}

/// The value below which this part of `values` lies; 0 of none.
pub(crate) fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = part * last as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::{Spread, quantile};

    #[test]
    fn the_middle_of_an_even_number_lies_between_two() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(quantile(&values, 0.5), 2.5);
        assert_eq!(quantile(&[], 0.5), 0.0);
        assert_eq!(Spread::range(&values), Spread { median: 2.5, low: 1.0, high: 4.0 });
        assert_eq!(Spread::quartiles(&[1.0, 2.0, 3.0, 4.0, 5.0]), Spread { median: 3.0, low: 2.0, high: 4.0 });
        assert_eq!(Spread::range(&values).show(1), "2.5 (1.0..4.0)");
    }
}
