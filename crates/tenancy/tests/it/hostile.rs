//! Servers that are out to do harm: brought by an owner, they may say whatever they want.

use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use kernel::Engine;
use sqlx::Executor as _;
use tenancy::{Cause, Credential, Reach, TlsMode, unbroken};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::reach::at_loopback;
use crate::support::{World, eventually, quick, read};

const LIMIT: Duration = Duration::from_secs(10);

async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    (listener, port)
}

/// A message of PostgreSQL.
fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len() + 4).expect("short");
    [&[kind], &len.to_be_bytes()[..], body].concat()
}

const READY: [u8; 6] = [b'Z', 0, 0, 0, 5, b'I'];

/// One column, of text.
fn description() -> Vec<u8> {
    let column = [&b"a\0"[..], &[0; 6], &25_u32.to_be_bytes(), &[0xff; 2], &[0xff; 4], &[0; 2]].concat();
    message(b'T', &[&[0, 1][..], &column].concat())
}

fn row(values: &[&str]) -> Vec<u8> {
    let mut body = u16::try_from(values.len()).expect("few").to_be_bytes().to_vec();
    for value in values {
        body.extend(u32::try_from(value.len()).expect("short").to_be_bytes());
        body.extend(value.as_bytes());
    }
    message(b'D', &body)
}

/// Lets one in who asks without TLS, without a password.
async fn let_in(socket: &mut TcpStream) {
    assert!(socket.read(&mut [0; 1024]).await.expect("it says who it is") > 0);
    socket.write_all(&[&message(b'R', &[0; 4])[..], &READY].concat()).await.expect("let in");
}

/// The kind of the next message that wants an answer; none when the client has gone.
async fn next_question(socket: &mut TcpStream) -> Option<u8> {
    loop {
        let kind = socket.read_u8().await.ok()?;
        let len = socket.read_u32().await.ok()?;
        let mut body = vec![0; usize::try_from(len).expect("it fits") - 4];
        socket.read_exact(&mut body).await.ok()?;
        if matches!(kind, b'Q' | b'S') {
            return Some(kind);
        }
    }
}

/// A PostgreSQL server that speaks TLS with whoever comes, and says `says` instead of asking for a password.
async fn encrypted(says: Vec<u8>) -> (u16, JoinSet<()>) {
    let made = rcgen::generate_simple_self_signed(vec!["shop-database.invalid".to_owned()]).expect("a certificate");
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("its key");
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring speaks them")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("they belong together");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let mut server = JoinSet::new();
    server.spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.expect("a client");
            let mut asks_for_tls = [0; 8];
            socket.read_exact(&mut asks_for_tls).await.expect("it asks for TLS");
            socket.write_all(b"S").await.expect("granted");
            let mut socket = acceptor.accept(socket).await.expect("it trusts anybody");
            assert!(socket.read(&mut [0; 1024]).await.expect("it says who it is") > 0);
            socket.write_all(&says).await.expect("said");
            socket.flush().await.expect("said");
            // However it ends, it ends by the client.
            while socket.read(&mut [0; 1024]).await.is_ok_and(|count| count > 0) {}
        }
    });
    (port, server)
}

