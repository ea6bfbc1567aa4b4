//! Names that the directory did not know a moment ago.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::node::lock;

/// Two generations of names: when the younger is full it becomes the older, and the older is forgotten. So the size is
/// bounded, and a flood of names costs no search for what to drop.
pub(crate) struct Unknown<K> {
    half: usize,
    ttl: Duration,
    names: Mutex<[HashMap<K, Instant>; 2]>,
}

impl<K: Hash + Eq> Unknown<K> {
    pub(crate) fn new(max: u64, ttl: Duration) -> Self {
        let half = usize::try_from(max / 2).unwrap_or(usize::MAX).max(1);
        Self { half, ttl, names: Mutex::new([HashMap::new(), HashMap::new()]) }
    }

    pub(crate) fn contains(&self, name: &K, now: Instant) -> bool {
        let names = lock(&self.names);
        names.iter().filter_map(|half| half.get(name)).any(|since| now.saturating_duration_since(*since) < self.ttl)
    }

    pub(crate) fn insert(&self, name: K, now: Instant) {
        let mut names = lock(&self.names);
        if names[0].len() >= self.half {
            names[1] = std::mem::take(&mut names[0]);
        }
        names[0].insert(name, now);
    }

    pub(crate) fn remove(&self, name: &K) {
        for half in lock(&self.names).iter_mut() {
            half.remove(name);
        }
    }

    pub(crate) fn clear(&self) {
        *lock(&self.names) = [HashMap::new(), HashMap::new()];
    }
}

#[cfg(test)]
mod tests {
    use super::Unknown;
    use std::time::Duration;
    use tokio::time::Instant;

    #[test]
    fn names_are_forgotten_in_time_and_never_too_many_are_kept() {
        let now = Instant::now();
        let unknown = Unknown::new(10, Duration::from_secs(5));
        for name in 0..1000 {
            unknown.insert(name, now);
        }
        assert!(unknown.contains(&999, now));
        assert!((0..1000).filter(|name| unknown.contains(name, now)).count() <= 10);
        assert!(!unknown.contains(&999, now + Duration::from_secs(5)));
        unknown.remove(&999);
        assert!(!unknown.contains(&999, now));
    }
}
