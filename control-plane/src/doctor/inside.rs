//! The lines that a session is needed for.

use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use kernel::{Engine, StoreId};
use sqlx::mysql::MySqlDatabaseError;
use tenancy::{Credential, Session};
use tenant_schema::SchemaState;
use tenant_schema::fitness::{self, Ailment};
use tokio::time::{Instant, timeout};

use super::entry::{self, Sides};
use super::report::{CheckName, CheckState, Course, Note, Outcome};
use super::{Holder, LINE_LIMIT, LOGIN_LIMIT, mysql, postgres};
use crate::cx::{self, OpsCx};
use crate::provisioning::credentials::parts_in_words;
use crate::provisioning::engine::{self, Facts};
use crate::provisioning::remedy::Guest;
use crate::provisioning::{self, DatabaseKind, StepError, transaction_pooler};

/// So often it is asked how long an answer takes.
const ROUNDS: usize = 5;
/// How long a server may take to say what it is before a second connection asks, too.
const PATIENCE: Duration = Duration::from_millis(1500);
/// From here on a shop's pages are slow, each of which asks several questions.
const SLOW: Duration = Duration::from_millis(50);

/// Looks at the server, the session and the database.
pub(super) async fn look(
    cx: &OpsCx,
    course: &mut Course,
    (credential, addresses): (&Credential, &[SocketAddr]),
    session: &mut Session,
    holder: Holder,
) {
    // It may have to log in once more. Where there is no answer, neither is there one to anything else.
    if course.line(CheckName::Server, LOGIN_LIMIT, server(credential, addresses, session)).await != Some(Go::On) {
        return;
    }
    let limit = course.left(LOGIN_LIMIT);
    let Some(is_apart) =
        course.line(CheckName::Pooler, LOGIN_LIMIT, pooler(credential, addresses, session, limit)).await
    else {
        return;
    };
    if is_apart == Go::Stop {
        return;
    }
    if course.line(CheckName::Latency, LINE_LIMIT, latency(session)).await.is_none() {
        return;
    }
    let pools = cx::pools(&cx.limits);
    course.line(CheckName::Session, LINE_LIMIT, settings(session, &pools)).await;

    let state = tokio::time::timeout(course.left(LINE_LIMIT), tenant_schema::inspect(session)).await;
    let state = match state {
        Ok(Ok(state)) => Ok(state),
        Ok(Err(error)) => Err(Some(error)),
        Err(_) => Err(None),
    };
    let seen = match &state {
        Ok(state) => Seen::Held(*state),
        Err(Some(error)) if is_forbidden(error) => Seen::Hidden,
        Err(_) => Seen::Nothing,
    };
    let looked = async {
        let note = privileges(credential, session, seen).await?;
        let is_passed = note.state == CheckState::Passed;
        Ok((note, is_passed))
    };
    let has_rights = course.line(CheckName::Privileges, LINE_LIMIT, looked).await == Some(true);
    let missing = match (&state, holder) {
        // Of an older version something is missing by nature.
        (Ok(SchemaState::Ours { version: tenant_schema::LATEST_VERSION, .. }), Holder::Of(_)) => {
            let parts = tenant_schema::missing_parts(session, tenant_schema::LATEST_VERSION);
            let asked = timeout(course.left(LINE_LIMIT), parts).await;
            asked.ok().and_then(Result::ok).unwrap_or_default()
        }
        _ => Vec::new(),
    };
    let schema = match state {
        Ok(state) => {
            let note = schema(credential.engine, state, holder, &missing);
            let is_telling = note.state == CheckState::Passed || state == SchemaState::Foreign;
            let asked = timeout(course.left(LINE_LIMIT), more_of_schema(cx, credential, session, (state, holder)));
            match asked.await.ok().flatten().filter(|_| is_telling) {
                Some(more) => note.particulars(more),
                None => note,
            }
        }
        Err(Some(error)) if is_forbidden(&error) && !has_rights => {
            Note::skipped("Not looked at, because the login may not read what is there.")
        }
        Err(Some(error)) => error.into(),
        Err(None) => Note::failed("timeout", "No answer came in time.", "Look for load or locks, then try again."),
    };
    course.say(CheckName::Schema, schema);
    course.line(CheckName::Limits, LINE_LIMIT, limits(session, pools.max_connections_per_store)).await;
}

/// Whether what follows still means something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Go {
    On,
    Stop,
}

