//! Bodies and queries as the API reads them: `name=value`, `name[key]=value`, `name[]=value`.

use serde_json::{Map, Value};

use super::api::ApiError;

/// What a request says. Whoever reads a parameter takes it.
#[derive(Debug, Clone, Default)]
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    pub(super) fn parse(text: &str) -> Self {
        Self(url::form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.remove(at).1)
    }

    pub(super) fn need(&mut self, name: &str) -> Result<String, ApiError> {
        self.take(name).filter(|value| !value.is_empty()).ok_or_else(|| ApiError::missing(name))
    }

    pub(super) fn integer(&mut self, name: &str) -> Result<Option<i64>, ApiError> {
        self.take(name).map(|text| text.parse().map_err(|_| ApiError::invalid(name, "Invalid integer"))).transpose()
    }

    pub(super) fn flag(&mut self, name: &str) -> bool {
        self.take(name).is_some_and(|text| text == "true")
    }

    /// Every value of `name[]` and of `name[0]`, `name[1]`, ...
    pub(super) fn list(&mut self, name: &str) -> Vec<String> {
        let is_item = |known: &str| {
            known.strip_prefix(name).is_some_and(|rest| {
                rest.starts_with('[')
                    && rest.ends_with(']')
                    && rest[1..rest.len() - 1].bytes().all(|b| b.is_ascii_digit())
            })
        };
        let (taken, left) = std::mem::take(&mut self.0).into_iter().partition(|(known, _)| is_item(known));
        self.0 = left;
        taken.into_iter().map(|(_, value)| value).collect()
    }

    /// Every `name[key]`.
    pub(super) fn map(&mut self, name: &str) -> Map<String, Value> {
        let key = |known: &str| {
            known
                .strip_prefix(name)?
                .strip_prefix('[')?
                .strip_suffix(']')
                .filter(|key| !key.contains('['))
                .map(str::to_owned)
        };
        let mut map = Map::new();
        self.0.retain(|(known, value)| match key(known) {
            Some(key) => {
                map.insert(key, Value::String(value.clone()));
                false
            }
            None => true,
        });
        map
    }

    /// Fails when something is there that nobody would read: `known` are whole names, and beginnings that end with a bracket.
    pub(super) fn check(&self, known: &[&str]) -> Result<(), ApiError> {
        let is_known =
            |name: &str| known.iter().any(|one| *one == name || (one.ends_with('[') && name.starts_with(one)));
        match self.0.iter().find(|(name, _)| !is_known(name)) {
            Some((name, _)) => Err(ApiError::unknown_parameter(name)),
            None => Ok(()),
        }
    }

    /// The same for the same parameters, in whatever order they came.
    pub(super) fn fingerprint(&self) -> String {
        let mut pairs: Vec<String> = self.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
        pairs.sort();
        pairs.join("\n")
    }
}
