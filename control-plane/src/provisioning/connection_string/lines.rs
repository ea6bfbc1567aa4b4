//! Several lines of a settings file that make one connection: `spring.datasource.url=…` with its `username`, `DB_HOST=…` with what
//! stands around it, a section of `.my.cnf`, Django's `DATABASES`, `define('DB_NAME', …)` of WordPress, or what a panel lists as
//! `host: …`.
//!
//! They are taken together when they can mean one thing only: one connection, and values that every such file reads alike. What is
//! said twice must be said alike.

use kernel::Engine;

use super::super::target::{TargetError, invalid};
use super::gap::placeholder;
use super::parameters::{Meaning, meaning_of};
use super::parts::Parts;
use super::scheme::{engine_named, engine_of, of_other};
use super::tls::AskedTls;
use super::undress::{curly, is_curly, unquoted, without_shell};
use super::{AT, read_line};

/// Of a name that is none; other settings of the file are not looked at.
pub(super) const UNKNOWN: &str = "one of the settings is not known here; leave it out";

/// What names of a connection begin with, a `.` for each `_` and `.`; those of one group belong together. Settings of a file's other
/// matters, such as `server.port`, begin with something else.
const GROUPS: [(&str, Group); 14] = [
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
    ("mysql", Group::Mysql),
    ("mariadb.", Group::Mysql),
    ("wordpress.db.", Group::Mysql),
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

impl Group {
    fn engine(self) -> Option<Engine> {
        match self {
            Self::Postgres | Self::Pg => Some(Engine::Postgresql),
            Self::Mysql => Some(Engine::Mysql),
            _ => None,
        }
    }
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
    /// Whether its name says that it leads past a pooler.
    is_direct: bool,
}

/// A line that gives a name a value.
#[derive(Clone, Copy)]
struct Line<'t> {
    name: &'t str,
    value: &'t str,
    /// Whether it may be one of Java's properties.
    is_java: bool,
}

/// What stands under a `[name]`.
struct Section<'t> {
    name: &'t str,
    lines: Vec<&'t str>,
}

impl Section<'_> {
    /// Whether it is what MySQL's own programs read when they connect.
    fn is_clients(&self) -> bool {
        ["client", "mysql"].iter().any(|known| self.name.eq_ignore_ascii_case(known))
    }

    fn names_place(&self) -> bool {
        self.lines.iter().any(|line| split(line).is_some_and(is_place))
    }

    fn engine(&self) -> Option<Engine> {
        let name = self.name.to_ascii_lowercase();
        let is_mysqls = ["client", "mysql", "mariadb"].iter().any(|start| name.starts_with(start));
        if is_mysqls { Some(Engine::Mysql) } else { engine_named(&name) }
    }
}

/// The lines that say something.
pub(super) fn lines_of(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).filter(|line| says_something(line)).collect()
}

fn says_something(line: &str) -> bool {
    let is_bracket = line.chars().all(|letter| "{}[](),;".contains(letter));
    !(is_bracket || line.starts_with(['#', '!']) || line == "---")
}

pub(super) fn read_lines(lines: &[&str], parts: &mut Parts) -> Result<&'static str, TargetError> {
    let (settings, likely) = settings_of(lines)?;
    let has_prefix = settings.iter().any(|setting| setting.group != Group::Bare);
    // What has no prefix may be a matter of the program's that reads the file.
    let (wholes, singles): (Vec<_>, Vec<_>) = settings
        .into_iter()
        .filter(|setting| !has_prefix || setting.group != Group::Bare)
        .partition(|setting| matches!(setting.what, What::Whole));
    let groups: Vec<_> = wholes.iter().chain(&singles).map(|setting| setting.group).collect();
    let Some(group) = groups.first().copied() else {
        return Err(several_lines("is several lines of a file, of which none is known as part of a connection; give"));
    };
    let (unknown, said) = if !wholes.is_empty() {
        read_wholes(&wholes, parts)?
    } else if groups.iter().all(|other| *other == group) {
        (UNKNOWN, Vec::new())
    } else {
        return Err(several_lines("is several lines that hold more than one connection; give one of them, or"));
    };
    for Setting { group, what, value, .. } in singles {
        if parts.engine.zip(group.engine()).is_some_and(|(engine, groups)| engine != groups) {
            return Err(several_connections("engine"));
        }
        match what {
            What::Parameter(name) => take_single(name, &value, &said, parts)?,
            What::Engine if parts.engine.is_none() => parts.engine = engine_said(&value)?,
            What::Engine | What::Whole => {}
        }
    }
    parts.likely = parts.likely.or(likely).or(group.engine());
    Ok(unknown)
}

