//! The copy of what a store may still spend, in its own database: it follows, tells nothing of the agency, and decides nothing.

use std::net::{Ipv4Addr, SocketAddr};

use chrono::{DateTime, Datelike as _, Duration, NaiveDate, Utc};
use integration_tests::{ChaosProxy, Client, Owner, StoreSql, TestApp, TestAppOptions, eventually};
use kernel::{Clock as _, Engine, StoreId};
use serde_json::{Value, json};
use tenant_schema::credit_copy::{self, CreditCopy, CreditState};

use crate::credits::give;
use crate::provisioning::store_id;
use crate::scenes::{text, to_second_of_month};

on_each_engine! {
    the_copy_follows_spends_holds_budgets_and_months
    a_clients_database_never_tells_what_the_agency_has
    what_is_written_into_the_copy_decides_nothing_and_does_not_stay
    an_older_copy_never_replaces_a_newer_one
    nodes_share_the_stores_and_write_differences_alone
    a_database_that_is_down_is_left_alone_for_longer_and_longer_and_costs_the_others_nothing
    a_database_without_the_table_is_left_out_until_it_is_migrated
}

const VISITS: &[&str] = &["--store-visit-poll-ms", "50"];
/// Tokens that outlive the days that these tests let pass.
const LONG: &[&str] = &["--access-token-ttl-s", "100000000", "--refresh-token-ttl-s", "100000000"];

/// State and number of a copy.
type Said = (String, Option<i64>);

fn said(state: &str, spendable: Option<i64>) -> Said {
    (state.to_owned(), spendable)
}

/// An agency with a node that visits stores all the time.
struct Agency {
    app: TestApp,
    owner: Owner,
}

impl Agency {
    async fn new(engine: Engine) -> Self {
        let arguments = VISITS.iter().chain(LONG).map(|&text| text.to_owned()).collect();
        let app = TestApp::start_on_with(engine, TestAppOptions { arguments, without_server: false }).await;
        to_second_of_month(&app);
        let owner = app.owner("ada").await;
        Self { app, owner }
    }

    async fn store(&self, slug: &str) -> Store {
        Store::of(self.app.active_store(&self.owner, slug).await, &self.app).await
    }

    fn keyed(&self, key: &str) -> Client {
        self.owner.api.with("idempotency-key", key)
    }

    async fn spend(&self, store: &Store, amount: i64, key: &str) -> Value {
        let body = json!({ "storeId": store.value["id"], "amount": amount });
        self.keyed(key).post("/api/credits/spend", body).await.expect_status(201)
    }

    async fn budget(&self, store: &Store, amount: i64, is_hard: bool) {
        let body = json!({ "storeId": store.value["id"], "monthlyAmount": amount, "isHard": is_hard });
        self.owner.api.send(http::Method::PUT, "/api/credits/budgets", Some(body)).await.expect_status(200);
    }

    async fn without_budget(&self, store: &Store) {
        let path = format!("/api/credits/budgets?storeId={}", text(&store.value["id"]));
        self.owner.api.delete(&path).await.expect_status(204);
    }

    /// A month and a bit later, early on a second day.
    fn pass_month(&self) {
        self.app.clock.advance(Duration::days(31));
    }
}

/// A store, and the way into its database for its owner.
struct Store {
    value: Value,
    id: StoreId,
    engine: Engine,
    database: String,
}

impl Store {
    async fn of(value: Value, app: &TestApp) -> Self {
        let id = store_id(&value);
        let database: String = sqlx::query_scalar("select database_name from store_databases where store_id = $1")
            .bind(id.as_uuid())
            .fetch_one(&mut app.master().await)
            .await
            .unwrap();
        Self { value, id, engine: app.engine, database }
    }

    async fn inside(&self) -> StoreSql {
        StoreSql::open(self.engine, integration_tests::cluster().await, &self.database).await
    }

    async fn run(&self, statements: &str) {
        let mut inside = self.inside().await;
        inside.execute(statements).await;
        inside.close().await;
    }

    async fn copy(&self) -> Option<Said> {
        let mut inside = self.inside().await;
        let copy = inside.row("select state, spendable from credit_copy").await;
        inside.close().await;
        copy
    }

    async fn expect(&self, state: &str, spendable: Option<i64>) {
        let wanted = said(state, spendable);
        eventually(&format!("the copy {wanted:?}"), || async {
            (self.copy().await.as_ref() == Some(&wanted)).then_some(())
        })
        .await;
    }

    /// The rows of the database in which the text stands: in any column of any table.
    async fn tells(&self, word: &str) -> Vec<String> {
        let mut inside = self.inside().await;
        let everything = inside.everything().await;
        inside.close().await;
        assert!(everything.lines().filter(|line| line.starts_with("-- ")).count() > 25, "{everything}");
        everything.lines().filter(|line| line.contains(word)).map(str::to_owned).collect()
    }
}

