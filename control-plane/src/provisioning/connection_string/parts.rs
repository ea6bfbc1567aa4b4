//! What a string says, part by part, whatever its form.

use kernel::Engine;
use secrecy::{ExposeSecret as _, SecretString};
use tenancy::TlsMode;

use super::super::target::{TargetError, TargetFields, default_port, invalid};
use super::parameters::{Meaning, meaning_of};
use super::tls::{AskedTls, read_mode, read_switch};
use super::{AT, several_hosts, socket};

/// The schema that every store keeps to, and the one that strings name without a thought.
const SCHEMAS: [&str; 3] = ["tenantry", "public", "$user"];

/// The parts that are known so far. One that is said twice, and not alike, is not guessed.
pub(super) struct Parts {
    /// What the form or its scheme says.
    pub(super) engine: Option<Engine>,
    /// What speaks for one engine where nothing says it.
    pub(super) likely: Option<Engine>,
    /// What is said when no user is, where the form has it elsewhere.
    pub(super) without_user: Option<&'static str>,
    host: Option<String>,
    port: Option<u16>,
    username: Option<String>,
    password: Option<SecretString>,
    database: Option<String>,
    tls: AskedTls,
    refused: Vec<(Why, &'static str)>,
    has_unknown: bool,
}

/// Why a parameter is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Unsupported,
    File,
    Schema,
    ReadsOnly,
}

impl Parts {
    pub(super) fn new(tls: AskedTls) -> Self {
        Self {
            engine: None,
            likely: None,
            without_user: None,
            host: None,
            port: None,
            username: None,
            password: None,
            database: None,
            tls,
            refused: Vec::new(),
            has_unknown: false,
        }
    }

    /// Whether a parameter says what is said here already.
    pub(super) fn says(&self, name: &str, value: &str) -> bool {
        meaning_of(name).is_some_and(|(_, meaning)| self.is_said(meaning, value))
    }

    fn is_said(&self, meaning: Meaning, value: &str) -> bool {
        match meaning {
            Meaning::Host => self.host.as_ref().is_some_and(|host| host.eq_ignore_ascii_case(value)),
            Meaning::Port => read_port(value).is_ok_and(|port| self.port() == Some(port)),
            Meaning::User => self.username.as_deref() == Some(value),
            Meaning::Password => self.password() == value,
            Meaning::Database => self.database.as_deref() == Some(value),
            _ => false,
        }
    }

