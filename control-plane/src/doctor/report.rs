//! What the doctor hands out: one line for each thing that it looks at, always all of them, in one order.

use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, timeout};
use utoipa::ToSchema;

use crate::provisioning::StepError;

/// What is looked at, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckName {
    /// The connection string, or its parts.
    Parse,
    /// The host's addresses, and whether they may be called.
    Dns,
    /// Whether a database answers there.
    Tcp,
    /// Encryption, and the certificate.
    Tls,
    /// User, password and database.
    Login,
    /// Product and version, and whether it may be written to.
    Server,
    /// Whether a connection is a session of the server.
    Pooler,
    /// How long a question takes.
    Latency,
    /// The settings of a session, as a store's connections have them.
    Session,
    /// What the login may do.
    Privileges,
    /// What the database holds.
    Schema,
    /// How many connections there are, and how much is stored.
    Limits,
}

impl CheckName {
    pub const ALL: [Self; 12] = [
        Self::Parse,
        Self::Dns,
        Self::Tcp,
        Self::Tls,
        Self::Login,
        Self::Server,
        Self::Pooler,
        Self::Latency,
        Self::Session,
        Self::Privileges,
        Self::Schema,
        Self::Limits,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Parse => "parse",
            Self::Dns => "dns",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Login => "login",
            Self::Server => "server",
            Self::Pooler => "pooler",
            Self::Latency => "latency",
            Self::Session => "session",
            Self::Privileges => "privileges",
            Self::Schema => "schema",
            Self::Limits => "limits",
        }
    }
}

/// What came of looking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckState {
    Passed,
    /// A store can live with it.
    Warning,
    Failed,
    /// It could not be looked at; the detail says why.
    Skipped,
}

/// One line.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    pub name: CheckName,
    pub state: CheckState,
    pub duration_ms: u64,
    /// What was found.
    pub detail: String,
    /// What a program branches on; of a failure always there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'static str>,
    /// What the server itself calls it: an SQLSTATE, a number of MySQL's, or an SQLSTATE and the name that a pooler adds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_code: Option<String>,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// Statements for an administrator of the database that help, ready to be copied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sql: Option<String>,
}

/// The checklist.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Report {
    /// Whether no line failed: then a store can live there.
    pub ok: bool,
    /// All lines, always in the same order.
    pub checks: Vec<Check>,
}

/// What is said of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) state: CheckState,
    pub(super) detail: String,
    /// What was seen beside it: addresses, a certificate. Only whoever asked for the checklist is told.
    pub(super) particulars: Option<Box<str>>,
    /// Whether waiting may help.
    pub(super) is_transient: bool,
    pub(super) code: Option<&'static str>,
    pub(super) server_code: Option<Box<str>>,
    pub(super) advice: Option<String>,
    pub(super) sql: Option<Box<str>>,
}

impl Note {
    fn new(state: CheckState, detail: impl Into<String>) -> Self {
        Self {
            state,
            detail: detail.into(),
            particulars: None,
            is_transient: false,
            code: None,
            server_code: None,
            advice: None,
            sql: None,
        }
    }

    pub(super) fn passed(detail: impl Into<String>) -> Self {
        Self::new(CheckState::Passed, detail)
    }

    pub(super) fn skipped(detail: impl Into<String>) -> Self {
        Self::new(CheckState::Skipped, detail)
    }

    pub(super) fn warning(code: &'static str, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        let note = Self::new(CheckState::Warning, detail);
        Self { code: Some(code), advice: Some(advice.into()), ..note }
    }

    pub(super) fn failed(code: &'static str, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { state: CheckState::Failed, ..Self::warning(code, detail, advice) }
    }

    pub(super) fn particulars(self, seen: impl Into<Box<str>>) -> Self {
        Self { particulars: Some(seen.into()), ..self }
    }

    pub(super) fn transient(self) -> Self {
        Self { is_transient: true, ..self }
    }

    pub(super) fn sql(self, sql: impl Into<Box<str>>) -> Self {
        Self { sql: Some(sql.into()), ..self }
    }

    fn check(self, name: CheckName, took: Duration) -> Check {
        let Self { state, detail, particulars, is_transient: _, code, server_code, advice, sql } = self;
        let detail = particulars.map_or_else(|| detail.clone(), |seen| format!("{detail} {seen}"));
        let [server_code, sql] = [server_code, sql].map(|text| text.map(String::from));
        let duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        Check { name, state, duration_ms, detail, code, server_code, advice, sql }
    }
}

