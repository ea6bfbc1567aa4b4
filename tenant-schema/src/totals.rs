//! What a cart costs. One pure function, used by the cart's view and by the checkout, so that both say the same.
//!
//! The rules: tax is worked out once per order, not per line, and rounded half up, so that it is at most half a minor unit
//! off. Shipping is taxed at the same rate as soon as any line is taxable. With prices that include tax the tax is the part
//! of the total that it is (`amount × rate / (1 + rate)`); otherwise it comes on top. Only lines that need shipping make the
//! flat shipping price due.

use kernel::Currency;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::settings::StoreSettings;

/// A line, as far as money is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PricedLine {
    /// The price of one.
    pub unit_price_minor: i64,
    /// How many.
    pub quantity: u32,
    /// Whether tax is due on it.
    pub is_taxable: bool,
    /// Whether it is shipped.
    pub requires_shipping: bool,
}

/// What a cart or an order costs, in minor units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// The currency of all amounts.
    #[schema(value_type = String, example = "EUR")]
    pub currency: Currency,
    /// All lines.
    pub subtotal_minor: i64,
    /// Shipping.
    pub shipping_minor: i64,
    /// Tax, either on top or contained in the total: see `taxIncluded`.
    pub tax_minor: i64,
    /// What is to be paid.
    pub total_minor: i64,
    /// Whether the other amounts hold the tax already.
    pub tax_included: bool,
    /// The rate that was used; 1900 is 19 %.
    pub tax_rate_basis_points: u16,
}

/// Adds up `lines` for an order that is shipped to `country`. `None` when a sum leaves the range that we store, which
/// lines within their limits (a price up to [`kernel::money::MAX_MINOR`], 999 of each, 100 lines) never do.
#[must_use]
pub fn totals(lines: &[PricedLine], settings: &StoreSettings, country: Option<&str>) -> Option<Totals> {
    let rate = settings.tax_rate_basis_points(country);
    let amount = |line: &PricedLine| i128::from(line.unit_price_minor) * i128::from(line.quantity);
    let subtotal: i128 = lines.iter().map(amount).sum();
    let taxable_goods: i128 = lines.iter().filter(|line| line.is_taxable).map(amount).sum();
    let is_free = settings.shipping.free_from_minor.is_some_and(|from| subtotal >= i128::from(from));
    let is_shipped = lines.iter().any(|line| line.requires_shipping);
    let shipping = if is_shipped && !is_free { i128::from(settings.shipping.flat_minor) } else { 0 };
    let is_taxed = lines.iter().any(|line| line.is_taxable);
    let taxable = if is_taxed { taxable_goods + shipping } else { 0 };
    let (tax, on_top) = if settings.prices_include_tax {
        (round_half_up(taxable * i128::from(rate), 10_000 + i128::from(rate)), 0)
    } else {
        let tax = round_half_up(taxable * i128::from(rate), 10_000);
        (tax, tax)
    };
    Some(Totals {
        currency: settings.currency,
        subtotal_minor: i64::try_from(subtotal).ok()?,
        shipping_minor: i64::try_from(shipping).ok()?,
        tax_minor: i64::try_from(tax).ok()?,
        total_minor: i64::try_from(subtotal + shipping + on_top).ok()?,
        tax_included: settings.prices_include_tax,
        tax_rate_basis_points: rate,
    })
}

/// `amount / by`, for an amount that is not negative.
fn round_half_up(amount: i128, by: i128) -> i128 {
    (2 * amount + by) / (2 * by)
}

