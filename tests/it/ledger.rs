//! The credit ledger against a model of it: random operations in order, each answer foretold.

use std::collections::BTreeMap;

use chrono::{DateTime, Duration, Utc};
use control_plane::credits::batch::Spend;
use control_plane::credits::db::{self, CloseDispute, EndHold, Grant, NewHold, OpenDispute, TakeBack};
use control_plane::credits::{
    Decision, LotKind, NewLot, Transaction, TransactionKind, TransactionStatus, request_hash, verify,
};
use integration_tests::{Owner, TestApp, TestAppOptions};
use kernel::{Clock as _, CreditHoldId, CreditLotId, CreditTransactionId, OrganizationId, StoreId, UserId};
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

/// What is done to an account. Numbers that name a lot or a hold are taken modulo what there is.
#[derive(Debug, Clone)]
enum Op {
    Grant { kind: u8, amount: i64, priority: i16, minutes: Option<i64> },
    Purchase { amount: i64, bonus: i64 },
    Spend { amounts: Vec<i64> },
    Hold { amount: i64, minutes: i64 },
    Capture { hold: usize, amount: i64 },
    Void { hold: usize },
    ExpireHolds,
    Advance { minutes: i64 },
    Refund { lot: usize, amount: i64, may_owe: bool },
    DisputeOpen { lot: usize, amount: i64 },
    DisputeClose { dispute: usize, is_won: bool },
    Replay { spend: usize },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0_u8..3, 1_i64..200, 0_i16..4, proptest::option::of(1_i64..120))
            .prop_map(|(kind, amount, priority, minutes)| Op::Grant { kind, amount, priority: priority * 25, minutes }),
        2 => (1_i64..200, 0_i64..30).prop_map(|(amount, bonus)| Op::Purchase { amount, bonus }),
        6 => vec(1_i64..80, 1..6).prop_map(|amounts| Op::Spend { amounts }),
        3 => (1_i64..80, 1_i64..90).prop_map(|(amount, minutes)| Op::Hold { amount, minutes }),
        3 => (any::<usize>(), 1_i64..80).prop_map(|(hold, amount)| Op::Capture { hold, amount }),
        1 => any::<usize>().prop_map(|hold| Op::Void { hold }),
        1 => Just(Op::ExpireHolds),
        2 => (1_i64..60).prop_map(|minutes| Op::Advance { minutes }),
        1 => (any::<usize>(), 1_i64..150, any::<bool>()).prop_map(|(lot, amount, may_owe)| Op::Refund { lot, amount, may_owe }),
        1 => (any::<usize>(), 1_i64..150).prop_map(|(lot, amount)| Op::DisputeOpen { lot, amount }),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(dispute, is_won)| Op::DisputeClose { dispute, is_won }),
        2 => any::<usize>().prop_map(|spend| Op::Replay { spend }),
    ]
}

#[derive(Debug, Clone)]
struct ModelLot {
    id: Uuid,
    rank: (i16, Option<DateTime<Utc>>, u8, i64, Uuid),
    remaining: i64,
    held: i64,
}

#[derive(Debug, Clone)]
struct ModelHold {
    id: CreditHoldId,
    parts: Vec<(usize, i64)>,
    amount: i64,
    expires_at: DateTime<Utc>,
    state: &'static str,
}

#[derive(Debug, Clone)]
struct ModelDispute {
    opening: CreditTransactionId,
    amount: i64,
    parts: Vec<(usize, i64)>,
    is_open: bool,
}

/// What an account must be: a few lines for what the database does in many.
#[derive(Debug, Default)]
struct Model {
    lots: Vec<ModelLot>,
    holds: Vec<ModelHold>,
    disputes: Vec<ModelDispute>,
    debt: i64,
    spends: Vec<(Spend, Transaction)>,
    /// The balance after each version.
    history: BTreeMap<i64, [i64; 3]>,
}

impl Model {
    fn amounts(&self) -> [i64; 3] {
        [self.lots.iter().map(|lot| lot.remaining).sum(), self.lots.iter().map(|lot| lot.held).sum(), self.debt]
    }

    fn expire(&mut self, now: DateTime<Utc>) {
        for lot in self.lots.iter_mut().filter(|lot| lot.rank.1.is_some_and(|at| at <= now)) {
            lot.remaining = 0;
        }
    }

