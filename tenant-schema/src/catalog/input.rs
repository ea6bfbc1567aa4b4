//! A product as its owner wants it, and what is wrong with it.

use std::collections::HashSet;

use super::{CatalogError, fold, is_handle};
use crate::field::Fields;
use crate::stored::stored_enum;

/// The most variants of one product.
pub const MAX_VARIANTS: usize = 250;

/// The most pictures of one product.
const MAX_MEDIA: usize = 250;

/// The most tags of one product.
const MAX_TAGS: usize = 250;

/// The longest description, in bytes.
const MAX_DESCRIPTION: usize = 512 * 1024;

stored_enum! {
    /// Whether a product is sold.
    ProductStatus {
        /// Being prepared.
        Draft = "draft",
        /// Sold, as soon as it is published.
        Active = "active",
        /// No longer sold.
        Archived = "archived",
    }
}

/// Why stock changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MovementReason {
    /// The store was made with it.
    Seed,
    /// A product import says so.
    Import,
    /// The owner says so.
    Adjustment,
}

impl MovementReason {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Seed => "seed",
            Self::Import => "import",
            Self::Adjustment => "adjustment",
        }
    }
}

/// A product as its owner wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProductInput {
    /// Its name in addresses.
    pub handle: String,
    /// Its name.
    pub title: String,
    /// A line below the title.
    pub subtitle: Option<String>,
    /// HTML, kept as it is.
    pub description_html: String,
    /// Who makes it.
    pub vendor: Option<String>,
    /// What kind of thing it is.
    pub product_type: Option<String>,
    /// Whether it is sold.
    pub status: ProductStatus,
    /// Whether storefronts show it when it is active.
    pub is_published: bool,
    /// The title for search engines.
    pub seo_title: Option<String>,
    /// The description for search engines.
    pub seo_description: Option<String>,
    /// Tags.
    pub tags: Vec<String>,
    /// Handles of the categories that it is in.
    pub categories: Vec<String>,
    /// The names of its options, at most three; none for a product with one variant.
    pub options: Vec<String>,
    /// Its variants, at least one.
    pub variants: Vec<VariantInput>,
    /// Its pictures.
    pub media: Vec<MediaInput>,
}

/// A variant as its owner wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VariantInput {
    /// A value for each of the product's options.
    pub options: Vec<String>,
    /// The owner's stock-keeping unit.
    pub sku: Option<String>,
    /// Its bar code.
    pub barcode: Option<String>,
    /// Its price.
    pub price_minor: i64,
    /// What it cost before.
    pub compare_at_minor: Option<i64>,
    /// Its weight.
    pub weight_grams: i64,
    /// Whether it is shipped.
    pub requires_shipping: bool,
    /// Whether tax is due on it.
    pub is_taxable: bool,
    /// Whether stock is counted.
    pub manages_stock: bool,
    /// Whether it is sold beyond its stock.
    pub allows_backorder: bool,
    /// How many there are, with those that open orders have reserved.
    pub stocked: i64,
}

/// A picture as its owner wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MediaInput {
    /// `https://…`, `http://…` or a path of the storefront that begins with `/`.
    pub url: String,
    /// What it shows.
    pub alt: Option<String>,
    /// Which of the variants it shows, counted from 0.
    pub variant: Option<usize>,
}

/// The input in the form that is stored, or everything that is wrong with it.
pub(super) fn checked(input: &ProductInput) -> Result<ProductInput, CatalogError> {
    let mut fields = Fields::default();
    let mut product = input.clone();
    if !is_handle(&input.handle, 255) {
        fields.refuse("handle", "malformed", "small letters, digits, - and _; at most 255 characters");
    }
    product.title = fields.line("title", &input.title, 255);
    product.subtitle = fields.optional_line("subtitle", input.subtitle.as_deref(), 255);
    fields.long_text("descriptionHtml", &input.description_html, MAX_DESCRIPTION);
    product.vendor = fields.optional_line("vendor", input.vendor.as_deref(), 255);
    product.product_type = fields.optional_line("productType", input.product_type.as_deref(), 255);
    product.seo_title = fields.optional_line("seoTitle", input.seo_title.as_deref(), 255);
    product.seo_description =
        fields.optional_line("seoDescription", input.seo_description.as_deref().map(one_line).as_deref(), 1000);
    product.tags = checked_tags(&mut fields, &input.tags);
    if input.categories.len() > 100 {
        fields.refuse("categories", "too-many", "a product is in at most 100 categories");
    }
    let mut seen = HashSet::new();
    product.categories.retain(|handle| seen.insert(handle.clone()));
    if input.options.len() > 3 {
        fields.refuse("options", "too-many", "a product has at most 3 options");
    }
    product.options = input.options.iter().map(|name| fields.line("options", name, 255)).collect();
    if product.options.iter().collect::<HashSet<_>>().len() != product.options.len() {
        fields.refuse("options", "duplicate", "each option needs a name of its own");
    }
    checked_variants(&mut fields, &mut product);
    checked_media(&mut fields, &mut product);
    fields.finish().map_err(CatalogError::Invalid)?;
    Ok(product)
}

