use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// What the server is for, which decides how much it may lose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Somebody's data: everything is written through.
    Dev,
    /// Thrown away after the run: nothing waits for the disk.
    Test,
    /// Measured: as durable as production.
    Bench,
}

/// How to run the server.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// A folder for this cluster alone; made when it does not exist.
    pub data_dir: PathBuf,
    /// What the server is for.
    pub profile: Profile,
    /// The TCP port; without one a free port is chosen once and kept. A port in use by somebody else is replaced by a free
    /// one, with a warning: ask [`Postgres::port`](crate::Postgres::port).
    pub port: Option<u16>,
    /// `max_connections` of the server.
    pub max_connections: u32,
    /// Further settings, as in `postgresql.conf`. Address, port and socket folder are not up for change.
    pub settings: Vec<(String, String)>,
    /// Where `postgres` and `initdb` are, when they are not to be searched.
    pub bin_dir: Option<PathBuf>,
}

impl PostgresOptions {
    /// The profile's defaults.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>, profile: Profile) -> Self {
        let max_connections = match profile {
            Profile::Dev => 200,
            Profile::Test | Profile::Bench => 400,
        };
        Self { data_dir: data_dir.into(), profile, port: None, max_connections, settings: Vec::new(), bin_dir: None }
    }

    /// The server's command line. The last of two equal settings wins: ours are last.
    pub(crate) fn server_args(&self, pgdata: &Path, socket_dir: &Path, port: u16) -> Vec<OsString> {
        let durability: &[(&str, &str)] = match self.profile {
            Profile::Dev | Profile::Bench => &[("fsync", "on")],
            Profile::Test => &[("fsync", "off"), ("full_page_writes", "off"), ("synchronous_commit", "off")],
        };
        let fixed = [
            ("max_connections", self.max_connections.to_string()),
            ("password_encryption", "scram-sha-256".to_owned()),
            ("logging_collector", "off".to_owned()),
            ("log_destination", "stderr".to_owned()),
            // Statements may hold passwords of roles.
            ("log_statement", "none".to_owned()),
            ("log_min_error_statement", "panic".to_owned()),
            ("listen_addresses", "127.0.0.1".to_owned()),
            ("port", port.to_string()),
        ];
        let defaults = [("timezone", "UTC"), ("log_timezone", "UTC"), ("log_line_prefix", "%m [%p] %q%u@%d ")];
        let given = self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let fixed = fixed.iter().map(|(name, value)| (*name, value.as_str()));

        let mut args: Vec<OsString> = vec!["-D".into(), pgdata.into(), "-k".into(), socket_dir.into()];
        for (name, value) in defaults.into_iter().chain(durability.iter().copied()).chain(given).chain(fixed) {
            args.push("-c".into());
            args.push(format!("{name}={value}").into());
        }
        args
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(profile: Profile, settings: &[(&str, &str)]) -> Vec<String> {
        let mut options = PostgresOptions::new("/data", profile);
        options.settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let args = options.server_args(Path::new("/data/pgdata"), Path::new("/data/socket"), 15432);
        args.into_iter().map(|arg| arg.into_string().unwrap()).collect()
    }

    #[test]
    fn only_the_test_profile_gives_up_durability() {
        assert!(args(Profile::Test, &[]).contains(&"fsync=off".to_owned()));
        for profile in [Profile::Dev, Profile::Bench] {
            assert!(args(profile, &[]).contains(&"fsync=on".to_owned()));
        }
    }

    #[test]
    fn a_caller_can_change_a_setting_but_not_where_the_server_listens() {
        let args = args(Profile::Dev, &[("fsync", "off"), ("listen_addresses", "*")]);
        let last = |name: &str| args.iter().rfind(|arg| arg.starts_with(name)).cloned();
        assert_eq!(last("fsync=").as_deref(), Some("fsync=off"));
        assert_eq!(last("listen_addresses=").as_deref(), Some("listen_addresses=127.0.0.1"));
    }
}
