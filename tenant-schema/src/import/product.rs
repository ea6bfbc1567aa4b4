//! The rows of one product over what is stored of it: the product as the file wants it.

use std::collections::HashSet;

use kernel::{Currency, Money, MoneyError};

use super::ImportRowError;
use super::csv_stream::Row;
use super::header::{Column, Header};
use crate::catalog::{MediaInput, ProductInput, ProductStatus, VariantInput};
use crate::field::FieldError;

/// The rows of one product.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) handle: String,
    pub(super) rows: Vec<Row>,
}

/// A product as the file wants it, and where in the file its parts come from.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) input: ProductInput,
    /// For each variant of `input` the line that speaks of it, if one does.
    variant_lines: Vec<Option<u64>>,
    /// For each picture of `input` the line that names it, if one does.
    media_lines: Vec<Option<u64>>,
    first_line: u64,
}

/// Reads fields and collects what is wrong with them.
struct Reader<'a> {
    header: &'a Header,
    handle: &'a str,
    errors: Vec<ImportRowError>,
}

impl Reader<'_> {
    fn refuse(&mut self, row: &Row, column: Option<Column>, code: &'static str, message: impl Into<String>) {
        self.errors.push(ImportRowError {
            line: row.line,
            column: column.and_then(|column| self.header.name(column)).map(str::to_owned),
            handle: Some(self.handle.to_owned()),
            code,
            message: message.into(),
        });
    }

    /// A text over an old one: a missing column keeps it, a blank field empties it.
    fn text(&self, row: &Row, column: Column, old: &mut Option<String>) {
        if let Some(text) = self.header.get(row, column) {
            *old = Some(text.to_owned()).filter(|text| !text.is_empty());
        }
    }

    /// A yes or no over an old one; blank is `blank`.
    fn flag(&mut self, row: &Row, column: Column, blank: bool, old: &mut bool) {
        let Some(text) = self.header.get(row, column) else { return };
        match text.to_lowercase().as_str() {
            "" => *old = blank,
            "true" | "yes" | "1" => *old = true,
            "false" | "no" | "0" => *old = false,
            _ => self.refuse(row, Some(column), "flag-malformed", "must be TRUE or FALSE"),
        }
    }

    /// A whole number over an old one; blank is 0. Spreadsheets like to write `5.0`.
    fn number(&mut self, row: &Row, column: Column, code: &'static str, old: &mut i64) {
        let Some(text) = self.header.get(row, column) else { return };
        match whole_number(text) {
            Some(number) => *old = number,
            None => self.refuse(row, Some(column), code, "must be a whole number"),
        }
    }

    fn price(&mut self, row: &Row, column: Column, currency: Currency) -> Option<i64> {
        let text = self.header.filled(row, column)?;
        match Money::parse_price(text, currency) {
            Ok(money) => Some(money.minor),
            Err(error) => {
                let code = match error {
                    MoneyError::Negative => "price-negative",
                    MoneyError::Decimals => "price-decimals",
                    MoneyError::TooLarge => "price-too-large",
                    MoneyError::Amount | MoneyError::Currency => "price-malformed",
                };
                self.refuse(row, Some(column), code, format!("{error}: write it like 1299.00 or 1,299.00"));
                None
            }
        }
    }
}

/// `5`, `-3`, `5.0`, `1,200`; blank is 0.
fn whole_number(text: &str) -> Option<i64> {
    if text.is_empty() {
        return Some(0);
    }
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let whole: String = whole.chars().filter(|c| *c != ',').collect();
    let is_plain = !whole.is_empty() && whole.len() <= 15 && whole.bytes().all(|byte| byte.is_ascii_digit());
    if !is_plain || !fraction.bytes().all(|byte| byte == b'0') {
        return None;
    }
    let number: i64 = whole.parse().ok()?;
    Some(if negative { -number } else { number })
}

