//! Money as whole minor units of a currency; nothing here is a float.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why an amount or a currency cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    /// Not three upper-case letters of ISO 4217 that we know.
    #[error("the currency is not a known ISO 4217 code")]
    Currency,
    /// Not a plain decimal number.
    #[error("the amount is not a decimal number")]
    Amount,
    /// More decimals than the currency has.
    #[error("the amount has more decimals than the currency")]
    Decimals,
    /// Below zero where only zero and more make sense.
    #[error("the amount is negative")]
    Negative,
    /// Over what we store.
    #[error("the amount is too large")]
    TooLarge,
}

/// A currency of ISO 4217.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Currency([u8; 3]);

/// Currencies whose minor unit is not a hundredth (ISO 4217), with their number of decimals.
const UNUSUAL_DECIMALS: &[(&[u8; 3], u32)] = &[
    (b"BIF", 0),
    (b"CLP", 0),
    (b"DJF", 0),
    (b"GNF", 0),
    (b"ISK", 0),
    (b"JPY", 0),
    (b"KMF", 0),
    (b"KRW", 0),
    (b"PYG", 0),
    (b"RWF", 0),
    (b"UGX", 0),
    (b"VND", 0),
    (b"VUV", 0),
    (b"XAF", 0),
    (b"XOF", 0),
    (b"XPF", 0),
    (b"BHD", 3),
    (b"IQD", 3),
    (b"JOD", 3),
    (b"KWD", 3),
    (b"LYD", 3),
    (b"OMR", 3),
    (b"TND", 3),
];

const KNOWN: &str = "AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF \
    CHF CLP CNY COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HTG HUF IDR \
    ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP MRU \
    MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR SDG SEK SGD \
    SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS UAH UGX USD UYU UZS VES VND VUV WST XAF XCD XOF XPF \
    YER ZAR ZMW ZWG";

impl Currency {
    /// US dollars, the default of a new store.
    pub const USD: Self = Self(*b"USD");

