//! Where a process runs, and whether one that ran at the same place has ended.

/// A process's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The machine's or the container's name.
    pub host: String,
    /// Which processes can see it, its number among them, and when it began: no two are the same while the machine runs.
    pub process: String,
    /// Where it listens, if at an address of its own choice.
    pub listen: Option<String>,
}

impl Place {
    /// This process's.
    pub fn here(listen: Option<std::net::SocketAddr>) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        let listen = listen.filter(|address| address.port() != 0).map(|address| address.to_string());
        Self { host, process: process(std::process::id()).unwrap_or_default(), listen }
    }

    /// Whether `other`, which is not connected to master, has ended for certain: its number is nobody's, or somebody else's, by
    /// now; or it ran in a container of which this process is the next run, as the machine has not been started since and it listens
    /// where that one did, which has been silent since.
    pub fn knows_ended(&self, other: &Self, is_silent: bool) -> bool {
        if self.host != other.host || self.host.is_empty() || self.process.is_empty() {
            return false;
        }
        let (Some((seen_here, _)), Some((seen_there, rest))) =
            (self.process.split_once(' '), other.process.split_once(' '))
        else {
            return false;
        };
        let boot = |seen: &str| seen.split('/').next().map(str::to_owned);
        if seen_here == seen_there {
            let number = rest.split(' ').next().and_then(|number| number.parse().ok());
            // Where not everybody's processes can be seen, one that is not seen may run.
            return process(1).is_some()
                && number.is_some_and(|number| process(number).as_deref() != Some(other.process.as_str()));
        }
        is_silent && boot(seen_here) == boot(seen_there) && self.listen.is_some() && self.listen == other.listen
    }
}

/// What tells a process from all others of the machine: nothing when it does not run, or cannot be seen.
fn process(number: u32) -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
    let stat = std::fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
    // The program's name, in parentheses, may hold anything; what follows are numbers. The state is the first of them.
    let mut numbers = stat.rsplit_once(')')?.1.split_whitespace();
    let is_dead = matches!(numbers.next()?, "Z" | "X");
    let began = numbers.nth(18)?;
    (!is_dead).then(|| format!("{}/{} {number} {began}", boot.trim(), namespace.display()))
}

#[cfg(test)]
mod tests {
    use super::{Place, process};

    fn here() -> Place {
        Place::here(Some(([127, 0, 0, 1], 8080).into()))
    }

    #[test]
    fn a_process_that_runs_is_not_taken_for_ended_and_one_that_does_not_is() {
        let me = here();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("it starts");
        let other = Place { process: process(child.id()).expect("it runs"), ..me.clone() };
        assert!(!me.knows_ended(&other, true));
        child.kill().expect("it is ours");
        child.wait().expect("it ends");
        assert!(me.knows_ended(&other, false));
        assert!(!me.knows_ended(&me, true));
    }

    #[test]
    fn of_another_machine_nothing_is_known_and_of_a_containers_last_run_that_it_ended() {
        let me = here();
        let boot = me.process.split('/').next().expect("it is told");
        let elsewhere = Place { process: format!("{boot}/pid:[1] 1 1"), ..me.clone() };
        assert!(me.knows_ended(&elsewhere, true), "the same host and address in another container: its last run");
        assert!(!me.knows_ended(&elsewhere, false), "it spoke just now: one that runs beside us");
        assert!(
            !me.knows_ended(&Place { process: "another/pid:[1] 1 1".to_owned(), ..me.clone() }, true),
            "a namesake's"
        );
        assert!(!me.knows_ended(&Place { listen: None, ..elsewhere.clone() }, true));
        assert!(!me.knows_ended(&Place { host: "another".to_owned(), ..elsewhere }, true));
    }
}
