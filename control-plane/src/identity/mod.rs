//! Who signs in: registration, sessions, tokens, and membership in organizations.
//!
//! An access token is a short-lived JWT that names a session; a refresh token is opaque, known here only by its hash, and
//! good for one use. Using one twice revokes the whole family that descends from that login, because one of the two users
//! of it is a thief. Every authenticated request reads the session, so logging out takes effect at once.

pub mod db;
pub mod limits;
pub mod passwords;
pub mod routes;
pub mod tokens;

use chrono::Duration;
use kernel::{Hostname, OrganizationId, SessionId, StoreId, UserId, text};
use problem::Problem;
use secrecy::SecretString;
use sha2::{Digest as _, Sha256};
use sqlx::PgConnection;

use crate::audit::{self, Actor};
use crate::cx::{Cx, OpsCx};
use crate::http::paging::{PagingError, Window};
use crate::stores::{self, NewStore, Store, StoreError};

/// Why an identity operation was refused.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("the e-mail address is already registered")]
    EmailTaken,
    #[error("the e-mail address or the password is wrong")]
    InvalidCredentials,
    #[error("the refresh token is unknown, expired or revoked")]
    InvalidRefreshToken,
    #[error("the refresh token was used before")]
    RefreshTokenReused,
    #[error("too many passwords are being checked right now")]
    Busy,
    #[error("{} is not valid: {detail}", pointer.trim_start_matches('/'))]
    Invalid { pointer: &'static str, code: &'static str, detail: String },
    #[error("nobody else has the platform role; grant it to somebody first")]
    LastAdmin,
    #[error("some fields are not valid")]
    InvalidFields(Vec<InvalidField>),
    #[error("there is no user with this e-mail address")]
    UserNotFound,
    #[error("not a member of that store")]
    StoreNotFound,
    #[error("not a member of that organization")]
    OrganizationNotFound,
    #[error("only owners and admins of the organization may do this")]
    NotManager,
    #[error(transparent)]
    Paging(#[from] PagingError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the password could not be hashed")]
    Hash,
    #[error("database error")]
    Db(#[from] sqlx::Error),
}

/// One field that is not valid.
#[derive(Debug)]
pub struct InvalidField {
    pub pointer: &'static str,
    pub code: &'static str,
    pub detail: String,
}

impl InvalidField {
    /// Puts a refusal with the others, so that everything is said at once.
    fn keep<T>(refused: &mut Vec<Self>, outcome: Result<T, IdentityError>) -> Result<Option<T>, IdentityError> {
        match outcome {
            Ok(value) => Ok(Some(value)),
            Err(IdentityError::Invalid { pointer, code, detail }) => {
                refused.push(Self { pointer, code, detail });
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// A person, as everybody but the password check sees them.
#[derive(Debug, Clone)]
pub struct User {
    pub id: UserId,
    pub email: String,
    pub first_name: String,
    pub last_name: String,
    pub platform_role: Option<String>,
}

/// An organization and what the person may do in it.
#[derive(Debug, Clone)]
pub struct Membership {
    pub id: OrganizationId,
    pub name: String,
    pub role: MemberRole,
}

/// What a member may do in an organization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, sqlx::Type, utoipa::ToSchema)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum MemberRole {
    Owner,
    Admin,
    Staff,
}

impl MemberRole {
    /// May change stores and their databases.
    pub fn is_manager(self) -> bool {
        matches!(self, Self::Owner | Self::Admin)
    }
}

/// Somebody of an organization, as those who manage it see them.
#[derive(Debug, Clone)]
pub struct Member {
    pub id: UserId,
    pub email: String,
    pub first_name: String,
    pub last_name: String,
    pub role: MemberRole,
}

/// Somebody whose access token was checked against a living session.
#[derive(Debug, Clone)]
pub struct Principal {
    pub user: User,
    pub session_id: SessionId,
    /// The one store that the token is good for, when it was made for one.
    pub token_store: Option<StoreId>,
}

/// An e-mail address in its one comparable form: lower case, with a domain that is a hostname.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Email(String);

impl Email {
    /// Reads an address: one `@`, a local part of RFC 5321's dot-atom form, a domain that is a hostname.
    ///
    /// # Errors
    /// [`IdentityError::Invalid`] naming `/email`.
    pub fn parse(given: &str) -> Result<Self, IdentityError> {
        let refused = || IdentityError::Invalid {
            pointer: "/email",
            code: "email",
            detail: "expected an address like ada@example.com".to_owned(),
        };
        let (local, domain) = given.trim().rsplit_once('@').ok_or_else(refused)?;
        let is_atom = |c: char| c.is_alphanumeric() || "!#$%&'*+-/=?^_`{|}~.".contains(c);
        let is_local = !local.is_empty() && local.len() <= 64 && local.chars().all(is_atom) && !local.starts_with('.');
        let domain = Hostname::parse(domain).map_err(|_| refused())?;
        let address = format!("{}@{domain}", local.to_lowercase());
        if is_local && !local.ends_with('.') && !local.contains("..") && address.len() <= 254 {
            Ok(Self(address))
        } else {
            Err(refused())
        }
    }

    /// The address.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Somebody who registers.
pub struct NewUser {
    pub email: String,
    pub password: SecretString,
    pub first_name: String,
    pub last_name: String,
    pub store_name: Option<String>,
}

/// What a client is given to act with.
pub struct Tokens {
    pub access: SecretString,
    pub refresh: SecretString,
    pub expires_in: std::time::Duration,
}

/// What registering made.
pub struct Registered {
    pub user: User,
    pub organization: Membership,
    pub store: Option<Store>,
    pub tokens: Tokens,
}

/// Creates the person, their organization and, when named, their first store, in one transaction, and signs them in.
pub async fn register(cx: &Cx, new: NewUser) -> Result<Registered, IdentityError> {
    let mut refused = Vec::new();
    let line = |text: &str, pointer| {
        text::one_line(text, 100).map_err(|e| IdentityError::Invalid { pointer, code: "text", detail: e.to_string() })
    };
    let email = InvalidField::keep(&mut refused, Email::parse(&new.email))?;
    let password = passwords::check_rules(&new.password, email.as_ref());
    InvalidField::keep(&mut refused, password)?;
    let first_name = InvalidField::keep(&mut refused, line(&new.first_name, "/firstName"))?;
    let last_name = InvalidField::keep(&mut refused, line(&new.last_name, "/lastName"))?;
    let store_name = new.store_name.as_deref().map(|name| line(name, "/storeName")).transpose();
    let store_name = InvalidField::keep(&mut refused, store_name)?;
    let (Some(email), Some(first_name), Some(last_name), Some(store_name), true) =
        (email, first_name, last_name, store_name, refused.is_empty())
    else {
        return Err(IdentityError::InvalidFields(refused));
    };
    let password_hash = cx.passwords.hash(new.password).await?;

    let now = cx.clock.now();
    let user = User { id: UserId::new(now), email: email.0, first_name, last_name, platform_role: None };
    let organization = Membership {
        id: OrganizationId::new(now),
        name: store_name.clone().unwrap_or_else(|| format!("{} {}", user.first_name, user.last_name)),
        role: MemberRole::Owner,
    };
    let mut tx = cx.master.begin().await?;
    db::user_insert(&mut tx, &user, &password_hash, now).await?;
    db::organization_insert(&mut tx, organization.id, &organization.name, now).await?;
    db::member_insert(&mut tx, organization.id, user.id, MemberRole::Owner, now).await?;
    let actor = Actor::User(user.id);
    audit::record(
        &mut tx,
        now,
        actor,
        "user_register",
        audit::Subject::organization(organization.id),
        serde_json::json!({}),
    )
    .await?;
    let store = match store_name {
        Some(name) => {
            let new = NewStore { name, slug: None, organization_id: organization.id };
            Some(stores::create_in(cx, &mut tx, actor, user.id, new).await?)
        }
        None => None,
    };
    let tokens = open_session(cx, &mut tx, user.id, None).await?;
    tx.commit().await?;
    Ok(Registered { user, organization, store, tokens })
}

/// What signing in gives.
pub struct LoggedIn {
    pub user: User,
    pub organizations: Vec<Membership>,
    pub tokens: Tokens,
}

/// Checks a password and opens a session. An unknown address costs as much time as a wrong password and answers the same.
pub async fn login(
    cx: &Cx,
    email: &str,
    password: SecretString,
    store: Option<StoreId>,
) -> Result<LoggedIn, IdentityError> {
    let known = match Email::parse(email) {
        Ok(email) => db::user_with_password(&mut *cx.master.acquire().await?, email.as_str()).await?,
        Err(_) => None,
    };
    let (user, hash) = known.map_or((None, None), |(user, hash)| (Some(user), Some(hash)));
    let is_right = cx.passwords.verify(password, hash).await?;
    let Some(user) = user.filter(|_| is_right) else { return Err(IdentityError::InvalidCredentials) };
    let mut tx = cx.master.begin().await?;
    if let Some(store) = store
        && stores::db::store_for_member(&mut tx, store, user.id).await?.is_none()
    {
        return Err(IdentityError::StoreNotFound);
    }
    let organizations = db::memberships(&mut tx, user.id).await?;
    let tokens = open_session(cx, &mut tx, user.id, store).await?;
    tx.commit().await?;
    Ok(LoggedIn { user, organizations, tokens })
}

/// Trades a refresh token for a new pair. A token that was used before revokes its whole family.
pub async fn refresh(cx: &Cx, token: &str) -> Result<Tokens, IdentityError> {
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    let Some(found) = db::refresh_token_lock(&mut tx, &hash_token(token)).await? else {
        return Err(IdentityError::InvalidRefreshToken);
    };
    if found.is_revoked || !found.is_active || found.expires_at <= now || found.session_expires_at <= now {
        return Err(IdentityError::InvalidRefreshToken);
    }
    if found.used_at.is_some() {
        db::session_revoke(&mut tx, found.session_id, "reuse", now).await?;
        let data = serde_json::json!({ "sessionId": found.session_id });
        audit::record(
            &mut tx,
            now,
            Actor::User(found.user_id),
            "session_revoke_reuse",
            audit::Subject::default(),
            data,
        )
        .await?;
        tx.commit().await?;
        tracing::warn!(session.id = %found.session_id, "a refresh token was used twice: revoked session {}", found.session_id);
        return Err(IdentityError::RefreshTokenReused);
    }
    db::refresh_token_use(&mut tx, &hash_token(token), now).await?;
    let tokens = issue(cx, &mut tx, found.user_id, found.session_id, found.store_id).await?;
    tx.commit().await?;
    Ok(tokens)
}

/// Ends the session that the access token belongs to.
pub async fn logout(cx: &Cx, by: &Principal) -> Result<(), IdentityError> {
    db::session_revoke(&mut *cx.master.acquire().await?, by.session_id, "logout", cx.clock.now()).await?;
    Ok(())
}

/// The organizations of a person, oldest first. With a token that is limited to one store it is that store's alone.
pub async fn memberships(cx: &Cx, by: &Principal) -> Result<Vec<Membership>, IdentityError> {
    let mut connection = cx.master.acquire().await?;
    let mut memberships = db::memberships(&mut connection, by.user.id).await?;
    if let Some(store) = by.token_store {
        let access = stores::db::store_for_member(&mut connection, store, by.user.id).await?;
        memberships.retain(|known| access.as_ref().is_some_and(|access| access.store.organization_id == known.id));
    }
    Ok(memberships)
}

/// The organization that somebody manages: 404 for those who are not of it, 403 for its staff.
pub async fn managed(cx: &OpsCx, by: &Principal, id: OrganizationId) -> Result<Membership, IdentityError> {
    let found = db::membership_find(&mut *cx.master.acquire().await?, id, by.user.id).await?;
    let membership = found.ok_or(IdentityError::OrganizationNotFound)?;
    if membership.role.is_manager() { Ok(membership) } else { Err(IdentityError::NotManager) }
}

/// A page of an organization's people, in the order in which they registered, and the cursor of the next.
pub async fn members(
    cx: &OpsCx,
    organization: OrganizationId,
    cursor: Option<&str>,
    limit: Option<u8>,
) -> Result<(Vec<Member>, Option<String>), IdentityError> {
    let window = Window::read(&["members", &organization.to_string()], cursor, limit)?;
    let mut connection = cx.master.acquire().await?;
    let found = db::members(&mut connection, organization, window.after, window.rows()).await?;
    Ok(window.page(found, |member: &Member| member.id))
}

/// Gives a registered person the platform role. The first admin can only be made from the machine itself.
pub async fn admin_grant(cx: &OpsCx, actor: Actor, email: &str) -> Result<User, IdentityError> {
    let email = Email::parse(email)?;
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    let user = db::user_set_platform_role(&mut tx, email.as_str(), Some("admin"), now).await?;
    let user = user.ok_or(IdentityError::UserNotFound)?;
    let data = serde_json::json!({ "userId": user.id });
    audit::record(&mut tx, now, actor, "admin_grant", audit::Subject::default(), data).await?;
    tx.commit().await?;
    Ok(user)
}

/// Takes the platform role from a person; the last one who has it keeps it.
pub async fn admin_revoke(cx: &OpsCx, actor: Actor, email: &str) -> Result<User, IdentityError> {
    let email = Email::parse(email)?;
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    // Locked, so that the last two cannot revoke one another.
    let admins = db::platform_admins_lock(&mut tx).await?;
    let user = db::user_set_platform_role(&mut tx, email.as_str(), None, now).await?;
    let user = user.ok_or(IdentityError::UserNotFound)?;
    if admins.contains(&user.id) && admins.len() == 1 {
        return Err(IdentityError::LastAdmin);
    }
    let data = serde_json::json!({ "userId": user.id });
    audit::record(&mut tx, now, actor, "admin_revoke", audit::Subject::default(), data).await?;
    tx.commit().await?;
    Ok(user)
}

async fn open_session(
    cx: &Cx,
    tx: &mut PgConnection,
    user: UserId,
    store: Option<StoreId>,
) -> Result<Tokens, IdentityError> {
    let now = cx.clock.now();
    let session = SessionId::new(now);
    db::session_insert(tx, session, user, store, now, now + lifetime(cx.config.refresh_token_ttl)).await?;
    issue(cx, tx, user, session, store).await
}

/// A new access token and the next refresh token of the family; the session lives on by one refresh lifetime.
async fn issue(
    cx: &Cx,
    tx: &mut PgConnection,
    user: UserId,
    session: SessionId,
    store: Option<StoreId>,
) -> Result<Tokens, IdentityError> {
    let now = cx.clock.now();
    let refresh = kernel::random::token();
    let expires_at = now + lifetime(cx.config.refresh_token_ttl);
    db::refresh_token_insert(tx, &hash_token(&refresh), session, now, expires_at).await?;
    db::session_extend(tx, session, expires_at).await?;
    let access = cx.signer.sign(&tokens::Subject { user, session, store }, now);
    Ok(Tokens { access, refresh: refresh.into(), expires_in: cx.config.access_token_ttl })
}

fn lifetime(of: std::time::Duration) -> Duration {
    Duration::from_std(of).unwrap_or(Duration::days(30))
}

fn hash_token(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

impl From<IdentityError> for Problem {
    fn from(error: IdentityError) -> Self {
        use axum::http::StatusCode as S;
        match error {
            IdentityError::EmailTaken => {
                Self::new(S::CONFLICT, "email-taken", "The e-mail address is already registered")
                    .detail("Log in instead, or register another address.")
                    .field("/email", "taken", "is already registered")
            }
            IdentityError::InvalidCredentials => {
                Self::new(S::UNAUTHORIZED, "invalid-credentials", "The e-mail address or the password is wrong")
            }
            IdentityError::InvalidRefreshToken => {
                Self::new(S::UNAUTHORIZED, "invalid-refresh-token", "The refresh token is not valid")
                    .detail("Log in again.")
            }
            IdentityError::RefreshTokenReused => {
                Self::new(S::UNAUTHORIZED, "refresh-token-reused", "The refresh token was used before")
                    .detail("The session was ended, because a refresh token is good for one use. Log in again.")
            }
            IdentityError::Busy => Self::new(S::SERVICE_UNAVAILABLE, "busy", "Too many sign-ins at this moment")
                .retry_after(std::time::Duration::from_secs(1)),
            IdentityError::Invalid { pointer, code, detail } => Self::invalid().field(pointer, code, detail),
            IdentityError::InvalidFields(fields) => fields
                .into_iter()
                .fold(Self::invalid(), |problem, field| problem.field(field.pointer, field.code, field.detail)),
            error @ IdentityError::LastAdmin => {
                Self::new(S::CONFLICT, "last-admin", "The last admin keeps the platform role")
                    .detail(format!("{error}."))
            }
            IdentityError::UserNotFound | IdentityError::StoreNotFound | IdentityError::OrganizationNotFound => {
                Self::not_found()
            }
            IdentityError::NotManager => Self::new(S::FORBIDDEN, "forbidden", "Your role does not allow this")
                .detail("Ask an owner or admin of the organization."),
            IdentityError::Paging(error) => error.into(),
            IdentityError::Store(error) => error.into(),
            error @ (IdentityError::Hash | IdentityError::Db(_)) => crate::http::errors::unexpected(&error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Email;

    #[test]
    fn addresses_meet_in_one_form_and_nonsense_is_refused() {
        assert_eq!(Email::parse(" Ada@Example.COM ").expect("valid").as_str(), "ada@example.com");
        for given in [
            "",
            "ada",
            "@x.de",
            "a b@x.de",
            "a@b@",
            "ada@-x",
            "a..b@x.de",
            "ada@127.0.0.1",
            "ada@x.de\r\nBcc: b@x.de",
            &format!("{}@x.de", "a".repeat(65)),
        ] {
            assert!(Email::parse(given).is_err(), "{given:?}");
        }
    }
}
