//! Statements that help, ready to be copied by an administrator of the database. Whatever an owner has called their things,
//! the names in them are quoted.

use kernel::Engine;
use tenancy::{Credential, TlsMode};

/// Whoever knocks: a login, at a database.
#[derive(Debug, Clone, Copy)]
pub struct Guest<'a> {
    pub engine: Engine,
    pub database: &'a str,
    pub login: &'a str,
    pub has_password: bool,
    /// Whether it comes with TLS.
    pub is_encrypted: bool,
}

impl<'a> From<&'a Credential> for Guest<'a> {
    fn from(credential: &'a Credential) -> Self {
        let has_password = !secrecy::ExposeSecret::expose_secret(&credential.password).is_empty();
        let Credential { engine, database, username, tls, .. } = credential;
        let is_encrypted = *tls != TlsMode::Disable;
        Self { engine: *engine, database, login: username, has_password, is_encrypted }
    }
}

/// The host part of an account that is for every host.
pub const ANY_HOST: &str = "%";

impl Guest<'_> {
    /// The login as an account of MySQL's at this host.
    fn account(&self, host: &str) -> String {
        account(self.login, host)
    }

    /// Lets the login into the database, and in MySQL work there.
    pub fn let_in(&self, host: &str) -> String {
        match self.engine {
            Engine::Mysql => {
                format!("GRANT ALL PRIVILEGES ON {}.* TO {};", mysql_pattern(self.database), self.account(host))
            }
            _ => format!("GRANT CONNECT ON DATABASE {} TO {};", pg_name(self.database), pg_name(self.login)),
        }
    }

    /// Makes the database for the login, and in MySQL lets it in.
    pub fn create(&self, host: &str) -> String {
        match self.engine {
            Engine::Mysql => format!("{}\n{}", self.create_database(), self.let_in(host)),
            _ => self.create_database(),
        }
    }

    /// Makes the database; in MySQL for whoever has rights on one of its name. Where the server does not say whether it is there,
    /// one that is there is kept.
    pub fn create_database(&self) -> String {
        match self.engine {
            Engine::Mysql => format!(
                "CREATE DATABASE IF NOT EXISTS {} CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;",
                mysql_name(self.database)
            ),
            _ => format!("CREATE DATABASE {} OWNER {};", pg_name(self.database), pg_name(self.login)),
        }
    }

    /// Lets the login log in, in PostgreSQL.
    pub fn let_log_in(&self) -> String {
        format!("ALTER ROLE {} LOGIN;", pg_name(self.login))
    }

    /// Shows whether the login is there, and until when, in PostgreSQL; and has it last.
    pub fn show_login(&self) -> String {
        format!(
            "-- Run the second statement only where the first shows a time in rolvaliduntil that has passed.\n\
             SELECT rolname, rolcanlogin, rolvaliduntil FROM pg_roles WHERE rolname = '{}';\n\
             ALTER ROLE {} VALID UNTIL 'infinity';",
            self.login.replace('\'', "''"),
            pg_name(self.login)
        )
    }

    /// Shows the accounts that the server may take the login for, in MySQL.
    pub fn show_accounts(&self) -> String {
        format!("SELECT user, host, ssl_type FROM mysql.user WHERE user IN ({}, '');", text(self.login))
    }

    /// Takes the limits off the login, of its connections, and in MySQL of what it asks in an hour.
    pub fn unlimit_login(&self, host: &str) -> String {
        match self.engine {
            Engine::Mysql => {
                format!(
                    "ALTER USER {} WITH MAX_USER_CONNECTIONS 0 MAX_CONNECTIONS_PER_HOUR 0 MAX_QUERIES_PER_HOUR 0 \
                     MAX_UPDATES_PER_HOUR 0;",
                    self.account(host)
                )
            }
            _ => format!("ALTER ROLE {} CONNECTION LIMIT -1;", pg_name(self.login)),
        }
    }

    /// Takes the limit off the connections to the database, in PostgreSQL.
    pub fn unlimit_database(&self) -> String {
        format!("ALTER DATABASE {} CONNECTION LIMIT -1;", pg_name(self.database))
    }

    /// Lets the database take connections, in PostgreSQL.
    pub fn open_database(&self) -> String {
        format!("ALTER DATABASE {} WITH ALLOW_CONNECTIONS true;", pg_name(self.database))
    }

    /// Unlocks the account, in MySQL.
    pub fn unlock(&self, host: &str) -> String {
        format!("ALTER USER {} ACCOUNT UNLOCK;", self.account(host))
    }

    /// Shows the statements that make the login, with its password and rights, one for every host, in MySQL. For which hosts it
    /// is, the server tells its administrator alone.
    pub fn rename_for_any_host(&self) -> String {
        let name = text(self.login);
        format!(
            "SELECT CONCAT('RENAME USER ', QUOTE(user), '@', QUOTE(host), ' TO ', QUOTE(user), '@''%'';') AS run_this\n  \
             FROM mysql.user WHERE user = {name};"
        )
    }

    /// Gives the login rights on the database, in MySQL, by the database's own name or by the `pattern` that the login has others
    /// by: of grants by several names the server heeds one. What the pattern fits, it is given.
    pub fn grant(&self, rights: &str, pattern: Option<&str>, account: &str) -> String {
        let database = pattern.map_or_else(|| mysql_pattern(self.database), mysql_name);
        format!("GRANT {rights} ON {database}.* TO {account};")
    }

    /// Lets the login make a schema in the database, in PostgreSQL.
    pub fn grant_create(&self) -> String {
        format!("GRANT CREATE ON DATABASE {} TO {};", pg_name(self.database), pg_name(self.login))
    }

    /// Lets the login's transactions write again, in PostgreSQL.
    pub fn make_writable(&self) -> String {
        let (database, login) = (pg_name(self.database), pg_name(self.login));
        format!(
            // Where they are run, it is what they take away: from the statements of a session, and from those that are sent at once.
            "SET default_transaction_read_only = off;\nSET transaction_read_only = off;\n\
             ALTER DATABASE {database} RESET default_transaction_read_only;\n\
             ALTER ROLE {login} RESET default_transaction_read_only;\n\
             ALTER ROLE {login} IN DATABASE {database} RESET default_transaction_read_only;"
        )
    }

    /// As [`Guest::make_writable`], when it is not known whether the server is a replica, on which nobody changes anything.
    pub fn make_writable_unless_replica(&self) -> String {
        format!(
            "-- Where these fail because the server is in recovery, it is a replica: give its primary's credentials.\n{}",
            self.make_writable()
        )
    }

    /// Lets the login read and change the store's tables, in PostgreSQL.
    pub fn grant_tables(&self) -> String {
        let login = pg_name(self.login);
        format!(
            "-- In the database {}:\nGRANT USAGE ON SCHEMA tenantry TO {login};\n\
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA tenantry TO {login};",
            pg_name(self.database)
        )
    }

    /// Makes the login the owner of the store's schema and of all that is in it, in PostgreSQL. Not by making it a member of
    /// the owner that there is, which may be the server's administrator.
    pub fn hand_over(&self) -> String {
        let login = pg_name(self.login);
        // What quotes the block must not stand in it.
        let mut tag = "$tenantry$".to_owned();
        while login.contains(&tag) {
            tag.insert(1, 'x');
        }
        let quoted = login.replace('\'', "''");
        format!(
            "-- In the database {}:\nALTER SCHEMA tenantry OWNER TO {login};\n\
             DO {tag} DECLARE one text; BEGIN\n  \
               FOR one IN SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = 'tenantry' LOOP\n    \
                 EXECUTE format('ALTER TABLE %s OWNER TO %s', one, '{quoted}');\n  \
               END LOOP;\nEND {tag};",
            pg_name(self.database)
        )
    }
}