#[derive(Debug, sqlx::FromRow)]
struct VisitRow {
    state: Option<String>,
    failures: i32,
    error: Option<String>,
    next_visit_at: DateTime<Utc>,
    orders_counted_until: NaiveDate,
}

async fn visit_row(app: &TestApp, store: StoreId) -> VisitRow {
    sqlx::query_as(
        "select state, failures, error, next_visit_at, orders_counted_until from store_visits where store_id = $1",
    )
    .bind(store.as_uuid())
    .fetch_one(&mut app.master().await)
    .await
    .unwrap()
}

async fn the_copy_follows_spends_holds_budgets_and_months(engine: Engine) {
    let agency = Agency::new(engine).await;
    let tea = agency.store("tea").await;
    tea.expect("ended", Some(0)).await;
    give(&agency.app, &tea.value, 1000).await;
    tea.expect("open", None).await;
    agency.budget(&tea, 100, true).await;
    tea.expect("open", Some(100)).await;
    agency.spend(&tea, 30, "one").await;
    tea.expect("open", Some(70)).await;
    // What is held counts as the budget counts it.
    let body = json!({ "storeId": tea.value["id"], "amount": 20 });
    let held = agency.keyed("held").post("/api/credits/holds", body).await.expect_status(201);
    tea.expect("open", Some(50)).await;
    let path = format!("/api/credits/holds/{}/void", text(&held["holdId"]));
    agency.keyed("void").post(&path, json!({})).await.expect_status(200);
    tea.expect("open", Some(70)).await;
    agency.budget(&tea, 20, true).await;
    tea.expect("ended", Some(0)).await;
    agency.budget(&tea, 20, false).await;
    tea.expect("open", None).await;
    agency.budget(&tea, 5000, true).await;
    tea.expect("limited", None).await;
    agency.without_budget(&tea).await;
    tea.expect("open", None).await;
    agency.budget(&tea, 40, true).await;
    tea.expect("open", Some(10)).await;

    // The month turns: what was used is another month's.
    agency.pass_month();
    tea.expect("open", Some(40)).await;
    let mut inside = tea.inside().await;
    let (month, as_of, copied_at): (NaiveDate, DateTime<Utc>, DateTime<Utc>) =
        inside.row("select month, as_of, copied_at from credit_copy").await.unwrap();
    inside.close().await;
    let now = agency.app.clock.now();
    assert_eq!(month, now.date_naive().with_day(1).unwrap());
    assert!(as_of <= copied_at && copied_at <= now && as_of > now - Duration::hours(1), "{as_of} {copied_at} {now}");
}

async fn a_clients_database_never_tells_what_the_agency_has(engine: Engine) {
    let agency = Agency::new(engine).await;
    let (client, other) = (agency.store("client").await, agency.store("other").await);
    let balance = |amount: i64| amount.to_string();
    give(&agency.app, &client.value, 7_654_321).await;
    client.expect("open", None).await;
    assert_eq!(client.tells(&balance(7_654_321)).await, Vec::<String>::new());
    agency.budget(&client, 9_000_000, true).await;
    client.expect("limited", None).await;
    // What others spend moves the balance past what is left, and the number is the budget's alone.
    agency.spend(&other, 1_111_111, "other").await;
    agency.budget(&client, 6_000_000, true).await;
    client.expect("open", Some(6_000_000)).await;
    agency.spend(&other, 1_000_000, "more").await;
    client.expect("limited", None).await;
    for told in [7_654_321, 6_543_210, 5_543_210] {
        assert_eq!(client.tells(&balance(told)).await, Vec::<String>::new());
        assert_eq!(other.tells(&balance(told)).await, Vec::<String>::new());
    }
    // The budget's own number is found where it stands, so the search finds what there is.
    agency.budget(&client, 4_000_000, true).await;
    client.expect("open", Some(4_000_000)).await;
    assert_eq!(client.tells("4000000").await.len(), 1);
    agency.spend(&other, 5_543_210, "all").await;
    client.expect("ended", Some(0)).await;
    other.expect("ended", Some(0)).await;
}