    /// The parts in which another connection is a different one.
    pub(super) fn differences(&self, other: &Self) -> Vec<&'static str> {
        let [host, others_host] = [self, other].map(|parts| parts.host.as_ref().map(|host| host.to_ascii_lowercase()));
        let parts = [
            ("engine", self.engine != other.engine),
            ("host", host != others_host),
            ("port", self.port() != other.port()),
            ("user", self.username != other.username),
            ("password", self.password() != other.password()),
            ("database", self.database != other.database),
        ];
        parts.into_iter().filter(|(_, is_different)| *is_different).map(|(name, _)| name).collect()
    }

    fn password(&self) -> &str {
        self.password.as_ref().map_or("", |password| password.expose_secret())
    }

    /// Where it listens; a string of a known engine says that without a word.
    fn port(&self) -> Option<u16> {
        self.port.or_else(|| self.engine.map(default_port))
    }

    /// Holds fast what a string with a host says of its port without a word.
    pub(super) fn settle_port(&mut self) {
        if self.host.is_some() {
            self.port = self.port();
        }
    }

    /// Takes a parameter by its name. One that is refused is kept, so that all of them are told at once.
    ///
    /// # Errors
    /// When its value is wrong, or was given before.
    pub(super) fn take(&mut self, name: &str, value: &str) -> Result<(), TargetError> {
        let Some((name, meaning)) = meaning_of(name) else {
            self.has_unknown = true;
            return Ok(());
        };
        let word = value.trim().to_ascii_lowercase().replace(['-', '_', ' '], "");
        let is_off = matches!(word.as_str(), "" | "false" | "0" | "off" | "no");
        let is_on = matches!(word.as_str(), "true" | "1" | "on" | "yes");
        match meaning {
            Meaning::Host | Meaning::Port | Meaning::User | Meaning::Password | Meaning::Database => {
                return self.take_part(name, meaning, value);
            }
            Meaning::Socket if value.starts_with(['/', '@']) => return Err(socket()),
            Meaning::Socket => self.refuse(Why::Unsupported, name),
            Meaning::Protocol if matches!(word.as_str(), "" | "tcp" | "tcpip" | "socket" | "sockets") => {}
            Meaning::Protocol if matches!(word.as_str(), "unix" | "pipe" | "memory") => return Err(socket()),
            Meaning::Protocol => self.refuse(Why::Unsupported, name),
            Meaning::Mode => AskedTls::say(&mut self.tls.mode, read_mode(value)?)?,
            Meaning::Switch => AskedTls::say(&mut self.tls.switch, read_switch(value, name)?)?,
            Meaning::SwitchOn | Meaning::ChecksHost if is_off => {}
            Meaning::SwitchOn => AskedTls::say(&mut self.tls.switch, TlsMode::VerifyFull)?,
            Meaning::ChecksHost => self.tls.check_host()?,
            Meaning::Binding if word == "require" => self.tls.check_host()?,
            Meaning::Checks | Meaning::Trusts if word.is_empty() => {}
            Meaning::Checks => AskedTls::say(&mut self.tls.is_checked, !is_off && word != "acceptinvalidcerts")?,
            // Only what clearly says so makes a connection less safe.
            Meaning::Trusts => AskedTls::say(&mut self.tls.is_checked, !is_on)?,
            Meaning::SwitchOff if is_on => AskedTls::say(&mut self.tls.switch, TlsMode::Disable)?,
            Meaning::Factory if word.ends_with("nonvalidatingfactory") => {
                AskedTls::say(&mut self.tls.is_checked, false)?;
            }
            Meaning::Factory if word.ends_with("libpqfactory") || word.ends_with("defaultjavasslfactory") => {}
            Meaning::Factory => self.refuse(Why::Unsupported, name),
            // As libpq has it, with every name checked: anybody has a certificate that a public authority signed.
            Meaning::Authorities if word == "system" => self.tls.check_host()?,
            Meaning::Authorities | Meaning::File if word.is_empty() => {}
            Meaning::Authorities | Meaning::File => self.refuse(Why::File, name),
            // Older ones than 1.2 are never spoken.
            Meaning::OldestTls if word.contains("1.3") && !word.contains("1.2") => self.refuse(Why::Unsupported, name),
            Meaning::Gss if word == "require" => self.refuse(Why::Unsupported, name),
            Meaning::Schema if !is_usual_schema(value) => self.refuse(Why::Schema, name),
            Meaning::Session => match word.as_str() {
                "" | "any" | "readwrite" | "primary" | "master" | "preferprimary" => {}
                _ => self.refuse(Why::ReadsOnly, name),
            },
            Meaning::ReadOnly if !is_off => self.refuse(Why::ReadsOnly, name),
            Meaning::Options if !value.trim().is_empty() && !is_neons(value) => self.refuse(Why::Unsupported, name),
            Meaning::Refused if !is_off => self.refuse(Why::Unsupported, name),
            Meaning::OldestTls
            | Meaning::Binding
            | Meaning::Gss
            | Meaning::Schema
            | Meaning::ReadOnly
            | Meaning::Options => {}
            Meaning::SwitchOff | Meaning::Refused | Meaning::Ignored => {}
        }
        Ok(())
    }

    /// Takes what is one of the five parts; an empty one says nothing, nor does one that is said again.
    pub(super) fn take_part(&mut self, name: &'static str, meaning: Meaning, value: &str) -> Result<(), TargetError> {
        if value.is_empty() || self.is_said(meaning, value) {
            return Ok(());
        }
        let is_new = match meaning {
            Meaning::Host if value.contains(',') => return Err(several_hosts()),
            Meaning::Host if value.starts_with(['/', '@']) => return Err(socket()),
            Meaning::Host => self.host.replace(value.to_owned()).is_none(),
            Meaning::Port if value.contains(',') => return Err(several_hosts()),
            Meaning::Port => self.port.replace(read_port(value)?).is_none(),
            Meaning::User => self.username.replace(value.to_owned()).is_none(),
            Meaning::Password => self.password.replace(value.to_owned().into()).is_none(),
            _ => self.database.replace(value.to_owned()).is_none(),
        };
        let twice = || invalid(AT, "parameter", format!("the {name} is given twice, and not alike; leave one out"));
        if is_new { Ok(()) } else { Err(twice()) }
    }

    fn refuse(&mut self, why: Why, name: &'static str) {
        if !self.refused.contains(&(why, name)) {
            self.refused.push((why, name));
        }
    }

    /// The fields of a connection.
    ///
    /// # Errors
    /// What was refused on the way, all at once; of what is no parameter `unknown` says how it is written. Or that nothing says the
    /// engine, or it is not the one that was said beside the string.
    pub(super) fn finish(self, engine: Option<Engine>, unknown: &str) -> Result<TargetFields, TargetError> {
        let whys = [Why::Unsupported, Why::File, Why::Schema, Why::ReadsOnly];
        let mut details: Vec<_> = whys.into_iter().filter_map(|why| self.told(why)).collect();
        if self.has_unknown {
            details.push(unknown.to_owned());
        }
        if !details.is_empty() {
            return Err(invalid(AT, "parameter", details.join("; ")));
        }
        let engine = match (engine, self.engine) {
            (Some(said), Some(spoken)) if said != spoken => {
                return Err(invalid("/engine", "contradiction", format!("the connection string is one of {spoken}")));
            }
            (said, spoken) => said.or(spoken).or_else(|| self.likely_engine()),
        };
        let engine = engine.ok_or_else(|| {
            invalid("/engine", "required", "the connection string does not say it; say postgresql or mysql beside it")
        })?;
        let Self { host, port, username, password, database, tls, without_user, .. } = self;
        let tls = tls.settle()?;
        if let Some(detail) = without_user.filter(|_| username.is_none()) {
            return Err(invalid(AT, "required", detail));
        }
        Ok(TargetFields { engine, host, port, username, password, database, tls, ca_pem: None })
    }

    /// Where a server listens says more than how a driver writes its words.
    fn likely_engine(&self) -> Option<Engine> {
        match self.port {
            Some(5432) => Some(Engine::Postgresql),
            Some(3306) => Some(Engine::Mysql),
            _ => self.likely,
        }
    }

    fn told(&self, why: Why) -> Option<String> {
        let names: Vec<_> = self.refused.iter().filter(|(other, _)| *other == why).map(|(_, name)| *name).collect();
        let (last, others) = names.split_last()?;
        let (parameters, it) = if others.is_empty() {
            (format!("the parameter {last}"), "it")
        } else {
            (format!("the parameters {} and {last}", others.join(", ")), "them")
        };
        let is_one = others.is_empty();
        Some(match why {
            Why::Unsupported => {
                format!("{parameters} {} not supported; leave {it} out", if is_one { "is" } else { "are" })
            }
            Why::File => format!(
                "{parameters} {}, which is not at hand here; leave {it} out, and give the certificate of the server's \
                 authority as caPem",
                if is_one { "leads to a file" } else { "lead to files" }
            ),
            Why::Schema => {
                format!("a store keeps to the schema tenantry, whatever else the database holds; remove {parameters}")
            }
            Why::ReadsOnly => format!(
                "a store has to write, and {parameters} {} for a server or session that only reads; name the primary and \
                 remove {it}",
                if is_one { "asks" } else { "ask" }
            ),
        })
    }
}

/// # Errors
/// Code `port` for a number that is no port's, `malformed` for what is no number.
pub(super) fn read_port(text: &str) -> Result<u16, TargetError> {
    let text = text.trim();
    match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => {
            Err(invalid(AT, "port", "the port must be 1 to 65535"))
        }
        _ => Err(invalid(AT, "malformed", "the port is no number")),
    }
}

fn is_usual_schema(value: &str) -> bool {
    let names = value.split(',').map(|name| name.trim().trim_matches(['"', '\'']));
    names.into_iter().all(|name| name.is_empty() || SCHEMAS.contains(&name))
}

/// Whether the options only name Neon's endpoint or project, for clients that do not tell the host's name when TLS begins. Ours does.
fn is_neons(options: &str) -> bool {
    let options = options.trim();
    let name = options.strip_prefix("endpoint=").or_else(|| options.strip_prefix("project="));
    name.is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)))
}