/// A server that is too old is not asked further; one that is read-only is. Both have failed.
async fn server(credential: &Credential, addresses: &[SocketAddr], session: &mut Session) -> Outcome<Go> {
    let facts = facts(credential, addresses, session).await?;
    let (server, is_supported) = (facts.server.clone(), facts.is_supported);
    Ok(match facts.check(&Guest::from(credential)) {
        Ok(()) => (Note::passed(format!("{server}.")), Go::On),
        Err(error) if !is_supported => (error.into(), Go::Stop),
        Err(error) => {
            let note = Note::from(error);
            (Note { detail: format!("{server}. {}", note.detail), ..note }, Go::On)
        }
    })
}

/// What the server says that it is. Behind a pooler it may be that nobody says anything until a second one asks.
async fn facts(credential: &Credential, addresses: &[SocketAddr], session: &mut Session) -> Result<Facts, Note> {
    let mut asking = pin!(engine::facts(session));
    if let Ok(facts) = timeout(PATIENCE, &mut asking).await {
        return facts.map_err(Note::from);
    }
    let next = credential.connect_at(addresses, LOGIN_LIMIT);
    tokio::select! {
        biased;
        facts = &mut asking => facts.map_err(Note::from),
        Some(error) = entry::refused_by_pooler(credential, next) => Err(error.into()),
    }
}

/// Opens a second connection, while the first is open: they must not share the server's side.
async fn pooler(
    credential: &Credential,
    addresses: &[SocketAddr],
    first: &mut Session,
    limit: Duration,
) -> Outcome<Go> {
    let second = credential.connect_at(addresses, limit).await;
    Ok(match entry::compare(credential, first, second).await? {
        Sides::Apart => {
            (Note::passed("Two connections are two sessions of the server: none, or a pooler in session mode."), Go::On)
        }
        Sides::Shared => {
            let (code, what, advice) = transaction_pooler();
            (Note::failed(code, what, advice), Go::Stop)
        }
        // What follows needs the first only.
        Sides::Refused(error) => {
            let note = Note::from(error);
            (Note { detail: format!("A second connection was refused: {}", note.detail), ..note }, Go::On)
        }
    })
}

async fn latency(session: &mut Session) -> Outcome<()> {
    // By now it is known to be a session, and what is set for it is nobody else's.
    match session {
        Session::Postgres(conn) => postgres::read_only(conn).await?,
        Session::MySql(conn) => mysql::read_only(conn).await?,
    }
    let mut took = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let began = Instant::now();
        match session {
            Session::Postgres(conn) => postgres::ping(conn).await?,
            Session::MySql(conn) => mysql::ping(conn).await?,
        }
        took.push(began.elapsed());
    }
    took.sort_unstable();
    let median = took[ROUNDS / 2];
    let detail = format!("A question is answered in {:.1} ms (the median of {ROUNDS}).", median.as_secs_f64() * 1000.0);
    let note = if median < SLOW {
        Note::passed(detail)
    } else {
        Note::warning(
            "slow",
            format!("{detail} A page asks several."),
            "Use a database in a region near to this installation; a shop works with this one, but slowly.",
        )
    };
    Ok((note, ()))
}

async fn settings(session: &mut Session, pools: &tenancy::TenancyConfig) -> Outcome<()> {
    session.set_up_as_pooled(pools).await?;
    let note = match session {
        Session::Postgres(conn) => postgres::settings(conn).await?,
        Session::MySql(conn) => mysql::settings(conn).await?,
    };
    Ok((note, ()))
}

/// What was seen of what the database holds.
#[derive(Debug, Clone, Copy)]
pub(super) enum Seen {
    Held(SchemaState),
    /// It is there, and the login may not read it.
    Hidden,
    Nothing,
}

pub(super) async fn privileges(
    credential: &Credential,
    session: &mut Session,
    seen: Seen,
) -> Result<Note, sqlx::Error> {
    let note = match session {
        Session::Postgres(conn) => postgres::privileges(conn, credential, seen).await?,
        Session::MySql(conn) => return mysql::privileges(conn, credential).await,
    };
    if note.state != CheckState::Passed || !matches!(seen, Seen::Held(SchemaState::Ours { .. }) | Seen::Hidden) {
        return Ok(note);
    }
    // Who may act for the owner can still have been denied a right on what is there.
    Ok(match fitness::ailment_in(session).await? {
        Some(ailment @ (Ailment::Unreadable | Ailment::Unwritable)) => {
            let StepError { code, what, .. } = StepError::ailing(ailment);
            Note::failed(code, what, postgres::BY_ADMINISTRATOR).sql(Guest::from(credential).grant_tables())
        }
        Some(Ailment::TablesMissing | Ailment::ReadOnly) | None => note,
    })
}

