//! Rows out of a stream of bytes, one at a time, with limits on everything.

use csv_core::ReadRecordResult;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::{ImportError, ImportLimits};

/// A row that has no sound fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Defect {
    /// Bytes that are no UTF-8.
    NotUtf8,
    /// More bytes than a row may have.
    RowTooLarge,
    /// More columns than a row may have.
    TooManyFields,
    /// A quotation mark was opened and never closed.
    QuoteUnclosed,
}

/// A row of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// The line where it begins, from 1.
    pub(super) line: u64,
    /// Why its fields are not to be trusted.
    pub(super) defect: Option<Defect>,
    text: String,
    ends: Vec<usize>,
}

impl Row {
    /// The number of fields.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes that it takes.
    pub(super) fn size(&self) -> usize {
        self.text.len() + self.ends.len() * size_of::<usize>()
    }

    /// A field.
    pub(super) fn get(&self, at: usize) -> Option<&str> {
        let end = *self.ends.get(at)?;
        let start = if at == 0 { 0 } else { *self.ends.get(at - 1)? };
        self.text.get(start..end)
    }

    /// All fields.
    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.len()).filter_map(|at| self.get(at))
    }
}

/// Reads rows from a file.
pub(super) struct CsvStream<R> {
    file: R,
    limits: ImportLimits,
    parser: csv_core::Reader,
    input: Box<[u8]>,
    start: usize,
    end: usize,
    is_eof: bool,
    line: u64,
    bytes: u64,
    output: Vec<u8>,
    ends: Vec<usize>,
}

const INPUT_SIZE: usize = 32 * 1024;

impl<R: AsyncRead + Unpin> CsvStream<R> {
    /// Begins to read; refuses what cannot be UTF-8 by its first bytes.
    pub(super) async fn open(file: R, limits: ImportLimits) -> Result<Self, ImportError> {
        let mut stream = Self {
            file,
            limits,
            parser: csv_core::Reader::new(),
            input: vec![0; INPUT_SIZE].into_boxed_slice(),
            start: 0,
            end: 0,
            is_eof: false,
            line: 1,
            bytes: 0,
            output: vec![0; 4096],
            ends: vec![0; 64],
        };
        while stream.end < 3 && !stream.is_eof {
            stream.fill().await?;
        }
        let head = &stream.input[..stream.end];
        if head.starts_with(&[0xff, 0xfe]) || head.starts_with(&[0xfe, 0xff]) {
            return Err(ImportError::NotUtf8 { line: 1 });
        }
        if head.starts_with(&[0xef, 0xbb, 0xbf]) {
            stream.start = 3;
        }
        Ok(stream)
    }

