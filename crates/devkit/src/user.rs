//! Whom the server runs as. PostgreSQL refuses root, and `initdb` refuses a user without a passwd entry.

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::{fs, io};

use crate::ServerError;

/// An entry of `/etc/passwd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Whom to drop to: nobody (`None`) unless we are root. Data that exists decides, so that root can take up what a user began.
pub(crate) fn run_as(pgdata: &Path) -> Result<Option<User>, ServerError> {
    let uid = effective_uid().map_err(ServerError::io("asking `id` who we are"))?;
    if uid != 0 {
        let named = quietly(Command::new("id").arg("-un")).status().is_ok_and(|status| status.success());
        return if named { Ok(None) } else { Err(ServerError::UnknownUser { uid }) };
    }
    let passwd = fs::read_to_string("/etc/passwd").map_err(ServerError::io("reading /etc/passwd"))?;
    let owner = fs::metadata(pgdata).ok().map(|meta| meta.uid());
    choose(&parse(&passwd), owner).map(Some).ok_or(ServerError::NoUnprivilegedUser)
}

/// Whether `user` can pass through `dir`: tried, not computed, because access lists and mounts have a say as well.
pub(crate) fn can_enter(user: &User, dir: &Path) -> bool {
    can(user, "cd \"$1\"", dir)
}

/// Whether `user` can make files in `dir`.
pub(crate) fn can_write(user: &User, dir: &Path) -> bool {
    can(user, "cd \"$1\" && test -w .", dir)
}

fn can(user: &User, script: &str, dir: &Path) -> bool {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, "sh"]).arg(dir);
    command.uid(user.uid).gid(user.gid).current_dir("/");
    quietly(&mut command).status().is_ok_and(|status| status.success())
}

/// Whether `user` can run `program --version`.
pub(crate) fn can_run(user: &User, program: &Path) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").uid(user.uid).gid(user.gid).current_dir("/");
    quietly(&mut command).status().is_ok_and(|status| status.success())
}

/// Our own user id: the standard library has no call for it.
pub(crate) fn effective_uid() -> io::Result<u32> {
    let output = Command::new("id").arg("-u").stdin(Stdio::null()).output()?;
    String::from_utf8_lossy(&output.stdout).trim().parse().map_err(io::Error::other)
}

fn quietly(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}

fn choose(users: &[User], owner_of_data: Option<u32>) -> Option<User> {
    let by_name = |name: &str| users.iter().find(|user| user.name == name && user.uid != 0);
    let by_data = owner_of_data.filter(|uid| *uid != 0).and_then(|uid| users.iter().find(|user| user.uid == uid));
    by_data.or_else(|| by_name("postgres")).or_else(|| by_name("nobody")).cloned()
}

fn parse(passwd: &str) -> Vec<User> {
    passwd
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _password) = (fields.next()?, fields.next()?);
            Some(User { name: name.to_owned(), uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n# comment\nnobody:x:65534:65534::/:/usr/sbin/nologin\n\
                          postgres:x:101:104:PostgreSQL:/var/lib/postgresql:/bin/bash\nada:x:1000:1000::/home/ada:/bin/sh\n";

    fn chosen(passwd: &str, owner: Option<u32>) -> Option<String> {
        choose(&parse(passwd), owner).map(|user| user.name)
    }

    #[test]
    fn the_owner_of_existing_data_comes_before_postgres_and_nobody() {
        assert_eq!(chosen(PASSWD, Some(1000)).as_deref(), Some("ada"));
        assert_eq!(chosen(PASSWD, None).as_deref(), Some("postgres"));
        assert_eq!(chosen(&PASSWD.replace("postgres:", "pg:"), None).as_deref(), Some("nobody"));
    }

    #[test]
    fn root_is_never_chosen() {
        assert_eq!(chosen(PASSWD, Some(0)).as_deref(), Some("postgres"));
        assert_eq!(chosen("root:x:0:0::/root:/bin/sh\npostgres:x:0:0::/:/bin/sh", Some(0)), None);
    }
}
