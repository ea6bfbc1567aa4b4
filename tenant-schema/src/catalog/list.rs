//! The product list: one indexed read that brings the products and the catalogue's version together.
//!
//! The text of the statement depends only on the [`Shape`] of the query. It is built once per shape and kept, so that a
//! request pays for its values and not for the text.

use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use chrono::{DateTime, Utc};
use kernel::{Currency, Cursor, Engine, ProductId, StoreId};
use sea_query::{BinOper, Expr, ExprTrait as _, Func, LikeExpr, Order, Query, SelectStatement, Value, Values};
use serde::Serialize;
use tenancy::Connection;
use utoipa::ToSchema;

use super::{CatalogError, fold, sort_key, version_subquery};
use crate::sql;
use crate::stored::Stored;

/// The most products on a page.
const MAX_LIMIT: u32 = 100;

/// The most words of a search that count.
const MAX_TERMS: usize = 4;

/// The order of a product list; the id decides between equals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ProductSort {
    /// Last published first.
    #[default]
    Newest,
    /// By title, in lower case.
    TitleAsc,
    /// By title, backwards.
    TitleDesc,
    /// Cheapest first, by a product's cheapest variant.
    PriceAsc,
    /// Dearest first, by a product's cheapest variant.
    PriceDesc,
}

impl ProductSort {
    const ALL: [Self; 5] = [Self::Newest, Self::TitleAsc, Self::TitleDesc, Self::PriceAsc, Self::PriceDesc];

    /// The name that the API uses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Newest => "newest",
            Self::TitleAsc => "title",
            Self::TitleDesc => "-title",
            Self::PriceAsc => "price",
            Self::PriceDesc => "-price",
        }
    }

    const fn column(self) -> &'static str {
        match self {
            Self::Newest => "published_at",
            Self::TitleAsc | Self::TitleDesc => "title_sort",
            Self::PriceAsc | Self::PriceDesc => "price_min_minor",
        }
    }

    const fn order(self) -> Order {
        match self {
            Self::TitleAsc | Self::PriceAsc => Order::Asc,
            Self::Newest | Self::TitleDesc | Self::PriceDesc => Order::Desc,
        }
    }
}

/// A sorting that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected one of newest, title, -title, price, -price")]
pub struct SortError;

impl FromStr for ProductSort {
    type Err = SortError;

    fn from_str(text: &str) -> Result<Self, SortError> {
        match text {
            "price_asc" => Ok(Self::PriceAsc),
            "price_desc" => Ok(Self::PriceDesc),
            _ => Self::ALL.into_iter().find(|sort| sort.as_str() == text).ok_or(SortError),
        }
    }
}

/// Which products, in which order, from where on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProductQuery {
    /// How many at most; kept within 1 to 100.
    pub limit: u32,
    /// Where the last page ended.
    pub cursor: Option<String>,
    /// The order.
    pub sort: ProductSort,
    /// Words that title, vendor, type, tags or SKUs hold; the first four count.
    pub q: Option<String>,
    /// Only products of this category or one below it, by its handle.
    pub category: Option<String>,
    /// Only products with this tag, in any case of letters.
    pub tag: Option<String>,
    /// Only products of this vendor, in any case of letters.
    pub vendor: Option<String>,
    /// Only products with a variant at this price or above.
    pub price_min_minor: Option<i64>,
    /// Only products with a variant at this price or below; with both, one variant between them.
    pub price_max_minor: Option<i64>,
    /// Only products that can be bought now.
    pub in_stock: bool,
}

impl Default for ProductQuery {
    fn default() -> Self {
        Self {
            limit: 25,
            cursor: None,
            sort: ProductSort::default(),
            q: None,
            category: None,
            tag: None,
            vendor: None,
            price_min_minor: None,
            price_max_minor: None,
            in_stock: false,
        }
    }
}

