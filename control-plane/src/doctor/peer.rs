//! What it is that answers at a port: asked the way a database's client begins, and judged by its first bytes.
//!
//! PostgreSQL says nothing before it is asked, MySQL begins by itself. What keeps silent is at last sent what makes the other
//! engine and a web server speak. Nothing of what is said is kept: neither a version nor a banner.

use std::time::Duration;

use kernel::Engine;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::provisioning::StepError;

/// How long a peer is listened to, before and after it was nudged.
pub(super) const PATIENCE: Duration = Duration::from_millis(3000);
/// How long when it is known to speak, and to be slow.
pub(super) const LONG_PATIENCE: Duration = Duration::from_millis(6000);
/// How long the rest of a message may take.
const REST: Duration = Duration::from_millis(300);

/// How a client of PostgreSQL asks for TLS: a length, and a number that is no version.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
/// Ends what a web server takes for the head of a request, however odd.
const BLANK_LINES: &[u8] = b"\r\n\r\n";
/// The longest greeting of MySQL's that is believed.
const MAX_GREETING: usize = 1024;
const CAPABILITY_TLS: u16 = 0x0800;

/// What answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    Postgres {
        offers_tls: bool,
    },
    MySql {
        offers_tls: bool,
    },
    /// MySQL that refuses before anything is asked, with an error of its own.
    MySqlRefuses,
    Http,
    /// Whatever it is, it is none of these.
    Other,
    /// It took the connection and ended it.
    Closes,
    /// It took the connection and said nothing.
    Silent,
}

/// What was heard, and whether the connection was spent on it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heard {
    pub(super) peer: Peer,
    pub(super) is_spent: bool,
}

impl Peer {
    /// The engine that it is a server of.
    pub(super) const fn engine(self) -> Option<Engine> {
        match self {
            Self::Postgres { .. } => Some(Engine::Postgresql),
            Self::MySql { .. } | Self::MySqlRefuses => Some(Engine::Mysql),
            Self::Http | Self::Other | Self::Closes | Self::Silent => None,
        }
    }

    /// What is wrong with it for a client of `engine`.
    pub(super) fn trouble(self, engine: Engine) -> Option<StepError> {
        let (code, what, advice) = match (self, engine) {
            _ if self.engine() == Some(engine) => return None,
            (Self::Postgres { .. } | Self::MySql { .. } | Self::MySqlRefuses, Engine::Mysql) => (
                "other-engine",
                "A PostgreSQL server answers, where MySQL or MariaDB was expected.",
                "Begin the string with postgres://, or give host and port of the MySQL server, usually port 3306.",
            ),
            (Self::Postgres { .. } | Self::MySql { .. } | Self::MySqlRefuses, _) => (
                "other-engine",
                "A MySQL or MariaDB server answers, where PostgreSQL was expected.",
                "Begin the string with mysql://, or give host and port of the PostgreSQL server, usually port 5432.",
            ),
            (Self::Http, _) => (
                "answers-http",
                "A web server or proxy answers, and no database.",
                "Give the host and port of the database itself, not those of its web page, API or proxy.",
            ),
            (Self::Other, _) => ("not-a-database", "What answers is no database that we know.", "Check host and port."),
            (Self::Closes, _) => (
                "hangs-up",
                "The connection was taken and ended at once, without a word.",
                "Check host and port, and whether a firewall or an allow-list of the server ends connections from us.",
            ),
            (Self::Silent, _) => (
                "silent",
                "The connection was taken, and then nothing was said.",
                "Check host and port, and that the server behind them runs and is not overloaded.",
            ),
        };
        let wrong = StepError::new(code, what, advice);
        // Who says nothing was waited for; who hangs up may be about to start.
        Some(if self == Self::Closes { wrong.transient() } else { wrong })
    }
}

/// Asks what answers, as a client of `engine` would.
pub(super) async fn ask(engine: Engine, stream: &mut TcpStream, patience: Duration) -> Heard {
    let half = patience / 2;
    if engine == Engine::Postgresql && stream.write_all(&SSL_REQUEST).await.is_err() {
        return Heard { peer: Peer::Closes, is_spent: true };
    }
    if let Ok(peer) = timeout(half, listen(stream)).await {
        return Heard { peer, is_spent: false };
    }
    // Nothing so far. PostgreSQL waits for a question, and a web server for the end of a head.
    let nudges: &[&[u8]] = match engine {
        Engine::Postgresql => &[BLANK_LINES],
        _ => &[&SSL_REQUEST, BLANK_LINES],
    };
    let heard = |peer| Heard { peer, is_spent: true };
    for nudge in nudges {
        if stream.write_all(nudge).await.is_err() {
            return heard(Peer::Closes);
        }
        let share = half / u32::try_from(nudges.len()).expect("two at most");
        if let Ok(peer) = timeout(share, listen(stream)).await {
            return heard(peer);
        }
    }
    heard(Peer::Silent)
}