/// Who has the connections of a PostgreSQL server.
pub const WHO_IS_CONNECTED: &str =
    "SELECT datname, usename, state, count(*) FROM pg_stat_activity GROUP BY 1, 2, 3 ORDER BY 4 DESC;";
/// Gives a MySQL server more connections, until it is started anew.
pub const MORE_CONNECTIONS: &str = "SET GLOBAL max_connections = @@GLOBAL.max_connections + 50;";
/// Lets everybody write to a MySQL server again, until it is started anew. Whether it follows another one it tells its administrator
/// alone, who is shown that first.
pub const MAKE_SERVER_WRITABLE: &str = "-- A replica that is written to parts from its primary.\n\
     -- Run the second statement only where the first (in MySQL before 8.0.22 it is SHOW SLAVE STATUS) shows nothing,\n\
     -- and the server is no member of a group.\n\
     SHOW REPLICA STATUS;\nSET GLOBAL read_only = OFF;";
/// Takes the limit off the connections of every login of a MySQL server that has none of its own.
pub const UNLIMIT_LOGINS: &str = "SET GLOBAL max_user_connections = 0;";

/// A login as MySQL's statements take it.
pub fn account(user: &str, host: &str) -> String {
    format!("{}@{}", text(user), text(host))
}

/// A text as MySQL takes it.
fn text(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// A name as PostgreSQL quotes it.
fn pg_name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A name as MySQL quotes it.
pub fn mysql_name(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// A database's name as MySQL's grants take it, where an underscore or a percent sign stands for others.
fn mysql_pattern(name: &str) -> String {
    mysql_name(&name.replace('\\', "\\\\").replace('_', "\\_").replace('%', "\\%"))
}

#[cfg(test)]
mod tests {
    use super::{ANY_HOST, Guest, MAKE_SERVER_WRITABLE, account};
    use kernel::Engine;

    fn guest<'a>(engine: Engine, database: &'a str, login: &'a str) -> Guest<'a> {
        Guest { engine, database, login, has_password: true, is_encrypted: true }
    }

    #[test]
    fn statements_hold_whatever_names_there_are() {
        assert_eq!(
            guest(Engine::Postgresql, "the \"shop\"; x", "ada's").let_in(ANY_HOST),
            "GRANT CONNECT ON DATABASE \"the \"\"shop\"\"; x\" TO \"ada's\";"
        );
        assert_eq!(
            guest(Engine::Mysql, "my_shop`s", "a'da").let_in("10.0.0.%"),
            "GRANT ALL PRIVILEGES ON `my\\_shop``s`.* TO 'a''da'@'10.0.0.%';"
        );
        assert_eq!(
            guest(Engine::Postgresql, "shop", "ada").create(ANY_HOST),
            "CREATE DATABASE \"shop\" OWNER \"ada\";"
        );
        let made = guest(Engine::Mysql, "my_shop", "ada").create(ANY_HOST);
        assert!(made.starts_with("CREATE DATABASE IF NOT EXISTS `my_shop` CHARACTER SET utf8mb4"), "{made}");
        assert_eq!(account("o\\'x", "10.0.0.%"), "'o\\\\''x'@'10.0.0.%'");
        let handed = guest(Engine::Postgresql, "shop", "ada's \"x\"").hand_over();
        assert!(
            handed.contains("OWNER TO \"ada's \"\"x\"\"\";") && handed.contains("'\"ada''s \"\"x\"\"\"'"),
            "{handed}"
        );
    }

    #[test]
    fn before_a_server_is_made_writable_it_is_shown_whether_it_is_a_replica() {
        let statements: Vec<&str> = MAKE_SERVER_WRITABLE.lines().filter(|line| !line.starts_with("-- ")).collect();
        assert_eq!(statements, ["SHOW REPLICA STATUS;", "SET GLOBAL read_only = OFF;"]);
        assert!(MAKE_SERVER_WRITABLE.starts_with("-- ") && MAKE_SERVER_WRITABLE.contains("SHOW SLAVE STATUS"));
    }
}
