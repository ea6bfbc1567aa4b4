//! The `tenantry` program.

use std::process::ExitCode;

use control_plane::cli;

fn main() -> ExitCode {
    // A `.env` beside the process fills in what the real environment does not say.
    if let Err(error) = dotenvy::dotenv()
        && !error.not_found()
    {
        return cli::refuse(&format!("the file .env cannot be read: {error}"));
    }
    cli::run(cli::parse())
}