/// Reads the one connection that all of these are, and answers with what each says. Where one leads past a pooler by its name, it is
/// the one: a pooler may hand each statement to another session.
fn read_wholes(wholes: &[Setting], parts: &mut Parts) -> Result<(&'static str, Vec<Parts>), TargetError> {
    let mut said = Vec::new();
    for whole in wholes {
        let mut its = Parts::new(AskedTls::default());
        read_line(&whole.value, &mut its)?;
        said.push(its);
    }
    let chosen = wholes.iter().position(|whole| whole.is_direct).unwrap_or(0);
    for (whole, its) in wholes.iter().zip(&said) {
        let is_pooled = wholes[chosen].is_direct && !whole.is_direct;
        let may_differ = |part: &str| is_pooled && ["host", "port", "user"].contains(&part);
        if let Some(part) = said[chosen].differences(its).into_iter().find(|part| !may_differ(part)) {
            return Err(several_connections(part));
        }
    }
    let unknown = read_line(&wholes[chosen].value, parts)?;
    parts.settle_port();
    Ok((unknown, said))
}

/// Takes what stands by itself, unless one of the whole connections says the same.
fn take_single(name: &str, value: &str, said: &[Parts], parts: &mut Parts) -> Result<(), TargetError> {
    if let Some((host, port)) = host_and_port(name, value) {
        take_single(name, host, said, parts)?;
        return take_single("port", port, said, parts);
    }
    if said.iter().any(|whole| whole.says(name, value)) {
        return Ok(());
    }
    parts.take(name, value)
}

/// A host with its port, as WordPress has it.
fn host_and_port<'v>(name: &str, value: &'v str) -> Option<(&'v str, &'v str)> {
    let (host, port) = value.split_once(':').filter(|_| is_host(name))?;
    let is_port = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    (is_port && !host.is_empty()).then_some((host, port))
}

fn is_host(name: &str) -> bool {
    meaning_of(name).is_some_and(|(_, meaning)| meaning == Meaning::Host)
}

/// The settings of a connection, and the engine that this kind of file speaks for.
fn settings_of(lines: &[&str]) -> Result<(Vec<Setting>, Option<Engine>), TargetError> {
    let constants: Vec<_> = lines.iter().filter_map(|line| constant(line)).collect();
    let is_sectioned = lines.iter().any(|line| section_name(line).is_some());
    let (found, likely): (Vec<_>, _) = if !constants.is_empty() {
        (constants, Some(Engine::Mysql))
    } else if is_sectioned {
        let (lines, likely) = lines_of_sections(lines)?;
        // Some settings there have no value.
        (lines.into_iter().filter_map(split).collect(), likely)
    } else {
        let found = lines.iter().map(|line| split(line).ok_or_else(no_setting)).collect::<Result<Vec<_>, _>>()?;
        (found, None)
    };
    let is_django = lines.iter().any(|line| line.contains("db.backends."));
    let settings = found.into_iter().map(|line| setting(line, is_django)).collect::<Result<Vec<_>, _>>()?;
    Ok((settings.into_iter().flatten().collect(), likely))
}

/// The lines of the one section that is a connection's. Of a file of MySQL's it is what clients read, whatever the server does.
fn lines_of_sections<'t>(lines: &[&'t str]) -> Result<(Vec<&'t str>, Option<Engine>), TargetError> {
    let mut sections = vec![Section { name: "", lines: Vec::new() }];
    for &line in lines {
        if let Some(name) = section_name(line) {
            sections.push(Section { name, lines: Vec::new() });
        } else if let Some(section) = sections.last_mut() {
            section.lines.push(line);
        }
    }
    let places: Vec<_> = sections.iter().filter(|section| section.names_place()).collect();
    let chosen: Vec<_> = if places.iter().any(|section| section.is_clients()) {
        sections.iter().filter(|section| section.is_clients()).collect()
    } else if places.is_empty() {
        sections.iter().collect()
    } else {
        places
    };
    if chosen.iter().filter(|section| section.names_place() && !section.is_clients()).count() > 1 {
        return Err(several_lines("is several sections of a file that name a host each; give one of them, or"));
    }
    let likely = chosen.iter().find_map(|section| section.engine());
    Ok((chosen.into_iter().flat_map(|section| section.lines.iter().copied()).collect(), likely))
}