    /// The bytes read so far.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    async fn fill(&mut self) -> Result<(), ImportError> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        let count = self.file.read(&mut self.input[self.end..]).await.map_err(ImportError::Read)?;
        self.is_eof = count == 0;
        self.end += count;
        self.bytes += u64::try_from(count).unwrap_or_default();
        Ok(())
    }

    /// The next row, or `None` at the end of the file. Blank lines are no rows.
    pub(super) async fn next(&mut self) -> Result<Option<Row>, ImportError> {
        self.skip_line_ends().await?;
        let line = self.line;
        let (mut written, mut fields) = (0, 0);
        let mut defect = None;
        // What was read of a row before it turned out too large: enough to tell whose it is.
        let mut kept: Option<usize> = None;
        let mut quotes = 0_usize;
        loop {
            if self.start == self.end && !self.is_eof {
                self.fill().await?;
            }
            let input = &self.input[self.start..self.end];
            let (result, read, wrote, ended) =
                self.parser.read_record(input, &mut self.output[written..], &mut self.ends[fields..]);
            let consumed = &input[..read];
            self.line += u64::try_from(consumed.iter().filter(|byte| **byte == b'\n').count()).unwrap_or_default();
            quotes += consumed.iter().filter(|byte| **byte == b'"').count();
            self.start += read;
            written += wrote;
            fields += ended;
            match result {
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull if self.output.len() < self.limits.row_bytes => {
                    let size = (self.output.len() * 2).min(self.limits.row_bytes);
                    self.output.resize(size, 0);
                }
                ReadRecordResult::OutputEndsFull if self.ends.len() <= self.limits.columns => {
                    let size = (self.ends.len() * 2).min(self.limits.columns + 1);
                    self.ends.resize(size, 0);
                }
                // From here on the row is only read past; the beginning of it stays where it is.
                ReadRecordResult::OutputFull => {
                    defect = Some(Defect::RowTooLarge);
                    let at = *kept.get_or_insert(fields);
                    written = at.checked_sub(1).map_or(0, |last| self.ends[last]).min(self.output.len() / 2);
                }
                ReadRecordResult::OutputEndsFull => {
                    defect = defect.or(Some(Defect::TooManyFields));
                    kept.get_or_insert(fields);
                    fields = self.ends.len() / 2;
                }
                ReadRecordResult::Record => break,
                ReadRecordResult::End => return Ok(None),
            }
        }
        if self.is_eof && self.start == self.end && quotes % 2 == 1 && self.line > line {
            defect = defect.or(Some(Defect::QuoteUnclosed));
        }
        Ok(Some(self.row(line, defect, kept.map_or(fields, |kept| kept.min(4)))))
    }

    fn row(&self, line: u64, mut defect: Option<Defect>, fields: usize) -> Row {
        let ends = &self.ends[..fields.min(self.ends.len())];
        let length = ends.last().copied().unwrap_or_default().min(self.output.len());
        let bytes = &self.output[..length];
        let (text, ends) = match std::str::from_utf8(bytes) {
            Ok(text) => (text.to_owned(), ends.to_vec()),
            Err(_) => {
                defect = defect.or(Some(Defect::NotUtf8));
                lossy(bytes, ends)
            }
        };
        let is_field_too_large = ends
            .iter()
            .scan(0, |start, end| Some(end - std::mem::replace(start, *end)))
            .any(|size| size > self.limits.field_bytes);
        if is_field_too_large {
            defect = defect.or(Some(Defect::RowTooLarge));
        }
        Row { line, defect, text, ends }
    }

    /// What ends one row and the blank lines before the next are counted here, so that a row's line is its own.
    async fn skip_line_ends(&mut self) -> Result<(), ImportError> {
        loop {
            if self.start == self.end && !self.is_eof {
                self.fill().await?;
            }
            match self.input[self.start..self.end].first() {
                Some(b'\n') => self.line += 1,
                Some(b'\r') => {}
                _ => return Ok(()),
            }
            self.start += 1;
        }
    }
}

/// The fields with what is no UTF-8 replaced: good for nothing but to name the product.
fn lossy(bytes: &[u8], ends: &[usize]) -> (String, Vec<usize>) {
    let mut text = String::new();
    let mut start = 0;
    let ends = ends
        .iter()
        .map(|end| {
            text.push_str(&String::from_utf8_lossy(bytes.get(start..*end).unwrap_or_default()));
            start = *end;
            text.len()
        })
        .collect();
    (text, ends)
}

#[cfg(test)]
mod tests {
    use super::{CsvStream, Defect, Row};
    use crate::import::{ImportError, ImportLimits};
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
    use tokio::io::AsyncRead;

