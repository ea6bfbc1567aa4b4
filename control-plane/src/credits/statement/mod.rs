//! Statements: what an account was worth at the begin of a period, every entry in it, and what it was worth at the end. The
//! two differ by the sum of the entries, or the ledger is broken.

mod db;

use std::fmt::Write as _;

use axum::body::{Body, Bytes};
use chrono::{DateTime, Utc};
use futures_util::stream;
use kernel::{CreditTransactionId, OrganizationId, StoreId};

use super::{CreditError, TransactionKind};
use crate::cx::OpsCx;

/// How many lines are read at a time: a statement of any length takes this much memory.
const PAGE: i64 = 1000;
/// The most lines of a statement that is answered as one JSON body.
pub const MAX_JSON_LINES: usize = 10_000;

/// A line: what one transaction did to the worth of the account.
#[derive(Debug, Clone, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StatementLine {
    pub version: i64,
    pub at: DateTime<Utc>,
    pub transaction_id: CreditTransactionId,
    pub kind: TransactionKind,
    pub store_id: Option<StoreId>,
    pub service: Option<String>,
    pub description: Option<String>,
    /// Above zero what came in, below what went out.
    pub amount: i64,
    /// What the account is worth after it: what is available and held, less debt.
    pub balance_after: i64,
}

/// Where a period begins and ends.
#[derive(Debug, Clone, Copy, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StatementFrame {
    pub organization_id: OrganizationId,
    pub from: DateTime<Utc>,
    /// Before this moment.
    pub until: DateTime<Utc>,
    pub opening: i64,
    pub closing: i64,
    /// How many lines there are.
    pub lines: i64,
    #[serde(skip)]
    #[schema(ignore)]
    pub(super) first: i64,
    #[serde(skip)]
    #[schema(ignore)]
    pub(super) last: i64,
}

/// What frames a statement of a period.
pub async fn frame(
    cx: &OpsCx,
    organization: OrganizationId,
    from: DateTime<Utc>,
    until: DateTime<Utc>,
) -> Result<StatementFrame, CreditError> {
    if until <= from {
        return Err(CreditError::Query { name: "until", detail: "must be after `from`".to_owned() });
    }
    // What has expired is booked first: the statement says what the balance says.
    super::balance(cx, organization).await?;
    Ok(db::statement_frame(&mut *cx.master.acquire().await?, organization, from, until).await?)
}

/// All lines of a period, for a statement that is not too long.
pub async fn lines(cx: &OpsCx, frame: &StatementFrame) -> Result<Vec<StatementLine>, CreditError> {
    if usize::try_from(frame.lines).unwrap_or(usize::MAX) > MAX_JSON_LINES {
        let detail = format!(
            "has {} lines; at most {MAX_JSON_LINES} are answered as JSON: ask for a shorter period, or for CSV",
            frame.lines
        );
        return Err(CreditError::Query { name: "until", detail });
    }
    let mut connection = cx.master.acquire().await?;
    let mut all = Vec::new();
    let mut after = frame.first - 1;
    loop {
        let page = db::statement_lines(&mut connection, frame.organization_id, after, frame.last, PAGE).await?;
        let Some(last) = page.last() else { return Ok(all) };
        after = last.version;
        all.extend(page);
    }
}

/// The form of a statement that is sent piece by piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatementForm {
    Csv,
    /// A page for printing.
    Html,
}

/// The statement, piece by piece; nothing of it is held for longer than it takes to send.
pub fn stream(cx: &OpsCx, frame: StatementFrame, form: StatementForm) -> Body {
    enum At {
        Head,
        Lines(i64),
        End,
    }
    let cx = cx.clone();
    let pieces = stream::try_unfold(At::Head, move |at| {
        let cx = cx.clone();
        async move {
            match at {
                At::Head => Ok(Some((Bytes::from(head(&frame, form)), At::Lines(frame.first - 1)))),
                At::Lines(after) => {
                    let mut connection = cx.master.acquire().await?;
                    let lines =
                        db::statement_lines(&mut connection, frame.organization_id, after, frame.last, PAGE).await?;
                    drop(connection);
                    let Some(last) = lines.last() else {
                        return Ok(Some((Bytes::from(foot(&frame, form)), At::End)));
                    };
                    let next = At::Lines(last.version);
                    let text = lines.iter().fold(String::new(), |text, line| text + &row(line, form));
                    Ok::<_, sqlx::Error>(Some((Bytes::from(text), next)))
                }
                At::End => Ok(None),
            }
        }
    });
    Body::from_stream(pieces)
}

