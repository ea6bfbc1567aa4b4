//! A node's budget of physical connections to one database server.
//!
//! Admission rules:
//! 1. Each server that a route names has a budget of its own on this node; databases that are at no server of ours share one
//!    more. A pool belongs to one budget for good.
//! 2. A physical connection holds a permit of its budget from before its first packet until after its good-bye (and
//!    `close_linger`, because the server's side needs a moment to go). So connections never outnumber permits.
//! 3. Permits never outnumber the limit. The limit may change at any moment: a higher one serves the next in line at once; a
//!    lower one takes back the permits that nobody holds, and each other one when its connection goes, before anybody in line
//!    gets one. Until then the budget *owes*: idle connections are closed, least recently used first, and connections that
//!    come back are closed, until nothing is owed.
//! 4. Who finds no permit first has the least recently used idle connection of another store at the server closed, then
//!    waits. Waiting is first come, first served; a store has at most `max_connections_per_store` places in the line, so a
//!    flood on one store delays another by that much and no more.
//!    What is opened outside every pool, by provisioning, stands in the same line.
//!    Who has a connection stands in the line only for who has waited for that one long enough (see [`crate::pool`]).
//! 5. A connection that comes back while other stores wait is closed for them, when its own store does not need it, or
//!    when it has served its `tenure`. Never more are closed than wait.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::node::lock;

pub(crate) struct Budget {
    permits: Arc<Semaphore>,
    /// Changed by whoever changes the limit, one at a time; a permit that goes reads `owed` under it.
    limit: Mutex<usize>,
    /// Permits that are out beyond the limit: written under the lock of `limit`, read without it.
    owed: AtomicUsize,
    waiting: AtomicUsize,
    closing: AtomicUsize,
    /// The most that was out or asked for since [`Budget::forget_peak`].
    peak: AtomicUsize,
    /// Rung when a permit came back.
    returned: Notify,
    /// Rung when somebody joins the line.
    wanted: Arc<Notify>,
}

/// The right to one physical connection.
pub(crate) struct Permit {
    budget: Arc<Budget>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            self.budget.take_back(permit);
        }
    }
}

