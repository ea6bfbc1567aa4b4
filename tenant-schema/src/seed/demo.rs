//! The demo store's catalogue: made up by us, small, and with one of everything that a storefront has to show.

use chrono::{DateTime, Duration, Utc};
use kernel::Currency;
use tenancy::Transaction;

use super::SeedError;
use crate::catalog::{
    CategoryInput, MediaInput, MovementReason, ProductInput, ProductStatus, VariantInput, category_save_in,
    product_load_in, product_write_in,
};
use crate::settings::{ShippingSettings, StoreSettings, TaxSettings};
use crate::sql;

struct Demo {
    handle: &'static str,
    title: &'static str,
    subtitle: &'static str,
    description: &'static str,
    vendor: &'static str,
    product_type: &'static str,
    category: &'static str,
    tags: &'static [&'static str],
    /// The option's name and its values, each with a price in hundredths and a stock.
    option: Option<&'static str>,
    variants: &'static [(&'static str, i64, i64)],
    was: Option<i64>,
    grams: i64,
}

const CATEGORIES: [(&str, &str, &str); 3] = [
    ("tea", "Tea", "Leaves, blends and tins, packed in small batches."),
    ("teaware", "Teaware", "Pots, cups and everything between the kettle and the first sip."),
    ("pantry", "Pantry", "Honey, biscuits and other good company for a pot of tea."),
];

const PRODUCTS: [Demo; 12] = [
    Demo {
        handle: "harbour-breakfast",
        title: "Harbour Breakfast",
        subtitle: "A brisk black blend",
        description: "<p>Strong enough for milk, smooth enough without. Our everyday pot.</p>",
        vendor: "Quayside Tea",
        product_type: "Black tea",
        category: "tea",
        tags: &["black", "blend", "bestseller"],
        option: Some("Size"),
        variants: &[("50 g", 650, 40), ("100 g", 1150, 60), ("250 g", 2490, 25)],
        was: None,
        grams: 100,
    },
    Demo {
        handle: "smoked-pine",
        title: "Smoked Pine",
        subtitle: "Campfire in a cup",
        description: "<p>Whole black leaves dried over slow pine embers. A little goes a long way.</p>",
        vendor: "Quayside Tea",
        product_type: "Black tea",
        category: "tea",
        tags: &["black", "smoky"],
        option: Some("Size"),
        variants: &[("50 g", 790, 18), ("100 g", 1390, 12)],
        was: None,
        grams: 75,
    },
    Demo {
        handle: "first-rain-green",
        title: "First Rain Green",
        subtitle: "Spring leaves, pan fired",
        description: "<p>Picked before the first heavy rain of the year: sweet pea, warm grass, a clean end.</p>",
        vendor: "Terrace Nine",
        product_type: "Green tea",
        category: "tea",
        tags: &["green", "spring"],
        option: Some("Size"),
        variants: &[("50 g", 990, 30), ("100 g", 1790, 20)],
        was: Some(1190),
        grams: 75,
    },
    Demo {
        handle: "night-orchard",
        title: "Night Orchard",
        subtitle: "Apple, chamomile, no caffeine",
        description: "<p>Dried apple, chamomile flowers and a pinch of cinnamon for late evenings.</p>",
        vendor: "Terrace Nine",
        product_type: "Herbal infusion",
        category: "tea",
        tags: &["herbal", "caffeine-free", "bestseller"],
        option: None,
        variants: &[("", 720, 50)],
        was: None,
        grams: 80,
    },
    Demo {
        handle: "tasting-tin",
        title: "Tasting Tin",
        subtitle: "Six small teas",
        description: "<p>Ten grams each of six teas, so that nobody has to choose blindly.</p>",
        vendor: "Quayside Tea",
        product_type: "Gift",
        category: "tea",
        tags: &["gift", "blend"],
        option: None,
        variants: &[("", 1890, 15)],
        was: None,
        grams: 180,
    },
    Demo {
        handle: "round-pot",
        title: "Round Pot",
        subtitle: "Stoneware, 800 ml",
        description: "<p>Thrown by hand, glazed inside, with a strainer in the spout. No two are quite alike.</p>",
        vendor: "Kiln & Daughter",
        product_type: "Teapot",
        category: "teaware",
        tags: &["stoneware", "handmade"],
        option: Some("Glaze"),
        variants: &[("Oat", 4800, 6), ("Slate", 4800, 4), ("Moss", 5200, 2)],
        was: None,
        grams: 900,
    },
    Demo {
        handle: "thumb-cup",
        title: "Thumb Cup",
        subtitle: "Holds 180 ml and a thumb",
        description: "<p>A cup without a handle, with a dent where your thumb wants to be.</p>",
        vendor: "Kiln & Daughter",
        product_type: "Cup",
        category: "teaware",
        tags: &["stoneware", "handmade", "bestseller"],
        option: Some("Glaze"),
        variants: &[("Oat", 1600, 24), ("Slate", 1600, 18), ("Moss", 1600, 0)],
        was: None,
        grams: 220,
    },
    Demo {
        handle: "paper-filters",
        title: "Paper Filters",
        subtitle: "A hundred, unbleached",
        description: "<p>For loose leaves on the road. They go on the compost with the tea.</p>",
        vendor: "Plain Supply",
        product_type: "Accessory",
        category: "teaware",
        tags: &["everyday"],
        option: None,
        variants: &[("", 390, 200)],
        was: Some(450),
        grams: 60,
    },
    Demo {
        handle: "brass-scoop",
        title: "Brass Scoop",
        subtitle: "One scoop, one cup",
        description: "<p>Turned from solid brass. Measures three grams of most teas and darkens with the years.</p>",
        vendor: "Plain Supply",
        product_type: "Accessory",
        category: "teaware",
        tags: &["gift"],
        option: None,
        variants: &[("", 1250, 35)],
        was: None,
        grams: 70,
    },
    Demo {
        handle: "heather-honey",
        title: "Heather Honey",
        subtitle: "Cold pressed, 250 g",
        description: "<p>Dark, slow and a little bitter, from hives that spend August on the moor.</p>",
        vendor: "Moorside Bees",
        product_type: "Honey",
        category: "pantry",
        tags: &["honey", "bestseller"],
        option: None,
        variants: &[("", 980, 22)],
        was: None,
        grams: 420,
    },
    Demo {
        handle: "ginger-thins",
        title: "Ginger Thins",
        subtitle: "They snap",
        description: "<p>Thin ginger biscuits, baked twice a week. Made for dunking, once, briefly.</p>",
        vendor: "Oven Street",
        product_type: "Biscuits",
        category: "pantry",
        tags: &["biscuits"],
        option: Some("Pack"),
        variants: &[("One tin", 560, 40), ("Three tins", 1490, 10)],
        was: None,
        grams: 200,
    },
    Demo {
        handle: "salted-caramel-slab",
        title: "Salted Caramel Slab",
        subtitle: "Break it yourself",
        description: "<p>A slab of caramel with sea salt, and a small wooden hammer. It is gone as soon as it is made.</p>",
        vendor: "Oven Street",
        product_type: "Sweets",
        category: "pantry",
        tags: &["sweets", "gift"],
        option: None,
        variants: &[("", 840, 0)],
        was: None,
        grams: 300,
    },
];