/// Judges by the first message.
async fn listen(stream: &mut TcpStream) -> Peer {
    let mut heard = Vec::with_capacity(256);
    loop {
        let read = async {
            let mut some = [0; 256];
            stream.read(&mut some).await.map(|count| some[..count].to_vec())
        };
        let some = if heard.is_empty() { Ok(read.await) } else { timeout(REST, read).await };
        let is_all = match some {
            Ok(Ok(some)) => {
                let is_end = some.is_empty();
                heard.extend(some);
                is_end
            }
            Ok(Err(_)) | Err(_) => true,
        };
        match judge(&heard) {
            Some(peer) => return peer,
            None if is_all => return if heard.is_empty() { Peer::Closes } else { Peer::Other },
            None => {}
        }
    }
}

/// What begins like this; nothing while it cannot be told.
fn judge(heard: &[u8]) -> Option<Peer> {
    let begins = |text: &[u8]| heard.len() >= text.len() && heard[..text.len()].eq_ignore_ascii_case(text);
    match heard {
        [] => None,
        [b'S'] => Some(Peer::Postgres { offers_tls: true }),
        [b'N'] => Some(Peer::Postgres { offers_tls: false }),
        // What it says of the blank lines, when it was slow to take the question.
        [first @ (b'S' | b'N'), b'E', 0 | b'F', ..] => Some(Peer::Postgres { offers_tls: *first == b'S' }),
        _ if begins(b"http/") || begins(b"<!doctype") || begins(b"<html") => Some(Peer::Http),
        [_, _, _, 0, 0xff, ..] => Some(Peer::MySqlRefuses),
        [low, middle, high, 0, 9 | 10, rest @ ..] => {
            let len = usize::from(*low) | usize::from(*middle) << 8 | usize::from(*high) << 16;
            if len > MAX_GREETING {
                return Some(Peer::Other);
            }
            // Behind the version, which ends with a zero: a number, eight bytes and a filler.
            let whole = rest.get(..len.saturating_sub(1))?;
            let capabilities = whole
                .iter()
                .position(|byte| *byte == 0)
                .and_then(|end| whole.get(end + 14..end + 16))
                .map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
            let peer = |capabilities: u16| Peer::MySql { offers_tls: capabilities & CAPABILITY_TLS != 0 };
            Some(capabilities.map_or(Peer::Other, peer))
        }
        // An error instead of an answer: what is behind it, the login will say.
        [b'E', 0, 0, _, _, ..] => Some(Peer::Postgres { offers_tls: false }),
        _ if heard.len() < 10 => None,
        _ => Some(Peer::Other),
    }
}

#[cfg(test)]
mod tests {
    use super::{Peer, judge};
    use kernel::Engine;

    /// As MariaDB greets.
    fn greeting(capabilities: u16) -> Vec<u8> {
        let mut body = vec![10];
        body.extend(b"5.5.5-10.11.14-MariaDB\0");
        body.extend([1, 0, 0, 0]);
        body.extend([7; 8]);
        body.push(0);
        body.extend(capabilities.to_le_bytes());
        body.extend([45, 2, 0]);
        let mut packet = vec![u8::try_from(body.len()).expect("short"), 0, 0, 0];
        packet.extend(body);
        packet
    }

    #[test]
    fn peers_are_told_by_their_first_bytes() {
        let (plain, tls) = (greeting(0xf7fe), greeting(0xfffe));
        for (bytes, peer) in [
            (&b"S"[..], Some(Peer::Postgres { offers_tls: true })),
            (b"N", Some(Peer::Postgres { offers_tls: false })),
            (b"NEFATAL:  received unencrypted data", Some(Peer::Postgres { offers_tls: false })),
            (b"SERVER ready\r\n", Some(Peer::Other)),
            (b"E\0\0\0\x20SFATAL\0", Some(Peer::Postgres { offers_tls: false })),
            (b"HTTP/1.1 400 Bad Request\r\n", Some(Peer::Http)),
            (b"<!DOCTYPE html>", Some(Peer::Http)),
            (b"HTT", None),
            (b"SSH-2.0-OpenSSH_9.2\r\n", Some(Peer::Other)),
            (b"\x10\0\0\0\xff\x10\x04Too many connections", Some(Peer::MySqlRefuses)),
            (&plain, Some(Peer::MySql { offers_tls: false })),
            (&tls, Some(Peer::MySql { offers_tls: true })),
            (&tls[..20], None),
            (b"\xff\xff\xff\0\x0a!", Some(Peer::Other)),
            (b"\x05\0\0\0\x0b\x08\x05\x1a\0\0", Some(Peer::Other)),
            (b"", None),
        ] {
            assert_eq!(judge(bytes), peer, "{bytes:?}");
        }
    }

    #[test]
    fn the_other_engine_is_named_with_the_scheme_and_port_that_would_fit() {
        let told = |peer: Peer, engine| peer.trouble(engine).map(|wrong| (wrong.code, wrong.advice));
        let postgres = Peer::Postgres { offers_tls: true };
        let (code, advice) = told(postgres, Engine::Mysql).expect("another one");
        assert_eq!(code, "other-engine");
        assert!(advice.contains("postgres://") && advice.contains("3306"), "{advice}");
        let (_, advice) = told(Peer::MySqlRefuses, Engine::Postgresql).expect("another one");
        assert!(advice.contains("mysql://") && advice.contains("5432"), "{advice}");
        assert_eq!(told(postgres, Engine::Postgresql), None);
        assert_eq!(told(Peer::MySqlRefuses, Engine::Mysql), None);
    }
}