pub(super) fn is_forbidden(error: &sqlx::Error) -> bool {
    let Some(said) = error.as_database_error() else { return false };
    match said.try_downcast_ref::<MySqlDatabaseError>() {
        Some(said) => matches!(said.number(), 1044 | 1142 | 1143),
        None => said.code().as_deref() == Some("42501"),
    }
}

/// What it means that this is there, for whom it is looked at.
fn schema(engine: Engine, state: SchemaState, holder: Holder, missing: &[&str]) -> Note {
    let wanted = tenant_schema::LATEST_VERSION;
    let ours = |store: Option<StoreId>, version: i64| {
        let has_no_rows = version == 0;
        let version = match version {
            version if version == wanted => format!("at version {version}, the newest"),
            0 => format!("begun and not at any version yet; it is to be brought to {wanted}"),
            version => format!("at version {version}, to be upgraded to {wanted}"),
        };
        match (store, holder) {
            (Some(found), Holder::Of(store)) if found == store && !missing.is_empty() => Note::failed(
                "incomplete-copy",
                format!(
                    "It holds this store, but these parts of it are missing or changed: {}.",
                    parts_in_words(missing)
                ),
                "Copy the whole schema with all its tables and rows, and try again.",
            ),
            (Some(found), Holder::Of(store)) if found == store && has_no_rows => Note::failed(
                "incomplete-copy",
                "It holds this store's tables, and not the rows that say which version they are of.",
                "Copy the store's database whole, with every table and row, and try again.",
            ),
            (Some(found), Holder::Of(store) | Holder::New(store)) if found == store => {
                Note::passed(format!("It holds this store, {version}."))
            }
            (Some(_), _) => Note::failed(
                "belongs-to-another-store",
                format!("It holds another store, {version}."),
                "Every store needs a database of its own: use another one.",
            ),
            (None, Holder::Of(_)) => not_this_store("It holds our schema, and no store."),
            (None, _) => Note::passed(format!("It holds our schema, {version}, and no store yet.")),
        }
    };
    match state {
        SchemaState::Empty if matches!(holder, Holder::Of(_)) => not_this_store("It holds nothing of ours."),
        SchemaState::Empty => Note::passed(match engine {
            Engine::Mysql => "It is empty; the store's tables go into it.",
            _ => {
                "It holds nothing of ours; the store gets the schema tenantry, and whatever else is there is left alone."
            }
        }),
        SchemaState::Ours { store, version } => ours(store, version),
        SchemaState::Newer { version, .. } => Note::failed(
            "schema-too-new",
            format!("It holds our schema at version {version}, which is newer than this installation's, {wanted}."),
            "Connect it to an installation that is up to date.",
        ),
        SchemaState::Foreign if engine == Engine::Mysql => Note::failed(
            "schema-in-use",
            "It holds tables, programs or events that are not ours.",
            "Use an empty one, since a store needs a whole database of MySQL's. We do not touch this one.",
        ),
        SchemaState::Foreign => Note::failed(
            "schema-in-use",
            "It has a schema named tenantry that is not ours.",
            "Rename or remove that schema, or use another database. We do not touch it.",
        ),
    }
}

/// What there is to say beside it: what is in the way, and what is not looked at here.
async fn more_of_schema(
    cx: &OpsCx,
    credential: &Credential,
    session: &mut Session,
    found: (SchemaState, Holder),
) -> Option<String> {
    match (found, session) {
        ((SchemaState::Foreign, _), Session::MySql(conn)) => {
            let (names, has_more) = mysql::some_of_others(conn).await.ok()?;
            let more = if has_more { ", ..." } else { "" };
            (!names.is_empty()).then(|| format!("Among them: {}{more}.", names.join(", ")))
        }
        ((SchemaState::Ours { store: Some(found), .. }, Holder::Of(store)), _) if found == store => {
            let is_to_be_compared = is_elsewhere(cx, store, credential).await?;
            is_to_be_compared.then(|| {
                "Whether it has the newest rows of the store's database as well is compared when it is put in its place: PUT \
                 /api/stores/{id}/database/credentials."
                    .to_owned()
            })
        }
        _ => None,
    }
}

/// Whether this is in another place than the database that the store's owner has brought; nothing where that is not known.
async fn is_elsewhere(cx: &OpsCx, store: StoreId, credential: &Credential) -> Option<bool> {
    let mut master = cx.master.acquire().await.ok()?;
    let known = provisioning::db::store_database_find(&mut master, store).await.ok()??;
    let own = Credential::open(&cx.keys, &known.sealed, store, known.credential_version).ok()?;
    Some(known.kind == DatabaseKind::Brought && !own.is_same_place(credential))
}

fn not_this_store(what: &str) -> Note {
    Note::failed(
        "other-database",
        format!("{what} This store's data is elsewhere."),
        "Give a connection to the database that holds the store. Its data is not moved.",
    )
}