fn section_name(line: &str) -> Option<&str> {
    let name = line.strip_prefix('[')?.strip_suffix(']')?.trim();
    is_name(name).then_some(name)
}

/// Whether it names where a connection leads.
fn is_place(line: Line<'_>) -> bool {
    match meant(line.name, false) {
        Some((_, What::Whole)) => true,
        Some((_, What::Parameter(name))) => is_host(name),
        _ => is_url(line.value),
    }
}

/// What `define('DB_NAME', 'shop');` of PHP says.
fn constant(line: &str) -> Option<Line<'_>> {
    let inner = line.strip_prefix("define")?.trim_start().strip_prefix('(')?;
    let (inner, _) = inner.rsplit_once(')')?;
    let (name, value) = inner.split_once(',')?;
    Some(Line { name: unquoted(name.trim()), value: value.trim(), is_java: false })
}

/// The name and the value of `name=value`, `name: value` or `"name": "value",`.
fn split(line: &str) -> Option<Line<'_>> {
    let line = without_shell(line.strip_prefix("- ").unwrap_or(line));
    let at = line.find(['=', ':'])?;
    let (written, value) = (line[..at].trim(), &line[at + 1..]);
    let is_colon = line[at..].starts_with(':');
    let name = unquoted(written);
    // A scheme is followed by something else.
    if !is_name(name) || (is_colon && !(value.is_empty() || value.starts_with([' ', '\t', '"', '\'']))) {
        return None;
    }
    let value = value.trim();
    // In JSON a comma follows.
    let value = if name.len() < written.len() { value.trim_end_matches(',').trim_end() } else { value };
    Some(Line { name, value, is_java: !is_colon && name.contains('.') })
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// Nothing of a line that is none of a connection's, or says nothing.
fn setting(line: Line<'_>, is_django: bool) -> Result<Option<Setting>, TargetError> {
    let Line { name, value, is_java } = line;
    let found = meant(name, is_django).or_else(|| is_url(value).then_some((Group::Other, What::Whole)));
    let Some((group, what)) = found.filter(|_| !["", "''", "\"\"", "{", "["].contains(&value)) else {
        return Ok(None);
    };
    let part = match what {
        What::Whole => "connection string",
        What::Engine => "engine",
        What::Parameter(name) => name,
    };
    let value = plain(value, is_java, part)?;
    let letters = name.to_ascii_lowercase().replace(['_', '.', '-'], "");
    let is_direct = ["nonpooling", "unpooled", "direct"].iter().any(|word| letters.contains(word));
    Ok(Some(Setting { group, what, value, is_direct }))
}

fn meant(name: &str, is_django: bool) -> Option<(Group, What)> {
    let name = name.to_ascii_lowercase().replace('_', ".").replace('-', "");
    GROUPS.into_iter().find_map(|(prefix, group)| {
        let rest = name.strip_prefix(prefix)?;
        let what = match rest {
            "url" | "uri" | "dsn" | "jdbcurl" | "connectionstring" => What::Whole,
            "connection" | "engine" | "adapter" | "dialect" | "client" | "driver" => What::Engine,
            "name" | "db" if group != Group::Bare || is_django => What::Parameter("database"),
            _ => What::Parameter(meaning_of(&rest.replace('.', "_")).map(|(name, _)| name)?),
        };
        Some((group, what))
    })
}

/// The engine that a setting says: `pgsql`, `mysql2`, or Django's `django.db.backends.mysql`.
fn engine_said(value: &str) -> Result<Option<Engine>, TargetError> {
    let value = value.to_ascii_lowercase();
    let Some(backend) = value.strip_prefix("django.") else { return Ok(engine_named(&value)) };
    let mut words = backend.split(['.', '_']);
    match words.clone().find_map(engine_named) {
        Some(engine) => Ok(Some(engine)),
        None => words.find_map(of_other).map_or(Ok(None), Err),
    }
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
    if is_curly(value) {
        return Err(curly());
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
        "is several lines of a file, of which the {part} has a quote, a backslash or a # that such files read in different ways; give"
    ))
}

fn several_connections(part: &str) -> TargetError {
    several_lines(&format!(
        "is several lines that hold more than one connection, which differ in the {part}; give one of them, or"
    ))
}

/// Tells what it is, and what to give instead: the parts.
fn several_lines(what: &str) -> TargetError {
    invalid(AT, "several-lines", format!("{what} host, port, user, password and database one by one"))
}

fn no_setting() -> TargetError {
    invalid(AT, "malformed", "must be one line, or the lines of a settings file that name host, user and so on")
}
