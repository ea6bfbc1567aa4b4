//! Real servers, each in a folder of its own.

#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test, in its helpers as well")]

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use devkit::{Postgres, PostgresOptions, Profile, ServerError};
use sqlx::{Connection as _, PgConnection};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// A temporary folder that the server's user can pass when the tests run as root.
fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
    dir
}

fn options(place: &tempfile::TempDir) -> PostgresOptions {
    PostgresOptions::new(place.path().join("pg"), Profile::Test)
}

async fn connect(server: &Postgres) -> PgConnection {
    PgConnection::connect(&server.url("postgres")).await.unwrap()
}

async fn run(connection: &mut PgConnection, sql: &'static str) {
    sqlx::query(sql).execute(connection).await.unwrap();
}

async fn number(connection: &mut PgConnection, sql: &'static str) -> i32 {
    sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
}

async fn setting(connection: &mut PgConnection, sql: &'static str) -> String {
    sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
}

/// The processes of a server, told by where they work.
fn processes(data_dir: &Path) -> Vec<u32> {
    let pgdata = data_dir.join("pgdata");
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == pgdata)).collect()
}

/// The shell scripts that watch over a server in `data_dir`.
fn watchdogs(data_dir: &Path) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let dir = data_dir.display().to_string();
    pids.filter(|pid: &u32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        command.starts_with("/bin/sh\0") && command.contains(&dir)
    })
    .collect()
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(30), waiting).await.is_ok(), "waited in vain: {what}");
}

async fn kill_9(pid: u32) {
    Command::new("kill").args(["-9", &pid.to_string()]).status().await.unwrap();
}

/// `devkit-hold` in a process of its own, and what it prints.
struct Holder {
    process: Child,
    output: Lines<BufReader<ChildStdout>>,
    announcement: String,
}

impl Holder {
    async fn start(data_dir: &Path, more: &[&str]) -> Holder {
        let mut command = Command::new(env!("CARGO_BIN_EXE_devkit-hold"));
        command.args(["--profile", "test", "--data-dir"]).arg(data_dir).args(more);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap()).lines();
        let announcement = output.next_line().await.unwrap().expect("devkit-hold says its URL");
        Holder { process, output, announcement }
    }

    fn url(&self) -> &str {
        self.announcement.split('"').find(|part| part.starts_with("postgres://")).unwrap()
    }

    async fn kill_9(&mut self) {
        self.process.kill().await.unwrap();
    }
}

