//! HTTP of the storefront.

use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;
use kernel::{CartId, CartLineId, OrderId, VariantId};
use problem::{Json, Path, Problem, ProblemBody, Query};
use serde::{Deserialize, Serialize};
use tenancy::Connection;
use tenant_schema::cart::{self, CartKey, CartPatch, CartView};
use tenant_schema::catalog::{self, CategoryNode, CategoryView, ProductDetail, ProductQuery, ProductSummary};
use tenant_schema::checkout::{self, CheckoutInput};
use tenant_schema::content::{self, PageSummary, PageView, RedirectView};
use tenant_schema::order::{self, OrderView};
use tenant_schema::settings::{self, StoreView};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::respond::{Validator, no_store};
use super::{Storefront, TakingOrders, errors, upkeep};
use crate::cx::Cx;
use crate::http::errors::invalid_query;
use crate::idempotency::{self, IdempotencyKey};
use crate::ops::routes::{Page, PageMeta};

/// The header that reaches a cart.
const CART_TOKEN: &str = "x-cart-token";
/// The header that reaches an order.
const ORDER_TOKEN: &str = "x-order-token";

pub fn router() -> OpenApiRouter<Cx> {
    OpenApiRouter::new()
        .routes(routes!(storefront_store_get))
        .routes(routes!(storefront_product_list))
        .routes(routes!(storefront_product_get))
        .routes(routes!(storefront_category_list))
        .routes(routes!(storefront_category_get))
        .routes(routes!(storefront_page_list))
        .routes(routes!(storefront_page_get))
        .routes(routes!(storefront_redirect_get))
        .routes(routes!(storefront_cart_create))
        .routes(routes!(storefront_cart_get, storefront_cart_update))
        .routes(routes!(storefront_line_add))
        .routes(routes!(storefront_line_change, storefront_line_remove))
        .routes(routes!(storefront_cart_complete))
        .routes(routes!(storefront_order_get))
}

/// Answers out of the catalogue: 304 after one cheap read when the client may have the answer, else the whole of it.
async fn cached<T: Serialize>(
    store: &Storefront,
    headers: &HeaderMap,
    uri: &axum::http::Uri,
    read: impl for<'c> FnOnce(&'c mut Connection) -> BoxFuture<'c, Result<(T, i64), Problem>>,
) -> Result<Response, Problem> {
    let path_and_query = uri.path_and_query().map_or("/", axum::http::uri::PathAndQuery::as_str);
    let validator = Validator::new(store.store_id, path_and_query, store.is_public);
    let mut connection = store.acquire().await?;
    if validator.may_match(headers) {
        let version = catalog::catalog_version(&mut connection).await.map_err(|error| errors::from_db(&error))?;
        if let Some(response) = validator.not_modified(headers, version) {
            return Ok(response);
        }
    }
    let (body, version) = read(&mut connection).await?;
    drop(connection);
    validator.ok(version, &body)
}

