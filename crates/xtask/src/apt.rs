//! Debian's packages, where they can be installed.

use std::process::Command;

use crate::run::{has, output, run, say};

/// Whether packages can be installed here: by root, with apt.
pub(crate) fn is_usable() -> anyhow::Result<bool> {
    Ok(is_root()? && has("apt-get", &["--version"]))
}

/// Whether we are root.
pub(crate) fn is_root() -> anyhow::Result<bool> {
    let mut id = Command::new("id");
    id.arg("-u");
    Ok(output(id)?.trim() == "0")
}

/// Installs packages, without what they only recommend.
pub(crate) fn install(packages: &[&str]) -> anyhow::Result<()> {
    let words = [&["install", "-y", "--no-install-recommends"], packages].concat();
    say(&format!("xtask: installing: apt-get {}", words.join(" ")));
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(args).env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    let are_known = packages.iter().all(|package| has("apt-cache", &["show", package]));
    // Lists that are too old name files that are gone: then, too, the lists are fetched and the install is tried again.
    if !are_known || run(apt(&words)).is_err() {
        run(apt(&["update"]))?;
        run(apt(&words))?;
    }
    Ok(())
}
