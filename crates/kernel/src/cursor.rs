//! Opaque page cursors: where a keyset page ended, bound to the list it came from.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A cursor that does not fit the list it was given to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cursor belongs to another list, sorting or filter, or is damaged")]
pub struct CursorError;

/// The longest cursor we read, in bytes.
const MAX_LEN: usize = 1024;

#[derive(Serialize, Deserialize)]
struct Parts<T> {
    s: u64,
    k: T,
}

/// Makes and reads cursors of one list. The scope names everything that must stay the same between two pages: the store,
/// the list, its sorting and its filters. It is a check against mistakes, not a secret: a cursor holds only a position, and
/// the list it points into is authorized on its own.
#[derive(Debug, Clone, Copy)]
pub struct Cursor {
    scope: u64,
}

impl Cursor {
    /// The cursors of the list that `scope` names, part by part.
    #[must_use]
    pub fn of(scope: &[&str]) -> Self {
        // FNV-1a, 64 bits: stable across builds, which the standard library's hasher does not promise.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for part in scope {
            for byte in part.bytes().chain([0xff]) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        Self { scope: hash }
    }

    /// The cursor that stands at `position`.
    #[must_use]
    pub fn encode<T: Serialize>(self, position: &T) -> String {
        let json = serde_json::to_vec(&Parts { s: self.scope, k: position }).expect("a position is plain data");
        URL_SAFE_NO_PAD.encode(json)
    }

    /// The position that `text` stands at.
    ///
    /// # Errors
    /// [`CursorError`] when it is damaged or was made by another list.
    pub fn decode<T: DeserializeOwned>(self, text: &str) -> Result<T, CursorError> {
        if text.len() > MAX_LEN {
            return Err(CursorError);
        }
        let json = URL_SAFE_NO_PAD.decode(text).map_err(|_| CursorError)?;
        let parts: Parts<T> = serde_json::from_slice(&json).map_err(|_| CursorError)?;
        if parts.s == self.scope { Ok(parts.k) } else { Err(CursorError) }
    }
}

#[cfg(test)]
mod tests {
    use super::{Cursor, CursorError};
    use proptest::prelude::{any, prop_assert_eq, proptest};

    proptest! {
        #[test]
        fn a_cursor_reads_back_only_where_it_was_made(at in any::<(i64, String)>(), a in ".{0,9}", b in ".{0,9}") {
            let text = Cursor::of(&["list", &a]).encode(&at);
            let read = Cursor::of(&["list", &b]).decode::<(i64, String)>(&text);
            prop_assert_eq!(read, if a == b { Ok(at) } else { Err(CursorError) });
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,60}") {
            let _ = Cursor::of(&[]).decode::<(i64, String)>(&text);
        }
    }

    #[test]
    fn the_parts_of_a_scope_do_not_run_together() {
        let text = Cursor::of(&["ab", "c"]).encode(&1);
        assert_eq!(Cursor::of(&["a", "bc"]).decode::<i32>(&text), Err(CursorError));
    }
}