fn head(frame: &StatementFrame, form: StatementForm) -> String {
    match form {
        StatementForm::Csv => {
            let columns = "Version,At,Transaction,Kind,Store,Service,Description,Amount,Balance\r\n";
            format!("{columns},{},,opening,,,,,{}\r\n", moment(frame.from), frame.opening)
        }
        StatementForm::Html => format!(
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Credit statement</title><style>\
             body{{font:14px/1.4 system-ui,sans-serif;margin:2rem}}table{{border-collapse:collapse;width:100%}}\
             th,td{{padding:.3rem .5rem;border-bottom:1px solid #ccc;text-align:left}}.n{{text-align:right}}\
             thead{{display:table-header-group}}tr{{break-inside:avoid}}</style><h1>Credit statement</h1>\
             <p>{}<br>{} to {} (UTC, the end not included)</p><table><thead><tr><th>At<th>What<th>Store<th>Transaction\
             <th class=n>Credits<th class=n>Balance</thead><tbody><tr><td>{}<td>Opening balance<td><td><td><td class=n>{}",
            frame.organization_id,
            moment(frame.from),
            moment(frame.until),
            moment(frame.from),
            frame.opening
        ),
    }
}

fn row(line: &StatementLine, form: StatementForm) -> String {
    let store = line.store_id.map(|id| id.to_string()).unwrap_or_default();
    let (service, description) =
        (line.service.as_deref().unwrap_or_default(), line.description.as_deref().unwrap_or_default());
    let mut out = String::new();
    match form {
        StatementForm::Csv => {
            let _ = write!(
                out,
                "{},{},{},{},{store},{},{},{},{}\r\n",
                line.version,
                moment(line.at),
                line.transaction_id,
                line.kind.as_str(),
                cell(service),
                cell(description),
                line.amount,
                line.balance_after
            );
        }
        StatementForm::Html => {
            let what = if description.is_empty() { line.kind.as_str() } else { description };
            let _ = write!(
                out,
                "<tr><td>{}<td>{}<td>{store}<td>{}<td class=n>{}<td class=n>{}",
                moment(line.at),
                escape(what),
                line.transaction_id,
                line.amount,
                line.balance_after
            );
        }
    }
    out
}

fn foot(frame: &StatementFrame, form: StatementForm) -> String {
    match form {
        StatementForm::Csv => format!(",{},,closing,,,,,{}\r\n", moment(frame.until), frame.closing),
        StatementForm::Html => format!(
            "<tr><td>{}<td>Closing balance<td><td><td class=n>{}<td class=n>{}</table>",
            moment(frame.until),
            frame.closing - frame.opening,
            frame.closing
        ),
    }
}

fn moment(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A text cell that no spreadsheet takes for a formula (OWASP, CSV injection), quoted where it must be (RFC 4180).
fn cell(text: &str) -> String {
    let safe = if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { format!("'{text}") } else { text.to_owned() };
    if safe.contains([',', '"', '\r', '\n', ';', '\'']) { format!("\"{}\"", safe.replace('"', "\"\"")) } else { safe }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::{cell, escape};

    #[test]
    fn no_cell_is_a_formula() {
        for text in ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1"] {
            assert!(cell(text).trim_start_matches('"').starts_with('\''), "{text}");
        }
        assert_eq!(cell("a,\"b\""), "\"a,\"\"b\"\"\"");
        assert_eq!(cell("tea"), "tea");
    }

    #[test]
    fn no_text_is_markup() {
        assert_eq!(escape("<img src=x onerror=\"a&b\">"), "&lt;img src=x onerror=&quot;a&amp;b&quot;&gt;");
    }
}