/// The demo store's settings.
pub(super) fn settings(fresh: StoreSettings) -> StoreSettings {
    let unit = unit(fresh.currency);
    StoreSettings {
        prices_include_tax: true,
        tax: TaxSettings { rate_basis_points: 1000, ..TaxSettings::default() },
        shipping: ShippingSettings { flat_minor: 490 * unit / 100, free_from_minor: Some(5000 * unit / 100) },
        ..fresh
    }
}

/// The minor units of one whole of the currency.
fn unit(currency: Currency) -> i64 {
    10_i64.pow(currency.decimals())
}

/// Makes the categories and products that are missing; what an owner has changed since stays.
pub(super) async fn catalog(tx: &mut Transaction, currency: Currency, now: DateTime<Utc>) -> Result<(), SeedError> {
    for (position, (handle, name, description)) in (1_i32..).zip(CATEGORIES) {
        let select = sea_query::Query::select()
            .column("id")
            .from("categories")
            .and_where(sea_query::ExprTrait::eq(sea_query::Expr::col("handle"), handle))
            .take();
        if sql::optional::<(String,)>(tx, &select).await?.is_none() {
            let category = CategoryInput {
                handle: handle.to_owned(),
                name: name.to_owned(),
                description: description.to_owned(),
                parent: None,
                position,
            };
            category_save_in(tx, &category, now).await?;
        }
    }
    // The first product is the newest: each is published a minute before the one above it.
    for (age, demo) in (0_i32..).zip(&PRODUCTS) {
        if product_load_in(tx, demo.handle, currency).await?.is_none() {
            let published = now - Duration::minutes(i64::from(age));
            product_write_in(tx, None, &input(demo, currency), currency, MovementReason::Seed, published).await?;
        }
    }
    Ok(())
}

fn input(demo: &Demo, currency: Currency) -> ProductInput {
    let unit = unit(currency);
    let variants = demo.variants.iter().enumerate().map(|(at, (value, price, stocked))| VariantInput {
        options: demo.option.map(|_| (*value).to_owned()).into_iter().collect(),
        sku: Some(format!("DEMO-{}-{}", demo.handle.to_uppercase(), at + 1)),
        barcode: None,
        price_minor: price * unit / 100,
        compare_at_minor: demo.was.filter(|_| at == 0).map(|was| was * unit / 100),
        weight_grams: demo.grams,
        requires_shipping: true,
        is_taxable: true,
        manages_stock: true,
        allows_backorder: false,
        stocked: *stocked,
    });
    ProductInput {
        handle: demo.handle.to_owned(),
        title: demo.title.to_owned(),
        subtitle: Some(demo.subtitle.to_owned()),
        description_html: demo.description.to_owned(),
        vendor: Some(demo.vendor.to_owned()),
        product_type: Some(demo.product_type.to_owned()),
        status: ProductStatus::Active,
        is_published: true,
        seo_title: None,
        seo_description: None,
        tags: demo.tags.iter().map(|tag| (*tag).to_owned()).collect(),
        categories: vec![demo.category.to_owned()],
        options: demo.option.into_iter().map(str::to_owned).collect(),
        variants: variants.collect(),
        media: vec![MediaInput {
            url: format!("/demo/{}.svg", demo.handle),
            alt: Some(demo.title.to_owned()),
            variant: None,
        }],
    }
}
