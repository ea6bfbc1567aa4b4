//! The directory is asked as seldom as possible, and never believed against a newer change.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kernel::{Hostname, StoreId, StoreStatus};
use tenancy::{DirectoryConfig, LeaseError, ResolveError, Route, StoreChange, Tenancy, TenancyConfig};
use tokio::task::JoinSet;
use tokio::time::advance;
use vault::KeyRing;

use crate::support::directory::{Dir, Master};
use crate::support::store_id;

fn host(name: &str) -> Hostname {
    Hostname::parse(name).expect("a hostname")
}

fn start(directory: DirectoryConfig) -> (Arc<Master>, Tenancy<Dir>) {
    let master = Arc::new(Master::default());
    let config = TenancyConfig { directory, ..TenancyConfig::default() };
    (Arc::clone(&master), Tenancy::new(Dir(master), keys(), config))
}

fn keys() -> Arc<KeyRing> {
    let key = vault::generate_key();
    Arc::new(KeyRing::single(secrecy::ExposeSecret::expose_secret(&key)).expect("a key"))
}

fn add(master: &Master, name: &str) -> StoreId {
    let id = store_id();
    master.put(
        &host(name),
        Route { store_id: id, status: StoreStatus::Active, is_read_only: false, version: 1, database: None },
    );
    id
}

