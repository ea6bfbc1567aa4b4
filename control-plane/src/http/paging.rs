//! Lists, a page at a time: where a page begins, how long it is, and where the next one begins.

use kernel::Cursor;
use problem::Problem;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::errors;

const DEFAULT_LIMIT: u8 = 25;
const MAX_LIMIT: u8 = 100;

/// What was asked for is no page of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PagingError {
    /// The cursor is damaged, or of another list or filter.
    #[error("the cursor does not fit this list")]
    Cursor,
    #[error("a page has 1 to {MAX_LIMIT} rows")]
    Limit,
}

impl From<PagingError> for Problem {
    fn from(error: PagingError) -> Self {
        match error {
            PagingError::Cursor => errors::invalid_cursor(),
            PagingError::Limit => errors::invalid_query("limit", format!("must be 1 to {MAX_LIMIT}")),
        }
    }
}

/// Where a page begins, and how long it is. `P` is the position that a cursor carries.
pub struct Window<P> {
    cursors: Cursor,
    /// The last row of the page before, if there was one.
    pub after: Option<P>,
    limit: u8,
}

impl<P: Serialize + DeserializeOwned> Window<P> {
    /// Reads what a caller asked for; a cursor fits a list of the same `scope` only.
    pub fn read(scope: &[&str], cursor: Option<&str>, limit: Option<u8>) -> Result<Self, PagingError> {
        let cursors = Cursor::of(scope);
        let after = cursor.map(|text| cursors.decode(text)).transpose().map_err(|_| PagingError::Cursor)?;
        let limit @ 1..=MAX_LIMIT = limit.unwrap_or(DEFAULT_LIMIT) else { return Err(PagingError::Limit) };
        Ok(Self { cursors, after, limit })
    }

    /// How many rows to look for: one more than is shown says that there is a next page.
    pub fn rows(&self) -> i64 {
        i64::from(self.limit) + 1
    }

    /// The page out of the rows that were found, and the cursor of the next.
    pub fn page<T>(self, mut found: Vec<T>, position: impl Fn(&T) -> P) -> (Vec<T>, Option<String>) {
        let has_more = found.len() > usize::from(self.limit);
        found.truncate(usize::from(self.limit));
        let next = found.last().filter(|_| has_more).map(|last| self.cursors.encode(&position(last)));
        (found, next)
    }
}
