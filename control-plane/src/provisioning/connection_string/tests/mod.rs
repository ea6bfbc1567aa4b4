//! What owners paste, form by form.

mod forms;
mod parameters;
mod properties;
mod urls;

use super::*;

fn parse(text: &str) -> Result<Target, TargetError> {
    Target::from_url(&text.to_owned().into(), None, None, None)
}

fn refusal(text: &str) -> (&'static str, String) {
    match parse(text) {
        Ok(_) => panic!("accepted: {text}"),
        Err(TargetError::Invalid { code, detail, .. }) => (code, detail),
        Err(other) => panic!("{other}"),
    }
}