#[tokio::test(start_paused = true)]
async fn a_flood_to_unknown_hosts_reaches_master_once_per_host() {
    let (master, tenancy) = start(DirectoryConfig::default());
    master.gate.close();
    let mut flood = JoinSet::new();
    for request in 0..300 {
        let tenancy = tenancy.clone();
        flood.spawn(async move { tenancy.resolve_host(&host(&format!("unknown-{}.example", request % 3))).await });
    }
    drop(master.gate.arrived.acquire_many(3).await.expect("three look-ups"));
    master.gate.open();
    while let Some(answer) = flood.join_next().await {
        assert_eq!(answer.expect("no panic"), Err(ResolveError::UnknownHost));
    }
    assert_eq!(master.calls(), 3);
    for _ in 0..100 {
        assert_eq!(tenancy.resolve_host(&host("unknown-1.example")).await, Err(ResolveError::UnknownHost));
    }
    assert_eq!(master.calls(), 3);
    advance(Duration::from_secs(6)).await;
    assert!(tenancy.resolve_host(&host("unknown-1.example")).await.is_err());
    assert_eq!(master.calls(), 4, "not remembered for ever");
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_distinct_unknown_names_is_limited_and_known_hosts_do_not_pay() {
    let config = DirectoryConfig { unknown_burst: 20, unknown_per_second: 10, ..DirectoryConfig::default() };
    let (master, tenancy) = start(config);
    for number in 0..100 {
        add(&master, &format!("known-{number}.example"));
    }
    for number in 0..100 {
        assert!(tenancy.resolve_host(&host(&format!("known-{number}.example"))).await.is_ok(), "a cold start");
    }
    let mut limited = 0;
    for number in 0..1000 {
        match tenancy.resolve_host(&host(&format!("nothing-{number}.example"))).await {
            Err(ResolveError::TooManyUnknown { retry_after }) => {
                assert!(retry_after <= Duration::from_millis(100));
                limited += 1;
            }
            other => assert_eq!(other, Err(ResolveError::UnknownHost)),
        }
    }
    assert_eq!((limited, master.calls()), (980, 120));
    for number in 0..100 {
        assert!(tenancy.resolve_host(&host(&format!("known-{number}.example"))).await.is_ok());
    }
    assert_eq!(master.calls(), 120, "remembered hosts cost nothing, whatever goes on");
    advance(Duration::from_secs(60)).await;
    for number in 0..100 {
        assert!(tenancy.resolve_host(&host(&format!("known-{number}.example"))).await.is_ok(), "nor when read again");
    }
}

#[tokio::test(start_paused = true)]
async fn a_route_is_read_again_in_time_and_in_the_background_while_in_use() {
    let (master, tenancy) = start(DirectoryConfig::default());
    let store = add(&master, "tea.example");
    let tea = host("tea.example");
    assert!(tenancy.resolve_host(&tea).await.is_ok());
    advance(Duration::from_secs(20)).await;
    assert!(tenancy.resolve_host(&tea).await.is_ok());
    assert_eq!(master.calls(), 1);
    drop(master.set_status(store, StoreStatus::Suspended));
    advance(Duration::from_secs(5)).await;
    assert_eq!(tenancy.resolve_host(&tea).await.expect("known").status, StoreStatus::Active, "nobody waits");
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(tenancy.resolve_host(&tea).await.expect("known").status, StoreStatus::Suspended);
    assert_eq!(master.calls(), 2);
    drop(master.set_status(store, StoreStatus::Active));
    advance(Duration::from_secs(31)).await;
    assert_eq!(tenancy.resolve_host(&tea).await.expect("known").status, StoreStatus::Active, "never past its time");
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_directory_is_survived_within_the_stated_staleness() {
    let (master, tenancy) = start(DirectoryConfig::default());
    let tea = host("tea.example");
    let store = add(&master, "tea.example");
    assert!(tenancy.resolve_host(&tea).await.is_ok());
    master.is_down.store(true, Ordering::SeqCst);
    for minutes in 1..=9 {
        advance(Duration::from_secs(60)).await;
        assert!(tenancy.resolve_host(&tea).await.is_ok(), "after {minutes} minutes");
        assert!(tenancy.resolve_store(store).await.is_ok(), "known by its hostname is known by its id");
    }
    assert_eq!(tenancy.resolve_host(&host("other.example")).await, Err(ResolveError::DirectoryUnavailable));
    advance(Duration::from_secs(61)).await;
    assert_eq!(tenancy.resolve_host(&tea).await, Err(ResolveError::DirectoryUnavailable));
    master.is_down.store(false, Ordering::SeqCst);
    assert!(tenancy.resolve_host(&tea).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_suspended_store_stays_suspended_in_an_outage() {
    let (master, tenancy) = start(DirectoryConfig::default());
    let tea = host("tea.example");
    let store = add(&master, "tea.example");
    let before = tenancy.resolve_host(&tea).await.expect("known");
    let change = master.set_status(store, StoreStatus::Suspended);
    master.is_down.store(true, Ordering::SeqCst);
    tenancy.apply(change);
    assert_eq!(tenancy.resolve_host(&tea).await, Err(ResolveError::DirectoryUnavailable), "not the old route");
    assert_eq!(tenancy.lease(&before).await.err(), Some(LeaseError::DirectoryUnavailable));
    master.is_down.store(false, Ordering::SeqCst);
    assert_eq!(tenancy.resolve_host(&tea).await.expect("known").status, StoreStatus::Suspended);
    master.is_down.store(true, Ordering::SeqCst);
    advance(Duration::from_secs(120)).await;
    assert_eq!(tenancy.resolve_host(&tea).await.expect("stale").status, StoreStatus::Suspended);
    let refused = LeaseError::NotServing { status: StoreStatus::Suspended };
    assert_eq!(tenancy.lease(&tenancy.resolve_host(&tea).await.expect("stale")).await.err(), Some(refused));
}

#[tokio::test(start_paused = true)]
async fn a_change_wins_over_a_look_up_that_began_before_it() {
    let (master, tenancy) = start(DirectoryConfig::default());
    let (tea, store) = (host("tea.example"), add(&master, "tea.example"));
    master.gate.close();
    let mut asking = JoinSet::new();
    let (asks, tea_again) = (tenancy.clone(), tea.clone());
    asking.spawn(async move { asks.resolve_host(&tea_again).await });
    drop(master.gate.arrived.acquire().await.expect("the old route was read"));
    tenancy.apply(master.set_status(store, StoreStatus::Suspended));
    master.gate.open();
    let answer = asking.join_next().await.expect("it ends").expect("no panic").expect("known");
    assert_eq!((answer.status, answer.version), (StoreStatus::Suspended, 2));
    assert_eq!(tenancy.resolve_host(&tea).await.expect("known").version, 2);
}

#[tokio::test(start_paused = true)]
async fn a_new_hostname_wins_over_a_look_up_that_did_not_find_it() {
    let (master, tenancy) = start(DirectoryConfig::default());
    let tea = host("tea.example");
    master.gate.close();
    let mut asking = JoinSet::new();
    let (asks, tea_again) = (tenancy.clone(), tea.clone());
    asking.spawn(async move { asks.resolve_host(&tea_again).await });
    drop(master.gate.arrived.acquire().await.expect("nothing was found"));
    let store = add(&master, "tea.example");
    tenancy.apply(StoreChange { store_id: store, route_version: 1, hostnames: vec![tea.clone()] });
    master.gate.open();
    assert!(asking.join_next().await.expect("it ends").expect("no panic").is_ok());

    let coffee = host("coffee.example");
    assert_eq!(tenancy.resolve_host(&coffee).await, Err(ResolveError::UnknownHost));
    let store = add(&master, "coffee.example");
    assert_eq!(tenancy.resolve_host(&coffee).await, Err(ResolveError::UnknownHost), "remembered");
    tenancy.apply(StoreChange { store_id: store, route_version: 1, hostnames: vec![coffee.clone()] });
    assert!(tenancy.resolve_host(&coffee).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_gap_in_the_news_makes_everything_be_read_again() {
    let (master, tenancy) = start(DirectoryConfig::default());
    let (tea, store) = (host("tea.example"), add(&master, "tea.example"));
    assert!(tenancy.resolve_host(&tea).await.is_ok());
    assert!(tenancy.resolve_host(&host("new.example")).await.is_err());
    drop(master.set_status(store, StoreStatus::Maintenance));
    add(&master, "new.example");
    tenancy.forget_all();
    assert_eq!(tenancy.resolve_host(&tea).await.expect("known").status, StoreStatus::Maintenance);
    assert!(tenancy.resolve_host(&host("new.example")).await.is_ok());
    tenancy.forget_all();
    master.is_down.store(true, Ordering::SeqCst);
    assert!(tenancy.resolve_host(&tea).await.is_ok(), "while nobody answers, the stale route is served");
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_directory_that_is_known_to_be_down() {
    let (master, tenancy) = start(DirectoryConfig::default());
    let (tea, store) = (host("tea.example"), add(&master, "tea.example"));
    assert!(tenancy.resolve_host(&tea).await.is_ok());
    advance(Duration::from_secs(40)).await;
    master.gate.close();
    tenancy.note_directory_down(tokio::time::Instant::now());
    for _ in 0..3 {
        // Longer than what one failed look-up is a sign for.
        advance(Duration::from_secs(5)).await;
        let began = tokio::time::Instant::now();
        assert!(tenancy.resolve_host(&tea).await.is_ok());
        assert!(began.elapsed().is_zero(), "it was waited for");
    }
    drop(master.set_status(store, StoreStatus::Suspended));
    // What was asked before that is given up.
    advance(Duration::from_secs(5)).await;
    master.gate.open();
    assert!(tenancy.resolve_host(&tea).await.is_ok(), "this one looks in the background");
    let mut turns = 0;
    while tenancy.resolve_host(&tea).await.expect("known").status != StoreStatus::Suspended {
        turns += 1;
        assert!(turns < 1000, "nobody has looked");
        tokio::task::yield_now().await;
    }

    // It was seen to answer: what is past its time is waited for again.
    advance(Duration::from_secs(40)).await;
    drop(master.set_status(store, StoreStatus::Active));
    assert_eq!(tenancy.resolve_host(&tea).await.expect("known").status, StoreStatus::Active);
    advance(Duration::from_secs(40)).await;
    drop(master.set_status(store, StoreStatus::Suspended));
    tenancy.note_directory_down(tokio::time::Instant::now());
    tenancy.note_followed(tokio::time::Instant::now());
    assert_eq!(tenancy.resolve_host(&tea).await.expect("known").status, StoreStatus::Suspended);

    // Who had asked since before that says nothing new.
    let asked = tokio::time::Instant::now();
    advance(Duration::from_secs(40)).await;
    assert!(tenancy.resolve_host(&tea).await.is_ok());
    drop(master.set_status(store, StoreStatus::Active));
    tenancy.note_directory_down(asked);
    advance(Duration::from_secs(40)).await;
    assert_eq!(tenancy.resolve_host(&tea).await.expect("known").status, StoreStatus::Active);
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_hangs_is_given_up_and_what_is_known_served() {
    let (master, tenancy) = start(DirectoryConfig::default());
    let tea = host("tea.example");
    add(&master, "tea.example");
    assert!(tenancy.resolve_host(&tea).await.is_ok());
    advance(Duration::from_secs(40)).await;
    master.gate.close();
    let begun = tokio::time::Instant::now();
    assert!(tenancy.resolve_host(&tea).await.is_ok());
    assert!(begun.elapsed() <= Duration::from_secs(3), "after the look-up's time");
    let begun = tokio::time::Instant::now();
    assert!(tenancy.resolve_host(&tea).await.is_ok());
    assert_eq!(begun.elapsed(), Duration::ZERO, "and the next ones at once");
    master.gate.open();
}

#[tokio::test(start_paused = true)]
async fn what_no_change_outdated_is_served_from_when_the_changes_were_last_known() {
    let (master, tenancy) = start(DirectoryConfig::default());
    let (quiet, changed, unheard) = (host("quiet.example"), host("changed.example"), host("unheard.example"));
    add(&master, "quiet.example");
    let store = add(&master, "changed.example");
    add(&master, "unheard.example");
    assert!(tenancy.resolve_host(&unheard).await.is_ok());
    // What was read before this is not covered by what is heard after it.
    tenancy.forget_all();
    for known in [&quiet, &changed] {
        assert!(tenancy.resolve_host(known).await.is_ok());
    }
    advance(Duration::from_secs(9 * 60)).await;
    let change = master.set_status(store, StoreStatus::Suspended);
    master.is_down.store(true, Ordering::SeqCst);
    tenancy.apply(change);
    tenancy.note_followed(tokio::time::Instant::now());
    advance(Duration::from_secs(9 * 60)).await;
    assert!(
        tenancy.resolve_host(&quiet).await.is_ok(),
        "nobody asked for it for 18 minutes, and nothing changed for 9"
    );
    let unavailable = Err(ResolveError::DirectoryUnavailable);
    assert_eq!(tenancy.resolve_host(&changed).await, unavailable);
    assert_eq!(tenancy.resolve_host(&unheard).await, unavailable);
    assert_eq!(tenancy.remembered().len(), 1);
    advance(Duration::from_secs(61)).await;
    assert_eq!(tenancy.resolve_host(&quiet).await, unavailable);
    assert!(tenancy.remembered().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_a_process_remembered_serves_the_next_one_while_the_directory_does_not_answer() {
    let (master, before) = start(DirectoryConfig::default());
    let names = ["tea.example", "closed.example", "changed.example", "old.example"];
    let [tea, closed, changed, old] = names.map(host);
    let stores = names.map(|name| add(&master, name));
    drop(master.set_status(stores[1], StoreStatus::Suspended));
    assert!(before.resolve_host(&old).await.is_ok());
    advance(Duration::from_secs(9 * 60)).await;
    for known in [&tea, &closed, &changed] {
        assert!(before.resolve_host(known).await.is_ok());
    }
    let remembered = before.remembered();
    assert_eq!(remembered.len(), 4);

    let after = Tenancy::new(Dir(Arc::clone(&master)), keys(), TenancyConfig::default());
    let change = master.set_status(stores[2], StoreStatus::Suspended);
    after.apply(change);
    advance(Duration::from_secs(2 * 60)).await;
    master.is_down.store(true, Ordering::SeqCst);
    assert_eq!(after.remember(remembered.clone()), 2, "one has changed since, and one is too old");
    assert_eq!(after.resolve_host(&tea).await.expect("remembered").status, StoreStatus::Active);
    assert!(after.resolve_store(stores[0]).await.is_ok(), "by its id as well");
    let lease = after.lease(&after.resolve_host(&closed).await.expect("remembered")).await;
    assert_eq!(lease.err(), Some(LeaseError::NotServing { status: StoreStatus::Suspended }));
    for lost in [&changed, &old] {
        assert_eq!(after.resolve_host(lost).await, Err(ResolveError::DirectoryUnavailable));
    }
    advance(Duration::from_secs(8 * 60 + 1)).await;
    assert_eq!(
        after.resolve_host(&tea).await,
        Err(ResolveError::DirectoryUnavailable),
        "not for longer than the first"
    );

    master.is_down.store(false, Ordering::SeqCst);
    let calls = master.calls();
    let later = Tenancy::new(Dir(Arc::clone(&master)), keys(), TenancyConfig::default());
    let fresh = tenancy::Remembered { held: tokio::time::Instant::now(), ..remembered[0].clone() };
    assert_eq!(later.remember([fresh.clone()]), 1);
    assert!(later.resolve_host(&fresh.hostname).await.is_ok());
    assert_eq!(master.calls(), calls + 1, "while the directory answers, what is remembered does not count");
    assert_eq!(later.remember([fresh]), 0, "nor does it replace what is known");
}

#[tokio::test(start_paused = true)]
async fn who_keeps_what_is_remembered_hears_of_what_it_learns_and_of_what_is_outdated() {
    let (master, tenancy) = start(DirectoryConfig::default());
    let (tea, store) = (host("tea.example"), add(&master, "tea.example"));
    let (mut news, first) = (tenancy.news(), tenancy.learned());
    assert!(tenancy.resolve_host(&tea).await.is_ok());
    let second = tenancy.learned();
    assert_ne!(second, first);
    advance(Duration::from_secs(40)).await;
    assert!(tenancy.resolve_host(&tea).await.is_ok());
    assert_eq!(tenancy.learned(), second, "it was read again, and is as it was");
    tenancy.forget_all();
    let third = tenancy.learned();
    assert_ne!(third, second);
    assert!(tenancy.resolve_host(&tea).await.is_ok());
    assert_ne!(tenancy.learned(), third, "changes of it are followed from now on");
    assert!(tenancy.remembered()[0].is_followed);
    let third = tenancy.learned();
    assert!(news.try_recv().is_err(), "nothing is outdated yet");

    // Heard of, or only found by reading it.
    assert!(tenancy.apply(master.set_status(store, StoreStatus::Suspended)));
    let outdated = |version| tenancy::RouteNews { store_id: store, version };
    assert_eq!(news.try_recv().ok(), Some(outdated(2)));
    drop(master.set_status(store, StoreStatus::Active));
    advance(Duration::from_secs(40)).await;
    assert!(tenancy.resolve_host(&tea).await.is_ok());
    assert_eq!(news.try_recv().ok(), Some(outdated(3)));
    assert_ne!(tenancy.learned(), third);
    assert!(news.try_recv().is_err());

    // What it was told of by the process before it is known to it, too.
    let after = Tenancy::new(Dir(Arc::clone(&master)), keys(), TenancyConfig::default());
    assert_eq!(after.remember(tenancy.remembered()), 1);
    let mut news = after.news();
    assert!(after.resolve_host(&tea).await.is_ok());
    assert!(news.try_recv().is_err(), "it is as it was");
    assert!(after.apply(master.set_status(store, StoreStatus::Suspended)));
    assert_eq!(news.try_recv().ok(), Some(outdated(4)));
    let late = Tenancy::new(Dir(Arc::clone(&master)), keys(), TenancyConfig::default());
    assert_eq!(late.remember(tenancy.remembered()), 1);
    let mut news = late.news();
    assert!(late.resolve_host(&tea).await.is_ok());
    assert_eq!(news.try_recv().ok(), Some(outdated(4)), "found by reading it");
}
