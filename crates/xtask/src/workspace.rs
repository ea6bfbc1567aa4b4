//! What cargo knows of the workspace.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;
use cargo_metadata::{DependencyKind, MetadataCommand};

use crate::run::{env, run};

pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) packages: Vec<Package>,
}

/// A member of the workspace, as far as the rules look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) manifest: PathBuf,
    pub(crate) dependencies: Vec<Dependency>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// Of tests only.
    pub(crate) is_dev: bool,
}

impl Workspace {
    pub(crate) fn load() -> anyhow::Result<Workspace> {
        let metadata = MetadataCommand::new().no_deps().exec().context("asking cargo about the workspace")?;
        let packages = metadata
            .packages
            .iter()
            .map(|package| Package {
                name: package.name.to_string(),
                manifest: package.manifest_path.clone().into(),
                dependencies: package
                    .dependencies
                    .iter()
                    .map(|dependency| Dependency {
                        name: dependency.name.clone(),
                        is_dev: dependency.kind == DependencyKind::Development,
                    })
                    .collect(),
            })
            .collect();
        Ok(Workspace { root: metadata.workspace_root.into(), target: metadata.target_directory.into(), packages })
    }

    /// A cargo command at the root.
    pub(crate) fn cargo(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env("CARGO").unwrap_or_else(|| "cargo".to_owned()));
        command.args(args).current_dir(&self.root);
        command
    }

    /// A program that cargo has built.
    pub(crate) fn built(&self, profile: &str, name: &str) -> PathBuf {
        self.target.join(profile).join(name)
    }

    /// Builds the product and says where it is. `--workspace` makes the features those of the tests and of clippy: then no
    /// dependency is built twice.
    pub(crate) fn build_tenantry(&self) -> anyhow::Result<PathBuf> {
        self.build(&["--bin", "tenantry"])
    }

    /// As [`Workspace::build_tenantry`], and the tests with it: what only tests ask of a library changes all that is built on it, so
    /// that the two apart would build most of the world twice.
    pub(crate) fn build_tests(&self) -> anyhow::Result<PathBuf> {
        self.build(&["--bin", "tenantry", "--tests"])
    }

    fn build(&self, what: &[&str]) -> anyhow::Result<PathBuf> {
        run(self.cargo(&[&["build", "--workspace"], what].concat()))?;
        Ok(self.built("debug", "tenantry"))
    }
}