    /// Gives a file away in pieces of a few bytes, as a slow network does.
    struct Drip<'a>(&'a [u8], usize);

    impl AsyncRead for Drip<'_> {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            buffer: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            let count = self.1.min(self.0.len()).min(buffer.remaining());
            let (now, later) = self.0.split_at(count);
            buffer.put_slice(now);
            self.0 = later;
            std::task::Poll::Ready(Ok(()))
        }
    }

    fn limits() -> ImportLimits {
        ImportLimits { columns: 6, row_bytes: 8192, field_bytes: 6000, ..ImportLimits::default() }
    }

    fn rows_of(file: &[u8], step: usize) -> Result<Vec<Row>, ImportError> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let mut stream = CsvStream::open(Drip(file, step), limits()).await?;
            let mut rows = Vec::new();
            while let Some(row) = stream.next().await? {
                rows.push(row);
            }
            assert_eq!(stream.bytes(), u64::try_from(file.len()).expect("small"));
            Ok(rows)
        })
    }

    fn texts(row: &Row) -> Vec<&str> {
        row.iter().collect()
    }

    #[test]
    fn rows_know_their_lines_with_any_line_end_and_any_pieces() {
        let file = "\u{feff}a,b\r\n\r\n1,\"<p>\r\nx \"\"y\"\"</p>\"\r\n\n2,\r\n3,é".as_bytes();
        for step in [1, 2, 3, 7, 4096] {
            let rows = rows_of(file, step).expect("readable");
            let lines: Vec<u64> = rows.iter().map(|row| row.line).collect();
            assert_eq!(lines, [1, 3, 6, 7], "step {step}");
            assert_eq!(texts(&rows[0]), ["a", "b"]);
            assert_eq!(texts(&rows[1]), ["1", "<p>\r\nx \"y\"</p>"]);
            assert_eq!(texts(&rows[2]), ["2", ""]);
            assert_eq!(texts(&rows[3]), ["3", "é"]);
            assert!(rows.iter().all(|row| row.defect.is_none()));
        }
    }

    #[test]
    fn a_row_beyond_a_limit_is_named_and_the_next_one_read() {
        let long = "x".repeat(50_000);
        let wide = "y,".repeat(200);
        let field = "z".repeat(7000);
        let file = format!("h,t\nbig,{long},end\nwide,{wide}\nfield,{field}\nok,1\n");
        let rows = rows_of(file.as_bytes(), 1000).expect("readable");
        let defects: Vec<Option<Defect>> = rows.iter().map(|row| row.defect).collect();
        let large = Some(Defect::RowTooLarge);
        assert_eq!(defects, [None, large, Some(Defect::TooManyFields), large, None]);
        let handles: Vec<Option<&str>> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(handles, [Some("h"), Some("big"), Some("wide"), Some("field"), Some("ok")]);
        assert_eq!(texts(&rows[4]), ["ok", "1"]);
    }

    #[test]
    fn other_encodings_are_refused_or_named() {
        assert!(matches!(rows_of(b"\xff\xfeH\0a\0", 100), Err(ImportError::NotUtf8 { line: 1 })));
        let rows = rows_of(b"h,t\nth\xe9,x\nok,y\n", 5).expect("readable");
        assert_eq!(rows[1].defect, Some(Defect::NotUtf8));
        assert_eq!(rows[2].defect, None);
    }

    #[test]
    fn an_open_quote_is_named() {
        let rows = rows_of(b"h,t\na,1\nb,\"2\nc,3\n", 100).expect("readable");
        assert_eq!(rows[2].defect, Some(Defect::QuoteUnclosed));
        assert_eq!(rows.len(), 3);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_and_pieces_do_not_matter(file in proptest::collection::vec(any::<u8>(), 0..300), step in 1_usize..50) {
            match (rows_of(&file, step), rows_of(&file, 4096)) {
                (Ok(pieces), Ok(whole)) => prop_assert_eq!(pieces, whole),
                (pieces, whole) => prop_assert!(pieces.is_err() && whole.is_err()),
            }
        }

        #[test]
        fn what_is_quoted_reads_back(fields in proptest::collection::vec("[a-z\",\r\n é]{0,12}", 1..6)) {
            let quoted: Vec<String> = fields.iter().map(|field| format!("\"{}\"", field.replace('"', "\"\""))).collect();
            let rows = rows_of(format!("{}\r\n", quoted.join(",")).as_bytes(), 3).expect("readable");
            prop_assert_eq!(rows.len(), 1);
            prop_assert_eq!(texts(&rows[0]), fields);
        }
    }
}