/// Counts a connection that is about to give its permit back.
pub(crate) struct Closing(Arc<Budget>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.closing.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Counts one place in the line.
struct Waiting<'a>(&'a Budget, &'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // Who went away after a permit was meant for them gave it back past the budget.
        self.0.settle();
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
        self.1.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Budget {
    /// `wanted` is rung whenever somebody has to wait.
    pub(crate) fn new(limit: usize, wanted: Arc<Notify>) -> Self {
        let limit = Self::clamp(limit);
        Self {
            permits: Arc::new(Semaphore::new(limit)),
            limit: Mutex::new(limit),
            owed: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            closing: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            returned: Notify::new(),
            wanted,
        }
    }

    fn clamp(limit: usize) -> usize {
        limit.min(Semaphore::MAX_PERMITS.min(u32::MAX as usize))
    }

    pub(crate) fn limit(&self) -> usize {
        *lock(&self.limit)
    }

    /// What may be out from now on. What is out beyond it stays out until its connections go: see [`Budget::excess`].
    pub(crate) fn set_limit(&self, to: usize) {
        let to = Self::clamp(to);
        let mut limit = lock(&self.limit);
        let owed = self.owed.load(Ordering::SeqCst);
        if to >= *limit {
            let more = to - *limit;
            let forgiven = more.min(owed);
            self.owed.store(owed - forgiven, Ordering::SeqCst);
            *limit = to;
            self.permits.add_permits(more - forgiven);
        } else {
            let fewer = *limit - to;
            let unused = self.permits.forget_permits(fewer);
            self.owed.store(owed + fewer - unused, Ordering::SeqCst);
            *limit = to;
        }
    }

    /// Permits that are out: every physical connection, with those being opened or closed.
    pub(crate) fn in_use(&self) -> usize {
        let limit = lock(&self.limit);
        *limit + self.owed.load(Ordering::SeqCst) - self.permits.available_permits()
    }

    /// How many connections must go for the limit to hold again, beside those that are going.
    pub(crate) fn excess(&self) -> usize {
        let owed = self.owed.load(Ordering::SeqCst);
        if owed == 0 { 0 } else { owed.saturating_sub(self.closing.load(Ordering::SeqCst)) }
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// The most connections that were out or asked for since [`Budget::forget_peak`].
    pub(crate) fn peak(&self) -> usize {
        self.peak.load(Ordering::SeqCst).max(self.in_use() + self.waiting())
    }

    pub(crate) fn forget_peak(&self) {
        self.peak.store(0, Ordering::SeqCst);
    }

    fn note_peak(&self) {
        self.peak.fetch_max(self.in_use() + self.waiting(), Ordering::SeqCst);
    }

    pub(crate) fn try_take(self: &Arc<Self>) -> Option<Permit> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        self.note_peak();
        Some(Permit { budget: Arc::clone(self), permit: Some(permit) })
    }

    /// A permit, in turn. `own` counts the places of the asking pool; `make_room` is called once in the line.
    pub(crate) async fn wait(
        self: &Arc<Self>,
        own: &AtomicUsize,
        deadline: Instant,
        make_room: impl FnOnce() + Send,
    ) -> Option<Permit> {
        own.fetch_add(1, Ordering::SeqCst);
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let _place = Waiting(self, own);
        self.note_peak();
        self.wanted.notify_one();
        make_room();
        let permit = timeout_at(deadline, Arc::clone(&self.permits).acquire_owned()).await.ok()?.ok()?;
        Some(Permit { budget: Arc::clone(self), permit: Some(permit) })
    }

    /// Takes permits that are owed out of those that are free.
    fn settle(&self) {
        if self.owed.load(Ordering::SeqCst) == 0 {
            return;
        }
        let _limit = lock(&self.limit);
        let owed = self.owed.load(Ordering::SeqCst);
        self.owed.store(owed - self.permits.forget_permits(owed), Ordering::SeqCst);
    }

    fn take_back(&self, permit: OwnedSemaphorePermit) {
        {
            let _limit = lock(&self.limit);
            let owed = self.owed.load(Ordering::SeqCst);
            if owed > 0 {
                self.owed.store(owed - 1, Ordering::SeqCst);
                permit.forget();
            } else {
                drop(permit);
            }
        }
        self.returned.notify_waiters();
    }

    /// Whether somebody who asks now gets a permit at once.
    pub(crate) fn has_room(&self) -> bool {
        self.permits.available_permits() > 0
    }

    /// Whether anybody at all waits, or something is owed: two loads, for the way that every request takes.
    pub(crate) fn is_pressed(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0 || self.owed.load(Ordering::SeqCst) > 0
    }

    /// Whether pools other than the one with `own` places wait for more permits than are on their way.
    pub(crate) fn others_lack(&self, own: &AtomicUsize) -> bool {
        let waiting = self.waiting.load(Ordering::SeqCst);
        waiting > own.load(Ordering::SeqCst) && waiting > self.closing.load(Ordering::SeqCst)
    }

    /// To be held while a connection closes, and dropped after its permit.
    pub(crate) fn closing(self: &Arc<Self>) -> Closing {
        self.closing.fetch_add(1, Ordering::SeqCst);
        Closing(Arc::clone(self))
    }

    /// Returns once no more permits are out than `most`, each of which goes only when its connection is closed.
    pub(crate) async fn at_most(&self, most: usize) {
        loop {
            let returned = self.returned.notified();
            if self.in_use() <= most {
                return;
            }
            returned.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::sync::Notify;
    use tokio::time::Instant;

    use super::{Budget, Permit};

    fn budget(limit: usize) -> Arc<Budget> {
        Arc::new(Budget::new(limit, Arc::new(Notify::new())))
    }

    /// What may happen to a budget.
    #[derive(Debug, Clone)]
    enum Step {
        /// Somebody joins the line.
        Ask,
        /// Whoever is at this place in the line, counted round, gives up.
        GiveUp(usize),
        /// Of the connections that are out, this one, counted round, goes.
        Close(usize),
        SetLimit(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => Just(Step::Ask),
            1 => any::<usize>().prop_map(Step::GiveUp),
            4 => any::<usize>().prop_map(Step::Close),
            2 => (0_usize..6).prop_map(Step::SetLimit),
        ];
        prop::collection::vec(step, 1..120)
    }

    type Asking = Pin<Box<dyn Future<Output = Option<Permit>> + Send>>;

    fn poll(asking: &mut Asking) -> Poll<Option<Permit>> {
        asking.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        /// The rules above against a model that is a number and a line: nothing is granted beyond the limit, the first in line
        /// is served first and as soon as there is room, and nothing is lost or made, however the limit moves.
        #[test]
        fn a_budget_is_a_number_and_a_line(limit in 0_usize..6, steps in steps()) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
            let _inside = runtime.enter();
            let far = Instant::now() + Duration::from_secs(3600);
            let (budget, mut limit) = (budget(limit), limit);
            let mut line: VecDeque<(usize, Asking)> = VecDeque::new();
            let mut out: Vec<Permit> = Vec::new();
            let mut next = 0;
            for step in steps {
                match step {
                    Step::Ask => {
                        let asked = Arc::clone(&budget);
                        let mut asking: Asking =
                            Box::pin(async move { asked.wait(&AtomicUsize::new(0), far, || ()).await });
                        match poll(&mut asking) {
                            Poll::Ready(permit) => {
                                prop_assert!(line.is_empty(), "nobody overtakes");
                                prop_assert!(out.len() < limit, "there was room");
                                out.push(permit.expect("the time is far"));
                            }
                            Poll::Pending => {
                                prop_assert!(out.len() >= limit, "nobody waits while there is room");
                                line.push_back((next, asking));
                            }
                        }
                        next += 1;
                    }
                    Step::GiveUp(at) if !line.is_empty() => drop(line.remove(at % line.len())),
                    Step::Close(at) if !out.is_empty() => drop(out.swap_remove(at % out.len())),
                    Step::SetLimit(to) => {
                        limit = to;
                        budget.set_limit(to);
                    }
                    Step::GiveUp(_) | Step::Close(_) => {}
                }
                // Whom it serves now: the first ones, as many as there is room for.
                let room = limit.saturating_sub(out.len()).min(line.len());
                for at in 0..room {
                    let (_, mut asking) = line.pop_front().expect("it was counted");
                    match poll(&mut asking) {
                        Poll::Ready(permit) => out.push(permit.expect("the time is far")),
                        Poll::Pending => prop_assert!(false, "number {at} of {room} in line is not served"),
                    }
                }
                for (number, asking) in &mut line {
                    prop_assert!(poll(asking).is_pending(), "number {number} was served beyond the limit");
                }
                prop_assert_eq!(budget.in_use(), out.len());
                prop_assert_eq!(budget.waiting(), line.len());
                prop_assert_eq!(budget.excess(), out.len().saturating_sub(limit));
                prop_assert_eq!(budget.limit(), limit);
            }
            drop(line);
            out.clear();
            prop_assert_eq!((budget.in_use(), budget.excess(), budget.permits.available_permits()), (0, 0, limit));
        }
    }

    #[test]
    fn the_peak_is_of_what_was_asked_for_too() {
        let budget = budget(2);
        let held = [budget.try_take(), budget.try_take()];
        assert!(budget.try_take().is_none());
        drop(held);
        assert_eq!(budget.peak(), 2);
        budget.forget_peak();
        assert_eq!(budget.peak(), 0);
    }

    #[tokio::test]
    async fn a_permit_that_was_meant_for_somebody_who_went_away_is_still_owed() {
        let budget = Arc::new(Budget::new(1, Arc::new(Notify::new())));
        let own = AtomicUsize::new(0);
        let held = budget.try_take().expect("one");
        let mut waiting = Box::pin(budget.wait(&own, Instant::now() + Duration::from_secs(60), || {}));
        let first_look = std::future::poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx).is_ready())).await;
        assert!(!first_look);
        // It is the waiter's from now on, which does not know of it yet.
        drop(held);
        budget.set_limit(0);
        drop(waiting);
        assert!(budget.try_take().is_none(), "one more than the limit");
        assert_eq!((budget.in_use(), budget.excess()), (0, 0));
        budget.set_limit(1);
        assert!(budget.try_take().is_some());
    }
}
