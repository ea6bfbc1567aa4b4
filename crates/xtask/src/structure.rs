//! The shape of the house, held by rules. Each rule is a function from what it looks at to what is wrong with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::run::say;
use crate::shown;
use crate::workspace::{Package, Workspace};

/// Which of our crates each of our crates may name. The order is the direction: a row names earlier rows only.
const MAY_DEPEND_ON: [(&str, &[&str]); 10] = [
    ("kernel", &[]),
    ("devkit", &[]),
    ("xtask", &[]),
    ("problem", &["kernel"]),
    ("vault", &["kernel"]),
    ("tenancy", &["kernel", "vault"]),
    ("tenant-schema", &["kernel", "vault", "tenancy"]),
    ("control-plane", &["kernel", "vault", "tenancy", "tenant-schema", "problem", "devkit"]),
    ("bench", &["kernel", "vault", "tenancy", "tenant-schema", "problem", "devkit", "control-plane"]),
    ("integration-tests", &["kernel", "vault", "tenancy", "tenant-schema", "problem", "devkit", "control-plane"]),
];

/// Everything that speaks HTTP; the rest can be used without it. In `devkit` it is what plays other people's services.
const MAY_USE_AXUM: [&str; 5] = ["problem", "devkit", "control-plane", "bench", "integration-tests"];

/// Where SQL stands beside `db.rs`: statements that name a database or a role, and those for servers of others, cannot be
/// checked at compile time.
const MAY_HOLD_SQL: [&str; 4] =
    ["doctor/mysql.rs", "doctor/postgres.rs", "provisioning/mysql.rs", "provisioning/postgres.rs"];

/// How a statement looks in Rust.
const SQL_MARKS: [&str; 5] = ["sqlx::query", "sqlx::raw_sql", "query!(", "query_as!(", "query_scalar!("];

/// Longer files are named, not refused.
const LONG_LINES: usize = 600;

/// Checks every rule and names everything that is wrong.
pub(crate) fn check(workspace: &Workspace) -> anyhow::Result<()> {
    let mut wrong = wrong_edges(&workspace.packages);
    wrong.extend(axum_in_the_wrong_place(&workspace.packages));
    for package in &workspace.packages {
        let manifest = read(&package.manifest)?;
        let name = shown(workspace, &package.manifest).to_string();
        wrong.extend(own_versions(&manifest).into_iter().map(|line| format!("{name}: {line}")));
    }
    wrong.extend(crates_without_readme(workspace)?);
    let mut long = Vec::new();
    let control_plane = workspace.root.join("control-plane/src");
    for file in workspace.packages.iter().filter_map(|package| package.manifest.parent()).flat_map(rust_files) {
        let text = read(&file)?;
        if let Ok(inner) = file.strip_prefix(&control_plane) {
            let lines = sql_in_the_wrong_place(inner, &text);
            wrong.extend(lines.into_iter().map(|line| format!("{}:{line}", shown(workspace, &file))));
        }
        let count = text.lines().count();
        if count > LONG_LINES {
            long.push(format!("warning: {} has {count} lines", shown(workspace, &file)));
        }
    }
    wrong.extend(edited_migrations(workspace)?);

    long.iter().for_each(|line| say(line));
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("the structure is broken:\n  {}", wrong.join("\n  "))
}

/// Dependencies point one way. Tests of any crate may use `devkit`.
fn wrong_edges(packages: &[Package]) -> Vec<String> {
    let is_ours = |name: &str| packages.iter().any(|package| package.name == name);
    let mut wrong = Vec::new();
    for package in packages {
        let Some((_, allowed)) = MAY_DEPEND_ON.iter().find(|(name, _)| *name == package.name) else {
            wrong.push(format!(
                "{}: a crate without a row in MAY_DEPEND_ON (crates/xtask/src/structure.rs)",
                package.name
            ));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|dependency| is_ours(&dependency.name)) {
            let is_devkit_for_tests = dependency.is_dev && dependency.name == "devkit";
            if !is_devkit_for_tests && !allowed.contains(&dependency.name.as_str()) {
                wrong.push(format!("{} must not depend on {}", package.name, dependency.name));
            }
        }
    }
    wrong
}

fn axum_in_the_wrong_place(packages: &[Package]) -> Vec<String> {
    packages
        .iter()
        .filter(|package| !MAY_USE_AXUM.contains(&package.name.as_str()))
        .flat_map(|package| package.dependencies.iter().map(move |dependency| (package, dependency)))
        // An example may show how a service uses the crate.
        .filter(|(_, dependency)| !dependency.is_dev)
        .filter(|(_, dependency)| dependency.name == "axum" || dependency.name.starts_with("axum-"))
        .map(|(package, dependency)| format!("{} must not use {}: it speaks no HTTP", package.name, dependency.name))
        .collect()
}

