//! Several lines of a settings file that make one connection: `spring.datasource.url=…` with its `username`, `DB_HOST=…` with what
//! stands around it, or what a panel lists as `host: …`.
//!
//! They are taken together when they can mean one thing only: one connection, and values that every such file reads alike.

use kernel::Engine;

use super::super::target::{TargetError, invalid};
use super::gap::placeholder;
use super::parameters::meaning_of;
use super::parts::Parts;
use super::scheme::{engine_named, engine_of};
use super::undress::unquoted;
use super::{AT, read_line};

/// Of a name that is none; other settings of the file are not looked at.
pub(super) const UNKNOWN: &str = "one of the settings is not known here; leave it out";

/// What names of a connection begin with, a `.` for each `_` and `.`; those of one group belong together. Settings of a file's other
/// matters, such as `server.port`, begin with something else.
const GROUPS: [(&str, Group); 12] = [
    ("spring.datasource.hikari.", Group::Spring),
    ("spring.datasource.", Group::Spring),
    ("quarkus.datasource.jdbc.", Group::Quarkus),
    ("quarkus.datasource.", Group::Quarkus),
    ("database.", Group::Database),
    ("db.", Group::Db),
    ("postgres.", Group::Postgres),
    ("postgresql.", Group::Postgres),
    ("pg", Group::Pg),
    ("mysql.", Group::Mysql),
    ("mariadb.", Group::Mysql),
    ("", Group::Bare),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Group {
    Spring,
    Quarkus,
    Database,
    Db,
    Postgres,
    Pg,
    Mysql,
    /// Of any other name, with a connection of its own.
    Other,
    Bare,
}

enum What {
    /// A connection of its own.
    Whole,
    Engine,
    Parameter(&'static str),
}

struct Setting {
    group: Group,
    what: What,
    value: String,
}

/// The lines that say something.
pub(super) fn lines_of(text: &str) -> Vec<&str> {
    let says_something =
        |line: &&str| !(line.is_empty() || line.starts_with(['#', '!']) || ["---", "{", "}"].contains(line));
    text.lines().map(str::trim).filter(says_something).collect()
}

pub(super) fn read_lines(lines: &[&str], parts: &mut Parts) -> Result<&'static str, TargetError> {
    let settings = lines.iter().map(|line| read_setting(line)).collect::<Result<Vec<_>, _>>()?;
    let settings: Vec<_> = settings.into_iter().flatten().collect();
    let prefixed = settings.iter().map(|setting| setting.group).find(|group| *group != Group::Bare);
    // What has no prefix may be a matter of the program's that reads the file.
    let chosen = prefixed.unwrap_or(Group::Bare);
    let is_one = settings.iter().all(|setting| [chosen, Group::Bare].contains(&setting.group));
    let (whole, single): (Vec<_>, Vec<_>) = settings
        .into_iter()
        .filter(|setting| setting.group == chosen)
        .partition(|setting| matches!(setting.what, What::Whole));
    if whole.is_empty() && single.is_empty() {
        return Err(several_lines("is several lines of a file, of which none is known as part of a connection"));
    }
    if !is_one || whole.len() > 1 {
        return Err(several_lines("is several lines that hold more than one connection; give one of them"));
    }
    let mut unknown = UNKNOWN;
    if let [Setting { value, .. }] = whole.as_slice() {
        unknown = read_line(value, parts)?;
    }
    for Setting { what, value, .. } in single {
        match what {
            What::Parameter(name) => parts.take(name, &value)?,
            What::Engine => parts.engine = parts.engine.or_else(|| engine_named(&value.to_ascii_lowercase())),
            What::Whole => {}
        }
    }
    parts.likely = parts.likely.or(match chosen {
        Group::Postgres | Group::Pg => Some(Engine::Postgresql),
        Group::Mysql => Some(Engine::Mysql),
        _ => None,
    });
    Ok(unknown)
}

/// Nothing of a line that is none of a connection's.
fn read_setting(line: &str) -> Result<Option<Setting>, TargetError> {
    let is_no_setting =
        || invalid(AT, "malformed", "must be one line, or the lines of a settings file that name host, user and so on");
    let line = line.strip_prefix("export ").unwrap_or(line);
    let at = line.find(['=', ':']).ok_or_else(is_no_setting)?;
    let (name, value) = (line[..at].trim(), &line[at + 1..]);
    let is_colon = line[at..].starts_with(':');
    let bare_name = unquoted(name);
    let is_name =
        !bare_name.is_empty() && bare_name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    // A scheme is followed by something else.
    if !is_name || (is_colon && !(value.is_empty() || value.starts_with([' ', '\t', '"', '\'']))) {
        return Err(is_no_setting());
    }
    let value = value.trim();
    let Some((group, what)) = meant(bare_name).or_else(|| is_url(value).then_some((Group::Other, What::Whole))) else {
        return Ok(None);
    };
    // In JSON a comma follows.
    let value = if bare_name.len() < name.len() { value.trim_end_matches(',').trim_end() } else { value };
    let part = match what {
        What::Whole => "connection string",
        What::Engine => "engine",
        What::Parameter(name) => name,
    };
    let is_java = !is_colon && bare_name.contains('.');
    Ok(Some(Setting { group, value: plain(value, is_java, part)?, what }))
}

fn meant(name: &str) -> Option<(Group, What)> {
    let name = name.to_ascii_lowercase().replace('_', ".").replace('-', "");
    GROUPS.into_iter().find_map(|(prefix, group)| {
        let rest = name.strip_prefix(prefix)?;
        let what = match rest {
            "url" | "uri" | "dsn" | "jdbcurl" | "connectionstring" => What::Whole,
            "connection" | "engine" | "adapter" | "dialect" | "client" | "driver" => What::Engine,
            "name" | "db" if group != Group::Bare => What::Parameter("database"),
            _ => What::Parameter(meaning_of(&rest.replace('.', "_")).map(|(name, _)| name)?),
        };
        Some((group, what))
    })
}

/// Whether it is a database's, whatever its name.
fn is_url(value: &str) -> bool {
    let scheme = unquoted(value).split_once("://").map_or("", |(scheme, _)| scheme);
    engine_of(scheme.trim_start_matches(['"', '\'', '`']).trim_start_matches("jdbc:")).is_ok()
}

/// A value without what a file puts around it. What is read in one way here and in another one there is not guessed.
fn plain(value: &str, is_java: bool, part: &str) -> Result<String, TargetError> {
    let inner = unquoted(value);
    let is_quoted = inner.len() < value.len();
    if value.contains("${") || value.contains("{{") {
        return Err(placeholder(part));
    }
    if is_java && value.contains('\\') {
        return unescaped(value).ok_or_else(|| ambiguous(part));
    }
    let is_odd = |text: &str| text.contains(['\\', '"', '\'', '`']);
    let is_ambiguous = if is_java {
        is_quoted
    } else if is_quoted {
        is_odd(inner)
    } else {
        is_odd(value) || value.contains(" #")
    };
    if is_ambiguous { Err(ambiguous(part)) } else { Ok(inner.to_owned()) }
}

/// As Java reads its properties.
fn unescaped(value: &str) -> Option<String> {
    let mut text = String::new();
    let mut letters = value.chars();
    while let Some(letter) = letters.next() {
        text.push(match letter {
            '\\' => match letters.next()? {
                't' | 'n' | 'r' | 'f' => return None,
                'u' => {
                    let code: String = letters.by_ref().take(4).collect();
                    char::from_u32(u32::from_str_radix(&code, 16).ok()?)?
                }
                letter => letter,
            },
            letter => letter,
        });
    }
    Some(text)
}

fn ambiguous(part: &str) -> TargetError {
    several_lines(&format!(
        "is several lines of a file, of which the {part} has a quote, a backslash or a # that such files read in different ways"
    ))
}

fn several_lines(what: &str) -> TargetError {
    let detail = format!("{what}; give host, port, user, password and database one by one");
    invalid(AT, "several-lines", detail)
}