/// A product in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema, sqlx::FromRow)]
#[serde(rename_all = "camelCase")]
pub struct ProductSummary {
    /// Its id.
    #[sqlx(try_from = "Stored<ProductId>")]
    pub id: ProductId,
    /// Its name in addresses.
    pub handle: String,
    /// Its name.
    pub title: String,
    /// A line below the title.
    pub subtitle: Option<String>,
    /// Who makes it.
    pub vendor: Option<String>,
    /// What kind of thing it is.
    pub product_type: Option<String>,
    /// The price of the cheapest variant.
    pub price_min_minor: i64,
    /// The price of the dearest variant.
    pub price_max_minor: i64,
    /// What the cheapest variant cost before, when it is reduced.
    pub compare_at_minor: Option<i64>,
    /// The currency of the prices.
    #[sqlx(try_from = "Stored<Currency>")]
    #[schema(value_type = String, example = "EUR")]
    pub currency: Currency,
    /// The first picture.
    pub image_url: Option<String>,
    /// What the first picture shows.
    pub image_alt: Option<String>,
    /// Whether any variant can be bought now.
    pub is_available: bool,
    /// When it was published.
    pub published_at: DateTime<Utc>,
    #[serde(skip)]
    #[schema(ignore)]
    catalog_version: i64,
}

/// One page of a product list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProductPage {
    /// The products.
    pub products: Vec<ProductSummary>,
    /// Where the next page begins; none on the last page.
    pub next_cursor: Option<String>,
    /// The version of the catalogue that the products were read from, in the same statement.
    pub catalog_version: i64,
}

/// What decides the text of the statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    sort: ProductSort,
    has_position: bool,
    terms: usize,
    has_category: bool,
    has_tag: bool,
    has_vendor: bool,
    has_price_min: bool,
    has_price_max: bool,
    in_stock: bool,
}

const FLAGS: usize = 7;
const SHAPES: usize = ProductSort::ALL.len() * (MAX_TERMS + 1) * (1 << FLAGS);

type Texts = [OnceLock<Arc<str>>; SHAPES];

static POSTGRES_TEXTS: Texts = [const { OnceLock::new() }; SHAPES];
static MYSQL_TEXTS: Texts = [const { OnceLock::new() }; SHAPES];

impl Shape {
    /// A number below [`SHAPES`], different for every shape.
    fn index(self) -> usize {
        let flags = [
            self.has_position,
            self.has_category,
            self.has_tag,
            self.has_vendor,
            self.has_price_min,
            self.has_price_max,
            self.in_stock,
        ];
        let bits = flags.iter().fold(0, |bits, flag| (bits << 1) | usize::from(*flag));
        let sort = ProductSort::ALL.iter().position(|sort| *sort == self.sort).expect("ALL holds every sort");
        ((sort * (MAX_TERMS + 1) + self.terms) << FLAGS) | bits
    }

    fn text(self, engine: Engine) -> Arc<str> {
        let texts = match engine {
            Engine::Postgresql => &POSTGRES_TEXTS,
            Engine::Mysql => &MYSQL_TEXTS,
            engine => unreachable!("there are no statements for {engine}"),
        };
        Arc::clone(texts[self.index()].get_or_init(|| sql::text(engine, &Inputs::placeholder(self).statement())))
    }
}

/// Where a page ended: the value of the sorting's column, and the id.
#[derive(Debug, Clone, PartialEq)]
struct Position {
    key: Value,
    id: String,
}

/// The values of a query, in the order of the statement's placeholders.
#[derive(Debug, Clone, PartialEq)]
struct Inputs {
    sort: ProductSort,
    position: Option<Position>,
    terms: Vec<String>,
    category: Option<String>,
    tag: Option<String>,
    vendor: Option<String>,
    price_min_minor: Option<i64>,
    price_max_minor: Option<i64>,
    in_stock: bool,
    limit: u64,
}