/// Dependency lines of a member's manifest that say anything about version or place.
fn own_versions(manifest: &str) -> Vec<String> {
    let mut in_dependencies = false;
    let mut wrong = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            in_dependencies = line.contains("dependencies");
            continue;
        }
        let Some((key, value)) = line.split_once('=').filter(|_| in_dependencies && !line.starts_with('#')) else {
            continue;
        };
        let (key, value) = (key.trim(), value.trim());
        let says =
            |word: &str| key == word || value.contains(&format!("{word} =")) || value.contains(&format!("{word}="));
        let is_table_row = ["features", "optional", "default-features", "workspace", "package"].contains(&key);
        let is_version = !is_table_row && value.starts_with(['"', '\'']);
        if is_version || ["version", "git", "path"].into_iter().any(says) {
            wrong.push(format!("`{line}`: versions stand in the root Cargo.toml only (`{key}.workspace = true`)"));
        }
    }
    wrong
}

fn crates_without_readme(workspace: &Workspace) -> anyhow::Result<Vec<String>> {
    let mut wrong = Vec::new();
    for entry in fs::read_dir(workspace.root.join("crates")).context("reading crates/")? {
        let dir = entry?.path();
        if dir.join("Cargo.toml").exists() && !dir.join("README.md").exists() {
            wrong.push(format!("{} has no README.md, which is its crate doc", shown(workspace, &dir)));
        }
    }
    wrong.sort();
    Ok(wrong)
}

/// Lines of a file below `control-plane/src` that hold SQL although the file may not.
fn sql_in_the_wrong_place(file: &Path, text: &str) -> Vec<String> {
    if file.file_name().is_some_and(|name| name == "db.rs")
        || MAY_HOLD_SQL.iter().any(|allowed| file == Path::new(allowed))
    {
        return Vec::new();
    }
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .filter(|(_, line)| SQL_MARKS.iter().any(|mark| line.contains(mark)))
        .map(|(index, line)| format!("{}: SQL stands in db.rs: `{}`", index + 1, line.trim()))
        .collect()
}

/// Migrations that are merged and not as they were. Without a merged state to compare with there is nothing to say.
fn edited_migrations(workspace: &Workspace) -> anyhow::Result<Vec<String>> {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).current_dir(&workspace.root).output().context("starting git")?;
        anyhow::Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned()))
    };
    let Some(merged) = git(&["rev-parse", "--verify", "--quiet", "origin/main^{commit}"])? else {
        return Ok(Vec::new());
    };
    let Some(base) = git(&["merge-base", "HEAD", &merged])? else { return Ok(Vec::new()) };
    let changes =
        git(&["diff", "--name-status", "--no-renames", &base, "--", "migrations-master", "migrations-tenant"])?;
    Ok(changed_migrations(&changes.context("git diff failed")?))
}

/// Of `git diff --name-status`: a new file is how a migration comes; everything else must not be.
fn changed_migrations(changes: &str) -> Vec<String> {
    changes
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .filter(|(status, file)| *status != "A" && file.ends_with(".sql"))
        .map(|(_, file)| format!("{file} is merged and must not be edited: add a new migration"))
        .collect()
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .flat_map(|entry| {
            let path = entry.path();
            if path.is_dir() && entry.file_name() != "target" {
                rust_files(&path)
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                vec![path]
            } else {
                Vec::new()
            }
        })
        .collect();
    files.sort();
    files
}

