//! What stands between a node and what it calls in tests of the network: passes bytes on, or does what networks do instead.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Mutex;

use tokio::io::{AsyncReadExt as _, copy, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Passes,
    Stalls,
    LosesAnswers,
    Cuts,
}

/// What becomes of the connections to a server that another one takes over from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// They end.
    End,
    /// Nobody says a word in them any more.
    Silence,
}

/// A port on loopback that leads to another one. Dropping it cuts every connection.
pub struct ChaosProxy {
    pub port: u16,
    /// What happens to connections; the last is for those to come as well.
    modes: Mutex<Vec<watch::Sender<Mode>>>,
    /// Where connections to come lead, and what happens to them.
    leads: watch::Sender<(SocketAddr, watch::Receiver<Mode>)>,
    _accepting: AbortOnDropHandle<()>,
}

impl ChaosProxy {
    /// Leads to `target`, until told otherwise.
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (mode, modes) = watch::channel(Mode::Passes);
        let (leads, lead) = watch::channel((target, modes));
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let (target, modes) = lead.borrow().clone();
                connections.spawn(carry(client, target, modes));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { port, modes: Mutex::new(vec![mode]), leads, _accepting: AbortOnDropHandle::new(accepting) }
    }

    fn set(&self, mode: Mode) {
        self.modes.lock().unwrap().last().unwrap().send_replace(mode);
    }

    /// Leads to another port of this machine from now on, as an address does that another server takes over.
    pub fn fail_over(&self, port: u16, fate: Fate) {
        let (mode, modes) = watch::channel(Mode::Passes);
        self.leads.send_replace(((Ipv4Addr::LOCALHOST, port).into(), modes));
        self.set(if fate == Fate::End { Mode::Cuts } else { Mode::Stalls });
        self.modes.lock().unwrap().push(mode);
    }

    /// Keeps every connection, old and new, open without a byte going through.
    pub fn stall(&self) {
        self.set(Mode::Stalls);
    }

    /// Lets through what is asked, and ends the connection when the answer begins: it was done, and nobody hears of it.
    pub fn lose_answers(&self) {
        self.set(Mode::LosesAnswers);
    }

    /// Ends every connection, and each new one as soon as it comes.
    pub fn cut(&self) {
        self.set(Mode::Cuts);
    }

    /// Works again; what was stalled goes on.
    pub fn mend(&self) {
        self.set(Mode::Passes);
    }
}

/// Carries one connection through every change of the mode, until a side ends or it is cut.
async fn carry(mut client: TcpStream, target: SocketAddr, mut modes: watch::Receiver<Mode>) {
    // Nothing is asked of the target before it is meant to be reached.
    if modes.wait_for(|mode| *mode != Mode::Stalls).await.is_err() || *modes.borrow() == Mode::Cuts {
        return;
    }
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    loop {
        let mode = *modes.borrow_and_update();
        match mode {
            Mode::Cuts => return,
            Mode::Stalls => {
                if modes.changed().await.is_err() {
                    return;
                }
            }
            Mode::LosesAnswers => {
                let (mut asked, _) = client.split();
                let (mut answered, mut asking) = server.split();
                let mut first = [0];
                tokio::select! {
                    _ = copy(&mut asked, &mut asking) => return,
                    _ = answered.read(&mut first) => return,
                    changed = modes.changed() => if changed.is_err() { return },
                }
            }
            Mode::Passes => tokio::select! {
                // Bytes that are half-way when the mode changes are lost, as in a network that was cut there.
                _ = copy_bidirectional(&mut client, &mut server) => return,
                changed = modes.changed() => if changed.is_err() { return },
            },
        }
    }
}
