//! Rules for one-line texts that people type: names, titles, reasons.

/// Why a one-line text is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// Nothing is left after trimming.
    #[error("must not be empty")]
    Empty,
    /// Longer than allowed.
    #[error("must have at most {max} characters")]
    TooLong {
        /// The limit, in characters.
        max: usize,
    },
    /// Control characters, line breaks, or characters that turn the writing direction.
    #[error("must not contain control characters")]
    Control,
}

/// `text` trimmed, when it is one line of 1 to `max` characters without control or bidirectional formatting characters.
///
/// # Errors
/// [`TextError`] naming the rule that it breaks.
pub fn one_line(text: &str, max: usize) -> Result<String, TextError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(TextError::Empty);
    }
    if text.chars().count() > max {
        return Err(TextError::TooLong { max });
    }
    if text.chars().any(is_forbidden) {
        return Err(TextError::Control);
    }
    Ok(text.to_owned())
}

/// Control characters, line and paragraph separators, and the bidirectional overrides that let a name pose as another.
fn is_forbidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' | '\u{FEFF}')
}

#[cfg(test)]
mod tests {
    use super::{TextError, one_line};

    #[test]
    fn hostile_lines_are_refused_and_plain_ones_trimmed() {
        assert_eq!(one_line("  Ada's Tea 茶 ", 20).as_deref(), Ok("Ada's Tea 茶"));
        assert_eq!(one_line(" \t ", 20), Err(TextError::Empty));
        assert_eq!(one_line("abc", 2), Err(TextError::TooLong { max: 2 }));
        for text in ["a\r\nSet-Cookie: x", "a\u{0}b", "a\u{202E}b", "a\u{2028}b"] {
            assert_eq!(one_line(text, 50), Err(TextError::Control), "{text:?}");
        }
    }
}
