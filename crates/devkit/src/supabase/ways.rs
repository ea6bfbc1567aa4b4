//! The two ways to projects' databases: their own hosts, which let every login through as it is, and the pooler in session mode,
//! which wants to know the project behind the login, `login.reference`, and takes it off. Both speak TLS only.

use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use super::Shared;

const SSL_REQUEST: u32 = 80_877_103;
const PROTOCOL_3: u32 = 196_608;
const MAX_STARTUP: u32 = 10_000;

pub(super) async fn listen(listener: TcpListener, shared: Arc<Shared>, is_pooler: bool) {
    while let Ok((client, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        let stopped = shared.stop.clone();
        shared.clone().tasks.spawn(async move {
            if let Some(Err(error)) = stopped.run_until_cancelled(carry(client, &shared, is_pooler)).await {
                tracing::debug!(%error, "a session at the test Supabase ended");
            }
        });
    }
}

async fn carry(mut client: TcpStream, shared: &Shared, is_pooler: bool) -> std::io::Result<()> {
    let (_, request) = (client.read_u32().await?, client.read_u32().await?);
    if request != SSL_REQUEST {
        return error_to(&mut client, "28000", "(ESSLREQUIRED) SSL connection is required").await;
    }
    client.write_all(b"S").await?;
    let mut client = shared.options.tls.accept(client).await?;
    let len = client.read_u32().await?;
    if !(8..=MAX_STARTUP).contains(&len) || client.read_u32().await? != PROTOCOL_3 {
        return Ok(());
    }
    let mut rest = vec![0; usize::try_from(len - 8).unwrap_or_default()];
    client.read_exact(&mut rest).await?;
    let words: Vec<String> =
        rest.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    let mut parameters: Vec<(String, String)> = words
        .chunks_exact(2)
        .filter(|pair| !pair[0].is_empty())
        .map(|pair| (pair[0].clone(), pair[1].clone()))
        .collect();
    let user = parameters.iter().find(|(name, _)| name == "user").map_or_else(String::new, |(_, value)| value.clone());
    let address = {
        let mut world = shared.world();
        let database = parameters.iter().find(|(name, _)| name == "database").map(|(_, value)| value.clone());
        let (login, reference) = user.rsplit_once('.').unwrap_or((&user, ""));
        let found = world.projects.iter().find(|project| {
            let is_named = if is_pooler { project.reference == reference } else { true };
            is_named
                && project.status != "INACTIVE"
                && database.as_deref() == project.new.database_url.rsplit('/').next()
        });
        let address = found.and_then(|project| {
            let url = url::Url::parse(&project.new.database_url).ok()?;
            Some((url.host_str()?.to_owned(), url.port()?))
        });
        if address.is_some() {
            let count = if is_pooler { &mut world.sessions.1 } else { &mut world.sessions.0 };
            *count += 1;
        }
        if is_pooler {
            for (_, value) in parameters.iter_mut().filter(|(name, _)| name == "user") {
                login.clone_into(value);
            }
        }
        address
    };
    let Some(address) = address else {
        return error_to(&mut client, "XX000", &format!("(ENOTFOUND) tenant/user {user} not found")).await;
    };
    let mut server = TcpStream::connect(address).await?;
    let mut startup = PROTOCOL_3.to_be_bytes().to_vec();
    for (name, value) in &parameters {
        startup.extend([name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
    }
    startup.push(0);
    let len = u32::try_from(startup.len() + 4).unwrap_or(MAX_STARTUP);
    server.write_all(&[&len.to_be_bytes()[..], &startup].concat()).await?;
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}

/// As PostgreSQL says that it lets nobody in.
async fn error_to(client: &mut (impl AsyncWrite + Unpin), code: &str, message: &str) -> std::io::Result<()> {
    let body = format!("SFATAL\0VFATAL\0C{code}\0M{message}\0\0");
    let len = u32::try_from(body.len() + 4).unwrap_or_default();
    client.write_all(&[b"E", &len.to_be_bytes()[..], body.as_bytes()].concat()).await?;
    client.shutdown().await
}
