//! Which column of the file is what, by the classic names and by the new ones.

use super::csv_stream::Row;
use super::{ImportError, ImportLimits};

/// What a column means to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Column {
    Handle,
    Title,
    Body,
    Vendor,
    Type,
    Tags,
    Published,
    Status,
    OptionName(usize),
    OptionValue(usize),
    Sku,
    Barcode,
    Grams,
    Tracker,
    Quantity,
    Policy,
    Price,
    CompareAt,
    RequiresShipping,
    Taxable,
    ImageSrc,
    ImagePosition,
    ImageAlt,
    VariantImage,
    SeoTitle,
    SeoDescription,
}

/// The names in lower case; the classic one first.
const NAMES: &[(&str, Column)] = &[
    ("handle", Column::Handle),
    ("url handle", Column::Handle),
    ("title", Column::Title),
    ("body (html)", Column::Body),
    ("body html", Column::Body),
    ("description", Column::Body),
    ("vendor", Column::Vendor),
    ("type", Column::Type),
    ("tags", Column::Tags),
    ("published", Column::Published),
    ("published on online store", Column::Published),
    ("status", Column::Status),
    ("option1 name", Column::OptionName(0)),
    ("option2 name", Column::OptionName(1)),
    ("option3 name", Column::OptionName(2)),
    ("option1 value", Column::OptionValue(0)),
    ("option2 value", Column::OptionValue(1)),
    ("option3 value", Column::OptionValue(2)),
    ("variant sku", Column::Sku),
    ("sku", Column::Sku),
    ("variant barcode", Column::Barcode),
    ("barcode", Column::Barcode),
    ("variant grams", Column::Grams),
    ("weight value (grams)", Column::Grams),
    ("variant inventory tracker", Column::Tracker),
    ("inventory tracker", Column::Tracker),
    ("variant inventory qty", Column::Quantity),
    ("inventory quantity", Column::Quantity),
    ("variant inventory policy", Column::Policy),
    ("continue selling when out of stock", Column::Policy),
    ("variant price", Column::Price),
    ("price", Column::Price),
    ("variant compare at price", Column::CompareAt),
    ("compare-at price", Column::CompareAt),
    ("compare at price", Column::CompareAt),
    ("variant requires shipping", Column::RequiresShipping),
    ("requires shipping", Column::RequiresShipping),
    ("variant taxable", Column::Taxable),
    ("charge tax", Column::Taxable),
    ("image src", Column::ImageSrc),
    ("product image url", Column::ImageSrc),
    ("image position", Column::ImagePosition),
    ("image alt text", Column::ImageAlt),
    ("variant image", Column::VariantImage),
    ("variant image url", Column::VariantImage),
    ("seo title", Column::SeoTitle),
    ("seo description", Column::SeoDescription),
];

/// The first row of a file, understood.
#[derive(Debug)]
pub(super) struct Header {
    names: Vec<String>,
    columns: Vec<Option<Column>>,
}

impl Header {
    pub(super) fn parse(row: &Row, limits: ImportLimits) -> Result<Self, ImportError> {
        use super::csv_stream::Defect;
        match row.defect {
            None => {}
            Some(Defect::NotUtf8) => return Err(ImportError::NotUtf8 { line: row.line }),
            Some(_) => return Err(ImportError::TooManyColumns { limit: limits.columns }),
        }
        if row.len() > limits.columns {
            return Err(ImportError::TooManyColumns { limit: limits.columns });
        }
        if row.iter().any(|name| name.contains('\0')) {
            return Err(ImportError::NotUtf8 { line: row.line });
        }
        let names: Vec<String> = row.iter().map(|name| name.trim().to_owned()).collect();
        let columns: Vec<Option<Column>> = names.iter().map(|name| column_of(name)).collect();
        for (at, column) in columns.iter().enumerate() {
            if column.is_some() && columns[..at].contains(column) {
                return Err(ImportError::DuplicateColumn { column: names[at].clone() });
            }
        }
        let has = |column: Column| columns.contains(&Some(column));
        let mut missing = Vec::new();
        if !has(Column::Handle) {
            missing.push("Handle (or URL handle)");
        }
        // Without titles a file can still change variants that it names.
        if !has(Column::Title) && !has(Column::Sku) && !has(Column::OptionValue(0)) {
            missing.push("Title");
        }
        if missing.is_empty() { Ok(Self { names, columns }) } else { Err(ImportError::MissingColumns { missing }) }
    }

    /// How many columns the file has.
    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    pub(super) fn has(&self, column: Column) -> bool {
        self.columns.contains(&Some(column))
    }

    /// The column's name in the file.
    pub(super) fn name(&self, column: Column) -> Option<&str> {
        let at = self.columns.iter().position(|known| *known == Some(column))?;
        self.names.get(at).map(String::as_str)
    }

    /// `None` when the file has no such column; `Some("")` when the row's field is blank.
    pub(super) fn get<'r>(&self, row: &'r Row, column: Column) -> Option<&'r str> {
        let at = self.columns.iter().position(|known| *known == Some(column))?;
        Some(row.get(at).unwrap_or_default().trim())
    }

    /// The row's field when there is something in it.
    pub(super) fn filled<'r>(&self, row: &'r Row, column: Column) -> Option<&'r str> {
        self.get(row, column).filter(|text| !text.is_empty())
    }

    /// The columns that mean nothing to us.
    pub(super) fn ignored(&self) -> Vec<String> {
        let unknown =
            self.names.iter().zip(&self.columns).filter(|(name, column)| column.is_none() && !name.is_empty());
        unknown.map(|(name, _)| name.clone()).collect()
    }
}

fn column_of(name: &str) -> Option<Column> {
    let name = name.to_lowercase();
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, column)| *column)
}