impl Inputs {
    fn new(query: &ProductQuery, position: Option<Position>) -> Self {
        Self {
            sort: query.sort,
            position,
            terms: query.q.as_deref().map(search_terms).unwrap_or_default(),
            category: query.category.clone(),
            tag: query.tag.as_deref().map(|tag| fold(tag.trim())),
            vendor: query.vendor.as_deref().map(|vendor| fold(vendor.trim())),
            price_min_minor: query.price_min_minor,
            price_max_minor: query.price_max_minor,
            in_stock: query.in_stock,
            // One more than asked for says whether there is a next page.
            limit: u64::from(query.limit.clamp(1, MAX_LIMIT)) + 1,
        }
    }

    /// Inputs of the given shape, whose values do not matter.
    fn placeholder(shape: Shape) -> Self {
        let text = |is_there: bool| is_there.then(String::new);
        let key = match shape.sort {
            ProductSort::Newest => Value::from(DateTime::<Utc>::UNIX_EPOCH),
            ProductSort::TitleAsc | ProductSort::TitleDesc => Value::from(String::new()),
            ProductSort::PriceAsc | ProductSort::PriceDesc => Value::from(0_i64),
        };
        Self {
            sort: shape.sort,
            position: shape.has_position.then(|| Position { key, id: String::new() }),
            terms: vec![String::new(); shape.terms],
            category: text(shape.has_category),
            tag: text(shape.has_tag),
            vendor: text(shape.has_vendor),
            price_min_minor: shape.has_price_min.then_some(0),
            price_max_minor: shape.has_price_max.then_some(0),
            in_stock: shape.in_stock,
            limit: 1,
        }
    }

    fn shape(&self) -> Shape {
        Shape {
            sort: self.sort,
            has_position: self.position.is_some(),
            terms: self.terms.len(),
            has_category: self.category.is_some(),
            has_tag: self.tag.is_some(),
            has_vendor: self.vendor.is_some(),
            has_price_min: self.price_min_minor.is_some(),
            has_price_max: self.price_max_minor.is_some(),
            in_stock: self.in_stock,
        }
    }

    fn statement(&self) -> SelectStatement {
        let mut select = Query::select();
        select
            .columns([
                "id",
                "handle",
                "title",
                "subtitle",
                "vendor",
                "product_type",
                "price_min_minor",
                "price_max_minor",
                "compare_at_minor",
                "currency",
                "image_url",
                "image_alt",
                "is_available",
                "published_at",
            ])
            .expr_as(Expr::from(version_subquery()), "catalog_version")
            .from("products")
            .and_where(Expr::col("is_listed").eq(Expr::cust("true")));
        if let Some(position) = &self.position {
            let here = Expr::tuple([Expr::col(self.sort.column()), Expr::col("id")]);
            let there = Expr::tuple([Expr::val(position.key.clone()), Expr::val(position.id.clone())]);
            select.and_where(match self.sort.order() {
                Order::Asc => here.gt(there),
                _ => here.lt(there),
            });
        }
        for term in &self.terms {
            select.and_where(Expr::col("search_text").like(LikeExpr::new(term.clone())));
        }
        if let Some(handle) = &self.category {
            select.and_where(Expr::exists(in_category(handle)));
        }
        if let Some(tag) = &self.tag {
            let tagged = Query::select()
                .expr(Expr::cust("1"))
                .from("product_tags")
                .and_where(Expr::col(("product_tags", "product_id")).equals(("products", "id")))
                .and_where(Expr::col(("product_tags", "tag_key")).eq(tag.clone()))
                .take();
            select.and_where(Expr::exists(tagged));
        }
        if let Some(vendor) = &self.vendor {
            select.and_where(Expr::col("vendor_key").eq(vendor.clone()));
        }
        if let Some(least) = self.price_min_minor {
            select.and_where(Expr::col("price_max_minor").gte(least));
        }
        if let Some(most) = self.price_max_minor {
            select.and_where(Expr::col("price_min_minor").lte(most));
        }
        if let (Some(least), Some(most)) = (self.price_min_minor, self.price_max_minor) {
            select.and_where(Expr::exists(priced_within(least, most)));
        }
        if self.in_stock {
            select.and_where(Expr::col("is_available").eq(Expr::cust("true")));
        }
        select
            .order_by(self.sort.column(), self.sort.order())
            .order_by("id", self.sort.order())
            .limit(self.limit)
            .take()
    }

