//! The `tenantry` program.

use std::process::ExitCode;

use clap::Parser as _;
use control_plane::cli::{self, Cli};

fn main() -> ExitCode {
    // A `.env` beside the process fills in what the real environment does not say.
    if let Err(error) = dotenvy::dotenv()
        && !error.not_found()
    {
        return cli::refuse(&format!("the file .env cannot be read: {error}"));
    }
    cli::run(Cli::parse())
}