/// The store
#[utoipa::path(get, path = "/store/v1/store", tag = "storefront", operation_id = "storefront_store_get",
    responses((status = 200, body = StoreView), (status = 400, body = ProblemBody), (status = 304), (status = 421, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn storefront_store_get(
    store: Storefront,
    Query(NoParameters {}): Query<NoParameters>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    cached(&store, &headers, &uri, |connection| {
        Box::pin(async move {
            let view = settings::store_view(connection).await.map_err(errors::from_settings)?;
            let version = view.catalog_version;
            Ok((view, version))
        })
    })
    .await
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ProductListQuery {
    /// 1 to 100; 25 when left out.
    limit: Option<u32>,
    /// `meta.nextCursor` of the page before.
    cursor: Option<String>,
    /// `newest`, `title`, `-title`, `price` or `-price`.
    sort: Option<String>,
    /// Words to search for; the first four count.
    q: Option<String>,
    /// The handle of a category; what is below it counts as well.
    category: Option<String>,
    tag: Option<String>,
    vendor: Option<String>,
    /// Only products with a variant at this price or above, in minor units of the store's currency.
    price_min: Option<i64>,
    /// Only products with a variant at this price or below; with `price_min`, with one between the two.
    price_max: Option<i64>,
    /// Only what can be bought now.
    in_stock: Option<bool>,
}

impl ProductListQuery {
    fn read(self) -> Result<ProductQuery, Problem> {
        let limit = self.limit.unwrap_or(25);
        if !(1..=100).contains(&limit) {
            return Err(invalid_query("limit", "must be 1 to 100"));
        }
        let too_long =
            |text: &Option<String>| text.as_ref().is_some_and(|text| text.len() > 255 || text.contains('\0'));
        for (name, text) in [("q", &self.q), ("category", &self.category), ("tag", &self.tag), ("vendor", &self.vendor)]
        {
            if too_long(text) {
                return Err(invalid_query(name, "must have at most 255 bytes and no NUL"));
            }
        }
        let sort = match self.sort {
            Some(text) => {
                text.parse().map_err(|_| invalid_query("sort", "must be newest, title, -title, price or -price"))?
            }
            None => catalog::ProductSort::default(),
        };
        Ok(ProductQuery {
            limit,
            cursor: self.cursor,
            sort,
            q: self.q,
            category: self.category,
            tag: self.tag,
            vendor: self.vendor,
            price_min_minor: self.price_min,
            price_max_minor: self.price_max,
            in_stock: self.in_stock.unwrap_or(false),
        })
    }
}

/// Products
#[utoipa::path(get, path = "/store/v1/products", tag = "storefront", operation_id = "storefront_product_list", params(ProductListQuery),
    responses((status = 200, body = Page<ProductSummary>), (status = 304), (status = 400, body = ProblemBody), (status = 421, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn storefront_product_list(
    store: Storefront,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    Query(query): Query<ProductListQuery>,
) -> Result<Response, Problem> {
    let query = query.read()?;
    let id = store.store_id;
    cached(&store, &headers, &uri, |connection| {
        Box::pin(async move {
            let page = catalog::products_list(connection, id, &query).await.map_err(errors::from_catalog)?;
            let body = Page { data: page.products, meta: PageMeta { next_cursor: page.next_cursor } };
            Ok((body, page.catalog_version))
        })
    })
    .await
}

/// One product, by handle or id
#[utoipa::path(get, path = "/store/v1/products/{product}", tag = "storefront", operation_id = "storefront_product_get",
    params(("product" = String, Path, description = "Handle or id")),
    responses((status = 200, body = ProductDetail), (status = 400, body = ProblemBody), (status = 304), (status = 404, body = ProblemBody), (status = 421, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn storefront_product_get(
    store: Storefront,
    Query(NoParameters {}): Query<NoParameters>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    Path(product): Path<String>,
) -> Result<Response, Problem> {
    cached(&store, &headers, &uri, |connection| {
        Box::pin(async move {
            let found = catalog::product_by_handle(connection, &product).await.map_err(errors::from_catalog)?;
            let product = found.ok_or_else(Problem::not_found)?;
            let version = product.catalog_version;
            Ok((product, version))
        })
    })
    .await
}

/// The categories, as a tree
#[utoipa::path(get, path = "/store/v1/categories", tag = "storefront", operation_id = "storefront_category_list",
    responses((status = 200, body = Page<CategoryNode>), (status = 400, body = ProblemBody), (status = 304), (status = 421, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn storefront_category_list(
    store: Storefront,
    Query(NoParameters {}): Query<NoParameters>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    cached(&store, &headers, &uri, |connection| {
        Box::pin(async move {
            let tree = catalog::categories_tree(connection).await.map_err(errors::from_catalog)?;
            Ok((Page::whole(tree.roots), tree.catalog_version))
        })
    })
    .await
}

/// One category
#[utoipa::path(get, path = "/store/v1/categories/{handle}", tag = "storefront", operation_id = "storefront_category_get", params(("handle" = String, Path)),
    responses((status = 200, body = CategoryView), (status = 400, body = ProblemBody), (status = 304), (status = 404, body = ProblemBody), (status = 421, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn storefront_category_get(
    store: Storefront,
    Query(NoParameters {}): Query<NoParameters>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    Path(handle): Path<String>,
) -> Result<Response, Problem> {
    cached(&store, &headers, &uri, |connection| {
        Box::pin(async move {
            let found = catalog::category_by_handle(connection, &handle).await.map_err(errors::from_catalog)?;
            let category = found.ok_or_else(Problem::not_found)?;
            let version = category.catalog_version;
            Ok((category, version))
        })
    })
    .await
}

/// The pages
#[utoipa::path(get, path = "/store/v1/pages", tag = "storefront", operation_id = "storefront_page_list",
    responses((status = 200, body = Page<PageSummary>), (status = 400, body = ProblemBody), (status = 304), (status = 421, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn storefront_page_list(
    store: Storefront,
    Query(NoParameters {}): Query<NoParameters>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    cached(&store, &headers, &uri, |connection| {
        Box::pin(async move {
            let pages = content::pages_list(connection).await.map_err(|error| errors::from_db(&error))?;
            Ok((Page::whole(pages.pages), pages.catalog_version))
        })
    })
    .await
}

/// One page
#[utoipa::path(get, path = "/store/v1/pages/{slug}", tag = "storefront", operation_id = "storefront_page_get", params(("slug" = String, Path)),
    responses((status = 200, body = PageView), (status = 400, body = ProblemBody), (status = 304), (status = 404, body = ProblemBody), (status = 421, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn storefront_page_get(
    store: Storefront,
    Query(NoParameters {}): Query<NoParameters>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    Path(slug): Path<String>,
) -> Result<Response, Problem> {
    cached(&store, &headers, &uri, |connection| {
        Box::pin(async move {
            let found = content::page_by_slug(connection, &slug).await.map_err(|error| errors::from_db(&error))?;
            let page = found.ok_or_else(Problem::not_found)?;
            let version = page.catalog_version;
            Ok((page, version))
        })
    })
    .await
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RedirectQuery {
    /// The path that was asked for.
    path: String,
}

/// Where an old path leads
#[utoipa::path(get, path = "/store/v1/redirects", tag = "storefront", operation_id = "storefront_redirect_get", params(RedirectQuery),
    responses((status = 200, body = RedirectView), (status = 400, body = ProblemBody), (status = 404, body = ProblemBody), (status = 421, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn storefront_redirect_get(store: Storefront, Query(query): Query<RedirectQuery>) -> Result<Response, Problem> {
    let mut connection = store.acquire().await?;
    let found = content::redirect_for(&mut connection, &query.path).await.map_err(|error| errors::from_db(&error))?;
    let redirect = found.ok_or_else(Problem::not_found)?;
    Ok(Json(redirect).into_response())
}

/// A cart, and what reaches it.
#[derive(Serialize, ToSchema)]
pub struct NewCartView {
    #[serde(flatten)]
    cart: CartView,
    /// Send it as `X-Cart-Token` from now on. It is shown this once.
    token: String,
}

fn cart_response(status: StatusCode, version: i32, body: impl Serialize) -> Response {
    let mut response = no_store(status, Json(body));
    if let Ok(value) = HeaderValue::from_str(&format!("\"{version}\"")) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response
}

/// The token in a header. A wrong one finds nothing; that none was sent is told, since a client forgets it easily.
fn token<'h>(headers: &'h HeaderMap, name: &'static str) -> Result<&'h str, Problem> {
    let value = headers.get(name).filter(|value| !value.is_empty()).ok_or_else(|| {
        let (shown, whence) = match name {
            CART_TOKEN => ("X-Cart-Token", "send the `token` that the cart was made with"),
            _ => ("X-Order-Token", "send the `orderToken` that came with the order"),
        };
        Problem::new(StatusCode::BAD_REQUEST, "missing-token", "The request needs a token in a header")
            .detail(format!("Send the header {shown}."))
            .field(shown, "required", whence)
    })?;
    value.to_str().ok().filter(|text| text.len() <= 200).ok_or_else(Problem::not_found)
}

/// For routes without query parameters: a misspelt one is refused there, too, and keeps no answer of its own in a cache.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoParameters {}

/// The cart that the path names, with its token and the version that the client expects.
fn cart_key(headers: &HeaderMap, id: CartId) -> Result<CartKey<'_>, Problem> {
    let if_version = match headers.get(header::IF_MATCH).map(HeaderValue::to_str) {
        None => None,
        Some(Ok("*")) => None,
        Some(Ok(text)) => Some(text.trim().trim_matches('"').parse().map_err(|_| stale_header())?),
        Some(Err(_)) => return Err(stale_header()),
    };
    Ok(CartKey { id, token: token(headers, CART_TOKEN)?, if_version })
}

fn stale_header() -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "invalid-if-match", "If-Match is not valid").field(
        "If-Match",
        "invalid",
        "send the ETag of the cart as you read it",
    )
}

/// Make a cart
#[utoipa::path(post, path = "/store/v1/carts", tag = "storefront", operation_id = "storefront_cart_create",
    responses((status = 201, body = NewCartView), (status = 421, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn storefront_cart_create(TakingOrders(store): TakingOrders, State(cx): State<Cx>) -> Result<Response, Problem> {
    let mut connection = store.acquire().await?;
    let made = cart::cart_create(&mut connection, cx.clock.now()).await.map_err(errors::from_cart)?;
    drop(connection);
    upkeep::maybe_start(&cx, store.lease());
    let version = made.cart.version;
    Ok(cart_response(StatusCode::CREATED, version, NewCartView { cart: made.cart, token: made.token }))
}

/// Read a cart
#[utoipa::path(get, path = "/store/v1/carts/{cart}", tag = "storefront", operation_id = "storefront_cart_get",
    params(("cart" = CartId, Path), ("X-Cart-Token" = String, Header)),
    responses((status = 200, body = CartView), (status = 400, body = ProblemBody), (status = 404, body = ProblemBody), (status = 421, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn storefront_cart_get(
    store: Storefront,
    Query(NoParameters {}): Query<NoParameters>,
    State(cx): State<Cx>,
    headers: HeaderMap,
    Path(id): Path<CartId>,
) -> Result<Response, Problem> {
    let token = token(&headers, CART_TOKEN)?;
    let mut connection = store.acquire().await?;
    let cart = cart::cart_get(&mut connection, id, token, cx.clock.now()).await.map_err(errors::from_cart)?;
    Ok(cart_response(StatusCode::OK, cart.version, cart))
}

/// Does one change of a cart in a transaction of its own.
macro_rules! change_cart {
    ($store:expr, |$tx:ident| $change:expr) => {{
        let mut transaction = $store.begin().await?;
        let $tx = &mut transaction;
        match $change.await {
            Ok(cart) => {
                transaction.commit().await.map_err(|error| errors::from_db(&error))?;
                Ok(cart_response(StatusCode::OK, cart.version, cart))
            }
            Err(error) => {
                transaction.rollback().await.map_err(|error| errors::from_db(&error))?;
                Err(errors::from_cart(error))
            }
        }
    }};
}

/// Change whom a cart belongs to
#[utoipa::path(patch, path = "/store/v1/carts/{cart}", tag = "storefront", operation_id = "storefront_cart_update",
    params(("cart" = CartId, Path), ("X-Cart-Token" = String, Header), ("If-Match" = Option<String>, Header)), request_body = CartPatch,
    responses((status = 200, body = CartView), (status = 400, body = ProblemBody), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody),
        (status = 412, body = ProblemBody), (status = 421, body = ProblemBody), (status = 422, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn storefront_cart_update(
    TakingOrders(store): TakingOrders,
    State(cx): State<Cx>,
    headers: HeaderMap,
    Path(id): Path<CartId>,
    Json(patch): Json<CartPatch>,
) -> Result<Response, Problem> {
    let key = cart_key(&headers, id)?;
    change_cart!(store, |tx| cart::cart_update_in(tx, key, &patch, cx.clock.now()))
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LineAddBody {
    variant_id: VariantId,
    /// 1 to 999.
    #[schema(minimum = 1, maximum = 999)]
    quantity: u32,
}

/// Add to a cart
///
/// More of a variant that is there already join its line. The price is the store's, never the client's.
#[utoipa::path(post, path = "/store/v1/carts/{cart}/lines", tag = "storefront", operation_id = "storefront_line_add",
    params(("cart" = CartId, Path), ("X-Cart-Token" = String, Header), ("If-Match" = Option<String>, Header)), request_body = LineAddBody,
    responses((status = 200, body = CartView), (status = 400, body = ProblemBody), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody),
        (status = 412, body = ProblemBody), (status = 421, body = ProblemBody), (status = 422, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn storefront_line_add(
    TakingOrders(store): TakingOrders,
    State(cx): State<Cx>,
    headers: HeaderMap,
    Path(id): Path<CartId>,
    Json(body): Json<LineAddBody>,
) -> Result<Response, Problem> {
    let key = cart_key(&headers, id)?;
    change_cart!(store, |tx| cart::cart_line_add_in(tx, key, body.variant_id, body.quantity, cx.clock.now()))
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LineChangeBody {
    /// 1 to 999.
    #[schema(minimum = 1, maximum = 999)]
    quantity: u32,
}

/// Change how many of a line are wanted
#[utoipa::path(patch, path = "/store/v1/carts/{cart}/lines/{line}", tag = "storefront", operation_id = "storefront_line_change",
    params(("cart" = CartId, Path), ("line" = CartLineId, Path), ("X-Cart-Token" = String, Header), ("If-Match" = Option<String>, Header)), request_body = LineChangeBody,
    responses((status = 200, body = CartView), (status = 400, body = ProblemBody), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody),
        (status = 412, body = ProblemBody), (status = 421, body = ProblemBody), (status = 422, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn storefront_line_change(
    TakingOrders(store): TakingOrders,
    State(cx): State<Cx>,
    headers: HeaderMap,
    Path((id, line)): Path<(CartId, CartLineId)>,
    Json(body): Json<LineChangeBody>,
) -> Result<Response, Problem> {
    let key = cart_key(&headers, id)?;
    change_cart!(store, |tx| cart::cart_line_change_in(tx, key, line, body.quantity, cx.clock.now()))
}

/// Take a line out of a cart
#[utoipa::path(delete, path = "/store/v1/carts/{cart}/lines/{line}", tag = "storefront", operation_id = "storefront_line_remove",
    params(("cart" = CartId, Path), ("line" = CartLineId, Path), ("X-Cart-Token" = String, Header), ("If-Match" = Option<String>, Header)),
    responses((status = 200, body = CartView), (status = 400, body = ProblemBody), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody),
        (status = 412, body = ProblemBody), (status = 421, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn storefront_line_remove(
    TakingOrders(store): TakingOrders,
    State(cx): State<Cx>,
    headers: HeaderMap,
    Path((id, line)): Path<(CartId, CartLineId)>,
) -> Result<Response, Problem> {
    let key = cart_key(&headers, id)?;
    change_cart!(store, |tx| cart::cart_line_remove_in(tx, key, line, cx.clock.now()))
}

/// An order, and what reaches it.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlacedOrderView {
    #[serde(flatten)]
    order: OrderView,
    /// Send it as `X-Order-Token` to read the order later.
    order_token: String,
}

/// Order what is in a cart
///
/// Reserves stock and makes one order. The same request with the same Idempotency-Key gets the same answer, marked
/// `Idempotent-Replayed: true`.
#[utoipa::path(post, path = "/store/v1/carts/{cart}/complete", tag = "storefront", operation_id = "storefront_cart_complete",
    params(("cart" = CartId, Path), ("X-Cart-Token" = String, Header), ("Idempotency-Key" = String, Header)), request_body = CheckoutInput,
    responses((status = 201, body = PlacedOrderView), (status = 400, body = ProblemBody), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody), (status = 421, body = ProblemBody), (status = 422, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn storefront_cart_complete(
    TakingOrders(store): TakingOrders,
    State(cx): State<Cx>,
    key: IdempotencyKey,
    headers: HeaderMap,
    Path(id): Path<CartId>,
    Json(input): Json<CheckoutInput>,
) -> Result<Response, Problem> {
    let key = key.0.ok_or_else(|| {
        Problem::new(StatusCode::BAD_REQUEST, "missing-idempotency-key", "The request needs an Idempotency-Key")
            .detail("Send a new random key for each order, and the same one again when you repeat the request.")
    })?;
    let token = token(&headers, CART_TOKEN)?;
    let outcome = checkout::checkout(store.lease(), id, token, &key, &input, cx.clock.now())
        .await
        .map_err(errors::from_checkout)?;
    let view = PlacedOrderView { order: outcome.order, order_token: outcome.order_token };
    let mut response = no_store(StatusCode::CREATED, Json(view));
    if outcome.is_replayed {
        response.headers_mut().insert(idempotency::REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// Read an order
#[utoipa::path(get, path = "/store/v1/orders/{order}", tag = "storefront", operation_id = "storefront_order_get",
    params(("order" = OrderId, Path), ("X-Order-Token" = String, Header)),
    responses((status = 200, body = OrderView), (status = 400, body = ProblemBody), (status = 404, body = ProblemBody), (status = 421, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn storefront_order_get(
    store: Storefront,
    Query(NoParameters {}): Query<NoParameters>,
    headers: HeaderMap,
    Path(id): Path<OrderId>,
) -> Result<Response, Problem> {
    let token = token(&headers, ORDER_TOKEN)?;
    let mut connection = store.acquire().await?;
    let found = order::order_by_id(&mut connection, id, token).await.map_err(|error| errors::from_db(&error))?;
    let order = found.ok_or_else(Problem::not_found)?;
    Ok(no_store(StatusCode::OK, Json(order)))
}
