//! Moments as people write them into a query: to the second, or a day for its first moment.

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use serde::de::Error as _;
use serde::{Deserialize as _, Deserializer};

const EXPECTED: &str =
    "must be a moment such as 2026-11-21T08:00:00Z, or a day such as 2026-11-21 for its midnight UTC";
const EXPECTED_DAY: &str = "must be a day such as 2026-11-21";

/// A moment. For serde's `deserialize_with`.
///
/// # Errors
/// A sentence that says what is expected.
pub fn moment<'de, D: Deserializer<'de>>(from: D) -> Result<DateTime<Utc>, D::Error> {
    let text = String::deserialize(from)?;
    if let Ok(moment) = DateTime::parse_from_rfc3339(&text) {
        return Ok(moment.to_utc());
    }
    day_of(&text).map(|day| day.and_time(NaiveTime::MIN).and_utc()).ok_or_else(|| D::Error::custom(EXPECTED))
}

/// A moment that may be left out: with `default`.
///
/// # Errors
/// As [`moment`].
pub fn moment_or_none<'de, D: Deserializer<'de>>(from: D) -> Result<Option<DateTime<Utc>>, D::Error> {
    moment(from).map(Some)
}

/// A day.
///
/// # Errors
/// A sentence that says what is expected.
pub fn day_or_none<'de, D: Deserializer<'de>>(from: D) -> Result<Option<NaiveDate>, D::Error> {
    let text = String::deserialize(from)?;
    day_of(&text).map(Some).ok_or_else(|| D::Error::custom(EXPECTED_DAY))
}

fn day_of(text: &str) -> Option<NaiveDate> {
    // chrono takes `2026-1-1` as well, which is one of several ways that people mean.
    let is_whole = text.len() == 10;
    text.parse().ok().filter(|_| is_whole)
}

#[cfg(test)]
mod tests {
    use super::moment;
    use chrono::{DateTime, Utc};
    use serde::de::value::{Error, StrDeserializer};

    fn read(text: &str) -> Result<DateTime<Utc>, Error> {
        moment(StrDeserializer::new(text))
    }

    #[test]
    fn a_day_is_its_first_moment_and_what_is_neither_is_told_what_is_expected() {
        let at = |text: &str| read(text).expect(text).to_rfc3339();
        assert_eq!(at("2026-11-21"), "2026-11-21T00:00:00+00:00");
        assert_eq!(at("2026-11-21T08:00:00+02:00"), "2026-11-21T06:00:00+00:00");
        for wrong in ["", "yesterday", "2026-13-01", "2026-1-1", "2026-11-21 08:00", "2026-11-21T08:00:00"] {
            let refused = read(wrong).expect_err(wrong).to_string();
            assert!(refused.starts_with("must be a moment such as"), "{wrong}: {refused}");
        }
    }
}
