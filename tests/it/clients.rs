//! Clients that take more than their share: connections, or time.

use std::net::{Ipv4Addr, SocketAddr};

use integration_tests::{TestApp, TestAppOptions, eventually, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

async fn app(arguments: &[&str]) -> TestApp {
    let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
    TestApp::start_with(TestAppOptions { arguments, without_server: true }).await
}

async fn connect_from(last: u8, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0))).unwrap();
    socket.connect(to).await.unwrap()
}

/// Whether a request over this connection is answered.
async fn is_served(stream: &mut TcpStream) -> bool {
    if stream.write_all(b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n").await.is_err() {
        return false;
    }
    let mut begin = [0; 12];
    within("an answer or an end", stream.read_exact(&mut begin)).await.is_ok() && begin == *b"HTTP/1.1 200"
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_does_not_take_all_connections_unless_it_is_a_trusted_proxy() {
    let app = app(&["--max-client-connections-per-address", "3", "--trusted-proxies", "127.0.0.9"]).await;
    let mut taken = Vec::new();
    for _ in 0..3 {
        let mut stream = connect_from(2, app.address).await;
        assert!(is_served(&mut stream).await);
        taken.push(stream);
    }

    assert!(!is_served(&mut connect_from(2, app.address).await).await, "a fourth connection is closed");
    assert!(is_served(&mut connect_from(3, app.address).await).await, "another address is served");
    let mut through_proxy = Vec::new();
    for _ in 0..6 {
        let mut stream = connect_from(9, app.address).await;
        assert!(is_served(&mut stream).await, "everybody comes from the proxy's address");
        through_proxy.push(stream);
    }

    taken.pop();
    eventually("a place is free again", || async {
        is_served(&mut connect_from(2, app.address).await).await.then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_no_answers_is_hung_up_on() {
    let app = app(&["--client-timeout-ms", "500"]).await;
    let mut greedy = TcpStream::connect(app.address).await.unwrap();
    // Asks on and never reads: the answers fill what is between, and then the node waits.
    let hung_up = within("the node hangs up", async {
        loop {
            if let Err(error) = greedy.write_all(b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n").await {
                return error;
            }
        }
    })
    .await;
    assert!(["ConnectionReset", "BrokenPipe"].contains(&format!("{:?}", hung_up.kind()).as_str()), "{hung_up}");
    // Neither does one that sends half a request keep its place.
    let mut slow = TcpStream::connect(app.address).await.unwrap();
    slow.write_all(b"GET /openapi.json HTT").await.unwrap();
    let mut rest = Vec::new();
    let end = within("the node hangs up", slow.read_to_end(&mut rest)).await;
    assert!(end.is_err() || !rest.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&rest));
}
