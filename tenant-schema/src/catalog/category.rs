//! Categories: a tree of at most five levels.

use chrono::{DateTime, Utc};
use kernel::CategoryId;
use sea_query::{Expr, ExprTrait as _, OnConflict, Order, Query};
use serde::Serialize;
use tenancy::{Connection, Transaction};
use utoipa::ToSchema;

use super::{CatalogError, CategoryRef, is_handle, version_bump, version_subquery};
use crate::field::Fields;
use crate::sql;
use crate::stored::Stored;

/// How deep the tree goes: five levels keep a path within its column.
const MAX_DEPTH: usize = 5;

/// The active categories, as a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Categories {
    /// The topmost ones, in the owner's order.
    pub roots: Vec<CategoryNode>,
    /// The version of the catalogue, at most older than the tree.
    pub catalog_version: i64,
}

/// A category and what is below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CategoryNode {
    /// Its id.
    pub id: CategoryId,
    /// Its name in addresses.
    pub handle: String,
    /// Its name.
    pub name: String,
    /// The categories below it.
    #[schema(no_recursion)]
    pub children: Vec<CategoryNode>,
}

/// One category.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CategoryView {
    /// Its id.
    pub id: CategoryId,
    /// Its name in addresses.
    pub handle: String,
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// The title for search engines.
    pub seo_title: Option<String>,
    /// The description for search engines.
    pub seo_description: Option<String>,
    /// The way to it from the top, without itself.
    pub ancestors: Vec<CategoryRef>,
    /// The categories right below it.
    pub children: Vec<CategoryRef>,
    /// The version of the catalogue: for the `ETag`, not for the body.
    #[serde(skip)]
    #[schema(ignore)]
    pub catalog_version: i64,
}

/// A category as its owner wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CategoryInput {
    /// Its name in addresses; the one with this handle is changed, or else made.
    pub handle: String,
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// The handle of the category above it.
    pub parent: Option<String>,
    /// Its place among its siblings.
    pub position: i32,
}

#[derive(sqlx::FromRow)]
struct NodeRow {
    #[sqlx(try_from = "Stored<CategoryId>")]
    id: CategoryId,
    parent_id: Option<Stored<CategoryId>>,
    handle: String,
    name: String,
}

#[derive(sqlx::FromRow)]
struct CategoryRow {
    #[sqlx(try_from = "Stored<CategoryId>")]
    id: CategoryId,
    handle: String,
    path: String,
    name: String,
    description: String,
    seo_title: Option<String>,
    seo_description: Option<String>,
    catalog_version: i64,
}

/// All active categories whose ancestors are active too.
///
/// # Errors
/// What the server or the connection says.
pub async fn categories_tree(conn: &mut Connection) -> Result<Categories, CatalogError> {
    let catalog_version = super::catalog_version(conn).await?;
    let select = Query::select()
        .columns(["id", "parent_id", "handle", "name"])
        .from("categories")
        .and_where(Expr::col("is_active").eq(Expr::cust("true")))
        .order_by("position", Order::Asc)
        .order_by("id", Order::Asc)
        .take();
    let rows: Vec<NodeRow> = sql::all(conn, &select).await?;
    Ok(Categories { roots: children_of(None, &rows, 0), catalog_version })
}

fn children_of(parent: Option<CategoryId>, rows: &[NodeRow], depth: usize) -> Vec<CategoryNode> {
    if depth >= MAX_DEPTH {
        return Vec::new();
    }
    rows.iter()
        .filter(|row| row.parent_id.as_ref().map(|stored| stored.0) == parent)
        .map(|row| CategoryNode {
            id: row.id,
            handle: row.handle.clone(),
            name: row.name.clone(),
            children: children_of(Some(row.id), rows, depth + 1),
        })
        .collect()
}

