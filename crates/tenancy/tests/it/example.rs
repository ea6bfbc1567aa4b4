//! The example of the README, against a server.

use std::collections::HashMap;
use std::sync::Arc;

use axum::{Router, routing};
use tenancy::{Reach, Tenancy};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

#[expect(dead_code, reason = "its `main` is for whoever runs it")]
#[path = "../../examples/two_stores.rs"]
mod two_stores;

use crate::support::{World, quick};

/// What is answered to `GET /` under this name.
async fn get(port: u16, host: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("it takes the request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("it answers");
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_serves_two_stores_from_two_databases() {
    let world = World::start(quick()).await;
    let stores = [world.store().await, world.store().await];
    let mut routes = HashMap::new();
    for store in &stores {
        routes.insert(store.host.clone(), world.route(store.id, &store.credential, 1, 1));
    }
    let config = tenancy::TenancyConfig { owners_reach: Reach::Anywhere, ..quick() };
    let tenancy = Tenancy::new(two_stores::Stores(routes), Arc::clone(&world.keys), config);
    let app = Router::new().route("/", routing::get(two_stores::front)).with_state(tenancy);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("it has one").port();
    let mut serving = JoinSet::new();
    serving.spawn(async move { axum::serve(listener, app).await });
    for store in &stores {
        let answer = get(port, store.host.as_str()).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.ends_with(&format!("This is {}.\n", store.credential.database)), "{answer}");
    }
    assert!(get(port, "gin.localhost").await.starts_with("HTTP/1.1 404"));
    serving.shutdown().await;
}