/// A text of several lines in one.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn checked_tags(fields: &mut Fields, tags: &[String]) -> Vec<String> {
    let mut checked: Vec<String> = Vec::new();
    for tag in tags {
        if let Some(tag) = fields.optional_line("tags", Some(tag), 255)
            && !checked.iter().any(|known| fold(known) == fold(&tag))
        {
            checked.push(tag);
        }
    }
    if checked.len() > MAX_TAGS {
        fields.refuse("tags", "too-many", format!("a product has at most {MAX_TAGS} tags"));
    }
    checked.sort_by_key(|tag| fold(tag));
    checked
}

fn checked_variants(fields: &mut Fields, product: &mut ProductInput) {
    if product.variants.is_empty() {
        fields.refuse("variants", "empty", "a product needs at least one variant");
    }
    if product.variants.len() > MAX_VARIANTS {
        fields.refuse("variants", "too-many", format!("a product has at most {MAX_VARIANTS} variants"));
    }
    let (mut combinations, mut skus) = (HashSet::new(), HashSet::new());
    for (at, variant) in product.variants.iter_mut().enumerate() {
        let field = |name: &str| format!("variants[{at}].{name}");
        if variant.options.len() == product.options.len() {
            variant.options = variant.options.iter().map(|value| fields.line(&field("options"), value, 255)).collect();
        } else {
            fields.refuse(field("options"), "option-missing", "a variant needs a value for each option of its product");
        }
        if !combinations.insert(variant.options.clone()) {
            fields.refuse(field("options"), "duplicate-options", "another variant has the same option values");
        }
        variant.sku = fields.optional_line(&field("sku"), variant.sku.as_deref(), 255);
        variant.barcode = fields.optional_line(&field("barcode"), variant.barcode.as_deref(), 255);
        if let Some(sku) = &variant.sku
            && !skus.insert(sku.clone())
        {
            fields.refuse(field("sku"), "duplicate-sku", "another variant has the same SKU");
        }
        let prices = [("priceMinor", Some(variant.price_minor)), ("compareAtMinor", variant.compare_at_minor)];
        for (name, price) in prices {
            if price.is_some_and(|price| !(0..=kernel::money::MAX_MINOR).contains(&price)) {
                fields.refuse(field(name), "out-of-range", "a price is 0 or more minor units, and not absurdly many");
            }
        }
        if !(0..=1_000_000_000).contains(&variant.weight_grams) {
            fields.refuse(field("weightGrams"), "out-of-range", "a weight is 0 to 1,000,000,000 grams");
        }
        if !(-1_000_000_000..=1_000_000_000).contains(&variant.stocked) {
            fields.refuse(field("stocked"), "out-of-range", "stock is at most 1,000,000,000");
        }
        if variant.stocked < 0 && !variant.allows_backorder {
            fields.refuse(
                field("stocked"),
                "negative",
                "stock below zero needs a variant that is sold beyond its stock",
            );
        }
    }
}

fn checked_media(fields: &mut Fields, product: &mut ProductInput) {
    if product.media.len() > MAX_MEDIA {
        fields.refuse("media", "too-many", format!("a product has at most {MAX_MEDIA} pictures"));
    }
    let variants = product.variants.len();
    for (at, media) in product.media.iter_mut().enumerate() {
        media.url = fields.line(&format!("media[{at}].url"), &media.url, 2000);
        let is_web = ["https://", "http://"].iter().any(|scheme| media.url.starts_with(scheme));
        if !is_web && (!media.url.starts_with('/') || media.url.starts_with("//")) {
            fields.refuse(format!("media[{at}].url"), "malformed", "must begin with https://, http:// or a single /");
        }
        let alt = media.alt.as_deref().map(one_line);
        media.alt = fields.optional_line(&format!("media[{at}].alt"), alt.as_deref(), 512);
        if media.variant.is_some_and(|variant| variant >= variants) {
            fields.refuse(format!("media[{at}].variant"), "out-of-range", "there is no such variant");
        }
    }
}