    /// What [`Self::statement`] binds, without building it. A test holds the two against each other for every shape.
    fn values(self) -> Values {
        let mut values = Vec::with_capacity(4);
        if let Some(position) = self.position {
            values.extend([position.key, position.id.into()]);
        }
        values.extend(self.terms.into_iter().map(Value::from));
        let texts = [self.category, self.tag, self.vendor];
        values.extend(texts.into_iter().flatten().map(Value::from));
        let prices = [self.price_min_minor, self.price_max_minor];
        values.extend(prices.into_iter().flatten().map(Value::from));
        if let [Some(least), Some(most)] = prices {
            values.extend([least.into(), most.into()]);
        }
        values.push(self.limit.into());
        Values(values)
    }
}

/// Whether a product has a variant whose price lies in the range: its prices may reach around the range without one inside.
fn priced_within(least: i64, most: i64) -> SelectStatement {
    Query::select()
        .expr(Expr::cust("1"))
        .from("product_variants")
        .inner_join("prices", Expr::col(("prices", "variant_id")).equals(("product_variants", "id")))
        .and_where(Expr::col(("product_variants", "product_id")).equals(("products", "id")))
        .and_where(Expr::col(("prices", "currency")).equals(("products", "currency")))
        .and_where(Expr::col(("prices", "min_quantity")).eq(Expr::cust("1")))
        .and_where(Expr::col(("prices", "amount_minor")).gte(least))
        .and_where(Expr::col(("prices", "amount_minor")).lte(most))
        .take()
}

/// Whether a product is in the category with this handle, or in one below it.
fn in_category(handle: &str) -> SelectStatement {
    let below = Func::cust("concat").args([Expr::col(("asked", "path")), Expr::cust("'%'")]);
    Query::select()
        .expr(Expr::cust("1"))
        .from("product_categories")
        .inner_join("categories", Expr::col(("categories", "id")).equals(("product_categories", "category_id")))
        .join_as(
            sea_query::JoinType::InnerJoin,
            "categories",
            "asked",
            Expr::col(("categories", "path")).binary(BinOper::Like, below),
        )
        .and_where(Expr::col(("product_categories", "product_id")).equals(("products", "id")))
        .and_where(Expr::col(("asked", "handle")).eq(handle))
        .and_where(Expr::col(("asked", "is_active")).eq(Expr::cust("true")))
        .take()
}

/// The words of a search as patterns, in lower case, with the pattern characters of the words themselves escaped.
fn search_terms(q: &str) -> Vec<String> {
    q.split_whitespace()
        .take(MAX_TERMS)
        .map(|word| {
            let mut pattern = String::with_capacity(word.len() + 2);
            pattern.push('%');
            for c in word.chars().take(60).filter(|c| *c != '\0').flat_map(char::to_lowercase) {
                if matches!(c, '%' | '_' | '\\') {
                    pattern.push('\\');
                }
                pattern.push(c);
            }
            pattern.push('%');
            pattern
        })
        .collect()
}

fn cursor(store: StoreId, query: &ProductQuery) -> Cursor {
    let number = |n: Option<i64>| n.map(|n| n.to_string()).unwrap_or_default();
    let text = |t: &Option<String>| t.as_ref().map_or_else(String::new, |t| format!("={t}"));
    Cursor::of(&[
        &store.to_string(),
        "products",
        query.sort.as_str(),
        &text(&query.q),
        &text(&query.category),
        &text(&query.tag),
        &text(&query.vendor),
        &number(query.price_min_minor),
        &number(query.price_max_minor),
        if query.in_stock { "in stock" } else { "" },
    ])
}

