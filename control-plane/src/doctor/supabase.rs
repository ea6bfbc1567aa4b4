//! The kinds of connection that Supabase offers, told by host and port.

use super::report::Note;

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The server itself: at an IPv6 address, unless the project has paid for another.
    Direct,
    /// The project's own PgBouncer, in transaction mode, beside the server.
    DedicatedPooler,
    SessionPooler,
    TransactionPooler,
}

/// The kind of a Supabase host; none of any other.
pub(super) fn kind_of(host: &str, port: u16) -> Option<Kind> {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let is_pooler = host.ends_with(".pooler.supabase.com") || host.ends_with(".pooler.supabase.co");
    let is_direct = host.starts_with("db.") && host.ends_with(".supabase.co");
    match (is_pooler, is_direct, port) {
        (true, _, 6543) => Some(Kind::TransactionPooler),
        (true, ..) => Some(Kind::SessionPooler),
        (_, true, 6543) => Some(Kind::DedicatedPooler),
        (_, true, _) => Some(Kind::Direct),
        _ => None,
    }
}

impl Kind {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct host",
            Self::DedicatedPooler => "dedicated pooler, in transaction mode",
            Self::SessionPooler => "session pooler",
            Self::TransactionPooler => "transaction pooler",
        }
    }

    /// What is to be said before anything is called.
    pub(super) fn remark(self, login: &str, detail: &str) -> Note {
        match self {
            Self::TransactionPooler | Self::DedicatedPooler => Note::warning(
                "transaction-pooler",
                detail,
                "A transaction pooler can mix up answers and is refused. Use port 5432: of the same host, or of the \
                 Session pooler (Connect, Session pooler).",
            ),
            Self::SessionPooler if !login.contains('.') => Note::warning(
                "pooler-user",
                detail,
                "The pooler's user is postgres.<project>, with the project after a dot: copy the Session pooler string anew.",
            ),
            Self::Direct | Self::SessionPooler => Note::passed(detail),
        }
    }
}

/// What to do when the host has IPv6 addresses only and we have none.
pub(super) fn ipv6_advice(host: &str, port: u16) -> &'static str {
    match kind_of(host, port) {
        Some(Kind::Direct | Kind::DedicatedPooler) => {
            "Use the Session pooler string (Connect, Session pooler), whose host has an IPv4 address; or add the IPv4 add-on to \
             the project."
        }
        _ => "Give the database's host an IPv4 address, or use one that has.",
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, ipv6_advice, kind_of};
    use crate::doctor::report::CheckState;

    #[test]
    fn supabases_hosts_are_told_apart() {
        for (host, port, kind) in [
            ("db.abcdefghijklmnopqrst.supabase.co", 5432, Some(Kind::Direct)),
            ("DB.abcdefghijklmnopqrst.supabase.co.", 6543, Some(Kind::DedicatedPooler)),
            ("aws-0-eu-west-1.pooler.supabase.com", 5432, Some(Kind::SessionPooler)),
            ("aws-1-eu-west-1.pooler.supabase.com", 6543, Some(Kind::TransactionPooler)),
            ("supabase.co.example.com", 5432, None),
            ("db.example.com", 6543, None),
        ] {
            assert_eq!(kind_of(host, port), kind, "{host}:{port}");
        }
    }

    #[test]
    fn what_will_not_work_is_said_before_it_is_tried() {
        let state = |kind: Kind, login| kind.remark(login, "x").state;
        assert_eq!(state(Kind::Direct, "postgres"), CheckState::Passed);
        assert_eq!(state(Kind::SessionPooler, "postgres.abc"), CheckState::Passed);
        assert_eq!(state(Kind::SessionPooler, "postgres"), CheckState::Warning);
        assert_eq!(state(Kind::TransactionPooler, "postgres.abc"), CheckState::Warning);
        assert!(ipv6_advice("db.abc.supabase.co", 5432).contains("Session pooler"));
        assert!(!ipv6_advice("db.example.com", 5432).contains("pooler"));
    }
}
