//! The names that drivers and frameworks know, and what each means here.

/// What a parameter means to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    Host,
    Port,
    User,
    Password,
    Database,
    /// A place in the file system of the database's own machine.
    Socket,
    /// How the driver gets there: by TCP, or by something that we have not.
    Protocol,
    /// How much of TLS.
    Mode,
    /// TLS on or off, or how much.
    Switch,
    /// TLS on; not said, it may still be.
    SwitchOn,
    /// TLS off; not said, it may still be on or off.
    SwitchOff,
    /// Whether the certificate is checked.
    Checks,
    /// Whether the certificate must name the host, which it must where it is checked, unless a mode says less.
    ChecksHost,
    /// Whether any certificate will do.
    Trusts,
    /// Java's class that checks the certificate.
    Factory,
    /// The authorities: a file that is not here, or the public ones.
    Authorities,
    /// The oldest TLS that will do.
    OldestTls,
    /// Whether the login must be bound to the server's certificate, so that nobody can stand between. Our driver cannot: it
    /// checks the certificate and its name instead.
    Binding,
    /// Kerberos encryption, which we never speak.
    Gss,
    /// The schema that unqualified names are looked up in.
    Schema,
    /// Which of several servers will do.
    Session,
    /// Whether only reading is wanted.
    ReadOnly,
    /// `options` of PostgreSQL.
    Options,
    /// A file, which is not here.
    File,
    /// Changes to where, as whom or how safely it is connected; not taken, unless it is switched off.
    Refused,
    /// Says how somebody else's program should behave: nothing is lost without it.
    Ignored,
}

/// The name and meaning of a parameter, however a driver writes it: `ssl-mode`, `sslMode` and `SSL Mode` are one. Of a name that is
/// not here nothing is ever told, as it may be part of a password.
pub(super) fn meaning_of(name: &str) -> Option<(&'static str, Meaning)> {
    let all = || TABLE.iter().flat_map(|&(meaning, names)| names.iter().map(move |&known| (known, meaning)));
    let exact = all().find(|(known, _)| known.eq_ignore_ascii_case(name));
    exact.or_else(|| all().find(|(known, _)| letters(known).eq(letters(name))))
}

/// Whether both are one name.
pub(super) fn is_same_name(one: &str, other: &str) -> bool {
    letters(one).eq(letters(other))
}

fn letters(name: &str) -> impl Iterator<Item = u8> {
    name.bytes().filter(|byte| !b" -_".contains(byte)).map(|byte| byte.to_ascii_lowercase())
}

