//! The import itself: rows become groups, groups become products, one transaction each.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};

use chrono::{DateTime, Duration, Utc};
use kernel::Currency;
use tenancy::{Lease, Transaction};
use tokio::io::AsyncRead;

use super::csv_stream::{CsvStream, Defect, Row};
use super::header::{Column, Header};
use super::product::{Group, wanted};
use super::{ImportError, ImportOptions, ImportProgress, ImportReport, ImportRowError, MAX_ERRORS};
use crate::catalog::{
    self, CatalogError, MovementReason, ProductSaved, SaveOutcome, is_handle, product_load_in, product_write_in,
};
use crate::settings;
use crate::sql;

/// The most bytes of one product's rows.
const MAX_GROUP_BYTES: usize = 8 * 1024 * 1024;

/// Imports the products of a CSV file into the store. `progress` hears of every product and must be quick.
///
/// Dropping the future ends the import after the last whole product.
///
/// # Errors
/// [`ImportError`]; products that were done before it stay.
pub async fn products_import(
    lease: &Lease,
    file: impl AsyncRead + Unpin,
    options: ImportOptions,
    now: DateTime<Utc>,
    mut progress: impl FnMut(ImportProgress),
) -> Result<ImportReport, ImportError> {
    let mut stream = CsvStream::open(file, options.limits).await?;
    let first = stream.next().await?.ok_or(ImportError::Empty)?;
    let header = Header::parse(&first, options.limits)?;
    let currency = settings::settings(&mut lease.acquire().await?).await?.currency;
    let report =
        ImportReport { dry_run: options.dry_run, ignored_columns: header.ignored(), ..ImportReport::default() };
    let mut import = Import {
        lease,
        options,
        header,
        currency,
        now,
        report,
        products: 0,
        hasher: RandomState::new(),
        handles: HashSet::new(),
        skus: HashSet::new(),
    };
    let mut open: Option<OpenGroup> = None;
    while let Some(row) = stream.next().await? {
        if import.report.rows >= options.limits.rows {
            if let Some(group) = open.take() {
                import.finish(group).await?;
            }
            return Err(ImportError::TooManyRows { limit: options.limits.rows });
        }
        import.report.rows += 1;
        if row.defect.is_none() && row.iter().all(|field| field.trim().is_empty()) {
            continue;
        }
        let Some(handle) = import.handle_of(&row) else {
            // A damaged row that does not say whose it is most likely goes on with the product before it.
            if let (Some(group), Some(_)) = (&mut open, row.defect) {
                group.is_sound = false;
            }
            continue;
        };
        if open.as_ref().is_none_or(|group| group.handle != handle) {
            if let Some(group) = open.take() {
                import.finish(group).await?;
                progress(ImportProgress {
                    bytes: stream.bytes(),
                    rows: import.report.rows - 1,
                    products: import.products,
                });
            }
            open = Some(import.begin(handle, &row));
        }
        if let Some(group) = &mut open {
            import.add(group, row);
        }
    }
    if let Some(group) = open.take() {
        import.finish(group).await?;
    }
    progress(ImportProgress { bytes: stream.bytes(), rows: import.report.rows, products: import.products });
    import.report.errors.sort_by_key(|error| error.line);
    import.report.catalog_version = catalog::catalog_version(&mut lease.acquire().await?).await?;
    Ok(import.report)
}

struct Import<'a> {
    lease: &'a Lease,
    options: ImportOptions,
    header: Header,
    currency: Currency,
    now: DateTime<Utc>,
    report: ImportReport,
    products: u64,
    hasher: RandomState,
    /// What handles the file has had, as numbers.
    handles: HashSet<u64>,
    /// What SKUs the file has brought in, as numbers.
    skus: HashSet<u64>,
}

/// The product whose rows are being read.
struct OpenGroup {
    handle: String,
    rows: Vec<Row>,
    size: usize,
    is_sound: bool,
}