/// An active category, by its handle or its id.
///
/// # Errors
/// What the server or the connection says.
pub async fn category_by_handle(
    conn: &mut Connection,
    handle_or_id: &str,
) -> Result<Option<CategoryView>, CatalogError> {
    let by = match handle_or_id.parse::<CategoryId>() {
        Ok(id) => Expr::col("id").eq(id.to_string()),
        Err(_) => Expr::col("handle").eq(handle_or_id),
    };
    let select = Query::select()
        .columns(["id", "handle", "path", "name", "description", "seo_title", "seo_description"])
        .expr_as(Expr::from(version_subquery()), "catalog_version")
        .from("categories")
        .and_where(by)
        .and_where(Expr::col("is_active").eq(Expr::cust("true")))
        .take();
    let Some(row) = sql::optional::<CategoryRow>(conn, &select).await? else {
        return Ok(None);
    };
    let refs = || {
        Query::select()
            .columns(["id", "handle", "name"])
            .from("categories")
            .and_where(Expr::col("is_active").eq(Expr::cust("true")))
            .take()
    };
    let children = refs()
        .and_where(Expr::col("parent_id").eq(row.id.to_string()))
        .order_by("position", Order::Asc)
        .order_by("id", Order::Asc)
        .take();
    let children = sql::all(conn, &children).await?;
    let above: Vec<String> = ancestor_paths(&row.path);
    let ancestors = if above.is_empty() {
        Vec::new()
    } else {
        sql::all(conn, refs().and_where(Expr::col("path").is_in(above)).order_by("path", Order::Asc)).await?
    };
    Ok(Some(CategoryView {
        id: row.id,
        handle: row.handle,
        name: row.name,
        description: row.description,
        seo_title: row.seo_title,
        seo_description: row.seo_description,
        ancestors,
        children,
        catalog_version: row.catalog_version,
    }))
}

/// The paths above `path`: of `a/b/c/` those are `a/` and `a/b/`.
fn ancestor_paths(path: &str) -> Vec<String> {
    let ends: Vec<usize> = path.match_indices('/').map(|(at, _)| at + 1).collect();
    let above = ends.len().saturating_sub(1);
    ends.into_iter().take(above).filter_map(|end| path.get(..end)).map(str::to_owned).collect()
}

/// Makes a category, or changes the one with this handle. A category keeps its place in the tree: moving one would move
/// every path below it, and is not offered yet.
///
/// # Errors
/// [`CatalogError::Invalid`], [`CatalogError::UnknownCategory`] for the parent, [`CatalogError::Db`].
pub async fn category_save_in(
    tx: &mut Transaction,
    input: &CategoryInput,
    now: DateTime<Utc>,
) -> Result<CategoryId, CatalogError> {
    let mut fields = Fields::default();
    let name = fields.line("name", &input.name, 255);
    if !is_handle(&input.handle, 100) {
        fields.refuse("handle", "malformed", "small letters, digits, - and _; at most 100 characters");
    }
    fields.long_text("description", &input.description, 64 * 1024);
    let (parent_id, parent_path) = match &input.parent {
        None => (None, String::new()),
        Some(parent) => {
            let select = Query::select()
                .columns(["id", "path"])
                .from("categories")
                .and_where(Expr::col("handle").eq(parent.as_str()))
                .take();
            let found: Option<(String, String)> = sql::optional(tx, &select).await?;
            let (id, path) = found.ok_or_else(|| CatalogError::UnknownCategory { handle: parent.clone() })?;
            (Some(id), path)
        }
    };
    if parent_path.matches('/').count() >= MAX_DEPTH {
        fields.refuse("parent", "too-deep", format!("categories go at most {MAX_DEPTH} levels deep"));
    }
    fields.finish().map_err(CatalogError::Invalid)?;
    version_bump(tx).await?;
    let mut conflict = OnConflict::column("handle");
    conflict.update_columns(["name", "description", "position", "updated_at"]);
    let insert = Query::insert()
        .into_table("categories")
        .columns([
            "id",
            "parent_id",
            "handle",
            "path",
            "name",
            "description",
            "position",
            "is_active",
            "created_at",
            "updated_at",
        ])
        .values_panic([
            Expr::val(CategoryId::new(now).to_string()),
            Expr::val(parent_id),
            Expr::val(input.handle.as_str()),
            Expr::val(format!("{parent_path}{}/", input.handle)),
            Expr::val(name),
            Expr::val(input.description.as_str()),
            Expr::val(input.position),
            Expr::val(true),
            Expr::val(now),
            Expr::val(now),
        ])
        .on_conflict(conflict)
        .take();
    sql::run(tx, &insert).await?;
    let select =
        Query::select().column("id").from("categories").and_where(Expr::col("handle").eq(input.handle.as_str())).take();
    let (id,): (Stored<CategoryId>,) = sql::one(tx, &select).await?;
    Ok(id.0)
}

#[cfg(test)]
mod tests {
    use super::ancestor_paths;

    #[test]
    fn the_way_up_is_in_the_path() {
        assert_eq!(ancestor_paths("a/b/c/"), ["a/", "a/b/"]);
        assert!(ancestor_paths("a/").is_empty());
    }
}
