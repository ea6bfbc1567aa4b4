//! Why a command failed, said to whoever typed it: what a route calls a field of its body is an option here.

use clap::ArgMatches;
use problem::{FieldError, Problem};

use super::output::typed;
use crate::catalog::CatalogError;
use crate::charges::ChargeError;
use crate::credits::CreditError;
use crate::credits::purchases::PurchaseError;
use crate::credits::review::ReviewError;
use crate::doctor::DoctorError;
use crate::http::errors::chain;
use crate::identity::IdentityError;
use crate::master::MasterError;
use crate::ops::OpsError;
use crate::provisioning::ProvisioningError;
use crate::servers::ServerError;
use crate::shares::nodes::NodeError;
use crate::stores::StoreError;

/// Why a command failed.
pub(super) struct Failure {
    /// As its route would answer, where it has one.
    problem: Option<Problem>,
    /// All that is known: whoever has a shell may know it.
    why: String,
}

/// Errors of operations, which routes answer as problems.
macro_rules! refused_by {
    ($($error:ty),+ $(,)?) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                let why = chain(&error);
                // What nobody expected is logged where it becomes a problem; here it is printed, once.
                let quiet = tracing::subscriber::NoSubscriber::new();
                let problem = tracing::subscriber::with_default(quiet, || Problem::from(error));
                Self { problem: Some(problem), why }
            }
        })+
    };
}

refused_by!(
    CatalogError,
    ChargeError,
    CreditError,
    DoctorError,
    IdentityError,
    NodeError,
    OpsError,
    ProvisioningError,
    PurchaseError,
    ReviewError,
    ServerError,
    StoreError,
);

/// Errors that only a command has.
macro_rules! failed_by {
    ($($error:ty),+ $(,)?) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self { problem: None, why: chain(&error) }
            }
        })+
    };
}

failed_by!(MasterError, serde_json::Error);

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self { problem: None, why: chain(error.as_ref()) }
    }
}

impl Failure {
    /// What a program branches on.
    fn code(&self) -> &'static str {
        self.problem.as_ref().map_or("failed", Problem::code)
    }

    /// All that is known of it.
    pub(super) fn why(&self) -> &str {
        &self.why
    }

    /// The same, of something that was tried because of what came before.
    pub(super) fn after(self, before: &str) -> Self {
        Self { why: format!("{before}; and {}", self.why), ..self }
    }

    /// The fields that are wrong.
    fn fields(&self) -> &[FieldError] {
        self.problem.as_ref().map_or(&[], Problem::errors)
    }

    /// One line for people.
    pub(super) fn text(&self, options: &Options) -> String {
        let fields = self.fields();
        if fields.is_empty() {
            return typed(&self.why);
        }
        // These two say nothing but what is wrong with which field.
        if ["invalid-input", "invalid-query"].contains(&self.code()) {
            let each = fields.iter().map(|field| format!("{}: {}", options.name(&field.pointer), typed(&field.detail)));
            return each.collect::<Vec<_>>().join("; ");
        }
        let names: Vec<_> = fields.iter().map(|field| options.name(&field.pointer)).collect();
        format!("{}: {}", names.join(", "), typed(&self.why))
    }

    /// The same for programs.
    pub(super) fn json(&self, options: &Options) -> serde_json::Value {
        let mut said = serde_json::json!({ "error": self.text(options), "code": self.code() });
        if !self.fields().is_empty() {
            let each = self.fields().iter().map(|FieldError { pointer, code, detail }| {
                serde_json::json!({ "option": options.name(pointer), "code": code, "detail": detail })
            });
            said["errors"] = each.collect();
        }
        said
    }
}

/// What the options and arguments of the command that was given are called.
#[derive(Debug, Default, Clone)]
pub(super) struct Options(Vec<(String, String)>);

impl Options {
    /// Those of the command that the arguments led to.
    pub(super) fn of(mut command: &clap::Command, mut matches: &ArgMatches) -> Self {
        while let Some((name, below)) = matches.subcommand() {
            let Some(found) = command.find_subcommand(name) else { break };
            (command, matches) = (found, below);
        }
        let called = command.get_arguments().map(|argument| {
            let name = argument.get_long().map_or_else(|| argument.to_string(), |long| format!("--{long}"));
            (argument.get_id().to_string(), name)
        });
        Self(called.collect())
    }

    /// What is called so here that routes point at by this; what the command has no option for keeps its name.
    fn name(&self, pointer: &str) -> String {
        let field = pointer.trim_start_matches('/');
        let id = match field {
            "organizationId" => "org".to_owned(),
            "storeId" => "store".to_owned(),
            "Idempotency-Key" => "key".to_owned(),
            "caPem" => "ca_file".to_owned(),
            "host" => "name".to_owned(),
            field => snake_case(field),
        };
        self.0.iter().find(|(known, _)| *known == id).map_or_else(|| field.to_owned(), |(_, name)| name.clone())
    }
}

fn snake_case(camel_case: &str) -> String {
    let mut name = String::with_capacity(camel_case.len() + 4);
    for letter in camel_case.chars() {
        if letter.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}