impl Import<'_> {
    fn refuse(&mut self, error: ImportRowError) {
        self.report.errors_total += 1;
        if self.report.errors.len() < MAX_ERRORS {
            self.report.errors.push(error);
        }
    }

    fn refuse_row(
        &mut self,
        row: &Row,
        column: Option<Column>,
        handle: Option<&str>,
        code: &'static str,
        message: &str,
    ) {
        let column = column.and_then(|column| self.header.name(column)).map(str::to_owned);
        let (handle, message) = (handle.map(str::to_owned), message.to_owned());
        self.refuse(ImportRowError { line: row.line, column, handle, code, message });
    }

    /// Whose row it is. Without a handle of its own, a row with a title gets the handle that its title makes.
    fn handle_of(&mut self, row: &Row) -> Option<String> {
        let named = self.header.filled(row, Column::Handle).map(str::to_lowercase);
        let handle = named.or_else(|| self.header.filled(row, Column::Title).map(handle_from_title));
        if let Some(defect) = row.defect {
            let (code, message) = match defect {
                Defect::NotUtf8 => ("not-utf8", "the row is not UTF-8: save the file as CSV in UTF-8"),
                Defect::RowTooLarge => ("row-too-large", "the row or one of its fields is too large"),
                Defect::TooManyFields => ("fields-extra", "the row has more fields than the header"),
                Defect::QuoteUnclosed => ("quote-unclosed", "a quotation mark is opened here and never closed"),
            };
            self.refuse_row(row, None, handle.as_deref(), code, message);
            return handle.filter(|handle| is_handle(handle, 255));
        }
        match handle {
            Some(handle) if is_handle(&handle, 255) => Some(handle),
            Some(handle) => {
                let message = "a handle has letters, digits, - and _, at most 255";
                self.refuse_row(row, Some(Column::Handle), Some(&shortened(&handle)), "handle-malformed", message);
                None
            }
            None => {
                self.refuse_row(row, Some(Column::Handle), None, "handle-missing", "the row does not say whose it is");
                None
            }
        }
    }

    fn begin(&mut self, handle: String, row: &Row) -> OpenGroup {
        let is_new = self.handles.insert(self.hasher.hash_one(&handle));
        if !is_new {
            let message = "the rows of one product must follow each other: sort the file by handle";
            self.refuse_row(row, Some(Column::Handle), Some(&handle), "handle-not-contiguous", message);
        }
        OpenGroup { handle, rows: Vec::new(), size: 0, is_sound: is_new }
    }

    fn add(&mut self, group: &mut OpenGroup, row: Row) {
        let handle = Some(group.handle.as_str());
        let fits = match row.len().cmp(&self.header.len()) {
            _ if row.defect.is_some() => false,
            std::cmp::Ordering::Equal => true,
            std::cmp::Ordering::Less => {
                self.refuse_row(&row, None, handle, "fields-missing", "the row has fewer fields than the header");
                false
            }
            std::cmp::Ordering::Greater => {
                self.refuse_row(&row, None, handle, "fields-extra", "the row has more fields than the header");
                false
            }
        };
        let has_room =
            group.rows.len() < self.options.limits.product_rows && group.size + row.size() <= MAX_GROUP_BYTES;
        if fits && !has_room && group.is_sound {
            self.refuse_row(
                &row,
                None,
                handle,
                "product-too-large",
                "the product has too many rows, or too large ones",
            );
        }
        group.is_sound &= fits && has_room;
        if group.is_sound {
            group.size += row.size();
            group.rows.push(row);
        } else {
            group.rows = Vec::new();
        }
    }

    async fn finish(&mut self, group: OpenGroup) -> Result<(), ImportError> {
        self.products += 1;
        if !group.is_sound {
            self.report.products_failed += 1;
            return Ok(());
        }
        let group = Group { handle: group.handle, rows: group.rows };
        let skus = self.skus_of(&group);
        if let Some((row, _)) =
            group.rows.iter().zip(&skus).find(|(_, sku)| sku.is_some_and(|sku| self.skus.contains(&sku)))
        {
            let message = "another product of this file has the same SKU";
            self.refuse_row(row, Some(Column::Sku), Some(&group.handle), "duplicate-sku", message);
            self.report.products_failed += 1;
            return Ok(());
        }
        match self.write(&group).await? {
            Ok(saved) => {
                self.skus.extend(skus.into_iter().flatten());
                let report = &mut self.report;
                match saved.outcome {
                    SaveOutcome::Created => report.products_created += 1,
                    SaveOutcome::Updated => report.products_updated += 1,
                    SaveOutcome::Unchanged => report.products_unchanged += 1,
                }
                report.variants_created += saved.variants_created;
                report.variants_updated += saved.variants_updated;
                report.variants_unchanged += saved.variants_unchanged;
                report.variants_removed += saved.variants_removed;
            }
            Err(errors) => {
                self.report.products_failed += 1;
                for error in errors {
                    self.refuse(error);
                }
            }
        }
        Ok(())
    }

    fn skus_of(&self, group: &Group) -> Vec<Option<u64>> {
        group.rows.iter().map(|row| self.header.filled(row, Column::Sku).map(|sku| self.hasher.hash_one(sku))).collect()
    }

    /// One product in one transaction, tried again when another writer was in the way.
    async fn write(&self, group: &Group) -> Result<Result<ProductSaved, Vec<ImportRowError>>, ImportError> {
        // The first product of the file is to be the newest.
        let at = self.now - Duration::microseconds(i64::try_from(self.products).unwrap_or_default());
        let mut attempts = 0;
        loop {
            attempts += 1;
            let mut tx = self.lease.begin().await?;
            let failure = match self.write_in(&mut tx, group, at).await {
                Ok(saved) if self.options.dry_run => {
                    tx.rollback().await?;
                    return Ok(Ok(saved));
                }
                Ok(saved) => match tx.commit().await {
                    Ok(()) => return Ok(Ok(saved)),
                    Err(error) => Failure::Catalog(error.into()),
                },
                Err(failure) => {
                    tx.rollback().await?;
                    failure
                }
            };
            let error = match failure {
                Failure::Rows(errors) => return Ok(Err(errors)),
                Failure::Catalog(error) => error,
            };
            let is_retryable = match &error {
                CatalogError::HandleTaken => true,
                CatalogError::Db(error) => sql::is_retryable(error),
                _ => false,
            };
            if !is_retryable || attempts > sql::MAX_RETRIES {
                return Ok(Err(vec![self.refused(group, error)?]));
            }
        }
    }

    async fn write_in(&self, tx: &mut Transaction, group: &Group, at: DateTime<Utc>) -> Result<ProductSaved, Failure> {
        let stored = product_load_in(tx, &group.handle, self.currency).await.map_err(Failure::Catalog)?;
        let old = stored.as_ref().map(catalog::StoredProduct::as_input);
        let wanted = wanted(group, &self.header, old, self.currency).map_err(Failure::Rows)?;
        let saved =
            product_write_in(tx, stored.as_ref(), &wanted.input, self.currency, MovementReason::Import, at).await;
        saved.map_err(|error| match error {
            CatalogError::Invalid(fields) => {
                Failure::Rows(fields.iter().map(|field| wanted.row_error(&self.header, field)).collect())
            }
            error => Failure::Catalog(error),
        })
    }

    /// What one product's refusal is in the report; what is no product's fault ends the import.
    fn refused(&self, group: &Group, error: CatalogError) -> Result<ImportRowError, ImportError> {
        let (column, code, message) = match error {
            CatalogError::SkuTaken => {
                (Some(Column::Sku), "sku-taken", "another product of the store has one of these SKUs")
            }
            CatalogError::StockBelowReserved => {
                (Some(Column::Quantity), "stock-below-reserved", "open orders have reserved more than this quantity")
            }
            CatalogError::HandleTaken => {
                (Some(Column::Handle), "handle-taken", "another writer made this product at the same moment")
            }
            CatalogError::UnknownCategory { .. } => (None, "category-unknown", "one of its categories is gone"),
            CatalogError::Db(error) if is_about_values(&error) => {
                (None, "database-refused", "the store's database refused one of its values")
            }
            CatalogError::Db(error) => return Err(error.into()),
            CatalogError::Incomplete | CatalogError::Cursor(_) | CatalogError::Invalid(_) => {
                return Err(sqlx::Error::RowNotFound.into());
            }
        };
        Ok(ImportRowError {
            line: group.rows[0].line,
            column: column.and_then(|column| self.header.name(column)).map(str::to_owned),
            handle: Some(group.handle.clone()),
            code,
            message: message.to_owned(),
        })
    }
}

enum Failure {
    Rows(Vec<ImportRowError>),
    Catalog(CatalogError),
}

/// Whether the database refused data (classes 22 and 23), not the connection or the statement.
fn is_about_values(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| code.starts_with("22") || code.starts_with("23"))
}

/// `Ocean Blue Shirt!` as `ocean-blue-shirt`.
fn handle_from_title(title: &str) -> String {
    let mut handle = String::new();
    for c in title.chars().flat_map(char::to_lowercase) {
        if c.is_alphanumeric() {
            handle.push(c);
        } else if !handle.is_empty() && !handle.ends_with('-') && !matches!(c, '\'' | '’') {
            handle.push('-');
        }
    }
    let handle: String = handle.chars().take(255).collect();
    handle.trim_end_matches('-').to_owned()
}

/// A handle that is none, short enough for a report.
fn shortened(handle: &str) -> String {
    handle.chars().filter(|c| !c.is_control()).take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::handle_from_title;

    #[test]
    fn titles_make_handles() {
        assert_eq!(handle_from_title("Ocean Blue Shirt!"), "ocean-blue-shirt");
        assert_eq!(handle_from_title("Ada's  Crème & Co"), "adas-crème-co");
        assert_eq!(handle_from_title("!!!"), "");
    }
}
