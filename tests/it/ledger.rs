//! The credit ledger against a model of it: random operations in order, each answer foretold; and random operations at once,
//! with connections and servers dying under them, after which every invariant holds and every answer is repeated.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use chrono::{DateTime, Duration, Utc};
use control_plane::credits::batch::Spend;
use control_plane::credits::db::{self, CloseDispute, EndHold, Grant, NewHold, OpenDispute, TakeBack};
use control_plane::credits::{
    Decision, LotKind, NewLot, Transaction, TransactionKind, TransactionStatus, request_hash, verify,
};
use devkit::payments::{TestPayments, TestPaymentsOptions};
use http::Method;
use integration_tests::{Cli, Client, Owner, Process, TestApp, TestAppOptions, TestDatabase, cluster, eventually};
use kernel::{Clock as _, CreditHoldId, CreditLotId, CreditTransactionId, OrganizationId, StoreId, UserId};
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::faults::terminate;
use crate::scenes::text;

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

/// What was asked under one key, and what was answered in the end.
struct Asked {
    path: String,
    key: String,
    body: Value,
    status: u16,
    answer: Value,
}

/// What happens at a payment provider, and has no route of ours.
#[derive(Debug, Clone, Copy)]
enum Outside {
    Refund { lot: CreditLotId, wanted: i64, may_owe: bool },
    DisputeOpen { lot: CreditLotId, disputed: i64 },
    DisputeClose { opening: CreditTransactionId, is_won: bool },
}

/// Somebody who does things with credits while everything dies, and repeats each until it is answered.
struct Agent {
    nodes: [tokio::sync::watch::Receiver<std::net::SocketAddr>; 2],
    member: Client,
    ops: Client,
    master: String,
    organization: OrganizationId,
    store: Value,
    number: usize,
    asked: Vec<Asked>,
}

impl Agent {
    /// Sends it to one node or the other until there is an answer that says yes or no.
    async fn ask(&mut self, client: &Client, path: &str, body: Value) -> Value {
        self.number += 1;
        let key = format!("{}-{}", text(&self.store["slug"]), self.number);
        let keyed = client.with("idempotency-key", &key);
        let answered = within_long("an answer", async {
            loop {
                let mut client = keyed.clone();
                client.address = *self.nodes[usize::try_from(kernel::random::below(2)).unwrap()].borrow();
                match client.try_send(http::Method::POST, path, &body).await {
                    Some(response) if ![503, 504].contains(&response.status.as_u16()) => return response,
                    _ => tokio::task::yield_now().await,
                }
            }
        })
        .await;
        let status = answered.status.as_u16();
        assert!([200, 201, 402, 403, 409, 422].contains(&status), "{path}: {}", answered.text());
        let mut answer = answered.json();
        answer.as_object_mut().unwrap().remove("requestId");
        self.asked.push(Asked { path: path.to_owned(), key, body, status, answer: answer.clone() });
        answer
    }

