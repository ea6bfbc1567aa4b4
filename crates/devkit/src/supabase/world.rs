//! What it knows.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

/// What a real code, and a real access token, live for.
const CODE_LIFETIME: Duration = Duration::from_secs(600);
pub(super) const ACCESS_LIFETIME: Duration = Duration::from_secs(3600);

/// What goes wrong with one call.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It answers with this status, and does nothing.
    Status(u16),
    /// There were too many calls; they are let in again after so many seconds.
    RateLimited(u32),
    /// It never answers, and does nothing.
    Hang,
    /// It does what it is asked for, and the answer breaks off.
    LoseAnswer,
    /// It answers with this body, and does nothing.
    Answer(u16, serde_json::Value),
}

/// A project to be made.
#[derive(Debug, Clone)]
pub struct NewProject {
    /// The slug of its organization.
    pub organization: String,
    /// What its owner calls it.
    pub name: String,
    /// As the API says it, such as `ACTIVE_HEALTHY`.
    pub status: String,
    /// Its own host, as it is said.
    pub host: String,
    /// Where its pooler is, as it is said.
    pub pooler_host: String,
    /// How its administrator reaches the database behind it.
    pub database_url: String,
}

pub(super) struct Project {
    pub(super) reference: String,
    pub(super) new: NewProject,
    pub(super) status: String,
}

struct Code {
    grant: usize,
    challenge: String,
    redirect: String,
    expires: Duration,
    is_used: bool,
}

struct Refresh {
    grant: usize,
    is_used: bool,
}

pub(super) struct World {
    started: Instant,
    pub(super) ahead: Duration,
    pub(super) organizations: Vec<(String, String)>,
    pub(super) projects: Vec<Project>,
    /// Consents, by number: whether they are good.
    pub(super) grants: Vec<bool>,
    codes: HashMap<String, Code>,
    pub(super) access: HashMap<String, (usize, Duration)>,
    refresh: HashMap<String, Refresh>,
    pub(super) given: Vec<String>,
    /// What codes were exchanged with.
    pub(super) verifiers: Vec<String>,
    pub(super) faults: Vec<(String, Fault)>,
    pub(super) calls: Vec<String>,
    pub(super) queries: Vec<String>,
    pub(super) sessions: (usize, usize),
    drawn: u64,
}

impl Default for World {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            ahead: Duration::ZERO,
            organizations: Vec::new(),
            projects: Vec::new(),
            grants: Vec::new(),
            codes: HashMap::new(),
            access: HashMap::new(),
            refresh: HashMap::new(),
            given: Vec::new(),
            verifiers: Vec::new(),
            faults: Vec::new(),
            calls: Vec::new(),
            queries: Vec::new(),
            sessions: (0, 0),
            drawn: 0,
        }
    }
}

/// Access and refresh token.
pub(super) struct Given {
    pub(super) access: String,
    pub(super) refresh: String,
}

impl World {
    fn now(&self) -> Duration {
        self.started.elapsed() + self.ahead
    }

    /// A text that is no other one; no secret needs to be kept here.
    fn draw(&mut self, kind: &str) -> String {
        self.drawn += 1;
        let noise = Sha256::digest(format!("{kind} {} {:?}", self.drawn, self.started));
        let made = format!("{kind}_{}", hex::encode(&noise[..20]));
        self.given.push(made.clone());
        made
    }

    pub(super) fn add_project(&mut self, new: NewProject) -> String {
        // Twenty letters, as the real ones.
        let noise = Sha256::digest(format!("{} {:?}", self.projects.len(), self.started));
        let reference: String = noise.iter().take(20).map(|byte| char::from(b'a' + byte % 26)).collect();
        let status = new.status.clone();
        self.projects.push(Project { reference: reference.clone(), new, status });
        reference
    }

    pub(super) fn project_mut(&mut self, reference: &str) -> Option<&mut Project> {
        self.projects.iter_mut().find(|project| project.reference == reference)
    }

    /// Somebody has consented: the code.
    pub(super) fn consent(&mut self, challenge: &str, redirect: &str) -> String {
        self.grants.push(true);
        let code = self.draw("code");
        let made = Code {
            grant: self.grants.len() - 1,
            challenge: challenge.to_owned(),
            redirect: redirect.to_owned(),
            expires: self.now() + CODE_LIFETIME,
            is_used: false,
        };
        self.codes.insert(code.clone(), made);
        code
    }

    /// Exchanges a code: once, in time, by whoever knows what its challenge was made of.
    pub(super) fn exchange(&mut self, code: &str, verifier: &str, redirect: &str) -> Option<Given> {
        let now = self.now();
        let known = self.codes.get_mut(code)?;
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(verifier));
        if known.is_used || known.expires <= now || known.challenge != challenge || known.redirect != redirect {
            return None;
        }
        known.is_used = true;
        let grant = known.grant;
        self.give(grant)
    }

    /// Refreshes: a token that comes a second time ends the consent.
    pub(super) fn refresh(&mut self, token: &str) -> Option<Given> {
        let known = self.refresh.get_mut(token)?;
        let (grant, is_again) = (known.grant, known.is_used);
        known.is_used = true;
        if is_again {
            self.grants[grant] = false;
        }
        self.give(grant)
    }

    fn give(&mut self, grant: usize) -> Option<Given> {
        if !self.grants[grant] {
            return None;
        }
        let given = Given { access: self.draw("sbp_oauth"), refresh: self.draw("refresh") };
        self.access.insert(given.access.clone(), (grant, self.now() + ACCESS_LIFETIME));
        self.refresh.insert(given.refresh.clone(), Refresh { grant, is_used: false });
        Some(given)
    }

    pub(super) fn revoke(&mut self, token: &str) -> bool {
        let Some(known) = self.refresh.get(token) else { return false };
        std::mem::replace(&mut self.grants[known.grant], false)
    }

    pub(super) fn revoke_all(&mut self) {
        self.grants.fill(false);
    }

    pub(super) fn lets_in(&self, token: &str) -> bool {
        self.access.get(token).is_some_and(|(grant, expires)| self.grants[*grant] && *expires > self.now())
    }

    /// The fault of a call, if it has one.
    pub(super) fn fault(&mut self, path: &str) -> Option<Fault> {
        let place = self.faults.iter().position(|(part, _)| path.contains(part.as_str()))?;
        Some(self.faults.remove(place).1)
    }
}
