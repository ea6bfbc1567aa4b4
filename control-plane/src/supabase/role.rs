//! What is asked of a project's database, through the management API: a login of our own and its schema, and nothing else.
//!
//! - The login owns the schema `tenantry`, which bears the mark of its store, and has no right in the rest of the database but to enter it. The
//!   roles of Supabase's Data API have none in our schema.
//! - The password is made here, and only its verifier is sent.
//! - Asking again gives the login its password again and changes nothing else. A schema of our name that is not this store's, or
//!   belongs to another login, is refused; the statement that makes it looks again for itself.
//! - A login is dropped only when nothing is left that it owns but its empty schema. With data in it, it can log in no more.

use kernel::ident::quote_literal;
use kernel::{Ident, StoreId};
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::Value;

use super::client::ApiError;
use crate::provisioning;

/// Held by a statement that makes or drops a login, until it ends: two at once would collide in the catalog.
const ONE_AT_A_TIME: i64 = 0x7375_7061_6261_7365;

/// The login of a store: the same in every project.
pub fn name(store: StoreId) -> Ident {
    let managed = provisioning::managed_name(store);
    let id = managed.as_str().trim_start_matches("store_");
    Ident::new(format!("tenantry_{id}")).expect("an id is letters and digits")
}

/// What is there of ours.
#[derive(Debug, Deserialize)]
pub struct Found {
    pub database: String,
    has_schema: bool,
    mark: Option<String>,
    owner: Option<String>,
    has_role: bool,
}

/// Whether a store may have the schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Free,
    /// It is this store's, and our login owns it.
    Ours,
    /// It is this store's, and another login owns it.
    OtherLogin,
    OtherStore,
    /// It is not ours at all.
    Foreign,
}

impl Found {
    pub fn place(&self, store: StoreId) -> Place {
        if !self.has_schema {
            return Place::Free;
        }
        let is_owner = self.owner.as_deref() == Some(name(store).as_str());
        match self.mark.as_deref() {
            Some(mark) if mark == tenant_schema::mark(store) && is_owner => Place::Ours,
            Some(mark) if mark == tenant_schema::mark(store) => Place::OtherLogin,
            Some(mark) if tenant_schema::is_mark(mark) => Place::OtherStore,
            _ => Place::Foreign,
        }
    }

    pub fn has_role(&self) -> bool {
        self.has_role
    }
}

/// Looks at what is there.
pub fn inspect(store: StoreId) -> String {
    let role = literal(name(store).as_str());
    format!(
        "select current_database()::text as database,
                to_regnamespace('tenantry') is not null as has_schema,
                obj_description(to_regnamespace('tenantry'), 'pg_namespace') as mark,
                (select pg_get_userbyid(nspowner)::text from pg_namespace where nspname = 'tenantry') as owner,
                exists (select from pg_roles where rolname = {role}) as has_role"
    )
}

/// The one row of [`inspect`].
///
/// # Errors
/// When it is another shape.
pub fn found(rows: Vec<Value>) -> Result<Found, ApiError> {
    let row = rows.into_iter().next().unwrap_or_default();
    serde_json::from_value(row)
        .map_err(|_| ApiError::Malformed { why: "it is not the row that was asked for".to_owned() })
}

/// Makes the login and its schema, or gives the login its password again. One statement: all of it, or nothing.
///
/// Nothing if the password has letters that no password of ours has.
pub fn make(store: StoreId, password: &SecretString) -> Option<String> {
    let (role, mark) = (name(store), literal(&tenant_schema::mark(store)));
    let bare = literal(role.as_str());
    let verifier = quote_literal(&provisioning::password_verifier(password)?)?;
    let (join, leave) = (join(&role), leave(&role));
    Some(format!(
        "do $tenantry$
         begin
             perform pg_advisory_xact_lock({ONE_AT_A_TIME});
             if exists (select from pg_roles where rolname = {bare}) then
                 alter role {role} with login password {verifier};
             else
                 create role {role} with login noinherit password {verifier};
             end if;
             if not has_database_privilege({bare}, current_database(), 'connect') then
                 execute format('grant connect on database %I to {role}', current_database());
             end if;
             if to_regnamespace('tenantry') is null then
                 {join}
                 create schema tenantry authorization {role};
                 comment on schema tenantry is {mark};
                 {leave}
             elsif not exists (
                 select from pg_namespace
                 where nspname = 'tenantry' and pg_get_userbyid(nspowner) = {bare}
                     and obj_description(oid, 'pg_namespace') = {mark}
             ) then
                 raise exception 'the schema tenantry is not this one''s';
             end if;
         end
         $tenantry$"
    ))
}

/// Drops the login and its empty schema; with data in the schema, keeps both and lets the login in no more.
pub fn unmake(store: StoreId) -> String {
    let (role, mark) = (name(store), literal(&tenant_schema::mark(store)));
    let bare = literal(role.as_str());
    let (join, leave) = (join(&role), leave(&role));
    format!(
        "do $tenantry$
         declare
             ours oid;
         begin
             perform pg_advisory_xact_lock({ONE_AT_A_TIME});
             ours := (select oid from pg_namespace where nspname = 'tenantry' and pg_get_userbyid(nspowner) = {bare}
                          and obj_description(oid, 'pg_namespace') = {mark});
             if not exists (select from pg_roles where rolname = {bare}) then
                 return;
             end if;
             if ours is not null
                 and not exists (select from pg_class where relnamespace = ours)
                 and not exists (select from pg_proc where pronamespace = ours)
             then
                 {join}
                 drop schema tenantry;
                 {leave}
             end if;
             if exists (select from pg_namespace where pg_get_userbyid(nspowner) = {bare}) then
                 alter role {role} with nologin password null;
             else
                 execute format('revoke connect on database %I from {role}', current_database());
                 drop role {role};
             end if;
         end
         $tenantry$"
    )
}

/// The administrator becomes the login for a moment. Since PostgreSQL 16 whoever makes a role has its rights only when asked for.
fn join(role: &Ident) -> String {
    format!(
        "if current_setting('server_version_num')::int4 >= 160000 then
             execute 'grant {role} to current_user with inherit true, set true';
         else
             grant {role} to current_user;
         end if;"
    )
}

fn leave(role: &Ident) -> String {
    format!("revoke {role} from current_user;")
}

fn literal(text: &str) -> String {
    quote_literal(text).expect("an id has no backslash")
}

#[cfg(test)]
mod tests {
    use super::{inspect, make, name, unmake};

    #[test]
    fn the_password_is_in_no_statement() {
        let store = "sto_01JD8Q6X5MFKV9T3R0WZ2H4C7N".parse().expect("an id");
        let made = make(store, &"a-password-of-ours".to_owned().into()).expect("letters of ours");
        assert!(made.contains("SCRAM-SHA-256$4096:") && !made.contains("a-password-of-ours"));
        // Nothing in it ends the quoting early.
        assert_eq!(made.matches("$tenantry$").count(), 2);
        assert_eq!(name(store).as_str(), "tenantry_01jd8q6x5mfkv9t3r0wz2h4c7n");
        assert!(inspect(store).contains(name(store).as_str()) && unmake(store).contains(name(store).as_str()));
    }
}
