//! A few connections to the master database for what is asked most.
//!
//! The pool hands out the connection that rested longest, and asks whether it lives when it comes back: fair, and slow for
//! who asks one short thing after another, since each backend has to get warm anew. Here the one that was used last comes
//! first, and nothing is asked of it in between.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::pool::PoolConnection;
use sqlx::{PgPool, Postgres};

use super::is_alive;

/// Kept for so long, then the pool decides about its age.
const MAX_AGE: Duration = Duration::from_secs(300);
/// The most that are kept.
const MAX_KEPT: u32 = 4;
/// The part of the pool that may be kept: one in so many.
const PART: u32 = 5;

/// A connection that was lent.
pub struct Lent {
    pub connection: PoolConnection<Postgres>,
    /// When it came from the pool.
    since: Instant,
}

struct Kept {
    lent: Lent,
    used: Instant,
}

/// Connections that are kept between uses; they count among the pool's.
pub struct Warm {
    pool: PgPool,
    kept: Mutex<Vec<Kept>>,
    room: usize,
}

impl Warm {
    /// Keeps a fifth of the pool's connections at most, and never more than four.
    pub fn new(pool: PgPool) -> Self {
        let room = (pool.options().get_max_connections() / PART).min(MAX_KEPT) as usize;
        Self { pool, kept: Mutex::default(), room }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection that was used last, or one of the pool. Dropped, it goes to the pool.
    ///
    /// # Errors
    /// The pool's: none became free in time, or the server is unreachable.
    pub async fn lend(&self) -> Result<Lent, sqlx::Error> {
        loop {
            let last = self.lock().pop();
            let Some(Kept { mut lent, used }) = last else {
                return Ok(Lent { connection: self.pool.acquire().await?, since: Instant::now() });
            };
            if lent.since.elapsed() < MAX_AGE && is_alive(&mut lent.connection, used.elapsed()).await {
                return Ok(lent);
            }
        }
    }

    /// Keeps a connection whose last answer was read to its end.
    pub fn keep(&self, lent: Lent) {
        let mut kept = self.lock();
        if kept.len() < self.room && !self.pool.is_closed() {
            kept.push(Kept { lent, used: Instant::now() });
        }
    }

    /// Gives all of them back to the pool.
    pub fn clear(&self) {
        self.lock().clear();
    }
}
