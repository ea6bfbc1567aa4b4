//! What is wrong with which field: the part of an answer that a form can show.

use serde::Serialize;
use utoipa::ToSchema;

/// One refused field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    /// The field as the API writes it, with its way: `variants[1].priceMinor`.
    pub field: String,
    /// A stable code, such as `too-long`.
    pub code: &'static str,
    /// What to do, for a person.
    pub message: String,
}

/// Collects what is wrong, so that everything is said at once.
#[derive(Debug, Default)]
pub(crate) struct Fields(Vec<FieldError>);

impl Fields {
    pub(crate) fn refuse(&mut self, field: impl Into<String>, code: &'static str, message: impl Into<String>) {
        self.0.push(FieldError { field: field.into(), code, message: message.into() });
    }

    /// One line of 1 to `max` characters.
    pub(crate) fn line(&mut self, field: &str, text: &str, max: usize) -> String {
        match kernel::text::one_line(text, max) {
            Ok(text) => text,
            Err(error) => {
                self.refuse(field, text_code(error), error.to_string());
                String::new()
            }
        }
    }

    /// One line of at most `max` characters; an empty one is none.
    pub(crate) fn optional_line(&mut self, field: &str, text: Option<&str>, max: usize) -> Option<String> {
        let text = text.map(str::trim).filter(|text| !text.is_empty())?;
        Some(self.line(field, text, max))
    }

    /// Text of several lines without NUL, of at most `max` bytes.
    pub(crate) fn long_text(&mut self, field: &str, text: &str, max: usize) {
        if text.len() > max {
            self.refuse(field, "too-long", format!("must have at most {max} bytes"));
        }
        if text.contains('\0') {
            self.refuse(field, "control-characters", "must not contain NUL characters");
        }
    }

    pub(crate) fn finish(self) -> Result<(), Vec<FieldError>> {
        if self.0.is_empty() { Ok(()) } else { Err(self.0) }
    }
}

/// The code of a refused line.
pub(crate) const fn text_code(error: kernel::text::TextError) -> &'static str {
    use kernel::text::TextError;
    match error {
        TextError::Empty => "empty",
        TextError::TooLong { .. } => "too-long",
        TextError::Control => "control-characters",
    }
}

/// An e-mail address in the form that we keep: trimmed, lower case, one `@`, a dot in what follows.
pub(crate) fn email(text: &str) -> Option<String> {
    let text = text.trim();
    let (local, domain) = text.rsplit_once('@')?;
    let is_plain =
        !text.chars().any(|c| c.is_whitespace() || c.is_control() || matches!(c, '<' | '>' | ',' | ';' | '"'));
    let has_host = domain.contains('.') && !domain.starts_with('.') && !domain.ends_with('.') && !domain.contains("..");
    (is_plain && text.len() <= 254 && (1..=64).contains(&local.len()) && !local.contains('@') && has_host)
        .then(|| text.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::email;

    #[test]
    fn addresses_are_kept_in_lower_case_and_hostile_ones_refused() {
        assert_eq!(email(" Ada@Example.COM ").as_deref(), Some("ada@example.com"));
        for text in [
            "",
            "ada",
            "@example.com",
            "ada@",
            "ada@host",
            "a b@example.com",
            "a@b@example.com",
            "a@.com",
            "a@b..c",
            "a@b.com\r\nBcc: x@y.z",
            "<a@b.com>",
        ] {
            assert_eq!(email(text), None, "{text:?}");
        }
    }
}