/// A weight in grams, rounded to whole ones; blank is 0.
fn grams(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) || (text.contains('.') && fraction.is_empty()) {
        return None;
    }
    let whole = whole_number(if whole.is_empty() && !fraction.is_empty() { "0" } else { whole })?;
    (whole >= 0).then(|| whole + i64::from(fraction.as_bytes().first().is_some_and(|digit| *digit >= b'5')))
}

/// The product that `group` wants, over the `stored` one.
///
/// # Errors
/// Everything that is wrong with its rows.
pub(super) fn wanted(
    group: &Group,
    header: &Header,
    stored: Option<&ProductInput>,
    currency: Currency,
) -> Result<Wanted, Vec<ImportRowError>> {
    let mut reader = Reader { header, handle: &group.handle, errors: Vec::new() };
    let first = &group.rows[0];
    let mut input = stored.cloned().unwrap_or_else(|| blank(&group.handle));
    read_product(&mut reader, first, &mut input);
    let names = read_option_names(&mut reader, first, stored);
    let variants = read_variants(&mut reader, group, &names, stored, currency);
    let places = merge_variants(&mut input, names, &variants, stored);
    let media_lines = merge_media(&reader, group, &variants, &places, &mut input, stored);
    if reader.errors.is_empty() {
        let mut variant_lines = vec![None; input.variants.len()];
        for (variant, place) in variants.iter().zip(&places.of_rows) {
            variant_lines[*place] = Some(variant.row.line);
        }
        Ok(Wanted { input, variant_lines, media_lines, first_line: first.line })
    } else {
        Err(reader.errors)
    }
}

fn blank(handle: &str) -> ProductInput {
    ProductInput {
        handle: handle.to_owned(),
        title: String::new(),
        subtitle: None,
        description_html: String::new(),
        vendor: None,
        product_type: None,
        status: ProductStatus::Active,
        is_published: true,
        seo_title: None,
        seo_description: None,
        tags: Vec::new(),
        categories: Vec::new(),
        options: Vec::new(),
        variants: Vec::new(),
        media: Vec::new(),
    }
}

/// The product's own fields, which its first row carries.
fn read_product(reader: &mut Reader<'_>, first: &Row, input: &mut ProductInput) {
    let header = reader.header;
    if let Some(title) = header.get(first, Column::Title) {
        title.clone_into(&mut input.title);
    }
    if input.title.is_empty() {
        reader.refuse(first, Some(Column::Title), "title-missing", "a product's first row must have its title");
    }
    if let Some(body) = header.get(first, Column::Body) {
        body.clone_into(&mut input.description_html);
    }
    reader.text(first, Column::Vendor, &mut input.vendor);
    reader.text(first, Column::Type, &mut input.product_type);
    reader.text(first, Column::SeoTitle, &mut input.seo_title);
    reader.text(first, Column::SeoDescription, &mut input.seo_description);
    if let Some(tags) = header.get(first, Column::Tags) {
        input.tags = tags.split(',').map(str::trim).filter(|tag| !tag.is_empty()).map(str::to_owned).collect();
    }
    reader.flag(first, Column::Published, true, &mut input.is_published);
    if let Some(status) = header.get(first, Column::Status) {
        match status.to_lowercase().as_str() {
            "" | "active" => input.status = ProductStatus::Active,
            "draft" => input.status = ProductStatus::Draft,
            "archived" => input.status = ProductStatus::Archived,
            _ => reader.refuse(first, Some(Column::Status), "status-malformed", "must be active, draft or archived"),
        }
    }
}