#[cfg(test)]
mod tests {
    use super::{PricedLine, totals};
    use crate::settings::{ShippingSettings, StoreSettings, TaxSettings};
    use kernel::Currency;
    use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, proptest};

    fn settings(includes: bool, rate: u16, flat_minor: i64, free_from_minor: Option<i64>) -> StoreSettings {
        StoreSettings {
            prices_include_tax: includes,
            tax: TaxSettings { rate_basis_points: rate, countries: [("AT".to_owned(), 2000)].into() },
            shipping: ShippingSettings { flat_minor, free_from_minor },
            ..StoreSettings::new("Tea", Currency::USD)
        }
    }

    fn line(unit_price_minor: i64, quantity: u32) -> PricedLine {
        PricedLine { unit_price_minor, quantity, is_taxable: true, requires_shipping: true }
    }

    #[test]
    fn tax_comes_on_top_or_is_contained() {
        let lines = [line(1000, 2), line(333, 1)];
        let on_top = totals(&lines, &settings(false, 1900, 500, None), None).expect("small");
        assert_eq!(
            (on_top.subtotal_minor, on_top.shipping_minor, on_top.tax_minor, on_top.total_minor),
            (2333, 500, 538, 3371)
        );
        let contained = totals(&lines, &settings(true, 1900, 500, None), None).expect("small");
        assert_eq!((contained.tax_minor, contained.total_minor), (452, 2833));
        assert_eq!(
            totals(&lines, &settings(false, 1900, 500, None), Some("AT")).expect("small").tax_rate_basis_points,
            2000
        );
    }

    #[test]
    fn halves_round_up() {
        assert_eq!(totals(&[line(10, 1)], &settings(false, 500, 0, None), None).expect("small").tax_minor, 1);
        assert_eq!(totals(&[line(9, 1)], &settings(false, 500, 0, None), None).expect("small").tax_minor, 0);
    }

    #[test]
    fn shipping_is_free_from_its_threshold_and_for_what_is_not_shipped() {
        let rules = settings(false, 0, 500, Some(1000));
        assert_eq!(totals(&[line(999, 1)], &rules, None).expect("small").shipping_minor, 500);
        assert_eq!(totals(&[line(1000, 1)], &rules, None).expect("small").shipping_minor, 0);
        let download = PricedLine { requires_shipping: false, ..line(10, 1) };
        assert_eq!(totals(&[download], &rules, None).expect("small").shipping_minor, 0);
        assert_eq!(totals(&[], &rules, None).expect("small").total_minor, 0);
    }

    fn any_line() -> impl Strategy<Value = PricedLine> {
        (0..=kernel::money::MAX_MINOR, 1_u32..=999, any::<bool>(), any::<bool>()).prop_map(
            |(unit_price_minor, quantity, is_taxable, requires_shipping)| PricedLine {
                unit_price_minor,
                quantity,
                is_taxable,
                requires_shipping,
            },
        )
    }

    proptest! {
        #[test]
        fn parts_sum_to_the_total_and_nothing_is_negative(
            lines in proptest::collection::vec(any_line(), 0..=100),
            includes in any::<bool>(),
            rate in 0_u16..=10_000,
            flat in 0_i64..=kernel::money::MAX_MINOR,
            free in proptest::option::of(0_i64..=kernel::money::MAX_MINOR),
        ) {
            let sum = totals(&lines, &settings(includes, rate, flat, free), None).expect("within the limits");
            prop_assert!(sum.subtotal_minor >= 0 && sum.shipping_minor >= 0 && sum.tax_minor >= 0);
            let on_top = if includes { 0 } else { sum.tax_minor };
            prop_assert_eq!(sum.total_minor, sum.subtotal_minor + sum.shipping_minor + on_top);
            prop_assert!(!includes || sum.tax_minor <= sum.total_minor);
        }

        #[test]
        fn contained_tax_is_the_tax_on_the_net_price(net in 0_i64..=1_000_000_000, rate in 0_u16..=10_000) {
            // Whoever takes the contained tax off and puts it on again is at most one minor unit away.
            let gross = totals(&[line(net, 1)], &settings(false, rate, 0, None), None).expect("small").total_minor;
            let tax = totals(&[line(gross, 1)], &settings(true, rate, 0, None), None).expect("small").tax_minor;
            prop_assert!((gross - tax - net).abs() <= 1);
        }
    }
}