async fn limits(session: &mut Session, pool: usize) -> Outcome<()> {
    Ok((Limits::ask(session).await?.note(pool), ()))
}

/// How many connections a server takes from everybody together.
///
/// # Errors
/// When the server does not say.
pub async fn connections_taken(session: &mut Session) -> Result<i64, sqlx::Error> {
    Ok(Limits::ask(session).await?.server)
}

/// How many connections there are, and how much is stored.
pub(super) struct Limits {
    /// What the server takes from everybody together.
    pub(super) server: i64,
    pub(super) in_use: i64,
    /// What this login, or this database, may have of them, when that is limited.
    pub(super) own: Option<i64>,
    pub(super) own_in_use: i64,
    pub(super) stored_bytes: i64,
}

impl Limits {
    async fn ask(session: &mut Session) -> Result<Self, sqlx::Error> {
        match session {
            Session::Postgres(conn) => postgres::limits(conn).await,
            Session::MySql(conn) => mysql::limits(conn).await,
        }
    }

    fn note(&self, pool: usize) -> Note {
        let Self { server, in_use, own, own_in_use, stored_bytes } = self;
        let pool = i64::try_from(pool).unwrap_or(i64::MAX);
        let own_text = own.map_or_else(String::new, |own| {
            format!(" This login may have {own} of them in this database, and has {own_in_use}.")
        });
        let stored = *stored_bytes as f64 / (1024.0 * 1024.0);
        let detail = format!(
            "The server takes {server} connections, and {in_use} are open, this test's own among them.{own_text} Each of our \
             nodes opens up to {pool} for the store. {stored:.1} MB are stored; how much more there is room for, the server does \
             not tell."
        );
        let left = (server - in_use).min(own.map_or(i64::MAX, |own| own - own_in_use));
        if left < pool {
            let left = match left {
                ..=0 => "no more can be opened".to_owned(),
                1 => "only 1 more can be opened".to_owned(),
                left => format!("only {left} more can be opened"),
            };
            return Note::warning(
                "few-connections",
                format!("{detail} While this test goes on, {left}."),
                "Raise the limit or close other clients: when there is none left, visitors of the shop have to wait.",
            );
        }
        Note::passed(detail)
    }
}

#[cfg(test)]
mod tests {
    use kernel::{Engine, StoreId};
    use tenant_schema::{LATEST_VERSION, SchemaState};

    use super::{Holder, Limits, schema};
    use crate::doctor::CheckState;

    #[test]
    fn what_a_database_holds_means_something_else_to_everybody() {
        let [store, other] = ["sto_00000000000000000000000001", "sto_00000000000000000000000002"]
            .map(|id| id.parse::<StoreId>().expect("an id"));
        let ours = |store| SchemaState::Ours { store, version: LATEST_VERSION };
        let cut = schema(Engine::Mysql, ours(Some(store)), Holder::Of(store), &["orders"]);
        assert_eq!(cut.code, Some("incomplete-copy"));
        for (state, holder, code) in [
            (SchemaState::Empty, Holder::Anybody, None),
            (SchemaState::Empty, Holder::New(store), None),
            (SchemaState::Empty, Holder::Of(store), Some("other-database")),
            (ours(None), Holder::Anybody, None),
            (ours(None), Holder::Of(store), Some("other-database")),
            (ours(Some(store)), Holder::Anybody, Some("belongs-to-another-store")),
            (ours(Some(store)), Holder::Of(store), None),
            (ours(Some(store)), Holder::New(store), None),
            (ours(Some(other)), Holder::New(store), Some("belongs-to-another-store")),
            (SchemaState::Newer { store: Some(store), version: i64::MAX }, Holder::Of(store), Some("schema-too-new")),
            (SchemaState::Foreign, Holder::Anybody, Some("schema-in-use")),
        ] {
            let note = schema(Engine::Postgresql, state, holder, &[]);
            assert_eq!(note.code, code, "{state:?} for {holder:?}");
            // Whose it is, is nobody else's business.
            assert!(!note.detail.contains("sto_"), "{note:?}");
        }
    }

    #[test]
    fn too_few_connections_are_a_warning() {
        let limits = |server, in_use, own| Limits { server, in_use, own, own_in_use: 1, stored_bytes: 0 }.note(8).state;
        assert_eq!(limits(100, 10, None), CheckState::Passed);
        assert_eq!(limits(100, 95, None), CheckState::Warning);
        assert_eq!(limits(100, 10, Some(5)), CheckState::Warning);
        assert_eq!(limits(100, 10, Some(9)), CheckState::Passed);
    }
}
