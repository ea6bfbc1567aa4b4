//! Pages and redirects.

use chrono::{DateTime, Utc};
use kernel::PageId;
use sea_query::{Expr, ExprTrait as _, OnConflict, Order, Query};
use serde::Serialize;
use tenancy::Connection;
use utoipa::ToSchema;

use crate::catalog;
use crate::sql;
use crate::stored::Stored;

/// A page of the store, such as "Shipping".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema, sqlx::FromRow)]
#[serde(rename_all = "camelCase")]
pub struct PageView {
    /// Its id.
    #[sqlx(try_from = "Stored<PageId>")]
    pub id: PageId,
    /// Its name in addresses.
    pub slug: String,
    /// Its title.
    pub title: String,
    /// What the owner wrote, unsanitised: do not put it into a page as it is.
    pub body_html: String,
    /// The title for search engines.
    pub seo_title: Option<String>,
    /// The description for search engines.
    pub seo_description: Option<String>,
    /// When it was published.
    pub published_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
    /// The version of the catalogue: for the `ETag`, not for the body.
    #[serde(skip)]
    #[schema(ignore)]
    pub catalog_version: i64,
}

/// A page in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema, sqlx::FromRow)]
#[serde(rename_all = "camelCase")]
pub struct PageSummary {
    /// Its id.
    #[sqlx(try_from = "Stored<PageId>")]
    pub id: PageId,
    /// Its name in addresses.
    pub slug: String,
    /// Its title.
    pub title: String,
}

/// The pages that a storefront shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pages {
    /// By title.
    pub pages: Vec<PageSummary>,
    /// The version of the catalogue, at most older than the list.
    pub catalog_version: i64,
}

/// Where an old address leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema, sqlx::FromRow)]
#[serde(rename_all = "camelCase")]
pub struct RedirectView {
    /// The old path.
    pub from_path: String,
    /// The new path or address.
    pub to_path: String,
    /// The HTTP status to answer with: 301, 302, 307 or 308.
    pub code: i16,
}

/// The page with this slug, when it is active and published.
///
/// # Errors
/// What the server or the connection says.
pub async fn page_by_slug(conn: &mut Connection, slug: &str) -> Result<Option<PageView>, sqlx::Error> {
    let select = Query::select()
        .columns(["id", "slug", "title", "body_html", "seo_title", "seo_description", "published_at", "updated_at"])
        .expr_as(Expr::from(catalog::version_subquery()), "catalog_version")
        .from("pages")
        .and_where(Expr::col("slug").eq(slug))
        .and_where(Expr::col("status").eq("active"))
        .and_where(Expr::col("published_at").is_not_null())
        .take();
    sql::optional(conn, &select).await
}

/// The pages that a storefront shows; a store has few, and at most 200 are listed.
///
/// # Errors
/// What the server or the connection says.
pub async fn pages_list(conn: &mut Connection) -> Result<Pages, sqlx::Error> {
    let catalog_version = catalog::catalog_version(conn).await?;
    let select = Query::select()
        .columns(["id", "slug", "title"])
        .from("pages")
        .and_where(Expr::col("status").eq("active"))
        .and_where(Expr::col("published_at").is_not_null())
        .order_by("title", Order::Asc)
        .order_by("id", Order::Asc)
        .limit(200)
        .take();
    Ok(Pages { pages: sql::all(conn, &select).await?, catalog_version })
}

/// Where the path `from_path` leads now, if it was moved.
///
/// # Errors
/// What the server or the connection says.
pub async fn redirect_for(conn: &mut Connection, from_path: &str) -> Result<Option<RedirectView>, sqlx::Error> {
    let select = Query::select()
        .columns(["from_path", "to_path", "code"])
        .from("redirects")
        .and_where(Expr::col("from_path").eq(from_path))
        .take();
    sql::optional(conn, &select).await
}

/// Makes a page, unless there is one with this slug.
pub(crate) async fn page_seed(
    conn: &mut Connection,
    slug: &str,
    title: &str,
    body_html: &str,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    let mut conflict = OnConflict::column("slug");
    conflict.do_nothing_on(["slug"]);
    let insert = Query::insert()
        .into_table("pages")
        .columns(["id", "slug", "title", "body_html", "status", "published_at", "created_at", "updated_at"])
        .values_panic([
            PageId::new(now).to_string().into(),
            slug.into(),
            title.into(),
            body_html.into(),
            "active".into(),
            now.into(),
            now.into(),
            now.into(),
        ])
        .on_conflict(conflict)
        .take();
    sql::run(conn, &insert).await?;
    Ok(())
}
