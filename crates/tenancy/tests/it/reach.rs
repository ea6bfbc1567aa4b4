//! Where connections may lead: into no private network, and to what was looked at, whatever a name says a moment later.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::Duration;

use devkit::testing::shared_mariadb;
use kernel::Engine;
use sqlx::{Connection as _, Row as _};
use tenancy::{AddressError, Cause, Credential, LeaseError, Reach, Session, TenancyConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::faults::silent_server;
use crate::support::{World, eventually, quick, run};

const LIMIT: Duration = Duration::from_secs(10);

/// A name that leads nowhere: who gets through has not asked for it.
const NOWHERE: &str = "shop-database.invalid";

pub(crate) fn at_loopback(port: u16) -> [SocketAddr; 1] {
    [(Ipv4Addr::LOCALHOST, port).into()]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_owner_brought_is_not_looked_for_in_private_networks() {
    let world = World::start(TenancyConfig { owners_reach: Reach::Public, ..quick() }).await;
    let (port, count, _server) = silent_server().await;
    for host in ["127.0.0.1", "localhost", "::1", "::ffff:127.0.0.1"] {
        let credential = Credential { host: host.to_owned(), port, ..world.store().await.credential };
        let refused = credential.connect(Reach::Public, LIMIT).await.err().map(|error| error.cause);
        assert_eq!(refused, Some(Cause::PrivateAddress), "{host}");
        // By a pool, too, that was opened for a credential of better days.
        let refused = world.lease(&world.add(&credential)).await.acquire().await.err();
        assert!(matches!(refused, Some(LeaseError::Unavailable { cause: Cause::PrivateAddress, .. })), "{host}");
    }
    assert_eq!(count.load(Ordering::SeqCst), 0, "nothing was sent");
    assert_eq!(Reach::Public.addresses("10.0.0.1", 5432).await, Err(AddressError::Private));
    assert_eq!(Reach::Public.addresses("8.8.8.8", 5432).await, Ok(vec!["8.8.8.8:5432".parse().expect("an address")]));
    assert_eq!(Reach::Anywhere.addresses(NOWHERE, 5432).await, Err(AddressError::Unresolvable));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_private_networks_are_allowed_link_local_and_metadata_addresses_are_not() {
    let world = World::start(TenancyConfig { owners_reach: Reach::Private, ..quick() }).await;
    let credential = world.store().await.credential;
    for host in ["127.0.0.1", "localhost"] {
        let there = Credential { host: host.to_owned(), ..credential.clone() };
        let session = there.connect(Reach::Private, LIMIT).await.expect(host);
        session.close().await.expect("closed");
    }
    for host in ["169.254.169.254", "fe80::1", "0.0.0.0", "::", "224.0.0.1", "fd00:ec2::254", "::ffff:169.254.1.1"] {
        let there = Credential { host: host.to_owned(), ..credential.clone() };
        let refused = there.connect(Reach::Private, LIMIT).await.err().map(|error| error.cause);
        assert_eq!(refused, Some(Cause::PrivateAddress), "{host}");
        let refused = world.lease(&world.add(&there)).await.acquire().await.err();
        assert!(matches!(refused, Some(LeaseError::Unavailable { cause: Cause::PrivateAddress, .. })), "{host}");
        assert_eq!(Reach::Private.addresses(host, 5432).await, Err(AddressError::Private), "{host}");
    }
    assert_eq!(Reach::Public.addresses("168.63.129.16", 5432).await, Err(AddressError::Private));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_leads_to_the_address_that_was_looked_at() {
    let world = World::start(quick()).await;
    let store = world.store().await;
    let postgres = Credential { host: NOWHERE.to_owned(), ..store.credential.clone() };
    assert_eq!(postgres.connect(Reach::Anywhere, LIMIT).await.err().map(|error| error.cause), Some(Cause::Unreachable));
    let mut session = postgres.connect_at(&at_loopback(postgres.port), LIMIT).await.expect("it is there");
    // More than any buffer on the way holds, in both directions.
    let connection = session.postgres().expect("PostgreSQL");
    let long = "tea ".repeat(2_000_000);
    let echoed = sqlx::query("select $1::text").bind(&long).fetch_one(&mut *connection).await.expect("echoed");
    assert!(echoed.get::<String, _>(0) == long);
    assert_eq!(world.backends(&store).await, 1);
    session.close().await.expect("closed");
    eventually("the server has seen the end", || async { world.backends(&store).await == 0 }).await;

    // A connection that is dropped without a word ends as well, and one that the server ends is over on our side.
    let dropped = postgres.connect_at(&at_loopback(postgres.port), LIMIT).await.expect("it is there");
    drop(dropped);
    eventually("the server has seen the end", || async { world.backends(&store).await == 0 }).await;
    let mut ended = postgres.connect_at(&at_loopback(postgres.port), LIMIT).await.expect("it is there");
    world.kill_backends(&store).await;
    assert!(ended.postgres().expect("PostgreSQL").ping().await.is_err());

    let mariadb = shared_mariadb().await;
    let mut admin = mariadb.connect(None).await.expect("the test server answers");
    run_mysql(&mut admin, "create user 'reach'@'%' identified by 'first'").await;
    let mysql = Credential { engine: Engine::Mysql, port: mariadb.port(), username: "reach".into(), ..postgres };
    let mysql = Credential { database: "information_schema".into(), ..mysql };
    let mut session: Session = mysql.connect_at(&at_loopback(mysql.port), LIMIT).await.expect("it is there");
    let connection = session.mysql().expect("MariaDB");
    let echoed = sqlx::query("select ?").bind(&long).fetch_one(&mut *connection).await.expect("echoed");
    assert!(echoed.get::<String, _>(0) == long);
    session.close().await.expect("closed");
    run_mysql(&mut admin, "drop user 'reach'@'%'").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_on_the_way_is_said_as_ever() {
    let world = World::start(quick()).await;
    let store = world.store().await;
    let credential = Credential { host: NOWHERE.to_owned(), ..store.credential.clone() };
    let cause = async |credential: &Credential, limit| {
        credential.connect_at(&at_loopback(credential.port), limit).await.err().map(|error| error.cause)
    };
    let wrong = Credential { password: "wrong".to_owned().into(), ..credential.clone() };
    assert_eq!(cause(&wrong, LIMIT).await, Some(Cause::WrongPassword));
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound").port();
    assert_eq!(cause(&Credential { port: closed, ..credential.clone() }, LIMIT).await, Some(Cause::Refused));
    let (port, _, _server) = silent_server().await;
    let silent = Credential { port, ..credential.clone() };
    assert_eq!(cause(&silent, Duration::from_millis(300)).await, Some(Cause::Timeout));
    let mut admin = world.cluster.admin("postgres").await;
    run(&mut admin, &format!("alter role {} connection limit 0", credential.username)).await;
    assert_eq!(cause(&credential, LIMIT).await, Some(Cause::TooManyConnections));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_breaks_the_protocol_is_told_and_ends_nothing_of_ours() {
    // A greeting of MySQL's tenth protocol that ends before its version does: the driver reads on.
    const CUT_SHORT: [&[u8]; 3] = [&[1, 0, 0, 0, 10], &[5, 0, 0, 0, 10, b'8', 0, 1, 2], &[2, 0, 0, 0, 10, 0]];
    for greeting in CUT_SHORT {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let mut server = tokio::task::JoinSet::new();
        server.spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                socket.write_all(greeting).await.expect("written");
            }
        });
        let world = World::start(quick()).await;
        let credential = Credential { engine: Engine::Mysql, port, ..world.store().await.credential };
        let refused = credential.connect(Reach::Anywhere, LIMIT).await.err().map(|error| error.cause);
        assert!(matches!(refused, Some(Cause::Protocol | Cause::Unreachable)), "{refused:?}");
        let refused = credential.connect_at(&at_loopback(port), LIMIT).await.err().map(|error| error.cause);
        assert!(matches!(refused, Some(Cause::Protocol | Cause::Unreachable)), "{refused:?}");
    }
}

async fn run_mysql(connection: &mut sqlx::MySqlConnection, sql: &'static str) {
    sqlx::raw_sql(sql).execute(connection).await.expect(sql);
}

/// A server that says `greeting` and then `more` for as long as somebody listens: its port, and how much of it was listened to.
async fn flood(greeting: Vec<u8>, more: Vec<u8>) -> (u16, JoinSet<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let mut server = JoinSet::new();
    server.spawn(async move {
        let (mut socket, _) = listener.accept().await.expect("a client");
        // PostgreSQL's clients begin, and MySQL's wait.
        if greeting.is_empty() {
            assert!(socket.read(&mut [0; 64]).await.expect("it asks") > 0);
        }
        let (mut said, mut next) = (0, greeting.as_slice());
        loop {
            match socket.write(next).await {
                Ok(count) => (said, next) = (said + count, &next[count..]),
                Err(_) => return said,
            }
            if next.is_empty() {
                next = &more;
            }
        }
    });
    (port, server)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_too_much_before_we_are_logged_in_is_not_listened_to() {
    /// What the buffers of both ends hold, and nobody has read.
    const ON_THE_WAY: usize = 16 << 20;
    let world = World::start(quick()).await;
    let credential = world.store().await.credential;
    let message = |kind: u8, len: u32, body: &[u8]| [&[kind], &len.to_be_bytes()[..], body].concat();
    let floods = [
        ("one endless message", Engine::Postgresql, vec![], message(b'R', 1 << 30, &[0; 1 << 20])),
        (
            "settings without end",
            Engine::Postgresql,
            vec![],
            message(b'S', 4096, &[&b"a\0"[..], &[b'b'; 4089], &[0]].concat()),
        ),
        (
            "an endless greeting",
            Engine::Mysql,
            [&[255, 255, 255, 0, 10][..], &[b'8'; 0xff_fffe]].concat(),
            vec![255; 1 << 20],
        ),
    ];
    for (what, engine, greeting, more) in floods {
        let (port, mut server) = flood(greeting, more).await;
        let credential = Credential { engine, port, ..credential.clone() };
        let refused = credential.connect_at(&at_loopback(port), LIMIT).await.err();
        assert_eq!(refused.map(|error| error.cause), Some(Cause::Protocol), "{what}");
        let said = timeout(LIMIT, server.join_next()).await.expect("nobody listens any more").expect("it ran");
        let said = said.expect("it ended");
        assert!((1 << 20..ON_THE_WAY).contains(&said), "{what}: {said}");
    }
}