async fn what_is_written_into_the_copy_decides_nothing_and_does_not_stay(engine: Engine) {
    let agency = Agency::new(engine).await;
    let tea = agency.store("tea").await;
    give(&agency.app, &tea.value, 1000).await;
    agency.budget(&tea, 100, true).await;
    tea.expect("open", Some(100)).await;
    // The latest and the earliest moment that the engine knows.
    let (last, first) = match engine {
        Engine::Mysql => ("9999-12-31 23:59:59", "1000-01-01"),
        _ => ("infinity", "-infinity"),
    };
    let three_days = if engine == Engine::Mysql { "interval 3 day" } else { "interval '3 days'" };
    let nonsense = [
        // As its owner would have it, for ever.
        format!("update credit_copy set state = 'open', spendable = 999999, as_of = '{last}', copied_at = '{last}'"),
        // As a later moment than every one of ours.
        format!("update credit_copy set state = 'open', spendable = 888888, as_of = as_of + {three_days}"),
        // As of a backup.
        "update credit_copy set state = 'ended', spendable = 0, month = '2020-01-01', as_of = '2020-01-01', copied_at = '2020-01-01'"
            .to_owned(),
        format!("update credit_copy set as_of = '{first}', month = '{last}'"),
        "delete from credit_copy".to_owned(),
    ];
    let mut left = 100;
    for (number, statement) in nonsense.into_iter().enumerate() {
        tea.run(&statement).await;
        let body = json!({ "storeId": tea.value["id"], "amount": left + 1 });
        let key = format!("over-{number}");
        agency.keyed(&key).post("/api/credits/spend", body.clone()).await.expect_problem(403, "budget-exceeded");
        let quote = agency.owner.api.post("/api/credits/quote", body).await.expect_status(200);
        assert_eq!(quote["refusal"], "budget-exceeded");
        agency.spend(&tea, 1, &format!("within-{number}")).await;
        left -= 1;
        tea.expect("open", Some(left)).await;
    }
    // Without a difference it is put right within a day.
    tea.run(&format!("update credit_copy set state = 'ended', spendable = 0, as_of = '{last}'")).await;
    agency.app.clock.advance(Duration::hours(24));
    tea.expect("open", Some(left)).await;
    assert_eq!(visit_row(&agency.app, tea.id).await.failures, 0);
}

async fn an_older_copy_never_replaces_a_newer_one(engine: Engine) {
    let agency = Agency::new(engine).await;
    let tea = agency.store("tea").await;
    tea.expect("ended", Some(0)).await;
    let route = agency.app.cx.stores.resolve_store(tea.id).await.unwrap();
    let lease = agency.app.cx.stores.lease(&route).await.unwrap();
    let mut connection = lease.acquire().await.unwrap();
    let now = agency.app.clock.now() + Duration::minutes(1);
    let copy = |seconds: i64, spendable: i64| CreditCopy {
        state: CreditState::Open,
        spendable: Some(spendable),
        month: now.date_naive(),
        as_of: now + Duration::seconds(seconds),
        copied_at: now,
    };
    assert_eq!(credit_copy::credit_copy_write(&mut connection, &copy(10, 10)).await.unwrap(), None);
    for older in [copy(9, 9), copy(10, 8)] {
        assert!(credit_copy::credit_copy_write(&mut connection, &older).await.unwrap().is_some());
        assert_eq!(tea.copy().await, Some(said("open", Some(10))));
    }
    // Whoever found one replaces that one alone.
    let found = credit_copy::credit_copy_write(&mut connection, &copy(5, 5)).await.unwrap().unwrap();
    assert_eq!(credit_copy::credit_copy_write(&mut connection, &copy(11, 11)).await.unwrap(), None);
    assert!(!credit_copy::credit_copy_replace(&mut connection, &copy(5, 5), &found).await.unwrap());
    assert_eq!(tea.copy().await, Some(said("open", Some(11))));
    let found = credit_copy::credit_copy_write(&mut connection, &copy(6, 6)).await.unwrap().unwrap();
    assert!(credit_copy::credit_copy_replace(&mut connection, &copy(6, 6), &found).await.unwrap());
    assert_eq!(tea.copy().await, Some(said("open", Some(6))));
}

async fn nodes_share_the_stores_and_write_differences_alone(engine: Engine) {
    let agency = Agency::new(engine).await;
    let other = agency.app.other_node_with(&[VISITS, LONG].concat()).await;
    let stores = [agency.store("tea").await, agency.store("coffee").await];
    give(&agency.app, &stores[0].value, 1000).await;
    // The database keeps what was written over what.
    let note = match engine {
        Engine::Mysql => {
            "create table written (old_as_of datetime(6), as_of datetime(6), is_same boolean);
             create trigger note after update on credit_copy for each row
                 insert into written values (old.as_of, new.as_of,
                     old.state <=> new.state and old.spendable <=> new.spendable and old.month <=> new.month)"
        }
        _ => {
            "create table written (old_as_of timestamptz, as_of timestamptz, is_same boolean);
             create function note() returns trigger language plpgsql as $$ begin
                 insert into tenantry.written values (old.as_of, new.as_of,
                     (old.state, old.spendable, old.month) is not distinct from (new.state, new.spendable, new.month));
                 return null;
             end $$;
             create trigger note after update on credit_copy for each row execute function note();
             grant all on written to public"
        }
    };
    for store in &stores {
        agency.budget(store, 400, true).await;
        store.expect("open", Some(400)).await;
        store.run(note).await;
    }
    for number in 1..=40 {
        for (at, store) in stores.iter().enumerate() {
            agency.spend(store, 5, &format!("{number}-{at}")).await;
        }
    }
    for store in &stores {
        store.expect("open", Some(200)).await;
        let mut inside = store.inside().await;
        let mut count = async |which: &str| inside.number(&format!("select count(*) from written where {which}")).await;
        let (older, same, all) = (count("as_of <= old_as_of").await, count("is_same").await, count("true").await);
        inside.close().await;
        assert_eq!((older, same), (0, 0), "of {all}");
        assert!((1..=40).contains(&all), "{all}");
    }
    other.stop().await;
}