#[tokio::test]
async fn data_port_and_password_survive_a_stop() {
    let place = place();
    let server = Postgres::start(options(&place)).await.unwrap();
    assert!(!server.was_attached());
    let (url, data_dir) = (server.url("postgres"), server.data_dir().to_owned());
    assert_eq!(data_dir, place.path().join("pg").canonicalize().unwrap());
    let mut connection = connect(&server).await;
    run(&mut connection, "create table kept as select 42 as answer").await;
    server.stop().await.unwrap();
    assert!(processes(&data_dir).is_empty());
    assert!(watchdogs(&data_dir).is_empty());

    let server = Postgres::start(options(&place)).await.unwrap();
    assert_eq!(server.url("postgres"), url);
    assert_eq!(number(&mut connect(&server).await, "select answer from kept").await, 42);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_server_is_private_and_as_durable_as_its_profile() {
    let place = place();
    let server = Postgres::start(PostgresOptions { profile: Profile::Dev, ..options(&place) }).await.unwrap();
    let mut connection = connect(&server).await;
    assert_eq!(setting(&mut connection, "show fsync").await, "on");
    assert_eq!(setting(&mut connection, "show listen_addresses").await, "127.0.0.1");
    assert_eq!(setting(&mut connection, "show server_encoding").await, "UTF8");
    assert_eq!(setting(&mut connection, "select lower('ÉTÉ')").await, "été");
    assert_eq!(fs::metadata(server.data_dir()).unwrap().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(server.data_dir().join("password")).unwrap().mode() & 0o777, 0o600);

    let wrong = server.url("postgres").replacen("postgres:", "postgres:x", 2);
    assert!(PgConnection::connect(&wrong).await.is_err());
    let socket = server.socket_dir().to_str().unwrap();
    let by_socket = sqlx::postgres::PgConnectOptions::new_without_pgpass().socket(socket).port(server.port());
    let error = PgConnection::connect_with(&by_socket.username("postgres")).await.unwrap_err();
    assert!(error.to_string().contains("password"), "{error}");

    sqlx::query("create role leak password 'hunter2' no_such_word").execute(&mut connection).await.unwrap_err();
    assert!(!fs::read_to_string(server.log_file()).unwrap().contains("hunter2"));
    server.stop().await.unwrap();
}

#[tokio::test]
async fn simultaneous_starts_make_one_server_and_share_it() {
    let place = place();
    let (one, two) = tokio::join!(Postgres::start(options(&place)), Postgres::start(options(&place)));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(one.url("postgres"), two.url("postgres"));
    assert_ne!(one.was_attached(), two.was_attached());
    let (owner, mut guest) = if one.was_attached() { (two, one) } else { (one, two) };
    assert_eq!(owner.pid(), guest.pid());
    assert_eq!(owner.socket_dir(), guest.socket_dir());

    assert!(matches!(guest.kill().await, Err(ServerError::NotOwner)));
    guest.stop().await.unwrap();
    assert_eq!(number(&mut connect(&owner).await, "select 1").await, 1);
    owner.stop().await.unwrap();
}

#[tokio::test]
async fn another_process_attaches_and_its_end_changes_nothing() {
    let place = place();
    let server = Postgres::start(options(&place)).await.unwrap();
    let mut guest = Holder::start(&options(&place).data_dir, &[]).await;
    assert_eq!(guest.url(), server.url("postgres"));
    guest.kill_9().await;
    assert_eq!(number(&mut connect(&server).await, "select 1").await, 1);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_dropped_server_goes_down() {
    let place = place();
    let server = Postgres::start(options(&place)).await.unwrap();
    let data_dir = server.data_dir().to_owned();
    drop(server);
    until("the server ends", || processes(&data_dir).is_empty() && watchdogs(&data_dir).is_empty()).await;
}

#[tokio::test]
async fn a_holder_stops_when_its_input_ends() {
    let place = place();
    let mut holder = Holder::start(&options(&place).data_dir, &[]).await;
    let data_dir = options(&place).data_dir.canonicalize().unwrap();
    assert!(!processes(&data_dir).is_empty());
    drop(holder.process.stdin.take());
    assert!(holder.process.wait().await.unwrap().success());
    assert!(processes(&data_dir).is_empty());
}

#[tokio::test]
async fn nothing_outlives_a_killed_owner_though_its_other_children_do() {
    let place = place();
    let mut holder =
        Holder::start(&options(&place).data_dir, &["--", "/bin/sh", "-c", "echo $$; exec sleep 600"]).await;
    let data_dir = options(&place).data_dir.canonicalize().unwrap();
    let sibling: u32 = holder.output.next_line().await.unwrap().unwrap().parse().unwrap();
    let mut busy = PgConnection::connect(holder.url()).await.unwrap();
    run(&mut busy, "select 1").await;
    assert!(!processes(&data_dir).is_empty());
    assert!(!watchdogs(&data_dir).is_empty());

    holder.kill_9().await;

    until("the server ends", || processes(&data_dir).is_empty() && watchdogs(&data_dir).is_empty()).await;
    assert!(sqlx::query("select 1").execute(&mut busy).await.is_err());
    assert!(
        Path::new(&format!("/proc/{sibling}")).exists(),
        "the sibling must outlive the server for this test to count"
    );
    kill_9(sibling).await;
}

#[tokio::test]
async fn ctrl_c_at_the_terminal_does_not_reach_the_server() {
    let place = place();
    let server = Postgres::start(options(&place)).await.unwrap();
    let group = |process: &str| {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
        // After the name in parentheses: state, parent, group.
        stat.rsplit_once(')').unwrap().1.split_whitespace().nth(2).unwrap().to_owned()
    };
    let ours = group("self");
    assert_ne!(group(&server.pid().unwrap().to_string()), ours);
    for watchdog in watchdogs(server.data_dir()) {
        assert_ne!(group(&watchdog.to_string()), ours);
    }
    server.stop().await.unwrap();
}

#[tokio::test]
async fn an_owner_killed_while_it_makes_the_cluster_leaves_no_half_of_one() {
    let place = place();
    let data_dir = options(&place).data_dir;
    let mut command = Command::new(env!("CARGO_BIN_EXE_devkit-hold"));
    command.args(["--profile", "test", "--data-dir"]).arg(&data_dir).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut holder = command.spawn().unwrap();
    let half_made = data_dir.join("pgdata.new");
    until("initdb has begun", || half_made.exists()).await;
    holder.kill().await.unwrap();
    assert!(!data_dir.join("pgdata").exists());

    let server = Postgres::start(options(&place)).await.unwrap();
    assert_eq!(number(&mut connect(&server).await, "select 1").await, 1);
    assert!(!half_made.exists());
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_start_killed_at_any_moment_is_no_obstacle_to_the_next() {
    let place = place();
    let data_dir = options(&place).data_dir;
    Postgres::start(options(&place)).await.unwrap().stop().await.unwrap();
    for round in 0..12 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_devkit-hold"));
        command.args(["--profile", "test", "--data-dir"]).arg(&data_dir).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut holder = command.spawn().unwrap();
        // The moment is the point here; a start takes about a tenth of a second.
        tokio::time::sleep(Duration::from_millis(round * 12)).await;
        holder.kill().await.unwrap();
        let server = Postgres::start(options(&place)).await.unwrap();
        assert!(!server.was_attached());
        assert_eq!(number(&mut connect(&server).await, "select 1").await, 1);
        server.stop().await.unwrap();
    }
}

#[tokio::test]
async fn under_root_a_folder_out_of_the_servers_reach_is_replaced_by_one_within() {
    let closed = tempfile::tempdir().unwrap();
    fs::set_permissions(closed.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let asked = closed.path().join("pg");
    let server = Postgres::start(PostgresOptions::new(&asked, Profile::Test)).await.unwrap();
    let used = server.data_dir().to_owned();
    server.stop().await.unwrap();

    let is_root = fs::metadata(closed.path()).unwrap().uid() == 0;
    if is_root {
        assert!(used.starts_with("/var/lib/tenantry"), "{}", used.display());
        assert!(!asked.exists());
        fs::remove_dir_all(&used).unwrap();
        let _ = fs::remove_dir(used.parent().unwrap());
    } else {
        assert_eq!(used, asked.canonicalize().unwrap());
    }
}

#[tokio::test]
async fn a_start_right_after_its_owner_was_killed_gets_a_server_of_its_own() {
    let place = place();
    let mut holder = Holder::start(&options(&place).data_dir, &[]).await;
    holder.kill_9().await;
    let server = Postgres::start(options(&place)).await.unwrap();
    assert!(!server.was_attached());
    assert_eq!(server.url("postgres"), holder.url());
    assert_eq!(number(&mut connect(&server).await, "select 1").await, 1);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_server_whose_watchdog_was_killed_too_is_seen_off() {
    let place = place();
    let mut holder = Holder::start(&options(&place).data_dir, &[]).await;
    let data_dir = options(&place).data_dir.canonicalize().unwrap();
    for watchdog in watchdogs(&data_dir) {
        kill_9(watchdog).await;
    }
    holder.kill_9().await;
    let left = processes(&data_dir);
    assert!(!left.is_empty());

    let server = Postgres::start(options(&place)).await.unwrap();
    assert!(!left.contains(&server.pid().unwrap()));
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_killed_server_is_down_and_comes_back_where_it_was() {
    let place = place();
    let mut server = Postgres::start(options(&place)).await.unwrap();
    let url = server.url("postgres");
    let mut connection = connect(&server).await;
    run(&mut connection, "create table kept as select 7 as answer").await;
    run(&mut connection, "checkpoint").await;

    server.kill().await.unwrap();
    assert_eq!(server.pid(), None);
    assert!(sqlx::query("select 1").execute(&mut connection).await.is_err());
    assert!(PgConnection::connect(&url).await.is_err());

    server.restart().await.unwrap();
    assert_eq!(server.url("postgres"), url);
    assert_eq!(number(&mut connect(&server).await, "select answer from kept").await, 7);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_stale_lock_file_with_a_living_strangers_number_is_no_obstacle() {
    let place = place();
    let server = Postgres::start(options(&place)).await.unwrap();
    let pid_file = server.data_dir().join("pgdata/postmaster.pid");
    let stale = fs::read_to_string(&pid_file).unwrap();
    let socket_dir = server.socket_dir().to_owned();
    let port = server.port();
    server.stop().await.unwrap();

    // A stranger that runs as the server's user and that PostgreSQL would therefore take for a server; and a zombie.
    let owner = fs::metadata(options(&place).data_dir.join("pgdata")).unwrap();
    let mut strange = Command::new("sleep");
    strange.arg("600").kill_on_drop(true);
    if owner.uid() != fs::metadata("/proc/self").unwrap().uid() {
        strange.uid(owner.uid()).gid(owner.gid());
    }
    let stranger = strange.spawn().unwrap();
    let mut zombie = std::process::Command::new("true").spawn().unwrap();
    for pid in [stranger.id().unwrap(), zombie.id(), 4_000_000] {
        let (_, rest) = stale.split_once('\n').unwrap();
        fs::write(&pid_file, format!("{pid}\n{rest}")).unwrap();
        fs::create_dir_all(&socket_dir).unwrap();
        std::os::unix::fs::chown(&socket_dir, Some(owner.uid()), Some(owner.gid())).unwrap();
        fs::write(socket_dir.join(format!(".s.PGSQL.{port}.lock")), format!("{pid}\n")).unwrap();

        let server = Postgres::start(options(&place)).await.unwrap();
        assert_eq!(number(&mut connect(&server).await, "select 1").await, 1);
        server.stop().await.unwrap();
    }
    zombie.wait().unwrap();
}

#[tokio::test]
async fn another_major_versions_data_is_refused_and_left_alone() {
    let place = place();
    Postgres::start(options(&place)).await.unwrap().stop().await.unwrap();
    let version_file = options(&place).data_dir.join("pgdata/PG_VERSION");
    fs::write(&version_file, "9.6\n").unwrap();

    let error = Postgres::start(options(&place)).await.unwrap_err();
    let ours = devkit::find_binaries(None).unwrap().version;
    let text = error.to_string();
    assert!(matches!(error, ServerError::OtherMajorVersion { .. }), "{text}");
    assert!(text.contains("PostgreSQL 9.6") && text.contains(&ours) && text.contains("PG_BINDIR"), "{text}");
    assert_eq!(fs::read_to_string(&version_file).unwrap(), "9.6\n");
}

#[tokio::test]
async fn a_long_path_works() {
    let place = place();
    let long = PathBuf::from("a-folder-with-a-long-name".repeat(5)).join("pg");
    fs::create_dir(place.path().join(long.parent().unwrap())).unwrap();
    let data_dir = place.path().join(long);
    let server = Postgres::start(PostgresOptions::new(&data_dir, Profile::Test)).await.unwrap();
    let socket = server.socket_dir().join(format!(".s.PGSQL.{}", server.port()));
    assert!(socket.as_os_str().len() <= 107);
    assert!(socket.exists());
    assert_eq!(number(&mut connect(&server).await, "select 1").await, 1);
    server.stop().await.unwrap();
    assert!(!socket.parent().unwrap().exists());
}

#[tokio::test]
async fn a_taken_port_is_replaced_by_a_free_one() {
    let place = place();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let server = Postgres::start(PostgresOptions { port: Some(port), ..options(&place) }).await.unwrap();
    assert_ne!(server.port(), port);
    assert_eq!(number(&mut connect(&server).await, "select 1").await, 1);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_failed_start_carries_the_servers_last_words() {
    let place = place();
    let settings = vec![("shared_buffers".to_owned(), "enormous".to_owned())];
    let error = Postgres::start(PostgresOptions { settings, ..options(&place) }).await.unwrap_err();
    let ServerError::StartFailed { log_tail, .. } = &error else { panic!("{error}") };
    assert!(log_tail.contains("shared_buffers"), "{log_tail}");

    Postgres::start(options(&place)).await.unwrap().stop().await.unwrap();
}

#[tokio::test]
async fn a_half_made_cluster_is_made_again() {
    let place = place();
    Postgres::start(options(&place)).await.unwrap().stop().await.unwrap();
    let data_dir = options(&place).data_dir;
    fs::rename(data_dir.join("pgdata"), data_dir.join("pgdata.new")).unwrap();

    let server = Postgres::start(options(&place)).await.unwrap();
    assert_eq!(number(&mut connect(&server).await, "select 1").await, 1);
    assert!(!data_dir.join("pgdata.new").exists());
    server.stop().await.unwrap();
}