#[rustfmt::skip]
const TABLE: &[(Meaning, &[&str])] = &[
    (Meaning::Host, &["host", "server", "hostname", "data source", "address", "addr", "network address", "servername"]),
    (Meaning::Port, &["port"]),
    (Meaning::User, &["user", "username", "user id", "uid"]),
    (Meaning::Password, &["password", "pwd", "passwd", "psw", "pass"]),
    (Meaning::Database, &["dbname", "database", "initial catalog"]),
    (Meaning::Socket, &["socket", "unix_socket"]),
    (Meaning::Protocol, &["protocol", "connection protocol"]),
    (Meaning::Mode, &["sslmode"]),
    (Meaning::Switch, &["ssl", "usessl", "tls", "encrypt"]),
    (Meaning::SwitchOn, &["requiressl"]),
    (Meaning::SwitchOff, &["ssl_disabled"]),
    (Meaning::Checks, &["sslaccept", "verifyServerCertificate", "ssl_verify_cert"]),
    (Meaning::ChecksHost, &["ssl_verify_identity", "ssl_check_hostname"]),
    (Meaning::Trusts, &["trust server certificate", "x-tls-insecure-skip-verify"]),
    (Meaning::Factory, &["sslfactory"]),
    (Meaning::Authorities, &["sslrootcert", "ssl_ca", "ssl-ca", "sslca", "root certificate", "ca certificate file", "x-tls-ca", "serverSslCert"]),
    (Meaning::OldestTls, &["ssl_min_protocol_version", "enabledTLSProtocols", "tlsVersions", "tls version", "enabledSslProtocolSuites"]),
    (Meaning::Binding, &["channel_binding"]),
    (Meaning::Gss, &["gssencmode", "gss encryption mode"]),
    (Meaning::Schema, &["schema", "currentSchema", "search_path", "schema_search_path"]),
    (Meaning::Session, &["target_session_attrs", "target session attributes", "targetServerType"]),
    (Meaning::ReadOnly, &["readonly", "default_transaction_read_only", "replica", "assureReadOnly"]),
    (Meaning::Options, &["options"]),
    (Meaning::File, &[
        "sslcert", "ssl-cert", "ssl_cert", "sslkey", "ssl-key", "ssl_key", "sslcrl", "sslcrldir", "ssl_crl", "sslcapath", "ssl_capath",
        "sslpassword", "sslidentity", "ssl certificate", "client certificate", "client certificate key", "certificate file",
        "certificate password", "x-tls-cert", "x-tls-key", "passfile", "servicefile", "read_default_file", "read_default_group",
        "server_rsa_public_key_path", "serverRSAPublicKeyFile", "serverPubKey", "trustCertificateKeyStoreUrl",
        "trustCertificateKeyStorePassword", "clientCertificateKeyStoreUrl", "clientCertificateKeyStorePassword", "trustStore", "keyStore",
    ]),
    (Meaning::Refused, &[
        // To another place.
        "hostaddr", "service", "dsn", "socketFactory", "socketFactoryArg", "cloudSqlInstance", "unixSocketPath", "localSocketAddress",
        "pipe", "pipe name", "dnsSrv", "haMode", "replication",
        // As somebody else, or by other proofs.
        "role", "krbsrvname", "krbspn", "gsslib", "gssdelegation", "kerberos service name", "kerberosServerName", "jaasLogin", "useSpnego",
        "integrated security", "include realm", "require_auth", "requirepeer", "auth_plugin", "auth_type", "authenticationPlugins",
        "authenticationPluginClassName", "defaultAuthenticationPlugin", "enableIamAuth", "credentialType", "server spn",
        "scram_client_key", "scram_server_key", "oauth_issuer", "oauth_client_id", "oauth_client_secret", "oauth_scope",
        // With less safety, or more of it.
        "allowCleartextPasswords", "enable_cleartext_plugin", "allowOldPasswords", "allowFallbackToPlaintext", "sslcertmode",
        "sslhostnameverifier", "sslpasswordcallback", "sslcipher", "tlsCiphersuites", "tls cipher suites", "enabledSSLCipherSuites",
        "check certificate revocation", "certificate store location", "certificate thumbprint",
        // What is said to the server before anything else.
        "init_command", "initsql", "connectionInitSql", "sessionVariables", "variables",
    ]),
    (Meaning::Ignored, &[
        // libpq
        "application_name", "fallback_application_name", "client_encoding", "connect_timeout", "keepalives",
        "keepalives_count", "keepalives_idle", "keepalives_interval", "load_balance_hosts", "min_protocol_version", "max_protocol_version",
        "sslcompression", "ssl_max_protocol_version", "sslnegotiation", "sslsni", "tcp_user_timeout",
        // Settings of a session, of which we make our own.
        "autocommit", "datestyle", "idle_in_transaction_session_timeout", "isolation_level", "lock_timeout", "max_execution_time",
        "query_timeout", "sql_mode", "statement_timeout", "time_zone", "timezone", "transaction_isolation", "tx_isolation", "wait_timeout",
        // Hosting panels and poolers
        "pgbouncer", "supa", "workaround",
        // Prisma
        "connection_limit", "max_connection_lifetime", "max_idle_connection_lifetime", "pool_timeout", "single_use_connections",
        "socket_timeout", "statement_cache_size",
        // node-postgres, postgres.js, mysql2, TypeORM
        "bigNumberStrings", "binary", "connectionLimit", "connectionTimeoutMillis", "dateStrings", "debug", "decimalNumbers",
        "enableKeepAlive", "fetch_types", "flags", "idleTimeout", "idleTimeoutMillis", "keepAlive", "keepAliveInitialDelay", "logging", "max",
        "maxIdle", "max_lifetime", "min", "multipleStatements", "namedPlaceholders", "prepare", "queueLimit", "rowsAsArray",
        "stringifyObjects", "supportBigNumbers", "synchronize", "trace", "typeCast", "uselibpqcompat", "waitForConnections",
        // SQLAlchemy and the drivers of Python
        "async_fallback", "binary_prefix", "buffered", "command_timeout", "connection_timeout", "consume_results", "echo",
        "executemany_mode", "get_warnings", "local_infile", "max_cached_statement_lifetime", "max_overflow", "pool_pre_ping",
        "pool_recycle", "pool_size", "prepare_threshold", "prepared_statement_cache_size", "prepared_statement_name_func",
        "raise_on_warnings", "read_timeout", "timeout", "use_pure", "use_unicode", "write_timeout",
        // Django
        "atomic_requests", "conn_health_checks", "conn_max_age", "disable_server_side_cursors",
        // Rails
        "adapter", "advisory_locks", "checkout_timeout", "collation", "database_tasks", "encoding", "idle_timeout", "insert_returning",
        "max_age", "max_connections", "migrations_paths", "min_connections", "min_messages", "pool", "prepared_statements",
        "reaping_frequency", "reconnect", "statement_limit", "strict",
        // PHP
        "charset", "default_dbname", "driver", "persistent", "serverVersion",
        // JDBC of PostgreSQL
        "adaptiveFetch", "adaptiveFetchMaximum", "adaptiveFetchMinimum", "allowEncodingChanges", "assumeMinServerVersion", "autosave",
        "binaryTransfer", "binaryTransferDisable", "binaryTransferEnable", "cancelSignalTimeout", "cleanupSavepoints",
        "databaseMetadataCacheFields", "databaseMetadataCacheFieldsMiB", "defaultRowFetchSize", "disableColumnSanitiser",
        "escapeSyntaxCallMode", "groupStartupParameters", "gssResponseTimeout", "hideUnprivilegedObjects", "hostRecheckSeconds",
        "logServerErrorDetail", "logUnclosedConnections", "loggerFile", "loggerLevel", "loginTimeout", "maxResultBuffer",
        "maxSendBufferSize", "preferQueryMode", "prepareThreshold", "preparedStatementCacheQueries", "preparedStatementCacheSizeMiB",
        "protocolVersion", "quoteReturningIdentifiers", "reWriteBatchedInserts", "readOnlyMode", "receiveBufferSize", "sendBufferSize",
        "socketTimeout", "sslResponseTimeout", "stringtype", "tcpKeepAlive", "tcpNoDelay", "unknownLength", "xmlFactoryFactory",
        // JDBC of MySQL and MariaDB
        "allowLoadLocalInfile", "allowMultiQueries", "allowNanAndInf", "allowPublicKeyRetrieval", "allowUrlInLocalInfile",
        "autoDeserialize", "autoReconnect", "autoReconnectForPools", "cacheCallableStmts", "cachePrepStmts", "cacheResultSetMetadata",
        "cacheServerConfiguration", "characterEncoding", "characterSetResults", "clientCertificateKeyStoreType", "connectionAttributes",
        "connectionCollation", "connectionTimeZone", "createDatabaseIfNotExist", "databaseTerm", "defaultFetchSize",
        "disableMariaDbDriver", "dumpQueriesOnException", "elideSetAutoCommits", "emptyStringsConvertToZero", "failOverReadOnly",
        "fallbackToSystemTrustStore", "forceConnectionTimeZoneToSession", "holdResultsOpenOverStatementClose", "initialTimeout",
        "interactiveClient", "jdbcCompliantTruncation", "logger", "maintainTimeStats", "maxReconnects", "noAccessToProcedureBodies",
        "nullCatalogMeansCurrent", "nullDatabaseMeansCurrent", "nullNamePatternMatchesAll", "paranoid", "permitMysqlScheme", "poolName",
        "prepStmtCacheSize", "prepStmtCacheSqlLimit", "preserveInstants", "profileSQL", "rewriteBatchedStatements", "sendFractionalSeconds",
        "serverTimezone", "tinyInt1isBit", "trackSessionState", "transformedBitIsBoolean", "useAffectedRows", "useBulkStmts",
        "useColumnNamesInFindColumn", "useCompression", "useConfigs", "useCursorFetch", "useInformationSchema",
        "useJDBCCompliantTimezoneShift", "useLegacyDatetimeCode", "useLocalSessionState", "useLocalTransactionState",
        "useOldAliasMetadataBehavior", "useServerPrepStmts", "useTimezone", "useUnicode", "yearIsDateType", "zeroDateTimeBehavior",
        // Go
        "allowAllFiles", "allowNativePasswords", "binary_parameters", "checkConnLiveness", "clientFoundRows", "columnsWithAlias",
        "compress", "default_query_exec_mode", "description_cache_capacity", "interpolateParams", "loc", "maxAllowedPacket",
        "multiStatements", "parseTime", "pool_health_check_period", "pool_max_conn_idle_time", "pool_max_conn_lifetime",
        "pool_max_conn_lifetime_jitter", "pool_max_conns", "pool_min_conns", "pool_min_idle_conns", "prefer_simple_protocol",
        "rejectReadOnly", "statement_cache_capacity", "statement_cache_mode", "timeTruncate", "x-migrations-table", "x-multi-statement",
        "x-no-lock", "x-statement-timeout",
        // Npgsql
        "array nullability mode", "auto prepare min usages", "cancellation timeout", "connection idle lifetime", "connection lifetime",
        "connection pruning interval", "enlist", "include error detail", "include error details", "include failed batched command",
        "internal command timeout", "load balance hosts", "load table composites", "log parameters", "max auto prepare", "max pool size",
        "maximum pool size", "min pool size", "minimum pool size", "multiplexing", "no reset on close", "persist security info", "pooling",
        "read buffer size", "server compatibility mode", "socket receive buffer size", "socket send buffer size",
        "tcp keepalive interval", "tcp keepalive time", "write buffer size", "write coalescing buffer threshold bytes",
        // ADO.NET of MySQL
        "allow batch", "allow user variables", "allow zero datetime", "auto enlist", "character set", "check parameters",
        "connection idle timeout", "connection reset", "convert zero datetime", "date time kind", "default command timeout",
        "defer connection reset", "dns check interval", "force synchronous", "functions return string", "guid format",
        "ignore command transaction", "ignore prepare", "interactive session", "load balance", "no backslash escapes", "old guids",
        "option", "pipelining", "procedure cache size", "respect binary flags", "server redirection mode", "treat blobs as utf8", "treat tiny as boolean",
        "use performance monitor", "use procedure bodies", "use usage advisor", "use xa transactions",
    ]),
];