    /// Takes `amount` out of the lots in their order; nothing when there is too little.
    fn take(&mut self, amount: i64) -> Option<Vec<(usize, i64)>> {
        if amount > self.amounts()[0] {
            return None;
        }
        let mut order: Vec<usize> = (0..self.lots.len()).collect();
        let infinity = DateTime::<Utc>::MAX_UTC;
        order.sort_by_key(|at| {
            let (priority, expires, kind, cost, id) = self.lots[*at].rank;
            (priority, expires.unwrap_or(infinity), kind, cost, id)
        });
        let mut parts = Vec::new();
        let mut need = amount;
        for at in order {
            let part = need.min(self.lots[at].remaining);
            if part > 0 {
                self.lots[at].remaining -= part;
                need -= part;
                parts.push((at, part));
            }
        }
        assert_eq!(need, 0);
        Some(parts)
    }
}

struct Case<'a> {
    app: &'a TestApp,
    organization: OrganizationId,
    connection: PgConnection,
    model: Model,
    number: usize,
}

impl Case<'_> {
    fn key(&mut self) -> (String, [u8; 32]) {
        self.number += 1;
        let key = format!("case:{}", self.number);
        let hash = request_hash("case", &self.number).unwrap();
        (key, hash)
    }

    fn now(&self) -> DateTime<Utc> {
        self.app.clock.now()
    }

    /// Fails unless the database decided as the model does.
    fn check(&mut self, transaction: &Transaction, accepted: bool) {
        let status = if accepted { TransactionStatus::Accepted } else { TransactionStatus::Rejected };
        assert_eq!(transaction.status, status, "{transaction:?}");
        let after = [transaction.available_after, transaction.held_after, transaction.debt_after];
        assert_eq!(after, self.model.amounts(), "{transaction:?}");
        self.model.history.insert(transaction.version, after);
    }

    async fn apply(&mut self, op: &Op) {
        let now = self.now();
        let organization = self.organization;
        match op.clone() {
            Op::Grant { kind, amount, priority, minutes } => {
                let kind = [LotKind::Paid, LotKind::Promotional, LotKind::Compensation][usize::from(kind)];
                let expires_at = minutes.map(|minutes| now + Duration::minutes(minutes));
                let lot = NewLot { kind, amount, priority, expires_at, unit_cost_minor: amount % 3 };
                self.grant(TransactionKind::Grant, &[lot]).await;
            }
            Op::Purchase { amount, bonus } => {
                let lot = |kind, amount| NewLot { kind, amount, priority: 50, expires_at: None, unit_cost_minor: 1 };
                let mut lots = vec![lot(LotKind::Paid, amount)];
                lots.extend((bonus > 0).then(|| lot(LotKind::Promotional, bonus)));
                self.grant(TransactionKind::Purchase, &lots).await;
            }
            Op::Spend { amounts } => {
                let spends: Vec<Spend> = amounts.iter().map(|amount| self.spend(*amount)).collect();
                let decisions = db::spend(&mut self.connection, organization, &spends, now).await.unwrap();
                self.model.expire(now);
                for (spend, decision) in spends.into_iter().zip(decisions) {
                    let taken = self.model.take(spend.amount);
                    self.check(&decision.transaction, taken.is_some());
                    self.model.spends.push((spend, decision.transaction));
                }
            }
            Op::Hold { amount, minutes } => {
                let (key, hash) = self.key();
                let (store, actor) = self.app_ids();
                let new = NewHold {
                    id: CreditTransactionId::new(now),
                    key: &key,
                    hash: &hash,
                    store,
                    actor,
                    amount,
                    service: None,
                    quantity: None,
                    facts: None,
                    description: None,
                    expires_at: now + Duration::minutes(minutes),
                };
                let decision = db::hold(&mut self.connection, organization, &new, now).await.unwrap();
                self.model.expire(now);
                let parts = self.model.take(amount);
                for (at, part) in parts.iter().flatten() {
                    self.model.lots[*at].held += part;
                }
                self.check(&decision.transaction, parts.is_some());
                if let Some(parts) = parts {
                    let id = decision.transaction.hold_id.unwrap();
                    let hold = ModelHold { id, parts, amount, expires_at: new.expires_at, state: "open" };
                    self.model.holds.push(hold);
                }
            }
            Op::Capture { hold, amount } => self.end(hold, TransactionKind::Capture, amount).await,
            Op::Void { hold } => self.end(hold, TransactionKind::Void, 0).await,
            Op::ExpireHolds => {
                for hold in 0..self.model.holds.len() {
                    if self.model.holds[hold].state == "open" && self.model.holds[hold].expires_at <= now {
                        self.end(hold, TransactionKind::HoldExpiry, 0).await;
                    }
                }
            }
            Op::Advance { minutes } => self.app.clock.advance(Duration::minutes(minutes)),
            Op::Refund { lot, amount, may_owe } => {
                let Some(at) = lot.checked_rem(self.model.lots.len()) else { return };
                let (key, hash) = self.key();
                let take = TakeBack {
                    id: CreditTransactionId::new(now),
                    key: &key,
                    hash: &hash,
                    lot: CreditLotId::from_uuid(self.model.lots[at].id),
                    wanted: amount,
                    may_owe,
                    actor: None,
                    why: None,
                    reference: None,
                };
                let decision = db::refund(&mut self.connection, organization, &take, now).await.unwrap();
                self.model.expire(now);
                let took = amount.min(self.model.lots[at].remaining);
                let owed = if may_owe { amount - took } else { 0 };
                self.model.lots[at].remaining -= took;
                self.model.debt += owed;
                self.check(&decision.transaction, took + owed > 0);
            }
            Op::DisputeOpen { lot, amount } => {
                let Some(at) = lot.checked_rem(self.model.lots.len()) else { return };
                let (key, hash) = self.key();
                let id = CreditTransactionId::new(now);
                let open = OpenDispute {
                    id,
                    key: &key,
                    hash: &hash,
                    lot: CreditLotId::from_uuid(self.model.lots[at].id),
                    disputed: amount,
                    why: None,
                    reference: &id.to_string(),
                };
                let decision = db::dispute_open(&mut self.connection, organization, &open, now).await.unwrap();
                self.model.expire(now);
                let frozen = amount.min(self.model.lots[at].remaining);
                self.model.lots[at].remaining -= frozen;
                self.model.lots[at].held += frozen;
                let parts = vec![(at, frozen)];
                let opening = decision.transaction.id;
                self.model.disputes.push(ModelDispute { opening, amount, parts, is_open: true });
                self.check(&decision.transaction, true);
            }
            Op::DisputeClose { dispute, is_won } => {
                let open: Vec<usize> =
                    (0..self.model.disputes.len()).filter(|at| self.model.disputes[*at].is_open).collect();
                let Some(at) = dispute.checked_rem(open.len()).map(|at| open[at]) else { return };
                let (key, hash) = self.key();
                let opening = self.model.disputes[at].opening;
                let id = CreditTransactionId::new(now);
                let close = CloseDispute { id, key: &key, hash: &hash, opening, is_won, reference: &id.to_string() };
                let decision = db::dispute_close(&mut self.connection, organization, &close, now).await.unwrap();
                self.model.expire(now);
                let ModelDispute { amount, parts, .. } = self.model.disputes[at].clone();
                self.model.disputes[at].is_open = false;
                let mut frozen = 0;
                for (lot, part) in parts {
                    self.model.lots[lot].held -= part;
                    self.model.lots[lot].remaining += if is_won { part } else { 0 };
                    frozen += part;
                }
                self.model.debt += if is_won { 0 } else { amount - frozen };
                self.check(&decision.transaction, true);
                self.model.expire(now);
            }
            Op::Replay { spend } => {
                let Some(at) = spend.checked_rem(self.model.spends.len()) else { return };
                let (spend, before) = self.model.spends[at].clone();
                let again = Spend { id: CreditTransactionId::new(now), ..spend };
                let decisions = db::spend(&mut self.connection, organization, &[again], now).await.unwrap();
                let [Decision { is_new, transaction }] = decisions.as_slice() else { panic!("one decision") };
                assert!(!is_new);
                assert_eq!(format!("{transaction:?}"), format!("{before:?}"));
            }
        }
    }

    fn app_ids(&self) -> (StoreId, UserId) {
        (STORE.with(std::cell::Cell::get).unwrap(), UserId::from_uuid(Uuid::nil()))
    }

    fn spend(&mut self, amount: i64) -> Spend {
        let (key, hash) = self.key();
        Spend {
            id: CreditTransactionId::new(self.now()),
            key,
            hash,
            kind: TransactionKind::Spend,
            store: None,
            actor: None,
            amount,
            service: None,
            quantity: None,
            description: None,
            facts: None,
        }
    }

    async fn grant(&mut self, kind: TransactionKind, lots: &[NewLot]) {
        let now = self.now();
        let (key, hash) = self.key();
        let grant = Grant {
            id: CreditTransactionId::new(now),
            key: &key,
            hash: &hash,
            kind,
            actor: None,
            store: None,
            why: None,
            reference: None,
            lots,
            purchase: None,
            currency: None,
        };
        let decision = db::grant(&mut self.connection, self.organization, &grant, now).await.unwrap();
        self.model.expire(now);
        let facts = decision.transaction.data.clone().unwrap();
        for (lot, fact) in lots.iter().zip(facts["lots"].as_array().unwrap()) {
            let repaid = if kind == TransactionKind::Purchase { self.model.debt.min(lot.amount) } else { 0 };
            self.model.debt -= repaid;
            let id: Uuid = fact["id"].as_str().unwrap().parse().unwrap();
            let kind = match lot.kind {
                LotKind::Promotional => 0,
                LotKind::Compensation => 1,
                LotKind::Paid => 2,
            };
            let rank = (lot.priority, lot.expires_at, kind, lot.unit_cost_minor, id);
            self.model.lots.push(ModelLot { id, rank, remaining: lot.amount - repaid, held: 0 });
        }
        self.check(&decision.transaction, true);
    }

    async fn end(&mut self, hold: usize, ending: TransactionKind, taken: i64) {
        let Some(at) = hold.checked_rem(self.model.holds.len()) else { return };
        let now = self.now();
        let (key, hash) = self.key();
        let ModelHold { id, parts, amount, expires_at, state } = self.model.holds[at].clone();
        let id_of_end = CreditTransactionId::new(now);
        let end = EndHold { id: id_of_end, key: &key, hash: &hash, ending, hold: id, actor: None, taken, why: None };
        let decision = db::hold_end(&mut self.connection, self.organization, &end, now).await.unwrap();
        self.model.expire(now);
        let is_timely = (ending == TransactionKind::HoldExpiry) == (expires_at <= now);
        let accepted = state == "open" && is_timely && taken <= amount;
        if accepted {
            let mut need = taken;
            for (lot, part) in parts {
                let used = need.min(part);
                need -= used;
                self.model.lots[lot].held -= part;
                self.model.lots[lot].remaining += part - used;
            }
            self.model.holds[at].state = "ended";
        }
        self.check(&decision.transaction, accepted);
        self.model.expire(now);
    }
}

