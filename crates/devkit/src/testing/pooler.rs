//! A server that is as a transaction pooler looks from outside: every connection ends at the same backend.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// The pooler, at 127.0.0.1; whatever login asks is let in without a password. Dropping it closes it.
pub struct TransactionPooler {
    /// Where it listens.
    pub port: u16,
    _clients: JoinSet<()>,
}

impl TransactionPooler {
    /// Begins to listen, at a free port.
    ///
    /// # Panics
    /// When there is none.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut clients = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                clients.spawn(async move { drop(serve(client).await) });
            }
        });
        Self { port, _clients: task }
    }
}

async fn serve(mut client: TcpStream) -> std::io::Result<()> {
    let len = client.read_u32().await?;
    read(&mut client, len).await?;
    client.write_all(&message(b'R', &0_u32.to_be_bytes())).await?;
    client.write_all(&message(b'Z', b"I")).await?;
    loop {
        let kind = client.read_u8().await?;
        let len = client.read_u32().await?;
        let body = read(&mut client, len).await?;
        match kind {
            b'Q' => {
                let statements = String::from_utf8_lossy(&body).split("; ").count();
                for _ in 1..statements {
                    client.write_all(&message(b'C', b"SET\0")).await?;
                }
                // One column of type text, and in it always the same.
                let column = [&b"\0\x01b\0\0\0\0\0\0\0"[..], &25_u32.to_be_bytes(), b"\xff\xff\xff\xff\xff\xff\0\0"];
                client.write_all(&message(b'T', &column.concat())).await?;
                client.write_all(&message(b'D', b"\0\x01\0\0\0\x0242")).await?;
                client.write_all(&message(b'C', b"SELECT 1\0")).await?;
                client.write_all(&message(b'Z', b"I")).await?;
            }
            b'S' => client.write_all(&message(b'Z', b"I")).await?,
            _ => return Ok(()),
        }
    }
}

async fn read(client: &mut TcpStream, len: u32) -> std::io::Result<Vec<u8>> {
    let mut body = vec![0; usize::try_from(len).expect("32 bits fit") - 4];
    client.read_exact(&mut body).await?;
    Ok(body)
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len() + 4).expect("a short message");
    [&[kind][..], &len.to_be_bytes(), body].concat()
}