async fn a_database_that_is_down_is_left_alone_for_longer_and_longer_and_costs_the_others_nothing(engine: Engine) {
    let agency = Agency::new(engine).await;
    let brought = agency.app.brought().await;
    let proxy = ChaosProxy::to(SocketAddr::from((Ipv4Addr::LOCALHOST, brought.port()))).await;
    let value = agency.owner.create_store("ill").await.expect_status(201);
    agency.owner.connect(&value, brought.fields(&json!({ "port": proxy.port }))).await.expect_status(202);
    assert_eq!(agency.app.run_ended(&agency.owner, &value).await["state"], "succeeded");
    let ill = Store::of(value, &agency.app).await;
    let well = agency.store("well").await;
    give(&agency.app, &ill.value, 1000).await;
    agency.budget(&ill, 100, true).await;
    agency.budget(&well, 100, true).await;
    ill.expect("open", Some(100)).await;

    proxy.cut();
    agency.spend(&ill, 10, "ill").await;
    let failed = async |failures: i32| {
        eventually("the failed visit", || async {
            let row = visit_row(&agency.app, ill.id).await;
            (row.failures == failures).then_some(row)
        })
        .await
    };
    let row = failed(1).await;
    assert!(row.error.is_some(), "{row:?}");
    assert!(row.next_visit_at > agency.app.clock.now() + Duration::seconds(20), "{row:?}");
    for number in 1..=3 {
        agency.spend(&well, 10, &format!("well-{number}")).await;
        well.expect("open", Some(100 - number * 10)).await;
    }
    assert_eq!(visit_row(&agency.app, ill.id).await.failures, 1, "its time has not come");
    agency.app.clock.advance(Duration::seconds(31));
    let row = failed(2).await;
    assert!(row.next_visit_at > agency.app.clock.now() + Duration::seconds(50), "{row:?}");
    assert_eq!(ill.copy().await, Some(said("open", Some(100))));
    // It is back, and what it should say is what was last written: it is visited all the same.
    proxy.mend();
    agency.budget(&ill, 110, true).await;
    eventually("the visit", || async {
        let row = visit_row(&agency.app, ill.id).await;
        // The way to it is blocked for a moment more after it is mended, and that is another failure.
        let pause = row.next_visit_at - agency.app.clock.now();
        if row.failures > 0 && pause > Duration::zero() {
            agency.app.clock.advance(pause);
        }
        (row.failures == 0).then_some(())
    })
    .await;
    ill.expect("open", Some(100)).await;
    agency.spend(&ill, 10, "again").await;
    ill.expect("open", Some(90)).await;
}

async fn a_database_without_the_table_is_left_out_until_it_is_migrated(engine: Engine) {
    let agency = Agency::new(engine).await;
    let (old, new) = (agency.store("old").await, agency.store("new").await);
    old.expect("ended", Some(0)).await;
    let set_version = async |version: i64| {
        sqlx::query("update store_databases set schema_version = $2 where store_id = $1")
            .bind(old.id.as_uuid())
            .bind(version)
            .execute(&mut agency.app.master().await)
            .await
            .unwrap();
    };
    // As a store that was provisioned before there were copies has it.
    set_version(credit_copy::SINCE_VERSION - 1).await;
    old.run("alter table credit_copy rename to not_there_yet").await;
    give(&agency.app, &new.value, 1000).await;
    new.expect("open", None).await;
    // Its orders are counted all the same, and nothing fails.
    let today = agency.app.clock.now().date_naive();
    agency.app.clock.advance(Duration::days(1));
    eventually("the visit of the next day", || async {
        (visit_row(&agency.app, old.id).await.orders_counted_until > today).then_some(())
    })
    .await;
    let row = visit_row(&agency.app, old.id).await;
    assert_eq!((row.state.as_deref(), row.failures, row.error), (Some("ended"), 0, None));
    old.run("alter table not_there_yet rename to credit_copy").await;
    set_version(credit_copy::SINCE_VERSION).await;
    old.expect("open", None).await;
}