impl From<StepError> for Note {
    fn from(error: StepError) -> Self {
        let StepError { code, what, advice, server_code, sql, is_transient, source: _ } = error;
        Self { server_code, sql, is_transient, ..Self::failed(code, what, advice.into_owned()) }
    }
}

/// A line that failed, for whoever asked for more than a checklist.
impl From<Note> for StepError {
    fn from(note: Note) -> Self {
        let Note { detail, is_transient, code, server_code, advice, sql, .. } = note;
        let error = Self::new(code.unwrap_or("unexpected"), detail, advice.unwrap_or_default());
        Self { server_code, sql, is_transient, ..error }
    }
}

impl From<sqlx::Error> for Note {
    fn from(error: sqlx::Error) -> Self {
        StepError::from(error).into()
    }
}

/// What came of a line: what is said of it, and what the next lines work with.
pub(super) type Outcome<T> = Result<(Note, T), Note>;

/// The lines as they are written, within one limit of time for all of them.
pub(super) struct Course {
    deadline: Instant,
    lines: Vec<Check>,
}

impl Course {
    pub(super) fn new(limit: Duration) -> Self {
        Self { deadline: Instant::now() + limit, lines: Vec::with_capacity(CheckName::ALL.len()) }
    }

    /// How much of `limit` there is still time for.
    pub(super) fn left(&self, limit: Duration) -> Duration {
        limit.min(self.deadline.saturating_duration_since(Instant::now()))
    }

    /// Does a line within its limit; what it hands on, unless it failed.
    pub(super) async fn line<T>(
        &mut self,
        name: CheckName,
        limit: Duration,
        work: impl Future<Output = Outcome<T>>,
    ) -> Option<T> {
        let (limit, began) = (self.left(limit), Instant::now());
        let outcome = timeout(limit, work).await.unwrap_or_else(|_| {
            Err(Note::failed("timeout", "No answer came in time.", "Look for load or a firewall, then try again."))
        });
        let (note, handed) = match outcome {
            Ok((note, handed)) => (note, Some(handed)),
            Err(note) => (note, None),
        };
        self.lines.push(note.check(name, began.elapsed()));
        handed
    }

    /// Writes a line for which nothing has to be done.
    pub(super) fn say(&mut self, name: CheckName, note: Note) {
        self.lines.push(note.check(name, Duration::ZERO));
    }

    /// The checklist. Lines that were not come to are skipped because of the first that failed.
    pub(super) fn end(self) -> Report {
        let failed = self.lines.iter().find(|line| line.state == CheckState::Failed).map(|line| line.name);
        let why = failed.map_or_else(
            || "Not looked at.".to_owned(),
            |name| format!("Not looked at, because the line {} failed.", name.as_str()),
        );
        let mut lines = self.lines;
        let checks = CheckName::ALL.into_iter().map(|name| {
            let found = lines.iter().position(|line| line.name == name).map(|at| lines.swap_remove(at));
            found.unwrap_or_else(|| Note::skipped(&why).check(name, Duration::ZERO))
        });
        Report { checks: checks.collect(), ok: failed.is_none() }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{CheckName, CheckState, Course, Note};

    #[tokio::test(start_paused = true)]
    async fn every_line_is_there_in_order_and_none_outlasts_the_whole() {
        let mut course = Course::new(Duration::from_secs(10));
        let limit = Duration::from_secs(8);
        course.line(CheckName::Parse, limit, async { Ok((Note::passed("read"), ())) }).await;
        let late = course.line(CheckName::Dns, limit, std::future::pending::<super::Outcome<()>>()).await;
        assert_eq!(late, None);
        course.line(CheckName::Tcp, limit, std::future::pending::<super::Outcome<()>>()).await;
        let report = course.end();
        assert!(!report.ok);
        assert_eq!(report.checks.iter().map(|check| check.name).collect::<Vec<_>>(), CheckName::ALL);
        assert_eq!(report.checks[0].state, CheckState::Passed);
        assert_eq!((report.checks[1].duration_ms / 1000, report.checks[2].duration_ms / 1000), (8, 2));
        assert_eq!(report.checks[3].state, CheckState::Skipped);
        assert!(report.checks[3].detail.contains("dns"), "{:?}", report.checks[3]);
    }
}