fn position(store: StoreId, query: &ProductQuery, text: &str) -> Result<Position, CatalogError> {
    let cursor = cursor(store, query);
    let (key, id): (Value, ProductId) = match query.sort {
        ProductSort::Newest => {
            let (micros, id) = cursor.decode::<(i64, ProductId)>(text)?;
            let at = DateTime::from_timestamp_micros(micros).ok_or(kernel::CursorError)?;
            (at.into(), id)
        }
        ProductSort::TitleAsc | ProductSort::TitleDesc => {
            let (title, id) = cursor.decode::<(String, ProductId)>(text)?;
            (title.into(), id)
        }
        ProductSort::PriceAsc | ProductSort::PriceDesc => {
            let (price, id) = cursor.decode::<(i64, ProductId)>(text)?;
            (price.into(), id)
        }
    };
    Ok(Position { key, id: id.to_string() })
}

fn cursor_after(store: StoreId, query: &ProductQuery, last: &ProductSummary) -> String {
    let cursor = cursor(store, query);
    match query.sort {
        ProductSort::Newest => cursor.encode(&(last.published_at.timestamp_micros(), last.id)),
        ProductSort::TitleAsc | ProductSort::TitleDesc => cursor.encode(&(sort_key(&last.title), last.id)),
        ProductSort::PriceAsc | ProductSort::PriceDesc => cursor.encode(&(last.price_min_minor, last.id)),
    }
}

/// A page of the products that a storefront shows, and the catalogue's version, in one statement.
///
/// # Errors
/// [`CatalogError::Cursor`] for a cursor of another store, list, sorting or filter; [`CatalogError::Db`].
pub async fn products_list(
    conn: &mut Connection,
    store: StoreId,
    query: &ProductQuery,
) -> Result<ProductPage, CatalogError> {
    let position = query.cursor.as_deref().map(|text| position(store, query, text)).transpose()?;
    let inputs = Inputs::new(query, position);
    let mut products = read(conn, inputs.clone()).await?;
    let mut catalog_version = products.first().map(|product| product.catalog_version);
    if catalog_version.is_none() {
        // An empty page brings no version. Reading the version first and the page again makes the version at most older
        // than the page, which costs a revalidation; the other way round would let an answer be stale for ever.
        let version = super::catalog_version(conn).await?;
        products = read(conn, inputs).await?;
        catalog_version = Some(products.first().map_or(version, |product| product.catalog_version));
    }
    let limit = usize::try_from(query.limit.clamp(1, MAX_LIMIT)).expect("at most 100");
    let has_next = products.len() > limit;
    products.truncate(limit);
    let next_cursor = products.last().filter(|_| has_next).map(|last| cursor_after(store, query, last));
    Ok(ProductPage { products, next_cursor, catalog_version: catalog_version.unwrap_or_default() })
}