    /// Reads a code such as `EUR`.
    ///
    /// # Errors
    /// [`MoneyError::Currency`] when it is no active code of ISO 4217.
    pub fn parse(code: &str) -> Result<Self, MoneyError> {
        let bytes: [u8; 3] = code.as_bytes().try_into().map_err(|_| MoneyError::Currency)?;
        // Every row of a product list brings a code: the list of codes is sorted, each with one space after it.
        let (mut low, mut high) = (0, KNOWN.len().div_ceil(4));
        while low < high {
            let middle = usize::midpoint(low, high);
            match KNOWN.as_bytes()[4 * middle..4 * middle + 3].cmp(&bytes) {
                std::cmp::Ordering::Equal => return Ok(Self(bytes)),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Err(MoneyError::Currency)
    }

    /// The code.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("a currency is three ASCII letters")
    }

    /// How many decimals the minor unit stands for.
    #[must_use]
    pub fn decimals(self) -> u32 {
        UNUSUAL_DECIMALS.iter().find(|(code, _)| **code == self.0).map_or(2, |(_, decimals)| *decimals)
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

impl Serialize for Currency {
    fn serialize<S: serde::Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Currency {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// An amount in minor units of a currency: 1299 and USD are $12.99.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Money {
    /// Minor units.
    pub minor: i64,
    /// Of this currency.
    pub currency: Currency,
}

/// The largest amount we store: a million million minor units, far inside `i64` so that sums of lines cannot overflow.
pub const MAX_MINOR: i64 = 1_000_000_000_000;

impl Money {
    /// Reads a price as spreadsheets write it: `12`, `12.5`, `1299.00`, `1,299.00`. Thousands separators must stand where
    /// they belong; a decimal comma is refused rather than guessed at, because `1,299` would be ambiguous by a thousand.
    ///
    /// # Errors
    /// [`MoneyError`] naming what is wrong.
    pub fn parse_price(text: &str, currency: Currency) -> Result<Self, MoneyError> {
        let text = text.trim();
        if text.starts_with('-') {
            return Err(MoneyError::Negative);
        }
        let (whole, decimals) = text.split_once('.').map_or((text, ""), |(whole, decimals)| (whole, decimals));
        let whole = join_thousands(whole).ok_or(MoneyError::Amount)?;
        if !decimals.bytes().all(|b| b.is_ascii_digit()) || (text.contains('.') && decimals.is_empty()) {
            return Err(MoneyError::Amount);
        }
        let places = usize::try_from(currency.decimals()).expect("at most three");
        let significant = decimals.trim_end_matches('0');
        if significant.len() > places {
            return Err(MoneyError::Decimals);
        }
        let digits = format!("{whole}{significant:0<places$}");
        let digits = digits.trim_start_matches('0');
        if digits.len() > 13 {
            return Err(MoneyError::TooLarge);
        }
        let minor = if digits.is_empty() { 0 } else { digits.parse().map_err(|_| MoneyError::Amount)? };
        if minor > MAX_MINOR { Err(MoneyError::TooLarge) } else { Ok(Self { minor, currency }) }
    }

    /// The amount as a plain decimal with the currency's decimals: `12.99`.
    #[must_use]
    pub fn to_decimal(self) -> String {
        let places = self.currency.decimals();
        let unit = 10_u64.pow(places);
        let (sign, absolute) = (if self.minor < 0 { "-" } else { "" }, self.minor.unsigned_abs());
        if places == 0 {
            return format!("{sign}{absolute}");
        }
        let width = usize::try_from(places).expect("at most three");
        format!("{sign}{}.{:0width$}", absolute / unit, absolute % unit)
    }
}

/// The digits of a whole number whose thousands separators, if any, are all there and in their places.
fn join_thousands(text: &str) -> Option<String> {
    let all_digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let mut groups = text.split(',');
    let first = groups.next()?;
    let rest: Vec<&str> = groups.collect();
    let is_well_grouped = rest.is_empty() || first.len() <= 3;
    let fits = all_digits(first) && is_well_grouped && rest.iter().all(|part| part.len() == 3 && all_digits(part));
    fits.then(|| format!("{first}{}", rest.concat()))
}

#[cfg(test)]
mod tests {
    use super::{Currency, Money, MoneyError};
    use proptest::prelude::{prop_assert_eq, proptest};

    fn minor(text: &str) -> Result<i64, MoneyError> {
        Money::parse_price(text, Currency::USD).map(|money| money.minor)
    }

    #[test]
    fn every_known_currency_is_found_and_nothing_between() {
        let codes: Vec<&str> = super::KNOWN.split_ascii_whitespace().collect();
        assert!(codes.is_sorted() && super::KNOWN.len() == 4 * codes.len() - 1);
        for code in &codes {
            assert_eq!(Currency::parse(code).map(|currency| currency.to_string()).as_deref(), Ok(*code));
        }
        for code in ["", "AAA", "EU", "EUX", "ZZZ", "eur", " EU", "D E"] {
            assert_eq!(Currency::parse(code), Err(MoneyError::Currency), "{code}");
        }
    }

    #[test]
    fn prices_read_as_spreadsheets_write_them() {
        for (text, wanted) in [
            ("12", 1200),
            ("12.5", 1250),
            ("1,299.00", 129_900),
            ("0.99", 99),
            (" 7.10 ", 710),
            ("12.990", 1299),
            ("1,234,567.89", 123_456_789),
        ] {
            assert_eq!(minor(text), Ok(wanted), "{text}");
        }
        for text in
            ["", ".", "1.", "12,99", "1,29.00", "1299,00", "NaN", "1e3", "$12", "12 USD", "0x10", "１２", "1,,299"]
        {
            assert_eq!(minor(text), Err(MoneyError::Amount), "{text}");
        }
        assert_eq!(minor("-1"), Err(MoneyError::Negative));
        assert_eq!(minor("1.999"), Err(MoneyError::Decimals));
        assert_eq!(minor("99999999999999999999"), Err(MoneyError::TooLarge));
        let yen = Currency::parse("JPY").expect("known");
        assert_eq!(Money::parse_price("1,299", yen).map(|m| m.minor), Ok(1299));
        assert_eq!(Money::parse_price("12.5", yen).map(|m| m.minor), Err(MoneyError::Decimals));
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(amount in 0_i64..=super::MAX_MINOR, code in proptest::sample::select(vec!["USD", "JPY", "KWD"])) {
            let currency = Currency::parse(code).expect("known");
            let money = Money { minor: amount, currency };
            prop_assert_eq!(Money::parse_price(&money.to_decimal(), currency), Ok(money));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,30}") {
            let _ = minor(&text);
        }
    }
}