fn read(file: &Path) -> anyhow::Result<String> {
    fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Dependency;

    /// `name`, its dependencies, and those of its tests.
    fn package(name: &str, uses: &[&str], tests_use: &[&str]) -> Package {
        let dependency = |name: &&str, is_dev| Dependency { name: (*name).to_owned(), is_dev };
        let normal = uses.iter().map(|name| dependency(name, false));
        let dev = tests_use.iter().map(|name| dependency(name, true));
        Package { name: name.to_owned(), manifest: PathBuf::new(), dependencies: normal.chain(dev).collect() }
    }

    /// The house as DESIGN has it, with one package replaced.
    fn house(changed: Package) -> Vec<Package> {
        let mut packages: Vec<Package> =
            MAY_DEPEND_ON.iter().map(|(name, allowed)| package(name, allowed, &["devkit", "proptest"])).collect();
        packages.retain(|package| package.name != changed.name);
        packages.push(changed);
        packages
    }

    #[test]
    fn the_house_as_designed_stands() {
        assert!(wrong_edges(&house(package("kernel", &["serde", "uuid"], &[]))).is_empty());
    }

    #[test]
    fn the_table_itself_points_one_way() {
        for (row, (name, allowed)) in MAY_DEPEND_ON.iter().enumerate() {
            for dependency in *allowed {
                let earlier = MAY_DEPEND_ON[..row].iter().any(|(name, _)| name == dependency);
                assert!(earlier, "{name} names {dependency}, which stands after it");
            }
        }
    }

    #[test]
    fn a_dependency_against_the_direction_is_named() {
        for (from, to) in [
            ("kernel", "vault"),
            ("tenancy", "control-plane"),
            ("tenancy", "problem"),
            ("tenant-schema", "problem"),
            ("tenancy", "devkit"),
            ("control-plane", "bench"),
            ("integration-tests", "xtask"),
            ("bench", "integration-tests"),
            ("xtask", "devkit"),
            ("devkit", "kernel"),
        ] {
            let wrong = wrong_edges(&house(package(from, &[to], &[])));
            assert_eq!(wrong, [format!("{from} must not depend on {to}")]);
        }
    }

    #[test]
    fn tests_may_use_devkit_and_nothing_else_against_the_direction() {
        assert!(wrong_edges(&house(package("tenancy", &[], &["devkit", "kernel"]))).is_empty());
        let wrong = wrong_edges(&house(package("tenancy", &[], &["control-plane"])));
        assert_eq!(wrong, ["tenancy must not depend on control-plane"]);
    }

    #[test]
    fn a_crate_that_no_rule_knows_is_named() {
        let wrong = wrong_edges(&house(package("helpers", &[], &[])));
        assert_eq!(wrong.len(), 1);
        assert!(wrong[0].starts_with("helpers: a crate without a row"), "{wrong:?}");
    }

    #[test]
    fn axum_stays_with_those_who_speak_http() {
        assert!(axum_in_the_wrong_place(&[package("problem", &["axum"], &[])]).is_empty());
        assert!(axum_in_the_wrong_place(&[package("tenancy", &[], &["axum"])]).is_empty(), "of an example");
        let wrong =
            axum_in_the_wrong_place(&[package("tenancy", &["axum"], &[]), package("kernel", &["axum-extra"], &[])]);
        assert_eq!(wrong.len(), 2);
    }

    #[test]
    fn a_version_in_a_members_manifest_is_named() {
        let good = "[package]\nname = \"x\"\nversion.workspace = true\n[dependencies]\nserde.workspace = true\n\
                    kernel = { workspace = true, features = [\"sqlx\"] }\n# path = \"of a comment\"\n[[bin]]\npath = \"src/main.rs\"\n";
        assert!(own_versions(good).is_empty(), "{:?}", own_versions(good));
        for bad in [
            "[dependencies]\nserde = \"1\"",
            "[dev-dependencies]\nserde = { version = \"1\" }",
            "[target.'cfg(unix)'.dependencies]\nserde = { path = \"../serde\", features = [] }",
            "[build-dependencies.serde]\nversion = \"1\"",
            "[dependencies]\nserde = { git = \"https://example.org\" }",
            "[dependencies]\nserde.version = \"1\"",
        ] {
            assert_eq!(own_versions(bad).len(), 1, "{bad}");
        }
    }

    #[test]
    fn sql_outside_db_rs_is_named_with_its_line() {
        let text = "use x;\nlet row = sqlx::query_as!(Row, \"select\");\n// sqlx::query in a comment\n";
        assert_eq!(sql_in_the_wrong_place(Path::new("stores/routes.rs"), text).len(), 1);
        assert!(sql_in_the_wrong_place(Path::new("stores/routes.rs"), text)[0].starts_with("2: "));
        assert!(sql_in_the_wrong_place(Path::new("stores/db.rs"), text).is_empty());
        assert!(sql_in_the_wrong_place(Path::new("provisioning/postgres.rs"), text).is_empty());
        assert_eq!(sql_in_the_wrong_place(Path::new("other/postgres.rs"), text).len(), 1);
    }

    #[test]
    fn a_merged_migration_may_get_successors_and_nothing_else() {
        assert!(changed_migrations("A\tmigrations-master/0002_more.sql\nM\tmigrations-master/README.md").is_empty());
        let wrong = changed_migrations("M\tmigrations-master/0001_a.sql\nD\tmigrations-tenant/mysql/0001_a.sql");
        assert_eq!(wrong.len(), 2);
    }
}