async fn read(conn: &mut Connection, inputs: Inputs) -> Result<Vec<ProductSummary>, sqlx::Error> {
    let engine = conn.engine();
    let text = inputs.shape().text(engine);
    conn.fetch_all(sql::prepared(engine, text, inputs.values())).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn every_shape() -> Vec<Shape> {
        let mut shapes = Vec::new();
        for sort in ProductSort::ALL {
            for terms in 0..=MAX_TERMS {
                for bits in 0..1_u32 << FLAGS {
                    let flag = |at: u32| bits & (1 << at) != 0;
                    shapes.push(Shape {
                        sort,
                        terms,
                        has_position: flag(0),
                        has_category: flag(1),
                        has_tag: flag(2),
                        has_vendor: flag(3),
                        has_price_min: flag(4),
                        has_price_max: flag(5),
                        in_stock: flag(6),
                    });
                }
            }
        }
        shapes
    }

    #[test]
    fn every_shape_has_a_slot_of_its_own() {
        let slots: HashSet<usize> = every_shape().into_iter().map(Shape::index).collect();
        assert_eq!(slots.len(), SHAPES);
        assert!(slots.iter().all(|slot| *slot < SHAPES));
    }

    #[test]
    fn the_kept_text_and_the_listed_values_are_those_of_the_statement() {
        for shape in every_shape() {
            let mut inputs = Inputs::placeholder(shape);
            // Values that tell the places apart.
            for (at, term) in inputs.terms.iter_mut().enumerate() {
                *term = format!("%{at}%");
            }
            inputs.category = inputs.category.map(|_| "category".to_owned());
            inputs.tag = inputs.tag.map(|_| "tag".to_owned());
            inputs.vendor = inputs.vendor.map(|_| "vendor".to_owned());
            inputs.price_max_minor = inputs.price_max_minor.map(|_| 7);
            assert_eq!(inputs.shape(), shape);
            let built = [
                (Engine::Postgresql, inputs.statement().build(sea_query::PostgresQueryBuilder)),
                (Engine::Mysql, inputs.statement().build(sea_query::MysqlQueryBuilder)),
            ];
            for (engine, (text, values)) in built {
                assert_eq!(*shape.text(engine), *text);
                assert_eq!(inputs.clone().values(), values, "{engine}: {shape:?}");
            }
        }
    }

    #[test]
    fn a_search_cannot_smuggle_patterns() {
        assert_eq!(search_terms("100% Wool_x \\ a b"), ["%100\\%%", "%wool\\_x%", "%\\\\%", "%a%"]);
        assert!(search_terms(" \t ").is_empty());
    }

    #[test]
    fn a_cursor_of_another_store_sorting_or_filter_is_refused() {
        let now = DateTime::<Utc>::UNIX_EPOCH;
        let (mine, other) = (StoreId::new(now), StoreId::new(now));
        let query = ProductQuery::default();
        let last = ProductSummary {
            id: ProductId::new(now),
            handle: "tea".into(),
            title: "Tea".into(),
            subtitle: None,
            vendor: None,
            product_type: None,
            price_min_minor: 100,
            price_max_minor: 100,
            compare_at_minor: None,
            currency: Currency::USD,
            image_url: None,
            image_alt: None,
            is_available: true,
            published_at: now,
            catalog_version: 1,
        };
        let text = cursor_after(mine, &query, &last);
        assert!(position(mine, &query, &text).is_ok());
        assert!(position(other, &query, &text).is_err());
        for changed in [
            ProductQuery { sort: ProductSort::PriceAsc, ..query.clone() },
            ProductQuery { tag: Some(String::new()), ..query.clone() },
            ProductQuery { in_stock: true, ..query.clone() },
            ProductQuery { price_min_minor: Some(1), ..query.clone() },
        ] {
            assert!(position(mine, &changed, &text).is_err(), "{changed:?}");
        }
    }

    #[test]
    fn the_longest_title_fits_a_cursor() {
        let store = StoreId::new(DateTime::<Utc>::UNIX_EPOCH);
        let query = ProductQuery { sort: ProductSort::TitleAsc, ..ProductQuery::default() };
        for c in ["𝕏", "\"", "İ"] {
            let text = cursor(store, &query).encode(&(sort_key(&c.repeat(255)), ProductId::new(DateTime::UNIX_EPOCH)));
            assert!(position(store, &query, &text).is_ok(), "{c}");
        }
    }

    #[test]
    fn sorts_read_back() {
        for sort in ProductSort::ALL {
            assert_eq!(sort.as_str().parse(), Ok(sort));
        }
        assert_eq!("price_desc".parse(), Ok(ProductSort::PriceDesc));
        assert!("id; drop table".parse::<ProductSort>().is_err());
    }
}
