//! Importing products from a Shopify product CSV, with its classic header or the new one.
//!
//! The file is streamed: what is held is one product's rows and what tells rows apart (a number per product and SKU). One
//! transaction per product: a bad product is skipped and named, the rest goes in. Importing the same file again finds
//! everything as wanted and writes nothing.
//!
//! What the rows mean:
//! - Rows with one handle that follow each other are one product. The first row carries the product's own fields. A handle
//!   that comes back after another one is an error: merging it would need the whole file in memory, and sorting the file
//!   by handle is easy for its owner.
//! - A row without option values, SKU and price is a further picture.
//! - A column that is missing keeps what is stored; a blank field in a column that is there empties it. A blank price is
//!   an error, so that nothing is sold for nothing by mistake. A blank status is `active`, a blank "published" is yes.
//! - The first row of a product that is there already may speak of the product alone; blank option names keep the stored
//!   ones. `Title`/`Default Title` means no options. With the stored options, variants that the file does not mention stay; with
//!   other options they go, since they no longer fit their product.
//! - Without an inventory tracker stock is not counted; the quantity is kept all the same.
//! - Texts are stored as they are. HTML is untrusted and is sanitised by whoever puts it into a page.

mod csv_stream;
mod header;
mod product;
mod run;

use serde::Serialize;
use tenancy::LeaseError;
use utoipa::ToSchema;

use crate::settings::SettingsError;

pub use run::products_import;

/// The most errors that a report lists; beyond them it counts.
pub const MAX_ERRORS: usize = 1000;

/// How an import runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImportOptions {
    /// Say what would be done, and do nothing.
    pub dry_run: bool,
    /// What a file may hold.
    pub limits: ImportLimits,
}

/// What a file may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImportLimits {
    /// Rows below the header.
    pub rows: u64,
    /// Columns.
    pub columns: usize,
    /// Bytes of one field.
    pub field_bytes: usize,
    /// Bytes of one row.
    pub row_bytes: usize,
    /// Rows of one product.
    pub product_rows: usize,
}

impl Default for ImportLimits {
    fn default() -> Self {
        Self { rows: 250_000, columns: 500, field_bytes: 256 * 1024, row_bytes: 1024 * 1024, product_rows: 1000 }
    }
}

impl ImportOptions {
    /// An import for real.
    #[must_use]
    pub fn new() -> Self {
        Self { dry_run: false, limits: ImportLimits::default() }
    }

    /// An import that changes nothing.
    #[must_use]
    pub fn dry_run() -> Self {
        Self { dry_run: true, ..Self::new() }
    }
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// How far an import is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImportProgress {
    /// Bytes read.
    pub bytes: u64,
    /// Rows done, without the header.
    pub rows: u64,
    /// Products done, failed ones included.
    pub products: u64,
}

/// What came of an import.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImportReport {
    /// Whether it only says what would be done.
    pub dry_run: bool,
    /// Rows below the header.
    pub rows: u64,
    /// Products that are new.
    pub products_created: u64,
    /// Products that were changed.
    pub products_updated: u64,
    /// Products that were as wanted.
    pub products_unchanged: u64,
    /// Products that were skipped because something is wrong with them.
    pub products_failed: u64,
    /// Variants that are new.
    pub variants_created: u64,
    /// Variants that were changed.
    pub variants_updated: u64,
    /// Variants that were as wanted.
    pub variants_unchanged: u64,
    /// Variants that are gone, because their product has other options now.
    pub variants_removed: u64,
    /// What is wrong, at most the first 1,000.
    pub errors: Vec<ImportRowError>,
    /// How much is wrong, listed or not.
    pub errors_total: u64,
    /// Columns that mean nothing to us.
    pub ignored_columns: Vec<String>,
    /// The catalogue's version afterwards.
    pub catalog_version: i64,
}

/// What is wrong with a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImportRowError {
    /// The line in the file, from 1, where the row begins.
    pub line: u64,
    /// The column, by its name in the file, when it is one column's fault.
    pub column: Option<String>,
    /// The product, when it is known.
    pub handle: Option<String>,
    /// A stable code, such as `price-malformed`.
    pub code: &'static str,
    /// What to do, for a person.
    pub message: String,
}

/// Why an import ended early. Products that were done before stay; importing the file again goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file is empty.
    #[error("the file is empty")]
    Empty,
    /// It is no UTF-8 text.
    #[error("line {line} is not UTF-8: save the file as CSV in UTF-8")]
    NotUtf8 {
        /// Where.
        line: u64,
    },
    /// Its first row lacks columns that no import can do without.
    #[error("the header lacks {}", missing.join(", "))]
    MissingColumns {
        /// Their names, as both kinds of header write them.
        missing: Vec<&'static str>,
    },
    /// Its first row names a column twice.
    #[error("the header names {column} twice")]
    DuplicateColumn {
        /// The column.
        column: String,
    },
    /// It has more columns than allowed.
    #[error("the file has more than {limit} columns")]
    TooManyColumns {
        /// The limit.
        limit: usize,
    },
    /// It has more rows than allowed. The rows before were imported.
    #[error("the file has more than {limit} rows")]
    TooManyRows {
        /// The limit.
        limit: u64,
    },
    /// Reading it failed.
    #[error("the file could not be read to its end")]
    Read(#[source] std::io::Error),
    /// The store's settings cannot be read.
    #[error("the store's settings cannot be read")]
    Settings(#[source] SettingsError),
    /// No connection to the store's database was given.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// What the server or the connection says.
    #[error("database error")]
    Db(#[from] sqlx::Error),
}

impl From<SettingsError> for ImportError {
    fn from(error: SettingsError) -> Self {
        match error {
            SettingsError::Db(error) => Self::Db(error),
            error => Self::Settings(error),
        }
    }
}