    /// What a payment provider makes happen, on a connection that may be killed: repeated with its key until it is decided.
    async fn happen(&mut self, what: Outside) -> CreditTransactionId {
        self.number += 1;
        let key = format!("direct:{}:{}", text(&self.store["slug"]), self.number);
        let hash = request_hash("direct", &key).unwrap();
        within_long("a decision", async {
            loop {
                match self.happen_once(what, &key, &hash).await {
                    Ok(id) => return id,
                    Err(error) if error.as_database_error().is_some_and(|e| e.code().as_deref() != Some("57P01")) => {
                        panic!("{what:?}: {error}")
                    }
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        })
        .await
    }

    async fn happen_once(&self, what: Outside, key: &str, hash: &[u8; 32]) -> Result<CreditTransactionId, sqlx::Error> {
        let mut connection = PgConnection::connect(&self.master).await?;
        let (now, organization) = (Utc::now(), self.organization);
        let id = CreditTransactionId::new(now);
        let decision = match what {
            Outside::Refund { lot, wanted, may_owe } => {
                let take = TakeBack { id, key, hash, lot, wanted, may_owe, actor: None, why: None, reference: None };
                db::refund(&mut connection, organization, &take, now).await?
            }
            Outside::DisputeOpen { lot, disputed } => {
                let open = OpenDispute { id, key, hash, lot, disputed, why: None, reference: key };
                db::dispute_open(&mut connection, organization, &open, now).await?
            }
            Outside::DisputeClose { opening, is_won } => {
                let close = CloseDispute { id, key, hash, opening, is_won, reference: key };
                db::dispute_close(&mut connection, organization, &close, now).await?
            }
        };
        Ok(decision.transaction.id)
    }

    async fn lot(&self) -> Option<CreditLotId> {
        let mut connection = PgConnection::connect(&self.master).await.ok()?;
        let sql = "select id from credit_lots where organization_id = $1 and kind = 'paid' order by random() limit 1";
        let id =
            sqlx::query_scalar(sql).bind(self.organization.as_uuid()).fetch_optional(&mut connection).await.ok()?;
        id.map(CreditLotId::from_uuid)
    }

    async fn live(mut self, steps: usize) -> Vec<Asked> {
        let (member, ops) = (self.member.clone(), self.ops.clone());
        for _ in 0..steps {
            let amount = 1 + i64::try_from(kernel::random::below(40)).unwrap();
            let body = json!({ "storeId": self.store["id"], "amount": amount });
            match kernel::random::below(20) {
                0..=10 => drop(self.ask(&member, "/api/credits/spend", body).await),
                11..=14 => {
                    let held = self.ask(&member, "/api/credits/holds", body).await;
                    if let Some(hold) = held["holdId"].as_str() {
                        let (end, body) = match kernel::random::below(3) {
                            0 => ("void", json!({})),
                            _ => ("capture", json!({ "amount": 1 + amount / 2 })),
                        };
                        self.ask(&member, &format!("/api/credits/holds/{hold}/{end}"), body).await;
                    }
                }
                15..=16 => {
                    let body =
                        json!({ "storeId": self.store["id"], "amount": amount * 12, "reason": "more", "kind": "paid" });
                    self.ask(&ops, "/api/ops/credits/grants", body).await;
                }
                17 => {
                    if let Some(lot) = self.lot().await {
                        self.happen(Outside::Refund { lot, wanted: amount, may_owe: amount % 2 == 0 }).await;
                    }
                }
                _ => {
                    if let Some(lot) = self.lot().await {
                        let opening = self.happen(Outside::DisputeOpen { lot, disputed: amount }).await;
                        self.happen(Outside::DisputeClose { opening, is_won: amount % 3 == 0 }).await;
                    }
                }
            }
        }
        self.asked
    }
}

/// Kills take their time on a busy machine; an answer comes all the same.
async fn within_long<T>(what: &str, work: impl Future<Output = T>) -> T {
    let limit = std::time::Duration::from_secs(180);
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| panic!("{what} did not come in {limit:?}"))
}

/// What an automatic top-up of the accounts that live through deaths buys: a pack while there is less than this ...
const TOP_UP_BELOW: i64 = 3000;
/// ... and so much for it in a month, in cents: eight packs.
const TOP_UP_CAP: i64 = 20_000;

/// Leaves a card with the provider, and has packs bought with it.
async fn top_up_by_itself(owner: &Owner, provider: &TestPayments) {
    let setup = owner.api.post("/api/credits/payment-method/setup", Value::Null).await.expect_status(201);
    let card = provider.fill_in(text(&setup["id"]), "4242424242424242").unwrap();
    let put = async |path: &str, body: Value| owner.api.send(Method::PUT, path, Some(body)).await.expect_status(200);
    put("/api/credits/payment-method", json!({ "paymentMethod": card })).await;
    let packs = owner.api.get("/api/credits/packs").await.expect_status(200);
    let starter = packs["data"].as_array().unwrap().iter().find(|pack| pack["code"] == "starter").unwrap();
    let rule = json!({ "threshold": TOP_UP_BELOW, "packId": starter["id"], "monthlyCapMinor": TOP_UP_CAP });
    put("/api/credits/top-up", rule).await;
    // Before anything can be owed.
    eventually("the first pack", || async {
        let balance = owner.api.get("/api/credits/balance").await.expect_status(200);
        (balance["available"].as_i64() >= Some(500)).then_some(())
    })
    .await;
}

/// Waits until nothing more is bought; fails unless what the provider was paid is what was bought, and within the cap.
async fn expect_paid_once(master: &TestDatabase, provider: &TestPayments) {
    let bought = "select coalesce(sum(p.amount_minor) filter (where p.state = 'completed'), 0)::bigint,
                         count(*) filter (where p.state in ('created', 'open', 'processing', 'requires_action')), a.available, a.debt
                  from top_up_rules r join credit_accounts a using (organization_id)
                  left join purchases p on p.organization_id = r.organization_id and p.is_auto
                  group by r.organization_id, a.available, a.debt";
    let paid = within_long("the end of what is bought", async {
        loop {
            let all: Vec<(i64, i64, i64, i64)> =
                sqlx::query_as(bought).fetch_all(&mut master.admin().await).await.unwrap();
            // Who is in debt buys nothing by itself.
            let is_over = |(paid, under_way, available, debt): &(i64, i64, i64, i64)| {
                *under_way == 0 && (*paid >= TOP_UP_CAP || *available >= TOP_UP_BELOW || *debt > 0)
            };
            if all.len() == 2 && all.iter().all(is_over) {
                break all.into_iter().map(|(paid, ..)| paid).collect::<Vec<_>>();
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(paid.iter().all(|paid| (2500..=TOP_UP_CAP).contains(paid)), "{paid:?}");
    let intents = provider.objects("payment_intent");
    let charged: i64 = intents
        .iter()
        .filter(|intent| intent["status"] == "succeeded")
        .map(|intent| intent["amount"].as_i64().unwrap())
        .sum();
    assert_eq!(charged, paid.iter().sum::<i64>());
}

/// Many agents on few accounts, over two nodes that are killed and started again, and connections to master that are killed;
/// meanwhile the accounts are topped up by the nodes themselves.
pub(crate) async fn survive_deaths(agents: usize, steps: usize, deaths: usize) {
    let cluster = cluster().await;
    let master = cluster.master().await;
    let provider = TestPayments::start(TestPaymentsOptions::default()).await.unwrap();
    let environment = [
        ("MAX_CLIENT_CONNECTIONS_PER_ADDRESS", "10000"),
        ("ACCESS_TOKEN_TTL_S", "100000"),
        ("STRIPE_SECRET_KEY", &provider.options().secret_key),
        ("STRIPE_WEBHOOK_SECRET", &provider.options().webhook_secret),
        ("STRIPE_API_URL", provider.url()),
        ("TOP_UP_POLL_MS", "200"),
        ("PAYMENT_SWEEP_S", "2"),
    ];
    let serve = async || Process::serve(&master.url(), &environment).await;
    let mut nodes = [Some(serve().await), Some(serve().await)];
    let first = nodes[0].as_ref().unwrap();
    let root = first.owner("root").await;
    assert!(Cli::run(&master.url(), &["admin", "grant", &root.email]).await.status.success());
    let mut owners = Vec::new();
    for name in ["ada", "bob"] {
        let owner = first.owner(name).await;
        top_up_by_itself(&owner, &provider).await;
        owners.push(owner);
    }
    let hear = |node: SocketAddr| provider.set_webhook_url(&format!("http://{node}/api/webhooks/stripe"));
    hear(first.address);
    let (senders, receivers): (Vec<_>, Vec<_>) =
        nodes.iter().flatten().map(|node| tokio::sync::watch::channel(node.address)).unzip();
    let mut living = JoinSet::new();
    for number in 0..agents {
        let owner = &owners[number % owners.len()];
        let store = owner.create_store(&format!("store-{number}")).await.expect_status(201);
        let agent = Agent {
            nodes: [receivers[0].clone(), receivers[1].clone()],
            member: owner.api.clone(),
            ops: root.api.clone(),
            master: master.url(),
            organization: owner.organization_id().parse().unwrap(),
            store,
            number: 0,
            asked: Vec::new(),
        };
        living.spawn(agent.live(steps));
    }
    let mut admin = cluster.admin().await;
    for death in 0..deaths {
        // Moments in which decisions are under way: after some more of them.
        let decided = "select count(*) from credit_transactions";
        let count =
            async || -> i64 { sqlx::query_scalar(decided).fetch_one(&mut master.admin().await).await.unwrap_or(0) };
        let begun = count().await;
        let more = i64::try_from(5 + kernel::random::below(60)).unwrap();
        let waiting = async {
            while count().await < begun + more {
                tokio::task::yield_now().await;
            }
        };
        // When everybody is done, nothing more comes.
        drop(tokio::time::timeout(std::time::Duration::from_secs(5), waiting).await);
        if death % 3 == 2 {
            terminate(&mut admin, &master.database).await;
            continue;
        }
        let at = death % 2;
        nodes[at].take().unwrap().kill().await;
        let node = serve().await;
        senders[at].send_replace(node.address);
        hear(node.address);
        nodes[at] = Some(node);
    }
    let asked: Vec<Asked> = living.join_all().await.into_iter().flatten().collect();

    // Whatever died, each answer is what was decided, and is repeated by a node that was not there.
    let node = serve().await;
    let mut spent = 0;
    for one in asked.iter().filter(|one| one.path.ends_with("/spend") && one.status == 201) {
        spent += one.answer["amount"].as_i64().unwrap();
    }
    let booked: i64 = sqlx::query_scalar(
        "select coalesce(sum(amount), 0)::bigint from credit_transactions where kind = 'spend' and status = 'accepted'",
    )
    .fetch_one(&mut master.admin().await)
    .await
    .unwrap();
    assert_eq!(spent, booked);
    for one in &asked {
        let mut clients: Vec<Client> = if one.path.contains("/ops/") {
            vec![root.api.clone()]
        } else {
            owners.iter().map(|owner| owner.api.clone()).collect()
        };
        let mut repeated = None;
        for client in &mut clients {
            client.address = node.address;
            let answer = client.with("idempotency-key", &one.key).post(&one.path, one.body.clone()).await;
            // Another organization's store or hold is not there.
            if answer.status != 404 {
                repeated = Some(answer);
            }
        }
        let repeated = repeated.unwrap_or_else(|| panic!("nobody may repeat {}", one.path));
        assert_eq!(repeated.status.as_u16(), one.status, "{}: {}", one.path, repeated.text());
        let mut answer = repeated.json();
        answer.as_object_mut().unwrap().remove("requestId");
        assert_eq!(answer, one.answer, "{}", one.path);
    }
    expect_paid_once(&master, &provider).await;
    let verified = Cli::run(&master.url(), &["credits", "verify"]).await;
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
    drop(nodes);
    node.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_dies_each_request_is_decided_once() {
    survive_deaths(8, 30, 6).await;
}
