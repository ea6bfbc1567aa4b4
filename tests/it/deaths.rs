//! Credits while servers and connections die under them: random requests at once, after which every invariant holds, every
//! answer is repeated, and what was bought was paid once.

use std::net::SocketAddr;

use chrono::Utc;
use control_plane::credits::db::{self, CloseDispute, OpenDispute, TakeBack};
use control_plane::credits::request_hash;
use devkit::payments::{TestPayments, TestPaymentsOptions};
use http::Method;
use integration_tests::{Cli, Client, Owner, Process, TestDatabase, cluster, eventually};
use kernel::{CreditLotId, CreditTransactionId, OrganizationId};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use tokio::task::JoinSet;

use crate::faults::terminate;
use crate::scenes::text;

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