/// The names of the product's options; without such columns the stored ones.
fn read_option_names(reader: &mut Reader<'_>, first: &Row, stored: Option<&ProductInput>) -> Vec<String> {
    if !reader.header.has(Column::OptionName(0)) {
        return stored.map(|stored| stored.options.clone()).unwrap_or_default();
    }
    let field = |at| reader.header.filled(first, Column::OptionName(at));
    let value = |at| reader.header.filled(first, Column::OptionValue(at));
    let is_default = field(0).is_some_and(|name| name.eq_ignore_ascii_case("title"))
        && value(0).is_none_or(|value| value.eq_ignore_ascii_case("default title"))
        && field(1).is_none();
    if is_default {
        return Vec::new();
    }
    let names: Vec<Option<&str>> = (0..3).map(field).collect();
    if let Some(stored) = stored.filter(|_| names.iter().all(Option::is_none)) {
        // Names are not repeated where nothing is said of them: variants are not thrown away by a blank.
        return stored.options.clone();
    }
    let count = names.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
    if let Some(gap) = names[..count].iter().position(Option::is_none) {
        let message = "options are named from the first on, without a gap";
        reader.refuse(first, Some(Column::OptionName(gap)), "option-name-missing", message);
    }
    names.into_iter().flatten().map(str::to_owned).collect()
}

/// A variant of the file.
struct FileVariant<'r> {
    row: &'r Row,
    input: VariantInput,
    /// Which stored variant it is.
    stored: Option<usize>,
}

fn read_variants<'r>(
    reader: &mut Reader<'_>,
    group: &'r Group,
    names: &[String],
    stored: Option<&ProductInput>,
    currency: Currency,
) -> Vec<FileVariant<'r>> {
    let mut variants: Vec<FileVariant<'r>> = Vec::new();
    let (mut combinations, mut skus) = (HashSet::new(), HashSet::new());
    for (at, row) in group.rows.iter().enumerate() {
        let says = |column| reader.header.filled(row, column).is_some();
        // The first row of a product that is there already may speak of the product alone.
        let is_variant = (at == 0 && (stored.is_none() || names.is_empty()))
            || (0..3).any(|option| says(Column::OptionValue(option)))
            || says(Column::Sku)
            || says(Column::Price);
        if !is_variant {
            let is_picture = says(Column::ImageSrc) || says(Column::VariantImage);
            if at > 0 && !is_picture {
                reader.refuse(row, None, "row-empty", "the row has neither a variant nor a picture");
            }
            continue;
        }
        let sku = reader.header.filled(row, Column::Sku);
        let found = find_stored(reader, row, names, stored, sku);
        let Some(values) = read_values(reader, row, names, stored, found) else { continue };
        let is_new_combination = combinations.insert(values.clone());
        if !is_new_combination {
            let column = Some(Column::OptionValue(0)).filter(|column| reader.header.has(*column));
            let message = "another row of this product has the same option values";
            reader.refuse(row, column, "duplicate-options", message);
        }
        if let Some(sku) = sku
            && !skus.insert(sku.to_owned())
        {
            reader.refuse(row, Some(Column::Sku), "duplicate-sku", "another row of this product has the same SKU");
        }
        let found = if is_new_combination { found } else { None };
        let old = found.and_then(|at| stored?.variants.get(at));
        let input = read_variant(reader, row, values, old, currency);
        variants.push(FileVariant { row, input, stored: found });
    }
    variants
}

/// The stored variant that a row speaks of: by option values where the options are the same, or else by SKU.
fn find_stored(
    reader: &Reader<'_>,
    row: &Row,
    names: &[String],
    stored: Option<&ProductInput>,
    sku: Option<&str>,
) -> Option<usize> {
    let stored = stored?;
    let by_sku = || stored.variants.iter().position(|old| sku.is_some() && old.sku.as_deref() == sku);
    if !names.is_empty() && !reader.header.has(Column::OptionValue(0)) {
        return by_sku();
    }
    let values: Vec<&str> = (0..names.len()).filter_map(|at| reader.header.get(row, Column::OptionValue(at))).collect();
    let is_same = |old: &VariantInput| old.options.iter().map(String::as_str).eq(values.iter().copied());
    let by_values = || stored.variants.iter().position(|old| stored.options == *names && is_same(old));
    by_values().or_else(by_sku)
}