/// The most memory that this process ever had, in bytes.
fn most_memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("it tells the most");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_only_announced_is_not_set_aside() {
    const ANNOUNCED: usize = u32::MAX as usize;
    let world = World::start(quick()).await;
    // By whoever asks for a password, by an error, and by a setting.
    for kind in [b'R', b'E', b'S'] {
        let says = [&[kind][..], &u32::MAX.to_be_bytes(), &[0; 4]].concat();
        let (port, _server) = encrypted(says).await;
        let store = world.store().await;
        let credential =
            Credential { host: "127.0.0.1".to_owned(), port, tls: TlsMode::Require, ..store.credential.clone() };
        // The rest never comes, and is not waited for longer than for anything else.
        let short = Duration::from_millis(500);
        for refused in
            [credential.connect(Reach::Anywhere, short).await, credential.connect_at(&at_loopback(port), short).await]
        {
            let cause = refused.err().map(|error| error.cause);
            assert_eq!(cause, Some(Cause::Timeout), "{}", char::from(kind));
        }
    }
    let most = most_memory();
    assert!(most < ANNOUNCED / 2, "{most} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_that_no_table_has_are_refused() {
    let greeting = [
        &[10][..],
        b"8.0.40\0",
        &[1, 0, 0, 0],
        b"12345678\0",
        // It speaks the protocol of version 4.1, with a database and the name of a plugin, and no TLS.
        &[0x08, 0x82, 45, 2, 0, 0x08, 0, 21],
        &[0; 10],
        b"123456789012\0mysql_native_password\0",
    ]
    .concat();
    let packet = |sequence: u8, body: &[u8]| {
        let [low, middle, high, _] = u32::try_from(body.len()).expect("short").to_le_bytes();
        [&[low, middle, high, sequence], body].concat()
    };
    let world = World::start(quick()).await;
    let credential = world.store().await.credential;
    // As many as memory could be asked for, more than it could be, and a few more than there can be.
    for columns in [1 << 46, u64::MAX, 5000] {
        let (listener, port) = listen().await;
        let greets = packet(0, &greeting);
        let lets_in = packet(2, &[0, 0, 0, 2, 0, 0, 0]);
        let answers = packet(1, &[&[0xfe][..], &columns.to_le_bytes()].concat());
        let mut server = JoinSet::new();
        server.spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.expect("a client");
                socket.write_all(&greets).await.expect("greeted");
                for says in [&lets_in, &answers] {
                    assert!(socket.read(&mut [0; 4096]).await.expect("it asks") > 0);
                    socket.write_all(says).await.expect("answered");
                }
                while socket.read(&mut [0; 1024]).await.is_ok_and(|count| count > 0) {}
            }
        });
        let credential = Credential { engine: Engine::Mysql, port, tls: TlsMode::Disable, ..credential.clone() };
        for refused in
            [credential.connect(Reach::Anywhere, LIMIT).await, credential.connect_at(&at_loopback(port), LIMIT).await]
        {
            assert_eq!(refused.err().map(|error| error.cause), Some(Cause::Protocol), "{columns}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_without_end_is_not_listened_to() {
    /// An answer's allowance, and what the buffers of both ends hold.
    const MOST: usize = (64 << 20) + (16 << 20);
    let world = World::start(quick()).await;
    let credential = world.store().await.credential;
    let (listener, port) = listen().await;
    let mut server = JoinSet::new();
    server.spawn(async move {
        let (mut socket, _) = listener.accept().await.expect("a client");
        let_in(&mut socket).await;
        // An honest answer of many megabytes, twice: each question has its own allowance.
        let long = "tea ".repeat(10_000_000);
        for _ in 0..2 {
            assert_eq!(next_question(&mut socket).await, Some(b'Q'));
            let done = message(b'C', b"SELECT 1\0");
            let answer = [&description()[..], &row(&[&long]), &done, &READY].concat();
            socket.write_all(&answer).await.expect("answered");
        }
        assert_eq!(next_question(&mut socket).await, Some(b'Q'));
        socket.write_all(&description()).await.expect("begun");
        let (rows, mut said) = (row(&[&"coffee ".repeat(10_000)]).repeat(20), 0);
        while socket.write_all(&rows).await.is_ok() {
            said += rows.len();
        }
        said
    });
    let mut session = credential_at(&credential, port).connect_at(&at_loopback(port), LIMIT).await.expect("let in");
    let connection = session.postgres().expect("PostgreSQL");
    for _ in 0..2 {
        let answer = connection.fetch_all(sqlx::raw_sql("select 'tea'")).await.expect("an honest answer");
        assert_eq!(answer.len(), 1);
    }
    let mut answers = connection.fetch_many(sqlx::raw_sql("select 'coffee'"));
    let outcome = timeout(LIMIT * 3, async {
        while answers.try_next().await?.is_some() {}
        Ok::<_, sqlx::Error>(())
    })
    .await;
    let error = outcome.expect("it ends").expect_err("it is cut");
    assert!(matches!(error, sqlx::Error::Io(_)), "{error:?}");
    drop(answers);
    let said = timeout(LIMIT, server.join_next()).await.expect("nobody listens any more").expect("it ran");
    let said = said.expect("it ended");
    assert!((1 << 20..MOST).contains(&said), "{said}");
}

fn credential_at(credential: &Credential, port: u16) -> Credential {
    Credential { port, tls: TlsMode::Disable, ..credential.clone() }
}

/// A server whose answers to what is asked with parameters are a value short.
async fn a_value_short() -> (u16, JoinSet<()>) {
    let (listener, port) = listen().await;
    let mut server = JoinSet::new();
    server.spawn(async move {
        let mut visits = JoinSet::new();
        loop {
            let (mut socket, _) = listener.accept().await.expect("a client");
            visits.spawn(async move {
                // No two sessions say the same.
                let name = socket.peer_addr().expect("connected").to_string();
                let_in(&mut socket).await;
                let done = message(b'C', b"SELECT 1\0");
                let mut is_prepared = false;
                while let Some(kind) = next_question(&mut socket).await {
                    let says = match kind {
                        b'Q' => [description(), row(&[&name]), done.clone()].concat(),
                        _ if !is_prepared => {
                            is_prepared = true;
                            [message(b'1', &[]), message(b't', &[0; 2]), description()].concat()
                        }
                        _ => [message(b'2', &[]), row(&[]), done.clone()].concat(),
                    };
                    if socket.write_all(&[&says[..], &READY].concat()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (port, server)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_driver_cannot_bear_ends_one_connection_and_nobody_who_asks() {
    let world = World::start(quick()).await;
    let (port, _server) = a_value_short().await;
    let store = world.store().await;
    let hostile = credential_at(&store.credential, port);
    let mut session = hostile.connect(Reach::Anywhere, LIMIT).await.expect("let in");
    let connection = session.postgres().expect("PostgreSQL");
    let asked = unbroken(sqlx::query_scalar::<_, String>("select a").fetch_one(connection)).await;
    assert_eq!(asked.err().map(|error| error.cause), Some(Cause::Protocol));

    let lease = world.lease(&world.add(&hostile)).await;
    let mut connection = lease.acquire().await.expect("let in");
    assert!(connection.fetch_one::<(String,)>(read("select a")).await.is_err());
    drop(connection);
    eventually("its connection is closed", || async { world.tenancy.stats().open == 0 }).await;
    // Others are served, and so is it when it behaves.
    let (one,): (i32,) =
        world.lease(&store).await.acquire().await.expect("served").fetch_one(read("select 1")).await.expect("answered");
    assert_eq!(one, 1);
    assert!(lease.acquire().await.is_ok());
}
