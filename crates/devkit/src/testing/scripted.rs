//! Servers that only play what no server here can be brought to: a pooler's refusals, and releases that are too old.

use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Such a server, at 127.0.0.1 and without TLS. Dropping it closes it.
pub struct ScriptedServer {
    /// Where it listens.
    pub port: u16,
    _clients: JoinSet<()>,
}

#[derive(Debug)]
enum Script {
    Refuses { code: String, message: String },
    OldPostgres { version: String },
    OldMySql { version: String },
    HangsUp,
}

impl ScriptedServer {
    /// PostgreSQL, or a pooler before it, that lets nobody in and says this.
    ///
    /// # Panics
    /// When there is no free port.
    pub async fn refusing(code: &str, message: &str) -> Self {
        Self::play(Script::Refuses { code: code.to_owned(), message: message.to_owned() }).await
    }

    /// PostgreSQL that lets everybody in and answers every question with this `server_version_num`.
    ///
    /// # Panics
    /// When there is no free port.
    pub async fn old_postgres(version: &str) -> Self {
        Self::play(Script::OldPostgres { version: version.to_owned() }).await
    }

    /// MySQL that lets everybody in and answers every question with this version.
    ///
    /// # Panics
    /// When there is no free port.
    pub async fn old_mysql(version: &str) -> Self {
        Self::play(Script::OldMySql { version: version.to_owned() }).await
    }

    /// Something that takes every connection and ends it without a word.
    ///
    /// # Panics
    /// When there is no free port.
    pub async fn hanging_up() -> Self {
        Self::play(Script::HangsUp).await
    }

    async fn play(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let script = Arc::new(script);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut clients = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let script = Arc::clone(&script);
                // Who has gone has heard enough.
                clients.spawn(async move { drop(serve(client, &script).await) });
            }
        });
        Self { port, _clients: task }
    }
}

async fn serve(mut client: TcpStream, script: &Script) -> std::io::Result<()> {
    match script {
        Script::HangsUp => Ok(()),
        Script::OldMySql { version } => my_session(&mut client, version).await,
        Script::Refuses { code, message } => {
            pg_start(&mut client).await?;
            let error = format!("SFATAL\0VFATAL\0C{code}\0M{message}\0\0");
            client.write_all(&pg_message(b'E', error.as_bytes())).await
        }
        Script::OldPostgres { version } => {
            pg_start(&mut client).await?;
            client.write_all(&pg_message(b'R', &0_u32.to_be_bytes())).await?;
            client.write_all(&pg_message(b'Z', b"I")).await?;
            pg_answers(&mut client, version).await
        }
    }
}

/// Reads up to the startup message; there is no TLS.
async fn pg_start(client: &mut TcpStream) -> std::io::Result<()> {
    loop {
        let len = client.read_u32().await?;
        let body = read(client, len).await?;
        if body != [0x04, 0xd2, 0x16, 0x2f] {
            return Ok(());
        }
        client.write_all(b"N").await?;
    }
}

/// Whatever is asked, one row of four columns: the version, and no to everything else.
async fn pg_answers(client: &mut TcpStream, version: &str) -> std::io::Result<()> {
    const INT4: u32 = 23;
    const BOOL: u32 = 16;
    while client.read_u8().await? == b'Q' {
        let len = client.read_u32().await?;
        read(client, len).await?;
        let mut columns = 4_u16.to_be_bytes().to_vec();
        let mut row = columns.clone();
        for (of, value) in [(INT4, version), (BOOL, "f"), (BOOL, "f"), (BOOL, "f")] {
            columns.extend([&b"c\0\0\0\0\0\0\0"[..], &of.to_be_bytes(), b"\0\x04\xff\xff\xff\xff\0\0"].concat());
            row.extend(u32::try_from(value.len()).expect("short").to_be_bytes());
            row.extend(value.as_bytes());
        }
        for (kind, body) in [(b'T', columns), (b'D', row), (b'C', b"SELECT 1\0".to_vec()), (b'Z', b"I".to_vec())] {
            client.write_all(&pg_message(kind, &body)).await?;
        }
    }
    Ok(())
}

async fn read(client: &mut TcpStream, len: u32) -> std::io::Result<Vec<u8>> {
    let mut body = vec![0; usize::try_from(len).expect("32 bits fit").saturating_sub(4)];
    client.read_exact(&mut body).await?;
    Ok(body)
}

fn pg_message(kind: u8, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len() + 4).expect("a short message");
    [&[kind][..], &len.to_be_bytes(), body].concat()
}

async fn my_session(client: &mut TcpStream, version: &str) -> std::io::Result<()> {
    // Protocol 4.1, several statements at once, a login by plugin; neither TLS nor the newer end of rows.
    let capabilities: u32 = 0x000f_a20f;
    let mut greeting = vec![10];
    greeting.extend([version.as_bytes(), b"\0", &1_u32.to_le_bytes(), b"12345678", b"\0"].concat());
    greeting.extend(&capabilities.to_le_bytes()[..2]);
    greeting.extend([45, 2, 0]);
    greeting.extend(&capabilities.to_le_bytes()[2..]);
    greeting.push(21);
    greeting.extend([0; 10]);
    greeting.extend(b"123456789012\0mysql_native_password\0");
    my_write(client, 0, &greeting).await?;
    my_read(client).await?;
    my_write(client, 2, &my_ok(false)).await?;
    loop {
        let asked = my_read(client).await?;
        let Some((3, text)) = asked.split_first() else { return Ok(()) };
        let text = String::from_utf8_lossy(text);
        if !text.starts_with("select") {
            let statements = text.split("; ").count();
            for number in 1..=statements {
                let sequence = u8::try_from(number).expect("few statements");
                my_write(client, sequence, &my_ok(number < statements)).await?;
            }
            continue;
        }
        let mut column = vec![3];
        column.extend(b"def\0\0\0\x01v\0\x0c");
        column.extend([45, 0, 80, 0, 0, 0, 0xfd, 0, 0, 0, 0, 0]);
        let end = [0xfe, 0, 0, 2, 0];
        let mut row = vec![u8::try_from(version.len()).expect("short")];
        row.extend(version.as_bytes());
        for (sequence, packet) in [&[1][..], &column, &end, &row, &end].into_iter().enumerate() {
            my_write(client, u8::try_from(sequence + 1).expect("few packets"), packet).await?;
        }
    }
}

fn my_ok(has_more: bool) -> [u8; 7] {
    [0, 0, 0, if has_more { 0x0a } else { 2 }, 0, 0, 0]
}

async fn my_read(client: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut head = [0; 4];
    client.read_exact(&mut head).await?;
    let len = usize::from(head[0]) | usize::from(head[1]) << 8 | usize::from(head[2]) << 16;
    let mut body = vec![0; len];
    client.read_exact(&mut body).await?;
    Ok(body)
}

async fn my_write(client: &mut TcpStream, sequence: u8, body: &[u8]) -> std::io::Result<()> {
    let [low, middle, ..] = u32::try_from(body.len()).expect("a short packet").to_le_bytes();
    client.write_all(&[&[low, middle, 0, sequence][..], body].concat()).await
}