/// A value for each option, or nothing when that was refused.
fn read_values(
    reader: &mut Reader<'_>,
    row: &Row,
    names: &[String],
    stored: Option<&ProductInput>,
    found: Option<usize>,
) -> Option<Vec<String>> {
    if !names.is_empty() && !reader.header.has(Column::OptionValue(0)) {
        // No option columns: only a SKU can say which variant is meant.
        let old = found.and_then(|at| stored?.variants.get(at));
        if old.is_none() {
            let message = "the file has no option values and no stored variant has this SKU";
            reader.refuse(row, Some(Column::Sku), "variant-unknown", message);
        }
        return old.map(|old| old.options.clone());
    }
    let mut values = Vec::with_capacity(names.len());
    for (at, name) in names.iter().enumerate() {
        match reader.header.filled(row, Column::OptionValue(at)) {
            Some(value) => values.push(value.to_owned()),
            None => {
                let message = format!("the variant has no value for the option {name}");
                reader.refuse(row, Some(Column::OptionValue(at)), "option-value-missing", message);
                return None;
            }
        }
    }
    if let Some(extra) = (names.len()..3).find(|at| {
        let is_default = *at == 0
            && reader
                .header
                .filled(row, Column::OptionValue(0))
                .is_some_and(|value| value.eq_ignore_ascii_case("default title"));
        !is_default && reader.header.filled(row, Column::OptionValue(*at)).is_some()
    }) {
        reader.refuse(
            row,
            Some(Column::OptionValue(extra)),
            "option-unknown",
            "the product's first row does not name an option for this value",
        );
        return None;
    }
    Some(values)
}

fn read_variant(
    reader: &mut Reader<'_>,
    row: &Row,
    values: Vec<String>,
    old: Option<&VariantInput>,
    currency: Currency,
) -> VariantInput {
    let header = reader.header;
    let mut variant = old.cloned().unwrap_or_else(|| VariantInput {
        options: Vec::new(),
        sku: None,
        barcode: None,
        price_minor: 0,
        compare_at_minor: None,
        weight_grams: 0,
        requires_shipping: true,
        is_taxable: true,
        manages_stock: header.filled(row, Column::Quantity).is_some(),
        allows_backorder: false,
        stocked: 0,
    });
    variant.options = values;
    reader.text(row, Column::Sku, &mut variant.sku);
    reader.text(row, Column::Barcode, &mut variant.barcode);
    if (header.has(Column::Price) || old.is_none()) && header.filled(row, Column::Price).is_none() {
        reader.refuse(row, Some(Column::Price), "price-missing", "every variant needs a price; 0 is one");
    } else if let Some(price) = reader.price(row, Column::Price, currency) {
        variant.price_minor = price;
    }
    if header.has(Column::CompareAt) {
        variant.compare_at_minor = reader.price(row, Column::CompareAt, currency).filter(|price| *price > 0);
    }
    if let Some(text) = header.get(row, Column::Grams) {
        match grams(text) {
            Some(grams) => variant.weight_grams = grams,
            None => reader.refuse(row, Some(Column::Grams), "weight-malformed", "must be a weight in grams"),
        }
    }
    reader.number(row, Column::Quantity, "quantity-malformed", &mut variant.stocked);
    if let Some(tracker) = header.get(row, Column::Tracker) {
        variant.manages_stock = !tracker.is_empty();
    }
    if let Some(policy) = header.get(row, Column::Policy) {
        match policy.to_lowercase().as_str() {
            "" | "deny" | "false" | "no" | "0" => variant.allows_backorder = false,
            "continue" | "true" | "yes" | "1" => variant.allows_backorder = true,
            _ => reader.refuse(
                row,
                Some(Column::Policy),
                "policy-malformed",
                "must be deny or continue (or FALSE or TRUE)",
            ),
        }
    }
    reader.flag(row, Column::RequiresShipping, true, &mut variant.requires_shipping);
    reader.flag(row, Column::Taxable, true, &mut variant.is_taxable);
    variant
}

