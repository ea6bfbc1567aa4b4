//! The tables, on the terminal and in the file.

use std::path::Path;
use std::thread::available_parallelism;

use anyhow::Context as _;

use crate::figures::Spread;

/// Whatever follows this line in a part of the file was written by people and is kept.
const NOTES: &str = "## Notes\n";
/// What a part of the file begins with; other reports' parts are kept.
const PART: &str = "\n# ";

pub(crate) struct Report {
    title: &'static str,
    /// What wrote it, after `cargo xtask bench`.
    arguments: String,
    conditions: String,
    aims: Table,
    missed: Vec<String>,
    tables: Vec<Table>,
}

/// The machine that was measured, but for the database.
pub(crate) fn machine() -> String {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let system = release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map_or(std::env::consts::OS, |name| name.trim_matches('"'));
    let processors = available_parallelism().map_or(0, usize::from);
    format!("{processors} processors, shared by load, server and database; {system}")
}

impl Report {
    pub(crate) fn new(title: &'static str, arguments: String, conditions: String) -> Self {
        Self {
            title,
            arguments,
            conditions,
            aims: Table::new("Aims", &["what", "median (spread)", "aim", ""]),
            missed: Vec::new(),
            tables: Vec::new(),
        }
    }

    /// What else was so while it was measured.
    pub(crate) fn add_condition(&mut self, condition: &str) {
        self.conditions += "; ";
        self.conditions += condition;
    }

    /// An aim for a ratio.
    pub(crate) fn aim(&mut self, what: &str, ratio: Spread, aim: &str, is_met: bool) {
        self.aim_for(what, ratio, 2, aim, is_met);
    }

    /// An aim for a figure that is shown with so many decimals.
    pub(crate) fn aim_for(&mut self, what: &str, figure: Spread, decimals: usize, aim: &str, is_met: bool) {
        let verdict = if is_met { "met" } else { "missed" };
        self.aims.row([what.to_owned(), figure.show(decimals), aim.to_owned(), verdict.to_owned()]);
        if !is_met {
            self.missed.push(format!("Missed: {what}: {:.decimals$}, where the aim is {aim}.", figure.median));
        }
    }

    pub(crate) fn table(&mut self, table: Table) {
        self.tables.push(table);
    }

    pub(crate) fn text(&self) -> String {
        let mut parts = vec![format!("{}.", self.conditions), self.aims.text()];
        if !self.missed.is_empty() {
            parts.push(self.missed.join("\n\n"));
        }
        parts.extend(self.tables.iter().map(Table::text));
        parts.join("\n\n") + "\n"
    }

    /// Writes its part of the file anew, but for the notes.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let old = std::fs::read_to_string(path).unwrap_or_default();
        std::fs::write(path, self.placed(&old)).with_context(|| format!("writing {}", path.display()))
    }

    /// The file with this part in its place, or at the end.
    fn placed(&self, old: &str) -> String {
        let old = format!("\n{old}");
        let mut parts: Vec<&str> = old.split(PART).skip(1).map(str::trim_end).collect();
        let is_ours = |part: &&str| part.split_once('\n').map_or(*part, |(title, _)| title) == self.title;
        let at = parts.iter().position(is_ours).unwrap_or(parts.len());
        let notes = parts.get(at).and_then(|part| part.split_once(NOTES)).map_or("", |(_, notes)| notes);
        let part = format!(
            "{}\n\nWritten by `cargo xtask bench{}`; the notes at the end are not. README.md says how it measures.\n\n\
             {}\n{NOTES}{notes}",
            self.title,
            self.arguments,
            self.text(),
        );
        let part = part.trim_end();
        match parts.get_mut(at) {
            Some(old) => *old = part,
            None => parts.push(part),
        }
        let parts: Vec<String> = parts.iter().map(|part| format!("# {part}\n")).collect();
        parts.join("\n")
    }
}

/// A table, as Markdown that reads on a terminal.
pub(crate) struct Table {
    title: String,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(title: &str, head: &[&str]) -> Self {
        Self { title: title.to_owned(), rows: vec![head.iter().map(|&text| text.to_owned()).collect()] }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub(crate) fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |at: usize| self.rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|at| width(at).unwrap_or_default()).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width));
            format!("| {} |", cells.collect::<Vec<_>>().join(" | "))
        };
        let rule = widths.iter().map(|width| "-".repeat(width + 2)).collect::<Vec<_>>().join("|");
        let mut lines: Vec<String> = self.rows.iter().map(line).collect();
        lines.insert(1, format!("|{rule}|"));
        format!("## {}\n\n{}", self.title, lines.join("\n"))
    }
}

/// Tells the person at the terminal.
#[expect(clippy::print_stdout, reason = "the one site: the results are what the program is for")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}

/// Tells of what goes wrong, and, in the plain service, whoever started it.
#[expect(clippy::print_stderr, reason = "the one site: a program without a log of its own")]
pub(crate) fn complain(line: &str) {
    eprintln!("{line}");
}

#[cfg(test)]
mod tests {
    use super::Report;

    #[test]
    fn a_report_replaces_its_own_part_of_the_file_but_for_its_notes() {
        let report = |title, conditions: &str| Report::new(title, String::new(), conditions.to_owned());
        let first = report("One", "at first").placed("");
        let both = report("Two", "beside it").placed(&format!("{first}\nOf one.\n"));
        assert!(both.starts_with("# One\n"), "{both}");
        assert!(both.contains("## Notes\n\nOf one.\n\n# Two\n"), "{both}");
        let again = report("One", "at last").placed(&both);
        assert!(again.contains("at last") && !again.contains("at first"), "{again}");
        assert!(again.contains("## Notes\n\nOf one.\n\n# Two\n") && again.contains("beside it"), "{again}");
        assert_eq!(report("One", "at last").placed(&again), again, "the same twice");
    }
}
