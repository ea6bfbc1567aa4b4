//! The `tenantry` program.

use std::process::ExitCode;

use control_plane::cli;

fn main() -> ExitCode {
    // A `.env` beside the process fills in what the real environment does not say.
    if let Err(error) = dotenvy::dotenv()
        && !error.not_found()
    {
        return cli::refuse(cli::wants_json(), &format!("the file .env cannot be read: {error}"));
    }
    match cli::parse() {
        Ok(cli) => cli::run(cli),
        Err(code) => code,
    }
}
