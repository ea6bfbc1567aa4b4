//! Sessions outside the pools, and the places that they take at servers of ours.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use tenancy::{Reservation, Session};

use super::engine;

/// By then a server has ended whatever we asked it for last: a little later than the limit that is set to statements.
pub const STATEMENT_END: Duration = Duration::from_secs(65);

/// A session with its place in what we may have open at the server, where that is one of ours. Dropped in the middle of a
/// statement, as by a time limit, it keeps the place until the server has done with that.
pub struct Held {
    /// There until it is closed or dropped.
    session: Option<Session>,
    place: Option<Reservation>,
}

impl Held {
    pub fn new(session: Session, place: Option<Reservation>) -> Self {
        Self { session: Some(session), place }
    }

    /// Says good-bye, and fails when that is not heard.
    pub async fn close(mut self) -> Result<(), sqlx::Error> {
        match self.session.take() {
            Some(session) => session.close().await,
            None => Ok(()),
        }
    }

    /// Says good-bye, whether that is heard or not.
    pub async fn leave(mut self) {
        if let Some(session) = self.session.take() {
            engine::leave(session).await;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let (Some(session), Some(place)) = (self.session.take(), self.place.take()) {
            place.close_after_work(session, STATEMENT_END);
        }
    }
}

impl Deref for Held {
    type Target = Session;
    fn deref(&self) -> &Session {
        self.session.as_ref().expect("only closing and dropping take it, and nobody has it afterwards")
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut Session {
        self.session.as_mut().expect("only closing and dropping take it, and nobody has it afterwards")
    }
}