/// Where variants stand in the merged product.
struct Places {
    /// Of each variant of the file.
    of_rows: Vec<usize>,
    /// Of each stored variant that stays.
    of_stored: Vec<Option<usize>>,
}

/// Puts the file's variants over the stored ones. With the same options those that the file does not mention stay; the
/// order is the file's when it mentions all of them, and the stored one otherwise.
fn merge_variants(
    input: &mut ProductInput,
    names: Vec<String>,
    variants: &[FileVariant<'_>],
    stored: Option<&ProductInput>,
) -> Places {
    let old = stored.map_or(&[][..], |stored| &stored.variants);
    let keeps_old = stored.is_some_and(|stored| stored.options == names);
    let is_mentioned = |at: usize| variants.iter().any(|variant| variant.stored == Some(at));
    let mentions_all = (0..old.len()).all(is_mentioned);
    let mut merged: Vec<VariantInput> = Vec::new();
    let mut places = Places { of_rows: vec![0; variants.len()], of_stored: vec![None; old.len()] };
    if keeps_old && !mentions_all {
        for (at, kept) in old.iter().enumerate() {
            places.of_stored[at] = Some(merged.len());
            let spoken_of = variants.iter().position(|variant| variant.stored == Some(at));
            if let Some(row) = spoken_of {
                places.of_rows[row] = merged.len();
            }
            merged.push(spoken_of.map_or_else(|| kept.clone(), |row| variants[row].input.clone()));
        }
    }
    for (row, variant) in variants.iter().enumerate() {
        let is_placed = variant.stored.is_some_and(|at| places.of_stored[at].is_some());
        if !is_placed {
            places.of_rows[row] = merged.len();
            if let Some(at) = variant.stored {
                places.of_stored[at] = Some(merged.len());
            }
            merged.push(variant.input.clone());
        }
    }
    input.options = names;
    input.variants = merged;
    places
}

/// Puts the file's pictures over the stored ones; the lines that they come from.
fn merge_media(
    reader: &Reader<'_>,
    group: &Group,
    variants: &[FileVariant<'_>],
    places: &Places,
    input: &mut ProductInput,
    stored: Option<&ProductInput>,
) -> Vec<Option<u64>> {
    let header = reader.header;
    let old: Vec<MediaInput> = stored.map_or_else(Vec::new, |stored| {
        let moved = |media: &MediaInput| MediaInput {
            variant: media.variant.and_then(|at| places.of_stored.get(at).copied().flatten()),
            ..media.clone()
        };
        stored.media.iter().map(moved).collect()
    });
    let mut media: Vec<(MediaInput, Option<u64>)> = if header.has(Column::ImageSrc) {
        let mut pictures: Vec<(i64, MediaInput, u64)> = Vec::new();
        for row in &group.rows {
            if let Some(url) = header.filled(row, Column::ImageSrc)
                && !pictures.iter().any(|(_, known, _)| known.url == url)
            {
                let position = header.filled(row, Column::ImagePosition).and_then(whole_number).unwrap_or(i64::MAX);
                let known = old.iter().find(|known| known.url == url);
                let alt = match header.get(row, Column::ImageAlt) {
                    Some(alt) => Some(alt.to_owned()).filter(|alt| !alt.is_empty()),
                    None => known.and_then(|known| known.alt.clone()),
                };
                let shown = known.and_then(|known| known.variant).filter(|_| !header.has(Column::VariantImage));
                pictures.push((position, MediaInput { url: url.to_owned(), alt, variant: shown }, row.line));
            }
        }
        pictures.sort_by_key(|(position, _, _)| *position);
        pictures.into_iter().map(|(_, media, line)| (media, Some(line))).collect()
    } else {
        let clear = header.has(Column::VariantImage);
        // Pictures that only ever stood for a variant come again from the variants below.
        let kept = old.into_iter().map(|media| MediaInput { variant: media.variant.filter(|_| !clear), ..media });
        kept.map(|media| (media, None)).collect()
    };
    for (variant, place) in variants.iter().zip(&places.of_rows) {
        if let Some(url) = header.filled(variant.row, Column::VariantImage) {
            let free = media.iter().position(|(known, _)| known.url == url && known.variant.is_none());
            match free {
                Some(at) => media[at].0.variant = Some(*place),
                None => {
                    let alt = media.iter().find(|(known, _)| known.url == url).and_then(|(known, _)| known.alt.clone());
                    let picture = MediaInput { url: url.to_owned(), alt, variant: Some(*place) };
                    media.push((picture, Some(variant.row.line)));
                }
            }
        }
    }
    let (media, lines) = media.into_iter().unzip();
    input.media = media;
    lines
}

impl Wanted {
    /// What the catalogue refuses, told in the file's lines and columns.
    pub(super) fn row_error(&self, header: &Header, error: &FieldError) -> ImportRowError {
        let (line, column) = self.place(&error.field);
        ImportRowError {
            line,
            column: column.and_then(|column| header.name(column)).map(str::to_owned),
            handle: Some(self.input.handle.clone()),
            code: error.code,
            message: error.message.clone(),
        }
    }

    fn place(&self, field: &str) -> (u64, Option<Column>) {
        let first = self.first_line;
        if let Some((at, name)) = indexed(field, "variants[") {
            let column = match name {
                "options" => Some(Column::OptionValue(0)),
                "sku" => Some(Column::Sku),
                "barcode" => Some(Column::Barcode),
                "priceMinor" => Some(Column::Price),
                "compareAtMinor" => Some(Column::CompareAt),
                "weightGrams" => Some(Column::Grams),
                "stocked" => Some(Column::Quantity),
                _ => None,
            };
            return (self.variant_lines.get(at).copied().flatten().unwrap_or(first), column);
        }
        if let Some((at, name)) = indexed(field, "media[") {
            let column = if name == "alt" { Column::ImageAlt } else { Column::ImageSrc };
            return (self.media_lines.get(at).copied().flatten().unwrap_or(first), Some(column));
        }
        let column = match field {
            "handle" => Some(Column::Handle),
            "title" => Some(Column::Title),
            "descriptionHtml" => Some(Column::Body),
            "vendor" => Some(Column::Vendor),
            "productType" => Some(Column::Type),
            "seoTitle" => Some(Column::SeoTitle),
            "seoDescription" => Some(Column::SeoDescription),
            "tags" => Some(Column::Tags),
            "options" => Some(Column::OptionName(0)),
            _ => None,
        };
        (first, column)
    }
}

/// `variants[3].sku` with the prefix `variants[`: 3 and `sku`.
fn indexed<'a>(field: &'a str, prefix: &str) -> Option<(usize, &'a str)> {
    let (at, name) = field.strip_prefix(prefix)?.split_once("].")?;
    Some((at.parse().ok()?, name))
}

#[cfg(test)]
mod tests {
    use super::{grams, whole_number};

    #[test]
    fn numbers_read_as_spreadsheets_write_them() {
        for (text, number) in [
            ("", Some(0)),
            ("5", Some(5)),
            ("-3", Some(-3)),
            ("5.0", Some(5)),
            ("1,200", Some(1200)),
            ("5.5", None),
            ("five", None),
            ("-", None),
            ("9999999999999999", None),
            ("1e3", None),
            ("+5", None),
        ] {
            assert_eq!(whole_number(text), number, "{text}");
        }
        for (text, number) in [
            ("", Some(0)),
            ("200.0", Some(200)),
            ("0.5", Some(1)),
            (".4", Some(0)),
            ("453.59", Some(454)),
            ("-1", None),
            ("1kg", None),
            ("1.", None),
        ] {
            assert_eq!(grams(text), number, "{text}");
        }
    }
}