thread_local! {
    /// A store that holds may name: the model does not care which.
    static STORE: std::cell::Cell<Option<StoreId>> = const { std::cell::Cell::new(None) };
}

async fn run_case(app: &TestApp, ops: &[Op]) {
    let mut connection = app.master().await;
    let now = app.clock.now();
    let organization = OrganizationId::new(now);
    sqlx::query("insert into organizations (id, name, created_at, updated_at) values ($1, 'a case', $2, $2)")
        .bind(organization.as_uuid())
        .bind(now)
        .execute(&mut connection)
        .await
        .unwrap();
    let mut case = Case { app, organization, connection, model: Model::default(), number: 0 };
    for op in ops {
        case.apply(op).await;
    }
    let now = case.now();
    db::expire(&mut case.connection, organization, now).await.unwrap();
    case.model.expire(now);
    let (balance, _) = db::balance_find(&mut case.connection, organization).await.unwrap().unwrap();
    assert_eq!([balance.available, balance.held, balance.debt], case.model.amounts());
    assert_eq!(verify::db::violations(&mut case.connection, Some(organization)).await.unwrap(), []);
    // What it was at any version is read from the version.
    for (version, amounts) in &case.model.history {
        let at: (i64, i64, i64) = sqlx::query_as(
            "select available_after, held_after, debt_after from credit_transactions where organization_id = $1 and version = $2",
        )
        .bind(organization.as_uuid())
        .bind(version)
        .fetch_one(&mut case.connection)
        .await
        .unwrap();
        assert_eq!([at.0, at.1, at.2], *amounts, "version {version}");
    }
}

/// Runs so many random cases on the model and the database, and shrinks one that fails.
pub(crate) fn agree_on(cases: u32, length: usize) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let app = runtime.block_on(async {
        let app = TestApp::start_with(TestAppOptions { without_server: true, ..TestAppOptions::default() }).await;
        let owner: Owner = app.owner("ada").await;
        let store: Value = owner.create_store("tea").await.expect_status(201);
        STORE.with(|cell| cell.set(Some(crate::provisioning::store_id(&store))));
        // Nothing expires or is booked behind the back of a case.
        app.without_worker().await;
        app
    });
    let config = Config { cases, max_shrink_iters: 400, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&vec(op(), 1..length), |ops| {
        let work = std::panic::AssertUnwindSafe(|| runtime.block_on(run_case(&app, &ops)));
        std::panic::catch_unwind(work).map_err(|_| TestCaseError::fail("the database decided otherwise"))
    });
    drop(app);
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

#[test]
fn the_ledger_decides_as_its_model_does() {
    agree_on(48, 60);
}
